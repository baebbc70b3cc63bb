"""Samplers, diffusions and decoders as users write and use them: each question, kind by kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import pyro_mdm as library
from pyro_mdm.diffusions import Clock, ConstantBeta, LinearBeta
from pyro_mdm.likelihoods import JointTweedie
from pyro_mdm.networks import MLP
from pyro_mdm.paths.base import noising_law
from pyro_mdm.samplers import ExponentialIntegrator, Sampler
from tests.problems import generator

ENDS = {"min_log_snr": -8.0}
DIFFUSIONS: dict[str, Callable[[], Any]] = {
    "CLD": lambda: library.CLD(**ENDS),
    "VPSDE": lambda: library.VPSDE(**ENDS),
    "learned": lambda: library.LearnedDiffusion(2, **ENDS),
    "per dimension": lambda: library.PerDimensionDiffusion(
        [library.CLD(**ENDS), library.LearnedDiffusion(2, **ENDS)], torch.tensor([0, 1])
    ),
}
NETWORKS: dict[str, Callable[[Any], Any]] = {
    "denoiser": lambda diffusion: library.Denoiser(
        MLP(2), torch.zeros(2), torch.ones(2), maps=diffusion.maps
    ),
    "raw": lambda diffusion: library.RawScore(MLP(diffusion.num_variables * 2)),
}


class Times(NamedTuple):
    """A plan whose times have names of the reader's own."""

    t: Tensor
    step: Tensor


class Both(NamedTuple):
    """A plan of which one field is the times of calls, whose coefficients are ready."""

    s: Tensor
    t: Tensor


def at_plan(plan: Any, i: int) -> tuple[Any, ...]:
    row = plan[i]
    return (
        (row,) if isinstance(row, Tensor) else (row.s, row.t) if isinstance(row, Both) else row[:1]
    )


PLANS: dict[str, Callable[[Tensor], Any]] = {
    "times": lambda times: times,
    "named times": lambda times: Times(times[:-1], times[:-1] - times[1:]),
    "both": lambda times: Both(times[:-1], times[:-1]),
}


class Asking(Sampler):
    """A sampler that asks for the score, the denoiser and the velocity, wherever it can."""

    def __init__(self, make_plan: Callable[[Tensor], Any]) -> None:
        super().__init__(2)
        self.make_plan, self.answers = make_plan, []  # type: ignore[var-annotated]

    def plan(self, diffusion: Any, times: Tensor) -> Any:
        return self.make_plan(times)

    def step(self, plan: Any, i: int, y: Tensor, ask: Any, noise: Any) -> Tensor:
        asked = at_plan(plan, i)
        scores = [ask.score(y, at) for at in asked]
        guesses = [ask.denoise(y, at) for at in asked]
        velocity = ask.velocity(y, asked[-1], 1.0)
        self.answers.append((asked[-1], y, scores, guesses, velocity))
        return y - 0.05 * velocity


@pytest.mark.parametrize(
    ("kind", "network", "plan"),
    [
        (kind, network, [*PLANS][(i + j) % len(PLANS)])
        for i, kind in enumerate(("CLD", "VPSDE", "learned"))
        for j, network in enumerate((*NETWORKS, "a function"))
    ],
)
def test_a_sampler_may_ask_at_times_and_where_coefficients_are_ready(
    kind: str, network: str, plan: str
) -> None:
    torch.manual_seed(0)
    diffusion = DIFFUSIONS[kind]()
    make = NETWORKS["denoiser" if network == "a function" else network]
    model = library.DiffusionModel(diffusion, make(diffusion), event_shape=(2,))
    model.eval()
    score = model.bound_score
    plain = lambda y, s: score(y, s)  # noqa: E731
    asked = plain if network == "a function" else score
    sampler = Asking(PLANS[plan])
    with torch.no_grad():
        sampler(diffusion, asked, (3, diffusion.num_variables, 2), generator=generator(0))
        assert len(sampler.answers) == 2
        for s, y, scores, guesses, velocity in sampler.answers:
            times = s.expand(len(y))
            for found in scores:
                torch.testing.assert_close(
                    found.float(), score(y.float(), times), rtol=2e-4, atol=2e-4
                )
            for found in guesses:
                expected = score.denoise(y.float(), times)
                torch.testing.assert_close(found.float(), expected, rtol=2e-3, atol=2e-3)
            drift = diffusion.drift(y, times)
            spread = diffusion.noise_covariance(times)
            pulled = torch.einsum("nij,njd->nid", spread, scores[0])
            torch.testing.assert_close(velocity, drift - pulled, rtol=1e-4, atol=1e-4)


