"""Tables: columns of several kinds, of which each has levels or is continuous."""

from pyro_mdm.tables.denoiser import MixedDenoiser
from pyro_mdm.tables.likelihood import MixedLikelihood

__all__ = ["MixedDenoiser", "MixedLikelihood"]
