"""Denoisers of levels: moments, exact baselines, accuracy, bad input."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate
from sklearn.datasets import load_digits
from torch import Tensor, nn

from pyro_mdm.diffusions.presets import VPSDE
from pyro_mdm.levels import discrete, even_levels
from pyro_mdm.levels.denoiser import DiscreteDenoiser
from pyro_mdm.levels.even_levels import EvenLevels
from pyro_mdm.levels.likelihoods import DiscretizedGaussian
from pyro_mdm.likelihoods.base import bits_per_dim
from pyro_mdm.scores.denoiser import Denoiser, DenoiserScore
from pyro_mdm.support.modules import cached_on
from tests.core.test_scores import (
    DIFFUSIONS,
    EVENT,
    Constant,
    Wave,
    X,
    Zero,
    assert_shapes_types_and_gradients,
    state,
)
from tests.mistakes import refused
from tests.problems import normal

LEVELS = {
    "17": discrete.level_values(17),
    "256": discrete.level_values(256),
    "uneven": torch.tensor([-1.0, -0.7, 0.0, 0.1, 0.15, 2.0], dtype=torch.float64),
}


def prior(levels: Tensor, seed: int = 0, event: tuple[int, ...] = EVENT, sharp: float = 2.0):
    return (sharp * normal(seed, *event, len(levels))).log_softmax(-1)


def noised(levels: Tensor, log_snr: Tensor, seed: int = 0, event: tuple[int, ...] = EVENT):
    """z for one datum per λ, with x drawn uniformly from the levels."""
    g = torch.Generator().manual_seed(seed)
    x = levels[torch.randint(len(levels), (len(log_snr), *event), generator=g)]
    scale = torch.exp(-log_snr / 2).reshape(-1, *[1] * len(event))
    return x + scale * normal(seed + 1, *x.shape)


def naive_log_probs(score: DiscreteDenoiser, z: Tensor, lam: Tensor, T: Tensor | float) -> Tensor:
    """log p(v_k | z) as the definition has it; T (*batch, *event, n)."""
    snr = torch.exp(lam).reshape(-1, *[1] * z.dim())
    noise = -0.5 * snr * (z.unsqueeze(-1) - score.levels).square()
    return (score.log_prior + T + noise).log_softmax(-1)


def odds(levels: Tensor, B: int = 40, d: int = 6) -> tuple[Tensor, ...]:
    lam = torch.linspace(-10, 16, B, dtype=torch.float64)
    z = noised(levels, lam, event=(d,))
    log_prior = prior(levels, event=(d,))
    c, alpha, beta = discrete.noise_odds(log_prior, levels, z, lam[:, None])[2:5]
    # tilts between the noise's own scale and the data's, and convex odds at low λ
    alpha = alpha + normal(5, B, d) * torch.exp(lam / 2)[:, None]
    beta = beta * (1 + 0.3 * normal(6, B, d)) + 0.1 * normal(7, B, d)
    return log_prior, levels, c, alpha, beta


@pytest.mark.quick
@pytest.mark.parametrize("name", LEVELS)
def test_moments_and_gradients_equal_those_of_the_definition(name: str) -> None:
    log_prior, levels, c, alpha, beta = odds(LEVELS[name])
    weights = normal(8, *c.shape)
    results = []
    for chunked in (True, False):
        a, b = alpha.clone().requires_grad_(), beta.clone().requires_grad_()
        if chunked:
            log_odds = discrete.LogOdds(log_prior, levels, c, a, b)
            mean, total = discrete.posterior_mean(log_odds), discrete.log_normalizer(log_odds)
        else:
            delta = levels - c.unsqueeze(-1)
            logits = log_prior + a.unsqueeze(-1) * delta + b.unsqueeze(-1) * delta.square()
            mean, total = (logits.softmax(-1) * delta).sum(-1), logits.logsumexp(-1)
        results.append(
            [
                mean,
                total,
                *torch.autograd.grad((mean * weights).sum(), (a, b), retain_graph=True),
                *torch.autograd.grad((total * weights).sum(), (a, b)),
            ]
        )
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("room", [1, 40, 300, 1000])
def test_moments_do_not_depend_on_the_blocks(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    log_odds = discrete.LogOdds(*odds(LEVELS["17"], B=7, d=5))
    whole = discrete.posterior_mean(log_odds), discrete.log_normalizer(log_odds)
    monkeypatch.setattr(discrete, "CPU_BLOCK", room)
    split = discrete.posterior_mean(log_odds), discrete.log_normalizer(log_odds)
    torch.testing.assert_close(split, whole, rtol=1e-13, atol=1e-13)


def peaked_and_flat(
    log_snr: float, n: int, sharp: float, B: int = 48, d: int = 40
) -> tuple[Tensor, ...]:
    """float32 odds of many kinds: z in and out of the levels, tilts of either sign, steep ones."""
    levels = discrete.level_values(n)
    z = noised(levels, torch.full((B,), log_snr, dtype=torch.float64), event=(d,)).float()
    z[:8] *= 3
    lam = torch.tensor(log_snr, dtype=torch.float64)
    log_prior = prior(levels, event=(d,), sharp=sharp)
    c, alpha, beta = discrete.noise_odds(log_prior, levels, z, lam.expand(B, 1))[2:5]
    w = max(1 / math.sqrt(3 + math.exp(log_snr)), 1 / n)
    alpha[16:] += 2 * normal(5, B - 16, d).float() / w
    alpha[40:] *= 10
    beta = beta.expand_as(z).clone()
    beta[24:] += 0.5 * normal(6, B - 24, d).float().clamp_max(1) / w**2
    return log_prior, levels, c, alpha, beta


@pytest.mark.parametrize("n, sharp", [(256, 0.5), (256, 3.0), (100, 2.0), (64, 1.0)])
@pytest.mark.parametrize("log_snr", [-10.0, -2.0, 0.0, 1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 60.0])
def test_moments_of_even_levels_are_as_accurate(log_snr: float, n: int, sharp: float) -> None:
    log_prior, levels, c, alpha, beta = peaked_and_flat(log_snr, n, sharp)
    assert EvenLevels.serves(log_prior, levels)
    got = EvenLevels(log_prior, levels).moments(c, alpha, beta, spread=True)
    (alone,) = EvenLevels(log_prior, levels).moments(c, alpha, beta, spread=False)
    torch.testing.assert_close(alone, got[0], rtol=1e-6, atol=1e-6)
    delta = levels - c.double().unsqueeze(-1)
    p = log_prior + (alpha.double().unsqueeze(-1) + beta.double().unsqueeze(-1) * delta) * delta
    p = p.softmax(-1)
    mean = (p * delta).sum(-1)
    centred = delta - mean.unsqueeze(-1)
    variance, skew = (p * centred**2).sum(-1), (p * centred**3).sum(-1)
    scale = variance.sqrt().clamp_min(2 / (n - 1))  # nothing is known to less than a level
    errors = [
        (got[0] - mean) / scale,
        (got[1] - variance) / scale**2,
        (got[2] - skew - 2 * mean * variance) / (scale**3 + 2 * mean.abs() * scale**2),
    ]
    # float32's rounding of z is 6e-8 / scale standard deviations by itself
    for error, tolerance in zip(errors, (1e-4, 1e-4, 4e-4), strict=True):
        assert error.abs().max() < tolerance


def test_gauss_rules_are_exact_for_polynomials_and_for_few_levels() -> None:
    x = torch.linspace(-1, 1, 80, dtype=torch.float64)
    log_prior = prior(x, event=(5,), sharp=4.0)
    log_prior[4] = -36.0  # all but on three levels
    log_prior[4, [3, 40, 71]] = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    log_prior = log_prior.log_softmax(-1)
    for nodes, log_weights in even_levels.gauss_rules(log_prior, x, (4, 20)):
        M = nodes.shape[1]
        for degree in range(2 * M):
            chebyshev = torch.special.chebyshev_polynomial_t
            got = (log_weights.exp() * chebyshev(nodes, degree)).sum(-1)
            torch.testing.assert_close(
                got, log_prior.exp() @ chebyshev(x, degree), rtol=0, atol=1e-12
            )
        # and not of more
        degree = 2 * M
        got = (log_weights.exp() * chebyshev(nodes, degree)).sum(-1)
        assert (got - log_prior.exp() @ chebyshev(x, degree))[:4].abs().min() > 1e-8


def test_nan_stays_where_it_is() -> None:
    log_prior, levels, c, alpha, beta = peaked_and_flat(3.0, 256, 1.0)
    even = EvenLevels(log_prior, levels)
    alpha[5, 7] = math.nan
    for t in even.moments(c, alpha, beta, spread=True):
        assert t.isnan().nonzero().tolist() == [[5, 7]]


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by torch
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.without_noise)])
def test_posterior_mean_is_the_same_compiled_or_fast(compiled: bool) -> None:
    log_prior, levels, c, alpha, beta = peaked_and_flat(3.0, 256, 1.0, d=4)
    even = None if compiled else EvenLevels(log_prior, levels)

    def mean(a: Tensor, b: Tensor) -> Tensor:
        return discrete.posterior_mean(discrete.LogOdds(log_prior, levels, c, a, b), even)

    def slopes(function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        a, b = alpha.clone().requires_grad_(), beta.clone().requires_grad_()
        value = function(a, b)
        first = torch.autograd.grad(value.sum(), (a, b), create_graph=not compiled)
        if compiled:
            return value, *first
        return value, *first, *torch.autograd.grad(first[0].sum(), (a, b))

    tables, even = even, None
    expected = slopes(mean)
    even = tables
    got = slopes(torch.compile(mean, backend="aot_eager", fullgraph=True) if compiled else mean)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_denoiser_s_tables_are_of_the_prior_it_has() -> None:
    levels = discrete.level_values(256)
    scores = [
        DiscreteDenoiser(Wave(2), levels, prior(levels, seed), "tilt").float() for seed in (1, 2)
    ]
    z = normal(0, 3, *EVENT).float()
    before, after = (score.x_hat(z, 0.0) for score in scores)
    scores[0].load_state_dict(scores[1].state_dict())
    assert not torch.allclose(before, after, atol=1e-3)
    torch.testing.assert_close(scores[0].x_hat(z, 0.0), after)


def discrete_score(name: str, form: str, network: nn.Module | None = None, sharp: float = 2.0):
    levels = LEVELS[name]
    factor = 2 if form == "tilt" else len(levels)
    return DiscreteDenoiser(
        Wave(factor) if network is None else network, levels, prior(levels, sharp=sharp), form
    )


def tilt(score: DiscreteDenoiser, z: Tensor, lam: Tensor) -> Tensor:
    """T_jk of the class's docstring, (*batch, *event, n), from its words alone."""
    v = torch.exp(-lam).reshape(-1, *[1] * (z.dim() - 1))
    mu, s2 = score.data_mean, score.data_variance
    F = score.network((z - mu) / (s2 + v).sqrt(), lam)
    if score.form == "logits":
        return F.unflatten(1, (len(score.levels), -1)).movedim(1, -1)
    F1, F2 = F.chunk(2, 1)
    F2 = torch.where(F2 < 0, F2, torch.tanh(2 * F2) / 2)
    m = mu + s2 / (s2 + v) * (z - mu)
    w = torch.maximum((s2 * v / (s2 + v)).sqrt(), score.levels.diff().min() / 2)
    u = (score.levels - m.unsqueeze(-1)) / w.unsqueeze(-1)
    return F1.unsqueeze(-1) * u + F2.unsqueeze(-1) * u.square()


