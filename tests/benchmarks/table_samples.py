"""Samples of tables: a diffusion beside a copula and the training rows themselves.

    python -m tests.benchmarks.tables.peers
    python -m tests.benchmarks.table_samples --workers 2 --out runs/samples.csv
    python -m tests.benchmarks.table_samples --out runs/samples.csv --summary docs/measured/data

Generators learn from 80% of the rows without a missing entry, chosen by the seed, and make as many.
Of these, beside the other rows:

    prediction         R² of a number, or the area under the ROC curve of a category, of gradient
                       boosting that learns the table's target from samples and predicts that of the
                       other rows
    correlation_error  mean distance of correlations, over pairs of columns of numbers
    association_error  mean total variation between contingency tables of pairs of categories
    closer             the share of samples that are closer to their nearest training row than half
                       of the other rows are; ½ is ideal, more is copying. Distances are Euclidean,
                       of standardized numbers, and 1 between two categories

``training rows`` are drawn with replacement, so that they copy; ``independent`` keeps nothing but
the law of each column.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks import runs
from tests.benchmarks.tables import summary
from tests.benchmarks.tables.data import ENVIRONMENT, TABLES, Problem, read
from tests.benchmarks.tables.generators import GENERATORS
from tests.benchmarks.tables.methods import levels_of

Numbers = NDArray[np.float64]
KEY = ("seed", "table", "method")
SCORES = ("prediction", "correlation_error", "association_error", "closer")


def problem_of(name: str, seed: int, environment: Path) -> Problem:
    """The complete rows of a table in an order of the seed; those to train on come first."""
    table = read(name, environment).dropna()
    table = table.iloc[np.random.default_rng(seed).permutation(len(table))].reset_index(drop=True)
    numbers = set(table.select_dtypes("float64"))
    categories = [None if c in numbers else sorted(table[c].unique()) for c in table]
    train = int(0.8 * len(table))
    problem = Problem(np.empty(0), train, list(table.columns), categories, seed, 0)
    problem.rows = problem.codes(table)
    return problem


def one_hot(rows: Numbers, levels: NDArray[np.int64], center: Numbers, scale: Numbers) -> Numbers:
    """Standardized numbers, and categories as points whose distance is 1."""
    columns = []
    for j, own in enumerate(rows.T):
        if levels[j]:
            columns += [(own == k) / np.sqrt(2) for k in range(levels[j])]
        else:
            columns.append((own - center[j]) / scale[j])
    return np.stack(columns, 1)


def closer(samples: Numbers, train: Numbers, others: Numbers) -> float:
    """The share of samples with a smaller distance to the nearest training row than the median of
    the others', of equal ones a half."""
    from scipy.spatial import KDTree

    tree = KDTree(train)
    own, theirs = tree.query(samples)[0], np.median(tree.query(others)[0])
    equal = np.isclose(own, theirs, rtol=1e-9, atol=1e-12)
    return float(((own < theirs) & ~equal).mean() + equal.mean() / 2)


def correlation_error(a: Numbers, b: Numbers) -> float:
    """The mean distance of correlations over pairs of columns; that of a constant column is 0."""
    pairs = np.triu_indices(a.shape[1], 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        first, second = (np.nan_to_num(np.corrcoef(x.T))[pairs] for x in (a, b))
    return float(np.abs(first - second).mean())


def association_error(a: Numbers, b: Numbers, levels: NDArray[np.int64]) -> float:
    """The mean total variation between contingency tables over pairs of columns of codes."""

    def shares(rows: Numbers, i: int, j: int) -> Numbers:
        cells = rows[:, i].astype(int) * levels[j] + rows[:, j].astype(int)
        return np.bincount(cells, minlength=levels[i] * levels[j]) / len(rows)

    pairs = itertools.combinations(range(a.shape[1]), 2)
    return float(np.mean([np.abs(shares(a, *p) - shares(b, *p)).sum() / 2 for p in pairs]))


def prediction(samples: Numbers, others: Numbers, target: int, levels: NDArray[np.int64]) -> float:
    """Of the target in other rows, by gradient boosting on samples; R², or the area."""
    from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor
    from sklearn.metrics import r2_score, roc_auc_score

    kept = [j for j in range(len(levels)) if j != target]

    def inputs(rows: Numbers) -> Numbers:
        zeros, ones = np.zeros(len(kept)), np.ones(len(kept))
        return one_hot(rows[:, kept], levels[kept], zeros, ones)

    y, truth = samples[:, target], others[:, target]
    if levels[target] == 0:
        model: Any = GradientBoostingRegressor(random_state=0).fit(inputs(samples), y)
        return float(r2_score(truth, model.predict(inputs(others))))
    if len(np.unique(y)) < 2:
        return 0.5
    model = GradientBoostingClassifier(random_state=0).fit(inputs(samples), y)
    return float(roc_auc_score(truth, model.predict_proba(inputs(others))[:, 1]))


def scores_of(problem: Problem, samples: Numbers, target: int) -> runs.Row:
    train, others = problem.rows[: problem.train], problem.rows[problem.train :]
    levels = levels_of(problem)
    center, scale = train.mean(0), np.where(levels > 0, 1, train.std(0))
    points = [one_hot(rows, levels, center, scale) for rows in (samples, train, others)]
    scores: runs.Row = {
        "prediction": prediction(samples, others, target, levels),
        "closer": closer(*points),
    }
    numbers, categories = levels == 0, levels > 0
    if numbers.sum() > 1:
        own, theirs = samples[:, numbers], others[:, numbers]
        scores["correlation_error"] = correlation_error(own, theirs)
    if categories.sum() > 1:
        own, theirs = samples[:, categories], others[:, categories]
        scores["association_error"] = association_error(own, theirs, levels[categories])
    return scores


def work(job: runs.Row, options: argparse.Namespace) -> runs.Row:
    problem = problem_of(job["table"], job["seed"], options.environment)
    with runs.folder() as name:
        folder = Path(name)
        problem.save(folder)
        module = "tests.benchmarks.tables.generators"
        runs.run_process(sys.executable, module, [job["method"], name], options.limit)
        samples = np.load(folder / "rows.npy")
        seconds = float((folder / "seconds.txt").read_text())
    target = problem.names.index(TABLES[job["table"]].target)
    return scores_of(problem, samples, target) | {"cpu_seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=TABLES)
    parser.add_argument("--methods", nargs="+", default=list(GENERATORS), choices=GENERATORS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes at a time")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds of a method")
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT, help="of the peers")
    parser.add_argument("--out", type=Path, default=Path("runs/samples.csv"))
    parser.add_argument("--summary", type=Path, help="folder of the table made of --out")
    options = parser.parse_args()
    if options.summary:
        summary.of_samples(options.out, options.summary)
        return
    rows = runs.Rows(options.out, KEY, (*SCORES, "cpu_seconds"))
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
