r"""Integrals over noise level, averaged over data, from few evaluations of several integrands.

The target for every integrand h_m(x, λ, ε) is (1/n) Σ_i ∫ E h_m(x_i, λ, ε) dλ, and an evaluation is
a network call. Four things make it cheap:

- *A control variate.* A baseline h_0 of the same x, λ and ε has an exact integral H_s(x) over each
  cell s of a partition of the range. Near λ the difference h_m - h_0 is predicted by

      p = β_0 + β_1 (h_0 - H_s(x)/w_s) + β_2 H_s(x)/w_s,

  where w_s is the cell's width. The integral of p over λ is exact for every x, so that only
  h_m - h_0 - p is random. β_1 removes the noise that the network shares with the baseline, β_2
  the variation between easier and harder data.
- *Allocation.* λ is drawn with a density proportional to the standard deviation of the residual
  (Neyman 1934), a tenth of it uniform.
- *Stratification.* Within a round the λ are spread evenly over the quantiles of that density.
- *Pairing.* All integrands are evaluated at the same draws; a difference has the variance of a
  difference.

The estimate is unbiased if its coefficients and densities are independent of its draws. They come
from the :class:`StrataPlan` of a pilot that is no part of the estimate, as may the number of draws.
Without a plan they come from the data of other folds (cross-fitting), for a fixed number of draws:
stopping when the draws themselves look good would stop low where tails are heavy. (From the third
round on a density depends slightly on its own fold, through the others' coefficients.)

Source of the control variate: regression estimators of survey sampling (Cochran, "Sampling
Techniques", 1977, chapter 7), with coefficients that vary with λ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_mdm.evaluation.estimates import Noise

__all__ = ["Draws", "Integral", "StrataPlan", "StratifiedIntegrals", "Target"]
__all__ += ["cells", "error_of_sum", "of_target"]

FOLDS = 4
UNIFORM_SHARE = 0.1
SMALL = 0.05  # part of the baseline's largest density below which all data count alike
Target = tuple[int, int | None]
"""The index of an integrand and None, or the indices of two for their difference."""

Array = NDArray[Any]
Number = TypeVar("Number", float, Array)
Values = TypeVar("Values", Tensor, Array)


class Draws(NamedTuple):
    """The data and levels at which to evaluate the integrands, one entry per call."""

    datum: Tensor  # (m,) int64
    level: Tensor  # (m,) float64


class StrataPlan(NamedTuple):
    """A plan of the draws to come, from a pilot that is no part of their estimate."""

    coefficients: Tensor  # (M, S, p)
    density: Tensor  # (S,) over level
    num_draws: int  # of the pilot
    spread: dict[Target, float]  # standard deviation of one draw's estimate, for each target
    skewness: dict[Target, float]  # of the pilot's mean

    def error(self, target: Target) -> float:
        """The planned error of a mean, times the root of its number of draws."""
        return self.spread[target] * _allowance(self.skewness[target])


class Integral(NamedTuple):
    """An estimate of one integrand's integral, or of the difference of two."""

    mean: float
    error: float  # standard error of the mean over other draws for the same data
    per_datum: Tensor  # (n,)
    noise: Noise  # of each datum, over other draws
    halves: Tensor  # (2, n) by every second draw of each datum, and by the others; NaN for none
    density: Tensor  # (cells,) per unit of level
    density_error: Tensor  # (cells,)


