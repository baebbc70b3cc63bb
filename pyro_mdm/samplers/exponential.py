r"""Exponential integrators: the linear part of every step exactly, x̂ as a polynomial over it.

They are multistep methods: the polynomial passes through the x̂ of this step and of earlier ones,
so that every order costs one network call a step. The first steps, which have no past, are of lower
order; there y says little of the data.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from pyro_mdm.diffusions.base import Cap, Diffusion, require
from pyro_mdm.diffusions.closed import OneBlock
from pyro_mdm.samplers.base import Noise
from pyro_mdm.samplers.grids import Grid
from pyro_mdm.samplers.linear import Answers, LinearSampler, LinearSteps, combined
from pyro_mdm.samplers.transport import transport
from pyro_mdm.support.checks import check_count, check_number

__all__ = ["ExponentialIntegrator", "StochasticExponentialIntegrator"]


class _Exponential(LinearSampler[LinearSteps]):
    """The base class of the deterministic and the stochastic integrator."""

    orders: ClassVar[tuple[int, ...]]
    default_grid = "quadratic"
    noise: float = 0.0

    def __init__(self, steps: int, order: int, grid: Grid | None) -> None:
        super().__init__(steps, grid)
        check_count("order", order, "the order of the integrator")
        if order not in self.orders:
            orders = " or ".join([", ".join(map(str, self.orders[:-1])), str(self.orders[-1])])
            raise ValueError(f"order is {order!r}, expected {orders}")
        self.order = order

    @property
    def remembers(self) -> int:  # type: ignore[override]
        return self.order - 1

    def check(self, diffusion: Diffusion, score: object = None) -> None:
        super().check(diffusion, score)
        if score is not None and not hasattr(score, "start_hat"):
            fix = "use StateDenoiser, or a sampler by the score alone, such as EulerMaruyama(256)"
            require(diffusion, Cap.READOUT, who=f"{type(self).__name__} by x̂", fix=fix)

    def plan(self, diffusion: OneBlock, times: Tensor) -> LinearSteps:
        """Steps of the state, of x̂ or ŵ in this step and in those before, and of noise."""
        powers = 3 if self.order == 3 else 1
        gain, moments, tril, volume = transport(diffusion, times, self.noise, powers)
        weights = _weights(moments, volume, self.order).unflatten(-1, (gain.shape[-1], -1))
        columns = weights.movedim(-3, -2).flatten(-2)  # (steps, K, order or order·K)
        parts = [gain, columns] if tril is None else [gain, columns, tril]
        return LinearSteps(times[:-1], torch.cat(parts, -1))

    def advance(self, at: LinearSteps, y: Tensor, ask: Answers, noise: Noise) -> Tensor:
        (s, matrix), K = at, y.shape[1]
        at_data = matrix.shape[-1] - K - self.draws * K > self.order  # by ŵ = (x̂, m̂)
        ask.past.appendleft(ask.start(y, s) if at_data else ask.denoise(y, s, self.noise))
        # the first steps have no weights of a past, in whose place any estimate may be
        past = [ask.past[min(j, len(ask.past) - 1)] for j in range(self.order)]
        return combined(matrix, y, *past, *(noise() for _ in range(self.draws)))


class ExponentialIntegrator(_Exponential):
    r"""The probability-flow ODE of any linear diffusion in few steps, without noise.

        y_r = a_r x̂ + R_r R_s^{-1} (y_s - a_s x̂),    R' = (A + ½ g² Σ^{-1}) R,    R Rᵀ = Σ

    where x̂ is held over the step (order 1), extrapolated to its middle (2), or a parabola over it
    (3), in log volume κ, which for K = 1 is -λ. One network call a step at every order. For a score
    of the raw state x̂ is the projection on g², as for :class:`Ancestral`.

    Args:
        steps: number of steps, which is the number of calls.
        order: order of the ODE's error, 1, 2 or 3.
        grid: times at which steps end, see :class:`Sampler`; ``quadratic`` by default.

    Raises:
        ValueError: another order; see also :class:`Sampler`.
        KernelPrecisionError: on call, float64 cannot hold the diffusion's kernels.

    Source: for K = 1 order 1 is DDIM (Song, Meng & Ermon, "Denoising Diffusion Implicit Models",
    ICLR 2021), order 2 DPM-Solver++(2M) and order 3 their expansion with one more derivative (Lu et
    al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", 2022,
    algorithm 2); for K > 1 order 1 is gDDIM (Zhang, Tao & Chen, ICLR 2023).
    """

    orders = (1, 2, 3)

    def __init__(self, steps: int, order: int = 2, grid: Grid | None = None) -> None:
        super().__init__(steps, order, grid)


class StochasticExponentialIntegrator(_Exponential):
    r"""An exponential integrator with noise η: from the ODE at η = 0 to the reversed SDE at η = 1.

        dy = ( A y + (1 + η)/2 g² Σ^{-1} (y - a x̂) ) ds + √η G dB̄

    exactly for x̂ held over the step (order 1) or extrapolated to its middle (2). All η have the
    marginals of the noising process; with noise, later steps forget earlier errors. At η = 1 and
    order 1 it is :class:`Ancestral`. One call of the denoiser a step.

    Args:
        steps: number of steps, which is the number of calls.
        noise: amount η of noise, from 0 (none) to 1 (that of the reversed SDE).
        order: weak order, 1 or 2.
        grid: times at which steps end, see :class:`Sampler`; ``quadratic`` by default.

    Raises:
        ValueError: another order, a noise outside [0, 1]; see also :class:`Sampler`.
        KernelPrecisionError: on call, float64 cannot hold the diffusion's kernels.

    Source: for K = 1, η = 1 it is SDE-DPM-Solver++ (Lu et al., "DPM-Solver++", 2022); for K > 1 and
    order 1 stochastic gDDIM (Zhang, Tao & Chen, ICLR 2023).
    """

    orders = (1, 2)

    def __init__(
        self, steps: int, noise: float = 1.0, order: int = 2, grid: Grid | None = None
    ) -> None:
        super().__init__(steps, order, grid)
        expected = "a number from 0 (no noise is put back) to 1 (all of it)"
        if not 0 <= check_number("noise", noise, expected) <= 1:
            raise ValueError(f"noise is {noise}, expected {expected}")
        self.noise = noise


def _weights(moments: Tensor, volume: Tensor, order: int) -> Tensor:
    """The weights of x̂ in this step and in earlier ones, (N, …, order, K).

    Args:
        moments: moments of powers of the fraction of the step that is done, (N, …, 1 or 3, K).
        volume: lengths of the steps in log volume, in which x̂ is extrapolated, (N, …).
        order: order of the method, 1, 2 or 3.
    """
    held = moments[..., 0, :]
    weights = torch.zeros(*volume.shape, order, held.shape[-1]).to(held)
    weights[..., 0, :] = held
    if order > 1:  # x̂ in the middle of the step: moved on by half its last rate of change in κ
        half = (volume[1:] / volume[:-1] / 2)[..., None] * held[1:]
        weights[1:, ..., 0, :] += half
        weights[1:, ..., 1, :] -= half
    if order > 2:  # the parabola through the x̂ of three steps, at their distances in κ
        ago = torch.stack([0 * volume[2:], volume[1:-1], volume[1:-1] + volume[:-2]], -1)
        nodes = -ago / volume[2:, ..., None]
        powers = torch.linalg.inv(nodes[..., None] ** torch.arange(3).to(nodes))  # (N, power, node)
        weights[2:] = powers.mT @ moments[2:]
    return weights
