"""Multivariate diffusion models as Pyro programs.

The noising diffusion with its auxiliary variables is a guide, the reverse SDE is a model, and SVI
maximizes the evidence lower bound over both at once.
"""

from pyro_mdm.bounds import Bound, bound
from pyro_mdm.diffusions import Diffusion, LinearDiffusion
from pyro_mdm.elbo import MDM_ELBO, ELBOTerms, elbo_terms
from pyro_mdm.guide import DiffusionGuide
from pyro_mdm.hamiltonian import HamiltonianDiffusion
from pyro_mdm.laws import GenerativeChain, GenerativePath, NoisingPath
from pyro_mdm.likelihoods import bits_per_dim
from pyro_mdm.model import DiffusionModel
from pyro_mdm.nonlinear import LearnedDrift, NonlinearDiffusion, Simulated
from pyro_mdm.presets import ALDA, CLD, MALDA, VPSDE, LearnedDiffusion
from pyro_mdm.residual import ResidualScore
from pyro_mdm.scores import Denoiser, DiscreteDenoiser, NoisePrediction, RawScore
from pyro_mdm.simulated import SimulatedPath
from pyro_mdm.simulation import Simulation

__all__ = [
    "ALDA",
    "CLD",
    "MALDA",
    "MDM_ELBO",
    "VPSDE",
    "Bound",
    "Denoiser",
    "Diffusion",
    "DiffusionGuide",
    "DiffusionModel",
    "DiscreteDenoiser",
    "ELBOTerms",
    "GenerativeChain",
    "GenerativePath",
    "HamiltonianDiffusion",
    "LearnedDiffusion",
    "LearnedDrift",
    "LinearDiffusion",
    "NoisePrediction",
    "NoisingPath",
    "NonlinearDiffusion",
    "RawScore",
    "ResidualScore",
    "Simulated",
    "SimulatedPath",
    "Simulation",
    "bits_per_dim",
    "bound",
    "elbo_terms",
]
