"""Coverage of 95% intervals by Rubin's rules over draws of a ``Table``, in simulated tables.

    python -m tests.benchmarks.pooling --tables docs/measured/data

A table of 400 rows is drawn from a known law, entries are removed, a ``Table`` is trained and makes
20 completed tables, with ``proper`` and without:

    pair at random   y = 1 + 0.8 x + noise, and y is missing in 60% of the rows
    pair by x        the same, and y is missing in 74%, most often where x is large
    survey           region, age, smokes, visits and income: income is missing in 48% by age and
                     region, smokes in 28% by age, and visits in 20%

What is pooled is the mean of y or income, its slope on x or age, and in the survey the difference
in income between those who smoke and others. Of the seeds of a mechanism:

    covered      whether the interval contains the estimate of the whole population
    error        estimate − truth, in units of the interval's standard error
    width        of the interval
    cpu_seconds  of the fit, and of the draws
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_mdm.tables import Table, pooled
from tests.benchmarks.documented import mean_and_error
from tests.benchmarks.frame import Options, Row, Study, main

Values = NDArray[np.float64]
Rng = np.random.Generator
ROWS, DRAWS, POPULATION = 400, 20, 1_000_000
QUANTITIES = {"pair at random": ["mean", "slope"], "pair by x": ["mean", "slope"]}
QUANTITIES |= {"survey": ["mean", "slope", "difference"]}


def logistic(x: Values) -> Values:
    return np.asarray(1 / (1 + np.exp(-x)))


def pair(rng: Rng, n: int) -> pd.DataFrame:
    x = rng.standard_normal(n)
    return pd.DataFrame({"x": x, "y": 1 + 0.8 * x + 0.6 * rng.standard_normal(n)})


def people(rng: Rng, n: int) -> pd.DataFrame:
    region = rng.choice(["north", "middle", "south"], n, p=[0.5, 0.3, 0.2])
    age = np.clip(np.round(45 + 13 * rng.standard_normal(n)), 18, 90)
    smokes = rng.random(n) < logistic(0.04 * (45 - age) + 0.8 * (region == "south") - 0.7)
    visits = rng.poisson(2 + 0.05 * (age - 18) + smokes)
    income = 20 + 0.25 * age - 4 * smokes + 3 * (region == "north") + 6 * rng.standard_normal(n)
    words = np.where(smokes, "yes", "no")
    columns = {"region": region, "age": age.astype(int), "smokes": words, "visits": visits}
    return pd.DataFrame(columns | {"income": income})


def at_random(rng: Rng, frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(y=frame.y.mask(rng.random(len(frame)) < 0.6))


def by_x(rng: Rng, frame: pd.DataFrame) -> pd.DataFrame:
    gone = rng.random(len(frame)) < logistic(1.5 + 1.5 * frame.x.to_numpy())
    return frame.assign(y=frame.y.mask(gone))


def by_questions(rng: Rng, frame: pd.DataFrame) -> pd.DataFrame:
    u, age = rng.random((3, len(frame))), (frame.age.to_numpy() - 45) / 13
    return frame.assign(
        income=frame.income.mask(u[0] < logistic(age - 0.6 + (frame.region == "north"))),
        smokes=frame.smokes.mask(u[1] < logistic(-age - 1.1)),
        visits=frame.visits.mask(u[2] < 0.2),
    )


MECHANISMS: dict[str, tuple[Callable[..., pd.DataFrame], Callable[..., pd.DataFrame]]] = {
    "pair at random": (pair, at_random),
    "pair by x": (pair, by_x),
    "survey": (people, by_questions),
}


def line(x: Values, y: Values) -> tuple[float, float]:
    """The slope of least squares with an intercept, and its standard error."""
    off = x - x.mean()
    slope = off @ (y - y.mean()) / (off @ off)
    left = y - y.mean() - slope * off
    return float(slope), float(np.sqrt(left @ left / (len(y) - 2) / (off @ off)))


def estimates(table: pd.DataFrame) -> tuple[dict[str, float], list[float]]:
    """What is pooled, and the standard errors."""
    on, of = ("x", "y") if "x" in table else ("age", "income")
    y = table[of].to_numpy(float)
    found = {"mean": (float(y.mean()), float(y.std(ddof=1) / np.sqrt(len(y))))}
    found["slope"] = line(table[on].to_numpy(float), y)
    if "smokes" in table:
        found["difference"] = line((table.smokes == "yes").to_numpy(float), y)
    return {name: one for name, (one, _) in found.items()}, [error for _, error in found.values()]


@functools.cache
def truths(mechanism: str) -> dict[str, float]:
    """What the whole population has."""
    return estimates(MECHANISMS[mechanism][0](np.random.default_rng(9), POPULATION))[0]


def scores(job: Row, options: Options) -> Row:
    rng = np.random.default_rng([job["seed"], [*MECHANISMS].index(job["mechanism"])])
    law, remove = MECHANISMS[job["mechanism"]]
    truth = truths(job["mechanism"])
    frame = remove(rng, law(rng, ROWS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.process_time()
        table = Table(steps=2 if options.small else 100, seed=job["seed"], device="cpu").fit(frame)
        cells: Row = {"cpu_seconds_fit": time.process_time() - start}
        for how in ("improper", "proper"):
            start = time.process_time()
            draws = table.impute(frame, DRAWS, proper=how == "proper")
            cells[f"cpu_seconds_{how}"] = time.process_time() - start
            for name, row in pooled(draws, estimates).iterrows():
                off = row.estimate - truth[str(name)]
                cells[f"{name}_{how}_covered"] = int(row.low <= truth[str(name)] <= row.high)
                cells[f"{name}_{how}_error"] = off / row.standard_error
                cells[f"{name}_{how}_width"] = row.high - row.low
    return cells


def summarized(rows: pd.DataFrame) -> pd.DataFrame:
    """Coverage and widths by mechanism and quantity, and the ratios of times."""
    made = []
    for mechanism, quantities in QUANTITIES.items():
        fits = rows[rows.mechanism == mechanism]
        if fits.empty:
            continue
        for quantity in quantities:
            cells: Row = {"mechanism": mechanism, "quantity": quantity}
            for how in ("improper", "proper"):
                errors = fits[f"{quantity}_{how}_error"]
                scores = {"covered": fits[f"{quantity}_{how}_covered"], "bias": errors}
                scores |= {"square": errors**2, "width": fits[f"{quantity}_{how}_width"]}
                for score, numbers in scores.items():
                    mean, error = mean_and_error(numbers)
                    cells |= {f"{score}_{how}": mean, f"{score}_{how}_se": error}
            draws = fits.cpu_seconds_proper.sum() / fits.cpu_seconds_improper.sum()
            whole = (fits.cpu_seconds_fit + fits.cpu_seconds_proper).sum()
            whole /= (fits.cpu_seconds_fit + fits.cpu_seconds_improper).sum()
            made.append(cells | {"time_of_draws": draws, "time": whole, "tables": len(fits)})
    return pd.DataFrame(made)


STUDIES = {
    "imputation-pooling": Study(
        scores,
        [{"mechanism": mechanism} for mechanism in MECHANISMS],
        summarized,
        seeds=100,
        notes=[
            "bias and square are of errors in standard errors; times are relative to those without "
            "proper: of the draws, and of fit and draws"
        ],
    )
}

if __name__ == "__main__":
    main("pooling", __doc__, STUDIES)
