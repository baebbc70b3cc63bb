"""Simformer by its own code, in an environment of its own.

    python -m tests.benchmarks.partial.peers

makes the environment in ``data/partial`` once: the packages below, and the source of Simformer,
which is on no index of packages. ``--source`` names another copy of its repository. Its training
and its samplers are called with the settings of its files, for all conditionals, except the number
of steps. Its module of tasks imports ``sbibm``, which nothing here uses: an empty module stands in.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

ENVIRONMENT = Path("data/partial")
SOURCE = "https://github.com/mackelab/simformer"
COMMIT = "a350556"
PACKAGES = (
    "jax==0.4.23",
    "jaxlib==0.4.23",
    "numpy==1.26.3",
    "scipy==1.11.4",
    "dm-haiku==0.0.11",
    "optax==0.2.1",
    "chex==0.1.85",
    "ott-jax==0.4.5",
    "jaxtyping",
    "networkx",
    "ipython",
    "omegaconf",
    "pandas<2.3",
    "matplotlib",
    "torch",
)
FOLDER = "simformer"


def settings(source: Path, steps: int) -> Any:
    """The settings of its benchmark of all conditionals."""
    from omegaconf import OmegaConf

    def load(name: str) -> Any:
        return OmegaConf.load(source / "src/scoresbibm/config/method" / f"{name}.yaml")

    train = load("train/train_score_transformer")
    train.pop("defaults")
    train.condition_mask_fn = load("train/condition_mask_fn/structured_random")
    train.edge_mask_fn = load("train/edge_mask_fn/none")
    if steps:
        train.max_number_steps = train.min_number_steps = steps
    model, sde = load("model/score_transformer_small"), load("sde/vesde")
    parts = {"model": model, "train": train, "sde": sde, "device": "cpu", "backend": "jax"}
    return OmegaConf.create(parts), dict(load("posterior/backward_sde"))


def answer(folder: Path) -> None:
    """Read the problem in the folder, and write the draws of Simformer there."""
    source = Path(sys.prefix) / FOLDER
    sys.path[:0] = [str(source / "src/probjax"), str(source / "src/scoresbibm")]
    stub: Any = types.ModuleType("sbibm")
    stub.get_task = None
    sys.modules["sbibm"] = stub
    import jax
    import jax.numpy as jnp
    import numpy as np
    from scoresbibm.methods.score_transformer import train_transformer_model
    from scoresbibm.tasks.base_task import Task

    from tests.benchmarks.partial.problem import Problem, save_answer
    from tests.benchmarks.runs import processor_seconds

    problem = Problem.load(folder)
    parameters, numbers = problem.parameters, problem.z.shape[1]

    class Joint(Task):
        def get_theta_dim(self) -> int:
            return parameters

        def get_x_dim(self) -> int:
            return numbers - parameters

        def get_node_id(self) -> Any:
            return jnp.arange(numbers)

    how, sampling = settings(source, problem.steps)
    z = jnp.asarray(problem.z, jnp.float32)
    data = {"theta": z[:, :parameters], "x": z[:, parameters:]}
    key = jax.random.PRNGKey(problem.seed)
    began = processor_seconds()
    model = train_transformer_model(Joint(problem.task), data, how, key)
    seconds = {"fit_seconds": processor_seconds() - began}
    model.set_default_sampling_kwargs(**sampling)
    draws, began = [], processor_seconds()
    for k, given in enumerate(problem.given):
        key, now = jax.random.split(key)
        x = jnp.asarray(problem.values[k][given], jnp.float32)
        options = {"x_o": x, "condition_mask": jnp.asarray(given), "rng": now}
        drawn = np.repeat(problem.values[k][None], problem.draws, 0)
        drawn[:, ~given] = np.asarray(model.sample(problem.draws, **options))
        draws.append(drawn)
    seconds["sample_seconds"] = (processor_seconds() - began) / len(draws)
    save_answer(folder, np.stack(draws), seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT)
    parser.add_argument("--source", default=SOURCE, help="of its repository, for git")
    parser.add_argument("--answer", type=Path, help="folder of a problem; needs the environment")
    options = parser.parse_args()
    if options.answer:
        answer(options.answer)
        return
    from tests.benchmarks.environments import install

    install(options.environment, PACKAGES)
    if not (target := options.environment / FOLDER).exists():
        git = ["git", "clone", "--quiet", "--no-checkout", options.source, str(target)]
        subprocess.run(git, check=True)
        checkout = ["git", "-C", str(target), "checkout", "--quiet", COMMIT, "--", "src"]
        subprocess.run(checkout, check=True)


if __name__ == "__main__":
    main()
