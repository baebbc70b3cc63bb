r"""A density of training times that is higher where gradients vary more.

The diffusion term is an integral over u in [0, 1], the fraction of the way in log SNR or log
volume. Uniform draws of u spend many network calls where gradients are near 0. Draws from another
density p, weighted by 1/p, have the same mean. The variance of a gradient g(u)/p(u) is least for p
∝ (E‖g‖²)^½, which is estimated during training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pyro_mdm.support.modules import ExactBuffers

__all__ = ["AdaptiveDensity", "watching"]

BINS = 24
MEMORY = 0.98
"""The factor on a running sum at each step: about the last 50 steps count."""
FLOOR = 0.1
"""The least density, so that a weight is 10 at most and every bin is drawn now and then."""


class AdaptiveDensity(ExactBuffers):
    r"""A density over fractions u of the way, from the gradients of earlier steps.

    It is constant in each of 24 bins, p_b = 0.1 + 0.9 r_b / mean(r), where r_b² is a running mean
    of ‖∂h/∂F‖² for the integrand h and the network's output F of draws in the bin; uniform at
    first. A step is drawn by the density of earlier steps, and its weights are 1/p, so that every
    estimate is unbiased. (Kingma et al., "Variational Diffusion Models", 2021, learn a schedule at
    which the loss itself varies least.)

    Attributes:
        automatic: whether a backward pass counts from the next draw on. Where a batch is drawn in
            pieces, set it to False and call :meth:`update` once for the whole batch.
    """

    squares: Tensor
    counts: Tensor
    watched: tuple[Tensor, Tensor] | None = None
    """The fractions of the way and weights of the draws whose gradients are watched."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic = True
        self.register_buffer("squares", torch.zeros(BINS, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(BINS, dtype=torch.float64))
        self._noted: Tensor | None = None  # no buffer: processes would share it unasked

    @property
    def density(self) -> Tensor:
        """p of each bin, (24,) float64, 1 on average."""
        if not bool(self.counts.gt(0).all()) or not bool(self.squares.gt(0).any()):
            return torch.ones_like(self.squares)
        r = (self.squares / self.counts).sqrt()
        return FLOOR + (1 - FLOOR) * r / r.mean()

    def place(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Fractions of the way with this density, and weights 1/p, from uniform numbers u (n,)."""
        if self.automatic:
            self.update()
        density = self.density.to(u.device)
        edges = torch.cat([density.new_zeros(1), density.cumsum(0) / BINS])
        b = (torch.searchsorted(edges, u, right=True) - 1).clamp(0, BINS - 1)
        width = density[b] / BINS  # of the numbers that fall into the bin
        inside = ((u - edges[b]) / width).clamp(0, 1)
        return (b + inside) / BINS, 1 / density[b]

    def watch(self, output: Tensor, u: Tensor, weight: Tensor) -> None:
        """Record gradients when a backward pass reaches the network's output.

        Args:
            output: output F of the network, (≥ n, …), whose first n rows are those of the data.
            u: fractions of the way of the draws, (n,), as :meth:`place` gives them.
            weight: weights 1/p of the draws, (n,).
        """

        u, weight = u.to(output.device), weight.to(output.device)

        def note(gradient: Tensor) -> None:
            # float64, in which squares of small gradients do not underflow
            rows = gradient[: len(u)].flatten(1).double().square().sum(1)
            self.note(u, rows * weight.square().reciprocal())

        output.register_hook(note)

    def note(self, u: Tensor, squares: Tensor) -> None:
        """Add squared norms (n,) of gradients at u (n,) to those of the next update."""
        b = (u.detach() * BINS).long().clamp(0, BINS - 1)
        squares = squares.double()
        both = torch.stack([squares, torch.ones_like(squares)])
        if self._noted is None:
            self._noted = torch.zeros(2, BINS, dtype=torch.float64, device=u.device)
        finite = squares.isfinite()
        self._noted.index_add_(1, b[finite], both[:, finite])

    def update(self, reduce: Callable[[Tensor], Tensor] | None = None, unit: float = 1.0) -> None:
        """Update the density by the gradients noted since the last update.

        Args:
            reduce: function that sums a tensor over processes; None: one process.
            unit: factor of all gradients, which may differ from step to step.
        """
        noted, self._noted = self._noted, None
        if reduce is not None:
            noted = reduce(torch.zeros_like(self.density).repeat(2, 1) if noted is None else noted)
        if noted is None or not bool(noted.sum(1).gt(0).all()):
            return
        squares, counts = noted
        squares, counts = squares.to(self.squares), counts.to(self.counts)
        self.squares.mul_(MEMORY).add_(squares / unit**2)
        self.counts.mul_(MEMORY).add_(counts)


@contextmanager
def watching(density: AdaptiveDensity, u: Tensor, weight: Tensor) -> Iterator[None]:
    """A block in which a density sees gradients of the network's output for draws with weights."""
    density.watched = u, weight
    try:
        yield
    finally:
        density.watched = None
