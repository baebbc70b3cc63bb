"""Auxiliary variables that start at an encoding of the data: laws, scores, bounds, samplers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_mdm import (
    ALDA,
    CLD,
    MALDA,
    VPSDE,
    Denoiser,
    DiffusionGuide,
    DiffusionModel,
    EncodedDiffusion,
    NoisePrediction,
    StateDenoiser,
    elbo_terms,
)
from pyro_mdm.diffusions.clocks import log_snr_times
from pyro_mdm.evaluation import probability_flow
from pyro_mdm.likelihoods import Gaussian, JointTweedie, Tweedie
from pyro_mdm.networks import MLP
from pyro_mdm.paths.flow import Solver
from pyro_mdm.samplers import (
    Ancestral,
    EulerMaruyama,
    ExponentialIntegrator,
)
from pyro_mdm.samplers.exponential import transport
from pyro_mdm.scores.base import rotated
from pyro_mdm.tables import MixedLikelihood
from tests.gradients import assert_gradients
from tests.mistakes import refused
from tests.problems import (
    ExactNoise,
    ExactState,
    GaussianMixture,
    LinearEncoder,
    direction,
    fixed,
    learned,
    mixture,
    normal,
)
from tests.varying.problems import learned_in_time

D = 2  # data dimensions
ENDS: dict[str, Any] = {"max_log_snr": 7.0, "min_log_snr": -8.0, "initial_variance": 0.1}
MEAN = torch.tensor([0.3, -0.5], dtype=torch.float64)
SPREAD = torch.tensor([1.0, 0.6], dtype=torch.float64)
PROBLEM = GaussianMixture([1.0], MEAN[None], SPREAD.square().diag()[None])


BASES: dict[str, Callable[[], Any]] = {
    "cld": lambda: CLD(**ENDS),
    "learned": lambda: learned(3, 2, 60, **ENDS),
    "rank 1": lambda: learned(3, 1, 54, **ENDS),
    "varying": lambda: learned_in_time(2, 2, 7, **ENDS),
}
every_base = pytest.mark.parametrize("name", BASES)


def encoded(name: str) -> EncodedDiffusion:
    base = BASES[name]()
    return EncodedDiffusion(base, LinearEncoder(base.num_variables - 1))


def data(n: int, seed: int = 0) -> Tensor:
    return MEAN + SPREAD * normal(seed, n, D)


def states(diffusion: EncodedDiffusion, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """M w for w = (1, slopes), (n, K), mean (n, D, K) and covariance (n, D, K, K) of y_s."""
    marginal = diffusion.marginal(s)
    M = diffusion.base.propagator.moments(None, diffusion.clock(s))[0]
    slopes: Any = diffusion.encoder.slope
    direction = (M @ torch.cat([slopes.new_ones(1), slopes])[:, None])[..., 0]
    outer = direction[..., :, None] * direction[..., None, :]
    covariance = (
        marginal.covariance[..., None, :, :]
        + SPREAD.square()[:, None, None] * (outer[..., None, :, :])
    )
    return direction, MEAN[:, None] * direction[..., None, :], covariance


def exact(diffusion: EncodedDiffusion, data: GaussianMixture | None = None) -> StateDenoiser:
    data = data or PROBLEM
    network = ExactState(data, diffusion)
    return StateDenoiser(Denoiser(network, data.mean, data.covariance.diagonal()))


# -- laws ------------------------------------------------------------------------------------------


@every_base
@torch.no_grad()
def test_paths_are_those_of_the_base_from_an_encoding(name: str) -> None:
    diffusion, x = encoded(name), data(5)
    base, K = diffusion.base, diffusion.num_variables
    times = log_snr_times(base, 4)[1:]
    law = DiffusionGuide(diffusion).law(x, times)
    w = torch.cat([x.unsqueeze(1), diffusion.encode(x)], 1)
    step = base.transition(times[0])
    start = base.initial_covariance
    first = MultivariateNormal(
        (step.matrix @ w).mT, step.covariance + step.matrix @ start @ step.matrix.mT
    )
    torch.manual_seed(0)
    path = law.rsample()
    whole = first.log_prob(path[:, 0].mT).sum(-1)
    for i in (1, 2):
        step = base.transition(times[i], times[i - 1])
        mean = (step.matrix @ path[:, i - 1]).mT
        later = MultivariateNormal(mean, scale_tril=step.scale_tril)
        whole = whole + later.log_prob(path[:, i].mT).sum(-1)
    torch.testing.assert_close(law.log_prob(path), whole, rtol=1e-6, atol=1e-6)
    torch.manual_seed(0)
    noise = torch.randn(5, 3, K, D, dtype=torch.float64)
    mean = diffusion.marginal(times[0]).scale_tril @ noise[:, 0]
    torch.testing.assert_close(path[:, 0] - mean, first.mean.mT, rtol=1e-6, atol=1e-8)


# -- scores and bounds -----------------------------------------------------------------------------


@every_base
@torch.no_grad()
def test_an_exact_state_denoiser_is_the_exact_score(name: str) -> None:
    diffusion, n = encoded(name), 6
    s = log_snr_times(diffusion, n + 1)[:-1]
    y = normal(1, n, diffusion.num_variables, D)
    _, mean, covariance = states(diffusion, s)
    expected = -torch.linalg.solve(covariance, (y.mT - mean)[..., None])[..., 0].mT
    score = exact(diffusion)
    torch.testing.assert_close(score.score(diffusion, y, s), expected, rtol=1e-5, atol=1e-6)
    raw = NoisePrediction(ExactNoise(PROBLEM, diffusion)).score(diffusion, y, s)
    torch.testing.assert_close(raw, expected, rtol=1e-5, atol=1e-6)
    both = score.start_hat(diffusion, y, s)
    torch.testing.assert_close(both[:, 0], score.denoise(diffusion, y, s))
    one = score.score(diffusion, y[:1], s[0])
    torch.testing.assert_close(one, expected[:1], rtol=1e-5, atol=1e-6)


@every_base
@torch.no_grad()
def test_a_draw_of_the_term_is_the_error_of_the_score(name: str) -> None:
    """½ ‖s_θ + Σ^-1 (y - M w)‖²_{g²} by the density of times, from a draw that is made again."""
    diffusion, n = encoded(name), 5
    K, x = diffusion.num_variables, data(n)
    score = exact(diffusion)
    level = torch.linspace(6.5, -7.0, n, dtype=torch.float64)
    noise = normal(4, n, K, D)
    found = score.integrand(diffusion, x, level, noise)
    low, high = diffusion.log_volume.ends
    s = diffusion.log_volume.inverse(low + (high - low) * (7.0 - level) / 15.0)
    marginal = diffusion.marginal(s)
    M = diffusion.base.propagator.moments(None, diffusion.clock(s))[0]
    w = torch.cat([x.unsqueeze(1), diffusion.encode(x)], 1)
    y = M @ w + marginal.scale_tril @ rotated(marginal, noise)
    error = score.score(diffusion, y, s) + torch.linalg.solve(marginal.covariance, y - M @ w)
    square = (error * (diffusion.noise_covariance(s) @ error)).sum((1, 2))
    expected = (high - low) * 0.5 * square / diffusion.log_volume.rate(s) / 15.0
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


NORMAL = GaussianMixture([1.0], torch.zeros(1, D), torch.eye(D)[None])


@pytest.mark.parametrize(
    ("make", "slopes"),
    [(CLD, 0.0), (CLD, 1.0), (lambda: CLD(max_log_snr=9.0), 1.0), (MALDA, 1.0), (ALDA, 1.0)],
)
@pytest.mark.parametrize("problem", [NORMAL, mixture()], ids=["normal", "mixture"])
@torch.no_grad()
def test_decoders_lose_next_to_nothing(make: Any, problem: GaussianMixture, slopes: float) -> None:
    """E log q(x | y_ε) - E log p(x | y_ε), which is what the bound of an exact score loses, and
    was 0.64 to 1.01 bits/dim where x was read without v_0. Of an encoder that returns 0 too."""
    base, n = make(), 1000
    encoder = LinearEncoder(base.num_variables - 1)
    encoder.slope.mul_(slopes)
    diffusion = EncodedDiffusion(base, encoder)
    x, s = problem.sample(n, seed=3), diffusion.start_time
    start = diffusion.start
    y = direction(diffusion, s)[:, None] * x[:, None]
    noise = normal(4, n, base.num_variables, D)
    y = y + start.scale_tril @ noise
    constant = start.log_det + base.num_variables * math.log(2 * math.pi)
    given_x = -0.5 * (noise.square().sum((1, 2)) + D * constant)
    exact_law = problem.log_prob(x) + given_x - problem.state_log_prob(diffusion, y, s)
    raw = NoisePrediction(ExactNoise(problem, diffusion))
    for score, likelihood in (
        (exact(diffusion, problem), None),
        (exact(diffusion, problem), Tweedie()),
        (raw, None),
        (raw, Tweedie()),
        (raw, MixedLikelihood([Gaussian(), Gaussian()], torch.tensor([0, 1]))),
    ):
        likelihood = likelihood or score.default_likelihood()
        lost = exact_law - likelihood(diffusion, score, y, 1).log_prob(x)
        lost = lost / (D * math.log(2))
        error = float(lost.std()) / math.sqrt(n)
        assert error < 0.005
        assert -5.5 * error < float(lost.mean()) < 0.01 + 2 * error


@pytest.mark.parametrize("kind", ["state", "noise"])
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    diffusion = encoded("learned")
    K, x = diffusion.num_variables, data(6)
    if kind == "state":
        network = MLP(K * D, 8, 1, out_features=K * D).double()
        score: Any = StateDenoiser(Denoiser(network, MEAN, SPREAD.square()))
    else:
        score = NoisePrediction(MLP(K * D, 8, 1).double())
    with torch.no_grad():
        for p in score.parameters():
            p.add_(0.1 * fixed(p.numel(), *p.shape))
    model, guide = DiffusionModel(diffusion, score, event_shape=(D,)), DiffusionGuide(diffusion)

    def loss() -> Tensor:
        torch.manual_seed(3)
        return elbo_terms(model, guide, x).elbo.sum()

    slopes: Any = diffusion.encoder.slope
    parameters = (slopes, diffusion.base.lower, diffusion.base.B)
    assert_gradients(loss, parameters, h=1e-6, rel=2e-5, abs=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_weights_of_the_flow_are_the_density() -> None:
    """p(y_ε) p(x | y_ε) / q(y_ε | x) of each draw, where score and decoder are exact."""
    diffusion, x = EncodedDiffusion(CLD(max_log_snr=9.0), LinearEncoder(1)), data(3)
    diffusion.encoder.slope.data.fill_(0.8)
    model = DiffusionModel(diffusion, exact(diffusion))
    solver = Solver(rtol=1e-3, atol=1e-3)
    found = probability_flow(model, DiffusionGuide(diffusion), x, solver=solver).per_datum
    assert float((found - PROBLEM.log_prob(x)).abs().max()) < 0.3


# -- samplers --------------------------------------------------------------------------------------


@every_base
@torch.no_grad()
def test_a_step_at_known_start_is_the_exact_posterior(name: str) -> None:
    diffusion = encoded(name)
    times = log_snr_times(diffusion.base, 6).flip(0)
    found = transport(diffusion, times, 1.0)
    K = diffusion.num_variables
    M = diffusion.base.propagator.moments(None, diffusion.clock(times))[0]
    expected = M[1:] - found.gain @ M[:-1]  # y_s = M_s w for all s, where there is no noise
    columns = found.moments[:, 0].unflatten(-1, (K, K))
    torch.testing.assert_close(columns, expected, rtol=1e-5, atol=1e-8)


# -- the door --------------------------------------------------------------------------------------


def test_mistakes_are_told() -> None:
    diffusion, square = encoded("cld"), SPREAD.square()
    denoiser = Denoiser(MLP(D).double(), MEAN, square)
    model = DiffusionModel(diffusion, exact(diffusion), sampler=Ancestral(4))
    noise = NoisePrediction(ExactNoise(PROBLEM, diffusion))
    raw = DiffusionModel(diffusion, noise, event_shape=(D,))
    assert isinstance(raw.sampler, EulerMaruyama)
    raw.sampler = ExponentialIntegrator(4)
    y = torch.zeros(2, diffusion.num_variables, D).double()
    narrow = EncodedDiffusion(BASES["learned"](), LinearEncoder(1))
    maps = Denoiser(MLP(2 * D), MEAN, square, maps=True)
    refused(
        (TypeError, ValueError),
        (lambda: EncodedDiffusion(VPSDE(), LinearEncoder(1)), "VPSDE with K = 1, which has no aux"),
        (
            lambda: DiffusionModel(diffusion, denoiser),
            r"Denoiser needs a readout.*StateDenoiser\(denoiser\)",
        ),
        (lambda: DiffusionModel(CLD(**ENDS), StateDenoiser(denoiser)), "use the denoiser itself"),
        (lambda: DiffusionModel(diffusion, exact(diffusion), times=8), "steps back by x̂ alone"),
        (lambda: model(batch_size=2), "Ancestral needs a readout"),
        (lambda: noise.denoise(diffusion, y, 0.5), "asked for x̂ at another time than ε, needs"),
        (lambda: raw(batch_size=2), "use StateDenoiser, or a sampler by the score"),
        (lambda: narrow.encode(data(3)), r"returned \(3, 2\).*expected \(3, 4\): 2 means"),
        (lambda: StateDenoiser(maps), "takes maps"),
        (
            lambda: JointTweedie()(diffusion, model.score_function, y),
            "JointTweedie needs a readout",
        ),
    )
