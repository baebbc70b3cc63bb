r"""Categories without an order, as one-hot vectors: their denoiser, its baseline and its decoder.

A column of C categories is C neighbouring dimensions, 1 in that of the category and 0 in the
others. With z its noised dimensions, at one log SNR λ, Bayes' rule is

    p_θ(k | z, λ) ∝ π_k exp(F_k(z, λ)) N(z; e_k, e^{-λ} I) ∝ π_k exp(F_k + e^λ z_k),    x̂ = p_θ,

so that noise confuses all categories alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, constraints

from pyro_mdm.diffusions.base import Cap, Diffusion, full_precision, require, with_event_dims
from pyro_mdm.diffusions.matrices import of_counted
from pyro_mdm.levels import discrete
from pyro_mdm.likelihoods.base import DecoderDistribution, Likelihood, StateScore, read_state
from pyro_mdm.scores.base import Number, check_fit
from pyro_mdm.scores.denoiser import DenoiserScore
from pyro_mdm.support.checks import Several, check_count, check_values, checked_arguments
from pyro_mdm.support.modules import cached_on

__all__ = ["Levels", "OneHot", "OneHotDenoiser", "OneHotLikelihood", "one_hot_kl", "require_data"]

VARIANCE_FLOOR = 0.5
"""The least variance of a dimension, as a fraction of the average, so that rare categories are not
scaled up."""
TABLES = 512
"""The most log SNRs whose divergences are kept."""
REACH = 8.5
"""Standard deviations of noise that the quadrature covers: beyond them is 2e-17 of its mass."""
TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class OneHot:
    """The levels of a column of C categories without an order, one-hot: C neighbouring dimensions,
    1 in that of the category and 0 in the others.

    Args:
        number: the number C of categories, at least 2.

    Raises:
        TypeError, ValueError: another number.

    Example:
        >>> from pyro_mdm import MixedDenoiser
        >>> MixedDenoiser.num_outputs([None, OneHot(3)])  # a continuous column and a category
        4
    """

    number: int

    def __post_init__(self) -> None:
        check_count("number", self.number, "the number of categories", 2)


Levels = int | Sequence[float] | Tensor | OneHot | None
"""The levels of a column in model space: their number n, for ``linspace(-1, 1, n)``, or their
values; :class:`OneHot` for categories without an order, which have a dimension each; None:
continuous."""


def require_data(diffusion: Diffusion, caller: nn.Module) -> None:
    """Raise TypeError unless the states of a diffusion are noised data at one log SNR."""
    fix = "use a diffusion of the data on one clock"
    require(diffusion, Cap.ONE_LEVEL, Cap.DATA_STATES, who=type(caller).__name__, fix=fix)


def one_hot_index(x: Tensor, number: int) -> Tensor:
    """The category of each one-hot column of (…, m C), (…, m) int64; ValueError for C neighbours
    that are not one 1 and zeros, to a thousandth."""
    columns = x.detach().unflatten(-1, (-1, number))
    index = columns.argmax(-1)
    on = ((columns - _one_hot(index, number, x.dtype)).abs() <= 1e-3).all(-1)
    check_values(on.all(), partial(_report_not_one_hot, columns, on))
    return index


def _report_not_one_hot(columns: Tensor, on: Tensor) -> None:
    number = columns.shape[-1]
    bad = [round(value, 4) for value in columns[~on][0].tolist()]
    raise ValueError(
        f"x holds {bad} in a category ({int((~on).sum())} of {on.numel()} are so), expected "
        f"one 1 and {number - 1} zeros: torch.nn.functional.one_hot(k, {number})"
    )


def _one_hot(index: Tensor, number: int, dtype: torch.dtype) -> Tensor:
    # torch's own looks at the largest index, for which a device would be asked
    return (index.unsqueeze(-1) == torch.arange(number, device=index.device)).to(dtype)


def _log_odds(log_prior: Tensor, z: Tensor, log_snr: Tensor) -> Tensor:
    """``log π_k + log N(z; e_k, e^{-λ} I)`` up to a constant, (…, m C), in the dtype of z."""
    snr = with_event_dims(log_snr, z).exp().to(z.dtype)
    # -½ e^λ ‖z - e_k‖² without -½ e^λ ‖z‖², which all k share
    return log_prior.flatten().to(z.dtype) + snr * (z - 0.5)


class OneHotDenoiser(DenoiserScore):
    r"""A denoiser of m columns of C categories each: Bayes' rule with a prior tilted by a network.

        p_θ(k | z, λ) ∝ π_k exp(F_k(z, λ)) N(z; e_k, e^{-λ} I),    x̂_k = p_θ(k | z, λ)

    At F = 0 the bound is that of independent columns with the probabilities π.

    Args:
        network: the module that is called with ``(z - π)/sqrt(σ² + e^{-λ})``, (n, m C), with
            ``σ² = π (1 - π)`` or half its average if that is more, and log SNRs, (n,); it returns
            the logits F, (n, m C).
        log_prior: the log probabilities log π, (m, C), finite and normalized; :meth:`fit` makes
            them.
        maps: whether log SNRs may differ between columns; all dimensions of a column have one.

    Raises:
        ValueError: a prior that is not finite, normalized and (m, C); data that are not one-hot.

    Example:
        >>> from pyro_mdm.networks import MLP
        >>> x = torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 2]), 3).float()
        >>> denoiser = OneHotDenoiser.fit(MLP(3), x, number=3)
        >>> denoiser.x_hat(x, log_snr=0.0).argmax(-1)  # the most probable categories
        tensor([0, 1, 2, 2])
    """

    groups: Tensor
    log_prior: Tensor

    @checked_arguments
    def __init__(self, network: nn.Module, log_prior: Tensor, *, maps: bool = False) -> None:
        log_prior = discrete.check_log_prior(log_prior, log_prior.shape[-1])
        super().__init__(network, (log_prior.numel(),), maps)
        self.number = log_prior.shape[-1]
        self.groups = torch.arange(len(log_prior)).repeat_interleave(self.number)
        self.register_buffer("log_prior", log_prior)
        mean = log_prior.exp().flatten()
        variance = mean * (1 - mean)
        self.register_buffer("data_mean", mean)
        floor = VARIANCE_FLOOR * variance.mean().item()
        self.register_buffer("data_variance", variance.clamp_min(floor))

    @classmethod
    @checked_arguments
    def fit(
        cls, network: nn.Module, train_x: Tensor, number: Several, *, maps: bool = False
    ) -> OneHotDenoiser:
        """The denoiser whose prior is the smoothed histogram of each column.

        Args:
            network, maps: as for :class:`OneHotDenoiser`.
            train_x: one-hot data, (N, m C); with ``maps`` columns may be missing, NaN in all C.
            number: the number C of categories.

        Raises:
            ValueError: data that are not one-hot.
        """
        check_fit(network, train_x, missing=maps)
        if train_x.shape[-1] % number:
            raise ValueError(
                f"train_x has shape {tuple(train_x.shape)}, expected a multiple of {number} "
                "dimensions, one for each level"
            )
        missing = train_x.isnan().unflatten(-1, (-1, number)).all(-1)
        first = _one_hot(torch.zeros_like(missing, dtype=torch.int64), number, train_x.dtype)
        columns = train_x.unflatten(-1, (-1, number))
        filled = torch.where(missing.unsqueeze(-1), first, columns).flatten(-2)
        index = torch.where(missing, math.nan, one_hot_index(filled, number).double())
        levels = torch.arange(number, dtype=torch.float64, device=train_x.device)
        codes = index.unsqueeze(1).unbind(-1)
        priors = [discrete.smoothed_histogram(column, levels) for column in codes]
        return cls(network, torch.cat(priors), maps=maps)

    def check_diffusion(self, diffusion: Diffusion) -> None:
        super().check_diffusion(diffusion)
        require_data(diffusion, self)

    # -- the denoiser ------------------------------------------------------------------------------

    def x_hat(self, z: Tensor, log_snr: Number) -> Tensor:
        """The probabilities p_θ(k | z, λ) of each column, like z."""
        batch_dim, lam = self._values("z", z, log_snr, trained=True)
        return self.read(z, lam, self.call_network(self.inputs(z, lam), lam, batch_dim))

    def read(self, z: Tensor, log_snr: Tensor, F: Tensor) -> Tensor:
        with full_precision(z):
            if not self.maps:
                return self._probabilities(z, log_snr, F)
            observed = with_event_dims(log_snr, z) == math.inf
            lam = torch.where(log_snr == math.inf, 0.0, log_snr)
            return torch.where(observed, z, self._probabilities(z, lam, F))

    def _probabilities(self, z: Tensor, lam: Tensor, F: Tensor | float) -> Tensor:
        odds = (F + _log_odds(self.log_prior, z, lam)).unflatten(-1, (-1, self.number))
        return odds.softmax(-1).flatten(-2)

    @property
    def typical(self) -> Tensor:
        """The most probable category of each column, one-hot."""
        return _one_hot(self.log_prior.argmax(-1), self.number, torch.float64).flatten()

    def check_values(self, values: Tensor, mask: Tensor) -> None:
        columns = mask.unflatten(-1, (-1, self.number)).all(-1)
        one_hot_index(values.unflatten(-1, (-1, self.number))[columns], self.number)

    # -- the baseline: independent columns ---------------------------------------------------------

    def baseline_x_hat(self, z: Tensor, log_snr: Number) -> Tensor:
        """The probabilities of categories given z, under the prior π, like z."""
        _, lam = self._values("z", z, log_snr)
        with full_precision(z):
            return self._probabilities(z, lam, 0.0)

    def baseline_log_prob(self, x: Tensor, counted: Tensor | None = None) -> Tensor:
        """Σ log π_k over columns, (*batch), nats."""
        self._values("x", x, 0.0)
        return self._at_categories(x, self.log_prior, counted).sum(-1)

    def baseline_kl(self, x: Tensor, log_snr: Number, counted: Tensor | None = None) -> Tensor:
        """The sum of :func:`one_hot_kl` over columns, (*batch), nats; not differentiable in λ."""
        _, lam = self._values("x", x, log_snr)
        lam = lam.detach().expand(x.shape[:-1])
        total = torch.zeros(x.shape[:-1], dtype=torch.float64, device=x.device)
        for value in lam.unique().tolist():
            terms = self._at_categories(x, self._kl_table(value), counted)
            total = torch.where(lam == value, terms.sum(-1), total)
        return total

    def baseline_integrals(
        self, x: Tensor, edges: Tensor, dims: slice, counted: Tensor | None = None
    ) -> Tensor:
        """The integrals of the columns whose first dimension is in ``dims``."""
        self._values("x", x, 0.0)
        start, stop, _ = dims.indices(x.shape[-1])
        total = torch.zeros(len(x), edges.shape[0] - 1, dtype=torch.float64, device=x.device)
        index = one_hot_index(x, self.number)
        for j in range(-(-start // self.number), -(-stop // self.number)):
            first = j * self.number
            ends = edges if edges.dim() == 1 else edges[:, first - start]
            table = torch.stack([self._kl_table(end)[j] for end in ends.tolist()], -1).diff(dim=-1)
            on = None if counted is None else counted.expand_as(x)[:, first, None]
            total += of_counted(table[index[:, j]], on)
        return total

    def _at_categories(self, x: Tensor, table: Tensor, counted: Tensor | None) -> Tensor:
        """The entries of a table (m, C) at the categories of x, (*batch, m)."""
        index = one_hot_index(x, self.number).unsqueeze(-1)
        terms = table.expand(*index.shape[:-1], -1).gather(-1, index).squeeze(-1)
        on = None if counted is None else counted.expand_as(x)[..., :: self.number]
        return of_counted(terms, on)

    def _kl_table(self, log_snr: float) -> Tensor:
        """The divergence of each category, (m, C), nats, kept for later calls."""
        tables: dict[float, Tensor] = cached_on(self.log_prior, "divergences", lambda _: {})
        if log_snr not in tables:
            if len(tables) >= TABLES:
                tables.clear()
            tables[log_snr] = one_hot_kl(self.log_prior, log_snr)
        return tables[log_snr]

    def default_likelihood(self) -> Likelihood:
        """The baseline's posterior, a :class:`OneHotLikelihood` with π."""
        return OneHotLikelihood(self.log_prior)


