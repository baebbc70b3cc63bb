"""Methods that are compared on posteriordb: AutoMDM as a user calls it, and those of the study."""

from __future__ import annotations

import time
from unittest import mock

import pyro

from pyro_mdm import AutoMDM
from tests.benchmarks.densities import baselines
from tests.benchmarks.densities.base import Draws, Fitted, Method, Target
from tests.benchmarks.posteriordb.pathfinder import pathfinder

__all__ = ["METHODS"]


def auto_mdm(target: Target, seconds: float, seed: int) -> Fitted:
    """The guide with its defaults, for so many seconds of the processor."""
    clock = baselines.Clock(seconds)
    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    guide = AutoMDM(target.program)
    # other processes do not count, as they do not in the other methods
    with mock.patch("pyro_mdm.budgets.monotonic", time.process_time):
        guide.fit(seconds=seconds, progress=False)
    updates = sum(outcome.steps for outcome in guide.outcomes.values())

    def draw(n: int, seed: int) -> Draws:
        pyro.set_rng_seed(seed)
        x, log_weights = guide.weighted(n)
        return Draws(x, log_weights)

    return Fitted(draw, updates, clock.spent)


IMPORTED = ("auto_multivariate_normal", "nuts", "auto_iaf_normal", "zuko_flow")
METHODS: dict[str, Method] = {
    "auto_mdm": auto_mdm,
    **{name: baselines.METHODS[name] for name in IMPORTED},
    "pathfinder": pathfinder,
}
