"""The sites of two programs: their traces, and whether a guide goes with a model."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_model_guide_match
from torch import Tensor

from pyro_mdm.guide import DiffusionGuide
from pyro_mdm.model import DiffusionModel
from pyro_mdm.paths.base import NoisingLaw
from pyro_mdm.paths.divergence import different_diffusions
from pyro_mdm.support.checks import describe

__all__ = [
    "Program",
    "Site",
    "check_alike",
    "check_no_decoder",
    "check_programs",
    "check_sites",
    "drawn_later",
    "run_programs",
    "samples",
    "unlike",
    "warn_of_order",
]

Program = Callable[..., Any]
Site = Mapping[str, Any]
"""A site of a trace, with ``fn``, ``value``, ``scale``, … of Pyro's ``Message``."""


def run_programs(
    model: Program,
    guide: Program,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    max_plate_nesting: float = math.inf,
) -> tuple[Trace, Trace]:
    """The traces of the model, replayed against the guide, and of the guide."""
    check_programs(model, guide)
    messenger = poutine.unwrap(guide)
    if isinstance(messenger, GuideMessenger):
        guide(*args, **kwargs)
        model_trace, guide_trace = messenger.get_traces()
    else:
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        replayed = poutine.replay(model, trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
    model_trace, guide_trace = map(prune_subsample_sites, (model_trace, guide_trace))
    check_sites(model_trace, guide_trace)
    if is_validation_enabled():
        check_model_guide_match(model_trace, guide_trace, max_plate_nesting)
    return model_trace, guide_trace


def check_programs(model: object, guide: object) -> None:
    """Raises TypeError for two programs that are swapped, and ValueError for those over different
    diffusions, where both are of this library.

    Args:
        model: generative program.
        guide: noising program.
    """
    if isinstance(model, DiffusionGuide) or isinstance(guide, DiffusionModel):
        raise TypeError(
            f"model is {describe(model)} and guide {describe(guide)}: they are swapped; the model "
            "comes first"
        )
    for name, program in (("model", model), ("guide", guide)):
        if isinstance(program, type) or not callable(program):
            raise TypeError(
                f"{name} is {describe(program)}, expected a program: DiffusionModel(diffusion, "
                "score) and DiffusionGuide(diffusion)"
            )
    if not isinstance(model, DiffusionModel) or not isinstance(guide, DiffusionGuide):
        return
    if model.diffusion is not guide.diffusion:
        raise ValueError(different_diffusions(guide.diffusion, model.diffusion))


def check_sites(model_trace: Trace, guide_trace: Trace) -> None:
    """Raises ValueError for programs whose sites do not match."""
    for name, site in samples(model_trace):
        if site["is_observed"] and name in guide_trace.nodes:
            raise ValueError(
                f"site {name!r} is observed in the model and sampled in the guide; leave it out "
                "of the guide, or do not observe it"
            )
        if not site["is_observed"] and name not in guide_trace.nodes:
            raise ValueError(
                f"site {name!r} is latent in the model and absent from the guide; observe it "
                "(pass x) or sample it in the guide"
            )
    for name, site in samples(guide_trace):
        if name not in model_trace.nodes and not site["infer"].get("is_auxiliary"):
            raise ValueError(
                f"site {name!r} is in the guide and absent from the model; sample it there, or "
                "mark it with infer={'is_auxiliary': True}"
            )
        if site["infer"].get("enumerate"):
            raise ValueError(
                f"site {name!r} asks for enumeration, and MDM_ELBO draws every site; leave out "
                "infer={'enumerate': ...} for score-function gradients, or sum it out in the model"
            )


def _same(a: object, b: object) -> bool:
    if a is b or a is None or b is None:
        return a is b
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        return bool(a == b)
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    return bool(a.shape == b.shape and (a == b).all())


def unlike(q: Site, p: Site) -> str | None:
    """Which of scale and mask a site has otherwise in the guide, q, than in the model, p."""
    return next((what for what in ("scale", "mask") if not _same(q[what], p[what])), None)


def check_alike(q: Site, p: Site) -> None:
    """Raises ValueError for a path with another scale or mask in the guide than in the model."""
    if (what := unlike(q, p)) is not None:
        raise ValueError(
            f"site {p['name']!r} has the {what} {_text(p[what])} in the model and "
            f"{_text(q[what])} in the guide; a path's divergence is of both together, so "
            "give both programs the same plates, scales and masks"
        )


def _text(value: object) -> str:
    return f"of shape {tuple(shape)}" if (shape := getattr(value, "shape", ())) else f"{value}"


def drawn_later(name: str, model_trace: Trace, guide_trace: Trace) -> list[str]:
    """Latent sites that come before this one in the model and after it in the guide."""
    order = [n for n, _ in samples(guide_trace)]
    later = set(order[order.index(name) :])
    before = itertools.takewhile(lambda n: n != name, (n for n, _ in samples(model_trace)))
    return [n for n in before if n in later]


def warn_of_order(name: str, model_trace: Trace, guide_trace: Trace) -> None:
    """Warn where the guide draws a path before sites that the model draws first."""
    if later := drawn_later(name, model_trace, guide_trace):
        warnings.warn(
            f"the guide draws the path {name!r} before {later}, the model after it. Its divergence "
            "is wrong if the guide draws them given the path and the model's distribution of the "
            "path depends on them; draw them in the order of the model to be sure",
            stacklevel=2,
        )


def check_no_decoder(model_trace: Trace, guide_trace: Trace) -> None:
    """Raises ValueError where more is observed than the ends of paths, which have no decoder."""
    observed = [n for n, site in samples(model_trace) if site["is_observed"]]
    paths = [n for n, site in samples(guide_trace) if isinstance(site["fn"], NoisingLaw)]
    if len(observed) > len(paths):
        raise ValueError(
            f"decoder=False leaves out what is observed at the end of each path, but the sites "
            f"{observed} are observed with the paths {paths}; leave decoder out"
        )


def samples(trace: Trace) -> list[tuple[str, Site]]:
    """The sample sites of a trace, by name."""
    return [(n, site) for n, site in trace.nodes.items() if site["type"] == "sample"]
