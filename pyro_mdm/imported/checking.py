"""Whether a network was read as it was trained: its error beside that of a linear denoiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from pyro_mdm.imported.denoiser import Call, ImportedDenoiser, Prediction, tensor_of
from pyro_mdm.imported.schedules import NoiseSchedule
from pyro_mdm.support.checks import check_data
from pyro_mdm.support.modules import in_eval_mode

__all__ = ["BETTER", "WORSE", "ImportCheck", "check_import"]


BETTER = 0.98
"""The part of an error, in the geometric mean over log SNRs, below which another reading fits."""
WORSE = 1.05
"""The errors of linear denoisers that an error may be; these are errors of a hundred data."""


@dataclass(frozen=True)
class ImportCheck:
    """Errors of an imported denoiser by log SNR, as :func:`check_import` measures them.

    Attributes:
        log_snr: log SNRs, (n,).
        error, linear_error: mean squared errors of x̂ by the network, and by the best denoiser that
            sees each dimension alone and is linear, (n,), in parts of the data's variance.
        likely: what would fit the data better than what was said of the network; None: nothing.
    """

    log_snr: Tensor
    error: Tensor
    linear_error: Tensor
    likely: str | None

    @property
    def is_plausible(self) -> bool:
        """Whether the network is no worse than the linear denoiser for a bound, in which an error
        at log SNR λ counts e^λ times."""
        weight = self.log_snr.exp()
        return bool((weight * self.error).sum() < WORSE * (weight * self.linear_error).sum())

    def __str__(self) -> str:
        lines = ["log SNR   error of the network   of a linear denoiser"]
        for lam, error, linear in zip(*self._columns(), strict=True):
            mark = "   worse" if error > WORSE * linear else ""
            lines.append(f"{lam:7.2f}   {error:20.4g}   {linear:20.4g}{mark}")
        if self.likely is not None:
            lines.append(f"the data fit another reading better: {self.likely}")
        elif not self.is_plausible:
            lines.append(
                "the network is worse than a linear denoiser: it was trained too little or on "
                "other data, or is given its times in another way"
            )
        return "\n".join(lines)

    def _columns(self) -> tuple[list[float], ...]:
        return self.log_snr.tolist(), self.error.tolist(), self.linear_error.tolist()


@torch.no_grad()
def check_import(
    denoiser: ImportedDenoiser,
    x: Tensor,
    *,
    context: Tensor | None = None,
    points: int = 8,
    seed: int = 0,
) -> ImportCheck:
    """Errors of an imported denoiser on data, and what else it may have been trained for.

    Tried are other predictions, an output of the other sign, data of another scale, and times that
    run the other way. One of them is named if its error is less, in the geometric mean over log
    SNRs, than :data:`BETTER` times that of what was said and :data:`WORSE` times that of a linear
    denoiser, and nowhere more than :data:`WORSE` times that of what was said.

    Args:
        x: data (n, *event_shape); a hundred are enough.
        context: their contexts, if the network has some and the denoiser is not given them.
        points: the number of log SNRs, evenly spaced in the range of the network.
        seed: the seed of the noise.

    Raises:
        ValueError: a network that draws: its output is no function of its input.
    """
    check_data("x", x)
    context = denoiser.network_context if context is None else context
    with in_eval_mode(denoiser):
        return _checked(denoiser, x, context, points, seed)


def _checked(
    denoiser: ImportedDenoiser, x: Tensor, context: Tensor | None, points: int, seed: int
) -> ImportCheck:
    asked = denoiser if context is None else denoiser.given_context(context)
    low, high = denoiser.trained_min.item(), denoiser.trained_max.item()
    edge = (high - low) / (2 * points)
    levels = torch.linspace(low + edge, high - edge, points, dtype=torch.float64)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x)
    variance = float(denoiser.data_variance.mean())
    middle = levels[points // 2]
    first, again = (asked.x_hat(x[:4], middle) for _ in range(2))
    if not torch.allclose(first, again, rtol=1e-3, atol=1e-3 * math.sqrt(variance)):
        raise ValueError(
            f"{type(denoiser.network.network).__name__} returned two outputs for one input and "
            "time, expected a function of these: a bound needs one x̂ for each z; take its "
            "guidance by random draws, or its noise, out of call"
        )
    error = _errors(asked.x_hat, x, levels, noise) / variance
    linear = _errors(denoiser.baseline_x_hat, x, levels, noise) / variance
    likely = None
    best = min(float((BETTER * error).log().mean()), float((WORSE * linear).log().mean()))
    for name, other in _others(denoiser):
        other = other if context is None else other.given_context(context)
        others = _errors(other.x_hat, x, levels, noise) / variance
        if (mean := float(others.log().mean())) < best and bool((others <= WORSE * error).all()):
            best, likely = mean, name
    return ImportCheck(levels, error, linear, likely)


def _errors(
    x_hat: Callable[[Tensor, Tensor], Tensor], x: Tensor, levels: Tensor, noise: Tensor
) -> Tensor:
    """Mean squared errors of a denoiser x̂(z, λ) at log SNRs (n,), like these."""
    errors = []
    for lam in levels.to(x.device):
        z = x + torch.exp(-lam / 2).to(x.dtype) * noise
        errors.append((x_hat(z, lam) - x).double().square().mean())
    by_level = torch.stack(errors).cpu()
    return by_level.where(by_level.isfinite(), math.inf)


def _others(denoiser: ImportedDenoiser) -> Iterator[tuple[str, ImportedDenoiser]]:
    """Other readings of the network, in words."""
    schedule, network = denoiser.schedule, denoiser.network
    for predicts in get_args(Prediction):
        has_rates = bool(schedule.alpha_rate.isfinite().all())
        if predicts != denoiser.predicts and (predicts != "velocity" or has_rates):
            yield f"predicts={predicts!r}", _changed(denoiser, predicts=predicts)
    yield "an output of the other sign", _changed(denoiser, call=_negative(network.call))
    for factor, words in ((2.0, "twice"), (0.5, "half")):
        scale = denoiser.scale * factor
        yield f"scale={scale:g}, {words} what is said", _changed(denoiser, scale=scale)
    for shift, factor, words in ((0.5, 2.0, "0 to 1"), (-1.0, 0.5, "-1 to 1")):
        yield (
            f"shift={shift:g}, scale={denoiser.scale * factor:g}, as of data from {words}",
            _changed(denoiser, shift=shift, scale=denoiser.scale * factor),
        )
    backwards = NoiseSchedule(
        schedule.time.flip(0),
        schedule.alpha,
        schedule.sigma,
        discrete=schedule.discrete,
        alpha_rate=-schedule.alpha_rate,
        sigma_rate=-schedule.sigma_rate,
    )
    yield "times that run the other way", _changed(denoiser, schedule=backwards)


def _changed(denoiser: ImportedDenoiser, **changes: Any) -> ImportedDenoiser:
    network = denoiser.network
    arguments = {
        "schedule": denoiser.schedule,
        "predicts": denoiser.predicts,
        "data_mean": denoiser.data_mean,
        "data_variance": denoiser.data_variance,
        "shift": denoiser.shift,
        "scale": denoiser.scale,
        "call": network.call,
        "context_size": network.context_size,
        "learned_variance": network.learned_variance,
    }
    changed = ImportedDenoiser(network.network, **arguments | changes)
    changed.set_trained_range(-math.inf, math.inf)  # the last of its times serves
    changed.autocast_dtype = denoiser.autocast_dtype
    return changed.to(denoiser.data_mean.device)


def _negative(call: Call | None) -> Call:
    def negative(network: nn.Module, w: Tensor, time: Tensor, *context: Tensor) -> Tensor:
        output = network(w, time, *context) if call is None else call(network, w, time, *context)
        return -tensor_of(output, network)

    return negative
