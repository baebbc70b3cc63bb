"""Names on the command line: of data sets, guides, scores, likelihoods, samplers and columns.

A name is one of the lists here or the class that it stands for (``malda`` or ``MALDA``),
``module:Name`` for something importable, or ``file.py:Name`` for something in a file of your own. A
score may be a folder too, of a pipeline of diffusers, which names classes alone. A new built-in is
one line in its list. Other code is run, and a pipeline opened, if :mod:`inference.trust` allows it.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from inference import trust
from inference.scores.pipeline import PipelineScore
from inference.simulators.linear_gaussian import LINEAR_GAUSSIAN
from inference.simulators.two_moons import TWO_MOONS
from models import MODELS
from models.base import SCORES
from pyro_mdm import (
    ALDA,
    CLD,
    HOLD,
    MALDA,
    VE,
    VPSDE,
    Cosine,
    LearnedDiffusion,
    MomentumVE,
    RectifiedFlow,
    SubVP,
    likelihoods,
    samplers,
)
from pyro_mdm.levels import DiscretizedGaussian, NetworkPosterior
from pyro_mdm.simulated import TorchSDE
from pyro_mdm.support.checks import DataError, describe
from pyro_mdm.support.files import read_file
from pyro_mdm.tables.columns import Column
from pyro_mdm.tables.columns.kinds import comma_separated, is_name, parse_spec

GUIDES: dict[str, Any] = {
    "vpsde": VPSDE,
    "cld": CLD,
    "malda": MALDA,
    "alda": ALDA,
    "hold": HOLD,
    "ve": VE,
    "subvp": SubVP,
    "rectified_flow": RectifiedFlow,
    "cosine": Cosine,
    "momentum_ve": MomentumVE,
    "learned": LearnedDiffusion,
}

LIKELIHOODS: dict[str, Any] = {
    "gaussian": likelihoods.Gaussian,
    "tweedie": likelihoods.Tweedie,
    "joint_tweedie": likelihoods.JointTweedie,
    "discretized_gaussian": DiscretizedGaussian,
    "network_posterior": NetworkPosterior,
}

SAMPLERS: dict[str, Any] = {
    "splitting": samplers.Splitting,
    "euler": samplers.EulerMaruyama,
    "ancestral": samplers.Ancestral,
    "exponential": samplers.ExponentialIntegrator,
    "stochastic": samplers.StochasticExponentialIntegrator,
    "probability_flow": samplers.ProbabilityFlow,
    "stochastic_heun": samplers.StochasticHeun,
    "torchsde": TorchSDE,
}

SIMULATORS: dict[str, Any] = {"two_moons": TWO_MOONS, "linear_gaussian": LINEAR_GAUSSIAN}

ASKED: dict[str, Mapping[str, Any]] = {"simulator": SIMULATORS, "hierarchy": {}, "operator": {}}
"""The options of one program alone that are names, with the built-in names of each."""

NAMED: dict[str, Mapping[str, Any]] = {
    "model": MODELS,
    "guide": GUIDES,
    "learned_from": GUIDES,
    "score": SCORES,
    "likelihood": LIKELIHOODS,
    "sampler": SAMPLERS,
}
"""The settings that are names, with the built-in names of each."""


class NameNotFoundError(LookupError):
    """A name that stands for nothing."""


def find(option: str, name: str) -> Any:
    """The object that ``name`` stands for.

    Args:
        option: one of :data:`NAMED` or :data:`ASKED`, without hyphens, or columns.
        name: a built-in name, ``module:Name`` or ``file.py:Name``.

    Raises:
        NameNotFoundError: an unknown name, a missing file or module, or one without this name.
        UntrustedCodeError: see :func:`inference.trust.check`.
    """
    objects = {"columns": {}, **NAMED, **ASKED}[option]
    if (builtin := _builtin(objects, name)) in objects:
        return objects[builtin]
    if option == "score" and trust.is_pipeline(name):
        index = Path(trust.key(name))
        trust.check(option, name, index, read_file(index))
        return PipelineScore(index.parent)
    if option == "guide" and name.startswith("run:"):
        raise NameNotFoundError(
            f"{name} is the diffusion that a run ended with, which only inference.inspect and "
            "--reuse take; --resume continues a run"
        )
    place, colon, attribute = name.rpartition(":")
    if not colon:
        close = difflib.get_close_matches(name.lower(), objects, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        if name.endswith(".py"):
            hint = f" (which class or function of that file? {name}:Name)"
        raise NameNotFoundError(
            f"unknown {option} {name!r}{hint}: "
            + (f"use one of {', '.join(objects)}, or " if objects else "")
            + "name your own as module:Name or file.py:Name"
        )
    load = _load_file if place.endswith(".py") else _load_module
    module = load(option, name, place)
    if not hasattr(module, attribute):
        defined = [
            n
            for n, value in vars(module).items()
            if not n.startswith("_") and getattr(value, "__module__", None) == module.__name__
        ]
        raise NameNotFoundError(
            f"{place} has no {attribute!r}; it defines "
            f"{', '.join(defined) or 'no class or function'}"
        )
    return getattr(module, attribute)


def _load_file(option: str, name: str, place: str) -> ModuleType:
    path = Path(place)
    if not path.is_file():
        raise NameNotFoundError(f"--{option}: there is no file {path} (looked in {Path.cwd()})")
    path = path.resolve()
    content = read_file(path)
    trust.check(option, name, path, content)
    _import_from(path.parent)
    return _run_file(path, content)


def _import_from(folder: Path) -> None:
    """Let trusted code import the modules beside it, after all other modules of their names."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


