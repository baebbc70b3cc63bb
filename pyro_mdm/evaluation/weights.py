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
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from pyro.infer import Importance
from pyro.ops.stats import fit_generalized_pareto
from torch import Tensor

from pyro_mdm.paths.likelihood import log_mean_weight
from pyro_mdm.support.checks import check_shape, checked_arguments
from pyro_mdm.support.measured import Z95, Measured, student_factor

__all__ = ["HEAVY", "Defence", "Evidence", "Gap", "ImportanceWeights", "effective_samples"]
__all__ += ["evidence", "of_repeats", "pareto_k", "pareto_limit"]

LARGEST = 0.1
"""The largest share of the sum that one weight may have beyond an equal share."""
LEVEL = 2.0
"""The largest weight, in units of the mean, up to which weights have no tail that could mislead."""
FEWEST_FOR_TAIL = 25  # the least number of weights of a datum, other than 0, for a tail index
FEWEST_ABOVE = 5  # the least number of weights above the start of the tail, where many are alike
ALIKE = 1e-4  # the relative difference of weights that are alike: more than float32's rounding
HEAVY = 3
"""The number of dimensions, on average, in which a draw of heavy tails is Cauchy."""
FEWEST = 80  # the least effective number of draws of h, in up to three dimensions
# the parts of the draws of h, the worst of which is counted for all: an effective number is too
# high where the largest weights are missing, which they are not in all parts
PARTS = 4


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
    spread, as what passed would be what missed the tail. The error
    is NaN for one estimate, and where one is 0 or not finite.
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


