r"""Linear diffusions by name: the published ones, and a learned one.

Source of the constants: Singhal, Goldstein & Ranganath, "Where to Diffuse, How to Diffuse, and How
to Get Back", ICLR 2023 (below: "the paper").
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, TypeGuard

import torch
from torch import nn

from pyro_mdm.diffusions.base import Diffusion
from pyro_mdm.diffusions.clocks import GeometricBeta, LearnedBeta
from pyro_mdm.diffusions.ends import reach_of
from pyro_mdm.diffusions.linear import LinearDiffusion, LinearSDE, options_of
from pyro_mdm.diffusions.linear_matrices import REMEDY, Learned
from pyro_mdm.support.checks import (
    Count,
    check_count,
    check_instance,
    check_number,
    checked_arguments,
)

__all__ = [
    "ALDA",
    "CLD",
    "HOLD",
    "LearnedDiffusion",
    "MALDA",
    "MomentumVE",
    "VPSDE",
    "check_scales",
    "is_learned",
    "learn_more",
]


class VPSDE(LinearDiffusion):
    """The variance-preserving SDE, K = 1, ``Q = 0``, ``D = ½`` (Song et al. 2021).

    Keyword arguments are those of :class:`LinearDiffusion`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__([[0.0]], [[0.5]], **options)


class CLD(LinearDiffusion):
    """Critically-damped Langevin diffusion, K = 2 (Dockhorn et al. 2022).

    Q = [[0, -1], [1, 0]], D = diag(0, Γ), Σ_∞ = diag(1, M).

    Args:
        mass: M.
        friction: Γ, 2√M by default (critical damping).
        options: keyword arguments of :class:`LinearDiffusion`.

    Dockhorn's own constants: ``CLD(mass=0.25, friction=1.0, beta=ConstantBeta(4.0),
    initial_variance=0.01)``.
    """

    def __init__(self, mass: float = 1.0, friction: float | None = None, **options: Any) -> None:
        mass = _positive("mass", mass)
        friction = 2 * math.sqrt(mass) if friction is None else _positive("friction", friction)
        options.setdefault("stationary_variance", [1.0, mass])
        super().__init__([[0.0, -1.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, friction]], **options)


class MALDA(LinearDiffusion):
    """Modified accelerated Langevin diffusion, K = 3 (the paper).

    Q = [[0, -1/L, -1], [1/L, 0, -γ], [1, γ, 0]], D = diag(0, 2√M, 2√M), Σ_∞ = diag(1, M, M).

    Args:
        mass: M;  gamma: γ;  lipschitz: L, 1/M by default.
        options: keyword arguments of :class:`LinearDiffusion`.
    """

    def __init__(
        self,
        mass: float = 1.0,
        gamma: float = 1.0,
        lipschitz: float | None = None,
        **options: Any,
    ) -> None:
        mass = _positive("mass", mass)
        r = mass if lipschitz is None else 1 / _positive("lipschitz", lipschitz)
        gamma = check_number("gamma", gamma, "a number, e.g. 1.0")
        d = 2 * math.sqrt(mass)
        options.setdefault("stationary_variance", [1.0, mass, mass])
        super().__init__(
            [[0.0, -r, -1.0], [r, 0.0, -gamma], [1.0, gamma, 0.0]],
            [[0.0, 0.0, 0.0], [0.0, d, 0.0], [0.0, 0.0, d]],
            **options,
        )


class ALDA(LinearDiffusion):
    """Accelerated Langevin diffusion, K = 3, third order (Mou et al. 2019; the paper).

    Q = [[0, -1/L, 0], [1/L, 0, -γ], [0, γ, 0]], D = diag(0, 0, ψ/L), Σ_∞ = diag(1, M, M).

    Args:
        mass: M;  gamma: γ;  psi: ψ;  lipschitz: L, 1/M by default.
        options: keyword arguments of :class:`LinearDiffusion`.
    """

    def __init__(
        self,
        mass: float = 1.0,
        gamma: float = 1.0,
        psi: float = 1.0,
        lipschitz: float | None = None,
        **options: Any,
    ) -> None:
        mass = _positive("mass", mass)
        r = mass if lipschitz is None else 1 / _positive("lipschitz", lipschitz)
        gamma = check_number("gamma", gamma, "a number other than 0, e.g. 1.0")
        psi = _positive("psi", psi)
        options.setdefault("stationary_variance", [1.0, mass, mass])
        super().__init__(
            [[0.0, -r, 0.0], [r, 0.0, -gamma], [0.0, gamma, 0.0]],
            [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, psi * r]],
            **options,
        )


