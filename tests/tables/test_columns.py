"""Columns of numbers: atoms, integers, ends, and tables that come back as they went in."""

from __future__ import annotations

import csv
import math
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
from pyro_mdm import MDM_ELBO, VPSDE, DiffusionGuide, bound
from pyro_mdm.conditioning import RandomMaps
from pyro_mdm.conditioning.imputation import impute
from pyro_mdm.tables.columns import (
    Categorical,
    Column,
    Ordinal,
    fit_columns,
    kind_of,
    to_model_space,
)
from pyro_mdm.tables.columns.evidence import atoms_of
from tests.brief import SHORT, be_brief

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


def column(values: Numbers, kind: str | None = None) -> Column:
    table = pd.DataFrame({"w": values})
    (own,) = fit_columns(table, np.ones(len(values), bool), {"w": kind} if kind else None)
    return own


def log_prob(own: Column, w: Numbers | Tensor) -> Tensor:
    """The bound of log p(w) of a model whose x is N(0, 1), at one draw."""
    w = torch.as_tensor(w)
    x, log_det = own.scaled(w, torch.rand(len(w), dtype=torch.float64))
    return NORMAL.log_prob(x) + log_det


def draws(own: Column, n: int = 100_000) -> Numbers:
    torch.manual_seed(1)
    return np.asarray(own.values(own.unscaled(torch.randn(n, dtype=torch.float64)).numpy()))


# -- what a column is taken for --------------------------------------------------------------------

KINDS: dict[str, tuple[Numbers, str]] = {
    "normal": (generator().normal(size=300), "continuous"),
    "positive": (generator().exponential(size=300), "nonnegative"),
    "zero-inflated": (zero_inflated(1000), "mixed"),
    "censored": (generator().normal(size=300).clip(max=1.0), "mixed"),
    "four of a hundred": (repeated(4, 100), "continuous"),
    "five of a hundred": (repeated(5, 100), "mixed"),
    "1.9%": (repeated(19, 1000), "continuous"),
    "2%": (repeated(20, 1000), "mixed"),
    "ages": (generator().integers(18, 80, 400).astype(float), "integer"),
    "few whole numbers": (generator().integers(0, 20, 400).astype(float), "ordinal"),
    "rounded, mostly different": (generator().uniform(18, 80, 120).round(1), "rounded"),
    "rounded, of many steps": (generator().uniform(0, 80, 400).round(3), "nonnegative"),
    "zero-inflated, rounded": (zero_inflated(200).clip(max=9).round(2), "rounded"),
    "rounded, with ties": (generator().normal(70, 2, 600).round(1), "rounded"),
    "rounded rain": (zero_inflated(2000).round(1), "rounded"),
    "nothing but ties": (np.tile([0.5, 1.0, 1.5], 50), "rounded"),
    "thirds": (generator().integers(0, 60, 500) / 3, "nonnegative"),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_kind_of_numbers(name: str) -> None:
    values, kind = KINDS[name]
    assert kind_of(pd.Series(values)) == kind
    assert kind_of(pd.Series(np.append(values, math.nan))) == kind
    assert column(values).in_words.startswith(kind)


# -- atoms beside a density ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "atoms"),
    [
        (zero_inflated(1000), {0.0: 0.67}),
        (generator().normal(size=1000).clip(-0.5, 1.0), {-0.5: 0.309, 1.0: 0.159}),
        (repeated(200, 1000), {1.5: 0.2}),
    ],
)
def test_atoms_have_probabilities_and_the_rest_a_density(
    values: Numbers, atoms: dict[float, float]
) -> None:
    own = column(values)
    probabilities, drawn = 0.0, draws(own)
    for atom, share in atoms.items():
        known = float((values == atom).mean())
        assert known == pytest.approx(share, abs=0.05)
        each = log_prob(own, torch.full((100,), atom, dtype=torch.float64)).exp()
        assert each.tolist() == pytest.approx([float(each[0])] * 100)  # wherever in its interval
        assert float(each[0]) == pytest.approx(known, abs=2e-3)
        error = math.sqrt(known * (1 - known) / len(drawn))
        assert (drawn == atom).mean() == pytest.approx(float(each[0]), abs=5.5 * error)
        probabilities += float(each[0])
    w = torch.linspace(min(values.min(), 0) - 8, values.max() + 40, 2_000_002, dtype=torch.float64)
    low, high = values.min(), values.max()
    inside = w > (low if low in atoms else -math.inf)
    inside &= w < (high if high in atoms else math.inf)
    density = log_prob(own, w[inside]).exp()
    assert float(torch.trapezoid(density, w[inside])) + probabilities == pytest.approx(1, abs=1e-3)
    if low in atoms:
        assert drawn.min() == low
    if high in atoms:
        assert drawn.max() == high


