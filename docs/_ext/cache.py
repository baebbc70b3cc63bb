"""Where outputs of notebooks and of trials are kept: by what they were computed with.

They run again if their code or the library has changed, and else have the outputs that they had.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

__all__ = ["digest", "folder", "kept"]


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


def kept(file: Path, compute: Callable[[], Any]) -> Any:
    """What a file of JSON holds, or else the value of a function, which the file then holds."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(compute()), encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))
