"""The encoding of simulated data for networks: unit scale, no far tails, missing numbers filled."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Encoding", "center_and_unit", "middle_and_width"]

FAR_TAILS = 1.5
"""The ratio of the standard deviation to half the width of the central 68%, 1 for a Gaussian, above
which numbers are transformed by asinh."""

CENTRAL = (0.16, 0.84)
"""The probabilities below one standard deviation under the mean of a Gaussian, and over it."""

RIDGE, TINY = 1e-6, 1e-6
"""The fraction of itself and the constant that are added to each variance of encoded numbers. Some
may be sums of others, or constant, and the covariance needs a Cholesky root."""


def center_and_unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """The means and standard deviations of numbers x (n, m), (m,) each; 1 for a constant one."""
    spread = x.std(0)
    return x.mean(0), torch.where(spread > 0, spread, 1.0)


def middle_and_width(x: Tensor) -> tuple[Tensor, Tensor]:
    """The medians of numbers x (n, m), and half the widths of their central 68%, (m,) each."""
    ordered = x.sort(0).values
    low, middle, high = (
        ordered[int(quantile * (len(x) - 1))] for quantile in (CENTRAL[0], 0.5, CENTRAL[1])
    )
    return middle, (high - low) / 2


class Encoding(nn.Module):
    """The numbers of data x (n, m) in units of their spread, (x - center) / unit.

    Numbers with far tails are transformed by asinh. A missing number (NaN) is replaced by its mean
    given the others, under a Gaussian distribution of encoded x. Where numbers may be missing, the
    encoding has 2 m numbers: the last m are 1 where a number is present and 0 elsewhere.
    """

    center: Tensor  # (m,)
    unit: Tensor  # (m,)
    bent: Tensor  # (m,) bool, the mask of the numbers that are transformed by asinh
    mean: Tensor | None  # of encoded x, (m,) float64; None: no number is ever missing
    covariance: Tensor | None  # of encoded x, (m, m) float64; None: no number is ever missing

    def __init__(
        self,
        center: Tensor,
        unit: Tensor,
        bent: Tensor,
        mean: Tensor | None = None,
        covariance: Tensor | None = None,
    ) -> None:
        super().__init__()
        buffers = {"center": center, "unit": unit, "bent": bent}
        for name, buffer in {**buffers, "mean": mean, "covariance": covariance}.items():
            self.register_buffer(name, buffer)

    @property
    def missing(self) -> bool:
        """Whether numbers of data may be missing."""
        return self.covariance is not None

    @classmethod
    def fit(cls, x: Tensor, missing: bool) -> Encoding:
        """The encoding fitted to the finite data x (n, m) of simulations. With ``missing``, numbers
        of other data may be missing."""
        (center, unit), (middle, width) = center_and_unit(x), middle_and_width(x)
        bent = (width > 0) & (unit > FAR_TAILS * width)
        new = cls(torch.where(bent, middle, center), torch.where(bent, width, unit), bent)
        if missing:
            values = new(x).double()
            new.mean, new.covariance = values.mean(0), torch.cov(values.mT).reshape(len(bent), -1)
            new.covariance = new.covariance + torch.diag(RIDGE * new.covariance.diagonal() + TINY)
        return new

    def forward(self, x: Tensor) -> Tensor:
        """The encoded data, (n, m), or (n, 2 m) where numbers may be missing, of x (n, m) with NaN
        there.

        Raises:
            ValueError: infinite numbers, or NaN where none may be missing.
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
        """The encoded numbers, with the missing ones filled in, and the mask, (n, 2 m)."""
        mean, _ = self._law()
        gain, which = self._gains(observed)
        apart = values - mean
        if len(gain) == 1:  # rows that miss the same numbers take one product of matrices
            filled = mean + apart @ gain[0].mT
        else:
            filled = mean + (gain[which] @ apart.unsqueeze(-1)).squeeze(-1)
        return torch.cat([torch.where(observed, values, filled.to(values)), observed.to(values)], 1)

    def _law(self) -> tuple[Tensor, Tensor]:
        assert self.mean is not None and self.covariance is not None
        return self.mean, self.covariance

    def _gain(self, mask: Tensor) -> Tensor:
        """The matrices (n, m, m) from present numbers to the mean of all numbers given them."""
        _, C = self._law()
        some = mask.unsqueeze(-1) * C
        factor = torch.linalg.cholesky(some * mask.unsqueeze(-2) + torch.diag_embed(1 - mask))
        return torch.cholesky_solve(some, factor).mT

    def _gains(self, observed: Tensor) -> tuple[Tensor, Tensor]:
        """The matrices of p patterns of present numbers, (p, m, m), and the pattern of each row."""
        patterns, which = observed.unique(dim=0, return_inverse=True)
        return self._gain(patterns.double()), which

    def spread(self, encoded: Tensor) -> tuple[Tensor, Tensor] | None:
        """The covariances of encoded numbers given the present ones, (p, m, m) float64, of the p
        patterns of missing numbers of encoded data (n, 2 m), and the pattern of each datum, (n,)
        int64. None where no number may be missing."""
        if not self.missing:
            return None
        _, C = self._law()
        gain, which = self._gains(self.seen(encoded))
        return C - gain @ C, which

    def values(self, encoded: Tensor) -> Tensor:
        """The encoded numbers (n, m) of encoded data (n, m) or (n, 2 m), without the mask."""
        return encoded[:, : len(self.center)]

    def seen(self, encoded: Tensor) -> Tensor:
        """The mask of present numbers, (n, m) bool, of encoded data (n, m) or (n, 2 m)."""
        m = len(self.center)
        return encoded[:, m:] > 0 if self.missing else torch.ones_like(encoded, dtype=torch.bool)

    def hide(self, encoded: Tensor, fraction: float) -> Tensor:
        """The encoded data (n, 2 m) with numbers hidden at random, (n, 2 m).

        A fraction of the rows has numbers hidden. Each of these rows draws a probability uniformly,
        and hides each number with it.
        """
        n, m = len(encoded), len(self.center)
        rate = torch.rand(n, 1) * (torch.rand(n, 1) < fraction)
        shown = (torch.rand(n, m) >= rate) & self.seen(encoded)
        return self._masked(self.values(encoded), shown)
