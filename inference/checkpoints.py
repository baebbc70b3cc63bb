"""Checkpoints that survive being killed, cut short or damaged, and that cannot run code.

One checkpoint is two files of a folder, ``step-00000100.safetensors`` with every tensor and
``step-00000100.json`` with everything else and the checksum of the first. Each is written to a
temporary file beside it, flushed to the disk and renamed; the JSON comes last and is what makes the
pair a checkpoint, so a half-written one is never the newest valid one. Nothing is unpickled, ever.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn

__all__ = [
    "ArchitectureError",
    "Checkpoint",
    "CheckpointError",
    "latest_checkpoint",
    "load_checkpoint",
    "load_module",
    "load_optimizer",
    "optimizer_tensors",
    "save_checkpoint",
    "write_atomically",
]


class CheckpointError(RuntimeError):
    """A checkpoint is missing or damaged."""


class ArchitectureError(RuntimeError):
    """A checkpoint belongs to another architecture."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on: tensors by name, and what JSON can hold."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any] = field(default_factory=dict)

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors saved under ``name/``, with that prefix taken off."""
        prefix = name + "/"
        return {k.removeprefix(prefix): t for k, t in self.tensors.items() if k.startswith(prefix)}


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` by a file holding ``data``: all of it or, whatever happens, none of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the new name, too, must be on the disk
    finally:
        os.close(directory)


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Write ``checkpoint``, drop all but the newest ``keep`` of ``folder``; the JSON's path."""
    if keep < 1:
        raise ValueError(f"keep is {keep}, expected at least 1: the newest checkpoint stays")
    folder.mkdir(parents=True, exist_ok=True)
    description = folder / f"step-{checkpoint.step:08d}.json"
    # own, contiguous copies: safetensors refuses tensors that share storage
    copies = {k: t.detach().cpu().clone().contiguous() for k, t in checkpoint.tensors.items()}
    data = tensors_to_bytes(copies)
    body = {
        "step": checkpoint.step,
        "tensors_sha256": hashlib.sha256(data).hexdigest(),
        "state": checkpoint.state,
    }
    text = json.dumps({"checkpoint": body, "sha256": _digest(body)}, indent=1)
    write_atomically(description.with_suffix(".safetensors"), data)
    write_atomically(description, text.encode())
    for old in _descriptions(folder)[keep:]:
        old.unlink()  # first what makes it a checkpoint
        old.with_suffix(".safetensors").unlink(missing_ok=True)
    return description


def load_checkpoint(description: Path) -> Checkpoint:
    """Read the checkpoint that a JSON file describes.

    Raises:
        CheckpointError: a file is missing, cut short, or differs from what was written.
    """
    file = description
    try:
        outer = json.loads(description.read_bytes())
        body = outer["checkpoint"]
        if _digest(body) != outer["sha256"]:
            raise CheckpointError(f"{file} is damaged: its checksum does not match its content")
        file = description.with_suffix(".safetensors")
        data = file.read_bytes()
        found = hashlib.sha256(data).hexdigest()
        if found != body["tensors_sha256"]:
            raise CheckpointError(
                f"{file} is damaged: its {len(data):,} bytes have SHA-256 {found[:12]}…, "
                f"expected {body['tensors_sha256'][:12]}…"
            )
        return Checkpoint(int(body["step"]), tensors_from_bytes(data), body["state"])
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing") from error
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error


def latest_checkpoint(folder: Path) -> Checkpoint:
    """The newest checkpoint of ``folder`` that is whole; warns of each damaged one passed over.

    Raises:
        CheckpointError: there is none.
    """
    problems = []
    for description in _descriptions(folder):
        try:
            return load_checkpoint(description)
        except CheckpointError as error:
            problems.append(str(error))
            warnings.warn(f"{error}; going back to the checkpoint before it", stacklevel=2)
    reason = "; ".join(problems) or "no checkpoint was written before the run ended"
    raise CheckpointError(
        f"{folder} holds no usable checkpoint ({reason}); start the training again"
    )


def _descriptions(folder: Path) -> list[Path]:
    """The JSON files of ``folder``'s checkpoints, newest first."""
    return sorted(folder.glob("step-*.json"), key=lambda path: path.stem, reverse=True)


def _digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


# -- modules and optimizers ------------------------------------------------------------------------


def load_module(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Load ``tensors`` into ``module``, all of them or none.

    Raises:
        ArchitectureError: names or shapes differ; the message lists where.
    """
    own = module.state_dict()
    differences = [f"{k}: not in the checkpoint" for k in own if k not in tensors]
    differences += [f"{k}: not in this model" for k in tensors if k not in own]
    differences += [
        f"{k}: {tuple(tensors[k].shape)} in the checkpoint, {tuple(t.shape)} in this model"
        for k, t in own.items()
        if k in tensors and tensors[k].shape != t.shape
    ]
    if differences:
        shown = "\n  ".join(differences[:10])
        more = f"\n  and {len(differences) - 10} more" if len(differences) > 10 else ""
        raise ArchitectureError(
            f"{what} belongs to another architecture; these tensors differ:\n  {shown}{more}\n"
            "Rebuild the model with the settings the checkpoint was trained with."
        )
    module.load_state_dict(dict(tensors))


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Iterable[str]) -> dict[str, Tensor]:
    """An optimizer's state as ``<parameter's name>/<entry>``; ``names`` in its own order."""
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
