"""Posteriors of posteriordb as Pyro programs: AutoMDM, a Gaussian, flows and NUTS.

    git clone --depth 1 https://github.com/stan-dev/posteriordb
    python -m tests.benchmarks.posteriordb --folder posteriordb --check
    python -m tests.benchmarks.posteriordb --folder posteriordb --out runs/posteriordb.csv
    python -m tests.benchmarks.posteriordb --folder posteriordb --truths runs/truths.csv
    python -m tests.benchmarks.posteriordb --folder posteriordb --out runs/posteriordb.csv \\
        --truths runs/truths.csv --summary docs/measured/data

The second holds every program to its reference draws: how many standard errors its slope is off.
The third fits, and writes a row for each fit as it ends. Another call goes on from there. The
fourth writes what reference draws say by themselves: see truths.py. The last makes the
documentation's tables. Priors that are flat have no evidence of a unit; there ELBO and log Z are up
to a constant, the same for all methods. Energy distances are of unconstrained latents. Seconds are
those of the processor.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

from tests.benchmarks import runs
from tests.benchmarks.posteriordb import summary, truths
from tests.benchmarks.posteriordb.base import Folder
from tests.benchmarks.posteriordb.fit import DRAWS
from tests.benchmarks.posteriordb.methods import METHODS
from tests.benchmarks.posteriordb.targets import POSTERIORS, Loaded, worst_identity

KEY = ("posterior", "method", "seed", "seconds")
VALUES = ("elbo", "elbo_se", "log_z", "ess", "k_hat", "largest")
ENERGIES = ("energy", "energy_raw", "floor")
TIMES = ("fit_seconds", "draw_seconds", "updates")
MOST = 5.0
"""Standard errors beyond which a program is not that of its draws."""


def do(job: runs.Row, folder: Path, limit: float) -> runs.Row:
    """The scores of a fit."""
    with runs.folder() as name:
        file = Path(name) / "scores.json"
        arguments = [str(folder), *(str(job[key]) for key in KEY), str(file)]
        runs.run_process(sys.executable, "tests.benchmarks.posteriordb.fit", arguments, limit)
        return dict(json.loads(file.read_text()))


def check(names: list[str], folder: Path) -> list[str]:
    """The names of programs that disagree with their draws."""
    wrong = []
    for name in names:
        loaded = Loaded(name, Folder(folder))
        off = worst_identity(loaded)
        print(f"{name}: {loaded.target.dim} latents, {off:.2f} standard errors", flush=True)
        if not off < MOST:
            wrong.append(name)
    return wrong


def held(name: str, folder: Path) -> runs.Row:
    """What the reference draws of a posterior say by themselves."""
    return dict(truths.truths(Loaded(name, Folder(folder)), DRAWS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="a checkout of posteriordb")
    parser.add_argument("--posteriors", nargs="+", default=[*POSTERIORS], choices=POSTERIORS)
    parser.add_argument("--methods", nargs="+", default=[*METHODS], choices=METHODS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=30.0, help="of the processor, for a fit")
    parser.add_argument("--workers", type=int, default=1, help="processes at a time")
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds of a process")
    parser.add_argument("--out", type=Path, default=Path("runs/posteriordb.csv"))
    parser.add_argument("--check", action="store_true", help="hold programs to their draws")
    parser.add_argument("--truths", type=Path, help="file of the references' own values")
    parser.add_argument("--summary", type=Path, help="folder of the tables made of both files")
    options = parser.parse_args()
    Folder(options.folder)  # refuses another folder at once
    if options.check:
        wrong = check(options.posteriors, options.folder)
        sys.exit(f"not of their draws: {', '.join(wrong)}" if wrong else 0)
    if options.summary:
        summary.of_posteriors(options.out, options.truths, options.folder, options.summary)
        return
    if options.truths:
        rows = runs.Rows(options.truths, ("posterior",), truths.VALUES)
        jobs = [{"posterior": name} for name in options.posteriors]
        runs.run_all(jobs, lambda job: held(job["posterior"], options.folder), rows, 1)
        return
    fits = [
        {"posterior": name, "method": method, "seed": seed, "seconds": f"{options.seconds:g}"}
        for seed, name, method in itertools.product(
            range(options.seeds), options.posteriors, options.methods
        )
    ]
    rows = runs.Rows(options.out, KEY, (*VALUES, *ENERGIES, *TIMES))
    failed = runs.run_all(
        fits, lambda fit: do(fit, options.folder, options.limit), rows, options.workers
    )
    sys.exit(f"{len(failed)} fits failed" if failed else 0)


if __name__ == "__main__":
    main()
