"""What ``--guide`` and ``--model`` names stand for.

A name is one of those known here, ``module:Name`` for something importable, or ``file.py:Name`` for
something in a file of your own.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from pyro_mdm import ALDA, CLD, MALDA, VPSDE, LearnedDiffusion, LinearDiffusion

__all__ = ["GUIDES", "NameNotFoundError", "absolute_name", "accepted", "build_guide", "find"]

GUIDES: dict[str, Any] = {
    "vpsde": VPSDE,
    "cld": CLD,
    "malda": MALDA,
    "alda": ALDA,
    "learned": LearnedDiffusion,
}


class NameNotFoundError(LookupError):
    """A ``--guide`` or ``--model`` that names nothing."""


def find(kind: str, name: str, known: Mapping[str, Any]) -> Any:
    """The object that ``name`` stands for.

    Args:
        kind: ``"guide"`` or ``"model"``, for messages.
        name: a name in ``known``, ``module:Name`` or ``file.py:Name``.
        known: names and what they stand for.

    Raises:
        NameNotFoundError: an unknown name, a file or module that is not there or has no such name.
    """
    if name in known:
        return known[name]
    place, colon, attribute = name.rpartition(":")
    if not colon:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise NameNotFoundError(
            f"unknown {kind} {name!r}{hint}: use one of {', '.join(known)}, or name your own as "
            "module:Name or file.py:Name"
        )
    module = _load_file(kind, Path(place)) if place.endswith(".py") else _load_module(kind, place)
    if not hasattr(module, attribute):
        own = [
            n
            for n, value in vars(module).items()
            if not n.startswith("_") and getattr(value, "__module__", None) == module.__name__
        ]
        raise NameNotFoundError(
            f"{place} has no {attribute!r}; it defines {', '.join(own) or 'no class or function'}"
        )
    return getattr(module, attribute)


def absolute_name(name: str) -> str:
    """``file.py:Name`` with the file's full path, as a config file needs it; others unchanged."""
    place, _, attribute = name.rpartition(":")
    return f"{Path(place).resolve()}:{attribute}" if place.endswith(".py") else name


def _load_file(kind: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise NameNotFoundError(f"--{kind}: there is no file {path} (looked in {Path.cwd()})")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise NameNotFoundError(f"--{kind}: {path} cannot be read as a Python module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _load_module(kind: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise  # the module is there, something it imports is not
        raise NameNotFoundError(
            f"--{kind}: there is no module {name!r} ({error}); sys.path starts with "
            f"{[p or '.' for p in sys.path[:3]]}"
        ) from error


def accepted(function: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``options`` that ``function`` takes as keywords."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return dict(options)
    names = {p.name for p in parameters if p.kind is not inspect.Parameter.POSITIONAL_ONLY}
    return {key: value for key, value in options.items() if key in names}


def build_guide(
    name: str,
    *,
    max_log_snr: float,
    min_log_snr: float | None = None,
    num_variables: int | None = None,
    rank: int | None = None,
    learn_beta: bool = False,
) -> LinearDiffusion:
    """The diffusion that ``name`` stands for.

    Args:
        name: see :func:`find`. A class or function is called, with ``max_log_snr`` (and
            ``min_log_snr`` if given) where it takes that; a diffusion is used as it is.
        max_log_snr: λ at ε, where the decoder takes over.
        min_log_snr: λ at T, to which the clock is scaled.
        num_variables, rank, learn_beta: for ``learned`` only: K (2), the rank of D (K) and whether
            the clock is learned too.

    Raises:
        NameNotFoundError: see :func:`find`.
        TypeError: what is named is not a diffusion and does not return one.
        ValueError: an option of ``learned`` for another guide.
    """
    found = find("guide", name, GUIDES)
    diffusion: Any
    options: dict[str, Any] = {"max_log_snr": max_log_snr}
    if min_log_snr is not None:
        options["min_log_snr"] = min_log_snr
    if found is LearnedDiffusion:
        K = 2 if num_variables is None else num_variables
        diffusion = LearnedDiffusion(K, rank=rank, learn_beta=learn_beta, **options)
    else:
        given = {"num_variables": num_variables, "rank": rank, "learn_beta": learn_beta or None}
        if surplus := [f"--{key}" for key, value in given.items() if value is not None]:
            raise ValueError(
                f"{', '.join(surplus)} is for --guide learned; {name} says itself what it is"
            )
        diffusion = found if isinstance(found, LinearDiffusion) else _call(name, found, options)
    if not isinstance(diffusion, LinearDiffusion):
        what = f"{name} is" if diffusion is found else f"{name} returns"
        raise TypeError(
            f"{what} {_describe(diffusion)}, expected a LinearDiffusion: a subclass, a function "
            "that returns one, or one itself (see inference/guides)"
        )
    return diffusion


def _call(name: str, found: Any, options: Mapping[str, Any]) -> Any:
    is_class = inspect.isclass(found)
    if not callable(found) or (is_class and not issubclass(found, LinearDiffusion)):
        return found
    taken = accepted(found, options)
    try:
        inspect.signature(found).bind(**taken)
    except TypeError as error:
        raise TypeError(
            f"{name} cannot be called with {sorted(taken)} alone ({error}); give its other "
            "arguments defaults, or name a function without arguments that returns the diffusion"
        ) from error
    return found(**taken)


def _describe(value: Any) -> str:
    return f"the class {value.__name__}" if inspect.isclass(value) else f"a {type(value).__name__}"
