"""The likelihood of a model by a chosen method, and bounds of several models at the same draws."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import singledispatch
from typing import TypedDict

import torch
from torch import Tensor
from typing_extensions import Unpack

from pyro_mdm.diffusions.base import Cap, Diffusion
from pyro_mdm.elbo import check_programs
from pyro_mdm.evaluation.closed_form import ClosedFormComparison, EstimateSettings, Pair, Share
from pyro_mdm.evaluation.estimates import FEWEST, Comparison, Estimate, Weighted
from pyro_mdm.evaluation.importance import importance_weighted, probability_flow
from pyro_mdm.guide import DiffusionGuide
from pyro_mdm.model import DiffusionModel
from pyro_mdm.paths.likelihood import Method
from pyro_mdm.scores.denoiser import DenoiserScore
from pyro_mdm.support.checks import Count, check_number, checked_arguments
from pyro_mdm.support.modules import evaluating

__all__ = [
    "METHODS",
    "EstimateOptions",
    "compare",
    "compare_paths",
    "evidence_lower_bound",
    "log_likelihood",
]


class EstimateOptions(TypedDict, total=False):
    """The options of :func:`compare`."""

    batch_size: Count
    seed: int
    control_variate: bool
    baseline: DenoiserScore | None
    bins: Count
    adapt: bool
    progress: bool
    distributed: bool


@checked_arguments
def evidence_lower_bound(
    model: DiffusionModel,
    guide: DiffusionGuide,
    x: Tensor,
    *,
    draws: Count = 4,
    half_width: float | None = None,
    **options: Unpack[EstimateOptions],
) -> Estimate:
    """Estimate the evidence lower bound of each datum and its mean.

    Args:
        model: generative program over a diffusion, linear or not.
        guide: noising program over the same diffusion.
        x: data in model space, (n, *event_shape), n ≥ 8; NaN where an entry is missing, for a
            denoiser with maps: the bound is then on the density of the entries that are present.
        draws: number of network evaluations per datum for the diffusion term, and of draws of the
            decoder; with ``half_width`` the largest number.
        half_width: half-width of the bound's 95% Monte Carlo interval, in bits/dim, for which draws
            are enough, by a pilot that is no part of the estimate. None: all ``draws``.
        options: those of :func:`compare`.

    Returns:
        :class:`Estimate`, in nats per datum.

    Raises:
        RuntimeError: ``distributed`` without a process group.
        ValueError: fewer than 8 data or 1 draw, a half-width that is not positive, or programs over
            different diffusions.
    """
    pair = {"model": (model, guide)}
    return compare(pair, x, draws=draws, half_width=half_width, **options).estimates["model"]


METHODS: dict[str, Callable[..., Estimate | Weighted]] = {
    "elbo": evidence_lower_bound,
    "importance": importance_weighted,
    "flow": probability_flow,
}
"""The methods of :func:`log_likelihood` by name."""


@checked_arguments
def log_likelihood(
    model: DiffusionModel,
    guide: DiffusionGuide,
    x: Tensor,
    *,
    method: Method = "elbo",
    **options: object,
) -> Estimate | Weighted:
    """Estimate log p(x) of each datum and its mean by one of three methods.

    Each method has a model of its own, so no order follows from their numbers; they coincide where
    the score is exact.

    Args:
        model: generative program.
        guide: noising program over the same diffusion.
        x: data in model space, (n, *event_shape).
        method: name of the method. ``"elbo"``: the bound of the SDE
            (:func:`evidence_lower_bound`, the default); ``"importance"``, the chain on a grid by
            importance weights over its paths (:func:`importance_weighted`); ``"flow"``, the
            probability-flow ODE and the decoder (:func:`probability_flow`).
        options: keyword arguments of the method's function.

    Returns:
        An :class:`Estimate` for ``"elbo"``, else a :class:`~pyro_mdm.evaluation.Weighted`; both
        have ``bits_per_dim``, its standard error, and the values of each datum.

    Raises:
        TypeError: an option that the method does not have.
        ValueError: an unknown method; else as for the function.
    """
    function = METHODS[method]
    names = [*inspect.signature(function).parameters][3:]
    if "options" in names:
        names[-1:] = EstimateOptions.__annotations__
    if unknown := [name for name in options if name not in names]:
        raise TypeError(
            f"{unknown[0]} is no option of method {method!r}, which has {', '.join(names)}"
        )
    return function(model, guide, x, **options)


@checked_arguments
def compare(
    programs: Mapping[str, Pair],
    x: Tensor,
    *,
    draws: Count = 64,
    half_width: float | None = None,
    **options: Unpack[EstimateOptions],
) -> Comparison:
    """Estimate the bounds of several models on the same data at the same draws.

    Args:
        programs: pairs (model, guide) by name; scores and diffusions may be of any kind.
        x: data in model space, (n, *event_shape), n ≥ 8.
        draws: number of network evaluations per datum and model for the diffusion term; with
            ``half_width`` the largest number.
        half_width: half-width of every 95% Monte Carlo interval, of bounds and differences, in
            bits/dim, as for :func:`evidence_lower_bound`; None: all ``draws``.
        options: further settings by name. ``batch_size`` is the number of data per network call,
            256 by default, and ``seed`` that of the noise, which all models share. ``baseline`` is
            a denoiser fitted to such data, whose baseline is the control variate, by default the
            first score that is a denoiser; ``control_variate=False`` uses none. ``bins`` is the
            number of cells of noise level, 20 by default; with ``adapt=False`` the density of noise
            levels does not follow earlier draws. ``progress`` shows the progress. ``distributed``
            shares the network calls among the processes of torch.distributed's default group: all
            must make the same call, and all get the same estimate.

    Returns:
        :class:`Comparison`, with every estimate and every difference first − second.

    Raises:
        RuntimeError: ``distributed`` without a process group.
        ValueError: as for :func:`evidence_lower_bound`; no model, or models of different event
            shapes.
    """
    _check(programs, x, half_width)
    programs = {name: (m.for_present(x)[0], guide) for name, (m, guide) in programs.items()}
    x = torch.where(x.isnan(), 0, x)  # a number where an entry is missing
    share = Share.from_group(x.device) if options.get("distributed") else Share(x.device)
    asked = EstimateSettings(draws, half_width, share, **options)
    models = [model for model, _ in programs.values()]
    linear = {n: pair for n, pair in programs.items() if Cap.KERNELS in pair[0].diffusion.caps}
    latent = any(Cap.NO_CONTEXT not in model.diffusion.caps for model in models)
    devices = [x.device] if x.device.type == "cuda" else []
    with evaluating(*models), torch.random.fork_rng(devices, enabled=latent):
        if len(linear) == len(programs):
            return ClosedFormComparison(programs, x, asked).until()
        estimated = None
        if linear:  # it has half of the variance of a difference
            width = None if half_width is None else half_width / math.sqrt(2)
            estimated = ClosedFormComparison(linear, x, replace(asked, half_width=width)).until()
        others = (model.diffusion for model in models if Cap.KERNELS not in model.diffusion.caps)
        return compare_paths(next(others), programs, x, estimated, asked)


@singledispatch
def compare_paths(
    diffusion: Diffusion,
    programs: Mapping[str, Pair],
    x: Tensor,
    linear: Comparison | None,
    asked: EstimateSettings,
) -> Comparison:
    """The comparison of several models, at least one with a diffusion without closed form.

    Dispatched on that diffusion. Register a function for a kind of your own that is neither
    :class:`~pyro_mdm.diffusions.Kernels` nor simulated.

    Args:
        diffusion: the first diffusion without a closed form.
        programs: pairs (model, guide) by name, of all models.
        x: data in model space, (n, *event_shape).
        linear: comparison of the programs in closed form; None: there are none.
        asked: the other arguments of :func:`compare`.
    """
    raise NotImplementedError(
        f"no evaluation is registered for {type(diffusion).__name__}; see compare_paths"
    )


def _check(programs: Mapping[str, Pair], x: Tensor, half_width: float | None) -> None:
    if not programs:
        raise ValueError(
            "programs is {}, expected at least one (model, guide) by name; e.g. "
            '{"cld": (model, guide)}'
        )
    if half_width is not None:
        check_number("half_width", half_width, "a positive number of bits/dim", positive=True)
    for name, (model, guide) in programs.items():
        check_programs(model, guide)
        if model.times is not None:
            raise ValueError(
                f"{name} is a chain on a grid, expected a model in continuous time; leave out "
                "times, or use pyro_mdm.bound"
            )
        model.check_data(x)
        if x.dim() != len(model.event_shape) + 1 or len(x) < FEWEST:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, expected (n, *event_shape) with n at least "
                f"{FEWEST} data for a standard error; use pyro_mdm.bound for fewer"
            )
