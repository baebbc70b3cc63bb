r"""Decoders p(x | y_ε), and bits per dimension.

At the start time ε, where λ = log SNR is as large as the diffusion goes, the state still says
``z = kᵀ y_ε = x + e^{-λ/2} ε``. A likelihood is called with the diffusion, the score and the state
and returns a Pyro distribution of x with the batch shape of the state and its event shape.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, cast

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    SigmoidTransform,
    Transform,
)

from pyro_mdm import discrete, draws
from pyro_mdm.diffusions import LinearDiffusion, apply_matrix, full_precision
from pyro_mdm.settings import Restorable

__all__ = [
    "Dequantized",
    "DiscretizedGaussian",
    "Gaussian",
    "JointTweedie",
    "LevelCategorical",
    "LevelDistribution",
    "LevelPosterior",
    "Likelihood",
    "LogitDequantization",
    "NetworkPosterior",
    "Tweedie",
    "bits_per_dim",
]


def bits_per_dim(
    log_prob: Any,
    num_dims: int,
    *,
    log_det: Any = 0.0,
    num_levels: int | None = None,
) -> Any:
    r"""Bits per dimension of a log-likelihood: -(log p + log|det|) / (d ln 2) (+ log₂ levels).

    Args:
        log_prob: log p(x) in nats summed over the d dimensions, a number or a tensor (…).
        num_dims: d.
        log_det: log|det ∂x/∂w| summed over dimensions, where x = T(w) is what log p is a density
            of; 0 if nothing was transformed.
        num_levels: number n of levels if w = (k + u)/n was dequantized by uniform noise u, whose
            density is then n^d times the probability of k. None for a probability of levels.

    Returns:
        Like ``log_prob``; for dequantized data, in expectation over u, at least the bits of the
        discrete likelihood ∫ p(w) du.
    """
    if num_dims < 1:
        raise ValueError(f"num_dims is {num_dims}, expected the number of data dimensions, ≥ 1")
    if num_levels is not None and num_levels < 2:
        raise ValueError(f"num_levels is {num_levels}, expected at least 2, or None")
    bits = -(log_prob + log_det) / (num_dims * math.log(2))
    return bits if num_levels is None else bits + math.log2(num_levels)


# -- distributions over levels ---------------------------------------------------------------------


class LevelDistribution(TorchDistribution, ABC):
    """Independent dimensions, each on the levels v_1 < … < v_n. Without reparameterized samples."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False
    levels: Tensor

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.real, len(self.event_shape))

    @abstractmethod
    def log_probs(self) -> Tensor:
        """(*batch, *event_shape, n), levels last."""

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """(*batch, *event_shape)."""

    def _log_prob_shape(self, value: Tensor) -> torch.Size:
        event_dim = len(self.event_shape)
        if value.shape[max(value.dim() - event_dim, 0) :] != self.event_shape:
            raise ValueError(
                f"x has shape {tuple(value.shape)}, expected (…, "
                f"{', '.join(map(str, self.event_shape))})"
            )
        return torch.broadcast_shapes(self.batch_shape + self.event_shape, value.shape)


