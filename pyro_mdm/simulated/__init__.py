"""Diffusions without a closed form, whose paths and bounds are simulated.

Importing this package registers them with the core: paths, bounds, fits and comparisons.
"""

from pyro_mdm.simulated.evaluation import StepSizeBias, step_size_bias
from pyro_mdm.simulated.hamiltonian import HamiltonianDiffusion
from pyro_mdm.simulated.learned_drift import LearnedDrift, Simulated
from pyro_mdm.simulated.nonlinear import NonlinearDiffusion
from pyro_mdm.simulated.paths import SimulatedPath, arrival, simulated_kl
from pyro_mdm.simulated.priors import QuadraturePrior
from pyro_mdm.simulated.reference import TorchSDE
from pyro_mdm.simulated.residual import ResidualScore
from pyro_mdm.simulated.simulation import Simulation

__all__ = [
    "HamiltonianDiffusion",
    "LearnedDrift",
    "NonlinearDiffusion",
    "QuadraturePrior",
    "ResidualScore",
    "Simulated",
    "SimulatedPath",
    "Simulation",
    "StepSizeBias",
    "TorchSDE",
    "arrival",
    "simulated_kl",
    "step_size_bias",
]
