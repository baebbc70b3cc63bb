"""Slow and fast programs with a known evidence, as somebody would write them.

Programs broadcast over a plate at their left. Data are drawn from a fixed seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from tests.benchmarks.densities.base import Target
from tests.benchmarks.densities.baselines import prior_draws
from tests.benchmarks.densities.laplace import evidence
from tests.benchmarks.densities.targets import of_program, seeded, target
from tests.benchmarks.posteriordb.equations import solved

__all__ = ["PROGRAMS", "start_of", "truth"]

OF_PRIOR = 10
"""Draws of the prior, from whose median a mode is sought."""


def sir() -> Target:
    """An epidemic of 50 days by 200 steps of Runge and Kutta, and overdispersed counts."""
    days, people, steps = 1.0 + torch.arange(50), 5_000.0, 4

    def counts(rates: Tensor, first: Tensor, dispersion: Tensor) -> dist.NegativeBinomial:
        infection, recovery = rates.unbind(-1)

        def slope(t: float, y: Tensor) -> Tensor:
            new = infection * y[..., 0] * y[..., 1]
            return torch.stack([-new, new - recovery * y[..., 1]], -1)

        y = solved(slope, torch.stack([1 - first, first], -1), 0.0, days, steps)
        mean = people * y[..., 1].clamp(1e-8, 1.0)
        count = (1 / dispersion).unsqueeze(-1)
        return dist.NegativeBinomial(count, logits=mean.log() - count.log())

    true = torch.tensor([0.5, 0.15]), torch.tensor(0.002), torch.tensor(0.1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        seen = counts(*true).sample()

    def program() -> None:
        infection = pyro.sample("infection", dist.LogNormal(-1.0, 0.5))
        recovery = pyro.sample("recovery", dist.LogNormal(-2.0, 0.5))
        first = pyro.sample("first", dist.Beta(1.0, 100.0))
        dispersion = pyro.sample("dispersion", dist.LogNormal(-2.0, 1.0))
        law = counts(torch.stack([infection, recovery], -1), first, dispersion)
        pyro.sample("seen", law.to_event(1), obs=seen)

    return of_program("sir", program)


def hyperparameters() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Those of an autoregression of second order: two coefficients, of a step and of noise."""
    laws = (dist.Normal(0.5, 0.3), dist.Normal(0.0, 0.3), *2 * (dist.LogNormal(-1.0, 0.5),))
    names = ("one", "two", "step", "noise")
    return tuple(pyro.sample(name, law) for name, law in zip(names, laws, strict=True))


def series() -> Tensor:
    noise = torch.randn(2, 100, generator=seeded(1))
    x = [torch.zeros(()), torch.zeros(())]
    for step in noise[0]:
        x.append(0.6 * x[-1] + 0.2 * x[-2] + 0.5 * step)
    return torch.stack(x[2:]) + 0.4 * noise[1]


def state_space() -> Target:
    """An autoregression of second order seen with noise: 100 states, and a statement for each."""
    seen = series()

    def program() -> None:
        one, two, step, noise = hyperparameters()
        before = last = torch.zeros_like(one)
        for t, y in enumerate(seen):
            before, last = last, pyro.sample(f"x_{t}", dist.Normal(one * last + two * before, step))
            pyro.sample(f"y_{t}", dist.Normal(last, noise), obs=y)

    return of_program("state_space", program)


def state_space_marginal() -> Target:
    """The same without its states, which are Gaussian given the others."""
    seen = series().double()
    one_step, two_steps = (torch.diag(torch.ones(100 - k), -k).double() for k in (1, 2))
    eye = torch.eye(100).double()

    def program() -> None:
        one, two, step, noise = (v.double()[..., None, None] for v in hyperparameters())
        steps = (eye - one * one_step - two * two_steps) / step
        factor = torch.linalg.cholesky(steps.mT @ steps + eye / noise**2)  # of y's precision
        white = torch.linalg.solve_triangular(factor, seen[:, None] / noise**2, upper=False)
        squares = (seen / noise[..., 0]).square().sum(-1) - white.square().sum((-2, -1))
        volume = 2 * (
            factor.diagonal(0, -2, -1).log().sum(-1) + 100 * (step * noise).log()[..., 0, 0]
        )
        pyro.factor("y", -(squares + volume + 100 * math.log(2 * math.pi)) / 2)

    return of_program("state_space_marginal", program)


def gaussian() -> Target:
    """A regression with known noise: a Gaussian in 20 dimensions, with correlations."""
    columns = torch.randn(30, 20, generator=seeded(0)) @ torch.linspace(0.2, 2.0, 20).diag()
    columns += torch.randn(30, 1, generator=seeded(1))
    y = columns.sum(1) / 4 + 0.5 * torch.randn(30, generator=seeded(2))

    def program() -> None:
        weights = pyro.sample("weights", dist.Normal(0.0, 1.0).expand([20]).to_event(1))
        pyro.sample("y", dist.Normal(weights @ columns.T.to(weights), 0.5).to_event(1), obs=y)

    covariance = (columns @ columns.T + 0.25 * torch.eye(30)).double()
    law = dist.MultivariateNormal(torch.zeros(30).double(), covariance)
    return of_program("gaussian", program, log_z=float(law.log_prob(y.double())))


def item_response() -> Target:
    """Abilities of 40 persons and difficulties of 10 items."""
    ability, difficulty = torch.randn(50, generator=seeded(0)).split([40, 10])
    right = torch.bernoulli((ability[:, None] - difficulty).sigmoid(), generator=seeded(1))

    def program() -> None:
        ability = pyro.sample("ability", dist.Normal(0.0, 1.0).expand([40]).to_event(1))
        difficulty = pyro.sample("difficulty", dist.Normal(0.0, 1.0).expand([10]).to_event(1))
        law = dist.Bernoulli(logits=ability[..., :, None] - difficulty[..., None, :])
        pyro.sample("right", law.to_event(2), obs=right)

    return of_program("item_response", program)


