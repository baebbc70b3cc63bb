"""Samplers of the reverse SDE: ancestral, Euler–Maruyama, stochastic Heun and splitting."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mdm.diffusions.base import Cap, Diffusion
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.diffusions.ends import check_precision
from pyro_mdm.diffusions.linear import clock_noise, linear_of
from pyro_mdm.diffusions.matrices import apply_matrix, apply_to_rows, as_rows, noise_root
from pyro_mdm.diffusions.posterior import posterior
from pyro_mdm.samplers.base import At, Grid, Noise, Questions, Sampler, check_size
from pyro_mdm.samplers.exponential import LinearSampler, LinearSteps, combined
from pyro_mdm.support.checks import check_count

__all__ = ["Ancestral", "EulerMaruyama", "Splitting", "StochasticHeun"]


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

    def step(
        self, plan: Sequence[LinearSteps], i: int, y: Tensor, ask: Questions, noise: Noise
    ) -> Tensor:
        at = plan[i]
        return combined(at.matrix, y, ask.denoise(y, at.s), noise())


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
        self, plan: Sequence[LinearSteps] | Tensor, i: int, y: Tensor, ask: Questions, noise: Noise
    ) -> Tensor:
        if isinstance(plan, Tensor):
            s, h = plan[i], plan[i] - plan[i + 1]
            check_size(y, s, i, len(plan) - 1)
            velocity: Tensor = ask.diffusion.paths.velocity(y, s, 1.0, ask)
            return y - h * velocity + _kick(ask.diffusion, y, s, h.sqrt() * noise())
        at = plan[i]
        return combined(at.matrix, y, ask.score(y, at.s), noise())


def _kick(diffusion: Diffusion, y: Tensor, s: Tensor, xi: Tensor) -> Tensor:
    """G(y, s) ξ, like y."""
    G = noise_root(diffusion, y, s.expand(len(y)))  # (n, d or 1, K, K)
    if G.shape[1] == 1:
        return apply_matrix(G[:, 0], xi)
    return apply_to_rows(G, as_rows(xi)).mT.reshape(xi.shape)


@singledispatch
def _planned(diffusion: Diffusion, times: Tensor) -> LinearSteps | Tensor:
    """The times, or in closed form the matrices of all steps."""
    return times


@_planned.register(Kernels)
def _in_closed_form(diffusion: Kernels, times: Tensor) -> LinearSteps:
    s, h = times[:-1], (times[:-1] - times[1:])[..., None, None]
    A = diffusion.drift_matrix(s)
    eye = torch.eye(diffusion.num_variables).to(A)
    root = h.sqrt() * diffusion.dispersion(None, s)
    parts = [eye - h * A, h * diffusion.noise_covariance(s), root]
    return LinearSteps(s, torch.cat(parts, -1))


class StochasticHeun(Sampler):
    r"""The stochastic Heun method: an Euler–Maruyama step, then the mean of both ends' drifts.

        u* = u + h F(u, s) + √h G(s) ξ,    u' = u + h/2 ( F(u, s) + F(u*, s') ) + √h (G + G')/2 ξ

    with the reverse drift F = g² s_θ - f, linear or not, and the same noise in both. Weak order 2,
    two score calls a step. Noise must not depend on the state: there the method converges to the
    Stratonovich process instead.

    Args:
        steps: number of steps.
        grid: times at which steps end, see :class:`Sampler`.

    Source: Kloeden & Platen, "Numerical Solution of Stochastic Differential Equations", 1992, for
    additive noise.
    """

    needs = (Cap.PLAIN_NOISE,)
    calls_a_step = 2

    def step(self, plan: Tensor, i: int, y: Tensor, ask: Questions, noise: Noise) -> Tensor:
        s, later = plan[i], plan[i + 1]
        h = s - later
        check_size(y, s, i, len(plan) - 1)
        xi = h.sqrt() * noise()
        kick, kick_later = (_kick(ask.diffusion, y, t, xi) for t in (s, later))
        here = ask.velocity(y, s, noise=1.0)
        there = ask.velocity(y - h * here + kick, later, noise=1.0)
        return y - h / 2 * (here + there) + (kick + kick_later) / 2


class _SplittingPlan(NamedTuple):
    s: At  # (steps,) the middle of each step, by the clock
    first: Tensor  # matrix and noise of half a step of B and g², before the step of the score
    first_root: Tensor
    second: Tensor  # after it
    second_root: Tensor
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

    def __init__(self, steps: int, order: int = 1, grid: Grid | None = None) -> None:
        super().__init__(steps, grid)
        check_count("order", order, "the order of the integrator")
        if order not in (1, 2):
            raise ValueError(f"order is {order}, expected 1 (Euler) or 2 (midpoint)")
        self.order = order

    def plan(self, diffusion: Kernels, times: Tensor) -> _SplittingPlan:
        clock = diffusion.clock(times)
        tau = clock[:-1] - clock[1:]
        # inv_ex: Σ_π is positive definite, and inv would wait for the device to check that
        precision = torch.linalg.inv_ex(diffusion.prior_covariance).inverse
        halves = diffusion.propagator.halves(clock[1:], tau)
        check_precision(linear_of(diffusion), halves.growth, clock[1:], "the noise of half a step")
        s = diffusion.time_at_clock((clock[:-1] + clock[1:]) / 2)
        pull = tau[..., None, None] * clock_noise(diffusion, s)
        return _SplittingPlan(s, *halves[:4], pull, precision.expand_as(pull))

    @property
    def calls_a_step(self) -> int:  # type: ignore[override]
        return self.order

    def step(
        self, plan: Sequence[_SplittingPlan], i: int, y: Tensor, ask: Questions, noise: Noise
    ) -> Tensor:
        at = plan[i]

        def velocity(u: Tensor) -> Tensor:
            force = ask.score(u, at.s) + apply_matrix(at.precision, u)
            return apply_matrix(at.pull, force)

        y = apply_matrix(at.first, y) + apply_matrix(at.first_root, noise())
        y = y + velocity(y if self.order == 1 else y + velocity(y) / 2)
        return apply_matrix(at.second, y) + apply_matrix(at.second_root, noise())
