"""Guides that see the data: encoded starts v_0, paths driven by the data, clocks by context."""

from pyro_mdm.seeing.context import (
    Context,
    ContextClocks,
    ContextDiffusion,
    DiscreteContext,
    GaussianContext,
)
from pyro_mdm.seeing.data_driven import DataDrivenDiffusion
from pyro_mdm.seeing.encoded import EncodedDiffusion
from pyro_mdm.seeing.path_information import PathInformation, path_information_gap
from pyro_mdm.seeing.state import StateDenoiser

__all__ = [
    "Context",
    "ContextClocks",
    "ContextDiffusion",
    "DataDrivenDiffusion",
    "DiscreteContext",
    "EncodedDiffusion",
    "GaussianContext",
    "PathInformation",
    "StateDenoiser",
    "path_information_gap",
]
