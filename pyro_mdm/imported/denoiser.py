"""A denoiser by a network that was trained elsewhere, for every linear diffusion."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypedDict, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from pyro_mdm.diffusions.base import full_precision, with_event_dims
from pyro_mdm.imported.schedules import NoiseSchedule, SchedulePoint
from pyro_mdm.scores.base import Number
from pyro_mdm.scores.denoiser import Denoiser, moments
from pyro_mdm.support.checks import check_data, check_instance, checked_arguments, describe
from pyro_mdm.support.settings import Restorable

__all__ = [
    "Call",
    "ImportOptions",
    "ImportedDenoiser",
    "Prediction",
    "TimedNetwork",
    "tensor_of",
]

Prediction = Literal["noise", "data", "v", "score", "velocity"]
"""The prediction of a network for w = α x + σ ε: ε, x, α ε - σ x, ∇ log q(w), or α' x + σ' ε."""
TimeInput = Literal["first", "second", "column"]
"""The place of the time in the call of a network."""
Call = Callable[..., object]
"""The function that calls a network: ``call(network, w, time)``, or with its context as a fourth
argument."""


D = TypeVar("D", bound="ImportedDenoiser")


class TimedNetwork(Restorable, nn.Module):
    """A network that was trained elsewhere, called with the times that it was trained with.

    Args:
        network: the network.
        call: the function that calls it, with three arguments or, with a context, four:
            ``call(network, w, time)``; None: the network is called with both, and its context.
        time: the place of the time where no ``call`` is given: ``"second"``, ``"first"``, or
            ``"column"``, the last one of vectors w, (n, d + 1), in one argument.
        context_size: the size of its context; 0: no context.
        learned_variance: whether its output has twice the channels, of which the first half is the
            prediction.

    Example:
        >>> from pyro_mdm.networks import MLP
        >>> timed = TimedNetwork(MLP(2), call=lambda network, w, time: network(w, time / 1000))
        >>> timed(torch.randn(5, 2), torch.full((5,), 10.0)).shape
        torch.Size([5, 2])
    """

    discrete = False
    """Whether its times are whole numbers; its denoiser sets it."""

    @checked_arguments
    def __init__(
        self,
        network: nn.Module,
        *,
        call: Call | None = None,
        time: TimeInput = "second",
        context_size: int = 0,
        learned_variance: bool = False,
    ) -> None:
        super().__init__()
        self.network, self.call, self.time = network, call, time
        self.context_size, self.learned_variance = context_size, learned_variance

    def forward(self, w: Tensor, time: Tensor, *context: Tensor) -> Tensor:
        """The prediction, like w.

        Args:
            w: noised data, (n, *event_shape).
            time: times, (n,), floating.
            context: contexts, (n, context_size), if the network has some.

        Raises:
            TypeError, ValueError: an output that is no tensor, or of another shape.
        """
        w = w.to(next((p.dtype for p in self.network.parameters()), w.dtype))
        # in the network's precision, but no less than single
        dtype = torch.long if self.discrete else torch.promote_types(w.dtype, torch.float)
        time = time.to(dtype)
        output = tensor_of(self.raw_output(w, time, *context), self.network)
        if output.dim() != w.dim():
            raise ValueError(
                f"{type(self.network).__name__} returned {tuple(output.shape)} for inputs "
                f"{tuple(w.shape)}, expected a tensor like these"
            )
        if self.learned_variance:
            if output.shape[1] != 2 * w.shape[1]:
                raise ValueError(
                    f"{type(self.network).__name__} returned {tuple(output.shape)} for inputs "
                    f"{tuple(w.shape)}, expected twice the channels with learned_variance=True"
                )
            output = output[:, : w.shape[1]]
        elif output.shape[1] == 2 * w.shape[1] and output.shape[2:] == w.shape[2:]:
            raise ValueError(
                f"{type(self.network).__name__} returned {tuple(output.shape)} for inputs "
                f"{tuple(w.shape)}, twice the channels; if the second half is a learned variance, "
                "give learned_variance=True"
            )
        return output

    def raw_output(self, w: Tensor, time: Tensor, *context: Tensor) -> object:
        """What the network returns; arguments as for :meth:`forward`, in its precision."""
        if self.call is not None:
            return self.call(self.network, w, time, *context)
        if self.time == "first":
            return self.network(time, w, *context)
        if self.time == "second":
            return self.network(w, time, *context)
        if w.dim() != 2:
            raise ValueError(
                f"time is 'column', and w has shape {tuple(w.shape)}, expected vectors, (n, d); "
                "use 'first' or 'second', or give call"
            )
        return self.network(torch.cat([w, time[:, None].to(w)], 1), *context)


def tensor_of(output: object, network: nn.Module) -> Tensor:
    """The tensor in a network's output.

    Args:
        output: a tensor, a tuple or list that begins with one, or an object with one as ``sample``
            or, as a distribution, as ``mean``.
        network: the network, for the message.

    Raises:
        TypeError: another output.
    """
    first = output[0] if isinstance(output, tuple | list) and output else output
    for tensor in (first, getattr(first, "sample", None), getattr(first, "mean", None)):
        if isinstance(tensor, Tensor):
            return tensor
    raise TypeError(
        f"{type(network).__name__} returned {describe(output)}, expected a tensor, a tuple that "
        "begins with one, or an object with `sample` or `mean`; give call= a function of the "
        "network, w and the time that returns the tensor"
    )


class ImportOptions(TypedDict, total=False):
    """Options of :class:`ImportedDenoiser` beside the network, its schedule and prediction."""

    shift: Number
    scale: float
    call: Call | None
    time: TimeInput
    context_size: int
    learned_variance: bool


class ImportedDenoiser(Denoiser):
    r"""A denoiser x̂(z, λ) by a network that was trained for a noise schedule of its own.

    ``z = x + e^{-λ/2} ε`` is sufficient for every linear diffusion, so that a network of any of
    them serves all: it is called with ``w = α (z - shift) scale``, at the time where its schedule
    has the log SNR ``λ - 2 log(scale)``, and x̂ follows from its prediction. Whatever the network
    is, x̂ is a function of z and λ, and so a bound by it is a bound.

    Log SNRs beyond those of the schedule are refused; give a diffusion
    :func:`~pyro_mdm.imported.best_ends`.

    Args:
        network: the network, ``network(w, time)`` for w, (n, *event_shape), and times, (n,). It
            returns a tensor like w, a tuple that begins with one, or an object with one as
            ``sample`` or ``mean``.
        schedule: the schedule that it was trained for.
        predicts: the prediction that it was trained for.
        data_mean: the mean of x, a number or (*event_shape), for the baseline.
        data_variance: the variance of x, a number or (*event_shape), for the baseline.
        shift: the shift of the network's data, (x - shift) scale, in units of x: a number or a
            tensor that broadcasts to the event shape.
        scale: the scale of the network's data, a positive number.
        call, time, context_size, learned_variance: as for :class:`TimedNetwork`.

    Raises:
        ValueError: a velocity of a schedule without rates, a scale that is not positive, an output
            of another shape, a log SNR outside the schedule's range.

    Example:
        >>> from pyro_mdm import VPSDE
        >>> from pyro_mdm.networks import MLP
        >>> schedule = NoiseSchedule.from_betas(torch.linspace(1e-4, 0.02, 1000))
        >>> denoiser = ImportedDenoiser.fit(MLP(2), torch.randn(100, 2), schedule, "noise")
        >>> diffusion = VPSDE(max_log_snr=9.0)
        >>> denoiser.x_hat(torch.randn(5, 2), diffusion.max_log_snr).shape
        torch.Size([5, 2])
    """

    network: TimedNetwork
    schedule: NoiseSchedule
    shift: Tensor

    @checked_arguments
    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        predicts: Prediction,
        *,
        data_mean: Number = 0.0,
        data_variance: Number = 1.0,
        shift: Number = 0.0,
        scale: float = 1.0,
        call: Call | None = None,
        time: TimeInput = "second",
        context_size: int = 0,
        learned_variance: bool = False,
    ) -> None:
        if predicts == "velocity" and not bool(schedule.alpha_rate.isfinite().all()):
            raise ValueError(
                "predicts is 'velocity', dα/dt x + dσ/dt ε, and the schedule has no rates; give it "
                "alpha_rate and sigma_rate, or make it by from_functions"
            )
        if not (scale > 0 and math.isfinite(scale)):
            raise ValueError(f"scale is {scale}, expected a positive number")
        if not isinstance(network, TimedNetwork):
            network = TimedNetwork(
                network,
                call=call,
                time=time,
                context_size=context_size,
                learned_variance=learned_variance,
            )
        network.discrete = schedule.discrete
        super().__init__(network, data_mean, data_variance)
        self.schedule, self.predicts, self.scale = schedule, predicts, float(scale)
        shift = torch.as_tensor(shift, dtype=torch.float64)
        event = self.event_shape
        if event is not None and shift.dim() not in (0, len(event)):
            raise ValueError(
                f"shift has shape {tuple(shift.shape)}, expected a number, or as many dimensions "
                f"as the event shape {event}; that of channels has the shape (C, 1, 1)"
            )
        self.register_buffer("shift", shift)
        low, high = schedule.range
        # the noise of w/α = (z - shift) scale has scale² times the variance of that of z
        more = 2 * math.log(scale)
        self.set_trained_range(low + more, high + more)

    @classmethod
    @checked_arguments
    def fit(  # type: ignore[override]
        cls,
        network: nn.Module,
        train_x: Tensor,
        schedule: NoiseSchedule,
        predicts: Prediction,
        *,
        floor: float = 1e-3,
        **options: Unpack[ImportOptions],
    ) -> ImportedDenoiser:
        """The denoiser whose baseline has the moments of training data.

        Args:
            network, schedule, predicts: as for :class:`ImportedDenoiser`.
            train_x: data, (N, *event_shape), as x, not as the network sees them.
            floor: the least variance of a dimension, as a fraction of the average over dimensions.
            options: other arguments of :class:`ImportedDenoiser`.

        Raises:
            TypeError, ValueError: as for the class; data of another shape.
        """
        check_instance("network", network, nn.Module, "pass the trained network itself")
        check_data("train_x", train_x)
        if train_x.dim() < 2:
            raise ValueError(
                f"train_x has shape {tuple(train_x.shape)}, expected (N, *event_shape); give "
                "scalars the event shape (1,), as x[:, None]"
            )
        mean, variance = moments(train_x)
        least = floor * variance.mean()
        denoiser = cls(
            network,
            schedule,
            predicts,
            data_mean=mean,
            data_variance=variance.clamp_min(least),
            **options,
        )
        return denoiser.to(train_x.device)

    def given_context(self: D, context: Tensor | None, *, knows_unknown: bool = False) -> D:
        """The denoiser given a context, as for every score.

        Args:
            context: contexts, (*batch, context_size); None: no context.
            knows_unknown: whether the network was trained without contexts too.

        Raises:
            ValueError: a context for a network without ``context_size``.
        """
        if context is not None and not self.network.context_size:
            raise ValueError(
                "a context is given, and the network takes none; make the denoiser with "
                "context_size and call, a function of the network, w, the time and the context"
            )
        return super().given_context(context, knows_unknown=knows_unknown)

    def x_hat(self, z: Tensor, log_snr: Number) -> Tensor:
        batch_dim, lam = self._values("z", z, log_snr, trained=True)
        with full_precision(z):
            at = self.schedule.at(lam.double() - 2 * math.log(self.scale))
            dtype = torch.promote_types(z.dtype, torch.float)  # whole times are exact in it
            centered = z.to(dtype) - self.shift.to(dtype)
            w = with_event_dims(self.scale * at.alpha, z).to(dtype) * centered
        F = self.call_network(w, at.time, batch_dim)
        with full_precision(z):
            skip, out = (
                c if isinstance(c, float) else with_event_dims(c, z).to(dtype)
                for c in self._coefficients(at)
            )
            return (skip * centered + out * F + self.shift.to(dtype)).to(z.dtype)

    def _coefficients(self, at: SchedulePoint) -> tuple[Tensor | float, Tensor | float]:
        """c and d of x̂ - shift = c (z - shift) + d F, with F the network's output: numbers, or
        float64 of the shape of the log SNRs."""
        alpha, sigma, scale = at.alpha, at.sigma, self.scale
        if self.predicts == "data":
            return 0.0, 1 / scale
        if self.predicts == "noise":  # α x̂ = w - σ ε̂, divided by α
            return 1.0, -sigma / (alpha * scale)
        if self.predicts == "score":
            return 1.0, sigma**2 / (alpha * scale)
        if self.predicts == "v":
            square = alpha**2 + sigma**2
            return alpha**2 / square, -sigma / (square * scale)
        slope = at.sigma_rate * alpha - at.alpha_rate * sigma
        return at.sigma_rate * alpha / slope, -sigma / (slope * scale)
