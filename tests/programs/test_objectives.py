"""Other objectives of the paper: all have the mean of the library's, less their constants."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pyro_mdm import CLD, VPSDE, LearnedDiffusion, LinearDiffusion, NoisePrediction
from tests.benchmarks.kernel_times import Law, cld_by_hand, vpsde_by_hand
from tests.benchmarks.objectives import OBJECTIVES, Times
from tests.problems import normal

TOP = 3.0
MAKES: list[tuple[str, Callable[[], LinearDiffusion]]] = [
    ("vpsde", lambda: VPSDE(max_log_snr=TOP)),
    ("cld", lambda: CLD(max_log_snr=TOP, initial_variance=0.5)),
    ("learned_2", lambda: LearnedDiffusion(2, max_log_snr=9.0, min_log_snr=-10.0)),
]
"""For the last the constant of the objective that is not hybrid is 4 nats."""


class Tanh(nn.Module):
    """A network whose divergence differs from state to state."""

    def forward(self, y: Tensor, log_snr: Tensor) -> Tensor:
        return 0.6 * torch.tanh(y) + 0.1


@pytest.mark.parametrize("make", [make for _, make in MAKES], ids=[name for name, _ in MAKES])
@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "log volume"])
def test_objectives_have_one_mean(make: Callable[[], LinearDiffusion], name: str) -> None:
    diffusion, n = make().requires_grad_(False), 3000
    score, x = NoisePrediction(Tanh()), normal(1, n, 2)
    torch.manual_seed(0)
    ours, other = (
        OBJECTIVES[which](score, diffusion, x).detach() for which in ("log volume", name)
    )
    error = math.hypot(float(ours.std()), float(other.std())) / math.sqrt(n)
    assert 5 * error < 0.8 * float(ours.mean())
    assert abs(float(ours.mean() - other.mean())) < 5 * error


def test_times_of_a_table_have_their_density() -> None:
    """The weight is one over it: the integral of s² over [1, 3] is 26/3."""
    knots = torch.linspace(1, 3, 41, dtype=torch.float64)
    s, weight = Times(knots, knots.exp()).drawn(20000, torch.device("cpu"))
    assert float((weight * s.square()).mean()) == pytest.approx(26 / 3, rel=1e-3)
    assert float((s < 2).double().mean()) == pytest.approx(
        (math.exp(2) - math.e) / (math.exp(3) - math.e), rel=1e-2
    )


@pytest.mark.parametrize(("make", "by_hand"), [(VPSDE, vpsde_by_hand), (CLD, cld_by_hand)])
def test_kernels_by_hand_are_those_of_the_library(
    make: Callable[[], LinearDiffusion], by_hand: Callable[[Tensor], Law]
) -> None:
    diffusion, s = make(), torch.tensor([0.05, 0.3, 1.0], dtype=torch.float64)
    law, known = by_hand(diffusion.clock(s)), diffusion.marginal(s)
    torch.testing.assert_close(law.mean, known.mean)
    torch.testing.assert_close(law.covariance, known.covariance)
    torch.testing.assert_close(law.scale_tril, known.scale_tril)
    torch.testing.assert_close(law.whitener, torch.linalg.inv(known.scale_tril))
