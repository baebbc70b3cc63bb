"""The law of the noising path for every kind of diffusion."""

from __future__ import annotations

from functools import singledispatch

from torch import Tensor

from pyro_mdm.diffusions.base import Cap, Diffusion, require
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.diffusions.simulation import Simulation
from pyro_mdm.paths.base import NoisingLaw
from pyro_mdm.paths.noising import NoisingPath

__all__ = ["noising_law"]


@singledispatch
def noising_law(
    diffusion: Diffusion,
    x: Tensor,
    times: Tensor | None = None,
    *,
    event_dim: int | None = None,
    simulation: Simulation | None = None,
) -> NoisingLaw:
    """The law q(path | x): in closed form where there is one, else simulated.

    Dispatched on the kind of diffusion. Register a function for a kind of your own that is neither
    :class:`~pyro_mdm.diffusions.Kernels` nor simulated.

    Args:
        x: data (batch, *event_shape).
        times: times at which the path is seen, (N,); None for continuous time.
        event_dim, simulation: arguments of :class:`~pyro_mdm.DiffusionGuide`.
    """
    raise NotImplementedError(
        f"no law of noising paths is registered for {type(diffusion).__name__}; see noising_law"
    )


@noising_law.register(Kernels)
def _closed_form(
    diffusion: Kernels,
    x: Tensor,
    times: Tensor | None = None,
    *,
    event_dim: int | None = None,
    simulation: Simulation | None = None,
) -> NoisingLaw:
    if times is not None:
        needed = (Cap.OWN_DRIFT, Cap.NO_CONTEXT)
        require(diffusion, *needed, who="a path seen at several times", fix="leave out times")
    return NoisingPath(diffusion, x, times, event_dim=event_dim)
