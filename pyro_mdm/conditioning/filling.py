"""Completions of training data by step, drawn by the averaged model while it trains."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from pyro_mdm.budgets import Budget
from pyro_mdm.conditioning.completions import Completions
from pyro_mdm.levels.dequantization import Dequantized
from pyro_mdm.model import DiffusionModel
from pyro_mdm.randomness import seed_from
from pyro_mdm.support.checks import tensor_device
from pyro_mdm.training import indices

__all__ = ["Filling", "Incomplete"]

DRAWS = 10
"""The number of draws of missing entries in a training."""
MOST, TOGETHER = 4096, 2**14
"""The largest number of data that are completed in a period, and of numbers completed together."""
PART = 0.05
"""The part of the seconds of a training that the draws of a period may take."""


class Incomplete(Protocol):
    """Training data with missing entries."""

    @property
    def train(self) -> Tensor:
        """The data as they are stored, (N, …)."""

    @property
    def completed(self) -> Tensor | None:
        """Completed data in model space, with which training begins; None: draws of the model."""

    def transform(self, data: Tensor, generator: torch.Generator | None = None) -> Dequantized:
        """Stored data in model space, NaN where an entry is missing."""


class Filling:
    """The completions of training data, by step, see :class:`Completions`.

    Missing entries are drawn anew ten times in a training, for some of the data if they are many,
    which are then trained on until the next draw.

    Args:
        data: training data, with missing entries.
        steps: number of training steps.
        batch_size: number of data in a batch.
        seed: seed of the training.
        budget: the seconds of the training, a twentieth of which is the most for the draws of a
            period. Other data keep their last completions, or lack them, and maps skip what they
            lack. None: no limit.

    Attributes:
        values: completed data of the current period of the training, in model space; None before
            the first draw.
    """

    def __init__(
        self,
        data: Incomplete,
        *,
        steps: int,
        batch_size: int,
        seed: int,
        budget: Budget | None = None,
    ) -> None:
        self._data, self._batch_size, self._seed = data, batch_size, seed
        self._budget = budget or Budget()
        self._number = len(data.train)
        self._size = min(MOST, self._number)
        self._every = max(1, steps // DRAWS)
        self.values: Tensor | None = None

    def rows(self, step: int) -> Tensor:
        """The indices of the training data in the batch of a step."""
        return self._present(step)[self._places(step)]

    def fill(self, x: Tensor, step: int, piece: slice = slice(None)) -> Tensor:
        """Data of a piece of the batch of a step, with completions in place of NaN.

        Args:
            x: data of the piece, (m, *event_shape).
            step: index of the step.
            piece: slice of the batch.
        """
        assert self.values is not None
        completed = self.values[self._places(step)[piece].to(x.device)]
        return completed.where(x.isnan(), x)

    def begin(self, step: int, model: DiffusionModel) -> None:
        """Complete the data of the period that a step begins; otherwise do nothing.

        Args:
            step: index of the step.
            model: the model that draws, such as that of averaged weights.
        """
        if not self.is_due(step):
            return
        data, seed = self._data, seed_from(self._seed, "fill", step)
        device = tensor_device(model.score_function)
        if step == 0 and data.completed is not None:
            self.values = data.completed[self._present(0)].to(device)
            return
        noise = torch.Generator().manual_seed(seed)
        x, _ = data.transform(data.train[self._present(step)], noise)
        completions = Completions(x.to(device))
        before = self.values if self._size == self._number else None
        if before is not None:
            completions.x = torch.where(completions.missing, before, completions.x)
        end = self._budget.spent + PART * (self._budget.seconds or math.inf)
        order = torch.randperm(len(completions.incomplete), generator=noise)
        for k, chosen in enumerate(
            completions.incomplete[order].split(max(1, TOGETHER // x[0].numel()))
        ):
            try:
                completions.draw(model, chosen, seed=seed_from(seed, k))
            except ValueError:  # of a model that diverges, whose training may keep earlier weights
                if before is None:
                    raise
                return
            if self._budget.spent > end:
                break
        self.values = completions.x

    def is_due(self, step: int) -> bool:
        """Whether a step begins a period, or is the first."""
        return self.values is None or step % self._every == 0

    def _present(self, step: int) -> Tensor:
        """The indices of the data that are trained on at a step, all if they are few."""
        period = step // self._every if self._size < self._number else 0
        return indices(period, self._size, self._number, seed_from(self._seed, "parts"))

    def _places(self, step: int) -> Tensor:
        return indices(step, self._batch_size, self._size, self._seed)
