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
    ALDA,
    CLD,
    MALDA,
    MDM_ELBO,
    VPSDE,
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
from pyro_mdm.diffusions.clocks import ConstantBeta, LearnedBeta, LinearBeta
from pyro_mdm.evaluation.comparison import compare, log_likelihood
from pyro_mdm.likelihoods.gaussian import Gaussian
from pyro_mdm.networks import MLP, UNet
from pyro_mdm.samplers.ancestral import Ancestral
from pyro_mdm.samplers.euler_maruyama import EulerMaruyama
from pyro_mdm.samplers.splitting import Splitting
from tests.problems import generator, normal

X = normal(0, 16, 2).float()
IMAGES = torch.linspace(-1, 1, 17)[torch.randint(17, (16, 1, 8, 8), generator=generator(1))]
Q, D = [[0.0, -1.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 2.0]]
NAN = math.nan


def small(features: int = 2, **options: Any) -> MLP:
    return MLP(features, hidden=8, depth=1, **options)


def unet(channels: int = 1, out_channels: int | None = 17, multipliers: Any = (1,)) -> UNet:
    return UNet(channels, out_channels=out_channels, base=8, multipliers=multipliers)


def denoiser() -> Denoiser:
    return Denoiser.fit(small(), X)


def levels() -> DiscreteDenoiser:
    return DiscreteDenoiser.fit(unet(), IMAGES, levels=17)


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


Mistakes = dict[str, tuple[Callable[[], Any], str]]

DATA: Mistakes = {
    "float64": (
        lambda: step(X.double()),
        r"x is torch\.float64 .* weights are torch\.float32.* pass x\.to\(torch\.float32\)",
    ),
    "float32 for a model in double": (
        lambda: step(X, in_double(programs())),
        r"x is torch\.float32 .* weights are torch\.float64.* pass x\.to\(torch\.float64\)",
    ),
    "float16": (
        lambda: step(X.half()),
        r"x is torch\.float16, expected float32 or float64.*pass x\.float\(\).*autocast_dtype",
    ),
    "bfloat16": (lambda: step(X.bfloat16()), r"x is torch\.bfloat16, expected float32 or float64"),
    "NumPy": (
        lambda: step(X.numpy()),
        r"x is a NumPy array of float32, expected a torch tensor; pass torch\.as_tensor\(x",
    ),
    "a list": (
        lambda: step(X.tolist()),
        r"x is a list, expected a torch tensor; pass torch\.as_tensor",
    ),
    "a loader's batch": (
        lambda: step((X, torch.zeros(16))),
        r"x is a tuple of tensors, expected a torch tensor; .* pass x\[0\]",
    ),
    "None": (lambda: step(None), r"guide noises data and was given none"),
    "uint8": (
        lambda: step(torch.zeros(16, 2, dtype=torch.uint8)),
        r"x is torch\.uint8, expected floating-point .*x\.float\(\) / 127\.5 - 1",
    ),
    "integers": (
        lambda: step(torch.zeros(16, 2, dtype=torch.int64)),
        r"x is torch\.int64, expected floating-point data in model space; e\.g\.",
    ),
    "NaN": (
        lambda: step(X * NAN),
        r"x has 32 entries that are NaN or infinite, expected finite data; check the transform",
    ),
    "an empty batch": (
        lambda: step(X[:0]),
        r"x has shape \(0, 2\), expected at least one datum; look at the loader",
    ),
    "another device": (
        lambda: step(X.to("meta")),
        r"x is on meta and the programs are on cpu, expected one device; pass x\.to\('cpu'\)",
    ),
    "other features": (
        lambda: step(torch.zeros(16, 3)),
        r"x has shape \(16, 3\), expected \(batch, 2\); build the model for",
    ),
    "one datum": (
        lambda: step(X[0]),
        r"x has shape \(2,\), expected \(batch, 2\); add the batch dimension, x\[None\]",
    ),
    "flat images": (
        lambda: step(IMAGES.flatten(1), programs(levels())),
        r"x has shape \(16, 64\), expected \(batch, 1, 8, 8\); .* x\.reshape\(-1, 1, 8, 8\)",
    ),
    "channels last": (
        lambda: step(IMAGES.movedim(1, -1), programs(levels())),
        r"x has shape \(16, 8, 8, 1\), expected .* channels come first, x\.movedim\(-1, 1\)",
    ),
    "pixels off the levels": (
        lambda: step(IMAGES + 0.01, programs(levels())),
        r"x holds .* are off the levels\), expected one of the 17 levels between -1 and 1; map",
    ),
    "pixels from 0 to 255": (
        lambda: step((IMAGES + 1) * 127.5, programs(levels())),
        r"x holds .* expected one of the 17 levels between -1 and 1; map uint8 values",
    ),
    "weights that are NaN": (
        lambda: step(X, programs(broken())),
        r"outlet\.bias of MLP holds nan \(2 of 2 weights\), expected finite weights; load",
    ),
    "negative batch_size": (
        lambda: model()(batch_size=-1),
        r"batch_size is -1, expected at least 1; it is the number of data to generate",
    ),
    "batch_size 0": (lambda: model()(batch_size=0), r"batch_size is 0, expected at least 1"),
    "batch_size 2.0": (
        lambda: model()(batch_size=2.0),
        r"batch_size is 2\.0, expected a whole number, .* write 2",
    ),
    "batch_size of other data": (
        lambda: model()(X, batch_size=5),
        r"batch_size is 5, but x has 16 data; leave batch_size out",
    ),
    "neither x nor batch_size": (lambda: model()(), r"neither x nor batch_size .* pass model\("),
    "num_data below the batch": (
        lambda: step(X, num_data=3),
        r"num_data is 3, expected at least the batch's 16",
    ),
    "num_data 100.0": (
        lambda: step(X, num_data=100.0),
        r"num_data is 100\.0, expected a whole number, .* write 100",
    ),
}

