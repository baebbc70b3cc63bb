r"""A column of a table: its codes, its numbers in a model, and its values again.

A table's stored data are codes, float64 (n, d): the numbers themselves of a column of numbers, the
number of the level of any other, and NaN where an entry is missing; infinite ones are those of
:mod:`pyro_mdm.tables.columns.skipped`. In model space a column of
numbers is scaled to N(0, 1), levels lie in [-1, 1], and three categories or more are one-hot: as
many dimensions, one of which is 1.

A value w that has a probability, an integer or an atom, is an interval I(w) of model space, whose
mass is that probability. A row that has w is anywhere in I(w), x ~ q = N(0, 1) given I(w), and any
x of I(w) is w again. So

    log P(w) = log ∫_{I(w)} p(x) dx >= E_q[log p(x) - log q(x)],

with equality where p(x) ∝ q(x) in I(w), as it is of the data that the model is trained on. Values
between have the density p(x) dx/dw, whose integral is the probability of no atom.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyro_mdm.support.checks import DataError
from pyro_mdm.tables.columns.kinds import Kind
from pyro_mdm.tables.one_hot import OneHot

if TYPE_CHECKING:
    from pandas import DataFrame, Series

__all__ = ["Center", "Column", "Values", "as_number", "as_written", "numbers_of", "rows_in_words"]

Values = NDArray[Any]
Center = Literal["mean", "median"]


class Column(ABC):
    """A named column of a table.

    Attributes:
        kind: of the column.
        levels: how many it has; None: it is one of numbers.
        width: its number of dimensions in model space.
        noisy: whether a value may be many x.
    """

    kind: Kind
    levels: int | None = None
    width: int = 1
    noisy: bool = False

    def __init__(self, name: str) -> None:
        self.name = name

    def codes(self, values: Series[Any]) -> Values:
        """The codes of values, (n,) float64, NaN where missing (DataError: an unknown value)."""
        codes = self._read(values)
        unknown = np.isnan(codes) & values.notna().to_numpy()
        if unknown.any():
            raise DataError(self._refusal(values[unknown].iloc[0]))
        return codes

    def codes_in(self, table: DataFrame) -> Values:
        """The codes of the column's values in a table, as :meth:`codes`."""
        return self.codes(table[self.name])

    def unknown(self, values: Series[Any]) -> NDArray[np.bool_]:
        """Which values the column cannot have, (n,)."""
        return np.isnan(self._read(values)) & values.notna().to_numpy()

    @abstractmethod
    def _read(self, values: Series[Any]) -> Values:
        """The codes of values, NaN where missing and of those that the column cannot have."""

    @abstractmethod
    def _refusal(self, value: object) -> str:
        """Why the column cannot have a value, and what to do."""

    @abstractmethod
    def values(self, codes: Values) -> Any:
        """The table's values of codes (n,), none of them NaN."""

    @abstractmethod
    def scaled(self, codes: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x of codes (n,), float64, (n,) or (n, width), and log|dx/dw| or -log q(x), 0 of levels.

        Args:
            noise: uniform in [0, 1), like ``codes``, of a noisy column.
        """

    @abstractmethod
    def unscaled(self, x: Tensor) -> Tensor:
        """The codes (n,) of x, float64."""

    @abstractmethod
    def center(self, draws: Values, center: Center) -> Values:
        """The middle (n,) of draws (num, n) of values."""

    @property
    def places(self) -> int | Sequence[float] | None:
        """The levels in model space, as for MixedDenoiser: their number where they lie evenly."""
        return self.levels

    @property
    def of_denoiser(self) -> list[Any]:
        """The levels of its dimensions in model space, as for MixedDenoiser."""
        return [OneHot(self.width) if self.width > 1 else self.places]

    @property
    def told(self) -> str:
        """The column in words, without its name."""
        return self.kind

    @property
    def said(self) -> str:
        """What says the same of the column as its values did."""
        return self.kind


def numbers_of(values: Series[Any]) -> Values:
    """Values as float64, NaN where missing or no number."""
    import pandas as pd

    numbers = pd.to_numeric(values, errors="coerce")
    return np.asarray(numbers.to_numpy(dtype=np.float64, na_value=math.nan))


def as_written(table: DataFrame) -> DataFrame:
    """A table whose float32 numbers are the shortest decimals that float32 has so, in float64.

    Columns compare numbers with levels, atoms, ends and decimals, where 0.1 is not 0.10000000149.
    """
    short = [n for n, kind in table.dtypes.items() if kind.kind == "f" and kind.itemsize < 8]
    if not short:
        return table
    table = table.copy(deep=False)
    for name in short:
        values = table[name]
        numbers = values.to_numpy(dtype=f"f{values.dtype.itemsize}", na_value=math.nan)
        table[name] = numbers.astype(str).astype(np.float64)
    return table


def as_number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def rows_in_words(mask: NDArray[np.bool_]) -> str:
    """The number of rows of a mask in words."""
    count = int(mask.sum())
    return f"{count:,} row{'s' if count != 1 else ''}"
