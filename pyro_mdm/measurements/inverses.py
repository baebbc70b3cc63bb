r"""Inverses of ``S = H C Hᵀ + R`` of linear estimates, where a structure is known.

**Small systems** are factored once for all noise levels. With data of covariance Σ,
``S_0 = H Σ Hᵀ + R`` and ``K = Σ Hᵀ S_0^{-1}``, a measurement leaves x the covariance
``P = Σ - K H Σ``. Readouts with noise of variance V alone leave it ``C = Σ - Σ (Σ + V)^{-1} Σ``. By
Woodbury's identity, for one number V,

    (H C Hᵀ + R)^{-1} = S_0^{-1} + Kᵀ (P + V)^{-1} K
    C Hᵀ (H C Hᵀ + R)^{-1} = (1 + P/V)^{-1} K

so that the eigenvectors of P serve every V. No term is subtracted, and R may be 0.

**Data of any size:** where ``H Hᵀ = L diag(h) Lᵀ`` with an orthogonal L, as of a blur in its
frequencies, and C is of low rank but for a multiple s of the identity, ``C = U diag(c) Uᵀ + s``,
the turned systems are

    Lᵀ (H C Hᵀ + R) L = diag(s h + R) + B diag(c) Bᵀ,    B = Lᵀ H U

A system of r equations, the rank of U, is left of them by Woodbury's identity. Where C is diagonal
and no two observations see one dimension, as of a mask, systems are diagonal.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mdm.measurements.covariance import DataCovariance, posterior_variance
from pyro_mdm.measurements.operators import LinearOperator, Spectrum
from pyro_mdm.measurements.solve import Inverse, System

__all__ = ["Factored", "Structured", "diagonal", "factored", "structured"]

LARGEST = 1024
"""The most dimensions, and the most observations, whose covariances are factored."""
NOTHING = 1e-14
"""The ratio of an eigenvalue of S, in units of its diagonal, to the largest, at which it counts as
0: exact observations of what does not vary."""
SINGULAR = 1e-9
"""The ratio of s h + R to the largest variance of H x up to which it counts as 0: Woodbury's
identity loses as many digits as this has."""


def factored(
    covariance: DataCovariance, operator: LinearOperator, noise: Tensor
) -> Factored | None:
    """The factors of linear systems, or None where they are too large, or H is learned.

    Args:
        covariance: the covariance of data.
        operator: H.
        noise: variances R, () or (*obs_shape).
    """
    shapes = operator.event_shape, operator.obs_shape
    if max(torch.Size(shape).numel() for shape in shapes) > LARGEST:
        return None
    with torch.enable_grad():
        H = operator.matrix()
    if H.requires_grad:  # it is learned: the factors would not have its derivatives
        return None
    return Factored.compute(
        covariance.matrix(shapes[0]), H, noise.expand(shapes[1]).flatten(), shapes[0]
    )


class Factored(NamedTuple):
    """The covariance that a measurement leaves, ``P = W diag(p) Wᵀ``, and what weighs obs."""

    inverse: Tensor  # S_0^{-1}, (m, m)
    gain: Tensor  # Wᵀ K, (d, m)
    values: Tensor  # p, (d,)
    vectors: Tensor  # W, (d, d)
    shape: tuple[int, ...]  # of data

    @classmethod
    @torch.no_grad()
    def compute(
        cls, covariance: Tensor, H: Tensor, noise: Tensor, shape: tuple[int, ...]
    ) -> Factored:
        """The factors for Σ (d, d), a matrix H (m, d) and variances R (m,) of data of a shape."""
        spread = covariance @ H.mT
        S = H @ spread + noise.diag()
        # in units of their own, precise observations keep their digits beside others
        scale = torch.where(S.diagonal() > 0, S.diagonal().rsqrt(), 0)
        inner = torch.linalg.pinv(scale[:, None] * S * scale, rtol=NOTHING, hermitian=True)
        inverse = scale[:, None] * inner * scale
        gain = spread @ inverse
        left = -gain @ H
        left.diagonal().add_(1)
        P = left @ covariance @ left.mT + (gain * noise) @ gain.mT  # Joseph's form: none below 0
        values, vectors = torch.linalg.eigh((P + P.mT) / 2)
        return cls(inverse, vectors.mT @ gain, values.clamp_min(0), vectors, shape)

    def at(self, variance: Tensor) -> Inverse:
        """The inverse at variances V, (n, 1) or (1, 1)."""
        total = self.values + variance

        def solved(r: Tensor) -> tuple[Tensor, Tensor]:
            weighed = (r @ self.gain.mT) / total
            image = (weighed * variance) @ self.vectors.mT
            u = torch.addmm(r @ self.inverse, weighed, self.gain)
            return u, image.unflatten(-1, self.shape)

        return solved


def structured(
    covariance: DataCovariance, operator: LinearOperator, noise: Tensor
) -> Structured | None:
    """The factors that the systems of all noise levels share; None where these are not known.

    Args:
        covariance, operator, noise: as for :func:`factored`.
    """
    spectrum = operator.spectrum()
    if spectrum is None or covariance.values is None or covariance.vectors is None:
        return None
    if noise.dim() and not spectrum.is_identity:
        return None
    values, vectors, rest = covariance.values, covariance.vectors, covariance.rest
    apart = rest * spectrum.squares + noise.flatten()
    whole = values.max() * spectrum.squares.max()
    if bool((values < rest).any()) or bool(apart.min() <= SINGULAR * whole):
        return None
    with torch.no_grad():
        data = vectors.mT.reshape(-1, *operator.event_shape)
        turned = spectrum.turn(operator(data).flatten(1)).mT
    return Structured(operator, spectrum, values, vectors, rest, noise.reshape(1, -1), turned)


class Structured(NamedTuple):
    """The factors that the systems of all noise levels share."""

    operator: LinearOperator
    spectrum: Spectrum  # L and h
    values: Tensor  # those of Σ in the directions of U, (r,)
    vectors: Tensor  # U, (d, r)
    rest: Tensor  # that of Σ in all others, ()
    noise: Tensor  # R, (1, 1) or (1, m)
    turned: Tensor  # B, (m, r)

    def at(self, variance: Tensor) -> Inverse | None:
        """The inverse at variances V, (n, 1) or (1, 1); None where each has its own and ``s h + R``
        differs between observations, since there would be a matrix for each."""
        rest, B = posterior_variance(self.rest, variance), self.turned
        apart = rest * self.spectrum.squares + self.noise
        if len(variance) > 1 < apart.shape[1]:
            return None
        more = posterior_variance(self.values, variance) - rest
        root = more.clamp_min(0).sqrt()
        inner = B.mT @ (B / apart.mT) if apart.shape[1] > 1 else B.mT @ B / apart.unsqueeze(-1)
        S = root.unsqueeze(-1) * inner * root.unsqueeze(-2)
        S.diagonal(dim1=-2, dim2=-1).add_(1)
        factor = torch.linalg.cholesky_ex(S)[0]  # which waits for no check: S is at least 1

        def solved(r: Tensor) -> tuple[Tensor, Tensor]:
            r = self.spectrum.turn(r) / apart
            inner = (r @ B) * root
            if len(factor) > 1:
                inner = torch.cholesky_solve(inner.unsqueeze(-1), factor).squeeze(-1)
            else:
                inner = torch.cholesky_solve(inner.mT, factor[0]).mT
            v = r - ((inner * root) @ B.mT) / apart  # Lᵀ u
            u = self.spectrum.back(v)
            pulled = self.operator.adjoint(u.reshape(-1, *self.operator.obs_shape)).flatten(1)
            image = torch.addcmul(((v @ B) * more) @ self.vectors.mT, rest, pulled)
            return u, image.unflatten(-1, self.operator.event_shape)

        return solved


def diagonal(system: System, spread: Tensor, variances: Tensor) -> Inverse:
    """The inverse of systems whose matrix is diagonal, as H sees no dimension twice.

    Args:
        system: the systems.
        spread: the diagonal of C, (n, *event_shape), which has no other entries.
        variances: the diagonal of ``H C Hᵀ``, (n, *obs_shape).
    """
    total = system.scaled(system.scaled(variances.flatten(1) + system.noise))

    def solved(r: Tensor) -> tuple[Tensor, Tensor]:
        u = torch.where(total > 0, r / total, 0)  # 0: nothing varies there
        pulled = system.H.adjoint(system.scaled(u).reshape(-1, *system.obs_shape))
        return u, spread * pulled

    return solved
