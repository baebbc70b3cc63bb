"""Are the errors of evidences by importance weights right, and where are there none? By hand.

    python -m tests.benchmarks.importance_errors              laws that constants were chosen on
    python -m tests.benchmarks.importance_errors --held_out   others of the same kinds

Weights are drawn from laws whose evidence is 1. Of each law and number of weights the table has the
part of runs whose ± 1.96 errors hold the truth, of those that have an error, and in brackets the
part that has none. What no draw comes near is not to be seen: `modes 10` are two Gaussians ten
standard deviations apart on each side, of which one has a thousandth of the draws. Weights of a
defensive mixture are in tests/benchmarks/defended.py.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_mdm.evaluation.weights import evidence
from pyro_mdm.support.measured import Z95

__all__ = ["CHOSEN_ON", "HELD_OUT", "Covered", "Law", "covered"]

Law = Callable[[torch.Generator, int, int], Tensor]
"""Log-weights (S, n) whose exponentials have the mean 1."""

RUNS = 200
NUMBERS = 2**21
"""Weights that are drawn together."""


class Covered(NamedTuple):
    """Runs of a law: how many have an error, and how many of these errors hold the truth."""

    runs: int
    with_error: int
    right: int


def covered(law: Law, S: int, runs: int = RUNS, seed: int = 0) -> Covered:
    """Runs of S weights of a law."""
    generator = torch.Generator().manual_seed(seed)
    together = max(1, NUMBERS // S)
    sizes = [min(together, runs - done) for done in range(0, runs, together)]
    parts = [evidence(law(generator, S, n)) for n in sizes]
    value, error = (torch.cat([getattr(e, name) for e in parts]) for name in ("value", "error"))
    right = value.abs() <= Z95 * error + 1e-9  # rounding, of equal weights
    return Covered(runs, int(error.isfinite().sum()), int(right.sum()))


# -- laws ------------------------------------------------------------------------------------------


def normal(generator: torch.Generator, S: int, n: int) -> Tensor:
    return torch.randn(S, n, dtype=torch.float64, generator=generator)


def uniform(generator: torch.Generator, S: int, n: int) -> Tensor:
    return 1 - torch.rand(S, n, dtype=torch.float64, generator=generator)  # without 0


def log_gaussian(z: Tensor, scale: float) -> Tensor:
    """log N(scale z; 0, scale²)."""
    return -z.square() / 2 - math.log(scale) - math.log(2 * math.pi) / 2


def lognormal(sigma: float) -> Law:
    return lambda g, S, n: sigma * normal(g, S, n) - sigma**2 / 2


def gaussian(variance: float, d: int) -> Law:
    """A standard normal law in d dimensions by a Gaussian of another variance: a tail of index
    1 - variance, or bounded where the proposal is wider."""

    def law(g: torch.Generator, S: int, n: int) -> Tensor:
        square = sum(normal(g, S, n).square() for _ in range(d))
        return d / 2 * math.log(variance) + (1 - variance) / 2 * square

    return law


def student(df: float) -> Law:
    """Student's t by a standard Gaussian: an index of 1, reached slowly."""
    target = torch.distributions.StudentT(torch.tensor(df, dtype=torch.float64))

    def law(g: torch.Generator, S: int, n: int) -> Tensor:
        z = normal(g, S, n)
        return target.log_prob(z) - log_gaussian(z, 1.0)

    return law


def interval(scale: float, d: int) -> Law:
    """A uniform law on (0, 1)^d, by Gaussian logits: an index of 1, reached slowly."""

    def one(z: Tensor) -> Tensor:
        return logsigmoid(scale * z) + logsigmoid(-scale * z) - log_gaussian(z, scale)

    return lambda g, S, n: sum((one(normal(g, S, n)) for _ in range(d)), torch.zeros(()))


def modes(apart: float, part: float) -> Law:
    """Two equal Gaussians, by a mixture in which one of them has a small part."""

    def law(g: torch.Generator, S: int, n: int) -> Tensor:
        x = torch.where(uniform(g, S, n) < part, apart, -apart) + normal(g, S, n)
        ratio = 2 * apart * x  # of the density at the one mode and at the other
        both = torch.logaddexp(ratio + math.log(part), torch.tensor(math.log1p(-part)))
        return torch.logaddexp(ratio, torch.zeros(())) - math.log(2) - both

    return law


def pareto(k: float) -> Law:
    return lambda g, S, n: ((uniform(g, S, n) ** -k - 1) * (1 - k) / k).log()


