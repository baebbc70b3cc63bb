"""A wing with what pip installs for it, in an empty environment: does it import, and work?

    python -m tests.extras tables
    python -m tests.extras all

An extra is named for the wing whose packages it has; other wings need the library alone, as does
``core``. ``all`` is the core and every wing with an extra. Each has an environment of its own, in a
temporary folder, into which this checkout is installed as the documentation says. That takes
minutes and what PyTorch is of space, so that it is no test.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

from tests.without import NEEDS, ROOT

CORE = """
import torch
from pyro_mdm import MDM_ELBO, VPSDE, Denoiser, DiffusionGuide, DiffusionModel
from pyro_mdm.networks import MLP
x = torch.randn(16, 2)
model = DiffusionModel(VPSDE(), Denoiser.fit(MLP(2), x))
guide = DiffusionGuide(model.diffusion)
assert MDM_ELBO()(model, guide)(x).isfinite()
"""
USES = {
    "imported": """
from pyro_mdm.imported import from_diffusers, to_azula
from diffusers import DDPMScheduler
assert to_azula(model)(x, torch.tensor(0.5)).mean.shape == x.shape
assert from_diffusers(MLP(2), DDPMScheduler(), x).predicts == "noise"
""",
    "plots": """
import tempfile
from torch.utils.tensorboard import SummaryWriter
from pyro_mdm.plots import hparams, tensorboard
from pyro_mdm.plots.tables import marginals_figure
marginals_figure({"a": x[:, 0]})
with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
    tensorboard.write_curves(writer, model.diffusion, 0)
    hparams.write_finished(writer)
""",
    "posteriors": """
import pyro
from pyro.distributions import Normal
from pyro_mdm.posteriors import simulate
def program():
    pyro.sample("b", Normal(pyro.sample("a", Normal(0.0, 1.0)), 0.5))
assert len(simulate(program, 4, workers=2)["b"]) == 4
""",
    "tables": """
import pandas as pd
from pyro_mdm.tables import Table
frame = pd.DataFrame({"a": x[:, 0].numpy().repeat(4), "b": ["u", "v"] * 32})
assert len(Table(steps=2).fit(frame).sample(3)) == 3
""",
}
"""A small use of each wing with an extra, after that of the core."""


def tried(wing: str, folder: Path) -> bool:
    """Whether a wing works after pip has installed its extra into a new environment."""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    what = f".[{wing}]" if wing in USES else "."
    program = CORE + (f"import pyro_mdm.{wing}\n" if wing in NEEDS else "") + USES.get(wing, "")
    commands = (["-m", "pip", "install", "--quiet", "-e", what], ["-W", "ignore", "-c", program])
    return all(subprocess.run([python, *c], cwd=ROOT).returncode == 0 for c in commands)


def main(arguments: Sequence[str]) -> int:
    places = {"all": ["core", *USES]} | {name: [name] for name in ("core", *NEEDS)}
    if len(arguments) != 1 or arguments[0] not in places:
        raise SystemExit(f"expected one of {', '.join(places)}, not {' '.join(arguments)!r}")
    failed = []
    for wing in places[arguments[0]]:
        with tempfile.TemporaryDirectory() as folder:
            works = tried(wing, Path(folder))
        print(f"{wing}: {'works' if works else 'FAILS'}", flush=True)
        failed += [] if works else [wing]
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
