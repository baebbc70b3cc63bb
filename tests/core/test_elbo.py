"""The bound against known log-likelihoods, through every objective and parameterization."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import threading
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI
from scipy.stats import t as student
from torch import Tensor, nn

from pyro_mdm import (
    CLD,
    MALDA,
    MDM_ELBO,
    VPSDE,
    Denoiser,
    DiffusionGuide,
    DiffusionModel,
    DiscreteDenoiser,
    LearnedDiffusion,
    NoisePrediction,
    RawScore,
    ResidualScore,
    elbo_terms,
)
from pyro_mdm.diffusions.clocks import LinearBeta
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.evaluation.comparison import log_likelihood
from pyro_mdm.likelihoods.base import Gaussian, JointTweedie
from pyro_mdm.networks import MLP
from pyro_mdm.paths.base import prior_kl
from tests.diffusions import TYPICAL
from tests.known_bound import (
    DIMS,
    MEAN,
    OBJECTIVES,
    VARIANCE,
    ExactGaussian,
    Wrong,
    check_mean,
    data,
    denoiser,
    exact_bound,
    numerical_gradient,
    programs,
)
from tests.problems import Silent, learned_ends, normal


def third(first: int) -> pytest.MarkDecorator:
    """Every third diffusion, of which the others are in other tests."""
    some = TYPICAL[first::3]
    return pytest.mark.parametrize("make", [m for _, m in some], ids=[name for name, _ in some])


def estimates(
    objective: str, model: nn.Module, guide: nn.Module, x: Tensor, repeats: int
) -> Tensor:
    elbo = OBJECTIVES[objective]()
    return torch.tensor([-elbo.loss(model, guide, x) / len(x) for _ in range(repeats)])


@pytest.mark.quick
@third(0)
def test_bound_is_known(make) -> None:
    """A denoiser wrong by a known amount, through MDM_ELBO and Pyro's own."""
    pyro.set_rng_seed(1)
    diffusion, dims = make(), 64  # which cost less than more data: each datum has its own time
    diffusion.max_log_snr = 3.0
    with torch.no_grad():
        x = data(200, dims)
        model, guide = programs(diffusion, denoiser(0.4), dims)
        truth = exact_bound(diffusion, x, 0.4).mean()
        for objective in OBJECTIVES:
            check_mean(estimates(objective, model, guide, x, 16), truth, 0.09 * dims)


def baseline_term(diffusion: LinearDiffusion, model: DiffusionModel, x: Tensor) -> float:
    """The diffusion term of the score's baseline, averaged over x."""
    low = diffusion.terminal_log_snr.detach().expand(len(x))
    high = torch.full_like(low, diffusion.max_log_snr)
    score = model.score_function
    return float((score.baseline_kl(x, high) - score.baseline_kl(x, low)).mean())


@third(1)
def test_evaluation_is_exact_with_the_exact_score(make) -> None:
    """The control variate removes all noise of the diffusion term; the prior mismatch stays in."""
    diffusion = make()
    x = data(1000)
    model, guide = programs(diffusion, denoiser())
    estimate = log_likelihood(model, guide, x, draws=3, bins=4)
    with torch.no_grad():
        truth = exact_bound(diffusion, x)
    assert abs(estimate.diffusion[0] - baseline_term(diffusion, model, x)) < 1e-6
    # all that is left is the decoder's own noise, ½ χ² per dimension
    noise = math.sqrt(DIMS / 2 / (3 * len(x)))
    assert abs(estimate.mean - float(truth.mean())) < 5 * noise
    plain = log_likelihood(model, guide, x, draws=3, bins=4, control_variate=False)
    width = diffusion.max_log_snr - diffusion.terminal_log_snr.item()
    assert abs(plain.mean - float(truth.mean())) < 5 * noise * (1 + width)


