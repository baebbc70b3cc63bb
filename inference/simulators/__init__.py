"""Simulators for ``inference.posterior``: Pyro programs, with posteriors where they are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["Simulator"]


class Simulator(NamedTuple):
    """A Pyro program without arguments, and which of its sites are parameters and which data."""

    program: Callable[[], Any]
    latent: tuple[str, ...]
    observed: tuple[str, ...]
    log_posterior: Callable[[dict[str, Tensor]], Tensor] | None = None
    """log p(θ | x), (n,), of draws of all sites by name, (n, …), where it is known."""
    vectorized: bool = False
    """Whether the program may be run in a plate."""
