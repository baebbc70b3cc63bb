"""Columns of a table: their kinds, and the maps between values, codes and model space.

Codes are float64 (n, d): the numbers of a continuous column, the index of the level in any other,
NaN where an entry is missing. In model space a continuous column is scaled to N(0, 1) by its
quantiles, and levels lie evenly in [-1, 1].
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.files import DataError
from pyro_mdm.likelihoods.dequantization import Dequantized

if TYPE_CHECKING:
    from pandas import DataFrame, Series

Kind = Literal["continuous", "ordinal", "categorical", "drop"]

FEW = 20
"""The most distinct whole numbers of an ordinal column, by default."""

MOST = {"ordinal": 256, "categorical": 100}
"""The most levels of a column, by kind."""

KNOTS = 100
"""The most quantiles for the scale of a column."""

Values = NDArray[Any]


class Column(ABC):
    """A named column of a table.

    Attributes:
        levels: the number of levels; None for a continuous column.
    """

    kind: ClassVar[Kind]
    levels: int | None = None

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def codes(self, values: Series[Any]) -> Values:
        """The codes of values, (n,) float64, NaN where missing (DataError: an invalid value)."""

    @abstractmethod
    def values(self, codes: Values) -> Any:
        """The table's values of codes (n,), none of them NaN."""

    @abstractmethod
    def scaled(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """x of codes, and log|dx/dw|, 0 for levels; both float64 and like the codes."""

    @abstractmethod
    def unscaled(self, x: Tensor) -> Tensor:
        """The codes of x, float64, like x."""


class Continuous(Column):
    r"""A continuous column, mapped to x ~ N(0, 1) by lines between and beyond quantiles.

    x_i = Φ^{-1}(p_i) at the p_i-quantile, as in scikit-learn's ``QuantileTransformer``; the least
    and the largest of n values are the quantiles of 1/2n and 1 - 1/2n. ``QuantileTransformer`` is
    flat outside of the fitted values, where the density would be 0.

    Args:
        values: the values that it is fitted to, NaN where missing. The number of knots is the root
            of theirs, at most 100.
    """

    kind = "continuous"

    def __init__(self, name: str, values: Values) -> None:
        from sklearn.preprocessing import QuantileTransformer

        super().__init__(name)
        known = values[~np.isnan(values)]
        number = int(np.clip(math.isqrt(len(known)), 2, KNOTS))
        scaler = QuantileTransformer(n_quantiles=number, subsample=None).fit(known[:, None])
        knots, where = np.unique(scaler.quantiles_[:, 0], return_inverse=True)
        share = np.bincount(where, scaler.references_) / np.bincount(where)
        share = share.clip(0.5 / len(known), 1 - 0.5 / len(known))
        self._w = torch.from_numpy(knots)
        self._x = torch.special.ndtri(torch.from_numpy(share))

    def codes(self, values: Series[Any]) -> Values:
        return _finite_numbers(self.name, values)

    def values(self, codes: Values) -> Any:
        return codes

    def scaled(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        w, x = self._w.to(codes.device), self._x.to(codes.device)
        return _along(codes, w, x)

    def unscaled(self, x: Tensor) -> Tensor:
        return _along(x.double(), self._x.to(x.device), self._w.to(x.device))[0]


def _along(value: Tensor, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """The line through points (start_i, end_i), continued beyond both ends, and its log slope."""
    i = torch.searchsorted(start, value.contiguous()).clamp(1, len(start) - 1)
    slope = (end[i] - end[i - 1]) / (start[i] - start[i - 1])
    return end[i - 1] + slope * (value - start[i - 1]), slope.log()


class _Levels(Column):
    """Levels k = 0 … n - 1 at linspace(-1, 1, n)."""

    _known: Sequence[Any]

    def codes(self, values: Series[Any]) -> Values:
        place = {value: k for k, value in enumerate(self._known)}
        values = values.astype(object)
        levels = values.map(place).to_numpy(dtype=np.float64, na_value=math.nan)
        unknown = values.notna().to_numpy() & np.isnan(levels)
        if unknown.any():
            raise DataError(self._unknown(values[unknown].iloc[0]))
        return np.asarray(levels)

    def _unknown(self, value: object) -> str:
        known = ", ".join(map(repr, self._known[:8])) + (", …" if len(self._known) > 8 else "")
        return (
            f"column {self.name!r} holds {value!r}, which the training rows never have; expected "
            f"one of {known}. Leave the entry empty, join it with another category, or drop the "
            f"column: --columns {self.name}=drop"
        )

    def values(self, codes: Values) -> Any:
        return np.asarray(self._known, dtype=object)[codes.astype(int)]

    def scaled(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * codes / (self._count - 1) - 1, torch.zeros_like(codes)

    def unscaled(self, x: Tensor) -> Tensor:
        top = self._count - 1
        return ((x.double() + 1) / 2 * top).round().clamp(0, top)

    @property
    def _count(self) -> int:
        """The number of levels."""
        return len(self._known)


class Ordinal(_Levels):
    """A column of few numbers, in their order.

    Args:
        values: all values that it may have, in any order.
    """

    kind = "ordinal"

    def __init__(self, name: str, values: Values) -> None:
        super().__init__(name)
        self._known = np.unique(values[~np.isnan(values)]).tolist()
        self.levels = len(self._known)

    def codes(self, values: Series[Any]) -> Values:
        import pandas as pd

        return super().codes(pd.Series(_numbers(self.name, values).tolist()))

    def values(self, codes: Values) -> Any:
        numbers = np.asarray(self._known)[codes.astype(int)]
        return numbers.astype(np.int64) if (numbers == numbers.round()).all() else numbers


class Categorical(_Levels):
    """A column of categories in the order of their frequency, the most frequent first.

    Args:
        values: the values that it is fitted to.
    """

    kind = "categorical"

    def __init__(self, name: str, values: Series[Any]) -> None:
        super().__init__(name)
        self._known = values.dropna().astype(object).value_counts().index.tolist()
        self.levels = len(self._known)


def _numbers(name: str, values: Series[Any]) -> Values:
    """Values as float64, NaN where missing."""
    import pandas as pd

    numbers = pd.to_numeric(values, errors="coerce")
    wrong = numbers.isna() & values.notna()
    if wrong.any():
        raise DataError(
            f"column {name!r} holds {values[wrong].iloc[0]!r}, expected a number; correct it, or "
            f"say --columns {name}=categorical"
        )
    return numbers.to_numpy(dtype=np.float64, na_value=math.nan)


def _finite_numbers(name: str, values: Series[Any]) -> Values:
    """Values as float64, finite, or NaN where missing."""
    numbers = _numbers(name, values)
    if np.isinf(numbers).any():
        raise DataError(
            f"column {name!r} holds an infinite number, expected finite ones; leave the entry empty"
        )
    return numbers


# -- all columns -----------------------------------------------------------------------------------


def kind_of(values: Series[Any]) -> Kind:
    """The kind of a column by its values.

    Categorical unless they are numbers; ordinal if these are few whole numbers, or two; else
    continuous.
    """
    import pandas as pd

    if pd.api.types.is_bool_dtype(values) or not pd.api.types.is_numeric_dtype(values):
        return "categorical"
    distinct = values.dropna().unique()
    whole = all(float(value).is_integer() for value in distinct)
    return "ordinal" if len(distinct) <= 2 or (whole and len(distinct) <= FEW) else "continuous"


def categories(table: DataFrame, kinds: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """The codes of all columns with levels, (n,) int64 by name, -1 where missing."""
    import pandas as pd

    levels = {}
    for name in table.columns:
        if ((kinds or {}).get(name) or kind_of(table[name])) in MOST:
            levels[name] = torch.from_numpy(pd.factorize(table[name])[0]).long()
    return levels


def fit_columns(
    table: DataFrame, train: NDArray[np.bool_], kinds: Mapping[str, str] | None = None
) -> list[Column]:
    """The columns of a table, with scales and categories of the training rows.

    Args:
        table: all rows.
        train: the mask of training rows, (n,). Ordinal columns have the values of all rows.
        kinds: kinds by name that replace :func:`kind_of`; "drop" leaves a column out.

    Raises:
        DataError: an unknown column or kind; a column without a value, with one value, or with too
            many levels.
    """
    kinds = dict(kinds or {})
    for name, kind in kinds.items():
        if name not in table.columns:
            raise DataError(
                f"--columns names {name!r}, and the table has no such column; expected one of "
                f"{', '.join(map(str, table.columns))}"
            )
        if kind not in get_args(Kind):
            raise DataError(
                f"--columns {name}={kind}: expected a kind of {', '.join(get_args(Kind))}"
            )
    columns = []
    for name in table.columns:
        values = table[name]
        kind = kinds.get(name) or kind_of(values)
        if kind != "drop":
            _check_values(name, kind, values, values[train])
            columns.append(_column(name, kind, values, train))
    if not columns:
        raise DataError("no column of the table is left, expected one at least")
    return columns


def _column(name: str, kind: str, values: Series[Any], train: NDArray[np.bool_]) -> Column:
    if kind == "categorical":
        return Categorical(name, values[train])
    if kind == "ordinal":
        return Ordinal(name, _numbers(name, values))
    return Continuous(name, _finite_numbers(name, values)[train])


def _check_values(name: str, kind: str, values: Series[Any], training: Series[Any]) -> None:
    distinct = training.dropna().unique()
    drop = f"--columns {name}=drop"
    if len(distinct) == 0:
        raise DataError(
            f"column {name!r} has no value in the training rows, expected two different ones at "
            f"least; leave it out: {drop}"
        )
    if len(distinct) == 1:
        raise DataError(
            f"column {name!r} has one value in all training rows, {distinct[0]!r}, expected two at "
            f"least; it says nothing, so leave it out: {drop}"
        )
    number = len(distinct if kind == "categorical" else values.dropna().unique())
    if kind in MOST and number > MOST[kind]:
        other = "join rare ones" if kind == "categorical" else f"say --columns {name}=continuous"
        raise DataError(
            f"column {name!r} has {number} different values, expected at most {MOST[kind]} of a "
            f"{kind} one; {other}, or leave it out: {drop}"
        )


def encode(columns: Sequence[Column], table: DataFrame) -> Tensor:
    """The codes of a table, (n, d) float64 (DataError: a missing column or an invalid value)."""
    if absent := [c.name for c in columns if c.name not in table.columns]:
        raise DataError(
            f"the table has no column {absent[0]!r}, expected {', '.join(c.name for c in columns)};"
            " add it, empty where nothing is known"
        )
    return torch.from_numpy(np.stack([c.codes(table[c.name]) for c in columns], 1))


def to_model_space(columns: Sequence[Column], codes: Tensor) -> Dequantized:
    """x (n, d) float32 of codes, NaN where missing, and log|det| (n,) over present entries."""
    both = [c.scaled(w) for c, w in zip(columns, codes.double().unbind(-1), strict=True)]
    x, log_det = (torch.stack(parts, -1) for parts in zip(*both, strict=True))
    log_det = torch.where(codes.isnan(), 0, log_det).sum(-1)
    return Dequantized(x.float(), log_det.float())


def decode(columns: Sequence[Column], x: Tensor) -> DataFrame:
    """The table of data x (n, d) in model space, in its own units; NaN becomes empty."""
    import pandas as pd

    table = {}
    for column, own in zip(columns, x.cpu().unbind(-1), strict=True):
        codes = column.unscaled(own).numpy()
        missing = np.isnan(codes)
        values = pd.Series(column.values(np.where(missing, 0, codes)))
        table[column.name] = values.mask(missing) if missing.any() else values
    return pd.DataFrame(table)
