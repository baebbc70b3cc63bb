"""The residual score: coordinates in which Gaussian data has the exact score at a zero network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_mdm import CLD, VPSDE, LinearDiffusion, ResidualScore, Simulated, Simulation
from pyro_mdm.diffusions.clocks import ConstantBeta
from pyro_mdm.likelihoods.base import Gaussian
from tests.diffusions import TYPICAL
from tests.mistakes import refused
from tests.problems import GaussianMixture, learned, normal

MEAN = torch.tensor([0.7, -0.4, 0.1], dtype=torch.float64)
SD = torch.tensor([0.5, 1.3, 0.9], dtype=torch.float64)
LEVELS = 17


class Zero(nn.Module):
    def forward(self, y: Tensor, level: Tensor) -> Tensor:
        return torch.zeros_like(y)


class Seen(nn.Module):
    """Returns what it is told to, and remembers what it saw."""

    def __init__(self, out: Tensor | float = 0.0) -> None:
        super().__init__()
        self.out = out

    def forward(self, y: Tensor, level: Tensor) -> Tensor:
        self.inputs, self.level = y, level
        return self.out * torch.ones_like(y)


def data(n: int = 400) -> Tensor:
    """(n, 3) of exactly these moments."""
    x = normal(0, n, 3)
    return MEAN + SD * (x - x.mean(0)) / x.std(0, unbiased=False)


def problem() -> GaussianMixture:
    return GaussianMixture([1.0], MEAN[None], torch.diag(SD**2)[None])


def check_moments(score: ResidualScore, diffusion: LinearDiffusion, s: Tensor) -> None:
    """The score at a zero network is that of noised Gaussian data of independent dimensions."""
    y = normal(1, len(s), diffusion.num_variables, 3)
    found = score.score(diffusion, y, s)
    torch.testing.assert_close(found, problem().score(diffusion, y, s), rtol=1e-6, atol=1e-8)


diffusions = pytest.mark.parametrize(
    "make", [make for _, make in TYPICAL], ids=[name for name, _ in TYPICAL]
)


@torch.no_grad()
@diffusions
def test_it_is_exact_for_gaussian_data_at_the_levels_of_its_fit(make):
    diffusion = make()
    diffusion.max_log_snr = 5.0
    score = ResidualScore.fit(Zero(), diffusion, data(), num_levels=LEVELS)
    assert len(score.levels) == LEVELS and bool((score.levels.diff() > 0).all())
    assert float(score.levels[-1]) == pytest.approx(5.0)
    assert float(score.levels[0]) == pytest.approx(float(diffusion.terminal_log_snr))
    check_moments(score, diffusion, diffusion.time_at_log_snr(score.levels[:-1]))


@torch.no_grad()
@pytest.mark.parametrize("make", [VPSDE, CLD, lambda: learned(3, 3, 60)])
def test_between_levels_it_is_near(make):
    """By interpolation, which more levels make better."""
    diffusion = make()
    diffusion.max_log_snr = 5.0
    low = float(diffusion.terminal_log_snr)
    level = low + (5.0 - low) * torch.linspace(0.02, 0.98, 101).double()
    s = diffusion.time_at_log_snr(level)
    y = normal(2, 101, diffusion.num_variables, 3)
    exact = problem().score(diffusion, y, s)
    found = [
        ResidualScore.fit(Zero(), diffusion, data(), num_levels=num).score(diffusion, y, s)
        for num in (513, 33, 17, 129)
    ]
    assert float((found[1] - exact).norm() / exact.norm()) < 0.03
    # beside the fit at many levels, which has the same error of the sample
    coarse, fine = (float((each - found[0]).norm() / exact.norm()) for each in found[2:])
    assert fine < coarse / 10, (coarse, fine)  # 60: of second order, 3 doublings


@torch.no_grad()
def test_the_network_sees_and_gives_numbers_of_unit_variance():
    """White inputs by channels, the noise level, and an output that Wᵀ takes to a score."""
    diffusion = CLD(max_log_snr=5.0)
    seen = Seen(0.5)
    score = ResidualScore.fit(seen, diffusion, data(), num_levels=LEVELS)
    s = diffusion.time_at_log_snr(score.levels[8:9]).expand(8000)
    y = problem().noised(diffusion, float(s[0]), 8000)
    found = score.score(diffusion, y, s)
    assert seen.inputs.shape == (8000, 6)
    torch.testing.assert_close(seen.level, score.levels[8:9].expand(8000))
    assert float(seen.inputs.mean(0).abs().max()) < 5 / 8000**0.5
    error = seen.inputs.mT @ seen.inputs / 8000 - torch.eye(6).double()
    assert float(error.abs().max()) < 5 * (2 / 8000) ** 0.5
    seen.out = 0.0
    added = found - score.score(diffusion, y, s)
    # of L^{-T} F: C added = L F, whatever the state; and L is lower triangular
    marginal = diffusion.marginal(s[0])
    C = marginal.covariance + SD[:, None, None] ** 2 * torch.outer(marginal.mean, marginal.mean)
    back = (C @ added[0].mT.unsqueeze(-1)).squeeze(-1)
    expected = torch.linalg.cholesky(C).sum(-1) * 0.5
    torch.testing.assert_close(back, expected, rtol=1e-6, atol=1e-8)
    assert bool((added - added[:1]).abs().max() < 1e-9)


@torch.no_grad()
@pytest.mark.parametrize("make", [VPSDE, CLD])
def test_a_fit_by_simulation_is_the_closed_form_within_its_sampling_error(make):
    linear = make()
    linear.max_log_snr = 4.0
    linear.beta = ConstantBeta(3.0)
    n, K = 1000, linear.num_variables
    diffusion = Simulated(linear, Simulation(step_size=1 / 40))
    x = data(500)
    state = torch.get_rng_state()
    score = ResidualScore.fit(Zero(), diffusion, x, num_levels=6, num_paths=n)
    assert torch.equal(torch.get_rng_state(), state)
    s = diffusion.time_at_log_snr(score.levels).clamp(max=1.0)
    s = torch.maximum(s, diffusion.start_time)
    marginal = linear.marginal(s)
    a = marginal.mean
    C = marginal.covariance[:, None] + SD[:, None, None] ** 2 * (
        a[:, :, None] * a[:, None, :]
    ).unsqueeze(1)
    torch.testing.assert_close(score.levels, diffusion.log_snr(s))
    # what is left of the mean, in standard deviations of its own
    off = (score.mean - a[:, :, None] * MEAN).movedim(1, -1).unsqueeze(-1)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(C), off, upper=False)
    assert float(white.abs().max()) < 5 / n**0.5 + 0.01
    # and of the covariance: the whitener of the fit whitens it
    error = score.whitener @ C @ score.whitener.mT - torch.eye(K).double()
    assert float(error.abs().max()) < 5 * (2 / n) ** 0.5 + 0.03


@pytest.mark.parametrize("shape", [(3,), (1, 2, 2), (2, 1)])
@pytest.mark.parametrize("simulated", [False, True])
def test_shapes_precision_and_gradients(shape, simulated):
    torch.manual_seed(0)
    linear = CLD(max_log_snr=4.0)
    diffusion = Simulated(linear, Simulation(step_size=0.2)) if simulated else linear
    x = torch.randn(50, *shape)
    network = Seen(0.3)
    network.gain = nn.Parameter(torch.tensor(1.0))
    network.forward = lambda y, level: network.gain * y.tanh()
    score = ResidualScore.fit(network, diffusion, x, num_levels=5, num_paths=64)
    for dtype in (torch.float32, torch.float64):
        y = torch.randn(6, 2, *shape, dtype=dtype, requires_grad=True)
        s = torch.linspace(0.3, 1.0, 6).double()
        found = score.score(diffusion, y, s)
        assert found.shape == y.shape and found.dtype == dtype
        first, gain = torch.autograd.grad(found.square().sum(), [y, network.gain])
        assert bool(first.any()) and bool(gain.any())
        together = score.score(diffusion, y, 0.5)
        each = score.score(diffusion, y, torch.full((6,), 0.5).double())
        torch.testing.assert_close(together, each)
        lone = score.score(diffusion, y[:1], s[:1])
        torch.testing.assert_close(lone, found[:1], rtol=1e-4, atol=1e-4)
    assert isinstance(score.default_likelihood(), Gaussian)


LINE, MEANS = torch.tensor([0.0, 1.0]), torch.zeros(2, 2, 3)
COVARIANCES = torch.eye(2).expand(2, 3, 2, 2)
NAN = torch.full((4, 3), torch.nan)
MISFIT = r"mean has shape .* levels, expected \(M, K, \*event"


def made(levels: Tensor = LINE, mean: Tensor = MEANS, covariance: Tensor = COVARIANCES) -> Any:
    return ResidualScore(Zero(), levels, mean, covariance)


def asked(y: Tensor, network: nn.Module | None = None) -> Tensor:
    fitted = ResidualScore.fit(Zero() if network is None else network, CLD(), data())
    return fitted.score(CLD(), y, 0.5)


class Narrow(nn.Module):
    def forward(self, y: Tensor, level: Tensor) -> Tensor:
        return y[:, :1]


MISTAKES: list[tuple[Callable[[], Any], str]] = [
    (lambda: made(covariance=COVARIANCES[:, :2]), MISFIT),
    (lambda: made(LINE[:1], MEANS[:1], COVARIANCES[:1]), MISFIT),
    (lambda: made(mean=MEANS[:, :1]), MISFIT),
    (lambda: made(torch.tensor([0.0, 1.0, 2.0])), MISFIT),
    (lambda: made(covariance=COVARIANCES * torch.nan), "covariance .* holds nan"),
    (lambda: ResidualScore.fit(Zero(), CLD(), torch.zeros(0, 3)), r"train_x has shape \(0, 3\)"),
    (lambda: ResidualScore.fit(Zero(), CLD(), NAN), "train_x has 12 entries that are NaN"),
    (lambda: asked(torch.zeros(4, 3, 3)), r"y has shape \(4, 3, 3\) .* K = 2 variables of CLD"),
    (lambda: asked(NAN[:, None].expand(4, 2, 3)), "y of shape .* holds nan"),
    (lambda: asked(torch.zeros(4, 2, 3), Narrow()), r"Narrow returned \(4, 1\) for inputs \(4"),
]


def test_mistakes_are_named() -> None:
    made()
    refused(ValueError, *MISTAKES)
