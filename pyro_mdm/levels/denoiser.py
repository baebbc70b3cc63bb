"""Denoisers of data with levels: a distribution over the levels of each dimension."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from pyro_mdm.diffusions.base import Cap, Diffusion, full_precision, require, with_event_dims
from pyro_mdm.diffusions.matrices import of_counted
from pyro_mdm.levels import discrete
from pyro_mdm.levels.even_levels import EvenLevels
from pyro_mdm.levels.likelihoods import (
    DiscretizedGaussian,
    LevelCategorical,
    LevelDistribution,
    LevelPosterior,
)
from pyro_mdm.likelihoods.base import Likelihood
from pyro_mdm.scores.base import Number, check_fit
from pyro_mdm.scores.denoiser import DATA_AT_ONCE, DenoiserScore, posterior_variance
from pyro_mdm.support.checks import checked_arguments
from pyro_mdm.support.modules import cached_on

__all__ = ["DiscreteDenoiser", "Form", "outputs_of"]

Form = Literal["tilt", "mixture", "logits"]
"""The form of a discrete denoiser, by which the network's outputs change the prior."""

KLTables = dict[tuple[float, object, object], Tensor]
"""Divergences of some dimensions at their levels, by log SNR and the slice of dimensions."""
COMPONENTS = 3
"""The number of tilts of a mixture."""

KL_TABLES_BYTES = 256 * 2**20  # memory for the tables of baseline_kl
VARIANCE_FLOOR = 0.5  # the least variance of a dimension, relative to the average over dimensions


