"""Columns of levels: true or false, levels in an order, and categories."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from pyro_mdm.support.checks import DataError
from pyro_mdm.tables.columns import base
from pyro_mdm.tables.columns.base import Center, Column, ColumnSpec, Ends, Mask, Values
from pyro_mdm.tables.columns.lazy import pd
from pyro_mdm.tables.columns.scales import FEW

__all__ = ["Boolean", "Categorical", "Ordinal", "shown", "some"]


class _Levels(Column):
    """A column of levels k = 0 … n - 1, at linspace(-1, 1, n) unless :attr:`places` differ."""

    _known: Sequence[object]

    def read(self, values: pd.Series) -> Values:
        place = {value: k for k, value in enumerate(self._known)}
        levels = values.astype(object).map(place)
        return np.asarray(levels.to_numpy(dtype=np.float64, na_value=math.nan))

    def refusal(self, value: object) -> str:
        return (
            f"column {self.name!r} holds {shown(value)}, which the training rows never have; "
            f"expected one of {some(map(shown, self._known), 8)}. Leave the entry empty, join it "
            f'with another category, or drop the column: columns="{self.name}=drop"'
        )

    def values(self, codes: Values) -> Values | pd.Index:
        return np.asarray(self._known, dtype=object)[codes.astype(int)]

    def _points(self, device: torch.device) -> Tensor:
        """The levels in model space, increasing, (n,)."""
        if isinstance(self.places, Sequence):
            return torch.tensor(self.places, dtype=torch.float64, device=device)
        n = len(self._known)
        return 2 * torch.arange(n, dtype=torch.float64, device=device) / (n - 1) - 1

    def scaled(self, codes: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        missing = codes.isnan()
        x = self._points(codes.device)[torch.where(missing, 0, codes).long()]
        return x.masked_fill(missing, math.nan), torch.zeros_like(codes)

    def unscaled(self, x: Tensor) -> Tensor:
        points = self._points(x.device)
        nearest = torch.searchsorted((points[1:] + points[:-1]) / 2, x.double().contiguous())
        return nearest.double().masked_fill(x.isnan(), math.nan)


class Boolean(_Levels):
    """A column of true and false.

    Args:
        name: the name of the column.
    """

    kind = "boolean"
    levels = 2
    _known = (False, True)

    @classmethod
    def recognizes(cls, values: pd.Series) -> bool:
        return pd.api.types.infer_dtype(values, skipna=True) == "boolean"

    @classmethod
    def check(cls, name: str, values: pd.Series, spec: ColumnSpec) -> None:
        cls(name).codes(values)

    @classmethod
    def fit(cls, name: str, values: pd.Series, train: Mask, spec: ColumnSpec) -> Column:
        return cls(name)

    def refusal(self, value: object) -> str:
        return (
            f"column {self.name!r} holds {shown(value)}, expected true or false; correct it, or "
            f'say columns="{self.name}=categorical"'
        )

    def values(self, codes: Values) -> Values | pd.Index:
        return codes.astype(bool)

    def center(self, draws: Values, center: Center) -> Values:
        """The majority of draws."""
        return np.asarray(2 * draws.astype(bool).sum(0) > len(draws))

    @property
    def in_words(self) -> str:
        return "boolean: true or false"


class Ordinal(_Levels):
    """A column of few numbers in their order, or of levels in an order that is given.

    Args:
        name: the name of the column.
        values: the numbers that it may have, in any order.
        order: all levels, the lowest first, in the place of ``values``; None: those numbers.
        said: whether the order was given, and is not that of the table.
        ends: the least and the largest of whole numbers that it may all have, also those between
            that no row has; None: those of ``values`` alone.
    """

    kind = "ordinal"
    ranged: ClassVar[bool] = True
    most_levels: ClassVar[int | None] = 256
    _ends: Ends | None = None

    def __init__(
        self,
        name: str,
        values: Values,
        order: Sequence[object] | None = None,
        said: bool = False,
        *,
        ends: Ends | None = None,
    ) -> None:
        super().__init__(name)
        levels = np.unique(values[~np.isnan(values)]).tolist() if order is None else list(order)
        if ends is not None:
            self._ends, levels = ends, np.arange(ends[0], ends[1] + 1).tolist()
        self._known, self._said = levels, said
        self._of_numbers = all(isinstance(level, float) for level in levels)
        self._numbers_in_order = order is None
        self.levels = len(levels)

    @classmethod
    def recognizes(cls, values: pd.Series) -> bool:
        """Whether values are ordered categories of pandas, at most 20 whole numbers, or two
        numbers."""
        if isinstance(values.dtype, pd.CategoricalDtype) and values.dtype.ordered:
            return True
        if Categorical.recognizes(values):
            return False
        distinct = values.dropna().unique()
        whole = all(float(value).is_integer() for value in distinct)
        return len(distinct) <= (FEW if whole else 2)

    @classmethod
    def check(cls, name: str, values: pd.Series, spec: ColumnSpec) -> None:
        distinct = values.dropna().unique()
        number = len(distinct)
        if spec.ends is not None:
            number = int(min(spec.ends[1] - spec.ends[0] + 1, 1e9))
        if cls.most_levels is not None and number > cls.most_levels:
            raise DataError(
                f"column {name!r} has {number} different values, expected at most "
                f'{cls.most_levels} of an ordinal one; say columns="{name}=continuous", or leave '
                f'it out: columns="{name}=drop"'
            )
        if not isinstance(values.dtype, pd.CategoricalDtype) and spec.order is None:
            order = "<".join(map(str, distinct[:4]))
            advice = f'; or say its order, such as columns="{name}={order}"'
            base.check_numbers(name, values, spec, advice)

    @classmethod
    def fit(cls, name: str, values: pd.Series, train: Mask, spec: ColumnSpec) -> Column:
        if (order := _order(name, spec.order, values)) is not None:
            return cls(name, np.empty(0), order, said=spec.order is not None)
        said = spec.ends is not None or spec.kind == cls.kind
        ends = spec.ends if said else _whole_ends(values)
        return cls(name, base.numbers_of(values), ends=ends)

    @property
    def places(self) -> int | Sequence[float]:
        if not self._numbers_in_order:
            return len(self._known)
        numbers = np.array(self._known)
        gaps = np.diff(numbers)
        if gaps.min() < 0.5 * gaps.mean() or np.allclose(gaps, gaps[0]):
            return len(self._known)
        return tuple((2 * (numbers - numbers[0]) / (numbers[-1] - numbers[0]) - 1).tolist())

    def read(self, values: pd.Series) -> Values:
        if self._of_numbers:
            values = pd.Series(base.numbers_of(values).tolist())
        return super().read(values)

    def values(self, codes: Values) -> Values | pd.Index:
        if not self._of_numbers:
            return super().values(codes)
        numbers = np.asarray(self._known)
        whole = bool((numbers == numbers.round()).all())
        return numbers[codes.astype(int)].astype(np.int64 if whole else np.float64)

    def center(self, draws: Values, center: Center) -> Values:
        """The median draw."""
        levels = np.stack([self.read(pd.Series(row)) for row in draws])
        return np.asarray(self.values(np.sort(levels, 0)[len(draws) // 2]))

    @property
    def in_words(self) -> str:
        first, last = self._known[0], self._known[-1]
        if self._numbers_in_order:
            return f"ordinal: {self.levels} numbers in their order, {first:g} to {last:g}"
        levels = [*map(_plain, self._known)]
        levels[7:-1] = ["…"] if len(levels) > 8 else levels[7:-1]
        return f"ordinal: {' < '.join(levels)}"

    @property
    def spec(self) -> str:
        if self._ends is not None:
            return f"{self.kind} {base.range_in_words(self._ends)}"
        is_order = self._said and self.kind == Ordinal.kind
        return "<".join(map(_plain, self._known)) if is_order else self.kind


class Categorical(_Levels):
    """A column of categories, the most frequent first, at most 100.

    They are one-hot; two categories are at -1 and 1.

    Args:
        name: the name of the column.
        values: the values that it is fitted to.
    """

    kind = "categorical"
    most_levels: ClassVar[int | None] = 100

    def __init__(self, name: str, values: pd.Series) -> None:
        super().__init__(name)
        levels = values.dropna().astype(object).value_counts().index.tolist()
        self._known = levels[: self.most_levels]
        self.levels = len(self._known)
        self.width = self.levels if self.levels > 2 else 1

    @classmethod
    def recognizes(cls, values: pd.Series) -> bool:
        return pd.api.types.is_bool_dtype(values) or not pd.api.types.is_numeric_dtype(values)

    @classmethod
    def fit(cls, name: str, values: pd.Series, train: Mask, spec: ColumnSpec) -> Column:
        return cls(name, values[train])

    def scaled(self, codes: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.width == 1:
            return super().scaled(codes)
        here = torch.arange(self.width, device=codes.device) == codes.unsqueeze(-1)
        x = here.double().masked_fill(codes.isnan().unsqueeze(-1), math.nan)
        return x, torch.zeros_like(codes)

    def unscaled(self, x: Tensor) -> Tensor:
        if self.width == 1:
            return super().unscaled(x)
        return x.argmax(-1).double().masked_fill(x.isnan().any(-1), math.nan)

    def center(self, draws: Values, center: Center) -> Values:
        """The most frequent category."""
        return np.asarray(pd.DataFrame(draws.T).mode(axis=1)[0])

    @property
    def in_words(self) -> str:
        return f"categorical: {self.levels} categories, {some(map(str, self._known), 5)}"


def some(words: Iterable[str], most: int) -> str:
    """The first words, with commas between, and … for more than ``most``."""
    words = [*words]
    return ", ".join(words[:most]) + (", …" if len(words) > most else "")


def shown(value: object) -> str:
    """A value in words: numbers as written, all else in quotes."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return repr(value)
    return str(value) if isinstance(value, int) else f"{value:.15g}"


