r"""Importance weights of a defensive mixture: a share of the draws has heavy tails.

Weights γ/q of draws of a proposal q do not show a tail of the target γ that no draw has reached: a
flag that is computed from them passes in the very runs that missed it. So α = ¼ of the draws come
from a distribution h with heavy tails, and every weight has the density of the mixture,

    w = γ(x) / ((1 - α) ρ + α h(x)) ≤ γ(x) / (α h(x)),

whose variance is finite wherever γ/h is bounded, whatever q is. For a chain ρ is the ratio
q(path) / r(path | x) of the densities of a path under the guide and under the noising chain, which
is known on any path: draws x of h are led upward by r.

h is x = m + L z with independent z_j, each Cauchy with probability β = min(1, 3/d), else a standard
normal, so that in many dimensions a few at a time are far out. m and L are those of the middle of
draws of q. Draws come in two halves, and each half is weighed with the h of the other.

What h covers is seen by its own draws: by the effective number of those weighed by γ/h. A part of
the target in one dimension far out has about a tenth of the β of h that is there; so the number is
asked to be 80 max(1, d/3). Below it there are too few draws for an error.

Sources: Hesterberg, "Weighted Average Importance Sampling and Defensive Mixture Distributions",
Technometrics 1995; Owen & Zhou, "Safe and Effective Importance Sampling", JASA 2000.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Defence", "Defensive", "Scored", "defended"]

SHARE = 0.25
"""The share α of draws with heavy tails."""
HEAVY = 3
"""The number of dimensions, on average, in which a draw of h is Cauchy."""
FEWEST = 80
"""The least effective number of draws of h, in up to three dimensions."""
PARTS = 4
"""The number of parts of the draws of h, the worst of which is counted for all: an effective
number is too high where the largest weights are missing, which they are not in all parts."""
LARGE = 5.0
"""Weights of so many times the mean one of draws of q are looked at for rounding."""
WIDEST = 4.0
"""The distance from the median, in deviations, to which draws of q are moved."""
CORRELATED = 0.5
"""The total correlation, nats, from which axes are no longer those of the latents."""


class Scored(NamedTuple):
    """Draws with their densities, those of paths where a chain leads to them."""

    x: Tensor  # (n, d)
    log_target: Tensor  # log γ(x), (n,) nats
    log_proposal: Tensor  # log q(x), or log q(path) / r(path | x), (n,) nats
    kept: Tensor  # what the caller keeps of each draw, (n, …)

    @property
    def is_impossible(self) -> Tensor:
        """Whether a draw's density is NaN or infinite, (n,)."""
        return self.log_target.isnan() | (self.log_target == math.inf)


