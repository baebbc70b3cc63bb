r"""Exact transition kernels of linear diffusions, as K×K algebra in float64.

For ``dy = A y dτ + G dB`` with constant ``A`` and ``G`` (a common clock makes τ = b(s)),

    y_τ | y_0 ~ N(M y_0, P),    M = exp(A τ),    P = ∫_0^τ exp(A u) G Gᵀ exp(Aᵀ u) du.

P and Σ are *graded*: their entries and pivots scale with different powers of τ. Three choices keep
their digits:

* Differences cancel, so P is a sum of positive terms only: Gauss–Legendre quadrature of a short
  step, then doubling ``P(2h) = P(h) + M(h) P(h) M(h)ᵀ``.
* Matrix exponentials chosen by norm drop the small high-order entries, so ``exp`` is a Taylor
  series of fixed degree.
* A Cholesky factorization of Σ can succeed and lose the information about x. So the covariance
  given x is factored after pulling it back to time 0, with the data variable last: its last pivot
  *is* 1/SNR. A transition of low-rank noise is factored in a basis adapted to how noise spreads.

Nothing is added to a diagonal. Tests compare with 80-digit references.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "FACTORIALS",
    "Factor",
    "KernelPrecisionError",
    "MAX_DOUBLINGS",
    "NODES",
    "Series",
    "TAYLOR_TERMS",
    "WEIGHTS",
    "apply_to_dimensions",
    "basis_rounding",
    "both_factors",
    "both_series",
    "check_reached",
    "direct_factor",
    "gauss_legendre",
    "inverse_tril",
    "lower_triangular",
    "noise_basis",
    "noise_series",
    "pulled_back_factor",
    "scaled_cholesky",
    "semidefinite_cholesky",
    "times",
    "transition_factor",
    "transition_moments",
]

TAYLOR_TERMS = 32
"""Terms of a series in ‖A h‖ ≤ ½: the remainder is below 2^-32 / 32!, whatever power of h leads."""
FACTORIALS = torch.tensor([math.factorial(k) for k in range(TAYLOR_TERMS)], dtype=torch.float64)
"""k! of the terms."""
MAX_DOUBLINGS = 60
"""Doublings of a step at most."""


@cache
def gauss_legendre(q: int) -> tuple[Tensor, Tensor]:
    """The q nodes and weights of Gauss–Legendre quadrature on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(q)
    return torch.from_numpy(nodes / 2 + 0.5), torch.from_numpy(weights / 2)


NODES, WEIGHTS = gauss_legendre(16)
"""Those of a step on [0, 1]."""
PLACES = torch.cat([NODES, torch.ones(1, dtype=torch.float64)])  # in a step; its end
ORDERS = torch.arange(TAYLOR_TERMS, dtype=torch.float64)
SIGNS = (1.0 - 2.0 * (ORDERS % 2)).unsqueeze(-1)
_AREAS = torch.cat([WEIGHTS, torch.zeros(1, dtype=torch.float64)])  # no weight at the end
PLACE_POWERS = torch.stack([PLACES ** ORDERS[:, None], _AREAS * PLACES ** ORDERS[:, None]])
PLACE_POWERS = PLACE_POWERS[:, :, None, :, None]  # (2, TAYLOR_TERMS, 1, places, 1)


class _Constants(NamedTuple):
    """The constants of series, on a device."""

    factorials: Tensor
    orders: Tensor
    signs: Tensor
    place_powers: Tensor


@cache
def _constants(device: torch.device) -> _Constants:
    """Constants copied to a device once: a GPU waits for each copy."""
    with torch.inference_mode(False):  # gradients need them too
        return _Constants(*(t.to(device) for t in (FACTORIALS, ORDERS, SIGNS, PLACE_POWERS)))


class KernelPrecisionError(ArithmeticError):
    """A kernel whose digits float64 cannot hold."""


