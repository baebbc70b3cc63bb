"""Diffusions from the settings of a guide, and their ends of log SNR."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import torch

from inference.settings.names import find, make, takes
from inference.settings.options import Guide, SimulatedGuide, StationaryVariance
from models.kinds import kind_of
from pyro_mdm import (
    Diffusion,
    LearnedDiffusion,
    LinearDiffusion,
    NonlinearDiffusion,
    TimeVaryingLearnedDiffusion,
)
from pyro_mdm.diffusions.linear import options_of
from pyro_mdm.diffusions.presets import is_learned

LEARNED_MIN_LOG_SNR = -10.0
"""The default λ(T) of a learned diffusion with a denoiser, whose bound does not fix the clock."""

FOR_LEARNED = (
    *("num_variables", "rank", "learn_beta", "time_varying", "learn_ends", "learn_stationary"),
    *("learned_from", "stationary_variance"),
)
"""The settings of a guide that are for ``learned`` alone."""


def build_diffusion(
    guide: Guide,
    *,
    event_shape: Sequence[int] | None = None,
    simulation: SimulatedGuide | None = None,
) -> Diffusion:
    """The diffusion that the settings of a guide describe.

    Args:
        guide: settings. ``max_log_snr`` is λ at ε, where the decoder takes over, ``min_log_snr`` λ
            at T, nominal for a nonlinear diffusion. A class or function is called with those that
            are given and that it takes; a diffusion is copied. The clock of a linear diffusion is
            scaled to ``min_log_snr`` in any case, or an interpolant cut there.
        event_shape: the shape of a datum, for a guide with a network.
        simulation: settings that replace those of a nonlinear diffusion.

    Raises:
        NameNotFoundError: see :func:`~inference.settings.names.find`.
        TypeError: the name is no diffusion and does not return one.
        ValueError: an option of ``learned`` for another guide, one of simulation for a linear
            diffusion, or an invalid value.
    """
    kind = find("guide", guide.guide)
    diffusion: Diffusion
    diffusion = _learned(guide) if kind is LearnedDiffusion else _other(guide, kind, event_shape)
    if guide.min_log_snr is not None and not kind_of(diffusion).simulated:
        linear = cast(LinearDiffusion, diffusion)
        if linear.cut_time is not None:
            raise ValueError(
                f"--min_log_snr is {guide.min_log_snr:g}, but {guide.guide} is cut at the time "
                f"{linear.cut_time:g}, and the clock would be scaled; leave out --min_log_snr, "
                "or use a guide that is cut at a log SNR"
            )
        if linear.min_log_snr != guide.min_log_snr:
            linear.min_log_snr = guide.min_log_snr
    _set_simulation(guide.guide, diffusion, simulation or SimulatedGuide())
    return diffusion


def _ends(guide: Guide) -> dict[str, float]:
    ends = {"max_log_snr": guide.max_log_snr, "min_log_snr": guide.min_log_snr}
    return {name: value for name, value in ends.items() if value is not None}


def _learned(guide: Guide) -> LinearDiffusion:
    """A learned diffusion, as it starts."""
    family = TimeVaryingLearnedDiffusion if guide.time_varying else LearnedDiffusion
    start = None if guide.learned_from is None else _start(guide, guide.learned_from)
    usual = 2 if guide.num_variables is None else guide.num_variables
    K = usual if start is None else start.num_variables
    options: dict[str, Any] = {"rank": guide.rank, "learn_beta": guide.learn_beta, **_ends(guide)}
    if guide.learn_ends is not None:
        options["learn_ends"] = guide.learn_ends
    if guide.learn_stationary:
        options["learn_stationary"] = True
    if guide.stationary_variance is not None:
        options["stationary_variance"] = _stationary(guide.stationary_variance, K)
    if start is None:
        return family(K, **options)
    options.pop("max_log_snr", None)  # the start has it
    return family.from_diffusion(start, **options)


def _other(guide: Guide, kind: object, event_shape: Sequence[int] | None) -> Diffusion:
    """A diffusion from a class or function."""
    given = {name: getattr(guide, name) for name in FOR_LEARNED}
    given = {k: v for k, v in given.items() if v is not None and v is not False}
    options: dict[str, object] = {**_ends(guide)}
    if takes(kind, "num_variables") and "num_variables" in given:
        options["num_variables"] = given.pop("num_variables")
    if given:
        surplus = ", ".join(f"--{name}" for name in given)
        raise ValueError(f"{surplus} is for --guide learned; {guide.guide} has its own")
    if event_shape is not None and takes(kind, "event_shape"):
        options["event_shape"] = tuple(event_shape)
    return make("guide", guide.guide, kind, Diffusion, options)


def _start(guide: Guide, name: str) -> LinearDiffusion:
    """The diffusion that a learned one starts as."""
    high, low = guide.max_log_snr, guide.min_log_snr
    try:
        start = build_diffusion(Guide(guide=name, max_log_snr=high, min_log_snr=low))
    except (ValueError, TypeError) as error:
        raise type(error)(str(error).replace("--guide", "--learned_from")) from error
    if kind_of(start).simulated:
        raise ValueError(
            f"--learned_from {name} is {title(start)}, which has no Q and D; expected a guide "
            "of Q and D, such as vpsde, cld, malda, alda, hold"
        )
    try:
        options_of(cast(LinearDiffusion, start))
    except TypeError as error:
        raise ValueError(f"--learned_from {name}: {error}") from error
    if guide.num_variables not in (None, start.num_variables):
        raise ValueError(
            f"--num_variables is {guide.num_variables}, but --learned_from {name} has "
            f"{start.num_variables}; leave out --num_variables"
        )
    return cast(LinearDiffusion, start)


def _stationary(value: StationaryVariance, K: int) -> torch.Tensor:
    """Σ_∞ as for :class:`LinearDiffusion`, checked to be of K variables."""
    try:
        variance = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError):  # rows of different length
        variance = None
    if variance is None or tuple(variance.shape) not in ((), (K,), (K, K)):
        raise ValueError(
            f"--stationary_variance is {value}, expected a number, {K} variances or {K} rows of a "
            f"{K}×{K} covariance, x first; K = {K} is that of --num_variables or --learned_from"
        )
    return variance


def _set_simulation(name: str, diffusion: Diffusion, settings: SimulatedGuide) -> None:
    given = {f.name: getattr(settings, f.name) for f in dataclasses.fields(SimulatedGuide)}
    given = {name: value for name, value in given.items() if value is not None}
    if not kind_of(diffusion).simulated:
        if given:
            raise ValueError(
                f"{', '.join(f'--{key}' for key in given)} is for nonlinear diffusions, which are "
                f"simulated; {name} is known in closed form. Leave it out, or wrap the diffusion "
                "in pyro_mdm.Simulated"
            )
        return
    simulated = cast(NonlinearDiffusion, diffusion)
    try:
        simulated.simulation = dataclasses.replace(simulated.simulation, **given)
        simulated.simulation.solver(simulated)
    except ValueError as error:
        if given:
            options = ", ".join(f"--{key} {value}" for key, value in given.items())
            raise ValueError(f"{options}: {error}") from error
        raise


# -- ends ------------------------------------------------------------------------------------------


def give_learned_end(diffusion: Diffusion) -> bool:
    """Scale the clock of a learned diffusion without a set λ(T) to :data:`LEARNED_MIN_LOG_SNR`.

    Returns whether it did; a diffusion that is not learned, or is cut at a time, is not changed.
    """
    if not is_learned(diffusion) or diffusion.min_log_snr is not None:
        return False
    if diffusion.cut_time is not None:
        return False
    diffusion.min_log_snr = LEARNED_MIN_LOG_SNR
    return True


def check_ends(guide: Guide, diffusion: Diffusion) -> None:
    """Raise ValueError unless a diffusion has the ends of log SNR of the settings."""
    for option, wanted in (("max", guide.max_log_snr), ("min", guide.min_log_snr)):
        if wanted is None:
            continue
        start = option == "max"
        actual = diffusion.max_log_snr if start else diffusion.terminal_log_snr.item()
        if abs(actual - wanted) > 1e-6:  # beyond the rounding of a time that is found for a log SNR
            side = "start" if start else "end"
            raise ValueError(
                f"--{option}_log_snr is {wanted:g}, but {guide.guide} sets its own {side}, log SNR "
                f"{actual:.4g}; leave out --{option}_log_snr, or use a guide that takes "
                f"{option}_log_snr"
            )


def title(diffusion: Diffusion) -> str:
    """The class of a diffusion and its K, for messages."""
    return f"{type(diffusion).__name__} (K = {diffusion.num_variables})"
