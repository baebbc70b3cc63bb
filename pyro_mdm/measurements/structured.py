r"""Linear systems of operators whose structure is known, for data of any size.

Where ``H Hᵀ = L diag(h) Lᵀ`` with an orthogonal L, as of a blur in its frequencies, and C is of
low rank but for a multiple s of the identity, ``C = U diag(c) Uᵀ + s``, the turned systems are

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
from pyro_mdm.measurements.solve import System

__all__ = ["Diagonal", "Structured", "structured"]

SINGULAR = 1e-9
"""The ratio of s h + R to the largest variance of H x up to which it counts as 0: Woodbury's
identity loses as many digits as this has."""


def structured(
    covariance: DataCovariance, operator: LinearOperator, noise: Tensor
) -> Structured | None:
    """The factors that the systems of all noise levels share; None where these are not known.

    Args:
        covariance, operator, noise: as for :func:`~pyro_mdm.measurements.factored.factored`.
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

    def at(self, variance: Tensor) -> OfLowRank | None:
        """The inverse at variances V, (n, 1) or (1, 1); None where each has its own and ``s h + R``
        differs between observations, since there would be a matrix for each."""
        rest = posterior_variance(self.rest, variance)
        apart = rest * self.spectrum.squares + self.noise
        return None if len(variance) > 1 < apart.shape[1] else OfLowRank(self, variance, apart)


class OfLowRank:
    """The inverse of ``H C Hᵀ + R``; see :class:`Structured`."""

    def __init__(self, systems: Structured, variance: Tensor, apart: Tensor) -> None:
        self._systems, self._apart, B = systems, apart, systems.turned
        self._rest = posterior_variance(systems.rest, variance)
        self._more = posterior_variance(systems.values, variance) - self._rest
        self._root = self._more.clamp_min(0).sqrt()
        inner = B.mT @ (B / apart.mT) if apart.shape[1] > 1 else B.mT @ B / apart.unsqueeze(-1)
        S = self._root.unsqueeze(-1) * inner * self._root.unsqueeze(-2)
        S.diagonal(dim1=-2, dim2=-1).add_(1)
        self._factor = torch.linalg.cholesky_ex(S)[0]  # which waits for no check: S is at least 1

    def u(self, r: Tensor) -> Tensor:
        return self._systems.spectrum.back(self._turned(r))

    def image(self, r: Tensor) -> Tensor:
        return self.solved(r)[1]

    def solved(self, r: Tensor) -> tuple[Tensor, Tensor]:
        v, systems = self._turned(r), self._systems
        u = systems.spectrum.back(v)
        pulled = systems.operator.adjoint(u.reshape(-1, *systems.operator.obs_shape)).flatten(1)
        low = ((v @ systems.turned) * self._more) @ systems.vectors.mT
        image = torch.addcmul(low, self._rest, pulled)
        return u, image.unflatten(-1, systems.operator.event_shape)

    def _turned(self, r: Tensor) -> Tensor:
        """Lᵀ u, (n, m)."""
        B, r = self._systems.turned, self._systems.spectrum.turn(r) / self._apart
        inner = (r @ B) * self._root
        if len(self._factor) > 1:
            inner = torch.cholesky_solve(inner.unsqueeze(-1), self._factor).squeeze(-1)
        else:
            inner = torch.cholesky_solve(inner.mT, self._factor[0]).mT
        return r - ((inner * self._root) @ B.mT) / self._apart


class Diagonal:
    """The inverse of a system's diagonal matrix.

    Args:
        system: the systems, whose H sees no dimension twice.
        spread: the diagonal of C, (n, *event_shape), which has no other entries.
        variances: the diagonal of ``H C Hᵀ``, (n, *obs_shape).
    """

    def __init__(self, system: System, spread: Tensor, variances: Tensor) -> None:
        self._system, self._spread = system, spread
        self._total = system.scaled(system.scaled(variances.flatten(1) + system.noise))

    def u(self, r: Tensor) -> Tensor:
        return torch.where(self._total > 0, r / self._total, 0)  # 0: nothing varies there

    def image(self, r: Tensor) -> Tensor:
        return self.solved(r)[1]

    def solved(self, r: Tensor) -> tuple[Tensor, Tensor]:
        u = self.u(r)
        pulled = self._system.H.adjoint(self._system.scaled(u).reshape(-1, *self._system.obs_shape))
        return u, self._spread * pulled
