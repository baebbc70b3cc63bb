"""The kind of a diffusion, as models and programs need it: asked here, and nowhere else.

A new kind is registered with :func:`kind_of`, and whatever is made, measured and drawn follows.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from pyro_mdm import Diffusion
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.diffusions.transforms import Transform
from pyro_mdm.seeing.context import Context


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Properties of a diffusion that models and programs ask for.

    Attributes:
        simulated: paths are simulated, since only the law at the start time has a closed form.
        score: name of the score that is used if none is asked for; None: the data set's first.
        sampler: name of the sampler of runs that named none.
        by_dimension: every data dimension has a log SNR of its own, which networks are told.
        latent: the latent context of a datum, which networks are told too, if there is one.
        coordinates: those of the data that states hold, if they do not hold the data.
        learned_ends: λ(ε) or λ(T) is learned.
        path_gap: paths tell more than their ends, which no network wins back.
        unserved: methods of likelihood that do not serve it, and what each of them needs.
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
    latent, driven = diffusion.context, diffusion.drifts_by_data
    led = driven or latent is not None
    unserved = {"flow": "a drift that does not see the data"} if led else {}
    if led or diffusion.starts_at_data:
        unserved["importance"] = "a diffusion that does not see the data"
    return Kind(
        simulated=False,
        score=None,
        sampler="splitting",
        by_dimension=diffusion.maps,
        latent=latent,
        coordinates=diffusion.transform,
        learned_ends=diffusion.reference.learns_ends,
        path_gap=driven,
        unserved=unserved,
    )
