"""Methods that are compared on posteriordb: AutoMDM as a user calls it, and those of the study.

auto_mdm          the guide with its defaults
auto_mdm_laplace  the guide, whose Gaussian is Laplace's approximation and is not trained: the
                  mode by L-BFGS, and the inverse of the Hessian there
pathfinder        see pathfinder.py
others            see densities/baselines.py
"""

from __future__ import annotations

import functools
import time
from unittest import mock

import pyro
import torch
from torch import Tensor

from pyro_mdm import AutoMDM
from tests.benchmarks.densities import baselines
from tests.benchmarks.densities.base import Draws, Fitted, Method, Target
from tests.benchmarks.posteriordb.pathfinder import pathfinder

__all__ = ["METHODS", "laplace_draws"]

OF_LAPLACE = 4_000
"""Draws by which a guide is told Laplace's approximation."""
FLATTEST = 1e-6
"""The least curvature of a mode, where there is none."""


def laplace_draws(target: Target, n: int, seed: int) -> Tensor:
    """Draws (n, dim) of Laplace's approximation, at the mode near the prior's median."""
    x = baselines.prior_draws(target, 200, seed).median(0).values.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [x], max_iter=500, history_size=20, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss(x: Tensor) -> Tensor:
        return -target.log_density(x[None])[0]

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(x)
        value.backward()
        return value

    optimizer.step(closure)
    curvature, axes = torch.linalg.eigh(torch.autograd.functional.hessian(loss, x.detach()))
    root = axes * curvature.clamp_min(FLATTEST).rsqrt()
    return x.detach() + torch.randn(n, target.dim).to(root) @ root.mT


def auto_mdm(target: Target, seconds: float, seed: int, laplace: bool = False) -> Fitted:
    clock = baselines.Clock(seconds)
    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    guide = AutoMDM(target.program)
    # other processes do not count, as they do not in the other methods
    with mock.patch("pyro_mdm.budgets.monotonic", time.process_time):
        if laplace:
            x = laplace_draws(target, OF_LAPLACE, seed)
            guide.set_up()
            with torch.no_grad():
                guide.become_gaussian(x)
            guide.fit(start_updates=0, seconds=clock.left, progress=False)
        else:
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
    "auto_mdm_laplace": functools.partial(auto_mdm, laplace=True),
    **{name: baselines.METHODS[name] for name in IMPORTED},
    "pathfinder": pathfinder,
}
