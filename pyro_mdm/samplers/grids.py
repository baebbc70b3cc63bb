"""Grids of times for samplers, decreasing from T to ε."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import singledispatch
from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_mdm.diffusions.base import Cap, Diffusion, require
from pyro_mdm.diffusions.clocks import even_times, log_snr_times
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.diffusions.ends import factorization
from pyro_mdm.diffusions.kernels import Factor
from pyro_mdm.diffusions.linear import LinearDiffusion, linear_of
from pyro_mdm.support.checks import Count, check_count, checked_arguments, real_tensor

__all__ = [
    "GRIDS",
    "Grid",
    "Progressing",
    "NEED",
    "check_grid",
    "even_in_information",
    "check_need",
    "given_times",
    "information_grid",
    "interpolated",
    "karras_grid",
    "log_snr_grid",
    "log_volume_grid",
    "quadratic_grid",
    "simulation_grid",
    "tabulated",
]

Grid = str | Sequence[float] | Callable[[Any, int], Tensor]
"""A name in :data:`GRIDS`, the times themselves, or a function of a diffusion and a number of steps
that returns them."""


@checked_arguments
def log_snr_grid(diffusion: Diffusion, steps: int) -> Tensor:
    """Decreasing times (steps + 1,) from T to ε, equally spaced in log SNR.

    For a nonlinear diffusion the log SNR is nominal.

    Args:
        diffusion: the noising diffusion.
        steps: number of steps.
    """
    return log_snr_times(diffusion, steps + 1).flip(0)


@torch.no_grad()
@checked_arguments
def log_volume_grid(diffusion: Kernels, steps: Count) -> Tensor:
    """Decreasing times (steps + 1,) from T to ε, equally spaced in log volume κ.

    See :class:`~pyro_mdm.diffusions.linear.LogVolume`. For K = 1 it is log SNR; for K > 1
    it moves where log SNR pauses.

    Args:
        diffusion: diffusion with closed-form kernels.
        steps: number of steps.
    """
    return even_times(diffusion, diffusion.log_volume, steps + 1).flip(0)


@torch.no_grad()
@checked_arguments
def karras_grid(diffusion: Diffusion, steps: int, rho: float = 7.0) -> Tensor:
    """Decreasing times (steps + 1,) from T to ε, equally spaced in σ^(1/ρ) with ``σ = e^{-λ/2}``.

    Args:
        diffusion: the noising diffusion.
        steps: number of steps.
        rho: exponent ρ; the larger, the shorter the steps near the data.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
    NeurIPS 2022, equation 5, with ρ = 7.
    """
    ends = torch.stack([diffusion.terminal_log_snr, diffusion.start_log_snr])
    first, last = (-ends / (2 * rho)).exp()
    root = torch.lerp(first, last, torch.linspace(0, 1, steps + 1).to(first))
    s = diffusion.time_at_log_snr((-2 * rho * root.log())[1:-1])
    return torch.cat([s.new_tensor([diffusion.horizon]), s, diffusion.start_time[None]])


@torch.no_grad()
@checked_arguments
def quadratic_grid(diffusion: Diffusion, steps: Count) -> Tensor:
    """Decreasing times (steps + 1,) from T to ε, equally spaced in √s.

    Args:
        diffusion: the noising diffusion.
        steps: number of steps.

    Source: Song, Meng & Ermon, "Denoising Diffusion Implicit Models", ICLR 2021, appendix D.
    """
    last = diffusion.start_time.sqrt()
    first = last.new_tensor(diffusion.horizon).sqrt()
    s = torch.lerp(first, last, torch.linspace(0, 1, steps + 1).to(first)).square()
    s[0], s[-1] = diffusion.horizon, diffusion.start_time
    return s


@torch.no_grad()
@checked_arguments
def information_grid(diffusion: Kernels, steps: int) -> Tensor:
    r"""Decreasing times (steps + 1,) from T to ε, even in the effect of noise on all variables.

    The measure is ``-λ(s) + ∫ tr(Σ^{-1} g²) ds``, in closed form because the integral is
    ``log det Σ - 2 ∫ tr A``. For K = 1 both parts are -λ and the grid is :func:`log_snr_grid`. For
    K > 1 log SNR can pause while auxiliary variables forget fast; steps that are even in λ alone
    are then so long that explicit steps of the score overshoot. With blocks and clocks per data
    dimension, the measure follows at every time the dimension that changes fastest.

    Args:
        diffusion: diffusion with closed-form kernels.
        steps: number of steps.
    """
    return even_in_information(diffusion, steps)


@singledispatch
def even_in_information(diffusion: Kernels, steps: int) -> Tensor:
    """The times of :func:`information_grid`, with a function for each kind of diffusion."""
    check_count("steps", steps, "the number of steps")
    tau, factor = tabulated(linear_of(diffusion))
    values = factor.log_det - 2 * diffusion.propagator.trace(None, tau) - factor.log_snr
    wanted = values[0] + (values[-1] - values[0]) * torch.linspace(0, 1, steps + 1).to(values)
    s = diffusion.time_at_clock(interpolated(wanted, values, tau))
    s[0], s[-1] = diffusion.start_time, diffusion.horizon
    return s.flip(0)


class Progressing(Protocol):
    """A simulated diffusion, whose ``progress`` is the fraction of the way from ε to T."""

    @property
    def start_time(self) -> Tensor: ...

    def time_at_progress(self, progress: Tensor) -> Tensor: ...


@checked_arguments
def simulation_grid(diffusion: Progressing, steps: int) -> Tensor:
    """Decreasing times (steps + 1,) from T to ε, even in the diffusion's ``progress``.

    Args:
        diffusion: simulated diffusion.
        steps: number of steps.
    """
    fraction = torch.linspace(0, 1, steps + 1).to(diffusion.start_time)
    return diffusion.time_at_progress(fraction).flip(0)


GRIDS: dict[str, Callable[[Any, int], Tensor]] = {
    "information": information_grid,
    "log_snr": log_snr_grid,
    "log_volume": log_volume_grid,
    "karras": karras_grid,
    "quadratic": quadratic_grid,
    "progress": simulation_grid,
}
"""Grids by name. ``information`` and ``log_volume`` need a closed form, ``progress`` is for
diffusions without one, and the others are for all."""

NEED = {"information": Cap.KERNELS, "log_volume": Cap.KERNELS, "progress": Cap.SIMULATED}
"""The capability that a grid needs of a diffusion; the other grids serve all."""


KNOTS = 1024
"""The number of times of a table, even in clock time, and of as many even in its logarithm."""


def tabulated(linear: LinearDiffusion) -> tuple[Tensor, Factor]:
    """Increasing clock times (n,) from ε to T, and the factorization of Σ there."""
    start, end = linear.clock(linear.start_time), linear.clock(linear.horizon)
    fraction = torch.linspace(0, 1, KNOTS).to(end)
    tau = torch.cat([start * (end / start) ** fraction, start + (end - start) * fraction[1:-1]])
    tau = tau.clamp(start, end).unique()  # rounding may repeat or pass an end
    _, _, factor = factorization(linear, tau)
    return tau, factor


def interpolated(x: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Linear interpolation at x, like x, of values (n,) at increasing knots (n,)."""
    i = torch.searchsorted(knots, x).clamp(1, len(knots) - 1)
    weight = (x - knots[i - 1]) / (knots[i] - knots[i - 1])
    return torch.lerp(values[i - 1], values[i], weight.clamp(0, 1))


