r"""A mixture of Gaussians as the start of a chain, for posteriors of several modes.

A path begins in a component k, with probability π_k, and the component is another latent of the
guide. The program is extended by the probability that the mixture q gives to it,

    r(k | w) = π_k N(w; m_k, R_k R_kᵀ) / q(w),

so that weights without a chain are those of the mixture, p(w, data) / q(w), and chains move within
the coordinates u of their components, w = m_k + R_k u. Components are fitted to draws by the EM
algorithm, from draws far from each other, or by splits of components where a coordinate is flat,
skewed or has two modes. Of all fits the one with the largest log density of a half of the draws
that is held out is kept; this also says how many components there are, and how much alike their
covariances. Training then moves and widens components, and changes their probabilities by the score
function, since particles come to a mode in numbers that vary.

Sources: Dempster, Laird & Rubin, "Maximum likelihood from incomplete data via the EM algorithm",
1977; Arthur & Vassilvitskii, "k-means++: the advantages of careful seeding", 2007; Pelleg & Moore,
"X-means", 2000, for splits; Sarle, SAS/STAT user's guide, 1990, for the bimodality coefficient.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from pyro_mdm.automatic.maps import VectorMap, solved
from pyro_mdm.budgets import Budget

__all__ = ["MOST", "Component", "Mixture"]

MOST = 64
"""The most components."""
CANDIDATES = 8
"""The number of draws of which one becomes a seed."""
POWERS = 1, 2, 3
"""Powers of the number of latents, which are the numbers of draws that the means of log variances
and correlations over components may count for in those of each."""
BIMODAL, UNSURE, APART = 0.45, 1.5, 0.9
"""A component is split where a bimodality coefficient is above the first plus the second divided by
the square root of its number of draws: it is 1/3 for a Gaussian, 5/9 for a uniform distribution and
1 for two points. The third is the distance of both halves, in that of two points."""
ITERATIONS, ENOUGH = 50, 1e-3
"""The most iterations of the EM algorithm, and the gain of the mean log density, nats, below which
they end."""
MOST_DRAWS, FEW_MOMENTS, FEW_DRAWS = 16_384, 2**25, 4
"""The most draws that components are fitted to. The most moments of those by which they are chosen,
half of which are held out; there are at least so many times as many draws as latents."""
MOST_FOR_MOMENTS = 2**22
"""The most numbers of moments at a time."""
WORTH = 0.02
"""The gain of the mean log density of held-out draws that twice as many components have to bring,
nats."""
LEAST_VARIANCE = 1e-9
"""Is added to the variances of components, of draws with a variance of 1."""

Components = tuple[Tensor, Tensor, Tensor]
"""Means (C, dim), Cholesky factors of covariances (C, dim, dim), and log probabilities (C,)."""


class Mixture(nn.Module):
    """A mixture of Gaussians of w (n, dim), one standard normal until it is fitted to draws.

    Args:
        dim: the number of latents.
    """

    means: Tensor
    roots: Tensor
    log_shares: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.number = 1
        """The number of components; the others are not used."""
        self.register_buffer("means", torch.zeros(MOST, dim))
        self.register_buffer("roots", torch.eye(dim).repeat(MOST, 1, 1))
        self.register_buffer("log_shares", torch.zeros(MOST))
        # changes of the components, in their units, and of their probabilities
        self.shifts = nn.Parameter(torch.zeros(MOST, dim))
        self.log_scales = nn.Parameter(torch.zeros(MOST, dim))
        self.lower = nn.Parameter(torch.zeros(MOST, dim, dim))
        self.log_factors = nn.Parameter(torch.zeros(MOST))

    def get_extra_state(self) -> int:
        return self.number

    def set_extra_state(self, state: int) -> None:
        self.number = state

    @torch.no_grad()
    def fit(self, w: Tensor, distinct: Tensor | None = None, budget: Budget | None = None) -> None:
        """Fit the components to draws.

        Args:
            w: the draws, (n, dim).
            distinct: the number of the distinct draw that each of them is, (n,), as particles and
                chains repeat some, which are held out together; None: all are distinct.
            budget: the seconds after which no further components are tried; None: no limit.
        """
        n, dim = w.shape
        order = torch.randperm(n, device="cpu")[:MOST_DRAWS]
        w, which = w[order].double(), order if distinct is None else distinct.cpu()[order]
        some = slice(max(FEW_MOMENTS // dim**2, FEW_DRAWS * dim))
        which = which[some].unique(return_inverse=True)[1]
        is_learned = (torch.randperm(int(which.max()) + 1, device="cpu") % 2 == 0)[which]
        learned, held_out = w[some][is_learned], w[some][~is_learned]
        if len(held_out) == 0:
            held_out = learned
        best, most = -math.inf, min(MOST, max(len(learned) // 4, 1))
        kept: tuple[Components, float]

        def worthwhile() -> int:  # more seeds are tried while they gain
            return min(most, 4 * len(kept[0][0]))

        for components, weight in itertools.chain(
            _by_splits(learned, most), _by_seeds(learned, worthwhile)
        ):
            log_density = _log_parts(components)(held_out).logsumexp(1)
            value = float(log_density.mean()) - WORTH * math.log2(len(components[0]))
            if value > best:
                best, kept = value, (components, weight)
            if budget is not None and budget.share == 1:
                break
        fitted = _climbed(w, *kept)
        self.number = len(fitted[0])
        for buffer, tensor in zip((self.means, self.roots, self.log_shares), fitted, strict=True):
            buffer[: self.number] = tensor.to(buffer)
        for change in (self.shifts, self.log_scales, self.lower, self.log_factors):
            change.zero_()

    def components(self) -> Components:
        """The means (C, dim) of the components, the Cholesky factors of their covariances, and the
        logarithms of their probabilities (C,)."""
        used = slice(self.number)
        roots = self.roots[used]
        means = self.means[used] + (roots @ self.shifts[used, :, None])[..., 0]
        change = self.lower[used].tril(-1) + torch.diag_embed(self.log_scales[used].exp())
        log_shares = (self.log_shares + self.log_factors)[used].log_softmax(0)
        return means, roots @ change, log_shares

    def log_density(self, w: Tensor) -> Tensor:
        """log q(w) of w (n, dim), (n,) nats."""
        return _log_parts(self.components())(w).logsumexp(1)

    def drawn(self, n: int) -> Component:
        """The map of n paths, whose components are drawn."""
        components = self.components()
        return Component(components, torch.multinomial(components[2].exp(), n, replacement=True))

    def drawn_at(self, w: Tensor) -> Component:
        """The map of paths that end at w (n, dim), whose components are drawn given their ends."""
        components = self.components()
        shares = _log_parts(components)(w).softmax(1)
        return Component(components, torch.multinomial(shares, 1)[:, 0])


class Component(VectorMap):
    """The map w = m_k + R_k u of n paths, both (n, dim), whose components are given.

    Its log determinant has the probability of the component too: it is the log density of u less
    that of the mixture at w. The network sees which component it is. Gradients of probabilities are
    those of ``log_share`` alone, log π_k (n,): on average log q has none, and by SVI they stay.

    Args:
        components: those of a mixture.
        k: the component of each path, (n,).
    """

    def __init__(self, components: Components, k: Tensor) -> None:
        super().__init__()
        means, roots, log_shares = components
        self._log_parts = _log_parts((means, roots, log_shares.detach()))
        self._mean, self._root, self.log_share = (tensor[k] for tensor in components)
        self.beside = nn.functional.one_hot(k, MOST).to(self._mean)

    def _call(self, u: Tensor) -> Tensor:
        return self._mean + (self._root @ u[..., None])[..., 0]

    def _inverse(self, w: Tensor) -> Tensor:
        return solved(self._root, (w - self._mean)[..., None])[..., 0]

    def log_abs_det_jacobian(self, u: Tensor, w: Tensor) -> Tensor:
        log_unit = -(u.square().sum(-1) + u.shape[-1] * math.log(2 * math.pi)) / 2
        return log_unit - self._log_parts(w).logsumexp(1)


def _log_parts(components: Components) -> Callable[[Tensor], Tensor]:
    """The function of w (n, dim) that returns log π_k N(w; m_k, R_k R_kᵀ), (n, C)."""
    means, roots, log_shares = components
    inverse = solved(roots, torch.eye(roots.shape[-1]).to(roots).expand_as(roots))
    middle = means.mean(0)
    matrix, offset = inverse.flatten(0, 1).mT, (inverse @ (means - middle)[:, :, None]).flatten()
    log_scales = roots.diagonal(0, -2, -1).log().sum(-1)
    constant = log_shares - log_scales - roots.shape[-1] / 2 * math.log(2 * math.pi)

    def log_parts(w: Tensor) -> Tensor:
        u = ((w - middle) @ matrix - offset).unflatten(1, means.shape)
        return constant - u.square().sum(-1) / 2

    return log_parts


def _by_seeds(w: Tensor, most: Callable[[], int]) -> Iterator[tuple[Components, float]]:
    """Components from seeds among the draws w, with the weight of their mean covariance."""
    number = 2
    while number <= most():
        for weight in sorted({float(w.shape[1] ** power) for power in POWERS}):
            yield _climbed(w, _seeded(w, number), weight), weight
        number *= 2


def _by_splits(w: Tensor, most: int) -> Iterator[tuple[Components, float]]:
    """The same, from one that is split, and so on while there is something to split."""
    one = _climbed(w, _seeded(w, 1), 0.0)
    yield one, 0.0
    for weight in sorted({float(w.shape[1] ** power) for power in POWERS}):
        number, components = 1, _split(w, one, most)
        while len(components[0]) > number:
            number, components = len(components[0]), _climbed(w, components, weight)
            yield components, weight
            components = _split(w, components, most)


def _split(w: Tensor, components: Components, most: int) -> Components:
    """Components of which those with two modes are split, the clearest first, up to a number.

    In the units of a component, its draws among w (n, dim) have a coordinate with the largest
    bimodality coefficient. Two narrower components take its place. Together they have the mean of
    these draws, the variance of the component there, and APART³ of the skewness.
    """
    shares = _log_parts(components)(w).softmax(1)
    halves, gains = list[list[Components]](), list[float]()
    for mean, root, log_share, share in zip(*components, shares.mT, strict=True):
        count = share.sum().clamp_min(1e-6)
        u, share = solved(root, (w - mean).mT).mT, share / count
        middle = share @ u
        spread = (share @ (u - middle).square()).sqrt()
        z = (u - middle) / spread.clamp_min(1e-6)
        skewness, kurtosis = share @ z**3, share @ z**4
        bimodality = torch.where(spread > 1e-3, (skewness.square() + 1) / kurtosis, 0.0)
        at = bimodality.argmax()
        gains.append(float(bimodality[at] - BIMODAL - UNSURE / count.sqrt()))
        upper = (1 - skewness[at] / (skewness[at].square() + 4).sqrt()) / 2
        scale = torch.ones_like(middle)
        scale[at] = math.sqrt(1 - APART**2)
        pair = []
        for p, sign in ((upper, 1), (1 - upper, -1)):
            moved = torch.zeros_like(middle)
            moved[at] = middle[at] + sign * APART * spread[at] * ((1 - p) / p).sqrt()
            pair.append((mean + root @ moved, root * scale, log_share + p.log()))
        halves.append(pair)
    clearest = sorted(range(len(gains)), key=lambda k: -gains[k])[: most - len(gains)]
    made = list[Components]()
    for k, (pair, *one) in enumerate(zip(halves, *components, strict=True)):
        made += pair if k in clearest and gains[k] > 0 else [tuple(one)]
    means, roots, log_shares = map(torch.stack, zip(*made, strict=True))
    return means, roots, log_shares


def _seeded(w: Tensor, number: int) -> Components:
    """Components of one variance around draws far from each other: each is drawn by its squared
    distance to those before, the best of a few that leaves the least distances."""
    seeds = [w[torch.randint(len(w), ())]]
    distances = (w - seeds[0]).square().sum(1)
    for _ in range(number - 1):
        tried = w[torch.multinomial(distances.clamp_min(1e-12), CANDIDATES, replacement=True)]
        left = torch.minimum(distances, torch.cdist(tried, w).square())
        best = left.sum(1).argmin()
        distances = left[best]
        seeds.append(tried[best])
    spread = (distances.mean() / w.shape[1] + LEAST_VARIANCE).sqrt()
    roots = spread * torch.eye(w.shape[1]).to(w).expand(number, -1, -1)
    return torch.stack(seeds), roots, w.new_full((number,), -math.log(number))


def _climbed(w: Tensor, components: Components, weight: float) -> Components:
    """The components of draws w (n, dim), float64, by the EM algorithm from others, with the number
    of draws that the mean covariance counts for in that of a component."""
    before, dim = -math.inf, w.shape[1]
    for _ in range(ITERATIONS):
        log_parts, sums, after = _log_parts(components), w.new_zeros(()), 0.0
        for rows in w.split(max(MOST_FOR_MOMENTS // dim**2, 1)):
            parts = log_parts(rows)
            log_density = parts.logsumexp(1, keepdim=True)
            sums = sums + (parts - log_density).exp().mT @ _moments(rows)
            after += float(log_density.sum()) / len(w)
        if after - before < ENOUGH:
            break
        before, components = after, _of_sums(sums, dim, weight)
    return components


def _of_sums(sums: Tensor, dim: int, weight: float) -> Components:
    """The components whose shares of the draws have these sums of moments, (C, 1 + dim + dim²).

    Of few draws, log variances and correlations are drawn to the mean ones of all components.
    """
    counts = sums[:, 0].clamp_min(1e-6)
    means = sums[:, 1 : 1 + dim] / counts[:, None]
    covariances = (sums[:, 1 + dim :] / counts[:, None]).view(-1, dim, dim)
    ridge = LEAST_VARIANCE * torch.eye(dim).to(sums)
    covariances = covariances - means[:, :, None] * means[:, None] + ridge
    log_variances = covariances.diagonal(0, -2, -1).log()
    deviations = (log_variances / 2).exp()
    correlations = covariances / (deviations[:, :, None] * deviations[:, None])
    shares, kept = counts / counts.sum(), counts / (counts + weight)
    log_variances, correlations = (
        torch.lerp((shares.reshape(shape) * values).sum(0), values, kept.reshape(shape))
        for values, shape in ((log_variances, (-1, 1)), (correlations, (-1, 1, 1)))
    )
    deviations = (log_variances / 2).exp()
    roots = deviations[:, :, None] * torch.linalg.cholesky(correlations + ridge)
    return means, roots, shares.log()


def _moments(w: Tensor) -> Tensor:
    """1, w and w wᵀ of draws w (n, dim), (n, 1 + dim + dim²)."""
    return torch.cat([w.new_ones(len(w), 1), w, (w[:, :, None] * w[:, None]).flatten(1)], 1)
