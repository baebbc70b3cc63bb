"""The library without a wing, or without all of them, and the quick tests of what is left.

    python -m tests.without tables
    python -m tests.without all --at-most 0.15

Options go on to pytest. A wing goes with those that need it. Every module that is left is imported,
and the tests of the core and of the rooms that are left run. An import of a hidden wing fails,
unless it is one of ``USES``: the test is skipped then, as are those that use what tests themselves
import of a hidden wing. No file of the core's tests may be skipped as a whole.
"""

from __future__ import annotations

import builtins
import importlib.metadata
import os
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.metadata import EntryPoints
from importlib.util import resolve_name
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).parents[1]
NEEDS: dict[str, tuple[str, ...]] = {
    "automatic": (),
    "auxiliary": (),
    "by_dimension": (),
    "conditioning": ("levels",),
    "imported": (),
    "levels": (),
    "measurements": ("conditioning", "levels"),
    "plots": (),
    "posteriors": ("conditioning",),
    "seeing": ("by_dimension",),
    "simulated": (),
    "tables": ("conditioning", "levels"),
    "varying": (),
}
"""Wings of the library, with those that each needs."""
USES = {("plots", "simulated"), ("posteriors", "tables"), ("tables", "plots")}
"""Who uses another wing for some of its calls."""
PASSED_ON = (Path(__file__), ROOT / "pyro_mdm" / "__init__.py")
"""Files that ask for a module in another's name."""
REAL_IMPORT = builtins.__import__
HIDDEN = "PYRO_MDM_WITHOUT"
"""The variable with the names of hidden wings, for the processes of a run of tests."""


def with_dependants(wing: str) -> set[str]:
    """A wing and all that need it."""
    wings = {wing}
    while more := {name for name, needs in NEEDS.items() if wings & {*needs}} - wings:
        wings |= more
    return wings


def _hidden() -> set[str]:
    return {*os.environ.get(HIDDEN, "").split()}


def _wing(module: str) -> str | None:
    """The hidden wing that a module is of."""
    parts = module.split(".")
    return parts[1] if parts[0] == "pyro_mdm" and len(parts) > 1 and parts[1] in _hidden() else None


def _skip(wing: str) -> NoReturn:
    pytest.skip(f"without {wing}", allow_module_level=True)


class _Absent(type):
    """A name of a hidden wing that a test has imported: whoever uses it is skipped."""

    wing: str

    def __call__(cls, *args: object, **kwargs: object) -> Any:
        _skip(cls.wing)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        _skip(cls.wing)

    def __instancecheck__(cls, instance: object) -> bool:
        _skip(cls.wing)


class _Names(SimpleNamespace):
    """What a module has, but for names that are hidden."""

    def __init__(self, module: object | None, wings: dict[str, str]) -> None:
        self.module, self.wings = module, wings

    def __getattr__(self, name: str) -> object:
        if name in self.wings:
            return _Absent(name, (), {"wing": self.wings[name]})
        return getattr(self.module, name)


class _Hide(MetaPathFinder):
    """Finds no module of a hidden wing, and asks who asks for it."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        wing = _wing(fullname)
        if wing is None:
            return
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            asks = Path(frame.f_code.co_filename)
            if asks not in PASSED_ON and asks.is_relative_to(ROOT / "tests"):
                _skip(wing)
            if asks not in PASSED_ON and asks.is_relative_to(ROOT / "pyro_mdm"):
                if (asks.relative_to(ROOT).parts[1], wing) in USES:
                    _skip(wing)
                break
            frame = frame.f_back
        raise ModuleNotFoundError(f"{fullname} is hidden", name=fullname)


def _public_wings() -> dict[str, str]:
    """Hidden wings by the public name of the library that is in one."""
    text = (ROOT / "pyro_mdm" / "__init__.pyi").read_text("utf-8")
    wings, wing = {}, None
    for line in text.splitlines():
        if line.startswith("from ."):
            wing = _wing("pyro_mdm" + line.split()[1])
        if wing and " as " in line:
            wings[line.replace(",", " ").split()[-1]] = wing
    return wings


def pytest_configure(config: pytest.Config) -> None:
    """Hide the wings, and import what is left."""
    if not _hidden():
        return
    real_entry_points = importlib.metadata.entry_points
    sys.meta_path.insert(0, _Hide())

    def entry_points(**params: Any) -> Any:
        points = real_entry_points(**params)
        return EntryPoints(p for p in points if not _wing(p.module)) if params else points

    importlib.metadata.entry_points = entry_points
    library = import_module("pyro_mdm")
    for path in sorted((ROOT / "pyro_mdm").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if not _wing(module) and path.name != "__main__.py":
            import_module(module)
    public = _public_wings()

    def import_from(
        name: str,
        globals: dict[str, Any] | None = None,
        locals: object = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        by = Path((globals or {}).get("__file__") or "")
        if fromlist and by.is_relative_to(ROOT / "tests"):
            whole = resolve_name("." * level + name, (globals or {}).get("__package__", ""))
            if wing := _wing(whole):
                return _Names(None, dict.fromkeys(fromlist, wing))
            if whole == "pyro_mdm":
                submodules = {name: name for name in fromlist if name in _hidden()}
                return _Names(library, public | submodules)
        return REAL_IMPORT(name, globals, locals, fromlist, level)  # type: ignore[arg-type]

    builtins.__import__ = import_from  # type: ignore[assignment]


def pytest_collection_finish() -> None:
    """Imports within functions are as usual: compilers look into them."""
    builtins.__import__ = REAL_IMPORT


@pytest.hookimpl(tryfirst=True)
def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A file of the core's tests that is skipped as a whole tests nothing: an error."""
    if report.skipped and report.nodeid.startswith("tests/core/"):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} needs a hidden wing before any of its tests"


def _places(hidden: set[str]) -> Iterator[str]:
    yield "tests/core"
    if len(hidden) < len(NEEDS):
        yield from (f"tests/{wing}" for wing in NEEDS if wing not in hidden)


def main(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] not in (*NEEDS, "all"):
        raise SystemExit(f"the wing is to be one of {', '.join(NEEDS)} or all: {arguments[:1]}")
    wing, *options = arguments
    hidden = {*NEEDS} if wing == "all" else with_dependants(wing)
    print(f"Without {', '.join(sorted(hidden))}")
    os.environ[HIDDEN] = " ".join(sorted(hidden))
    places = [place for place in _places(hidden) if any((ROOT / place).glob("test_*.py"))]
    return pytest.main(["-p", "tests.without", "-m", "not slow", "-q", *options, *places])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
