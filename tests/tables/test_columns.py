"""Columns: numbers, orders, dates, doubts, values that are new, and tables that come back as they
went in."""

from __future__ import annotations

import csv
import datetime
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference.drawing.pieces import read_pieces
from inference.folders.config import read_settings
from inference.folders.loading import load_trained
from inference.impute import fill_cells, filled
from inference.train import train
from models import DataError, Tabular
from pyro_mdm.tables.columns import (
    Categorical,
    Column,
    Dates,
    Ordinal,
    Rounded,
    decode,
    encode,
    fit_columns,
    kind_of,
    to_model_space,
)
from pyro_mdm.tables.columns.doubts import doubts_of
from pyro_mdm.tables.columns.kinds import left_out, parse_spec
from pyro_mdm.tables.columns.scales import FEW
from tests.brief import SHORT, be_brief
from tests.mistakes import refused

NORMAL = torch.distributions.Normal(0.0, 1.0)
Numbers = NDArray[np.float64]


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


def zero_inflated(n: int) -> Numbers:
    rng = generator()
    return np.where(rng.random(n) < 0.67, 0.0, rng.exponential(size=n))


def repeated(times: int, n: int) -> Numbers:
    """n numbers, of which as many are 1.5, and all others differ."""
    return np.append(np.full(times, 1.5), generator().normal(size=n - times))


def column(values: Any, said: str = "") -> Column:
    table = pd.DataFrame({"w": values})
    return fit_columns(table, np.ones(len(table), bool), {"w": said} if said else None)[0]


# -- the law of a column -------------------------------------------------------------------------

WITHIN = generator().beta(2.0, 1.0, 300) * 80 + 10
LAWS: dict[str, tuple[Numbers, str, str]] = {
    "normal": (generator().normal(size=300), "", "continuous"),
    "positive": (generator().exponential(size=300), "", "nonnegative"),
    "far from normal": (generator().lognormal(size=500), "", "nonnegative"),
    "one zero": (np.append(generator().exponential(size=199), 0.0), "", "nonnegative"),
    "with ties": (
        np.append(generator().normal(size=900), np.zeros(100)),
        "continuous",
        "continuous",
    ),
    "zero-inflated": (zero_inflated(1000), "", "mixed"),
    "censored": (generator().normal(size=300).clip(max=1.0), "", "mixed"),
    "censored twice": (generator().normal(size=1000).clip(-0.5, 1.0), "", "mixed"),
    "four of a hundred": (repeated(4, 100), "", "continuous"),
    "five of a hundred": (repeated(5, 100), "", "mixed"),
    "1.9%": (repeated(19, 1000), "", "continuous"),
    "ages": (generator().integers(18, 80, 400).astype(float), "", "integer"),
    "visits": (generator().poisson(30, 400) * (generator().random(400) < 0.5) * 1.0, "", "integer"),
    "differences": (generator().normal(0, 20, 400).round(), "", "integer"),
    "rounded, mostly different": (generator().uniform(18, 80, 120).round(1), "", "rounded"),
    "rounded, of many steps": (generator().uniform(0, 80, 400).round(3), "", "nonnegative"),
    "zero-inflated, rounded": (zero_inflated(200).clip(max=9).round(2), "", "rounded"),
    "rounded, with ties": (generator().normal(70, 2, 600).round(1), "", "rounded"),
    "nothing but ties": (np.tile([0.5, 1.0, 1.5], 50), "", "rounded"),
    "thirds": (generator().integers(0, 60, 500) / 3, "", "nonnegative"),
    "a range": (WITHIN, "0..100", "nonnegative"),
    "a range below 0": (WITHIN, "continuous -5..95", "continuous"),
    "half a range": (WITHIN, "..91", "nonnegative"),
    "an atom at the end": (np.append(WITHIN, [100.0] * 60), "0..100", "mixed"),
    "an atom before the end": (np.append(WITHIN, [7.0] * 60), "0..100", "mixed"),
    "a range of integers": (WITHIN.round(), "0..100", "integer"),
    "half a range of integers": (WITHIN.round(), "..91", "integer"),
    "few of a range": (generator().integers(1, 5, 100).astype(float), "1..5", "integer"),
    "a range of decimals": ((WITHIN / 10).round(1), "rounded 0..9.5", "rounded"),
}
STEPS = (1000, 50, 10, 2, 0.25)
LAWS |= {
    f"steps of {step}": (np.round(generator().integers(30, 300, 500) * float(step), 2), "", kind)
    for step, kind in zip(STEPS, [*["integer"] * 4, "rounded"], strict=True)
}


