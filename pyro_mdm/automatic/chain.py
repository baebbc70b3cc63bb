r"""Chains of a linear diffusion from a Gaussian to an unnormalized density, and their weights.

A chain q draws y_N, …, y_0 and takes u = (y_0)_x. A noising chain r leads from u, and v_0 at rest,
back to y_N and extends the target γ, so that

    log w = log γ(u) + log N(v_0; 0, Σ_v) + Σ_k log r(y_{k+1} | y_k) - log N(y_N; 0, Σ_∞)
            - Σ_k log q(y_k | y_{k+1}),    E_q[w] = Z = ∫ γ.

Both are made of the steps of one linear diffusion at rest and of its reversal, whose matrix is -Q,

    r*(y_k | y_{k+1}) = N(M y_{k+1}, L Lᵀ),    r°(y_{k+1} | y_k) = N(R y_k, S Sᵀ),

with exact kernels. As r° is the reversal of r* at rest, no density is computed: a step whose noise
is ξ = a + σ ε instead of ε costs log q/r* = ½|ξ|² - ½|ε|² - log σ. With h = γ / N(0, I),

    log w = log h(u) - Σ_k (log q/r* - log r/r°),

which is constant for chains without controls where γ is a standard normal, for any Q and D.

Both chains feel b_k ∇log h(x_k), where b rises from 0 to 1. Its part by Q moves v alone and has
unit Jacobian: half before the step and half after it in q, and taken back in r. Its part by D adds
to a, and so does a network's u(y, k), which is subtracted in r.

Sources: Vargas, Grathwohl & Doucet, "Denoising Diffusion Samplers", 2023; Geffner & Domke,
"Langevin Diffusion Variational Inference", 2023; Vargas et al., "Transport meets Variational
Inference: Controlled Monte Carlo Diffusions", 2024; Blessing et al., "Underdamped Diffusion Bridges
with Applications to Sampling", 2025.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyro_mdm.automatic.maps import solved
from pyro_mdm.automatic.ratio import Ratio
from pyro_mdm.diffusions.kernels import KernelPrecisionError, lower_triangular
from pyro_mdm.diffusions.linear import LinearDiffusion, at_rest
from pyro_mdm.support.checks import check_values

__all__ = ["LIMIT", "SEEN", "Chain", "Path", "bounded"]

TIME = 4.0
"""The duration of all steps before training, in units of the clock."""
LIMIT = 8.0
"""The limit of an entry g of ∇log h, which enters chains as g / √(1 + (g / LIMIT)²)."""
STEEPEST = 1e9
"""The limit of an entry of ∇log h before its square, which would overflow in float32."""
SEEN = 3.0
"""The limit of an entry of ∇log h as an input of the network."""


class ChainKernels(NamedTuple):
    """The steps of a diffusion at rest from noise to data, and back; step k is that to y_k."""

    M: Tensor  # (N, K, K)
    L: Tensor  # (N, K, K)
    R: Tensor  # (N, K, K)
    S: Tensor  # (N, K, K)
    kick: Tensor  # (N, K): half of the step of a gradient by Q
    drift: Tensor  # (N, K): the step of a gradient by D, in units of L
    drift_back: Tensor  # (N, K): the same in units of S
    pace: Tensor  # (N,): root of a step's time


class Path(NamedTuple):
    """Ends of paths, and the costs of the paths."""

    u: Tensor  # (n, d)
    cost: Tensor  # Σ_k (log q/r* - log r/r°), (n,)


class Chain(nn.Module):
    """A chain of dim latents by a linear diffusion in N steps, whose times are learned.

    Args:
        dim: number d of latents.
        diffusion: diffusion of any K, with a Σ_∞ whose entry of x is 1 and whose others don't
            correlate with x. Its clock doesn't matter.
        steps: number N of steps.
        width: width of the network's two hidden layers.
        beside: number of further inputs of the network, which the ratio has.
    """

    def __init__(
        self, dim: int, diffusion: LinearDiffusion, steps: int, width: int = 64, beside: int = 0
    ) -> None:
        super().__init__()
        rest = diffusion.prior_covariance
        if not torch.allclose(rest[0], torch.eye(len(rest)).to(rest)[0], atol=1e-6):
            raise ValueError(
                f"the diffusion's Σ_∞ has the first row {rest[0].tolist()}, expected 1 for x and 0 "
                "for others; give it stationary_variance=1, e.g. VPSDE() or CLD()"
            )
        if not at_rest(diffusion):
            raise ValueError(
                f"the prior of {type(diffusion).__name__} is no stationary one, expected one: "
                "a chain begins at rest; give another diffusion, e.g. VPSDE() or CLD()"
            )
        self.dim, self.steps, self.diffusion = dim, steps, diffusion
        self.K = K = diffusion.num_variables
        self.gaps = nn.Parameter(torch.zeros(steps))
        self.log_time = nn.Parameter(torch.zeros(()))
        self.first = nn.Linear((K + 1) * dim + beside, width)
        self.second = nn.Linear(width, width)
        self.step_embedding = nn.Parameter(torch.randn(2, steps + 1, width) / 2)
        self.last = nn.Linear(width, K * dim)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.power = nn.Parameter(torch.empty(steps + 1, dim))  # b
        self.trust = nn.Parameter(torch.zeros(steps + 1, K, dim))
        self.log_scale = nn.Parameter(torch.zeros(steps, K, dim))  # log σ
        self.log_scale_back = nn.Parameter(torch.zeros(steps, K, dim))  # log σ of r
        self.reset()

    @property
    def _moving(self) -> tuple[Tensor, ...]:
        """Parameters that are 0 where the chain doesn't change N(0, I)."""
        network = (self.last.weight, self.last.bias)
        return (*network, self.power, self.trust, self.log_scale, self.log_scale_back)

    @torch.no_grad()
    def rest(self) -> None:
        """Make the chain one that doesn't change N(0, I)."""
        for parameter in self._moving:
            parameter.zero_()

    @torch.no_grad()
    def reset(self) -> None:
        """Make the chain one that follows the gradient alone, as before training."""
        self.rest()
        self.power.copy_(1 - torch.arange(self.steps + 1)[:, None] / self.steps)
        self.gaps.zero_()
        self.log_time.zero_()

    @property
    def is_at_rest(self) -> bool:
        """Whether the chain doesn't change N(0, I)."""
        return not any(bool(parameter.any()) for parameter in self._moving)

    @property
    def _stays(self) -> bool:
        """Whether paths need no steps: the chain is at rest, and nobody asks for its gradients."""
        return not torch.is_grad_enabled() and self.is_at_rest

    def kernels(self) -> ChainKernels:
        """The steps."""
        times = TIME * self.log_time.double().exp() * self.gaps.double().softmax(0)
        times = times.cpu()  # where the diffusion is
        move, start = self.diffusion.propagator, torch.zeros_like(times)
        M, _ = move.moments(start, times)
        L = lower_triangular(move.root(start, times).root)
        rest, D = self.diffusion.prior_covariance, move.noise(start[0]) / 2
        Q = -move.drift(start[0]) @ rest - D
        one = torch.eye(self.K, dtype=torch.float64, device=M.device)
        # Σ_∞ has an inverse, and so have Q + D and D - Q, whose diffusions come to rest: no checks
        R = rest @ M.mT @ torch.linalg.inv_ex(rest).inverse
        S = L if self.K == 1 else _cholesky(rest - R @ rest @ R.mT, times)
        made = (
            M,
            L,
            R,
            S,
            times[:, None] * Q[:, 0] / 2,
            solved(L, (one - M) @ rest @ torch.linalg.solve_ex(Q + D, D[:, :1]).result)[..., 0],
            solved(S, (one - R) @ rest @ torch.linalg.solve_ex(D - Q, D[:, :1]).result)[..., 0],
            times.sqrt(),
        )
        return ChainKernels(*(tensor.to(self.gaps) for tensor in made))

    def network(self, seen: Tensor, k: int) -> Tensor:
        """(n, inputs) -> (n, K d), at moment k."""
        embedding = self.step_embedding[:, k]
        hidden = nn.functional.silu(self.first(seen) + embedding[0])
        hidden = hidden + nn.functional.silu(self.second(hidden) + embedding[1])
        return self.last(hidden)

    def root(self) -> Tensor:
        """The Cholesky factor of Σ_∞."""
        root: Tensor = torch.linalg.cholesky_ex(self.diffusion.prior_covariance).L
        return root.to(self.gaps)

    def start(self, n: int) -> Tensor:
        """y_N at rest (n, K, d)."""
        return self.root() @ torch.randn(n, self.K, self.dim).to(self.gaps)

    def control(self, h: Ratio, y: Tensor, slope: Tensor, k: int) -> Tensor:
        """u (n, K, d), of states y and ∇log h there."""
        seen = bounded(slope, SEEN)
        u = self.network(torch.cat([y.flatten(1), seen, *h.beside], 1), k).view(y.shape)
        return u + self.trust[k] * seen[:, None]

    def paths(self, h: Ratio, n: int) -> Path:
        """n paths, through whose states gradients pass where they are enabled."""
        if self._stays:
            return Path(torch.randn(n, self.dim).to(self.gaps), self.gaps.new_zeros(n))
        kernels, root, y = self.kernels(), self.root(), self.start(n)
        slope = h.gradient(y[:, 0])
        u, pull = self.control(h, y, slope, self.steps), self.power[-1] * bounded(slope, LIMIT)
        total = y.new_zeros(n)
        for k in reversed(range(self.steps)):
            M, L, R, S, kick, drift, drift_back, pace = (tensor[k] for tensor in kernels)
            kicked = y + kick[:, None] * pull[:, None]
            epsilon = torch.randn_like(y)
            noise = drift[:, None] * pull[:, None] + pace * u + self.log_scale[k].exp() * epsilon
            moved = M @ kicked + L @ noise
            slope = h.gradient(moved[:, 0])
            pull = self.power[k] * bounded(slope, LIMIT)
            after = moved + kick[:, None] * pull[:, None]
            u = self.control(h, after, slope, k)
            back = solved(S, kicked - R @ moved)
            aim = drift_back[:, None] * pull[:, None] - pace * u
            epsilon_back = (back - aim) * (-self.log_scale_back[k]).exp()
            total = total + self._cost(k, noise, epsilon, back, epsilon_back)
            if self.K > 1:
                total = total + _kick_cost(root, y, kicked) + _kick_cost(root, moved, after)
            y = after
        return Path(y[:, 0], total)

    def _cost(
        self, k: int, noise: Tensor, epsilon: Tensor, back: Tensor, epsilon_back: Tensor
    ) -> Tensor:
        """log q/r* - log r/r° of step k by the noise of both directions, (n,)."""
        forth = _cost(noise, epsilon, self.log_scale[k])
        return forth - _cost(back, epsilon_back, self.log_scale_back[k])

    def noising_cost(self, h: Ratio, u: Tensor) -> Tensor:
        """Σ_k (log q/r* - log r/r°) of paths that r draws from their ends u (n, d), (n,)."""
        if self._stays:
            return u.new_zeros(len(u))
        kernels, root, after = self.kernels(), self.root(), self.start(len(u))
        after[:, 0] = u  # v_0 is at rest, and does not correlate with x
        slope = h.gradient(after[:, 0])
        pull, control = self.power[0] * bounded(slope, LIMIT), self.control(h, after, slope, 0)
        total = u.new_zeros(len(u))
        for k in range(self.steps):
            M, L, R, S, kick, drift, drift_back, pace = (tensor[k] for tensor in kernels)
            moved = after - kick[:, None] * pull[:, None]
            epsilon_back = torch.randn_like(after)
            aim = drift_back[:, None] * pull[:, None] - pace * control
            back = aim + self.log_scale_back[k].exp() * epsilon_back
            kicked = R @ moved + S @ back
            slope = h.gradient(kicked[:, 0])  # a kick moves v alone, so that x is that of y
            pull = self.power[k + 1] * bounded(slope, LIMIT)
            y = kicked - kick[:, None] * pull[:, None]
            control = self.control(h, y, slope, k + 1)
            noise = solved(L, moved - M @ kicked)
            a = drift[:, None] * pull[:, None] + pace * control
            epsilon = (noise - a) * (-self.log_scale[k]).exp()
            total = total + self._cost(k, noise, epsilon, back, epsilon_back)
            if self.K > 1:
                total = total + _kick_cost(root, y, kicked) + _kick_cost(root, moved, after)
            after = y
        return total


