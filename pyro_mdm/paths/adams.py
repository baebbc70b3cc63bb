r"""Adams–Bashforth steps of a flow, with the divergences of all steps in one pass.

    w_{i+1} = w_i + h Σ_{j<4} c_j f_{i-j},    f_i = f(w_i, u_i),    ∫ ∇·f du ≈ Σ_i q_i tr ∂f_i/∂w

A step takes one evaluation of the field, where a Runge–Kutta step of the same order takes four. The
steps need no derivative, so the divergences are taken afterwards, at all u_i at once. The same pass
gives the Jacobians, and with them the gradient follows by a recursion of d×d matrices:

    λ_i = λ_{i+1} + (∂f_i/∂w)ᵀ φ_i + q_i ∇ tr ∂f_i/∂w,    φ_i = h Σ_j c_j λ_{i+j+1}

It is the gradient of the numbers that the steps give, not of their limit.

Source: Hairer, Nørsett & Wanner, "Solving Ordinary Differential Equations I", 1993, III.1 and II.8.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pyro_mdm.diffusions.divergence import own_node

__all__ = ["Divergences", "Field", "walk"]

ORDERS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Coefficients c_j of the latest values of the field, for as many as there are."""
ENDS = (3 / 8, 7 / 6, 23 / 24)
"""Weights of the outermost nodes of the quadrature of fourth order, where inner ones have 1."""


class Divergences(NamedTuple):
    """Derivatives of a field at nodes of the way."""

    trace: Tensor  # tr ∂f/∂w, (S, n)
    jacobian: Tensor | None = None  # ∂f/∂w, (S, n, d, d)
    slope: Tensor | None = None  # ∇ tr ∂f/∂w, (S, n, d)


class Field(Protocol):
    """A velocity f(w, u) at the S + 1 nodes u_i = i/S."""

    has_jacobian: bool
    """Whether derivatives are exact, not estimates by probes."""

    def velocity(self, node: int, w: Tensor) -> Tensor:
        """f at the i-th node, like w (n, *event_shape)."""

    def divergences(self, w: Tensor, *, slopes: bool) -> Divergences:
        """The derivatives at the states w of all nodes, (S + 1, n, *event_shape).

        With ``slopes`` those that :func:`walk` needs for a gradient, which have no graph.
        """


def walk(field: Field, w: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The end of the flow that starts at w, like w, and ∫ ∇·f du, (n,).

    Both are differentiable, any number of times. Where w alone has a gradient, its first derivative
    costs one pass; where a parameter of the field has one too, all steps are recorded.

    Args:
        field: the field, at ``steps + 1`` nodes.
        w: states at u = 0, (n, *event_shape), in float64.
        steps: number S of steps, at least 2.
    """
    if not torch.is_grad_enabled():
        return _recorded(field, w, steps)
    first = field.velocity(0, w.detach())
    if first.requires_grad or not field.has_jacobian:  # by a parameter, a context or whatever the field holds
        return _recorded(field, w, steps)
    if w.requires_grad:
        end, gained, *_ = _Walk.apply(w, field, steps, first)
        return end, gained
    with torch.no_grad():
        return _recorded(field, w, steps, first)


def _recorded(
    field: Field, w: Tensor, steps: int, first: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    states = _states(field, w, steps, first)
    trace = field.divergences(states, slopes=False).trace
    return states[-1], _weights(steps).to(trace) @ trace


def _states(field: Field, w: Tensor, steps: int, first: Tensor | None = None) -> Tensor:
    """The states at all nodes, (S + 1, n, *event_shape), from the first value of the field."""
    states, values = [w], []
    for i in range(steps):
        value = field.velocity(i, states[-1]) if i or first is None else first
        values.append(value)
        change: Any = sum(c * f for c, f in zip(_latest(i), values[::-1], strict=False))
        states.append(states[-1] + change / steps)
    return torch.stack(states)


def _latest(node: int) -> tuple[float, ...]:
    """The coefficients of the step from a node: at the start there are few values."""
    return ORDERS[min(node, len(ORDERS) - 1)]


@lru_cache(maxsize=16)
def _weights(steps: int) -> Tensor:
    """The weights q of the quadrature, (S + 1,) float64."""
    q = torch.ones(steps + 1, dtype=torch.float64)
    for i, weight in enumerate(ENDS):  # both ends add up where they overlap
        q[i] += weight - 1
        q[-1 - i] += weight - 1
    return q / steps


@lru_cache(maxsize=16)
def _later(steps: int) -> Tensor:
    """h c_j of f_i in the step to node i + j + 1, (S, 4) float64, 0 beyond the end."""
    table = torch.zeros(steps, len(ORDERS), dtype=torch.float64)
    for node in range(steps):
        for j, c in enumerate(_latest(node)):
            table[node - j, j] = c / steps
    return table


class _Walk(torch.autograd.Function):
    """:func:`walk` where w alone has a gradient."""

    @staticmethod
    def forward(w: Tensor, field: Field, steps: int, first: Tensor) -> tuple[Tensor, ...]:
        states = _states(field, w, steps, first)
        at = field.divergences(states, slopes=True)
        assert at.jacobian is not None and at.slope is not None
        gained = _weights(steps).to(w) @ at.trace
        return states[-1].clone(), gained, at.jacobian, at.slope

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        w, ctx.field, ctx.steps, _ = inputs
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(w, *output[2:])

    @staticmethod
    def backward(ctx: Any, of_end: Tensor, of_gained: Tensor, *_: Any) -> Any:
        w, jacobian, slope = ctx.saved_tensors
        if torch.is_grad_enabled():  # derivatives of the gradient: of the recorded steps
            start = own_node(w)
            both = _recorded(ctx.field, start, ctx.steps)
            (slopes,) = torch.autograd.grad(both, start, (of_end, of_gained), create_graph=True)
            return slopes, None, None, None
        pulls = _weights(ctx.steps).to(slope)[:, None, None] * slope * of_gained[:, None]
        later = _later(ctx.steps).to(slope)
        back = [of_end.flatten(1) + pulls[-1]]  # λ, the latest first
        for i in reversed(range(ctx.steps)):
            reach = back[: -1 - len(ORDERS) : -1]
            phi = later[i, : len(reach)] @ torch.stack(reach).flatten(1)
            moved = phi.view_as(back[-1]).unsqueeze(1) @ jacobian[i]
            back.append(back[-1] + moved.squeeze(1) + pulls[i])
        return back[-1].view_as(w), None, None, None
