"""Grids of times for samplers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_mdm.diffusions.linear import LinearDiffusion

if TYPE_CHECKING:
    from pyro_mdm.diffusions.nonlinear import NonlinearDiffusion

__all__ = ["information_grid", "log_snr_grid", "simulation_grid"]


def log_snr_grid(diffusion: LinearDiffusion, steps: int) -> Tensor:
    """(steps + 1,) decreasing times from T to ε, equally spaced in log SNR."""
    return diffusion.log_snr_grid(steps + 1).flip(0)


@torch.no_grad()
def information_grid(diffusion: LinearDiffusion, steps: int) -> Tensor:
    r"""(steps + 1,) decreasing times from T to ε, even in what noise does to all variables.

    The measure is ``-λ(s) + ∫ tr(Σ^{-1} g²) ds``, closed form because the integral is
    ``log det Σ - 2 ∫ tr A``. For K = 1 both parts are -λ and the grid is :func:`log_snr_grid`. For
    K > 1 log SNR can pause while auxiliary variables forget fast: equal steps of λ alone are then
    so long that explicit steps of the score overshoot.
    """
    end = diffusion.clock(diffusion.horizon)
    start = diffusion.clock(diffusion.start_time)
    fraction = torch.linspace(0, 1, 1024).to(end)
    tau = torch.cat([start * (end / start) ** fraction, start + (end - start) * fraction[1:-1]])
    tau = tau.clamp(start, end).unique()
    _, _, factor = diffusion.factorization(tau)
    forgotten = factor.log_det - 2 * diffusion.unit_drift.trace() * tau - factor.log_snr
    wanted = forgotten[0] + (forgotten[-1] - forgotten[0]) * torch.linspace(0, 1, steps + 1).to(tau)
    i = torch.searchsorted(forgotten, wanted).clamp(1, len(tau) - 1)
    weight = (wanted - forgotten[i - 1]) / (forgotten[i] - forgotten[i - 1])
    s = diffusion.inverse_clock(torch.lerp(tau[i - 1], tau[i], weight.clamp(0, 1)))
    s[0], s[-1] = diffusion.start_time, diffusion.horizon
    return s.flip(0)


def simulation_grid(diffusion: NonlinearDiffusion, steps: int) -> Tensor:
    """(steps + 1,) decreasing times from T to ε, even in the diffusion's ``progress``."""
    fraction = torch.linspace(0, 1, steps + 1).to(diffusion.start_time)
    return diffusion.time_at_progress(fraction).flip(0)
