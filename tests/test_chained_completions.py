"""Completions by chained equations: their law, and that every kind of column can have them."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest
import torch

from inference.columns.angle import Angle
from inference.settings.options import Decided
from inference.training.filling import Filling
from models import Tabular
from pyro_mdm import DiffusionModel
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
from pyro_mdm.tables.columns.skipped import ABSENT, HIDDEN

Law = Callable[[np.random.Generator, int], tuple[pd.DataFrame, np.ndarray]]


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
    ("law", "share"), [(line, 0.3), (two_groups, 0.06), (skewed, 0.15), (levels, 0.4)]
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
        completed = chained_completions(columns, encode(columns, frame), seed=seed)
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
    assert chained_completions(columns, encode(columns, without)) is None


def test_a_table_without_gaps_has_no_completions() -> None:
    whole, _ = line(np.random.default_rng(0), 300)
    columns = fit_columns(whole, np.ones(300, dtype=np.bool_))
    assert chained_completions(columns, encode(columns, whole)) is None


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


def test_every_kind_of_column_can_have_its_completions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "KINDS", dict(registry.KINDS))
    monkeypatch.setattr("pyro_mdm.tables.columns.fitting.KINDS", registry.KINDS)
    register_kind(Angle)
    frame, kinds = every_kind()
    train = np.arange(len(frame)) % 5 > 0
    columns = fit_columns(frame, train, kinds)
    codes = encode(columns, frame)
    completed = chained_completions(columns, codes, seed=1)
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
    again = chained_completions(columns, codes, seed=1)
    other = chained_completions(columns, codes, seed=2)
    assert again is not None and torch.equal(completed, again)
    assert other is not None and not torch.equal(completed, other)


def _numbers_that_do_not_exist(columns: list[Column], codes: torch.Tensor) -> torch.Tensor:
    pieces = [
        (codes[:, [j]] == ABSENT).expand(-1, column.width) for j, column in enumerate(columns)
    ]
    return torch.cat(pieces, 1)


def test_a_training_on_gaps_begins_with_them() -> None:
    whole, gone = two_groups(np.random.default_rng(0), 300)
    problem = Tabular(data=whole.assign(y=whole["y"].mask(gone)))
    assert problem.completed is not None
    x = problem.fit_x()
    assert not x.isnan().any()
    assert problem.roughly_fitted().fit_x().isnan().any()  # of weights that a file replaces
    filling = Filling(problem, cast(Decided, SimpleNamespace(steps=100, seed=0, batch_size=8)))
    cpu = SimpleNamespace(diffusion=SimpleNamespace(start_time=torch.zeros(1)))
    filling.begin(0, cast(DiffusionModel, cpu))  # it draws by no model
    assert filling.values is not None and filling.values.shape == x.shape
    place = filling.rows(0)
    batch = filling.fill(torch.full((8, x.shape[1]), math.nan), 0, slice(None))
    there = ~problem.train[place].isnan()
    torch.testing.assert_close(batch[there], x[place][there])
    assert not filling.values.isnan().any()
    chance = np.random.default_rng(1).permutation(gone)
    assert Tabular(data=whole.assign(y=whole["y"].mask(chance))).completed is None
