"""Estimates of bounds and of their differences, with their errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mdm.evaluation.weights import pareto_limit
from pyro_mdm.support.late_checks import settle
from pyro_mdm.support.measured import ALL_TERMS, NO_TERM, Measured, student_factor, table

__all__ = [
    "Comparison",
    "Difference",
    "Estimate",
    "FEWEST",
    "InBits",
    "Noise",
    "Weighted",
    "holm",
    "population_error",
    "resolved",
    "rounding",
]

FEWEST = 8
"""The fewest data whose spread gives an error."""


class InBits:
    """A mean over data in nats per datum, with its value in bits/dim."""

    mean: float
    standard_error: float
    num_dims: int

    def __post_init__(self) -> None:
        settle()  # no number without the answers to the checks on the way to it

    @property
    def bits_per_dim(self) -> float:
        """-mean / (d ln 2)."""
        return -self.mean / (self.num_dims * math.log(2))

    @property
    def bits_per_dim_error(self) -> float:
        """The standard error in bits/dim."""
        return self.standard_error / (self.num_dims * math.log(2))

    @property
    def _in_words(self) -> str:
        """The value in bits/dim, with its error if there is one."""
        error = self.bits_per_dim_error
        with_error = f" ± {error:.4f}" if math.isfinite(error) else ""
        return f"bits/dim {self.bits_per_dim:.4f}{with_error}"


@dataclass(frozen=True)
class Estimate(InBits):
    """A lower bound on the mean log-likelihood of a data set, in nats per datum, with its errors.

    ``standard_error`` is over the data (it includes the Monte Carlo error); ``monte_carlo_error``
    is the change that other noise for the same data would make.
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
        unit = self.num_dims * math.log(2)
        context = f", context {self.context[0] / unit:.4f}" if self.context[0] else ""
        return (
            f"{self._in_words} "
            f"(reconstruction {-self.reconstruction[0] / unit:.4f}, "
            f"prior KL {self.prior_kl[0] / unit:.4f}, "
            f"diffusion {self.diffusion[0] / unit:.4f}{context})"
        )


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

    It is negative where ``first`` is better.

    Each term is (mean, standard error over the data, Monte Carlo error included). A
    ``bits_per_dim`` within the range of rounding (:func:`rounding`) is set to 0, so that its
    interval contains 0 and p is 1.
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
        pair: tuple[str, str],
        total: Measured,
        terms: Mapping[str, Measured],
        monte_carlo_error: float,
        unit: float,
        floor: float,
        degrees: float,
    ) -> Difference:
        """A difference in bits/dim from one in nats.

        Args:
            pair: names of the first and the second model.
            total: difference of the costs -elbo, first − second, nats.
            terms: differences of the terms of the bounds by name, nats.
            monte_carlo_error: Monte Carlo error of the total, nats.
            unit: number of nats in a bit/dim, d ln 2.
            floor: size up to which a total becomes 0, nats.
            degrees: degrees of freedom of the total's error.
        """
        if abs(total.mean) <= floor < math.inf:
            total = Measured(0.0, total.standard_error)
        bits = {"bits_per_dim": total, **terms}
        bits["reconstruction"] = bits["reconstruction"].scaled(-1)
        scaled: dict[str, Any] = {name: (m / unit, e / unit) for name, (m, e) in bits.items()}
        return cls(*pair, **scaled, monte_carlo_error=monte_carlo_error / unit, degrees=degrees)

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
        models = [
            (name, f"{Measured(estimate.bits_per_dim, estimate.bits_per_dim_error)}", "")
            for name, estimate in self.estimates.items()
        ]
        pairs = []
        for d in self.differences:
            low, high = (round(end, 4) + 0.0 for end in d.interval)  # + 0.0: no -0.0000
            interval = f"{low:.4f} to {high:.4f}{', resolved' if d.resolved else ''}"
            pairs.append((f"{d.first} − {d.second}", f"{Measured(*d.bits_per_dim)}", interval))
        first = next(iter(self.estimates.values()))
        title = f"bounds of {first.num_data} data of {first.num_dims} dimensions, at the same draws"
        return table(title, ("", "bits/dim", "95% interval"), [*models, *pairs])


