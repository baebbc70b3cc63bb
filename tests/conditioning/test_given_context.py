"""Models of data given labels or other contexts, held to exact laws."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn

from pyro_mdm import (
    CLD,
    MDM,
    MDM_ELBO,
    VPSDE,
    Denoiser,
    DiffusionGuide,
    DiffusionModel,
    LearnedDiffusion,
    NoisePrediction,
    bound,
    condition,
    elbo_terms,
    randomness,
)
from pyro_mdm.conditioning import (
    ClassPosterior,
    EncodedContext,
    Guided,
    Labels,
    Vectors,
    class_posterior,
)
from pyro_mdm.contexts import GivenContext
from pyro_mdm.evaluation import importance_weighted, probability_flow as flow
from pyro_mdm.networks import MLP
from pyro_mdm.paths.flow import Solver
from pyro_mdm.pretrained import PretrainedError
from pyro_mdm.samplers import EulerMaruyama, ExponentialIntegrator
from pyro_mdm.seeing import ContextClocks, ContextDiffusion, GaussianContext
from pyro_mdm.support.measured import Measured
from tests.mistakes import refused
from tests.problems import GaussianMixture, Silent, learned, normal

ENDS: dict[str, Any] = {"max_log_snr": 9.0, "min_log_snr": -9.0}
DIFFUSIONS = {
    "vpsde": lambda: VPSDE(**ENDS),
    "cld": lambda: CLD(**ENDS),
    "learned_2": lambda: learned(2, 2, 5, **ENDS),
}


def mixture() -> GaussianMixture:
    """Three classes, which overlap."""
    means = torch.tensor([[-0.6, 0.5], [0.8, 0.4], [0.1, -0.7]])
    covariances = torch.tensor(
        [[[0.15, 0.05], [0.05, 0.1]], [[0.3, 0.1], [0.1, 0.2]], [[0.1, 0.0], [0.0, 0.3]]]
    )
    return GaussianMixture([0.5, 0.3, 0.2], means, covariances)


def of_class(problem: GaussianMixture, k: int) -> GaussianMixture:
    return GaussianMixture([1.0], problem.means[k : k + 1], problem.covariances[k : k + 1])


def labelled(problem: GaussianMixture, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x (n, d) and the component that each is of, (n,)."""
    classes = torch.bucketize(normal(seed + 9, n), torch.tensor([0.0, 0.8]).double())
    each = torch.stack([of_class(problem, k).sample(n, seed) for k in range(3)])
    return each[classes, torch.arange(n)], classes


def own_log_prob(x: Tensor, classes: Tensor) -> Tensor:
    """log p(x | c), (n,)."""
    each = torch.stack([of_class(mixture(), k).log_prob(x) for k in range(3)])
    return each[classes, torch.arange(len(x))]