PROGRAMS: Mistakes = {
    "a network as score": (
        lambda: DiffusionModel(CLD(), small(), event_shape=(2,)),
        r"score is MLP\(…\), a network, expected a score that owns it; .*Denoiser\.fit\(network",
    ),
    "diffusion and score swapped": (
        lambda: DiffusionModel(denoiser(), CLD()),
        r"diffusion is Denoiser\(…\) and score CLD\(…\): they are swapped; write DiffusionModel\(",
    ),
    "a diffusion's class": (
        lambda: DiffusionModel(CLD, denoiser()),
        r"diffusion is the class CLD, expected an object of it: CLD\(…\)",
    ),
    "a diffusion's name": (
        lambda: DiffusionModel("cld", denoiser()),
        r"diffusion is 'cld', expected a Diffusion; make one, e\.g\. CLD",
    ),
    "a score's class": (
        lambda: DiffusionModel(CLD(), Denoiser, event_shape=(2,)),
        r"score is the class Denoiser, expected an object of it: Denoiser\(…\); make one",
    ),
    "no score": (
        lambda: DiffusionModel(CLD(), None, event_shape=(2,)),
        r"score is None, expected a Score; make one by Denoiser\.fit",
    ),
    "a likelihood as score": (
        lambda: DiffusionModel(CLD(), Gaussian(), event_shape=(2,)),
        r"score is Gaussian\(…\), expected a Score; make one",
    ),
    "a score as likelihood": (
        lambda: DiffusionModel(CLD(), denoiser(), denoiser()),
        r"likelihood is Denoiser\(…\), expected a Likelihood; leave it out",
    ),
    "the event shape third": (
        lambda: DiffusionModel(CLD(), denoiser(), (2,)),
        r"likelihood is \(2,\), expected a Likelihood; leave it out",
    ),
    "a likelihood's class": (
        lambda: DiffusionModel(CLD(), denoiser(), Gaussian),
        r"likelihood is the class Gaussian, expected an object of it: Gaussian\(…\)",
    ),
    "DiffusionGuide(model)": (
        lambda: DiffusionGuide(model()),
        r"diffusion is a DiffusionModel, expected the diffusion .* pass model\.diffusion",
    ),
    "a guide over a class": (
        lambda: DiffusionGuide(CLD),
        r"diffusion is the class CLD, expected an object of it",
    ),
    "a guide with a score": (
        lambda: DiffusionGuide(CLD(), denoiser()),
        r"times is Denoiser\(…\), expected a whole number, that of the times on a grid",
    ),
    "event_shape 2": (
        lambda: DiffusionModel(CLD(), RawScore(small(4)), event_shape=2),
        r"event_shape is 2, expected a sequence of sizes, e\.g\. \(2,\)",
    ),
    "event_shape (2.0,)": (
        lambda: DiffusionModel(CLD(), RawScore(small(4)), event_shape=(2.0,)),
        r"event_shape is \(2\.0,\), expected a sequence of sizes, e\.g\. \(2,\)",
    ),
    "event_shape as text": (
        lambda: DiffusionModel(CLD(), RawScore(small(4)), event_shape="28"),
        r"event_shape is '28', expected a sequence of sizes",
    ),
    "no event_shape": (
        lambda: DiffusionModel(CLD(), RawScore(small(4))),
        r"event_shape is not given, and RawScore takes data of any shape; pass",
    ),
    "another event_shape": (
        lambda: DiffusionModel(CLD(), denoiser(), event_shape=(3,)),
        r"event_shape is \(3,\), but Denoiser was made for .*\(2,\); leave event_shape out",
    ),
    "a sampler's steps": (
        lambda: model(sampler=256),
        r"sampler is 256, expected one with its number of steps; pass sampler=ExponentialInt",
    ),
    "a sampler's class": (
        lambda: model(sampler=Splitting),
        r"sampler is the class Splitting, expected one .* pass sampler=ExponentialInt",
    ),
    "a sampler of linear diffusions": (
        lambda: model(
            RawScore(small(4)), diffusion=simulated(), event_shape=(2,), sampler=Splitting(8)
        )(batch_size=2),
        r"Splitting needs .* LinearDiffusion, and Simulated has none; use EulerMaruyama\(8\)",
    ),
    "times 1": (lambda: model(times=1), r"times is 1, expected at least 2; it is .* on a grid"),
    "times 2.5": (lambda: model(times=2.5), r"times is 2\.5, expected a whole number, .*\(or None"),
    "times as text": (lambda: model(times="8"), r"times is '8', expected a whole number"),
    "times that decrease": (
        lambda: step(X, programs(times=torch.tensor([1.0, 0.5]))),
        r"times are \[1\.0, 0\.5\], expected an increasing vector",
    ),
    "times that leave out the start": (
        lambda: step(X, programs(times=torch.linspace(0.1, 1, 5))),
        r"times run from 0\.1 to 1, expected a grid from the start .*; see LinearDiff",
    ),
    "times without closed form": (
        lambda: model(RawScore(small(4)), diffusion=simulated(), event_shape=(2,), times=8),
        r"times is 8, but Simulated has no closed-form kernels .*; leave out times",
    ),
    "two diffusions": (
        lambda: step(X, (model(), DiffusionGuide(CLD(max_log_snr=9.0)))),
        r"CLD.*Build both over one diffusion object: DiffusionGuide\(model\.diffusion\)",
    ),
    "a denoiser of what is simulated": (
        lambda: step(X, programs(diffusion=simulated())),
        r"Denoiser is made of the closed-form law .* Simulated has none; use ResidualScore",
    ),
    "a simulation of what is not": (
        lambda: DiffusionGuide(CLD(), simulation=Simulation()),
        r"simulation is given, but CLD is known in closed form; leave it out",
    ),
    "max_log_snr 100": (
        lambda: model(diffusion=CLD(max_log_snr=100.0)),
        r"max_log_snr is 100, expected at most 72: .* lower it",
    ),
    "max_log_snr 500": (
        lambda: model(diffusion=CLD(max_log_snr=500.0)),
        r"max_log_snr is 500, expected at most 72: .* lower it",
    ),
    "max_log_snr 60 in float32": (
        lambda: step(X, programs(diffusion=CLD(max_log_snr=60.0))),
        r"max_log_snr is 60, expected at most 3\d: .* rounding of torch\.float32; lower it",
    ),
    "max_log_snr below the last": (
        lambda: model(diffusion=CLD(max_log_snr=-20.0)),
        r"max_log_snr is -20, but log SNR ends at .*; use a faster clock, or set min_log_snr",
    ),
}

