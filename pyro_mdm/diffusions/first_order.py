"""Values whose first derivatives alone are right, and which say so where second ones are asked."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

__all__ = ["differentiable_once"]


def differentiable_once(value: Tensor) -> Tensor:
    """The value, whose gradient raises an error where it is differentiated by what gave the value.

    It is for roots that have the gradient of one Newton step, and for values with a Jacobian of
    numbers. Their gradients may still be differentiated by all else.
    """
    result: Tensor = _Once.apply(value) if value.requires_grad else value
    return result


class _Context(FunctionCtx):
    saved_tensors: tuple[Tensor]


class _Once(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: _Context, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return grad
        refused = _Refused.apply(ctx.saved_tensors[0])
        return torch.where(torch.ones_like(grad, dtype=torch.bool), grad, refused)


class _Refused(_Once):
    """A value that has no derivative; the engine asks for it only where it is needed."""

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> NoReturn:
        raise RuntimeError(
            "a second derivative by the ends or matrices of a diffusion was asked for, and times "
            "at given log SNRs have first derivatives only; hold the diffusion fixed, "
            "diffusion.requires_grad_(False), or take differences of first derivatives"
        )
