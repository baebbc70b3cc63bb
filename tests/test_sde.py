"""The torchsde objects: their Euler moments are known exactly, and paths must have them.

For additive noise and an affine drift one Euler step maps means and covariances in closed form. So
step bias and sampling error are checked apart: the moments converge to the exact kernels at order
1 in the step, and simulated paths have the moments of their own step within standard errors.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torchsde
from torch import Tensor

from pyro_mdm import ALDA, CLD
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.diffusions.sde import ForwardSDE, ReverseSDE, fold, unfold
from pyro_mdm.samplers.grids import information_grid
from tests.problems import (
    DIFFUSIONS,
    TYPICAL,
    ExactScore,
    GaussianMixture,
    gaussian,
    learned,
    normal,
)

SE = 5.0  # standard errors allowed: 6e-7 of false alarms per number compared

typical_diffusions = pytest.mark.parametrize(
    "make", [make for _, make in TYPICAL], ids=[name for name, _ in TYPICAL]
)
various = ["vpsde", "cld", "alda", "cld_dockhorn", "learned_2", "learned_clock", "random_4"]
various_diffusions = pytest.mark.parametrize(
    "make", [dict(DIFFUSIONS)[name] for name in various], ids=various
)
some_diffusions = pytest.mark.parametrize(
    "make",
    [CLD, lambda: learned(3, 3, 60), lambda: dict(DIFFUSIONS)["random_2"]()],
    ids=["cld", "learned_3", "random_2"],
)


def euler_moments(
    sde: ForwardSDE | ReverseSDE, mean: Tensor, covariance: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """Exact mean and covariance of Euler–Maruyama on the grid t, the drift being affine."""
    K = len(mean)
    probes = torch.cat([torch.zeros(1, K), torch.eye(K)]).double()
    with torch.no_grad():
        for now, later in pairwise(t):
            h = later - now
            f, G = sde.f(now, probes), sde.g(now, probes)[0]
            M = torch.eye(K).double() + h * (f[1:] - f[0]).mT
            mean, covariance = M @ mean + h * f[0], M @ covariance @ M.mT + h * G @ G.mT
    return mean, covariance


def assert_moments(states: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Sample mean and covariance of independent Gaussian states (n, K), within standard errors."""
    n = len(states)
    variance = covariance.diagonal()
    error = (states.mean(0) - mean).abs() / (variance / n).sqrt()
    assert error.max() < SE
    centred = states - mean
    sample = centred.mT @ centred / n
    sd = ((variance[:, None] * variance + covariance**2) / n).sqrt()
    assert ((sample - covariance).abs() / sd).max() < SE


# -- folding ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("event_shape", [(), (1,), (5,), (2, 3, 4)])
def test_folding_puts_data_dimensions_into_the_batch(event_shape):
    y = normal(0, 7, 3, *event_shape)
    states = fold(y)
    assert states.shape == (y[:, 0].numel(), 3)
    assert torch.equal(unfold(states, event_shape), y)
    assert torch.equal(states[:, 1], y[:, 1].flatten())


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"y has shape \(3,\), expected \(batch, K"):
        fold(torch.zeros(3))
    with pytest.raises(ValueError, match=r"shape \(7, 2\), expected \(batch·3, K\)"):
        unfold(torch.zeros(7, 2), (3,))
    sde = CLD().forward_sde()
    with pytest.raises(ValueError, match=r"shape \(4, 3\), expected .* K = 2 variables of CLD"):
        sde.f(torch.tensor(0.1), torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"shape \(4, 3\), expected .* K = 2 variables of CLD"):
        sde.g(torch.tensor(0.1), torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"s = 1\.5 is outside \[0, T\]"):
        sde.f(torch.tensor(1.5), torch.zeros(4, 2))
    wrong = CLD().reverse_sde(lambda y, s: y[:, :1], (2,))
    with pytest.raises(ValueError, match=r"score has shape \(3, 1, 2\), expected .* \(3, 2, 2\)"):
        wrong.f(torch.tensor(0.1), torch.zeros(6, 2))


def test_rounding_of_the_last_time_is_forgiven():
    sde = CLD().forward_sde()
    late = torch.tensor(1.0) + 1e-7
    torch.testing.assert_close(
        sde.f(late, torch.ones(1, 2)), sde.f(torch.tensor(1.0), torch.ones(1, 2))
    )


# -- forward ---------------------------------------------------------------------------------------


@typical_diffusions
def test_forward_moments_converge_to_the_kernels(make):
    diffusion = make()
    K = diffusion.num_variables
    sde = diffusion.forward_sde()
    s, errors = 0.25, []
    with torch.no_grad():
        exact = diffusion.marginal(s)
    x = torch.zeros(K).double()
    x[0] = 1.0
    for steps in (128, 256):
        grid = torch.linspace(0, s, steps + 1, dtype=torch.float64)
        mean, covariance = euler_moments(sde, x, diffusion.initial_covariance, grid)
        errors.append((mean - exact.mean, covariance - exact.covariance))
    for coarse, fine in zip(*errors, strict=True):
        assert fine.abs().max() < 0.04
        assert coarse.norm() / fine.norm() == pytest.approx(2.0, abs=0.2)  # order 1
        assert (2 * fine - coarse).abs().max() < 8e-4  # and the limit is the kernel


