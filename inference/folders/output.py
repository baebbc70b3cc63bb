"""The output of programs: CSV, PNG and aligned columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from inference.folders.records import encode
from inference.folders.runs import CONTENT, RunError
from pyro_mdm.pretrained import TRAINED, trained_folder
from pyro_mdm.support.files import check_place

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
PROBE = "draws.npz"
"""A name in a folder to be written into."""


def aligned(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Cells in columns, those of ``left`` flush left and all others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def rows_of(columns: Mapping[str, Sequence[Any]]) -> list[Row]:
    """Columns by name, all of one length, as rows."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def csv_bytes(rows: Sequence[Row], columns: Sequence[str] | None = None) -> bytes:
    """The content of a CSV file; ``columns`` are those of the first row by default."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if columns is None else columns)
    writer.writeheader()
    writer.writerows(rows)
    return encode(text.getvalue())


def png(picture: Figure | Tensor) -> bytes:
    """The content of a PNG file of a figure, or of pixels, uint8 (3, height, width)."""
    buffer = io.BytesIO()
    if isinstance(picture, Tensor):
        Image.fromarray(picture.movedim(0, -1).numpy()).save(buffer, "png")
    else:
        picture.savefig(buffer, format="png")
    return buffer.getvalue()


def default_out(run: Path, name: str) -> Path:
    """The default path of a program's output ``name`` for a run.

    In the run folder; for a trained model of this checkout in the current folder, with the model's
    name in front.
    """
    folder = trained_folder(run)
    ours = folder.resolve().parent == TRAINED
    return Path(f"{folder.name}-{name}") if ours else folder / name


def check_out(out: Path, suffixes: Sequence[str], *, overwrite: bool, option: str = "out") -> None:
    """Raise RunError unless ``out`` may be written.

    It must end in one of ``suffixes`` (none: a folder), be in a folder, be no file of a run, and
    replace nothing unless ``overwrite``. ``option`` names it in messages. A place where nothing can
    be written is an OSError now, and not when all is computed.
    """
    if suffixes and out.suffix not in suffixes:
        raise RunError(f"--{option} is {out}, expected a name that ends in {' or '.join(suffixes)}")
    if not suffixes and out.exists() and not out.is_dir():
        raise RunError(f"--{option} is {out}, which is a file, expected a folder; give another")
    if suffixes and out.is_dir():
        raise RunError(f"--{option} is {out}, which is a folder, expected a file; give another")
    refuse_record(out, option)
    if out.exists() and not overwrite:
        raise RunError(f"{out} exists; give another --{option}, or --overwrite to replace it")
    if not out.parent.is_dir():
        raise RunError(f"--{option} is {out}, but there is no folder {out.parent}; make it first")
    check_place(out if suffixes or not out.exists() else out / PROBE)


def refuse_record(out: Path, option: str) -> None:
    """Raise RunError for a file or folder of a run's own record."""
    path = out.resolve()
    for run in path.parents:
        if (run / "config.yaml").is_file() and path.relative_to(run).parts[0] in CONTENT:
            raise RunError(
                f"--{option} is {out}, which is of the record of the run {run}, expected another "
                "name; nothing but a training writes there"
            )
