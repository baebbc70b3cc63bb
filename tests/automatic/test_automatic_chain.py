"""Chains to an unnormalized density: weights are right, whatever the chain."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pyro_mdm import CLD, VPSDE, LearnedDiffusion, LinearDiffusion
from pyro_mdm.automatic.chain import LIMIT, TIME, Chain, bounded
from pyro_mdm.automatic.ratio import Ratio
from pyro_mdm.diffusions.kernels import KernelPrecisionError

MEAN = torch.tensor([0.5, -0.3])
SPREAD = torch.tensor([0.6, 1.1])
LOG_Z = 1.3
VARIABLES = [1, 2, "learned"]


def diffusion(K: int | str) -> LinearDiffusion:
    return LearnedDiffusion(3) if K == "learned" else {1: VPSDE, 2: CLD}[K]()


def gaussian(x: Tensor) -> Tensor:
    """N(MEAN, SPREAD²) times exp(LOG_Z)."""
    own = torch.distributions.Normal(MEAN.to(x), SPREAD.to(x), validate_args=False)
    return own.log_prob(x).sum(-1) + LOG_Z


def ratio() -> Ratio:
    return Ratio(gaussian, torch.zeros(2), torch.eye(2))


def weighed(chain: Chain, h: Ratio, n: int) -> tuple[Tensor, Tensor]:
    """Ends of paths, and their log weights."""
    path = chain.paths(h, n)
    constant = h.scale_tril.diagonal().log().sum() + math.log(2 * math.pi)
    return path.u, h(path.u) - path.cost + constant


def rough(chain: Chain, size: float = 0.02) -> Chain:
    """The chain with parameters anywhere."""
    with torch.no_grad():
        for parameter in chain.parameters():
            parameter += size * torch.randn_like(parameter)
    return chain


@pytest.mark.parametrize("K", VARIABLES)
def test_weights_mean_z_whatever_the_parameters(K: int | str) -> None:
    chain = rough(Chain(2, diffusion(K), 8))
    with torch.no_grad():
        _, log_w = weighed(chain, ratio(), 20_000)
    shares = (log_w.double() - LOG_Z).exp()
    assert abs(float(shares.mean()) - 1) < 5.5 * float(shares.std()) / math.sqrt(len(shares))
    assert 0.1 < shares.std() < 5, "neither constant nor wide"


@pytest.mark.parametrize("K", VARIABLES)
def test_where_units_are_the_target_weights_are_constant(K: int | str) -> None:
    h = Ratio(gaussian, MEAN, SPREAD.diag())
    with torch.no_grad():
        u, log_w = weighed(Chain(2, diffusion(K), 4), h, 5_000)
    assert torch.allclose(log_w, torch.full_like(log_w, LOG_Z), atol=1e-3)
    assert torch.allclose(h.place(u).std(0), SPREAD, rtol=0.05)


@pytest.mark.parametrize("K", VARIABLES)
def test_slow_annealing_is_reversible(K: int | str) -> None:
    """Longer paths of as fine a grid dissipate less; with a wrong reversal they wouldn't."""
    lost = []
    with torch.no_grad():
        for time in (3.0, 24.0):
            torch.manual_seed(0)
            chain = Chain(2, diffusion(K), int(8 * time))
            chain.log_time += math.log(time / TIME)
            _, log_w = weighed(chain, ratio(), 1_000)
            lost.append(LOG_Z - float(log_w.mean()))
    assert 0 < lost[1] < lost[0] / 2
    assert lost[1] < 0.15


@pytest.mark.parametrize("K", VARIABLES)
def test_noising_paths_are_weighed_as_generated_ones(K: int | str) -> None:
    """E_q[w g(w)] = Z E_r[g(w)] for any g, where exact draws are noised by r."""
    spread = torch.tensor([0.9, 1.1])  # narrower ones have weights without a variance

    def density(x: Tensor) -> Tensor:
        return torch.distributions.Normal(MEAN, spread).log_prob(x).sum(-1) + LOG_Z

    chain = rough(Chain(2, diffusion(K), 4), 0.1)
    h = Ratio(density, torch.zeros(2), torch.eye(2))
    with torch.no_grad():
        _, log_w = weighed(chain, h, 20_000)
        data = MEAN + spread * torch.randn(20_000, 2)
        log_w_noised = h(data) + math.log(2 * math.pi) - chain.noising_cost(h, data)
    w, w_noised = ((value - LOG_Z).double().exp() for value in (log_w, log_w_noised))
    for power in (0, 1):  # g = w^power / (1 + w)², so that both sides are bounded
        generated, noised = w ** (power + 1) / (1 + w) ** 2, w_noised**power / (1 + w_noised) ** 2
        error = math.sqrt(float(generated.var() + noised.var()) / len(w))
        assert abs(float(generated.mean() - noised.mean())) < 5 * error
        assert noised.std() > 0.01, "weights that differ"


def test_steep_gradients_are_at_their_limit() -> None:
    """Their squares are beyond float32, and NaN is no gradient."""
    slope = torch.tensor([1e30, -math.inf, math.nan], requires_grad=True)
    limited = bounded(slope, LIMIT)
    assert torch.allclose(limited, torch.tensor([LIMIT, -LIMIT, 0.0]))
    (derivative,) = torch.autograd.grad(limited.sum(), slope)
    assert bool(derivative.isfinite().all())


def test_gradients_through_paths_are_those_of_finite_differences() -> None:
    chain, h = rough(Chain(2, diffusion(2), 3)), ratio()

    def value() -> Tensor:
        torch.manual_seed(1)
        return weighed(chain, h, 64)[1].double().mean()

    for name in ("gaps", "log_time", "power", "log_scale", "log_scale_back"):
        parameter = chain.get_parameter(name)
        (slope,) = torch.autograd.grad(value(), parameter)
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            ends = []
            for sign in (1, -1):
                parameter += sign * 1e-2 * direction
                ends.append(value())
                parameter -= sign * 1e-2 * direction
        difference = float(ends[0] - ends[1]) / 2e-2
        assert float((slope * direction).sum()) == pytest.approx(difference, rel=0.02, abs=2e-3), (
            name
        )


def test_a_control_that_follows_the_annealed_target_costs_nothing() -> None:
    """N(0, I) moves to N(m, I) by b m; the velocity that particles lack is the control."""
    m, steps = torch.tensor([1.0, -0.5]), 64

    def moved(x: Tensor) -> Tensor:
        return torch.distributions.Normal(m, 1.0, validate_args=False).log_prob(x).sum(-1)

    lost = []
    h = Ratio(moved, torch.zeros(2), torch.eye(2))
    for part in (-1.0, 0.0, 1.0):
        torch.manual_seed(0)
        chain = Chain(2, VPSDE(), steps)
        with torch.no_grad():
            kernels = chain.kernels()
            chain.last.bias.copy_(part * m / steps / (kernels.L[0, 0, 0] * kernels.pace[0]))
            _, log_w = weighed(chain, h, 2_000)
        lost.append(-float(log_w.mean()))
    assert lost[2] < lost[1] / 10 and lost[1] < lost[0] / 2


def test_steps_too_short_for_their_noise_are_named() -> None:
    chain = Chain(2, CLD(), 3)
    with torch.no_grad():
        chain.gaps[0] = -25.0
    with pytest.raises(KernelPrecisionError, match=r"a step of the chain has the time 2.78e-11"):
        chain.kernels()
