"""Exact networks through every diffusion, decoder and conditional: what is known must come out.

A new kind of diffusion meets all of it by a line in :data:`KINDS`. With exact networks the bound of
every datum is known: log q(x) less the prior's mismatch, E log q(y_T)/π(y_T) given x, and less the
divergence of a context. So errors are those of single draws, and a factor ½ in any term is seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_mdm import (
    CLD,
    VPSDE,
    DataDrivenDiffusion,
    Denoiser,
    DiffusionGuide,
    DiffusionModel,
    DiscreteDenoiser,
    EncodedDiffusion,
    NoisePrediction,
    PerDimensionDiffusion,
    StateDenoiser,
    TimeVaryingDiffusion,
    bound,
    condition,
)
from pyro_mdm.by_dimension import Frequencies, TurnClocks
from pyro_mdm.diffusions.base import coordinates
from pyro_mdm.levels import NetworkPosterior
from pyro_mdm.likelihoods import Gaussian, JointTweedie, Likelihood, Tweedie, read_state
from pyro_mdm.measurements import condition_on_measurements, twisted_smc
from pyro_mdm.seeing import ContextClocks, ContextDiffusion, GaussianContext
from pyro_mdm.tables import MixedLikelihood
from tests.new_kind import TurnedDiffusion
from tests.problems import (
    ExactDenoiser,
    ExactLevels,
    ExactNoise,
    ExactState,
    GaussianMixture,
    Levels,
    LinearEncoder,
    Silent,
    bimodal,
    conditional_log_prob,
    correlated,
    fixed,
    given_dimensions,
    given_measurement,
    law_of_dimensions,
    law_of_states,
    learned,
    normal,
    random_linear,
)
from tests.varying.problems import rubbing, turning

D = 4
SHORT: dict[str, Any] = {"max_log_snr": 9.0, "min_log_snr": -1.0}
"""A path at whose end much is left of x, so that the prior's mismatch is no small number."""
LONG: dict[str, Any] = {"max_log_snr": 9.0, "min_log_snr": -9.0}


def encoded(**ends: Any) -> EncodedDiffusion:
    encoder = LinearEncoder(1)
    encoder.slope.data.fill_(0.8)
    return EncodedDiffusion(CLD(**ends), encoder)


def in_context(**ends: Any) -> ContextDiffusion:
    """By a context that is drawn alike for all data, far from the prior."""
    diffusion = ContextDiffusion(
        VPSDE(**ends),
        GaussianContext(nn.Linear(D, 4).double(), 2),
        ContextClocks(2, 2),
        torch.tensor([1, 0, 1, 0]),
    )
    with torch.no_grad():
        for i, p in enumerate(diffusion.parameters()):
            p.copy_(0.6 * fixed(i, *p.shape))
        encoder: Any = diffusion.context.encoder
        encoder.weight.zero_()
    return diffusion


KINDS: list[tuple[str, Callable[..., Any]]] = [
    ("vpsde", VPSDE),
    ("cld", CLD),
    ("learned_2_rank_1", lambda **ends: learned(2, 1, 108, **ends)),
    ("random_3", lambda **ends: random_linear(3, 114, **ends)),
    ("time_varying", lambda **ends: TimeVaryingDiffusion(turning, rubbing, **ends)),
    (
        "blocks",
        lambda **ends: PerDimensionDiffusion(
            [CLD(**ends), learned(2, 2, 5, **ends)], torch.tensor([0, 1, 1, 0])
        ),
    ),
    (
        "frequencies",
        lambda **ends: PerDimensionDiffusion(
            CLD(**ends),
            None,
            TurnClocks([[0.0, 0.7], [0.2, 1.0]]),
            torch.tensor([0, 0, 1, 1]),
            transform=Frequencies(1),
        ),
    ),
    ("turned", lambda **ends: TurnedDiffusion(CLD(**ends), Frequencies(1))),
    ("encoded", encoded),
    ("context", in_context),
    (
        "driven",
        lambda **ends: DataDrivenDiffusion(
            VPSDE(**ends), Silent(DataDrivenDiffusion.outputs() * D)
        ),
    ),
]
every_kind = pytest.mark.parametrize(
    "make", [make for _, make in KINDS], ids=[name for name, _ in KINDS]
)


