"""Answers of slow and fast programs within a few seconds: AutoMDM and what is quicker to have.

    python -m tests.benchmarks.first_answers --seconds 10 --seeds 3 --out runs/first-answers.csv
    python -m tests.benchmarks.first_answers --out runs/first-answers.csv \\
        --summary docs/measured/data

Another call goes on where the last one ended. Ways:

    truth            log Z of the programs in densities/answers.py, in closed form, or by weights of
                     many draws of Student laws
    auto_mdm         AutoMDM(program).fit(seconds=…), as a user calls it
    auto_mdm_usual   its fit() without seconds, of ``--usual`` programs
    auto_multivariate_normal
                     Pyro's guide by SVI in the same seconds (densities/baselines.py)
    auto_laplace     Pyro's AutoLaplaceApproximation, whose mode is sought by SVI
    laplace          the mode by BFGS, and weights of a Student law there (densities/laplace.py)

Seconds are those of the clock (``--clock wall``), as a user has them, or of the processor, which
does not feel what runs beside. Both are written for the fit, without the draws for its scores.

The forty-five public programs are run in the same seconds, of the processor, by

    python -m tests.benchmarks.posteriordb --folder posteriordb --seconds 10 --seeds 1 \\
        --methods auto_mdm auto_multivariate_normal --out runs/posteriordb-10.csv
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pandas as pd
import pyro
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoLaplaceApproximation, init_to_median
from torch import Tensor

from pyro_mdm import AutoMDM
from pyro_mdm.automatic.weighing import Weighing
from pyro_mdm.evaluation.weights import ImportanceWeights
from tests.benchmarks import documented, runs
from tests.benchmarks.densities.answers import PROGRAMS, start_of, truth
from tests.benchmarks.densities.base import Fitted, Target
from tests.benchmarks.densities.baselines import METHODS, Clock, descend, weigh
from tests.benchmarks.densities.laplace import laplace
from tests.benchmarks.densities.scores import OTHER

KEY = ("program", "way", "seed", "seconds")
VALUES = (
    *("wall", "processor", "updates", "elbo", "elbo_se", "log_z", "log_z_se"),
    *("k_hat", "doubted"),
)
DRAWS = 4_000
LEFT_FOR_CURVATURE = 0.1
"""The share of the seconds that a search for a mode leaves."""


# -- ways ------------------------------------------------------------------------------------------


def auto_mdm(target: Target, seconds: float | None, seed: int) -> tuple[AutoMDM, int]:
    """A fitted guide, and the number of its updates."""
    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    guide = AutoMDM(target.program).fit(seconds=seconds, progress=False)
    return guide, sum(outcome.steps for outcome in guide.outcomes.values())


def auto_laplace(target: Target, seconds: float, seed: int) -> Fitted:
    clock = Clock(seconds)
    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    guide = AutoLaplaceApproximation(target.program, init_loc_fn=init_to_median)
    guide()  # which makes its parameters
    loss = functools.partial(Trace_ELBO().differentiable_loss, target.program, guide)
    search = Clock((1 - LEFT_FOR_CURVATURE) * seconds)
    updates = descend(guide.parameters(), loss, 0.02, search)
    law = guide.laplace_approximation().get_posterior()

    def sample(n: int) -> tuple[Tensor, Tensor]:
        x = law.sample((n,))
        return x, law.log_prob(x)

    return Fitted(functools.partial(weigh, target, sample), updates, clock.spent)


def plain_laplace(target: Target, seconds: float, seed: int) -> Fitted:
    clock = Clock(seconds)
    search = Clock((1 - LEFT_FOR_CURVATURE) * seconds)
    law = laplace(target, start_of(target, seed), lambda: search.left < 0)

    def sample(n: int) -> tuple[Tensor, Tensor]:
        x = law.draw(n, torch.Generator().manual_seed(int(torch.randint(2**31, ()))))
        return x, law.log_density(x)

    return Fitted(functools.partial(weigh, target, sample), 0, clock.spent)


OTHERS = {
    "auto_multivariate_normal": METHODS["auto_multivariate_normal"],
    "auto_laplace": auto_laplace,
    "laplace": plain_laplace,
}
WAYS = ("truth", "auto_mdm", "auto_mdm_usual", *OTHERS)


@contextlib.contextmanager
def by_clock(name: str) -> Iterator[None]:
    """Let all fits count seconds of the wall's clock, or of the processor."""
    of, clock = ("time.process_time", time.monotonic)
    if name == "processor":
        of, clock = ("pyro_mdm.budgets.monotonic", time.process_time)
    with mock.patch(of, clock):
        yield


