"""What is measured in training: metrics.csv and history.jsonl of a run's folder."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference.folders.checkpoints import RunError, write_atomically
from inference.folders.records import Record, append, finite, flush, read_lines
from pyro_mdm.support.files import read_file
from pyro_mdm.support.measured import ALL_TERMS

COLUMNS = (
    "step",
    "part",
    *(
        f"{term}{suffix}"
        for term in ("bits_per_dim", *ALL_TERMS)
        for suffix in ("", "_standard_error")
    ),
    "learning_rate",
    "gradient_norm",
    "seconds",
)
FILES = ("metrics.csv", "history.jsonl")
"""What is written in training, as far as a checkpoint goes on from it."""


class Metrics:
    """The measurements of a run, in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def log(self, step: int, part: str, values: Mapping[str, float]) -> None:
        """Append one row to metrics.csv; columns that ``values`` lacks stay empty."""
        if unknown := set(values) - set(COLUMNS):
            raise ValueError(f"unknown columns {sorted(unknown)}, expected some of {COLUMNS}")
        row = io.StringIO()
        csv.DictWriter(row, COLUMNS).writerow({"step": step, "part": part, **values})
        append(self.folder / "metrics.csv", row.getvalue())

    def record(self, step: int, part: str, values: Mapping[str, Any]) -> None:
        """Append a line to history.jsonl; numbers that are not finite become null."""
        line = json.dumps(finite({"step": step, "part": part, **values}), ensure_ascii=False)
        append(self.folder / "history.jsonl", line + "\n")

    def history(self) -> list[Record]:
        """The records of :meth:`record`, in order, without torn lines."""
        return read_lines(self.folder / "history.jsonl", {"step", "part"})

    def written(self) -> dict[str, dict[str, Any]]:
        """The length and SHA-256 of what metrics.csv and history.jsonl hold now, for a
        checkpoint."""
        content = {name: self._content(name) for name in FILES}
        return {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in content.items()
        }

    def rewind(self, written: Mapping[str, Any] | None) -> None:
        """Go back to metrics.csv and history.jsonl as they were at a checkpoint; what comes after
        it is written again.

        Args:
            written: content of the files at the checkpoint, by :meth:`written`; None: the start.

        Raises:
            RunError: they do not begin with what they held.
        """
        start = {"metrics.csv": (",".join(COLUMNS) + "\r\n").encode(), "history.jsonl": b""}
        for name in FILES:
            kept = start[name] if written is None else self._as_written(name, written)
            write_atomically(self.folder / name, kept)

    def _as_written(self, name: str, written: Mapping[str, Any]) -> bytes:
        """The beginning of a file, as :meth:`written` says it was."""
        data, then = self._content(name), written.get(name, {})
        start = data[: then.get("bytes", 0)]
        if hashlib.sha256(start).hexdigest() != then.get("sha256"):
            raise RunError(
                f"{self.folder / name} is damaged: its first {len(start):,} bytes of "
                f"{len(data):,} are not those that the checkpoint was saved with. Put the file "
                "back, or start a new run: python -m inference.train --config "
                f"{self.folder / 'config.yaml'}"
            )
        return start

    def _content(self, name: str) -> bytes:
        path = self.folder / name
        return read_file(path) if path.exists() else b""

    def flush(self) -> None:
        """Flush both files to the disk."""
        for name in FILES:
            flush(self.folder / name)
