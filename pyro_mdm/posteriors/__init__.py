"""Posteriors of simulators that are Pyro programs, and their calibration."""

from pyro_mdm.posteriors.amortized import AmortizedPosterior, LinearGaussian, LogDensity
from pyro_mdm.posteriors.calibration import Calibration, calibrate, ranks
from pyro_mdm.posteriors.checks import Coverage, calibrate_at, expected_coverage
from pyro_mdm.posteriors.guide import ImportanceWeights, PosteriorGuide, ScoredDraws
from pyro_mdm.posteriors.likelihood import AmortizedLikelihood, PosteriorDraws
from pyro_mdm.posteriors.prior import log_prior
from pyro_mdm.posteriors.reading import (
    DataFactor,
    DataSite,
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
    "Coverage",
    "DataSite",
    "DataFactor",
    "ImportanceWeights",
    "LinearGaussian",
    "LogDensity",
    "ParameterSite",
    "Plate",
    "PosteriorGuide",
    "ScoredDraws",
    "PosteriorDraws",
    "Structure",
    "calibrate",
    "calibrate_at",
    "expected_coverage",
    "log_prior",
    "ranks",
    "read_program",
    "simulate",
]
