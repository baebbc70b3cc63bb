"""Files that are replaced as a whole or not at all, even if the process is killed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["Write", "check_place", "digest_of", "replacing", "temporary"]

Write = Callable[[Path, Iterable[bytes | memoryview]], str]
"""A function that writes a file in pieces and returns the SHA-256 of its content."""


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


def digest_of(content: object) -> str:
    """The SHA-256 of the JSON of a content, whatever the order of its names."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
