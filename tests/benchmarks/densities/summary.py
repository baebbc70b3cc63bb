"""The documentation's tables of automatic guides."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from tests.benchmarks.densities.methods import GUIDES, IMPORTABLE, METHODS
from tests.benchmarks.densities.targets import NAMES
from tests.benchmarks.documented import interval, mean_and_error, seeds_in_words, write

COMMAND = "python -m tests.benchmarks.automatic_guides --out runs/automatic-guides.csv"
SCORES = (
    "elbo",
    "log_z",
    "log_z_error",
    "ess",
    "k_hat",
    "largest",
    "energy",
    "energy_raw",
    "floor",
    "mode_distance",
    "modes",
    "fit_seconds",
    "draw_seconds",
    "updates",
)
COMPARED = ("gap", "log_z_error", "energy", "mode_distance")
"""Scores by which methods are compared, of which less is better; of errors, their size."""


def of_guides(file: Path, folder: Path) -> None:
    """automatic-guides-scores, of the library's guide and of others; automatic-guides-best, the
    library's beside the best that a user can import; automatic-guides-variants, chains of other
    diffusions and steps."""
    rows = pd.read_csv(file)
    rows["gap"] = rows.log_z - rows.log_z_error - rows.elbo
    seconds = ", ".join(f"{s:g}" for s in sorted(rows.seconds.unique()))
    is_variant = rows.method.isin(METHODS.keys() - {*GUIDES, *IMPORTABLE})
    command = f"{COMMAND} --seconds {seconds}"

    def save(name: str, of: pd.DataFrame, made: list[dict[str, object]], *notes: str) -> None:
        seeds = f"--seeds {of.seed.nunique()} --methods {' '.join(_in_order(of.method, METHODS))}"
        write(
            folder / f"automatic-guides-{name}.csv",
            pd.DataFrame(made).dropna(axis=1, how="all"),
            [f"{command} {seeds}"],
            seeds_in_words(of),
            notes=[f"each method has {seconds} seconds of processor time", *notes],
            digits=4,
        )

    own = rows[~is_variant]
    note = "means over seeds and their standard errors; gap is log Z − ELBO, nats"
    save("scores", own, [cells_of(part) for part in _fits(own)], note)
    pairs = [best_of(part, score) for part in _targets(own) for score in COMPARED]
    paired = "paired by seed, with the 95% interval of Student's t"
    save(
        "best",
        own,
        [cells for cells in pairs if cells is not None],
        "ours and theirs: the methods with the best means over seeds, among those that have all "
        f"seeds; differences are {paired}; for log Z, sizes of errors",
    )
    if is_variant.any():
        made = []
        for part in _fits(rows[is_variant]):
            same = rows[(rows.target == part.target.iloc[0]) & (rows.method == GUIDES[0])]
            apart = part.set_index("seed").gap - same.set_index("seed").gap
            ends = interval(apart.dropna())
            names = ("gap_less_base", "gap_less_base_low", "gap_less_base_high")
            made.append(cells_of(part) | dict(zip(names, ends, strict=True)))
        note = f"{note}; base is K = 1 and 16 steps, {paired}"
        save("variants", rows[is_variant], made, note)


def _in_order(values: Iterable[str], names: Iterable[str]) -> list[str]:
    own = set(values)
    return [name for name in names if name in own]


def _targets(rows: pd.DataFrame) -> list[pd.DataFrame]:
    return [rows[rows.target == name] for name in _in_order(rows.target, NAMES)]


def _fits(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """Rows of each target and method."""
    return [
        of_target[of_target.method == name]
        for of_target in _targets(rows)
        for name in _in_order(of_target.method, METHODS)
    ]


def cells_of(rows: pd.DataFrame) -> dict[str, object]:
    """The cells of a target and a method."""
    cells: dict[str, object] = {name: rows[name].iloc[0] for name in ("target", "method")}
    cells["seeds"] = int(rows.seed.nunique())
    for score in ("gap", *SCORES):
        mean, error = mean_and_error(rows[score])
        if score in ("gap", "log_z_error"):
            error = math.hypot(error, rows.reference_se.fillna(0).mean())
        cells[score], cells[f"{score}_se"] = mean, error
    return cells


def best_of(rows: pd.DataFrame, score: str) -> dict[str, object] | None:
    """The best of ours beside the best importable on a target; None where either has no score."""
    values = rows[score].abs() if score.endswith("_error") else rows[score]
    if score == "energy":  # of draws resampled or not, whichever is better
        values = rows[["energy", "energy_raw"]].min(axis=1)
    by_seed = values.groupby([rows.seed, rows.method]).mean().unstack()
    by_seed = by_seed.dropna(axis=1)  # a method that failed on a seed is not the best
    best = []
    for methods in (GUIDES, IMPORTABLE):
        own = by_seed[[m for m in by_seed.columns if m in methods]]
        if own.empty:
            return None
        best.append(str(own.mean().idxmin()))
    ours, theirs = best
    ends = interval(by_seed[theirs] - by_seed[ours])
    return {
        "target": str(rows.target.iloc[0]),
        "score": score,
        "ours": ours,
        "ours_mean": by_seed[ours].mean(),
        "theirs": theirs,
        "theirs_mean": by_seed[theirs].mean(),
        **{f"theirs_less_ours{end}": x for end, x in zip(("", "_low", "_high"), ends, strict=True)},
    }
