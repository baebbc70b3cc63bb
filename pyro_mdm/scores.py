r"""Parameterizations of the score: they own a network, not a diffusion.

``z = kᵀ y = x + e^{-λ/2} ε`` is sufficient for x given the whole state, whatever Q, D and K, so

    E[x | y_s] = E[x | z_s],    ∇ log q(y_s) = -Σ^{-1} ( y_s - a E[x | z_s] )    (exact),

and one network x̂(z, λ), λ = log SNR, gives the score of *every* linear diffusion
(:class:`Denoiser`, :class:`DiscreteDenoiser`). Conversely any score defines a denoiser through what
the loss sees of it, g² s_θ:

    x̂ = aᵀ Σ^{-1} g² ( s_θ + Σ^{-1} y ) / ( aᵀ Σ^{-1} g² Σ^{-1} a )

(:class:`NoisePrediction`, :class:`RawScore`). For diffusions without a closed form there is no z:
:class:`RawScore`, and :class:`~pyro_mdm.residual.ResidualScore` in better coordinates.

Shapes: data ``(*batch, *event_shape)``, states ``(*batch, K, *event_shape)``, times and log SNRs
``(*batch)``, or one number for a single batch dimension (any batch if the event shape is known).
Networks are called as ``network(inputs, log_snr)`` with ``(n, C, *spatial)`` and ``(n,)``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from pyro_mdm import discrete, draws, likelihoods
from pyro_mdm.checks import check_data, check_finite, check_network, check_weights
from pyro_mdm.diffusions import (
    Diffusion,
    LinearDiffusion,
    Marginal,
    apply_matrix,
    apply_vector,
    full_precision,
)
from pyro_mdm.settings import Restorable

__all__ = [
    "Denoiser",
    "DenoiserScore",
    "DiscreteDenoiser",
    "NoisePrediction",
    "RawScore",
    "Score",
]

Number = float | Tensor
Form = Literal["tilt", "logits"]
Times = Literal["log_volume", "vpsde"]

# a dimension's variance is at least this part of the average, in scalings of the discrete denoiser
VARIANCE_FLOOR = 0.5

# memory for what baseline_kl of a discrete denoiser has found
KL_TABLES_BYTES = 256 * 2**20
# data whose baseline is integrated together, in cache
DATA_AT_ONCE = 256


class Score(Restorable, nn.Module, ABC):
    """What every parameterization offers, and nothing about the diffusion it is used with.

    Those made of the closed-form law of y_s given x serve linear diffusions alone.

    Buffers stay in float64 when the module is cast to another precision.
    """

    network: nn.Module
    event_shape: tuple[int, ...] | None  # None: any
    serves_nonlinear: ClassVar[bool] = False
    """Whether it is a score for diffusions without a closed form too."""

    _times: Times = "log_volume"

    @property
    def times(self) -> Times:
        """Law of the times of :meth:`diffusion_term`, for raw scores of linear diffusions.

        Uniform in log volume; or the paper's, VPSDE's importance times, uniform in the log SNR that
        VPSDE has on the same clock b: density ∝ β/(1 - e^{-b}) (Song et al. 2021). Both are
        weighted and differentiated to be unbiased; for VPSDE they are one.
        """
        return self._times

    @times.setter
    def times(self, value: Times) -> None:
        if value not in get_args(Times):
            raise ValueError(f"times is {value!r}, expected one of {', '.join(get_args(Times))}")
        self._times = value

    autocast_dtype: torch.dtype | None = None
    """Mixed precision: the network, and nothing else, runs under autocast to this type."""

    def __init__(self, network: nn.Module, event_shape: tuple[int, ...] | None = None) -> None:
        super().__init__()
        check_network("network", network, Score, Diffusion)
        self.network = network
        self.event_shape = event_shape

    def arguments(self) -> dict[str, Any]:
        return super().arguments() | {"network": self.network}

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"times": self.times}

    def restore(self, saved: dict[str, Any]) -> None:
        """The law of times."""
        self.times = saved["times"]

    @abstractmethod
    def score(self, diffusion: LinearDiffusion, y: Tensor, s: Number) -> Tensor:
        """s_θ(y, s), like y (*batch, K, *event_shape), for times s (*batch) or one time for all."""

    @abstractmethod
    def denoise(self, diffusion: LinearDiffusion, y: Tensor, s: Number) -> Tensor:
        """x̂ (*batch, *event_shape), the expected data given the state y at time s."""

    @abstractmethod
    def default_likelihood(self) -> likelihoods.Likelihood:
        """The decoder p(x | y_ε) that fits this parameterization and costs no network call."""

    def diffusion_term(self, diffusion: LinearDiffusion, x: Tensor) -> tuple[Tensor, Tensor]:
        """One unbiased estimate of ½ ∫_ε^T E‖s_θ - ∇log q(y_s|x)‖²_{g²} ds for each datum.

        Scores of the raw state are integrated over log volume κ
        (:meth:`~pyro_mdm.diffusions.LinearDiffusion.log_volume`), drawn uniformly and with low
        discrepancy over the batch: (κ_T - κ_ε) E_u h(κ_ε + u (κ_T - κ_ε)). With s_θ = -L^{-T} ε_θ,
        h is a weighted mean of ½ (ε_θ - ε)²; over log SNR, which pauses where the noise is of low
        rank, its variance would be infinite. With u fixed all else is differentiated, the time and
        both ends included. :attr:`times` may ask for another law of times.

        Args:
            x: data (n, *event_shape).

        Returns:
            (n,) nats, differentiable in the network and the diffusion, and the log SNRs (n,) at
            which it was estimated. One network call.
        """
        u = draws.low_discrepancy(len(x), x.device)
        value, log_snr = self._on_the_way(diffusion, x, u, None, self.times)
        return value, log_snr.detach()

    def integrand(
        self,
        diffusion: LinearDiffusion,
        x: Tensor,
        level: Tensor,
        noise: Tensor | None = None,
    ) -> Tensor:
        """One draw of the diffusion term's integrand per unit of ``level``, for evaluation.

        Levels run over [λ(T), λ(ε)] like log SNR, which they are for a denoiser. For a score of the
        raw state they are log volume κ, decreasing and scaled to the same ends; for K = 1 that is
        log SNR too.

        Args:
            x: data (n, *event_shape);  level: (n,).
            noise: standard normal (n, ≥ K, *event_shape) of which the first makes
                z = x + e^{-λ/2} noise_0, whatever the diffusion; None to draw it.

        Returns:
            (n,), nats per unit of level, for one draw of y_s at each level. One network call.
        """
        high, low = diffusion.max_log_snr, diffusion.terminal_log_snr.detach()
        value, _ = self._on_the_way(diffusion, x, (high - level) / (high - low), noise)
        return value / (high - low).to(value.dtype)

    def log_snr_at(self, diffusion: LinearDiffusion, level: Tensor) -> Tensor:
        """λ where :meth:`integrand` is evaluated at ``level``, like it; increasing."""
        high, low = diffusion.max_log_snr, diffusion.terminal_log_snr
        return diffusion.log_snr(_time_on_the_way(diffusion, (high - level) / (high - low)))

    def _on_the_way(
        self,
        diffusion: LinearDiffusion,
        x: Tensor,
        u: Tensor,
        noise: Tensor | None,
        times: Times = "log_volume",
    ) -> tuple[Tensor, Tensor]:
        """A draw at the part u of the way from ε to T by the law of ``times``, whose integral over
        u is the diffusion term; and λ there."""
        if times == "vpsde":
            s, clock_rate = _importance_time(diffusion, u)
        else:
            s, clock_rate = _time_on_the_way(diffusion, u), None
        marginal, g2 = diffusion.marginal(s), diffusion.unit_noise
        a = marginal.mean
        if noise is None:
            noise = draws.normal((len(x), a.shape[-1], *x.shape[1:]), x.dtype, x.device)
        else:
            noise = rotated(marginal, noise)
        a = a.to(x.dtype).reshape(*a.shape, *[1] * (x.dim() - 1))
        y = a * x.unsqueeze(1) + apply_matrix(marginal.scale_tril, noise)
        theta = self.score(diffusion, y, s)
        with full_precision(x):
            W = _inverse(marginal.scale_tril)
            error = theta.double() + apply_matrix(W.mT, noise.double())
            square = (error * apply_matrix(g2, error)).flatten(1).sum(1)
            if clock_rate is not None:
                return (clock_rate * 0.5 * square).to(x.dtype), marginal.log_snr
            rate = ((W @ g2) * W).sum((-2, -1))  # dκ by clock time, as the square is
            start, end = diffusion.log_volume_ends
            return ((end - start) * 0.5 * square / rate).to(x.dtype), marginal.log_snr

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Score:
        exact = {name: b for name, b in self._buffers.items() if b is not None}
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            moved = self._buffers[name]
            if moved is not None and not buffer.is_meta:
                self._buffers[name] = buffer.to(moved.device)
        return self

    # -- the door ----------------------------------------------------------------------------------

    def _values(self, name: str, value: Tensor, log_snr: Number) -> tuple[int, Tensor]:
        """Number of batch dimensions of ``value`` and λ in float64, both checked."""
        log_snr = torch.as_tensor(log_snr, dtype=torch.float64, device=value.device)
        if self.event_shape is None:
            batch_dim = log_snr.dim() or 1
            fits = value.dim() > batch_dim
            event = "*event_shape"
        else:
            batch_dim = value.dim() - len(self.event_shape)
            fits = batch_dim >= 0 and value.shape[batch_dim:] == self.event_shape
            event = ", ".join(map(str, self.event_shape))
        if not fits:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}, expected (*batch, {event}) with batch "
                f"dimensions as those of log_snr, {tuple(log_snr.shape)}"
            )
        if log_snr.dim() and log_snr.shape != value.shape[:batch_dim]:
            raise ValueError(
                f"log_snr has shape {tuple(log_snr.shape)} and {name} {tuple(value.shape)}, "
                f"expected one log SNR per datum, {tuple(value.shape[:batch_dim])}, or a number"
            )
        check_finite(name, value)
        check_finite("log_snr", log_snr)
        return batch_dim, log_snr

    def _state(self, diffusion: Diffusion, y: Tensor, s: Number) -> Tensor:
        """Times in float64, (*batch) or a number for one batch dimension; y and s checked."""
        if not (self.serves_nonlinear or isinstance(diffusion, LinearDiffusion)):
            raise TypeError(
                f"{type(self).__name__} is made of the closed-form law of y_s given x, and "
                f"{type(diffusion).__name__} has none; use ResidualScore or RawScore"
            )
        K = diffusion.num_variables
        s = torch.as_tensor(s, dtype=torch.float64, device=y.device)
        batch_dim = s.dim() or 1
        if self.event_shape is not None:
            batch_dim = max(y.dim() - 1 - len(self.event_shape), 1)
        if (
            y.dim() <= batch_dim
            or y.shape[batch_dim] != K
            or (s.dim() and y.shape[:batch_dim] != s.shape)
        ):
            raise ValueError(
                f"y has shape {tuple(y.shape)} for times of shape {tuple(s.shape)}, expected "
                f"(*batch, K, *event_shape) with K = {K} variables of {type(diffusion).__name__} "
                "and times (*batch)"
            )
        if batch_dim > 1:
            s = s.expand(y.shape[:batch_dim])
        check_finite("y", y)
        return s

    def _call(self, inputs: Tensor, log_snr: Tensor, batch_dim: int, factor: int = 1) -> Tensor:
        """The network on ``inputs`` (*batch, C, *spatial): (*batch, factor·C, *spatial), exact."""
        batch, event = inputs.shape[:batch_dim], inputs.shape[batch_dim:]
        if not event:
            raise ValueError(
                f"data of shape {tuple(inputs.shape)} has no event dimension, expected "
                "(*batch, features) or (*batch, C, *spatial); give scalars the event shape (1,)"
            )
        flat = inputs.reshape(-1, *event)
        lam = log_snr.expand(batch).reshape(-1).to(flat.dtype)
        if self.autocast_dtype is None:
            out = self.network(flat, lam)
        else:
            with torch.autocast(flat.device.type, dtype=self.autocast_dtype):
                out = self.network(flat, lam)
        expected = (flat.shape[0], factor * event[0], *event[1:])
        if not isinstance(out, Tensor) or out.shape != expected:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            name = "out_channels" if len(event) > 1 else "out_features"
            raise ValueError(
                f"{type(self.network).__name__} returned {got} for inputs {tuple(flat.shape)}, "
                f"expected {expected}; build it with {name}={expected[1]}"
            )
        self._check_output(out)
        return out.to(inputs.dtype).reshape(*batch, *expected[1:])

    def _check_output(self, out: Tensor) -> None:
        """Weights that are NaN are named; what finite ones return is the caller's to judge."""
        if torch.compiler.is_compiling() or bool(out.isfinite().all()):
            return
        check_weights(self.network)


