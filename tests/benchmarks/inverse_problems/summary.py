"""The documentation's tables of samplers of inverse problems."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tests.benchmarks.documented import interval, mean_and_error, seeds_in_words, write
from tests.benchmarks.inverse_problems.methods import DEFAULT, EXACT, METHODS
from tests.benchmarks.inverse_problems.peers import PACKAGES

__all__ = ["COMMANDS", "of_measurements"]

COMMANDS = (
    "python -m tests.benchmarks.inverse_problems.peers",
    "python -m tests.benchmarks.measurements --sizes 2 8 32 --out runs/measurements.csv",
)
PROBLEM = ["size", "noise", "operator"]
NAMES = [EXACT, *METHODS]
VERSIONS = ", ".join(PACKAGES).replace("==", " ")


def of_measurements(file: Path, folder: Path) -> None:
    """measurements-peers: a row for each method; -problems: for each problem; -evidence.

    Problems that some methods have not done are left out.
    """
    rows = pd.read_csv(file)
    cells = rows.groupby([*PROBLEM, "seed"]).energy.transform("size")
    rows = rows[cells == cells.max()]
    rows["method"] = pd.Categorical(rows.method, [n for n in NAMES if n in set(rows.method)])
    rows["floors"] = rows.energy / rows.floor
    rows = rows.sort_values("method", kind="stable")
    seeds, draws = seeds_in_words(rows), rows.draws.max()
    budgets = sorted(set(rows.budget) - {"0 steps"}, key=_place)
    problems = rows[[*PROBLEM, "seed"]].drop_duplicates()
    of_what = (
        f"{len(problems)} problems: data of {_listed(rows['size'].sort_values())} dimensions, "
        f"{_listed(rows.noise)} noise, {_listed(rows.operator)}"
    )
    energies = f"energies are squared energy distances of {draws} draws in units of the floor"
    cost = "a call of the denoiser is one, a product of its Jacobian with a vector two"

    made = []
    for method, part in rows.groupby("method", observed=True, sort=True):
        row: dict[str, object] = {"method": method}
        for budget in budgets:
            name = budget.replace(" ", "_")
            own = part if method == EXACT else part[part.budget == budget]
            quartiles = _quartiles(own.floors)
            row |= dict(zip((f"energy_{name}{end}" for end in ENDS), quartiles, strict=True))
        last = part[part.budget == part.groupby("budget").calls.mean().idxmax()]
        for score in ("mean_error", "weights_error"):
            row |= dict(
                zip((f"{score}{end}" for end in ENDS), _quartiles(last[score]), strict=True)
            )
        row["calls"] = float(last.calls.mean()) if method != EXACT else math.nan
        for budget in budgets:
            own = part[part.budget == budget]
            row[f"seconds_{budget.replace(' ', '_')}"] = float(own.seconds.mean())
        made.append(row)
    notes = [of_what, f"{energies}; medians over problems with quartiles", cost]
    notes += ["errors of mean and weights are those of a method's largest budget", VERSIONS]
    table = pd.DataFrame(made).dropna(axis=1, how="all")
    write(folder / "measurements-peers.csv", table, COMMANDS, seeds, notes=notes)

    made = []
    for names, part in rows.groupby([*PROBLEM, "method"], observed=True, sort=False):
        size, noise, operator, method = names
        row = {"problem": f"{size}, {noise} noise, {operator}", "method": method}
        for budget in budgets:
            own = part if method == EXACT else part[part.budget == budget]
            name = f"energy_{budget.replace(' ', '_')}"
            row[name], row[f"{name}_se"] = mean_and_error(own.floors)
        made.append(row)
    table = pd.DataFrame(made)
    table = table.sort_values("problem", kind="stable", key=_natural)
    notes = [energies, "errors are over seeds, whose problems differ", cost]
    write(folder / "measurements-problems.csv", table, COMMANDS, seeds, notes=notes)

    of_ratios(rows, folder, seeds, of_what)
    known = rows[rows.log_evidence.notna() & (rows.method != EXACT)]
    if not known.empty:
        of_evidence(known, folder, seeds, of_what)


LEAST = 0.1
"""Of the floor, below which a squared energy distance counts as this."""


def of_ratios(rows: pd.DataFrame, folder: Path, seeds: str, of_what: str) -> None:
    """measurements-ratios: distances relative to the default's of the same problem."""
    budgets = sorted((b for b in set(rows.budget) if b.endswith("calls")), key=_place)
    by_problem = {
        budget: rows[rows.budget == budget]
        .assign(log=lambda of: np.log(of.floors.clip(lower=LEAST)))
        .pivot(index=[*PROBLEM, "seed"], columns="method", values="log")
        for budget in budgets
    }
    pairs = [(budget, budget) for budget in budgets]
    if len(budgets) > 1:
        pairs.append((budgets[-1], budgets[0]))
    made = []
    for method in rows.method.cat.categories:
        row: dict[str, object] = {"method": method}
        for own, of_default in pairs:
            if method == DEFAULT or not {method}.issubset(by_problem[own].columns):
                continue
            apart = by_problem[own][method] - by_problem[of_default][DEFAULT]
            name = f"ratio_{own}" if own == of_default else f"ratio_{own}_to_{of_default}"
            ends = (math.exp(end) for end in interval(apart))
            labels = (f"{name.replace(' ', '_')}{end}" for end in ("", "_low", "_high"))
            row |= dict(zip(labels, ends, strict=True))
        made.append(row)
    table = pd.DataFrame(made).dropna(how="all", subset=pd.DataFrame(made).columns[1:])
    notes = [
        of_what,
        "squared energy distances relative to those of the default for the same problem: geometric "
        "means over problems, with Student's t; the last one compares the method's most calls with "
        "the default's fewest, which take about equal time for azula",
    ]
    write(folder / "measurements-ratios.csv", table, COMMANDS, seeds, notes=notes)