class Factor(NamedTuple):
    """A factorization Σ = F Fᵀ of Cov(y | x), with the log SNR and readout that follow from it."""

    root: Tensor  # F (…, K, K), not necessarily triangular
    whitener: Tensor  # F^{-1} (…, K, K), with the digits that inverting F would lose
    log_snr: Tensor  # log aᵀ Σ^{-1} a, (…)
    readout: Tensor  # k (…, K): z = kᵀ y = aᵀ Σ^{-1} y / SNR
    log_det: Tensor  # log det Σ, (…)
    amplification: Tensor  # estimated growth of rounding errors, (…); compare with 1 / 2.2e-16


class Series(NamedTuple):
    """``exp(A u)`` and ``exp(A u) GGᵀ`` at :data:`PLACES` of a step, as power series in ‖A‖ and
    the step."""

    norm: Tensor  # ‖A‖, 0-dim, without gradient
    terms: Tensor  # (TAYLOR_TERMS, 2 K · 17 K), the second half weighted; (n, …) of several


def noise_series(A: Tensor, GG: Tensor) -> Series:
    """The series of A and GG (K, K)."""
    norm = torch.linalg.matrix_norm(A.detach(), ord=1).clamp_min(1e-300)
    powers, at = _powers(A / norm), _constants(A.device).place_powers
    plain, noise = powers.unsqueeze(-2), (powers @ GG).unsqueeze(-2)
    return Series(norm, torch.stack([plain * at[0], noise * at[1]], 1).flatten(1))


def both_series(A: Tensor, GG: Tensor) -> Series:
    """The series of A and of -A, each with GG."""
    norm, terms = noise_series(A, GG)
    return Series(norm, torch.stack([terms, terms * _constants(A.device).signs]))


def _powers(A: Tensor) -> Tensor:
    """(…, K, K) -> (…, TAYLOR_TERMS, K, K): A^k / k!, by doubling the number of known powers."""
    K = A.shape[-1]
    eye = torch.eye(K, dtype=A.dtype, device=A.device).expand_as(A)
    rows, top = torch.cat([eye, A], -2), A  # powers one above the other
    while rows.shape[-2] < TAYLOR_TERMS * K:
        top = top @ top
        rows = torch.cat([rows, rows @ top], -2)
    powers = rows.reshape(*rows.shape[:-2], TAYLOR_TERMS, K, K)
    return powers / _constants(A.device).factorials[:, None, None]


def transition_moments(
    A: Tensor,
    GG: Tensor,
    tau: Tensor,
    series: Series | None = None,
    reach: float | None = None,
) -> tuple[Tensor, Tensor]:
    """``M = exp(Aτ)`` and ``P = ∫_0^τ exp(Au) GGᵀ exp(Aᵀu) du``, by positive terms only.

    A series of n matrices of one norm gives M and P of each, (n, …, K, K).

    Args:
        A: (K, K) drift matrix per unit of τ.
        GG: (K, K) positive semi-definite noise covariance per unit of τ.
        tau: (…) non-negative durations; (1, …) or (n, …) for a series of n matrices.
        series: the power series of A, if it is known, or of n matrices.
        reach: the largest ‖A‖τ, if Python knows it; else this waits for the device.

    Returns:
        M and P, (…, K, K), each entry accurate relative to its own natural scale.

    Raises:
        KernelPrecisionError: ‖A‖τ is too large to be reached by doubling.
    """
    norm, terms = noise_series(A, GG) if series is None else series
    if reach is None:
        reach = (tau.detach().max() * norm).item() if tau.numel() else 0.0
    finite = math.isfinite(reach)
    doublings = max(0, math.ceil(math.log2(max(reach, 1e-300) / 0.5))) if finite else 0
    if not finite or doublings > MAX_DOUBLINGS:
        raise KernelPrecisionError(
            f"the drift moves by ‖A‖τ = {reach:.3g} over the requested time, expected at most "
            f"2^{MAX_DOUBLINGS - 1}; scale Q, D or the clock down"
        )
    K, shape = A.shape[-1], tuple(tau.shape)
    h = tau / 2.0**doublings
    powers = (h * norm).unsqueeze(-1) ** _constants(A.device).orders
    if terms.dim() > 2:
        n, shape = len(terms), (len(terms), *shape[1:])
        powers = powers.reshape(len(powers), -1, TAYLOR_TERMS).expand(n, -1, -1)
        h = h.reshape(len(h), -1).expand(n, -1)
        E = torch.bmm(powers, terms)
    else:
        E = powers @ terms
    # the sum over nodes as one product of (K, nodes K) with (nodes K, K)
    E, noisy = E.reshape(-1, 2, K, len(PLACES) * K).unbind(1)
    P, M = h.reshape(-1, 1, 1) * torch.bmm(noisy, E.mT), E[..., -K:]
    for _ in range(doublings):
        P = torch.baddbmm(P, torch.bmm(M, P), M.mT)
        M = torch.bmm(M, M)
    P = (P + P.mT) / 2
    if len(shape) == 1:
        return M, P
    return M.reshape(*shape, K, K), P.reshape(*shape, K, K)