DIFFUSIONS: Mistakes = {
    "max_log_snr NaN": (
        lambda: CLD(max_log_snr=NAN),
        r"max_log_snr is nan, expected a finite log SNR, e\.g\. 13",
    ),
    "max_log_snr as text": (
        lambda: CLD(max_log_snr="9"),
        r"max_log_snr is '9', expected a finite log SNR, e\.g\. 13",
    ),
    "max_log_snr None": (
        lambda: CLD(max_log_snr=None),
        r"max_log_snr is None, expected a finite log SNR, e\.g\. 13",
    ),
    "ends the wrong way round": (
        lambda: CLD(max_log_snr=-10.0, min_log_snr=9.0),
        r"min_log_snr 9\.0 must be below max_log_snr -10\.0: .* raise max_log_snr or lower",
    ),
    "min_log_snr out of reach": (
        lambda: CLD(min_log_snr=-1e4),
        r"min_log_snr -10000 is out of reach .*; ask for a log SNR between these",
    ),
    "horizon 0": (lambda: CLD(horizon=0), r"horizon is 0, expected a positive end time T, e\.g\."),
    "horizon -1": (lambda: VPSDE(horizon=-1.0), r"horizon is -1\.0, expected a positive end time"),
    "horizon infinite": (lambda: CLD(horizon=math.inf), r"horizon is inf, expected a positive end"),
    "horizon as text": (lambda: CLD(horizon="1"), r"horizon is '1', expected a positive end time"),
    "beta as a number": (
        lambda: CLD(beta=4.0),
        r"beta is 4\.0, expected a Clock; e\.g\. ConstantBeta\(4\.0\)",
    ),
    "beta's class": (
        lambda: CLD(beta=LinearBeta),
        r"beta is the class LinearBeta, expected an",
    ),
    "beta 0": (lambda: ConstantBeta(0.0), r"beta is 0\.0, expected a positive number; the clock"),
    "one knot": (lambda: LearnedBeta(knots=1), r"knots is 1, expected at least 2; it is"),
    "mass as text": (lambda: CLD("0.25"), r"mass is '0\.25', expected a positive number, e\.g\. 1"),
    "mass -1": (lambda: CLD(mass=-1.0), r"mass is -1\.0, expected a positive number, e\.g\. 1"),
    "mass 0": (lambda: MALDA(mass=0.0), r"mass is 0\.0, expected a positive number, e\.g\. 1"),
    "lipschitz 0": (lambda: ALDA(lipschitz=0.0), r"lipschitz is 0\.0, expected a positive number"),
    "friction -1": (lambda: CLD(friction=-1.0), r"friction is -1\.0, expected a positive number"),
    "cut_time after the end": (lambda: CLD(cut_time=2.0), r"cut_time is 2\.0, expected a time bet"),
    "cut_time as text": (lambda: CLD(cut_time="0.1"), r"cut_time is '0\.1', expected a time in"),
    "num_variables 2.0": (
        lambda: LearnedDiffusion(2.0),
        r"num_variables is 2\.0, expected a whole number, the number K .*; write 2",
    ),
    "num_variables 0": (
        lambda: LearnedDiffusion(0),
        r"num_variables is 0, expected at least 1; it is the number K of variables",
    ),
    "num_variables as text": (
        lambda: LearnedDiffusion("2"),
        r"num_variables is '2', expected a whole number, the number K of variables",
    ),
    "rank 3 of 2": (
        lambda: LearnedDiffusion(2, rank=3),
        r"rank is 3, expected between 1 and num_variables = 2",
    ),
    "rank 1.5": (lambda: LearnedDiffusion(2, rank=1.5), r"rank is 1\.5, expected a whole number"),
    "learned from a class": (
        lambda: LearnedDiffusion.from_diffusion(CLD),
        r"start is the class CLD, expected an object of it: CLD\(…\); e\.g\.",
    ),
    "Q as text": (
        lambda: LinearDiffusion("cld", D),
        r"Q is 'cld', expected a square matrix \(K, K\); give numbers",
    ),
    "Q None": (
        lambda: LinearDiffusion(None, D),
        r"Q is None, expected a square matrix",
    ),
    "Q ragged": (
        lambda: LinearDiffusion([[0.0, -1.0], [1.0]], D),
        r"Q is \[\[0\.0, -1\.0\], \[1\.0\]\], expected a square matrix .* rows of one length",
    ),
    "Q a vector": (
        lambda: LinearDiffusion([0.0, 1.0], D),
        r"Q has shape \(2,\), expected a square matrix \(K, K\)",
    ),
    "Q symmetric": (
        lambda: LinearDiffusion([[0.0, 1.0], [1.0, 0.0]], D),
        r"Q is not skew-symmetric: .* reaches 2, expected 0; use Q = W - Wᵀ",
    ),
    "Q with NaN": (
        lambda: LinearDiffusion([[0.0, NAN], [1.0, 0.0]], D),
        r"Q has entries that are not finite: .*nan.* expected finite numbers",
    ),
    "Q complex": (
        lambda: LinearDiffusion(torch.tensor(Q).to(torch.complex64), D),
        r"Q is torch\.complex64, expected a square matrix \(K, K\); give real numbers",
    ),
    "Q to be learned": (
        lambda: LinearDiffusion(torch.tensor(Q, requires_grad=True), D),
        r"Q requires gradients, but .* not learned: use LearnedDiffusion, or pass Q\.detach\(\)",
    ),
    "Q and D of two sizes": (
        lambda: LinearDiffusion(Q, [[1.0]]),
        r"Q is \(2, 2\) and D is \(1, 1\), expected one shape",
    ),
    "Q and D swapped": (
        lambda: LinearDiffusion(D, Q),
        r"Q is not skew-symmetric: .* reaches 4, expected 0; use Q = W - Wᵀ",
    ),
    "D asymmetric": (
        lambda: LinearDiffusion(Q, [[0.0, 1.0], [0.0, 2.0]]),
        r"D is not symmetric: .* reaches 1, expected 0; use D = B Bᵀ",
    ),
    "D negative": (
        lambda: LinearDiffusion(Q, [[0.0, 0.0], [0.0, -2.0]]),
        r"D is not positive semi-definite: its smallest eigenvalue is -2, expected ≥ 0; use D",
    ),
    "D nothing": (
        lambda: LinearDiffusion(Q, [[0.0, 0.0], [0.0, 0.0]]),
        r"noise reaches 0 of 2 variables .* couple the variables",
    ),
    "law at rest singular": (
        lambda: CLD(stationary_variance=correlated(0.0)),
        r"stationary_variance is .* expected positive variances .* lower correlations",
    ),
    "law at rest nearly singular": (
        lambda: LearnedDiffusion(2, stationary_variance=correlated(1e-10)),
        r"stationary_variance is .* nearly singular: .* expected at most 2e\+07; lower correl",
    ),
    "law at rest of another size": (
        lambda: CLD(stationary_variance=[1.0, 1.0, 1.0]),
        r"stationary_variance has shape \(3,\), expected a number, 2 variances or",
    ),
    "law at rest as text": (
        lambda: CLD(stationary_variance="1"),
        r"stationary_variance is '1', expected a number, 2 variances or",
    ),
    "start without variance": (
        lambda: CLD(initial_variance=0.0),
        r"initial_variance is \[\[0\.0\]\], expected positive variances .* raise variances",
    ),
    "a simulated one of a class": (
        lambda: Simulated(CLD),
        r"linear is the class CLD, expected an object of it: CLD\(…\); e\.g\.",
    ),
    "a simulated one of a simulated one": (
        lambda: Simulated(simulated()),
        r"linear is Simulated\(…\), expected a LinearDiffusion; e\.g\. Simulated\(CLD\(\)",
    ),
    "a simulation as a dictionary": (
        lambda: Simulated(CLD(), simulation={"step_size": 0.1}),
        r"simulation is \{'step_size': 0\.1\}, expected a Simulation; e\.g\. Simulation\(",
    ),
    "a learned drift swapped": (
        lambda: LearnedDrift(small(4), CLD()),
        r"linear is MLP\(…\), expected a LinearDiffusion; e\.g\. LearnedDrift\(CLD\(\)",
    ),
    "a learned drift without limit": (
        lambda: LearnedDrift(CLD(), small(4), limit=0.0),
        r"limit is 0\.0, expected a positive bound",
    ),
    "step_size as text": (
        lambda: Simulation(step_size="0.1"),
        r"step_size is '0\.1', expected a positive part of the way from ε to T, e\.g\. 0\.02",
    ),
    "points 0": (lambda: Simulation(points=0), r"points is 0, expected at least 1; it is"),
    "an unknown method": (
        lambda: Simulation(method="heun"),
        r"method is 'heun', expected one of None, euler, srk",
    ),
    "a time after the end": (
        lambda: CLD().marginal(2.0),
        r"s = 2 is outside \[0, T\] = \[0, 1\]; time runs from",
    ),
}