class StratifiedIntegrals:
    """Rounds of draws, and estimates from all of them.

    Args:
        edges: increasing levels, the cells' bounds, (S + 1,).
        covers: mask of the cells in the range of integrand m, (M, S) bool; it is 0 outside.
        counts: mask of the data for which integrand m exists, (M, n) bool; otherwise it is 0 at
            every level, and a datum without any is not drawn.
        baseline: integral of the baseline over each cell, (n, S); None: no baseline.
        density: density of the first round over level, (S,), up to a factor; None: uniform.
        adapt: whether later rounds have densities of their own.
        seed: seed of the draws.
        plan: coefficients and density from a pilot; None: fitted to the draws, across folds.
    """

    def __init__(
        self,
        edges: Tensor,
        covers: Tensor,
        counts: Tensor,
        *,
        baseline: Tensor | None = None,
        density: Tensor | None = None,
        adapt: bool = True,
        seed: int = 0,
        plan: StrataPlan | None = None,
    ) -> None:
        self._plan, self.adapt = plan, adapt and plan is None
        self.folds = FOLDS if plan is None else 1
        self.edges, self.covers, self.counts = edges.numpy(), covers.numpy(), counts.numpy()
        self.width, self.baseline = np.diff(self.edges), baseline
        M, n, S = *self.counts.shape, len(self.width)
        self.num_data = n
        some = self.counts.any(0)
        self._drawn = np.flatnonzero(some if some.any() else ~some)
        self._generator = torch.Generator().manual_seed(seed)
        self._fold_of = np.empty(n, dtype=np.int64)
        self._fold_of[self._permuted(n)] = np.arange(n) % self.folds
        self._queue = np.empty(0, dtype=np.int64)
        if plan is None:
            first = self._with_floor(np.ones(S) if density is None else density.numpy())
        else:
            first = plan.density.numpy()
        self._next = np.tile(first, (self.folds, 1))  # density of each fold's next round
        self._densities: list[Array] = []  # of rounds, (folds, S)
        self._scale, self._hardness = np.ones(S), np.zeros((n, S))
        self._exact = None if baseline is None else baseline.numpy()
        if self._exact is not None and some.any():
            profile = self._exact.mean(0) / self.width
            self._scale = profile + SMALL * profile.max()
            self._hardness = self._exact / self.width / self._scale  # in units of the profile
        # of each call: its datum with the fold, its round, its level with the cell, and values
        self._datum, self._fold, self._round, self._cell = np.empty((4, 0), dtype=np.int64)
        self._level, self._baseline, self._values = np.empty(0), np.empty(0), np.empty((M, 0))
        self._left = np.empty((M, 0))  # h - h_0 - p, per unit of level
        self._predicted = np.zeros((M, n, S))

    @property
    def num_draws(self) -> int:
        """The number of draws so far."""
        return len(self._datum)

    def draw(self, size: int) -> Draws:
        """The next round: ``size`` data, each at one level; pass their values to :meth:`add`."""
        while len(self._queue) < size:
            more = self._permuted(len(self._drawn))
            self._queue = np.append(self._queue, self._drawn[more])
        datum, self._queue = self._queue[:size].copy(), self._queue[size:]
        level = np.empty(size)
        for f, density in enumerate(self._next):
            mine = np.flatnonzero(self._fold_of[datum] == f)
            mass = np.append(0.0, np.cumsum(density * self.width))
            level[mine] = np.interp(self._even(len(mine)) * mass[-1], mass, self.edges)
        return Draws(torch.from_numpy(datum), torch.from_numpy(level))

    def add(self, draws: Draws, values: Tensor, baseline: Tensor | None = None) -> None:
        """Add the values (M, m) and the baseline's (m,) at the round's draws, per unit of level."""
        others = [] if baseline is None else [baseline]
        rows = torch.stack([draws.datum.double(), draws.level, *values, *others]).cpu().numpy()
        datum, level, M = rows[0].astype(np.int64), rows[1], len(values)
        self._round = np.append(self._round, np.full_like(datum, len(self._densities)))
        self._densities.append(self._next.copy())
        self._datum = np.append(self._datum, datum)
        self._fold = np.append(self._fold, self._fold_of[datum])
        self._level = np.append(self._level, level)
        self._cell = np.append(self._cell, cells(draws.level, torch.from_numpy(self.edges)))
        self._values = np.append(self._values, rows[2 : 2 + M], 1)
        self._baseline = np.append(self._baseline, *rows[2 + M :]) if others else self._baseline
        self._fit()

    @np.errstate(divide="ignore", invalid="ignore")
    def integral(self, first: int, second: int | None = None) -> Integral:
        """The estimate for integrand ``first``, or for the difference ``first`` − ``second``."""
        target = first, second
        left, predicted = of_target(self._left, target), of_target(self._predicted, target)
        exists = self.counts[first] | self.counts[first if second is None else second]
        is_second = self._visit() % 2 == 1
        sums = [self._sums(left, use) for use in (is_second | True, ~is_second, is_second)]
        (total, square, number), *of_halves = sums
        halves = np.stack([predicted.sum(1) + one / count for one, _, count in of_halves])
        spread, *spreads = (torch.from_numpy(_variance(*moments)) for moments in sums)
        value, counts = self._weight() * left, torch.from_numpy(exists)
        density, squares = (np.bincount(self._cell, v, len(self.width)) for v in (value, value**2))
        return Integral(
            mean=float(predicted.sum(1).mean() + value.sum()),
            error=float(self.errors([target])[0]),
            per_datum=torch.from_numpy(predicted.sum(1) + total / np.maximum(number, 1)),
            noise=Noise.from_spread(
                spread, spreads, torch.from_numpy(square), torch.from_numpy(number), counts
            ),
            halves=torch.where(counts, torch.from_numpy(halves), 0),
            density=torch.from_numpy((predicted.mean(0) + density) / self.width),
            density_error=torch.from_numpy(np.sqrt(squares) / self.width),
        )

    def errors(self, targets: Sequence[Target]) -> Array:
        """The error of :meth:`integral` for each target, (len(targets),).

        With a plan, whose targets these must be, the spread of the pilot's draws counts too, as
        draws of a heavy-tailed integrand that come out low also look alike. Of a mean of skewness
        t the error is 1 + 3 t² times that of the spread (tests/benchmarks/likelihoods.py).
        """
        group = self._round * self.folds + self._fold
        error, skewness = error_of_sum(self._weight() * self._left_of(targets), group, self._level)
        plan, N = self._plan, self.num_draws
        if plan is None or not N:
            return error
        foreseen = np.array([plan.spread[t] for t in targets])
        pooled = error**2 * N * N + foreseen**2 * plan.num_draws
        foreseen_skewness = np.array([plan.skewness[t] for t in targets])
        allowance: Array = _allowance(np.maximum(np.abs(skewness), foreseen_skewness))
        return allowance * np.sqrt(pooled / (N + plan.num_draws) / N)

    def plan(self, targets: Sequence[Target]) -> StrataPlan:
        """The coefficients and the density for other draws that serve all ``targets`` best."""
        everything = np.ones(self.num_draws, dtype=bool)
        density = self._best_density(targets, everything) if self.adapt else self._next[0]
        q = self._pooled_density() * density[self._cell]
        one = self._left_of(targets) / np.sqrt(q)  # of pooled draws, with the spread of new ones
        error, skewness = error_of_sum(one, np.zeros_like(self._round), self._level)
        spread = error / self.num_draws**0.5
        return StrataPlan(
            torch.from_numpy(self._coefficients(*self._regression(), everything)),
            torch.from_numpy(density),
            self.num_draws,
            dict(zip(targets, spread.tolist(), strict=True)),
            dict(zip(targets, np.abs(skewness).tolist(), strict=True)),
        )

    def allocate(self, targets: Sequence[Target]) -> None:
        """Set the densities of the next round to those that serve all ``targets`` best."""
        if self.adapt and targets:
            for f in range(self.folds):
                self._next[f] = self._best_density(targets, self._fold != f)

    # -- the parts ---------------------------------------------------------------------------------

    def _permuted(self, m: int) -> Array:
        """0 … m - 1 in random order."""
        return torch.randperm(m, generator=self._generator).numpy()

    def _even(self, m: int) -> Array:
        """Random numbers (m,) in [0, 1), one in each m-th part, in random order."""
        order = self._permuted(m)
        within = torch.rand(m, generator=self._generator, dtype=torch.float64).numpy()
        return (order + within) / max(m, 1)

    def _left_of(self, targets: Sequence[Target]) -> Array:
        """The residuals (len(targets), N) of the draws."""
        return np.stack([of_target(self._left, target) for target in targets])

    def _fit(self) -> None:
        """Fit coefficients by cell for each fold, from the others, and all residuals."""
        columns, excess, scale = self._regression()
        self._left = np.zeros_like(self._values)
        for f in range(self.folds):
            if self._plan is not None:
                coefficients = self._plan.coefficients.numpy()
            else:
                coefficients = self._coefficients(columns, excess, scale, self._fold != f)
            mine, data = self._fold == f, self._fold_of == f
            cell, beta = self._cell[mine], coefficients[:, None]
            prediction = (columns[mine] * coefficients[:, cell]).sum(-1)
            exists = self.covers[:, cell] & self.counts[:, self._datum[mine]]
            self._left[:, mine] = (excess[:, mine] - scale[mine] * prediction) * exists
            per_unit, baseline = beta[..., 0], np.zeros(())
            if self._exact is not None:
                harder = self._hardness[data] - self._hardness.mean(0)
                per_unit, baseline = per_unit + beta[..., 2] * harder, self._exact[data]
            predicted = baseline + self._scale * self.width * per_unit
            exists = self.covers[:, None] & self.counts[:, data, None]
            self._predicted[:, data] = predicted * exists

    def _regression(self) -> tuple[Array, Array, Array]:
        """Columns (N, p), h_m - h_0 (M, N), and the unit (N,) in which it is predicted."""
        columns, scale = [np.ones_like(self._level)], self._scale[self._cell]
        if self._exact is None:
            return np.stack(columns, 1), self._values, scale
        at = self._hardness[self._datum, self._cell]
        columns += [self._baseline / scale - at, at - self._hardness.mean(0)[self._cell]]
        return np.stack(columns, 1), self._values - self._baseline, scale

    def _coefficients(self, columns: Array, excess: Array, scale: Array, use: Array) -> Array:
        """Coefficients (M, S, p) by weighted least squares near each cell, by draws in ``use``."""
        kernel, y = self._kernel(self._level[use]), (excess / scale)[:, use]
        here = self.counts[:, self._datum[use]] & self.covers[:, self._cell[use]]
        pairs = zip(here, y, strict=True)
        return np.stack([_local_regression(kernel * i, columns[use], v) for i, v in pairs])

    def _best_density(self, targets: Sequence[Target], use: Array) -> Array:
        """A density (S,) like the standard deviation of the residuals of draws in ``use``."""
        # clamped: an exact integral has no error, and cells that no draw is near have no weight
        need = np.maximum(self.errors(targets) ** 2, 1e-300)
        importance = (self._left_of(targets) ** 2 / need[:, None]).sum(0)
        kernel = self._kernel(self._level[use])
        variance = kernel @ importance[use] / np.maximum(kernel.sum(1), 1e-12)
        return self._with_floor(np.sqrt(variance))

    def _kernel(self, level: Array) -> Array:
        """Weights (S, m) of draws for each cell's centre, wide enough for some 40 draws."""
        span = float(self.edges[-1] - self.edges[0])
        # an area of 16 √(2π) ≈ 40 even draws, but no less than a fortieth of the range
        bandwidth = span * min(1.0, max(1 / 40, 16 / max(len(level), 1)))
        centre = (self.edges[1:] + self.edges[:-1]) / 2
        return np.exp(-0.5 * ((level - centre[:, None]) / bandwidth) ** 2)

    def _with_floor(self, density: Array) -> Array:
        """The density, normalized, mixed with a uniform part, and 0 where there is no integrand."""
        used = self.covers.any(0).astype(np.float64)
        uniform, density = used / (used * self.width).sum(), density * used
        total = (density * self.width).sum()
        if not total > 0:
            return uniform
        return (1 - UNIFORM_SHARE) * density / total + UNIFORM_SHARE * uniform

    def _weight(self) -> Array:
        """The weight (N,) of each draw in the mean over data of the integral.

        A fold counts by the number of its data that are drawn.
        """
        data = self._fold_of[self._drawn]
        share = np.bincount(data, minlength=self.folds) / self.num_data
        calls = np.bincount(self._fold, minlength=self.folds)
        return (share / np.maximum(calls, 1))[self._fold] / self._pooled_density()

    def _pooled_density(self) -> Array:
        """The density (N,) of each call's λ, over all rounds of its fold together."""
        densities, R = np.stack(self._densities), len(self._densities)  # (R, folds, S)
        places = self._round * self.folds + self._fold
        calls = np.bincount(places, minlength=R * self.folds).reshape(R, self.folds, 1)
        pooled = (calls * densities).sum(0) / np.maximum(calls.sum(0), 1)
        return pooled[self._fold, self._cell]

    def _sums(self, left: Array, use: Array) -> tuple[Array, Array, Array]:
        """The sum, the sum of squares and the number of each datum's residuals / density, (n,).

        Those of the draws in ``use`` count, by the densities of their datum's rounds.
        """
        datum, n, R = self._datum[use], self.num_data, len(self._densities)
        visits = np.bincount(self._round[use] * n + datum, minlength=R * n).reshape(R, n)
        share, density = visits / np.maximum(visits.sum(0), 1), np.empty((n, len(self.width)))
        for f, of_rounds in enumerate(np.stack(self._densities, 1)):
            density[self._fold_of == f] = share[:, self._fold_of == f].T @ of_rounds
        value = left[use] / density[datum, self._cell[use]]
        total, square = (np.bincount(datum, v, minlength=n) for v in (value, value**2))
        return total, square, np.bincount(datum, minlength=n).astype(np.float64)

    def _visit(self) -> Array:
        """The number of times (N,) that each call's datum was drawn before."""
        order = np.argsort(self._datum, kind="stable")
        number = np.bincount(self._datum, minlength=self.num_data)
        first = (number.cumsum() - number)[self._datum[order]]
        visit = np.empty_like(order)
        visit[order] = np.arange(len(order)) - first
        return visit


