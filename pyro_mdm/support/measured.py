"""Means with standard errors, their intervals and their text.

A standard error is everywhere such that ±1.96 of it are a 95% interval. That of n values is
s/√n times the ratio of Student's quantile with n - 1 degrees of freedom and the normal one, which
is 6.5 for two values, 1.6 for four and 1.02 for 64: s alone would be too small in most samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["ALL_TERMS", "NO_TERM", "TERMS", "Z95", "Measured", "student_factor", "table"]

Z95 = 1.959964
"""The two-sided 95% quantile of a standard normal distribution."""

TERMS = ("reconstruction", "prior_kl", "diffusion")
"""The terms of a bound by name, in the order in which they are shown."""

ALL_TERMS = (*TERMS, "context")
"""The terms with that of a latent context, 0 and not shown in most models, which have none."""


class Measured(NamedTuple):
    """A mean and its standard error, of which ±1.96 are a 95% interval; NaN where there is none."""

    mean: float
    standard_error: float

    @classmethod
    def from_values(cls, values: Tensor) -> Measured:
        """The mean of independent values (n,), with its error by Student's t; NaN for one."""
        values = values.detach().double()
        n = len(values)
        error = values.std() * student_factor(n - 1) / math.sqrt(n) if n > 1 else math.nan
        return cls(float(values.mean()), float(error))

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the mean."""
        half = Z95 * self.standard_error
        return self.mean - half, self.mean + half

    def scaled(self, factor: float) -> Measured:
        """The mean in another unit, or with another sign."""
        return Measured(factor * self.mean, abs(factor) * self.standard_error)

    def __str__(self) -> str:
        """The mean to two digits of the error: 1.735 ± 0.019."""
        if not math.isfinite(self.standard_error):
            return f"{self.mean:.4f}"
        digits = 4
        if self.standard_error > 0:
            digits = min(max(1 - math.floor(math.log10(self.standard_error)), 0), 4)
        mean = round(self.mean, digits) + 0.0  # + 0.0: no -0.0000
        return f"{mean:.{digits}f} ± {self.standard_error:.{digits}f}"


def student_factor(degrees: Tensor | float) -> Tensor:
    """The factor that makes an estimated s/√n a standard error, of which ±1.96 hold 95%, float64.

    It is the ratio of the 97.5% quantiles of Student's t, with the degrees of freedom of the
    error's variance, and of the normal distribution.
    """
    from scipy.special import stdtrit  # loads in a tenth of the time of torch

    quantile = stdtrit(degrees.numpy() if isinstance(degrees, Tensor) else degrees, 0.975)
    return torch.as_tensor(quantile / Z95)


NO_TERM = Measured(0.0, 0.0)
"""The value of a term that a bound does not have."""


def table(title: str, head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """The text of a title, a head and rows, with columns aligned to the left."""
    cells = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
    return "\n".join([title, *(line.rstrip() for line in lines)])
