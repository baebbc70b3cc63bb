r"""Numerics of data with levels: a fitted prior, posterior moments and mixtures of Gaussians.

A dimension j takes the values v_1 < … < v_n with prior probabilities π_jk. Every posterior of this
library has, up to a constant in k, the log-odds

    ℓ_jk = log π_jk + α_j δ_k + β_j δ_k²,    δ_k = v_k - c_j,

for any centre c: the noise ``N(z; v_k, e^{-λ})`` contributes α = e^λ (z - c), β = -½ e^λ, and a
tilt by a network adds to both. The centre is the point of [v_1, v_n] nearest z, so that float32
works up to λ = 16 (raw moments fail at 13) and for z far outside the levels. With E and Cov under
softmax(ℓ_j)

    ∂E[δ]/∂α = Var δ,    ∂E[δ]/∂β = Cov(δ, δ²) = E(δ - E δ)³ + 2 E[δ] Var δ,

so one pass gives value and gradients. It runs block by block, in cache, and no tensor with a level
axis outlives its block: all at once, 128 CIFAR images of 256 levels take 400 MB per tensor. Means
over even levels on a CPU are faster by :mod:`~pyro_mdm.levels.even_levels`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.distributions import biject_to, transform_to
from torch.distributions.constraints import Constraint

from pyro_mdm.levels.even_levels import EvenLevels
from pyro_mdm.support.checks import check_count, check_values, real_tensor
from pyro_mdm.support.modules import cached_on

__all__ = [
    "LevelSupport",
    "LogOdds",
    "Window",
    "check_log_prior",
    "level_index",
    "level_values",
    "level_window",
    "log_normalizer",
    "mean_terms",
    "mixture_kl",
    "nearest_level",
    "noise_odds",
    "posterior_mean",
    "smoothed_histogram",
]

# elements (dimensions times levels) worked on at once: in cache on a CPU, enough to fill a GPU
CPU_BLOCK = 2**18
DEVICE_BLOCK = 2**26

NEGLIGIBLE = 44.0  # log-odds this far below the largest are lost when added to it in float64
REACH = 8.5  # standard deviations of noise that quadrature covers
SMALLEST = torch.finfo(torch.float64).tiny  # densities are not below it


# -- levels ----------------------------------------------------------------------------------------
def level_values(levels: int | Sequence[float] | Tensor) -> Tensor:
    """Levels (n,) in float64: ``linspace(-1, 1, n)`` for a number n, or increasing values.

    Raises ValueError for fewer than two, or values that are not finite and strictly increasing.
    """
    if isinstance(levels, (int, float, str)):
        check_count("levels", levels, "the number of levels", 2)
        return torch.linspace(-1.0, 1.0, levels, dtype=torch.float64)
    values = real_tensor("levels", levels, "increasing values (n,), or their number").clone()
    if values.dim() != 1 or len(values) < 2:
        raise ValueError(
            f"levels has shape {tuple(values.shape)}, expected at least two values (n,), or their "
            "number n for linspace(-1, 1, n)"
        )
    if not bool(values.isfinite().all()) or not bool((values.diff() > 0).all()):
        raise ValueError(f"levels are {values.tolist()}, expected finite, strictly increasing ones")
    return values


class LevelSupport(Constraint):
    """A constraint that each dimension takes one of some levels (n,), or any number.

    A vector may have levels for each dimension, None for a continuous one.
    """

    is_discrete = True

    def __init__(self, levels: Tensor | Sequence[Tensor | None]) -> None:
        self.levels = levels
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Whether each entry is one of its levels, or a number, like the value."""
        if isinstance(self.levels, Tensor):
            return nearest_level(value, self.levels)[1]
        pairs = zip(value.unbind(-1), self.levels, strict=True)
        return torch.stack([x == x if v is None else nearest_level(x, v)[1] for x, v in pairs], -1)

    def __repr__(self) -> str:
        if isinstance(self.levels, Tensor):
            return f"{len(self.levels)} levels"
        number = sum(levels is not None for levels in self.levels)
        return f"levels in {number} of {len(self.levels)} dimensions"


@biject_to.register(LevelSupport)
@transform_to.register(LevelSupport)
def _no_way_between(constraint: LevelSupport) -> NoReturn:
    raise NotImplementedError(
        f"x takes {constraint!r}, and HMC, NUTS and autoguides need continuous values. Observe x "
        "(obs=...), or hide its site from the inference, e.g. poutine.block(model, hide=['x'])"
    )


