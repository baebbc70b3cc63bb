"""Models of data given measurements of them, for inverse problems."""

from pyro_mdm.measurements.denoiser import MeasuredDenoiser, condition_on_measurements
from pyro_mdm.measurements.laws import Clipped, Quantized
from pyro_mdm.measurements.looseness import bound_gap, twisted_smc_gap
from pyro_mdm.measurements.measurement import Measurement
from pyro_mdm.measurements.operators import (
    Blur,
    Downsample,
    FunctionOperator,
    LinearOperator,
    Mask,
    Matrix,
    NonlinearOperator,
)
from pyro_mdm.measurements.twisted import Particles, twisted_smc

__all__ = [
    "Blur",
    "Clipped",
    "Downsample",
    "FunctionOperator",
    "LinearOperator",
    "Mask",
    "Matrix",
    "MeasuredDenoiser",
    "Measurement",
    "NonlinearOperator",
    "Particles",
    "Quantized",
    "bound_gap",
    "condition_on_measurements",
    "twisted_smc",
    "twisted_smc_gap",
]
