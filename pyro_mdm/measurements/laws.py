r"""The noise of a measurement: distributions of observations given clean measurements u = H x.

Noise is a function of u that returns the distribution of obs, entry by entry, such as
``lambda u: dist.Poisson(u.clamp_min(0) * 100)`` or ``lambda u: dist.Laplace(u, 0.1)``. Two such
distributions that torch lacks are here, and the Gaussian sites by which guidance replaces any. With
``u ~ N(û, v)``, the moments m, V of ``p(u | obs) ∝ N(u; û, v) p(obs | u)`` are those after an
observation ``y = u + N(0, r)`` with

    1/r = 1/V - 1/v,    y = û + (m - û) (v + r)/v,    p(obs | u) ≈ ζ N(y; u, r)

which is one pass of expectation propagation. Gaussian noise is its own site.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.special import log_ndtr

from pyro_mdm.levels.discrete import nearest_level
from pyro_mdm.support.checks import check_shape, checked_arguments, describe

__all__ = ["Clipped", "Law", "Quantized", "Sites", "gaussian_sites", "likeliest", "log_prob_of"]

Law = Callable[[Tensor], Distribution]
"""Noise: a function of clean measurements, (*batch, *obs_shape), that returns the distribution of
observations, with this batch shape."""

WINDOWS, CUT = (17, 17, 49), 18.0
"""The numbers of nodes of windows of u, one inside the other, and the nats below the largest node
at which a window ends: e^{-18} = 1.5e-8 of its density."""
WEAKEST = 1e-3
"""The least v / r of a site, for noise that leaves u as wide as it was, or wider: a Gaussian site
cannot widen it."""
FAR = 1e6
"""Standard deviations at which arguments of log Φ are clamped, so that no infinite one makes
NaN."""
SCANNED, AT_ONCE = 257, 2**22
"""Clean measurements at which p(obs | u) is evaluated for each observation, and the most numbers
that are evaluated together, which bounds the memory."""


# -- distributions ---------------------------------------------------------------------------------


class _Entries(TorchDistribution):
    """Entries of observations that are independent given u + N(0, scale²)."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    loc: Tensor
    scale: Tensor

    @checked_arguments
    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> _Entries:
        new = self._get_checked_instance(type(self), _instance)
        loc, scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        inherited = {"_batch_shape": torch.Size(batch_shape), "_validate_args": False}
        new.__dict__.update(self.__dict__, loc=loc, scale=scale, **inherited)
        return new

    def _noised(self, sample_shape: Sequence[int]) -> Tensor:
        """Draws of u + N(0, scale²)."""
        noise = torch.randn((*sample_shape, *self.batch_shape), dtype=self.loc.dtype)
        return self.loc + self.scale * noise.to(self.loc.device)

    def _checked(self, value: Tensor) -> None:
        check_shape("value", value, ())
        if self._validate_args:
            self._validate_sample(value)