# -- the door --------------------------------------------------------------------------------------


def check_grid(grid: object, steps: int) -> None:
    """Raises TypeError or ValueError unless a sampler can take the grid.

    Args:
        grid: a name in :data:`GRIDS`, steps + 1 decreasing times, a function, or None.
        steps: number of steps.
    """
    if grid is None or callable(grid):
        return
    if isinstance(grid, str):
        if grid not in GRIDS:
            raise ValueError(
                f"grid is {grid!r}, expected one of {', '.join(GRIDS)}, the times from T to ε, or "
                "a function of a diffusion and the number of steps that returns them"
            )
        return
    _check_times(real_tensor("grid", grid, f"a name, or {steps + 1} times from T to ε"), steps)


def check_need(name: str, diffusion: Diffusion) -> None:
    """Raises UnsupportedDiffusionError for a grid of :data:`NEED` and a diffusion without it."""
    others = ", ".join(other for other in GRIDS if NEED.get(other) != NEED[name])
    fix = f"use one of {others}, or None for the sampler's own"
    require(diffusion, NEED[name], who=f"grid {name!r}", fix=fix)


def given_times(
    grid: Sequence[float] | Callable[[Any, int], Tensor], diffusion: Diffusion, steps: int
) -> Tensor:
    """Decreasing times (steps + 1,) from T to ε in float64, checked.

    Args:
        grid: the times, or a function that returns them.
        diffusion: the noising diffusion.
        steps: number of steps.

    Raises:
        ValueError: another number of times, not decreasing, or not from T to ε.
    """
    given = grid(diffusion, steps) if callable(grid) else grid
    times = real_tensor("grid", given, f"{steps + 1} times from T to ε").to(diffusion.start_time)
    _check_times(times, steps)
    T, start = diffusion.horizon, diffusion.start_time.item()
    first, last = times[0].item(), times[-1].item()
    room = 1e-6 * T  # for ends that come rounded, as in float32; they are replaced by exact ones
    if first > T + room or last < start - room:
        bad = first if first > T + room else last
        raise ValueError(
            f"grid holds s = {bad:.6g}, outside [ε, T] = [{start:.6g}, {T:.6g}] of this diffusion; "
            "begin at diffusion.horizon and end at diffusion.start_time"
        )
    if first < T - room or last > start + room:
        raise ValueError(
            f"grid goes from s = {first:.6g} to {last:.6g}, expected from T = {T:.6g} to "
            f"ε = {start:.6g}; begin at diffusion.horizon and end at diffusion.start_time"
        )
    times = times.clone()
    times[0], times[-1] = T, start
    return times


def _check_times(times: Tensor, steps: int) -> None:
    if times.shape != (steps + 1,):
        raise ValueError(
            f"grid has shape {tuple(times.shape)} for {steps} steps, expected ({steps + 1},): the "
            "times from T to ε, both among them"
        )
    if not bool((times.diff() < 0).all()):
        i = int((~(times.diff() < 0)).nonzero()[0])
        raise ValueError(
            f"grid goes from {times[i].item():.6g} to {times[i + 1].item():.6g}, expected "
            "decreasing times; generation runs from T back to ε"
        )
