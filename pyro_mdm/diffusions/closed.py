"""Diffusions in closed form: their kernels, and scores and errors under them."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeGuard

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from pyro_mdm.diffusions.base import (
    Cap,
    DataPaths,
    Diffusion,
    Level,
    Marginal,
    Noised,
    ScoreAndDenoiser,
    Times,
    Transition,
    UnsupportedDiffusionError,
    full_precision,
    with_event_dims,
)
from pyro_mdm.diffusions.clocks import TimeChange, as_times
from pyro_mdm.diffusions.kernels import Propagator, inverse_tril
from pyro_mdm.diffusions.matrices import apply_matrix, of_counted, outer

__all__ = [
    "Denoise",
    "GaussianPaths",
    "Kernels",
    "denoising_error",
    "error_on_the_way",
    "is_usual_block",
    "noised_data",
    "noised_state",
    "prior_constants",
    "volume_growth",
]

Denoise = Callable[[Tensor, Tensor], Tensor]
"""x̂ (n, *event_shape) of z and λ."""


def denoising_error(
    x: Tensor, level: Tensor, noise: Tensor, denoiser: Denoise, counted: Tensor | None = None
) -> Tensor:
    """½ e^λ ‖x - x̂(z, λ)‖², (n,) nats, at one draw of z = x + e^{-λ/2} ε.

    Args:
        x: data (n, *event_shape), in coordinates;  level: λ, (n,).
        noise: standard normal, like x;  denoiser: x̂(z, λ), like x.
        counted: which dimensions count, bool, broadcastable to x; None: all.
    """
    x_hat = denoiser(noised_data(x, level, noise), level)
    square = mse_loss(x_hat, x, reduction="none")
    if counted is not None:
        square = torch.where(counted, square, 0)
    weight = 0.5 * torch.exp(level).to(x)
    return weight * square.sum(tuple(range(1, x.dim())) or None)


class GaussianPaths(DataPaths):
    """Paths of a Gaussian chain given the data, and scores and errors under them."""

    diffusion: Kernels

    def noised(
        self, x: Tensor, s: Tensor, noise: Tensor, law: Marginal, whitener: Tensor
    ) -> Noised:
        """States y_s of data, and the target of the score there.

        Args:
            x: data (n, *event_shape), in coordinates;  s: times (n,).
            noise: standard normal (n, K, *event_shape).
            law: the marginal at these times;  whitener: its L^{-1}.
        """
        state, moved = noised_state(law, x, noise), self.displacement(x, s)
        with full_precision(x):
            target = -apply_matrix(whitener.mT, noise.double())
        return Noised(state if moved is None else state + moved, target)

    def score_from(self, x: Tensor, y: Tensor, s: Tensor, law: Marginal) -> Tensor:
        """The score s_θ = -Σ^{-1} (y - a x) of a model that predicts x, like y, in float64.

        Args:
            x: the prediction, (*batch, *event_shape);  y: states (*batch, K, *event_shape).
            s: times (*batch), or a number for one batch dimension;  law: the marginal there.
        """
        event_dim = y.dim() - (s.dim() or 1) - 1
        W = inverse_tril(law.scale_tril)
        noise = apply_matrix(W, y.double() - outer(law.mean, x.double(), event_dim))
        return -apply_matrix(W.mT, noise)

    def aim(self, x: Tensor, z: Tensor, log_snr: Tensor, noise: float) -> Tensor:
        """The point, like x̂, to which the backward process with noise η g² draws z: x itself,
        unless the drift sees the data.

        Args:
            x, z: (*batch, *event_shape);  log_snr: of z, (*batch), a map, or a number;  noise: η.
        """
        return x

    denoising_error = staticmethod(denoising_error)

    def velocity(self, y: Tensor, s: Tensor, noise: float, ask: ScoreAndDenoiser) -> Tensor:
        pull = apply_matrix(self.diffusion.noise_covariance(s), ask.score(y, s))
        return apply_matrix(self.diffusion.drift_matrix(s), y) - (1 + noise) / 2 * pull


class Kernels(Diffusion):
    """A diffusion with a closed form: given the data, its paths are a Gaussian chain.

    Kernels are per data dimension. Where dimensions have different ones (:attr:`maps`), their
    tensors have the dimensions of a datum after those of the times, with sizes of 1 along
    dimensions that share, and a batch dimension of 1 for one time.
    """

    _kind_of_paths: ClassVar[type[GaussianPaths]] = GaussianPaths
    _usual_caps = frozenset({Cap.KERNELS, Cap.NO_CONTEXT})
    paths: GaussianPaths
    initial_covariance: Tensor
    """Σ_0 (K, K), of y at time 0 given x: 0 for x, Σ_v for v_0."""

    # -- kernels -----------------------------------------------------------------------------------

    @abstractmethod
    def marginal(self, s: Times) -> Marginal:
        """The distribution of y_s given x, for s (…) in (0, T], differentiable in the diffusion."""

    @abstractmethod
    def transition(self, s: Times, r: Times = 0.0) -> Transition:
        """The distribution of y_s given y_r, for s > r broadcast to (…), differentiable too."""

    @property
    @abstractmethod
    def terminal(self) -> Marginal:
        """The distribution of y_T given x."""

    @property
    @abstractmethod
    def prior_covariance(self) -> Tensor:
        """Σ_π (K, K) of the prior N(0, Σ_π)."""

    @abstractmethod
    def drift_matrix(self, s: Times) -> Tensor:
        """A(s), (*s.shape, K, K)."""

    @abstractmethod
    def noise_covariance(self, s: Times) -> Tensor:
        """g²(s) = G Gᵀ, (*s.shape, K, K)."""

    def by_dimension(self, function: Callable[..., Any], *times: Tensor) -> Any:
        """``function(linear, *times)`` of the linear diffusion of all data dimensions, or of each.

        Args:
            function: a function of a linear diffusion and times, all of one shape. It returns
                tensors whose shape begins with that of the times, or named tuples of them.
            times: its times, of one shape.
        """
        return function(self, *times)

    # -- by clock time, of one block for all data dimensions ---------------------------------------

    @property
    def propagator(self) -> Propagator:
        """The propagator between clock times, from which all kernels are computed."""
        raise self._several()

    def _several(self) -> UnsupportedDiffusionError:
        return UnsupportedDiffusionError(
            f"{type(self).__name__} has kernels for each data dimension, expected one for all; use "
            "by_dimension"
        )

    def drift(self, y: Tensor, s: Times) -> Tensor:
        """A(s) y, like y (*batch, K, *event_shape)."""
        return apply_matrix(self.drift_matrix(s), y)

    @abstractmethod
    def dispersion(self, y: Tensor | None, s: Times) -> Tensor:
        """G(s), (*s.shape, K, K), for any state."""

    # -- ends --------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def cut_time(self) -> float | None:
        """ε, if it was given as a time."""

    @property
    @abstractmethod
    def min_log_snr(self) -> float | None:
        """λ(T) that the clock is scaled to; None for the clock as it is."""

    @property
    @abstractmethod
    def log_volume(self) -> TimeChange:
        """κ = log det Σ - 2 ∫ tr A, averaged over data dimensions."""

    @property
    def way(self) -> TimeChange:
        return self.log_volume

    def level(self, u: Tensor) -> Level:
        """Log SNR at fractions u (n,) of the common clock's way in log SNR."""
        width = self.start_log_snr - self.terminal_log_snr
        return Level(self.start_log_snr - u * width, width.expand_as(u))


