"""Estimates of bounds and of their differences, with their errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from pyro_mdm.evaluation.weights import pareto_limit
from pyro_mdm.support.checks import settle
from pyro_mdm.support.measured import ALL_TERMS, NO_TERM, Measured, student_factor, table

__all__ = [
    "Comparison",
    "Difference",
    "Estimate",
    "FEWEST",
    "InBits",
    "InNats",
    "Noise",
    "Weighted",
    "holm",
    "population_error",
    "resolved",
    "rounding",
]

FEWEST = 8
"""The fewest data whose spread gives an error."""


class InNats:
    """Means over data by name, in nats per datum, that are read in bits/dim too."""

    num_dims: int
    _signs: ClassVar[Mapping[str, int]] = {}  # of names in bits/dim, where they are -1

    def _names(self) -> Sequence[str]:
        raise NotImplementedError

    def items(self) -> Iterator[tuple[str, Measured]]:
        """Each mean by its name, nats per datum, in the order in which they are shown."""
        return ((name, getattr(self, name)) for name in self._names())

    def in_bits(self) -> dict[str, Measured]:
        """Each mean in bits/dim; terms of a bound have signs such that they add up to its bits."""
        signs, unit = self._signs, self.num_dims * math.log(2)
        return {name: m.scaled(signs.get(name, 1) / unit) for name, m in self.items()}

    def _table(self, title: str, titles: Mapping[str, str] | None = None) -> str:
        names, bits = titles or {}, self.in_bits()
        rows = [(names.get(name, name), str(m), str(bits[name])) for name, m in self.items()]
        return table(title, ("", "nats per datum", "bits/dim"), rows)


class InBits:
    """A mean over data in nats per datum, with its value in bits/dim."""

    mean: float
    standard_error: float
    num_dims: int

    def __post_init__(self) -> None:
        settle()  # no number without the answers to the checks on the way to it

    @property
    def _unit(self) -> float:
        return self.num_dims * math.log(2)

    @property
    def bits_per_dim(self) -> float:
        """-mean / (d ln 2)."""
        return -self.mean / self._unit

    @property
    def bits_per_dim_error(self) -> float:
        """The standard error in bits/dim."""
        return self.standard_error / self._unit

    @property
    def _in_words(self) -> str:
        error = self.bits_per_dim_error
        with_error = f" ± {error:.4f}" if math.isfinite(error) else ""
        return f"bits/dim {self.bits_per_dim:.4f}{with_error}"


@dataclass(frozen=True)
class Estimate(InBits):
    """A lower bound on the mean log-likelihood of a data set, in nats per datum, with its errors.

    ``standard_error`` is over the data, with the noise in it; ``monte_carlo_error`` is the change
    that other noise for the same data would make.
    """

    mean: float
    standard_error: float
    monte_carlo_error: float
    reconstruction: Measured  # nats per datum
    prior_kl: Measured
    diffusion: Measured
    num_data: int
    num_dims: int
    network_calls: int  # network evaluations of one datum
    per_datum: Tensor  # (num_data,) bound of each datum, nats
    per_datum_error: Tensor  # (num_data,) of which 1.96 are 95%; NaN for a datum never drawn
    halves: Tensor  # (2, num_data) from each half of a datum's draws; NaN for none
    log_snr_edges: Tensor  # (bins + 1,)
    density: Tensor  # (bins,) integrand of the diffusion term, nats per unit of log SNR
    density_error: Tensor  # (bins,) its Monte Carlo error
    probe_error: float = 0.0  # the part of Hutchinson's probes (simulated; NaN for one probe)
    context: Measured = NO_TERM  # nats per datum; 0 without a latent context

    def __repr__(self) -> str:
        terms = {"reconstruction": -self.reconstruction.mean, "prior KL": self.prior_kl.mean}
        terms["diffusion"] = self.diffusion.mean
        if self.context.mean:
            terms["context"] = self.context.mean
        words = ", ".join(f"{name} {value / self._unit:.4f}" for name, value in terms.items())
        return f"{self._in_words} ({words})"


@dataclass(frozen=True)
class Weighted(InBits):
    """log p(x) by S weights w for each datum: log (1/S) Σ w, a bound in expectation, nats.

    ``method`` names the model; the numbers of different methods are not ordered. The standard error
    is that of the bound: over the data, with the Monte Carlo error. Where too few weights count for
    a datum to have an error, the bound may be far below log p
    (:mod:`pyro_mdm.evaluation.weights`).
    """

    method: str
    mean: float
    standard_error: float
    monte_carlo_error: float  # of the mean; NaN if that of a datum is
    bound: Measured  # the mean of log w: the bound of the same model by one weight
    num_dims: int
    network_calls: int  # network evaluations of one datum
    per_datum: Tensor  # (n,) nats
    per_datum_error: Tensor  # (n,) of log p; NaN where too little counts, and for one weight
    effective_samples: Tensor  # (n,) (Σ w)² / Σ w², of S
    pareto_k: Tensor  # (n,) tail index of the weights, see pareto_limit; NaN for few of them
    num_weights: int  # S, of each datum

    @property
    def num_data(self) -> int:
        return len(self.per_datum)

    @property
    def pareto_limit(self) -> float:
        """:func:`pareto_limit` of these weights."""
        return pareto_limit(self.num_weights)

    @property
    def weights_in_words(self) -> str:
        """The effective number of weights, and how far they can be trusted, in words."""
        k, limit = self.pareto_k[~self.pareto_k.isnan()], self.pareto_limit
        tail = "too few to see their tail"
        if len(k):
            tail = f"k̂ above {limit:.2f} for {float((k > limit).double().mean()):.0%}"
        few = float(self.per_datum_error.isnan().double().mean())
        if few and self.num_weights > 1:
            tail += f", and too little counts for an error of log p for {few:.0%}: take more"
        return f"{float(self.effective_samples.mean()):.1f} effective samples, {tail}"

    def __repr__(self) -> str:
        return f"{self._in_words} ({self.weights_in_words})"


@dataclass(frozen=True)
class Difference:
    """The difference of two bounds on the same data, ``first − second``, in bits/dim.

    It is negative where ``first`` is better. Each term is (mean, standard error over the data,
    Monte Carlo error included). A ``bits_per_dim`` within the range of rounding
    (:func:`rounding`) is set to 0, so that its interval contains 0 and p is 1.
    """

    first: str
    second: str
    bits_per_dim: tuple[float, float]
    reconstruction: tuple[float, float]
    prior_kl: tuple[float, float]
    diffusion: tuple[float, float]
    monte_carlo_error: float  # of bits_per_dim
    resolved: bool = False  # from 0, by Holm's procedure over all of the comparison at 5%
    context: tuple[float, float] = (0.0, 0.0)
    degrees: float = math.inf  # degrees of freedom of the error: the number of data, less one

    @classmethod
    def from_nats(
        cls,
        estimates: Mapping[str, Estimate],
        cost: Tensor,
        terms: Mapping[str, Measured],
        variance: Tensor,
        monte_carlo_error: float,
        dtypes: Iterable[torch.dtype],
    ) -> Difference:
        """A difference in bits/dim from one in nats.

        Args:
            estimates: estimates of the first and the second model, by name.
            cost: difference of the costs -elbo of each datum, first − second, (n,) nats.
            terms: differences of the terms of the bounds by name, nats.
            variance: variance of the noise of each cost, (n,).
            monte_carlo_error: Monte Carlo error of the mean cost, nats.
            dtypes: dtypes of data and weights, for :func:`rounding`.
        """
        first, second = estimates.values()
        total = Measured(float(cost.mean()), population_error(cost, variance, monte_carlo_error))
        if abs(total.mean) <= rounding(first, second, dtypes) < math.inf:
            total = Measured(0.0, total.standard_error)
        unit = first.num_dims * math.log(2)
        bits = {"bits_per_dim": total, **terms}
        bits["reconstruction"] = bits["reconstruction"].scaled(-1)
        scaled: dict[str, Any] = {name: (m / unit, e / unit) for name, (m, e) in bits.items()}
        error, degrees = monte_carlo_error / unit, len(cost) - 1
        one, other = estimates
        return cls(one, other, **scaled, monte_carlo_error=error, degrees=degrees)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of bits_per_dim, for this difference alone."""
        return Measured(*self.bits_per_dim).interval

    @property
    def p_value(self) -> float:
        """The two-sided p-value of the hypothesis that the difference is 0, by Student's t."""
        from scipy.special import stdtr  # loads in a tenth of the time of torch

        mean, error = self.bits_per_dim
        if not error > 0:
            return 1.0 if mean == 0 else 0.0
        t = abs(mean) / error * float(student_factor(self.degrees))
        return 2 * float(stdtr(self.degrees, -t))


