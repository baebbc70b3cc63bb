"""Pages of all public names of the library, made from their docstrings when the site is built.

A name that stands at a door (``pyro_mdm`` itself, one of its packages, or a module beside those)
has a page of its own, under the shortest name that it is imported by. What else a module lists in
``__all__`` stands on the module's page. The first page has the names by what they are for
(:mod:`docs._ext.roles`), and a page ``inside`` the modules that users do not import from.
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
from sphinx.util.inspect import signature, stringify_signature

from docs._ext.roles import DOORS, ROLES, Role

__all__ = ["Door", "described", "doors", "names_of", "pages", "setup"]

LIBRARY = "pyro_mdm"
HIDDEN = (f"{LIBRARY}.__main__",)
"""Modules without a page."""


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


def page_of(module: str) -> str:
    """The page of a module; not where a class of the same letters has its own."""
    return module if module == LIBRARY else f"modules/{module}"


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
    return [f".. rubric:: {title}", "", ".. autosummary::", "   :nosignatures:", "", *rows, ""]


def _inherited(cls: type) -> list[str]:
    """Links to what a class has from others that users import, by the class that describes it."""
    taken = {name for base in _undescribed(cls) for name in vars(base)}
    lines: list[str] = []
    for base in cls.__mro__[1:]:
        page = described().get(f"{base.__module__}.{base.__qualname__}", "")
        if page.rpartition(".")[0] not in (LIBRARY, *DOORS):
            continue
        names = sorted(name for name, member in vars(base).items() if _is_described(name, member))
        links = [f":py:obj:`~{page}.{name}`" for name in names if name not in taken]
        taken |= {*names}
        if links:
            lines += [
                f"From :py:class:`{page.rpartition('.')[2]} <{page}>`: {', '.join(links)}.",
                "",
            ]
    return [".. rubric:: Inherited", "", *lines] if lines else []


def _undescribed(cls: type) -> list[type]:
    """A class and the private ones before its first base with a page: its page has them too."""
    bases = [cls]
    for base in cls.__mro__[1:]:
        if f"{base.__module__}.{base.__qualname__}" in described():
            break
        bases.append(base)
    return bases


def _is_described(name: str, member: Any) -> bool:
    """Whether autodoc describes a member of a class."""
    if name.startswith("_") or not getattr(member, "__doc__", None):
        return False
    return inspect.isroutine(member) or isinstance(member, (classmethod, property, staticmethod))


def _of_class(whole: str, cls: type) -> list[str]:
    """A class with its members, those of private bases, and where the others are."""
    private = [base for base in _undescribed(cls)[1:] if base.__module__.startswith(LIBRARY)]
    options = ["   :members:", "   :show-inheritance:"]
    if private:
        others = {base.__name__ for base in cls.__mro__[1:] if base not in private}
        options.append(f"   :inherited-members: {', '.join(sorted(others))}")
    return [f".. autoclass:: {whole}", *options, "", *_inherited(cls)]


def _of_name(door: Door, name: str) -> str:
    thing = getattr(import_module(door.module), name)
    whole = f"{door.module}.{name}"
    if inspect.isclass(thing):
        return "\n".join([*_heading(name), *_of_class(whole, thing)])
    return "\n".join([*_heading(name), f".. autofunction:: {whole}", ""])


def _of_module(door: Door, inner: list[str]) -> str:
    lines = [*_heading(door.module), f".. automodule:: {door.module}", ""]
    lines += _table("Names", door.alone)
    lines += _table("Names that are described elsewhere", sorted(door.elsewhere))
    inside = [module for module in inner if module not in DOORS]
    lines += _table("Modules", [m.removeprefix(f"{door.module}.") for m in inner if m in DOORS])
    lines += _table("Inside", [module.removeprefix(f"{door.module}.") for module in inside])
    for name in door.here:
        thing = getattr(import_module(door.module), name)
        whole = f"{door.module}.{name}"
        if inspect.isclass(thing):
            lines += _of_class(whole, thing)
        elif inspect.isroutine(thing):
            lines += [f".. autofunction:: {whole}", ""]
        else:
            lines += [f".. autodata:: {whole}", "   :no-value:", ""]
    return "\n".join([*lines, *_below([*map(page_of, inner), *_pages_of(door)])])


def _pages_of(door: Door) -> list[str]:
    return [file_of(door, name) for name in door.alone]


def _below(pages: Iterable[str]) -> list[str]:
    """The pages that are below a page in the contents."""
    below = [f"   /api/{page}" for page in pages]
    return [".. toctree::", "   :hidden:", "", *below, ""] if below else []


FRONT = f"""
.. automodule:: {LIBRARY}