class LevelPosterior(LevelDistribution):
    """p(x_j = v_k) ∝ π_jk exp(α_j δ_k + β_j δ_k²), δ_k = v_k - c_j (:mod:`pyro_mdm.discrete`).

    Args:
        levels: (n,) float64.
        log_prior: log π, (*event_shape, n) float64.
        centre, linear, quadratic: c, α, β, broadcastable to c, which is (*batch, *event_shape). The
            log-odds are computed in c's dtype.
        dtype: of samples and log-probabilities.
        window: the levels, (B, d) first ones and their number, outside which the probability is
            nil to rounding.
    """

    def __init__(
        self,
        levels: Tensor,
        log_prior: Tensor,
        centre: Tensor,
        linear: Tensor,
        quadratic: Tensor,
        dtype: torch.dtype,
        window: discrete.Window | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.levels, self.log_prior = levels, log_prior
        self.centre = centre
        self.linear, self.quadratic = linear.expand_as(centre), quadratic.expand_as(centre)
        self.dtype, self.window = dtype, window
        event = log_prior.shape[:-1]
        self._log_normalizer: Tensor | None = None
        super().__init__(
            centre.shape[: centre.dim() - len(event)], event, validate_args=validate_args
        )

    def expand(
        self, batch_shape: Sequence[int], _instance: LevelPosterior | None = None
    ) -> LevelPosterior:
        new = cast(LevelPosterior, self._get_checked_instance(LevelPosterior, _instance))
        shape = torch.Size(batch_shape) + self.event_shape
        new.levels, new.log_prior, new.dtype = self.levels, self.log_prior, self.dtype
        new.centre = self.centre.expand(shape)
        new.linear, new.quadratic = self.linear.expand(shape), self.quadratic.expand(shape)
        new.window = self.window
        if self.window is not None:
            first = self.window.first.reshape(self.centre.shape).expand(shape)
            new.window = discrete.Window(first.reshape(-1, self._dims), self.window.size)
        known = self._log_normalizer
        new._log_normalizer = None if known is None else known.expand(shape)
        super(LevelPosterior, new).__init__(
            torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    @property
    def _dims(self) -> int:
        return self.event_shape.numel()

    def _tables(self) -> tuple[Tensor, Tensor]:
        dtype = self.centre.dtype
        return self.log_prior.reshape(self._dims, -1).to(dtype), self.levels.to(dtype)

    def _odds(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        c, alpha, beta = (
            t.reshape(-1, self._dims) for t in (self.centre, self.linear, self.quadratic)
        )
        return (*self._tables(), c, alpha, beta)

    @property
    def log_normalizer(self) -> Tensor:
        """log Σ_k π_jk exp(α δ_k + β δ_k²), (*batch, *event_shape)."""
        if self._log_normalizer is None:
            value = discrete.log_normalizer(*self._odds(), window=self.window)
            self._log_normalizer = value.reshape(self.centre.shape)
        return self._log_normalizer

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x), nats, summed over dimensions.

        Raises:
            ValueError: x off the levels.
        """
        shape = self._log_prob_shape(value)
        prior, levels = self._tables()
        index = discrete.level_index(value, self.levels)
        columns = torch.arange(self._dims, device=index.device).reshape(self.event_shape)
        delta = levels[index] - self.centre
        odds = prior[columns, index] + (self.linear + self.quadratic * delta) * delta
        terms = (odds - self.log_normalizer).expand(shape)
        return terms.flatten(len(shape) - len(self.event_shape)).sum(-1).to(self.dtype)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Levels, (*sample_shape, *batch, *event_shape)."""
        sample_shape = torch.Size(sample_shape)
        odds = self._odds()
        levels, count = odds[1], sample_shape.numel()
        out = torch.empty(count, *odds[2].shape, dtype=self.dtype, device=levels.device)
        for block in discrete.log_odds_blocks(*odds, window=self.window):
            R, C, p = block.rows, block.columns, block.log_odds.softmax(-1)
            k = torch.multinomial(p.flatten(0, 1), count, replacement=True)
            if block.chosen is not None:
                k = block.chosen.flatten(0, 1).gather(-1, k)
            out[:, R, C] = levels[k].mT.reshape(count, *p.shape[:2]).to(self.dtype)
        return out.reshape(sample_shape + self.batch_shape + self.event_shape)

    def log_probs(self) -> Tensor:
        prior, levels = self._tables()
        delta = levels - self.centre.unsqueeze(-1)
        odds = (self.linear.unsqueeze(-1) + self.quadratic.unsqueeze(-1) * delta) * delta
        return (prior.reshape(*self.event_shape, -1) + odds).log_softmax(-1).to(self.dtype)

    @property
    def mean(self) -> Tensor:
        delta = discrete.posterior_mean(*self._odds())
        return (self.centre + delta.reshape(self.centre.shape)).to(self.dtype)


class LevelCategorical(LevelDistribution):
    """p(x_j = v_k), given as log-probabilities.

    Args:
        levels: (n,);  log_probs: (*batch, *event_shape, n);  event_dim: len(event_shape).
    """

    def __init__(
        self,
        levels: Tensor,
        log_probs: Tensor,
        event_dim: int,
        validate_args: bool | None = None,
    ) -> None:
        self.levels, self._log_probs = levels, log_probs
        batch_dim = log_probs.dim() - 1 - event_dim
        super().__init__(
            log_probs.shape[:batch_dim], log_probs.shape[batch_dim:-1], validate_args=validate_args
        )

    def expand(
        self, batch_shape: Sequence[int], _instance: LevelCategorical | None = None
    ) -> LevelCategorical:
        new = cast(LevelCategorical, self._get_checked_instance(LevelCategorical, _instance))
        new.levels = self.levels
        tail = self._log_probs.shape[len(self.batch_shape) :]
        new._log_probs = self._log_probs.expand(torch.Size(batch_shape) + tail)
        super(LevelCategorical, new).__init__(
            torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x), nats, summed over dimensions. Raises ValueError for x off the levels."""
        shape = self._log_prob_shape(value)
        index = discrete.level_index(value, self.levels).expand(shape).unsqueeze(-1)
        terms = self._log_probs.expand(*shape, -1).gather(-1, index).squeeze(-1)
        return terms.flatten(len(shape) - len(self.event_shape)).sum(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Levels, (*sample_shape, *batch, *event_shape)."""
        sample_shape = torch.Size(sample_shape)
        p = self._log_probs.exp().flatten(0, -2)
        k = torch.multinomial(p, sample_shape.numel(), replacement=True)
        values = self.levels.to(p.dtype)[k].mT
        return values.reshape(sample_shape + self.batch_shape + self.event_shape)

    def log_probs(self) -> Tensor:
        return self._log_probs

    @property
    def mean(self) -> Tensor:
        return self._log_probs.exp() @ self.levels.to(self._log_probs.dtype)


# -- likelihoods -----------------------------------------------------------------------------------


class Likelihood(Restorable, nn.Module, ABC):
    """p(x | y_ε). Buffers stay in float64 when the module is cast to another precision."""

    network_calls: ClassVar[int] = 0
    """Network calls that a decoder's distribution takes."""

    @abstractmethod
    def forward(
        self, diffusion: LinearDiffusion, score: Any, y: Tensor, event_dim: int | None = None
    ) -> TorchDistributionMixin:
        """The decoder's distribution of x.

        Args:
            diffusion: which noised x;  score: the :class:`~pyro_mdm.scores.Score` in use.
            y: the state at ``diffusion.start_time``, (*batch, K, *event_shape).
            event_dim: number of event dimensions; None: those of the score's event shape if it has
                one, else all but one batch dimension.

        Returns:
            A Pyro distribution with batch shape (*batch) and event shape (*event_shape).
        """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Likelihood:
        exact = {name: b for name, b in self._buffers.items() if b is not None}
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            moved = self._buffers[name]
            if moved is not None and not buffer.is_meta:
                self._buffers[name] = buffer.to(moved.device)
        return self


class Reading(NamedTuple):
    """z = kᵀ y_ε (*batch, *event_shape) and λ(ε), in float64."""

    z: Tensor
    log_snr: Tensor
    batch_dim: int


def read_state(diffusion: LinearDiffusion, score: Any, y: Tensor, event_dim: int | None) -> Reading:
    """What the state at ε says about x; arguments as for :class:`Likelihood`."""
    if event_dim is None:
        known = getattr(score, "event_shape", None)
        event_dim = y.dim() - 2 if known is None else len(known)
    batch_dim, K = y.dim() - 1 - event_dim, diffusion.num_variables
    if event_dim < 0 or batch_dim < 0 or y.shape[batch_dim] != K:
        raise ValueError(
            f"y has shape {tuple(y.shape)}, expected (*batch, K, *event_shape) with K = {K} "
            f"variables and {event_dim} event dimensions"
        )
    start = diffusion.start
    return Reading(y.double().movedim(batch_dim, -1) @ start.readout, start.log_snr, batch_dim)


class Gaussian(Likelihood):
    r"""Decoder for continuous data: the posterior of x given z = x + e^{-λ/2} ε.

        N( x; μ + σ²/(σ²+v) (z - μ), σ² v/(σ²+v) ),  v = e^{-λ},    or N(x; z, v) for σ² = ∞

    Args:
        prior_mean, prior_variance: μ, σ²: numbers, or tensors of the event shape. By default flat.

    Raises:
        ValueError: a variance that is not positive, a mean that is not finite.
    """

    prior_mean: Tensor
    prior_variance: Tensor

    def __init__(
        self, prior_mean: float | Tensor = 0.0, prior_variance: float | Tensor = math.inf
    ) -> None:
        super().__init__()
        mean = torch.as_tensor(prior_mean, dtype=torch.float64).detach().clone()
        variance = torch.as_tensor(prior_variance, dtype=torch.float64).detach().clone()
        if not bool((variance > 0).all()) or not bool(mean.isfinite().all()):
            raise ValueError(
                f"prior_variance reaches {variance.min().item():.3g} and prior_mean "
                f"{mean.abs().max().item():.3g}, expected positive variances (inf: flat) and "
                "finite means"
            )
        self.register_buffer("prior_mean", mean)
        self.register_buffer("prior_variance", variance)

    def forward(
        self, diffusion: LinearDiffusion, score: Any, y: Tensor, event_dim: int | None = None
    ) -> TorchDistributionMixin:
        """N(x; …), see the class; differentiable in y and the diffusion."""
        z, log_snr, batch_dim = read_state(diffusion, score, y, event_dim)
        ratio = torch.exp(-log_snr) / self.prior_variance  # v/σ², 0 for a flat prior
        mean = z + ratio / (1 + ratio) * (self.prior_mean - z)
        return _normal(mean, -(log_snr + ratio.log1p()) / 2, y.dtype, batch_dim)


class Tweedie(Likelihood):
    """N(x; x̂(y_ε, ε), e^{-λ}): one network call. The paper's decoder for K = 1."""

    network_calls = 1

    def forward(
        self, diffusion: LinearDiffusion, score: Any, y: Tensor, event_dim: int | None = None
    ) -> TorchDistributionMixin:
        """N(x; x̂, e^{-λ})."""
        _, log_snr, batch_dim = read_state(diffusion, score, y, event_dim)
        x = score.denoise(diffusion, y, diffusion.start_time.expand(y.shape[:batch_dim]))
        return _normal(x, -log_snr / 2, y.dtype, batch_dim)


class JointTweedie(Likelihood):
    r"""The paper's decoder: of (x, v_0) from y_ε by the score, less log q(v_0). One network call.

    With y_ε | y_0 ~ N(M y_0, P) and y_0 = (x, v_0), Tweedie's formula for the joint state makes
    p(y_0 | y_ε) = N(M^{-1} (y_ε + P s_θ), M^{-1} P M^{-T}), and with the v_0 that led to y_ε

        log p(x | y_ε) ≥ E_{q(v_0 | x, y_ε)}[ log p(x, v_0 | y_ε) - log q(v_0 | x, y_ε) ]

    is a bound of its own (q(v_0 | x, y_ε) = q(v_0) q(y_ε | x, v_0) / q(y_ε | x), so that adding it
    to the divergence of paths from y_ε is the paper's bound). Here v_0 is integrated out:

        -½ ‖s_θ + Σ^{-1}(y_ε - a x)‖²_P + ½ log det Σ_v - ½ κ(ε) - ½ log 2π + ½ (tr Σ^{-1}P - 1)

    per data dimension, κ being log volume. For K = 1 it is :class:`Tweedie`; for K > 1 and the
    exact score it is on average below it, the more the further ε is from 0.

    Source: Singhal, Goldstein & Ranganath, ICLR 2023, Theorem 1 and the appendix on its likelihood.
    """

    network_calls = 1

    def forward(
        self, diffusion: LinearDiffusion, score: Any, y: Tensor, event_dim: int | None = None
    ) -> JointTweedieDecoder:
        """The decoder at y_ε. The network is called when that is first asked for a number.

        Raises:
            TypeError: a diffusion whose law of y_ε given (x, v_0) is no closed form.
        """
        if not isinstance(diffusion, LinearDiffusion):
            raise TypeError(
                f"JointTweedie is made of the law of y_ε given x and v_0, and "
                f"{type(diffusion).__name__} has none in closed form; decode with Gaussian"
            )
        batch_dim = read_state(diffusion, score, y, event_dim).batch_dim
        return JointTweedieDecoder(diffusion, score, y, batch_dim)


class JointTweedieDecoder(TorchDistribution):
    """x under :class:`JointTweedie`, with v_0 integrated out.

    ``log_prob`` is the bound on the log density of what ``sample`` draws, the x of (x, v_0) ~
    p(x, v_0 | y_ε); for K = 1 it is that density.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(self, diffusion: LinearDiffusion, score: Any, y: Tensor, batch_dim: int) -> None:
        self._diffusion, self._score, self._y = diffusion, score, y
        self._known: Tensor | None = None
        self._root: JointTweedieDecoder = self  # has what an expanded one needs
        super().__init__(y.shape[:batch_dim], y.shape[batch_dim + 1 :], validate_args=False)

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(
        self, batch_shape: Sequence[int], _instance: JointTweedieDecoder | None = None
    ) -> JointTweedieDecoder:
        new = cast(JointTweedieDecoder, self._get_checked_instance(JointTweedieDecoder, _instance))
        new.__dict__.update(self.__dict__)
        new._batch_shape = torch.Size(batch_shape)
        return new

    def _state_score(self) -> Tensor:
        """s_θ(y_ε), like y."""
        root = self._root
        if root._known is None:
            s = root._diffusion.start_time.expand(root.batch_shape)
            root._known = root._score.score(root._diffusion, root._y, s)
        return root._known

    def _apply(self, matrix: Tensor, state: Tensor) -> Tensor:
        """``matrix`` (K, K) on a state of the root, in float64."""
        lead = len(self._root.batch_shape)
        flat = state.double().flatten(0, lead - 1) if lead else state.double().unsqueeze(0)
        with full_precision(state):
            return apply_matrix(matrix, flat).reshape(state.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """The bound, nats, (*sample, *batch)."""
        diffusion, event_dim = self._diffusion, len(self.event_shape)
        if value.shape[value.dim() - event_dim :] != self.event_shape:
            raise ValueError(
                f"x has shape {tuple(value.shape)}, expected (…, "
                f"{', '.join(map(str, self.event_shape))})"
            )
        start, P = diffusion.start, diffusion.transition(diffusion.start_time).covariance
        L = start.scale_tril
        eye = torch.eye(len(L), dtype=L.dtype, device=L.device)
        W = torch.linalg.solve_triangular(L, eye, upper=False)
        B = W @ P @ W.mT
        # Lᵀ (s_θ + Σ^{-1} (y - a x)), whitened: each part is of order one
        known = self._apply(L.mT, self._state_score()) + self._apply(W, self._root._y)
        of_x = (W @ start.mean).reshape(-1, *[1] * event_dim)
        error = known - of_x * value.double().unsqueeze(value.dim() - event_dim)
        rows = error.flatten(-event_dim) if event_dim else error.unsqueeze(-1)
        square = (rows * (B @ rows)).sum((-2, -1))
        Sigma_v = diffusion.initial_covariance[1:, 1:]
        constant = torch.logdet(Sigma_v) if len(Sigma_v) else Sigma_v.new_zeros(())
        constant = constant - diffusion.log_volume_ends[0] - math.log(2 * math.pi)
        constant = constant + B.diagonal().sum() - 1
        found = 0.5 * (self.event_shape.numel() * constant - square)
        lead = torch.broadcast_shapes(self.batch_shape, value.shape[: value.dim() - event_dim])
        return found.expand(lead).to(self._y.dtype)

    @property
    def mean(self) -> Tensor:
        """Of the x that ``sample`` draws: the first of M^{-1} (y_ε + P s_θ)."""
        step = self._diffusion.transition(self._diffusion.start_time)
        back = torch.linalg.inv(step.matrix)
        found = self._apply(back, self._root._y) + self._apply(
            back @ step.covariance, self._state_score()
        )
        first = found.select(len(self._root.batch_shape), 0).to(self._y.dtype)
        return first.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Of the x that ``sample`` draws: the first of M^{-1} P M^{-T}."""
        step = self._diffusion.transition(self._diffusion.start_time)
        row = torch.linalg.solve(step.matrix, step.scale_tril)[0]
        return row.square().sum().to(self._y.dtype).expand(self.batch_shape + self.event_shape)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """(*sample_shape, *batch, *event_shape)."""
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        noise = torch.randn(shape, dtype=self._y.dtype, device=self._y.device)
        return self.mean + self.variance.sqrt() * noise


class DiscretizedGaussian(Likelihood):
    r"""Decoder for data with levels: p(x_j = v_k | y_ε) ∝ π_jk N(z_j; v_k, e^{-λ}), Σ_k = 1.

    A probability of levels, so that bits per dimension need no dequantization. Computed in
    float64; at large λ over the few levels near z that matter to its last digit.

    Args:
        levels: n for ``linspace(-1, 1, n)``, or increasing values (n,).
        log_prior: log π, (*event_shape, n): the baseline's posterior, of which the discrete
            denoiser's bound is made. None: flat, the decoder of Kingma et al., "Variational
            Diffusion Models", 2021, eq. 8.

    Raises:
        ValueError: a bad prior or levels; from ``log_prob``, x off the levels.
    """

    levels: Tensor
    log_prior: Tensor | None

    def __init__(
        self, levels: int | Sequence[float] | Tensor, log_prior: Tensor | None = None
    ) -> None:
        super().__init__()
        values = discrete.level_values(levels)
        if log_prior is not None:
            log_prior = discrete.check_log_prior(log_prior, len(values))
            values = values.to(log_prior.device)
        self.register_buffer("levels", values)
        self.register_buffer("log_prior", log_prior)

    def forward(
        self, diffusion: LinearDiffusion, score: Any, y: Tensor, event_dim: int | None = None
    ) -> LevelPosterior:
        """p(x | y_ε), differentiable in y and the diffusion; no network call."""
        if event_dim is None and self.log_prior is not None:
            event_dim = self.log_prior.dim() - 1
        z, log_snr, batch_dim = read_state(diffusion, score, y, event_dim)
        event, n = z.shape[batch_dim:], len(self.levels)
        if self.log_prior is None:
            prior = self.levels.new_full((1,), -math.log(n)).expand(*event, n)
        else:
            prior = self.log_prior
        if prior.shape[:-1] != event:
            raise ValueError(
                f"y has event shape {tuple(event)}, expected that of log_prior, "
                f"{tuple(prior.shape[:-1])}"
            )
        centre, linear, quadratic = discrete.noise_odds(z, log_snr, self.levels)
        window: discrete.Window | None = discrete.level_window(
            self.levels,
            centre.reshape(-1, event.numel()),
            log_snr.item(),
            (prior.amax(-1) - prior.amin(-1)).max().item(),
        )
        if window is not None and 2 * window.size > n:
            window = None
        return LevelPosterior(self.levels, prior, centre, linear, quadratic, y.dtype, window)


class NetworkPosterior(Likelihood):
    """The discrete denoiser's own posterior p_θ(x | z, λ) at ε: one network call.

    Raises:
        TypeError: a score that has no posterior over levels.
    """

    network_calls = 1

    def forward(
        self, diffusion: LinearDiffusion, score: Any, y: Tensor, event_dim: int | None = None
    ) -> LevelDistribution:
        """p_θ(x | z_ε, λ)."""
        if not hasattr(score, "posterior"):
            raise TypeError(
                f"NetworkPosterior needs a score with a posterior over levels, got "
                f"{type(score).__name__}; use DiscreteDenoiser, or DiscretizedGaussian(levels)"
            )
        z, log_snr, batch_dim = read_state(diffusion, score, y, event_dim)
        return score.posterior(z.to(y.dtype), log_snr.expand(z.shape[:batch_dim]))


def _normal(mean: Tensor, log_scale: Tensor, dtype: torch.dtype, batch_dim: int) -> Any:
    scale = log_scale.exp().expand_as(mean)
    return dist.Normal(mean.to(dtype), scale.to(dtype)).to_event(mean.dim() - batch_dim)


# -- dequantization --------------------------------------------------------------------------------


class Dequantized(NamedTuple):
    """x = T(w) (N, *event_shape) and log|det ∂T/∂w| (N,), nats."""

    x: Tensor
    log_det: Tensor


@dataclass(frozen=True)
class LogitDequantization:
    r"""The paper's protocol for levels as continuous data: x = logit(α + (1 - 2α) w), w = (k+u)/n.

    Bits/dim of the levels are at most, in expectation over the uniform noise u,
    ``bits_per_dim(log_prob, d, log_det=log_det, num_levels=n)``.

    Args:
        num_levels: n.
        margin: α, which keeps w = 0 finite; the paper's is 0.05. Bits/dim are of the same levels
            whatever α, but Gaussians in x are other models of them for each.

    Raises:
        ValueError: n < 2, α outside [0, ½), k outside {0 … n-1} or not whole.

    Example:
        >>> k = torch.randint(256, (8, 1, 4, 4))
        >>> x, log_det = LogitDequantization(256)(k)
        >>> x.shape, log_det.shape
        (torch.Size([8, 1, 4, 4]), torch.Size([8]))
    """

    num_levels: int = 256
    margin: float = 1e-6

    def __post_init__(self) -> None:
        if self.num_levels < 2 or not 0 <= self.margin < 0.5:
            raise ValueError(
                f"num_levels is {self.num_levels} and margin {self.margin}, expected at least 2 "
                "levels and a margin in [0, 0.5), such as the paper's 0.05"
            )

    @property
    def transform(self) -> Transform:
        """T, with its log-determinant."""
        squeeze = AffineTransform(self.margin, 1 - 2 * self.margin)
        return ComposeTransform([squeeze, SigmoidTransform().inv])

    def __call__(
        self,
        k: Tensor,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Dequantized:
        """x and log|det| for level numbers k (N, *event_shape); fresh noise at each call."""
        codes = k.double()  # compared as uint8, 256 levels would be none
        off = ~((codes >= 0) & (codes < self.num_levels) & (codes == codes.round()))
        if bool(off.any()):
            raise ValueError(
                f"k holds {k[off][0].item()}, expected whole numbers 0 … {self.num_levels - 1}, "
                "such as uint8 pixels"
            )
        if generator is None:
            u = draws.uniform(k.shape, torch.float64, k.device)
        else:
            u = torch.rand(k.shape, generator=generator, dtype=torch.float64, device=k.device)
        w = (codes + u) / self.num_levels
        x = self.transform(w)
        log_det = self.transform.log_abs_det_jacobian(w, x).flatten(1).sum(-1)
        return Dequantized(x.to(dtype), log_det.to(dtype))

    def levels(self, x: Tensor) -> Tensor:
        """k of samples x, int64, like x."""
        w = self.transform.inv(x.double())
        return (w * self.num_levels).floor().clamp(0, self.num_levels - 1).long()
