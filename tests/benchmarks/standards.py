"""AutoMDM on the standard targets of the literature, and on a first-order phase transition.

    git clone --depth 1 https://github.com/DenisBless/variational_sampling_methods
    python -m tests.benchmarks.standards --folder variational_sampling_methods \\
        --out runs/standards.csv
    python -m tests.benchmarks.standards --folder variational_sampling_methods \\
        --out runs/standards.csv --summary docs/measured/data

Another call goes on where the last one ended. Guides start at 0 of the unconstrained latents, as
the study's do. Seconds are those of the processor.

    reference   log Z by long runs (densities/references.py), or in closed form
    gaussian    the guide's Gaussian alone
    chain       AutoMDM with its Gaussian start
    particles   AutoMDM with particles, up to 20 latents here

Of phase transitions ``check`` says whether to trust the fit, and the distance of a second one.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pyro
from pyro.infer.autoguide import init_to_uniform

from pyro_mdm import AutoMDM
from pyro_mdm.automatic.chain import Chain
from pyro_mdm.automatic.weighing import Weighing
from tests.benchmarks import runs
from tests.benchmarks.densities import references
from tests.benchmarks.densities.base import Draws, Target
from tests.benchmarks.densities.scores import OTHER, of_modes, of_weights, resampled
from tests.benchmarks.densities.standards import makers
from tests.benchmarks.documented import mean_and_error, seeds_in_words, write

KEY = ("target", "method", "seed", "seconds")
VALUES = ("elbo", "elbo_se", "log_z", "log_z_se", "ess", "k_hat", "mode_distance", "fit_seconds")
CHECKED = ("is_trusted", "other_log_z", "distance", "remedy")
METHODS = ("reference", "gaussian", "chain", "particles")
DRAWS = 4_000
RUN = {"particles": 2_048, "runs": 4, "draws": 50_000}
"""Of a reference."""


def reference(target: Target) -> runs.Row:
    if target.log_z is not None:
        return {"log_z": target.log_z, "log_z_se": 0.0}
    made = references.of_runs(target, **RUN)
    log_z, error = references.mean_of(made["log_z_runs"].numpy())
    return {"log_z": log_z, "log_z_se": error, "ess": float(made["effective"])}


def scores(target: Target, method: str, seconds: float, seed: int) -> runs.Row:
    """The scores of a fit, and what its check says where modes are known."""
    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    start = "particles" if method == "particles" else "gaussian"
    guide = AutoMDM(target.program, start=start, init_loc_fn=init_to_uniform(radius=0.1))
    began = time.process_time()
    with mock.patch("pyro_mdm.budgets.monotonic", time.process_time):
        if method == "gaussian":
            guide.fit(updates=0, seconds=seconds, progress=False)
            assert isinstance(guide.chain, Chain)
            guide.chain.rest()
        else:
            guide.fit(seconds=seconds, progress=False)
        made: runs.Row = {"fit_seconds": time.process_time() - began}
        pyro.set_rng_seed(seed + OTHER)
        drawn = Draws(*Weighing(guide).weighted(DRAWS))
        assert drawn.log_weights is not None
        made |= of_weights(drawn.log_weights)
        made["log_z_se"] = ((1 / made["ess"] - 1) / DRAWS) ** 0.5
        if target.modes is not None:
            made["mode_distance"] = of_modes(target.modes, resampled(drawn, seed))["mode_distance"]
            if method != "gaussian":
                made |= checked(guide)
    return made


def checked(guide: AutoMDM) -> runs.Row:
    result = guide.check(progress=False)
    print(result, flush=True)
    other = result.second.weights if result.second else None
    return {
        "is_trusted": int(result.is_trusted),
        "other_log_z": float(other.log_evidence.mean) if other else "",
        "distance": result.distance,
        "remedy": result.remedies[0] if result.remedies else "",
    }


def of_standards(file: Path, folder: Path) -> None:
    """posteriordb-standards, of the literature's targets; posteriordb-transitions, of phase
    transitions, with what ``check`` says."""
    rows = pd.read_csv(file)
    is_truth = rows.method == "reference"
    truths, fits = rows[is_truth].set_index("target"), rows[~is_truth]
    fits = fits.join(truths[["log_z", "log_z_se"]].add_prefix("true_"), on="target")
    fits["gap"] = fits.true_log_z - fits.elbo
    fits["log_z_error"] = fits.log_z - fits.true_log_z
    fits["other_log_z_error"] = fits.other_log_z - fits.true_log_z
    fits["sum_log_z_error"] = np.logaddexp(fits.log_z, fits.other_log_z) - fits.true_log_z
    is_transition = fits.target.str.startswith("phase")
    seconds = ", ".join(f"{s:g}" for s in sorted(fits.seconds.unique()))
    command = (
        "python -m tests.benchmarks.standards --folder variational_sampling_methods "
        f"--seconds {seconds} --seeds {fits.seed.nunique()}"
    )
    note = "means over seeds and their standard errors, which of single seeds are those of draws"

    def save(name: str, part: pd.DataFrame, scores: Sequence[str], *notes: str) -> None:
        made = [
            {"target": target, "method": method, "seeds": len(group)} | means(group, scores)
            for (target, method), group in part.groupby(["target", "method"], sort=False)
        ]
        table = pd.DataFrame(made).dropna(axis=1, how="all")
        path = folder / f"posteriordb-{name}.csv"
        write(path, table, [command], seeds_in_words(part), notes=[note, *notes], digits=4)

    save(
        "standards",
        fits[~is_transition],
        ("true_log_z", "elbo", "gap", "log_z", "log_z_error", "ess", "k_hat", "fit_seconds"),
        "gap is log Z of the long runs − ELBO, nats",
    )
    save(
        "transitions",
        fits[is_transition],
        (
            *("true_log_z", "log_z_error", "ess", "k_hat", "mode_distance", "is_trusted"),
            *("other_log_z_error", "sum_log_z_error"),
        ),
        "is_trusted is what check says of the fit beside a second one, 1 for yes; "
        "other_log_z_error is that of the second fit, and sum_log_z_error that of the sum of both",
    )


def means(fits: pd.DataFrame, scores: Sequence[str]) -> dict[str, float]:
    """Means over seeds, and their standard errors; of a single seed, the fit's own."""
    made = {}
    for score in scores:
        made[score], made[f"{score}_se"] = mean_and_error(fits[score])
        if score == "true_log_z" or (len(fits) == 1 and score in ("elbo", "log_z")):
            made[f"{score}_se"] = fits[f"{score}_se"].iloc[0]
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="a clone of the study")
    parser.add_argument("--targets", nargs="+", choices=makers(Path()))
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=30.0, help="of the processor, for a fit")
    parser.add_argument("--out", type=Path, default=Path("runs/standards.csv"))
    parser.add_argument("--summary", type=Path, help="folder of the tables made of --out")
    options = parser.parse_args()
    if options.summary:
        of_standards(options.out, options.summary)
        return
    pyro.enable_validation(False)
    by_name = {n: functools.cache(m) for n, m in makers(options.folder).items()}

    def do(job: runs.Row) -> runs.Row:
        target = by_name[job["target"]]()
        if job["method"] == "reference":
            return reference(target)
        return scores(target, job["method"], options.seconds, job["seed"])

    jobs = [
        {"target": name, "method": method, "seed": seed, "seconds": f"{options.seconds:g}"}
        for method in options.methods
        for name in options.targets or by_name
        for seed in range(1 if method == "reference" else options.seeds)
        if method != "particles" or by_name[name]().dim <= 20
    ]
    rows = runs.Rows(options.out, KEY, (*VALUES, *CHECKED))
    sys.exit(1 if runs.run_all(jobs, do, rows, 1) else 0)


if __name__ == "__main__":
    main()
