"""What samplers ask of a denoiser, counted in network calls.

A call of the denoiser is one. A product of its Jacobian, or of the Jacobian's transpose, with a
vector is two, as a backward pass costs about two forward ones. Products are seen where they pass
the denoiser's output, whether autograd or ``torch.func`` makes them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_mdm.scores.denoiser import DenoiserScore

__all__ = ["Work", "counted"]

PRODUCT = 2.0


class Work:
    """Calls of a denoiser so far, those of a batch of n data being n.

    Attributes:
        calls: of the denoiser.
        products: with its Jacobian or the transpose of it.
    """

    def __init__(self, event_size: int) -> None:
        self.event_size = event_size
        self.reset()

    def reset(self) -> None:
        self.calls = self.products = 0.0

    @property
    def total(self) -> float:
        return self.calls + PRODUCT * self.products


class _Vector(torch.autograd.Function):
    """The identity on a vector that a Jacobian or its transpose is multiplied by, counted.

    Its derivative is such a vector too: of a vector-Jacobian product, the Jacobian's.
    """

    @staticmethod
    def forward(vector: Tensor, work: Work) -> Tensor:
        work.products += vector.numel() / work.event_size
        return vector.view_as(vector)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.work = inputs[1]

    @staticmethod
    def backward(ctx: Any, *vectors: Tensor) -> tuple[Tensor, None]:
        return _Vector.apply(vectors[0], ctx.work), None

    @staticmethod
    def jvp(ctx: Any, *vectors: Tensor) -> Tensor:
        return _Vector.apply(vectors[0], ctx.work)  # type: ignore[no-any-return]

    @staticmethod
    def vmap(info: Any, in_dims: Any, vector: Tensor, work: Work) -> tuple[Tensor, int | None]:
        return _Vector.apply(vector, work), in_dims[0]


class _Output(_Vector):
    """The identity on the denoiser's output, whose derivatives are counted, and not itself."""

    @staticmethod
    def forward(vector: Tensor, work: Work) -> Tensor:
        return vector.view_as(vector)

    @staticmethod
    def vmap(info: Any, in_dims: Any, vector: Tensor, work: Work) -> tuple[Tensor, int | None]:
        return _Output.apply(vector, work), in_dims[0]


def counted(score: DenoiserScore) -> Work:
    """Count what is asked of a denoiser from now on."""
    assert score.event_shape is not None
    x_hat, work = score.x_hat, Work(math.prod(score.event_shape))

    def counting(z: Tensor, log_snr: Any) -> Tensor:
        work.calls += z.numel() / work.event_size
        return _Output.apply(x_hat(z, log_snr), work)  # type: ignore[no-any-return]

    score.x_hat = counting  # type: ignore[method-assign]
    return work
