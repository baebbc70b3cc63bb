"""Kinds of the columns of a table: what is said of them, what their values say, and doubts."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_mdm.support.checks import DataError
from pyro_mdm.tables.columns.dates import is_dates

if TYPE_CHECKING:
    from pandas import DataFrame, Series

__all__ = [
    "DECIMALS",
    "FEW",
    "MOST",
    "NUMBERS",
    "OTHERS",
    "PLAIN",
    "Kind",
    "Said",
    "atoms_of",
    "decimals_of",
    "doubts_of",
    "in_words",
    "kind_of",
    "kinds_of",
    "left_out",
    "plain_kind_of",
]

Kind = Literal[
    "continuous",
    "nonnegative",
    "mixed",
    "rounded",
    "integer",
    "boolean",
    "ordinal",
    "categorical",
    "date",
    "drop",
]
NUMBERS = ("continuous", "nonnegative", "mixed", "rounded", "integer")
"""Kinds of numbers, which may have a range."""

Empty = Literal["absent", "mar"]
"""What an empty entry is: of a column that does not exist for the row, or missing at random."""

OTHERS = "*"
"""Stands for the columns that no kind is given for."""
PLAIN = "plain"
"""Kind of :data:`OTHERS`: continuous, ordinal or categorical, whatever numbers repeat."""

FEW = 20
"""The most distinct whole numbers of an ordinal column, by default."""

MOST = {"ordinal": 256, "categorical": 100}
"""The most levels of a column, by kind."""

REPEATS, SHARE, CHANCE = 5, 0.02, 1e-3
"""How often a number is there at least, and in which part of the rows, to be an atom; and how
improbable that is by chance in a column."""
DECIMALS = 6
"""The most digits behind the point of a rounded column."""
STEPS = 10_000
"""The most steps of its last digit from the least to the greatest number of a column that is taken
for rounded, though few of its numbers repeat."""
WHOLE = 2.0**53
"""Whole numbers from which on float64 does not have them all."""

MOSTLY = 0.8
"""The part of a text column that is numbers, from which on it is doubted."""
CODES = {"code", "codes", "id", "ids", "key", "phone", "postal", "postcode", "zip", "zipcode"}
"""Words in names of columns whose numbers are names."""
PLACEHOLDERS = {"?", "-", "--", ".", "n/a", "n.a.", "na", "nan", "none", "null", "missing"}
"""Text that stands for a missing entry, in small letters."""

Values = NDArray[Any]


# -- what is said ----------------------------------------------------------------------------------


class Said(NamedTuple):
    """What is said of a column.

    Attributes:
        kind: None: that which its values say.
        order: of the levels of an ordinal column, the lowest first.
        ends: the least and the largest number that may be.
        empty: what an empty entry is, absent where the column does not exist, or missing at random.
    """

    kind: str | None = None
    order: tuple[str, ...] | None = None
    ends: tuple[float, float] | None = None
    empty: str | None = None

    @classmethod
    def of(cls, name: str, text: str) -> Said:
        """What a text says of a column: a kind, an order a<b<c, or a range 0..100, which may follow
        a kind of numbers and have one end alone (DataError: another text). A level may begin with
        <, as in ``<=50K<>50K``. The last word may be absent or mar, or these are all."""
        rest, _, last = text.rpartition(" ")
        if last in get_args(Empty) and name != OTHERS:
            return cls._of(name, rest.strip())._replace(empty=last) if rest else cls(empty=last)
        return cls._of(name, text)

    @classmethod
    def _of(cls, name: str, text: str) -> Said:
        if text in get_args(Kind) or (name == OTHERS and text == PLAIN):
            return cls(text)
        if "<" in text:
            order = tuple(level.strip() for level in re.split(r"(?<=[^<\s])\s*<", text))
            if len(set(order)) < max(2, len(order)) or not all(order):
                raise DataError(
                    f"--columns {name}={text}: expected levels that differ, the lowest first, "
                    "such as low<middle<high"
                )
            return cls("ordinal", order)
        kind, _, ends = text.rpartition(" ")
        if ".." in ends and kind.strip() in ("", "ordinal", *NUMBERS):
            try:
                low, high = (float(end) if end else math.nan for end in ends.split("..", 1))
            except ValueError:
                low = high = 0.0
            low, high = -math.inf if math.isnan(low) else low, math.inf if high != high else high
            if not low < high:
                raise DataError(
                    f"--columns {name}={text}: expected a range of numbers, the least first, such "
                    "as 0..100, 0.. or ..1"
                )
            return cls(kind.strip() or None, None, (low, high))
        raise DataError(
            f"--columns {name}={text}: expected a kind of {', '.join(get_args(Kind))}; an order of "
            f"levels, low<middle<high; or a range, 0..100, alone or after one of "
            f"ordinal, {', '.join(NUMBERS)}; and after any, absent or mar, for what is empty"
        )


def in_words(ends: tuple[float, float]) -> str:
    """A range as it is said."""
    return "..".join("" if math.isinf(end) else f"{end:.15g}" for end in ends)


def kinds_of(table: DataFrame, said: Mapping[str, str] | None = None) -> dict[str, str]:
    """The kind of each column by its name: what is said of it or of :data:`OTHERS`, or else
    :func:`kind_of` its values."""
    said = said or {}
    others = said.get(OTHERS)
    infer = plain_kind_of if others == PLAIN else kind_of
    kinds = {}
    for name in table.columns:
        own = Said.of(name, said[name]) if name in said else Said()
        if own.ends is not None and own.kind is None:
            kinds[name] = _kind_within_ends(table[name])
        else:
            rest = None if others == PLAIN else others
            kinds[name] = own.kind or rest or infer(table[name])
    return kinds


def _kind_within_ends(values: Series[Any]) -> str:
    """The kind of a column by its values if it has a range, so that few numbers are no levels."""
    kind = kind_of(values)
    if kind != "ordinal":
        return kind
    decimals = decimals_of(values.to_numpy(dtype=np.float64, na_value=math.nan))
    return "continuous" if decimals is None else "rounded" if decimals else "integer"


# -- what values say -------------------------------------------------------------------------------


def atoms_of(known: Values) -> Values:
    """Numbers that repeat more often than a density can explain, in order.

    They are those which at least 5 values and 2% of all values are, unless the others mostly repeat
    too: these are rounded then, and none is an atom. Where numbers are rounded and not so often
    alike, none is an atom either that as many values might be by chance, at 0.1% for the column.
    """
    numbers, counts = np.unique(known, return_counts=True)
    often = counts >= max(REPEATS, SHARE * len(known))
    others = counts[~often]
    if not 2 * len(others) >= others.sum() > 0:
        return numbers[:0]
    decimals = decimals_of(known)
    if decimals is None:
        return numbers[often]
    reach, step = known.std() / 5, 10.0**-decimals
    chance = [
        _more_than_chance(int(n), ((np.abs(known - a) <= reach).sum() - n) * step / (2 * reach))
        for a, n in zip(numbers[often], counts[often], strict=True)
    ]
    return numbers[often][np.array(chance) * len(numbers) < CHANCE]


def _more_than_chance(count: int, expected: float) -> float:
    """P(N >= count) of a Poisson number N."""
    both = torch.tensor([count, expected], dtype=torch.float64)
    return float(torch.special.gammainc(*both))


def decimals_of(values: Values) -> int | None:
    """Decimals that numbers are rounded to, NaN left out; None: more than :data:`DECIMALS`."""
    known = values[~np.isnan(values)]
    for decimals in range(DECIMALS + 1):
        small = bool((np.abs(known) * 10.0**decimals < WHOLE).all())
        if small and bool((np.round(known, decimals) == known).all()):
            return decimals
    return None


def kind_of(values: Series[Any]) -> Kind:
    """The kind of a column by its values.

    Date if each is one; boolean if each is true or false; ordinal if pandas has an order of its
    categories. Else categorical unless they are numbers; ordinal if these are at most 20 different
    whole numbers, or two; integer if they are whole; rounded if none has more than 6 decimals, and
    at most 10,000 steps of the last one are between the ends. Else mixed if there are
    :func:`atoms_of` them; rounded if most numbers repeat; nonnegative if none is negative; else
    continuous.
    """
    import pandas as pd

    if is_dates(values):
        return "date"
    if pd.api.types.infer_dtype(values, skipna=True) == "boolean":
        return "boolean"
    if isinstance(values.dtype, pd.CategoricalDtype) and values.dtype.ordered:
        return "ordinal"
    plain = plain_kind_of(values)
    if plain != "continuous":
        return plain
    known = pd.to_numeric(values.dropna()).to_numpy(dtype=np.float64)
    if len(known) == 0 or np.isinf(known).any():
        return plain
    decimals = decimals_of(known)
    if decimals == 0:
        return "integer"
    if decimals is not None and np.ptp(known) * 10.0**decimals <= STEPS:
        return "rounded"
    if len(atoms_of(known)):
        return "mixed"
    counts = np.unique(known, return_counts=True)[1]
    others = counts[counts < max(REPEATS, SHARE * len(known))]
    if decimals is not None and 2 * len(others) <= others.sum():
        return "rounded"
    return "nonnegative" if (known >= 0).all() else "continuous"


def plain_kind_of(values: Series[Any]) -> Kind:
    """The kind of a column by its values, one of continuous, ordinal and categorical."""
    import pandas as pd

    if pd.api.types.is_bool_dtype(values) or not pd.api.types.is_numeric_dtype(values):
        return "categorical"
    distinct = values.dropna().unique()
    whole = all(float(value).is_integer() for value in distinct)
    return "ordinal" if len(distinct) <= 2 or (whole and len(distinct) <= FEW) else "continuous"


def left_out(
    table: DataFrame, train: NDArray[np.bool_], said: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Columns by name that a model has nothing to learn of, and why, in words.

    They have no value in the training rows, or one. Of columns whose kind is inferred they are also
    text of which most values are in one row alone, and whole numbers that count the rows. What is
    said of a column by its name is done.
    """
    said = said or {}
    others, reasons = said.get(OTHERS), {}
    for name in table.columns:
        if name in said or others == "drop":
            continue
        values, distinct = table[name], table[name][train].dropna().unique()
        if len(distinct) == 0:
            reasons[name] = "it has no value in the training rows"
        elif len(distinct) == 1:
            reasons[name] = f"its only value in the training rows is {distinct[0]!s}"
        elif others is None and (why := _key(name, values)):
            reasons[name] = why
    return reasons


