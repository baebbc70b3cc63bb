"""Log volume κ, the coordinate in which scores of the raw state are integrated.

The reference for gradients is the diffusion term of linear scores, ½ ∫ E‖s_θ - ∇log q‖²_{g²} ds in
closed form, integrated over clock time without κ and differentiated by finite differences.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from mpmath import mp, mpf
from torch import Tensor, nn

from pyro_mdm import NoisePrediction, RawScore, randomness
from pyro_mdm.diffusions.ends import marginal_at
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.diffusions.presets import ALDA, CLD, LearnedDiffusion
from pyro_mdm.scores.base import Score, log_snr_at
from tests.core.test_scores import level_at
from tests.diffusions import CONSTANT, DISTINCT
from tests.digits import exact, log_det, marginal_truth
from tests.problems import Factory, learned, learned_ends, normal

diffusions = pytest.mark.parametrize(
    "make", [factory for _, factory in DISTINCT], ids=[name for name, _ in DISTINCT]
)


def times(diffusion: LinearDiffusion, n: int) -> Tensor:
    """n times between ε and T, evenly spaced in log s."""
    low = diffusion.start_time.detach().log().item()
    return torch.linspace(low, math.log(diffusion.horizon), n + 2, dtype=torch.float64)[1:-1].exp()


@pytest.mark.parametrize(
    "make", [factory for _, factory in CONSTANT], ids=[name for name, _ in CONSTANT]
)
def test_log_volume_has_its_definitions_digits(make: Factory) -> None:
    """κ = log det Σ - 2 ∫ tr A against 120 digits, at ε and once on the way."""
    diffusion = make().requires_grad_(False)
    if isinstance(diffusion, LearnedDiffusion):
        drift = (
            -(exact(diffusion.Q) + exact(diffusion.D))
            * exact(diffusion.stationary_covariance) ** -1
        )
    else:
        drift = exact(diffusion.matrices.drift())
    with mp.workdps(120):
        for s in (diffusion.start_time.item(), times(diffusion, 1).item()):
            tau = diffusion.clock(s).item()
            trace = sum(drift[i, i] for i in range(drift.rows))
            truth = log_det(marginal_truth(diffusion, tau).Sigma) - 2 * mpf(tau) * trace
            found = diffusion.log_volume(s).item()
            assert abs(float(mpf(found) - truth)) < 1e-8 * max(1.0, abs(found) / 100)


@diffusions
def test_its_rate_is_its_derivative(make: Factory) -> None:
    diffusion = make().requires_grad_(False)
    s = times(diffusion, 12)
    h = 1e-4 * s
    slope = (diffusion.log_volume(s + h) - diffusion.log_volume(s - h)) / (2 * h)
    torch.testing.assert_close(diffusion.log_volume.rate(s), slope, rtol=1e-5, atol=0)


@diffusions
def test_times_are_found_by_it(make: Factory) -> None:
    diffusion = make().requires_grad_(False)
    start, end = diffusion.log_volume.ends
    value = start + (end - start) * torch.linspace(0, 1, 33, dtype=torch.float64)
    s = diffusion.log_volume.inverse(value)
    assert bool((s.diff() > 0).all()) and float(s[-1]) <= diffusion.horizon
    torch.testing.assert_close(s[0], diffusion.start_time, rtol=1e-6, atol=0)
    torch.testing.assert_close(s[-1].item(), diffusion.horizon, rtol=1e-6, atol=0)
    torch.testing.assert_close(diffusion.log_volume(s), value, rtol=0, atol=2e-6)


@pytest.mark.parametrize("change", [-1.0, 1.0, math.nan], ids=["low", "high", "nan"])
def test_a_log_volume_that_is_nowhere_is_an_error(change: float) -> None:
    diffusion = CLD()
    start, end = diffusion.log_volume.ends.tolist()
    value = {-1.0: start - 1, 1.0: end + 1}.get(change, change)
    with pytest.raises(ValueError, match="not between that of ε"):
        diffusion.log_volume.inverse(value)


class Linear(nn.Module):
    """F(y, λ) = (1 + λ/20) C y for each data dimension, so that errors are quadratic in (x, η)."""

    def __init__(self, K: int) -> None:
        super().__init__()
        self.K, self.C = K, 0.4 * normal(K, K, K)

    def forward(self, y: Tensor, log_snr: Tensor) -> Tensor:
        y = y.unflatten(1, (self.K, -1))
        out = torch.einsum("ij,nj...->ni...", self.C.to(y), y).flatten(1, 2)
        return out * (1 + log_snr / 20).reshape(-1, *[1] * (out.dim() - 1))


def widest(K: int, rank: int) -> Callable[[], LearnedDiffusion]:
    """A learned diffusion whose clock and both ends move with what is learned."""

    def make() -> LearnedDiffusion:
        start = learned(K, rank, {(1, 1): 10, (2, 1): 108, (3, 1): 54}.get((K, rank), 6 * K))
        found = LearnedDiffusion.from_diffusion(start, rank=rank, learn_beta=True, max_log_snr=7.0)
        with torch.no_grad():
            found.beta.raw.add_(0.3 * normal(3, len(found.beta.raw)))
        return found

    return make


LEARNED: dict[str, Callable[[], LearnedDiffusion]] = {
    f"{K}_rank_{rank}": widest(K, rank)
    for K, rank in [(1, 1), (2, 1), (2, 2), (3, 1), (3, 3), (4, 2), (4, 4)]
} | {
    "from_alda": lambda: LearnedDiffusion.from_diffusion(ALDA(), rank=1, learn_beta=True),
    "clock_fixed": lambda: learned(2, 1, 108, min_log_snr=-9.0),
    "ends": learned_ends,
}
SCORES: dict[str, type[Score]] = {"noise": NoisePrediction, "raw": RawScore}
SD = 0.7  # of the data, which have one dimension and mean 0


@functools.cache
def gauss(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss-Legendre quadrature on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return torch.as_tensor((nodes + 1) / 2), torch.as_tensor(weights / 2)


def closed_form(diffusion: LinearDiffusion, kind: str, network: Linear) -> Tensor:
    """½ ∫ E‖s_θ - ∇log q‖²_{g²} dτ over clock time, by quadrature in log τ."""
    nodes, weights = gauss(400)
    ends = diffusion.ends.clocks.log()
    x = ends[0] + (ends[1] - ends[0]) * nodes
    tau, weight = x.exp(), weights * (ends[1] - ends[0]) * x.exp()
    marginal = marginal_at(diffusion, tau)
    L, a = marginal.scale_tril, marginal.mean
    W = torch.linalg.inv(L)
    C = network.C * (1 + marginal.log_snr / 20)[:, None, None]
    S = -W.mT @ C if kind == "noise" else C  # s_θ = S y
    from_noise, from_x = S @ L + W.mT, SD * (S @ a.unsqueeze(-1))
    covariance = from_noise @ from_noise.mT + from_x @ from_x.mT
    return 0.5 * (weight * (diffusion.matrices.noise() * covariance).sum((-2, -1))).sum()


def expected_term(
    diffusion: LinearDiffusion, kind: str, network: Linear, monkeypatch: pytest.MonkeyPatch
) -> Tensor:
    """The mean of Score.diffusion_term: by quadrature in u, and exactly over x and noise.

    A quadratic form's mean is its sum over the axes of (x, η).
    """
    K = diffusion.num_variables
    nodes, weights = gauss(100)
    u, weight = nodes.repeat_interleave(K + 1), weights.repeat_interleave(K + 1)
    axes = torch.eye(K + 1, dtype=torch.float64).repeat(len(nodes), 1)
    monkeypatch.setattr(randomness, "low_discrepancy", lambda n, device: u)
    monkeypatch.setattr(randomness, "normal", lambda *args: axes[:, 1:].unsqueeze(-1))
    values, _ = SCORES[kind](network).diffusion_term(diffusion, SD * axes[:, :1])
    return (weight * values).sum()


@pytest.mark.parametrize(
    ("name", "kind"), [(name, [*SCORES][i % 2]) for i, name in enumerate(LEARNED)]
)
def test_diffusion_term_and_its_gradients_are_those_of_the_closed_form(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Q, D and β, which move κ, both its ends, the times and the noise levels."""
    diffusion = LEARNED[name]()
    network = Linear(diffusion.num_variables)
    term = expected_term(diffusion, kind, network, monkeypatch)
    with torch.no_grad():
        torch.testing.assert_close(
            term.detach(), closed_form(diffusion, kind, network), rtol=1e-6, atol=0
        )
    parameters = [p for p in diffusion.parameters() if p.numel()]
    gradients = torch.autograd.grad(term, parameters)
    for i, (p, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        direction = normal(i, *p.shape)
        direction = direction / direction.norm() + gradient / gradient.norm()
        truth = slope(lambda: closed_form(diffusion, kind, network), p, direction)
        found = float((gradient * direction).sum())
        assert abs(found - truth) < 1e-5 * float(gradient.norm())
        assert float(gradient.norm()) > 1e-3


def slope(value: Callable[[], Tensor], p: Tensor, direction: Tensor) -> float:
    """The derivative along a direction by central differences and Richardson's extrapolation."""
    found, kept = [], p.detach().clone()
    with torch.no_grad():
        for h in (1e-4, 5e-5):
            ends = []
            for change in (h, -h):
                p.copy_(kept + change * direction)
                ends.append(value().item())
            found.append((ends[0] - ends[1]) / (2 * h))
        p.copy_(kept)
    return (4 * found[1] - found[0]) / 3


def test_levels_are_log_volume_between_the_ends_of_log_snr() -> None:
    diffusion = ALDA()
    score = NoisePrediction(Linear(3))
    ends = (diffusion.terminal_log_snr.item() + 1e-6, diffusion.max_log_snr)
    lam = torch.linspace(*ends, 21, dtype=torch.float64)
    level, slope = level_at(diffusion, lam)
    torch.testing.assert_close(log_snr_at(score, diffusion, level), lam, rtol=0, atol=1e-5)
    torch.testing.assert_close(level[[0, -1]], lam[[0, -1]], rtol=0, atol=1e-5)
    assert bool((level.diff() > 0).all()) and bool((slope > 0).all())
