"""Models of rows whose entries are missing at random, beside the distribution of whole rows.

    python -m tests.benchmarks.missing_at_random --tables docs/measured/data

Rows are drawn from a known law, and which entries are missing depends on those that are there:

    pair       a Gaussian pair of correlation 0.7, whose y is missing where x > 0
    monotone   a Gaussian chain of 6; from some column on all are missing, by the one before
    branches   the chain; each column's being there depends on others, in no order
    mixture    the mask of branches on a mixture of two Gaussian laws in 6 dimensions
    survey     a category, integers that those who work alone have, incomes and ages, of which
               incomes are missing by age

A ``Table`` is trained by two ways of training on gaps, ``fill`` and ``leave_out``; on the
survey, some of whose columns do not exist, by the first alone. Gaps of the others are said to be at
random. Of 5,000 samples, beside 100,000 rows of the law:

    mean         the largest error of a mean, in standard deviations
    deviation    the largest relative error of a standard deviation
    correlation  the largest error of a correlation
    level        half the sum of the errors of the probabilities of levels, the largest
    coverage     the share of 90% intervals, by 50 draws, that hold the entry that is missing
    cpu_seconds  of the fit
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from inference import Table
from tests.benchmarks.frame import Options, Row, Study, main, means

Values = NDArray[np.float64]
WAYS = ("fill", "leave_out")
ROWS, SAMPLES, LAW, DRAWS = 1000, 5000, 100_000, 50


def logistic(x: Values) -> Values:
    return np.asarray(1 / (1 + np.exp(-x)))


def numbers(x: Values, missing: NDArray[np.bool_]) -> tuple[pd.DataFrame, pd.DataFrame]:
    whole = pd.DataFrame(x, columns=[f"x{j}" for j in range(x.shape[1])])
    return whole, whole.mask(missing)


def chain(rng: np.random.Generator, n: int) -> Values:
    x = rng.standard_normal((n, 6))
    for j in range(1, 6):
        x[:, j] = 0.8 * x[:, j - 1] + 0.6 * x[:, j]
    return x


def pair(rng: np.random.Generator, n: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    x = rng.standard_normal((n, 2))
    x[:, 1] = 0.7 * x[:, 0] + math.sqrt(0.51) * x[:, 1]
    return numbers(x, (x[:, :1] > 0) & np.array([False, True]))


def monotone(rng: np.random.Generator, n: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    x, gone = chain(rng, n), np.zeros((n, 6), dtype=bool)
    for j in range(2, 6):
        gone[:, j] = gone[:, j - 1] | (rng.random(n) < logistic(2 * x[:, j - 1] - 1.5))
    return numbers(x, gone)


def mask(rng: np.random.Generator, x: Values) -> NDArray[np.bool_]:
    """A pattern in no order: every column but the first is missing in some rows where another
    is there, and the chances depend on what is there."""
    u, gone = rng.random(x.shape), np.zeros(x.shape, dtype=bool)
    gone[:, 1] = u[:, 1] < logistic(2 * x[:, 0] - 0.5)
    gone[:, 2] = ~gone[:, 1] & (u[:, 2] < logistic(-2 * x[:, 1]))
    gone[:, 3] = gone[:, 1] & (u[:, 3] < logistic(2 * x[:, 2]))
    gone[:, 4] = u[:, 4] < np.where(gone[:, 3], 0.2, logistic(2 * x[:, 3] - 1))
    gone[:, 5] = u[:, 5] < logistic(np.where(gone[:, 4], -2 * x[:, 0], 2 * x[:, 4]))
    return gone


def branches(rng: np.random.Generator, n: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    x = chain(rng, n)
    return numbers(x, mask(rng, x))


def mixture(rng: np.random.Generator, n: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    centre = 1.2 * np.array([1, -1, 1, 1, -1, 1])
    x = 0.5 * chain(rng, n) + np.where(rng.random((n, 1)) < 0.4, centre, -centre)
    return numbers(x, mask(rng, x))


def survey(rng: np.random.Generator, n: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    job = rng.choice(["full", "part", "home", "retired"], n, p=[0.4, 0.1, 0.1, 0.4])
    works = np.isin(job, ["full", "part"])
    age = np.where(job == "retired", 66, 41) + rng.integers(-14, 15, n)
    hours = np.where(works, np.where(job == "full", 40, 20) + rng.integers(-9, 10, n), math.nan)
    income = np.exp(7 + 0.02 * np.nan_to_num(hours) + 0.01 * age + 0.3 * rng.standard_normal(n))
    whole = pd.DataFrame({"job": job, "age": age, "hours": hours, "income": income})
    gone = rng.random(n) < logistic((age - 55) / 8)
    return whole, whole.assign(income=whole["income"].mask(gone))


LAWS: dict[str, Callable[[np.random.Generator, int], tuple[pd.DataFrame, pd.DataFrame]]] = {
    law.__name__: law for law in (pair, monotone, branches, mixture, survey)
}


def errors(samples: pd.DataFrame, rows: pd.DataFrame) -> dict[str, float]:
    """What samples are off by, beside rows of the law."""
    found = [one.select_dtypes("number").astype(float) for one in (samples, rows)]
    change = {
        "mean": ((found[0].mean() - found[1].mean()) / found[1].std()).abs().max(),
        "deviation": (found[0].std() / found[1].std() - 1).abs().max(),
        "correlation": (found[0].corr() - found[1].corr()).abs().to_numpy().max(),
    }
    levels = [
        0.5 * (samples[name].value_counts(normalize=True) - shares).abs().sum()
        for name in rows.select_dtypes(exclude="number")
        for shares in [rows[name].value_counts(normalize=True)]
    ]
    return {name: float(value) for name, value in change.items()} | {
        "level": max(levels, default=0)
    }


def coverage(table: Table, whole: pd.DataFrame, frame: pd.DataFrame) -> float:
    """The share of missing numbers that lie in the 90% interval of their draws."""
    rows = frame.index[(frame.isna() & whole.notna()).any(axis=1)][:500]
    draws = table.impute(frame.loc[rows], DRAWS)
    inside = []
    for name in whole.select_dtypes("number"):
        asked = rows[frame.loc[rows, name].isna() & whole.loc[rows, name].notna()]
        values = draws[name].astype(float).unstack(level=0).loc[asked].to_numpy()
        ends = np.quantile(values, [0.05, 0.95], axis=1, method="weibull")
        truth = whole.loc[asked, name].to_numpy()
        inside.append((truth >= ends[0]) & (truth <= ends[1]))
    return float(np.concatenate(inside).mean())


def scores(job: Row, options: Options) -> Row:
    rng = np.random.default_rng([job["seed"], [*LAWS].index(job["law"])])
    whole, frame = LAWS[job["law"]](rng, ROWS)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gaps = frame.columns[frame.isna().any()] if job["law"] != "survey" else ["income"]
        kinds = dict.fromkeys(gaps, "mar")
        steps = 2 if options.small else None
        table = Table(columns=kinds, seed=job["seed"], gaps=job["gaps"], steps=steps).fit(frame)
        seconds = time.process_time() - start
        found = errors(table.sample(SAMPLES), LAWS[job["law"]](np.random.default_rng(9), LAW)[0])
        return found | {"coverage": coverage(table, whole, frame), "cpu_seconds": seconds}


STUDIES = {
    "gaps-laws": Study(
        scores,
        [
            {"law": law, "gaps": way}
            for law in LAWS
            for way in WAYS
            if law != "survey" or way == "fill"
        ],
        lambda rows: means(rows, ["law", "gaps"], ["cpu_seconds"]),
        seeds=5,
        notes=["errors are the largest of all columns; coverage is that of 90% intervals"],
    )
}

if __name__ == "__main__":
    main("missing_at_random", __doc__, STUDIES)