def _key(name: str, values: Series[Any]) -> str | None:
    """Why a column is taken for a key, a name for each row, in words."""
    import pandas as pd

    known = values.dropna()
    counts = known.value_counts()
    alone = int((counts == 1).sum())
    if pd.api.types.is_integer_dtype(known) or pd.api.types.is_float_dtype(known):
        if len(counts) < max(len(known), FEW + 1):
            return None
        least, most = float(known.min()), float(known.max())
        if most - least + 1 == len(counts) and float(least).is_integer() and _whole(known):
            return (
                f"it counts the rows, {least:.0f} to {most:.0f}; --columns {name}=integer keeps it"
            )
    elif 2 * alone > len(known) and kind_of(values) == "categorical":
        return (
            f"{alone} of its {len(known)} values are in one row alone, as in a key or a text; "
            f"--columns {name}=categorical keeps it"
        )
    return None


def _whole(known: Series[Any]) -> bool:
    numbers = known.to_numpy(dtype=np.float64)
    return bool((numbers == numbers.round()).all())


# -- doubts ----------------------------------------------------------------------------------------


def doubts_of(name: str, values: Series[Any], kind: str) -> list[str]:
    """What is doubtful of a column whose kind was inferred, in words, with what to do."""
    import pandas as pd

    known = values.dropna()
    if kind in NUMBERS or (kind == "ordinal" and pd.api.types.is_numeric_dtype(values)):
        return _doubts_of_numbers(name, known.to_numpy(dtype=np.float64), kind)
    numbers = pd.api.types.is_numeric_dtype(values)
    if kind != "categorical" or numbers or isinstance(values.dtype, pd.CategoricalDtype):
        return []
    text = known.astype(str).str.strip()
    bare = text.str.replace(r"[,%$€£_\s]", "", regex=True)
    number = pd.to_numeric(bare, errors="coerce").notna()
    if number.mean() >= MOSTLY:
        dressed = text[number & pd.to_numeric(text, errors="coerce").isna()]
        fixes = [f"write {dressed.iloc[0]!r} as a plain number"] if len(dressed) else []
        if not number.all():
            fixes.append(f"leave {_some(text[~number])} empty")
        fix = " and ".join(fixes) or "store them as numbers"
        return [f"{number.mean():.0%} of its values are numbers in text; {fix}"]
    if (empty := text[text.str.lower().isin(PLACEHOLDERS)]).any():
        return [f"{_some(empty)} is a category; leave it empty if it stands for a missing entry"]
    return []


