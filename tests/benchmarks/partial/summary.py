"""The table of the documentation, from the rows of the benchmark."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from tests.benchmarks.documented import mean_and_error, seeds_in_words, write
from tests.benchmarks.partial.tasks import KINDS, TASKS

OF_SOURCE = KINDS[:5]
"""The kinds of mask of the source, which all count as much in its mean."""
AXIS = {0.5: 89.006594, 1.0: 20.038594}
"""The heights of two values of C2ST in the file ``figures/fig3_4/all_cond_task.svg`` of Simformer's
repository at commit a350556, which is drawn to scale."""
HEIGHTS = {
    "tree": (80.300832, 79.072995, 83.336252),
    "hmm": (79.885644, 68.476475, 83.408875),
    "two_moons": (85.443844, 79.434801, 85.390877),
    "slcp": (56.025682, 61.402152, 75.186372),
}
"""The heights there at 10,000 simulations: of Simformer, and given a directed or an undirected
graph of which numbers depend on each other."""
PUBLISHED = ("simformer, published", "simformer with a graph, published")


def published(task: str) -> dict[str, float]:
    """C2ST of Simformer in its paper, without a graph, and with the better of two graphs."""
    low, high = AXIS[0.5], AXIS[1.0]
    plain, *graphs = [0.5 + 0.5 * (low - height) / (low - high) for height in HEIGHTS[task]]
    return dict(zip(PUBLISHED, (plain, min(graphs)), strict=True))


def cells_of(part: pd.DataFrame) -> dict[str, object]:
    """The cells of a task and a method: the mean over kinds, and each kind."""
    by_kind = {kind: mean_and_error(part[part.kind == kind].c2st) for kind in KINDS}
    ours = [by_kind[kind] for kind in OF_SOURCE]
    cells: dict[str, object] = {}
    whole = not any(math.isnan(mean) for mean, _ in ours)
    errors = [0.0 if math.isnan(error) else error for _, error in ours]
    cells["c2st"] = sum(mean for mean, _ in ours) / len(ours) if whole else math.nan
    cells["c2st_se"] = math.hypot(*errors) / len(ours) if whole else math.nan
    for kind, (mean, error) in by_kind.items():
        cells[f"c2st_{kind}"], cells[f"c2st_{kind}_se"] = mean, error
    fits = part.groupby("seed").first()
    for name in ("fit_seconds", "sample_seconds"):
        cells[name] = float(fits[name].mean())
    return cells


def of_conditionals(file: Path, folder: Path) -> None:
    """partial-conditionals, a row for each task and method, from the smallest number of draws, and
    partial-draws, by the number of draws."""
    every = pd.read_csv(file)
    rows = every[every.draws == every.draws.min()]
    made = []
    for task in TASKS:
        of_task = rows[rows.task == task]
        for method, part in of_task.groupby("method", sort=False):
            made.append({"conditional": f"{task}, {method}"} | cells_of(part))
        for name, value in published(task).items():
            made.append({"conditional": f"{task}, {name}", "c2st": value})
    notes = [
        f"{in_words(rows.simulations)} simulations; {in_words(rows.draws)} draws of each "
        f"conditional; {conditions_of(rows)} conditions of each kind of mask, and one of joint; "
        "errors are over conditions; c2st is the mean over the five kinds of the source; seconds "
        "are of the processor; published values are the heights of points in the vector figure "
        "all_cond_task.svg of mackelab/simformer"
    ]
    target, table = folder / "partial-conditionals.csv", pd.DataFrame(made)
    write(target, table, [command_of(rows)], seeds_in_words(rows), notes=notes)
    if every.draws.nunique() > 1:
        of_draws(every, folder)


def of_draws(rows: pd.DataFrame, folder: Path) -> None:
    """C2ST by the number of draws of each conditional, over the conditions that all have."""
    keys = ["task", "simulations", "seed", "method", "kind", "condition"]
    both = rows.pivot(index=keys, columns="draws", values="c2st").dropna().reset_index()
    made = []
    for (task, method), part in both.groupby(["task", "method"], sort=False):
        cells: dict[str, object] = {"conditional": f"{task}, {method}"}
        for n in sorted(rows.draws.unique()):
            cells[f"c2st_{n}"] = float(part.groupby("kind")[n].mean().mean())
        made.append(cells)
    most = rows[rows.draws == rows.draws.max()]
    notes = ["means over kinds of mask, of the conditions that were scored by both numbers"]
    target = folder / "partial-draws.csv"
    commands = [command_of(most)]
    write(target, pd.DataFrame(made), commands, seeds_in_words(most), notes=notes)


def in_words(numbers: pd.Series) -> str:
    return ", ".join(f"{n:,}" for n in sorted(numbers.unique()))


def conditions_of(rows: pd.DataFrame) -> int:
    """The number of conditions of a kind of mask."""
    return int(rows[rows.kind != "joint"].condition.max()) + 1


def command_of(rows: pd.DataFrame) -> str:
    """The command that makes the rows."""
    names = {"methods": rows.method.unique(), "tasks": rows.task.unique()}
    names["kinds"] = rows.kind.unique()
    every = {"tasks": len(TASKS), "kinds": len(KINDS)}
    chosen = [
        f"--{name} {' '.join(values)}"
        for name, values in names.items()
        if len(values) != every.get(name)
    ]
    return (
        f"python -m tests.benchmarks.partial --conditions {conditions_of(rows)} "
        f"--draws {rows.draws.iloc[0]} --out runs/partial.csv {' '.join(chosen)}"
    )
