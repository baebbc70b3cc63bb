"""Samplers of p(x | obs) by networks trained without obs, beside the exact answer; by hand.

    python -m tests.benchmarks.conditioning

Data are Gaussian or of two components, in four dimensions, with their exact denoisers, so that
errors are those of the methods alone. Measurements are half of the dimensions by a random mask
(with little noise for the particles' sake), or two random combinations of all. Errors are root mean
squares over dimensions of the mean, in posterior standard deviations, and of the covariance, in
those of both; that of the evidence is in nats, with its sign. ± is the standard error over
problems. As many exact samples have errors too: those of the first row. Network calls are those of
a sample, a step of conjugate gradients counted as two.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inference.folders.output import aligned
from pyro_mdm import CLD, VPSDE, DiffusionModel
from pyro_mdm.conditioning import Replacement
from pyro_mdm.measurements import Mask, Matrix, condition_on_measurements, twisted_smc
from pyro_mdm.samplers import Ancestral
from pyro_mdm.support.measured import Measured
from tests.conditioning.test_conditioning import ENDS, D
from tests.problems import (
    ExactDenoiser as Exact,
    GaussianMixture,
    bimodal as mixture,
    correlated as gaussian,
    fixed,
    given_measurement,
)

__all__ = ["Case", "Found", "METHODS"]

NOISE_VARIANCE = 0.01
STEPS = 100


class Case(NamedTuple):
    """A measurement of data with a known posterior."""

    model: DiffusionModel
    operator: Any
    obs: Tensor
    posterior: GaussianMixture
    log_evidence: float


class Found(NamedTuple):
    """Samples (n, d), network calls of each, and what is known of the evidence beside."""

    x: Tensor
    calls: float
    log_evidence: Measured | None = None


def case(data: GaussianMixture, diffusion: Any, kind: str, seed: int) -> Case:
    """A random mask of half the dimensions, or two combinations, of a datum of its own."""
    truth = data.sample(1, seed)[0]
    operator: Any = Matrix(fixed(300 + seed, D // 2, D) / 2)
    if kind == "mask":
        seen = torch.zeros(D, dtype=torch.bool)
        seen[fixed(300 + seed, D).argsort()[: D // 2]] = True
        operator = Mask(seen)
    variance = torch.tensor(NOISE_VARIANCE, dtype=torch.float64)
    obs = operator(truth) + variance.sqrt() * fixed(400 + seed, D // 2)
    law, evidence = given_measurement(data, operator.matrix(), obs, variance)
    model = DiffusionModel(diffusion, Exact(data), sampler=Ancestral(STEPS))
    return Case(model, operator, obs, law, float(evidence))


def exact(one: Case, n: int) -> Found:
    return Found(one.posterior.sample(n, 1), 0)


def replacement(one: Case, n: int, repeats: int = 1) -> Found | None:
    if not isinstance(one.operator, Mask):
        return None
    seen = one.operator.seen
    values = one.operator.adjoint(one.obs)
    sampler = Replacement(Ancestral(STEPS), seen, values, repeats)
    model = one.model
    x = DiffusionModel(model.diffusion, model.score_function, sampler=sampler)(batch_size=n)
    return Found(x, STEPS * repeats)


def measured(one: Case, **options: Any) -> Any:
    return condition_on_measurements(
        one.model, one.operator, one.obs, NOISE_VARIANCE, max_iterations=D, **options
    )


def guided(one: Case, n: int, covariance_from: float) -> Found:
    given = measured(one, covariance_from=covariance_from)
    work = counted(given)
    x = given(batch_size=n)
    return Found(x, STEPS + work())


def twisted(one: Case, n: int, covariance_from: float) -> Found:
    given = measured(one, covariance_from=covariance_from)
    work, particles = counted(given), n // 16
    found = twisted_smc(given, particles, steps=STEPS, repeats=16)
    return Found(found.resampled(n), found.network_calls + work(), found.log_evidence)


def counted(given: Any) -> Callable[[], float]:
    """Counts what products cost, in network calls: two for each of a datum's iterations."""
    score, spent = given.score_function, [0.0]
    look = score.given_obs

    def counting(z: Tensor, log_snr: Any) -> Any:
        seen = look(z, log_snr)
        if float(torch.as_tensor(log_snr).flatten()[0]) >= score.covariance_from:
            spent[0] += 2 * float(score.iterations.double().mean())
        return seen

    score.given_obs = counting
    return lambda: spent[0]


METHODS: dict[str, Callable[[Case, int], Found | None]] = {
    "exact samples": exact,
    "replacement": replacement,
    "replacement, 5 repeats": lambda one, n: replacement(one, n, 5),
    "guidance, linear covariance": lambda one, n: guided(one, n, math.inf),
    "guidance, own covariance": lambda one, n: guided(one, n, -math.inf),
    "twisted, linear covariance": lambda one, n: twisted(one, n, math.inf),
    "twisted, own covariance": lambda one, n: twisted(one, n, -math.inf),
}


def errors(one: Case, x: Tensor) -> tuple[float, float]:
    """Of mean and covariance of samples (n, d), over dimensions that a mask leaves open."""
    law, spread = one.posterior, one.posterior.covariance.diagonal().sqrt()
    if isinstance(one.operator, Mask):
        free = ~one.operator.seen
        law = GaussianMixture(
            law.log_weights.exp(), law.means[:, free], law.covariances[:, free][:, :, free]
        )
        x, spread = x[:, free], spread[free]
    mean = (x.mean(0) - law.mean) / spread
    covariance = (x.T.cov() - law.covariance) / spread / spread[:, None]
    return float(mean.square().mean().sqrt()), float(covariance.square().mean().sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--problems", type=int, default=12, help="measurements of each kind")
    parser.add_argument("--samples", type=int, default=1024, help="or particles, of each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    head = (
        "data",
        "measured",
        "diffusion",
        "method",
        "mean",
        "covariance",
        "log evidence",
        "calls",
    )
    rows = [head]
    diffusions = {"VPSDE": VPSDE(**ENDS), "CLD": CLD(**ENDS)}
    for data_name, data in (("Gaussian", gaussian()), ("mixture", mixture())):
        for kind in ("mask", "matrix"):
            for name, diffusion in diffusions.items():
                cases = [case(data, diffusion, kind, seed) for seed in range(options.problems)]
                for method, run in METHODS.items():
                    torch.manual_seed(0)
                    found = [run(one, options.samples) for one in cases]
                    label = (data_name, kind, name, method)
                    if found[0] is not None:
                        rows.append((*label, *cells(cases, found)))
                        print(aligned([head, rows[-1]]).splitlines()[1], flush=True)
    print("\n" + aligned(rows, left=(0, 1, 2, 3)))


def cells(cases: list[Case], found: list[Any]) -> tuple[str, str, str, str]:
    off = torch.tensor([errors(one, each.x) for one, each in zip(cases, found, strict=True)])
    mean, covariance = (Measured.from_values(column) for column in off.unbind(1))
    evidence = "-"
    if found[0].log_evidence is not None:
        pairs = zip(cases, found, strict=True)
        evidence = str(
            Measured.from_values(
                torch.tensor([f.log_evidence.mean - c.log_evidence for c, f in pairs])
            )
        )
    calls = sum(each.calls for each in found) / len(found)
    return str(mean), str(covariance), evidence, f"{calls:.0f}"


if __name__ == "__main__":
    main()
