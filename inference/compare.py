"""A comparison of runs: the bound of each, and paired differences.

    python -m inference.compare runs/cld runs/learned --out comparison

All runs are evaluated on the same data, at the same noise levels, with the same noise, so that
shared errors cancel. A pilot says how many network calls it takes to know every bound and every
difference to --half_width, as far as the noise goes. The folder holds

    bounds.csv        a row for each run
    differences.csv   a row for each pair of runs
    by_log_snr.csv    the diffusion term of each run by cell of log SNR
    comparison.png    a picture of the three
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from inference.commands.cli import check_positive, command_line
from inference.folders.checkpoints import write_atomically
from inference.folders.loading import load_trained
from inference.folders.output import csv_bytes, png
from inference.folders.runs import RunError
from inference.machine.processes import start
from inference.measuring.bounds import baseline
from inference.measuring.compare_figure import comparison_figure
from inference.measuring.compare_tables import DIFFERENCE_COLUMNS, Entry, Tables, report, tables
from inference.settings.names import short_name
from models import Problem
from models.base import Assembly, ImageProblem
from pyro_mdm import evaluation
from pyro_mdm.evaluation.estimates import Comparison
from pyro_mdm.support.files import check_place
from pyro_mdm.support.splits import spread

FILES = ("bounds.csv", "differences.csv", "by_log_snr.csv", "comparison.png")
# -- the runs --------------------------------------------------------------------------------------


def short_names(folders: Sequence[Path]) -> list[str]:
    """A name for each folder: its last part, with the parents that distinguish it from others."""
    seen: dict[Path, Path] = {}
    for folder in folders:
        place = folder.resolve()
        if place in seen:
            raise RunError(
                f"{folder} is given twice (also as {seen[place]}); name each run once"
                if seen[place] != folder
                else f"{folder} is given twice; name each run once"
            )
        seen[place] = folder
    parts = [Path(os.path.abspath(folder)).parts for folder in folders]
    names = []
    for mine in parts:
        k = 1
        while sum(other[-k:] == mine[-k:] for other in parts) > 1:
            k += 1
        names.append("/".join(mine[-k:]))
    return names


def open_runs(folders: Sequence[Path]) -> list[Entry]:
    """The runs in ``folders``, each once, by short name, with their averaged weights."""
    if not folders:
        raise RunError("no runs to compare; name at least one run folder")
    entries = []
    for name, folder in zip(short_names(folders), folders, strict=True):
        run, programs, checkpoint = load_trained(folder)
        config = run.config
        score = Assembly(programs.problem, programs.model.diffusion).score_name(config["score"])
        guide, score = short_name(config["guide"]), short_name(score)
        entries.append(
            Entry(name, folder, programs, guide, score, config["protocol"], checkpoint.step)
        )
    return entries


def _shared_data(
    entries: Sequence[Entry], part_name: str, seed: int
) -> tuple[Tensor, Tensor, int | None]:
    """x (n, *event_shape) and log|det ∂x/∂w| (n,) of a part that all runs share, and its levels."""

    def transformed(entry: Entry) -> tuple[Tensor, Tensor]:
        problem: Problem = entry.programs.problem
        x, log_det = problem.transform(
            getattr(problem, part_name), torch.Generator().manual_seed(seed)
        )
        return x, log_det

    empty = [e.name for e in entries if not len(getattr(e.programs.problem, part_name))]
    if empty:
        raise RunError(
            f"{', '.join(empty)}: no {part_name} data, since trained without --holdout true; "
            "compare on --part test"
        )
    x, log_det = transformed(entries[0])
    levels = entries[0].programs.problem.dequantized_levels
    for entry in entries[1:]:
        other_x, other_log_det = transformed(entry)
        same = (
            entry.programs.problem.dequantized_levels == levels
            and torch.equal(other_x, x)
            and torch.equal(other_log_det, log_det)
        )
        if not same:
            raise RunError(
                f"{entry.name} and {entries[0].name} do not have the same {part_name} data, so "
                f"their bounds cannot be compared:\n  {_data(entries[0], part_name)}\n"
                f"  {_data(entry, part_name)}\n"
                "Compare runs of one --model, --protocol and --split_seed with each other"
            )
    return x, log_det, levels


def _data(entry: Entry, part_name: str) -> str:
    problem = entry.programs.problem
    protocol = "" if entry.protocol is None else f", --protocol {entry.protocol}"
    shape = "×".join(map(str, problem.event_shape))
    number = len(getattr(problem, part_name))
    if (logit := getattr(problem, "dequantization", None)) is not None:
        protocol += f" --logit_margin {logit.margin:g}"
    if problem.rows is not None and problem.rows.seed is not None:
        protocol += f", --split_seed {problem.rows.seed}"
    return f"{entry.name}: model {problem.name}{protocol}, {number} {part_name} data of {shape}"


# -- the program -----------------------------------------------------------------------------------


def compare(
    runs: Sequence[Path],
    half_width: float | None = 0.01,
    draws: int = 64,
    part: Literal["test", "validation"] = "test",
    num_data: int | None = None,
    out: Path = Path("comparison"),
    batch_size: int = 256,
    seed: int = 0,
    overwrite: bool = False,
    accelerator: str = "auto",
) -> Comparison:
    """Compare the bounds of runs, with their averaged weights, on the same data and noise.

    Differences are printed with 95% intervals and whether they exclude 0. They are written with the
    bounds of each run as CSV, and drawn.

    Args:
        runs: run folders, of one --model and one --protocol, which are only read.
        half_width: half-width, in bits/dim, that the 95% intervals for the noise of every bound and
            difference are to have; network calls are made until they have it. null: all the draws
            are made.
        draws: largest number of network calls per datum and run for the diffusion term.
        part: part of the data; choose settings on validation, for which runs need --holdout true.
        num_data: largest number of data of that part, spread evenly over it; all by default.
        out: folder for bounds.csv, differences.csv, by_log_snr.csv and comparison.png.
        batch_size: number of data per network call.
        seed: seed of the noise.
        overwrite: replace a comparison in the folder --out.
        accelerator: kind of device: cpu, cuda, … or auto.

    Raises:
        RunError: no such run, one given twice, runs of different data, no such part of the data, or
            a comparison in the way.
        ValueError: as :func:`pyro_mdm.evaluation.compare`.
    """
    check_positive(draws=draws, batch_size=batch_size, half_width=half_width, num_data=num_data)
    _check_out(out, overwrite)
    device = start(accelerator).device
    entries = open_runs(runs)
    double = any(entry.programs.problem.dtype == torch.float64 for entry in entries)
    for entry in entries:
        entry.programs.model.to(device)
        if double:  # a network of float32 has the same values, to rounding
            entry.programs.problem.dtype = torch.float64
            entry.programs.model.double()
    x, log_det, levels = _shared_data(entries, part, seed)
    few = num_data is not None and num_data < len(x)
    chosen = spread(len(x), num_data) if few and num_data is not None else slice(None)
    x, log_det = x[chosen], log_det[chosen]
    pairs = {
        e.name: e.programs.given(e.programs.problem.part(part)[chosen].context)[1:] for e in entries
    }
    comparison = evaluation.compare(
        pairs,
        x.to(device),
        draws=draws,
        half_width=half_width,
        batch_size=batch_size,
        seed=seed,
        baseline=baseline([entry.programs for entry in entries]),
        progress=True,
    )
    problem = entries[0].programs.problem
    kind = "images" if isinstance(problem, ImageProblem) else "data"
    dequantized = "" if levels is None else " (dequantized)"
    what = f"{len(x)} {part} {kind} of {problem.name}{dequantized}"
    numbers = tables(entries, comparison, log_det, levels)
    print(report(numbers, comparison, f"{what}, seed {seed}", draws))
    print(*_of_given(entries), sep="\n", end="")
    _write(out, numbers, what)
    print(f"{out}: {', '.join(FILES)}")
    return comparison


def _write(out: Path, numbers: Tables, title: str) -> None:
    """Write the files of a comparison; the picture comes last, since drawing may fail."""
    out.mkdir(parents=True, exist_ok=True)
    bounds, differences, by_log_snr = numbers
    contents = (
        csv_bytes(bounds, list(bounds[0])),
        csv_bytes(differences, DIFFERENCE_COLUMNS),
        csv_bytes(by_log_snr, list(by_log_snr[0])),
    )
    for name, content in zip(FILES[:-1], contents, strict=True):
        write_atomically(out / name, content)
    figure = comparison_figure(bounds, differences, by_log_snr, title=title)
    write_atomically(out / FILES[-1], png(figure))


def _of_given(entries: Sequence[Entry]) -> list[str]:
    """A note where some bounds are on data given a context."""
    names = [e.name for e in entries if e.programs.problem.context is not None]
    if not names:
        return []
    return [
        f"{', '.join(names)}: bounds on data given the context of --condition, which take fewer "
        "bits than data alone.\nDifferences of runs with different contexts include the "
        "information in these.",
        "",
    ]


def _check_out(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise RunError(f"--out {out} is a file, expected a folder for the comparison")
    there = [name for name in FILES if (out / name).exists()]
    if there and not overwrite:
        raise RunError(
            f"{out} already holds {', '.join(there)}; replace them with --overwrite true, or give "
            "another --out"
        )
    check_place(out / FILES[0])


if __name__ == "__main__":
    command_line(compare, unnamed="runs")
