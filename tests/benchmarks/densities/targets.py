"""Targets of the study of automatic guides: Pyro programs, and what is known of their posteriors.

    target("funnel").log_density(x)

Some are densities of the literature on samplers, which a program has as a factor; others are
programs as somebody would write them. None needs a file or the network.
"""

from __future__ import annotations

import functools
import itertools
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

__all__ = [
    "NAMES",
    "density_of",
    "of_density",
    "of_program",
    "sites_of",
    "target",
]

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


def two_gaussians(dim: int) -> Target:
    """A mixture of two Gaussians with one covariance, whose eigenvalues have a ratio of 25."""
    g = seeded(0)
    root = torch.linalg.qr(torch.randn(dim, dim, generator=g))[0]
    root = root * torch.logspace(math.log10(0.1), math.log10(0.5), dim)
    mean = torch.zeros(dim)
    mean[0] = 1.5
    means, shares = torch.stack([mean, -mean]), torch.tensor([0.3, 0.7])
    each = dist.MultivariateNormal(means, root @ root.mT)
    law = dist.MixtureSameFamily(dist.Categorical(shares), each)

    def exact(n: int, seed: int) -> Tensor:
        generator = seeded(seed)
        k = torch.multinomial(shares, n, replacement=True, generator=generator)
        return means[k] + torch.randn(n, dim, generator=generator) @ root.mT

    return of_density(
        f"two_gaussians_{dim}",
        law.log_prob,
        dim,
        scale=1.5,
        log_z=0.0,
        exact=exact,
        modes=Modes(of=lambda x: (x @ mean < 0).long(), probabilities=shares),
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
        pyro.sample("labels", dist.Bernoulli(logits=weights @ x.T.to(weights)).to_event(1), obs=y)

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


def brownian_motion() -> Target:
    """A random walk of 30 steps seen with noise but for ten in its middle, both scales unknown.

    Data are those of ``BrownianMotionUnknownScalesMissingMiddleObservations`` of the package
    inference-gym 0.0.5. Given the scales it is Gaussian, so that two integrals are left.
    """
    before = "0.21592641 0.118771404 -0.07945447 0.037677474 -0.27885845 -0.1484156 -0.3250906"
    before += " -0.22957903 -0.44110894 -0.09830782"
    after = "-0.8786016 -0.83736074 -0.7384849 -0.8939254 -0.7774566 -0.70238715 -0.87771565"
    after += " -0.51853573 -0.6948214 -0.6202789"
    y = torch.tensor([float(value) for value in f"{before} {after}".split()])
    times = torch.cat([torch.arange(10), torch.arange(20, 30)])
    prior = dist.LogNormal(0.0, 2.0)
    walk = torch.ones(30, 30).tril()

    def program() -> None:
        step, noise = (pyro.sample(name, prior)[..., None] for name in ("step", "noise"))
        law = dist.MultivariateNormal(torch.zeros(30), scale_tril=step[..., None] * walk)
        x = pyro.sample("x", law)
        pyro.sample("y", dist.Normal(x[..., times], noise).to_event(1), obs=y)

    logs = torch.linspace(-12, 4, 641, dtype=torch.float64)
    within, vectors = torch.linalg.eigh((walk @ walk.T)[times][:, times].double())
    along = vectors.T @ y.double()
    variances = (2 * logs).exp()[:, None, None] * within + (2 * logs).exp()[:, None]
    density = dist.Normal(0.0, variances.sqrt()).log_prob(along).sum(-1)
    density += sum(dist.Normal(0.0, 2.0).log_prob(own) for own in (logs[:, None], logs))

    def exact(n: int, seed: int) -> Tensor:
        generator = seeded(seed)
        scales = from_cells(density, (logs, logs), n, generator)
        precision = torch.linalg.inv(walk @ walk.T).double() / (2 * scales[:, :1, None]).exp()
        seen = torch.eye(30, dtype=torch.float64)[:, times]
        noise = (-2 * scales[:, 1]).exp()
        x = gaussian(
            precision + noise[:, None, None] * (seen @ seen.T),
            noise[:, None] * (seen @ y.double()),
            generator,
        )
        return torch.cat([scales, x], 1).float()

    return of_program(
        "brownian_motion", program, log_z=over_cells(density, (logs, logs)), exact=exact
    )


def two_sinusoids() -> Target:
    """Two sinusoids of unknown frequencies and amplitudes, seen twelve times, not at all for as
    long as that twice, and twelve times again: frequencies have aliases, and may be exchanged.

    Given the frequencies it is Gaussian, so that two integrals are left.
    """
    noise = 0.5
    times = torch.cat([torch.arange(12.0), 40 + torch.arange(12.0)])

    def waves(frequencies: Tensor) -> Tensor:
        """(..., number) -> (..., number, cosine and sine, times)."""
        phases = 2 * math.pi * frequencies[..., None] * times.to(frequencies)
        return torch.stack([phases.cos(), phases.sin()], -2)

    true = torch.tensor([[0.0, 0.9], [0.6, 0.0]])
    y = (true[..., None] * waves(torch.tensor([0.12, 0.31]))).sum((0, 1))
    y += noise * torch.randn(24, generator=seeded(1))

    def program() -> None:
        uniform = dist.Uniform(0.0, 0.5).expand([2]).to_event(1)
        frequencies = pyro.sample("frequencies", uniform)
        amplitudes = pyro.sample("amplitudes", dist.Normal(0.0, 1.0).expand([2, 2]).to_event(2))
        mean = (amplitudes[..., None] * waves(frequencies)).sum((-3, -2))
        pyro.sample("y", dist.Normal(mean, noise).to_event(1), obs=y)

    def given(frequencies: Tensor) -> tuple[Tensor, Tensor]:
        """The precision (n, 4, 4) of the amplitudes, times their mean (n, 4)."""
        own = waves(frequencies).flatten(-3, -2)
        precision = torch.eye(4) + own @ own.mT / noise**2
        return precision, own @ y.double() / noise**2

    f = (torch.arange(400, dtype=torch.float64) + 0.5) / 800
    pairs = torch.cartesian_prod(f, f)
    precision, linear = given(pairs)
    factor = torch.linalg.cholesky(precision)
    white = torch.linalg.solve_triangular(factor, linear[..., None], upper=False)
    density = white.square().sum((1, 2)) / 2 - factor.diagonal(0, 1, 2).log().sum(1)
    density += dist.Normal(0.0, noise).log_prob(y.double()).sum() + 2 * math.log(2)
    density = density.reshape(400, 400)

    def exact(n: int, seed: int) -> Tensor:
        generator = seeded(seed)
        frequencies = from_cells(density, (f, f), n, generator)
        x = gaussian(*given(frequencies), generator)
        return torch.cat([(2 * frequencies).logit(), x], 1).float()

    highest = torch.nn.functional.max_pool2d(density[None], 9, 1, 4)[0] == density
    peaks = pairs[(highest & (density > density.max() - 3)).flatten()].float()
    nearest = torch.cdist(pairs.float(), peaks).argmin(1)
    shares = density.flatten().softmax(0)
    modes = Modes(
        of=lambda x: torch.cdist(x[:, :2].sigmoid() / 2, peaks).argmin(1),
        probabilities=torch.zeros(len(peaks)).double().index_add_(0, nearest, shares).float(),
    )
    return of_program(
        "two_sinusoids", program, log_z=over_cells(density, (f, f)), exact=exact, modes=modes
    )


def log_gaussian_cox() -> Target:
    """Counts in the 10 by 10 cells of a square, whose log rate is a Gaussian process (Møller et
    al., *Log Gaussian Cox processes*, 1998; here of fewer cells and longer correlations)."""
    side = torch.arange(10) / 10
    places = torch.cartesian_prod(side, side).double()
    mean, variance, length = 0.5, 1.5, 0.3
    covariance = variance * (-torch.cdist(places, places) / length).exp()
    factor = torch.linalg.cholesky(covariance).float()
    generator = seeded(0)
    log_rate = mean + factor @ torch.randn(100, generator=generator)
    counts = torch.poisson(log_rate.exp(), generator=generator)

    def program() -> None:
        law = dist.MultivariateNormal(torch.full((100,), mean), scale_tril=factor)
        x = pyro.sample("log_rate", law)
        pyro.sample("counts", dist.Poisson(x.exp()).to_event(1), obs=counts)

    return of_program("log_gaussian_cox", program)


def label_switching() -> Target:
    """A mixture of three Gaussians, which nothing tells apart: what is said of one in any order of
    them is as probable."""
    y = torch.randn(60, generator=seeded(0)) * torch.tensor([0.5, 0.7, 1.0]).repeat(20)
    y += torch.tensor([-2.5, 0.0, 3.0]).repeat(20)

    def program() -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((3,), 2.0)))
        means = pyro.sample("means", dist.Normal(0.0, 3.0).expand([3]).to_event(1))
        scales = pyro.sample("scales", dist.LogNormal(0.0, 0.5).expand([3]).to_event(1))
        component = dist.Normal(means[..., None, :], scales[..., None, :])
        law = dist.MixtureSameFamily(dist.Categorical(weights[..., None, :]), component)
        pyro.sample("y", law.expand([*means.shape[:-1], 60]).to_event(1), obs=y)

    places = torch.tensor([9, 3, 1])
    permutations = torch.tensor(list(itertools.permutations(range(3)))) @ places

    def order(x: Tensor) -> Tensor:
        """Which order of the means, which are after two weights, (n,)."""
        return (permutations == (x[:, 2:5].argsort(1) @ places)[:, None]).int().argmax(1)

    modes = Modes(order, torch.full((len(permutations),), 1 / len(permutations)))
    return of_program("label_switching", program, modes=modes)


