"""Command lines from signatures, with errors for people."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from jsonargparse import auto_cli

from inference.checkpoints import ArchitectureError, CheckpointError
from inference.loading import NameNotFoundError
from inference.runs import RunError
from models import DataError
from pyro_mdm.kernels import KernelPrecisionError
from pyro_mdm.simulation import SimulationError

__all__ = ["command_line"]

MISTAKES = (
    ArchitectureError,
    CheckpointError,
    DataError,
    FloatingPointError,
    KernelPrecisionError,
    NameNotFoundError,
    RunError,
    SimulationError,
    TypeError,
    ValueError,
)


def command_line(function: Callable[..., Any], arguments: Sequence[str] | None = None) -> None:
    """Run ``function`` on the command line's arguments, typed and explained by its signature.

    A mistake (an unknown name, a folder in the way, a damaged checkpoint) ends the program with its
    message alone; ``--debug`` as the first argument shows where it was raised.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = words[:1] == ["--debug"]
    try:
        auto_cli(function, args=words[1:] if debug else words)
    except MISTAKES as error:
        if debug:
            raise
        raise SystemExit(f"error: {error}") from error
