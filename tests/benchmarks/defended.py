"""Do the errors of evidences by defensive mixtures hold the truth? By hand.

    python -m tests.benchmarks.defended --tables docs/measured/data

The first is of known targets by a Gaussian proposal, the second of programs fitted by AutoMDM. Of
each target, number of dimensions and number of draws the table has the share of runs that have an
error (given), the share of these whose ±1.96 errors hold the truth (covered), the spread of the
estimates, and the median error. All evidences are 1, but for that of the schools, which is by
quadrature. The Gaussian proposals have the deviation that stands behind the target's name; "alone"
are the weights of as many of their draws, without a defence.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_mdm.automatic import AutoMDM
from pyro_mdm.automatic.defensive import Scored, defended
from pyro_mdm.automatic.weighing import Weighing
from pyro_mdm.evaluation.weights import ImportanceWeights
from pyro_mdm.support.measured import Z95, Measured
from tests.benchmarks.frame import Options, Row, Study, main

__all__ = ["TARGETS", "Covered", "by_gaussian", "covered", "of_schools", "schools"]

Density = Callable[[Tensor], Tensor]
"""A log density of (n, d), (n,) nats."""


def _of_each(law: torch.distributions.Distribution) -> Density:
    return lambda x: law.log_prob(x).sum(1)


def _far_mode(first: Tensor) -> Tensor:
    """0.95 N(0, 1) + 0.05 N(4, 1)."""
    near, far = (dist.Normal(at, 1.0).log_prob(first) for at in (0.0, 4.0))
    return torch.logaddexp(math.log(0.95) + near, math.log(0.05) + far)


def modes(x: Tensor) -> Tensor:
    """A light mode, four deviations away along the first dimension."""
    return _far_mode(x[:, 0]) + dist.Normal(0.0, 1.0).log_prob(x[:, 1:]).sum(1)


def logistic(x: Tensor) -> Tensor:
    return (-x - 2 * torch.nn.functional.softplus(-x)).sum(1)


NORMAL, CAUCHY = _of_each(dist.Normal(0.0, 1.0)), _of_each(dist.Cauchy(0.0, 1.0))
STUDENT2, STUDENT3 = (_of_each(dist.StudentT(df, 0.0, 1.0)) for df in (2.0, 3.0))

TARGETS: Mapping[str, tuple[Density, float]] = {
    "normal, 1": (NORMAL, 1.0),
    "normal, 0.8": (NORMAL, 0.8),
    "normal, 1.5": (NORMAL, 1.5),
    "cauchy, 1.5": (CAUCHY, 1.5),
    "cauchy, 3": (CAUCHY, 3.0),
    "student 2, 2": (STUDENT2, 2.0),
    "student 3, 1.5": (STUDENT3, 1.5),
    "logistic, 1.2": (logistic, 1.2),
    "modes, 1": (modes, 1.0),
}
"""Targets by name, with the deviation of the Gaussian that is the proposal."""


class Covered(NamedTuple):
    """Runs: how many, how many have an error, how many of these hold the truth; the spread of the
    estimates, and the median error."""

    runs: int
    with_error: int
    right: int
    spread: float
    error: float

    @property
    def cells(self) -> dict[str, float]:
        """The columns of a table."""
        share = self.right / self.with_error if self.with_error else math.nan
        given = self.with_error / self.runs
        return {"given": given, "covered": share, "spread": self.spread, "error": self.error}


def covered(estimate: Callable[[], Measured], truth: float, runs: int) -> Covered:
    """Runs of an estimate of log Z, whose truth is given."""
    value, error = torch.tensor([estimate() for _ in range(runs)], dtype=torch.float64).unbind(1)
    right = ((value - truth).abs() <= Z95 * error).sum()
    given = int(error.isfinite().sum())
    return Covered(runs, given, int(right), float(value.std()), float(error.nanmedian()))


def by_gaussian(target: Density, scale: float, d: int, n: int) -> ImportanceWeights:
    """n weights of a target by N(0, scale²) in d dimensions, with a defence."""
    proposal = dist.Normal(torch.zeros((), dtype=torch.float64), scale)

    def at(x: Tensor) -> Scored:
        return Scored(x, target(x), proposal.log_prob(x).sum(1), x)

    def draw(few: int) -> Scored:
        return at(scale * torch.randn(few, d, dtype=torch.float64))

    return ImportanceWeights(*defended(draw, at, n)[1:])


def _alone(target: Density, scale: float, d: int, n: int) -> Measured:
    """The same by the Gaussian's draws alone."""
    z = torch.randn(n, d, dtype=torch.float64)
    log_q = dist.Normal(0.0, scale).log_prob(scale * z).sum(1)
    return ImportanceWeights(target(scale * z) - log_q).log_evidence


# -- programs --------------------------------------------------------------------------------------

EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SPREADS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools() -> None:
    """Eight schools, centred: a funnel."""
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    scale = pyro.sample("scale", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        effect = pyro.sample("effect", dist.Normal(mean, scale))
        pyro.sample("seen", dist.Normal(effect, SPREADS), obs=EFFECTS)


def of_schools() -> float:
    """log p of the eight schools, by quadrature over the scale."""
    quantile = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    scale = 5 * torch.tan(math.pi / 2 * quantile).unsqueeze(1)
    variance = SPREADS.double() ** 2 + scale**2
    precision = variance.reciprocal().sum(1) + 1 / 25
    pull = (EFFECTS.double() / variance).sum(1)
    squares = (EFFECTS.double() ** 2 / variance + (2 * math.pi * variance).log()).sum(1)
    log_p = (pull**2 / precision - (25 * precision).log() - squares) / 2
    return float(log_p.logsumexp(0)) - math.log(len(log_p))


def _rows(law: Callable[[], dist.Distribution], d: int) -> Callable[[], None]:
    def program() -> None:
        with pyro.plate("rows", d):
            pyro.sample("x", law())

    return program


def _logistic(d: int) -> Callable[[], None]:
    def program() -> None:
        with pyro.plate("rows", d):
            x = pyro.sample("x", dist.Normal(0.0, 3.0))
            ratio = logistic(x.view(-1, 1)) - dist.Normal(0.0, 3.0).log_prob(x).view(-1)
            pyro.factor("logistic", ratio.view(x.shape))

    return program


def _modes(d: int) -> Callable[[], None]:
    def program() -> None:
        first = pyro.sample("first", dist.Normal(0.0, 6.0))
        pyro.factor("modes", _far_mode(first) - dist.Normal(0.0, 6.0).log_prob(first))
        if d > 1:
            with pyro.plate("rows", d - 1):
                pyro.sample("x", dist.Normal(0.0, 1.0))

    return program


def _funnel(d: int) -> Callable[[], None]:
    def program() -> None:
        v = pyro.sample("v", dist.Normal(0.0, 3.0))
        if d > 1:
            with pyro.plate("rows", d - 1):
                pyro.sample("x", dist.Normal(0.0, (v / 2).exp()))

    return program


PROGRAMS: Mapping[str, tuple[Callable[[int], Callable[[], None]], str]] = {
    "normal": (lambda d: _rows(lambda: dist.Normal(0.0, 1.0), d), "gaussian"),
    "cauchy": (lambda d: _rows(lambda: dist.Cauchy(0.0, 1.0), d), "gaussian"),
    "student 2": (lambda d: _rows(lambda: dist.StudentT(2.0, 0.0, 1.0), d), "gaussian"),
    "student 3": (lambda d: _rows(lambda: dist.StudentT(3.0, 0.0, 1.0), d), "gaussian"),
    "logistic": (_logistic, "gaussian"),
    "modes": (_modes, "gaussian"),
    "funnel": (_funnel, "shaped"),
    "schools": (lambda d: schools, "shaped"),
}
"""Functions of the number of latents that make a program, with the start of its guide."""


@functools.cache
def guide_of(name: str, d: int, updates: int) -> AutoMDM:
    """A guide fitted to a program."""
    make, start = PROGRAMS[name]
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = AutoMDM(make(d), start=start, steps=8)
    return guide.fit(updates=updates, start_updates=updates, progress=False)


def of_program(job: Row, options: Options) -> Row:
    name, n = job["program"], job["draws"]
    truth = of_schools() if name == "schools" else 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        guide = guide_of(name, job["latents"], 20 if options.small else 500)
        runs = 10 if options.small else 100
        return covered(lambda: Weighing(guide).weighed(n)[1].log_evidence, truth, runs).cells


def of_target(job: Row, options: Options) -> Row:
    target, scale = TARGETS[job["target"]]
    problem = target, scale, job["latents"], job["draws"]
    torch.manual_seed(job["seed"])
    runs = 10 if options.small else 600
    cells = covered(lambda: by_gaussian(*problem).log_evidence, 0.0, runs).cells
    alone = covered(lambda: _alone(*problem), 0.0, runs).cells
    return cells | {f"{column}_alone": alone[column] for column in ("given", "covered")}


STUDIES = {
    "automatic-evidence-targets": Study(
        of_target,
        [
            {"target": name, "latents": d, "draws": n}
            for name in TARGETS
            for d in (1, 4, 20)
            for n in (1_000, 4_000, 16_000)
        ],
        notes=["shares of 600 runs with an error (given), and of these with the truth"],
    ),
    "automatic-evidence-programs": Study(
        of_program,
        [
            {"program": name, "latents": d, "draws": n}
            for name in PROGRAMS
            for d in ((1, 4, 20) if name != "schools" else (10,))
            for n in (1_000, 4_000)
        ],
        notes=[
            "shares of 100 runs with an error (given), and of these with the truth",
            "500 updates of the start and of a chain of 8 steps",
        ],
    ),
}

if __name__ == "__main__":
    main("defended", __doc__, STUDIES)
