"""Denoisers of z, for every linear diffusion, and their Gaussian baseline."""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import cached_property, partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyro_mdm import likelihoods, randomness
from pyro_mdm.diffusions.base import Cap, Diffusion, UnsupportedDiffusionError, require
from pyro_mdm.diffusions.closed import Kernels, denoising_error, noised_data
from pyro_mdm.diffusions.matrices import apply_vector, full_precision, of_counted, with_event_dims
from pyro_mdm.diffusions.memory import Recalled, kept, writes
from pyro_mdm.scores.base import Number, Score, check_fit, weighted
from pyro_mdm.scores.maps import OBSERVED, MapLaw
from pyro_mdm.support.checks import check_instance
from pyro_mdm.support.doors import checked_arguments
from pyro_mdm.support.late_checks import check_finite, check_values

__all__ = ["DATA_AT_ONCE", "Denoiser", "DenoiserScore", "denoiser_of", "moments"]

Scales = tuple[Tensor, Tensor, Tensor]
"""μ, σ² and ``v = e^{-λ}``."""
DATA_AT_ONCE = 256
"""The number of data whose baseline is integrated together, so that they stay in cache."""


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
    _recalled = cached_property(lambda _: Recalled())
    _range_read: tuple[object, object, tuple[float, float]] | None = None

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
        self._training_maps: MapLaw | None = None
        self.register_buffer("trained_min", torch.tensor(-math.inf, dtype=torch.float64))
        self.register_buffer("trained_max", torch.tensor(math.inf, dtype=torch.float64))

    @property
    def training_maps(self) -> MapLaw | None:
        """The distribution of the maps of log SNR at which :meth:`diffusion_term` trains.

        For a score with :attr:`maps`. None (the default, and always in eval mode): the maps of the
        diffusion, so that the term is that of the bound.
        """
        return self._training_maps

    @training_maps.setter
    def training_maps(self, value: MapLaw | None) -> None:
        if value is not None:
            check_instance("training_maps", value, MapLaw, "e.g. RandomMaps()")
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
        """The network's input: z in units of its own standard deviation, like z.

        Args:
            z: readouts, (*batch, *event_shape).
            log_snr: log SNR λ in float64, as for :meth:`x_hat`.
        """
        return self._scaled(z, self._scales(z, log_snr))[0]

    def _scaled(self, z: Tensor, scales: Scales) -> tuple[Tensor, Tensor]:
        """The network's input, like z, and ``(σ²+v)^{-½}`` by which it is scaled."""
        mu, s2, v = scales
        with full_precision(z):
            unit = (s2 + v).rsqrt()
            return (z - mu) * unit, unit

    def read(self, z: Tensor, log_snr: Tensor, F: Tensor) -> Tensor:
        """x̂, like z, from the network's output.

        Args:
            z: readouts, (*batch, *event_shape).
            log_snr: log SNR λ in float64, as for :meth:`x_hat`.
            F: output of the network, (*batch, outputs·C, *spatial).

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
        """Raises ValueError for entries that data cannot have.

        Args:
            values: values in model space, (*batch, *event_shape).
            mask: mask of the entries to check, bool, like the values.
        """

    @abstractmethod
    def baseline_x_hat(self, z: Tensor, log_snr: Number) -> Tensor:
        """The baseline's E[x | z], like z. No network call."""

    @abstractmethod
    def baseline_log_prob(self, x: Tensor, counted: Tensor | None = None) -> Tensor:
        """log p_0(x), (*batch), nats, in float64.

        Args:
            x: data (*batch, *event_shape).
            counted: mask of the dimensions that count, bool, broadcastable to x; None: all.
        """

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

    def score(self, diffusion: Kernels, y: Tensor, s: Number) -> Tensor:
        """``-Σ^{-1} (y - a x̂(z, λ))``, like y; the linear algebra in float64."""
        s = self.checked_state(diffusion, y, s)
        marginal = diffusion.marginal(s)
        z = apply_vector(marginal.readout, y.double()).to(y.dtype)
        x = self.x_hat(z, marginal.log_snr)
        with full_precision(y):
            return diffusion.score_from(x, y, s, marginal).to(y.dtype)

    def denoise(self, diffusion: Kernels, y: Tensor, s: Number) -> Tensor:
        """x̂(kᵀ y, λ(s)), (*batch, *event_shape)."""
        return self._aimed(diffusion, y, s, 1.0)

    def aim(self, diffusion: Kernels, y: Tensor, s: Number, noise: float) -> Tensor:
        if Cap.OWN_DRIFT in diffusion.caps:  # x̂ for every η, from an overridden denoise
            return self.denoise(diffusion, y, s)
        return self._aimed(diffusion, y, s, noise)

    def _aimed(self, diffusion: Kernels, y: Tensor, s: Number, noise: float) -> Tensor:
        s = self.checked_state(diffusion, y, s)
        marginal = diffusion.marginal(s)
        z = apply_vector(marginal.readout, y.double()).to(y.dtype)
        return diffusion.aim(self.x_hat(z, marginal.log_snr), z, marginal.log_snr, noise)

    def diffusion_term(self, diffusion: Kernels, x: Tensor) -> tuple[Tensor, Tensor]:
        """One unbiased estimate of ½ ∫ E‖x - x̂(z, λ)‖² e^λ dλ for each datum.

        λ is drawn uniformly, or by :attr:`times`, and with low discrepancy over the batch. The
        integrand does not depend on the diffusion: only the ends can move, and a few more network
        calls give their boundary terms. Where dimensions have clocks of their own, the term is the
        sum over them at the fraction u of the common way, with u drawn in the same way, and it is
        differentiated in all that is learned.

        Returns:
            The estimate, (n,) nats, and its λ, (n,).

        Raises:
            ValueError: a learned diffusion with a ``cut_time``, where λ(ε) moves too.
        """
        low, high = diffusion.terminal_log_snr, diffusion.start_log_snr
        if self.training and self._training_maps is not None:
            return self._at_maps(self._training_maps, diffusion, x)
        u, weight = self._drawn(len(x), x.device)
        if diffusion.maps:
            way = 1 - u
            level = diffusion.max_log_snr - way * (diffusion.max_log_snr - low.detach())
            with self._watching(u, weight):
                knowing: Any = self.given(x)
                value = diffusion.error_on_the_way(
                    x, way, _epsilon(x), knowing.x_hat, self.counts(x)
                )
            return weighted(value, weight), level
        if diffusion.cut_time is not None and low.requires_grad:
            raise ValueError(
                f"{type(self).__name__} takes λ(ε) as fixed, but the diffusion is learned and cut "
                f"at the time {diffusion.cut_time:g}; set diffusion.max_log_snr instead, or use a "
                "score of the raw state, such as NoisePrediction"
            )
        # ends are detached: by Leibniz's rule their gradients are the integrands there
        moving = [(end, sign) for end, sign in ((low, -1), (high, 1)) if end.requires_grad]
        with torch.no_grad():
            log_snr, width = torch.lerp(low, high, u), (high - low).to(x.dtype)
        if not moving and weight is None:
            return width * self.integrand(diffusion, x, log_snr), log_snr
        if not moving:
            with self._watching(u, weight):
                value = width * self.integrand(diffusion, x, log_snr)
            return weighted(value, weight), log_snr
        # all data share the ends, so a sixteenth of them is called at each moving end
        with randomness.subset(len(x), 16, x.device, len(moving)) as (chosen, share):
            both = torch.cat([torch.arange(len(x), device=x.device)] + [chosen] * len(moving))
            at = [log_snr] + [end.detach().expand(len(chosen)) for end, _ in moving]
            with self._watching(u, weight):
                integrands = self.for_rows(both).integrand(diffusion, x[both], torch.cat(at))
        values, *boundaries = integrands.split([len(x)] + [len(chosen)] * len(moving))
        estimate = weighted(width * values, weight)
        for (end, sign), boundary in zip(moving, boundaries, strict=True):
            change = (end - end.detach()).to(x.dtype)  # zero, with the gradient of the end
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
        epsilon = _epsilon(x) if noise is None else noise[:, 0]
        denoiser: Any = self.given(x)  # one of its kind
        return diffusion.denoising_error(x, level, epsilon, denoiser.x_hat, self.counts(x))

    def _at_maps(self, law: MapLaw, diffusion: Kernels, x: Tensor) -> tuple[Tensor, Tensor]:
        """Σ_j w_j ½ e^λ_j (x_j - x̂_j)² at random maps, (n,), and their mean λ over dimensions."""
        low = diffusion.terminal_log_snr
        moves = low.requires_grad or diffusion.start_log_snr.requires_grad
        if moves or not {Cap.ONE_LEVEL, Cap.OWN_DRIFT} <= diffusion.caps:
            raise UnsupportedDiffusionError(
                f"training_maps is {law}, which would replace the clocks or learned ends of "
                f"{type(diffusion).__name__}; use a diffusion of one clock, whose "
                "min_log_snr is given and not learned, or leave out training_maps"
            )
        present = self.counts(x)
        among: dict[str, Any] = {} if present is None else {"present": present.expand_as(x)}
        draw = law.draw if self.groups is None else partial(law.draw_by_group, self.groups)
        last = kept(diffusion, "λ(T) as a number", lambda: low.item())
        maps = draw(x.shape, last, diffusion.max_log_snr, x.device, **among)
        between = maps.weight > 0  # elsewhere e^{±∞} times a weight of 0 would be NaN
        log_snr = torch.where(between, maps.log_snr, 0.0)
        z = torch.where(maps.log_snr == OBSERVED, x, noised_data(x, log_snr, _epsilon(x)))
        square = (x - self.x_hat(z, maps.log_snr)).square()
        weight = (0.5 * maps.weight * log_snr.exp()).to(x.dtype)
        count = between.flatten(1).sum(1)
        level = (log_snr * between).flatten(1).sum(1) / count.clamp_min(1)
        return (weight * square).flatten(1).sum(1), level

    def log_snr_at(self, diffusion: Kernels, level: Tensor) -> Tensor:
        """λ, which is the level itself."""
        return level

    def baseline_integrand(
        self,
        x: Tensor,
        log_snr: Tensor,
        noise: Tensor | None = None,
        diffusion: Kernels | None = None,
    ) -> Tensor:
        """:meth:`integrand` of the baseline, (n,), without a network call.

        Args:
            x: data, (n, *event_shape).
            log_snr: log SNR of each datum, (n,).
            noise: standard normal numbers as for :meth:`integrand`; the same ones give the same z.
            diffusion: diffusion whose clocks by dimension are followed; None: one clock.
        """
        epsilon, counted = _epsilon(x) if noise is None else noise[:, 0], self.counts(x)
        error = denoising_error if diffusion is None else diffusion.denoising_error
        return error(x, log_snr, epsilon, self.baseline_x_hat, counted)

    def _scales(self, z: Tensor, lam: Tensor) -> Scales:
        """μ, σ² and ``v = e^{-λ}``, broadcastable to z, in its dtype."""

        def of_data(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
            return mean.to(z.dtype), variance.to(z.dtype)

        mu, s2 = self._recalled(of_data, self.data_mean, self.data_variance, key=z.dtype)
        return mu, s2, with_event_dims(torch.exp(-lam).to(z.dtype), z)

    def _spread(self, s2: Tensor, v: Tensor) -> Tensor:
        """σ² v / (σ² + v), the variance of x given z under N(μ, σ²), of maps for v = ∞ too."""
        spread = s2 / (s2 + v) * v
        return torch.where(v.isinf(), s2, spread) if self.maps else spread

    def set_trained_range(self, low: float, high: float) -> None:
        """Declare the range of log SNR that the network was trained on; others are refused.

        Args:
            low: least log SNR of training.
            high: largest log SNR of training.

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
        low, high = self._trained_range()
        if low == -math.inf and high == math.inf:
            return
        lam = torch.as_tensor(log_snr, dtype=torch.float64, device=self.trained_min.device)
        inside = lam.clamp(low - 1e-3, high + 1e-3) == lam
        if self.maps:
            inside = inside | ~lam.isfinite()
        check_values(inside.all(), partial(self._report_log_snr, lam, inside))

    def _trained_range(self) -> tuple[float, float]:
        """The trained range as numbers, which are read once until it changes."""
        ends = self.trained_min, self.trained_max
        if ends[0].is_inference() or ends[1].is_inference():  # nobody counts writes to these
            return ends[0].item(), ends[1].item()
        if self._range_read is None or self._range_read[0] != writes(ends):
            # held, so that no others come to their places
            self._range_read = writes(ends), ends, (ends[0].item(), ends[1].item())
        return self._range_read[2]

    def _report_log_snr(self, lam: Tensor, inside: Tensor) -> None:
        outside = ~inside
        if bool(outside.any()):
            raise ValueError(
                f"log SNR {lam[outside][0].item():.6g} is outside [{self.trained_min.item():.6g}, "
                f"{self.trained_max.item():.6g}], where the network was trained; choose the "
                "diffusion's max_log_snr and min_log_snr inside it, or train on a wider range"
            )


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
    """A model's score, where it is a denoiser.

    Args:
        score: the score.
        why: the reason why it has to be one, for the message.

    Raises:
        TypeError: another score.
    """
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
        batch_dim, lam = self._values("z", z, log_snr)
        self.check_log_snr(lam)
        scales = self._scales(z, lam)
        scaled, unit = self._scaled(z, scales)
        F = self.call_network(scaled, lam, batch_dim)
        return self._read(z, scales, scaled, unit, F)

    def read(self, z: Tensor, log_snr: Tensor, F: Tensor) -> Tensor:
        scales = self._scales(z, log_snr)
        return self._read(z, scales, *self._scaled(z, scales), F)

    def _read(self, z: Tensor, scales: Scales, scaled: Tensor, unit: Tensor, F: Tensor) -> Tensor:
        mu, s2, v = scales
        with full_precision(z):
            if not self.maps:
                return torch.addcmul(mu, unit, torch.addcmul(s2 * scaled, (s2 * v).sqrt(), F))
            x = mu + s2 * unit * scaled + self._spread(s2, v).sqrt() * F
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
        v = torch.exp(-edges)
        v = v.unsqueeze(1) if v.dim() == 1 else v
        of_square, constant = (1 / (s2 + v)).diff(dim=0).mT, (s2 / v).log1p()
        if counted is None:
            of_all = constant.sum(1).diff()
            return torch.cat(
                [
                    0.5 * (((batch.double() - mu).square() - s2) @ of_square + of_all)
                    for batch in x.flatten(1)[:, dims].split(DATA_AT_ONCE)
                ]
            )
        here = counted.expand_as(x).flatten(1)[:, dims].split(DATA_AT_ONCE)
        constants = constant.diff(dim=0).mT
        return torch.cat(
            [
                0.5
                * (((batch.double() - mu).square() - s2) * on @ of_square + on.double() @ constants)
                for batch, on in zip(x.flatten(1)[:, dims].split(DATA_AT_ONCE), here, strict=True)
            ]
        )

    def default_likelihood(self) -> likelihoods.Likelihood:
        """:class:`~pyro_mdm.likelihoods.Gaussian` with the prior N(μ, σ²)."""
        return likelihoods.Gaussian(self.data_mean, self.data_variance)
