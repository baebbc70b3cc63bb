"""The public names of the library, which are those of :mod:`pyro_mdm` too."""

from pyro_mdm.automatic.guide import AutoMDM
from pyro_mdm.by_dimension.per_dimension import PerDimensionDiffusion
from pyro_mdm.conditioning import condition
from pyro_mdm.conditioning.imputation import impute
from pyro_mdm.diffusions.base import Diffusion
from pyro_mdm.diffusions.linear import LinearDiffusion, LinearSDE
from pyro_mdm.diffusions.presets import (
    ALDA,
    CLD,
    HOLD,
    MALDA,
    VPSDE,
    LearnedDiffusion,
    MomentumVE,
)
from pyro_mdm.distribution import MDM
from pyro_mdm.elbo import MDM_ELBO, ELBOTerms, elbo_terms
from pyro_mdm.evaluation.bounds import Bound, bound
from pyro_mdm.guide import DiffusionGuide
from pyro_mdm.levels.denoiser import DiscreteDenoiser
from pyro_mdm.likelihoods.base import bits_per_dim
from pyro_mdm.model import DiffusionModel
from pyro_mdm.paths.base import GenerativePath, NoisingPath
from pyro_mdm.paths.chain import GenerativeChain
from pyro_mdm.scores.denoiser import Denoiser
from pyro_mdm.scores.raw import NoisePrediction, RawScore
from pyro_mdm.seeing.data_driven import DataDrivenDiffusion
from pyro_mdm.seeing.encoded import EncodedDiffusion
from pyro_mdm.seeing.state import StateDenoiser
from pyro_mdm.simulated.hamiltonian import HamiltonianDiffusion
from pyro_mdm.simulated.learned_drift import LearnedDrift, Simulated
from pyro_mdm.simulated.nonlinear import NonlinearDiffusion
from pyro_mdm.simulated.paths import SimulatedPath
from pyro_mdm.simulated.residual import ResidualScore
from pyro_mdm.simulated.simulation import Simulation
from pyro_mdm.tables.denoiser import MixedDenoiser
from pyro_mdm.tables.one_hot import OneHot
from pyro_mdm.varying.interpolants import VE, Cosine, Interpolant, RectifiedFlow, SubVP
from pyro_mdm.varying.time_varying import (
    TimeVaryingDiffusion,
    TimeVaryingLearnedDiffusion,
    TimeVaryingSDE,
)

__all__ = [
    "ALDA",
    "CLD",
    "HOLD",
    "MALDA",
    "MDM",
    "MDM_ELBO",
    "VE",
    "VPSDE",
    "AutoMDM",
    "Bound",
    "Cosine",
    "DataDrivenDiffusion",
    "Denoiser",
    "Diffusion",
    "DiffusionGuide",
    "DiffusionModel",
    "DiscreteDenoiser",
    "ELBOTerms",
    "EncodedDiffusion",
    "GenerativeChain",
    "GenerativePath",
    "HamiltonianDiffusion",
    "Interpolant",
    "LearnedDiffusion",
    "LearnedDrift",
    "LinearDiffusion",
    "LinearSDE",
    "MixedDenoiser",
    "MomentumVE",
    "NoisePrediction",
    "NoisingPath",
    "NonlinearDiffusion",
    "OneHot",
    "PerDimensionDiffusion",
    "RawScore",
    "RectifiedFlow",
    "ResidualScore",
    "Simulated",
    "SimulatedPath",
    "Simulation",
    "StateDenoiser",
    "SubVP",
    "TimeVaryingDiffusion",
    "TimeVaryingLearnedDiffusion",
    "TimeVaryingSDE",
    "bits_per_dim",
    "bound",
    "condition",
    "elbo_terms",
    "impute",
]
