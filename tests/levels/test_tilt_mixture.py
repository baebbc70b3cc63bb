"""Discrete denoisers whose posterior of a dimension is a mixture of tilts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pyro_mdm import DiscreteDenoiser
from pyro_mdm.networks import MLP


def mixture(n: int = 40) -> tuple[DiscreteDenoiser, Tensor]:
    """A mixture of tilts with outputs far from 0, and data of n levels."""
    torch.manual_seed(3)
    x = torch.linspace(-1, 1, n)[torch.randint(n, (64, 4))]
    network = MLP(4, hidden=16, depth=1, out_features=9 * 4)
    torch.nn.init.normal_(network.outlet.weight, std=0.5)
    return DiscreteDenoiser.fit(network, x, levels=n, form="mixture"), x


@pytest.mark.parametrize("log_snr", [-6.0, 2.0, 7.0])
def test_a_mixture_of_tilts_is_the_law_that_it_says(log_snr):
    score, x = mixture()
    z = x + math.exp(-log_snr / 2) * torch.randn_like(x)
    law = score.posterior(z, log_snr)
    assert torch.allclose(law.log_probs().logsumexp(-1), torch.zeros(()), atol=1e-5)
    # by its definition, in float64
    F = score.network(score.inputs(z, torch.tensor(log_snr)), torch.full((64,), log_snr)).double()
    F1, F2, weights = (part.unbind(1) for part in F.reshape(64, 9, 4).split(3, 1))
    v = torch.exp(torch.tensor(-log_snr, dtype=torch.float64))
    mu, s2 = score.data_mean, score.data_variance
    m, w = mu + s2 / (s2 + v) * (z.double() - mu), (s2 * v / (s2 + v))
    w = w.clamp_min((score.levels.diff().min() / 2) ** 2).sqrt()
    u = (score.levels - m.unsqueeze(-1)) / w.unsqueeze(-1)
    noise = score.log_prior - 0.5 * (z.double().unsqueeze(-1) - score.levels) ** 2 / v
    expected, linear = 0.0, 0.0
    for f1, f2, weight in zip(F1, F2, torch.stack(weights).softmax(0), strict=True):
        linear = linear + f1
        f2 = torch.where(f2 < 0, f2, 0.5 * torch.tanh(2 * f2))
        tilted = noise + linear.unsqueeze(-1) * u + f2.unsqueeze(-1) * u**2
        expected = expected + weight.unsqueeze(-1) * tilted.softmax(-1)
    torch.testing.assert_close(law.log_probs().exp().double(), expected, rtol=2e-3, atol=2e-5)
    mean = (expected * score.levels).sum(-1)
    torch.testing.assert_close(score.x_hat(z, log_snr).double(), mean, rtol=0, atol=2e-4)


def test_a_mixture_without_output_is_the_histogram_and_its_parts_part_ways():
    score, x = mixture()
    torch.nn.init.zeros_(score.network.outlet.weight)
    torch.nn.init.zeros_(score.network.outlet.bias)
    z = x + 0.3 * torch.randn_like(x)
    torch.testing.assert_close(score.x_hat(z, 2.4), score.baseline_x_hat(z, 2.4))
    optimizer = torch.optim.Adam(score.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        (score.x_hat(z, 2.4) - x).square().sum().backward()
        optimizer.step()
    F = score.network(score.inputs(z, torch.tensor(2.4)), torch.full((64,), 2.4))
    parts = F.reshape(64, 9, 4)
    assert (parts[:, :3].cumsum(1).std(1) > 1e-5).all()  # different tilts
    assert parts[:, 6:].std(1).max() > 1e-3  # and weights that are not even
