"""The torchsde objects: their drifts and noises are the diffusion's, and torchsde's paths have its
law; test_sampler_orders.py has the orders of the reverse ones."""

from __future__ import annotations

import pytest
import torch
import torchsde
from torch import Tensor

from pyro_mdm import CLD
from pyro_mdm.simulated.sde import ForwardSDE, ReverseSDE, fold, unfold
from tests.diffusions import TYPICAL
from tests.problems import GaussianMixture, learned, normal

pytestmark = pytest.mark.quick

SE = 5.5  # standard errors allowed: 4e-8 of false alarms per number compared

typical_diffusions = pytest.mark.parametrize(
    "make", [make for _, make in TYPICAL], ids=[name for name, _ in TYPICAL]
)


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
    sde = ForwardSDE(CLD())
    with pytest.raises(ValueError, match=r"shape \(4, 3\), expected .* K = 2 variables of CLD"):
        sde.f(torch.tensor(0.1), torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"shape \(4, 3\), expected .* K = 2 variables of CLD"):
        sde.g(torch.tensor(0.1), torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"s = 1\.5 is outside \[0, T\]"):
        sde.f(torch.tensor(1.5), torch.zeros(4, 2))
    wrong = ReverseSDE(CLD(), lambda y, s: y[:, :1], (2,))
    with pytest.raises(ValueError, match=r"score has shape \(3, 1, 2\), expected .* \(3, 2, 2\)"):
        wrong.f(torch.tensor(0.1), torch.zeros(6, 2))


def test_rounding_of_the_last_time_is_forgiven():
    sde = ForwardSDE(CLD())
    late = torch.tensor(1.0) + 1e-7
    torch.testing.assert_close(
        sde.f(late, torch.ones(1, 2)), sde.f(torch.tensor(1.0), torch.ones(1, 2))
    )


@typical_diffusions
def test_drift_and_noise_are_those_of_the_diffusion(make):
    """At folded states, of the diffusion in time s and of its reverse in T - s."""
    diffusion, y = make().requires_grad_(False), normal(1, 5, make().num_variables, 2)
    s = torch.tensor(0.4, dtype=torch.float64)
    A, g2 = diffusion.drift_matrix(s), diffusion.noise_covariance(s)

    def score(y: Tensor, s: Tensor) -> Tensor:
        """Of one dimension it depends on the others, so that it must not see folded states."""
        assert bool((s == 0.4).all())
        return y.sin() - y.flip(-1)

    forward, reverse = ForwardSDE(diffusion, (2,)), ReverseSDE(diffusion, score, (2,))
    t = diffusion.horizon - s
    torch.testing.assert_close(unfold(forward.f(s, fold(y)), (2,)), A @ y)
    drift = g2 @ score(y, s) - A @ y
    torch.testing.assert_close(unfold(reverse.f(t, fold(y)), (2,)), drift)
    for G in (forward.g(s, fold(y)), reverse.g(t, fold(y))):
        torch.testing.assert_close(G @ G.mT, g2.expand(10, *g2.shape))


def test_a_better_solver_sees_the_same_process():
    """torchsde's default for additive noise has strong order 1.5: 40 steps reach the kernel."""
    diffusion, n = CLD(), 4000
    torch.manual_seed(3)
    x = torch.tensor([1.0, 0.0]).double()
    y0 = x + normal(4, n, 2) @ diffusion.initial_covariance.sqrt()
    s = torch.tensor([0.0, 0.5]).double()
    with torch.no_grad():
        path = torchsde.sdeint(ForwardSDE(diffusion), y0, s, method="srk", dt=0.5 / 40)
        exact = diffusion.marginal(0.5)
    assert_moments(path[-1], exact.mean, exact.covariance)


def test_gradients_flow_through_a_path():
    diffusion = learned(2, 2, 33)
    y0 = normal(0, 3, 2)
    path = torchsde.sdeint(
        ForwardSDE(diffusion), y0, torch.tensor([0.0, 0.2]).double(), method="euler", dt=0.05
    )
    path[-1].square().sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in diffusion.parameters())


def scalar(mean: float = 0.7, variance: float = 0.5) -> GaussianMixture:
    m, v = (torch.tensor([x], dtype=torch.float64) for x in (mean, variance))
    return GaussianMixture([1.0], m[None], v[None, None])