@some_diffusions
def test_forward_paths(make):
    diffusion = make()
    K, n = diffusion.num_variables, 4000
    torch.manual_seed(1)
    x = torch.zeros(K).double()
    x[0] = 1.0
    y0 = x + normal(2, n, K) @ diffusion.initial_covariance.sqrt()
    s, steps = torch.tensor([0.0, 0.2, 0.4]).double(), 32
    with torch.no_grad():
        path = torchsde.sdeint(diffusion.forward_sde(), y0, s, method="euler", dt=0.4 / steps)
    for i, used in ((1, steps // 2), (2, steps)):
        grid = torch.linspace(0, s[i].item(), used + 1, dtype=torch.float64)
        moments = euler_moments(diffusion.forward_sde(), x, diffusion.initial_covariance, grid)
        assert_moments(path[i], *moments)


def test_a_better_solver_sees_the_same_process():
    """torchsde's default for additive noise has strong order 1.5: 40 steps reach the kernel."""
    diffusion, n = CLD(), 4000
    torch.manual_seed(3)
    x = torch.tensor([1.0, 0.0]).double()
    y0 = x + normal(4, n, 2) @ diffusion.initial_covariance.sqrt()
    s = torch.tensor([0.0, 0.5]).double()
    with torch.no_grad():
        path = torchsde.sdeint(diffusion.forward_sde(), y0, s, method="srk", dt=0.5 / 40)
        exact = diffusion.marginal(0.5)
    assert_moments(path[-1], exact.mean, exact.covariance)


def test_gradients_flow_through_a_path():
    diffusion = learned(2, 2, 33)
    y0 = normal(0, 3, 2)
    path = torchsde.sdeint(
        diffusion.forward_sde(), y0, torch.tensor([0.0, 0.2]).double(), method="euler", dt=0.05
    )
    path[-1].square().sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in diffusion.parameters())


# -- reverse ---------------------------------------------------------------------------------------


def scalar(mean: float = 0.7, variance: float = 0.5) -> GaussianMixture:
    m, v = (torch.tensor([x], dtype=torch.float64) for x in (mean, variance))
    return GaussianMixture([1.0], m[None], v[None, None])


def reverse_law(diffusion: LinearDiffusion, data: GaussianMixture) -> tuple[Tensor, Tensor]:
    """Exact mean and covariance of y_ε when the reverse SDE starts in the prior."""
    mu, variance = data.mean, data.covariance[0, 0]
    with torch.no_grad():
        start, end = diffusion.start, diffusion.terminal
        M = diffusion.transition(diffusion.horizon, diffusion.start_time).matrix
        S, S_T = (m.covariance + variance * torch.outer(m.mean, m.mean) for m in (start, end))
        C = torch.linalg.solve(S_T, S @ M.mT, left=False)
        mean = mu * (start.mean - C @ end.mean)
        return mean, S + C @ (diffusion.prior_covariance - S_T) @ C.mT


def early(make) -> LinearDiffusion:
    """The diffusion stopped at λ = 0, so that equal steps of t are not stiff at the end."""
    diffusion = make()
    diffusion.max_log_snr = 0.0
    return diffusion


@various_diffusions
def test_reverse_moments_converge_to_the_law_of_the_data(make):
    diffusion, data = early(make), scalar()
    sde = diffusion.reverse_sde(ExactScore(data, diffusion), (1,))
    exact, errors = reverse_law(diffusion, data), []
    zero = torch.zeros(diffusion.num_variables).double()
    for steps in (96, 192):
        grid = diffusion.horizon - information_grid(diffusion, steps)
        moments = euler_moments(sde, zero, diffusion.prior_covariance, grid)
        errors.append([m - e for m, e in zip(moments, exact, strict=True)])
    for coarse, fine in zip(*errors, strict=True):
        # order 1, seen from afar; towards another limit the ratio would be near 1
        assert 1.7 < coarse.norm() / fine.norm() < 2.8


@some_diffusions
def test_reverse_paths_end_in_the_law_of_noised_data(make):
    diffusion, data = early(make), scalar()
    sde = diffusion.reverse_sde(ExactScore(data, diffusion), (1,))
    K, n, steps = diffusion.num_variables, 3000, 64
    torch.manual_seed(5)
    u0 = normal(6, n, K) @ torch.linalg.cholesky(diffusion.prior_covariance).mT
    end = diffusion.horizon - diffusion.start_time.item()
    with torch.no_grad():
        t = torch.tensor([0.0, end]).double()
        path = torchsde.sdeint(sde, u0, t, method="euler", dt=t[1].item() / steps)
    grid = torch.linspace(0, t[1].item(), steps + 1, dtype=torch.float64)
    zero = torch.zeros(K).double()
    assert_moments(path[-1], *euler_moments(sde, zero, diffusion.prior_covariance, grid))


def test_reverse_drift_sees_whole_data():
    """The score of one dimension depends on the others, so it must not see folded states."""
    diffusion, data = ALDA(), gaussian()
    score = ExactScore(data, diffusion)
    sde = diffusion.reverse_sde(score, (2,))
    y = normal(1, 5, 3, 2)
    s = torch.full((5,), 0.4, dtype=torch.float64)
    A, g2 = diffusion.drift_matrix(0.4), diffusion.noise_covariance(0.4)
    expected = g2 @ score(y, s) - A @ y
    f = sde.f(torch.tensor(0.6, dtype=torch.float64), fold(y))
    torch.testing.assert_close(unfold(f, (2,)), expected)
