"""Learned likelihoods, with their posteriors and evidences, held to those that are known."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_mdm.evaluation.tempering import temper
from pyro_mdm.posteriors import AmortizedLikelihood, LinearGaussian, log_prior, simulate
from pyro_mdm.posteriors.gaussian import ConditionalGaussian
from pyro_mdm.posteriors.laws import ContinuousLaw
from pyro_mdm.posteriors.parameters import Parameters
from pyro_mdm.posteriors.prior import ParameterPrior, RemainingPrior
from pyro_mdm.posteriors.reading import read_program
from pyro_mdm.pretrained import PretrainedError
from tests.exact_likelihood import NOISE, exact_likelihood
from tests.mistakes import refused
from tests.saved_files import rewrite

SINGLE = {"rtol": 1e-5, "atol": 1e-4}
"""What sums of some float32 log densities, of up to a hundred nats, keep on any machine."""

# -- the law of parameters -------------------------------------------------------------------------


def several() -> None:
    """Parameters of several supports, one in a plate and one that another leads to."""
    a = pyro.sample("a", dist.Normal(torch.zeros(2), torch.tensor([1.0, 5.0])).to_event(1))
    with pyro.plate("places", 3):
        pyro.sample("c", dist.LogNormal(a[..., 0], 0.5))
    pyro.sample("x", dist.Normal(a.sum(-1), 1.0))


def log_normal(value: Tensor, mean: Any = 0.0, scale: Any = 1.0) -> Tensor:
    return torch.distributions.Normal(mean, scale).log_prob(value).double()


def mixing() -> None:
    """Parameters that in a plate depend on those of others."""
    a = pyro.sample("a", dist.Normal(0.0, 2.0))
    pyro.sample("c", dist.Normal(a.mean(), 1.0))


@pytest.mark.parametrize("program", [several, mixing])
def test_parameters_are_drawn_in_a_plate_where_that_is_possible(program: Any) -> None:
    law = ParameterPrior(program, ["a", "c"])
    assert law.vectorized == (program is several)
    draws = law.sample(100, seed=0)
    assert bool((draws["a"] != draws["a"].roll(1, 0)).any())
    expected = log_prior(program, ["a", "c"], draws)
    torch.testing.assert_close(law.log_prob(draws), expected, **SINGLE)
    scale = 1.0 if program is several else 2.0
    first = draws["a"].reshape(100, -1)[:, 0]
    assert float(first.std()) == pytest.approx(scale, rel=5 / 200**0.5)  # standard errors


def of_simplex() -> None:
    """Probabilities that a scale leads to, and that lead to a number in an interval."""
    a = pyro.sample("a", dist.Gamma(2.0, 1.0))
    b = pyro.sample("b", dist.Dirichlet(torch.ones(3) * (a.unsqueeze(-1) + 0.5)))
    c = pyro.sample("c", dist.Beta(1.0 + b[..., 0], 2.0))
    pyro.sample("x", dist.Normal(b[..., 1] * c, 1.0))


def in_plates() -> None:
    """Parameters in two plates, with what they have in common, and a factor beside them."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.factor("f", -a)
    with pyro.plate("groups", 3, dim=-1):
        b = pyro.sample("b", dist.Normal(pyro.deterministic("twice", 2 * a), 1.0))
        with pyro.plate("times", 2, dim=-2):
            c = pyro.sample("c", dist.LogNormal(b, 0.5))
            pyro.sample("x", dist.Normal(c, 1.0))


