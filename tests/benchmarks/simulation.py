"""The errors of a simulated bound: the bias of the step, and the spread of its estimators.

    python -m tests.benchmarks.simulation --tables docs/measured/data

The bound of a Gaussian model under a linear diffusion is known in closed form. Here the diffusion
is simulated as if it were not. Data are 8 points of the plane; nats per datum. The score is wrong
on purpose, -0.8 y: with the exact one some errors would vanish.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_mdm import CLD, VPSDE, LinearDiffusion, Simulated, Simulation, randomness
from pyro_mdm.diffusions.clocks import ConstantBeta, log_snr_times
from pyro_mdm.paths.base import prior_kl
from pyro_mdm.simulated.path_integral import PathIntegral, path_integral
from pyro_mdm.simulated.paths import SimulatedPath
from tests.benchmarks.frame import Options, Row, Study, main
from tests.problems import learned

DIFFUSIONS: dict[str, Callable[[], LinearDiffusion]] = {
    "VPSDE": lambda: VPSDE(beta=ConstantBeta(6.0), max_log_snr=7.0),
    "CLD": lambda: CLD(beta=ConstantBeta(5.0), max_log_snr=7.0),
    "learned K = 3": lambda: learned(3, 3, 60, beta=ConstantBeta(5.0), max_log_snr=7.0),
}


def score(y: Tensor, s: Tensor) -> Tensor:
    """-0.8 y."""
    return -0.8 * y


@torch.no_grad()
def closed_form(diffusion: LinearDiffusion, x: Tensor, num_times: int = 20_000) -> Tensor:
    """KL of the path laws for :func:`score`, (n,), by quadrature over s of exact expectations."""
    s = log_snr_times(diffusion, num_times)
    marginal, g2 = diffusion.marginal(s), diffusion.noise_covariance(s)
    slope = torch.linalg.inv(marginal.covariance)
    slope = slope - 0.8 * torch.eye(slope.shape[-1], dtype=torch.float64)
    spread = (g2 @ slope @ marginal.covariance @ slope.mT).diagonal(dim1=-2, dim2=-1).sum(-1)
    mean = -0.8 * marginal.mean
    along = torch.einsum("ni,nij,nj->n", mean, g2, mean)
    values = 0.5 * (x.shape[1] * spread[:, None] + along[:, None] * x.square().sum(1))
    return prior_kl(diffusion, x, 1) + torch.trapezoid(values, s[:, None], dim=0)


@torch.no_grad()
def estimate(
    diffusion: LinearDiffusion, settings: Simulation, x: Tensor, seed: int
) -> tuple[Tensor, PathIntegral]:
    """The same, one draw per datum, simulated."""
    simulated = Simulated(diffusion, settings)
    with randomness.piece(0, 1, seed):
        law = SimulatedPath(simulated, x)
        path = law.rsample()
        y = path.squeeze(1)
        found = path_integral(simulated, score, y, settings)
        return law.log_prob(path) - simulated.prior.log_prob(y) + found.value, found


def data(options: Options) -> tuple[Tensor, int]:
    """Eight points of the plane, and how many paths of each."""
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, 20 if options.small else 2_500


def bias(job: Row, options: Options) -> Row:
    """The simulated bound less that in closed form."""
    diffusion, (x, paths) = DIFFUSIONS[job["diffusion"]](), data(options)
    objective = {"ISM": "ism", "local DSM": "local_dsm"}[job["estimator"]]
    step = 1 / job["steps_per_unit"]
    settings = Simulation(step, 16, job["solver"], objective=objective)  # type: ignore[arg-type]
    found, _ = estimate(diffusion, settings, x.repeat(paths, 1), job["seed"])
    less = closed_form(diffusion, x).repeat(paths) - found
    error = float(less.std()) / math.sqrt(len(less))
    return {"less_closed_form": float(less.mean()), "less_closed_form_se": error}


PATHS: dict[tuple[int, str], Simulation] = {
    (1, "exact"): Simulation(1 / 32, points=1),
    (4, "exact"): Simulation(1 / 32, points=4),
    (16, "exact"): Simulation(1 / 32, points=16),
    (4, "2 Gaussian probes"): Simulation(1 / 32, points=4, probes=2, probe_law="gaussian"),
    (4, "8 Gaussian probes"): Simulation(1 / 32, points=4, probes=8, probe_law="gaussian"),
    (4, "2 Rademacher probes"): Simulation(1 / 32, points=4, probes=2),
    (4, "local DSM"): Simulation(1 / 32, points=4, objective="local_dsm"),
}


def spread(job: Row, options: Options) -> Row:
    """The standard deviation of one path's estimate for a datum under CLD, and probes' part."""
    settings = PATHS[job["points"], job["divergence"]]
    x, paths = data(options)
    began = time.perf_counter()
    values, found = estimate(DIFFUSIONS["CLD"](), settings, x.repeat(paths, 1), job["seed"])
    seconds = time.perf_counter() - began
    deviation = float(values.reshape(-1, 8).var(0).mean().sqrt())
    probes = float(found.probe_variance.mean().sqrt())
    return {"standard_deviation": deviation, "part_of_probes": probes, "seconds": seconds}


SOLVERS = (("srk", "ISM"), ("srk", "local DSM"), ("euler", "ISM"))
STUDIES = {
    "simulation-bias": Study(
        bias,
        [
            {"diffusion": name, "solver": solver, "estimator": estimator, "steps_per_unit": n}
            for name in DIFFUSIONS
            for solver, estimator in SOLVERS
            for n in (16, 32, 64, 128)
        ],
        unit="nats",
        notes=["Simulated bound − closed form, 20,000 paths", "± is the standard error over paths"],
    ),
    "simulation-spread": Study(
        spread,
        [{"points": points, "divergence": divergence} for points, divergence in PATHS],
        unit="nats",
        notes=["The estimate of one path for CLD, steps of 1/32; the time is for all paths"],
    ),
}

if __name__ == "__main__":
    main("simulation", __doc__, STUDIES)
