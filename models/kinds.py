"""The properties of a kind of diffusion that models and programs depend on.

They are defined here alone. A new kind is registered with :func:`kind_of`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from pyro_mdm import Diffusion
from pyro_mdm.by_dimension.coordinates import Transform
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.diffusions.linear import linear_of
from pyro_mdm.seeing.context import Context


@dataclass(frozen=True, kw_only=True)
class Kind:
    """The properties of a diffusion that models and programs depend on.

    Attributes:
        simulated: whether paths are simulated; only the start time has a distribution in closed
            form.
        score: the name of the default score; None: the first of the data set.
        sampler: the name of the default sampler of runs.
        by_dimension: whether every data dimension has its own log SNR, which networks are given.
        latent: the latent context of a datum, which networks are given; None: no latent context.
        coordinates: the coordinates of the data in states; None: states hold the data.
        learned_ends: whether λ(ε) or λ(T) is learned.
        path_gap: whether paths hold more information on the data than their ends do, which costs
            every model.
        unserved: likelihood methods that do not serve it, each with its requirement.
    """

    simulated: bool
    score: str | None
    sampler: str
    by_dimension: bool = False
    latent: Context | None = None
    coordinates: Transform | None = None
    learned_ends: bool = False
    path_gap: bool = False
    unserved: Mapping[str, str] = field(default_factory=dict)


@functools.singledispatch
def kind_of(diffusion: Diffusion) -> Kind:
    """The kind of a diffusion; one without a closed form if its class is not registered."""
    needed = {"importance": "a diffusion with a closed form"}
    return Kind(simulated=True, score="residual", sampler="euler", unserved=needed)


@kind_of.register(Kernels)
def _closed(diffusion: Kernels) -> Kind:
    latent, paths = diffusion.context, diffusion.paths
    driven = paths.drifts_by_data
    led = driven or latent is not None
    unserved = {"flow": "a drift that does not see the data"} if led else {}
    if led or paths.starts_at_data:
        unserved["importance"] = "a diffusion that does not see the data"
    return Kind(
        simulated=False,
        score=None,
        sampler="splitting",
        by_dimension=diffusion.maps,
        latent=latent,
        coordinates=diffusion.transform,
        learned_ends=any(linear_of(diffusion).given_ends.reach),
        path_gap=driven,
        unserved=unserved,
    )
