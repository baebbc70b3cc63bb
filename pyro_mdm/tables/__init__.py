"""Denoisers and decoders of tables, whose columns are continuous or have levels."""

from pyro_mdm.tables.denoiser import MixedDenoiser
from pyro_mdm.tables.likelihood import MixedLikelihood
from pyro_mdm.tables.network import LevelLogits, MapMLP
from pyro_mdm.tables.one_hot import OneHot, OneHotDenoiser, OneHotLikelihood

__all__ = [
    "LevelLogits",
    "MapMLP",
    "MixedDenoiser",
    "MixedLikelihood",
    "OneHot",
    "OneHotDenoiser",
    "OneHotLikelihood",
]
