"""Decoders of levels, and what lies between them."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution, TorchDistributionMixin
from torch import Tensor

from pyro_mdm.diffusions.presets import CLD, VPSDE
from pyro_mdm.levels import discrete
from pyro_mdm.levels.denoiser import DiscreteDenoiser
from pyro_mdm.levels.dequantization import LogitDequantization
from pyro_mdm.levels.likelihoods import DiscretizedGaussian, LevelPosterior, NetworkPosterior
from pyro_mdm.likelihoods.base import Gaussian, JointTweedie, Likelihood, Tweedie, bits_per_dim
from pyro_mdm.scores.denoiser import Denoiser
from pyro_mdm.scores.raw import RawScore
from tests.core.test_likelihoods import Y, state_at_start
from tests.core.test_scores import EVENT, Wave, Zero
from tests.gradients import assert_gradients
from tests.levels.test_denoisers import LEVELS, prior
from tests.mistakes import refused
from tests.problems import learned


def some_levels(levels: Tensor, n: int, seed: int = 0, event: tuple[int, ...] = EVENT) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return levels[torch.randint(len(levels), (n, *event), generator=g)]


def definition(levels: Tensor, log_prior: Tensor | float, z: Tensor, lam: float) -> Tensor:
    """log p(v_k | z), (*z.shape, n)."""
    return (log_prior - 0.5 * math.exp(lam) * (z.unsqueeze(-1) - levels).square()).log_softmax(-1)


@pytest.mark.parametrize("lam", [-2.0, 3.0, 6.0, 9.0, 13.0, 16.0])
@pytest.mark.parametrize("fitted", [True, False])
@pytest.mark.parametrize("name", LEVELS)
def test_discretized_gaussian_is_its_definition(name: str, fitted: bool, lam: float) -> None:
    levels = LEVELS[name]
    diffusion = CLD(max_log_snr=lam)
    log_prior = prior(levels, sharp=4.0) if fitted else None
    likelihood = DiscretizedGaussian(levels, log_prior)
    x = some_levels(levels, 20)
    y = state_at_start(diffusion, x)
    y[0] *= 1.5  # a sampler may leave the levels' range
    y.requires_grad_()
    law = likelihood(diffusion, RawScore(Zero()), y)
    z = torch.einsum("k,nkij->nij", diffusion.start.readout, y)
    expected = definition(levels, 0.0 if log_prior is None else log_prior, z, lam)
    index = discrete.level_index(x, levels).unsqueeze(-1)
    log_prob = expected.gather(-1, index).sum((1, 2, 3))
    assert law.batch_shape == (20,) and law.event_shape == EVENT and not law.has_rsample
    torch.testing.assert_close(law.log_prob(x), log_prob, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(law.log_probs(), expected, rtol=1e-7, atol=1e-7)
    gradients = [torch.autograd.grad(v.sum(), y)[0] for v in (law.log_prob(x), log_prob)]
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-7 * math.exp(lam / 2))


def test_a_window_of_levels_is_used_where_it_suffices() -> None:
    sizes = {}
    for lam in (0.0, 9.0, 13.0):
        diffusion = VPSDE(max_log_snr=lam)
        law = DiscretizedGaussian(256)(diffusion, RawScore(Zero()), torch.zeros(2, 1, *EVENT))
        assert isinstance(law, LevelPosterior)
        sizes[lam] = None if law.odds.window is None else law.odds.window.size
    assert sizes[0.0] is None
    assert sizes[9.0] is not None and 20 < sizes[9.0] < 60
    assert sizes[13.0] is not None and sizes[13.0] < 10


@pytest.mark.parametrize("room", [1, 40, 300])
def test_windows_in_blocks_have_the_sums_and_the_samples(
    room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = discrete.level_values(64)
    log_prior, z = prior(levels), some_levels(levels, 7) + 0.01
    odds = discrete.noise_odds(log_prior, levels, z, torch.full_like(z, 9.0))
    expected = discrete.log_normalizer(odds)
    odds = odds._replace(window=discrete.level_window(odds, 9.0, log_prior))
    assert odds.window is not None
    monkeypatch.setattr(discrete, "CPU_BLOCK", room)
    torch.testing.assert_close(discrete.log_normalizer(odds), expected, rtol=1e-12, atol=1e-12)
    samples = LevelPosterior(odds, z.dtype).expand((4, 7)).sample((5,))
    assert samples.shape == (5, 4, *z.shape)
    assert (samples - z).abs().max() < 0.15  # noise has a deviation of 0.011


@pytest.mark.parametrize(("lam", "form"), [(0.0, "tilt"), (6.5, "logits")])
def test_samples_have_the_probabilities(lam: float, form: str) -> None:
    """Frequencies within 6 standard errors, in 1,100 cells of which many hold few."""
    levels = LEVELS["17"]
    diffusion = VPSDE(max_log_snr=lam)
    network = Wave(2 if form == "tilt" else 17)
    score = DiscreteDenoiser(network, levels, prior(levels), form)
    y = state_at_start(diffusion, some_levels(levels, 3))
    for likelihood in (score.default_likelihood(), NetworkPosterior()):
        pyro.set_rng_seed(5)
        law = likelihood(diffusion, score, y)
        k = discrete.level_index(law.sample((4000,)), levels)
        frequency = torch.stack([(k == i).double().mean(0) for i in range(17)], -1)
        p = law.log_probs().exp().detach()
        error = (p * (1 - p) / 4000).sqrt() + 1e-4
        assert ((frequency - p).abs() / error).max() < 6
        assert (p.amax(-1) < 0.999).any()


def test_network_posterior_trains_the_network() -> None:
    levels = LEVELS["17"]
    diffusion = CLD(max_log_snr=5.0)
    x = some_levels(levels, 7)
    for form, factor in (("tilt", 2), ("logits", 17)):
        score = DiscreteDenoiser(Wave(factor), levels, prior(levels), form)
        law = NetworkPosterior()(diffusion, score, state_at_start(diffusion, x))
        z = torch.einsum("k,nkij->nij", diffusion.start.readout, state_at_start(diffusion, x))
        expected = score.log_probs(z, 5.0).gather(-1, discrete.level_index(x, levels).unsqueeze(-1))
        wanted = list(score.network.parameters())
        pairs = [torch.autograd.grad(v.sum(), wanted) for v in (law.log_prob(x), expected)]
        torch.testing.assert_close(law.log_prob(x), expected.sum((1, 2, 3)))
        torch.testing.assert_close(*pairs)


def test_gradients_reach_the_diffusion_through_the_state() -> None:
    """∂/∂(Q, D) of the reconstruction at fixed noise, by finite differences."""
    diffusion = learned(2, 2, 33, max_log_snr=5.0)
    levels = LEVELS["17"]
    x = some_levels(levels, 6)
    score = DiscreteDenoiser(Zero(2), levels, prior(levels), "tilt")
    # a state that is not at ε of the diffusion it is decoded with, so that the gradient is not 0
    y = state_at_start(CLD(max_log_snr=5.0), x).detach()

    def loss() -> Tensor:
        return score.default_likelihood()(diffusion, score, y).log_prob(x).sum()

    assert_gradients(loss, [diffusion.B])


def likelihoods(levels: Tensor) -> list[Likelihood]:
    return [
        Gaussian(),
        Gaussian(0.1, 0.5),
        DiscretizedGaussian(levels),
        DiscretizedGaussian(levels, prior(levels)),
        NetworkPosterior(),
        Tweedie(),
        JointTweedie(),
    ]


@pytest.mark.parametrize(("name", "form"), [("17", "logits"), ("256", "tilt")])
def test_every_likelihood_is_a_pyro_distribution(name: str, form: str) -> None:
    levels = LEVELS[name]
    diffusion = CLD()
    factor = 2 if form == "tilt" else len(levels)
    score = DiscreteDenoiser(Wave(factor), levels, prior(levels), form)
    x = some_levels(levels, 6).float()
    y = state_at_start(diffusion, x.double()).float()
    for likelihood in likelihoods(levels):
        law = likelihood(diffusion, score, y)
        assert isinstance(law, TorchDistributionMixin)
        assert law.batch_shape == (6,) and law.event_shape == EVENT
        log_prob = law.log_prob(x)
        assert log_prob.shape == (6,) and log_prob.dtype == torch.float32
        wide = law.expand((2, 6))
        assert not isinstance(wide, ExpandedDistribution)
        assert wide.batch_shape == (2, 6) and wide.event_shape == EVENT
        torch.testing.assert_close(wide.log_prob(x), log_prob.expand(2, 6))
        for shape in ((), (3,), (3, 2)):
            sample = law.sample(shape)
            assert sample.shape == (*shape, 6, *EVENT) and sample.dtype == torch.float32
            assert law.log_prob(sample).shape == (*shape, 6)
            assert wide.sample(shape).shape == (*shape, 2, 6, *EVENT)
        with pyro.plate("data", 6):
            assert pyro.sample("x", law, obs=x).shape == x.shape
        # two batch dimensions
        nested = likelihood(diffusion, score, y.reshape(2, 3, *y.shape[1:]))
        assert nested.batch_shape == (2, 3)
        torch.testing.assert_close(nested.log_prob(x.reshape(2, 3, *EVENT)).flatten(), log_prob)


def test_buffers_stay_in_float64() -> None:
    likelihood = DiscretizedGaussian(17, prior(LEVELS["17"])).half()
    assert likelihood.log_prior is not None and likelihood.log_prior.dtype == torch.float64
    assert Gaussian(0.0, 0.1).float().prior_variance.item() == 0.1


def test_logit_dequantization_keeps_the_books() -> None:
    k = torch.arange(256).reshape(4, 8, 8)
    dequantize = LogitDequantization(256, margin=0.05)
    x, log_det = dequantize(k, torch.Generator().manual_seed(0), torch.float64)
    assert torch.equal(dequantize.levels(x), k)
    # by hand: w = (k + u)/n, p = α + (1 - 2α) w, x = log p/(1 - p), dx/dw = (1 - 2α)/(p (1 - p))
    p = torch.sigmoid(x)
    by_hand = (0.9 / (p * (1 - p))).log().sum((1, 2))
    torch.testing.assert_close(log_det, by_hand)
    # levels drawn uniformly have the density 1 in w: 8 bits, exactly, for every datum
    log_prob = -by_hand
    bits = bits_per_dim(log_prob, 64, log_det=log_det, num_levels=256)
    torch.testing.assert_close(bits, torch.full((4,), 8.0, dtype=torch.float64))


def test_dequantization_noise_is_uniform_within_a_level() -> None:
    k = torch.full((1, 20000), 3)
    x, _ = LogitDequantization(8, margin=0.0)(k, torch.Generator().manual_seed(0), torch.float64)
    u = torch.sigmoid(x) * 8 - 3
    assert u.min() >= 0 and u.max() <= 1
    assert abs(u.mean().item() - 0.5) < 5 * math.sqrt(1 / 12 / 20000)
    assert abs(u.var().item() - 1 / 12) < 5 * math.sqrt(1 / 180 / 20000)


def of_levels(x: Tensor) -> Tensor:
    return DiscretizedGaussian(17)(CLD(), RawScore(Zero()), Y).log_prob(x)


def test_event_dimensions_can_be_given() -> None:
    y = torch.zeros(4, 5, 2, 3)
    assert DiscretizedGaussian(17)(CLD(), RawScore(Zero()), y, 1).event_shape == (3,)


BAD = [
    (lambda: NetworkPosterior()(CLD(), Denoiser(Zero()), Y), "got Denoiser; use DiscreteDenoiser"),
    (lambda: of_levels(torch.ones(4, *EVENT) / 3), "x holds 0.333333 .*17 levels"),
    (lambda: of_levels(torch.full((4, *EVENT), math.nan)), "x holds nan"),
    (lambda: of_levels(torch.ones(4, 3, 2)), r"x has shape \(4, 3, 2\), expected \(.*, 2, 3\)"),
    (lambda: LogitDequantization(256, 0.5), "margin is 0.5"),
    (lambda: LogitDequantization(8)(torch.tensor([[8]])), "k holds 8"),
    (
        lambda: DiscretizedGaussian(17, prior(LEVELS["17"], event=(3, 3)))(
            CLD(), RawScore(Zero()), Y
        ),
        r"event shape \(2, 3\), expected that of log_prior, \(3, 3\)",
    ),
    (lambda: LogitDequantization(8)(torch.tensor([[0.5]])), "k holds 0.5"),
]


def test_bad_input_is_named() -> None:
    refused((TypeError, ValueError), *BAD)