def in_coordinates(problem: GaussianMixture, diffusion: Any) -> GaussianMixture:
    """The law of what states hold."""
    if diffusion.transform is None:
        return problem
    turned = diffusion.transform
    covariances = turned(turned(problem.covariances).mT).mT
    return GaussianMixture(problem.log_weights.exp(), turned(problem.means), covariances)


def exact(problem: GaussianMixture, diffusion: Any) -> Any:
    """The exact denoiser, in what the diffusion needs around it."""
    if not diffusion.paths.starts_at_data:
        return ExactDenoiser(in_coordinates(problem, diffusion))
    network, variance = ExactState(problem, diffusion), problem.covariance.diagonal()
    return StateDenoiser(Denoiser(network, problem.mean, variance))


def can_be_conditioned(diffusion: Any) -> bool:
    """Whether one dimension of the data is one of the states, noised apart from the others."""
    led = (
        diffusion.paths.starts_at_data
        or diffusion.paths.drifts_by_data
        or diffusion.context is not None
    )
    return not led and diffusion.transform is None


def one_of(diffusion: Any, x: Tensor) -> Any:
    """Given the context of the first, which for others begins and ends alike."""
    if diffusion.context is None:
        return diffusion
    return diffusion.given(diffusion.context.typical(x)[:1])


def states(diffusion: Any, x: Tensor, s: float) -> Tensor:
    """Draws of y_s given x (n, D), (n, K, D)."""
    a, S = law_of_dimensions(one_of(diffusion, x), s, D)
    noise = torch.linalg.cholesky(S) @ normal(7, *x.shape, diffusion.num_variables, 1)
    return (coordinates(diffusion, x).unsqueeze(-1) * a + noise.squeeze(-1)).mT


def mismatch(problem: GaussianMixture, diffusion: Any, x: Tensor) -> Tensor:
    """A draw of log q(y_T)/π(y_T) for each datum, (n,), less that of contexts."""
    lost = torch.zeros((), dtype=torch.float64)
    if diffusion.context is not None:
        q = diffusion.context.posterior(x)
        lost = kl_divergence(q, diffusion.context.prior().expand(q.batch_shape))
    y = states(diffusion, x, diffusion.horizon)
    at_end = law_of_states(in_coordinates(problem, diffusion), one_of(diffusion, x), 1.0)
    return at_end.log_prob(y.flatten(1)) - diffusion.prior.log_prob(y) + lost


def noisy(diffusion: Any) -> float:
    """What an error of a bound may be: more where no baseline takes away its noise."""
    return 0.6 if diffusion.paths.starts_at_data or diffusion.context is not None else 0.16


def check_samples(x: Tensor, law: GaussianMixture) -> None:
    """Mean and covariance, within 5.5 errors and a step error of 3%."""
    n, spread = len(x), law.covariance.diagonal().sqrt()
    assert float(((x.mean(0) - law.mean) / spread).abs().max()) < 5.5 / math.sqrt(n) + 0.03
    off = (x.mT.cov() - law.covariance) / spread / spread[:, None]
    assert float(off.abs().max()) < 5.5 * math.sqrt(2 / n) + 0.03


def check_bound(model: DiffusionModel, x: Tensor, known: Tensor, error: float, draws: int) -> None:
    """The bound is ``known`` (n,) on average: within 5.5 errors and what a decoder may lose."""
    found = bound(model, DiffusionGuide(model.diffusion), x, draws=draws).per_datum - known
    its = float(found.std()) / math.sqrt(len(x))
    assert its < error, f"the standard error is {its:.3g}, too large to test anything"
    assert abs(float(found.mean())) < 5.5 * its + 4e-3, f"{float(found.mean()):.3g} ± {its:.2g}"


