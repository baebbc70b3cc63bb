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
    """What is said of a column."""

    kind: str | None = None  # name of its kind; None: that which its values say
    order: tuple[str, ...] | None = None  # levels of an ordinal column, the lowest first
    ends: Ends | None = None  # least and largest number that may be
    empty: str | None = None  # what an empty entry is: absent, or mar, missing at random
    plain: bool = False  # whether PLAIN is said of the others


def range_in_words(ends: Ends) -> str:
    """A range as it is said."""
    return "..".join("" if math.isinf(end) else f"{end:.15g}" for end in ends)
