r"""Clocks, how fast the noising diffusion runs, and other increasing functions of time.

A clock is a positive rate β(s) on [0, T] and its integral ``b(s) = ∫_0^s β``. All matrices of a
diffusion share it, ``A(s) = β(s) A_0`` and ``g²(s) = β(s) g²_0``, so that kernels depend on s
through b alone. The terms of a bound are integrated over time changes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_mdm.support.checks import Several, check_number, check_real, checked_arguments
from pyro_mdm.support.settings import Recorded

__all__ = [
    "Clock",
    "ConstantBeta",
    "GeometricBeta",
    "LearnedBeta",
    "LinearBeta",
    "LogClock",
    "LogSNR",
    "TimeChange",
    "Times",
    "as_times",
    "even_times",
    "log_snr_times",
    "times_within",
]


Times = float | Tensor
"""One time, or a tensor of them."""


def as_times(value: Times) -> Tensor:
    """A number or tensor in float64, on the host."""
    check_real("a time, log SNR or log volume", value)
    return torch.as_tensor(value, dtype=torch.float64, device="cpu")


def times_within(horizon: float, name: str, value: Times) -> Tensor:
    """Times in float64. Raises ValueError outside [0, T]."""
    if isinstance(value, Tensor) and value.is_floating_point():
        s = value.to("cpu", torch.float64)
    else:
        s = as_times(value)
    if bool((outside := s.clamp(0, horizon) != s).any()):
        raise ValueError(
            f"{name} = {s.detach()[outside][0].item():.6g} is outside [0, T] = [0, "
            f"{horizon:g}]; time runs from the data at 0 to the noise at T"
        )
    return s


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
        return torch.zeros(0, dtype=torch.float64, device="cpu")


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
        s = torch.linspace(0, horizon, knots, dtype=torch.float64, device="cpu")
        rates = start.rate(s).detach()
        self.raw = nn.Parameter(rates + torch.log(-torch.expm1(-rates)))  # softplus^{-1}

    def kinks(self) -> Tensor:
        return torch.linspace(0, self.horizon, len(self.raw), dtype=torch.float64, device="cpu")[
            1:-1
        ]

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


# -- time changes ----------------------------------------------------------------------------------


class Timed(Protocol):
    """The times of a diffusion, as a time change asks for them."""

    horizon: float

    @property
    def start_time(self) -> Tensor: ...
    @property
    def start_log_snr(self) -> Tensor: ...
    @property
    def terminal_log_snr(self) -> Tensor: ...
    def log_snr(self, s: Times) -> Tensor: ...
    def log_snr_rate(self, s: Times) -> Tensor: ...
    def time_at_log_snr(self, value: Times) -> Tensor: ...
    def clock(self, s: Times) -> Tensor: ...
    def rate(self, s: Times) -> Tensor: ...
    def time_at_clock(self, tau: Tensor) -> Tensor: ...


class TimeChange(ABC):
    """An increasing function of a diffusion's time, with its rate and inverse."""

    @abstractmethod
    def __call__(self, s: Times) -> Tensor:
        """The value at times s, like s."""

    @abstractmethod
    def rate(self, s: Times) -> Tensor:
        """The derivative by s, like s; positive."""

    @abstractmethod
    def inverse(self, value: Tensor) -> Tensor:
        """The time with this value, like it."""

    @property
    @abstractmethod
    def ends(self) -> Tensor:
        """The values at ε and T, (2,)."""

    @abstractmethod
    def rate_by_clock(self, s: Tensor, whitener: Tensor, g2: Tensor) -> Tensor:
        """The derivative by clock time, like s (n,).

        Args:
            s: times.
            whitener: L^{-1} of the distribution of y_s given x;  g2: per unit of clock time.
        """

    def time_at(self, u: Tensor) -> Tensor:
        """The time at the fraction u of the way from ε to T, like u."""
        start, end = self.ends
        return self.inverse(start + u.clamp(0, 1) * (end - start))

    def speed(self, s: Tensor) -> Tensor:
        """ds/du of :meth:`time_at`, like s."""
        start, end = self.ends
        value: Tensor = (end - start) / self.rate(s)
        return value


class _OfDiffusion(TimeChange):
    def __init__(self, diffusion: Timed) -> None:
        self.diffusion = diffusion

    @property
    def ends(self) -> Tensor:
        start = self.diffusion.start_time
        return self(torch.stack([start, start.new_tensor(self.diffusion.horizon)]))

    def rate_by_clock(self, s: Tensor, whitener: Tensor, g2: Tensor) -> Tensor:
        return self.rate(s) / self.diffusion.rate(s)


class LogSNR(_OfDiffusion):
    """-λ, log SNR falling."""

    def __call__(self, s: Times) -> Tensor:
        return -self.diffusion.log_snr(s)

    def rate(self, s: Times) -> Tensor:
        return self.diffusion.log_snr_rate(s)

    def inverse(self, value: Tensor) -> Tensor:
        return self.diffusion.time_at_log_snr(-value)

    @property
    def ends(self) -> Tensor:
        return torch.stack([-self.diffusion.start_log_snr, -self.diffusion.terminal_log_snr])


class LogClock(_OfDiffusion):
    """The logarithm of the clock, in which flows of diffusions in closed form are smooth."""

    def __call__(self, s: Times) -> Tensor:
        return self.diffusion.clock(s).log()

    def rate(self, s: Times) -> Tensor:
        return self.diffusion.rate(s) / self.diffusion.clock(s)

    def inverse(self, value: Tensor) -> Tensor:
        return self.diffusion.time_at_clock(value.exp())


def even_times(diffusion: Timed, change: TimeChange, num_times: int) -> Tensor:
    """Increasing times (num_times,) from ε to T, equally spaced in a time change."""
    if num_times < 2:
        raise ValueError(f"num_times is {num_times}, expected at least 2: both ends")
    start, end = change.ends
    u = torch.linspace(0, 1, num_times, dtype=torch.float64, device=start.device)
    # the exact ends, which an inverse may miss by rounding
    inner = change.inverse(start + (end - start) * u[1:-1])
    return torch.cat([diffusion.start_time[None], inner, start.new_tensor([diffusion.horizon])])


def log_snr_times(diffusion: Timed, num_times: int) -> Tensor:
    """Increasing times (num_times,) from ε to T, equally spaced in log SNR."""
    return even_times(diffusion, LogSNR(diffusion), num_times)
