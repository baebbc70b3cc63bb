"""The names of :mod:`pyro_mdm.posteriors` at their former address."""

from pyro_mdm import posteriors
from pyro_mdm.posteriors import *  # noqa: F403

__all__ = posteriors.__all__
