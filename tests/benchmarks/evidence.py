"""The evidence of measurements by particles: does its interval cover the exact value?

    python -m tests.benchmarks.evidence --tables docs/measured/data

Problems are drawn at random: mixtures of one to four Gaussians in two to eight dimensions with
their exact denoisers, near or far from each other, of which one or two random combinations are
observed with little or much noise. How uncertain extrapolation is was chosen on 200 others, drawn
in the same way.
"""

from __future__ import annotations

import math

import pandas as pd
import torch

from pyro_mdm import VPSDE, DiffusionModel
from pyro_mdm.measurements import condition_on_measurements, twisted_smc
from tests.benchmarks.frame import Options, Row, Study, main
from tests.problems import ExactDenoiser, GaussianMixture, given_measurement

FIRST, PARTICLES, STEPS, REPEATS = 1000, 64, 64, 16
"""The first seed, and the size of a run."""


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
def answer(job: Row, options: Options) -> Row:
    """The evidence of a problem by particles, less the exact one."""
    seed = FIRST + job["seed"]
    data, H, obs, variance = problem(seed)
    model = DiffusionModel(VPSDE(), ExactDenoiser(data))
    given = condition_on_measurements(model, H, obs, variance, data=data.sample(256, seed + 1))
    torch.manual_seed(seed)
    noise = torch.tensor(variance).double().expand(len(obs))
    exact = float(given_measurement(data, H, obs, noise)[1])
    found = twisted_smc(given, PARTICLES, steps=STEPS, repeats=REPEATS)
    low, high = found.interval
    return {
        "off": found.extrapolated.mean - exact,
        "of_chain": found.log_evidence.mean - exact,
        "bound": found.lower_bound.mean - exact,
        "covered": float(low <= exact <= high),
        "width": high - low,
    }


def over_problems(rows: pd.DataFrame) -> pd.DataFrame:
    n, covered = len(rows), float(rows.covered.mean())
    row = {
        "particles": f"{REPEATS} × {PARTICLES}, {STEPS} steps",
        "covered": covered,
        "covered_se": math.sqrt(covered * (1 - covered) / n),
        "width": rows.width.mean(),
        "rms": math.sqrt((rows.off**2).mean()),
        "rms_of_chain": math.sqrt((rows.of_chain**2).mean()),
        "bound": rows.bound.mean(),
        "bound_se": rows.bound.std() / math.sqrt(n),
    }
    return pd.DataFrame([row])


NOTE = (
    "200 problems; covered is the share whose 95% interval contains the exact log p(obs), width "
    "that of the interval, rms the root mean square error of log p(obs), by extrapolation and of "
    "the chain, bound the lower bound − the exact value, in nats"
)
STUDIES = {"measurements-intervals": Study(answer, table=over_problems, seeds=200, notes=[NOTE])}

if __name__ == "__main__":
    main("evidence", __doc__, STUDIES)
