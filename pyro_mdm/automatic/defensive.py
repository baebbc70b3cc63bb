r"""Importance weights of a defensive mixture: a share of the draws has heavy tails.

Weights γ/q of draws of a proposal q do not show a tail of the target γ that no draw has reached. So
α = ¼ of the draws come from a distribution h with heavy tails, and every weight has the density of
the mixture,

    w = γ(x) / ((1 - α) ρ + α h(x)) ≤ γ(x) / (α h(x)),

whose variance is finite wherever γ/h is bounded, whatever q is. For a chain ρ is the ratio
q(path) / r(path | x) of the densities of a path under the guide and under the noising chain, which
is known on any path: draws x of h are led upward by r.

h is x = m + L z with independent z_j, each Cauchy with probability β = min(1, 3/d), else a standard
normal. m and L are those of the middle of draws of q. Draws come in two halves, and each half is
weighed with the h of the other. What h covers is seen by the effective number of its own draws
weighed by γ/h, which is asked to be 80 max(1, d/3), for parts of the target far out in one
dimension. Below it there are too few draws for an error.

Sources: Hesterberg, "Weighted Average Importance Sampling and Defensive Mixture Distributions",
Technometrics 1995; Owen & Zhou, "Safe and Effective Importance Sampling", JASA 2000.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mdm.evaluation.weights import HEAVY, Defence
from pyro_mdm.paths.likelihood import log_mean_weight

__all__ = ["Defensive", "Scored", "defended"]

SHARE = 0.25  # the share α of draws with heavy tails
LARGE = 5.0  # weights of so many times the mean one of draws of q are looked at for rounding
WIDEST = 4.0  # the distance from the median, in deviations, to which draws of q are moved
CORRELATED = 0.5  # the total correlation, nats, from which axes are no longer those of the latents


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


class Defensive:
    """A mixture of distributions h of middles m (C, d), scales L (C, d, d), lower triangular, and
    log probabilities (C,); in float64."""

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
    """n draws of the mixture, 16 at least, those of h last.

    Args:
        draw: draws so many of the proposal.
        at: scores points (n, d) that it did not draw.
        n: number of draws.
        heavy_tailed: h; None: made around the draws, for each half by the other.
        rounding: errors by rounding of the log γ of what is kept of some draws, which corrects
            those of large weights.

    Returns:
        What is kept of the draws (n, …), their log weights (n,), nats, and the :class:`Defence`. A
        density that is NaN or infinite is that of an impossible draw.
    """
    sizes = [n - n // 2, n // 2]
    heavy = [round(SHARE * size) for size in sizes]
    m = sum(heavy)
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
    log_w = torch.cat(log_weights[::2] + log_weights[1::2])
    ratios = torch.cat(log_ratios[::2] + log_ratios[1::2])
    if rounding is not None:
        usual = log_mean_weight(log_w[:-m])
        if bool((large := log_w > usual + math.log(LARGE)).any()):
            error = rounding(kept[large]).to(log_w)
            log_w[large] -= error
            ratios[large] -= error
    mean_ratio = (log_w.softmax(0).log() + ratios).logsumexp(0) - log_mean_weight(log_w)
    by_target = m * math.exp(-float(mean_ratio))
    return kept, log_w, Defence(ratios[-m:], by_target, light[0].x.shape[1])
