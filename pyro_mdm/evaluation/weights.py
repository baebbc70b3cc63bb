r"""The evidence by importance weights: the log of their mean, and its error where it has one.

The mean of weights w_1, …, w_S is unbiased for the evidence Z. The error of log Z is their spread,

    error² = Σ (w_j - mean)² / (S mean)²,

widened by Student's t with the degrees of freedom of that sum of squares, 2 S / (κ - 1) for weights
of kurtosis κ (Satterthwaite 1946): where a few weights make it up, it has few. Weights of several
kinds of draws, in fixed numbers, have their spread about the mean of each kind.

Of a heavy tail the largest weights are missing in most runs: then the mean is too low, and so is
its spread. So there is no error, but NaN, where k̂ is above its limit (Vehtari et al., "Pareto
Smoothed Importance Sampling", JMLR 2024), and where the largest weight is more than a tenth of the
sum. k̂ passes in runs that have missed a tail, and says nothing where no weight is more than twice
the mean, as it does not know their scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from pyro.ops.stats import fit_generalized_pareto
from torch import Tensor

from pyro_mdm.paths.likelihood import log_mean_weight
from pyro_mdm.support.measured import Measured, student_factor

__all__ = ["LARGEST", "LEVEL", "Evidence", "Gap", "effective_samples", "evidence", "of_repeats"]
__all__ += ["pareto_k", "pareto_limit", "spread_of"]

LARGEST = 0.1
"""The largest share of the sum that one weight may have beyond an equal share."""
LEVEL = 2.0
"""The largest weight, in units of the mean, up to which weights have no tail that could mislead."""
FEWEST_FOR_TAIL = 25  # the least number of weights of a datum, other than 0, for a tail index
FEWEST_ABOVE = 5  # the least number of weights above the start of the tail, where many are alike
ALIKE = 1e-4  # the relative difference of weights that are alike: more than float32's rounding


class Evidence(NamedTuple):
    """The log evidence of n data by weights, with its error and tail index."""

    value: Tensor  # (n,) log mean weight, nats
    error: Tensor  # (n,) its standard error, nats; NaN where too few weights count
    pareto_k: Tensor  # (n,) tail index, see pareto_k


class Gap(NamedTuple):
    """Bounds on log p(data) from both sides, nats, and what is between them."""

    lower: Measured  # by draws of the guide
    upper: Measured  # by draws of the posterior
    gap: Measured  # upper - lower, paired by data set where data are simulated
    data_sets: int  # number of simulated data sets; 0: the program's data, by draws handed over

    @classmethod
    def of_simulated(cls, lower: Tensor, upper: Tensor) -> Gap:
        """The gap by the bounds of simulated data sets, (n,) each, nats."""
        below, above = Measured.from_values(lower), Measured.from_values(upper)
        return cls(below, above, Measured.from_values(upper - lower), len(lower))

    def __repr__(self) -> str:
        by = "if the draws are exact: an estimate, no bound"
        if self.data_sets:
            by = f"in the mean of {self.data_sets} simulated data sets"
        return f"{self.lower} ≤ log p(data) ≤ {self.upper} nats, {self.gap} between, {by}"


def evidence(log_weights: Tensor) -> Evidence:
    """The log mean weight of each datum, with its error and tail, of log-weights (S, n).

    The error is NaN for one weight, where k̂ is above :func:`pareto_limit` and a weight is more than
    twice the mean, where the largest weight is more than a tenth of the sum beyond an equal share,
    and where weights are all 0, NaN or ∞.
    """
    S = len(log_weights)
    value = log_mean_weight(log_weights)
    relative = (log_weights - value).exp()
    largest = (relative.amax(0) - 1) / S
    k = pareto_k(log_weights)
    is_level = relative.amax(0) <= LEVEL
    counts = (largest <= LARGEST) & (is_level | ~(k.to(value) > pareto_limit(S)))
    error = spread_of([relative])
    return Evidence(value, torch.where(counts, error, math.nan), k)


def effective_samples(log_weights: Tensor) -> Tensor:
    """The effective sample sizes (Σ w)² / Σ w² of log-weights (S, *n), (*n,)."""
    return (2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp()


def spread_of(strata: Sequence[Tensor]) -> Tensor:
    """The standard error of the mean of weights in strata (S_i, *n), (*n,), by Student's t.

    The number of draws of each stratum is fixed; NaN for a stratum of one.
    """
    S = sum(map(len, strata))
    off = torch.cat([w - w.mean(0) for w in strata])
    by_stratum = [w.var(0) * len(w) if len(w) > 1 else w[0] * math.nan for w in strata]
    error = torch.stack(by_stratum).sum(0).sqrt() / S
    squares, fourths = off.square().sum(0), off.square().square().sum(0)
    kurtosis = S * fourths / squares.square()
    degrees = (2 * S / (kurtosis - 1).clamp_min(1e-9)).clamp_max(S - len(strata))
    widened = error * student_factor(degrees.cpu()).to(error)
    return torch.where(error > 0, widened, error)  # equal weights have no kurtosis


def of_repeats(log_means: Tensor) -> Measured:
    r"""The log of the mean of independent unbiased estimates, from their logs (R,), nats.

    Each is the mean of many weights, whose tail it no longer shows. Of skewed estimates, as those
    of particles are, most samples lack the large ones: their mean and their spread are too low, but
    the variance v of their logs is not. So the error is the larger one of the spread of estimates
    and of that of the mean's log by the logs of lognormal estimates, √(v / R + v² / (2 (R - 1)))
    (Cox's method: Zhou & Gao, "Confidence intervals for the log-normal mean", Statistics in
    Medicine 1997), by Student's t with R - 1 degrees of freedom. No sample is left out by its
    spread, as what passed would be what missed the tail (tests/benchmarks/importance_errors.py).
    The error is NaN for one estimate, and where one is 0 or not finite.
    """
    R = len(log_means)
    value = log_mean_weight(log_means)
    if R == 1:
        return Measured(float(value), math.nan)
    variance = log_means.var()
    of_logs = (variance / R + variance.square() / (2 * (R - 1))).sqrt()
    spread = (log_means - value).exp().std() / math.sqrt(R)
    error = torch.maximum(of_logs, spread) * student_factor(R - 1)
    return Measured(float(value), float(error))


def pareto_limit(S: int) -> float:
    """The tail index above which S weights are too few to trust: 1 - 1 / log10 S, at most 0.7.

    It is 0.45 for S = 64. Source: Vehtari et al., "Pareto Smoothed Importance Sampling", JMLR 2024.
    """
    return min(1 - 1 / math.log10(max(S, 11)), 0.7)  # up to S = 10 it would not be positive


def pareto_k(log_weights: Tensor) -> Tensor:
    """The tail index k̂ of the weights of each datum, (n,), from log-weights (S, n).

    It is fitted to the largest min(S / 5, 3 √S) of those that are not 0; NaN for fewer than 25 of
    them or where they are alike, infinite where the largest exceeds the others beyond float64's
    digits.
    """
    k_hat = torch.full((log_weights.shape[1],), math.nan, dtype=torch.float64)
    for i, column in enumerate(log_weights.detach().double().unbind(1)):
        column = column[column > -math.inf]
        S = len(column)
        if S < FEWEST_FOR_TAIL:
            continue
        tail = math.ceil(min(0.2 * S, 3 * math.sqrt(S)))
        largest = (column - column.max()).exp().topk(tail + 1).values
        excess = largest[:-1] - largest[-1]
        above = excess[excess > ALIKE * largest[-1]]
        if float(largest[-1]) == 0:
            k_hat[i] = math.inf
        elif len(above) >= FEWEST_ABOVE:
            k_hat[i] = fit_generalized_pareto(above)[0]
    return k_hat
