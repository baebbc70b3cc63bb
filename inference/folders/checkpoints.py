"""Checkpoints that survive interruption and damage, and that cannot run code.

A checkpoint is two files of a folder, ``step-00000100.safetensors`` with every tensor and
``step-00000100.json`` with everything else and the checksum of the first. Both are written to
temporary files and flushed to the disk before either is renamed. The JSON comes last and makes the
pair a checkpoint, so that a half-written one never counts, and a full disk is noticed before
anything changes. Tensors are written and hashed one by one, without a copy of the whole. Nothing is
unpickled.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pyro_mdm.support.files import digest_of, read_json, regular, replacing
from pyro_mdm.support.settings import EXTRA_STATE, SettingsError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CHUNK = 1 << 24
"""The number of bytes read, written and hashed at a time."""

FORMATS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of dtypes in safetensors."""

NAME = re.compile(r"step-\d{8,}")
LEFTOVER = re.compile(r"\.step-\d{8,}\.(json|safetensors)\.tmp")


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
    with explain_full_disk(path, len(data)), replacing() as write:
        write(path, [data])


def raw_bytes(tensor: Tensor) -> Iterator[memoryview]:
    """The bytes of ``tensor``, row-major, in pieces; never copied from a contiguous CPU tensor."""
    tensor = tensor.detach()
    flat = tensor.view(-1) if tensor.is_contiguous() else tensor
    length = max(1, CHUNK * len(flat) // max(1, flat.numel() * flat.element_size()))
    for piece in flat.split(length):
        contiguous = piece.resolve_conj().resolve_neg().cpu().contiguous()
        line = contiguous.as_strided((contiguous.numel(),), (1,))  # a view(-1) may have stride 0
        yield memoryview(line.view(torch.uint8).numpy())


# -- checkpoints -----------------------------------------------------------------------------------


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Write ``checkpoint``, and remove all but the newest ``keep``; returns the JSON's path.

    Without space for it (StorageError) earlier checkpoints are kept.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}, expected at least 1: the newest checkpoint stays")
    description = folder / f"step-{checkpoint.step:08d}.json"
    file = description.with_suffix(".safetensors")
    header, order = _header(checkpoint.tensors)
    tensors = [checkpoint.tensors[name] for name in order]
    size = len(header) + sum(t.numel() * t.element_size() for t in tensors)
    with explain_full_disk(file, size), replacing() as write:  # the tensors get their name first
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        pieces = (piece for tensor in tensors for piece in raw_bytes(tensor))
        body = {
            "step": checkpoint.step,
            "tensors_sha256": write(file, itertools.chain([header], pieces)),
            "state": checkpoint.state,
        }
        text = _text(body)
        with explain_full_disk(description, len(text)):
            write(description, [text])
    for old in [d for d in _descriptions(folder) if _step(d) <= checkpoint.step][keep:]:
        old.unlink()  # the JSON first: it makes a checkpoint
        old.with_suffix(".safetensors").unlink(missing_ok=True)
    return description


def _header(tensors: Mapping[str, Tensor]) -> tuple[bytes, list[str]]:
    """The head of a safetensors file, and the order of the tensors that follow.

    safetensors' own writer wants all tensors in memory at once, contiguous and unshared.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in FORMATS:
            dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in FORMATS)
            raise TypeError(f"tensor {name!r} is {tensor.dtype}, expected one of {dtypes}")
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # aligned
    entries, end = {}, 0
    for name in order:
        tensor, begin = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": FORMATS[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files in ``folder``, and tensors that no JSON file describes."""
    for path in list(folder.glob(".step-*.tmp")):
        if LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)
    for path in list(folder.glob("step-*.safetensors")):
        if NAME.fullmatch(path.stem) and not path.with_suffix(".json").exists():
            path.unlink(missing_ok=True)


def load_checkpoint(description: Path) -> Checkpoint:
    """The checkpoint that a JSON file describes (CheckpointError: it is not whole)."""
    file = description
    try:
        body = _body(description)
        file = description.with_suffix(".safetensors")
        size, digest = _hash(file)
        if digest != body["tensors_sha256"]:
            raise CheckpointError(
                f"{file} is damaged: its {size:,} bytes have SHA-256 {digest[:12]}…, "
                f"expected {body['tensors_sha256'][:12]}…"
            )
        # own memory: load_file maps the file, and what happens to that later must not matter
        tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
        return Checkpoint(int(body["step"]), tensors, body["state"])
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing") from error
    except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error


def _body(description: Path) -> dict[str, Any]:
    """The content of a checkpoint's JSON file (CheckpointError: its checksum is another)."""
    outer = read_json(description)
    body: dict[str, Any] = outer["checkpoint"]
    if digest_of(body) != outer["sha256"]:
        raise CheckpointError(f"{description} is damaged: its checksum does not match its content")
    return body


def _text(body: object) -> bytes:
    return json.dumps({"checkpoint": body, "sha256": digest_of(body)}, indent=1).encode()


def restate(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change the state of each checkpoint of ``folder``, the newest first, beside its tensors.

    Each is replaced at once, and damaged ones are left as they are.
    """
    for description in _descriptions(folder):
        with contextlib.suppress(CheckpointError, ValueError, KeyError, TypeError, RecursionError):
            body = _body(description)
            write_atomically(description, _text(body | {"state": change(body["state"])}))


def _hash(path: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file."""
    digest, size = hashlib.sha256(), 0
    with open(regular(path), "rb", buffering=0) as file:
        buffer = memoryview(bytearray(min(CHUNK, os.fstat(file.fileno()).st_size + 1)))
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size += count
    return size, digest.hexdigest()


def latest_checkpoint(folder: Path) -> Checkpoint:
    """The newest whole checkpoint of ``folder`` (CheckpointError: there is none).

    Warns of each damaged one that is newer.
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
    paths = [path for path in folder.glob("step-*.json") if NAME.fullmatch(path.stem)]
    return sorted(paths, key=_step, reverse=True)


def _step(description: Path) -> int:
    return int(description.stem.removeprefix("step-"))


# -- modules and optimizers ------------------------------------------------------------------------


def load_module(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Load ``tensors`` into ``module``, all of them or none.

    Settings in a checkpoint (:mod:`pyro_mdm.support.settings`) are restored too; one that is older
    than a setting keeps that of ``module``.

    Raises:
        ArchitectureError: names, shapes or settings differ; the message lists where.
    """
    everything = module.state_dict()
    settings = {k: t for k, t in everything.items() if k.endswith(EXTRA_STATE)}
    weights = {k: t for k, t in everything.items() if k not in settings}
    differences = [f"{k}: not in the checkpoint" for k in weights if k not in tensors]
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
    for name in settings.keys() & tensors.keys():
        owner: Any = module.get_submodule(name.removesuffix(EXTRA_STATE).removesuffix("."))
        try:
            owner.set_extra_state(tensors[name])
        except SettingsError as error:
            raise ArchitectureError(
                f"{what} has other settings than this model, {name.rpartition('.')[0]}: {error}"
            ) from error
    module.load_state_dict(settings | dict(tensors))


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
