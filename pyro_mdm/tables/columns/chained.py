"""Completions of a table before there is a model of it, by chained equations.

A model of rows with entries missing at random completes them itself, see
:class:`~pyro_mdm.conditioning.Completions`, and begins with scales of its columns and with a first
completion. Both must be those of whole rows: where one of two groups lacks a column, its present
values are those of the other group, and a model that begins with these leaves them slowly.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_mdm.support.checks import DataError
from pyro_mdm.support.doors import Count, checked_arguments
from pyro_mdm.tables.columns.base import Column, Values
from pyro_mdm.tables.columns.gaps import dependent_gaps
from pyro_mdm.tables.columns.numbers import Continuous, Mixed, Rounded
from pyro_mdm.tables.columns.skipped import ABSENT, HIDDEN, SkippedNumbers

if TYPE_CHECKING:
    from numpy.random import Generator
    from sklearn.tree import DecisionTreeRegressor

__all__ = ["chained_completions"]

SWEEPS = 5
"""The number of sweeps up to the first table that is kept."""
LEAF = 15
"""The fewest rows of a leaf, which are the donors of entries that fall into it."""
MOST = 4096
"""The most rows that regressions and trees are fitted to, drawn from those with the column."""
REACH = 0.5
"""The largest distance of a drawn number from the range of present ones, as a fraction of the
range: a line may extrapolate, but not anywhere."""


@checked_arguments
def chained_completions(
    columns: Sequence[Column], codes: Tensor, *, num: Count = 1, seed: int = 0
) -> Tensor | None:
    r"""Completions of a table by chained equations, or None if no gap depends on other columns.

    Each column with gaps is drawn given all others, in turn, repeatedly. A number is the prediction
    of a linear regression, which extrapolates to rows unlike those with the column, and the
    residual of a donor: a row in the same leaf of a tree of residuals, or any row if the tree
    predicts them no better than their mean. The regression is one of numbers or of their values in
    model space, whichever predicts better; both comparisons are by two folds. A level is that of a
    donor in the same leaf of a tree of levels. So is an atom of a column of numbers, a date, and a
    value of a kind of your own.

    Args:
        columns: the columns of the table, fitted to it.
        codes: codes of the rows, as by :func:`~pyro_mdm.tables.columns.encode`, (n, d), NaN where
            an entry is missing.
        num: the number of completed tables, of one chain.
        seed: the seed of the draws.

    Returns:
        Codes of ``num`` tables without a gap, (num, n, d) float64, or None.

    Raises:
        DataError: a column without any value.

    Source: van Buuren & Groothuis-Oudshoorn, "mice: Multivariate imputation by chained equations
    in R", 2011; the donors in leaves are those of Doove, van Buuren & Dusseldorp, "Recursive
    partitioning for missing data imputation in the presence of interaction effects", 2014.

    Example:
        >>> import pandas as pd
        >>> from pyro_mdm.tables.columns import encode, fit_columns
        >>> frame = pd.DataFrame({"a": range(100), "b": [float(k) % 7 for k in range(100)]})
        >>> columns = fit_columns(frame, np.ones(100, dtype=bool))
        >>> chained_completions(columns, encode(columns, frame)) is None  # no gaps
        True
    """
    if codes.shape != (len(codes), len(columns)):
        raise ValueError(
            f"codes has shape {tuple(codes.shape)}, expected (n, {len(columns)}), a column for each"
        )
    values = codes.double().cpu().numpy()
    if not (np.isnan(values) | (values == HIDDEN)).any() or not _depends(columns, values):
        return None
    with np.errstate(over="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        chain = _Chain(columns, values, np.random.default_rng(seed))
        for _ in range(SWEEPS - 1):
            chain.sweep()
        completed = []
        for _ in range(num):
            chain.sweep()
            completed.append(np.stack(chain.codes(), 1))
    return torch.from_numpy(np.stack(completed))


def _depends(columns: Sequence[Column], values: Values) -> bool:
    """Whether gaps of at least one column depend on another.

    Of a column that does not exist for some rows, those where it exists count.
    """
    import pandas as pd

    names, series = [column.name for column in columns], {}
    for column, code in zip(columns, values.T, strict=True):
        numbers = pd.Series(code)
        is_level = column.levels is not None
        series[column.name] = numbers.astype("Int64").astype("category") if is_level else numbers
    table = pd.DataFrame(series)
    if dependent_gaps(table, names):
        return True
    for column, code in zip(columns, values.T, strict=True):
        if (code == HIDDEN).any():
            exists = code != ABSENT
            hidden = np.where(code[exists] == HIDDEN, math.nan, code[exists])
            if column.name in dependent_gaps(table[exists].assign(**{column.name: hidden}), names):
                return True
    return False


class _Variable:
    """A variable that is drawn: a column, the existence of its number, or that number.

    Attributes:
        values: the code of each row, (n,), NaN where it is missing and not drawn yet.
        missing: the mask of the rows where it is drawn, (n,).
        exists: the variable of its existence; None: it exists in all rows.
        place: the slice of its features among those of all variables.
    """

    place: slice

    def __init__(
        self, column: Column | None, values: Values, exists: _Variable | None = None
    ) -> None:
        self.column, self.exists = column, exists
        self.values, self.missing = values.copy(), np.isnan(values)
        self.is_level = column is None or column.levels is not None
        self.one_hot = column.levels if column is not None and column.width > 1 else None
        there = values[~self.missing]
        if column is not None and not len(there):
            raise DataError(f"no row has column {column.name!r}, expected some; leave it out")
        self._mean, self._deviation = there.mean(), there.std() or 1.0

    @property
    def present(self) -> NDArray[np.bool_]:
        """The mask of the rows where it exists by the present draws, (n,)."""
        if self.exists is None:
            return np.ones(len(self.values), dtype=np.bool_)
        return np.asarray(self.exists.values == 1)

    @property
    def width(self) -> int:
        """The number of its features."""
        return 2 if isinstance(self.column, Continuous) else self.one_hot or 1

    def features(self) -> Values:
        """Its features for regressions of other columns, (n, width): a standardized number, and its
        value in model space."""
        if self.one_hot is not None:
            return np.asarray(self.values[:, None] == np.arange(self.one_hot), dtype=np.float32)
        present = self.present
        features = np.zeros((len(present), self.width), dtype=np.float32)
        values = self.values[present]
        features[present, 0] = (values - self._mean) / self._deviation
        if isinstance(self.column, Continuous):
            features[present, 1] = _scaled(self.column, values)[0]
        return features

    def draw(self, features: Values, rng: Generator) -> None:
        """Draw missing values given features of the others, (n, D)."""
        present = self.present
        there, gone = np.flatnonzero(present & ~self.missing), present & self.missing
        if not gone.any():
            return
        there = rng.permutation(there)[:MOST]
        x, y, new = features[there], self.values[there], features[gone]
        if self.is_level:
            self.values[gone] = y[_donors(x, y, new, rng, of_levels=True)]
        elif isinstance(self.column, Continuous):
            self.values[gone] = self._numbers(x, y, new, rng)
        else:
            self.values[gone] = y[_donors(x, y, new, rng)]

    def _numbers(self, x: Values, y: Values, new: Values, rng: Generator) -> Values:
        """Atoms of donors, and numbers by a regression where a donor's number is no atom."""
        atoms = self.column.atoms.numpy() if isinstance(self.column, Mixed) else np.empty(0)
        if not len(atoms):
            return self._on_line(x, y, new, rng)
        is_atom = np.isin(y, atoms)
        atom = np.where(is_atom, np.searchsorted(atoms, y), len(atoms))
        donors = _donors(x, atom, new, rng, of_levels=True)
        drawn, free = y[donors], ~is_atom[donors]
        if free.any():
            on_line = self._on_line(x[~is_atom], y[~is_atom], new[free], rng)
            drawn[free] = np.where(np.isin(on_line, atoms), drawn[free], on_line)
        return drawn

    def _on_line(self, x: Values, y: Values, new: Values, rng: Generator) -> Values:
        """Numbers predicted by a line, with residuals of donors, as the column can have them.

        Those that are too far are the donors' numbers. The line is one of numbers or of their
        values in model space, whichever predicts one half of the rows better by the other.
        """
        from sklearn.linear_model import Ridge

        column = self.column
        assert isinstance(column, Continuous)
        if len(y) < 2:
            return np.full(len(new), y[0])
        scaled, log_slope = _scaled(column, y)
        straight = (y - self._mean) / self._deviation
        half = rng.permutation(len(y)) % 2 == 0
        gain = _log_density(x, scaled, half) + log_slope.mean() + math.log(self._deviation)
        is_scaled = gain > _log_density(x, straight, half)
        target = scaled if is_scaled else straight
        line = Ridge(alpha=1.0).fit(x, target)
        residual = target - line.predict(x)
        donors = _donors(x, residual, new, rng)
        drawn = line.predict(new) + residual[donors]
        if not is_scaled:
            drawn, _ = _scaled(column, drawn * self._deviation + self._mean)
        codes = column.unscaled(torch.from_numpy(drawn)).numpy()
        beyond = REACH * np.ptp(y)
        near = (codes >= y.min() - beyond) & (codes <= y.max() + beyond)
        return np.where(near, codes, y[donors])


