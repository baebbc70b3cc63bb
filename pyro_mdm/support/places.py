"""Where the programs, the data sets and the trained models are: in a checkout, or in a wheel."""

from __future__ import annotations

from pathlib import Path

__all__ = ["LIBRARY", "ROOT", "installing"]

LIBRARY = Path(__file__).resolve().parent.parent
"""The folder of ``pyro_mdm``."""
COPY = LIBRARY / "_checkout"
"""The copy that a wheel has, in a folder that is no package: nothing imports from it but programs
in processes of their own."""

ROOT = COPY if COPY.is_dir() else LIBRARY.parent
"""The folder of ``inference`` and ``models``."""


def installing(extra: str) -> str:
    """How packages of an extra are installed, for the end of a message."""
    return f'in a checkout of the repository, run pip install -e ".[{extra}]"'
