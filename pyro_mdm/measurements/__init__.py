"""Models of data given linear measurements of them: inverse problems."""

from pyro_mdm.measurements.denoiser import MeasuredDenoiser, condition_on_measurements
from pyro_mdm.measurements.operators import (
    Blur,
    Downsample,
    FunctionOperator,
    LinearOperator,
    Mask,
    Matrix,
)

__all__ = [
    "Blur",
    "Downsample",
    "FunctionOperator",
    "LinearOperator",
    "Mask",
    "Matrix",
    "MeasuredDenoiser",
    "condition_on_measurements",
]
