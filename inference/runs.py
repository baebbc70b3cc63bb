"""The run folder: one training run on the disk, explaining itself.

    config.yaml       every setting, in the form that ``inference.train --config`` reads
    environment.json  versions, git commit and the machine
    metrics.csv       one row for each thing measured; ``pandas.read_csv`` reads it
    history.jsonl     what its figures are drawn from, one JSON object in a line: the bound of a
                      part of the data by term and by log SNR, or the diffusion at that step
    checkpoints/      see :mod:`inference.checkpoints`
    tensorboard/      events for ``tensorboard --logdir``
    results.json      the test bound with its terms;  samples.png  what the model generates

Nothing of an existing folder is overwritten unless asked.
"""

from __future__ import annotations

import csv
import io
import json
import math
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from inference.checkpoints import Checkpoint, latest_checkpoint, save_checkpoint, write_atomically

__all__ = ["RUNS", "Run", "RunError", "default_folder"]

RUNS = Path("runs")
TERMS = ("bits_per_dim", "reconstruction", "prior_kl", "diffusion")
COLUMNS = (
    "step",
    "part",
    *(column for term in TERMS for column in (term, f"{term}_standard_error")),
    "learning_rate",
    "gradient_norm",
    "seconds",
)
CONTENT = (
    "config.yaml",
    "environment.json",
    "metrics.csv",
    "history.jsonl",
    "results.json",
    "samples.png",
    "checkpoints",
    "tensorboard",
)


class RunError(RuntimeError):
    """A run folder is in the way, missing, or not what it should be."""


def default_folder(model: str, guide: str, seed: int, root: Path = RUNS) -> Path:
    """``runs/<model>-<guide>-<seed>-<k>`` with the first k that is free."""
    stem = f"{_slug(model)}-{_slug(guide)}-{seed}"
    k = 0
    while (root / f"{stem}-{k}").exists():
        k += 1
    return root / f"{stem}-{k}"


def _slug(name: str) -> str:
    return re.sub(r"\W+", "-", name.rpartition(":")[2]).strip("-").lower()


class Settings(dict[str, Any]):
    """The settings of a run; one that is missing is a mistake with an explanation."""

    def __missing__(self, name: str) -> Any:
        raise RunError(
            f"config.yaml lacks the setting {name!r}; another version of inference.train wrote it. "
            "Add the setting, or use the version in environment.json"
        )


class Run:
    """An open run folder: its settings, its table, its checkpoints. See the module's docstring."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.folder = folder
        self.config = Settings(config)

    @classmethod
    def create(cls, folder: Path, config: Mapping[str, Any], *, overwrite: bool = False) -> Run:
        """Start a run in a new or empty folder.

        With ``overwrite`` an earlier run in that folder is removed first: the files a run writes,
        and no others.

        Raises:
            RunError: the folder holds a run and ``overwrite`` is not given, or something else.
        """
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file, expected a folder for the run; give another --run")
        found = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        if found and "config.yaml" not in found:
            raise RunError(
                f"{folder} is not a run folder and holds {', '.join(found[:5])}; it is left as it "
                "is, give another --run"
            )
        if found and not overwrite:
            raise RunError(
                f"{folder} already holds a run; continue it with --resume {folder}, replace it "
                "with --overwrite, or give another --run"
            )
        for name in CONTENT:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        run = cls(folder, config)
        write_atomically(
            folder / "config.yaml", yaml.safe_dump(dict(run.config), sort_keys=False).encode()
        )
        run.write_json("environment.json", _environment())
        run._write_rows([])
        return run

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Open an existing run.

        Raises:
            RunError: there is none, or its config.yaml cannot be read.
        """
        path = folder / "config.yaml"
        if not path.is_file():
            near = sorted(str(p.parent) for p in folder.parent.glob("*/config.yaml"))
            known = f"; runs beside it: {', '.join(near[:10])}" if near else ""
            raise RunError(f"{folder} is not a run folder: it has no config.yaml{known}")
        try:
            config = yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            raise RunError(f"{path} cannot be read as YAML: {error}") from error
        if not isinstance(config, dict):
            raise RunError(
                f"{path} holds {type(config).__name__}, expected settings as name: value"
            )
        return cls(folder, config)

    # -- metrics -----------------------------------------------------------------------------------

    def log(self, step: int, part: str, values: Mapping[str, float]) -> None:
        """Append one row to metrics.csv; values are named as in its header, others stay empty."""
        if unknown := set(values) - set(COLUMNS):
            raise ValueError(f"unknown columns {sorted(unknown)}, expected some of {COLUMNS}")
        row = io.StringIO()
        csv.DictWriter(row, COLUMNS).writerow({"step": step, "part": part, **values})
        with open(self.folder / "metrics.csv", "a", newline="") as file:
            file.write(row.getvalue())

    def record(self, step: int, part: str, values: Mapping[str, Any]) -> None:
        """Append a line to history.jsonl; numbers that are not finite become null."""
        line = json.dumps(_finite({"step": step, "part": part, **values}), ensure_ascii=False)
        with open(self.folder / "history.jsonl", "a") as file:
            file.write(line + "\n")

    def history(self) -> list[dict[str, Any]]:
        """What :meth:`record` wrote, in order: ``step``, ``part`` and the values of each.

        Empty for a run that has none. A line that was torn when the run was killed is left out.
        """
        path = self.folder / "history.jsonl"
        records = []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(record, dict) and {"step", "part"} <= record.keys():
                records.append(record)
        return records

    def rewind(self, step: int) -> None:
        """Drop what a run resumed at ``step`` writes again: later, test and torn rows.

        Of metrics.csv and of history.jsonl.
        """
        kept = [r for r in self.history() if r["step"] <= step and r["part"] != "test"]
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept)
        write_atomically(self.folder / "history.jsonl", lines.encode())
        with open(self.folder / "metrics.csv", newline="") as file:
            text = file.read()
        whole = text[: text.rfind("\n") + 1]
        rows = [row for row in csv.DictReader(io.StringIO(whole)) if None not in row.values()]
        self._write_rows([r for r in rows if int(r["step"]) <= step and r["part"] != "test"])

    def _write_rows(self, rows: list[dict[str, Any]]) -> None:
        table = io.StringIO()
        writer = csv.DictWriter(table, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.folder / "metrics.csv", table.getvalue().encode())

    # -- checkpoints and results -------------------------------------------------------------------

    def save(self, checkpoint: Checkpoint, keep: int = 2) -> Path:
        """Write a checkpoint and keep the newest ``keep``."""
        return save_checkpoint(self.folder / "checkpoints", checkpoint, keep)

    def latest(self) -> Checkpoint:
        """The newest whole checkpoint, see :func:`~inference.checkpoints.latest_checkpoint`."""
        return latest_checkpoint(self.folder / "checkpoints")

    def write_json(self, name: str, content: Any) -> None:
        """Write ``content`` as readable JSON; numbers that are not finite become null."""
        text = json.dumps(_finite(content), indent=1, ensure_ascii=False)
        write_atomically(self.folder / name, text.encode() + b"\n")


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _environment() -> dict[str, Any]:
    """What the numbers of a run may depend on besides its settings."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments],
                cwd=Path(__file__).parent,
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    packages = ("torch", "pyro-ppl", "lightning-fabric", "numpy", "safetensors")
    installed = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    changes = git("status", "--porcelain")
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: installed.get(name) for name in packages},
        "git_commit": git("rev-parse", "HEAD"),
        "git_changes": None if changes is None else changes.splitlines(),
    }
