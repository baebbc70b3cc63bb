"""What the kind of a diffusion means for models and programs: asked here, and nowhere else.

A new kind is registered with :func:`kind_of`, and whatever is made, measured and drawn follows.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from pyro_mdm import Diffusion, LinearDiffusion
from pyro_mdm.diffusions.context import Context
from pyro_mdm.diffusions.per_dimension import PerDimensionDiffusion
from pyro_mdm.diffusions.transforms import Transform
from pyro_mdm.diffusions.wrapped import WrappedDiffusion

__all__ = ["Kind", "kind_of"]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What models and programs make of a diffusion.

    Attributes:
        simulated: paths are simulated, since only the law at the start time has a closed form.
        score: name of the score that is used if none is asked for; None: the data set's first.
        sampler: name of the sampler of runs that named none.
        maps: every data dimension has a log SNR of its own, which networks are told.
        context: the latent context of a datum, which networks are told too, if there is one.
        transform: coordinates of the data that states hold, if they do not hold the data.
        learns_ends: λ(ε) or λ(T) is learned.
        drifts_by_data: paths tell more than their ends, which no network wins back.
        unserved: methods of likelihood that do not serve it, and what each of them needs.
    """

    simulated: bool
    score: str | None
    sampler: str
    maps: bool = False
    context: Context | None = None
    transform: Transform | None = None
    learns_ends: bool = False
    drifts_by_data: bool = False
    unserved: Mapping[str, str] = field(default_factory=dict)


@functools.singledispatch
def kind_of(diffusion: Diffusion) -> Kind:
    """The kind of a diffusion; one without a closed form if its class is not registered."""
    needed = {"importance": "a diffusion with a closed form"}
    return Kind(simulated=True, score="residual", sampler="euler", unserved=needed)


@kind_of.register(LinearDiffusion)
@kind_of.register(PerDimensionDiffusion)
@kind_of.register(WrappedDiffusion)
def _closed(diffusion: Diffusion) -> Kind:
    context, driven = diffusion.context, diffusion.drifts_by_data
    led = driven or context is not None
    unserved = {"flow": "a drift that does not see the data"} if led else {}
    if led or diffusion.starts_at_data:
        unserved["importance"] = "a diffusion that does not see the data"
    return Kind(
        simulated=False,
        score=None,
        sampler="splitting",
        maps=diffusion.maps,
        context=context,
        transform=diffusion.transform,
        learns_ends=diffusion.reference.learns_ends,
        drifts_by_data=driven,
        unserved=unserved,
    )
