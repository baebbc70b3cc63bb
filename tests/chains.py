"""Laws of the data of ancestral chains of few steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_mdm.diffusions.matrices import apply_matrix, outer
from pyro_mdm.diffusions.posterior import posterior
from pyro_mdm.samplers import Ancestral
from tests.problems import D, GaussianMixture


def affine(function: Callable[[Tensor], Tensor], n: int) -> tuple[Tensor, Tensor]:
    """Matrix and offset of an affine function of (batch, n)."""
    offset = function(torch.zeros(1, n, dtype=torch.float64))
    return (function(torch.eye(n, dtype=torch.float64)) - offset).mT, offset[0]


def chain_law(model: Any, steps: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the data of an ancestral chain whose denoiser is affine."""
    diffusion, K = model.diffusion, model.diffusion.num_variables
    times = Ancestral(steps).times(diffusion)
    kernels = posterior(diffusion, times[:-1], times[1:])
    eye = torch.eye(D, dtype=torch.float64)
    mean = torch.zeros(K * D, dtype=torch.float64)
    covariance = torch.kron(diffusion.prior_covariance, eye)
    for i in range(steps):
        kernel = kernels.at(i)

        def moved(y: Tensor, kernel: Any = kernel, s: Tensor = times[i]) -> Tensor:
            y = y.reshape(-1, K, D)
            x = model.score_function.denoise(diffusion, y, s)
            return (apply_matrix(kernel.gain, y) + outer(kernel.mean_coefficient, x)).flatten(1)

        A, b = affine(moved, K * D)
        mean = A @ mean + b
        covariance = A @ covariance @ A.mT + torch.kron(kernel.covariance, eye)

    def decoded(y: Tensor) -> Tensor:
        law: Any = model.likelihood(diffusion, model.score_function, y.reshape(-1, K, D), 1)
        return law.mean

    A, b = affine(decoded, K * D)
    law: Any = model.likelihood(diffusion, model.score_function, torch.zeros(1, K, D).double(), 1)
    return A @ mean + b, A @ covariance @ A.mT + law.variance[0].diag()


@torch.no_grad()
def chain_problem(model: Any, steps: int) -> GaussianMixture:
    """The Gaussian distribution of the data of such a chain."""
    mean, covariance = chain_law(model, steps)
    return GaussianMixture([1.0], mean[None], covariance[None])
