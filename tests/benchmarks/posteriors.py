"""Posteriors of the public benchmark of simulators, against its references and published results.

    python -m tests.benchmarks.arena.peers
    python -m tests.benchmarks.posteriors --workers 2 --out runs/posteriors.csv
    python -m tests.benchmarks.posteriors --out runs/posteriors.csv --published docs/measured/data

The first fetches the references, the second adds to its file what it has not yet, and the third
writes the tables of the documentation beside the published results (arena/published.py), of the
rows that have all folds and observations. On processors with AVX-512,
``OPENBLAS_CORETYPE=SKYLAKEX`` may halve the time of C2ST. The tasks are programs in arena/tasks.py;
methods are described in arena/methods.py, scores in arena/scores.py. A method learns one posterior
from the simulations of a seed, which are the same for all methods, and is asked for that of each
observation. It is a process of one thread. Scores of an observation are

    c2st         the accuracy of a classifier that tells the posterior's draws from the reference
    log_prob     the mean log density of reference draws by the posterior, nats

and those of all observations of a fit together

    coverage     of central intervals of 90% of each parameter, by new simulations
    fit_seconds, sample_seconds, density_seconds
                 processor time of the fit, simulations included where a method makes them; of the
                 draws of one observation, with the second fit of ``likelihood_2``; and of its
                 densities
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import torch

from pyro_mdm.posteriors import simulate
from tests.benchmarks import runs
from tests.benchmarks.arena import published
from tests.benchmarks.arena.methods import METHODS, Problem
from tests.benchmarks.arena.references import ENVIRONMENT, OBSERVATIONS, read
from tests.benchmarks.arena.tasks import TASKS, flat

FIT = ("task", "simulations", "seed", "method")
KEY = (*FIT, "observation")
SCORES = (
    "c2st",
    "log_prob",
    "log_prob_se",
    "coverage",
    "coverage_se",
    "fit_seconds",
    "sample_seconds",
    "density_seconds",
)
COSTS = ("draws", "folds", "densities", "new")
"""What scores are made of, which the options say."""
SIMULATING = threading.Lock()
"""Is held while a program runs: Pyro's stack of handlers is one for all threads."""
NEW_SEED = 1_000_000
"""Is added to the seed of simulations that are not learned from."""


def problem_of(fit: runs.Row, observations: Sequence[int], options: argparse.Namespace) -> Problem:
    """What a method is asked about observations."""
    task = TASKS[fit["task"]]
    made = []
    for n, seed in ((fit["simulations"], fit["seed"]), (options.new, fit["seed"] + NEW_SEED)):
        draws = simulate(task.program, max(n, 1), seed=seed, vectorized=True)
        made += [flat(draws, names)[:n].numpy() for names in (task.latent, task.observed)]
    of = functools.partial(read, fit["task"], environment=options.environment)
    references = [of(k, name="reference_posterior_samples") for k in observations]
    return Problem(
        task=fit["task"],
        seed=fit["seed"],
        theta=made[0],
        x=made[1],
        observations=torch.cat([of(k, name="observation") for k in observations]).numpy(),
        references=torch.stack(references).numpy(),
        new_theta=made[2],
        new_x=made[3],
        draws=options.draws,
        densities=options.densities,
        folds=options.folds,
    )


def do(fit: runs.Row, rows: runs.Rows, options: argparse.Namespace) -> None:
    """Add the rows of a fit that are not there."""
    observations = [k for k in options.observations if not rows.has(fit | {"observation": k})]
    with runs.folder() as name:
        with SIMULATING:
            problem = problem_of(fit, observations, options)
        problem.save(Path(name))
        package = "tests.benchmarks.arena"
        runs.run_process(sys.executable, f"{package}.methods", [fit["method"], name], options.limit)
        runs.run_process(sys.executable, f"{package}.scores", [name], options.limit)
        scores = json.loads((Path(name) / "scores.json").read_text())
    costs = {cost: getattr(options, cost) for cost in COSTS}
    for k, own in zip(observations, scores, strict=True):
        rows.add(fit | {"observation": k} | own | costs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--simulations", nargs="+", type=int, default=[1_000, 10_000, 30_000])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument(
        "--observations", nargs="+", type=int, default=OBSERVATIONS, choices=OBSERVATIONS
    )
    parser.add_argument("--draws", type=int, default=10_000, help="of each posterior, for C2ST")
    parser.add_argument("--folds", type=int, default=5, help="of C2ST's five, that are scored")
    parser.add_argument("--densities", type=int, default=500, help="of reference draws; 0: none")
    parser.add_argument("--new", type=int, default=200, help="simulations for coverage; 0: none")
    parser.add_argument("--workers", type=int, default=1, help="processes at a time")
    parser.add_argument("--limit", type=float, default=7200.0, help="seconds of a method")
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT, help="of the references")
    parser.add_argument("--out", type=Path, default=Path("runs/posteriors.csv"))
    parser.add_argument(
        "--published", type=Path, help="folder of the tables of --out beside published results"
    )
    options = parser.parse_args()
    if options.published:
        published.write_tables(options.out, options.published, options.environment)
        return
    rows = runs.Rows(options.out, KEY, (*SCORES, *COSTS))
    fits = [
        dict(zip(FIT, (task, simulations, seed, method), strict=True))
        for simulations in options.simulations
        for seed in range(options.first_seed, options.first_seed + options.seeds)
        for task in options.tasks
        for method in options.methods
    ]
    asked = [
        fit
        for fit in fits
        if not all(rows.has(fit | {"observation": k}) for k in options.observations)
    ]
    failed = runs.do_all(asked, lambda fit: do(fit, rows, options), options.workers)
    sys.exit(f"{len(failed)} fits failed" if failed else 0)


if __name__ == "__main__":
    main()
