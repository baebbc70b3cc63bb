"""Diffusions as guides: chains that start at a Gaussian and end in the latents of a program.

A chain draws y_N, …, y_0 and takes x = (y_0)_x; the program is extended by a noising chain that
leads from x to y_N. In units of a Gaussian that has been fitted to the target, both are made of
steps of one linear diffusion at rest, any Q and D,

    r*(y_k | y_{k+1}) = N(M y_{k+1}, L Lᵀ),

which leaves N(0, Σ_∞) as it is. Its reversal is the noising chain r, so that with h = γ / N(0, I)

    log w = log h(x) - Σ_k log q(y_k | y_{k+1}) / r*(y_k | y_{k+1}),
    y_k = M y_{k+1} + L (a_k + σ_k ε),    a_k = Lᵀ (network(y_{k+1}, k) + g_k Bᵀ ∇log h(B y_{k+1})),

where B y is the mean of x given y at rest. A step's ratio is ½|ε|² - ½|a + σε|² + log σ with a minus
sign, nothing is inverted, and noise may be singular. With a = 0 and σ = 1 the guide is the Gaussian.

Source: Vargas, Grathwohl & Doucet, "Denoising Diffusion Samplers", 2023; Berner, Richter & Ullrich,
"An optimal control perspective on diffusion-based generative modeling", 2024.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyro_mdm.diffusions import LinearDiffusion
from tests.benchmarks.densities.base import Draws, Target

Gradient = Callable[[Tensor], tuple[Tensor, Tensor]]


class Units(NamedTuple):
    """x = mean + scale_tril u, of a Gaussian."""

    mean: Tensor
    scale_tril: Tensor

    def __call__(self, u: Tensor) -> Tensor:
        return self.mean + u @ self.scale_tril.mT

    def inverse(self, x: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.scale_tril, (x - self.mean).mT, upper=False).mT


class Steps(NamedTuple):
    """The steps of a diffusion at rest from noise (k = N) to data (k = 0)."""

    matrix: Tensor  # M (N, K, K), of the step from k + 1 to k
    scale_tril: Tensor  # L (N, K, K)
    ahead: Tensor  # B (N, K): the mean of x given y_{k+1} is B y_{k+1} at rest
    C: Tensor  # (N,): its variance


class Path(NamedTuple):
    """States of paths, and what their weights are made of."""

    states: Tensor  # (N + 1, n, K, d), from noise to data
    noise: Tensor  # a + σ ε (N, n, K, d)
    cost: Tensor  # Σ log q / r* (n,)
    gain: Tensor  # log h (n,)

    @property
    def log_weights(self) -> Tensor:
        return self.gain - self.cost


class Chain(nn.Module):
    """A guide of dim latents by a linear diffusion in a number of steps.

    Args:
        dim: of x.
        diffusion: with Σ_∞ whose entry of x is 1.
        steps: N.
        end: by how much x is told of the start, the correlation of x at both ends.
    """

    def __init__(
        self, dim: int, diffusion: LinearDiffusion, steps: int, width: int = 64, end: float = 0.02
    ) -> None:
        super().__init__()
        self.dim, self.steps, self.diffusion = dim, steps, diffusion
        K = self.K = diffusion.num_variables
        self.gaps = nn.Parameter(torch.zeros(steps))  # shares of time, learned
        self.log_time = nn.Parameter(torch.zeros(()))
        self.time = self._time(end)
        self.first = nn.Linear(2 * dim, width)
        self.told = nn.Parameter(torch.randn(steps, width) / 2)
        self.second = nn.Linear(width, width)
        self.told_again = nn.Parameter(torch.randn(steps, width) / 2)
        self.last = nn.Linear(width, dim)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.trust = nn.Parameter(torch.zeros(steps, dim))  # g
        self.log_scale = nn.Parameter(torch.zeros(steps, K, dim))  # log σ
        prior = torch.linalg.cholesky(diffusion.prior_covariance).float()
        self.register_buffer("prior", prior)

    def _time(self, end: float) -> float:
        """The time after which x has this correlation with its start."""
        times = torch.linspace(0, 1, 2001, dtype=torch.float64) * self.diffusion.horizon
        M = self.diffusion.transition(times[1:]).matrix[:, 0, 0].detach()
        beyond = (M.abs() > end).nonzero()
        return float(times[1:][min(int(beyond[-1]) + 1, len(M) - 1)])

    def times(self) -> Tensor:
        """s_0 = 0, …, s_N: long steps in the noise, and shorter ones at the data."""
        k = torch.arange(1, self.steps + 1, dtype=torch.float64)
        shares = (self.gaps.double() + k.sqrt().log()).softmax(0)
        total = self.time * self.log_time.double().exp()
        return torch.nn.functional.pad((total * shares).cumsum(0), (1, 0))

    def kernels(self) -> Steps:
        s = self.times()
        law = self.diffusion.transition(s[1:], s[:-1])
        to_data = self.diffusion.transition(s[1:])
        made = (law.matrix, law.scale_tril, to_data.matrix[:, 0], to_data.covariance[:, 0, 0])
        return Steps(*(t.float() for t in made))

    def control(self, z: Tensor, C: Tensor, k: Tensor | int, pull: Tensor) -> Tensor:
        """C^{-1} (x̂ - z) at z = B y (…, n, d), of variance C: network(z) / √C + g pull."""
        told, again, trust = self.told[k], self.told_again[k], self.trust[k]
        if isinstance(k, Tensor):
            told, again, trust = told[:, None], again[:, None], trust[:, None]
        root = C.sqrt()
        seen = (root * pull) 
        seen = seen / (1 + seen.square()/9).sqrt()
        hidden = torch.nn.functional.silu(self.first(torch.cat([z, seen], -1)) + told)
        hidden = hidden + torch.nn.functional.silu(self.second(hidden) + again)
        return (self.last(hidden) + trust * seen) / root

    def start(self, n: int) -> Tensor:
        return self.prior @ torch.randn(n, self.K, self.dim)

    def paths(self, gradient: Gradient, n: int) -> Path:
        """n paths; gradients pass through them where they are enabled."""
        steps = self.kernels()
        y = self.start(n)
        states, noises, cost = [y], [], y.new_zeros(n)
        for k in reversed(range(self.steps)):
            z = ahead(steps.ahead[k], y)
            _, pull = gradient(z)
            a = steps.scale_tril[k].mT @ behind(steps.ahead[k], self.control(z, steps.C[k], k, pull))
            epsilon = torch.randn_like(y)
            noise = a + self.log_scale[k].exp() * epsilon
            y = steps.matrix[k] @ y + steps.scale_tril[k] @ noise
            part = (noise.square() - epsilon.square()) / 2 - self.log_scale[k]
            cost = cost + part.sum((-2, -1))
            states.append(y)
            noises.append(noise)
        return Path(torch.stack(states), torch.stack(noises), cost, gradient(y[:, 0])[0])

    @torch.no_grad()
    def noised(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """States and noise of the noising chain from u (n, d), as of paths."""
        steps = Steps(*(t.double() for t in self.kernels()))
        rest = self.diffusion.prior_covariance
        inverse = torch.linalg.inv(rest)
        y = self.prior.double() @ torch.randn(len(u), self.K, self.dim, dtype=torch.float64)
        y[:, 0] = u
        # v given x at rest; x and v are independent there for the diffusions by name
        states, noises = [y], []
        for k in range(self.steps):
            back = rest @ steps.matrix[k].mT @ inverse
            root = torch.linalg.cholesky(rest - back @ rest @ back.mT)
            after = back @ y + root @ torch.randn_like(y)
            noise = torch.linalg.solve_triangular(
                steps.scale_tril[k], (y - steps.matrix[k] @ after), upper=False
            )
            y = after
            states.append(y)
            noises.append(noise)
        return torch.stack(states[::-1]).float(), torch.stack(noises[::-1]).float()

    def cost(self, path: Path, pulls: Tensor) -> Tensor:
        """Σ log q / r* (n,) of paths that are given, all steps at once."""
        steps = self.kernels()
        k = torch.arange(self.steps - 1, -1, -1)
        z = torch.einsum("sk,snkd->snd", steps.ahead[k], path.states[:-1])
        s = self.control(z, steps.C[k][:, None, None], k, pulls)
        a = steps.scale_tril[k][:, None].mT @ (steps.ahead[k][:, None, :, None] * s[:, :, None])
        log_scale = self.log_scale[k][:, None]
        epsilon = (path.noise - a) / log_scale.exp()
        part = (path.noise.square() - epsilon.square()) / 2 - log_scale
        return part.sum((0, -2, -1))


def ahead(B: Tensor, y: Tensor) -> Tensor:
    """B y, (K,) and (n, K, d) -> (n, d)."""
    return torch.einsum("k,nkd->nd", B, y)


def behind(B: Tensor, pull: Tensor) -> Tensor:
    """Bᵀ pull, (K,) and (n, d) -> (n, K, d)."""
    return B[:, None] * pull[:, None]
