"""Columns as people have them: orders, dates, ranges, doubts, and values that are new to a run."""

from __future__ import annotations

import datetime
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from inference.folders.loading import load_trained
from inference.impute import filled, impute
from inference.sample import sample
from inference.train import train
from models import DataError, Tabular
from pyro_mdm.tables.columns import (
    Column,
    Dates,
    Ordinal,
    decode,
    encode,
    fit_columns,
    kind_of,
    to_model_space,
)
from pyro_mdm.tables.columns.doubts import doubts_of
from pyro_mdm.tables.columns.evidence import FEW
from pyro_mdm.tables.columns.kinds import left_out, parse_spec
from tests.brief import SHORT, be_brief

NORMAL = torch.distributions.Normal(0.0, 1.0)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def column(values: Any, said: str | None = None) -> Column:
    table = pd.DataFrame({"w": values})
    return fit_columns(table, np.ones(len(table), bool), {"w": said} if said else None)[0]


def there_and_back(values: pd.Series[Any], said: str | None = None) -> pd.Series[Any]:
    table = values.to_frame("w")
    columns = [column(values, said)]
    back: pd.Series[Any] = decode(columns, to_model_space(columns, encode(columns, table)).x)["w"]
    return back


# -- an order --------------------------------------------------------------------------------------

SCHOOLS = ["secondary", "primary", None, "tertiary", "primary", "secondary"] * 5


def test_levels_have_the_order_that_is_said() -> None:
    own = column(SCHOOLS, "primary<secondary<tertiary<higher")
    assert isinstance(own, Ordinal) and own.levels == 4
    assert own.in_words == "ordinal: primary < secondary < tertiary < higher"
    codes = own.codes(pd.Series(SCHOOLS[:4]))
    assert codes[[0, 1, 3]].tolist() == [1, 0, 2] and math.isnan(codes[2])
    assert own.values(np.array([3, 0])).tolist() == ["higher", "primary"]
    draws = np.array([["primary"], ["tertiary"], ["secondary"]], dtype=object)
    assert own.center(draws, "mean").tolist() == ["secondary"]  # the median in this order
    again = column(SCHOOLS, own.spec)
    assert again.in_words == own.in_words
    back = there_and_back(pd.Series(SCHOOLS), own.spec)
    assert [None if value != value else value for value in back] == SCHOOLS


def test_numbers_have_the_order_that_is_said() -> None:
    own = column([1.0, 3.0, 2.0, math.nan] * 6, "3<1<2")
    assert own.codes(pd.Series([3, 1, 2])).tolist() == [0, 1, 2]
    assert own.values(np.array([0, 2])).tolist() == [3, 2] and own.spec == "3<1<2"
    assert own.center(np.array([[3], [1], [2]]), "mean").tolist() == [1]


def test_names_and_levels_may_have_signs_and_spaces() -> None:
    """And what a run says of its columns is read again."""
    more = pd.Series([f"{k % 2}.5" for k in range(30)])
    table = pd.DataFrame({"a": range(30), " b": SCHOOLS, "b": more, "a=c": more, "d ": more})
    table["inc"] = ["<=50K", ">50K"] * 15
    said = "a=integer, b=categorical, a=c=categorical,d=categorical,inc=<=50K<>50K"
    problem = Tabular(data=table, columns=f'{said}," b=primary<secondary < tertiary"')
    kinds = {c.name: c.in_words for c in problem.columns}
    assert kinds[" b"] == "ordinal: primary < secondary < tertiary"
    assert kinds["inc"] == "ordinal: <=50K < >50K" and set(kinds) == {*table}
    again = Tabular(data=table, columns=problem.all_kinds)
    assert {c.name: c.in_words for c in again.columns} == kinds
    spaced = table[["a", " b"]]
    assert [c.kind for c in Tabular(data=spaced, columns="*=drop, b=categorical").columns] == [
        "categorical"
    ]


def test_an_order_of_pandas_is_used() -> None:
    values = pd.Series(pd.Categorical(SCHOOLS, ["tertiary", "primary", "secondary"], ordered=True))
    own = column(values)
    assert own.in_words == "ordinal: tertiary < primary < secondary" and own.spec == "ordinal"
    assert own.codes(pd.Series(["tertiary", "secondary"])).tolist() == [0, 2]
    assert kind_of(values.cat.as_unordered()) == "categorical"


# -- precision -------------------------------------------------------------------------------------

NUMBERS = ["mixed", "rounded", "continuous", "rounded 0.1..0.7", "mixed 0.1..0.7", "0.1..0.7"]