class Exact(Denoiser):
    """E[x | z, c] of a mixture whose class is c; E[x | z] where it is not known."""

    def __init__(self, problem: GaussianMixture) -> None:
        super().__init__(Silent(), problem.mean, problem.covariance.diagonal())
        self.problem = problem

    def x_hat(self, z: Tensor, log_snr: Any) -> Tensor:
        assert self.network_context is not None
        log_snr = torch.as_tensor(log_snr, dtype=torch.float64)
        each = torch.stack([of_class(self.problem, k).x_hat(z, log_snr) for k in range(3)], -2)
        told = self.network_context.reshape(-1, 3).double()
        told = told.repeat(z.shape[-2] // len(told), 1)  # rows come last but one
        known = (told.unsqueeze(-1) * each).sum(-2)
        return torch.where(told.sum(-1, keepdim=True) > 0, known, self.problem.x_hat(z, log_snr))


def exact(name: str = "vpsde", **options: Any) -> DiffusionModel:
    context = Labels(3, dropout=0.25)
    model = DiffusionModel(DIFFUSIONS[name](), Exact(mixture()), context=context, **options)
    return model.eval().requires_grad_(False)


def told_network(context: int, inputs: int = 2) -> MLP:
    """A network of so many numbers and contexts, with weights that are not zero anywhere."""
    torch.manual_seed(4)
    found = MLP(inputs + context, hidden=8, depth=1, out_features=2)
    for parameter in found.parameters():
        nn.init.normal_(parameter, std=0.3)
    return found


# -- bounds ----------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", DIFFUSIONS)
def test_the_bound_is_the_likelihood_given_the_class(name: str) -> None:
    problem, (x, labels) = mixture(), labelled(mixture(), 600)
    model = exact(name)
    guide = DiffusionGuide(model.diffusion)
    expected = (
        (labels, own_log_prob(x, labels)),
        (torch.tensor(1), of_class(problem, 1).log_prob(x)),
        (model.context.unknown, problem.log_prob(x)),
    )
    for context, known in expected:
        found = bound(condition(model, context=context), guide, x, draws=4, batch_size=170)
        error = found.elbo.mean - float(known.mean())
        assert found.monte_carlo_error < 0.16
        assert abs(error) < 5.5 * found.monte_carlo_error + 2e-3


@pytest.mark.slow
@torch.no_grad()
def test_without_a_context_it_is_the_model_of_an_unknown_one() -> None:
    """Where the network learned that: in every estimate and every draw, not in training on data."""
    (x, _), model = labelled(mixture(), 12), exact("cld", sampler=ExponentialIntegrator(3))
    unknown, guide = condition(model, context=-1), DiffusionGuide(model.diffusion)

    def answers(of: DiffusionModel) -> list[Tensor]:
        torch.manual_seed(1)
        estimates = [bound(of, guide, x), bound(of, guide, x[:3]), flow(of, guide, x[:4])]
        estimates.append(importance_weighted(of, guide, x[:4], samples=2, times=5))
        law, shape = MDM(of, seed=1), (5, 2, 2)
        drawn = [of(batch_size=5), law.sample((5,)), EulerMaruyama(2)(*of.drawn(5), shape)]
        drawn += [of.score(drawn[-1], torch.full((5,), 0.4)), of.log_prob(x), law.log_prob(x)]
        return [estimate.per_datum for estimate in estimates] + drawn

    for first, second in zip(answers(model), answers(unknown), strict=True):
        assert torch.equal(first, second)
    assert model.without_context().context is None and unknown.without_context() is unknown
    with pytest.raises(ValueError, match=r"and none is given; pass it to the program"):
        model.train()(x)
    assert model(batch_size=2).shape == (2, 2)
    assert torch.equal(bound(model, guide, x).per_datum, bound(unknown, guide, x).per_datum)


@torch.no_grad()
def test_other_likelihoods_are_of_the_class_too() -> None:
    """By batches, each with the contexts of its data."""
    (x, labels), model = labelled(mixture(), 12), exact()
    known = own_log_prob(x, labels)
    conditioned, guide = condition(model, context=labels), DiffusionGuide(model.diffusion)
    # y_ε is x with noise of e^{-9}, which is all that is between weights and log p(x | c)
    found = flow(conditioned, guide, x, samples=2)
    assert float((found.per_datum - known).abs().max()) < 0.4
    several = importance_weighted(conditioned, guide, x, samples=512, times=17)
    assert float((several.per_datum - known).mean()) == pytest.approx(0, abs=1.2)
    assert conditioned.log_prob(x, draws=3).shape == (12,)
    assert MDM(conditioned, seed=1).log_prob(x).shape == (12,)


@torch.no_grad()
def test_classes_follow_by_bayes_rule() -> None:
    problem, (x, labels) = mixture(), labelled(mixture(), 300)
    model, prior = exact(), mixture().log_weights.exp()
    guide = DiffusionGuide(model.diffusion)
    found = class_posterior(model, guide, x, prior=prior, draws=16)
    each = torch.stack([of_class(problem, k).log_prob(x) for k in range(3)], -1)
    expected = (each + problem.log_weights).log_softmax(-1)
    assert float((found.log_probs.exp() - expected.exp()).abs().mean()) < 0.06
    off = float((found.mixture - problem.log_prob(x)).mean())
    assert -0.5 < off < 0.3 and found.mixture_gap < 0.5
    best = float((expected.argmax(-1) == labels).double().mean())
    assert found.accuracy(labels).mean == pytest.approx(best, abs=0.05)
    assert found.network_calls == 300 * 3 * 16


@pytest.mark.slow
@torch.no_grad()
def test_the_mixture_of_noisy_bounds_is_a_bound_whose_interval_covers() -> None:
    """Of four draws a class, with exact denoisers. At the estimates themselves it is half a nat too
    large, and fewer than two of three of its intervals hold the truth."""
    problem, model = mixture(), exact()
    guide, prior = DiffusionGuide(model.diffusion), problem.log_weights.exp()
    truth = -float(problem.log_prob(problem.sample(100_000, 99)).mean()) / (2 * math.log(2))
    off, off_before, covered = [], [], 0
    for seed in range(24):
        x = problem.sample(64, 1000 + seed)
        found = class_posterior(model, guide, x, prior=prior, draws=4, seed=seed)
        known, before = problem.log_prob(x), (found.elbo + found.log_prior).logsumexp(-1)
        off.append(float((found.mixture - known).mean()))
        off_before.append(float((before - known).mean()))
        mean, error = found.bits_per_dim
        covered += abs(mean - truth) < 1.96 * error
    low, high = (Measured.from_values(torch.tensor(values)) for values in (off, off_before))
    assert low.mean < 5.5 * low.standard_error and high.mean > 5.5 * high.standard_error > 0.1
    assert low.mean > -2  # and says something
    assert covered >= 20  # of 24 at 95%, but for 1 in 170 times


def test_the_scores_of_a_classifier() -> None:
    """By hand: three data at confidence 0.8, of which one is right, and two at 0.6, both right."""
    p = torch.tensor([0.8, 0.8, 0.8, 0.6, 0.6]).double()
    prior = torch.tensor([0.25, 0.75]).double()
    elbo = torch.stack([p, 1 - p], -1).log() - prior.log()
    found = ClassPosterior(elbo, elbo.expand(2, -1, -1), prior.log(), 2, 12)
    labels = torch.tensor([0, 1, 1, 0, 0])
    assert found.accuracy(labels).mean == pytest.approx(3 / 5)
    log_loss = -(math.log(0.8) + 2 * math.log(0.2) + 2 * math.log(0.6)) / 5
    assert found.log_loss(labels).mean == pytest.approx(log_loss)
    assert found.calibration_error(labels, 1) == pytest.approx(3.6 / 5 - 3 / 5)
    one_each = found.calibration_error(labels, 5)
    assert one_each == pytest.approx((0.4 + 0.4 + 0.2 + 0.8 + 0.8) / 5)
    assert float(found.mixture[0]) == pytest.approx(0, abs=1e-12)
    assert found.mixture_gap == pytest.approx(0, abs=1e-12)  # of halves without noise


# -- the programs ----------------------------------------------------------------------------------


def test_contexts_are_an_argument_of_both_programs() -> None:
    """The same loss as that of the model conditioned beforehand, in plates and particles too."""
    x, labels = torch.randn(12, 2), torch.arange(12) % 3
    model = DiffusionModel(CLD(**ENDS), Denoiser.fit(told_network(3), x), context=Labels(3))
    guide, conditioned = DiffusionGuide(model.diffusion), condition(model, context=labels)

    def loss(program: Any, noising: Any, *arguments: Any, **options: Any) -> float:
        torch.manual_seed(2)
        return MDM_ELBO(**options).loss(program, noising, *arguments)

    assert loss(model, guide, x, labels) == loss(conditioned, guide, x)
    assert loss(model, guide, x, labels) != loss(model, guide, x, labels.flip(0))
    assert torch.equal(_terms(model, guide, x, labels), _terms(conditioned, guide, x))
    rows = torch.tensor([7, 2, 4])

    def within(program: Any) -> Any:
        def run(x: Tensor, labels: Tensor) -> None:
            with pyro.plate("N", 12, subsample=rows) as i:
                program(x[i], labels[i])

        return run

    scaled = loss(within(model), within(guide), x, labels)
    expected = 4 * loss(condition(model, context=labels[rows]), guide, x[rows])
    assert scaled == pytest.approx(expected, rel=1e-4)
    options = {"num_particles": 2, "vectorize_particles": True, "max_plate_nesting": 1}
    several = DiffusionGuide(model.diffusion, event_dim=1)
    again = loss(model, several, x, labels, **options)
    assert again == pytest.approx(loss(conditioned, several, x, **options))
    moving = LearnedDiffusion(num_variables=2, max_log_snr=9.0)  # whose end costs more data
    learned_one = DiffusionModel(moving, model.score_function, context=Labels(3))
    noising = DiffusionGuide(moving, event_dim=1)
    MDM_ELBO(**options).differentiable_loss(learned_one, noising, x, labels).backward()
    assert learned_one.diffusion.B.grad is not None
    assert condition(learned_one, context=labels).log_prob(x, draws=2).shape == (12,)


def _terms(*arguments: Any) -> Tensor:
    torch.manual_seed(3)
    return elbo_terms(*arguments).elbo


def test_dropout_hides_contexts_in_training_alone() -> None:
    model = exact()
    context: Any = model.context
    told = context.encode(torch.zeros(2000, dtype=torch.long))
    with randomness.piece(0, 1, 3):
        dropped = context.drop(told)
    kept = dropped.sum(1)
    assert set(kept.tolist()) == {0.0, 1.0} and kept.mean().item() == pytest.approx(0.75, abs=0.05)
    with randomness.piece(1, 2, 3):  # every second datum of the same batch
        assert torch.equal(context.drop(told[1::2]), dropped[1::2])
    asked: list[Tensor] = []
    x = normal(0, 200, 2)
    torch.manual_seed(0)

    def spy(self: Any, z: Tensor, log_snr: Any) -> Tensor:
        asked.append(self.network_context)
        return z

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Exact, "x_hat", spy)
        for mode in (True, False):
            model.train(mode)
            elbo_terms(model, DiffusionGuide(model.diffusion), x, torch.zeros(200).long())
    assert 20 < int((asked[0].sum(-1) == 0).sum()) < 90 and bool((asked[-1].sum(-1) == 1).all())


