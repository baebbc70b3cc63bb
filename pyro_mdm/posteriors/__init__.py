"""Posteriors of simulators that are Pyro programs, and their calibration."""

from pyro_mdm.posteriors.amortized import (
    AmortizedPosterior,
    Calibration,
    LinearGaussian,
    LogDensity,
    calibrate,
    log_prior,
    ranks,
)
from pyro_mdm.posteriors.likelihood import AmortizedLikelihood, PosteriorDraws
from pyro_mdm.posteriors.reading import (
    DataSite,
    Factor,
    ParameterSite,
    Plate,
    Structure,
    read_program,
    simulate,
)

__all__ = [
    "AmortizedLikelihood",
    "AmortizedPosterior",
    "Calibration",
    "DataSite",
    "Factor",
    "LinearGaussian",
    "LogDensity",
    "ParameterSite",
    "Plate",
    "PosteriorDraws",
    "Structure",
    "calibrate",
    "log_prior",
    "ranks",
    "read_program",
    "simulate",
]
