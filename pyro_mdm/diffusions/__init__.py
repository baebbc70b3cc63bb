r"""Noising diffusions: two matrices and a clock.

The state ``y = (x, v_1, …, v_{K-1})`` holds the data and K-1 auxiliary variables per data dimension
and follows

    dy = A(s) y ds + G(s) dB_s,    A = -(Q + D) Σ_∞^{-1},    G Gᵀ = 2 D,    Q = -Qᵀ,    D ⪰ 0,

times a common clock β(s). N(0, Σ_∞) is stationary for every such Q and D, and every linear
diffusion with a non-degenerate centred Gaussian stationary distribution has this form (Ma, Chen &
Fox 2015).
Those without one are in :class:`~pyro_mdm.diffusions.LinearSDE`.
Given x, with ``v_0 ~ N(0, Σ_v)`` marginalized, ``y_s ~ N(a(s) x, Σ(s))``: Gaussian, exact, and all
the bound needs to know.

Source of the family: Singhal, Goldstein & Ranganath, "Where to Diffuse, How to Diffuse, and How to
Get Back", ICLR 2023. By name they are in :mod:`pyro_mdm.diffusions.presets`.
"""

from pyro_mdm.diffusions.base import (
    Cap,
    Diffusion,
    Marginal,
    Prior,
    SimulationError,
    Transition,
    UnreachableError,
    UnsupportedDiffusionError,
    apply_vector,
    require,
)
from pyro_mdm.diffusions.clocks import (
    Clock,
    ConstantBeta,
    GeometricBeta,
    LearnedBeta,
    LinearBeta,
)
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.diffusions.linear import GaussianPrior, LinearDiffusion, LinearSDE
from pyro_mdm.diffusions.matrices import apply_matrix
from pyro_mdm.diffusions.presets import ALDA, CLD, HOLD, MALDA, VPSDE, LearnedDiffusion, MomentumVE

__all__ = [
    "Cap",
    "ALDA",
    "CLD",
    "Clock",
    "ConstantBeta",
    "GaussianPrior",
    "GeometricBeta",
    "LearnedBeta",
    "LinearBeta",
    "Prior",
    "SimulationError",
    "apply_matrix",
    "apply_vector",
    "require",
    "Diffusion",
    "Kernels",
    "LearnedDiffusion",
    "LinearDiffusion",
    "LinearSDE",
    "HOLD",
    "MALDA",
    "Marginal",
    "MomentumVE",
    "Transition",
    "UnreachableError",
    "UnsupportedDiffusionError",
    "VPSDE",
]
