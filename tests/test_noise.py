"""Noise of other laws, nonlinear operators, and measurements as sites: held to exact answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_mdm import VPSDE
from pyro_mdm.diffusions.posterior import posterior
from pyro_mdm.measurements import (
    Clipped,
    Matrix,
    MeasuredDenoiser,
    NonlinearOperator,
    Quantized,
    condition_on_measurements,
    twisted_smc,
)
from pyro_mdm.measurements.laws import Law, gaussian_sites, likeliest
from pyro_mdm.samplers import Ancestral
from tests.gradients import assert_gradients
from tests.problems import D, GaussianMixture, fixed, normal, program
from tests.problems import ExactDenoiser as Exact
from tests.problems import correlated as gaussian

OWN: dict[str, Any] = {"covariance_from": -math.inf, "max_iterations": 20}
LEVELS = torch.tensor([-1.0, 0.0, 0.5, 2.0], dtype=torch.float64)

LAWS: dict[str, tuple[Law, float]] = {
    "poisson": (lambda u: dist.Poisson(8 * u.clamp_min(0)), 14.0),
    "laplace": (lambda u: dist.Laplace(u, 0.3), -0.6),
    "quantized": (lambda u: Quantized(u, LEVELS, 0.1), 0.5),
    "quantized without noise": (lambda u: Quantized(u, LEVELS), 0.5),
    "clipped": (lambda u: Clipped(u, 0.2, -0.5, 0.5), 0.5),
    "two signs": (lambda u: dist.Normal(u.abs(), 0.3), 0.8),
}


# -- laws ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, 0.7])
def test_quantized_values_have_their_probabilities(scale: float) -> None:
    u, n = torch.tensor([-3.0, 0.2, 0.24, 0.26, 1.0]).double(), 4000
    law = Quantized(u, LEVELS, scale)
    p = law.log_prob(LEVELS[:, None].expand(4, 5)).exp()
    torch.testing.assert_close(p.sum(0), torch.ones(5).double())
    drawn = law.sample((n,))
    often = (drawn == LEVELS[:, None, None]).double().mean(1)
    assert bool(((often - p).abs() <= 4.5 * (p * (1 - p) / n).sqrt()).all())
    if not scale:
        assert p.argmax(0).tolist() == [0, 1, 1, 2, 2]
    far = Quantized(torch.tensor([50.0]).double(), LEVELS, 1.0).log_prob(LEVELS[:1])
    assert far == pytest.approx(-0.5 * 50.5**2 - math.log(50.5 * math.sqrt(2 * math.pi)), abs=1e-3)
    assert law.expand((2, 5)).sample().shape == (2, 5)


def test_clipped_values_have_their_probabilities() -> None:
    u, n = torch.tensor([-2.0, 0.2, 0.9]).double(), 4000
    law = Clipped(u, 0.7, -1.0, 0.5)
    inside = torch.linspace(-1, 0.5, 2002).double()[1:-1, None].expand(-1, 3)
    ends = torch.tensor([[-1.0], [0.5]]).double().expand(2, 3)
    at_ends = law.log_prob(ends).exp()
    whole = at_ends.sum(0) + law.log_prob(inside).exp().sum(0) * 1.5 / 2001
    torch.testing.assert_close(whole, torch.ones(3).double(), rtol=0, atol=2e-3)
    often = (law.sample((n,)) == ends[:, None]).double().mean(1)
    assert bool(((often - at_ends).abs() <= 4.5 * (at_ends * (1 - at_ends) / n).sqrt()).all())
    assert law.expand((2, 3)).sample().shape == (2, 3)


def moments(law: Law, obs: float, mean: float, variance: float) -> tuple[float, float, float]:
    """log p(obs), mean and variance of u given obs, by a fine grid."""
    s = math.sqrt(variance)
    u = torch.linspace(-12 * s - 4, 12 * s + 4, 2**20 + 1, dtype=torch.float64) + mean
    log_p = law(u).log_prob(torch.tensor(obs).double()) + dist.Normal(mean, s).log_prob(u)
    w = log_p.softmax(0)
    m = (w * u).sum()
    return (
        float(log_p.logsumexp(0) + (u[1] - u[0]).log()),
        float(m),
        float((w * (u - m).square()).sum()),
    )


@pytest.mark.parametrize("name", LAWS)
def test_sites_have_the_moments_of_their_law(name: str) -> None:
    """From wide laws of u to narrow ones that are far from obs; clamped where u became wider."""
    law, value = LAWS[name]
    for mean, variance in ((0.3, 4.0), (-0.2, 0.5), (1.1, 0.05), (2.5, 0.02), (0.6, 1e-4)):
        log_Z, m, V = moments(law, value, mean, variance)
        at = torch.tensor([[mean]]).double(), torch.tensor([[variance]]).double()
        obs = torch.tensor([[value]]).double()
        peak = likeliest(law, obs, torch.zeros(1).double(), torch.ones(1).double())
        sites = gaussian_sites(law, obs, *at, peak)
        r, y, total = float(sites.variance), float(sites.obs), float(sites.variance) + variance
        assert mean + (y - mean) * variance / total == pytest.approx(
            m, abs=0.1 * V**0.5 + 0.02 * variance**0.5
        )
        assert float(sites.log_p) - 0.5 * (y - mean) ** 2 / total == pytest.approx(log_Z, abs=0.2)
        if 0.99 * variance > V:
            assert 1 / (1 / variance + 1 / r) == pytest.approx(V, rel=0.05)
        else:
            assert r >= 99 * variance


# -- the denoiser ----------------------------------------------------------------------------------

OPERATORS: dict[str, Callable[[], Any]] = {
    "few": lambda: Matrix(fixed(1, 2, D)),
    "many": lambda: Matrix(fixed(1, 6, D)),
}


@torch.no_grad()
@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("level", [-math.inf, math.inf])
def test_a_gaussian_law_is_its_variance(name: str, level: float) -> None:
    H = OPERATORS[name]()
    (m,) = H.obs_shape
    obs, variance = fixed(5, 3, m), 0.1 + fixed(6, m).square()
    options: dict[str, Any] = {"tolerance": 1e-12, "max_iterations": 20, "covariance_from": level}
    found = [
        MeasuredDenoiser(Exact(gaussian()), H, obs, noise, **options)
        for noise in (variance, lambda u: dist.Normal(u, variance.sqrt()))
    ]
    z, log_snr = normal(0, 3, D), torch.tensor([-4.0, 0.0, 5.0]).double()
    each = [score.x_hat(z, log_snr) for score in found]
    torch.testing.assert_close(*each, rtol=1e-7, atol=1e-7)
    kept = torch.tensor([2, 0])
    of_rows = found[1].for_rows(kept).x_hat(z[kept], log_snr[kept])
    torch.testing.assert_close(of_rows, each[1][kept])


def test_a_law_has_derivatives() -> None:
    scale = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    z = normal(0, 2, D)
    z.requires_grad_()
    score = MeasuredDenoiser(
        Exact(gaussian()),
        Matrix(fixed(1, 2, D)),
        torch.tensor([0.3, -0.5]),
        lambda u: dist.StudentT(3.0, u, scale),
        tolerance=1e-12,
        **OWN,
    )
    assert_gradients(lambda: score.x_hat(z, torch.zeros(2)).sum(), [scale, z], h=1e-4, rel=1e-3)


# -- weighted samples ------------------------------------------------------------------------------


def chain_on_a_grid(model: Any, steps: int) -> tuple[Tensor, Tensor]:
    """Data x (N,) and their probabilities under the ancestral chain of one dimension."""
    diffusion = model.diffusion
    times = Ancestral(steps).times(diffusion)
    kernels = posterior(diffusion, times[:-1], times[1:])
    y = torch.linspace(-6, 6, 2001).double()
    p = dist.Normal(0.0, float(diffusion.prior_covariance) ** 0.5).log_prob(y).softmax(0)
    for i in range(steps):
        kernel = kernels.at(i)
        x_hat = model.score_function.denoise(diffusion, y[:, None, None], times[i])[:, 0]
        mean = float(kernel.gain) * y + float(kernel.mean_coefficient) * x_hat
        p = p @ dist.Normal(mean[:, None], float(kernel.covariance) ** 0.5).log_prob(y).softmax(1)
    law = model.likelihood(diffusion, model.score_function, y[:, None, None], 1)
    return y, p @ dist.Normal(law.mean, law.variance.sqrt()).log_prob(y).softmax(1)


def one_dimension() -> GaussianMixture:
    """Two parts."""
    return GaussianMixture(
        [0.6, 0.4], torch.tensor([[-0.6], [0.9]]), torch.tensor([[[0.1]], [[0.2]]])
    )


def squared(x: Tensor) -> Tensor:
    return torch.cat([x, x.square()], -1)


EACH = {name: (torch.ones(1, 1).double(), *law) for name, law in LAWS.items()}
EACH["squares"] = (NonlinearOperator(squared, (1,)), lambda u: dist.Normal(u, 0.4), 0.6)
EACH["counts of exponentials"] = (
    NonlinearOperator(torch.exp, (1,)),
    lambda u: dist.Poisson(3 * u.clamp_min(0)),
    5.0,
)


@torch.no_grad()
@pytest.mark.parametrize("name", EACH)
def test_twisted_particles_have_the_posterior_of_any_noise(name: str) -> None:
    """Of a mixture, by a chain of few steps whose law is computed on a grid.

    Of 32 repeats an estimate is more than 5.5 of its own standard errors off 5 times in a million.
    """
    H, law, value = EACH[name]
    model, steps = program(one_dimension(), VPSDE(max_log_snr=6.0, min_log_snr=-7.0)), 8
    x, p = chain_on_a_grid(model, steps)
    clean = H(x[:, None]) if callable(H) else x[:, None]
    obs = torch.full((clean.shape[1],), value).double()
    log_joint = p.log() + law(clean).log_prob(obs).sum(-1)
    evidence, w = float(log_joint.logsumexp(0)), log_joint.softmax(0)
    mean = float(w @ x)
    spread = float(w @ (x - mean).square()) ** 0.5
    torch.manual_seed(3)
    given = condition_on_measurements(model, H, obs, law, **OWN)
    found = twisted_smc(given, 128, steps=steps, repeats=32)
    value, error = found.log_evidence
    assert abs(value - evidence) < 5.5 * error < 0.5
    mean_found, of_mean = (float(t) for t in found.posterior_mean)
    assert abs(mean_found - mean) < 5.5 * of_mean < 0.4 * spread
