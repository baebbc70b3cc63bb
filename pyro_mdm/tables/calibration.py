"""Calibration of a model of tables: the ranks of hidden entries among draws that predict them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_mdm.conditioning.imputation import impute
from pyro_mdm.conditioning.maps import RandomMaps
from pyro_mdm.model import DiffusionModel
from pyro_mdm.scores.denoiser import DenoiserScore
from pyro_mdm.support.checks import tensor_device
from pyro_mdm.support.measured import Measured
from pyro_mdm.tables.columns import encode
from pyro_mdm.tables.columns.skipped import HIDDEN, Skipped
from pyro_mdm.tables.rows import TableRows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DRAWS", "TableCalibration", "observes_entries", "table_calibration"]

DRAWS, LEVEL = 99, 0.9
"""Draws of each entry by default, so that ranks fall evenly into ten bins, and the level of the
intervals that are printed."""


@dataclass(frozen=True)
class TableCalibration:
    """Predictions of entries of a table, and the entries, by column.

    Attributes:
        pit: probability integral transforms of entries that are numbers, (rows,), NaN where an
            entry is missing.
        classes: frequencies of categories among each half of the draws, (2, rows, C), and the true
            categories, (rows,), NaN where an entry is missing.
    """

    pit: dict[str, NDArray[np.float64]]
    classes: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]

    @property
    def smallest(self) -> float:
        """The smallest p-value of the χ² tests that transforms are uniform, times their number."""
        from scipy.stats import chisquare

        counts = [np.histogram(u[~np.isnan(u)], 10, (0, 1))[0] for u in self.pit.values()]
        return min(1.0, len(counts) * min(float(chisquare(one).pvalue) for one in counts))

    def figure(self) -> Figure:
        """The figure of :func:`pyro_mdm.plots.tables.calibration_figure`."""
        from pyro_mdm.plots.tables import calibration_figure

        return calibration_figure(self.pit, self.classes)

    def __str__(self) -> str:
        lines = []
        if self.pit:
            u = np.stack([*self.pit.values()], 1)
            inside, present = np.abs(np.nan_to_num(u, nan=9.0) - 0.5) <= LEVEL / 2, ~np.isnan(u)
            shares = inside.sum(1) / present.sum(1).clip(1)  # entries of a row go together
            share = inside.sum() / present.sum()
            weight = present.sum(1) / present.sum()
            off = torch.from_numpy(len(weight) * weight * (shares - share))  # of a ratio estimate
            error = Measured.from_values(off).standard_error
            word = "uniform, as far as this test shows" if self.smallest > 0.05 else "NOT uniform"
            lines.append(
                f"{LEVEL:.0%} intervals contain {share:.1%} ± {error:.1%} of {present.sum()} "
                f"numbers; ranks are {word} (smallest p-value of {len(self.pit)} columns, times "
                f"their number: {self.smallest:.2g})"
            )
        if self.classes:
            hits, chances = [], []
            for (choosing, frequencies), k in self.classes.values():
                there = np.flatnonzero(~np.isnan(k))
                chosen = choosing[there].argmax(1)  # in its own half the largest is biased upwards
                hits.append((chosen == k[there]).astype(np.float64))
                chances.append(frequencies[there, chosen])
            right, sure = np.concatenate(hits), np.concatenate(chances)
            gain = Measured.from_values(torch.from_numpy(right - sure))
            lines.append(
                f"of {len(right)} categories {right.mean():.1%} are the most probable one, and "
                f"{sure.mean():.1%} are predicted to be (difference {gain.mean:+.1%} ± "
                f"{gain.standard_error:.1%})"
            )
        return "\n".join(lines)


def observes_entries(model: DiffusionModel) -> bool:
    """Whether the model was trained at maps with entries observed."""
    score = model.score_function
    maps = score.training_maps if isinstance(score, DenoiserScore) else None
    return maps is not None and not (isinstance(maps, RandomMaps) and maps.subsets == 0)


@torch.no_grad()
def table_calibration(
    table: TableRows,
    model: DiffusionModel,
    rows: Tensor,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    progress: bool = False,
) -> TableCalibration:
    """The calibration of a model on held-out rows, as :meth:`~pyro_mdm.tables.Table.calibration`.

    Args:
        table, model: the training rows, and their model, trained at maps with entries observed.
        rows: held-out rows as stored, (n, columns), NaN where an entry is missing.

    Raises:
        ValueError: rows without an entry; a model that was not trained at such maps.
    """
    if not observes_entries(model):
        raise ValueError(
            "the model was never trained at maps with entries observed, expected maps of subsets "
            "of the entries; train it with score.training_maps = RandomMaps()"
        )
    if bool(rows.isnan().all()):
        raise ValueError("the rows have no entry, expected at least one to predict")
    generator = torch.Generator().manual_seed(seed)
    rows = rows.double()
    rows = rows.masked_fill(rows == HIDDEN, math.nan)
    hidden = torch.rand(rows.shape, generator=generator) < 0.5
    observed = torch.cat([rows.masked_fill(half, math.nan) for half in (hidden, ~hidden)])
    x = table.to_model_space(observed, generator).to(tensor_device(model.score_function))
    completed = impute(model, x, num=draws, seed=seed, progress=progress)
    drawn = encode(table.columns, table.to_table(completed.flatten(0, 1)))
    first, second = drawn.unflatten(0, (draws, 2, len(rows))).unbind(1)
    drawn = torch.where(hidden, first, second)  # (draws, rows, columns)
    # a rank among draws, at random among equal ones, and a uniform number
    below, equal = (drawn < rows).sum(0), (drawn == rows).sum(0)
    u = below + (equal + 1) * torch.rand(rows.shape, generator=generator)
    u = (u / (draws + 1)).double().masked_fill(rows.isnan(), math.nan)
    pit, classes = {}, {}
    for j, column in enumerate(table.columns):
        if bool(rows[:, j].isnan().all()):
            continue
        if column.levels is None or column.kind == "ordinal":
            pit[column.name] = u[:, j].numpy()
        else:
            # what is absent is one more category
            index, codes = (v.clamp_max(column.levels) for v in (drawn[..., j], rows[:, j]))
            number = column.levels + isinstance(column, Skipped)
            one_hot = torch.nn.functional.one_hot(index.long(), number).double()
            halves = torch.stack([one_hot[::2].mean(0), one_hot[1::2].mean(0)])
            classes[column.name] = (halves.numpy(), codes.numpy())
    return TableCalibration(pit, classes)
