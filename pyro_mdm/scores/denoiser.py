"""Denoisers of z, for every linear diffusion, and their Gaussian baseline."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

import pyro_mdm.likelihoods as likelihoods
import pyro_mdm.randomness as randomness
from pyro_mdm.diffusions.base import (
    Cap,
    Diffusion,
    apply_vector,
    full_precision,
    require,
    with_event_dims,
)
from pyro_mdm.diffusions.closed import Kernels, denoising_error
from pyro_mdm.diffusions.matrices import of_counted
from pyro_mdm.scores.base import Coefficients, Number, Score, check_fit
from pyro_mdm.scores.density import watching
from pyro_mdm.support.checks import (
    check_finite,
    check_instance,
    check_real,
    check_shape,
    check_values,
    checked_arguments,
)
from pyro_mdm.support.modules import of_part

__all__ = [
    "DATA_AT_ONCE",
    "Denoiser",
    "DenoiserScore",
    "NetworkOfDenoiser",
    "TrainingMaps",
    "denoiser_of",
    "moments",
    "posterior_variance",
]

D = TypeVar("D", bound="DenoiserScore")


class Scaled(NamedTuple):
    """Readouts in units of their standard deviations, as the network sees them."""

    z: Tensor  # (z - μ) / √(σ² + v), like z
    unit: Tensor  # 1 / √(σ² + v), as are the next three broadcastable to z
    mean: Tensor  # μ
    variance: Tensor  # σ²
    noise: Tensor  # v = e^{-λ}


Scales = tuple[Tensor, Tensor, Tensor]
"""μ, σ² and ``v = e^{-λ}``."""
DATA_AT_ONCE = 256
"""The number of data whose baseline is integrated together, so that they stay in cache."""


class TrainingMaps(ABC):
    """Maps of log SNR at which a denoiser is trained, see :attr:`DenoiserScore.training_maps`."""

    @abstractmethod
    def term(self, score: DenoiserScore, diffusion: Kernels, x: Tensor) -> tuple[Tensor, Tensor]:
        """The loss in the place of :meth:`DenoiserScore.diffusion_term`, and its mean log SNR.

        Args:
            score: the denoiser, with :attr:`~pyro_mdm.scores.Score.maps`.
            diffusion: the noising diffusion.
            x: data, (n, *event_shape).

        Returns:
            Both (n,).
        """


class DenoiserScore(Score):
    """A score by a denoiser x̂(z, λ), with a baseline model p_0 where the network's output is 0.

    The baseline is a product of independent dimensions with an exact denoiser, so its bound is in
    closed form: ``log p_0(x)`` plus a mismatch of priors. It is a control variate and a yardstick.

    Args:
        network: the network, which the score owns.
        event_shape: shape of a datum; None: any.
        maps: whether log SNRs may differ between dimensions.
    """

    denoises = True
    outputs: int = 1
    """The number of the network's outputs for each dimension of the data."""
    data_mean: Tensor
    data_variance: Tensor
    trained_min: Tensor
    trained_max: Tensor

    def __init__(
        self, network: nn.Module, event_shape: tuple[int, ...] | None, maps: bool = False
    ) -> None:
        super().__init__(network, event_shape)
        if maps and not event_shape:
            raise ValueError(
                "maps of log SNR have the shape of a datum, which is not known; fit the score to "
                "data, or give the data's mean or prior its shape"
            )
        self.maps = maps
        self._training_maps: TrainingMaps | None = None
        for name, end in (("trained_min", -math.inf), ("trained_max", math.inf)):
            self.register_buffer(name, torch.tensor(end, dtype=torch.float64, device="cpu"))

    @property
    def training_maps(self) -> TrainingMaps | None:
        """The distribution of the maps of log SNR at which :meth:`diffusion_term` trains.

        For a score with :attr:`maps`. None (the default, and always in eval mode): the maps of the
        diffusion, so that the term is that of the bound.
        """
        return self._training_maps

    @training_maps.setter
    def training_maps(self, value: TrainingMaps | None) -> None:
        if value is not None:
            check_instance("training_maps", value, TrainingMaps, "e.g. RandomMaps()")
            if not self.maps:
                raise ValueError(
                    f"training_maps is {value}, but the network of this {type(self).__name__} is "
                    "given one log SNR for all dimensions; make it with maps=True, over a network "
                    "of twice the channels"
                )
        self._training_maps = value

    @abstractmethod
    def x_hat(self, z: Tensor, log_snr: Number) -> Tensor:
        """E[x | z], like z (*batch, *event_shape), at log SNR λ (*batch). One network call.

        With ``maps``, λ may be a map (*batch, *event_shape). A dimension of +∞ is observed, x̂ = z;
        one of -∞ is left out, and its entry of z has no effect.
        """

    def inputs(self, z: Tensor, log_snr: Tensor) -> Tensor:
        """The network's input: z in units of its own standard deviation, like z, for λ in float64
        as for :meth:`x_hat`."""
        return self._scaled(z, log_snr).z

    def _scaled(self, z: Tensor, lam: Tensor) -> Scaled:
        """The network's input, with what makes x̂ of its output."""
        mu, s2, v = self.data_mean.to(z), self.data_variance.to(z), torch.exp(-lam).to(z)
        v = v if not v.dim() else with_event_dims(v, z)
        unit = (s2 + v).rsqrt()
        return Scaled((z - mu) * unit, unit, mu, s2, v)

    def read(self, z: Tensor, log_snr: Tensor, F: Tensor) -> Tensor:
        """x̂, like z, from the network's output F (*batch, outputs·C, *spatial) and λ in float64.

        Raises:
            NotImplementedError: a denoiser that is no function of F, z and λ.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not say how x̂ follows from the network's output; see "
            "DenoiserScore.read"
        )

    @property
    def typical(self) -> Tensor:
        """A possible value of each dimension near the data's mean, (*event_shape) float64."""
        return self.data_mean.detach().double()

    def check_values(self, values: Tensor, mask: Tensor) -> None:
        """Raises ValueError for entries, among those of the mask, that data cannot have; values in
        model space and the mask are (*batch, *event_shape)."""

    @abstractmethod
    def baseline_x_hat(self, z: Tensor, log_snr: Number) -> Tensor:
        """The baseline's E[x | z], like z. No network call."""

    @abstractmethod
    def baseline_log_prob(self, x: Tensor, counted: Tensor | None = None) -> Tensor:
        """log p_0(x) of the counted dimensions, (*batch), nats, in float64; ``counted`` is a mask,
        bool, broadcastable to x, or None for all."""

    @abstractmethod
    def baseline_kl(self, x: Tensor, log_snr: Number, counted: Tensor | None = None) -> Tensor:
        """KL( q(z_λ | x) ‖ p_0(z_λ) ) of the counted dimensions, (*batch), nats, in float64.

        Its derivative in λ is ½ e^λ E‖x - x̂_0‖²: the baseline's diffusion term over [λ_0, λ_1] is
        ``baseline_kl(x, λ_1) - baseline_kl(x, λ_0)``.
        """

    @abstractmethod
    def baseline_integrals(
        self, x: Tensor, edges: Tensor, dims: slice, counted: Tensor | None = None
    ) -> Tensor:
        """The baseline's diffusion term between each λ and the next, for some dimensions.

        Args:
            x: data (n, *event_shape).
            edges: increasing λ in float64, (S + 1,), or (S + 1, dims) for each of the dimensions.
            dims: slice of the flattened dimensions. Over all of them the results are differences of
                ``baseline_kl`` between neighbouring edges, later − earlier.
            counted: mask of all dimensions that count, bool, broadcastable to x; None: all.

        Returns:
            (n, S), nats, in float64.
        """

    def check_diffusion(self, diffusion: Diffusion) -> None:
        fix = "put it into a score that sees the whole state: StateDenoiser(denoiser)"
        require(diffusion, Cap.READOUT, who=type(self).__name__, fix=fix)

    def score_at(self, diffusion: Kernels, y: Tensor, at: Coefficients) -> Tensor:
        """``-Σ^{-1} (y - a x̂(z, λ))``, like y; the linear algebra in float64."""
        marginal = at.marginal
        z = apply_vector(marginal.readout, y.double()).to(y.dtype)
        x = self.x_hat(z, marginal.log_snr)
        with full_precision(y):
            return diffusion.paths.score_from(x, y, at.s, marginal).to(y.dtype)

    def denoise_at(
        self, diffusion: Kernels, y: Tensor, at: Coefficients, noise: float = 1.0
    ) -> Tensor:
        """x̂(kᵀ y, λ(s)), (*batch, *event_shape)."""
        marginal = at.marginal
        z = apply_vector(marginal.readout, y.double()).to(y.dtype)
        x = self.x_hat(z, marginal.log_snr)
        if diffusion.paths.drifts_by_data:
            x = diffusion.paths.aim(x, z, marginal.log_snr, noise)
        return x.to(y.dtype)

    def diffusion_term(self, diffusion: Kernels, x: Tensor) -> tuple[Tensor, Tensor]:
        """One unbiased estimate of ½ ∫ E‖x - x̂(z, λ)‖² e^λ dλ for each datum.

        λ is drawn uniformly, or by :attr:`times`, and with low discrepancy over the batch. The
        integrand does not depend on the diffusion: only the ends can move, and a few more network
        calls give their boundary terms. Where dimensions have clocks of their own, λ is that of the
        reference, and the integrand is differentiated in the clocks.

        Returns:
            The estimate, (n,) nats, and its λ, (n,).

        Raises:
            ValueError: a learned diffusion with a ``cut_time``, where λ(ε) moves too.
        """
        low, high = diffusion.terminal_log_snr, diffusion.start_log_snr
        if self.training and self._training_maps is not None:
            return self._training_maps.term(self, diffusion, x)
        u = randomness.low_discrepancy(len(x), torch.device("cpu"))
        weight: Tensor | None = None
        watched: AbstractContextManager[None] = nullcontext()
        if self.training and self.time_density is not None:
            u, weight = self.time_density.place(u)
            watched = watching(self.time_density, u, weight)
        moves = not diffusion.maps and (low.requires_grad or high.requires_grad)
        if moves and low.requires_grad and high.requires_grad and diffusion.cut_time is not None:
            raise ValueError(
                f"{type(self).__name__} takes λ(ε) as fixed, but the diffusion is learned and cut "
                f"at the time {diffusion.cut_time:g}; set diffusion.max_log_snr instead, or use a "
                "score of the raw state, such as NoisePrediction"
            )
        with torch.no_grad():
            log_snr, width = torch.lerp(low, high, u), (high - low).to(x)
        if not moves:
            with watched:
                value = width * self.integrand(diffusion, x, log_snr)
            return value if weight is None else value * weight.to(value), log_snr
        # ends are detached: by Leibniz's rule their gradients are the integrands there
        moving = [(low, -1)] * low.requires_grad + [(high, 1)] * high.requires_grad
        levels = [log_snr]
        # all data share the ends, so a sixteenth of them is called at each moving end
        with randomness.subset(len(x), 16, x.device, len(moving)) as (chosen, share):
            rows = torch.cat([torch.arange(len(x), device=x.device)] + [chosen] * len(moving))
            for end, _ in moving:
                levels.append(end.detach().expand(len(chosen)))
            with watched:
                integrands = self.for_rows(rows).integrand(diffusion, x[rows], torch.cat(levels))
        values, *boundaries = integrands.split([len(x)] + [len(chosen)] * len(moving))
        estimate = width * values if weight is None else width * values * weight.to(values)
        for (end, sign), boundary in zip(moving, boundaries, strict=True):
            change = (end - end.detach()).to(x)  # zero, with the gradient of the end
            estimate = estimate + sign * change * (boundary.sum().detach() * (share / len(x)))
        return estimate, log_snr

    def integrand(
        self, diffusion: Kernels, x: Tensor, level: Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """One draw of ½ e^λ ‖x - x̂(z, λ)‖², (n,), at λ = level, whatever the diffusion.

        Where dimensions have clocks of their own, the level is that of the reference, and each term
        ``½ e^λ_j (x_j - x̂_j)²`` is multiplied by dλ_j/dλ. Where the drift sees the data, the draw
        is that of the bound's loss when x̂ stands for x.
        """
        epsilon = randomness.normal(x.shape, x.dtype, x.device) if noise is None else noise[:, 0]
        return diffusion.paths.denoising_error(x, level, epsilon, self.x_hat)

    def baseline_integrand(
        self,
        x: Tensor,
        log_snr: Tensor,
        noise: Tensor | None = None,
        diffusion: Kernels | None = None,
    ) -> Tensor:
        """:meth:`integrand` of the baseline, (n,), without a network call: the same noise gives the
        same z. A diffusion is given where clocks by dimension are followed."""
        epsilon = _epsilon(x) if noise is None else noise[:, 0]
        error = denoising_error if diffusion is None else diffusion.paths.denoising_error
        return error(x, log_snr, epsilon, self.baseline_x_hat, self.counts(x))

    def _scales(self, z: Tensor, lam: Tensor) -> Scales:
        """μ, σ² and ``v = e^{-λ}``, broadcastable to z, in its dtype."""
        mu, s2, v = self.data_mean.to(z), self.data_variance.to(z), torch.exp(-lam).to(z)
        return mu, s2, v if not v.dim() else with_event_dims(v, z)

    def _values(
        self, name: str, value: Tensor, log_snr: Number, *, trained: bool = False
    ) -> tuple[int, Tensor]:
        """The number of batch dimensions of ``value``, and λ in float64; both checked.

        With ``trained``, λ must be in the range that the network was trained on.
        """
        if not isinstance(value, Tensor) or not value.is_floating_point():
            check_shape(name, value, self.event_shape or ())
        if not isinstance(log_snr, float | Tensor):
            check_real("log_snr", log_snr)
        # float64, as kernels are; the network receives λ in its own precision
        log_snr = torch.as_tensor(log_snr, dtype=torch.float64)
        if log_snr.dim():
            log_snr = log_snr.to(value.device)
        event, is_map = self.event_shape, False
        if event is None:
            batch_dim, sizes = log_snr.dim() or 1, "*event_shape"
            fits = value.dim() > batch_dim
        else:
            batch_dim, sizes = value.dim() - len(event), ", ".join(map(str, event))
            fits = batch_dim >= 0 and value.shape[batch_dim:] == event
            is_map = log_snr.dim() == value.dim() > len(event) > 0
        if not fits:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}, expected (*batch, {sizes}) with batch "
                f"dimensions as those of log_snr, {tuple(log_snr.shape)}"
            )
        if is_map:
            fits = all(n in (1, m) for n, m in zip(log_snr.shape, value.shape, strict=True))
        elif log_snr.dim():
            fits = log_snr.shape == value.shape[:batch_dim]
        if not fits:
            raise ValueError(
                f"log_snr has shape {tuple(log_snr.shape)} and {name} {tuple(value.shape)}, "
                f"expected one log SNR per datum, {tuple(value.shape[:batch_dim])}, a number, or a "
                f"map with the sizes of {name} or 1"
            )
        check_finite(name, value)
        if torch.compiler.is_compiling():
            return batch_dim, log_snr
        if is_map:
            check_finite("log_snr", torch.where(log_snr.isinf(), 0.0, log_snr))
        elif log_snr.dim() or log_snr.device.type != "cpu" or not math.isfinite(log_snr.detach()):
            check_finite("log_snr", log_snr)
        if trained and (self.trained_min.isfinite() or self.trained_max.isfinite()):
            self.check_log_snr(log_snr)
        return batch_dim, log_snr

    def set_trained_range(self, low: float, high: float) -> None:
        """Declare the range of log SNR that the network was trained on; others are refused.

        Raises:
            ValueError: low that is not below high.
        """
        if not low < high:
            raise ValueError(f"trained range of log SNR is [{low}, {high}], expected low < high")
        self.trained_min.fill_(low)
        self.trained_max.fill_(high)

    def check_log_snr(self, log_snr: Number) -> None:
        """Raises ValueError for a log SNR outside the trained range.

        The range is 1e-3 wider at both ends, for the rounding of times and of λ at them.
        """
        if torch.compiler.is_compiling():
            return
        low, high = self.trained_min.item(), self.trained_max.item()
        if low == -math.inf and high == math.inf:
            return
        lam = torch.as_tensor(log_snr, dtype=torch.float64)
        inside = lam.clamp(low - 1e-3, high + 1e-3) == lam
        if self.maps:
            inside = inside | ~lam.isfinite()
        if lam.dim() or not inside:
            check_values(inside.all(), partial(_report_log_snr, self, lam, inside))

    def _apply(self: D, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> D:
        ends = self.trained_min, self.trained_max
        super()._apply(fn, recurse)
        self.trained_min, self.trained_max = ends  # which Python reads, on the host
        return self


class NetworkOfDenoiser(Score):
    """A score whose network is that of its denoiser, so that a state dict has it once."""

    denoiser: DenoiserScore
    network = of_part("denoiser")

    def __setattr__(self, name: str, value: Tensor | nn.Module) -> None:
        if name != "network":
            super().__setattr__(name, value)
        elif "denoiser" in self._modules:  # torch registers modules past properties
            setattr(self.denoiser, name, value)


def _report_log_snr(denoiser: DenoiserScore, lam: Tensor, inside: Tensor) -> None:
    outside = ~inside
    if bool(outside.any()):
        raise ValueError(
            f"log SNR {lam[outside][0].item():.6g} is outside [{denoiser.trained_min.item():.6g}, "
            f"{denoiser.trained_max.item():.6g}], where the network was trained; choose the "
            "diffusion's max_log_snr and min_log_snr inside it, or train on a wider range"
        )


def posterior_variance(s2: Tensor, v: Tensor, maps: bool) -> Tensor:
    """σ² v / (σ² + v), the variance of x given z under N(μ, σ²), of maps for v = ∞ too."""
    variance = s2 / (s2 + v) * v
    return torch.where(v.isinf(), s2, variance) if maps else variance


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and variance of each dimension of x (N, *event_shape), (*event_shape) in float64.

    NaN entries are left out.
    """
    n = mean = square = torch.zeros((), dtype=torch.float64, device=x.device)
    for batch in x.split(1024):  # one pass: merge means and sums of squares
        missing, batch = batch.isnan(), batch.double()
        m = (~missing).sum(0)
        centre = torch.where(missing, 0, batch).sum(0) / m.clamp_min(1)
        shift, total = centre - mean, (n + m).clamp_min(1)
        spread = torch.where(missing, 0, batch - centre).square().sum(0)
        square = square + spread + shift.square() * n * m / total
        mean = mean + shift * m / total
        n = n + m
    return mean, square / n


def _epsilon(x: Tensor) -> Tensor:
    return randomness.normal(x.shape, x.dtype, x.device)


def denoiser_of(score: Score, why: str) -> DenoiserScore:
    """A model's score, where it is a denoiser; else TypeError, with the reason why it has to be."""
    fix = f"{why}; train a Denoiser or DiscreteDenoiser"
    check_instance("the model's score", score, DenoiserScore, fix)
    return cast(DenoiserScore, score)


class Denoiser(DenoiserScore):
    r"""A denoiser for continuous data, with network inputs and outputs of unit variance.

    With ``v = e^{-λ}`` and the data's mean μ and variance σ², per dimension,

        x̂ = μ + σ²/(σ²+v) (z - μ) + sqrt(σ² v / (σ²+v)) F( (z - μ)/sqrt(σ²+v), λ ).

    At F = 0 it is exact for N(μ, σ²), whose bound is then the model's.

    Args:
        network: module F called with the scaled z, (n, C, *spatial), and λ, (n,), which returns the
            shape of its input.
        data_mean: mean μ of the data, a number or (*event_shape), in model space.
        data_variance: variance σ² of the data, a positive number or (*event_shape).
        maps: whether log SNRs may differ between dimensions (:meth:`x_hat`). The network then has
            twice the input channels, see :func:`~pyro_mdm.scores.base.map_channels`.

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

    @checked_arguments
    def __init__(
        self,
        network: nn.Module,
        data_mean: Number = 0.0,
        data_variance: Number = 1.0,
        *,
        maps: bool = False,
    ) -> None:
        mean, variance = (
            torch.as_tensor(value, dtype=torch.float64).detach()
            for value in (data_mean, data_variance)
        )
        if mean.dim() and variance.dim() and mean.shape != variance.shape:
            raise ValueError(
                f"data_mean has shape {tuple(mean.shape)} and data_variance "
                f"{tuple(variance.shape)}, expected one shape, or one number for all dimensions"
            )
        mean, variance = torch.broadcast_tensors(mean, variance)
        super().__init__(network, tuple(mean.shape) or None, maps)
        check_finite("data_mean", mean)
        if not bool(((variance > 0) & variance.isfinite()).all()):
            raise ValueError(
                f"data_variance reaches {variance.min().item():.3g}, expected positive finite "
                "variances; Denoiser.fit puts a floor under constant dimensions"
            )
        self.register_buffer("data_mean", mean.clone())
        self.register_buffer("data_variance", variance.clone())

    @classmethod
    @checked_arguments
    def fit(
        cls, network: nn.Module, train_x: Tensor, floor: float = 1e-3, *, maps: bool = False
    ) -> Denoiser:
        """The denoiser with the mean μ and variance σ² of training data, per dimension.

        Args:
            network: module F, as for :class:`Denoiser`.
            train_x: training data in model space, (N, *event_shape). With ``maps``, entries may be
                NaN and count as missing.
            floor: least σ², as a fraction of its average over dimensions, so that dimensions that
                are constant have a positive one.
            maps: whether log SNRs may differ between dimensions.

        Raises:
            TypeError: a network or data of another kind.
            ValueError: data that are all equal, not finite, or without a value in a dimension.
        """
        check_fit(network, train_x, missing=maps)
        mean, variance = moments(train_x)
        if not variance.mean() > 0:
            raise ValueError(f"the {len(train_x)} data are all equal, expected some variance")
        return cls(network, mean, variance.clamp_min(floor * variance.mean()), maps=maps)

    def x_hat(self, z: Tensor, log_snr: Number) -> Tensor:
        batch_dim, lam = self._values("z", z, log_snr, trained=True)
        scaled = self._scaled(z, lam)
        return self.read(z, lam, self.call_network(scaled.z, lam, batch_dim), scaled)

    def read(self, z: Tensor, log_snr: Tensor, F: Tensor, scaled: Scaled | None = None) -> Tensor:
        """x̂ as by :meth:`DenoiserScore.read`; ``scaled`` is the network's input, if known."""
        w, unit, mu, s2, v = self._scaled(z, log_snr) if scaled is None else scaled
        if not self.maps:
            return torch.addcmul(mu, unit, torch.addcmul(s2 * w, (s2 * v).sqrt(), F))
        x = mu + s2 * unit * w + posterior_variance(s2, v, self.maps).sqrt() * F
        return torch.where(v == 0, z, x)  # observed: exactly its value

    def baseline_x_hat(self, z: Tensor, log_snr: Number) -> Tensor:
        """μ + σ²/(σ²+v) (z - μ), like z."""
        _, lam = self._values("z", z, log_snr)
        mu, s2, v = self._scales(z, lam)
        return mu + s2 / (s2 + v) * (z - mu)

    def baseline_log_prob(self, x: Tensor, counted: Tensor | None = None) -> Tensor:
        """log N(x; μ, σ²), (*batch), nats."""
        batch_dim, _ = self._values("x", x, 0.0)
        mu, s2 = self.data_mean, self.data_variance
        terms = (x.double() - mu).square() / s2 + (2 * math.pi * s2).log()
        return -0.5 * of_counted(terms, counted).flatten(batch_dim).sum(-1)

    def baseline_kl(self, x: Tensor, log_snr: Number, counted: Tensor | None = None) -> Tensor:
        """½ Σ_j [ (x-μ)²/(σ²+v) + log((σ²+v)/v) - σ²/(σ²+v) ], (*batch), nats."""
        batch_dim, lam = self._values("x", x, log_snr)
        x = x.double()
        mu, s2, v = self._scales(x, lam)
        terms = ((x - mu).square() - s2) / (s2 + v) + (s2 / v).log1p()
        return 0.5 * of_counted(terms, counted).flatten(batch_dim).sum(-1)

    def baseline_integrals(
        self, x: Tensor, edges: Tensor, dims: slice, counted: Tensor | None = None
    ) -> Tensor:
        self._values("x", x, 0.0)
        both = (self.data_mean, self.data_variance)
        mu, s2 = (t.expand(x.shape[1:]).flatten()[dims] for t in both)
        v = torch.exp(-edges.to(x.device))
        v = v.unsqueeze(1) if v.dim() == 1 else v
        of_square, constant = (1 / (s2 + v)).diff(dim=0).mT, (s2 / v).log1p()
        constants, of_all = constant.diff(dim=0).mT, constant.sum(1).diff()
        rows = x.flatten(1)[:, dims].split(DATA_AT_ONCE)
        masks = None if counted is None else counted.expand_as(x).flatten(1)[:, dims]
        terms = []
        for i, batch in enumerate(rows):
            excess = (batch.double() - mu).square() - s2
            if masks is None:
                terms.append(0.5 * (excess @ of_square + of_all))
            else:
                on = masks[i * DATA_AT_ONCE :][: len(batch)]
                terms.append(0.5 * (excess * on @ of_square + on.double() @ constants))
        return torch.cat(terms)

    def default_likelihood(self) -> likelihoods.Likelihood:
        """:class:`~pyro_mdm.likelihoods.Gaussian` with the prior N(μ, σ²)."""
        return likelihoods.Gaussian(self.data_mean, self.data_variance)
