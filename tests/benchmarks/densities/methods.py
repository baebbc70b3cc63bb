"""Methods of the study of automatic guides by name: ours, and those that a user can import."""

from __future__ import annotations

from tests.benchmarks.densities import baselines, diffusions
from tests.benchmarks.densities.base import Method

__all__ = ["BESIDE", "GUIDES", "IMPORTABLE", "METHODS"]

GUIDES = ("annealing_1", "shaped_1", "reversal_1")
"""Ours that are compared with others: the starts of the library's guide."""
BESIDE = ("smc",)
"""Particles, which are no guide."""
IMPORTABLE = tuple(name for name in baselines.METHODS if name not in BESIDE)
"""What a user of Pyro has."""
METHODS: dict[str, Method] = {**diffusions.METHODS, **baselines.METHODS}
