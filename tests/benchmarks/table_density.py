"""Densities of tables: a diffusion beside a spline flow, a Gaussian mixture and a KDE.

    python -m tests.benchmarks.tables.peers
    python -m tests.benchmarks.table_density --workers 2 --out runs/density.csv
    python -m tests.benchmarks.table_density --out runs/density.csv --summary docs/measured/data

The mean log likelihood of the 20% of rows that the seed leaves for testing, in nats by row, of
standardized columns. Rows are those without a missing entry, columns those of numbers, none of
which is in a tenth of the rows or more. Rounded numbers have no density: to each is added uniform
noise of one unit of its last digit, the same for all methods, so that all of them are densities of
the same rows. Ours is a lower bound.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tests.benchmarks import runs
from tests.benchmarks.tables import summary
from tests.benchmarks.tables.data import ENVIRONMENT, read
from tests.benchmarks.tables.densities import DENSITIES

Numbers = NDArray[np.float64]
TABLES = ("diabetes", "pima", "breast cancer", "concrete", "college")
KEY = ("seed", "table", "method")
MOST = 0.1
"""The share of rows from which on a number is an atom."""


def step_of(values: Numbers) -> float:
    """One unit of the last digit of numbers, 0 if they have more than six."""
    for decimals in range(7):
        if (np.abs(values - np.round(values, decimals)) < 1e-9 * np.abs(values).clip(1)).all():
            return 10.0**-decimals
    return 0.0


def continuous(table: pd.DataFrame) -> pd.DataFrame:
    """Rows without a missing entry, columns of numbers without atoms."""
    numbers = table.select_dtypes("float64").dropna()
    shares = numbers.apply(lambda own: own.value_counts(normalize=True).iloc[0])
    return numbers.loc[:, shares < MOST]


def rows_of(table: pd.DataFrame, seed: int) -> tuple[Numbers, Numbers]:
    """Training and test rows, with noise on rounded numbers, standardized."""
    values = continuous(table).to_numpy()
    rng = np.random.default_rng(seed)
    steps = np.array([step_of(own) for own in values.T])
    values = (values + steps * (rng.random(values.shape) - 0.5))[rng.permutation(len(values))]
    train = values[: int(0.8 * len(values))]
    values = (values - train.mean(0)) / train.std(0)
    return values[: len(train)], values[len(train) :]


def work(job: runs.Row, options: argparse.Namespace) -> runs.Row:
    train, test = rows_of(read(job["table"], options.environment), job["seed"])
    with runs.folder() as name:
        folder = Path(name)
        np.save(folder / "train.npy", train)
        np.save(folder / "test.npy", test)
        module = "tests.benchmarks.tables.densities"
        arguments = [job["method"], name, str(job["seed"])]
        runs.run_process(sys.executable, module, arguments, options.limit)
        values = np.load(folder / "log_prob.npy")
        seconds = float((folder / "seconds.txt").read_text())
    return {
        "columns": train.shape[1],
        "train_rows": len(train),
        "log_prob": float(values.mean()),
        "cpu_seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", nargs="+", default=TABLES, choices=TABLES)
    parser.add_argument("--methods", nargs="+", default=list(DENSITIES), choices=DENSITIES)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes at a time")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds of a method")
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT, help="of the peers")
    parser.add_argument("--out", type=Path, default=Path("runs/density.csv"))
    parser.add_argument("--summary", type=Path, help="folder of the table made of --out")
    options = parser.parse_args()
    if options.summary:
        summary.of_density(options.out, options.summary)
        return
    rows = runs.Rows(options.out, KEY, ("columns", "train_rows", "log_prob", "cpu_seconds"))
    jobs = [
        dict(zip(KEY, (seed, table, method), strict=True))
        for seed in range(options.first_seed, options.first_seed + options.seeds)
        for table in options.tables
        for method in options.methods
    ]
    failed = runs.run_all(jobs, lambda job: work(job, options), rows, options.workers)
    sys.exit(f"{len(failed)} jobs failed" if failed else 0)


if __name__ == "__main__":
    main()