class Defence(NamedTuple):
    """The draws of h, the last ones of a mixture, and how many of them count.

    Their effective number has two estimates: by the weights γ/h of the worst of four parts, and by
    all draws, m / E[γ/h] under the target, which draws of q know better where h has little.
    """

    log_ratios: Tensor  # log γ/h of the draws of h, (m,) nats
    by_target: float  # the effective number by all draws
    dim: int  # the number d of dimensions

    @property
    def effective(self) -> float:
        """The effective number of draws of h, from 0 to m: the lower one of its estimates."""
        parts = self.log_ratios[: len(self.log_ratios) // PARTS * PARTS].view(PARTS, -1).mT
        worst = effective_samples(parts).nan_to_num(0.0).min()
        return min(PARTS * float(worst), self.by_target)

    @property
    def fewest(self) -> float:
        """The effective number that is expected, 80 max(1, d/3)."""
        return FEWEST * max(1.0, self.dim / HEAVY)


@dataclass(frozen=True, repr=False)
class ImportanceWeights:
    """Importance weights, how many of them count, and the evidence that they estimate.

    Args:
        log_weights: the log weights log p(θ, x) − log q(θ | x) of S draws, (S,), nats.
        defence: for weights of a mixture, whose last draws have heavy tails: how these count. None:
            weights of q alone, which do not show a tail that none of them has reached.
    """

    log_weights: Tensor
    defence: Defence | None = None

    def __post_init__(self) -> None:
        check_shape("log_weights", self.log_weights, ())

    @classmethod
    def from_importance(cls, importance: Importance) -> ImportanceWeights:
        """The weights of Pyro's ``Importance`` after ``run``, with a warning if they mislead.

        Args:
            importance: the ``Importance`` of a conditioned program and a guide.

        Raises:
            ValueError: no weights, as it has not been run; a program that observes no data with a
                density.
        """
        log_weights = torch.as_tensor(importance.log_weights)
        if not len(log_weights):
            raise ValueError("there are no weights, expected those of importance.run(); run it")
        for trace in getattr(importance, "exec_traces", [])[:1]:
            sites = [s for s in trace.nodes.values() if s["type"] == "sample"]
            if any(s["is_observed"] and not s["infer"].get("_deterministic") for s in sites):
                continue
            raise ValueError(
                "no data that have a density are observed, expected a program conditioned on the "
                "data, pyro.condition(program, data), which it draws by pyro.sample; computed data "
                "have no density"
            )
        weights = cls(log_weights.detach().double())
        weights.warn(
            "train the posterior with more simulations or steps, or run NUTS from "
            "guide.initial_params()",
            stacklevel=3,
        )
        return weights

    def warn(self, fix: str, stacklevel: int = 2) -> None:
        """Warn if the weights mislead.

        Args:
            fix: the advice at the end of the warning.
            stacklevel: the stack level of the warning, 1 for the call of this method.
        """
        if self.doubt:
            warnings.warn(
                f"{self.doubt}: weighted means are not to be trusted, nor is the evidence; {fix}",
                stacklevel=stacklevel,
            )

    @property
    def doubt(self) -> str:
        """The reason why the evidence has no error and weighted means mislead; "" if there is none.

        Weights cannot show a mode that no draw has come near.
        """
        if math.isfinite(self.log_evidence.standard_error):
            return ""
        S = len(self.log_weights)
        if not bool((self.log_weights < math.inf).all()):
            return f"some of {S:,} weights are NaN or infinite, expected finite ones"
        if self.effective == 0:
            return f"all of {S:,} weights are 0, expected some above"
        if S == 1:
            return "there is a single weight, expected more"
        if (defence := self.defence) is not None:
            if not self._is_covered:
                number = math.ceil(S * defence.fewest / max(defence.effective, 1))
                return (
                    f"{defence.effective:,.0f} of {len(defence.log_ratios):,} draws with heavy "
                    f"tails count, expected {defence.fewest:,.0f}, as about {number:,} draws may "
                    "have"
                )
        elif self.pareto_k > self.pareto_limit:
            limit = self.pareto_limit
            return f"the weights have a tail of k̂ {self.pareto_k:.2f}, expected at most {limit:.2f}"
        largest, most = float(self.normalized.max()), LARGEST + 1 / S
        return (
            f"the largest of {S:,} weights is {largest:.0%} of their sum, expected at most "
            f"{most:.0%}"
        )

    @checked_arguments
    def agrees_with(self, other: ImportanceWeights) -> bool:
        """Whether two evidences are within their 95% error of each other; False without errors.

        Weights cannot show a mode that no draw has come near. The draws of another guide, fitted
        from another start, may come near it.

        Args:
            other: the weights of the other guide.
        """
        first, second = self.log_evidence, other.log_evidence
        error = math.hypot(first.standard_error, second.standard_error)
        return abs(first.mean - second.mean) <= Z95 * error

    @property
    def normalized(self) -> Tensor:
        """The weights divided by their sum, (S,)."""
        return self.log_weights.softmax(0)

    @property
    def effective(self) -> float:
        """The effective sample size, (Σ w)² / Σ w², from 1 to S; 0 if all weights are 0."""
        if bool((self.log_weights == -math.inf).all()):
            return 0.0
        return float(effective_samples(self.log_weights))

    @property
    def pareto_k(self) -> float:
        """The tail index k̂ of the largest weights (Vehtari et al., "Pareto Smoothed Importance
        Sampling", JMLR 2024); NaN for fewer than 25 weights, or equal ones."""
        if self.effective == 0:
            return math.inf
        return float(pareto_k(self.log_weights.unsqueeze(1))[0])

    @property
    def pareto_limit(self) -> float:
        """The k̂ above which S weights mislead, min(1 − 1 / log10 S, 0.7), from the same source.

        Where no weight is more than twice the mean, k̂ does not matter: it does not know how much
        weights differ."""
        return pareto_limit(len(self.log_weights))

    @property
    def log_evidence(self) -> Measured:
        """The log evidence log p(x), the log of the mean weight, nats, with its standard error, NaN
        where too few weights count (:mod:`pyro_mdm.evaluation.weights`)."""
        if self.defence is None:
            value, error, _ = evidence(self.log_weights.unsqueeze(1))
            return Measured(float(value), float(error))
        S, heavy = len(self.log_weights), len(self.defence.log_ratios)
        mean = log_mean_weight(self.log_weights)
        relative = (self.log_weights - mean).exp()
        counts = self._is_covered and float(relative.max() - 1) / S <= LARGEST
        spread = spread_of(relative.split([S - heavy, heavy]))
        return Measured(float(mean), float(spread) if counts else math.nan)

    @property
    def _is_covered(self) -> bool:
        """Whether enough of the draws with heavy tails count."""
        return self.defence is None or self.defence.effective >= self.defence.fewest

    def __repr__(self) -> str:
        counts = f"{len(self.log_weights):,} weights count as {self.effective:,.0f} draws"
        if self.doubt:
            return (
                f"{counts}, too few for an error of log evidence {self.log_evidence.mean:.1f} "
                f"nats: {self.doubt}; take more draws, or a better guide"
            )
        if self.defence is not None:
            heavy = f", {self.defence.effective:,.0f} of those with heavy tails"
            return f"{counts}{heavy}; log evidence {self.log_evidence} nats"
        tail = ""
        if self.pareto_k > self.pareto_limit:
            tail = f", none above {LEVEL:g} times the mean"
        elif not math.isnan(self.pareto_k):
            tail = f", k̂ {self.pareto_k:.2f} of at most {self.pareto_limit:.2f}"
        return f"{counts}{tail}; log evidence {self.log_evidence} nats, by what they have reached"
