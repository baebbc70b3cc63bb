"""The distribution of one column of a table in each row, given the entries of the others."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_mdm.randomness import seed_from
from pyro_mdm.support.checks import checked_arguments, describe
from pyro_mdm.support.measured import student_factor
from pyro_mdm.tables import density
from pyro_mdm.tables.columns.base import Values
from pyro_mdm.tables.columns.dates import days_of
from pyro_mdm.tables.columns.lazy import pd
from pyro_mdm.tables.columns.skipped import Skipped
from pyro_mdm.tables.completion import DrawOptions, draws
from pyro_mdm.tables.density import ERROR
from pyro_mdm.tables.frames import in_pieces

__all__ = ["Conditional"]

BATCHES = 8
"""The number of independent estimates of a probability, whose spread is its error."""


class Conditional:
    """The distribution of one column in each of n rows, given the entries of the other columns.

    :meth:`~pyro_mdm.tables.Table.conditional` makes it. Draws are made when they are first needed,
    and kept. All results have the index of the rows.

    Attributes:
        table: the joint distribution, a :class:`~pyro_mdm.tables.Table`.
        rows: the rows, without the entries of the column.
        name: the name of the column.

    Example:
        >>> import pandas as pd
        >>> from pyro_mdm.tables import Table
        >>> wine = Table.from_pretrained("wine")
        >>> rows = pd.DataFrame({name: [None, None] for name in wine.names}).assign(ash=[2.0, 2.5])
        >>> wine.conditional(rows, "alcohol", num=20).interval(0.9).shape
        (2, 2)
    """

    def __init__(
        self, table: Any, rows: pd.DataFrame, name: str, num: int, batch_size: int
    ) -> None:
        self.table, self.rows, self.name = table, rows, name
        self._num, self._batch_size = num, batch_size
        self._draws: pd.DataFrame | None = None

    def sample(self) -> pd.DataFrame:
        """Draws of the column, (n, num)."""
        if self._draws is None:
            pieces, table = [], self.table
            how = DrawOptions(self.name, self._batch_size, table.seed, table.unknown, (self.name,))
            for k, rows in enumerate(in_pieces(self.rows)):
                drawn = draws(table.rows, table.model, rows, self._num, how, piece=k)
                values = [one[self.name].to_numpy() for one in drawn]
                pieces.append(pd.DataFrame(dict(enumerate(values))))
            self._draws = pd.concat(pieces).set_axis(self.rows.index)
        return self._draws

    def exists(self) -> pd.Series:
        """The probability that the column exists, (n,), by the draws: 1 where it is never
        absent."""
        return self.sample().notna().mean(axis=1).rename(self.name)

    def mean(self) -> pd.Series:
        """The mean of the draws of a column of numbers or dates, (n,); missing where none is.

        Draws where the column does not exist count for nothing, which a warning says.
        """
        means = self._values(self._numbers().mean(axis=1).to_numpy())
        return pd.Series(means, self.rows.index, name=self.name)

    @checked_arguments
    def quantile(self, q: float | Sequence[float]) -> pd.Series | pd.DataFrame:
        """Quantiles of the draws of a column of numbers or dates.

        The k-th of S ordered draws is the quantile of k/(S + 1), and quantiles between are linear.
        The S draws are those where the column exists, as for :meth:`mean`.

        Args:
            q: one or more probabilities in [0, 1].

        Returns:
            (n,) for one q, or (n, len(q)).
        """
        if not np.all((np.asarray(q) >= 0) & (np.asarray(q) <= 1)):
            raise ValueError(f"q is {describe(q)}, expected probabilities from 0 to 1")
        numbers = self._numbers().to_numpy()
        there = ~np.isnan(numbers).all(1)
        values = np.full((np.size(q), len(numbers)), np.nan)
        values[:, there] = np.nanquantile(numbers[there], np.ravel(q), axis=1, method="weibull")
        columns = [pd.Series(self._values(row), self.rows.index, name=self.name) for row in values]
        if np.ndim(q) == 0:
            return columns[0]
        return pd.concat(columns, axis=1).set_axis(list(cast("Sequence[float]", q)), axis=1)

    @checked_arguments
    def interval(self, level: float = 0.9) -> pd.DataFrame:
        """Central intervals by the draws.

        Args:
            level: the probability of an interval, between 0 and 1.

        Returns:
            Columns low and high, (n, 2).
        """
        if not 0 < level < 1:
            raise ValueError(f"level is {level}, expected a probability between 0 and 1, e.g. 0.9")
        ends = self.quantile([(1 - level) / 2, (1 + level) / 2])
        return ends.set_axis(["low", "high"], axis=1)

    @checked_arguments
    def probabilities(
        self, draws: int | None = None, *, error: float = 0.01, return_errors: bool = False
    ) -> pd.DataFrame | tuple[pd.DataFrame, pd.DataFrame]:
        """The probability of each level of a column with levels; None is one where it may be
        absent.

        They are bounds on log P(level | other entries), at the same noise, normalized: without the
        coarseness of draws, and exact where the network is.

        Args:
            draws: the number of network evaluations of a row and level; None: as many as the error
                takes.
            error: the required standard error of a probability. The draws of a row with a larger
                one are doubled, up to 8,192.
            return_errors: whether to return the standard errors too.

        Returns:
            Probabilities, (n, levels), and with ``return_errors`` a table like it.

        Raises:
            ValueError: a column without levels.
        """
        column = self.table.column(self.name)
        if column.levels is None:
            raise ValueError(
                f"column {self.name!r} is {column.kind}, expected one with levels; its law has "
                "mean(), quantile(q), interval() and log_prob(values)"
            )
        levels = [*column.values(np.arange(column.levels))]
        levels += [None] if isinstance(column, Skipped) else []
        first = density.LEAST if draws is None else max(draws, BATCHES)
        last = density.MOST if draws is None else first
        sums = np.zeros((BATCHES, len(self.rows), len(levels)))
        done, poor, spent = 0, np.ones(len(self.rows), dtype=bool), np.zeros(len(self.rows))
        p = errors = sums[0]
        while poor.any() and done < last:
            number = first if done == 0 else done
            sums[:, poor] += number * self._bounds(levels, poor, number // BATCHES, done)
            done, spent[poor] = done + number, done + number
            p, errors = _shares(sums / spent[:, None])
            poor = errors.max(1) > error
        shares, off = (pd.DataFrame(v, self.rows.index, columns=levels) for v in (p, errors))
        return (shares, off) if return_errors else shares

    def _bounds(
        self, levels: Sequence[object], rows: NDArray[np.bool_], draws: int, done: int
    ) -> NDArray[np.float64]:
        """Independent bounds on log P of each level, at the same noise, (:data:`BATCHES`, rows,
        levels)."""
        several = pd.concat([self.rows[rows]] * BATCHES)
        seed = seed_from(self.table.seed, "probabilities", done)
        bounds = [
            self._measured(several, [level] * len(several), draws, seed=seed)["log_prob"]
            for level in levels
        ]
        return np.stack(bounds, 1).reshape(BATCHES, -1, len(levels))

    @checked_arguments
    def log_prob(
        self, values: Collection[object], draws: int | None = None, *, error: float = ERROR
    ) -> pd.DataFrame:
        """A lower bound on log p of a value in each row, given its other entries, nats.

        Args:
            values: values of the column, (n,), in the order of the rows. A missing one has log p 0,
                or, where the column may be absent, the bound on the log probability of absence.
            draws, error: options of :meth:`~pyro_mdm.tables.Table.log_prob`.

        Returns:
            Columns log_prob and standard_error, as for :meth:`~pyro_mdm.tables.Table.log_prob`.
        """
        if len(values) != len(self.rows):
            raise ValueError(f"there are {len(values)} values, expected {len(self.rows)}, as rows")
        return self._measured(self.rows, values, draws, error=error)

    def _measured(
        self, rows: pd.DataFrame, values: Collection[object], draws: int | None, **options: Any
    ) -> pd.DataFrame:
        """Bounds on log p of values of the column in rows."""
        rows = rows.assign(**{self.name: np.asarray(values, dtype=object)})
        bounds: density.RowBounds = self.table.bounds(self._batch_size, self.name)
        return bounds.measured(rows, draws, **{"seed": self.table.seed, **options})

    def _numbers(self) -> pd.DataFrame:
        """The draws as numbers; those of dates are days since 1970."""
        column = self.table.column(self.name)
        levels = () if column.levels is None else column.values(np.arange(column.levels))
        if any(isinstance(level, str) for level in levels) or column.kind == "categorical":
            raise ValueError(
                f"column {self.name!r} is {column.kind}, expected one of numbers; its law has "
                "probabilities() and sample()"
            )
        share = self.exists()
        if (some := share[share < 1]).size:
            warnings.warn(
                f"column {self.name!r} may not exist: in {len(some)} of {len(share)} rows it does "
                f"with probability {some.min():.2f} to {some.max():.2f}; the result is that of the "
                "draws where it does, and exists() has the probability of each row",
                stacklevel=3,
            )
        draws = self.sample()
        return draws.apply(days_of) if column.kind == "date" else draws.astype(np.float64)

    def _values(self, numbers: NDArray[np.float64]) -> Values | pd.Index:
        """Values of the column for numbers as in :meth:`_numbers`, (n,)."""
        column = self.table.column(self.name)
        return column.values(numbers) if column.kind == "date" else numbers

    def __repr__(self) -> str:
        return f"Conditional of {self.name!r} in {len(self.rows)} rows"


def _shares(bounds: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probabilities and their standard errors by the jackknife, both (n, levels), of independent
    bounds on their logarithms, (batches, n, levels), nats."""
    log_p = torch.from_numpy(bounds)
    count = len(log_p)
    without = ((log_p.sum(0) - log_p) / (count - 1)).softmax(-1)
    spread = (without - without.mean(0)).square().sum(0)
    errors = (spread * (count - 1) / count).sqrt() * student_factor(count - 1)
    return log_p.mean(0).softmax(-1).numpy(), errors.numpy()
