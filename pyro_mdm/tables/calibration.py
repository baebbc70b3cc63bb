"""Calibration of a model of tables: entries that it was not told, among draws that predict them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_mdm.conditioning.imputation import impute
from pyro_mdm.model import DiffusionModel
from pyro_mdm.scores import RandomMaps
from pyro_mdm.scores.denoiser import DenoiserScore
from pyro_mdm.support.measured import Measured
from pyro_mdm.tables.columns import encode
from pyro_mdm.tables.columns.skipped import HIDDEN
from pyro_mdm.tables.rows import TableRows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pyro_mdm.posteriors.calibration import Calibration

__all__ = ["DRAWS", "TableCalibration", "observes_entries", "table_calibration"]

DRAWS = 99
"""Draws of each entry by default, so that ranks fall evenly into ten bins."""
LEVEL = 0.9
"""The level of the intervals that are told."""


@dataclass(frozen=True)
class TableCalibration:
    """Predictions of entries of a table and what they are, by column.

    Attributes:
        ranks: ranks of entries that are numbers, and tests that they are uniform.
        pit: probability integral transforms of these entries, (rows,), NaN where there is no entry.
        classes: frequencies of each category among half of the draws, and among the others, (2,
            rows, C), and the category that was there, (rows,), NaN where there is no entry.
    """

    ranks: Calibration
    pit: dict[str, NDArray[np.float64]]
    classes: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]

    def figure(self) -> Figure:
        """:func:`pyro_mdm.plots.tables.calibration_figure` of them."""
        from pyro_mdm.plots.tables import calibration_figure

        return calibration_figure(self.pit, self.classes)

    def __str__(self) -> str:
        said = []
        if self.pit:
            inside, present = self._inside()
            shares = inside.sum(1) / present.sum(1).clip(1)  # entries of a row go together
            share = inside.sum() / present.sum()
            weight = present.sum(1) / present.sum()
            error = float(np.sqrt((weight**2 * (shares - share) ** 2).sum()))
            by_chance = self.ranks.smallest > 0.05
            word = "uniform, as far as that tells" if by_chance else "NOT uniform"
            said.append(
                f"{LEVEL:.0%} intervals hold {share:.1%} ± {error:.1%} of {present.sum()} numbers; "
                f"ranks are {word} (smallest p-value of {len(self.pit)} columns, times their "
                f"number: {self.ranks.smallest:.2g})"
            )
        if self.classes:
            right, sure = (np.concatenate(values) for values in zip(*self._hits(), strict=True))
            gain = Measured.from_values(torch.from_numpy(right - sure))
            said.append(
                f"of {len(right)} categories {right.mean():.1%} are the most probable one, and "
                f"{sure.mean():.1%} are predicted to be (difference {gain.mean:+.1%} ± "
                f"{gain.standard_error:.1%})"
            )
        return "\n".join(said)

    def _inside(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which entries are in their interval, and which there are, (rows, columns)."""
        u = np.stack([*self.pit.values()], 1)
        return np.abs(np.nan_to_num(u, nan=9.0) - 0.5) <= LEVEL / 2, ~np.isnan(u)

    def _hits(self) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Whether the category that most draws of one half are is there, and its frequency among
        the others, by column."""
        pairs = []
        for (choosing, frequencies), k in self.classes.values():
            there = np.flatnonzero(~np.isnan(k))
            chosen = choosing[there].argmax(1)
            pairs.append(((chosen == k[there]).astype(np.float64), frequencies[there, chosen]))
        return pairs


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
    """The calibration of a model on held-out rows.

    Of each row a random half of the entries is hidden and drawn given the others, and then these
    given those. So every entry is predicted once, from about half of its row.

    Args:
        table: the rows that were trained on, with their columns.
        model: its model, which was trained at maps with entries observed.
        rows: stored rows, (n, columns), NaN where an entry is missing.
        draws: number of draws of each entry, at least 2.
        seed: seed of the choice of hidden entries, and of the draws.

    Raises:
        ValueError: no entry in any row; a model that was not trained at such maps, or that
            :func:`~pyro_mdm.impute` refuses.
    """
    from pyro_mdm.posteriors.calibration import Calibration, ranks  # which load much else

    if not observes_entries(model):
        raise ValueError(
            "the run was trained at --maps levels or independent, where no entry is ever observed, "
            "expected mixed or subsets; train it at such maps"
        )
    if bool(rows.isnan().all()):
        raise ValueError("the rows have no entry, expected at least one to predict")
    generator = torch.Generator().manual_seed(seed)
    rows = rows.double()
    rows = rows.masked_fill(rows == HIDDEN, math.nan)
    hidden = torch.rand(rows.shape, generator=generator) < 0.5
    observed = torch.cat([rows.masked_fill(half, math.nan) for half in (hidden, ~hidden)])
    x = table.to_model_space(observed, generator).to(model.diffusion.start_time.device)
    completed = impute(model, x, num=draws, seed=seed, progress=progress)
    drawn = encode(table.columns, table.to_table(completed.flatten(0, 1)))
    first, second = drawn.unflatten(0, (draws, 2, len(rows))).unbind(1)
    drawn = torch.where(hidden, first, second)  # (draws, rows, columns)
    place = ranks(drawn, rows, seed=seed)
    u = (place + torch.rand(rows.shape, generator=generator)) / (draws + 1)
    u = u.double().masked_fill(rows.isnan(), math.nan)
    of_numbers, pit, classes = {}, {}, {}
    for j, column in enumerate(table.columns):
        there = ~rows[:, j].isnan()
        if not bool(there.any()):
            continue
        if column.levels is None or column.kind == "ordinal":
            of_numbers[column.name] = place[there, j]
            pit[column.name] = u[:, j].numpy()
        else:
            one_hot = torch.nn.functional.one_hot(drawn[..., j].long(), column.levels)
            halves = [half.double().mean(0).numpy() for half in (one_hot[::2], one_hot[1::2])]
            classes[column.name] = (np.stack(halves), rows[:, j].numpy())
    return TableCalibration(Calibration(of_numbers, draws), pit, classes)
