"""C2ST that the public benchmark published, and ours beside it.

    git clone https://github.com/sbi-benchmark/results data/arena/results

Source: Lueckmann, Boelts, Greenberg, Gonçalves and Macke, "Benchmarking Simulation-Based
Inference", AISTATS 2021, whose results are in that repository (of which the commit 741183c of March
2024 is read). The mixture of Gaussians has the values of its rerun, after the task was corrected.
"""

from __future__ import annotations

import datetime
import math
import re
from pathlib import Path

import pandas as pd

from tests.benchmarks.arena.methods import METHODS
from tests.benchmarks.arena.references import ENVIRONMENT, OBSERVATIONS
from tests.benchmarks.arena.tasks import TASKS
from tests.benchmarks.documented import interval, mean_and_error, write

PEERS = "python -m tests.benchmarks.arena.peers"
RUN = "python -m tests.benchmarks.posteriors --densities 100 --new 100 --out runs/posteriors.csv"
COMMANDS = (
    "git clone https://github.com/sbi-benchmark/results data/arena/results",
    "git -C data/arena/results checkout 741183c",
)
FILES = {
    "paper": Path("benchmarking_sbi/results/main_paper.csv"),
    "rerun": Path("gaussian_mixture_rerun/results/gaussian_mixture_rerun.csv"),
}
RERUN = "gaussian_mixture"
LEARNING = ("npe", "nle", "nre", "snpe", "snle", "snre")
COLUMNS = (*LEARNING, "rej_abc", "smc_abc")
SIMULATIONS = {"10³": 1_000, "10⁴": 10_000, "10⁵": 100_000}
FOLDS = 5
KEYS = ["task", "simulations", "observation"]


def published(environment: Path = ENVIRONMENT) -> pd.DataFrame:
    """C2ST by task, simulations and observation, a column for each algorithm.

    Raises:
        SystemExit: the results are not there.
    """
    folder = environment / "results"
    if absent := [file for file in FILES.values() if not (folder / file).is_file()]:
        raise SystemExit(
            f"{folder / absent[0]} is missing, expected the published results; get them by "
            f"{COMMANDS[0]}"
        )
    paper, rerun = (pd.read_csv(folder / file) for file in FILES.values())
    rows = pd.concat([paper[paper.task != RERUN], rerun[rerun.task == RERUN]])
    rows["simulations"] = rows.num_simulations.map(SIMULATIONS)
    rows["algorithm"] = rows.algorithm.str.lower().str.replace("-", "_")
    rows = rows.rename(columns={"num_observation": "observation"})
    table = rows.pivot(index=KEYS, columns="algorithm", values="C2ST")[[*COLUMNS]]
    return table.reset_index()


def write_tables(file: Path, folder: Path, environment: Path = ENVIRONMENT) -> None:
    """The tables of the documentation that have published results.

    Args:
        file: rows of our runs.
        folder: the folder of the tables.
        environment: the folder of the published results.
    """
    theirs = published(environment)
    means = theirs.groupby(KEYS[:2])[[*COLUMNS]].mean().reset_index()
    notes = [
        "C2ST as the benchmark published it: means over the ten observations, one run of each",
        "gaussian_mixture is the rerun after its task was corrected",
    ]
    write(
        folder / "posteriors-published.csv",
        in_order(means),
        COMMANDS,
        "of the benchmark",
        notes=notes,
    )
    for simulations, rows in complete(pd.read_csv(file)).groupby("simulations"):
        write_rules(rows, theirs, rules_file(folder, int(simulations)))
    rules = read_rules(folder)
    write_sizes(rules, means, folder)


def rules_file(folder: Path, simulations: int) -> Path:
    return folder / f"posteriors-rules-{simulations}.csv"


def read_rules(folder: Path) -> pd.DataFrame:
    """The rows of all tables posteriors-rules-N, with their numbers of simulations."""
    files = {n: rules_file(folder, n) for n in SIMULATIONS.values()}
    tables = [
        pd.read_csv(file, comment="#").assign(simulations=n)
        for n, file in files.items()
        if file.exists()
    ]
    return pd.concat(tables, ignore_index=True)


