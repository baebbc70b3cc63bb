"""The documentation's tables of posteriors of the public benchmark."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from tests.benchmarks.arena.methods import NAMES, OURS
from tests.benchmarks.arena.tasks import TASKS
from tests.benchmarks.documented import interval, mean_and_error, seeds_in_words, write

PEERS = "python -m tests.benchmarks.arena.peers"
COMMAND = (
    "python -m tests.benchmarks.posteriors --seeds 1 --folds 1 --densities 100 --new 100 "
    "--out runs/posteriors.csv"
)
OF_SIZE = (
    PEERS,
    f"{COMMAND} --simulations 10000 --observations 1 2 3 --methods ours likelihood npe",
    f"{COMMAND} --simulations 10000 --first_seed 1 --observations 4 5 6 "
    "--methods ours likelihood npe",
    f"{COMMAND} --simulations 10000 --first_seed 2 --observations 7 8 9 10 "
    "--methods ours likelihood npe",
    f"{COMMAND} --simulations 10000 --observations 1 2 3 --methods fmpe npse "
    "--tasks two_moons slcp",
)
GROUP = ["task", "simulations", "method"]
SIZE = 10_000


def of_posteriors(file: Path, folder: Path) -> None:
    """posteriors-arena, a row for each task and method, from one number of simulations."""
    every = pd.read_csv(file)
    rows = every[every.simulations == SIZE]
    made = [cells_of(part, rows) for _, part in rows.groupby(GROUP, sort=False)]
    notes = [
        "means over observations and seeds; errors are over observations, of log_prob over "
        "reference draws, of coverage over simulations; differences from ours are paired by "
        "observation, with Student's t; coverage is of intervals of 90%; seconds are of the "
        "processor",
        *(f"{cost}: {said}" for cost, said in costs_in_words(rows).items()),
    ]
    table = pd.DataFrame(made).sort_values(GROUP, key=_places, kind="stable")
    names = [f"{row.task}, {row.method}" for row in table.itertuples()]
    table = table.drop(columns=GROUP)
    table.insert(0, "posterior", names)
    write(folder / "posteriors-arena.csv", table, OF_SIZE, seeds_in_words(rows), notes=notes)


def _places(column: pd.Series) -> pd.Series:
    known = {"task": [*TASKS], "method": NAMES}.get(str(column.name))
    return column if known is None else column.map(known.index)


def costs_in_words(rows: pd.DataFrame) -> dict[str, str]:
    """What scores are made of: draws, folds and so on, all values that the rows have."""
    said = {
        "draws of each posterior": "draws",
        "folds of C2ST of five": "folds",
        "reference draws for log_prob": "densities",
        "simulations for coverage": "new",
        "observations": "observation",
    }
    every = {words: sorted(rows[name].unique()) for words, name in said.items()}
    return {words: ", ".join(map(str, values)) for words, values in every.items()}


def cells_of(part: pd.DataFrame, rows: pd.DataFrame) -> dict[str, object]:
    """The cells of the rows of a task, a number of simulations and a method."""
    first = part.iloc[0]
    ours = rows[(rows.method == OURS) & (rows.task == first.task)]
    ours = ours[ours.simulations == first.simulations]
    cells: dict[str, object] = {name: first[name] for name in GROUP}
    cells["c2st"], cells["c2st_se"] = mean_and_error(part.groupby("observation").c2st.mean())
    label = "c2st_less_ours"
    pairs = part.merge(ours, on=["seed", "observation"], suffixes=("", "_ours"))
    apart = (pairs.c2st - pairs.c2st_ours).groupby(pairs.observation).mean()
    ends = interval(apart[:0] if first.method == OURS else apart)
    cells[label], cells[f"{label}_low"], cells[f"{label}_high"] = ends
    cells["log_prob"] = float(part.groupby("observation").log_prob.mean().mean())
    # seeds have the same reference draws
    errors = part.groupby("observation").log_prob_se.mean()
    cells["log_prob_se"] = math.hypot(*errors) / len(errors)
    fits = part.groupby("seed").first()
    cells["coverage"] = float(fits.coverage.mean())
    cells["coverage_se"] = math.hypot(*fits.coverage_se) / len(fits)
    for name in ("fit_seconds", "sample_seconds"):
        cells[name] = float(fits[name].mean())
    return cells