def by_branches() -> None:
    """Parameters of code that takes no batch."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(2.0 if float(a) > 0 else -2.0, 1.0))
    c = pyro.sample("c", dist.HalfNormal(b.exp()))
    pyro.sample("x", dist.Normal(c, 1.0))


@pytest.mark.parametrize("given", ["a", "b", "bc", "ac", ""])
@pytest.mark.parametrize("program", [of_simplex, in_plates, by_branches])
def test_given_parameters_and_others_have_the_densities_of_their_sites(
    program: Any, given: str
) -> None:
    names = ["a", "b", "c"]
    sites = Parameters(read_program(program, names, ["x"]).parameters)
    law = ParameterPrior(program, names)
    assert law.vectorized == (program is not by_branches)
    known = {name: law.sample(1, seed=3)[name][0] for name in given}
    prior = RemainingPrior(program, sites, known)
    u = prior.sample(4)
    values = prior.values(u)
    assert all(bool((values[name] == known[name]).all()) for name in given)
    free = Parameters([site for site in sites if site.name not in given])
    expected, of_given = free.by_site(u)[1].double(), torch.zeros(4).double()
    for i in range(4):
        one = {name: values[name][i] for name in names}
        trace = pyro.poutine.trace(pyro.poutine.condition(program, one)).get_trace()
        trace.compute_log_prob()
        terms = {name: trace.nodes[name]["log_prob_sum"].double() for name in names}
        expected[i] += sum(terms[name] for name in names if name not in given)
        of_given[i] += sum(terms[name] for name in given)
    torch.testing.assert_close(prior.log_prob(u), expected, **SINGLE)
    torch.testing.assert_close(prior.log_given(values).expand(4), of_given, **SINGLE)


# -- tempering -------------------------------------------------------------------------------------


def test_tempering_finds_all_modes_and_the_constant() -> None:
    """A prior N(0, 3²) in the plane, a likelihood of two modes of unequal weight, then a part of
    it: constants are those of Gaussian laws."""
    torch.manual_seed(0)
    centers, scale = torch.tensor([[-4.0, 1.0], [3.0, -2.0]]), 0.3

    def mixture(u: Tensor) -> Tensor:
        each = log_normal(u.unsqueeze(1), centers, scale).sum(2)
        return torch.logsumexp(each + torch.tensor([0.2, 0.8]).log(), 1)

    def half(u: Tensor) -> Tensor:
        return torch.where(u[:, 0] > 0, mixture(u), -math.inf)

    prior = partial(log_normal, scale=3.0)
    start = 3 * torch.randn(8, 500, 2)
    known = log_normal(centers, 0.0, math.hypot(3.0, scale)).sum(1)
    weights = known + torch.tensor([0.2, 0.8]).double().log()
    found = temper(start, lambda u: prior(u).sum(1), mixture)
    assert found.log_constant.standard_error < 0.15
    assert abs(found.log_constant.mean - float(weights.logsumexp(0))) < 0.3
    draws = found.draws(3000)
    right = draws[:, 0] > 0
    assert float(right.double().mean()) == pytest.approx(float(weights.softmax(0)[1]), abs=0.06)
    shrunk = 9.0 / (9.0 + scale**2)
    torch.testing.assert_close(draws[right].mean(0), shrunk * centers[1], atol=0.05, rtol=0)
    narrow = torch.full((2,), scale * math.sqrt(shrunk))
    torch.testing.assert_close(draws[right].std(0), narrow, atol=0.03, rtol=0)
    two = temper(start, lambda u: prior(u).sum(1), half)
    assert bool((two.draws(500)[:, 0] > 0).all())
    assert abs(two.log_constant.mean - float(weights[1])) < 0.3


def test_moves_by_gradients_have_the_exact_posterior() -> None:
    """Logarithms of Gamma(3, 1), a likelihood exp(-x): Gamma(3, 2), the constant 2⁻³ of each."""
    torch.manual_seed(0)
    gamma = torch.distributions.Gamma(3.0, 1.0)

    def prior(u: Tensor) -> Tensor:  # with the Jacobian
        return (gamma.log_prob(u.exp()) + u).sum(1)

    start = gamma.sample((8, 500, 2)).log()
    found = temper(start, prior, lambda u: -u.exp().sum(1), leaps=3)
    x = found.draws(4_000).exp().double()
    assert (x.mean(0) - 1.5).abs().max() < 0.1
    assert (x.square().mean(0) - 3).abs().max() < 0.45
    assert abs(found.log_constant.mean + 6 * math.log(2)) < 0.15


# -- laws of networks that have learned nothing ----------------------------------------------------


def plated(size: int = 3) -> None:
    """Two numbers, positive ones, in a plate, and one outside that depends on another parameter."""
    a = pyro.sample("a", dist.Uniform(-1.0, 2.0))
    b = pyro.sample("b", dist.LogNormal(torch.zeros(2), 0.3).to_event(1))
    with pyro.plate("data", size):
        mean = torch.stack([a, a.square()], -1)
        pyro.sample("x", dist.Normal(mean, 1.0).to_event(1))
    pyro.sample("y", dist.LogNormal(b.sum(-1), 0.2))


@pytest.fixture(scope="module")
def random() -> tuple[AmortizedLikelihood, dict[str, Tensor]]:
    """Networks of random weights, with the mixtures."""
    draws = simulate(plated, 300, seed=3, vectorized=True)
    torch.manual_seed(0)
    likelihood = AmortizedLikelihood.fit(
        plated, ["a", "b"], ["x", "y"], draws=draws, steps=1, hidden=8, depth=1, form="gaussian"
    )
    for law in likelihood.laws:
        network = law.mixture.network
        for layer in (law.gaussian.outlet, network.network.outlet, *network.masked):
            torch.nn.init.normal_(layer.weight, std=0.2)
        law.form = "mixture"
    return likelihood, draws


def rows(draws: dict[str, Tensor], *places: int) -> dict[str, Tensor]:
    return {name: value[list(places)] for name, value in draws.items()}


def test_a_network_can_have_the_distribution_of_a_linear_gaussian() -> None:
    torch.manual_seed(0)
    theta = 3 + 2 * torch.randn(100, 2)
    x = 1 + theta @ torch.randn(2, 3) + torch.randn(100, 3) @ torch.randn(3, 3)
    linear = LinearGaussian.fit(x, theta)
    assert linear is not None
    law = ConditionalGaussian(2, 3, hidden=8, depth=1)
    torch.nn.init.normal_(law.outlet.weight)
    law.become(linear)
    r, log_det = law.residual(x.unsqueeze(1), theta)
    found = log_normal(r).sum((1, 2)) + log_det
    torch.testing.assert_close(found, linear.log_prob(x, theta), rtol=1e-4, atol=1e-3)


COVARIANCE = torch.tensor([[0.5, 0.3], [0.3, 0.4]])
SLOPE = torch.tensor([[1.0, 0.5, 0.0], [0.0, 2.0, -1.0]])


def linear() -> None:
    theta = pyro.sample("theta", dist.Normal(torch.ones(3), 2.0).to_event(1))
    with pyro.plate("data", 2):
        pyro.sample("x", dist.MultivariateNormal(theta @ SLOPE.mT, COVARIANCE))


def curved() -> None:
    theta = pyro.sample("theta", dist.Uniform(-1.0, 1.0))
    pyro.sample("x", dist.Normal(theta.square(), 0.1))


def test_the_likelihood_of_linear_gaussian_data_is_exact_without_steps() -> None:
    """Least squares have 11 numbers from 7,200 data: within 11 / 7,200 nats of two data, on
    average. Data with a curved mean have the network's Gaussian."""
    few: dict[str, Any] = {"hidden": 16, "depth": 1, "form": "gaussian", "vectorized": True}
    found: Any = AmortizedLikelihood.fit(linear, ["theta"], ["x"], simulations=4000, steps=1, **few)
    new = simulate(linear, 1000, seed=9, vectorized=True)
    mean = (new["theta"] @ SLOPE.mT).unsqueeze(1)
    exact = torch.distributions.MultivariateNormal(mean, COVARIANCE).log_prob(new["x"]).sum(1)
    apart = exact.double() - found.log_prob(new, new)
    assert abs(float(apart.mean()) - 11 / 7200) < 5.5 * float(apart.std()) / 1000**0.5 < 0.02
    few |= {"steps": 60, "learning_rate": 1e-2}
    found = AmortizedLikelihood.fit(curved, ["theta"], ["x"], simulations=1000, **few)
    assert found.outcomes["x"][0].best_step > 0 and found.laws[0].gaussian.outlet.weight.any()


