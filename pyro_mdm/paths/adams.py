r"""Adams–Bashforth steps of a flow, with the divergences of all steps in one pass.

    w_{i+1} = w_i + h Σ_{j<4} c_j f_{i-j},    f_i = f(w_i, u_i),    ∫ ∇·f du ≈ Σ_i q_i tr ∂f_i/∂w

A step takes one evaluation of the field, where a Runge–Kutta step of the same order takes four. The
first three steps are the stages of one step of Heun's method of third order, so errors fall as h⁴,
but for a small part of the start that falls as h³. The steps need no
derivative, so the divergences are taken afterwards, at all u_i at once. The same pass gives the
Jacobians, and with them the gradient follows by a recursion of d×d matrices:

    λ_i = λ_{i+1} + (∂f_i/∂w)ᵀ φ_i + q_i ∇ tr ∂f_i/∂w,    φ_i = h Σ_j c_j λ_{i+j+1}

It is the gradient of the numbers that the steps give, not of their limit.

Source: Hairer, Nørsett & Wanner, "Solving Ordinary Differential Equations I", 1993, II.1 and III.1.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from pyro_mdm.diffusions.base import separate_node

__all__ = ["Divergences", "VelocityField", "walk"]

ADAMS = (55 / 24, -59 / 24, 37 / 24, -9 / 24)
"""Coefficients c_j of the values of the field in a step, the latest first."""
HEUN = ((1.0,), (2.0, 0.0), (9 / 4, 0.0, 3 / 4))
"""Those of the first steps, which all go from the start."""
ENDS = (3 / 8, 7 / 6, 23 / 24)
"""Weights of the outermost nodes of the quadrature of fourth order, where inner ones have 1."""


class Divergences(NamedTuple):
    """Derivatives of a field at nodes of the way."""

    trace: Tensor  # tr ∂f/∂w, (S, n)
    jacobian: Tensor | None = None  # ∂f/∂w, (S, n, d, d)
    slope: Tensor | None = None  # ∇ tr ∂f/∂w, (S, n, d)


class VelocityField(Protocol):
    """A velocity f(w, u) at the S + 1 nodes u_i = i/S."""

    has_jacobian: bool
    """Whether derivatives are exact, not estimates by probes."""

    def velocity(self, node: int, w: Tensor) -> Tensor:
        """f at the i-th node, like w (n, *event_shape)."""

    def divergences(self, w: Tensor, *, slopes: bool) -> Divergences:
        """The derivatives at the states w of all nodes, (S + 1, n, *event_shape).

        With ``slopes`` those that :func:`walk` needs for a gradient, which have no graph.
        """


def walk(field: VelocityField, w: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The end of the flow that starts at w, like w, and ∫ ∇·f du, (n,).

    Both are differentiable, any number of times. Where w alone has a gradient, its first derivative
    costs one pass; where a parameter of the field has one too, all steps are recorded.

    Args:
        field: the field, at ``steps + 1`` nodes.
        w: states at u = 0, (n, *event_shape), in float64.
        steps: number S of steps, at least 3.
    """
    if not torch.is_grad_enabled():
        return _recorded(field, w, steps)
    first = field.velocity(0, w.detach())
    # by a parameter or a context, say
    if first.requires_grad or (w.requires_grad and not field.has_jacobian):
        return _recorded(field, w, steps)
    if w.requires_grad:
        end, gained, *_ = _Walk.apply(w, field, steps, first)
        return end, gained
    with torch.no_grad():
        return _recorded(field, w, steps, first)


def _recorded(
    field: VelocityField, w: Tensor, steps: int, first: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    states = _states(field, w, steps, first)
    trace = field.divergences(states, slopes=False).trace
    return states[-1], _weights(steps, trace.device) @ trace


def _states(field: VelocityField, w: Tensor, steps: int, first: Tensor | None = None) -> Tensor:
    """The states at all nodes, (S + 1, n, *event_shape), from the first value of the field."""
    states, values = [w], []
    for i in range(steps):
        values.append(field.velocity(i, states[i]) if i or first is None else first)
        state = states[i if i >= len(HEUN) else 0]
        for c, value in zip(_coefficients(i), values[::-1], strict=False):
            if c:
                state = torch.add(state, value, alpha=c / steps)
        states.append(state)
    return torch.stack(states)


def _coefficients(node: int) -> tuple[float, ...]:
    """Those of the step from a node."""
    return ADAMS if node >= len(HEUN) else HEUN[node]


@lru_cache(maxsize=16)
def _weights(steps: int, device: torch.device) -> Tensor:
    """The weights q of the quadrature, (S + 1,) float64."""
    with torch.inference_mode(False):  # it is kept, and may be needed by a gradient later
        q = torch.full((steps + 1,), 1 / steps, dtype=torch.float64)
        for i, weight in enumerate(ENDS):  # both ends add up where they overlap
            q[i] += (weight - 1) / steps
            q[-1 - i] += (weight - 1) / steps
        return q.to(device)


class _Context(FunctionCtx):
    """The values that a walk keeps for its gradient."""

    field: VelocityField
    steps: int
    saved_tensors: tuple[Tensor, ...]


class _Walk(torch.autograd.Function):
    """:func:`walk` where w alone has a gradient."""

    @staticmethod
    def forward(w: Tensor, field: VelocityField, steps: int, first: Tensor) -> tuple[Tensor, ...]:
        states = _states(field, w, steps, first)
        at = field.divergences(states, slopes=True)
        assert at.jacobian is not None and at.slope is not None
        weights = _weights(steps, w.device)
        gained = weights @ at.trace
        return states[-1].clone(), gained, at.jacobian, at.slope, weights.clone()

    @staticmethod
    def setup_context(
        ctx: _Context, inputs: tuple[Tensor, VelocityField, int, Tensor], output: tuple[Tensor, ...]
    ) -> None:
        w, ctx.field, ctx.steps, _ = inputs
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(w, *output[2:])

    @staticmethod
    def backward(
        ctx: _Context, of_end: Tensor, of_gained: Tensor, *_: object
    ) -> tuple[Tensor | None, ...]:
        w, jacobian, slope, weights = ctx.saved_tensors
        if torch.is_grad_enabled():  # derivatives of the gradient: of the recorded steps
            start = separate_node(w)
            both = _recorded(ctx.field, start, ctx.steps)
            (slopes,) = torch.autograd.grad(both, start, (of_end, of_gained), create_graph=True)
            return slopes, None, None, None
        h = 1 / ctx.steps
        pulls = weights[:, None, None, None] * slope.unsqueeze(2) * of_gained[:, None, None]
        *earlier, last = pulls.unbind()
        matrices, back = jacobian.unbind(), {ctx.steps: of_end.flatten(1).unsqueeze(1) + last}
        for i in reversed(range(ctx.steps)):  # λ (n, 1, d) by node
            phi = torch.zeros_like(last)
            for node in range(i, min(i + len(ADAMS), ctx.steps)):
                coefficients = _coefficients(node)
                if node - i < len(coefficients):
                    phi = torch.add(phi, back[node + 1], alpha=h * coefficients[node - i])
            # the first steps all go from node 0
            following = [i + 1] if i >= len(HEUN) else range(1, 1 + len(HEUN)) if i == 0 else []
            moved = sum((back[node] for node in following), earlier[i])
            back[i] = torch.baddbmm(moved, phi, matrices[i])
        return back[0].view_as(w), None, None, None
