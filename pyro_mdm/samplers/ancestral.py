"""Ancestral sampling: the exact posterior of each step at the denoised data."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from pyro_mdm.diffusions.base import Cap
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.diffusions.matrices import apply_matrix, outer
from pyro_mdm.diffusions.posterior import StepPosterior, posterior
from pyro_mdm.samplers.base import Noise, Questions, Sampler

__all__ = ["Ancestral"]


class _AncestralPlan(NamedTuple):
    s: Tensor  # (steps,)
    kernel: StepPosterior


class Ancestral(Sampler):
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

    def plan(self, diffusion: Kernels, times: Tensor) -> _AncestralPlan:
        return _AncestralPlan(times[:-1], posterior(diffusion, times[:-1], times[1:]))

    def step(self, plan: _AncestralPlan, i: int, y: Tensor, ask: Questions, noise: Noise) -> Tensor:
        x_hat = ask.denoise(y, plan.s[i])
        kernel = plan.kernel
        mean = apply_matrix(kernel.gain[i], y) + outer(kernel.mean_coefficient[i], x_hat)
        return mean + apply_matrix(kernel.scale_tril[i], noise())
