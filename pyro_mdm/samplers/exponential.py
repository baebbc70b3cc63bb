r"""Exponential integrators: the linear part of every step exactly, x̂ as a polynomial over it.

They are multistep methods: the polynomial passes through the x̂ of this step and of earlier ones,
so that every order costs one network call a step. The first steps, which have no past, are of lower
order; there y says little of the data.

All processes that run backwards through the marginals of a linear diffusion are

    dy = ( A y - (1 + η)/2 g² s ) ds + √η G dB̄,    s = -Σ^{-1} (y - a x̂),

from the probability-flow ODE at η = 0 to the reversed SDE at η = 1. Given x̂ they are linear. With
x̂ over a step from s to r < s a polynomial in the fraction θ of the step that is done,

    y_r = C y_s + Σ_k b_k x̂^(k) + N(0, V),    x̂(θ) = Σ_k x̂^(k) θ^k,

where θ counts log volume κ (:class:`~pyro_mdm.diffusions.linear.LogVolume`; for K = 1 it
is -λ), which never pauses, as λ does where noise of low rank turns. At η = 1 and constant x̂ it is
the exact posterior q(y_r | y_s, x̂); for K = 1, η = 0 it is DDIM.

There is no closed form for K > 1, because the noises of different times do not commute. A step is
cut into pieces of about one unit of κ. In a piece that begins (in noising time) at τ_0, with Σ(τ_0)
= F Fᵀ, ``W = F^{-1}`` and all pulled back to τ_0 and whitened there,

    H(u) = I + W P̃(u) Wᵀ,    X' = (1 + η)/2 H' H^{-1} X,    X(0) = I,

which at η = 0 gives X Xᵀ = H, and log det H is the gain of κ. ``X^{-1}`` is computed by collocation
at Gauss points (``NODES``), to rounding. The mean is then ``-∫ θ^k d(X^{-1})``, and V the integral
of ``η X^{-1} H' X^{-T}``: positive terms only, no differences of covariances.

Source for η = 0 and constant x̂: Zhang, Tao & Chen, "gDDIM: Generalized denoising diffusion
implicit models", ICLR 2023, where an ODE solver computes X.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from pyro_mdm.diffusions import kernels
from pyro_mdm.diffusions.base import Diffusion, kept
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.diffusions.ends import check_precision, factorization
from pyro_mdm.diffusions.kernels import Propagator
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.diffusions.matrices import apply_matrix
from pyro_mdm.paths.base import BoundScore
from pyro_mdm.samplers.base import (
    At,
    Grid,
    Noise,
    Plan,
    Questions,
    Sampler,
    interpolated,
    tabulated,
)
from pyro_mdm.support.checks import check_count, check_number
from pyro_mdm.support.modules import CompiledFunction

__all__ = [
    "ExponentialIntegrator",
    "LinearSampler",
    "LinearSteps",
    "StochasticExponentialIntegrator",
    "Transport",
    "combined",
    "transport",
]

L = TypeVar("L", bound="LinearSampler[Any]")


class LinearSteps(NamedTuple):
    """Steps after which the state is a matrix times the state before, estimates and noise."""

    s: At  # (steps,), or in a step the diffusion at its time
    matrix: Tensor  # (steps, K, columns): of the state, of each estimate, of the noise


def combined(matrix: Tensor, y: Tensor, *estimates: Tensor) -> Tensor:
    """The product of a matrix with the variables of y and of estimates, like y in float64.

    Args:
        matrix: (K, columns), or per data dimension, (1, *event_shape, K, columns).
        y: states, (n, K, *event_shape).
        estimates: tensors with variables, like y, or x̂ (n, *event_shape), which counts as one;
            the noise too.
    """
    columns = [y]
    for estimate in estimates:
        columns.append(estimate if estimate.dim() == y.dim() else estimate.unsqueeze(1))
    together = torch.cat(columns, 1)
    if matrix.dim() > 2:
        return apply_matrix(matrix, together)
    flat = together.flatten(2) if y.dim() > 2 else together.unsqueeze(-1)
    return torch.bmm(matrix.expand(len(y), -1, -1), flat).reshape(y.shape)


class LinearSampler(Sampler, Generic[Plan]):
    """The base class of samplers with such steps."""

    def compile(self: L, backend: str = "inductor", **options: object) -> L:
        """Compile a whole step, the network included, in place; returns the sampler.

        The first step of a run takes much longer, and so does that of every new shape. Results are
        the same up to rounding. It is for the score of a model with a linear diffusion of one
        block, such as a :class:`~pyro_mdm.scores.Denoiser`, conditioned or not,
        :class:`~pyro_mdm.scores.NoisePrediction` or :class:`~pyro_mdm.scores.RawScore`; for another
        diffusion a call raises UnsupportedDiffusionError.

        Args:
            backend: backend of ``torch.compile``.
            options: further arguments of ``torch.compile``, such as ``mode``.

        Raises:
            TypeError: a subclass with steps of its own.
        """
        if not self._is_whole():
            raise TypeError(
                f"{type(self).__name__} has a step of its own, which may depend on more than "
                "tensors, expected that of the library's sampler; use it without compile()"
            )
        self._compiled = CompiledFunction(whole_step, backend, options)
        return self

    def _is_whole(self) -> bool:
        """Whether the step is the library's, which depends on tensors alone."""
        return type(self).step.__module__.startswith("pyro_mdm.samplers.")


