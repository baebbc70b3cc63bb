r"""Clocks of interpolants: b(s) = σ²/α² = e^{-λ}, and the signal α that is left."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_mdm.diffusions.base import check_horizon
from pyro_mdm.diffusions.clocks import Clock, GeometricBeta
from pyro_mdm.diffusions.ends import differentiable_once
from pyro_mdm.support.checks import checked_arguments, describe
from pyro_mdm.support.settings import described

__all__ = [
    "Exploding",
    "GivenSchedule",
    "InterpolantClock",
    "Schedule",
    "Straight",
    "SubVariance",
    "Turning",
]

Schedule = Callable[[Tensor], Tensor]
"""Times s (…) in float64 -> α or σ, like s."""

CHECKED = 4097
"""Times at which given functions are checked."""
HALVINGS = 60
"""Of an interval in which a time is searched for: to rounding."""


class InterpolantClock(Clock):
    """The clock b(s) = σ²/α² of an interpolant, and the signal that is left.

    Args:
        horizon: the end of the times at which α and σ are given; α may be 0 there, and b infinite.
    """

    def __init__(self, horizon: float = 1.0) -> None:
        super().__init__()
        self.horizon = horizon

    @abstractmethod
    def drift(self, s: Tensor) -> Tensor:
        """A = α'/α at times s, like s."""

    @abstractmethod
    def signal(self, tau: Tensor) -> Tensor:
        """α at clock times τ, like τ."""

    def check(self) -> None:
        """Raise ValueError unless α falls from 1 and σ rises from 0."""

    @property
    def remedy(self) -> str:
        """How log SNR could end lower, for messages."""
        return "give α and σ with a smaller ratio at T"


class Exploding(GeometricBeta, InterpolantClock):
    """α = 1, and b a geometric clock."""

    def __init__(self, sigma_min: float, sigma_max: float) -> None:
        super().__init__(sigma_min**2, sigma_max**2)

    def drift(self, s: Tensor) -> Tensor:
        return torch.zeros_like(s)

    def signal(self, tau: Tensor) -> Tensor:
        return torch.ones_like(tau)

    @property
    def remedy(self) -> str:
        return "raise sigma_max"


class SubVariance(InterpolantClock):
    """α = e^{-b/2} and σ/α = 2 sinh(b/2)."""

    def __init__(self, beta: Clock, horizon: float) -> None:
        super().__init__(horizon)
        self.beta = beta

    def rate(self, s: Tensor) -> Tensor:
        return 2 * torch.sinh(self.beta.integral(s)) * self.beta.rate(s)

    def integral(self, s: Tensor) -> Tensor:
        return 4 * torch.sinh(self.beta.integral(s) / 2).square()

    def inverse(self, tau: Tensor) -> Tensor:
        return self.beta.inverse(2 * torch.asinh(tau.sqrt() / 2))

    def drift(self, s: Tensor) -> Tensor:
        return -self.beta.rate(s) / 2

    def signal(self, tau: Tensor) -> Tensor:
        half = tau.sqrt() / 2
        return 1 / (half + (1 + half.square()).sqrt())

    def settings(self) -> dict[str, Any]:
        return {"beta": described(self.beta), "horizon": self.horizon}

    @property
    def remedy(self) -> str:
        return "give a faster clock, e.g. beta=LinearBeta(0.1, 30.0)"


class Straight(InterpolantClock):
    """α = 1 - s, σ = s."""

    def rate(self, s: Tensor) -> Tensor:
        return 2 * s / (1 - s) ** 3

    def integral(self, s: Tensor) -> Tensor:
        return (s / (1 - s)).square()

    def inverse(self, tau: Tensor) -> Tensor:
        return 1 / (1 + 1 / tau.sqrt())

    def drift(self, s: Tensor) -> Tensor:
        return -1 / (1 - s)

    def signal(self, tau: Tensor) -> Tensor:
        return 1 / (1 + tau.sqrt())


class Turning(InterpolantClock):
    """α = cos(π s / 2), σ = sin(π s / 2)."""

    def rate(self, s: Tensor) -> Tensor:
        ratio = self._ratio(s)
        return math.pi * ratio * (1 + ratio.square())

    def integral(self, s: Tensor) -> Tensor:
        return self._ratio(s).square()

    def inverse(self, tau: Tensor) -> Tensor:
        return torch.atan(tau.sqrt()) * (2 / math.pi)

    def drift(self, s: Tensor) -> Tensor:
        return -math.pi / 2 * self._ratio(s)

    def signal(self, tau: Tensor) -> Tensor:
        return 1 / (1 + tau).sqrt()

    def _ratio(self, s: Tensor) -> Tensor:
        """σ/α, by the cosine's sine near T: π s / 2 itself is rounded there."""
        angle = math.pi / 2
        late = torch.sin(angle * s) / torch.sin(angle * (1 - s))
        return torch.where(s < 0.5, torch.tan(angle * s.clamp_max(0.5)), late)


