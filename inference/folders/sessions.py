"""What a run's folder says of the code and the machine: sessions, versions and sources."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from inference.folders.checkpoints import write_atomically
from inference.folders.records import Record, append, finite, now, read_lines, write_json
from inference.machine import environment
from pyro_mdm.support.files import read_file, read_json

CHANGES_LIMIT = 1 << 20
"""The most bytes of changes.patch; the rest is cut off."""


def begin_session(folder: Path, step: int, **facts: object) -> None:
    """Write to sessions.jsonl that training starts or resumes at ``step``, with ``facts``.

    Warns if PyTorch or the code has changed since the run was created.
    """
    session = {
        "started": now(),
        "step": step,
        "command": sys.argv,
        "host": platform.node(),
        "pid": os.getpid(),
        "git_commit": environment.git_commit(),
        "torch": torch.__version__,
    }
    line = json.dumps(finite(session | facts), ensure_ascii=False)
    append(folder / "sessions.jsonl", line + "\n")
    first = _first_versions(folder)
    changed = [
        f"{what} {first[key]}, now {session[key]}"
        for key, what in {"torch": "PyTorch", "git_commit": "git commit"}.items()
        if first.get(key) and session[key] and first[key] != session[key]
    ]
    if changed:
        warnings.warn(
            f"{folder} was started with {' and with '.join(changed)}; its results "
            "may not be the same, bit for bit, as without this change",
            stacklevel=2,
        )


def sessions(folder: Path) -> list[Record]:
    """The records of :meth:`begin_session`, in order."""
    return read_lines(folder / "sessions.jsonl", {"started", "step"})


def _first_versions(folder: Path) -> dict[str, Any]:
    """PyTorch's version and the git commit at creation; empty if they cannot be read."""
    try:
        first = read_json(folder / "environment.json")
        return {"torch": first["packages"]["torch"], "git_commit": first["git_commit"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def keep_sources(folder: Path, paths: Iterable[Path]) -> None:
    """Keep a copy of the user's code in sources/; later, warn if it has changed."""
    paths = list(paths)
    alike = Counter(path.name for path in paths)
    for path in paths:
        name = path.name
        if alike[name] > 1:  # files of one name in several folders
            name = f"{hashlib.sha256(str(path.parent).encode()).hexdigest()[:8]}-{name}"
        kept, now = folder / "sources" / name, read_file(path)
        if not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            write_atomically(kept, now)
        elif read_file(kept) != now:
            warnings.warn(
                f"{path} is not what {folder} was started with, which is kept as {kept}; "
                "the run goes on with the new one",
                stacklevel=2,
            )


def write_environment(folder: Path) -> None:
    """Write environment.json and changes.patch."""
    diff = environment.code_changes()
    patch = None
    if diff and len(diff) > CHANGES_LIMIT:
        patch = f"{len(diff):,} bytes, more than the {CHANGES_LIMIT:,} that are kept"
    elif diff:
        patch = "changes.patch"
        write_atomically(folder / patch, diff)
    facts = environment.describe() | {"git_changes_patch": patch}
    write_json(folder / "environment.json", facts)
