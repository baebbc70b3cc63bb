"""Imputers of tables, each a process of its own that measures its processor time.

    python -m tests.benchmarks.tables.methods METHOD FOLDER

reads the problem in the folder and writes ``draws.npy``, codes (draws, n, d) of the test rows;
``best.npy``, (n, d), of a method that has a single best value beside its draws, or none of these;
and ``seconds.txt``. Numbers are given to all methods as they are, and categories as such.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tests.benchmarks.runs import processor_seconds
from tests.benchmarks.tables.data import Problem

Numbers = NDArray[np.float64]
Answer = tuple[Numbers | None, Numbers | None]
"""Draws and best values."""


def levels_of(problem: Problem) -> NDArray[np.int64]:
    """The number of categories of each column; 0: it is of numbers."""
    return np.array([0 if known is None else len(known) for known in problem.categories])


class Dummies:
    """Rows with a column of 0 and 1 by category, but for the first, and NaN where it is missing.

    Args:
        levels: see :func:`levels_of`.
    """

    def __init__(self, levels: NDArray[np.int64]) -> None:
        self.levels = levels.tolist()

    def __call__(self, rows: Numbers) -> Numbers:
        columns = []
        for own, levels in zip(rows.T, self.levels, strict=True):
            if levels == 0:
                columns.append(own)
            for k in range(1, levels):
                columns.append(np.where(np.isnan(own), np.nan, own == k))
        return np.stack(columns, 1)

    def rows(self, x: Numbers) -> Numbers:
        """The rows: the category whose column is the greatest, or the first if none is above ½."""
        columns, start = [], 0
        for levels in self.levels:
            taken = max(levels - 1, 1) if levels != 1 else 0
            own = x[..., start : start + taken]
            start += taken
            if levels == 0:
                columns.append(own[..., 0])
            else:
                first = np.full((*x.shape[:-1], 1), 0.5)
                columns.append(np.concatenate([first, own], -1).argmax(-1).astype(np.float64))
        return np.stack(columns, -1)


def mean(problem: Problem) -> Answer:
    """Each column's own values, drawn with their frequencies, whatever the others are."""
    rng = np.random.default_rng(problem.seed)
    seen, test = problem.rows[: problem.train], problem.rows[problem.train :]
    draws = np.empty((problem.draws, *test.shape))
    best = np.empty(test.shape)
    for j, own in enumerate(seen.T):
        own = own[~np.isnan(own)]
        draws[..., j] = rng.choice(own, draws.shape[:2])
        best[:, j] = own.mean()
    return draws, best


def iterative(problem: Problem) -> Answer:
    """scikit-learn's IterativeImputer: Bayesian regressions of each column on the others, numbers
    standardized. The mean of draws is better than the values of one that does not draw."""
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    dummies = Dummies(levels_of(problem))
    x = dummies(problem.rows)
    seen = x[: problem.train]
    center, scale = np.nanmean(seen, 0), np.nanstd(seen, 0)
    scale[scale == 0] = 1.0
    x = (x - center) / scale
    seen, test = x[: problem.train], x[problem.train :]
    drawing = IterativeImputer(sample_posterior=True, random_state=problem.seed, tol=0)
    drawing.fit(seen)
    each = [drawing.transform(test) for _ in range(problem.draws)]
    return dummies.rows(np.stack(each) * scale + center), None


