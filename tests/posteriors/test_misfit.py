"""What the form of a learned likelihood costs an evidence, and calibrated Bayes factors."""

from __future__ import annotations

import math
from typing import Any, ClassVar

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
    simulate,
)
from pyro_mdm.support.measured import Measured
from tests.exact_likelihood import trials
from tests.mistakes import refused

# -- a drift diffusion -----------------------------------------------------------------------------


class FirstPassage(dist.TorchDistribution):
    """The time at which a diffusion of unit noise first reaches a bound: the law of Wald."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = dist.constraints.positive

    def __init__(self, drift: Tensor, bound: Tensor, batch_shape: Any = None) -> None:
        self.drift, self.bound = torch.broadcast_tensors(drift, bound)
        batch = self.drift.shape if batch_shape is None else torch.Size(batch_shape)
        super().__init__(batch, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> FirstPassage:
        return FirstPassage(
            self.drift.expand(batch_shape), self.bound.expand(batch_shape), batch_shape
        )

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """By Michael, Schucany & Haas (The American Statistician 1976), in float64."""
        shape = torch.Size([*sample_shape, *self.batch_shape])
        drift, bound = (v.double().expand(shape) for v in (self.drift, self.bound))
        mean, square = bound / drift, torch.randn(shape, dtype=torch.float64).square()
        half = mean * square / (2 * bound.square())
        first = mean * (1 + half - (2 * half + half.square()).sqrt())
        first = first.clamp_min(1e-6)
        is_first = torch.rand(shape) * (mean + first) <= mean
        return torch.where(is_first, first, mean.square() / first).float()

    def log_prob(self, t: Tensor) -> Tensor:
        apart = (self.bound - self.drift * t).square() / (2 * t)
        return self.bound.log() - 1.5 * t.log() - 0.5 * math.log(2 * math.pi) - apart


def drift_diffusion() -> None:
    """A choice and the time that it takes."""
    drift = pyro.sample("drift", dist.LogNormal(-2.0, 0.3))
    bound = pyro.sample("bound", dist.LogNormal(0.2, 0.3))
    with pyro.plate("trials", 2):
        pyro.sample("choice", dist.Bernoulli(logits=8 * (drift - 0.15)))
        pyro.sample("time", FirstPassage(drift, bound))


def exact(data: dict[str, Tensor], theta: dict[str, Tensor]) -> Tensor:
    drift, bound = (theta[name].double().unsqueeze(1) for name in ("drift", "bound"))
    of_choice = dist.Bernoulli(logits=8 * (drift - 0.15)).log_prob(data["choice"].double())
    return (of_choice + FirstPassage(drift, bound).log_prob(data["time"].double())).sum(1)


@pytest.mark.slow
def test_the_misfit_of_a_gaussian_law_of_a_drift_diffusion_covers_the_truth() -> None:
    """Evidences of 400 trials by the same draws of the prior, under exact and learned densities."""
    theta = simulate(drift_diffusion, 3000, seed=1, vectorized=True)
    one = {name: value[:1] for name, value in theta.items()}
    off = {}
    for form in ("gaussian", None):
        likelihood = AmortizedLikelihood.fit(
            drift_diffusion,
            ["drift", "bound"],
            ["choice", "time"],
            simulations=2000,
            steps=600,
            hidden=24,
            depth=1,
            form=form,
            vectorized=True,
        )
        torch.manual_seed(3)
        law = FirstPassage(one["drift"], one["bound"])
        chance = dist.Bernoulli(logits=8 * (one["drift"] - 0.15))
        data = {"choice": chance.sample((400,))[:, 0], "time": law.sample((400,))[:, 0]}
        parameters = {name: theta[name] for name in ("drift", "bound")}
        learned = likelihood.log_prob(data, parameters).logsumexp(0)
        off[form] = float(exact(data, parameters).logsumexp(0) - learned), likelihood.misfit(data)
        assert likelihood.laws[0].form == (form or "mixture")
    (lost, misfit), (rest, none) = off["gaussian"], off[None]
    assert lost > 8 and lost < misfit + 4 and misfit < 5 * lost  # 4 nats for the error of learning
    assert none == 0 and abs(rest) < lost / 2


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
