"""Rules by which columns do not exist for some rows, found in surveys whose rules are known.

    python -m tests.benchmarks.skip_rules --tables docs/measured/data

A survey has four to eight questions for everybody: age, sex, work, region, income, a date and two
scales. Of their answers 3% are missing at random. Four more columns have gaps. Two exist by a rule,
and one of them has gaps in a further 5% of the rows at random. The gaps of the third are by chance,
in 5 to 50% of the rows. Those of the fourth are at random given another answer: their probability
is a logistic function of its rank.

    level     a rule of levels of a column
    below     one of numbers, dates or levels on one side of an end
    between   one of numbers or dates between two ends, or outside of them
    both      two such conditions hold, of two columns
    either    one of two holds

Rules hold for 15 to 80% of the people. 2,000 new rows of a survey tell how right a rule is:

    recall       the share of columns with a rule whose rule is right in 99% of new rows
    precision    the share of rules that are right so, of all that are found
    recognized   the share of entries that do not exist of which a rule says so
    mistaken     the share of entries that exist of which a rule says that they do not
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_mdm.tables.columns import fit_columns
from pyro_mdm.tables.columns.gaps import skip_rules
from tests.benchmarks.frame import Options, Row, Study, main

RULES = ("level", "below", "between", "both", "either")
SIZES = (300, 500, 800, 1500, 5000)
ORDERED = ("age", "income", "joined", "agrees", "grade")
GRADES = ("low", "middle", "high")
ASKED = ("asked 0", "asked 1", "asked 2", "asked 3")
NEW = 2000


def answers(rng: np.random.Generator, n: int) -> pd.DataFrame:
    """Questions that everybody answers."""
    joined = np.datetime64("2015-01-01") + rng.integers(0, 3000, n)
    regions = ["north", "south", "east", "west", "abroad"]
    return pd.DataFrame(
        {
            "age": rng.integers(18, 91, n),
            "sex": rng.choice(["female", "male"], n),
            "works": rng.choice(["full", "part", "no"], n, p=[0.4, 0.2, 0.4]),
            "region": rng.choice(regions, n, p=[0.3, 0.3, 0.2, 0.15, 0.05]),
            "income": rng.lognormal(7.5, 0.7, n).round(-1),
            "joined": joined.astype(str),
            "agrees": rng.integers(1, 8, n),
            "grade": pd.Categorical(rng.choice(GRADES, n), GRADES, ordered=True),
        }
    )


class Condition(NamedTuple):
    """A condition on a column: one of some levels, or between two ends, or outside of them."""

    column: str
    levels: tuple[str, ...] = ()
    low: Any = None
    high: Any = None
    outside: bool = False

    def holds(self, table: pd.DataFrame) -> NDArray[np.bool_]:
        values = table[self.column]
        if self.levels:
            return values.isin(self.levels).to_numpy()
        inside = np.ones(len(table), dtype=bool)
        inside &= True if self.low is None else (values >= self.low).to_numpy()
        inside &= True if self.high is None else (values < self.high).to_numpy()
        return inside ^ self.outside


class Known(NamedTuple):
    """A rule that is known."""

    conditions: tuple[Condition, ...]
    either: bool

    def holds(self, table: pd.DataFrame) -> NDArray[np.bool_]:
        masks = np.stack([condition.holds(table) for condition in self.conditions])
        return np.asarray(masks.any(0) if self.either else masks.all(0))


def a_condition(
    rng: np.random.Generator, table: pd.DataFrame, kind: str, without: str = ""
) -> Condition | None:
    """A random condition, None if the table has no column for it."""
    wide = kind == "between"
    names = [
        name
        for name in table
        if name != without and (name in ORDERED) == (kind != "level")
        if not (wide and name == "grade")
    ]
    if not names:
        return None
    name = str(rng.choice(names))
    if kind == "level":
        levels = table[name].unique()
        some = rng.choice(levels, rng.integers(1, len(levels)), replace=False)
        return Condition(name, tuple(some.tolist()))
    ordered = np.sort(table[name].astype(str)) if name == "joined" else table[name].sort_values()
    if name == "grade":
        ends: list[Any] = [str(rng.choice(GRADES[1:]))]
    else:
        at = np.sort(rng.uniform(0.1, 0.9, 2 if wide else 1)) * len(ordered)
        ends = np.asarray(ordered)[at.astype(int)].tolist()
    if wide:
        return Condition(name, (), *ends, bool(rng.random() < 0.5))
    return Condition(name, (), *([ends[0], None] if rng.random() < 0.5 else [None, ends[0]]))


def a_rule(rng: np.random.Generator, table: pd.DataFrame, kind: str) -> Known:
    """A random rule of a kind, which holds for 15 to 80% of the rows; of two conditions, each
    changes that for at least 10%."""
    while True:
        kinds = [kind] if kind in RULES[:3] else rng.choice(RULES[:2], 2).tolist()
        first = a_condition(rng, table, kinds[0])
        conditions = [first]
        if len(kinds) > 1 and first is not None:
            conditions.append(a_condition(rng, table, kinds[1], first.column))
        whole = tuple(condition for condition in conditions if condition is not None)
        if len(whole) < len(kinds):
            continue
        rule = Known(whole, kind == "either")
        holds = rule.holds(table)
        changes = [(condition.holds(table) != holds).mean() for condition in whole]
        if 0.15 <= holds.mean() <= 0.8 and (len(whole) == 1 or min(changes) >= 0.1):
            return rule


def targets(rng: np.random.Generator, n: int) -> list[Any]:
    """Values of four columns that have gaps, in random order."""
    values: list[Any] = [rng.normal(size=n), rng.choice(["day", "night", "both"], n)]
    values += [rng.integers(0, 60, n), np.datetime64("2020-01-01") + rng.integers(0, 900, n)]
    return [values[place] for place in rng.permutation(4)]


class Survey(NamedTuple):
    """A survey with gaps, and the rules of its columns."""

    whole: pd.DataFrame  # without gaps
    table: pd.DataFrame
    rules: dict[str, Known]


def a_survey(rng: np.random.Generator, n: int, kinds: tuple[str, str]) -> Survey:
    """A random survey of n rows, with rules of two kinds."""
    questions = answers(rng, n)
    names = rng.permutation(questions.columns)[: rng.integers(4, 9)].tolist()
    needed = [rng.choice(["sex", "works", "region"]), *rng.choice(["age", "income", "joined"], 1)]
    questions = questions[[*dict.fromkeys([*needed, *names])]]
    large = answers(rng, 5000)[[*questions]]
    whole = questions.assign(**dict(zip(ASKED, targets(rng, n), strict=True)))
    rules = {f"asked {j}": a_rule(rng, large, kind) for j, kind in enumerate(kinds)}
    gone = {name: rule.holds(whole) for name, rule in rules.items()}
    gone["asked 1"] = gone["asked 1"] | (rng.random(n) < 0.05)
    gone["asked 2"] = rng.random(n) < rng.uniform(0.05, 0.5)
    name = rng.choice([name for name in questions if name in ("age", "income", "joined")])
    ranks = questions[name].rank(pct=True).to_numpy()
    slope, middle = rng.uniform(4, 16) * rng.choice([-1, 1]), rng.uniform(0.2, 0.8)
    gone["asked 3"] = rng.random(n) < 1 / (1 + np.exp(-slope * (ranks - middle)))
    gone |= {name: rng.random(n) < 0.03 for name in questions}
    table = whole.assign(**{name: whole[name].mask(mask) for name, mask in gone.items()})
    return Survey(whole, table, rules)


def found_in(job: Row, options: Options) -> list[Row]:
    """What is found in a survey, a row for each column that has gaps."""
    seed, n = job["seed"], job["rows"]
    rng = np.random.default_rng([seed, n])
    kinds = RULES[seed % 5], RULES[seed // 5 % 5]
    whole, table, rules = a_survey(rng, n, kinds)
    found = skip_rules(fit_columns(whole, np.ones(n, dtype=bool)), table)
    new = answers(rng, NEW)
    rows: list[Row] = []
    for name, kind in zip(ASKED, (*kinds, "chance", "random"), strict=True):
        truth = rules[name].holds(new) if name in rules else np.zeros(NEW, dtype=bool)
        said = found[name].holds(new) == 1 if name in found else np.zeros(NEW, dtype=bool)
        rows.append(
            {
                "column": name,
                "rule": kind,
                "found": int(name in found),
                "right": int(name in found and bool((said == truth).mean() >= 0.99)),
                "absent": int(truth.sum()),
                "recognized": int((said & truth).sum()),
                "existing": int((~truth).sum()),
                "mistaken": int((said & ~truth).sum()),
            }
        )
    return rows


def share(rows: pd.DataFrame, of: str, all_of: str | None = None) -> tuple[float, float]:
    """A share, and its standard error over surveys."""
    sums = rows.assign(all=1).groupby("seed")[[of, all_of or "all"]].sum().to_numpy(dtype=float)
    value = sums[:, 0].sum() / sums[:, 1].sum()
    residuals = sums[:, 0] - value * sums[:, 1]
    return float(value), float(np.sqrt((residuals**2).sum()) / sums[:, 1].sum())


def cells(names: Row, shares: dict[str, tuple[float, float]]) -> Row:
    for name, (value, error) in shares.items():
        names |= {name: value, f"{name}_se": error}
    return names


def by_size(rows: pd.DataFrame) -> pd.DataFrame:
    """Shares of all surveys of a size."""
    made = []
    for n, surveys in rows.groupby("rows"):
        ruled = surveys[surveys.rule.isin(RULES)]
        shares = {
            "recall": share(ruled, "right"),
            "precision": share(surveys, "right", "found"),
            "recognized": share(ruled, "recognized", "absent"),
            "mistaken": share(surveys, "mistaken", "existing"),
        }
        made.append(cells({"rows": f"{n}"}, shares))
    return pd.DataFrame(made)


def by_kind(rows: pd.DataFrame) -> pd.DataFrame:
    """Recall by kind of rule."""
    kinds = [(kind, kind, "right") for kind in RULES]
    kinds += [("by chance", "chance", "found"), ("at random", "random", "found")]
    return pd.DataFrame(
        cells({"rows": f"{n}", "gaps": name}, {"found": share(part, column)})
        for n, surveys in rows.groupby("rows")
        for name, kind, column in kinds
        for part in [surveys[surveys.rule == kind]]
        if len(part)
    )


SURVEYS = [{"rows": n} for n in SIZES]
STUDIES = {
    "gaps-rules-sizes": Study(
        found_in,
        SURVEYS,
        by_size,
        seeds=200,
        notes=["shares of 200 surveys, with errors over surveys"],
        digits=4,
    ),
    "gaps-rules-kinds": Study(
        found_in,
        SURVEYS,
        by_kind,
        seeds=200,
        notes=["shares of columns with a rule that is right; by chance and at random, with any"],
        digits=4,
    ),
}

if __name__ == "__main__":
    main("skip_rules", __doc__, STUDIES)