# -- networks --------------------------------------------------------------------------------------


class Recorder(nn.Module):
    """Keeps what it is called with."""

    def __init__(self, context_size: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        if context_size is not None:
            self.context_size = context_size

    def forward(self, inputs: Tensor, log_snr: Tensor, *context: Tensor) -> Tensor:
        self.seen = (inputs, *context)
        return inputs[:, :1] * self.weight


def test_a_network_is_told_by_an_argument_or_by_channels() -> None:
    x, labels = torch.randn(4, 1, 2, 2), torch.tensor([0, 2, -1, 1])
    expected = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0]])
    for asked in (Recorder(3), Recorder()):
        model = DiffusionModel(VPSDE(), Denoiser.fit(asked, x), context=Labels(3, 0.1))
        conditioned = condition(model, context=labels)
        conditioned.score_function.x_hat(x, torch.zeros(4))
        inputs, *context = asked.seen
        if context:
            assert inputs.shape == (4, 1, 2, 2) and torch.equal(context[0], expected)
        else:
            channels = expected[..., None, None].expand(-1, -1, 2, 2)
            assert torch.equal(inputs[:, 1:], channels)
        chosen = conditioned.for_rows(torch.tensor([3, 1])).score_function
        chosen.x_hat(x[:2], torch.zeros(2))
        inputs, *context = asked.seen
        told = context[0] if context else inputs[:, 1:, 0, 0]
        assert torch.equal(told, expected[[3, 1]])
    noise = NoisePrediction(MLP(6, out_features=4))  # of the raw state
    nn.init.normal_(noise.network.outlet.weight)
    model = DiffusionModel(CLD(**ENDS), noise, event_shape=(2,), context=Labels(2))
    y, s, two = torch.randn(4, 2, 2), torch.full((4,), 0.3), torch.arange(4) % 2
    first, second = (condition(model, context=c).score(y, s) for c in (two, 1 - two))
    assert bool(((first - second).flatten(1).abs().amax(1) > 1e-6).all())


