"""What the study of automatic guides passes around: targets, methods and what these give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

__all__ = ["Draws", "Fitted", "Method", "Modes", "Target"]

Density = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Modes:
    """The modes of a target: which mode x (n, dim) belongs to, (n,), and their probabilities."""

    of: Callable[[Tensor], Tensor]
    probabilities: Tensor


@dataclass(frozen=True)
class Target:
    """A Pyro program with its data, and what is known of its posterior.

    All latents are one unconstrained vector x (n, dim), in the order of the program's sites, as
    autoguides have it.

    Args:
        name: of the row.
        dim: of x.
        program: all data are inside.
        log_density: (n, dim) -> (n,), of the unconstrained x with Jacobians, unnormalized and
            differentiable; what Pyro computes.
        log_z: its log integral, where a closed form or quadrature gives it.
        exact: draws (n, dim) of a seed, where known.
        modes: where they can be told apart.
    """

    name: str
    dim: int
    program: Callable[[], None]
    log_density: Density
    log_z: float | None = None
    exact: Callable[[int, int], Tensor] | None = None
    modes: Modes | None = None


class Draws(NamedTuple):
    """x (n, dim), and log weights (n,) of which E[exp(log_weights)] = Z, or None."""

    x: Tensor
    log_weights: Tensor | None


@dataclass(frozen=True)
class Fitted:
    """What a method has after its time.

    Args:
        draw: (n, seed) -> draws.
        updates: of parameters, or moves.
        seconds: processor time that it took.
    """

    draw: Callable[[int, int], Draws]
    updates: int
    seconds: float


class Method(Protocol):
    """A fit to a target within an amount of processor time, in seconds."""

    def __call__(self, target: Target, seconds: float, seed: int) -> Fitted: ...
