"""Ancestral sampling: the exact posterior of each step at the denoised data."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_mdm.diffusions.base import Cap
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.diffusions.posterior import posterior
from pyro_mdm.samplers.base import Noise
from pyro_mdm.samplers.linear import Answers, LinearSampler, LinearSteps, combined

__all__ = ["Ancestral"]


class Ancestral(LinearSampler[LinearSteps]):
    """The exact Gaussian posterior ``q(y_{s'} | y_s, x = x̂(y_s, s))``, by default on ``log_snr``.

    It samples the discrete-time model of the grid, whose bound is that of the chain. One call of
    the denoiser a step.

    Args:
        steps: number of steps, which is the number of calls.
        grid: times at which steps end, see :class:`Sampler`; ``log_snr`` by default.

    Source: Ho, Jain & Abbeel, "Denoising Diffusion Probabilistic Models",
    NeurIPS 2020, equations 6 and 7, here for any K.
    """

    default_grid = "log_snr"
    noise = 1.0
    needs = (Cap.KERNELS, Cap.READOUT)

    def plan(self, diffusion: Kernels, times: Tensor) -> LinearSteps:
        kernel = posterior(diffusion, times[:-1], times[1:])
        parts = [kernel.gain, kernel.mean_coefficient.unsqueeze(-1), kernel.scale_tril]
        return LinearSteps(times[:-1], torch.cat(parts, -1))

    def advance(self, at: LinearSteps, y: Tensor, ask: Answers, noise: Noise) -> Tensor:
        return combined(at.matrix, y, ask.denoise(y, at.s), noise())