# -- samples ---------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", ["vpsde", "cld"])
def test_samples_are_of_their_class(name: str) -> None:
    problem, n = mixture(), 1500
    labels = torch.arange(n) % 3
    model = exact(name, sampler=ExponentialIntegrator(20))
    torch.manual_seed(1)
    x = condition(model, context=labels)(batch_size=n)
    for k in range(3):
        own, law = x[labels == k].double(), of_class(problem, k)
        scale = law.covariance.diagonal().sqrt()
        assert float(((own.mean(0) - law.mean) / scale).abs().max()) < 0.3
        assert float((own.T.cov() - law.covariance).abs().max()) < 0.13  # the error is 0.02


@torch.no_grad()
def test_guidance_is_a_straight_line_between_two_scores() -> None:
    model = exact("cld")
    conditioned = condition(model, context=1)
    shape, unknown = (40, 2, 2), condition(model, context=-1)

    def drawn(sampler: Any, of: DiffusionModel = conditioned) -> Tensor:
        return sampler(of.diffusion, of.bound_score, shape, torch.Generator().manual_seed(5))

    for plain in (ExponentialIntegrator(4), EulerMaruyama(12)):
        torch.testing.assert_close(drawn(Guided(plain, 1.0)), drawn(plain))
        torch.testing.assert_close(drawn(Guided(plain, 0.0)), drawn(plain, unknown))
        assert not torch.allclose(drawn(Guided(plain, 2.0)), drawn(plain))
        outside = Guided(plain, 2.0, (20.0, 30.0))
        assert torch.equal(drawn(outside), drawn(plain))
    sampler = ExponentialIntegrator(1)
    y, s = normal(0, 3, 2, 2), torch.full((3,), 0.4, dtype=torch.float64)
    seen: list[Tensor] = []

    def asks(diffusion: Any, score: Any, shape: Any, generator: Any) -> Tensor:
        seen.extend((score.denoise(y, s), score(y, s)))
        return y

    Guided(asks, 3.0)(model.diffusion, conditioned.bound_score, (3, 2, 2))
    a, b = conditioned.bound_score, unknown.bound_score
    torch.testing.assert_close(seen[0], 3 * a.denoise(y, s) - 2 * b.denoise(y, s))
    torch.testing.assert_close(seen[1], 3 * a(y, s) - 2 * b(y, s))
    drawn(Guided(sampler, 2.0))
    assert Guided(sampler, 2.0).calls == 2 * sampler.calls == 2
    assert repr(Labels(3, 0.1)) == "Labels(3, dropout=0.1)"
    assert repr(Guided(sampler, 2.0, (-1.0, 3.0))).endswith("2, log_snr=[-1.0, 3.0])")