def _plain(level: object) -> str:
    """A level as it is written in an order."""
    return f"{level:.15g}" if isinstance(level, float) else str(level)


def _whole_ends(values: pd.Series) -> Ends | None:
    """The ends of whole numbers of which at least half between are present; None: other numbers."""
    numbers = np.unique(base.numbers_of(values.dropna())).tolist()
    whole = all(map(float.is_integer, numbers)) and numbers[-1] - numbers[0] < 2 * len(numbers)
    return (numbers[0], numbers[-1]) if whole else None


def _order(name: str, order: Sequence[str] | None, values: pd.Series) -> Sequence[object] | None:
    """The levels of an ordinal column, lowest first, as in the table, by an order that is given or
    by that of pandas; None: numbers in their order."""
    if order is None:
        dtype = values.dtype
        return [*dtype.categories] if isinstance(dtype, pd.CategoricalDtype) else None
    distinct = values.dropna().unique()
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        wrong = [level for level in order if base.as_number(level) is None]
        if wrong:
            raise DataError(
                f'columns="{name}={"<".join(order)}": column {name!r} holds numbers, and its order '
                f"has {wrong[0]!r}; expected numbers"
            )
        levels = [float(level) for level in order]
    else:
        texts = {str(value): value for value in distinct}
        levels = [texts.get(level, level) for level in order]
    if outside := [value for value in distinct if value not in levels]:
        raise DataError(
            f"column {name!r} holds {outside[0]!s}, which its order leaves out, expected one of "
            f"{' < '.join(order)}; add it to the order, or leave the entry empty"
        )
    return levels
