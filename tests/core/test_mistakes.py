"""What newcomers do wrong with the library: every mistake is answered with value, expectation, fix.

Those that are made with the programs are in test_program_mistakes.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI
from torch import nn

from pyro_mdm import (
    CLD,
    MALDA,
    MDM_ELBO,
    Denoiser,
    DiffusionGuide,
    DiffusionModel,
    DiscreteDenoiser,
    LearnedDiffusion,
    LearnedDrift,
    LinearDiffusion,
    NoisePrediction,
    RawScore,
    ResidualScore,
    Simulated,
    Simulation,
    bound,
)
from pyro_mdm.diffusions.clocks import ConstantBeta, LearnedBeta
from pyro_mdm.evaluation.comparison import compare, log_likelihood
from pyro_mdm.networks import MLP, UNet
from pyro_mdm.samplers.stochastic import Splitting
from tests.problems import generator, normal

X = normal(0, 16, 2).float()
IMAGES = torch.linspace(-1, 1, 17)[torch.randint(17, (16, 1, 8, 8), generator=generator(1))]
Q, D = [[0.0, -1.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 2.0]]
NAN = math.nan


def small(features: int = 2, **options: Any) -> MLP:
    return MLP(features, hidden=8, depth=1, **options)


def unet(channels: int = 1, out_channels: int | None = 17, multipliers: Any = (1,)) -> UNet:
    return UNet(channels, out_channels=out_channels, base=8, multipliers=multipliers)


def denoiser(network: Any = None) -> Denoiser:
    return Denoiser.fit(small() if network is None else network, X)


def levels(network: Any = None) -> DiscreteDenoiser:
    return DiscreteDenoiser.fit(unet() if network is None else network, IMAGES, levels=17)


def programs(score: Any = None, diffusion: Any = None, **options: Any) -> tuple[Any, Any]:
    diffusion = CLD(max_log_snr=9.0) if diffusion is None else diffusion
    model = DiffusionModel(diffusion, denoiser() if score is None else score, **options)
    return model, DiffusionGuide(diffusion, times=options.get("times"))


def model(*score: Any, **options: Any) -> Any:
    return programs(*score, **options)[0]


def step(x: Any, pair: Any = None, **options: Any) -> None:
    """A step of training, as in the README."""
    pair = programs() if pair is None else pair
    svi = SVI(*pair, pyro.optim.Adam({"lr": 1e-3}), loss=MDM_ELBO())
    svi.step(x, **options)


def broken() -> Denoiser:
    score = denoiser()
    with torch.no_grad():
        score.network.outlet.bias.fill_(NAN)
    return score


def in_double(pair: Any) -> Any:
    pair[0].double()
    return pair


def simulated() -> Simulated:
    return Simulated(CLD(max_log_snr=9.0))


def correlated(off: float) -> list[list[float]]:
    return [[1.0, 1.0 - off], [1.0 - off, 1.0]]


Mistakes = list[tuple[Callable[[], Any], str]]
"""Calls, and fragments of the messages that answer them."""

DATA: Mistakes = [
    (lambda: step(X.double()), "x is torch.float64 .* weights are torch.float32.* pass"),
    (lambda: step(X, in_double(programs())), "x is torch.float32 .* weights are torch.float64"),
    (lambda: step(X.half()), "x is torch.float16, expected float32 or float64.*pass"),
    (lambda: step((X, torch.zeros(16))), "x is a tuple of tensors, expected a torch tensor"),
    (lambda: step(None), "guide noises data and was given none"),
    (lambda: step(torch.zeros(16, 2, dtype=torch.uint8)), "x is torch.uint8, expected"),
    (lambda: step(X * NAN), "x has 32 entries that are NaN or infinite, expected finite data"),
    (lambda: step(X[:0]), r"x has shape \(0, 2\), expected at least one datum; look at the loader"),
    (lambda: step(X.to("meta")), "x is on meta and the programs are on cpu, expected one device"),
    (lambda: step(torch.zeros(16, 3)), r"x has shape \(16, 3\), expected \(batch, 2\); build the"),
    (lambda: step(X[0]), r"x has shape \(2,\), expected \(batch, 2\); add the batch dimension"),
    (lambda: step(IMAGES.flatten(1), programs(levels())), r"x has shape \(16, 64\), expected"),
    (lambda: step(IMAGES.movedim(1, -1), programs(levels())), r"x has shape \(16, 8, 8, 1\)"),
    (lambda: step(IMAGES + 0.01, programs(levels())), r"x holds .* are off the levels\), expected"),
    (lambda: step((IMAGES + 1) * 127.5, programs(levels())), "x holds .* expected one of the 17"),
    (lambda: step(X, programs(broken())), r"outlet.bias of MLP holds nan \(2 of 2 weights\)"),
    (lambda: model()(batch_size=-1), "batch_size is -1, expected at least 1; it is the number of"),
    (lambda: model()(batch_size=0), "batch_size is 0, expected at least 1"),
    (lambda: model()(X, batch_size=5), "batch_size is 5, but x has 16 data; leave batch_size out"),
    (lambda: model()(), r"neither x nor batch_size .* pass model\("),
    (lambda: step(X, num_data=3), "num_data is 3, expected at least the batch's 16"),
]

PROGRAMS: Mistakes = [
    (lambda: DiffusionModel(CLD(), small(), event_shape=(2,)), r"score is MLP\(…\), a network"),
    (lambda: DiffusionModel(denoiser(), CLD()), r"diffusion is Denoiser\(…\) and score CLD\(…\)"),
    (lambda: DiffusionModel(CLD(), denoiser(), (2,)), r"likelihood is \(2,\), expected a"),
    (lambda: DiffusionGuide(model()), "diffusion is a DiffusionModel, expected the diffusion"),
    (lambda: DiffusionModel(CLD(), RawScore(small(4))), "event_shape is not given, and RawScore"),
    (lambda: DiffusionModel(CLD(), denoiser(), event_shape=(3,)), r"event_shape is \(3,\), but"),
    (lambda: model(sampler=256), "sampler is 256, expected one with its number of steps; pass"),
    (
        lambda: model(
            RawScore(small(4)), diffusion=simulated(), event_shape=(2,), sampler=Splitting(8)
        )(batch_size=2),
        r"Splitting needs closed-form kernels, which Simulated .*; use EulerMaruyama\(8\)",
    ),
    (lambda: model(times=1), "times is 1, expected at least 2; it is .* on a grid"),
    (lambda: step(X, programs(times=torch.tensor([1.0, 0.5]))), r"times are \[1.0, 0.5\]"),
    (lambda: step(X, programs(times=torch.linspace(0.1, 1, 5))), "times run from 0.1 to 1"),
    (
        lambda: model(RawScore(small(4)), diffusion=simulated(), event_shape=(2,), times=8),
        "a chain on a grid.* needs closed-form kernels, which Simulated .*leave out times",
    ),
    (lambda: step(X, (model(), DiffusionGuide(CLD(max_log_snr=9.0)))), "CLD.*Build both over one"),
    (lambda: step(X, programs(diffusion=simulated())), "Denoiser needs closed-form kernels"),
    (
        lambda: DiffusionGuide(CLD(), simulation=Simulation()),
        "simulation needs paths that are simulated, which CLD",
    ),
    (lambda: model(diffusion=CLD(max_log_snr=100.0)), "max_log_snr is 100, expected at most 72"),
    (lambda: step(X, programs(diffusion=CLD(max_log_snr=60.0))), "max_log_snr is 60, expected at"),
    (lambda: model(diffusion=CLD(max_log_snr=-20.0)), "max_log_snr is -20, but log SNR ends at"),
]

DIFFUSIONS: Mistakes = [
    (lambda: CLD(max_log_snr=-10.0, min_log_snr=9.0), "min_log_snr 9.0 must be below max_log_snr"),
    (lambda: CLD(horizon=0), "horizon is 0, expected a positive end time T, e.g."),
    (lambda: ConstantBeta(0.0), "beta is 0.0, expected a positive number; the clock"),
    (lambda: LearnedBeta(knots=1), "knots is 1, expected at least 2; it is"),
    (lambda: MALDA(mass=0.0), "mass is 0.0, expected a positive number, e.g. 1"),
    (lambda: CLD(cut_time=2.0), "cut_time is 2.0, expected a time bet"),
    (lambda: LearnedDiffusion(0), "num_variables is 0, expected at least 1; it is the number K of"),
    (lambda: LearnedDiffusion(2, rank=3), "rank is 3, expected between 1 and num_variables = 2"),
    (lambda: LinearDiffusion([[0.0, -1.0], [1.0]], D), r"Q is \[\[0.0, -1.0\], \[1.0\]\]"),
    (lambda: LinearDiffusion([0.0, 1.0], D), r"Q has shape \(2,\), expected a square matrix \(K"),
    (lambda: LinearDiffusion([[0.0, 1.0], [1.0, 0.0]], D), "Q is not skew-symmetric: .* reaches 2"),
    (lambda: LinearDiffusion(torch.tensor(Q, requires_grad=True), D), "Q requires gradients, but"),
    (lambda: LinearDiffusion(Q, [[1.0]]), r"Q is \(2, 2\) and D is \(1, 1\), expected one shape"),
    (lambda: LinearDiffusion(D, Q), "Q is not skew-symmetric: .* reaches 4, expected 0; use Q = W"),
    (lambda: LinearDiffusion(Q, [[0.0, 1.0], [0.0, 2.0]]), "D is not symmetric: .* reaches 1"),
    (lambda: LinearDiffusion(Q, [[0.0, 0.0], [0.0, -2.0]]), "D is not positive semi-definite: its"),
    (lambda: LinearDiffusion(Q, [[0.0, 0.0], [0.0, 0.0]]), "noise reaches 0 of 2 variables"),
    (lambda: CLD(stationary_variance=correlated(0.0)), "stationary_variance is .* expected"),
    (lambda: LearnedDiffusion(2, stationary_variance=correlated(1e-10)), "nearly singular"),
    (lambda: CLD(stationary_variance=[1.0, 1.0, 1.0]), r"stationary_variance has shape \(3,\)"),
    (lambda: CLD(initial_variance=0.0), r"initial_variance is \[\[0.0\]\], expected positive"),
    (lambda: LearnedDrift(CLD(), small(4), limit=0.0), "limit is 0.0, expected a positive bound"),
]

SCORES: Mistakes = [
    (lambda: Denoiser.fit(X, small()), r"network is a Tensor of shape \(16, 2\), expected a"),
    (
        lambda: DiscreteDenoiser.fit(unet(), ((IMAGES + 1) * 8).byte(), levels=17),
        r"train_x is torch.uint8, expected floating-point .*train_x.float\(\) / 127.5 - 1",
    ),
    (lambda: Denoiser.fit(small(), X * NAN), "train_x has 32 entries that are NaN or infinite"),
    (lambda: Denoiser.fit(small(1), X[:, 0]), r"train_x has shape \(16,\), expected \(N"),
    (lambda: Denoiser.fit(small(), torch.ones(16, 2)), "the 16 data are all equal, expected some"),
    (lambda: step(X, programs(Denoiser(small(), X))), r"x has shape \(16, 2\), expected \(batch"),
    (lambda: Denoiser(small(), 0.0, 0.0), "data_variance reaches 0, expected positive finite"),
    (lambda: DiscreteDenoiser.fit(unet(), IMAGES, levels=256), "x holds .* expected one of the"),
    (lambda: DiscreteDenoiser.fit(unet(), IMAGES, levels=1), "levels is 1, expected at least 2"),
    (lambda: step(IMAGES, programs(levels(unet(1, None)))), r"UNet returned \(16, 1, 8, 8\) .* 17"),
    (lambda: step(IMAGES, programs(levels(unet(3)))), r"U-Net takes images .* got \(16, 1, 8, 8\)"),
    (lambda: step(X, programs(denoiser(unet(1, 1)))), r"U-Net takes images .* got \(16, 2\)"),
    (lambda: step(IMAGES, programs(levels(unet(1, 17, [1] * 5)))), "8×8 are too small for 5"),
    (lambda: step(X, programs(NoisePrediction(small()), event_shape=(2,))), "MLP takes vectors of"),
    (lambda: Denoiser.fit(nn.Linear(2, 2), X), r"network is Linear\(…\), which does not take two"),
    (lambda: ResidualScore.fit(CLD(), small(4), X), r"diffusion is MLP\(…\), expected a Diffusion"),
    (lambda: UNet(0), "channels is 0, expected at least 1; it is number of channels"),
    (lambda: outside_the_trained_range(), r"log SNR .* is outside \[-5, 5\], .* choose the"),
]

SAMPLERS: Mistakes = [
    (lambda: Splitting(0), "steps is 0, expected at least 1; it is the number of"),
    (lambda: Splitting(4)(CLD(), model().bound_score, 4), r"shape is 4, expected .*\(batch, K"),
    (lambda: Splitting(4)(CLD(), model().bound_score, (4, 5, 2)), r"shape is \(4, 5, 2\)"),
    (lambda: Splitting(4)(model().bound_score, CLD(), (4, 2, 2)), "diffusion is a BoundScore"),
    (lambda: Splitting(4)(CLD(), model(), (4, 2, 2)), r"score is DiffusionModel\(…\), expected a"),
]

EVALUATION: Mistakes = [
    (lambda: bound(*programs()[::-1], X), r"model is DiffusionGuide\(…\) and guide"),
    (lambda: MDM_ELBO().loss(*programs()[::-1], X), r"model is DiffusionGuide\(…\) and guide"),
    (lambda: bound(*programs(), X.double()), r"x is torch.float64 .* pass x.to\(torch.float32\)"),
    (lambda: bound(*programs(broken()), X), "outlet.bias of MLP holds nan .* expected finite"),
    (lambda: bound(model(), DiffusionGuide(CLD(max_log_snr=9.0)), X), "Build both over one"),
    (lambda: log_likelihood(*programs(), X[:3]), r"x has shape \(3, 2\), expected .* at least 8"),
    (lambda: log_likelihood(*programs(times=4), X), "a chain on a grid, expected a model in"),
    (
        lambda: compare({"mine": (lambda x: x, programs()[1])}, X),
        r"programs\[.mine.\] is .*, expected .*DiffusionModel",
    ),
]


def outside_the_trained_range() -> None:
    score = denoiser()
    score.set_trained_range(-5.0, 5.0)
    step(X, programs(score))


ALL = [*DATA, *PROGRAMS, *DIFFUSIONS, *SCORES, *SAMPLERS, *EVALUATION]


@pytest.mark.parametrize(("call", "message"), ALL, ids=[message for _, message in ALL])
def test_a_mistake_is_answered_with_value_expectation_and_fix(
    call: Callable[[], Any], message: str
) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    own = re.split(r"\n *Trace Shapes:", str(caught.value))[0]  # what Pyro adds to some
    assert re.search(message, own, re.DOTALL), own
    assert re.search("expected|;|: |use |pass |give", own), "value, expectation and fix"
    assert len(own) < 400, "a message is one or two sentences"


# -- what is no mistake ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_matrices_may_be_lists_arrays_or_tensors_of_whole_numbers(kind: Any) -> None:
    whole = LinearDiffusion(kind([[0, -1], [1, 0]]), kind([[0, 0], [0, 2]]))
    assert torch.equal(whole.Q, LinearDiffusion(Q, D).Q) and whole.D.dtype == torch.float64


def test_numbers_keep_their_digits() -> None:
    """Python's numbers are of float64, and go through no float32."""
    third = LinearDiffusion([[0.0, -1 / 3], [1 / 3, 0.0]], D, stationary_variance=[1.0, 0.1])
    assert third.Q[1, 0].item() == 1 / 3 and third.stationary_covariance[1, 1].item() == 0.1
    fine = LinearDiffusion(Q, D, stationary_variance=correlated(1e-7))  # 5e6: float64 has it
    assert fine.stationary_covariance[0, 1].item() == 1.0 - 1e-7


def test_functions_are_networks_and_double_is_a_precision() -> None:
    score = Denoiser.fit(lambda z, log_snr: 0 * z, X)
    step_free = MDM_ELBO().loss(*programs(score), X)
    assert math.isfinite(step_free)
    assert math.isfinite(MDM_ELBO().loss(*in_double(programs()), X.double()))


def test_data_of_another_scale_have_another_resolution() -> None:
    """float32 holds the noise at log SNR 40 beside data of size 1e-3, and not of size 1."""
    little = 1e-3 * X
    pair = programs(Denoiser.fit(small(), little), CLD(max_log_snr=40.0))
    assert math.isfinite(MDM_ELBO().loss(*pair, little))
    with pytest.raises(ValueError, match=r"max_log_snr is 40, expected at most 3\d"):
        MDM_ELBO().loss(*programs(diffusion=CLD(max_log_snr=40.0)), X)
