"""Posteriors of simulators that are Pyro programs, and their calibration."""

from pyro_mdm.evaluation.weights import ImportanceWeights
from pyro_mdm.posteriors.amortized import AmortizedPosterior, LogDensity
from pyro_mdm.posteriors.calibration import (
    Calibration,
    Coverage,
    FactorCalibration,
    calibrate,
    calibrate_at,
    calibrate_factor,
    expected_coverage,
    ranks,
)
from pyro_mdm.posteriors.gaussian import LinearGaussian
from pyro_mdm.posteriors.guide import LocalGuide, PosteriorGuide, ScoredDraws
from pyro_mdm.posteriors.joint import AmortizedJoint
from pyro_mdm.posteriors.likelihood import AmortizedLikelihood, PosteriorDraws
from pyro_mdm.posteriors.members import LearnedEvidence, LikelihoodMembers, MemberDraws
from pyro_mdm.posteriors.prior import log_prior
from pyro_mdm.posteriors.reading import (
    DataFactor,
    DataSite,
    ParameterSite,
    Plate,
    Structure,
    read_program,
)
from pyro_mdm.posteriors.simulation import simulate
from pyro_mdm.posteriors.site import DataDistribution, LearnedLikelihood
from pyro_mdm.posteriors.stored import read_draws
from pyro_mdm.posteriors.training import LearningOptions

__all__ = [
    "AmortizedJoint",
    "AmortizedLikelihood",
    "AmortizedPosterior",
    "Calibration",
    "Coverage",
    "DataDistribution",
    "DataFactor",
    "DataSite",
    "FactorCalibration",
    "ImportanceWeights",
    "LearnedEvidence",
    "LearnedLikelihood",
    "LearningOptions",
    "LikelihoodMembers",
    "LinearGaussian",
    "LocalGuide",
    "LogDensity",
    "MemberDraws",
    "ParameterSite",
    "Plate",
    "PosteriorGuide",
    "ScoredDraws",
    "PosteriorDraws",
    "Structure",
    "calibrate",
    "calibrate_at",
    "calibrate_factor",
    "expected_coverage",
    "log_prior",
    "ranks",
    "read_draws",
    "read_program",
    "simulate",
]
