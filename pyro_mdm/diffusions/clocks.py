r"""Clocks: how fast the noising diffusion runs.

A clock is a positive rate β(s) on [0, T] and its integral ``b(s) = ∫_0^s β``. All matrices of a
diffusion share it, ``A(s) = β(s) A_0`` and ``g²(s) = β(s) g²_0``, so that kernels depend on s
through b alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_mdm.support.checks import check_number
from pyro_mdm.support.doors import Several, checked_arguments
from pyro_mdm.support.settings import Recorded

__all__ = ["Clock", "ConstantBeta", "GeometricBeta", "LearnedBeta", "LinearBeta"]


class Clock(Recorded, nn.Module, ABC):
    """A positive rate β(s), its integral b(s) and the inverse of that integral."""

    @abstractmethod
    def rate(self, s: Tensor) -> Tensor:
        """β(s), like s."""

    @abstractmethod
    def integral(self, s: Tensor) -> Tensor:
        """b(s) = ∫_0^s β, like s."""

    @abstractmethod
    def inverse(self, tau: Tensor) -> Tensor:
        """The s with b(s) = τ, like τ."""

    def kinks(self) -> Tensor:
        """Times (n,) at which β has no derivative; no step of high order should cross them."""
        return torch.zeros(0, dtype=torch.float64)


def _positive(name: str, value: float) -> float:
    expected = "a positive number; the clock must advance"
    return check_number(name, value, expected, positive=True)


class LinearBeta(Clock):
    """β(s) = β_min + (β_max - β_min) s / T (Song et al. 2021; 0.1 → 20 by default)."""

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, horizon: float = 1.0) -> None:
        super().__init__()
        self.beta_min = _positive("beta_min", beta_min)
        self.beta_max = _positive("beta_max", beta_max)
        self.slope = (self.beta_max - self.beta_min) / _positive("horizon", horizon)

    def rate(self, s: Tensor) -> Tensor:
        return self.beta_min + self.slope * s

    def integral(self, s: Tensor) -> Tensor:
        return s * (self.beta_min + 0.5 * self.slope * s)

    def inverse(self, tau: Tensor) -> Tensor:
        return _quadratic_inverse(tau, self.beta_min, self.slope)

    def settings(self) -> dict[str, Any]:
        return {"beta_min": self.beta_min, "beta_max": self.beta_max, "slope": self.slope}

    def extra_repr(self) -> str:
        return f"beta_min={self.beta_min}, beta_max={self.beta_max}"


class ConstantBeta(Clock):
    """β(s) = β."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = _positive("beta", beta)

    def rate(self, s: Tensor) -> Tensor:
        return torch.full_like(s, self.beta)

    def integral(self, s: Tensor) -> Tensor:
        return self.beta * s

    def inverse(self, tau: Tensor) -> Tensor:
        return tau / self.beta

    def extra_repr(self) -> str:
        return f"beta={self.beta}"


class GeometricBeta(Clock):
    """The clock b(s) = c (ρ^{s/T} - 1), whose rate grows by the factor ρ until T.

    Args:
        start: c, about the clock time until which little happens;  end: c ρ, about b(T).
        horizon: T.
    """

    def __init__(self, start: float, end: float, horizon: float = 1.0) -> None:
        super().__init__()
        self.start, self.end = _positive("start", start), _positive("end", end)
        if not self.start < self.end:
            raise ValueError(
                f"start is {self.start:g} and end {self.end:g}, expected start < end: the clock's "
                "rate grows from the data to the noise"
            )
        self.growth = math.log(self.end / self.start) / _positive("horizon", horizon)

    def rate(self, s: Tensor) -> Tensor:
        return self.start * self.growth * torch.exp(self.growth * s)

    def integral(self, s: Tensor) -> Tensor:
        return self.start * torch.expm1(self.growth * s)

    def inverse(self, tau: Tensor) -> Tensor:
        return torch.log1p(tau / self.start) / self.growth

    def settings(self) -> dict[str, Any]:
        return {"start": self.start, "end": self.end, "growth": self.growth}

    def extra_repr(self) -> str:
        return f"start={self.start}, end={self.end}"


class LearnedBeta(Clock):
    """A learned clock: β is positive and piecewise linear between equally spaced knots.

    It starts at the rates of ``start`` on the knots (exactly, where that clock is linear).

    Args:
        start: the clock to start from.
        knots: number of knots, at least 2.
        horizon: T.
    """

    @checked_arguments
    def __init__(
        self, start: Clock | None = None, knots: Several = 17, horizon: float = 1.0
    ) -> None:
        super().__init__()
        start = start if start is not None else LinearBeta(horizon=horizon)
        self.horizon = _positive("horizon", horizon)
        s = torch.linspace(0, horizon, knots, dtype=torch.float64)
        rates = start.rate(s).detach()
        self.raw = nn.Parameter(rates + torch.log(-torch.expm1(-rates)))  # softplus^{-1}

    def kinks(self) -> Tensor:
        return torch.linspace(0, self.horizon, len(self.raw), dtype=torch.float64)[1:-1]

    def settings(self) -> dict[str, Any]:
        return {"horizon": self.horizon}  # ``raw`` has replaced its start

    def _pieces(self) -> tuple[float, Tensor, Tensor, Tensor]:
        beta = F.softplus(self.raw, threshold=700)
        h = self.horizon / (len(beta) - 1)
        ends = torch.cumsum((beta[1:] + beta[:-1]) * (h / 2), 0)
        return h, beta, (beta[1:] - beta[:-1]) / h, torch.cat([ends.new_zeros(1), ends])

    def _locate(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        h, beta, slope, b = self._pieces()
        i = (s.detach() / h).floor().long().clamp(0, len(slope) - 1)
        return s - i * h, beta[i], slope[i], b[i]

    def rate(self, s: Tensor) -> Tensor:
        r, beta, slope, _ = self._locate(s)
        return beta + slope * r

    def integral(self, s: Tensor) -> Tensor:
        r, beta, slope, b = self._locate(s)
        return b + r * (beta + 0.5 * slope * r)

    def inverse(self, tau: Tensor) -> Tensor:
        h, beta, slope, b = self._pieces()
        i = (torch.bucketize(tau.detach().contiguous(), b.detach(), right=True) - 1).clamp(
            0, len(slope) - 1
        )
        return i * h + _quadratic_inverse(tau - b[i], beta[i], slope[i])


def _quadratic_inverse(tau: Tensor, beta: float | Tensor, slope: float | Tensor) -> Tensor:
    """The root r ≥ 0 of β r + ½ slope r² = τ, in the form that does not cancel."""
    return 2 * tau / (beta + (beta**2 + 2 * slope * tau).clamp_min(0).sqrt())
