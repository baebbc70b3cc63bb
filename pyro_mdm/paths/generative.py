"""The generative path: the reverse SDE from the prior at T, seen at the start time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_mdm.diffusions.base import Diffusion
from pyro_mdm.diffusions.simulation import Simulation
from pyro_mdm.paths.base import PathLaw, Self
from pyro_mdm.paths.density import density_bound
from pyro_mdm.scores.ahead import ScoreAhead, score_ahead
from pyro_mdm.scores.base import Score
from pyro_mdm.support.checks import describe
from pyro_mdm.support.doors import checked_arguments
from pyro_mdm.support.inference import Inference, inference_in_use

__all__ = ["BoundScore", "GenerativeLaw", "GenerativePath"]

Sampler = Callable[..., Tensor]


class GenerativeLaw(PathLaw):
    """The base class of distributions of generative paths, which have a score and no x."""

    has_rsample = False
    score: Score
    times: Any = None
    """The grid of a chain, (N,); None for a path in continuous time, seen at ε alone."""

    def expand(self: Self, batch_shape: Sequence[int], _instance: object = None) -> Self:
        return self.expanded(batch_shape, _instance)


class GenerativePath(GenerativeLaw):
    """The distribution of the reverse SDE run from the prior π at T to ε, seen at ε.

    ``sample`` simulates the SDE. ``log_prob`` is a *stochastic lower bound* on log p(y_ε),
    :func:`~pyro_mdm.paths.density_bound`. Its exponential estimates no density: importance weights
    need :class:`GenerativeChain`, and Pyro's inference that takes them is refused.

    Args:
        diffusion: the noising diffusion that is reversed.
        score: the score, a :class:`~pyro_mdm.scores.Score`.
        event_shape: shape of a datum.
        sampler: integrator of the SDE (:mod:`pyro_mdm.samplers`); None: no samples.
        batch_shape: batch shape of the distribution.

    Example:
        >>> from pyro_mdm import CLD, Denoiser
        >>> from pyro_mdm.networks import MLP
        >>> from pyro_mdm.samplers import ExponentialIntegrator
        >>> score = Denoiser.fit(MLP(2), torch.randn(100, 2))
        >>> path = GenerativePath(CLD(), score, (2,), sampler=ExponentialIntegrator(10))
        >>> path.sample((3,)).shape  # 3 states at ε, K = 2 variables of 2 dimensions
        torch.Size([3, 1, 2, 2])
    """

    @checked_arguments
    def __init__(
        self,
        diffusion: Diffusion,
        score: Score,
        event_shape: Sequence[int],
        *,
        sampler: Sampler | None = None,
        batch_shape: Sequence[int] = (),
        validate_args: bool | None = None,
    ) -> None:
        self.score = score
        self.sampler = sampler
        super().__init__(
            diffusion, torch.Size(batch_shape), torch.Size(event_shape), 1, validate_args
        )

    @checked_arguments
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        if self.sampler is None:
            raise ValueError("this GenerativePath has no sampler; pass sampler=EulerMaruyama(500)")
        lead = (*sample_shape, *self.batch_shape)
        shape = (math.prod(lead), *self.event_shape[1:])
        with torch.no_grad():
            y: Any = self.sampler(self.diffusion, BoundScore(self.diffusion, self.score), shape)
        if not isinstance(y, Tensor) or y.shape != shape:
            what = f"of shape {tuple(y.shape)}" if isinstance(y, Tensor) else describe(y)
            raise TypeError(
                f"the sampler {describe(self.sampler)} returned {what}, expected y_ε of shape "
                f"{shape}, (n, K, *event_shape)"
            )
        return y.reshape(*lead, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """A stochastic lower bound on log p_θ(y_ε), (*batch), nats.

        Args:
            value: states at ε, (*batch, 1, K, *event_shape).

        Raises:
            ValueError: Pyro's inference would exponentiate the bound, or walk on it.
        """
        if (use := inference_in_use()) is not None:
            self.check_density(use)
        if self._validate_args:
            self._validate_sample(value)
        (state,) = self.states(value)
        lead = state.shape[: state.dim() - self.x_dim - 1]
        y0 = state.reshape(-1, *self.event_shape[1:])
        return density_bound(self.diffusion, self.score, y0).reshape(lead)

    def check_density(self, use: Inference) -> None:
        """Raises ValueError for an inference that takes exponentials of a density."""
        if use.weighs:
            raise ValueError(
                "log_prob of a path in continuous time is a lower bound, with other noise at every "
                f"call, and {use.name} takes it for a log density; give both programs a grid, as "
                "its paths have one, DiffusionModel(…, times=65) and DiffusionGuide(diffusion, "
                "times=65), or use SVI with MDM_ELBO or Trace_ELBO"
            )

    def score_at(self, y: Tensor, s: Tensor) -> Tensor:
        """s_θ(y, s), like y (*batch, K, *event_shape), for s (*batch)."""
        return self.score.score(self.diffusion, y, s)


class BoundScore:
    """A score and its diffusion as the callable ``score(y, s)``, with ``denoise(y, s)``.

    States may have any dtype (samplers hold them in float64): the network receives its own, and the
    result is cast back.

    Args:
        diffusion: the noising diffusion.
        score: the score.
    """

    def __init__(self, diffusion: Diffusion, score: Score) -> None:
        self.diffusion: Any = diffusion
        self.parameterization = score
        dtypes = [p.dtype for p in score.parameters() if p.is_floating_point()]
        self.dtype = dtypes[0] if dtypes else torch.get_default_dtype()

    def __call__(self, y: Tensor, s: Tensor) -> Tensor:
        """s_θ(y, s), like y."""
        return self.parameterization.score(self.diffusion, y.to(self.dtype), s).to(y.dtype)

    def with_divergence(
        self, y: Tensor, s: Tensor, how: Simulation, *, create_graph: bool = True
    ) -> tuple[Tensor, Tensor]:
        """s_θ, like y, and ∇·(g² s_θ), (batch,), as :meth:`Score.with_divergence`."""
        theta, of_score = self.parameterization.with_divergence(
            self.diffusion, y.to(self.dtype), s, how, create_graph=create_graph
        )
        return theta.to(y.dtype), of_score.to(y.dtype)

    def denoise(self, y: Tensor, s: Tensor, noise: float = 1.0) -> Tensor:
        """x̂, (*batch, *event_shape), in y's dtype, for the backward process with noise η g².

        It is the same for every η, unless the drift of noising paths sees the data.
        """
        return self.parameterization.aim(self.diffusion, y.to(self.dtype), s, noise).to(y.dtype)

    def ahead(self, times: Tensor, shape: Sequence[int]) -> ScoreAhead[Any] | None:
        """The score at times (N,) for states of this shape, with what can be computed ahead.

        None where nothing can, see :func:`~pyro_mdm.scores.ahead.score_ahead`.
        """
        if type(self) is not BoundScore:  # a subclass is asked by its own functions
            return None
        return score_ahead(self.parameterization, self.diffusion, times, shape, self.dtype)

    def __getattr__(self, name: str) -> Any:
        """The function ``start_hat`` of scores that estimate the mean of v_0 too."""
        if name != "start_hat":
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        estimate: Any = self.parameterization.start_hat  # of some scores alone

        def start_hat(y: Tensor, s: Tensor) -> Tensor:
            """ŵ, like y."""
            hat: Tensor = estimate(self.diffusion, y.to(self.dtype), s).to(y.dtype)
            return hat

        return start_hat
