"""Laplace's approximation of a target, and log Z by importance weights around it.

In double precision and with scipy's BFGS, so that nothing of it is the library's.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from tests.benchmarks.densities.base import Target
from tests.benchmarks.densities.references import Students, fitted, mean_of, systematic, weighted

__all__ = ["evidence", "laplace"]

FLAT = 1e-4
"""The least curvature of a direction: a deviation of 100."""
REFITS = 3
"""How often the Student laws are fitted to weighted draws of those before."""


def laplace(target: Target, start: Tensor, is_over: Callable[[], bool] = lambda: False) -> Students:
    """A Student law at a mode of a target, whose scale is of the inverse curvature there.

    Args:
        target: the target; its density takes float64.
        start: the latents from which BFGS climbs, (dim,).
        is_over: whether it ends, asked at each of its steps.
    """

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        row = torch.from_numpy(x).requires_grad_()
        value = -target.log_density(row[None])[0].double()
        (slope,) = torch.autograd.grad(value, row)
        if not (value.isfinite() and slope.isfinite().all()):
            return 1e10, np.zeros_like(x)
        return float(value.detach()), slope.numpy()

    def after_step(intermediate_result: object) -> None:
        if is_over():
            raise StopIteration

    first = start.double().numpy()
    found = minimize(loss, first, jac=True, method="BFGS", callback=after_step)
    mode = torch.from_numpy(found.x)
    curvature = torch.autograd.functional.hessian(lambda x: -target.log_density(x[None])[0], mode)
    values, axes = torch.linalg.eigh(curvature)
    covariance = (axes / values.clamp_min(FLAT)) @ axes.mT
    factor = torch.linalg.cholesky((covariance + covariance.mT) / 2)
    return Students(mode[None].float(), factor[None].float())


def evidence(
    target: Target, starts: Tensor, draws: int = 20_000, runs: int = 4, seed: int = 0
) -> tuple[float, float]:
    """log Z and its standard error, by weights of Student laws fitted to the target.

    Args:
        target: the target, with ``modes`` where it has several.
        starts: latents near each of its modes, (modes, dim).
        draws: number of draws of a run.
        runs: number of runs, two at least.
        seed: seed of all draws.
    """
    generator = torch.Generator().manual_seed(seed)
    laws = [laplace(target, start) for start in starts]
    law = Students(*(torch.cat(tensors) for tensors in zip(*laws, strict=True)))
    for _ in range(REFITS):
        x, log_weights = weighted(target, law, draws, generator)
        law = fitted(x[systematic(log_weights.softmax(0), generator)], target)
    log_z = [weighted(target, law, draws, generator)[1].double() for _ in range(runs)]
    return mean_of(torch.stack(log_z).logsumexp(1).sub(math.log(draws)).numpy())
