"""Tasks of the public benchmark of simulation-based inference, as Pyro programs.

Source: Lueckmann, Boelts, Greenberg, Gonçalves and Macke, "Benchmarking Simulation-Based
Inference", AISTATS 2021, whose appendix defines them. A task is a
:class:`~inference.simulators.Simulator`, so that a program takes one by its file and name::

    python -m inference.posterior --simulator tests/benchmarks/arena/tasks.py:SLCP

The benchmark has parameters and data as vectors, :func:`flat`, of the sites in order;
:func:`by_site` is the way back. A program draws its sites in any plate around it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from inference.simulators import Simulator
from inference.simulators.two_moons import TWO_MOONS

# -- vectors of the benchmark ----------------------------------------------------------------------


def flat(values: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """Values of sites, (n, *shape) each, as vectors (n, d) in the order of names."""
    return torch.cat([values[name].reshape(len(values[name]), -1) for name in names], 1)


def by_site(task: Simulator, names: Sequence[str], vectors: Tensor) -> dict[str, Tensor]:
    """Values of sites, (*batch, *shape) each, of vectors (*batch, d)."""
    nodes = sites_of(task)
    shapes = [nodes[name]["value"].shape for name in names]
    parts = vectors.split([shape.numel() for shape in shapes], -1)
    each = zip(names, shapes, parts, strict=True)
    return {name: part.reshape(vectors.shape[:-1] + shape) for name, shape, part in each}


def sites_of(task: Simulator) -> dict[str, dict[str, object]]:
    """Parameters and data of one run of a task's program, by name."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        nodes = poutine.trace(task.program).get_trace().nodes
    return {name: nodes[name] for name in (*task.latent, *task.observed)}


# -- Gaussian, and the like ------------------------------------------------------------------------

SIZE = 10
"""Parameters of the linear Gaussian tasks, and of the data."""
VARIANCE = 0.1
"""The variance of their noise, and of the Gaussian prior."""


def gaussian_linear() -> Tensor:
    """x_i ~ N(θ_i, 0.1), where θ_i ~ N(0, 0.1)."""
    theta = pyro.sample("theta", dist.Normal(torch.zeros(SIZE), VARIANCE**0.5).to_event(1))
    x: Tensor = pyro.sample("x", dist.Normal(theta, VARIANCE**0.5).to_event(1))
    return x


def gaussian_linear_uniform() -> Tensor:
    """x_i ~ N(θ_i, 0.1), where θ_i is uniform on (-1, 1)."""
    theta = pyro.sample("theta", dist.Uniform(-torch.ones(SIZE), 1.0).to_event(1))
    x: Tensor = pyro.sample("x", dist.Normal(theta, VARIANCE**0.5).to_event(1))
    return x


def gaussian_mixture() -> Tensor:
    """x is θ with noise whose standard deviation is 1 or 0.1, each in half of all draws."""
    theta = pyro.sample("theta", dist.Uniform(torch.full((2,), -10.0), 10.0).to_event(1))
    scales = torch.tensor([1.0, 0.1])
    each = dist.Normal(theta.unsqueeze(-2), scales.unsqueeze(-1)).to_event(1)
    x: Tensor = pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), each))
    return x


LEAST_SCALE = 1e-3
"""The least standard deviation of a datum of SLCP, so that all covariances have a root."""


def _datum_of_slcp(theta: Tensor) -> dist.MultivariateNormal:
    """The distribution of a datum, with means θ_0 and θ_1, standard deviations θ_2² and θ_3², and
    correlation tanh θ_4."""
    first, second = theta[..., 2:4].square().clamp_min(LEAST_SCALE).unbind(-1)
    correlation, rest = theta[..., 4].tanh(), 1 / theta[..., 4].cosh()  # √(1 - tanh²)
    rows = [first, torch.zeros_like(first), correlation * second, rest * second]
    root = torch.stack(rows, -1).unflatten(-1, (2, 2))
    return dist.MultivariateNormal(theta[..., :2], scale_tril=root)


def slcp() -> Tensor:
    """Simple likelihood, complex posterior: four draws of a Gaussian law in the plane."""
    theta = pyro.sample("theta", dist.Uniform(torch.full((5,), -3.0), 3.0).to_event(1))
    with pyro.plate("data", 4):
        x: Tensor = pyro.sample("x", _datum_of_slcp(theta))
    return x


