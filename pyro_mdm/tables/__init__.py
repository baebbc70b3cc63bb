"""Denoisers and decoders of tables, whose columns are continuous or have levels."""

from pyro_mdm.tables.denoiser import MixedDenoiser
from pyro_mdm.tables.likelihood import MixedLikelihood

__all__ = ["MixedDenoiser", "MixedLikelihood"]
