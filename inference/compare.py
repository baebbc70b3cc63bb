"""A comparison of runs: the bound of each, and paired differences.

    python -m inference.compare runs/cld runs/learned --out comparison

All runs are evaluated on the same data, at the same noise levels, with the same noise, so that
shared errors cancel. A pilot finds the number of network calls with which the noise of every bound
and difference is within --half_width. The folder contains

    bounds.csv        a row for each run
    differences.csv   a row for each pair of runs
    by_log_snr.csv    the diffusion term of each run by cell of log SNR
    comparison.png    a picture of the three
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from inference.commands.cli import check_options_positive, command_line
from inference.folders.checkpoints import write_together
from inference.folders.output import csv_bytes, png, refuse_record
from inference.folders.runs import RunError
from inference.machine.processes import start
from inference.measuring import compare_tables
from inference.measuring.bounds import baseline
from inference.measuring.compare_figure import comparison_figure
from inference.measuring.compared_runs import open_runs, put_on, shared_data, short_names
from inference.settings.kinds import checked_options
from models.base import ImageProblem
from pyro_mdm import evaluation
from pyro_mdm.evaluation.estimates import Comparison
from pyro_mdm.support.files import check_place

__all__ = ["compare", "open_runs", "short_names"]

FILES = ("bounds.csv", "differences.csv", "by_log_snr.csv", "comparison.png")


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """The comparison.

    Args:
        runs: run folders, of one --model and one --protocol, which are only read.
        half_width: half-width, in bits/dim, of the 95% intervals for the noise of every bound and
            difference, up to which network calls are made. null: all --draws are made.
        draws: largest number of network calls per datum and run for the diffusion term.
        part: part of the data; choose settings on validation, for which runs need --holdout true.
        num_data: largest number of data of that part, spread evenly over it; all by default.
        out: folder for bounds.csv, differences.csv, by_log_snr.csv and comparison.png.
        batch_size: number of data per network call.
        seed: seed of the noise.
        overwrite: whether a comparison in the folder --out is replaced.
        accelerator: kind of device: cpu, cuda, … or auto.
    """

    runs: Sequence[Path]
    half_width: float | None = 0.01
    draws: int = 64
    part: Literal["test", "validation"] = "test"
    num_data: int | None = None
    out: Path = Path("comparison")
    batch_size: int = 256
    seed: int = 0
    overwrite: bool = False
    accelerator: str = "auto"


@checked_options(CompareOptions)
def compare(runs: Sequence[Path], half_width: float | None = 0.01, **options: Any) -> Comparison:
    """Compare the bounds of runs, with their averaged weights, on the same data and noise.

    Differences are printed with 95% intervals and with whether these exclude 0. They are written as
    CSV together with the bounds of each run, and drawn.

    Args:
        runs, half_width, options: options by name, see :class:`CompareOptions`.

    Raises:
        RunError: no such run, one given twice, runs of different data, no such part of the data, or
            a comparison in the way.
        ValueError: as :func:`pyro_mdm.evaluation.compare`.
    """
    settings = CompareOptions(runs=runs, half_width=half_width, **options)
    check_options_positive(settings, "draws", "batch_size", "half_width", "num_data")
    _check_out(settings.out, settings.overwrite)
    device = start(settings.accelerator).device
    entries = open_runs(settings.runs)
    put_on(entries, device)
    data = shared_data(entries, settings.part, settings.seed, settings.num_data)
    problems = {entry.name: entry.programs.problem for entry in entries}
    rows = {n: problem.part(settings.part)[data.rows] for n, problem in problems.items()}
    contexts = {name: of_problem.context for name, of_problem in rows.items()}
    comparison = evaluation.compare(
        {e.name: e.programs.given(contexts[e.name])[1:] for e in entries},
        data.x.to(device),
        draws=settings.draws,
        half_width=settings.half_width,
        batch_size=settings.batch_size,
        seed=settings.seed,
        baseline=baseline([entry.programs for entry in entries]),
        progress=True,
    )
    problem = entries[0].programs.problem
    kind = "images" if isinstance(problem, ImageProblem) else "data"
    dequantized = "" if data.levels is None else " (dequantized)"
    what = f"{len(data.x)} {settings.part} {kind} of {problem.name}{dequantized}"
    numbers = compare_tables.tables(entries, comparison, data.log_det, data.levels)
    title = f"{what}, seed {settings.seed}"
    print(compare_tables.report(numbers, comparison, title, settings.draws))
    if note := compare_tables.on_contexts(entries):
        print(note)
    _write(settings.out, numbers, what)
    print(f"{settings.out}: {', '.join(FILES)}")
    return comparison


def _write(out: Path, numbers: compare_tables.Tables, title: str) -> None:
    """Write the files of a comparison, all of them or none."""
    out.mkdir(parents=True, exist_ok=True)
    bounds, differences, by_log_snr = numbers
    contents = (
        csv_bytes(bounds, list(bounds[0])),
        csv_bytes(differences, compare_tables.DIFFERENCE_COLUMNS),
        csv_bytes(by_log_snr, list(by_log_snr[0])),
        png(comparison_figure(bounds, differences, by_log_snr, title=title)),
    )
    write_together({out / name: data for name, data in zip(FILES, contents, strict=True)})


def _check_out(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise RunError(f"--out {out} is a file, expected a folder for the comparison")
    refuse_record(out, "out")
    there = [name for name in FILES if (out / name).exists()]
    if there and not overwrite:
        raise RunError(
            f"{out} already holds {', '.join(there)}; replace them with --overwrite true, or give "
            "another --out"
        )
    check_place(out / FILES[0])


if __name__ == "__main__":
    command_line(compare, unnamed="runs", groups={"comparison": CompareOptions})
