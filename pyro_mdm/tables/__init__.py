"""Tables: columns of several kinds, and denoisers and decoders of them."""

from pyro_mdm.tables.columns import (
    Boolean,
    Categorical,
    Column,
    Continuous,
    Dates,
    Mixed,
    Ordinal,
    Rounded,
    fit_columns,
)
from pyro_mdm.tables.denoiser import MixedDenoiser
from pyro_mdm.tables.likelihood import MixedLikelihood
from pyro_mdm.tables.network import LevelLogits, MapMLP
from pyro_mdm.tables.one_hot import OneHot, OneHotDenoiser, OneHotLikelihood

__all__ = [
    "Boolean",
    "Categorical",
    "Column",
    "Continuous",
    "Dates",
    "LevelLogits",
    "MapMLP",
    "Mixed",
    "MixedDenoiser",
    "MixedLikelihood",
    "OneHot",
    "OneHotDenoiser",
    "OneHotLikelihood",
    "Ordinal",
    "Rounded",
    "fit_columns",
]
