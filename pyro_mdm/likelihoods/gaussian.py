"""Gaussian decoders of continuous data, from the state at ε."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import Transform, constraints

from pyro_mdm.diffusions.base import Cap, Diffusion, require
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.diffusions.kernels import inverse_tril
from pyro_mdm.diffusions.matrices import apply_matrix
from pyro_mdm.diffusions.memory import Recalled
from pyro_mdm.likelihoods.base import DecoderDistribution, Likelihood, StateScore, read_state
from pyro_mdm.support.checks import describe
from pyro_mdm.support.doors import checked_arguments
from pyro_mdm.support.late_checks import check_finite

__all__ = ["Gaussian", "JointTweedie", "Tweedie"]


class Gaussian(Likelihood):
    r"""A decoder for continuous data: the posterior of x given ``z = x + e^{-λ/2} ε``.

        N( x; μ + σ²/(σ²+v) (z - μ), σ² v/(σ²+v) ),  v = e^{-λ},    or N(x; z, v) for σ² = ∞

    Where states hold coordinates of the data (``transform``), x, z, μ and σ² are these coordinates,
    as for :class:`~pyro_mdm.Denoiser`; the distribution returned is still one of the data.

    Args:
        prior_mean: mean μ of the prior, a number or (*event_shape), in model space.
        prior_variance: variance σ² of the prior, a positive number or (*event_shape); inf, the
            default: a flat prior.

    Raises:
        ValueError: a variance that is not positive, a mean that is not finite.
    """

    prior_mean: Tensor
    prior_variance: Tensor
    _recalled = cached_property(lambda _: Recalled())

    @checked_arguments
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
        self, diffusion: Diffusion, score: StateScore, y: Tensor, event_dim: int | None = None
    ) -> TorchDistributionMixin:
        z, log_snr, batch_dim = read_state(diffusion, score, y, event_dim)
        z = diffusion.coordinates(z)

        def constants(log_snr: Tensor, variance: Tensor) -> tuple[Tensor, _Scale]:
            # by the ratio v/σ², which is 0 for a flat prior, where σ²/(σ² + v) would be ∞/∞
            ratio = torch.exp(-log_snr) / variance
            return ratio / (1 + ratio), _Scale.from_log(-(log_snr + ratio.log1p()) / 2, y.dtype)

        weight, scale = self._recalled(constants, log_snr, self.prior_variance, key=y.dtype)
        mean = torch.lerp(z, self.prior_mean, weight).to(y.dtype)
        law = _normal(mean, scale, batch_dim)
        if Cap.DATA_STATES in diffusion.caps:
            return law
        return dist.TransformedDistribution(law, [_OfCoordinates(diffusion, len(law.event_shape))])


class _OfCoordinates(Transform):
    """The map from coordinates to data, which is orthonormal and keeps volumes."""

    bijective = True

    def __init__(self, diffusion: Diffusion, event_dim: int) -> None:
        super().__init__()
        self._diffusion = diffusion
        self.domain = self.codomain = constraints.independent(constraints.real, event_dim)

    def _call(self, x: Tensor) -> Tensor:
        return self._diffusion.from_coordinates(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self._diffusion.coordinates(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """0 for each datum."""
        return x.new_zeros(x.shape[: x.dim() - self.domain.event_dim])


class Tweedie(Likelihood):
    """A decoder ``N(x; x̂(y_ε, ε), e^{-λ})`` with one network call; the paper's for K = 1."""

    network_calls = 1

    def forward(
        self, diffusion: Diffusion, score: StateScore, y: Tensor, event_dim: int | None = None
    ) -> TorchDistributionMixin:
        _, log_snr, batch_dim = read_state(diffusion, score, y, event_dim)
        if isinstance(score, type) or not hasattr(score, "denoise"):
            raise TypeError(f"score is {describe(score)}, expected one; pass model.score_function")
        x = score.denoise(diffusion, y, diffusion.start_time.expand(y.shape[:batch_dim]))
        x = diffusion.from_coordinates(x)
        return _normal(x.to(y.dtype), _Scale.from_log(-log_snr / 2, y.dtype), batch_dim)


