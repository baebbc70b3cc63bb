"""Imputation of incomplete tables by a run that was trained on such rows.

python -m inference.impute runs/tabular-learned-0-0 --data incomplete.csv --num 20 --out full.csv
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from inference.commands.cli import check_options_positive, command_line
from inference.drawing.imputation import CompletedFiles, Survey, fill_cells
from inference.drawing.pieces import read_pieces, schema_without
from inference.folders.output import check_out
from inference.settings.kinds import checked_options
from inference.table import Table
from models.csv_files import text_columns
from pyro_mdm.model import DiffusionModel
from pyro_mdm.support.progress import progress_bar
from pyro_mdm.tables.columns import Center
from pyro_mdm.tables.completion import DrawOptions, bootstrapped, draws, middle
from pyro_mdm.tables.frames import PIECE, filled
from pyro_mdm.tables.rows import UnknownPolicy

__all__ = ["fill_cells", "filled", "impute"]


@dataclass(frozen=True, kw_only=True)
class ImputeOptions:
    """The imputation.

    Args:
        run: run folder, of --model tabular (--run may be left out), or the name of such a trained
            model in models/trained: wine.
        data: incomplete table, .csv or .parquet, with the columns of the table that the run was
            trained on; or a name as for inference.train.
        out: name of the file of the completed table, .csv or .parquet.
        num: number of draws of each row.
        center: value of a missing number in the completed table: the mean or the median of its
            draws, rounded like its column; or an atom, if most draws are this atom. A missing level
            of an ordinal column gets the median, and one of a categorical column the most frequent
            category.
        sampler: sampler, as for inference.sample; by default exponential.
        steps: number of steps of the sampler.
        batch_size: number of rows simulated together.
        seed: seed of the noise. The draws of a row depend on it, on --batch_size and on the rows of
            its piece.
        unknown: treatment of values that the run does not know, such as new categories and numbers
            outside a column's range: missing takes them for missing entries, with a warning; refuse
            is an error. Their cells stay as they are.
        overwrite: whether both files are replaced if they exist.
        accelerator: kind of device: cpu, cuda, … or auto.
        proper: whether each draw is under parameters of its own, those of a bootstrap sample of the
            training rows, so that fits to the draws may be pooled by Rubin's rules.
    """

    run: Path
    data: str
    out: Path
    num: int = 20
    center: Center = "mean"
    sampler: str | None = None
    steps: int | None = None
    batch_size: int = 1024
    seed: int = 0
    unknown: UnknownPolicy = "missing"
    overwrite: bool = False
    accelerator: str = "auto"
    proper: bool = False


@checked_options(ImputeOptions)
def impute(run: Path, data: str, out: Path, **options: Any) -> None:
    """Complete a table with a run's averaged weights: missing entries given the others.

    Two files are written: the table with one value for each missing entry, and beside it
    NAME-draws.csv with all draws, which the column draw counts. Observed entries stay as they are,
    also in columns that the run does not know: the text of each cell in a CSV file, the types and
    the index in a parquet file. The table is read, completed and written in pieces of 4,096 rows,
    so any number of rows takes the memory of one piece; both files appear at the end.
    :meth:`inference.Table.impute` makes the same draws.

    Args:
        run, data, out, options: options by name, see :class:`ImputeOptions`.
    """
    settings = ImputeOptions(run=run, data=data, out=out, **options)
    check_options_positive(settings, "num", "steps", "batch_size")
    out, num, seed = settings.out, settings.num, settings.seed
    draws_out = out.with_name(f"{out.stem}-draws{out.suffix}")
    for file in (out, draws_out):
        check_out(file, (".csv", ".parquet"), overwrite=settings.overwrite)
    table = Table.from_run(settings.run, accelerator=settings.accelerator)
    columns = table.problem.columns
    if settings.sampler is not None or settings.steps is not None:
        table.use_sampler(settings.sampler, settings.steps)
    pieces = partial(read_pieces, settings.data, PIECE, text_columns(columns))
    whole = Survey.from_pieces(pieces(), table.problem, settings.unknown)
    if not whole.missing:
        names = ", ".join(column.name for column in columns)
        raise ValueError(
            f"--data {settings.data} has no missing entry, expected one at least in the columns of "
            f"the run, {names}; leave one empty"
        )
    schema = schema_without(settings.data, table.names)
    with TemporaryDirectory(dir=out.parent, prefix=".imputed-") as folder:
        models: DiffusionModel | list[DiffusionModel] = table.model
        if settings.proper:
            models = bootstrapped(table.problem, table.model, num, seed=seed)
        files = CompletedFiles(Path(folder), out.suffix, num, whole, schema)
        how = DrawOptions(batch_size=settings.batch_size, seed=seed, unknown=settings.unknown)
        with progress_bar(whole.rows, "imputation", "rows") as bar:
            for k, piece in enumerate(pieces()):
                rows = piece.table.astype(whole.types)
                drawn = draws(table.problem, models, rows, num, how, piece=k)
                files.add(rows, piece.cells, middle(columns, drawn, settings.center), drawn)
                bar.update(len(rows))
        files.write(out, draws_out)
    print(
        f"{whole.missing} missing entries in {whole.incomplete} of {whole.rows} rows; {out}; "
        f"{draws_out}"
    )


if __name__ == "__main__":
    command_line(impute, unnamed="run", groups={"imputation": ImputeOptions})