class GivenSchedule(InterpolantClock):
    """Functions α and σ that are given; times are searched for."""

    @checked_arguments
    def __init__(self, alpha: Schedule, sigma: Schedule, horizon: float) -> None:
        super().__init__(check_horizon(horizon))
        self.alpha, self.sigma = alpha, sigma

    def check(self) -> None:
        s = torch.linspace(0.0, self.horizon, CHECKED, dtype=torch.float64, device="cpu")
        with torch.enable_grad():
            for shaped in (s[:6].reshape(2, 3), s[1]):
                self._both(shaped)
        alpha, sigma = self._both(s)
        for name, value in (("α", alpha), ("σ", sigma)):
            if not bool((finite := value.isfinite()).all()):
                raise ValueError(
                    f"{name}(s) is not finite at s = {s[~finite][0].item():.6g}, expected finite "
                    f"numbers on all of [0, {self.horizon:g}]"
                )
        for name, value, start in (("α", alpha, 1.0), ("σ", sigma, 0.0)):
            if not abs(value[0].item() - start) < 1e-12:
                raise ValueError(
                    f"{name} is {value[0].item():.6g} at s = 0, expected {start:g}, where y holds "
                    f"x itself; {'divide α and σ by α(0)' if start else 'subtract σ(0)'}"
                )
        for name, steps, fault in (("α", -alpha.diff(), "rises"), ("σ", sigma.diff(), "falls")):
            if bool((wrong := steps < -1e-14).any()):
                at = s[:-1][wrong][0].item()
                raise ValueError(
                    f"{name} {fault} at s = {at:.6g}, expected a function that is monotone on [0, "
                    f"{self.horizon:g}]: α from 1 down, σ from 0 up; end at this time (horizon), "
                    "or give another function"
                )
        ratio = sigma / alpha
        still = ~(ratio.diff() > 0) | ~(alpha[:-1] > 0)
        if bool(still.any()):
            raise ValueError(
                f"log SNR does not fall at s = {s[:-1][still][0].item():.6g}, where α is "
                f"{alpha[:-1][still][0].item():.4g} and σ {sigma[:-1][still][0].item():.4g}, "
                "expected σ/α that rises up to the end; end at this time (horizon), or let α fall "
                "or σ rise everywhere"
            )

    def _both(self, s: Tensor) -> tuple[Tensor, Tensor]:
        return self._value("α", self.alpha, s), self._value("σ", self.sigma, s)

    def _value(self, name: str, function: Schedule, s: Tensor) -> Tensor:
        value = function(s)
        if not isinstance(value, Tensor) or value.dtype != torch.float64:
            got = value.dtype if isinstance(value, Tensor) else describe(value)
            raise TypeError(
                f"{name}(s) is {got}, expected a tensor of torch.float64, like s; compute in the "
                "dtype of s, and write a constant as torch.ones_like(s)"
            )
        if value.shape != s.shape:
            raise ValueError(
                f"{name}(s) has shape {tuple(value.shape)} for times of shape {tuple(s.shape)}, "
                "expected the same: it is applied elementwise"
            )
        if value.requires_grad and not s.requires_grad:
            raise ValueError(
                f"{name}(s) requires a gradient, expected a function of constants: interpolants "
                "are not learned; use LearnedDiffusion, or detach what it is made of"
            )
        return value

    def _slopes(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """α, σ, α' and σ' at times s, like s."""
        graph = torch.is_grad_enabled() and s.requires_grad
        with torch.enable_grad():
            at = s if graph else s.detach().requires_grad_()
            both = [value + 0 * at for value in self._both(at)]  # of constants, the slope is 0
            slopes = [
                torch.autograd.grad(value.sum(), at, create_graph=graph, retain_graph=True)[0]
                for value in both
            ]
        alpha, sigma = both if graph else (value.detach() for value in both)
        return alpha, sigma, slopes[0], slopes[1]

    def integral(self, s: Tensor) -> Tensor:
        alpha, sigma = self._both(s)
        return (sigma / alpha).square()

    def rate(self, s: Tensor) -> Tensor:
        alpha, sigma, by_alpha, by_sigma = self._slopes(s)
        return 2 * sigma * (by_sigma - sigma / alpha * by_alpha) / alpha.square()

    def drift(self, s: Tensor) -> Tensor:
        alpha, _, by_alpha, _ = self._slopes(s)
        return by_alpha / alpha

    def inverse(self, tau: Tensor) -> Tensor:
        """The time with σ/α = √τ, by halving, and the gradient by one Newton step."""
        ratio = tau.detach().sqrt()
        with torch.no_grad():
            low, high = torch.zeros_like(ratio), torch.full_like(ratio, self.horizon)
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                alpha, sigma = self._both(middle)
                late = sigma > ratio * alpha
                low, high = torch.where(late, low, middle), torch.where(late, middle, high)
            s = (low + high) / 2
            alpha, sigma, by_alpha, by_sigma = self._slopes(s)
            slope = by_sigma - ratio * by_alpha
            step = torch.where(slope > 0, (sigma - ratio * alpha) / slope, 0.0)
            s = (s - step).clamp(low, high)
        if not (torch.is_grad_enabled() and tau.requires_grad):
            return s
        return s + differentiable_once(tau - tau.detach()) / self.rate(s)

    def signal(self, tau: Tensor) -> Tensor:
        return self._value("α", self.alpha, self.inverse(tau))

    def settings(self) -> dict[str, Any]:
        functions = {"alpha": described(self.alpha), "sigma": described(self.sigma)}
        return functions | {"horizon": self.horizon}