@functools.cache
def _run_file(path: Path, content: bytes) -> ModuleType:
    """A file as a module, run once for all options that name it, and again if it changes."""
    digest = hashlib.sha256(f"{path} ".encode(errors="surrogateescape") + content).hexdigest()[:8]
    return _run(f"{path.stem}_{digest}", path, content)  # shadows no package of that name


class _AsRead(SourceFileLoader):
    """A loader of bytes that were read before, whatever is in the file by now: Python's own reads a
    file again after :func:`inference.trust.check` has allowed what was in it."""

    def __init__(self, name: str, path: Path, content: bytes) -> None:
        super().__init__(name, str(path))
        self._content = content

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self._content, self.get_filename(fullname))


def _run(name: str, path: Path, content: bytes, folders: Sequence[str] | None = None) -> ModuleType:
    """The content of a file as the module ``name``, or as a package of ``folders``."""
    spec = importlib.util.spec_from_file_location(
        name,
        path,
        loader=_AsRead(name, path, content),
        submodule_search_locations=None if folders is None else list(folders),
    )
    assert spec is not None and spec.loader is not None  # as its name ends in .py
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # where dataclasses look
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _load_module(option: str, name: str, place: str) -> ModuleType:
    """A module, after its packages; those not loaded yet are run from the bytes checked."""
    parts, here = place.split("."), False
    for k in range(len(parts)):
        whole = ".".join(parts[: k + 1])
        try:
            spec = importlib.util.find_spec(whole)
            if spec is None and k == 0:  # pyro-mdm keeps the folder where it is called off sys.path
                spec = PathFinder.find_spec(whole, [os.getcwd()])
                here = spec is not None
            if spec is None:
                raise ModuleNotFoundError(f"No module named {whole!r}")
        except (ModuleNotFoundError, ValueError) as error:
            raise NameNotFoundError(
                f"--{option}: there is no module {place!r} ({error}); sys.path starts with "
                f"{[p or '.' for p in sys.path[:3]]}"
            ) from error
        path, content = _file_of(spec)
        folders = spec.submodule_search_locations
        only_folder = path is None and folders is not None
        if not only_folder:
            trust.check(option, name, path, content)
        if whole in sys.modules:
            continue
        if only_folder:
            module = sys.modules[whole] = importlib.util.module_from_spec(spec)
        else:
            if here:
                _import_from(Path.cwd())
            if path is not None and type(spec.loader) is SourceFileLoader:
                module = _run(whole, path, content, folders)
            else:
                module = importlib.import_module(whole)
        if k > 0:
            setattr(sys.modules[".".join(parts[:k])], parts[k], module)
    return sys.modules[place]


def _file_of(spec: ModuleSpec) -> tuple[Path | None, bytes]:
    """The file of a module and its content; None for what is built in, or in an archive."""
    if spec.has_location and spec.origin is not None and Path(spec.origin).is_file():
        path = Path(spec.origin).resolve()
        return path, path.read_bytes()
    return None, b""


# -- forms of names --------------------------------------------------------------------------------


def canonical_name(option: str, name: str) -> str:
    """A name as config files have it: ``file.py:Name`` and folders with their full paths, ``malda``
    for ``MALDA``, and others unchanged."""
    place, _, attribute = name.rpartition(":")
    if place.endswith(".py"):
        return f"{Path(place).resolve()}:{attribute}"
    if option == "score" and name not in SCORES and trust.is_pipeline(name):
        return str(Path(name).resolve())
    return _builtin((NAMED | ASKED)[option], name)


def _builtin(objects: Mapping[str, Any], name: str) -> str:
    """The built-in name of a class that is named as in Python; other names unchanged."""
    if name in objects:
        return name
    return next((key for key, it in objects.items() if getattr(it, "__name__", None) == name), name)


def own_names(settings: Mapping[str, Any]) -> list[str]:
    """The names in settings that are not built in."""
    named = {option: str(settings.get(option)) for option in NAMED}
    files = [
        name
        for option, name in named.items()
        if name not in NAMED[option]
        and (":" in name or (option == "score" and trust.is_pipeline(name)))
    ]
    return files + kinds_named(settings.get("columns"))


def source_files(settings: Mapping[str, Any]) -> list[Path]:
    """The user's files that settings name, as ``file.py:Name``."""
    named = [str(settings.get(option)) for option in NAMED]
    places = [name.rpartition(":")[0] for name in named]
    kinds = [name.rpartition(":")[0] for name in kinds_named(settings.get("columns"))]
    places += [place for place in kinds if Path(place).is_file()]
    return [Path(place) for place in dict.fromkeys(places) if place.endswith(".py")]


