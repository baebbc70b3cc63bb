r"""Integrals over noise level, averaged over data, from few evaluations of several integrands.

The target for every integrand h_m(x, λ, ε) is (1/n) Σ_i ∫ E h_m(x_i, λ, ε) dλ, and an evaluation is
a network call. λ is the level that :meth:`pyro_mdm.scores.Score.integrand` takes. Four things make
it cheap:

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
from a :class:`StrataPlan`, made from a pilot that is no part of the estimate; the number of draws
may then come from the pilot too. Without a plan they come from the data of other folds
(cross-fitting), and no draw is lost. That is for a fixed number of draws: stopping when the draws
themselves look good would stop early, and low, where tails are heavy. (From the third round on a
density depends slightly on its own fold, through the others' coefficients. tests/test_strata.py
looks for a bias of either kind.)

All of this is done by numpy on the host, where it is small: values of a round are read at once.

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

__all__ = ["Draws", "Integral", "StrataPlan", "StratifiedIntegrals", "Target", "cells"]

FOLDS = 4
UNIFORM_SHARE = 0.1
SMALL = 0.05  # part of the baseline's largest density below which all data count alike
Target = tuple[int, int | None]
"""The index of an integrand and None, or the indices of two for their difference."""

Array = NDArray[Any]
Number = TypeVar("Number", float, Array)


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
        num_data: number n of data.
        baseline: integral of the baseline over each cell, (n, S); None: no baseline.
        density: density of the first round over level, (S,), up to a factor; None: uniform.
        adapt: whether later rounds have densities of their own.
        seed: seed of the draws.
        plan: coefficients and density from a pilot; None: fitted to the draws, across folds.
        counts: mask of the data for which integrand m exists, (M, n) bool; otherwise it is 0 at
            every level, and a datum without any is not drawn. None: all exist.
    """

    def __init__(
        self,
        edges: Tensor,
        covers: Tensor,
        num_data: int,
        *,
        baseline: Tensor | None = None,
        density: Tensor | None = None,
        adapt: bool = True,
        seed: int = 0,
        plan: StrataPlan | None = None,
        counts: Tensor | None = None,
    ) -> None:
        self._plan, self.adapt = plan, adapt and plan is None
        self.folds = FOLDS if plan is None else 1
        self.edges, self.covers = _read(edges), _read(covers)
        self.width, self.baseline, self.num_data = np.diff(self.edges), baseline, num_data
        everything = np.ones((len(covers), num_data), dtype=bool)
        self.counts = everything if counts is None else _read(counts)
        some = self.counts.any(0)
        self._drawn = np.flatnonzero(some if some.any() else everything[0])
        self._generator = torch.Generator().manual_seed(seed)
        self._fold_of = np.empty(num_data, dtype=np.int64)
        self._fold_of[self._permuted(num_data)] = np.arange(num_data) % self.folds
        self._queue = np.empty(0, dtype=np.int64)
        if plan is None:
            first = self._with_floor(
                np.ones_like(self.width) if density is None else _read(density)
            )
        else:
            first, self._planned = _read(plan.density), _read(plan.coefficients)
        self._next = np.tile(first, (self.folds, 1))  # density of each fold's next round
        self._rounds: list[tuple[Array, Array]] = []  # (calls of each fold, their densities)
        self._scale = np.ones_like(self.width)
        self._hardness = np.zeros((num_data, len(self.width)))
        self._exact = None if baseline is None else _read(baseline)
        if self._exact is not None and some.any():
            profile = self._exact.mean(0) / self.width
            self._scale = profile + SMALL * profile.max()
            self._hardness = self._exact / self.width / self._scale  # in units of the profile
        m = len(covers)
        self._datum, self._round = (np.empty(0, dtype=np.int64) for _ in range(2))
        self._level, self._baseline = np.empty(0), np.empty(0)
        self._values = np.empty((m, 0))
        self._left = np.empty((m, 0))  # h - h_0 - p, per unit of level
        self._predicted = np.zeros((m, num_data, len(self.width)))

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
        by_fold = [np.flatnonzero(self._fold_of[datum] == f) for f in range(self.folds)]
        even = _read(torch.cat([self._even(len(mine)) for mine in by_fold]))
        level, first = np.empty(size), 0
        for mine, density in zip(by_fold, self._next, strict=True):
            level[mine] = self._quantile(density, even[first : first + len(mine)])
            first += len(mine)
        return Draws(torch.from_numpy(datum), torch.from_numpy(level))

    def add(self, draws: Draws, values: Tensor, baseline: Tensor | None = None) -> None:
        """Add the values (M, m) and the baseline's (m,) at the round's draws, per unit of level."""
        others = [] if baseline is None else [baseline]
        rows = torch.stack([draws.datum.double(), draws.level, *values, *others])
        number, level, *values_and_baseline = _read(rows)
        datum, m = number.astype(np.int64), len(values)
        calls = np.bincount(self._fold_of[datum], minlength=self.folds)
        self._rounds.append((calls, self._next.copy()))
        self._round = np.append(self._round, np.full_like(datum, len(self._rounds) - 1))
        self._datum = np.append(self._datum, datum)
        self._level = np.append(self._level, level)
        self._values = np.append(self._values, np.stack(values_and_baseline[:m]), 1)
        self._baseline = np.append(self._baseline, values_and_baseline[m:])
        self._fit()

    @np.errstate(divide="ignore", invalid="ignore")
    def integral(self, first: int, second: int | None = None) -> Integral:
        """The estimate for integrand ``first``, or for the difference ``first`` − ``second``."""
        left, predicted, counts = self._left[first], self._predicted[first], self.counts[first]
        if second is not None:
            left, predicted = left - self._left[second], predicted - self._predicted[second]
            counts = counts | self.counts[second]
        everything = np.ones(self.num_draws, dtype=bool)
        mine, square, number = self._sums(left, everything)
        per_datum = predicted.sum(1) + mine / np.maximum(number, 1)
        second_half = self._visit() % 2 == 1
        sums_of_halves = [self._sums(left, use) for use in (~second_half, second_half)]
        halves = np.stack([predicted.sum(1) + one / count for one, _, count in sums_of_halves])
        varied, *of_halves = (
            torch.from_numpy(_variance(*sums)) for sums in ((mine, square, number), *sums_of_halves)
        )
        value, S = self._weight() * left, len(self.width)
        cell = _cells(self._level, self.edges)
        density, spread = (np.bincount(cell, v, minlength=S) for v in (value, value**2))
        spread_and_number = (torch.from_numpy(square), torch.from_numpy(number))
        exists = torch.from_numpy(counts)
        return Integral(
            mean=float(predicted.sum(1).mean() + value.sum()),
            error=float(self._errors([(first, second)])[0]),
            per_datum=torch.from_numpy(per_datum),
            noise=Noise.from_spread(varied, of_halves, *spread_and_number, exists),
            halves=torch.where(exists, torch.from_numpy(halves), 0),
            density=torch.from_numpy((predicted.mean(0) + density) / self.width),
            density_error=torch.from_numpy(np.sqrt(spread) / self.width),
        )

    def errors(self, targets: Sequence[Target]) -> Tensor:
        """The error of :meth:`integral` for each target, (len(targets),).

        With a plan, whose targets these must be, the spread of the pilot's draws counts too: the
        draws of a heavy-tailed integrand that come out low also look alike, and the pilot is
        independent of them. Where few draws make most of the mean, and of its skewness t, an
        interval of normal size covers too little: the error is 1 + 3 t² times that of the spread,
        by measurement (tests/benchmarks/coverage.py).
        """
        return torch.from_numpy(self._errors(targets))

    def _errors(self, targets: Sequence[Target]) -> Array:
        error, skewness = self._error_of_sum(self._weight() * self._left_of(targets))
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
        columns, excess, scale = self._regression()
        q = self._pooled_density() * density[_cells(self._level, self.edges)]
        one = self._left_of(targets) / np.sqrt(q)  # of pooled draws, with the spread of new ones
        error, skewness = self._error_of_sum(one, np.zeros_like(self._round))
        spread = error / self.num_draws**0.5
        return StrataPlan(
            torch.from_numpy(self._coefficients(columns, excess, scale, everything)),
            torch.from_numpy(density),
            self.num_draws,
            dict(zip(targets, map(float, spread), strict=True)),
            dict(zip(targets, map(float, np.abs(skewness)), strict=True)),
        )

    def allocate(self, targets: Sequence[Target]) -> None:
        """Set the densities of the next round to those that serve all ``targets`` best."""
        if not self.adapt or not targets:
            return
        fold = self._fold_of[self._datum]
        for f in range(self.folds):
            self._next[f] = self._best_density(targets, fold != f)

    # -- the parts ---------------------------------------------------------------------------------

    def _permuted(self, m: int) -> Array:
        """0 … m - 1 in random order."""
        return _read(torch.randperm(m, generator=self._generator))

    def _even(self, m: int) -> Tensor:
        """Random numbers (m,) in [0, 1), one in each m-th part, in random order."""
        order = torch.randperm(m, generator=self._generator).double()
        within = torch.rand(m, generator=self._generator, dtype=torch.float64)
        return (order + within) / max(m, 1)

    def _fit(self) -> None:
        """Fit coefficients by cell for each fold, from the others, and all residuals."""
        cell, fold = _cells(self._level, self.edges), self._fold_of[self._datum]
        columns, excess, scale = self._regression()
        self._left = np.zeros_like(self._values)
        for f in range(self.folds):
            if self._plan is not None:
                coefficients = self._planned
            else:
                coefficients = self._coefficients(columns, excess, scale, fold != f)
            mine = fold == f
            data = self._fold_of == f
            for m, (covered, beta) in enumerate(zip(self.covers, coefficients, strict=True)):
                prediction = (columns[mine] * beta[cell[mine]]).sum(1)
                left = excess[m, mine] - scale[mine] * prediction
                counts = self.counts[m]
                self._left[m, mine] = left * covered[cell[mine]] * counts[self._datum[mine]]
                per_unit, baseline = beta[:, 0], np.zeros(())
                if self._exact is not None:
                    harder = self._hardness[data] - self._hardness.mean(0)
                    per_unit = per_unit + beta[:, 2] * harder
                    baseline = self._exact[data]
                predicted = (baseline + self._scale * self.width * per_unit) * covered
                self._predicted[m, data] = predicted * counts[data, None]

    def _regression(self) -> tuple[Array, Array, Array]:
        """Columns (N, p), h_m - h_0 (M, N), and the unit (N,) in which it is predicted."""
        cell = _cells(self._level, self.edges)
        columns, scale = [np.ones_like(self._level)], self._scale[cell]
        excess = self._values
        if self._exact is not None:
            at = self._hardness[self._datum, cell]
            columns += [self._baseline / scale - at, at - self._hardness.mean(0)[cell]]
            excess = excess - self._baseline
        return np.stack(columns, 1), excess, scale

    def _coefficients(self, columns: Array, excess: Array, scale: Array, use: Array) -> Array:
        """Coefficients (M, S, p) by weighted least squares near each cell, by draws in ``use``."""
        kernel, cell = self._kernel(self._level[use]), _cells(self._level[use], self.edges)
        y = (excess / scale)[:, use]
        here = self.counts[:, self._datum[use]] & self.covers[:, cell]
        return np.stack(
            [
                _local_regression(kernel * inside, columns[use], y[m])
                for m, inside in enumerate(here)
            ]
        )

    def _best_density(self, targets: Sequence[Target], use: Array) -> Array:
        """A density (S,) like the standard deviation of the residuals of draws in ``use``."""
        # clamped: an exact integral has no error, and cells that no draw is near have no weight
        need = np.maximum(self._errors(targets) ** 2, 1e-300)
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
        weights: Array = np.exp(-0.5 * ((level - centre[:, None]) / bandwidth) ** 2)
        return weights

    @np.errstate(divide="ignore", invalid="ignore")
    def _quantile(self, density: Array, u: Array) -> Array:
        mass = np.append(0.0, np.cumsum(density * self.width))
        i = _cells(u * mass[-1], mass)
        inside = self.edges[i] + (u * mass[-1] - mass[i]) / density[i]
        return np.minimum(inside, self.edges[-1])

    def _with_floor(self, density: Array) -> Array:
        """The density, normalized, mixed with a uniform part, and 0 where there is no integrand."""
        used = self.covers.any(0).astype(np.float64)
        uniform = used / (used * self.width).sum()
        density = density * used
        total = (density * self.width).sum()
        if not total > 0:
            return uniform
        return (1 - UNIFORM_SHARE) * density / total + UNIFORM_SHARE * uniform

    def _left_of(self, targets: Sequence[Target]) -> Array:
        """The residuals (len(targets), N) of the draws."""
        return np.stack(
            [self._left[a] if b is None else self._left[a] - self._left[b] for a, b in targets]
        )

    def _weight(self) -> Array:
        """The weight (N,) of each draw in the mean over data of the integral.

        A fold counts by the number of its data that are drawn.
        """
        fold = self._fold_of[self._datum]
        data = self._fold_of[self._drawn]
        share = np.bincount(data, minlength=self.folds) / self.num_data
        calls = np.bincount(fold, minlength=self.folds)
        return (share / np.maximum(calls, 1))[fold] / self._pooled_density()

    def _error_of_sum(self, value: Array, group: Array | None = None) -> tuple[Array, Array]:
        """Standard error and skewness of Σ value (…, N), from neighbours in λ in their group.

        Groups (N,) are each round's draws of each fold, unless given.

        Draws are stratified: a value's distance from its neighbour in λ has twice its variance. The
        spread of all values would include smooth variation with λ, which cancels in the sum.
        """
        if group is None:
            group = self._round * self.folds + self._fold_of[self._datum]
        order = np.lexsort((self._level, group))
        group, value = group[order], value[..., order]
        size = np.bincount(group)[group]
        same = group[1:] == group[:-1]
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

    def _pooled_density(self) -> Array:
        """The density (N,) of each call's λ, over all rounds of its fold together."""
        fold, cell = self._fold_of[self._datum], _cells(self._level, self.edges)
        pooled, total = np.zeros((self.folds, len(self.width))), np.zeros((self.folds, 1))
        for calls, density in self._rounds:
            pooled += calls[:, None] * density
            total += calls[:, None]
        return (pooled / np.maximum(total, 1))[fold, cell]

    def _sums(self, left: Array, use: Array) -> tuple[Array, Array, Array]:
        """The sum, the sum of squares and the number of each datum's residuals / density, (n,).

        Those of the draws in ``use`` count.
        """
        datum, n = self._datum[use], self.num_data
        value = left[use] / self._own_density(use)
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

    def _own_density(self, use: Array) -> Array:
        """The density (N',) of the λ of calls in ``use``, over the rounds that have their datum."""
        densities = np.stack([density for _, density in self._rounds])  # (R, folds, S)
        R, n = len(densities), self.num_data
        places = self._round[use] * n + self._datum[use]
        visits = np.bincount(places, minlength=R * n).reshape(R, n)
        visits = visits / np.maximum(visits.sum(0), 1)
        of_datum = np.empty((n, len(self.width)))
        for f in range(self.folds):
            of_datum[self._fold_of == f] = visits[:, self._fold_of == f].T @ densities[:, f]
        return of_datum[self._datum[use], _cells(self._level[use], self.edges)]


def cells(level: Tensor, edges: Tensor) -> Tensor:
    """The cell of each level between increasing edges (S + 1,), like the levels."""
    return (torch.bucketize(level, edges, right=True) - 1).clamp(0, len(edges) - 2)


def _cells(level: Array, edges: Array) -> Array:
    """As :func:`cells`."""
    return (np.searchsorted(edges, level, side="right") - 1).clip(0, len(edges) - 2)


def _read(tensor: Tensor) -> Array:
    return tensor.detach().cpu().numpy()


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
