"""Bounds of simulated models: against what is known, their errors, pairs, and the step's bias."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_mdm import (
    CLD,
    DiffusionGuide,
    DiffusionModel,
    HamiltonianDiffusion,
    NonlinearDiffusion,
    ResidualScore,
    Simulated,
    Simulation,
)
from pyro_mdm.diffusions.clocks import ConstantBeta, log_snr_times
from pyro_mdm.diffusions.linear import GaussianPrior
from pyro_mdm.evaluation.comparison import compare, log_likelihood
from pyro_mdm.simulated.evaluation import step_size_bias
from tests.problems import normal

MEAN, SD, D = 0.5, 0.7, 2
BITS = D * math.log(2)


def data(n: int, seed: int = 0) -> Tensor:
    """Independent Gaussian data, of which a residual score without a network is exact."""
    x = normal(seed, n, D)
    return MEAN + SD * (x - x.mean(0)) / x.std(0, unbiased=False)


def log_prob(x: Tensor) -> Tensor:
    return torch.distributions.Normal(MEAN, SD).log_prob(x).sum(1)


class Pull(nn.Module):
    """What a score has too much of."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(strength, dtype=torch.float64))

    def forward(self, y: Tensor, level: Tensor) -> Tensor:
        return self.strength * y


def linear(**options: Any) -> CLD:
    return CLD(beta=ConstantBeta(4.0), max_log_snr=8.0, **options)


def programs(diffusion: Any, strength: float = 0.0) -> tuple[DiffusionModel, DiffusionGuide]:
    score = ResidualScore.fit(Pull(strength), linear(), data(4096))
    score.levels.copy_(diffusion.log_snr(log_snr_times(linear(), 33).flip(0)).detach())
    return DiffusionModel(diffusion, score, event_shape=(D,)), DiffusionGuide(diffusion)


def simulated(**options: Any) -> Simulated:
    return Simulated(linear(), Simulation(**{"step_size": 1 / 32, "points": 8} | options))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"objective": "local_dsm"}, {"probes": 2, "probe_law": "gaussian"}], ids=str
)
def test_the_bound_of_an_exact_score_is_the_likelihood(options):
    x = data(64, 1)
    model, guide = programs(simulated(**options))
    found = log_likelihood(model, guide, x, draws=48, seed=1)
    bias = step_size_bias(model, guide, x, seed=2)
    gap = found.mean - float(log_prob(x).mean())
    assert abs(gap) < 5 * found.monte_carlo_error + 2 * abs(bias.difference) + 0.02
    assert found.monte_carlo_error < 0.25
    terms = found.reconstruction[0] - found.prior_kl[0] - found.diffusion[0]
    assert terms == pytest.approx(found.mean, abs=1e-9)
    closed = log_likelihood(*programs(linear()), x, draws=64)
    assert abs(found.prior_kl[0] - closed.prior_kl[0]) < 5 * found.prior_kl[1] + 0.02
    assert (found.probe_error > 0) == ("probes" in options)


@pytest.mark.slow
def test_reported_errors_are_those_of_other_noise():
    x = data(64, 2)
    model, guide = programs(simulated(step_size=1 / 16))
    found = [log_likelihood(model, guide, x, draws=16, seed=s) for s in range(16)]
    spread = torch.tensor([f.mean for f in found]).std()
    reported = torch.tensor([f.monte_carlo_error for f in found]).mean()
    assert 0.35 < spread / reported < 1.9  # 16 values tell their spread to 18%


@pytest.mark.slow
def test_comparisons_pair_and_have_their_sign():
    x = data(64, 3)
    pairs = {
        "closed": programs(linear()),
        "right": programs(simulated()),
        "wrong": programs(simulated(), 0.15),
        "slight": programs(simulated(), 0.01),
    }
    found = compare(pairs, x, draws=64, seed=1)
    by_name = {(d.first, d.second): d for d in found.differences}
    worse = by_name["right", "wrong"]
    assert worse.resolved and worse.bits_per_dim[0] < 0  # fewer bits are better
    errors = [found.estimates[name].monte_carlo_error / BITS for name in ("right", "wrong")]
    assert worse.monte_carlo_error < 0.9 * math.hypot(*errors)
    slight = by_name["right", "slight"]  # of almost the same noise
    assert slight.monte_carlo_error < 0.2 * errors[0]
    for name in ("prior_kl", "diffusion"):  # terms are paired, and have their signs, too
        value, error = getattr(slight, name)
        alone = [getattr(found.estimates[key], name) for key in ("right", "slight")]
        assert value == pytest.approx((alone[0][0] - alone[1][0]) / BITS, abs=1e-9)
        assert error < 0.3 * alone[0][1] / BITS
    assert slight.reconstruction == (0.0, 0.0)
    same = by_name["closed", "right"]
    assert abs(same.bits_per_dim[0]) < 5 * same.monte_carlo_error + 0.03
    ends = found.estimates
    assert worse.bits_per_dim[0] == pytest.approx(
        ends["right"].bits_per_dim - ends["wrong"].bits_per_dim, abs=1e-9
    )


