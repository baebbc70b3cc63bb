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

import json
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
from inference.folders.metrics import Metrics
from inference.folders.records import finite, read_sealed, write_json
from inference.folders.sessions import write_environment
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
from pyro_mdm.support.saved import damage_of

RUNS = Path("runs")
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

NOTES = "inference.run"
"""The note beside a model that has what a checkpoint says of the run, and the step."""


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
        self.folder, self.metrics = folder, Metrics(folder)
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
        self.metrics.rewind(None)
        write_environment(self.folder)
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
            write_json(self.folder / "data.json", self.data)

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

    # -- checkpoints and results -------------------------------------------------------------------

    def save(self, checkpoint: Checkpoint, keep: int = 2) -> Path:
        """Write a checkpoint, after flushing its rows, and keep the newest ``keep``."""
        self.metrics.flush()
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
