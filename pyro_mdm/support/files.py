"""Files that are replaced as a whole or not at all, even if the process is killed.

And where the programs, the data sets and the trained models are: in a checkout, or in a wheel.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = [
    "DEPTH",
    "LIBRARY",
    "ROOT",
    "JsonObject",
    "Write",
    "check_content",
    "check_place",
    "installing",
    "json_of",
    "read_file",
    "read_json",
    "regular",
    "replacing",
    "temporary",
]

LIBRARY = Path(__file__).resolve().parent.parent
"""The folder of ``pyro_mdm``."""
COPY = LIBRARY / "_checkout"
"""The copy that a wheel has, in a folder that is no package: nothing imports from it but programs
in processes of their own."""
ROOT = COPY if COPY.is_dir() else LIBRARY.parent
"""The folder of ``inference`` and ``models``."""

JsonObject = dict[str, Any]
"""An object of JSON: values by name."""
Nested = dict[str, object] | list[object]
Write = Callable[[Path, Iterable[bytes | memoryview]], str]
"""A function that writes a file in pieces and returns the SHA-256 of its content."""


def installing(extra: str) -> str:
    """How packages of an extra are installed, for the end of a message."""
    return f'in a checkout of the repository, run pip install -e ".[{extra}]"'


def temporary(path: Path) -> Path:
    """The path at which ``path`` is written before it is renamed."""
    return path.with_name(f".{path.name}.tmp")


BLOCK = 4096
"""The number of bytes that are written to see whether a file can be."""


def check_place(path: Path) -> None:
    """See whether a file can be written at ``path``, by writing one beside it and removing it.

    Missing folders are not made: a file of the first one's name is written in place of it.

    Raises:
        OSError: a folder that may not be written to, a full disk, or a name that is too long.
    """
    folder = next(parent for parent in path.parents if parent.is_dir())
    file = temporary(folder / path.relative_to(folder).parts[0])
    try:
        with open(file, "wb") as opened:
            opened.write(bytes(BLOCK))
    finally:
        with suppress(OSError):
            file.unlink(missing_ok=True)


DEPTH = 200
"""The most lists and objects within each other of a file, which readers follow by recursion."""

MOST = 10**7
"""The most lists and objects at one depth."""


def regular(path: Path) -> Path:
    """The path of a file, if reading it comes to an end: that of a pipe or a device may not.

    Raises:
        OSError: nothing is there, or no regular file.
    """
    if not stat.S_ISREG(mode := path.stat().st_mode):
        kinds = {stat.S_IFIFO: "a pipe", stat.S_IFDIR: "a folder", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(mode), "a device")
        code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(code, f"{kind}, expected a regular file; copy it to one", str(path))
    return path


def read_file(path: Path) -> bytes:
    """The bytes of a regular file (OSError: there is none)."""
    return regular(path).read_bytes()


def read_json(path: Path) -> Any:
    """What a regular file of JSON says, see :func:`json_of` (OSError: there is none)."""
    return json_of(read_file(path))


def json_of(text: bytes | str) -> Any:
    """What a text of JSON says.

    Whole numbers of more than 64 bits are floats.

    Raises:
        ValueError: no JSON, a number that float64 cannot hold, or more than :data:`DEPTH` lists
            and objects within each other.
    """
    try:
        content = json.loads(text, parse_int=_whole, parse_float=_finite)
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error
    check_content(content)
    return content


def check_content(content: object) -> None:
    """Raise ValueError where a content, of JSON or YAML, is what no program can follow.

    These are more than :data:`DEPTH` lists and dicts within each other, more than ``MOST`` of
    them, where YAML repeats one by its name, and whole numbers of more than 64 bits.
    """
    level: dict[int, tuple[Nested, int]] = {0: ([content], 1)}
    for _ in range(DEPTH + 2):
        inner: dict[int, tuple[Nested, int]] = {}
        for outer, times in level.values():
            for value in outer.values() if isinstance(outer, dict) else outer:
                if isinstance(value, dict | list):
                    before = inner[id(value)][1] if id(value) in inner else 0
                    inner[id(value)] = value, before + times
                elif type(value) is int and not -(2**63) <= value < 2**64:
                    raise ValueError(_too_large(str(value)))
        if not inner:
            return
        level = inner
        if sum(times for _, times in level.values()) > MOST:
            break
    raise ValueError(TOO_DEEP)


TOO_DEEP = f"more than {DEPTH} lists and objects are within each other, or far too many in all"


def _whole(text: str) -> int | float:
    """A whole number, as a float beyond 64 bits."""
    number = int(text[:40])
    return number if len(text) <= 40 and -(2**63) <= number < 2**64 else _finite(text)


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(_too_large(text))
    return value


def _too_large(text: str) -> str:
    return (
        f"a number of {len(text)} characters, {text[:12]}…, is beyond what is computed with; "
        "expected whole numbers of 64 bits, and others up to 1.8e308"
    )


@contextmanager
def replacing() -> Iterator[Write]:
    """Write files that are renamed together, at the end::

        with replacing() as write:
            digest = write(data_file, pieces)
            write(description, [json.dumps({"sha256": digest}).encode()])

    Each is on the disk when ``write`` returns. At the end of ``with`` earlier files but the first
    are removed, and the new ones are renamed one after another, in the order in which they were
    written. So a kill in between leaves some of the files away, but never one of them beside an
    earlier other. After an error, such as a full disk, the earlier files are unchanged and no
    temporary file is left.
    """
    paths: list[Path] = []

    def write(path: Path, pieces: Iterable[bytes | memoryview]) -> str:
        digest = hashlib.sha256()
        paths.append(path)
        temporary(path).unlink(missing_ok=True)  # else a link would be followed
        with open(temporary(path), "wb") as file:
            for piece in pieces:
                digest.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        return digest.hexdigest()

    try:
        yield write
        for path in paths[1:]:
            path.unlink(missing_ok=True)
        for path in paths:
            os.replace(temporary(path), path)
            _flush_names(path.parent)
    except BaseException:
        for path in paths:
            temporary(path).unlink(missing_ok=True)
        raise


def _flush_names(folder: Path) -> None:
    """Flush the names in a folder to the disk, where the system can open folders."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