# -- kinds of columns ------------------------------------------------------------------------------


def find_column_kind(name: str) -> type[Column]:
    """The class of a kind of columns that ``--columns`` names as ``file.py:Name``, see
    :func:`find` (TypeError: another object)."""
    kind: object = find("columns", name)
    if not (inspect.isclass(kind) and issubclass(kind, Column)):
        raise TypeError(
            f"{name} is {describe(kind)}, expected a subclass of pyro_mdm.tables.Column"
        )
    return kind


def kinds_named(columns: str | None) -> list[str]:
    """The names of classes among the kinds that ``--columns`` says.

    Columns and files may have = in their names, so that some may be too long or too short.
    """
    return [kind for text in _parts(columns) for _, kind in _kinds_in(text)]


def canonical_columns(columns: str | None) -> str | None:
    """Kinds of columns as config files have them, with full paths in ``file.py:Name``."""
    texts = _parts(columns)
    for i, text in enumerate(texts):
        for start, kind in _kinds_in(text):
            place, _, name = kind.rpartition(":")
            if place.endswith(".py") and Path(place).is_file():
                whole = f"{Path(place).resolve()}:{name}"
                texts[i] = text[:start] + text[start:].replace(kind, whole, 1)
                break
    return columns if texts == _parts(columns) else _joined(texts)


def kinds_text(kinds: Mapping[str, str]) -> str:
    """The text of kinds of columns by name, as ``--columns`` has it."""
    return _joined([f"{name}={kind}" for name, kind in kinds.items()])


def _joined(words: Sequence[str]) -> str:
    """Words joined by commas, as :func:`comma_separated` reads them."""
    text = io.StringIO()
    spaces = any(word.partition("=")[0] != word.partition("=")[0].strip() for word in words)
    options: dict[str, Any] = {"quoting": csv.QUOTE_ALL} if spaces else {}
    csv.writer(text, **options).writerow(words)
    return text.getvalue().removesuffix("\r\n")


def _parts(columns: str | None) -> list[str]:
    """The words of ``--columns``; none where they cannot be read, which the table refuses."""
    with contextlib.suppress(ValueError):
        return comma_separated(columns or "", "--columns")
    return []


def _kinds_in(text: str) -> list[tuple[int, str]]:
    """Where the kind may begin in ``name=kind``, and it, if it is the name of a class."""
    kinds = []
    for match in re.finditer("=", text):
        name, words = text[: match.start()], text[match.end() :].strip()
        with contextlib.suppress(DataError):
            kind = parse_spec(name, words).kind
            if kind is not None and is_name(kind):
                kinds.append((match.end(), kind))
    return kinds


def short_name(name: str) -> str:
    """``Name`` of ``module:Name`` or ``file.py:Name``; other names unchanged."""
    return name.rpartition(":")[2]


def slug(name: str) -> str:
    """A :func:`short_name` for use in a file's name."""
    return re.sub(r"\W+", "-", short_name(name)).strip("-")


# -- objects by name -------------------------------------------------------------------------------


def takes(function: object, name: str) -> bool:
    """Whether ``function`` names a keyword argument so."""
    return callable(function) and name in inspect.signature(function).parameters


def accepted(function: Callable[..., object], options: Mapping[str, object]) -> dict[str, Any]:
    """Those of ``options`` that ``function`` takes as keywords."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return dict(options)
    names = {p.name for p in parameters if p.kind is not inspect.Parameter.POSITIONAL_ONLY}
    return {key: value for key, value in options.items() if key in names}


def make(
    option: str, name: str, named: object, kind: type[Any], options: Mapping[str, object]
) -> Any:
    """An object of ``kind``, from what a name stands for.

    A class or function is called with the ``options`` that it takes; an object is copied.
    (TypeError: it is of another kind, or needs more options.)
    """
    made = named
    if isinstance(named, kind):
        return copy.deepcopy(named)
    if callable(named) and not (inspect.isclass(named) and not issubclass(named, kind)):
        made = call(option, name, named, options)
    if not isinstance(made, kind):
        raise wrong_kind(option, name, made, kind, returned=made is not named)
    return made


def call(
    option: str, name: str, named: Callable[..., object], options: Mapping[str, object]
) -> object:
    """The value of a class or function for the ``options`` it takes (TypeError: it needs more)."""
    given = accepted(named, options)
    try:
        inspect.signature(named).bind(**given)
    except TypeError as error:
        raise TypeError(
            f"{name} cannot be called with {sorted(given)} alone ({error}); give its other "
            f"arguments defaults, or name a function without arguments that returns the {option}"
        ) from error
    return named(**given)


def wrong_kind(
    option: str, name: str, value: object, kind: type, *, returned: bool = False
) -> TypeError:
    """The error for a name that stands for something of another kind."""
    itself = "" if option == "score" else ", or one itself"  # a network is made for its data
    where = "pyro_mdm.measurements" if option == "operator" else f"inference/{option}s"
    return TypeError(
        f"{name} {'returns' if returned else 'is'} {describe(value)}, expected a {kind.__name__}: "
        f"a subclass, a function that returns one{itself} (see {where})"
    )
