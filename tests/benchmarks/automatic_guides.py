"""Automatic guides: diffusions and guides that a Pyro user can import, in equal processor time.

    python -m tests.benchmarks.automatic_guides --workers 2 --out runs/automatic-guides.csv
    python -m tests.benchmarks.automatic_guides --out runs/automatic-guides.csv \\
        --summary docs/measured/data

The first adds to its file what it has not yet, the second writes the tables of the documentation.
Targets are Pyro programs in densities/targets.py; their references, where they have no exact draws,
are of densities/references.py. Others' methods are described in densities/baselines.py, ours in
densities/diffusions.py, scores in densities/scores.py. A fit is a process of one thread, and stops
after its seconds of processor time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

from tests.benchmarks import runs
from tests.benchmarks.densities import summary
from tests.benchmarks.densities.methods import METHODS
from tests.benchmarks.densities.targets import NAMES

KEY = ("target", "method", "seed", "seconds")
VALUES = ("elbo_se", "reference_se", *summary.SCORES)


def do(fit: runs.Row, limit: float) -> runs.Row:
    """The scores of a fit."""
    with runs.folder() as name:
        file = Path(name) / "scores.json"
        arguments = [str(fit[key]) for key in KEY]
        runs.run_process(
            sys.executable, "tests.benchmarks.densities.scores", [*arguments, str(file)], limit
        )
        return dict(json.loads(file.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the processor, for a fit")
    parser.add_argument("--workers", type=int, default=1, help="processes at a time")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds of a process")
    parser.add_argument("--out", type=Path, default=Path("runs/automatic-guides.csv"))
    parser.add_argument("--summary", type=Path, help="folder of the tables made of --out")
    options = parser.parse_args()
    if options.summary:
        summary.of_guides(options.out, options.summary)
        return
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    jobs = itertools.product(seeds, options.targets, options.methods)
    fits = [
        {"target": target, "method": method, "seed": seed, "seconds": f"{options.seconds:g}"}
        for seed, target, method in jobs
    ]
    rows = runs.Rows(options.out, KEY, VALUES)
    failed = runs.run_all(fits, lambda fit: do(fit, options.limit), rows, options.workers)
    sys.exit(f"{len(failed)} fits failed" if failed else 0)


if __name__ == "__main__":
    main()
