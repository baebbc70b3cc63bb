"""Every conditional of a simulator, by one model of its parameters and data."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_mdm.posteriors import AmortizedJoint, simulate

FAR = 5.5
"""Standard errors that a right mean of draws exceeds in one of 26 million."""


def linear() -> None:
    """Two parameters, and two data that are sums of them with noise: everything is Gaussian."""
    theta = pyro.sample("theta", dist.Normal(torch.tensor([3.0, -2.0]), 1.0).to_event(1))
    total, apart = theta.sum(-1), theta[..., 0] - theta[..., 1]
    pyro.sample("total", dist.Normal(total, 0.5))
    pyro.sample("apart", dist.Normal(apart, 0.5))


MEAN = torch.tensor([3.0, -2.0, 1.0, 5.0], dtype=torch.float64)
"""That of θ_0, θ_1, total and apart."""


def covariance() -> Tensor:
    """That of θ_0, θ_1, total and apart."""
    maps = torch.tensor([[1.0, 0], [0, 1], [1, 1], [1, -1]], dtype=torch.float64)
    return maps @ maps.T + torch.diag(torch.tensor([0.0, 0, 0.25, 0.25], dtype=torch.float64))


def mixed() -> None:
    """A parameter in an interval, a probability vector, and a datum."""
    rate = pyro.sample("rate", dist.Uniform(0.0, 2.0))
    share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
    pyro.sample("x", dist.Normal(rate + share[..., 0], 0.1))


LINEAR = (linear, ["theta"], ["total", "apart"])
MIXED = (mixed, ["rate", "share"], ["x"])


def untrained(n: int = 5_000) -> AmortizedJoint:
    """The model before training, which is the Gaussian distribution of the simulations."""
    return AmortizedJoint(*LINEAR, simulate(linear, n, seed=0, vectorized=True)).eval()


def few(sites: tuple) -> AmortizedJoint:
    draws = simulate(sites[0], 200, seed=0, vectorized=True)
    return AmortizedJoint.fit(*sites, draws=draws, steps=3, hidden=8, depth=1)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"total": torch.tensor(2.5)},
        {"total": torch.tensor(2.5), "apart": torch.tensor(4.6)},
        {"theta": torch.tensor([3.7, -2.2])},
        {"theta": torch.tensor([3.7, math.nan]), "apart": torch.tensor(6.0)},
    ],
)
def test_it_starts_as_all_conditionals_of_a_gaussian(given: dict[str, Tensor]) -> None:
    """Whitened by the exact conditional, draws have mean 0 and covariance 1."""
    n = 2_000
    drawn = untrained().sample(given, n, seed=1)
    z = torch.cat([drawn["theta"], drawn["total"][:, None], drawn["apart"][:, None]], 1).double()
    nan = torch.tensor(math.nan)
    values = [given.get("theta", nan.expand(2)), *(given.get(k, nan) for k in ("total", "apart"))]
    row = torch.cat([value.reshape(-1) for value in values]).double()
    u, o = row.isnan(), ~row.isnan()
    assert torch.equal(z[:, o], row[o].expand(n, -1))
    C = covariance()
    gain = torch.linalg.solve(C[o][:, o], C[o][:, u]).T
    mean, within = MEAN[u] + gain @ (row[o] - MEAN[o]), C[u][:, u] - gain @ C[o][:, u]
    root = torch.linalg.cholesky(within)
    white = torch.linalg.solve_triangular(root, (z[:, u] - mean).T, upper=False).T
    # 5,000 simulations and 25 steps of the sampler leave a tenth of a standard deviation
    assert float(white.mean(0).abs().max()) < FAR / math.sqrt(n) + 0.1
    moments = white.T @ white / n
    assert float((moments - torch.eye(len(moments))).abs().max()) < FAR * math.sqrt(2 / n) + 0.1


def test_training_learns_what_no_gaussian_has() -> None:
    """The bound of θ and θ² with noise gets better by training, on held-out simulations."""

    def bent() -> None:
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(theta.square(), 0.1))

    draws = simulate(bent, 1_000, seed=0, vectorized=True)
    losses = []
    for steps in (1, 240):
        settings = {"draws": draws, "steps": steps, "hidden": 32, "depth": 2}
        outcome = AmortizedJoint.fit(bent, ["theta"], ["x"], **settings).outcome
        assert outcome is not None and outcome.best is not None
        losses.append(outcome.best)
    assert losses[1] < losses[0] - 0.1


def test_values_that_are_given_stay_and_others_keep_their_support() -> None:
    joint = few(MIXED)
    drawn = joint.sample({"rate": torch.tensor(0.3)}, 50, seed=0)
    assert {name: value.shape for name, value in drawn.items()} == {
        "rate": (50,),
        "share": (50, 3),
        "x": (50,),
    }
    assert torch.equal(drawn["rate"], torch.full((50,), 0.3))
    assert bool((drawn["share"] >= 0).all())
    assert torch.allclose(drawn["share"].sum(1), torch.ones(50))
    free = joint.sample({"x": torch.tensor(1.0)}, 50, seed=0)
    assert bool(((free["rate"] > 0) & (free["rate"] < 2)).all()) and free["rate"].std() > 0
    assert torch.equal(free["x"], torch.ones(50))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"y": torch.tensor(1.0)}, "no site 'y', expected some of"),
        ({"x": torch.ones(2)}, r"'x' has shape \(2,\), expected one value, \(\)"),
        ({"x": torch.tensor(math.inf)}, "'x' has infinite values"),
        ({"rate": torch.tensor(2.5)}, "the value of 'rate' is 2.5, expected one inside"),
        ({"rate": torch.tensor(2.0)}, "the value of 'rate' is 2.0, expected one inside"),
        (
            {"share": torch.tensor([0.2, math.nan, 0.3])},
            "a part of 'share' is given, whose numbers depend on each other",
        ),
    ],
)
def test_values_that_no_draw_has_are_refused(given: dict[str, Tensor], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        few(MIXED).sample(given, 2)


def test_whole_numbers_are_refused() -> None:
    def counts() -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Poisson(rate))

    with pytest.raises(TypeError, match="data of 'x' are whole numbers"):
        AmortizedJoint.fit(counts, ["rate"], ["x"], simulations=50, steps=2, vectorized=True)


def test_numbers_with_heavy_tails_are_bent() -> None:
    def program() -> None:
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(theta, 0.3))

    draws = simulate(program, 2000, seed=1, vectorized=True)
    draws["x"][0] = 1e6
    joint = AmortizedJoint(program, ["theta"], ["x"], draws, hidden=4, depth=1)
    assert joint.tails.bent.tolist() == [False, True]
    assert float(joint.model.score_function.data_variance.sqrt().max()) < 3
    drawn = joint.sample({"theta": torch.tensor(0.5)}, 100, seed=0)["x"]
    assert drawn.isfinite().all() and float(drawn.median()) == pytest.approx(0.5, abs=1.0)
