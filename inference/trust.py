"""The rules for which code a program runs.

The settings of a run folder, and options from a file, may name code: ``file.py:Name`` or
``module:Name``. They may name the folder of a pipeline, which names classes of diffusers. Such a
folder may be somebody else's. :mod:`inference.settings.names` looks up every name, and passes the
bytes that it is about to run, or the pipeline's index, to :func:`check`. They are run or read if

- the user named that file or module on this command line, or in a Python program; or
- the user has trained with that very file, or trusted it before: its absolute path without links
  and its SHA-256 are remembered (:func:`remember`); or
- ``--trust`` is given, in Python :func:`trusting`, which remembers it; or
- it is this checkout's own: of ``pyro_mdm``, ``models``, or the examples in ``inference``.

What that code imports is not checked. One file for each path and content is kept in :func:`folder`,
readable by the user alone, as ``sha256sum`` writes it; deleting it ends the trust.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path

from pyro_mdm.support import files

FOLDER = "PYRO_MDM_TRUSTED"
"""The environment variable that puts :func:`folder` elsewhere."""

INDEX = "model_index.json"
"""The file in the folder of a pipeline of diffusers that names its classes."""

EXAMPLES = ("guides", "scores", "likelihoods", "samplers", "simulators", "columns")
LIBRARY = ["automatic", "auxiliary", "by_dimension", "conditioning", "diffusions", "evaluation"]
LIBRARY += ["imported", "levels", "likelihoods", "measurements", "paths", "plots", "posteriors"]
LIBRARY += ["samplers", "scores", "seeing", "simulated", "support", "tables", "tables/columns"]
LIBRARY += ["training", "varying"]
ROOMS = {files.ROOT / "models", *(files.ROOT / "inference" / name for name in EXAMPLES)}
ROOMS |= {files.LIBRARY, *(files.LIBRARY / name for name in LIBRARY)}
"""Folders whose files are ours, without subfolders, which may be run folders."""


class UntrustedCodeError(RuntimeError):
    """A configuration names code that the user has neither named, trained with, nor trusted."""


@dataclass(frozen=True)
class _Rule:
    """The rule for code that is not remembered."""

    named: frozenset[str] | None = None  # keys; None: everything, as a Python program names it
    trusts: bool = False
    source: str = "a configuration"


_PYTHON, _CLOSED = _Rule(), _Rule(frozenset())
_rule: ContextVar[_Rule | None] = ContextVar("rule", default=None)
_commands = 0
"""The number of command lines being run, in all threads; one, except in tests."""
_passed: dict[str, dict[Path, str]] = {}
"""The SHA-256 of what was run last, by key and file."""


# -- rules -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def command(names: Iterable[str], *, trusts: bool) -> Iterator[None]:
    """The rule of a command line with these ``names``; ``trusts``: --trust is given."""
    global _commands
    named = frozenset(key(name) for name in names if not name.startswith("run:"))
    _commands += 1
    try:
        with _ruled(_Rule(named, trusts, "a file of --config")):
            yield
    finally:
        _commands -= 1


@contextlib.contextmanager
def named_by(source: Path) -> Iterator[None]:
    """The rule for names in the run folder ``source``, which the user did not write."""
    rule = _current()
    named = frozenset() if rule.named is None else rule.named
    with _ruled(replace(rule, named=named, source=str(source / "config.yaml"))):
        yield


@contextlib.contextmanager
def trusting() -> Iterator[None]:
    """Run and remember whatever run folders name, as --trust does."""
    with _ruled(replace(_current(), trusts=True)):
        yield


def is_trusting() -> bool:
    """Whether --trust is given."""
    return _current().trusts


def _current() -> _Rule:
    """The rule in this thread; one that a command line starts has no names of its own."""
    rule = _rule.get()
    if rule is None:
        return _CLOSED if _commands else _PYTHON
    return rule


@contextlib.contextmanager
def _ruled(rule: _Rule) -> Iterator[None]:
    token = _rule.set(rule)
    try:
        yield
    finally:
        _rule.reset(token)


def key(name: str) -> str:
    """The module of ``module:Name``, or the absolute path, without links, of ``file.py:Name``,
    or of the index in a pipeline's folder."""
    if is_pipeline(name):
        return str(Path(name).resolve() / INDEX)  # which may be a link into a cache
    place = name.rpartition(":")[0]
    return str(Path(place).resolve()) if place.endswith(".py") else place