def test_guidance_needs_a_network_that_knows_no_context() -> None:
    x = torch.randn(10, 2)
    model = DiffusionModel(VPSDE(), Denoiser.fit(MLP(4, out_features=2), x), context=Labels(2))
    sampler, shape = Guided(ExponentialIntegrator(2), 2.0), (3, 1, 2)
    conditioned, noising, score = condition(model, context=1), VPSDE(), model.score_function
    plain = DiffusionModel(VPSDE(), Denoiser.fit(MLP(2), x))
    told = (model.diffusion, conditioned.bound_score, shape)
    assert Guided(sampler.sampler, 1.0)(*told).shape == shape  # which is no guidance
    refused(
        (TypeError, ValueError),
        (lambda: sampler(*told), r"the network always knew it.*dropout=0.1"),
        (
            lambda: DiffusionModel(noising, score, sampler=sampler, times=5, context=Labels(2)),
            "a chain that takes no sampler",
        ),
        (lambda: sampler(plain.diffusion, plain.bound_score, shape), "the score has no context"),
        (lambda: sampler(plain.diffusion, lambda y, s: y, shape), "of a model whose context is gi"),
        (lambda: Guided(ExponentialIntegrator, 2.0), "sampler is the class ExponentialIntegrator"),
        (lambda: Guided(sampler.sampler, 2.0, (3, 1)), r"log_snr is \(3, 1\), expected the two en"),
    )


