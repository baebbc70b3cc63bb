"""Learned likelihoods of data with heavy tails, held to the simulator's own densities."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_mdm.posteriors import AmortizedJoint, AmortizedLikelihood, log_prior, simulate
from pyro_mdm.posteriors.laws import ContinuousLaw
from pyro_mdm.posteriors.tails import TailMap, scales_of
from pyro_mdm.posteriors.training import TrainingOptions


class Noise:
    """The distribution of x given its center, and whether its tails are heavy beside θ's spread."""

    def __init__(self, law: Callable[[Tensor], Any], is_heavy: bool) -> None:
        self.law, self.is_heavy = law, is_heavy


def with_outliers(center: Tensor) -> dist.TorchDistribution:
    """Gaussian noise that is a hundred times as large in one of a hundred data."""
    scales = torch.tensor([0.1, 10.0])
    each = dist.Normal(center.unsqueeze(-1), scales)
    return dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.99, 0.01])), each)


NOISES = {
    "normal": Noise(lambda center: dist.Normal(center, 0.3), False),
    "laplace": Noise(lambda center: dist.Laplace(center, 0.3), False),
    "cauchy": Noise(lambda center: dist.Cauchy(center, 1.0), True),
    "narrow cauchy": Noise(lambda center: dist.Cauchy(center, 0.1), True),
    "outliers": Noise(with_outliers, False),
    "positive": Noise(
        lambda center: dist.TransformedDistribution(
            with_outliers(center), dist.transforms.ExpTransform()
        ),
        False,
    ),
}


def alone(noise: Noise) -> None:
    theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
    pyro.sample("x", noise.law(theta + theta.tanh()))


def in_a_plate(noise: Noise) -> None:
    theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3):
        pyro.sample("x", noise.law(theta + theta.tanh()))


def beside_a_count(noise: Noise) -> None:
    theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
    count = pyro.sample("count", dist.Poisson(theta.exp()))
    pyro.sample("x", noise.law(theta + theta.tanh() + count))


def beside_a_normal(noise: Noise) -> None:
    theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
    y = pyro.sample("y", dist.Normal(theta, 0.5))
    pyro.sample("x", noise.law(theta + theta.tanh() + y))


PROGRAMS = {
    "alone": (alone, ["x"]),
    "plate": (in_a_plate, ["x"]),
    "count": (beside_a_count, ["count", "x"]),
    "vector": (beside_a_normal, ["y", "x"]),
}
KINDS = [(noise, "alone") for noise in NOISES] + [("cauchy", kind) for kind in [*PROGRAMS][1:]]


def fitted(noise: str, kind: str) -> tuple[AmortizedLikelihood, Callable[[], None], list[str]]:
    program, observed = PROGRAMS[kind]

    def simulator() -> None:
        program(NOISES[noise])

    likelihood = AmortizedLikelihood.fit(
        simulator,
        ["theta"],
        observed,
        simulations=3000,
        steps=400,
        hidden=24,
        depth=1,
        vectorized=True,
    )
    return likelihood, simulator, observed


def bent(likelihood: AmortizedLikelihood) -> list[bool]:
    """Whether the numbers of all data are mapped."""
    maps = [module for module in likelihood.modules() if isinstance(module, TailMap)]
    return torch.cat([module.bent for module in maps]).tolist()


@pytest.mark.parametrize(("noise", "kind"), KINDS, ids=map("-".join, KINDS))
def test_densities_of_heavy_tails_are_near_exact_ones(noise: str, kind: str) -> None:
    likelihood, simulator, observed = fitted(noise, kind)
    expected = [False] * (kind == "vector") + [NOISES[noise].is_heavy]
    assert bent(likelihood) == expected
    new = simulate(simulator, 1000, seed=9, vectorized=True)
    names = ["theta", *observed]
    exact = log_prior(simulator, names, new, vectorized=True) - log_prior(
        simulator, ["theta"], {"theta": new["theta"]}, vectorized=True
    )
    lost = (exact - likelihood.log_prob(new, new)) / (3 if kind == "plate" else 1)
    assert -0.1 < float(lost.mean()) < 0.4


