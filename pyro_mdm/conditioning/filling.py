"""Completions of training data by step, drawn by the averaged model while it trains."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from pyro_mdm.conditioning.completions import Completions
from pyro_mdm.likelihoods.dequantization import Dequantized
from pyro_mdm.model import DiffusionModel
from pyro_mdm.randomness import seed_from
from pyro_mdm.training import indices

__all__ = ["Filling", "Incomplete"]

DRAWS = 10
"""The number of draws of missing entries in a training."""
MOST = 4096
"""The largest number of data that are completed at a time."""


class Incomplete(Protocol):
    """Training data with missing entries."""

    @property
    def train(self) -> Tensor:
        """The data as they are stored, (N, …)."""

    @property
    def completed(self) -> Tensor | None:
        """The completed data with which training begins; None: draws of the model."""

    def training_x(self, data: Tensor, generator: torch.Generator | None = None) -> Dequantized:
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

    Attributes:
        values: completed data of the current period of the training, in model space; None before
            the first draw.
    """

    def __init__(self, data: Incomplete, *, steps: int, batch_size: int, seed: int) -> None:
        self._data, self._batch_size, self._seed = data, batch_size, seed
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
        noise = torch.Generator().manual_seed(seed)
        whole = data.completed if step == 0 else None
        if whole is not None:
            first, _ = data.training_x(whole[self._present(step)], noise)
            self.values = first.to(model.diffusion.start_time.device)
            return
        x, _ = data.training_x(data.train[self._present(step)], noise)
        completions = Completions(x.to(model.diffusion.start_time.device))
        try:
            completions.draw(model, seed=seed)
        except (
            ValueError
        ):  # of a model that diverges, whose training may still keep earlier weights
            if self.values is None or self._size < self._number:
                raise
            return
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