class DenoiserScore(Score):
    """A score by a denoiser x̂(z, λ), with a baseline model p_0 where the network's output is 0.

    The baseline is a product of independent dimensions with an exact denoiser, so its own bound is
    known: ``log p_0(x)`` plus a mismatch of priors. It is a control variate and a yardstick.
    """

    trained_min: Tensor
    trained_max: Tensor

    def __init__(self, network: nn.Module, event_shape: tuple[int, ...] | None) -> None:
        super().__init__(network, event_shape)
        self.register_buffer("trained_min", torch.tensor(-math.inf, dtype=torch.float64))
        self.register_buffer("trained_max", torch.tensor(math.inf, dtype=torch.float64))

    @abstractmethod
    def x_hat(self, z: Tensor, log_snr: Number) -> Tensor:
        """E[x | z], like z (*batch, *event_shape), at log SNR λ (*batch). One network call."""

    @abstractmethod
    def baseline_x_hat(self, z: Tensor, log_snr: Number) -> Tensor:
        """The baseline's E[x | z], like z. No network call."""

    @abstractmethod
    def baseline_log_prob(self, x: Tensor) -> Tensor:
        """log p_0(x), (*batch), nats, in float64."""

    @abstractmethod
    def baseline_kl(self, x: Tensor, log_snr: Number) -> Tensor:
        """KL( q(z_λ | x) ‖ p_0(z_λ) ), (*batch), nats, in float64.

        Its derivative in λ is ½ e^λ E‖x - x̂_0‖²: the baseline's diffusion term over [λ_0, λ_1] is
        ``baseline_kl(x, λ_1) - baseline_kl(x, λ_0)``.
        """

    @abstractmethod
    def baseline_integrals(self, x: Tensor, edges: Tensor, dims: slice) -> Tensor:
        """Some dimensions' part of the baseline's diffusion term between each λ and the next.

        Args:
            x: data (n, *event_shape).
            edges: increasing λ, (S + 1,) in float64.
            dims: which of the flattened dimensions; over all of them it is ``baseline_kl`` at each
                edge less that at the edge before.

        Returns:
            (n, S), nats, in float64.
        """

    def score(self, diffusion: LinearDiffusion, y: Tensor, s: Number) -> Tensor:
        """-Σ^{-1} (y - a x̂(z, λ)), like y; the linear algebra in float64."""
        s = self._state(diffusion, y, s)
        marginal = diffusion.marginal(s)
        z = apply_vector(marginal.readout, y.double()).to(y.dtype)
        x = self.x_hat(z, marginal.log_snr)
        with full_precision(y):
            x = x.double().unsqueeze(s.dim() or 1)
            a = marginal.mean.reshape(*marginal.mean.shape, *[1] * (y.dim() - (s.dim() or 1) - 1))
            W = _inverse(marginal.scale_tril)
            noise = apply_matrix(W, y.double() - a * x)
            return -apply_matrix(W.mT, noise).to(y.dtype)

    def denoise(self, diffusion: LinearDiffusion, y: Tensor, s: Number) -> Tensor:
        """x̂(kᵀ y, λ(s)), (*batch, *event_shape)."""
        s = self._state(diffusion, y, s)
        marginal = diffusion.marginal(s)
        z = apply_vector(marginal.readout, y.double()).to(y.dtype)
        return self.x_hat(z, marginal.log_snr)

    def diffusion_term(self, diffusion: LinearDiffusion, x: Tensor) -> tuple[Tensor, Tensor]:
        """One unbiased estimate of ½ ∫ E‖x - x̂(z, λ)‖² e^λ dλ for each datum, (n,), and its λ.

        λ is drawn uniformly and with low discrepancy over the batch. The integrand does not see the
        diffusion: all that can move is the end λ(T), whose boundary term a few more data give.

        Raises:
            ValueError: a learned diffusion with a ``cut_time``, where λ(ε) moves too.
        """
        low = diffusion.terminal_log_snr
        if diffusion.cut_time is not None and low.requires_grad:
            raise ValueError(
                f"{type(self).__name__} takes λ(ε) as fixed, but the diffusion is learned and cut "
                f"at the time {diffusion.cut_time:g}; set diffusion.max_log_snr instead, or use a "
                "score of the raw state, such as NoisePrediction"
            )
        width = diffusion.max_log_snr - low.detach()
        log_snr = low.detach() + width * draws.low_discrepancy(len(x), x.device)
        if not low.requires_grad:
            return width.to(x.dtype) * self.integrand(diffusion, x, log_snr), log_snr
        with draws.subset(len(x), 16, x.device) as (chosen, weight):
            both = torch.cat([x, x[chosen]])
            at = torch.cat([log_snr, low.detach().expand(len(chosen))])
            found = self.integrand(diffusion, both, at)
        values, boundary = found.split([len(x), len(chosen)])
        change = (low - low.detach()).to(x.dtype)  # zero, with the gradient of λ(T)
        each = boundary.sum().detach() * (weight / len(x))
        return width.to(x.dtype) * values - change * each, log_snr

    def integrand(
        self,
        diffusion: LinearDiffusion,
        x: Tensor,
        level: Tensor,
        noise: Tensor | None = None,
    ) -> Tensor:
        """One draw of ½ e^λ ‖x - x̂(z, λ)‖², (n,), at λ = level: the diffusion is not seen."""
        return self._error(x, self._noised(x, level, noise), level, self.x_hat)

    def log_snr_at(self, diffusion: LinearDiffusion, level: Tensor) -> Tensor:
        """The level itself."""
        return level

    def baseline_integrand(self, x: Tensor, log_snr: Tensor, noise: Tensor | None = None) -> Tensor:
        """:meth:`integrand` of the baseline, (n,); with the same noise, at the same z. No call."""
        return self._error(x, self._noised(x, log_snr, noise), log_snr, self.baseline_x_hat)

    @staticmethod
    def _noised(x: Tensor, log_snr: Tensor, noise: Tensor | None) -> Tensor:
        """z = x + e^{-λ/2} ε."""
        epsilon = draws.normal(x.shape, x.dtype, x.device) if noise is None else noise[:, 0]
        return x + _spread(torch.exp(-log_snr / 2), x).to(x.dtype) * epsilon

    @staticmethod
    def _error(
        x: Tensor, z: Tensor, log_snr: Tensor, denoiser: Callable[[Tensor, Number], Tensor]
    ) -> Tensor:
        square = (x - denoiser(z, log_snr)).square().flatten(1).sum(1)
        return 0.5 * torch.exp(log_snr).to(x.dtype) * square

    def set_trained_range(self, low: float, high: float) -> None:
        """Declares the λ the network was trained on; :meth:`x_hat` refuses others."""
        if not low < high:
            raise ValueError(f"trained range of log SNR is [{low}, {high}], expected low < high")
        self.trained_min.fill_(low)
        self.trained_max.fill_(high)

    def check_log_snr(self, log_snr: Number) -> None:
        """Raises ValueError for a λ outside the trained range (to 1e-3, which rounding needs)."""
        if torch.compiler.is_compiling():
            return
        lam = torch.as_tensor(log_snr, dtype=torch.float64, device=self.trained_min.device)
        outside = (lam < self.trained_min - 1e-3) | (lam > self.trained_max + 1e-3)
        if bool(outside.any()):
            raise ValueError(
                f"log SNR {lam[outside][0].item():.6g} is outside [{self.trained_min.item():.6g}, "
                f"{self.trained_max.item():.6g}], where the network was trained; choose the "
                "diffusion's max_log_snr and min_log_snr inside it, or train on a wider range"
            )


