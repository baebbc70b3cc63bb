"""Tables of benchmarks for the documentation: CSV files with command, machine and date."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import torch

from pyro_mdm.support.measured import Measured

MACHINE = "machine E"


def write(
    file: Path,
    rows: pd.DataFrame,
    commands: Iterable[str],
    seeds: str,
    unit: str | None = None,
    notes: Sequence[str] = (),
    digits: int = 3,
) -> None:
    """A table with its comments."""
    facts = [("command", command) for command in commands]
    facts += [("machine", MACHINE), ("date", datetime.date.today().isoformat()), ("seeds", seeds)]
    facts += [("unit", unit)] * (unit is not None) + [("note", note) for note in notes]
    text = "".join(f"# {fact}: {said}\n" for fact, said in facts)
    body = rows.map(lambda cell: f"{cell:.{digits}f}" if isinstance(cell, float) else cell)
    body = body.astype(object).mask(rows.isna(), "")
    file.write_text(text + body.to_csv(index=False, lineterminator="\n"), encoding="utf-8")
    print(file)


def seeds_in_words(rows: pd.DataFrame) -> str:
    seeds = sorted(rows.seed.unique())
    return str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"


def mean_and_error(values: pd.Series) -> tuple[float, float]:
    """The mean, and its standard error, NaN of a single value."""
    values = values.dropna()
    if len(values) == 0:
        return math.nan, math.nan
    error = values.std() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), float(error)


def interval(differences: pd.Series) -> tuple[float, float, float]:
    """The mean and the 95% interval of Student's t, NaN of a single value."""
    found = Measured.from_values(torch.tensor(differences.dropna().tolist()))
    return found.mean, *found.interval
