"""A latent context that decides the clocks: programs, bounds, gradients, samplers."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_mdm import (
    CLD,
    MDM,
    MDM_ELBO,
    VPSDE,
    Denoiser,
    DiffusionGuide,
    DiffusionModel,
    NoisePrediction,
    PerDimensionDiffusion,
    condition,
    randomness,
)
from pyro_mdm.by_dimension import LearnedClocks
from pyro_mdm.conditioning import Replacement
from pyro_mdm.diffusions.base import for_data, typical
from pyro_mdm.diffusions.clocks import log_snr_times
from pyro_mdm.evaluation import compare
from pyro_mdm.likelihoods import Tweedie
from pyro_mdm.networks import MLP
from pyro_mdm.paths.base import BoundScore, GenerativePath, path_divergence
from pyro_mdm.samplers import (
    Ancestral,
    EulerMaruyama,
    ExponentialIntegrator,
    Splitting,
    StochasticExponentialIntegrator,
)
from pyro_mdm.seeing import (
    Context,
    ContextClocks,
    ContextDiffusion,
    DiscreteContext,
    GaussianContext,
)
from tests.by_dimension.test_per_dimension import ENDS, MEAN, VARIANCE, D, data, exact
from tests.gradients import assert_gradients, slope
from tests.mistakes import refused
from tests.problems import fixed, normal


def made(kind: str = "gaussian", block: Any = VPSDE, size: int = 2) -> ContextDiffusion:
    """Some way into its training: clocks and encoder are far from where they start."""
    outputs = {"gaussian": 2 * size, "discrete": size}[kind]
    encoder = nn.Linear(D, outputs).double()
    context: Context = {"gaussian": GaussianContext, "discrete": DiscreteContext}[kind](
        encoder, size
    )
    diffusion = ContextDiffusion(
        block(**ENDS), context, ContextClocks(2, size), torch.tensor([1, 0, 1])
    )
    with torch.no_grad():
        for i, p in enumerate(diffusion.parameters()):
            p.copy_(0.6 * fixed(i, *p.shape))
    return diffusion


def alone(diffusion: ContextDiffusion, context: Tensor) -> PerDimensionDiffusion:
    """The diffusion of one datum, (size,), by clocks of its own."""
    clocks: Any = diffusion.clocks
    learned = LearnedClocks(2)
    with torch.no_grad():
        learned.logits.copy_(clocks.layers(context).unflatten(-1, (2, 5)))
    return PerDimensionDiffusion(
        diffusion.reference, clocks=learned, clock_of=torch.tensor([1, 0, 1])
    )


# -- given a context -------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [VPSDE, CLD])
@torch.no_grad()
def test_given_contexts_each_datum_has_its_own_clocks(block: Any) -> None:
    diffusion, n = made(block=block), 4
    contexts = normal(1, n, 2)
    known = diffusion.given(contexts)
    s = log_snr_times(diffusion, n + 2)[1:-1]
    assert known.context is None and known.origin is diffusion
    for times in (s, s[:1].expand(n)):
        marginal, A = known.marginal(times), known.drift_matrix(times)
        for i in range(n):
            one = alone(diffusion, contexts[i])
            for found, expected in zip(marginal, one.marginal(times[i]), strict=True):
                torch.testing.assert_close(found[i], expected[0], rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(A[i], one.drift_matrix(times[i])[0], rtol=1e-6, atol=1e-9)
    ends = log_snr_times(diffusion, 2)
    for found, expected in ((known.start, ends[0]), (known.terminal, ends[1])):
        at = known.marginal(expected.expand(n))
        torch.testing.assert_close(at.covariance[2:3], found.covariance, rtol=1e-6, atol=1e-8)


@torch.no_grad()
def test_a_model_of_given_contexts_draws_none() -> None:
    diffusion, x, contexts = made(), data(4), normal(1, 4, 2)
    model = DiffusionModel(diffusion, exact(), event_shape=(D,))
    known, score = model.given(contexts)
    of_these = DiffusionModel(known, score, event_shape=(D,))
    drawn, log_prob = for_data(of_these.diffusion, x), of_these.log_prob(x)
    assert drawn.diffusion is known and drawn.context is None and not drawn.kl.any()
    assert typical(known, x) is known and log_prob.shape == (4,)
    ours, asked = of_these.drawn(4)
    assert EulerMaruyama(4)(ours, asked, (4, 1, D)).shape == (4, 1, D)


@pytest.mark.parametrize(
    "sampler",
    [
        ExponentialIntegrator(6, order=3),
        StochasticExponentialIntegrator(6),
        Ancestral(6),
        Splitting(6),
        EulerMaruyama(8),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
@torch.no_grad()
def test_a_datum_is_sampled_as_by_its_own_clocks(sampler: Any) -> None:
    diffusion = made()
    contexts = normal(2, 2, 2)
    model = DiffusionModel(diffusion, exact(), event_shape=(D,))
    sampler.grid = log_snr_times(diffusion.reference, sampler.steps + 1).flip(0)
    known, score = model.given(contexts)
    found = sampler(known, BoundScore(known, score), (2, 1, D), torch.Generator().manual_seed(3))
    for i in range(2):
        one = alone(diffusion, contexts[i])
        drawn = sampler(one, BoundScore(one, exact()), (2, 1, D), torch.Generator().manual_seed(3))
        torch.testing.assert_close(found[i], drawn[i], rtol=1e-6, atol=1e-8)


# -- bounds ----------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_raw_score_has_the_bound_of_the_denoiser_that_it_is_made_of() -> None:
    """ε_θ = Lᵀ Σ^-1 (y - a x̂) asked for through its map, by the common clock's times."""
    diffusion, x = made(), data(8)
    contexts = normal(5, 8, 2)
    known: Any = diffusion.given(contexts)
    u = torch.linspace(0.05, 0.95, 8, dtype=torch.float64)
    level = 8.0 - 15.0 * u
    noise = normal(6, 8, 1, D)

    class Epsilon(nn.Module):
        def forward(self, inputs: Tensor, log_snr: Tensor) -> Tensor:
            y, told = inputs[:, :D], inputs[:, D:]
            torch.testing.assert_close(told, contexts)
            s = diffusion.time_at_log_snr(log_snr)
            score = exact().score(known, y.unsqueeze(1), s)
            L = known.marginal(s).scale_tril[..., 0, 0]
            return -L * score[:, 0]

    raw = NoisePrediction(Epsilon()).given_context(contexts)
    found = raw.integrand(known, x, level, noise)
    expected = exact().integrand(known, x, level, noise)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def programs(kind: str) -> tuple[DiffusionModel, DiffusionGuide]:
    diffusion = made(kind)
    network = MLP(2 * D + 2, 8, 1, out_features=D).double()
    with torch.no_grad():
        for i, p in enumerate(network.parameters()):
            p.copy_(0.3 * fixed(20 + i, *p.shape))
    score = Denoiser(network, MEAN, VARIANCE, maps=True)
    return DiffusionModel(diffusion, score, event_shape=(D,)), DiffusionGuide(diffusion)