def fit(target: Target, job: runs.Row, clock: str) -> runs.Row:
    """The time of a fit, and its scores."""
    way, seed, seconds = job["way"], job["seed"], float(job["seconds"] or math.inf)
    began, spent = time.monotonic(), runs.processor_seconds()
    with by_clock(clock):
        if way.startswith("auto_mdm"):
            guide, updates = auto_mdm(target, None if way == "auto_mdm_usual" else seconds, seed)
        else:
            fitted = OTHERS[way](target, seconds, seed)
            updates = fitted.updates
    row = {"wall": time.monotonic() - began, "processor": runs.processor_seconds() - spent}
    pyro.set_rng_seed(seed + OTHER)
    if way.startswith("auto_mdm"):
        log_weights, (_, weights) = (
            Weighing(guide).weighted(DRAWS)[1],
            Weighing(guide).weighed(DRAWS),
        )
    else:
        log_weights = fitted.draw(DRAWS, seed + OTHER).log_weights
        weights = ImportanceWeights(log_weights)
    log_z = weights.log_evidence
    return row | {
        **{"updates": updates, "elbo": float(log_weights.mean())},
        "elbo_se": float(log_weights.std()) / math.sqrt(DRAWS),
        **{"log_z": float(log_z.mean), "log_z_se": float(log_z.standard_error)},
        **{"k_hat": weights.pareto_k, "doubted": int(bool(weights.doubt))},
    }


def scored(file: Path) -> pd.DataFrame:
    """The rows of fits, with how far their bound and log Z are from the truth."""
    rows = pd.read_csv(file)
    truths = rows[rows.way == "truth"].set_index("program").log_z
    rows = rows[rows.way != "truth"].assign(truth=lambda fits: fits.program.map(truths))
    return rows.assign(gap=rows.truth - rows.elbo, off=rows.log_z - rows.truth)


def summary(file: Path) -> pd.DataFrame:
    """Means over seeds."""
    scores = ["gap", "off", "log_z_se", "k_hat", "doubted", "updates", "wall", "processor"]
    groups = scored(file).groupby(["program", "way", "seconds"], sort=False, dropna=False)
    return groups[scores].mean()


def document(file: Path, folder: Path) -> None:
    """automatic-first, the table of the documentation."""
    rows = []
    for (program, way), fits in scored(file).groupby(["program", "way"], sort=False):
        (gap, gap_se), (off, off_se) = (documented.mean_and_error(fits[n]) for n in ("gap", "off"))
        row = {"program": program, "way": way, "seeds": len(fits), "gap": gap, "gap_se": gap_se}
        row |= {"log_z_error": off, "log_z_error_se": off_se}
        row |= {"updates": round(fits.updates.mean()), "fit_seconds": fits.processor.mean()}
        rows.append(row)
    documented.write(
        folder / "automatic-first.csv",
        pd.DataFrame(rows),
        ["python -m tests.benchmarks.first_answers --seconds 10 --seeds 3 --clock processor"],
        seeds=documented.seeds_in_words(scored(file)),
        notes=[
            "fits within 10 seconds of the processor, with other work beside; auto_mdm_usual has "
            "no limit"
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", nargs="+", default=[*PROGRAMS], choices=PROGRAMS)
    parser.add_argument("--ways", nargs="+", default=[*WAYS], choices=WAYS)
    parser.add_argument("--usual", nargs="*", default=["six"], help="programs of auto_mdm_usual")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of a fit")
    parser.add_argument("--clock", default="wall", choices=("wall", "processor"))
    parser.add_argument("--out", type=Path, default=Path("runs/first-answers.csv"))
    parser.add_argument("--summary", type=Path, help="folder of the table made of --out")
    options = parser.parse_args()
    if options.summary:
        document(options.out, options.summary)
        return
    torch.set_num_threads(1)
    made = functools.cache(lambda name: PROGRAMS[name]())

    def do(job: runs.Row) -> runs.Row:
        if job["way"] == "truth":
            log_z, error = truth(job["program"])
            return {"log_z": log_z, "log_z_se": error}
        return fit(made(job["program"]), job, options.clock)

    jobs = [
        {"program": name, "way": way, "seed": seed, "seconds": f"{options.seconds:g}"}
        | ({"seconds": ""} if way in ("truth", "auto_mdm_usual") else {})
        for name, way, seed in itertools.product(
            options.programs, options.ways, range(options.seeds)
        )
        if (way != "auto_mdm_usual" or name in options.usual) and (way != "truth" or seed == 0)
    ]
    failed = runs.run_all(jobs, do, runs.Rows(options.out, KEY, VALUES), 1)
    print(summary(options.out).round(3).to_string())
    sys.exit(f"{len(failed)} fits failed" if failed else 0)


if __name__ == "__main__":
    main()
