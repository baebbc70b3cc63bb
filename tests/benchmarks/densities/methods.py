"""Methods of the study of automatic guides by name: ours, and those that a user can import."""

from __future__ import annotations

from tests.benchmarks.densities import baselines, diffusions
from tests.benchmarks.densities.base import Method

__all__ = ["GUIDES", "IMPORTABLE", "METHODS"]

GUIDES = tuple(diffusions.STARTS)
"""Ours that are compared with others."""
IMPORTABLE = tuple(baselines.METHODS)
"""What a user of Pyro has."""
METHODS: dict[str, Method] = {**diffusions.METHODS, **baselines.METHODS}
