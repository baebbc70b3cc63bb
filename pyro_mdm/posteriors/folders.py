"""The simulator that a folder is opened with."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from pyro_mdm.support.checks import describe

__all__ = ["check_program"]


def check_program(
    program: Callable[..., Any] | None,
    kind: str,
    folder: str | os.PathLike[str],
    names: Sequence[str],
) -> Callable[..., Any]:
    """The program, if it is one.

    Args:
        program: the argument for the program.
        kind: the name of the class that is opened.
        folder: the folder that it is opened from.
        names: the names of the program's sites.

    Raises:
        TypeError: no program.
    """
    if not callable(program):
        raise TypeError(
            f"program is {describe(program)}, expected the simulator that the {kind} in {folder} "
            f"is of, with the sites {', '.join(names)}; a folder holds no code: "
            f"{kind}.from_pretrained(folder, program)"
        )
    return program
