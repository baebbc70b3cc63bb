"""A check that a network is read as it was trained, by the errors of all readings of its output."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from pyro_mdm.imported.denoiser import Call, ImportedDenoiser, Prediction, tensor_of
from pyro_mdm.imported.ends import errors_by_level
from pyro_mdm.imported.schedules import NoiseSchedule
from pyro_mdm.support.checks import Count, check_data, check_shape, checked_arguments
from pyro_mdm.support.modules import in_eval_mode

__all__ = ["BETTER", "WORSE", "ImportCheck", "check_import"]

MIDDLE = (-3.0, -1.5, 0.0, 1.5, 3.0)
"""The log SNRs, in units of the data's variance, over which readings are compared: elsewhere errors
say more of how long a network was trained than of how it is read."""
BETTER = 0.97
"""The largest ratio of errors, in the geometric mean over ``MIDDLE``, at which another reading
fits better."""
MUCH_BETTER = 0.6
"""The same, where at some log SNR it does not."""
EVEN = 1.02
"""The ratio of errors at a single one of them that counts as even."""
FAULT = 0.95
"""The factor by which each further fault has to lower the error."""
GOOD = 1.1
"""The ratio of an error and a linear denoiser's up to which a reading is named: of a network that
hardly knows the data, any reading may be the best."""
WORSE = 2.0
"""The ratio that no right reading reaches for data of the size of the noise, 1 to the network.
Networks that are trained for seconds have less."""
HIDDEN = -5.0
"""The log SNR, in units of the data's variance, where z says nothing of x."""
PAIRED = 0.6, 1.5
"""The slopes there of x̂ by the noise, in standard deviations, for a velocity between pairs. Without
pairs the slope is 0.1, and half for a network that was trained for seconds."""
NARROW = 0.2
"""The standard deviation of data to the network, below which an error of it is like data."""
FACTORS = 0.25, 0.35, 0.5, 0.71, 1.41, 2.0, 2.83, 4.0
"""Factors of a scale that are tried."""


@dataclass(frozen=True)
class ImportCheck:
    """Errors of an imported denoiser by log SNR, as :func:`check_import` measures them.

    Attributes:
        log_snr: log SNRs, (n,).
        error: mean squared errors of x̂ by the network, (n,), as fractions of the data's variance.
        linear_error: those of the best denoiser that is linear in each dimension alone, (n,).
        ratio: the ratio of both, in the geometric mean over log SNRs where data are half hidden.
        worst: the ratio that no right reading reaches.
        likely: the arguments that fit the data better, in words; None: none do.
        paired: whether the network is the velocity between pairs of noise and data, as by optimal
            transport.

    Example:
        >>> levels, error = torch.tensor([0.0, 2.0]), torch.tensor([0.4, 0.1])
        >>> print(ImportCheck(levels, error, 1.5 * error, 0.67, 2.0, None))
        log SNR   error of the network   of a linear denoiser
           0.00                    0.4                    0.6
           2.00                    0.1                   0.15
    """

    log_snr: Tensor
    error: Tensor
    linear_error: Tensor
    ratio: float
    worst: float
    likely: str | None
    paired: bool = False

    @property
    def is_plausible(self) -> bool:
        """Whether no other reading fits better, and the network knows something of the data."""
        return self.likely is None and not self.paired and self.ratio < self.worst

    def __str__(self) -> str:
        lines = ["log SNR   error of the network   of a linear denoiser"]
        for lam, error, linear in zip(*self._columns(), strict=True):
            mark = "   worse" if error > 1.05 * linear else ""
            lines.append(f"{lam:7.2f}   {error:20.4g}   {linear:20.4g}{mark}")
        if self.likely is not None:
            lines.append(f"the data fit another reading better: {self.likely}")
        elif self.paired:
            lines.append(
                "x̂ follows the noise where there is nothing else: this is the velocity between "
                "pairs of noise and data, as by optimal transport, from which no denoiser follows; "
                "bounds are valid and far off, and samples and densities are not those of its flow"
            )
        elif not self.is_plausible:
            lines.append(
                f"the error is {self.ratio:.3g} times that of a linear denoiser: the network was "
                "trained on other data, hardly trained, or is given its times in another way"
            )
        elif "   worse" in "".join(lines):
            lines.append(
                "no other reading fits better: where it is worse, it was trained too little"
            )
        return "\n".join(lines)

    def _columns(self) -> tuple[list[float], ...]:
        return self.log_snr.tolist(), self.error.tolist(), self.linear_error.tolist()


