"""Pages of all public names of the library, made from their docstrings when the site is built.

A name that stands at a door (``pyro_mdm`` itself, one of its packages, or a module beside those)
has a page of its own, under the shortest name that it is imported by. What else a module lists in
``__all__`` stands on the module's page.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

__all__ = ["Door", "described", "doors", "names_of", "pages", "setup"]

LIBRARY = "pyro_mdm"
HIDDEN = (f"{LIBRARY}.__main__", f"{LIBRARY}.public", f"{LIBRARY}.amortized")
"""Modules whose names are those of others."""


@dataclass
class Door:
    """A module and what has its page there: names with pages of their own, and others."""

    module: str
    alone: list[str] = field(default_factory=list)
    here: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    """Names of its ``__all__`` that are described at another door, with that."""


def modules() -> Iterator[ModuleType]:
    """The library, its packages, and then their modules."""
    library = import_module(LIBRARY)
    found = [m.name for m in pkgutil.walk_packages(library.__path__, f"{LIBRARY}.")]
    loaded = [import_module(name) for name in found if name not in HIDDEN]
    yield from sorted([library, *loaded], key=lambda m: not is_door(m))


def is_door(module: ModuleType) -> bool:
    """Whether names of a module have pages of their own."""
    return hasattr(module, "__path__") or module.__name__.count(".") == 1


def names_of(module: ModuleType) -> list[str]:
    """What a module exports."""
    return list(getattr(module, "__all__", []))


def _home(module: ModuleType, name: str) -> tuple[str, str] | None:
    """The module and name that a thing is known by; None for data that is not described here."""
    thing = getattr(module, name)
    if inspect.isclass(thing) or inspect.isroutine(thing):
        return thing.__module__, thing.__qualname__
    described = ModuleAnalyzer.for_module(module.__name__).find_attr_docs()
    return (module.__name__, name) if ("", name) in described else None


@cache
def doors() -> tuple[Door, ...]:
    """All modules with a page, in alphabetical order; every name is described once."""
    result: list[Door] = []
    taken: dict[tuple[str, str], str] = {}
    for module in modules():
        door = Door(module.__name__)
        for name in names_of(module):
            home = _home(module, name)
            if home is None:
                continue
            if home in taken:
                door.elsewhere.append(taken[home])
                continue
            taken[home] = f"{module.__name__}.{name}"
            (door.alone if is_door(module) and _is_long(module, name) else door.here).append(name)
        result.append(door)
    return tuple(sorted(result, key=lambda door: door.module))


@cache
def described() -> dict[str, str]:
    """The name that each thing is described by, by where it is defined."""
    result = {}
    for door in doors():
        module = import_module(door.module)
        for name in (*door.alone, *door.here):
            if home := _home(module, name):
                result[".".join(home)] = f"{door.module}.{name}"
    return result


def _is_long(module: ModuleType, name: str) -> bool:
    thing: Any = getattr(module, name)
    return inspect.isclass(thing) or inspect.isroutine(thing)


def file_of(door: Door, name: str) -> str:
    """The page of a name: a function beside a class of the same letters is told apart."""
    same = [other for other in door.alone if other.lower() == name.lower()]
    is_class = inspect.isclass(getattr(import_module(door.module), name))
    return f"{door.module}.{name}" + ("_function" if len(same) > 1 and not is_class else "")


def _heading(text: str, line: str = "=") -> list[str]:
    return [text, line * len(text), ""]


def _table(title: str, names: list[str]) -> list[str]:
    if not names:
        return []
    rows = [f"   {name}" for name in names]
    return [f".. rubric:: {title}", "", ".. autosummary::", "", *rows, ""]


def _of_name(door: Door, name: str) -> str:
    thing = getattr(import_module(door.module), name)
    directive = "autoclass" if inspect.isclass(thing) else "autofunction"
    options = ["   :members:", "   :show-inheritance:"] if inspect.isclass(thing) else []
    return "\n".join(
        [*_heading(name), f".. {directive}:: {door.module}.{name}", *options, ""],
    )


def _of_module(door: Door, inner: list[str]) -> str:
    lines = [*_heading(door.module), f".. automodule:: {door.module}", ""]
    lines += _table("Names", door.alone)
    lines += _table("Names that are described elsewhere", sorted(door.elsewhere))
    lines += _table("Modules", [module.removeprefix(f"{door.module}.") for module in inner])
    for name in door.here:
        thing = getattr(import_module(door.module), name)
        whole = f"{door.module}.{name}"
        if inspect.isclass(thing):
            lines += [f".. autoclass:: {whole}", "   :members:", "   :show-inheritance:", ""]
        elif inspect.isroutine(thing):
            lines += [f".. autofunction:: {whole}", ""]
        else:
            lines += [f".. autodata:: {whole}", "   :no-value:", ""]
    below = [*inner, *(file_of(door, name) for name in door.alone)]
    if below:
        lines += [".. toctree::", "   :hidden:", "", *(f"   {page}" for page in below), ""]
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """The source of every page, by name."""
    found = doors()
    result = {}
    for door in found:
        level = door.module.count(".") + 1
        inner = [
            other.module
            for other in found
            if other.module.startswith(f"{door.module}.") and other.module.count(".") == level
        ]
        result[door.module] = _of_module(door, inner)
        result |= {file_of(door, name): _of_name(door, name) for name in door.alone}
    return result


def _write(app: Sphinx) -> None:
    folder = Path(app.srcdir) / "api"
    folder.mkdir(exist_ok=True)
    wanted = pages()
    for path in folder.glob("*.rst"):
        if path.stem not in wanted:
            path.unlink()
    for name, text in wanted.items():
        path = folder / f"{name}.rst"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _public(bases: Iterable[type]) -> Iterator[type]:
    """Base classes without private ones, in whose place are theirs."""
    for base in bases:
        if getattr(base, "__name__", "").startswith("_") and base.__module__.startswith(LIBRARY):
            yield from _public(base.__bases__)
        elif base is not object:
            yield base


def _bases(app: Sphinx, name: str, thing: object, options: object, bases: list[type]) -> None:
    bases[:] = dict.fromkeys(_public(bases)) or [object]


def setup(app: Sphinx) -> dict[str, bool]:
    """Pages are written before Sphinx looks for them; what did not change is left."""
    app.connect("builder-inited", _write)
    app.connect("autodoc-process-bases", _bases)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
