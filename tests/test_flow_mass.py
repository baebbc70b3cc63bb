"""The mass of the flow's density, and its error in the mean, by the steps that MDM chooses."""

from __future__ import annotations

import warnings

import pytest
import torch

from pyro_mdm import MDM, VPSDE, DiffusionModel
from pyro_mdm.distribution import LARGEST, MEAN
from pyro_mdm.paths.flow import Solver
from tests.problems import ExactDenoiser, GaussianMixture

MODES = {
    "one of two sizes": ([0.0, 0.0], [1.0, 0.3], [0.5, 0.5]),
    "two": ([-1.0, 1.0], [0.5, 0.5], [0.5, 0.5]),
    "two, narrower": ([-1.0, 1.0], [0.3, 0.3], [0.5, 0.5]),
    "two, narrow": ([-1.0, 1.0], [0.1, 0.1], [0.5, 0.5]),
    "two, sharp": ([-1.0, 1.0], [0.03, 0.03], [0.5, 0.5]),
    "three, unequal": ([-1.0, 0.3, 1.0], [0.05, 0.1, 0.02], [0.2, 0.5, 0.3]),
    "five": ([-2.0, -1.0, 0.0, 1.0, 2.0], [0.05] * 5, [0.2] * 5),
    "a sharp one beside a wide one": ([0.0, 3.0], [0.3, 0.02], [0.7, 0.3]),
}
"""Means, standard deviations and weights of mixtures in one dimension."""


def mixture(name: str) -> GaussianMixture:
    means, deviations, weights = (torch.tensor(v, dtype=torch.float64) for v in MODES[name])
    return GaussianMixture(weights, means[:, None], deviations.square()[:, None, None])


def grid(problem: GaussianMixture) -> torch.Tensor:
    """Points that resolve all modes and what is between them, (n,)."""
    means, deviations = problem.means[:, 0], problem.covariances[:, 0, 0].sqrt()
    near = means[:, None] + deviations[:, None] * torch.linspace(-7, 7, 141).double()
    between = torch.linspace(float(means.min()) - 3, float(means.max()) + 3, 601).double()
    return torch.cat([near.flatten(), between]).unique()


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("high", [9.0, 12.0])
@pytest.mark.parametrize("name", MODES)
def test_its_mass_is_1_and_no_mean_is_off(name: str, high: float) -> None:
    """Twenty steps leave up to 0.002 nats in the mean of wide modes, which a plate adds up. At the
    most steps some mass may be left between sharp modes."""
    problem = mixture(name)
    model = DiffusionModel(VPSDE(max_log_snr=high), ExactDenoiser(problem)).eval()
    law, x = MDM(model), grid(problem)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the most steps are too few
        steps = law._steps
    mass = float(torch.trapezoid(law.log_prob(x[:, None]).exp(), x))
    assert mass == pytest.approx(1, abs=MEAN if steps < LARGEST else 3 * MEAN)
    drawn = problem.sample(500)
    fine = MDM(model, solver=Solver("adams", steps=2 * steps)).log_prob(drawn)
    assert abs(float((law.log_prob(drawn) - fine).mean())) < MEAN
