"""The experiments behind the tables of docs/measured: which diffusion is better?

    python -m inference.experiment digits --workers 2
    python -m inference.experiment mnist5k --workers 2
    python -m inference.experiment fashion_mnist --workers 2
    python -m inference.experiment ends --workers 2
    python -m inference.experiment paper --model fashion_mnist --workers 2
    python -m inference.experiment drift --workers 2
    python -m inference.experiment linear --workers 2

Trains every (guide, score, seed) of a table in a run folder of its own,
``runs/<table>/<score>-<guide>-<seed>``, then compares them
(:mod:`inference.measuring.experiment_summary`): ``summary.md``, ``summary.csv`` and pictures in
``runs/<table>``. A run that is finished is kept and one that was interrupted goes on, so the
command can be stopped and given again, also on several machines that share the folder. The tables
are in :mod:`inference.measuring.experiment_tables`.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from inference import trust
from inference.commands.cli import check_positive, command_line
from inference.compare import compare
from inference.folders.config import read_settings
from inference.folders.locks import LOCK
from inference.folders.runs import RUNS, RunError, has_checkpoint, refuse_links
from inference.measuring.experiment_summary import markdown, summarize
from inference.measuring.experiment_tables import (
    FIXED,
    STARTS,
    TABLES,
    Cell,
    PaperData,
    paper,
)
from pyro_mdm.support.places import ROOT
from pyro_mdm.support.progress import progress_bar

POLL = 20.0
"""Seconds between looks at runs that processes of another machine train."""


def experiment(
    table: Literal["digits", "mnist5k", "fashion_mnist", "ends", "paper", "drift", "linear"],
    model: PaperData = "digits",
    workers: int | None = None,
    steps: int | None = None,
    seeds: int | None = None,
    scores: list[str] | None = None,
    guides: list[str] | None = None,
    half_width: float = 0.01,
    draws: int = 64,
    num_data: int | None = None,
    root: Path = RUNS,
    data: Path | None = None,
) -> None:
    """Train the runs of a table and compare them.

    Args:
        table: name of the table.
        model: data set of the table paper: mnist, cifar10, imagenet32, fashion_mnist, mnist5k or
            digits. Its folder is paper-<model>.
        workers: number of runs trained at a time; by default one for each GPU, which each has
            alone, or one without GPUs. On a CPU each has one thread.
        steps: number of training steps, in place of the table's.
        seeds: number of seeds, in place of the table's.
        scores: list of some of the table's scores, e.g. [noise]; the summary has these alone.
        guides: list of some of the table's guides, e.g. [vpsde, learned2]; all are compared with
            the first.
        half_width: half-width of the comparisons, bits/dim, as for inference.compare.
        draws: largest number of network calls per image and run of the comparisons.
        num_data: largest number of test data of the comparisons; all by default.
        root: folder that holds the table's folder. Where several machines share it, this command
            may be given on each, and they divide the runs.
        data: folder of the data sets, "data" by default.
    """
    check_positive(workers=workers, steps=steps, seeds=seeds, half_width=half_width, draws=draws)
    if table != "paper" and model != "digits":
        raise RunError(f"--model is {model}, which is for the table paper; leave it out")
    chosen = paper(model) if table == "paper" else TABLES[table]
    if steps is not None:
        chosen = replace(chosen, options=chosen.options | {"steps": steps})
    if data is not None:
        chosen = replace(chosen, options=chosen.options | {"data": str(data)})
    if seeds is not None:
        chosen = replace(chosen, seeds=seeds)
    if scores is not None:
        _check_some("scores", scores, chosen.scores)
        chosen = replace(chosen, scores=tuple(scores))
    if guides is not None:
        there = {
            name: options
            for score in chosen.scores
            for name, options in chosen.guides_of(score).items()
        }
        _check_some("guides", guides, tuple(there))
        chosen = replace(chosen, guides={name: there[name] for name in guides}, further={})
    folder = root / (f"paper-{model}" if table == "paper" else table)
    train_all(list(chosen.cells()), folder, workers)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder / ".summary.lock")):  # of several machines one compares, others read
        rows = summarize(
            folder,
            {score: list(chosen.guides_of(score)) for score in chosen.scores},
            range(chosen.seeds),
            compare=compare,
            starts=STARTS,
            fixed=[name for name in FIXED if name in chosen.guides] if table == "paper" else (),
            half_width=half_width,
            draws=draws,
            num_data=num_data,
        )
    print(markdown(rows))
    if table == "paper":
        print((folder / "learned.md").read_text("utf-8"))


def _check_some(option: str, names: list[str], available: tuple[str, ...]) -> None:
    if not names or not set(names) <= set(available) or len(set(names)) < len(names):
        raise RunError(
            f"--{option} is {names}, expected some of {', '.join(available)}, each once, as in "
            f"[{available[-1]}]"
        )


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
    lock, further = threading.Lock(), ["--trust"] if trust.is_said() else []
    processes, taken = _Processes(), list[Cell]()

    def run(cell: Cell) -> None:
        place = places.get()
        try:
            written = is_written(folder / cell.name)
            ended = not written and _is_finished(cell, folder)  # by another process, meanwhile
            if written or not (ended or _train(cell, folder, further, processes, place)):
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
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named else [str(k) for k in range(count)]


def is_written(run: Path) -> bool:
    """Whether another process is writing into a run folder."""
    if not (run / LOCK).exists():
        return False
    lock = FileLock(str(run / LOCK), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    lock.release()
    return False


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
    if not (path / "config.yaml").is_file():
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


def _train(
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


if __name__ == "__main__":
    command_line(experiment, unnamed="table")