@pytest.mark.parametrize("dtype", ["float16", "Float32"])
@pytest.mark.parametrize("said", [*NUMBERS, "ordinal", "categorical", "0.1<0.7<0.3", None])
def test_short_floats_are_the_numbers_that_are_written(said: str | None, dtype: str) -> None:
    """They are atoms, decimals, levels and ends of a column, in whatever precision a table is."""
    many = said in NUMBERS
    values = np.r_[np.repeat([0.1, 0.7], 20), np.arange(11, 70) / 100 if many else [0.3] * 20]
    table = pd.DataFrame({"w": np.append(values, math.nan)})
    short = table.astype(dtype)
    own, other = (Tabular(data=t, columns=f"w={said}" if said else "") for t in (table, short))
    assert other.columns[0].in_words == own.columns[0].in_words and other.all_kinds == own.all_kinds
    for problem in (own, other):
        codes = problem.codes(short, unknown="refuse")
        torch.testing.assert_close(codes, own.codes(table), rtol=0, atol=0, equal_nan=True)


# -- truth -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        pd.Series([True, False, True] * 8),
        pd.Series([True, False, None] * 8, dtype="boolean"),
        pd.Series([True, False, None] * 8, dtype=object),
    ],
)
def test_truth_comes_back_as_truth(values: pd.Series[Any]) -> None:
    assert column(values).kind == kind_of(values) == "boolean"
    back = there_and_back(values)
    assert back.isna().equals(values.isna())
    assert all(isinstance(value, bool | np.bool_) for value in back.dropna())
    assert back.dropna().astype(bool).tolist() == values.dropna().astype(bool).tolist()
    assert column(values).center(np.array([[True, False], [True, True]]), "mean").tolist() == [
        True,
        False,
    ]


def test_words_for_truth_are_categories() -> None:
    assert kind_of(pd.Series(["yes", "no"] * 8)) == "categorical"
    assert kind_of(pd.Series([0, 1] * 8)) == "ordinal"
    assert column([0, 1, None] * 8, "boolean").codes(pd.Series([True, 0])).tolist() == [1, 0]


# -- dates -----------------------------------------------------------------------------------------

DAYS = pd.Series(pd.Timestamp("1968-11-03") + pd.to_timedelta(rng().integers(0, 900, 60), "D"))
TIMES = DAYS + pd.to_timedelta(rng().integers(0, 86_400, 60), "s")
DATES: dict[str, tuple[Any, Any]] = {
    "text": (DAYS.dt.strftime("%Y-%m-%d"), "1969-02-01"),
    "nanoseconds": (DAYS.astype("datetime64[ns]"), pd.Timestamp("1969-02-01")),
    "seconds": (DAYS.astype("datetime64[s]"), pd.Timestamp("1969-02-01")),
    "in a zone": (
        DAYS.astype("datetime64[us]").dt.tz_localize("Europe/Rome"),
        pd.Timestamp("1969-02-01", tz="Europe/Rome"),
    ),
    "objects": (DAYS.dt.date, datetime.date(1969, 2, 1)),
    "with minutes": (TIMES.dt.strftime("%Y-%m-%d %H:%M"), "1969-02-01 12:00"),
    "with seconds": (TIMES.dt.strftime("%Y-%m-%dT%H:%M:%S"), "1969-02-01T12:00:00"),
    "stamps": (TIMES.astype("datetime64[us]"), pd.Timestamp("1969-02-01 12:00")),
}


@pytest.mark.parametrize("name", DATES)
def test_dates_come_back_in_their_form(name: str) -> None:
    values, one = DATES[name]
    timed = str(one)[10:].strip(" T0:") != "" and "+" not in str(one)
    values = values.copy()
    values.iloc[[3, 8]] = None
    own = column(values)
    assert isinstance(own, Dates) and own.in_words.startswith("date: ")
    assert ("each day" in own.in_words) is not timed
    codes = own.codes(pd.Series([one]))
    day = (pd.Timestamp("1969-02-01") - pd.Timestamp(0)).days
    assert codes.tolist() == [day + 0.5 if timed else day]
    assert [*own.values(codes)] == [one]
    back = there_and_back(values)
    assert back.isna().equals(values.isna())
    if not timed:
        assert back.dropna().tolist() == values.dropna().tolist()
    torch.manual_seed(0)
    drawn = pd.Series(own.values(own.unscaled(torch.randn(500).double()).numpy()))
    assert drawn.dtype == values.dtype or values.dtype == object
    assert kind_of(drawn) == "date" and type(drawn[0]) is type(values[0])
    assert own.codes(drawn).min() < -300 < 300 < own.codes(drawn).max()  # also before 1970
    if isinstance(one, str):
        assert drawn.str.len().unique().tolist() == [len(one)]
    whole = filled(values.to_frame("w"), pd.DataFrame({"w": own.values(np.zeros(60))}))["w"]
    assert whole.dtype == values.dtype and not whole.isna().any()
    assert own.center(np.stack([values[:3], values[:3], drawn[:3]]), "median").tolist() == (
        np.asarray(own.values(own.codes(values[:3]))).tolist()
    )


