"""Invertible maps of vectors, of which starts are made."""

from __future__ import annotations

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor
from torch.distributions import constraints

__all__ = ["VectorMap", "solved"]


class VectorMap(TransformModule):
    """An invertible map of vectors (…, dim), with parameters."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True


def solved(triangle: Tensor, y: Tensor) -> Tensor:
    """The solution x of triangle x = y, for a lower triangular matrix."""
    return torch.linalg.solve_triangular(triangle, y, upper=False)
