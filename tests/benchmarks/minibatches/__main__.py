"""AutoMDM by subsamples of a plate's rows, beside AutoMDM by all rows, Gaussians, NUTS and NumPyro.

    python -m tests.benchmarks.minibatches --environment runs/numpyro --tables docs/measured/data

Programs are in programs.py, with their exact evidence. ``semi_dais`` and ``numpyro_normal`` are
NumPyro's AutoSemiDAIS and AutoNormal, by the settings of NumPyro's own test (semi_dais.py), and run
in an environment that is made for them. Seconds are of the processor, of one thread.
"""

from __future__ import annotations

import argparse
import json
import subprocess
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
from tests.benchmarks import environments, runs
from tests.benchmarks.documented import mean_and_error
from tests.benchmarks.frame import Options, Row, Study, main
from tests.benchmarks.minibatches.programs import HIERARCHIES, Hierarchy

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


def by_auto_mdm(hierarchy: Hierarchy, updates: int, draws: int, *args: Any) -> Row:
    guide = AutoMDM(hierarchy.program, steps=8, **hierarchy.options)
    began = time.process_time()
    guide.fit(*args, updates=updates, start_updates=updates, progress=False)
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
        "log_z_error": weights.log_evidence.mean - truth,
        "ess": weights.effective / draws,
        "mean": mean,
        "deviation": float((shares * (values - mean).square()).sum().sqrt()),
        "seconds": seconds,
    }


def by_auto_normal(hierarchy: Hierarchy, updates: int) -> Row:
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
        "seconds": seconds,
    }


def by_nuts(hierarchy: Hierarchy) -> Row:
    mcmc = MCMC(NUTS(hierarchy.program), 1_000, 500, disable_progbar=True)
    began = time.process_time()
    mcmc.run(None)
    seconds = time.process_time() - began
    draws = mcmc.get_samples()["mean"].double()
    return {"mean": float(draws.mean()), "deviation": float(draws.std()), "seconds": seconds}


def by_numpyro(hierarchy: Hierarchy, method: str, seed: int, environment: Path) -> Row:
    environments.install(environment, PACKAGES)
    with runs.folder() as name:
        file = Path(name) / "bounds.json"
        script = Path(__file__).with_name("semi_dais.py")
        python = str(environments.python_of(environment))
        subprocess.run([python, str(script), str(seed), str(file)], check=True)
        row = json.loads(file.read_text())[method]
    return {"gap": hierarchy.log_evidence() - row["bound"], "seconds": row["seconds"]}


def scores(fit: Row, options: Options) -> Row:
    """The scores of a fit."""
    updates = 5 if options.small else options.updates
    pyro.clear_param_store()
    pyro.set_rng_seed(fit["seed"])
    hierarchy, method = HIERARCHIES[fit["program"]], fit["method"]
    draws = DRAWS.get(fit["program"], 1_000)
    if method == "subsampled":
        return by_auto_mdm(hierarchy, updates, draws, hierarchy.batch)
    if method == "all_rows":
        return by_auto_mdm(hierarchy, updates, draws, None)
    if method == "auto_normal":
        return by_auto_normal(hierarchy, updates)
    if method == "nuts":
        return by_nuts(hierarchy)
    return by_numpyro(hierarchy, method, fit["seed"], options.environment)


def over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    table = []
    for (program, method), some in rows.groupby(["program", "method"], sort=False):
        cells: Row = {"program": program, "method": method, "seeds": len(some)}
        for name in ("gap", "log_z_error", "ess", "mean", "deviation", "seconds"):
            cells[name], error = mean_and_error(some[name])
            if name in ("gap", "log_z_error"):
                cells[f"{name}_se"] = error
        table.append(cells)
    return pd.DataFrame(table)


STUDIES = {
    "automatic-guides-minibatches": Study(
        scores,
        [
            {"program": program, "method": method}
            for program in HIERARCHIES
            for method in METHODS
            if program in METHODS[method]
        ],
        over_seeds,
        seeds=3,
        unit="nats",
        notes=["se: standard error over seeds"],
    )
}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--updates", type=int, default=400, help="of start and chain each")
    parser.add_argument("--environment", type=Path, default=Path("runs/numpyro"))


if __name__ == "__main__":
    main("minibatches", __doc__, STUDIES, arguments)
