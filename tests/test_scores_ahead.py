"""Scores at the times of a grid are those that are asked for one by one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_mdm import (
    CLD,
    VPSDE,
    Denoiser,
    DiffusionModel,
    DiscreteDenoiser,
    MomentumVE,
    NoisePrediction,
)
from pyro_mdm.diffusions import Diffusion
from pyro_mdm.networks import MLP
from pyro_mdm.paths.generative import BoundScore
from pyro_mdm.samplers import Ancestral, EulerMaruyama, ExponentialIntegrator, ProbabilityFlow
from pyro_mdm.samplers.base import Questions
from pyro_mdm.scores import RawScore, Score, ahead
from pyro_mdm.scores.conditioned import ConditionedDenoiser
from pyro_mdm.scores.residual import ResidualScore

N, D = 4, 3
SEEN = torch.tensor([True, False, False])
LEFT = torch.tensor([False, False, True])


def network(features: int, out: int, context: int = 0) -> MLP:
    """A network that is not 0."""
    made, generator = MLP(features + context, hidden=8, out_features=out), torch.Generator()
    for parameter in made.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator.manual_seed(1))
    return made


def denoiser(maps: bool = False, context: int = 0) -> Denoiser:
    mean, variance = torch.tensor([0.5, -1.0, 0.0]), torch.tensor([1.0, 0.5, 2.0])
    return Denoiser(network(D * (2 if maps else 1), D, context), mean, variance, maps=maps)


def conditioned(rows: bool, left: bool) -> ConditionedDenoiser:
    seen, values, out = SEEN, torch.tensor([0.3, 0.0, 0.0]), LEFT
    if rows:
        seen = torch.stack([SEEN, SEEN.flip(0), SEEN, ~SEEN & ~LEFT])
        values = torch.arange(N * D).reshape(N, D) / 10
        out = torch.stack([LEFT, SEEN, LEFT, LEFT])
    return ConditionedDenoiser(denoiser(maps=True), seen, values, out if left else None)


SCORES: dict[str, Any] = {
    "denoiser": denoiser,
    "any shape": lambda: Denoiser(network(D, D), 0.5, 2.0),
    "maps": lambda: denoiser(maps=True),
    "context": lambda: denoiser(context=2).given_context(torch.tensor([0.3, -0.7])),
    "contexts": lambda: denoiser(context=2).given_context(torch.randn(N, 2)),
    "noise": lambda: NoisePrediction(network(2 * D, 2 * D)),
    "raw": lambda: RawScore(network(2 * D, 2 * D)),
    "given": lambda: conditioned(False, False),
    "given, left out": lambda: conditioned(False, True),
    "given by row": lambda: conditioned(True, False),
    "given by row, left out": lambda: conditioned(True, True),
}


def asked(score: Score, diffusion: Diffusion) -> tuple[Any, Tensor, Tensor]:
    """The score ahead for a grid, the times, and states at them in float64."""
    times = diffusion.log_snr_grid(5)
    shape = (N, diffusion.num_variables, D)
    generator = torch.Generator().manual_seed(2)
    y = torch.randn(5, *shape, dtype=torch.float64, generator=generator)
    return BoundScore(diffusion, score).ahead(times, shape), times, y


@pytest.mark.parametrize("held", [1, 2**23])
@pytest.mark.parametrize("name", SCORES)
def test_they_are_those_of_one_time_after_the_other(
    name: str, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held for all times, or for one."""
    monkeypatch.setattr(ahead, "HELD", held)
    compare(SCORES[name]().double(), CLD(max_log_snr=9.0))


@pytest.mark.parametrize("name", ["noise", "raw"])
def test_states_that_are_not_at_rest_are_in_units(name: str) -> None:
    compare(SCORES[name]().double(), MomentumVE(max_log_snr=9.0))


