"""Completions of rows of a table, each a draw of the missing entries given the others.

They are tables by a trained model; those of :mod:`pyro_mdm.conditioning.completions` are tensors
that a model in training draws for its own next steps.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from pyro_mdm.conditioning.imputation import impute
from pyro_mdm.model import DiffusionModel
from pyro_mdm.randomness import seed_from
from pyro_mdm.support.checks import tensor_device
from pyro_mdm.tables.columns.base import Center, Column
from pyro_mdm.tables.columns.lazy import pd
from pyro_mdm.tables.denoiser import MixedDenoiser
from pyro_mdm.tables.frames import filled
from pyro_mdm.tables.network import MapMLP
from pyro_mdm.tables.rows import TableRows, UnknownPolicy

__all__ = ["DRAW_STEPS", "DrawOptions", "bootstrapped", "draws", "draws_given", "middle"]

DRAW_STEPS = 16
"""Steps of the exponential sampler for tables: the standard deviation of draws is then 1% to 2% too
large on three tables, and their CRPS within 0.2% of that of 200 steps; 25 leave 1%, and 12 up to
5%."""


class DrawOptions(NamedTuple):
    """The options of draws of missing entries."""

    only: str | None = None  # the one column that is drawn, given the others; None: all are
    batch_size: int = 1024  # the number of completions simulated together
    seed: int = 0
    unknown: UnknownPolicy = "missing"  # as for TableRows.codes, and so are hidden ones
    hidden: Sequence[str] = ()
    progress: bool = False


def draws(
    table: TableRows,
    model: DiffusionModel | Sequence[DiffusionModel],
    rows: pd.DataFrame,
    num: int,
    how: DrawOptions,
    *,
    piece: int = 0,
) -> list[pd.DataFrame]:
    """Completed rows, with the modelled columns and rows 0, 1, …: a table for each draw.

    Args:
        table: the training rows, with their columns.
        model: the model of rows, or ``num`` models, one for each draw.
        rows: incomplete rows, so few that memory holds them ``num`` times; missing entries of
            columns that are not drawn stay empty.
        num, how: the number of draws of each row, and their options.
        piece: the index of these rows among the pieces of a larger table, for their seed.
    """
    piece_seed = seed_from(how.seed, "draws", piece)
    noise = torch.Generator().manual_seed(piece_seed)
    codes = table.codes(rows, how.unknown, how.hidden).repeat(num, 1)
    models = [model] if isinstance(model, DiffusionModel) else model
    x = table.to_model_space(codes, noise).to(tensor_device(models[0].score_function))
    left_out = None if how.only is None else x.isnan() & ~table.dims_of(how.only).to(x.device)
    drawn, n = [], len(rows)
    for k, one in enumerate(models):
        here = slice(k * n, k * n + n) if len(models) > 1 else slice(None)
        out = None if left_out is None else left_out[here]
        options = {"batch_size": how.batch_size, "seed": piece_seed + k}
        drawn.append(impute(one, x[here], num=1, left_out=out, progress=how.progress, **options)[0])
    whole = table.to_table(torch.cat(drawn))
    return [whole.iloc[k * n : k * n + n].reset_index(drop=True) for k in range(num)]


def bootstrapped(
    table: TableRows, model: DiffusionModel, num: int, *, seed: int = 0
) -> list[DiffusionModel]:
    """Models that begin with the Gaussian distributions of bootstrap samples of the training rows.

    They share the weights of the model, whose correction of that distribution they keep.

    Raises:
        TypeError: a model that does not begin with a Gaussian distribution.
        ValueError: training rows that are not kept.
    """
    score = model.score_function
    if not (isinstance(score, MixedDenoiser) and isinstance(score.network, MapMLP)):
        raise TypeError(
            f"the model has a {type(score).__name__} whose parameters cannot be drawn anew, "
            "expected one by MixedDenoiser.from_gaussian; use proper=False"
        )
    if not len(table.train):
        raise ValueError(
            "proper=True draws samples of the training rows, and this model was opened without "
            "them; use proper=False, or open the table with its rows: the folder of "
            "save_pretrained, or a run by inference.Table.from_run"
        )
    models, shared = [], [*score.network.children()]
    for k in range(num):
        generator = torch.Generator().manual_seed(seed_from(seed, "bootstrap", k))
        x = table.to_model_space(table.train, generator)
        chosen = torch.randint(len(x), (len(x),), generator=generator)
        # a column that the sample leaves without two values keeps its extremes
        least, most = x.nan_to_num(math.inf).argmin(0), x.nan_to_num(-math.inf).argmax(0)
        sample = x[chosen]
        few = ~(sample.nan_to_num(math.inf).amin(0) < sample.nan_to_num(-math.inf).amax(0))
        sample = torch.cat([sample, x[least[few]], x[most[few]]])
        one = copy.deepcopy(model, {id(module): module for module in shared})
        assert isinstance(one.score_function, MixedDenoiser)
        one.score_function.refit_gaussian(sample)
        models.append(one)
    return models


def draws_given(
    table: TableRows,
    model: DiffusionModel,
    n: int,
    given: Mapping[str, object],
    *,
    batch_size: int = 1024,
    seed: int = 0,
) -> pd.DataFrame:
    """n rows with given values of some columns, by name, and draws of their other columns;
    DataError for an unknown column, or a value that it cannot have."""
    for name in given:
        table.column(name)  # or an error
    rows = pd.DataFrame({c.name: [given.get(c.name)] * n for c in table.columns})
    hidden = tuple(column.name for column in table.columns if column.name not in given)
    how = DrawOptions(batch_size=batch_size, seed=seed, unknown="refuse", hidden=hidden)
    return filled(rows, draws(table, model, rows, 1, how)[0])


def middle(
    columns: Sequence[Column], draws: Sequence[pd.DataFrame], center: Center
) -> pd.DataFrame:
    """The centre of each entry over draws, those of :func:`draws`; of numbers the mean or
    median."""
    centers = {
        column.name: column.center(np.stack([rows[column.name] for rows in draws]), center)
        for column in columns
    }
    return pd.DataFrame(centers)