def test_dimensions_may_be_observed_beside_a_context() -> None:
    """The network is told both, of each datum its own."""
    x, labels = torch.randn(5, 2), torch.tensor([0, 1, 2, 1, 0])
    score = Denoiser.fit(told_network(3, 4), x, maps=True)
    model = DiffusionModel(VPSDE(**ENDS), score, context=Labels(3, dropout=0.1))
    observed = torch.tensor([[True, False]] * 3 + [[False, True]] * 2)
    both = condition(model, observed, x, context=labels)
    z, log_snr = torch.randn(5, 2), torch.zeros(5)
    found = both.score_function.x_hat(z, log_snr)
    for i in range(5):
        one = condition(model, observed[i], x[i], context=labels[i])
        torch.testing.assert_close(found[i : i + 1], one.score_function.x_hat(z[i : i + 1], 0.0))
    rows = torch.tensor([4, 2])
    chosen = both.for_rows(rows).score_function.x_hat(z[rows], log_snr[:2])
    torch.testing.assert_close(chosen, found[rows])
    later = condition(model, observed, x)  # contexts with the call
    guide = DiffusionGuide(model.diffusion)
    model.eval()
    assert torch.equal(_terms(later.eval(), guide, x, labels), _terms(both.eval(), guide, x))
    untold = both.score_function.without_context().network_context
    assert torch.equal(untold, torch.zeros(3))


# -- contexts --------------------------------------------------------------------------------------


def test_vectors_are_told_in_units_of_their_spread() -> None:
    train = torch.tensor([[0.0, 5.0], [2.0, 5.0], [4.0, 5.0], [math.nan, 1.0]])
    context = Vectors.fit(train, dropout=0.1)
    told = context.encode(torch.tensor([[2.0, 6.0], [math.nan, math.nan]]))
    torch.testing.assert_close(told, torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))
    assert context.size == 3 and torch.equal(context.encode(context.unknown), torch.zeros(3))
    assert context.encode(torch.zeros(4, 2)).shape == (4, 3)
    refused(
        ValueError,
        (lambda: context.encode(torch.zeros(4, 3)), r"shape \(4, 3\), expected \(\*batch, 2\)"),
        (lambda: context.encode(torch.tensor([[1.0, math.nan]])), "1 contexts have .* not finite"),
        (lambda: Vectors.fit(torch.zeros(4)), r"shape \(4,\), expected \(n, m\)"),
        (
            lambda: Vectors([0.0], [1.0, 1.0]),
            r"mean has shape \(1,\) and scale \(2,\), expected",
        ),
        (lambda: Vectors([0.0, 1.0], [1.0, -2.0]), r"scale\[1\] is -2, .* above 0 .* Vectors.fit"),
        (lambda: Vectors([0.0], [math.inf]), r"scale\[0\] is inf, expected a number"),
        (lambda: Vectors([0.0], [1e-60]), r"scale\[0\] is 1e-60, .* above 0 in float32"),
        (lambda: Vectors([0.0, math.nan], [1.0, 1.0]), r"mean\[1\] is nan, .* finite in float32"),
        (lambda: Vectors([1e60], [1.0]), r"mean\[0\] is 1e\+60, .* finite in float32; Vectors.fit"),
    )


def test_an_encoder_of_ones_own_is_trained_with_the_model() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 2)
    pictures, words = torch.randn(6, 3, 3), torch.randint(5, (6, 4))
    by_picture = EncodedContext(nn.Sequential(nn.Flatten(), nn.Linear(9, 2)), 2, (3, 3), 0.2)
    by_words = EncodedContext(
        nn.Sequential(nn.Embedding(5, 2), nn.Flatten()), 8, (4,), 0.2, whole=True
    )
    for context, given in ((by_picture, pictures), (by_words, words)):
        score = Denoiser.fit(told_network(context.size), x)
        model = DiffusionModel(VPSDE(), score, context=context)
        loss = MDM_ELBO()(model, DiffusionGuide(model.diffusion))
        loss(x, given).backward()
        assert all(p.grad is not None and p.grad.any() for p in context.encoder.parameters())
        hidden = context.encode(context.unknown.expand(3, *context.shape))
        assert torch.equal(hidden, torch.zeros(3, context.size))
        assert bool((context.encode(given)[:, -1] == 1).all())
        with pytest.raises(TypeError, match=r"expected (whole|real) numbers"):
            context.encode(given.long() if given.is_floating_point() else given.double())
    wrong = EncodedContext(nn.Linear(2, 3), 4, (2,))
    with pytest.raises(ValueError, match=r"has shape \(5, 4\), expected \(5, 5\)"):
        wrong.encode(torch.zeros(5, 2))


