"""Data with levels: distributions over them, and the decoders that return these."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_mdm.diffusions.base import Diffusion
from pyro_mdm.levels import discrete
from pyro_mdm.likelihoods.base import DecoderDistribution, Likelihood, StateScore, read_state
from pyro_mdm.support.checks import checked_arguments

__all__ = [
    "DiscretizedGaussian",
    "LevelCategorical",
    "LevelDistribution",
    "LevelPosterior",
    "NetworkPosterior",
]


# -- distributions over levels ---------------------------------------------------------------------
class LevelDistribution(DecoderDistribution, ABC):
    """Independent dimensions, each with values on the levels v_1 < … < v_n."""

    levels: Tensor

    @property
    def support(self) -> constraints.Constraint:
        """The levels, in each dimension."""
        return constraints.independent(discrete.LevelSupport(self.levels), len(self.event_shape))

    @abstractmethod
    def log_probs(self) -> Tensor:
        """Log-probabilities, (*batch, *event_shape, n): levels last."""

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """E[x], (*batch, *event_shape)."""

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x), (*batch), nats, summed over dimensions.

        Raises:
            ValueError: x off the levels.
        """
        terms = self.log_prob_by_dimension(value)
        return terms.flatten(terms.dim() - len(self.event_shape)).sum(-1)

    def _log_prob_shape(self, value: Tensor) -> torch.Size:
        self.check_event(value)
        return torch.broadcast_shapes(self.batch_shape + self.event_shape, value.shape)


class LevelPosterior(LevelDistribution):
    r"""A posterior over levels p(x_j = v_k) ∝ exp ℓ_jk, given by its log-odds.

    Args:
        odds: log-odds (:class:`pyro_mdm.levels.discrete.LogOdds`) of data (*batch, *event_shape).
        dtype: dtype of samples and log-probabilities.
    """

    def __init__(
        self, odds: discrete.LogOdds, dtype: torch.dtype, validate_args: bool | None = None
    ) -> None:
        self.odds, self.levels, self.dtype = odds, odds.levels, dtype
        event = odds.log_prior.shape[:-1]
        batch = odds.centre.shape[: odds.centre.dim() - len(event)]
        super().__init__(batch, event, validate_args=validate_args)

    @cached_property
    def log_normalizer(self) -> Tensor:
        """log Σ_k exp ℓ_jk, (*batch, *event_shape)."""
        return discrete.log_normalizer(self.odds)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x), (*batch), nats, summed over dimensions before it is rounded."""
        return super().log_prob(value).to(self.dtype)

    def log_prob_by_dimension(self, value: Tensor) -> Tensor:
        """log p(x_j), like x, nats, in the log-odds' dtype.

        Raises:
            ValueError: x off the levels.
        """
        shape = self._log_prob_shape(value)
        index = discrete.level_index(value, self.levels)
        return (self.odds.at(index) - self.log_normalizer).expand(shape)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Samples on the levels, (*sample_shape, *batch, *event_shape)."""
        odds = self.odds.expand(self.batch_shape + self.event_shape)
        count = torch.Size(sample_shape).numel()

        def draw(log_odds: Tensor, delta: Tensor) -> tuple[Tensor, ...]:
            p = log_odds.softmax(-1).flatten(0, -2)
            k = torch.multinomial(p, count, replacement=True)
            return (k.reshape(*log_odds.shape[:-1], count),)

        (index,) = odds.compute(draw)
        if odds.window is not None:
            index = index + odds.window.first.unsqueeze(-1)
        x = self.levels.to(self.dtype)[index].movedim(-1, 0)
        return x.reshape(*sample_shape, *odds.centre.shape)

    def log_probs(self) -> Tensor:
        log_odds, _ = self.odds._replace(window=None).at_levels()
        log_probs = log_odds.log_softmax(-1).to(self.dtype)
        return log_probs.expand(*self.batch_shape, *self.event_shape, -1)

    @property
    def mean(self) -> Tensor:
        mean = self.odds.centre + discrete.posterior_mean(self.odds)
        return mean.to(self.dtype).expand(self.batch_shape + self.event_shape)