@dataclass(frozen=True, repr=False)
class Comparison:
    """Estimates of several models at the same draws, and all pairwise differences."""

    estimates: dict[str, Estimate]
    differences: tuple[Difference, ...]
    network_calls: int  # network evaluations of one datum by one model, over all models
    half_width: float | None  # asked for, bits/dim
    reached: bool  # whether every 95% Monte Carlo half-width is within it

    def __repr__(self) -> str:
        """Bits/dim of each model with its error, then differences with their intervals."""
        rows = []
        for name, e in self.estimates.items():
            rows.append((name, str(Measured(e.bits_per_dim, e.bits_per_dim_error)), ""))
        for d in self.differences:
            low, high = (round(end, 4) + 0.0 for end in d.interval)  # + 0.0: no -0.0000
            interval = f"{low:.4f} to {high:.4f}{', resolved' if d.resolved else ''}"
            rows.append((f"{d.first} − {d.second}", str(Measured(*d.bits_per_dim)), interval))
        first = next(iter(self.estimates.values()))
        title = f"bounds of {first.num_data} data of {first.num_dims} dimensions, at the same draws"
        return table(title, ("", "bits/dim", "95% interval"), rows)


def resolved(differences: Iterable[Difference]) -> tuple[Difference, ...]:
    """The differences of a comparison, each marked as resolved from 0 or not."""
    differences = list(differences)
    rejected = holm([difference.p_value for difference in differences])
    return tuple(replace(d, resolved=r) for d, r in zip(differences, rejected, strict=True))


