r"""The kernels at both ends of a learned diffusion, with their derivatives, by numpy on the host.

The K×K matrices of one step are so small that an accelerator, or torch's bookkeeping, takes longer
to begin each operation than numpy takes for it. They are read once. What follows from them goes
back as numbers with their Jacobian, so that a backward pass is one product.

The algebra is that of :mod:`pyro_mdm.diffusions.kernels`, whose docstring says why it is this, in
dual numbers: each value comes with its slopes in A, in g² and in the clock time τ.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_mdm.diffusions.host_search import LogSNRSearch
from pyro_mdm.diffusions.kernels import FACTORIALS, MAX_DOUBLINGS, NODES, TAYLOR_TERMS, WEIGHTS
from pyro_mdm.diffusions.propagator import TRAVELLED

__all__ = ["HostEnds", "ends_on_host"]

Array = NDArray[np.float64]
Index = int | slice | range
STEPS = 8
"""Newton steps at most; the search before leaves an error of about 1e-9 in log τ."""
NEAR = 1e-9
"""The distance in log τ from which an end is reached by the derivatives in τ alone: the kernels are
then wrong by its square, and their slopes by the distance times how fast they vary in log τ, which
is 1 by size, and up to 1,000 where λ nearly pauses."""
PLACES = np.append(NODES.numpy(), 1.0)
ORDERS = np.arange(TAYLOR_TERMS)
SCALE, AREAS = 1 / FACTORIALS.numpy()[:, None], WEIGHTS.numpy()[:, None]


class HostEnds(NamedTuple):
    """Kernels at m clock times: τ, a, Σ, L, k, λ and log det Σ in a row."""

    values: Tensor  # (m, row), of 2 K² + 2 K + 3 numbers
    slopes: Tensor  # (m, row, 2 K² + 1): in A, g² and in λ there, or in τ where that is given
    growth: list[float]  # of rounding errors
    clocks: list[float]  # τ
    sizes: tuple[float, float]  # ‖A‖_1 and ‖A‖_2


def ends_on_host(
    A: Tensor, GG: Tensor, initial: Tensor, units: Tensor, targets: Tensor, *clocks: Tensor
) -> HostEnds | None:
    """The kernels where λ has the targets, and after these at the given clock times.

    None where λ has no such value, or float64 does not hold a kernel. This waits for the device,
    once.

    Args:
        A, GG, initial: drift and noise by clock time, and Σ_0, (K, K).
        units: standard deviations of the variables, (K,), as for :meth:`Propagator.factorization`.
        targets: λ (n,).
        clocks: clock times, 0-dim.

    Raises:
        FloatingPointError: an argument with entries that are not finite.
    """
    K, n = len(A), len(targets)
    tensors = [A, GG, initial, units, targets, *clocks]
    read = torch.cat([t.detach().reshape(-1) for t in tensors]).cpu().numpy()
    if not np.isfinite(read).all():
        raise FloatingPointError(
            f"the matrices, Σ_0 or ends of the diffusion have {(~np.isfinite(read)).sum()} entries "
            "that are NaN or infinite, expected finite numbers; lower the learning rate of the "
            "diffusion, or clip its gradients"
        )
    matrices, units_, ends = np.split(read, [3 * K * K, 3 * K * K + K])
    A_, noise, start = matrices.reshape(3, K, K)
    law = _Law(A_, noise, start, units_)
    with np.errstate(all="ignore"):
        rows = [law.at_log_snr(end) for end in ends[:n]] + [law.at_clock(end) for end in ends[n:]]
    held = [row for row in rows if row is not None and np.isfinite(row.slopes).all()]
    if len(held) < len(rows):
        return None
    values, slopes, growth = zip(*held, strict=True)
    return HostEnds(
        torch.from_numpy(np.stack(values)).to(A.device),
        torch.from_numpy(np.stack(slopes)).to(A.device),
        list(growth),
        [float(value[0]) for value in values],
        (law.norm, law.speed),
    )


class _Row(NamedTuple):
    values: Array
    slopes: Array
    growth: float


class _Dual:
    """Values (…) with slopes (p, …); a product with an array is one with a constant."""

    __array_ufunc__ = None  # an array on the left asks this class

    def __init__(self, value: Array, slope: Array) -> None:
        self.value, self.slope = value, slope

    def __add__(self, other: _Dual | Array | float) -> _Dual:
        if isinstance(other, _Dual):
            return _Dual(self.value + other.value, self.slope + other.slope)
        return _Dual(self.value + other, self.slope)

    def __matmul__(self, other: _Dual | Array) -> _Dual:
        if isinstance(other, _Dual):
            slope = self.slope @ other.value + self.value @ other.slope
            return _Dual(self.value @ other.value, slope)
        return _Dual(self.value @ other, self.slope @ other)

    def __rmatmul__(self, other: Array) -> _Dual:
        return _Dual(other @ self.value, other @ self.slope)

    def __mul__(self, other: _Dual | Array | float) -> _Dual:
        """The product with a dual number, or with a constant array or number."""
        if isinstance(other, _Dual):
            ones = [1] * (self.value.ndim - other.value.ndim)
            by = other.slope.reshape(len(other.slope), *ones, *other.value.shape)
            return _Dual(self.value * other.value, self.slope * other.value + self.value * by)
        return _Dual(self.value * other, self.slope * other)

    def __getitem__(self, index: Index | tuple[Index, ...]) -> _Dual:
        index = index if isinstance(index, tuple) else (index,)
        return _Dual(self.value[index], self.slope[(slice(None), *index)])

    @property
    def mT(self) -> _Dual:
        return _Dual(self.value.swapaxes(-1, -2), self.slope.swapaxes(-1, -2))

    def reshape(self, *shape: int) -> _Dual:
        return _Dual(self.value.reshape(shape), self.slope.reshape(len(self.slope), *shape))

    def roll(self, *axes: int) -> _Dual:
        shift = (-1,) * len(axes)
        return _Dual(np.roll(self.value, shift, axes), np.roll(self.slope, shift, axes))

    def log(self) -> _Dual:
        return _Dual(np.log(self.value), self.slope / self.value)

    def sum(self) -> _Dual:
        """The sum of a vector."""
        return _Dual(self.value.sum(-1), self.slope.sum(-1))


class _Factor(NamedTuple):
    """As :class:`pyro_mdm.diffusions.kernels.Factor`."""

    root: _Dual
    whitener: Array
    log_snr: _Dual
    readout: _Dual
    log_det: _Dual
    amplification: float


class _Law:
    """The distribution given x at clock times τ."""

    def __init__(self, A: Array, GG: Array, initial: Array, units: Array) -> None:
        K, self.A, self.initial = len(A), A, initial
        self.weights = units / units[:, None]
        self.search = LogSNRSearch(A, GG, initial)
        self.norm, self.speed = self.search.norm, self.search.speed
        p = 2 * K * K + 1
        basis = np.zeros((p, K, K))
        basis.reshape(p, -1)[range(K * K), range(K * K)] = 1.0
        self.drift = _Dual(A, basis)
        self.noise = _Dual(GG, np.roll(basis, K * K, 0))
        unit, power = self.drift * (1 / self.norm), _Dual(np.eye(K), np.zeros((p, K, K)))
        powers = [power]
        for _ in range(1, TAYLOR_TERMS):
            power = power @ unit
            powers.append(power)
        values = np.stack([power.value.ravel() for power in powers]) * SCALE
        slopes = np.stack([power.slope.reshape(p, -1) for power in powers], 1) * SCALE
        self.series = _Dual(values, slopes)  # (TAYLOR_TERMS, K K), each of at most ½ the one before

    def at_log_snr(self, target: float) -> _Row | None:
        """The row where λ is the target, with slopes in A, g² and the target."""
        tau = self.search.clock_at(float(target))
        for _ in range(STEPS):
            if (there := self._row(tau)) is None:
                return None
            row, growth = there
            level, slopes = row.value[-2], row.slope[:, -2]
            off = (target - level) / slopes[-1]
            if abs(off) < NEAR * tau:
                values = row.value + row.slope[-1] * off
                moved = np.append(-slopes[:-1], 1.0) / slopes[-1]  # of τ, in A, g² and the target
                total = np.concatenate([row.slope[:-1], 0 * row.slope[-1:]])
                return _Row(values, (total + moved[:, None] * row.slope[-1]).T, growth)
            tau += off
        return None

    def at_clock(self, tau: float) -> _Row | None:
        """The row at a time, with slopes in A, g² and the time."""
        if (there := self._row(float(tau))) is None:
            return None
        row, growth = there
        return _Row(row.value, row.slope.T, growth)

    def _row(self, tau: float) -> tuple[_Dual, float] | None:
        """The numbers of :class:`HostEnds` at a time, with slopes, and the growth of rounding."""
        if not 0 < tau * self.norm < 2.0 ** (MAX_DOUBLINGS - 1):
            return None
        M, P = self._moments(tau, 1)
        Sigma = P + M @ self.initial @ M.mT
        factor = _direct(Sigma, M[:, 0])
        if tau * self.speed < TRAVELLED:
            W, pulled = self._moments(tau, -1)
            near = _pulled_back(M, W, pulled + self.initial)
            if near is not None and (factor is None or near.amplification < factor.amplification):
                trace = np.trace(self.A)
                slope = np.append(np.trace(self.drift.slope[:-1], 0, 1, 2) * tau, trace)
                factor = near._replace(log_det=near.log_det + _Dual(trace * tau, slope) * 2.0)
        if factor is None:
            return None
        left = ((M.value * self.weights) ** 2).sum(-2)
        lost = math.sqrt(left.mean() / max(left[0], 1e-300))
        growth = factor.amplification * max(tau * self.speed, 1.0) * max(lost, 1.0)
        clock = _Dual(np.array([tau]), np.eye(len(M.slope))[:, -1:])
        law = [M[:, 0], Sigma, _triangular(factor), factor.readout, factor.log_snr, factor.log_det]
        fields = [field.reshape(-1) for field in (clock, *law)]
        values = np.concatenate([field.value for field in fields])
        return _Dual(values, np.concatenate([field.slope for field in fields], 1)), growth

    def _moments(self, tau: float, way: int) -> tuple[_Dual, _Dual]:
        """``exp(±Aτ)`` and the integral of its noise, as :func:`kernels.transition_moments`."""
        K = len(self.A)
        doublings = max(0, math.ceil(math.log2(max(tau * self.norm, 1e-300) / 0.5)))
        h = tau / 2.0**doublings
        u = PLACES * (h * self.norm)
        series = (float(way) ** ORDERS) * u[:, None] ** ORDERS
        rate = series * ORDERS / tau  # by τ
        E = series @ self.series
        E.slope[-1] = rate @ self.series.value
        E = E.reshape(len(u), K, K)
        M, rows = E[-1], _Dual(E.value[:-1].swapaxes(0, 1), E.slope[:, :-1].swapaxes(1, 2))
        # the sum over nodes as one product of (K, nodes K) with (nodes K, K)
        turned = (rows.reshape(-1, K) @ self.noise).reshape(K, -1, K)
        P = (turned * (AREAS * h)).reshape(K, -1) @ rows.reshape(K, -1).mT
        P.slope[-1] += P.value / tau  # of the step h
        for _ in range(doublings):
            P = P + M @ P @ M.mT
            M = M @ M
        return M, (P + P.mT) * 0.5


def _solve(L: Array, right: Array) -> Array:
    """L^{-1} of a lower triangular L times a matrix, row by row."""
    rows = np.empty_like(right)
    for i in range(len(L)):
        rows[i] = (right[i] - L[i, :i] @ rows[:i]) / L[i, i]
    return rows


def _half(X: Array) -> Array:
    """Φ(X + Xᵀ): the lower triangle, with half of the diagonal."""
    lower = np.tril(X + X.swapaxes(-1, -2))
    lower[..., range(X.shape[-1]), range(X.shape[-1])] *= 0.5
    return lower


def _cholesky(S: _Dual) -> tuple[_Dual, _Dual, float] | None:
    """C with C Cᵀ = S, by S at unit diagonal, its inverse, and the growth of rounding."""
    d = np.sqrt(np.maximum(np.diagonal(S.value), 1e-300))
    unit = S * (1 / (d[:, None] * d))
    try:
        C: Array = np.asarray(np.linalg.cholesky(unit.value), dtype=np.float64)
    except np.linalg.LinAlgError:
        return None
    inverse = _solve(C, np.eye(len(C)))
    slope = C @ _half(0.5 * (inverse @ unit.slope @ inverse.T))
    root = _Dual(C * d[:, None], slope * d[:, None])
    turned = _Dual(inverse / d, -(inverse @ slope @ inverse) / d)
    return root, turned, float(1 / np.diagonal(C).min() ** 2)


def _log_diagonal(C: _Dual) -> _Dual:
    """2 log det C."""
    at = range(len(C.value))
    return C[at, at].log().sum() * 2.0


def _pulled_back(M: _Dual, W: _Dual, S: _Dual) -> _Factor | None:
    if (factored := _cholesky(S.roll(-1, -2))) is None:
        return None
    C, inverse, growth = factored
    last, whitener = C[-1, -1], inverse @ W.roll(-2)
    level, root = last.log() * -2.0, M.roll(-1) @ C
    readout = whitener[-1] * last
    return _Factor(root, whitener.value, level, readout, _log_diagonal(C), growth)


def _direct(Sigma: _Dual, a: _Dual) -> _Factor | None:
    if (factored := _cholesky(Sigma)) is None:
        return None
    L, whitener, growth = factored
    u = (whitener @ a.reshape(-1, 1)).reshape(-1)
    # SNR underflows long after the process has forgotten x; scale a so that log SNR does not
    size = float(np.abs(u.value).max())
    if not size > 1e-250:
        return None
    u = u * (1 / size)
    q = (u * u).sum()
    inverse = _Dual(1 / (q.value * size), -q.slope / (q.value**2 * size))
    readout = (u.reshape(1, -1) @ whitener).reshape(-1) * inverse
    level = q.log() + 2 * math.log(size)
    return _Factor(L, whitener.value, level, readout, _log_diagonal(L), growth)


def _triangular(factor: _Factor) -> _Dual:
    """The lower triangular L with L Lᵀ = F Fᵀ, rows scaled first."""
    F = factor.root
    d = np.maximum(np.linalg.norm(F.value, axis=-1, keepdims=True), 1e-300)
    R = np.linalg.qr((F.value / d).T, mode="r")
    L = (R * np.sign(np.diagonal(R))[:, None]).T * d
    # L^{-1} F is orthogonal, and L^{-1} by the whitener has digits that L has lost
    turn = _solve(L, F.value)
    return _Dual(L, L @ _half(turn @ (factor.whitener @ F.slope) @ turn.T))