def test_the_map_of_heavy_tails_has_its_determinant_and_its_inverse() -> None:
    torch.manual_seed(0)
    tails = TailMap(3).double()
    tails.bent.copy_(torch.tensor([True, False, True]))
    torch.nn.init.normal_(tails.log_knee)
    r = 5 * torch.randn(3, dtype=torch.float64)
    z, log_det = tails(r)
    torch.testing.assert_close(tails.inverse(z), r)
    assert z[1] == r[1] and z[0] != r[0] and z[2] != r[2]
    jacobian: Any = torch.autograd.functional.jacobian(lambda r: tails(r)[0], r)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian)[1])
    far, log_det = tails.float()(torch.tensor([1e15, 0.0, -1e15]))
    assert bool(far.isfinite().all()) and float(log_det.detach()) < -40
    assert bool(tails.inverse(torch.tensor([1e9, 0.0, -1e9])).isfinite().all())


def test_tails_are_heavy_where_one_number_is_very_far() -> None:
    x = torch.linspace(-1, 1, 101).unsqueeze(1).repeat(1, 3)
    width = 0.68
    x[0, 0], x[0, 1] = -19.5 * width, -20.5 * width
    x[:, 2] = 1.0  # a constant, which has no width
    center, unit, heavy = scales_of(x)
    assert heavy.tolist() == [False, True, False]
    assert center.tolist() == pytest.approx([float(x[:, 0].mean()), 0.0, 1.0], abs=1e-5)
    assert unit.tolist() == pytest.approx([float(x[:, 0].std()), width, 1.0], abs=1e-5)


def test_a_joint_distribution_is_of_numbers_without_heavy_tails() -> None:
    simulator = partial(alone, NOISES["normal"])
    draws = simulate(simulator, 2000, seed=1, vectorized=True)
    draws["x"][0] = 1e6
    joint = AmortizedJoint(simulator, ["theta"], ["x"], draws, hidden=4, depth=1)
    assert joint.tails.bent.tolist() == [False, True]
    spread = joint.model.score_function.data_variance.sqrt()
    assert float(spread.max()) < 3
    drawn = joint.sample({"theta": torch.tensor(0.5)}, 100, seed=0)["x"]
    assert drawn.isfinite().all() and float(drawn.median()) == pytest.approx(0.96, abs=1.0)


def test_draws_and_folders_keep_heavy_tails(tmp_path: Path) -> None:
    likelihood, simulator, _ = fitted("cauchy", "alone")
    theta = {"theta": torch.zeros(4000)}
    drawn = likelihood.sample(theta)["x"]
    inside = [float((drawn.abs() < x).double().mean()) for x in (1.0, 10.0)]
    assert inside == pytest.approx([0.5, 0.937], abs=0.1)
    likelihood.save_pretrained(tmp_path / "new")
    again = AmortizedLikelihood.from_pretrained(tmp_path / "new", simulator)
    log_p = (law.log_prob({"x": drawn}, theta) for law in (again, likelihood))
    torch.testing.assert_close(*log_p, atol=1e-3, rtol=1e-4)


# -- numbers that are positive without a word ------------------------------------------------------

DRAWN = {
    "durations": (dist.LogNormal(0.0, 0.7), 2000, True),
    "waiting times": (dist.Gamma(2.0, 1.0), 2000, True),
    "too few": (dist.LogNormal(0.0, 0.7), 900, False),
    "far from zero": (dist.Normal(20.0, 1.0), 2000, False),
    "about zero": (dist.Normal(0.0, 1.0), 2000, False),
    "skewed below zero": (
        dist.TransformedDistribution(
            dist.LogNormal(0.0, 0.7), dist.transforms.AffineTransform(0.0, -1.0)
        ),
        2000,
        False,
    ),
}


@pytest.mark.parametrize("kind", DRAWN)
def test_numbers_count_as_positive_if_all_are_and_their_logs_are_less_skewed(kind: str) -> None:
    """As those of a black box, whose support is not known; a known support stays."""
    drawn, n, is_positive = DRAWN[kind]
    torch.manual_seed(0)
    x, everywhere = drawn.sample((n, 1, 1)), torch.full((1,), torch.inf)
    options = TrainingOptions(1, 16, 1e-3)
    law = ContinuousLaw(1, 1, hidden=4, depth=1)
    law.fit(x, torch.randn(n, 1), (-everywhere, everywhere), options)
    assert law.bounds.lower.tolist() == [0.0 if is_positive else -torch.inf]
    above = ContinuousLaw(1, 1, hidden=4, depth=1)
    above.fit(x, torch.randn(n, 1), (torch.full((1,), -90.0), everywhere), options)
    assert above.bounds.lower.tolist() == [-90.0]
