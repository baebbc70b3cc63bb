"""What programs load before they do anything: ``--help`` is to take what torch and pyro do."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_mdm import VPSDE, Denoiser, DiffusionModel
from pyro_mdm.__main__ import PROGRAMS
from pyro_mdm.measurements import condition_on_measurements
from pyro_mdm.networks import MLP
from tests.without import NEEDS

ROOT = Path(__file__).parents[2]
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

    for name in pyro_mdm.__all__:
        assert getattr(pyro_mdm, name).__name__ == name
        assert name in dir(pyro_mdm)
    with pytest.raises(AttributeError, match="No pyro_mdm attribute Nothing"):
        _ = pyro_mdm.Nothing
    with pytest.raises(ImportError, match="Nothing"):
        from pyro_mdm import Nothing  # noqa: F401
    assert not hasattr(pyro_mdm, "_nothing")


WINGS_ASKED_FOR = """
import json, sys
import torch
import pyro_mdm.elbo, pyro_mdm.evaluation, pyro_mdm.samplers
from pyro_mdm import diffusions
from pyro_mdm.evaluation.comparison import compare_paths
from pyro_mdm.model import DiffusionModel
from pyro_mdm.networks import MLP
from pyro_mdm.paths.density import density_bound
from pyro_mdm.paths.base import noising_law
from pyro_mdm.scores import Denoiser

said = {"loaded": [name for name in sys.modules if name.startswith("pyro_mdm.")]}
from pyro_mdm.simulated import NonlinearDiffusion
functions = (compare_paths, density_bound, noising_law)
said["registered"] = [NonlinearDiffusion in function.registry for function in functions]
x = torch.randn(20, 2)
score = Denoiser.fit(MLP(4, out_features=2), x, maps=True)
x[3, 1] = torch.nan
model = DiffusionModel(diffusions.VPSDE(min_log_snr=-9.0), score)
said["left out"] = type(model.for_present(x)[0].score_function).__name__
said["opened"] = type(DiffusionModel.from_pretrained(sys.argv[1]).score_function).__name__
print(json.dumps(said))
"""


@pytest.mark.slow
def test_the_core_loads_no_wing_and_knows_what_each_registers(tmp_path: Path) -> None:
    """By what it does differently, and by a model of it that is opened."""
    model = DiffusionModel(VPSDE(max_log_snr=9.0), Denoiser(MLP(2)), event_shape=(2,))
    measured = condition_on_measurements(model, torch.eye(2), torch.zeros(2), 0.1)
    measured.save_pretrained(tmp_path)
    said: dict[str, Any] = json.loads(python("-c", WINGS_ASKED_FOR, str(tmp_path)))
    assert "pyro_mdm.diffusions.linear" in said["loaded"]
    assert not [name for name in said["loaded"] if name.split(".")[1] in NEEDS]
    assert said["registered"] == [True] * 3
    assert said["left out"] == "ConditionedDenoiser" and said["opened"] == "MeasuredDenoiser"
