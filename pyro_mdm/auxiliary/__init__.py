"""The use that is made of auxiliary variables, by trained scores and along paths."""

from pyro_mdm.auxiliary.use import (
    AuxiliaryInformation,
    AuxiliaryUse,
    GaussianPosterior,
    auxiliary_information,
    auxiliary_use,
)

__all__ = [
    "AuxiliaryInformation",
    "AuxiliaryUse",
    "GaussianPosterior",
    "auxiliary_information",
    "auxiliary_use",
]
