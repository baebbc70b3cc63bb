"""What programs load before they do anything: ``--help`` is to take what torch and pyro do."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pyro_mdm.__main__ import PROGRAMS

ROOT = Path(__file__).parent.parent
HEAVY = [
    *("lightning_fabric", "matplotlib", "pandas", "scipy", "sklearn", "tensorboard", "torchdiffeq"),
    *("torchvision", "mlxtend", "sympy", "torch._dynamo", "torch._inductor"),
]
"""Each takes from a tenth of what torch takes to more than torch itself."""

HELP = """
import contextlib, io, json, runpy, sys
loaded = {}
for program in json.loads(sys.argv[1]):
    before = set(sys.modules)
    sys.argv = [program, "--help"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        runpy.run_module(f"inference.{program}", run_name="__main__", alter_sys=True)
    assert "usage: " in said.getvalue(), program
    loaded[program] = sorted(set(sys.modules) - before)
print(json.dumps(loaded))
"""


def python(*words: str) -> str:
    """What a Python of its own prints, which has loaded nothing."""
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.fixture(scope="module")
def loaded_for_help() -> dict[str, list[str]]:
    """What each program loads for ``--help`` beside what those before it have loaded."""
    found: dict[str, list[str]] = json.loads(python("-c", HELP, json.dumps(PROGRAMS)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_help_loads_nothing_that_takes_long(
    program: str, loaded_for_help: dict[str, list[str]]
) -> None:
    assert not set(loaded_for_help[program]) & set(HEAVY)


def test_all_that_is_heavy_is_called_by_its_name() -> None:
    """Else what is looked for above is never found."""
    assert None not in [importlib.util.find_spec(name) for name in HEAVY]


def test_the_package_itself_loads_no_torch() -> None:
    """So the command ``pyro-mdm`` leaves that to its program, which is another process."""
    assert python("-c", "import sys, pyro_mdm.__main__; print('torch' in sys.modules)") == "False\n"


def test_names_of_the_package_are_loaded_when_they_are_asked_for() -> None:
    import pyro_mdm
    from pyro_mdm import public

    for name in pyro_mdm.__all__:
        assert getattr(pyro_mdm, name) is getattr(public, name)
        assert name in dir(pyro_mdm)
    with pytest.raises(AttributeError, match="module 'pyro_mdm' has no attribute 'Nothing'"):
        _ = pyro_mdm.Nothing
    with pytest.raises(ImportError, match="Nothing"):
        from pyro_mdm import Nothing  # noqa: F401
    assert not hasattr(pyro_mdm, "_nothing")
