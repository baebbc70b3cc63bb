r"""The steps of generative processes over which the denoiser is a polynomial.

All processes that run backwards through the marginals of a linear diffusion are

    dy = ( A y - (1 + η)/2 g² s ) ds + √η G dB̄,    s = -Σ^{-1} (y - a x̂),

from the probability-flow ODE at η = 0 to the reversed SDE at η = 1. Given x̂ they are linear. With
x̂ over a step from s to r < s a polynomial in the fraction θ of the step that is done,

    y_r = C y_s + Σ_k b_k x̂^(k) + N(0, V),    x̂(θ) = Σ_k x̂^(k) θ^k,

where θ counts log volume κ (:meth:`~pyro_mdm.diffusions.LinearDiffusion.log_volume`; for K = 1 it
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
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_mdm.diffusions import kernels
from pyro_mdm.diffusions.closed import OneBlock
from pyro_mdm.samplers.grids import Tabulated

__all__ = ["Transport", "transport"]

NODES = 10
"""The number of Gauss points of a piece: the error is below rounding where κ gains one unit."""


class Transport(NamedTuple):
    """The map y_r = gain y_s + Σ_k moments_k x̂^(k) + scale_tril ξ of each of N steps."""

    gain: Tensor  # C (N, K, K)
    moments: Tensor  # b (N, powers, K); where v_0 is estimated too, ŵ = (x̂, m̂), (N, powers, K·K)
    scale_tril: Tensor | None  # of V (N, K, K), lower triangular; None without noise
    volume: Tensor  # κ(s) - κ(r) > 0, (N,)


def transport(diffusion: OneBlock, times: Tensor, noise: float = 0.0, powers: int = 1) -> Transport:
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
    knots, shape = _knots(diffusion, times).flatten(1), times[1:].shape
    eye, move = torch.eye(diffusion.num_variables).to(knots), diffusion.propagator
    h = knots.diff(dim=0)  # (pieces, N)
    a, _, factor = diffusion.factorization(knots)
    start_mean = diffusion.data_columns(knots, a)
    diffusion.check_precision(factor.amplification, knots, "the marginal covariance")
    F, W = factor.root, factor.whitener
    start = W[:-1, :, None]
    nodes, weights, partial = (c.to(knots) for c in _collocation(NODES))
    weight = (h[..., None] * weights)[..., None, None]

    u = h[..., None] * torch.cat([nodes, torch.ones_like(nodes[:1])])
    at = knots[:-1, :, None]
    back, P = move.pulled_back(at, u)  # (pieces, N, NODES + 1, K, K)
    back, back_whole = back[..., :-1, :, :], back[..., -1, :, :]
    H = eye + start @ P @ start.mT
    root = start @ back @ move.dispersion(at + u[..., :-1])  # of H'
    # H is I and a covariance, so that no factorization of it can fail: none is checked
    rate = torch.linalg.solve_ex(H[..., :-1, :, :], root @ root.mT, left=False).result
    rate = (1 + noise) / 2 * rate
    X = _inverse_flow(rate, h, partial)  # X^{-1} at the nodes
    flow = weight * X @ rate  # -dX^{-1}
    spread = (noise * weight).sqrt() * X @ root

    gained = 2 * torch.linalg.cholesky_ex(H).L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    volume = gained[..., -1].sum(0)
    before = gained[..., -1].cumsum(0) - gained[..., -1]
    done = 1 - (before[..., None] + gained[..., :-1]) / volume[:, None]  # θ at the nodes
    pushed = (flow @ (W[:-1] @ start_mean[:-1])[:, :, None]).movedim(-1, 0)
    degrees = done[..., None] ** torch.arange(powers).to(a)
    by_column = [torch.einsum("pnqi,pnqk->pnki", column, degrees) for column in pushed]
    pieces = torch.cat(by_column, -2)  # (pieces, N, columns · powers, K)

    path = eye  # from a piece's frame to that of the step's end
    moments, roots = torch.zeros_like(pieces[0]), []
    for j in range(len(h)):
        moments = moments + pieces[j] @ path.mT
        roots.append(path @ spread[j].movedim(1, 2).flatten(2))
        path = path @ (eye - flow[j].sum(1)) @ W[j] @ back_whole[j] @ F[j + 1]
    tril = kernels.lower_triangular(F[0] @ torch.cat(roots, -1)) if noise else None
    moments = (moments @ F[0].mT).unflatten(-2, (-1, powers)).movedim(-3, -1).flatten(-2)
    steps = Transport(F[0] @ path @ W[-1], moments, tril, volume)
    tensors: list[Any] = [None if t is None else t.unflatten(0, shape) for t in steps]
    return Transport(*tensors)


def _of_one_variable(diffusion: OneBlock, times: Tensor, noise: float, powers: int) -> Transport:
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


def _inverse_flow(rate: Tensor, h: Tensor, partial: Tensor) -> Tensor:
    """``Y = X^{-1}`` at the nodes, where Y' = -Y B and Y(0) = I.

    Args:
        rate: B at the nodes, (…, q, K, K).
        h: lengths of the pieces, (…).
        partial: integrals of the collocation, (q, q).
    """
    q, K = rate.shape[-3], rate.shape[-1]
    blocks = torch.einsum("lm,...mij->...milj", partial, rate) * h[..., None, None, None, None]
    system = blocks.reshape(*h.shape, q * K, q * K) + torch.eye(q * K).to(rate)
    ones = torch.eye(K).to(rate).repeat(1, q).expand(*h.shape, K, q * K)
    # not checked: Y exists, and pieces are short
    solution = torch.linalg.solve_ex(system, ones, left=False).result
    value: Tensor = solution.unflatten(-1, (q, K)).movedim(-2, -3)
    return value


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


def _knots(diffusion: OneBlock, times: Tensor) -> Tensor:
    """Clock times (pieces + 1, N) from each step's end up to its beginning, in short pieces.

    The result does not depend on where a step is cut, so no gradient is needed there.
    """
    tau = diffusion.clock(times)
    first, last = tau[1:], tau[:-1]
    with torch.no_grad():
        effort = diffusion.propagator.effort
        table = Tabulated(diffusion, lambda tau, factor: factor.log_det + effort(tau))
        low, high = table(first), table(last)
        # 1e-9: a gain of one unit is one piece, however it is rounded
        pieces = max(1, math.ceil((high - low).max().item() - 1e-9))
        fraction = (torch.arange(1, pieces).to(tau) / pieces).reshape(-1, *[1] * low.dim())
        inner = table.inverse(low + fraction * (high - low))
    return torch.cat([first[None], inner, last[None]])
