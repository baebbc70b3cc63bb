"""Pathfinder of blackjax as a method, in an environment of its own beside ours."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.benchmarks import environments
from tests.benchmarks.densities.base import Draws, Fitted, Target
from tests.benchmarks.densities.baselines import Clock, prior_draws, weigh

__all__ = ["pathfinder"]

ENVIRONMENT = Path("runs/blackjax")
PACKAGES = ("blackjax==1.7.1",)
PATHS, MOST_STEPS, OF_STEP = 4, 200, 25
"""Paths, each from a draw of the prior; their steps at most; draws by which a step is chosen."""


def borrowed() -> tuple[Any, Any]:
    """The modules jax and blackjax of the environment, which is made if it is not there."""
    environments.install(ENVIRONMENT, PACKAGES)
    sys.path += [str(path) for path in ENVIRONMENT.glob("lib/python*/site-packages")]
    import blackjax
    import jax

    jax.config.update("jax_enable_x64", True)
    return jax, blackjax


def as_jax(target: Target, jax: Any) -> Any:
    """The log density of a target as a function of jax, with its gradient."""

    def both(x: Any) -> tuple[np.ndarray, np.ndarray]:
        shape = np.shape(x)
        rows = torch.tensor(np.array(x)).reshape(-1, target.dim).requires_grad_()
        value = target.log_density(rows)
        (slope,) = torch.autograd.grad(value.sum(), rows)
        value = value.detach().nan_to_num(nan=-torch.inf)
        return value.reshape(shape[:-1]).numpy(), slope.reshape(shape).nan_to_num().numpy()

    def called(x: Any) -> Any:
        of = (jax.ShapeDtypeStruct((), "float64"), jax.ShapeDtypeStruct((target.dim,), "float64"))
        return jax.pure_callback(both, of, x, vmap_method="broadcast_all")

    log_density = jax.custom_vjp(lambda x: called(x)[0])
    log_density.defvjp(called, lambda slope, up: (up * slope,))
    return log_density


def pathfinder(target: Target, seconds: float, seed: int) -> Fitted:
    """As many draws of each path, with weights by its Gaussian; it takes the time that it takes."""
    jax, blackjax = borrowed()
    clock = Clock(seconds)
    starts = prior_draws(target, PATHS, seed)
    log_density = as_jax(target, jax)
    keys = jax.random.split(jax.random.key(seed), PATHS)
    states = [
        blackjax.vi.pathfinder.approximate(
            key, log_density, start.double().numpy(), OF_STEP, maxiter=MOST_STEPS
        )[0]
        for key, start in zip(keys, starts, strict=True)
    ]

    def draw(n: int, seed: int) -> Draws:
        by_path = zip(jax.random.split(jax.random.key(seed), PATHS), states, strict=True)

        def sample(size: int) -> tuple[Tensor, Tensor]:
            x, log_q = blackjax.vi.pathfinder.sample(*next(by_path), size)
            return torch.tensor(np.array(x)), torch.tensor(np.array(log_q))

        return weigh(target, sample, n, seed, n // PATHS)

    return Fitted(draw, PATHS, clock.spent)