def lotka_volterra() -> Target:
    """Two populations at twenty times by 100 steps of Runge and Kutta."""
    times, first = 0.5 * (1.0 + torch.arange(20)), torch.tensor([2.0, 1.0]).log()

    def populations(rates: Tensor) -> Tensor:
        a, b, c, d = rates.unbind(-1)

        def slope(t: float, z: Tensor) -> Tensor:
            prey, predators = z.exp().unbind(-1)
            return torch.stack([a - b * predators, d * prey - c], -1)

        return solved(slope, first.expand(*rates.shape[:-1], 2), 0.0, times, 5)

    seen = populations(torch.tensor([1.0, 0.6, 0.8, 0.5]))
    seen = seen + 0.2 * torch.randn(20, 2, generator=seeded(0))

    def program() -> None:
        law = dist.LogNormal(torch.tensor([1.0, 0.5, 1.0, 0.5]).log(), 0.3)
        rates = pyro.sample("rates", law.to_event(1))
        noise = pyro.sample("noise", dist.LogNormal(-torch.ones(2), 0.5).to_event(1))
        law = dist.Normal(populations(rates).clamp(-30, 30), noise.unsqueeze(-2))
        pyro.sample("seen", law.to_event(2), obs=seen)

    return of_program("lotka_volterra", program)


def groups() -> tuple[Tensor, Tensor]:
    """A column, and counts, (15, 6) each."""
    column = torch.randn(15, 6, generator=seeded(0))
    effects = 0.5 * torch.randn(15, 1, generator=seeded(1))
    return column, torch.poisson((1.0 + 0.4 * column + effects).exp(), generator=seeded(2))


def coefficients() -> tuple[Tensor, Tensor, Tensor]:
    """The intercept and the slope of counts, and the spread of their groups."""
    intercept, slope = (pyro.sample(n, dist.Normal(0.0, 2.0)) for n in ("intercept", "slope"))
    return intercept, slope, pyro.sample("spread", dist.LogNormal(-1.0, 0.7))


def random_effects() -> Target:
    """Counts of 15 groups with effects of their own, and a column."""
    column, counts = groups()

    def program() -> None:
        intercept, slope, spread = coefficients()
        law = dist.Normal(intercept[..., None], spread[..., None]).expand([*spread.shape, 15])
        effects = pyro.sample("effects", law.to_event(1))
        rate = (effects[..., None] + slope[..., None, None] * column).clamp_max(20.0).exp()
        pyro.sample("counts", dist.Poisson(rate).to_event(2), obs=counts)

    return of_program("random_effects", program)


def random_effects_marginal() -> Target:
    """The same without its effects, by sums over even steps of each, which suffice a Gaussian."""
    column, counts = groups()
    steps = torch.linspace(-6, 6, 121, dtype=torch.float64)
    shares = dist.Normal(0.0, 1.0).log_prob(steps) + math.log(0.1)

    def program() -> None:
        intercept, slope, spread = (v.double()[..., None, None] for v in coefficients())
        effects = intercept + spread * steps  # (…, 1, 121), for groups (…, 15, 1)
        rates = (slope * column).exp().sum(-1, keepdim=True)
        given = counts.sum(1, keepdim=True) * effects - rates * effects.exp()
        terms = (slope * column * counts - (counts + 1).lgamma()).sum((-2, -1))
        pyro.factor("counts", terms + (given + shares).logsumexp(-1).sum(-1))

    return of_program("random_effects_marginal", program)


def six() -> Target:
    """A regression of five coefficients and its variance, conjugate."""
    columns = torch.randn(25, 5, generator=seeded(0))
    y = columns @ torch.tensor([1.0, -0.5, 0.0, 0.3, 2.0]) + 0.7 * torch.randn(
        25, generator=seeded(1)
    )

    def program() -> None:
        variance = pyro.sample("variance", dist.InverseGamma(2.0, 1.0))
        deviation = variance.sqrt()[..., None]
        law = dist.Normal(torch.zeros(5), deviation).expand([*variance.shape, 5])
        weights = pyro.sample("weights", law.to_event(1))
        pyro.sample("y", dist.Normal(weights @ columns.T.to(weights), deviation).to_event(1), obs=y)

    scale = torch.linalg.cholesky((columns @ columns.T + torch.eye(25)).double())
    law = dist.MultivariateStudentT(4.0, torch.zeros(25).double(), math.sqrt(0.5) * scale)
    return of_program("six", program, log_z=float(law.log_prob(y.double())))


def logistic() -> Target:
    """Malignant or benign, by 30 columns of scikit-learn's table."""
    return target("logistic_breast_cancer")


PROGRAMS: dict[str, Callable[[], Target]] = {
    make.__name__: make
    for make in (
        *(sir, state_space, lotka_volterra, gaussian, item_response, logistic),
        *(random_effects, six),
    )
}
MARGINALS = {"state_space": state_space_marginal, "random_effects": random_effects_marginal}
"""Targets of the same evidence in fewer latents."""


def start_of(program: Target, seed: int) -> Tensor:
    """The median (dim,) of a few draws of the prior."""
    return prior_draws(program, OF_PRIOR, seed).median(0).values


def truth(name: str) -> tuple[float, float]:
    """log Z and its standard error, 0 in closed form."""
    marginal = MARGINALS.get(name, PROGRAMS[name])()
    if marginal.log_z is not None:
        return marginal.log_z, 0.0
    return evidence(marginal, start_of(marginal, 0)[None])