def missforest(problem: Problem) -> Answer:
    """MissForest (Stekhoven and Bühlmann, 2012) by scikit-learn's forests, of 100 trees each: a
    single value. Forests see training rows alone; rounds end as there, or with the tenth."""
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    levels = levels_of(problem)
    rows, train = problem.rows, problem.train
    missing = np.isnan(rows)
    classes = levels > 0
    filled = rows.copy()
    for j, own in enumerate(rows[:train].T):
        known = own[~np.isnan(own)]
        start = np.bincount(known.astype(int)).argmax() if classes[j] else known.mean()
        filled[missing[:, j], j] = start
    some = missing[:train] & ~classes
    last = np.full(2, np.inf)
    for _ in range(10):
        before = filled.copy()
        for j in np.argsort(missing[:train].sum(0), kind="stable"):
            if not missing[:, j].any():
                continue
            x = Dummies(np.delete(levels, j))(np.delete(filled, j, 1))
            kind: Any = RandomForestClassifier if classes[j] else RandomForestRegressor
            forest = kind(100, max_features="sqrt", random_state=problem.seed, n_jobs=1)
            there = ~missing[:train, j]
            forest.fit(x[:train][there], filled[:train][there, j])
            filled[missing[:, j], j] = forest.predict(x[missing[:, j]])
        new, old = filled[:train], before[:train]
        scale = (new[some] ** 2).sum()
        of_numbers = ((new - old)[some] ** 2).sum() / scale if some.any() else -np.inf
        of_classes = (new != old)[missing[:train] & classes].mean() if classes.any() else -np.inf
        change = np.array([of_numbers, of_classes])
        if (change >= last).all() or not np.isfinite(change).any():
            filled = before
            break
        last = change
    return None, filled[train:]


def miceforest(problem: Problem) -> Answer:
    """Chained LightGBM models with predictive mean matching, as the package has them: of each data
    set, of which there are ten for 50 draws, rounds 5 to 9.

    They see what is there of the test rows too: each round of ``impute_new_data`` of version 6.0.5
    goes on from the first, random values, in place of those of the round before.
    """
    import miceforest as mf

    table = pd.concat([problem.frame(False), problem.frame(True)], ignore_index=True)
    for name, known in zip(problem.names, problem.categories, strict=True):
        if known is not None:
            table[name] = pd.Categorical(table[name], categories=known)
    table.columns = [f"c{j}" for j in range(table.shape[1])]
    rounds = 5
    sets = -(-problem.draws // rounds)
    kernel = mf.ImputationKernel(table, sets, random_state=problem.seed)
    kernel.mice(4 + rounds, num_threads=1)
    draws = []
    for k in range(sets):
        for each in range(5, 5 + rounds):
            completed = kernel.complete_data(k, iteration=each)
            completed.columns = problem.names
            draws.append(problem.codes(completed)[problem.train :])
    return np.stack(draws)[: problem.draws], None


def diffusion(problem: Problem) -> Answer:
    """This library's, as its user calls it."""
    from inference.table import Table

    table = Table(seed=problem.seed).fit(problem.frame(False))
    draws = table.impute(problem.frame(True), problem.draws)
    codes = problem.codes(draws).reshape(problem.draws, -1, len(problem.names))
    return present(codes, problem), None


def present(draws: Numbers, problem: Problem) -> Numbers:
    """Draws in which no entry is absent, (S, n, d): all that are scored exist, which a method is
    not told. In the place of an absence is another draw of the entry, or of the column's values."""
    rng = np.random.default_rng(problem.seed)
    draws = draws.copy()
    for i, j in np.argwhere(np.isnan(draws).any(0)):
        entry = draws[:, i, j]
        absent = np.isnan(entry)
        values = problem.rows[: problem.train, j] if absent.all() else entry
        entry[absent] = rng.choice(values[~np.isnan(values)], absent.sum())
    return draws


METHODS: dict[str, Callable[[Problem], Answer]] = {
    "mean": mean,
    "iterative": iterative,
    "missforest": missforest,
    "miceforest": miceforest,
    "diffusion": diffusion,
}
OF_PEERS = ("miceforest",)
"""Methods that need the peers' environment."""


def import_what(method: str) -> None:
    """Import what a method needs, whose time is not its own."""
    if method == "diffusion":
        import inference.table  # noqa: F401
    elif method == "miceforest":
        import miceforest  # noqa: F401
    elif method in ("iterative", "missforest"):
        import sklearn.ensemble
        import sklearn.impute  # noqa: F401


def main() -> None:
    method, folder = sys.argv[1], Path(sys.argv[2])
    warnings.simplefilter("ignore")
    problem = Problem.load(folder)
    import_what(method)
    began = processor_seconds()
    draws, best = METHODS[method](problem)
    seconds = processor_seconds() - began
    for name, values in (("draws", draws), ("best", best)):
        if values is not None:
            np.save(folder / f"{name}.npy", values)
    (folder / "seconds.txt").write_text(f"{seconds:.2f}")


if __name__ == "__main__":
    main()
