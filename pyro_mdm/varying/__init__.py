"""Linear diffusions whose matrices vary in time: interpolants of one variable, and Q(s) and D(s),
which need not commute at different times."""

from pyro_mdm.varying.interpolant_clocks import InterpolantClock
from pyro_mdm.varying.interpolants import VE, Cosine, Interpolant, RectifiedFlow, SubVP
from pyro_mdm.varying.time_varying import (
    TimeVaryingDiffusion,
    TimeVaryingLearnedDiffusion,
    TimeVaryingSDE,
)

__all__ = [
    "VE",
    "Cosine",
    "Interpolant",
    "InterpolantClock",
    "RectifiedFlow",
    "SubVP",
    "TimeVaryingDiffusion",
    "TimeVaryingLearnedDiffusion",
    "TimeVaryingSDE",
]