@pytest.mark.parametrize("name", LAWS)
def test_a_column_of_numbers_is_a_law(name: str) -> None:
    """Its probabilities and density have the mass 1, but for a few values beyond a sharp end, atoms
    and quantiles are those of the values, and what is drawn is in order and in its range."""
    values, said, kind = LAWS[name]
    own, n = column(values, said), len(values)
    assert own.kind == kind and own.in_words.startswith(kind)
    if not said:
        assert kind_of(pd.Series(values)) == kind_of(pd.Series(np.append(values, math.nan))) == kind
    assert column(values, own.spec).in_words == own.in_words

    def log_prob(w: Tensor) -> Tensor:
        """Of a model whose x is N(0, 1), at one draw."""
        x, log_det = own.scaled(w, torch.rand(len(w), dtype=torch.float64))
        return NORMAL.log_prob(x) + log_det

    codes, x = torch.from_numpy(values), torch.linspace(-8, 8, 200_001, dtype=torch.float64)
    back = own.unscaled(own.scaled(codes, torch.rand(n, dtype=torch.float64))[0])
    torch.testing.assert_close(back, codes, rtol=1e-9, atol=1e-9)
    w = own.unscaled(x)
    assert bool((w.diff() >= 0).all())
    low, high = (parse_spec("w", said).ends if said else None) or (-math.inf, math.inf)
    drawn = np.asarray(own.values(w.numpy()), dtype=float)
    assert low <= drawn.min() and drawn.max() <= high
    beyond = pd.Series([end for end in (low - 1, high + 1) if math.isfinite(end)], dtype=float)
    assert own.unknown(beyond).all() and not own.unknown(pd.Series(values)).any()
    for share in (0.1, 0.5, 0.9):
        end = np.quantile(values, share)
        below = float(torch.special.ndtr(x[drawn <= end].max()))
        assert below == pytest.approx((values <= end).mean(), abs=0.04 + 0.8 / n**0.5)
    if isinstance(own, Rounded):
        multiples = np.round(np.arange(-9000, 9000) / own._per_unit, own._decimals)
        assert np.isin(drawn, multiples).all()
        multiples = multiples[~own.unknown(pd.Series(multiples))]
        log_p = log_prob(torch.from_numpy(multiples))
        assert bool(log_p.isfinite().all())
        mass = float(log_p.exp().sum())
        assert "steps" not in name or f"each multiple of {name.split()[-1]}" in own.in_words
    else:
        atoms = getattr(own, "atoms", torch.empty(0)).double()
        p = log_prob(atoms).exp()
        counted = (codes.unsqueeze(-1) == atoms).double().mean(0)
        torch.testing.assert_close(p, counted, atol=1.5 / n, rtol=0)
        grid = w[~torch.isin(w, atoms)].unique()
        mass = float(p.sum() + torch.trapezoid(log_prob(grid).exp(), grid))
    assert 1 - 5 / n - 1e-3 < mass < 1 + 1e-3
    torch.testing.assert_close(log_prob(codes), log_prob(codes))  # wherever in its interval


def test_values_that_a_column_cannot_have_are_told() -> None:
    ages = column(generator().integers(18, 80, 400).astype(float))
    capped = column(generator().normal(size=300).clip(max=1.0))
    positive = column(generator().exponential(size=300))
    negative = np.array([-1.0, 2.0, 3.0])
    refused(
        DataError,
        (lambda: ages.codes(pd.Series([20.0, 2.5])), "holds 2.5, expected whole ones"),
        (lambda: ages.codes(pd.Series([20.0, -1.0])), "has none below 0"),
        (lambda: capped.codes(pd.Series([2.0])), "the table of the run has none above 1"),
        (lambda: positive.codes(pd.Series([0.0])), "the table of the run has none at or below 0"),
        (lambda: column(negative, "nonnegative"), r"holds -1, expected no neg.* columns=.w=cont"),
        (lambda: column(generator().normal(size=30), "rounded"), "more than 6 decimals, expected"),
    )


