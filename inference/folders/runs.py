"""The run folder: the files of one training run.

    config.yaml       the version that began it, and every setting, in the form that
                      ``inference.train --config`` reads
    environment.json  versions of all packages, the machine, the git commit and what differs from it
    changes.patch     ``git diff HEAD`` of the code that ran, if it had changes
    sources/          copies of files named by ``--model``, ``--guide``, … ``file.py:Name``; not run
    data.json         shape, type and SHA-256 of each part of the data set, and of a table the
                      levels and scales of its columns
    sessions.jsonl    one JSON object in a line for each start and each --resume
    metrics.csv       one row for each measurement; ``pandas.read_csv`` reads it
    history.jsonl     the data of its figures, one JSON object in a line: the bound on a part of
                      the data by term and by log SNR, or the diffusion at that step
    checkpoints/      see :mod:`inference.folders.checkpoints`
    model.safetensors the averaged model of the newest checkpoint, without optimizer, for
                      ``DiffusionModel.from_pretrained(folder)``, and for programs that read runs
                      whose checkpoints/ was removed
    table.json        the table that a run of --model tabular was given in Python
    tensorboard/      events for ``tensorboard --logdir``
    results.json      the test bound with its terms
    samples.png       samples of the model
    .lock             held by the one process that may write here, which .writer.json names

A checkpoint and model.safetensors, which have checksums, say what the run was: its settings, its
data, and how far metrics.csv and history.jsonl had come. The files beside them are compared with
that. An existing folder is overwritten on request only, and one process at a time writes into it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import platform
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from inference.folders.checkpoints import (
    Checkpoint,
    RunError,
    explain_full_disk,
    latest_checkpoint,
    remove_leftovers,
    restate,
    save_checkpoint,
    write_atomically,
)
from inference.folders.config import (
    OWN_TABLE,
    PENDING,
    STATE,
    VERSION,
    Settings,
    check_settings,
    load_yaml,
    read_settings,
)
from inference.folders.fingerprints import FACTS, differences
from inference.folders.locks import LOCK, WRITER, WriteLock, refuse_links
from inference.folders.records import (
    Record,
    append,
    encode,
    finite,
    flush,
    now,
    read_lines,
    read_sealed,
)
from inference.machine import environment
from inference.settings.kinds import check_types
from inference.settings.names import slug
from pyro_mdm import DiffusionModel, __version__
from pyro_mdm.pretrained import (
    TENSORS,
    PretrainedError,
    load_state,
    save_folder,
    trained_folder,
)
from pyro_mdm.support.files import read_file, read_json, temporary
from pyro_mdm.support.measured import ALL_TERMS
from pyro_mdm.support.saved import damage_of

RUNS = Path("runs")
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
CONTENT = (
    "config.yaml",
    "environment.json",
    "changes.patch",
    "sources",
    "data.json",
    OWN_TABLE,
    "sessions.jsonl",
    "metrics.csv",
    "history.jsonl",
    "results.json",
    "samples.png",
    "checkpoints",
    TENSORS,
    "tensorboard",
)

RECORD = ("metrics.csv", "history.jsonl")
"""What is written in training, as far as a checkpoint goes on from it."""

NOTES = "inference.run"
"""The note beside a model that has what a checkpoint says of the run, and the step."""

CHANGES_LIMIT = 1 << 20
"""The most bytes of changes.patch; the rest is cut off."""


def default_folder(model: str, guide: str, seed: int, root: Path = RUNS) -> Path:
    """``runs/<model>-<guide>-<seed>-<k>`` with the first k that is free."""
    stem = f"{slug(model)}-{slug(guide)}-{seed}".lower()
    k = 0
    while (root / f"{stem}-{k}").exists():
        k += 1
    return root / f"{stem}-{k}"


def create_default(
    model: str, guide: str, seed: int, config: Mapping[str, Any], root: Path = RUNS
) -> Run:
    """A run in a new :func:`default_folder`; processes that call at once get different ones."""
    root.mkdir(parents=True, exist_ok=True)
    while True:
        folder = default_folder(model, guide, seed, root)
        try:
            folder.mkdir()  # of several processes, one succeeds
        except FileExistsError:
            continue
        return Run.create(folder, config)


class Run:
    """An open run folder, with its settings, tables and checkpoints.

    :meth:`create` and :meth:`resume` open it for writing, exclusively, until :meth:`close` or the
    end of a ``with`` block; :meth:`open` opens it for reading.
    """

    def __init__(
        self, folder: Path, config: Mapping[str, Any], lock: WriteLock | None = None
    ) -> None:
        self.folder = folder
        self.config = Settings(config)
        self._lock = lock
        self.data: dict[str, Any] | None = None
        """The fingerprints and facts of its data, once :meth:`check_data` or a checkpoint has said
        what they are."""
        self.lengthened: list[list[int]] = []
        """Each change of the number of steps: the steps taken then, and the number before."""

    @classmethod
    def create(cls, folder: Path, config: Mapping[str, Any], *, overwrite: bool = False) -> Run:
        """Start a run in a new or empty folder.

        A run that is there is removed first, with ``overwrite`` or if it ended before its first
        checkpoint: the files it wrote and no others. Anything else there is a RunError.
        """
        _check_ours(folder)  # in other folders nothing is touched, not even for a lock
        folder.mkdir(parents=True, exist_ok=True)
        lock = WriteLock(folder)
        try:
            if _is_worth_keeping(_check_ours(folder), folder) and not overwrite:
                raise RunError(
                    f"{folder} already holds a run; continue it with --resume {folder}, replace it "
                    "with --overwrite, or give another --run"
                )
            run = cls(folder, config, lock)
            _remove_temporary_files(folder)
            text = yaml.safe_dump({VERSION: __version__} | run.config, sort_keys=False)
            write_atomically(folder / PENDING, text.encode())
            run._begin()
        except BaseException:
            lock.release()
            raise
        return run

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Open a run for reading, even while another process writes (RunError: there is none).

        Trained models of this checkout, in models/trained, open by name too.
        """
        folder = trained_folder(folder)
        if (folder / PENDING).exists():
            raise RunError(
                f"{folder} was being replaced by a new run when that was stopped; begin this one "
                f"by --resume {folder}"
            )
        return cls(folder, read_settings(folder))

    @classmethod
    def resume(cls, folder: Path) -> Run:
        """Open a run for writing, and remove the temporary files of a killed process.

        Raises:
            RunError: there is no run, another process writes it, it is a trained model without
                checkpoints, or a file to be written is a link.
        """
        folder = trained_folder(folder)
        read_settings(folder)  # in other folders nothing is touched
        begun = not (folder / PENDING).exists()
        inside = [folder / name for name in CONTENT]
        inside += [path for place in inside if place.is_dir() for path in place.rglob("*")]
        refuse_links(inside)
        if begun and not has_checkpoint(folder) and (folder / "results.json").exists():
            raise RunError(
                f"{folder} has a trained model without its checkpoints, from which no training can "
                "go on; start a new run"
            )
        lock = WriteLock(folder)
        try:
            _remove_temporary_files(folder)
            run = cls(folder, read_settings(folder), lock)
            if not begun:
                run._begin()
            return run
        except BaseException:
            lock.release()
            raise

    def _begin(self) -> None:
        """Remove the files of an earlier run, write the first ones, and at last the settings."""
        for name in CONTENT:
            path = self.folder / name
            linked = path.is_symlink() or not path.is_dir()
            path.unlink(missing_ok=True) if linked else shutil.rmtree(path)
        self.rewind(None)
        self._write_environment()
        os.replace(self.folder / PENDING, self.folder / "config.yaml")

    def close(self) -> None:
        """Let others write into the folder. A run opened for reading has nothing to close."""
        if self._lock is not None:
            self._lock.release()

    @property
    def is_writable(self) -> bool:
        """Whether the run was opened for writing."""
        return self._lock is not None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # -- code, machine and data --------------------------------------------------------------------

    def begin_session(self, step: int, **facts: object) -> None:
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
        append(self.folder / "sessions.jsonl", line + "\n")
        first = self._first_versions()
        changed = [
            f"{what} {first[key]}, now {session[key]}"
            for key, what in {"torch": "PyTorch", "git_commit": "git commit"}.items()
            if first.get(key) and session[key] and first[key] != session[key]
        ]
        if changed:
            warnings.warn(
                f"{self.folder} was started with {' and with '.join(changed)}; its results "
                "may not be the same, bit for bit, as without this change",
                stacklevel=2,
            )

    def sessions(self) -> list[Record]:
        """The records of :meth:`begin_session`, in order."""
        return read_lines(self.folder / "sessions.jsonl", {"started", "step"})

    def _first_versions(self) -> dict[str, Any]:
        """PyTorch's version and the git commit at creation; empty if they cannot be read."""
        try:
            first = read_json(self.folder / "environment.json")
            return {"torch": first["packages"]["torch"], "git_commit": first["git_commit"]}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def check_data(
        self, fingerprint: Mapping[str, Any], facts: Mapping[str, Any] | None = None
    ) -> None:
        """Compare the data set with the run's, by fingerprints, and keep what it is.

        The first one is written to data.json, with the facts that models of the data need, unless
        the run is open for reading. A part that differs, is new or is missing is a RunError.
        """
        here = json.loads(json.dumps(finite(dict(fingerprint))))
        started = self.started_data()
        if started is not None and (differing := differences(started, here)):
            raise RunError(self.other_data(differing))
        self.data = here | ({} if facts is None else {FACTS: dict(facts)})
        if self._lock is not None:
            self.write_json("data.json", self.data)

    def started_data(self) -> dict[str, Any] | None:
        """The fingerprints and facts of the data that the run was started on: those of its
        checkpoint, or of data.json; None: it was not read yet.

        Raises:
            RunError: data.json is damaged, and the checkpoint has none.
        """
        path = self.folder / "data.json"
        if self.data is not None or not path.exists():
            return self.data
        try:
            started: dict[str, Any] = read_json(path)
            check_types(str(path), {"data": started}, {"data": STATE["data"]})
            return started
        except (ValueError, TypeError) as error:
            raise RunError(
                f"{path} is damaged ({error}), so that the data set cannot be compared with the "
                "one the run was started on; if you know it to be the same, remove that file"
            ) from error

    def other_data(self, differing: Sequence[str]) -> str:
        """The parts of the data that are not the run's, in words."""
        lines = "\n  ".join(differing)
        return (
            f"the data set is not the one that {self.folder} was started on; these parts "
            f"differ:\n  {lines}\nRestore the data, or start a new run"
        )

    def keep_sources(self, paths: Iterable[Path]) -> None:
        """Keep a copy of the user's code in sources/; later, warn if it has changed."""
        paths = list(paths)
        alike = Counter(path.name for path in paths)
        for path in paths:
            name = path.name
            if alike[name] > 1:  # files of one name in several folders
                name = f"{hashlib.sha256(str(path.parent).encode()).hexdigest()[:8]}-{name}"
            kept, now = self.folder / "sources" / name, read_file(path)
            if not kept.exists():
                kept.parent.mkdir(exist_ok=True)
                write_atomically(kept, now)
            elif read_file(kept) != now:
                warnings.warn(
                    f"{path} is not what {self.folder} was started with, which is kept as {kept}; "
                    "the run goes on with the new one",
                    stacklevel=2,
                )

    def _write_environment(self) -> None:
        """Write environment.json and changes.patch."""
        diff = environment.code_changes()
        patch = None
        if diff and len(diff) > CHANGES_LIMIT:
            patch = f"{len(diff):,} bytes, more than the {CHANGES_LIMIT:,} that are kept"
        elif diff:
            patch = "changes.patch"
            write_atomically(self.folder / patch, diff)
        facts = environment.describe() | {"git_changes_patch": patch}
        self.write_json("environment.json", facts)

    # -- metrics -----------------------------------------------------------------------------------

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
        record = {}
        for name in RECORD:
            data = self._record(name)
            record[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        return record

    def rewind(self, written: Mapping[str, Any] | None) -> None:
        """Go back to metrics.csv and history.jsonl as they were at a checkpoint; what comes after
        it is written again.

        Args:
            written: content of the files at the checkpoint, by :meth:`written`; None: the start.

        Raises:
            RunError: they do not begin with what they held.
        """
        start = {"metrics.csv": (",".join(COLUMNS) + "\r\n").encode(), "history.jsonl": b""}
        for name in RECORD:
            kept = start[name] if written is None else self._as_written(name, written)
            write_atomically(self.folder / name, kept)

    def _as_written(self, name: str, written: Mapping[str, Any]) -> bytes:
        """The beginning of a file, as :meth:`written` says it was."""
        data, then = self._record(name), written.get(name, {})
        start = data[: then.get("bytes", 0)]
        if hashlib.sha256(start).hexdigest() != then.get("sha256"):
            raise RunError(
                f"{self.folder / name} is damaged: its first {len(start):,} bytes of "
                f"{len(data):,} are not those that the checkpoint was saved with. Put the file "
                "back, or start a new run: python -m inference.train --config "
                f"{self.folder / 'config.yaml'}"
            )
        return start

    def _record(self, name: str) -> bytes:
        path = self.folder / name
        return read_file(path) if path.exists() else b""

    # -- checkpoints and results -------------------------------------------------------------------

    def save(self, checkpoint: Checkpoint, keep: int = 2) -> Path:
        """Write a checkpoint, after flushing its rows, and keep the newest ``keep``."""
        for name in RECORD:
            flush(self.folder / name)
        return save_checkpoint(self.folder / "checkpoints", checkpoint, keep)

    def save_model(self, model: DiffusionModel, step: int, weights: str) -> None:
        """Write the model of ``step`` for ``DiffusionModel.from_pretrained``, with what a
        checkpoint says of the run; warns if it cannot be written.

        Args:
            weights: the digest of the weights that the checkpoint has.
        """
        size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
        described = json.dumps({"step": step} | self.described(), sort_keys=True)
        notes = {NOTES: json.loads(described)}  # in an order that is always the same
        source = {"folder": "checkpoints", "weights": weights}
        try:
            with explain_full_disk(self.folder / TENSORS, size):
                save_folder(model, self.folder, notes, source=source)
        except PretrainedError as error:
            warnings.warn(
                f"{self.folder} is not for DiffusionModel.from_pretrained: {error}", stacklevel=2
            )

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint, whole or not."""
        return has_checkpoint(self.folder)

    @property
    def has_weights(self) -> bool:
        """Whether there is a checkpoint, or the model of a run that ended."""
        ended = all((self.folder / name).is_file() for name in ("results.json", TENSORS))
        return self.has_checkpoint or ended

    def go_by(self, checkpoint: Checkpoint) -> dict[str, Any] | None:
        """Compare the settings with the checkpoint's, see
        :func:`~inference.folders.config.check_settings`, and take what it says of the data
        (TypeError: its description has other types). Returns the facts that it keeps of the data,
        if any."""
        check_types(f"a checkpoint of {self.folder}", checkpoint.state, STATE)
        if (trained := checkpoint.state.get("config")) is None:
            raise RunError(
                f"the weights of step {checkpoint.step} in {self.folder} have no settings beside "
                "them, expected those of their training; start a new run"
            )
        self.lengthened = [list(change) for change in checkpoint.state.get("lengthened", [])]
        if self.config["steps"] in (before for _, before in self.lengthened):
            self.config["steps"] = trained["steps"]  # it was killed before config.yaml was written
        check_settings(self.folder / "config.yaml", self.config, trained)
        self.data = checkpoint.state.get("data")
        return None if self.data is None else self.data.get(FACTS)

    def described(self) -> dict[str, Any]:
        """What a checkpoint says of the run: its settings and data."""
        described = {"config": dict(self.config)} | self._lengthening
        return described | ({} if self.data is None else {"data": self.data})

    @property
    def _lengthening(self) -> dict[str, Any]:
        return {"lengthened": self.lengthened} if self.lengthened else {}

    def lengthen(self, steps: int, done: int) -> None:
        """Set the number of steps of a run that has taken ``done``, until :meth:`keep_length`
        writes it (RunError: no more than these)."""
        before = self.config["steps"]
        if steps <= done:
            raise RunError(
                f"--steps is {steps}, the number in all, and {self.folder} has taken {done:,} of "
                f"{before:,}; expected more than it has taken, such as {2 * done}"
            )
        if steps != before:
            self.lengthened.append([done, before])
            self.config["steps"] = steps

    def keep_length(self) -> None:
        """Write the number of steps, if it has changed, into the checkpoints and config.yaml, and
        remove the results of the earlier end. Whenever it is killed, the run opens and resumes."""
        path, steps = self.folder / "config.yaml", self.config["steps"]
        written = load_yaml(read_file(path))
        if written["steps"] == steps:
            return
        for name in ("results.json", "samples.png"):
            (self.folder / name).unlink(missing_ok=True)

        def changed(state: dict[str, Any]) -> dict[str, Any]:
            return state | self._lengthening | {"config": state["config"] | {"steps": steps}}

        restate(self.folder / "checkpoints", changed)
        text = yaml.safe_dump(written | {"steps": steps}, sort_keys=False)
        write_atomically(path, text.encode())

    def latest(self) -> Checkpoint:
        """The newest whole checkpoint, see
        :func:`~inference.folders.checkpoints.latest_checkpoint`."""
        return latest_checkpoint(self.folder / "checkpoints")

    def averaged(self) -> Checkpoint:
        """The averaged weights, as the part "ema" of a checkpoint.

        They are from the newest whole checkpoint, or, if checkpoints were removed after the run
        ended, from its averaged model.
        """
        if self.has_checkpoint or not self.has_weights:
            return self.latest()
        state, notes = load_state(self.folder)
        source, results = self.folder / TENSORS, self.folder / "results.json"
        with damage_of(source):
            described = dict(notes[NOTES])
            step = int(described["step"])
        if (ended := read_sealed(results).get("steps")) != step:
            raise RunError(
                f"{source} has the weights of step {step} and {results} is of step {ended}, "
                "expected those of one training; put the files of one back together"
            )
        return Checkpoint(step, {f"ema/{name}": t for name, t in state.items()}, described)

    def write_json(self, name: str, content: object) -> None:
        """Write ``content`` as readable JSON; numbers that are not finite become null."""
        text = json.dumps(finite(content), indent=1, ensure_ascii=False)
        write_atomically(self.folder / name, encode(text + "\n"))


# -- files -----------------------------------------------------------------------------------------


def _check_ours(folder: Path) -> set[str]:
    """The names in ``folder`` without the lock's (RunError: it holds something else than a run)."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file, expected a folder for the run; give another --run")
    held = {path.name for path in folder.iterdir()} if folder.exists() else set()
    begun = PENDING in held
    held -= {LOCK, WRITER, PENDING} | {path.name for path in _temporary_files(folder)}
    if held and not begun and "config.yaml" not in held:
        raise RunError(
            f"{folder} is not a run folder and holds {', '.join(sorted(held)[:5])}; it is left as "
            "it is, give another --run"
        )
    return held


def _is_worth_keeping(names: set[str], folder: Path) -> bool:
    """Whether ``folder`` holds more than the start of a run without a checkpoint."""
    if not names or (folder / PENDING).exists():
        return False
    begun = "environment.json" in names  # else config.yaml may be another program's
    return not begun or "results.json" in names or has_checkpoint(folder)


def has_checkpoint(folder: Path) -> bool:
    """Whether the run in ``folder`` has a checkpoint, whole or not."""
    return any((folder / "checkpoints").glob("step-*.safetensors"))


def _temporary_files(folder: Path) -> list[Path]:
    return [temporary(folder / name) for name in (*CONTENT, WRITER, PENDING)]


def _remove_temporary_files(folder: Path) -> None:
    """Remove the temporary files of a killed process."""
    for path in _temporary_files(folder):
        path.unlink(missing_ok=True)
    remove_leftovers(folder / "checkpoints")
