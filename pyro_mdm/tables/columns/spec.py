"""The specification of a column: its kind, an order or a range, and the meaning of gaps."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

__all__ = ["EVERYWHERE", "OTHERS", "ColumnSpec", "Empty", "Ends", "range_in_words"]

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
    """The specification of a column, as far as it is given.

    Example:
        >>> from pyro_mdm.tables.columns.kinds import parse_spec
        >>> parse_spec("score", "integer 0..100 absent")
        ColumnSpec(kind='integer', order=None, ends=(0.0, 100.0), empty='absent')
    """

    kind: str | None = None  # the name of its kind; None: inferred from its values
    order: tuple[str, ...] | None = None  # the levels of an ordinal column, the lowest first
    ends: Ends | None = None  # the least and the largest number that it may have
    empty: str | None = None  # the meaning of an empty entry; None: inferred


def range_in_words(ends: Ends) -> str:
    """A range as text, such as 0..100."""
    return "..".join("" if math.isinf(end) else f"{end:.15g}" for end in ends)