def test_linear_models_stay_paired_beside_a_simulated_one():
    """Their difference is what it is without it, and a mixed pair reaches the half-width too."""
    x = data(64, 6)
    pairs = {"a": programs(linear(), 0.3), "b": programs(linear(), 0.31)}
    alone = compare(pairs, x, half_width=0.8 / math.sqrt(2), draws=4000)
    found = compare(
        pairs | {"c": programs(simulated(step_size=1 / 16), 0.3)}, x, half_width=0.8, draws=4000
    )
    assert found.differences[0].bits_per_dim == alone.differences[0].bits_per_dim
    mixed = found.differences[1]
    assert mixed.monte_carlo_error > 3 * alone.differences[0].monte_carlo_error
    assert 1.96 * mixed.monte_carlo_error < 1.2 * 0.8


@pytest.mark.slow
def test_it_stops_when_bounds_and_differences_are_known():
    x = data(64, 4)
    diffusion = simulated(step_size=1 / 16)
    pairs = {"a": programs(diffusion), "b": programs(diffusion, 0.3)}
    found = compare(pairs, x, draws=4000, half_width=0.2)
    widths = [1.96 * e.monte_carlo_error / BITS for e in found.estimates.values()]
    widths += [1.96 * d.monte_carlo_error for d in found.differences]
    assert found.reached == (max(widths) <= 0.2) and max(widths) < 1.4 * 0.2
    calls = [e.network_calls for e in found.estimates.values()]
    assert calls[0] == calls[1] < 4000 * 32
    assert not compare(pairs, x, draws=16, half_width=1e-4).reached


@pytest.mark.slow
def test_the_bias_of_a_step_is_what_half_of_it_changes():
    x = data(64, 5)
    step, draws = 1 / 8, 250
    coarse, fine = (
        log_likelihood(*programs(simulated(step_size=h, method="euler")), x, draws=draws)
        for h in (step, step / 2)
    )
    model, guide = programs(simulated(step_size=step, method="euler"))
    bias = step_size_bias(model, guide, x, draws=8)
    assert bias.step_size == step and abs(bias.difference) > 8 * bias.standard_error
    error = math.hypot(coarse.monte_carlo_error, fine.monte_carlo_error, bias.standard_error)
    assert abs(coarse.mean - fine.mean - bias.difference) < 5 * error


def test_linear_diffusions_have_no_step():
    with pytest.raises(ValueError, match="a step size needs paths that are simulated, which CLD"):
        step_size_bias(*programs(linear()), data(16))


class Undeclared(NonlinearDiffusion):
    coupled = False

    def __init__(self) -> None:
        super().__init__(1)

    def drift(self, y: Tensor, s: Any) -> Tensor:
        return -y

    def dispersion(self, y: Tensor, s: Any) -> Tensor:
        if self.coupled:
            G = (1 + y.square().mean(2, keepdim=True)).sqrt().expand_as(y)
            return G.movedim(1, -1).unsqueeze(-1)
        return (1 + y.flatten(1)[:, :1].square()).sqrt().unsqueeze(-1)


class Coupled(Undeclared):
    noise_depends_on_state = True
    coupled = True


def test_noise_that_depends_on_more_than_is_declared_is_named():
    with pytest.raises(ValueError, match="changes with the state, but noise_depends_on_state is F"):
        Undeclared().check((3,))
    with pytest.raises(ValueError, match="for one data dimension changes with another"):
        Coupled().check((3,))


@pytest.mark.parametrize("d", [2, 40])
def test_a_wrong_prior_is_refused_in_many_dimensions_too(d):
    Q, D = [[0.0, -1.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 2.0]]

    def energy(y: Tensor) -> Tensor:
        return (y.square() + y**4 / 4).sum(1)

    prior = GaussianPrior(4 * torch.eye(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="not the stationary law"):
        HamiltonianDiffusion(energy, Q, D, prior=prior).check((d,))
    quadratic = [lambda x: x**2 / 2, lambda v: v**2 / 2]
    HamiltonianDiffusion(quadratic, Q, D).check((d,))
