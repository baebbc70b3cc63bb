"""The evidence of measurements by particles: does its interval cover the exact value?

    python -m tests.benchmarks.evidence --summary docs/measured/data

Problems are drawn at random: mixtures of one to four Gaussians in two to eight dimensions with
their exact denoisers, near or far from each other, of which one or two random combinations are
observed with little or much noise. How uncertain extrapolation is was chosen on 200 others, drawn
in the same way.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from pyro_mdm import VPSDE, DiffusionModel
from pyro_mdm.measurements import Particles, condition_on_measurements, twisted_smc
from tests.benchmarks.documented import write
from tests.problems import ExactDenoiser, GaussianMixture, given_measurement

COMMAND = "python -m tests.benchmarks.evidence --summary docs/measured/data"


class Answer(NamedTuple):
    """What particles say of a problem, and what is true."""

    exact: float
    particles: Particles


def problem(seed: int) -> tuple[GaussianMixture, torch.Tensor, torch.Tensor, float]:
    """Data, H (m, d), obs (m,) and the variance of the noise."""
    g = torch.Generator().manual_seed(seed)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=g))

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    d, n, m = integer(2, 8), integer(1, 4), integer(1, 2)
    noise, apart = (float(torch.rand((), generator=g)) for _ in range(2))
    noise = 0.1 + 0.9 * noise
    A = normal(n, d, d) / math.sqrt(d)
    covariances = 0.3 * A @ A.mT + 0.05 * torch.eye(d, dtype=torch.float64)
    weights = torch.rand(n, generator=g, dtype=torch.float64) + 0.3
    data = GaussianMixture(weights, 2 * apart * normal(n, d), covariances)
    H = normal(m, d) / math.sqrt(d)
    return data, H, H @ data.sample(1, seed)[0] + noise * normal(m), noise**2


@torch.no_grad()
def answer(seed: int, particles: int, steps: int, repeats: int) -> Answer:
    """The evidence of a problem."""
    data, H, obs, variance = problem(seed)
    model = DiffusionModel(VPSDE(), ExactDenoiser(data))
    given = condition_on_measurements(model, H, obs, variance, data=data.sample(256, seed + 1))
    torch.manual_seed(seed)
    exact = given_measurement(data, H, obs, torch.tensor(variance).double().expand(len(obs)))[1]
    return Answer(float(exact), twisted_smc(given, particles, steps=steps, repeats=repeats))


def row(seed: int, options: argparse.Namespace) -> dict[str, float]:
    exact, particles = answer(seed, options.particles, options.steps, options.repeats)
    low, high = particles.interval
    chain, bound = particles.log_evidence, particles.lower_bound
    return {
        "off": particles.extrapolated.mean - exact,
        "of_chain": chain.mean - exact,
        "bound": bound.mean - exact,
        "covered": float(low <= exact <= high),
        "width": high - low,
    }


def root_mean_square(values: pd.Series) -> float:
    return math.sqrt((values**2).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--first_seed", type=int, default=1000)
    parser.add_argument("--particles", type=int, default=64)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=16)
    parser.add_argument("--summary", type=Path, help="folder of the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(options.first_seed, options.first_seed + options.problems)
    rows = pd.DataFrame([row(seed, options) for seed in seeds])
    n = len(rows)
    covered = float(rows.covered.mean())
    table = pd.DataFrame(
        [
            {
                "particles": f"{options.repeats} × {options.particles}, {options.steps} steps",
                "covered": covered,
                "covered_se": math.sqrt(covered * (1 - covered) / n),
                "width": float(rows.width.mean()),
                "rms": root_mean_square(rows.off),
                "rms_of_chain": root_mean_square(rows.of_chain),
                "bound": float(rows.bound.mean()),
                "bound_se": float(rows.bound.std() / math.sqrt(n)),
            }
        ]
    )
    print(table.to_string(index=False))
    if options.summary:
        notes = [
            f"{n} problems; covered is the share whose 95% interval contains the exact log "
            "p(obs), width that of the interval, rms the root mean square error of log p(obs), by "
            "extrapolation and of the chain, bound the lower bound − the exact value, in nats"
        ]
        file = options.summary / "measurements-intervals.csv"
        write(file, table, [COMMAND], f"{seeds[0]} to {seeds[-1]}", notes=notes)


if __name__ == "__main__":
    main()
