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

A propagator has the moves of a diffusion between two clock times, τ_0 to τ_1, for A and g² that may
vary:

    M' = A M,  M(τ_0) = I,    P = ∫ M(τ_1, u) g² M(τ_1, u)ᵀ du,    P̃ = M^{-1} P M^{-T},

where P̃, the noise pulled back to τ_0, is a sum of positive terms too. For varying matrices
:mod:`pyro_mdm.varying.magnus` computes them by small steps.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "FACTORIALS",
    "volume_rate",
    "decay",
    "TRAVELLED",
    "Root",
    "Propagator",
    "Moved",
    "HalfSteps",
    "ConstantPropagator",
    "Factor",
    "KernelPrecisionError",
    "MAX_DOUBLINGS",
    "NODES",
    "Series",
    "TAYLOR_TERMS",
    "WEIGHTS",
    "basis_rounding",
    "check_reached",
    "factors",
    "gauss_legendre",
    "inverse_tril",
    "lower_triangular",
    "noise_basis",
    "noise_series",
    "scaled_cholesky",
    "transition_factor",
    "transition_moments",
]

TAYLOR_TERMS = 32
"""Terms of a series in ‖A h‖ ≤ ½: the remainder is below 2^-32 / 32!, whatever power of h leads."""
FACTORIALS = torch.from_numpy(np.array([float(math.factorial(k)) for k in range(TAYLOR_TERMS)]))
"""k! of the terms; on the host, as all that follows, whatever torch's default device is."""
MAX_DOUBLINGS = 60
"""Doublings of a step at most."""


