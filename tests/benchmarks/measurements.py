"""Samplers of p(x | obs), obs = H x + noise: ours beside others, on problems with known answers.

    python -m tests.benchmarks.inverse_problems.peers
    python -m tests.benchmarks.measurements --workers 2 --out runs/measurements.csv
    python -m tests.benchmarks.measurements --out runs/measurements.csv --summary docs/measured/data

The first makes the environment of the others, the second adds to its file what it has not yet, and
the third writes the tables of the documentation. Data are mixtures of four Gaussians with their
exact denoisers, of so many dimensions; the noise is easy or hard; H are random combinations,
combinations that depend on each other, or a blur (inverse_problems/problems.py). Each seed has a
mixture, an H and a datum of its own. All methods are given the same denoiser. A problem is a
process of one thread for ours, and one for the others'. Columns are

    energy          the squared energy distance of the draws to the exact posterior, and ``floor``,
                    that of as many exact draws in the mean
    mean_error      root mean square over dimensions, in posterior standard deviations
    weights_error   half the sum over components of the differences of their posterior weights
    log_evidence    of methods that estimate it, with its standard error, beside the exact one
    steps, calls    of each draw; a call of the denoiser is one, a product of its Jacobian or of the
                    transpose with a vector two (inverse_problems/counting.py)
    seconds         of the processor, for all draws
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tests.benchmarks import runs
from tests.benchmarks.environments import python_of
from tests.benchmarks.inverse_problems import summary
from tests.benchmarks.inverse_problems.methods import COMPARED, EXACT, METHODS, OF_PEERS, ONE_BUDGET
from tests.benchmarks.inverse_problems.peers import ENVIRONMENT
from tests.benchmarks.inverse_problems.problems import NOISES, OPERATORS, SIZES

PROBLEM = ("size", "noise", "operator", "seed")
KEY = (*PROBLEM, "method", "budget", "draws")
SCORES = (
    "steps",
    "energy",
    "floor",
    "mean_error",
    "weights_error",
    "calls",
    "seconds",
    "log_evidence",
    "log_evidence_se",
    "exact_log_evidence",
)


def do(job: runs.Row, rows: runs.Rows, options: argparse.Namespace) -> None:
    """Add the rows of a problem that are not there, of methods of one environment."""
    python = python_of(options.environment) if job["of_peers"] else sys.executable
    problem = {name: job[name] for name in PROBLEM}
    with runs.folder() as name:
        folder = Path(name)
        cells = [{k: cell[k] for k in KEY if k not in PROBLEM} for cell in job["cells"]]
        asked = {"problem": [*problem.values()], "cells": cells}
        (folder / "cells.json").write_text(json.dumps(asked))
        module = "tests.benchmarks.inverse_problems.methods"
        runs.run_process(python, module, [name], options.limit)
        for row in json.loads((folder / "rows.json").read_text()):
            rows.add(problem | row)


def jobs_of(rows: runs.Rows, options: argparse.Namespace) -> list[runs.Row]:
    """Problems with the cells that have no row."""
    jobs = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for size in options.sizes:
            for noise in options.noises:
                for operator in options.operators:
                    problem = dict(zip(PROBLEM, (size, noise, operator, seed), strict=True))
                    cells = [
                        problem | {"method": method, "budget": budget, "draws": options.draws}
                        for method in options.methods
                        for budget in (
                            [ONE_BUDGET[method]] if method in ONE_BUDGET else options.budgets
                        )
                    ]
                    for peers in (False, True):
                        own = [
                            cell
                            for cell in cells
                            if (cell["method"] in OF_PEERS) == peers and not rows.has(cell)
                        ]
                        if own:
                            jobs.append(problem | {"of_peers": peers, "cells": own})
    return jobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    methods, compared = [EXACT, *METHODS], [EXACT, *COMPARED]
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), choices=SIZES)
    parser.add_argument("--noises", nargs="+", default=list(NOISES), choices=NOISES)
    parser.add_argument("--operators", nargs="+", default=list(OPERATORS), choices=OPERATORS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", default=compared, choices=methods, metavar="METHOD")
    parser.add_argument(
        "--budgets",
        nargs="+",
        default=["250 calls", "1000 calls"],
        help="such as '200 steps', '250 calls' of a draw or '5 seconds' of all draws",
    )
    parser.add_argument("--draws", type=int, default=2_000)
    parser.add_argument("--workers", type=int, default=1, help="processes at a time")
    parser.add_argument("--limit", type=float, default=7200.0, help="seconds of a problem")
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT, help="of the others")
    parser.add_argument("--out", type=Path, default=Path("runs/measurements.csv"))
    parser.add_argument("--summary", type=Path, help="folder of the tables made of --out")
    options = parser.parse_args()
    if options.summary:
        summary.of_measurements(options.out, options.summary)
        return
    rows = runs.Rows(options.out, KEY, SCORES)
    failed = runs.do_all(
        jobs_of(rows, options), lambda job: do(job, rows, options), options.workers
    )
    sys.exit(f"{len(failed)} problems failed" if failed else 0)


if __name__ == "__main__":
    main()
