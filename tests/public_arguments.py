"""Right arguments of every public function, class and method, from which wrong ones are made.

A name that a package lists in ``__all__`` has its arguments here, by its own table or by the names
of its parameters, or stands among those that nobody calls. Methods are those of small objects.
"""

from __future__ import annotations

import atexit
import importlib
import inspect
import math
import pkgutil
import shutil
import tempfile
from collections.abc import Callable
from enum import Enum
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
from typing_extensions import is_typeddict

import pyro_mdm
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
    SimulatedPath,
    Simulation,
)
from pyro_mdm.by_dimension import LearnedClocks
from pyro_mdm.conditioning import ClassPosterior, Completions, Labels
from pyro_mdm.diffusions import Cap, ConstantBeta, GaussianPrior, LinearBeta
from pyro_mdm.diffusions.clocks import log_snr_times
from pyro_mdm.imported import ImportedDenoiser, NoiseSchedule
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
    read_program,
    simulate,
)
from pyro_mdm.samplers import Ancestral, EulerMaruyama, ExponentialIntegrator, ProbabilityFlow
from pyro_mdm.seeing import ContextClocks, GaussianContext
from pyro_mdm.simulated import QuadraturePrior
from pyro_mdm.support.measured import Measured
from pyro_mdm.tables import Ordinal, Table
from pyro_mdm.training import MovingAverage, Trainer
from tests.problems import generator, normal
from tests.varying.problems import less_data, more_noise, rubbing, turning

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


