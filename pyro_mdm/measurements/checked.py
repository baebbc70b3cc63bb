"""Checks of observations and of their noise, before a measurement."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_mdm.measurements.operators import LARGEST_MATRIX, LinearOperator, Operator
from pyro_mdm.support.checks import check_finite, describe, real_tensor

__all__ = ["check_exact", "checked_obs", "checked_variance"]

SINGULAR = 1e-10
"""The ratio of a singular value to the largest below which H counts as singular."""


def checked_obs(obs: object, shape: tuple[int, ...]) -> Tensor:
    """Observations, checked, in float64, (*shape) or (n, *shape).

    Args:
        obs: observations.
        shape: the shape of those of a datum.

    Raises:
        TypeError, ValueError: no numbers, another shape, not finite.
    """
    obs = real_tensor("obs", obs, "what is measured, (*obs_shape)")
    if obs.shape[max(obs.dim() - len(shape), 0) :] != shape or obs.dim() > len(shape) + 1:
        sizes = ", ".join(map(str, shape))
        raise ValueError(
            f"obs has shape {tuple(obs.shape)}, expected that of H x, ({sizes}), or (n, {sizes}) "
            "of n data"
        )
    check_finite("obs", obs)
    return obs


def checked_variance(value: object, shape: Sequence[int]) -> Tensor:
    """Variances of noise, checked, in float64, () or (*shape).

    Args:
        value: a number or numbers.
        shape: the shape of observations.

    Raises:
        TypeError, ValueError: no numbers, another shape, a variance below 0 or not finite.
    """
    shape = tuple(shape)
    variance = real_tensor("noise", value, "a variance, one for each observation, or a law")
    if variance.dim() and variance.shape != shape:
        raise ValueError(
            f"noise has shape {tuple(variance.shape)}, expected a variance, or one for each "
            f"observation, {shape}"
        )
    if not bool(((variance >= 0) & variance.isfinite()).all()):
        raise ValueError(
            f"noise reaches {variance.min().item():.3g}, expected finite variances, none "
            "below 0 (observed exactly)"
        )
    return variance


def check_exact(operator: Operator, variance: Tensor) -> None:
    """Raise ValueError for exact observations of which some follow from others.

    Args:
        operator: H.
        variance: variances R, 0 where observed exactly.
    """
    if not isinstance(operator, LinearOperator):
        if bool((variance == 0).any()):
            raise ValueError(
                f"noise is 0, and H is {describe(operator)}, of which no x may have exactly these "
                "obs; give noise a positive variance"
            )
        return
    exact = (variance == 0).expand(operator.obs_shape).flatten()
    number, d = int(exact.sum()), math.prod(operator.event_shape)
    if number == 0 or operator.independent or (number <= d and number * d > LARGEST_MATRIX):
        return
    values = torch.linalg.svdvals(operator.matrix()[exact])
    rank = int((values > SINGULAR * values.max()).sum())
    if rank < number:
        raise ValueError(
            f"noise is 0 for {number} observations, of which H makes only {rank} "
            "independent of each other, expected full row rank; leave out those that follow from "
            "others, or give noise a positive variance"
        )