def level_index(x: Tensor, levels: Tensor) -> Tensor:
    """The index k with x = v_k, int64, like x, for increasing levels v (n,).

    Raises ValueError for a value further from every level than a thousandth of the smallest gap.
    """
    index, on = nearest_level(x, levels)
    check_values(on.all(), partial(_report_off, x, levels, on))
    return index


def _report_off(x: Tensor, levels: Tensor, on: Tensor) -> None:
    off = ~on
    raise ValueError(
        f"x holds {x[off][0].item():.6g} ({int(off.sum())} of {x.numel()} values are off the "
        f"levels), expected one of the {len(levels)} levels between {levels[0].item():g} and "
        f"{levels[-1].item():g}; map uint8 values k to linspace(-1, 1, {len(levels)})[k]"
    )


def nearest_level(x: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest level's index, and whether x is on it, to a thousandth of the smallest gap."""
    levels = levels.to(x.device)
    value = x.detach().to(levels.dtype).contiguous()  # an index has no gradient
    gaps = cached_on(levels, "gaps", _Gaps.from_levels)
    index = torch.bucketize(value, gaps.middles)
    return index, (value - levels[index]).abs() <= 1e-3 * gaps.least


class _Gaps(NamedTuple):
    """The gaps between neighbouring levels."""

    even: bool
    lowest: float  # level
    first: float
    least: float
    middles: Tensor  # (n - 1,)

    @classmethod
    def from_levels(cls, levels: Tensor) -> _Gaps:
        gaps = levels.diff()
        # 1e-9: the rounding of linspace, and far less than the 1e-3 of a gap that counts as off
        even = bool((gaps - gaps[0]).abs().max() <= 1e-9 * gaps[0])
        lowest, first, least = levels[0].item(), gaps[0].item(), gaps.min().item()
        return cls(even, lowest, first, least, (levels[1:] + levels[:-1]) / 2)


def check_log_prior(log_prior: Tensor, n: int) -> Tensor:
    """The log-prior (*event_shape, n) in float64, normalized to the last digit.

    Raises:
        ValueError: another shape, entries that are not finite, or not normalized.
    """
    if log_prior.dim() < 2 or log_prior.shape[-1] != n or not log_prior.numel():
        raise ValueError(
            f"log_prior has shape {tuple(log_prior.shape)}, expected (*event_shape, {n}) with at "
            f"least one event dimension, for {n} levels"
        )
    log_prior = log_prior.detach().double()
    if not bool(log_prior.isfinite().all()):
        bad = log_prior[~log_prior.isfinite()][0].item()
        raise ValueError(
            f"log_prior holds {bad}, expected finite log-probabilities; smooth the histogram"
        )
    total = log_prior.logsumexp(-1)
    # float32 is off by its rounding, which is taken off below; more than 1e-4 is a mistake
    if (off := total.abs().max().item()) > 1e-4:
        raise ValueError(
            f"log_prior is not normalized: log Σ_k π_k reaches ±{off:.3g}, expected 0; use "
            "log_softmax over the last axis"
        )
    return log_prior - total.unsqueeze(-1)


def smoothed_histogram(x: Tensor, levels: Tensor) -> Tensor:
    """Log-probabilities of each level (n,) in each dimension, (*event_shape, n), of data (N, …).

        π_jk = (c_jk + κ_j g_k) / (N + κ_j),    g_k = (Σ_j c_jk + 1) / (N d + n),

    with c_jk the counts over N data and g the histogram pooled over the d dimensions. κ_j ≥ 1, the
    weight of the pool in dimension j, maximizes the leave-one-out likelihood of the data. NaN
    entries are missing, and N counts the others.
    """
    if x.dim() < 2 or x.shape[0] == 0:
        raise ValueError(f"data has shape {tuple(x.shape)}, expected (N, *event_shape) with N ≥ 1")
    n, d = len(levels), x[0].numel()
    counts = torch.zeros(d * n, dtype=torch.float64, device=x.device)
    offset = n * torch.arange(d, device=x.device)
    for batch in x.reshape(len(x), d).split(1024):
        missing = batch.isnan()
        bins = level_index(torch.where(missing, levels[0].to(batch), batch), levels) + offset
        counts += torch.bincount(bins[~missing], minlength=d * n)
    counts = counts.reshape(d, n)
    pool, N = counts.sum(0), counts.sum(1)
    # without one datum its count and its share of the pool are one less
    rest, g = (counts - 1).clamp_min(0), pool / (N.sum() - 1 + n)
    best, kappa = torch.full((2, d), -math.inf, dtype=torch.float64, device=x.device)
    for k in torch.logspace(0, 5, 51, dtype=torch.float64).tolist():  # κ, ten to a decade
        fit = torch.xlogy(counts, (rest + k * g) / (N[:, None] - 1 + k)).sum(-1)
        kappa = torch.where(fit > best, k, kappa)
        best = torch.maximum(fit, best)
    prior = counts + kappa[:, None] * (pool + 1) / (N.sum() + n)
    prior = prior / (N + kappa)[:, None]
    return prior.log().reshape(*x.shape[1:], n)


# -- moments ---------------------------------------------------------------------------------------
class Window(NamedTuple):
    """A window of ``size`` levels in each dimension, from index ``first`` on, like the data."""

    first: Tensor
    size: int


class LogOdds(NamedTuple):
    """The log-odds ℓ_jk = log π_jk + α_j δ_k + β_j δ_k², δ_k = v_k - c_j, of data (*batch, *event).

    α and β are broadcastable to the centre c, which is a constant; all is computed in its dtype.
    """

    log_prior: Tensor  # (*event, n)
    levels: Tensor  # (n,)
    centre: Tensor  # (*batch, *event)
    linear: Tensor
    quadratic: Tensor
    window: Window | None = None  # of levels, beyond which all are 0 up to rounding

    def at_levels(self) -> tuple[Tensor, Tensor]:
        """ℓ and δ of all levels, or those of the window, (*batch, *event, levels) each."""
        prior, levels = self.log_prior.to(self.centre.dtype), self.levels.to(self.centre.dtype)
        if self.window is not None:
            within = torch.arange(self.window.size, device=levels.device)
            index = self.window.first[..., None] + within
            prior, levels = prior.expand(*self.centre.shape, -1).gather(-1, index), levels[index]
        delta = levels - self.centre[..., None]
        slope = torch.addcmul(self.linear[..., None], self.quadratic[..., None], delta)
        return torch.addcmul(prior, slope, delta), delta

    def at(self, index: Tensor) -> Tensor:
        """ℓ of the levels of an index (*batch, *event)."""
        prior, levels = self.log_prior.to(self.centre.dtype), self.levels.to(self.centre.dtype)
        event = prior.shape[:-1]
        rows = torch.arange(event.numel(), device=index.device).reshape(event)
        delta = levels[index] - self.centre
        slope = torch.addcmul(self.linear, self.quadratic, delta)
        return torch.addcmul(prior.flatten(0, -2)[rows, index], slope, delta)

    def expand(self, shape: Sequence[int]) -> LogOdds:
        """The log-odds of data of a shape (*batch, *event), all tensors in full."""
        c, alpha, beta = (t.expand(shape) for t in self[2:5])
        window = self.window and Window(self.window.first.expand(shape), self.window.size)
        return LogOdds(self.log_prior, self.levels, c, alpha, beta, window)

    def flat(self) -> LogOdds:
        """The log-odds of data (B, d), an event of one axis."""
        prior, levels, *tensors, window = self.expand(self.centre.shape)
        d = prior.shape[:-1].numel()
        c, alpha, beta = (t.reshape(-1, d) for t in tensors)
        window = window and Window(window.first.reshape(-1, d), window.size)
        return LogOdds(prior.flatten(0, -2), levels, c, alpha, beta, window)

    def compute(self, function: Function) -> tuple[Tensor, ...]:
        """The values of a function of ℓ and δ, (*batch, *event, …) each, without a graph.

        They are computed piece by piece, so that no tensor of all data has an axis of levels.
        """
        shape, n = self.centre.shape, self.window.size if self.window else len(self.levels)
        room = (CPU_BLOCK if self.levels.is_cpu else DEVICE_BLOCK) // n
        # a compiler makes one kernel of the definition
        if self.centre.numel() <= room or torch.compiler.is_compiling():
            return function(*self.at_levels())
        prior, levels, c, alpha, beta, window = self.flat()
        rows = max(1, room // c.shape[1])
        blocks = []
        for R in (slice(i, i + rows) for i in range(0, len(c), rows)):
            pieces = []
            for C in (slice(j, j + max(1, room)) for j in range(0, c.shape[1], max(1, room))):
                here = window and Window(window.first[R, C], window.size)
                piece = LogOdds(prior[C], levels, c[R, C], alpha[R, C], beta[R, C], here)
                pieces.append(function(*piece.at_levels()))
            blocks.append([torch.cat(values, 1) for values in zip(*pieces, strict=True)])
        values = (torch.cat(block) for block in zip(*blocks, strict=True))
        return tuple(value.reshape(*shape, *value.shape[2:]) for value in values)


Function = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
"""A function of ℓ and δ, whose last axis is that of levels."""
Terms = Callable[[Tensor, Tensor, bool], tuple[Tensor, ...]]
"""A value and, with a flag, its derivatives in α and β, from ℓ and δ."""


def noise_odds(log_prior: Tensor, levels: Tensor, z: Tensor, log_snr: Tensor) -> LogOdds:
    """The log-odds of ``π_jk N(z; v_k, e^{-λ})`` in the dtype of z; λ is broadcastable to z."""
    # detached: no result depends on the centre, but for rounding
    centre = z.detach().clamp(levels[0].to(z.dtype), levels[-1].to(z.dtype))
    snr = log_snr.exp().to(z.dtype)
    return LogOdds(log_prior, levels, centre, snr * (z - centre), -0.5 * snr)


def level_window(odds: LogOdds, log_snr: float, log_prior: Tensor | None) -> Window | None:
    """The even levels about each centre that change a posterior under noise alone, in float64.

    With v_0 the level nearest z, level k weighs at most exp(R - ½ e^λ ((v_k - z)² - (v_0 - z)²)),
    where R is the largest difference of log π_jk within a dimension.

    Args:
        odds: log-odds of noise alone.
        log_snr: smallest log SNR λ among the data.
        log_prior: log π, (*event_shape, n); None: a flat prior.

    Returns:
        The window, with ``first`` like the centre; None for uneven levels, and where it has more
        than half of the levels, as gathering them costs more than summing all.
    """
    n, gaps = len(odds.levels), cached_on(odds.levels, "gaps", _Gaps.from_levels)
    prior_range = 0.0 if log_prior is None else cached_on(log_prior, "range", _largest_range)
    reach = math.sqrt(2 * (prior_range + NEGLIGIBLE) * math.exp(-log_snr) + gaps.first**2 / 4)
    size = int(2 * reach / gaps.first) + 1
    if not gaps.even or 2 * size > n:
        return None
    first = ((odds.centre - (gaps.lowest + reach)) / gaps.first).ceil_().nan_to_num_()
    return Window(first.clamp_(0, n - size).to(torch.int64), size)


def _largest_range(log_prior: Tensor) -> float:
    return (log_prior.amax(-1) - log_prior.amin(-1)).max().item()


class _Context(FunctionCtx):
    """The values that a function of ℓ keeps for its gradient."""

    odds: LogOdds
    terms: Terms
    saved_tensors: tuple[Tensor, ...]


class _OfLogOdds(torch.autograd.Function):
    """A function of ℓ that keeps its derivatives in α and β: two numbers per dimension.

    A graph of the gradient (``create_graph``) holds all levels at once.
    """

    @staticmethod
    def forward(
        ctx: _Context,
        linear: Tensor,
        quadratic: Tensor,
        odds: LogOdds,
        computed: tuple[Tensor, ...],
        terms: Terms,
    ) -> Tensor:
        value, *derivatives = computed
        ctx.odds, ctx.terms = odds, terms
        ctx.save_for_backward(linear, quadratic, *derivatives)
        return value

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        linear, quadratic, first, second = ctx.saved_tensors
        if torch.is_grad_enabled():
            odds = ctx.odds._replace(linear=linear, quadratic=quadratic)
            _, first, second = ctx.terms(*odds.at_levels(), True)
        return grad * first, grad * second, None, None, None


def posterior_mean(odds: LogOdds, even: EvenLevels | None = None) -> Tensor:
    """E[v_k - c_j], (*batch, *event), under log-odds, differentiable in α and β.

    Args:
        odds: the log-odds.
        even: tables of this prior, which make float32 on a CPU fast; None: none.
    """
    return _of_log_odds(odds, mean_terms, even)


def mean_terms(log_odds: Tensor, delta: Tensor, spread: bool = False) -> tuple[Tensor, ...]:
    """E[δ] and, if ``spread``, Var δ and Cov(δ, δ²)."""
    p = log_odds.softmax(-1)
    mean = (p * delta).sum(-1)
    if not spread:
        return (mean,)
    off = delta - mean[..., None]
    square = p * off * off
    variance = square.sum(-1)
    return mean, variance, (square * off).sum(-1) + 2 * mean * variance


def log_normalizer(odds: LogOdds) -> Tensor:
    """log Σ_k exp ℓ_jk over the levels of the window, like the data, differentiable in α and β."""
    return _of_log_odds(odds, _normalizer_terms)


def _normalizer_terms(log_odds: Tensor, delta: Tensor, spread: bool) -> tuple[Tensor, ...]:
    """log Σ exp ℓ and, if ``spread``, E[δ] and E[δ²]."""
    value = log_odds.logsumexp(-1)
    if not spread:
        return (value,)
    first = (log_odds - value[..., None]).exp() * delta
    return value, first.sum(-1), (first * delta).sum(-1)


def _of_log_odds(odds: LogOdds, terms: Terms, even: EvenLevels | None = None) -> Tensor:
    """The first of the terms, like the data, differentiable in α and β by the others."""
    linear, quadratic, centre = odds.linear, odds.quadratic, odds.centre
    spread = torch.is_grad_enabled() and (linear.requires_grad or quadratic.requires_grad)
    with torch.no_grad():
        if even is not None and centre.dtype == torch.float32 and centre.is_cpu:
            computed = even.moments(*odds.flat()[2:5], spread=spread)
            computed = tuple(value.reshape(centre.shape) for value in computed)
        else:
            computed = odds.compute(lambda at, delta: terms(at, delta, spread))
    if not spread:
        return computed[0]
    linear, quadratic = linear.expand_as(centre), quadratic.expand_as(centre)
    return _OfLogOdds.apply(linear, quadratic, odds, computed, terms)


# -- the divergence of a noised datum from the noised prior ----------------------------------------
def mixture_kl(log_prior: Tensor, levels: Tensor, log_snr: float) -> Tensor:
    """The divergence of a noised level from the noised prior, (d, n) float64, in nats, to 1e-9.

    For every dimension j and level k it is ``KL( N(v_k, e^{-λ}) ‖ Σ_l π_jl N(v_l, e^{-λ}) )``, for
    log π (d, n) above -600. With ``u_l = e^{λ/2} v_l`` that is ``-E_ε[ ½ε² + log Σ_l π_jl
    exp(-½(u_l - u_k - ε)²) ]``, ε ~ N(0, 1), by the trapezoidal rule, which converges exponentially
    for analytic integrands wherever its grid begins. One grid in u serves all levels: the logarithm
    is computed once at each of its points, and exp(-½(u_l - u)²) are the mixture's components and
    the weights of the rule.

    Where two levels compete, the logarithm turns a corner of width 1/τ, where τ is their distance
    in u, and has a branch point at Im ε = π/τ; Gauss–Hermite nodes grow too far apart for such
    corners. A step h leaves an error of about exp(-ε²/2 - 2π²/(τ h)); τ ≤ 2 √(ε² + 2R), where R is
    the range of log π, as further levels weigh less than k itself.
    """
    d, n = log_prior.shape
    R = (log_prior.amax(-1) - log_prior.amin(-1)).max().item()
    u = math.exp(log_snr / 2) * levels
    step = _trapezoid_step((u[-1] - u[0]).item(), R)
    count = math.ceil(2 * REACH / step)
    nodes = torch.ceil((u - REACH) / step).unsqueeze(-1)  # the first near each level
    nodes = step * torch.unique(nodes + torch.arange(count, device=u.device))
    far = math.sqrt(REACH**2 + 2 * (R + NEGLIGIBLE))  # levels further from a node never matter
    prior = log_prior.exp()
    total, entropy, weight = torch.zeros_like(prior), torch.zeros_like(u), torch.zeros_like(u)
    room = CPU_BLOCK if u.device.type == "cpu" else DEVICE_BLOCK
    for block in nodes.split(max(1, room // max(d, n))):
        near = torch.searchsorted(u, torch.stack([block[0] - far, block[-1] + far])).tolist()
        L = slice(*near)
        half_square = (u[L, None] - block).square_().div_(2)
        kernel = half_square.neg().exp_()
        mixture = prior[:, L] @ kernel
        # 0 only where a node is near none of these levels, and has no weight for them
        total[:, L].addmm_(mixture.clamp_min_(SMALLEST).log_(), kernel.mT)
        entropy[L] += (half_square * kernel).sum(-1)
        weight[L] += kernel.sum(-1)
    return -(total + entropy) / weight


def _trapezoid_step(spread: float, R: float) -> float:
    """The step in ε for levels within ``spread`` of each other in u and priors within e^R."""
    digits = 24.0  # an error of order e^{-24}
    step = math.pi * math.sqrt(2 / digits)  # for a Gaussian alone: exp(-2π²/h²)
    for e in torch.linspace(0, math.sqrt(2 * digits), 200)[:-1].tolist():
        tau = min(spread, 2 * math.sqrt(e * e + 2 * R))
        if 2 * tau > step:
            need = digits - e * e / 2 + (math.pi / tau) ** 2 / 2
            step = min(step, 2 * math.pi**2 / (tau * need))
    return step
