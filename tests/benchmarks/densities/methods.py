"""Methods of the study of automatic guides by name: ours, and those that a user can import."""

from __future__ import annotations

from tests.benchmarks.densities import baselines, diffusions
from tests.benchmarks.densities.base import Method

__all__ = ["IMPORTABLE", "METHODS", "OURS"]

OURS = diffusions.METHODS
IMPORTABLE = {name: method for name, method in baselines.METHODS.items() if name != "smc"}
"""What a user of Pyro has; particles are beside."""
METHODS: dict[str, Method] = {**OURS, **baselines.METHODS}