def test_text_that_is_not_all_dates_is_none() -> None:
    assert kind_of(pd.Series(["2020-01-01", "2020-13-01"] * 9)) == "categorical"
    assert kind_of(pd.Series(["2020-01-01", "soon"] * 9)) == "categorical"
    assert kind_of(pd.Series([2019, 2020] * 9)) == "ordinal"
    own = column(DATES["text"][0])
    for value in ("soon", "1969-02-01 12:00"):
        with pytest.raises(DataError, match=rf"holds '{value}', expected a date such as 19.*, wit"):
            own.codes(pd.Series([value]))


# -- ranges ----------------------------------------------------------------------------------------

WITHIN = rng().beta(2.0, 1.0, 300) * 80 + 10


@pytest.mark.parametrize(
    ("values", "said", "kind", "ends"),
    [
        (WITHIN, "0..100", "nonnegative", (0, 100)),
        (WITHIN, "continuous -5..95", "continuous", (-5, 95)),
        (WITHIN, "..91", "nonnegative", (-math.inf, 91)),
        (np.append(WITHIN, [100.0] * 60), "0..100", "mixed", (0, 100)),
        (np.append(WITHIN, [12.0] * 60), "0..100", "mixed", (0, 100)),
        (np.append(WITHIN, [7.0] * 60), "0..100", "mixed", (0, 100)),  # an atom before the end
        (WITHIN.round(), "0..100", "integer", (0, 100)),
        (WITHIN.round(), "..91", "integer", (-math.inf, 91)),
        (rng().integers(1, 5, 100).astype(float), "1..5", "integer", (1, 5)),
        ((WITHIN / 10).round(1), "rounded 0..9.5", "rounded", (0, 9.5)),
    ],
)
def test_a_range_that_is_said_is_kept(values: Any, said: str, kind: str, ends: Any) -> None:
    own = column(values, said)
    assert own.kind == kind and own.spec == f"{kind} {said.split()[-1]}"
    assert column(values, own.spec).in_words == own.in_words
    low, high = ends
    x = torch.linspace(-9, 9, 3001, dtype=torch.float64)
    drawn = np.asarray(own.values(own.unscaled(x).numpy()))
    assert low <= drawn.min() and drawn.max() <= high and (np.diff(drawn) >= 0).all()
    first, last = max(low, -400), min(high, 500)
    if kind in ("integer", "rounded"):
        step = 10.0**-own._decimals  # type: ignore[attr-defined]
        grid = torch.from_numpy(np.round(np.arange(first, last + step / 2, step), 2))
    else:
        grid = torch.linspace(first, last, 200_001, dtype=torch.float64)[1:-1]
        atoms = own.atoms  # type: ignore[attr-defined]
        x, log_det = own.scaled(atoms, torch.rand(len(atoms)).double())
        mass = float((NORMAL.log_prob(x) + log_det).exp().sum())
    x, log_det = own.scaled(grid, torch.rand(len(grid)).double())
    density = (NORMAL.log_prob(x) + log_det).exp()
    if kind in ("integer", "rounded"):
        assert float(density.sum()) == pytest.approx(1, abs=1e-5)
    else:
        mass += float(torch.trapezoid(density, grid))
        assert mass == pytest.approx(1, abs=3e-3)
    torch.testing.assert_close(own.unscaled(x), grid)
    for value in (low - 1, high + 1):
        if math.isfinite(value):
            assert own.unknown(pd.Series([value, values[0]])).tolist() == [True, False]


def test_a_number_at_an_end_where_none_was_is_unknown() -> None:
    own = column(WITHIN)
    with pytest.raises(DataError, match="holds 0, and the table of the run has none at or below 0"):
        own.codes(pd.Series([0.0]))


# -- doubts ----------------------------------------------------------------------------------------

