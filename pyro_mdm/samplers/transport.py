r"""What a generative process does to a state in one step, if the denoiser is a polynomial over it.

All processes that run backwards through the marginals of a linear diffusion are

    dy = ( A y - (1 + η)/2 g² s ) ds + √η G dB̄,    s = -Σ^{-1} (y - a x̂),

from the probability-flow ODE at η = 0 to the reversed SDE at η = 1. Given x̂ they are linear. With
x̂ over a step from s to r < s a polynomial in the part θ of the step that is done,

    y_r = C y_s + Σ_k b_k x̂^(k) + N(0, V),    x̂(θ) = Σ_k x̂^(k) θ^k,

where θ counts log volume κ (:meth:`~pyro_mdm.diffusions.LinearDiffusion.log_volume`; for K = 1 it
is -λ), which never pauses, as λ does where noise of low rank turns. At η = 1 and constant x̂ it is
the exact posterior q(y_r | y_s, x̂); for K = 1, η = 0 it is DDIM.

There is no closed form for K > 1, since the noises of different times do not commute. A step is cut
into pieces of about one unit of κ. In a piece that begins (in noising time) at τ_0, with
Σ(τ_0) = F Fᵀ, W = F^{-1} and all pulled back to τ_0 and whitened there,

    H(u) = I + W P̃(u) Wᵀ,    X' = (1 + η)/2 H' H^{-1} X,    X(0) = I,

which at η = 0 gives X Xᵀ = H, and log det H is what κ gains. X^{-1} is found by collocation at
Gauss points (:data:`NODES`), to rounding. The mean is then -∫ θ^k d(X^{-1}), and V the integral of
η X^{-1} H' X^{-T}: positive terms only, no differences of covariances.

Source for η = 0 and constant x̂: Zhang, Tao & Chen, "gDDIM: Generalized denoising diffusion implicit
models", ICLR 2023, where X is found by a solver of ODEs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_mdm.diffusions import kernels
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.samplers.grids import Tabulated

__all__ = ["Transport", "score_transport", "transport"]

NODES = 10
"""Gauss points of a piece; with 10 the error is below rounding where κ gains one unit."""


class Transport(NamedTuple):
    """y_r = gain y_s + Σ_k moments_k x̂^(k) + scale_tril ξ, for each of N steps."""

    gain: Tensor  # C (N, K, K)
    moments: Tensor  # b (N, powers, K, 1), or (N, powers, K, m) of m whitened scores
    scale_tril: Tensor | None  # of V (N, K, K), lower triangular; None without noise
    volume: Tensor  # κ(s) - κ(r) > 0, (N,)


def transport(
    diffusion: LinearDiffusion, times: Tensor, noise: float = 0.0, powers: int = 1
) -> Transport:
    """The steps of a decreasing grid of times (N + 1,) in (0, T], in float64.

    Args:
        noise: η ≥ 0.
        powers: how many coefficients x̂'s polynomials have.

    Raises:
        KernelPrecisionError: float64 cannot hold Σ.
    """
    p = _Pieces(diffusion, times)
    F, W = p.factor.root, p.factor.whitener
    root = p.start @ p.back @ diffusion.unit_dispersion  # of H'
    rate = (1 + noise) / 2 * torch.linalg.solve(p.H, root @ root.mT, left=False)
    X = _inverse_flow(rate, p.h)  # X^{-1} at the nodes (pieces, N, NODES, K, K)
    flow = p.weight * X @ rate  # -dX^{-1}
    pushed = flow @ (W[:-1] @ p.a[:-1, ..., None])[:, :, None]
    pieces = p.integrals(pushed, powers)
    spread = (noise * p.weight).sqrt() * X @ root

    path = torch.eye(F.shape[-1]).to(F)  # from a piece's frame to that of the step's end
    moments, roots = torch.zeros_like(pieces[0]), []
    for j in range(len(p.h)):
        moments = moments + path[..., None, :, :] @ pieces[j]
        roots.append(path @ spread[j].movedim(1, 2).flatten(2))
        across = torch.eye(F.shape[-1]).to(F) - flow[j].sum(1)
        path = path @ across @ W[j] @ p.back_whole[j] @ F[j + 1]
    tril = kernels.lower_triangular(F[0] @ torch.cat(roots, -1)) if noise else None
    return Transport(F[0] @ path @ W[-1], F[0][:, None] @ moments, tril, p.volume)


def score_transport(
    diffusion: LinearDiffusion, times: Tensor, powers: int = 1
) -> tuple[Transport, Tensor]:
    r"""The same for the ODE of a score of the raw state, of which g² s_θ is all that is trained.

    With U an orthonormal basis of G's range and N = (Uᵀ Σ^{-1} U)^{1/2}, the m numbers
    ε = N^{-1} Uᵀ s_θ have unit variance given x, at all times, and ε is what is a polynomial:

        y_r = M^{-1} y_s + Σ_k b_k ε^(k),    b_k = ½ ∫ θ^k M(u, r)^{-1} g² U N du

    For K = 1 ε is the prediction of the noise.

    Returns:
        the steps, and N^{-1} Uᵀ at their beginnings, (N, m, K).
    """
    p = _Pieces(diffusion, times)
    basis, level = diffusion.noise_basis()
    U = basis[:, level == 0]
    seen = p.start @ p.back @ U
    N = _power(seen.mT @ torch.linalg.solve(p.H, seen), 0.5)
    pieces = p.integrals(0.5 * p.weight * p.back @ diffusion.unit_noise @ U @ N, powers)
    path = torch.eye(len(U)).to(U)
    moments = torch.zeros_like(pieces[0])
    for j in range(len(p.h)):
        moments = moments + path[..., None, :, :] @ pieces[j]
        path = path @ p.back_whole[j]
    whitened = p.factor.whitener[-1] @ U
    return Transport(path, moments, None, p.volume), _power(whitened.mT @ whitened, -0.5) @ U.mT


class _Pieces:
    """The steps cut into pieces, and what both kinds of step are made of.

    Attributes:
        a, factor: at the ends of the pieces, (pieces + 1, N, …).
        h: their lengths in clock time, (pieces, N).
        back, back_whole: exp(-A u) at the nodes (pieces, N, NODES, K, K), and over a piece.
        H: at the nodes.
        start: the whitener of a piece's beginning, (pieces, N, 1, K, K).
        theta: the part of the step that is done, at the nodes (pieces, N, NODES).
        weight: of the nodes, (pieces, N, NODES, 1, 1).
        volume: of the steps, (N,).
    """

    def __init__(self, diffusion: LinearDiffusion, times: Tensor) -> None:
        A = diffusion.unit_drift
        knots = _knots(diffusion, times)
        self.a, _, self.factor = diffusion.factorization(knots)
        diffusion.check_precision(self.factor.amplification, knots, "the marginal covariance")
        self.start = self.factor.whitener[:-1, :, None]
        self.h = h = knots.diff(dim=0)
        x, weights, _ = (c.to(knots) for c in _collocation(NODES))
        u = h[..., None] * torch.cat([x, torch.ones_like(x[:1])])
        back, P = kernels.transition_moments(-A, diffusion.unit_noise, u)
        self.back, self.back_whole = back[..., :-1, :, :], back[..., -1, :, :]
        H = torch.eye(A.shape[-1]).to(A) + self.start @ P @ self.start.mT
        self.H = H[..., :-1, :, :]
        gained = 2 * torch.linalg.cholesky(H).diagonal(dim1=-2, dim2=-1).log().sum(-1)
        self.volume = gained[..., -1].sum(0)
        before = gained[..., -1].cumsum(0) - gained[..., -1]
        self.theta = 1 - (before[..., None] + gained[..., :-1]) / self.volume[:, None]
        self.weight = (h[..., None] * weights)[..., None, None]

    def integrals(self, values: Tensor, powers: int) -> Tensor:
        """Σ θ^k values over the nodes of each piece: (pieces, N, powers, K, m)."""
        exponents = torch.arange(powers).to(self.theta)
        return torch.einsum("pnqim,pnqk->pnkim", values, self.theta[..., None] ** exponents)


def _power(S: Tensor, exponent: float) -> Tensor:
    """A power of symmetric positive definite matrices (…, m, m)."""
    values, vectors = torch.linalg.eigh(S)
    return (vectors * values[..., None, :] ** exponent) @ vectors.mT


def _inverse_flow(rate: Tensor, h: Tensor) -> Tensor:
    """Y = X^{-1} at the nodes, of Y' = -Y B, Y(0) = I, for B (…, q, K, K) and lengths h (…)."""
    partial = _collocation(NODES)[2].to(h)
    q, K = rate.shape[-3], rate.shape[-1]
    blocks = torch.einsum("lm,...mij->...milj", partial, rate) * h[..., None, None, None, None]
    system = blocks.reshape(*h.shape, q * K, q * K) + torch.eye(q * K).to(rate)
    ones = torch.eye(K).to(rate).repeat(1, q).expand(*h.shape, K, q * K)
    found = torch.linalg.solve(system, ones, left=False)
    return found.unflatten(-1, (q, K)).movedim(-2, -3)


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


def _knots(diffusion: LinearDiffusion, times: Tensor) -> Tensor:
    """Clock times (pieces + 1, N) from each step's end up to its beginning, in short pieces."""
    tau = diffusion.clock(times)
    first, last = tau[1:], tau[:-1]
    A = diffusion.unit_drift
    speed = torch.linalg.matrix_norm(A, ord=2) - 2 * A.trace()
    table = Tabulated(diffusion, lambda tau, factor: factor.log_det + speed * tau)
    low, high = table(first), table(last)
    pieces = max(1, math.ceil((high - low).max().item() - 1e-9))
    fraction = torch.arange(1, pieces).to(tau)[:, None] / pieces
    inner = table.inverse(low + fraction * (high - low))
    return torch.cat([first[None], inner, last[None]])