class HOLD(LinearDiffusion):
    r"""High-order Langevin diffusion: a critically damped chain of x and K - 1 auxiliary variables.

        Q = Σ_i γ_i (E_{i+1,i} - E_{i,i+1}),    D = diag(0, …, 0, K),    Σ_∞ = I

    The couplings γ make all K eigenvalues of A_0 equal -1: the chain returns to rest as fast as it
    can without ringing. Noise enters the last variable, so paths of x have K - 2 derivatives. For K
    = 2 it is :class:`CLD`.

    Args:
        num_variables: K, the order of the chain, at least 1.
        options: keyword arguments of :class:`LinearDiffusion`.

    Source: Shi & Liu, "Generative Modelling with High-Order Langevin Dynamics", 2024, whose HOLD++
    is critically damped for K = 3. For any K, the γ_i² are ratios of the first column of Routh's
    array of (μ + 1)^K, as in Schwarz's form of a polynomial.
    """

    def __init__(self, num_variables: int = 3, **options: Any) -> None:
        K = num_variables
        check_count("num_variables", K, "the number K of variables, the data among them")
        Q, D = torch.zeros(2, K, K, dtype=torch.float64, device="cpu")
        for i, square in enumerate(_critical_couplings(K)):
            Q[i, i + 1], Q[i + 1, i] = -math.sqrt(square), math.sqrt(square)
        D[-1, -1] = K
        super().__init__(Q, D, **options)


def _critical_couplings(K: int) -> list[Fraction]:
    """γ_1², …, γ_{K-1}² of a chain damped by K at its end whose polynomial is (μ + 1)^K."""
    rows = [[Fraction(math.comb(K, k)) for k in range(first, K + 1, 2)] for first in (0, 1)]
    while len(rows) <= K:
        above, last = rows[-2] + [Fraction(0)], rows[-1] + [Fraction(0)]
        ratio = above[0] / last[0]
        rows.append([above[k + 1] - ratio * last[k + 1] for k in range(len(above) - 2)])
    first = [row[0] for row in rows[: K + 1]]
    return [first[i + 1] / first[i - 1] for i in range(K - 1, 0, -1)]


class LearnedDiffusion(LinearDiffusion):
    r"""A learned diffusion, ``Q = W - Wᵀ``, ``D = B Bᵀ`` (the paper), and optionally its clock.

    W is strictly lower triangular, so that every skew Q is reached once; B is (K, rank) without
    constraint, so that D may be singular and CLD, MALDA and ALDA are members of the family. It
    starts as a chain x - v_1 - … with noise on its last ``rank`` variables; for K = 1 that is
    :class:`VPSDE`. See :meth:`from_diffusion` to start elsewhere.

    Args:
        num_variables: K ≥ 1.
        rank: rank of D, K by default.
        learn_beta: whether β(s) is learned too (:class:`~pyro_mdm.diffusions.clocks.LearnedBeta`).
        diagonal: D = diag(softplus(d) + 0.001) instead, as in the paper's released code: always of
            full rank, so that CLD, MALDA and ALDA are not members.
        seed: seed of a random start: all of W (full, with Q = W - Wᵀ), and B or d, uniform within
            ±1/√K. None: start at the chain.
        options: keyword arguments of :class:`LinearDiffusion`, and ``learn_ends`` and
            ``learn_stationary`` of :func:`~pyro_mdm.diffusions.presets.learn_more`. A
            ``min_log_snr`` holds λ(T) fixed while Q and D are learned: the clock is rescaled to
            reach it. With a denoiser the bound depends on Q and D through the prior mismatch alone,
            so without it they could only lengthen or shorten the same path.
    """

    matrices: Learned
    lower: nn.Parameter
    B: nn.Parameter
    d: nn.Parameter

    @checked_arguments
    def __init__(
        self,
        num_variables: int = 2,
        rank: Count | None = None,
        learn_beta: bool = False,
        *,
        diagonal: bool = False,
        seed: int | None = None,
        **options: Any,
    ) -> None:
        K = num_variables
        check_count("num_variables", K, "the number K of variables, the data among them")
        if diagonal and rank not in (None, K):
            raise ValueError(
                f"rank is {rank}, but a diagonal D has rank num_variables = {K}; leave rank out, "
                "or diagonal"
            )
        rank = K if rank is None else rank
        if not 1 <= rank <= K:
            raise ValueError(f"rank is {rank}, expected between 1 and num_variables = {K}")
        Q, D = torch.zeros(2, K, K, dtype=torch.float64, device="cpu")
        i = torch.arange(1, K, device="cpu")
        Q[i, i - 1], Q[i - 1, i] = 1.0, -1.0
        D.diagonal()[K - rank :] = 0.5
        if learn_beta:
            horizon = options.get("horizon", 1.0)
            options["beta"] = LearnedBeta(options.get("beta"), horizon=horizon)
        more = {n: options.pop(n) for n in ("learn_ends", "learn_stationary") if n in options}
        super().__init__(Learned(Q, D, rank, diagonal, seed), **options)
        learn_more(self, **more)

    @classmethod
    def from_diffusion(
        cls,
        start: LinearDiffusion,
        rank: int | None = None,
        learn_beta: bool = False,
        **options: Any,
    ) -> LearnedDiffusion:
        """The learned diffusion that starts as ``start``.

        Args:
            start: any linear diffusion, e.g. a preset.
            rank: rank of the learned D, K by default; at least the rank of ``start.D``. For a
                higher rank, D starts with 1e-12 of its largest eigenvalue in the directions that
                ``start`` leaves without noise: at 0 their gradient is 0, and the rank could not
                grow.
            learn_beta: whether the clock is learned too.
            options: keyword arguments of :class:`LinearDiffusion` that replace those of ``start``.
        """
        fix = "e.g. LearnedDiffusion.from_diffusion(CLD())"
        check_instance("start", start, LinearDiffusion, fix)
        settings = options_of(start)
        if {"max_log_snr", "min_log_snr"} & set(options):
            settings.pop("cut_time", None)
        learned = cls(start.num_variables, rank, learn_beta, **(settings | options))
        learned.matrices.begin_at(start)
        return learned