def one_hot_kl(log_prior: Tensor, log_snr: float) -> Tensor:
    r"""The divergence of a noised category from the noised prior, for every column and category k.

        KL( N(e_k, e^{-λ} I) ‖ Σ_l π_l N(e_l, e^{-λ} I) )

    With ``τ = e^{λ/2}`` it is ``-E log Σ_l exp(m_l)``, ``m_l = log π_l - τ² [l ≠ k] + τ ε_l``, over
    ε ~ N(0, I). For independent Gumbel variables g_l with the mean γ, the largest ``m_l + g_l`` is
    distributed as ``log Σ_l exp(m_l) + g``. Its distribution function is the product of those of
    ``m_l + g_l``, F_l, which are independent, so that

        KL = -log π_k - ∫ F_k(x) (1 - Π_{l≠k} F_l(x)) dx.

    Both integrals, over x and over ε_l, are by the trapezoidal rule on one lattice, whose step
    makes an error of about ``e^{-30}``.

    Args:
        log_prior, log_snr: the log probabilities log π, (m, C) float64, and the log SNR λ.

    Returns:
        Divergences, nats, (m, C) in float64, to about 1e-12.

    Source: for the distribution of the largest, Maddison, Tarlow & Minka, "A* Sampling", NeurIPS
    2014.
    """
    tau = math.exp(log_snr / 2)
    low, high = log_prior.min().item(), log_prior.max().item()
    others = (high - low) / 2 + math.log(log_prior.shape[-1])
    if tau**2 / 4 > 28 + others:  # E log(1 + r) ≤ E √r: nothing is confused
        return -log_prior
    step = min(0.3, 0.75 * tau)
    reach = math.ceil(REACH * tau / step)
    weights = torch.arange(-reach, reach + 1, dtype=torch.float64, device=log_prior.device)
    weights = (-0.5 * (weights * step / tau).square()).softmax(0)
    start, stop = low - REACH * tau - 4, max(36 - tau**2 / 2, low)
    number = math.ceil((stop - start) / step) + 2 * reach
    x = start + step * (torch.arange(number, device=log_prior.device) - reach).double()

    def distribution(shift: float) -> Tensor:
        """F at the inner points of x, (m, C, points)."""
        gumbel = (-(log_prior.unsqueeze(-1) - shift - x).exp()).exp()
        both = torch.fft.rfft(gumbel) * torch.fft.rfft(weights, number)
        return torch.fft.irfft(both, number)[..., 2 * reach :]

    p, log_other = distribution(0.0), distribution(tau**2).clamp_min(TINY).log()
    rest = log_other.sum(1, keepdim=True) - log_other
    return (-log_prior + step * (p * rest.expm1()).sum(-1)).clamp_min(0)