def is_pipeline(name: str) -> bool:
    """Whether a name is that of a folder that a pipeline wrote."""
    return (Path(name) / INDEX).is_file()


# -- the gate --------------------------------------------------------------------------------------


def check(option: str, name: str, path: Path | None, content: bytes) -> None:
    """Raise UntrustedCodeError unless code may be run.

    Args:
        option: the option that names it, without hyphens.
        name: ``module:Name``, ``file.py:Name``, or the folder of a pipeline.
        path: its file, absolute and without links, or that of a package around it; None for a
            module that is built into Python.
        content: the bytes that are run or read if this returns.
    """
    rule, digest = _current(), hashlib.sha256(content).hexdigest()
    place = name.rpartition(":")[0]
    if path is not None and (place.endswith(".py") or path.name == INDEX):
        place = str(path)  # the file that was read, wherever the name leads by now
    if not (
        rule.named is None
        or place in rule.named
        or (path is not None and (_is_ours(path) or _entry(path, digest).is_file()))
    ):
        if not rule.trusts:
            raise UntrustedCodeError(_refusal(rule, option, name, path, digest))
        if path is not None:
            _write(path, digest)
    if path is not None:
        _passed.setdefault(place, {})[path] = digest


def _refusal(rule: _Rule, option: str, name: str, path: Path | None, digest: str) -> str:
    if path is None:
        return (
            f"{rule.source} names {name} as {option}, of a module without a file, which is not run "
            f"unless you say --trust, or name it yourself: --{option} {name}"
        )
    changed = ", or it has changed since" if _is_remembered(path) else ""
    column = "NAME=" if option == "columns" else ""
    full_name = (
        f"{path}:{name.rpartition(':')[2]}" if name.rpartition(":")[0].endswith(".py") else name
    )
    verb, done = ("open", "opened") if path.name == INDEX else ("run", "run")
    return (
        f"{rule.source} names {name} as {option}, which would {verb} {path} (SHA-256 "
        f"{digest[:12]}…). You have not named that file on this command line, nor trained with "
        f"it{changed}, so it is not {done}. Read it first, and what it imports. If you trust it, "
        "add --trust, once: that very file is then remembered (in Python: with "
        "inference.trust.trusting()). Or name it "
        f"yourself, --{option} {column}{full_name}, where a program takes that; what you train "
        "with is remembered too"
    )


def _is_ours(path: Path) -> bool:
    """Whether a file is one of this checkout that is safe to import, which programs are not."""
    if path == files.ROOT / "inference" / "__init__.py":
        return True
    return path.parent in ROOMS and path.name != "__main__.py"


# -- remembered code -------------------------------------------------------------------------------


def folder() -> Path:
    """The folder of remembered code.

    ``$PYRO_MDM_TRUSTED``, or ``pyro_mdm/trusted`` in ``$XDG_STATE_HOME``, by default
    ``~/.local/state``.
    """
    if elsewhere := os.environ.get(FOLDER):
        return Path(elsewhere)
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not state.is_absolute():  # as the XDG standard says
        state = Path("~/.local/state").expanduser()
    return state / "pyro_mdm" / "trusted"


def remember(names: Iterable[str]) -> None:
    """Remember the code of ``names`` that was run here, since the user trained with it."""
    for name in names:
        for path, digest in _passed.get(key(name), {}).items():
            if not _is_ours(path):
                _write(path, digest)


def _entry(path: Path, digest: str) -> Path:
    about = os.fsencode(path) + b"\n" + digest.encode()
    return folder() / hashlib.sha256(about).hexdigest()


def _line(path: Path, digest: str) -> bytes:
    return digest.encode() + b"  " + os.fsencode(path) + b"\n"


def _is_remembered(path: Path) -> bool:
    """Whether any content of the file is remembered."""
    end = _line(path, "")
    with contextlib.suppress(OSError):
        return any(entry.read_bytes().endswith(end) for entry in folder().iterdir())
    return False


def _write(path: Path, digest: str) -> None:
    entry = _entry(path, digest)
    if entry.is_file():
        return
    try:
        entry.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, temporary = tempfile.mkstemp(dir=entry.parent, prefix=".")  # of mode 0600
        with open(descriptor, "wb") as file:
            file.write(_line(path, digest))
        os.replace(temporary, entry)
    except OSError as error:
        warnings.warn(
            f"that {path} is trusted could not be written to {entry.parent} ({error}), so that "
            f"opening the run will need --trust; set {FOLDER} to a folder of yours",
            stacklevel=2,
        )