def test_densities_integrate_to_one(random: Any) -> None:
    """Over the numbers of a plate, and over the positive ones outside of it."""
    likelihood, draws = random
    theta = rows(draws, 0)
    edge = torch.linspace(-20, 21, 160)  # wherever random weights put it
    points = torch.cartesian_prod(edge, edge)
    nothing = math.nan * torch.ones(len(points))
    log_p = likelihood.log_prob({"x": points.unsqueeze(1), "y": nothing}, theta)
    cell = float(edge[1] - edge[0]) ** 2
    assert float(log_p.exp().sum()) * cell == pytest.approx(1.0, abs=0.01)
    log_y = torch.linspace(-6, 12, 600)
    given = {"x": math.nan * torch.ones(600, 1, 2), "y": log_y.exp()}
    log_p = likelihood.log_prob(given, theta) + log_y
    assert float(log_p.exp().sum()) * float(log_y[1] - log_y[0]) == pytest.approx(1.0, abs=0.01)


def test_numbers_inside_of_bounds_have_a_density_there_alone() -> None:
    """A lower bound, an upper one, both and none: the volume, the integral, and what is drawn."""
    torch.manual_seed(0)
    law = ContinuousLaw(1, 4, 16, 1)
    for parameter in law.gaussian.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    law.requires_grad_(False)
    lower = torch.tensor([-2.0, -math.inf, 3.0, -math.inf])
    upper = torch.tensor([math.inf, 5.0, 7.0, math.inf])
    law.lower.copy_(lower)
    law.upper.copy_(upper)
    theta = torch.randn(1, 1)
    drawn = law.sample(theta.expand(2000, 1), 2)
    assert bool(((drawn > lower) & (drawn < upper)).all())
    assert bool(law.by_datum(drawn, theta).isfinite().all())
    x = drawn[0, 0]
    u, log_det = law._unbounded(x)
    torch.testing.assert_close(law._bounded(u), x)
    jacobian: Any = torch.autograd.functional.jacobian(lambda x: law._unbounded(x)[0], x)
    torch.testing.assert_close(jacobian.diagonal().log().sum(), log_det)
    far = torch.tensor([-40.0, 40.0, 200.0, 0.0])
    for end in (far, -far):
        at_end = law._bounded(end)
        assert bool(((at_end > lower) & (at_end < upper)).all())
    for place in range(3):
        outside = x.clone()
        outside[place] = (-3.0, 6.0, 7.0)[place]
        assert law.by_datum(outside.expand(1, 1, 4), theta).item() == -math.inf


