"""Imputation of incomplete tables by a run that was trained on such rows.

python -m inference.impute runs/tabular-learned-0-0 --data incomplete.csv --num 20 --out full.csv
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from inference.commands.cli import check_positive, command_line
from inference.drawing.pieces import (
    Cells,
    Piece,
    TablePiece,
    Texts,
    common_types,
    content,
    read_pieces,
    schema_without,
    text_columns,
)
from inference.folders.checkpoints import explain_full_disk
from inference.folders.output import check_out
from inference.table import Table
from models import Tabular
from pyro_mdm.support.files import replacing
from pyro_mdm.support.progress import progress_bar
from pyro_mdm.tables.columns import Center
from pyro_mdm.tables.columns.skipped import ABSENT
from pyro_mdm.tables.frames import PIECE, filled, with_levels
from pyro_mdm.tables.rows import OfUnknown

if TYPE_CHECKING:
    import pandas as pd


def impute(
    run: Path,
    data: str,
    out: Path,
    num: int = 20,
    center: Center = "mean",
    sampler: str | None = None,
    steps: int | None = None,
    batch_size: int = 1024,
    seed: int = 0,
    unknown: OfUnknown = "missing",
    overwrite: bool = False,
    accelerator: str = "auto",
) -> None:
    """Complete a table with a run's averaged weights: missing entries given the others.

    Two files are written: the table with one value for each missing entry, and beside it
    NAME-draws.csv with all draws, whose column draw counts them. What was there stays as it was,
    also columns that the run does not know: of a CSV file the text of each cell, of a table in
    parquet the types and the index. The table is read, completed and written in pieces of 4,096
    rows, so that any number of rows takes the memory of one piece; both files are put in place at
    the end. It is :meth:`inference.Table.impute`, which has the same draws.

    Args:
        run: run folder, of --model tabular (--run may be left out), or the name of such a trained
            model in models/trained: wine.
        data: incomplete table, .csv or .parquet, with the columns of the table that the run was
            trained on; or a name as for inference.train.
        out: name of the file of the completed table, .csv or .parquet.
        num: number of draws of each row.
        center: value that a missing number gets in the completed table: the mean or the median of
            its draws, rounded as the column is; where most draws are one atom, that atom. A missing
            level of an ordinal column gets the median, and of a categorical one the most frequent
            category.
        sampler: sampler, as for inference.sample; by default exponential.
        steps: number of steps of the sampler.
        batch_size: number of rows simulated together.
        seed: seed of the noise. The draws of a row depend on it, on --batch_size and on the rows of
            its piece.
        unknown: treatment of values that the run does not know, such as new categories and numbers
            out of a column's range: missing takes them for missing entries, with a warning; refuse
            is an error. Their cells stay as they are.
        overwrite: replace both files if they exist.
        accelerator: kind of device: cpu, cuda, … or auto.
    """
    check_positive(num=num, steps=steps, batch_size=batch_size)
    draws_out = out.with_name(f"{out.stem}-draws{out.suffix}")
    for file in (out, draws_out):
        check_out(file, (".csv", ".parquet"), overwrite=overwrite)
    table = Table.from_run(run, accelerator=accelerator)
    columns, table.problem.refusing = table.problem.columns, "--unknown refuse"
    if sampler is not None or steps is not None:
        table.use_sampler(sampler, steps)
    pieces = partial(read_pieces, data, PIECE, text_columns(columns))
    whole = Survey.of(pieces(), table.problem, unknown)
    if not whole.missing:
        names = ", ".join(column.name for column in columns)
        raise ValueError(
            f"--data {data} has no missing entry, expected one at least in the columns of the run, "
            f"{names}; leave one empty"
        )
    with TemporaryDirectory(dir=out.parent, prefix=".imputed-") as folder:
        new_file = partial(TablePiece, number=whole.rows, schema=schema_without(data, table.names))
        middle = new_file(Path(folder) / f"middle{out.suffix}")
        by_draw = [new_file(Path(folder) / f"{k}{out.suffix}", header=k == 0) for k in range(num)]
        with progress_bar(whole.rows, "imputation", "rows") as bar:
            for k, piece in enumerate(pieces()):
                rows = piece.table.astype(whole.types)
                draws = table.draws(
                    rows, num, piece=k, batch_size=batch_size, seed=seed, unknown=unknown
                )
                _add(middle, rows, piece.cells, whole, table.middle(draws, center))
                for number, values in enumerate(draws):
                    _add(by_draw[number], rows, piece.cells, whole, values, number)
                bar.update(len(rows))
        for new in (middle, *by_draw):
            new.close()
        with explain_full_disk(out, 0), replacing() as write:
            write(draws_out, content(by_draw))
            write(out, content([middle]))
    print(
        f"{whole.missing} missing entries in {whole.incomplete} of {whole.rows} rows; {out}; "
        f"{draws_out}"
    )


def _add(
    file: TablePiece,
    rows: pd.DataFrame,
    cells: Cells | None,
    whole: Survey,
    values: pd.DataFrame,
    draw: int | None = None,
) -> None:
    """Add completed rows to a file, with the number of the draw in a last column if it is one."""
    import pandas as pd

    if cells is not None and file.path.suffix == ".csv":
        completed = fill_cells(cells, rows, values, whole.texts)
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


class Survey(NamedTuple):
    """What is known of a table before it is completed, of all of its rows."""

    rows: int
    incomplete: int
    missing: int
    types: dict[str, Any]
    texts: Texts

    @classmethod
    def of(cls, pieces: Iterable[Piece], problem: Tabular, unknown: OfUnknown) -> Survey:
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


if __name__ == "__main__":
    command_line(impute, unnamed="run")