@cache
def gauss_legendre(q: int) -> tuple[Tensor, Tensor]:
    """The q nodes and weights of Gauss–Legendre quadrature on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(q)
    return torch.from_numpy(nodes / 2 + 0.5), torch.from_numpy(weights / 2)


NODES, WEIGHTS = gauss_legendre(16)
"""The nodes and weights of a step on [0, 1]."""
PLACES = torch.cat([NODES, NODES.new_ones(1)])  # in a step; its end
ORDERS = torch.arange(TAYLOR_TERMS, dtype=torch.float64, device="cpu")
SIGNS = (1.0 - 2.0 * (ORDERS % 2)).unsqueeze(-1)
_AREAS = torch.cat([WEIGHTS, WEIGHTS.new_zeros(1)])  # no weight at the end
PLACE_POWERS = torch.stack([PLACES ** ORDERS[:, None], _AREAS * PLACES ** ORDERS[:, None]])
PLACE_POWERS = PLACE_POWERS[:, :, None, :, None]  # (2, TAYLOR_TERMS, 1, places, 1)


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
    norm, K = torch.linalg.matrix_norm(A.detach(), ord=1).clamp_min(1e-300), len(A)
    top = A / norm
    rows = torch.cat([torch.eye(K, dtype=A.dtype, device=A.device), top])
    while len(rows) < TAYLOR_TERMS * K:  # powers one above the other, twice as many at a time
        top = top @ top
        rows = torch.cat([rows, rows @ top])
    powers, at = rows.reshape(TAYLOR_TERMS, K, K) / FACTORIALS[:, None, None], PLACE_POWERS
    plain, noise = powers.unsqueeze(-2), (powers @ GG).unsqueeze(-2)
    return Series(norm, torch.stack([plain * at[0], noise * at[1]], 1).flatten(1))


def transition_moments(
    A: Tensor,
    GG: Tensor,
    tau: Tensor,
    series: Series | None = None,
) -> tuple[Tensor, Tensor]:
    """``M = exp(Aτ)`` and ``P = ∫_0^τ exp(Au) GGᵀ exp(Aᵀu) du``, by positive terms only.

    A series of n matrices of one norm gives M and P of each, (n, …, K, K).

    Args:
        A: (K, K) drift matrix per unit of τ.
        GG: (K, K) positive semi-definite noise covariance per unit of τ.
        tau: (…) non-negative durations; (1, …) or (n, …) for a series of n matrices.
        series: the power series of A, if it is known, or of n matrices.

    Returns:
        M and P, (…, K, K), each entry accurate relative to its own natural scale.

    Raises:
        KernelPrecisionError: ‖A‖τ is too large to be reached by doubling.
    """
    norm, terms = noise_series(A, GG) if series is None else series
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
    powers = (h * norm).unsqueeze(-1) ** ORDERS
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
    if S.requires_grad and bool(wrong.any()):  # zeros times infinities are no gradients
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


def inverse_tril(L: Tensor) -> Tensor:
    """L^{-1} of lower triangular L (…, K, K)."""
    eye = torch.eye(L.shape[-1], dtype=L.dtype, device=L.device)
    inverse: Tensor = torch.linalg.solve_triangular(L, eye.expand_as(L), upper=False)
    return inverse


def factors(
    Sigma: Tensor,
    M: Tensor,
    back: tuple[Tensor, Tensor] | None = None,
    Sigma0: Tensor | float = 0.0,
) -> list[Factor]:
    """The factor of Σ (n, K, K) or (K, K) by a scaled Cholesky; of (n, K, K) another one too, by
    its pull-back to time 0, ``P̃ + Σ_0``.

    The first is best late, where Σ is near its stationary value. In the second the data variable is
    last. The last pivot squared is 1/SNR, so the information about x is never the small difference
    of large numbers. Best for small and moderate τ; with fast modes it degrades as exp(2‖A‖τ). Its
    ``log_det`` is that of ``P̃ + Σ_0``, log det Σ less ``2 ∫ tr A``.

    Args:
        M: the transition from time 0, like Σ.
        back: its inverse, and P̃, the covariance of its noise pulled back to time 0, (n, K, K).
        Sigma0: (K, K).
    """
    both, n = Sigma, len(Sigma)
    if back is not None:
        both = torch.cat([Sigma, (back[1] + Sigma0).roll((-1, -1), (-2, -1))])
    C, amplification = scaled_cholesky(both)
    eye = torch.eye(C.shape[-1], dtype=C.dtype, device=C.device)
    inverse = torch.linalg.solve_triangular(C, eye.expand_as(C), upper=False)
    logs, learned = C.diagonal(dim1=-2, dim2=-1).log(), C.requires_grad
    L, W = (C, inverse) if back is None else (C[:n], inverse[:n])
    log_det, growth = 2 * logs.sum(-1), amplification
    u = (W * M[..., None, :, 0]).sum(-1)
    # SNR underflows long after the process has forgotten x; scale a so that log SNR does not
    size = u.detach().abs().amax(-1)
    scale = size.clamp_min(1e-300)
    u = u / scale.unsqueeze(-1)
    q = u.square().sum(-1)
    log_snr = q.log() + 2 * scale.log()
    if back is not None:
        log_det, growth = log_det[:n], growth[:n]
    if learned:  # where another matrix was factored for the sake of gradients
        log_snr = torch.where(growth < torch.inf, log_snr, torch.nan)
    growth = torch.where(size > 1e-250, growth, torch.inf)
    readout = (W * u.unsqueeze(-1)).sum(-2) / (q * scale).unsqueeze(-1)
    direct = Factor(L, W, log_snr, readout, log_det, growth)
    if back is None:
        return [direct]
    C, growth, logs = C[n:], amplification[n:], logs[n:]
    whitener = torch.bmm(inverse[n:], back[0].roll(-1, -2))
    readout, log_snr = C[..., -1, -1:] * whitener[..., -1, :], -2 * logs[..., -1]
    if learned:
        log_snr = torch.where(growth < torch.inf, log_snr, torch.nan)
    root = torch.bmm(M.roll(-1, -1), C)
    return [direct, Factor(root, whitener, log_snr, readout, 2 * logs.sum(-1), growth)]


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
    return U, torch.tensor(orders, device="cpu")


class Rounding(NamedTuple):
    """What rounding does in a basis of :func:`noise_basis`, whatever the time."""

    growth: float  # of the basis; infinite where an entry taken for zero exceeds rounding
    speed: float  # ‖A‖_2


def basis_rounding(A: Tensor, GG: Tensor, basis: tuple[Tensor, Tensor]) -> Rounding:
    """What rounding does in a basis.

    Raises:
        KernelPrecisionError: the basis has fewer than K vectors.
    """
    check_reached(basis[0])
    with torch.no_grad():
        A1, GG1, above, noiseless = _turned(A, GG, basis)
        growth = _basis_growth(A, GG, A1, GG1, *basis, above, noiseless)
        return Rounding(growth, torch.linalg.matrix_norm(A, ord=2).item())


def _turned(
    A: Tensor, GG: Tensor, basis: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A and g² in a basis, and where they vanish there by construction."""
    U, order = basis
    above = order[:, None] > order[None, :] + 1
    noiseless = (order[:, None] > 0) | (order[None, :] > 0)
    return U.mT @ A @ U, U.mT @ GG @ U, above, noiseless


