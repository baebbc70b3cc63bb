"""Posteriors of simulators that are Pyro programs, and their calibration."""

from pyro_mdm.posteriors.amortized import (
    AmortizedPosterior,
    Calibration,
    LinearGaussian,
    LogDensity,
    calibrate,
    log_prior,
    ranks,
    simulate,
)

__all__ = [
    "AmortizedPosterior",
    "Calibration",
    "LinearGaussian",
    "LogDensity",
    "calibrate",
    "log_prior",
    "ranks",
    "simulate",
]