class Quantized(_Entries):
    """The distribution of the level that is nearest to u + N(0, scale²).

    The first and the last level have all values beyond them.

    Args:
        loc: clean measurements u, (*batch).
        levels: levels in ascending order, (L,), in the units of u.
        scale: the standard deviation of noise before rounding, a number or (*batch); 0: no noise.

    Raises:
        ValueError: fewer than two levels, levels that do not ascend, a negative scale.

    Example:
        >>> bits = Quantized(torch.tensor([0.1, 0.9]), torch.tensor([0.0, 1.0]))
        >>> bits.log_prob(torch.tensor([0.0, 1.0]))
        tensor([0., 0.])
    """

    @checked_arguments
    def __init__(
        self,
        loc: Tensor,
        levels: Tensor | Sequence[float],
        scale: float | Tensor = 0.0,
        validate_args: bool | None = None,
    ) -> None:
        self.levels = torch.as_tensor(levels, dtype=loc.dtype, device=loc.device)
        self.scale = _scale(scale, loc)
        if self.levels.dim() != 1 or len(self.levels) < 2 or bool((self.levels.diff() <= 0).any()):
            raise ValueError(
                f"levels are {describe(levels)}, expected at least two in ascending order, (L,); "
                "write levels.unique()"
            )
        self.loc, self.scale = torch.broadcast_tensors(loc, self.scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The levels."""
        return _Levels(self.levels)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log probability of the bin of ``value``, nats, (*batch)."""
        self._checked(value)
        edges = (self.levels[1:] + self.levels[:-1]) / 2
        ends = torch.cat([edges.new_tensor([-math.inf]), edges, edges.new_tensor([math.inf])])
        k = nearest_level(value, self.levels)[0]
        low, high = ends[k] - self.loc, ends[k + 1] - self.loc
        exact = self.scale == 0
        inside = torch.where((low <= 0) & (high > 0), 0.0, -math.inf)
        scale = torch.where(exact, 1, self.scale)
        low, high = (low / scale).clamp(-FAR, FAR), (high / scale).clamp(-FAR, FAR)
        above = low > 0  # the upper tail is the lower one of -u, where digits are not lost
        low, high = torch.where(above, -high, low), torch.where(above, -low, high)
        at_high = log_ndtr(high)
        noisy = at_high + torch.log1p(-torch.exp(log_ndtr(low) - at_high))
        return torch.where(exact, inside.to(noisy.dtype), noisy)

    @torch.no_grad()
    @checked_arguments
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.levels[nearest_level(self._noised(sample_shape), self.levels)[0]]


class _Levels(constraints.Constraint):
    is_discrete = True

    def __init__(self, levels: Tensor) -> None:
        self.levels = levels

    def check(self, value: Tensor) -> Tensor:
        nearest = self.levels[nearest_level(value, self.levels)[0]]
        # levels that went through float32 are still levels
        return (value - nearest).abs() <= 1e-6 * (self.levels[-1] - self.levels[0])


class Clipped(_Entries):
    """The distribution of u + N(0, scale²) clipped to an interval, whose ends have probabilities.

    ``log_prob`` is a log density inside and a log probability at the ends; the float32 number that
    is nearest to an end counts as that end. Without noise use a
    :class:`~pyro_mdm.measurements.Mask` of the dimensions that are not clipped.

    Args:
        loc: clean measurements u, (*batch).
        scale: the standard deviation of noise before clipping, positive, a number or (*batch).
        low, high: the ends of the interval, in the units of u; infinite: no end.

    Raises:
        ValueError: a scale that is not positive, an empty interval.

    Example:
        >>> white = Clipped(torch.tensor([2.0]), 0.1, high=1.0)
        >>> white.sample()
        tensor([1.])
    """

    @checked_arguments
    def __init__(
        self,
        loc: Tensor,
        scale: float | Tensor,
        low: float = -math.inf,
        high: float = math.inf,
        validate_args: bool | None = None,
    ) -> None:
        self.scale, self.low, self.high = _scale(scale, loc), low, high
        if bool((self.scale == 0).any()) or not low < high:
            raise ValueError(
                f"scale reaches {self.scale.min().item():.3g}, and the ends are {low} and {high}, "
                "expected a positive scale and low < high; without noise leave out what is clipped"
            )
        self.loc, self.scale = torch.broadcast_tensors(loc, self.scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The interval, with its ends as float32 has them."""
        (low, nearest_low), (high, nearest_high) = map(_both, (self.low, self.high))
        return constraints.interval(min(low, nearest_low), max(high, nearest_high))

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density of ``value``, or its log probability at an end, nats, (*batch)."""
        self._checked(value)
        rest = (value - self.loc) / self.scale
        inside = -0.5 * rest.square() - (math.sqrt(2 * math.pi) * self.scale).log()
        at_high = torch.where(value >= min(_both(self.high)), log_ndtr(-rest), inside)
        return torch.where(value <= max(_both(self.low)), log_ndtr(rest), at_high)

    @torch.no_grad()
    @checked_arguments
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self._noised(sample_shape).clamp(self.low, self.high)


def _both(end: float) -> tuple[float, float]:
    """An end, and the float32 number that is nearest to it, which data of float32 have there."""
    return end, float(np.float32(end))


def _scale(scale: float | Tensor, loc: Tensor) -> Tensor:
    value = torch.as_tensor(scale, dtype=loc.dtype, device=loc.device)
    if value.dim() and value.shape != loc.shape:
        raise ValueError(
            f"scale has shape {tuple(value.shape)}, expected one number, or {tuple(loc.shape)}, "
            "the shape of loc"
        )
    if not bool(((value >= 0) & value.isfinite()).all()):
        raise ValueError(
            f"scale reaches {value.min().item():.3g}, expected finite standard deviations, none "
            "below 0"
        )
    return value


# -- Gaussian sites --------------------------------------------------------------------------------


class Sites(NamedTuple):
    """Gaussian observations that replace others, (n, *obs_shape) in float64.

    See :mod:`pyro_mdm.measurements.laws`.
    """

    obs: Tensor  # y
    variance: Tensor  # r > 0
    log_p: Tensor  # Σ log p(obs) + ½ (y - û)² / (v + r), (n,), with u ~ N(û, v) entry by entry
    scale: Tensor | None  # (v + r)^{-½}, which scales the equations; None: 1


def gaussian_sites(law: Law, obs: Tensor, mean: Tensor, variance: Tensor, peak: Tensor) -> Sites:
    """Sites of observations where u ~ N(mean, variance), entry by entry.

    Moments are sums over nodes of a window that closes in on p(u | obs). They have derivatives in
    the mean, the variance and the parameters of the noise. Where p(u | obs) is as wide as
    N(mean, variance), or wider, the site keeps the mean, and has the variance a thousand v.

    Args:
        law: the noise.
        obs: observations, (n, *obs_shape).
        mean: the means û, like obs.
        variance: the variances v, like obs, positive.
        peak: points u at which p(obs | u) is largest, or positive, like obs; no window leaves them
            out.

    Returns:
        The :class:`Sites`.
    """
    v = variance

    def tilted(u: Tensor) -> Tensor:
        return log_prob_of(law(u), obs) - 0.5 * (u - mean).square() / v

    def nodes(number: int) -> Tensor:
        fraction = torch.linspace(0, 1, number, dtype=mean.dtype, device=mean.device)
        return low + (high - low) * fraction.reshape(-1, *[1] * mean.dim())

    with torch.no_grad():  # where nodes lie does not change the integral
        low, high = mean - 8 * v.sqrt(), mean + 8 * v.sqrt()
        low, high = torch.minimum(low, peak), torch.maximum(high, peak)
        for number in WINDOWS[:-1]:
            u = torch.cat([nodes(number), peak.unsqueeze(0)])
            log_p = tilted(u)
            kept, step = log_p > log_p.amax(0) - CUT, (high - low) / (number - 1)
            low = torch.where(kept, u, math.inf).amin(0) - step
            high = torch.where(kept, u, -math.inf).amax(0) + step
    u = nodes(WINDOWS[-1])
    log_p = tilted(u)
    w = log_p.softmax(0)
    m = (w * u).sum(0)
    V = (w * (u - m).square()).sum(0)
    step = (high - low) / (WINDOWS[-1] - 1)
    r = v / (v / V - 1).clamp_min(WEAKEST)
    rest = (m - mean) * (v + r) / v
    log_Z = log_p.logsumexp(0) + step.log() - 0.5 * (2 * math.pi * v).log()
    fit = log_Z + 0.5 * rest.square() / (v + r)
    return Sites(mean + rest, r, fit.flatten(1).sum(1), (v + r).rsqrt())


# -- what is refused -------------------------------------------------------------------------------


@torch.no_grad()
def likeliest(law: Law, obs: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """The clean measurements at which p(obs | u) is largest, like obs.

    They are looked for at obs, and within ten standard deviations of the mean of clean
    measurements, from the mean outwards.

    Args:
        law: the noise.
        obs: observations, (n, *obs_shape).
        mean, spread: the mean and the standard deviation of clean measurements, (*obs_shape).

    Raises:
        TypeError: noise that returns no distribution.
        ValueError: noise that fails for some u, or has other shapes; obs that are impossible.
    """
    grid = torch.linspace(-1, 1, SCANNED, dtype=obs.dtype, device=obs.device)
    best, peak = _log_prob(law, obs.unsqueeze(0), obs)[0], obs
    for piece in grid[grid.abs().argsort()].split(max(1, AT_ONCE // obs.numel())):
        u = mean + 10 * spread * piece.reshape(-1, *[1] * obs.dim())
        u = u.expand(-1, *obs.shape)
        largest, k = _log_prob(law, u, obs).max(0)
        larger = largest > best
        best = torch.where(larger, largest, best)
        peak = torch.where(larger, u.gather(0, k[None])[0], peak)
    if not bool(best.isfinite().all()):
        where = tuple((~best.isfinite()).nonzero()[0].tolist())
        ends = [(mean + k * spread)[where[1:]].item() for k in (-10, 10)]
        raise ValueError(
            f"noise gives obs {obs[where].item():g} at {where[1:]} the log probability "
            f"{best[where].item():g} whatever u is, from {ends[0]:.3g} to {ends[1]:.3g}, expected "
            "a finite one for some u = H x; correct the units of obs or of the law"
        )
    return peak


def log_prob_of(distribution: Distribution, obs: Tensor) -> Tensor:
    """log p(obs), nats, entry by entry; NaN, as of 0 log 0, is -∞."""
    log_p: Tensor = distribution.log_prob(obs)
    return torch.where(log_p.isnan(), -math.inf, log_p)


@contextmanager
def _validating() -> Iterator[None]:
    """torch's checks of distributions, which some packages turn off for all."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(True)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


@_validating()
def _log_prob(law: Law, u: Tensor, obs: Tensor) -> Tensor:
    """log p(obs | u), like u, checked."""
    try:
        noised = law(u)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"noise(u) fails for u from {u.min().item():.3g} to {u.max().item():.3g}, of shape "
            f"{tuple(u.shape)}: {_first_line(error)}; expected a distribution for all real u; clamp"
            " what must be positive, e.g. dist.Poisson(u.clamp_min(0) * 100)"
        ) from error
    if not isinstance(noised, Distribution):
        raise TypeError(
            f"noise(u) is {describe(noised)}, expected a distribution of obs; give a function of "
            "clean measurements, e.g. lambda u: dist.Laplace(u, 0.1)"
        )
    if noised.event_shape or noised.batch_shape != u.shape:
        raise ValueError(
            f"noise(u) has batch shape {tuple(noised.batch_shape)} and event shape "
            f"{tuple(noised.event_shape)} for u of shape {tuple(u.shape)}, expected a distribution "
            "of each entry of u by itself; leave out .to_event, sums and shapes of its own"
        )
    try:
        return log_prob_of(noised, obs)
    except ValueError as error:
        raise ValueError(
            f"obs reaches from {obs.min().item():g} to {obs.max().item():g}, which "
            f"{type(noised).__name__} does not allow: {_first_line(error)}; correct obs or the law,"
            " or write validate_args=False where its support depends on u"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".:, ")
