"""Data with levels: discrete data, such as images of 256 levels, and their dequantization."""

from pyro_mdm.levels.denoiser import DiscreteDenoiser
from pyro_mdm.levels.dequantization import Dequantized, LogitDequantization
from pyro_mdm.levels.likelihoods import (
    DiscretizedGaussian,
    LevelCategorical,
    LevelDistribution,
    LevelPosterior,
    NetworkPosterior,
)

__all__ = [
    "Dequantized",
    "DiscreteDenoiser",
    "DiscretizedGaussian",
    "LevelCategorical",
    "LevelDistribution",
    "LevelPosterior",
    "LogitDequantization",
    "NetworkPosterior",
]
