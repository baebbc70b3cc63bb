"""Conditionals of parameters and data, any given any others, beside what Simformer published.

    python -m tests.benchmarks.partial --out runs/partial.csv
    python -m tests.benchmarks.partial --out runs/partial.csv --summary docs/measured/data

The first adds to its file what it has not yet, and the second writes the tables of the
documentation. The tasks are programs in tasks.py, with the distribution of masks; references.py has
exact draws of every conditional, which checks.py verifies; methods.py says what methods there are.
A method learns once from the simulations of a seed, which are the same for all methods, and is
asked for each condition. It is a process of one thread.

    c2st            the accuracy of a random forest that tells draws from those of the reference
    fit_seconds, sample_seconds
                    processor time of the fit, and of the draws of a condition
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks import runs
from tests.benchmarks.partial import methods, summary
from tests.benchmarks.partial.problem import Numbers, Problem, load_answer
from tests.benchmarks.partial.references import reference
from tests.benchmarks.partial.scores import c2st
from tests.benchmarks.partial.tasks import KINDS, TASKS, Condition, condition_of

NAMES = (*methods.METHODS, "reference")
FIT = ("task", "simulations", "seed", "method")
KEY = (*FIT, "kind", "condition", "draws")
VALUES = ("numbers", "c2st", "fit_seconds", "sample_seconds", "steps")
REFERENCE_SEED, OTHER_SEED = 3_000_000, 4_000_000
"""Are the seeds of the reference, and of other draws of it, which are scored as a method."""


def references_of(task: str, conditions: list[Condition], n: int, seed: int) -> Numbers:
    """Reference draws, (k, n, d)."""
    drawn = [
        reference(task, TASKS[task], c.given, c.z, n, seed + k) for k, c in enumerate(conditions)
    ]
    return np.stack([values.numpy() for values in drawn])


def answer_of(
    fit: runs.Row, conditions: list[Condition], options: argparse.Namespace
) -> tuple[Numbers, dict[str, Any]]:
    """Draws of a method for conditions, (k, draws, d), and the seconds that it took."""
    task, method = TASKS[fit["task"]], fit["method"]
    if method == "reference":
        return references_of(fit["task"], conditions, options.draws, OTHER_SEED), {}
    problem = Problem(
        task=fit["task"],
        method=method,
        seed=fit["seed"],
        parameters=task.parameters,
        draws=options.draws,
        steps=options.steps,
        z=task.draws(fit["simulations"], fit["seed"]).double().numpy(),
        given=np.stack([c.given.numpy() for c in conditions]),
        values=np.stack([c.z.double().numpy() for c in conditions]),
    )
    with runs.folder() as name:
        folder = Path(name)
        problem.save(folder)
        module = "tests.benchmarks.partial.methods"
        runs.run_process(sys.executable, module, [name], options.limit)
        return load_answer(folder)


def do(fit: runs.Row, rows: runs.Rows, options: argparse.Namespace) -> None:
    """Add the rows of a fit that are not there."""
    asked = [row for row in rows_of(fit, options) if not rows.has(row)]
    task = TASKS[fit["task"]]
    conditions = [condition_of(task, row["kind"], row["condition"]) for row in asked]
    draws, seconds = answer_of(fit, conditions, options)
    exact = references_of(fit["task"], conditions, options.draws, REFERENCE_SEED)
    for k, (row, condition) in enumerate(zip(asked, conditions, strict=True)):
        drawn = (~condition.given).numpy()
        if condition.kind == "part":  # which asks for parameters alone
            drawn[TASKS[fit["task"]].parameters :] = False
        score = c2st(exact[k][:, drawn], draws[k][:, drawn])
        scores = {"numbers": int(drawn.sum()), "c2st": score, "steps": options.steps}
        rows.add(row | scores | seconds)


def rows_of(fit: runs.Row, options: argparse.Namespace) -> list[runs.Row]:
    """The conditions of a fit that its method answers."""
    return [
        fit | {"kind": kind, "condition": number, "draws": options.draws}
        for kind in options.kinds
        if methods.answers(fit["method"], fit["task"], kind)
        for number in range(1 if kind == "joint" else options.conditions)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--methods", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--simulations", nargs="+", type=int, default=[10_000])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--conditions", type=int, default=10, help="of each kind of mask")
    parser.add_argument("--draws", type=int, default=2_000, help="of each conditional")
    parser.add_argument("--steps", type=int, default=0, help="of training; 0: as by default")
    parser.add_argument("--limit", type=float, default=36_000.0, help="seconds of a method")
    parser.add_argument("--workers", type=int, default=1, help="processes at a time")
    parser.add_argument("--out", type=Path, default=Path("runs/partial.csv"))
    parser.add_argument("--summary", type=Path, help="folder of the tables made of --out")
    options = parser.parse_args()
    if options.summary:
        summary.of_conditionals(options.out, options.summary)
        return
    rows = runs.Rows(options.out, KEY, VALUES)
    fits = [
        dict(zip(FIT, (task, simulations, seed, method), strict=True))
        for simulations in options.simulations
        for seed in range(options.seeds)
        for task in options.tasks
        for method in options.methods
    ]
    asked = [fit for fit in fits if not all(map(rows.has, rows_of(fit, options)))]
    failed = runs.do_all(asked, lambda fit: do(fit, rows, options), options.workers)
    sys.exit(f"{len(failed)} fits failed" if failed else 0)


if __name__ == "__main__":
    main()
