"""Kinds of columns: their register, their texts, and their inference from values."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, get_args

from pyro_mdm.support.checks import DataError, checked_arguments
from pyro_mdm.tables.columns import numbers
from pyro_mdm.tables.columns.base import OTHERS, Column, ColumnSpec, Empty, Mask
from pyro_mdm.tables.columns.dates import Dates
from pyro_mdm.tables.columns.lazy import pd
from pyro_mdm.tables.columns.levels import Boolean, Categorical, Ordinal
from pyro_mdm.tables.columns.scales import FEW, finite_of

__all__ = [
    "BUILT_IN",
    "DROP",
    "KINDS",
    "FindKind",
    "Kinds",
    "class_of",
    "comma_separated",
    "is_name",
    "kind_of",
    "kinds_of",
    "left_out",
    "parse_spec",
    "register_kind",
    "spec_of",
]

BUILT_IN: tuple[type[Column], ...] = (
    *(Dates, Boolean, Ordinal, Categorical, numbers.Integer, numbers.Rounded, numbers.Mixed),
    *(numbers.Nonnegative, numbers.Bounded, numbers.Continuous),
)
"""The kinds of the library."""

KINDS: dict[str, type[Column]] = {kind.kind: kind for kind in BUILT_IN}
"""Kinds of columns by name; without a given kind, a column has the first that recognizes its
values.
"""

DROP = "drop"
"""The kind of a column that is left out."""

FindKind = Callable[[str], type[Column]]
"""A function that returns a class by its name, such as ``file.py:Name``, which stands for a
kind."""

Kinds = str | Mapping[str, str] | None
"""Kinds of columns, as text or by name; None: all are inferred."""

C = TypeVar("C", bound=Column)


@checked_arguments
def register_kind(kind: type[C]) -> type[C]:
    """Add a kind of your own to :data:`KINDS` by its attribute ``kind``; a decorator of its class.

    A class that defines ``recognizes`` itself is asked before all others whether it recognizes a
    column; one that inherits it is never inferred, and must be given.

    Args:
        kind: the class, which is returned.

    Raises:
        TypeError: a class that is no subclass of :class:`Column`, or has no ``kind``.

    Example:
        >>> from pyro_mdm.tables import Continuous
        >>> class Percent(Continuous):
        ...     kind = "percent"
        >>> register_kind(Percent) is KINDS.pop("percent")
        True
    """
    if not (issubclass(kind, Column) and isinstance(getattr(kind, "kind", None), str)):
        raise TypeError(
            f"{kind.__name__} is no kind of columns, expected a subclass of pyro_mdm.tables.Column "
            'with its name as an attribute, such as kind = "angle"'
        )
    others = {name: other for name, other in KINDS.items() if name != kind.kind}
    KINDS.clear()
    KINDS.update({kind.kind: kind, **others})
    return kind


def kind_names() -> list[str]:
    """The names of all kinds, and ``drop``."""
    return [*reversed(KINDS), DROP]


def class_of(kind: str, find_kind: FindKind | None = None) -> type[Column]:
    """The class of a kind, by its name, or of a class ``file.py:Name``, which ``find_kind``
    returns; DataError for an unknown kind."""
    if kind in KINDS:
        return KINDS[kind]
    if not is_name(kind):
        raise DataError(
            f"there is no kind {kind!r} of columns, expected one of {', '.join(KINDS)}; "
            "register_kind adds one of your own"
        )
    if find_kind is None:
        raise DataError(
            f"{kind!r} names a class, which find_kind is to find, and that is not given; give it, "
            "or add the class by register_kind and say its kind"
        )
    return find_kind(kind)


def is_name(kind: str) -> bool:
    """Whether a kind is the name of a class: ``file.py:Name`` or ``module:Name``."""
    return re.fullmatch(r"(?:[^<]+\.py|[A-Za-z_][\w.]*):[A-Za-z_]\w*", kind) is not None


# -- texts -----------------------------------------------------------------------------------------


def parse_spec(name: str, text: str) -> ColumnSpec:
    """The specification of a column from a text, or DataError.

    The text is a kind, an order a<b<c, whose levels may begin with <, or a range 0..100, which may
    follow a kind of numbers and have one end alone. The last or only word may be absent or mar.
    """
    rest, _, last = text.rpartition(" ")
    if last in get_args(Empty) and name != OTHERS:
        spec = _parsed(name, rest.strip()) if rest else ColumnSpec()
        return spec._replace(empty=last)
    return _parsed(name, text)


def _parsed(name: str, text: str) -> ColumnSpec:
    if text in kind_names() or is_name(text):
        return ColumnSpec(text)
    if "<" in text:
        order = tuple(level.strip() for level in re.split(r"(?<=[^<\s])\s*<", text))
        if len(set(order)) < max(2, len(order)) or not all(order):
            raise DataError(
                f'columns="{name}={text}": expected levels that differ, the lowest first, '
                "such as low<middle<high"
            )
        return ColumnSpec(Ordinal.kind, order)
    kind, _, ends = text.rpartition(" ")
    kind, ranged = kind.strip(), [name for name, cls in KINDS.items() if cls.ranged][::-1]
    if ".." in ends and (not kind or kind in ranged or is_name(kind)):
        try:
            first, last = ends.split("..", 1)
            low, high = float(first or -math.inf), float(last or math.inf)
        except ValueError:
            low = high = 0.0
        if not low < high:
            raise DataError(
                f'columns="{name}={text}": expected a range of numbers, the least first, such '
                "as 0..100, 0.. or ..1"
            )
        return ColumnSpec(kind or None, None, (low, high))
    raise DataError(
        f'columns="{name}={text}": expected a kind of {", ".join(kind_names())}; a class of your '
        "own, file.py:Name; an order of levels, low<middle<high; or a range, 0..100, alone or "
        f"after one of {', '.join(ranged)}; and after any, absent or mar, for what is empty"
    )


def parse_kinds(columns: Kinds, names: Sequence[str] = ()) -> dict[str, str]:
    """Kinds of columns by name, from a text such as ``"age=continuous,zip=drop"``, quoted as in a
    CSV file; ValueError for another text. Names of the table may have = in them, or spaces around
    them that the text leaves out; an exact name goes first."""
    if isinstance(columns, Mapping):
        return {str(name): kind.strip() for name, kind in columns.items()}
    names_of = {name.strip(): name for name in names} | {name: name for name in names}
    kinds = {}
    for text in comma_separated(columns or "", "columns"):
        ends = [i for i, sign in enumerate(text) if sign == "=" and text[:i].strip()]
        if text.strip() and not ends:
            raise ValueError(
                f"columns has {text.strip()!r}, expected name=kind, with commas between; e.g. "
                "age=continuous,zip=drop"
            )
        if ends:
            exact = [i for i in ends if {text[:i], text[:i].strip()} & set(names_of)]
            end = exact[-1] if exact else ends[0]  # before a sign of an order, such as <=50K<>50K
            name, kind = text[:end], text[end + 1 :].strip()
            kinds[names_of.get(name) or names_of.get(name.strip(), name.strip())] = kind
    return kinds


def comma_separated(text: str, name: str) -> list[str]:
    """The words between commas, quoted as in a CSV file; ``name`` is the argument or option that
    they are of, for the ValueError of a line break outside of quotes."""
    try:
        return next(csv.reader([text], skipinitialspace=True), [])
    except csv.Error as error:
        raise ValueError(
            f"{name} is {text!r}, which has a line break outside of quotes; expected words "
            'with commas between, quoted as in a CSV file: "a name=kind",other=kind'
        ) from error


def spec_of(name: str, kinds: Mapping[str, str]) -> ColumnSpec:
    """The specification of a column by the texts of columns, by name."""
    return parse_spec(name, kinds[name]) if name in kinds else ColumnSpec()


def kinds_of(table: pd.DataFrame, kinds: Mapping[str, str]) -> dict[str, str]:
    """The kind of each column by its name: as given by a text, or that of :data:`OTHERS`, or
    inferred."""
    result = {}
    for name in table.columns:
        spec = spec_of(name, kinds)
        if spec.ends is not None and spec.kind is None:  # few numbers of a range are no levels
            result[name] = kind_of(table[name], Ordinal.kind)
        else:
            result[name] = spec.kind or kinds.get(OTHERS) or kind_of(table[name])
    return result


# -- inference from values -------------------------------------------------------------------------


def kind_of(values: pd.Series, without: str = "") -> str:
    """The kind of a column by its values, the first of :data:`KINDS` that recognizes them.

    Date if each is one; boolean if each is true or false; ordinal if pandas has an order of its
    categories. Else categorical unless they are numbers; ordinal if these are at most 20 different
    whole numbers, or two; integer if they are whole; rounded if none has more than 6 decimals, and
    at most 10,000 steps of the last one are between the ends. Else mixed if some repeat more often
    than a density can explain; rounded if most numbers repeat; nonnegative if none is negative;
    else continuous.

    Args:
        values: the values of the column.
        without: a kind that is not asked.
    """
    return next(
        name
        for name, cls in KINDS.items()
        if "recognizes" in vars(cls) and name != without and cls.recognizes(values)
    )


def left_out(table: pd.DataFrame, train: Mask, kinds: Mapping[str, str]) -> dict[str, str]:
    """Columns without information, with the reason in words, by name; none that ``kinds`` names.

    They have no value in the training rows, or one. Of columns whose kind is inferred they are also
    text of which most values are in one row alone, and whole numbers that count the rows.
    """
    others, reasons = kinds.get(OTHERS), {}
    for name in table.columns:
        if name in kinds or others == DROP:
            continue
        values, distinct = table[name], table[name][train].dropna().unique()
        if len(distinct) == 0:
            reasons[name] = "it has no value in the training rows"
        elif len(distinct) == 1:
            reasons[name] = f"its only value in the training rows is {distinct[0]!s}"
        elif others is None and (why := _key(name, values)):
            reasons[name] = why
    return reasons


def _key(name: str, values: pd.Series) -> str | None:
    """The reason to infer that a column is a key, in words; None: there is none."""
    there = values.dropna()
    counts = there.value_counts()
    alone = int((counts == 1).sum())
    if len(finite := finite_of(there)):
        least, most = finite.min(), finite.max()
        counted = most - least + 1 == len(counts) == len(there) > FEW
        if counted and (finite == finite.round()).all():
            return (
                f'it counts the rows, {least:.0f} to {most:.0f}; columns="{name}=integer" keeps it'
            )
    elif 2 * alone > len(there) and kind_of(values) == Categorical.kind:
        return (
            f"{alone} of its {len(there)} values are in one row alone, as in a key or a text; "
            f'columns="{name}=categorical" keeps it'
        )
    return None