class MomentumVE(LinearSDE):
    r"""Momentum over a variance that explodes, K = 2, ``dx = v β ds``, ``dv = √β dB``.

    Nothing is damped and nothing pulls back: x is the integral of a Brownian motion, so that its
    paths have a derivative, and Σ grows like ``[[τ³/3, τ²/2], [τ²/2, τ]]`` with the clock time τ =
    b(s). There is no stationary distribution.

    Args:
        sigma_min, sigma_max: where the clock begins to be fast, and where it ends, as standard
            deviations sqrt(τ³/3) of x, which grows geometrically between them.
        options: keyword arguments of :class:`LinearSDE`.
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0, **options: Any) -> None:
        sigma_min, sigma_max = check_scales(sigma_min, sigma_max)
        if options.get("beta") is None:
            start, end = ((3 * sigma**2) ** (1 / 3) for sigma in (sigma_min, sigma_max))
            options["beta"] = GeometricBeta(start, end, options.get("horizon", 1.0))
        super().__init__([[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]], **options)


def check_scales(sigma_min: float, sigma_max: float) -> tuple[float, float]:
    """The least and largest noise, as floats. Raises ValueError unless 0 < σ_min < σ_max."""
    low = check_number("sigma_min", sigma_min, "a positive number, e.g. 0.01", positive=True)
    high = check_number("sigma_max", sigma_max, "a positive number, e.g. 50.0", positive=True)
    if not low < high:
        raise ValueError(
            f"sigma_min is {low:g} and sigma_max {high:g}, expected sigma_min < sigma_max: noise "
            "grows from the data to the prior"
        )
    return low, high


def is_learned(diffusion: Diffusion) -> TypeGuard[LinearDiffusion]:
    """Whether it is a linear diffusion whose matrices are learned."""
    return isinstance(diffusion, LinearDiffusion) and diffusion.matrices.remedy == REMEDY


def learn_more(
    linear: LinearDiffusion,
    learn_ends: float | Sequence[float] = 0.0,
    learn_stationary: bool = False,
) -> None:
    r"""Learn the ends of a linear diffusion too, and its stationary covariance.

    Args:
        linear: a diffusion of learned matrices.
        learn_ends: how far λ(ε) and λ(T) may move from their start, in units of log SNR: one number
            for both, or one for each; 0 holds an end fixed. Each is learned as λ = λ_start + reach
            · tanh(p), where p starts at 0. Setting an end starts both anew where they are. λ(T) is
            learned around ``min_log_snr``.
        learn_stationary: whether Σ_∞, the covariance of the prior, is learned too, as L Lᵀ with L
            lower triangular and log L_ii a parameter, so that it stays positive definite. L_00, the
            standard deviation of x at rest, is held fixed: λ is in units of the data, and with both
            ends given the bound hardly distinguishes a common scale of all variables, which would
            drift.

    Raises:
        ValueError: a negative reach, ranges that meet, a reach for λ(T) without ``min_log_snr``, a
            reach for ends that are cut at a time, or ``learn_stationary`` for K = 1, where nothing
            of Σ_∞ is free.
    """
    if any(reach := reach_of(learn_ends)):
        ends = dataclasses.replace(linear.given_ends, reach=reach)
        linear.given_ends = ends.checked(linear.horizon)
        linear.moved_ends = nn.Parameter(torch.zeros(2, dtype=torch.float64, device="cpu"))
    if learn_stationary:
        linear.prior_part.learn()


def _positive(name: str, value: float) -> float:
    return check_number(name, value, "a positive number, e.g. 1.0", positive=True)
