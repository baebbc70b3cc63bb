r"""Estimates of log p(x) under a generative program, from draws of its noising path.

Each is in expectation a lower bound, for a model of its own, and differentiable in x and the model:

- ``elbo``: the evidence lower bound of the SDE, unbiased for it;
- ``importance``: log w of a path on a grid, w = p(x | y_ε) p_θ(path) / q(path | x), for the chain
  on that grid, whose density is exact;
- ``flow``: log w of y_ε, w = p_ode(y_ε) p(x | y_ε) / q(y_ε | x), for the probability-flow ODE.

The mean of S weights is unbiased for p(x), for ``flow`` if the divergence is exact, and its log is
a tighter bound (Burda, Grosse & Salakhutdinov, "Importance weighted autoencoders", ICLR 2016).
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

import pyro_mdm.randomness as randomness
from pyro_mdm.diffusions.base import Drawn, for_data
from pyro_mdm.diffusions.clocks import log_snr_times
from pyro_mdm.likelihoods.base import Likelihood
from pyro_mdm.paths.base import GenerativePath, NoisingLaw, noising_law, path_divergence
from pyro_mdm.paths.chain import GenerativeChain
from pyro_mdm.paths.flow import Solver, flow_log_prob
from pyro_mdm.scores.base import Score
from pyro_mdm.support.checks import Count, checked_arguments, settle
from pyro_mdm.support.modules import replace

__all__ = [
    "Estimator",
    "Generative",
    "Method",
    "TIMES",
    "chain_of",
    "flow_weight",
    "log_mean_weight",
    "path_weight",
]

Method = Literal["elbo", "importance", "flow"]
"""The name of an estimator of log p(x): the bound, importance weights, or the probability flow."""

TIMES = 65
"""The default number of times of a grid."""


class Generative(Protocol):
    """The parts of a generative program, such as those of a :class:`~pyro_mdm.DiffusionModel`."""

    diffusion: Any
    score_function: Score
    likelihood: Likelihood
    event_shape: torch.Size
    times: int | Tensor | None


class Estimator:
    """A stochastic lower bound on log p(x), as a function of x.

    Args:
        model: the generative program.
        method: name of the method, ``elbo``, ``importance`` or ``flow``, as in the module's text.
        draws: number of draws for each datum: of estimates whose mean is taken (``elbo``, and
            ``flow`` with an estimated divergence), or of weights, for the log of their mean.
        seed: seed of the draws of a batch, by position: they change with its order or size. None
            for fresh draws at every call.
        times: grid of ``importance``: a number N of times, or the times from ε to T, (N,); by
            default the times of a model that is a chain, else :data:`TIMES`.
        solver: solver of the ODE of ``flow``; adaptive by default.
        common: whether the draws of a seed are the same for every datum, so that the estimate is
            one function of x. Its errors are then common to all data.

    Raises:
        ValueError: an unknown method, ``importance`` of a diffusion without a closed form, another
            method of a chain on a grid, times of another method, numbers below 1.
    """

    @checked_arguments
    def __init__(
        self,
        model: Generative,
        method: Method = "elbo",
        draws: Count = 1,
        seed: int | None = None,
        times: int | Tensor | None = None,
        solver: Solver | None = None,
        common: bool = False,
    ) -> None:
        if method != "importance" and model.times is not None:
            raise ValueError(
                "model is a chain on a grid, expected a model in continuous time; leave out times, "
                "or use method='importance'"
            )
        if method != "importance" and times is not None:
            raise ValueError(
                f"times are of method 'importance', and method is {method!r}; leave them out"
            )
        if method != "flow" and solver is not None:
            raise ValueError(f"solver is of method 'flow', and method is {method!r}; leave it out")
        self.model, self.method, self.draws, self.seed = model, method, draws, seed
        self.common = common
        self.times = model.times if times is None else times
        self.solver = Solver() if solver is None else solver
        if method == "importance":
            chain_of(model, self.times)  # raises here if there is none

    def __call__(self, x: Tensor) -> Tensor:
        """The bound (n,), nats, of x (n, *event_shape), in x's dtype; all draws at once."""
        many = x.repeat(self.draws, *(1,) * (x.dim() - 1))
        drawing: AbstractContextManager[None] = nullcontext()
        if self.seed is not None and self.common:
            drawing = randomness.alike(self.draws, len(x), self.seed)
        elif self.seed is not None:
            drawing = randomness.piece(0, 1, self.seed)
        model, diffusion = self.model, self.model.diffusion.solved()
        if diffusion is not model.diffusion:
            model = cast(Generative, replace(cast(nn.Module, model), diffusion=diffusion))
        with drawing:
            estimates = self._one(model, many).expand(len(many)).reshape(self.draws, -1)
        value = log_mean_weight(estimates) if self.is_exact else estimates.mean(0)
        settle()
        return value.to(x.dtype)

    @property
    def is_exact(self) -> bool:
        """Whether the exponential of a draw is unbiased for a density, and not below it."""
        return self.method == "importance" or (self.method == "flow" and not self.solver.probes)

    def _one(self, model: Generative, x: Tensor) -> Tensor:
        if self.method == "importance":
            chain = chain_of(model, self.times)
            noising = noising_law(model.diffusion, x.double(), chain.times)
            return path_weight(model, chain, noising, x)
        if self.method == "flow":
            noising = noising_law(model.diffusion, x.double())
            return flow_weight(model, noising, x, self.solver)[0]
        return _lower_bound(model, x)


