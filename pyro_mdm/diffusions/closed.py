"""Diffusions in closed form: their kernels, and scores and errors under them."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from pyro_mdm import randomness
from pyro_mdm.diffusions.base import (
    Asked,
    Cap,
    Diffusion,
    Level,
    Marginal,
    Noised,
    Times,
    Transition,
)
from pyro_mdm.diffusions.kernels import Factor, inverse_tril
from pyro_mdm.diffusions.matrices import (
    apply_matrix,
    full_precision,
    of_counted,
    outer,
    with_event_dims,
)
from pyro_mdm.diffusions.priors import GaussianPrior
from pyro_mdm.diffusions.propagator import Propagator

__all__ = [
    "Denoise",
    "Kernels",
    "OneBlock",
    "denoising_error",
    "is_usual_block",
    "noised_data",
    "noised_state",
]

CHECKED = 15
"""Times at which it is checked whether a prior is at rest."""
Denoise = Callable[[Tensor, Tensor], Tensor]
"""x̂ (n, *event_shape) of z and λ."""


class Kernels(Diffusion):
    """A diffusion with a closed form: given the data, its paths are a Gaussian chain.

    Kernels are per data dimension. Where dimensions have different ones (:attr:`maps`), their
    tensors have the dimensions of a datum after those of the times, with sizes of 1 along
    dimensions that share, and a batch dimension of 1 for one time.
    """

    closed_form = True
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

    @property
    def prior(self) -> GaussianPrior:
        return GaussianPrior(self.prior_covariance)

    def at_rest(self) -> bool:
        """Whether the prior is stationary: A Σ_π + Σ_π Aᵀ + g² = 0, between 0 and T."""
        s = self.as_tensor(torch.linspace(0, 1, CHECKED + 2, dtype=torch.float64)[1:-1])
        with torch.no_grad():
            noise = self.noise_covariance(s * self.horizon)
            moved = self.drift_matrix(s * self.horizon) @ self.prior_covariance
            return bool(((moved + moved.mT + noise).abs() <= 1e-9 * noise.abs().max()).all())

    @abstractmethod
    def drift_matrix(self, s: Times) -> Tensor:
        """A(s), (*s.shape, K, K)."""

    @abstractmethod
    def noise_covariance(self, s: Times) -> Tensor:
        """g²(s) = G Gᵀ, (*s.shape, K, K)."""

    @abstractmethod
    def dispersion_matrix(self, s: Times) -> Tensor:
        """G(s), (*s.shape, K, K)."""

    @abstractmethod
    def clock_noise(self, s: Times) -> Tensor:
        """g² per unit of clock time, (*s.shape, K, K), or (K, K) where it is constant."""

    @abstractmethod
    def divergence(self, s: Times, r: Times, dimensions: int = 1) -> Tensor:
        """The integral ``∫_r^s tr A`` over ``dimensions`` data dimensions, (…) as s and r."""

    @abstractmethod
    def frozen(self) -> Any:
        """Q, D and A per unit of clock time, halfway through the clock, for pictures."""

    @abstractmethod
    def by_dimension(self, function: Callable[..., Any], *times: Tensor) -> Any:
        """``function(linear, *times)`` of the linear diffusion of all data dimensions, or of each.

        Args:
            function: a function of a linear diffusion and times, all of one shape. It returns
                tensors whose shape begins with that of the times, or named tuples of them.
            times: its times, of one shape.
        """

    def drift(self, y: Tensor, s: Times) -> Tensor:
        """A(s) y, like y (*batch, K, *event_shape)."""
        return apply_matrix(self.drift_matrix(s), y)

    def dispersion(self, y: Tensor | None, s: Times) -> Tensor:
        """G(s), for any state."""
        return self.dispersion_matrix(s)

    def simulate(self, y: Tensor, times: Tensor, simulation: object = None) -> Tensor:
        """Paths drawn from their exact transitions; ``simulation`` has no effect."""
        states, steps = [y], self.transition(times[1:], times[:-1])
        for i in range(len(times) - 1):
            step, noise = steps.at(i), randomness.normal(y.shape, y.dtype, y.device)
            states.append(
                apply_matrix(step.matrix, states[-1]) + apply_matrix(step.scale_tril, noise)
            )
        return torch.stack(states, 1)

    # -- ends --------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def min_log_snr(self) -> float | None:
        """λ(T) that the clock is scaled to; None for the clock as it is."""

    @property
    @abstractmethod
    def cut_time(self) -> float | None:
        """ε, if it was given as a time."""

    def typical(self, x: Tensor) -> Kernels:
        return self

    # -- log volume, and the way -------------------------------------------------------------------

    @abstractmethod
    def log_volume(self, s: Times) -> Tensor:
        """κ(s) = log det Σ - 2 ∫ tr A, like s, averaged over data dimensions; increasing."""

    @abstractmethod
    def log_volume_rate(self, s: Times) -> Tensor:
        """dκ/ds = tr(Σ^{-1} g²) > 0, like s."""

    @property
    @abstractmethod
    def log_volume_ends(self) -> Tensor:
        """κ at ε and T, (2,)."""

    @abstractmethod
    def time_at_log_volume(self, value: Times) -> Tensor:
        """The time s in [ε, T] with κ(s) = value, like value; differentiable in both."""

    @abstractmethod
    def time_at_clock(self, tau: Tensor) -> Tensor:
        """The time s in [0, T] with b(s) = τ, like τ; differentiable in the clock and in τ."""

    def time_on_the_way(self, u: Tensor) -> Tensor:
        start, end = self.log_volume_ends
        return self.time_at_log_volume(start + u.clamp(0, 1) * (end - start))

    def speed_on_the_way(self, s: Tensor) -> Tensor:
        start, end = self.log_volume_ends
        value: Tensor = (end - start) / self.log_volume_rate(s)
        return value

    def on_the_way(self, square: Tensor, s: Tensor, whitener: Tensor, g2: Tensor) -> Tensor:
        """½ ‖·‖²_{g²} per unit of the way, (n,), from its square per unit of clock time.

        Args:
            square: ‖·‖² in g² per unit of clock time, (n,);  s: times (n,).
            whitener: L^{-1} of the distribution of y_s given x;  g2: :meth:`clock_noise`.
        """
        rate = ((whitener @ g2) * whitener).sum((-2, -1))  # dκ by clock time, as the square is
        if rate.dim() > s.dim():
            rate = rate.flatten(1).mean(1)
        start, end = self.log_volume_ends
        value: Tensor = (end - start) * 0.5 * square / rate
        return value

    def pace(self, s: Tensor) -> Tensor:
        return self.clock(s).log()

    def pace_rate(self, s: Tensor) -> Tensor:
        return self.rate(s) / self.clock(s)

    def time_at_pace(self, pace: Tensor) -> Tensor:
        return self.inverse_clock(pace.exp())

    def level(self, u: Tensor) -> Level:
        """Log SNR at fractions u (n,) of the common clock's way in log SNR."""
        width = self.start_log_snr - self.terminal_log_snr
        return Level(self.start_log_snr - u * width, width.expand_as(u))

    def log_snr_map_at(self, s: Times) -> Tensor:
        """λ at times s (n,): (n,), or (n, *event_shape) where data dimensions differ."""
        return self.log_snr(s)

    # -- scores and velocities ---------------------------------------------------------------------

    def noised(
        self, x: Tensor, s: Tensor, noise: Tensor, law: Marginal, whitener: Tensor
    ) -> Noised:
        """States y_s of data, and the target of the score there.

        Args:
            x: data (n, *event_shape), in coordinates;  s: times (n,).
            noise: standard normal (n, K, *event_shape).
            law: :meth:`marginal` at these times;  whitener: its L^{-1}.
        """
        state, moved = noised_state(law, x, noise), self.displacement(x, s)
        with full_precision(x):
            target = -apply_matrix(whitener.mT, noise.double())
        return Noised(state if moved is None else state + moved, target)

    def score_from(self, x: Tensor, y: Tensor, s: Tensor, law: Marginal) -> Tensor:
        """The score s_θ = -Σ^{-1} (y - a x) of a model that predicts x, like y, in float64.

        Args:
            x: the prediction, (*batch, *event_shape);  y: states (*batch, K, *event_shape).
            s: times (*batch), or a number for one batch dimension;  law: :meth:`marginal` there.
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

    def denoising_error(
        self, x: Tensor, level: Tensor, noise: Tensor, denoiser: Denoise, counted: Tensor | None
    ) -> Tensor:
        """One draw of the bound's loss per unit of λ when x̂ stands for x, (n,) nats.

        It is ½ e^λ ‖x - x̂(z, λ)‖², unless data dimensions differ in λ or the drift sees the data.

        Args:
            x: data (n, *event_shape), in coordinates;  level: λ of the common clock, (n,).
            noise: standard normal, like x;  denoiser: x̂(z, λ), like x.
            counted: which dimensions count, bool, broadcastable to x; None: all.
        """
        return denoising_error(x, level, noise, denoiser, counted)

    def error_on_the_way(
        self, x: Tensor, u: Tensor, noise: Tensor, denoiser: Denoise, counted: Tensor | None
    ) -> Tensor:
        """One draw of Σ_j ½ e^λ_j (x_j - x̂_j)² (-dλ_j/du) at fractions u (n,) of the way, (n,)
        nats; the other arguments are those of :meth:`denoising_error`."""
        log_snr, rate = self.level(u.clamp(0, 1))
        z = noised_data(x, log_snr, noise)
        levels = log_snr if log_snr.dim() == 1 else log_snr.expand(x.shape)
        square = (x - denoiser(z, levels)).square()
        weight = with_event_dims(0.5 * (rate * log_snr.exp()).to(x.dtype), x)
        return of_counted(weight * square, counted).flatten(1).sum(1)

    def velocity(self, y: Tensor, s: Tensor, noise: float, ask: Asked) -> Tensor:
        pull = apply_matrix(self.noise_covariance(s), ask.score(y, s))
        return apply_matrix(self.drift_matrix(s), y) - (1 + noise) / 2 * pull


class OneBlock(Kernels):
    """A single linear diffusion for all data dimensions; methods of clock times use its kernels."""

    @property
    @abstractmethod
    def propagator(self) -> Propagator:
        """The propagator between clock times, from which all kernels are computed."""

    @abstractmethod
    def factorization(self, tau: Tensor) -> tuple[Tensor, Tensor, Factor]:
        """a, Σ and the factorization of Σ at clock times τ (…)."""

    @abstractmethod
    def check_precision(self, growth: Tensor, tau: Tensor, what: str) -> None:
        """Raises KernelPrecisionError where rounding errors grow beyond the digits of float64."""

    def by_dimension(self, function: Callable[..., Any], *times: Tensor) -> Any:
        return function(self, *times)

    def divergence(self, s: Times, r: Times, dimensions: int = 1) -> Tensor:
        """The growth of the log volume of states, ``dimensions · ∫_r^s tr A``, (…) as s and r."""
        start = self.clock(r)
        return self.propagator.trace(start, self.clock(s) - start, dimensions)

    def data_columns(self, tau: Tensor, a: Tensor) -> Tensor:
        """The columns from which the mean of a state is made, (…, K, columns); a is that of x.

        Args:
            tau: clock times (…);  a: there, (…, K).
        """
        return a[..., None]


USUAL = ("aim", "denoising_error", "noised", "on_the_way", "score_from", "velocity")
"""The members of a diffusion in whose formulas nothing but its kernels differs."""


def is_usual_block(diffusion: Diffusion) -> TypeGuard[OneBlock]:
    """Whether one linear diffusion of all dimensions and data is scored by its kernels alone."""
    if not isinstance(diffusion, OneBlock) or diffusion.maps or diffusion.context is not None:
        return False
    if not {Cap.READOUT, Cap.OWN_DRIFT, Cap.NO_CONTEXT} <= diffusion.caps:
        return False
    return all(getattr(type(diffusion), name) is getattr(Kernels, name) for name in USUAL)


def denoising_error(
    x: Tensor, log_snr: Tensor, noise: Tensor, denoiser: Denoise, counted: Tensor | None = None
) -> Tensor:
    """½ e^λ ‖x - x̂(z, λ)‖², (n,), at one draw of z = x + e^{-λ/2} ε; arguments as for
    :meth:`Kernels.denoising_error`."""
    x_hat = denoiser(noised_data(x, log_snr, noise), log_snr)
    square = of_counted(mse_loss(x_hat, x, reduction="none"), counted)
    weight = 0.5 * torch.exp(log_snr).to(x.dtype)
    return weight * square.sum(tuple(range(1, x.dim())) or None)


def noised_data(x: Tensor, log_snr: Tensor, noise: Tensor) -> Tensor:
    """z = x + e^{-λ/2} ε, like x (n, *event_shape), for λ (n,) or maps of log SNR."""
    return torch.addcmul(x, with_event_dims((-0.5 * log_snr).exp().to(x.dtype), x), noise)


def noised_state(law: Marginal, x: Tensor, noise: Tensor, event_dim: int | None = None) -> Tensor:
    """y = a x + L η, like η (*batch, K, *event_shape), for data x (*batch, *event_shape), in x's
    dtype.

    Args:
        law: of times (*batch), or of one time for all.
        event_dim: number of dimensions of a datum, all of x's but the first by default.
    """
    a, L = law.mean.to(x.dtype), law.scale_tril.to(x.dtype)
    K = a.shape[-1]
    if a.dim() > 2 or noise.numel() != K * x.numel():  # by data dimension, or several draws
        return outer(a, x, event_dim) + apply_matrix(L, noise, event_dim)
    n = math.prod(x.shape[: 1 if event_dim is None else x.dim() - event_dim])
    with full_precision(x):
        mean = a.unsqueeze(-1) * x.reshape(n, 1, -1)
        return torch.baddbmm(mean, L.expand(n, K, K), noise.reshape(n, K, -1)).reshape(noise.shape)
