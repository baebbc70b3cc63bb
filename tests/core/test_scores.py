"""Scores: identities between parameterizations, exact baselines, moments, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pyro_mdm.diffusions.base import apply_vector
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.diffusions.matrices import apply_matrix
from pyro_mdm.diffusions.presets import ALDA, CLD, MALDA, VPSDE, LearnedDiffusion
from pyro_mdm.scores.base import Coefficients, Score, rotated
from pyro_mdm.scores.denoiser import Denoiser
from pyro_mdm.scores.raw import NoisePrediction, RawScore
from tests.known_bound import ExactGaussian
from tests.mistakes import refused
from tests.problems import learned, normal, random_linear

DIFFUSIONS = {
    "vpsde": VPSDE,
    "cld": CLD,
    "malda": MALDA,
    "alda": ALDA,
    "learned_2": lambda: learned(2, 2, 33),
    "learned_3_rank_1": lambda: LearnedDiffusion(3, rank=1),
    "random_4": lambda: random_linear(4, 400),
}
EVENT = (2, 3)


class Zero(nn.Module):
    """A network that has learned nothing: ``factor`` outputs per input channel."""

    def __init__(self, factor: int = 1) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        return x.new_zeros(len(x), self.factor * x.shape[1], *x.shape[2:])


class Wave(nn.Module):
    """A smooth function of input and λ that mixes dimensions; its weights have gradients."""

    def __init__(self, factor: int = 1, size: float = 0.5) -> None:
        super().__init__()
        self.factor = factor
        self.phase = nn.Parameter(torch.linspace(0.0, 3.0, factor, dtype=torch.float64))
        self.size = nn.Parameter(torch.tensor(size, dtype=torch.float64))

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        assert log_snr.shape == (len(x),) and log_snr.dtype == x.dtype
        lam = log_snr.reshape(-1, *[1] * (x.dim() - 1)) / 10
        mixed = x + 0.3 * x.flip(-1) + lam
        waves = [torch.sin(mixed + p) for p in self.phase.to(x.dtype)]
        return self.size.to(x.dtype) * torch.cat(waves, 1)


class Constant(nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        return self.value.to(x.dtype).expand(len(x), *self.value.shape[1:])


# -- scores under a diffusion ----------------------------------------------------------------------


def state(diffusion: LinearDiffusion, n: int = 9, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """x, y_s and s, over the whole range of λ."""
    low, high = diffusion.terminal_log_snr.item(), diffusion.max_log_snr
    s = diffusion.time_at_log_snr(torch.linspace(low, high, n, dtype=torch.float64)).detach()
    marginal = diffusion.marginal(s)
    x = 0.3 + 0.7 * normal(seed, n, *EVENT)
    noise = apply_matrix(marginal.scale_tril, normal(seed + 1, n, diffusion.num_variables, *EVENT))
    return x, (marginal.mean[..., None, None] * x.unsqueeze(1) + noise).detach(), s


@pytest.mark.parametrize(("name", "noise"), [(n, i % 2 == 0) for i, n in enumerate(DIFFUSIONS)])
def test_projection_recovers_the_denoiser_from_the_exact_score(name: str, noise: bool) -> None:
    diffusion = DIFFUSIONS[name]().requires_grad_(False)
    _, y, s = state(diffusion)
    network = ExactGaussian(diffusion, noise, 0.3, 0.49)
    raw: Score = NoisePrediction(network) if noise else RawScore(network)
    denoiser = Denoiser(Zero(), 0.3, 0.49)
    exact, got = denoiser.score(diffusion, y, s), raw.score(diffusion, y, s)
    size = exact.abs().amax((1, 2, 3), keepdim=True)
    assert ((got - exact).abs() / size).max() < 1e-6
    x_hat = denoiser.denoise(diffusion, y, s)
    scale = torch.exp(-diffusion.log_snr(s) / 2).clamp(max=1)[:, None, None]
    assert ((raw.denoise(diffusion, y, s) - x_hat).abs() / scale).max() < 1e-5


def level_at(diffusion: LinearDiffusion, log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """The level of a raw score's integrand at which log SNR is this, and d level / d log SNR."""
    s = diffusion.time_at_log_snr(log_snr)
    start, end = diffusion.log_volume.ends
    scale = (diffusion.max_log_snr - diffusion.terminal_log_snr) / (end - start)
    level = diffusion.max_log_snr - (diffusion.log_volume(s) - start) * scale
    return level, scale * diffusion.log_volume.rate(s) / diffusion.log_snr_rate(s)


