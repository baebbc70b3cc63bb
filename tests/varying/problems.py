"""Diffusions of this room with known answers; :mod:`tests.diffusions` lists them with others."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_mdm.varying.interpolants import VE, Interpolant
from pyro_mdm.varying.time_varying import TimeVaryingDiffusion, TimeVaryingLearnedDiffusion
from tests.problems import Factory, fixed


def turning(s: Tensor) -> Tensor:
    """Q(s) of a :class:`TimeVaryingDiffusion` with K = 2."""
    J = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64, device=s.device)
    return (1 + 0.4 * torch.sin(3 * s))[..., None, None] * J


def rubbing(s: Tensor) -> Tensor:
    """D(s) of one, whose axes turn, so that it does not commute with itself at other times."""
    B = torch.stack([torch.stack([0.3 + 0 * s, 0.2 * s], -1), torch.stack([s, 1 + s * s], -1)], -2)
    return B @ B.mT


def learned_in_time(K: int, rank: int, seed: int, **options: object) -> TimeVaryingLearnedDiffusion:
    """A learned diffusion that varies in time, some way into its training."""
    diffusion = TimeVaryingLearnedDiffusion(K, rank, degree=2, **options)
    with torch.no_grad():
        diffusion.lower.add_(0.2 * fixed(seed, *diffusion.lower.shape))
        diffusion.B.add_(0.1 * fixed(seed + 1, *diffusion.B.shape))
    return diffusion


def less_data(s: Tensor) -> Tensor:
    """α(s) of an :class:`Interpolant`."""
    return torch.cos(1.55 * s)


def more_noise(s: Tensor) -> Tensor:
    """σ(s) of one."""
    return 1.3 * torch.sin(1.55 * s)


DIFFUSIONS: list[tuple[str, Factory]] = [
    ("time_varying_2", lambda: TimeVaryingDiffusion(turning, rubbing)),
    ("time_varying_3_learned", lambda: learned_in_time(3, 2, 80, min_log_snr=-9.0)),
    ("ve", VE),
    ("interpolant", lambda: Interpolant(less_data, more_noise)),
]
