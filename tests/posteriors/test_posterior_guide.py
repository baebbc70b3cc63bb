"""Posteriors as guides of their programs, and weights that make them exact."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, Importance, Predictive
from torch import Tensor

from inference.simulators.linear_gaussian import LINEAR_GAUSSIAN, NOISE, A
from pyro_mdm.diffusions.presets import VPSDE
from pyro_mdm.networks import MLP
from pyro_mdm.posteriors import (
    AmortizedPosterior,
    ImportanceWeights,
    PosteriorGuide,
    ScoredDraws,
    log_prior,
    read_program,
    simulate,
)
from tests.mistakes import refused

OBSERVED = {"x": torch.tensor([1.0, -1.0, 0.5, 2.0])}


def exact() -> tuple[Any, float]:
    """The posterior of the linear Gaussian simulator, and the log evidence."""
    precision = torch.eye(3) + A.mT @ A / NOISE**2
    mean = torch.linalg.solve(precision, A.mT @ OBSERVED["x"] / NOISE**2)
    marginal = dist.MultivariateNormal(torch.zeros(4), A @ A.mT + NOISE**2 * torch.eye(4))
    law = dist.MultivariateNormal(mean, precision_matrix=precision)
    return law, float(marginal.log_prob(OBSERVED["x"]))


class Standing:
    """A posterior whose draws and densities are those of a law, whatever is observed."""

    def __init__(self, draw: Any, log_prob: Any) -> None:
        self.draw, self.of = draw, log_prob
        self.drawn: list[int] = []
        self.scored = 0

    def scored_draws(self, data: Any, n: int, *, seed: int | None = None) -> ScoredDraws:
        theta = self.draw(n, len(self.drawn) if seed is None else seed)
        self.drawn.append(n)

        def score() -> Tensor:
            self.scored += n
            return self.of(theta)

        return ScoredDraws(theta, score)

    def log_prob(self, theta: Mapping[str, Tensor], data: Any) -> Any:
        return SimpleNamespace(value=self.of(theta))


def standing_exact() -> tuple[Standing, PosteriorGuide]:
    law, _ = exact()

    def draw(n: int, seed: int) -> dict[str, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return {"theta": law.sample((n,))}

    posterior = Standing(draw, lambda theta: law.log_prob(theta["theta"]))
    sites = read_program(LINEAR_GAUSSIAN.program, ["theta"], ["x"]).parameters
    return posterior, PosteriorGuide(posterior, LINEAR_GAUSSIAN.program, sites, OBSERVED)


def in_plates() -> None:
    """Parameters of three supports, two in plates, with nuisance sites and data of a plate."""
    w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
    b = pyro.sample("b", dist.Uniform(2.0, 3.0))
    with pyro.plate("groups", 2, dim=-2), pyro.plate("times", 4, dim=-1):
        a = pyro.sample("a", dist.LogNormal(b.log(), 0.5))
        c = pyro.sample("c", dist.Normal(torch.zeros(5), 1.0).to_event(1))
        k = pyro.sample("k", dist.Bernoulli(w[..., 0]))
        h = pyro.sample("h", dist.Normal(k, 1.0))
        pyro.sample("x", dist.Normal(a.log() + c.sum(-1) + h, 1.0))


LATENT = ["w", "b", "a", "c"]
IN_PLATES = {"x": torch.linspace(-1.0, 2.0, 8).reshape(2, 4)}


def standing_prior(**options: Any) -> tuple[Standing, PosteriorGuide]:
    def draw(n: int, seed: int) -> dict[str, Tensor]:
        drawn = simulate(in_plates, n, seed=seed)
        return {name: drawn[name] for name in LATENT}

    posterior = Standing(draw, lambda theta: log_prior(in_plates, LATENT, theta))
    sites = read_program(in_plates, LATENT, ["x"]).parameters
    return posterior, PosteriorGuide(posterior, in_plates, sites, IN_PLATES, **options)


# -- weights ---------------------------------------------------------------------------------------


def test_the_weights_of_an_exact_posterior_are_the_evidence() -> None:
    posterior, guide = standing_exact()
    conditioned = pyro.condition(LINEAR_GAUSSIAN.program, OBSERVED)
    weights = ImportanceWeights.from_importance(
        Importance(conditioned, guide, num_samples=300).run()
    )
    _, evidence = exact()
    torch.testing.assert_close(
        weights.log_weights, torch.full((300,), evidence).double(), atol=1e-4, rtol=0
    )
    assert weights.effective == pytest.approx(300, rel=1e-4)
    assert weights.log_evidence.mean == pytest.approx(evidence, abs=1e-4)
    assert len(posterior.drawn) <= 3 and posterior.scored == sum(posterior.drawn)  # in blocks


@pytest.fixture(scope="module")
def hardly_trained() -> AmortizedPosterior:
    torch.manual_seed(0)
    network = MLP(3 + 5, hidden=32, depth=1, out_features=3)
    few: dict[str, Any] = {"simulations": 300, "steps": 40, "network": network, "vectorized": True}
    return AmortizedPosterior.fit(*LINEAR_GAUSSIAN[:3], **few)


@pytest.mark.slow
def test_weights_make_a_bad_posterior_exact(hardly_trained: AmortizedPosterior) -> None:
    """The mean and the evidence are found within their Monte Carlo errors; without weights the
    mean is not."""
    guide = hardly_trained.guide(OBSERVED, seed=3)
    conditioned = pyro.condition(LINEAR_GAUSSIAN.program, OBSERVED)
    importance = Importance(conditioned, guide, num_samples=700).run()
    weights = ImportanceWeights.from_importance(importance)
    theta = torch.stack([trace.nodes["theta"]["value"] for trace in importance.exec_traces])
    w, (law, evidence) = weights.normalized[:, None], exact()
    mean = (w * theta).sum(0)
    error = (w.square() * (theta - mean).square()).sum(0).sqrt()
    assert bool(((mean - law.mean).abs() < 5.5 * error).all())
    assert float(((theta.mean(0) - law.mean).abs() / theta.std(0)).max() * math.sqrt(700)) > 4
    assert abs(weights.log_evidence.mean - evidence) < 5.5 * weights.log_evidence.standard_error
    assert weights.effective > 20


def test_weights_are_right_where_a_density_is_an_estimate() -> None:
    """Much noise at ε, and a network of random weights: a density by one state is uncertain. As it
    is the state that the draw was decoded from, the mean of 1/q̂ is 1/q."""
    draws = simulate(LINEAR_GAUSSIAN.program, 400, seed=0, vectorized=True)
    torch.manual_seed(0)
    named, noisy = LINEAR_GAUSSIAN[:3], VPSDE(max_log_snr=-0.5)
    posterior = AmortizedPosterior(*named, draws, diffusion=noisy)
    for weight in posterior.model.score_function.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    scored = posterior.scored_draws(OBSERVED, 400, seed=2)
    theta = scored.theta["theta"]
    prior = dist.Normal(0.0, 1.0).log_prob(theta).sum(1)
    likelihood = dist.Normal(theta @ A.mT, NOISE).log_prob(OBSERVED["x"]).sum(1)
    weights = ImportanceWeights((prior + likelihood).double() - scored.log_prob)
    _, evidence = exact()
    assert abs(weights.log_evidence.mean - evidence) < 5.5 * weights.log_evidence.standard_error
    assert weights.log_evidence.standard_error < 0.3


# -- guides ----------------------------------------------------------------------------------------


def test_weights_of_a_guide_of_the_prior_are_likelihoods() -> None:
    """With parameters in plates, of any support; nuisance sites are drawn from the program."""
    _, guide = standing_prior()
    importance = Importance(pyro.condition(in_plates, IN_PLATES), guide, num_samples=8).run()
    assert len({float(t.nodes["b"]["value"]) for t in importance.exec_traces}) == 8
    for trace, weight in zip(importance.exec_traces, importance.log_weights, strict=True):
        values = {name: trace.nodes[name]["value"] for name in (*LATENT, "h")}
        law = dist.Normal(values["a"].log() + values["c"].sum(-1) + values["h"], 1.0)
        expected = law.log_prob(IN_PLATES["x"]).sum()
        assert float(weight) == pytest.approx(float(expected), abs=1e-3)


def test_nuisance_sites_are_drawn_given_what_is_observed() -> None:
    """Between data, of which one is missing: a site that is drawn too."""

    def program() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        x = pyro.sample("x", dist.Normal(a, 1.0))
        h = pyro.sample("h", dist.Normal(10 * x, 1.0))
        y = pyro.sample("y", dist.Normal(h, 1.0))
        pyro.sample("z", dist.Normal(y, 1.0))

    def draw(n: int, seed: int) -> dict[str, Tensor]:
        return {"a": simulate(program, n, seed=seed)["a"]}

    posterior = Standing(draw, lambda theta: dist.Normal(0.0, 1.0).log_prob(theta["a"]))
    sites = read_program(program, ["a"], ["x", "y", "z"]).parameters
    known = {"x": torch.tensor(1.0), "z": torch.tensor(9.0)}
    guide = PosteriorGuide(posterior, program, sites, known | {"y": torch.tensor(math.nan)})
    importance = Importance(pyro.condition(program, known), guide, num_samples=10).run()
    for trace, weight in zip(importance.exec_traces, importance.log_weights, strict=True):
        means = torch.stack([trace.nodes["a"]["value"], trace.nodes["y"]["value"]])
        expected = dist.Normal(means, 1.0).log_prob(torch.stack([known["x"], known["z"]])).sum()
        assert float(weight) == pytest.approx(float(expected), abs=1e-3)


def test_sites_of_a_guide_are_those_of_the_program() -> None:
    _, guide = standing_prior()
    traced = poutine.trace(guide).get_trace("any", argument=1)
    model = poutine.trace(in_plates).get_trace()
    assert [n for n in traced.nodes if n[0] != "_" and n not in ("groups", "times")] == [
        *LATENT, "k", "h",
    ]  # fmt: skip
    for name in LATENT:
        ours, theirs = traced.nodes[name], model.nodes[name]
        assert ours["value"].shape == theirs["value"].shape
        assert ours["fn"].event_dim == theirs["fn"].event_dim
        plates = {(f.name, f.dim, f.size) for f in theirs["cond_indep_stack"]}
        assert {(f.name, f.dim, f.size) for f in ours["cond_indep_stack"]} == plates
    _, guide = standing_prior(nuisance=False)
    assert not {"k", "h"} & set(poutine.trace(guide).get_trace().nodes)


@pytest.mark.parametrize("parallel", [False, True])
def test_predictions_are_of_joint_draws(parallel: bool) -> None:
    """Each draw is handed out once, whole, and not scored."""
    posterior, guide = standing_prior()
    drawn = Predictive(in_plates, guide=guide, num_samples=40, parallel=parallel)()
    assert drawn["x"].shape == (40, 2, 4) and drawn["c"].shape == (40, 2, 4, 5)
    made = [posterior.draw(n, seed) for seed, n in enumerate(posterior.drawn)]
    rows = {float(b): i for i, b in enumerate(torch.cat([block["b"] for block in made]))}
    places = [rows[float(b)] for b in drawn["b"].reshape(-1)]
    assert len(set(places)) == 40 and posterior.scored == 0
    for name in LATENT:
        value = torch.cat([block[name] for block in made])[places]
        torch.testing.assert_close(drawn[name].reshape(value.shape), value)


def test_parameters_that_were_not_drawn_are_scored() -> None:
    _, guide = standing_exact()
    traced = poutine.trace(guide).get_trace()
    (joint,) = (site for name, site in traced.nodes.items() if name.startswith("_post"))
    law, _ = exact()
    rows = torch.cat([joint["value"][None], torch.zeros(1, 3)])
    torch.testing.assert_close(joint["fn"].log_prob(rows), law.log_prob(rows), check_dtype=False)


@pytest.mark.slow
def test_chains_start_at_draws() -> None:
    posterior, guide = standing_prior()
    many = guide.initial_params(3)
    assert {name: tuple(v.shape) for name, v in many.items()} == {
        "w": (3, 2), "b": (3,), "a": (3, 2, 4), "c": (3, 2, 4, 5),
    }  # fmt: skip
    (first,) = (posterior.draw(n, 0) for n in posterior.drawn)
    torch.testing.assert_close(many["a"], first["a"][:3].log())
    conditioned = pyro.condition(LINEAR_GAUSSIAN.program, OBSERVED)
    _, guide = standing_exact()
    start = guide.initial_params()
    assert start["theta"].shape == (3,)
    kernel = NUTS(conditioned, step_size=1e-9, adapt_step_size=False)
    chain = MCMC(kernel, num_samples=1, warmup_steps=0, initial_params=start, disable_progbar=True)
    chain.run()
    torch.testing.assert_close(chain.get_samples()["theta"][0], start["theta"], atol=1e-3, rtol=0)


# -- weights in words, and mistakes ----------------------------------------------------------------


def test_weights_are_counted() -> None:
    log_weights = torch.tensor([0.0, math.log(3.0), -math.inf, 0.0])
    with pytest.warns(UserWarning, match="largest of 4 weights is 60% of their sum"):
        weights = ImportanceWeights.from_importance(SimpleNamespace(log_weights=[*log_weights]))
    assert weights.effective == pytest.approx(25 / 11)
    assert weights.log_evidence.mean == pytest.approx(math.log(5 / 4))
    assert "4 weights count as 2 draws" in repr(weights)
    torch.testing.assert_close(weights.normalized, torch.tensor([0.2, 0.6, 0.0, 0.2]).double())


def test_mistakes_are_named(hardly_trained: AmortizedPosterior) -> None:
    two = {"x": torch.zeros(2, 4)}
    refused(
        ValueError,
        (lambda: hardly_trained.guide(two), "the data are 2 observations, expected one"),
        (lambda: hardly_trained.guide({}), "there is no value of 'x'"),
        (
            lambda: ImportanceWeights.from_importance(SimpleNamespace(log_weights=[])),
            r"expected those of importance.run\(\)",
        ),
        (lambda: standing_exact()[1].initial_params(0), "chains is 0, expected at least 1"),
    )


def test_weights_without_data_are_refused() -> None:
    """A program whose data are not observed has weights that say nothing of them."""

    def program() -> None:
        pyro.sample("x", dist.Normal(pyro.sample("a", dist.Normal(0.0, 1.0)), 1.0))

    draws = simulate(program, 50, seed=0)
    posterior = AmortizedPosterior.fit(program, ["a"], ["x"], draws=draws, steps=1)
    guide = posterior.guide({"x": torch.tensor(0.5)})
    with pytest.raises(ValueError, match="condition"):
        ImportanceWeights.from_importance(Importance(program, guide, num_samples=5).run())