def error_on_the_way(
    diffusion: Kernels,
    x: Tensor,
    u: Tensor,
    noise: Tensor,
    denoiser: Denoise,
    counted: Tensor | None,
) -> Tensor:
    """One draw of Σ_j ½ e^λ_j (x_j - x̂_j)² (-dλ_j/du) at fractions u (n,) of the way, (n,) nats.

    The other arguments are those of :func:`denoising_error`.
    """
    log_snr, rate = diffusion.level(u.clamp(0, 1))
    z = noised_data(x, log_snr, noise)
    levels = log_snr if log_snr.dim() == 1 else log_snr.expand(x.shape)
    square = (x - denoiser(z, levels)).square()
    weight = with_event_dims(0.5 * (rate * log_snr.exp()).to(x), x)
    return of_counted(weight * square, counted).flatten(1).sum(1)


def is_usual_block(diffusion: Diffusion) -> TypeGuard[Kernels]:
    """Whether one linear diffusion of all dimensions and data is scored by its kernels alone."""
    if not isinstance(diffusion, Kernels) or diffusion.maps:
        return False
    return type(diffusion.paths) is GaussianPaths and Cap.NO_CONTEXT in diffusion.caps


def noised_data(x: Tensor, log_snr: Tensor, noise: Tensor) -> Tensor:
    """z = x + e^{-λ/2} ε, like x (n, *event_shape), for λ (n,) or maps of log SNR."""
    return torch.addcmul(x, with_event_dims((-0.5 * log_snr).exp().to(x), x), noise)


def noised_state(law: Marginal, x: Tensor, noise: Tensor, event_dim: int | None = None) -> Tensor:
    """y = a x + L η, like η (*batch, K, *event_shape), for data x (*batch, *event_shape), in x's
    dtype.

    Args:
        law: of times (*batch), or of one time for all.
        event_dim: number of dimensions of a datum, all of x's but the first by default.
    """
    a, L = law.mean.to(x), law.scale_tril.to(x)
    K = a.shape[-1]
    if a.dim() > 2 or noise.numel() != K * x.numel():  # by data dimension, or several draws
        return outer(a, x, event_dim) + apply_matrix(L, noise, event_dim)
    n = math.prod(x.shape[: 1 if event_dim is None else x.dim() - event_dim])
    with full_precision(x):
        mean = a.unsqueeze(-1) * x.reshape(n, 1, -1)
        return torch.baddbmm(mean, L.expand(n, K, K), noise.reshape(n, K, -1)).reshape(noise.shape)


def prior_constants(diffusion: Kernels) -> tuple[Tensor, Tensor]:
    """The prior KL of a dimension with x = 0, nats, and its derivative in x²; 0-dim, or one number
    for each dimension where they differ."""
    end, prior = diffusion.terminal, diffusion.prior_covariance
    trace = torch.linalg.solve_ex(prior, end.covariance).result.diagonal(dim1=-2, dim2=-1).sum(-1)
    constant = 0.5 * (trace - diffusion.num_variables + torch.logdet(prior) - end.log_det)
    column = end.mean.unsqueeze(-1)
    quadratic = 0.5 * (column.mT @ torch.linalg.solve_ex(prior, column).result)[..., 0, 0]
    return constant, quadratic


def volume_growth(diffusion: Kernels, s: Times, r: Times, dimensions: int = 1) -> Tensor:
    """The growth of the log volume of states, ``dimensions · ∫_r^s tr A``, (…) as s and r.

    It is averaged over data dimensions where these differ; then 0-dim times give (1,).
    """
    ends = torch.broadcast_tensors(as_times(s), as_times(r))

    def of_block(block: Kernels, s: Tensor, r: Tensor) -> Tensor:
        start = block.clock(r)
        return block.propagator.trace(start, block.clock(s) - start)

    traces: Tensor = diffusion.by_dimension(of_block, *ends)
    if diffusion.maps:
        traces = traces.flatten(max(ends[0].dim(), 1)).mean(-1)
    return dimensions * traces
