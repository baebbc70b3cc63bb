"""Posteriors of the tasks, each a process of its own that measures its processor time.

    python -m tests.benchmarks.arena.methods METHOD FOLDER

reads the problem in the folder and writes the answer there.
"""

from __future__ import annotations

import functools
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.benchmarks.runs import processor_seconds

Numbers = NDArray[np.float32]


@dataclass(frozen=True)
class Problem:
    """What a method is given, and what it is asked."""

    task: str
    seed: int
    theta: Numbers  # (n, d), simulations to learn from
    x: Numbers  # (n, m)
    observations: Numbers  # (k, m)
    references: Numbers  # (k, draws, d), from the exact posteriors
    new_theta: Numbers  # (c, d), simulations that coverage is measured by
    new_x: Numbers  # (c, m)
    draws: int  # of the posterior of each observation
    densities: int  # reference draws whose density is asked for
    folds: int  # of the classifier, that are scored
    new_draws: int = 99  # of the posterior of each new simulation

    def save(self, folder: Path) -> None:
        _save(self, folder, "problem")

    @classmethod
    def load(cls, folder: Path) -> Problem:
        return cls(**_load(folder, "problem"))


@dataclass(frozen=True)
class Answer:
    """What a method says."""

    draws: Numbers  # (k, draws, d)
    of_new: Numbers | None = None  # (c, new_draws, d)
    log_prob: Numbers | None = None  # (k, densities), of the first reference draws
    seconds: dict[str, float] = field(default_factory=dict)  # of the processor, by what they took

    def save(self, folder: Path) -> None:
        _save(self, folder, "answer")

    @classmethod
    def load(cls, folder: Path) -> Answer:
        return cls(**_load(folder, "answer"))


def _save(what: Any, folder: Path, name: str) -> None:
    values = {own.name: getattr(what, own.name) for own in fields(what)}
    arrays = {key: value for key, value in values.items() if isinstance(value, np.ndarray)}
    np.savez(folder / f"{name}.npz", **arrays)
    others = {key: value for key, value in values.items() if key not in arrays}
    (folder / f"{name}.json").write_text(json.dumps(others))


def _load(folder: Path, name: str) -> dict[str, Any]:
    with np.load(folder / f"{name}.npz") as arrays:
        return json.loads((folder / f"{name}.json").read_text()) | dict(arrays)


class Posterior:
    """A method's posterior of a task: the three calls that the arena makes."""

    def sample(self, x: Tensor, n: int) -> Tensor:
        """n draws for one datum (m,), (n, d)."""
        raise NotImplementedError

    amortized = True
    """Whether draws for other data cost little."""

    def sample_each(self, x: Tensor, n: int) -> Tensor:
        """n draws for each of data (c, m), (c, n, d), of an amortized one."""
        raise NotImplementedError

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        """log p(θ | x) of θ (n, d) for one datum (m,), nats."""
        raise NotImplementedError


def ours(problem: Problem) -> Posterior:
    """This library's amortized posterior, as its user calls it."""
    from pyro_mdm.posteriors import AmortizedPosterior
    from tests.benchmarks.arena.tasks import TASKS, by_site, flat

    task, seed = TASKS[problem.task], problem.seed
    fitted = AmortizedPosterior.fit(*task[:3], draws=simulations_of(problem), seed=seed)

    class Ours(Posterior):
        def sample(self, x: Tensor, n: int) -> Tensor:
            return flat(fitted.sample(by_site(task, task.observed, x), n), task.latent)

        def sample_each(self, x: Tensor, n: int) -> Tensor:
            drawn = fitted.sample(by_site(task, task.observed, x), n)
            together = {name: value.flatten(0, 1) for name, value in drawn.items()}
            return flat(together, task.latent).unflatten(0, (len(x), n))

        def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
            parameters = by_site(task, task.latent, theta)
            return fitted.log_prob(parameters, by_site(task, task.observed, x)).value

    return Ours()


def simulations_of(problem: Problem) -> dict[str, Tensor]:
    """What is learned from, by site."""
    from tests.benchmarks.arena.tasks import TASKS, by_site

    task = TASKS[problem.task]
    theta = by_site(task, task.latent, torch.from_numpy(problem.theta))
    return theta | by_site(task, task.observed, torch.from_numpy(problem.x))


