"""The sites of a program's run, with the types of what they hold."""

from __future__ import annotations

from typing import TypedDict, cast

from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample
from torch import Tensor

__all__ = ["Site", "is_computed", "is_subsample", "sample_sites"]


class Infer(TypedDict, total=False):
    """What a site says of inference."""

    _deterministic: bool
    _dim_to_symbol: dict[int, str]
    was_observed: bool


class Site(TypedDict):
    """A site of a trace: the entries of Pyro's ``Message`` that are asked for."""

    type: str
    name: str
    fn: TorchDistribution
    value: Tensor
    is_observed: bool
    infer: Infer
    cond_indep_stack: tuple[CondIndepStackFrame, ...]
    scale: float | Tensor
    mask: bool | Tensor | None
    log_prob: Tensor
    unscaled_log_prob: Tensor


def sample_sites(trace: poutine.Trace) -> dict[str, Site]:
    """The sites that a run has drawn or observed, by name."""
    nodes = trace.nodes.items()
    return {name: cast(Site, site) for name, site in nodes if site["type"] == "sample"}


def is_computed(site: Site) -> bool:
    """Whether a site of a trace is one of ``pyro.deterministic``."""
    return bool(site["infer"].get("_deterministic", False))


def is_subsample(site: Site) -> bool:
    """Whether a site is the rows of a plate."""
    return bool(site_is_subsample(cast(Message, site)))
