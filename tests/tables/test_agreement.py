"""Samples of a table beside its rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from inference.train import train
from models import Tabular
from pyro_mdm import VPSDE
from pyro_mdm.tables.agreement import _correlations, _forbidden, _marginals, agreement
from tests.brief import SHORT


def people(n: int, seed: int, *, wrong: str = "") -> pd.DataFrame:
    """Customers with or without a card, of whom those without one spend nothing."""
    rng = np.random.default_rng(seed)
    card = rng.random(n) < 0.6
    age = rng.normal(50 if wrong == "age" else 40, 10, n)
    income = age + rng.normal(size=n) * 5
    if wrong == "dependence":
        rng.shuffle(income)
    spending = np.where(card, rng.exponential(20.0, n), 0.0)
    if wrong == "rule":
        rng.shuffle(spending)
    city = rng.choice(["a", "b", "c"], n, p=[0.2, 0.2, 0.6] if wrong == "city" else [0.4, 0.4, 0.2])
    columns = {"card": card.astype(str), "age": age, "income": income, "spending": spending}
    return pd.DataFrame(columns | {"city": city})


DIFFERENT = {
    "": [],
    "age": ["age"],
    "dependence": ["age × income"],
    "rule": ["card × spending"],
    "city": ["city"],
}


@pytest.mark.parametrize("wrong", DIFFERENT)
def test_what_differs_is_found_and_no_more(wrong: str) -> None:
    problem = Tabular(data=people(1200, 0))
    rows, samples = problem.codes(people(800, 1)), problem.codes(people(1000, 2, wrong=wrong))
    rng = np.random.default_rng(0)
    codes = problem.columns, rows.numpy(), samples.numpy()
    distances = [*_marginals(*codes, rng), *_correlations(*codes)]
    found = [one.name for one in distances if one.is_large]
    assert {*DIFFERENT[wrong]} <= {*found} <= {*DIFFERENT[wrong], "income"}
    rules = [*_forbidden(problem.columns, problem.train.numpy())]
    names = {problem.columns[k].name for pair in rules for k, _ in pair}
    assert names == {"card", "spending"} and len(rules) == 2


def test_what_is_missing_is_drawn_before_rows_are_compared() -> None:
    """Rows whose y is missing where x is high are compared as whole ones."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=600)
    y = 0.7 * x + math.sqrt(0.51) * rng.normal(size=600)
    table = pd.DataFrame({"x": x, "y": np.where(x > 0, math.nan, y)})
    problem = Tabular(data=table, columns="y=mar")
    torch.manual_seed(0)
    model = problem.build(VPSDE(max_log_snr=9.0, min_log_snr=-9.0), maps=True).eval()
    found = agreement(problem, model)
    assert found.differs == [] and len(found.rows["y"]) == 540
    assert not np.isnan(np.asarray(found.rows["y"], dtype=float)).any()
    assert "columns that differ most" in str(found) and found.rules == 0
    assert found.figure().axes


def test_training_says_it_and_warns(tmp_path: Path) -> None:
    table = people(200, 0)
    few: dict[str, Any] = SHORT | {"steps": 1, "guide": "vpsde", "figures": False}
    few |= {"test_size": None, "batch_size": 64, "learning_rate": 3.0, "ema_decay": 0.0}
    with pytest.warns(UserWarning, match="differ from its rows by more than chance"):
        train(
            **few | {"model": "tabular", "data": table, "run": tmp_path / "run", "holdout": False}
        )
