"""Columns that do not exist for some rows."""

from __future__ import annotations

import functools
import json
import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from models import DataError
from pyro_mdm.tables import Table
from pyro_mdm.tables.columns import (
    column_facts,
    column_of_facts,
    decode,
    encode,
    fit_columns,
    to_model_space,
)
from pyro_mdm.tables.columns.gaps import patterns, skip_rules
from pyro_mdm.tables.columns.skipped import ABSENT, HIDDEN, Rule, Skipped

WORKING = ("full", "part")


def survey(n: int = 400, seed: int = 0) -> pd.DataFrame:
    """People, of whom those who work have hours, a shift, a start and a car or none."""
    rng = np.random.default_rng(seed)
    job = rng.choice(["full", "part", "home", "retired"], n, p=[0.4, 0.1, 0.2, 0.3])
    works = np.isin(job, WORKING)
    start = pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 900, n), "D")
    table = pd.DataFrame(
        {
            "job": job,
            "age": np.where(job == "retired", 68, 40) + rng.integers(-9, 10, n),
            "hours": np.where(job == "full", 38.0, 20.0) + rng.integers(-12, 13, n),
            "pay": rng.lognormal(7, 0.3, n),
            "shift": rng.choice(["day", "night", "both"], n),
            "car": pd.Series(rng.random(n) < 0.5).astype(object),
            "start": start,
        }
    )
    table.loc[~works, ["hours", "pay", "shift", "car", "start"]] = None
    return table


ASKED = ("hours", "pay", "shift", "car", "start")


def fitted(table: pd.DataFrame, **kinds: str) -> list[Any]:
    return list(fit_columns(table, np.ones(len(table), dtype=bool), kinds))


def test_they_are_found_and_are_values_of_their_columns() -> None:
    table = survey()
    columns = fitted(table)
    assert [c.name for c in columns if isinstance(c, Skipped)] == [*ASKED]
    for column in columns:
        if isinstance(column, Skipped):
            assert column.rule.exact
            assert re.search(r"absent where 'job' is '(home|retired)' or '", column.in_words)
            facts = json.loads(json.dumps(column_facts(column)))  # as a run keeps it
            kept = column_of_facts(facts)
            assert column_facts(kept) == facts and kept.in_words == column.in_words
            assert np.array_equal(kept.codes_in(table), column.codes_in(table), equal_nan=True)
    codes = encode(columns, table)
    assert not bool(codes.isnan().any())
    away = ~table["job"].isin(WORKING).to_numpy()
    names = [c.name for c in columns]
    for name in ASKED:
        assert bool((codes[away, names.index(name)] == ABSENT).all())
    x, log_det = to_model_space(columns, codes, torch.Generator().manual_seed(0))
    assert x.shape[1] == sum(c.width for c in columns)
    assert bool(log_det.isfinite().all())
    again = decode(columns, x)
    assert again["hours"].isna().to_numpy().tolist() == away.tolist()
    for name in table:
        pd.testing.assert_series_equal(
            again[name].dropna().astype(str).str[:6],
            table[name].dropna().astype(str).str[:6],
            check_dtype=False,
            check_index_type=False,
        )


def test_an_empty_entry_is_absent_hidden_or_unknown() -> None:
    """By the other column: absent at its values, hidden at others, and unknown where that is empty,
    unless the entry was never hidden."""
    table = survey()
    table.loc[table.index[table["job"] == "full"][:30], "hours"] = math.nan
    hours, pay = (next(c for c in fitted(table) if c.name == name) for name in ("hours", "pay"))
    assert not hours.rule.exact and pay.rule.exact
    asked = pd.DataFrame(
        {"job": ["home", "full", None, None, "full"], "hours": [None, None, None, 40, 41]}
    ).assign(pay=[None, None, None, 900.0, 950.0])
    expected = [ABSENT, HIDDEN, math.nan, 40, 41]
    assert np.array_equal(hours.codes_in(asked), expected, equal_nan=True)
    assert np.array_equal(pay.codes_in(asked)[:3], [ABSENT, HIDDEN, ABSENT])
    x, _ = hours.scaled(torch.tensor(expected, dtype=torch.float64), torch.full((5,), 0.5))
    assert x[:, 0].nan_to_num(7).tolist() == [-1, 1, 7, 1, 1]
    assert x[:, 1].isnan().tolist() == [True, True, True, False, False]


def test_what_is_said_goes_before() -> None:
    table = survey()
    columns = {c.name: c for c in fitted(table, hours="mar", pay="nonnegative mar", age="absent")}
    assert not isinstance(columns["hours"], Skipped) and columns["pay"].kind == "nonnegative"
    assert isinstance(columns["age"], Skipped) and columns["age"].rule == Rule()
    assert fitted(table, hours="integer absent")[2].spec == "integer absent"
    with pytest.raises(DataError, match="after any, absent or mar"):
        fitted(table, hours="nowhere")


