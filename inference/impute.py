"""Imputation of incomplete tables by a run that was trained on such rows.

python -m inference.impute runs/tabular-learned-0-0 --data incomplete.csv --num 20 --out full.csv
"""

from __future__ import annotations

import csv
import io
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from inference import trust
from inference.checkpoints import write_atomically
from inference.cli import check_positive, command_line
from inference.loading import load_trained
from inference.output import check_out
from inference.processes import start
from inference.runs import RunError
from inference.sample import make_sampler
from models import Tabular
from models.columns import Center
from models.tabular import OfUnknown, read_table
from pyro_mdm.conditioning.imputation import impute as completions

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
    parquet the types and the index.

    Args:
        run: the run folder, of --model tabular (--run may be left out), or the name of such a
            trained model in models/trained: wine.
        data: the incomplete table, .csv or .parquet, with the columns of the run's; or a name as
            for inference.train.
        out: the completed table, .csv or .parquet.
        num: draws of each row.
        center: of the draws of an entry that is a number, which the completed table has, rounded as
            the column is; where most draws are one atom, it is that. Of an ordinal one it is the
            median level, of a categorical one the most frequent category.
        sampler: as for inference.sample; by default exponential.
        steps: steps of the sampler.
        batch_size: rows simulated together.
        seed: seed of the noise.
        unknown: what to do with values that the run does not know, such as new categories and
            numbers out of a column's range: missing, to take them for missing entries, with a
            warning; or refuse. Their cells stay as they are.
        overwrite: replace both files if they exist.
        accelerator: cpu, cuda, … or auto.
    """
    check_positive(num=num, steps=steps, batch_size=batch_size)
    draws_out = out.with_name(f"{out.stem}-draws{out.suffix}")
    for file in (out, draws_out):
        check_out(file, (".csv", ".parquet"), overwrite=overwrite)
    trained, (problem, model, _), _ = load_trained(run)
    if not isinstance(problem, Tabular):
        raise RunError(f"{run} is of --model {trained.config['model']}, expected one of tabular")
    if trained.config["maps"] == "levels":
        raise RunError(
            f"{run} was trained at --maps levels, where no entry is ever observed, expected mixed "
            "or subsets; train it at such maps"
        )
    table = read_table(data)
    noise = torch.Generator().manual_seed(seed)
    codes = problem.codes(table, unknown)
    each = [problem.to_model_space(codes, noise) for _ in range(num)]
    names = [column.name for column in problem.columns]
    missing = table[names].isna().to_numpy()
    if not missing.any():
        raise ValueError(
            f"--data {data} has no missing entry, expected one at least in the columns of the run, "
            f"{', '.join(names)}; leave one empty"
        )
    fabric = start(accelerator)
    if fabric.world_size > 1:
        raise ValueError("inference.impute runs in one process; start it without torchrun")
    if sampler is not None or steps is not None:
        name = sampler or trained.config["sampler"] or "exponential"
        with nullcontext() if sampler else trust.named_by(run):
            model.sampler = make_sampler(name, steps, model.diffusion, model.score_function)
    x = torch.cat(each).to(fabric.device)
    model.to(fabric.device)
    drawn = completions(model, x, num=1, batch_size=batch_size, seed=seed, progress=True)
    tables = [problem.to_table(rows) for rows in drawn[0].split(len(table))]
    _write(out, draws_out, data, table, problem, tables, center)
    rows = int(missing.any(1).sum())
    print(
        f"{int(missing.sum())} missing entries in {rows} of {len(table)} rows; {out}; {draws_out}"
    )


def _write(
    out: Path,
    draws_out: Path,
    data: str,
    table: pd.DataFrame,
    problem: Tabular,
    draws: list[pd.DataFrame],
    center: Center,
) -> None:
    """Write a table with the middle of the draws of its missing entries, and all draws."""
    import pandas as pd

    middle = {
        column.name: column.center(np.stack([own[column.name] for own in draws]), center)
        for column in problem.columns
    }
    middles, cells = pd.DataFrame(middle), None
    if out.suffix == ".csv":
        cells = read_cells(Path(data).expanduser(), table)
    if cells is not None:
        each = [fill_cells(cells, table, own) for own in draws]
        of_draws = [[*row, str(k)] for k, rows in enumerate(each) for row in rows[1:]]
        write_atomically(draws_out, _csv([[*cells[0], "draw"], *of_draws]))
        write_atomically(out, _csv(fill_cells(cells, table, middles)))
        return
    everything = pd.concat([filled(table, own).assign(draw=k) for k, own in enumerate(draws)])
    for file, whole in ((draws_out, everything), (out, filled(table, middles))):
        parquet = file.suffix == ".parquet"
        text = whole.to_parquet() if parquet else whole.to_csv(index=False).encode()
        write_atomically(file, text)


def filled(table: pd.DataFrame, values: pd.DataFrame) -> pd.DataFrame:
    """A table with ``values`` where its own columns of these names are empty, its types kept."""
    import pandas as pd

    whole = table.copy()
    for name in values.columns:
        own, empty = whole[name], whole[name].isna().to_numpy()
        if not empty.any():
            continue
        new = pd.Series(values[name].to_numpy()[empty], dtype=object)
        if isinstance(own.dtype, pd.CategoricalDtype):
            unknown = [value for value in new.unique() if value not in own.cat.categories]
            own = own.cat.add_categories(unknown)
        own = own.copy()
        own[empty] = new.astype(own.dtype).array
        whole[name] = own
    return whole


def read_cells(path: Path, table: pd.DataFrame) -> list[list[str]] | None:
    """The text of each cell of a CSV file, the first row being the names; None: it is no such file,
    or has other rows than ``table``, which was read from it."""
    if path.suffix != ".csv" or not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    width = len(table.columns)
    if len(rows) != len(table) + 1 or len(rows[0]) != width or max(map(len, rows)) > width:
        return None
    return [row + [""] * (width - len(row)) for row in rows]


def fill_cells(
    cells: list[list[str]], table: pd.DataFrame, values: pd.DataFrame
) -> list[list[str]]:
    """Cells, the names first, with ``values`` where the table is empty, written as the column has
    them elsewhere; every other cell is the text that it was."""
    whole = [row.copy() for row in cells]
    for j, name in enumerate(table.columns):
        empty = table[name].isna().to_numpy()
        if name not in values.columns or not empty.any():
            continue
        there = np.flatnonzero(~empty)
        texts = [cells[i + 1][j] for i in there]
        written = dict(zip(table[name].iloc[there], texts, strict=True))
        as_floats = bool(texts) and all(text.endswith(".0") for text in texts)
        own = values[name].tolist()
        for i in np.flatnonzero(empty):
            text = f"{own[i]}.0" if as_floats and isinstance(own[i], int) else str(own[i])
            whole[i + 1][j] = written.get(own[i], text)
    return whole


def _csv(rows: list[list[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


if __name__ == "__main__":
    command_line(impute, unnamed="run")
