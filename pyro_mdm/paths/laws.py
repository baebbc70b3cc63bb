"""The law of the noising path for every kind of diffusion."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyro_mdm.diffusions.base import Diffusion
from pyro_mdm.diffusions.simulation import Simulation
from pyro_mdm.paths.base import NoisingLaw, driven_error
from pyro_mdm.paths.noising import NoisingPath
from pyro_mdm.paths.simulated import SimulatedPath

__all__ = ["noising_law"]


def noising_law(
    diffusion: Diffusion,
    x: Tensor,
    times: Tensor | None = None,
    *,
    event_dim: int | None = None,
    simulation: Simulation | None = None,
) -> NoisingLaw:
    """q(path | x): in closed form where there is one, else simulated.

    Args:
        x: data (batch, *event_shape).
        times: (N,) at which it is seen; None for continuous time.
        event_dim, simulation: as of :class:`~pyro_mdm.DiffusionGuide`.
    """
    if times is not None and diffusion.drifts_by_data:
        raise driven_error(diffusion, "the law of a path at several times")
    if times is not None and diffusion.origin.context is not None:
        raise ValueError(
            f"times are given, but the clocks of {type(diffusion).__name__} differ between data, "
            "and the law of a path at several times is made of one grid for all; leave out times"
        )
    if diffusion.closed_form:
        known: Any = diffusion
        return NoisingPath(known, x, times, event_dim=event_dim)
    nonlinear: Any = diffusion
    return SimulatedPath(nonlinear, x, times, event_dim=event_dim, simulation=simulation)