def by_likelihood(problem: Problem, rounds: int = 1) -> Posterior:
    """This library's posterior by a learned likelihood and sequential Monte Carlo.

    Args:
        rounds: 1, or 2, where half of the simulations are at draws of the first round's posterior
            of an observation. So the second round's training is for each observation, and its time
            is with that of its draws.
    """
    from pyro_mdm.posteriors import AmortizedLikelihood, log_prior
    from tests.benchmarks.arena.tasks import TASKS, by_site, flat

    task, seed = TASKS[problem.task], problem.seed
    simulations = simulations_of(problem)
    half = len(problem.theta) // 2
    first = {name: value[:half] for name, value in simulations.items()}
    fitted = AmortizedLikelihood.fit(
        *task[:3], draws=simulations if rounds == 1 else first, seed=seed
    )
    of_datum: dict[tuple[float, ...], tuple[AmortizedLikelihood, float]] = {}

    class ByLikelihood(Posterior):
        amortized = False

        def sample(self, x: Tensor, n: int) -> Tensor:
            data, likelihood = by_site(task, task.observed, x), fitted
            if rounds == 2:
                theta = fitted.posterior(data, half, seed=seed).draws
                likelihood = fitted.refined(theta, vectorized=True, seed=seed + 1)
            result = likelihood.posterior(data, n, seed=seed)
            of_datum[tuple(x.tolist())] = likelihood, result.log_evidence.mean
            return flat(result.draws, task.latent)

        def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
            parameters, data = by_site(task, task.latent, theta), by_site(task, task.observed, x)
            prior = log_prior(task.program, task.latent, parameters, vectorized=True)
            likelihood, evidence = of_datum[tuple(x.tolist())]
            return prior + likelihood.log_prob(data, parameters) - evidence

    return ByLikelihood()


def prior(problem: Problem) -> Posterior:
    """The prior whatever the data are: what a posterior that learned nothing scores."""
    theta = torch.from_numpy(problem.theta)
    generator = torch.Generator().manual_seed(problem.seed)

    class Prior(Posterior):
        def sample(self, x: Tensor, n: int) -> Tensor:
            return theta[torch.randint(len(theta), (n,), generator=generator)]

        def sample_each(self, x: Tensor, n: int) -> Tensor:
            return self.sample(x, len(x) * n).unflatten(0, (len(x), n))

        def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
            from tests.benchmarks.arena.tasks import TASKS, by_site, sites_of

            task = TASKS[problem.task]
            values, sites = by_site(task, task.latent, theta), sites_of(task)
            each = [sites[name]["fn"].log_prob(values[name]) for name in task.latent]
            return torch.stack(each).sum(0)

    return Prior()


METHODS: dict[str, Callable[[Problem], Posterior]] = {
    "prior": prior,
    "ours": ours,
    "likelihood": by_likelihood,
    "likelihood_2": functools.partial(by_likelihood, rounds=2),
}


def answer_of(problem: Problem, method: Callable[[Problem], Posterior]) -> Answer:
    """Draws and densities of a method, and the processor time of each."""
    torch.manual_seed(problem.seed)
    began = processor_seconds()
    posterior = method(problem)
    seconds = {"fit_seconds": processor_seconds() - began}
    observations = torch.from_numpy(problem.observations)
    began = processor_seconds()
    draws = torch.stack([posterior.sample(x, problem.draws) for x in observations])
    seconds["sample_seconds"] = (processor_seconds() - began) / len(observations)
    of_new = log_prob = None
    if len(problem.new_x) and posterior.amortized:
        each = posterior.sample_each(torch.from_numpy(problem.new_x), problem.new_draws)
        of_new = each.numpy()
    if problem.densities:
        began = processor_seconds()
        chosen = torch.from_numpy(problem.references[:, : problem.densities])
        pairs = zip(chosen, observations, strict=True)
        log_prob = torch.stack([posterior.log_prob(*pair) for pair in pairs]).numpy()
        seconds["density_seconds"] = (processor_seconds() - began) / len(observations)
    return Answer(draws.numpy(), of_new, log_prob, seconds)


def main() -> None:
    method, folder = sys.argv[1], Path(sys.argv[2])
    warnings.simplefilter("ignore")
    import pyro_mdm.posteriors  # noqa: F401  (whose time is not that of a method)
    import tests.benchmarks.arena.tasks  # noqa: F401

    answer_of(Problem.load(folder), METHODS[method]).save(folder)


if __name__ == "__main__":
    main()
