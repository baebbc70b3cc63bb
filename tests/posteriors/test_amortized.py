"""Posteriors of simulators, held to those that are known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.distributions import constraints

from inference.simulators.linear_gaussian import LINEAR_GAUSSIAN, NOISE, A
from inference.simulators.two_moons import TWO_MOONS
from pyro_mdm.networks import MLP
from pyro_mdm.posteriors import (
    AmortizedPosterior,
    Calibration,
    LinearGaussian,
    calibrate,
    log_prior,
    simulate,
)
from pyro_mdm.posteriors.calibration import ranks
from pyro_mdm.posteriors.encoding import Encoding
from pyro_mdm.posteriors.reading import is_interior
from pyro_mdm.pretrained import PretrainedError
from tests.mistakes import refused
from tests.problems import generator


def several() -> None:
    """Parameters of four supports; one of the data is in a plate."""
    a = pyro.sample("a", dist.Normal(torch.zeros(2), torch.tensor([1.0, 5.0])).to_event(1))
    b = pyro.sample("b", dist.Uniform(2.0, 3.0))
    c = pyro.sample("c", dist.LogNormal(0.0, 0.5))
    w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("times", 4, dim=-1):
        pyro.sample("x", dist.Normal(b.unsqueeze(-1) if b.dim() else b, 1.0))
    pyro.sample("y", dist.Normal(a + (c * w[..., 0]).unsqueeze(-1), 0.1).to_event(1))


LATENT, OBSERVED = ("a", "b", "c", "w"), ("x", "y")


@pytest.fixture(scope="module")
def untrained() -> tuple[AmortizedPosterior, dict[str, Tensor]]:
    draws = simulate(several, 400, seed=3, vectorized=False)
    torch.manual_seed(0)
    return AmortizedPosterior(several, LATENT, OBSERVED, draws), draws


# -- coordinates -----------------------------------------------------------------------------------


def test_a_density_is_of_the_parameters_as_they_are(untrained: Any) -> None:
    """A network of no opinion has the normal law of all draws in the model's coordinates."""
    posterior, draws = untrained
    few = {name: value[:12] for name, value in draws.items()}
    found = posterior.log_prob(few, few, samples=2)
    x = posterior.data(few)
    z, _ = posterior.coordinates(few, x)
    spread = posterior.coordinates(draws, posterior.data(draws))[0].std(0)
    standard = dist.Normal(0.0, spread).log_prob(z).sum(1)
    for i in range(12):  # in coordinates of θ of which there are as many as of z
        free = torch.cat([few[name][i].reshape(-1) for name in LATENT])[:-1]

        def of_free(free: Tensor, own: Tensor = x[i : i + 1]) -> Tensor:
            a, b, c, w = free[:2], free[2], free[3], free[4:]
            w = torch.cat([w, 1 - w.sum()[None]])
            one = {"a": a[None], "b": b[None], "c": c[None], "w": w[None]}
            return posterior.coordinates(one, own)[0][0]

        jacobian: Any = torch.autograd.functional.jacobian(of_free, free)
        log_det = torch.linalg.slogdet(jacobian.double())[1]
        assert float(found.value[i]) == pytest.approx(float(standard[i] + log_det), abs=0.1)


def test_outside_of_the_support_and_on_its_boundary_there_is_no_density(untrained: Any) -> None:
    """Of an interval, positive numbers, a simplex and the line; a row inside is as ever."""
    posterior, draws = untrained
    one = {name: value[:1] for name, value in draws.items()}
    known = posterior.log_prob(one, one, samples=2)
    outside = [
        *[("b", torch.tensor([b])) for b in (1.0, 2.0, 3.0, math.inf)],
        *[("c", torch.tensor([c])) for c in (-1.0, 0.0, math.inf)],
        ("a", torch.tensor([[0.0, -math.inf]])),
        *[("w", torch.tensor([w])) for w in ([0.5, 0.6, -0.1], [0.0, 0.5, 0.5], [0.5, 0.5, 0.0])],
    ]
    rows = [one, *[one | {name: value} for name, value in outside]]
    theta = {name: torch.cat([row[name] for row in rows]) for name in LATENT}
    found = posterior.log_prob(theta, one, samples=2)
    torch.testing.assert_close(found.value[:1], known.value)
    assert found.value[1:].tolist() == [-math.inf] * len(outside)
    assert not bool(found.error[1:].any()) and float(found.error[0]) > 0
    nowhere = posterior.log_prob({name: value[1:] for name, value in theta.items()}, one)
    assert bool((nowhere.value == -math.inf).all())
    with pytest.raises(ValueError, match="1 values of 'c' are NaN, expected numbers"):
        posterior.log_prob(one | {"c": torch.tensor([math.nan])}, one)


