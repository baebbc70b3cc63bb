"""Scores: networks read as ∇ log q and as x̂, and their diffusion term."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from pyro_mdm import likelihoods, randomness
from pyro_mdm.diffusions.base import Cap, Diffusion, Marginal, UnsupportedDiffusionError, require
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.diffusions.divergence import divergence
from pyro_mdm.diffusions.kernels import inverse_tril
from pyro_mdm.diffusions.matrices import apply_matrix, apply_vector, full_precision
from pyro_mdm.diffusions.sde import check_dispersion
from pyro_mdm.diffusions.simulation import Simulation
from pyro_mdm.networks import MAP_LIMIT, MAP_UNIT
from pyro_mdm.scores.density import AdaptiveDensity
from pyro_mdm.support.checks import (
    check_data,
    check_network,
    check_real,
    check_shape,
    check_weights,
    tensor_device,
)
from pyro_mdm.support.late_checks import check_all_finite, check_finite
from pyro_mdm.support.modules import ExactBuffers, replace
from pyro_mdm.support.settings import Restorable

__all__ = [
    "Number",
    "Score",
    "Times",
    "call_on_state",
    "check_fit",
    "level_of",
    "map_channels",
    "project",
    "projection",
    "rotated",
    "weighted",
]

Number = float | Tensor
"""One number, or a tensor of them."""
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
        """The distribution of the times at which :meth:`diffusion_term` is estimated.

        It is for linear diffusions.

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
    _watched: tuple[Tensor, Tensor] | None = None

    def _drawn(self, n: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Fractions u of the way for n data, (n,) float64, and their weights, None for 1."""
        u = randomness.low_discrepancy(n, device)
        if self.time_density is None or self.times != "adaptive" or not self.training:
            return u, None
        return self.time_density.place(u)

    @contextmanager
    def _watching(self, u: Tensor, weight: Tensor | None) -> Iterator[None]:
        """A block in which the density sees gradients of the network's output for these draws."""
        self._watched = None if weight is None else (u, weight)
        try:
            yield
        finally:
            self._watched = None

    _network_context: Tensor | None = None
    _knows_unknown: bool = False
    autocast_dtype: torch.dtype | None = None
    """The dtype of mixed precision: the network, and nothing else, runs under autocast to it."""

    def __init__(self, network: nn.Module, event_shape: tuple[int, ...] | None = None) -> None:
        super().__init__()
        check_network("network", network, Score, Diffusion)
        self.network = network
        self.event_shape = event_shape
        self.register_module("time_density", None)

    def arguments(self) -> dict[str, Any]:
        return super().arguments() | {"network": self.network}

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"times": self.times}

    def restore(self, saved: dict[str, Any]) -> None:
        self.times = saved["times"]

    def check_diffusion(self, diffusion: Diffusion) -> None:
        """Raises TypeError for a diffusion whose noising paths the score is not made for."""

    @abstractmethod
    def score(self, diffusion: Kernels, y: Tensor, s: Number) -> Tensor:
        """s_θ(y, s), like y (*batch, K, *event_shape), for times s (*batch) or one time for all."""

    def denoise(self, diffusion: Kernels, y: Tensor, s: Number) -> Tensor:
        """The denoiser x̂ (*batch, *event_shape): the expected data given the state y at time s.

        By default it is the projection of g² s_θ, for linear diffusions only.

        Raises:
            TypeError: paths that start at an encoding of the data, at a time other than ε.
        """
        self.check_process(diffusion, 1.0)
        state = y
        if Cap.READOUT not in diffusion.caps:
            at = diffusion.as_tensor(s)
            if not bool((at == diffusion.start_time).all()):  # g² s_θ mixes x with m(x)
                who = f"{type(self).__name__}, asked for x̂ at another time than ε,"
                require(diffusion, Cap.READOUT, who=who, fix="use StateDenoiser")
            state = diffusion.without_displacement(y, y.dim() - 1 - (at.dim() or 1))
        return project(diffusion, self.score(diffusion, y, s), state, s)

    def aim(self, diffusion: Kernels, y: Tensor, s: Number, noise: float) -> Tensor:
        """The point, like x̂, to which the backward process with noise η g² is drawn.

        It is x̂ for every η, unless the drift of noising paths sees the data.

        Raises:
            TypeError: a score of the raw state, which then knows one process alone.
        """
        self.check_process(diffusion, noise)
        return self.denoise(diffusion, y, s)

    def check_process(self, diffusion: Diffusion, noise: float) -> None:
        """Raises TypeError for a score that does not know the backward process with noise η g².

        A score of the raw state knows the process that it was trained for; where the drift sees the
        data, no other process follows from it.
        """
        if self.denoises or diffusion.score_tells(noise):
            return
        raise UnsupportedDiffusionError(
            f"{type(self).__name__} knows one process alone, with the noise that it was trained "
            f"for, not one with {noise:g} times the noise variance of the base of "
            f"{type(diffusion).__name__}; sample with EulerMaruyama(256), or train a denoiser"
        )

    def with_divergence(
        self,
        diffusion: Kernels,
        y: Tensor,
        s: Tensor,
        how: Simulation,
        *,
        create_graph: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """s_θ, like y (batch, K, *event_shape), and ∇·(g² s_θ), (batch,) in float64.

        The part that is large near the data, ``-Σ^{-1} y``, is differentiated in closed form, so
        that probes estimate the network's part alone.

        Args:
            diffusion: diffusion with closed-form kernels.
            y: states, (batch, K, *event_shape), which require gradients.
            s: times, (batch,).
            how: number of probes, and their distribution.
            create_graph: whether both results have derivatives themselves.
        """
        theta = self.score(diffusion, y, s)
        with full_precision(y):
            W = inverse_tril(diffusion.marginal(s).scale_tril)
            added = theta.double() + apply_matrix(W.mT @ W, y.double())
            G = check_dispersion(diffusion, diffusion.dispersion_matrix(s), y)
            of_added = divergence(added, y, G, how, create_graph=create_graph).value
        return theta, of_added - y[0, 0].numel() * diffusion.log_volume_rate(s)

    # -- a part of the dimensions, and differences between data ------------------------------------

    @property
    def groups(self) -> Tensor | None:
        """The column of each dimension of a vector, (d,) int64; None: each dimension is one.

        The dimensions of one column are observed, missing or noised together.
        """
        return None

    def counts(self, x: Tensor) -> Tensor | None:
        """The mask of the dimensions that a bound is about, bool, broadcastable to x; None: all.

        Args:
            x: data, (*batch, *event_shape), see :func:`~pyro_mdm.condition`.
        """
        return None

    def given(self, x: Tensor) -> Score:
        """The score given the observed entries of x (*batch, *event_shape), if there are any.

        It is this score otherwise.
        """
        return self

    @property
    def network_context(self) -> Tensor | None:
        """The contexts that the network receives, (size,) for all data or (*batch, size)."""
        return self._network_context

    def given_context(self, context: Tensor | None, *, knows_unknown: bool = False) -> Any:
        """The score whose network receives contexts.

        A network with a ``context_size`` is called with them; for any other they are channels after
        those of its input, the same for all pixels. See :mod:`pyro_mdm.contexts`.

        Args:
            context: encoded contexts, (size,) for all data or (*batch, size); None: none.
            knows_unknown: whether the network was trained with unknown contexts too.
        """
        return replace(self, _network_context=context, _knows_unknown=knows_unknown)

    def without_context(self) -> Any:
        """The score of data with an unknown context.

        Raises:
            ValueError: no context is given, or the network was never trained without one.
        """
        contexts = self.network_context
        if contexts is None or not self._knows_unknown:
            why = "the score has no context" if contexts is None else "the network always knew it"
            raise ValueError(
                f"the score for an unknown context is needed, and {why}; "
                "train a model with context=Labels(10, dropout=0.1) (--context_dropout 0.1), and "
                "condition it on a context"
            )
        return self.given_context(contexts.new_zeros(contexts.shape[-1]), knows_unknown=True)

    def for_rows(self, rows: Tensor) -> Score:
        """The score of the data at indices (m,).

        It is this score, unless contexts or observations differ between data.
        """
        if self._network_context is None or self._network_context.dim() == 1:
            return self
        contexts = self._network_context.reshape(-1, self._network_context.shape[-1])
        of_rows = contexts[
            rows.to(contexts.device) % len(contexts)
        ]  # also for several copies of these data
        chosen: Score = self.given_context(of_rows, knows_unknown=self._knows_unknown)
        return chosen

    def check_data(self, x: Tensor) -> None:
        """Raises ValueError for data (*batch, *event_shape) that the score does not fit."""

    def default_likelihood(self) -> likelihoods.Likelihood:
        """The decoder p(x | y_ε) that fits this parameterization and costs no network call.

        By default :class:`~pyro_mdm.likelihoods.Gaussian` with a flat prior.
        """
        return likelihoods.Gaussian()

    def diffusion_term(self, diffusion: Kernels, x: Tensor) -> tuple[Tensor, Tensor]:
        """One unbiased estimate of ``½ ∫_ε^T E‖s_θ - ∇log q(y_s|x)‖²_{g²} ds`` for each datum.

        Scores of the raw state are integrated over log volume κ
        (:meth:`~pyro_mdm.diffusions.LinearDiffusion.log_volume`), drawn uniformly and with low
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
        u, weight = self._drawn(len(x), x.device)
        with self._watching(u, weight):
            value, log_snr = self._on_the_way(diffusion, x, u, None, self.times)
        return weighted(value, weight), log_snr.detach()  # for records alone

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
        value, _ = self._on_the_way(diffusion, x, (high - level) / (high - low), noise)
        return value / (high - low).to(value.dtype)

    def log_snr_at(self, diffusion: Kernels, level: Tensor) -> Tensor:
        """λ where :meth:`integrand` is evaluated at ``level``, like it; increasing."""
        high, low = diffusion.max_log_snr, diffusion.terminal_log_snr
        return diffusion.log_snr(diffusion.time_on_the_way((high - level) / (high - low)))

    def _on_the_way(
        self,
        diffusion: Kernels,
        x: Tensor,
        u: Tensor,
        noise: Tensor | None,
        times: Times = "log_volume",
    ) -> tuple[Tensor, Tensor]:
        """A draw of the diffusion term at the fraction u of the way, and λ there.

        The way is that of ``times``, and the integral over u is the diffusion term.
        """
        if times == "vpsde":
            s, clock_rate = _importance_time(diffusion, u)
        else:
            s, clock_rate = diffusion.time_on_the_way(u), None
        marginal, g2 = diffusion.marginal(s), diffusion.clock_noise(s)
        if noise is None:
            shape = (len(x), diffusion.num_variables, *x.shape[1:])
            noise = randomness.normal(shape, x.dtype, x.device)
        else:
            noise = rotated(marginal, noise)
        with full_precision(x):
            W = inverse_tril(marginal.scale_tril)
        noised = diffusion.noised(x, s, noise, marginal, W)
        theta = self.score(diffusion, noised.state, s)
        with full_precision(x):
            error = theta.double() - noised.target
            square = (error * apply_matrix(g2, error)).flatten(1).sum(1)
            if noised.share is not None:
                square = noised.share * square
            if clock_rate is None:
                value = diffusion.on_the_way(square, s, W, g2)
            else:
                value = clock_rate * 0.5 * square
            return value.to(x.dtype), level_of(diffusion, marginal, s)

    # -- the door ----------------------------------------------------------------------------------

    def _values(self, name: str, value: Tensor, log_snr: Number) -> tuple[int, Tensor]:
        """The number of batch dimensions of ``value``, and λ in float64; both checked."""
        check_shape(name, value, self.event_shape or ())
        check_real("log_snr", log_snr)
        # float64, as kernels are; the network receives λ in its own precision
        log_snr = torch.as_tensor(log_snr, dtype=torch.float64, device=value.device)
        if self.event_shape and log_snr.dim() == value.dim() > len(self.event_shape):
            return self._map_values(name, value, log_snr)
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

    def _map_values(self, name: str, value: Tensor, log_snr: Tensor) -> tuple[int, Tensor]:
        """:meth:`_values` for maps of log SNR, (*batch, *event_shape)."""
        assert self.event_shape is not None
        batch_dim = value.dim() - len(self.event_shape)
        fits = all(n in (1, m) for n, m in zip(log_snr.shape, value.shape, strict=True))
        if value.shape[batch_dim:] != self.event_shape or not fits:
            raise ValueError(
                f"log_snr has shape {tuple(log_snr.shape)} and {name} {tuple(value.shape)}, "
                f"expected (*batch, *event_shape) with the event shape {tuple(self.event_shape)}, "
                "or sizes of 1"
            )
        check_finite(name, value)
        check_finite("log_snr", torch.where(log_snr.isinf(), 0.0, log_snr))
        return batch_dim, log_snr

    def checked_state(self, diffusion: Diffusion, y: Tensor, s: Number) -> Tensor:
        """Times in float64, (*batch) or a number for one batch dimension; y is checked too."""
        if not self.serves_nonlinear:
            fix = "use ResidualScore or RawScore"
            require(diffusion, Cap.KERNELS, who=type(self).__name__, fix=fix)
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

    def call_network(
        self,
        inputs: Tensor,
        log_snr: Tensor,
        batch_dim: int,
        factor: int = 1,
        channels: int | None = None,
    ) -> Tensor:
        """The output of the network, (*batch, channels, *spatial).

        For a score with :attr:`maps` the network receives 2 C channels, the dimensions and then the
        log SNR of each, see :func:`map_channels`; its own log SNR is their average.

        Args:
            inputs: inputs of the network, (*batch, C, *spatial).
            log_snr: log SNR, (*batch) or a map.
            batch_dim: number of batch dimensions.
            factor: number of output channels for each input channel.
            channels: number of output channels; None: factor·C.
        """
        batch, event = inputs.shape[:batch_dim], inputs.shape[batch_dim:]
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
            lam = log_snr.to(flat.dtype)
            lam = lam if lam.shape == flat.shape[:1] else lam.expand(batch).reshape(-1)
        flat, *context = self.with_context(flat)
        channels = factor * event[0] if channels is None else channels
        out = self.output((flat.shape[0], channels, *event[1:]), flat, lam, *context)
        # outputs of finite weights are for the caller to judge
        check_all_finite(out, partial(check_weights, self.network))
        if self._watched is not None and self.time_density is not None and out.requires_grad:
            self.time_density.watch(out, *self._watched)
        out = out.to(inputs.dtype)
        return out if batch_dim == 1 else out.reshape(*batch, *out.shape[1:])

    def output(self, shape: Sequence[int], *arguments: Tensor) -> Tensor:
        """The network's output for its own arguments, checked to have this shape."""
        if self.autocast_dtype is None:
            out = self.network(*arguments)
        else:
            with torch.autocast(arguments[0].device.type, dtype=self.autocast_dtype):
                out = self.network(*arguments)
        if not isinstance(out, Tensor) or out.shape != tuple(shape):
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            name = "out_channels" if len(shape) > 2 else "out_features"
            raise ValueError(
                f"{type(self.network).__name__} returned {got} for inputs "
                f"{tuple(arguments[0].shape)}, expected {tuple(shape)}; build it with "
                f"{name}={shape[1]}"
            )
        return out

    def with_context(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """The network's inputs (n, C, *spatial) with contexts: as a tensor (n, size), or as
        channels."""
        size, contexts = getattr(self.network, "context_size", 0), self._network_context
        if contexts is None and not size:
            return (inputs,)
        if contexts is None:
            raise ValueError(
                f"the network takes a context of {size} numbers, and none is given; pass it to "
                "the program, model(x, given=c), or use condition(model, context=c)"
            )
        rows = _rows_of_context(contexts, inputs)
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
        log_snr: log SNR: one number, one for each datum, (*batch), or maps, (*batch, C, *spatial),
            with sizes of 1 along dimensions that share it.
        batch: batch shape.
    """
    event = inputs.shape[1:]
    if log_snr.dim() <= len(batch):
        log_snr = log_snr.expand(batch).reshape(-1, *[1] * len(event))
    else:
        log_snr = log_snr.expand(*batch, *log_snr.shape[len(batch) :])
        log_snr = log_snr.reshape(-1, *log_snr.shape[len(batch) :])
    of_each = (log_snr / MAP_UNIT).clamp(-MAP_LIMIT, MAP_LIMIT)
    average = MAP_UNIT * of_each.flatten(1).mean(1)
    channels = of_each.to(inputs.dtype).expand(len(inputs), *event)
    return torch.cat([inputs, channels], 1), average.to(inputs.dtype)


def _rows_of_context(context: Tensor, inputs: Tensor) -> Tensor:
    """The context of each of the inputs (n, …), (n, size), from (size,) or (*batch, size)."""
    rows, n = context.reshape(-1, context.shape[-1]).to(inputs), len(inputs)
    if n % len(rows):
        raise ValueError(
            f"contexts are of {len(rows)} data and the network is asked about {n}, expected one "
            "for each; give the score the contexts of these data"
        )
    return rows.repeat(n // len(rows), 1)


def project(diffusion: Kernels, score: Tensor, y: Tensor, s: Number) -> Tensor:
    r"""The denoiser x̂ of a score, by its projection on g².

        x̂ = aᵀ Σ^{-1} g² ( s_θ + Σ^{-1} y ) / ( aᵀ Σ^{-1} g² Σ^{-1} a )

    Args:
        diffusion: diffusion with closed-form kernels.
        score: score s_θ(y, s), (*batch, K, *event_shape).
        y: states, (*batch, K, *event_shape).
        s: times, (*batch), or a number for one batch dimension.

    Returns:
        (*batch, *event_shape), in the dtype of y; computed in float64.
    """
    fix = "decode with Gaussian or another likelihood that reads y_ε alone"
    require(diffusion, Cap.KERNELS, who="x̂ by a score", fix=fix)
    with full_precision(y):  # near the data s_θ and Σ^{-1} y are large and nearly cancel
        of_y, r = projection(diffusion.marginal(s), diffusion.noise_covariance(s))
        x = apply_vector(of_y, y.double()) + apply_vector(r, score.double())
        return x.to(y.dtype)


def projection(law: Marginal, g2: Tensor) -> tuple[Tensor, Tensor]:
    """The vectors of :func:`project` that are applied to the state and to the score, (…, K) each.

    Args:
        law: distribution of the state given the data, (…).
        g2: g² at its time, (…, K, K).
    """
    k = law.readout.unsqueeze(-1)  # Σ^{-1} a / SNR
    r = g2 @ k
    r = r / ((k.mT @ r) * law.log_snr.exp()[..., None, None])
    W = inverse_tril(law.scale_tril)
    return (W.mT @ (W @ r)).squeeze(-1), r.squeeze(-1)


def _importance_time(diffusion: Kernels, u: Tensor) -> tuple[Tensor, Tensor]:
    """The time at the fraction u of the way by F = log(e^b - 1), and db/du there, like u.

    F is -λ of VPSDE on the same clock b.
    """
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

    Args:
        marginal: marginal at times (n,), or per data dimension, (n or 1, *event_shape).
        noise: standard normal numbers, (n, ≥ K, *event_shape).
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


def level_of(diffusion: Diffusion, marginal: Marginal, s: Tensor) -> Tensor:
    """λ at times s, like s: a number for all dimensions, that of the reference if they differ."""
    return marginal.log_snr if marginal.log_snr.dim() == s.dim() else diffusion.log_snr(s)


def call_on_state(score: Score, y: Tensor, log_snr: Tensor, batch_dim: int) -> Tensor:
    """The network's output for all variables of y (*batch, K, *event_shape), as channels."""
    if y.dim() == batch_dim + 1:
        return score.call_network(y, log_snr, batch_dim)
    return score.call_network(y.flatten(batch_dim, batch_dim + 1), log_snr, batch_dim).reshape(
        y.shape
    )


def weighted(value: Tensor, weight: Tensor | None) -> Tensor:
    """A value per datum (n,) times its weight; the value alone for None."""
    return value if weight is None else value * weight.to(value.dtype)


def check_fit(network: object, train_x: Tensor, *, missing: bool = False) -> None:
    """Raises TypeError or ValueError unless given a network and then data to fit a score to.

    Args:
        network: a network.
        train_x: training data, (N, *event_shape).
        missing: whether entries may be NaN, as long as each dimension has some that are not.
    """
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