@pytest.mark.quick
@pytest.mark.parametrize("form", ["tilt", "logits"])
@pytest.mark.parametrize("make", [VPSDE, lambda: CLD(beta=LinearBeta(0.1, 5.0))], ids=["K1", "K2"])
def test_untrained_discrete_denoiser_is_the_histogram_model(make, form: str) -> None:
    """At F = 0 the bound is log p_0(x) + m(x), m being the prior's mismatch, for every x."""
    diffusion = make()
    diffusion.max_log_snr = 9.0
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)[torch.randint(5, (200, DIMS)) // 2 * 2]
    score = DiscreteDenoiser.fit(
        Silent((2 if form == "tilt" else 5) * DIMS), x, levels=5, form=form
    )
    model, guide = programs(diffusion, score)
    estimate = log_likelihood(model, guide, x, draws=2)
    low = diffusion.terminal_log_snr.expand(len(x))
    mismatch = score.baseline_kl(x, low) - prior_kl(diffusion, x, 1)
    truth = score.baseline_log_prob(x) + mismatch
    assert torch.allclose(estimate.per_datum, truth, atol=1e-4)
    if diffusion.num_variables == 2:
        assert float(mismatch.abs().mean()) > 0.01  # so that dropping it would show


@pytest.mark.quick
@pytest.mark.parametrize(
    ("make", "known"),
    list(zip([VPSDE, CLD, lambda: LearnedDiffusion(3, 2)], OBJECTIVES, strict=True)),
    ids=["K1", "K2", "K3"],
)
def test_parameterizations_agree(make, known: str) -> None:
    """On the bound, which is known, by one objective; with each other at every draw, by all."""
    diffusion, dims = make(), 64
    diffusion.max_log_snr = 3.0
    x = data(100, dims)
    pairs = [
        programs(diffusion, score, dims, likelihood=Gaussian(MEAN, VARIANCE))
        for score in (
            NoisePrediction(ExactGaussian(diffusion, True, MEAN, VARIANCE)),
            RawScore(ExactGaussian(diffusion, False, MEAN, VARIANCE)),
        )
    ]
    with torch.no_grad():
        truth = exact_bound(diffusion, x).mean()
        for objective in OBJECTIVES:
            pyro.set_rng_seed(2)
            values = estimates(objective, *pairs[0], x, repeats=12 if objective == known else 1)
            if objective == known:
                check_mean(values, truth, largest_error=0.11 * dims)
            pyro.set_rng_seed(2)
            first = estimates(objective, *pairs[1], x, repeats=1)
            assert float(first) == pytest.approx(float(values[0]), rel=1e-6)


def joint_gap(diffusion: LinearDiffusion) -> float:
    """How far JointTweedie is below the exact decoder, nats per dimension, averaged over x and y.

    The exact decoder has E log p(x | y) = -½ log(2πe v σ²/(σ²+v)); x̂ - x has variance
    v σ²/(σ²+v), and (x̂ - x) Σ^{-1} a is what the score of one x is off by.
    """
    start, P = diffusion.start, diffusion.transition(diffusion.start_time).covariance
    v = math.exp(-diffusion.max_log_snr)
    spread = VARIANCE * v / (VARIANCE + v)
    inverse = torch.linalg.inv(start.covariance)
    k = inverse @ start.mean
    Sigma_v = diffusion.initial_covariance[1:, 1:]
    log_det = torch.logdet(Sigma_v) if len(Sigma_v) else 0.0
    joint = log_det - diffusion.log_volume(diffusion.start_time) - math.log(2 * math.pi)
    joint = joint + (inverse @ P).trace() - 1 - spread * (k @ P @ k)
    return float(-0.5 * (math.log(2 * math.pi * spread) + 1) - 0.5 * joint)


@third(2)
def test_joint_tweedie_keeps_the_bound_and_is_below_the_exact_decoder(make) -> None:
    """By as much as is known, and with the exact score the bound is never above log p(x)."""
    pyro.set_rng_seed(6)
    diffusion, dims = make(), 64
    diffusion.max_log_snr = 3.0
    with torch.no_grad():
        gap = joint_gap(diffusion)
        K = diffusion.num_variables
        assert gap > 0.005 if K > 1 else gap > 0.0
        x = data(250, dims)
        model, guide = programs(diffusion, denoiser(), dims, likelihood=JointTweedie())
        truth = exact_bound(diffusion, x).mean() - dims * gap
        values = estimates("mdm", model, guide, x, 10)
        check_mean(values, truth, largest_error=0.025 * dims)


# -- gradients -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moving_end() -> LearnedDiffusion:
    """Learned, with its clock, which is too slow to reach the prior: a gradient to see."""
    diffusion = LearnedDiffusion.from_diffusion(CLD(), learn_beta=True, max_log_snr=3.0)
    with torch.no_grad():
        diffusion.beta.raw.mul_(0.15)
        diffusion.B.add_(0.1 * normal(3, *diffusion.B.shape))
    return diffusion


@pytest.fixture(scope="module")
def gradient(request: pytest.FixtureRequest, moving_end: LearnedDiffusion) -> tuple[float, Tensor]:
    """How wrong the score is, and the bound's gradient to the diffusion in a closed form."""
    size, x = request.param, data(150, 64)
    found = numerical_gradient(
        lambda: exact_bound(moving_end, x, size).mean() / 64, list(moving_end.parameters())
    )
    return size, torch.cat([g.flatten() for g in found])


@pytest.mark.parametrize(
    ("gradient", "objective"),
    [(0.0, "mdm"), *((0.4, name) for name in OBJECTIVES)],
    ids=["exact-mdm", *(f"wrong-{name}" for name in OBJECTIVES)],
    indirect=["gradient"],
)
def test_gradient_to_the_diffusion_with_a_moving_end(
    gradient: tuple[float, Tensor], objective: str, moving_end: LearnedDiffusion
) -> None:
    """λ(T) moves with Q, D and β: the mean gradient is that of the closed-form bound."""
    pyro.set_rng_seed(3)
    size, expected = gradient
    x = data(150, 64)
    model, guide = programs(moving_end, denoiser(size), 64)
    parameters = list(moving_end.parameters())
    elbo = OBJECTIVES[objective]()(model, guide)
    draws = []
    for _ in range(24 if objective == "mdm" else 16):
        loss = -elbo(x) / x.numel()
        draws.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    drawn = torch.stack(draws)
    error = drawn.std(0) / math.sqrt(len(drawn))
    deviation = (drawn.mean(0) - expected).abs()
    assert expected.abs().max() > 0.01
    assert float(error.max()) < 0.9 * float(expected.abs().max())
    limit = student.isf(2.5e-7, len(draws) - 1)
    assert bool((deviation < limit * error + 1e-6).all()), (deviation / error).tolist()


@pytest.mark.parametrize("make", [VPSDE, CLD, MALDA], ids=["K1", "K2", "K3"])
def test_the_loss_without_the_decoder_is_a_bound_on_the_start(make) -> None:
    """-log p(y_ε) + log q(v_0) on average, from laws that are sampled; no network call for it."""
    pyro.set_rng_seed(8)
    diffusion, dims = make(max_log_snr=3.0), 64
    x = data(400, dims)
    with torch.no_grad():
        model, guide = programs(diffusion, denoiser(), dims, likelihood=JointTweedie())
        found = [MDM_ELBO(decoder=False).loss(model, guide, x) / len(x) for _ in range(10)]
        # log p(x) = log p(y_ε) + log q(x | y_ε) - log q(y_ε | x), with the exact score
        path = guide.law(x)
        y = path.rsample()
        a, Sigma = diffusion.start.mean, diffusion.start.covariance
        total = torch.distributions.MultivariateNormal(a * MEAN, Sigma + VARIANCE * a.outer(a))
        log_p = total.log_prob(y.squeeze(1).movedim(1, -1)).sum(-1)
        K = diffusion.num_variables
        v_0 = math.sqrt(0.01) * torch.randn(len(x), dims, K - 1, dtype=torch.float64)
        log_q = torch.distributions.Normal(0.0, math.sqrt(0.01)).log_prob(v_0).sum((-1, -2))
        mismatch = (torch.distributions.Normal(MEAN, math.sqrt(VARIANCE)).log_prob(x).sum(-1)) - (
            exact_bound(diffusion, x)
        )
        drawn = log_q - log_p + mismatch
        error = math.sqrt(float(drawn.var()) / len(x) + float(torch.tensor(found).var()) / 10)
        assert error < 0.02 * dims
        assert abs(sum(found) / 10 - float(drawn.mean())) < 5 * error


@pytest.mark.quick
@pytest.mark.parametrize(
    "kind", ["denoiser", "noise", "raw", "published", "importance", "moving ends"]
)
def test_gradient_is_that_of_the_seeded_loss(kind: str) -> None:
    """The loss at a seed is a function that autograd differentiates: with λ held at both ends, and
    for the paper's choices (D diagonal, cut in time, its decoder) or its times with a learned
    clock, with λ moving."""
    torch.manual_seed(4)
    if kind == "published":
        diffusion = LearnedDiffusion(2, diagonal=True, seed=4, cut_time=0.02)
        rest = diffusion.d
    elif kind == "importance":
        diffusion = LearnedDiffusion(2, learn_beta=True, max_log_snr=3.0)
        rest = diffusion.B
    elif kind == "moving ends":
        diffusion = learned_ends()
    else:
        diffusion = LearnedDiffusion(2, max_log_snr=6.0, min_log_snr=-5.0)
        rest = diffusion.B
        with torch.no_grad():
            rest.add_(0.2 * torch.randn_like(rest))

    class Small(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.layer = nn.Linear(width + 1, width, dtype=torch.float64)

        def forward(self, y: Tensor, log_snr: Tensor) -> Tensor:
            return torch.tanh(self.layer(torch.cat([y, log_snr[:, None].to(y) / 10], 1)))

    if kind == "denoiser":
        score, options = Denoiser(Small(DIMS), MEAN, VARIANCE), {}
    else:
        make = RawScore if kind == "raw" else NoisePrediction
        decoder = JointTweedie() if kind == "published" else Gaussian(MEAN, VARIANCE)
        score, options = make(Small(2 * DIMS)), {"likelihood": decoder}
    if kind in ("published", "importance"):
        score.times = "vpsde"
    model, guide = programs(diffusion, score, **options)
    x = data(16)
    elbo = MDM_ELBO(decoder=kind != "published")(model, guide)
    parameters = [*diffusion.parameters(), score.network.layer.bias]

    def loss() -> Tensor:
        pyro.set_rng_seed(5)
        return elbo(x)

    found = torch.autograd.grad(loss(), parameters)
    expected = numerical_gradient(loss, parameters)
    for f, e in zip(found, expected, strict=True):
        assert torch.allclose(f, e, rtol=2e-5, atol=1e-6 * max(1.0, float(e.abs().max())))


def test_a_denoiser_is_not_trained_with_a_diffusion_that_moves_its_upper_end() -> None:
    model, guide = programs(LearnedDiffusion(2, cut_time=0.01), denoiser())
    with pytest.raises(ValueError, match=r"cut at the time 0\.01; set diffusion\.max_log_snr"):
        MDM_ELBO()(model, guide)(data(4))


# -- training through Pyro and through torch -------------------------------------------------------


def tiny(diffusion: LinearDiffusion) -> tuple[DiffusionModel, DiffusionGuide]:
    score = Denoiser(MLP(DIMS, hidden=16, depth=2), MEAN, 2.0)
    return programs(diffusion, score)


@pytest.mark.quick
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_svi_moves_every_parameter(objective: str) -> None:
    pyro.clear_param_store()
    pyro.set_rng_seed(6)
    model, guide = tiny(LearnedDiffusion(2, learn_beta=True, max_log_snr=6.0))
    x = data(64).float()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=OBJECTIVES[objective]())
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for _ in range(4):
        assert math.isfinite(svi.step(x))
    still = [n for n, p in model.named_parameters() if torch.equal(p, before[n])]
    assert not still


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"]
)
def test_a_model_is_copied_after_a_step_and_trained_apart_from_it(copied: Any) -> None:
    """With its guide, whose diffusion it shares; of a shallow copy nothing else is left."""
    pyro.clear_param_store()
    model, guide = tiny(LearnedDiffusion(2, max_log_snr=6.0))
    optim, x = pyro.optim.Adam({"lr": 1e-3}), data(32).float()
    svi = SVI(model, guide, optim, loss=MDM_ELBO())
    svi.step(x)
    list(pyro.get_param_store().items())  # which refers to parameters weakly once more
    kept = [p.detach().clone() for p in model.parameters()]
    loaded, its_guide = copied((model, guide))
    assert loaded.diffusion is its_guide.diffusion
    assert all(map(torch.equal, kept, loaded.parameters()))
    SVI(loaded, its_guide, optim, loss=MDM_ELBO()).step(x)
    assert all(map(torch.equal, kept, model.parameters()))
    assert not all(map(torch.equal, kept, loaded.parameters()))
    names = len(pyro.get_param_store())
    assert names == 2 * len(kept)
    svi.step(x)
    copy.copy(model)
    svi.step(x)
    assert len(pyro.get_param_store()) == names


