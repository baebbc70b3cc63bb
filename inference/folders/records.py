"""Files of JSON or CSV lines: appending, and reading the lines that are whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from inference.folders.checkpoints import RunError, explain_full_disk, write_atomically
from pyro_mdm.support.files import json_of, read_file, read_json

SEAL = "sha256"
"""The entry of a JSON file that has the checksum of the others."""

Record = dict[str, Any]
"""A JSON object."""


def finite(content: object) -> Any:
    """Content for JSON, with None for numbers that are not finite."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def digest_of(content: object) -> str:
    """The SHA-256 of the JSON of a content, whatever the order of its names."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sealed(content: Mapping[str, object]) -> dict[str, object]:
    """Content for JSON, with its SHA-256 as the last entry."""
    whole = finite(dict(content))
    return whole | {SEAL: digest_of(whole)}


def write_json(path: Path, content: object) -> None:
    """Write content as readable JSON; numbers that are not finite become null."""
    text = json.dumps(finite(content), indent=1, ensure_ascii=False)
    write_atomically(path, encode(text + "\n"))


def read_sealed(path: Path) -> Record:
    """What :func:`sealed` wrote (RunError: it is damaged)."""
    try:
        content = dict(read_json(path))
    except (ValueError, TypeError) as error:
        raise RunError(f"{path} is damaged: {error}") from error
    if content.pop(SEAL, None) != digest_of(content):
        raise RunError(f"{path} is damaged: its checksum does not match its content")
    return content


def encode(text: str) -> bytes:
    """The text in UTF-8; characters that it cannot hold are escaped as in JSON."""
    return text.encode(errors="backslashreplace")


def now() -> str:
    """The time, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def append(path: Path, line: str) -> None:
    """Append a whole line; a torn one before it is ended first.

    Without space for it (StorageError) the file is not changed. A file of several names, hard
    links, becomes one of its own: the others keep what they have.
    """
    data = encode(line)
    if path.exists() and path.stat().st_nlink > 1:
        write_atomically(path, read_file(path))
    with explain_full_disk(path, len(data)), open(path, "ab+", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        if end > 0:
            file.seek(end - 1)
            data = data if file.read(1) == b"\n" else b"\n" + data
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise


def flush(path: Path) -> None:
    """Flush what was appended to ``path`` to the disk."""
    if path.exists():
        with explain_full_disk(path, 0), open(path, "rb") as file:
            os.fsync(file.fileno())


def read_lines(path: Path, keys: set[str]) -> list[Record]:
    """The JSON objects in the lines of a file that have ``keys``, one of them the step."""
    records = []
    for line in read_file(path).split(b"\n") if path.exists() else []:
        try:
            record = json_of(line)
        except ValueError:
            continue
        if isinstance(record, dict) and keys <= record.keys() and isinstance(record["step"], int):
            records.append(record)
    return records