def of_target(values: Values, target: Target) -> Values:
    """The values of a target, or the difference of two, from those of all (M, …)."""
    first, second = target
    return values[first] if second is None else values[first] - values[second]


def cells(level: Tensor, edges: Tensor) -> Tensor:
    """The cell of each level between increasing edges (S + 1,), like the levels."""
    return (torch.bucketize(level, edges, right=True) - 1).clamp(0, len(edges) - 2)


def error_of_sum(value: Array, group: Array, level: Array) -> tuple[Array, Array]:
    """Standard error and skewness of Σ value (…, N), from neighbours in λ in their group (N,).

    Draws are stratified: a value's distance from its neighbour in λ has twice its variance. The
    spread of all values would include smooth variation with λ, which cancels in the sum.
    """
    order = np.lexsort((level, group))
    group, value = group[order], value[..., order]
    size, same = np.bincount(group)[group], group[1:] == group[:-1]
    square = 0.5 * np.diff(value) ** 2 * same
    alone = value**2 * (size == 1)  # without a neighbour: all of it
    scaled = square * (size / np.maximum(size - 1, 1))[1:]
    error = np.sqrt(scaled.sum(-1) + alone.sum(-1))
    if value.shape[-1] < 3:
        return error, np.zeros_like(error)
    off = value[..., 1:-1] - (value[..., :-2] + value[..., 2:]) / 2
    off = off * (same[1:] & same[:-1])  # of which E off² = 3/2 σ², E off³ = 3/4 μ_3
    variance = np.maximum((off**2).sum(-1) / 1.5, 1e-150)  # whose power 1.5 is not 0
    return error, (off**3).sum(-1) / 0.75 / variance**1.5


def _variance(total: Array, square: Array, number: Array) -> Array:
    """The variance of values with this sum, sum of squares and number; NaN for fewer than two."""
    several = np.where(number > 1, number - 1, np.nan)
    # clamped: the difference of equal values may be rounded below 0
    return np.maximum(square - total**2 / number, 0) / several


def _allowance(skewness: Number) -> Number:
    """The factor by which the error exceeds that of the spread."""
    return 1 + 3 * skewness**2


def _local_regression(weight: Array, X: Array, y: Array) -> Array:
    """Weighted least squares of y (m,) on X (m, p) for each row of ``weight`` (S, m): (S, p).

    Shrunk to 0 by the weight of one observation, so that few draws do not give wild coefficients.
    """
    p = X.shape[1]
    normal = (weight @ (X[:, :, None] * X[:, None]).reshape(-1, p * p)).reshape(-1, p, p)
    right = weight @ (X * y[:, None])
    size = np.maximum(weight.sum(1), 1e-12)
    typical = normal.diagonal(axis1=1, axis2=2) / size[:, None]  # mean square of each column
    ridge = np.maximum(typical, 1e-12)[:, None] * np.eye(p)
    return np.linalg.solve(normal + ridge, right[:, :, None])[:, :, 0]
