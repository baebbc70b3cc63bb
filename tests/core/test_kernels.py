"""Kernels against 120-digit references: never silently wrong, whatever (Q, D)."""

from __future__ import annotations

import pytest
import torch
from mpmath import mp, mpf

from pyro_mdm.diffusions.clocks import ConstantBeta, log_snr_times
from pyro_mdm.diffusions.kernels import (
    KernelPrecisionError,
    noise_basis,
    scaled_cholesky,
    transition_moments,
)
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.diffusions.posterior import posterior
from pyro_mdm.diffusions.presets import ALDA, CLD, LearnedDiffusion
from tests.diffusions import CONSTANT, DISTINCT
from tests.digits import (
    Errors,
    covariance_error,
    drift_and_noise,
    exact,
    log_det,
    marginal_errors,
    moments,
    step_errors,
)
from tests.problems import chain, learned, normal, random_linear

pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def _digits():
    with mp.workdps(120):
        yield


# -- what is held to the reference -----------------------------------------------------------------


def check(errors: Errors) -> None:
    assert errors.moments < 1e-10 and errors.logs < 1e-8


def check_marginal(diffusion: LinearDiffusion, s: float) -> None:
    check(marginal_errors(diffusion, s))


def check_transition(diffusion: LinearDiffusion, s: float, r: float) -> None:
    check(step_errors(diffusion, s, r))


# -- marginals and transitions ---------------------------------------------------------------------

REFERENCED = [
    *[case for case in DISTINCT if case in CONSTANT],
    ("learned_3_rank_1_generic", lambda: _generic(3, 1)),
    ("learned_4_rank_1_generic", lambda: _generic(4, 1)),
    ("chain_5", lambda: chain(5)),
    ("chain_6", lambda: chain(6)),
]


def _generic(K: int, rank: int) -> LearnedDiffusion:
    """Noise along a direction of no special kind, so that P is graded off the axes."""
    diffusion = LearnedDiffusion(K, rank)
    with torch.no_grad():
        diffusion.lower.copy_(normal(K, *diffusion.lower.shape))
        diffusion.B.copy_(normal(K + 10, K, rank))
    return diffusion


every_diffusion = pytest.mark.parametrize(
    "make", [make for _, make in REFERENCED], ids=[name for name, _ in REFERENCED]
)


@every_diffusion
def test_marginals_have_their_digits(make):
    diffusion = make()
    with torch.no_grad():
        at_60 = diffusion.time_at_log_snr(60.0).item()
        assert diffusion.log_snr(at_60).item() == pytest.approx(60.0, abs=1e-8)
    for s in (1e-4, at_60, 0.1, 1.0):
        check_marginal(diffusion, s)


@every_diffusion
def test_transitions_have_their_digits(make):
    diffusion = make()
    for s, r in ((0.3001, 0.3), (0.33, 0.3), (1.0, 0.0)):
        check_transition(diffusion, s, r)


GRADED = ("cld", "alda", "learned_4_rank_2", "learned_3_rank_1_generic", "random_4", "chain_6")
every_grading = pytest.mark.parametrize(
    "make", [dict(REFERENCED)[name] for name in GRADED], ids=GRADED
)


def test_short_step_of_low_rank_noise():
    """K = 3, rank 1, b = 1e-3: along the axes, float64 entries of P no longer tell log det P."""
    diffusion = LearnedDiffusion(3, 1, beta=ConstantBeta(1.0))
    with torch.no_grad():
        diffusion.lower.copy_(normal(1, 3))
        diffusion.B.copy_(normal(2, 3, 1))
    check_transition(diffusion, 1e-3, 0.0)
    _, P = moments(*drift_and_noise(diffusion), mpf(1e-3))
    sd = mp.diag([1 / mp.sqrt(P[i, i]) for i in range(3)])
    smallest = min(mp.eigsy(sd * P * sd, eigvals_only=True))
    # rounding an entry by u = 2^-53 moves log det by up to u / smallest: what the basis is for
    assert float(mpf(2) ** -53 / smallest) > 1e-4


