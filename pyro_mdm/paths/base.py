"""The base classes of distributions of paths, and Gaussian densities of states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_mdm.diffusions.base import Diffusion
from pyro_mdm.diffusions.kernels import inverse_tril
from pyro_mdm.diffusions.matrices import apply_matrix
from pyro_mdm.scores.base import Score
from pyro_mdm.support.checks import (
    check_count,
    check_data,
    check_instance,
    check_real,
    check_shape,
    real_tensor,
    tensor_device,
)
from pyro_mdm.support.late_checks import check_values

__all__ = [
    "NoisingLaw",
    "PathKL",
    "PathLaw",
    "Self",
    "check_counts_all",
    "checked_times",
    "gaussian_log_prob",
    "num_batch_dims",
    "times_text",
    "white_log_prob",
]

Self = TypeVar("Self", bound="PathLaw")


def _solve(scale_tril: Tensor, y: Tensor, event_dim: int) -> Tensor:
    if scale_tril.dim() > 2:
        return apply_matrix(inverse_tril(scale_tril), y, event_dim)
    flat = y.reshape(*y.shape[: y.dim() - event_dim], -1)
    value: Tensor = torch.linalg.solve_triangular(
        scale_tril.to(y.dtype), flat, upper=False
    ).reshape(y.shape)
    return value


def white_log_prob(white: Tensor, log_det: Tensor, event_dim: int) -> Tensor:
    """log N(r; 0, V) from the whitened residual and log det V per dimension, (*lead), nats.

    Args:
        white: whitened residual ``V^{-1/2} r``, (*lead, K, *event_shape).
        log_det: log-determinant of V: one for all dimensions, (), or one per dimension,
            (1, *event_shape), with sizes of 1 along those that share it.
        event_dim: number of dimensions of a datum.
    """
    dims = tuple(range(-event_dim - 1, 0))
    sizes = white.shape[white.dim() - event_dim - 1 :]
    d, K = math.prod(sizes[1:]), sizes[0]
    log_det = log_det.mean()
    constant = d * (log_det + K * math.log(2 * math.pi)).to(white.dtype)
    return -0.5 * (white.square().sum(dims) + constant)


def gaussian_log_prob(
    residual: Tensor, scale_tril: Tensor, log_det: Tensor, event_dim: int
) -> Tensor:
    """log N(residual; 0, L Lᵀ) summed over K and the event, (*lead), nats.

    Args:
        residual: residual, (*lead, K, *event_shape).
        scale_tril: L, (K, K) or per dimension.
        log_det: log det L Lᵀ, as for :func:`white_log_prob`.
        event_dim: number of dimensions of a datum.
    """
    return white_log_prob(_solve(scale_tril, residual, event_dim), log_det, event_dim)


class PathLaw(TorchDistribution):
    """The base class of distributions of paths, with event shape (N, K, *event_shape of x).

    Args:
        diffusion: the diffusion of the path.
        batch_shape: batch shape.
        x_shape: shape of a datum.
        num_times: number N of times at which the path is seen.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    diffusion: Any  # a Diffusion of the kind that the distribution is for
    x_dim: int  # the number of dimensions of a datum
    times: Tensor | None  # (N,), at which a path is seen; None for ε alone

    def __init__(
        self,
        diffusion: Diffusion,
        batch_shape: torch.Size,
        x_shape: torch.Size,
        num_times: int,
        validate_args: bool | None = None,
    ) -> None:
        self.diffusion = diffusion
        self.x_shape, self.x_dim = x_shape, len(x_shape)
        event_shape = torch.Size((num_times, diffusion.num_variables, *x_shape))
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @property
    def num_dims(self) -> int:
        """The number d of data dimensions."""
        return math.prod(self.x_shape)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    def expanded(self: Self, batch_shape: Sequence[int], _instance: object) -> Self:
        """A copy with another batch shape; the caller expands tensors that depend on data."""
        new: Self = self._get_checked_instance(type(self), _instance)
        new.__dict__.update(self.__dict__)
        super(PathLaw, new).__init__(torch.Size(batch_shape), self.event_shape)
        return new

    def _validate_sample(self, value: Tensor) -> None:
        """The check of torch, which for a value of the whole shape does not wait for the device."""
        report = partial(super()._validate_sample, value)
        if value.shape == self.batch_shape + self.event_shape:
            check_values(self.support.check(value).all(), report)
        else:
            report()

    def states(self, path: Tensor) -> tuple[Tensor, ...]:
        """The states at each time, each (*lead, K, *event)."""
        return path.unbind(path.dim() - len(self.event_shape))