def test_a_nonnegative_density_has_all_its_mass_above_zero() -> None:
    own = column(generator().lognormal(size=500))
    w = torch.logspace(-9, 4, 1_000_001, dtype=torch.float64)
    x, log_slope = own.scaled(w)
    mass = torch.trapezoid((NORMAL.log_prob(x) + log_slope).exp(), w)
    assert float(mass) == pytest.approx(1, abs=1e-4)
    assert bool((x.diff() > 0).all()) and float((own.unscaled(x) / w - 1).abs().max()) < 1e-9
    assert draws(own).min() > 0


def test_values_of_atoms_come_back() -> None:
    values = torch.from_numpy(zero_inflated(2000))
    x, _ = to_model_space([column(values.numpy())], values.unsqueeze(1))
    back = column(values.numpy()).unscaled(x[:, 0])
    assert bool((back[values == 0] == 0).all())
    torch.testing.assert_close(back, values, rtol=1e-4, atol=1e-5)


def test_one_zero_of_a_nonnegative_column_is_at_its_end() -> None:
    own = column(np.append(generator().exponential(size=199), 0.0))
    assert math.exp(float(log_prob(own, torch.zeros(1).double()))) == pytest.approx(1 / 200, rel=1)
    assert draws(own).min() == 0


# -- integers and rounded numbers ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "step"),
    [
        (generator().integers(18, 80, 400).astype(float), 1.0),
        (generator().poisson(30, 400) * (generator().random(400) < 0.5).astype(float), 1.0),
        (generator().normal(0, 20, 400).round(), 1.0),
        (generator().normal(70, 2, 600).round(1), 0.1),
    ],
)
def test_rounded_numbers_have_probabilities(values: Numbers, step: float) -> None:
    own, drawn = column(values), draws(column(values))
    grid = torch.arange(-300, 1500, dtype=torch.float64) * step
    grid = grid[grid >= 0] if values.min() >= 0 else grid
    grid = torch.from_numpy(np.round(grid.numpy(), 1))
    probability = log_prob(own, grid).exp()
    assert float(probability.sum()) == pytest.approx(1, abs=1e-3)
    again = log_prob(own, grid).exp()
    torch.testing.assert_close(again, probability, rtol=1e-6, atol=1e-9)
    most = grid[probability.argmax()].item()
    assert (drawn == most).mean() == pytest.approx(float(probability.max()), abs=0.006)
    assert np.isin(drawn, grid.numpy()).all()
    assert (drawn.dtype == np.int64) is (step == 1.0)
    edges = np.quantile(values, [0.1, 0.5, 0.9])
    for edge in edges:
        assert (drawn <= edge).mean() == pytest.approx((values <= edge).mean(), abs=0.03)
    x, _ = own.scaled(torch.from_numpy(values), torch.rand(len(values), dtype=torch.float64))
    assert (own.values(own.unscaled(x).numpy()) == values).all()


def test_an_integer_far_out_has_a_bound_that_is_finite() -> None:
    own = column(generator().integers(18, 80, 400).astype(float))
    far = torch.tensor([0.0, 150.0, 1e6], dtype=torch.float64)
    x, log_det = own.scaled(far, torch.rand(3, dtype=torch.float64))
    assert bool(x.isfinite().all() & log_det.isfinite().all())
    assert own.unscaled(x).tolist() == [18, 79, 79]  # none is drawn beyond


def test_values_that_a_column_cannot_have_are_told() -> None:
    ages = column(generator().integers(18, 80, 400).astype(float))
    for value, message in ((2.5, "holds 2.5, expected whole ones"), (-1.0, "has none below 0")):
        with pytest.raises(DataError, match=message):
            ages.codes(pd.Series([20.0, value]))
    capped = column(generator().normal(size=300).clip(max=1.0))
    with pytest.raises(DataError, match="holds 2, and the table of the run has none above 1"):
        capped.codes(pd.Series([2.0]))
    with pytest.raises(DataError, match=r"holds -1, expected no negative .* columns=.w=cont"):
        column(np.array([-1.0, 2.0, 3.0]), "nonnegative")
    with pytest.raises(DataError, match="more than 6 decimals, expected rounded ones"):
        column(generator().normal(size=30), "rounded")