def holm(p_values: list[float], error_rate: float = 0.05) -> list[bool]:
    """Whether Holm's step-down procedure rejects each hypothesis, at a family-wise error rate."""
    rejected = [False] * len(p_values)
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[i] > error_rate / (len(p_values) - rank):
            break
        rejected[i] = True
    return rejected


def rounding(first: Estimate, second: Estimate, dtypes: Iterable[torch.dtype]) -> float:
    """The largest difference between two equal models that rounding may make, in nats.

    It is 16 units in the last place, by the coarsest dtype of data and weights, of the sum of all
    terms of both. Up to λ = 13 two forms of one exact score come out at most 0.3 units apart, and
    up to 5 where every result is moved by a unit: the sign of a score's rounding differs from draw
    to draw, so that it averages out.
    """
    terms = [abs(getattr(estimate, name)[0]) for estimate in (first, second) for name in ALL_TERMS]
    return 16 * max(torch.finfo(dtype).eps for dtype in dtypes) * sum(terms)


class Noise(NamedTuple):
    """The Monte Carlo variance of each datum's mean of draws, as estimated from the draws.

    The sample variance of few draws is a poor estimate: draws that missed a heavy tail look alike.
    So the variance of a datum is a mean of its sample variance and of that of all data, with the
    weight that predicts it best: by the covariance, over data, of the variances of one half of the
    draws and of the other.
    """

    variance: Tensor  # (n,) of the mean; NaN for a datum without draws
    degrees: Tensor  # (n,) degrees of freedom of the estimated variance

    @classmethod
    def from_draws(cls, draws: Tensor, counts: Tensor | None = None) -> Noise:
        """The noise of means of independent draws (R, n).

        Draws of data that ``counts`` (n,) leaves out are all equal, and have no noise.
        """
        number = torch.full(draws.shape[1:], float(len(draws)), dtype=torch.float64)
        square = draws.double().square().sum(0)
        spread, *halves = (_variance(some) for some in (draws, draws[::2], draws[1::2]))
        return cls.from_spread(spread, halves, square, number, counts)

    @classmethod
    def from_spread(
        cls,
        spread: Tensor,
        halves: Sequence[Tensor],
        square: Tensor,
        number: Tensor,
        counts: Tensor | None = None,
    ) -> Noise:
        """The noise of means of draws from their statistics for each datum, (n,).

        Args:
            spread: sample variance of the draws, NaN for fewer than two.
            halves: that of either half of the draws.
            square: sum of their squares.
            number: number of draws.
            counts: mask of the data with draws of their own; None: all.
        """
        counts = torch.ones_like(number, dtype=torch.bool) if counts is None else counts
        degrees = torch.where(counts, number - 1, 0).clamp_min(0)
        several = degrees > 0
        total, share = float(degrees.sum()), 0.0
        if total:
            pooled = (degrees * spread)[several].sum() / total
        else:  # where none is drawn twice, the differences between data count too
            total = max(float(number[counts].sum()), 1.0)
            pooled = square[counts].sum() / total
        if len(number) < FEWEST:
            share = 1.0
        elif int((split := several & halves[0].isfinite() & halves[1].isfinite()).sum()) >= FEWEST:
            between = torch.stack([halves[0][split], halves[1][split]]).cov()[0, 1]
            share = min(max(0.0, float(between / spread[split].var())), 1.0)  # 0 of NaN, 0 / 0
        one = torch.where(several, share * spread + (1 - share) * pooled, pooled)
        of_mean = torch.where(number > 0, one / number, math.nan)
        inverse = torch.where(several, share**2 / degrees + (1 - share) ** 2 / total, 1 / total)
        return cls(torch.where(counts, of_mean, 0), 1 / inverse)

    def plus(self, other: Noise) -> Noise:
        """The noise of a sum of two independent means (Welch and Satterthwaite's degrees)."""
        variance = self.variance + other.variance
        terms = (noise.variance.square() / noise.degrees for noise in (self, other))
        return Noise(variance, variance.square() / sum(terms))

    @property
    def error(self) -> Tensor:
        """Errors (n,) of which 1.96 are a 95% interval by Student's t."""
        factor = torch.where(self.degrees.isnan(), 1.0, student_factor(self.degrees))
        return self.variance.sqrt() * factor


def _variance(draws: Tensor) -> Tensor:
    """The variance of draws (R, n) of each datum, (n,); NaN for fewer than two."""
    return draws.double().var(0) if len(draws) > 1 else draws[0].double() * math.nan


def population_error(per_datum: Tensor, variance: Tensor, monte_carlo_error: float) -> float:
    """The standard error over data of the mean of estimates (n,), noise included.

    The variance between data is that of the data that were drawn minus the variance of their noise,
    (n,), NaN for the others, which have only a prediction. The noise of the mean is less than that
    of single data says, by draws of low discrepancy and densities pooled over rounds.
    """
    per_datum, variance = per_datum.cpu(), variance.cpu()
    drawn, n = variance.isfinite(), len(per_datum)
    between = float(per_datum[drawn].var() - variance[drawn].mean())
    factor = float(student_factor(int(drawn.sum()) - 1))
    return factor * math.sqrt(monte_carlo_error**2 + max(between, 0.0) / n)
