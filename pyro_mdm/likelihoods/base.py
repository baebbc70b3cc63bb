"""The base class of decoders p(x | y_ε), and bits per dimension."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from torch import Tensor
from torch.distributions import constraints

from pyro_mdm.diffusions.base import Diffusion
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.support.checks import check_count, check_instance, check_shape, describe
from pyro_mdm.support.doors import Count, Several, checked_arguments
from pyro_mdm.support.modules import ExactBuffers
from pyro_mdm.support.settings import Restorable

__all__ = [
    "DecoderDistribution",
    "Likelihood",
    "Reading",
    "StateScore",
    "bits_per_dim",
    "log_prob_by_dimension",
    "read_state",
]

D = TypeVar("D", bound="DecoderDistribution")


@checked_arguments
def bits_per_dim(
    log_prob: Tensor | float,
    num_dims: Count,
    *,
    log_det: Tensor | float = 0.0,
    num_levels: Several | None = None,
) -> Any:
    r"""Bits per dimension of a log-likelihood: -(log p + log|det|) / (d ln 2) (+ log₂ levels).

    Args:
        log_prob: log-likelihood log p(x), summed over the d dimensions, in nats: a number or a
            tensor of any shape.
        num_dims: number d of dimensions.
        log_det: log-determinant log|det ∂x/∂w|, summed over dimensions, where log p is a density of
            x = T(w) and bits are of w; 0 without a transform.
        num_levels: number n of levels if w = (k + u)/n was dequantized by uniform noise u, whose
            density is then n^d times the probability of k. None: a density, or a probability of
            levels.

    Returns:
        Bits/dim, like ``log_prob``; for dequantized data, in expectation over u, at least the bits
        of the discrete likelihood ∫ p(w) du.

    Raises:
        ValueError: fewer than one dimension or two levels.

    Example:
        >>> bits_per_dim(torch.tensor(-2 * math.log(2)), num_dims=2)
        tensor(1.)
    """
    if (
        isinstance(log_det, Tensor)
        and log_det.dim()
        and log_det.shape != torch.as_tensor(log_prob).shape
    ):
        raise ValueError(
            f"log_det has shape {tuple(log_det.shape)}, expected one number, or the shape of "
            f"log_prob, {describe(log_prob)}; sum both over the dimensions of a datum"
        )
    bits = -(log_prob + log_det) / (num_dims * math.log(2))
    return bits if num_levels is None else bits + math.log2(num_levels)


class Likelihood(Restorable, ExactBuffers, ABC):
    """A decoder p(x | y_ε), with buffers that stay in float64 when the module is cast."""

    network_calls: ClassVar[int] = 0
    """The number of network calls of a decoder's distribution."""

    @abstractmethod
    def forward(
        self, diffusion: Diffusion, score: StateScore, y: Tensor, event_dim: int | None = None
    ) -> TorchDistributionMixin:
        """The decoder's distribution of x.

        Args:
            diffusion: the noising diffusion.
            score: the :class:`~pyro_mdm.scores.Score` in use.
            y: states at ``diffusion.start_time``, (*batch, K, *event_shape).
            event_dim: number of dimensions of a datum; None: that of the score's event shape if it
                has one, else all but one batch dimension.

        Returns:
            A Pyro distribution with batch shape (*batch) and event shape (*event_shape).
        """


class DecoderDistribution(TorchDistribution):
    """The base class of decoders' distributions of x; samples are not reparameterized."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self: D, batch_shape: Sequence[int], _instance: D | None = None) -> D:
        """A copy with another batch shape; subclasses expand its tensors."""
        new: D = self._get_checked_instance(type(self), _instance)
        new.__dict__.update(self.__dict__)
        super(DecoderDistribution, new).__init__(torch.Size(batch_shape), self.event_shape)
        return new

    def log_prob_by_dimension(self, value: Tensor) -> Tensor:
        """log p(x_j) of independent dimensions, (*batch, *event_shape), nats.

        Their sum is ``log_prob``.

        Args:
            value: data, (*batch, *event_shape).

        Raises:
            NotImplementedError: dimensions that depend on each other, or a subclass without it.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no log-probability for each dimension; see "
            "log_prob_by_dimension"
        )

    def check_event(self, value: Tensor) -> None:
        """Raises ValueError unless the last sizes of x are the event shape."""
        check_shape("x", value, self.event_shape)


def log_prob_by_dimension(law: object, value: Tensor) -> Tensor:
    """log p(x_j) under a decoder's distribution, like x, nats.

    Args:
        law: the decoder's distribution, of independent dimensions.
        value: data x, (*batch, *event_shape).

    Raises:
        TypeError: dimensions that depend on each other.
    """
    if isinstance(law, DecoderDistribution):
        return law.log_prob_by_dimension(value)
    if isinstance(law, dist.Independent) and not law.base_dist.event_shape:
        return law.base_dist.log_prob(value)
    raise TypeError(
        f"the decoder's distribution is {describe(law)}, expected independent dimensions: a "
        "distribution of numbers with to_event(event_dim), or a DecoderDistribution with "
        "log_prob_by_dimension"
    )


class StateScore(Protocol):
    """The part of a :class:`~pyro_mdm.scores.Score` that decoders call."""

    event_shape: tuple[int, ...] | None

    def score(self, diffusion: Kernels, y: Tensor, s: Tensor) -> Tensor:
        """s_θ(y, s), like y (*batch, K, *event_shape)."""

    def denoise(self, diffusion: Any, y: Tensor, s: Tensor) -> Tensor:
        """x̂ (*batch, *event_shape)."""


class Reading(NamedTuple):
    """The readout z = kᵀ y_ε (*batch, *event_shape), of the data, and λ(ε), in float64."""

    z: Tensor
    log_snr: Tensor
    batch_dim: int


def read_state(
    diffusion: Diffusion, score: StateScore, y: Tensor, event_dim: int | None
) -> Reading:
    """The reading of x from states at ε.

    Args:
        diffusion: the noising diffusion.
        score: the score in use.
        y: states at ``diffusion.start_time``, (*batch, K, *event_shape).
        event_dim: number of dimensions of a datum; None: as for :meth:`Likelihood.forward`.

    Raises:
        ValueError: states of another shape.
    """
    check_instance("diffusion", diffusion, Diffusion, "e.g. CLD()")
    check_shape("y", y, ())
    if event_dim is not None:
        check_count("event_dim", event_dim, "the number of dimensions of a datum", least=0)
    else:
        event_shape = getattr(score, "event_shape", None)
        event_dim = y.dim() - 2 if event_shape is None else len(event_shape)
    batch_dim, K = y.dim() - 1 - event_dim, diffusion.num_variables
    if event_dim < 0 or batch_dim < 0 or y.shape[batch_dim] != K:
        raise ValueError(
            f"y has shape {tuple(y.shape)}, expected (*batch, K, *event_shape) with K = {K} "
            f"variables and {event_dim} event dimensions"
        )
    return Reading(*diffusion.read_start(y, event_dim), batch_dim)
