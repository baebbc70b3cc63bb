"""The recipe of tables with each part left out, on tables that it was chosen on.

    python -m tests.benchmarks.tables.peers
    OMP_NUM_THREADS=1 python -m tests.benchmarks.table_ladder --out runs/ladder.csv
    python -m tests.benchmarks.table_ladder --out runs/ladder.csv --summary docs/measured/data

The first has the tables. 30% of the entries are missing at random, as in
tests.benchmarks.imputation, whose scores these are. A variant is paired with the recipe by table
and seed.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd

from inference import Table
from models.tabular import Tabular
from pyro_mdm.tables import MapMLP, MixedDenoiser, denoiser
from tests.benchmarks import runs
from tests.benchmarks.imputation import SCORES, scores_of
from tests.benchmarks.tables.data import CHOSEN_ON, ENVIRONMENT, Task, task_of

ONE = {"members": 1, "hidden": 128, "depth": 3}
VARIANTS: dict[str, dict[str, Any]] = {
    "the recipe": {},
    "no training": {"steps": 1},
    "logits from 0": {"logits": False},
    "one member of 128": {"network": ONE},
    "no waves": {"network": {"frequencies": ()}},
    "all log SNRs alike": {"window": None},
    "the last weights": {"keeps_best": False},
}
COMMAND = "OMP_NUM_THREADS=1 python -m tests.benchmarks.table_ladder --out runs/ladder.csv"
KEY = ("seed", "table", "variant")


def without_levels(*arguments: Any) -> MapMLP:
    """A network whose logits start at 0, not by Bayes' rule."""
    return MapMLP(*arguments[:6], None, None, *arguments[8:])


def draws_of(task: Task, variant: dict[str, Any]) -> np.ndarray:
    """Draws (S, n, d) of the test rows by a Table that is trained in another way."""
    own, problem, usual = dict(variant), task.problem, MixedDenoiser.from_gaussian
    network = own.pop("network", {})
    changed = {name: own.pop(name) for name in ("window", "keeps_best") if name in own}
    made = MapMLP if own.pop("logits", True) else without_levels
    with (
        mock.patch.multiple(Tabular, **(changed or {"keeps_best": True})),
        mock.patch.object(denoiser, "MapMLP", made),
        mock.patch.object(MixedDenoiser, "from_gaussian", lambda *a, **k: usual(*a, **k | network)),
    ):
        table = Table(seed=problem.seed, **own).fit(problem.frame(False))
    draws = table.impute(problem.frame(True), problem.draws)
    return problem.codes(draws).reshape(problem.draws, -1, len(problem.names))


def summarized(file: Path, out: Path) -> None:
    """Write the means over tables and seeds, and what they are more than those of the recipe."""
    rows = pd.read_csv(file)
    scores = ["rmse", "crps", "log_score", "coverage", "brier", "log_score_of_categories"]
    whole = rows.set_index(["variant", "table", "seed"])
    recipe = whole.loc["the recipe"]
    lines = []
    for variant in VARIANTS:
        own = whole.loc[variant]
        line = {"variant": variant}
        for score in scores:
            line[score] = own[score].mean()
            if variant != "the recipe":
                more = (own[score] - recipe[score]).dropna()
                line[f"{score}_less_recipe"] = more.mean()
                line[f"{score}_less_recipe_se"] = more.std() / len(more) ** 0.5
        line["cpu_seconds"] = own["cpu_seconds"].mean()
        lines.append(line)
    seeds, tables = rows["seed"].nunique(), ", ".join(rows["table"].unique())
    head = [
        f"# command: {COMMAND} --seeds {seeds} --tables {tables.replace(',', '')}",
        "# machine: machine E",
        f"# date: {time.strftime('%Y-%m-%d')}",
        f"# seeds: {', '.join(map(str, sorted(rows['seed'].unique())))}",
        f"# note: means over {tables}, 30% missing; errors are over tables and seeds",
    ]
    text = pd.DataFrame(lines).round(4).to_csv(index=False)
    (out / "imputation-ladder.csv").write_text("\n".join(head) + "\n" + text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--tables", nargs="+", default=list(CHOSEN_ON), choices=CHOSEN_ON)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--summary", type=Path, help="folder of the table made of --out")
    options = parser.parse_args()
    if options.summary is not None:
        summarized(options.out, options.summary)
        return
    rows = runs.Rows(options.out, KEY, [*SCORES, "cpu_seconds"])

    def work(job: runs.Row) -> runs.Row:
        task = task_of(job["table"], "30%", job["seed"], 50, options.environment)
        began = time.process_time()
        draws = draws_of(task, VARIANTS[job["variant"]])
        return scores_of(task, draws, None) | {"cpu_seconds": time.process_time() - began}

    jobs = [
        {"seed": seed, "table": table, "variant": variant}
        for seed in range(options.seeds)
        for table in options.tables
        for variant in options.variants
    ]
    runs.run_all(jobs, work, rows, 1)


if __name__ == "__main__":
    main()
