"""Checks of posteriors: coverage, calibration at an observation, and odd observations."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from torch import Tensor

from pyro_mdm.posteriors import AmortizedPosterior, calibrate_at, expected_coverage, simulate
from pyro_mdm.posteriors.predictive import PriorPredictive
from tests.mistakes import refused
from tests.problems import generator

NOISE = 0.5


def program() -> None:
    theta = pyro.sample("theta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(theta, NOISE).to_event(1))


class Exactly(AmortizedPosterior):
    """The exact posterior of this program, or one that is wrong where x_0 is positive.

    Wrong is a spread ``wrong`` times as large.
    """

    def __init__(self, wrong: float = 1.0, **options: Any) -> None:
        draws = simulate(program, 400, seed=0, vectorized=True)
        super().__init__(program, ["theta"], ["x"], draws, **options)
        self.wrong = wrong

    def law(self, x: Tensor) -> dist.Normal:
        """The posterior of data (n, 2); by the prior where they are missing."""
        seen = ~x.isnan()
        precision = 1 + seen / NOISE**2
        scale = torch.where(x[:, :1] > 0, self.wrong, 1.0) * precision.rsqrt()
        return dist.Normal(torch.where(seen, x, 0) / NOISE**2 / precision, scale)

    def sample(self, data: Any, n: int, *, seed: int | None = None) -> dict[str, Tensor]:
        law = self.law(data["x"])
        noise = torch.randn(n, *law.loc.shape, generator=generator(seed or 0))
        return {"theta": (law.loc + law.scale * noise).transpose(0, 1)}

    def log_prob(self, theta: Any, data: Any, **options: Any) -> Any:
        value = self.law(data["x"]).log_prob(theta["theta"]).sum(1)
        noise = 0.1 * torch.randn(len(value), generator=generator(options["seed"]))
        return type("", (), {"value": (value + noise).double()})


# -- coverage --------------------------------------------------------------------------------------


def test_regions_of_the_exact_posterior_hold_what_they_say() -> None:
    """Levels are uniform, also where densities are estimates; and not those of a posterior that is
    too wide for half of the data."""
    options: dict[str, Any] = {"joint": True, "vectorized": True}
    right = expected_coverage(Exactly(), program, 400, 49, **options)
    wide = expected_coverage(Exactly(wrong=3.0), program, 400, 49, **options)
    assert right.levels["theta"].shape == (400, 2) and right.joint is not None
    for levels, wrong in ((right.levels["theta"][:, 0], wide.levels["theta"][:, 0]),):
        assert scipy.stats.kstest(levels, "uniform").pvalue > 1e-7
        assert scipy.stats.kstest(wrong, "uniform").pvalue < 1e-8
    assert scipy.stats.kstest(right.joint, "uniform").pvalue > 1e-7
    assert scipy.stats.kstest(wide.joint, "uniform").pvalue < 1e-8
    assert wide.of_region(0.5) > 0.6 and float(wide.by_site(0.5)["theta"].min()) > 0.6
    assert right.of_region(0.9) == pytest.approx(0.9, abs=5 * right.error(0.9))
    assert right.error(0.9) == pytest.approx(0.015)
    assert "400 simulations: 50% intervals contain" in repr(right)
    plain = expected_coverage(Exactly(), program, 20, 9, vectorized=True)
    assert plain.joint is None and math.isnan(plain.of_region(0.5)) and "joint" not in repr(plain)


# -- at an observation -----------------------------------------------------------------------------


def test_a_posterior_that_is_wrong_somewhere_is_told_there() -> None:
    posterior = Exactly(wrong=3.0)
    bad, good = (
        calibrate_at(posterior, program, {"x": torch.tensor([x, 0.0])}, 2000, 200, vectorized=True)
        for x in (1.5, -1.5)
    )
    assert bad.smallest < 1e-9 and good.smallest > 1e-7
    assert bad.ranks["theta"].shape == (200, 2)


def test_neighbours_are_near_in_what_is_seen() -> None:
    asked: list[Tensor] = []

    class Told(Exactly):
        def sample(self, data: Any, n: int, *, seed: int | None = None) -> dict[str, Tensor]:
            asked.append(data["x"])
            return super().sample(data, n, seed=seed)

    one = {"x": torch.tensor([1.0, math.nan])}
    near = calibrate_at(Told(missing=True), program, one, 1000, 100, vectorized=True)
    (x,) = asked
    assert bool(x[:, 1].isnan().all()) and near.smallest > 1e-7
    assert float((x[:, 0] - 1).abs().max()) < 0.4  # and 7% of all are within 0.2


# -- odd observations ------------------------------------------------------------------------------


def test_p_values_are_uniform_for_simulations_and_small_for_odd_data() -> None:
    """Odd are data far away, and data that break a correlation though each number is usual."""
    root = torch.tensor([[1.0, 0.0], [0.99, 0.14]])
    x = torch.randn(1600, 2, generator=generator(0)) @ root.mT
    predictive = PriorPredictive(x[:1000])
    assert predictive.kept.shape == (1000, 2) and predictive.compared == 500
    every = torch.ones(1, 2, dtype=torch.bool)
    covariance = predictive.whitened(x, every[0]).mT.cov()
    torch.testing.assert_close(covariance, torch.eye(2).double(), atol=0.4, rtol=0)
    p = predictive.p_values(x[1000:], every.expand(600, 2))
    assert scipy.stats.kstest(p, "uniform").pvalue > 1e-7 and bool((p > 0).all())
    odd = torch.tensor([[9.0, 9.0], [1.5, -1.5], [1.5, 1.5]])
    found = predictive.p_values(odd, every.expand(3, 2))
    assert found[0] == found[1] == pytest.approx(1 / 501) and found[2] > 0.02
    first = torch.tensor([[True, False]])  # the second number is missing
    assert float(predictive.p_values(odd[1:2], first)) > 0.02
    assert float(predictive.p_values(odd[:1], ~first)) == pytest.approx(1 / 501)
    assert float(predictive.p_values(odd[:1], first & ~first)) == 1


@pytest.mark.parametrize("odd", [0, 1, 2, 3, 4, 5])
def test_more_odd_data_than_chance_makes_are_a_warning(odd: int) -> None:
    """Of 60: by chance three are farther than 200 simulations in one case of 85, four of 380."""
    torch.manual_seed(0)
    predictive = PriorPredictive(torch.randn(400, 2))
    usual = predictive.kept[: predictive.compared][: 60 - odd]
    x = torch.cat([usual[usual.norm(dim=1).argsort()], torch.full((odd, 2), 50.0)])
    x[: 60 - odd] = x[0]  # not the farthest one itself
    said = predictive.warning(x, torch.ones_like(x, dtype=torch.bool))
    assert (said is not None) == (odd > 3)
    assert said is None or said.startswith(f"{odd} of 60 observations are unlike all")


def test_an_odd_observation_is_a_warning(tmp_path: Path) -> None:
    """Where it is sampled and where a guide is made; also of a posterior that was saved."""
    draws = simulate(program, 400, seed=0, vectorized=True)
    posterior = AmortizedPosterior(program, ["theta"], ["x"], draws)
    usual, odd = {"x": torch.tensor([0.1, -0.3])}, {"x": torch.tensor([30.0, 0.0])}
    posterior.save_pretrained(tmp_path)
    opened = AmortizedPosterior.from_pretrained(tmp_path, program)
    for own in (posterior, opened):
        assert float(own.predictive_p_value(odd)) == pytest.approx(1 / 201)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            own.sample(usual, 3)
            own.guide(usual)
        for asked in (lambda own=own: own.sample(odd, 3), lambda own=own: own.guide(odd)):
            with pytest.warns(UserWarning, match="unlike all simulations: .* each of 200") as said:
                asked()
            assert said[0].filename == __file__
        several = {"x": torch.cat([draws["x"][:40], odd["x"].expand(3, 2)])}
        with pytest.warns(UserWarning, match=r"[34] of 43 observations are unlike all sim") as said:
            own.sample(several, 3)
        assert said[0].filename == __file__
    both = {"x": torch.stack([usual["x"], odd["x"]])}
    assert torch.equal(opened.predictive_p_value(both), posterior.predictive_p_value(both))


def test_mistakes_are_named() -> None:
    posterior, one = Exactly(), {"x": torch.zeros(2)}
    refused(
        ValueError,
        (lambda: calibrate_at(posterior, program, one, 5, 6), "nearest is 6, expected at most sim"),
        (lambda: calibrate_at(posterior, program, {"x": torch.zeros(2, 2)}), "data are 2 obs"),
        (lambda: PriorPredictive(torch.zeros(1, 2)), "1 simulations to keep, expected at least"),
    )
