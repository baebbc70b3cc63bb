"""The simulator that a folder is opened with."""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from types import CodeType
from typing import Any

from pyro_mdm.support.checks import describe

__all__ = ["check_program", "code_of"]


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


def code_of(program: Callable[..., Any]) -> str | None:
    """The version of Python and the SHA-256 of a program's bytecode; None: it has none.

    Functions that the program calls, and values that it holds, do not count.

    Args:
        program: the program.
    """
    function: Any = program
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function):
        function = getattr(type(function), "forward", type(function).__call__)
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None:
        return None
    digest = hashlib.sha256(repr(_plain_code(code)).encode()).hexdigest()
    return f"{sys.version_info[0]}.{sys.version_info[1]} {digest}"


def _plain_code(code: CodeType) -> tuple[Any, ...]:
    """The instructions, names and constants of bytecode, without its place in a file."""
    constants = [
        _plain_code(value) if isinstance(value, CodeType) else repr(value)
        for value in code.co_consts
    ]
    return code.co_code, code.co_names, code.co_varnames, constants
