"""Hierarchies with exact evidence, by rows of a plate that draws a subsample.

normal    10,000 normal rows around a mean of all, with known deviations
schools   the eight schools, centred
logistic  100 groups of 10 trials each, whose logits are normal
student   a regression with heavy errors: the example of NumPyro's AutoSemiDAIS, 18 rows
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["HIERARCHIES", "Hierarchy"]


@dataclass(frozen=True)
class Hierarchy:
    """A program, with its evidence.

    Args:
        program: function of the number of rows in a subsample; None: all.
        batch: that number.
        log_evidence: function that returns log p(data), nats.
        options: options of the guide.
    """

    program: Callable[[int | None], None]
    batch: int
    log_evidence: Callable[[], float]
    options: dict[str, Any]


MANY = 10_000
NOISE = torch.linspace(0.5, 2.0, MANY)
MEAN, OF_MEAN = 1.3, 5.0
NORMAL = MEAN + torch.randn(MANY, generator=torch.Generator().manual_seed(0)) * torch.sqrt(
    1 + NOISE.square()
)


def normal(batch: int | None = None) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, OF_MEAN))
    with pyro.plate("rows", MANY, subsample_size=batch) as rows:
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        pyro.sample("y", dist.Normal(z, NOISE[rows]), obs=NORMAL[rows])


def evidence_of_normal() -> float:
    """By the precision of the mean: the covariance is diagonal and of rank one."""
    y, variance = NORMAL.double(), 1 + NOISE.double().square()
    precision, weighted = (1 / variance).sum() + OF_MEAN**-2, (y / variance).sum()
    log_det = variance.log().sum() + torch.log(OF_MEAN**2 * precision)
    square = (y.square() / variance).sum() - weighted.square() / precision
    return -0.5 * float(MANY * math.log(2 * math.pi) + log_det + square)


EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools(batch: int | None = None) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    scale = pyro.sample("scale", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8, subsample_size=batch) as rows:
        effect = pyro.sample("effect", dist.Normal(mean, scale))
        pyro.sample("y", dist.Normal(effect, ERRORS[rows]), obs=EFFECTS[rows])


def evidence_of_schools() -> float:
    """By a grid of the scale; given it data are normal."""
    log_scale = torch.linspace(-12, 12, 4_001).double()
    scale = log_scale.exp()
    covariance = torch.diag_embed(scale[:, None].square() + ERRORS.double().square()) + 25.0
    law = dist.MultivariateNormal(torch.zeros(8).double(), covariance)
    log_p = law.log_prob(EFFECTS.double()) + dist.HalfCauchy(5.0).log_prob(scale) + log_scale
    return float(log_p.logsumexp(0) + math.log(24 / 4_000))


GROUPS, TRIALS = 100, 10.0
_generator = torch.Generator().manual_seed(1)
LOGITS = -0.5 + 0.8 * torch.randn(GROUPS, generator=_generator)
COUNTS = (torch.rand(10, GROUPS, generator=_generator) < LOGITS.sigmoid()).float().sum(0)


def logistic(batch: int | None = None) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("groups", GROUPS, subsample_size=batch) as rows:
        logit = pyro.sample("logit", dist.Normal(mean, scale))
        pyro.sample("y", dist.Binomial(TRIALS, logits=logit), obs=COUNTS[rows])


def evidence_of_logistic() -> float:
    """By grids of mean, log scale and the unit of a logit."""
    mean, log_scale = torch.linspace(-3, 2, 201).double(), torch.linspace(-5, 2, 281).double()
    unit = torch.linspace(-8, 8, 321).double()
    of_unit = dist.Normal(0.0, 1.0).log_prob(unit) + math.log(16 / 320)
    total = torch.zeros(len(mean), len(log_scale)).double()
    for count, number in zip(*COUNTS.unique(return_counts=True), strict=True):
        for j, scale in enumerate(log_scale.exp()):
            logits = mean[:, None] + scale * unit
            log_p = dist.Binomial(TRIALS, logits=logits).log_prob(count.double())
            total[:, j] += number * (log_p + of_unit).logsumexp(-1)
    prior = dist.Normal(0.0, 2.0).log_prob(mean)[:, None]
    prior = prior + dist.HalfNormal(1.0).log_prob(log_scale.exp()) + log_scale
    cell = math.log(5 / 200) + math.log(7 / 280)
    return float((total + prior).logsumexp((0, 1)) + cell)


X = torch.tensor(np.random.RandomState(0).randn(18, 3)).float()
Y = X[:, 0] - 0.5 * X[:, 1] + 0.1 * torch.tensor(np.random.RandomState(1).randn(18)).float()


def student(batch: int | None = None) -> None:
    theta = pyro.sample("theta", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("N", 18, subsample_size=batch) as rows:
        tau = pyro.sample("tau", dist.Gamma(5.0, 5.0))
        mean = (X[rows] * theta).sum(-1)  # particles have a dimension for the plate
        law = dist.Normal(mean, 0.1 * tau.rsqrt())
        pyro.sample("obs", law, obs=Y[rows])


def evidence_of_student() -> float:
    """By a million weights of a heavy-tailed proposal; the rows have Student's distribution."""
    x, y = X.double(), Y.double()
    center = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    root = torch.linalg.cholesky(torch.linalg.inv(x.mT @ x / 0.0125 + torch.eye(3).double()))
    generator = torch.Generator().manual_seed(2)
    heavy = torch.randn(1_000_000, 3, generator=generator).double()
    heavy = (
        heavy
        / (torch.randn(1_000_000, 8, generator=generator).double().square().mean(1))[:, None].sqrt()
    )
    theta = center + heavy @ root.mT
    log_q = dist.MultivariateStudentT(8.0, center, root).log_prob(theta)
    log_p = dist.Normal(0.0, 1.0).log_prob(theta).sum(1)
    log_p += dist.StudentT(10.0, theta @ x.mT, 0.1).log_prob(y).sum(1)
    log_w: Tensor = log_p - log_q
    return float(log_w.logsumexp(0) - math.log(len(log_w)))


HIERARCHIES = {
    "normal": Hierarchy(normal, 100, evidence_of_normal, {"init_scale": 0.02}),
    "schools": Hierarchy(schools, 4, evidence_of_schools, {}),
    "logistic": Hierarchy(logistic, 20, evidence_of_logistic, {}),
    "student": Hierarchy(student, 16, evidence_of_student, {}),
}
