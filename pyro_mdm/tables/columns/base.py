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
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyro_mdm.support.checks import DataError
from pyro_mdm.tables.columns.spec import ColumnSpec, range_in_words
from pyro_mdm.tables.one_hot import OneHot

if TYPE_CHECKING:
    from pandas import DataFrame, Series

__all__ = [
    "Center",
    "Column",
    "Values",
    "as_number",
    "as_written",
    "check_numbers",
    "no_number",
    "numbers_of",
    "rows_in_words",
]

Values = NDArray[Any]
"""Values or codes of a column."""
Center = Literal["mean", "median"]
"""The middle of draws."""


class Column(ABC):
    """A named column of a table, fitted to its values; its class is a kind of columns.

    A kind of your own is a subclass, with a constructor that fits it to values, :meth:`fit`, and
    the methods that are abstract here. Its attributes are kept as JSON: numbers, text, tensors in
    float64, other columns, and lists and tuples of them.

    Attributes:
        kind: name of the kind.
        ranged: whether a range of numbers may be said of columns of the kind.
        most_levels: largest number of levels that a column of the kind may have; None: any, or it
            is one of numbers.
        levels: number of levels of the column; None: it is one of numbers.
        width: number of its dimensions in model space.
        noisy: whether a value may be many x.
    """

    kind: str
    ranged: ClassVar[bool] = False
    most_levels: ClassVar[int | None] = None
    levels: int | None = None
    width: int = 1
    noisy: bool = False

    def __init__(self, name: str) -> None:
        self.name = name

    # -- the kind ----------------------------------------------------------------------------------

    @classmethod
    def recognizes(cls, values: Series[Any]) -> bool:
        """Whether values of which nothing is said are of this kind, if of none before it in
        :data:`~pyro_mdm.tables.columns.kinds.KINDS`."""
        return False

    @classmethod  # noqa: B027  many kinds check nothing
    def check(cls, name: str, values: Series[Any], spec: ColumnSpec) -> None:
        """Raise DataError unless all values of a column may be of this kind, as it is said."""

    @classmethod
    @abstractmethod
    def fit(
        cls, name: str, values: Series[Any], train: NDArray[np.bool_], spec: ColumnSpec
    ) -> Column:
        """A column of this kind, fitted to values.

        Args:
            name: name of the column.
            values: values of all rows, which :meth:`check` has passed.
            train: mask of the training rows, (n,), among which two values differ.
            spec: what is said of the column.
        """

    @classmethod
    def doubts(cls, name: str, values: Series[Any]) -> list[str]:
        """What is doubtful of values, none missing, that were taken for this kind, in words, with
        what to do."""
        return []

    # -- the column --------------------------------------------------------------------------------

    def codes(self, values: Series[Any]) -> Values:
        """The codes of values, (n,) float64, NaN where missing (DataError: an unknown value)."""
        codes = self.read(values)
        unknown = np.isnan(codes) & values.notna().to_numpy()
        if unknown.any():
            raise DataError(self.refusal(values[unknown].iloc[0]))
        return codes

    def codes_in(self, table: DataFrame) -> Values:
        """The codes of the column's values in a table, as :meth:`codes`."""
        return self.codes(table[self.name])

    def unknown(self, values: Series[Any]) -> NDArray[np.bool_]:
        """Which values the column cannot have, (n,)."""
        return np.isnan(self.read(values)) & values.notna().to_numpy()

    @abstractmethod
    def read(self, values: Series[Any]) -> Values:
        """The codes of values, NaN where missing and of those that the column cannot have."""

    @abstractmethod
    def refusal(self, value: object) -> str:
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
    def denoiser_levels(self) -> list[Any]:
        """The levels of its dimensions in model space, as for MixedDenoiser."""
        if self.levels is None:
            return [self.places] * self.width
        return [OneHot(self.width) if self.width > 1 else self.places]

    @property
    def in_words(self) -> str:
        """The column in words, without its name."""
        return self.kind

    @property
    def spec(self) -> str:
        """The text that says of the column, as a kind, what its values said."""
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


def check_numbers(name: str, values: Series[Any], spec: ColumnSpec, advice: str = "") -> None:
    """Raise DataError unless values are numbers, in the range that is said if one is."""
    numbers = numbers_of(values)
    if (wrong := np.isnan(numbers) & values.notna().to_numpy()).any():
        raise DataError(no_number(name, values[wrong].iloc[0]) + advice)
    low, high = spec.ends or (-math.inf, math.inf)
    if (outside := (numbers < low) | (numbers > high)).any():
        raise DataError(
            f"column {name!r} holds {numbers[outside][0]:g}, expected numbers in the range "
            f"{range_in_words((low, high))} that --columns says; correct it, or say another range"
        )


def no_number(name: str, value: object) -> str:
    """Why a value is none of a column of numbers."""
    return (
        f"column {name!r} holds {value!r}, expected a number; correct it, or say --columns "
        f"{name}=categorical"
    )


def as_number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def rows_in_words(mask: NDArray[np.bool_]) -> str:
    """The number of rows of a mask in words."""
    count = int(mask.sum())
    return f"{count:,} row{'s' if count != 1 else ''}"