INTERVAL, POSITIVE = constraints.unit_interval, constraints.positive
VECTOR = constraints.independent(constraints.nonnegative, 1)
STACK = constraints.stack([INTERVAL, POSITIVE], dim=-1)
CAT = constraints.cat([INTERVAL, POSITIVE], dim=-1, lengths=[1, 1])


@pytest.mark.parametrize(
    ("support", "inside", "outside"),
    [
        (INTERVAL, [0.5], [0.0, 1.0, -0.5]),
        (VECTOR, [[0.2, 0.3]], [[0.2, 0.0], [-0.1, 0.2]]),
        *((parts, [[0.2, 3.0]], [[0.0, 1.0], [1.0, 1.0], [0.2, 0.0]]) for parts in (STACK, CAT)),
    ],
    ids=["interval", "vector", "stack", "cat"],
)
def test_the_boundary_of_a_closed_support_is_outside(
    support: Any, inside: list[Any], outside: list[Any]
) -> None:
    expected = [True] * len(inside) + [False] * len(outside)
    assert is_interior(support, torch.tensor(inside + outside)).tolist() == expected


def test_residuals_given_a_part_of_the_data_are_standard() -> None:
    """Of Gaussian pairs, whatever is missing: mean 0, covariance I, and the Jacobian of the map."""

    def program() -> None:
        theta = pyro.sample("theta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        x = torch.stack([theta[..., 0] + theta[..., 1], theta[..., 0], theta[..., 1]], -1)
        pyro.sample("x", dist.Normal(x, torch.tensor([0.1, 0.5, 2.0])).to_event(1))

    draws = simulate(program, 4000, seed=0, vectorized=True)
    posterior = AmortizedPosterior(program, ["theta"], ["x"], draws, missing=True)
    for lacks in ([], [0], [1, 2], [0, 1, 2]):
        hidden = draws["x"].clone()
        hidden[:, lacks] = math.nan
        x = posterior.data({"x": hidden})
        r, log_det = posterior.coordinates(draws, x)
        torch.testing.assert_close(r.mean(0), torch.zeros(2), atol=1e-3, rtol=0)
        torch.testing.assert_close(torch.cov(r.mT), torch.eye(2), atol=5e-3, rtol=0)
        own = x[:1]

        def of(theta: Tensor, own: Tensor = own) -> Tensor:
            return posterior.coordinates({"theta": theta[None]}, own)[0][0]

        jacobian: Any = torch.autograd.functional.jacobian(of, draws["theta"][0])
        expected = torch.linalg.slogdet(jacobian)[1]
        torch.testing.assert_close(log_det[0].float(), expected, atol=1e-4, rtol=0)
        back = posterior.parameters_of(r, x)["theta"]
        torch.testing.assert_close(back, draws["theta"], atol=1e-4, rtol=1e-4)


def test_far_tails_are_bent_and_what_is_missing_is_masked() -> None:
    torch.manual_seed(0)
    far = torch.distributions.StudentT(1.0).sample((2000, 1))
    x = torch.cat([3 + 2 * torch.randn(2000, 1), 5 + 2 * far, torch.ones(2000, 1)], 1)
    x[:, 0] += x[:, 1].asinh()
    plain, holed = Encoding.fit(x, missing=False), Encoding.fit(x, missing=True)
    encoded, row = plain(x), holed(torch.tensor([[math.nan, 7.0, 1.0]]))
    assert plain.bent.tolist() == [False, True, False] and not bool(encoded[:, 2].any())
    torch.testing.assert_close(encoded[:, 0], (x[:, 0] - x[:, 0].mean()) / x[:, 0].std())
    torch.testing.assert_close(encoded[:, 1].sinh() * plain.unit[1] + plain.center[1], x[:, 1])
    C, mean = torch.cov(encoded.mT), encoded.mean(0)
    expected = mean[0] + C[0, 1] / C[1, 1] * (row[0, 1] - mean[1])
    assert row[0, 3:].tolist() == [0.0, 1.0, 1.0] and abs(float(C[0, 1])) > 0.2
    assert float(row[0, 0]) == pytest.approx(float(expected), abs=1e-4)
    hidden = holed.hide(holed(x), 0.5)
    shown = hidden[:, 3:].bool()
    torch.testing.assert_close(hidden, holed(torch.where(shown, x, math.nan)))
    assert 0.7 < float(shown.double().mean()) < 0.8  # ½ of half of the rows are hidden
    for off, encode in ((math.nan, plain), (math.inf, holed)):
        with pytest.raises(ValueError, match="1 numbers of the data are not finite; leave"):
            encode(torch.tensor([[0.0, off, 1.0]]))


# -- posteriors that are known ---------------------------------------------------------------------


QUICK: dict[str, Any] = {"steps": 300, "learning_rate": 5e-3}


def small() -> MLP:
    """A network of a parameter and two numbers, which may be missing."""
    torch.manual_seed(0)
    return MLP(1 + 2 + 1 + 2, hidden=32, depth=1, out_features=1)


@pytest.mark.slow
def test_a_posterior_given_a_part_of_the_data_is_learned(tmp_path: Path) -> None:
    """x_0 = θ + noise and x_1 = -θ + noise: the posterior of θ given both, one or none."""

    def program() -> None:
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        both = torch.stack([theta, -theta], -1)
        pyro.sample("x", dist.Normal(both, 0.5).to_event(1))

    draws = simulate(program, 2000, seed=0, vectorized=True)
    options = QUICK | {"draws": draws, "missing": 0.5, "network": small()}
    posterior = AmortizedPosterior.fit(program, ["theta"], ["x"], **options)
    posterior.save_pretrained(tmp_path)
    again = AmortizedPosterior.from_pretrained(tmp_path, program)
    one = {"x": torch.tensor([1.0, math.nan])}
    assert torch.equal(
        again.sample(one, 5, seed=0)["theta"], posterior.sample(one, 5, seed=0)["theta"]
    )
    for x in ([1.0, -0.5], [1.0, math.nan], [math.nan, -0.5], [math.nan, math.nan]):
        known = torch.tensor(x)
        precision = 1 + 4 * float(known.isfinite().sum())
        mean = 4 * float((known * torch.tensor([1.0, -1.0])).nansum()) / precision
        drawn = posterior.sample({"x": known}, 2000, seed=1)["theta"]
        assert float(drawn.mean()) == pytest.approx(mean, abs=0.12)
        assert float(drawn.std()) == pytest.approx(precision**-0.5, abs=0.1)


@pytest.mark.slow
def test_a_linear_gaussian_posterior_is_learned(tmp_path: Path) -> None:
    network = MLP(3 + 5, hidden=64, depth=1, out_features=3)
    options: dict[str, Any] = {"simulations": 3000, "steps": 300, "learning_rate": 1e-2}
    options |= {"network": network, "vectorized": True}
    posterior = AmortizedPosterior.fit(*LINEAR_GAUSSIAN[:3], **options)
    truth = simulate(LINEAR_GAUSSIAN.program, 60, seed=7, vectorized=True)
    exact = LINEAR_GAUSSIAN.log_posterior(truth)
    lost = exact - posterior.log_prob(truth, truth, samples=2).value
    assert -0.2 < float(lost.mean()) < 0.5  # the prior alone loses more than two nats
    one = {"x": truth["x"][0]}
    drawn = posterior.sample(one, 2000, seed=1)["theta"]
    precision = torch.eye(3) + A.mT @ A / NOISE**2
    mean = torch.linalg.solve(precision, A.mT @ truth["x"][0] / NOISE**2)
    assert drawn.shape == (2000, 3) and float((drawn.mean(0) - mean).abs().max()) < 0.25
    two = {"x": truth["x"][:2]}
    again = posterior.sample(two, 5, seed=1)["theta"]
    assert again.shape == (2, 5, 3)
    posterior.save_pretrained(tmp_path)
    opened = AmortizedPosterior.from_pretrained(tmp_path, LINEAR_GAUSSIAN.program)
    assert torch.equal(opened.sample(two, 5, seed=1)["theta"], again)
    with pytest.raises(PretrainedError, match="sites of the program have the shapes"):
        AmortizedPosterior.from_pretrained(tmp_path, TWO_MOONS.program)
    with pytest.raises(PretrainedError, match=r"model\.safetensors is missing"):
        AmortizedPosterior.from_pretrained(tmp_path / "no", LINEAR_GAUSSIAN.program)
    posterior.model.save_pretrained(tmp_path)
    with pytest.raises(PretrainedError, match="a model that is of no posterior"):
        AmortizedPosterior.from_pretrained(tmp_path, LINEAR_GAUSSIAN.program)


class Exactly:
    """The posterior of the linear Gaussian simulator, or one as wrong as asked."""

    def __init__(self, spread: float = 1.0) -> None:
        self.spread = spread

    def sample(self, data: dict[str, Tensor], n: int, *, seed: int) -> dict[str, Tensor]:
        precision = torch.eye(3) + A.mT @ A / NOISE**2
        mean = torch.linalg.solve(precision, A.mT @ data["x"].mT / NOISE**2).mT
        root = torch.linalg.cholesky(torch.linalg.inv(precision))
        noise = torch.randn(len(mean), n, 3, generator=generator(seed))
        return {"theta": mean[:, None] + self.spread * noise @ root.mT}


def test_ranks_tell_a_posterior_that_is_wrong() -> None:
    right, narrow = (
        calibrate(Exactly(spread), LINEAR_GAUSSIAN.program, 400, 99, vectorized=True)
        for spread in (1.0, 0.7)
    )
    assert right.smallest > 1e-5 and narrow.smallest < 1e-6
    assert right.ranks["theta"].shape == (400, 3)
    assert int(right.ranks["theta"].min()) >= 0 and int(right.ranks["theta"].max()) <= 99


def test_ranks_are_of_other_simulations_than_those_of_training() -> None:
    class Seen(Exactly):
        def sample(self, data: dict[str, Tensor], n: int, *, seed: int) -> dict[str, Tensor]:
            self.seen = data["x"]
            return super().sample(data, n, seed=seed)

    posterior: Any = Seen()
    calibrate(posterior, LINEAR_GAUSSIAN.program, 20, vectorized=True)
    trained = simulate(LINEAR_GAUSSIAN.program, 20, seed=0, vectorized=True)["x"]
    assert posterior.seen.shape == trained.shape and not bool((posterior.seen == trained).any())


def test_p_values_are_those_of_scipy() -> None:
    places = torch.randint(20, (150, 2), generator=generator(0))
    found = Calibration({"a": places, "b": places[:, 0]}, 19).p_values(5)
    for j in range(2):
        counts = (places[:, j] // 4).bincount(minlength=5).numpy()
        expected = scipy.stats.chisquare(counts).pvalue
        assert float(found["a"][j]) == pytest.approx(expected)
    assert float(found["b"]) == pytest.approx(float(found["a"][0]))
    calibration = Calibration({"a": places // 2, "b": places[:, 0]}, 19)  # of a no rank is high
    found = calibration.p_values()
    assert calibration.smallest == pytest.approx(3 * float(found["a"].min())) and found["b"] > 1e-6
    few = Calibration({"a": torch.zeros(300).long()}, 5)
    assert few.smallest < 1e-6
    with pytest.raises(ValueError, match="bins is 10, expected from 2 to 6"):
        few.p_values()


def test_ranks_are_uniform_where_draws_repeat() -> None:
    rate = torch.ones(10, 4000)
    draws, truth = torch.poisson(rate, generator=generator(0)).split([9, 1])
    place = ranks(draws, truth[0])
    assert Calibration({"x": place}, 9).smallest > 1e-6
    assert int(place.min()) == 0 and int(place.max()) == 9
    assert torch.equal(place, ranks(draws, truth[0]))
    assert not torch.equal(place, ranks(draws, truth[0], seed=1))


# -- what a score is beside ------------------------------------------------------------------------


def test_the_density_of_the_prior_is_that_of_its_sites() -> None:
    draws = simulate(several, 7, seed=1)
    a, b, c, w = (draws[name] for name in LATENT)
    expected = dist.Normal(torch.zeros(2), torch.tensor([1.0, 5.0])).log_prob(a).sum(1)
    expected = expected + dist.Uniform(2.0, 3.0).log_prob(b) + dist.LogNormal(0.0, 0.5).log_prob(c)
    expected = expected + dist.Dirichlet(torch.ones(3)).log_prob(w)
    single = {"rtol": 1e-5, "atol": 1e-5}
    for vectorized in (False, True):
        found = log_prior(several, LATENT, draws, vectorized=vectorized)
        torch.testing.assert_close(found, expected.double(), **single)
    one = log_prior(several, ["c"], draws)
    torch.testing.assert_close(one, dist.LogNormal(0.0, 0.5).log_prob(c).double(), **single)


def led_by_another() -> None:
    h = pyro.sample("h", dist.Normal(0.0, 1.0))
    a = pyro.sample("a", dist.Normal(h, 1.0))
    pyro.deterministic("b", a + 1)
    pyro.sample("x", dist.Normal(a * torch.ones(2), 1.0).to_event(1))


def test_a_prior_that_is_not_known_is_said() -> None:
    draws = simulate(led_by_another, 6, seed=0)
    both = log_prior(led_by_another, ["h", "a"], draws)
    expected = dist.Normal(0.0, 1.0).log_prob(torch.stack([draws["h"], draws["a"] - draws["h"]]))
    torch.testing.assert_close(both, expected.sum(0).double(), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="the distribution of a depends on sites that are not"):
        log_prior(led_by_another, ["a"], draws)
    with pytest.raises(ValueError, match=r"site 'b' is computed .* expected a sampled site"):
        log_prior(led_by_another, ["b"], draws)


def test_the_gaussian_of_linear_gaussian_data_is_their_posterior() -> None:
    """By 4,000 simulations of 3 parameters and 5 coefficients: within 15 / (2 · 4,000) nats of it
    on average, whatever the units of data and parameters, and with data that say nothing."""
    draws = simulate(LINEAR_GAUSSIAN.program, 4000, seed=2, vectorized=True)
    new = simulate(LINEAR_GAUSSIAN.program, 500, seed=3, vectorized=True)
    exact = LINEAR_GAUSSIAN.log_posterior(new).double()
    for unit in (1.0, 1e4):

        def data(of: dict[str, Tensor], unit: float = unit) -> Tensor:
            x = of["x"]
            return torch.cat([unit * x + unit, x[:, :1], torch.ones(len(x), 1)], 1)

        found = LinearGaussian.fit(draws["theta"] * unit, data(draws))
        assert found is not None
        apart = exact - found.log_prob(new["theta"] * unit, data(new)) - 3 * math.log(unit)
        error = float(apart.std()) / 500**0.5
        assert abs(float(apart.mean()) - 0.0019) < 5.5 * error + 0.002 < 0.03
    assert LinearGaussian.fit(draws["theta"][:49], draws["x"][:49]) is None  # 50 are enough
    assert LinearGaussian.fit(draws["theta"][:50], draws["x"][:50]) is not None
    assert LinearGaussian.fit(draws["x"][:, :1], draws["x"]) is None  # it has no density


# -- programs and mistakes -------------------------------------------------------------------------


def test_mistakes_are_named(untrained: Any) -> None:
    posterior, draws = untrained
    still = draws | {"b": torch.full((400,), 2.5)}
    holed = draws | {"y": torch.full((400, 2), math.nan)}
    few = {name: value[:2] for name, value in draws.items()}
    one, shapes = {name: value[:1] for name, value in few.items()}, torch.zeros
    refused(
        ValueError,
        (lambda: AmortizedPosterior(several, LATENT, OBSERVED, still), "1 of 6 parameters do not"),
        (lambda: AmortizedPosterior(several, LATENT, OBSERVED, holed), "is infinite or NaN in 400"),
        (lambda: posterior.sample({"x": draws["x"][0]}, 2), "there is no value of 'y' among"),
        (lambda: posterior.data({"x": shapes(3), "y": shapes(2)}), r"\(3,\), expected \(n, 4\)"),
        (
            lambda: posterior.data({"x": shapes(2, 4), "y": shapes(3, 2)}),
            "2 of 'x', 3 of 'y'",
        ),
        (lambda: posterior.log_prob(one, few), "theta are 1 and data 2"),
    )
    odd = few | {"c": few["c"][:1]}
    x = posterior.data(few)
    for asked in (lambda t: posterior.coordinates(t, x), lambda t: posterior.log_prob(t, few)):
        with pytest.raises(ValueError, match=r"differ between sites .*1 of 'c', 2 of 'w'"):
            asked(odd)
    outside = few | {"b": torch.tensor([5.0, 2.5])}
    assert posterior.log_prob(outside, few, samples=1).value.isfinite().tolist() == [False, True]