def scaled_cholesky(S: Tensor) -> tuple[Tensor, Tensor]:
    """Lower-triangular C with C Cᵀ = S, factored at unit diagonal, and 1 / its smallest pivot.

    The latter is infinite where S is not numerically positive definite; nothing is raised, and
    nothing is added to the diagonal.
    """
    d = S.detach().diagonal(dim1=-2, dim2=-1).clamp_min(1e-300).sqrt()
    S = S / (d.unsqueeze(-1) * d.unsqueeze(-2))
    C, info = torch.linalg.cholesky_ex(S)
    wrong = info != 0
    if S.requires_grad:  # zeros times infinities are no gradients
        eye = torch.eye(S.shape[-1], dtype=S.dtype, device=S.device)
        C = torch.linalg.cholesky_ex(torch.where(wrong[..., None, None], eye, S)).L
    amplification = C.detach().diagonal(dim1=-2, dim2=-1).amin(-1) ** -2
    amplification = torch.where(wrong, torch.inf, amplification)
    return C * d.unsqueeze(-1), torch.nan_to_num(amplification, nan=torch.inf, posinf=torch.inf)


def lower_triangular(F: Tensor) -> Tensor:
    """The lower-triangular L with positive diagonal and L Lᵀ = F Fᵀ, rows scaled first."""
    d = F.detach().norm(dim=-1, keepdim=True).clamp_min(1e-300)
    R = torch.linalg.qr((F / d).mT).R
    sign = R.detach().diagonal(dim1=-2, dim2=-1).sign()
    L: Tensor = (R * sign.unsqueeze(-1)).mT * d
    return L


def apply_to_dimensions(matrix: Tensor, y: Tensor, event_dim: int) -> Tensor:
    """``matrix`` (*batch or 1, *event_shape, K, K) times y (*batch, K, *event_shape)."""
    at = y.dim() - event_dim - 1
    rows = y.movedim(at, -1).unsqueeze(-2)  # (*batch, *event_shape, 1, K)
    return (matrix * rows).sum(-1).movedim(-1, at)


def times(one: Tensor, two: Tensor) -> Tensor:
    """The product of matrices, which is one operation for two of shape (n, K, K)."""
    if one.dim() == two.dim() == 3 and len(one) == len(two):
        return torch.bmm(one, two)
    return one @ two


def inverse_tril(L: Tensor) -> Tensor:
    """L^{-1} of lower triangular L (…, K, K)."""
    eye = torch.eye(L.shape[-1], dtype=L.dtype, device=L.device)
    inverse: Tensor = torch.linalg.solve_triangular(L, eye.expand_as(L), upper=False)
    return inverse


def _log_diagonal_sum(C: Tensor) -> Tensor:
    return C.diagonal(dim1=-2, dim2=-1).log().sum(-1)


class _Cholesky(NamedTuple):
    """The lower triangular factor C of a covariance, its inverse, and the growth of rounding."""

    root: Tensor
    inverse: Tensor
    amplification: Tensor


