"""The runs of a comparison, and the data that all of them have."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from inference.folders.loading import load_trained
from inference.folders.runs import RunError
from inference.settings.names import short_name
from inference.settings.plan import Programs
from models.base import Assembly
from models.kinds import kind_of
from pyro_mdm.support.splits import spread


class Entry(NamedTuple):
    """A run to be compared."""

    name: str
    folder: Path
    programs: Programs
    guide: str
    score: str
    protocol: str | None
    training_steps: int

    @property
    def log_snr_range(self) -> tuple[float, float]:
        """λ(T), which is nominal for a simulated diffusion, and λ(ε)."""
        diffusion = self.programs.model.diffusion
        return diffusion.terminal_log_snr.item(), diffusion.max_log_snr

    @property
    def simulated(self) -> bool:
        """Whether the diffusion has no closed form."""
        return kind_of(self.programs.model.diffusion).simulated


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


def put_on(entries: Sequence[Entry], device: torch.device) -> None:
    """Put the models of runs on a device, in float64 if one of them is."""
    double = any(entry.programs.problem.dtype == torch.float64 for entry in entries)
    for entry in entries:
        entry.programs.model.to(device)
        if double:  # a network of float32 has the same values, to rounding
            entry.programs.problem.dtype = torch.float64
            entry.programs.model.double()


class SharedData(NamedTuple):
    """Data of one part that all runs have."""

    x: Tensor  # (n, *event_shape), in model space
    log_det: Tensor  # log|det ∂x/∂w| (n,)
    levels: int | None  # of dequantized data
    rows: slice | Tensor  # which of the part they are


def shared_data(
    entries: Sequence[Entry], part_name: str, seed: int, most: int | None
) -> SharedData:
    """At most so many data of a part, spread evenly (RunError: the runs have other data)."""

    def transformed(entry: Entry) -> tuple[Tensor, Tensor]:
        problem = entry.programs.problem
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
    few = most is not None and most < len(x)
    rows = spread(len(x), most) if few and most is not None else slice(None)
    return SharedData(x[rows], log_det[rows], levels, rows)


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
