"""Data of simulators as a network sees them: of unit scale, without far tails, missing or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Encoding", "center_and_unit"]

FAR_TAILS = 1.5
"""The ratio of a standard deviation to half the width of the central 68%, 1 for a Gaussian law,
above which numbers are bent."""

CENTRAL = (0.16, 0.84)
"""The parts of a Gaussian law below one standard deviation under its mean and above."""

RIDGE, TINY = 1e-6, 1e-6
"""Of variances, and of units squared: what is added to variances of encoded numbers, some of which
may be sums of others, or constant."""


def center_and_unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """The means of numbers (n, m), and their standard deviations; 1 of those that never vary."""
    spread = x.std(0)
    return x.mean(0), torch.where(spread > 0, spread, 1.0)


class Encoding(nn.Module):
    """Numbers of data x (n, m) in units of their spread, (x - center) / unit.

    Where tails are far, asinh of that. What is missing (NaN) is its mean given what is there, under
    a Gaussian law of encoded x. Where numbers may be missing, a mask follows that is 1 where one is
    there, so that the encoding has 2 m numbers.

    Args:
        center, unit: center and unit of each number, (m,).
        bent: mask of the numbers of which asinh is taken, (m,) bool.
        mean, covariance: moments of encoded x, (m,) and (m, m) float64; None: no number is ever
            missing.
    """

    center: Tensor
    unit: Tensor
    bent: Tensor
    mean: Tensor | None
    covariance: Tensor | None

    def __init__(
        self,
        center: Tensor,
        unit: Tensor,
        bent: Tensor,
        mean: Tensor | None = None,
        covariance: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("center", center)
        self.register_buffer("unit", unit)
        self.register_buffer("bent", bent)
        self.register_buffer("mean", mean)
        self.register_buffer("covariance", covariance)

    @classmethod
    def of_lists(cls, buffers: Mapping[str, list[Any]]) -> Encoding:
        """The encoding with buffers that were written as lists."""
        exact = ("mean", "covariance")
        tensors = {
            n: torch.tensor(b, dtype=torch.float64 if n in exact else None)
            for n, b in buffers.items()
        }
        return cls(**tensors)

    @property
    def missing(self) -> bool:
        """Whether numbers may be missing."""
        return self.covariance is not None

    @classmethod
    def fit(cls, x: Tensor, missing: bool) -> Encoding:
        """The encoding of simulations x (n, m)."""
        ordered, (center, unit) = x.sort(0).values, center_and_unit(x)
        low, middle, high = (
            ordered[int(quantile * (len(x) - 1))] for quantile in (CENTRAL[0], 0.5, CENTRAL[1])
        )
        width = (high - low) / 2
        bent = (width > 0) & (unit > FAR_TAILS * width)
        new = cls(torch.where(bent, middle, center), torch.where(bent, width, unit), bent)
        if missing:
            values = new(x).double()
            new.mean, new.covariance = values.mean(0), torch.cov(values.mT).reshape(len(bent), -1)
            new.covariance = new.covariance + torch.diag(RIDGE * new.covariance.diagonal() + TINY)
        return new

    def forward(self, x: Tensor) -> Tensor:
        """The encoding of x, (n, m) or (n, 2 m).

        Raises:
            ValueError: infinite numbers, or missing ones that may not be.
        """
        observed = x.isfinite()
        off = ~observed if not self.missing else ~observed & ~x.isnan()
        if bool(off.any()):
            fix = "leave these data out"
            if not self.missing:
                fix += ", or learn from missing ones too, AmortizedPosterior.fit(…, missing=0.3)"
            raise ValueError(f"{int(off.sum())} numbers of the data are not finite; {fix}")
        scaled = (torch.where(observed, x, self.center) - self.center) / self.unit
        scaled = torch.where(self.bent, scaled.asinh(), scaled)
        return self._masked(scaled, observed) if self.missing else scaled

    def _masked(self, values: Tensor, observed: Tensor) -> Tensor:
        """Encoded numbers, the unknown ones filled in, and the mask, (n, 2 m)."""
        mean, _ = self._law()
        gain, which = self._gains(observed)
        apart = values - mean
        if len(gain) == 1:  # many rows that lack the same numbers
            filled = mean + apart @ gain[0].mT
        else:
            filled = mean + (gain[which] @ apart.unsqueeze(-1)).squeeze(-1)
        return torch.cat([torch.where(observed, values, filled.to(values)), observed.to(values)], 1)

    def _law(self) -> tuple[Tensor, Tensor]:
        assert self.mean is not None and self.covariance is not None
        return self.mean, self.covariance

    def _gain(self, mask: Tensor) -> Tensor:
        """The matrix (n, m, m) from numbers that are there to the mean of all given them."""
        _, C = self._law()
        some = mask.unsqueeze(-1) * C
        factor = torch.linalg.cholesky(some * mask.unsqueeze(-2) + torch.diag_embed(1 - mask))
        return torch.cholesky_solve(some, factor).mT

    def _gains(self, observed: Tensor) -> tuple[Tensor, Tensor]:
        """The matrices of p patterns of known numbers, (p, m, m), and which is that of each row."""
        patterns, which = observed.unique(dim=0, return_inverse=True)
        return self._gain(patterns.double()), which

    def spread(self, encoded: Tensor) -> tuple[Tensor, Tensor] | None:
        """Covariances of encoded numbers given those that are there, (p, m, m) float64, for each of
        p patterns, and which is that of each datum, (n,); None where no number may be missing."""
        if not self.missing:
            return None
        _, C = self._law()
        gain, which = self._gains(self.seen(encoded))
        return C - gain @ C, which

    def values(self, encoded: Tensor) -> Tensor:
        """The encoded numbers without their mask, (n, m)."""
        return encoded[:, : len(self.center)]

    def seen(self, encoded: Tensor) -> Tensor:
        """Which of the encoded numbers are there, (n, m) bool."""
        m = len(self.center)
        return encoded[:, m:] > 0 if self.missing else torch.ones_like(encoded, dtype=torch.bool)

    def hide(self, encoded: Tensor, fraction: float) -> Tensor:
        """Encodings (n, 2 m) of which numbers are hidden at random.

        Args:
            part: fraction of the rows of which numbers are hidden, each by a probability that is
                uniform for a row.
        """
        n, m = len(encoded), len(self.center)
        rate = torch.rand(n, 1) * (torch.rand(n, 1) < fraction)
        shown = (torch.rand(n, m) >= rate) & self.seen(encoded)
        return self._masked(self.values(encoded), shown)
