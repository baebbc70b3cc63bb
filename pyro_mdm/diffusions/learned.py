"""Linear diffusions that SVI learns: matrices, and optionally ends and stationary covariance."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyro_mdm.diffusions.base import Matrix, Times
from pyro_mdm.diffusions.ends import reach_of
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.diffusions.matrices import (
    Matrices,
    SkewAndSemidefinite,
    covariance_matrix,
    hides_noise,
)

__all__ = ["REMEDY", "Learned", "LearnedFamily"]

SMALLEST = 1e-3
"""The least entry of a learned diagonal D, as in the paper's released code."""
REMEDY = (
    ". If training brought them here, lower the learning rate of the diffusion, or give D a higher "
    "rank"
)
"""What errors of learned matrices advise."""


class LearnedFamily(LinearDiffusion):
    r"""A linear diffusion with learned matrices and, optionally, learned ends.

    Args:
        matrices: the learned Q and D.
        learn_ends: how far λ(ε) and λ(T) may move from their start, in units of log SNR: one number
            for both, or one for each; 0 holds an end fixed, as by default. Each is learned as λ =
            λ_start + reach · tanh(p), where p starts at 0. Setting an end starts both anew where
            they are.
        learn_stationary: whether Σ_∞, the covariance of the prior, is learned too, as L Lᵀ with L
            lower triangular and log L_ii a parameter, so that it stays positive definite. L_00, the
            standard deviation of x at rest, is held fixed: λ is in units of the data, and with both
            ends given the bound hardly distinguishes a common scale of all variables, which would
            drift.
        options: those of :class:`LinearDiffusion`; λ(T) is learned around ``min_log_snr``.

    Raises:
        ValueError: a negative reach, ranges that meet, a reach for λ(T) without ``min_log_snr``, a
            reach for ends that are cut at a time, or ``learn_stationary`` for K = 1, where nothing
            of Σ_∞ is free.
    """

    stationary_scale: Tensor
    lower: nn.Parameter
    B: nn.Parameter
    d: nn.Parameter

    def __init__(
        self,
        matrices: Matrices,
        *,
        learn_ends: float | Sequence[float] = 0.0,
        learn_stationary: bool = False,
        **options: Any,
    ) -> None:
        LinearDiffusion.__init__(self, matrices, **options)
        if any(reach := reach_of(learn_ends)):
            ends = dataclasses.replace(self.end_laws.given, reach=reach)
            self.end_laws.given = ends.checked(self.horizon)
            self.ends = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        if learn_stationary:
            self._learn_stationary()

    def _learn_stationary(self) -> None:
        K = self.num_variables
        if K == 1:
            raise ValueError(
                "learn_stationary is True, but with K = 1 variable nothing of Σ_∞ is learned: the "
                "variance of x is held fixed; leave it out, or raise num_variables"
            )
        L = torch.linalg.cholesky(self._buffers.pop("stationary_covariance"))
        self.learns_stationary = True
        self.register_buffer("stationary_scale", L[0, 0].clone())
        self.stationary_log_diagonal = nn.Parameter(L.diagonal()[1:].log())
        self.stationary_lower = nn.Parameter(L[tuple(torch.tril_indices(K, K, offset=-1))])

    def register_reference(self, variance: float | Sequence[float] | Matrix) -> None:
        name = "stationary_covariance"
        self._buffers[name] = covariance_matrix("stationary_variance", variance, self.num_variables)

    @property
    def stationary_covariance(self) -> Tensor:  # type: ignore[override]
        """Σ_∞ (K, K), a buffer or computed from parameters."""
        if self.learns_stationary:
            return self.kept("stationary covariance", self._stationary)
        return cast(Tensor, self._buffers["stationary_covariance"])

    def _stationary(self) -> Tensor:
        K = self.num_variables
        L = torch.diag(torch.cat([self.stationary_scale[None], self.stationary_log_diagonal.exp()]))
        below = tuple(torch.tril_indices(K, K, offset=-1))
        L = L.index_put(below, self.stationary_lower)
        return L @ L.mT


