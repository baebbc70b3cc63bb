"""Conditional sequential Monte Carlo: an exact draw that is kept among the particles.

With it, and n particles beside it, the inverse of the mean weight is unbiased for 1 / p(obs), so
that its logarithm bounds log p(obs) from above in expectation.

The draw has a place among the particles of its repeat. Systematic resampling takes the ancestors
of the numbers ``(k + u) / P`` for k = 0, …, P - 1 by the cumulative weights. With v uniform in the
draw's own interval of these, the draw stays as number ``k = ⌊P v⌋`` and the others have
``u = P v - k``.

Source: Andrieu, Doucet & Holenstein, "Particle Markov chain Monte Carlo methods", JRSS B 2010;
Grosse, Ghahramani & Adams, "Sandwiching the marginal likelihood using bidirectional Monte Carlo",
2015.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Kept", "Retained"]


class Retained(NamedTuple):
    """An exact draw of the path and the datum of a chain given obs."""

    states: Tensor  # (steps + 1, K, *event_shape) from T to ε, float64
    x: Tensor  # (*event_shape)


class Kept:
    """The retained draw among the particles of each repeat.

    Args:
        retained: the draw.
        repeats: number R of repeats.
        particles: number P of particles of each.
    """

    def __init__(self, retained: Retained, repeats: int, particles: int) -> None:
        self.states, self.x = retained
        device = self.states.device
        self.particles = particles
        self.first = particles * torch.arange(repeats, device=device).unsqueeze(1)
        self.place = torch.randint(particles, (repeats, 1), device=device)
        self._next = self.place

    @property
    def rows(self) -> Tensor:
        """The indices of the draw among all particles, (R,)."""
        return (self.first + self.place).flatten()

    def offset(self, weights: Tensor, uniform: Tensor) -> Tensor:
        """The offset u of systematic resampling in which the draw is resampled, (R, 1).

        Args:
            weights: normalized weights, (R, P).
            uniform: uniform numbers, (R, 1).
        """
        share = weights.gather(1, self.place)
        end = weights.cumsum(1).gather(1, self.place)
        v = self.particles * (end - share * uniform)
        self._next = v.floor().long().clamp(0, self.particles - 1)
        return (v - self._next).clamp(0, 1)

    def resampled(self, ancestors: Tensor, chosen: Tensor) -> Tensor:
        """The ancestors (R, P), of which the draw's is itself: rounding may name a neighbour.

        Args:
            ancestors: ancestors of each particle, (R, P).
            chosen: whether the particles of a repeat are resampled, (R, 1).
        """
        ancestors = ancestors.scatter(1, self._next, self.place)
        self.place = torch.where(chosen, self._next, self.place)
        return ancestors