DOUBTS: dict[str, tuple[str, list[Any], str | None]] = {
    "grades": ("grade", [1, 2, 3, 4] * 20, None),
    "by name": ("zip_code", [1, 2, 3, 4] * 20, 'may be names, .*columns="zip_code=categ'),
    "by gaps": ("area", [10, 400, 70, 99] * 20, "may be names, which have no order; say columns="),
    "ids": ("PatientID", [*rng().permutation(100) * 3], "may be names"),
    "increasing": ("n", [*range(0, 200, 4)], "increase from row to row.*columns=.n=drop"),
    "few numbers": ("dose", [0.5, 1.5, 2.25] * 20, None),
    "few rows": ("gdp", [400, 10, 70, 99, 1200, 3] * 3, None),
    "99 in a row": ("age", [*rng().integers(18, 99, 90), *[99] * 4], None),
    "a few nines": ("age", [*rng().integers(18, 80, 90), 999], None),
    "cities": ("city", ["Rome", "Oslo"] * 9, None),
}


@pytest.mark.parametrize("name", DOUBTS)
def test_doubts_are_told(name: str, tmp_path: Path) -> None:
    of, values, expected = DOUBTS[name]
    series = pd.Series(values)
    doubts = doubts_of(of, series, kind_of(series))
    if expected is None:
        assert doubts == []
    else:
        assert len(doubts) == 1
        assert re.search(expected, doubts[0]), doubts


