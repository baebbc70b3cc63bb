"""Checks of how others' samplers are called, where what they do is known.

    data/inverse_problems/bin/python -m tests.benchmarks.inverse_problems.checks

Data are Gaussian. Moment matching with as many iterations as observations is exact for them, and
so is TMPD of one observation. So is TDS where the variances are 1, but its particles, which are
drawn anew in every step, have few ancestors. Other methods agree with precise observations. Prints
what is measured beside what is allowed, and fails where it is more.
"""

from __future__ import annotations

import sys
import warnings

import torch
from torch import Tensor

from pyro_mdm.measurements import Matrix
from tests.benchmarks.inverse_problems.methods import (
    OF_PEERS,
    Method,
    azula,
    mmps,
    tds,
)
from tests.benchmarks.inverse_problems.problems import ENDS, InverseProblem, MixtureDenoiser
from tests.benchmarks.inverse_problems.scores import Reference
from tests.problems import GaussianMixture, correlated, fixed, given_measurement

D, DRAWS, STEPS = 4, 2_000, 400


def independent() -> GaussianMixture:
    """Independent dimensions of variance 1."""
    return GaussianMixture([1.0], torch.zeros(1, D), torch.eye(D)[None])


def measured(data: GaussianMixture, H: Tensor, noise: float) -> InverseProblem:
    obs = H @ data.sample(1, 3)[0] + noise * fixed(5, len(H))
    return InverseProblem(MixtureDenoiser(data), Matrix(H), obs[None], noise, **ENDS)


def energy(
    method: Method, data: GaussianMixture, H: Tensor, noise: float, steps: int = STEPS
) -> float:
    """In units of that of exact draws."""
    problem = measured(data, H, noise)
    variance = torch.tensor(noise**2, dtype=torch.float64)
    law, _ = given_measurement(data, H, problem.obs[0], variance)
    reference = Reference(law.sample(10_000, 1))
    x = method(problem, steps, DRAWS).x[:, 0]
    return reference.energy(x) / reference.floor(DRAWS)


def residual(method: Method, noise: float) -> float:
    """The root mean square of H x - obs, in units of the deviation of H x without obs."""
    data, H = correlated(), fixed(7, 2, D)
    problem = measured(data, H, noise)
    rest = method(problem, STEPS, DRAWS).x[:, 0] @ H.mT - problem.obs
    spread = (H @ data.covariance @ H.mT).diagonal().sqrt()
    return float((rest / spread).square().mean().sqrt())


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    two, one = fixed(7, 2, D), fixed(7, 1, D)
    known = {
        "MMPS, energy": (energy(mmps(2), correlated(), two, 0.3), 3.0),
        "MMPS, DDIM, energy": (energy(mmps(2, "DDIMSampler"), correlated(), two, 0.3), 3.0),
        "TMPD, energy": (energy(OF_PEERS["azula, TMPD"], correlated(), one, 0.3), 3.0),
        "TDS, energy": (energy(azula(tds, one_datum=True), independent(), two, 0.5, 30), 30.0),
    }
    for name in ("azula, PGDM", "azula, DiffPIR", "azula, DPS, ζ = 0.1", "deepinv, DDRM"):
        known[f"{name}, residual"] = residual(OF_PEERS[name], 0.02), 0.2
    for name, (value, allowed) in known.items():
        print(f"{name:28s} {value:.3f}, at most {allowed}")
    sys.exit(any(value > allowed for value, allowed in known.values()))


if __name__ == "__main__":
    main()
