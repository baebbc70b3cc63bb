"""Programs whose evidence is known, beside other ways to know them."""

from __future__ import annotations

import math
from argparse import Namespace

import pytest
import torch
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor

from tests.benchmarks import first_answers
from tests.benchmarks.densities import answers
from tests.benchmarks.densities.base import Target
from tests.benchmarks.densities.laplace import evidence
from tests.benchmarks.densities.targets import sites_of


@pytest.mark.parametrize("name", answers.PROGRAMS)
def test_a_density_is_what_pyro_computes(name: str) -> None:
    target = answers.PROGRAMS[name]()
    potential, sites = initialize_model(target.program)[1], sites_of(target.program)
    x = answers.start_of(target, 0) + 0.1 * torch.randn(3, target.dim)
    expected = []
    for row in x:
        pieces = row.split([site.shape.numel() for site in sites.values()])
        pairs = zip(sites.items(), pieces, strict=True)
        expected.append(-float(potential({n: u.reshape(site.shape) for (n, site), u in pairs})))
    torch.testing.assert_close(target.log_density(x), torch.tensor(expected), rtol=1e-4, atol=1e-3)


def without_gaussians(target: Target, kept: Tensor) -> Tensor:
    """The log density of the first latents (n, few), of which all others are Gaussian."""
    others = target.dim - kept.shape[1]
    at = torch.cat([torch.zeros(1, others), torch.eye(others)]).double()
    values = []
    for row in kept.double():
        x = torch.cat([row.expand(len(at), -1), at], 1).requires_grad_()
        value = target.log_density(x).double()
        slope = torch.autograd.grad(value.sum(), x)[0][:, kept.shape[1] :]
        curvature = slope[:1] - slope[1:]
        along = torch.linalg.solve(curvature, slope[0])
        volume = torch.logdet(curvature / (2 * math.pi))
        values.append(value[0].detach() + (along @ slope[0] - volume) / 2)
    return torch.stack(values)


def test_latents_that_are_gaussian_are_left_out() -> None:
    kept = 0.3 * torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    expected = without_gaussians(answers.state_space(), kept)
    density = answers.state_space_marginal().log_density(kept.double()).double()
    torch.testing.assert_close(density, expected, rtol=1e-5, atol=1e-4)


def test_effects_of_groups_are_left_out() -> None:
    kept = torch.tensor([[0.9, 0.4, -0.7], [1.2, 0.3, 0.1]]).double()
    whole, marginal = answers.random_effects(), answers.random_effects_marginal()
    grid = torch.linspace(-6, 8, 2_001, dtype=torch.float64)
    for row in kept:
        first = torch.cat([row, torch.zeros(15).double()])
        base = whole.log_density(first[None]).double()[0]
        expected = base.clone()
        for group in range(15):
            x = first.repeat(len(grid), 1)
            x[:, 3 + group] = grid
            gain = whole.log_density(x).double() - base
            expected += gain.logsumexp(0) + (grid[1] - grid[0]).log()
        value = marginal.log_density(row[None]).double()[0]
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("name", ["gaussian", "six"])
def test_closed_forms_are_what_weights_say(name: str) -> None:
    target = answers.PROGRAMS[name]()
    log_z, error = evidence(target, answers.start_of(target, 0)[None], draws=4_000)
    assert error < 0.02 and abs(log_z - answers.truth(name)[0]) < 5 * error + 1e-3


@pytest.mark.parametrize(("way", "within"), [("laplace", 0.1), ("auto_mdm", math.inf)])
def test_ways_are_held_to_the_truth(way: str, within: float) -> None:
    job = {"program": "six", "way": way, "seed": 0}
    row = first_answers.scores(job, Namespace(seconds=1.0))
    assert abs(row["log_z_error"]) < within and row["gap"] >= -row["log_z_error"] - 0.01