class JointTweedie(Likelihood):
    r"""The paper's decoder: log p(x, v_0 | y_ε) by the score - log q(v_0). One network call.

    With y_ε | y_0 ~ N(M y_0, P) and y_0 = (x, v_0), Tweedie's formula for the joint state gives
    ``p(y_0 | y_ε) = N(M^{-1} (y_ε + P s_θ), M^{-1} P M^{-T})``, and with the v_0 that led to y_ε

        log p(x | y_ε) ≥ E_{q(v_0 | x, y_ε)}[ log p(x, v_0 | y_ε) - log q(v_0 | x, y_ε) ]

    is a bound of its own (q(v_0 | x, y_ε) = q(v_0) q(y_ε | x, v_0) / q(y_ε | x), so that adding it
    to the divergence of paths from y_ε is the paper's bound). Here v_0 is integrated out:

        -½ ‖s_θ + Σ^{-1}(y_ε - a x)‖²_P + ½ log det Σ_v - ½ κ(ε) - ½ log 2π + ½ (tr Σ^{-1}P - 1)

    per data dimension, where κ is log volume. For K = 1 it is :class:`Tweedie`. For K > 1 and the
    exact score its bound is lower on average, the more so the further ε is from 0.

    Source: Singhal, Goldstein & Ranganath, ICLR 2023, Theorem 1 and the appendix on its likelihood.
    """

    network_calls = 1

    def forward(
        self, diffusion: Diffusion, score: StateScore, y: Tensor, event_dim: int | None = None
    ) -> JointTweedieDecoder:
        """The decoder at y_ε; its first number takes the network call.

        Raises:
            TypeError: a diffusion without a closed-form distribution of y_ε given (x, v_0).
        """
        needed = (Cap.READOUT, Cap.ONE_LEVEL, Cap.DATA_STATES, Cap.KERNELS)
        require(diffusion, *needed, who="JointTweedie", fix="decode with Gaussian")
        batch_dim = read_state(diffusion, score, y, event_dim).batch_dim
        kernels: Any = diffusion
        return JointTweedieDecoder(kernels, score, y, batch_dim)


