"""Jobs of a benchmark, several at a time, with rows in a file that a later call continues."""

from __future__ import annotations

import csv
import os
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

Row = dict[str, Any]
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Rows:
    """A CSV file of rows, each written when it is there.

    Args:
        file: it may have rows already.
        key: columns that name a row.
        values: the others.
    """

    def __init__(self, file: Path, key: Sequence[str], values: Sequence[str]) -> None:
        self.file, self.key, self.columns = file, key, [*key, *values]
        self._lock = threading.Lock()
        self.done: set[tuple[str, ...]] = set()
        if file.exists():
            with file.open(newline="") as opened:
                reader = csv.DictReader(opened)
                if reader.fieldnames != self.columns:
                    raise SystemExit(
                        f"{file} has the columns {reader.fieldnames}, expected {self.columns}; "
                        "choose another file"
                    )
                self.done = {tuple(row[name] for name in key) for row in reader}
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._write(self.columns, "w")

    def _write(self, cells: Sequence[Any], mode: str) -> None:
        with self.file.open(mode, newline="") as opened:
            csv.writer(opened, lineterminator="\n").writerow(cells)

    def has(self, row: Row) -> bool:
        """Whether there was a row of this key when the file was opened."""
        return tuple(str(row[name]) for name in self.key) in self.done

    def add(self, row: Row) -> None:
        cells = [row.get(name, "") for name in self.columns]
        cells = [f"{cell:.9g}" if isinstance(cell, float) else cell for cell in cells]
        with self._lock:
            self._write(cells, "a")
            print(*cells, flush=True)


def run_all(jobs: Sequence[Row], work: Callable[[Row], Row], rows: Rows, workers: int) -> list[Row]:
    """Do the jobs that have no row, in order, and return those that failed."""
    todo = [job for job in jobs if not rows.has(job)]
    return do_all(todo, lambda job: rows.add(job | work(job)), workers)


def do_all(jobs: Sequence[Row], do: Callable[[Row], None], workers: int) -> list[Row]:
    """Do jobs, several at a time, and return those that failed."""
    failed = []

    def one(job: Row) -> None:
        try:
            do(job)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            print(f"{job} failed: {error}", file=sys.stderr, flush=True)
            failed.append(job)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, jobs))
    return failed


def run_process(python: Path | str, module: str, arguments: Sequence[str], limit: float) -> None:
    """A module of this repository in a process of one thread (RuntimeError: it fails)."""
    environment = os.environ | dict.fromkeys(THREADS, "1")
    command = [str(python), "-m", module, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr else "no message")


def processor_seconds() -> float:
    """Of this process and of its children that have ended."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(resource.getrusage(w).ru_utime + resource.getrusage(w).ru_stime for w in who)


def folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="benchmark-")
