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

from collections.abc import Iterator

import torch
from torch import Tensor

from pyro_mdm.diffusions import kernels
from pyro_mdm.diffusions.kernels import TRAVELLED, HalfSteps, Moved, Propagator, Root
from pyro_mdm.varying.cells import MatrixCells, MovedCells, MovedStretch, composed, made_once

__all__ = ["MagnusPropagator"]


class MagnusPropagator(Propagator):
    """The propagator of A and g² that are functions of clock time.

    Args:
        cells: the matrices on cells.
    """

    def __init__(self, cells: MatrixCells) -> None:
        self.cells, self.bounds, self.has_graph = cells, cells.bounds, torch.is_grad_enabled()
        self._ends: tuple[Tensor, bool, Tensor, MovedCells] | None = None
        self._forward = _Stretches(self, pulled_back=False)
        self._backward = _Stretches(self, pulled_back=True)

    def slowed(self, scale: Tensor) -> MagnusPropagator:
        """The propagator of the same A and g² with clock times multiplied by ``scale``, 0-dim."""
        return MagnusPropagator(self.cells.slowed(scale))

    @made_once
    def moved(self) -> MovedCells:
        """The moments of the cells."""
        return self.cells.steps(self.cells.matrices)

    # -- fields ------------------------------------------------------------------------------------

    def drift(self, tau: Tensor) -> Tensor:
        return self.cells.drift(tau)

    def noise(self, tau: Tensor) -> Tensor:
        return self.cells.noise(tau)

    def dispersion(self, tau: Tensor) -> Tensor:
        return self.cells.dispersion(tau)

    @property
    def speed(self) -> float:
        return float(self.cells.norms.max())

    def travelled(self, tau: Tensor) -> Tensor:
        cells = self.cells
        tau, cell = cells.locate(tau.detach())
        past = tau - self.bounds.detach()[cell]
        return cells.travelled[cell] + cells.norms[cell] * past

    def effort(self, tau: Tensor) -> Tensor:
        return self.travelled(tau) - 2 * self.cells.trace(tau.detach()).detach()

    def trace(self, start: Tensor | None, duration: Tensor) -> Tensor:
        if start is None:
            return self.cells.trace(duration)
        return self.cells.trace(start + duration) - self.cells.trace(start)

    # -- moments -----------------------------------------------------------------------------------

    def moments(self, start: Tensor | None, duration: Tensor) -> tuple[Tensor, Tensor]:
        if start is None:
            return self._from_zero(duration, pulled_back=False)
        return self._forward.moments(start, duration)

    def pulled_back(self, start: Tensor, duration: Tensor) -> tuple[Tensor, Tensor]:
        return self._backward.moments(start, duration)

    def since_start(self, tau: Tensor) -> Moved:
        travelled = self.travelled(tau)
        (M, P), near = self._from_zero(tau, pulled_back=False), travelled < TRAVELLED
        back = self._from_zero(tau, pulled_back=True) if bool(near.any()) else None
        return Moved(M, P, back, near, self.trace(None, tau), travelled)

    def _from_zero(self, tau: Tensor, pulled_back: bool) -> tuple[Tensor, Tensor]:
        """Moments from time 0; what both directions share is computed once for the same times."""
        grad = torch.is_grad_enabled()
        if self._ends is None or self._ends[0] is not tau or self._ends[1] != grad:
            flat, cell = self.cells.locate(tau.reshape(-1))
            begin = self.bounds[cell]
            steps = self.cells.steps(self.cells.read(begin, flat - begin))
            self._ends = tau, grad, cell, steps
        _, _, cell, steps = self._ends
        M, P, W, pulled = self._prefix
        if pulled_back:
            cell = cell.clamp_max(len(W) - 1)  # later cells are not needed
            moved = steps.one(True).then(MovedStretch(W[cell], pulled[cell]))
        else:
            moved = MovedStretch(M[cell], P[cell]).then(steps.one(False))
        K = moved.M.shape[-1]
        return moved.M.reshape(*tau.shape, K, K), moved.P.reshape(*tau.shape, K, K)

    @made_once
    def _prefix(self) -> MovedCells:
        """Moments from time 0 to each bound, (n + 1, K, K); pulled back while digits last."""
        cells = self.moved
        near = self.cells.travelled[:-1] < 25.0
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
        return composed(self.moved)

    def whole_pulled_back(self) -> tuple[Tensor, Tensor]:
        """M^{-1} and P̃ from the end to time 0, (K, K) each, where :meth:`travelled` is below 20."""
        return self._prefix.W[-1], self._prefix.pulled[-1]

    # -- roots -------------------------------------------------------------------------------------

    @made_once
    def basis(self) -> tuple[Tensor, Tensor]:
        """A basis of what noise reaches, common to all times, as from ``kernels.noise_basis``."""
        A = self.cells.matrices
        both = torch.cat([A.A1, A.A2]).detach()
        return kernels.noise_basis(both, A.GG[:, [0, -1]].detach().flatten(0, 1))

    @property
    def new(self) -> int:
        return self.cells.K

    def root(self, start: Tensor | None, duration: Tensor) -> Root:
        return self._root(self._forward, start, duration)

    def pulled_back_root(self, start: Tensor | None, duration: Tensor) -> Root:
        return self._root(self._backward, start, duration)

    def _root(self, stretches: _Stretches, start: Tensor | None, duration: Tensor) -> Root:
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

    @made_once
    def _reversed(self) -> MagnusPropagator:
        return MagnusPropagator(self.cells.reversed())

    def halves(self, start: Tensor, duration: Tensor) -> HalfSteps:
        back, half = self._reversed, duration / 2
        first = (self.bounds[-1] - (start + duration)).clamp_min(0)
        begins = torch.stack([first, first + half])
        M, _ = back.moments(begins, half)
        root, _, _, growth = back.root(begins, half)
        return HalfSteps(M[0], root[0], M[1], root[1], growth.amax(0))