The names that are used most are in ``{LIBRARY}`` itself: ``from {LIBRARY} import CLD``. All others
are in the packages that are named below: ``from {LIBRARY}.samplers import Splitting``. The modules
that these are made of are on another page, :doc:`inside </api/inside>`.
"""
INSIDE = """
Few users import from these modules, of which the others are made. To write a diffusion, a score or
a sampler of your own, begin with :doc:`/guide/extending`. The names that they list in ``__all__``
are public too, and go as :doc:`/project/contributing` says.
"""


def _of_role(role: Role, found: dict[str, Door]) -> list[str]:
    """The names of one purpose: a table of those of the library, and what its packages have."""
    guides = " and ".join(f":doc:`/{page}`" for page in role.guides)
    lines = [*_heading(role.title, "-"), f"Explained in {guides}.", ""]
    if role.names:
        rows = [f"   {name}" for name in role.names]
        lines += [".. autosummary::", "   :nosignatures:", "", *rows, ""]
    for name in role.doors:
        door = found[f"{LIBRARY}.{name}"]
        links = ", ".join(f":py:obj:`~{door.module}.{name}`" for name in [*door.alone, *door.here])
        lines += [f"In :py:mod:`{door.module}`: {links}.", ""]
    return lines


def _front(found: dict[str, Door], inner: list[str]) -> str:
    """The first page: names by what they are for."""
    lines = [*_heading(LIBRARY), FRONT]
    for role in ROLES:
        lines += _of_role(role, found)
    doors = [module for module in inner if not _is_inside(module)]
    return "\n".join(
        [*lines, *_below([*map(page_of, doors), *_pages_of(found[LIBRARY]), "inside"])]
    )


def _is_inside(module: str) -> bool:
    """Whether users import neither from a module nor from one in it."""
    return not any(door == module or door.startswith(f"{module}.") for door in DOORS)


def pages() -> dict[str, str]:
    """The source of every page, by name."""
    found = {door.module: door for door in doors()}
    result = {}
    for door in found.values():
        level = door.module.count(".") + 1
        inner = [
            other
            for other in found
            if other.startswith(f"{door.module}.") and other.count(".") == level
        ]
        if door.module == LIBRARY:
            inside = list(filter(_is_inside, inner))
            lines = [*_heading("Inside"), INSIDE, ".. autosummary::", ""]
            lines += [*(f"   {module}" for module in inside), ""]
            result["inside"] = "\n".join([*lines, *_below(map(page_of, inside))])
            result[LIBRARY] = _front(found, inner)
        else:
            result[page_of(door.module)] = _of_module(door, inner)
        result |= {file_of(door, name): _of_name(door, name) for name in door.alone}
    return result


def _write(app: Sphinx) -> None:
    folder = Path(app.srcdir) / "api"
    (folder / "modules").mkdir(parents=True, exist_ok=True)
    wanted = {folder / f"{name}.rst": text for name, text in pages().items()}
    for path in {*folder.rglob("*.rst")} - {*wanted}:
        path.unlink()
    for path, text in wanted.items():
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


def _signature(
    app: Sphinx, what: str, name: str, thing: Any, options: object, text: str | None, returns: str
) -> tuple[str, str] | None:
    """The arguments of a constructor, where ``__new__`` takes any to note them."""
    if what == "class" and text and text.startswith("(*args"):
        arguments = signature(thing.__init__, bound_method=True)
        return stringify_signature(arguments, show_return_annotation=False), returns
    return None


def setup(app: Sphinx) -> dict[str, bool]:
    """Pages are written before Sphinx looks for them; what did not change is left."""
    app.connect("builder-inited", _write)
    app.connect("autodoc-process-bases", _bases)
    app.connect("autodoc-process-signature", _signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
