"""Symmetric splitting: the linear part of the reverse SDE exactly, the rest by half steps."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mdm.diffusions.base import Cap
from pyro_mdm.diffusions.closed import OneBlock
from pyro_mdm.diffusions.matrices import apply_matrix
from pyro_mdm.diffusions.propagator import Halves
from pyro_mdm.samplers.base import Noise, Questions, Sampler
from pyro_mdm.samplers.grids import Grid
from pyro_mdm.support.checks import check_count

__all__ = ["Splitting"]


class _SplittingPlan(NamedTuple):
    s: Tensor  # (steps,) the middle of each step, by the clock
    halves: Halves  # of B and g², before and after the step of the score
    pull: Tensor  # τ g², in the middle
    precision: Tensor  # Σ_π^{-1}, the same for all steps


class Splitting(Sampler):
    r"""Symmetric splitting for any A and g²: half a step of noise, a step of score, half a step.

    The reverse drift is ``B u + g² (s_θ + Σ_π^{-1} u)`` with ``B = -(A + g² Σ_π^{-1})``. Its first
    term and the noise are a linear diffusion, whose kernel is exact; the second term vanishes where
    the score is that of the prior. For a stationary prior, ``B = (Q - D) Σ_∞^{-1}``. Otherwise the
    second term is large for most of the way, and more steps are needed.

    Args:
        steps: number of steps.
        order: weak order: 1 (an Euler step of the score, one score call) or 2 (a midpoint step, two
            calls).
        grid: times at which steps end, see :class:`Sampler`.

    Source: for CLD, the symmetric splitting CLD sampler of Dockhorn, Vahdat & Kreis, "Score-Based
    Generative Modeling with Critically-Damped Langevin Diffusion", ICLR 2022.
    """

    needs = (Cap.KERNELS, Cap.OWN_DRIFT)
    reads_by_step = True

    def __init__(self, steps: int, order: int = 1, grid: Grid | None = None) -> None:
        super().__init__(steps, grid)
        check_count("order", order, "the order of the integrator")
        if order not in (1, 2):
            raise ValueError(f"order is {order}, expected 1 (Euler) or 2 (midpoint)")
        self.order = order

    def plan(self, diffusion: OneBlock, times: Tensor) -> _SplittingPlan:
        clock = diffusion.clock(times)
        tau = clock[:-1] - clock[1:]
        # inv_ex: Σ_π is positive definite, and inv would wait for the device to check that
        precision = torch.linalg.inv_ex(diffusion.prior_covariance).inverse
        halves = diffusion.propagator.halves(clock[1:], tau)
        diffusion.check_precision(halves.growth, clock[1:], "the noise of half a step")
        s = diffusion.inverse_clock((clock[:-1] + clock[1:]) / 2)
        pull = tau[..., None, None] * diffusion.clock_noise(s)
        return _SplittingPlan(s, halves, pull, precision.expand_as(pull))

    def step(self, plan: _SplittingPlan, i: int, y: Tensor, ask: Questions, noise: Noise) -> Tensor:
        def velocity(u: Tensor) -> Tensor:
            force = ask.score(u, plan.s[i]) + apply_matrix(plan.precision[i], u)
            return apply_matrix(plan.pull[i], force)

        first, first_root, second, second_root, _ = plan.halves
        y = apply_matrix(first[i], y) + apply_matrix(first_root[i], noise())
        y = y + velocity(y if self.order == 1 else y + velocity(y) / 2)
        return apply_matrix(second[i], y) + apply_matrix(second_root[i], noise())
