"""Replacement beside the exact answer: samples of half of the dimensions given the others.

    python -m tests.benchmarks.conditioning --tables docs/measured/data

Data are Gaussian or of two components, in four dimensions, with their exact denoisers, so that
errors are those of the method alone. Measured is a random half of the dimensions, with little
noise. Errors are root mean squares over the others of the mean, in posterior standard deviations,
and of the covariance, in those of both. As many exact samples have errors too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_mdm import CLD, VPSDE, DiffusionModel
from pyro_mdm.conditioning import Replacement
from pyro_mdm.measurements import Mask
from pyro_mdm.samplers import Ancestral
from tests.benchmarks.frame import Options, Row, Study, main
from tests.conditioning.test_conditioning import ENDS, D
from tests.problems import (
    ExactDenoiser,
    GaussianMixture,
    bimodal,
    correlated,
    fixed,
    given_measurement,
)

NOISE_VARIANCE, STEPS, SAMPLES = 0.01, 100, 1024
DATA = {"gaussian": correlated, "mixture": bimodal}
DIFFUSIONS: dict[str, Any] = {"vpsde": VPSDE, "cld": CLD}
REPEATS = {"exact samples": 0, "replacement": 1, "replacement, 5 repeats": 5}


def errors(law: GaussianMixture, x: Tensor) -> dict[str, float]:
    """Of mean and covariance of samples (n, d)."""
    spread = law.covariance.diagonal().sqrt()
    mean = (x.mean(0) - law.mean) / spread
    covariance = (x.T.cov() - law.covariance) / spread / spread[:, None]
    root = {"mean": mean.square().mean().sqrt(), "covariance": covariance.square().mean().sqrt()}
    return {name: float(value) for name, value in root.items()}


def of_problem(data: GaussianMixture, diffusion: Any, repeats: int, seed: int) -> dict[str, float]:
    """The errors of a method given a datum of its own for each seed."""
    seen = torch.zeros(D, dtype=torch.bool)
    seen[fixed(300 + seed, D).argsort()[: D // 2]] = True
    operator = Mask(seen)
    variance = torch.tensor(NOISE_VARIANCE, dtype=torch.float64)
    obs = operator(data.sample(1, seed)[0]) + variance.sqrt() * fixed(400 + seed, D // 2)
    law, _ = given_measurement(data, operator.matrix(), obs, variance)
    if repeats:
        sampler = Replacement(Ancestral(STEPS), seen, operator.adjoint(obs), repeats)
        torch.manual_seed(seed)
        x = DiffusionModel(diffusion, ExactDenoiser(data), sampler=sampler)(batch_size=SAMPLES)
    else:
        x = law.sample(SAMPLES, 1)
    free, weights = ~seen, law.log_weights.exp()
    others = GaussianMixture(weights, law.means[:, free], law.covariances[:, free][:, :, free])
    return errors(others, x[:, free])


def replaced(job: Row, options: Options) -> Row:
    """Errors by data and diffusion, and the network calls of a sample."""
    repeats = REPEATS[job["method"]]
    row: Row = {"calls": STEPS * repeats}
    for data, make in DATA.items():
        for name, kind in DIFFUSIONS.items():
            found = of_problem(make(), kind(**ENDS), repeats, job["seed"])
            row |= {f"{data}_{name}_{of}": value for of, value in found.items()}
    return row


def table_of(kind: str) -> Study:
    """The errors of a kind, means over ten problems."""

    def measure(job: Row, options: Options) -> Row:
        row = replaced(job, options)
        kept = {n.removesuffix(f"_{kind}"): v for n, v in row.items() if n.endswith(f"_{kind}")}
        return kept | {"calls": row["calls"]}

    return Study(
        measure,
        [{"method": name} for name in REPEATS],
        seeds=10,
        unit="posterior standard deviations",
        notes=[f"{STEPS} ancestral steps, {SAMPLES:,} samples; errors are over ten measurements"],
    )


STUDIES = {f"measurements-two-of-four-{kind}": table_of(kind) for kind in ("mean", "covariance")}

if __name__ == "__main__":
    main("conditioning", __doc__, STUDIES)
