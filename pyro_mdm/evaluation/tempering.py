"""Sequential Monte Carlo by tempering: draws of a distribution, and its normalizing constant.

From draws of a prior p_0 particles go to p_0 L through the distributions proportional to

    p_0(u) L(u)^β,    β from 0 to 1.

At each step particles are weighted and resampled, and then moved by Metropolis steps that leave the
distribution invariant. β is chosen for the effective sample size of the weights. The product of the
mean weights estimates the normalizing constant. Particles are in groups, which share only β and the
scales of moves, and the spread of the groups' constants gives the error.

A move adds a multiple of the difference of two other particles (ter Braak, "A Markov chain Monte
Carlo version of the genetic algorithm Differential Evolution", Statistics and Computing 2006). So
moves have the directions and scales of the distribution, and some jump from mode to mode. The two
particles are from the half of the group that is not moved. In more than about ten dimensions such
moves are too slow, and particles collapse; moves by Hamiltonian dynamics, which need gradients, do
not.

Source: Del Moral, Doucet & Jasra, "Sequential Monte Carlo samplers", JRSS B 2006; with adaptive
temperatures Jasra et al., Scandinavian Journal of Statistics 2011. Neal, "MCMC using Hamiltonian
dynamics", 2011.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mdm.budgets import Budget
from pyro_mdm.evaluation.weights import of_repeats
from pyro_mdm.support.measured import Measured

__all__ = ["GROUPS", "Density", "TemperedParticles", "temper"]

GROUPS = 8
"""The number of groups of particles, whose spread is the error of the normalizing constant."""
KEPT = 0.5
"""The effective fraction of the particles after a step of β."""
ACCEPTED = 0.3
"""The accepted fraction of moves that scales are adapted to."""
SCALES = (-2.5, 0.5)
"""The logs of the factors between which scales of moves are drawn, as a distribution may be narrow
in some places and wide in others."""
JUMPS = 0.1
"""The fraction of moves that jump by a whole difference, from mode to mode."""
ACCEPTED_LEAPS = 0.7
"""The accepted fraction of Hamiltonian moves that the sizes of their steps are adapted to."""
FIRST_SIZE, SIZES = 0.3, (1e-4, 2.0)
"""The size of a leapfrog step at first, in units of the spread, and its limits."""
JITTER = 1e-3
"""The noise of moves, in standard deviations, so that no particle stays on a line."""

Density = Callable[[Tensor], Tensor]
"""The log density of particles (n, d), (n,), nats."""


class TemperedParticles(NamedTuple):
    """The particles of sequential Monte Carlo, with the normalizing constant."""

    values: Tensor  # (groups, n, d)
    log_weights: Tensor  # (groups,), log weights of groups: their log normalizing constants, nats
    effective: float  # the least effective fraction of the particles after a step of β
    acceptance: float  # the accepted fraction of the moves by differences at the last β
    steps: int  # the number of steps of β

    @property
    def log_constant(self) -> Measured:
        """The log normalizing constant, nats, with its error by the spread among groups."""
        return of_repeats(self.log_weights)

    def draws(self, n: int) -> Tensor:
        """n draws from all groups by systematic resampling, in random order, (n, d)."""
        log_weights = self.log_weights.unsqueeze(1).expand(self.values.shape[:2])
        return self.values.flatten(0, 1)[_systematic(log_weights.reshape(1, -1), n)[0]][
            torch.randperm(n)
        ]


def temper(
    particles: Tensor,
    prior: Density,
    likelihood: Density,
    *,
    moves: float = 5.0,
    most: int = 60,
    leaps: int = 0,
    budget: Budget | None = None,
) -> TemperedParticles:
    """Draws of p_0 L, up to its normalization, from draws of p_0.

    Args:
        particles: draws of the prior, (groups, n, d), n even.
        prior: the log density log p_0, which need not be normalized.
        likelihood: the log density log L; NaN counts as -∞.
        moves: the mean number of accepted moves of a particle after a step of β that leaves half
            of the particles effective. A smaller step has fewer moves. The last step has further
            moves, as many as for the whole way in one step.
        most: the largest number of moves after a step of β.
        leaps: the number of leapfrog steps of a Hamiltonian move, which follows every move by
            differences and needs densities with gradients; 0: none.
        budget: the seconds after which there is one move after a step of β; None: no limit.

    Raises:
        ValueError: a likelihood that is 0 at all particles of a group.
    """
    law = _Law(particles, prior, likelihood, leaps)
    if not bool((law.gain > -math.inf).any(1).all()):
        raise ValueError(
            "the data, or the given parameters, have the density 0 at all parameters that were "
            "drawn from the prior, expected values that the program can make; check their units, "
            "or draw more particles"
        )
    log_weights = particles.new_zeros(len(particles), dtype=torch.float64)
    effective, steps, scale, accepted = 1.0, 0, 1.0, math.nan
    whole, beta = float(_effective(law.gain).mean()), 0.0
    while beta < 1:
        after = _next(beta, law.gain)
        step = (after - beta) * law.gain
        left = float(_effective(step).mean())
        log_weights = log_weights + step.logsumexp(1) - math.log(step.shape[1])
        law.choose(_systematic(step, step.shape[1]))
        beta, steps, effective = after, steps + 1, min(effective, left)
        lost = min(1.0, (1 - left) / KEPT) + (min(1.0, (1 - whole) / KEPT) if beta == 1 else 0)
        scale, accepted = law.move(beta, scale, lost * moves, most, budget)
    return TemperedParticles(law.u, log_weights, effective, accepted, steps)


def _effective(log_weights: Tensor) -> Tensor:
    """The effective fraction of particles with log weights (groups, n), (groups,)."""
    one, two = log_weights.logsumexp(1), (2 * log_weights).logsumexp(1)
    return (2 * one - two).exp() / log_weights.shape[1]


def _next(beta: float, gain: Tensor) -> float:
    """The next β, at most 1, that leaves enough particles effective, by bisection."""
    low, high = beta, 1.0

    def is_enough(after: float) -> bool:
        return float(_effective((after - beta) * gain).mean()) >= KEPT

    if is_enough(high):
        return high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if is_enough(middle) else (low, middle)
    return high  # above low, so that β grows even where weights are 0 for most


def _systematic(log_weights: Tensor, n: int) -> Tensor:
    """The indices (groups, n) of particles resampled by log weights (groups, m)."""
    cumulative = log_weights.softmax(1).cumsum(1)
    start = torch.rand(len(cumulative), 1, dtype=cumulative.dtype)
    at = (torch.arange(n, dtype=cumulative.dtype) + start) / n
    return torch.searchsorted(cumulative, at * cumulative[:, -1:]).clamp_max(
        cumulative.shape[1] - 1
    )


class _Law:
    """Particles with their densities under prior and likelihood, (groups, n), float64."""

    def __init__(self, u: Tensor, prior: Density, likelihood: Density, leaps: int) -> None:
        self.u, self._prior, self._likelihood = u, prior, likelihood
        self._leaps, self._size = leaps, FIRST_SIZE
        self.log_p, self.gain = self._evaluated(prior, u), self._evaluated(likelihood, u)

    @staticmethod
    def _evaluated(density: Density, u: Tensor) -> Tensor:
        """A log density at u (groups, n, d), (groups, n) float64."""
        value = density(u.flatten(0, 1)).double().reshape(u.shape[:2])
        return value.nan_to_num(nan=-math.inf, posinf=-math.inf, neginf=-math.inf)

    def choose(self, places: Tensor) -> None:
        """Replace the particles by those with the given indices, (groups, n)."""
        self.u = self.u.gather(1, places.unsqueeze(-1).expand_as(self.u))
        self.log_p, self.gain = self.log_p.gather(1, places), self.gain.gather(1, places)

    def move(
        self, beta: float, scale: float, moves: float, most: int, budget: Budget | None
    ) -> tuple[float, float]:
        """Move the particles by Metropolis steps; return the adapted scale of differences, and the
        accepted fraction of the moves."""
        total, shares = 0.0, list[float]()
        # resampled particles are copies of each other until they have moved
        order = torch.rand(self.u.shape[:2]).argsort(1)
        self.choose(order)
        spread = self.u.flatten(0, 1).std(0)
        half = self.u.shape[1] // 2
        halves = slice(half), slice(half, None)
        for _ in range(most):
            both = [
                self._moved(beta, scale, places, self.u[:, other], spread)
                for places, other in (halves, halves[::-1])
            ]
            share = sum(both) / 2
            scale = min(max(scale * math.exp(share - ACCEPTED), 1e-3), 4.0)
            moved = max(share, self._slid(beta, spread)) if self._leaps else share
            total, shares = total + moved, [*shares, share]
            if total >= moves or (budget is not None and budget.share == 1):
                break
        return scale, sum(shares) / len(shares)

    def _moved(
        self, beta: float, scale: float, places: slice, other: Tensor, spread: Tensor
    ) -> float:
        """Move the particles of one half by differences of the others, (groups, n/2, d)."""
        u = self.u[:, places]
        n, m, d = u.shape[1], other.shape[1], u.shape[2]
        first = torch.randint(m, u.shape[:2])
        second = (first + torch.randint(1, m, u.shape[:2])) % m
        rows = torch.arange(len(u)).unsqueeze(1)
        apart = other[rows, first] - other[rows, second]
        low, high = SCALES
        factor = (low + (high - low) * torch.rand(len(u), n, 1)).exp()
        # 2.38 / √(2 d) is optimal for differences of a Gaussian (ter Braak)
        factor = scale * 2.38 / math.sqrt(2 * d) * factor
        factor = torch.where(torch.rand(len(u), n, 1) < JUMPS, 1.0, factor)
        there = u + factor * apart + JITTER * spread * torch.randn_like(u)
        return float(self._taken(beta, places, there, 0.0).double().mean())

    def _taken(self, beta: float, places: slice, there: Tensor, gain: Tensor | float) -> Tensor:
        """Take proposed values, or not, by the density at β and a gain that the proposal adds."""
        log_p, likelihood = (self._evaluated(f, there) for f in (self._prior, self._likelihood))
        here = self.log_p[:, places] + beta * self.gain[:, places]
        gained = log_p + beta * likelihood - here + gain
        is_accepted = torch.rand(gained.shape, dtype=gained.dtype).log() < gained
        self.u[:, places] = torch.where(is_accepted.unsqueeze(-1), there, self.u[:, places])
        for mine, theirs in ((self.log_p, log_p), (self.gain, likelihood)):
            mine[:, places] = torch.where(is_accepted, theirs, mine[:, places])
        return is_accepted

    def _slid(self, beta: float, spread: Tensor) -> float:
        """Move all particles by Hamiltonian dynamics, with masses 1/spread²; return the accepted
        fraction."""
        u, p = self.u, torch.randn_like(self.u)
        energy = p.square().sum(-1)
        step = self._size * (0.5 + torch.rand(*u.shape[:2], 1)) * spread
        slope = self._slope(beta, u)
        for _ in range(self._leaps):
            p = p + step / 2 * slope
            u = u + step * p
            slope = self._slope(beta, u)
            p = p + step / 2 * slope
        lost = (energy - p.square().sum(-1)).double() / 2
        accepted = float(self._taken(beta, slice(None), u, lost).double().mean())
        size = self._size * math.exp(accepted - ACCEPTED_LEAPS)
        self._size = min(max(size, SIZES[0]), SIZES[1])
        return accepted

    def _slope(self, beta: float, u: Tensor) -> Tensor:
        """The gradient of the log density at β, (groups, n, d); 0 where there is none."""
        with torch.enable_grad():
            x = u.flatten(0, 1).detach().requires_grad_()
            log_p = self._prior(x) + beta * self._likelihood(x)
            (slope,) = torch.autograd.grad(log_p.sum(), x)
        return slope.nan_to_num(0.0, 0.0, 0.0).view(u.shape)