def _scaled(column: Column, values: Values) -> tuple[Values, Values]:
    """Numbers in model space, and the log of the slope there.

    A rounded column has the slope of a probability, which its last decimal turns into a density's.
    """
    numbers = torch.from_numpy(values)
    x, log_slope = column.scaled(numbers, torch.full_like(numbers, 0.5))
    decimals = column.decimals if isinstance(column, Rounded) else 0
    return x.numpy(), log_slope.numpy() + decimals * math.log(10)


def _log_density(x: Values, y: Values, half: NDArray[np.bool_]) -> float:
    """The mean log density of each half of the rows, but for a constant, by a normal distribution
    about a line that is fitted to the other."""
    from sklearn.linear_model import Ridge

    total = 0.0
    for fitted in (half, ~half):
        line = Ridge(alpha=1.0).fit(x[fitted], y[fitted])
        total += float(((y[~fitted] - line.predict(x[~fitted])) ** 2).sum())
    return -0.5 * math.log(total / len(y) + 1e-12)  # an exact line leaves 0


class _Chain:
    """The variables of a table and their features, which are 0 for those with gaps until drawn."""

    def __init__(self, columns: Sequence[Column], codes: Values, rng: Generator) -> None:
        self._rng, self._by_column = rng, []
        for column, code in zip(columns, codes.T, strict=True):
            if isinstance(column, SkippedNumbers):
                exists = _Variable(None, np.where(np.isnan(code), math.nan, code != ABSENT))
                number = np.where(np.isfinite(code), code, math.nan)
                self._by_column.append([exists, _Variable(column.column, number, exists)])
            else:
                self._by_column.append([_Variable(column, code)])
        variables = [variable for variables in self._by_column for variable in variables]
        end = 0
        for variable in variables:
            variable.place = slice(end, end + variable.width)
            end += variable.width
        self._features = np.zeros((len(codes), end), dtype=np.float32)
        for variable in variables:
            if not variable.missing.any():
                self._features[:, variable.place] = variable.features()
        gaps = [variable for variable in variables if variable.missing.any()]
        self._order = sorted(gaps, key=lambda variable: variable.missing.sum())

    def sweep(self) -> None:
        """Draw each variable anew, those with the fewest gaps first."""
        for variable in self._order:
            self._features[:, variable.place] = 0  # it does not see itself
            for number in self._order:
                if number.exists is variable:  # the number is 0 where it does not exist
                    self._features[:, number.place] = 0
            variable.draw(self._features, self._rng)
            self._features[:, variable.place] = variable.features()

    def codes(self) -> list[Values]:
        """The codes of each column, completed."""
        return [
            first.values if not number else np.where(first.values == 1, number[0].values, ABSENT)
            for first, *number in self._by_column
        ]


