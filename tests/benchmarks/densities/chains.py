r"""Diffusions as guides: chains that start at a Gaussian and end in the latents of a program.

A chain q draws y_N, …, y_0 and takes x = (y_0)_x. A noising chain r leads from x, and v_0 at rest,
back to y_N and extends the program, so that

    log w = log γ(x) + log N(v_0; 0, Σ_v) + Σ_k log r(y_{k+1} | y_k) - log π(y_N)
            - Σ_k log q(y_k | y_{k+1}),    E_q[w] = Z.

All is in units of a Gaussian that is fitted first: h = γ / N(0, I), and where h is constant, chains
without controls have constant weights, for any Q and D. Both chains are made of the steps of one
linear diffusion at rest and of its reversal, whose matrix is -Q,

    r*(y_k | y_{k+1}) = N(M y_{k+1}, L Lᵀ),    r°(y_{k+1} | y_k) = N(R y_k, S Sᵀ),

with exact kernels. As π r° = π r* step by step, densities are never computed: a step whose noise is
ξ = a + σ ε instead of ε costs log q/r* = ½|ξ|² - ½|ε|² - log σ.

**Reversal** (:class:`Reversal`): r is r°, and a_k = Lᵀ Bᵀ (x̂ - z) / C, with z = B y_{k+1} the mean
of x at rest given y_{k+1}, C its variance, and x̂ a network's of z and ∇log h(z): a denoiser.

**Annealing** (:class:`Annealing`): both feel b_k ∇log h(x_k), where b rises from 0 to 1. Its part
by Q moves v alone and has unit Jacobian: half before the step and half after it, in q, and taken
back in r. Its part by D adds to a, as a network's u(y, k) does in q; in r that is subtracted.

Sources: Vargas, Grathwohl & Doucet, "Denoising Diffusion Samplers", 2023; Geffner & Domke,
"Langevin Diffusion Variational Inference", 2023; Vargas et al., "Transport meets Variational
Inference: Controlled Monte Carlo Diffusions", 2024; Blessing et al., "Underdamped Diffusion Bridges
with Applications to Sampling", 2025.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyro_mdm.diffusions import LinearDiffusion
from tests.benchmarks.densities.base import Density

__all__ = ["Annealing", "Chain", "Ratio", "Reversal", "Units"]

LIMIT = 8.0
"""Of an entry of ∇log h, which chains feel as g / √(1 + (g / LIMIT)²)."""
SEEN = 3.0
"""The same of what a network is shown."""


class Units(NamedTuple):
    """x = mean + scale_tril u, of a Gaussian."""

    mean: Tensor
    scale_tril: Tensor

    def __call__(self, u: Tensor) -> Tensor:
        return self.mean + u @ self.scale_tril.mT

    def inverse(self, x: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.scale_tril, (x - self.mean).mT, upper=False).mT


class Ratio:
    """log h = log γ - log N(0, I) of u (n, dim) in units, and its gradient."""

    def __init__(self, log_density: Density, units: Units) -> None:
        self.log_density, self.units = log_density, units
        self.constant = float(units.scale_tril.diagonal().log().sum())
        self.constant += len(units.mean) / 2 * math.log(2 * math.pi)

    def __call__(self, u: Tensor) -> Tensor:
        return self.log_density(self.units(u)) + u.square().sum(-1) / 2 + self.constant

    def gradient(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """log h (n,) and ∇log h (n, dim), through which gradients pass if they do through u."""
        through = torch.is_grad_enabled()
        with torch.enable_grad():
            u = u if through and u.requires_grad else u.detach().requires_grad_()
            value = self(u)
            (slope,) = torch.autograd.grad(value.sum(), u, create_graph=through)
        return value, slope


class Kernels(NamedTuple):
    """The steps of a diffusion at rest from noise to data, and back; step k is y_{k+1} -> y_k."""

    M: Tensor  # (N, K, K)
    L: Tensor  # (N, K, K)
    R: Tensor  # (N, K, K)
    S: Tensor  # (N, K, K)
    kick: Tensor  # (N, K): half of what the gradient moves by Q
    drift: Tensor  # (N, K): what it moves by D, in units of L
    drift_back: Tensor  # (N, K): in units of S
    B: Tensor  # (N, K): the mean of x at rest given y_{k+1} is B y_{k+1}
    C: Tensor  # (N,): its variance
    pace: Tensor  # (N,): root of a step's time


class Chain(nn.Module):
    """A guide by a linear diffusion in N steps, whose times are learned.

    Args:
        dim: d, of x.
        diffusion: with Σ_∞ whose entry of x is 1.
        steps: N.
        time: of all steps at first.
        inputs, outputs: of the network.
        moments: at how many it is told apart.
    """

    def __init__(
        self,
        dim: int,
        diffusion: LinearDiffusion,
        steps: int,
        time: float,
        inputs: int,
        outputs: int,
        moments: int,
        width: int = 64,
    ) -> None:
        super().__init__()
        self.dim, self.steps, self.time, self.diffusion = dim, steps, time, diffusion
        self.K = diffusion.num_variables
        self.gaps = nn.Parameter(torch.zeros(steps))
        self.log_time = nn.Parameter(torch.zeros(()))
        self.first, self.second = nn.Linear(inputs, width), nn.Linear(width, width)
        self.told = nn.ParameterList(torch.randn(moments, width) / 2 for _ in range(2))
        self.last = nn.Linear(width, outputs)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.log_scale = nn.Parameter(torch.zeros(steps, self.K, dim))  # log σ

    def shares(self) -> Tensor:
        """Logarithms of the steps' shares of time, up to a constant."""
        return self.gaps.double()

    def kernels(self) -> Kernels:
        total = self.time * self.log_time.double().exp()
        s = torch.nn.functional.pad((total * self.shares().softmax(0)).cumsum(0), (1, 0))
        law, to_data = self.diffusion.transition(s[1:], s[:-1]), self.diffusion.transition(s[1:])
        rest, Q, D = self.diffusion.prior_covariance, self.diffusion.Q, self.diffusion.D
        M, L, one = law.matrix, law.scale_tril, torch.eye(self.K, dtype=torch.float64)
        R = rest @ M.mT @ torch.linalg.inv(rest)
        S = L if self.K == 1 else torch.linalg.cholesky(rest - R @ rest @ R.mT)
        made = (
            M,
            L,
            R,
            S,
            s.diff()[:, None] * Q[:, 0] / 2,
            _solved(L, (one - M) @ rest @ torch.linalg.solve(Q + D, D[:, :1]))[..., 0],
            _solved(S, (one - R) @ rest @ torch.linalg.solve(D - Q, D[:, :1]))[..., 0],
            to_data.matrix[:, 0],
            to_data.covariance[:, 0, 0],
            s.diff().sqrt(),
        )
        return Kernels(*(part.float() for part in made))

    def network(self, seen: Tensor, k: int | Tensor) -> Tensor:
        """(…, n, inputs) -> (…, n, outputs)."""
        told = [table[k] if isinstance(k, int) else table[k][:, None] for table in self.told]
        hidden = nn.functional.silu(self.first(seen) + told[0])
        hidden = hidden + nn.functional.silu(self.second(hidden) + told[1])
        return self.last(hidden)

    @property
    def root(self) -> Tensor:
        return torch.linalg.cholesky(self.diffusion.prior_covariance).float()

    def start(self, n: int) -> Tensor:
        """y_N at rest (n, K, d)."""
        return self.root @ torch.randn(n, self.K, self.dim)

    def log_rest(self, y: Tensor) -> Tensor:
        """log N(y; 0, Σ_∞) up to a constant, (n,)."""
        return -_solved(self.root, y).square().sum((-2, -1)) / 2


