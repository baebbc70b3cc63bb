"""Wings of the library, which import its core and are never imported by it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["WINGS", "load_wing"]

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
