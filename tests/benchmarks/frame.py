"""The frame of benchmarks: rows of what is measured in files, and tables of the documentation.

    python -m tests.benchmarks.NAME --out runs --tables docs/measured/data

A benchmark has a :class:`Study` for each table. Its cases are measured one after the other, seed by
seed; a case that the study's file of rows has is not measured again. ``--only`` names studies,
``--small`` asks for small sizes, to see that all of it runs. Tables are printed with their standard
errors, and written where ``--tables`` says.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from tests.benchmarks.documented import mean_and_error, seeds_in_words, write

__all__ = ["Options", "Row", "Study", "in_turns", "main", "means", "quartiles", "shown"]

Row = dict[str, Any]
Options = argparse.Namespace
"""Of a call: ``seeds``, ``seconds``, ``small``, and those that a benchmark has beside."""


@dataclass(frozen=True)
class Study:
    """What is measured for one table of the documentation.

    Args:
        measure: function of a case with its seed, and of the options, that returns a row of
            numbers, or several.
        cases: names of what is measured.
        table: function of all rows that returns the table; None: means over seeds with their
            errors, by the names of the cases.
        seeds: number of seeds, if the call does not say it.
        unit, notes, digits: of the table, see :func:`~tests.benchmarks.documented.write`.
    """

    measure: Callable[[Row, Options], Row | list[Row]]
    cases: Sequence[Row] = ({},)
    table: Callable[[pd.DataFrame], pd.DataFrame] | None = None
    seeds: int = 1
    unit: str | None = None
    notes: Sequence[str] = ()
    digits: int = 3

    def rows(self, file: Path, options: Options) -> pd.DataFrame:
        """The rows of all cases and seeds; those that the file has not are measured."""
        rows = pd.read_csv(file) if file.exists() else pd.DataFrame()
        for seed in range(options.seeds or (1 if options.small else self.seeds)):
            for case in self.cases[:2] if options.small else self.cases:
                job = {"seed": seed} | case
                if not _has(rows, job):
                    made = self.measure(job, options)
                    made = [job | row for row in ([made] if isinstance(made, dict) else made)]
                    print(*made, sep="\n", flush=True)
                    rows = pd.concat([rows, pd.DataFrame(made)], ignore_index=True)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    rows.to_csv(file, index=False)
        return rows

    def of_rows(self, rows: pd.DataFrame) -> pd.DataFrame:
        return means(rows, [*self.cases[0]]) if self.table is None else self.table(rows)


def _has(rows: pd.DataFrame, job: Row) -> bool:
    if not {*job} <= {*rows.columns}:
        return False
    same = [rows[name] == value for name, value in job.items()]
    return bool(pd.concat(same, axis=1).all(axis=1).any())


def means(rows: pd.DataFrame, by: Sequence[str], plain: Sequence[str] = ()) -> pd.DataFrame:
    """Means over seeds by some columns and all that are no numbers, with standard errors but for
    plain columns; rows of one seed as they are."""
    if rows.seed.nunique() == 1:
        return rows.drop(columns="seed")
    numbers = [name for name in rows.select_dtypes("number") if name not in (*by, "seed")]
    names = [name for name in rows.columns if name not in (*numbers, "seed")]
    made = []
    for key, group in rows.groupby(names, sort=False, dropna=False):
        cells: Row = dict(zip(names, key, strict=True))
        for name in numbers:
            cells[name], error = mean_and_error(group[name])
            if name not in plain:
                cells[f"{name}_se"] = error
        made.append(cells)
    return pd.DataFrame(made)


def shown(table: pd.DataFrame) -> str:
    """A table in print, numbers with their standard errors."""
    columns = {}
    for name in table.columns:
        if name.removesuffix("_se") in columns and name.endswith("_se"):
            errors = table[name].map(lambda e: "" if pd.isna(e) else f" ± {e:.3g}")
            columns[name[:-3]] = columns[name[:-3]] + errors
        else:
            columns[name] = table[name].map(
                lambda v: f"{v:.5g}" if isinstance(v, float) else str(v)
            )
    return pd.DataFrame(columns).to_string(index=False)


def main(
    module: str,
    doc: str | None,
    studies: Mapping[str, Study],
    arguments: Callable[[argparse.ArgumentParser], object] = lambda parser: None,
    words: Sequence[str] | None = None,
) -> None:
    """A benchmark's command.

    Args:
        module: its name in this package.
        doc: its docstring.
        studies: its studies, by the names of tables.
        arguments: adds those of its own to a parser.
        words: of the call, by default those of the command line.
    """
    words = sys.argv[1:] if words is None else words
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[*studies], choices=studies, metavar="TABLE")
    parser.add_argument("--seeds", type=int, help="by default a number of each table's own")
    parser.add_argument("--seconds", type=float, default=10.0, help="where something has a time")
    parser.add_argument("--small", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the rows")
    parser.add_argument("--tables", type=Path, help="folder of the tables")
    arguments(parser)
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    for name in options.only:
        study = studies[name]
        rows = study.rows(options.out / f"{name}.csv", options)
        table = study.of_rows(rows)
        print(f"{name}\n{shown(table)}", flush=True)
        if options.tables:
            command = shlex.join(["python", "-m", f"tests.benchmarks.{module}", *words])
            seeds = seeds_in_words(rows)
            file = options.tables / f"{name}.csv"
            write(file, table, [command], seeds, study.unit, study.notes, study.digits)


# -- times -----------------------------------------------------------------------------------------


def in_turns(works: Mapping[str, Callable[[], object]], turns: int) -> pd.DataFrame:
    """Milliseconds of the processor by turn and name, but for two turns before."""
    found = []
    for _ in range(turns + 2):
        times = {}
        for name, work in works.items():
            began = time.process_time()
            work()
            times[name] = 1e3 * (time.process_time() - began)
        found.append(times)
    return pd.DataFrame(found[2:])


def quartiles(name: str, values: pd.Series) -> Row:
    """The median, and both quartiles beside it."""
    low, middle, high = values.quantile([0.25, 0.5, 0.75])
    return {name: middle, f"{name}_q1": low, f"{name}_q3": high}
