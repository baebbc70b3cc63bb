"""Data of simulators as a network sees them: of unit scale, without far tails, missing or not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Encoding"]

FAR_TAILS = 1.5
"""The ratio of a standard deviation to half the width of the central 68%, 1 for a Gaussian law,
above which numbers are bent."""

CENTRAL = (0.16, 0.84)
"""The parts of a Gaussian law below one standard deviation under its mean and above."""


class Encoding(nn.Module):
    """Numbers of data x (n, m) in units of their spread, (x - center) / unit.

    Where tails are far, asinh of that. What is missing (NaN) is 0. Where numbers may be missing, a
    mask follows that is 1 where one is there, so that the encoding has 2 m numbers.

    Args:
        center, unit: (m,).
        bent: where asinh is taken, (m,) bool.
        missing: whether numbers may be missing.
    """

    center: Tensor
    unit: Tensor
    bent: Tensor

    def __init__(self, center: Tensor, unit: Tensor, bent: Tensor, missing: bool) -> None:
        super().__init__()
        self.register_buffer("center", center)
        self.register_buffer("unit", unit)
        self.register_buffer("bent", bent)
        self.missing = missing

    @classmethod
    def fit(cls, x: Tensor, missing: bool) -> Encoding:
        """The encoding of simulations x (n, m)."""
        ordered, spread = x.sort(0).values, x.std(0)
        low, middle, high = (
            ordered[int(part * (len(x) - 1))] for part in (CENTRAL[0], 0.5, CENTRAL[1])
        )
        width = (high - low) / 2
        bent = (width > 0) & (spread > FAR_TAILS * width)
        plain = torch.where(spread > 0, spread, 1.0)
        return cls(
            torch.where(bent, middle, x.mean(0)), torch.where(bent, width, plain), bent, missing
        )

    def forward(self, x: Tensor) -> Tensor:
        """The encoding of x, (n, m) or (n, 2 m).

        Raises:
            ValueError: infinite numbers, or missing ones that may not be.
        """
        known = x.isfinite()
        off = ~known if not self.missing else ~known & ~x.isnan()
        if bool(off.any()):
            fix = "leave these data out"
            if not self.missing:
                fix += ", or learn from missing ones too, AmortizedPosterior.fit(…, missing=0.3)"
            raise ValueError(f"{int(off.sum())} numbers of the data are not finite; {fix}")
        scaled = (torch.where(known, x, self.center) - self.center) / self.unit
        scaled = torch.where(self.bent, scaled.asinh(), scaled)
        return torch.cat([scaled, known.to(scaled)], 1) if self.missing else scaled

    def values(self, encoded: Tensor) -> Tensor:
        """The encoded numbers without their mask, (n, m)."""
        return encoded[:, : len(self.center)]

    def hide(self, encoded: Tensor, part: float) -> Tensor:
        """Encodings (n, 2 m) of which numbers are hidden at random.

        Args:
            part: of the rows of which numbers are hidden, each by a probability that is uniform for
                a row.
        """
        n, m = len(encoded), len(self.center)
        each = torch.rand(n, 1) * (torch.rand(n, 1) < part)
        shown = (torch.rand(n, m) >= each).to(encoded)
        return encoded * shown.repeat(1, 2)
