"""Tables in folders: the model as it saves itself, with its columns and rows beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pyro_mdm.model import DiffusionModel
from pyro_mdm.pretrained import TENSORS, PretrainedError, save_folder, trained_folder
from pyro_mdm.scores.denoiser import DenoiserScore
from pyro_mdm.scores.maps import RandomMaps
from pyro_mdm.support.checks import DataError
from pyro_mdm.support.saved import damage_of
from pyro_mdm.tables.rows import TableRows

__all__ = ["SavedTable", "read_table_folder", "write_table_folder"]

NOTE, RUN_NOTE = "pyro_mdm.table", "inference.run"
"""The notes that a table and a training run keep beside a model."""


class SavedTable(NamedTuple):
    """The content of a folder that :func:`write_table_folder` wrote."""

    rows: TableRows
    model: DiffusionModel
    names: list[str]  # of all columns of the training table
    settings: dict[str, Any]


def write_table_folder(
    folder: str | os.PathLike[str],
    rows: TableRows,
    model: DiffusionModel,
    names: Sequence[str],
    settings: Mapping[str, Any],
) -> None:
    """Write a table into a folder, which is made if there is none.

    Args:
        folder: the path of the folder.
        rows: the training rows, with their columns.
        model: the model of rows.
        names: the names of all columns of the training table.
        settings: the settings of the table.

    Raises:
        PretrainedError: levels that JSON cannot hold, or a path that is a file.
    """
    if rows.facts is None:
        raise PretrainedError(
            "columns have levels that JSON cannot hold, expected numbers, text, dates or truth "
            "values; fit to such columns, or pickle the table"
        )
    kept = {name: value for name, value in settings.items() if name != "device"}
    content = {"facts": dict(rows.facts), "names": list(names), "settings": kept}
    save_folder(model, folder, {NOTE: content}, {"rows": rows.train})


def read_table_folder(folder: str | os.PathLike[str]) -> SavedTable:
    """The table in a folder of :func:`write_table_folder`, or of a training run of a table.

    Args:
        folder: the path of the folder.

    Returns:
        A :class:`SavedTable`.

    Raises:
        PretrainedError: no such folder, or one that is damaged or of something else.
    """
    model, notes, beside = DiffusionModel.opened(folder, {})
    folder = trained_folder(folder)
    with damage_of(folder / TENSORS):
        content = notes[NOTE] if NOTE in notes else _of_run(notes, folder)
        empty = torch.empty(0, len(content["facts"]["columns"]), dtype=torch.float64)
        train = beside.get("rows", empty)
    try:
        rows = TableRows.from_facts(content["facts"], train)
    except DataError as error:
        raise PretrainedError(f"{folder} has columns that cannot be opened: {error}") from error
    score = model.score_function
    if not isinstance(score, DenoiserScore) or model.event_shape != rows.event_shape:
        raise PretrainedError(f"{folder} is damaged: its model is of no such columns")
    score.training_maps = RandomMaps(window=rows.window)  # which a model does not keep
    return SavedTable(rows, model, content.get("names", rows.names), content["settings"])


def _of_run(notes: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The columns of a training run, whose rows are elsewhere."""
    run = notes.get(RUN_NOTE, {})
    facts = run.get("data", {}).get("facts")
    if not facts or "columns" not in facts:
        raise PretrainedError(
            f"{folder} has a model that is of no table, expected what Table.save_pretrained "
            "writes, or a run of inference.train --model tabular"
        )
    if (maps := run["config"].get("maps")) in ("levels", "independent"):
        raise PretrainedError(
            f"{folder} was trained at --maps {maps}, where no entry is ever observed, expected "
            "mixed or subsets; train it at such maps"
        )
    return {"facts": facts, "settings": {"seed": run["config"]["seed"]}}