class Denoiser(DenoiserScore):
    r"""Denoiser for continuous data, scaled so that network inputs and outputs have unit variance.

    With v = e^{-λ} and the data's mean μ and variance σ², per dimension,

        x̂ = μ + σ²/(σ²+v) (z - μ) + sqrt(σ² v / (σ²+v)) F( (z - μ)/sqrt(σ²+v), λ ).

    At F = 0 it is exact for N(μ, σ²), whose bound is then the model's.

    Args:
        network: F, called with z scaled, like z, and λ; returns the shape of its input.
        data_mean, data_variance: μ, σ²: numbers, or tensors of the event shape.

    Raises:
        ValueError: σ² that is not positive, values that are not finite, a network output of another
            shape, data of the wrong shape, NaN, λ outside the trained range.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
    NeurIPS 2022, table 1, for a mean and variance per dimension.

    Example:
        >>> from pyro_mdm.networks import MLP
        >>> denoiser = Denoiser(MLP(features=2), data_mean=0.5, data_variance=4.0)
        >>> denoiser.x_hat(torch.zeros(3, 2), 0.0).shape
        torch.Size([3, 2])
    """

    data_mean: Tensor
    data_variance: Tensor

    def __init__(
        self, network: nn.Module, data_mean: Number = 0.0, data_variance: Number = 1.0
    ) -> None:
        mean, variance = torch.broadcast_tensors(
            torch.as_tensor(data_mean, dtype=torch.float64).detach(),
            torch.as_tensor(data_variance, dtype=torch.float64).detach(),
        )
        super().__init__(network, tuple(mean.shape) or None)
        check_finite("data_mean", mean)
        if not bool(((variance > 0) & variance.isfinite()).all()):
            raise ValueError(
                f"data_variance reaches {variance.min().item():.3g}, expected positive finite "
                "variances; Denoiser.fit puts a floor under constant dimensions"
            )
        self.register_buffer("data_mean", mean.clone())
        self.register_buffer("data_variance", variance.clone())

    @classmethod
    def fit(cls, network: nn.Module, train_x: Tensor, floor: float = 1e-3) -> Denoiser:
        """The denoiser with μ and σ² of ``train_x`` (N, *event_shape), per dimension.

        σ² is at least ``floor`` times its average over dimensions.
        """
        check_fit(network, train_x)
        n, mean, square = 0, torch.zeros(()), torch.zeros(())
        for part in train_x.split(1024):  # one pass: merge means and sums of squares
            part = part.double()
            centre, m = part.mean(0), len(part)
            shift = centre - mean
            square = square + (part - centre).square().sum(0) + shift.square() * n * m / (n + m)
            mean = mean + shift * m / (n + m)
            n += m
        variance = square / n
        if not variance.mean() > 0:
            raise ValueError(f"the {n} data are all equal, expected some variance")
        return cls(network, mean, variance.clamp_min(floor * variance.mean()))

    def x_hat(self, z: Tensor, log_snr: Number) -> Tensor:
        """E[x | z], like z. See the class."""
        batch_dim, lam = self._values("z", z, log_snr)
        self.check_log_snr(lam)
        with full_precision(z):
            mu, s2, v = self._scales(z, lam)
            inputs = (z - mu) * (s2 + v).rsqrt()
        F = self._call(inputs, lam, batch_dim)
        with full_precision(z):
            gain = s2 / (s2 + v)
            return mu + gain * (z - mu) + (gain * v).sqrt() * F

    def baseline_x_hat(self, z: Tensor, log_snr: Number) -> Tensor:
        """μ + σ²/(σ²+v) (z - μ), like z."""
        _, lam = self._values("z", z, log_snr)
        mu, s2, v = self._scales(z, lam)
        return mu + s2 / (s2 + v) * (z - mu)

    def baseline_log_prob(self, x: Tensor) -> Tensor:
        """log N(x; μ, σ²), (*batch), nats."""
        batch_dim, _ = self._values("x", x, 0.0)
        mu, s2 = self.data_mean, self.data_variance
        terms = (x.double() - mu).square() / s2 + (2 * math.pi * s2).log()
        return -0.5 * terms.flatten(batch_dim).sum(-1)

    def baseline_kl(self, x: Tensor, log_snr: Number) -> Tensor:
        """½ Σ_j [ (x-μ)²/(σ²+v) + log((σ²+v)/v) - σ²/(σ²+v) ], (*batch), nats."""
        batch_dim, lam = self._values("x", x, log_snr)
        x = x.double()
        mu, s2, v = self._scales(x, lam)
        terms = ((x - mu).square() - s2) / (s2 + v) + (s2 / v).log1p()
        return 0.5 * terms.flatten(batch_dim).sum(-1)

    def baseline_integrals(self, x: Tensor, edges: Tensor, dims: slice) -> Tensor:
        """See :class:`DenoiserScore`."""
        self._values("x", x, 0.0)
        both = (self.data_mean, self.data_variance)
        mu, s2 = (t.expand(x.shape[1:]).flatten()[dims] for t in both)
        v = torch.exp(-edges).unsqueeze(1)
        of_square, constant = (1 / (s2 + v)).diff(dim=0).mT, (s2 / v).log1p().sum(1).diff()
        return torch.cat(
            [
                0.5 * (((part.double() - mu).square() - s2) @ of_square + constant)
                for part in x.flatten(1)[:, dims].split(DATA_AT_ONCE)
            ]
        )

    def default_likelihood(self) -> likelihoods.Likelihood:
        """:class:`~pyro_mdm.likelihoods.Gaussian` with the prior N(μ, σ²)."""
        return likelihoods.Gaussian(self.data_mean, self.data_variance)

    def _scales(self, z: Tensor, lam: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """μ, σ² and v = e^{-λ}, broadcastable to z, in its dtype."""
        v = _spread(torch.exp(-lam), z)
        return self.data_mean.to(z.dtype), self.data_variance.to(z.dtype), v.to(z.dtype)


class DiscreteDenoiser(DenoiserScore):
    r"""Denoiser for data with levels v_1 … v_n: Bayes' rule with a prior tilted by the network.

        p_θ(x_j = v_k | z, λ) ∝ π_jk exp(T_jk(z, λ)) N(z_j; v_k, e^{-λ}),    x̂_j = Σ_k v_k p_θ(v_k)

    ``form="tilt"``, for many levels: two outputs per dimension, T = F1 u + f(F2) u² with
    u = (v_k - m)/w, where m, w² are mean and variance of the posterior under the Gaussian prior
    N(μ, σ²), and w at least half the smallest gap. f(F2) = F2 for F2 < 0 and
    ½ tanh(2 F2) else, so that a tilt can cancel the curvature of the noise but never exceed it by
    more than the prior's own. Costs no tensor with a level axis after the forward pass.
    ``form="logits"``, for few: T_jk = F_k, one output per level.

    At F = 0 the bound is that of the independent dimensions π.

    Args:
        network: called with (z - μ)/sqrt(σ² + e^{-λ}), (n, C, *spatial), μ and σ² the mean and
            variance of π, σ² at least half its average over dimensions; returns
            (n, 2·C, *spatial), arranged (F1, F2) × C, for tilts, or (n, levels·C, *spatial),
            arranged levels × C.
        levels: n for ``linspace(-1, 1, n)``, or increasing values (n,).
        log_prior: log π, (*event_shape, n), finite and normalized. :meth:`fit` makes one.
        form: "tilt" or "logits"; None: logits up to 32 levels.

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

    levels: Tensor
    log_prior: Tensor
    data_mean: Tensor
    data_variance: Tensor

    def __init__(
        self,
        network: nn.Module,
        levels: int | Sequence[float] | Tensor,
        log_prior: Tensor,
        form: Form | None = None,
    ) -> None:
        values = discrete.level_values(levels).to(log_prior.device)
        n = len(values)
        if form is None:
            form = "logits" if n <= 32 else "tilt"
        if form not in ("tilt", "logits"):
            raise ValueError(f"form is {form!r}, expected 'tilt' or 'logits'")
        log_prior = discrete.check_log_prior(log_prior, n)
        super().__init__(network, tuple(log_prior.shape[:-1]))
        self.form: Form = form
        self._kl_tables: dict[tuple[float, int | None, int | None], Tensor] = {}
        self.register_buffer("levels", values)
        self.register_buffer("log_prior", log_prior)
        mean = log_prior.exp() @ values
        variance = (log_prior.exp() * (values - mean.unsqueeze(-1)).square()).sum(-1)
        self.register_buffer("data_mean", mean)
        self.register_buffer(
            "data_variance", variance.clamp_min(VARIANCE_FLOOR * variance.mean().item())
        )

    @classmethod
    def fit(
        cls,
        network: nn.Module,
        train_x: Tensor,
        levels: int | Sequence[float] | Tensor,
        form: Form | None = None,
    ) -> DiscreteDenoiser:
        """The denoiser whose prior is the smoothed histogram of ``train_x`` (N, *event_shape).

        See :func:`pyro_mdm.discrete.smoothed_histogram`.
        """
        check_fit(network, train_x)
        values = discrete.level_values(levels).to(train_x.device)
        return cls(network, values, discrete.smoothed_histogram(train_x, values), form)

    def x_hat(self, z: Tensor, log_snr: Number) -> Tensor:
        """E[x | z] = Σ_k v_k p_θ(v_k | z, λ), like z."""
        F, lam = self._network_output(z, log_snr)
        with full_precision(z):
            if self.form == "logits":
                k = self._batch_dim(z)
                centre, delta, odds = self._level_odds(z, lam, F, k)
                return centre + (odds.softmax(k) * delta).sum(k)
            return self._mean(*self._tilted(z, lam, F))

    def log_probs(self, z: Tensor, log_snr: Number) -> Tensor:
        """log p_θ(x_j = v_k | z, λ), (*batch, *event_shape, n): levels last, all in memory."""
        F, lam = self._network_output(z, log_snr)
        with full_precision(z):
            return self._posterior(z, lam, F).log_probs()

    def posterior(self, z: Tensor, log_snr: Number) -> likelihoods.LevelDistribution:
        """p_θ(x | z, λ) as a Pyro distribution of batch shape (*batch). One network call."""
        F, lam = self._network_output(z, log_snr)
        with full_precision(z):
            return self._posterior(z, lam, F)

    def baseline_x_hat(self, z: Tensor, log_snr: Number) -> Tensor:
        """Σ_k v_k π_jk N(z_j; v_k, e^{-λ}) / Σ_k π_jk N(z_j; v_k, e^{-λ}), like z."""
        _, lam = self._values("z", z, log_snr)
        with full_precision(z):
            return self._mean(*discrete.noise_odds(z, _spread(lam, z), self.levels))

    def baseline_log_prob(self, x: Tensor) -> Tensor:
        """Σ_j log π_jk with x_j = v_k, (*batch), nats."""
        batch_dim, _ = self._values("x", x, 0.0)
        index = discrete.level_index(x, self.levels).unsqueeze(-1)
        prior = self.log_prior.expand(*index.shape[:-1], -1)
        return prior.gather(-1, index).flatten(batch_dim).sum(-1)

    def baseline_kl(self, x: Tensor, log_snr: Number) -> Tensor:
        """Σ_j KL( N(x_j, e^{-λ}) ‖ Σ_k π_jk N(v_k, e^{-λ}) ), (*batch), nats, by quadrature.

        Not differentiable in λ (the derivative is ½ e^λ E‖x - x̂_0‖²): raises ValueError if asked.

        The work is that of a table of all levels of all dimensions for each different λ, and later
        calls with that λ find it done.
        """
        batch_dim, lam = self._values("x", x, log_snr)
        if torch.is_grad_enabled() and lam.requires_grad:
            raise ValueError(
                "baseline_kl of a DiscreteDenoiser has no gradient in log_snr; detach it"
            )
        index = discrete.level_index(x, self.levels).reshape(-1, math.prod(x.shape[batch_dim:]))
        index += len(self.levels) * torch.arange(index.shape[1], device=x.device)
        lam = lam.detach().expand(x.shape[:batch_dim]).reshape(-1)
        total = torch.empty(len(index), dtype=torch.float64, device=x.device)
        for value in torch.unique(lam).tolist():
            same = lam == value
            total[same] = self._kl_table(value, slice(None)).take(index[same]).sum(-1)
        return total.reshape(x.shape[:batch_dim])

    def baseline_integrals(self, x: Tensor, edges: Tensor, dims: slice) -> Tensor:
        """See :class:`DenoiserScore`. A table of levels and intervals, and a sum of its rows."""
        self._values("x", x, 0.0)
        ends = torch.stack([self._kl_table(edge, dims) for edge in edges.tolist()], -1)
        table = ends.diff(dim=-1).flatten(0, 1)  # (dimensions · n, S)
        row = len(self.levels) * torch.arange(len(ends), device=x.device)
        return torch.cat(
            [
                nn.functional.embedding_bag(
                    row + discrete.level_index(part, self.levels), table, mode="sum"
                )
                for part in x.flatten(1)[:, dims].split(DATA_AT_ONCE)
            ]
        )

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._kl_tables.clear()  # they are of the prior that is replaced
        super()._load_from_state_dict(*args, **kwargs)

    def _kl_table(self, log_snr: float, dims: slice) -> Tensor:
        """(dims, n) divergence of each dimension at each level, kept for later calls."""
        tables, key = self._kl_tables, (log_snr, dims.start, dims.stop)
        table = tables.pop(key, None)
        if table is None or table.device != self.log_prior.device:
            table = discrete.mixture_kl(self.log_prior.flatten(0, -2)[dims], self.levels, log_snr)
        tables[key] = table  # the latest last
        while sum(t.nbytes for t in tables.values()) > KL_TABLES_BYTES and len(tables) > 1:
            del tables[next(iter(tables))]
        return table

    def default_likelihood(self) -> likelihoods.Likelihood:
        """The baseline's posterior, :class:`~pyro_mdm.likelihoods.DiscretizedGaussian` with π."""
        return likelihoods.DiscretizedGaussian(self.levels, self.log_prior)

    def _batch_dim(self, z: Tensor) -> int:
        return z.dim() - self.log_prior.dim() + 1

    def _network_output(self, z: Tensor, log_snr: Number) -> tuple[Tensor, Tensor]:
        batch_dim, lam = self._values("z", z, log_snr)
        self.check_log_snr(lam)
        with full_precision(z):
            v = _spread(torch.exp(-lam), z).to(z.dtype)
            inputs = (z - self.data_mean.to(z.dtype)) * (self.data_variance.to(z.dtype) + v).rsqrt()
        factor = len(self.levels) if self.form == "logits" else 2
        F = self._call(inputs, lam, batch_dim, factor)
        return F.unflatten(batch_dim, (factor, -1)), lam

    def _tilted(self, z: Tensor, lam: Tensor, F: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Centre c, α and β of the log-odds log π + α δ + β δ², δ = v_k - c; each like z."""
        F1, F2 = F.unbind(self._batch_dim(z))
        F2 = torch.where(F2 < 0, F2, 0.5 * torch.tanh(2 * F2))
        mu, s2 = self.data_mean.to(z.dtype), self.data_variance.to(z.dtype)
        v = _spread(torch.exp(-lam), z).to(z.dtype)
        gain = s2 / (s2 + v)
        m = mu + gain * (z - mu)
        w = (gain * v).clamp_min((self.levels.diff().min().item() / 2) ** 2).sqrt()
        c, alpha, beta = discrete.noise_odds(z, _spread(lam, z), self.levels)
        # u = (δ + c - m)/w; what does not depend on k drops out
        return c, alpha + (F1 + 2 * F2 * (c - m) / w) / w, beta + F2 / w.square()

    def _mean(self, c: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        shape = (-1, self.log_prior.shape[:-1].numel())
        prior = self.log_prior.to(c.dtype).reshape(shape[1], -1)
        flat = (t.expand_as(c).reshape(shape) for t in (c, alpha, beta))
        return c + discrete.posterior_mean(prior, self.levels.to(c.dtype), *flat).reshape(c.shape)

    def _level_odds(self, z: Tensor, lam: Tensor, F: Tensor, k: int) -> tuple[Tensor, ...]:
        """Centre like z; δ and log-odds with the levels on axis k."""
        c, alpha, beta = (
            t.unsqueeze(k) for t in discrete.noise_odds(z, _spread(lam, z), self.levels)
        )
        levels = self.levels.to(z.dtype).reshape(-1, *[1] * (z.dim() - k))
        delta = levels - c
        return (
            c.squeeze(k),
            delta,
            F + self.log_prior.to(z.dtype).movedim(-1, 0) + (alpha + beta * delta) * delta,
        )

    def _posterior(self, z: Tensor, lam: Tensor, F: Tensor) -> likelihoods.LevelDistribution:
        if self.form == "logits":
            k = self._batch_dim(z)
            odds = self._level_odds(z, lam, F, k)[2].movedim(k, -1)
            return likelihoods.LevelCategorical(self.levels, odds.log_softmax(-1), z.dim() - k)
        return likelihoods.LevelPosterior(
            self.levels, self.log_prior, *self._tilted(z, lam, F), z.dtype
        )


class NoisePrediction(Score):
    r"""The paper's parameterization: s_θ = -L^{-T} ε_θ(y_s, λ), with Σ = L Lᵀ lower triangular.

    Args:
        network: ε_θ, called with the K variables as channels, (n, K·C, *spatial), and λ; returns
            the shape of its input. Only its part in the range of G is trained (theory: g² s_θ).

    Raises:
        ValueError: NaN, states of the wrong shape, a network output of another shape.

    Source: Singhal, Goldstein & Ranganath, "Where to Diffuse, How to Diffuse, and How to Get Back",
    ICLR 2023, appendix on parameterization; Dockhorn et al., "Score-Based Generative Modeling with
    Critically-Damped Langevin Diffusion", ICLR 2022, eq. 9 and 10.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)

    def score(self, diffusion: LinearDiffusion, y: Tensor, s: Number) -> Tensor:
        """-L^{-T} ε_θ, like y."""
        s = self._state(diffusion, y, s)
        marginal = diffusion.marginal(s)
        eps = _joint_call(self, y, marginal.log_snr, s.dim() or 1)
        with full_precision(y):
            return -apply_matrix(_inverse(marginal.scale_tril).mT, eps)

    def denoise(self, diffusion: LinearDiffusion, y: Tensor, s: Number) -> Tensor:
        """x̂ by the projection on g² s_θ, (*batch, *event_shape)."""
        return project(diffusion, self.score(diffusion, y, s), y, s)

    def default_likelihood(self) -> likelihoods.Likelihood:
        """:class:`~pyro_mdm.likelihoods.Gaussian` with a flat prior."""
        return likelihoods.Gaussian()


class RawScore(Score):
    """The network is the score: s_θ(y, s) = F(y, λ(s)), like y, for any diffusion.

    Args:
        network: called with the K variables as channels, (n, K·C, *spatial), and the noise level λ;
            returns the shape of its input.

    Raises:
        ValueError: NaN, states of the wrong shape, a network output of another shape.
    """

    serves_nonlinear = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)

    def score(self, diffusion: Diffusion, y: Tensor, s: Number) -> Tensor:
        """F(y, λ(s)), like y."""
        s = self._state(diffusion, y, s)
        return _joint_call(self, y, diffusion.noise_level(s), s.dim() or 1)

    def denoise(self, diffusion: LinearDiffusion, y: Tensor, s: Number) -> Tensor:
        """x̂ by the projection on g² s_θ, (*batch, *event_shape); linear diffusions only."""
        return project(diffusion, self.score(diffusion, y, s), y, s)

    def default_likelihood(self) -> likelihoods.Likelihood:
        """:class:`~pyro_mdm.likelihoods.Gaussian` with a flat prior."""
        return likelihoods.Gaussian()


def project(diffusion: LinearDiffusion, score: Tensor, y: Tensor, s: Number) -> Tensor:
    r"""The denoiser of any score: x̂ = aᵀ Σ^{-1} g² (s_θ + Σ^{-1} y) / (aᵀ Σ^{-1} g² Σ^{-1} a).

    Args:
        score, y: (*batch, K, *event_shape);  s: (*batch), or a number for one batch dimension.

    Returns:
        (*batch, *event_shape), in the dtype of y; computed in float64.
    """
    if not isinstance(diffusion, LinearDiffusion):
        raise TypeError(
            f"a score gives back a denoiser by the closed-form law of y_s given x, and "
            f"{type(diffusion).__name__} has none; decode with Gaussian or another likelihood that "
            "reads y_ε alone"
        )
    marginal, g2 = diffusion.marginal(s), diffusion.noise_covariance(s)
    with full_precision(y):
        k = marginal.readout.unsqueeze(-1)  # Σ^{-1} a / SNR
        r = g2 @ k
        r = r / ((k.mT @ r) * marginal.log_snr.exp()[..., None, None])
        W = _inverse(marginal.scale_tril)
        of_y = (W.mT @ (W @ r)).squeeze(-1)
        x = apply_vector(of_y, y.double()) + apply_vector(r.squeeze(-1), score.double())
        return x.to(y.dtype)


def _time_on_the_way(diffusion: LinearDiffusion, u: Tensor) -> Tensor:
    """The time at which the part u of the log volume between ε and T has passed, like u."""
    start, end = diffusion.log_volume_ends
    return diffusion.time_at_log_volume(start + u.clamp(0, 1) * (end - start))


def _importance_time(diffusion: LinearDiffusion, u: Tensor) -> tuple[Tensor, Tensor]:
    """The time at the part u of the way by F = log(e^b - 1), which is -λ of VPSDE on the same clock
    b, and db/du there, like u."""
    start = diffusion.clock(diffusion.start_time)
    tau = torch.stack([start, diffusion.clock(diffusion.horizon)])
    low, high = tau + torch.log(-torch.expm1(-tau))
    F = low + u.clamp(0, 1) * (high - low)
    tau = torch.logaddexp(F, torch.zeros_like(F))
    return diffusion.time_at_clock(tau), (high - low) * -torch.expm1(-tau)


def rotated(marginal: Marginal, noise: Tensor) -> Tensor:
    r"""Standard normal η with L η = (y - a x) such that the first of ``noise`` is that of z.

    z - x = kᵀ L η = e^{-λ/2} uᵀη for a unit vector u; η = H noise for the reflection H that takes
    the first axis to u. Two diffusions given the same noise then have the same z at the same λ.

    Args:
        marginal: of times (n,);  noise: standard normal (n, ≥ K, *event_shape).
    """
    K = marginal.mean.shape[-1]
    u = (marginal.scale_tril.mT @ marginal.readout.unsqueeze(-1)).squeeze(-1)
    u = u * (marginal.log_snr / 2).exp().unsqueeze(-1)
    sign = torch.where(u[:, :1] < 0, -1.0, 1.0).to(u)
    v = torch.cat([u[:, :1] + sign, u[:, 1:]], 1)
    reflection = torch.eye(K, dtype=u.dtype, device=u.device) - v[:, :, None] * (
        v / (1 + u[:, :1].abs())
    ).unsqueeze(1)
    return apply_matrix(-sign.unsqueeze(-1) * reflection, noise[:, :K])


def _joint_call(score: Score, y: Tensor, log_snr: Tensor, batch_dim: int) -> Tensor:
    if y.dim() == batch_dim + 1:
        return score._call(y, log_snr, batch_dim)
    return score._call(y.flatten(batch_dim, batch_dim + 1), log_snr, batch_dim).reshape(y.shape)


def _inverse(L: Tensor) -> Tensor:
    eye = torch.eye(L.shape[-1], dtype=L.dtype, device=L.device)
    return torch.linalg.solve_triangular(L, eye.expand_as(L), upper=False)


def _spread(value: Tensor, like: Tensor) -> Tensor:
    """A value per datum, (*batch), as (*batch, 1, …, 1)."""
    return value.reshape(*value.shape, *[1] * (like.dim() - value.dim()))


def check_fit(network: Any, train_x: Any) -> None:
    """Raises unless a network comes first, and then data (N, *event_shape) to fit to."""
    check_network("network", network, Score, Diffusion)
    check_data("train_x", train_x)
    if train_x.dim() < 2:
        raise ValueError(
            f"train_x has shape {tuple(train_x.shape)}, expected (N, *event_shape); give scalars "
            "the event shape (1,), as x[:, None]"
        )
