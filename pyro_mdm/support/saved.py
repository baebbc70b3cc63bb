"""Saved things: one safetensors file each, with a description and a checksum in its header.

The header begins with ``{"__metadata__":{"sha256":"…","pyro_mdm":"…"``: the SHA-256 of the whole
file, computed with zeros in its place, and the description, a text of JSON. The file is replaced as
a whole, so that after a kill at any time it is the old or the new one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pyro_mdm.support.files import JsonObject, json_of, read_file, regular, replacing

__all__ = ["FORMAT", "PretrainedError", "Saved", "damage_of", "digest_of_tensors", "peek"]
__all__ += ["read_saved", "write_saved"]

FORMAT = 2
"""The number of the format in which files are written."""
START = b'{"__metadata__":{"sha256":"'
"""The beginning of a header, which follows its length in 8 bytes and precedes the seal."""
SEAL = slice(8 + len(START), 8 + len(START) + 64)
"""The place of the seal in a file."""
ZEROS = b"0" * 64


class PretrainedError(ValueError):
    """An object that cannot be saved, or a place without one that can be opened."""


class Saved(NamedTuple):
    """The content of a file that :func:`write_saved` wrote."""

    content: JsonObject
    tensors: dict[str, Tensor]


def write_saved(
    path: Path, kind: str, content: Mapping[str, object], tensors: Mapping[str, Tensor]
) -> None:
    """Write a file that is replaced as a whole; its folder is made if there is none.

    The kind is in words, such as "a model"; the content is what JSON can hold.
    """
    # one text, as safetensors writes several in an order by chance
    text = json.dumps({"format": FORMAT, "kind": kind, "content": content})
    data = safetensors.torch.save(_unshared(tensors))
    end = 8 + int.from_bytes(data[:8], "little")
    notes = {"sha256": ZEROS.decode(), "pyro_mdm": text}
    names = {"__metadata__": notes, **json.loads(data[8:end])}
    header = json.dumps(names, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    header = len(header).to_bytes(8, "little") + header
    values = memoryview(data)[end:]
    seal = _digest(header, values)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing() as write:
        write(path, [header[: SEAL.start], seal.encode(), header[SEAL.stop :], values])


def read_saved(path: Path, kind: str) -> Saved:
    """What :func:`write_saved` wrote, after a comparison with its seal.

    Raises PretrainedError for no file, one that is damaged, or one of another kind.
    """
    if not path.exists():
        raise PretrainedError(f"{path} is missing, expected {kind} that was saved there")
    data = read_file(path)
    seal = _digest(data)
    if not data[8:].startswith(START) or data[SEAL] != seal.encode():
        raise PretrainedError(
            f"{path} is damaged, or no file of this version of pyro_mdm: its {len(data):,} bytes "
            f"have SHA-256 {seal[:12]}…, expected {data[SEAL][:12].decode(errors='replace')}…; "
            "save it again"
        )
    with damage_of(path):
        header = json_of(data[8 : 8 + int.from_bytes(data[:8], "little")])
        described = json_of(header["__metadata__"]["pyro_mdm"])
        if described["format"] > FORMAT:
            raise PretrainedError(
                f"{path} has format {described['format']}, expected at most {FORMAT}, which this "
                "version reads; install a newer pyro_mdm"
            )
        if described["kind"] != kind:
            raise PretrainedError(
                f"{path} is {described['kind']}, expected {kind}; open it as what it is"
            )
        return Saved(dict(described["content"]), safetensors.torch.load(data))


def peek(path: Path) -> JsonObject:
    """The content of a file, without its tensors and a comparison with its seal."""
    with damage_of(path), safe_open(regular(path), "pt") as file:
        return dict(json_of(file.metadata()["pyro_mdm"])["content"])


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of tensors by name."""
    return hashlib.sha256(safetensors.torch.save(_unshared(tensors))).hexdigest()


@contextmanager
def damage_of(path: Path) -> Iterator[None]:
    """A context in which errors of reading a file are raised as :class:`PretrainedError`."""
    try:
        yield
    except PretrainedError:
        raise
    except (
        *(ValueError, KeyError, TypeError, AttributeError, RuntimeError, RecursionError, OSError),
        SafetensorError,
    ) as error:
        raise PretrainedError(
            f"{path} is damaged ({type(error).__name__}: {error}); save it again"
        ) from error


def _digest(data: bytes, rest: bytes | memoryview = b"") -> str:
    """The SHA-256 of a file with zeros in place of its seal."""
    digest = hashlib.sha256(data[: SEAL.start])
    digest.update(ZEROS)
    digest.update(memoryview(data)[SEAL.stop :])
    digest.update(rest)
    return digest.hexdigest()


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, no two of which share memory, as safetensors requires."""
    separate: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        copy = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        separate[name] = copy.clone() if copy.untyped_storage().data_ptr() in seen else copy
        seen.add(copy.untyped_storage().data_ptr())
    return separate