# -- continuous data -------------------------------------------------------------------------------


@pytest.mark.quick
@every_kind
@torch.no_grad()
def test_bounds_are_the_log_likelihood(make: Any) -> None:
    problem, diffusion, n = bimodal(), make(**SHORT), 600
    x = problem.sample(n, 1)
    known = problem.log_prob(x) - mismatch(problem, diffusion, x)
    score = exact(problem, diffusion)
    check_bound(DiffusionModel(diffusion, score, event_shape=(D,)), x, known, noisy(diffusion), 6)
    if diffusion.maps or diffusion.paths.drifts_by_data:
        return
    raw = NoisePrediction(ExactNoise(in_coordinates(problem, diffusion), diffusion))
    check_bound(DiffusionModel(diffusion, raw, event_shape=(D,)), x, known, 0.45, 2)


@every_kind
@torch.no_grad()
def test_decoders_are_posteriors(make: Any) -> None:
    """E log q(x | y_ε) - E log p(x | y_ε), which z, sufficient, tells: of an encoded start it is
    in test_encoded."""
    problem, diffusion, n = bimodal(), make(**SHORT), 400
    if diffusion.paths.starts_at_data:
        return
    x, v = problem.sample(n, 2), torch.exp(-diffusion.start_log_snr)
    score, raw = (
        exact(problem, diffusion),
        NoisePrediction(ExactNoise(in_coordinates(problem, diffusion), diffusion)),
    )
    y = states(diffusion, x, float(diffusion.start_time))
    if diffusion.context is not None:
        diffusion = diffusion.given(diffusion.context.typical(x))
    z = read_state(diffusion, score, y, 1).z
    smoothed = GaussianMixture(
        problem.log_weights.exp(), problem.means, problem.covariances + v * torch.eye(D)
    )
    of_noise = -0.5 * ((z - x).square() / v + (2 * math.pi * v).log()).sum(1)
    known = problem.log_prob(x) + of_noise - smoothed.log_prob(z)
    decoders: list[tuple[Any, Likelihood]] = [
        (score, score.default_likelihood()),
        (score, Gaussian()),
        (score, Tweedie()),
    ]
    if not diffusion.maps and diffusion.transform is None:
        parts = [Gaussian(), Gaussian(problem.mean[1::2], problem.covariance.diagonal()[1::2])]
        decoders.append((score, MixedLikelihood(parts, torch.tensor([0, 1, 0, 1]))))
    if not diffusion.maps and not diffusion.paths.drifts_by_data:
        decoders.append((raw, Tweedie()))
        if diffusion.num_variables == 1:
            decoders.append((raw, JointTweedie()))
    for asked, likelihood in decoders:
        lost = known - likelihood(diffusion, asked, y, 1).log_prob(x)
        error = float(lost.std()) / math.sqrt(n)
        assert error < 5e-3 and -5.5 * error < float(lost.mean()) < 5.5 * error + 4e-3


@every_kind
@torch.no_grad()
def test_samples_are_data(make: Any) -> None:
    """By the default sampler, and so are those of some dimensions given others, and bounds on
    them."""
    problem, diffusion = bimodal(), make(**LONG)
    n = 1000 if diffusion.context is None else 300  # which has a grid for each datum
    model = DiffusionModel(diffusion, exact(problem, diffusion), event_shape=(D,))
    torch.manual_seed(1)
    check_samples(model(batch_size=n), problem)
    observed, left_out = torch.tensor([[1, 0, 0, 0], [0, 0, 0, 1]]).bool()
    if not can_be_conditioned(diffusion):
        with pytest.raises(
            (TypeError, ValueError),
            match=r"whose dimensions are noised apart|transform|only denoisers with maps take",
        ):
            condition(model, observed, problem.mean, left_out)
        return
    x = problem.sample(n, 1)
    known = conditional_log_prob(problem, x, observed, left_out)
    check_bound(condition(model, observed, None, left_out), x, known, 0.16, 2)
    given = torch.tensor([0.3, 0.0, 0.0, 0.0], dtype=torch.float64)
    found = condition(model, observed, given, left_out)(batch_size=n)
    asked = ~(observed | left_out)
    law = given_dimensions(problem, observed, given, asked)
    assert float((law.mean - problem.mean[asked]).abs().max()) > 0.2
    check_samples(found[:, asked], law)


