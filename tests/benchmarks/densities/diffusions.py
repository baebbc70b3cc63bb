"""Guides by diffusions, as methods: ``AutoMDM`` as a user calls it, with seconds and no settings.

auto_mdm, auto_mdm_shaped, auto_mdm_particles
             the starts of the guide, by their defaults: K = 1 (VPSDE), 16 steps
auto_mdm_2, auto_mdm_1_64, auto_mdm_2_64
             K = 2 (CLD), and K = 1 and 2 in 64 steps
"""

from __future__ import annotations

import functools
import time
from unittest import mock

import pyro

from pyro_mdm import AutoMDM
from pyro_mdm.automatic.weighing import Weighing
from pyro_mdm.diffusions import CLD, VPSDE, LinearDiffusion
from tests.benchmarks.densities.base import Draws, Fitted, Method, Target

__all__ = ["METHODS", "STARTS"]

DIFFUSIONS = {1: VPSDE, 2: CLD}


def auto_mdm(
    target: Target,
    seconds: float,
    seed: int,
    *,
    K: int = 1,
    steps: int = 16,
    start: str = "gaussian",
) -> Fitted:
    began = time.process_time()
    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    diffusion: LinearDiffusion = DIFFUSIONS[K]()
    guide = AutoMDM(target.program, diffusion, steps=steps, start=start)
    # other processes do not count, as they do not in the other methods
    with mock.patch("pyro_mdm.budgets.monotonic", time.process_time):
        guide.fit(seconds=seconds, progress=False)
    updates = sum(outcome.steps for outcome in guide.outcomes.values())

    def draw(n: int, seed: int) -> Draws:
        pyro.set_rng_seed(seed)
        return Draws(*Weighing(guide).weighted(n))

    return Fitted(draw, updates, time.process_time() - began)


STARTS: dict[str, Method] = {
    "auto_mdm": auto_mdm,
    "auto_mdm_shaped": functools.partial(auto_mdm, start="shaped"),
    "auto_mdm_particles": functools.partial(auto_mdm, start="particles"),
}
METHODS: dict[str, Method] = {
    **STARTS,
    "auto_mdm_2": functools.partial(auto_mdm, K=2),
    **{f"auto_mdm_{K}_64": functools.partial(auto_mdm, K=K, steps=64) for K in (1, 2)},
}