SCORES: Mistakes = {
    "fit swapped": (
        lambda: Denoiser.fit(X, small()),
        r"network is a Tensor of shape \(16, 2\), expected a torch\.nn\.Module.*before data",
    ),
    "fit of a class": (
        lambda: Denoiser.fit(MLP, X),
        r"network is the class MLP, expected an object of it: MLP\(…\)",
    ),
    "fit to NumPy": (
        lambda: DiscreteDenoiser.fit(unet(), IMAGES.numpy(), levels=17),
        r"train_x is a NumPy array of float32, expected a torch tensor; pass torch\.as_tensor",
    ),
    "fit to float16": (
        lambda: Denoiser.fit(small(), X.half()),
        r"train_x is torch\.float16, expected float32 or float64.*pass train_x\.float\(\)",
    ),
    "fit to uint8": (
        lambda: DiscreteDenoiser.fit(unet(), ((IMAGES + 1) * 8).byte(), levels=17),
        r"train_x is torch\.uint8, expected floating-point .*train_x\.float\(\) / 127\.5 - 1",
    ),
    "fit to NaN": (
        lambda: Denoiser.fit(small(), X * NAN),
        r"train_x has 32 entries that are NaN or infinite, expected finite data; check",
    ),
    "fit to nothing": (
        lambda: Denoiser.fit(small(), X[:0]),
        r"train_x has shape \(0, 2\), expected at least one datum; look at",
    ),
    "fit to scalars": (
        lambda: Denoiser.fit(small(1), X[:, 0]),
        r"train_x has shape \(16,\), expected \(N, \*event_shape\); give scalars .*x\[:, None\]",
    ),
    "fit to a constant": (
        lambda: Denoiser.fit(small(), torch.ones(16, 2)),
        r"the 16 data are all equal, expected some variance",
    ),
    "data as mean": (
        lambda: step(X, programs(Denoiser(small(), X))),
        r"x has shape \(16, 2\), expected \(batch, 16, 2\); .*Denoiser\.fit\(network, x\)",
    ),
    "variance 0": (
        lambda: Denoiser(small(), 0.0, 0.0),
        r"data_variance reaches 0, expected positive finite variances; Denoiser\.fit",
    ),
    "other levels": (
        lambda: DiscreteDenoiser.fit(unet(), IMAGES, levels=256),
        r"x holds .* expected one of the 256 levels between -1 and 1; map uint8 values",
    ),
    "one level": (
        lambda: DiscreteDenoiser.fit(unet(), IMAGES, levels=1),
        r"levels is 1, expected at least 2; it is the number of levels",
    ),
    "levels 17.0": (
        lambda: DiscreteDenoiser.fit(unet(), IMAGES, levels=17.0),
        r"levels is 17\.0, expected a whole number, the number of levels; write 17",
    ),
    "an unknown form": (
        lambda: DiscreteDenoiser.fit(unet(), IMAGES, levels=17, form="softmax"),
        r"form is 'softmax', expected one of tilt, mixture, logits",
    ),
    "too few out_channels": (
        lambda: step(
            IMAGES, programs(DiscreteDenoiser.fit(unet(out_channels=None), IMAGES, levels=17))
        ),
        r"UNet returned \(16, 1, 8, 8\) .* expected \(16, 17, 8, 8\); .* out_channels=17",
    ),
    "a U-Net of other channels": (
        lambda: step(IMAGES, programs(DiscreteDenoiser.fit(unet(3), IMAGES, levels=17))),
        r"U-Net takes images of shape \(n, 3, .* got \(16, 1, 8, 8\); build UNet\(channels",
    ),
    "a U-Net for vectors": (
        lambda: step(X, programs(Denoiser.fit(unet(out_channels=1), X))),
        r"U-Net takes images of shape .* got \(16, 2\); build UNet",
    ),
    "too small images": (
        lambda: step(
            IMAGES, programs(Denoiser.fit(unet(out_channels=1, multipliers=[1] * 5), IMAGES))
        ),
        r"images of 8×8 are too small for 5 levels, .* at least 16×16; give fewer multipliers",
    ),
    "an MLP of other features": (
        lambda: step(X, programs(NoisePrediction(small()), event_shape=(2,))),
        r"MLP takes vectors of shape \(n, 2\), got \(16, 4\); .* build MLP\(features",
    ),
    "a network without log SNR": (
        lambda: Denoiser.fit(nn.Linear(2, 2), X),
        r"network is Linear\(…\), which does not take two arguments; .*network\(inputs, log_snr\)",
    ),
    "no network": (
        lambda: NoisePrediction(None),
        r"network is None, expected a torch\.nn\.Module, such as MLP or UNet",
    ),
    "a score as network": (
        lambda: RawScore(denoiser()),
        r"network is Denoiser\(…\), expected a torch\.nn\.Module, such as MLP or UNet",
    ),
    "a residual score swapped": (
        lambda: ResidualScore.fit(CLD(), small(4), X),
        r"network is CLD\(…\), expected a torch\.nn\.Module, such as MLP or UNet",
    ),
    "a residual score of data and diffusion swapped": (
        lambda: ResidualScore.fit(small(4), X, CLD()),
        r"train_x is CLD\(…\), expected a torch tensor",
    ),
    "MLP(2.0)": (
        lambda: MLP(2.0),
        r"features is 2\.0, expected a whole number, a size of the network; write 2",
    ),
    "MLP of a shape": (lambda: MLP((2,)), r"features is \(2,\), expected a whole number, a size"),
    "UNet with 0 channels": (lambda: UNet(0), r"channels is 0, expected at least 1; it is a size"),
    "one multiplier": (
        lambda: UNet(1, multipliers=2),
        r"multipliers is 2, expected one factor for each level of resolution, e\.g\. \(1, 2\)",
    ),
    "λ outside the trained range": (
        lambda: outside_the_trained_range(),
        r"log SNR .* is outside \[-5, 5\], .* choose the diffusion's max_log_snr",
    ),
}

