"""What the numbers of a run may depend on besides its settings and its data: code and machine."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

__all__ = ["code_changes", "describe", "git_commit"]

SOURCE = Path(__file__).parent


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
