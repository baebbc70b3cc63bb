"""The documentation's tables of what the benchmarks of tables wrote."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from tests.benchmarks.documented import interval, mean_and_error, seeds_in_words, write
from tests.benchmarks.tables.data import MECHANISMS, TABLES
from tests.benchmarks.tables.densities import DENSITIES
from tests.benchmarks.tables.generators import GENERATORS
from tests.benchmarks.tables.methods import METHODS

OURS = "diffusion"
LESS = {"rmse", "crps", "log_score", "brier", "log_score_of_categories"}
"""Scores of which less is better."""
PEERS = "python -m tests.benchmarks.tables.peers"


def read_rows(file: Path) -> pd.DataFrame:
    """Rows of a benchmark, in the order of tables, mechanisms, methods and seeds."""
    rows = pd.read_csv(file)
    methods = list(dict.fromkeys([*METHODS, *DENSITIES, *GENERATORS]))
    methods.append(methods.pop(methods.index(OURS)))
    orders = {"table": list(TABLES), "mechanism": list(MECHANISMS), "method": methods}
    columns = [name for name in orders if name in rows] + ["seed"]

    def places(column: pd.Series) -> pd.Series:
        known = orders.get(str(column.name), [])
        return column.map(lambda value: known.index(value) if value in known else value)

    return rows.sort_values(columns, key=places, kind="stable", ignore_index=True)


def ranks(rows: pd.DataFrame, scores: Sequence[str], methods: Sequence[str]) -> pd.DataFrame:
    """Ranks by task among methods, the least score first, of tasks that all of them have done."""
    own = rows[rows.method.isin(methods)]
    columns = {}
    for score in scores:
        wide = own.pivot_table(index=["seed", "table", "mechanism"], columns="method", values=score)
        columns[score] = wide.dropna().rank(axis=1).stack()
    return pd.DataFrame(columns).reset_index()


def of_imputation(file: Path, folder: Path) -> None:
    """Files with the stem of the file: ranks of methods that have done most tasks, few of all
    methods and the tasks that all have done, tables, coverage and costs."""
    rows = read_rows(file)
    stem = file.stem
    command = f"python -m tests.benchmarks.imputation --workers 2 --out runs/{file.name}"
    for name, every in (("table", TABLES), ("mechanism", MECHANISMS)):
        some = [shlex.quote(one) for one in rows[name].unique()]
        command += f" --{name}s {' '.join(some)}" if len(some) < len(every) else ""
    commands = [PEERS, command]
    ranked = {"ranks": often(rows), "few": list(rows.method.unique())}
    if ranked["ranks"] == ranked["few"]:
        del ranked["few"]
    for name, methods in ranked.items():
        write(
            folder / f"{stem}-{name}.csv",
            overall(rows, methods),
            commands,
            seeds_in_words(ranks(rows, ["rmse"], methods)),
            notes=[
                "ranks are means over tasks, where 1 is the best; rmse ratio is relative to the "
                "lowest RMSE of the task; accuracy − best is relative to the highest of the task; "
                "coverages are the lowest and the highest of a table; errors are over tables and "
                "mechanisms"
            ],
        )
    write(
        folder / f"{stem}-tables.csv",
        by_table(rows),
        commands,
        seeds_in_words(rows),
        unit="standard deviations of columns",
        notes=[
            "log scores are nats by missing entry; differences from ours are paired by seed, with "
            "Student's t",
        ],
    )
    coverage = rows.pivot_table(index="table", columns="method", values="coverage", sort=False)
    order = [method for method in rows.method.unique() if method in coverage]
    write(
        folder / f"{stem}-coverage.csv",
        coverage[order].reset_index(),
        commands,
        seeds_in_words(rows),
        notes=["of 90% intervals, over mechanisms and seeds"],
    )
    costs = rows.pivot_table(index="table", columns="method", values="cpu_seconds", sort=False)
    write(
        folder / f"{stem}-costs.csv",
        costs[list(rows.method.unique())].reset_index(),
        commands,
        seeds_in_words(rows),
        unit="seconds of processor time",
        notes=["fit and 50 draws of a fifth of the rows, means over mechanisms and seeds"],
        digits=0,
    )


RANKED = {
    "crps": "rank_crps",
    "log_score": "rank_log_score",
    "brier": "rank_brier",
    "log_score_of_categories": "rank_log_score_of_categories",
}


def often(rows: pd.DataFrame) -> list[str]:
    """Methods that have done at least four in five of the tasks that the most frequent has done."""
    counts = rows.groupby("method", sort=False).size()
    return list(counts.index[counts >= 0.8 * counts.max()])


def overall(rows: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """A row for each method: mean ranks, RMSE by the least of the task and so on, of the tasks that
    all of them have done."""
    task = ["seed", "table", "mechanism"]
    own = rows[rows.method.isin(methods)]
    own = own[own.groupby(task).method.transform("nunique") == len(methods)].copy()
    own["rmse_ratio"] = own.rmse / own.groupby(task).rmse.transform("min")
    own["accuracy_less_best"] = own.accuracy - own.groupby(task).accuracy.transform("max")
    drawing = [method for method in methods if own[own.method == method].crps.notna().any()]
    ranked = ranks(own, list(RANKED), drawing).rename(columns=RANKED)
    made = []
    for method in methods:
        cells: dict[str, object] = {"method": method}
        its = own[own.method == method]
        for of, names in (
            (ranked[ranked.method == method], list(RANKED.values())),
            (its, ["rmse_ratio", "accuracy_less_best"]),
        ):
            each = of.groupby(["table", "mechanism"])[names].mean()
            for name in names:
                cells[name], cells[f"{name}_se"] = mean_and_error(each[name])
        of_tables = its.groupby("table").coverage.mean()
        cells |= {
            "coverage_least": of_tables.min(),
            "coverage_most": of_tables.max(),
            "cpu_seconds": f"{its.cpu_seconds.mean():.0f}",
            "tasks": str(len(its)),
        }
        made.append(cells)
    return pd.DataFrame(made)


SHOWN = (
    "rmse",
    "crps",
    "log_score",
    "coverage",
    "width",
    "accuracy",
    "brier",
    "log_score_of_categories",
)


def by_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, and paired differences to ours."""
    made = []
    for (table, mechanism), part in rows.groupby(["table", "mechanism"], sort=False):
        ours = part[part.method == OURS].set_index("seed")
        for method, own in part.groupby("method", sort=False):
            own = own.set_index("seed")
            cells: dict[str, object] = {"task": f"{table}, {mechanism}", "method": method}
            for score in SHOWN:
                cells[score], cells[f"{score}_se"] = mean_and_error(own[score])
                if score in LESS | {"accuracy"}:
                    label = f"{score}_less_ours"
                    apart = own[score] - ours[score] if method != OURS else own[score][:0]
                    ends = interval(apart)
                    cells[label], cells[f"{label}_low"], cells[f"{label}_high"] = ends
            made.append(cells)
    return pd.DataFrame(made)


