"""Simulators for ``inference.posterior``: Pyro programs, with their exact posteriors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["Simulator"]


class Simulator(NamedTuple):
    """A Pyro program without arguments, with the names of its parameters' and data's sites."""

    program: Callable[[], Any]
    latent: tuple[str, ...]
    observed: tuple[str, ...]
    log_posterior: Callable[[dict[str, Tensor]], Tensor] | None = None
    """log p(θ | x), (n,), for draws of all sites by name, (n, …); None: unknown."""
    vectorized: bool = False
    """Whether the program may be run in a plate."""