@torch.no_grad()
@checked_arguments
def check_import(
    denoiser: ImportedDenoiser,
    x: Tensor,
    *,
    context: Tensor | None = None,
    points: Count = 8,
    seed: int = 0,
) -> ImportCheck:
    """Errors of an imported denoiser on data, and the reading of it that fits them better.

    Other readings are other predictions, an output of the other sign, data of another scale, times
    that run the other way or in other units, and every two of these. They are compared where data
    are half hidden (``MIDDLE``), with each other and not with what a well-trained network
    would reach: the best is named if its error is below :data:`BETTER` times the error as imported.

    Args:
        denoiser: the imported denoiser.
        x: data, (n, *event_shape); a hundred are enough.
        context: contexts of the data, (n, context_size), if the network takes some and the denoiser
            is not given them; None: those of the denoiser, or none.
        points: the number of log SNRs, evenly spaced in the range of the network.
        seed: the seed of the noise.

    Returns:
        An :class:`ImportCheck`.

    Raises:
        ValueError: a network whose output is random, and so no function of its input.

    Example:
        >>> from pyro_mdm.imported import from_sigma_denoiser
        >>> from pyro_mdm.networks import MLP
        >>> x = torch.randn(100, 2)
        >>> check = check_import(from_sigma_denoiser(MLP(2), x + 5, 0.01, 50.0), x + 5, points=2)
        >>> check.is_plausible  # an untrained network, whose output is 0
        False
    """
    check_data("x", x)
    check_shape("x", x, denoiser.event_shape or ())
    context = denoiser.network_context if context is None else context
    with in_eval_mode(denoiser):
        return _checked(denoiser, x, context, points, seed)


class _Fault(NamedTuple):
    """A way to read a network wrongly: what would be right, in words, and as arguments."""

    words: str
    arguments: dict[str, object]


class _Reading(NamedTuple):
    """A denoiser that reads the network without some faults."""

    faults: tuple[_Fault, ...]
    denoiser: ImportedDenoiser


