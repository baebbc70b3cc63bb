"""Training data completed by the model itself, at once and by training step."""

from __future__ import annotations

import copy
import math
from typing import Protocol

import torch
from torch import Tensor

from pyro_mdm.budgets import Budget
from pyro_mdm.conditioning.imputation import impute
from pyro_mdm.levels.dequantization import Dequantized
from pyro_mdm.model import DiffusionModel
from pyro_mdm.randomness import seed_from
from pyro_mdm.samplers import ExponentialIntegrator
from pyro_mdm.scores.denoiser import moments
from pyro_mdm.support.checks import check_data, checked_arguments, describe, tensor_device
from pyro_mdm.training import indices

__all__ = ["Completions", "Filling", "Incomplete"]

STEPS = 12
"""The number of steps of a draw, whose error the next draws forget."""
REACH = 10.0
"""The largest distance of a draw from its dimension's mean, in standard deviations of that or of an
average dimension, where it is beyond all present values: a model that diverges for a while must not
learn from its draws."""
DRAWS = 10
"""The number of draws of missing entries in a training."""
MOST, TOGETHER = 4096, 2**14
"""The largest number of data that are completed in a period, and of numbers completed together."""
PART = 0.05
"""The part of the seconds of a training that the draws of a period may take."""


class Completions:
    r"""Training data whose missing entries are draws of the model that is trained: stochastic EM.

    A network that receives the mask of present entries learns the distribution of rows with these
    entries, which is that of all rows only where entries are missing completely at random.
    Completed rows have all entries, so that maps do not depend on which were missing. If entries
    are missing at random, that is, depending on present ones, then p(x_missing | x_present) is the
    same in all rows, and the fixed point of

        x_missing ~ p_θ(x_missing | x_present)  for all data,    θ by the bound on completed data

    maximizes the likelihood of the present entries. Entries that no datum has together keep the
    dependence with which the network began, or extrapolated.

    Draw anew several times in a training, at its beginning first. A model that begins as a Gaussian
    distribution, such as :meth:`~pyro_mdm.MixedDenoiser.from_gaussian`, begins with Gaussian
    completions. Where the data are far from Gaussian, set ``x`` to better ones before training.

    Args:
        x: training data, (N, *event_shape), NaN where an entry is missing.

    Attributes:
        x: the training data with completions, NaN where none was drawn yet.
        incomplete: indices of the data with missing entries, int64.

    Raises:
        TypeError: x that is no floating-point Tensor.

    Source: Celeux & Diebolt, "The SEM algorithm", 1985; Tanner & Wong, "The calculation of
    posterior distributions by data augmentation", 1987.

    Example:
        >>> from pyro_mdm import MDM_ELBO, VPSDE, DiffusionGuide, MixedDenoiser
        >>> from pyro_mdm.conditioning import RandomMaps
        >>> x = torch.randn(50, 2)
        >>> x[x[:, 0] > 0, 1] = torch.nan
        >>> score = MixedDenoiser.from_gaussian(x, [None, None], hidden=8, depth=1)
        >>> score.training_maps = RandomMaps()
        >>> model = DiffusionModel(VPSDE(min_log_snr=-9.0), score)
        >>> loss = MDM_ELBO()(model, DiffusionGuide(model.diffusion))
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        >>> completions = Completions(x)
        >>> for step in range(3):
        ...     completions.draw(model, seed=step)
        ...     optimizer.zero_grad()
        ...     loss(completions.x).backward()
        ...     optimizer.step()
        >>> bool(completions.x.isfinite().all())
        True
    """

    @checked_arguments
    def __init__(self, x: Tensor) -> None:
        check_data("x", x, missing=True, values=False)
        if x.dim() < 2:
            raise ValueError(f"x is {describe(x)}, expected data (N, *event_shape), NaN if missing")
        self.missing = x.isnan()
        self.x = x.clone()
        self.incomplete = self.missing.flatten(1).any(1).nonzero().squeeze(1)
        mean, variance = moments(x)
        spread = variance.sqrt().to(x.dtype)
        self._mean, self._reach = mean.to(x.dtype), REACH * spread.maximum(spread.nanmean())
        self._least = torch.where(self.missing, math.inf, x).amin(0)
        self._most = torch.where(self.missing, -math.inf, x).amax(0)

    @checked_arguments
    def draw(
        self,
        model: DiffusionModel,
        rows: Tensor | None = None,
        *,
        steps: int = STEPS,
        batch_size: int = 4096,
        seed: int = 0,
    ) -> None:
        """Draw missing entries anew, each datum's given those that are there.

        Args:
            model: the model that is trained, or its averaged weights; as for
                :func:`~pyro_mdm.impute`.
            rows: indices of the data to complete, int64; None: all.
            steps: number of network calls of a draw.
            batch_size: number of data drawn together.
            seed: seed of the noise; the caller's random state is kept.
        """
        chosen = self.incomplete if rows is None else rows[self.missing[rows].flatten(1).any(1)]
        if not len(chosen):
            return
        drawing = copy.copy(model)
        drawing.sampler = ExponentialIntegrator(steps)
        x = torch.where(self.missing[chosen], torch.nan, self.x[chosen])
        drawn = impute(drawing, x, num=1, batch_size=batch_size, seed=seed)[0]
        # a draw that is too far becomes the least or the largest present value, which a row has:
        # where there are levels, a rare one lies beyond many deviations
        near = (drawn - self._mean).abs() <= self._reach
        drawn = torch.where(near, drawn, drawn.clamp(self._least, self._most))
        drawn = torch.where(drawn.isfinite(), drawn, self._mean)
        self.x[chosen] = torch.where(self.missing[chosen], drawn, x)


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