def transition_factor(
    A: Tensor,
    GG: Tensor,
    tau: Tensor,
    basis: tuple[Tensor, Tensor],
    rounding: Rounding | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A root F of ``P = F Fᵀ`` (not triangular), F^{-1}, log det P, and the growth of rounding.

    P is factored in ``basis`` (see :func:`noise_basis`), where its grading lies along the axes.
    Entries that vanish there by construction are set to zero and keep their gradient.

    Args:
        rounding: :func:`basis_rounding`, if it is known.

    Raises:
        KernelPrecisionError: the basis has fewer than K vectors, so that P is singular.
    """
    U, order = basis
    rounding = basis_rounding(A, GG, basis) if rounding is None else rounding
    A1, GG1, above, noiseless = _turned(A, GG, basis)
    A1 = A1 - A1.detach() * above
    GG1 = GG1 - GG1.detach() * noiseless
    _, P1 = transition_moments(A1, GG1, tau)
    C, amplification = scaled_cholesky(P1)
    # a small eigenvalue of D is known only as well as rounding of its large entries allows
    entering = GG1.detach().diagonal(dim1=-2, dim2=-1).clamp_min(1e-300)
    entries = (U.abs().mT @ GG.detach().abs() @ U.abs()).diagonal(dim1=-2, dim2=-1)
    gained = P1.detach().diagonal(dim1=-2, dim2=-1).clamp_min(1e-300)
    entered = torch.minimum(entries / entering, tau.detach().unsqueeze(-1) * entries / gained)
    entered = torch.where(order == 0, entered, 0.0).amax(-1)
    travelled = (tau.detach() * rounding.speed).clamp_min(1.0)
    growth = torch.maximum(amplification, entered) * rounding.growth * travelled
    return U @ C, inverse_tril(C) @ U.mT, 2 * C.diagonal(dim1=-2, dim2=-1).log().sum(-1), growth


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
        K, orders = len(A), order
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


# -- propagators ---------------------------------------------------------------------------------


TRAVELLED = 20.0
"""‖A‖τ beyond which M^{-1} has no correct digit."""


class Root(NamedTuple):
    """A root F of a covariance, F Fᵀ, not necessarily triangular."""

    root: Tensor  # F (…, K, K)
    inverse: Tensor  # F^{-1} (…, K, K)
    log_det: Tensor  # log det F Fᵀ, (…)
    growth: Tensor  # estimated growth of rounding errors, (…)


class Moved(NamedTuple):
    """The move of a diffusion from time 0 to n times."""

    M: Tensor  # (n, K, K)
    P: Tensor  # (n, K, K)
    back: tuple[Tensor, Tensor] | None
    """M^{-1} and P̃, right where ``near`` is true and finite elsewhere; None where it nowhere is."""
    near: Tensor  # (n,), whether it travels less than TRAVELLED
    trace: Tensor  # ∫ tr A, (n,)
    travelled: Tensor  # ∫ ‖A‖, (n,), without gradient


class HalfSteps(NamedTuple):
    """Both halves of a step of the diffusion of B and g², run backwards, the later half first."""

    first: Tensor  # M (…, K, K)
    first_root: Tensor  # of the noise gained, (…, K, K)
    second: Tensor
    second_root: Tensor
    growth: Tensor  # of rounding errors, (…)


def decay(factor: Factor, unit_noise: Tensor) -> Tensor:
    """-dλ/dτ = SNR kᵀ g² k."""
    root = (factor.log_snr / 2).exp()[..., None] * factor.readout
    if unit_noise.dim() == 2:
        return (root @ unit_noise.mT * root).sum(-1)
    return ((unit_noise @ root[..., None])[..., 0] * root).sum(-1)


def volume_rate(factor: Factor, unit_noise: Tensor) -> Tensor:
    """dκ/dτ = tr(Σ^{-1} g²)."""
    W = factor.whitener
    return ((W @ unit_noise) * W).sum((-2, -1))


class Propagator(ABC):
    """A linear diffusion between clock times, in float64, differentiable in its parameters.

    ``start`` and ``duration`` are clock times (…) and lengths ≥ 0 (…), broadcast together; a start
    of None is time 0. What is constant in time may come without their dimensions.
    """

    @abstractmethod
    def drift(self, tau: Tensor) -> Tensor:
        """A per unit of clock time, (K, K) or (*tau.shape, K, K)."""

    @abstractmethod
    def noise(self, tau: Tensor) -> Tensor:
        """g² per unit of clock time, (K, K) or (*tau.shape, K, K)."""

    @abstractmethod
    def dispersion(self, tau: Tensor) -> Tensor:
        """G per unit of clock time with G Gᵀ = g², (K, K) or (*tau.shape, K, K)."""

    @property
    @abstractmethod
    def speed(self) -> float:
        """The largest 2-norm of A."""

    @abstractmethod
    def travelled(self, tau: Tensor) -> Tensor:
        """``∫_0^τ ‖A‖``, like τ, without gradient; M^{-1} loses digits as its exponential."""

    @abstractmethod
    def effort(self, tau: Tensor) -> Tensor:
        """``∫_0^τ (‖A‖ - 2 tr A)``, like τ, without gradient; log det Σ plus this increases."""

    @abstractmethod
    def trace(self, start: Tensor | None, duration: Tensor) -> Tensor:
        """``∫ tr A``, (…)."""

    @abstractmethod
    def moments(self, start: Tensor | None, duration: Tensor) -> tuple[Tensor, Tensor]:
        """M and P, (…, K, K).

        Raises:
            KernelPrecisionError: the drift moves further than float64 can follow.
        """

    def since_start(self, tau: Tensor) -> Moved:
        """The move from time 0 to times τ (n,), for :meth:`factorized`."""
        raise NotImplementedError

    # -- given x -----------------------------------------------------------------------------------

    def factorized(
        self, tau: Tensor, initial: Tensor, units: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Factor]:
        """a, Σ and its factor at clock times τ from Σ_0.

        Σ is factored itself or pulled back to time 0, by whichever route keeps more digits.

        Args:
            units: standard deviations of the variables (K,). With them the growth of rounding has
                two more parts: the distance that the drift travels, as the last digits of A for
                slow modes are lost to fast ones; and the ratio of what is left of the other
                variables to what is left of x, each in its unit.
        """
        if tau.dim() != 1:  # products of (n, K, K) are one operation each
            fields = []
            a, Sigma, factor = self.factorized(tau.reshape(-1), initial, units)
            for field in (a, Sigma, *factor):
                fields.append(field.reshape((*tau.shape, *field.shape[1:])))
            return fields[0], fields[1], Factor(*fields[2:])
        M, P, back, near, trace, travelled = self.since_start(tau)
        a, Sigma = M[..., 0], torch.baddbmm(P, M @ initial, M.mT)
        factor, *others = factors(Sigma, M, back, initial)
        for pulled in others:
            pulled = pulled._replace(log_det=pulled.log_det + 2 * trace)
            better = near & (pulled.amplification < factor.amplification)
            if bool(better.all()):  # no gradient then passes the other route
                factor = pulled
                continue
            fields, here = [], [better, better[:, None], better[:, None, None]]
            for first, second in zip(pulled, factor, strict=True):
                fields.append(torch.where(here[first.dim() - 1], first, second))
            factor = Factor(*fields)
        if units is None:
            return a, Sigma, factor
        with torch.no_grad():
            left = (M * units / units[:, None]).square().sum(-2)
            left = (left.mean(-1) / left[..., 0].clamp_min(1e-300)).sqrt()
            growth = travelled.clamp_min(1.0) * left.clamp_min(1.0)
        return a, Sigma, factor._replace(amplification=factor.amplification * growth)

    @abstractmethod
    def pulled_back(self, start: Tensor, duration: Tensor) -> tuple[Tensor, Tensor]:
        """M^{-1} and P̃, (…, K, K). Raises KernelPrecisionError as :meth:`moments` does."""

    @abstractmethod
    def root(self, start: Tensor | None, duration: Tensor) -> Root:
        """A root of P for positive durations.

        Raises:
            KernelPrecisionError: noise does not reach all variables.
        """

    def noise_last_root(self, start: Tensor | None, duration: Tensor) -> Root:
        """A root of P whose last :attr:`new` columns span G's range at the end."""
        return self.root(start, duration)

    @property
    @abstractmethod
    def new(self) -> int:
        """The number of columns of a :meth:`root` that noise enters by; K where G's range turns."""

    @abstractmethod
    def pulled_back_root(self, start: Tensor | None, duration: Tensor) -> Root:
        """A root of P̃ for positive durations."""

    @abstractmethod
    def halves(self, start: Tensor, duration: Tensor) -> HalfSteps:
        """Both halves of each step, from its end back to its start, by dy = B y dτ + G dB.

        ``B = -(A + g² Σ_π^{-1})``, of the diffusion of (-Q, D) where Σ_π is at rest.
        """


class ConstantPropagator(Propagator):
    """The propagator of constant A and g²: closed forms that depend on the duration alone.

    Args:
        drift, noise: A and g² per unit of clock time, (K, K).
        precision: Σ_π^{-1} of the prior, for :meth:`halves`.
        root: G per unit of clock time.
        hides_noise: whether rounding of D hides noise in some direction.
    """

    speed: float = math.nan

    def __init__(
        self,
        drift: Tensor,
        noise: Tensor,
        *,
        precision: Callable[[], Tensor],
        root: Callable[[], Tensor],
        hides_noise: Callable[[], bool],
    ) -> None:
        self._A, self._GG = drift, noise
        self.speed = float(torch.linalg.matrix_norm(drift.detach(), ord=2))
        self._precision, self._root = precision, root
        self._hiding = hides_noise
        self._roundings: dict[tuple[int, bool], Rounding] = {}
        self._forward = norm, terms = noise_series(drift, noise)
        self._back = Series(norm, terms * SIGNS)  # of -A
        self._both = Series(norm, torch.stack([terms, self._back.terms]))

    def drift(self, tau: Tensor) -> Tensor:
        return self._A

    def noise(self, tau: Tensor) -> Tensor:
        return self._GG

    def dispersion(self, tau: Tensor) -> Tensor:
        return self._root()

    def travelled(self, tau: Tensor) -> Tensor:
        return tau.detach() * self.speed

    def effort(self, tau: Tensor) -> Tensor:
        return (self.speed - 2 * self._A.detach().trace()) * tau.detach()

    def trace(self, start: Tensor | None, duration: Tensor) -> Tensor:
        return self._A.trace() * duration

    @cached_property
    def _hides_noise(self) -> bool:
        return self._hiding()

    @cached_property
    def _basis(self) -> tuple[Tensor, Tensor]:
        """The directions that noise reaches."""
        with torch.inference_mode(False):  # gradients of durations may pass it later
            return noise_basis(self._A, self._GG)

    def moments(self, start: Tensor | None, duration: Tensor) -> tuple[Tensor, Tensor]:
        return transition_moments(self._A, self._GG, duration, self._forward)

    def since_start(self, tau: Tensor) -> Moved:
        travelled, trace = tau.detach() * self.speed, self._A.trace() * tau
        near = travelled < TRAVELLED
        if not bool(near.any()):
            return Moved(*self.moments(None, tau), None, near, trace, travelled)
        back = torch.where(near, tau, tau.detach().min())  # a longer way back is infinite
        M, P = transition_moments(self._A, self._GG, torch.stack([tau, back]), self._both)
        return Moved(M[0], P[0], (M[1], P[1]), near, trace, travelled)

    def pulled_back(self, start: Tensor, duration: Tensor) -> tuple[Tensor, Tensor]:
        return transition_moments(-self._A, self._GG, duration, self._back)

    def root(self, start: Tensor | None, duration: Tensor) -> Root:
        return self._rooted(1, duration)

    def noise_last_root(self, start: Tensor | None, duration: Tensor) -> Root:
        return self._rooted(1, duration, noise_last=True)

    def _rooted(self, way: int, duration: Tensor, noise_last: bool = False) -> Root:
        """A root of P, or of P̃ for ``way`` = -1."""
        A, (U, order), key = way * self._A, self._basis, (way, noise_last)
        basis = (U.flip(-1), order.flip(0)) if noise_last else (U, order)
        if key not in self._roundings:
            self._roundings[key] = basis_rounding(A, self._GG, basis)
        root, inverse, log_det, growth = transition_factor(
            A, self._GG, duration, basis, self._roundings[key]
        )
        if self._hides_noise:
            growth = torch.full_like(growth, torch.inf)
        return Root(root, inverse, log_det, growth)

    @property
    def new(self) -> int:
        return int((self._basis[1] == 0).sum())

    def pulled_back_root(self, start: Tensor | None, duration: Tensor) -> Root:
        return self._rooted(-1, duration)

    def halves(self, start: Tensor, duration: Tensor) -> HalfSteps:
        A, half = -(self._A + self._GG @ self._precision()), duration / 2
        M, _ = transition_moments(A, self._GG, half)
        root, _, _, growth = transition_factor(A, self._GG, half, self._basis)
        return HalfSteps(M, root, M, root, growth)
