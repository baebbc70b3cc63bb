"""Small objects of every public class, by which its methods are tried."""

from __future__ import annotations

import atexit
import math
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_mdm import (
    CLD,
    MDM,
    MDM_ELBO,
    VPSDE,
    AutoMDM,
    DataDrivenDiffusion,
    Denoiser,
    DiffusionGuide,
    DiffusionModel,
    DiscreteDenoiser,
    GenerativeChain,
    GenerativePath,
    LearnedDrift,
    NoisingPath,
    PerDimensionDiffusion,
    RawScore,
    Simulated,
    Simulation,
)
from pyro_mdm.conditioning import (
    ClassPosterior,
    Completions,
    Labels,
)
from pyro_mdm.diffusions import (
    ConstantBeta,
    GaussianPrior,
)
from pyro_mdm.diffusions.clocks import log_snr_times
from pyro_mdm.imported import (
    ImportedDenoiser,
    NoiseSchedule,
)
from pyro_mdm.levels import LevelCategorical
from pyro_mdm.likelihoods import Gaussian, Tweedie
from pyro_mdm.measurements import (
    Blur,
    Clipped,
    Downsample,
    FunctionOperator,
    Mask,
    Matrix,
    Measurement,
    NonlinearOperator,
    Particles,
    Quantized,
    condition_on_measurements,
)
from pyro_mdm.networks import MLP, UNet
from pyro_mdm.posteriors import (
    AmortizedLikelihood,
    AmortizedPosterior,
    Coverage,
    ImportanceWeights,
    LikelihoodMembers,
    simulate,
)
from pyro_mdm.samplers import Ancestral, EulerMaruyama, ExponentialIntegrator, ProbabilityFlow
from pyro_mdm.seeing import (
    GaussianContext,
)
from pyro_mdm.simulated import QuadraturePrior
from pyro_mdm.support.measured import Measured
from pyro_mdm.tables import (
    Table,
)
from pyro_mdm.training import MovingAverage, Trainer
from tests.problems import generator, normal

X = normal(0, 8, 2).float()
IMAGES = torch.linspace(-1, 1, 5)[torch.randint(5, (8, 1, 4, 4), generator=generator(1))]
CODES = torch.randint(3, (8, 2), generator=generator(2)) - 1.0
Q, D = [[0.0, -1.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 2.0]]
ENDS = {"max_log_snr": 6.0}
SEEN = torch.tensor([True, False])
N = 40


def mlp(features: int = 2, out: int | None = None, **options: Any) -> MLP:
    return MLP(features, hidden=8, depth=1, out_features=out, **options)


def unet() -> UNet:
    return UNet(1, out_channels=5, base=8, multipliers=(1,))


@cache
def cld() -> CLD:
    return CLD(**ENDS)


@cache
def vpsde() -> VPSDE:
    return VPSDE(**ENDS)


@cache
def denoiser() -> Denoiser:
    return Denoiser.fit(mlp(), X)


@cache
def model() -> DiffusionModel:
    return DiffusionModel(cld(), denoiser(), sampler=ExponentialIntegrator(4))


@cache
def guide() -> DiffusionGuide:
    return DiffusionGuide(cld())


@cache
def discrete() -> DiscreteDenoiser:
    return DiscreteDenoiser.fit(unet(), IMAGES, levels=5)


@cache
def image_model() -> DiffusionModel:
    return DiffusionModel(vpsde(), discrete(), sampler=ExponentialIntegrator(2))


@cache
def mapped() -> DiffusionModel:
    score = Denoiser.fit(mlp(4, 2), X, maps=True)
    return DiffusionModel(vpsde(), score, sampler=ExponentialIntegrator(2))


@cache
def simulated() -> Simulated:
    return Simulated(cld(), Simulation(step_size=0.25, points=1))


@cache
def simulated_model() -> DiffusionModel:
    return DiffusionModel(simulated(), RawScore(mlp(4)), event_shape=(2,), sampler=EulerMaruyama(4))


