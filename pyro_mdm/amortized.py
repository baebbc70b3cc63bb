"""The names of :mod:`pyro_mdm.posteriors`, where they were before."""

from pyro_mdm.posteriors import (
    AmortizedPosterior,
    Calibration,
    LinearGaussian,
    LogDensity,
    calibrate,
    log_prior,
    simulate,
)

__all__ = [
    "AmortizedPosterior",
    "Calibration",
    "LinearGaussian",
    "LogDensity",
    "calibrate",
    "log_prior",
    "simulate",
]