def test_a_density_has_derivatives_in_parameters_and_data(random: Any) -> None:
    likelihood, draws = random
    a, b, x, y = (rows(draws, 0, 1)[name].requires_grad_() for name in "abxy")

    def log_p(*values: Tensor) -> Tensor:
        a, b, x, y = values
        return likelihood.log_prob({"x": x, "y": y}, {"a": a, "b": b}).sum()

    gradients = torch.autograd.grad(log_p(a, b, x, y), (a, b, x, y))
    for k, value in enumerate((a, b, x, y)):
        step = torch.zeros_like(value)
        step.view(-1)[0] = 1e-2
        moved = [
            log_p(*[v + sign * step if v is value else v for v in (a, b, x, y)]) for sign in (1, -1)
        ]
        slope = float((moved[0] - moved[1]).detach()) / 2e-2
        assert float(gradients[k].flatten()[0]) == pytest.approx(slope, rel=0.02, abs=5e-3)


def test_the_density_is_that_of_what_is_drawn(random: Any) -> None:
    """log p(x) - log p(y) of draws of one law has the mean E_y[e^f] = 1 of a ratio of densities."""
    likelihood, draws = random
    theta = rows(draws, *[0] * 4000)
    drawn = likelihood.sample(theta, plates={"data": 1}, seed=0)
    assert drawn["x"].shape == (4000, 1, 2) and drawn["y"].shape == (4000,)
    nothing = {"x": math.nan * drawn["x"], "y": math.nan * drawn["y"]}
    for name in ("x", "y"):
        value = drawn[name] if name == "x" else drawn[name].log()
        flat = value.reshape(4000, -1)
        other = dist.MultivariateNormal(flat.mean(0), flat.T.cov().reshape(2 * [flat.shape[1]]))
        points = other.sample((4000,))
        at = points.reshape(value.shape) if name == "x" else points.flatten().exp()
        log_p = likelihood.log_prob(nothing | {name: at}, theta)
        log_p = log_p + (at.log() if name == "y" else 0.0)
        ratio = (log_p - other.log_prob(points)).exp()
        # moments of the density by weights are those of the draws
        for power in (1, 2, 3):
            weighted = (ratio * points[:, 0] ** power).mean()
            scale = float((flat[:, 0].abs() ** power).mean())
            own = (flat[:, 0] ** power).mean()
            assert float(weighted) == pytest.approx(float(own), abs=0.25 * scale)


