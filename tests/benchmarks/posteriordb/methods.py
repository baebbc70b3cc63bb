"""Methods that are compared on posteriordb: AutoMDM with its defaults, and those of the study.

auto_mdm    see densities/diffusions.py
pathfinder  see pathfinder.py
others      see densities/baselines.py
"""

from __future__ import annotations

from tests.benchmarks.densities import baselines, diffusions
from tests.benchmarks.densities.base import Method
from tests.benchmarks.posteriordb.pathfinder import pathfinder

__all__ = ["METHODS"]

METHODS: dict[str, Method] = {
    "auto_mdm": diffusions.auto_mdm,
    **baselines.METHODS,
    "pathfinder": pathfinder,
}
