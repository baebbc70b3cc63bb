"""Linear diffusions whose Q and D vary in time and need not commute at different times."""

from pyro_mdm.varying.time_varying import (
    TimeVaryingDiffusion,
    TimeVaryingLearnedDiffusion,
    TimeVaryingSDE,
)

__all__ = ["TimeVaryingDiffusion", "TimeVaryingLearnedDiffusion", "TimeVaryingSDE"]
