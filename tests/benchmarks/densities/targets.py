"""Targets of the study of automatic guides: Pyro programs, and what is known of their posteriors.

    target("funnel").log_density(x)

Some are densities of the literature on samplers, which a program has as a factor; others are
programs as somebody would write them. None needs a file or the network.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Transform, biject_to

from tests.benchmarks.densities.base import Density, Modes, Target

__all__ = ["NAMES", "density_of", "sites_of", "target"]

Program = Callable[[], None]


# -- programs as densities -------------------------------------------------------------------------


class Site(NamedTuple):
    """A latent of a program: to its support, and its unconstrained shape."""

    transform: Transform
    shape: torch.Size


def sites_of(program: Program) -> dict[str, Site]:
    """The latents of a program, in its order."""
    with torch.random.fork_rng():
        trace = poutine.trace(program).get_trace()
    sites = {}
    for name in trace.stochastic_nodes:
        transform = biject_to(trace.nodes[name]["fn"].support)
        sites[name] = Site(transform, transform.inv(trace.nodes[name]["value"]).shape)
    return sites


def density_of(program: Program) -> Density:
    """The log density of a program's unconstrained latents, of all rows in one run of it.

    The program has to broadcast over a plate at its left, and has no plates of its own.
    """
    sites = sites_of(program)
    sizes = [site.shape.numel() for site in sites.values()]

    def log_density(x: Tensor) -> Tensor:
        values, terms = {}, []
        for (name, site), own in zip(sites.items(), x.split(sizes, 1), strict=True):
            u = own.reshape(-1, *site.shape)
            values[name] = site.transform(u)
            terms.append(site.transform.log_abs_det_jacobian(u, values[name]))
        with pyro.validation_enabled(False), pyro.plate("draws", len(x), dim=-1):
            trace = poutine.trace(poutine.condition(program, values)).get_trace()
        terms += [
            node["fn"].log_prob(node["value"])
            for node in trace.nodes.values()
            if node["type"] == "sample" and not isinstance(node["fn"], pyro.plate)
        ]
        return torch.stack([term.reshape(len(x), -1).sum(1) for term in terms]).sum(0)

    return log_density


def of_program(name: str, program: Program, **known: object) -> Target:
    """A target that is a program."""
    dim = sum(site.shape.numel() for site in sites_of(program).values())
    return Target(name, dim, program, density_of(program), **known)


def of_density(name: str, log_density: Density, dim: int, scale: float, **known: object) -> Target:
    """A target that is a log density of (..., dim), as a factor beside N(0, scale²)."""

    def program() -> None:
        start = dist.Normal(0.0, scale).expand([dim]).to_event(1)
        x = pyro.sample("x", start)
        pyro.factor("density", log_density(x) - start.log_prob(x))

    return Target(name, dim, program, log_density, **known)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- densities of the literature -------------------------------------------------------------------


def many_well() -> Target:
    """Five double wells, of two modes each, times five standard normals (Noé et al., *Boltzmann
    generators*, 2019; Midgley et al., *Flow annealed importance sampling bootstrap*, 2023)."""
    wells = 5

    def log_density(x: Tensor) -> Tensor:
        deep, flat = x[..., ::2], x[..., 1::2]
        return (-(deep**4) + 6 * deep**2 + deep / 2 - flat**2 / 2).sum(-1)

    grid = torch.linspace(-4, 4, 40_001, dtype=torch.float64)
    density = (-(grid**4) + 6 * grid**2 + grid / 2).exp()
    cells = torch.nn.functional.pad(torch.cumulative_trapezoid(density, grid), (1, 0))
    cdf = (cells / cells[-1]).numpy()

    def exact(n: int, seed: int) -> Tensor:
        x = torch.randn(n, 2 * wells, generator=seeded(seed))
        u = torch.rand(n, wells, generator=seeded(seed + 1), dtype=torch.float64)
        x[:, ::2] = torch.from_numpy(np.interp(u.numpy(), cdf, grid.numpy())).float()
        return x

    bits = 2 ** torch.arange(wells)
    right = 1 - float(np.interp(0.0, grid.numpy(), cdf))
    signs = (torch.arange(2**wells)[:, None] // bits) % 2
    return of_density(
        "many_well",
        log_density,
        2 * wells,
        scale=1.0,
        log_z=wells * (math.log(float(cells[-1])) + math.log(2 * math.pi) / 2),
        exact=exact,
        modes=Modes(
            of=lambda x: ((x[:, ::2] > 0) * bits).sum(1),
            probabilities=torch.where(signs == 1, right, 1 - right).prod(1),
        ),
    )


def funnel() -> Target:
    """Nine normals whose scale is that of a log scale (Neal, *Slice sampling*, 2003)."""

    def program() -> None:
        v = pyro.sample("v", dist.Normal(0.0, 3.0))
        scale = (v / 2).exp().unsqueeze(-1)
        pyro.sample("x", dist.Normal(0.0, scale).expand([*v.shape, 9]).to_event(1))

    def exact(n: int, seed: int) -> Tensor:
        z = torch.randn(n, 10, generator=seeded(seed))
        v = 3 * z[:, :1]
        return torch.cat([v, (v / 2).exp() * z[:, 1:]], 1)

    return of_program("funnel", program, log_z=0.0, exact=exact)


def mixture40() -> Target:
    """Forty standard normals in the plane, of equal weights, centred anywhere in [-40, 40]² at
    least six from each other (after Midgley et al., 2023)."""
    count, generator = 40, seeded(0)
    means = torch.empty(0, 2)
    while len(means) < count:
        new = 80 * torch.rand(1, 2, generator=generator) - 40
        if (torch.cdist(new, means) >= 6).all():
            means = torch.cat([means, new])

    def log_density(x: Tensor) -> Tensor:
        squares = (x.unsqueeze(-2) - means).square().sum(-1)
        return (-squares / 2).logsumexp(-1) - math.log(2 * math.pi * count)

    def exact(n: int, seed: int) -> Tensor:
        generator = seeded(seed)
        own = torch.randint(count, (n,), generator=generator)
        return means[own] + torch.randn(n, 2, generator=generator)

    modes = Modes(
        of=lambda x: torch.cdist(x, means).argmin(1), probabilities=torch.full((count,), 1 / count)
    )
    return of_density("mixture40", log_density, 2, 20.0, log_z=0.0, exact=exact, modes=modes)


# -- programs --------------------------------------------------------------------------------------


def logistic(name: str, features: np.ndarray, labels: np.ndarray) -> Target:
    """A logistic regression on standardized columns and an intercept, each of prior N(0, 1)."""
    columns = (features - features.mean(0)) / features.std(0)
    x = torch.from_numpy(np.column_stack([np.ones(len(columns)), columns])).float()
    y = torch.from_numpy(labels).float()

    def program() -> None:
        weights = pyro.sample("weights", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
        pyro.sample("labels", dist.Bernoulli(logits=weights @ x.T).to_event(1), obs=y)

    return of_program(name, program)


def logistic_breast_cancer() -> Target:
    """Malignant or benign, of 569 rows by 30 columns."""
    from sklearn.datasets import load_breast_cancer

    return logistic("logistic_breast_cancer", *load_breast_cancer(return_X_y=True))


def logistic_digits() -> Target:
    """Handwritten 3 or 8, of 357 pictures by the pixels that are not constant."""
    from sklearn.datasets import load_digits

    pixels, digit = load_digits(return_X_y=True)
    pixels, digit = pixels[(digit == 3) | (digit == 8)], digit[(digit == 3) | (digit == 8)]
    return logistic("logistic_digits", pixels[:, pixels.std(0) > 0], digit == 8)


MAKERS: dict[str, Callable[[], Target]] = {
    made.__name__: made
    for made in (many_well, funnel, mixture40, logistic_breast_cancer, logistic_digits)
}
NAMES = tuple(MAKERS)


@functools.cache
def target(name: str) -> Target:
    """The target of a name."""
    return MAKERS[name]()