H = fixed(1, 2, D)
NOISE = torch.tensor([0.1, 0.3], dtype=torch.float64)
OBS = torch.tensor([1.2, -0.8], dtype=torch.float64)


@every_kind
@torch.no_grad()
def test_measurements_are_conditioned_on(make: Any) -> None:
    """Exactly for Gaussian data; evidence for others too, by particles."""
    problem, diffusion = correlated(), make(**LONG)
    model = DiffusionModel(diffusion, exact(problem, diffusion), event_shape=(D,))
    own: dict[str, Any] = {"covariance_from": -math.inf, "max_iterations": 20}
    if not can_be_conditioned(diffusion):
        with pytest.raises(
            (TypeError, ValueError), match=r"use a linear diffusion|transform|StateDenoiser"
        ):
            condition_on_measurements(model, H, OBS, NOISE, **own)
        return
    given, n = condition_on_measurements(model, H, OBS, NOISE, **own), 400
    law, _ = given_measurement(problem, H, OBS, NOISE)
    x = law.sample(n, 2)
    check_bound(given, x, law.log_prob(x), 0.2, 3)
    torch.manual_seed(1)
    check_samples(given(batch_size=n), law)
    if diffusion.maps:
        return
    problem = bimodal()
    model = DiffusionModel(diffusion, ExactDenoiser(problem))
    found = twisted_smc(
        condition_on_measurements(model, H, OBS, NOISE, **own), 32, steps=40, repeats=12
    )
    value, error = found.log_evidence
    known = float(given_measurement(problem, H, OBS, NOISE)[1])
    assert abs(value - known) < 5.5 * error + 0.1 < 0.7


# -- data with levels ------------------------------------------------------------------------------


@every_kind
@torch.no_grad()
def test_levels_have_their_probabilities(make: Any) -> None:
    problem, diffusion, n = LEVELS, make(**LONG), 600
    score = DiscreteDenoiser(
        ExactLevels(problem), problem.levels, problem.log_prior, "logits", maps=True
    )
    if diffusion.paths.starts_at_data or diffusion.transform is not None:
        with pytest.raises(TypeError, match=r"use a Denoiser, fitted|StateDenoiser"):
            DiffusionModel(diffusion, score)
        return
    x = problem.sample(n, 1)
    lost = 0.0
    if diffusion.context is not None:
        q = diffusion.context.posterior(x)
        lost = float(kl_divergence(q, diffusion.context.prior().expand(q.batch_shape)).mean())
    for likelihood in (None, NetworkPosterior()):
        model = DiffusionModel(diffusion, score, likelihood)
        check_bound(model, x, problem.log_prob(x) - lost, noisy(diffusion), 2)
    torch.manual_seed(1)
    found = DiffusionModel(diffusion, score)(batch_size=300)
    shares = torch.bincount(problem.rows(found), minlength=len(problem.values)) / 300
    p = problem.table.flatten()
    assert float((shares - p).square().div(p / 300).sum()) < chi2.isf(1e-7, len(p) - 1)
    if not can_be_conditioned(diffusion):
        return
    observed, left_out = torch.tensor([[1, 0, 0, 0], [0, 0, 0, 1]]).bool()
    known = problem.conditional_log_prob(x, observed, left_out)
    model = condition(DiffusionModel(diffusion, score), observed, None, left_out)
    check_bound(model, x, known, 0.16, 2)


LEVELS = Levels(
    torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64), (0.8 * fixed(5, *[3] * D)).exp()
)
