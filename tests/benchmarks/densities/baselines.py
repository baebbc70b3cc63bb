"""What a Pyro user can import for a posterior.

Settings are the same for all targets. Rates of gradient descent fall by a cosine of the fraction of
the time that is spent; gradients are clipped to a norm of 10, and steps that are not finite are
left out.

    auto_multivariate_normal
                 Pyro's guide by SVI with Trace_ELBO, from the prior's median and a scale of 0.1
    zuko_flow    a neural spline flow as a guide: three autoregressive transforms that are quick to
                 draw from, and an affine one, from the prior's center and spread
    nuts         Pyro's NUTS: four chains, one after the other, from draws of the prior
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterable

import pyro
import torch
import zuko
from pyro import poutine
from pyro.infer import NUTS, Trace_ELBO
from pyro.infer.autoguide import (
    AutoMultivariateNormal,
    init_to_median,
    init_to_sample,
)
from torch import Tensor
from torch.distributions import Distribution, Normal, biject_to

from tests.benchmarks.densities.base import Draws, Fitted, Method, Target

Distribution.set_default_validate_args(pyro.distributions.is_validation_enabled())
"""zuko turns the checks of all distributions off."""

__all__ = [
    "METHODS",
    "Clock",
    "descend",
    "prior_draws",
    "weigh",
]

OF_GAUSSIANS, OF_FLOWS = 64, 256
"""Draws of a guide for an update."""
CLIP = 10.0
Sample = Callable[[int], tuple[Tensor, Tensor]]
"""Of a number: x (n, dim) and their log densities (n,)."""
AT_A_TIME = 1_000
"""Draws that are weighed together."""
CHAINS = 4
WARMUP = 0.4
"""Of a chain's time; of 20 to 1,000 moves."""
PILOT = 0.08
"""Of the time, for what a move of NUTS costs."""


class Clock:
    """Processor time since it was made, of an amount of seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self._began = seconds, time.process_time()

    @property
    def spent(self) -> float:
        return time.process_time() - self._began

    @property
    def left(self) -> float:
        return self.seconds - self.spent

    @property
    def fraction(self) -> float:
        """Of the time that is spent, 1 afterwards."""
        return min(self.spent / self.seconds, 1.0)


# -- guides ----------------------------------------------------------------------------------------


def descend(
    parameters: Iterable[Tensor], loss: Callable[[], Tensor], rate: float, clock: Clock
) -> int:
    """Adam until the time is spent; the number of its steps."""
    own = list(parameters)
    optimizer = torch.optim.Adam(own, rate)
    updates = 0
    while clock.left > 0:
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 + math.cos(math.pi * clock.fraction)) / 2
        optimizer.zero_grad()
        loss().backward()
        if torch.nn.utils.clip_grad_norm_(own, CLIP).isfinite():
            optimizer.step()
        updates += 1
    return updates


def weigh(target: Target, sample: Sample, n: int, seed: int, together: int = AT_A_TIME) -> Draws:
    """Draws, and their log weights, so many together."""
    pyro.set_rng_seed(seed)
    made = []
    with torch.no_grad():
        for size in (min(together, n - done) for done in range(0, n, together)):
            x, log_q = sample(size)
            log_weights = target.log_density(x).double() - log_q.double()
            made.append((x, log_weights.nan_to_num(nan=-math.inf, neginf=-math.inf)))
    x, log_weights = map(torch.cat, zip(*made, strict=True))
    return Draws(x, log_weights)


def auto_multivariate_normal(target: Target, seconds: float, seed: int) -> Fitted:
    clock = Clock(seconds)
    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    guide = AutoMultivariateNormal(target.program, init_loc_fn=init_to_median, init_scale=0.1)
    guide()  # which makes its parameters
    elbo = Trace_ELBO(num_particles=OF_GAUSSIANS, vectorize_particles=True)
    loss = functools.partial(elbo.differentiable_loss, target.program, guide)
    updates = descend(guide.parameters(), loss, 0.02, clock)

    def sample(n: int) -> tuple[Tensor, Tensor]:
        law = guide.get_posterior()
        x = law.rsample((n,))
        return x, law.log_prob(x)

    return Fitted(functools.partial(weigh, target, sample), updates, clock.spent)


def prior_draws(target: Target, n: int, seed: int) -> Tensor:
    """Draws (n, dim) of the latents of its program from their prior, unconstrained."""
    pyro.set_rng_seed(seed)
    rows = []
    for _ in range(n):
        sites = poutine.trace(target.program).get_trace().iter_stochastic_nodes()
        by_site = [biject_to(site["fn"].support).inv(site["value"]) for _, site in sites]
        rows.append(torch.cat([value.detach().flatten() for value in by_site]))
    return torch.stack(rows)


def prior_gaussian(target: Target, seed: int) -> Normal:
    """The median of 200 draws of the prior, and the spread of its middle 90%, as a Gaussian's."""
    x = prior_draws(target, 200, seed)
    low, middle, high = x.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=x.dtype), 0)
    return Normal(middle, ((high - low) / 3.29).clamp_min(1e-3))