def test_what_a_model_has_in_the_store_goes_with_it() -> None:
    """At the first step of another; a guide's own part stays as long as the guide."""
    pyro.clear_param_store()
    pyro.param("yours", torch.ones(()))
    optim, x = pyro.optim.Adam({"lr": 1e-3}), data(8).float()
    guides = []
    for fit in range(4):
        model, guide = tiny(LearnedDiffusion(2, max_log_snr=6.0))
        SVI(model, guide, optim, loss=MDM_ELBO()).step(x)
        guides = [guide] if fit == 2 else guides  # one is kept beyond its model
        number, of_diffusion = len(list(model.parameters())), len(list(guide.parameters()))
        del model, guide
        gc.collect()
    assert number > of_diffusion > 0
    assert len(pyro.get_param_store()) == 1 + of_diffusion + number
    SVI(*tiny(CLD(max_log_snr=6.0)), optim, loss=MDM_ELBO()).step(x)
    names = set(pyro.get_param_store().keys())
    assert "yours" in names
    assert {p.pyro_mdm_name for p in guides[0].parameters()} <= names
    assert len(names) < 1 + of_diffusion + number


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_programs_in_two_threads_are_refused_where_they_meet(objective: str) -> None:
    """Not one after the other; and the thread that came first goes on."""
    model, guide = tiny(CLD(max_log_snr=6.0))
    other, its_guide = tiny(CLD(max_log_snr=6.0))
    inside, done = threading.Event(), threading.Event()
    x, losses = data(8).float(), []

    class Waiting(Gaussian):
        def forward(self, *args: Any) -> Any:
            inside.set()
            assert done.wait(600)
            return super().forward(*args)

    model.likelihood = Waiting()

    def train() -> None:
        losses.append(OBJECTIVES[objective]().loss(model, guide, x))

    first = threading.Thread(target=train)
    first.start()
    assert inside.wait(600)
    try:
        with pytest.raises(RuntimeError, match="another thread is running a program at the same"):
            OBJECTIVES[objective]().loss(other, its_guide, x)
    finally:
        done.set()
        first.join()
    assert math.isfinite(losses[0])
    assert math.isfinite(OBJECTIVES[objective]().loss(other, its_guide, x))


