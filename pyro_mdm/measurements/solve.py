r"""Products with a denoiser's covariance of x given z, and linear systems with them.

With ``z = x + V^{1/2} ε`` and ``V = e^{-λ}``, one number or one for each dimension, Tweedie's
formula of second order gives the covariance from the denoiser alone:

    Cov(x | z) = (∂x̂/∂z) V

It is symmetric for an exact denoiser, and nearly so for a network where the noise is low.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mdm.measurements.operators import Linear

__all__ = ["DenoiserCovariance", "Inverse", "Solution", "System", "conjugate_gradients", "iterated"]

Product = Callable[[Tensor], Tensor]

Inverse = Callable[[Tensor], tuple[Tensor, Tensor]]
"""The inverse of ``S = H C Hᵀ + R``: a function of r (n, m) in float64, which returns the solution
u of S u = r, (n, m), and C Hᵀ u, (n, *event_shape)."""

AT_ONCE = 8
"""The iterations with the linear covariance between two questions to the device."""


class DenoiserCovariance:
    """The covariance of x given z by a denoiser, as products with vectors like z, and x̂.

    A product is a vector-Jacobian product, ``V (∂x̂/∂z)ᵀ v``, about the time of a network call. It
    is differentiable where gradients are enabled.

    Args:
        denoise: the function that returns x̂, like z.
        z: readouts, (n, *event_shape).
        variance: variances V of the noise, broadcastable to z.
    """

    def __init__(self, denoise: Callable[[Tensor], Tensor], z: Tensor, variance: Tensor) -> None:
        self._create_graph, self._variance = torch.is_grad_enabled(), variance
        with torch.enable_grad():
            self._z = z if z.requires_grad else z.detach().requires_grad_()
            self._x_hat = denoise(self._z)

    @property
    def x_hat(self) -> Tensor:
        """x̂, like z."""
        return self._x_hat if self._create_graph else self._x_hat.detach()

    def __call__(self, v: Tensor) -> Tensor:
        """``V (∂x̂/∂z)ᵀ v``, like z, for v like z."""
        (gradient,) = torch.autograd.grad(
            self._x_hat,
            self._z,
            v.to(self._x_hat.dtype),
            retain_graph=True,
            create_graph=self._create_graph,
            materialize_grads=True,
        )
        return self._variance.to(gradient.dtype) * gradient


class Solution(NamedTuple):
    """Approximate solutions of n linear systems S u = b."""

    u: Tensor  # (n, m)
    image: Tensor  # B u, for the B that the product computes with S u
    rest: Tensor  # b - S u, (n, m)
    iterations: Tensor  # (n,), int64


def conjugate_gradients(
    product: Callable[[Tensor], tuple[Tensor, Tensor]],
    b: Tensor,
    tolerance: float,
    max_iterations: int,
    precondition: Product | None = None,
    *,
    ask_every: int = 1,
) -> Solution:
    """The solutions u of n systems S u = b, each with its own steps.

    A system stops when ‖b - S u‖ ≤ tolerance ‖b‖, after ``max_iterations``, or at a direction p
    with pᵀ S p ≤ 0, which a positive definite S does not have.

    Args:
        product: the function that returns S p, (n, m), and B p, (n, *shape), for p, (n, m); S is
            symmetric, and B a matrix whose product is needed too.
        b: right-hand sides, (n, m).
        tolerance: the ratio of the norms of residual and right-hand side at which a system stops.
        max_iterations: the most iterations, at least 1.
        precondition: the function that returns M r, (n, m), of residuals r, with M symmetric and
            near to ``S^{-1}``; None: the identity.
        ask_every: the number of iterations after which Python asks whether a system goes on, for
            which it waits. It changes no solution.

    Returns:
        A :class:`Solution`.
    """
    u, r, first = torch.zeros_like(b), b, b.square().sum(-1)
    p = q = b if precondition is None else precondition(b)
    square, goes_on = (r * q).sum(-1), first > 0
    iterations = torch.zeros(len(b), dtype=torch.int64, device=b.device)
    image: Tensor | None = None
    for i in range(max_iterations):
        if i and i % ask_every == 0 and not bool(goes_on.any()):
            break
        Sp, Bp = product(torch.where(goes_on.unsqueeze(-1), p, 0))
        curvature = (p * Sp).sum(-1)
        goes_on = goes_on & (curvature > 0)
        step = torch.where(goes_on, square / torch.where(goes_on, curvature, 1), 0)
        increment = step.reshape(-1, *[1] * (Bp.dim() - 1)) * Bp
        image = increment if image is None else image + increment
        u, r = u + step.unsqueeze(-1) * p, r - step.unsqueeze(-1) * Sp
        iterations += goes_on
        goes_on = goes_on & (r.square().sum(-1) > tolerance**2 * first)
        if i + 1 < max_iterations:
            q = r if precondition is None else precondition(r)
            before, square = square, (r * q).sum(-1)
            p = q + (square / torch.where(before > 0, before, 1)).unsqueeze(-1) * p
    assert image is not None
    return Solution(u, image, r, iterations)


class System(NamedTuple):
    """The linear systems ``D (H C Hᵀ + R) D v = D r`` of n data, whose solution is u = D v.

    D is a diagonal matrix that makes the entries of the system alike.
    """

    H: Linear
    noise: Tensor  # R, (n, m) or (1, m)
    scale: Tensor | None  # D, (n, *obs_shape); None: 1
    obs_shape: tuple[int, ...]

    def scaled(self, r: Tensor) -> Tensor:
        """D r, (n, m), for r (n, m)."""
        return r if self.scale is None else self.scale.flatten(1) * r

    def product(self, covariance: Product) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """The function that returns ``D (H C Hᵀ + R) D v`` and ``C Hᵀ D v`` for v (n, m).

        Args:
            covariance: products with C, of vectors (n, *event_shape).
        """

        def product(v: Tensor) -> tuple[Tensor, Tensor]:
            u = self.scaled(v)
            image = covariance(self.H.adjoint(u.reshape(-1, *self.obs_shape)))
            measured = self.H.forward(image.double()).flatten(1)
            return self.scaled(torch.addcmul(measured, self.noise, u)), image

        return product


def iterated(
    product: Callable[[Tensor], tuple[Tensor, Tensor]], tolerance: float, max_iterations: int
) -> Inverse:
    """The inverse by :func:`conjugate_gradients`, for systems without a structure that is known."""

    def solved(r: Tensor) -> tuple[Tensor, Tensor]:
        solution = conjugate_gradients(product, r, tolerance, max_iterations, ask_every=AT_ONCE)
        return solution.u, solution.image

    return solved
