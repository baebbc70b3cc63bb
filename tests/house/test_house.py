"""How the library is built: imports run one way, without circles, and through public names.

A module may import from its own floor and from floors below; ``TYPE_CHECKING`` and imports inside
functions count too, except that a type may be named upwards.
"""

from __future__ import annotations

import ast
import functools
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from torch import Tensor, nn

from inference.trust import EXAMPLES
from pyro_mdm.__main__ import PROGRAMS as COMMANDS
from pyro_mdm.diffusions.base import Diffusion
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.simulated.nonlinear import NonlinearDiffusion
from tests.without import NEEDS, USES

ROOT = Path(__file__).parents[2]
FLOORS = (
    ("support", "randomness"),
    ("budgets",),
    ("networks", "contexts"),
    ("diffusions",),
    ("likelihoods",),
    ("scores",),
    ("paths",),
    ("samplers",),
    ("pretrained", "guide"),
    ("model",),
    ("compiled",),
    ("elbo", "distribution"),
    ("evaluation",),
    ("training",),
    tuple(NEEDS),
    ("public",),
)
"""The library's rooms from the ground up."""
PROGRAMS = ("pyro_mdm", "models", "inference")
STRICT = ("pyro_mdm",)
"""Packages in which imports for types alone make circles too."""
COPIES = {
    # the only way to know a tensor within vmap or grad
    "pyro_mdm.support.checks": {"_C", "_functorch"},
    "pyro_mdm.support.modules": {"_version"},  # torch counts changes in place by it alone
    "pyro_mdm.measurements.laws": {"_validate_args"},  # torch sets this by a method, and reads none
}
"""Private attributes of others that are read still, by module, none of them ours."""


class Import(NamedTuple):
    by: str  # module
    of: str  # module
    name: str | None  # in it; None for the module itself
    for_types: bool


def modules() -> dict[str, Path]:
    found = {}
    for package in PROGRAMS:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(module: str, node: ast.AST | None = None, for_types: bool = False) -> Iterator[Import]:
    """Everything of ours that a module imports, wherever in it."""
    if node is None:
        node = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for child in ast.iter_child_nodes(node):
        types = for_types or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test))
        if isinstance(child, ast.ImportFrom) and child.module:
            for alias in child.names:
                whole = f"{child.module}.{alias.name}"
                if whole in MODULES:
                    yield Import(module, whole, None, types)
                elif child.module in MODULES:
                    yield Import(module, child.module, alias.name, types)
        elif isinstance(child, ast.Import):
            for alias in child.names:
                if alias.name in MODULES:
                    yield Import(module, alias.name, None, types)
        yield from imports(module, child, types)


@functools.cache
def all_imports() -> list[Import]:
    return [found for module in MODULES for found in imports(module)]


def floor(module: str) -> int:
    room = module.split(".")[1]
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def test_every_room_of_the_library_has_its_floor() -> None:
    for module in MODULES:
        if module.startswith("pyro_mdm.") and module != "pyro_mdm.__main__":
            floor(module)


def test_imports_of_the_library_run_downwards() -> None:
    upwards = [
        f"{i.by} imports {i.of}"
        for i in all_imports()
        if i.by.startswith("pyro_mdm.") and not i.for_types and i.by != "pyro_mdm.__main__"
        if not i.of.startswith("pyro_mdm.") or floor(i.of) > floor(i.by)
    ]
    assert not upwards


def wing(module: str) -> str | None:
    """The wing that a module is in; None for the core."""
    room = module.split(".")[1]
    return room if room in NEEDS else None


def test_the_core_imports_no_wing_and_a_wing_those_that_it_needs() -> None:
    """For types too; the stub of the package alone has names of all."""
    across = {
        (wing(i.by), wing(i.of))
        for i in all_imports()
        if i.by.startswith("pyro_mdm.") and i.by != "pyro_mdm.__main__"
        if wing(i.of) not in (None, wing(i.by))
    }
    assert across == {(name, other) for name, needs in NEEDS.items() for other in needs} | USES


