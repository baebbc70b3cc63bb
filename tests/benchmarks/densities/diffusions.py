"""Guides by diffusions, as methods: chains of the library that are fitted within a time.

    annealing_1, annealing_2, annealing_3
                 K = 1 (VPSDE), 2 (CLD) and 3 (HOLD): a Gaussian of all latents by a tenth of the
                 time, then 16 steps from it, by reparameterized gradients of the bound
    shaped_1     the Gaussian's scales depend on earlier latents and its tails are learned, by three
                 tenths of the time; a chain with a lower bound than this start is dropped
    annealing_learned
                 Q and D of two variables are learned too
    annealing_variance
                 K = 1, by the variance of log weights instead, whose gradient is the log-derivative
                 one with a control variate
    annealing_1_8, annealing_1_32, annealing_1_64, annealing_2_64, …
                 so many steps
    reversal_1, reversal_2
                 a denoiser of particles: a tempered run of a quarter of the time gives the marginal
                 distributions, the Gaussian and data, of which the forward bound is learned

Rates of gradient descent fall as those of the other methods, from 0.005.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_mdm.automatic.chain import Annealed, Chain, Reversed
from pyro_mdm.automatic.chain_guide import COMPARED
from pyro_mdm.automatic.marginals import Marginals
from pyro_mdm.automatic.ratio import Ratio
from pyro_mdm.automatic.shape import Shape
from pyro_mdm.diffusions import CLD, HOLD, VPSDE, LearnedDiffusion, LinearDiffusion
from tests.benchmarks.densities.base import Draws, Fitted, Method, Target
from tests.benchmarks.densities.baselines import (
    AT_A_TIME,
    Clock,
    descend,
    prior_gaussian,
    tempered_within,
)

__all__ = ["METHODS"]

PATHS = 128
"""Of an update."""
RATE = 5e-3
FITTING = 0.1
SHAPING = 0.3
TEMPERING = 0.25
"""Parts of the time."""
RATE_OF_SHAPES = 0.02
WORST = 50.0
"""Nats below the median beyond which log weights don't count in an update."""


def diffusion(name: int | str) -> LinearDiffusion:
    """Of K variables, or a learned one of two, whose Σ_∞ is I."""
    makers = {1: VPSDE, 2: CLD, 3: HOLD, "learned": LearnedDiffusion}
    return makers[name]()


class Units(NamedTuple):
    """x = loc + scale_tril u, of a Gaussian."""

    loc: Tensor
    scale_tril: Tensor


def fitted_gaussian(
    target: Target, seed: int, clock: Clock, shape: Shape | None = None, rate: float = 0.03
) -> Units:
    """The Gaussian of the highest bound, from the prior's center and a third of its spread; of a
    shape, which is trained with it."""
    start = prior_gaussian(target, seed)
    mean = start.loc.float().clone().requires_grad_()
    log_scale = (start.scale.float() / 3).log().requires_grad_()
    lower = torch.zeros(target.dim, target.dim, requires_grad=True)

    def units() -> Units:
        one = torch.eye(target.dim)
        return Units(mean, log_scale.exp()[:, None] * (lower.tril(-1) + one))

    def loss() -> Tensor:
        own = units()
        u, more = torch.randn(64, target.dim), torch.zeros(())
        if shape is not None:
            w = shape(u)
            u, more = w, shape.log_abs_det_jacobian(u, w).mean()
        x = own.loc + u @ own.scale_tril.mT
        return -(target.log_density(x).mean() + log_scale.sum() + more)

    shaped = [] if shape is None else shape.parameters()
    descend([mean, log_scale, lower, *shaped], loss, rate, clock)
    return Units(*(part.detach() for part in units()))


def gaussian_of(x: Tensor) -> Units:
    """The Gaussian of draws."""
    covariance = x.T.cov() + 1e-4 * torch.diag(x.var(0)) + 1e-12 * torch.eye(x.shape[1])
    return Units(x.mean(0), torch.linalg.cholesky(covariance))


