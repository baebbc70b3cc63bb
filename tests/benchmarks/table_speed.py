"""The cost of a Table: processor seconds of its fit and draws, memory of imputing long files.

    python -m tests.benchmarks.table_speed --out runs/speed.csv
    python -m tests.benchmarks.table_speed --out runs/speed.csv --summary docs/measured/data

A Table is fitted to 1,000 and to 5,000 rows of ten made-up columns of several kinds, a fifth of
whose entries is missing, and completes them 5 times; so does miceforest, with its defaults, in the
environment of :mod:`tests.benchmarks.tables.peers`. Another 100,000 rows are completed once by a
Table of 1,000. Imports are not counted. ``inference.impute wine`` completes rows of wine drawn with
replacement, a fifth missing too, by two draws of one step: what it holds in memory does not depend
on the steps. Each row of ``--out`` is a process of one thread, whose peak memory is that of its
resource usage; rows that are there are not measured again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from tests.benchmarks import runs
from tests.benchmarks.environments import python_of
from tests.benchmarks.runs import processor_seconds
from tests.benchmarks.tables.data import ENVIRONMENT

KEY = ("task", "rows")
VALUES = ("fit_cpu_seconds", "draws_cpu_seconds", "peak_megabytes")
TABLE, OF_MANY, PEER = "Table", "Table of 1,000 rows", "miceforest"
DRAWS, SEED = 5, 0
FILES = {"impute a CSV file": ".csv", "impute a parquet file": ".parquet"}
LENGTHS = (100, 10_000, 100_000)
SIZES, MANY = (1_000, 5_000), 100_000
MISSING = 0.2


def with_missing(table: pd.DataFrame) -> pd.DataFrame:
    return table.mask(np.random.default_rng(0).random(table.shape) < MISSING)


def made_up(n: int) -> pd.DataFrame:
    """Ten columns that hang together by two numbers of each row."""
    rng = np.random.default_rng(0)
    u, v = rng.standard_normal((2, n))
    noise = rng.standard_normal((10, n))
    days = np.round(300 * v + 100 * noise[9]).astype(int)
    return pd.DataFrame(
        {
            "height": 170 + 8 * u + 4 * noise[0],
            "income": np.exp(10 + 0.5 * v + 0.3 * noise[1]),
            "savings": np.maximum(0, 1000 * (u + v + noise[2])),
            "visits": rng.poisson(np.exp(1 + 0.4 * u)),
            "score": np.round(50 + 10 * v + 5 * noise[4], 1),
            "member": u + noise[5] > 0,
            "grade": np.clip(np.round(3 + v + 0.5 * noise[6]), 1, 5),
            "city": np.array(["Oslo", "Rome", "Bern"])[np.digitize(u + 0.5 * noise[7], (-1, 0.5))],
            "job": np.array([*"abcdef"])[np.digitize(v + noise[8], (-1.5, -0.5, 0, 0.5, 1.5))],
            "since": pd.Timestamp("2020-01-01") + pd.to_timedelta(days, unit="D"),
        }
    )


def time_here(task: str, n: int) -> None:
    """Fit an imputer and draw from it, and print the processor seconds of both."""
    rows = with_missing(made_up(n))
    if task == PEER:
        import warnings

        import miceforest

        warnings.simplefilter("ignore")

        for name in ("member", "city", "job"):
            rows[name] = rows[name].astype("category")
        rows["since"] = (rows["since"] - pd.Timestamp("2020-01-01")).dt.days
        began = processor_seconds()
        kernel = miceforest.ImputationKernel(rows, num_datasets=DRAWS, random_state=SEED)
        kernel.mice(5, num_threads=1)
        fitted = processor_seconds()
        for k in range(DRAWS):
            kernel.complete_data(k)
    else:
        from inference import Table, train  # noqa: F401
        from inference.training import report  # noqa: F401

        Table(seed=SEED, steps=1).fit(rows.head(100))  # for what is imported late
        began = processor_seconds()
        table = Table(seed=SEED).fit(rows.head(1000) if task == OF_MANY else rows)
        fitted = processor_seconds()
        table.impute(rows, 1 if task == OF_MANY else DRAWS)
    print(fitted - began, processor_seconds() - fitted)


def measured(arguments: list[str], python: str | Path = sys.executable) -> tuple[str, float]:
    """What a process of Python prints, and its peak memory in megabytes."""
    environment = os.environ | dict.fromkeys(runs.THREADS, "1")
    command = [str(python), *arguments]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"exit status {process.returncode}")
    return printed, usage.ru_maxrss * 1024 / 1e6


def work(job: runs.Row) -> runs.Row:
    task, n = job["task"], job["rows"]
    if task not in FILES:
        module = "tests.benchmarks.table_speed"
        python = python_of(ENVIRONMENT) if task == PEER else sys.executable
        printed, peak = measured(["-m", module, "--time_here", task, str(n)], python)
        seconds = map(float, printed.split()[-2:])
        return dict(zip(VALUES, (*seconds, peak), strict=True))
    from models.tabular import read_table

    with runs.folder() as name:
        data, out = (Path(name) / f"{stem}{FILES[task]}" for stem in ("rows", "full"))
        rows = with_missing(read_table("wine").sample(n, replace=True, random_state=0))
        write = rows.to_csv if data.suffix == ".csv" else rows.to_parquet
        write(data, index=False)
        options = {"data": data, "out": out, "num": 2, "steps": 1, "accelerator": "cpu"}
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        return {"peak_megabytes": measured(["-m", "inference.impute", "wine", *words])[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    tasks = {TABLE: SIZES, PEER: SIZES, OF_MANY: (MANY,), **dict.fromkeys(FILES, LENGTHS)}
    parser.add_argument("--tasks", nargs="+", default=list(tasks), choices=tasks)
    parser.add_argument("--out", type=Path, default=Path("runs/speed.csv"))
    parser.add_argument("--summary", type=Path, help="folder of the table made of --out")
    parser.add_argument("--time_here", nargs=2, help="a task in this very process, and its rows")
    options = parser.parse_args()
    if options.time_here:
        time_here(options.time_here[0], int(options.time_here[1]))
        return
    if options.summary:
        from tests.benchmarks.tables import summary

        summary.of_speed(options.out, options.summary)
        return
    jobs = [dict(zip(KEY, (t, n), strict=True)) for t in options.tasks for n in tasks[t]]
    jobs.sort(key=lambda job: job["rows"])
    failed = runs.run_all(jobs, work, runs.Rows(options.out, KEY, VALUES), 1)
    sys.exit(f"{len(failed)} jobs failed" if failed else 0)


if __name__ == "__main__":
    main()