# -- integrals over a grid -------------------------------------------------------------------------


def over_cells(log_density: Tensor, axes: tuple[Tensor, Tensor]) -> float:
    """The log integral of a log density at the middles of the cells of two even axes."""
    area = math.prod(float(axis[1] - axis[0]) for axis in axes)
    return float(log_density.flatten().logsumexp(0)) + math.log(area)


def from_cells(
    log_density: Tensor, axes: tuple[Tensor, Tensor], n: int, generator: torch.Generator
) -> Tensor:
    """Draws (n, 2) of the same, uniform within a cell."""
    shares = log_density.flatten().softmax(0)
    cell = torch.searchsorted(shares.cumsum(0), torch.rand(n, generator=generator).double())
    cell = cell.clamp(max=len(shares) - 1)
    middles = torch.stack([axes[0][cell // len(axes[1])], axes[1][cell % len(axes[1])]], 1)
    widths = torch.stack([axis[1] - axis[0] for axis in axes])
    return middles + widths * (torch.rand(n, 2, generator=generator) - 0.5)


def gaussian(precision: Tensor, linear: Tensor, generator: torch.Generator) -> Tensor:
    """A draw (n, k) of each Gaussian of exp(-x·precision·x / 2 + linear·x)."""
    factor = torch.linalg.cholesky(precision)
    mean = torch.cholesky_solve(linear[..., None], factor)
    z = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
    return (mean + torch.linalg.solve_triangular(factor.mT, z, upper=True)).squeeze(-1)


MAKERS: dict[str, Callable[[], Target]] = {
    made.__name__: made
    for made in (
        many_well,
        funnel,
        mixture40,
        logistic_breast_cancer,
        logistic_digits,
        brownian_motion,
        log_gaussian_cox,
        label_switching,
        two_sinusoids,
    )
} | {f"two_gaussians_{dim}": functools.partial(two_gaussians, dim) for dim in (25, 50)}
NAMES = tuple(MAKERS)


@functools.cache
def target(name: str) -> Target:
    """The target of a name."""
    return MAKERS[name]()
