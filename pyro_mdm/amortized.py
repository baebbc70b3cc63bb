"""The names of :mod:`pyro_mdm.posteriors`, where they were before."""

from pyro_mdm.posteriors import *  # noqa: F403
from pyro_mdm.posteriors import __all__ as __all__
