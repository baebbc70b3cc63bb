"""Methods that are compared on posteriordb: AutoMDM as a user calls it, a Gaussian, and NUTS."""

from __future__ import annotations

import pyro

from pyro_mdm import AutoMDM
from tests.benchmarks.densities import baselines
from tests.benchmarks.densities.base import Draws, Fitted, Method, Target

__all__ = ["METHODS"]


def auto_mdm(target: Target, seconds: float, seed: int) -> Fitted:
    """The guide with its defaults, for so many seconds by the clock."""
    clock = baselines.Clock(seconds)
    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    guide = AutoMDM(target.program)
    guide.fit(seconds=seconds, progress=False)

    def draw(n: int, seed: int) -> Draws:
        pyro.set_rng_seed(seed)
        x, log_weights = guide.weighted(n)
        return Draws(x, log_weights)

    return Fitted(draw, 0, clock.spent)


METHODS: dict[str, Method] = {
    "auto_mdm": auto_mdm,
    "auto_multivariate_normal": baselines.METHODS["auto_multivariate_normal"],
    "nuts": baselines.METHODS["nuts"],
}