def test_the_center_of_draws() -> None:
    ages = column(generator().integers(18, 80, 400).astype(float))
    assert ages.center(np.array([[20, 20], [21, 30], [21, 31]]), "mean").tolist() == [21, 27]
    rain = column(zero_inflated(1000))
    wet = np.array([[0.0, 0.0], [0.0, 2.0], [9.0, 4.0]])
    assert rain.center(wet, "mean").tolist() == [0.0, 2.0]
    plain = column(generator().normal(size=30))
    assert plain.center(np.array([[1.0, 5.0], [2.0, 5.0], [9.0, 8.0]]), "mean").tolist() == [4, 6]
    assert plain.center(np.array([[1.0, 5.0], [2.0, 5.0], [9.0, 8.0]]), "median").tolist() == [2, 5]
    grade = Ordinal("grade", np.arange(3.0))
    assert grade.center(np.array([[0], [2], [2]]), "mean").tolist() == [2]
    city = Categorical("city", pd.Series(["a", "b", "b"]))
    assert city.center(np.array([["a"], ["b"], ["b"]], dtype=object), "mean").tolist() == ["b"]


# -- a law that is known ---------------------------------------------------------------------------


def rainfall(n: int, seed: int) -> tuple[pd.DataFrame, Numbers]:
    """Rows (a, rain), a ~ N(0, 1), rain ~ Exp(1) with probability 1/(1 + e^{-a}), else 0; and the
    logarithm of their law: a density beside the zeros."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=n)
    wet = 1 / (1 + np.exp(-a))
    rain = np.where(rng.random(n) < wet, rng.exponential(size=n), 0.0)
    of_a = -0.5 * a**2 - 0.5 * math.log(2 * math.pi)
    return pd.DataFrame({"a": a, "rain": rain}), of_a + np.where(
        rain > 0, np.log(wet) - rain, np.log1p(-wet)
    )


@pytest.mark.slow
def test_a_zero_inflated_column_whose_law_is_known(tmp_path: Path) -> None:
    rainfall(3000, 0)[0].to_csv(tmp_path / "rain.csv", index=False)
    torch.manual_seed(0)
    problem = Tabular(data=tmp_path / "rain.csv")
    assert [c.kind for c in problem.columns] == ["continuous", "mixed"]
    model = problem.build(VPSDE(max_log_snr=9.0, min_log_snr=-9.0), maps=True)
    guide, steps = DiffusionGuide(model.diffusion), 100
    model.score_function.training_maps = RandomMaps()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loss = MDM_ELBO()(model.train(), guide)
    for _ in range(steps):
        optimizer.zero_grad()
        rows = problem.train[torch.randint(len(problem.train), (256,))]
        (loss(problem.to_model_space(rows)) / 256).backward()
        optimizer.step()
        schedule.step()
    model.eval()

    new, exact = rainfall(2000, 1)
    x, log_det = problem.transform(torch.tensor(new.to_numpy()))
    ours = (bound(model, guide, x, draws=8).per_datum.double() + log_det).numpy()
    gap = ours - exact
    error = gap.std() / math.sqrt(len(gap))
    assert -0.1 < gap.mean() < 5.5 * error

    drawn = problem.to_table(model(batch_size=2000).detach())["rain"].to_numpy()
    share = (drawn == 0).mean()
    assert drawn.min() == 0 and share == pytest.approx(0.5, abs=5.5 * 0.5 / math.sqrt(2000))

    given = pd.DataFrame({"a": [-1.5, 1.5, math.nan], "rain": [math.nan, math.nan, 0.0]})
    rows = torch.cat([problem.to_model_space(problem.codes(given)) for _ in range(300)])
    completed = impute(model, rows, num=1)[0].reshape(300, 3, 2)
    dry = [float((problem.to_table(completed[:, i])["rain"] == 0).mean()) for i in (0, 1)]
    middle = float(problem.to_table(completed[:, 2])["a"].mean())
    grid = np.linspace(-8, 8, 4001)
    law = np.exp(-0.5 * grid**2) / (1 + np.exp(grid))
    # it begins with the Gaussian law of the intervals, and 100 steps change little of that
    assert dry == pytest.approx([0.818, 0.182], abs=0.2)
    assert middle == pytest.approx(float((law * grid).sum() / law.sum()), abs=0.3) and middle < -0.1


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


def test_numbers_that_are_alike_by_chance_are_no_atoms() -> None:
    values = generator().normal(40, 5, 300).round(1)
    assert np.unique(values, return_counts=True)[1].max() >= 5  # as often as an atom must be
    assert atoms_of(values).tolist() == []
    assert atoms_of(np.append(values, [40.0] * 30)).tolist() == [40.0]


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