def test_outside_of_supports_there_is_no_density(random: Any) -> None:
    likelihood, draws = random
    theta = rows(draws, 0, 1, 2, 3)
    inside = likelihood.log_prob(rows(draws, 0), theta)
    theta["a"][1], theta["b"][2, 0], theta["b"][3, 1] = 2.5, -0.1, 0.0
    log_p = likelihood.log_prob(rows(draws, 0), theta)
    torch.testing.assert_close(log_p[:1], inside[:1], **SINGLE)
    assert log_p[1:].tolist() == [-math.inf] * 3
    below = rows(draws, 0) | {"y": torch.tensor([-1.0])}
    assert likelihood.log_prob(below, rows(draws, 0)).tolist() == [-math.inf]
    assert likelihood.log_prob(rows(draws, 0, 1), rows(theta, 1)).tolist() == [-math.inf] * 2
    assert bool((likelihood.sample(rows(draws, *range(50)), seed=0)["y"] > 0).all())


def test_a_saved_likelihood_is_the_same(random: Any, tmp_path: Path) -> None:
    likelihood, draws = random
    likelihood.save_pretrained(tmp_path)
    again: Any = AmortizedLikelihood.from_pretrained(tmp_path, plated)
    assert again.gains == likelihood.gains
    few = rows(draws, 0, 1, 2)
    assert torch.equal(again.log_prob(few, few), likelihood.log_prob(few, few))
    with pytest.raises(ValueError, match="from a folder, which keeps no simulations"):
        again.refined(few)
    refused(
        PretrainedError,
        (lambda: AmortizedLikelihood.from_pretrained(tmp_path / "no", plated), "is missing"),
        (
            lambda: AmortizedLikelihood.from_pretrained(tmp_path, partial(plated, 4)),
            "the sites of the program are .*, expected those of the likelihood",
        ),
    )
    refused(TypeError, (lambda: AmortizedLikelihood.from_pretrained(tmp_path), "holds no code"))
    rewrite(
        tmp_path / "likelihood.safetensors",
        lambda content, _: content["likelihoods"][0].pop("sites"),
    )
    with pytest.raises(PretrainedError, match="is damaged"):
        AmortizedLikelihood.from_pretrained(tmp_path, plated)


def led_by_a_hidden_site() -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    a = pyro.sample("a", dist.Normal(mean, 0.1))
    pyro.sample("x", dist.Normal(a, 3.0))


@pytest.mark.slow
def test_mistakes_are_named(random: Any) -> None:
    likelihood, draws = random
    few = rows(draws, 0, 1, 2)
    nan = few["x"].clone()
    nan[0, 0, 0] = math.nan
    fit = AmortizedLikelihood.fit
    refused(
        ValueError,
        (
            lambda: fit(led_by_a_hidden_site, ["a"], ["x"], simulations=20, steps=1).posterior(
                {"x": torch.tensor(6.0)}, 100
            ),
            "the distribution of a depends on sites that are not among them",
        ),
        (lambda: likelihood.log_prob(few, rows(draws, 0, 1)), "theta are 2 and data 3"),
        (lambda: likelihood.log_prob(few, few | {"a": few["a"] * math.nan}), "3 values of 'a' are"),
        (
            lambda: likelihood.log_prob(few | {"y": few["y"][:2]}, few),
            "3 of 'x', 2 of 'y'",
        ),
        (lambda: likelihood.log_prob(few | {"x": nan}, few), "a part of the 2 numbers of a datum"),
        (lambda: likelihood.log_prob(few | {"y": few["y"] + math.inf}, few), "3 numbers of y are"),
        (lambda: likelihood.log_prob({"x": few["x"]}, few), "there is no value of 'y'"),
        (lambda: likelihood.sample(few, plates={"times": 3}), "plates has 'times', .*data.*leave"),
        (lambda: likelihood.sample(few, plates={"data": 0}), "is 0"),
        (lambda: likelihood.sample(few | {"a": few["a"] + 9}), "3 parameters are outside"),
        (lambda: likelihood.posterior(few), "there are 3 data, expected one"),
        (lambda: likelihood.posterior(rows(draws, 0), particles=3), "particles is 3"),
        (
            lambda: likelihood.posterior(rows(draws, 0) | {"y": -torch.ones(1)}, particles=80),
            "the data, or the given parameters, have the density 0 at all",
        ),
    )


# -- posteriors and evidence -----------------------------------------------------------------------


def conjugate(scale: float = 1.0) -> None:
    theta = pyro.sample("theta", dist.Normal(0.0, scale))
    with pyro.plate("data", 4):
        pyro.sample("x", dist.Normal(theta, 0.5))


