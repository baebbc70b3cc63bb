"""What the numbers of a run may depend on besides its settings and its data: code and machine."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

__all__ = ["Threads", "choose_threads", "code_changes", "describe", "git_commit"]

SOURCE = Path(__file__).parent
LOOK = 0.5
"""Seconds for which the load is looked at."""
STAT = Path("/proc/stat")


def _git(*arguments: str) -> bytes | None:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=SOURCE,
            capture_output=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def git_commit() -> str | None:
    """The commit of the code that runs; None where it is no git checkout."""
    commit = _git("rev-parse", "HEAD")
    return None if commit is None else commit.decode().strip()


def code_changes() -> bytes:
    """``git diff HEAD`` of the code that runs; empty where there is no difference or no git."""
    return _git("diff", "--no-color", "--no-ext-diff", "HEAD") or b""


def describe() -> dict[str, Any]:
    """Versions, the machine, and the git commit with the names of what differs from it."""
    changes = _git("status", "--porcelain")
    lines = None if changes is None else changes.decode(errors="replace").splitlines()
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": _machine(),
        "packages": _packages(),
        "git_commit": git_commit(),
        "git_changes": lines,
    }


def _packages() -> dict[str, str]:
    """The version of every installed distribution; of two with one name, the one imported."""
    versions: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name is not None:
            versions.setdefault(name, distribution.version)
    versions["torch"] = torch.__version__  # with its build (+cu121), which PyPI's wheels leave out
    return dict(sorted(versions.items(), key=lambda item: item[0].lower()))


def _machine() -> dict[str, Any]:
    return {
        "host": platform.node(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_bytes": _memory(),
        "threads": torch.get_num_threads(),
        "accelerators": _accelerators(),
        "cuda": torch.version.cuda,
    }


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _accelerators() -> list[str]:
    try:
        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    except RuntimeError as error:  # a driver that does not work is no reason not to use the CPU
        return [f"cannot be read: {error}"]


# -- threads ---------------------------------------------------------------------------------------


class Threads(NamedTuple):
    """How many threads PyTorch computes with on the CPU, and why."""

    number: int
    why: str = ""  # in words, where it is neither given nor all

    def __str__(self) -> str:
        return f"{self.number} thread{'s' if self.number > 1 else ''}{self.why}"


def choose_threads(given: int | None = None) -> Threads:
    """The number of threads, which PyTorch has from here on.

    Threads that wait for a core that other work has cost processor time, and gain none. So there
    are as many as there are cores that other work leaves free, and at least one.

    Args:
        given: the number, if it is not to be chosen. Nor is it where ``OMP_NUM_THREADS`` is set.
    """
    if given is not None:
        torch.set_num_threads(given)
    most = torch.get_num_threads()
    if given is not None or "OMP_NUM_THREADS" in os.environ or most == 1:
        return Threads(most)
    cores, busy = busy_cores()
    number = min(most, max(1, round(cores - busy)))
    if number == most:
        return Threads(most)
    torch.set_num_threads(number)
    return Threads(number, f" of {most}, as other work has {busy:.1f} of {cores} cores")


def busy_cores() -> tuple[int, float]:
    """How many cores there are for this process, and how many of them other work has now.

    Linux says what each core did while this process sleeps for :data:`LOOK` seconds. Elsewhere it
    is the load of the last minute, or 0 where there is no such thing.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = os.sched_getaffinity(0)
    else:
        cores = set(range(os.cpu_count() or 1))
    try:
        before = _busy_and_all(cores)
        time.sleep(LOOK)
        after = _busy_and_all(cores)
        busy, all_ = (b - a for a, b in zip(before, after, strict=True))
        return len(cores), len(cores) * busy / all_
    except (OSError, ValueError, ZeroDivisionError):
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        return len(cores), min(float(len(cores)), load)


def _busy_and_all(cores: set[int]) -> tuple[int, int]:
    """Ticks in which these cores had work, and all, as ``/proc/stat`` counts them.

    A line is ``cpu0 user nice system idle iowait irq softirq steal guest guest_nice``, and guests
    are in user and nice already (proc_stat(5)).
    """
    busy = total = 0
    for line in STAT.read_text().splitlines():
        name, *numbers = line.split()
        if name.startswith("cpu") and name[3:].isdecimal() and int(name[3:]) in cores:
            ticks = [int(n) for n in numbers[:8]]
            total += sum(ticks)
            busy += sum(ticks) - sum(ticks[3:5])
    return busy, total