def compare(score: Score, diffusion: Diffusion) -> None:
    with torch.no_grad():
        ready, times, states = asked(score, diffusion)
        for s, y in zip(times.unbind(), states.unbind(), strict=True):
            c = ready.at(y, s)
            every = s.expand(N)
            x_hat = score.denoise(diffusion, y, every)
            torch.testing.assert_close(ready.denoise(c, y), x_hat, rtol=1e-9, atol=1e-9)
            theta = score.score(diffusion, y, every)
            size = theta.abs().max().item()
            torch.testing.assert_close(ready.score(c, y), theta, rtol=1e-8, atol=1e-10 * size)


def test_a_state_of_another_kind_is_asked_as_usual() -> None:
    diffusion = VPSDE(max_log_snr=9.0)
    ready, times, y = asked(denoiser(), diffusion)
    assert ready.at(y[0], times[1]) is not None
    assert ready.at(y[0, :2], times[1]) is None
    assert ready.at(y[0].float(), times[1]) is None
    assert ready.at(y[0], times[1] + 0.0) is None
    times.mul_(0.5)
    assert ready.at(y[0], times[1]) is None


class Half(Denoiser):
    """A denoiser with an x̂ of its own."""

    def x_hat(self, z: Tensor, log_snr: Any) -> Tensor:
        return super().x_hat(z, log_snr) / 2


def others() -> list[Score]:
    patched: Any = denoiser()
    patched.x_hat = lambda z, log_snr: z
    levels = torch.linspace(-1, 1, 3, dtype=torch.float64)
    train = levels[torch.randint(3, (50, D), generator=torch.Generator().manual_seed(0))]
    discrete = DiscreteDenoiser.fit(network(D, D), train, levels)
    residual = ResidualScore.fit(network(D, D), VPSDE(max_log_snr=9.0), torch.randn(50, D))
    return [Half(network(D, D), torch.zeros(D), torch.ones(D)), patched, discrete, residual]


@pytest.mark.parametrize("number", range(4))
def test_other_kinds_are_asked_as_usual(number: int) -> None:
    assert asked(others()[number], VPSDE(max_log_snr=9.0))[0] is None


def test_a_function_that_is_replaced_in_the_library_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Denoiser, "x_hat", lambda self, z, log_snr: z)
    assert asked(denoiser(), VPSDE(max_log_snr=9.0))[0] is None


def test_what_is_not_finite_is_named() -> None:
    ready, times, y = asked(denoiser(), VPSDE(max_log_snr=9.0))
    bad = y[0].clone()
    bad[1, 0, 2] = math.nan
    with pytest.raises(ValueError, match=r"y of shape \(4, 1, 3\) holds nan"):
        ready.denoise(ready.at(bad, times[0]), bad)
    ready.owner.network.outlet.bias.data[0] = math.inf
    with pytest.raises(ValueError, match="expected finite weights"):
        ready.denoise(ready.at(y[0], times[0]), y[0])


def test_the_trained_range_holds_ahead() -> None:
    score = denoiser()
    score.set_trained_range(-5.0, 5.0)
    ready, _, _ = asked(score, VPSDE(max_log_snr=9.0))
    with pytest.raises(ValueError, match=r"outside \[-5, 5\]"):
        ready.coefficients(0)


class Alone(Questions):
    """Questions whose answers are not computed ahead."""

    def look_ahead(self, times: Tensor, shape: torch.Size) -> None:
        pass


@pytest.mark.parametrize("make", [Ancestral, EulerMaruyama, ExponentialIntegrator, ProbabilityFlow])
def test_samples_are_the_same_either_way(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = DiffusionModel(CLD(max_log_snr=9.0), denoiser().double(), sampler=make(6))
    samples = []
    for kind in (Questions, Alone):
        monkeypatch.setattr("pyro_mdm.samplers.base.Questions", kind)
        torch.manual_seed(3)
        samples.append(model(batch_size=N))
    torch.testing.assert_close(*samples, rtol=1e-9, atol=1e-9)
    assert samples[0].std() > 0.1
