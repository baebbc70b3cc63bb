"""Inpainting with any score: observed dimensions are replaced in the states before each step."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_mdm.diffusions.base import Cap, Diffusion, require
from pyro_mdm.diffusions.closed import noised_state
from pyro_mdm.diffusions.matrices import apply_matrix, of_rows
from pyro_mdm.samplers.base import Noise, Questions, Sampler
from pyro_mdm.support.checks import Count, check_mask, checked_arguments, real_tensor
from pyro_mdm.support.modules import of_part
from pyro_mdm.support.progress import Progress

__all__ = ["Replacement"]


class Replacement(Sampler):
    """A sampler that draws observed dimensions of y_s from q(y_s | x_o) before each step.

    It serves any score of a linear diffusion, of the raw state too::

        DiffusionModel(diffusion, score, sampler=Replacement(Ancestral(100), observed, values))

    It is an approximation, whatever the score and the steps: the other dimensions depend on x_o
    through the score alone, at the noise of z, so that early draws do not fit it. ``repeats`` makes
    them fit better. A denoiser trained with maps does not need it (:func:`~pyro_mdm.condition`);
    for others :func:`~pyro_mdm.measurements.condition_on_measurements` is better.

    Args:
        sampler: the sampler that takes the steps.
        observed: mask of observed dimensions, bool, (*event_shape).
        values: observed values, (*event_shape), or (n, *event_shape) for n data that differ; other
            entries are not read.
        repeats: number of repetitions of each step, with noise added back in between.

    Raises:
        TypeError: no sampler, or one without steps on a grid; a mask that is not bool; on call, a
            diffusion without closed-form kernels.
        ValueError: values of another shape, or not finite where they are observed.

    Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential
    Equations", ICLR 2021, appendix I.2; for repeats, Lugmayr et al., "RePaint", CVPR 2022.
    """

    @checked_arguments
    def __init__(
        self, sampler: Sampler, observed: Tensor, values: Tensor, repeats: Count = 1
    ) -> None:
        if type(sampler).integrate is not Sampler.integrate:
            raise TypeError(
                f"sampler is {sampler!r}, which takes no steps on a grid; use Ancestral or "
                "StochasticExponentialIntegrator"
            )
        super().__init__(sampler.steps, sampler.grid)
        check_mask("observed", observed)
        values = real_tensor("values", values, "the observed values, (*event_shape)")
        if values.shape[max(values.dim() - observed.dim(), 0) :] != observed.shape:
            raise ValueError(
                f"values has shape {tuple(values.shape)}, expected {tuple(observed.shape)}, that "
                "of observed, or one for each of n data"
            )
        if not bool((values.isfinite() | ~observed).all()):
            raise ValueError("values has observed entries that are not finite, expected numbers")
        self.sampler, self.observed, self.repeats = sampler, observed, repeats
        self.values = torch.where(observed, values, 0.0)
        self.default_grid, self.noise = sampler.default_grid, sampler.noise  # type: ignore[misc]

    plan = of_part("sampler")
    step = of_part("sampler")

    def check(self, diffusion: Diffusion, score: object = None) -> None:
        self.sampler.check(diffusion, score)
        needed = (Cap.KERNELS, Cap.OWN_DRIFT, Cap.READOUT, Cap.DATA_STATES, Cap.NO_CONTEXT)
        who = "Replacement, which draws observed dimensions of y_s apart from others,"
        require(diffusion, *needed, who=who, fix="use a linear diffusion of the data")

    def integrate(self, y: Tensor, ask: Questions, noise: Noise, bar: Progress | None) -> Tensor:
        times = self.times(ask.diffusion)
        plan = self.sampler.planned(ask, times, y)
        laws, steps = ask.diffusion.marginal(times), ask.diffusion.transition(times[:-1], times[1:])
        observed = self.observed.to(y.device)
        values = of_rows(self.values.to(y.device), observed.dim(), y.shape[:1])
        values = values.expand(len(y), *observed.shape)

        def replaced(y: Tensor, i: int) -> Tensor:
            return torch.where(observed, noised_state(laws.at(i), values, noise()), y)

        for i in range(self.steps):
            y = replaced(y, i)
            if ask.watch is not None:
                ask.watch(times[i].detach(), y.detach())
            for again in range(self.repeats):
                if again:
                    step = steps.at(i)
                    again_noised = apply_matrix(step.matrix, y)
                    y = replaced(again_noised + apply_matrix(step.scale_tril, noise()), i)
                    if ask.past:
                        ask.past.popleft()  # x̂ of the step that is taken back
                y = self.sampler.step(plan, i, y, ask, noise)
            if bar is not None:
                bar.update()
        self.calls = ask.calls or self.steps * self.repeats * self.sampler.calls_a_step
        return replaced(y, self.steps)
