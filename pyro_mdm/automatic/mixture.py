r"""A mixture of Gaussians as the start of a chain, for posteriors of several modes.

A path begins in a component k, with probability π_k, and the component is another latent of the
guide. The program is extended by the probability that the mixture q gives to it,

    r(k | w) = π_k N(w; m_k, R_k R_kᵀ) / q(w),

so that weights without a chain are those of the mixture, p(w, data) / q(w), and chains move within
the coordinates u of their components, w = m_k + R_k u. Components are fitted to draws by the EM
algorithm. Their number, a power of 2, is that with the largest log density of a half of the draws
that is held out. Training then moves and widens components; their probabilities stay as they are.

Sources: Dempster, Laird & Rubin, "Maximum likelihood from incomplete data via the EM algorithm",
1977; Arthur & Vassilvitskii, "k-means++: the advantages of careful seeding", 2007.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pyro_mdm.automatic.maps import VectorMap, solved

__all__ = ["MOST", "Component", "Mixture"]

MOST = 64
"""The most components."""
CANDIDATES = 8
"""The number of draws of which one becomes a seed."""
TRIALS = 3
"""The number of fits for each number of components, from other draws."""
ITERATIONS, ENOUGH = 50, 1e-3
"""The most iterations of the EM algorithm, and the gain of the mean log density, nats, below which
they end."""
WORTH = 0.02
"""The gain of the mean log density of held-out draws that more components are worth, nats."""
LEAST_VARIANCE = 1e-9
"""Is added to the variances of components, of draws with a variance of 1."""


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
        # changes of the components, in their units
        self.shifts = nn.Parameter(torch.zeros(MOST, dim))
        self.log_scales = nn.Parameter(torch.zeros(MOST, dim))
        self.lower = nn.Parameter(torch.zeros(MOST, dim, dim))

    def get_extra_state(self) -> int:
        return self.number

    def set_extra_state(self, state: int) -> None:
        self.number = state

    @torch.no_grad()
    def fit(self, w: Tensor, distinct: Tensor | None = None) -> None:
        """Fit the components to draws.

        Args:
            w: the draws, (n, dim).
            distinct: the number of the distinct draw that each of them is, (n,), as particles and
                chains repeat some, which are held out together; None: all are distinct.
        """
        w = w.double()
        if distinct is None:
            distinct = torch.arange(len(w))
        is_learned = (torch.randperm(int(distinct.max()) + 1) % 2 == 0).to(w.device)[distinct]
        learned, held_out = w[is_learned], w[~is_learned]
        best, number, self.number = -math.inf, 1, 1
        if len(held_out) == 0:
            held_out = learned
        while number <= min(MOST, len(learned) // 4, 4 * self.number):
            for _ in range(TRIALS):
                value = float(_log_parts(held_out, *_fitted(learned, number)).logsumexp(0).mean())
                if value > best + (WORTH if number > self.number else 0.0):
                    best, self.number = value, number
            number *= 2
        trials = [_fitted(w, self.number) for _ in range(TRIALS)]
        fitted = max(trials, key=lambda made: float(_log_parts(w, *made).logsumexp(0).mean()))
        for kept, tensor in zip((self.means, self.roots, self.log_shares), fitted, strict=True):
            kept[: self.number] = tensor.to(kept)
        for change in (self.shifts, self.log_scales, self.lower):
            change.zero_()

    def components(self) -> tuple[Tensor, Tensor, Tensor]:
        """The means (C, dim) of the components, the Cholesky factors of their covariances, and the
        logarithms of their probabilities (C,)."""
        used = slice(self.number)
        roots = self.roots[used]
        means = self.means[used] + (roots @ self.shifts[used, :, None])[..., 0]
        change = self.lower[used].tril(-1) + torch.diag_embed(self.log_scales[used].exp())
        return means, roots @ change, self.log_shares[used]

    def log_density(self, w: Tensor) -> Tensor:
        """log q(w) of w (n, dim), (n,) nats."""
        return _log_parts(w, *self.components()).logsumexp(0)

    def drawn(self, n: int) -> Component:
        """The map of n paths, whose components are drawn."""
        components = self.components()
        return Component(components, torch.multinomial(components[2].exp(), n, replacement=True))

    def drawn_at(self, w: Tensor) -> Component:
        """The map of paths that end at w (n, dim), whose components are drawn given their ends."""
        components = self.components()
        shares = _log_parts(w, *components).softmax(0)
        return Component(components, torch.multinomial(shares.mT, 1)[:, 0])


class Component(VectorMap):
    """The map w = m_k + R_k u of n paths, both (n, dim), whose components are given.

    Its log determinant has the probability of the component too: it is the log density of u less
    that of the mixture at w. The network sees which component it is.

    Args:
        components: those of a mixture.
        k: the component of each path, (n,).
    """

    def __init__(self, components: tuple[Tensor, Tensor, Tensor], k: Tensor) -> None:
        super().__init__()
        self._components = components
        self._mean, self._root = components[0][k], components[1][k]
        self.beside = nn.functional.one_hot(k, MOST).to(self._mean)

    def _call(self, u: Tensor) -> Tensor:
        return self._mean + (self._root @ u[..., None])[..., 0]

    def _inverse(self, w: Tensor) -> Tensor:
        return solved(self._root, (w - self._mean)[..., None])[..., 0]

    def log_abs_det_jacobian(self, u: Tensor, w: Tensor) -> Tensor:
        log_unit = -(u.square().sum(-1) + u.shape[-1] * math.log(2 * math.pi)) / 2
        return log_unit - _log_parts(w, *self._components).logsumexp(0)


def _log_parts(w: Tensor, means: Tensor, roots: Tensor, log_shares: Tensor) -> Tensor:
    """log π_k N(w; m_k, R_k R_kᵀ), (C, n)."""
    inverse = solved(roots, torch.eye(w.shape[-1]).to(w).expand_as(roots))
    u = (w - means[:, None]) @ inverse.mT
    log_volume = roots.diagonal(0, -2, -1).log().sum(-1) + w.shape[-1] / 2 * math.log(2 * math.pi)
    return (log_shares - log_volume)[:, None] - u.square().sum(-1) / 2


def _fitted(w: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Means, Cholesky factors of covariances, and log shares of components, by the EM algorithm."""
    k = torch.cdist(w, _seeds(w, number)).argmin(1)
    shares = nn.functional.one_hot(k, number).to(w).T
    before = -math.inf
    for _ in range(ITERATIONS):
        components = _maximized(w, shares)
        parts = _log_parts(w, *components)
        log_density = parts.logsumexp(0)
        shares = (parts - log_density).exp()
        after = float(log_density.mean())
        if after - before < ENOUGH:
            break
        before = after
    return components


