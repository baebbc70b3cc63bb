"""Euler-Maruyama, for every diffusion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mdm.diffusions.base import Diffusion
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.diffusions.matrices import apply_matrix
from pyro_mdm.diffusions.sde import check_dispersion
from pyro_mdm.diffusions.simulation import LIMIT, SimulationError
from pyro_mdm.samplers.base import Questions, Sampler
from pyro_mdm.samplers.grids import information_grid, simulation_grid

__all__ = ["EulerMaruyama"]


class _EulerPlan(NamedTuple):
    s: Tensor  # (steps,)
    keep: Tensor  # I - h A
    pull: Tensor  # h g²
    root: Tensor  # √h G


class EulerMaruyama(Sampler):
    """``u' = u + h (g² s_θ + ∇·g² - f) + √h G ξ``, weak order 1. One score call a step.

    For any diffusion: on :func:`information_grid` for a linear one, as is :class:`Splitting`, and
    on :func:`simulation_grid` for any other.
    """

    def check(self, diffusion: Diffusion) -> None:
        pass

    def times(self, diffusion: Diffusion) -> Tensor:
        if isinstance(diffusion, LinearDiffusion):
            return information_grid(diffusion, self.steps)
        nonlinear: Any = diffusion
        return simulation_grid(nonlinear, self.steps)

    def plan(self, diffusion: Diffusion, times: Tensor) -> _EulerPlan | Tensor:
        if not isinstance(diffusion, LinearDiffusion):
            return times
        s, h = times[:-1], (times[:-1] - times[1:])[:, None, None]
        A = diffusion.drift_matrix(s)
        eye = torch.eye(diffusion.num_variables).to(A)
        root = h.sqrt() * diffusion.dispersion_matrix(s)
        return _EulerPlan(s, eye - h * A, h * diffusion.noise_covariance(s), root)

    def step(
        self,
        plan: _EulerPlan | Tensor,
        i: int,
        y: Tensor,
        ask: Questions,
        noise: Callable[[], Tensor],
    ) -> Tensor:
        if isinstance(plan, Tensor):
            return self._general(plan, i, y, ask, noise())
        drifted = apply_matrix(plan.keep[i], y) + apply_matrix(
            plan.pull[i], ask.score(y, plan.s[i])
        )
        return drifted + apply_matrix(plan.root[i], noise())

    @staticmethod
    def _general(times: Tensor, i: int, y: Tensor, ask: Questions, noise: Tensor) -> Tensor:
        diffusion, s, h = ask.diffusion, times[i].expand(len(y)), times[i] - times[i + 1]
        if not bool((y.abs() < LIMIT).all()):
            raise SimulationError(
                f"sampling exploded: a state of {y.abs().max().item():.3g} at s = "
                f"{float(s[0]):.4g}, in step {i + 1} of {len(times) - 1} back from T. Take more "
                "steps (a drift that pulls back strongly pushes apart in reverse until the score "
                "is learned), or train on"
            )
        G = check_dispersion(diffusion, diffusion.dispersion(y, s), y).double()

        def rows(v: Tensor) -> Tensor:
            return v.flatten(2).mT if v.dim() > 2 else v.unsqueeze(1)

        white = G.mT @ rows(ask.score(y, s[0])).unsqueeze(-1)
        moved = (G @ (h * white + h.sqrt() * rows(noise).unsqueeze(-1))).squeeze(-1)
        drift = diffusion.drift(y, s) - diffusion.noise_divergence(y, s)
        return y - h * drift.double() + moved.mT.reshape(y.shape)
