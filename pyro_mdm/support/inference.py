"""The use that Pyro's inference makes of a log density.

The objectives of variational inference average log densities, so that an unbiased estimate of a
lower bound is enough. All else takes exponentials of them, as importance weights are, or walks on
them as on one function. Both ask a distribution for ``log_prob`` in the same way, so that the call
stack alone tells them apart.
"""

from __future__ import annotations

import inspect
from typing import NamedTuple

__all__ = ["Inference", "inference_in_use"]

PYRO = "pyro.infer."
AVERAGING = (
    "abstract_infer",
    "autoguide",
    "elbo",
    "enum",
    "inspect",
    "svi",
    "trace_elbo",
    "trace_mean_field_elbo",
    "traceenum_elbo",
    "tracegraph_elbo",
    "util",
)
"""Modules of Pyro whose classes average log densities. All others weigh by them."""
WALKING = ("autoguide", "mcmc", "svgd")
"""Modules whose classes need one function, the same at every call, if they don't average."""
LAPLACE = "laplace_approximation"
"""The method of an automatic guide that takes second derivatives of one log density."""


class Inference(NamedTuple):
    """An inference, with its requirements of a log density."""

    name: str
    weighs: bool = True  # by exponentials of it; else it averages
    walks: bool = False  # on one function


def inference_in_use() -> Inference | None:
    """The inference of Pyro that computes a log density now, if there is one.

    It is the outermost one that weighs by the density, where one does.
    """
    frame, asking, walks = inspect.currentframe(), None, False
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith(PYRO):
            whose, name = frame.f_locals.get("self"), frame.f_code.co_name
            kinds = () if whose is None else type(whose).__mro__
            rooms = _rooms(module, *(kind.__module__ for kind in kinds))
            weighs = name == LAPLACE or not rooms.issubset(AVERAGING)
            walks = walks or (weighs and not rooms.isdisjoint(WALKING))
            if weighs or asking is None or not asking.weighs:
                asking = Inference(name if whose is None else type(whose).__name__, weighs)
        frame = frame.f_back
    return asking and asking._replace(walks=walks)


def _rooms(*modules: str) -> set[str]:
    """The modules of Pyro's inference among these, a package for all of its modules."""
    ours = (module for module in modules if module.startswith(PYRO))
    return {module.removeprefix(PYRO).partition(".")[0] for module in ours}