N = 120
LEFT_OUT: dict[str, tuple[Any, str | None]] = {
    "empty": ([math.nan] * N, "it has no value in the training rows"),
    "constant": (["a"] * N, "its only value in the training rows is a"),
    "tested alone": (["b" if i == 5 else "a" for i in range(N)], "its only value in the training"),
    "rows": ([*range(1, N + 1)], 'it counts the rows, 1 to 120; columns="w=integer" keeps it'),
    "rows in another order": ([*rng().permutation(N)], "it counts the rows, 0 to 119"),
    "names": ([f"n{i}" for i in range(N)], "120 of its 120 values are in one row alone.*categor"),
    "most are names": ([f"n{i % 100}" for i in range(N)], "80 of its 120 values are in one"),
    "half are": ([f"n{i}" if i % 2 else "a" for i in range(N)], None),
    "numbers that differ": ([*(2 * np.arange(N))], None),
    "halves": ([*(np.arange(N) + 0.5)], None),
    "few rows": ([*range(FEW)], None),
    "days": ([f"2020-01-{1 + i:02d}" for i in range(30)], None),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_columns_that_say_nothing_are_left_out(name: str) -> None:
    values, expected = LEFT_OUT[name]
    table = pd.DataFrame({"w": values})
    rows = np.arange(len(table)) != 5
    reasons = left_out(table, rows)
    if expected is None:
        assert reasons == {}
    else:
        assert re.search(expected, reasons["w"]), reasons
        assert left_out(table, rows, {"w": "categorical"}) == {}
        assert left_out(table, rows, {"*": "drop"}) == {}


# -- what is said ----------------------------------------------------------------------------------


def test_what_is_said_of_a_column() -> None:
    assert parse_spec("a", "integer")[:4] == ("integer", None, None, None)
    assert parse_spec("a", "low < mid<high")[:4] == ("ordinal", ("low", "mid", "high"), None, None)
    assert parse_spec("a", "integer 0..1e3")[:4] == ("integer", None, (0, 1000), None)
    assert parse_spec("a", "-1..")[:4] == (None, None, (-1, math.inf), None)
    assert parse_spec("a", "..1")[:4] == (None, None, (-math.inf, 1), None)
    assert parse_spec("a", "integer 0.. mar")[:4] == ("integer", None, (0, math.inf), "mar")
    assert parse_spec("a", "absent")[:4] == (None, None, None, "absent")


# -- values that a run has not seen ----------------------------------------------------------------


def people(n: int = 120) -> pd.DataFrame:
    """Every new kind of column, with entries missing, and columns that say nothing."""
    random = rng()
    table = pd.DataFrame(
        {
            "key": [f"k{i}" for i in range(n)],
            "born": pd.Timestamp("1980-01-01") + pd.to_timedelta(random.integers(0, 900, n), "D"),
            "city": random.choice(["Rome", "Oslo", "Bern"], n),
            "school": pd.Categorical(
                random.choice(["low", "mid", "high"], n), ["low", "mid", "high"], ordered=True
            ),
            "member": pd.array(random.random(n) < 0.5, "boolean"),
            "visits": pd.array(random.integers(0, 60, n), "Int32"),
            "score": random.beta(2, 2, n) * 100,
            "same": 7.0,
        },
        pd.Index([f"r{i}" for i in range(n)], name="row"),
    )
    for j, name in enumerate(table.columns[1:]):
        table.loc[table.index[random.random(n) < 0.1 + 0.01 * j], name] = None
    return table


def test_unknown_values_count_as_missing_or_are_refused(tmp_path: Path) -> None:
    people().to_csv(tmp_path / "own.csv", index=False)
    problem = Tabular(data=tmp_path / "own.csv", columns="school=low<mid<high,score=0..100")
    kinds = ["date", "categorical", "ordinal", "boolean", "integer", "nonnegative"]
    assert [column.kind for column in problem.columns] == kinds
    told = problem.columns_in_words
    assert "  key     left out: 120 of its 120 values are in one row alone" in told
    assert "  same    left out: its only value in the training rows is 7.0" in told
    table = pd.read_csv(tmp_path / "own.csv").dropna().reset_index(drop=True)
    assert not problem.codes(table).isnan().any()
    new: dict[str, tuple[Any, str]] = {
        "born": ("later", "'later' in 2 rows, expected of it date: a probability of each day, 19"),
        "city": ("Lima", "'city' holds 'Lima' in 2 rows, expected of it categorical: 3 categories"),
        "school": ("none", "'none' in 2 rows, expected of it ordinal: low < mid < high"),
        "member": ("perhaps", "'perhaps' in 2 rows, expected of it boolean"),
        "visits": (-1, "'visits' holds -1 in 2 rows, expected of it integer"),
        "score": (101, "'score' holds 101 in 2 rows"),
    }
    for j, (name, (value, message)) in enumerate(new.items()):
        rows = table.astype({name: object})
        rows.loc[[0, 4], name] = value
        with pytest.warns(UserWarning, match=message):
            codes = problem.codes(rows)
        assert codes.isnan().nonzero().tolist() == [[0, j], [4, j]]
        with pytest.raises(DataError, match=f"column '{name}' holds '?{value}"):
            problem.codes(rows, "refuse")
    with pytest.raises(DataError, match="'score' holds an infinite number in 1 row, expected fin"):
        problem.codes(table.assign(score=[math.inf, *table["score"][1:]]))


@pytest.mark.slow
def test_new_kinds_through_the_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    be_brief(monkeypatch)
    people().to_parquet(tmp_path / "own.parquet")
    short: dict[str, Any] = SHORT | {"model": "tabular", "data": tmp_path / "own.parquet"}
    said = {"columns": "score=0..100", "test_size": 12}
    train(**short | said, guide="vpsde", min_log_snr=-9.0, holdout=False, run=tmp_path / "run")
    told = capsys.readouterr().out
    assert "  school  ordinal: low < mid < high\n" in told and "key     left out: 120" in told
    problem = load_trained(tmp_path / "run")[1].problem
    assert isinstance(problem, Tabular) and problem.left_out == {}
    assert problem.all_kinds["score"] == "nonnegative 0..100"

    before = people().head(40)
    before["city"] = before["city"].astype(object)
    before.loc["r0", "city"] = "Lima"
    before.to_parquet(tmp_path / "in.parquet")
    options: dict[str, Any] = {"num": 3, "steps": 2, "accelerator": "cpu"}
    options["data"] = str(tmp_path / "in.parquet")
    with pytest.raises(DataError, match="'city' holds 'Lima', which the training rows never"):
        impute(tmp_path / "run", out=tmp_path / "out.parquet", unknown="refuse", **options)
    assert not (tmp_path / "out.parquet").exists()
    with pytest.warns(UserWarning, match="'city' holds 'Lima' in 1 row"):
        impute(tmp_path / "run", out=tmp_path / "out.parquet", **options)
    before, after = (pd.read_parquet(tmp_path / name) for name in ("in.parquet", "out.parquet"))
    assert after.index.equals(before.index) and [*after.columns] == [*before.columns]
    pd.testing.assert_series_equal(after.dtypes, before.dtypes)
    assert after["city"]["r0"] == "Lima"
    pd.testing.assert_frame_equal(after.where(before.notna()), before.where(before.notna()))
    assert not after.drop(columns="same").isna().any(axis=None)
    assert after["same"].equals(before["same"]) and before["same"].isna().any()

    sample(tmp_path / "run", num_samples=9, steps=2, out=tmp_path / "rows.csv", accelerator="cpu")
    rows = pd.read_csv(tmp_path / "rows.csv")
    assert rows["member"].dtype == bool and kind_of(rows["born"]) == "date"
    assert rows["score"].between(0, 100).all() and (rows["visits"] % 1 == 0).all()

    full = after.drop(columns="same").assign(note=None)
    full.assign(city="Lima").to_parquet(tmp_path / "full.parquet")  # unknown, and not empty
    options["data"] = str(tmp_path / "full.parquet")
    with pytest.raises(ValueError, match="in the columns of the run, bo"):
        impute(tmp_path / "run", out=tmp_path / "again.parquet", **options)
    assert not (tmp_path / "again.parquet").exists()