SAMPLERS: Mistakes = {
    "steps 0": (
        lambda: Splitting(0),
        r"steps is 0, expected at least 1; it is the number of",
    ),
    "steps -3": (lambda: EulerMaruyama(-3), r"steps is -3, expected at least 1; it is the number"),
    "steps 10.0": (lambda: Splitting(10.0), r"steps is 10\.0, expected a whole number,.* write 10"),
    "steps as text": (lambda: Splitting("10"), r"steps is '10', expected a whole number, the numb"),
    "steps None": (lambda: Ancestral(None), r"steps is None, expected a whole number, the number"),
    "order 3": (
        lambda: Splitting(8, order=3),
        r"order is 3, expected 1 \(Euler\) or 2 \(midpoint\)",
    ),
    "shape as a number": (
        lambda: Splitting(4)(CLD(), model().bound_score, 4),
        r"shape is 4, expected \(batch, K, \*event_shape\) of the states; e\.g\. \(64, 2, 2\)",
    ),
    "shape without K": (
        lambda: Splitting(4)(CLD(), model().bound_score, (4, 5, 2)),
        r"shape is \(4, 5, 2\), expected \(batch, K, \*event_shape\) with the K = 2",
    ),
    "arguments swapped": (
        lambda: Splitting(4)(model().bound_score, CLD(), (4, 2, 2)),
        r"diffusion is a BoundScore, expected a Diffusion; the order is \(diffusion, score",
    ),
    "a parameterization as score": (
        lambda: Splitting(4)(CLD(), denoiser(), (4, 2, 2)),
        r"score is Denoiser\(…\), expected a function score\(y, s\); pass model\.bound_score",
    ),
    "a model as score": (
        lambda: Splitting(4)(CLD(), model(), (4, 2, 2)),
        r"score is DiffusionModel\(…\), expected a function .* pass model\.bound_score",
    ),
}

