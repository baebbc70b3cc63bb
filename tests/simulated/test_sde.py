"""The reversed SDE as torchsde's object; test_sampler_orders.py has the orders of its steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_mdm.simulated.sde import ReverseSDE, fold, unfold
from tests.diffusions import TYPICAL
from tests.problems import normal

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("make", [m for _, m in TYPICAL], ids=[n for n, _ in TYPICAL])
def test_drift_and_noise_are_those_of_the_diffusion(make):
    """At folded states, in T - s, and where rounding has moved a time out of [0, T]."""
    diffusion, y = make().requires_grad_(False), normal(1, 5, make().num_variables, 2)
    T = torch.tensor(diffusion.horizon, dtype=torch.float64)

    def score(y: Tensor, s: Tensor) -> Tensor:
        """Of one dimension it depends on the others, so that it must not see folded states."""
        return y.sin() - y.flip(-1)

    reverse = ReverseSDE(diffusion, score, (2,))
    for s, t in ((0.4 * T, T - 0.4 * T), (T, torch.tensor(-1e-16).double())):
        A, g2 = diffusion.drift_matrix(s), diffusion.noise_covariance(s)
        drift = g2 @ score(y, s) - A @ y
        torch.testing.assert_close(unfold(reverse.f(t, fold(y)), (2,)), drift)
        G = reverse.g(t, fold(y))
        torch.testing.assert_close(G @ G.mT, g2.expand(10, *g2.shape))
