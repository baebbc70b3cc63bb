"""Training data completed by the model itself, for entries that are missing at random."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from pyro_mdm.conditioning.imputation import impute
from pyro_mdm.model import DiffusionModel
from pyro_mdm.samplers import ExponentialIntegrator
from pyro_mdm.scores.denoiser import moments
from pyro_mdm.support.checks import check_data, checked_arguments, describe

__all__ = ["Completions"]

STEPS = 12
"""The number of steps of a draw, whose error the next draws forget."""
REACH = 10.0
"""The largest distance of a draw from its dimension's mean, in standard deviations of that or of an
average dimension, where it is beyond all present values: a model that diverges for a while must not
learn from its draws."""


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

    @checked_arguments
    def fill(self, x: Tensor, rows: Tensor) -> Tensor:
        """Data with completions in place of NaN, (n, *event_shape).

        Args:
            x: data, (n, *event_shape), NaN where an entry is missing.
            rows: index of each datum among the training data, (n,) int64.
        """
        if x.shape != (*rows.shape, *self.x.shape[1:]) or rows.dim() != 1:
            raise ValueError(
                f"x has shape {tuple(x.shape)} and rows {tuple(rows.shape)}, expected (n, "
                f"{', '.join(map(str, self.x.shape[1:]))}) and (n,)"
            )
        return torch.where(x.isnan(), self.x[rows.long()].to(x), x)
