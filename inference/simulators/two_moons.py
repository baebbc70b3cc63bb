"""The two-moons simulator, whose posterior is two thin crescents.

θ is uniform on the square (-1, 1)², and x a point of a half circle of radius 0.1, with noise 0.01,
shifted by (-|θ_0 + θ_1|, θ_1 - θ_0)/√2 (Greenberg, Nonnenmacher & Macke, ICML 2019).
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from inference.simulators import Simulator

RADIUS, WIDTH, OFFSET = 0.1, 0.01, 0.25
"""The mean radius of a moon, its standard deviation, and the shift of its centre."""


def shift(theta: Tensor) -> Tensor:
    a, b = theta.unbind(-1)
    return torch.stack([-(a + b).abs(), b - a], -1) / math.sqrt(2)


def program() -> Tensor:
    """The simulator, with two parameters and two measurements."""
    square = dist.Uniform(-torch.ones(2), 1.0).to_event(1)
    theta = pyro.sample("theta", square)
    half_pi = torch.full(theta.shape[:-1], math.pi / 2)
    angle = pyro.sample("angle", dist.Uniform(-half_pi, half_pi))
    radius = pyro.sample("radius", dist.Normal(RADIUS * torch.ones_like(half_pi), WIDTH))
    point = torch.stack([radius * angle.cos() + OFFSET, radius * angle.sin()], -1)
    x: Tensor = pyro.deterministic("x", point + shift(theta))
    return x


def log_likelihood(theta: Tensor, x: Tensor) -> Tensor:
    """log p(x | θ), (*batch), for both (*batch, 2): from the density of radius r and angle."""
    p = x - shift(theta)
    u, v = p[..., 0] - OFFSET, p[..., 1]
    r = torch.hypot(u, v)
    log_p = -0.5 * ((r - RADIUS) / WIDTH).square() - math.log(WIDTH * math.sqrt(2 * math.pi))
    return torch.where(u > 0, log_p - math.log(math.pi) - r.log(), -math.inf)


def log_posterior(draws: dict[str, Tensor], cells: int = 2000) -> Tensor:
    """log p(θ | x), (n,), normalized by a sum over cells² points of the square."""
    theta, x = draws["theta"], draws["x"]
    edge = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells * 2 - 1
    grid = torch.cartesian_prod(edge, edge)
    log_p = []
    for one, datum in zip(theta.double(), x.double(), strict=True):
        evidence = log_likelihood(grid, datum).logsumexp(0) - 2 * math.log(cells)
        log_p.append(log_likelihood(one, datum) - math.log(4) - evidence)
    return torch.stack(log_p)


TWO_MOONS = Simulator(program, ("theta",), ("x",), log_posterior, vectorized=True)