def paired(rows: pd.DataFrame, scores: Sequence[str], differing: Sequence[str]) -> pd.DataFrame:
    """By table and method the means over seeds, and paired differences to ours."""
    made = []
    for table, part in rows.groupby("table", sort=False):
        ours = part[part.method == OURS].set_index("seed")
        for method, own in part.groupby("method", sort=False):
            own = own.set_index("seed")
            cells: dict[str, object] = {"table": table, "method": method}
            for score in scores:
                cells[score], cells[f"{score}_se"] = mean_and_error(own[score])
                if score in differing:
                    label = f"{score}_less_ours"
                    apart = own[score] - ours[score] if method != OURS else own[score][:0]
                    ends = interval(apart)
                    cells[label], cells[f"{label}_low"], cells[f"{label}_high"] = ends
            cells["cpu_seconds"] = f"{own.cpu_seconds.mean():.0f}"
            made.append(cells)
    return pd.DataFrame(made)


def of_density(file: Path, folder: Path) -> None:
    """tables-density."""
    rows = read_rows(file)
    command = "python -m tests.benchmarks.table_density --workers 2 --out runs/density.csv"
    write(
        folder / "tables-density.csv",
        paired(rows, ["log_prob"], ["log_prob"]),
        [PEERS, command],
        seeds_in_words(rows),
        unit="nats by row",
        notes=["that of the diffusion is a lower bound; differences from ours are paired by seed"],
    )


def of_samples(file: Path, folder: Path) -> None:
    """tables-samples."""
    rows = read_rows(file)
    command = "python -m tests.benchmarks.table_samples --workers 2 --out runs/samples.csv"
    scores = ["prediction", "correlation_error", "association_error", "closer"]
    write(
        folder / "tables-samples.csv",
        paired(rows, scores, ["prediction"]),
        [PEERS, command],
        seeds_in_words(rows),
        notes=["errors are standard errors over seeds; differences from ours are paired by seed"],
    )


def of_speed(file: Path, folder: Path) -> None:
    """The processor time of a Table and of miceforest, and the memory of imputing files."""
    command = "python -m tests.benchmarks.table_speed --out runs/speed.csv"
    rows = pd.read_csv(file).sort_values(["task", "rows"])
    of_files = rows.task.str.endswith(" file")
    memory = rows.loc[of_files, ["task", "rows", "peak_megabytes"]]
    write(folder / "tables-memory.csv", memory, [command], "0", digits=0)
    seconds = ["task", "rows", "fit_cpu_seconds", "draws_cpu_seconds"]
    write(
        folder / "tables-speed.csv", rows.loc[~of_files, seconds], [PEERS, command], "0", digits=0
    )
