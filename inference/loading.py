"""What ``--guide`` and ``--model`` names stand for, and the two programs that settings describe.

A name is one of those known here, ``module:Name`` for something importable, or ``file.py:Name`` for
something in a file of your own.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

from inference.checkpoints import ArchitectureError, Checkpoint, load_module
from inference.runs import Run
from models import MODELS, Problem
from pyro_mdm import (
    ALDA,
    CLD,
    MALDA,
    VPSDE,
    DiffusionGuide,
    DiffusionModel,
    LearnedDiffusion,
    LinearDiffusion,
)

__all__ = [
    "GUIDES",
    "NameNotFoundError",
    "Programs",
    "absolute_name",
    "build",
    "build_diffusion",
    "build_problem",
    "find",
    "load_trained",
    "load_weights",
    "seed_from",
]

GUIDES: dict[str, Any] = {
    "vpsde": VPSDE,
    "cld": CLD,
    "malda": MALDA,
    "alda": ALDA,
    "learned": LearnedDiffusion,
}

LEARNED_MIN_LOG_SNR = -10.0
"""λ(T) of a learned diffusion under a denoiser, which gives its clock no other reason to stop."""


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


def _accepted(function: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``options`` that ``function`` takes as keywords."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return dict(options)
    names = {p.name for p in parameters if p.kind is not inspect.Parameter.POSITIONAL_ONLY}
    return {key: value for key, value in options.items() if key in names}


def build_diffusion(
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
    taken = _accepted(found, options)
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


def build_problem(name: str, *, holdout: bool = False, protocol: str | None = None) -> Problem:
    """The data set that ``name`` stands for; ``protocol`` is for images, see :mod:`models.base`."""
    found = find("model", name, MODELS)
    options: dict[str, Any] = {"holdout": holdout}
    if protocol is not None:
        if "protocol" not in inspect.signature(found).parameters:
            raise ValueError(f"--protocol {protocol} is for images; --model {name} has none")
        options["protocol"] = protocol
    problem = found(**options) if inspect.isclass(found) and issubclass(found, Problem) else found
    if not isinstance(problem, Problem):
        raise TypeError(
            f"{name} is {_describe(problem)}, expected a subclass of models.base.Problem: "
            "see models/digits.py"
        )
    return problem


# -- from settings to programs ---------------------------------------------------------------------


def seed_from(seed: int, *labels: object) -> int:
    """A seed for one use of randomness, told apart from all others by its labels."""
    text = repr((seed, *labels)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


class Programs(NamedTuple):
    """A data set with its generative and its inference program, over one diffusion."""

    problem: Problem
    model: DiffusionModel
    guide: DiffusionGuide


def build(settings: Mapping[str, Any]) -> Programs:
    """The untrained programs that settings describe: the same settings, the same programs."""
    problem = build_problem(
        settings["model"], holdout=settings["holdout"], protocol=settings["protocol"]
    )
    min_log_snr = settings["min_log_snr"]
    if settings["guide"] == "learned" and min_log_snr is None:
        score = problem.scores[0] if settings["score"] == "default" else settings["score"]
        min_log_snr = None if score in ("noise", "score") else LEARNED_MIN_LOG_SNR
    max_log_snr = settings["max_log_snr"]
    torch.manual_seed(seed_from(settings["seed"], "initial weights"))
    diffusion = build_diffusion(
        settings["guide"],
        max_log_snr=problem.max_log_snr if max_log_snr is None else max_log_snr,
        min_log_snr=min_log_snr,
        num_variables=settings["num_variables"],
        rank=settings["rank"],
        learn_beta=settings["learn_beta"],
    )
    model = problem.build(diffusion, score=settings["score"])
    return Programs(problem, model, DiffusionGuide(diffusion))


def load_weights(model: DiffusionModel, checkpoint: Checkpoint, part: str, run: Run) -> None:
    """Load the tensors ``part`` of a run's checkpoint.

    Raises:
        ArchitectureError: they are another architecture's; names the settings changed since, too.
    """
    where = f"the checkpoint of step {checkpoint.step} in {run.folder}"
    try:
        load_module(model, checkpoint.part(part), where)
    except ArchitectureError as error:
        then = checkpoint.state["config"]
        changed = [
            f"{key}: {then.get(key)!r} in the checkpoint, {value!r} in config.yaml"
            for key, value in run.config.items()
            if then.get(key) != value
        ]
        if not changed:
            raise
        lines = "\n  ".join(changed)
        raise ArchitectureError(f"{error}\nSettings that differ:\n  {lines}") from error


def load_trained(folder: Path) -> tuple[Run, Programs, Checkpoint]:
    """A run's programs with the averaged weights of its newest whole checkpoint, in eval mode.

    Raises:
        RunError, CheckpointError, ArchitectureError: there is no such run, it has no usable
            checkpoint, or that is another architecture's.
    """
    run = Run.open(folder)
    programs = build(run.config)
    checkpoint = run.latest()
    load_weights(programs.model, checkpoint, "ema", run)
    programs.model.eval()
    return run, programs, checkpoint
