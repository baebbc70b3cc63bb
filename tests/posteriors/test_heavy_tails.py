"""Learned likelihoods of data with heavy tails, held to the simulator's own densities."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_mdm.posteriors import AmortizedLikelihood, log_prior, simulate
from pyro_mdm.posteriors.encoding import TailMap
from pyro_mdm.posteriors.laws import ContinuousLaw
from pyro_mdm.posteriors.training import TrainingOptions


def noisy(law: Callable[[Tensor], Any], beside: Any = None) -> None:
    """A number with noise about a curved mean, to which another number is added."""
    theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
    center = theta + theta.tanh()
    if beside is not None:
        center = center + pyro.sample("beside", beside(theta))
    pyro.sample("x", law(center))


def count(theta: Tensor) -> Any:
    return dist.Poisson(theta.exp())


def number(theta: Tensor) -> Any:
    return dist.Normal(theta, 0.5)


def laplace(center: Tensor) -> Any:
    return dist.Laplace(center, 0.3)


def cauchy(center: Tensor) -> Any:
    return dist.Cauchy(center, 1.0)


KINDS = {
    "laplace-alone": (laplace, None, [False]),
    "cauchy-alone": (cauchy, None, [True]),
    "cauchy-count": (cauchy, count, [True]),
    "cauchy-vector": (cauchy, number, [False, True]),
}
"""The noise, what is beside it, and which numbers of a datum have heavy tails beside θ's spread."""


@cache
def fitted(kind: str) -> tuple[AmortizedLikelihood, Callable[[], None], list[str]]:
    law, beside, _ = KINDS[kind]
    simulator, observed = partial(noisy, law, beside), ["x"] if beside is None else ["beside", "x"]
    few: dict[str, Any] = {"simulations": 2000, "steps": 150, "hidden": 16, "depth": 1}
    few |= {"learning_rate": 1e-2, "batch_size": 512}
    return (
        AmortizedLikelihood.fit(simulator, ["theta"], observed, vectorized=True, **few),
        simulator,
        observed,
    )


def bent(likelihood: AmortizedLikelihood) -> list[bool]:
    """Whether the numbers of all data are mapped."""
    maps = [module for module in likelihood.modules() if isinstance(module, TailMap)]
    return torch.cat([module.bent for module in maps]).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_densities_of_heavy_tails_are_near_exact_ones(kind: str) -> None:
    likelihood, simulator, observed = fitted(kind)
    assert bent(likelihood) == KINDS[kind][2]
    new = simulate(simulator, 1000, seed=9, vectorized=True)
    both, alone = (
        log_prior(simulator, names, new, vectorized=True)
        for names in (["theta", *observed], ["theta"])
    )
    assert -0.1 < float((both - alone - likelihood.log_prob(new, new)).mean()) < 0.4


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


def test_draws_and_folders_keep_heavy_tails(tmp_path: Path) -> None:
    likelihood, simulator, _ = fitted("cauchy-alone")
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
    "too few": (dist.LogNormal(0.0, 0.7), 900, False),
    "far from zero": (dist.Normal(20.0, 1.0), 2000, False),
    "about zero": (dist.Gumbel(0.0, 1.0), 2000, False),
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
