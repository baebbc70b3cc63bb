r"""Products with a denoiser's covariance of x given z, and linear systems with them.

With z = x + V^{1/2} ε and V = e^{-λ}, one number or one for each dimension, Tweedie's formula of
second order gives the covariance from the denoiser alone:

    Cov(x | z) = (∂x̂/∂z) V

It is symmetric for an exact denoiser. For a network the symmetric part is used.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["DenoiserCovariance", "Solution", "conjugate_gradients"]


class DenoiserCovariance:
    """The covariance of x given z by a denoiser, as products with vectors like z, and x̂.

    A product takes a vector-Jacobian and a Jacobian-vector product, the latter by differentiating
    the former. Products are differentiable where gradients are enabled.

    Args:
        denoise: returns x̂, like z.
        z: (n, *event_shape).
        variance: V, broadcastable to z.
    """

    def __init__(self, denoise: Callable[[Tensor], Tensor], z: Tensor, variance: Tensor) -> None:
        self._create_graph, self._variance = torch.is_grad_enabled(), variance
        with torch.enable_grad():
            self._z = z if z.requires_grad else z.detach().requires_grad_()
            self._x_hat = denoise(self._z)

    @cached_property
    def _pulled(self) -> tuple[Tensor, Tensor]:
        """Jᵀ w, and the w to differentiate it by."""
        with torch.enable_grad():
            w = torch.zeros_like(self._x_hat, requires_grad=True)
            return self._gradient(self._x_hat, self._z, w, create_graph=True), w

    @property
    def x_hat(self) -> Tensor:
        """x̂, like z."""
        return self._x_hat if self._create_graph else self._x_hat.detach()

    def __call__(self, v: Tensor) -> Tensor:
        """½ (J V + V Jᵀ) v, like z, with J = ∂x̂/∂z."""
        v = v.to(self._z.dtype)
        forward = self._gradient(*self._pulled, self._variance * v)
        return (forward + self.transposed(v)) / 2

    def transposed(self, v: Tensor) -> Tensor:
        """V Jᵀ v, like z, from the vector-Jacobian product alone."""
        return self._variance * self._gradient(self._x_hat, self._z, v.to(self._z.dtype))

    def _gradient(
        self, of: Tensor, by: Tensor, weight: Tensor, *, create_graph: bool | None = None
    ) -> Tensor:
        (gradient,) = torch.autograd.grad(
            of,
            by,
            weight,
            retain_graph=True,
            create_graph=self._create_graph if create_graph is None else create_graph,
            materialize_grads=True,
        )
        return gradient


class Solution(NamedTuple):
    """Solutions of n linear systems, with iterations and residuals."""

    u: Tensor  # (n, m)
    iterations: Tensor  # (n,), int64
    residual: Tensor  # (n,): ‖b - S u‖ / ‖b‖


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], b: Tensor, tolerance: float, max_iterations: int
) -> Solution:
    """The solutions u of n systems S u = b, each with its own steps.

    A system stops when ‖b - S u‖ ≤ tolerance ‖b‖, after ``max_iterations``, or at a direction p
    with pᵀ S p ≤ 0, which a positive definite S does not have.

    Args:
        product: returns S p, (n, m), for p (n, m); S is symmetric.
        b: right-hand sides, (n, m).
    """
    u, r, p = torch.zeros_like(b), b, b
    square = first = r.square().sum(-1)
    goes_on = first > 0
    iterations = torch.zeros(len(b), dtype=torch.int64, device=b.device)
    for _ in range(max_iterations):
        if not bool(goes_on.any()):
            break
        Sp = product(torch.where(goes_on.unsqueeze(-1), p, 0))
        curvature = (p * Sp).sum(-1)
        goes_on = goes_on & (curvature > 0)
        step = torch.where(goes_on, square / torch.where(goes_on, curvature, 1), 0).unsqueeze(-1)
        u, r = u + step * p, r - step * Sp
        before, square = square, r.square().sum(-1)
        p = r + (square / torch.where(before > 0, before, 1)).unsqueeze(-1) * p
        iterations += goes_on
        goes_on = goes_on & (square > tolerance**2 * first)
    residual = (square / torch.where(first > 0, first, 1)).sqrt()
    return Solution(u, iterations, residual.detach())
