"""Predictor-corrector: a step of the reverse process, then Langevin steps at the time reached."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from pyro_mdm.diffusions.base import Marginal
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.diffusions.matrices import apply_matrix, outer
from pyro_mdm.diffusions.posterior import Posterior, posterior
from pyro_mdm.samplers.base import Noise, Questions, Sampler
from pyro_mdm.samplers.grids import Grid
from pyro_mdm.support.checks import check_count, check_number

__all__ = ["PredictorCorrector"]


class _CorrectedPlan(NamedTuple):
    s: Tensor  # (steps + 1,)
    kernel: Posterior
    reached: Marginal  # at s[1:]
    keep: Tensor  # e^{-δ} (steps,)


class PredictorCorrector(Sampler):
    r"""The exact posterior of a step at x̂, then corrections that pull towards q(y_r).

    A correction is a Langevin step preconditioned by Σ, exact for held x̂:

        y ← a x̂ + e^{-δ} (y - a x̂) + √(1 - e^{-2δ}) L ξ,    Σ = L Lᵀ,

    where δ is ``strength`` times what the step has gained in log volume per variable, so that all
    corrections together do the same whatever the number of steps. Weak order 1; 1 + ``corrections``
    calls of the denoiser a step.

    Args:
        steps: number of steps.
        corrections: Langevin steps after each, at least 1.
        strength: of a correction, positive. At 1 it renews about as much as the predictor.
        grid: see :class:`Sampler`; ``log_snr`` by default.

    Raises:
        ValueError: fewer than 1 correction, a strength that is not positive; see also
            :class:`Sampler`.

    Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential
    Equations", ICLR 2021, whose δ is about 2 r² for a signal-to-noise ratio r.
    """

    default_grid = "log_snr"
    reads_x = True
    serves_driven = False

    def __init__(
        self, steps: int, corrections: int = 1, strength: float = 0.5, grid: Grid | None = None
    ) -> None:
        super().__init__(steps, grid)
        check_count("corrections", corrections, "the number of Langevin steps after each step")
        expected = "a positive number, e.g. 0.5"
        self.corrections = corrections
        self.strength = check_number("strength", strength, expected, positive=True)

    def plan(self, diffusion: LinearDiffusion, times: Tensor) -> _CorrectedPlan:
        gained = -diffusion.log_volume(times).diff(dim=0)
        delta = self.strength * gained / diffusion.num_variables
        kernel = posterior(diffusion, times[:-1], times[1:])
        return _CorrectedPlan(times, kernel, diffusion.marginal(times[1:]), (-delta).exp())

    def step(self, plan: _CorrectedPlan, i: int, y: Tensor, ask: Questions, noise: Noise) -> Tensor:
        kernel, reached, keep = plan.kernel, plan.reached, plan.keep[i]
        keep = keep.unsqueeze(1) if keep.dim() else keep  # by data dimension
        of_x = outer(kernel.mean_coefficient[i], ask.denoise(y, plan.s[i]))
        y = apply_matrix(kernel.gain[i], y) + of_x + apply_matrix(kernel.scale_tril[i], noise())
        renewed = (1 - keep.square()).sqrt()
        for _ in range(self.corrections):
            mean = outer(reached.mean[i], ask.denoise(y, plan.s[i + 1]))
            y = mean + keep * (y - mean) + renewed * apply_matrix(reached.scale_tril[i], noise())
        return y
