"""Columns that are absent together keep their dependence: in completions and in samples."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from pyro_mdm.conditioning.completions import Filling
from pyro_mdm.tables import Table
from pyro_mdm.tables.agreement import agreement
from pyro_mdm.tables.rows import TableRows
from pyro_mdm.tables.training import new_model
from tests.benchmarks.absent_columns import KINDS, correlations, survey

SHARES, NUMBERS = (0.2, 0.8), (1, 4)


@pytest.mark.parametrize(("kind", "number", "share"), [*itertools.product(KINDS, NUMBERS, SHARES)])
def test_completions_of_what_is_absent_have_the_law_of_what_exists(
    kind: str, number: int, share: float
) -> None:
    """Filled independently, correlations of .85 were .2."""
    table = survey(kind, number, share, seed=1)
    rows = TableRows(table)
    filling = Filling(rows, steps=10, batch_size=len(rows.train), seed=0)
    filling.begin(0, new_model(rows).eval())
    x = filling.fill(rows.fit_x()[filling.rows(0)], 0)
    assert bool(x.isfinite().all())
    exists = torch.stack([rows.dims_of(f"y{j}").nonzero()[0, 0] for j in range(number)])
    completed = rows.to_table(x.index_fill(1, exists, 1.0))
    ideal = correlations(survey(kind, number, 0.0, seed=7, n=20_000))
    # a category's levels are drawn by a rule of Bayes for Gaussian columns, and pairs less exactly
    slack = 0.12 if kind == "categories" and number > 1 else 0.05
    error = 2.5 * (1 - ideal**2) / np.sqrt((1 - share) * len(rows.train))
    assert bool((np.abs(correlations(completed) - ideal) <= slack + error).all())


@pytest.mark.slow
def test_samples_keep_the_dependence_of_columns_that_are_absent_together() -> None:
    table = survey("integers", 2, 0.75, seed=0, n=1500)
    samples = Table(steps=300, seed=0).fit(table).sample(4000)
    gone = samples[["y0", "y1"]].isna()
    assert bool((gone["y0"] == gone["y1"]).mean() > 0.995)
    off = np.abs(correlations(samples) - correlations(table))
    assert float(off.max()) < 0.05 + 0.03


def test_the_agreement_compares_pairs_among_rows_that_have_both() -> None:
    """Existence correlates perfectly in rows and samples, whatever the numbers do."""
    table = survey("numbers", 2, 0.5, seed=2)
    rows = TableRows(table)
    model = new_model(rows).eval()
    right = rows.to_model_space(rows.train)
    wrong = right.clone()
    here = wrong[:, rows.dims_of("y0")][:, 0] > 0
    dim = int(rows.dims_of("y1").nonzero()[1])
    wrong[here, dim] = wrong[here, dim].roll(1)
    wrong[~here, dim] = 0.0
    pairs = {pair.name: pair for pair in agreement(rows, model, wrong.nan_to_num(0.0)).pairs}
    assert pairs["y0 × y1"].is_large and pairs["y0 × y1"].value > 0.6
    pairs = {pair.name: pair for pair in agreement(rows, model, right.nan_to_num(0.0)).pairs}
    assert not pairs["y0 × y1"].is_large