def complete(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of fits that have all folds of all ten observations, of the seeds 0, 1, … until one
    is missing."""
    rows = rows[rows.folds == FOLDS]
    fit = ["task", "simulations", "method", "seed"]
    rows = rows[rows.groupby(fit).observation.transform("nunique") == len(OBSERVATIONS)]
    return rows[rows.seed == rows.groupby(fit[:3]).seed.rank("dense") - 1]


def write_sizes(rules: pd.DataFrame, means: pd.DataFrame, folder: Path) -> None:
    """posteriors-sizes: the likelihood beside the best published method, by simulations.

    Args:
        rules: rows of the tables posteriors-rules-N.
        means: mean published C2ST by task and number of simulations.
        folder: the folder of the table.
    """
    likelihood = rules[rules.method == "likelihood"]
    best = means.set_index(KEYS[:2])[[*LEARNING]].min(axis=1)
    made = []
    for task, of_task in likelihood.groupby("task"):
        by_size = of_task.set_index("simulations")
        cells: dict[str, object] = {"task": task}
        for n in SIMULATIONS.values():
            for name in ("c2st", "c2st_se"):
                cells[name.replace("c2st", f"c2st_{n}")] = by_size[name].get(n, math.nan)
            cells[f"best_{n}"] = best.get((task, n), math.nan)
        made.append(cells)
    commands = [*COMMANDS]
    for _, of_size in likelihood.groupby("simulations"):
        commands += commands_of(of_size)
    notes = [
        "c2st: of the likelihood, means over observations and seeds, with errors over "
        "observations; best: of the best of the six published methods that learn"
    ]
    target = folder / "posteriors-sizes.csv"
    write(target, in_order(pd.DataFrame(made)), commands, seeds_of(likelihood), notes=notes)


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """A table with its tasks and methods in the order of the others."""
    places = {"task": [*TASKS], "method": [*METHODS]}
    columns = [name for name in ("task", "simulations", "method") if name in table]
    return table.sort_values(
        columns,
        key=lambda column: (
            column.map(places[str(column.name)].index) if column.name in places else column
        ),
        kind="stable",
    )


def commands_of(rules: pd.DataFrame) -> list[str]:
    """The commands that make the rows of one number of simulations, by method and seeds."""
    commands = []
    for (method, seeds), rows in in_order(rules).groupby(["method", "seeds"], sort=False):
        sizes = f"--simulations {rows.simulations.iloc[0]} --seeds {seeds} --methods {method}"
        tasks = [f"--tasks {' '.join(rows.task)}"] if len(rows) < len(TASKS) else []
        commands.append(" ".join([RUN, sizes, *tasks]))
    return commands


def seeds_of(rules: pd.DataFrame) -> str:
    return ", ".join(map(str, range(rules.seeds.max())))


def write_rules(rows: pd.DataFrame, theirs: pd.DataFrame, file: Path) -> None:
    """posteriors-rules-N: our C2ST by the benchmark's rules, beside what it published.

    A table that is there keeps its rows, but those of tasks and methods that have now been
    measured with as many seeds or more.

    Args:
        rows: rows of our runs, of one number of simulations.
        theirs: published C2ST by observation.
        file: the table.
    """
    pair = ["task", "method"]
    rules = pd.DataFrame([cells_of(of_pair, theirs) for _, of_pair in rows.groupby(pair)])
    rules["measured"] = datetime.date.today().isoformat()
    if file.exists():
        before = pd.read_csv(file, comment="#")
        dated = re.search("^# date: (.*)$", file.read_text("utf-8"), re.MULTILINE)
        assert dated is not None
        before["measured"] = before.get("measured", dated.group(1))
        rules = pd.concat([before, rules])
        rules = rules.sort_values("seeds", kind="stable").drop_duplicates(pair, keep="last")
    rules = in_order(rules)
    commands = commands_of(rules.assign(simulations=rows.simulations.iloc[0]))
    commands = [PEERS, *COMMANDS, *commands, f"{RUN} --published docs/measured/data"]
    notes = [
        "five folds of the benchmark's classifier, 10,000 draws against 10,000, ten observations; "
        "means over observations and seeds, with errors over observations; differences from "
        "published C2ST are paired by observation, with Student's t; best is the best of the six "
        "published methods that learn, by its mean over observations",
        "log_prob: of 100 reference draws of each observation; coverage: of intervals of 90%, by "
        "100 simulations; seconds are of the processor. The second of two rounds is trained for "
        "each observation, in sample_seconds",
    ]
    write(file, rules, commands, seeds_of(rules), notes=notes)


def cells_of(part: pd.DataFrame, theirs: pd.DataFrame) -> dict[str, object]:
    """The cells of a task and a method, of one number of simulations."""
    first = part.iloc[0]
    same = theirs[(theirs.task == first.task) & (theirs.simulations == first.simulations)]
    of_observation = same.set_index("observation")
    ours = part.groupby("observation").c2st.mean()
    fits = part.groupby("seed").first()
    cells: dict[str, object] = {"task": first.task, "method": first.method}
    cells["c2st"], cells["c2st_se"] = mean_and_error(ours)
    cells["seeds"], cells["observations"] = len(fits), len(ours)
    best = str(of_observation[[*LEARNING]].mean().idxmin())
    cells["best"] = best.upper()
    for label, name in [("best", best), *zip(LEARNING, LEARNING, strict=True)]:
        ends = interval(ours - of_observation[name])
        for end, value in zip(("", "_low", "_high"), ends, strict=True):
            cells[f"less_{label}{end}"] = value
    cells["log_prob"] = float(part.log_prob.mean())
    # seeds have the same reference draws
    errors = part.groupby("observation").log_prob_se.mean()
    cells["log_prob_se"] = math.hypot(*errors) / len(errors)
    cells["coverage"] = float(fits.coverage.mean())
    cells["coverage_se"] = math.hypot(*fits.coverage_se) / len(fits)
    for name in ("fit_seconds", "sample_seconds"):
        cells[name] = float(fits[name].mean())
    return cells