def _lower_bound(model: Generative, x: Tensor) -> Tensor:
    """The bound at a draw of the latent context, if there is one.

    It is at two draws, each the other's baseline, where the gradient is a score function's.
    """
    one = for_data(model.diffusion, x)
    if one.log_q is None or not torch.is_grad_enabled():
        return _bound(model, one, x)
    other, same = for_data(model.diffusion, x), randomness.repeatable(x.device)
    bounds = []
    for drawn in (one, other):
        with same():
            bounds.append(_bound(model, drawn, x))
    apart = (bounds[0] - bounds[1]).detach()
    log_qs = [d.log_q for d in (one, other) if d.log_q is not None]
    pulls = [log_q - log_q.detach() for log_q in log_qs]
    value: Tensor = (bounds[0] + bounds[1] + apart * (pulls[0] - pulls[1])) / 2
    return value


def _bound(model: Generative, drawn: Drawn, x: Tensor) -> Tensor:
    """One estimate of the bound of each datum, (n,) nats, at a draw of its context."""
    diffusion, score = drawn.diffusion, model.score_function
    score = score if drawn.context is None else score.given_context(drawn.context)
    noising = noising_law(diffusion, x)
    path = noising.rsample()
    kl = path_divergence(noising, GenerativePath(diffusion, score, model.event_shape), path)
    y = noising.states(path)[0]
    decoded: Tensor = model.likelihood(diffusion, score, y, x.dim() - 1).log_prob(x)
    return decoded - kl.prior - kl.diffusion - drawn.kl


def chain_of(model: Generative, times: int | Tensor | None = None) -> GenerativeChain:
    """The model as a chain on a grid: a number of times, the times from ε to T (N,), or by default
    :data:`TIMES` of them."""
    times = TIMES if times is None else times
    grid = log_snr_times(model.diffusion, times) if isinstance(times, int) else times
    return GenerativeChain(model.diffusion, model.score_function, model.event_shape, grid)


def path_weight(
    model: Generative,
    chain: GenerativeChain,
    noising: NoisingLaw,
    x: Tensor,
    path: Tensor | None = None,
) -> Tensor:
    """log w of one path on the chain's grid for each datum x (n, *event_shape), (n,) float64.

    Paths are (n, N, K, *event_shape) in float64, by default drawn from the noising distribution at
    the chain's times.
    """
    path = noising.rsample() if path is None else path
    decoded = _decoded(model, noising.states(path)[0], x)
    return chain.log_prob(path) - noising.log_prob(path) + decoded.double()


def flow_weight(
    model: Generative, noising: NoisingLaw, x: Tensor, solver: Solver, path: Tensor | None = None
) -> tuple[Tensor, int]:
    """log w of one y_ε for each datum x (n, *event_shape), (n,) float64, and the number of network
    calls, by the noising distribution in continuous time, in float64. Without a path, (n, 1, K,
    *event_shape), y_ε is drawn from it."""
    path = noising.rsample() if path is None else path
    (y,) = noising.states(path)
    flow = flow_log_prob(model.diffusion, model.score_function, y, solver)
    decoded = _decoded(model, y, x)
    return flow.log_prob + decoded.double() - noising.log_prob(path), flow.calls


def log_mean_weight(log_weights: Tensor) -> Tensor:
    """log (1/S) Σ_j w_j of log-weights (S, *n), (*n,), nats."""
    return log_weights.logsumexp(0) - math.log(len(log_weights))


def _decoded(model: Generative, y: Tensor, x: Tensor) -> Tensor:
    """log p(x | y_ε), (n,)."""
    decoder = model.likelihood(model.diffusion, model.score_function, y.to(x.dtype), x.dim() - 1)
    log_prob: Tensor = decoder.log_prob(x)
    return log_prob
