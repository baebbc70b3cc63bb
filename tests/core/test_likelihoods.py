"""Decoders, and the bookkeeping of bits per dimension."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pyro_mdm import Simulated
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.diffusions.matrices import apply_matrix
from pyro_mdm.diffusions.presets import CLD, VPSDE
from pyro_mdm.likelihoods.base import Gaussian, JointTweedie, bits_per_dim
from pyro_mdm.scores.raw import RawScore
from tests.core.test_scores import DIFFUSIONS, EVENT, Zero
from tests.mistakes import refused
from tests.problems import normal

pytestmark = pytest.mark.quick


def state_at_start(diffusion: LinearDiffusion, x: Tensor, seed: int = 3) -> Tensor:
    """y_ε (n, K, *event_shape) given x, with gradients to the diffusion."""
    start = diffusion.start
    noise = normal(seed, len(x), diffusion.num_variables, *x.shape[1:])
    a = start.mean.reshape(-1, *[1] * (x.dim() - 1))
    return a * x.unsqueeze(1) + apply_matrix(start.scale_tril, noise)


# -- Gaussian --------------------------------------------------------------------------------------


class Some(nn.Module):
    """A raw score of every variable, far from any data's."""

    def forward(self, y: Tensor, log_snr: Tensor) -> Tensor:
        return -2 * y + y.flip(1) + 0.5 * torch.sin(3 * y)


def joint_by_definition(diffusion: LinearDiffusion, s: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """E_q[ log p(x, v_0 | y) - log q(v_0 | x, y) ], (n,), of Gaussians written out."""
    M, P = (t.detach() for t in diffusion.transition(diffusion.start_time)[:2])
    back = torch.linalg.inv(M)
    mean = torch.einsum("kl,nlij->nijk", back, y + torch.einsum("kl,nlij->nkij", P, s))
    p = torch.distributions.MultivariateNormal(mean, back @ P @ back.mT)
    forward = M[:, 1:].mT @ torch.linalg.inv(P)  # precision of v_0 given y and x, by Bayes' rule
    Sigma = torch.linalg.inv(
        forward @ M[:, 1:] + torch.linalg.inv(diffusion.initial_covariance[1:, 1:])
    )
    Sigma = (Sigma + Sigma.mT) / 2
    rest = y.movedim(1, -1) - x.unsqueeze(-1) * M[:, 0]
    m = rest @ (Sigma @ forward).mT
    q = torch.distributions.MultivariateNormal(m, Sigma)
    precision = torch.linalg.inv(p.covariance_matrix[0, 0, 0])
    expected = p.log_prob(torch.cat([x.unsqueeze(-1), m], -1))
    expected = expected - 0.5 * (precision[1:, 1:] @ Sigma).trace()
    return (expected + q.entropy()).sum((1, 2))


@pytest.mark.parametrize("name", [n for n in DIFFUSIONS if DIFFUSIONS[n]().num_variables > 1])
def test_joint_tweedie_is_its_definition(name: str) -> None:
    diffusion = DIFFUSIONS[name]()
    diffusion.max_log_snr = 2.0  # where inverting P still has digits
    x = normal(2, 5, *EVENT)
    with torch.no_grad():
        y = state_at_start(diffusion, x)
        score = RawScore(Some())
        s = score.score(diffusion, y, diffusion.start_time.expand(5))
        law = JointTweedie()(diffusion, score, y)
        expected = joint_by_definition(diffusion, s, x, y)
        torch.testing.assert_close(law.log_prob(x), expected, rtol=1e-6, atol=1e-6)


def test_what_joint_tweedie_draws_is_what_its_density_bounds() -> None:
    diffusion = CLD(max_log_snr=3.0)
    y = normal(1, 1, 2, 1)
    law = JointTweedie()(diffusion, RawScore(Zero()), y)
    spread = law.variance.sqrt().item()
    x = law.mean.item() + spread * torch.linspace(-9, 9, 101, dtype=torch.float64)
    density = torch.distributions.Normal(law.mean.item(), spread).log_prob(x)
    below = density - law.log_prob(x[:, None, None]).flatten()
    assert bool((below > 0).all()) and below.min() < 3
    torch.manual_seed(0)
    drawn = law.sample((40_000,)).flatten()
    assert abs(drawn.mean().item() - law.mean.item()) < 5 * spread / 200
    assert abs(drawn.std().item() / spread - 1) < 5 / math.sqrt(80_000)


# -- as Pyro distributions -------------------------------------------------------------------------


def test_event_dimensions_can_be_given() -> None:
    y = torch.zeros(4, 5, 2, 3)
    assert Gaussian()(CLD(), RawScore(Zero()), y, 1).batch_shape == (4, 5)


# -- bits ------------------------------------------------------------------------------------------


def test_bits_per_dim() -> None:
    assert bits_per_dim(-64 * math.log(17), 64) == pytest.approx(math.log2(17))
    assert bits_per_dim(torch.tensor([-2.0, 0.0]), 2).tolist() == pytest.approx(
        [1 / math.log(2), 0]
    )
    assert bits_per_dim(0.0, 10, num_levels=256) == 8.0
    assert bits_per_dim(-3.0, 2, log_det=1.0, num_levels=4) == pytest.approx(1 / math.log(2) + 2)


# -- bad input -------------------------------------------------------------------------------------


Y = torch.zeros(4, 2, *EVENT)


BAD = [
    (
        lambda: JointTweedie()(Simulated(CLD(max_log_snr=5.0)), RawScore(Zero()), Y),
        "which Simulated does",
    ),
    (lambda: Gaussian()(VPSDE(), RawScore(Zero()), Y), r"y has shape \(4, 2, 2, 3\).*K = 1"),
    (lambda: Gaussian(0.0, 0.0), "prior_variance reaches 0"),
    (lambda: bits_per_dim(1.0, 0), "num_dims is 0"),
    (lambda: bits_per_dim(1.0, 2, num_levels=1), "num_levels is 1"),
]


def test_bad_input_is_named() -> None:
    refused((TypeError, ValueError), *BAD)