class PathKL(NamedTuple):
    """The divergence of a noising path from a generative one, by term, each (*batch)."""

    prior: Tensor  # the term without the score, nats: KL(q(y_T|x) ‖ π) in closed form
    diffusion: Tensor  # one unbiased estimate of the integral, nats
    log_snr: Tensor  # the λ at which it was estimated


class NoisingLaw(PathLaw):
    """The distribution of a path that starts at data, seen at some times.

    Its attribute ``x`` holds the data in the coordinates of states. Its divergence from a
    generative path is :func:`~pyro_mdm.paths.path_divergence`.

    Args:
        diffusion: the noising diffusion.
        x: data in model space, (*batch, *event_shape).
        times: increasing times, (N,); None: the start time ε alone.
        event_dim: number of dimensions of a datum; by default all of x's but the first.
    """

    has_rsample = True

    def __init__(
        self,
        diffusion: Diffusion,
        x: Tensor,
        times: Tensor | None = None,
        *,
        event_dim: int | None = None,
        validate_args: bool | None = None,
    ) -> None:
        cut = num_batch_dims(diffusion, x, event_dim)
        diffusion.check(x.shape[cut:])
        self.x = diffusion.coordinates(x)
        self.times = None if times is None else checked_times(diffusion, times)
        num_times = 1 if times is None else len(times)
        super().__init__(diffusion, x.shape[:cut], x.shape[cut:], num_times, validate_args)

    def expand(self: Self, batch_shape: Sequence[int], _instance: object = None) -> Self:
        if tuple(batch_shape) == self.batch_shape and _instance is None:
            return self
        new = self.expanded(batch_shape, _instance)
        new.__dict__["x"] = self.x.expand(*batch_shape, *self.x_shape)
        return new

    def by_term(self, kl: PathKL, path: Tensor) -> PathKL:
        """A divergence by the terms of the bound that are reported: prior KL and diffusion.

        Args:
            kl: divergence, as :func:`~pyro_mdm.paths.path_divergence` returns it.
            path: the path with which the divergence was estimated.
        """
        return kl


def num_batch_dims(diffusion: Diffusion, x: Tensor, event_dim: int | None) -> int:
    """The number of batch dimensions of data, checked."""
    check_instance("diffusion", diffusion, Diffusion, "CLD(), or another diffusion")
    check_data("x", x, tensor_device(diffusion))
    if event_dim is not None:
        check_count("event_dim", event_dim, "the number of dimensions of a datum", least=0)
    event_dim = x.dim() - 1 if event_dim is None else event_dim
    if not 0 <= event_dim <= x.dim():
        raise ValueError(f"x has shape {tuple(x.shape)}, expected at least {event_dim} dims")
    return x.dim() - event_dim


def check_counts_all(score: Score, y: Tensor, what: str) -> None:
    """Raises ValueError if only some dimensions of states y (*batch, K, *event_shape) count.

    Args:
        score: a :class:`~pyro_mdm.scores.Score`.
        y: states, (*batch, K, *event_shape).
        what: name of the density, for the message.
    """
    check_instance("score", score, Score, "e.g. Denoiser.fit(network, train_x)")
    check_shape("y", y, score.event_shape or ())
    first = y.select(y.dim() - 1 - len(score.event_shape or y.shape[2:]), 0)
    if score.counts(first) is not None:
        raise ValueError(
            f"{what} is a density of all dimensions together, and some are observed or left out "
            "here; use the bound: elbo_terms, bound, MDM_ELBO, or method='elbo'"
        )


def checked_times(diffusion: Diffusion, times: Tensor, whole: bool = False) -> Tensor:
    """Times (N,), checked to be increasing, and to run from ε to T if ``whole``."""
    if not isinstance(times, Tensor):  # those of a learned diffusion have gradients
        times = real_tensor("times", times, "an increasing vector (N,)")
    check_real("times", times)
    s = times.to(torch.float64)
    if s.dim() != 1 or not len(s) or not bool((s.diff() > 0).all()):
        raise ValueError(f"times are {times_text(s)}, expected an increasing vector (N,)")
    if whole:
        start, end = diffusion.start_time.detach(), diffusion.horizon
        first, last = s[0].detach(), s[-1].detach()
        # 1e-9: the ends of a grid that was computed in another way are rounded otherwise
        if len(s) < 2 or (first - start).abs() > 1e-9 * start or abs(last - end) > 1e-9 * end:
            raise ValueError(
                f"times run from {first:.6g} to {last:.6g}, expected a grid from the start time "
                f"{start:.6g} (max_log_snr) to T = {end:g}; see LinearDiffusion.log_snr_grid"
            )
    return s


def times_text(times: Tensor | None) -> str:
    """Times in words, for messages."""
    if times is None:
        return "ε alone"
    return f"{times.numel()} times" if times.numel() > 4 else str(times.tolist())