EVALUATION: Mistakes = {
    "bound, swapped": (
        lambda: bound(*programs()[::-1], X),
        r"model is DiffusionGuide\(…\) and guide DiffusionModel\(…\): they are swapped; the model",
    ),
    "objective, swapped": (
        lambda: MDM_ELBO().loss(*programs()[::-1], X),
        r"model is DiffusionGuide\(…\) and guide DiffusionModel\(…\): they are swapped; the model",
    ),
    "bound of a class": (
        lambda: bound(DiffusionModel, programs()[1], X),
        r"model is the class DiffusionModel, expected a program: DiffusionModel\(diffusion",
    ),
    "bound of NumPy": (
        lambda: bound(*programs(), X.numpy()),
        r"x is a NumPy array of float32, expected a torch tensor; pass torch\.as_tensor",
    ),
    "bound in float64": (
        lambda: bound(*programs(), X.double()),
        r"x is torch\.float64 .* pass x\.to\(torch\.float32\)",
    ),
    "bound in float16": (
        lambda: bound(*programs(), X.half()),
        r"x is torch\.float16, expected float32 or float64",
    ),
    "bound of nothing": (lambda: bound(*programs(), X[:0]), r"\(0, 2\), expected at least one dat"),
    "bound of NaN": (lambda: bound(*programs(), X * NAN), r"32 entries that are NaN .* check the"),
    "bound of weights that are NaN": (
        lambda: bound(*programs(broken()), X),
        r"outlet\.bias of MLP holds nan .* expected finite weights; load",
    ),
    "bound over two diffusions": (
        lambda: bound(model(), DiffusionGuide(CLD(max_log_snr=9.0)), X),
        r"Build both over one diffusion object: DiffusionGuide\(model\.diffusion\)",
    ),
    "draws 0": (lambda: bound(*programs(), X, draws=0), r"draws is 0, expected at least 1; it is"),
    "batch_size 0": (
        lambda: bound(*programs(), X, batch_size=0),
        r"batch_size is 0, expected at least 1; it is the number of data for each network call",
    ),
    "log_likelihood of few data": (
        lambda: log_likelihood(*programs(), X[:3]),
        r"x has shape \(3, 2\), expected .* at least 8 data.*; use pyro_mdm\.bound for fewer",
    ),
    "log_likelihood of a chain": (
        lambda: log_likelihood(*programs(times=4), X),
        r"a chain on a grid, expected a model in continuous time; leave out times, or use",
    ),
    "compare without names": (
        lambda: compare([programs()], X),
        r"programs is a list, expected at least one \(model, guide\) by name; e\.g\.",
    ),
    "compare a program of one's own": (
        lambda: compare({"mine": (lambda x: x, programs()[1])}, X),
        r"the model of mine is a function, expected a DiffusionModel; use pyro_mdm\.bound",
    ),
    "half_width 0": (
        lambda: log_likelihood(*programs(), X, half_width=0.0),
        r"half_width is 0\.0, expected a positive number of bits/dim",
    ),
}


