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

Source of the control variate: regression estimators of survey sampling (Cochran, "Sampling
Techniques", 1977, chapter 7), with coefficients that vary with λ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from pyro_mdm.evaluation.estimates import Noise

__all__ = ["Draws", "Integral", "StrataPlan", "StratifiedIntegrals", "Target", "cells"]

FOLDS = 4
UNIFORM_SHARE = 0.1
SMALL = 0.05  # part of the baseline's largest density below which all data count alike
Target = tuple[int, int | None]
"""The index of an integrand and None, or the indices of two for their difference."""

Number = TypeVar("Number", float, Tensor)


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
        self.edges, self.width, self.covers = edges, edges.diff(), covers
        self.num_data, self.baseline = num_data, baseline
        everything = torch.ones(len(covers), num_data, dtype=torch.bool)
        self.counts = everything if counts is None else counts
        some = self.counts.any(0)
        self._drawn = (some if bool(some.any()) else everything[0]).nonzero().squeeze(1)
        self._generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(num_data, generator=self._generator)
        self._fold_of = torch.empty(num_data, dtype=torch.int64)
        self._fold_of[order] = torch.arange(num_data) % self.folds
        self._queue = order.new_empty(0)
        if density is None:
            density = torch.ones(len(self.width))
        first = self._with_floor(density) if plan is None else plan.density
        self._next = first.expand(self.folds, -1).clone()  # density of each fold's next round
        self._rounds: list[tuple[Tensor, Tensor]] = []  # (calls of each fold, their densities)
        self._scale = torch.ones(len(self.width), dtype=torch.float64)
        self._hardness = torch.zeros(num_data, len(self.width), dtype=torch.float64)
        if baseline is not None and bool(some.any()):
            profile = baseline.mean(0) / self.width
            self._scale = profile + SMALL * profile.max()
            self._hardness = baseline / self.width / self._scale  # in units of the profile
        m = len(covers)
        self._datum, self._round = (torch.empty(0, dtype=torch.int64) for _ in range(2))
        self._level, self._baseline = (torch.empty(0, dtype=torch.float64) for _ in range(2))
        self._values = torch.empty(m, 0, dtype=torch.float64)
        self._left = torch.empty(m, 0, dtype=torch.float64)  # h - h_0 - p, per unit of level
        self._predicted = torch.zeros(m, num_data, len(self.width), dtype=torch.float64)

    @property
    def num_draws(self) -> int:
        """The number of draws so far."""
        return len(self._datum)

    def draw(self, size: int) -> Draws:
        """The next round: ``size`` data, each at one level; pass their values to :meth:`add`."""
        while len(self._queue) < size:
            more = torch.randperm(len(self._drawn), generator=self._generator)
            self._queue = torch.cat([self._queue, self._drawn[more]])
        datum, self._queue = self._queue[:size], self._queue[size:]
        level = torch.empty(size, dtype=torch.float64)
        for f in range(self.folds):
            mine = (self._fold_of[datum] == f).nonzero().squeeze(1)
            m = len(mine)
            u = torch.randperm(m, generator=self._generator).double()
            u = (u + torch.rand(m, generator=self._generator, dtype=torch.float64)) / max(m, 1)
            level[mine] = self._quantile(self._next[f], u)
        return Draws(datum, level)

    def add(self, draws: Draws, values: Tensor, baseline: Tensor | None = None) -> None:
        """Add the values (M, m) and the baseline's (m,) at the round's draws, per unit of level."""
        calls = torch.bincount(self._fold_of[draws.datum], minlength=self.folds)
        self._rounds.append((calls, self._next.clone()))
        self._round = torch.cat([self._round, torch.full_like(draws.datum, len(self._rounds) - 1)])
        self._datum = torch.cat([self._datum, draws.datum])
        self._level = torch.cat([self._level, draws.level])
        self._values = torch.cat([self._values, values], 1)
        if baseline is not None:
            self._baseline = torch.cat([self._baseline, baseline])
        self._fit()

    def integral(self, first: int, second: int | None = None) -> Integral:
        """The estimate for integrand ``first``, or for the difference ``first`` − ``second``."""
        left, predicted, counts = self._left[first], self._predicted[first], self.counts[first]
        if second is not None:
            left, predicted = left - self._left[second], predicted - self._predicted[second]
            counts = counts | self.counts[second]
        everything = torch.ones_like(self._datum, dtype=torch.bool)
        mine, square, number = self._sums(left, everything)
        per_datum = predicted.sum(1) + mine / number.clamp_min(1)
        second_half = self._visit() % 2 == 1
        sums_of_halves = [self._sums(left, use) for use in (~second_half, second_half)]
        halves = torch.stack([predicted.sum(1) + one / count for one, _, count in sums_of_halves])
        varied, *of_halves = (
            _variance(*sums) for sums in ((mine, square, number), *sums_of_halves)
        )
        value = self._weight() * left
        cell = cells(self._level, self.edges)
        density, spread = (predicted.new_zeros(len(self.width)) for _ in range(2))
        density.index_add_(0, cell, value)
        spread.index_add_(0, cell, value.square())
        return Integral(
            mean=float(predicted.sum(1).mean() + value.sum()),
            error=float(self.errors([(first, second)])),
            per_datum=per_datum,
            noise=Noise.from_spread(varied, of_halves, square, number, counts),
            halves=torch.where(counts, halves, 0),
            density=(predicted.mean(0) + density) / self.width,
            density_error=spread.sqrt() / self.width,
        )

    def errors(self, targets: Sequence[Target]) -> Tensor:
        """The error of :meth:`integral` for each target, (len(targets),).

        With a plan, whose targets these must be, the spread of the pilot's draws counts too: the
        draws of a heavy-tailed integrand that come out low also look alike, and the pilot is
        independent of them. Where few draws make most of the mean, and of its skewness t, an
        interval of normal size covers too little: the error is 1 + 3 t² times that of the spread,
        by measurement (tests/benchmarks/coverage.py).
        """
        error, skewness = self._error_of_sum(self._weight() * self._left_of(targets))
        plan, N = self._plan, self.num_draws
        if plan is None or not N:
            return error
        foreseen = torch.tensor([plan.spread[t] for t in targets], dtype=torch.float64)
        pooled = error.square() * N * N + foreseen.square() * plan.num_draws
        foreseen_skewness = torch.tensor([plan.skewness[t] for t in targets], dtype=torch.float64)
        allowance = _allowance(torch.maximum(skewness.abs(), foreseen_skewness))
        return allowance * (pooled / (N + plan.num_draws) / N).sqrt()

    def plan(self, targets: Sequence[Target]) -> StrataPlan:
        """The coefficients and the density for other draws that serve all ``targets`` best."""
        everything = torch.ones(self.num_draws, dtype=torch.bool)
        density = self._best_density(targets, everything) if self.adapt else self._next[0]
        columns, excess, scale = self._regression()
        q = self._pooled_density() * density[cells(self._level, self.edges)]
        one = self._left_of(targets) / q.sqrt()  # of pooled draws, with the spread of new ones
        error, skewness = self._error_of_sum(one, torch.zeros_like(self._round))
        spread = error / self.num_draws**0.5
        return StrataPlan(
            self._coefficients(columns, excess, scale, everything),
            density,
            self.num_draws,
            dict(zip(targets, spread.tolist(), strict=True)),
            dict(zip(targets, skewness.abs().tolist(), strict=True)),
        )

    def allocate(self, targets: Sequence[Target]) -> None:
        """Set the densities of the next round to those that serve all ``targets`` best."""
        if not self.adapt or not targets:
            return
        fold = self._fold_of[self._datum]
        for f in range(self.folds):
            self._next[f] = self._best_density(targets, fold != f)

    # -- the parts ---------------------------------------------------------------------------------

    def _fit(self) -> None:
        """Fit coefficients by cell for each fold, from the others, and all residuals."""
        cell, fold = cells(self._level, self.edges), self._fold_of[self._datum]
        columns, excess, scale = self._regression()
        self._left = torch.zeros_like(self._values)
        for f in range(self.folds):
            if self._plan is not None:
                coefficients = self._plan.coefficients
            else:
                coefficients = self._coefficients(columns, excess, scale, fold != f)
            mine = fold == f
            data = self._fold_of == f
            for m, (covered, beta) in enumerate(zip(self.covers, coefficients, strict=True)):
                prediction = (columns[mine] * beta[cell[mine]]).sum(1)
                left = excess[m, mine] - scale[mine] * prediction
                counts = self.counts[m]
                self._left[m, mine] = left * covered[cell[mine]] * counts[self._datum[mine]]
                per_unit = beta[:, 0].expand(int(data.sum()), -1)
                baseline = torch.zeros_like(per_unit)
                if self.baseline is not None:
                    harder = self._hardness[data] - self._hardness.mean(0)
                    per_unit = per_unit + beta[:, 2] * harder
                    baseline = self.baseline[data]
                predicted = (baseline + self._scale * self.width * per_unit) * covered
                self._predicted[m, data] = predicted * counts[data, None]

    def _regression(self) -> tuple[Tensor, Tensor, Tensor]:
        """Columns (N, p), h_m - h_0 (M, N), and the unit (N,) in which it is predicted."""
        cell = cells(self._level, self.edges)
        columns, scale = [torch.ones_like(self._level)], self._scale[cell]
        excess = self._values
        if self.baseline is not None:
            at = self._hardness[self._datum, cell]
            columns += [self._baseline / scale - at, at - self._hardness.mean(0)[cell]]
            excess = excess - self._baseline
        return torch.stack(columns, 1), excess, scale

    def _coefficients(self, columns: Tensor, excess: Tensor, scale: Tensor, use: Tensor) -> Tensor:
        """Coefficients (M, S, p) by weighted least squares near each cell, by draws in ``use``."""
        kernel, cell = self._kernel(self._level[use]), cells(self._level[use], self.edges)
        y = (excess / scale)[:, use]
        here = self.counts[:, self._datum[use]] & self.covers[:, cell]
        weights = (kernel * inside.double() for inside in here)
        return torch.stack(
            [_local_regression(w, columns[use], y[m]) for m, w in enumerate(weights)]
        )

    def _best_density(self, targets: Sequence[Target], use: Tensor) -> Tensor:
        """A density (S,) like the standard deviation of the residuals of draws in ``use``."""
        # clamped: an exact integral has no error, and cells that no draw is near have no weight
        need = self.errors(targets).square().clamp_min(1e-300)
        importance = (self._left_of(targets).square() / need[:, None]).sum(0)
        kernel = self._kernel(self._level[use])
        variance = kernel @ importance[use] / kernel.sum(1).clamp_min(1e-12)
        return self._with_floor(variance.sqrt())

    def _kernel(self, level: Tensor) -> Tensor:
        """Weights (S, m) of draws for each cell's centre, wide enough for some 40 draws."""
        span = float(self.edges[-1] - self.edges[0])
        # an area of 16 √(2π) ≈ 40 even draws, but no less than a fortieth of the range
        bandwidth = span * min(1.0, max(1 / 40, 16 / max(len(level), 1)))
        centre = (self.edges[1:] + self.edges[:-1]) / 2
        return (-0.5 * ((level - centre[:, None]) / bandwidth).square()).exp()

    def _quantile(self, density: Tensor, u: Tensor) -> Tensor:
        mass = torch.cat([density.new_zeros(1), (density * self.width).cumsum(0)])
        i = cells(u * mass[-1], mass)
        return torch.minimum(self.edges[i] + (u * mass[-1] - mass[i]) / density[i], self.edges[-1])

    def _with_floor(self, density: Tensor) -> Tensor:
        """The density, normalized, mixed with a uniform part, and 0 where there is no integrand."""
        used = self.covers.any(0).double()
        uniform = used / (used * self.width).sum()
        density = density.double() * used
        total = float((density * self.width).sum())
        if not total > 0:
            return uniform
        return (1 - UNIFORM_SHARE) * density / total + UNIFORM_SHARE * uniform

    def _left_of(self, targets: Sequence[Target]) -> Tensor:
        """The residuals (len(targets), N) of the draws."""
        return torch.stack(
            [self._left[a] if b is None else self._left[a] - self._left[b] for a, b in targets]
        )

    def _weight(self) -> Tensor:
        """The weight (N,) of each draw in the mean over data of the integral.

        A fold counts by the number of its data that are drawn.
        """
        fold = self._fold_of[self._datum]
        data = self._fold_of[self._drawn]
        share = torch.bincount(data, minlength=self.folds).double() / self.num_data
        calls = torch.bincount(fold, minlength=self.folds).double()
        return (share / calls.clamp_min(1))[fold] / self._pooled_density()

    def _error_of_sum(self, value: Tensor, group: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Standard error and skewness of Σ value (…, N), from neighbours in λ in their group.

        Groups (N,) are each round's draws of each fold, unless given.

        Draws are stratified: a value's distance from its neighbour in λ has twice its variance. The
        spread of all values would include smooth variation with λ, which cancels in the sum.
        """
        if group is None:
            group = self._round * self.folds + self._fold_of[self._datum]
        order = torch.argsort(self._level)
        order = order[torch.argsort(group[order], stable=True)]
        group, value = group[order], value[..., order]
        size = torch.bincount(group).double()[group]
        same = group[1:] == group[:-1]
        square = 0.5 * value.diff().square() * same
        alone = value.square() * (size == 1)  # without a neighbour: all of it
        scaled = square * (size / (size - 1).clamp_min(1))[1:]
        error = (scaled.sum(-1) + alone.sum(-1)).sqrt()
        if value.shape[-1] < 3:
            return error, torch.zeros_like(error)
        off = value[..., 1:-1] - (value[..., :-2] + value[..., 2:]) / 2
        off = off * (same[1:] & same[:-1])  # of which E off² = 3/2 σ², E off³ = 3/4 μ_3
        variance = (off.square().sum(-1) / 1.5).clamp_min(1e-150)  # whose power 1.5 is not 0
        return error, off.pow(3).sum(-1) / 0.75 / variance.pow(1.5)

    def _pooled_density(self) -> Tensor:
        """The density (N,) of each call's λ, over all rounds of its fold together."""
        fold, cell = self._fold_of[self._datum], cells(self._level, self.edges)
        pooled = torch.zeros(self.folds, len(self.width), dtype=torch.float64)
        for calls, density in self._rounds:
            pooled += calls.double()[:, None] * density
        total = sum(calls for calls, _ in self._rounds)
        return (pooled / torch.as_tensor(total).clamp_min(1)[:, None])[fold, cell]

    def _sums(self, left: Tensor, use: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The sum, the sum of squares and the number of each datum's residuals / density, (n,).

        Those of the draws in ``use`` count.
        """
        density, datum = self._own_density(use), self._datum[use]
        value, nothing = left[use] / density, density.new_zeros(self.num_data)
        total, square = (nothing.index_add(0, datum, v) for v in (value, value.square()))
        return total, square, torch.bincount(datum, minlength=self.num_data).double()

    def _visit(self) -> Tensor:
        """The number of times (N,) that each call's datum was drawn before."""
        order = torch.argsort(self._datum, stable=True)
        number = torch.bincount(self._datum, minlength=self.num_data)
        first = (number.cumsum(0) - number)[self._datum[order]]
        return torch.empty_like(order).index_put_((order,), torch.arange(len(order)) - first)

    def _own_density(self, use: Tensor) -> Tensor:
        """The density (N',) of the λ of calls in ``use``, over the rounds that have their datum."""
        densities = torch.stack([density for _, density in self._rounds])  # (R, folds, S)
        visits = torch.zeros(len(self._rounds), self.num_data, dtype=torch.float64)
        where = (self._round[use], self._datum[use])
        visits.index_put_(where, torch.ones(len(where[0]), dtype=torch.float64), accumulate=True)
        visits = visits / visits.sum(0).clamp_min(1)
        of_datum = torch.empty(self.num_data, len(self.width), dtype=torch.float64)
        for f in range(self.folds):
            of_datum[self._fold_of == f] = visits[:, self._fold_of == f].mT @ densities[:, f]
        return of_datum[self._datum[use], cells(self._level[use], self.edges)]


def cells(level: Tensor, edges: Tensor) -> Tensor:
    """The cell of each level between increasing edges (S + 1,), like the levels."""
    return (torch.bucketize(level, edges, right=True) - 1).clamp(0, len(edges) - 2)


def _variance(total: Tensor, square: Tensor, number: Tensor) -> Tensor:
    """The variance of values with this sum, sum of squares and number; NaN for fewer than two."""
    several = torch.where(number > 1, number - 1, torch.nan)
    # clamped: the difference of equal values may be rounded below 0
    return (square - total.square() / number).clamp_min(0) / several


def _allowance(skewness: Number) -> Number:
    """The factor by which the error exceeds that of the spread."""
    return 1 + 3 * skewness**2


def _local_regression(weight: Tensor, X: Tensor, y: Tensor) -> Tensor:
    """Weighted least squares of y (m,) on X (m, p) for each row of ``weight`` (S, m): (S, p).

    Shrunk to 0 by the weight of one observation, so that few draws do not give wild coefficients.
    """
    p = X.shape[1]
    normal = (weight @ (X[:, :, None] * X[:, None]).flatten(1)).unflatten(1, (p, p))
    right = weight @ (X * y[:, None])
    size = weight.sum(1).clamp_min(1e-12)
    typical = normal.diagonal(dim1=-2, dim2=-1) / size[:, None]  # mean square of each column
    ridge = torch.diag_embed(typical.clamp_min(1e-12))
    return torch.linalg.solve(normal + ridge, right) if p else right
