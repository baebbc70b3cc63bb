"""Generators of rows, each a process of its own that measures its processor time.

    python -m tests.benchmarks.tables.generators METHOD FOLDER

reads the problem in the folder, whose training rows are complete, and writes ``rows.npy`` over:
as many new rows, in code, and ``seconds.txt``.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.runs import processor_seconds
from tests.benchmarks.tables.data import Problem
from tests.benchmarks.tables.methods import import_what

Numbers = NDArray[np.float64]


def resampled(problem: Problem) -> Numbers:
    """Training rows, drawn with replacement."""
    rng = np.random.default_rng(problem.seed)
    rows = problem.rows[: problem.train]
    return rows[rng.integers(len(rows), size=len(rows))]


def independent(problem: Problem) -> Numbers:
    """Each column of training rows in an order of its own."""
    rng = np.random.default_rng(problem.seed)
    return np.asarray(rng.permuted(problem.rows[: problem.train], axis=0))


def copula(problem: Problem) -> Numbers:
    """A Gaussian copula of the columns' own laws, categories in the order of their codes."""
    from scipy.stats import norm, rankdata

    rng = np.random.default_rng(problem.seed)
    rows = problem.rows[: problem.train]
    scores = norm.ppf((rankdata(rows, axis=0) - 0.5) / len(rows))
    drawn = rng.multivariate_normal(np.zeros(rows.shape[1]), np.corrcoef(scores.T), len(rows))
    place = np.minimum((norm.cdf(drawn) * len(rows)).astype(int), len(rows) - 1)
    return np.take_along_axis(np.sort(rows, 0), place, 0)


def diffusion(problem: Problem) -> Numbers:
    """This library's, as its user calls it."""
    from inference.table import Table

    table = Table(seed=problem.seed).fit(problem.frame(False))
    return problem.codes(table.sample(problem.train))


GENERATORS: dict[str, Callable[[Problem], Numbers]] = {
    "training rows": resampled,
    "independent": independent,
    "copula": copula,
    "diffusion": diffusion,
}


def main() -> None:
    method, folder = sys.argv[1], Path(sys.argv[2])
    warnings.simplefilter("ignore")
    problem = Problem.load(folder)
    import_what(method)
    began = processor_seconds()
    rows = GENERATORS[method](problem)
    (folder / "seconds.txt").write_text(f"{processor_seconds() - began:.2f}")
    np.save(folder / "rows.npy", rows)


if __name__ == "__main__":
    main()
