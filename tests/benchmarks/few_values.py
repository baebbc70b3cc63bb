"""Do standard errors of few values cover? By hand.

    python -m tests.benchmarks.few_values --summary docs/measured/data

Values are drawn from laws whose mean is known. A table has, by law and number of values, the share
of samples in which ±1.96 standard errors hold the truth. One is of the mean of normal values
(:class:`~pyro_mdm.support.measured.Measured`), beside s/√n. The other is of the log of the mean of
estimates of an evidence (:func:`~pyro_mdm.evaluation.weights.of_repeats`), beside the error by the
spread of the estimates alone, where it is NaN if the largest estimate is more than a tenth of the
sum beyond an equal share. ``given`` is the share of samples with such an error.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from pyro_mdm.evaluation.weights import of_repeats
from pyro_mdm.paths.likelihood import log_mean_weight
from pyro_mdm.support.measured import Z95, Measured, student_factor
from tests.benchmarks.documented import write

__all__ = ["ESTIMATES", "covered"]

COMMAND = "python -m tests.benchmarks.few_values --summary docs/measured/data"
RUNS = 4_000

Law = Callable[[torch.Generator, int, int], Tensor]
"""Logs of positive estimates (n, R) whose mean is 1."""


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def lognormal(sigma: float) -> Law:
    """The law of estimates by many particles."""
    return lambda g, n, R: sigma * normal(g, n, R) - sigma**2 / 2


def student(degrees: int, scale: float) -> Law:
    """Estimates 1 + scale · t, of a tail on both sides, kept positive symmetrically."""

    def law(g: torch.Generator, n: int, R: int) -> Tensor:
        square = sum(normal(g, n, R).square() for _ in range(degrees))
        t = normal(g, n, R) / (square / degrees).sqrt()
        return (1 + (scale * t).clamp(-0.99, 0.99)).log()

    return law


def chi_square(degrees: int) -> Law:
    """Estimates whose logs are skewed to the left."""

    def law(g: torch.Generator, n: int, R: int) -> Tensor:
        return (sum(normal(g, n, R).square() for _ in range(degrees)) / degrees).log()

    return law


def mean_of_weights(sigma: float, number: int) -> Law:
    """Means of lognormal weights."""

    def law(g: torch.Generator, n: int, R: int) -> Tensor:
        return log_mean_weight(lognormal(sigma)(g, number, n * R)).reshape(n, R)

    return law


ESTIMATES: Mapping[str, Law] = {
    **{f"lognormal {s:g}": lognormal(s) for s in (0.05, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5)},
    "student 3, 0.05": student(3, 0.05),
    "student 3, 0.2": student(3, 0.2),
    "student 3, 0.4": student(3, 0.4),
    "student 5, 0.2": student(5, 0.2),
    "χ² 2": chi_square(2),
    "χ² 6": chi_square(6),
    "χ² 20": chi_square(20),
    "100 lognormal 1": mean_of_weights(1.0, 100),
    "100 lognormal 1.5": mean_of_weights(1.5, 100),
}
"""Laws of estimates of an evidence of 1."""


def covered(law: Law, R: int, runs: int = RUNS, seed: int = 0) -> float:
    """The share of samples of R estimates whose ±1.96 errors hold the truth."""
    samples = law(torch.Generator().manual_seed(seed), runs, R)
    inside = 0
    for log_means in samples:
        value, error = of_repeats(log_means)
        inside += abs(value) <= Z95 * error
    return inside / runs


def of_spread(law: Law, R: int, seed: int = 0) -> tuple[float, float]:
    """The same for the error by the spread alone, of the samples that have it, and their share."""
    samples = law(torch.Generator().manual_seed(seed), RUNS, R).T
    value = log_mean_weight(samples)
    relative = (samples - value).exp()
    half = Z95 * student_factor(R - 1) * relative.std(0) / math.sqrt(R)
    given = (relative.amax(0) - 1) / R <= 0.1
    return float((value.abs() <= half)[given].double().mean()), float(given.double().mean())


def means(n: int) -> tuple[float, float]:
    """The share of samples of n normal values whose ±1.96 errors hold the mean, and of s/√n."""
    values = normal(torch.Generator().manual_seed(n), RUNS, n)
    inside = sum(
        low <= 0 <= high for low, high in (Measured.from_values(v).interval for v in values)
    )
    plain = values.mean(1).abs() <= Z95 * values.std(1) / math.sqrt(n)
    return inside / RUNS, float(plain.double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--summary", type=Path, help="folder of the tables")
    options = parser.parse_args()
    few = pd.DataFrame(
        [(n, *means(n)) for n in (2, 3, 4, 8, 16, 64)], columns=["values", "covered", "plain"]
    )
    rows = [
        (name, R, covered(law, R, seed=R), *of_spread(law, R, seed=R))
        for name, law in ESTIMATES.items()
        for R in (4, 8, 16, 64)
    ]
    repeats = pd.DataFrame(rows, columns=["law", "estimates", "covered", "by_spread", "given"])
    print(few.to_string(index=False), repeats.to_string(index=False), sep="\n\n")
    if options.summary:
        share = f"shares of {RUNS:,} samples that hold the truth"
        notes = [f"{share}, of normal values; covered: by ±1.96 standard errors, plain: ±1.96 s/√n"]
        file = options.summary / "likelihoods-few-values.csv"
        write(file, few, [COMMAND], "2 to 64", notes=notes)
        notes = [
            f"{share}; covered: by ±1.96 standard errors, by spread: by the spread of estimates "
            "alone, of the samples that the largest estimate does not flag, whose share is given"
        ]
        file = options.summary / "likelihoods-repeats.csv"
        write(file, repeats, [COMMAND], "4 to 64", notes=notes)


if __name__ == "__main__":
    main()
