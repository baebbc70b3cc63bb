"""Missing entries of training data, filled by the averaged model while it trains.

See :class:`pyro_mdm.conditioning.Completions`. The first are those of the problem, if it has them:
:attr:`models.Problem.completed`. What is filled is drawn anew :data:`DRAWS` times in
a run, for some of the data if they are many, which are then trained on until the next time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inference.settings.options import Decided
from inference.settings.seeds import seed_from
from inference.training.recipe import indices
from models import Problem
from pyro_mdm import DiffusionModel
from pyro_mdm.conditioning import Completions

DRAWS = 10
"""The number of times that missing entries are drawn in a run."""
MOST = 4096
"""The most data that are completed at a time."""


class Filling:
    """The completions of training data, by step.

    Args:
        problem: the data set, with missing entries.
        settings: settings of the run.

    Attributes:
        values: the completed data of the present part of the training, in model space; None:
            nothing was drawn yet.
    """

    def __init__(self, problem: Problem, settings: Decided) -> None:
        self._problem, self._settings = problem, settings
        self._number = len(problem.train)
        self._size = min(MOST, self._number)
        self._every = max(1, settings.steps // DRAWS)
        self.values: Tensor | None = None

    def rows(self, step: int) -> Tensor:
        """The numbers of the training data in the batch of a step."""
        return self._present(step)[self._places(step)]

    def fill(self, x: Tensor, step: int, piece: slice) -> Tensor:
        """Data x of a piece of the batch of a step, with completions where they are NaN."""
        assert self.values is not None
        completed = self.values[self._places(step)[piece].to(x.device)]
        return completed.where(x.isnan(), x)

    def begin(self, step: int, model: DiffusionModel) -> None:
        """Complete the data that are trained on from a step on, if it is the first of a part, or
        nothing was drawn yet."""
        if step % self._every and self.values is not None:
            return
        problem, seed = self._problem, seed_from(self._settings.seed, "fill", step)
        noise = torch.Generator().manual_seed(seed)
        whole = problem.completed if step == 0 else None
        if whole is not None:
            first, _ = problem.training_x(whole[self._present(step)], noise)
            self.values = first.to(model.diffusion.start_time.device)
            return
        x, _ = problem.training_x(problem.train[self._present(step)], noise)
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

    def _present(self, step: int) -> Tensor:
        """The numbers of the data that are trained on at a step, all if they are few."""
        period = step // self._every if self._size < self._number else 0
        return indices(period, self._size, self._number, seed_from(self._settings.seed, "parts"))

    def _places(self, step: int) -> Tensor:
        settings = self._settings
        return indices(step, settings.batch_size, self._size, settings.seed)