def test_gradients_of_a_gaussian_context_are_those_of_finite_differences() -> None:
    model, guide = programs("gaussian")
    x = data(6)

    def loss() -> Tensor:
        torch.manual_seed(3)
        return MDM_ELBO().differentiable_loss(model, guide, x)

    context: Any = model.diffusion.context
    clocks: Any = model.diffusion.clocks
    parameters = [context.encoder.weight, clocks.layers[0].weight, clocks.layers[2].weight]
    assert_gradients(loss, parameters, rel=2e-5, abs=1e-5)


@pytest.mark.slow
def test_gradients_of_a_discrete_context_are_unbiased_and_quieter_than_alone() -> None:
    """Against the sum over its values, at fixed noise; and with a fraction of the variance that
    one draw has."""
    model, guide = programs("discrete")
    x, context = data(4), model.diffusion.context
    encoder: Any = context.encoder

    def gradient(particles: int | None, seed: int) -> Tensor:
        encoder.zero_grad()
        torch.manual_seed(seed)
        with randomness.piece(0, 1, 7):  # one noise along the paths for all
            if particles is None:
                MDM_ELBO().differentiable_loss(model, guide, x).backward()
            else:
                loss = MDM_ELBO(num_particles=1)
                guide_alone = pyro.poutine.block(guide, hide=[])
                loss.differentiable_loss(model, guide_alone, x).backward()
        return encoder.bias.grad.clone()

    paired = torch.stack([gradient(None, seed) for seed in range(64)])
    single = torch.stack([gradient(1, seed) for seed in range(64)])
    error = paired.std(0) / math.sqrt(len(paired))
    assert bool((paired.std(0) < 0.5 * single.std(0)).all())
    # the sum over both values
    encoder.zero_grad()
    costs = []
    for k in range(2):
        c = torch.eye(2, dtype=torch.float64)[k].expand(4, 2)
        with randomness.piece(0, 1, 7), torch.no_grad():
            same = randomness.repeatable(torch.device("cpu"))
            with same():
                law = guide.law(x, None, c)
                path = law.rsample()
                diffusion, score = model.given(c)
                kl = path_divergence(law, GenerativePath(diffusion, score, model.event_shape))
                decoder = model.likelihood(diffusion, score, path[:, 0])
                costs.append(decoder.log_prob(x) - kl.prior - kl.diffusion)
    value = (encoder(x).softmax(-1) * torch.stack(costs, -1)).sum()
    prior = context.prior().expand((4,))
    (kl_divergence(context.posterior(x), prior).sum() - value).backward()
    assert bool(((paired.mean(0) - encoder.bias.grad).abs() < 5.5 * error + 1e-9).all())


