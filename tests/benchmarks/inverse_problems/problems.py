"""Inverse problems whose posteriors are known: mixtures of Gaussians with their exact denoisers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mdm import Denoiser
from pyro_mdm.measurements import LinearOperator, Matrix
from pyro_mdm.scores.denoiser import DenoiserScore
from tests.problems import GaussianMixture, Silent, fixed, given_measurement

__all__ = [
    "ENDS",
    "NOISES",
    "OPERATORS",
    "SIZES",
    "Exact",
    "InverseProblem",
    "MixtureDenoiser",
    "exact_problem",
    "mixture",
]

SIZES = (2, 8, 32)
NOISES = {"easy": 0.5, "hard": 0.05}
"""Standard deviations of the noise, beside a standard deviation of the data of about 1."""
ENDS: dict[str, Any] = {"max_log_snr": 9.0, "min_log_snr": -9.0}


class MixtureDenoiser(Denoiser):
    """E[x | z] of a Gaussian mixture, by its eigenvectors, with derivatives."""

    def __init__(self, problem: GaussianMixture) -> None:
        d = len(problem.mean)
        super().__init__(Silent(d), problem.mean, problem.covariance.diagonal())
        self.problem = problem

    def x_hat(self, z: Tensor, log_snr: Any) -> Tensor:
        return self.problem.x_hat(z, log_snr)


class InverseProblem(NamedTuple):
    """A denoiser, and what was measured of k data: obs = H x + noise."""

    score: DenoiserScore
    operator: LinearOperator
    obs: Tensor  # (k, m), flattened
    noise: float  # standard deviation
    max_log_snr: float
    min_log_snr: float


class Exact(NamedTuple):
    """An inverse problem of one datum with a known answer."""

    problem: InverseProblem
    posterior: GaussianMixture
    log_evidence: float


def mixture(d: int, seed: int) -> GaussianMixture:
    """Four Gaussians whose dimensions depend on each other."""
    means = fixed(10 * seed + 1, 4, d)
    A = fixed(10 * seed + 2, 4, d, d)
    covariances = 0.3 * A @ A.mT / d + 0.02 * torch.eye(d, dtype=torch.float64)
    return GaussianMixture([0.4, 0.3, 0.2, 0.1], means, covariances)


def combinations(data: GaussianMixture, seed: int) -> Tensor:
    """Three random combinations for every eight dimensions, at least one."""
    d = len(data.mean)
    return _hardly_told(fixed(10 * seed + 3, max(1, 3 * d // 8), d), data)


def dependent(data: GaussianMixture, seed: int) -> Tensor:
    """As many combinations as half of the dimensions, at least two, of half their rank."""
    d = len(data.mean)
    m = max(2, d // 2)
    rows = fixed(10 * seed + 4, m, m // 2) @ fixed(10 * seed + 5, m // 2, d)
    return _hardly_told(rows / math.sqrt(m // 2), data)


def _hardly_told(rows: Tensor, data: GaussianMixture) -> Tensor:
    """Combinations (m, d) of which a fifth of what tells the components' means apart is left."""
    between = data.means - data.means[0]
    return (rows - 0.8 * rows @ torch.linalg.pinv(between) @ between) / math.sqrt(rows.shape[1])


def blur(data: GaussianMixture, seed: int) -> Tensor:
    """Averages of neighbours, by a Gaussian of width 1."""
    i = torch.arange(len(data.mean), dtype=torch.float64)
    weights = torch.exp(-0.5 * (i - i[:, None]).square())
    return weights / weights.sum(1, keepdim=True)


OPERATORS: dict[str, Callable[[GaussianMixture, int], Tensor]] = {
    "combinations": combinations,
    "dependent": dependent,
    "blur": blur,
}


def exact_problem(d: int, noise: str, operator: str, seed: int) -> Exact:
    """A datum of a mixture of its own for each seed, and a measurement of it."""
    data, deviation = mixture(d, seed), NOISES[noise]
    H = OPERATORS[operator](data, seed)
    x = data.sample(1, seed)[0]
    obs = H @ x + deviation * fixed(10 * seed + 7, len(H))
    variance = torch.tensor(deviation**2, dtype=torch.float64)
    posterior, evidence = given_measurement(data, H, obs, variance)
    problem = InverseProblem(MixtureDenoiser(data), Matrix(H), obs[None], deviation, **ENDS)
    return Exact(problem, posterior, float(evidence))