def _cholesky(S: Tensor) -> _Cholesky:
    C, amplification = scaled_cholesky(S)
    return _Cholesky(C, inverse_tril(C), amplification)


def pulled_back_factor(M: Tensor, W: Tensor, P: Tensor, Sigma0: Tensor) -> Factor:
    """The factor of Σ by way of its pull-back to time 0, ``P̃ + Σ_0``, with the data variable last.

    The last pivot squared is 1/SNR, so the information about x is never the small difference of
    large numbers. Best for small and moderate τ; with fast modes it degrades as exp(2‖A‖τ).

    Args:
        M, W: the transition from time 0 and its inverse, (…, K, K).
        P: P̃, the covariance of its noise, pulled back to time 0, (…, K, K).
        Sigma0: (K, K).

    Returns:
        The factor of Σ, with ``log_det`` that of ``P̃ + Σ_0``, log det Σ less ``2 ∫ tr A``.
    """
    return _pulled_back(M, W, _cholesky(_data_last(P + Sigma0)))


def direct_factor(Sigma: Tensor, a: Tensor) -> Factor:
    """The factor of Σ by a scaled Cholesky. Best late, where Σ is near its stationary value."""
    return _direct(a, _cholesky(Sigma))


def both_factors(
    Sigma: Tensor, M: Tensor, W: Tensor, P: Tensor, Sigma0: Tensor
) -> tuple[Factor, Factor]:
    """:func:`direct_factor` and :func:`pulled_back_factor` of the same Σ, computed together."""
    both = torch.stack([Sigma, _data_last(P + Sigma0)])
    fields = (
        field.unflatten(0, both.shape[:-2]).unbind() for field in _cholesky(both.flatten(0, -3))
    )
    direct, pulled = (_Cholesky(*factored) for factored in zip(*fields, strict=True))
    return _direct(M[..., 0], direct), _pulled_back(M, W, pulled)


def _if_factored(factored: _Cholesky, log_snr: Tensor) -> Tensor:
    """The log SNR, and NaN where another matrix was factored for the sake of gradients."""
    if not factored.root.requires_grad:
        return log_snr
    return torch.where(factored.amplification < torch.inf, log_snr, torch.nan)


def _data_last(S: Tensor) -> Tensor:
    return S.roll((-1, -1), (-2, -1))


def _pulled_back(M: Tensor, W: Tensor, factored: _Cholesky) -> Factor:
    C, inverse, amplification = factored
    logs, whitener = C.diagonal(dim1=-2, dim2=-1).log(), times(inverse, W.roll(-1, -2))
    readout = C[..., -1, -1:] * whitener[..., -1, :]
    log_snr, log_det = _if_factored(factored, -2 * logs[..., -1]), 2 * logs.sum(-1)
    return Factor(times(M.roll(-1, -1), C), whitener, log_snr, readout, log_det, amplification)


def _direct(a: Tensor, factored: _Cholesky) -> Factor:
    L, whitener, amplification = factored
    u = (whitener * a.unsqueeze(-2)).sum(-1)
    # SNR underflows long after the process has forgotten x; scale a so that log SNR does not
    size = u.detach().abs().amax(-1)
    amplification = torch.where(size > 1e-250, amplification, torch.inf)
    scale = size.clamp_min(1e-300)
    u = u / scale.unsqueeze(-1)
    q = u.square().sum(-1)
    log_snr = _if_factored(factored, q.log() + 2 * scale.log())
    w = (whitener * u.unsqueeze(-1)).sum(-2)
    readout = w / (q * scale).unsqueeze(-1)
    return Factor(L, whitener, log_snr, readout, 2 * _log_diagonal_sum(L), amplification)


