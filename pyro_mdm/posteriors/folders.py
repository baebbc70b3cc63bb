"""Folders of learned posteriors and likelihoods: a JSON file, and files of tensors.

The JSON file has names, sizes and the SHA-256 of each other file, and is written last. So files of
two savings, as a kill may leave them, are not taken for one.
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
from pyro_mdm.support.files import read_json, replacing

__all__ = ["check_program", "damage_of", "read_names", "read_tensors", "write_folder"]

EXPECTED = "expected what save_pretrained writes"
DIGESTS = "sha256"
"""The key of the SHA-256 of the other files by name."""


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
        content: the content of that file.
        tensors: the tensors by name of each file of tensors, by the file's name.
        beside: the names of other files of the folder that have been written already.
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

    Args:
        folder: the folder.
        name: the name of the file.

    Raises:
        PretrainedError: a missing or damaged file.
    """
    path = Path(folder) / name
    if not path.is_file():
        raise PretrainedError(f"{path} is missing, {EXPECTED}")
    with damage_of(path):
        return dict(read_json(path))


def read_tensors(
    folder: str | os.PathLike[str], content: Mapping[str, Any], name: str
) -> dict[str, Tensor]:
    """The tensors of a file by name, after a check of all files of the folder.

    Args:
        folder: the folder.
        content: the content of its JSON file.
        name: the name of the file of tensors.

    Raises:
        PretrainedError: a file that is missing, damaged, or of another saving.
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
    """A context in which errors of reading a file are raised as :class:`PretrainedError`.

    Args:
        path: the file, for the message.

    Raises:
        PretrainedError: the content of the file is damaged.
    """
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
    """The program, if it is one.

    Args:
        program: the argument for the program.
        kind: the name of the class that is opened.
        folder: the folder that it is opened from.
        names: the names of the program's sites.

    Raises:
        TypeError: no program.
    """
    if not callable(program):
        raise TypeError(
            f"program is {describe(program)}, expected the simulator that the {kind} in {folder} "
            f"is of, with the sites {', '.join(names)}; a folder holds no code: "
            f"{kind}.from_pretrained(folder, program)"
        )
    return program
