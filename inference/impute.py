"""Imputation of incomplete tables by a run that was trained on such rows.

python -m inference.impute runs/tabular-learned-0-0 --data incomplete.csv --num 20 --out full.csv
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from torch import Tensor

from inference import trust
from inference.checkpoints import write_atomically
from inference.cli import check_positive, command_line
from inference.loading import load_trained
from inference.output import check_out
from inference.processes import start
from inference.runs import RunError
from inference.sample import make_sampler
from models import Tabular
from models.tabular import read_table
from pyro_mdm.conditioning.imputation import impute as completions

if TYPE_CHECKING:
    import pandas as pd

Center = Literal["mean", "median"]


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
    overwrite: bool = False,
    accelerator: str = "auto",
) -> None:
    """Complete a table with a run's averaged weights: missing entries given the others.

    Two files are written: the table with one value for each missing entry, and beside it
    NAME-draws.csv with all draws, numbered in its column draw. Present entries are kept, and so are
    columns that the run does not know.

    Args:
        run: the run folder, of --model tabular (--run may be left out), or the name of such a
            trained model in models/trained: wine.
        data: the incomplete table, .csv or .parquet, with the columns of the run's table; or a name
            as for inference.train.
        out: the completed table, .csv.
        num: draws of each row.
        center: value of a continuous entry in the completed table: the mean or the median of its
            draws. An ordinal entry has the median level, a categorical one the most frequent.
        sampler: as for inference.sample; by default exponential.
        steps: steps of the sampler.
        batch_size: rows simulated together.
        seed: seed of the noise.
        overwrite: replace both files if they exist.
        accelerator: cpu, cuda, … or auto.
    """
    check_positive(num=num, steps=steps, batch_size=batch_size)
    draws_out = out.with_name(f"{out.stem}-draws{out.suffix}")
    for file in (out, draws_out):
        check_out(file, (".csv",), overwrite=overwrite)
    trained, (problem, model, _), _ = load_trained(run)
    if not isinstance(problem, Tabular):
        raise RunError(f"{run} is of --model {trained.config['model']}, expected one of tabular")
    if trained.config["maps"] == "levels":
        raise RunError(
            f"{run} was trained at --maps levels, where no entry is ever observed, expected mixed "
            "or subsets; train it at such maps"
        )
    table = read_table(data)
    x = problem.encode(table)
    missing = x.isnan()
    if not bool(missing.any()):
        raise ValueError(f"--data {data} has no missing entry, expected one at least")
    fabric = start(accelerator)
    if fabric.world_size > 1:
        raise ValueError("inference.impute runs in one process; start it without torchrun")
    if sampler is not None or steps is not None:
        name = sampler or trained.config["sampler"] or "exponential"
        with nullcontext() if sampler else trust.named_by(run):
            model.sampler = make_sampler(name, steps, model.diffusion, model.score_function)
    x = x.to(fabric.device)
    model.to(fabric.device)
    drawn = completions(model, x, num=num, batch_size=batch_size, seed=seed, progress=True)
    _write(out, draws_out, table, problem, drawn, center)
    rows = int(missing.any(1).sum())
    print(
        f"{int(missing.sum())} missing entries in {rows} of {len(table)} rows; {out}; {draws_out}"
    )


def _write(
    out: Path,
    draws_out: Path,
    table: pd.DataFrame,
    problem: Tabular,
    drawn: Tensor,
    center: Center,
) -> None:
    """Write a table completed by the centre of draws (num, n, d), and a table of all draws."""
    import pandas as pd

    tables = [problem.to_table(rows) for rows in drawn]
    middle = {
        column.name: center_of([own[column.name] for own in tables], column.kind, center)
        for column in problem.columns
    }
    each = [filled(table, own).assign(draw=k) for k, own in enumerate(tables)]
    write_atomically(draws_out, _csv(pd.concat(each)))
    write_atomically(out, _csv(filled(table, pd.DataFrame(middle))))


def filled(table: pd.DataFrame, values: pd.DataFrame) -> pd.DataFrame:
    """A table with ``values`` where its columns of the same names are empty."""
    whole = table.copy()
    for name in values.columns:
        own, empty = whole[name], whole[name].isna()
        if empty.any():
            whole[name] = own.astype(object).where(~empty, values[name]).infer_objects()
    return whole


def center_of(draws: list[pd.Series], kind: str, center: Center) -> pd.Series | np.ndarray:
    """The centre of draws (n,) of a column.

    The mean or median if it is continuous, the median level if it is ordinal, the most frequent
    category if it is categorical.
    """
    import pandas as pd

    each = pd.concat(draws, axis=1)
    if kind == "categorical":
        return each.mode(axis=1)[0]
    if kind == "ordinal":
        return np.sort(each.to_numpy(), 1)[:, each.shape[1] // 2]
    return each.mean(axis=1) if center == "mean" else each.median(axis=1)


def _csv(table: pd.DataFrame) -> bytes:
    return bytes(table.to_csv(index=False), "utf-8")


if __name__ == "__main__":
    command_line(impute, unnamed="run")