@pytest.mark.parametrize("name", ["cld", "alda", "learned_3_rank_1"])
def test_projection_ignores_what_the_loss_never_sees(name: str) -> None:
    diffusion = DIFFUSIONS[name]().requires_grad_(False)
    K = diffusion.num_variables
    x, y, s = state(diffusion)
    values, vectors = torch.linalg.eigh(diffusion.D)
    blind = vectors[:, values < 1e-12 * values.max()]
    assert blind.shape[1] > 0
    junk = torch.einsum("kr,r->k", blind, normal(5, blind.shape[1]))
    exact = RawScore(ExactGaussian(diffusion, False, 0.3, 0.49))

    class Spoiled(ExactGaussian):
        def forward(self, inputs: Tensor, log_snr: Tensor) -> Tensor:
            score = super().forward(inputs, log_snr).unflatten(1, (K, -1))
            return (score + junk[:, None, None]).flatten(1, 2)

    spoiled = RawScore(Spoiled(diffusion, False, 0.3, 0.49))
    torch.testing.assert_close(
        spoiled.denoise(diffusion, y, s), exact.denoise(diffusion, y, s), rtol=1e-7, atol=1e-7
    )
    lam = diffusion.log_snr(s)
    terms = []
    for score in (spoiled, exact):
        torch.manual_seed(3)
        terms.append(score.integrand(diffusion, x, level_at(diffusion, lam)[0]))
    torch.testing.assert_close(terms[0], terms[1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["vpsde", "learned_3_rank_1"])
def test_importance_times_have_the_density_of_vpsde_and_leave_the_mean(name: str) -> None:
    diffusion = DIFFUSIONS[name]().requires_grad_(False)
    diffusion.max_log_snr = 4.0

    class Zeros(nn.Module):  # so wrong a score that no error is proportional to a density
        def forward(self, inputs: Tensor, log_snr: Tensor) -> Tensor:
            return torch.zeros_like(inputs)

    score, x = NoisePrediction(Zeros()), 0.3 + 0.7 * normal(11, 2000, 20)
    terms = {}
    for times in ("log_volume", "vpsde"):
        score.times = times
        torch.manual_seed(5)
        with torch.no_grad():
            terms[times], log_snr = score.diffusion_term(diffusion, x)
    # the last are importance times: β/(1 - e^{-b}) ds, counted in ten parts of [ε, T]
    s = diffusion.time_at_log_snr(log_snr)
    edges = torch.linspace(diffusion.start_time.item(), 1.0, 11, dtype=torch.float64)
    fine = torch.linspace(edges[0].item(), 1.0, 100_001, dtype=torch.float64)
    density = diffusion.rate(fine) / -torch.expm1(-diffusion.clock(fine))
    mass = torch.cumulative_trapezoid(density, fine)[9_999::10_000]
    expected = (mass / mass[-1]).diff(prepend=torch.zeros(1, dtype=torch.float64))
    found = torch.histogram(s, edges).hist / len(s)
    assert (found - expected).abs().max() < 2.5 / len(s)  # of low discrepancy
    # ε_θ = 0: the integrand by log volume is ½ of a chi-square, with mean ½ d wherever
    start, end = diffusion.log_volume.ends
    exact = 0.5 * 20 * (end - start)
    for values in terms.values():
        assert abs(values.mean() - exact) < 5 * values.std() / math.sqrt(len(x))
    if name == "vpsde":
        torch.testing.assert_close(terms["vpsde"], terms["log_volume"], rtol=1e-7, atol=1e-7)


def test_baseline_integrand_shares_the_noise() -> None:
    x, noise = normal(0, 50, *EVENT), normal(1, 50, 1, *EVENT)
    lam = torch.linspace(-3, 6, 50, dtype=torch.float64)
    score = Denoiser(Zero(), 0.1, 0.8)
    baseline = score.baseline_integrand(x, lam, noise)
    torch.testing.assert_close(score.integrand(VPSDE(), x, lam, noise), baseline)
    wave = Denoiser(Wave(), 0.1, 0.8)
    torch.testing.assert_close(wave.baseline_integrand(x, lam, noise), baseline)
    assert (wave.integrand(VPSDE(), x, lam, noise) != baseline).all()


@pytest.mark.parametrize("make", DIFFUSIONS.values(), ids=DIFFUSIONS.keys())
def test_rotated_noise_is_normal_and_its_first_part_is_that_of_z(make) -> None:
    diffusion = make()
    K = diffusion.num_variables
    marginal = diffusion.marginal(torch.linspace(0.02, diffusion.horizon, 9, dtype=torch.float64))
    noise = normal(0, 9, K + 1, *EVENT)
    eta = rotated(marginal, noise)
    assert eta.shape == (9, K, *EVENT)
    torch.testing.assert_close(eta.square().sum(1), noise[:, :K].square().sum(1))
    epsilon = apply_vector(marginal.readout, apply_matrix(marginal.scale_tril, eta))
    epsilon = epsilon * (marginal.log_snr / 2).exp()[:, None, None]
    torch.testing.assert_close(epsilon, noise[:, 0], rtol=1e-6, atol=1e-6)


def test_integrands_of_one_denoiser_agree_draw_by_draw_however_it_is_written() -> None:
    """The same noise gives the same z under each diffusion, and a score its denoiser's error."""
    x, noise = normal(0, 20, *EVENT), normal(1, 20, 3, *EVENT)
    lam = torch.linspace(-3, 6, 20, dtype=torch.float64)
    denoiser = Denoiser(Wave(), 0.1, 0.8)
    expected = denoiser.integrand(VPSDE(), x, lam, noise)
    for diffusion in (VPSDE(), CLD(), ALDA()):

        class Seen(RawScore):
            def score_at(self, diffusion: LinearDiffusion, y: Tensor, at: Coefficients) -> Tensor:
                return denoiser.score_at(diffusion, y, at)

        level, slope = level_at(diffusion, lam)
        found = Seen(Wave()).integrand(diffusion, x, level, noise) * slope
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def assert_shapes_types_and_gradients(score: Score, diffusion: LinearDiffusion) -> None:
    K = diffusion.num_variables
    y = normal(0, 6, K, *EVENT)
    s = torch.linspace(0.2, 0.9, 6, dtype=torch.float64)
    flat, x_hat = score.score(diffusion, y, s), score.denoise(diffusion, y, s)
    assert flat.shape == y.shape and x_hat.shape == (6, *EVENT)
    nested = score.score(diffusion, y.reshape(2, 3, K, *EVENT), s.reshape(2, 3))
    torch.testing.assert_close(nested.reshape(y.shape), flat)
    torch.testing.assert_close(
        score.denoise(diffusion, y.reshape(2, 3, K, *EVENT), s.reshape(2, 3)),
        x_hat.reshape(2, 3, *EVENT),
    )
    torch.testing.assert_close(
        score.score(diffusion, y, 0.4), score.score(diffusion, y, torch.full_like(s, 0.4))
    )
    half = score.score(diffusion, y.float(), s)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), flat, rtol=1e-3, atol=1e-2)
    score.integrand(diffusion, normal(1, 6, *EVENT), s * 0 + 2.0).sum().backward()
    for parameter in score.network.parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["vpsde", "cld", "alda"])
