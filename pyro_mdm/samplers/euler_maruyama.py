"""Euler-Maruyama, for every diffusion."""

from __future__ import annotations

from functools import singledispatch

import torch
from torch import Tensor

from pyro_mdm.diffusions.base import Diffusion
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.diffusions.matrices import as_rows
from pyro_mdm.diffusions.sde import noise_root
from pyro_mdm.samplers.base import Noise, Questions, check_size
from pyro_mdm.samplers.linear import Answers, LinearSampler, LinearSteps, combined

__all__ = ["EulerMaruyama"]


class EulerMaruyama(LinearSampler[LinearSteps]):
    """Euler–Maruyama, ``u' = u + h (g² s_θ + ∇·g² - f) + √h G ξ``, for any diffusion.

    Weak order 1, one score call a step.

    Args:
        steps: number of steps, which is the number of calls.
        grid: times at which steps end, see :class:`Sampler`.
    """

    needs = ()

    def plan(self, diffusion: Diffusion, times: Tensor) -> LinearSteps | Tensor:
        return _planned(diffusion, times)

    def step(
        self, plan: LinearSteps | Tensor, i: int, y: Tensor, ask: Questions, noise: Noise
    ) -> Tensor:
        if isinstance(plan, Tensor):
            return self._general(plan, i, y, ask, noise())
        return super().step(plan, i, y, ask, noise)

    def advance(self, at: LinearSteps, y: Tensor, ask: Answers, noise: Noise) -> Tensor:
        return combined(at.matrix, y, ask.score(y, at.s), noise())

    def _is_whole(self) -> bool:
        return type(self).step is EulerMaruyama.step

    @staticmethod
    def _general(times: Tensor, i: int, y: Tensor, ask: Questions, noise: Tensor) -> Tensor:
        diffusion, s, h = ask.diffusion, times[i].expand(len(y)), times[i] - times[i + 1]
        check_size(y, times[i], i, len(times) - 1)
        G = noise_root(diffusion, y, s)
        white = G.mT @ as_rows(ask.score(y, s[0])).unsqueeze(-1)
        moved = (G @ (h * white + h.sqrt() * as_rows(noise).unsqueeze(-1))).squeeze(-1)
        drift = diffusion.drift(y, s) - diffusion.noise_divergence(y, s)
        value: Tensor = y - h * drift.double() + moved.mT.reshape(y.shape)
        return value


@singledispatch
def _planned(diffusion: Diffusion, times: Tensor) -> LinearSteps | Tensor:
    """The times, or in closed form the matrices of all steps."""
    return times


@_planned.register(Kernels)
def _in_closed_form(diffusion: Kernels, times: Tensor) -> LinearSteps:
    s, h = times[:-1], (times[:-1] - times[1:])[..., None, None]
    A = diffusion.drift_matrix(s)
    eye = torch.eye(diffusion.num_variables).to(A)
    root = h.sqrt() * diffusion.dispersion_matrix(s)
    parts = [eye - h * A, h * diffusion.noise_covariance(s), root]
    return LinearSteps(s, torch.cat(parts, -1))
