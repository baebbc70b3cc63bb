"""Importance weights of draws of a guide, and how far they can be trusted."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from pyro.infer import Importance
from torch import Tensor

from pyro_mdm.evaluation.weights import (
    LARGEST,
    LEVEL,
    effective_samples,
    evidence,
    pareto_k,
    pareto_limit,
    spread_of,
)
from pyro_mdm.paths.likelihood import log_mean_weight
from pyro_mdm.posteriors.defensive import Defence
from pyro_mdm.support.checks import check_shape, checked_arguments
from pyro_mdm.support.measured import Z95, Measured
from pyro_mdm.support.traces import is_computed

__all__ = ["ImportanceWeights"]


@dataclass(frozen=True, repr=False)
class ImportanceWeights:
    """Importance weights, how many of them count, and the evidence that they estimate.

    Args:
        log_weights: the log weights log p(θ, x) − log q(θ | x) of S draws, (S,), nats.
        defence: for weights of a mixture, whose last draws have heavy tails
            (:mod:`pyro_mdm.posteriors.defensive`): how these count. None: weights of q alone, which
            do not show a tail that none of them has reached.
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
            if any(s["is_observed"] and not is_computed(s) for s in sites):
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
        where too few weights count (:mod:`~pyro_mdm.evaluation.weights`)."""
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
