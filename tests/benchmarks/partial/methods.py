"""Methods of this library for the conditionals of the tasks.

    python -m tests.benchmarks.partial.methods FOLDER

reads the problem in the folder and writes the answer there, in a process of its own.

    joint       p(any | any): AmortizedJoint
    posterior   p(θ | any part of x): AmortizedPosterior with ``missing=``
    likelihood  p(any | any) where data are given whole or not at all: AmortizedLikelihood, with
                parameters by sequential Monte Carlo, and data given these
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from tests.benchmarks.arena.tasks import flat
from tests.benchmarks.partial.problem import Problem, save_answer
from tests.benchmarks.partial.tasks import TASKS
from tests.benchmarks.runs import processor_seconds

Conditional = Callable[[Tensor, int], Tensor]
"""From z (d,), NaN where a number is not given, and the number of draws n, to draws (n, d)."""


def joint(problem: Problem, z: Tensor) -> Conditional:
    from pyro_mdm.posteriors import AmortizedJoint

    task = TASKS[problem.task]
    how = {"seed": problem.seed, "steps": problem.steps or None}
    fitted = AmortizedJoint.fit(*task.simulator[:3], draws=task.by_site(z), **how)

    def draw(given: Tensor, n: int) -> Tensor:
        return flat(fitted.sample(task.by_site(given), n, seed=problem.seed), task.sites)

    return draw


def posterior(problem: Problem, z: Tensor) -> Conditional:
    from pyro_mdm.posteriors import AmortizedPosterior

    task = TASKS[problem.task]
    sites, data = task.simulator[:3], task.by_site(z)
    how = {"missing": 0.5, "seed": problem.seed, "steps": problem.steps or None}
    fitted = AmortizedPosterior.fit(*sites, draws=data, **how)

    def draw(given: Tensor, n: int) -> Tensor:
        x = {name: task.by_site(given)[name] for name in task.simulator.observed}
        theta = flat(fitted.sample(x, n, seed=problem.seed), task.simulator.latent)
        return torch.cat([theta, given[task.parameters :].expand(n, -1)], 1)

    return draw


def likelihood(problem: Problem, z: Tensor) -> Conditional:
    from pyro_mdm.posteriors import AmortizedLikelihood

    task = TASKS[problem.task]
    latent, observed = task.simulator.latent, task.simulator.observed
    sites, how = task.simulator[:3], {"seed": problem.seed, "steps": problem.steps or None}
    fitted = AmortizedLikelihood.fit(*sites, draws=task.by_site(z), **how)

    def draw(given: Tensor, n: int) -> Tensor:
        values = task.by_site(given)
        data = {name: values[name] for name in observed}
        fixed = {name: values[name] for name in latent if not bool(values[name].isnan().any())}
        if len(fixed) < len(latent):
            theta = fitted.posterior(data, n, given=fixed, seed=problem.seed).draws
        else:
            theta = {name: value.expand(n, *value.shape) for name, value in fixed.items()}
        torch.manual_seed(problem.seed)
        drawn = flat({**theta, **fitted.sample(theta)}, task.sites)
        return torch.where(given.isnan(), drawn, given)

    return draw


METHODS: dict[str, Callable[[Problem, Tensor], Conditional]] = {
    "joint": joint,
    "posterior": posterior,
    "likelihood": likelihood,
}


def answers(method: str, task: str, kind: str) -> bool:
    """Whether a method has conditionals of a kind of mask."""
    if method == "posterior":
        return kind in ("posterior", "part")
    if method == "likelihood" and task == "two_moons":
        # its parameters are one site and its two numbers one datum, of which a part may be given
        return kind in ("joint", "posterior", "likelihood")
    return True


def main() -> None:
    folder = Path(sys.argv[1])
    warnings.simplefilter("ignore")
    problem = Problem.load(folder)
    import pyro_mdm.posteriors  # noqa: F401  (whose time is not that of a method)

    torch.manual_seed(problem.seed)
    began = processor_seconds()
    draw = METHODS[problem.method](problem, torch.from_numpy(problem.z).float())
    seconds = {"fit_seconds": processor_seconds() - began}
    began = processor_seconds()
    values = torch.from_numpy(problem.values).float()
    draws = torch.stack([draw(given, problem.draws).double() for given in values])
    seconds["sample_seconds"] = (processor_seconds() - began) / len(values)
    save_answer(folder, draws.numpy(), seconds)


if __name__ == "__main__":
    main()
