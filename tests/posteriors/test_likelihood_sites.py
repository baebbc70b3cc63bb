"""Learned likelihoods as sites of programs: as distributions, and under Pyro's inference.

With the exact likelihood in the place of the learned one a program has the density of the program
that it stands for, number by number.
"""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.mcmc.util import initialize_model
from pyro.optim import Adam
from torch import Tensor, nn

from pyro_mdm.posteriors import AmortizedLikelihood, ScoredDraws, simulate
from pyro_mdm.posteriors.guide import LocalGuide
from pyro_mdm.posteriors.reading import read_program
from tests.exact_likelihood import NOISE, exact_likelihood, trials
from tests.mistakes import refused

SINGLE = {"rtol": 1e-5, "atol": 1e-4}
"""What sums of some float32 log densities keep on any machine."""


@pytest.fixture(scope="module")
def exact() -> AmortizedLikelihood:
    return exact_likelihood()


def normal(x: Tensor, theta: Tensor) -> Tensor:
    """log p of data (…, k) about θ (…)."""
    law = torch.distributions.Normal(theta.unsqueeze(-1), NOISE, validate_args=False)
    return law.log_prob(x).nan_to_num(nan=0.0).sum(-1)


# -- a distribution --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("of_theta", "of_data"),
    [((), ()), ((7,), ()), ((), (7,)), ((7,), (7,)), ((3, 1), (7,)), ((7,), (3, 1)), ((1,), (1,))],
)
def test_batches_of_parameters_and_data_are_broadcast(exact: Any, of_theta: Any, of_data: Any):
    torch.manual_seed(0)
    theta, x = torch.randn(of_theta), torch.randn(*of_data, 4)
    law = exact.given({"theta": theta})
    assert law.batch_shape == of_theta and law.event_shape == (4,)
    log_p = law.log_prob(x)
    assert log_p.shape == torch.broadcast_shapes(of_theta, of_data)
    torch.testing.assert_close(log_p, normal(x, theta), **SINGLE)
    wider = law.expand((5, *log_p.shape))
    assert wider.log_prob(x).shape == (5, *log_p.shape) == wider.batch_shape
    torch.testing.assert_close(wider.log_prob(x)[2], log_p)
    assert wider.sample((2,)).shape == (2, 5, *log_p.shape, 4)


def test_any_number_of_exchangeable_data_and_missing_ones(exact: Any) -> None:
    torch.manual_seed(0)
    theta, x = torch.randn(3), torch.randn(3, 9)
    x[0, 4:], x[1, 0], x[2] = math.nan, math.nan, math.nan
    log_p = exact.given(theta, plates={"trials": 9}).log_prob(x)
    torch.testing.assert_close(log_p, normal(x, theta), **SINGLE)
    assert float(log_p[2]) == 0.0


def test_a_plate_of_the_simulator_may_be_one_of_the_program(exact: Any) -> None:
    torch.manual_seed(0)
    theta, x = torch.randn(3, 1), torch.randn(3, 6)
    law = exact.given(theta, datum_of="trials")
    assert law.event_shape == () and law.batch_shape == (3, 1)
    torch.testing.assert_close(law.log_prob(x), dist.Normal(theta, NOISE).log_prob(x), **SINGLE)
    assert law.expand((3, 6)).sample((2,)).shape == (2, 3, 6)


def test_many_rows_under_vmap_are_those_of_each_with_derivatives(exact: Any) -> None:
    """Of parameters, of data, of both and of rows of rows."""
    torch.manual_seed(0)
    theta, x = torch.randn(5, 7).requires_grad_(), torch.randn(5, 7, 4)

    def log_p(theta: Tensor, x: Tensor) -> Tensor:
        return exact.given(theta).log_prob(x)

    for dims, expected in (
        ((0, None), torch.stack([log_p(t, x[0]) for t in theta])),
        ((None, 0), torch.stack([log_p(theta[0], some) for some in x])),
        ((0, 0), log_p(theta, x)),
        ((1, 1), log_p(theta, x).mT),
    ):
        given = (theta if dims[0] is not None else theta[0], x if dims[1] is not None else x[0])
        torch.testing.assert_close(torch.func.vmap(log_p, dims)(*given), expected, **SINGLE)
    twice = torch.func.vmap(torch.func.vmap(log_p))(theta, x)
    torch.testing.assert_close(twice, log_p(theta, x), **SINGLE)
    many = torch.func.vmap(log_p)(theta, x).sum()
    torch.testing.assert_close(
        torch.autograd.grad(many, theta), torch.autograd.grad(log_p(theta, x).sum(), theta)
    )
    one = torch.func.vmap(lambda t: exact.given(t.expand(3, 1)).expand((3, 7)).log_prob(x[0]))
    torch.testing.assert_close(
        one(theta[:, 0]), torch.stack([log_p(t, x[0]).expand(3, 7) for t in theta[:, :1]]), **SINGLE
    )


