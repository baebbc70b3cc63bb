"""The target of a chain in its coordinates, in which the start is a standard normal."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Transform

from pyro_mdm.automatic.maps import solved
from pyro_mdm.automatic.mixture import Component, Mixture

__all__ = ["Ratio"]

Density = Callable[[Tensor], Tensor]


class Ratio:
    """log h = log γ - log N(0, I) of u (n, d), up to a constant, and its gradient.

    Args:
        log_density: function of x (n, d) that returns log γ, (n,). Without maps x is loc +
            scale_tril u.
        loc: location of the coordinates u, (d,).
        scale_tril: scale of the coordinates u, (d, d), lower triangular.
        shape: invertible map w of u; None: w = u. Its Jacobian is part of h. Or a mixture, before
            :meth:`of_paths` or :meth:`ending_at` choose a component for each path.
    """

    beside: tuple[Tensor, ...] = ()
    """Inputs of a chain's network beside its state and the gradient, (n, …) each."""

    def __init__(
        self,
        log_density: Density,
        loc: Tensor,
        scale_tril: Tensor,
        shape: Transform | Mixture | None = None,
    ) -> None:
        self.log_density, self.loc, self.scale_tril = log_density, loc, scale_tril
        self.mixture = shape if isinstance(shape, Mixture) else None
        self.shape = None if isinstance(shape, Mixture) else shape

    def of_paths(self, n: int) -> Ratio:
        """The same for n paths, whose components are drawn."""
        return self if self.mixture is None else self._with(self.mixture.drawn(n))

    def ending_at(self, x: Tensor) -> tuple[Ratio, Tensor]:
        """The same for paths that end at x (n, d), and their u (n, d)."""
        same = self if self.mixture is None else self._with(self.mixture.drawn_at(self.units(x)))
        return same, same.units(x)

    def units(self, x: Tensor) -> Tensor:
        """u of x (n, d); of a mixture, w."""
        w = solved(self.scale_tril, (x - self.loc).mT).mT
        return w if self.shape is None else self.shape.inv(w)

    def log_volume(self, u: Tensor) -> Tensor:
        """log |dx/du|, (n,)."""
        return self.placed(u)[1] + self.scale_tril.diagonal().log().sum()

    def _with(self, component: Component) -> Ratio:
        made = copy.copy(self)
        made.shape, made.beside = component, (component.beside,)
        return made

    def place(self, u: Tensor) -> Tensor:
        """x of u."""
        return self.placed(u)[0]

    def placed(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """x of u, and the log determinant of the shape, (n,)."""
        w, log_det = u, torch.zeros_like(u[..., 0])
        if self.shape is not None:
            w = self.shape(u)
            log_det = self.shape.log_abs_det_jacobian(u, w)
        return self.loc + w @ self.scale_tril.mT, log_det

    def log_unit(self, u: Tensor) -> Tensor:
        """log density of x for u of N(0, I), (n,)."""
        constant = u.shape[-1] * math.log(2 * math.pi)
        return -(u.square().sum(-1) + constant) / 2 - self.log_volume(u)

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
