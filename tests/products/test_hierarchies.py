"""The benchmark of hierarchies: its truths are those of closed forms."""

from __future__ import annotations

import math

import pyro
import pytest
import torch

from pyro_mdm.posteriors import simulate
from tests.benchmarks import hierarchies
from tests.exact_likelihood import exact_likelihood


@pytest.mark.parametrize("n", [2, 10])
def test_the_evidence_by_quadrature_is_that_of_gaussian_laws(n: int) -> None:
    """Given τ all data are Gaussian together; the exact likelihood as a site gives the same."""
    torch.manual_seed(0)
    x = hierarchies.drawn_units(n)[2] / 2  # within the grid, whatever the seed
    table = hierarchies.of_hyperparameters(hierarchies.exact(x))
    unit = torch.arange(n * hierarchies.DATA) // hierarchies.DATA
    same = (unit == unit.unsqueeze(1)).double()
    noise = hierarchies.NOISE**2 * torch.eye(len(unit), dtype=torch.float64)
    of_spread = []
    for log_spread in hierarchies.LOG_SPREAD:
        covariance = noise + (2 * log_spread).exp() * same + 4.0
        law = torch.distributions.MultivariateNormal(torch.zeros(len(unit)).double(), covariance)
        of_spread.append(law.log_prob(x.flatten().double()))
    prior = hierarchies.log_normal(hierarchies.LOG_SPREAD, math.log(0.8), 0.5)
    step = hierarchies.LOG_SPREAD[1] - hierarchies.LOG_SPREAD[0]
    expected = torch.stack(of_spread) + prior + step.log()
    torch.testing.assert_close(
        table.logsumexp(0).logsumexp(0), expected.logsumexp(0), atol=0.01, rtol=0
    )
    learned = hierarchies.of_hyperparameters(hierarchies.learned(exact_likelihood(), x))
    torch.testing.assert_close(learned, table, atol=1e-2, rtol=1e-4)


def test_places_of_values_are_those_of_a_distribution_function() -> None:
    grid = torch.linspace(0, 1, 101, dtype=torch.float64)
    p = torch.full((101,), 1 / 101, dtype=torch.float64)
    for value in (0.1, 0.5, 0.77):
        assert hierarchies._place(grid, p, value) == pytest.approx(value, abs=0.01)


def test_the_particle_filter_is_the_likelihood_of_one_step() -> None:
    """Of the first count alone it is a mean over draws of the noise."""
    pyro.set_rng_seed(0)
    count = torch.tensor([3.0])
    found = hierarchies.filtered(count, particles=4000)
    noise = hierarchies.PROCESS * torch.randn(200_000, dtype=torch.float64)
    at = hierarchies.LOG_R[50]
    size = (at - 1 + noise).exp()
    p = torch.distributions.Poisson(hierarchies.LEVEL * size).log_prob(count.double()).exp()
    error = float(p.std() / p.mean()) / math.sqrt(4000)
    assert float(found[50]) == pytest.approx(math.log(float(p.mean())), abs=5 * error)
    drawn = simulate(hierarchies.ricker, 3, seed=0)["counts"]
    assert drawn.shape == (3, hierarchies.STEPS)
