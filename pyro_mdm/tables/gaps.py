"""The gaps of a table's rows in words: what is missing, and what no row has."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence

from pyro_mdm.tables.columns.base import Column
from pyro_mdm.tables.columns.gaps import never_together, patterns, skip_rules
from pyro_mdm.tables.columns.lazy import pd
from pyro_mdm.tables.columns.skipped import Rule, Skipped

__all__ = ["SHOWN", "TableGaps"]

SHOWN = 12
"""The most patterns of gaps, or doubts, that are printed."""


class TableGaps:
    """The gaps of the columns of new rows, found at the first access, which takes seconds.

    Args:
        columns: the columns.
        rows: the rows; None: they are not known, and have no gaps.
    """

    def __init__(self, columns: Sequence[Column], rows: pd.DataFrame | None) -> None:
        self.columns, self.rows = [*columns], rows

    @functools.cached_property
    def _unseen(self) -> dict[str, Rule]:
        """The rules by which no row has columns that are taken to exist in all."""
        return {} if self.rows is None else skip_rules(self.columns, self.rows)

    @functools.cached_property
    def in_words(self) -> str:
        """The gaps, a line each; empty without gaps."""
        gaps = [] if self.rows is None else patterns(self.columns, self.rows, self._unseen)
        if not gaps:
            return ""
        lines = [f"  {pattern}" for pattern in gaps]
        more = [f"  and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        return "\n".join(["gaps of the table:", *lines[:SHOWN], *more])

    def warn(self) -> None:
        """Warn of columns, and pairs of them, that no row has where a model extrapolates them."""
        if self.rows is None:
            return
        names = [column.name for column in self.columns if not isinstance(column, Skipped)]
        without = [
            f"no row has {name!r} {rule.in_words}: what it is there is extrapolated, and no data "
            f"can say whether rightly; say {name}=absent if it does not exist there"
            for name, rule in self._unseen.items()
        ]
        without += [
            f"no row has both {one!r} and {other!r}: how they depend on each other, given the "
            "rest, is not in the data"
            for one, other in never_together(self.rows, names)
        ]
        if without:
            more = f"; and {len(without) - SHOWN} more" if len(without) > SHOWN else ""
            warnings.warn("; ".join(without[:SHOWN]) + more, stacklevel=2)
