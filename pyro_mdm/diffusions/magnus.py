r"""Linear diffusions whose Q and D vary in time and do not commute: Magnus steps over cells.

Clock time is cut into cells of length h. In a cell A is read at its two Gauss points c_1 < c_2 and
taken for the straight line through them, with mean Ā and difference Δ = √3 (A(c_2) - A(c_1)) over
the cell; the exponent of a stretch of length δ h about the place ½ + m of the cell is

    Ω = X - [X, Y]/12 + [[X, Y], Y]/240 + [X, [X, [X, Y]]]/720,    M = exp(Ω),

with X = δ h (Ā + m Δ) and Y = δ² h Δ. Over the whole cell its first two terms are the fourth-order
Magnus step h/2 (A_1 + A_2) - √3 h²/12 [A_1, A_2]; the other two, of the fifth order, keep digits of
what noise reaches through many variables, which begins like a high power of h. Noise is a sum of
positive terms, Gauss-Legendre quadrature of ``M(·, u) g²(u) M(·, u)ᵀ`` over the cell with g² read
at every node. What a straight line leaves out is orthogonal to straight lines, so that noise is of
the fourth order like the mean.

Cells compose by a parallel prefix product, and stretches of several cells by products of 1, 2, 4, …
of them; a time inside a cell by a step of its own from the cell's beginning. Where nothing varies,
each of these is exact.

Source of the step: Blanes, Casas, Oteo & Ros, "The Magnus expansion and some of its applications",
Physics Reports 470 (2009), section 5, whose sixth-order exponent this is on a straight line.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_mdm.diffusions import kernels
from pyro_mdm.diffusions.propagator import Halves, Propagator, Root

__all__ = ["MAX_CELLS", "MagnusPropagator"]

TAYLOR_ORDER = 19  # of exp at ‖Ω‖ ≤ ½, 5 groups of 4 powers
COEFFICIENTS = torch.tensor(
    [[1 / math.factorial(4 * j + i) for i in range(4)] for j in range(5)], dtype=torch.float64
)
LEAST_NODES = 8
REACH = 0.4
"""‖A‖h of a cell; longer ones are cut."""
MAX_CELLS = 2**14

Field = Callable[[Tensor], Tensor]
"""Clock times (…) -> matrices (…, K, K)."""


class _Read(NamedTuple):
    """What cells, or stretches of them, are made of."""

    A1: Tensor  # at the Gauss points, (n, K, K)
    A2: Tensor
    GG: Tensor  # at the nodes of the noise, (n, q, K, K)
    h: Tensor  # (n,)


class _Moved(NamedTuple):
    """M and P, or pulled back M^{-1} and P̃, (n, K, K)."""

    M: Tensor
    P: Tensor

    def at(self, index: Tensor) -> _Moved:
        return _Moved(self.M[index], self.P[index])

    def then(self, later: _Moved) -> _Moved:
        """Of two stretches that follow each other, forward; pulled back, this is the later one."""
        return _Moved(later.M @ self.M, later.P + later.M @ self.P @ later.M.mT)


class MagnusPropagator(Propagator):
    """Of Q and D that are functions of clock time.

    Args:
        Q, D: of clock times (…), (…, K, K) in float64.
        stationary: Σ_∞ (K, K).
        bounds: (n + 1,) increasing clock times from 0, the cells' bounds. Times beyond the last are
            taken for it.
        dispersion: a differentiable root of 2 D; by default a triangular one.
    """

    def __init__(
        self,
        Q: Field,
        D: Field,
        stationary: Tensor,
        bounds: Tensor,
        dispersion: Field | None = None,
    ) -> None:
        self._Q, self._D, self._stationary = Q, D, stationary
        self._precision = torch.linalg.inv(stationary)
        self._root, self.bounds = dispersion, bounds
        K = stationary.shape[-1]
        nodes, weights = np.polynomial.legendre.leggauss(max(LEAST_NODES, K))
        self._nodes = torch.from_numpy(nodes / 2 + 0.5).to(bounds)
        self._weights = torch.from_numpy(weights / 2).to(bounds)
        self._gauss = 0.5 + bounds.new_tensor([-math.sqrt(3) / 6, math.sqrt(3) / 6])

    # -- fields ------------------------------------------------------------------------------------

    def drift(self, tau: Tensor) -> Tensor:
        return -(self._Q(tau) + self._D(tau)) @ self._precision

    def noise(self, tau: Tensor) -> Tensor:
        return 2 * self._D(tau)

    def dispersion(self, tau: Tensor) -> Tensor:
        if self._root is not None:
            return self._root(tau)
        return kernels.semidefinite_cholesky(self.noise(tau))

    def _read(self, start: Tensor, h: Tensor) -> _Read:
        """Of stretches (n,) from ``start``."""
        places = torch.cat([self._gauss, self._nodes])
        tau = start[..., None] + h[..., None] * places
        D = self._D(tau)
        A = -(self._Q(tau[..., :2]) + D[..., :2, :, :]) @ self._precision
        return _Read(A[..., 0, :, :], A[..., 1, :, :], 2 * D[..., 2:, :, :], h)

    @cached_property
    def _cells(self) -> _Read:
        return self._read(self.bounds[:-1], self.bounds.diff())

    @cached_property
    def _norms(self) -> Tensor:
        """‖A‖ in each cell, (n,)."""
        both = torch.stack([self._cells.A1.detach(), self._cells.A2.detach()])
        return torch.linalg.matrix_norm(both, ord=2).amax(0)

    @property
    def speed(self) -> Tensor:
        return self._norms.max()

    @property
    def decay(self) -> Tensor:
        middle = (self._cells.A1 + self._cells.A2).detach() / 2
        return (-torch.linalg.eigvals(middle).real.amax(-1)).mean().clamp_min(1e-12)

    @cached_property
    def _travelled(self) -> Tensor:
        return _from_zero((self._norms * self._cells.h.detach()).cumsum(0))

    @cached_property
    def _traces(self) -> Tensor:
        """∫ tr A up to each bound, (n + 1,)."""
        A = self._cells
        mean = (A.A1 + A.A2).diagonal(dim1=-2, dim2=-1).sum(-1) / 2
        return _from_zero((mean * A.h).cumsum(0))

    def travelled(self, tau: Tensor) -> Tensor:
        tau, cell = self._locate(tau.detach())
        past = tau - self.bounds.detach()[cell]
        return self._travelled[cell] + self._norms[cell] * past

    def effort(self, tau: Tensor) -> Tensor:
        return self.travelled(tau) - 2 * self.trace(None, tau.detach()).detach()

    def trace(self, start: Tensor | None, duration: Tensor) -> Tensor:
        if start is None:
            return self._trace(duration)
        return self._trace(start + duration) - self._trace(start)

    def _trace(self, tau: Tensor) -> Tensor:
        tau, cell = self._locate(tau)
        begin = self.bounds[cell]
        h = tau - begin
        A = self.drift(begin[..., None] + h[..., None] * self._gauss)
        mean = A.diagonal(dim1=-2, dim2=-1).sum((-2, -1)) / 2
        return self._traces[cell] + mean * h

    def _locate(self, tau: Tensor) -> tuple[Tensor, Tensor]:
        """Times kept within the grid, and their cells."""
        tau = tau - (tau.detach() - self.bounds[-1].detach()).clamp_min(0)
        cell = torch.searchsorted(self.bounds.detach(), tau.detach().contiguous(), right=True) - 1
        return tau, cell.clamp(0, len(self.bounds) - 2)

    # -- moments -----------------------------------------------------------------------------------

    def moments(self, start: Tensor | None, duration: Tensor) -> tuple[Tensor, Tensor]:
        return self._moved(self._forward, start, duration)

    def pulled_back(self, start: Tensor | None, duration: Tensor) -> tuple[Tensor, Tensor]:
        return self._moved(self._backward, start, duration)

    @cached_property
    def _forward(self) -> _Stretches:
        return _Stretches(self, self._cells, pulled_back=False)

    @cached_property
    def _backward(self) -> _Stretches:
        return _Stretches(self, self._cells, pulled_back=True)

    def _moved(
        self, stretches: _Stretches, start: Tensor | None, duration: Tensor
    ) -> tuple[Tensor, Tensor]:
        shape = (
            duration.shape if start is None else torch.broadcast_shapes(start.shape, duration.shape)
        )
        if start is None:
            found = stretches.from_zero(duration.reshape(-1))
        else:
            end = (start + duration).reshape(-1)
            found = stretches.between(start.expand(shape).reshape(-1), end)
        K = self._stationary.shape[-1]
        return found.M.reshape(*shape, K, K), found.P.reshape(*shape, K, K)

    def steps(self, read: _Read, pulled_back: bool) -> _Moved:
        """M and P of stretches of at most a cell; pulled back, M^{-1} and P̃."""
        h = read.h[..., None, None]
        one = torch.ones_like(self._nodes[:1])
        # from a node to the end, or to the beginning; and last from end to end
        length = torch.cat([self._nodes if pulled_back else 1 - self._nodes, one])
        middle = (length - 1) / 2 if pulled_back else (1 - length) / 2
        Omega = _exponents(h * read.A1, h * read.A2, length, middle)
        E = _exp(-Omega if pulled_back else Omega)
        M, N = E[..., -1, :, :], E[..., :-1, :, :]
        weights = h[..., None] * self._weights[:, None, None]
        P = ((weights * N) @ read.GG @ N.mT).sum(-3)
        return _Moved(M, (P + P.mT) / 2)

    # -- roots -------------------------------------------------------------------------------------

    @cached_property
    def basis(self) -> tuple[Tensor, Tensor]:
        """As ``kernels.noise_basis`` finds it, common to all times."""
        A = self._cells
        both = torch.cat([A.A1, A.A2]).detach()
        return kernels.noise_basis(both, A.GG[:, [0, -1]].detach().flatten(0, 1) / 2)

    @cached_property
    def _forward_in_basis(self) -> _Stretches:
        return _Stretches(self, self._cells, pulled_back=False, basis=self.basis)

    @cached_property
    def _backward_in_basis(self) -> _Stretches:
        return _Stretches(self, self._cells, pulled_back=True, basis=self.basis)

    @property
    def new(self) -> int:
        return int((self.basis[1] == 0).sum())

    def root(self, start: Tensor | None, duration: Tensor, *, noise_last: bool = False) -> Root:
        return self._rooted(lambda: self._forward_in_basis, start, duration, noise_last)

    def pulled_back_root(self, start: Tensor | None, duration: Tensor) -> Root:
        return self._rooted(lambda: self._backward_in_basis, start, duration)

    def _rooted(
        self,
        stretches: Callable[[], _Stretches],
        start: Tensor | None,
        duration: Tensor,
        flip: bool = False,
    ) -> Root:
        U, level = self.basis
        kernels.check_reached(U)
        _, P = self._moved(stretches(), start, duration)
        middle = duration / 2 if start is None else start + duration / 2
        GG = self.noise(self._locate(middle)[0]).detach()
        if flip:
            U, level, P = U.flip(-1), level.flip(0), P.flip(-1, -2)
        return Root(*kernels.factor_in_basis(P, U, level, U.mT @ GG @ U, GG, duration))

    # -- the diffusion of (-Q, D) backwards --------------------------------------------------------

    @cached_property
    def _reversed(self) -> MagnusPropagator:
        end = self.bounds[-1]
        return MagnusPropagator(
            lambda tau: -self._Q((end - tau).clamp_min(0)),
            lambda tau: self._D((end - tau).clamp_min(0)),
            self._stationary,
            end - self.bounds.flip(0),
        )

    def halves(self, start: Tensor, duration: Tensor) -> Halves:
        back, half = self._reversed, duration / 2
        first = (self.bounds[-1] - (start + duration)).clamp_min(0)
        begins = torch.stack([first, first + half])
        M, _ = back.moments(begins, half)
        root, _, _, growth = back.root(begins, half)
        return Halves(M[0], root[0], M[1], root[1], growth.amax(0))


class _Stretches:
    """Stretches of cells in one direction, in the axes of the variables or in a basis."""

    def __init__(
        self,
        propagator: MagnusPropagator,
        cells: _Read,
        *,
        pulled_back: bool,
        basis: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self._of, self._pulled_back = propagator, pulled_back
        self._basis = basis
        if basis is not None:
            level = basis[1]
            device = basis[0].device
            self._above = (level[:, None] > level[None, :] + 1).to(device)
            self._noiseless = ((level[:, None] > 0) | (level[None, :] > 0)).to(device)
        self._cells = self._turned(cells)

    def _turned(self, read: _Read) -> _Read:
        """In the basis; what vanishes there by construction is exactly zero and has a gradient."""
        if self._basis is None:
            return read
        U = self._basis[0]
        A1, A2, GG = (U.mT @ matrix @ U for matrix in read[:3])
        A1, A2 = (A - A.detach() * self._above for A in (A1, A2))
        return _Read(A1, A2, GG - GG.detach() * self._noiseless, read.h)

    def _steps(self, start: Tensor, h: Tensor) -> _Moved:
        read = self._turned(self._of._read(start, h))
        return self._of.steps(read, self._pulled_back)

    def _join(self, first: _Moved, second: _Moved) -> _Moved:
        """Of stretches that follow each other in time."""
        return second.then(first) if self._pulled_back else first.then(second)

    @cached_property
    def _moved(self) -> _Moved:
        return self._of.steps(self._cells, self._pulled_back)

    @cached_property
    def _spans(self) -> list[_Moved]:
        return [self._moved]

    def _span(self, power: int) -> _Moved:
        """Of 2^power cells from each cell from which there are as many."""
        while len(self._spans) <= power:
            last, half = self._spans[-1], 2 ** (len(self._spans) - 1)
            self._spans.append(
                self._join(_Moved(*(t[:-half] for t in last)), _Moved(*(t[half:] for t in last)))
            )
        return self._spans[power]

    @cached_property
    def _prefix(self) -> _Moved:
        """From time 0 to each bound, (n + 1, K, K); pulled back as far as digits reach."""
        found = self._moved
        if self._pulled_back:
            n = max(1, int((self._of._travelled[:-1] < 25.0).sum()))
            found = _Moved(found.M[:n], found.P[:n])
        step = 1
        while step < len(found.M):
            joined = self._join(
                _Moved(*(t[:-step] for t in found)), _Moved(*(t[step:] for t in found))
            )
            found = _Moved(*(torch.cat([t[:step], j]) for t, j in zip(found, joined, strict=True)))
            step *= 2
        eye = torch.eye(found.M.shape[-1]).to(found.M)[None]
        return _Moved(torch.cat([eye, found.M]), torch.cat([torch.zeros_like(eye), found.P]))

    def from_zero(self, tau: Tensor) -> _Moved:
        """From time 0 to τ (m,)."""
        tau, cell = self._of._locate(tau)
        begin = self._of.bounds[cell]
        return self._join(self._prefix.at(cell), self._steps(begin, tau - begin))

    def between(self, first: Tensor, last: Tensor) -> _Moved:
        """From ``first`` to ``last``, clock times (m,)."""
        (first, i), (last, j) = self._of._locate(first), self._of._locate(last)
        bounds, same = self._of.bounds, i == j
        if bool(same.all()):
            return self._steps(first, last - first)
        head = torch.where(same, last, bounds[i + 1]) - first
        tail = torch.where(same, last, bounds[j])
        m = len(first)
        both = self._steps(torch.cat([first, tail]), torch.cat([head, last - tail]))
        found, ending = (_Moved(*(t[part] for t in both)) for part in (slice(m), slice(m, None)))
        count, at = (j - i - 1).clamp_min(0), i + 1
        for power in range(int(count.max()).bit_length()):
            taken = (count >> power) % 2 == 1
            if not bool(taken.any()):
                continue
            index = taken.nonzero()[:, 0]
            span = self._span(power).at(at[index])
            longer = self._join(found.at(index), span)
            found = _Moved(
                *(t.index_put((index,), new) for t, new in zip(found, longer, strict=True))
            )
            at = at + taken * 2**power
        return self._join(found, ending)


def _from_zero(sums: Tensor) -> Tensor:
    return torch.cat([sums.new_zeros(1), sums])


def _exponents(A1: Tensor, A2: Tensor, length: Tensor, middle: Tensor) -> Tensor:
    """Ω of stretches of a straight line of matrices.

    Args:
        A1, A2: at the Gauss points of a cell, times its length, (n, K, K).
        length, middle: of stretches, in parts of the cell; the cell's own middle is 0. (J,)

    Returns:
        (n, J, K, K).
    """
    a, d = (A1 + A2) / 2, math.sqrt(3) * (A2 - A1)
    b = _commutator(a, d)
    ab, db = _commutator(a, b), _commutator(d, b)
    crossed = _commutator(a, db) + _commutator(d, ab)
    parts = [a, d, b, -db, _commutator(a, ab), crossed, _commutator(d, db)]
    fifth = length**5
    factors = [length, length * middle, -(length**3) / 12, fifth / 240]
    factors += [fifth / 720, fifth * middle / 720, fifth * middle**2 / 720]
    summed = torch.stack(factors, -1) @ torch.stack(parts, -3).flatten(-2)
    return summed.unflatten(-1, A1.shape[-2:])


def _commutator(X: Tensor, Y: Tensor) -> Tensor:
    return X @ Y - Y @ X


def _exp(X: Tensor) -> Tensor:
    """exp X of (…, K, K) with ‖X‖ up to about ½, by a Taylor series of fixed order."""
    K = X.shape[-1]
    X2 = X @ X
    eye = torch.eye(K, dtype=X.dtype, device=X.device).expand_as(X)
    powers = torch.stack([eye, X, X2, X2 @ X], -3).flatten(-2)
    groups = (COEFFICIENTS.to(X.device) @ powers).unflatten(-1, (K, K))
    fourth = X2 @ X2
    found = groups[..., -1, :, :]
    for j in range(len(COEFFICIENTS) - 2, -1, -1):
        found = groups[..., j, :, :] + fourth @ found
    return found
