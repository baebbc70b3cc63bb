"""Noise schedules that networks were trained for, as tables in log SNR."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mdm.support.checks import checked_arguments
from pyro_mdm.support.modules import ExactBuffers
from pyro_mdm.support.settings import Restorable

__all__ = ["NoiseSchedule", "SchedulePoint"]

POINTS = 16385
"""Points of the table of a schedule that is given by functions."""
REFINED = 3
"""The number of times that the table of a schedule by functions is respaced evenly in log SNR, each
by the table before."""
Function = Callable[[Tensor], Tensor]


class SchedulePoint(NamedTuple):
    """A schedule at log SNRs of any shape: the network's time, α and σ, and their rates.

    All are float64 and of the shape of the log SNRs; a discrete time is a whole number.

    Example:
        >>> point = NoiseSchedule.from_sigmas(0.01, 50.0).at(torch.tensor(0.0).double())
        >>> round(float(point.time), 3), round(float(point.sigma), 3)
        (1.0, 1.0)
    """

    time: Tensor
    alpha: Tensor
    sigma: Tensor
    alpha_rate: Tensor
    sigma_rate: Tensor


class NoiseSchedule(Restorable, ExactBuffers):
    r"""The noise schedule of a network, ``w_t = α(t) x + σ(t) ε``, and the times that it is given.

    Between two times of the table t, the norm of (α, σ) and their rates are linear in the log SNR
    ``λ = 2 log(α/σ)``, and α/σ is ``e^{λ/2}`` exactly. Times where α or σ is 0, but for rounding,
    are left out.

    Args:
        time: the number that the network is given for each t, (n,): t, its index, σ, log σ or λ.
        alpha, sigma: α and σ at each time, (n,), not negative; their log SNR is monotone.
        discrete: whether the network takes the times of the table alone; the nearest in log SNR is
            then taken, and w is scaled by its α.
        alpha_rate, sigma_rate: dα/dt and dσ/dt, (n,), which velocities need; None: unknown.

    Raises:
        ValueError: tables of different lengths or of fewer than two noisy times, negative or
            infinite numbers, a log SNR that is not monotone.

    Example:
        >>> schedule = NoiseSchedule.from_betas(torch.linspace(1e-4, 0.02, 1000))
        >>> [round(end, 2) for end in schedule.range]
        [-10.12, 9.21]
    """

    @checked_arguments
    def __init__(
        self,
        time: Tensor,
        alpha: Tensor,
        sigma: Tensor,
        *,
        discrete: bool = False,
        alpha_rate: Tensor | None = None,
        sigma_rate: Tensor | None = None,
    ) -> None:
        super().__init__()
        time = torch.as_tensor(time).cpu()
        time = time.long() if discrete else time.double()
        unknown = torch.full(time.shape, math.nan)
        rates = [unknown if rate is None else rate for rate in (alpha_rate, sigma_rate)]
        alpha, sigma, *rates = (
            torch.as_tensor(column, dtype=torch.float64).cpu() for column in (alpha, sigma, *rates)
        )
        shapes = [tuple(column.shape) for column in (time, alpha, sigma, *rates)]
        if len(shapes[0]) != 1 or len(set(shapes)) > 1:
            raise ValueError(
                "time, alpha, sigma, alpha_rate and sigma_rate have shapes "
                f"{', '.join(map(str, shapes))}, expected one length, (n,)"
            )
        for name, column in (("alpha", alpha), ("sigma", sigma)):
            if not bool((column.isfinite() & (column >= 0)).all()):
                raise ValueError(
                    f"{name} runs from {column.min():.6g} to {column.max():.6g}, expected finite "
                    "numbers that are not negative; w = alpha * x + sigma * noise"
                )
        rounding = torch.finfo(torch.float64).eps * torch.hypot(alpha, sigma)
        noisy = (alpha > rounding) & (sigma > rounding)  # cos(π/2) is 6e-17
        if int(noisy.sum()) < 2:
            raise ValueError(
                f"{int(noisy.sum())} of {len(alpha)} times have both a signal and noise, expected "
                "two at least"
            )
        time, alpha, sigma, *rates = (column[noisy] for column in (time, alpha, sigma, *rates))
        log_snr = 2 * (alpha / sigma).log()
        if log_snr[0] > log_snr[-1]:
            log_snr, time, alpha, sigma = (t.flip(0) for t in (log_snr, time, alpha, sigma))
            rates = [rate.flip(0) for rate in rates]
        falls = (log_snr.diff() <= 0).nonzero()
        if len(falls):
            i = int(falls[0])
            raise ValueError(
                f"the log SNR is {log_snr[i]:.6g} at time {time[i]:.6g} and "
                f"{log_snr[i + 1]:.6g} at the next, {time[i + 1]:.6g}; expected a schedule that is "
                "monotone in log SNR"
            )
        self.discrete = discrete
        self.register_buffer("log_snr", log_snr.contiguous())
        # one tensor, so that all columns are looked up at once
        table = torch.stack([time.double(), *rates, torch.hypot(alpha, sigma), alpha, sigma])
        self.register_buffer("table", table)

    log_snr: Tensor
    table: Tensor

    @property
    def time(self) -> Tensor:
        """The network's times, (n,) float64, by rising log SNR."""
        return self.table[0]

    @property
    def alpha_rate(self) -> Tensor:
        """dα/dt, (n,); NaN where it is unknown."""
        return self.table[1]

    @property
    def sigma_rate(self) -> Tensor:
        """dσ/dt, (n,); NaN where it is unknown."""
        return self.table[2]

    @property
    def alpha(self) -> Tensor:
        """α, (n,)."""
        return self.table[4]

    @property
    def sigma(self) -> Tensor:
        """σ, (n,)."""
        return self.table[5]

    @classmethod
    def from_functions(
        cls,
        alpha: Function,
        sigma: Function,
        start: float = 0.0,
        end: float = 1.0,
        *,
        time: Function | None = None,
        points: int = POINTS,
    ) -> NoiseSchedule:
        """A schedule of real times, from functions.

        Args:
            alpha, sigma: α(t) and σ(t), as functions of times, (n,) float64.
            start, end: the least and the greatest time; either may be the noisy one.
            time: the function that returns the network's time for t; None: t.
            points: the number of times of the table, evenly spaced in log SNR.
        """
        t = torch.linspace(start, end, points, dtype=torch.float64)
        for _ in range(REFINED):
            t = _evenly(cls(t, _values(alpha, t)[0], _values(sigma, t)[0]), points)
        (a, a_rate), (s, s_rate) = (_values(f, t) for f in (alpha, sigma))
        network_time = t if time is None else time(t)
        return cls(network_time, a, s, alpha_rate=a_rate, sigma_rate=s_rate)

    @classmethod
    def from_betas(cls, betas: Tensor, *, first: int = 0) -> NoiseSchedule:
        """The schedule of a DDPM, whose network is given the index of a time.

        Args:
            betas: β of each time, (n,).
            first: the index of the first time.

        Source: Ho, Jain & Abbeel, "Denoising Diffusion Probabilistic Models", 2020.
        """
        kept = (-torch.as_tensor(betas, dtype=torch.float64)).log1p().cumsum(0)
        numbers = torch.arange(first, first + len(kept))
        return cls(numbers, (kept / 2).exp(), (-torch.expm1(kept)).sqrt(), discrete=True)

    @classmethod
    def from_sigmas(
        cls, least: float, most: float, *, time: Function | None = None, points: int = POINTS
    ) -> NoiseSchedule:
        """The schedule w = x + σ ε, with σ between two positive numbers.

        Args:
            least, most: the least and the largest σ, in units of the data.
            time: the function that returns the network's time for σ; None: σ. That of raw networks
                of EDM is log σ / 4.
            points: the number of times of the table, evenly spaced in log SNR.

        Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
        NeurIPS 2022.
        """
        if not 0 < least < most:
            raise ValueError(f"sigmas from {least} to {most}, expected 0 < least < most")
        log_sigma = torch.linspace(math.log(least), math.log(most), points, dtype=torch.float64)
        sigma = log_sigma.exp()
        one = torch.ones_like(sigma)
        network_time = sigma if time is None else time(sigma)
        return cls(network_time, one, sigma, alpha_rate=0 * one, sigma_rate=one)

    @classmethod
    def flow(cls, *, data_at: float = 1.0, least: float = 1e-4) -> NoiseSchedule:
        """The straight line between data and noise, for t from 0 to 1 without its ends.

        Args:
            data_at: the time of the data, 0 or 1.
            least: the least α and σ, since the log SNR of the ends is infinite.

        Source: Lipman et al., "Flow Matching for Generative Modeling", 2023 (data at 1); Liu, Gong
        & Liu, "Flow Straight and Fast", 2023.
        """
        if data_at not in (0, 1):
            raise ValueError(f"data_at is {data_at}, expected 0 or 1, the time of the data")
        log_snr = torch.linspace(
            2 * math.log(least / (1 - least)),
            -2 * math.log(least / (1 - least)),
            POINTS,
            dtype=torch.float64,
        )
        alpha, sigma = (log_snr / 2).sigmoid(), (-log_snr / 2).sigmoid()
        rate = torch.ones_like(alpha) if data_at == 1 else -torch.ones_like(alpha)
        time = alpha if data_at == 1 else sigma
        return cls(time, alpha, sigma, alpha_rate=rate, sigma_rate=-rate)

    @property
    def range(self) -> tuple[float, float]:
        """The least and the greatest log SNR."""
        return float(self.log_snr[0]), float(self.log_snr[-1])

    def at(self, log_snr: Tensor) -> SchedulePoint:
        """The schedule at log SNRs.

        Args:
            log_snr: log SNRs of any shape, float64.

        Returns:
            A :class:`SchedulePoint`. Nothing waits for the host.
        """
        i = torch.searchsorted(self.log_snr, log_snr.contiguous()).clamp(1, len(self.log_snr) - 1)
        low, high = self.log_snr[i - 1], self.log_snr[i]
        if self.discrete:
            i = torch.where(log_snr - low < high - log_snr, i - 1, i)
            time, alpha_rate, sigma_rate, _, alpha, sigma = self.table[:, i]
        else:
            fraction = ((log_snr - low) / (high - low)).clamp(0, 1)
            time, alpha_rate, sigma_rate, norm = torch.lerp(
                self.table[:4, i - 1], self.table[:4, i], fraction
            )
            alpha, sigma = (norm * (sign * log_snr).sigmoid().sqrt() for sign in (1, -1))
        return SchedulePoint(time, alpha, sigma, alpha_rate, sigma_rate)


def _evenly(schedule: NoiseSchedule, points: int) -> Tensor:
    """Times that are nearly evenly spaced in log SNR."""
    log_snr = torch.linspace(*schedule.range, points, dtype=torch.float64)
    return schedule.at(log_snr).time


def _values(function: Function, t: Tensor) -> tuple[Tensor, Tensor]:
    """A function at times (n,), and its derivative."""
    with torch.enable_grad():
        t = t.clone().requires_grad_()
        value = torch.as_tensor(function(t), dtype=t.dtype).expand_as(t)
        if not value.requires_grad:
            return value.clone(), torch.zeros_like(value)
        (rate,) = torch.autograd.grad(value.sum(), t, allow_unused=True)
    return value.detach(), torch.zeros_like(value) if rate is None else rate
