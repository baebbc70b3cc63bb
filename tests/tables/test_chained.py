"""Completions of rows before there is a model: their law, the scales by them, and the start."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest
import torch

from models import Tabular
from pyro_mdm import DiffusionModel
from pyro_mdm.conditioning.completions import Filling
from pyro_mdm.tables.chained import chained_completions
from pyro_mdm.tables.columns import decode, encode, fit_columns, to_model_space
from pyro_mdm.tables.columns.fitting import completed_rows

Law = Callable[[np.random.Generator, int], tuple[pd.DataFrame, np.ndarray]]


def completed(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with a draw of each entry, of columns that are fitted to it."""
    columns = fit_columns(frame, np.ones(len(frame), dtype=np.bool_), {"y": "mar"})
    rows = completed_rows(columns, encode(columns, frame))
    assert rows is not None
    return decode(columns, rows[0])


def blocks(number: int) -> list[tuple[slice, bool]]:
    return [(slice(j, j + 1), False) for j in range(number)]


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
    """Moments of completed rows are off by a share of what those of rows without a gap are off
    by."""
    far, far_of_rest = [], []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        whole, gone = law(rng, 2000)
        drawn = completed(whole.assign(y=whole["y"].mask(gone)))

        def moments(table: pd.DataFrame) -> np.ndarray:
            """Probabilities of levels, or the mean of a number, its deviation and covariance."""
            if law is levels:
                return (table["y"].to_numpy()[:, None] == ["far", "right", "left"]).mean(0)
            y = np.log(table["y"]) if law is skewed else table["y"]
            return np.array([y.mean(), y.std(), np.cov(table["x"], y)[0, 1]])

        far.append(np.abs(moments(drawn) - moments(whole)).max())
        far_of_rest.append(np.abs(moments(whole[~gone]) - moments(whole)).max())
        there = drawn["y"][~gone], whole["y"][~gone]
        assert (there[0] == there[1]).all() if law is levels else np.allclose(*there, atol=1e-4)
    assert sum(far) < share * sum(far_of_rest)


def test_scales_of_columns_are_those_of_whole_rows() -> None:
    whole, gone = two_groups(np.random.default_rng(0), 2000)
    everything = np.ones(len(whole), dtype=np.bool_)

    def scaled(frame: pd.DataFrame) -> torch.Tensor:
        columns = fit_columns(frame, everything, {"y": "mar"})
        x = to_model_space(columns, encode(columns, whole), torch.Generator().manual_seed(0)).x
        return torch.stack([x[:, 1].mean(), x[:, 1].std()])

    off = scaled(whole.assign(y=whole["y"].mask(gone))) - scaled(whole)
    assert float(off.abs().max()) < 0.1


def test_a_line_goes_on_beyond_what_is_there_by_half_of_its_range_at_most() -> None:
    x = torch.tensor(line(np.random.default_rng(0), 1000)[0].to_numpy())
    x[x[:, 0] > 2.5, 0] = 100.0
    gone = x[:, 0] > 0
    there, rows = x[~gone, 1], x.clone()
    rows[gone, 1] = math.nan
    most = float(chained_completions(rows, blocks(2))[0, :, 1].max())
    end = float(there.max() + (there.max() - there.min()) / 2)
    assert float(there.max()) + 1 < most <= end + 1e-9


@pytest.mark.parametrize("at_once", [False, True])
def test_columns_that_are_nearly_one_are_drawn_as_one(at_once: bool) -> None:
    """Of donors alone, what is left of a line is as wide as a leaf."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(2000)
    y = 0.9 * x + 0.4 * rng.standard_normal(2000)
    rows = torch.from_numpy(np.stack([x, y, y + 0.01 * rng.standard_normal(2000)], 1))
    gone = torch.from_numpy(rng.random(2000) < logistic(3 * x))
    first = (
        torch.ones(2000, dtype=torch.bool) if at_once else torch.from_numpy(rng.random(2000) < 0.4)
    )
    rows[gone & first, 1] = math.nan
    rows[gone & (first if at_once else ~first), 2] = math.nan
    drawn = chained_completions(rows, blocks(3))[0][gone].T
    truth = np.corrcoef(x[gone.numpy()], y[gone.numpy()])[0, 1]
    assert float(drawn.corrcoef()[0, 1]) == pytest.approx(truth, abs=0.06)
    assert float(drawn.corrcoef()[1, 2]) > 0.95
    assert float(drawn[1].mean()) == pytest.approx(float(y[gone.numpy()].mean()), abs=0.1)


@pytest.mark.slow
def test_a_training_on_gaps_begins_with_them() -> None:
    whole, gone = two_groups(np.random.default_rng(0), 300)
    problem = Tabular(data=whole.assign(y=whole["y"].mask(gone)))
    assert problem.completed is not None
    tables = problem.fit_x().unflatten(0, (-1, len(problem.train)))
    x = tables[0]
    assert not tables.isnan().any() and float((tables[1:] != x).any(2).float().mean()) > 0.3
    filling = Filling(problem, steps=100, seed=0, batch_size=8)
    cpu = SimpleNamespace(score_function=torch.nn.Linear(1, 1))
    filling.begin(0, cast(DiffusionModel, cpu))  # it draws by no model
    assert filling.values is not None and filling.values.shape == x.shape
    place = filling.rows(0)
    batch = filling.fill(torch.full((8, x.shape[1]), math.nan), 0, slice(None))
    torch.testing.assert_close(batch, x[place])
    elsewhere = SimpleNamespace(score_function=torch.nn.Linear(1, 1, device="meta"))
    filling.values = None
    filling.begin(0, cast(DiffusionModel, elsewhere))
    assert cast(torch.Tensor, filling.values).device.type == "meta"  # where the model is
    chance = np.random.default_rng(1).permutation(gone)
    assert Tabular(data=whole.assign(y=whole["y"].mask(chance))).completed is None


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
            patch.setattr("pyro_mdm.tables.columns.fitting.dependent_gaps", lambda *_: {})
            first = fit_columns(frame, train, said)[1]
        second = fit_columns(frame, train, said)[1]
        assert second.in_words.partition("(")[0] == first.in_words.partition("(")[0]
        for name in ("_lower", "_upper", "_decimals", "kind"):
            assert getattr(second, name, None) == getattr(first, name, None)
        assert [*getattr(second, "atoms", [])] == [*getattr(first, "atoms", [])]