SUBCLASSED = ["CLD", "VPSDE", "LearnedDiffusion", "VE", "TimeVaryingLearnedDiffusion"]


@pytest.mark.parametrize("name", SUBCLASSED)
def test_a_diffusion_of_a_users_class_may_set_values_before_it_is_made(name: str) -> None:
    base = getattr(library, name)

    class Mine(base):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, mass: float = 0.5, **options: Any) -> None:
            self.mass, self.count = mass, 3
            super().__init__(*args, **options)

    arguments = (2,) if "Learned" in name else ()
    made, plain = Mine(*arguments, **ENDS), base(*arguments, **ENDS)
    assert (made.mass, made.count) == (0.5, 3)
    torch.testing.assert_close(made.start_time, plain.start_time, rtol=0, atol=0)


@pytest.mark.parametrize("kind", DIFFUSIONS)
def test_the_distribution_of_paths_has_the_options_of_its_kind(kind: str) -> None:
    diffusion = DIFFUSIONS[kind]()
    path = noising_law(diffusion, torch.zeros(3, 2), None, event_dim=1)
    assert isinstance(path, library.NoisingPath)
    with pytest.raises(TypeError, match="simulation"):
        noising_law(diffusion, torch.zeros(3, 2), simulation=library.Simulation())


@pytest.mark.parametrize("first", ["the original", "its copies"])
def test_copies_of_a_decoder_share_its_network_call(first: str) -> None:
    class Counted(MLP):
        calls = 0

        def forward(self, *args: Any) -> Tensor:
            self.calls += 1
            return super().forward(*args)

    diffusion = library.CLD(**ENDS)
    network = Counted(2)
    score = library.Denoiser(network, torch.zeros(2), torch.ones(2))
    y = torch.randn(5, 2, 2, generator=generator(1))
    decoder = JointTweedie()(diffusion, score, y, 1)
    copies = [decoder.expand((3, 5)), decoder.expand((5,))]
    x = torch.zeros(5, 2)
    order: Sequence[Any] = [decoder, *copies] if first == "the original" else [*copies, decoder]
    for one in order:
        one.log_prob(x)
    assert network.calls == 1


# -- what is set, asked or switched between two questions ------------------------------------------


@pytest.mark.parametrize("kind", DIFFUSIONS)
def test_a_question_in_inference_mode_does_not_spoil_training(kind: str) -> None:
    diffusion = DIFFUSIONS[kind]()
    if kind == "learned":
        diffusion.max_log_snr = 9.0
    with torch.inference_mode():
        first = diffusion.start_time.item()
    value = diffusion.clock(0.5)
    assert diffusion.start_time.item() == pytest.approx(first, rel=1e-9)
    if value.requires_grad:
        value.sum().backward()


@pytest.mark.parametrize(
    ("beta", "spread", "error", "order"),
    [(LinearBeta(0.1, 20.0), 0.1, 0.07, 3), (ConstantBeta(8.0), 0.3, 0.15, 2)],
)
def test_the_spread_of_samples_is_that_of_the_data(
    beta: Clock, spread: float, error: float, order: int
) -> None:
    """By the Gaussian's own x̂ and the integrator's own grid, whose last step is the longest."""
    x = spread * torch.tensor([[-1.0], [1.0]])
    diffusion = library.VPSDE(beta=beta)
    score = library.Denoiser.fit(MLP(1), x)
    for parameter in score.network.parameters():
        torch.nn.init.zeros_(parameter)
    sampler = ExponentialIntegrator(25, order)
    model = library.DiffusionModel(diffusion, score, sampler=sampler).eval()
    with torch.no_grad():
        assert model(batch_size=20000).std().item() == pytest.approx(spread, rel=error)


def test_the_score_of_another_diffusion_is_refused() -> None:
    score = library.Denoiser.fit(MLP(1), torch.tensor([[-1.0], [1.0]]))
    model = library.DiffusionModel(library.VPSDE(), score)
    with pytest.raises(ValueError, match=r"diffusion is a CLD, and the score is of another one"):
        ExponentialIntegrator(2)(library.CLD(), model.bound_score, (3, 2, 1))