class JointTweedieDecoder(DecoderDistribution):
    """The distribution of x under :class:`JointTweedie`, with v_0 integrated out.

    ``log_prob`` is the bound on the log density of the x that ``sample`` draws with v_0 from
    p(x, v_0 | y_ε); for K = 1 it is that density.

    Args:
        diffusion: diffusion with closed-form kernels.
        score: the score.
        y: states at ε, (*batch, K, *event_shape).
        batch_dim: number of batch dimensions.
    """

    def __init__(self, diffusion: Kernels, score: StateScore, y: Tensor, batch_dim: int) -> None:
        self._diffusion, self._score, self._y = diffusion, score, y
        self._cached_score: Tensor | None = None
        self._root: JointTweedieDecoder = self  # its state and score serve expanded copies
        super().__init__(y.shape[:batch_dim], y.shape[batch_dim + 1 :], validate_args=False)

    def _state_score(self) -> Tensor:
        """s_θ(y_ε), like y."""
        root = self._root
        if root._cached_score is None:
            s = root._diffusion.start_time.expand(root.batch_shape)
            root._cached_score = root._score.score(root._diffusion, root._y, s)
        return root._cached_score

    def _apply(self, matrix: Tensor, state: Tensor) -> Tensor:
        """``matrix`` (K, K) on a state of the root, in float64."""
        return apply_matrix(matrix, state.double(), len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """The bound, nats, (*sample, *batch)."""
        diffusion, event_dim = self._diffusion, len(self.event_shape)
        self.check_event(value)
        start, P = diffusion.start, diffusion.transition(diffusion.start_time).covariance
        L, W = start.scale_tril, inverse_tril(start.scale_tril)
        B = W @ P @ W.mT
        # Lᵀ (s_θ + Σ^{-1} (y - a x)), whitened: each part is of order one
        without_x = self._apply(L.mT, self._state_score()) + self._apply(W, self._root._y)
        of_x = (W @ start.mean).reshape(-1, *[1] * event_dim)
        error = without_x - of_x * value.double().unsqueeze(value.dim() - event_dim)
        rows = error.flatten(-event_dim) if event_dim else error.unsqueeze(-1)
        square = (rows * (B @ rows)).sum((-2, -1))
        Sigma_v = diffusion.initial_covariance[1:, 1:]
        constant = torch.logdet(Sigma_v) if len(Sigma_v) else Sigma_v.new_zeros(())
        constant = constant - diffusion.log_volume_ends[0] - math.log(2 * math.pi)
        constant = constant + B.diagonal().sum() - 1
        bound = 0.5 * (self.event_shape.numel() * constant - square)
        lead = torch.broadcast_shapes(self.batch_shape, value.shape[: value.dim() - event_dim])
        return bound.expand(lead).to(self._y.dtype)

    @property
    def mean(self) -> Tensor:
        """The mean of the x that ``sample`` draws: variable 0 of ``M^{-1} (y_ε + P s_θ)``."""
        step = self._diffusion.transition(self._diffusion.start_time)
        back = torch.linalg.inv(step.matrix)
        state = self._apply(back, self._root._y)
        state = state + self._apply(back @ step.covariance, self._state_score())
        first = state.select(len(self._root.batch_shape), 0).to(self._y.dtype)
        return first.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """The variance of the x that ``sample`` draws: variable 0 of ``M^{-1} P M^{-T}``."""
        step = self._diffusion.transition(self._diffusion.start_time)
        row = torch.linalg.solve(step.matrix, step.scale_tril)[0]
        return row.square().sum().to(self._y.dtype).expand(self.batch_shape + self.event_shape)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Samples of x, (*sample_shape, *batch, *event_shape)."""
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        noise = torch.randn(shape, dtype=self._y.dtype, device=self._y.device)
        return self.mean + self.variance.sqrt() * noise


class _Scale(NamedTuple):
    """A standard deviation σ with what its density takes, each broadcastable to data."""

    scale: Tensor  # σ
    inverse: Tensor  # 1/σ
    normalizer: Tensor  # log N(0; 0, σ²)

    @classmethod
    def from_log(cls, log_scale: Tensor, dtype: torch.dtype) -> _Scale:
        """The numbers of log σ, which is in float64."""
        normalizer = -(log_scale + 0.5 * math.log(2 * math.pi))
        return cls(log_scale.exp().to(dtype), (-log_scale).exp().to(dtype), normalizer.to(dtype))


class _Normal(dist.Normal):
    """A normal distribution whose parameters are computed here, so that only x is checked."""

    arg_constraints: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]

    def __init__(self, mean: Tensor, scale: _Scale) -> None:
        self.loc, self._scale = mean, scale
        super(torch.distributions.Normal, self).__init__(mean.shape)

    @property
    def scale(self) -> Tensor:  # type: ignore[override]
        """σ, like the mean."""
        return self._scale.scale.expand(self.loc.shape)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> _Normal:
        if tuple(batch_shape) == self.batch_shape:
            return self
        return _Normal(self.loc.expand(*batch_shape), self._scale)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        _, inverse, normalizer = self._scale
        white = (value - self.loc) * inverse
        return torch.addcmul(normalizer, white, white, value=-0.5)

    def _validate_sample(self, value: Tensor) -> None:
        """The check of torch, without waiting for the device."""
        try:
            torch.broadcast_shapes(value.shape, self.batch_shape)
        except RuntimeError as error:
            raise ValueError(
                f"x has shape {tuple(value.shape)}, expected one that broadcasts with "
                f"{tuple(self.batch_shape)}, that of the state's data"
            ) from error
        check_finite("x", value)


def _normal(mean: Tensor, scale: _Scale, batch_dim: int) -> TorchDistributionMixin:
    return _Normal(mean, scale).to_event(mean.dim() - batch_dim)