# -- the decoder -----------------------------------------------------------------------------------


class OneHotLikelihood(Likelihood):
    r"""A decoder of one-hot columns, ``p(k | y_ε) ∝ π_k N(z; e_k, e^{-λ} I)``.

    Args:
        log_prior: the log probabilities log π, (m, C), finite and normalized.

    Raises:
        ValueError: another prior.
    """

    log_prior: Tensor

    @checked_arguments
    def __init__(self, log_prior: Tensor) -> None:
        super().__init__()
        log_prior = discrete.check_log_prior(log_prior, log_prior.shape[-1])
        self.register_buffer("log_prior", log_prior)

    def forward(
        self, diffusion: Diffusion, score: StateScore, y: Tensor, event_dim: int | None = None
    ) -> OneHotDecoder:
        z, log_snr, _ = read_state(diffusion, score, y, event_dim)
        odds = _log_odds(self.log_prior, z, log_snr).unflatten(-1, self.log_prior.shape)
        return OneHotDecoder(Categorical(logits=odds, validate_args=False), y.dtype)


class OneHotDecoder(DecoderDistribution):
    """A distribution of m independent columns of C categories, as one-hot vectors, by that of
    categories, (*batch, m), in a dtype."""

    def __init__(self, categories: Categorical, dtype: torch.dtype) -> None:
        self._categories, self._dtype = categories, dtype
        logits = categories.logits
        self.levels = torch.tensor([0.0, 1.0], dtype=torch.float64, device=logits.device)
        event = torch.Size([logits.shape[-2:].numel()])
        super().__init__(logits.shape[:-2], event, validate_args=False)

    def expand(
        self, batch_shape: Sequence[int], _instance: OneHotDecoder | None = None
    ) -> OneHotDecoder:
        new = super().expand(batch_shape, _instance)
        new._categories = self._categories.expand([*batch_shape, self._categories.batch_shape[-1]])
        return new

    @property
    def support(self) -> constraints.Constraint:
        """0 and 1, in each dimension."""
        return constraints.independent(discrete.LevelSupport(self.levels), 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x) of one-hot columns, (*sample, *batch, m C), summed over them, nats."""
        return self.log_prob_by_dimension(value).sum(-1).to(self._dtype)

    def log_prob_by_dimension(self, value: Tensor) -> Tensor:
        """The log probability of each column in its first dimension, 0 in the others, nats."""
        self.check_event(value)
        number = self._categories.logits.shape[-1]
        terms = self._categories.log_prob(one_hot_index(value, number)).unsqueeze(-1)
        return nn.functional.pad(terms, (0, number - 1)).flatten(-2)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """One-hot samples, (*sample_shape, *batch, m C)."""
        index = self._categories.sample(torch.Size(sample_shape))
        return _one_hot(index, self._categories.logits.shape[-1], self._dtype).flatten(-2)
