"""Modes that a guide has missed: does its check tell, and does it leave right guides alone?

    python -m tests.benchmarks.modes --seconds 30 --seeds 5 --out runs/modes.csv
    python -m tests.benchmarks.modes --summary --out runs/modes.csv

Another call goes on where the last one ended. Programs have known modes and a known log Z, in
closed form, by quadrature, or by weights of Student laws at all modes (densities/laplace.py). Three
have one mode, or a ring, of which nothing may be said. Each is fitted by ``AutoMDM(program)`` and
by ``AutoMDM(program, start="particles")``, and then ``check()`` speaks.

    missed           modes with less than a tenth of their probability, by resampled draws
    is_told          whether the check says not to trust the guide
    is_right         no mode is missed, and log Z is within three of its errors, or 0.02 nats
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_mdm import AutoMDM
from pyro_mdm.automatic.weighing import Weighing
from tests.benchmarks import runs
from tests.benchmarks.densities.base import Draws, Modes, Target
from tests.benchmarks.densities.laplace import evidence
from tests.benchmarks.densities.scores import OTHER, of_modes, resampled
from tests.benchmarks.densities.targets import (
    label_switching,
    of_density,
    of_program,
    orders,
    seeded,
)

KEY = ("program", "start", "seed", "seconds")
VALUES = (
    *("log_z", "log_z_se", "truth", "truth_se", "doubted", "modes", "missed", "mode_distance"),
    *("is_told", "is_right", "other_log_z", "verdict", "fit_seconds", "check_seconds"),
)
STARTS = ("gaussian", "particles")
DRAWS = 4_000
ERRORS, CLOSE = 3.0, 0.02
"""Standard errors and nats within which log Z is right."""


# -- programs --------------------------------------------------------------------------------------


def gaussians(name: str, means: Tensor, scale: float, shares: Tensor) -> Target:
    """A mixture of round Gaussians, means (K, dim)."""
    component = dist.Normal(means, scale).to_event(1)
    law = dist.MixtureSameFamily(dist.Categorical(shares), component)
    modes = Modes(lambda x: torch.cdist(x, means.to(x)).argmin(1), shares)
    return of_density(name, law.log_prob, means.shape[1], 4.0, log_z=0.0, modes=modes)


def two_gaussians() -> Target:
    """A large mode and a small one, in five dimensions."""
    means = 3.0 * torch.ones(2, 5) * torch.tensor([[1.0], [-1.0]])
    return gaussians("two_gaussians", means, 0.7, torch.tensor([0.95, 0.05]))


def square() -> Target:
    """Four modes at the corners of a square."""
    means = 3.0 * torch.tensor(list(itertools.product((-1.0, 1.0), repeat=2)))
    return gaussians("square", means, 0.5, torch.full((4,), 0.25))


def bananas() -> Target:
    """Two bananas, bent up and down: the second latent is moved by a square of the first."""
    shares, height = torch.tensor([0.6, 0.4]), torch.tensor([4.0, -4.0])
    normal = dist.Normal(0.0, torch.tensor([1.5, 0.5])).to_event(1)

    def by_mode(x: Tensor) -> Tensor:
        bent = height.sign() * (x[..., :1] ** 2 - 2.0) / 2 + height
        z = torch.stack([x[..., :1].expand(bent.shape), x[..., 1:] - bent], -1)
        return normal.log_prob(z) + shares.log()

    modes = Modes(lambda x: by_mode(x).argmax(1), shares)
    return of_density("bananas", lambda x: by_mode(x).logsumexp(-1), 2, 3.0, log_z=0.0, modes=modes)


def regressions() -> Target:
    """A mixture of three regressions, which nothing tells apart."""
    column = 4 * torch.rand(60, generator=seeded(0)) - 2
    lines = torch.tensor([[2.0, 1.0], [0.0, -1.5], [-2.0, 0.5]]).repeat(20, 1)
    y = lines[:, 0] + lines[:, 1] * column + 0.4 * torch.randn(60, generator=seeded(1))

    def program() -> None:
        heights = pyro.sample("heights", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
        slopes = pyro.sample("slopes", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
        means = heights[..., None, :] + slopes[..., None, :] * column[:, None]
        law = dist.MixtureSameFamily(dist.Categorical(torch.ones(3)), dist.Normal(means, 0.4))
        pyro.sample("y", law.to_event(1), obs=y)

    return of_program("regressions", program, modes=orders(3, lambda x: x[:, :3]))


def factor_data() -> Tensor:
    loadings = torch.tensor([1.2, -0.8, 0.9, 0.5, -1.0])
    scores = torch.randn(12, 1, generator=seeded(0))
    return scores * loadings + 0.5 * torch.randn(12, 5, generator=seeded(1))


SIGNS = Modes(lambda x: (x[:, 0] > 0).long(), torch.full((2,), 0.5))


def factors() -> Target:
    """Five loadings and twelve scores, which may all change their signs."""
    y = factor_data()

    def program() -> None:
        loadings = pyro.sample("loadings", dist.Normal(0.0, 1.0).expand([5]).to_event(1))
        scores = pyro.sample("scores", dist.Normal(0.0, 1.0).expand([12]).to_event(1))
        means = scores[..., :, None] * loadings[..., None, :]
        pyro.sample("y", dist.Normal(means, 0.5).to_event(2), obs=y)

    return of_program("factors", program, modes=SIGNS)


def factors_marginal() -> Target:
    """The same without scores, which are Gaussian given the loadings."""
    y = factor_data().double()

    def program() -> None:
        law = dist.Normal(0.0, 1.0).expand([5]).to_event(1)
        loadings = pyro.sample("loadings", law).double()
        covariance = loadings[..., :, None] * loadings[..., None, :]
        covariance = (covariance + 0.25 * torch.eye(5).double()).unsqueeze(-3)
        law = dist.MultivariateNormal(torch.zeros(5).double(), covariance)
        pyro.sample("y", law.expand([*loadings.shape[:-1], 12]).to_event(1), obs=y)

    return of_program("factors_marginal", program, modes=SIGNS)


def conflict() -> Target:
    """A prior and heavy-tailed data far from each other, and a latent beside."""
    seen, scale = torch.tensor([6.7, 6.9]), 0.15

    def program() -> None:
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.StudentT(3.0, theta[..., None], scale).to_event(1), obs=seen)
        other = pyro.sample("other", dist.Normal(0.3 * theta, 1.0))
        pyro.sample("z", dist.Normal(other, 1.0), obs=torch.tensor(1.0))

    grid = torch.linspace(-8, 16, 48_001, dtype=torch.float64)
    density = dist.Normal(0.0, 1.0).log_prob(grid)
    density += dist.Normal(0.3 * grid, math.sqrt(2)).log_prob(torch.tensor(1.0))
    density += dist.StudentT(3.0, grid[:, None], scale).log_prob(seen.double()).sum(1)
    middle = 5.4  # the lowest density between both
    total = density.logsumexp(0)
    share = float((density[grid < middle].logsumexp(0) - total).exp())
    modes = Modes(lambda x: (x[:, 0] > middle).long(), torch.tensor([share, 1 - share]))
    log_z = float(total + (grid[1] - grid[0]).log())
    return of_program("conflict", program, log_z=log_z, modes=modes)


def ring() -> Target:
    """Two latents whose length was measured: no modes, but a circle."""
    seen, noise = 9.0, 0.8

    def program() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
        pyro.sample("y", dist.Normal(x.square().sum(-1), noise), obs=torch.tensor(seen))

    squares = torch.linspace(0, 30, 300_001, dtype=torch.float64)[1:]
    density = dist.Exponential(1 / 8).log_prob(squares) + dist.Normal(seen, noise).log_prob(squares)
    log_z = float(density.logsumexp(0) + (squares[1] - squares[0]).log())
    return of_program("ring", program, log_z=log_z)


def one_gaussian() -> Target:
    """One mode, in eight dimensions."""
    return gaussians("one_gaussian", torch.ones(1, 8), 0.5, torch.ones(1))


def funnel() -> Target:
    """A scale, and four latents of it: one mode."""

    def program() -> None:
        v = pyro.sample("v", dist.Normal(0.0, 1.0))
        scale = (v / 2).exp().unsqueeze(-1)
        pyro.sample("x", dist.Normal(0.0, scale).expand([*v.shape, 4]).to_event(1))

    return of_program("funnel", program, log_z=0.0)


def two_components() -> Target:
    return label_switching(2)


def three_components() -> Target:
    return label_switching(3)


PROGRAMS: dict[str, Callable[[], Target]] = {
    make.__name__: make
    for make in (
        *(regressions, two_gaussians, square, two_components, three_components, bananas),
        *(factors, conflict, ring, one_gaussian, funnel),
    )
}


def images(rows: Tensor, count: int) -> Tensor:
    """All orders of components, of latents in rows of a number for each, (orders, dim)."""
    permutations = itertools.permutations(range(count))
    return torch.stack([rows[:, list(order)].flatten() for order in permutations])


def starts_of(name: str) -> tuple[Target, Tensor]:
    """A target of the same evidence in perhaps fewer latents, and latents near its modes."""
    if name == "factors":
        loadings = torch.tensor([1.2, -0.8, 0.9, 0.5, -1.0])
        return factors_marginal(), torch.stack([loadings, -loadings])
    if name == "regressions":
        return regressions(), images(torch.tensor([[2.0, 0.0, -2.0], [1.0, -1.5, 0.5]]), 3)
    count = {"two_components": 2, "three_components": 3}[name]
    rows = torch.tensor([[-2.5, 0.0, 3.0], [-0.7, -0.4, 0.0]])[:, :count]
    weights = torch.zeros(math.factorial(count), count - 1)
    return label_switching(count), torch.cat([weights, images(rows, count)], 1)


@functools.cache
def truth(name: str) -> tuple[float, float]:
    """log Z and its standard error, 0 in closed form or by quadrature."""
    log_z = PROGRAMS[name]().log_z
    return (log_z, 0.0) if log_z is not None else evidence(*starts_of(name), draws=40_000)


# -- fits ------------------------------------------------------------------------------------------


def modes_of(target: Target, guide: AutoMDM, seed: int) -> runs.Row:
    """How many modes there are, how many are missed, and how far probabilities are off."""
    if target.modes is None:
        return {"modes": 1, "missed": 0}
    pyro.set_rng_seed(seed)
    x = resampled(Draws(*Weighing(guide).weighted(DRAWS)), seed)
    scores, number = of_modes(target.modes, x), len(target.modes.probabilities)
    missed = round(number * (1 - scores["modes"]))
    return {"modes": number, "missed": missed, "mode_distance": scores["mode_distance"]}


def fit(job: runs.Row) -> runs.Row:
    """What a fit has reached, and what its check says."""
    target, seed, seconds = PROGRAMS[job["program"]](), job["seed"], float(job["seconds"])
    log_z, error = truth(job["program"])
    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    began = time.monotonic()
    guide = AutoMDM(target.program, start=job["start"]).fit(seconds=seconds, progress=False)
    row = {"truth": log_z, "truth_se": error, "fit_seconds": time.monotonic() - began}
    row |= modes_of(target, guide, seed + OTHER)
    began = time.monotonic()
    result = guide.check(progress=False)
    row["check_seconds"] = time.monotonic() - began
    estimate = result.weights.log_evidence
    off = abs(float(estimate.mean) - log_z)
    errors = ERRORS * math.hypot(float(estimate.standard_error), error)
    other = result.second.weights if result.second else None
    return row | {
        **{"log_z": float(estimate.mean), "log_z_se": float(estimate.standard_error)},
        **{"doubted": int(bool(result.weights.doubt)), "is_told": int(not result.is_trusted)},
        "is_right": int(row["missed"] == 0 and off <= max(errors, CLOSE)),
        "other_log_z": float(other.log_evidence.mean) if other else "",
        "verdict": repr(result).splitlines()[-1],
    }


def summary(file: Path) -> str:
    """The rows without their times, and the shares of missed modes and right guides."""
    rows = pd.read_csv(file)
    shown = rows.drop(columns=["truth_se", "fit_seconds", "check_seconds", "seconds"])
    missed, right = rows[rows.missed > 0], rows[rows.is_right == 1]
    sure = right[right.doubted == 0]
    return "\n".join(
        (
            shown.assign(verdict=shown.verdict.str.slice(0, 60)).to_string(),
            f"missed modes: {len(missed)} of {len(rows)} fits, told of {int(missed.is_told.sum())}",
            f"right guides: {len(right)}, told to be wrong: {int(right.is_told.sum())}; of "
            f"{len(sure)} with weights of no doubt {int(sure.is_told.sum())}",
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", nargs="+", default=[*PROGRAMS], choices=PROGRAMS)
    parser.add_argument("--starts", nargs="+", default=[*STARTS], choices=STARTS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30.0, help="of a fit")
    parser.add_argument("--out", type=Path, default=Path("runs/modes.csv"))
    parser.add_argument("--summary", action="store_true", help="print a table of --out")
    options = parser.parse_args()
    if options.summary:
        print(summary(options.out))
        return
    torch.set_num_threads(1)
    jobs = [
        {"program": name, "start": start, "seed": seed, "seconds": f"{options.seconds:g}"}
        for seed, name, start in itertools.product(
            range(options.seeds), options.programs, options.starts
        )
    ]
    failed = runs.run_all(jobs, fit, runs.Rows(options.out, KEY, VALUES), 1)
    print(summary(options.out))
    sys.exit(f"{len(failed)} fits failed" if failed else 0)


if __name__ == "__main__":
    main()
