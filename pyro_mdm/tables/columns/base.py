r"""A column of a table: its codes, its numbers in a model, and its values again.

A table's stored data are codes, float64 (n, d): the numbers of a column of numbers, the index of
the level in any other, and NaN where an entry is missing; infinite ones are explained in
:mod:`pyro_mdm.tables.columns.skipped`. In model space a column of numbers is scaled to N(0, 1),
levels lie in [-1, 1], and three categories or more are one-hot: as many dimensions, one of which is
1.

A value w that has a probability, an integer or an atom, is an interval I(w) of model space, whose
mass is that probability. A row with w has an x that is drawn in I(w) from q, N(0, 1) given I(w),
and any x of I(w) is w again. So

    log P(w) = log ∫_{I(w)} p(x) dx >= E_q[log p(x) - log q(x)],

with equality where p(x) ∝ q(x) in I(w), which holds for the data that the model is trained on.
Values between have the density p(x) dx/dw, whose integral is the probability of no atom.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyro_mdm.support.checks import DataError
from pyro_mdm.tables.columns.lazy import pd
from pyro_mdm.tables.one_hot import Levels, OneHot

__all__ = [
    "EVERYWHERE",
    "OTHERS",
    "Center",
    "Column",
    "ColumnSpec",
    "Empty",
    "Ends",
    "Mask",
    "Values",
    "WHOLE",
    "as_written",
    "check_numbers",
    "no_number",
    "numbers_of",
    "rows_in_words",
]

Values = NDArray[Any]
"""Values or codes of a column."""
Mask = NDArray[np.bool_]
"""Whether each row is meant."""
Center = Literal["mean", "median"]
"""The centre of draws."""
Ends = tuple[float, float]
"""The least and the largest number that a column may have."""
EVERYWHERE: Ends = (-math.inf, math.inf)
"""The ends of a column that has none."""

Empty = Literal["absent", "mar"]
"""The meaning of an empty entry: absent, as the column does not exist for the row, or missing at
random.
"""

OTHERS = "*"
"""The name that stands for all columns without a given kind."""


class ColumnSpec(NamedTuple):
    """The specification of a column, as far as it is given."""

    kind: str | None = None  # the name of its kind; None: inferred from its values
    order: tuple[str, ...] | None = None  # the levels of an ordinal column, the lowest first
    ends: Ends | None = None  # the least and the largest number that it may have
    empty: str | None = None  # the meaning of an empty entry; None: inferred


def range_in_words(ends: Ends) -> str:
    """A range as text, such as 0..100."""
    return "..".join("" if math.isinf(end) else f"{end:.15g}" for end in ends)


class Column(ABC):
    """A named column of a table, fitted to its values; its class is a kind of columns.

    A kind of your own is a subclass, with :meth:`fit` and the methods that are abstract here. Its
    attributes are kept as JSON: numbers, text, tensors in float64, other columns, and lists and
    tuples of them.

    Attributes:
        name, kind: the names of the column and of its kind.
        ranged: whether columns of the kind may be given a range of numbers.
        most_levels: the largest number of levels of a column of the kind; None: no limit, or a kind
            of numbers.
        levels: the number of levels of the column; None: a column of numbers.
        width: the number of its dimensions in model space.
        noisy: whether a value is an interval of model space, from which x is drawn.
        dtype: the type of the column in its table, by :func:`pyro_mdm.tables.frames.dtype_of`.
    """

    kind: str
    ranged: ClassVar[bool] = False
    most_levels: ClassVar[int | None] = None
    levels: int | None = None
    width: int = 1
    noisy: bool = False
    dtype: str | tuple[object, ...] | None = None

    def __init__(self, name: str) -> None:
        self.name = name

    # -- the kind ----------------------------------------------------------------------------------

    @classmethod
    def recognizes(cls, values: pd.Series) -> bool:
        """Whether values are inferred to be of this kind, asked where none is given, in the order
        of :data:`~pyro_mdm.tables.columns.kinds.KINDS`."""
        return False

    @classmethod  # noqa: B027  many kinds check nothing
    def check(cls, name: str, values: pd.Series, spec: ColumnSpec) -> None:
        """Raise DataError unless a column with the values of all rows may be of this kind."""

    @classmethod
    @abstractmethod
    def fit(cls, name: str, values: pd.Series, train: Mask, spec: ColumnSpec) -> Column:
        """A column of this kind, fitted to values of all rows, which :meth:`check` has passed.

        ``train`` is the mask of the training rows, (n,), among which two values differ.
        """

    @classmethod
    def doubts(cls, name: str, values: pd.Series) -> list[str]:
        """Doubts that values, none missing, are of this kind, in words, with a remedy each."""
        return []

    # -- the column --------------------------------------------------------------------------------

    def codes(self, values: pd.Series) -> Values:
        """The codes of values, (n,) float64, NaN where missing.

        Raises:
            DataError: a value that the column cannot have.
        """
        codes = self.read(values)
        if (unknown := np.isnan(codes) & values.notna().to_numpy()).any():
            raise DataError(self.refusal(values[unknown].iloc[0]))
        return codes

    def codes_in(self, table: pd.DataFrame) -> Values:
        """The codes of the column in a table, as :meth:`codes`."""
        return self.codes(table[self.name])

    def unknown(self, values: pd.Series) -> Mask:
        """The mask of values that the column cannot have, (n,)."""
        return np.isnan(self.read(values)) & values.notna().to_numpy()

    @abstractmethod
    def read(self, values: pd.Series) -> Values:
        """The codes of values, (n,) float64, NaN where missing or not possible in the column."""

    @abstractmethod
    def refusal(self, value: object) -> str:
        """The message for a value that the column cannot have, with a remedy."""

    @abstractmethod
    def values(self, codes: Values) -> Values | pd.Index:
        """The values of codes in the table, (n,); no code is NaN."""

    @abstractmethod
    def scaled(self, codes: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Codes w, (n,) float64, NaN where missing, in model space, with log determinants.

        A noisy column draws by uniform noise in [0, 1), (n,). x is (n,) or (n, width), and the log
        determinant log|dx/dw|, or -log q(x) in an interval, or 0 for levels, nats, (n,).
        """

    @abstractmethod
    def unscaled(self, x: Tensor) -> Tensor:
        """The codes, (n,) float64, of values in model space, (n,) or (n, width)."""

    @abstractmethod
    def center(self, draws: Values, center: Center) -> Values:
        """The centre of draws, (num, n), mean or median for numbers, (n,)."""

    @property
    def places(self) -> int | Sequence[float] | None:
        """The levels in model space, as for MixedDenoiser: their number if they lie evenly."""
        return self.levels

    @property
    def denoiser_levels(self) -> list[Levels]:
        """The levels of the column's dimensions in model space, as for MixedDenoiser."""
        if self.levels is None:
            return [self.places] * self.width
        return [OneHot(self.width) if self.width > 1 else self.places]

    @property
    def in_words(self) -> str:
        """The column in words, without its name."""
        return self.kind

    @property
    def spec(self) -> str:
        """The text by which :func:`fit_columns` would make the column without inference."""
        return self.kind


