"""A check that a network is read as it was trained, by its error and that of a linear denoiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from pyro_mdm.imported.denoiser import Call, ImportedDenoiser, Prediction, tensor_of
from pyro_mdm.imported.schedules import NoiseSchedule
from pyro_mdm.support.checks import check_data, check_shape
from pyro_mdm.support.doors import Count, checked_arguments
from pyro_mdm.support.modules import in_eval_mode

__all__ = ["BETTER", "WORSE", "ImportCheck", "check_import"]


BETTER = 0.98
"""The largest ratio of errors, in the geometric mean over log SNRs, at which another reading fits
better."""
WORSE = 1.05
"""The largest ratio of an error and a linear denoiser's that counts as no worse: both are estimates
by about a hundred data."""


@dataclass(frozen=True)
class ImportCheck:
    """Errors of an imported denoiser by log SNR, as :func:`check_import` measures them.

    Attributes:
        log_snr: log SNRs, (n,).
        error: mean squared errors of x̂ by the network, (n,), as fractions of the data's variance.
        linear_error: those of the best denoiser that is linear in each dimension alone, (n,).
        likely: the arguments that fit the data better, in words; None: none do.

    Example:
        >>> levels, error = torch.tensor([0.0, 2.0]), torch.tensor([0.4, 0.1])
        >>> print(ImportCheck(levels, error, 1.5 * error, None))
        log SNR   error of the network   of a linear denoiser
           0.00                    0.4                    0.6
           2.00                    0.1                   0.15
    """

    log_snr: Tensor
    error: Tensor
    linear_error: Tensor
    likely: str | None

    @property
    def is_plausible(self) -> bool:
        """Whether the network is no worse than the linear denoiser for a bound.

        There an error at log SNR λ is weighted by ``e^λ``.
        """
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

    Other readings are other predictions, an output of the other sign, data of another scale, and
    times that run the other way. The best of them is named if its error, in the geometric mean over
    log SNRs, is below :data:`BETTER` times the error as imported and :data:`WORSE` times that of a
    linear denoiser, and at no log SNR above :data:`WORSE` times the error as imported.

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
        >>> check = check_import(from_sigma_denoiser(MLP(2), x, 0.01, 50.0), x, points=2)
        >>> check.is_plausible  # an untrained network, whose output is 0
        False
    """
    check_data("x", x)
    check_shape("x", x, denoiser.event_shape or ())
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
    # kernels of a GPU may round two calls differently
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
    """Mean squared errors of a denoiser x̂(z, λ) at log SNRs, like these (n,); ∞ where not
    finite."""
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
    changed.set_trained_range(-math.inf, math.inf)  # beyond its schedule the last time serves
    changed.autocast_dtype = denoiser.autocast_dtype
    return changed.to(denoiser.data_mean.device)


def _negative(call: Call | None) -> Call:
    def negative(network: nn.Module, w: Tensor, time: Tensor, *context: Tensor) -> Tensor:
        output = network(w, time, *context) if call is None else call(network, w, time, *context)
        return -tensor_of(output, network)

    return negative