def _cholesky(covariance: Tensor, times: Tensor) -> Tensor:
    """The Cholesky factor of the covariances of steps of these times."""
    root, wrong = torch.linalg.cholesky_ex(covariance)

    def report() -> None:
        step = times[wrong > 0].min().item()
        raise KernelPrecisionError(
            f"a step of the chain has the time {step:.3g}, expected one whose noise float64 can "
            "hold; lower the learning rate, or take fewer steps"
        )

    check_values((wrong == 0).all(), report)
    return root


def _kick_cost(root: Tensor, y: Tensor, kicked: Tensor) -> Tensor:
    """log N(y; 0, Σ_∞) - log N(kicked; 0, Σ_∞), (n,): a kick has unit Jacobian."""
    return (solved(root, kicked).square() - solved(root, y).square()).sum((1, 2)) / 2


def _cost(noise: Tensor, epsilon: Tensor, log_scale: Tensor) -> Tensor:
    """log N(ξ; a, σ²) / N(ξ; 0, 1) of noise ξ = a + σ ε, summed over K and d."""
    return ((noise.square() - epsilon.square()) / 2 - log_scale).sum((-2, -1))


def bounded(slope: Tensor, limit: float) -> Tensor:
    """A gradient within its limit; 0 where it is NaN, whatever the density there."""
    slope = slope.nan_to_num().clamp(-STEEPEST, STEEPEST)
    return slope / (1 + (slope / limit).square()).sqrt()
