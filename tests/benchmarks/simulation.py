"""The errors of a simulated bound: the bias of the step, and the spread of its estimators.

    python -m tests.benchmarks.simulation

The bound of a Gaussian model under a linear diffusion is known in closed form. Here the diffusion
is simulated as if it were not. Data are 8 points of the plane; nats per datum. The score is wrong
on purpose, -0.8 y: with the exact one some errors would vanish.
"""

from __future__ import annotations

import argparse
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


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Of independent values."""
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paths", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    data = torch.randn(8, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = data.repeat(options.paths // 8, 1)

    print("bias: simulated bound − closed form, nats ± standard error")
    steps = (16, 32, 64, 128)
    print(f"{'':36}" + "".join(f"{f'step 1/{n}':>20}" for n in steps))
    for name, make in DIFFUSIONS.items():
        diffusion = make()
        exact = closed_form(diffusion, data).repeat(options.paths // 8)
        for solver, objective in (("srk", "ism"), ("srk", "local_dsm"), ("euler", "ism")):
            cells = []
            for n in steps:
                settings = Simulation(1 / n, 16, solver, objective=objective)  # type: ignore[arg-type]
                found, _ = estimate(diffusion, settings, x, options.seed)
                mean, error = mean_and_error(exact - found)
                cells.append(f"{f'{mean:+.3f} ± {error:.3f}':>20}")
            print(f"{name:16}{solver:>8}{objective:>12}" + "".join(cells), flush=True)

    print(
        "\nspread: standard deviation of one path's estimate for a datum, nats, its part by probes"
    )
    for name, make in DIFFUSIONS.items():
        diffusion = make()
        for settings in (
            Simulation(1 / 32, points=1),
            Simulation(1 / 32, points=4),
            Simulation(1 / 32, points=16),
            Simulation(1 / 32, points=4, probes=2),
            Simulation(1 / 32, points=4, probes=2, probe_law="gaussian"),
            Simulation(1 / 32, points=4, probes=8, probe_law="gaussian"),
            Simulation(1 / 32, points=4, objective="local_dsm"),
        ):
            began = time.perf_counter()
            values, found = estimate(diffusion, settings, x, options.seed)
            seconds = time.perf_counter() - began
            within = values.reshape(-1, 8).var(0).mean().sqrt()
            probes = found.probe_variance.mean().sqrt()
            what = f"{settings.objective}, {settings.points} points"
            if settings.objective == "ism":
                law = "" if settings.probes in (None, "exact") else f" {settings.probe_law}"
                what += f", probes {settings.probes or 'exact'}{law}"
            print(f"{name:16}{what:44}{within:10.2f}{probes:10.2f}{seconds:10.2f} s", flush=True)


if __name__ == "__main__":
    main()