def test_weights_that_the_store_would_replace_are_an_error() -> None:
    """Pyro's store may hold another tensor under a name; a step would move that one alone."""
    pyro.clear_param_store()
    model, guide = tiny(CLD(max_log_snr=6.0))
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), loss=MDM_ELBO())
    svi.step(data(32).float())
    name, parameter = next(iter(model.score_function.network.named_parameters()))
    owner, _, last = name.rpartition(".")
    replaced = nn.Parameter(parameter.detach().clone())
    setattr(model.score_function.network.get_submodule(owner), last, replaced)
    with pytest.raises(RuntimeError, match="store holds another tensor"):
        svi.step(data(32).float())


def test_elbo_terms_add_up_to_the_loss() -> None:
    model, guide = programs(CLD(), denoiser(0.2))
    x = data(40)
    pyro.set_rng_seed(10)
    loss = MDM_ELBO().loss(model, guide, x)
    pyro.set_rng_seed(10)
    with torch.no_grad():
        terms = elbo_terms(model, guide, x)
    for term in (terms.reconstruction, terms.prior_kl, terms.diffusion, terms.log_snr):
        assert term.shape == (40,)
    assert float(-terms.elbo.sum()) == pytest.approx(loss, rel=1e-9)


@pytest.mark.quick
def test_one_network_call_per_step() -> None:
    calls = []

    class Counting(Wrong):
        def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
            calls.append(len(z))
            return super().forward(z, log_snr)

    score = Denoiser(Counting(), MEAN, VARIANCE)
    for diffusion, options, decoder, expected in (
        (CLD(), {}, True, [20]),
        (LearnedDiffusion(2), {}, True, [21]),  # a datum more at the moving end of the integral
        (CLD(max_log_snr=3.0), {"likelihood": JointTweedie()}, False, [20]),
        (CLD(max_log_snr=3.0), {"likelihood": JointTweedie()}, True, [20, 20]),
    ):
        calls.clear()
        MDM_ELBO(decoder=decoder)(*programs(diffusion, score, **options))(data(20)).backward()
        assert calls == expected


def test_the_event_shape_is_the_scores_own() -> None:
    x = normal(3, 32, 2).float().round().clamp(-1, 1)
    for score in (
        Denoiser.fit(MLP(2), x),
        DiscreteDenoiser.fit(MLP(2, out_features=6), x, levels=3),
        ResidualScore.fit(MLP(4), CLD(), x),
    ):
        model = DiffusionModel(CLD(), score)
        assert model.event_shape == (2,)
        assert elbo_terms(model, DiffusionGuide(model.diffusion), x).diffusion.shape == (32,)
        with pytest.raises(ValueError, match=r"event_shape is \(1, 2\), .* of shape \(2,\)"):
            DiffusionModel(CLD(), score, event_shape=(1, 2))
    for fit in (Denoiser.fit, lambda *a: ResidualScore.fit(a[0], CLD(), a[1])):
        with pytest.raises(ValueError, match=r"train_x has shape \(32,\), .* scalars .*\(1,\)"):
            fit(MLP(1), x[:, 0])
