"""Exact draws of every conditional of the tasks.

- The parameters of the tree and of the hidden Markov model are a tree of numbers, each Gaussian
  about its parent, and each datum depends on one of them. Messages on a grid give the distribution
  of each number given its parent and all that is given below it, and draws go from the root down,
  with a uniform place inside of a cell. The error is that of the grid, of second order in its step.
- SLCP: given the covariance, the means have a Gaussian distribution, so that only the three numbers
  of the covariance are left. They are drawn on a grid, and corrected by importance weights.
- Two moons: the noise of the moon is drawn, and unknown parameters are solved for, which have a
  constant Jacobian; those outside of the square are rejected. A single unknown number is drawn on
  a grid.

Data that are not given are drawn by the program's own distributions, given all parameters.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Normal

from inference.simulators.two_moons import OFFSET, RADIUS, WIDTH, shift
from tests.benchmarks.partial.tasks import (
    BOX,
    DATA_SCALE,
    HIDDEN_SCALE,
    LENGTH,
    TREE_SCALES,
    Task,
    covariance,
    log_two_moons,
    tree_means,
)

Generator = torch.Generator
Sampler = Callable[[Tensor, Tensor, int, Generator], Tensor]
"""From the mask of what is given, z (d,), and the number of draws, to draws (n, d)."""


def normal(mean: Tensor, scale: float | Tensor, generator: Generator) -> Tensor:
    return mean + scale * torch.randn(mean.shape, generator=generator, dtype=mean.dtype)


def chosen_rows(log_weight: Tensor, generator: Generator) -> Tensor:
    """One index for each row of log weights, (n,), of (n, cells)."""
    total = (log_weight - log_weight.amax(1, keepdim=True)).exp().cumsum(1)
    u = torch.rand(len(total), 1, generator=generator, dtype=total.dtype) * total[:, -1:]
    return torch.searchsorted(total, u).squeeze(1).clamp_max(total.shape[1] - 1)


# -- trees of numbers on a grid --------------------------------------------------------------------


def walk_on_grid(
    parents: list[int | None],
    scale: float,
    log_local: Tensor,
    grid: Tensor,
    known: dict[int, Tensor],
    n: int,
    generator: Generator,
) -> Tensor:
    """n draws of the numbers of a tree, (n, k).

    Args:
        parents: the parent of each number, which comes before it; None: the root, about 0.
        scale: the standard deviation of a number about its parent.
        log_local: the log likelihood of each number, (k, cells), of the data that depend on it.
        grid: the centres of the cells, evenly spaced.
        known: the numbers that are given.
    """
    step = float(grid[1] - grid[0])
    between = _between(float(grid[-1] + step / 2), len(grid), scale)
    below = log_local.clone()
    for j in reversed(range(len(parents))):
        if (up := parents[j]) is None:
            continue
        if j in known:
            below[up] += Normal(grid, scale).log_prob(known[j])
        else:
            below[up] += (between + below[j]).logsumexp(1)
    drawn: list[Tensor] = []
    for j, up in enumerate(parents):
        if j in known:
            drawn.append(known[j].expand(n))
            continue
        mean = grid.new_zeros(n) if up is None else drawn[up]
        law = Normal(mean.unsqueeze(1), scale).log_prob(grid) + below[j]
        place = torch.rand(n, generator=generator, dtype=grid.dtype) - 0.5
        drawn.append(grid[chosen_rows(law, generator)] + step * place)
    return torch.stack(drawn, 1)


def _grid(half: float, cells: int) -> Tensor:
    return ((torch.arange(cells, dtype=torch.float64) + 0.5) / cells * 2 - 1) * half


@functools.cache
def _between(half: float, cells: int, scale: float) -> Tensor:
    """log p(number | parent) on the grid, (parent, number)."""
    grid = _grid(half, cells)
    return Normal(grid.unsqueeze(1), scale).log_prob(grid)


def of_tree(given: Tensor, z: Tensor, n: int, generator: Generator) -> Tensor:
    grid = _grid(8.0, 1000)
    means = tree_means(grid, grid)
    log_local = grid.new_zeros(3, len(grid))
    for j, (mean, scale) in enumerate(zip(means, TREE_SCALES, strict=True)):
        if given[3 + j]:
            log_local[1 if j < 2 else 2] += Normal(mean, scale).log_prob(z[3 + j])
    known = {j: z[j] for j in range(3) if given[j]}
    theta = walk_on_grid([None, 0, 0], 1.0, log_local, grid, known, n, generator)
    data = torch.stack(tree_means(theta[:, 1], theta[:, 2]), 1)
    return torch.cat([theta, normal(data, z.new_tensor(TREE_SCALES), generator)], 1)


def of_hidden_markov(given: Tensor, z: Tensor, n: int, generator: Generator) -> Tensor:
    grid = _grid(8.0, 1000)
    log_local = grid.new_zeros(LENGTH, len(grid))
    for j in range(LENGTH):
        if given[LENGTH + j]:
            log_local[j] = Normal(grid.square(), DATA_SCALE).log_prob(z[LENGTH + j])
    known = {j: z[j] for j in range(LENGTH) if given[j]}
    parents = [None, *range(LENGTH - 1)]
    theta = walk_on_grid(parents, HIDDEN_SCALE, log_local, grid, known, n, generator)
    return torch.cat([theta, normal(theta.square(), DATA_SCALE, generator)], 1)


# -- SLCP ------------------------------------------------------------------------------------------

CELLS, LEAST = 80, 0.01
"""The cells of the grid along each number of the covariance, and the least size of θ_2 and θ_3 from
which on cells grow with it. Their squares are scales, which data show up to a factor."""
PROPOSALS = 200_000
"""The number of draws that are weighted at first; more are where few of them count."""


def slcp_edges(j: int) -> Tensor:
    """The edges of the cells of θ_2, θ_3 or θ_4, j = 0, 1, 2, (cells + 1,)."""
    if j == 2:
        return torch.linspace(-BOX, BOX, CELLS + 1, dtype=torch.float64)
    ends = math.log(LEAST), math.log(BOX)
    sizes = torch.linspace(*ends, CELLS // 2, dtype=torch.float64).exp()
    sizes[-1] = BOX
    return torch.cat([-sizes.flip(0), sizes.new_zeros(1), sizes])


def slcp_means(theta: Tensor, given: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The log weight of the covariance, (n,), and the mean and the root of the unknown means.

    Args:
        theta: the three numbers of the covariance, (n, 3).
    """
    data = z[5:].unflatten(0, (4, 2))[given[5:].unflatten(0, (4, 2))[:, 0]]
    k, unknown = len(data), (~given[:2]).nonzero().squeeze(1)
    precision = torch.linalg.inv(covariance(theta))
    known = torch.where(given[:2], z[:2], 0)
    rest = data - known
    log_weight = 0.5 * k * torch.logdet(precision)
    log_weight = log_weight - 0.5 * torch.einsum("ki,nij,kj->n", rest, precision, rest)
    if not k or not len(unknown):
        nothing = theta.new_zeros(len(theta), 0)
        return log_weight, nothing, nothing.unsqueeze(-1)
    K = k * precision[:, unknown][:, :, unknown]
    b = (precision @ rest.sum(0))[:, unknown]
    root = torch.linalg.cholesky(torch.linalg.inv(K))
    half = (root.mT @ b.unsqueeze(-1)).squeeze(-1)
    log_weight = log_weight + 0.5 * half.square().sum(1)
    log_weight = log_weight + root.diagonal(dim1=-2, dim2=-1).log().sum(1)
    return log_weight, (root @ half.unsqueeze(-1)).squeeze(-1), root