def resolved(differences: Iterable[Difference]) -> tuple[Difference, ...]:
    """The differences of a comparison, each marked as resolved from 0 or not."""
    every = list(differences)
    rejected = holm([difference.p_value for difference in every])
    return tuple(replace(d, resolved=r) for d, r in zip(every, rejected, strict=True))


def holm(p_values: list[float], error_rate: float = 0.05) -> list[bool]:
    """Whether Holm's step-down procedure rejects each hypothesis.

    Args:
        p_values: p-values of the hypotheses.
        error_rate: family-wise error rate.
    """
    rejected = [False] * len(p_values)
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank, i in enumerate(order):
        if p_values[i] > error_rate / (len(p_values) - rank):
            break
        rejected[i] = True
    return rejected


def rounding(first: Estimate, second: Estimate, dtypes: Iterable[torch.dtype]) -> float:
    """The largest difference between two equal models that rounding may make, in nats.

    It is 16 units in the last place of the sum of all terms of both. Up to λ = 13, in float64 or
    float32, two forms of one exact score come out at most 0.3 units apart on one processor, and up
    to 5 where every result is moved by a unit: the rounding error of a score grows with λ, but its
    sign differs from draw to draw, so that it averages out.

    Args:
        first: estimate of one model.
        second: estimate of the other.
        dtypes: dtypes of the data and of the scores' weights; the coarsest counts.
    """
    terms = [abs(getattr(estimate, name)[0]) for estimate in (first, second) for name in ALL_TERMS]
    return 16 * max(torch.finfo(dtype).eps for dtype in dtypes) * sum(terms)


class Noise(NamedTuple):
    """The Monte Carlo variance of each datum's mean of draws, as estimated from the draws.

    The sample variance of few draws is a poor estimate, worst where tails are heavy: draws that
    missed a tail are off and look alike. So the variance of a datum is a mean of its sample
    variance and of that of all data, with the weight that predicts it best: by the covariance, over
    data, of the variances of one half of the draws and of the other.
    """

    variance: Tensor  # (n,) of the mean; NaN for a datum without draws
    degrees: Tensor  # (n,) degrees of freedom of the estimated variance

    @classmethod
    def from_draws(cls, draws: Tensor, counts: Tensor | None = None) -> Noise:
        """The noise of means of independent draws.

        Args:
            draws: draws of each datum, (R, n).
            counts: mask of the data with draws of their own, bool, (n,); the draws of others are
                all equal, and have no noise. None: all.
        """
        R, n = draws.shape
        number = torch.full((n,), float(R), dtype=torch.float64)
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
        """The noise of means of draws, from their sample variances.

        Args:
            spread: sample variance of a datum's draws, (n,); NaN for fewer than two.
            halves: sample variance of each half of the draws, two of (n,).
            square: sum of squares of the draws, (n,).
            number: number of draws, (n,).
            counts: mask of the data with draws of their own, bool, (n,); None: all.
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
        inverse_degrees = torch.where(
            several, share**2 / degrees + (1 - share) ** 2 / total, 1 / total
        )
        return cls(torch.where(counts, of_mean, 0), 1 / inverse_degrees)

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
    """The standard error over data of their mean, noise included.

    The variance between data is that of the data that were drawn minus the variance of their noise;
    the others have only a prediction, with another spread. The noise of single data says little of
    the mean's, because draws of low discrepancy and densities pooled over rounds reduce it.

    Args:
        per_datum: estimates, (n,).
        variance: variance of their noise, (n,); NaN where a datum was not drawn.
        monte_carlo_error: Monte Carlo error of the mean.
    """
    per_datum, variance = per_datum.cpu(), variance.cpu()
    drawn, n = variance.isfinite(), len(per_datum)
    between = float(per_datum[drawn].var() - variance[drawn].mean())
    factor = float(student_factor(int(drawn.sum()) - 1))
    return factor * math.sqrt(monte_carlo_error**2 + max(between, 0.0) / n)
