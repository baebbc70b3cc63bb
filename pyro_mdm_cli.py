"""The command ``pyro-mdm``: the programs of a checkout, from any folder.

    pyro-mdm train --model digits --guide cld

is ``python -m inference.train --model digits --guide cld`` in the checkout that this file lies in,
where ``pip install -e .`` leaves it. Folders that are named or made, such as ``runs``, are those of
the folder where it is called. The library is not imported, so that PyTorch is first loaded by the
program.
"""

from __future__ import annotations

import ast
import difflib
import os
import runpy
import sys
from pathlib import Path

__all__ = ["main"]

ROOT = Path(__file__).resolve().parent
"""The checkout, or where pip has copied this file to."""

PROGRAMS = ("inspect", "train", "evaluate", "sample", "compare", "experiment", "svi")


def main() -> None:
    """Run the program that the first word names on the words after it."""
    if not (ROOT / "setup.py").is_file() or not (ROOT / "inference" / "train.py").is_file():
        raise SystemExit(
            f"error: the programs are not in {ROOT}: pip installed the library without them. Get "
            'the repository, and in it: pip install -e ".[programs]"'
        )
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("usage: pyro-mdm PROGRAM [--option VALUE …]; pyro-mdm PROGRAM --help lists options\n")
        print("\n".join(f"  {name:12}{_summary(name)}" for name in PROGRAMS))
        return
    if name not in PROGRAMS:
        close = difflib.get_close_matches(name, PROGRAMS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        print(f"error: {name!r} is none of {', '.join(PROGRAMS)}{hint}", file=sys.stderr)
        raise SystemExit(2)
    sys.argv = [f"pyro-mdm {name}", *sys.argv[2:]]
    sys.path[:0] = [str(ROOT), os.getcwd()]  # as for python -m, a guide may be a module here
    runpy.run_module(f"inference.{name}", run_name="__main__", alter_sys=True)


def _summary(name: str) -> str:
    """The first line of a program's docstring."""
    text = (ROOT / "inference" / f"{name}.py").read_text("utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
