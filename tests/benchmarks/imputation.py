"""Missing entries of tables: a diffusion beside chained regressions and trees.

    python -m tests.benchmarks.tables.peers
    python -m tests.benchmarks.imputation --workers 2 --out runs/imputation.csv
    python -m tests.benchmarks.imputation --out runs/imputation.csv --summary docs/measured/data

The first makes the environment of the peers, the second adds to its file what it has not yet, seed
by seed, and the third writes the tables of the documentation. Models are fitted to 80% of the rows,
chosen by the seed, where entries are missing by the same mechanism, and asked for the missing
entries of the others; tables and mechanisms are described in tables/data.py, methods in
tables/methods.py, scores in tables/scores.py. Each method is a process of one thread. All numbers
together have the first scores, in standard deviations of the training values of their columns, and
all categories together the last three:

    rmse         of the mean of the draws, or of the single value of a method that has one
    crps         by the draws, unbiased
    log_score    minus the log density of the normal law with mean and variance of the draws, with
                 one part in 51 of N(0, 1); the variance is at least 1e-4 and, of a column of whole
                 numbers, a twelfth
    coverage     of intervals of 90%, where chance breaks ties
    width        of these
    accuracy     of the most frequent category of the draws, or of the single value
    brier        of the frequencies of the draws and one more, spread evenly over the categories
    log_score_of_categories
                 minus the log of these

Draws of whole numbers are rounded, of every method.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks import runs
from tests.benchmarks.environments import python_of
from tests.benchmarks.tables import scores, summary
from tests.benchmarks.tables.data import ENVIRONMENT, MECHANISMS, TABLES, Task, task_of
from tests.benchmarks.tables.methods import METHODS, OF_PEERS

Numbers = NDArray[np.float64]
KEY = ("seed", "table", "mechanism", "method")
SCORES = (
    "rmse",
    "crps",
    "log_score",
    "coverage",
    "width",
    "accuracy",
    "brier",
    "log_score_of_categories",
)


def scores_of(task: Task, draws: Numbers | None, best: Numbers | None) -> dict[str, float]:
    """Scores, means over entries, of draws (S, n, d) of test rows and of single values (n, d)."""
    numbers: dict[str, list[Numbers]] = {}
    categories: dict[str, list[Numbers]] = {}

    def add(all_of: dict[str, list[Numbers]], **own: Numbers) -> None:
        for name, values in own.items():
            all_of.setdefault(name, []).append(values)

    for j, known in enumerate(task.problem.categories):
        asked = task.asked[:, j]
        truth = task.truth[asked, j]
        own = None if draws is None else draws[:, asked, j]
        single = None if best is None else best[asked, j]
        if known is None:
            w = (truth - task.mean[j]) / task.sd[j]
            middle = None if single is None else (single - task.mean[j]) / task.sd[j]
            if own is not None:
                if task.whole[j]:
                    own = np.round(own)
                own = (own - task.mean[j]) / task.sd[j]
                step = 1 / task.sd[j] if task.whole[j] else 0.0
                floor = max(scores.FLOOR, step**2 / 12)
                middle = own.mean(0) if middle is None else middle
                add(
                    numbers,
                    crps=scores.crps(own, w),
                    log_score=scores.log_score(own, w, floor),
                    coverage=scores.covered(own, w),
                    width=scores.width(own),
                )
            assert middle is not None
            add(numbers, rmse=(middle - w) ** 2)
        else:
            # a category that no training row has is one more, of which no draw is
            k = np.where(np.isnan(truth), len(known), truth).astype(int)
            votes = own if own is not None else np.asarray(single)[None]
            shares = scores.frequencies(votes, len(known) + bool((k == len(known)).any()))
            add(categories, accuracy=scores.accuracy(shares, k))
            if own is not None:
                add(
                    categories,
                    brier=scores.brier(shares, k),
                    log_score_of_categories=scores.log_score_of_categories(shares, k),
                )
    means = {
        name: float(np.concatenate(values).mean())
        for name, values in (numbers | categories).items()
        if sum(map(len, values))
    }
    if "rmse" in means:
        means["rmse"] **= 0.5
    return means


def work(job: runs.Row, options: argparse.Namespace) -> runs.Row:
    task = task_of(job["table"], job["mechanism"], job["seed"], options.draws, options.environment)
    method = job["method"]
    python = python_of(options.environment) if method in OF_PEERS else sys.executable
    with runs.folder() as name:
        folder = Path(name)
        task.problem.save(folder)
        module = "tests.benchmarks.tables.methods"
        runs.run_process(python, module, [method, name], options.limit)
        files = [folder / "draws.npy", folder / "best.npy"]
        draws, best = (np.load(file) if file.exists() else None for file in files)
        seconds = float((folder / "seconds.txt").read_text())
    check(task, draws, best)
    return scores_of(task, draws, best) | {"cpu_seconds": seconds}


def check(task: Task, draws: Numbers | None, best: Numbers | None) -> None:
    """That every entry that is asked for has a value (RuntimeError: one has none)."""
    for values in (draws, best):
        if values is not None and np.isnan(values[..., task.asked]).any():
            raise RuntimeError("an entry has no value")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=TABLES)
    parser.add_argument("--mechanisms", nargs="+", default=MECHANISMS, choices=MECHANISMS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--workers", type=int, default=1, help="processes at a time")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds of a method")
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT, help="of the peers")
    parser.add_argument("--out", type=Path, default=Path("runs/imputation.csv"))
    parser.add_argument("--summary", type=Path, help="folder of the tables made of --out")
    options = parser.parse_args()
    if options.summary:
        summary.of_imputation(options.out, options.summary)
        return
    rows = runs.Rows(options.out, KEY, (*SCORES, "cpu_seconds"))
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    jobs = [
        dict(zip(KEY, (seed, table, mechanism, method), strict=True))
        for seed in seeds
        for table in options.tables
        for mechanism in options.mechanisms
        for method in options.methods
    ]
    failed = runs.run_all(jobs, lambda job: work(job, options), rows, options.workers)
    sys.exit(f"{len(failed)} jobs failed" if failed else 0)


if __name__ == "__main__":
    main()