@cache
def driven() -> DataDrivenDiffusion:
    return DataDrivenDiffusion(vpsde(), mlp(2, DataDrivenDiffusion.outputs() * 2))


@cache
def measured() -> DiffusionModel:
    given = DiffusionModel(vpsde(), denoiser(), sampler=Ancestral(4))
    return condition_on_measurements(given, torch.eye(2), torch.zeros(2), 0.5)


class OfClass(nn.Module):
    context_size = 2

    def forward(self, z: Tensor, log_snr: Tensor, context: Tensor) -> Tensor:
        return 0 * z


@cache
def class_model() -> DiffusionModel:
    score = Denoiser(OfClass(), torch.zeros(2), torch.ones(2))
    return DiffusionModel(vpsde(), score, context=Labels(2))


def program() -> None:
    theta = pyro.sample("theta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(theta, 0.5).to_event(1))


@cache
def draws() -> dict[str, Tensor]:
    return simulate(program, N, seed=0)


DATA = {"x": torch.tensor([0.3, -0.2])}
BRIEF = {"simulations": N, "steps": 2, "batch_size": 8}


@cache
def posterior() -> AmortizedPosterior:
    return AmortizedPosterior.fit(program, ["theta"], ["x"], seed=0, progress=False, **BRIEF)


@cache
def likelihood() -> AmortizedLikelihood:
    return AmortizedLikelihood.fit(program, ["theta"], ["x"], seed=0, progress=False, **BRIEF)


@cache
def members() -> LikelihoodMembers:
    return LikelihoodMembers([likelihood(), likelihood()])


def observed_program() -> None:
    theta = pyro.sample("theta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(theta, 0.5).to_event(1), obs=DATA["x"])


@cache
def automatic() -> AutoMDM:
    fitted = AutoMDM(observed_program, steps=4, width=8)
    fitted.fit(updates=2, start_updates=2, progress=False)
    return fitted


@cache
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    a = rng.normal(size=N)
    return pd.DataFrame({"a": a, "b": a + rng.normal(size=N), "c": rng.choice(["u", "v"], N)})


@cache
def table() -> Table:
    return Table(steps=2, num=2, progress=False).fit(frame())


BY_PARAMETER: dict[str, Callable[[], Any]] = {
    "A": lambda: [[0.0, 1.0], [-1.0, -2.0]],
    "D": lambda: D,
    "G": lambda: [[0.0, 0.0], [0.0, 2.0]],
    "Q": lambda: Q,
    "base": vpsde,
    "batch_size": lambda: 8,
    "batch_shape": lambda: (8,),
    "beta": lambda: ConstantBeta(4.0),
    "beta_max": lambda: 20.0,
    "beta_min": lambda: 0.1,
    "block": vpsde,
    "cells": lambda: 64,
    "center": lambda: "mean",
    "context_size": lambda: 2,
    "covariance": lambda: torch.eye(2),
    "data": lambda: DATA,
    "data_mean": lambda: 0.0,
    "data_variance": lambda: 1.0,
    "degree": lambda: 3,
    "denoiser": denoiser,
    "depth": lambda: 1,
    "diffusion": cld,
    "dims": lambda: 2,
    "draws": lambda: 4,
    "end": lambda: 2.0,
    "error": lambda: 0.25,
    "event_dim": lambda: 1,
    "event_shape": lambda: (2,),
    "factor": lambda: 2,
    "floor": lambda: 0.05,
    "friction": lambda: 2.0,
    "gamma": lambda: 1.0,
    "generator": lambda: generator(0),
    "generative": lambda: GenerativePath(cld(), denoiser(), (2,), batch_shape=(8,)),
    "guide": guide,
    "half_width": lambda: 0.5,
    "hidden": lambda: 8,
    "high": lambda: 1.0,
    "horizon": lambda: 1.0,
    "initial_variance": lambda: 0.01,
    "knots": lambda: 5,
    "latent": lambda: ["theta"],
    "leak": lambda: 0.1,
    "learn_beta": lambda: True,
    "levels": lambda: 5,
    "likelihood": Gaussian,
    "limit": lambda: 4.0,
    "linear": cld,
    "lipschitz": lambda: 2.0,
    "log_snr": lambda: 1.0,
    "low": lambda: -1.0,
    "maps": lambda: False,
    "mass": lambda: 1.0,
    "max_log_snr": lambda: 6.0,
    "means": lambda: 1.0,
    "min_log_snr": lambda: -6.0,
    "model": model,
    "n": lambda: 4,
    "network": mlp,
    "noise": lambda: 0.5,
    "noising": lambda: NoisingPath(cld(), X),
    "num": lambda: 2,
    "num_data": lambda: 100,
    "num_particles": lambda: 4,
    "num_samples": lambda: 4,
    "num_variables": lambda: 2,
    "observed": lambda: ["x"],
    "order": lambda: 1,
    "plate": lambda: "data",
    "points": lambda: 4,
    "posterior": posterior,
    "prior_variance": lambda: 1.0,
    "program": lambda: program,
    "progress": lambda: False,
    "psi": lambda: 1.0,
    "rank": lambda: 1,
    "repeats": lambda: 1,
    "rtol": lambda: 1e-3,
    "atol": lambda: 1e-3,
    "s": lambda: 0.5,
    "r": lambda: 0.1,
    "samples": lambda: 2,
    "sampler": lambda: Ancestral(4),
    "scales": lambda: 1.0,
    "score": denoiser,
    "seed": lambda: 0,
    "sigma_max": lambda: 50.0,
    "sigma_min": lambda: 0.01,
    "simulated": lambda: 4,
    "simulation": lambda: Simulation(step_size=0.25, points=1),
    "simulations": lambda: N,
    "start": lambda: 1.0,
    "stationary_variance": lambda: 1.0,
    "steps": lambda: 4,
    "threshold": lambda: 0.5,
    "times": lambda: 5,
    "train_x": lambda: X,
    "unknown": lambda: "missing",
    "width": lambda: 1.0,
    "x": lambda: X,
    "y": lambda: torch.stack([X, X], 1),
    "z": lambda: X,
}
"""Right values by the name of a parameter."""

GRID = torch.linspace(0, 1, 5)


def unet_of_diffusers() -> Any:
    return diffusers.UNet2DModel(
        4,
        1,
        1,
        layers_per_block=1,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )


class Azula(nn.Module):
    """A denoiser of ``azula``."""

    def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t)[..., None], (0.01 * 5000**t)[..., None]

    def forward(self, w: Tensor, t: Tensor) -> SimpleNamespace:
        return SimpleNamespace(mean=0 * w)


GAUSSIAN_PROCESS = SimpleNamespace(
    model=mlp(),
    betas=torch.linspace(1e-4, 0.02, 100),
    objective="pred_noise",
    normalize=lambda x: x,
    self_condition=False,
)


def state_score(y: Tensor, s: Tensor) -> Tensor:
    return -y


def square(v: Tensor) -> Tensor:
    return 0.5 * v.square()


def identity(s: Tensor) -> Tensor:
    return torch.eye(2, dtype=torch.float64).expand(*s.shape, 2, 2)


def minus_identity(s: Tensor) -> Tensor:
    return -identity(s)


@cache
def cld_times() -> Tensor:
    return log_snr_times(cld(), 5)


@cache
def imported() -> ImportedDenoiser:
    return ImportedDenoiser.fit(mlp(), X, NoiseSchedule.flow(), "data")


def gaps() -> pd.DataFrame:
    table = frame().copy()
    table.loc[::3, "b"] = math.nan
    table["Table.fit"] = lambda: Table(steps=2, num=2, progress=False).fit
    return table


FOLDER = Path(tempfile.mkdtemp())
"""Where objects are saved, by the name of their class."""
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)


