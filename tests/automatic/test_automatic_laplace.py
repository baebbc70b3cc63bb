"""Laplace's approximation as the units of a start, for latents of raw scales."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_mdm import AutoMDM
from pyro_mdm.automatic.fitting import FitSettings, Fitting
from pyro_mdm.automatic.laplace import FLAT, MOST_LATENTS, laplace
from pyro_mdm.automatic.weighing import Weighing
from pyro_mdm.budgets import Budget
from pyro_mdm.evaluation.weights import ImportanceWeights

ROWS = 30
X = torch.stack(
    [torch.ones(ROWS), 100.0 * torch.arange(ROWS), torch.linspace(-1, 1, ROWS).exp() / 1e3], 1
)
"""An intercept, metres, and a share."""
WIDTHS = torch.tensor([1e4, 10.0, 1e4])
Y = 3 * torch.linspace(-1, 1, ROWS).sin() + torch.linspace(0, 60, ROWS) + 100


def raw() -> None:
    b = pyro.sample("b", dist.Normal(torch.zeros(3), WIDTHS).to_event(1))
    with pyro.plate("rows", ROWS):
        pyro.sample("y", dist.Normal((X.double() @ b.double()).float(), 5.0), obs=Y)


def evidence() -> float:
    """That of raw, by its normal distribution of data."""
    x = X.double() * WIDTHS.double()
    covariance = x @ x.T + 25 * torch.eye(ROWS).double()
    normal = torch.distributions.MultivariateNormal(torch.zeros(ROWS).double(), covariance)
    return float(normal.log_prob(Y.double()))


def test_latents_of_raw_scales_are_found_at_once() -> None:
    guide = AutoMDM(raw, steps=2).fit(updates=0, start_updates=0, progress=False)
    _, log_weights = Weighing(guide).weighted(500)
    # densities of float32, of terms of hundreds
    assert float((log_weights - evidence()).abs().max()) < 0.05


def test_a_fit_of_raw_scales_keeps_what_it_has() -> None:
    guide = AutoMDM(raw, steps=2).fit(updates=5, start_updates=60, progress=False)
    result = ImportanceWeights(Weighing(guide).weighted(500)[1])
    assert result.effective > 300 and abs(result.log_evidence.mean - evidence()) < 0.3


def funnel() -> None:
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    pyro.sample("x", dist.Normal(0.0, (v / 2).exp()).expand([9]).to_event(1))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_many_latents_of_any_scale_have_a_mode(scale: float) -> None:
    """A determinant of 400 of them is beyond float64."""

    def density(x: Tensor) -> Tensor:
        return -((x / scale - 1).square()).sum(1) / 2

    approximation = laplace(density, torch.zeros(400), Budget())
    assert approximation is not None
    middle, root = approximation
    torch.testing.assert_close(middle, torch.full((400,), scale), rtol=1e-4, atol=0.0)
    torch.testing.assert_close(root, scale * torch.eye(400), rtol=1e-3, atol=1e-6 * scale)


def quartic(x: Tensor) -> Tensor:
    return -(x**4).sum(1) - (x[:, 0] - 2).square()


def test_the_mode_and_the_curvature_are_those_of_a_density() -> None:
    A = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    mean = torch.tensor([3.0, -400.0])

    def density(x: Tensor) -> Tensor:
        return -((x - mean) * ((x - mean) @ A)).sum(1) / 2

    approximation = laplace(density, torch.zeros(2), Budget())
    assert approximation is not None
    middle, root = approximation
    torch.testing.assert_close(middle, mean, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(root @ root.mT, A.inverse(), rtol=1e-4, atol=1e-4)
    assert torch.equal(root, root.tril())


def test_a_scale_that_goes_to_zero_is_not_followed() -> None:
    """The density of a funnel grows without end in its neck, where bounds fall."""
    guide = AutoMDM(funnel, steps=2)
    guide.set_up()
    assert laplace(guide.log_density, torch.ones(10), Budget()) is None


def of_nothing(x: Tensor) -> Tensor:
    return x.sum(1) * math.nan


@pytest.mark.parametrize("density, dim", [(of_nothing, 2), (quartic, MOST_LATENTS + 1)])
def test_there_is_none_of_no_numbers_or_too_many(density: Any, dim: int) -> None:
    assert laplace(density, torch.ones(dim), Budget()) is None


def test_a_flat_latent_has_a_limit() -> None:
    approximation = laplace(lambda x: -x[:, 0].square() / 2 + 0 * x[:, 1], torch.ones(2), Budget())
    assert approximation is not None
    deviations = approximation[1].square().sum(1).sqrt()
    assert float(deviations[0]) == pytest.approx(1) and deviations[1] >= FLAT**-0.5


@pytest.mark.parametrize("start", ["gaussian", "shaped"])
def test_the_gaussian_leaves_its_units(start: str) -> None:
    """It is the same one before and after, with the same bound of the same draws."""
    guide = AutoMDM(raw, steps=2, start=start)
    guide.set_up()
    root = torch.tensor([[200.0, 0.0, 0.0], [-2.0, 0.5, 0.0], [3.0, 40.0, 900.0]])
    fitting = Fitting(guide, (), {}, FitSettings(0, 0), 8, Budget(), progress=False)
    fitting.units = torch.tensor([100.0, 0.02, -50.0]), root
    bounds = []
    with torch.no_grad():
        guide.loc.zero_()  # a draw of the prior else, which is far in other units
        for parameter in guide.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        if start == "gaussian":
            u, (middle, R) = torch.randn(5, 3), fitting.units
            z = guide.loc + u @ guide.root.mT
            placed = fitting._ratio_of_start().place(u)
            torch.testing.assert_close(placed, middle + z @ R.mT, rtol=1e-4, atol=1e-2)
        for _ in range(2):
            pyro.set_rng_seed(1)
            bounds.append(fitting._bound_of_start(50))
            fitting._leave_units()
    assert fitting.units is None and guide.loc[0] > 50
    torch.testing.assert_close(*bounds, rtol=1e-3, atol=0.05)


@pytest.mark.parametrize("start", ["gaussian", "shaped", "particles"])
def test_programs_of_float64_are_fitted(start: str) -> None:
    def program() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))

    guide = AutoMDM(program, start=start, steps=2)
    guide.fit(updates=2, start_updates=4, particles=512, progress=False)
    assert Weighing(guide).weighted(10)[1].isfinite().all()


@pytest.mark.parametrize("updates, is_kept", [(0, True), (2_000, False)])
def test_the_better_start_is_that_of_the_race(
    updates: int, is_kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spike near the mode has a higher bound than the usual start, and cannot leave."""

    def program() -> None:
        pyro.sample("x", dist.Normal(5.0, 1.0))

    spike = torch.tensor([4.0]), torch.tensor([[1e-4]])
    monkeypatch.setattr("pyro_mdm.automatic.fitting.laplace", lambda *_: spike)
    guide = AutoMDM(program, steps=2, init_loc_fn=lambda site: torch.tensor(0.0))
    guide.fit(updates=0, start_updates=updates, progress=False)
    assert abs(float(guide.loc.detach()) - (4 if is_kept else 5)) < 0.5
    assert (float(guide.scale.detach()) < 1e-3) == is_kept
    assert guide.outcomes["Gaussian"].steps == updates


def test_a_start_without_gradients_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = torch.tensor([math.nan]), torch.eye(1)
    monkeypatch.setattr("pyro_mdm.automatic.fitting.laplace", lambda *_: nowhere)

    def program() -> None:
        pyro.sample("x", dist.Normal(1.0, 1.0))

    guide = AutoMDM(program, steps=2).fit(updates=0, start_updates=400, progress=False)
    assert abs(float(guide.loc.detach()) - 1) < 0.5
