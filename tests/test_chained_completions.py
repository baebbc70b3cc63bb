"""Completions by chained equations: their law, and that every kind of column can have them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest
import torch

from inference.columns.angle import Angle
from models import DataError, Tabular
from pyro_mdm import DiffusionModel
from pyro_mdm.conditioning.filling import Filling
from pyro_mdm.tables.columns import (
    Column,
    chained_completions,
    decode,
    encode,
    fit_columns,
    register_kind,
    to_model_space,
)
from pyro_mdm.tables.columns import kinds as registry
from pyro_mdm.tables.columns.numbers import Rounded
from pyro_mdm.tables.columns.skipped import ABSENT, HIDDEN

Law = Callable[[np.random.Generator, int], tuple[pd.DataFrame, np.ndarray]]


def completed_once(
    columns: list[Column], codes: torch.Tensor, seed: int = 0
) -> torch.Tensor | None:
    completions = chained_completions(columns, codes, seed=seed)
    return None if completions is None else completions[0]


def logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def line(rng: np.random.Generator, n: int) -> tuple[pd.DataFrame, np.ndarray]:
    """A Gaussian pair, whose y no row has where x > 0."""
    x = rng.standard_normal(n)
    y = 5 + 2 * (0.7 * x + math.sqrt(0.51) * rng.standard_normal(n))
    return pd.DataFrame({"x": x, "y": y}), x > 0


def two_groups(rng: np.random.Generator, n: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Two groups, one of which has y in a tenth of its rows."""
    group = rng.random(n) < 0.5
    x = np.where(group, 2.0, -2.0) + 0.5 * rng.standard_normal(n)
    y = np.where(group, 1.5, -1.5) + 0.4 * rng.standard_normal(n)
    z = np.where(group, -1.0, 1.0) + 0.4 * rng.standard_normal(n)
    return pd.DataFrame({"x": x, "y": y, "z": z}), rng.random(n) < np.where(group, 0.9, 0.05)