def people(n: int, seed: int, low: int = 18) -> pd.DataFrame:
    """Answers of everybody, of all types of columns."""
    rng = np.random.default_rng(seed)
    joined, left = (
        pd.Timestamp("2015-01-01") + pd.to_timedelta(rng.integers(0, 3000, n), "D") for _ in "ab"
    )
    grades = ["low", "middle", "high"]
    return pd.DataFrame(
        {
            "age": rng.integers(low, 91, n),
            "sex": rng.choice(["female", "male"], n),
            "works": rng.random(n) < 0.6,
            "region": rng.choice(["north", "south", "east", "west"], n),
            "code": rng.choice([1, 2, 3, 4, 9], n),
            "income": rng.lognormal(7.5, 0.7, n).round(2),
            "joined": joined,
            "left": left.astype(str),
            "agrees": rng.integers(1, 8, n),
            "grade": pd.Categorical(rng.choice(grades, n), grades, ordered=True),
        }
    )


@functools.cache
def columns_of_people(n: int, seed: int) -> list[Any]:
    """Those of people and of their pay."""
    return fitted(people(n, seed).assign(pay=np.random.default_rng(seed).normal(size=n)))


RULES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a level": (lambda t: t["region"] == "west", r"'region' is 'west'"),
    "levels": (lambda t: t["region"].isin(["east", "west"]), r"'region' is '\w+' or '\w+'"),
    "a truth": (lambda t: ~t["works"], "'works' is False"),
    "numbers that are names": (lambda t: t["code"].isin([2, 4]), "'code' is 2 or 4"),
    "below": (lambda t: t["age"] < 65, "'age' is below 6[456]"),
    "at least": (lambda t: t["age"] >= 65, "'age' is at least 6[456]"),
    "between": (
        lambda t: t["age"].between(30, 64),
        "'age' is at least (29|30|31) and below 6[456]",
    ),
    "outside": (
        lambda t: ~t["age"].between(30, 64),
        "'age' is below (29|30|31) or at least 6[456]",
    ),
    "amounts": (lambda t: t["income"] >= 2000, r"'income' is at least \d+"),
    "dates": (lambda t: t["joined"] < "2020-01-01", r"'joined' is before 20(19|20)-\d\d-\d\d"),
    "dates of text": (lambda t: t["left"] >= "2022-01-01", r"'left' is from 202[12]-\d\d-\d\d"),
    "a scale": (lambda t: t["agrees"] < 4, "'agrees' is below 4"),
    "ordered levels": (lambda t: t["grade"] >= "middle", "'grade' is at least 'middle'"),
    "both": (
        lambda t: (t["sex"] == "female") & ~t["works"],
        "'(sex|works)' is .* and '(sex|works)' is .*",
    ),
    "either": (
        lambda t: (t["sex"] == "male") | ~t["works"],
        "'(sex|works)' is .* or '(sex|works)' is .*",
    ),
    "both, of numbers": (
        lambda t: (t["age"] >= 40) & (t["income"] < 2000),
        "'(age|income)' is .* and '(age|income)' is .*",
    ),
    "either, of numbers": (
        lambda t: (t["age"] >= 65) | (t["region"] == "west"),
        "'(age|region)' is .* or '(age|region)' is .*",
    ),
    "one of three": (
        lambda t: (t["age"] >= 65) | ~t["works"] | (t["sex"] == "male"),
        "('(age|works|sex)' is .* or ){2}'(age|works|sex)' is .*",
    ),
}
GAPS = {"none": (0.0, 0.0), "also of answers": (0.05, 0.05)}


@pytest.mark.parametrize(("n", "gaps"), [(400, "none"), (800, "also of answers")])
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_found_and_holds_for_new_rows(rule: str, n: int, gaps: str) -> None:
    """Of each type of column, with gaps by chance in the rows where the column exists, or in the
    answers that decide too."""
    absent, words = RULES[rule]
    table, new, rng = people(n, n), people(2000, 1), np.random.default_rng(n)
    columns, (some, of_answers) = columns_of_people(n, n), GAPS[gaps]
    gone = absent(table).to_numpy() | (rng.random(n) < some)
    table = table.mask(rng.random(table.shape) < of_answers)
    table["pay"] = np.where(gone, math.nan, rng.normal(size=n))
    rules = skip_rules(columns, table)
    assert [*rules] == ["pay"]
    assert re.fullmatch(f"where {words}", rules["pay"].in_words)
    codes = rules["pay"].codes(np.ones(2000, dtype=bool), new)
    assert np.mean(codes == np.where(absent(new), ABSENT, HIDDEN)) > 1 - 20 / n
    assert rules["pay"].exact == (some == 0)


