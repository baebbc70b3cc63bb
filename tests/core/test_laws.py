"""The laws of paths as Pyro distributions."""

from __future__ import annotations

import math

import pyro
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import kl_divergence

import pyro_mdm.paths.base as divergences
from pyro_mdm import (
    CLD,
    MDM_ELBO,
    VPSDE,
    DiffusionGuide,
    DiffusionModel,
    GenerativePath,
    LearnedDiffusion,
    NoisingPath,
    Simulated,
    elbo_terms,
)
from pyro_mdm.diffusions.base import Cap
from pyro_mdm.diffusions.clocks import ConstantBeta, log_snr_times
from pyro_mdm.diffusions.kernels import KernelPrecisionError
from pyro_mdm.diffusions.linear import LinearDiffusion, LinearSDE, at_rest, frozen
from pyro_mdm.diffusions.matrices import semidefinite_cholesky
from pyro_mdm.paths import NoisingLaw, PathKL, density_bound
from tests.diffusions import DISTINCT, TYPICAL
from tests.known_bound import (
    DIMS,
    MEAN,
    VARIANCE,
    check_mean,
    data,
    denoiser,
    programs,
)

diffusions = pytest.mark.parametrize(
    "make", [factory for _, factory in DISTINCT], ids=[name for name, _ in DISTINCT]
)


