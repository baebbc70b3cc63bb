"""The matrices of a linear diffusion that vary in time, cut into cells of clock time.

The steps within a cell are those of :mod:`pyro_mdm.varying.magnus`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from pyro_mdm.diffusions import kernels
from pyro_mdm.varying.exponents import exponentials, stretches

__all__ = [
    "MAX_CELLS",
    "REACH",
    "CellMatrices",
    "MatrixCells",
    "MovedCells",
    "MovedStretch",
    "composed",
    "made_once",
]

LEAST_NODES = 6
REACH = 0.4
"""‖A‖h of a cell; longer ones are cut."""
MAX_CELLS = 2**14
"""The most cells that a path of matrices is cut into."""

T = TypeVar("T")
Field = Callable[[Tensor], Tensor]
"""Clock times (…) -> matrices (…, K, K)."""


class made_once(Generic[T]):
    """An attribute that is computed once, with a graph where its owner ``has_graph``."""

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self.compute, self.__doc__ = compute, compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, owner: Any, kind: type) -> T:
        if owner is None:
            return cast(T, self)
        with torch.set_grad_enabled(owner.has_graph):
            value = vars(owner)[self.name] = self.compute(owner)
        return value


class CellMatrices(NamedTuple):
    """The matrices of n cells, or of stretches of them."""

    A1: Tensor  # A at the first Gauss point, (n, K, K)
    A2: Tensor  # A at the second
    GG: Tensor  # G Gᵀ at the nodes of the noise, (n, q, K, K)
    h: Tensor  # lengths, (n,)


class MovedCells(NamedTuple):
    """Moments of states over stretches, forward and pulled back, (n, K, K) each."""

    M: Tensor
    P: Tensor
    W: Tensor  # M^{-1}
    pulled: Tensor  # P̃

    def one(self, pulled_back: bool) -> MovedStretch:
        return MovedStretch(self.W, self.pulled) if pulled_back else MovedStretch(self.M, self.P)


class MovedStretch(NamedTuple):
    """M and P of stretches, or pulled back M^{-1} and P̃, (n, K, K) each."""

    M: Tensor
    P: Tensor

    def at(self, index: Tensor) -> MovedStretch:
        return MovedStretch(self.M[index], self.P[index])

    def then(self, later: MovedStretch) -> MovedStretch:
        """The composition of two stretches; of two pulled back, ``self`` is the later one."""
        return MovedStretch(later.M @ self.M, later.P + later.M @ self.P @ later.M.mT)


class MatrixCells:
    """A and g² as functions of clock time, on cells of it.

    Args:
        drift, noise: functions A and g² of clock times (…) that return (…, K, K) in float64.
        backward: function B of the diffusion backwards, likewise.
        bounds: the bounds of the cells, (n + 1,) increasing clock times from 0. Later times are
            taken for the last.
        dispersion: a differentiable root of g², likewise.
        K: the number of variables.
    """

    def __init__(
        self, drift: Field, noise: Field, backward: Field, bounds: Tensor, dispersion: Field, K: int
    ) -> None:
        self.drift, self.noise, self.backward = drift, noise, backward
        self.dispersion, self.bounds, self.K = dispersion, bounds, K
        self.has_graph = torch.is_grad_enabled()
        nodes, weights = kernels.gauss_legendre(max(LEAST_NODES, K))
        self._nodes, self._weights = nodes.to(bounds), weights.to(bounds)
        length = torch.cat([self._nodes, bounds.new_ones(1)])
        forward = stretches(length, (length - 1) / 2)
        self._stretches = torch.cat([-forward, forward[-1:]])  # back from each node; whole cells
        self._gauss = 0.5 + bounds.new_tensor([-math.sqrt(3) / 6, math.sqrt(3) / 6])

    def slowed(self, scale: Tensor) -> MatrixCells:
        """The same A and g² with clock times multiplied by ``scale``, 0-dim."""
        slowed = MatrixCells(
            lambda tau: self.drift(tau / scale),
            lambda tau: self.noise(tau / scale),
            lambda tau: self.backward(tau / scale),
            scale * self.bounds,
            lambda tau: self.dispersion(tau / scale),
            self.K,
        )
        slowed.matrices = self.matrices._replace(h=scale * self.matrices.h)
        return slowed

    def reversed(self) -> MatrixCells:
        """B and g² from the end backwards."""
        end = self.bounds[-1]
        return MatrixCells(
            lambda tau: self.backward((end - tau).clamp_min(0)),
            lambda tau: self.noise((end - tau).clamp_min(0)),
            lambda tau: self.drift((end - tau).clamp_min(0)),
            end - self.bounds.flip(0),
            lambda tau: self.dispersion((end - tau).clamp_min(0)),
            self.K,
        )

    # -- matrices ----------------------------------------------------------------------------------

    def read(self, start: Tensor, h: Tensor) -> CellMatrices:
        """The matrices of n stretches of lengths h from clock times ``start``, (n,) each."""
        A = self.drift(start[..., None] + h[..., None] * self._gauss)
        GG = self.noise(start[..., None] + h[..., None] * self._nodes)
        return CellMatrices(A[..., 0, :, :], A[..., 1, :, :], GG, h)

    @made_once
    def matrices(self) -> CellMatrices:
        """The matrices of all cells."""
        return self.read(self.bounds[:-1], self.bounds.diff())

    @made_once
    def norms(self) -> Tensor:
        """The Frobenius norm of A in each cell, (n,)."""
        both = torch.stack([self.matrices.A1.detach(), self.matrices.A2.detach()])
        norms: Tensor = torch.linalg.matrix_norm(both)
        return norms.amax(0)

    @made_once
    def travelled(self) -> Tensor:
        """∫ ‖A‖ up to each bound, (n + 1,), without gradient."""
        return _from_zero((self.norms * self.matrices.h.detach()).cumsum(0))

    @made_once
    def traces(self) -> Tensor:
        """∫ tr A up to each bound, (n + 1,)."""
        A = self.matrices
        mean = (A.A1 + A.A2).diagonal(dim1=-2, dim2=-1).sum(-1) / 2
        return _from_zero((mean * A.h).cumsum(0))

    def locate(self, tau: Tensor) -> tuple[Tensor, Tensor]:
        """Times clamped to the grid, and the indices of their cells."""
        tau = tau - (tau.detach() - self.bounds[-1].detach()).clamp_min(0)
        cell = torch.searchsorted(self.bounds.detach(), tau.detach().contiguous(), right=True) - 1
        return tau, cell.clamp(0, len(self.bounds) - 2)

    def trace(self, tau: Tensor) -> Tensor:
        """∫ tr A up to clock times, like tau."""
        tau, cell = self.locate(tau)
        begin = self.bounds[cell]
        h = tau - begin
        A = self.drift(begin[..., None] + h[..., None] * self._gauss)
        mean = A.diagonal(dim1=-2, dim2=-1).sum((-2, -1)) / 2
        return self.traces[cell] + mean * h

    # -- moments -----------------------------------------------------------------------------------

    def exponentials(self, read: CellMatrices) -> tuple[Tensor, Tensor, Tensor]:
        """M, M^{-1} (n, K, K), and back from each node to the beginning (n, q, K, K)."""
        h = read.h[..., None, None]
        E = exponentials(h * read.A1, h * read.A2, self._stretches)
        return E[..., -1, :, :], E[..., -2, :, :], E[..., :-2, :, :]

    def steps(self, read: CellMatrices) -> MovedCells:
        """The moments of stretches within a cell."""
        M, W, back = self.exponentials(read)
        both = torch.stack([M[..., None, :, :] @ back, back])
        weights = (read.h[..., None] * self._weights)[..., None, None]
        P = (both @ (weights * read.GG) @ both.mT).sum(-3)
        P = (P + P.mT) / 2
        return MovedCells(M, P[0], W, P[1])

    def rooted_steps(self, start: Tensor, h: Tensor, pulled_back: bool) -> MovedStretch:
        """M and columns C (n, K, q K) with P = C Cᵀ; or M^{-1} and those of P̃, pulled back."""
        M, W, N = self.exponentials(self.read(start, h))
        if not pulled_back:
            N = M[..., None, :, :] @ N
        weights = torch.where(h > 0, h, 1.0).sqrt()[..., None] * self._weights.sqrt()
        weights = weights * (h > 0)[..., None]
        G = self.dispersion(start[..., None] + h[..., None] * self._nodes)
        columns = ((weights[..., None, None] * N) @ G).movedim(-3, -2).flatten(-2)
        return MovedStretch(W if pulled_back else M, columns)


def composed(cells: MovedCells) -> tuple[Tensor, Tensor]:
    """M and P over all cells (n, …)."""
    M, P = cells.M, cells.P
    while len(M) > 1:
        odd = len(M) % 2
        last = M[len(M) - odd :], P[len(M) - odd :]
        first, later = M[0 : len(M) - odd : 2], M[1::2]
        P = P[1::2] + later @ P[0 : len(P) - odd : 2] @ later.mT
        M = later @ first
        if odd:
            M, P = torch.cat([M, last[0]]), torch.cat([P, last[1]])
    return M[0], P[0]


def _from_zero(sums: Tensor) -> Tensor:
    return torch.cat([sums.new_zeros(1), sums])