@pytest.fixture(scope="module")
def learned() -> AmortizedLikelihood:
    return AmortizedLikelihood.fit(
        conjugate, ["theta"], ["x"], simulations=1000, steps=30, hidden=16, depth=1, vectorized=True
    )


@pytest.mark.parametrize("k", [2, 9])
def test_the_posterior_and_the_evidence_of_data_are_those_of_a_conjugate_law(
    learned: AmortizedLikelihood, k: int
) -> None:
    """Of fewer and more data than the program has."""
    torch.manual_seed(k)
    x = 0.7 + 0.5 * torch.randn(k)
    (gain,) = learned.gains.values()
    assert gain is not None and learned.laws[0].form == "gaussian"  # as mixtures gain nothing
    found = learned.posterior({"x": x}, 2000, particles=4000, moves=3)
    precision = 1 + k / 0.25
    mean = float(x.sum()) / 0.25 / precision
    theta = found.draws["theta"]
    assert theta.shape == (2000,)
    assert float(theta.mean()) == pytest.approx(mean, abs=0.12)
    assert float(theta.std()) == pytest.approx(precision**-0.5, rel=0.3)
    covariance = 0.25 * torch.eye(k) + 1.0
    exact = dist.MultivariateNormal(torch.zeros(k), covariance).log_prob(x)
    assert found.log_evidence.standard_error < 0.1
    assert found.log_evidence.mean == pytest.approx(float(exact), abs=0.7)
    assert 0.15 < found.acceptance < 0.5 and 0.3 < found.effective <= 1


def below() -> None:
    """The data of :func:`trials` about a parameter with another above it."""
    above = pyro.sample("above", dist.Normal(1.0, 2.0))
    theta = pyro.sample("theta", dist.Normal(above, 1.0))
    with pyro.plate("trials", 4):
        pyro.sample("x", dist.Normal(theta, NOISE))


def in_interval() -> None:
    """The same, with a parameter above that is in an interval."""
    above = pyro.sample("above", dist.Uniform(0.0, 2.0))
    theta = pyro.sample("theta", dist.Normal(above, 1.0))
    with pyro.plate("trials", 4):
        pyro.sample("x", dist.Normal(theta, NOISE))


X = torch.tensor([0.7, math.nan, 1.6, math.nan])