def _solved(triangle: Tensor, y: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(triangle, y, upper=False)


def cost(noise: Tensor, epsilon: Tensor, log_scale: Tensor) -> Tensor:
    """log N(ξ; a, σ²) / N(ξ; 0, 1) of noise ξ = a + σ ε, summed over K and d."""
    return ((noise.square() - epsilon.square()) / 2 - log_scale).sum((-2, -1))


def bounded(slope: Tensor, limit: float) -> Tensor:
    return slope / (1 + (slope / limit).square()).sqrt()


class Annealing(Chain):
    """A chain whose two directions feel the annealed target."""

    def __init__(self, dim: int, diffusion: LinearDiffusion, steps: int, time: float = 4.0) -> None:
        K = diffusion.num_variables
        super().__init__(dim, diffusion, steps, time, (K + 1) * dim, K * dim, steps + 1)
        rising = 1 - torch.arange(steps + 1) / steps
        self.power = nn.Parameter(rising[:, None].repeat(1, dim))  # b
        self.trust = nn.Parameter(torch.zeros(steps + 1, K, dim))
        self.log_scale_back = nn.Parameter(torch.zeros(steps, K, dim))

    def control(self, y: Tensor, slope: Tensor, k: int) -> Tensor:
        """u (n, K, d)."""
        seen = bounded(slope, SEEN)
        u = self.network(torch.cat([y.flatten(-2), seen], -1), k).view(y.shape)
        return u + self.trust[k] * seen[:, None]

    def paths(self, h: Ratio, n: int, through: bool = True) -> tuple[Tensor, Tensor]:
        """Ends u (n, d) of n paths, and their log weights (n,).

        Gradients pass through the states, or see these as given (``through=False``).
        """
        kernels = self.kernels()
        y = self.start(n)
        value, slope = self.asked(h, y, through)
        u, pull = self.control(y, slope, self.steps), self.power[-1] * bounded(slope, LIMIT)
        log_w = y.new_zeros(n)
        for k in reversed(range(self.steps)):
            M, L, R, S, kick, drift, drift_back, _, _, pace = (part[k] for part in kernels)
            kicked = y + kick[:, None] * pull[:, None]
            epsilon = torch.randn_like(y)
            a = drift[:, None] * pull[:, None] + pace * u
            noise = a + self.log_scale[k].exp() * epsilon
            moved = M @ kicked + L @ noise
            if not through:
                moved = moved.detach()
                noise = _solved(L, moved - M @ kicked)
                epsilon = (noise - a) / self.log_scale[k].exp()
            value, slope = self.asked(h, moved, through)
            pull = self.power[k] * bounded(slope, LIMIT)
            after = moved + kick[:, None] * pull[:, None]
            u = self.control(after, slope, k)
            back = _solved(S, kicked - R @ moved)
            aim = drift_back[:, None] * pull[:, None] - pace * u
            epsilon_back = (back - aim) * (-self.log_scale_back[k]).exp()
            log_w = log_w + cost(back, epsilon_back, self.log_scale_back[k])
            log_w = log_w - cost(noise, epsilon, self.log_scale[k])
            if self.K > 1:
                log_w = log_w + self.log_rest(kicked) - self.log_rest(y)
                log_w = log_w + self.log_rest(after) - self.log_rest(moved)
            y = after
        return y[:, 0], log_w + value

    def asked(self, h: Ratio, y: Tensor, through: bool) -> tuple[Tensor, Tensor]:
        """log h and ∇log h at x."""
        if through:
            return h.gradient(y[:, 0])
        with torch.no_grad():
            value, slope = h.gradient(y[:, 0].detach())
        return value.detach(), slope


class Reversal(Chain):
    """A chain that reverses the noising of a linear diffusion, by a denoiser."""

    def __init__(self, dim: int, diffusion: LinearDiffusion, steps: int, time: float = 8.0) -> None:
        super().__init__(dim, diffusion, steps, time, 2 * dim, dim, steps)
        self.trust = nn.Parameter(torch.zeros(steps, dim))

    def shares(self) -> Tensor:
        """Steps that are shorter at the data."""
        return super().shares() + torch.arange(1, self.steps + 1).double().log()

    def control(self, z: Tensor, slope: Tensor, C: Tensor, k: int | Tensor) -> Tensor:
        """(x̂ - z) / C (…, n, d)."""
        trust = self.trust[k] if isinstance(k, int) else self.trust[k][:, None]
        seen = bounded(C.sqrt() * slope, SEEN)
        return (self.network(torch.cat([z, seen], -1), k) + trust * seen) / C.sqrt()

    def paths(self, h: Ratio, n: int) -> tuple[Tensor, Tensor]:
        """Ends u (n, d) of n paths, and their log weights (n,)."""
        kernels = self.kernels()
        y = self.start(n)
        spent = y.new_zeros(n)
        for k in reversed(range(self.steps)):
            z = torch.einsum("k,nkd->nd", kernels.B[k], y)
            score = self.control(z, h.gradient(z)[1], kernels.C[k], k)
            a = kernels.L[k].mT @ (kernels.B[k][:, None] * score[:, None])
            epsilon = torch.randn_like(y)
            noise = a + self.log_scale[k].exp() * epsilon
            y = kernels.M[k] @ y + kernels.L[k] @ noise
            spent = spent + cost(noise, epsilon, self.log_scale[k])
        return y[:, 0], h(y[:, 0]) - spent

    def log_ratio(self, h: Ratio, u: Tensor) -> Tensor:
        """log q / r* (n,) of noising paths from u (n, d): its mean is the forward bound."""
        kernels = self.kernels()
        with torch.no_grad():
            y, noise = self.noised(kernels, u)
        z = torch.einsum("sk,snkd->snd", kernels.B, y)
        with torch.no_grad():
            slope = h.gradient(z.flatten(0, 1))[1].view(z.shape)
        score = self.control(z, slope, kernels.C[:, None, None], torch.arange(self.steps))
        a = kernels.L.mT[:, None] @ (kernels.B[:, None, :, None] * score[:, :, None])
        log_scale = self.log_scale[:, None]
        return cost(noise, (noise - a) / log_scale.exp(), log_scale).sum(0)

    def noised(self, kernels: Kernels, u: Tensor) -> tuple[Tensor, Tensor]:
        """y_{k+1} and ξ_k (N, n, K, d) of each step of noising paths, without gradients."""
        y = self.start(len(u))
        y[:, 0] = u
        states, noises = [], []
        for k in range(self.steps):
            after = kernels.R[k] @ y + kernels.S[k] @ torch.randn_like(y)
            noises.append(_solved(kernels.L[k], y - kernels.M[k] @ after))
            states.append(y := after)
        return torch.stack(states), torch.stack(noises)