def whole_step(
    sampler: LinearSampler[Plan],
    diffusion: Diffusion,
    score: BoundScore,
    at: Plan,
    y: Tensor,
    past: list[Tensor],
    noises: list[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """The state after a step, and the estimates that the next one uses.

    Args:
        sampler: the sampler.
        diffusion: the diffusion that is reversed.
        score: the score of a model.
        at: the entries of the plan for the step.
        y: states before the step, (n, K, *event_shape) in float64.
        past: estimates of earlier steps, the newest first.
        noises: standard normal numbers, each like y.
    """
    ask, drawn = Questions(diffusion, score, score.dtype), iter(noises)
    ask.past = deque(past, maxlen=3)
    y = sampler.step([at], 0, y, ask, lambda: next(drawn))
    return y, list(ask.past)[: sampler.remembers]


class _Exponential(LinearSampler[LinearSteps]):
    """The base class of the deterministic and the stochastic integrator."""

    orders: ClassVar[tuple[int, ...]]
    default_grid = "quadratic"
    noise: float = 0.0
    by_x_hat = True

    def __init__(self, steps: int, order: int, grid: Grid | None) -> None:
        super().__init__(steps, grid)
        check_count("order", order, "the order of the integrator")
        if order not in self.orders:
            orders = " or ".join([", ".join(map(str, self.orders[:-1])), str(self.orders[-1])])
            raise ValueError(f"order is {order!r}, expected {orders}")
        self.order, self.remembers = order, order - 1

    def plan(self, diffusion: Kernels, times: Tensor) -> LinearSteps:
        """Steps of the state, of x̂ or ŵ in this step and in those before, and of noise."""
        order, powers = self.order, 3 if self.order == 3 else 1
        gain, moments, tril, volume = transport(diffusion, times, self.noise, powers)
        held = moments[..., 0, :]
        weights = torch.zeros(*volume.shape, order, held.shape[-1]).to(held)  # of x̂, newest first
        weights[..., 0, :] = held
        if order > 1:  # x̂ in the middle of the step: moved on by half its last rate of change in κ
            # and by no more than half of the step before: x̂ comes to rest in κ
            half = (volume[1:] / volume[:-1]).clamp(max=1)[..., None] * held[1:] / 2
            weights[1:, ..., 0, :] += half
            weights[1:, ..., 1, :] -= half
        if order > 2:  # the parabola through the x̂ of three steps, at their distances in κ
            ago = torch.stack([0 * volume[2:], volume[1:-1], volume[1:-1] + volume[:-2]], -1)
            nodes = -ago / volume[2:, ..., None]
            inverse = torch.linalg.inv(nodes[..., None] ** torch.arange(3).to(nodes))
            parabola = inverse.mT @ moments[2:]  # (N, power, node) times (N, power, K)
            short = (volume[2:] <= 2 * volume[1:-1])[..., None, None]  # else it goes too far ahead
            weights[2:] = torch.where(short, parabola, weights[2:])
        weights = weights.unflatten(-1, (gain.shape[-1], -1))
        columns = weights.movedim(-3, -2).flatten(-2)  # (steps, K, order or order·K)
        parts = [gain, columns] if tril is None else [gain, columns, tril]
        return LinearSteps(times[:-1], torch.cat(parts, -1))

    def step(
        self, plan: Sequence[LinearSteps], i: int, y: Tensor, ask: Questions, noise: Noise
    ) -> Tensor:
        (at, matrix), K = plan[i], y.shape[1]
        draws = 0 if self.noise == 0 else 1
        if matrix.shape[-1] - K - draws * K > self.order:  # by ŵ = (x̂, m̂)
            ask.past.appendleft(ask.given.start_hat_at(y, at))
        else:
            ask.past.appendleft(ask.denoise(y, at, self.noise))
        # the first steps have no weights of a past, in whose place any estimate may be
        parts = list(ask.past)[: self.order]
        parts += [parts[-1]] * (self.order - len(parts))
        if draws:
            parts.append(noise())
        return combined(matrix, y, *parts)


class ExponentialIntegrator(_Exponential):
    r"""The probability-flow ODE of any linear diffusion in few steps, without noise.

        y_r = a_r x̂ + R_r R_s^{-1} (y_s - a_s x̂),    R' = (A + ½ g² Σ^{-1}) R,    R Rᵀ = Σ

    where x̂ is held over the step (order 1), extrapolated to its middle (2), or a parabola over it
    (3), in log volume κ, which for K = 1 is -λ. One network call a step at every order. Nothing is
    extrapolated by more than half of the step before, and a step that is over twice as long as that
    one has no parabola. For a score of the raw state x̂ is the projection on g², as for
    :class:`Ancestral`.

    Args:
        steps: number of steps, which is the number of calls.
        order: order of the ODE's error, 1, 2 or 3.
        grid: times at which steps end, see :class:`Sampler`; ``quadratic`` by default.

    Raises:
        ValueError: another order; see also :class:`Sampler`.
        KernelPrecisionError: on call, float64 cannot hold the diffusion's kernels.

    Source: for K = 1 order 1 is DDIM (Song, Meng & Ermon, "Denoising Diffusion Implicit Models",
    ICLR 2021), order 2 DPM-Solver++(2M), where steps get no longer in λ, and order 3 their
    expansion with one more derivative (Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of
    Diffusion Probabilistic Models", 2022, algorithm 2); for K > 1 order 1 is gDDIM (Zhang, Tao &
    Chen, ICLR 2023).
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


def _collocation(q: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gauss points on [0, 1], their weights, and the integrals from 0 to each point l of the
    polynomials that are 1 at point m and 0 at the others, (l, m)."""
    nodes, weights = np.polynomial.legendre.leggauss(q)
    P = np.polynomial.legendre.legvander(nodes, q)  # P_k at the nodes, (q, q + 1)
    degree = np.arange(1, q)
    integral = np.empty((q, q))
    integral[:, 0] = nodes + 1
    integral[:, 1:] = (P[:, 2:] - P[:, :-2]) / (2 * degree + 1)
    basis = weights[:, None] * (np.arange(q) + 0.5) * P[:, :-1]  # (m, k)
    return (
        torch.from_numpy(nodes / 2 + 0.5),
        torch.from_numpy(weights / 2),
        torch.from_numpy(integral @ basis.T / 2),
    )


NODES, WEIGHTS, PARTIAL = _collocation(10)
"""Those of a piece, of which the error is below rounding where κ gains one unit."""


class Transport(NamedTuple):
    """The map y_r = gain y_s + Σ_k moments_k x̂^(k) + scale_tril ξ of each of N steps."""

    gain: Tensor  # C (N, K, K)
    moments: Tensor  # b (N, powers, K); where v_0 is estimated too, ŵ = (x̂, m̂), (N, powers, K·K)
    scale_tril: Tensor | None  # of V (N, K, K), lower triangular; None without noise
    volume: Tensor  # κ(s) - κ(r) > 0, (N,)


def transport(diffusion: Kernels, times: Tensor, noise: float = 0.0, powers: int = 1) -> Transport:
    """The maps of the steps of a decreasing grid of times (N + 1,) in (0, T], in float64.

    For a batch of grids, (N + 1, …), all shapes have (N, …) in place of N.

    Args:
        diffusion: diffusion of one block with closed-form kernels.
        times: decreasing times, (N + 1,) or (N + 1, …).
        noise: amount of noise η ≥ 0.
        powers: number of coefficients of the polynomial x̂.

    Raises:
        KernelPrecisionError: float64 cannot hold Σ.
    """
    if times.dim() > 2 and diffusion.num_variables == 1:
        return _of_one_variable(diffusion, times, noise, powers)
    linear, shape = cast(LinearDiffusion, diffusion.reference), times[1:].shape
    tau = linear.clock(times)
    with torch.no_grad():  # the result does not depend on where a step is cut
        table, efforts = kept(linear, "effort by clock time", partial(_efforts, linear))
        at_times = interpolated(tau, table, efforts)
        low, high = at_times[1:], at_times[:-1]
        # 1e-9: a gain of one unit is one piece, however it is rounded
        pieces = max(1, math.ceil((high - low).max().item() - 1e-9))
        fraction = (torch.arange(1, pieces).to(tau) / pieces).reshape(-1, *[1] * low.dim())
        inner = interpolated(low + fraction * (high - low), efforts, table)
    knots = torch.cat([tau[None, 1:], inner, tau[None, :-1]]).flatten(1)  # (pieces + 1, N)
    a, _, factor = factorization(linear, knots)
    check_precision(linear, factor.amplification, knots, "the marginal covariance")
    F, W = factor.root, factor.whitener
    flow, spread, back, gained = _flow(linear.propagator, knots, W, noise)
    starts = diffusion.paths.starts_at_data  # v_0 too
    start_mean = linear.propagator.moments(None, knots)[0] if starts else a[..., None]

    volume = gained[..., -1].sum(0)
    before = gained[..., -1].cumsum(0) - gained[..., -1]
    done = 1 - (before[..., None] + gained[..., :-1]) / volume[:, None]  # θ at the nodes
    pushed = flow @ (W[:-1] @ start_mean[:-1])[:, :, None]  # (pieces, N, NODES, K, columns)
    degrees = done[..., None] ** torch.arange(powers).to(a)
    moved = torch.einsum("pnqic,pnqk->pncki", pushed, degrees).flatten(2, 3)

    eye = path = torch.eye(linear.num_variables).to(a)  # from a piece's frame to the step's end
    moments, roots, tril = torch.zeros_like(moved[0]), [], None
    for j in range(pieces):
        moments = moments + moved[j] @ path.mT
        if spread is not None:
            roots.append(path @ spread[j].movedim(1, 2).flatten(2))
        path = path @ (eye - flow[j].sum(1)) @ W[j] @ back[j] @ F[j + 1]
    if roots:
        tril = kernels.lower_triangular(F[0] @ torch.cat(roots, -1)).unflatten(0, shape)
    moments = (moments @ F[0].mT).unflatten(-2, (-1, powers)).movedim(-3, -1).flatten(-2)
    gain = (F[0] @ path @ W[-1]).unflatten(0, shape)
    return Transport(gain, moments.unflatten(0, shape), tril, volume.unflatten(0, shape))


class _Flow(NamedTuple):
    """What happens in each of the pieces (pieces, N, …), in its frame, at the nodes."""

    flow: Tensor  # -dX^{-1}, weighted (…, NODES, K, K)
    spread: Tensor | None  # root of the noise gained, weighted (…, NODES, K, K); None without noise
    back: Tensor  # M^{-1} of the whole piece (…, K, K)
    gained: Tensor  # log det H at the nodes and at the end, (…, NODES + 1)


def _flow(move: Propagator, knots: Tensor, whitener: Tensor, noise: float) -> _Flow:
    """The flow in the pieces between clock times (pieces + 1, N), where Σ has whiteners W there.

    With B = X' X^{-1}, ``Y = X^{-1}`` solves Y' = -Y B from Y(0) = I, by collocation.
    """
    h, W, at = knots.diff(dim=0), whitener[:-1, :, None], knots[:-1, :, None]
    q, K = len(NODES), W.shape[-1]
    u = h[..., None] * torch.cat([NODES, torch.ones_like(NODES[:1])])
    weight = (h[..., None] * WEIGHTS)[..., None, None]
    back, P = move.pulled_back(at, u)  # (pieces, N, NODES + 1, K, K)
    H, white = torch.eye(K).to(W) + W @ P @ W.mT, W @ back[..., :-1, :, :]
    H_rate = white @ move.noise(at + u[..., :-1]) @ white.mT
    # H is I and a covariance, so that no factorization of it can fail: none is checked
    rate = torch.linalg.solve_ex(H[..., :-1, :, :], H_rate, left=False).result
    rate = (1 + noise) / 2 * rate
    blocks = torch.einsum("lm,...mij->...milj", PARTIAL, rate) * h[..., None, None, None, None]
    system = blocks.reshape(*h.shape, q * K, q * K) + torch.eye(q * K).to(rate)
    ones = torch.eye(K).to(rate).repeat(1, q).expand(*h.shape, K, q * K)
    # not checked: Y exists, and pieces are short
    solution: Tensor = torch.linalg.solve_ex(system, ones, left=False).result
    Y, spread = solution.unflatten(-1, (q, K)).movedim(-2, -3), None
    if noise:
        spread = (noise * weight).sqrt() * Y @ (white @ move.dispersion(at + u[..., :-1]))
    gained = 2 * torch.linalg.cholesky_ex(H).L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return _Flow(weight * Y @ rate, spread, back[..., -1, :, :], gained)


def _of_one_variable(diffusion: Kernels, times: Tensor, noise: float, powers: int) -> Transport:
    """:func:`transport` for K = 1, where the noises of all times commute, for many grids at once.

    With m = (1 + η)/2 · volume, ``X^{-1}`` is ``e^{-m}`` at the end of a step.
    """
    volume = -diffusion.log_volume(times).diff(dim=0)
    m = (1 + noise) / 2 * volume
    move = diffusion.transition(times[:-1], times[1:])
    reached = diffusion.marginal(times[1:])
    gain = (-m).exp()[..., None, None] / move.matrix
    integrals = [-torch.expm1(-m)]  # of θ^k d(-X^{-1}), by parts
    for k in range(1, powers):
        integrals.append(1 - k / m * integrals[-1])
    moments = torch.stack(integrals, -1).unsqueeze(-1) * reached.mean.unsqueeze(-2)
    spread = -torch.expm1(-noise * volume)
    tril = reached.scale_tril * spread.sqrt()[..., None, None] if noise else None
    return Transport(gain, moments, tril, volume)


def _efforts(linear: LinearDiffusion) -> tuple[Tensor, Tensor]:
    """Clock times (n,) from ε to T, and κ + ∫ ‖A‖ there, which increases where anything moves."""
    knots, factor = tabulated(linear)
    return knots, factor.log_det + linear.propagator.effort(knots)