def zuko_flow(target: Target, seconds: float, seed: int) -> Fitted:
    clock = Clock(seconds)
    start = prior_gaussian(target, seed)
    pyro.set_rng_seed(seed)
    flow = zuko.flows.NSF(target.dim, transforms=3, hidden_features=(64, 64)).to(start.loc.dtype)
    flow = zuko.flows.Flow(flow.transform.inv, flow.base)  # which draws in one pass
    center, log_scale = (torch.zeros_like(start.loc).requires_grad_() for _ in range(2))
    below = torch.zeros(target.dim, target.dim, dtype=start.loc.dtype, requires_grad=True)

    def sample(n: int) -> tuple[Tensor, Tensor]:
        u, log_q = flow().rsample_and_log_prob((n,))
        u = center + (u + u @ below.tril(-1).mT) * log_scale.exp()
        return start.loc + start.scale * u, log_q - (log_scale + start.scale.log()).sum()

    def loss() -> Tensor:
        x, log_q = sample(OF_FLOWS)
        return (log_q - target.log_density(x)).mean()

    parameters = [*flow.parameters(), center, log_scale, below]
    updates = descend(parameters, loss, 3e-3, clock)
    return Fitted(functools.partial(weigh, target, sample), updates, clock.spent)


# -- chains ----------------------------------------------------------------------------------------


def _chain(target: Target, warmup: int, clock: Clock) -> tuple[Tensor, list[float]]:
    """Draws of a chain after its warm-up until the time is spent, and what each move took.

    A chain that doesn't leave its warm-up in time keeps the later half.
    """
    kernel = NUTS(target.program, init_strategy=init_to_sample)
    kernel.setup(warmup)
    values = kernel.initial_params
    rows: list[Tensor] = []
    took = [clock.spent]
    while clock.left > 0 or not rows:
        values = kernel.sample(values)
        rows.append(torch.cat([value.detach().flatten() for value in values.values()]))
        took.append(clock.spent)
    kept = rows[warmup:] if len(rows) > warmup else rows[len(rows) // 2 :]
    return torch.stack(kept), [after - before for before, after in itertools.pairwise(took)]


def nuts(target: Target, seconds: float, seed: int) -> Fitted:
    clock = Clock(seconds)
    pyro.set_rng_seed(seed)
    _, took = _chain(target, 1_000, Clock(PILOT * seconds))
    chains, moves = [], len(took)
    for k in range(CHAINS):
        later = took[len(took) // 2 :]  # of the chain before
        own = clock.left / (CHAINS - k)
        warmup = min(max(int(WARMUP * own * len(later) / sum(later)), 20), 1_000)
        rows, took = _chain(target, warmup, Clock(own))
        chains.append(rows)
        moves += len(took)

    def draw(n: int, seed: int) -> Draws:
        """As many of each chain, evenly spaced."""
        sizes = [n // CHAINS + (k < n % CHAINS) for k in range(CHAINS)]
        spaced = [
            rows[torch.linspace(0, len(rows) - 1, size).round().long()]
            for rows, size in zip(chains, sizes, strict=True)
        ]
        return Draws(torch.cat(spaced), None)

    return Fitted(draw, moves, clock.spent)


METHODS: dict[str, Method] = {
    "auto_multivariate_normal": auto_multivariate_normal,
    "zuko_flow": zuko_flow,
    "nuts": nuts,
}
