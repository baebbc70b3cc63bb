"""Checkpoints that survive interruption and damage, and that cannot run code.

A checkpoint is a file of a folder, ``step-00000100.safetensors``, with every tensor and everything
else (:mod:`pyro_mdm.support.saved`). It is written to a temporary file and flushed to the disk
before it gets its name, so that a half-written one never counts, and a full disk is noticed before
anything changes. Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_mdm.pretrained import CHECKPOINT
from pyro_mdm.support.files import replacing
from pyro_mdm.support.saved import PretrainedError, damage_of, read_saved, write_saved
from pyro_mdm.support.settings import EXTRA_STATE

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

NAME = re.compile(r"step-\d{8,}")


class RunError(RuntimeError):
    """A run folder is in the way, missing or damaged."""


class StorageError(RunError):
    """A file could not be written for want of space; earlier files are intact."""


class CheckpointError(RuntimeError):
    """A checkpoint is missing or damaged."""


class ArchitectureError(RuntimeError):
    """A checkpoint belongs to another architecture."""


@dataclass(frozen=True)
class Checkpoint:
    """The state that a run resumes from: tensors by name, and what JSON can hold."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any] = field(default_factory=dict)

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors saved under ``name/``, without this prefix."""
        prefix = name + "/"
        return {k.removeprefix(prefix): t for k, t in self.tensors.items() if k.startswith(prefix)}


# -- files -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def explain_full_disk(path: Path, needed: int) -> Iterator[None]:
    """Turn errors of a full disk, quota or file size limit into a :class:`StorageError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        try:
            free = f"{shutil.disk_usage(path.parent).free:,}"
        except OSError:
            free = "an unknown number of"
        raise StorageError(
            f"{path} could not be written: {error.strerror} ({needed:,} bytes needed, {free} "
            "free). What was written before, earlier checkpoints too, is whole; free some space "
            "or raise the limit, then continue a training with --resume"
        ) from error


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` by a file of ``data``, or leave it as it is (StorageError: no space)."""
    write_together({path: data})


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Replace files by new ones, none of which is ever beside an earlier other, or leave them as
    they are (StorageError: no space)."""
    size = sum(map(len, contents.values()))
    with explain_full_disk(next(iter(contents)), size), replacing() as write:
        for path, data in contents.items():
            write(path, [data])


# -- checkpoints -----------------------------------------------------------------------------------


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Write ``checkpoint``, and remove all but the newest ``keep``; returns the path of its file.

    Without space for it (StorageError) earlier checkpoints are kept.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}, expected at least 1: the newest checkpoint stays")
    file = folder / f"step-{checkpoint.step:08d}.safetensors"
    remove_leftovers(folder)
    _write(file, checkpoint)
    for old in [path for path in _files(folder) if _step(path) <= checkpoint.step][keep:]:
        old.unlink()
    return file


def _write(file: Path, checkpoint: Checkpoint) -> None:
    size = sum(t.numel() * t.element_size() for t in checkpoint.tensors.values())
    content = {"step": checkpoint.step, "state": checkpoint.state}
    with explain_full_disk(file, size):
        write_saved(file, CHECKPOINT, content, checkpoint.tensors)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of a killed process in ``folder``."""
    for path in list(folder.glob(".step-*.safetensors.tmp")):
        path.unlink(missing_ok=True)


def load_checkpoint(file: Path) -> Checkpoint:
    """The checkpoint in a file (CheckpointError: it is not whole)."""
    try:
        content, tensors = read_saved(file, CHECKPOINT)
        with damage_of(file):
            return Checkpoint(int(content["step"]), tensors, content["state"])
    except PretrainedError as error:
        raise CheckpointError(str(error)) from error


def restate(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change the state of each checkpoint of ``folder``, the newest first, beside its tensors.

    Each is replaced at once, and damaged ones are left as they are.
    """
    for file in _files(folder):
        with contextlib.suppress(CheckpointError):
            checkpoint = load_checkpoint(file)
            _write(file, replace(checkpoint, state=change(checkpoint.state)))


def latest_checkpoint(folder: Path) -> Checkpoint:
    """The newest whole checkpoint of ``folder`` (CheckpointError: there is none).

    Warns of each damaged one that is newer.
    """
    problems = []
    for file in _files(folder):
        try:
            return load_checkpoint(file)
        except CheckpointError as error:
            problems.append(str(error))
            warnings.warn(f"{error}; going back to the checkpoint before it", stacklevel=2)
    reason = "; ".join(problems) or "no checkpoint was written before the run ended"
    raise CheckpointError(
        f"{folder} holds no usable checkpoint ({reason}); start the training again"
    )


def _files(folder: Path) -> list[Path]:
    """The files of ``folder``'s checkpoints, newest first."""
    paths = [path for path in folder.glob("step-*.safetensors") if NAME.fullmatch(path.stem)]
    return sorted(paths, key=_step, reverse=True)


def _step(file: Path) -> int:
    return int(file.stem.removeprefix("step-"))


# -- modules and optimizers ------------------------------------------------------------------------


def load_module(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Load ``tensors`` into ``module``, all of them or none.

    Settings in a checkpoint (:mod:`pyro_mdm.support.settings`) are restored too.

    Raises:
        ArchitectureError: names, shapes or settings differ; the message lists where.
    """
    everything = module.state_dict()
    weights = {k: t for k, t in everything.items() if not k.endswith(EXTRA_STATE)}
    differences = [f"{k}: not in the checkpoint" for k in everything if k not in tensors]
    differences += [f"{k}: not in this model" for k in tensors if k not in everything]
    differences += [
        f"{k}: {tuple(tensors[k].shape)} in the checkpoint, {tuple(t.shape)} in this model"
        for k, t in weights.items()
        if k in tensors and tensors[k].shape != t.shape
    ]
    if differences:
        shown = "\n  ".join(differences[:10])
        more = f"\n  and {len(differences) - 10} more" if len(differences) > 10 else ""
        raise ArchitectureError(
            f"{what} belongs to another architecture; these tensors differ:\n  {shown}{more}\n"
            "Rebuild the model with the settings the checkpoint was trained with."
        )
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise ArchitectureError(f"{what} has other settings than this model: {error}") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Iterable[str]) -> dict[str, Tensor]:
    """An optimizer's state as ``<parameter's name>/<entry>``; ``names`` are in its order."""
    state = optimizer.state_dict()["state"]
    return {
        f"{name}/{entry}": value
        for i, name in enumerate(names)
        for entry, value in state.get(i, {}).items()
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], names: Iterable[str]
) -> None:
    """The inverse of :func:`optimizer_tensors`; learning rates stay those of ``optimizer``."""
    content = optimizer.state_dict()
    index = {name: i for i, name in enumerate(names)}
    content["state"] = {}
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        if name not in index:
            raise ArchitectureError(
                f"the checkpoint has optimizer state for {name!r}, which this model does not "
                "train; rebuild the model with the settings the checkpoint was trained with"
            )
        content["state"].setdefault(index[name], {})[entry] = value
    optimizer.load_state_dict(content)