def gamma(shape: float) -> Law:
    """Very unequal weights with a light tail."""

    def law(g: torch.Generator, S: int, n: int) -> Tensor:
        torch.manual_seed(int(torch.randint(2**31, (), generator=g)))
        drawn = torch.distributions.Gamma(torch.tensor(shape).double(), shape).sample((S, n))
        return drawn.log()

    return law


def zeros(part: float, law: Law) -> Law:
    """Weights of a law, of which a part alone is possible."""

    def with_zeros(g: torch.Generator, S: int, n: int) -> Tensor:
        possible = uniform(g, S, n) < part
        return torch.where(possible, law(g, S, n) - math.log(part), -math.inf)

    return with_zeros


def equal(g: torch.Generator, S: int, n: int) -> Tensor:
    return torch.zeros(S, n, dtype=torch.float64)


CHOSEN_ON: Mapping[str, Law] = {
    "equal": equal,
    "lognormal 0.3": lognormal(0.3),
    "lognormal 1": lognormal(1.0),
    "lognormal 1.5": lognormal(1.5),
    "lognormal 2": lognormal(2.0),
    "lognormal 3": lognormal(3.0),
    "gaussian 0.7, d 1": gaussian(0.7, 1),
    "gaussian 0.5, d 1": gaussian(0.5, 1),
    "gaussian 0.3, d 1": gaussian(0.3, 1),
    "gaussian 0.1, d 1": gaussian(0.1, 1),
    "gaussian 0.7, d 5": gaussian(0.7, 5),
    "gaussian 0.5, d 5": gaussian(0.5, 5),
    "gaussian 0.8, d 20": gaussian(0.8, 20),
    "gaussian 0.6, d 20": gaussian(0.6, 20),
    "gaussian 4, d 5": gaussian(4.0, 5),
    "student 3": student(3.0),
    "student 5": student(5.0),
    "interval 1.3, d 1": interval(1.3, 1),
    "interval 1.5, d 5": interval(1.5, 5),
    "pareto 0.4": pareto(0.4),
    "pareto 0.6": pareto(0.6),
    "pareto 0.8": pareto(0.8),
    "gamma 0.1": gamma(0.1),
    "modes 4, 0.1": modes(4.0, 0.1),
}
"""Laws on which the limits and the error were chosen."""

HELD_OUT: Mapping[str, Law] = {
    "lognormal 0.6": lognormal(0.6),
    "lognormal 1.2": lognormal(1.2),
    "lognormal 1.8": lognormal(1.8),
    "lognormal 2.5": lognormal(2.5),
    "gaussian 0.6, d 1": gaussian(0.6, 1),
    "gaussian 0.4, d 2": gaussian(0.4, 2),
    "gaussian 0.2, d 1": gaussian(0.2, 1),
    "gaussian 0.6, d 10": gaussian(0.6, 10),
    "gaussian 0.9, d 20": gaussian(0.9, 20),
    "gaussian 2, d 3": gaussian(2.0, 3),
    "student 4": student(4.0),
    "student 8": student(8.0),
    "interval 1, d 1": interval(1.0, 1),
    "interval 1.6, d 3": interval(1.6, 3),
    "pareto 0.5": pareto(0.5),
    "pareto 0.7": pareto(0.7),
    "pareto 0.9": pareto(0.9),
    "gamma 0.3": gamma(0.3),
    "zeros 0.05": zeros(0.05, equal),
    "zeros 0.3, lognormal 1": zeros(0.3, lognormal(1.0)),
    "modes 3, 0.05": modes(3.0, 0.05),
    "modes 10, 0.001": modes(10.0, 0.001),
}
"""Others, on which they were not."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--held_out", action="store_true")
    parser.add_argument("--numbers", type=int, nargs="+", default=[64, 200, 1_000, 5_000, 20_000])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    laws = HELD_OUT if options.held_out else CHOSEN_ON
    rows = [("weights", *map(str, options.numbers))]
    total, right = 0, 0
    for i, (name, law) in enumerate(laws.items()):
        cells = []
        for S in options.numbers:
            found = covered(law, S, seed=1_000 * options.seed + i)
            total, right = total + found.with_error, right + found.right
            none = f"({1 - found.with_error / found.runs:.0%})"
            part = f"{found.right / found.with_error:.0%}" if found.with_error else "-"
            cells.append(f"{part} {none}")
        rows.append((name, *cells))
    print(pd.DataFrame(rows[1:], columns=rows[0]).to_string(index=False))
    print(f"of all that have an error: {right / max(total, 1):.1%} of {total:,}")


if __name__ == "__main__":
    main()