DISTRACTORS, COMPONENTS = 92, 20
"""Numbers beside the data of SLCP, and components of their mixture."""


class Distractors(NamedTuple):
    """A mixture of Student's t with 2 degrees of freedom, and a permutation."""

    loc: Tensor  # (components, 92)
    scale_tril: Tensor  # (components, 92, 92)
    order: Tensor  # (100,), the place among data and distractors of each observed number

    def law(self) -> dist.MixtureSameFamily:
        each = dist.MultivariateStudentT(torch.tensor(2.0), self.loc, self.scale_tril)
        return dist.MixtureSameFamily(dist.Categorical(torch.ones(COMPONENTS)), each)

    def apart(self, x: Tensor) -> dict[str, Tensor]:
        """The data (4, 2) and the distractors (92,) of observed numbers (100,)."""
        numbers = torch.empty_like(x)
        numbers[self.order] = x
        return {"data": numbers[:8].reshape(4, 2), "distractors": numbers[8:]}


@functools.cache
def distractors() -> Distractors:
    """Those that the benchmark drew once."""
    random, d = np.random.RandomState(42), DISTRACTORS
    loc = [15 * random.normal(size=d) for _ in range(COMPONENTS)]
    drawn = [
        np.tril(random.normal(size=(d, d))) + np.diag(np.exp(random.normal(size=d)))
        for _ in range(COMPONENTS)
    ]
    order = torch.from_numpy(random.permutation(d + 8))
    roots = 3 * torch.from_numpy(np.stack(drawn)).float()
    # some diagonal entries are negative, without which the covariance is the same
    roots = roots * roots.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return Distractors(torch.from_numpy(np.stack(loc)).float(), roots, order)


def slcp_distractors() -> Tensor:
    """SLCP, whose 8 numbers are among 92 that do not depend on θ, in a fixed order."""
    theta = pyro.sample("theta", dist.Uniform(torch.full((5,), -3.0), 3.0).to_event(1))
    datum = _datum_of_slcp(theta.unsqueeze(-2))
    data = pyro.sample("data", datum.expand((*theta.shape[:-1], 4)).to_event(1))
    fixed = distractors()
    noise = pyro.sample("distractors", fixed.law())
    numbers = torch.cat([data.flatten(-2), noise], -1)
    x: Tensor = pyro.deterministic("x", numbers[..., fixed.order], event_dim=1)
    return x


# -- a generalized linear model --------------------------------------------------------------------

BINS, LAGS = 100, 9
"""Bins of time, and weights of the filter."""


def stimulus() -> Tensor:
    """The input in each bin, white noise that the benchmark fixed, (bins,)."""
    return torch.from_numpy(np.random.RandomState(42).standard_normal(BINS)).float()


def _design() -> Tensor:
    """One and the last nine inputs, the present one first, in each bin, (bins, 10)."""
    before = torch.cat([torch.zeros(LAGS - 1), stimulus()])
    return torch.cat([torch.ones(BINS, 1), before.unfold(0, LAGS, 1).flip(1)], 1)


def _smoothness() -> Tensor:
    """The precision of the filter, which second differences are small of, (9, 9)."""
    step = torch.eye(LAGS) - torch.eye(LAGS).roll(1, 0).tril()
    root = step @ step + torch.diag((torch.arange(LAGS) / LAGS).sqrt())
    return root.mT @ root


DESIGN, SMOOTHNESS = _design(), _smoothness()


def bernoulli_glm_raw() -> Tensor:
    """Spikes of a neuron in bins of time, by its offset and its filter of the last inputs."""
    offset = pyro.sample("offset", dist.Normal(0.0, 2**0.5))
    law = dist.MultivariateNormal(torch.zeros(LAGS), precision_matrix=SMOOTHNESS)
    weights = torch.cat([offset.unsqueeze(-1), pyro.sample("filter", law)], -1)
    spikes: Tensor = pyro.sample("spikes", dist.Bernoulli(logits=weights @ DESIGN.mT).to_event(1))
    return spikes


def bernoulli_glm() -> Tensor:
    """The spikes' sufficient statistics: their number, and the sums of inputs at each lag before a
    spike."""
    x: Tensor = pyro.deterministic("x", bernoulli_glm_raw() @ DESIGN, event_dim=1)
    return x


# -- differential equations ------------------------------------------------------------------------


