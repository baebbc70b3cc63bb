"""Where a likelihood knows its parameters, what its learning is off by, and further rounds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_mdm.posteriors import AmortizedLikelihood, LearnedEvidence, LikelihoodMembers, simulate
from pyro_mdm.posteriors.predictive import PriorPredictive
from pyro_mdm.pretrained import PretrainedError
from pyro_mdm.support.measured import Measured
from tests.exact_likelihood import exact_likelihood, trials
from tests.mistakes import refused

FEW: dict[str, Any] = {"steps": 2, "hidden": 8, "depth": 1, "form": "gaussian"}


@pytest.fixture(scope="module")
def exact() -> AmortizedLikelihood:
    return exact_likelihood()


# -- where parameters are known --------------------------------------------------------------------


@pytest.mark.parametrize("k, flat", [(1, 1.0), (3, 1.0), (3, 1e-3)])
def test_new_parameters_of_the_simulations_are_inside_but_for_chance(k: int, flat: float) -> None:
    """Of 5,000 one in 501 on average; by exchangeability the fraction has mean and spread 1/501.

    The last have a direction of little spread, which no parameter has alone.
    """
    torch.manual_seed(0)
    mixed = torch.linalg.qr(torch.randn(k, k))[0]
    mixed[0] *= flat
    domain = PriorPredictive(torch.randn(1000, k) @ mixed)
    outside = domain.outside(torch.randn(5000, k) @ mixed)
    # Beta(1, 500): above 0.028 with probability 7e-7
    assert float(outside.double().mean()) < 0.028
    far = 8 * torch.nn.functional.normalize(torch.randn(50, k), dim=1) @ mixed
    assert bool(domain.outside(far).all())
    odd = torch.tensor([[math.nan] * k, [math.inf] * k])
    assert bool(domain.outside(odd).all())


def test_a_place_between_all_simulations_is_outside() -> None:
    """Distances are to the nearest, not to the middle."""
    torch.manual_seed(0)
    angle = 2 * math.pi * torch.rand(1000)
    domain = PriorPredictive(torch.stack([angle.cos(), angle.sin()], 1))
    assert domain.outside(torch.tensor([[0.0, 0.0], [1.0, 0.0]])).tolist() == [True, False]


def test_parameters_unlike_all_simulations_are_impossible_if_asked(exact: Any) -> None:
    theta, x = torch.tensor([0.0, 40.0]), torch.zeros(2, 4)
    free = exact.given(theta).log_prob(x)
    known = exact.given(theta, known_only=True).log_prob(x)
    assert exact.outside({"theta": theta}).tolist() == [False, True]
    assert bool(free.isfinite().all()) and known[1] == -math.inf
    torch.testing.assert_close(known[0], free[0])
    rows = torch.func.vmap(lambda t: exact.given(t, known_only=True).log_prob(x))
    torch.testing.assert_close(rows(theta.expand(3, 2)), known.expand(3, 2))


def test_draws_outside_are_warned_of_with_their_fraction(exact: Any) -> None:
    theta = torch.zeros(50, 6)
    theta[:10, 0] = 50.0
    with pytest.warns(UserWarning, match=r"3.3% of 300 draws of the parameters are unlike all"):
        part = exact.fraction_outside({"theta": theta})
    assert part == pytest.approx(10 / 300)
    assert exact.fraction_outside({"theta": torch.zeros(50, 6)}) == 0.0
    refused(
        ValueError,
        (lambda: exact.outside({"mu": theta}), "theta has no sites, expected 'theta' of shape"),
        (lambda: exact.given({}), "theta has no sites, expected 'theta' of shape"),
    )


def test_a_posterior_far_from_its_simulations_warns() -> None:
    """Simulations given are of a part of the prior; the data are of another."""
    draws = simulate(trials, 400, seed=0, vectorized=True)
    near = draws["theta"] < 0
    draws = {name: value[near] for name, value in draws.items()}
    likelihood = AmortizedLikelihood.fit(trials, ["theta"], ["x"], draws=draws, **FEW)
    torch.nn.init.zeros_(likelihood.laws[0].gaussian.outlet.weight)
    with pytest.warns(UserWarning, match="unlike all that were simulated"):
        likelihood.posterior({"x": torch.full((4,), 5.0)}, 100, particles=160, moves=0.1)


# -- the error of learning -------------------------------------------------------------------------


def test_both_errors_are_printed() -> None:
    found = LearnedEvidence(-12.345678, 0.0123, 0.21)
    assert str(found) == "log evidence -12.346 ± 0.012 (Monte Carlo) ± 0.21 (learning)"
    assert found.interval == Measured(-12.345678, 0.21).interval
    alike = LearnedEvidence.from_members([Measured(-3.0, 0.1)] * 3)
    assert alike.learning == 0.0 and alike.monte_carlo == pytest.approx(0.1 / math.sqrt(3))


@pytest.fixture(scope="module")
def members() -> LikelihoodMembers:
    draws = simulate(trials, 200, seed=0, vectorized=True)
    found = LikelihoodMembers.fit(trials, ["theta"], ["x"], members=3, draws=draws, **FEW)
    torch.manual_seed(0)
    for member in found:
        for parameter in member.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return found


def test_members_are_one_distribution(members: Any) -> None:
    """The mean of their densities, and draws of each."""
    torch.manual_seed(0)
    theta, x = torch.randn(5), torch.randn(5, 4)
    whole = members.given(theta)
    each = torch.stack([member.given(theta).log_prob(x) for member in members])
    torch.testing.assert_close(whole.log_prob(x), each.logsumexp(0) - math.log(3))
    assert whole.sample((2,)).shape == (2, 5, 4)
    many = torch.func.vmap(lambda t: members.given(t).log_prob(x))(theta.expand(2, 5))
    torch.testing.assert_close(many[1], whole.log_prob(x), rtol=1e-5, atol=1e-4)
    moments = [member.sample({"theta": theta[:1].expand(4000)}, seed=0)["x"] for member in members]
    drawn = members.sample({"theta": theta[:1].expand(4000)}, seed=1)["x"]
    middle = torch.stack([m.mean() for m in moments]).mean()
    spread = torch.cat(moments).std()
    assert float(drawn.mean()) == pytest.approx(float(middle), abs=5 * float(spread) / 4000**0.5)


def test_members_learn_from_different_halves_and_are_saved(tmp_path: Path) -> None:
    draws = simulate(trials, 60, seed=0, vectorized=True)
    found = LikelihoodMembers.fit(trials, ["theta"], ["x"], members=2, draws=draws, **FEW)
    seen = [set(member.simulations["theta"].tolist()) for member in found]
    assert [len(some) for some in seen] == [30, 30] and seen[0] != seen[1]
    assert seen[0] | seen[1] <= set(draws["theta"].tolist())
    found.save_pretrained(tmp_path)
    again = LikelihoodMembers.from_pretrained(tmp_path, trials)
    theta, x = torch.randn(5), torch.randn(5, 4)
    assert torch.equal(again.given(theta).log_prob(x), found.given(theta).log_prob(x))
    other = AmortizedLikelihood.fit(trials, ["theta"], ["x"], draws=draws, **FEW)
    other.observed = ["y"]
    refused(
        (ValueError, PretrainedError),
        (lambda: LikelihoodMembers([other]), "there are 1 members, expected two or more"),
        (lambda: LikelihoodMembers([*found, other]), "expected the same"),
        (lambda: LikelihoodMembers.from_pretrained(tmp_path / "none", trials), "is missing"),
    )


def test_the_evidence_of_any_program_has_both_errors(members: Any) -> None:
    """By a function of a likelihood, and by the posterior of one datum of each member."""
    numbers = iter([1.0, 2.0, 4.5])
    found = members.evidence(lambda likelihood: Measured(next(numbers), 0.3), {"x": torch.zeros(4)})
    student = 4.302652729911275 / 1.959963984540054  # of two degrees of freedom
    expected = float(torch.tensor([1.0, 2.0, 4.5]).double().std()) * student * math.sqrt(4 / 3)
    assert found.mean == pytest.approx(2.5)
    assert found.learning == pytest.approx(expected, rel=1e-6)
    assert found.monte_carlo == pytest.approx(0.3 / math.sqrt(3))
    drawn = members.posterior({"x": torch.zeros(4)}, 31, particles=160, moves=0.5)
    assert drawn.draws["theta"].shape == (31,) and "(learning)" in str(drawn.log_evidence)
    with pytest.raises(ValueError, match="given has all parameters"):  # of each member
        members.posterior({"x": torch.zeros(4)}, 31, given={"theta": torch.tensor(1.0)})


# -- further rounds --------------------------------------------------------------------------------


def test_a_second_round_is_one_call(exact: Any) -> None:
    """Simulations at each θ are learned from beside those of before; the result is a site."""
    theta = torch.full((4, 25), 2.0)
    second = exact.refined({"theta": theta}, steps=2, form="gaussian")
    assert len(second.simulations["x"]) == len(exact.simulations["x"]) + 100
    there = second.simulations["theta"] == 2.0
    assert int(there.sum()) == 100
    x = second.simulations["x"][there]
    assert float(x.mean()) == pytest.approx(2.0, abs=5 * 0.5 / math.sqrt(400))
    assert second.given(torch.zeros(3)).log_prob(torch.zeros(3, 4)).shape == (3,)
    third = second.refined({"theta": theta}, steps=2, form="gaussian")
    assert len(third.simulations["x"].unique(dim=0)) == len(third.simulations["x"])
    far = {"theta": torch.full((1,), 30.0)}
    assert bool(exact.outside(far).all())
    wider = exact.refined({"theta": 30 + torch.rand(400)}, steps=2, form="gaussian")
    assert not bool(wider.outside(far).any())


# -- repeats ---------------------------------------------------------------------------------------