def skewed(rng: np.random.Generator, n: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Prices whose logarithms are on a line, and of which the high ones are often missing."""
    x = rng.standard_normal(n)
    y = np.exp(0.8 * x + 0.6 * rng.standard_normal(n))
    return pd.DataFrame({"x": x, "y": y}), rng.random(n) < logistic(2 * x)


def levels(rng: np.random.Generator, n: int) -> tuple[pd.DataFrame, np.ndarray]:
    """A level of three, by the place of a number, that is missing where the number is high."""
    x = rng.uniform(-2, 2, n)
    y = np.where(np.abs(x) > 1, "far", np.where(rng.random(n) < logistic(3 * x), "right", "left"))
    return pd.DataFrame({"x": x, "y": y}), rng.random(n) < logistic(2 * x)


@pytest.mark.parametrize(
    ("law", "share"), [(line, 0.15), (two_groups, 0.06), (skewed, 0.15), (levels, 0.4)]
)
def test_completed_rows_have_the_law_of_whole_rows(law: Law, share: float) -> None:
    """Moments of completed rows are off by a share of what those of rows without a gap are off by:
    0.09, 0.02, 0.02 and 0.21 at these seeds."""
    far, far_of_rest = [], []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        whole, gone = law(rng, 2000)
        frame = whole.assign(y=whole["y"].mask(gone))
        columns = fit_columns(frame, np.ones(len(frame), dtype=np.bool_))
        completed = completed_once(columns, encode(columns, frame), seed=seed)
        assert completed is not None
        truth = encode(columns, whole)
        is_level = columns[1].levels is not None

        def moments(codes: torch.Tensor, is_level: bool = is_level) -> torch.Tensor:
            """Means of levels, or of a number, its square and its product with the first."""
            x, y = codes[:, 0], codes[:, 1]
            if is_level:
                return torch.stack([(y == k).double().mean() for k in range(3)])
            y = y.log() if law is skewed else y
            return torch.stack([y.mean(), y.var().sqrt(), (x * y).mean() - x.mean() * y.mean()])

        exact = moments(truth)
        far.append((moments(completed) - exact).abs().max())
        far_of_rest.append((moments(truth[torch.from_numpy(~gone)]) - exact).abs().max())
        there = torch.from_numpy(~gone)
        assert torch.equal(completed[there], truth[there])
    assert float(sum(far)) < share * float(sum(far_of_rest))


def test_scales_of_columns_are_those_of_whole_rows() -> None:
    whole, gone = two_groups(np.random.default_rng(0), 2000)
    everything = np.ones(len(whole), dtype=np.bool_)

    def scaled(frame: pd.DataFrame) -> torch.Tensor:
        columns = fit_columns(frame, everything)
        x = to_model_space(columns, encode(columns, whole), torch.Generator().manual_seed(0)).x
        return torch.stack([x[:, 1].mean(), x[:, 1].std()])

    off = scaled(whole.assign(y=whole["y"].mask(gone))) - scaled(whole)
    assert float(off.abs().max()) < 0.1
    rng = np.random.default_rng(1)
    without = whole.assign(y=whole["y"].mask(rng.permutation(gone)))
    columns = fit_columns(without, everything)
    assert completed_once(columns, encode(columns, without)) is None


def test_a_line_goes_on_beyond_what_is_there_by_half_of_its_range_at_most() -> None:
    whole, gone = line(np.random.default_rng(0), 1000)
    whole["x"] = whole["x"].where(whole["x"] < 2.5, 100.0)
    frame = whole.assign(y=whole["y"].mask(gone))
    columns = fit_columns(frame, np.ones(1000, dtype=np.bool_))
    completed = completed_once(columns, encode(columns, frame))
    assert completed is not None and (whole["x"] == 100).any()
    there, most = whole["y"][~gone], float(completed[:, 1].max())
    assert float(there.max()) + 1 < most <= float(there.max()) + float(np.ptp(there)) / 2
    far = torch.tensor((whole["x"] == 100).tolist())
    assert set(completed[far, 1].tolist()) <= set(there)  # of donors


def test_a_table_without_gaps_has_no_completions() -> None:
    whole, _ = line(np.random.default_rng(0), 300)
    columns = fit_columns(whole, np.ones(300, dtype=np.bool_))
    assert completed_once(columns, encode(columns, whole)) is None


def every_kind(n: int = 1200) -> tuple[pd.DataFrame, dict[str, str]]:
    """A column of each kind, with gaps that depend on the first one, and what is said of them."""
    rng = np.random.default_rng(0)
    first = rng.standard_normal(n)
    job = rng.choice(["full", "part", "home"], n)
    works = job != "home"
    table = pd.DataFrame(
        {
            "first": first,
            "continuous": 3 * first + rng.standard_normal(n),
            "few": np.exp(20 * first),
            "rare": np.exp(1.5 * rng.standard_normal(n) - 2).round(2).clip(0.01),
            "nonnegative": rng.exponential(size=n),
            "mixed": np.where(rng.random(n) < 0.3, 0.0, rng.exponential(size=n)),
            "bounded": rng.uniform(size=n),
            "integer": rng.poisson(40, n) * 7,
            "rounded": (5 * first + rng.standard_normal(n)).round(1),
            "ordinal": rng.integers(0, 4, n),
            "boolean": rng.random(n) < 0.5,
            "categorical": rng.choice(["a", "b", "c"], n),
            "date": pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 900, n), "D"),
            "wind": np.degrees(rng.vonmises(1, 2, n)) % 360,
            "job": job,
            "hours": np.where(works, rng.integers(20, 50, n), math.nan),
            "pay": np.where(works, rng.lognormal(7, 0.3, n), math.nan),
            "shift": pd.Series(rng.choice(["day", "night", "both"], n)).where(works),
        }
    )
    gone = rng.random((n, len(table.columns))) < logistic(2 * first)[:, None] / 2
    gone[:, [*table].index("first")] = gone[:, [*table].index("job")] = False
    kinds = {"ordinal": "ordinal", "bounded": "0..1", "wind": "angle"}
    return table.mask(gone), kinds


@pytest.mark.slow
def test_every_kind_of_column_can_have_its_completions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "KINDS", dict(registry.KINDS))
    monkeypatch.setattr("pyro_mdm.tables.columns.fitting.KINDS", registry.KINDS)
    register_kind(Angle)
    frame, kinds = every_kind()
    train = np.arange(len(frame)) % 5 > 0
    columns = fit_columns(frame, train, kinds)
    codes = encode(columns, frame)
    completed = completed_once(columns, codes, seed=1)
    assert completed is not None and not completed.isnan().any()
    there = ~(codes.isnan() | (codes == HIDDEN))
    assert torch.equal(completed[there], codes[there])
    names = {column.name: column for column in columns}
    assert {c.kind for c in columns} >= {"mixed", "rounded", "integer", "angle", "boolean"}
    x = to_model_space(columns, completed, torch.Generator().manual_seed(0)).x
    assert x.isfinite().logical_or(_numbers_that_do_not_exist(columns, completed)).all()
    rows = decode(columns, x.double())
    for name, column in names.items():
        assert not column.unknown(rows[name]).any(), name
    hidden = codes[:, [*names].index("hours")] == HIDDEN
    assert hidden.any() and (completed[:, [*names].index("hours")][hidden] != ABSENT).all()
    again = chained_completions(columns, codes, num=2, seed=1)
    other = completed_once(columns, codes, seed=2)
    assert again is not None and torch.equal(completed, again[0])
    assert torch.equal(again[1][there], codes[there]) and not torch.equal(*again)
    assert other is not None and not torch.equal(completed, other)


def _numbers_that_do_not_exist(columns: list[Column], codes: torch.Tensor) -> torch.Tensor:
    pieces = [
        (codes[:, [j]] == ABSENT).expand(-1, column.width) for j, column in enumerate(columns)
    ]
    return torch.cat(pieces, 1)


@pytest.mark.slow
def test_a_training_on_gaps_begins_with_them() -> None:
    whole, gone = two_groups(np.random.default_rng(0), 300)
    problem = Tabular(data=whole.assign(y=whole["y"].mask(gone)))
    assert problem.completed is not None
    tables = problem.fit_x().unflatten(0, (-1, len(problem.train)))
    x = tables[0]
    assert not tables.isnan().any() and float((tables[1:] != x).any(2).float().mean()) > 0.3
    assert problem.roughly_fitted().fit_x().isnan().any()  # of weights that a file replaces
    filling = Filling(problem, steps=100, seed=0, batch_size=8)
    cpu = SimpleNamespace(diffusion=SimpleNamespace(start_time=torch.zeros(1)))
    filling.begin(0, cast(DiffusionModel, cpu))  # it draws by no model
    assert filling.values is not None and filling.values.shape == x.shape
    place = filling.rows(0)
    batch = filling.fill(torch.full((8, x.shape[1]), math.nan), 0, slice(None))
    there = ~problem.train[place].isnan()
    torch.testing.assert_close(batch[there], x[place][there])
    assert not filling.values.isnan().any()
    elsewhere = SimpleNamespace(diffusion=SimpleNamespace(start_time=torch.zeros(1, device="meta")))
    filling.values = None
    filling.begin(0, cast(DiffusionModel, elsewhere))
    assert cast(torch.Tensor, filling.values).device.type == "meta"  # where the model is
    chance = np.random.default_rng(1).permutation(gone)
    assert Tabular(data=whole.assign(y=whole["y"].mask(chance))).completed is None


@pytest.mark.parametrize("is_low", [False, True])
@pytest.mark.parametrize("atom", [0.0, 1.0])
def test_numbers_beside_atoms_are_on_a_line(atom: float, is_low: bool) -> None:
    """Of donors alone, what is left of a line is as wide as a leaf."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(3000)
    y = np.where(rng.random(3000) < 0.3, atom, np.exp(x + 0.01 * rng.standard_normal(3000)))
    gone = rng.random(3000) < logistic(-2 * x if is_low else 2 * x)
    frame = pd.DataFrame({"x": x, "y": np.where(gone, math.nan, y)})
    columns = fit_columns(frame, np.ones(3000, dtype=np.bool_))
    completed = completed_once(columns, encode(columns, frame))
    assert completed is not None
    drawn = completed[torch.from_numpy(gone), 1].numpy()
    assert (drawn == atom).mean() == pytest.approx(0.3, abs=0.1)
    off = np.log(drawn[drawn != atom]) - x[gone][drawn != atom]
    assert np.median(np.abs(off)) < 0.02


@pytest.mark.parametrize("atom", [0.0, 1.0])
def test_a_line_makes_no_atoms(atom: float) -> None:
    """They are donors' alone, also where a line predicts what would be one."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(3000)
    y = np.where(rng.random(3000) < 0.3, atom, np.exp(x + 0.5 * rng.standard_normal(3000)))
    gone = rng.random(3000) < logistic(-2 * x)
    frame = pd.DataFrame({"x": x, "y": np.where(gone, math.nan, y)})
    columns = fit_columns(frame, np.ones(3000, dtype=np.bool_))
    completed = completed_once(columns, encode(columns, frame))
    assert completed is not None
    is_atom = completed[torch.from_numpy(gone), 1].numpy() == atom
    assert is_atom.mean() == pytest.approx(0.3, abs=0.08)


@pytest.mark.parametrize("is_heavy", [False, True])
def test_which_numbers_are_atoms_follows_other_columns(is_heavy: bool) -> None:
    """Whatever the other numbers are: a tree of numbers would not see it in heavy tails, nor where
    their mean is the atom."""
    rng = np.random.default_rng(0)
    x, noise, other = rng.standard_normal((3, 3000))
    y = np.where(x + 0.3 * noise < 0.5, 0.0, np.exp(3 * other) if is_heavy else other)
    gone = rng.random(3000) < logistic(2 * x)
    frame = pd.DataFrame({"x": x, "y": np.where(gone, math.nan, y)})
    columns = fit_columns(frame, np.ones(3000, dtype=np.bool_), {"y": "mixed"})
    completed = completed_once(columns, encode(columns, frame))
    assert completed is not None
    is_atom = completed[torch.from_numpy(gone), 1].numpy() == 0
    assert is_atom.mean() == pytest.approx((y[gone] == 0).mean(), abs=0.1)
    assert np.corrcoef(is_atom, x[gone])[0, 1] < -0.55  # of whole rows -0.74


@pytest.mark.parametrize("decimals", [0, 2])
def test_a_skewed_column_that_is_rounded_is_on_a_line_of_the_model(decimals: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(3000)
    y = (100 * np.exp(x + 0.05 * rng.standard_normal(3000))).round(decimals)
    gone = rng.random(3000) < logistic(2 * x)
    frame = pd.DataFrame({"x": x, "y": np.where(gone, math.nan, y)})
    columns = fit_columns(frame, np.ones(3000, dtype=np.bool_), {"y": "rounded"})
    assert isinstance(columns[1], Rounded) and columns[1].decimals == decimals
    completed = completed_once(columns, encode(columns, frame))
    assert completed is not None
    few = gone & (x > 1) & (x < 2)  # where few rows have it, and donors are far
    ratio = completed[torch.from_numpy(few), 1].log().numpy() - np.log(100) - x[few]
    assert 0.03 < ratio.std() < 0.12


def test_a_number_that_one_row_has_beside_atoms_is_its_own_donor() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(600)
    y = np.where(x > 0, 0.0, 5.0)
    y[:3] = 7.3, 8.1, 9.4
    gone = (rng.random(600) < logistic(3 * x)) & (np.arange(600) > 2)
    frame = pd.DataFrame({"x": x, "y": np.where(gone, math.nan, y)})
    columns = fit_columns(frame, np.ones(600, dtype=np.bool_), {"y": "mixed"})
    codes = encode(columns, frame)
    codes[1:3, 1] = math.nan
    completed = completed_once(columns, codes)
    assert completed is not None
    assert set(completed[:, 1].tolist()) == {0.0, 5.0, 7.3}


@pytest.mark.parametrize("at_once", [True, False])
def test_columns_that_are_nearly_one_are_drawn_as_one(at_once: bool) -> None:
    """Drawn by turns they would stay as they are drawn first; and where one is there, the other
    follows it, though it is drawn first without it."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(2000)
    y = x + 0.3 * rng.standard_normal(2000)
    whole = pd.DataFrame({"x": x, "y": y, "z": y + 0.01 * rng.standard_normal(2000)})
    gone = rng.random(2000) < logistic(3 * x)
    first = np.full(2000, True) if at_once else rng.random(2000) < 0.4
    last = np.full(2000, True) if at_once else ~first
    frame = whole.assign(y=whole["y"].mask(gone & first), z=whole["z"].mask(gone & last))
    columns = fit_columns(frame, np.ones(2000, dtype=np.bool_))
    completed = completed_once(columns, encode(columns, frame))
    assert completed is not None
    drawn = completed[torch.from_numpy(gone)].T
    assert float(drawn.corrcoef()[0, 1]) == pytest.approx(0.92, abs=0.05)
    assert float(drawn.corrcoef()[1, 2]) > 0.95
    assert float(completed[:, 1].mean()) == pytest.approx(float(y.mean()), abs=0.1)


def test_whether_a_number_exists_is_not_read_off_the_number() -> None:
    """Of rows without a job and without hours, as many have no job as the others tell."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(3000)
    home = rng.random(3000) < logistic(3 * x)
    whole = pd.DataFrame({"x": x, "job": np.where(home, "home", "works")})
    hours = np.where(home | (rng.random(3000) < 0.1), math.nan, rng.integers(20, 50, 3000))
    gone = rng.random(3000) < logistic(2 * x - 2)
    frame = whole.assign(job=whole["job"].mask(gone), hours=np.where(gone, math.nan, hours))
    columns = fit_columns(frame, np.ones(3000, dtype=np.bool_))
    codes = encode(columns, frame)
    assert columns[2].width == 2 and codes[:, 2].isnan().any()
    completed = completed_once(columns, codes)
    assert completed is not None
    absent = (completed[:, 2] == ABSENT).numpy()
    home_code = float(codes[codes[:, 2] == ABSENT, 1].nanmean())
    assert (absent == (completed[:, 1] == home_code).numpy()).mean() > 0.98
    assert absent[gone].mean() == pytest.approx(home[gone].mean(), abs=0.06)
    assert np.corrcoef(absent[gone], x[gone])[0, 1] == pytest.approx(
        np.corrcoef(home[gone], x[gone])[0, 1], abs=0.1
    )


@pytest.mark.parametrize("said", [{}, {"y": "mixed"}, {"y": "mixed -5..120"}])
def test_scales_of_completed_rows_keep_atoms_ends_and_decimals(said: dict[str, str]) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(1000)
    share = rng.random(1000)
    atoms = np.select([share < 0.3, share < 0.45], [0.0, 100.0], 100 * rng.random(1000))
    mixed = pd.DataFrame({"x": x, "y": atoms})
    cut = pd.DataFrame({"x": x, "y": np.maximum(3 * x + rng.standard_normal(1000), 0)})
    rounded = pd.DataFrame({"x": x, "y": (3 * x + rng.standard_normal(1000)).round(2)})
    for whole in (mixed, cut, rounded):
        if said and whole is rounded:
            continue
        frame = whole.assign(y=whole["y"].mask(rng.random(1000) < logistic(1 + 2 * x)))
        train = np.ones(1000, dtype=np.bool_)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pyro_mdm.tables.columns.fitting.chained_completions", lambda *_: None)
            first = fit_columns(frame, train, said)[1]
        second = fit_columns(frame, train, said)[1]
        assert second.in_words.partition("(")[0] == first.in_words.partition("(")[0]
        for name in ("_lower", "_upper", "_decimals", "kind"):
            assert getattr(second, name, None) == getattr(first, name, None)
        assert [*getattr(second, "atoms", [])] == [*getattr(first, "atoms", [])]


def test_numbers_that_are_hidden_where_they_exist_are_completed() -> None:
    rng = np.random.default_rng(0)
    job = rng.choice(["a", "b", "c"], 2000)
    x = rng.standard_normal(2000)
    hours = np.where(job == "c", math.nan, 40 + 5 * x + 2 * rng.standard_normal(2000))
    train = np.ones(2000, dtype=np.bool_)
    by_x = pd.DataFrame({"job": job, "x": x, "hours": np.where(x > 1, math.nan, hours)})
    columns = fit_columns(by_x, train)
    codes = encode(columns, by_x)
    assert (codes[:, 2] == HIDDEN).any()
    completed = completed_once(columns, codes)
    assert completed is not None
    numbers = completed[:, 2][torch.from_numpy(job != "c")]
    assert float(numbers.mean()) == pytest.approx(np.nanmean(hours), abs=0.5)
    chance = np.where(rng.random(2000) < 0.2, math.nan, hours)
    by_chance = by_x.assign(hours=chance)
    columns = fit_columns(by_chance, train)
    assert completed_once(columns, encode(columns, by_chance)) is None


def test_a_rare_column_is_completed_by_all_rows_that_have_it() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(20_000)
    y = 2 * x + 0.5 * rng.standard_normal(20_000)
    there = rng.random(20_000) < 0.05 * logistic(-3 * x)
    frame = pd.DataFrame({"x": x, "y": np.where(there, y, math.nan)})
    columns = fit_columns(frame, np.ones(20_000, dtype=np.bool_))
    completed = completed_once(columns, encode(columns, frame))
    assert completed is not None
    assert float(completed[:, 1].std()) == pytest.approx(y.std(), rel=0.15)


def test_a_column_that_no_row_has_cannot_be_completed() -> None:
    whole, gone = line(np.random.default_rng(0), 300)
    frame = whole.assign(y=whole["y"].mask(gone))
    columns = fit_columns(frame, np.ones(300, dtype=np.bool_))
    codes = torch.cat([encode(columns, frame), torch.full((300, 1), math.nan)], 1)
    nowhere = copy.copy(columns[0])
    nowhere.name = "nowhere"
    with pytest.raises(DataError, match="no row has column 'nowhere'"):
        completed_once([*columns, nowhere], codes)
