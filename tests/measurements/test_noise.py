"""Noise of other laws, nonlinear operators, and measurements as sites: held to exact answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.special import log_ndtr

from pyro_mdm import MDM, VPSDE, Denoiser, DiffusionModel
from pyro_mdm.diffusions.posterior import posterior
from pyro_mdm.measurements import (
    Blur,
    Clipped,
    FunctionOperator,
    Mask,
    Matrix,
    MeasuredDenoiser,
    Measurement,
    NonlinearOperator,
    Quantized,
    condition_on_measurements,
    twisted_smc,
)
from pyro_mdm.measurements.laws import Law, gaussian_sites, likeliest
from pyro_mdm.networks import MLP
from pyro_mdm.paths.flow import Solver
from pyro_mdm.pretrained import PretrainedError
from pyro_mdm.samplers import Ancestral
from tests.chains import chain_problem
from tests.gradients import assert_gradients
from tests.mistakes import refused
from tests.problems import (
    ENDS,
    D,
    ExactDenoiser as Exact,
    GaussianMixture,
    correlated as gaussian,
    fixed,
    given_measurement,
    normal,
    program,
)

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
    assert bool(((often - p).abs() <= 5.5 * (p * (1 - p) / n).sqrt()).all())
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
    assert bool(((often - at_ends).abs() <= 5.5 * (at_ends * (1 - at_ends) / n).sqrt()).all())
    assert law.expand((2, 3)).sample().shape == (2, 3)


BOTH = [torch.float32, torch.float64]


@pytest.mark.parametrize("of_data", BOTH, ids=["data32", "data64"])
@pytest.mark.parametrize("of_loc", BOTH, ids=["loc32", "loc64"])
@pytest.mark.parametrize("end", [0.1, 0.3, 0.7, -0.1, -0.7])
def test_ends_and_levels_are_met_in_any_precision(
    end: float, of_loc: torch.dtype, of_data: torch.dtype
) -> None:
    """Measured in float32 and computed with in float64, 0.1 is 0.10000000149."""
    ends, loc = torch.tensor([end, end + 1.0]), torch.tensor([end - 0.2, end + 1.3])
    p = log_ndtr(torch.tensor([0.4, 0.6]).double())
    data, loc = ends.to(of_data), loc.to(of_loc)
    clipped = Clipped(loc, 0.5, end, end + 1.0, validate_args=True)
    torch.testing.assert_close(clipped.log_prob(data).double(), p, rtol=0, atol=1e-5)
    assert bool(clipped.support.check(clipped.sample((99,)).to(of_data)).all())
    quantized = Quantized(loc, [end, end + 1.0], 0.5, validate_args=True)
    p = log_ndtr(torch.tensor([1.4, 1.6]).double())
    torch.testing.assert_close(quantized.log_prob(data).double(), p, rtol=0, atol=1e-5)


def moments(law: Law, obs: float, mean: float, variance: float) -> tuple[float, float, float]:
    """log p(obs), mean and variance of u given obs, by a fine grid."""
    s = math.sqrt(variance)
    u = torch.linspace(-12 * s - 4, 12 * s + 4, 2**16 + 1, dtype=torch.float64) + mean
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
        assert float(sites.log_p) - 0.5 * (y - mean) ** 2 / total == pytest.approx(log_Z, abs=0.4)
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
    options: dict[str, Any] = {"max_iterations": 20, "covariance_from": level}
    found = [
        MeasuredDenoiser(Exact(gaussian()), H, obs, noise, **options)
        for noise in (variance, lambda u: dist.Normal(u, variance.sqrt()))
    ]
    z, log_snr = normal(0, 3, D), torch.tensor([-4.0, 0.0, 5.0]).double()
    each = [score.x_hat(z, log_snr) for score in found]
    torch.testing.assert_close(*each, rtol=1e-3, atol=1e-3)  # twenty iterations of a search
    same = torch.zeros(3).double()  # where measurements have one variance given any z
    fits = [score.given_obs(z, same).fit for score in found]
    apart = fits[1] - fits[0]  # the constants of the law
    torch.testing.assert_close(apart, apart[:1].expand(3), rtol=1e-6, atol=1e-6)
    kept = torch.tensor([2, 0])
    of_rows = found[1].for_rows(kept).x_hat(z[kept], log_snr[kept])
    torch.testing.assert_close(of_rows, each[1][kept])


@torch.no_grad()
@pytest.mark.parametrize("name", LAWS)
def test_guidance_by_one_observation_is_exact_for_gaussian_data(name: str) -> None:
    """Whatever the law; and by many, if dimensions do not depend on each other."""
    law, value = LAWS[name]
    problem, log_snr = gaussian(), torch.tensor([1.0]).double()
    h, moved = fixed(1, 1, D), []
    score = MeasuredDenoiser(Exact(problem), Matrix(h), torch.tensor([value]), law, **OWN)
    C, noise = problem.covariance, torch.exp(-log_snr) * torch.eye(D)
    C = C - C @ torch.linalg.solve(C + noise, C)
    for z in normal(0, 8, 1, D):
        x_hat, Ch = Exact(problem).x_hat(z, log_snr)[0], C @ h[0]
        mean, variance = float(h[0] @ x_hat), float(h[0] @ Ch)
        _, m, V = moments(law, value, mean, variance)
        off = float(0.3 * (V / variance) ** 0.5 * Ch.abs().max())
        expected = x_hat + Ch / variance * (m - mean)
        assert float((score.x_hat(z, log_snr)[0] - expected).abs().max()) < off
        moved.append(float((expected - x_hat).abs().max()) / off)
    assert max(moved) > 0.7

    independent = GaussianMixture([1.0], torch.zeros(1, 6), 0.7 * torch.eye(6)[None])
    obs, all_seen, z = torch.full((6,), value), torch.ones(6).bool(), normal(2, 1, 6)
    score = MeasuredDenoiser(Exact(independent), Mask(all_seen), obs, law)
    x_hat, variance = Exact(independent).x_hat(z, log_snr)[0], 1 / (1 / 0.7 + math.e)
    known = torch.tensor([moments(law, value, float(u), variance)[1] for u in x_hat]).double()
    off = float((score.x_hat(z, log_snr)[0] - known).abs().max()) / variance**0.5
    assert off < 0.05


class PositiveRate(dist.Exponential):
    """An exponential law of which nothing is defined where the rate is not positive."""

    undefined: float

    def log_prob(self, value: Tensor) -> Tensor:
        log_p = super().log_prob(value)
        return torch.where(self.rate > 0, log_p, self.undefined)


@torch.no_grad()
def test_where_a_law_is_undefined_its_density_is_zero() -> None:
    """In guidance and in weights, as where it is refused or not."""

    def law(undefined: float) -> Law:
        def given(u: Tensor) -> PositiveRate:
            of_u = PositiveRate(u, validate_args=False)
            of_u.undefined = undefined
            return of_u

        return given

    H, obs, z = fixed(1, 2, D), torch.tensor([0.5, 2.0]), normal(0, 3, D)
    one, other = (
        MeasuredDenoiser(Exact(gaussian()), Matrix(H), obs, law(undefined), **OWN)
        for undefined in (math.nan, -math.inf)
    )
    found = one.x_hat(z, torch.zeros(3))
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found, other.x_hat(z, torch.zeros(3)))
    x = normal(1, 20, D)
    assert torch.equal(one.log_prob_of_obs(x), other.log_prob_of_obs(x))
    assert bool(one.log_prob_of_obs(x).eq(-math.inf).any())


def test_a_law_has_derivatives() -> None:
    scale = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    z = normal(0, 2, D)
    z.requires_grad_()
    score = MeasuredDenoiser(
        Exact(gaussian()),
        Matrix(fixed(1, 2, D)),
        torch.tensor([0.3, -0.5]).double(),
        lambda u: dist.StudentT(3.0, u, scale),
        **OWN,
    )
    log_snr = torch.zeros(2).double()
    assert_gradients(lambda: score.x_hat(z, log_snr).sum(), [scale, z], h=1e-6, rel=1e-3)


def counts(u: Tensor) -> dist.Poisson:
    return dist.Poisson(10 * u.clamp_min(0))


@torch.no_grad()
def test_a_law_is_saved_by_its_name(tmp_path: Path) -> None:
    model = DiffusionModel(VPSDE(), Denoiser(MLP(D, hidden=8)), event_shape=(D,))
    given = condition_on_measurements(model, fixed(1, 2, D), torch.tensor([3.0, 1.0]), counts)
    given.save_pretrained(tmp_path)
    again = DiffusionModel.from_pretrained(tmp_path, classes={"counts": counts})
    at = normal(0, 2, D).float(), torch.zeros(2)
    torch.testing.assert_close(*(m.score_function.x_hat(*at) for m in (given, again)))
    with pytest.raises(PretrainedError, match="pass classes="):
        DiffusionModel.from_pretrained(tmp_path)


class Falling(Exact):
    """A denoiser whose covariance has negative quadratic forms alone, which noise of measurements,
    also where H sees nothing, does not make positive."""

    def x_hat(self, z: Tensor, log_snr: Any) -> Tensor:
        return super().x_hat(z, log_snr) - 1e4 * (z - z.detach())


@torch.no_grad()
@pytest.mark.parametrize("name", OPERATORS)
def test_where_a_networks_covariance_is_negative_that_of_linear_estimates_serves(name: str) -> None:
    """For the widths of laws too, which would be 0 otherwise: then obs move nothing."""
    H, z, log_snr = OPERATORS[name](), normal(0, 3, D), torch.zeros(3)
    (m,) = H.obs_shape
    for noise in (0.3, lambda u: dist.Laplace(u, 0.3)):
        own, linear = (
            MeasuredDenoiser(Falling(gaussian()), H, fixed(5, m), noise, covariance_from=level)
            for level in (-math.inf, math.inf)
        )
        found = own.x_hat(z, log_snr)
        torch.testing.assert_close(found, linear.x_hat(z, log_snr))
        assert float((found - own.denoiser.x_hat(z, log_snr)).abs().max()) > 0.1


@torch.no_grad()
def test_torchs_inference_mode_changes_nothing() -> None:
    """Though guidance takes derivatives, of the network and of functions."""
    torch.manual_seed(0)
    model = DiffusionModel(VPSDE(), Denoiser(MLP(D, hidden=8)), event_shape=(D,))
    for p in model.parameters():
        p.data += 0.2 * torch.randn_like(p)

    def x_hats() -> list[Tensor]:
        operators: list[Any] = [
            fixed(1, 2, D),
            FunctionOperator(lambda x: 2 * x[:, :2], (D,)),
            NonlinearOperator(lambda x: x[:, :2].square(), (D,)),
        ]
        z, log_snr = normal(0, 3, D).float(), torch.zeros(3)
        laws = (0.3, lambda u: dist.Laplace(u, 0.3))
        return [
            condition_on_measurements(model, H, torch.ones(2), noise).score_function.x_hat(
                z, log_snr
            )
            for H in operators
            for noise in laws
        ]

    known = x_hats()
    with torch.inference_mode():
        found = x_hats()
    for one, other in zip(found, known, strict=True):
        assert torch.equal(one, other)


# -- weighted samples ------------------------------------------------------------------------------


def chain_on_a_grid(model: Any, steps: int) -> tuple[Tensor, Tensor]:
    """Data x (N,) and their probabilities under the ancestral chain of one dimension."""
    diffusion = model.diffusion
    times = Ancestral(steps).times(diffusion)
    kernels = posterior(diffusion, times[:-1], times[1:])
    y = torch.linspace(-6, 6, 801).double()
    p = dist.Normal(0.0, float(diffusion.prior_covariance) ** 0.5).log_prob(y).softmax(0)
    for i in range(steps):
        kernel = kernels.at(i)
        x_hat = model.score_function.denoise(diffusion, y[:, None, None], times[i])[:, 0]
        mean = float(kernel.gain) * y + float(kernel.mean_coefficient) * x_hat
        p = p @ dist.Normal(mean[:, None], float(kernel.covariance) ** 0.5).log_prob(y).softmax(1)
    law = model.likelihood(diffusion, model.score_function, y[:, None, None], 1)
    return y, p @ dist.Normal(law.mean, law.variance.sqrt()).log_prob(y).softmax(1)


@pytest.fixture(scope="module")
def chain() -> tuple[DiffusionModel, Tensor, Tensor]:
    """A model of a mixture of two parts, and the data and probabilities of its chain of 8 steps."""
    parts = torch.tensor([[-0.6], [0.9]]), torch.tensor([[[0.1]], [[0.2]]])
    problem = GaussianMixture([0.6, 0.4], *parts)
    model = program(problem, VPSDE(max_log_snr=6.0, min_log_snr=-7.0))
    with torch.no_grad():
        return model, *chain_on_a_grid(model, 8)


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
def test_twisted_particles_have_the_posterior_of_any_noise(name: str, chain: Any) -> None:
    """Of a mixture, by a chain of few steps whose law is computed on a grid.

    Of 32 repeats an estimate is more than 5.5 of its own standard errors off 5 times in a million.
    """
    H, law, value = EACH[name]
    model, x, p = chain
    clean = H(x[:, None]) if callable(H) else x[:, None]
    obs = torch.full((clean.shape[1],), value).double()
    log_joint = p.log() + law(clean).log_prob(obs).sum(-1)
    evidence, w = float(log_joint.logsumexp(0)), log_joint.softmax(0)
    mean = float(w @ x)
    spread = float(w @ (x - mean).square()) ** 0.5
    torch.manual_seed(3)
    given = condition_on_measurements(model, H, obs, law, **OWN)
    found = twisted_smc(given, 128, steps=8, repeats=32)
    value, error = found.log_evidence
    assert abs(value - evidence) < 5.5 * error < 0.5
    mean_found, of_mean = (float(t) for t in found.posterior_mean)
    assert abs(mean_found - mean) < 5.5 * of_mean < 1.5 * spread


# -- unknown noise and operators -------------------------------------------------------------------


@pytest.mark.slow
def test_unknown_noise_is_inferred_with_the_data() -> None:
    """By importance sampling, against quadrature with the law of the chain.

    Few particles, whose evidence is off by half a nat, do not bias the posterior.
    """
    H, steps, n = 0.7 * fixed(1, 10, D), 6, 50
    model = program(gaussian(), VPSDE(max_log_snr=5.0, min_log_snr=-4.0))
    chain = chain_problem(model, steps)
    drawn = chain.mean + torch.linalg.cholesky(chain.covariance) @ fixed(5, D)
    obs = H @ drawn + 0.5 * fixed(9, 10)
    prior = dist.LogNormal(torch.tensor(0.0).double(), 0.7)
    first = dist.LogNormal(torch.tensor(-0.8).double(), 0.4)

    def measured(obs: Tensor) -> None:
        sigma = pyro.sample("sigma", prior)
        given = Measurement(
            model, H, sigma**2, num_particles=128, steps=steps, covariance_from=-math.inf
        )
        pyro.sample("obs", given, obs=obs)
        pyro.deterministic("x", given.particles(obs)[0].resampled(1)[0])

    def guide(obs: Tensor) -> None:
        pyro.sample("sigma", first)

    sigma = torch.linspace(-4, 3, 400).double().exp()
    laws = [given_measurement(chain, H, obs, s.square().expand(10)) for s in sigma]
    w = (torch.stack([e for _, e in laws]) + prior.log_prob(sigma) + sigma.log()).softmax(0)
    known = torch.cat([(w @ sigma.log())[None], w @ torch.stack([law.mean for law, _ in laws])])
    pyro.set_rng_seed(0)
    runs = pyro.infer.Importance(measured, guide, num_samples=n).run(obs)
    w = runs.get_normalized_weights()
    sites = [run.nodes for run in runs.exec_traces]
    drawn = torch.stack(
        [torch.cat([s["sigma"]["value"].log()[None], s["x"]["value"]]) for s in sites]
    )
    found = w @ drawn
    error = (w.square() @ (drawn - found).square()).sqrt()
    assert bool(((found - known).abs() < 5.5 * error).all())
    assert float(error[0]) < 0.15, "0.05 to 0.1 mostly; the prior's mean is 1.0 off"


def test_a_measurement_is_a_site() -> None:
    """It is drawn with the data summed out; its particles are those of its evidence."""
    model = program(gaussian(), VPSDE(max_log_snr=5.0, min_log_snr=-4.0))
    width = torch.tensor(0.8).double()  # as a site draws it
    assert torch.equal(Blur((1, 4, 6), float(width)).matrix(), Blur((1, 4, 6), width).matrix())
    H, obs = fixed(1, 2, D), fixed(2, 3, 2)
    given = Measurement(model, H, 0.3, num_particles=4, steps=3)
    trace = poutine.trace(lambda: pyro.sample("obs", given.expand([3]), obs=obs)).get_trace()
    trace.compute_log_prob()
    found = given.particles(obs)
    evidence = torch.tensor([one.log_evidence.mean for one in found])
    torch.testing.assert_close(trace.nodes["obs"]["log_prob"], evidence.double())
    assert given.particles(obs) is found and given.particles(obs + 1) is not found
    obs += 1
    assert given.particles(obs) is not found
    torch.manual_seed(0)
    state = torch.get_rng_state()
    Measurement(model, H, lambda u: dist.Laplace(u, 0.3))
    assert torch.equal(torch.get_rng_state(), state)
    for noise in (0.3, lambda u: dist.Normal(u, 0.3**0.5)):
        drawn = Measurement(model, H, noise).sample((2000,))
        law = H @ gaussian().covariance @ H.mT + 0.3 * torch.eye(2)
        off = (drawn.T.cov() - law) / law.diagonal().sqrt() / law.diagonal().sqrt()[:, None]
        assert float(off.abs().max()) < 5.5 * math.sqrt(2 / 2000) + 0.02
    torch.manual_seed(0)
    exact = Measurement(model, H, 0).sample((3,))
    torch.manual_seed(0)
    assert torch.equal(exact, MDM(model).sample((3,)) @ H.mT)


def test_what_no_particle_can_have_given_has_evidence_zero() -> None:
    """Which is unbiased, so that a program goes on; and a measurement takes one chain alone."""
    model = program(gaussian(), VPSDE(max_log_snr=5.0, min_log_snr=-4.0))
    levels = torch.arange(30001) / 1e4
    given = Measurement(
        *(model, fixed(1, 2, D), lambda u: Quantized(u, levels)), num_particles=2, steps=16
    )
    obs = torch.tensor([3.0, 1.0])
    assert float(given.log_prob(obs)) == -math.inf
    (particles,) = given.particles(obs)
    assert particles.network_calls == 16 and particles.resampled(3).shape == (3, D)


@torch.no_grad()
def test_data_given_a_measurement_are_a_site_with_a_density() -> None:
    H, obs, noise = fixed(1, 2, D), torch.tensor([1.2, -0.8]), torch.tensor([0.1, 0.3]).double()
    law, _ = given_measurement(gaussian(), H, obs.double(), noise)
    model = program(gaussian(), VPSDE(max_log_snr=6.0, min_log_snr=-6.0))
    given = condition_on_measurements(model, H, obs, noise, **OWN)

    def larger() -> Tensor:
        x: Tensor = pyro.sample("x", MDM(given, solver=Solver("rk4", steps=16)))
        pyro.sample("sum", dist.Normal(x.sum(), 1.0), obs=torch.tensor(0.5).double())
        return x

    x = law.mean + torch.linalg.cholesky(law.covariance) @ fixed(4, D)
    trace = poutine.trace(poutine.condition(larger, {"x": x})).get_trace()
    found = trace.log_prob_sum() - dist.Normal(x.sum(), 1.0).log_prob(torch.tensor(0.5).double())
    assert float(found) == pytest.approx(float(law.log_prob(x)), abs=0.3)
    assert poutine.trace(larger).get_trace().nodes["x"]["value"].shape == (D,)


# -- operators that are not linear -----------------------------------------------------------------


def test_a_nonlinear_operator_is_linearized() -> None:
    operator, x = NonlinearOperator(squared, (D,)), normal(0, 3, D)
    J = torch.stack([torch.autograd.functional.jacobian(operator, one) for one in x])
    H = operator.linearized(x)
    v, u = normal(1, 3, D), normal(2, 3, 2 * D)
    torch.testing.assert_close(H.forward(v), torch.einsum("nij,nj->ni", J, v))
    torch.testing.assert_close(H.adjoint(u), torch.einsum("nij,ni->nj", J, u))
    torch.testing.assert_close(H.squares(), J.square().sum(2))  # each row has one entry
    matrix = Matrix(fixed(1, 2, D))
    assert matrix.squares.device.type == "cpu"
    assert matrix.linearized(torch.zeros(3, D, device="meta")).squares().is_meta
    unknown = torch.full((1, D), math.nan)
    assert operator.linearized(unknown).forward(v[:1]).isnan().any(), "a network's fault, not H's"
    matrix, obs, z = fixed(1, 6, D), fixed(2, 6), normal(0, 3, D)
    for noise in (0.3, lambda u: dist.Laplace(u, 0.3)):
        one, other = (
            MeasuredDenoiser(Exact(gaussian()), H, obs, noise, **OWN)
            for H in (Matrix(matrix), NonlinearOperator(lambda x: x @ matrix.mT, (D,)))
        )
        lam = torch.zeros(3).double()
        close = {"rtol": 1e-6, "atol": 1e-6 if noise == 0.3 else 0.3}
        torch.testing.assert_close(one.x_hat(z, lam), other.x_hat(z, lam), **close)


# -- what is refused -------------------------------------------------------------------------------


def measured(**changed: Any) -> Any:
    model = program(gaussian(), VPSDE(**ENDS))
    options = {"H": fixed(1, 2, D), "obs": torch.tensor([3.0, 1.0])}
    return condition_on_measurements(model, **options | changed)


def site(noise: Any) -> Measurement:
    return Measurement(program(gaussian(), VPSDE()), fixed(1, 2, D), noise)


def roots(x: Tensor) -> Tensor:
    return x.abs().sqrt()


def at_zero(function: Callable[[Tensor], Tensor]) -> Tensor:
    """Guidance where x̂ is 0 for the first of two data."""
    problem = GaussianMixture([1.0], torch.zeros(1, D), torch.eye(D)[None])
    score = MeasuredDenoiser(Exact(problem), NonlinearOperator(function, (D,)), torch.ones(D), 0.1)
    z = torch.arange(2.0).double()[:, None].expand(2, D)
    return score.x_hat(z, torch.zeros(2))


learned = torch.tensor(0.3, requires_grad=True)
MISTAKES: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: measured(noise=dist.Poisson),
        r"noise\(u\) fails for u from -.*dist.Poisson\(u.clamp_min",
    ),
    (
        lambda: measured(noise=LAWS["poisson"][0], obs=torch.tensor([3.0, -1.0])),
        "obs reaches from -1 to 3, which Poisson does not allow: .*correct obs or the law",
    ),
    (
        lambda: measured(noise=lambda u: dist.Normal(u, 1.0).to_event(1)),
        r"event shape \(2,\) for u of shape .*leave out .to_event",
    ),
    (lambda: measured(noise=lambda u: dist.Normal(u[..., :1], 1.0)), "of each entry of u"),
    (lambda: measured(noise=lambda u: u), r"noise\(u\) is a Tensor .*expected a distribution"),
    (
        lambda: measured(noise=lambda u: dist.Uniform(u + 50, u + 51, validate_args=False)),
        "log probability -inf whatever u is, from .*correct the units",
    ),
    (lambda: measured(noise="poisson"), "noise is 'poisson', expected a .*variances R of Gauss"),
    (lambda: Quantized(LEVELS, LEVELS.flip(0)), "expected at least two in ascending order"),
    (lambda: Quantized(LEVELS, LEVELS, -1.0), "scale reaches -1, expected finite"),
    (lambda: Quantized(LEVELS, LEVELS).log_prob(LEVELS + 0.3), "within the support"),
    (lambda: Clipped(LEVELS, 0.0, -1, 1), "scale reaches 0, .*expected a positive scale"),
    (lambda: Clipped(LEVELS, 0.1, 1, -1), "the ends are 1 and -1"),
    (lambda: FunctionOperator(lambda x: x.square(), (D,)), "or use NonlinearOperator"),
    (
        lambda: twisted_smc(
            measured(noise=lambda u: Quantized(u, torch.arange(30001) / 1e4)), 2, steps=2
        ),
        "none of 2 particles can have given obs, .*some noise",
    ),
    (lambda: FunctionOperator(lambda x: 0 * x, (D,)), "is 0 for random data, so that nothing is"),
    (
        lambda: measured(H=NonlinearOperator(squared, (D,)), obs=torch.zeros(2 * D), noise=0.0),
        "noise is 0, and H is NonlinearOperator.*give noise a positive variance",
    ),
    (lambda: NonlinearOperator(torch.log, (D,)), r"H\(x\) is infinite or NaN for . of 2 data"),
    (
        lambda: at_zero(roots),
        "the derivative of H is infinite or NaN for 1 of 2 data, whose numbers go from 0 to 0, "
        "expected finite ones for all x; mend the function",
    ),
    (lambda: at_zero(lambda x: 1 / x), r"H\(x\) is infinite or NaN for 1 of 2 data"),
    (lambda: NonlinearOperator(lambda x: x[:, :0], (D,)), "expected at least one observation"),
    (lambda: NonlinearOperator(lambda x: x[0], (D,)), "keep the first dimension"),
    (lambda: Measurement(program(gaussian(), VPSDE()), fixed(1, 2, D), learned), "no derivative"),
    (
        lambda: Measurement(
            program(gaussian(), VPSDE()), fixed(1, 2, D), lambda u: dist.Laplace(u, learned)
        ),
        "no derivative",
    ),
    (lambda: site(-0.1), "noise reaches -0.1, expected finite variances, none below 0"),
    (lambda: site(torch.ones(3)), r"noise has shape \(3,\), expected a variance, or one for each"),
    (lambda: site("poisson"), "noise is 'poisson', expected a number or a Tensor"),
    *(
        (
            lambda obs=obs: Measurement(program(gaussian(), VPSDE()), torch.eye(D), 0.1).log_prob(
                obs
            ),
            r"value has shape \(\d?,?\), expected \(\*batch, 4\)",
        )
        for obs in (torch.zeros(3), torch.zeros(8), torch.tensor(1.0))
    ),
    (
        lambda: Measurement(program(gaussian(), VPSDE()), torch.eye(D), lambda u: u).log_prob(
            torch.zeros(D)
        ),
        r"noise\(u\) is a Tensor .*expected a distribution",
    ),
]


def test_what_cannot_be_measured_is_said() -> None:
    torch.manual_seed(0)
    refused((TypeError, ValueError), *MISTAKES)


def test_laws_are_checked_where_another_package_turns_checks_off() -> None:
    before = dist.is_validation_enabled()
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        refused(ValueError, MISTAKES[0])
        torch.distributions.Poisson(torch.tensor(-1.0))  # they are off still
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)