def test_parameters_that_are_no_numbers_are_impossible(exact: Any) -> None:
    """As a walk that diverges may propose them; others of the batch are as they were."""
    theta = torch.tensor([0.3, math.nan, math.inf, -math.inf])
    log_p = exact.given(theta).log_prob(torch.zeros(4))
    assert log_p.isfinite().tolist() == [True, False, False, False]
    assert bool((log_p[1:] == -math.inf).all())
    assert float(log_p[0]) == pytest.approx(float(normal(torch.zeros(4), theta[0])), rel=1e-5)


# -- several sites, discrete and bounded data ------------------------------------------------------


def several() -> None:
    """Counts and pairs of positive numbers in a plate, and a share outside of it."""
    a = pyro.sample("a", dist.Uniform(-1.0, 1.0))
    b = pyro.sample("b", dist.LogNormal(torch.zeros(2), 0.3).to_event(1))
    with pyro.plate("places", 3):
        pyro.sample("count", dist.Poisson((1 + a).exp()))
        pyro.sample("pair", dist.LogNormal(torch.stack([a, -a], -1), 0.5).to_event(1))
    pyro.sample("share", dist.Beta(b[..., 0], b[..., 1]))


@pytest.fixture(scope="module")
def learned() -> tuple[AmortizedLikelihood, dict[str, Tensor]]:
    """Networks of random weights, of all kinds of data."""
    draws = simulate(several, 300, seed=3, vectorized=True)
    torch.manual_seed(0)
    likelihood = AmortizedLikelihood.fit(
        several, ["a", "b"], ["count", "pair", "share"], draws=draws, steps=1, hidden=8, depth=1
    )
    for parameter in likelihood.parameters():
        nn.init.normal_(parameter, std=0.2)
    return likelihood, draws


def test_several_sites_are_one_value(learned: Any) -> None:
    likelihood, draws = learned
    some = {name: value[:6] for name, value in draws.items()}
    law = likelihood.given({name: some[name] for name in "ab"})
    value = law.joined(some)
    assert law.batch_shape == (6,) and law.event_shape == (3 + 6 + 1,) and value.shape == (6, 10)
    for name, back in law.by_site(value).items():
        assert torch.equal(back, some[name].to(back))
    torch.testing.assert_close(law.log_prob(value).double(), likelihood.log_prob(some, some))
    drawn = law.by_site(law.sample((2,)))
    assert [tuple(v.shape) for v in drawn.values()] == [(2, 6, 3), (2, 6, 3, 2), (2, 6)]
    assert bool(law.support.check(law.sample((50,))).all())


def test_sites_apart_add_up_to_all_of_them(learned: Any) -> None:
    """Each independent group of sites is a site of its own, and of a plate one by one."""
    likelihood, draws = learned
    some = {name: value[:6] for name, value in draws.items()}
    theta = {name: some[name] for name in "ab"}
    whole = likelihood.given(theta)
    share = likelihood.given(theta, sites="share").log_prob(some["share"])
    rest = likelihood.given(theta, sites=["count", "pair"])
    torch.testing.assert_close(
        rest.log_prob(rest.joined(some)) + share, whole.log_prob(whole.joined(some)), **SINGLE
    )
    alone = {name: value.unsqueeze(1) for name, value in theta.items()}
    for names in (["count"], ["pair"]):
        if len([f for f in likelihood.structure.factors if f.plate == "places"]) == 1:
            names = ["count", "pair"]
        each = likelihood.given(alone, sites=names, datum_of="places")
        all_of_them = likelihood.given(theta, sites=names)
        torch.testing.assert_close(
            each.log_prob(each.joined(some)).sum(1),
            all_of_them.log_prob(all_of_them.joined(some)),
            **SINGLE,
        )


def test_supports_are_those_of_the_data(learned: Any) -> None:
    likelihood, draws = learned
    theta = {name: draws[name][0] for name in "ab"}
    share = likelihood.given(theta, sites="share").support
    assert share.check(torch.tensor([0.5, 1.5])).tolist() == [True, False]
    place = torch.distributions.biject_to(share)(torch.tensor([-3.0, 3.0]))
    assert bool(((place > 0) & (place < 1)).all())
    whole = likelihood.given(theta)
    assert whole.support.is_discrete
    value = whole.joined({name: draws[name][0] for name in ("count", "pair", "share")})
    wrong = value.clone()
    wrong[0] = 0.5
    outside = value.clone()
    outside[4] = -1.0
    missing = value.clone()
    missing[0] = math.nan
    checked = [bool(whole.support.check(v)) for v in (value, wrong, outside, missing)]
    assert checked == [True, False, False, True]
    assert whole.log_prob(wrong) == -math.inf and whole.log_prob(outside) == -math.inf


