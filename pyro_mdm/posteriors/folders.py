"""Folders of what is learned of a program: names and numbers in JSON, which knows the other files.

The JSON file is written last, with the SHA-256 of each of the others. So files of two savings, as a
kill may leave, are not taken for one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from pyro_mdm.pretrained import PretrainedError
from pyro_mdm.support.checks import describe
from pyro_mdm.support.files import replacing

__all__ = ["check_program", "damage_of", "read_names", "read_tensors", "write_folder"]

EXPECTED = "expected what save_pretrained writes"
DIGESTS = "sha256"
"""The key of the digests of other files, by name."""


def write_folder(
    folder: str | os.PathLike[str],
    name: str,
    content: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
    beside: Sequence[str] = (),
) -> None:
    """Write a folder, which is made if there is none.

    Args:
        folder: the folder.
        name: the name of its JSON file.
        content: content of that file.
        tensors: tensors of each file of tensors, by the file's name.
        beside: names of files that are there already, and belong to it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    digests = {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in beside}
    with replacing() as write:
        for file, values in tensors.items():
            contiguous = {key: value.contiguous() for key, value in values.items()}
            digests[file] = write(folder / file, [safetensors.torch.save(contiguous)])
        write(folder / name, [json.dumps({**content, DIGESTS: digests}).encode()])


def read_names(folder: str | os.PathLike[str], name: str) -> dict[str, Any]:
    """The content of a folder's JSON file.

    Raises:
        PretrainedError: it is missing or damaged.
    """
    path = Path(folder) / name
    if not path.is_file():
        raise PretrainedError(f"{path} is missing, {EXPECTED}")
    with damage_of(path):
        return dict(json.loads(path.read_text(encoding="utf-8")))


def read_tensors(
    folder: str | os.PathLike[str], content: Mapping[str, Any], name: str
) -> dict[str, Tensor]:
    """The tensors of a file, if this and all others are those that the folder was written with.

    Args:
        folder: the folder.
        content: content of its JSON file.
        name: the name of the file of tensors.

    Raises:
        PretrainedError: a file is missing, damaged or another.
    """
    digests = content.get(DIGESTS, {})  # earlier versions wrote none, or one
    digests = {name: digests} if isinstance(digests, str) else digests
    data = b""
    for file in [*(other for other in digests if other != name), name]:
        path = Path(folder) / file
        if not path.is_file():
            raise PretrainedError(f"{path} is missing, {EXPECTED}; save it again")
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        if digests.get(file, digest) != digest:
            raise PretrainedError(f"{path} is another than was saved, {EXPECTED}; save it again")
    with damage_of(Path(folder) / name):
        return safetensors.torch.load(data)


@contextmanager
def damage_of(path: Path) -> Iterator[None]:
    """Errors of what is read from a file say that it is damaged."""
    try:
        yield
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise PretrainedError(f"{path} is damaged ({error}), {EXPECTED}; save it again") from error


def check_program(
    program: Callable[..., Any] | None,
    kind: str,
    folder: str | os.PathLike[str],
    names: Sequence[str],
) -> Callable[..., Any]:
    """The program that is given.

    Args:
        program: the argument that is given as the program.
        kind: name of the class of what is opened.
        folder: the folder that it is in.
        names: the sites of the program.

    Raises:
        TypeError: none is given.
    """
    if not callable(program):
        raise TypeError(
            f"program is {describe(program)}, expected the simulator that the {kind} in {folder} "
            f"is of, with the sites {', '.join(names)}; a folder holds no code: "
            f"{kind}.from_pretrained(folder, program)"
        )
    return program
