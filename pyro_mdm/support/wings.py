"""Wings of the library, which import its core and are never imported by it.

Names of wings that were names of the core once are found there still; the wing is loaded at the
first use of one of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

__all__ = ["WINGS", "former_names", "load_wing"]

WINGS = (
    "automatic",
    "conditioning",
    "imported",
    "measurements",
    "posteriors",
    "seeing",
    "simulated",
    "tables",
    "varying",
)
"""Packages of wings, but for ``plots``, which has no models and needs matplotlib."""


def load_wing(wing: str) -> Any:
    """The package ``pyro_mdm.<wing>``, loaded with its registrations."""
    return import_module(f"pyro_mdm.{wing}")


def former_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` (PEP 562) of a module of the core, for names of wings
    that were among its names; ``pyro_mdm.public.FORMER`` lists them.

    Args:
        package: ``__name__`` of the module.
    """

    def get(name: str) -> Any:
        wings = {} if name.startswith("_") else _former(package)
        if name not in wings:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(load_wing(wings[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *_former(package)})

    return get, listed


def _former(package: str) -> dict[str, str]:
    """The wings of the former names of a module, by name."""
    wings = import_module("pyro_mdm.public").FORMER[package.removeprefix("pyro_mdm.")]
    return {name: wing for wing, names in wings.items() for name in names}
