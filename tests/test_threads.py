"""How threads wait for each other: set by the programs before torch is loaded, unless it is set."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from inference import OPENMP_WAITING

ROOT = Path(__file__).parent.parent


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python with these arguments, from an environment that says nothing of waiting but this."""
    inherited = {name: value for name, value in os.environ.items() if name not in OPENMP_WAITING}
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=inherited | environment,
        text=True,
        capture_output=True,
        check=True,
    )


def set_by(module: str, **environment: str) -> list[str]:
    """NAME=value of all that is set after an import, and torch if that was loaded."""
    script = (
        f"import os, sys; import {module}\n"
        f"for name in {OPENMP_WAITING}:\n"
        "    if name in os.environ: print(f'{name}={os.environ[name]}')\n"
        "if 'torch' in sys.modules: print('torch')"
    )
    return run("-c", script, **environment).stdout.split()


def test_the_programs_set_it_before_torch_is_loaded() -> None:
    assert set_by("inference") == ["GOMP_SPINCOUNT=10000"]


@pytest.mark.parametrize("name", OPENMP_WAITING)
def test_what_the_user_sets_stays_alone(name: str) -> None:
    assert set_by("inference", **{name: "1"}) == [f"{name}=1"]


def test_the_library_sets_nothing() -> None:
    assert set_by("pyro_mdm.public") == ["torch"]


@pytest.mark.skipif("OpenMP" not in torch.__config__.parallel_info(), reason="no OpenMP")
def test_the_runtime_of_a_program_has_it() -> None:
    """Of what every program begins with, as tests/test_packaging.py sees of one that is run."""
    script = "import inference, torch; torch.ones(9).sum()"
    shown = run("-c", script, OMP_DISPLAY_ENV="VERBOSE").stderr
    if "GOMP_SPINCOUNT" not in shown:
        pytest.skip("not GCC's OpenMP")
    assert set(re.findall(r"GOMP_SPINCOUNT\s*=\s*'(\d+)'", shown)) == {"10000"}
