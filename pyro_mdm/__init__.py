"""Multivariate diffusion models as Pyro programs."""

from pyro_mdm.diffusions import (
    ALDA,
    CLD,
    MALDA,
    VPSDE,
    Diffusion,
    LearnedDiffusion,
    LinearDiffusion,
)

__all__ = [
    "ALDA",
    "CLD",
    "MALDA",
    "VPSDE",
    "Diffusion",
    "LearnedDiffusion",
    "LinearDiffusion",
]