class _Stretches:
    """Stretches of several cells, forward or pulled back."""

    def __init__(self, propagator: MagnusPropagator, *, pulled_back: bool) -> None:
        self._propagator, self._cells, self._pulled_back = propagator, propagator.cells, pulled_back
        self.has_graph = propagator.has_graph
        self._spans: list[MovedStretch] = []
        self._roots: list[Tensor] = []

    def _steps(self, start: Tensor, h: Tensor) -> MovedStretch:
        return self._cells.steps(self._cells.read(start, h)).one(self._pulled_back)

    def _join(self, first: MovedStretch, second: MovedStretch) -> MovedStretch:
        """The stretch of two that follow each other in time."""
        return second.then(first) if self._pulled_back else first.then(second)

    @made_once
    def _moved(self) -> MovedStretch:
        return self._propagator.moved.one(self._pulled_back)

    def _span(self, power: int) -> MovedStretch:
        """Moments over 2^power cells, from each cell that has so many after it."""
        while len(self._spans) <= power:
            if not self._spans:
                self._spans.append(self._moved)
                continue
            last, half = self._spans[-1], 2 ** (len(self._spans) - 1)
            with torch.set_grad_enabled(self.has_graph):
                earlier, later = (MovedStretch(*(t[p] for t in last)) for p in _halves(half))
                self._spans.append(self._join(earlier, later))
        return self._spans[power]

    def _root(self, power: int) -> Tensor:
        """Triangular roots of P of :meth:`_span`."""
        while len(self._roots) <= power:
            with torch.set_grad_enabled(self.has_graph):
                self._roots.append(self._next_root())
        return self._roots[power]

    def _next_root(self) -> Tensor:
        if not self._roots:
            bounds = self._cells.bounds
            columns = self._rooted_steps(bounds[:-1], bounds.diff()).P
        else:
            half = 2 ** (len(self._roots) - 1)
            earlier, later = _halves(half)
            M, R = self._span(len(self._roots) - 1).M, self._roots[-1]
            outer, inner = (earlier, later) if self._pulled_back else (later, earlier)
            columns = torch.cat([R[outer], M[outer] @ R[inner]], -1)
        return kernels.lower_triangular(columns)

    def _rooted_steps(self, start: Tensor, h: Tensor) -> MovedStretch:
        return self._cells.rooted_steps(start, h, self._pulled_back)

    def moments(self, start: Tensor, duration: Tensor) -> tuple[Tensor, Tensor]:
        """M and P from clock times ``start`` over durations, (…, K, K)."""
        shape = torch.broadcast_shapes(start.shape, duration.shape)
        end = (start + duration).reshape(-1)
        M, P = self.between(start.expand(shape).reshape(-1), end)
        return M.reshape(*shape, *M.shape[-2:]), P.reshape(*shape, *P.shape[-2:])

    def between(self, first: Tensor, last: Tensor) -> MovedStretch:
        """Moments from ``first`` to ``last``, clock times (m,)."""
        (first, i), (last, j) = self._cells.locate(first), self._cells.locate(last)
        if bool((i == j).all()):
            return self._steps(first, last - first)
        start, h = self._ends(first, last, i, j)
        moved, ending = _split(self._steps(start, h))
        for index, power, at in _powers(i, j):
            longer = self._join(moved.at(index), self._span(power).at(at))
            moved = MovedStretch(
                *(t.index_put((index,), new) for t, new in zip(moved, longer, strict=True))
            )
        return self._join(moved, ending)

    def columns(self, first: Tensor, last: Tensor) -> Tensor:
        """Columns C (m, K, …) with C Cᵀ the P of :meth:`between`."""
        (first, i), (last, j) = self._cells.locate(first), self._cells.locate(last)
        if bool((i == j).all()):
            return self._rooted_steps(first, last - first).P
        start, h = self._ends(first, last, i, j)
        (M, columns), ending = _split(self._rooted_steps(start, h))
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
        bounds, same = self._cells.bounds, i == j
        head = torch.where(same, last, bounds[i + 1]) - first
        tail = torch.where(same, last, bounds[j])
        return torch.cat([first, tail]), torch.cat([head, last - tail])


def _halves(count: int) -> tuple[slice, slice]:
    """The slices without the last and without the first ``count``."""
    return slice(None, -count), slice(count, None)


def _split(both: MovedStretch) -> tuple[MovedStretch, MovedStretch]:
    m = len(both.M) // 2
    return MovedStretch(*(t[:m] for t in both)), MovedStretch(*(t[m:] for t in both))


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