def noise_basis(A: Tensor, D: Tensor, tolerance: float = 1e-14) -> tuple[Tensor, Tensor]:
    """An orthonormal basis U of [G, AG, A²G, …], and the order in which noise reaches each vector.

    Args:
        A, D: (K, K); the range of D is the range of G. Or those of many times, (n, K, K) and (m, K,
            K): what noise reaches through all of them together.
        tolerance: the size below which a number counts as zero, relative to ‖D‖ for an eigenvalue
            and to ‖A‖ for a coupling.

    Returns:
        U (K, K), whose columns noise reaches after ``order`` integrations, and ``order`` (K,). With
        fewer than K columns the pair (A, G) is not controllable: noise never reaches the remaining
        directions.
    """
    with torch.no_grad():
        K = A.shape[-1]
        block = (D / D.norm().clamp_min(1e-300)).reshape(-1, K, K)
        block = block.movedim(0, 1).reshape(K, -1)
        A = (A / A.norm().clamp_min(1e-300)).reshape(-1, K, K)
        U = A.new_zeros(K, 0)
        orders: list[int] = []
        order = 0
        while U.shape[1] < K:
            for _ in range(2):  # twice is enough (Kahan)
                block = block - U @ (U.mT @ block)
            # columns of many times make it wide, with many right vectors that are not needed
            left, values, _ = torch.linalg.svd(block, full_matrices=block.shape[1] <= K)
            new = left[:, : int((values > tolerance).sum())]
            if new.shape[1] == 0:
                break
            U = torch.cat([U, new], 1)
            orders += [order] * new.shape[1]
            block, order = (A @ new).movedim(0, 1).reshape(K, -1), order + 1
    return U, torch.tensor(orders)


class Rounding(NamedTuple):
    """What rounding does in a basis of :func:`noise_basis`, whatever the time."""

    growth: float  # of the basis; infinite where an entry taken for zero exceeds rounding
    speed: float  # ‖A‖_2
    norm: float  # ‖A‖_1 in the basis, for the largest ‖A‖τ


def basis_rounding(A: Tensor, GG: Tensor, basis: tuple[Tensor, Tensor]) -> Rounding:
    """What rounding does in a basis, for which this waits for the device.

    Raises:
        KernelPrecisionError: the basis has fewer than K vectors.
    """
    check_reached(basis[0])
    with torch.no_grad():
        A1, GG1, above, noiseless = _turned(A, GG, basis)
        growth = _basis_growth(A, GG, A1, GG1, *basis, above, noiseless)
        norm = torch.linalg.matrix_norm(A1 - A1 * above, ord=1).clamp_min(1e-300)
        speed = torch.linalg.matrix_norm(A, ord=2)
        return Rounding(growth, *torch.stack([speed, norm]).tolist())


