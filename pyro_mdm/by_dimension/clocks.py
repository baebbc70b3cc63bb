"""Clocks for each data dimension, as functions of the common one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_mdm.support.checks import Count, check_number, checked_arguments, real_tensor
from pyro_mdm.support.modules import Exact
from pyro_mdm.support.settings import Restorable

__all__ = ["BlurClocks", "Clocks", "LearnedClocks", "SharedClock", "TurnClocks"]


class Clocks(Restorable, Exact, ABC):
    """Clocks of their own for blocks: functions F(u) of the fraction u of the common clock's way.

    The way of a block is its log SNR from λ(ε) down to λ(T). F increases from F(0) = 0 to F(1) ≤ 1,
    and gives the fraction of that way; the common clock is F(u) = u.
    """

    number: int
    """The number of clocks."""

    @abstractmethod
    def forward(self, u: Tensor) -> Tensor:
        """F, (*u.shape, number) float64, for u in [0, 1], differentiable in u and parameters."""

    @abstractmethod
    def rate(self, u: Tensor) -> Tensor:
        """dF/du > 0, (*u.shape, number)."""


class SharedClock(Clocks):
    """The common clock, for all blocks."""

    number = 1

    def forward(self, u: Tensor) -> Tensor:
        return u.unsqueeze(-1)

    def rate(self, u: Tensor) -> Tensor:
        return torch.ones_like(u).unsqueeze(-1)


class TurnClocks(Clocks):
    """Clocks that each run in an interval of their own, and hardly move before and after.

    Dimensions that are noised one after another are generated in the reverse order.

    Args:
        intervals: (number, 2), beginning and end of each clock's turn in [0, 1].
        leak: the part of its way that a clock covers at the common pace, in and out of its turn.

    Raises:
        ValueError: intervals of another shape, empty or outside [0, 1]; a leak outside (0, 1].
    """

    intervals: Tensor

    def __init__(self, intervals: Sequence[Sequence[float]] | Tensor, leak: float = 0.02) -> None:
        super().__init__()
        value = real_tensor("intervals", intervals, "(number, 2), beginnings and ends in [0, 1]")
        good = value.dim() == 2 and value.shape[1] == 2 and len(value) > 0
        if not good or not bool(((value >= 0) & (value <= 1)).all() & (value.diff() > 0).all()):
            raise ValueError(
                f"intervals are {value.tolist()}, expected (number, 2) numbers of [0, 1], each "
                "clock's beginning before its end"
            )
        if not 0 < check_number("leak", leak, "a part of the way, e.g. 0.02") <= 1:
            raise ValueError(f"leak is {leak}, expected a part of the way, above 0 and at most 1")
        self.register_buffer("intervals", value.clone())
        self.number, self.leak = len(value), float(leak)

    def forward(self, u: Tensor) -> Tensor:
        first, last = self.intervals.unbind(-1)
        done = ((u.unsqueeze(-1) - first) / (last - first)).clamp(0, 1)
        return self.leak * u.unsqueeze(-1) + (1 - self.leak) * done

    def rate(self, u: Tensor) -> Tensor:
        first, last = self.intervals.unbind(-1)
        inside = (u.unsqueeze(-1) >= first) & (u.unsqueeze(-1) < last)
        return self.leak + (1 - self.leak) * inside / (last - first)


class BlurClocks(Clocks):
    r"""Clocks of frequencies that are blurred away as they are noised.

    Heat dissipates frequency ω² by d(u) = (1 - d_min) e^{-ω² τ} + d_min, τ = ½ σ_B² sin²(½ π u), so

        λ_ω(u) = λ(ε) - u (λ(ε) - λ_0) + 2 log d(u).

    The lowest frequency ends at λ_0, and the highest at λ_0 + 2 log d_min, which must be the end of
    the block.

    Args:
        squares: ω² (number,), e.g. π² (i²/W² + j²/H²).
        width: λ(ε) - λ(T) of the block.
        blur: σ_B, in pixels, at the end.
        least: d_min.

    Raises:
        ValueError: a width that the blur alone exceeds, numbers that are not positive.

    Source: Hoogeboom & Salimans, "Blurring Diffusion Models", ICLR 2023; Rissanen, Heinonen &
    Solin, "Generative Modelling with Inverse Heat Dissipation", ICLR 2023.
    """

    squares: Tensor

    @checked_arguments
    def __init__(
        self,
        squares: Sequence[float] | Tensor,
        width: float,
        blur: float = 20.0,
        least: float = 0.05,
    ) -> None:
        super().__init__()
        value = real_tensor("squares", squares, "squared frequencies (number,)")
        if value.dim() != 1 or not len(value) or not bool((value >= 0).all()):
            raise ValueError(
                f"squares are {value.tolist()}, expected (number,) numbers, at least 0"
            )
        check_number("width", width, "λ(ε) - λ(T) of the block", positive=True)
        check_number("blur", blur, "σ_B in pixels, e.g. 20", positive=True)
        if not 0 < check_number("least", least, "d_min, e.g. 0.05") < 1:
            raise ValueError(f"least is {least}, expected a number between 0 and 1")
        self.number, self.width, self.blur, self.least = len(value), width, blur, least
        self._share = 1 + 2 * math.log(least) / width
        if not self._share > 0:
            raise ValueError(
                f"width is {width:g}, expected more than {-2 * math.log(least):g}, which a blur to "
                f"{least:g} takes of log SNR; lower the block's min_log_snr, or raise least"
            )
        self.register_buffer("squares", value.clone())

    def _kept(self, u: Tensor) -> tuple[Tensor, Tensor]:
        tau = 0.5 * self.blur**2 * (0.5 * math.pi * u).sin().square()
        gone = (-self.squares * tau.unsqueeze(-1)).exp()
        return gone, (1 - self.least) * gone + self.least

    def forward(self, u: Tensor) -> Tensor:
        _, kept = self._kept(u)
        return self._share * u.unsqueeze(-1) - 2 * kept.log() / self.width

    def rate(self, u: Tensor) -> Tensor:
        gone, kept = self._kept(u)
        speed = 0.25 * math.pi * self.blur**2 * (math.pi * u).sin().unsqueeze(-1)
        return self._share + 2 * (1 - self.least) * self.squares * speed * gone / kept / self.width


class LearnedClocks(Clocks):
    r"""Learned clocks that all go from 0 to 1: F(u) = Σ_k w_k I_k(u), increasing by construction.

    I_k is the integral of the k-th Bernstein polynomial of degree n, divided by its value at 1, so
    F is a polynomial of degree n + 1. The weights w are a softmax of n + 1 numbers per clock, each
    at least ``floor``/(n + 1), so that no clock stands still. F starts as F(u) = u.

    Args:
        number: number of clocks.
        degree: n; n numbers are learned for each clock.
        floor: the least weight, as a part of an even share.

    Raises:
        ValueError: a number or degree below 1, a floor outside (0, 1).
    """

    @checked_arguments
    def __init__(self, number: Count, degree: Count = 4, floor: float = 0.05) -> None:
        super().__init__()
        if not 0 < check_number("floor", floor, "a part of an even share, e.g. 0.05") < 1:
            raise ValueError(f"floor is {floor}, expected a number between 0 and 1")
        self.number, self.degree, self.floor = number, degree, float(floor)
        shape = (number, degree + 1)
        self.logits = nn.Parameter(torch.zeros(shape, dtype=torch.float64))

    def weights(self) -> Tensor:
        """The weights w (number, degree + 1); each row sums to 1."""
        return self.mixed(self.logits, self.floor)

    def forward(self, u: Tensor) -> Tensor:
        return self.integrals(u, self.degree) @ self.weights().mT

    def rate(self, u: Tensor) -> Tensor:
        return (self.degree + 1) * self.bernstein(u, self.degree) @ self.weights().mT

    @staticmethod
    def mixed(logits: Tensor, floor: float) -> Tensor:
        """Positive weights that sum to 1, like logits (…, n + 1), each at least floor/(n + 1)."""
        return floor / logits.shape[-1] + (1 - floor) * logits.softmax(-1)

    @classmethod
    def integrals(cls, u: Tensor, degree: int) -> Tensor:
        """I_k(u), (*u.shape, degree + 1)."""
        # the integral of B_k,n from 0 to u, times n + 1, is the sum of B_j,n+1 over j > k
        return cls.bernstein(u, degree + 1)[..., 1:].flip(-1).cumsum(-1).flip(-1)

    @staticmethod
    def bernstein(u: Tensor, degree: int) -> Tensor:
        """Bernstein's basis (*u.shape, degree + 1), by de Casteljau: differentiable at 0 and 1."""
        u = u.double().unsqueeze(-1)
        basis = torch.ones_like(u)
        for _ in range(degree):
            zero = torch.zeros_like(u)
            basis = torch.cat([basis * (1 - u), zero], -1) + torch.cat([zero, basis * u], -1)
        return basis
