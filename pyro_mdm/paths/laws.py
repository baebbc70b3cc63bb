"""The distribution of the noising path for every kind of diffusion."""

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
    """The distribution q(path | x): in closed form where there is one, else simulated.

    Dispatched on the kind of diffusion. Register a function for a kind of your own that is neither
    :class:`~pyro_mdm.diffusions.Kernels` nor simulated.

    Args:
        diffusion: the noising diffusion, on whose kind the function is dispatched.
        x: data, (batch, *event_shape).
        times: times at which the path is seen, (N,); None: ε alone.
        event_dim: number of dimensions of a datum; by default all of x's but the first.
        simulation: settings for simulating a nonlinear diffusion; the diffusion's by default.
    """
    raise NotImplementedError(
        f"no distribution of noising paths is registered for {type(diffusion).__name__}; see "
        "noising_law"
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