NUMERIC = {"integer", "floating", "mixed-integer-float", "decimal"}
"""Kinds of pandas' infer_dtype that are numbers."""
LARGEST = 1e100
"""The most that the largest number of a column may be; the least is its inverse."""
WHOLE = 2.0**53
"""The whole number beyond which float64 does not represent all."""


def numbers_of(values: pd.Series) -> Values:
    """Values as float64, NaN where missing or not a number."""
    try:
        numbers = pd.to_numeric(values, errors="coerce")
    except OverflowError:  # a whole number of hundreds of digits
        numbers = pd.to_numeric(values.map(str, na_action="ignore"), errors="coerce")
    return np.asarray(numbers.to_numpy(dtype=np.float64, na_value=math.nan))


def check_sizes(name: str, values: pd.Series) -> None:
    """Raise DataError for numbers of a column that float64 cannot compute with: complex ones, those
    whose squares would be infinite or zero, and whole ones that differ and would be the same."""
    fix = f'say columns="{name}=categorical", or leave it out: columns="{name}=drop"'
    kind = pd.api.types.infer_dtype(values, skipna=True)
    if kind == "complex":
        raise DataError(f"column {name!r} holds complex numbers, expected real ones; {fix}")
    if kind not in NUMERIC:
        return
    there = finite_numbers(name, values.dropna())
    if (size := float(np.abs(there).max(initial=0.0))) == 0:
        return
    if not 1 / LARGEST <= size <= LARGEST:
        raise DataError(
            f"column {name!r} holds numbers up to {size:g}, expected {1 / LARGEST:g} to "
            f"{LARGEST:g}; give it in other units, {fix}"
        )
    if kind != "floating" and size > WHOLE and len(np.unique(there)) < values.nunique():
        raise DataError(
            f"column {name!r} holds whole numbers up to {size:.17g}, of which float64 keeps some "
            f"apart and not others, expected at most 2**53; subtract their least, {fix}"
        )


