"""Columns that are absent in the same rows: the dependence of samples beside that of the law.

    python -m tests.benchmarks.absent_columns --tables docs/measured/data

One, two or four columns that only those have who say yes, in 0%, 20%, 50% or 80% of 1,500 rows
absent, of numbers, integers or categories, beside a number that all have. Of 4,000 samples of a
``Table``, among those that have the columns:

    correlation  the largest error of a correlation with the law's, by scores of categories
    of_rows      that of the rows themselves
    exists       the share of samples that have one of the columns and lack another
    rmse         the error of predicting the last column given all others, in new rows, beside that
                 of the least squares line of 20,000 rows, as a ratio
    seconds      of the fit
"""

from __future__ import annotations

import itertools
import time
import warnings
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_mdm.tables import Table
from tests.benchmarks.frame import Options, Row, Study, main

Values = NDArray[np.float64]
KINDS = ("numbers", "integers", "categories")
LEVELS = np.array(["never", "seldom", "often", "always"], dtype=object)


def survey(kind: str, number: int, share: float, *, seed: int, n: int = 1500) -> pd.DataFrame:
    """A survey whose columns y0, y1, … only those have who say yes."""
    rng = np.random.default_rng(seed)
    gone = rng.random(n) < share
    common = rng.normal(size=(n, 1))
    z = np.sqrt(0.85) * common + np.sqrt(0.15) * rng.normal(size=(n, number))
    columns: dict[str, Any] = {"asked": np.where(gone, "no", "yes")} if share else {}
    columns["x"] = 0.6 * common[:, 0] + 0.8 * rng.normal(size=n)
    for j, values in enumerate(z.T):
        if kind == "integers":
            values = (40 + 12 * values).round()
        elif kind == "categories":
            values = LEVELS[np.digitize(values, [-0.7, 0.0, 0.7])]
        columns[f"y{j}"] = pd.Series(values).where(~gone)
    return pd.DataFrame(columns)


def numbers(table: pd.DataFrame) -> pd.DataFrame:
    """The columns that depend on each other, as numbers, of rows that have them."""
    scores = {level: k for k, level in enumerate(LEVELS)}
    names = [name for name in table if name != "asked"]
    return pd.DataFrame(
        {n: pd.to_numeric(table[n].map(lambda v: scores.get(v, v))) for n in names}
    ).dropna()


def correlations(table: pd.DataFrame) -> Values:
    """Correlations of the columns among rows that have them, (d, d)."""
    return numbers(table).corr().to_numpy()


def scores(job: Row, options: Options) -> Row:
    """The scores of one table."""
    kind, number, share, seed = job["kind"], job["columns"], job["absent"], job["seed"]
    table = survey(kind, number, share, seed=seed)
    ideal = survey(kind, number, 0.0, seed=1000 + seed, n=20_000)
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = Table(seed=seed, steps=2 if options.small else None, progress=False).fit(table)
        seconds = time.perf_counter() - began
        samples = fitted.sample(4000)
        new = ideal.head(500).assign(**{"asked": "yes"} if share else {})
        last = f"y{number - 1}"
        draws = fitted.conditional(new, last, num=50).sample()
    gone = samples[[f"y{j}" for j in range(number)]].isna()
    law = correlations(ideal)
    places = {level: float(k) for k, level in enumerate(LEVELS)}
    drawn = draws.map(lambda v: places.get(v, v)).astype(float)
    whole = numbers(ideal)
    x = np.column_stack([np.ones(len(whole)), whole.drop(columns=last).to_numpy()])
    line = np.linalg.lstsq(x, whole[last].to_numpy(), rcond=None)[0]
    truth = whole[last].to_numpy()[:500]
    least = np.sqrt(((x[:500] @ line - truth) ** 2).mean())
    return {
        "correlation": float(np.abs(correlations(samples) - law).max()),
        "of_rows": float(np.abs(correlations(table) - law).max()),
        "exists": float((gone.any(axis=1) & ~gone.all(axis=1)).mean()),
        "rmse": float(np.sqrt(((drawn.mean(axis=1).to_numpy() - truth) ** 2).mean()) / least),
        "seconds": seconds,
    }


STUDIES = {
    "gaps-absent": Study(
        scores,
        [
            {"kind": kind, "columns": number, "absent": share}
            for kind, number, share in itertools.product(KINDS, (1, 2, 4), (0.0, 0.2, 0.5, 0.8))
        ],
        notes=["errors of correlations are the largest of all pairs"],
    )
}

if __name__ == "__main__":
    main("absent_columns", __doc__, STUDIES)