def of_slcp(
    given: Tensor, z: Tensor, n: int, generator: Generator, proposals: int | None = None
) -> Tensor:
    proposals = PROPOSALS if proposals is None else proposals

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    free = (~given[2:5]).nonzero().squeeze(1)
    any_data = bool(given[5:].any())
    if any_data and len(free):
        # cells by their weight, and by its root, so that weights stay small between centres
        edges = [slcp_edges(int(j)) for j in free]
        low = torch.cartesian_prod(*[e[:-1] for e in edges]).reshape(-1, len(free))
        size = torch.cartesian_prod(*[e.diff() for e in edges]).reshape(-1, len(free))
        whole = z[2:5].repeat(len(low), 1)
        whole[:, free] = low + size / 2
        log_weight, log_size = slcp_means(whole, given, z)[0], size.log().sum(1)
        chance = 0.6 * (log_weight + log_size).softmax(0)
        chance = chance + 0.3 * (0.5 * log_weight + log_size).softmax(0) + 0.1 / len(low)
        places = (uniform(proposals) * chance.sum()).contiguous()
        cell = torch.searchsorted(chance.cumsum(0), places).clamp_max(len(low) - 1)
        theta = z[2:5].repeat(proposals, 1)
        theta[:, free] = low[cell] + uniform(proposals, len(free)) * size[cell]
        log_weight, mean, root = slcp_means(theta, given, z)
        log_weight = log_weight - (chance.log() - log_size)[cell]
    else:
        m = max(50 * n, proposals // 4) if any_data else n
        theta = z[2:5].repeat(m, 1)
        theta[:, free] = (2 * uniform(m, len(free)) - 1) * BOX
        log_weight, mean, root = slcp_means(theta, given, z)
    means = z[:2].repeat(len(theta), 1)
    unknown = (~given[:2]).nonzero().squeeze(1)
    if any_data and len(unknown):
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
        means[:, unknown] = mean + (root @ noise.unsqueeze(-1)).squeeze(-1)
        inside = (means.abs() < BOX).all(1)
        log_weight = torch.where(inside, log_weight, -math.inf)
    else:
        means[:, unknown] = (2 * uniform(len(theta), len(unknown)) - 1) * BOX
    if any_data:
        weight = log_weight.softmax(0)
        effective = float(1 / weight.square().sum())
        if effective < 5 * n:
            if proposals > 50 * PROPOSALS:
                raise RuntimeError(f"{effective:.0f} effective proposals for {n} draws")
            return of_slcp(given, z, n, generator, 8 * proposals)
        rows = torch.multinomial(weight, n, replacement=True, generator=generator)
    else:
        rows = torch.arange(n)
    theta, means = theta[rows], means[rows]
    noise = torch.randn(n, 4, 2, 1, generator=generator, dtype=theta.dtype)
    deviation = (torch.linalg.cholesky(covariance(theta)).unsqueeze(1) @ noise).squeeze(-1)
    return torch.cat([means, theta, (means.unsqueeze(1) + deviation).flatten(1)], 1)


# -- two moons -------------------------------------------------------------------------------------


def of_two_moons(given: Tensor, z: Tensor, n: int, generator: Generator) -> Tensor:
    if int((~given).sum()) == 1:
        j = int((~given).nonzero())
        whole = z.repeat(100_000, 1)
        whole[:, j] = _grid(2.0, len(whole))
        place = torch.rand(n, generator=generator, dtype=z.dtype) - 0.5
        law = log_two_moons(whole).unsqueeze(0)
        total = (law - law.max()).exp().cumsum(1).squeeze(0)
        u = torch.rand(n, generator=generator, dtype=z.dtype) * total[-1]
        drawn = z.repeat(n, 1)
        drawn[:, j] = whole[torch.searchsorted(total, u), j] + place * 4.0 / len(whole)
        return drawn
    parts: list[Tensor] = []
    while sum(map(len, parts)) < n:
        parts.append(_two_moons(given, z, 20 * n, generator))
    return torch.cat(parts)[:n]


def _two_moons(given: Tensor, z: Tensor, m: int, generator: Generator) -> Tensor:
    """Draws of z by m draws of the noise, of which those outside of the square are left out."""

    def uniform() -> Tensor:
        return torch.rand(m, generator=generator, dtype=z.dtype)

    angle = (uniform() - 0.5) * math.pi
    radius = normal(z.new_full((m,), RADIUS), WIDTH, generator)
    across, along = radius * angle.cos() + OFFSET, radius * angle.sin()
    first, second = (torch.where(given[j], z[j], 2 * uniform() - 1) for j in range(2))
    # with s = (θ_0 + θ_1)/√2 and d = (θ_1 - θ_0)/√2, x_0 = across - |s| and x_1 = along + d
    sign = torch.where(uniform() < 0.5, -1.0, 1.0)
    size, d = across - z[2], z[3] - along
    s = sign * size
    free = ~given[:2]
    valid = torch.ones(m, dtype=torch.bool)
    root = math.sqrt(2)
    if given[2] and given[3]:
        first, second = (s - d) / root, (s + d) / root
    elif given[2] and bool(free.all()):
        d = (2 * uniform() - 1) * root  # is uniform where s and d are inside of the square
        first, second = (s - d) / root, (s + d) / root
    elif given[3] and bool(free.all()):
        s = (2 * uniform() - 1) * root
        first, second = (s - d) / root, (s + d) / root
    elif given[2]:
        first, second = (root * s - second, second) if free[0] else (first, root * s - first)
    elif given[3]:
        first, second = (second - root * d, second) if free[0] else (first, first + root * d)
    if given[2]:
        valid = size > 0
    theta = torch.stack([first, second], 1)
    x = torch.stack([across, along], 1) + shift(theta)
    return torch.cat([theta, x], 1)[valid & (theta.abs() < 1).all(1)]


SAMPLERS: dict[str, Sampler] = {
    "tree": of_tree,
    "hmm": of_hidden_markov,
    "two_moons": of_two_moons,
    "slcp": of_slcp,
}


def reference(name: str, task: Task, given: Tensor, z: Tensor, n: int, seed: int) -> Tensor:
    """n draws of z given some of its numbers, (n, d) float64, with those as they are."""
    z = z.double()
    drawn = SAMPLERS[name](given, z, n, torch.Generator().manual_seed(seed))
    assert drawn.shape == (n, task.numbers)
    return torch.where(given, z, drawn)