class DiscreteDenoiser(DenoiserScore):
    r"""A denoiser for data with levels v_1 … v_n: Bayes' rule with a prior tilted by the network.

        p_θ(x_j = v_k | z, λ) ∝ π_jk exp(T_jk(z, λ)) N(z_j; v_k, e^{-λ}),    x̂_j = Σ_k v_k p_θ(v_k)

    - ``form="tilt"``, for many levels: two outputs per dimension, T = F1 u + f(F2) u² with u = (v_k
      - m)/w, where m, w² are mean and variance of the posterior under the Gaussian prior N(μ, σ²),
      and w is at least half the smallest gap. f(F2) is F2 for F2 < 0 and ½ tanh(2 F2) otherwise, so
      that a tilt can cancel the curvature of the noise but exceed it by no more than the prior's
      own. After the forward pass no tensor has a level axis.
    - ``form="mixture"``, for many levels, where a pixel may be one of several things: p_θ is a
      mixture Σ_r w_r p_r of three tilts with softmax weights w; nine outputs per dimension, and
      three times the work of a tilt beside the network. F1 of component r is the sum of the first r
      of its outputs, so that the three separate in training.
    - ``form="logits"``, for few levels: T_jk = F_k, one output per level.

    At F = 0 the bound is that of the independent dimensions π.

    Args:
        network: module called with ``(z - μ)/sqrt(σ² + e^{-λ})``, (n, C, *spatial), and λ, (n,),
            where μ and σ² are the mean and variance of π, σ² at least half its average over
            dimensions. It returns (n, 2·C, *spatial), arranged (F1, F2) × C, for tilts, (n, 9·C,
            *spatial), arranged (F1, F2, log w) × 3 × C, for mixtures, or (n, levels·C, *spatial),
            arranged levels × C, for logits.
        levels: number n of levels for ``linspace(-1, 1, n)``, or increasing values, (n,).
        log_prior: log-probabilities log π of the levels, (*event_shape, n), finite and normalized.
            :meth:`fit` makes them.
        form: name of the form, "tilt", "mixture" or "logits"; None: logits up to 32 levels, else a
            tilt.
        maps: whether log SNRs may differ between dimensions (:meth:`x_hat`). The network then has
            twice the input channels, see :func:`~pyro_mdm.scores.base.map_channels`.

    Raises:
        ValueError: a prior that is not finite, normalized and (…, n), values of x off the levels, a
            network output of another shape, data of the wrong shape, NaN, λ outside the trained
            range.

    Example:
        >>> from pyro_mdm.networks import UNet
        >>> images = torch.linspace(-1, 1, 256)[torch.randint(256, (32, 1, 8, 8))]
        >>> network = UNet(1, out_channels=2, base=8, multipliers=(1,))
        >>> score = DiscreteDenoiser.fit(network, images, levels=256)
        >>> score.x_hat(images + 0.1 * torch.randn(32, 1, 8, 8), 4.6).shape
        torch.Size([32, 1, 8, 8])
    """

    event_shape: tuple[int, ...]
    levels: Tensor
    log_prior: Tensor

    @checked_arguments
    def __init__(
        self,
        network: nn.Module,
        levels: int | Sequence[float] | Tensor,
        log_prior: Tensor,
        form: Form | None = None,
        *,
        maps: bool = False,
    ) -> None:
        values = discrete.level_values(levels).to(log_prior.device)
        n = len(values)
        if form is None:
            form = "logits" if n <= 32 else "tilt"
        log_prior = discrete.check_log_prior(log_prior, n)
        super().__init__(network, tuple(log_prior.shape[:-1]), maps)
        self.form: Form = form
        self.outputs = outputs_of(form, n)
        self.register_buffer("levels", values)
        self.register_buffer("log_prior", log_prior)
        mean = log_prior.exp() @ values
        variance = (log_prior.exp() * (values - mean.unsqueeze(-1)).square()).sum(-1)
        self.register_buffer("data_mean", mean)
        floor = VARIANCE_FLOOR * variance.mean().item()
        self.register_buffer("data_variance", variance.clamp_min(floor))

    @classmethod
    @checked_arguments
    def fit(
        cls,
        network: nn.Module,
        train_x: Tensor,
        levels: int | Sequence[float] | Tensor,
        form: Form | None = None,
        *,
        maps: bool = False,
    ) -> DiscreteDenoiser:
        """The denoiser whose prior is the smoothed histogram of training data.

        See :func:`pyro_mdm.levels.discrete.smoothed_histogram`.

        Args:
            network: module, as for :class:`DiscreteDenoiser`.
            train_x: training data on the levels, (N, *event_shape). With ``maps``, entries may be
                NaN and count as missing.
            levels: number n of levels, or their values, (n,).
            form: name of the form; None: by the number of levels.
            maps: whether log SNRs may differ between dimensions.

        Raises:
            TypeError: a network or data of another kind.
            ValueError: values off the levels, or a dimension without a value.
        """
        check_fit(network, train_x, missing=maps)
        values = discrete.level_values(levels).to(train_x.device)
        prior = discrete.smoothed_histogram(train_x, values)
        return cls(network, values, prior, form, maps=maps)

    def check_diffusion(self, diffusion: Diffusion) -> None:
        super().check_diffusion(diffusion)
        fix = "use a Denoiser, fitted to diffusion.transform(x)"
        require(diffusion, Cap.DATA_STATES, who=f"a {type(self).__name__} of levels", fix=fix)

    def x_hat(self, z: Tensor, log_snr: Number) -> Tensor:
        """E[x | z] = Σ_k v_k p_θ(v_k | z, λ), like z."""
        F, lam = self._network_output(z, log_snr)
        return self.read(z, lam, F)

    def read(self, z: Tensor, log_snr: Tensor, F: Tensor) -> Tensor:
        with full_precision(z):
            if not self.maps:
                return self._x_hat(z, log_snr, F)
            observed = log_snr == math.inf  # Bayes' rule is for finite noise
            x = self._x_hat(z, torch.where(observed, 0.0, log_snr), F)
            return torch.where(with_event_dims(observed, z), z, x)

    def _x_hat(self, z: Tensor, lam: Tensor, F: Tensor) -> Tensor:
        if self.form == "logits":
            odds = self._logits(z, lam, F)
            return odds.centre + discrete.mean_terms(*odds.at_levels())[0]
        log_weights, tilts = self._tilts(z, lam, F)
        means = [self._mean(tilt) for tilt in tilts]
        if not log_weights:
            return means[0]
        mixed = [weight.exp() * mean for weight, mean in zip(log_weights, means, strict=True)]
        return torch.stack(mixed).sum(0)

    def log_probs(self, z: Tensor, log_snr: Number) -> Tensor:
        """log p_θ(x_j = v_k | z, λ), (*batch, *event_shape, n): levels last, all in memory."""
        posterior = self.posterior(z, log_snr)
        with full_precision(z):
            return posterior.log_probs()

    def posterior(self, z: Tensor, log_snr: Number) -> LevelDistribution:
        """p_θ(x | z, λ) as a Pyro distribution of batch shape (*batch). One network call."""
        F, lam = self._network_output(z, log_snr)
        event_dim = len(self.event_shape)
        with full_precision(z):
            if self.form == "logits":
                log_probs = self._logits(z, lam, F).at_levels()[0].log_softmax(-1)
                return LevelCategorical(self.levels, log_probs, event_dim)
            log_weights, tilts = self._tilts(z, lam, F)
            posteriors = [LevelPosterior(tilt, z.dtype) for tilt in tilts]
            if not log_weights:
                return posteriors[0]
            components = zip(log_weights, posteriors, strict=True)
            log_probs = torch.stack([w.unsqueeze(-1) + p.log_probs() for w, p in components])
        return LevelCategorical(self.levels, log_probs.logsumexp(0), event_dim)

    @property
    def typical(self) -> Tensor:
        nearest = (self.data_mean.double().unsqueeze(-1) - self.levels).abs().argmin(-1)
        return self.levels[nearest]

    def check_values(self, values: Tensor, mask: Tensor) -> None:
        discrete.level_index(values[mask], self.levels)

    def baseline_x_hat(self, z: Tensor, log_snr: Number) -> Tensor:
        """``Σ_k v_k π_jk N(z_j; v_k, e^{-λ}) / Σ_k π_jk N(z_j; v_k, e^{-λ})``, like z."""
        _, lam = self._values("z", z, log_snr)
        with full_precision(z):
            return self._mean(self._noise_odds(z, lam))

    def baseline_log_prob(self, x: Tensor, counted: Tensor | None = None) -> Tensor:
        """Σ_j log π_jk with x_j = v_k, (*batch), nats."""
        batch_dim, _ = self._values("x", x, 0.0)
        index = discrete.level_index(x, self.levels).unsqueeze(-1)
        prior = self.log_prior.expand(*index.shape[:-1], -1)
        terms = prior.gather(-1, index).squeeze(-1)
        return of_counted(terms, counted).flatten(batch_dim).sum(-1)

    def baseline_kl(self, x: Tensor, log_snr: Number, counted: Tensor | None = None) -> Tensor:
        """``Σ_j KL( N(x_j, e^{-λ}) ‖ Σ_k π_jk N(v_k, e^{-λ}) )``, (*batch), nats, by quadrature.

        The first call with a λ computes a table over all levels of all dimensions, which is kept.

        Raises:
            ValueError: λ that requires a gradient, which is ½ e^λ E‖x - x̂_0‖² and not computed.
        """
        batch_dim, lam = self._values("x", x, log_snr)
        if torch.is_grad_enabled() and lam.requires_grad:
            raise ValueError(
                "baseline_kl of a DiscreteDenoiser has no gradient in log_snr; detach it"
            )
        index = discrete.level_index(x, self.levels).reshape(-1, math.prod(x.shape[batch_dim:]))
        index += len(self.levels) * torch.arange(index.shape[1], device=x.device)
        lam = lam.detach().expand(x.shape[:batch_dim]).reshape(-1)
        on = None if counted is None else counted.expand_as(x).reshape(index.shape)
        total = torch.empty(len(index), dtype=torch.float64, device=x.device)
        for value in torch.unique(lam).tolist():
            same = lam == value
            terms = self._kl_table(value, slice(None)).take(index[same])
            total[same] = of_counted(terms, None if on is None else on[same]).sum(-1)
        return total.reshape(x.shape[:batch_dim])

    def baseline_integrals(
        self, x: Tensor, edges: Tensor, dims: slice, counted: Tensor | None = None
    ) -> Tensor:
        self._values("x", x, 0.0)
        flat, prior = x.flatten(1)[:, dims], self.log_prior.flatten(0, -2)[dims]
        on = None if counted is None else counted.expand_as(x).flatten(1)[:, dims].double()
        if edges.dim() == 1:
            kl = [self._kl_table(edge, dims) for edge in edges.tolist()]
            return self._summed(kl, flat, on)
        total = torch.zeros(len(x), len(edges) - 1, dtype=torch.float64, device=x.device)
        columns, which = edges.unique(dim=1, return_inverse=True)
        for c, column in enumerate(columns.unbind(1)):  # dimensions with the same ones together
            mine = (which == c).nonzero()[:, 0]
            kl = [discrete.mixture_kl(prior[mine], self.levels, edge) for edge in column.tolist()]
            total += self._summed(kl, flat[:, mine], None if on is None else on[:, mine])
        return total

    def _summed(self, kl: list[Tensor], x: Tensor, weights: Tensor | None) -> Tensor:
        """Differences of tables (d, n) at data (N, d), summed over d, (N, tables - 1)."""
        table = torch.stack(kl, -1).diff(dim=-1).flatten(0, 1)  # (d · n, S)
        row = len(self.levels) * torch.arange(x.shape[1], device=x.device)
        sums = []
        for i in range(0, len(x), DATA_AT_ONCE):
            here = slice(i, i + DATA_AT_ONCE)
            rows = row + discrete.level_index(x[here], self.levels)
            on = None if weights is None else weights[here]
            bag = nn.functional.embedding_bag(rows, table, mode="sum", per_sample_weights=on)
            sums.append(bag)
        return torch.cat(sums)

    def _kl_table(self, log_snr: float, dims: slice) -> Tensor:
        """The divergence (dims, n) of each dimension at each level, kept for later calls."""
        tables: KLTables = cached_on(self.log_prior, "divergences", lambda _: {})
        key = log_snr, dims.start, dims.stop
        table = tables.pop(key, None)
        if table is None:
            table = discrete.mixture_kl(self.log_prior.flatten(0, -2)[dims], self.levels, log_snr)
        tables[key] = table  # the latest last
        while sum(t.nbytes for t in tables.values()) > KL_TABLES_BYTES and len(tables) > 1:
            del tables[next(iter(tables))]
        return table

    def default_likelihood(self) -> Likelihood:
        """The baseline's posterior, :class:`~pyro_mdm.levels.DiscretizedGaussian` with π."""
        return DiscretizedGaussian(self.levels, self.log_prior)

    def _network_output(self, z: Tensor, log_snr: Number) -> tuple[Tensor, Tensor]:
        batch_dim, lam = self._values("z", z, log_snr, trained=True)
        return self.call_network(self.inputs(z, lam), lam, batch_dim, self.outputs), lam

    def _noise_odds(self, z: Tensor, lam: Tensor) -> discrete.LogOdds:
        return discrete.noise_odds(self.log_prior, self.levels, z, with_event_dims(lam, z))

    def _logits(self, z: Tensor, lam: Tensor, F: Tensor) -> discrete.LogOdds:
        """The log-odds with the network's outputs as part of the prior."""
        k = z.dim() - len(self.event_shape)
        logits = F.unflatten(k, (self.outputs, -1)).movedim(k, -1)
        odds = self._noise_odds(z, lam)
        return odds._replace(log_prior=logits + self.log_prior.to(z.dtype))

    def _tilts(
        self, z: Tensor, lam: Tensor, F: Tensor
    ) -> tuple[Sequence[Tensor], list[discrete.LogOdds]]:
        """The log-weights of tilts, none for one alone, and the log-odds of each."""
        mu, s2, v = self._scales(z, lam)
        m = mu + s2 / (s2 + v) * (z - mu)
        half_gap = self.levels.diff().min().item() / 2
        w = posterior_variance(s2, v, self.maps).clamp_min(half_gap**2).sqrt()
        noise = self._noise_odds(z, lam)
        k = z.dim() - len(self.event_shape)
        F1, F2, *more = F.unflatten(k, (self.outputs, -1)).chunk(2 + (self.form == "mixture"), k)
        log_weights = more[0].log_softmax(k).unbind(k) if more else ()
        F1 = F1.cumsum(k) if more else F1
        F2 = torch.where(F2 < 0, F2, 0.5 * torch.tanh(2 * F2))
        # u = (δ + c - m)/w; terms that do not depend on k drop out
        offset, square = noise.centre - m, w.square()
        tilts = []
        for f1, f2 in zip(F1.unbind(k), F2.unbind(k), strict=True):
            linear = noise.linear + (f1 + 2 * f2 * offset / w) / w
            tilts.append(noise._replace(linear=linear, quadratic=noise.quadratic + f2 / square))
        return log_weights, tilts

    def _mean(self, odds: discrete.LogOdds) -> Tensor:
        even = None
        if odds.centre.dtype == torch.float32 and not torch.compiler.is_compiling():
            even = self._even_levels()
        return odds.centre + discrete.posterior_mean(odds, even)

    def _even_levels(self) -> EvenLevels | None:
        """Tables of the current prior; None where they do not serve it."""

        def tables(prior: Tensor) -> EvenLevels | None:
            flat = prior.flatten(0, -2)
            serves = EvenLevels.serves(flat, self.levels)
            return EvenLevels(flat, self.levels) if serves else None

        return cached_on(self.log_prior, "even levels", tables)


def outputs_of(form: Form, levels: int) -> int:
    """The number of network outputs for each dimension of data with this number of levels."""
    return {"tilt": 2, "mixture": 3 * COMPONENTS, "logits": levels}[form]
