"""AutoMDM by subsamples of a plate's rows, beside AutoMDM by all rows, Gaussians, NUTS and NumPyro.

    python -m tests.benchmarks.minibatches --out runs/minibatches.csv --environment runs/numpyro
    python -m tests.benchmarks.minibatches --out runs/minibatches.csv --summary docs/measured/data

The first adds to its file what it has not yet: a row for each program, method and seed. Programs
are in programs.py, with their exact evidence. ``semi_dais`` and ``numpyro_normal`` are NumPyro's
AutoSemiDAIS and AutoNormal, by the settings of NumPyro's own test (semi_dais.py), and run in an
environment that is made for them. Seconds are of the processor, of one thread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pyro
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

from pyro_mdm import AutoMDM
from pyro_mdm.automatic.weighing import Weighing
from pyro_mdm.evaluation.weights import ImportanceWeights
from tests.benchmarks import documented, environments, runs
from tests.benchmarks.minibatches.programs import HIERARCHIES, Hierarchy

KEY = ("program", "method", "seed")
VALUES = ("gap", "gap_se", "log_z_error", "log_z_se", "ess", "k_hat", "mean", "deviation")
METHODS = {
    "subsampled": ("normal", "schools", "logistic", "student"),
    "all_rows": ("schools", "logistic", "student"),
    "auto_normal": ("schools", "logistic", "student"),
    "nuts": ("logistic",),
    "semi_dais": ("student",),
    "numpyro_normal": ("student",),
}
PACKAGES = ("jax==0.6.2", "jaxlib==0.6.2", "numpyro==0.19.0", "optax==0.2.5")
DRAWS = {"normal": 100}
"""Draws by which a fit is scored, of 1,000 otherwise."""


def by_auto_mdm(hierarchy: Hierarchy, options: Any, draws: int, *args: Any) -> runs.Row:
    guide = AutoMDM(hierarchy.program, steps=options.steps, **hierarchy.options)
    began = time.process_time()
    guide.fit(*args, updates=options.updates, start_updates=options.updates, progress=False)
    seconds = time.process_time() - began
    x, log_weights = Weighing(guide, args).weighted(draws)
    weights = ImportanceWeights(log_weights)
    first = guide.program_density.by_site(x)
    values = next(iter(first.values())).reshape(draws, -1)[:, 0].double()
    shares = weights.normalized
    mean = float((shares * values).sum())
    truth = hierarchy.log_evidence()
    return {
        "gap": truth - float(log_weights.mean()),
        "gap_se": float(log_weights.std()) / math.sqrt(draws),
        "log_z_error": weights.log_evidence.mean - truth,
        "log_z_se": weights.log_evidence.standard_error,
        "ess": weights.effective / draws,
        "k_hat": weights.pareto_k,
        "mean": mean,
        "deviation": float((shares * (values - mean).square()).sum().sqrt()),
        "seconds": seconds,
    }


def by_auto_normal(hierarchy: Hierarchy, updates: int) -> runs.Row:
    guide = AutoNormal(hierarchy.program)
    elbo = Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=1)
    rate = {"lr": 0.05, "lrd": 0.01 ** (1 / (2 * updates))}
    svi = SVI(hierarchy.program, guide, pyro.optim.ClippedAdam(rate), elbo)
    began = time.process_time()
    for _ in range(2 * updates):
        svi.step(None)
    seconds = time.process_time() - began
    losses = torch.tensor([elbo.loss(hierarchy.program, guide, None) for _ in range(200)])
    return {
        "gap": hierarchy.log_evidence() + float(losses.mean()),
        "gap_se": float(losses.std()) / math.sqrt(200),
        "seconds": seconds,
    }


def by_nuts(hierarchy: Hierarchy) -> runs.Row:
    mcmc = MCMC(NUTS(hierarchy.program), 1_000, 500, disable_progbar=True)
    began = time.process_time()
    mcmc.run(None)
    seconds = time.process_time() - began
    draws = mcmc.get_samples()["mean"].double()
    return {"mean": float(draws.mean()), "deviation": float(draws.std()), "seconds": seconds}


def by_numpyro(hierarchy: Hierarchy, method: str, seed: int, environment: Path) -> runs.Row:
    environments.install(environment, PACKAGES)
    with runs.folder() as name:
        file = Path(name) / "bounds.json"
        script = Path(__file__).with_name("semi_dais.py")
        python = str(environments.python_of(environment))
        subprocess.run([python, str(script), str(seed), str(file)], check=True)
        row = json.loads(file.read_text())[method]
    return {"gap": hierarchy.log_evidence() - row["bound"], "seconds": row["seconds"]}


def do(fit: runs.Row, options: Any) -> runs.Row:
    """The scores of a fit."""
    torch.set_num_threads(1)
    pyro.clear_param_store()
    pyro.set_rng_seed(fit["seed"])
    hierarchy, method = HIERARCHIES[fit["program"]], fit["method"]
    draws = DRAWS.get(fit["program"], 1_000)
    if method == "subsampled":
        return by_auto_mdm(hierarchy, options, draws, hierarchy.batch)
    if method == "all_rows":
        return by_auto_mdm(hierarchy, options, draws, None)
    if method == "auto_normal":
        return by_auto_normal(hierarchy, options.updates)
    if method == "nuts":
        return by_nuts(hierarchy)
    return by_numpyro(hierarchy, method, fit["seed"], options.environment)


def summarize(options: Any) -> None:
    rows = pd.read_csv(options.out)
    table = []
    for (program, method), some in rows.groupby(["program", "method"], sort=False):
        cells: dict[str, Any] = {"program": program, "method": method, "seeds": len(some)}
        for name in ("gap", "log_z_error", "ess", "mean", "deviation", "seconds"):
            cells[name], error = documented.mean_and_error(some[name])
            if name in ("gap", "log_z_error"):
                cells[f"{name}_se"] = error
        table.append(cells)
    documented.write(
        options.summary / "automatic-guides-minibatches.csv",
        pd.DataFrame(table),
        [
            f"python -m tests.benchmarks.minibatches --updates {options.updates} --steps "
            f"{options.steps} --seeds {rows.seed.nunique()} --programs "
            + " ".join(rows.program.unique())
        ],
        documented.seeds_in_words(rows),
        "nats",
        ["se: standard error over seeds"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", nargs="+", default=list(HIERARCHIES), choices=HIERARCHIES)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--updates", type=int, default=400, help="of start and chain each")
    parser.add_argument("--steps", type=int, default=8, help="of the chain of the globals")
    parser.add_argument("--environment", type=Path, default=Path("runs/numpyro"))
    parser.add_argument("--out", type=Path, default=Path("runs/minibatches.csv"))
    parser.add_argument("--summary", type=Path, help="folder of the table made of --out")
    options = parser.parse_args()
    if options.summary:
        summarize(options)
        return
    jobs = itertools.product(range(options.seeds), options.programs, options.methods)
    fits = [
        {"program": program, "method": method, "seed": seed}
        for seed, program, method in jobs
        if program in METHODS[method]
    ]
    rows = runs.Rows(options.out, KEY, (*VALUES, "seconds"))
    failed = runs.run_all(fits, lambda fit: do(fit, options), rows, 1)
    sys.exit(f"{len(failed)} fits failed" if failed else 0)


if __name__ == "__main__":
    main()
