"""Where outputs of notebooks are kept: by what they were computed with.

A notebook runs again if its code or the library has changed, and else has the outputs that it had.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

__all__ = ["digest", "folder"]


def digest(sources: Iterable[Path]) -> str:
    """A short digest of all files in folders ``sources``: their names and what they hold."""
    state = hashlib.sha256()
    for source in sources:
        for path in sorted(source.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                name = path.relative_to(source.parent).as_posix()
                state.update(f"{name} {path.stat().st_size}\n".encode())
                state.update(path.read_bytes())
    return state.hexdigest()[:16]


def folder(build: Path, sources: Iterable[Path]) -> Path:
    """The folder of outputs that belongs to these sources, in the folder of all builds."""
    return build / "notebooks" / digest(sources)