def _turned(
    A: Tensor, GG: Tensor, basis: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A and g² in a basis, and where they vanish there by construction."""
    U, order = basis
    above = (order[:, None] > order[None, :] + 1).to(A.device)
    noiseless = ((order[:, None] > 0) | (order[None, :] > 0)).to(A.device)
    return U.mT @ A @ U, U.mT @ GG @ U, above, noiseless


def transition_factor(
    A: Tensor,
    GG: Tensor,
    tau: Tensor,
    basis: tuple[Tensor, Tensor],
    rounding: Rounding | None = None,
    latest: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A root F of ``P = F Fᵀ`` (not triangular), F^{-1}, log det P, and the growth of rounding.

    P is factored in ``basis`` (see :func:`noise_basis`), where its grading lies along the axes.
    Entries that vanish there by construction are set to zero and keep their gradient.

    Args:
        rounding: :func:`basis_rounding`, if it is known.
        latest: a number that no τ exceeds, if Python knows one; else this waits for the device.

    Raises:
        KernelPrecisionError: the basis has fewer than K vectors, so that P is singular.
    """
    U, order = basis
    rounding = basis_rounding(A, GG, basis) if rounding is None else rounding
    A1, GG1, above, noiseless = _turned(A, GG, basis)
    A1 = A1 - A1.detach() * above
    GG1 = GG1 - GG1.detach() * noiseless
    _, P1 = transition_moments(
        A1, GG1, tau, reach=None if latest is None else latest * rounding.norm
    )
    C, amplification = scaled_cholesky(P1)
    # a small eigenvalue of D is known only as well as rounding of its large entries allows
    entering = GG1.detach().diagonal(dim1=-2, dim2=-1).clamp_min(1e-300)
    entries = (U.abs().mT @ GG.detach().abs() @ U.abs()).diagonal(dim1=-2, dim2=-1)
    gained = P1.detach().diagonal(dim1=-2, dim2=-1).clamp_min(1e-300)
    entered = torch.minimum(entries / entering, tau.detach().unsqueeze(-1) * entries / gained)
    entered = torch.where((order == 0).to(P1.device), entered, 0.0).amax(-1)
    travelled = (tau.detach() * rounding.speed).clamp_min(1.0)
    growth = torch.maximum(amplification, entered) * rounding.growth * travelled
    return U @ C, inverse_tril(C) @ U.mT, 2 * _log_diagonal_sum(C), growth


def _basis_growth(
    A: Tensor,
    GG: Tensor,
    A1: Tensor,
    GG1: Tensor,
    U: Tensor,
    order: Tensor,
    above: Tensor,
    noiseless: Tensor,
) -> float:
    """The growth of rounding in a basis; infinite where an entry taken for zero exceeds rounding.

    An error in one vector's direction carries over to the next ones. Axes are exact.
    """
    with torch.no_grad():
        K, orders = len(A), order.to(A.device)
        rounded_A = U.abs().mT @ A.abs() @ U.abs()
        rounded_GG = U.abs().mT @ GG.abs() @ U.abs()
        oblique = ((U != 0).sum(0) > 1).to(A)
        turned = oblique.clone()  # how far directions are off, in units of rounding
        size = A1.abs()
        for k in range(int(order.max()) + 1):
            here, before = orders == k, orders == k - 1
            if k == 0:
                noise, growth = rounded_GG.diagonal()[here], GG1.diagonal()[here]
            else:
                noise = rounded_A + oblique[:, None] * size.amax(0)
                noise = noise + turned[None, :] * size.amax(1)[:, None]
                noise, growth = noise[here][:, before].norm(dim=1), A1[here][:, before].norm(dim=1)
            turned[here] = oblique[here].maximum(noise / growth.clamp_min(1e-300) - 1)
        for matrix, rounded, zero in ((A1, rounded_A, above), (GG1, rounded_GG, noiseless)):
            size = matrix.abs()
            noise = rounded + turned[:, None] * size.amax(0) + turned * size.amax(1)[:, None]
            if bool((size * zero > 8 * K * torch.finfo(A.dtype).eps * noise).any()):
                return math.inf
        return max(1.0, turned[orders > 0].max().item()) if bool((orders > 0).any()) else 1.0


def check_reached(U: Tensor) -> None:
    """Raises KernelPrecisionError unless the basis U of :func:`noise_basis` has K vectors."""
    if U.shape[-1] < U.shape[-2]:
        raise KernelPrecisionError(
            f"noise reaches {U.shape[-1]} of {U.shape[-2]} variables: the covariance of a "
            "transition is singular; couple the variables by the drift, or let noise reach more"
        )


def semidefinite_cholesky(D: Tensor) -> Tensor:
    """The lower triangular L with L Lᵀ = D for semi-definite D (…, K, K), by columns.

    Gradients are those of the factor at constant rank: a pivot of rounding's size is held at zero,
    with its column. torch's Cholesky needs full rank, and eigenvectors of equal eigenvalues have no
    derivative.
    """
    K = D.shape[-1]
    tiny = 16 * K * torch.finfo(D.dtype).eps * D.detach().diagonal(dim1=-2, dim2=-1)
    rest, columns = D, []
    for k in range(K):
        pivot = rest[..., k, k]
        used = pivot.detach() > tiny[..., k]
        root = torch.where(used, pivot, 1.0).sqrt()
        column = torch.where(used[..., None], rest[..., :, k] / root[..., None], 0.0)
        column = torch.cat([torch.zeros_like(column[..., :k]), column[..., k:]], -1)
        columns.append(column)
        rest = rest - column[..., :, None] * column[..., None, :]
    return torch.stack(columns, -1)
