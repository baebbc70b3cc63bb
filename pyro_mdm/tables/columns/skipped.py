"""Columns that do not exist for some rows, such as hours of work where nobody works.

Absence is a value then: a column has one more dimension, for whether it exists. So new rows have
such gaps too, completions leave them, and densities have their probability.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_mdm.tables.columns.base import Center, Column, ColumnSpec, Mask, Values
from pyro_mdm.tables.columns.lazy import pd
from pyro_mdm.tables.columns.levels import shown
from pyro_mdm.tables.one_hot import Levels

__all__ = ["ABSENT", "HIDDEN", "Condition", "Rule", "Skipped"]

ABSENT, HIDDEN = math.inf, -math.inf
"""The codes of an entry that does not exist, and of one that exists and is missing."""


class Condition(NamedTuple):
    """The condition that the code of a column lies in one of some ranges."""

    column: Column
    ranges: tuple[tuple[float, float], ...]  # from the first end on, below the second

    def holds(self, table: pd.DataFrame) -> Values:
        """1 where it holds, 0 where not, NaN where the column is missing, (n,)."""
        codes = self.column.read(table[self.column.name])
        inside = np.any([(low <= codes) & (codes < high) for low, high in self.ranges], axis=0)
        return np.where(np.isnan(codes), math.nan, inside)

    @property
    def in_words(self) -> str:
        below, least = ("below", "at least") if self.column.kind != "date" else ("before", "from")
        ranges = []
        for low, high in self.ranges[:5]:
            ends = [f"{least} {self._shown(low)}"] if low > -math.inf else []
            ends += [f"{below} {self._shown(high)}"] if high < math.inf else []
            single = high == math.nextafter(low, math.inf)
            ranges.append(self._shown(low) if single else " and ".join(ends))
        more = f" and {len(self.ranges) - 5} more" if len(self.ranges) > 5 else ""
        return f"{self.column.name!r} is {' or '.join(ranges)}{more}"

    def _shown(self, code: float) -> str:
        value = np.asarray(self.column.values(np.array([code])), dtype=object).tolist()[0]
        if self.column.kind == "date":
            return str(value).removesuffix(" 00:00:00")
        return shown(value)


class Rule(NamedTuple):
    """The rule by which an empty entry is absent, or hidden."""

    conditions: tuple[Condition, ...] = ()  # none: every empty entry is absent
    either: bool = False  # whether one condition is enough; else all must hold
    exact: bool = True  # whether the entry was empty nowhere else, so that an empty one is absent

    def holds(self, table: pd.DataFrame) -> Values:
        """1 where entries are absent, 0 where they exist, NaN where columns that decide are
        missing, (n,)."""
        if not self.conditions:
            return np.ones(len(table))
        values = np.stack([condition.holds(table) for condition in self.conditions])
        one = (np.fmax if self.either else np.fmin).reduce(values)
        return np.where(one == self.either, one, values.prod(0))

    def codes(self, empty: Mask, table: pd.DataFrame) -> Values:
        """The codes of empty entries of a table, (n,): :data:`ABSENT`, :data:`HIDDEN`, or NaN, not
        known; 0 for others."""
        holds = self.holds(table)
        unsaid = ABSENT if self.exact else math.nan
        codes = np.select([holds == 1, holds == 0], [ABSENT, HIDDEN], unsaid)
        return np.where(empty, codes, 0.0)

    @property
    def in_words(self) -> str:
        words = (" or " if self.either else " and ").join(c.in_words for c in self.conditions)
        return f"where {words or 'it is empty'}"


class Skipped(Column):
    """A column that does not exist for some rows, with one more dimension, 1 where it exists, else
    -1.

    Where it is absent its other dimensions are missing. A model completes them by the distribution
    of rows that have the column, given all else: then they tell nothing of existence.

    Attributes:
        column: the column where it exists, fitted.
        rule: the rule by which it is absent.
    """

    def __init__(self, column: Column, rule: Rule) -> None:
        super().__init__(column.name)
        self.kind, self.noisy, self.levels = column.kind, column.noisy, column.levels
        self.column, self.width = column, 1 + column.width
        self.rule = rule

    @classmethod
    def fit(cls, name: str, values: pd.Series, train: Mask, spec: ColumnSpec) -> Column:
        raise TypeError(f"a {cls.__name__} is made of a fitted column, by Skipped(column, rule)")

    def codes_in(self, table: pd.DataFrame) -> Values:
        codes = self.codes(table[self.name])
        empty = np.isnan(codes)
        return np.where(empty, self.rule.codes(empty, table), codes)

    def read(self, values: pd.Series) -> Values:
        return self.column.read(values)

    def refusal(self, value: object) -> str:
        return self.column.refusal(value)

    def values(self, codes: Values) -> Values | pd.Index:
        there = np.isfinite(codes)
        values = pd.Series(self.column.values(np.where(there, codes, 0.0)))
        return (values if there.all() else values.where(there)).to_numpy()

    def scaled(self, codes: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        there = codes.isfinite()
        x, log_slope = self.column.scaled(torch.where(there, codes, math.nan), noise)
        exists = torch.where(codes == ABSENT, -1.0, 1.0).masked_fill(codes.isnan(), math.nan)
        x = torch.cat([exists.to(x).unsqueeze(-1), x.reshape(len(codes), -1)], -1)
        return x, torch.where(there, log_slope, 0)

    def unscaled(self, x: Tensor) -> Tensor:
        exists, value = x[..., 0], x[..., 1:] if self.width > 2 else x[..., 1]
        codes = torch.where(exists < 0, ABSENT, self.column.unscaled(value))
        return codes.masked_fill(exists.isnan(), math.nan)

    def center(self, draws: Values, center: Center) -> Values:
        """Absence where most draws have it, else the centre of the others."""
        gone = pd.isna(draws)
        absent, some = 2 * gone.sum(0) > len(draws), gone.any(0)
        middle = np.empty(draws.shape[1], dtype=object)
        if not some.all():
            middle[~some] = self.column.center(draws[:, ~some].astype(draws[0].dtype), center)
        for j in np.flatnonzero(some & ~absent):
            middle[j] = self.column.center(draws[~gone[:, j], j : j + 1], center)[0]
        middle[absent] = None
        return np.asarray(pd.Series(middle).infer_objects().to_numpy())

    @property
    def denoiser_levels(self) -> list[Levels]:
        return [2, *self.column.denoiser_levels]

    @property
    def in_words(self) -> str:
        return f"{self.column.in_words}; absent {self.rule.in_words}"

    @property
    def spec(self) -> str:
        return f"{self.column.spec} absent"