@cache
def saved(name: str) -> str:
    OWNERS[name]().save_pretrained(FOLDER / name)
    return str(FOLDER / name)


@cache
def saved_draws() -> str:
    simulate(lambda: pyro.sample("a", dist.Normal(0.0, 1.0)), 4, folder=FOLDER / "draws")
    return str(FOLDER / "draws")


OWNERS: dict[str, Callable[[], Any]] = {
    "MDM": lambda: MDM(model(), draws=2, seed=0),
    "DiffusionModel": model,
    "DiffusionGuide": guide,
    "MDM_ELBO": MDM_ELBO,
    "Denoiser": denoiser,
    "DiscreteDenoiser": discrete,
    "ImportedDenoiser": imported,
    "LinearDiffusion": cld,
    "PerDimensionDiffusion": lambda: PerDimensionDiffusion(
        [vpsde(), vpsde()], torch.tensor([0, 1])
    ),
    "Simulated": simulated,
    "LearnedDrift": lambda: LearnedDrift(cld(), mlp(4)),
    "GaussianPrior": lambda: GaussianPrior(torch.eye(2).double()),
    "QuadraturePrior": lambda: QuadraturePrior([square]),
    "Ancestral": lambda: Ancestral(4),
    "ExponentialIntegrator": lambda: ExponentialIntegrator(4),
    "EulerMaruyama": lambda: EulerMaruyama(4),
    "ProbabilityFlow": lambda: ProbabilityFlow(4),
    "Gaussian": Gaussian,
    "Tweedie": Tweedie,
    "Blur": lambda: Blur((1, 4, 4)),
    "Downsample": lambda: Downsample((1, 4, 4)),
    "Mask": lambda: Mask(SEEN),
    "Matrix": lambda: Matrix(torch.eye(2)),
    "FunctionOperator": lambda: FunctionOperator(torch.clone, (2,)),
    "NonlinearOperator": lambda: NonlinearOperator(torch.square, (2,)),
    "Clipped": lambda: Clipped(torch.zeros(3), 0.5, -1.0, 1.0),
    "Quantized": lambda: Quantized(torch.zeros(3), torch.linspace(-1, 1, 5), 0.5),
    "LevelCategorical": lambda: LevelCategorical(
        torch.linspace(-1, 1, 5), torch.full((8, 2, 5), 0.2).log(), 1
    ),
    "Measurement": lambda: Measurement(model(), Mask(SEEN), 0.5, num_particles=4, steps=4),
    "Particles": lambda: Particles(X, torch.zeros(8), 4, Measured(0.0, 0.0)),
    "Completions": lambda: Completions(X.where(SEEN, math.nan)),
    "ClassPosterior": lambda: ClassPosterior(
        normal(0, 8, 2), normal(1, 2, 8, 2), torch.zeros(2), 2, 4
    ),
    "GenerativeChain": lambda: GenerativeChain(
        cld(), denoiser(), (2,), cld_times(), batch_shape=(8,)
    ),
    "GenerativePath": lambda: GenerativePath(
        cld(), denoiser(), (2,), sampler=Ancestral(4), batch_shape=(8,)
    ),
    "NoisingPath": lambda: NoisingPath(cld(), X),
    "AmortizedPosterior": posterior,
    "AmortizedLikelihood": likelihood,
    "LikelihoodMembers": members,
    "PosteriorGuide": lambda: posterior().guide(DATA),
    "AutoMDM": automatic,
    "Table": table,
    "Conditional": lambda: table().conditional(gaps()[:4], "b", num=8),
    "Coverage": lambda: Coverage({"theta": torch.linspace(0, 1, 20)}),
    "ImportanceWeights": lambda: ImportanceWeights(normal(0, 64)),
    "Trainer": lambda: Trainer(mlp(), steps=4),
    "MovingAverage": lambda: MovingAverage(mlp()),
    "Context": lambda: GaussianContext(nn.Linear(2, 4), 2),
    "GaussianContext": lambda: GaussianContext(nn.Linear(2, 4), 2),
}
"""Objects whose methods are called, by their class; a ``fit`` of one is the class's own."""