def test_the_table_of_wings_is_that_of_their_imports() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:] for line in text.splitlines() if line.startswith("| `")]
    table = {
        row[0].strip(" `"): [re.findall(r"`(\w+)`", cell) for cell in row[1:3]] for row in rows
    }
    assert table == {
        name: [[*needs], [other for by, other in sorted(USES) if by == name]]
        for name, needs in NEEDS.items()
    }


def test_programs_are_above_models_and_models_above_the_library() -> None:
    order = {name: i for i, name in enumerate(PROGRAMS)}
    upwards = [
        f"{i.by} imports {i.of}"
        for i in all_imports()
        if order[i.of.partition(".")[0]] > order[i.by.partition(".")[0]]
    ]
    assert not upwards


def strict(module: str) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in STRICT)


def test_no_module_imports_itself_by_way_of_others() -> None:
    below: dict[str, set[str]] = {module: set() for module in MODULES}
    for i in all_imports():
        if not i.for_types or (strict(i.by) and strict(i.of)):
            below[i.by].add(i.of)
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, f"circle: {' -> '.join([*way, module])}"
        if module not in done:
            for other in sorted(below[module]):
                visit(other, (*way, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_no_private_name_crosses_a_module() -> None:
    private = [
        f"{i.by} imports {i.name} of {i.of}"
        for i in all_imports()
        if i.name is not None and i.name.startswith("_") and not i.name.startswith("__")
    ]
    assert not private


def is_private(name: str) -> bool:
    public = ("_asdict", "_fields", "_make", "_replace")  # of a NamedTuple
    return name.startswith("_") and not name.startswith("__") and name not in public


def is_self(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "super"
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def private_attributes(source: str) -> dict[str, set[str]]:
    """Private names that code reads of objects of other classes, by the class that does, or "".

    Those of its own class, or of one that it inherits from in the same module, are its own.
    """
    own: dict[str, set[str]] = {}
    read: dict[str, set[str]] = {}
    for node in ast.parse(source).body:
        name = node.name if isinstance(node, ast.ClassDef) else ""
        bases = map(ast.unparse, node.bases) if isinstance(node, ast.ClassDef) else ()
        own[name] = set().union(*(own.get(base.partition("[")[0], set()) for base in bases))
        if isinstance(node, ast.ClassDef):
            own[name] |= own_attributes(node)
        others = {
            a.attr for a in ast.walk(node) if isinstance(a, ast.Attribute) and not is_self(a.value)
        }
        read.setdefault(name, set()).update(filter(is_private, others - own[name]))
    return {name: names for name, names in read.items() if names}


def own_attributes(owner: ast.ClassDef) -> set[str]:
    """Names that a class defines or sets."""
    own = set()
    for part in owner.body:
        if isinstance(part, ast.FunctionDef):
            own.add(part.name)
        elif isinstance(part, ast.AnnAssign | ast.Assign):
            targets = part.targets if isinstance(part, ast.Assign) else [part.target]
            own |= {t.id for t in targets if isinstance(t, ast.Name)}
    for node in ast.walk(owner):
        stored = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if stored and is_self(node.value):
            own.add(node.attr)
    return own


@pytest.mark.parametrize("module", MODULES)
def test_no_private_attribute_crosses_a_class(module: str) -> None:
    read = private_attributes(MODULES[module].read_text(encoding="utf-8"))
    assert not set().union(*read.values()) - COPIES.get(module, set()), read


def test_no_two_public_classes_have_one_name() -> None:
    """So that a name in a message or an import means one thing: a Table over a run is one too, and
    is called so where scikit-learn makes names of classes."""
    places: dict[str, list[str]] = {}
    for package in PROGRAMS:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.parse(path.read_text("utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    several = {name: sorted(files) for name, files in places.items() if len(files) > 1}
    assert several == {"Table": ["inference/table.py", "pyro_mdm/tables/table.py"]}


def test_linear_diffusions_by_name_are_constructors() -> None:
    """What differs between them is their matrices and ends, so none has a kernel of its own.

    What these follow from, Q and D, A and G, or α and σ, is a part of them.
    """
    kinds = [importlib.import_module("pyro_mdm.diffusions").LinearDiffusion]
    for kind in kinds:
        kinds += [c for c in kind.__subclasses__() if c.__module__.startswith("pyro_mdm.")]
    members = {
        f"{kind.__name__}.{name}"
        for kind in kinds
        if kind.__name__ not in ("LinearDiffusion",)
        for name, value in vars(kind).items()
        if callable(value) or isinstance(value, property | classmethod | staticmethod)
        if name not in ("__init__", "from_diffusion")
    }
    assert len(kinds) > 8 and not members


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("pyro_mdm")])
def test_what_others_import_is_exported(module: str) -> None:
    """By ``__all__``, which holds nothing that isn't there; so the seams are listed."""
    if module in ("pyro_mdm.__main__", "pyro_mdm.plots", "pyro_mdm.support"):
        return
    loaded = importlib.import_module(module)
    exported = set(loaded.__all__)
    assert not [name for name in exported if not hasattr(loaded, name)]
    names = {i.name for i in all_imports() if i.of == module}
    wanted = {name for name in names if name not in (None, "*", "__version__")}
    assert not wanted - exported


# -- the protocol of diffusions --------------------------------------------------------------------

FLAGS = {
    "context",
    "maps",
    "noise_depends_on_state",
    "transform",
}
"""What says of which kind a diffusion is."""
OF_ONE_KIND = {"aims", "base", "beta", "cells", "encode", "fraction", "path", "push", "rated"}
OF_ONE_KIND |= {"volatility"}
"""What only they read who are made for one kind: a score, a measurement, a figure."""


def of_diffusions(module: str) -> Iterator[tuple[int, str]]:
    """What a module reads of diffusions, by line: ``diffusion.name``, however it came by one."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            whose = ast.unparse(node.value).rpartition(".")[2]
            if whose == "diffusion":
                yield node.lineno, node.attr


OUTSIDE = [m for m in MODULES if not m.startswith("pyro_mdm.diffusions")]


def test_callers_seldom_ask_what_kind_a_diffusion_is() -> None:
    """They require what they need, call a method, or register a function by kind."""
    asked = [
        f"{module}:{line} {name}"
        for module in OUTSIDE
        for line, name in of_diffusions(module)
        if name in FLAGS | {"caps"}
    ]
    assert len(asked) <= 40, "\n".join(asked)


@pytest.mark.parametrize("module", OUTSIDE)
def test_what_callers_use_of_a_diffusion_is_declared(module: str) -> None:
    """By Diffusion, by Kernels for those in closed form, or by NonlinearDiffusion."""
    declared = {*dir(nn.Module()), *dir(Tensor), *OF_ONE_KIND}  # terms of bounds are tensors
    for kind in (Diffusion, Kernels, NonlinearDiffusion):
        for one in kind.__mro__[:-1]:
            if one.__module__.startswith("pyro_mdm."):
                declared |= {*vars(one), *vars(one).get("__annotations__", ())}
    undeclared = [f"{name}, line {n}" for n, name in of_diffusions(module) if name not in declared]
    assert not undeclared


# -- names of things -------------------------------------------------------------------------------

NO_NAMES = {"each", "found", "known", "of", "own", "part", "told"}
"""Words that do not say what a variable holds, or what a function returns."""
INTERFACE = {
    ("inference/compare.py", "CompareOptions", "part"),
    ("inference/folders/checkpoints.py", "Checkpoint.part", "part"),
    ("inference/folders/loading.py", "load_weights", "part"),
    ("inference/folders/metrics.py", "Metrics.log", "part"),
    ("inference/folders/metrics.py", "Metrics.record", "part"),
    ("inference/training/report.py", "draw_calibration", "part"),
    ("models/data.py", "DataSet.numbers", "part"),
    ("models/data.py", "DataSet.part", "part"),
    ("pyro_mdm/tables/columns/levels.py", "Boolean", "_known"),
    ("pyro_mdm/tables/columns/levels.py", "Categorical.__init__", "_known"),
    ("pyro_mdm/tables/columns/levels.py", "Ordinal.__init__", "_known"),
    ("pyro_mdm/tables/columns/levels.py", "_Levels", "_known"),
}
"""Public names of this kind that remain, by file and place, which callers may use, and attributes
of columns, which runs keep. The list only becomes shorter."""


def unnamed(source: str) -> list[tuple[str, str]]:
    """Places, each with a word of :data:`NO_NAMES` that names something there: a function, a class,
    a parameter, a local, or an attribute, public or private."""
    pairs = []

    def visit(node: ast.AST, place: tuple[str, ...]) -> None:
        for child in ast.iter_child_nodes(node):
            name, inside = "", place
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                name, inside = child.name, (*place, child.name)
            elif isinstance(child, ast.arg):
                name = child.arg
            elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
                name = child.id
            elif isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Store):
                name = child.attr
            elif isinstance(child, ast.ExceptHandler):
                name = child.name or ""
            if name.lstrip("_") in NO_NAMES:
                pairs.append((".".join(inside), name))
            visit(child, inside)

    visit(ast.parse(source), ())
    return pairs


def test_variables_are_named_for_what_they_hold() -> None:
    named = {
        (file, function, word)
        for path in MODULES.values()
        for file in [path.relative_to(ROOT).as_posix()]
        for function, word in unnamed(path.read_text(encoding="utf-8"))
    }
    assert not named - INTERFACE, "\n".join(map(": ".join, sorted(named - INTERFACE)))
    assert named >= INTERFACE, f"no longer there: {INTERFACE - named}"


# -- the rooms of programs -------------------------------------------------------------------------

INFERENCE = ("machine", "settings", "folders", "drawing", "measuring", "training", "posteriors")
INFERENCE += ("commands",)
"""The rooms of what programs share, from the ground up: one imports none that comes later."""
LONGEST = 150
"""The most lines of a program, which is a command line: what it does is in the rooms."""
IMPORTED_BY_USERS = ("table", "trust")
"""Modules beside the programs, which are named in Python: Table, and trust.trusting()."""


def room_of_programs(module: str) -> str:
    """The room, or the module itself if it is in none."""
    return module.partition(".")[2].partition(".")[0]


def test_programs_have_their_top_room_for_themselves() -> None:
    top = ROOT / "inference"
    modules = {path.stem for path in top.glob("*.py")}
    assert modules == {*COMMANDS, *IMPORTED_BY_USERS, "__init__"}
    assert {path.parent.name for path in top.glob("*/*.py")} == {*INFERENCE, *EXAMPLES}


@pytest.mark.parametrize("program", COMMANDS)
def test_a_program_is_a_command_line_alone(program: str) -> None:
    text = MODULES[f"inference.{program}"].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST


@pytest.mark.parametrize("room", INFERENCE)
def test_a_room_of_programs_says_in_a_line_what_it_is_for(room: str) -> None:
    (docstring,) = ast.parse(MODULES[f"inference.{room}"].read_text(encoding="utf-8")).body
    assert isinstance(docstring, ast.Expr) and docstring.lineno == docstring.end_lineno


def test_rooms_of_programs_import_no_program_and_run_one_way() -> None:
    """For types neither."""
    height = dict.fromkeys(("trust", *EXAMPLES), 0)
    height |= {room: k for k, room in enumerate(INFERENCE, 1)}
    wrong = [
        f"{i.by} imports {i.of}"
        for i in all_imports()
        if i.by.startswith("inference.") and room_of_programs(i.by) in height
        if i.of.partition(".")[0] == "inference"
        if height.get(room_of_programs(i.of), len(height)) > height[room_of_programs(i.by)]
    ]
    assert not wrong
