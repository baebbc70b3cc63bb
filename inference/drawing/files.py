"""Files of samples: pictures, arrays, tables and animations."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.lib.format import open_memmap

from inference.drawing import pictures
from inference.drawing.pieces import table_text
from inference.drawing.sampling import Drawing, default_sampler, draw_batches, make_sampler
from inference.drawing.trajectory import MOST, animation, trajectory
from inference.folders.checkpoints import write_atomically
from inference.folders.output import check_out, png
from inference.settings.plan import Programs
from models import Problem, Tabular
from models.csv_files import CellTypes, text_columns
from pyro_mdm import DiffusionModel
from pyro_mdm.conditioning import Guided
from pyro_mdm.tables.columns.kinds import comma_separated

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PICTURE = 4096
"""Samples that a picture can show."""


def check_file(out: Path, problem: Problem, num_samples: int, overwrite: bool) -> None:
    """Raise unless a file may be written, and can hold so many samples."""
    tables = [".csv"] if isinstance(problem, Tabular) else []
    check_out(out, (".png", ".npy", ".gif", *tables), overwrite=overwrite)
    most = {".png": PICTURE, ".gif": MOST}.get(out.suffix, num_samples)
    if num_samples > most:
        raise ValueError(
            f"--num_samples is {num_samples}, expected at most {most} in a {out.suffix}; a .npy "
            "file holds any number"
        )


def given_values(given: str, problem: Problem, out: Path) -> dict[str, Any]:
    """The values of ``"age=50,sex=f"``, quoted as in a CSV file, by column."""
    if not isinstance(problem, Tabular) or out.suffix != ".csv":
        raise ValueError(
            f"--given is {given!r}, which is for rows of a table in a .csv file; give a class or a "
            "vector, or --out rows.csv"
        )
    words = comma_separated(given, "--given")
    pairs = [word.partition("=") for word in words]
    if wrong := [word for word, (_, equals, _) in zip(words, pairs, strict=True) if not equals]:
        raise ValueError(
            f"--given has {wrong[0]!r}, expected name=value, with commas between; e.g. age=50,sex=f"
        )
    names, _, values = ([text.strip() for text in texts] for texts in zip(*pairs, strict=True))
    table = CellTypes(names, [values], text_columns(problem.columns)).table([values])
    row: dict[str, Any] = table.iloc[0].to_dict()
    return row


def write_samples(
    out: Path,
    fabric: Fabric,
    programs: Programs,
    n: int,
    options: Drawing,
    *,
    in_turn: bool,
    pairs: bool,
) -> None:
    """Draw n samples into a file, in the memory of a batch for each process.

    Args:
        in_turn: whether each class has a column of the picture.
        pairs: whether the picture has the columns of a table in pairs.
    """
    problem, model, _ = programs
    partial = out.with_name(fabric.broadcast(f".{out.name}.{os.getpid()}.part"))
    try:
        _draw_into(partial, fabric, model, n, options)
        if not fabric.is_global_zero:
            return
        if out.suffix == ".npy":
            partial.replace(out)
            return
        x = torch.from_numpy(np.load(partial))
        if isinstance(problem, Tabular) and out.suffix == ".csv":
            write_atomically(out, table_text(problem.to_table(x)).encode())
        elif isinstance(problem, Tabular) and pairs:
            from pyro_mdm.plots.tables import pairs_figure  # loads matplotlib

            write_atomically(out, png(pairs_figure(*pictures.observed_and_drawn(problem, x))))
        else:
            width, context = pictures.columns(problem) if in_turn else None, options["context"]
            write_atomically(out, png(pictures.picture(problem, x, columns=width, context=context)))
    finally:
        if fabric.is_global_zero:
            partial.unlink(missing_ok=True)


def _draw_into(file: Path, fabric: Fabric, model: DiffusionModel, n: int, options: Drawing) -> None:
    """Write n samples to a .npy file, in the memory of a batch for each process."""
    if fabric.is_global_zero:
        file.unlink(missing_ok=True)  # a link would be followed
        kind = str(model.bound_score.dtype).removeprefix("torch.")
        open_memmap(file, "w+", np.dtype(kind), (n, *model.event_shape)).flush()
        if hasattr(os, "posix_fallocate"):  # a disk that is too full is told now
            with file.open("r+b") as f:
                os.posix_fallocate(f.fileno(), 0, file.stat().st_size)
    fabric.barrier()
    rows = open_memmap(file, "r+")
    share = (fabric.global_rank, fabric.world_size)
    for first, x in draw_batches(model, n, share=share, **options):
        rows[first : first + len(x)] = x.numpy()
    rows.flush()
    fabric.barrier()


def write_animation(
    out: Path, problem: Problem, model: DiffusionModel, n: int, options: Drawing
) -> None:
    """Write a picture of n samples on their way from noise."""
    name, guidance = options["sampler"] or default_sampler(model), options["guidance"]
    score, grid = model.score_function, options["grid"]
    sampler = make_sampler(name, options["steps"], model.diffusion, score, grid)
    if guidance is not None:
        sampler = Guided(sampler, guidance)
    states = trajectory(model.given_context(options["context"]), n, sampler, options["seed"])
    write_atomically(out, animation(problem, model, states))
