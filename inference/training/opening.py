"""The start of a run in all processes: one folder, and the data that it was started on."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.folders.checkpoints import explain_full_disk
from inference.folders.fingerprints import differences, fingerprint_of
from inference.folders.runs import Run, RunError
from inference.machine.processes import Stopped
from inference.settings.plan import Programs

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@contextmanager
def opened(fabric: Fabric, make: Callable[[], Run]) -> Iterator[Run]:
    """The run that the first process makes or resumes; the others open it for reading.

    One that is interrupted says how to go on.
    """
    run = make() if fabric.is_global_zero else None
    folder = fabric.broadcast(str(run.folder) if run is not None else "")
    run = run if run is not None else Run.open(Path(folder))
    try:
        with run, explain_full_disk(run.folder / "tensorboard", 0):
            yield run
    except (KeyboardInterrupt, Stopped):
        if run.is_writable:
            print(f"go on with python -m inference.train --resume {run.folder}", flush=True)
        raise


def check_data(fabric: Fabric, run: Run, programs: Programs, step: int) -> None:
    """Raise unless all processes begin at one step, with the data of the run's start."""
    prints = fingerprint_of(programs.problem)
    check_alike(fabric, run, (step, prints))
    if fabric.is_global_zero:
        run.check_data(prints, programs.problem.facts)


def check_alike(fabric: Fabric, run: Run, mine: tuple[int, dict[str, Any]]) -> None:
    """Raise unless all processes begin at the step and with the data of the first one."""
    theirs = fabric.broadcast(mine)
    if mine[0] != theirs[0] or differences(theirs[1], mine[1]):
        raise RunError(
            f"process {fabric.global_rank} on {platform.node()} would begin {run.folder} at step "
            f"{mine[0]} with data {mine[1]}, the first process at step {theirs[0]} with data "
            f"{theirs[1]}; all must see the same files"
        )
