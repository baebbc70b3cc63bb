"""The memory that is free."""

from __future__ import annotations

import math
from pathlib import Path

import torch

__all__ = ["free_bytes"]

SYSTEM = Path("/proc/meminfo")
GROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> float:
    """The number of bytes that a process may still take on a device; infinite where unknown.

    On the host these are Linux's figures, with the limit of a container.
    """
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    free = math.inf
    try:
        (line,) = [one for one in SYSTEM.read_text().splitlines() if one.startswith("MemAvail")]
        free = 1024.0 * int(line.split()[1])
        most, used = (GROUP / name for name in ("memory.max", "memory.current"))
        return min(free, float(most.read_text()) - float(used.read_text()))
    except (OSError, ValueError):  # another system, no container, or one without a limit: "max"
        return free
