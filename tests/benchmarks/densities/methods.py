"""Methods of the study of automatic guides by name: ours, and those that a user can import."""

from __future__ import annotations

from tests.benchmarks.densities import baselines
from tests.benchmarks.densities.base import Method

__all__ = ["IMPORTABLE", "METHODS", "OURS"]

OURS: dict[str, Method] = {}
IMPORTABLE = baselines.METHODS
METHODS = {**OURS, **IMPORTABLE}
