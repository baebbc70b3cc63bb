"""What the form of a learned likelihood costs an evidence, and calibrated Bayes factors."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_mdm import AutoMDM
from pyro_mdm.posteriors import (
    AmortizedLikelihood,
    FactorCalibration,
    LearnedEvidence,
    LikelihoodMembers,
    calibrate_factor,
)
from pyro_mdm.support.measured import Measured
from tests.exact_likelihood import trials
from tests.mistakes import refused

# -- noise that is not Gaussian --------------------------------------------------------------------


def choices() -> None:
    """A choice, and a number whose noise is that of Laplace."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("trials", 2):
        choice = pyro.sample("choice", dist.Bernoulli(logits=a))
        pyro.sample("x", dist.Laplace(a + choice, 0.5))


@pytest.mark.slow
def test_the_misfit_of_a_gaussian_covers_the_truth() -> None:
    """Evidences of 400 trials by the same draws of the prior, under exact and learned densities."""
    a, one = torch.randn(1000, 1), torch.tensor([0.4])
    for form in ("gaussian", None):
        few: dict[str, Any] = {"simulations": 2000, "steps": 300, "hidden": 16, "depth": 1}
        likelihood = AmortizedLikelihood.fit(
            choices, ["a"], ["choice", "x"], form=form, vectorized=True, **few
        )
        torch.manual_seed(3)
        choice = dist.Bernoulli(logits=one).sample((400,))[:, 0]
        x = dist.Laplace(one + choice, 0.5).sample()
        exact = dist.Bernoulli(logits=a).log_prob(choice) + dist.Laplace(a + choice, 0.5).log_prob(
            x
        )
        data = {"choice": choice, "x": x}
        learned = likelihood.log_prob(data, {"a": a[:, 0]}).logsumexp(0)
        lost = float(exact.double().sum(1).logsumexp(0) - learned)
        assert likelihood.laws[0].form == (form or "mixture")
        if form is None:
            assert likelihood.misfit(data) == 0 and lost < 10
        else:
            misfit = likelihood.misfit(data)
            assert lost > 12 and lost < misfit + 8 and misfit < 5 * lost


# -- the term --------------------------------------------------------------------------------------

GAINS = [
    ("gaussian", Measured(0.5, 0.1), 0.5 + 1.959964 * 0.1),
    ("gaussian", Measured(0.01, 0.1), 0.01 + 1.959964 * 0.1),
    ("gaussian", Measured(-0.5, 0.1), 0.0),
    ("gaussian", None, 0.0),
    ("mixture", Measured(0.5, 0.1), 0.0),
]


@pytest.fixture(scope="module")
def members() -> LikelihoodMembers:
    few: dict[str, Any] = {"steps": 1, "hidden": 8, "depth": 1, "vectorized": True}
    return LikelihoodMembers.fit(trials, ["theta"], ["x"], members=2, simulations=100, **few)


@pytest.mark.parametrize(("form", "gain", "of_datum"), GAINS)
def test_a_misfit_is_the_gain_of_a_richer_form_times_the_data(
    members: LikelihoodMembers, form: Any, gain: Any, of_datum: float
) -> None:
    """Of data that are there, of one member and of all, in the evidence and in its text."""
    for member in members:
        (law,) = member.laws
        law.form, law.gain = form, gain
    x = torch.randn(3, 7)
    x[1, 4:] = math.nan
    data = {"x": x}
    assert members.members[0].misfit(data) == pytest.approx(18 * of_datum, rel=1e-5)
    members.members[1].laws[0].gain = None
    assert members.misfit(data) == pytest.approx(9 * of_datum, rel=1e-5)
    found = members.evidence(lambda likelihood: Measured(-3.0, 0.1), data)
    assert found.misfit == members.misfit(data)
    assert ("misfit" in str(found)) == (of_datum > 0)
    low, high = LearnedEvidence(-3.0, 0.1 / math.sqrt(2), 0.0, 2).interval
    assert found.interval == pytest.approx((low, high + found.misfit))
    one = members.posterior({"x": x[0]}, 10, particles=160, moves=0.5).log_evidence
    assert one.misfit == pytest.approx(3.5 * of_datum, rel=1e-5)


# -- factors on simulations of either --------------------------------------------------------------


def steady() -> None:
    pyro.sample("x", dist.Normal(torch.zeros(4), 1.0).to_event(1))


def moved() -> None:
    pyro.sample("x", dist.Normal(torch.ones(4), 1.0).to_event(1))


def log_factor(data: dict[str, Tensor]) -> float:
    x = data["x"]
    return float((dist.Normal(0.0, 1.0).log_prob(x) - dist.Normal(1.0, 1.0).log_prob(x)).sum())


@pytest.mark.parametrize(("slope", "shift"), [(1.0, 0.0), (0.5, -2.0)])
def test_a_factor_that_is_off_is_calibrated_on_simulations(slope: float, shift: float) -> None:
    """One that is right stays; of others, the odds are those of the right one."""
    found = calibrate_factor(
        lambda data: slope * log_factor(data) + shift, steady, moved, ["x"], 400, vectorized=True
    )
    assert found.first.shape == found.second.shape == (400,)
    for right in (-2.0, 0.0, 2.0):
        value = found.calibrated(slope * right + shift)
        assert abs(value.mean - right) < 5 * value.standard_error < 2.5
    if shift == 0:
        share = float((found.first > 0).double().mean())
        assert share == pytest.approx(0.841, abs=5 * 0.37 / 20)
        assert f"above 0 in {share:.0%}" in str(found)


def test_factors_that_never_overlap_have_a_line_too() -> None:
    apart = FactorCalibration(torch.full((20,), 30.0), torch.full((20,), -30.0))
    assert 10 < apart.calibrated(30.0).mean < 60
    refused(
        ValueError,
        (lambda: calibrate_factor(log_factor, steady, moved, ["y"], 2), "has no site 'y'"),
    )


def test_a_check_has_the_misfit_of_sites_with_a_learned_likelihood() -> None:
    """Of 7 units with 5 data each, of which one is missing, at 0.1 nats."""

    def simulator() -> None:
        rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
        with pyro.plate("days", 5):
            pyro.sample("x", dist.Normal(rate, 1.0))

    likelihood = AmortizedLikelihood.fit(simulator, ["rate"], ["x"], simulations=50, steps=2)
    for law in likelihood.laws:
        law.form, law.gain = "gaussian", Measured(0.1, 0.0)

    def population(x: Tensor) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
        with pyro.plate("units", len(x)):
            pyro.sample("x", likelihood.given(scale.expand(len(x))), obs=x)

    data = torch.randn(7, 5)
    data[0, 0] = math.nan
    guide = AutoMDM(population, steps=2)
    guide.fit(data, updates=0, start_updates=0, progress=False)
    result = guide.check(data, other=None, num_samples=400)
    assert result.misfit == pytest.approx(3.4)
    assert not result.is_trusted and "form=None" in result.remedies[0]
    assert "misfit: a richer form of likelihoods gains up to 3.4 nats" in repr(result)
    for law in likelihood.laws:
        law.form = "mixture"
    assert guide.check(data, other=None, num_samples=400).misfit == 0
