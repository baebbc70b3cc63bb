"""Blocks and clocks for each data dimension, or for each frequency of an image."""

from pyro_mdm.by_dimension.clocks import (
    BlurClocks,
    Clocks,
    LearnedClocks,
    SharedClock,
    TurnClocks,
)
from pyro_mdm.by_dimension.coordinates import Frequencies, Transform
from pyro_mdm.by_dimension.per_dimension import PerDimensionDiffusion

__all__ = [
    "BlurClocks",
    "Clocks",
    "Frequencies",
    "LearnedClocks",
    "PerDimensionDiffusion",
    "SharedClock",
    "Transform",
    "TurnClocks",
]
