"""Decoders p(x | y_ε): their base class, those of continuous data, and bits per dimension."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar, cast

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from torch import Tensor
from torch.distributions import Transform, constraints

from pyro_mdm.diffusions.base import Cap, Diffusion, coordinates, from_coordinates, require
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.diffusions.kernels import inverse_tril
from pyro_mdm.diffusions.matrices import apply_matrix
from pyro_mdm.support.checks import (
    Count,
    Several,
    check_count,
    check_finite,
    check_instance,
    check_shape,
    checked_arguments,
    describe,
)
from pyro_mdm.support.modules import ExactBuffers
from pyro_mdm.support.settings import Restorable

__all__ = [
    "DecoderDistribution",
    "Gaussian",
    "JointTweedie",
    "Likelihood",
    "Reading",
    "StateScore",
    "Tweedie",
    "bits_per_dim",
    "log_prob_by_dimension",
    "normal_log_prob",
    "posterior",
    "read_state",
]

D = TypeVar("D", bound="DecoderDistribution")


@checked_arguments
def bits_per_dim(
    log_prob: Tensor | float,
    num_dims: Count,
    *,
    log_det: Tensor | float = 0.0,
    num_levels: Several | None = None,
) -> Any:
    r"""Bits per dimension of a log-likelihood: -(log p + log|det|) / (d ln 2) (+ log₂ levels).

    Args:
        log_prob: log-likelihood log p(x), summed over the d dimensions, in nats: a number or a
            tensor of any shape.
        num_dims: number d of dimensions.
        log_det: log-determinant log|det ∂x/∂w|, summed over dimensions, where log p is a density of
            x = T(w) and bits are of w; 0 without a transform.
        num_levels: number n of levels if w = (k + u)/n was dequantized by uniform noise u, whose
            density is then n^d times the probability of k. None: a density, or a probability of
            levels.

    Returns:
        Bits/dim, like ``log_prob``; for dequantized data, in expectation over u, at least the bits
        of the discrete likelihood ∫ p(w) du.

    Raises:
        ValueError: fewer than one dimension or two levels.

    Example:
        >>> bits_per_dim(torch.tensor(-2 * math.log(2)), num_dims=2)
        tensor(1.)
    """
    if (
        isinstance(log_det, Tensor)
        and log_det.dim()
        and log_det.shape != torch.as_tensor(log_prob).shape
    ):
        raise ValueError(
            f"log_det has shape {tuple(log_det.shape)}, expected one number, or the shape of "
            f"log_prob, {describe(log_prob)}; sum both over the dimensions of a datum"
        )
    bits = -(log_prob + log_det) / (num_dims * math.log(2))
    return bits if num_levels is None else bits + math.log2(num_levels)


class Likelihood(Restorable, ExactBuffers, ABC):
    """A decoder p(x | y_ε), with buffers that stay in float64 when the module is cast."""

    network_calls: ClassVar[int] = 0
    """The number of network calls of a decoder's distribution."""

    @abstractmethod
    def forward(
        self, diffusion: Diffusion, score: StateScore, y: Tensor, event_dim: int | None = None
    ) -> TorchDistributionMixin:
        """The decoder's distribution of x.

        Args:
            diffusion: the noising diffusion.
            score: the :class:`~pyro_mdm.scores.Score` in use.
            y: states at ``diffusion.start_time``, (*batch, K, *event_shape).
            event_dim: number of dimensions of a datum; None: that of the score's event shape if it
                has one, else all but one batch dimension.

        Returns:
            A Pyro distribution with batch shape (*batch) and event shape (*event_shape).
        """


class DecoderDistribution(TorchDistribution):
    """The base class of decoders' distributions of x; samples are not reparameterized."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = False

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self: D, batch_shape: Sequence[int], _instance: D | None = None) -> D:
        """A copy with another batch shape; subclasses expand its tensors."""
        new: D = self._get_checked_instance(type(self), _instance)
        new.__dict__.update(self.__dict__)
        super(DecoderDistribution, new).__init__(torch.Size(batch_shape), self.event_shape)
        return new

    def log_prob_by_dimension(self, value: Tensor) -> Tensor:
        """log p(x_j) of independent dimensions, like x (*batch, *event_shape), nats; they sum to
        log p.

        Raises NotImplementedError for dimensions that depend on each other.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no log-probability for each dimension; see "
            "log_prob_by_dimension"
        )

    def check_event(self, value: Tensor) -> None:
        """Raises ValueError unless the last sizes of x are the event shape."""
        check_shape("x", value, self.event_shape)


def log_prob_by_dimension(decoder: object, value: Tensor) -> Tensor:
    """log p(x_j) of x (*batch, *event_shape) under a decoder's distribution, like x, nats.

    Raises TypeError for dimensions that depend on each other.
    """
    if isinstance(decoder, DecoderDistribution):
        return decoder.log_prob_by_dimension(value)
    if isinstance(decoder, dist.Independent) and not decoder.base_dist.event_shape:
        return decoder.base_dist.log_prob(value)
    raise TypeError(
        f"the decoder's distribution is {describe(decoder)}, expected independent dimensions: a "
        "distribution of numbers with to_event(event_dim), or a DecoderDistribution with "
        "log_prob_by_dimension"
    )


