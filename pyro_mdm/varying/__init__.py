"""Linear diffusions whose Q and D vary in time, without commuting."""

from pyro_mdm.varying.time_varying import TimeVaryingDiffusion, TimeVaryingLearnedDiffusion

__all__ = ["TimeVaryingDiffusion", "TimeVaryingLearnedDiffusion"]
