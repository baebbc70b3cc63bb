"""The target of a chain in its coordinates, in which the start is a standard normal."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor
from torch.distributions import Transform, constraints

__all__ = ["Branch", "Branches", "Ratio", "VectorMap", "solved"]

Density = Callable[[Tensor], Tensor]


class VectorMap(TransformModule):
    """An invertible map of vectors (…, dim), with parameters."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True


class Branch(VectorMap):
    """Maps w of u, both (n, dim), of n paths, with what a network sees of them, (n, …)."""

    beside: Tensor


class Branches(ABC):
    """A start of several maps, of which a path has one: another latent of the guide."""

    @abstractmethod
    def drawn(self, n: int) -> Branch:
        """The maps w of u, both (n, dim), of n paths, which are drawn."""

    @abstractmethod
    def drawn_at(self, w: Tensor) -> Branch:
        """The same for paths that end at w (n, dim), drawn given their ends."""


class Ratio:
    """log h = log γ - log N(0, I) of u (n, d), up to a constant, and its gradient.

    Args:
        log_density: function of x (n, d) that returns log γ, (n,). Without maps x is loc +
            scale_tril u.
        loc: location of the coordinates u, (d,).
        scale_tril: scale of the coordinates u, (d, d), lower triangular.
        shape: invertible map w of u; None: w = u. Its Jacobian is part of h. Or branches, before
            :meth:`of_paths` or :meth:`ending_at`.
        units: invertible map x of loc + scale_tril w; None: the identity. Its Jacobian is part too.
    """

    beside: tuple[Tensor, ...] = ()
    """Inputs of a chain's network beside its state and the gradient, (n, …) each."""

    def __init__(
        self,
        log_density: Density,
        loc: Tensor,
        scale_tril: Tensor,
        shape: Transform | Branches | None = None,
        units: Transform | None = None,
    ) -> None:
        self.log_density, self.loc, self.scale_tril = log_density, loc, scale_tril
        self.branches = shape if isinstance(shape, Branches) else None
        self.shape = None if isinstance(shape, Branches) else shape
        self.units = units

    def of_paths(self, n: int) -> Ratio:
        """The same for n paths, whose branches are drawn."""
        return self if self.branches is None else self._with(self.branches.drawn(n))

    def ending_at(self, x: Tensor) -> tuple[Ratio, Tensor]:
        """The same for paths that end at x (n, d), and their u (n, d)."""
        z = x if self.units is None else self.units.inv(x)
        w = solved(self.scale_tril, (z - self.loc).mT).mT
        same = self if self.branches is None else self._with(self.branches.drawn_at(w))
        return same, w if same.shape is None else same.shape.inv(w)

    def _with(self, shape: Branch) -> Ratio:
        made = copy.copy(self)
        made.shape, made.beside = shape, (shape.beside,)
        return made

    def place(self, u: Tensor) -> Tensor:
        """x of u."""
        return self.placed(u)[0]

    def placed(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """x of u, and the log determinant of both maps, (n,)."""
        w, log_det = u, torch.zeros_like(u[..., 0])
        if self.shape is not None:
            w = self.shape(u)
            log_det = log_det + self.shape.log_abs_det_jacobian(u, w)
        z = self.loc + w @ self.scale_tril.mT
        if self.units is None:
            return z, log_det
        x = self.units(z)
        return x, log_det + self.units.log_abs_det_jacobian(z, x)

    def log_unit(self, u: Tensor) -> Tensor:
        """log density of x for u of N(0, I), (n,)."""
        constant = u.shape[-1] * math.log(2 * math.pi)
        unit = -(u.square().sum(-1) + constant) / 2 - self.scale_tril.diagonal().log().sum()
        return unit - self.placed(u)[1]

    def __call__(self, u: Tensor) -> Tensor:
        x, log_det = self.placed(u)
        return self.log_density(x) + log_det + u.square().sum(-1) / 2

    def gradient(self, u: Tensor) -> Tensor:
        """∇log h, (n, d), through which gradients pass where they are enabled."""
        through = torch.is_grad_enabled()
        with torch.enable_grad():
            u = u if through and u.requires_grad else u.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self(u).sum(), u, create_graph=through)
        return slope


def solved(triangle: Tensor, y: Tensor) -> Tensor:
    """The solution x of triangle x = y, for a lower triangular matrix."""
    return torch.linalg.solve_triangular(triangle, y, upper=False)