def outside_the_trained_range() -> None:
    score = denoiser()
    score.set_trained_range(-5.0, 5.0)
    step(X, programs(score))


ALL = {
    f"{group}: {name}": mistake
    for group, mistakes in (
        ("data", DATA),
        ("programs", PROGRAMS),
        ("diffusions", DIFFUSIONS),
        ("scores", SCORES),
        ("samplers", SAMPLERS),
        ("evaluation", EVALUATION),
    )
    for name, mistake in mistakes.items()
}


@pytest.mark.parametrize("name", ALL)
def test_a_mistake_is_answered_with_value_expectation_and_fix(name: str) -> None:
    call, message = ALL[name]
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    own = re.split(r"\n *Trace Shapes:", str(caught.value))[0]  # what Pyro adds to some
    assert re.search(message, own, re.DOTALL), own
    assert len(own) < 400, "a message is one or two sentences"


def test_there_are_enough() -> None:
    assert len(ALL) >= 70


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


def test_numpy_integers_are_whole_numbers() -> None:
    assert LearnedDiffusion(np.int64(2)).num_variables == 2
    assert Splitting(np.int64(3)).steps == 3
    assert DiffusionModel(CLD(), RawScore(small(4)), event_shape=(np.int64(2),)).event_shape == (2,)


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
