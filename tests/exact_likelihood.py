"""Likelihoods that are exact: the program's own law in the place of the learned one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_mdm.posteriors import AmortizedLikelihood, simulate
from pyro_mdm.posteriors.laws import DataBounds, FactorLaw

NOISE = 0.5
"""The standard deviation of a datum about its parameter."""


def trials() -> None:
    """Four exchangeable data about a parameter."""
    theta = pyro.sample("theta", dist.Normal(0.0, 3.0))
    with pyro.plate("trials", 4):
        pyro.sample("x", dist.Normal(theta, NOISE))


class NormalLaw(FactorLaw):
    """N(x; θ, NOISE²), of parameters that are standardized."""

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    @property
    def bounds(self) -> DataBounds:
        infinite = torch.tensor([math.inf])
        return DataBounds(-infinite, infinite, torch.tensor([False]))

    def fit(self, *args: Any) -> Any:
        raise NotImplementedError

    def center(self, theta: Tensor) -> Tensor:
        return (theta * self.scale + self.mean).unsqueeze(1)

    def of_piece(self, x: Tensor, theta: Tensor) -> Tensor:
        there = ~x.isnan()
        value = torch.where(there, x, 0.0)
        log_p = torch.distributions.Normal(self.center(theta), NOISE).log_prob(value)
        return torch.where(there, log_p, 0.0).sum(2).double()

    def trainings(self) -> int:
        return 0

    def sample(self, theta: Tensor, k: int) -> Tensor:
        return self.center(theta) + NOISE * torch.randn(len(theta), k, 1)


def exact_likelihood(
    program: Callable[[], None] = trials, latent: Sequence[str] = ("theta",)
) -> AmortizedLikelihood:
    """The likelihood of a program whose data are those of :func:`trials`, with their own law."""
    draws = simulate(program, 1000, seed=0, vectorized=True)
    likelihood = AmortizedLikelihood(program, latent, ["x"], draws, hidden=4, depth=1)
    of_theta = likelihood._places["theta"]
    likelihood.laws[0] = NormalLaw(likelihood.mean[of_theta], likelihood.scale[of_theta])
    likelihood.simulations = draws
    return likelihood.eval().requires_grad_(False)