SCALARS: list[tuple[float, str]] = [
    (0, "seed"),
    (1, "depth event_dim order rank repeats"),
    (2, "context_size dims factor num num_variables samples"),
    (3, "degree"),
    (4, "draws n num_particles num_samples points simulated steps"),
    (5, "knots levels times"),
    (8, "batch_size hidden"),
    (64, "cells"),
    (100, "num_data"),
    (-6.0, "min_log_snr"),
    (-1.0, "low"),
    (0.0, "data_mean"),
    (1e-3, "rtol atol"),
    (0.01, "initial_variance sigma_min"),
    (0.05, "floor"),
    (0.1, "beta_min leak r"),
    (0.25, "error"),
    (0.5, "half_width noise s threshold"),
    (1.0, "data_variance gamma high horizon log_snr mass means prior_variance psi scales start"),
    (1.0, "stationary_variance width"),
    (2.0, "end friction lipschitz"),
    (4.0, "limit"),
    (6.0, "max_log_snr"),
    (20.0, "beta_max"),
    (50.0, "sigma_max"),
    (True, "learn_beta"),
    (False, "maps progress"),
]
"""Numbers, and the parameters of which each is a right value."""
BY_PARAMETER: dict[str, Callable[[], Any]] = {
    name: (lambda v=value: v) for value, names in SCALARS for name in names.split()
}
BY_PARAMETER |= {
    "A": lambda: [[0.0, 1.0], [-1.0, -2.0]],
    "D": lambda: D,
    "G": lambda: [[0.0, 0.0], [0.0, 2.0]],
    "Q": lambda: Q,
    "base": vpsde,
    "batch_shape": lambda: (8,),
    "beta": lambda: ConstantBeta(4.0),
    "block": vpsde,
    "center": lambda: "mean",
    "covariance": lambda: torch.eye(2),
    "data": lambda: DATA,
    "denoiser": denoiser,
    "diffusion": cld,
    "event_shape": lambda: (2,),
    "generator": lambda: generator(0),
    "generative": lambda: GenerativePath(cld(), denoiser(), (2,), batch_shape=(8,)),
    "guide": guide,
    "latent": lambda: ["theta"],
    "likelihood": Gaussian,
    "linear": cld,
    "model": model,
    "network": mlp,
    "noising": lambda: NoisingPath(cld(), X),
    "observed": lambda: ["x"],
    "plate": lambda: "data",
    "posterior": posterior,
    "program": lambda: program,
    "sampler": lambda: Ancestral(4),
    "score": denoiser,
    "simulation": lambda: Simulation(step_size=0.25, points=1),
    "simulations": lambda: N,
    "train_x": lambda: X,
    "unknown": lambda: "missing",
    "x": lambda: X,
    "y": lambda: torch.stack([X, X], 1),
    "z": lambda: X,
    "H": lambda: Mask(SEEN),
    "folder": lambda: str(FOLDER / "new"),
    "sample_shape": lambda: (4,),
    "obs": lambda: torch.zeros(1),
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


def given(names: str = "", /, **values: Any) -> dict[str, Callable[[], Any]]:
    """Arguments by name: those of BY_PARAMETER, and others, of which a function makes its value."""
    makers = {name: BY_PARAMETER[name] for name in names.split()}
    for name, value in values.items():
        makers[name] = value if is_maker(value) else lambda v=value: v
    return makers


def is_maker(value: Any) -> bool:
    return inspect.isroutine(value) or inspect.isclass(value) or hasattr(value, "cache_info")


SEVERAL_X = given("model guide x seed")
LEARNED = given("program latent observed simulations seed progress batch_size", steps=2)
LEARNED |= given(seconds=0.3)  # also where steps are None
DIFFUSION = given("horizon max_log_snr min_log_snr")
SDE = DIFFUSION | given("initial_variance", beta=LinearBeta)
LINEAR = SDE | given("stationary_variance")


METHODS: dict[str, str] = {
    "x": """Mask.__call__ Matrix.__call__ FunctionOperator.__call__ NonlinearOperator.__call__
        GaussianPosterior.fit""",
    "sample_shape": """MDM.sample Clipped.sample Quantized.sample
        LevelCategorical.sample Measurement.sample""",
    "folder": """DiffusionModel.save_pretrained AmortizedPosterior.save_pretrained
        AmortizedLikelihood.save_pretrained Table.save_pretrained""",
    "x num_data": "DiffusionGuide.forward",
    "z log_snr": "Denoiser.x_hat ImportedDenoiser.x_hat",
    "s": """LinearDiffusion.marginal LinearDiffusion.log_snr LinearDiffusion.drift_matrix
        LinearDiffusion.noise_covariance PerDimensionDiffusion.marginal""",
    "s r": "LinearDiffusion.transition PerDimensionDiffusion.transition",
    "obs": "Measurement.particles",
    "n": "Particles.resampled Context.draw",
    "data n seed": "AmortizedPosterior.sample",
    "data seed": "AmortizedPosterior.guide",
    "data": "AmortizedPosterior.predictive_p_value",
    "x event_dim": "GaussianContext.posterior",
}
"""Methods by the names of their arguments, all of which have the usual values."""
ARGUMENTS: dict[str, dict[str, Callable[[], Any]]] = {
    "bits_per_dim": given(
        log_prob=torch.zeros(8), num_dims=2, log_det=torch.zeros(8), num_levels=4
    ),
    "condition": given(model=mapped, observed=SEEN, values=torch.zeros(2)),
    "elbo_terms": given("model guide", args=lambda: (X,)),
    "impute": given("num seed", model=mapped, x=X.where(SEEN, math.nan), batch_size=4),
    "class_posterior": given(
        "x seed",
        model=class_model,
        guide=lambda: DiffusionGuide(vpsde()),
        prior=torch.tensor([0.5, 0.5]),
        draws=2,
        batch_size=4,
    ),
    "windowed": given(model=image_model, size=(6, 6)),
    "apply_matrix": given(matrix=torch.eye(2), y=torch.zeros(8, 2, 3)),
    "apply_vector": given(vector=torch.ones(8, 2), y=torch.zeros(8, 2, 3)),
    "require": given("diffusion", caps=lambda: (next(iter(Cap)),), who="it", fix="do"),
    "auxiliary_information": given("diffusion s", variance=1.0),
    "compare": given(
        "x draws half_width seed",
        programs=lambda: {"a": (model(), guide()), "b": (model(), guide())},
        batch_size=4,
        bins=4,
    ),
    "evidence_lower_bound": SEVERAL_X | given("draws half_width", batch_size=4, bins=4),
    "importance_weighted": SEVERAL_X | given("samples times"),
    "probability_flow": SEVERAL_X | given(samples=1),
    "log_likelihood": SEVERAL_X | given("draws", method="elbo"),
    "auxiliary_use": SEVERAL_X | given("draws", batch_size=4),
    "bound_gap": given("model guide simulated times seed", samples=1),
    "best_ends": given("x points seed", denoiser=lambda: imported()),
    "check_import": given("x points seed", denoiser=lambda: imported()),
    "from_azula": given("train_x", denoiser=Azula, shift=0.0, scale=1.0),
    "from_denoising_diffusion": given("train_x", process=GAUSSIAN_PROCESS),
    "from_diffusers": given("train_x", model=mlp, scheduler=lambda: diffusers.DDPMScheduler()),
    "from_pipeline": given(
        pipeline=lambda: SimpleNamespace(
            components={"unet": unet_of_diffusers(), "scheduler": diffusers.DDPMScheduler()}
        ),
        train_x=IMAGES,
    ),
    "register_kind": given(kind=lambda: Ordinal),
    "from_sigma_denoiser": given("train_x network", least=0.01, most=50.0),
    "from_velocity": given("train_x network", data_at=1.0, shift=0.0, scale=1.0),
    "to_azula": given("model"),
    "to_pipeline": given("low high", model=image_model, steps=10),
    "read_state": given("diffusion score y event_dim"),
    "condition_on_measurements": given("model noise H obs", data=X),
    "twisted_smc": given("num_particles steps repeats threshold", model=measured),
    "twisted_smc_gap": given("num_particles simulated steps", model=measured),
    "different_diffusions": given("guide model"),
    "path_divergence": given("noising generative"),
    "prior_kl": given("diffusion x event_dim"),
    "density_bound": given("diffusion score y"),
    "calibrate": given("posterior program seed", simulations=20, draws=19),
    "calibrate_factor": given(
        "observed seed",
        log_factor=lambda: lambda data: 0.5,
        first=lambda: program,
        second=lambda: program,
        simulations=2,
    ),
    "calibrate_at": given("posterior program data simulations seed", nearest=20, draws=19),
    "expected_coverage": given("posterior program seed", simulations=20, draws=19),
    "log_prior": given("program latent", draws={"theta": torch.zeros(4, 2)}),
    "ranks": given("seed", draws=normal(0, 19, 8, 2), truth=normal(1, 8, 2)),
    "read_draws": given(folder=saved_draws, names=["a"]),
    "simulate": given("program seed", n=8, batch_size=4),
    "default_sampler": given("diffusion score"),
    "karras_grid": given("diffusion steps", rho=7.0),
    "simulation_grid": given("steps", diffusion=simulated),
    "path_information_gap": given("draws seed", diffusion=driven, points=X, levels=8),
    "arrival": given(
        noising=lambda: SimulatedPath(simulated(), X), path=lambda: SimulatedPath(simulated(), X)()
    ),
    "simulated_kl": given(
        noising=lambda: SimulatedPath(simulated(), X),
        generative=lambda: GenerativePath(simulated(), RawScore(mlp(4)), (2,), batch_shape=(8,)),
    ),
    "step_size_bias": given(
        "x seed", model=simulated_model, guide=lambda: DiffusionGuide(simulated()), draws=2
    ),
    "fit_columns": given(
        table=frame, train=lambda: np.ones(N, bool), kinds=lambda: {"a": "continuous"}
    ),
    "pooled": given(
        tables=lambda: [frame(), frame()],
        fit=lambda: lambda table: (table["a"].mean(), table["a"].sem()),
        level=lambda: 0.9,
    ),
    "indices": given("seed", step=1, batch_size=4, n=8),
    "schedule": given(step=3, steps=10, warmup=2, decay="cosine"),
    "ALDA": LINEAR | given("mass gamma psi lipschitz"),
    "CLD": LINEAR | given("mass friction"),
    "HOLD": LINEAR | given(num_variables=3),
    "MALDA": LINEAR | given("mass gamma lipschitz"),
    "VPSDE": LINEAR,
    "VE": given("sigma_min sigma_max prior_variance max_log_snr"),
    "SubVP": DIFFUSION | given(beta=LinearBeta),
    "Cosine": given("prior_variance max_log_snr min_log_snr"),
    "RectifiedFlow": given("max_log_snr min_log_snr"),
    "MomentumVE": given("sigma_min sigma_max initial_variance"),
    "Interpolant": given(
        "horizon max_log_snr", alpha=lambda: less_data, sigma=lambda: more_noise, prior_variance=4.0
    ),
    "MDM": given("model seed", method="elbo", draws=2, batch_shape=()),
    "MDM_ELBO": given(decoder=True),
    "AutoMDM": given("diffusion steps", model=lambda: observed_program, start="gaussian", width=8),
    "DataDrivenDiffusion": given(
        "base means scales", network=lambda: mlp(2, DataDrivenDiffusion.outputs() * 2), degree=5
    ),
    "Denoiser": given("maps network", data_mean=torch.zeros(2), data_variance=torch.ones(2)),
    "DiffusionGuide": given("diffusion times plate event_dim"),
    "DiffusionModel": given("diffusion score event_shape plate sampler", likelihood=Tweedie),
    "DiscreteDenoiser": given(
        "levels", network=unet, log_prior=torch.full((1, 4, 4, 5), 0.2).log(), form="tilt"
    ),
    "EncodedDiffusion": given(base=cld, encoder=lambda: nn.Linear(2, 2)),
    "GenerativeChain": given("diffusion score event_shape batch_shape", times=lambda: cld_times()),
    "GenerativePath": given("diffusion score event_shape batch_shape sampler"),
    "NoisingPath": given("diffusion x event_dim", times=lambda: cld_times()),
    "SimulatedPath": given(
        "simulation x event_dim", diffusion=simulated, times=torch.linspace(0.2, 1, 3)
    ),
    "HamiltonianDiffusion": given("Q D horizon initial_variance", H=[square, square]),
    "LearnedDiffusion": LINEAR | given("num_variables learn_beta seed", rank=2),
    "LearnedDrift": given("linear simulation limit", network=lambda: mlp(4)),
    "LinearDiffusion": LINEAR | given("Q D"),
    "LinearSDE": SDE
    | given("prior_variance", A=[[-1.0, 0.5], [-0.5, -1.0]], G=[[0.5, 0.0], [0.0, 1.0]]),
    "TimeVaryingDiffusion": given("cells max_log_snr", Q=lambda: turning, D=lambda: rubbing),
    "TimeVaryingLearnedDiffusion": given(
        "num_variables cells max_log_snr min_log_snr", rank=2, degree=2, learn_ends=0.5
    ),
    "TimeVaryingSDE": given("cells max_log_snr", A=lambda: minus_identity, G=lambda: identity),
    "MixedDenoiser": given(
        network=lambda: mlp(2, 2),
        parts=lambda: [Denoiser(mlp(1), torch.zeros(1), torch.ones(1))] * 2,
        part_of=torch.tensor([0, 1]),
    ),
    "NoisePrediction": given(network=lambda: mlp(4, 2)),
    "RawScore": given(network=lambda: mlp(4)),
    "OneHot": given(number=3),
    "PerDimensionDiffusion": given(
        blocks=lambda: [vpsde(), vpsde()],
        clocks=lambda: LearnedClocks(2),
        block_of=torch.tensor([0, 1]),
        clock_of=torch.tensor([1, 0]),
    ),
    "ResidualScore": given(
        network=lambda: mlp(4),
        levels=torch.linspace(-4, 4, 5),
        mean=torch.zeros(5, 2, 2),
        covariance=torch.eye(2).expand(5, 2, 2, 2),
    ),
    "Simulated": given("linear simulation"),
    "Simulation": given(
        step_size=0.25, points=2, method="euler", objective="ism", increment=0.05, probes=1
    ),
    "StateDenoiser": given(denoiser=lambda: Denoiser.fit(mlp(4, 2), X)),
    "RowWeights": given(log_weights=normal(0, 16, 3)),
    "ClassPosterior": given(
        elbo=normal(0, 8, 2),
        halves=normal(1, 2, 8, 2),
        log_prior=torch.tensor([0.5, 0.5]).log(),
        num_dims=2,
        network_calls=4,
    ),
    "EncodedContext": given(
        encoder=lambda: nn.Linear(2, 3), size=3, shape=(2,), dropout=0.1, whole=False
    ),
    "Labels": given(num_classes=3, dropout=0.1),
    "Vectors": given(mean=torch.zeros(2), scale=torch.ones(2), dropout=0.1),
    "Completions": given(x=lambda: X.where(SEEN, math.nan)),
    "ConditionedDenoiser": given(
        denoiser=lambda: mapped().score_function, observed=SEEN, values=torch.zeros(2)
    ),
    "ConditionedLikelihood": given(likelihood=Tweedie),
    "Replacement": given("repeats sampler", observed=SEEN, values=torch.zeros(2)),
    "WindowedDenoiser": given(denoiser=discrete, size=(6, 6)),
    "BlurClocks": given(squares=[0.0, 1.0], width=8.0, blur=20.0, least=0.05),
    "ConstantBeta": given(beta=4.0),
    "Frequencies": given("dims"),
    "GaussianPrior": given(covariance=torch.eye(2).double()),
    "GeometricBeta": given("horizon", start=0.1, end=20.0),
    "LearnedBeta": given("knots horizon", start=LinearBeta),
    "LearnedClocks": given("degree floor", number=2),
    "LinearBeta": given("beta_min beta_max horizon"),
    "QuadraturePrior": given(energies=[square]),
    "TurnClocks": given("leak", intervals=[[0.0, 0.7], [0.2, 1.0]]),
    "InterpolantClock": given("horizon"),
    "GaussianPosterior": given(mean=torch.zeros(2).double(), covariance=torch.eye(2).double()),
    "EDMPreconditioned": given("network", sigma_data=0.5, sign=1),
    "ImportedDenoiser": given(
        "data_mean data_variance network",
        schedule=NoiseSchedule.flow,
        predicts="data",
        shift=0.0,
        scale=1.0,
    ),
    "Labelled": given("network", unknown=3, argument="labels"),
    "NoiseSchedule": given(time=GRID, alpha=1 - GRID, sigma=GRID),
    "SigmaDenoiser": given("model"),
    "TimedNetwork": given("network", context_size=0, time="second"),
    "DiscretizedGaussian": given("levels"),
    "Gaussian": given("prior_variance", prior_mean=0.0),
    "LevelCategorical": given(
        "event_dim", levels=torch.linspace(-1, 1, 5), log_probs=torch.full((8, 2, 5), 0.2).log()
    ),
    "LogitDequantization": given(num_levels=4, margin=1e-6),
    "Blur": given("width", event_shape=(1, 4, 4)),
    "Clipped": given("low high", loc=torch.zeros(3), scale=0.5),
    "Downsample": given("factor", event_shape=(1, 4, 4)),
    "FunctionOperator": given("event_shape", function=lambda: torch.clone),
    "Mask": given(seen=SEEN),
    "Matrix": given("event_shape", H=torch.eye(2)),
    "MeasuredDenoiser": given("denoiser noise H obs"),
    "Measurement": given("model noise num_particles steps H"),
    "NonlinearOperator": given("event_shape", function=lambda: torch.square),
    "Quantized": given(loc=torch.zeros(3), levels=torch.linspace(-1, 1, 5), scale=0.5),
    "AmortizedLikelihood": given("program latent observed hidden depth", draws=draws),
    "AmortizedPosterior": given("program latent observed", draws=draws),
    "AmortizedJoint": given("program latent observed hidden depth", draws=draws),
    "Calibration": given(ranks={"theta": torch.arange(20) % 4}, draws=3),
    "Coverage": given(levels={"theta": torch.linspace(0, 1, 20)}),
    "ImportanceWeights": given(log_weights=normal(0, 64)),
    "LikelihoodMembers": given(members=lambda: [likelihood(), likelihood()]),
    "LocalGuide": given(
        "posterior",
        sites=lambda: read_program(program, ["theta"], ["x"]).parameters,
        data={"x": torch.zeros(3, 2)},
        m=3,
        block=2,
    ),
    "PosteriorGuide": given(
        "posterior program data seed",
        sites=lambda: read_program(program, ["theta"], ["x"]).parameters,
    ),
    "Guided": given("sampler", weight=1.5, log_snr=[-5.0, 5.0]),
    "RandomMaps": given(levels=0.5, subsets=0.4, independent=0.1, window=(0.1, 0.5)),
    "Context": given(encoder=lambda: nn.Linear(2, 4), size=2),
    "ContextClocks": given("context_size degree floor", number=2, width=8),
    "ContextDiffusion": given(
        "block",
        context=lambda: GaussianContext(nn.Linear(2, 4), 2),
        clocks=lambda: ContextClocks(2, 2),
        clock_of=torch.tensor([0, 1]),
    ),
    "DiscreteContext": given(encoder=lambda: nn.Linear(2, 3), size=3),
    "GaussianContext": given(encoder=lambda: nn.Linear(2, 4), size=2),
    "MapMLP": given("covariance hidden depth", scale=torch.ones(2)),
    "MixedLikelihood": given(parts=lambda: [Gaussian(), Gaussian()], part_of=torch.tensor([0, 1])),
    "OneHotDenoiser": given(network=lambda: mlp(6), log_prior=torch.full((2, 3), 1 / 3).log()),
    "OneHotLikelihood": given(log_prior=torch.full((2, 3), 1 / 3).log()),
    "Table": given("seed num center unknown", steps=2),
    "TableRows": given(table=frame, holdout=True),
    "MovingAverage": given(weights=mlp, decay=0.9, forgetting=20),
    "Trainer": given("steps", module=mlp, learning_rate=1e-3, warmup=1),
    "MDM.log_prob": given(value=X),
    "MDM.expand": given(batch_shape=(4,)),
    "DiffusionModel.log_prob": given("x seed", method="elbo", draws=2),
    "DiffusionModel.forward": given("num_data", batch_size=4),
    "DiffusionModel.from_pretrained": given(folder=lambda: saved("DiffusionModel")),
    "MDM_ELBO.loss": given("model guide", args=lambda: (X,)),
    "Denoiser.fit": given("train_x network", floor=1e-3),
    "DiscreteDenoiser.fit": given("levels", network=unet, train_x=IMAGES, form="tilt"),
    "DiscreteDenoiser.x_hat": given("log_snr", z=IMAGES),
    "ResidualScore.fit": given(
        "train_x seed", network=lambda: mlp(4), diffusion=simulated, num_levels=5, num_paths=8
    ),
    "MixedDenoiser.fit": given(
        network=lambda: mlp(2, 4), train_x=torch.cat([X[:, :1], CODES[:, :1]], 1), levels=[None, 3]
    ),
    "OneHotDenoiser.fit": given(
        network=lambda: mlp(6), train_x=torch.eye(3).repeat(4, 2), number=3
    ),
    "ImportedDenoiser.fit": given(
        "train_x network", schedule=NoiseSchedule.flow, predicts="data", floor=1e-3
    ),
    "LinearDiffusion.time_at_log_snr": given(value=1.0),
    "LinearDiffusion.drift": given("s", y=torch.zeros(8, 2, 2)),
    "Simulated.drift": given("s", y=torch.zeros(8, 2, 2)),
    "LearnedDrift.drift": given("s", y=torch.zeros(8, 2, 2)),
    "GaussianPrior.log_prob": given(y=torch.zeros(8, 2, 3).double()),
    "GaussianPrior.sample": given(generator=lambda: generator(0), shape=(8, 2, 3)),
    "GaussianPrior.score": given(y=torch.zeros(8, 2, 3).double()),
    "QuadraturePrior.log_prob": given(y=torch.zeros(8, 1, 3).double()),
    "QuadraturePrior.sample": given(generator=lambda: generator(0), shape=(8, 1, 3)),
    "QuadraturePrior.score": given(y=torch.zeros(8, 1, 3).double()),
    **{
        f"{name}.__call__": given("diffusion generator", score=lambda: state_score, shape=(4, 2, 2))
        for name in ("Ancestral", "ExponentialIntegrator", "EulerMaruyama", "ProbabilityFlow")
    },
    "Gaussian.forward": given("diffusion score event_dim", y=torch.zeros(8, 2, 2)),
    "Tweedie.forward": given("diffusion score event_dim", y=torch.zeros(8, 2, 2)),
    **{f"{name}.__call__": given(x=torch.zeros(3, 1, 4, 4)) for name in ("Blur", "Downsample")},
    "Blur.adjoint": given(obs=torch.zeros(3, 1, 4, 4)),
    "Downsample.adjoint": given(obs=torch.zeros(3, 1, 2, 2)),
    "Mask.adjoint": given(obs=torch.zeros(8, 1)),
    "Matrix.adjoint": given(obs=torch.zeros(8, 2)),
    "FunctionOperator.adjoint": given(obs=torch.zeros(8, 2)),
    "Clipped.log_prob": given(value=torch.zeros(3)),
    "Clipped.expand": given(batch_shape=(4, 3)),
    "Quantized.log_prob": given(value=torch.zeros(3)),
    "LevelCategorical.log_prob": given(value=torch.zeros(8, 2)),
    "Measurement.log_prob": given(value=torch.zeros(1)),
    "Completions.draw": given("seed", model=mapped, steps=2, batch_size=4),
    "ClassPosterior.accuracy": given(labels=torch.zeros(8, dtype=torch.int64)),
    "GenerativeChain.log_prob": given(value=lambda: NoisingPath(cld(), X, cld_times())()),
    "GenerativeChain.sample": given(sample_shape=()),
    "GenerativePath.sample": given(sample_shape=()),
    "NoisingPath.log_prob": given(value=lambda: NoisingPath(cld(), X)()),
    "AmortizedPosterior.fit": LEARNED,
    "AmortizedPosterior.log_prob": given(
        "data seed", theta={"theta": torch.zeros(4, 2)}, samples=1
    ),
    "AmortizedPosterior.local_guide": given(data={"x": torch.zeros(3, 2)}, block=2),
    "AmortizedPosterior.from_pretrained": given(
        "program", folder=lambda: saved("AmortizedPosterior")
    ),
    "AmortizedLikelihood.fit": LEARNED,
    "AmortizedLikelihood.log_prob": given("data", theta={"theta": torch.zeros(4, 2)}),
    "AmortizedLikelihood.posterior": given("data seed", n=16, particles=80),
    "AmortizedLikelihood.outside": given(theta={"theta": torch.zeros(4, 2)}),
    "AmortizedLikelihood.from_pretrained": given(
        "program", folder=lambda: saved("AmortizedLikelihood")
    ),
    "LikelihoodMembers.fit": LEARNED | given(members=2),
    "LikelihoodMembers.log_prob": given("data", theta={"theta": torch.zeros(4, 2)}),
    "LikelihoodMembers.posterior": given("data seed", n=16, particles=80),
    "LikelihoodMembers.outside": given(theta={"theta": torch.zeros(4, 2)}),
    "LikelihoodMembers.evidence": given("data", estimate=lambda: lambda one: Measured(0.0, 0.1)),
    "PosteriorGuide.initial_params": given(chains=2),
    "AutoMDM.fit": given(
        "progress",
        updates=2,
        start_updates=2,
        paths=4,
        particles=32,
        learning_rate=1e-3,
        seconds=0.3,
    ),
    "AutoMDM.check": given("progress", num_samples=200),
    "AutoMDM.gap": given(simulated=2, paths=4),
    "AutoMDM.importance": given(num_samples=8),
    "AutoMDM.sample_posterior": given(num_samples=8),
    "AutoMDM.quantiles": given(quantiles=[0.1, 0.9]),
    "Table.fit": given(X=frame),
    "Table.impute": given("num seed", X=lambda: gaps(), proper=True, batch_size=64),
    "Table.transform": given(X=lambda: gaps()),
    "Table.log_prob": given("seed", X=lambda: frame()[:4], draws=2, error=0.5, batch_size=64),
    "Table.sample": given("n seed", given={"a": 0.5}, batch_size=64),
    "Table.conditional": given(X=lambda: gaps()[:4], column="b", num=8, batch_size=64),
    "Table.column": given(name="a"),
    "Table.calibration": given("draws seed", X=lambda: frame()[:20]),
    "Table.from_pretrained": given(folder=lambda: saved("Table")),
    "Conditional.interval": given(level=0.9),
    "Conditional.quantile": given(q=0.5),
    "Conditional.log_prob": given(values=[0.1, 0.2, 0.3, 0.4], draws=2, error=0.5),
    "Coverage.error": given(level=0.9),
    "ImportanceWeights.agrees_with": given(other=lambda: ImportanceWeights(normal(1, 64))),
    "Trainer.fit": given(
        loss=lambda: lambda: torch.zeros((), requires_grad=True), looks=4, unit="nats"
    ),
    "Trainer.step": given(loss=lambda: torch.zeros((), requires_grad=True)),
    "Trainer.look": given(value=1.0),
    "Trainer.is_due": given(every=2, looks=4),
    "MovingAverage.decay_at": given(number=3),
    **{name: given(names) for names, methods in METHODS.items() for name in methods.split()},
}

MADE_INSIDE = {
    "results, which the library makes": """AuxiliaryUse Bound Calibration Checkup ClassPosterior
        Comparison Conditional Coverage Difference ELBOTerms Estimate FactorCalibration ImportCheck
        RowWeights ScoredDraws StepSizeBias Weighted""",
    "distributions of paths, decoders and data, which the programs make": """ConditionedDecoder
        DataDistribution LevelDistribution LevelPosterior NoisingLaw PathLaw""",
    "bases of classes of one's own": """Column DenoiserScore DerivedDenoiser LearnedLikelihood
        LinearOperator NonlinearDiffusion Score""",
    "columns, which fit_columns makes": """Boolean Bounded Categorical Continuous Dates Integer
        Mixed Nonnegative Ordinal Rounded""",
    "parts of a network that from_gaussian makes": "LevelLogits",
}
"""Classes that are not called by users, by the reason."""
EXEMPT = {name for names in MADE_INSIDE.values() for name in names.split()}


def public_names() -> dict[str, Any]:
    """The functions and classes that a package lists in ``__all__``."""
    packages = [f"pyro_mdm.{m.name}" for m in pkgutil.iter_modules(pyro_mdm.__path__) if m.ispkg]
    names = {}
    for package in ("pyro_mdm", *packages):
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if inspect.isroutine(value) or inspect.isclass(value):
                names[name] = value
    return names


def is_result(value: Any) -> bool:
    """Whether a class is one that nobody makes: results, an error, a protocol, a mapping's type."""
    return inspect.isclass(value) and (
        issubclass(value, tuple | Exception | Enum)
        or is_typeddict(value)
        or inspect.isabstract(value)
        or getattr(value, "_is_protocol", False)
    )


def arguments_of(name: str, function: Any) -> dict[str, Any]:
    """The right arguments of a function."""
    if name in ARGUMENTS:
        return {key: make() for key, make in ARGUMENTS[name].items()}
    parameters = inspect.signature(function).parameters
    return {key: BY_PARAMETER[key]() for key in parameters if key in BY_PARAMETER}


def doors() -> dict[str, Callable[[], Any]]:
    """Functions that give the public callable, by name; methods are of an object."""
    table: dict[str, Callable[[], Any]] = {}
    for name, value in public_names().items():
        if name not in EXEMPT and not is_result(value):
            table[name] = lambda v=value: v
    for name in ARGUMENTS:
        owner, dot, method = name.partition(".")
        if dot and name != "Table.fit":
            table[name] = lambda o=owner, m=method: getattr(
                OWNERS.get(o, lambda: public_names()[o])(), m
            )
    table["Table.fit"] = lambda: Table(steps=2, num=2, progress=False).fit
    return table
