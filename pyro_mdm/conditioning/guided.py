"""Classifier-free guidance: samples pulled towards their context."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from pyro_mdm.diffusions.base import Cap, Diffusion, require
from pyro_mdm.paths.base import BoundScore
from pyro_mdm.scores.base import Coefficients
from pyro_mdm.support.checks import check_number, checked_arguments, describe
from pyro_mdm.support.settings import Recorded

__all__ = ["Guided"]


class Guided(Recorded):
    r"""Classifier-free guidance, by any sampler.

        x̂ = x̂(z) + w ( x̂(z, c) - x̂(z) ),    and likewise for scores

    w = 1 is the model of data given c, and w = 0 that of all data. With w > 1, samples are more
    typical of their context and vary less. They have no model with a known density, and so no
    bound.

    Sources: Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022; for the interval,
    Kynkäänniemi et al., "Applying Guidance in a Limited Interval", NeurIPS 2024.

    Args:
        sampler: function with the call of :mod:`pyro_mdm.samplers`. Each of its network calls
            becomes two.
        weight: weight w of the guidance.
        log_snr: interval of log SNR with guidance, its lower end first, for diffusions with a
            closed form; None: all.

    Raises:
        TypeError: an object that cannot be called as a sampler; on call, a score without a context.
        ValueError: a weight that is not finite, an interval that is empty; on call, a network that
            was never trained without its context.

    Example:
        >>> import torch
        >>> from pyro_mdm import VPSDE, Denoiser, DiffusionModel, condition
        >>> from pyro_mdm.conditioning import Guided, Labels
        >>> from pyro_mdm.networks import MLP
        >>> from pyro_mdm.samplers import ExponentialIntegrator
        >>> score = Denoiser.fit(MLP(3 + 4, out_features=3), torch.randn(100, 3))
        >>> sampler = Guided(ExponentialIntegrator(10), weight=2.0)
        >>> model = DiffusionModel(VPSDE(), score, sampler=sampler, context=Labels(4, dropout=0.1))
        >>> condition(model, context=2)(batch_size=5).shape
        torch.Size([5, 3])
    """

    alters = True
    """The draws are not those of the model, so that a chain on a grid is refused."""

    @checked_arguments
    def __init__(
        self,
        sampler: Callable[..., Tensor],
        weight: float,
        log_snr: Sequence[float] | None = None,
    ) -> None:
        if isinstance(sampler, type) or not callable(sampler):
            raise TypeError(
                f"sampler is {describe(sampler)}, expected one with its number of steps, such as "
                "ExponentialIntegrator(25)"
            )
        self.sampler, self.weight = sampler, check_number("weight", weight, "a number, e.g. 2.0")
        self.log_snr = None if log_snr is None else [float(end) for end in log_snr]
        if self.log_snr is not None and not (
            len(self.log_snr) == 2 and self.log_snr[0] < self.log_snr[1]
        ):
            raise ValueError(
                f"log_snr is {log_snr}, expected the two ends of an interval, the lower first, "
                "e.g. (-3.0, 5.0)"
            )

    @property
    def steps(self) -> int | None:
        """The sampler's number of steps."""
        return getattr(self.sampler, "steps", None)

    @property
    def calls(self) -> int:
        """The largest possible number of network calls of the last run."""
        return (1 if self.weight == 1 else 2) * int(getattr(self.sampler, "calls", 0))

    def check(self, diffusion: Diffusion, score: object = None) -> None:
        if self.log_snr is not None:
            require(diffusion, Cap.KERNELS, who="an interval of log SNR", fix="leave log_snr out")
        if hasattr(self.sampler, "check"):
            self.sampler.check(diffusion, score)

    def __call__(
        self,
        diffusion: Diffusion,
        score: object,
        shape: Sequence[int],
        generator: object = None,
        **options: Any,
    ) -> Tensor:
        """States at ε, (batch, K, *event_shape), as the sampler returns them.

        Args:
            diffusion: the noising diffusion that is reversed.
            score: ``bound_score`` of a model whose context is given.
            shape: shape of the states, (batch, K, *event_shape).
            generator: random generator on the diffusion's device; None: the global one.
            options: further options of the sampler's call.
        """
        if not isinstance(score, BoundScore):
            raise TypeError(
                f"score is {describe(score)}, expected that of a model whose context is given; "
                "pass condition(model, context=c).bound_score"
            )
        self.check(diffusion, score.parameterization)
        if self.weight != 1:
            score = _GuidedScore(score, self.weight, self.log_snr or [-math.inf, math.inf])
        return self.sampler(diffusion, score, shape, generator, **options)

    def __repr__(self) -> str:
        within = "" if self.log_snr is None else f", log_snr={self.log_snr}"
        return f"Guided({self.sampler}, {self.weight:g}{within})"


class _GuidedScore(BoundScore):
    """The score moved by the weight from the one without a context towards the one with it."""

    def __init__(self, score: BoundScore, weight: float, interval: list[float]) -> None:
        super().__init__(score.diffusion, score.parameterization)
        self.without = BoundScore(score.diffusion, score.parameterization.without_context())
        self.weight, self.interval = weight, interval

    def __call__(self, y: Tensor, s: Tensor) -> Tensor:
        return self._guided(super().__call__(y, s), s, lambda: self.without(y, s))

    def denoise(self, y: Tensor, s: Tensor, noise: float = 1.0) -> Tensor:
        value = super().denoise(y, s, noise)
        return self._guided(value, s, lambda: self.without.denoise(y, s, noise))

    def score_at(self, y: Tensor, at: Coefficients) -> Tensor:
        return self._guided(super().score_at(y, at), at, lambda: self.without.score_at(y, at))

    def denoise_at(self, y: Tensor, at: Coefficients, noise: float = 1.0) -> Tensor:
        value = super().denoise_at(y, at, noise)
        return self._guided(value, at, lambda: self.without.denoise_at(y, at, noise))

    def start_hat_at(self, y: Tensor, at: Coefficients) -> Tensor:
        value = super().start_hat_at(y, at)
        return self._guided(value, at, lambda: self.without.start_hat_at(y, at))

    def _guided(
        self, given: Tensor, at: Tensor | Coefficients, ask: Callable[[], Tensor]
    ) -> Tensor:
        """The guided value, from the one with the context and a function of the other."""
        low, high = self.interval
        if math.isfinite(low) or math.isfinite(high):
            level = at.log_snr if isinstance(at, Coefficients) else self.diffusion.log_snr(at)
            if not low <= float(level.flatten()[0]) <= high:  # one for all data
                return given
        free = ask()
        return free + self.weight * (given - free)