def of_evidence(known: pd.DataFrame, folder: Path, seeds: str, of_what: str) -> None:
    """measurements-evidence: errors of log p(obs), by method and budget."""
    made = []
    for names, part in known.groupby(["method", "budget"], observed=True, sort=True):
        off = part.log_evidence - part.exact_log_evidence
        made.append(
            {
                "method": f"{names[0]}, {names[1]}",
                **dict(zip(("error", "error_se"), mean_and_error(off), strict=True)),
                "least": float(off.min()),
                "largest": float(off.max()),
                "calls": float(part.calls.mean()),
            }
        )
    write(
        folder / "measurements-evidence.csv",
        pd.DataFrame(made),
        COMMANDS,
        seeds,
        unit="nats",
        notes=[
            of_what,
            "log p(obs) − its exact value",
        ],
    )


ENDS = ("", "_q1", "_q3")


def _quartiles(values: pd.Series) -> NDArray[np.float64]:
    if values.empty:
        return np.full(3, np.nan)
    return np.asarray(np.quantile(values, [0.5, 0.25, 0.75]))


def _place(budget: str) -> tuple[str, float]:
    number, unit = budget.split()
    return unit, float(number)


def _listed(values: pd.Series) -> str:
    *most, last = map(str, values.unique())
    return f"{', '.join(most)} and {last}" if most else last


def _natural(column: pd.Series) -> pd.Series:
    """Names of problems, by size first."""
    return column.map(lambda name: (int(name.split(",")[0]), name.partition(",")[2]))


OF_IMAGES = "python -m tests.benchmarks.measured_images"
IMAGE_COMMANDS = {
    "digits": (f"{OF_IMAGES} digits --images 12 --out runs/measured-images.csv",),
    "fashion_mnist": (
        "python -m inference.train --model fashion_mnist --guide vpsde --network mixture "
        "--optimizer muon --batch_size 32 --steps 1200 --ema_decay 0.99 --run runs/fashion_mnist",
        f"{OF_IMAGES} runs/fashion_mnist --images 4 --budgets '100 calls' --methods default "
        "'azula, MMPS, 5 iterations' 'azula, DPS, ζ = 1' 'deepinv, DDRM' "
        "--out runs/measured-images.csv",
    ),
}


def of_images(file: Path, folder: Path) -> None:
    """measurements-RUN for each run, with a row for each task and method, less the default."""
    rows = pd.read_csv(file)
    rows["run"] = rows.run.map(lambda name: Path(name).name)
    rows["method"] = pd.Categorical(rows.method, [n for n in NAMES if n in set(rows.method)])
    tasks = list(rows.task.unique())
    rows = rows.sort_values("method", kind="stable")
    rows = rows.sort_values("task", kind="stable", key=lambda column: column.map(tasks.index))
    for run, own in rows.groupby("run"):
        of_run(str(run), own, folder)


def of_run(run: str, rows: pd.DataFrame, folder: Path) -> None:
    """The table of a run."""
    made = []
    names = ["task", "method"]
    for (task, method), part in rows.groupby(names, observed=True, sort=False):
        ours = rows[(rows.task == task) & (rows.method == DEFAULT)]
        row: dict[str, object] = {"restoration": task, "method": method}
        by_image = part.groupby("image")
        for name in ("psnr", "psnr_sample", "crps", "inside"):
            row[name], row[f"{name}_se"] = mean_and_error(by_image[name].mean())
        pairs = part.merge(ours, on=["seed", "image"], suffixes=("", "_ours"))
        for name in ("psnr", "crps"):
            apart = (pairs[name] - pairs[f"{name}_ours"]).groupby(pairs.image).mean()
            apart = apart[:0] if method == DEFAULT else apart
            label = f"{name}_less_ours"
            row[label], row[f"{label}_low"], row[f"{label}_high"] = interval(apart)
        row["distance"] = float(part.distance.mean())
        for name in ("steps", "calls", "seconds"):
            row[name] = float(part[name].mean())
        made.append(row)
    notes = [
        f"{rows.images.max()} test images, {rows.draws.max()} draws of each; errors are over "
        "images; differences from ours are paired by image, with Student's t",
        "psnr is that of the mean of the draws, in dB; inside is the fraction of pixels in 90% "
        "intervals",
        "a call of the network is one, a product of its Jacobian with a vector two; seconds are of "
        "the processor, for all draws of all images",
        VERSIONS,
    ]
    table = pd.DataFrame(made).dropna(axis=1, how="all")
    write(
        folder / f"measurements-{run}.csv",
        table,
        [COMMANDS[0], *IMAGE_COMMANDS.get(run, ())],
        seeds_in_words(rows),
        notes=notes,
        digits=4,
    )