def _donors(
    x: Values, y: Values, new: Values, rng: Generator, *, of_levels: bool = False
) -> NDArray[np.int64]:
    """The indices of donors, (m,), drawn from the same leaf of a tree of y.

    If the tree does not predict numbers y, donors are any rows.

    Args:
        x: features of rows with a value, (n, D).
        y: these values, (n,).
        new: features of rows without one, (m, D).
        rng: the generator.
        of_levels: whether y are levels.
    """
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    kind = DecisionTreeClassifier if of_levels else DecisionTreeRegressor
    tree = kind(min_samples_leaf=LEAF, random_state=int(rng.integers(2**31)))
    if not of_levels and not _predicts(tree, x, y, rng):
        return rng.integers(len(y), size=len(new))
    leaf, leaf_of_new = tree.fit(x, y).apply(x), tree.apply(new)
    order = np.argsort(leaf, kind="stable")
    first = np.searchsorted(leaf[order], leaf_of_new)
    last = np.searchsorted(leaf[order], leaf_of_new, "right")
    return np.asarray(order[rng.integers(first, last)])


def _predicts(tree: DecisionTreeRegressor, x: Values, y: Values, rng: Generator) -> bool:
    """Whether a tree of one half of the rows predicts the other half better than its mean does."""
    half = rng.permutation(len(y)) % 2 == 0
    if half.sum() < 2 * LEAF or (~half).sum() < 2 * LEAF:
        return False
    gain = 0.0
    for fitted in (half, ~half):
        predicted = tree.fit(x[fitted], y[fitted]).predict(x[~fitted])
        off = y[~fitted] - y[fitted].mean()
        gain += float((off**2 - (y[~fitted] - predicted) ** 2).sum())
    return gain > 0