# -- the posterior ---------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [8, 1000])
@every_grading
def test_posterior_has_its_digits(make, steps):
    """On grids even in log SNR, of few and of many steps."""
    diffusion = make()
    with torch.no_grad():
        s = log_snr_times(diffusion, steps + 1)
        p = posterior(diffusion, s[1:], s[:-1])
        tau = diffusion.clock(s)
        snr = diffusion.log_snr(s).exp()
    gained = snr[:-1] - snr[1:]
    torch.testing.assert_close(p.signal.square().sum(-1), gained, rtol=1e-8, atol=0)
    A, GG = drift_and_noise(diffusion)
    Sigma0 = exact(diffusion.initial_covariance)
    for i in (0, steps // 2) if steps == 8 else (steps // 3,):
        M_r, P_r = moments(A, GG, mpf(tau[i].item()))
        M, P = moments(A, GG, mpf(tau[i + 1].item()) - mpf(tau[i].item()))
        Sigma_r = P_r + M_r * Sigma0 * M_r.T
        C = Sigma_r * M.T * (M * Sigma_r * M.T + P) ** -1
        V = Sigma_r - C * M * Sigma_r
        b = M_r[:, 0] - C * M * M_r[:, 0]
        L = exact(p.scale_tril[i])
        assert covariance_error(exact(p.covariance[i]), V) < 1e-9
        assert covariance_error(L * L.T, V) < 1e-9
        assert abs(float(mpf(p.log_det[i].item()) - log_det(V))) < 1e-8
        assert float(mp.norm(exact(p.gain[i]) - C, 1) / mp.norm(C, 1)) < 1e-10
        assert float(mp.norm(exact(p.mean_coefficient[i]) - b, 1) / mp.norm(b, 1)) < 1e-8
        if p.resolution[i] < 1e-9:
            white = exact(p.whitener[i])
            identity = white * V * white.T
            assert float(mp.norm(identity - mp.eye(V.rows), 1)) < 1e-8


@every_grading
def test_posterior_resolution_bounds_what_rounding_does(make):
    """Where a state rounded to float64 no longer tells its place in the posterior, it says so."""
    diffusion = make()
    with torch.no_grad():
        s = log_snr_times(diffusion, 101)
        p = posterior(diffusion, s[1:], s[:-1])
    y = torch.ones(diffusion.num_variables, dtype=torch.float64)
    moved = (p.whitener @ (y * (1 + 2**-52)) - p.whitener @ y).abs().amax(-1)
    spread = diffusion.marginal(s[:-1]).covariance.diagonal(dim1=-2, dim2=-1).detach()
    assert bool((moved <= 4 * p.resolution / spread.amin(-1).sqrt()).all())


def test_posterior_refuses_times_out_of_order():
    with pytest.raises(ValueError, match=r"r = 0\.5 given s = 0\.4, expected s > r > 0"):
        posterior(CLD(), 0.4, 0.5)
    with pytest.raises(ValueError, match="expected s > r > 0"):
        posterior(CLD(), 0.4, 0.0)


# -- stiffness and other strains -------------------------------------------------------------------


def _nearly_singular(size: float) -> LinearDiffusion:
    B = normal(5, 3, 3) * torch.tensor([1.0, size**-1.5, size**-3], dtype=torch.float64)
    D = B @ B.mT  # nearly of rank 1: the eigenvalues reach down to size^-6
    return LinearDiffusion(normal(6, 3, 3).triu(1) - normal(6, 3, 3).triu(1).mT, (D + D.mT) / 2)


def test_refusal_names_diffusion_time_and_remedy():
    diffusion = chain(3, initial_variance=1e-30)
    diffusion_singular = _nearly_singular(100.0)
    with pytest.raises(KernelPrecisionError, match=r"LinearDiffusion: float64 cannot hold .* at s"):
        diffusion_singular.transition(1e-3, 0.9e-3)
    check_marginal(diffusion, 0.1)
    with pytest.raises(KernelPrecisionError, match="scale Q, D or the clock down"):
        transition_moments(
            torch.tensor([[-1e25]]).double(), torch.eye(1).double(), torch.ones(()).double()
        )
    fast = LinearDiffusion([[0.0]], [[500.0]])
    with pytest.raises(KernelPrecisionError, match="log signal-to-noise"):
        fast.log_snr(0.9)  # a = exp(-1000): nothing is left of x, not even as a float


# -- pieces ----------------------------------------------------------------------------------------


def test_moments_and_gradients_at_zero_duration():
    A = torch.tensor([[0.0, 1.0], [-1.0, -2.0]], dtype=torch.float64, requires_grad=True)
    tau = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    M, P = transition_moments(A, torch.eye(2, dtype=torch.float64), tau)
    torch.testing.assert_close(M, torch.eye(2, dtype=torch.float64).expand(2, 2, 2))
    assert not P.any()
    (M.sum() + P.sum()).backward()
    assert A.grad is not None and bool(A.grad.isfinite().all())
    assert tau.grad is not None and bool(tau.grad.isfinite().all())


def test_noise_basis_levels():
    A, D = ALDA().matrices.drift(), ALDA().D
    U, level = noise_basis(A, D)
    assert level.tolist() == [0, 1, 2]
    torch.testing.assert_close(U.abs(), torch.eye(3, dtype=torch.float64).flip(1))
    U, level = noise_basis(torch.zeros(3, 3, dtype=torch.float64), D)
    assert U.shape == (3, 1)
    _, level = noise_basis(random_linear(4, 6, rank=2).matrices.drift(), learned(4, 2, 6).D)
    assert level.tolist() == [0, 0, 1, 1]


def test_scaled_cholesky_reports_an_indefinite_matrix():
    S = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64)
    _, amplification = scaled_cholesky(torch.stack([S, torch.eye(2, dtype=torch.float64)]))
    assert amplification.tolist() == [torch.inf, 1.0]
