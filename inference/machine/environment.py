"""The code and the machine, on which the numbers of a run may depend too."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pyro_mdm.support.files import ROOT

LOOK = 0.5
"""The seconds for which the load is measured."""


def _git(*arguments: str) -> bytes | None:
    """What git says of this checkout; None of a copy, whatever repository it lies in."""
    if not (ROOT / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=ROOT,
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
    """Versions, the machine, and the git commit with the names of changed files."""
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
    """The versions of installed distributions; of two with one name, that of the imported one."""
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
    except RuntimeError as error:  # the CPU can be used without a working driver
        return [f"cannot be read: {error}"]


# -- threads ---------------------------------------------------------------------------------------

# Threads that wait for a busy core cost time and gain none (tests/benchmarks/threads.py).


class Threads(NamedTuple):
    """The number of PyTorch's CPU threads, with the reason."""

    number: int
    why: str = ""  # in words, where it is neither given nor all

    def __str__(self) -> str:
        return f"{self.number} thread{'s' if self.number > 1 else ''}{self.why}"


MOST_THREADS = 1024
"""More than any gains by; so many may not start, which ends the process without a word."""


def check_threads(number: int | None) -> None:
    """Raise ValueError for a number of threads that cannot be had."""
    most = max(MOST_THREADS, os.cpu_count() or 1)
    if number is not None and not 0 < number <= most:
        raise ValueError(
            f"--threads is {number}, expected a positive number, of at most {most:,}; more than "
            f"the {usable_cores()} cores that this process may use gain nothing"
        )


def choose_threads(given: int | None = None) -> Threads:
    """Set and return the number of PyTorch's threads.

    ``given``, or ``OMP_NUM_THREADS``, or the number of idle cores that this process may use, at
    least one: threads that wait for a busy core cost time and gain none.
    """
    if given is not None:
        torch.set_num_threads(given)
    most = torch.get_num_threads()
    if given is not None or "OMP_NUM_THREADS" in os.environ or most == 1:
        return Threads(most)
    cores, busy = busy_cores()
    free, usable = max(1, round(cores - busy)), usable_cores()
    number = min(most, free, usable)
    if number == most:
        return Threads(most)
    torch.set_num_threads(number)
    why = f"other work has {busy:.1f} of {cores} cores"
    if usable <= free:
        why = f"this process may use {usable} core{'s' if usable > 1 else ''}"
    return Threads(number, f" of {most}, as {why}")


def keep_threads(number: int | None, given: int | None, folder: Path) -> None:
    """Use the number of threads of the run in ``folder``, unless the user gives another.

    Warns of another number, with which floating-point sums may round differently.
    """
    if given is not None:
        torch.set_num_threads(given)
    elif number is not None and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(number, usable_cores()))
    now = torch.get_num_threads()
    if number is not None and now != number:
        warnings.warn(
            f"{folder} was trained with {Threads(number)} and goes on with {now}, so that it may "
            "round differently",
            stacklevel=2,
        )


def usable_cores() -> int:
    """The number of cores that this process may use, by affinity and control groups."""
    import joblib  # takes as long as numpy to import

    return int(joblib.cpu_count())


def busy_cores() -> tuple[int, float]:
    """The number of cores for this process, and the number of those that are busy.

    By the activity of each core in :data:`LOOK` seconds, as a load average is of the last minute;
    0 are taken to be busy where it is not known.
    """
    import psutil

    everywhere = set(range(os.cpu_count() or 1))
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else everywhere
    with contextlib.suppress(OSError, ZeroDivisionError):
        shares = psutil.cpu_percent(LOOK, percpu=True)
        ours = [share / 100 for core, share in enumerate(shares) if core in cores]
        return len(cores), len(cores) * sum(ours) / len(ours)
    return len(cores), 0.0