def test_an_emulator_may_be_a_latent_of_a_program(learned: Any) -> None:
    """What is drawn by the simulator is seen with noise: its support is that of a latent."""
    likelihood, draws = learned
    theta = {name: draws[name][0] for name in "ab"}

    def program() -> None:
        share = pyro.sample("share", likelihood.given(theta, sites="share"))
        pyro.sample("seen", dist.Normal(share, 0.1), obs=torch.tensor(0.4))

    kernel = NUTS(program)
    run = MCMC(kernel, num_samples=5, warmup_steps=5, disable_progbar=True)
    run.run()
    drawn = run.get_samples()["share"]
    assert bool(((drawn > 0) & (drawn < 1)).all())


# -- hierarchical programs -------------------------------------------------------------------------


def population(x: Tensor, likelihood: AmortizedLikelihood | None, size: int | None = None) -> None:
    """Units with parameters of their own, by a likelihood, or by the law that it stands for."""
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    spread = pyro.sample("spread", dist.LogNormal(0.0, 0.5))
    with pyro.plate("units", len(x), subsample_size=size) as rows:
        theta = pyro.sample("theta", dist.Normal(mean, spread))
        law: Any = dist.Normal(theta.unsqueeze(-1), NOISE).expand([*theta.shape, 4]).to_event(1)
        law = law if likelihood is None else likelihood.given(theta)
        pyro.sample("x", law, obs=x[rows])


def observed(n: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    theta = 1 + 0.8 * torch.randn(n, 1, generator=generator)
    return theta + NOISE * torch.randn(n, 4, generator=generator)


def test_nuts_walks_on_the_density_of_the_program_it_stands_for(exact: Any) -> None:
    """Potential energies and their gradients are equal at any latents, and a chain runs."""
    torch.manual_seed(0)
    energies = []
    for likelihood in (exact, None):
        _, energy, _, _ = initialize_model(population, (observed(), likelihood))
        energies.append(energy)
    z = {"mean": torch.randn(()), "spread": torch.randn(()), "theta": torch.randn(6)}
    for value in z.values():
        value.requires_grad_()
    both = [energy(z) for energy in energies]
    torch.testing.assert_close(both[0], both[1], **SINGLE)
    slopes = [torch.autograd.grad(energy, list(z.values())) for energy in both]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-3)
    run = MCMC(NUTS(population), num_samples=3, warmup_steps=3, disable_progbar=True)
    run.run(observed(), exact)
    assert run.get_samples()["theta"].shape == (3, 6)
    assert run.get_samples()["theta"].dtype == torch.float32


