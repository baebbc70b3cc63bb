"""Virtual environments of packages that benchmarks compare with, in other versions than ours."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def python_of(environment: Path) -> Path:
    """Its interpreter."""
    return (environment / "bin" / "python").absolute()


def install(environment: Path, packages: Sequence[str]) -> None:
    """Make the environment, or what is not there of it."""
    if not python_of(environment).exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    _pip_install(environment, packages)


def install_apart(environment: Path, package: str) -> Path:
    """The folder in the environment, made if it is not there, of a package ``name==version`` that
    is installed alone, without what it requires and away from other packages."""
    apart = environment / package.partition("==")[0]
    if not apart.exists():
        _pip_install(environment, ["--no-deps", "--target", str(apart), package])
    return apart


def _pip_install(environment: Path, arguments: Sequence[str]) -> None:
    command = [python_of(environment), "-m", "pip", "install", "--quiet", *arguments]
    subprocess.run(command, check=True)
