"""Scores: networks read as ∇ log q and as x̂, and their diffusion term."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, NoReturn, TypeVar, cast, get_args

import torch
from torch import Tensor, nn

import pyro_mdm.likelihoods as likelihoods
import pyro_mdm.randomness as randomness
from pyro_mdm.diffusions.base import (
    Cap,
    Diffusion,
    Marginal,
    UnsupportedDiffusionError,
    apply_vector,
    full_precision,
    require,
)
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.diffusions.kernels import inverse_tril
from pyro_mdm.diffusions.linear import at_rest, clock_noise
from pyro_mdm.diffusions.matrices import apply_matrix
from pyro_mdm.networks import MAP_LIMIT, MAP_UNIT
from pyro_mdm.scores.density import AdaptiveDensity, watching
from pyro_mdm.support.checks import (
    check_data,
    check_finite,
    check_network,
    check_real,
    check_weights,
    tensor_device,
)
from pyro_mdm.support.files import JsonObject
from pyro_mdm.support.modules import ExactBuffers, replace
from pyro_mdm.support.settings import Restorable

__all__ = [
    "Coefficients",
    "Number",
    "Score",
    "Times",
    "call_on_state",
    "check_fit",
    "check_process",
    "coefficients",
    "error_by_log_volume",
    "log_snr_at",
    "map_channels",
    "project",
    "rotated",
]

S = TypeVar("S", bound="Score")
Number = float | Tensor
"""One number, or a tensor of them."""


class Coefficients(NamedTuple):
    """A diffusion at times, in float64, as scores need it.

    Times and log SNRs stay on the host; what is applied to states is moved to them once.
    """

    s: Tensor  # times (…)
    log_snr: Tensor  # λ (…), of the reference where data dimensions differ
    marginal: Any = None  # a Marginal of the state given the data; None without a closed form
    noise: Any = None  # g² (…, K, K); None without a closed form, and for a denoiser
    whitener: Any = None  # L^{-1} (…, K, K), with Σ = L Lᵀ; None without a closed form
    units: Tensor | None = None
    """1/c (…, K), for the standard deviations c of the variables given data of unit variance, where
    states do not come to rest; None: they are of one size, or it is for a denoiser."""
    projection: Tensor | None = None  # (…, 2, K), see `projection`; None: not computed yet

    def rows(self, device: torch.device, projects: bool = False) -> list[Coefficients]:
        """The coefficients at each of N times, for states on a device, with their projection if
        asked; those of data dimensions keep a batch dimension of 1."""
        if self.marginal is None:
            return list(map(Coefficients, self.s.unbind(), self.log_snr.unbind()))
        vectors = projection(self) if projects else None
        columns: list[Sequence[Any]] = []
        by_dimension = self.marginal.log_det.dim() > 1
        for field in (*self.marginal, self.noise, self.whitener, self.units, vectors):
            if field is None:
                columns.append([None] * len(self.s))
                continue
            stays = field is self.marginal.log_snr or field is self.marginal.log_det
            field = field.unsqueeze(1) if by_dimension else field
            columns.append((field if stays else field.to(device, non_blocking=True)).unbind())
        rows = []
        for s, level, *row in zip(self.s, self.log_snr, *columns, strict=True):
            rows.append(Coefficients(s, level, Marginal(*row[:6]), *row[6:]))
        return rows


def coefficients(
    diffusion: Diffusion, s: Tensor, noise: Tensor | None = None, *, raw: bool = True
) -> Coefficients:
    """The coefficients of a diffusion at times s (…) in float64, on the host.

    Args:
        diffusion: the noising diffusion.
        s: times (…), in float64.
        noise: its g² there, or by the clock; None: not known yet.
        raw: whether they are for a score of the raw state; a denoiser needs no g² and units.
    """
    if not isinstance(diffusion, Kernels):
        return Coefficients(s, diffusion.log_snr(s))
    marginal, units = diffusion.marginal(s), None
    level = marginal.log_snr if marginal.log_snr.dim() == s.dim() else diffusion.log_snr(s)
    whitener = inverse_tril(marginal.scale_tril)
    if not raw:
        return Coefficients(s, level, marginal, whitener=whitener)
    noise = diffusion.noise_covariance(s) if noise is None else noise
    if not at_rest(diffusion):
        variance = marginal.covariance.diagonal(dim1=-2, dim2=-1)
        units = (marginal.mean.square() + variance).rsqrt()
    return Coefficients(s, level, marginal, noise, whitener, units)


Times = Literal["log_volume", "vpsde", "adaptive"]
"""The name of the distribution of training times, see :attr:`Score.times`."""


class Score(Restorable, ExactBuffers, ABC):
    """A model's score s_θ, for the diffusions whose noising paths it is made for.

    Scores that use the closed-form distribution of y_s given x serve linear diffusions alone.
    Buffers stay in float64 when the module is cast to another precision.

    Args:
        network: the network, which the score owns.
        event_shape: shape of a datum; None: any.
    """

    network: nn.Module
    event_shape: tuple[int, ...] | None  # None: any
    serves_nonlinear: ClassVar[bool] = False
    """Whether the score serves diffusions without a closed form too."""
    denoises: ClassVar[bool] = False
    """Whether the network reads z alone, not the raw state."""
    approximates: ClassVar[bool] = False
    """Whether it would be wrong with an exact network too, so that samplers should add noise."""
    maps: bool = False
    """Whether the network receives a log SNR for each dimension, which may differ."""

    _times: Times = "log_volume"

    @property
    def times(self) -> Times:
        """The distribution of the times at which :meth:`diffusion_term` of linear diffusions is
        estimated.

        ``"log_volume"``: uniform in log volume, or for denoisers in log SNR. ``"adaptive"``: in
        training mode by a density over these that follows the gradients of earlier steps, see
        :class:`~pyro_mdm.scores.density.AdaptiveDensity`. ``"vpsde"``, for raw scores: the paper's
        importance times, uniform in the log SNR that VPSDE has on the same clock b, with a density
        proportional to ``β/(1 - e^{-b})`` (Song et al. 2021). For VPSDE the first and the last are
        the same. All are weighted and differentiated to be unbiased. Random maps of log SNR
        (``training_maps``), and scores that wrap another one, such as conditioned ones, have times
        of their own.
        """
        return self._times

    @times.setter
    def times(self, value: Times) -> None:
        if value not in get_args(Times):
            raise ValueError(f"times is {value!r}, expected one of {', '.join(get_args(Times))}")
        if value == "vpsde" and self.denoises:
            raise ValueError(
                "times is 'vpsde', which is for scores of the raw state, and this is a "
                f"{type(self).__name__}; expected 'log_volume', uniform in log SNR, or 'adaptive'"
            )
        if value != self._times:
            density = AdaptiveDensity().to(tensor_device(self)) if value == "adaptive" else None
            self.time_density = density
        self._times = value

    time_density: AdaptiveDensity | None
    """The density of the times of training, for ``times="adaptive"``."""
    network_context: Tensor | None = None
    """The contexts that the network receives, (size,) for all data or (*batch, size)."""
    groups: Tensor | None = None
    """The column of each dimension of a vector, (d,) int64; None: each dimension is one.

    The dimensions of one column are observed, missing or noised together.
    """
    _knows_unknown: bool = False
    autocast_dtype: torch.dtype | None = None
    """The dtype of mixed precision: the network, and nothing else, runs under autocast to it."""

    def __init__(self, network: nn.Module, event_shape: tuple[int, ...] | None = None) -> None:
        super().__init__()
        check_network("network", network, Score, Diffusion)
        self.network = network
        self.event_shape = event_shape
        self.register_module("time_density", None)

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        for name in ("score", "denoise"):
            if name in vars(cls):
                raise TypeError(
                    f"{cls.__name__} defines {name}(diffusion, y, s), expected "
                    f"{name}_at(diffusion, y, at), which is called with the diffusion's "
                    "coefficients at the times of the states; see pyro_mdm.scores.Score"
                )

    def arguments(self) -> dict[str, object]:
        return super().arguments() | {"network": self.network}

    def settings(self) -> dict[str, object]:
        return super().settings() | {"times": self.times}

    def restore(self, saved: JsonObject) -> None:
        self.times = saved["times"]

    def check_diffusion(self, diffusion: Diffusion) -> None:
        """Raises TypeError for a diffusion whose noising paths the score is not made for."""

    def score(self, diffusion: Diffusion, y: Tensor, s: Number) -> Tensor:
        """s_θ(y, s), like y (*batch, K, *event_shape), for times s (*batch) or one time for all."""
        return self.score_at(cast(Kernels, diffusion), y, self.coefficients(diffusion, y, s))

    @abstractmethod
    def score_at(self, diffusion: Kernels, y: Tensor, at: Coefficients) -> Tensor:
        """s_θ, like y (*batch, K, *event_shape), which a subclass computes; ``at`` is the diffusion
        at the times of states, (*batch), or at one time for one batch dimension."""

    def denoise(self, diffusion: Diffusion, y: Tensor, s: Number, noise: float = 1.0) -> Tensor:
        """The denoiser x̂ (*batch, *event_shape): the expected data given the state y at time s.

        It is the same for all processes with noise η g², unless the drift of noising paths sees the
        data; then it is the point to which this process is drawn.

        Args:
            diffusion: the noising diffusion, with closed-form kernels.
            y: states, (*batch, K, *event_shape).
            s: times, (*batch), or one time for all.
            noise: noise η of the backward process.

        Raises:
            UnsupportedDiffusionError: a score of the raw state that is asked for another process
                than its own, or, of paths that start at an encoding of the data, at another time
                than ε.
        """
        at = self.coefficients(diffusion, y, s)
        return self.denoise_at(cast(Kernels, diffusion), y, at, noise)

    def denoise_at(
        self, diffusion: Kernels, y: Tensor, at: Coefficients, noise: float = 1.0
    ) -> Tensor:
        """x̂ as by :meth:`denoise`: the projection of g² s_θ, by default.

        Args:
            diffusion, y, noise: as for :meth:`denoise`.
            at: the diffusion at the times of the states, as for :meth:`score_at`.
        """
        if not self.denoises:
            check_process(self, diffusion, noise)
        fix = "decode with Gaussian or another likelihood that reads y_ε alone"
        require(diffusion, Cap.KERNELS, who="x̂ by a score", fix=fix)
        state = y
        if Cap.READOUT not in diffusion.caps:
            if not bool((at.s == diffusion.start_time).all()):  # g² s_θ mixes x with m(x)
                who = f"{type(self).__name__}, asked for x̂ at another time than ε,"
                require(diffusion, Cap.READOUT, who=who, fix="use StateDenoiser")
            state = diffusion.paths.without_displacement(y, y.dim() - 1 - (at.s.dim() or 1))
        return project(self.score_at(diffusion, y, at), state, at)

    # -- a part of the dimensions, and differences between data ------------------------------------

    def counts(self, x: Tensor) -> Tensor | None:
        """The mask of the dimensions that a bound is about, bool, broadcastable to data x
        (*batch, *event_shape); None: all. See :func:`~pyro_mdm.condition`."""
        return None

    def given(self: S, x: Tensor) -> S:
        """The score given the observed entries of x (*batch, *event_shape); itself without any."""
        return self

    def given_context(self: S, context: Tensor | None, *, knows_unknown: bool = False) -> S:
        """The score whose network receives contexts.

        A network with a ``context_size`` is called with them; for any other they are channels after
        those of its input, the same for all pixels. See :mod:`pyro_mdm.contexts`.

        Args:
            context: encoded contexts, (size,) for all data or (*batch, size); None: none.
            knows_unknown: whether the network was trained with unknown contexts too.
        """
        return replace(self, network_context=context, _knows_unknown=knows_unknown)

    def without_context(self: S) -> S:
        """The score of data with an unknown context.

        Raises:
            ValueError: no context is given, or the network was never trained without one.
        """
        contexts = self.network_context
        if contexts is None or not self._knows_unknown:
            why = "the score has no context" if contexts is None else "the network always knew it"
            raise ValueError(
                f"the score for an unknown context is needed, and {why}; "
                "train one with context=Labels(10, dropout=0.1), and condition it on a context"
            )
        return self.given_context(contexts.new_zeros(contexts.shape[-1]), knows_unknown=True)

    def for_rows(self: S, rows: Tensor) -> S:
        """The score of the data at indices (m,), where contexts or observations differ between
        data; else itself."""
        if self.network_context is None or self.network_context.dim() == 1:
            return self
        contexts = self.network_context.reshape(-1, self.network_context.shape[-1])
        rows = rows.to(contexts.device) % len(contexts)  # also for several copies of these data
        return self.given_context(contexts[rows], knows_unknown=self._knows_unknown)

    def check_data(self, x: Tensor) -> None:
        """Raises ValueError for data (*batch, *event_shape) that the score does not fit."""

    def default_likelihood(self) -> likelihoods.Likelihood:
        """The decoder p(x | y_ε) that fits the score and costs no network call: by default
        :class:`~pyro_mdm.likelihoods.Gaussian` with a flat prior."""
        return likelihoods.Gaussian()

    def diffusion_term(self, diffusion: Kernels, x: Tensor) -> tuple[Tensor, Tensor]:
        """One unbiased estimate of ``½ ∫_ε^T E‖s_θ - ∇log q(y_s|x)‖²_{g²} ds`` for each datum.

        Scores of the raw state are integrated over log volume κ
        (:class:`~pyro_mdm.diffusions.linear.LogVolume`), drawn uniformly and with low
        discrepancy over the batch: (κ_T - κ_ε) E_u h(κ_ε + u (κ_T - κ_ε)). With
        ``s_θ = -L^{-T} ε_θ``, h is a weighted mean of ½ (ε_θ - ε)²; over log SNR, which pauses
        where the noise is of low rank, its variance would be infinite. At fixed u everything is
        differentiated, the time and both ends included. :attr:`times` selects another distribution
        of times.

        Args:
            diffusion: the noising diffusion.
            x: data, (n, *event_shape).

        Returns:
            (n,) nats, differentiable in the network and the diffusion, and the log SNRs (n,) at
            which it was estimated. One network call.
        """
        u = randomness.low_discrepancy(len(x), torch.device("cpu"))
        weight: Tensor | None = None
        watched: AbstractContextManager[None] = nullcontext()
        if self.training and self.time_density is not None:
            u, weight = self.time_density.place(u)
            watched = watching(self.time_density, u, weight)
        with watched:
            value, log_snr = _on_the_way(self, diffusion, x, u, None, self.times)
        value = value if weight is None else value * weight.to(value)
        return value, log_snr.detach()  # for records alone

    def integrand(
        self, diffusion: Kernels, x: Tensor, level: Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """One draw of the diffusion term's integrand per unit of ``level``, for evaluation.

        Levels run over [λ(T), λ(ε)]. For a denoiser they are log SNR. For a score of the raw state
        they are log volume κ, decreasing and scaled to the same ends; for K = 1 that is log SNR
        too.

        Args:
            diffusion: the noising diffusion.
            x: data, (n, *event_shape).
            level: level of each datum, (n,), in units of log SNR.
            noise: standard normal numbers, (n, ≥ K, *event_shape), whose first variable ε_0 gives
                ``z = x + e^{-λ/2} ε_0`` for every diffusion; None to draw them.

        Returns:
            (n,), nats per unit of level, for one draw of y_s at each level. One network call.
        """
        high, low = diffusion.max_log_snr, diffusion.terminal_log_snr.detach()
        value, _ = _on_the_way(self, diffusion, x, (high - level) / (high - low), noise)
        return value / (high - low).to(value.dtype)

    # -- the door ----------------------------------------------------------------------------------

    def coefficients(self, diffusion: Diffusion, y: Tensor, s: Number) -> Coefficients:
        """The diffusion at the times (*batch) of states, or at one time for all.

        Raises:
            TypeError: a diffusion that the score does not serve.
            ValueError: states of another shape, or entries that are not finite.
        """
        if not self.serves_nonlinear:
            fix = "use ResidualScore or RawScore"
            require(diffusion, Cap.KERNELS, who=type(self).__name__, fix=fix)
        K = diffusion.num_variables
        check_real("a time", s)
        device = "cpu" if isinstance(diffusion, Kernels) else diffusion.start_time.device
        s = torch.as_tensor(s, dtype=torch.float64, device=device)
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
        return coefficients(diffusion, s, raw=not self.denoises)

    def call_network(
        self,
        inputs: Tensor,
        log_snr: Tensor,
        batch_dim: int,
        factor: int = 1,
        channels: int | None = None,
    ) -> Tensor:
        """The output of the network, (*batch, channels, *spatial), ``factor`` C by default.

        For a score with :attr:`maps` the network receives 2 C channels, the dimensions and then the
        log SNR of each, see :func:`map_channels`; its own log SNR is their average.

        Args:
            inputs: inputs of the network, (*batch, C, *spatial), with ``batch_dim`` dimensions of
                the batch.
            log_snr: log SNR, (*batch) or a map.
        """
        batch, event, given = inputs.shape[:batch_dim], inputs.shape[batch_dim:], inputs.dtype
        inputs = inputs.to(self.dtype or given)
        if not event:
            raise ValueError(
                f"data of shape {tuple(inputs.shape)} has no event dimension, expected "
                "(*batch, features) or (*batch, C, *spatial); give scalars the event shape (1,)"
            )
        flat = inputs if batch_dim == 1 else inputs.reshape(-1, *event)
        if self.maps:
            flat, lam = map_channels(flat, log_snr, batch)
        elif log_snr.dim() > batch_dim:
            raise ValueError(
                f"log_snr is a map of shape {tuple(log_snr.shape)}, and the network of this "
                f"{type(self).__name__} takes one log SNR for all dimensions; make it with "
                "maps=True, over a network of twice the channels"
            )
        else:
            lam = log_snr.to(flat)
            lam = lam if lam.shape == flat.shape[:1] else lam.expand(batch).reshape(-1)
        arguments: tuple[Tensor, ...] = (flat, lam)
        if self.network_context is not None or getattr(self.network, "context_size", False):
            flat, *context = _with_context(self.network, self.network_context, flat)
            arguments = (flat, lam, *context)
        if self.autocast_dtype is None:
            out = self.network(*arguments)
        else:
            with torch.autocast(flat.device.type, dtype=self.autocast_dtype):
                out = self.network(*arguments)
        shape = (len(flat), factor * event[0] if channels is None else channels, *event[1:])
        if not isinstance(out, Tensor) or out.shape != shape:
            _report_output(self.network, out, flat, shape)
        # outputs of finite weights are for the caller to judge
        check_finite(partial(check_weights, self.network), out)
        density = self.time_density
        if density is not None and density.watched is not None and out.requires_grad:
            density.watch(out, *density.watched)
        out = out.to(given)
        return out if batch_dim == 1 else out.reshape(*batch, *out.shape[1:])

    @property
    def dtype(self) -> torch.dtype | None:
        """The precision of the network; None for a function, which has none of its own."""
        if isinstance(self.network, nn.Module):
            for parameter in self.network.parameters():
                if parameter.is_floating_point():
                    return parameter.dtype
        return None


def check_process(score: Score, diffusion: Diffusion, noise: float) -> None:
    """Raises TypeError for a raw score that does not know the backward process with noise η g².

    It knows the process that it was trained for; where the drift sees the data, no other process
    follows from it.
    """
    if diffusion.paths.score_tells(noise):
        return
    raise UnsupportedDiffusionError(
        f"{type(score).__name__} knows one process alone, with the noise that it was trained "
        f"for, not one with {noise:g} times the noise variance of the base of "
        f"{type(diffusion).__name__}; sample with EulerMaruyama(256), or train a denoiser"
    )


def log_snr_at(score: Score, diffusion: Kernels, level: Tensor) -> Tensor:
    """λ where :meth:`Score.integrand` is evaluated at ``level``, like it; increasing."""
    if score.denoises:
        return level
    high, low = diffusion.max_log_snr, diffusion.terminal_log_snr
    return diffusion.log_snr(diffusion.way.time_at((high - level) / (high - low)))


def _on_the_way(
    score: Score,
    diffusion: Kernels,
    x: Tensor,
    u: Tensor,
    noise: Tensor | None,
    times: Times = "log_volume",
) -> tuple[Tensor, Tensor]:
    """A draw of the diffusion term at the fraction u of the way of ``times``, and λ there; its
    integral over u is the diffusion term."""
    if times == "vpsde":
        s, clock_rate = _importance_time(diffusion, u)
    else:
        s, clock_rate = diffusion.way.time_at(u), None
    at = coefficients(diffusion, s, noise=clock_noise(diffusion, s))
    if noise is None:
        shape = (len(x), diffusion.num_variables, *x.shape[1:])
        noise = randomness.normal(shape, x.dtype, x.device)
    else:
        noise = rotated(at.marginal, noise)
    if clock_rate is None:
        start, end = diffusion.way.ends
        width = (end - start).to(x.device)
        value = width * error_by_log_volume(score, diffusion, x, at, noise)
    else:
        value = clock_rate.to(x.device) * _error(score, diffusion, x, at, noise)[0]
    return value.to(x.dtype), at.log_snr


def error_by_log_volume(
    score: Score, diffusion: Kernels, x: Tensor, at: Coefficients, noise: Tensor
) -> Tensor:
    """One draw of ½ ‖s_θ - ∇ log q‖²_{g²} per unit of log volume, (n,) in float64, for data x and
    normal noise (n, K, *event_shape), at times (n,) with g² by the clock."""
    half_square, whitener = _error(score, diffusion, x, at, noise)
    return half_square / diffusion.way.rate_by_clock(at.s, whitener, at.noise).to(half_square)


def _error(
    score: Score, diffusion: Kernels, x: Tensor, at: Coefficients, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """½ ‖s_θ - ∇ log q‖²_{g²} by the clock, (n,), and L^{-1} of the states."""
    noised = diffusion.paths.noised(x, at.s, noise, at.marginal, at.whitener)
    theta = score.score_at(diffusion, noised.state, at)
    with full_precision(x):
        error = theta.double() - noised.target
        square = (error * apply_matrix(at.noise, error)).flatten(1).sum(1)
        if noised.share is not None:
            square = noised.share.to(square) * square
        return 0.5 * square, at.whitener


def _report_output(network: object, out: object, inputs: Tensor, shape: Sequence[int]) -> NoReturn:
    """Raises ValueError for an output of the network that has another shape."""
    got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    name = "out_channels" if len(shape) > 2 else "out_features"
    raise ValueError(
        f"{type(network).__name__} returned {got} for inputs {tuple(inputs.shape)}, "
        f"expected {tuple(shape)}; build it with {name}={shape[1]}"
    )


def _with_context(
    network: nn.Module, contexts: Tensor | None, inputs: Tensor
) -> tuple[Tensor, ...]:
    """The network's inputs (n, C, *spatial) and contexts (n, size), or contexts as channels."""
    size, n = getattr(network, "context_size", 0), len(inputs)
    if contexts is None:
        raise ValueError(
            f"the network takes a context of {size} numbers, and none is given; pass it to "
            "the program, model(x, given=c), or use condition(model, context=c)"
        )
    rows = contexts.reshape(-1, contexts.shape[-1]).to(inputs)
    if n % len(rows):
        raise ValueError(
            f"contexts are of {len(rows)} data and the network is asked about {n}, expected one "
            "for each; give the score the contexts of these data"
        )
    rows = rows.repeat(n // len(rows), 1)
    if size:
        return inputs, rows
    channels = rows.reshape(*rows.shape, *[1] * (inputs.dim() - 2))
    return (torch.cat([inputs, channels.expand(-1, -1, *inputs.shape[2:])], 1),)


def map_channels(inputs: Tensor, log_snr: Tensor, batch: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The arguments of a network of log SNR maps: inputs (n, 2·C, *spatial) and log SNRs (n,).

    The channels after the inputs are λ/10, at most 3 in size: -3 for a dimension that is left out
    (log SNR -∞), and 3 for one that is observed (+∞).

    Args:
        inputs: inputs of the network, (n, C, *spatial), where n counts all batch dimensions.
        log_snr: one number, or one for each datum, (*batch), or maps, (*batch, C, *spatial), with
            sizes of 1 along dimensions that share it.
    """
    event = inputs.shape[1:]
    if log_snr.dim() <= len(batch):
        log_snr = log_snr.expand(batch).reshape(-1, *[1] * len(event))
    else:
        sizes = log_snr.shape[len(batch) :]
        log_snr = log_snr.expand(*batch, *sizes).reshape(-1, *sizes)
    of_each = (log_snr / MAP_UNIT).clamp(-MAP_LIMIT, MAP_LIMIT)
    average = MAP_UNIT * of_each.flatten(1).mean(1)
    channels = of_each.to(inputs).expand(len(inputs), *event)
    return torch.cat([inputs, channels], 1), average.to(inputs)


def project(score: Tensor, y: Tensor, at: Coefficients) -> Tensor:
    r"""The denoiser x̂ (*batch, *event_shape) of a score at y, by its projection on g².

    x̂ = aᵀ Σ^{-1} g² ( s_θ + Σ^{-1} y ) / ( aᵀ Σ^{-1} g² Σ^{-1} a )
    """
    # in float64: near the data s_θ and Σ^{-1} y are large and nearly cancel
    vectors = projection(at) if at.projection is None else at.projection
    of_state, of_score = vectors.unbind(-2)
    x = apply_vector(of_state, y.double()) + apply_vector(of_score, score.double())
    return x.to(y.dtype)


def projection(at: Coefficients) -> Tensor:
    """The vectors u and r, (…, 2, K) in float64, with x̂ = uᵀ y + rᵀ s_θ, see :func:`project`."""
    k = at.marginal.readout.unsqueeze(-1)  # Σ^{-1} a / SNR
    r = at.noise.to(k) @ k
    r = r / ((k.mT @ r) * at.marginal.log_snr.exp().to(k)[..., None, None])
    return torch.cat([at.whitener.mT @ (at.whitener @ r), r], -1).mT


def _importance_time(diffusion: Kernels, u: Tensor) -> tuple[Tensor, Tensor]:
    """The time at the fraction u of the way by F = log(e^b - 1), -λ of VPSDE on the same clock b,
    and db/du there."""
    start = diffusion.clock(diffusion.start_time)
    tau = torch.stack([start, diffusion.clock(diffusion.horizon)])
    low, high = tau + torch.log(-torch.expm1(-tau))  # log(e^τ - 1) without overflow or cancellation
    F = low + u.clamp(0, 1) * (high - low)
    tau = torch.logaddexp(F, torch.zeros_like(F))
    return diffusion.time_at_clock(tau), (high - low) * -torch.expm1(-tau)


def rotated(marginal: Marginal, noise: Tensor) -> Tensor:
    r"""Standard normal η with L η = (y - a x), whose noise of z is the first variable of ``noise``.

    ``z - x = kᵀ L η = e^{-λ/2} uᵀη`` for a unit vector u, and η is the image of ``noise`` under the
    reflection that takes the first axis to u. Two diffusions given the same noise then have the
    same z at the same λ.

    The marginal is at times (n,), or per data dimension; the noise is (n, ≥ K, *event_shape).
    """
    K = marginal.mean.shape[-1]
    u = (marginal.scale_tril.mT @ marginal.readout.unsqueeze(-1)).squeeze(-1)
    u = u * (marginal.log_snr / 2).exp().unsqueeze(-1)
    # Householder's choice of sign: 1 + |u_0| is at least 1, so nothing cancels
    sign = torch.where(u[..., :1] < 0, -1.0, 1.0).to(u)
    v = torch.cat([u[..., :1] + sign, u[..., 1:]], -1)
    reflection = torch.eye(K, dtype=u.dtype, device=u.device) - v[..., :, None] * (
        v / (1 + u[..., :1].abs())
    ).unsqueeze(-2)
    return apply_matrix(-sign.unsqueeze(-1) * reflection, noise[:, :K])


def call_on_state(score: Score, y: Tensor, at: Coefficients) -> Tensor:
    """The network's output for all variables of y (*batch, K, *event_shape), as channels."""
    batch_dim = at.s.dim() or 1
    if y.dim() == batch_dim + 1:
        return score.call_network(y, at.log_snr, batch_dim)
    output = score.call_network(y.flatten(batch_dim, batch_dim + 1), at.log_snr, batch_dim)
    return output.reshape(y.shape)


def check_fit(network: object, train_x: Tensor, *, missing: bool = False) -> None:
    """Raises TypeError or ValueError unless given a network and then data (N, *event_shape) to fit
    a score to; where ``missing``, entries may be NaN if each dimension has some that are not."""
    check_network("network", network, Score, Diffusion)
    check_data("train_x", train_x, missing=missing)
    if train_x.dim() < 2:
        raise ValueError(
            f"train_x has shape {tuple(train_x.shape)}, expected (N, *event_shape); give scalars "
            "the event shape (1,), as x[:, None]"
        )
    empty = train_x.isnan().all(0)
    if bool(empty.any()):
        raise ValueError(
            f"train_x has no value in {int(empty.sum())} of its dimensions, e.g. at "
            f"{tuple(empty.nonzero()[0].tolist())}, expected one at least; leave these out of the "
            "data"
        )