@diffusions
def test_noising_log_prob_is_the_joint_gaussian(make) -> None:
    """The chain's density equals that of the joint Gaussian over all its times."""
    torch.manual_seed(0)
    diffusion = make()
    with torch.no_grad():
        K = diffusion.num_variables
        times = diffusion.time_at_log_snr(torch.tensor([3.0, 1.0, -0.5]))
        x = torch.randn(5, 2, dtype=torch.float64)
        law = NoisingPath(diffusion, x, times)
        path = law.rsample()
        assert path.shape == (5, 3, K, 2)
        first, steps = diffusion.marginal(times[0]), diffusion.transition(times[1:], times[:-1])
        means, factors = [first.mean], [first.scale_tril]
        for i in range(2):
            M = steps.matrix[i]
            means.append(M @ means[-1])
            factors = [*factors, steps.scale_tril[i]]
        # y = blocks · noise, a lower block-triangular map
        B = torch.zeros(3 * K, 3 * K, dtype=torch.float64)
        for i in range(3):
            for j in range(i + 1):
                block = factors[j]
                for k in range(j, i):
                    block = steps.matrix[k] @ block
                B[i * K : (i + 1) * K, j * K : (j + 1) * K] = block
        mean = torch.cat(means) * x.unsqueeze(-1)  # (5, 2, 3K)
        value = path.permute(0, 3, 1, 2).reshape(5, 2, 3 * K)
        white = torch.linalg.solve_triangular(B, (value - mean).mT, upper=False)
        log_det = B.diagonal().abs().log().sum()
        constant = log_det + 1.5 * K * math.log(2 * math.pi)
        expected = -0.5 * white.square().sum((1, 2)) - 2 * constant
        assert torch.allclose(law.log_prob(path), expected, rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("make", [make for _, make in TYPICAL], ids=[name for name, _ in TYPICAL])
def test_noising_samples_have_the_marginals(make) -> None:
    torch.manual_seed(1)
    diffusion = make()
    with torch.no_grad():
        times = diffusion.time_at_log_snr(torch.tensor([2.0, 0.0]))
        marginal = diffusion.marginal(times)
        x = torch.ones(40000, 1, dtype=torch.float64)
        path = NoisingPath(diffusion, x, times).sample()[..., 0]  # (n, N, K)
        for i in range(2):
            white = torch.linalg.solve_triangular(
                marginal.scale_tril[i], (path[:, i] - marginal.mean[i]).mT, upper=False
            )
            assert float((white.mean(1) * math.sqrt(40000)).abs().max()) < 5
            second = white @ white.mT / 40000 - torch.eye(len(white))
            assert float(second.abs().max()) < 5 * math.sqrt(2 / 40000)


def test_expand_takes_left_dimensions_and_keeps_the_divergence() -> None:
    diffusion = CLD()
    x = data(6)
    noising = NoisingPath(diffusion, x).expand((2, 6))
    generative = GenerativePath(diffusion, denoiser(), (DIMS,)).expand((2, 6))
    assert noising.batch_shape == generative.batch_shape == (2, 6)
    assert noising.event_shape == generative.event_shape == (1, 2, DIMS)
    assert noising.rsample().shape == (2, 6, 1, 2, DIMS)
    assert noising.rsample((4,)).shape == (4, 2, 6, 1, 2, DIMS)
    assert kl_divergence(noising, generative).shape == (2, 6)
    assert noising.log_prob(noising.rsample()).shape == (2, 6)
    assert generative.log_prob(noising.rsample()).shape == (2, 6)
    assert GenerativePath(diffusion, denoiser(), (DIMS,)).batch_shape == ()


def test_mean_field_takes_the_registered_divergence() -> None:
    """TraceMeanField_ELBO falls back to log_prob without a word where no KL is registered."""
    model, guide = programs(CLD(), denoiser())
    called = []

    def asked(q: NoisingPath, p: GenerativePath, path: object = None) -> PathKL:
        called.append(type(q))
        return divergences.path_kl(q, p)

    divergences.path_divergence.register(NoisingPath, asked)
    try:
        TraceMeanField_ELBO().loss(model, guide, data(5))
    finally:
        divergences.path_divergence.register(NoisingPath, divergences.path_kl)
    assert called == [NoisingPath]


@pytest.mark.parametrize(
    ("make", "other"),
    [(VPSDE, Trace_ELBO), (CLD, TraceMeanField_ELBO), (lambda: LearnedDiffusion(3, 2), Trace_ELBO)],
    ids=["K1", "K2", "K3"],
)
def test_objectives_have_the_bound_of_a_chain(make, other) -> None:
    """That of a grid, in closed form."""
    pyro.set_rng_seed(3)
    diffusion, dims = make(), 64
    diffusion.max_log_snr = 5.0
    x = data(50, dims)
    with torch.no_grad():
        model, guide = programs(diffusion, denoiser(), dims, times=13)
        analytic = -discrete_loss(diffusion, 13, x)
        for objective in (other(), MDM_ELBO()):
            values = torch.tensor([-objective.loss(model, guide, x) / len(x) for _ in range(10)])
            check_mean(values, analytic, largest_error=0.06 * dims)


def discrete_loss(diffusion, num_times: int, x: Tensor) -> float:
    """Minus the discrete-time bound of the exact denoiser, in closed form, nats per datum."""
    times = log_snr_times(diffusion, num_times)
    snr = diffusion.log_snr(times).exp()
    v = 1 / snr[1:]
    # E (x - x̂)² for x̂ = μ + σ²/(σ²+v) (z - μ), given x
    shrink = v / (VARIANCE + v)
    error = (shrink * (x.unsqueeze(-1) - MEAN)) ** 2 + (1 - shrink) ** 2 * v
    diffusion_term = 0.5 * ((snr[:-1] - snr[1:]) * error).sum(-1).sum(-1)
    v0 = 1 / snr[0]
    s = VARIANCE * v0 / (VARIANCE + v0)
    bias = v0 / (VARIANCE + v0) * (x - MEAN)
    spread = (VARIANCE / (VARIANCE + v0)) ** 2 * v0
    reconstruction = -0.5 * ((bias**2 + spread) / s + torch.log(2 * math.pi * s)).sum(-1)
    kl = divergences.prior_kl(diffusion, x, 1)
    return float((diffusion_term + kl - reconstruction).mean())


def test_grid_paths_are_in_the_trace_and_mismatched_grids_are_named() -> None:
    model, guide = programs(CLD(), denoiser(), times=7)
    trace = poutine.trace(guide).get_trace(data(4))
    assert trace.nodes["path"]["value"].shape == (4, 7, 2, DIMS)
    conditioned = poutine.condition(model, data={"path": trace.nodes["path"]["value"]})
    assert conditioned(batch_size=4).shape == (4, DIMS)
    other = NoisingPath(model.diffusion, data(4))
    with pytest.raises(ValueError, match="expected one grid"):
        divergences.path_kl(other, model.path_law())
    with pytest.raises(ValueError, match="ε alone"):
        gridded = NoisingPath(model.diffusion, data(4), log_snr_times(model.diffusion, 5))
        kl_divergence(gridded, GenerativePath(model.diffusion, denoiser(), (DIMS,)))
    with pytest.raises(ValueError, match="expected a grid from the start time"):
        DiffusionModel(CLD(), denoiser(), event_shape=(DIMS,), times=torch.tensor([0.1, 1.0]))(
            batch_size=2
        )


@pytest.mark.parametrize("slow", [False, True], ids=["own_clock", "slow"])
@diffusions
def test_prior_kl_is_the_divergence_of_gaussians(make, slow: bool) -> None:
    """Against torch's own formula, per dimension; a slow clock leaves much of x at T."""
    diffusion = make()
    if slow:
        matrices, prior = (
            (t.detach() for t in frozen(diffusion)),
            diffusion.prior_covariance.detach(),
        )
        Q, D, A = matrices
        slow_clock = ConstantBeta(0.7)
        if at_rest(diffusion):
            diffusion = LinearDiffusion(Q, D, beta=slow_clock, stationary_variance=prior)
        else:
            G = semidefinite_cholesky(2 * D)
            diffusion = LinearSDE(A, G, beta=slow_clock, prior_variance=prior)
    with torch.no_grad():
        x = data(4)
        end = diffusion.marginal(diffusion.horizon)
        q = torch.distributions.MultivariateNormal(x.unsqueeze(-1) * end.mean, end.covariance)
        p = torch.distributions.MultivariateNormal(
            torch.zeros_like(end.mean), diffusion.prior_covariance
        )
        found = divergences.prior_kl(diffusion, x, 1)
        torch.testing.assert_close(found, kl_divergence(q, p).sum(-1), rtol=1e-7, atol=1e-10)


def test_a_chain_density_that_rounding_decides_is_refused() -> None:
    diffusion = LearnedDiffusion(3, 1, max_log_snr=8.0)
    model, guide = programs(diffusion, denoiser(), times=200)
    with pytest.raises(KernelPrecisionError, match="rounding states to"):
        Trace_ELBO().loss(model.float(), guide, data(2).float())


class Held(NoisingLaw):
    """A law of one's own: the data in every variable, and nothing moves."""

    def rsample(self, sample_shape=()):
        return self.x[:, None, None].expand(*sample_shape, *self.batch_shape, *self.event_shape)


def test_a_law_of_ones_own_registers_its_divergence() -> None:
    """The bound takes it from there, and so does everyone who asks for a KL divergence."""
    model, _ = programs(CLD(), denoiser())
    x = data(5)

    class Guide(DiffusionGuide):
        def law(self, x, times=None):
            return Held(self.diffusion, x, times)

    guide = Guide(model.diffusion)
    with pytest.raises(NotImplementedError, match="no divergence is registered for Held"):
        MDM_ELBO().loss(model, guide, x)
    ones = torch.ones(5)
    divergences.path_divergence.register(Held, lambda q, p, path=None: PathKL(ones, 2 * ones, ones))
    torch.testing.assert_close(kl_divergence(Held(model.diffusion, x), model.path_law()), 3 * ones)
    terms = elbo_terms(model, guide, x)
    assert torch.equal(terms.prior_kl, ones) and torch.equal(terms.diffusion, 2 * ones)


def test_a_kind_of_diffusion_without_a_bound_says_so() -> None:
    with pytest.raises(NotImplementedError, match="no bound is registered for object"):
        density_bound(object(), denoiser(), torch.zeros(2, 1, 2))


def test_what_has_no_closed_form_has_no_kernels() -> None:
    assert Cap.KERNELS in CLD().caps and Cap.KERNELS not in Simulated(CLD()).caps
    assert not hasattr(Simulated(CLD()), "marginal")
