"""References to what the library calls a thing, whichever of its names is used.

A class is described once, as ``pyro_mdm.CLD``, and is ``pyro_mdm.diffusions.CLD`` and
``pyro_mdm.diffusions.presets.CLD`` as well; in annotations it is ``CLD`` alone. Of others no
link is asked for: there is one where their documentation can be reached (intersphinx).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import ObjectEntry, PythonDomain
from sphinx.environment import BuildEnvironment

from docs._ext.api import described

__all__ = ["imported", "setup"]

LIBRARY = "pyro_mdm"


@cache
def imported(name: str) -> Any:
    """What a dotted name stands for, or None."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            thing = import_module(".".join(parts[:cut]))
            for part in parts[cut:]:
                static = inspect.getattr_static(thing, part, None)
                thing = getattr(thing, part) if static is None else static
        except (ImportError, AttributeError, ValueError):
            continue
        return thing
    return None


def _home(thing: Any) -> str:
    """Where a thing is defined, as a dotted name; of a property, where its function is."""
    thing = getattr(thing, "fget", None) or getattr(thing, "__func__", None) or thing
    has_name = hasattr(thing, "__qualname__")
    return f"{thing.__module__}.{thing.__qualname__}" if has_name else ""


def _described(objects: dict[str, ObjectEntry], name: str) -> ObjectEntry | None:
    """The entry of a name of the library, or of a member of one, in the index of all names."""
    owner, _, member = name.rpartition(".")
    homes = [_home(imported(name))]
    homes += [f"{_home(base)}.{member}" for base in getattr(imported(owner), "__mro__", ())]
    pages = described()
    for one in (name, *homes):
        home, _, member = one.rpartition(".")
        for known in (one, pages.get(one), f"{pages.get(home)}.{member}"):
            if known in objects:
                return objects[known]
    return None


def _candidates(node: pending_xref) -> Iterator[str]:
    """What a target may mean where it stands, in full; the nearest first."""
    target = node["reftarget"].lstrip("~.")
    yield target
    page = imported(node["refdoc"].rpartition("/")[2].removesuffix("_function"))
    module, name = node.get("py:module"), node.get("py:class")
    around = [
        page,
        imported(f"{module}.{name}") if module and name else None,
        imported(module or ""),
    ]
    for thing in reversed(around):
        if inspect.ismodule(thing):
            yield f"{thing.__name__}.{target}"
        elif thing is not None and hasattr(thing, "__qualname__"):
            yield f"{thing.__module__}.{thing.__qualname__}.{target}"
            yield f"{thing.__module__}.{target}"
    yield f"{LIBRARY}.{target}"


@cache
def _only(domain: PythonDomain, end: str) -> ObjectEntry | None:
    """The entry whose names end so; None where there is none, or several. All pages are read."""
    same = {o for name, o in domain.objects.items() if name.endswith(end) and not o.aliased}
    return same.pop() if len(same) == 1 else None


def _resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element
) -> nodes.Element | None:
    if node.get("refdomain") != "py":
        return None
    objects = env.domains.python_domain.objects
    candidates = list(_candidates(node))
    entry = next(filter(None, (_described(objects, name) for name in candidates)), None)
    if entry is None:
        entry = _only(env.domains.python_domain, f".{candidates[0]}")
    if entry is not None:
        uri = app.builder.get_relative_uri(node["refdoc"], entry.docname)
        link = nodes.reference("", "", content, internal=True, refuri=f"{uri}#{entry.node_id}")
        return link
    things = [thing for name in candidates if (thing := imported(name)) is not None]
    foreign = things and not str(getattr(things[0], "__module__", LIBRARY)).startswith(LIBRARY)
    annotation = not isinstance(content, nodes.literal)
    return content if foreign or (things and annotation) else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Asked last for names that Sphinx does not find."""
    app.connect("missing-reference", _resolve, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