class StateScore(Protocol):
    """The part of a :class:`~pyro_mdm.scores.Score` that decoders call."""

    event_shape: tuple[int, ...] | None

    def score(self, diffusion: Kernels, y: Tensor, s: Tensor) -> Tensor:
        """s_θ(y, s), like y (*batch, K, *event_shape)."""

    def denoise(self, diffusion: Diffusion, y: Tensor, s: Tensor) -> Tensor:
        """x̂ (*batch, *event_shape)."""


class Reading(NamedTuple):
    """The readout z = kᵀ y_ε (*batch, *event_shape), of the data, and λ(ε), in float64."""

    z: Tensor
    log_snr: Tensor
    batch_dim: int


def read_state(
    diffusion: Diffusion, score: StateScore, y: Tensor, event_dim: int | None
) -> Reading:
    """The reading of x from states y at ``diffusion.start_time``, (*batch, K, *event_shape).

    The score in use and ``event_dim`` are those of :meth:`Likelihood.forward`.

    Raises:
        ValueError: states of another shape.
    """
    check_instance("diffusion", diffusion, Diffusion, "e.g. CLD()")
    if not (isinstance(y, Tensor) and y.is_floating_point()):
        check_shape("y", y, ())
    if event_dim is None:
        event_shape = getattr(score, "event_shape", None)
        event_dim = y.dim() - 2 if event_shape is None else len(event_shape)
    elif type(event_dim) is not int:
        check_count("event_dim", event_dim, "the number of dimensions of a datum", least=0)
    batch_dim, K = y.dim() - 1 - event_dim, diffusion.num_variables
    if event_dim < 0 or batch_dim < 0 or y.shape[batch_dim] != K:
        raise ValueError(
            f"y has shape {tuple(y.shape)}, expected (*batch, K, *event_shape) with K = {K} "
            f"variables and {event_dim} event dimensions"
        )
    if diffusion.paths.starts_at_data:
        y = diffusion.paths.without_displacement(y, event_dim)
    k = diffusion.start.readout  # in float64, and with it the product
    k = k.movedim(-1, 1) if k.dim() > 1 else k.reshape(-1, *[1] * event_dim)
    z = (k.to(y.device) * y).sum(batch_dim)
    if (transform := diffusion.transform) is not None:
        z = transform.inverse(z)
    return Reading(z, diffusion.start_log_snr.to(y.device), batch_dim)


# -- decoders of continuous data ------------------------------------------------------------------


def posterior(
    z: Tensor, log_snr: Tensor, prior_mean: Tensor, prior_variance: Tensor
) -> tuple[Tensor, Tensor]:
    """The mean of x given z, and -log of its scale, in float64; see :class:`Gaussian`."""
    # by the ratio v/σ², which is 0 for a flat prior, where σ²/(σ² + v) would be ∞/∞
    ratio = torch.exp(-log_snr) / prior_variance
    return torch.lerp(z, prior_mean, ratio / (1 + ratio)), (log_snr + ratio.log1p()) / 2


def normal_log_prob(x: Tensor, mean: Tensor, sharpness: Tensor) -> Tensor:
    """log N(x; mean, e^{-2 sharpness}), with -log of the scale in float64, like x, nats."""
    white = (x - mean) * sharpness.exp().to(x.dtype)
    normalizer = (sharpness - 0.5 * math.log(2 * math.pi)).to(x.dtype)
    return torch.addcmul(normalizer, white, white, value=-0.5)


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
        if (transform := diffusion.transform) is not None:
            z = transform(z)
        mean, sharpness = posterior(z, log_snr, self.prior_mean, self.prior_variance)
        normal = _Normal(mean.to(y.dtype), sharpness).to_event(mean.dim() - batch_dim)
        if transform is None:
            return normal
        data = _OfCoordinates(diffusion, len(normal.event_shape))
        return dist.TransformedDistribution(normal, [data])


class _OfCoordinates(Transform):
    """The map from coordinates to data, which is orthonormal and keeps volumes."""

    bijective = True

    def __init__(self, diffusion: Diffusion, event_dim: int) -> None:
        super().__init__()
        self._diffusion = diffusion
        self.domain = self.codomain = constraints.independent(constraints.real, event_dim)

    def _call(self, x: Tensor) -> Tensor:
        return from_coordinates(self._diffusion, x)

    def _inverse(self, y: Tensor) -> Tensor:
        return coordinates(self._diffusion, y)

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
        x = from_coordinates(diffusion, x)
        return _Normal(x.to(y.dtype), log_snr / 2).to_event(x.dim() - batch_dim)


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
        """The decoder at y_ε.

        Raises:
            TypeError: a diffusion without a closed-form distribution of y_ε given (x, v_0).
        """
        needed = (Cap.READOUT, Cap.ONE_LEVEL, Cap.DATA_STATES, Cap.KERNELS)
        require(diffusion, *needed, who="JointTweedie", fix="decode with Gaussian")
        batch_dim = read_state(diffusion, score, y, event_dim).batch_dim
        kernels = cast(Kernels, diffusion)
        return JointTweedieDecoder(kernels, score, y, batch_dim)


