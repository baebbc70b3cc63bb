"""Wings of the library, which import its core and are never imported by it.

A package of the core may list names of a wing among its own. The wing is loaded at the first use of
one of them, and then registers its functions for its kinds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

__all__ = ["WINGS", "load_wing", "names_of_wings"]

WINGS = (
    "automatic",
    "conditioning",
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


def names_of_wings(
    package: str, **names: Sequence[str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` (PEP 562) of a package with names of wings.

    Args:
        package: ``__name__`` of the package.
        names: the names, by wing.
    """
    wing_of = {name: wing for wing, of_wing in names.items() for name in of_wing}

    def get(name: str) -> Any:
        if name not in wing_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(load_wing(wing_of[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *wing_of})

    return get, listed
