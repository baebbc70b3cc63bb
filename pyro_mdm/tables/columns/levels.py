"""Columns of levels: true or false, levels in an order, and categories."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_mdm.tables.columns.base import Center, Column, Values, numbers_of
from pyro_mdm.tables.columns.kinds import MOST, in_words

if TYPE_CHECKING:
    from pandas import Series

__all__ = ["Boolean", "Categorical", "Ordinal", "shown"]


class _Levels(Column):
    """Levels k = 0 … n - 1 at linspace(-1, 1, n)."""

    _known: Sequence[Any]

    def _read(self, values: Series[Any]) -> Values:
        place = {value: k for k, value in enumerate(self._known)}
        levels = values.astype(object).map(place)
        return np.asarray(levels.to_numpy(dtype=np.float64, na_value=math.nan))

    def _refusal(self, value: object) -> str:
        known = ", ".join(map(shown, self._known[:8])) + (", …" if len(self._known) > 8 else "")
        return (
            f"column {self.name!r} holds {shown(value)}, which the training rows never have; "
            f"expected one of {known}. Leave the entry empty, join it with another category, or "
            f"drop the column: --columns {self.name}=drop"
        )

    def values(self, codes: Values) -> Any:
        return np.asarray(self._known, dtype=object)[codes.astype(int)]

    def scaled(self, codes: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.places is None or isinstance(self.places, int):
            return 2 * codes / (self._count - 1) - 1, torch.zeros_like(codes)
        places = torch.tensor(self.places, dtype=torch.float64, device=codes.device)
        missing = codes.isnan()
        x = places[torch.where(missing, 0, codes).long()].masked_fill(missing, math.nan)
        return x, torch.zeros_like(codes)

    def unscaled(self, x: Tensor) -> Tensor:
        x, top = x.double(), self._count - 1
        if self.places is None or isinstance(self.places, int):
            return ((x + 1) / 2 * top).round().clamp(0, top)
        places = torch.tensor(self.places, dtype=torch.float64, device=x.device)
        nearest = torch.searchsorted((places[1:] + places[:-1]) / 2, x.contiguous()).double()
        return nearest.masked_fill(x.isnan(), math.nan)

    @property
    def _count(self) -> int:
        """The number of levels."""
        return len(self._known)


class Boolean(_Levels):
    """A column of what is true or false."""

    kind = "boolean"
    levels = 2
    _known = (False, True)

    def _refusal(self, value: object) -> str:
        return (
            f"column {self.name!r} holds {shown(value)}, expected true or false; correct it, or "
            f"say --columns {self.name}=categorical"
        )

    def values(self, codes: Values) -> Any:
        return codes.astype(bool)

    def center(self, draws: Values, center: Center) -> Values:
        """What most draws are."""
        return np.asarray(2 * draws.astype(bool).sum(0) > len(draws))

    @property
    def told(self) -> str:
        return "boolean: true or false"


class Ordinal(_Levels):
    """A column of few numbers in their order, or of levels in an order that is given.

    Args:
        values: all numbers that it may have, in any order.
        order: all levels instead, the lowest first.
        said: whether the order was said, and is not that of the table itself.
        even: whether numbers lie evenly in model space, as in older runs, and not as they are.
        ends: the least and the largest of whole numbers that may all be, also those between that no
            row has; None: it may have those of ``values`` alone.
    """

    kind = "ordinal"
    _ends: tuple[float, float] | None = None

    def __init__(
        self,
        name: str,
        values: Values,
        order: Sequence[Any] | None = None,
        said: bool = False,
        *,
        even: bool = False,
        ends: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(name)
        own = np.unique(values[~np.isnan(values)]).tolist() if order is None else list(order)
        if ends is not None:
            self._ends, own = ends, np.arange(ends[0], ends[1] + 1).tolist()
        self._known, self._said = own, said
        self._of_numbers = all(isinstance(level, float) for level in own)
        self._numbers_in_order = order is None
        self.levels, self._even = len(own), even or order is not None

    @property
    def places(self) -> int | Sequence[float]:
        numbers = np.array([0.0] if self._even else self._known)
        gaps = np.diff(numbers)
        if self._even or gaps.min() < 0.5 * gaps.mean() or np.allclose(gaps, gaps[0]):
            return self._count
        return tuple((2 * (numbers - numbers[0]) / (numbers[-1] - numbers[0]) - 1).tolist())

    def _read(self, values: Series[Any]) -> Values:
        import pandas as pd

        if self._of_numbers:
            values = pd.Series(numbers_of(values).tolist())
        return super()._read(values)

    def values(self, codes: Values) -> Any:
        if not self._of_numbers:
            return super().values(codes)
        numbers = np.asarray(self._known)
        if (numbers == numbers.round()).all():
            numbers = numbers.astype(np.int64)
        return numbers[codes.astype(int)]

    def center(self, draws: Values, center: Center) -> Values:
        """The median draw."""
        import pandas as pd

        place = {level: k for k, level in enumerate(self._known)}
        levels = np.stack([pd.Series(own).map(place).to_numpy(np.float64) for own in draws])
        return np.asarray(self.values(np.sort(levels, 0)[len(draws) // 2]))

    @property
    def told(self) -> str:
        first, last = self._known[0], self._known[-1]
        if self._numbers_in_order:
            return f"ordinal: {self.levels} numbers in their order, {first:g} to {last:g}"
        shown = [*map(_plain, self._known)]
        return f"ordinal: {' < '.join(shown if len(shown) <= 8 else [*shown[:7], '…', shown[-1]])}"

    @property
    def said(self) -> str:
        if self._ends is not None:
            return f"ordinal {in_words(self._ends)}"
        return "<".join(map(_plain, self._known)) if self._said else "ordinal"


class Categorical(_Levels):
    """A column of categories, the most frequent first: one-hot, or if there are two on a line; at
    most 100.

    Args:
        values: the values that it is fitted to.
        one_hot: False: on a line, however many there are.
    """

    kind = "categorical"

    def __init__(self, name: str, values: Series[Any], *, one_hot: bool = True) -> None:
        super().__init__(name)
        known = values.dropna().astype(object).value_counts().index.tolist()
        self._known = known[: MOST["categorical"]]
        self.levels = len(self._known)
        self.width = self.levels if one_hot and self.levels > 2 else 1

    def scaled(self, codes: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.width == 1:
            return super().scaled(codes)
        each = torch.arange(self.width, device=codes.device) == codes.unsqueeze(-1)
        x = each.double().masked_fill(codes.isnan().unsqueeze(-1), math.nan)
        return x, torch.zeros_like(codes)

    def unscaled(self, x: Tensor) -> Tensor:
        if self.width == 1:
            return super().unscaled(x)
        return x.argmax(-1).double().masked_fill(x.isnan().any(-1), math.nan)

    def center(self, draws: Values, center: Center) -> Values:
        """The most frequent category."""
        import pandas as pd

        return np.asarray(pd.DataFrame(draws.T).mode(axis=1)[0])

    @property
    def told(self) -> str:
        known = ", ".join(map(str, self._known[:5])) + (", …" if len(self._known) > 5 else "")
        return f"categorical: {self.levels} categories, {known}"


def shown(value: object) -> str:
    """A value in words: numbers as they are written, all else in quotes."""
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return f"{value:.15g}" if number else repr(value)


def _plain(level: object) -> str:
    """A level as it is said."""
    return f"{level:.15g}" if isinstance(level, float) else str(level)