def _seeds(w: Tensor, number: int) -> Tensor:
    """Draws far from each other, (number, dim): each is drawn by its squared distance to those
    before, the best of a few that leaves the least distances."""
    seeds = [w[torch.randint(len(w), ())]]
    distances = (w - seeds[0]).square().sum(1)
    for _ in range(number - 1):
        tried = w[torch.multinomial(distances.clamp_min(1e-12), CANDIDATES, replacement=True)]
        left = torch.minimum(distances, torch.cdist(tried, w).square())
        best = left.sum(1).argmin()
        distances = left[best]
        seeds.append(tried[best])
    return torch.stack(seeds)


def _maximized(w: Tensor, shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The components of draws w (n, dim) by shares (C, n) of these.

    Correlations of components of few draws are drawn to 0.
    """
    dim, counts = w.shape[1], shares.sum(1).clamp_min(1e-6)
    means = shares @ w / counts[:, None]
    made = []
    for share, mean in zip(shares, means, strict=True):  # all at once would take much memory
        apart = w - mean
        made.append((share[:, None] * apart).mT @ apart)
    covariances = torch.stack(made) / counts[:, None, None]
    kept = (counts / (counts + dim))[:, None, None]
    diagonals = torch.diag_embed(covariances.diagonal(0, -2, -1))
    covariances = kept * covariances + (1 - kept) * diagonals
    roots = torch.linalg.cholesky(covariances + LEAST_VARIANCE * torch.eye(dim).to(w))
    return means, roots, (counts / counts.sum()).log()