def test_the_center_of_draws() -> None:
    ages = column(generator().integers(18, 80, 400).astype(float))
    assert ages.center(np.array([[20, 20], [21, 30], [21, 31]]), "mean").tolist() == [21, 27]
    rain = column(zero_inflated(1000))
    wet = np.array([[0.0, 0.0], [0.0, 2.0], [9.0, 4.0]])
    assert rain.center(wet, "mean").tolist() == [0.0, 2.0]
    plain = column(generator().normal(size=30))
    three = np.array([[1.0, 5.0], [2.0, 5.0], [9.0, 8.0]])
    assert plain.center(three, "mean").tolist() == [4, 6]
    assert plain.center(three, "median").tolist() == [2, 5]
    grade = Ordinal("grade", np.arange(3.0))
    assert grade.center(np.array([[0], [2], [2]]), "mean").tolist() == [2]
    city = Categorical("city", pd.Series(["a", "b", "b"]))
    assert city.center(np.array([["a"], ["b"], ["b"]], dtype=object), "mean").tolist() == ["b"]


# -- what goes in comes out ------------------------------------------------------------------------

TEXT = """\
id,"name, first",age,dose,rain,smokes,note
007,Ann,34,1.50,0.0,TRUE,
008,"Bo ""B"" C",,2.25,,FALSE,x
009,,51,,1e-3,,NA

010,Cy,60.0,3.00,2.0,TRUE,"a,b"
"""


