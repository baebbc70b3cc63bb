r"""Propagators of linear diffusions whose A and g² vary in time, by Magnus steps over cells.

Clock time is cut into cells of length h. In a cell A is evaluated at the two Gauss points c_1 < c_2
and replaced by the straight line through them, with mean Ā and difference Δ = √3 (A(c_2) - A(c_1))
over the cell. The exponent of a stretch of length δ h centred at ½ + m of the cell is

    Ω = X - [X, Y]/12 + [[X, Y], Y]/240 + [X, [X, [X, Y]]]/720,    M = exp(Ω),

with X = δ h (Ā + m Δ) and Y = δ² h Δ. Over the whole cell the first two terms are the fourth-order
Magnus step h/2 (A_1 + A_2) - √3 h²/12 [A_1, A_2]. The other two, of fifth order, keep the digits of
variables that noise reaches through many others, whose variance begins like a high power of h.
Noise is a Gauss-Legendre quadrature of ``M(·, u) g²(u) M(·, u)ᵀ`` over the cell, with g² at every
node. The error of a straight line is orthogonal to straight lines, so that noise is of fourth order
like the mean.

Cells compose by a parallel prefix product, stretches of several cells by products of 1, 2, 4, … of
them, and a time inside a cell takes one more step from the cell's beginning. Where nothing varies,
all of this is exact.

Source of the step: Blanes, Casas, Oteo & Ros, "The Magnus expansion and some of its applications",
Physics Reports 470 (2009), section 5: the sixth-order exponent, on a straight line.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mdm.diffusions import kernels
from pyro_mdm.diffusions.propagator import Halves, Propagator, Root
from pyro_mdm.varying.exponents import exponentials, stretches

__all__ = ["MAX_CELLS", "REACH", "CellMatrices", "MagnusPropagator", "MovedCells"]

COMPLEX_STEP = 1e-30
LEAST_NODES = 6
REACH = 0.4
"""‖A‖h of a cell; longer ones are cut."""
MAX_CELLS = 2**14
"""The most cells that a path of matrices is cut into."""

Field = Callable[[Tensor], Tensor]
"""Clock times (…) -> matrices (…, K, K)."""


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

    def one(self, pulled_back: bool) -> _Moved:
        return _Moved(self.W, self.pulled) if pulled_back else _Moved(self.M, self.P)


class _Moved(NamedTuple):
    """M and P of stretches, or pulled back M^{-1} and P̃, (n, K, K) each."""

    M: Tensor
    P: Tensor

    def at(self, index: Tensor) -> _Moved:
        return _Moved(self.M[index], self.P[index])

    def then(self, later: _Moved) -> _Moved:
        """The composition of two stretches; of two pulled back, ``self`` is the later one."""
        return _Moved(later.M @ self.M, later.P + later.M @ self.P @ later.M.mT)


class MagnusPropagator(Propagator):
    """The propagator of A and g² that are functions of clock time.

    Args:
        drift, noise: functions A and g² of clock times (…) that return (…, K, K) in float64.
        backward: function B of :meth:`halves`, likewise.
        bounds: the bounds of the cells, (n + 1,) increasing clock times from 0. Later times are
            taken for the last.
        dispersion: a differentiable root of g², likewise.
        K: the number of variables.
    """

    def __init__(
        self, drift: Field, noise: Field, backward: Field, bounds: Tensor, dispersion: Field, K: int
    ) -> None:
        self._A, self._GG, self._back = drift, noise, backward
        self._root, self.bounds, self._K = dispersion, bounds, K
        nodes, weights = kernels.gauss_legendre(max(LEAST_NODES, K))
        self._nodes, self._weights = nodes.to(bounds), weights.to(bounds)
        self._ends: tuple[Tensor, bool, Tensor, MovedCells] | None = None
        length = torch.cat([self._nodes, bounds.new_ones(1)])
        forward = stretches(length, (length - 1) / 2)
        self._stretches = torch.cat([-forward, forward[-1:]])  # back from each node; whole cells
        self._gauss = 0.5 + bounds.new_tensor([-math.sqrt(3) / 6, math.sqrt(3) / 6])

    def slowed(self, scale: Tensor) -> MagnusPropagator:
        """The propagator of the same A and g² with clock times multiplied by ``scale``, 0-dim."""
        slowed = MagnusPropagator(
            lambda tau: self._A(tau / scale),
            lambda tau: self._GG(tau / scale),
            lambda tau: self._back(tau / scale),
            scale * self.bounds,
            lambda tau: self.dispersion(tau / scale),
            self._K,
        )
        slowed.cells = self.cells._replace(h=scale * self.cells.h)
        return slowed

    def with_moved(self, moved: MovedCells) -> MagnusPropagator:
        """A copy with these moments of the cells, :attr:`moved`."""
        other = copy.copy(self)
        for name in ("_prefix", "_forward", "_backward", "_reversed"):
            other.__dict__.pop(name, None)
        other._ends, other.moved = None, moved
        return other

    # -- fields ------------------------------------------------------------------------------------

    def drift(self, tau: Tensor) -> Tensor:
        return self._A(tau)

    def noise(self, tau: Tensor) -> Tensor:
        return self._GG(tau)

    def dispersion(self, tau: Tensor) -> Tensor:
        return self._root(tau)

    def read(self, start: Tensor, h: Tensor) -> CellMatrices:
        """The matrices of n stretches of lengths h from clock times ``start``, (n,) each."""
        A = self._A(start[..., None] + h[..., None] * self._gauss)
        GG = self._GG(start[..., None] + h[..., None] * self._nodes)
        return CellMatrices(A[..., 0, :, :], A[..., 1, :, :], GG, h)

    @cached_property
    def cells(self) -> CellMatrices:
        return self.read(self.bounds[:-1], self.bounds.diff())

    @cached_property
    def _norms(self) -> Tensor:
        """The Frobenius norm of A in each cell, (n,)."""
        both = torch.stack([self.cells.A1.detach(), self.cells.A2.detach()])
        norms: Tensor = torch.linalg.matrix_norm(both)
        return norms.amax(0)

    @property
    def speed(self) -> Tensor:
        return self._norms.max()

    @property
    def decay(self) -> Tensor:
        middle = (self.cells.A1 + self.cells.A2).detach() / 2
        slowest: Tensor = -torch.linalg.eigvals(middle).real.amax(-1)
        return slowest.mean().clamp_min(1e-12)

    @cached_property
    def _travelled(self) -> Tensor:
        return _from_zero((self._norms * self.cells.h.detach()).cumsum(0))

    @cached_property
    def _traces(self) -> Tensor:
        """∫ tr A up to each bound, (n + 1,)."""
        A = self.cells
        mean = (A.A1 + A.A2).diagonal(dim1=-2, dim2=-1).sum(-1) / 2
        return _from_zero((mean * A.h).cumsum(0))

    def travelled(self, tau: Tensor) -> Tensor:
        tau, cell = self.locate(tau.detach())
        past = tau - self.bounds.detach()[cell]
        return self._travelled[cell] + self._norms[cell] * past

    def effort(self, tau: Tensor) -> Tensor:
        return self.travelled(tau) - 2 * self.trace(None, tau.detach()).detach()

    def trace(self, start: Tensor | None, duration: Tensor, copies: int = 1) -> Tensor:
        if start is None:
            return copies * self._trace(duration)
        return copies * (self._trace(start + duration) - self._trace(start))

    def _trace(self, tau: Tensor) -> Tensor:
        tau, cell = self.locate(tau)
        begin = self.bounds[cell]
        h = tau - begin
        A = self.drift(begin[..., None] + h[..., None] * self._gauss)
        mean = A.diagonal(dim1=-2, dim2=-1).sum((-2, -1)) / 2
        return self._traces[cell] + mean * h

    def locate(self, tau: Tensor) -> tuple[Tensor, Tensor]:
        """Times clamped to the grid, and the indices of their cells."""
        tau = tau - (tau.detach() - self.bounds[-1].detach()).clamp_min(0)
        cell = torch.searchsorted(self.bounds.detach(), tau.detach().contiguous(), right=True) - 1
        return tau, cell.clamp(0, len(self.bounds) - 2)

    # -- moments -----------------------------------------------------------------------------------

    def moments(
        self, start: Tensor | None, duration: Tensor, latest: float | None = None
    ) -> tuple[Tensor, Tensor]:
        if start is None:
            return self._from_zero(duration, pulled_back=False)
        return self._moved(self._forward, start, duration)

    def pulled_back(self, start: Tensor, duration: Tensor) -> tuple[Tensor, Tensor]:
        return self._moved(self._backward, start, duration)

    def pulled_back_at(self, near: Tensor, tau: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        W, P = self._from_zero(tau, pulled_back=True)
        K = W.shape[-1]
        return W.reshape(-1, K, K)[index], P.reshape(-1, K, K)[index]

    def _from_zero(self, tau: Tensor, pulled_back: bool) -> tuple[Tensor, Tensor]:
        """Moments from time 0; what both directions share is computed once for the same times."""
        grad = torch.is_grad_enabled()
        if self._ends is None or self._ends[0] is not tau or self._ends[1] != grad:
            flat, cell = self.locate(tau.reshape(-1))
            begin = self.bounds[cell]
            self._ends = tau, grad, cell, self.steps(self.read(begin, flat - begin))
        _, _, cell, steps = self._ends
        M, P, W, pulled = self._prefix
        if pulled_back:
            cell = cell.clamp_max(len(W) - 1)  # later cells are not needed
            moved = steps.one(True).then(_Moved(W[cell], pulled[cell]))
        else:
            moved = _Moved(M[cell], P[cell]).then(steps.one(False))
        K = moved.M.shape[-1]
        return moved.M.reshape(*tau.shape, K, K), moved.P.reshape(*tau.shape, K, K)

    @cached_property
    def moved(self) -> MovedCells:
        """The moments of the cells."""
        return self.steps(self.cells)

    def moved_rates(self) -> MovedCells:
        """The derivative of :attr:`moved` by the scale of :meth:`slowed` at 1, without gradient.

        It is taken by a complex step, exact to rounding.
        """
        with torch.no_grad():
            steps = self.steps(self.cells._replace(h=self.cells.h * (1 + COMPLEX_STEP * 1j)))
        return MovedCells(*(t.imag / COMPLEX_STEP for t in steps))

    @cached_property
    def _prefix(self) -> MovedCells:
        """Moments from time 0 to each bound, (n + 1, K, K); pulled back while digits last."""
        cells = self.moved
        near = self._travelled[:-1] < 25.0
        eye = torch.eye(cells.M.shape[-1]).to(cells.M)
        both = torch.stack([cells.M, torch.where(near[:, None, None], cells.W, eye).mT])
        P, step = cells.P, 1
        while step < len(P):
            later = both[:, step:]
            P = torch.cat([P[:step], P[step:] + later[0] @ P[:-step] @ later[0].mT])
            both = torch.cat([both[:, :step], later @ both[:, :-step]], 1)
            step *= 2
        both = torch.cat([eye.expand(2, 1, *eye.shape), both], 1)
        M, W = both[0], both[1].mT
        P = torch.cat([torch.zeros_like(eye)[None], P])
        n = max(1, int(near.sum()))
        W = W[: n + 1]
        gained = W[:-1] @ cells.pulled[:n] @ W[:-1].mT
        pulled = torch.cat([torch.zeros_like(eye)[None], gained.cumsum(0)])
        return MovedCells(M, P, W, pulled)

    def whole(self) -> tuple[Tensor, Tensor]:
        """M and P from time 0 to the end, (K, K) each."""
        return _composed(self.moved)

    def whole_slowed(self, scales: Tensor) -> tuple[Tensor, Tensor]:
        """M and P of :meth:`slowed` by each of ``scales`` (m,), on these cells, (m, K, K)."""
        n, m = len(self.cells.h), len(scales)
        cells = CellMatrices(*(t[:, None].expand(n, m, *t.shape[1:]) for t in self.cells))
        cells = cells._replace(h=scales * cells.h)
        steps = self.steps(CellMatrices(*(t.flatten(0, 1) for t in cells)))
        return _composed(MovedCells(*(t.unflatten(0, (n, m)) for t in steps)))

    def whole_pulled_back(self) -> tuple[Tensor, Tensor]:
        """M^{-1} and P̃ from the end to time 0, (K, K) each, where :meth:`travelled` is below 20."""
        return self._prefix.W[-1], self._prefix.pulled[-1]

    @cached_property
    def _forward(self) -> _Stretches:
        return _Stretches(self, pulled_back=False)

    @cached_property
    def _backward(self) -> _Stretches:
        return _Stretches(self, pulled_back=True)

    def _moved(
        self, stretches: _Stretches, start: Tensor, duration: Tensor
    ) -> tuple[Tensor, Tensor]:
        shape = torch.broadcast_shapes(start.shape, duration.shape)
        end = (start + duration).reshape(-1)
        M, P = stretches.between(start.expand(shape).reshape(-1), end)
        return M.reshape(*shape, *M.shape[-2:]), P.reshape(*shape, *P.shape[-2:])

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
        P = (both @ (weights * read.GG).to(both.dtype) @ both.mT).sum(-3)
        P = (P + P.mT) / 2
        return MovedCells(M, P[0], W, P[1])

    def rooted_steps(self, start: Tensor, h: Tensor, pulled_back: bool) -> _Moved:
        """M and columns C (n, K, q K) with P = C Cᵀ; or M^{-1} and those of P̃, pulled back."""
        M, W, N = self.exponentials(self.read(start, h))
        if not pulled_back:
            N = M[..., None, :, :] @ N
        weights = torch.where(h > 0, h, 1.0).sqrt()[..., None] * self._weights.sqrt()
        weights = weights * (h > 0)[..., None]
        G = self.dispersion(start[..., None] + h[..., None] * self._nodes)
        columns = ((weights[..., None, None] * N) @ G).movedim(-3, -2).flatten(-2)
        return _Moved(W if pulled_back else M, columns)

    # -- roots -------------------------------------------------------------------------------------

    @cached_property
    def basis(self) -> tuple[Tensor, Tensor]:
        """A basis of what noise reaches, common to all times, as from ``kernels.noise_basis``."""
        A = self.cells
        both = torch.cat([A.A1, A.A2]).detach()
        return kernels.noise_basis(both, A.GG[:, [0, -1]].detach().flatten(0, 1))

    @property
    def new(self) -> int:
        return self._K

    def root(self, start: Tensor | None, duration: Tensor, latest: float | None = None) -> Root:
        return self._rooted(self._forward, start, duration)

    def pulled_back_root(self, start: Tensor | None, duration: Tensor) -> Root:
        return self._rooted(self._backward, start, duration)

    def _rooted(self, stretches: _Stretches, start: Tensor | None, duration: Tensor) -> Root:
        """A root of P, by QR of the columns C with P = C Cᵀ.

        P itself has half of the digits where its graded axes turn with time.
        """
        kernels.check_reached(self.basis[0])
        start = torch.zeros_like(duration) if start is None else start
        start, duration = torch.broadcast_tensors(start, duration)
        columns = stretches.columns(start.reshape(-1), (start + duration).reshape(-1))
        L = kernels.lower_triangular(columns).reshape(*duration.shape, *columns.shape[-2:-1] * 2)
        pivots = L.diagonal(dim1=-2, dim2=-1)
        growth = (L.detach().norm(dim=-1) / pivots.detach()).amax(-1)
        growth = torch.nan_to_num(growth, nan=torch.inf, posinf=torch.inf)
        return Root(L, kernels.inverse_tril(L), 2 * pivots.log().sum(-1), growth)

    # -- the diffusion of B and g² backwards -------------------------------------------------------

    @cached_property
    def _reversed(self) -> MagnusPropagator:
        end = self.bounds[-1]
        return MagnusPropagator(
            lambda tau: self._back((end - tau).clamp_min(0)),
            lambda tau: self._GG((end - tau).clamp_min(0)),
            lambda tau: self._A((end - tau).clamp_min(0)),
            end - self.bounds.flip(0),
            lambda tau: self.dispersion((end - tau).clamp_min(0)),
            self._K,
        )

    def halves(self, start: Tensor, duration: Tensor) -> Halves:
        back, half = self._reversed, duration / 2
        first = (self.bounds[-1] - (start + duration)).clamp_min(0)
        begins = torch.stack([first, first + half])
        M, _ = back.moments(begins, half)
        root, _, _, growth = back.root(begins, half)
        return Halves(M[0], root[0], M[1], root[1], growth.amax(0))


class _Stretches:
    """Stretches of several cells, forward or pulled back."""

    def __init__(self, propagator: MagnusPropagator, *, pulled_back: bool) -> None:
        self._propagator, self._pulled_back = propagator, pulled_back
        self._spans: list[_Moved] = []
        self._roots: list[Tensor] = []

    def _steps(self, start: Tensor, h: Tensor) -> _Moved:
        return self._propagator.steps(self._propagator.read(start, h)).one(self._pulled_back)

    def _join(self, first: _Moved, second: _Moved) -> _Moved:
        """The stretch of two that follow each other in time."""
        return second.then(first) if self._pulled_back else first.then(second)

    @cached_property
    def _moved(self) -> _Moved:
        return self._propagator.moved.one(self._pulled_back)

    def _span(self, power: int) -> _Moved:
        """Moments over 2^power cells, from each cell that has so many after it."""
        while len(self._spans) <= power:
            if not self._spans:
                self._spans.append(self._moved)
                continue
            last, half = self._spans[-1], 2 ** (len(self._spans) - 1)
            earlier, later = (_Moved(*(t[p] for t in last)) for p in _halves(half))
            self._spans.append(self._join(earlier, later))
        return self._spans[power]

    def _root(self, power: int) -> Tensor:
        """Triangular roots of P of :meth:`_span`."""
        while len(self._roots) <= power:
            if not self._roots:
                bounds = self._propagator.bounds
                steps = self._propagator.rooted_steps(bounds[:-1], bounds.diff(), self._pulled_back)
                columns = steps.P
            else:
                half = 2 ** (len(self._roots) - 1)
                earlier, later = _halves(half)
                M, R = self._span(len(self._roots) - 1).M, self._roots[-1]
                outer, inner = (earlier, later) if self._pulled_back else (later, earlier)
                columns = torch.cat([R[outer], M[outer] @ R[inner]], -1)
            self._roots.append(kernels.lower_triangular(columns))
        return self._roots[power]

    def between(self, first: Tensor, last: Tensor) -> _Moved:
        """Moments from ``first`` to ``last``, clock times (m,)."""
        (first, i), (last, j) = self._propagator.locate(first), self._propagator.locate(last)
        if bool((i == j).all()):
            return self._steps(first, last - first)
        start, h = self._ends(first, last, i, j)
        moved, ending = _split(self._steps(start, h))
        for index, power, at in _powers(i, j):
            longer = self._join(moved.at(index), self._span(power).at(at))
            moved = _Moved(
                *(t.index_put((index,), new) for t, new in zip(moved, longer, strict=True))
            )
        return self._join(moved, ending)

    def columns(self, first: Tensor, last: Tensor) -> Tensor:
        """Columns C (m, K, …) with C Cᵀ the P of :meth:`between`."""
        (first, i), (last, j) = self._propagator.locate(first), self._propagator.locate(last)
        if bool((i == j).all()):
            return self._propagator.rooted_steps(first, last - first, self._pulled_back).P
        start, h = self._ends(first, last, i, j)
        (M, columns), ending = _split(self._propagator.rooted_steps(start, h, self._pulled_back))
        for index, power, at in _powers(i, j):
            span, R = self._span(power).M[at], self._root(power)[at]
            if self._pulled_back:
                R, carried = M[index] @ R, columns
                M = M.index_put((index,), M[index] @ span)
            else:
                carried = columns.index_put((index,), span @ columns[index])
            more = R.new_zeros(len(first), *R.shape[-2:]).index_put((index,), R)
            columns = torch.cat([carried, more], -1)
        if self._pulled_back:
            return torch.cat([columns, M @ ending.P], -1)
        return torch.cat([ending.M @ columns, ending.P], -1)

    def _ends(self, first: Tensor, last: Tensor, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        """Starts and lengths of the stretches before and after whole cells, (2 m,)."""
        bounds, same = self._propagator.bounds, i == j
        head = torch.where(same, last, bounds[i + 1]) - first
        tail = torch.where(same, last, bounds[j])
        return torch.cat([first, tail]), torch.cat([head, last - tail])


def _composed(cells: MovedCells) -> tuple[Tensor, Tensor]:
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


def _halves(count: int) -> tuple[slice, slice]:
    """The slices without the last and without the first ``count``."""
    return slice(None, -count), slice(count, None)


def _split(both: _Moved) -> tuple[_Moved, _Moved]:
    m = len(both.M) // 2
    return _Moved(*(t[:m] for t in both)), _Moved(*(t[m:] for t in both))


def _powers(i: Tensor, j: Tensor) -> Iterator[tuple[Tensor, int, Tensor]]:
    """The whole cells between cells i and j (m,) as spans of 2^power cells.

    Yields a power, for those of m whose span it is, with its first cells: (which, power, first).
    """
    count, at = (j - i - 1).clamp_min(0), i + 1
    for power in range(int(count.max()).bit_length()):
        taken = (count >> power) % 2 == 1
        index = taken.nonzero()[:, 0]
        if len(index):
            yield index, power, at[index]
        at = at + taken * 2**power


def _from_zero(sums: Tensor) -> Tensor:
    return torch.cat([sums.new_zeros(1), sums])
