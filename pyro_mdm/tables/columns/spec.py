"""What is said of a column: its kind, an order or a range, and what an empty entry is."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

__all__ = ["OTHERS", "PLAIN", "ColumnSpec", "Empty", "Ends", "range_in_words"]

Ends = tuple[float, float]
"""The least and the largest number that may be."""

Empty = Literal["absent", "mar"]
"""What an empty entry is: of a column that does not exist for the row, or missing at random."""

OTHERS = "*"
"""Stands for the columns that no kind is given for."""
PLAIN = "plain"
"""Kind of :data:`OTHERS`: continuous, ordinal or categorical, whatever numbers repeat."""


class ColumnSpec(NamedTuple):
    """What is said of a column.

    Attributes:
        kind: name of its kind; None: that which its values say.
        order: levels of an ordinal column, the lowest first.
        ends: least and largest number that may be.
        empty: what an empty entry is, absent where the column does not exist, or missing at random.
        plain: whether :data:`PLAIN` is said of the others.
    """

    kind: str | None = None
    order: tuple[str, ...] | None = None
    ends: Ends | None = None
    empty: str | None = None
    plain: bool = False


def range_in_words(ends: Ends) -> str:
    """A range as it is said."""
    return "..".join("" if math.isinf(end) else f"{end:.15g}" for end in ends)