@pytest.mark.parametrize("made", [lambda: Labels(3, 0.1), lambda: Vectors([1.0], [2.0])])
def test_it_is_saved_with_the_model(made: Any, tmp_path: Path) -> None:
    context: GivenContext = made()
    x = torch.randn(10, 2)
    sampler = Guided(ExponentialIntegrator(4), 2.0, (-2.0, 2.0))
    score = Denoiser.fit(told_network(context.size), x)
    model = DiffusionModel(VPSDE(), score, sampler=sampler, context=context).eval()
    model.save_pretrained(tmp_path)
    again = DiffusionModel.from_pretrained(tmp_path)
    c = torch.zeros(10, *context.shape).to(context.unknown.dtype)
    first, second = (condition(m, context=c) for m in (model, again))
    torch.testing.assert_close(
        first.score(x[:, None], torch.ones(10) * 0.4),
        second.score(x[:, None], torch.ones(10) * 0.4),
    )
    assert repr(again.sampler) == repr(sampler)
    with pytest.raises(PretrainedError, match="the model is conditioned on a given context"):
        first.save_pretrained(tmp_path / "other")
    kind = Vectors([0.0, 0.0], [1.0, 1.0]) if isinstance(context, Labels) else Labels(2)
    other = DiffusionModel(VPSDE(), score, context=kind)
    with pytest.raises(RuntimeError, match="the state dict is of the class"):
        other.load_state_dict(model.state_dict())


# -- mistakes --------------------------------------------------------------------------------------


def test_contexts_that_do_not_fit() -> None:
    x, labels = torch.randn(10, 2), torch.arange(10) % 3
    diffusion = VPSDE()
    told = Denoiser.fit(Recorder(3), x)
    model = DiffusionModel(diffusion, told, context=Labels(3))
    plain = DiffusionModel(diffusion, Denoiser.fit(MLP(2), x))
    guide = DiffusionGuide(diffusion)
    latent = ContextDiffusion(
        diffusion, GaussianContext(nn.Linear(2, 2), 1), ContextClocks(1, 1), torch.zeros(2).long()
    )
    by_two = Denoiser.fit(MLP(4, out_features=2), x)
    of_vectors = DiffusionModel(diffusion, by_two, context=Vectors([0.0], [1.0]))
    both = DiffusionModel(
        diffusion, Denoiser.fit(told_network(3, 4), x, maps=True), context=Labels(3)
    )
    mask = torch.tensor([[True, False]] * 5)
    found = ClassPosterior(torch.zeros(4, 2), torch.zeros(2, 4, 2), torch.zeros(2), 2, 8)
    assert torch.equal(Labels(3).encode(labels.to(torch.uint8)), Labels(3).encode(labels))
    cases: list[tuple[type[Exception], str, Any]] = [
        (ValueError, "contexts are of 4 data and masks or values of 5",
         lambda: condition(both, mask, x[:5], context=labels[:4])),
        (ValueError, "expected those of the 4 data", lambda: found.accuracy(labels[:1])),
        (ValueError, "from 0 to 1; leave out", lambda: found.log_loss(torch.tensor([0, 1, -1, 0]))),
        (ValueError, r"of \(10,\) data and x of \(5,\)",
         lambda: importance_weighted(condition(model, context=labels), guide, x[:5], samples=2)),
        (ValueError, "given a context, Labels, and none is given", lambda: model(x)),
        (ValueError, "given a context, Labels, and none is given", lambda: bound(model, guide, x)),
        (ValueError, "of 3 numbers, and none", lambda: model.score(x[:, None], torch.ones(10))),
        (ValueError, "the label 3, expected one of 0 to 2", lambda: model(x, torch.tensor(3))),
        (TypeError, r"write labels.long\(\)", lambda: model(x, labels.double())),
        (ValueError, r"of \(9,\) data and x of \(10,\)", lambda: model(x, labels[:9])),
        (ValueError, "the model is one of x alone", lambda: plain(x, labels)),
        (ValueError, "has been given its context already",
         lambda: condition(model, context=labels)(x, labels)),
        (ValueError, "asked about 7", lambda: condition(model, context=labels)(batch_size=7)),
        (ValueError, "the context of 2 of 10 data is not known, and the network always knew it",
         lambda: model(x, torch.where(labels == 2, -1, labels)[[2, 5, *[0] * 8]])),
        (TypeError, "there is nothing to condition on", lambda: condition(model)),
        (ValueError, "a context of 3 numbers and the model has none",
         lambda: DiffusionModel(diffusion, told)),
        (ValueError, "a context of 3 numbers, and Labels has 4",
         lambda: DiffusionModel(diffusion, told, context=Labels(4))),
        (ValueError, "has a latent context of its own",
         lambda: DiffusionModel(latent, Denoiser.fit(MLP(5, 8, 1, 2), x), context=Labels(2))),
        (TypeError, r"context is 3, expected a GivenContext; e.g. Labels\(10\)",
         lambda: DiffusionModel(diffusion, told, context=3)),
        (ValueError, r"dropout is 1.0, expected a number in \[0, 1\)", lambda: Labels(3, 1.0)),
        (TypeError, "the model's context is Vectors",
         lambda: class_posterior(of_vectors, guide, x)),
        (ValueError, "prior is",
         lambda: class_posterior(model, guide, x, prior=torch.tensor([0.5, 0.5]))),
    ]  # fmt: skip
    for kind, text, call in cases:
        refused(kind, (call, text))