class Defence(NamedTuple):
    """The draws of h, the last ones of a mixture, and how many of them count.

    Their effective number has two estimates. That of their own weights γ/h is too high in samples
    that lack the largest of them, so it is that of the worst of four parts. The other is by all
    draws: m / E[γ/h] under the target, in units of the evidence, which draws of q know better where
    h has little.
    """

    log_ratios: Tensor  # log γ/h of the draws of h, (m,) nats
    by_target: float  # the effective number by all draws
    dim: int  # the number d of dimensions

    @property
    def effective(self) -> float:
        """The effective number of draws of h, from 0 to m: the lower one of its estimates."""
        parts = self.log_ratios[: len(self.log_ratios) // PARTS * PARTS].view(PARTS, -1)
        by_part = (2 * parts.logsumexp(1) - (2 * parts).logsumexp(1)).exp().nan_to_num(0.0)
        return min(PARTS * float(by_part.min()), self.by_target) if parts.numel() else 0.0

    @property
    def fewest(self) -> float:
        """The effective number that is expected, 80 max(1, d/3)."""
        return FEWEST * max(1.0, self.dim / HEAVY)


class Defensive:
    """The distribution h, or a mixture of such distributions.

    Args:
        loc: the middles m, (C, d), in float64.
        root: the scales L, lower triangular, (C, d, d).
        log_shares: the logarithms of probabilities of the C parts, (C,).
    """

    def __init__(self, loc: Tensor, root: Tensor, log_shares: Tensor) -> None:
        self.loc, self.root, self.log_shares = loc, root, log_shares
        self.heavy = min(1.0, HEAVY / loc.shape[1])

    @classmethod
    def around(cls, x: Tensor) -> Defensive:
        """h around the middle of draws x (n, d) of a proposal, in float64."""
        n, d = x.shape
        middle = x.median(0).values
        spread = (x - middle).abs().median(0).values / 0.6745  # of a normal distribution, one
        spread = torch.where(spread > 0, spread, x.std(0).clamp_min(1e-12))
        z = ((x - middle) / spread).clamp(-WIDEST, WIDEST)
        mean, scale = z.mean(0), z.std(0).clamp_min(1e-3)
        z = (z - mean) / scale
        one = torch.eye(d).to(z)
        root = torch.linalg.cholesky((z.mT @ z / n + d / n * one) / (1 + d / n))
        by_chance = d * (d - 1) / (4 * n)
        if float(-root.diagonal().log().sum()) < CORRELATED + by_chance:
            root = one
        root = (spread * scale)[:, None] * root
        return cls((middle + spread * mean)[None], root[None], torch.zeros(1).to(z))

    def sample(self, n: int) -> Tensor:
        """n draws, (n, d)."""
        chosen = torch.multinomial(self.log_shares.exp(), n, replacement=True)
        z = torch.randn(n, self.loc.shape[1]).to(self.loc)
        tails = torch.empty_like(z).cauchy_()
        z = torch.where(torch.rand(z.shape).to(z) < self.heavy, tails, z)
        return self.loc[chosen] + (self.root[chosen] @ z[..., None])[..., 0]

    def log_prob(self, x: Tensor) -> Tensor:
        """The log density of x (n, d), (n,) nats."""
        off = (x - self.loc[:, None]).mT  # (C, d, n)
        z = torch.linalg.solve_triangular(self.root, off, upper=False)
        log_p = math.log(self.heavy / math.pi) - torch.log1p(z.square())
        if self.heavy < 1:
            normal = -(z.square() + math.log(2 * math.pi)) / 2
            log_p = torch.logaddexp(log_p, math.log(1 - self.heavy) + normal)
        log_volume = self.root.diagonal(0, -2, -1).log().sum(-1)
        return (log_p.sum(1) + (self.log_shares - log_volume)[:, None]).logsumexp(0)


def defended(
    draw: Callable[[int], Scored],
    at: Callable[[Tensor], Scored],
    n: int,
    heavy_tailed: Defensive | None = None,
    rounding: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Defence]:
    """n draws of the mixture, those of h last.

    Args:
        draw: function of a number that draws so many of the proposal.
        at: function that scores points x (n, d) which it did not draw.
        n: number of draws, 16 at least.
        heavy_tailed: h; None: around the draws, each half by the other.
        rounding: function of what is kept of some draws that returns the errors of their log γ by
            rounding, nats. It is asked about draws of large weights, and corrects these.

    Returns:
        What is kept of the draws, (n, …), their log weights, (n,) nats, and the :class:`Defence`.
        A density that is NaN or infinite is that of an impossible draw.
    """
    sizes = [n - n // 2, n // 2]
    heavy = [round(SHARE * size) for size in sizes]
    light = [draw(size - few) for size, few in zip(sizes, heavy, strict=True)]
    tails, log_weights, log_ratios = [], [], []
    for i in range(2):
        h = heavy_tailed or Defensive.around(light[1 - i].x.double())
        tails.append(at(h.sample(heavy[i])))
        share = heavy[i] / sizes[i]
        for scored in (light[i], tails[i]):
            log_h = h.log_prob(scored.x.double())
            log_q = scored.log_proposal.double().nan_to_num(-math.inf)
            log_mixture = torch.logaddexp(math.log1p(-share) + log_q, math.log(share) + log_h)
            target = scored.log_target.double().nan_to_num(-math.inf, -math.inf, -math.inf)
            log_weights.append(target - log_mixture)
            log_ratios.append(target - log_h)
    kept = torch.cat([scored.kept for scored in (*light, *tails)])
    log_w, ratios = (
        torch.cat([rows[i] for i in (0, 2, 1, 3)]) for rows in (log_weights, log_ratios)
    )
    if rounding is not None:
        usual = log_w[: -sum(heavy)].logsumexp(0) - math.log(n - sum(heavy))
        large = log_w > usual + math.log(LARGE)
        error = rounding(kept[large]).to(log_w) if large.any() else 0.0
        log_w[large] -= error
        ratios[large] -= error
    mean_ratio = (log_w.softmax(0).log() + ratios).logsumexp(0) - log_w.logsumexp(0) + math.log(n)
    by_target = sum(heavy) * math.exp(-float(mean_ratio))
    return kept, log_w, Defence(ratios[-sum(heavy) :], by_target, light[0].x.shape[1])