@pytest.mark.parametrize(
    "name, form",
    [("17", "tilt"), ("256", "tilt"), ("uneven", "tilt"), ("17", "logits"), ("uneven", "logits")],
)
def test_discrete_denoiser_is_bayes_rule_with_a_tilted_prior(name: str, form: str) -> None:
    score = discrete_score(name, form)
    lam = torch.linspace(-10, 14, 25, dtype=torch.float64)
    z = noised(score.levels, lam).requires_grad_()
    log_probs = naive_log_probs(score, z, lam, tilt(score, z, lam))
    x_hat = log_probs.exp() @ score.levels
    torch.testing.assert_close(score.x_hat(z, lam), x_hat, rtol=0, atol=1e-10)
    torch.testing.assert_close(score.log_probs(z, lam), log_probs, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(score.posterior(z, lam).mean, x_hat, rtol=0, atol=1e-10)
    weights = torch.exp(-lam / 2).reshape(-1, 1, 1) * normal(3, *z.shape)
    wanted = [z, *score.network.parameters()]
    got = torch.autograd.grad((score.x_hat(z, lam) * weights).sum(), wanted)
    expected = torch.autograd.grad((x_hat * weights).sum(), wanted)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("form", ["tilt", "logits"])
def test_x_hat_passes_gradcheck_in_z_log_snr_and_network(form: str) -> None:
    score = discrete_score("uneven", form)
    lam = torch.tensor([-4.0, 0.0, 3.0, 6.0], dtype=torch.float64)
    z = noised(score.levels, lam)
    z[0, 0, 0], z[1, 0, 0] = 3.0, -2.0  # outside the levels too
    score.network.requires_grad_(False)

    def x_hat(z: Tensor, lam: Tensor, size: Tensor) -> Tensor:
        return torch.func.functional_call(score, {"network.size": size}, (z, lam))

    score.forward = score.x_hat
    size = torch.tensor(0.7, dtype=torch.float64)
    inputs = tuple(t.requires_grad_() for t in (z, lam, size))
    assert torch.autograd.gradcheck(x_hat, inputs)


@pytest.mark.parametrize("name, form", [("17", "tilt"), ("256", "tilt"), ("17", "logits")])
def test_float32_agrees_with_float64_from_low_to_high_snr(name: str, form: str) -> None:
    score = discrete_score(name, form, Wave(2 if form == "tilt" else len(LEVELS[name]), 0.4))
    lam = torch.linspace(-10, 16, 131, dtype=torch.float64)
    z = noised(score.levels, lam).float().double()
    scale = torch.exp(lam / 2).clamp_min(1).reshape(-1, 1, 1)
    values, slopes = [], []
    for dtype in (torch.float64, torch.float32):
        zs = z.to(dtype).requires_grad_()
        x_hat = score.x_hat(zs, lam)
        assert x_hat.dtype == dtype
        values.append(x_hat.detach().double())
        slopes.append(torch.autograd.grad((x_hat * scale.to(dtype)).sum(), zs)[0].double())
    # errors in units of the noise's standard deviation, which the loss sees
    assert ((values[1] - values[0]).abs() * scale).max() < 2e-2
    assert ((values[1] - values[0]).abs() * scale).quantile(0.98) < 1e-3
    error = (slopes[1] - slopes[0]).abs() / (scale + slopes[0].abs())
    assert error.max() < 2e-2
    assert error.quantile(0.98) < 1e-3


def test_float32_decides_ties_between_levels_as_float64_does() -> None:
    """Where odds are sharpest: z between two levels, an e^16 times a difference of 1e-8 away."""
    levels = LEVELS["256"]
    score = DiscreteDenoiser(Zero(2), levels, prior(levels, event=(255,), sharp=0.3), "tilt")
    lam = torch.linspace(10, 16, 25, dtype=torch.float64)
    gap = levels.diff()
    # log-odds of about ±1 between the neighbours
    shift = normal(1, 25, 255) * torch.exp(-lam)[:, None] / gap
    z = ((levels[:-1] + levels[1:]) / 2 + shift).float()
    exact, got = score.x_hat(z.double(), lam), score.x_hat(z, lam)
    assert ((got.double() - exact).abs() / gap).max() < 3e-3


@pytest.mark.parametrize("sharp", [2.0, 0.1])
def test_float32_gradients_to_the_tilt(sharp: float) -> None:
    score = discrete_score("256", "tilt", sharp=sharp)
    lam = torch.linspace(-10, 16, 131, dtype=torch.float64)
    z = noised(score.levels, lam).float().double()
    x = noised(score.levels, lam * 0 + 60.0)  # the level z was noised from
    gradients = []
    for dtype in (torch.float64, torch.float32):
        F = (0.3 * normal(4, len(lam), 2 * EVENT[0], EVENT[1])).float().to(dtype).requires_grad_()
        x_hat = DiscreteDenoiser(Constant(F), score.levels, score.log_prior, "tilt").x_hat(
            z.to(dtype), lam
        )
        loss = (0.5 * lam.exp().to(dtype)[:, None, None] * (x.to(dtype) - x_hat).square()).sum()
        gradients.append(torch.autograd.grad(loss, F)[0].double())
    error = (gradients[1] - gradients[0]).abs() / (1 + gradients[0].abs())
    assert error.max() < 3e-2
    assert error.quantile(0.98) < 2e-3


@pytest.mark.parametrize("name", LEVELS)
def test_any_tilt_at_any_noise_keeps_x_hat_between_the_levels(name: str) -> None:
    lam = torch.linspace(-12, 18, 61, dtype=torch.float64)
    for size in (1.0, 30.0, 1e4):
        F = size * normal(9, len(lam), 2 * EVENT[0], EVENT[1])
        score = discrete_score(name, "tilt", Constant(F))
        x_hat = score.x_hat(noised(score.levels, lam).float(), lam)
        assert x_hat.isfinite().all()
        assert x_hat.min() >= score.levels[0] - 1e-5 and x_hat.max() <= score.levels[-1] + 1e-5


def test_nothing_with_a_level_axis_is_kept_for_backward() -> None:
    n, B, d = 256, 8, 6
    score = discrete_score("256", "tilt")
    lam = torch.linspace(-5, 13, B, dtype=torch.float64)
    z = noised(score.levels, lam)
    sizes: list[int] = []

    def pack(t: Tensor) -> Tensor:
        sizes.append(t.numel())
        return t

    likelihood = DiscretizedGaussian(score.levels, score.log_prior)
    diffusion = VPSDE(max_log_snr=2.0)
    y = (normal(2, B, 1, *EVENT)).requires_grad_()
    x = score.levels[torch.randint(n, (B, *EVENT), generator=torch.Generator().manual_seed(0))]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = score.x_hat(z, lam).sum() + likelihood(diffusion, score, y).log_prob(x).sum()
    loss.backward()
    assert sizes and max(sizes) <= 4 * B * d


@pytest.mark.parametrize("form", ["tilt", "logits"])
@pytest.mark.parametrize("name", LEVELS)
def test_at_zero_output_the_discrete_denoiser_is_its_baseline(name: str, form: str) -> None:
    factor = 2 if form == "tilt" else len(LEVELS[name])
    score = discrete_score(name, form, Zero(factor))
    lam = torch.linspace(-8, 14, 23, dtype=torch.float64)
    z = noised(score.levels, lam)
    torch.testing.assert_close(score.x_hat(z, lam), score.baseline_x_hat(z, lam))
    torch.testing.assert_close(
        score.baseline_x_hat(z, lam), naive_log_probs(score, z, lam, 0.0).exp() @ score.levels
    )


def quad_kl(log_prior: np.ndarray, levels: np.ndarray, k: int, lam: float) -> float:
    t = math.exp(lam / 2) * (levels[k] - levels)

    def integrand(e: float) -> float:
        log_mixture = np.logaddexp.reduce(log_prior - 0.5 * (t + e) ** 2)
        return -math.exp(-e * e / 2) / math.sqrt(2 * math.pi) * (e * e / 2 + log_mixture)

    cuts = np.linspace(-9, 9, 37)
    return sum(
        integrate.quad(integrand, a, b, epsabs=1e-12, epsrel=1e-12, limit=200)[0]
        for a, b in pairwise(cuts)
    )


@pytest.mark.parametrize("n", [17, 256])
def test_baseline_kl_by_quadrature(n: int) -> None:
    levels = discrete.level_values(n)
    g = torch.Generator().manual_seed(n)
    sparse = -25.0 * (torch.rand(n, generator=g, dtype=torch.float64) > 0.1)
    two = torch.full((n,), -20.0, dtype=torch.float64)
    two[n // 2 - 1], two[n // 2 + 1] = 0.0, -3.0
    log_prior = torch.stack([*prior(levels, event=(1,), sharp=3.0), sparse, two]).log_softmax(-1)
    pairs = (0, 0), (0, n - 1), (1, n // 3), (1, n // 2), (2, n // 2 - 1), (2, n // 2)
    for lam in (-10.0, -3.0, 0.0, 2.0, 4.0, 5.5, 7.0, 8.5, 10.0, 12.0, 14.0):
        got = discrete.mixture_kl(log_prior, levels, lam)
        for j, k in pairs:
            expected = quad_kl(log_prior[j].numpy(), levels.numpy(), k, lam)
            assert got[j, k].item() == pytest.approx(expected, abs=2e-9)


def test_baseline_kl_that_was_found_before_is_that_of_the_prior_there_is(monkeypatch) -> None:
    score, other = discrete_score("17", "logits"), discrete_score("17", "logits")
    other.log_prior.copy_((3 * other.log_prior).log_softmax(-1))
    x = score.levels[torch.randint(17, (6, *EVENT))]
    first, second = score.baseline_kl(x, 2.0), other.baseline_kl(x, 2.0)
    assert (first != second).all()
    part = score.baseline_kl(x[:3].flip(0), 2.0)
    torch.testing.assert_close(part, first[:3].flip(0))
    score.load_state_dict(other.state_dict())
    torch.testing.assert_close(score.baseline_kl(x, 2.0), second)
    monkeypatch.setattr("pyro_mdm.levels.denoiser.KL_TABLES_BYTES", 1)
    for log_snr in (1.0, 2.0, 3.0):
        score.baseline_kl(x, log_snr)
    tables = cached_on(score.log_prior, "divergences", lambda _: {})
    assert [key[0] for key in tables] == [3.0]


def test_baseline_kl_takes_one_log_snr_per_datum() -> None:
    score = discrete_score("17", "tilt", Zero(2))
    x = score.levels[torch.randint(17, (4, *EVENT), generator=torch.Generator().manual_seed(1))]
    lam = torch.tensor([3.0, -2.0, 3.0, 7.0], dtype=torch.float64)
    one_by_one = torch.cat([score.baseline_kl(x[i : i + 1], lam[i].item()) for i in range(4)])
    torch.testing.assert_close(score.baseline_kl(x, lam), one_by_one)
    gaussian = Denoiser(Zero(), torch.zeros(EVENT), torch.full(EVENT, 0.5))
    one_by_one = torch.cat([gaussian.baseline_kl(x[i : i + 1], lam[i].item()) for i in range(4)])
    torch.testing.assert_close(gaussian.baseline_kl(x, lam), one_by_one)


@pytest.mark.parametrize("name", ["17", "256", "uneven", "gaussian"])
def test_baseline_integrals_are_differences_of_baseline_kl(name: str, monkeypatch) -> None:
    monkeypatch.setattr("pyro_mdm.scores.denoiser.DATA_AT_ONCE", 4)
    if name == "gaussian":
        score: DenoiserScore = Denoiser(Zero(), torch.randn(EVENT), 0.5 + torch.rand(EVENT))
        x = torch.randn(10, *EVENT)
    else:
        score = discrete_score(name, "tilt", Zero(2))
        x = score.levels[torch.randint(len(score.levels), (10, *EVENT))]
    edges = torch.tensor([-8.0, -1.0, 0.0, 2.5, 13.0], dtype=torch.float64)
    at_edges = torch.stack([score.baseline_kl(x, edge) for edge in edges], 1)
    parts = [score.baseline_integrals(x, edges, dims) for dims in (slice(0, 4), slice(4, 6))]
    # a table's quadrature is good to 1e-9 for each dimension, and depends on the others
    torch.testing.assert_close(sum(parts), at_edges.diff(dim=1), rtol=1e-9, atol=1e-8)
    if name == "gaussian":
        one = Denoiser(Zero(), 0.3, 2.0)  # of any shape
        both = torch.stack([one.baseline_kl(x, edge) for edge in edges], 1)
        torch.testing.assert_close(one.baseline_integrals(x, edges, slice(0, 6)), both.diff(dim=1))


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_discrete_data_has_the_score_of_the_mixture(name: str) -> None:
    diffusion = DIFFUSIONS[name]()
    score = discrete_score("uneven", "tilt", Zero(2))
    _, y, s = state(diffusion, n=6)
    marginal = diffusion.marginal(s)
    y.requires_grad_()
    L = marginal.scale_tril[:, None, None, None]
    residual = y.movedim(1, -1).unsqueeze(-2) - marginal.mean[
        :, None, None, None
    ] * score.levels.unsqueeze(-1)
    white = torch.linalg.solve_triangular(
        L.expand(*residual.shape, -1), residual.unsqueeze(-1), upper=False
    )
    log_density = score.log_prior - 0.5 * white.squeeze(-1).square().sum(-1)
    (exact,) = torch.autograd.grad(log_density.logsumexp(-1).sum(), y)
    got = score.score(diffusion, y.detach(), s)
    size = exact.abs().amax((1, 2, 3), keepdim=True)
    assert ((got - exact).abs() / size).max() < 1e-6


def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits in [-1, 1], 17 levels: training images, every tenth for test."""
    x = torch.tensor(load_digits().images).unsqueeze(1).float() / 8 - 1
    test = torch.arange(len(x)) % 10 == 0
    return x[~test], x[test]


def test_histogram_of_the_digits_generalizes() -> None:
    train, test = digits()
    score = DiscreteDenoiser.fit(Zero(17), train, levels=17)
    assert score.form == "logits" and score.event_shape == (1, 8, 8)
    bits = bits_per_dim(score.baseline_log_prob(test).mean(), 64).item()
    assert bits == pytest.approx(2.413, abs=0.005)
    # with little data, better than any number of equal pseudo-counts
    few = train[:200]
    bits = bits_per_dim(DiscreteDenoiser.fit(Zero(17), few, 17).baseline_log_prob(test).mean(), 64)
    index = discrete.level_index(few.reshape(-1, 64), score.levels)
    held = discrete.level_index(test.reshape(-1, 64), score.levels)
    for pseudo, margin in ((0.01, 0.02), (0.1, 0.0), (1.0, 0.0), (10.0, 0.05)):
        counts = torch.nn.functional.one_hot(index, 17).double().sum(0) + pseudo
        plain = (counts / counts.sum(1, keepdim=True)).log2()[torch.arange(64), held]
        assert bits < -plain.mean() - margin


def test_smoothed_histogram_is_a_distribution_and_finds_the_truth() -> None:
    levels = LEVELS["uneven"]
    truth = prior(levels, event=(3,), sharp=1.0)
    k = torch.multinomial(truth.exp(), 20000, True, generator=torch.Generator().manual_seed(0))
    estimate = discrete.smoothed_histogram(levels[k].mT, levels)
    torch.testing.assert_close(estimate.logsumexp(-1), torch.zeros(3, dtype=torch.float64))
    error = (estimate.exp() - truth.exp()) / (truth.exp() / 20000).sqrt()
    assert error.abs().max() < 4


def test_even_levels_are_found_as_uneven_ones_are() -> None:
    values = torch.linspace(-1.0, 1.0, 7, dtype=torch.float64)
    k = torch.randint(7, (50, 3))
    x = values[k].float()
    bent = torch.cat([values[:-1], values[-1:] + 0.5])  # a search
    assert torch.equal(discrete.level_index(x, values), k)
    assert torch.equal(discrete.level_index(bent[k].float(), bent), k)
    for bad in (0.1, 5.0, -5.0, float("nan"), float("inf")):
        for levels in (values, bent):
            with pytest.raises(ValueError, match="off the levels"):
                discrete.level_index(torch.tensor([0.0, bad]), levels)


def test_buffers_stay_in_float64_and_survive_saving() -> None:
    score = discrete_score("17", "tilt")
    score.set_trained_range(-3.0, 9.0)
    score.half()
    assert score.log_prior.dtype == torch.float64 and score.levels.dtype == torch.float64
    assert next(score.network.parameters()).dtype == torch.float16
    assert torch.equal(score.log_prior, discrete_score("17", "tilt").log_prior)
    other = DiscreteDenoiser(Wave(2), 17, torch.full((*EVENT, 17), -math.log(17)), "tilt")
    other.load_state_dict(score.state_dict())
    assert torch.equal(other.log_prior, score.log_prior)
    assert torch.equal(other.data_mean, score.data_mean)
    with pytest.raises(ValueError, match=r"9\.5 is outside"):
        other.check_log_snr(9.5)


@pytest.mark.parametrize("form", ["tilt", "logits"])
@pytest.mark.parametrize("name", ["vpsde", "cld", "alda"])
def test_shapes_types_gradients_and_batches(name: str, form: str) -> None:
    assert_shapes_types_and_gradients(discrete_score("17", form), DIFFUSIONS[name]())


BAD = [
    (lambda: discrete_score("17", "tilt", Zero(1)).x_hat(X, 1.0), r"Zero returned \(4, 2"),
    (lambda: discrete_score("17", "logits", Zero(2)).x_hat(X, 1.0), "out_channels=34"),
    (lambda: discrete_score("17", "tilt").x_hat(torch.zeros(4, 3, 3), 1.0), r"z has shape \(4, 3"),
    (lambda: discrete_score("17", "tilt").baseline_log_prob(X + 0.03), "x holds 0.03 .*24 of"),
    (lambda: DiscreteDenoiser(Zero(2), 17, torch.zeros(3, 16)), r"shape \(3, 16\), expected"),
    (lambda: DiscreteDenoiser(Zero(2), 17, torch.zeros(3, 17)), "not normalized.*2.83"),
    (lambda: DiscreteDenoiser(Zero(2), 2, torch.tensor([[-math.inf, 0.0]])), "holds -inf"),
    (lambda: discrete.level_values([0.0, 2.0, 1.0]), "increasing"),
    (
        lambda: discrete_score("17", "tilt").baseline_kl(
            X, torch.zeros(4, dtype=torch.float64, requires_grad=True)
        ),
        "no gradient in log_snr",
    ),
]


def test_bad_input_is_named() -> None:
    refused(ValueError, *BAD)
