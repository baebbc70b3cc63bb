"""Simulations at draws of the posterior: a learned likelihood by one round, and by two.

    python -m tests.benchmarks.arena.peers
    python -m tests.benchmarks.posterior_rounds --out docs/measured/data/posteriors-rounds.csv

One round has all simulations from the prior. Two have half of them from there, and half at draws of
the posterior of an observation by the first half. A likelihood needs no correction for where its
parameters come from. C2ST is of one of its five folds, against the references of the public
benchmark.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch
from pyro.infer import Predictive
from torch import Tensor

from pyro_mdm.posteriors import AmortizedLikelihood, simulate
from tests.benchmarks.arena.references import ENVIRONMENT, read
from tests.benchmarks.arena.scores import c2st
from tests.benchmarks.arena.tasks import TASKS, by_site, flat
from tests.benchmarks.documented import write
from tests.benchmarks.runs import processor_seconds

Draws = dict[str, Tensor]


def simulated_at(task: str, theta: Draws) -> Draws:
    """θ, and data of each."""
    data = Predictive(TASKS[task].program, theta, return_sites=TASKS[task].observed)()
    n = len(next(iter(theta.values())))
    return theta | {name: value.reshape(n, *value.shape[1:]) for name, value in data.items()}


def scored(task: str, draws: Draws, x: Draws, reference: Tensor) -> tuple[float, Draws]:
    """C2ST of the posterior by a likelihood of these simulations, and its draws."""
    fitted = AmortizedLikelihood.fit(*TASKS[task][:3], draws=draws)
    found = fitted.posterior(x, len(reference)).draws
    own = flat(found, TASKS[task].latent)
    return c2st(reference.numpy(), own.numpy(), folds=1), found


def rows_of(
    task: str, observations: list[int], n: int, environment: Path
) -> list[dict[str, object]]:
    chosen = TASKS[task]
    prior = simulate(chosen.program, n, seed=0, vectorized=True)
    prior = {name: prior[name] for name in (*chosen.latent, *chosen.observed)}
    half = {name: value[: n // 2] for name, value in prior.items()}
    rows: list[dict[str, object]] = []
    for k in observations:
        x = by_site(chosen, chosen.observed, read(task, k, "observation", environment)[0])
        reference = read(task, k, "reference_posterior_samples", environment)
        began = processor_seconds()
        one, _ = scored(task, prior, x, reference)
        middle = processor_seconds()
        first, found = scored(task, half, x, reference)
        more = simulated_at(task, {name: value[: n // 2] for name, value in found.items()})
        two, _ = scored(task, {m: torch.cat([v, more[m]]) for m, v in half.items()}, x, reference)
        seconds = {"one": middle - began, "two": processor_seconds() - middle}
        named = {"observation": f"{task} {k}", "one_round": one, "first_of_two": first}
        rows.append(named | {"two_rounds": two} | {f"{w}_seconds": s for w, s in seconds.items()})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=["slcp", "two_moons"], choices=TASKS)
    parser.add_argument("--observations", nargs="+", type=int, default=[1, 4, 7])
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT, help="of the references")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = []
    for task in options.tasks:
        rows += rows_of(task, options.observations, options.simulations, options.environment)
    commands = [
        "python -m tests.benchmarks.arena.peers",
        f"python -m tests.benchmarks.posterior_rounds --tasks {' '.join(options.tasks)} "
        f"--observations {' '.join(map(str, options.observations))} --out {options.out.name}",
    ]
    notes = [f"{options.simulations:,} simulations; C2ST of one fold; seconds are of the processor"]
    write(options.out, pd.DataFrame(rows), commands, "0", notes=notes)


if __name__ == "__main__":
    main()