def test_shapes_types_gradients_and_batches_of_every_score(name: str) -> None:
    wide = Denoiser(Wave(), normal(0, *EVENT), normal(1, *EVENT).exp())
    for score in (Denoiser(Wave(), 0.1, 0.8), wide, NoisePrediction(Wave()), RawScore(Wave())):
        assert_shapes_types_and_gradients(score, DIFFUSIONS[name]())


# -- fitting ---------------------------------------------------------------------------------------


def test_gaussian_fit_is_the_mean_and_variance_with_a_floor() -> None:
    x = 5 + normal(0, 3000, 4) * torch.tensor([1.0, 2.0, 0.5, 0.0])
    score = Denoiser.fit(Zero(), x)
    torch.testing.assert_close(score.data_mean, x.mean(0))
    variance = x.var(0, correction=0)
    torch.testing.assert_close(score.data_variance[:3], variance[:3])
    torch.testing.assert_close(score.data_variance[3], 1e-3 * variance.mean())


# -- bad input -------------------------------------------------------------------------------------


def nan_at(x: Tensor) -> Tensor:
    x = x.clone()
    x.view(-1)[3] = math.nan
    return x


X = torch.zeros(4, *EVENT, dtype=torch.float64)
BAD = [
    (lambda: Denoiser(Zero()).x_hat(nan_at(X), 1.0), r"z .* holds nan at \(0, 1, 0\)"),
    (
        lambda: Denoiser(Zero()).score(CLD(), nan_at(torch.zeros(4, 2, 3)), 0.5),
        "y of shape .* holds nan",
    ),
    (lambda: Denoiser(Zero()).x_hat(X, math.nan), "log_snr .* holds nan"),
    (lambda: Denoiser(Zero()).x_hat(X, torch.zeros(3)), r"log_snr has shape \(3,\).*expected one"),
    (lambda: Denoiser(Zero()).x_hat(torch.zeros(4), torch.zeros(4)), r"z has shape \(4,\)"),
    (lambda: Denoiser(Zero()).score(ALDA(), torch.zeros(4, 2, 3), 0.5), "K = 3 variables of ALDA"),
    (lambda: Denoiser(Zero()).set_trained_range(3.0, 3.0), "expected low < high"),
]


def test_bad_input_is_named() -> None:
    refused(ValueError, *BAD)