def test_cells_of_a_csv_file_are_the_text_that_they_were(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(TEXT)
    table = pd.read_csv(tmp_path / "in.csv", dtype={"id": str}).assign(
        note=[None, "x", "NA", "a,b"]
    )
    ((again, cells),) = read_pieces(str(tmp_path / "in.csv"), 9)
    pd.testing.assert_frame_equal(again, table)
    assert cells is not None
    new = {
        "age": [1, 40, 1, 1],
        "dose": [9.0, 9.0, 1.5, 9.0],
        "rain": [9.0, 0.0, 9.0, 9.0],
        "smokes": [True, True, False, True],
    }
    whole = fill_cells(cells, table, pd.DataFrame(new))
    expected = list(csv.reader(TEXT.splitlines()))
    expected.remove([])
    expected[2][2], expected[3][3], expected[2][4], expected[3][5] = "40", "1.50", "0.0", "FALSE"
    assert whole == expected and cells[2][2] == ""
    written = [[*row] for row in cells]
    for row in written[1:]:
        row[2] = row[2] and str(float(row[2]))  # 34.0, as pandas writes integers beside nothing
    assert fill_cells(written, table, pd.DataFrame(new))[2][2] == "40.0"


def typed() -> pd.DataFrame:
    """Every type that pandas has for such columns, with an index of its own."""
    return pd.DataFrame(
        {
            "whole": pd.array([3, None, 5], "Int32"),
            "float": np.array([3.0, math.nan, 5.0], np.float32),
            "flag": pd.array([True, None, False], "boolean"),
            "city": pd.Categorical(["b", None, "a"], ["b", "a", "c"], ordered=True),
            "word": ["x", None, "y"],
            "full": np.array([1, 2, 3], np.int16),
        },
        pd.Index(["r", "s", "t"], name="row"),
    )


NEW = {"whole": [7] * 3, "float": [4] * 3, "flag": [True] * 3, "city": ["a"] * 3, "word": ["y"] * 3}


def test_types_index_and_order_of_a_table_stay() -> None:
    before = typed()
    whole = filled(before, pd.DataFrame(NEW | {"full": [9] * 3}))
    pd.testing.assert_series_equal(whole.dtypes, before.dtypes)
    assert whole.index.equals(before.index) and whole.index.name == "row"
    assert not whole.isna().any(axis=None)
    assert whole.loc["s"].tolist() == [7, 4.0, True, "a", "y", 2]
    pd.testing.assert_frame_equal(whole.drop("s"), before.drop("s"))
    pd.testing.assert_frame_equal(before, typed())


# -- runs say what their columns are ---------------------------------------------------------------


@pytest.mark.slow
def test_a_run_keeps_the_kinds_that_it_was_trained_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    be_brief(monkeypatch)
    ages = generator().integers(18, 80, 200)
    table = pd.DataFrame({"age, years": ages, "rain": zero_inflated(200), "a=b": ages % 3})
    table.to_csv(tmp_path / "own.csv", index=False)
    short: dict[str, Any] = SHORT | {"model": "tabular", "data": tmp_path / "own.csv"}
    train(**short, guide="vpsde", min_log_snr=-9.0, holdout=False, run=tmp_path / "run")
    told = capsys.readouterr().out
    assert "  age, years  integer: a probability of each integer, none below 0, none" in told
    assert "  rain        mixed: atoms 0 (" in told and 'columns="NAME=KIND,…"' in told
    said = read_settings(tmp_path / "run")["columns"]
    assert said == '*=drop,"age, years=integer",rain=mixed,a=b=ordinal 0..2'
    monkeypatch.setattr("pyro_mdm.tables.columns.kinds.kind_of", None)  # nothing is inferred anew
    problem = load_trained(tmp_path / "run")[1].problem
    assert [c.kind for c in problem.columns] == ["integer", "mixed", "ordinal"]


@pytest.mark.parametrize("factor", [1.0, 1000.0])
def test_what_lies_beyond_the_values_of_a_rounded_column_is_rare_and_no_more(factor: float) -> None:
    """Beyond the last value the line is not as steep as over the rounding of that one."""
    values = factor * generator().lognormal(3, 0.5, 400).round()
    own = column(values)
    assert own.kind == "integer"
    top = values.max()
    half = torch.full((2,), 0.5).double()
    x, _ = own.scaled(torch.tensor([top, 1.3 * top]).double(), half)
    assert float(x[0]) + 0.1 < float(x[1]) < float(x[0]) + 3


# -- scales ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [200, 2000])
def test_a_scale_bends_only_where_values_refute_a_straight_one(number: int) -> None:
    """That of a normal column is straight, so that linear relations stay linear."""
    at = torch.tensor([-2.0, 0.0, 1.0, 2.0]).double()
    normal = column(3 + 2 * generator().normal(size=number), "continuous")
    x = normal.scaled(3 + 2 * at)[0]
    torch.testing.assert_close(x.diff(), at.diff() * (x[-1] - x[0]) / 4)
    torch.testing.assert_close(x, at, atol=0.3, rtol=0)
    two = generator().choice([-3.0, 3.0], number) + 0.5 * generator().normal(size=number)
    bent = column(two, "continuous").scaled(torch.from_numpy(np.sort(two)))[0]
    share = torch.special.ndtr(bent) - (torch.arange(number) + 0.5) / number
    assert float(share.abs().max()) < 1.2 / number**0.5
    straight = (np.sort(two) - two.mean()) / two.std()
    assert float((bent - torch.from_numpy(straight)).abs().max()) > 0.5


def test_levels_that_are_numbers_lie_as_these_do() -> None:
    """And evenly where they would be lost beside a far one."""
    values = np.array([1.0, 2.0, 4.0] * 9)
    x = [-1, -1 / 3, 1]
    codes = torch.tensor([0.0, 1.0, 2.0, math.nan]).double()
    own = Ordinal("w", values)
    assert own.places == pytest.approx(x)
    torch.testing.assert_close(
        own.scaled(codes)[0], torch.tensor([*x, math.nan]).double(), equal_nan=True
    )
    noisy = own.scaled(codes)[0] + torch.tensor([-5.0, 0.3, -0.2, 0.0])
    torch.testing.assert_close(own.unscaled(noisy), codes, equal_nan=True)
    assert Ordinal("w", np.arange(3.0)).places == 3
    assert Ordinal("w", np.array([0.0, 1.0, 2.0, 999.0])).places == 4


def test_whole_numbers_between_are_levels_too() -> None:
    """Of a column of few, unless it is said to have those alone."""
    values = pd.Series([0, 1, 2, 3, 5, 6, 3.0] * 5)
    table, train = pd.DataFrame({"n": values}), np.ones(35, dtype=bool)
    (column,) = fit_columns(table, train)
    assert column.kind == "ordinal" and column.levels == 7
    assert column.codes(pd.Series([4.0])).tolist() == [4.0]
    assert column.spec == "ordinal 0..6" and "7 numbers" in column.in_words
    assert fit_columns(table, train, {"n": column.spec})[0].in_words == column.in_words
    assert fit_columns(table, train, {"n": "ordinal"})[0].levels == 6
    assert fit_columns(table, train, {"n": "ordinal 0..9"})[0].levels == 10
    far = pd.DataFrame({"n": [0, 10, 20, 30, 40, 50] * 6})
    assert fit_columns(far, np.ones(36, dtype=bool))[0].levels == 6
    with pytest.raises(DataError, match="has 1000 different values, expected at most 256"):
        fit_columns(table, train, {"n": "ordinal 1..1000"})


def there_and_back(values: pd.Series[Any], said: str = "") -> pd.Series[Any]:
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
    draws = np.array([[True, False], [True, True]])
    assert column(values).center(draws, "mean").tolist() == [True, False]
    assert column([0, 1, None] * 8, "boolean").codes(pd.Series([True, 0])).tolist() == [1, 0]


# -- dates -----------------------------------------------------------------------------------------

DAYS = pd.Series(
    pd.Timestamp("1968-11-03") + pd.to_timedelta(generator().integers(0, 900, 60), "D")
)
TIMES = DAYS + pd.to_timedelta(generator().integers(0, 86_400, 60), "s")
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


# -- doubts ----------------------------------------------------------------------------------------

DOUBTS: dict[str, tuple[str, list[Any], str | None]] = {
    "grades": ("grade", [1, 2, 3, 4] * 20, None),
    "by name": ("zip_code", [1, 2, 3, 4] * 20, 'may be names, .*columns="zip_code=categ'),
    "by gaps": ("area", [10, 400, 70, 99] * 20, "may be names, which have no order; say columns="),
    "ids": ("PatientID", [*generator().permutation(100) * 3], "may be names"),
    "increasing": ("n", [*range(0, 200, 4)], "increase from row to row.*columns=.n=drop"),
    "few rows": ("gdp", [400, 10, 70, 99, 1200, 3] * 3, None),
    "99 in a row": ("age", [*generator().integers(18, 99, 90), *[99] * 4], None),
    "a few nines": ("age", [*generator().integers(18, 80, 90), 999], None),
}


@pytest.mark.parametrize("name", DOUBTS)
def test_doubts_are_told(name: str) -> None:
    of, values, expected = DOUBTS[name]
    series = pd.Series(values)
    doubts = doubts_of(of, series, kind_of(series))
    assert len(doubts) == (expected is not None)
    assert expected is None or re.search(expected, doubts[0]), doubts


N = 120
LEFT_OUT: dict[str, tuple[Any, str | None]] = {
    "empty": ([math.nan] * N, "it has no value in the training rows"),
    "tested alone": (["b" if i == 5 else "a" for i in range(N)], "its only value in the training"),
    "rows": (
        [*generator().permutation(N)],
        'it counts the rows, 0 to 119; columns="w=integer" keeps it',
    ),
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
    reasons = left_out(table, rows, {})
    assert len(reasons) == (expected is not None)
    assert expected is None or re.search(expected, reasons["w"]), reasons
    assert left_out(table, rows, {"w": "categorical"}) == left_out(table, rows, {"*": "drop"}) == {}


# -- what is said ----------------------------------------------------------------------------------


# -- values that a run has not seen ----------------------------------------------------------------


def people(n: int = 120) -> pd.DataFrame:
    """Every new kind of column, with entries missing, and columns that say nothing."""
    random = generator()
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
