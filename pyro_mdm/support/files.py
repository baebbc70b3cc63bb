"""Files that are replaced as a whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Write", "replacing", "temporary"]

Write = Callable[[Path, Iterable[bytes | memoryview]], str]
"""Writes a file in pieces and returns the SHA-256 of its content."""


def temporary(path: Path) -> Path:
    """The path at which ``path`` is written before it gets its name."""
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def replacing() -> Iterator[Write]:
    """Write files that get their names together, at the end::

        with replacing() as write:
            digest = write(data_file, pieces)
            write(description, [json.dumps({"sha256": digest}).encode()])

    Each is on the disk when ``write`` returns. At the end of ``with`` they are renamed one after
    another, in the order in which they were written; a kill in between leaves the first ones new,
    so that the last should tell of the others by their digests. After an error, a full disk say,
    what was there before still is, and no temporary file is left.
    """
    paths: list[Path] = []

    def write(path: Path, pieces: Iterable[bytes | memoryview]) -> str:
        digest = hashlib.sha256()
        paths.append(path)
        temporary(path).unlink(missing_ok=True)  # a link would be followed
        with open(temporary(path), "wb") as file:
            for piece in pieces:
                digest.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        return digest.hexdigest()

    try:
        yield write
        for path in paths:
            os.replace(temporary(path), path)
            _flush_names(path.parent)
    except BaseException:
        for path in paths:
            temporary(path).unlink(missing_ok=True)
        raise


def _flush_names(folder: Path) -> None:
    """Have the names in a folder on the disk, where a folder can be opened for that."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