def _checked(
    denoiser: ImportedDenoiser, x: Tensor, context: Tensor | None, points: int, seed: int
) -> ImportCheck:
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x)
    variance = float(denoiser.data_variance.mean())
    low, high = denoiser.trained_min.item(), denoiser.trained_max.item()
    edge = (high - low) / (2 * points)
    levels = torch.linspace(low + edge, high - edge, points, dtype=torch.float64)
    middle = torch.tensor(MIDDLE, dtype=torch.float64) - math.log(variance)
    linear = errors_by_level(denoiser.baseline_x_hat, x, noise, middle)

    def x_hat(z: Tensor, log_snr: Tensor, denoiser: ImportedDenoiser = denoiser) -> Tensor:
        given = denoiser if context is None else denoiser.given_context(context)
        return given.x_hat(z, log_snr)

    def errors(reading: _Reading, at: Tensor) -> Tensor:
        try:
            return errors_by_level(partial(x_hat, denoiser=reading.denoiser), x, noise, at)
        except Exception:  # a network may refuse times that it was not trained for
            if not reading.faults:
                raise
            return at * 0 + math.inf

    first, again = (x_hat(x, levels[points // 2]) for _ in range(2))
    # kernels of a GPU may round two calls differently
    if not torch.allclose(first, again, rtol=1e-3, atol=1e-3 * math.sqrt(variance)):
        raise ValueError(
            f"{type(denoiser.network.network).__name__} returned two outputs for one input and "
            "time, expected a function of these: a bound needs one x̂ for each z; take its "
            "guidance by random draws, or its noise, out of call"
        )
    readings = _readings(denoiser)
    # one level after another, so that readings share outputs
    by_level = [torch.cat([errors(r, lam) for r in readings]) for lam in middle.split(1)]
    best, ratio = _best(readings, torch.stack(by_level, 1) / linear)
    unit = denoiser.scale * math.sqrt(variance)  # the data's deviation, to the network
    paired = False
    if denoiser.predicts == "velocity" and unit > NARROW and not best.faults:
        lam = torch.tensor(HIDDEN - math.log(variance), dtype=torch.float64)
        z = x + torch.exp(-lam / 2).to(x) * noise
        slope = float((x_hat(z, lam, readings[0].denoiser) * noise).mean()) / math.sqrt(variance)
        paired = PAIRED[0] < slope < PAIRED[1]
    return ImportCheck(
        levels,
        errors_by_level(x_hat, x, noise, levels) / variance,
        errors_by_level(denoiser.baseline_x_hat, x, noise, levels) / variance,
        ratio,
        WORSE * max(1.0, unit**-2),
        " and ".join(fault.words for fault in best.faults) or None,
        paired,
    )


def _best(readings: Sequence[_Reading], errors: Tensor) -> tuple[_Reading, float]:
    """The reading that fits best, or the first one if none is clearly better, and the mean error of
    the first one.

    A right reading of a good network is better at every log SNR.
    """
    means = errors.log().mean(1).exp()
    costs = means / FAULT ** torch.tensor([len(reading.faults) for reading in readings])
    never_worse = (errors <= EVEN * errors[0]).all(1)
    i = int(costs.argmin())
    much = MUCH_BETTER if not never_worse[i] else BETTER
    if float(costs[i]) > min(much * float(costs[0]), GOOD):
        i = 0
    return readings[i], float(means[0])


def _readings(denoiser: ImportedDenoiser) -> list[_Reading]:
    """The reading as imported, and those without one fault or two of different kinds."""
    call = _CachedCall(denoiser.network.raw_output)
    data, times = [*_of_data(denoiser)], [*_of_times(denoiser.schedule)]
    has_rates = bool(denoiser.schedule.alpha_rate.isfinite().all())
    outputs = [
        _Fault(f"predicts={predicts!r}", {"predicts": predicts})
        for predicts in get_args(Prediction)
        if predicts != denoiser.predicts and (predicts != "velocity" or has_rates)
    ]
    sign = [_Fault("an output of the other sign", {"call": _negative(call)})]
    pairs = [
        pair
        for number in range(3)
        for kinds in itertools.combinations((data, times, outputs, sign), number)
        for pair in itertools.product(*kinds)
    ]
    # those with the same inputs of the network come together
    of_inputs = [fault.words for fault in (*data, *times)]
    pairs.sort(key=lambda pair: [fault.words for fault in pair if fault.words in of_inputs])
    readings = []
    for pair in pairs:
        changes = {"call": call} | {k: v for fault in pair for k, v in fault.arguments.items()}
        readings.append(_Reading(pair, _changed(denoiser, **changes)))
    return readings


def _of_data(denoiser: ImportedDenoiser) -> Iterator[_Fault]:
    """Other data of the network: a x' + b for the data x' as imported."""
    shift, scale = denoiser.shift, denoiser.scale
    for factor in FACTORS:
        words = f"scale={scale * factor:.3g}, {factor:.3g} times what is said"
        yield _Fault(words, {"scale": scale * factor})
    for a, b, words in (
        (2.0, -1.0, "from 0 to 1"),
        (0.5, 0.5, "from -1 to 1"),
        (1 / 127.5, -1.0, "from 0 to 255"),
        (1 / 255, 0.0, "from 0 to 255"),
    ):
        moved = shift - b / (a * scale)
        named = f"shift={float(moved.mean()):g}, scale={a * scale:g}, as of data {words}"
        yield _Fault(named, {"shift": moved, "scale": a * scale})
    unit = 1 / math.sqrt(float(denoiser.data_variance.mean()))
    named = f"shift=the data's mean, scale={unit:g}, as of standardized data"
    yield _Fault(named, {"shift": denoiser.data_mean, "scale": unit})


def _of_times(schedule: NoiseSchedule) -> Iterator[_Fault]:
    """Other times of the network."""

    def with_times(time: Tensor, sign: int, discrete: bool) -> dict[str, object]:
        rates = {"alpha_rate": sign * schedule.alpha_rate, "sigma_rate": sign * schedule.sigma_rate}
        made = NoiseSchedule(time, schedule.alpha, schedule.sigma, discrete=discrete, **rates)
        return {"schedule": made}

    yield _Fault(
        "times that run the other way", with_times(schedule.time.flip(0), -1, schedule.discrete)
    )
    for factor in (0.001,) if schedule.discrete else (0.001, 1000):
        yield _Fault(f"{factor:g} times these times", with_times(schedule.time * factor, 1, False))


def _changed(denoiser: ImportedDenoiser, **changes: Any) -> ImportedDenoiser:
    """Another reading, which has log SNRs beyond its schedule: the last time serves."""
    network, names = denoiser.network, ("schedule", "predicts", "data_mean", "data_variance")
    arguments = {name: getattr(denoiser, name) for name in (*names, "shift", "scale")}
    arguments |= {n: getattr(network, n) for n in ("context_size", "learned_variance")}
    changed = ImportedDenoiser(network.network, **arguments | changes)
    changed.set_trained_range(-math.inf, math.inf)
    changed.autocast_dtype = denoiser.autocast_dtype
    return changed.to(denoiser.data_mean.device)


class _CachedCall:
    """A call of a network that keeps its last output, which several readings share."""

    def __init__(self, output: Call) -> None:
        self.of_inputs = output
        self.output: object = None
        self.inputs: tuple[Tensor, ...] = ()

    def __call__(self, network: nn.Module, *inputs: Tensor) -> object:
        pairs = zip(inputs, self.inputs or inputs, strict=True)
        same = self.inputs and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)
        if not same:
            self.inputs, self.output = inputs, self.of_inputs(*inputs)
        return self.output


def _negative(call: Call) -> Call:
    return lambda network, *inputs: -tensor_of(call(network, *inputs), network)
