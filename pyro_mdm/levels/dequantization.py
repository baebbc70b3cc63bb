"""Dequantization of levels by uniform noise and a logit, with its log-determinant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    SigmoidTransform,
    Transform,
)

import pyro_mdm.randomness as randomness
from pyro_mdm.support.checks import check_count, check_number

__all__ = ["Dequantized", "LogitDequantization"]


class Dequantized(NamedTuple):
    """x = T(w) (N, *event_shape) and log|det ∂T/∂w| (N,), nats."""

    x: Tensor
    log_det: Tensor


@dataclass(frozen=True)
class LogitDequantization:
    r"""The paper's dequantization of levels: x = logit(α + (1 - 2α) w), w = (k+u)/n.

    Bits/dim of the levels are at most, in expectation over the uniform noise u,
    ``bits_per_dim(log_prob, d, log_det=log_det, num_levels=n)``.

    Args:
        num_levels: number n of levels, at least 2.
        margin: margin α in [0, ½), for which x is finite at w = 0; the paper's is 0.05. Bits/dim
            are of the same levels for every α, but Gaussians in x are a different model of them for
            each.

    Raises:
        ValueError: n < 2, α outside [0, ½), k outside {0 … n-1} or not whole.

    Example:
        >>> k = torch.randint(256, (8, 1, 4, 4))
        >>> x, log_det = LogitDequantization(256)(k)
        >>> x.shape, log_det.shape
        (torch.Size([8, 1, 4, 4]), torch.Size([8]))
    """

    num_levels: int = 256
    margin: float = 1e-6

    def __post_init__(self) -> None:
        check_count("num_levels", self.num_levels, "the number of levels", least=2)
        check_number("margin", self.margin, "a margin in [0, 0.5), e.g. 0.05")
        if not 0 <= self.margin < 0.5:
            raise ValueError(
                f"margin is {self.margin}, expected a margin in [0, 0.5), such as the paper's 0.05"
            )

    @property
    def transform(self) -> Transform:
        """The map T, with its log-determinant."""
        squeeze = AffineTransform(self.margin, 1 - 2 * self.margin)
        return ComposeTransform([squeeze, SigmoidTransform().inv])

    def __call__(
        self,
        k: Tensor,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Dequantized:
        """x and log|det| of levels, with fresh noise at each call.

        Args:
            k: indices of levels, 0 … n - 1, (N, *event_shape).
            generator: generator of the noise; None: the global one.
            dtype: dtype of the results, which are computed in float64.
        """
        codes = k.double()  # uint8 cannot hold the number 256
        off = ~((codes >= 0) & (codes < self.num_levels) & (codes == codes.round()))
        if bool(off.any()):
            raise ValueError(
                f"k holds {k[off][0].item()}, expected whole numbers 0 … {self.num_levels - 1}, "
                "such as uint8 pixels"
            )
        if generator is None:
            u = randomness.uniform(k.shape, torch.float64, k.device)
        else:
            u = torch.rand(k.shape, generator=generator, dtype=torch.float64, device=k.device)
        w = (codes + u) / self.num_levels
        x = self.transform(w)
        log_det = self.transform.log_abs_det_jacobian(w, x).flatten(1).sum(-1)
        return Dequantized(x.to(dtype), log_det.to(dtype))

    def levels(self, x: Tensor) -> Tensor:
        """The levels k of samples x, int64, like x."""
        w = self.transform.inv(x.double())
        return (w * self.num_levels).floor().clamp(0, self.num_levels - 1).long()