class LevelCategorical(LevelDistribution):
    """Independent dimensions with probabilities p(x_j = v_k), given by their logarithms.

    Args:
        levels: levels v, (n,).
        log_probs: log-probabilities, (*batch, *event_shape, n).
        event_dim: number of dimensions of a datum.
    """

    @checked_arguments
    def __init__(
        self, levels: Tensor, log_probs: Tensor, event_dim: int, validate_args: bool | None = None
    ) -> None:
        self.levels, self._log_probs = levels, log_probs
        batch_dim = log_probs.dim() - 1 - event_dim
        super().__init__(
            log_probs.shape[:batch_dim], log_probs.shape[batch_dim:-1], validate_args=validate_args
        )

    def expand(
        self, batch_shape: Sequence[int], _instance: LevelCategorical | None = None
    ) -> LevelCategorical:
        new = super().expand(batch_shape, _instance)
        tail = self._log_probs.shape[len(self.batch_shape) :]
        new._log_probs = self._log_probs.expand(new.batch_shape + tail)
        return new

    def log_prob_by_dimension(self, value: Tensor) -> Tensor:
        """log p(x_j), like x, nats.

        Raises:
            ValueError: x off the levels.
        """
        shape = self._log_prob_shape(value)
        index = discrete.level_index(value, self.levels).expand(shape).unsqueeze(-1)
        return self._log_probs.expand(*shape, -1).gather(-1, index).squeeze(-1)

    @torch.no_grad()
    @checked_arguments
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Samples on the levels, (*sample_shape, *batch, *event_shape)."""
        sample_shape = torch.Size(sample_shape)
        p = self._log_probs.exp().flatten(0, -2)
        k = torch.multinomial(p, sample_shape.numel(), replacement=True)
        values = self.levels.to(p.dtype)[k].mT
        return values.reshape(sample_shape + self.batch_shape + self.event_shape)

    def log_probs(self) -> Tensor:
        return self._log_probs

    @property
    def mean(self) -> Tensor:
        return self._log_probs.exp() @ self.levels.to(self._log_probs.dtype)


class DiscretizedGaussian(Likelihood):
    r"""A decoder for data with levels, ``p(x_j = v_k | y_ε) ∝ π_jk N(z_j; v_k, e^{-λ})``.

    It is a probability of levels, so that bits per dimension need no dequantization. It is computed
    in float64; at large λ over the few levels near z that change its last digit.

    Args:
        levels: number n of levels for ``linspace(-1, 1, n)``, or increasing values, (n,).
        log_prior: log-probabilities log π of the prior, (*event_shape, n), for the posterior of the
            discrete denoiser's baseline, to which that denoiser's bound belongs. None: a flat
            prior, as for the decoder of Kingma et al., "Variational Diffusion Models", 2021, eq. 8.

    Raises:
        ValueError: an invalid prior or levels; from ``log_prob``, x off the levels.
    """

    levels: Tensor
    log_prior: Tensor | None

    def __init__(
        self, levels: int | Sequence[float] | Tensor, log_prior: Tensor | None = None
    ) -> None:
        super().__init__()
        values = discrete.level_values(levels)
        if log_prior is not None:
            log_prior = discrete.check_log_prior(log_prior, len(values))
            values = values.to(log_prior.device)
        self.register_buffer("levels", values)
        self.register_buffer("log_prior", log_prior)

    def forward(
        self, diffusion: Diffusion, score: StateScore, y: Tensor, event_dim: int | None = None
    ) -> LevelPosterior:
        """p(x | y_ε), differentiable in y and the diffusion; no network call."""
        if event_dim is None and self.log_prior is not None:
            event_dim = self.log_prior.dim() - 1
        z, log_snr, batch_dim = read_state(diffusion, score, y, event_dim)
        event, n, prior = z.shape[batch_dim:], len(self.levels), self.log_prior
        if prior is None:
            prior = self.levels.new_full((1,), -math.log(n)).expand(*event, n)
        if prior.shape[:-1] != event:
            raise ValueError(
                f"y has event shape {tuple(event)}, expected that of log_prior, "
                f"{tuple(prior.shape[:-1])}"
            )
        odds = discrete.noise_odds(prior, self.levels, z, log_snr)
        lowest = diffusion.start_log_snr.item()  # on the host, as log_snr is not
        window = discrete.level_window(odds, lowest, self.log_prior)
        return LevelPosterior(odds._replace(window=window), y.dtype)


class NetworkPosterior(Likelihood):
    """The discrete denoiser's own posterior p_θ(x | z, λ) at ε. One network call.

    Raises:
        TypeError: a score that has no posterior over levels.
    """

    network_calls = 1

    def forward(
        self, diffusion: Diffusion, score: StateScore, y: Tensor, event_dim: int | None = None
    ) -> LevelDistribution:
        if not hasattr(score, "posterior"):
            raise TypeError(
                f"NetworkPosterior needs a score with a posterior over levels, got "
                f"{type(score).__name__}; use DiscreteDenoiser, or DiscretizedGaussian(levels)"
            )
        z, log_snr, batch_dim = read_state(diffusion, score, y, event_dim)
        return score.posterior(z.to(y.dtype), log_snr.expand(z.shape[:batch_dim]))