def on_grid(program: Any, name: str, value: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The values of the other parameter, (n,), and log p(both, x) of it on a grid, (n,)."""
    other = torch.linspace(-6, 8, 4001).double()
    values = {name: value.expand(len(other)).double()}
    values[{"above": "theta", "theta": "above"}[name]] = other
    if program is below:
        first = log_normal(values["above"], 1.0, 2.0)
    else:
        inside = (values["above"] > 0) & (values["above"] < 2)
        first = torch.where(inside, -math.log(2), -math.inf).double()
    data = log_normal(x[~x.isnan()], values["theta"].unsqueeze(1), NOISE).sum(1)
    return other, first + log_normal(values["theta"], values["above"]) + data


@pytest.mark.parametrize("x", [X, X * math.nan], ids=["data", "no data"])
@pytest.mark.parametrize(
    ("program", "name"), [(below, "above"), (below, "theta"), (in_interval, "theta")]
)
def test_given_parameters_count_as_known(program: Any, name: str, x: Tensor) -> None:
    """The draws of the other parameter, and the joint density of the given one and the data."""
    value, likelihood = torch.tensor(1.8), exact_likelihood(program, ["above", "theta"])
    found = likelihood.posterior({"x": x}, 2000, given={name: value}, particles=4000, moves=3)
    assert list(found.draws) == ["above", "theta"] and bool((found.draws[name] == value).all())
    other, log_joint = on_grid(program, name, value, x)
    step = float(other[1] - other[0])
    weight = log_joint.softmax(0)
    mean = float((weight * other).sum())
    deviation = float((weight * (other - mean).square()).sum().sqrt())
    drawn = found.draws[{"above": "theta", "theta": "above"}[name]].double()
    assert float(drawn.mean()) == pytest.approx(mean, abs=0.15 * deviation)
    assert float(drawn.std()) == pytest.approx(deviation, rel=0.15)
    exact = float(log_joint.logsumexp(0)) + math.log(step)
    assert found.log_evidence.mean == pytest.approx(exact, abs=0.15)


def test_given_parameters_are_refused_where_they_cannot_be_known() -> None:
    likelihood, x = exact_likelihood(in_interval, ["above", "theta"]), {"x": X}
    ask, one = partial(likelihood.posterior, x, 10), torch.tensor(1.0)
    refused(
        ValueError,
        (lambda: ask(given={"beside": one}), "no site 'beside', expected some of"),
        (lambda: ask(given={"above": one.expand(3)}), r"has shape \(3,\), expected one value, "),
        (lambda: ask(given={"above": 3 * one}), "'above' is 3.0, expected one inside of its"),
        (
            lambda: ask(given={"theta": one * math.nan}),
            "'theta' is nan, expected one inside of its support",
        ),
        (lambda: ask(given={"above": one, "theta": one}), "given has all parameters"),
    )


def test_draws_share_no_memory_with_given_parameters() -> None:
    likelihood, given = exact_likelihood(below, ["above", "theta"]), torch.tensor(1.8)
    drawn = likelihood.posterior({"x": X}, 5, given={"above": given}, particles=160).draws["above"]
    drawn[0] = 9.0
    assert float(given) == pytest.approx(1.8) and bool((drawn[1:] == given).all())


def black_box() -> None:
    """Data of :func:`conjugate`, which come from elsewhere."""
    theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 4):
        pyro.deterministic("x", theta + 0.5 * torch.randn(4))


def test_a_black_box_is_learned_datum_by_datum_if_asked(tmp_path: Path) -> None:
    names: Any = ["theta"], ["x"]
    few: dict[str, Any] = {"steps": 2, "hidden": 8, "depth": 1}
    found = AmortizedLikelihood.fit(
        black_box, *names, simulations=300, exchangeable=["data"], **few
    )
    x, theta = torch.randn(3, 7), {"theta": torch.zeros(3)}  # of seven data, not four
    log_p = found.log_prob({"x": x}, theta)
    one = found.log_prob({"x": x.reshape(-1, 1)}, {"theta": torch.zeros(21)})
    torch.testing.assert_close(log_p, one.reshape(3, 7).sum(1))
    found.save_pretrained(tmp_path)
    again = AmortizedLikelihood.from_pretrained(tmp_path, black_box)
    assert torch.equal(again.log_prob({"x": x}, theta), log_p)
    assert found.refined(theta, **few).structure.factors[0].plate == "data"
    with pytest.warns(UserWarning, match=r"exchangeable=\('data',\)"):
        AmortizedLikelihood.fit(black_box, *names, simulations=300, **few)


def bimodal() -> None:
    theta = pyro.sample("theta", dist.Uniform(-1.0, 1.0))
    side = 2.0 * pyro.sample("side", dist.Bernoulli(0.5 * torch.ones_like(theta))) - 1
    pyro.sample("x", dist.Normal(theta + side, 0.2))


@pytest.mark.slow
def test_mixtures_are_part_of_the_law_where_they_are_better() -> None:
    """Of two values of x for each θ: density, draws, and a posterior of two intervals."""
    likelihood = AmortizedLikelihood.fit(
        bimodal, ["theta"], ["x"], simulations=2000, steps=600, hidden=32, depth=1, vectorized=True
    )
    (law,) = likelihood.laws
    assert law.form == "mixture" and law.misfit == 0
    theta = torch.linspace(-0.9, 0.9, 7)
    x = torch.linspace(-2.0, 2.0, 41)
    pairs = {"theta": theta.repeat_interleave(41)}, {"x": x.repeat(7)}
    log_p = likelihood.log_prob(pairs[1], pairs[0])
    each = [log_normal(pairs[1]["x"] - pairs[0]["theta"], side, 0.2) for side in (-1, 1)]
    exact = torch.stack(each).logsumexp(0) - math.log(2)
    apart = (exact.exp() * (exact - log_p)).reshape(7, 41).sum(1) * float(x[1] - x[0])
    assert float(apart.mean()) < 0.1
    found = likelihood.posterior({"x": torch.tensor(0.0)}, 1000, particles=480, moves=2)
    drawn = found.draws["theta"]
    assert (
        float((drawn.abs() < 0.5).double().mean()) < 0.15
    )  # 0.012 of the exact law, ½ of a Gaussian one
    assert float((drawn > 0).double().mean()) == pytest.approx(0.5, abs=0.2)
    # at 0 half of the mass of N(±1, 0.2²) is inside
    assert found.log_evidence.mean == pytest.approx(math.log(0.25), abs=0.3)