def _doubts_of_numbers(name: str, known: Values, kind: str) -> list[str]:
    doubts = []
    numbers, counts = np.unique(known, return_counts=True)
    words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", str(name))}
    for one, next_one in ((numbers[0], numbers[1]), (numbers[-1], numbers[-2])):
        rest = numbers[numbers != one]
        nines = set(f"{abs(one):.0f}") == {"9"} and abs(one) >= 99
        often = int(counts[numbers == one][0])
        if nines and often >= 3 and abs(one - next_one) > rest.max() - rest.min():
            doubts.append(
                f"{one:g} is there {often} times, far from all others; leave it empty if it stands "
                "for a missing entry"
            )
    whole = bool((numbers == numbers.round()).all())
    gaps = kind == "ordinal" and len(numbers) > 2 and np.ptp(numbers) + 1 > 2 * len(numbers)
    if whole and kind in ("ordinal", "integer") and (words & CODES or (gaps and not doubts)):
        doubts.append(
            f"its numbers may be names, which have no order; say --columns {name}=categorical, or "
            f"{name}=drop"
        )
    elif kind == "integer" and len(numbers) == len(known) and (np.diff(known) > 0).all():
        doubts.append(
            f"its numbers increase from row to row, as in a key; say --columns {name}=drop if so"
        )
    elif kind == "rounded" and len(numbers) <= FEW:
        doubts.append(
            f"it has {len(numbers)} different numbers; if there can be no other, say --columns "
            f"{name}=ordinal"
        )
    return doubts


def _some(values: Series[Any]) -> str:
    """Some different values in words."""
    distinct = [*map(repr, values.unique()[:4])]
    return ", ".join(distinct[:3]) + (", …" if len(distinct) > 3 else "")