def test_log_prob_has_the_gradients_of_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a discrete context too: over all pairs of draws, at one noise of the path."""
    model, _ = programs("discrete")
    x = data(1)
    context: Any = model.diffusion.context
    encoder: Any = context.encoder

    def value(first: int, second: int) -> Tensor:
        chosen = iter((first, second))
        unit = torch.eye(2, dtype=torch.float64)
        monkeypatch.setattr(context, "drawn", lambda law: unit[next(chosen)][None])
        torch.manual_seed(5)
        return model.log_prob(x).sum()

    def q() -> Tensor:
        return context.posterior(x).probs[0]

    with torch.no_grad():
        weights = q()
    encoder.zero_grad()
    for a in range(2):
        for b in range(2):
            (weights[a] * weights[b] * value(a, b)).backward()
    gradient = encoder.bias.grad.clone()

    def whole() -> Tensor:
        return (q() * torch.stack([value(c, c) for c in range(2)])).sum()

    along = torch.tensor([1.0, -0.5], dtype=torch.float64)
    expected = slope(whole, encoder.bias, along, 1e-6)
    assert float(gradient @ along) == pytest.approx(expected, rel=1e-5)
    monkeypatch.undo()
    again = [model.log_prob(x, seed=3).detach() for _ in range(2)]
    assert torch.equal(*again)


@torch.no_grad()
def test_comparisons_draw_one_context_for_all_models() -> None:
    model, guide = programs("gaussian")
    found = compare({"a": (model, guide), "b": (model, guide)}, data(16), draws=2)
    assert found.differences[0].bits_per_dim == (0.0, 0.0)


# -- programs --------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_context_is_a_site_of_both_programs() -> None:
    model, guide = programs("gaussian")
    torch.manual_seed(0)
    trace = pyro.poutine.trace(guide).get_trace(data(5))
    assert trace.nodes["context"]["value"].shape == (5, 2)
    replayed = pyro.poutine.trace(pyro.poutine.replay(model, trace)).get_trace(data(5))
    order = [name for name in replayed.nodes if name in ("context", "path", "x")]
    assert order == ["context", "path", "x"]
    assert model(batch_size=4).shape == (4, D)
    law = MDM(model)
    own = DiffusionModel(model.diffusion, model.score_function, Tweedie(), event_shape=(D,))
    with pyro.plate("data", 3):
        assert pyro.sample("x", MDM(own)).shape == (3, D)
    assert law.sample((2,)).shape == (2, D)
    assert law.log_prob(data(3)).shape == (3,)
    torch.manual_seed(0)
    one = float(pyro.infer.TraceMeanField_ELBO().loss(model, guide, data(5)))
    assert math.isfinite(one)


def test_mistakes_are_told() -> None:
    diffusion = made()
    model = DiffusionModel(diffusion, exact(), event_shape=(D,))
    told, clocks = exact().given_context(normal(0, 2, 2)), torch.tensor([0, 1])
    of_three = GaussianContext(nn.Linear(D, 3).double(), 2)
    replacing = Replacement(Ancestral(3), torch.tensor([True, False, False]), torch.zeros(D))
    refused(
        (TypeError, ValueError),
        (lambda: diffusion.marginal(0.5), "which is not given; use diffusion.given"),
        (lambda: Ancestral(3)(diffusion, model.bound_score, (4, 1, D)), r"drawn\(4\), shape\)"),
        (lambda: replacing(*model.drawn(4), (4, 1, D)), "needs one distribution of paths"),
        (lambda: DiffusionModel(diffusion, exact(), times=5), "steps back by x̂ alone"),
        (
            lambda: DiffusionGuide(diffusion, times=5)(data(3)),
            "one distribution of paths for all .*leave out times",
        ),
        (lambda: model.log_prob(data(3), method="flow"), "one flow for all data"),
        (lambda: condition(model, torch.tensor([True, False, False])), "led by a context"),
        (lambda: ContextDiffusion(VPSDE(), of_three, ContextClocks(2, 3), clocks), r"number, 2\)"),
        (lambda: DiscreteContext(nn.Linear(3, 1), 1), "size is 1, expected at least 2"),
        (lambda: of_three.posterior(data(3)), r"returned \(3, 3\).*expected \(3, 4\)"),
        (lambda: told.x_hat(data(3), 0.0), "of 2 data and the network is asked about 3"),
    )
