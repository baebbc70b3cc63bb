"""Mixtures of the numbers of a datum in turn: their density, their draws and their order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, Normal

from pyro_mdm.posteriors.autoregressive import ResidualMixture


def shuffled(m: int) -> ResidualMixture:
    """A network whose every weight is random, that of the last layer too."""
    torch.manual_seed(0)
    network = ResidualMixture(2, m, 16, 1).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network


@torch.no_grad()
@pytest.mark.parametrize("m", [1, 3])
def test_the_density_is_that_of_its_mixtures(m: int) -> None:
    network = shuffled(m)
    r, theta = torch.randn(4, 5, m).double(), torch.randn(4, 2).double()
    weight, location, log_scale = network._components(r, theta)
    law = MixtureSameFamily(Categorical(logits=weight), Normal(location, log_scale.exp()))
    torch.testing.assert_close(network.log_prob(r, theta), law.log_prob(r).sum(2))


@torch.no_grad()
def test_its_mass_is_1() -> None:
    """Of two numbers, on a grid: not so if the second saw itself, or the first the second."""
    axis = torch.linspace(-25.0, 25.0, 401).double()
    grid = torch.cartesian_prod(axis, axis)[None]
    density = shuffled(2).log_prob(grid, torch.zeros(1, 2).double()).exp()
    mass = float(density.sum()) * float(axis[1] - axis[0]) ** 2
    assert mass == pytest.approx(1.0, abs=1e-3)


def test_outputs_of_a_number_see_those_before_it_alone() -> None:
    network, m = shuffled(4), 4
    r = torch.randn(1, 1, m, dtype=torch.float64)

    def locations(r: Tensor) -> Tensor:
        return network._components(r, torch.zeros(1, 2).double())[1][0, 0].sum(1)

    slopes = torch.autograd.functional.jacobian(locations, r)[:, 0, 0]
    assert not slopes.triu().any() and bool((slopes.tril(-1)[1:].abs().sum(1) > 0).all())


@torch.no_grad()
def test_draws_have_the_density() -> None:
    """The mean of x over the density is that of draws: both for the second number by the first."""
    network, theta = shuffled(2), torch.zeros(1, 2).double()
    draws = network.sample(theta, 10_000)[0]
    axis = torch.linspace(-25.0, 25.0, 301).double()
    grid = torch.cartesian_prod(axis, axis)
    shares = network.log_prob(grid[None], theta)[0].softmax(0)
    for statistic in (lambda x: x[:, 0].tanh() * x[:, 1].tanh(), lambda x: x[:, 1].cos()):
        values = statistic(draws)
        error = 6 * float(values.std()) / len(draws) ** 0.5 + 1e-3
        assert abs(float(values.mean()) - float((shares * statistic(grid)).sum())) < error


@torch.no_grad()
def test_it_begins_near_a_standard_normal() -> None:
    r = torch.randn(1, 20_000, 2)
    log_p = ResidualMixture(2, 2, 16, 1).log_prob(r, torch.zeros(1, 2))
    normal = Normal(0.0, 1.0).log_prob(r).sum(2)
    assert abs(float((normal - log_p).mean())) < 0.1
