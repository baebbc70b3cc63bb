"""The experiments behind the tables of docs/measured: which diffusion is better?

    python -m inference.experiment digits --workers 2
    python -m inference.experiment mnist5k --workers 2
    python -m inference.experiment fashion_mnist --workers 2
    python -m inference.experiment ends --workers 2
    python -m inference.experiment paper --model fashion_mnist --workers 2
    python -m inference.experiment drift --workers 2
    python -m inference.experiment linear --workers 2

Every (guide, score, seed) of a table is trained in a run folder of its own,
``runs/<table>/<score>-<guide>-<seed>``. Then all are compared
(:mod:`inference.measuring.experiment_summary`): ``summary.md``, ``summary.csv`` and pictures are in
``runs/<table>``. A finished run is kept and an interrupted one continues, so the command can be
stopped and repeated, also on several machines that share the folder. The tables are in
:mod:`inference.measuring.experiment_tables`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from inference.commands.cli import check_options_positive, command_line
from inference.compare import compare
from inference.folders.locks import is_written
from inference.folders.runs import RUNS, RunError
from inference.measuring.experiment_summary import markdown, summarize
from inference.measuring.experiment_tables import FIXED, STARTS, TABLES, Cell, PaperData, paper
from inference.settings.kinds import checked_options
from inference.training.workers import train_all

__all__ = ["TABLES", "Cell", "experiment", "is_written", "train_all"]


@dataclass(frozen=True, kw_only=True)
class ExperimentOptions:
    """The experiment.

    Args:
        table: name of the table.
        model: data set of the table paper: mnist, cifar10, imagenet32, fashion_mnist, mnist5k or
            digits. Its folder is paper-<model>.
        workers: number of runs trained at a time; by default one for each GPU, which it has alone,
            or one without GPUs. On a CPU each has one thread.
        steps: number of training steps, in place of the table's.
        seeds: number of seeds, in place of the table's.
        scores: list of some of the table's scores, e.g. [noise]; the summary has only these.
        guides: list of some of the table's diffusions, e.g. [vpsde, learned2]; all are compared
            with the first.
        half_width: half-width of the comparisons, bits/dim, as for inference.compare.
        draws: largest number of network calls per image and run of the comparisons.
        num_data: largest number of test data of the comparisons; all by default.
        root: folder that holds the table's folder. Where several machines share it, this command
            may be given on each, and they divide the runs.
        data: folder of the data sets, "data" by default.
    """

    table: Literal["digits", "mnist5k", "fashion_mnist", "ends", "paper", "drift", "linear"]
    model: PaperData = "digits"
    workers: int | None = None
    steps: int | None = None
    seeds: int | None = None
    scores: list[str] | None = None
    guides: list[str] | None = None
    half_width: float = 0.01
    draws: int = 64
    num_data: int | None = None
    root: Path = RUNS
    data: Path | None = None


@checked_options(ExperimentOptions)
def experiment(
    table: Literal["digits", "mnist5k", "fashion_mnist", "ends", "paper", "drift", "linear"],
    **options: Any,
) -> None:
    """Train the runs of a table and compare them.

    Args:
        table, options: options by name, see :class:`ExperimentOptions`.
    """
    settings = ExperimentOptions(table=table, **options)
    check_options_positive(settings, "workers", "steps", "seeds", "half_width", "draws")
    if settings.table != "paper" and settings.model != "digits":
        raise RunError(f"--model is {settings.model}, which is for the table paper; leave it out")
    chosen = paper(settings.model) if settings.table == "paper" else TABLES[settings.table]
    if settings.steps is not None:
        chosen = replace(chosen, options=chosen.options | {"steps": settings.steps})
        chosen.options.pop("measure_every", None)  # which the number of steps says
    if settings.data is not None:
        chosen = replace(chosen, options=chosen.options | {"data": str(settings.data)})
    if settings.seeds is not None:
        chosen = replace(chosen, seeds=settings.seeds)
    if settings.scores is not None:
        _check_some("scores", settings.scores, chosen.scores)
        chosen = replace(chosen, scores=tuple(settings.scores))
    if settings.guides is not None:
        there = dict(chosen.guides)
        for score in chosen.scores:
            there |= chosen.guides_of(score)
        _check_some("guides", settings.guides, tuple(there))
        chosen = replace(chosen, guides={name: there[name] for name in settings.guides}, further={})
    name = f"paper-{settings.model}" if settings.table == "paper" else settings.table
    folder = settings.root / name
    train_all(list(chosen.cells()), folder, settings.workers)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder / ".summary.lock")):  # of several machines one compares, others read
        calls = partial(compare, half_width=settings.half_width, draws=settings.draws)
        rows = summarize(
            folder,
            {score: list(chosen.guides_of(score)) for score in chosen.scores},
            range(chosen.seeds),
            partial(calls, num_data=settings.num_data, overwrite=True),
            STARTS,
            [name for name in FIXED if name in chosen.guides] if settings.table == "paper" else (),
        )
    print(markdown(rows))
    if settings.table == "paper":
        print((folder / "learned.md").read_text("utf-8"))


def _check_some(option: str, names: list[str], available: tuple[str, ...]) -> None:
    if not names or not set(names) <= set(available) or len(set(names)) < len(names):
        raise RunError(
            f"--{option} is {names}, expected some of {', '.join(available)}, each once, as in "
            f"[{available[-1]}]"
        )


if __name__ == "__main__":
    command_line(experiment, unnamed="table", groups={"experiment": ExperimentOptions})