def test_an_end_is_that_of_rows_not_seen() -> None:
    """Nobody of 66 was asked, or is in the table."""
    table = people(800, 0)
    table = table[~table["age"].isin([65, 66])]
    table["pay"] = np.where(table["age"] < 65, math.nan, table["income"])
    pay = fitted(table)[-1]
    assert pay.rule.in_words == "where 'age' is below 65"
    new = people(4, 0).assign(age=[64, 65, 66, None], pay=None)
    assert pay.codes_in(new).tolist() == [ABSENT, HIDDEN, HIDDEN, ABSENT]


NO_RULES: dict[str, Callable[[Any, Any], Any]] = {
    "chance": lambda t, u: u < 0.4,
    "more often of a level": lambda t, u: u < np.where(t["works"], 0.1, 0.8),
    "more and more often": lambda t, u: u < 1 / (1 + np.exp(-(t["age"] - 55) / 8)),
    "steeply": lambda t, u: u < 1 / (1 + np.exp(-(t["age"] - 55) / 2)),
    "half by a rule": lambda t, u: (t["region"] == "west") | (u < 0.3),
    "half by a rule, half by others": lambda t, u: (
        (t["region"] == "west")
        | ((t["agrees"] < 4) & (t["age"] < 60) & (t["code"] < 3) & (t["sex"] == "male"))
        | ((t["agrees"] > 4) & (t["age"] > 60) & (t["grade"] == "low") & (t["sex"] == "female"))
        | ((t["age"] > 50) & (t["code"] > 3) & (u < 0.9))
    ),
}


@pytest.mark.parametrize("n", [400, 1500])
@pytest.mark.parametrize("gaps", NO_RULES)
def test_gaps_that_have_no_rule_are_hidden(gaps: str, n: int) -> None:
    for seed in range(2):
        table, rng = people(n, seed), np.random.default_rng(seed)
        columns = columns_of_people(n, seed)
        gone = NO_RULES[gaps](table, rng.random(n))
        assert skip_rules(columns, table.assign(pay=np.where(gone, math.nan, 1.0))) == {}


def test_patterns_are_said_with_what_tells_them() -> None:
    table = survey()
    rng = np.random.default_rng(1)
    table.loc[rng.random(400) < 0.3, "age"] = math.nan
    columns = fitted(table)
    hours, age = sorted(patterns(columns, table, {}), key=lambda words: words.startswith("age"))
    assert hours.startswith(", ".join(ASKED[:4])) and "taken as absent where 'job' is" in hours
    assert "hours=mar" in hours and "no other column tells which" in age


@pytest.fixture(scope="module")
def table() -> Table:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few rows and steps: samples differ from the rows
        return Table(steps=6, holdout=False).fit(survey(200))


@pytest.mark.slow
def test_new_rows_have_the_same_holes(table: Table) -> None:
    rows = table.sample(400)
    holes = rows[[*ASKED]].isna()
    assert 0.2 < holes["hours"].mean() < 0.8
    some = table.sample(200, given={"job": "retired"})
    assert some["hours"].isna().mean() > 0.8 and (some["job"] == "retired").all()
    others = table.sample(200, given={"hours": 38})
    assert others["job"].isin(WORKING).mean() > 0.8


def test_completions_fill_none_of_them(table: Table) -> None:
    rows = survey(20, 5)
    rows["age"] = np.where(np.arange(20) % 2, math.nan, rows["age"])
    rows.loc[rows["job"].isin(WORKING) & (np.arange(20) % 3 == 0), "hours"] = math.nan
    whole = table.impute(rows, 3)
    assert whole["age"].notna().all()
    for draw in range(3):
        empty = whole.loc[draw]["hours"].isna().to_numpy()
        # an empty entry of someone who works is hidden, though no training row had one
        assert not (empty & rows["job"].isin(WORKING).to_numpy()).any()
        assert empty[~rows["job"].isin(WORKING)].all()
    middle = table.transform(rows)
    assert middle["hours"].isna().to_numpy()[~rows["job"].isin(WORKING)].all()


@pytest.mark.slow
def test_densities_count_them(table: Table) -> None:
    rows = survey(6, 7)
    law = table.conditional(rows, "shift")
    probabilities = law.probabilities(draws=16)
    assert probabilities.shape == (6, 4)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    hours = table.conditional(rows, "hours", num=20)
    absent = hours.log_prob([None] * 6, draws=64)["log_prob"]
    gone = hours.sample().isna().mean(axis=1)
    away = ~rows["job"].isin(WORKING)
    assert absent[away].min() > absent[~away].max()
    assert gone[away].mean() > gone[~away].mean()
    assert np.isfinite(table.log_prob(rows, draws=8)["log_prob"]).all()
    shown = table.calibration(rows, draws=4)
    assert str(shown)
