"""Tables in files, completed piece by piece: one value for each missing entry, and all draws."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from inference.drawing.pieces import Cells, Piece, TablePiece, Texts, common_types, content
from inference.folders.checkpoints import explain_full_disk
from models import Tabular
from pyro_mdm.support.files import replacing
from pyro_mdm.tables.columns.skipped import ABSENT
from pyro_mdm.tables.frames import filled, with_levels
from pyro_mdm.tables.rows import UnknownPolicy

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


class Survey(NamedTuple):
    """What is known of a table before it is completed, of all of its rows."""

    rows: int
    incomplete: int
    missing: int
    types: dict[str, Any]
    texts: Texts

    @classmethod
    def from_pieces(
        cls, pieces: Iterable[Piece], problem: Tabular, unknown: UnknownPolicy
    ) -> Survey:
        """Read a table once (DataError: a missing column, or an invalid value)."""
        names = [column.name for column in problem.columns]
        rows = incomplete = missing = 0
        types: dict[str, Any] = {}
        texts = Texts()
        for table, cells in pieces:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they come again with the completions
                codes = problem.codes(table, unknown)
            empty = table[names].isna().to_numpy()
            gone = empty & ~(codes == ABSENT).numpy()
            rows, missing = rows + len(table), missing + int(gone.sum())
            incomplete += int(gone.any(1).sum())
            dtypes = dict(table.dtypes)
            types = common_types(types, dtypes) if types else dtypes
            if cells is not None:
                texts.seen(cells, table)
        types = with_levels(types, problem.columns)
        return cls(rows, incomplete, missing, types, texts)


class CompletedFiles:
    """The two files of a completed table, of rows that are added piece by piece.

    Args:
        folder: folder for what is unfinished.
        suffix: kind of both files, .csv or .parquet.
        num: number of draws.
        whole: what is known of the table before it is completed.
        schema: arrow's schema of the columns of a parquet file that stay as they were.
    """

    def __init__(
        self, folder: Path, suffix: str, num: int, whole: Survey, schema: pa.Schema | None
    ) -> None:
        new_file = partial(TablePiece, number=whole.rows, schema=schema)
        self._middle = new_file(folder / f"middle{suffix}")
        self._by_draw = [new_file(folder / f"{k}{suffix}", header=k == 0) for k in range(num)]
        self._texts = whole.texts

    def add(
        self,
        rows: pd.DataFrame,
        cells: Cells | None,
        middle: pd.DataFrame,
        draws: Sequence[pd.DataFrame],
    ) -> None:
        """Add incomplete rows, with the centre of their draws, and with these.

        Args:
            cells: text of the rows, with the names, if they are of a CSV file.
        """
        self._add(self._middle, rows, cells, middle)
        for number, (file, values) in enumerate(zip(self._by_draw, draws, strict=True)):
            self._add(file, rows, cells, values, number)

    def _add(
        self,
        file: TablePiece,
        rows: pd.DataFrame,
        cells: Cells | None,
        values: pd.DataFrame,
        draw: int | None = None,
    ) -> None:
        """Add completed rows, with the number of the draw in a last column if it is one."""
        import pandas as pd

        if cells is not None and file.path.suffix == ".csv":
            completed = fill_cells(cells, rows, values, self._texts)
            if draw is not None:
                names, *others = completed
                completed = [[*names, "draw"], *([*row, str(draw)] for row in others)]
            file.add_cells(completed)
            return
        table = filled(rows, values)
        if draw is not None:
            table = table.assign(draw=draw)
            if isinstance(table.index, pd.RangeIndex):  # which counts the rows of one draw
                table.index = pd.Index(table.index.to_numpy(), name=table.index.name)
        file.add(table)

    def write(self, middle: Path, draws: Path) -> None:
        """Put both files in place (StorageError: no space)."""
        for new in (self._middle, *self._by_draw):
            new.close()
        with explain_full_disk(middle, 0), replacing() as write:
            write(draws, content(self._by_draw))
            write(middle, content([self._middle]))


def fill_cells(
    cells: Cells, table: pd.DataFrame, values: pd.DataFrame, texts: Texts | None = None
) -> Cells:
    """Cells, the names first, with ``values`` where the table is empty, written as the column has
    them elsewhere; every other cell is the text that it was.

    Args:
        texts: texts by which the whole file writes its values; None: these cells are the whole.
    """
    texts = Texts().seen(cells, table) if texts is None else texts
    whole = [row.copy() for row in cells]
    for j, name in enumerate(table.columns):
        empty = table[name].isna().to_numpy()
        if name not in values.columns or not empty.any():
            continue
        drawn = values[name].tolist()
        for i in np.flatnonzero(empty & values[name].notna().to_numpy()):
            whole[i + 1][j] = texts.text(name, drawn[i])
    return whole
