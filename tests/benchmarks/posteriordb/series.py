"""Time series: an autoregression, ARMA(1, 1), GARCH(1, 1), and hidden Markov models."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from tests.benchmarks.posteriordb.base import (
    Data,
    Flat,
    Posterior,
    Program,
    Sites,
    flat,
    flat_scale,
)

__all__ = ["POSTERIORS", "ordered"]


def autoregression(data: Data) -> Program:
    y, K = data["y"], int(data["K"])
    before = torch.stack([y[K - k : len(y) - k] for k in range(1, K + 1)], 1)

    def run() -> None:
        alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
        beta = pyro.sample("beta", dist.Normal(torch.zeros(K), 10.0).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
        mean = alpha.unsqueeze(-1) + beta @ before.mT
        pyro.sample("y", dist.Normal(mean, sigma.unsqueeze(-1)).to_event(1), obs=y[K:])

    return run


def arma(data: Data) -> Program:
    y = data["y"]

    def run() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        phi = pyro.sample("phi", dist.Normal(0.0, 2.0))
        theta = pyro.sample("theta", dist.Normal(0.0, 2.0))
        sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
        error = y[0] - (mu + phi * mu)
        errors = [error]
        for before, now in itertools.pairwise(y):
            error = now - (mu + phi * before + theta * error)
            errors.append(error)
        noise = dist.Normal(torch.zeros(len(y)), sigma.unsqueeze(-1)).to_event(1)
        pyro.factor("y", noise.log_prob(torch.stack(errors, -1)))

    return run


def garch(data: Data) -> Program:
    """With β_1 as a fraction of 1 - α_1, which is where its density is flat."""
    y = data["y"]

    def run() -> None:
        mu = flat("mu", 2 * y.std())
        alpha0 = flat_scale("alpha0", y.var())
        alpha1 = pyro.sample("alpha1", dist.Uniform(0.0, 1.0))
        fraction = pyro.sample("fraction", dist.Uniform(0.0, 1.0))
        pyro.factor("flat", (1 - alpha1).log())
        beta1 = fraction * (1 - alpha1)
        variance = torch.as_tensor(float(data["sigma1"]) ** 2).expand(mu.shape)
        variances = [variance]
        for before in y[:-1]:
            variance = alpha0 + alpha1 * (before - mu).square() + beta1 * variance
            variances.append(variance)
        deviation = torch.stack(variances, -1).sqrt()
        pyro.sample("y", dist.Normal(mu.unsqueeze(-1), deviation).to_event(1), obs=y)

    return run


def garch_sites(draws: Sites, data: Data) -> Sites:
    sites = dict(draws)
    sites["fraction"] = sites.pop("beta1") / (1 - sites["alpha1"])
    return sites


# -- hidden Markov models of two states ------------------------------------------------------------


class Ordered(dist.TorchDistribution):
    """First values of an ordered vector: sorted ones."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, start: Any, positive: bool) -> None:
        self.start, self.positive = start, positive
        super().__init__(start.batch_shape, start.event_shape, validate_args=False)

    @constraints.dependent_property
    def support(self) -> Any:
        return constraints.positive_ordered_vector if self.positive else constraints.ordered_vector

    def sample(self, sample_shape: Any = ()) -> Tensor:
        value = self.start.sample(torch.Size(sample_shape))
        return (value.abs() if self.positive else value).sort(-1).values

    def log_prob(self, value: Tensor) -> Tensor:
        log_prob: Tensor = self.start.log_prob(value)
        return log_prob

    def expand(self, batch_shape: Any, _instance: object = None) -> Ordered:
        return Ordered(self.start.expand(batch_shape), self.positive)


def ordered(name: str, prior: Any, positive: bool = False) -> Tensor:
    """An ordered vector whose density is that of the prior, which is for vectors of any order."""
    value: Tensor = pyro.sample(name, Flat(Ordered(prior.to_event(1), positive)))
    pyro.factor(f"{name}_prior", prior.to_event(1).log_prob(value))
    return value


def two_states(theta1: Tensor, theta2: Tensor, log_emission: Tensor) -> Tensor:
    """The log probability of observations, (*batch), from a first state that has no prior.

    Args:
        theta1, theta2: probabilities of the next state, (*batch, 2).
        log_emission: log density of each observation by state, (*batch, N, 2).
    """
    log_theta = torch.stack([theta1, theta2], -2).log()
    forward = log_emission[..., 0, :]
    for t in range(1, log_emission.shape[-2]):
        forward = (forward.unsqueeze(-1) + log_theta).logsumexp(-2) + log_emission[..., t, :]
    return forward.logsumexp(-1)


def switching(data: Data) -> Program:
    y = data["y"].unsqueeze(-1)

    def run() -> None:
        theta = [pyro.sample(f"theta{k}", dist.Dirichlet(torch.ones(2))) for k in (1, 2)]
        mu = ordered("mu", dist.Normal(torch.tensor([3.0, 10.0]), 1.0), positive=True)
        pyro.factor("y", two_states(*theta, dist.Normal(mu.unsqueeze(-2), 1.0).log_prob(y)))

    return run


def driving(emission: Callable[[Data, str, Tensor], Any], positive: bool) -> Posterior:
    """A basketball player's drives, by speed and by the distance from the hoop."""

    def program(data: Data) -> Program:
        def run() -> None:
            theta = [pyro.sample(f"theta{k}", dist.Dirichlet(data["alpha"][k - 1])) for k in (1, 2)]
            log_emission: Any = 0.0
            for name, values in (("phi", data["u"]), ("lambda", data["v"])):
                prior = dist.Normal(torch.tensor([0.0, 3.0]), 1.0)
                parameter = ordered(name, prior, positive)
                law = emission(data, name, parameter.unsqueeze(-2))
                log_emission = log_emission + law.log_prob(values.unsqueeze(-1))
            pyro.factor("y", two_states(*theta, log_emission))

        return run

    return Posterior(program)


def exponential(data: Data, name: str, rate: Tensor) -> Any:
    return dist.Exponential(rate)


def gaussian(data: Data, name: str, mean: Tensor) -> Any:
    return dist.Normal(mean, float(data["tau" if name == "phi" else "rho"]))


POSTERIORS = {
    "arK-arK": Posterior(autoregression),
    "arma-arma11": Posterior(arma),
    "garch-garch11": Posterior(garch, garch_sites),
    "hmm_example-hmm_example": Posterior(switching),
    "bball_drive_event_0-hmm_drive_0": driving(exponential, positive=True),
    "bball_drive_event_1-hmm_drive_1": driving(gaussian, positive=False),
}