def solve(
    field: Callable[[Tensor], Tensor], start: Tensor, interval: float, times: int, steps: int
) -> Tensor:
    """States (times, *batch, k) at 0, interval, 2 · interval, … from a start (*batch, k).

    Args:
        field: the derivative of a state.
        steps: of the classical Runge-Kutta method, in an interval.
    """
    states, h = [start], interval / steps
    for _ in range(times - 1):
        state = states[-1]
        for _ in range(steps):
            a = field(state)
            b = field(state + h / 2 * a)
            c = field(state + h / 2 * b)
            d = field(state + h * c)
            state = state + h / 6 * (a + 2 * b + 2 * c + d)
        states.append(state)
    return torch.stack(states)


PEOPLE = 1_000_000


def sir(steps: int = 136) -> Tensor:
    """An epidemic: of 1,000 people who are tested every 17 days the numbers that are infected.

    β is the rate of infection by day, and γ that of recovery.
    """
    beta = pyro.sample("beta", dist.LogNormal(math.log(0.4), 0.5))
    gamma = pyro.sample("gamma", dist.LogNormal(math.log(0.125), 0.2))
    b, g = beta.double(), gamma.double()

    def field(state: Tensor) -> Tensor:  # shares that are susceptible, and infected
        new, infected = b * state.prod(-1), state[..., 1]
        return torch.stack([-new, new - g * infected], -1)

    start = torch.tensor([1 - 1 / PEOPLE, 1 / PEOPLE], dtype=torch.float64)
    states = solve(field, start.expand(*b.shape, 2), 17.0, 10, steps)
    share = states[..., 1].movedim(0, -1).clamp(0, 1).float()
    infected: Tensor = pyro.sample("infected", dist.Binomial(1000, share).to_event(1))
    return infected


def lotka_volterra(steps: int = 84) -> tuple[Tensor, Tensor]:
    """Prey and predators, counted ten times in 19 units of time, with 10% of error.

    α and β are the growth of prey and what a predator takes of it; γ and δ the death of predators
    and what a prey gives to them. Logs of the numbers are solved for, which stay finite.
    """
    names = ("alpha", "beta", "gamma", "delta")
    centers = (-0.125, -3.0, -0.125, -3.0)
    laws = [dist.LogNormal(center, 0.5) for center in centers]
    a, b, c, d = (pyro.sample(*pair).double() for pair in zip(names, laws, strict=True))

    def field(state: Tensor) -> Tensor:
        prey, predators = state.exp().unbind(-1)
        return torch.stack([a - b * predators, d * prey - c], -1)

    start = torch.tensor([30.0, 1.0], dtype=torch.float64).log()
    states = solve(field, start.expand(*a.shape, 2), 2.1, 10, steps)
    states = states.clamp(math.log(1e-10), math.log(1e4)).float().movedim(0, -1)
    prey = pyro.sample("prey", dist.LogNormal(states[..., 0, :], 0.1).to_event(1))
    predators = pyro.sample("predators", dist.LogNormal(states[..., 1, :], 0.1).to_event(1))
    return prey, predators


def _task(program: Callable[[], object], latent: str = "theta", observed: str = "x") -> Simulator:
    return Simulator(program, tuple(latent.split()), tuple(observed.split()), vectorized=True)


SLCP = _task(slcp)
SLCP_DISTRACTORS = _task(slcp_distractors)
GAUSSIAN_LINEAR = _task(gaussian_linear)
GAUSSIAN_LINEAR_UNIFORM = _task(gaussian_linear_uniform)
GAUSSIAN_MIXTURE = _task(gaussian_mixture)
BERNOULLI_GLM = _task(bernoulli_glm, "offset filter")
BERNOULLI_GLM_RAW = _task(bernoulli_glm_raw, "offset filter", "spikes")
SIR = _task(sir, "beta gamma", "infected")
LOTKA_VOLTERRA = _task(lotka_volterra, "alpha beta gamma delta", "prey predators")

TASKS = {
    "two_moons": TWO_MOONS,
    "slcp": SLCP,
    "slcp_distractors": SLCP_DISTRACTORS,
    "gaussian_linear": GAUSSIAN_LINEAR,
    "gaussian_linear_uniform": GAUSSIAN_LINEAR_UNIFORM,
    "gaussian_mixture": GAUSSIAN_MIXTURE,
    "bernoulli_glm": BERNOULLI_GLM,
    "bernoulli_glm_raw": BERNOULLI_GLM_RAW,
    "sir": SIR,
    "lotka_volterra": LOTKA_VOLTERRA,
}
