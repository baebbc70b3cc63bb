"""Models of data given linear measurements of them, for inverse problems."""

from pyro_mdm.measurements.denoiser import MeasuredDenoiser, condition_on_measurements
from pyro_mdm.measurements.operators import (
    Blur,
    Downsample,
    FunctionOperator,
    LinearOperator,
    Mask,
    Matrix,
)
from pyro_mdm.measurements.twisted import Particles, twisted_smc

__all__ = [
    "Blur",
    "Downsample",
    "FunctionOperator",
    "LinearOperator",
    "Mask",
    "Matrix",
    "MeasuredDenoiser",
    "Particles",
    "condition_on_measurements",
    "twisted_smc",
]