# -- in programs of others -------------------------------------------------------------------------


@torch.no_grad()
def test_a_conditional_model_is_a_distribution_of_other_programs() -> None:
    """Its class is latent there, and enumerated: the loss is that of the mixture."""
    problem, (x, labels) = mixture(), labelled(mixture(), 16)
    model = exact()
    exactly = problem.log_prob(x).sum()

    def program(x: Tensor | None, labels: Tensor | None = None, n: int = 16) -> Tensor:
        with pyro.plate("rows", n):
            c = pyro.sample(
                "c",
                dist.Categorical(logits=problem.log_weights),
                obs=labels,
                infer={"enumerate": "parallel"},
            )
            law = MDM(model, context=c, solver=Solver("rk4", steps=8), seed=0)
            return pyro.sample("x", law, obs=x)

    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(program, lambda *_: None, x)
    # classes without their weights are off by 5
    assert loss == pytest.approx(-float(exactly), abs=0.5)
    trace = poutine.trace(program).get_trace(x, labels)
    trace.compute_log_prob()
    off = trace.nodes["x"]["log_prob"] - own_log_prob(x, labels)
    assert float(off.mean()) == pytest.approx(0, abs=0.3)
    drawn = program(None, torch.arange(600) % 3, n=600)
    for k in range(3):
        apart = drawn[torch.arange(600) % 3 == k].mean(0) - of_class(problem, k).mean
        assert float(apart.abs().max()) < 0.2


def test_a_distribution_given_contexts_has_their_batch_shape() -> None:
    model = exact("cld", sampler=ExponentialIntegrator(2))
    law = MDM(model, context=torch.tensor([[0], [2]]))
    assert law.batch_shape == (2, 1) and law.expand((5, 2, 3)).sample((4,)).shape == (4, 5, 2, 3, 2)
    torch.manual_seed(0)
    several = MDM(model, context=torch.tensor([[0], [2]]), seed=1).log_prob(normal(0, 3, 2))
    assert several.shape == (2, 3) and not torch.allclose(several[0], several[1])
    assert MDM(model, context=1).rsample((7,)).shape == (7, 2)
    known = DiffusionModel(
        VPSDE(), Denoiser.fit(told_network(3), torch.randn(9, 2)), context=Labels(3)
    )
    assert MDM(known.eval(), context=torch.arange(3))().shape == (3, 2)  # without dropout
    with pytest.raises(ValueError, match=r"contexts are of \(2,\) data and x of \(6,\)"):
        MDM(condition(known, context=torch.arange(2))).log_prob(torch.randn(6, 2))
    with pytest.raises(ValueError, match="has been given its context already"):
        MDM(condition(model, context=1), context=2)
    for ask in (lambda law: law.sample((3,)), lambda law: law.log_prob(torch.randn(3, 2))):
        with pytest.raises(ValueError, match="given a context, Labels, and none is given"):
            ask(MDM(known))
