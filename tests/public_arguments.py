"""Right arguments of every public function, class and method, from which wrong ones are made.

A name that a package lists in ``__all__`` has its arguments here, by its own table or by the names
of its parameters, or stands among those that nobody calls.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable
from enum import Enum
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import torch
from torch import nn
from typing_extensions import is_typeddict

import pyro_mdm
from pyro_mdm import (
    DataDrivenDiffusion,
    Denoiser,
    DiffusionGuide,
    GenerativePath,
    NoisingPath,
    RawScore,
    SimulatedPath,
)
from pyro_mdm.by_dimension import LearnedClocks
from pyro_mdm.diffusions import (
    Cap,
    LinearBeta,
)
from pyro_mdm.imported import (
    NoiseSchedule,
)
from pyro_mdm.likelihoods import Gaussian, Tweedie
from pyro_mdm.measurements import (
    Mask,
)
from pyro_mdm.posteriors import (
    ImportanceWeights,
    read_program,
)
from pyro_mdm.samplers import Ancestral
from pyro_mdm.seeing import (
    ContextClocks,
    GaussianContext,
)
from pyro_mdm.support.measured import Measured
from pyro_mdm.tables import (
    Ordinal,
    Table,
)
from tests.problems import generator, normal
from tests.public_objects import (
    BY_PARAMETER,
    CODES,
    DATA,
    FOLDER,
    GAUSSIAN_PROCESS,
    GRID,
    IMAGES,
    OWNERS,
    SEEN,
    Azula,
    D,
    N,
    Q,
    X,
    class_model,
    cld,
    cld_times,
    denoiser,
    discrete,
    draws,
    driven,
    frame,
    gaps,
    guide,
    identity,
    image_model,
    imported,
    likelihood,
    mapped,
    measured,
    minus_identity,
    mlp,
    model,
    observed_program,
    posterior,
    program,
    saved,
    saved_draws,
    simulated,
    simulated_model,
    square,
    state_score,
    unet,
    unet_of_diffusers,
    vpsde,
)
from tests.varying.problems import less_data, more_noise, rubbing, turning

SEVERAL_X = {"model": model, "guide": guide, "x": lambda: X, "seed": lambda: 0}
LEARNED = {
    "program": lambda: program,
    "latent": lambda: ["theta"],
    "observed": lambda: ["x"],
    "simulations": lambda: N,
    "steps": lambda: 2,
    "seconds": lambda: 0.3,  # also where steps are None
    "seed": lambda: 0,
    "progress": lambda: False,
    "batch_size": lambda: 8,
}
DIFFUSION = {"horizon": lambda: 1.0, "max_log_snr": lambda: 6.0, "min_log_snr": lambda: -6.0}
LINEAR = DIFFUSION | {
    "beta": lambda: LinearBeta(),
    "initial_variance": lambda: 0.01,
    "stationary_variance": lambda: 1.0,
}
SDE = {k: v for k, v in LINEAR.items() if k not in ("stationary_variance",)}


def values(**arguments: Any) -> dict[str, Callable[[], Any]]:
    """Arguments that are no functions and may be shared."""
    return {name: (lambda v=value: v) for name, value in arguments.items()}


ARGUMENTS: dict[str, dict[str, Callable[[], Any]]] = {
    "bits_per_dim": values(
        log_prob=torch.zeros(8), num_dims=2, log_det=torch.zeros(8), num_levels=4
    ),
    "condition": {"model": mapped, **values(observed=SEEN, values=torch.zeros(2))},
    "elbo_terms": {"model": model, "guide": guide, "args": lambda: (X,)},
    "impute": {"model": mapped, **values(x=X.where(SEEN, math.nan), num=2, batch_size=4, seed=0)},
    "class_posterior": {
        "model": class_model,
        "guide": lambda: DiffusionGuide(vpsde()),
        **values(x=X, prior=torch.tensor([0.5, 0.5]), draws=2, batch_size=4, seed=0),
    },
    "windowed": {"model": image_model, **values(size=(6, 6))},
    "apply_matrix": values(matrix=torch.eye(2), y=torch.zeros(8, 2, 3)),
    "apply_vector": values(vector=torch.ones(8, 2), y=torch.zeros(8, 2, 3)),
    "require": {"diffusion": cld, "caps": lambda: (next(iter(Cap)),), **values(who="it", fix="do")},
    "auxiliary_information": {"diffusion": cld, **values(s=0.5, variance=1.0)},
    "compare": {
        "programs": lambda: {"a": (model(), guide()), "b": (model(), guide())},
        **values(x=X, draws=4, half_width=0.5, batch_size=4, seed=0, bins=4),
    },
    "evidence_lower_bound": SEVERAL_X | values(draws=4, half_width=0.5, batch_size=4, bins=4),
    "importance_weighted": SEVERAL_X | values(samples=2, times=5),
    "probability_flow": SEVERAL_X | values(samples=1),
    "log_likelihood": SEVERAL_X | values(method="elbo", draws=4),
    "auxiliary_use": SEVERAL_X | values(draws=4, batch_size=4),
    "bound_gap": {
        "model": model,
        "guide": guide,
        **values(simulated=4, samples=1, times=5, seed=0),
    },
    "best_ends": {"denoiser": lambda: imported(), **values(x=X, points=4, seed=0)},
    "check_import": {"denoiser": lambda: imported(), **values(x=X, points=4, seed=0)},
    "from_azula": {"denoiser": Azula, **values(train_x=X, shift=0.0, scale=1.0)},
    "from_denoising_diffusion": {"process": lambda: GAUSSIAN_PROCESS, **values(train_x=X)},
    "from_diffusers": {
        "model": mlp,
        "scheduler": lambda: diffusers.DDPMScheduler(),
        **values(train_x=X),
    },
    "from_pipeline": {
        "pipeline": lambda: SimpleNamespace(
            components={"unet": unet_of_diffusers(), "scheduler": diffusers.DDPMScheduler()}
        ),
        **values(train_x=IMAGES),
    },
    "register_kind": {"kind": lambda: Ordinal},
    "from_sigma_denoiser": {"network": mlp, **values(train_x=X, least=0.01, most=50.0)},
    "from_velocity": {"network": mlp, **values(train_x=X, data_at=1.0, shift=0.0, scale=1.0)},
    "to_azula": {"model": model},
    "to_pipeline": {"model": image_model, **values(low=-1.0, high=1.0, steps=10)},
    "read_state": {
        "diffusion": cld,
        "score": lambda: model().score_function,
        **values(y=torch.stack([X, X], 1), event_dim=1),
    },
    "condition_on_measurements": {
        "model": model,
        "H": lambda: Mask(SEEN),
        **values(obs=torch.zeros(1), noise=0.5, data=X),
    },
    "twisted_smc": {
        "model": measured,
        **values(num_particles=4, steps=4, repeats=1, threshold=0.5),
    },
    "twisted_smc_gap": {"model": measured, **values(num_particles=4, simulated=4, steps=4)},
    "different_diffusions": {"guide": guide, "model": model},
    "path_divergence": {
        "noising": BY_PARAMETER["noising"],
        "generative": BY_PARAMETER["generative"],
    },
    "prior_kl": {"diffusion": cld, **values(x=X, event_dim=1)},
    "density_bound": {"diffusion": cld, "score": denoiser, **values(y=torch.stack([X, X], 1))},
    "calibrate": {
        "posterior": posterior,
        **values(program=program, simulations=20, draws=19, seed=0),
    },
    "calibrate_factor": values(
        log_factor=lambda data: 0.5, first=program, second=program, observed=["x"], simulations=2
    )
    | values(seed=0),
    "calibrate_at": {
        "posterior": posterior,
        **values(program=program, data=DATA, simulations=40, nearest=20, draws=19, seed=0),
    },
    "expected_coverage": {
        "posterior": posterior,
        **values(program=program, simulations=20, draws=19, seed=0),
    },
    "log_prior": values(program=program, latent=["theta"], draws={"theta": torch.zeros(4, 2)}),
    "ranks": values(draws=normal(0, 19, 8, 2), truth=normal(1, 8, 2), seed=0),
    "read_draws": {"folder": saved_draws, **values(names=["a"])},
    "simulate": values(program=program, n=8, seed=0, batch_size=4),
    "default_sampler": {"diffusion": cld, "score": denoiser},
    "karras_grid": {"diffusion": cld, **values(steps=4, rho=7.0)},
    "simulation_grid": {"diffusion": simulated, **values(steps=4)},
    "path_information_gap": {"diffusion": driven, **values(points=X, levels=8, draws=4, seed=0)},
    "arrival": {
        "noising": lambda: SimulatedPath(simulated(), X),
        "path": lambda: SimulatedPath(simulated(), X)(),
    },
    "simulated_kl": {
        "noising": lambda: SimulatedPath(simulated(), X),
        "generative": lambda: GenerativePath(simulated(), RawScore(mlp(4)), (2,), batch_shape=(8,)),
    },
    "step_size_bias": {
        "model": simulated_model,
        "guide": lambda: DiffusionGuide(simulated()),
        **values(x=X, draws=2, seed=0),
    },
    "fit_columns": {
        "table": frame,
        "train": lambda: np.ones(N, bool),
        "kinds": lambda: {"a": "continuous"},
    },
    "pooled": {
        "tables": lambda: [frame(), frame()],
        "fit": lambda: lambda table: (table["a"].mean(), table["a"].sem()),
        "level": lambda: 0.9,
    },
    "indices": values(seed=0, step=1, batch_size=4, n=8),
    "schedule": values(step=3, steps=10, warmup=2, decay="cosine"),
    # -- classes
    "ALDA": values(mass=1.0, gamma=1.0, psi=1.0, lipschitz=2.0) | LINEAR,
    "CLD": values(mass=1.0, friction=2.0) | LINEAR,
    "HOLD": values(num_variables=3) | LINEAR,
    "MALDA": values(mass=1.0, gamma=1.0, lipschitz=2.0) | LINEAR,
    "VPSDE": LINEAR,
    "VE": values(sigma_min=0.01, sigma_max=50.0, prior_variance=1.0, max_log_snr=6.0),
    "SubVP": {"beta": LinearBeta, **DIFFUSION},
    "Cosine": values(prior_variance=1.0, max_log_snr=6.0, min_log_snr=-6.0),
    "RectifiedFlow": values(max_log_snr=6.0, min_log_snr=-6.0),
    "MomentumVE": values(sigma_min=0.01, sigma_max=50.0, initial_variance=0.01),
    "Interpolant": values(
        alpha=less_data, sigma=more_noise, horizon=1.0, prior_variance=4.0, max_log_snr=6.0
    ),
    "MDM": {
        "model": model,
        **values(
            method="elbo",
            draws=2,
            seed=0,
            batch_shape=(),
        ),
    },
    "MDM_ELBO": values(decoder=True),
    "AutoMDM": {
        "model": lambda: observed_program,
        "diffusion": cld,
        **values(steps=4, start="gaussian", width=8),
    },
    "DataDrivenDiffusion": {
        "base": vpsde,
        "network": lambda: mlp(2, DataDrivenDiffusion.outputs() * 2),
        **values(means=1.0, scales=1.0, degree=5),
    },
    "Denoiser": {
        "network": mlp,
        **values(data_mean=torch.zeros(2), data_variance=torch.ones(2), maps=False),
    },
    "DiffusionGuide": {"diffusion": cld, **values(times=5, plate="data", event_dim=1)},
    "DiffusionModel": {
        "diffusion": cld,
        "score": denoiser,
        "likelihood": Tweedie,
        "sampler": lambda: Ancestral(4),
        **values(event_shape=(2,), plate="data"),
    },
    "DiscreteDenoiser": {
        "network": unet,
        **values(levels=5, log_prior=torch.full((1, 4, 4, 5), 0.2).log(), form="tilt"),
    },
    "EncodedDiffusion": {"base": cld, "encoder": lambda: nn.Linear(2, 2)},
    "GenerativeChain": {
        "diffusion": cld,
        "score": denoiser,
        "times": lambda: cld_times(),
        **values(event_shape=(2,), batch_shape=(8,)),
    },
    "GenerativePath": {
        "diffusion": cld,
        "score": denoiser,
        "sampler": lambda: Ancestral(4),
        **values(event_shape=(2,), batch_shape=(8,)),
    },
    "NoisingPath": {"diffusion": cld, "times": lambda: cld_times(), **values(x=X, event_dim=1)},
    "SimulatedPath": {
        "diffusion": simulated,
        "simulation": BY_PARAMETER["simulation"],
        **values(x=X, times=torch.linspace(0.2, 1, 3), event_dim=1),
    },
    "HamiltonianDiffusion": values(
        H=[square, square], Q=Q, D=D, horizon=1.0, initial_variance=0.01
    ),
    "LearnedDiffusion": values(num_variables=2, rank=2, learn_beta=True, seed=0) | LINEAR,
    "LearnedDrift": {
        "linear": cld,
        "network": lambda: mlp(4),
        "simulation": BY_PARAMETER["simulation"],
        **values(limit=4.0),
    },
    "LinearDiffusion": values(Q=Q, D=D) | LINEAR,
    "LinearSDE": values(
        A=[[-1.0, 0.5], [-0.5, -1.0]], G=[[0.5, 0.0], [0.0, 1.0]], prior_variance=1.0
    )
    | SDE,
    "TimeVaryingDiffusion": values(Q=turning, D=rubbing, cells=64, max_log_snr=6.0),
    "TimeVaryingLearnedDiffusion": values(
        num_variables=2,
        rank=2,
        degree=2,
        cells=64,
        learn_ends=0.5,
        max_log_snr=6.0,
        min_log_snr=-6.0,
    ),
    "TimeVaryingSDE": values(A=minus_identity, G=identity, cells=64, max_log_snr=6.0),
    "MixedDenoiser": {
        "network": lambda: mlp(2, 2),
        "parts": lambda: [Denoiser(mlp(1), torch.zeros(1), torch.ones(1))] * 2,
        **values(part_of=torch.tensor([0, 1])),
    },
    "NoisePrediction": {"network": lambda: mlp(4, 2)},
    "RawScore": {"network": lambda: mlp(4)},
    "OneHot": values(number=3),
    "PerDimensionDiffusion": {
        "blocks": lambda: [vpsde(), vpsde()],
        "clocks": lambda: LearnedClocks(2),
        **values(block_of=torch.tensor([0, 1]), clock_of=torch.tensor([1, 0])),
    },
    "ResidualScore": {
        "network": lambda: mlp(4),
        **values(
            levels=torch.linspace(-4, 4, 5),
            mean=torch.zeros(5, 2, 2),
            covariance=torch.eye(2).expand(5, 2, 2, 2),
        ),
    },
    "Simulated": {"linear": cld, "simulation": BY_PARAMETER["simulation"]},
    "Simulation": values(
        step_size=0.25,
        points=2,
        method="euler",
        objective="ism",
        increment=0.05,
        probes=1,
    ),
    "StateDenoiser": {"denoiser": lambda: Denoiser.fit(mlp(4, 2), X)},
    "RowWeights": values(log_weights=normal(0, 16, 3)),
    "ClassPosterior": values(
        elbo=normal(0, 8, 2),
        halves=normal(1, 2, 8, 2),
        log_prior=torch.tensor([0.5, 0.5]).log(),
        num_dims=2,
        network_calls=4,
    ),
    "EncodedContext": {
        "encoder": lambda: nn.Linear(2, 3),
        **values(size=3, shape=(2,), dropout=0.1, whole=False),
    },
    "Labels": values(num_classes=3, dropout=0.1),
    "Vectors": values(mean=torch.zeros(2), scale=torch.ones(2), dropout=0.1),
    "Completions": {"x": lambda: X.where(SEEN, math.nan)},
    "ConditionedDenoiser": {
        "denoiser": lambda: mapped().score_function,
        **values(observed=SEEN, values=torch.zeros(2)),
    },
    "ConditionedLikelihood": {"likelihood": Tweedie},
    "Replacement": {
        "sampler": lambda: Ancestral(4),
        **values(observed=SEEN, values=torch.zeros(2), repeats=1),
    },
    "WindowedDenoiser": {"denoiser": discrete, **values(size=(6, 6))},
    "BlurClocks": values(squares=[0.0, 1.0], width=8.0, blur=20.0, least=0.05),
    "ConstantBeta": values(beta=4.0),
    "Frequencies": values(dims=2),
    "GaussianPrior": values(covariance=torch.eye(2).double()),
    "GeometricBeta": values(start=0.1, end=20.0, horizon=1.0),
    "LearnedBeta": {"start": LinearBeta, **values(knots=5, horizon=1.0)},
    "LearnedClocks": values(number=2, degree=3, floor=0.05),
    "LinearBeta": values(beta_min=0.1, beta_max=20.0, horizon=1.0),
    "QuadraturePrior": values(energies=[square]),
    "TurnClocks": values(intervals=[[0.0, 0.7], [0.2, 1.0]], leak=0.1),
    "InterpolantClock": values(horizon=1.0),
    "GaussianPosterior": values(mean=torch.zeros(2).double(), covariance=torch.eye(2).double()),
    "EDMPreconditioned": {"network": mlp, **values(sigma_data=0.5, sign=1)},
    "ImportedDenoiser": {
        "network": mlp,
        "schedule": NoiseSchedule.flow,
        **values(predicts="data", data_mean=0.0, data_variance=1.0, shift=0.0, scale=1.0),
    },
    "Labelled": {"network": mlp, **values(unknown=3, argument="labels")},
    "NoiseSchedule": values(time=GRID, alpha=1 - GRID, sigma=GRID),
    "SigmaDenoiser": {"model": model},
    "TimedNetwork": {"network": mlp, **values(context_size=0, time="second")},
    "DiscretizedGaussian": values(levels=5),
    "Gaussian": values(prior_mean=0.0, prior_variance=1.0),
    "LevelCategorical": values(
        levels=torch.linspace(-1, 1, 5), log_probs=torch.full((8, 2, 5), 0.2).log(), event_dim=1
    ),
    "LogitDequantization": values(num_levels=4, margin=1e-6),
    "Blur": values(event_shape=(1, 4, 4), width=1.0),
    "Clipped": values(loc=torch.zeros(3), scale=0.5, low=-1.0, high=1.0),
    "Downsample": values(event_shape=(1, 4, 4), factor=2),
    "FunctionOperator": values(function=torch.clone, event_shape=(2,)),
    "Mask": values(seen=SEEN),
    "Matrix": values(H=torch.eye(2), event_shape=(2,)),
    "MeasuredDenoiser": {
        "denoiser": denoiser,
        "H": lambda: Mask(SEEN),
        **values(obs=torch.zeros(1), noise=0.5),
    },
    "Measurement": {
        "model": model,
        "H": lambda: Mask(SEEN),
        **values(noise=0.5, num_particles=4, steps=4),
    },
    "NonlinearOperator": values(function=torch.square, event_shape=(2,)),
    "Quantized": values(loc=torch.zeros(3), levels=torch.linspace(-1, 1, 5), scale=0.5),
    "AmortizedLikelihood": {
        "draws": draws,
        **values(program=program, latent=["theta"], observed=["x"], hidden=8, depth=1),
    },
    "AmortizedPosterior": {
        "draws": draws,
        **values(program=program, latent=["theta"], observed=["x"]),
    },
    "AmortizedJoint": {
        "draws": draws,
        **values(program=program, latent=["theta"], observed=["x"], hidden=8, depth=1),
    },
    "Calibration": values(ranks={"theta": torch.arange(20) % 4}, draws=3),
    "Coverage": values(levels={"theta": torch.linspace(0, 1, 20)}),
    "ImportanceWeights": values(log_weights=normal(0, 64)),
    "LikelihoodMembers": {"members": lambda: [likelihood(), likelihood()]},
    "LocalGuide": {
        "posterior": posterior,
        "sites": lambda: read_program(program, ["theta"], ["x"]).parameters,
        **values(data={"x": torch.zeros(3, 2)}, m=3, block=2),
    },
    "PosteriorGuide": {
        "posterior": posterior,
        "program": lambda: program,
        "sites": lambda: read_program(program, ["theta"], ["x"]).parameters,
        **values(data=DATA, seed=0),
    },
    "Guided": {"sampler": lambda: Ancestral(4), **values(weight=1.5, log_snr=[-5.0, 5.0])},
    "RandomMaps": values(levels=0.5, subsets=0.4, independent=0.1, window=(0.1, 0.5)),
    "Context": {"encoder": lambda: nn.Linear(2, 4), **values(size=2)},
    "ContextClocks": values(number=2, context_size=2, degree=3, floor=0.05, width=8),
    "ContextDiffusion": {
        "block": vpsde,
        "context": lambda: GaussianContext(nn.Linear(2, 4), 2),
        "clocks": lambda: ContextClocks(2, 2),
        **values(clock_of=torch.tensor([0, 1])),
    },
    "DiscreteContext": {"encoder": lambda: nn.Linear(2, 3), **values(size=3)},
    "GaussianContext": {"encoder": lambda: nn.Linear(2, 4), **values(size=2)},
    "MapMLP": values(covariance=torch.eye(2), scale=torch.ones(2), hidden=8, depth=1),
    "MixedLikelihood": {
        "parts": lambda: [Gaussian(), Gaussian()],
        **values(part_of=torch.tensor([0, 1])),
    },
    "OneHotDenoiser": {
        "network": lambda: mlp(6),
        **values(log_prior=torch.full((2, 3), 1 / 3).log()),
    },
    "OneHotLikelihood": values(log_prior=torch.full((2, 3), 1 / 3).log()),
    "Table": values(seed=0, steps=2, num=2, center="mean", unknown="missing"),
    "TableRows": {"table": frame, **values(holdout=True)},
    "MovingAverage": {"weights": mlp, **values(decay=0.9, forgetting=20)},
    "Trainer": {"module": mlp, **values(steps=4, learning_rate=1e-3, warmup=1)},
    # -- methods
    "MDM.log_prob": values(value=X),
    "MDM.sample": values(sample_shape=(4,)),
    "MDM.expand": values(batch_shape=(4,)),
    "DiffusionModel.log_prob": values(x=X, method="elbo", draws=2, seed=0),
    "DiffusionModel.forward": values(batch_size=4, num_data=100),
    "DiffusionModel.save_pretrained": {"folder": lambda: str(FOLDER / "new")},
    "DiffusionModel.from_pretrained": {"folder": lambda: saved("DiffusionModel")},
    "DiffusionGuide.forward": values(x=X, num_data=100),
    "MDM_ELBO.loss": {"model": model, "guide": guide, "args": lambda: (X,)},
    "Denoiser.fit": {"network": mlp, **values(train_x=X, floor=1e-3)},
    "Denoiser.x_hat": values(z=X, log_snr=1.0),
    "DiscreteDenoiser.fit": {"network": unet, **values(train_x=IMAGES, levels=5, form="tilt")},
    "DiscreteDenoiser.x_hat": values(z=IMAGES, log_snr=1.0),
    "ResidualScore.fit": {
        "network": lambda: mlp(4),
        "diffusion": simulated,
        **values(train_x=X, num_levels=5, num_paths=8, seed=0),
    },
    "MixedDenoiser.fit": {
        "network": lambda: mlp(2, 4),
        **values(train_x=torch.cat([X[:, :1], CODES[:, :1]], 1), levels=[None, 3]),
    },
    "OneHotDenoiser.fit": {
        "network": lambda: mlp(6),
        **values(train_x=torch.eye(3).repeat(4, 2), number=3),
    },
    "ImportedDenoiser.fit": {
        "network": mlp,
        "schedule": NoiseSchedule.flow,
        **values(train_x=X, predicts="data", floor=1e-3),
    },
    "ImportedDenoiser.x_hat": values(z=X, log_snr=1.0),
    "GaussianPosterior.fit": values(x=X),
    "LinearDiffusion.marginal": values(s=0.5),
    "LinearDiffusion.transition": values(s=0.5, r=0.1),
    "LinearDiffusion.log_snr": values(s=0.5),
    "LinearDiffusion.drift_matrix": values(s=0.5),
    "LinearDiffusion.noise_covariance": values(s=0.5),
    "LinearDiffusion.time_at_log_snr": values(value=1.0),
    "LinearDiffusion.drift": values(y=torch.zeros(8, 2, 2), s=0.5),
    "PerDimensionDiffusion.marginal": values(s=0.5),
    "PerDimensionDiffusion.transition": values(s=0.5, r=0.1),
    "Simulated.drift": values(y=torch.zeros(8, 2, 2), s=0.5),
    "LearnedDrift.drift": values(y=torch.zeros(8, 2, 2), s=0.5),
    "GaussianPrior.log_prob": values(y=torch.zeros(8, 2, 3).double()),
    "GaussianPrior.sample": {"generator": lambda: generator(0), **values(shape=(8, 2, 3))},
    "GaussianPrior.score": values(y=torch.zeros(8, 2, 3).double()),
    "QuadraturePrior.log_prob": values(y=torch.zeros(8, 1, 3).double()),
    "QuadraturePrior.sample": {"generator": lambda: generator(0), **values(shape=(8, 1, 3))},
    "QuadraturePrior.score": values(y=torch.zeros(8, 1, 3).double()),
    **{
        f"{name}.__call__": {
            "diffusion": cld,
            "score": lambda: state_score,
            "generator": lambda: generator(0),
            **values(shape=(4, 2, 2)),
        }
        for name in ("Ancestral", "ExponentialIntegrator", "EulerMaruyama", "ProbabilityFlow")
    },
    "Gaussian.forward": {
        "diffusion": cld,
        "score": lambda: model().score_function,
        **values(y=torch.zeros(8, 2, 2), event_dim=1),
    },
    "Tweedie.forward": {
        "diffusion": cld,
        "score": lambda: model().score_function,
        **values(y=torch.zeros(8, 2, 2), event_dim=1),
    },
    **{f"{name}.__call__": values(x=torch.zeros(3, 1, 4, 4)) for name in ("Blur", "Downsample")},
    **{
        f"{name}.__call__": values(x=X)
        for name in ("Mask", "Matrix", "FunctionOperator", "NonlinearOperator")
    },
    "Blur.adjoint": values(obs=torch.zeros(3, 1, 4, 4)),
    "Downsample.adjoint": values(obs=torch.zeros(3, 1, 2, 2)),
    "Mask.adjoint": values(obs=torch.zeros(8, 1)),
    "Matrix.adjoint": values(obs=torch.zeros(8, 2)),
    "FunctionOperator.adjoint": values(obs=torch.zeros(8, 2)),
    "Clipped.log_prob": values(value=torch.zeros(3)),
    "Clipped.expand": values(batch_shape=(4, 3)),
    "Clipped.sample": values(sample_shape=(4,)),
    "Quantized.log_prob": values(value=torch.zeros(3)),
    "Quantized.sample": values(sample_shape=(4,)),
    "LevelCategorical.log_prob": values(value=torch.zeros(8, 2)),
    "LevelCategorical.sample": values(sample_shape=(4,)),
    "Measurement.log_prob": values(value=torch.zeros(1)),
    "Measurement.particles": values(obs=torch.zeros(1)),
    "Measurement.sample": values(sample_shape=(4,)),
    "Particles.resampled": values(n=4),
    "Completions.draw": {"model": mapped, **values(steps=2, batch_size=4, seed=0)},
    "ClassPosterior.accuracy": values(labels=torch.zeros(8, dtype=torch.int64)),
    "GenerativeChain.log_prob": {"value": lambda: NoisingPath(cld(), X, cld_times())()},
    "GenerativeChain.sample": values(sample_shape=()),
    "GenerativePath.sample": values(sample_shape=()),
    "NoisingPath.log_prob": {"value": lambda: NoisingPath(cld(), X)()},
    "AmortizedPosterior.fit": LEARNED,
    "AmortizedPosterior.sample": values(data=DATA, n=4, seed=0),
    "AmortizedPosterior.log_prob": values(
        theta={"theta": torch.zeros(4, 2)}, data=DATA, samples=1, seed=0
    ),
    "AmortizedPosterior.guide": values(data=DATA, seed=0),
    "AmortizedPosterior.predictive_p_value": values(data=DATA),
    "AmortizedPosterior.local_guide": values(data={"x": torch.zeros(3, 2)}, block=2),
    "AmortizedPosterior.save_pretrained": {"folder": lambda: str(FOLDER / "new")},
    "AmortizedPosterior.from_pretrained": {
        "program": lambda: program,
        "folder": lambda: saved("AmortizedPosterior"),
    },
    "AmortizedLikelihood.fit": LEARNED,
    "AmortizedLikelihood.log_prob": values(data=DATA, theta={"theta": torch.zeros(4, 2)}),
    "AmortizedLikelihood.posterior": values(data=DATA, n=16, particles=80, seed=0),
    "AmortizedLikelihood.outside": values(theta={"theta": torch.zeros(4, 2)}),
    "AmortizedLikelihood.save_pretrained": {"folder": lambda: str(FOLDER / "new")},
    "AmortizedLikelihood.from_pretrained": {
        "program": lambda: program,
        "folder": lambda: saved("AmortizedLikelihood"),
    },
    "LikelihoodMembers.fit": LEARNED | values(members=2),
    "LikelihoodMembers.log_prob": values(data=DATA, theta={"theta": torch.zeros(4, 2)}),
    "LikelihoodMembers.posterior": values(data=DATA, n=16, particles=80, seed=0),
    "LikelihoodMembers.outside": values(theta={"theta": torch.zeros(4, 2)}),
    "LikelihoodMembers.evidence": values(estimate=lambda one: Measured(0.0, 0.1), data=DATA),
    "PosteriorGuide.initial_params": values(chains=2),
    "AutoMDM.fit": values(
        updates=2,
        start_updates=2,
        paths=4,
        particles=32,
        learning_rate=1e-3,
        seconds=0.3,  # also where updates are None
        progress=False,
    ),
    "AutoMDM.check": values(num_samples=200, progress=False),
    "AutoMDM.gap": values(simulated=2, paths=4),
    "AutoMDM.importance": values(num_samples=8),
    "AutoMDM.sample_posterior": values(num_samples=8),
    "AutoMDM.quantiles": values(quantiles=[0.1, 0.9]),
    "Table.fit": {"X": frame},
    "Table.impute": {"X": lambda: gaps(), **values(num=2, proper=True, batch_size=64, seed=0)},
    "Table.transform": {"X": lambda: gaps()},
    "Table.log_prob": {
        "X": lambda: frame()[:4],
        **values(draws=2, error=0.5, batch_size=64, seed=0),
    },
    "Table.sample": values(n=4, given={"a": 0.5}, batch_size=64, seed=0),
    "Table.conditional": {"X": lambda: gaps()[:4], **values(column="b", num=8, batch_size=64)},
    "Table.column": values(name="a"),
    "Table.calibration": {"X": lambda: frame()[:20], **values(draws=4, seed=0)},
    "Table.save_pretrained": {"folder": lambda: str(FOLDER / "new")},
    "Table.from_pretrained": {"folder": lambda: saved("Table")},
    "Conditional.interval": values(level=0.9),
    "Conditional.quantile": values(q=0.5),
    "Conditional.log_prob": values(values=[0.1, 0.2, 0.3, 0.4], draws=2, error=0.5),
    "Coverage.error": values(level=0.9),
    "ImportanceWeights.agrees_with": {"other": lambda: ImportanceWeights(normal(1, 64))},
    "Trainer.fit": values(loss=lambda: torch.zeros((), requires_grad=True), looks=4, unit="nats"),
    "Trainer.step": {"loss": lambda: torch.zeros((), requires_grad=True)},
    "Trainer.look": values(value=1.0),
    "Trainer.is_due": values(every=2, looks=4),
    "MovingAverage.decay_at": values(number=3),
    "Context.draw": values(n=4),
    "GaussianContext.posterior": values(x=X, event_dim=1),
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
