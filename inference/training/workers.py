"""Trainings of many runs, several at a time, in a process each."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from inference import trust
from inference.folders.config import PENDING, read_settings
from inference.folders.locks import is_written, refuse_links
from inference.folders.runs import RunError, has_checkpoint
from inference.measuring.experiment_tables import Cell
from pyro_mdm.support.files import ROOT
from pyro_mdm.support.progress import progress_bar

POLL = 20.0
"""Seconds between looks at runs that processes of another machine train."""


def train_all(cells: list[Cell], folder: Path, workers: int | None = None) -> None:
    """Train the unfinished ones of ``cells``, ``workers`` at a time, each with a GPU of its own if
    there are any.

    Runs that other processes train at the time are left to them, and waited for. A run that failed
    (see the log beside its folder) or has other settings is a RunError.
    """
    waiting = [cell for cell in cells if not _is_finished(cell, folder)]
    finished = len(cells) - len(waiting)
    devices = accelerators()
    workers = workers or max(1, len(devices))
    places: queue.Queue[str | None] = queue.Queue()
    for k in range(workers):
        places.put(devices[k % len(devices)] if devices else None)
    bar = progress_bar(len(cells), folder.name, "runs", initial=finished, leave=True)
    lock, further = threading.Lock(), ["--trust"] if trust.is_trusting() else []
    processes, taken = _Processes(), list[Cell]()

    def run(cell: Cell) -> None:
        place = places.get()
        try:
            written = is_written(folder / cell.name)
            ended = not written and _is_finished(cell, folder)  # by another process, meanwhile
            if written or not (ended or train_cell(cell, folder, further, processes, place)):
                taken.append(cell)
                return
        finally:
            places.put(place)
        with lock:
            bar.update()

    with bar, ThreadPoolExecutor(workers) as pool:
        try:
            while waiting:
                for future in [pool.submit(run, cell) for cell in waiting]:
                    future.result()
                waiting = list(taken)
                taken.clear()
                if waiting and all(is_written(folder / cell.name) for cell in waiting):
                    time.sleep(POLL)
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if not isinstance(error, Exception):  # Ctrl-C, or another signal
                processes.end()  # they save their state, and the same command goes on
            raise


def accelerators() -> list[str]:
    """The GPUs of this process, as CUDA_VISIBLE_DEVICES names them; empty without any."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named else [str(k) for k in range(count)]


class _Processes:
    """Processes that are started, until all of them are ended."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] | None = []
        self._lock = threading.Lock()

    def start(self, words: list[str], **options: Any) -> subprocess.Popen[bytes]:
        """A new process (RunError: all are ended, also those to come)."""
        with self._lock:
            if self._started is None:
                raise RunError("the experiment was stopped")
            self._started.append(subprocess.Popen(words, **options))
            return self._started[-1]

    def end(self) -> None:
        """Ask all to end, and start no more."""
        with self._lock:
            for process in self._started or []:
                process.terminate()
            self._started = None


def _is_finished(cell: Cell, folder: Path) -> bool:
    path = folder / cell.name
    if not (path / "config.yaml").is_file() or (path / PENDING).exists():
        return False
    config = read_settings(path)
    wanted = cell.options | {"seed": cell.seed, "score": cell.score}
    wanted.pop("data", None)  # a place, which machines may have elsewhere: training compares data
    if changed := [k for k, v in wanted.items() if config.get(k) != v]:
        raise RunError(
            f"{path} has other settings ({', '.join(changed)}) than the table; move it away, or "
            "give another --root"
        )
    return (path / "results.json").is_file()


def train_cell(
    cell: Cell, folder: Path, further: list[str], processes: _Processes, device: str | None = None
) -> bool:
    """Train a run to its end, in a process of its own that sees one GPU; False: another process
    was first."""
    path = folder / cell.name
    if has_checkpoint(path):
        words = ["--resume", str(path)]
    else:
        settings = cell.options | {"seed": cell.seed, "score": cell.score}
        words = [f"--{name}={value}" for name, value in settings.items()]
        words += [f"--run={path}", "--overwrite=true"]
    path.parent.mkdir(parents=True, exist_ok=True)
    log = path.parent / f"{cell.name}.log"
    refuse_links([log])
    alone = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    alone |= {} if device is None else {"CUDA_VISIBLE_DEVICES": device}
    # the programs are found from any folder
    folders = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    before = log.stat().st_size if log.exists() else 0
    with open(log, "ab") as output:
        training = processes.start(
            [sys.executable, "-m", "inference.train", *words, *further],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=os.environ | alone | {"PYTHONPATH": folders},
        )
        training.wait()
    if training.returncode:
        lines = log.read_bytes()[before:].decode(errors="replace").strip().splitlines()
        said = [line for line in lines if line.startswith("error: ")] or lines
        if said and "is being written by" in said[-1]:
            return False
        raise RunError(f"{path} failed: {' '.join(said[-1:])}; see {log}")
    return True
