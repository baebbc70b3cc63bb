"""The command ``pyro-mdm``, which runs the programs from any folder::

    pyro-mdm train --model digits --guide cld

or ``python -m pyro_mdm train …`` is ``python -m inference.train --model digits --guide cld`` in the
checkout, or in the copy that a wheel has. Relative paths are those of the current folder. The
program runs in a Python process of its own: it sets how threads wait before PyTorch is loaded.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import os
import subprocess
import sys
from typing import NoReturn

from pyro_mdm.support.files import ROOT, installing
from pyro_mdm.support.text import shown

__all__ = ["main"]

NEEDED = (
    *("jsonargparse", "lightning_fabric", "yaml", "filelock", "joblib", "PIL", "sklearn"),
    *("matplotlib", "psutil", "tensorboard", "torchvision"),
)
"""The modules that programs need beside those of the library: the extra ``programs``."""

PROGRAMS = (
    *("inspect", "train", "evaluate", "sample", "restore"),
    *("impute", "posterior", "compare", "experiment", "svi"),
)


def main() -> None:
    """Run the program that the first word names, with the remaining words as its arguments."""
    if not (ROOT / "inference" / "train.py").is_file():
        raise SystemExit(
            f"error: the programs are not in {ROOT}, where they belong; install the library again: "
            f"{installing('programs')}"
        )
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        usage = "usage: pyro-mdm PROGRAM [--option VALUE …]; pyro-mdm PROGRAM --help lists options"
        lines = [usage, "", *(f"  {name:12}{_summary(name)}" for name in PROGRAMS)]
        print(shown("\n".join(lines), sys.stdout.encoding))
        return
    if name not in PROGRAMS:
        close = difflib.get_close_matches(name, PROGRAMS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        print(f"error: {name!r} is none of {', '.join(PROGRAMS)}{hint}", file=sys.stderr)
        raise SystemExit(2)
    if absent := [module for module in NEEDED if importlib.util.find_spec(module) is None]:
        raise SystemExit(
            f"error: the programs need {', '.join(absent)}, which pip did not install; "
            f"{installing('programs')}"
        )
    _run([sys.executable, "-m", f"inference.{name}", *words])


def _run(command: list[str]) -> NoReturn:
    """Run a command in place of this process where that is possible, else end with its exit status.

    Python and the programs import nothing from the current folder, which may belong to somebody
    else. A module that is named on the command line is also found there.
    """
    folders = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    paths = {"PYTHONPATH": os.pathsep.join(folders), "PYTHONSAFEPATH": "1"}
    if os.name == "posix":
        os.execve(command[0], command, os.environ | paths)
    raise SystemExit(subprocess.run(command, env=os.environ | paths).returncode)


def _summary(name: str) -> str:
    """The first line of a program's docstring."""
    text = (ROOT / "inference" / f"{name}.py").read_text("utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


if __name__ == "__main__":
    main()
