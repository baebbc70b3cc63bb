"""The documentation's tables of automatic guides."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from tests.benchmarks.densities.methods import IMPORTABLE, METHODS, OURS
from tests.benchmarks.densities.targets import NAMES
from tests.benchmarks.documented import interval, mean_and_error, seeds_in_words, write

COMMAND = "python -m tests.benchmarks.automatic_guides --out runs/automatic-guides.csv"
SCORES = (
    "elbo",
    "log_z",
    "log_z_error",
    "ess",
    "k_hat",
    "energy",
    "energy_raw",
    "floor",
    "mode_distance",
    "modes",
    "fit_seconds",
    "draw_seconds",
    "updates",
)
GAINS = {"elbo": 1, "log_z_error": -1, "energy": -1, "mode_distance": -1}
"""Scores by which methods are compared, and whether more is better; of errors, their size."""


def of_guides(file: Path, folder: Path) -> None:
    """automatic-guides-scores, a row for each target and method; automatic-guides-best, ours beside
    the best that a user can import."""
    rows = pd.read_csv(file)
    kept = sorted({(NAMES.index(t), t) for t in rows.target})
    order = [(t, m) for _, t in kept for m in METHODS]
    seconds = ", ".join(f"{s:g}" for s in sorted(rows.seconds.unique()))
    commands = [f"{COMMAND} --seeds {rows.seed.nunique()} --seconds {seconds}"]
    seeds = seeds_in_words(rows)
    means, pairs = [], []
    by_fit = dict(iter(rows.groupby(["target", "method"])))
    for target, method in order:
        if (target, method) in by_fit:
            means.append(cells_of(target, method, by_fit[target, method]))
    for _, target in kept:
        own = rows[rows.target == target]
        pairs += [cells for score in GAINS if (cells := best_of(own, score)) is not None]
    note = "means over seeds and their standard errors; seconds are of the processor"
    write(
        folder / "automatic-guides-scores.csv",
        pd.DataFrame(means),
        commands,
        seeds,
        notes=[note, f"each method has {seconds} seconds"],
        digits=4,
    )
    if pairs:
        note = (
            "ours and theirs: the methods whose means over seeds are best; gain: how much better "
            "ours is, paired by seed, with the 95% interval of Student's t; of log Z, sizes of "
            "errors"
        )
        table = pd.DataFrame(pairs)
        write(folder / "automatic-guides-best.csv", table, commands, seeds, notes=[note], digits=4)


def cells_of(target: str, method: str, rows: pd.DataFrame) -> dict[str, object]:
    """The cells of a target and a method."""
    cells: dict[str, object] = {"fit": f"{target}, {method}"}
    for score in SCORES:
        mean, error = mean_and_error(rows[score])
        if score == "log_z_error":
            error = math.hypot(error, rows.reference_se.fillna(0).mean())
        cells[score], cells[f"{score}_se"] = mean, error
    return cells


def best_of(rows: pd.DataFrame, score: str) -> dict[str, object] | None:
    """The best of ours beside the best importable on a target; None where either has no score."""
    values = rows[score].abs() if score.endswith("_error") else rows[score]
    if score == "energy":  # of draws resampled or not, whichever is better
        values = rows[["energy", "energy_raw"]].min(axis=1)
    by_seed = (GAINS[score] * values).groupby([rows.seed, rows.method]).mean().unstack()
    by_seed = by_seed.dropna(axis=1)  # a method that failed on a seed is not the best
    best = []
    for methods in (OURS, IMPORTABLE):
        own = by_seed[[m for m in by_seed.columns if m in methods]]
        if own.empty:
            return None
        best.append(str(own.mean().idxmax()))
    ours, theirs = best
    ends = interval(by_seed[ours] - by_seed[theirs])
    return {
        "score": f"{rows.target.iloc[0]}, {score}",
        "ours": ours,
        "ours_mean": GAINS[score] * by_seed[ours].mean(),
        "theirs": theirs,
        "theirs_mean": GAINS[score] * by_seed[theirs].mean(),
        **dict(zip(("gain", "gain_low", "gain_high"), ends, strict=True)),
    }