class _Solved(NamedTuple):
    """The numbers of a :class:`JointTweedieDecoder`, in float64."""

    white: Tensor  # Lᵀ (s_θ + Σ^{-1} y), (*batch, K, *event_shape)
    of_x: Tensor  # L^{-1} a, (K, *1)
    B: Tensor  # L^{-1} P L^{-T}, (K, K)
    constant: Tensor  # nats per dimension, ()
    mean: Tensor  # variable 0 of M^{-1} (y_ε + P s_θ), (*batch, *event_shape)
    variance: Tensor  # variable 0 of M^{-1} P M^{-T}, ()


class JointTweedieDecoder(DecoderDistribution):
    """The distribution of x under :class:`JointTweedie`, with v_0 integrated out.

    ``log_prob`` is the bound on the log density of the x that ``sample`` draws with v_0 from
    p(x, v_0 | y_ε); for K = 1 it is that density. The states y are (*batch, K, *event_shape).
    """

    def __init__(self, diffusion: Kernels, score: StateScore, y: Tensor, batch_dim: int) -> None:
        self._diffusion, self._score, self._y = diffusion, score, y
        self._root = self  # whose network call serves expanded copies
        super().__init__(y.shape[:batch_dim], y.shape[batch_dim + 1 :], validate_args=False)

    @property
    def _solved(self) -> _Solved:
        return self._root._solution

    @cached_property
    def _solution(self) -> _Solved:
        diffusion, event_dim = self._diffusion, len(self.event_shape)
        batch_shape = self._y.shape[: self._y.dim() - 1 - event_dim]
        s = diffusion.start_time.expand(batch_shape)
        theta, y = self._score.score(diffusion, self._y, s).double(), self._y.double()
        start, step = diffusion.start, diffusion.transition(diffusion.start_time)
        P, W = step.covariance, inverse_tril(start.scale_tril)
        # whitened, so that each part is of order one
        white = apply_matrix(start.scale_tril.mT, theta, event_dim) + apply_matrix(W, y, event_dim)
        B, Sigma_v = W @ P @ W.mT, diffusion.initial_covariance[1:, 1:]
        constant = torch.logdet(Sigma_v) if len(Sigma_v) else Sigma_v.new_zeros(())
        constant = constant - diffusion.log_volume.ends[0] - math.log(2 * math.pi)
        back = torch.linalg.inv(step.matrix)
        state = apply_matrix(back, y, event_dim) + apply_matrix(back @ P, theta, event_dim)
        return _Solved(
            white,
            (W @ start.mean).to(y).reshape(-1, *[1] * event_dim),
            B.to(y),
            (constant + B.diagonal().sum() - 1).to(y),
            state.select(len(batch_shape), 0),
            torch.linalg.solve(step.matrix, step.scale_tril)[0].square().sum().to(y),
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """The bound, nats, (*sample, *batch)."""
        self.check_event(value)
        event_dim = len(self.event_shape)
        white, of_x, B, constant, _, _ = self._solved
        error = white - of_x * value.double().unsqueeze(value.dim() - event_dim)
        rows = error.flatten(-event_dim) if event_dim else error.unsqueeze(-1)
        square = (rows * (B @ rows)).sum((-2, -1))
        bound = 0.5 * (self.event_shape.numel() * constant - square)
        lead = torch.broadcast_shapes(self.batch_shape, value.shape[: value.dim() - event_dim])
        return bound.expand(lead).to(self._y.dtype)

    @property
    def mean(self) -> Tensor:
        """The mean of the x that ``sample`` draws, (*batch, *event_shape)."""
        return self._solved.mean.to(self._y.dtype).expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """The variance of the x that ``sample`` draws, (*batch, *event_shape)."""
        variance = self._solved.variance.to(self._y.dtype)
        return variance.expand(self.batch_shape + self.event_shape)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Samples of x, (*sample_shape, *batch, *event_shape)."""
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        noise = torch.randn(shape, dtype=self._y.dtype, device=self._y.device)
        return self.mean + self.variance.sqrt() * noise


class _Normal(dist.Normal):
    """A normal distribution by its mean and -log σ, in float64, of which only x is checked."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}  # type: ignore[misc]

    def __init__(self, mean: Tensor, sharpness: Tensor) -> None:
        self.loc, self._sharpness = mean, sharpness
        super(torch.distributions.Normal, self).__init__(mean.shape)

    @property
    def scale(self) -> Tensor:  # type: ignore[override]
        """σ, like the mean."""
        return (-self._sharpness).exp().to(self.loc.dtype).expand(self.loc.shape)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> _Normal:
        if tuple(batch_shape) == self.batch_shape:
            return self
        return _Normal(self.loc.expand(*batch_shape), self._sharpness)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return normal_log_prob(value, self.loc, self._sharpness)

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
