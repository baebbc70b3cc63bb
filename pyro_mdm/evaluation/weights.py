r"""The evidence by importance weights: the log of their mean, and its error where it has one.

The mean of weights w_1, …, w_S is unbiased for the evidence Z, but its spread among them knows only
of the weights that were drawn. Of a heavy tail the largest are missing in most runs: then the mean
is too low, and so is its spread. The error of log Z is

    error² = spread² + (c (w_max / Σ w - 1/S))²,    spread² = Var w / (S (mean w)²).

The second term is the mass beyond the largest weight. About one weight of S would be expected
there, and of a tail of index k it exceeds w_max by w_max k / (1 - k) on average: by c = 10 for an
index of 0.91. That is not the index k̂ of the weights, but a heavier one, since k̂ comes from the
same draws, and is too low wherever the mean is. From k̂ = ½ on the variance is not finite, and c is
20. Both were chosen by coverage (tests/benchmarks/importance_errors.py).

The error is NaN where too few weights count: where k̂ is above its limit (Vehtari et al.,
"Pareto Smoothed Importance Sampling", JMLR 2024), and where the largest weight is more than a tenth
of the sum. k̂ does not know the scale of weights, and says nothing where none is more than twice the
mean. A mode that no draw has come near changes no weight.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from pyro.ops.stats import fit_generalized_pareto
from torch import Tensor

from pyro_mdm.paths.likelihood import log_mean_weight
from pyro_mdm.support.measured import Measured, student_factor

__all__ = ["LARGEST", "LEVEL", "Evidence", "evidence", "of_repeats", "pareto_k", "pareto_limit"]

BEYOND, BEYOND_HEAVY = 10.0, 20.0
"""The mass of the tail beyond the largest weight, in units of that weight: k / (1 - k) for an index
k of 0.91, and of 0.95 where k̂ is above a half."""
LARGEST = 0.1
"""The largest share of the sum that one weight may have beyond an equal share."""
LEVEL = 2.0
"""The largest weight, in units of the mean, up to which weights have no tail that could mislead."""
FEWEST_FOR_TAIL = 25
"""The least number of weights of a datum, other than 0, for a tail index."""
FEWEST_ABOVE = 5
"""The least number of weights above the start of the tail, where many are alike."""
ALIKE = 1e-4
"""The relative difference up to which weights are alike: float32 log densities differ by less."""


class Evidence(NamedTuple):
    """The log evidence of n data by weights, with its error and tail index."""

    value: Tensor  # (n,) log mean weight, nats
    error: Tensor  # (n,) its standard error, nats; NaN where too few weights count
    pareto_k: Tensor  # (n,) tail index, see pareto_k


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
    spread = relative.std(0) / math.sqrt(S) if S > 1 else value * math.nan
    k = pareto_k(log_weights)
    is_level = relative.amax(0) <= LEVEL
    counts = (largest <= LARGEST) & (is_level | ~(k.to(value) > pareto_limit(S)))
    beyond = torch.where(k.to(value) > 0.5, BEYOND_HEAVY, BEYOND)
    error = torch.hypot(spread, beyond * largest)
    return Evidence(value, torch.where(counts, error, math.nan), k)


def of_repeats(log_means: Tensor) -> Measured:
    r"""The log of the mean of independent unbiased estimates, from their logs (R,), nats.

    Each is the mean of many weights, whose tail it no longer shows. Of estimates that are skewed,
    as those of particles are, most samples lack the large ones, and then their mean is too low, and
    so is their spread. The variance v of their logs is not. So the error is the larger one of the
    spread of estimates and of that of the mean's log by the logs of lognormal estimates,
    √(v / R + v² / (2 (R - 1))) (Cox's method: Zhou & Gao, "Confidence intervals for the log-normal
    mean", Statistics in Medicine 1997), by Student's t with R - 1 degrees of freedom. No sample is
    left out by its spread, as what passed would be what missed the tail: the error of estimates
    that differ much is large (tests/benchmarks/importance_errors.py --repeats).

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