def finite_numbers(name: str, values: pd.Series) -> Values:
    """Values of a column as float64, NaN where missing or not a number; DataError for infinite
    ones."""
    numbers = numbers_of(values)
    if (infinite := np.isinf(numbers)).any():
        raise DataError(
            f"column {name!r} holds an infinite number in {rows_in_words(infinite)}, expected "
            "finite ones; leave the entry empty"
        )
    return numbers


def as_written(table: pd.DataFrame) -> pd.DataFrame:
    """A table with its numbers in float64 where they are objects, such as decimals, or float32.

    Those of float32 are their shortest decimals: columns compare numbers with levels, atoms, ends
    and decimals, where 0.1 is not 0.10000000149. Objects beyond 2**53 stay as they are.
    """
    table = table.copy(deep=False)
    for name, kind in table.dtypes.items():
        values = table[name]
        if kind.kind == "f" and kind.itemsize < 8:
            numbers = values.to_numpy(dtype=f"f{kind.itemsize}", na_value=math.nan)
            table[name] = numbers.astype(str).astype(np.float64)
        elif str(kind) == "object" and pd.api.types.infer_dtype(values, skipna=True) in NUMERIC:
            numbers = numbers_of(values)
            if np.nanmax(np.abs(numbers), initial=0.0) <= WHOLE:
                table[name] = numbers
    return table


def check_numbers(name: str, values: pd.Series, spec: ColumnSpec, advice: str = "") -> None:
    """Raise DataError unless the values of all rows are numbers, in the given range if there is
    one; ``advice`` ends the message for a value that is no number."""
    numbers = numbers_of(values)
    if (wrong := np.isnan(numbers) & values.notna().to_numpy()).any():
        raise DataError(no_number(name, values[wrong].iloc[0]) + advice)
    low, high = spec.ends or EVERYWHERE
    if (outside := (numbers < low) | (numbers > high)).any():
        raise DataError(
            f"column {name!r} holds {numbers[outside][0]:g}, expected numbers in the range "
            f"{range_in_words((low, high))} that columns says; correct it, or say another range"
        )


def no_number(name: str, value: object) -> str:
    """The message for a value that is no number in a column of numbers."""
    return (
        f"column {name!r} holds {value!r}, expected a number; correct it, or say "
        f'columns="{name}=categorical"'
    )


def as_number(value: Any) -> float | None:
    """A value as a number; None where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def rows_in_words(mask: Mask) -> str:
    """The number of rows of a mask in words."""
    count = int(mask.sum())
    return f"{count:,} row{'s' if count != 1 else ''}"