class Learned(SkewAndSemidefinite):
    """Q = W - Wᵀ and D = B Bᵀ, or diag(softplus(d) + 0.001), all of them parameters.

    Args:
        Q, D: the start, (K, K); D is diagonal, its first entries 0 beyond its rank.
        rank: number of columns of B.
        diagonal: whether D is diagonal.
        seed: seed of a random start instead; None: none.
    """

    remedy = REMEDY

    def __init__(
        self, Q: Tensor, D: Tensor, rank: int, diagonal: bool = False, seed: int | None = None
    ) -> None:
        super().__init__(Q, D)
        K = len(Q)
        self.rank, self.diagonal, self._seed = rank, diagonal, seed
        self._below = tuple(torch.tril_indices(K, K, offset=-1))

    def register(self) -> int:
        (Q, D), K = self._given, len(self._given[0])
        B = torch.diag(D.diagonal().sqrt())[:, K - self.rank :].clone()
        d = _inverse_softplus(D.diagonal() - SMALLEST) if self.diagonal else D.diagonal()
        if self._seed is not None:
            generator = torch.Generator().manual_seed(self._seed)

            def uniform(*shape: int) -> Tensor:
                unit = torch.rand(shape, dtype=torch.float64, generator=generator, device="cpu")
                return (2 * unit.to(Q) - 1) / math.sqrt(K)

            W = uniform(K, K)
            Q, B, d = W - W.mT, uniform(*B.shape), uniform(K)
        self.linear.register_parameter("lower", nn.Parameter(Q[self._below]))
        name, value = ("d", d) if self.diagonal else ("B", B)
        self.linear.register_parameter(name, nn.Parameter(value))
        return K

    def begin_at(self, start: LinearDiffusion) -> None:
        """Take over Q and D of a diffusion.

        Raises:
            ValueError: D is not diagonal, or its rank is higher.
        """
        Q, D, name = start.Q, start.D.detach(), type(start).__name__
        if self.diagonal:
            values = D.diagonal()
            if bool((D - torch.diag(values)).any()) or not bool((values > SMALLEST).all()):
                raise ValueError(
                    f"D of {name} is {D.tolist()}, expected a diagonal one with entries above "
                    f"{SMALLEST}; leave diagonal out"
                )
            value = _inverse_softplus(values - SMALLEST)
        else:
            values, vectors = torch.linalg.eigh(D)
            smallest = 1e-12 * values.max()
            if (needed := int((values > smallest).sum())) > self.rank:
                raise ValueError(
                    f"rank is {self.rank}, but D of {name} has rank {needed}; expected rank ≥ "
                    f"{needed}"
                )
            value = (vectors * values.maximum(smallest).sqrt()).flip(-1)[:, : self.rank]
        with torch.no_grad():
            self._parameter("lower").copy_(Q[self._below])
            self._parameter("d" if self.diagonal else "B").copy_(value)

    def _parameter(self, name: str) -> Tensor:
        parameter: Tensor = self.linear.get_parameter(name)
        return parameter

    def constant(self, name: str) -> Tensor:
        if name == "Q":
            lower, K = self._parameter("lower"), self.linear.num_variables
            W = lower.new_zeros(K, K).index_put(self._below, lower)
            return W - W.mT
        if self.diagonal:
            return torch.diag(nn.functional.softplus(self._parameter("d")) + SMALLEST)
        B = self._parameter("B")
        return B @ B.mT

    def root(self, s: Times | None = None) -> Tensor:
        """√2 B padded with columns of zeros, differentiable where a symmetric root of D is not;
        or for a diagonal D the symmetric root."""
        if self.diagonal:
            return torch.diag((2 * self.linear.D.diagonal()).sqrt())
        empty = self.linear.num_variables - self.rank
        return math.sqrt(2) * nn.functional.pad(self._parameter("B"), (0, empty))

    def hides_noise(self) -> bool:
        """Whether rounding of D may hide noise: D = B Bᵀ has half of B's digits."""
        if self.diagonal:
            return False
        return hides_noise(torch.linalg.svdvals(self._parameter("B").detach()))


def _inverse_softplus(value: Tensor) -> Tensor:
    return value + torch.log(-torch.expm1(-value))