def test_svi_with_a_subsample_of_units_has_the_bound_of_the_program(exact: Any) -> None:
    """By the same draws of the guide, and of the units; and it learns."""
    losses = []
    for likelihood in (exact, None):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide = AutoNormal(
            population, create_plates=lambda x, likelihood, b: pyro.plate("units", 6, b)
        )
        svi = SVI(population, guide, Adam({"lr": 0.05}), Trace_ELBO(num_particles=2))
        losses.append([svi.step(observed(), likelihood, 3) for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# -- local guides ----------------------------------------------------------------------------------


class Conjugate:
    """The exact posterior of each unit under the simulator's prior."""

    calls = 0

    def scored_draws(self, data: Any, n: int) -> ScoredDraws:
        self.calls += 1
        mean, root = conjugate(data["x"].repeat_interleave(n, 0))
        theta = mean + root * torch.randn(len(mean))
        return ScoredDraws({"theta": theta}, lambda: dist.Normal(mean, root).log_prob(theta))

    def log_prob(self, theta: Any, data: Any) -> Any: ...


def conjugate(x: Tensor) -> tuple[Tensor, float]:
    precision = 1 / 9 + 4 / NOISE**2
    return x.sum(-1) / NOISE**2 / precision, precision**-0.5


def log_evidence(x: Tensor) -> Tensor:
    """log p(x) of each unit under the simulator's prior."""
    covariance = NOISE**2 * torch.eye(4) + 9.0
    return dist.MultivariateNormal(torch.zeros(4), covariance).log_prob(x)


@pytest.mark.parametrize("particles", [1, 3])
def test_the_bound_by_exact_local_posteriors_is_the_evidence(exact: Any, particles: int) -> None:
    """Whatever is drawn: of units whose population is the simulator's prior, of a subsample."""
    x, posterior = observed(6), Conjugate()
    sites = read_program(trials, ["theta"], ["x"]).parameters
    local = LocalGuide(posterior, sites, {"x": x}, 6, names={"theta": "level"}, block=2)

    def program() -> None:
        with pyro.plate("units", 6, subsample_size=3) as rows:
            level = pyro.sample("level", dist.Normal(0.0, 3.0))
            pyro.sample("x", exact.given(level), obs=x[rows])

    seen: list[Tensor] = []

    def guide() -> None:
        with pyro.plate("units", 6, subsample_size=3) as rows:
            seen.append(rows)
            local(rows)

    loss = Trace_ELBO(particles, vectorize_particles=particles > 1, max_plate_nesting=1)
    for _ in range(4):
        found = -float(loss.loss(program, guide))
        expected = 2 * float(log_evidence(x[seen[-1]]).sum())
        assert found == pytest.approx(expected, rel=1e-4)
    drawn = poutine.trace(guide).get_trace().nodes["level"]["value"]
    assert drawn.shape == (3,)
    assert posterior.calls < 20


def test_local_guides_refuse_what_are_no_rows(exact: Any) -> None:
    sites = read_program(trials, ["theta"], ["x"]).parameters
    local = LocalGuide(Conjugate(), sites, {"x": observed(6)}, 6)
    refused(
        ValueError,
        (lambda: local(torch.tensor([0, 6])), r"values up to 6, expected \(b,\) numbers from 0"),
        (lambda: local(torch.tensor([2, 2])), "rows has 2 numbers, 1 of them different"),
        (
            lambda: LocalGuide(Conjugate(), sites, {"x": observed(6)}, 6, names={"t": "u"}),
            "names has 't', expected parameters of the simulator, of theta",
        ),
    )


# -- mistakes --------------------------------------------------------------------------------------


def series() -> None:
    """Five numbers, each about the one before."""
    x = theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
    values = [x := pyro.sample(f"step_{t}", dist.Normal(theta + 0.5 * x, 1.0)) for t in range(5)]
    with pyro.plate("times", 5):
        pyro.deterministic("x", torch.stack(values, -1))


def test_mistakes_are_named_with_both_shapes(exact: Any, learned: Any) -> None:
    likelihood, draws = learned
    theta, zeros = {name: draws[name][:6] for name in "ab"}, torch.zeros
    of_series = AmortizedLikelihood(series, ["theta"], ["x"], simulate(series, 50, seed=0))
    given, law = likelihood.given, exact.given(zeros(3))
    as_one = r"'x' has shape \(5,\) there, as one datum"
    both = {"plates": {"trials": 2}, "datum_of": "trials"}
    refused(
        ValueError,
        (lambda: exact.given({"mu": zeros(3)}), "theta has 'mu', expected 'theta' of shape"),
        (lambda: given(zeros(3)), "theta is one tensor, expected .* 'b' of shape"),
        (
            lambda: given(theta | {"b": zeros(6, 3)}),
            r"b has shape \(6, 3\), expected .*batch, 2",
        ),
        (lambda: given(theta | {"b": zeros(4, 2)}), r"shapes 'a' \(6,\), 'b' \(4, 2\), expected"),
        (
            lambda: law.log_prob(zeros(3, 10)),
            r"x has .*batch, 4\); .*\{'trials': n\}.*A series",
        ),
        (lambda: law.log_prob(zeros(5, 4)), r"x has shape \(5, 4\), of a batch \(5,\), expected"),
        (lambda: law.log_prob(torch.full((3, 4), math.inf)), "12 numbers of x are infinite"),
        (lambda: of_series.given(zeros(3), plates={"times": 9}), f"plates has 'times', .*{as_one}"),
        (lambda: of_series.given(zeros(3), datum_of="times"), f"datum_of has 'times', .*{as_one}"),
        (lambda: of_series.given(zeros(3)).log_prob(zeros(3, 7)), "the likelihood is of data of"),
        (
            lambda: exact.given(zeros(3), plates={"q": 9}),
            "'q', .*trials.*has no such plate",
        ),
        (lambda: exact.given(zeros(3), **both), "plates and datum_of have 'trials', expected one"),
        (lambda: given(theta, datum_of="places"), "share has no place in it, expected sites of"),
        (lambda: given(theta, sites="y"), "sites has 'y', expected sites of the data"),
        (lambda: given(theta).joined({"pair": draws["pair"]}), "no value of 'count'"),
        (lambda: exact.given(torch.tensor(math.nan)).sample(), "NaN"),
    )
