"""A linear Gaussian simulator, whose posterior is Gaussian: θ ~ N(0, I), x = A θ + noise."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from inference.simulators import Simulator

A = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0], [0.5, 0.0, 1.0], [1.0, 1.0, 1.0]])
NOISE = 0.5
"""The standard deviation of the noise of each measurement."""


def program() -> Tensor:
    """The simulator, with three parameters and four measurements."""
    theta = pyro.sample("theta", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    x: Tensor = pyro.sample("x", dist.Normal(theta @ A.mT, NOISE).to_event(1))
    return x


def log_posterior(draws: dict[str, Tensor]) -> Tensor:
    """log p(θ | x), (n,)."""
    theta, x = draws["theta"], draws["x"]
    precision = torch.eye(3) + A.mT @ A / NOISE**2
    mean = torch.linalg.solve(precision, A.mT @ x.mT / NOISE**2).mT
    law = torch.distributions.MultivariateNormal(mean, precision_matrix=precision)
    return law.log_prob(theta)


LINEAR_GAUSSIAN = Simulator(program, ("theta",), ("x",), log_posterior, vectorized=True)
