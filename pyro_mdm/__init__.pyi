"""The public names of the library, and the modules that they are in."""

from .automatic.guide import AutoMDM as AutoMDM
from .by_dimension.per_dimension import PerDimensionDiffusion as PerDimensionDiffusion
from .conditioning import condition as condition
from .conditioning.imputation import impute as impute
from .diffusions.base import Diffusion as Diffusion
from .diffusions.linear import (
    LinearDiffusion as LinearDiffusion,
    LinearSDE as LinearSDE,
)
from .diffusions.presets import (
    ALDA as ALDA,
    CLD as CLD,
    HOLD as HOLD,
    MALDA as MALDA,
    VPSDE as VPSDE,
    LearnedDiffusion as LearnedDiffusion,
    MomentumVE as MomentumVE,
)
from .distribution import MDM as MDM
from .elbo import (
    MDM_ELBO as MDM_ELBO,
    ELBOTerms as ELBOTerms,
    elbo_terms as elbo_terms,
)
from .evaluation.bounds import (
    Bound as Bound,
    bound as bound,
)
from .guide import DiffusionGuide as DiffusionGuide
from .levels.denoiser import DiscreteDenoiser as DiscreteDenoiser
from .likelihoods.base import bits_per_dim as bits_per_dim
from .model import DiffusionModel as DiffusionModel
from .paths.base import (
    GenerativePath as GenerativePath,
    NoisingPath as NoisingPath,
)
from .paths.chain import GenerativeChain as GenerativeChain
from .scores.denoiser import Denoiser as Denoiser
from .scores.raw import (
    NoisePrediction as NoisePrediction,
    RawScore as RawScore,
)
from .seeing.data_driven import DataDrivenDiffusion as DataDrivenDiffusion
from .seeing.encoded import EncodedDiffusion as EncodedDiffusion
from .seeing.state import StateDenoiser as StateDenoiser
from .simulated.hamiltonian import HamiltonianDiffusion as HamiltonianDiffusion
from .simulated.learned_drift import (
    LearnedDrift as LearnedDrift,
    Simulated as Simulated,
)
from .simulated.nonlinear import NonlinearDiffusion as NonlinearDiffusion
from .simulated.paths import SimulatedPath as SimulatedPath
from .simulated.residual import ResidualScore as ResidualScore
from .simulated.simulation import Simulation as Simulation
from .tables.denoiser import MixedDenoiser as MixedDenoiser
from .tables.one_hot import OneHot as OneHot
from .varying.interpolants import (
    VE as VE,
    Cosine as Cosine,
    Interpolant as Interpolant,
    RectifiedFlow as RectifiedFlow,
    SubVP as SubVP,
)
from .varying.time_varying import (
    TimeVaryingDiffusion as TimeVaryingDiffusion,
    TimeVaryingLearnedDiffusion as TimeVaryingLearnedDiffusion,
    TimeVaryingSDE as TimeVaryingSDE,
)

__version__: str
