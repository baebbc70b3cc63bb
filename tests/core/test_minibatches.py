"""Hierarchies of the benchmark of subsamples: their evidence, and particles side by side."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from scipy import integrate, stats
from torch import Tensor

from tests.benchmarks.minibatches import programs


@pytest.mark.parametrize("name", programs.HIERARCHIES)
def test_particles_have_a_dimension_outside_of_the_rows(name: str) -> None:
    """So guides of Pyro draw all particles in one call, with the densities of each alone."""
    program = programs.HIERARCHIES[name].program
    with pyro.plate("particles", 3, dim=-2):
        trace = prune_subsample_sites(poutine.trace(program).get_trace())
    log_p = observed(trace)
    for k in range(3):
        values = {site: trace.nodes[site]["value"][k] for site in trace.stochastic_nodes}
        # the dimension of rows has the size 1 at sites of all rows
        alone = {site: value[0] if len(value) == 1 else value for site, value in values.items()}
        expected = observed(poutine.trace(pyro.condition(program, alone)).get_trace())
        torch.testing.assert_close(log_p[k], expected, rtol=1e-4, atol=1e-4)


def observed(trace: Trace) -> Tensor:
    """The log density of the data by row, (*particles, rows)."""
    trace = prune_subsample_sites(trace)
    trace.compute_log_prob()
    *_, name = trace.observation_nodes  # the data are last
    log_p: Tensor = trace.nodes[name]["log_prob"]
    return log_p


def test_the_evidence_of_normal_rows_is_a_density_of_low_rank() -> None:
    variance = 1 + programs.NOISE.double().square()
    root = programs.OF_MEAN * torch.ones(programs.MANY, 1).double()
    law = torch.distributions.LowRankMultivariateNormal(0 * variance, root, variance)
    expected = float(law.log_prob(programs.NORMAL.double()))
    assert programs.evidence_of_normal() == pytest.approx(expected, rel=1e-9)


def test_the_evidence_of_schools_is_an_integral_over_both_globals() -> None:
    y, errors = programs.EFFECTS.double().numpy(), programs.ERRORS.double().numpy()
    mean = np.linspace(-40.0, 40.0, 4_001)

    def density(scale: float) -> float:
        spread = np.hypot(scale, errors)
        log_p = stats.norm.logpdf(y, mean[:, None], spread).sum(1)
        return float(
            np.exp(log_p + 30 + stats.norm.logpdf(mean, 0, 5)).sum()
            * (mean[1] - mean[0])
            * stats.halfcauchy.pdf(scale, 0, 5)
        )

    ends = zip((0, 5, 20, 100), (5, 20, 100, np.inf), strict=True)
    total = sum(integrate.quad(density, *pair)[0] for pair in ends)
    assert programs.evidence_of_schools() == pytest.approx(math.log(total) - 30, abs=1e-5)