def weighed(chain: Chain, h: Ratio, n: int, **options: bool) -> tuple[Tensor, Tensor]:
    """Ends x (n, dim) of paths, and their log weights (n,)."""
    path = chain.paths(h, n, **options)
    volume = h.scale_tril.diagonal().log().sum()
    constant = volume + chain.dim / 2 * math.log(2 * math.pi)
    return h.place(path.u), h(path.u) - path.cost + constant


def drawn(chain: Chain, h: Ratio, n: int, seed: int) -> Draws:
    torch.manual_seed(seed)
    ends, weights = [], []
    with torch.no_grad():
        for size in (min(AT_A_TIME, n - done) for done in range(0, n, AT_A_TIME)):
            x, log_weights = weighed(chain, h, size)
            ends.append(x)
            weights.append(log_weights.double().nan_to_num(nan=-math.inf, posinf=-math.inf))
    return Draws(torch.cat(ends), torch.cat(weights))


def annealing(
    target: Target,
    seconds: float,
    seed: int,
    *,
    K: int | str = 1,
    steps: int = 16,
    through: bool = True,
) -> Fitted:
    clock = Clock(seconds)
    pyro.set_rng_seed(seed)
    h = Ratio(target.log_density, *fitted_gaussian(target, seed, Clock(FITTING * seconds)))
    chain = Annealed(target.dim, diffusion(K), steps)

    def loss() -> Tensor:
        _, log_w = weighed(chain, h, PATHS, through=through)
        log_w = log_w.clamp_min(log_w.detach().nanmedian() - WORST)
        return -log_w.mean() if through else log_w.var() / 2

    updates = descend(chain.parameters(), loss, RATE, clock)
    return Fitted(functools.partial(drawn, chain, h), updates, clock.spent)


def shaped(target: Target, seconds: float, seed: int, *, steps: int = 16) -> Fitted:
    clock = Clock(seconds)
    pyro.set_rng_seed(seed)
    shape = Shape(target.dim)
    units = fitted_gaussian(target, seed, Clock(SHAPING * seconds), shape, RATE_OF_SHAPES)
    h = Ratio(target.log_density, *units, shape.requires_grad_(False))
    chain = Annealed(target.dim, diffusion(1), steps)

    def loss(n: int = PATHS) -> Tensor:
        _, log_w = weighed(chain, h, n)
        return -log_w.clamp_min(log_w.detach().nanmedian() - WORST).mean()

    updates = descend(chain.parameters(), loss, RATE, clock)
    still = Annealed(target.dim, diffusion(1), 1)
    still.rest()
    with torch.no_grad():
        bounds = [float(weighed(made, h, COMPARED)[1].mean()) for made in (chain, still)]
    kept = chain if bounds[0] >= bounds[1] else still
    return Fitted(functools.partial(drawn, kept, h), updates, clock.spent)


def reversal(target: Target, seconds: float, seed: int, *, K: int = 1, steps: int = 16) -> Fitted:
    clock = Clock(seconds)
    pyro.set_rng_seed(seed)
    particles = tempered_within(target, seed, Clock(TEMPERING * seconds)).x.float()
    marginals = Marginals(target.dim)
    marginals.fit(particles)
    marginals.requires_grad_(False)
    h = Ratio(target.log_density, *gaussian_of(marginals.inv(particles)), marginals=marginals)
    data = h.inverse(particles)
    chain = Reversed(target.dim, diffusion(K), steps)

    def loss() -> Tensor:
        own = data[torch.randint(len(data), (PATHS,))]
        return -chain.noising_cost(h, own).mean()

    updates = descend(chain.parameters(), loss, RATE, clock)
    return Fitted(functools.partial(drawn, chain, h), updates, clock.spent)


METHODS: dict[str, Method] = {
    **{f"annealing_{K}": functools.partial(annealing, K=K) for K in (1, 2, 3, "learned")},
    "annealing_variance": functools.partial(annealing, through=False),
    **{
        f"annealing_{K}_{steps}": functools.partial(annealing, K=K, steps=steps)
        for K in (1, 2)
        for steps in (8, 32, 64)
    },
    "shaped_1": shaped,
    "reversal_1": reversal,
    "reversal_2": functools.partial(reversal, K=2),
}
