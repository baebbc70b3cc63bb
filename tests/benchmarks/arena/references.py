"""The public benchmark's observations, true parameters and draws of the exact posteriors.

They are files of its package, which is not imported: it requires old versions of others.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

ENVIRONMENT = Path("data/arena")
"""Where the peers' environment is, and in it the package."""
PACKAGE = "sbibm==1.1.0"
OBSERVATIONS = tuple(range(1, 11))
OTHER_DATA = {
    "slcp_distractors": ("slcp", "observation_distractors"),
    "bernoulli_glm_raw": ("bernoulli_glm", "observation_raw"),
}
"""Tasks with the references of another, and the name of their file of data."""


def read(task: str, observation: int, name: str, environment: Path = ENVIRONMENT) -> Tensor:
    """Rows (n, d) of a file of an observation.

    Args:
        task: its name.
        observation: 1 to 10.
        name: ``observation`` and ``true_parameters``, of one row; ``reference_posterior_samples``,
            of 10,000.

    Raises:
        SystemExit: the package is not there.
    """
    if task in OTHER_DATA:
        task, data = OTHER_DATA[task]
        name = data if name == "observation" else name
    tasks = environment / "sbibm" / "sbibm" / "tasks"
    if not tasks.is_dir():
        raise SystemExit(
            f"{tasks} is missing, expected the references; make them by "
            f"python -m tests.benchmarks.arena.peers --environment {environment}"
        )
    folder = tasks / task / "files" / f"num_observation_{observation}"
    file = next(folder.glob(f"{name}.csv*"))
    return torch.from_numpy(pd.read_csv(file).to_numpy("float32"))
