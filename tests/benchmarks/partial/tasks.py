"""Tasks of conditionals of parameters and data, as Pyro programs, and the conditions they ask for.

Source: Gloeckler, Deistler, Weilbach, Wood and Macke, "All-in-one simulation-based inference", ICML
2024, whose text defines the tasks and the distribution of masks. A :class:`Task` has its
parameters and data side by side in one vector z, the parameters first. A condition is a mask of
the numbers of z that are given, with their values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Normal

from inference.simulators import Simulator
from inference.simulators.two_moons import TWO_MOONS, log_likelihood
from pyro_mdm.posteriors import simulate
from tests.benchmarks.arena.tasks import by_site, flat

# -- the programs, with the log densities of their vectors -----------------------------------------

LENGTH = 10
"""The number of states of the hidden Markov model, and of its data."""
HIDDEN_SCALE, DATA_SCALE = 0.5, 0.5
"""The standard deviations of its steps, and of its data."""
TREE_SCALES = (0.2, 0.2, 0.6, 0.1)
"""The standard deviations of the data of the tree."""
EXTRA = 1e-6
"""Is added to the variances of SLCP."""
BOX = 3.0
"""The parameters of SLCP are between -3 and 3."""


def tree_means(second: Tensor, third: Tensor) -> list[Tensor]:
    """The means of the four data of the tree given its two leaves."""
    squares = [0.1 * second.square(), 0.1 * third.square()]
    return [second.sin().square(), *squares, third.cos().square()]


def tree() -> None:
    """A Gaussian tree of a root with two children, each of which two nonlinear data see."""
    root = pyro.sample("theta1", dist.Normal(0.0, 1.0))
    second = pyro.sample("theta2", dist.Normal(root, 1.0))
    third = pyro.sample("theta3", dist.Normal(root, 1.0))
    pairs = zip(tree_means(second, third), TREE_SCALES, strict=True)
    for j, (mean, scale) in enumerate(pairs):
        pyro.sample(f"x{j + 1}", dist.Normal(mean, scale))


def log_tree(z: Tensor) -> Tensor:
    """log p(z) of the tree, (*batch)."""
    root, second, third = z[..., :3].unbind(-1)
    means = torch.stack(tree_means(second, third), -1)
    of_data = Normal(means, z.new_tensor(TREE_SCALES)).log_prob(z[..., 3:]).sum(-1)
    children = Normal(root, 1.0).log_prob(second) + Normal(root, 1.0).log_prob(third)
    return Normal(0.0, 1.0).log_prob(root) + children + of_data


def hidden_markov() -> None:
    """A Gaussian random walk of ten states, each of which a datum sees the square of."""
    state = torch.zeros(())
    for i in range(LENGTH):
        state = pyro.sample(f"theta{i}", dist.Normal(state, HIDDEN_SCALE))
        pyro.sample(f"x{i}", dist.Normal(state.square(), DATA_SCALE))


def log_hidden_markov(z: Tensor) -> Tensor:
    """log p(z) of the hidden Markov model, (*batch)."""
    states, data = z.split(LENGTH, -1)
    before = torch.cat([torch.zeros_like(states[..., :1]), states[..., :-1]], -1)
    steps = Normal(before, HIDDEN_SCALE).log_prob(states)
    return (steps + Normal(states.square(), DATA_SCALE).log_prob(data)).sum(-1)


def covariance(theta: Tensor) -> Tensor:
    """The covariance of a datum of SLCP, (*batch, 2, 2), of θ_2, θ_3, θ_4 (*batch, 3)."""
    first, second = theta[..., 0].square(), theta[..., 1].square()
    between = theta[..., 2].tanh() * first * second
    rows = [first.square() + EXTRA, between, between, second.square() + EXTRA]
    return torch.stack(rows, -1).unflatten(-1, (2, 2))


def slcp() -> None:
    """Four draws of a Gaussian distribution in the plane, whose covariance has two scales, which
    are squares of parameters, and a correlation."""
    numbers = [pyro.sample(f"theta{i}", dist.Uniform(-BOX, BOX)) for i in range(5)]
    theta = torch.stack(numbers, -1)
    root = torch.linalg.cholesky(covariance(theta[..., 2:].double())).to(theta)
    with pyro.plate("data", 4):
        pyro.sample("x", dist.MultivariateNormal(theta[..., :2], scale_tril=root))


def log_slcp(z: Tensor) -> Tensor:
    """log p(z) of SLCP, (*batch)."""
    theta, x = z[..., :5], z[..., 5:].unflatten(-1, (4, 2))
    law = torch.distributions.MultivariateNormal(
        theta[..., None, :2], covariance(theta[..., None, 2:]), validate_args=False
    )
    inside = (theta.abs() < BOX).all(-1)
    value = law.log_prob(x).sum(-1) - 5 * math.log(2 * BOX)
    return torch.where(inside, value, -math.inf)


def log_two_moons(z: Tensor) -> Tensor:
    """log p(z) of two moons, (*batch)."""
    theta, x = z.split(2, -1)
    inside = (theta.abs() < 1).all(-1)
    return torch.where(inside, log_likelihood(theta, x) - math.log(4), -math.inf)


class Task(NamedTuple):
    """A simulator whose parameters and data are one vector z."""

    simulator: Simulator
    log_density: Callable[[Tensor], Tensor]  # log p(z), (*batch), of z (*batch, d)
    parameters: int  # the number of parameters
    numbers: int  # d, that of parameters and data
    together: int = 1  # how many neighbouring data are given together

    @property
    def sites(self) -> tuple[str, ...]:
        return (*self.simulator.latent, *self.simulator.observed)

    def draws(self, n: int, seed: int) -> Tensor:
        """n draws of z, (n, d)."""
        return flat(simulate(self.simulator.program, n, seed=seed, vectorized=True), self.sites)

    def by_site(self, z: Tensor) -> dict[str, Tensor]:
        """The values of parameters and data by site, (*batch, *shape), of z (*batch, d)."""
        return by_site(self.simulator, self.sites, z)


def _walk(prefix: str, first: int, last: int) -> tuple[str, ...]:
    return tuple(f"{prefix}{i}" for i in range(first, last))


def _simulator(program: Callable[[], None], *names: tuple[str, ...]) -> Simulator:
    return Simulator(program, *names, vectorized=True)


_TREE = _simulator(tree, _walk("theta", 1, 4), _walk("x", 1, 5))
_HIDDEN = _simulator(hidden_markov, _walk("theta", 0, LENGTH), _walk("x", 0, LENGTH))
TASKS = {
    "tree": Task(_TREE, log_tree, 3, 7),
    "hmm": Task(_HIDDEN, log_hidden_markov, LENGTH, 2 * LENGTH),
    "two_moons": Task(TWO_MOONS, log_two_moons, 2, 4),
    "slcp": Task(_simulator(slcp, _walk("theta", 0, 5), ("x",)), log_slcp, 5, 13, together=2),
}

# -- conditions ------------------------------------------------------------------------------------

KINDS = ("joint", "posterior", "likelihood", "few", "many", "part")
"""The kinds of mask. The first five are those of the source, where each has a chance of 1/5:
nothing is given, all data, all parameters, or each number with a chance of 0.3 or of 0.7. In the
last one, which is ours, each datum is given with a chance of 1/2, and parameters alone are
compared."""
CHANCES = {"few": 0.3, "many": 0.7}
NEW_SEED = 2_000_000
"""Is added to the number of a condition, for the seed of its vector."""


class Condition(NamedTuple):
    """A mask of the numbers of z that are given, and a draw of z that has them."""

    kind: str
    given: Tensor  # (d,) bool
    z: Tensor  # (d,)


def mask_of(task: Task, kind: str, generator: torch.Generator) -> Tensor:
    """A mask of one kind, (d,) bool, that leaves a number to be drawn."""
    p, d = task.parameters, task.numbers
    is_data = torch.arange(d) >= p
    fixed = {"joint": torch.zeros(d, dtype=torch.bool), "posterior": is_data}
    fixed["likelihood"] = ~is_data
    if kind in fixed:
        return fixed[kind]
    while True:
        given = torch.rand(d, generator=generator) < CHANCES.get(kind, 0.5)
        # data that are one datum are given together, if one of them is
        blocks = given[p:].unflatten(0, (-1, task.together)).any(-1, keepdim=True)
        given[p:] = blocks.expand(-1, task.together).flatten()
        if kind == "part":
            given = given & is_data
            if bool(given.any()) and not bool(given[p:].all()):
                return given
        elif not bool(given.all()):
            return given


def condition_of(task: Task, kind: str, number: int) -> Condition:
    """The condition of a kind with a number, the same for all methods and seeds."""
    generator = torch.Generator().manual_seed(1_000 * KINDS.index(kind) + number)
    seed = NEW_SEED + 1_000 * KINDS.index(kind) + number
    return Condition(kind, mask_of(task, kind, generator), task.draws(1, seed)[0])
