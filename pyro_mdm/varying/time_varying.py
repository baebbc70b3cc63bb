r"""Linear diffusions with given or learned functions of time Q(s) and D(s)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from pyro_mdm.diffusions import kernels
from pyro_mdm.diffusions.base import Times, UnreachableError, kept
from pyro_mdm.diffusions.clocks import as_times, times_within
from pyro_mdm.diffusions.ends import (
    LOG_SNR,
    check_controllable,
    clock_at,
    shown,
    targets,
    unscaled_end,
)
from pyro_mdm.diffusions.kernels import Propagator
from pyro_mdm.diffusions.linear import LinearDiffusion, LinearSDE, options_of
from pyro_mdm.diffusions.linear_matrices import (
    REMEDY,
    GivenPrior,
    Matrices,
    PriorPart,
    StationaryPrior,
)
from pyro_mdm.diffusions.matrices import check_semidefinite, check_skew, semidefinite_cholesky
from pyro_mdm.diffusions.presets import LearnedDiffusion, learn_more
from pyro_mdm.support.checks import check_count, describe
from pyro_mdm.support.settings import described
from pyro_mdm.varying.cells import MAX_CELLS, REACH, MatrixCells
from pyro_mdm.varying.magnus import MagnusPropagator

__all__ = [
    "MatrixFunction",
    "TimeVaryingDiffusion",
    "TimeVaryingLearnedDiffusion",
    "TimeVaryingSDE",
]

MatrixFunction = Callable[[Tensor], Tensor]
"""Times s (…) in float64 -> matrices (…, K, K) in float64."""

EARLY = 1 / 2
"""The part of [0, T] in which cells become short towards 0."""


class Varying(Matrices, ABC):
    """Matrices that are functions of time, over a grid of cells.

    Args:
        cells: the number of cells.
    """

    searched = 1
    prior_kind: type[PriorPart] = StationaryPrior

    def __init__(self, cells: int) -> None:
        check_count("cells", cells, "the number of Magnus cells between 0 and T")
        self._num_cells = cells

    @abstractmethod
    def evaluate(self, name: str, s: Tensor) -> Tensor:
        """Q or D, by its name, (…, K, K), at times s (…) in float64."""

    @property
    def check_times(self) -> Tensor:
        s = torch.linspace(0.0, self.linear.horizon, 65, dtype=torch.float64)
        return as_times(s)

    @property
    def when(self) -> str:
        return f"({self.linear.horizon / 2:g})"

    def check(self) -> None:
        self._check_values(self.check_times)

    def _check_values(self, s: Tensor) -> None:
        """Raise ValueError unless Q is skew and D positive semi-definite at times s (n,)."""
        for name, check in (("Q", check_skew), ("D", check_semidefinite)):
            matrices = self.at(name, s)
            try:
                check(f"{name}(s)", matrices, 1e-12)
            except ValueError:
                for moment, one in zip(s.tolist(), matrices, strict=True):
                    check(f"{name}(s) at s = {moment:.6g}", one, 1e-12)
                raise

    # -- matrices ----------------------------------------------------------------------------------

    @property
    def Q(self) -> NoReturn:
        raise self.no_constant("Q", "Q_at(s)")

    @property
    def D(self) -> NoReturn:
        raise self.no_constant("D", "D_at(s)")

    def at(self, name: str, s: Times) -> Tensor:
        return self.evaluate(name, times_within(self.linear.horizon, "s", s))

    def drift(self, s: Times | None = None) -> Tensor:
        return self.drift_at(self._times("A", s))

    def noise(self, s: Times | None = None) -> Tensor:
        return self.noise_at(self._times("g²", s))

    def root(self, s: Times | None = None) -> Tensor:
        return self.root_at(self._times("G", s))

    def _times(self, name: str, s: Times | None) -> Tensor:
        """Times in float64; raises TypeError for those of a constant matrix of this name."""
        if s is None:
            raise self.no_constant(name)
        return times_within(self.linear.horizon, "s", s)

    def drift_at(self, s: Tensor) -> Tensor:
        """A per unit of clock time at times s in float64, (*s.shape, K, K)."""
        precision = torch.linalg.inv(self.linear.prior_covariance)
        return -(self.evaluate("Q", s) + self.evaluate("D", s)) @ precision

    def noise_at(self, s: Tensor) -> Tensor:
        """g² per unit of clock time at times s in float64, (*s.shape, K, K)."""
        return 2 * self.evaluate("D", s)

    def root_at(self, s: Tensor) -> Tensor:
        """A root of g²(s), (*s.shape, K, K), differentiable."""
        return semidefinite_cholesky(self.noise_at(s))

    def settings(self) -> dict[str, object]:
        return {"cells": self._num_cells}

    # -- the grid ----------------------------------------------------------------------------------

    @property
    def propagator(self) -> MagnusPropagator:
        scale = self.scale()
        move = self.grid(scale).slowed(scale)
        if not torch.is_grad_enabled():
            bounds = self.linear.time_at_clock(move.bounds).clamp(0.0, self.linear.horizon)
            self._check_values(bounds)
        return move

    def grid(self, scale: Tensor) -> MagnusPropagator:
        """The propagator with β unscaled, on cells short enough for β times ``scale``."""
        with torch.no_grad():
            s, uncut = self._bounds(scale)
        return (
            kept(self.linear, "uncut grid", lambda: self.unscaled(s)) if uncut else self.unscaled(s)
        )

    def unscaled(self, s: Tensor) -> MagnusPropagator:
        """The propagator with β unscaled, on cells with bounds s (n + 1,)."""

        def time(tau: Tensor) -> Tensor:
            s = self.linear.beta.inverse(tau)
            return s - (s.detach() - self.linear.horizon).clamp_min(0) - s.detach().clamp_max(0)

        cells = MatrixCells(
            lambda tau: self.drift_at(time(tau)),
            lambda tau: self.noise_at(time(tau)),
            lambda tau: -(self.drift_at(time(tau)) + self.noise_at(time(tau)) @ self.precision()),
            self.linear.beta.integral(s),
            lambda tau: self.root_at(time(tau)),
            self.linear.num_variables,
        )
        return MagnusPropagator(cells)

    def _bounds(self, scale: Tensor) -> tuple[Tensor, bool]:
        """Times of the cells' bounds, (n + 1,), and whether no cell was cut."""
        s, tau, norm = kept(self.linear, "bounds", self.uncut_bounds)
        pieces = norm * scale / REACH
        total = pieces.sum().item()
        if not total < MAX_CELLS:
            raise kernels.KernelPrecisionError(
                f"the drift moves by ‖A‖τ = {REACH * total:.3g} over the whole clock, expected at "
                f"most {REACH * MAX_CELLS:.0f} with Q and D that vary; scale Q, D or the clock down"
            )
        pieces = pieces.ceil().clamp_min(1).long()
        if int(pieces.max()) == 1:
            return s, True
        first = torch.repeat_interleave(torch.arange(len(pieces), device=s.device), pieces)
        place = torch.arange(len(first), device=s.device) - (pieces.cumsum(0) - pieces)[first]
        inner = torch.lerp(tau[first], tau[first + 1], (place / pieces[first]).to(tau))
        cut = self.linear.beta.inverse(inner).clamp(0, self.linear.horizon)
        cut = torch.where(place == 0, s[first], cut)
        return torch.cat([cut, s[-1:]]), False

    @torch.no_grad()
    def uncut_bounds(self) -> tuple[Tensor, Tensor, Tensor]:
        """Times of the bounds, the integral of β there, and ‖A‖ times the length of each cell."""
        x = torch.linspace(0, 1, self._num_cells + 1, dtype=torch.float64, device="cpu")
        s = self.linear.horizon * x**4 * (1 + EARLY**3) / (x**3 + EARLY**3)
        kinks = self.linear.beta.kinks().to(s)
        s = torch.cat([s, kinks[(kinks > 0) & (kinks < self.linear.horizon)]]).unique()
        s[-1] = self.linear.horizon
        tau = self.linear.beta.integral(s)
        norm = torch.linalg.matrix_norm(self.drift_at(s))
        return s, tau, torch.maximum(norm[1:], norm[:-1]) * tau.diff()

    # -- the ends ----------------------------------------------------------------------------------

    def clocks(self, targets: Tensor) -> Tensor:
        start = clock_at(self.linear, targets[:1], LOG_SNR)
        if len(targets) == 1:
            return start
        return torch.cat([start, self.linear.clock(self.linear.horizon).reshape(1)])

    def scale(self) -> Tensor:
        end = unscaled_end(self.linear)
        if self.linear.given_ends.low is None:
            return torch.ones_like(end)
        search = _ClockEnd(self)
        root = kept(self.linear, "end root", search.searched)
        return (search.with_gradient(root) if self.linear.has_graph else root) / end

    def search_range(self, move: Propagator) -> tuple[float, float]:
        last = self.linear.clock(self.linear.horizon).log().item()
        return math.log(max(move.speed, 1e-300)), last + 1e-6  # later times are taken for T


class _ClockEnd:
    """The search for the clock time of T, over the cells of matrices that vary."""

    def __init__(self, matrices: Varying) -> None:
        self.matrices, self.linear = matrices, matrices.linear

    def with_gradient(self, root: Tensor) -> Tensor:
        """The end of the clock, with the gradient carried by one Newton step at ``root``."""
        end = unscaled_end(self.linear)
        scale = (root / end).detach().requires_grad_()
        log_snr = self._log_snr(self.matrices.grid(scale).slowed(scale))
        (slope,) = torch.autograd.grad(log_snr, scale, retain_graph=True)
        if not bool(slope.isfinite()) or slope.item() == 0:
            raise self._unreachable(root.item(), log_snr.item())
        return (scale.detach() + (targets(self.linear)[1] - log_snr) / slope) * end

    def _log_snr(self, move: MagnusPropagator) -> Tensor:
        """λ(T), 0-dim, of cells alone."""
        M, P = move.whole()
        initial = self.linear.initial_covariance
        Sigma = P + M @ initial @ M.mT
        (factor,) = kernels.factors(Sigma, M)
        if factor.amplification.item() > 1e3 and move.travelled(move.bounds[-1]).item() < 20.0:
            W, pulled = move.whole_pulled_back()  # T is near the data still
            back = (W[None], pulled[None])
            _, near = kernels.factors(Sigma[None], M[None], back, initial)
            factor = near if near.amplification.item() < factor.amplification.item() else factor
        return factor.log_snr.reshape(())

    @torch.no_grad()
    def searched(self) -> Tensor:
        """The clock time of T by secants in log τ, within a bracket as soon as there is one."""
        target = float(targets(self.linear)[1])
        x, per_error = unscaled_end(self.linear).log().item(), 0.1
        low, high, last, error = -math.inf, math.inf, None, math.nan
        for _ in range(80):
            try:
                scale = as_times(x).exp() / unscaled_end(self.linear)
                move = self.matrices.grid(scale).slowed(scale)
                error = self._log_snr(move).item() - target
            except kernels.KernelPrecisionError:
                error = -math.inf if math.isfinite(low) else math.nan
            if not math.isfinite(error):
                break
            low, high = (max(low, x), high) if error > 0 else (low, min(high, x))
            if last is not None and last[0] != x and last[1] != error:
                per_error = -(x - last[0]) / (error - last[1])
            step = min(max(per_error * error, -1.5), 1.5)
            if abs(error) < 1e-11 or abs(step) < 1e-15:
                return as_times(x).exp()
            if abs(error) < 1e-7 and last is not None and abs(x - last[0]) < 1e-3:
                return as_times(x + step).exp()  # converged: the secant is short
            last, moved = (x, error), x + step
            if not low < moved < high:
                moved = (
                    (low + high) / 2 if math.isfinite(low + high) else x + math.copysign(1, error)
                )
            if moved == x:
                return as_times(x).exp()
            x = moved
        raise self._unreachable(math.exp(min(x, 700.0)), error + target)

    def _unreachable(self, end: float, log_snr: float) -> UnreachableError:
        check_controllable(self.linear)
        name = type(self.linear).__name__
        return UnreachableError(
            f"{name}: min_log_snr {float(targets(self.linear)[1]):g} is out of reach of float64, "
            f"whatever the clock: with {shown(self.linear)} log SNR is {log_snr:.4g} where the "
            f"clock ends at {end:.4g}; ask for a higher log SNR, or bring the time scales of Q "
            f"and D together{self.matrices.remedy}"
        )


class Functions(Varying):
    """Matrices that are given as functions of time; see :class:`TimeVaryingDiffusion`.

    Args:
        Q, D: functions of times (…) that return (…, K, K).
        cells: the number of cells.
    """

    names = ("Q", "D")
    for_constants = "LinearDiffusion"

    def __init__(self, Q: MatrixFunction, D: MatrixFunction, cells: int) -> None:
        super().__init__(cells)
        self._given = dict(zip(self.names, (Q, D), strict=True))
        for name, given in self._given.items():
            if not callable(given):
                raise TypeError(
                    f"{name} is {describe(given)}, expected a function of times s (…) that returns "
                    f"(…, K, K); use {self.for_constants} for constant matrices"
                )

    def register(self) -> int:
        for name, given in self._given.items():
            setattr(self.linear, f"{name}_function", given)
        s = self.check_times
        with torch.no_grad():
            K = _num_variables(self.names[0], self._given[self.names[0]], s[:1])
        self.linear.num_variables = K
        for name, given in self._given.items():
            for shaped in (s, s[:6].reshape(2, 3), s[0]):
                matrix = self._checked(name, given, shaped)
            if matrix.requires_grad and not isinstance(given, nn.Module):
                raise ValueError(
                    f"{name} is {describe(given)} and returns a tensor that requires a gradient, "
                    "expected one of constants, or an nn.Module that holds what is learned; write "
                    "it as a module with parameters"
                )
        return K

    def _checked(self, name: str, function: MatrixFunction, s: Tensor) -> Tensor:
        """The matrices of a function at times s (…), (…, K, K), with shape and dtype checked."""
        matrix = function(s)
        K = self.linear.num_variables
        if not isinstance(matrix, Tensor) or matrix.dtype != torch.float64:
            got = matrix.dtype if isinstance(matrix, Tensor) else describe(matrix)
            raise TypeError(
                f"{name}(s) is {got}, expected a tensor of torch.float64, like s; make its "
                "constants torch.float64 and compute in the dtype of s"
            )
        # a column for each source of noise: any number of them
        m = matrix.shape[-1] if name == "G" and matrix.dim() and matrix.numel() else K
        if matrix.shape != (*s.shape, K, m):
            wanted = f"{(*s.shape, K, K)}" + " or any number of columns" * (name == "G")
            raise ValueError(
                f"{name}(s) has shape {tuple(matrix.shape)} for times of shape {tuple(s.shape)}, "
                f"expected {wanted}; write functions of time with s[..., None, None]"
            )
        finite = matrix.detach().isfinite().flatten(-2).all(-1)
        if not bool(finite.all()):
            worst = s.detach().flatten()[~finite.flatten()][0].item()
            raise ValueError(
                f"{name}(s) is not finite at s = {worst:.6g}, expected finite numbers on all of "
                f"[0, T] = [0, {self.linear.horizon:g}]"
            )
        return matrix

    def evaluate(self, name: str, s: Tensor) -> Tensor:
        return self._checked(name, getattr(self.linear, f"{name}_function"), s)

    def settings(self) -> dict[str, object]:
        functions = {name: getattr(self.linear, f"{name}_function") for name in self.names}
        return super().settings() | {name: described(f) for name, f in functions.items()}


class DriftAndDispersionFunctions(Functions):
    """A and G that are given as functions of time; see :class:`TimeVaryingSDE`."""

    names = ("A", "G")
    for_constants = "LinearSDE"
    prior_kind = GivenPrior

    def _check_values(self, s: Tensor) -> None:
        """Nothing to check: any A and G will do."""

    Q, D, at = Matrices.Q, Matrices.D, Matrices.at  # type: ignore[assignment]

    def drift_at(self, s: Tensor) -> Tensor:
        return self.evaluate("A", s)

    def noise_at(self, s: Tensor) -> Tensor:
        G = self.evaluate("G", s)
        return G @ G.mT

    def root_at(self, s: Tensor) -> Tensor:
        G = self.evaluate("G", s)
        K, m = G.shape[-2:]
        return super().root_at(s) if m > K else nn.functional.pad(G, (0, K - m))

    def search_range(self, move: Propagator) -> tuple[float, float]:
        noise: Tensor = torch.linalg.matrix_norm(self.noise_at(self.check_times).detach(), ord=2)
        return math.log(max(move.speed, noise.max().item())), super().search_range(move)[1]


class Polynomials(Varying):
    """Matrices that are learned polynomials of time; see :class:`TimeVaryingLearnedDiffusion`.

    Args:
        start: the diffusion of constant matrices where they start.
        degree: the degree of the polynomials.
        cells: the number of cells.
    """

    remedy = REMEDY

    def __init__(self, start: LearnedDiffusion, degree: int, cells: int) -> None:
        super().__init__(cells)
        K = start.num_variables
        self._degree, self._below = degree, tuple(torch.tril_indices(K, K, offset=-1))
        self._start = K, start.lower.detach(), start.B.detach()

    def register(self) -> int:
        K, *start = self._start
        for name, constant in zip(("lower", "B"), start, strict=True):
            more = constant.new_zeros(self._degree, *constant.shape)
            self.linear.register_parameter(name, nn.Parameter(torch.cat([constant[None], more])))
        return K

    def _polynomials(self, s: Tensor) -> Tensor:
        """The polynomials T_0, …, T_degree at s, (*s.shape, degree + 1)."""
        x = 2 * s / self.linear.horizon - 1
        T = [torch.ones_like(x), x]
        while len(T) <= self._degree:
            T.append(2 * x * T[-1] - T[-2])
        return torch.stack(T[: self._degree + 1], -1)

    def _entries(self, name: str, s: Tensor) -> Tensor:
        parameter: Tensor = getattr(self.linear, name)
        summed = self._polynomials(s) @ parameter.flatten(1)
        return summed.reshape(*s.shape, *parameter.shape[1:])

    def evaluate(self, name: str, s: Tensor) -> Tensor:
        if name == "D":
            B = self._entries("B", s)
            return B @ B.mT
        K = self.linear.num_variables
        if K == 1:
            return s.new_zeros(*s.shape, 1, 1)
        W = s.new_zeros(*s.shape, K, K)
        W[..., self._below[0], self._below[1]] = self._entries("lower", s)
        return W - W.mT

    def _check_values(self, s: Tensor) -> None:
        """Nothing to check: Q(s) is skew and D(s) positive semi-definite by construction."""

    def root_at(self, s: Tensor) -> Tensor:
        B = self._entries("B", s)
        return math.sqrt(2) * nn.functional.pad(B, (0, self.linear.num_variables - B.shape[-1]))

    def settings(self) -> dict[str, object]:
        return super().settings() | {"degree": self._degree}


class TimeVaryingDiffusion(LinearDiffusion):
    r"""A linear diffusion whose Q and D are given functions of time.

        dy = -(Q(s) + D(s)) Σ_∞^{-1} y β(s) ds + sqrt(2 D(s) β(s)) dB

    N(0, Σ_∞) is stationary for any Q(s) and D(s), which need not commute at different times. All
    methods of :class:`LinearDiffusion` are there, by fourth-order Magnus steps over a grid of cells
    (:mod:`~pyro_mdm.varying.magnus`) instead of closed forms; for constant matrices they agree to
    rounding. With 256 cells and matrices that change by about their own size, moments have errors
    below 1e-7 for K up to 5; log SNR of a chain of 8 has 4e-7.

    Args:
        Q: a function or ``nn.Module`` of times s (…) in float64 within [0, T], which returns
            (…, K, K) in float64, skew-symmetric. What is learned must be a module's parameter.
        D: a function likewise, symmetric positive semi-definite.
        cells: the number of cells. The error of moments falls with its fourth power, as far as Q
            and D are smooth in s. Cells are even in s but shorter near 0, where the noise of x
            begins like a high power of s. Kinks of the clock are bounds of cells.
        options: options of :class:`LinearDiffusion`. With ``min_log_snr`` the clock is scaled,
            while Q and D stay the same functions of s.

    Raises:
        TypeError: Q or D is no function, or does not return float64 tensors.
        ValueError: wrong shapes, values that are not finite, Q(s) not skew or D(s) not symmetric
            positive semi-definite at some s; tensors that are learned outside a module; and what
            :class:`LinearDiffusion` refuses.

    Example:
        >>> J = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
        >>> friction = torch.tensor([[0.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        >>> diffusion = TimeVaryingDiffusion(
        ...     lambda s: (1 + s)[..., None, None] * J,
        ...     lambda s: (2 + torch.cos(3 * s))[..., None, None] * friction,
        ... )
        >>> diffusion.marginal(0.5).covariance.shape
        torch.Size([2, 2])
    """

    def __init__(
        self, Q: MatrixFunction, D: MatrixFunction, *, cells: int = 256, **options: Any
    ) -> None:
        super().__init__(Functions(Q, D, cells), **options)


class TimeVaryingSDE(LinearSDE):
    r"""A linear diffusion ``dy = A(s) y β(s) ds + G(s) sqrt(β(s)) dB`` of given functions A and G.

    There need be no stationary distribution. Kernels are the Magnus steps of
    :class:`TimeVaryingDiffusion`, with its errors.

    Args:
        A, G: functions or ``nn.Module`` of times s (…) in float64 within [0, T], which return
            (…, K, K) and (…, K, m) in float64, with a column of G for each source of noise. What is
            learned must be a module's parameter.
        cells: the number of cells, as for :class:`TimeVaryingDiffusion`.
        options: options of :class:`~pyro_mdm.LinearSDE`: ``prior_variance``, the ends, the clock.

    Raises:
        TypeError: A or G is no function, or does not return float64 tensors.
        ValueError: wrong shapes, values that are not finite, tensors that are learned outside a
            module; and what :class:`~pyro_mdm.LinearSDE` refuses.

    Example:
        >>> def A(s):
        ...     return (s - 1)[..., None, None]
        >>> def G(s):
        ...     return (1 + s)[..., None, None]
        >>> TimeVaryingSDE(A, G).marginal(1.0).mean  # exp(-1/2)
        tensor([0.6065], dtype=torch.float64)
    """

    def __init__(
        self, A: MatrixFunction, G: MatrixFunction, *, cells: int = 256, **options: Any
    ) -> None:
        super().__init__(DriftAndDispersionFunctions(A, G, cells), **options)


class TimeVaryingLearnedDiffusion(LinearDiffusion):
    r"""A :class:`~pyro_mdm.LearnedDiffusion` whose W and B are learned polynomials of time.

    Q(s) = W(s) - W(s)ᵀ and D(s) = B(s) B(s)ᵀ. Every entry of the strictly lower triangular W and of
    B (K, rank) is a sum of Chebyshev polynomials T_0, …, T_degree of 2 s / T - 1, with degree + 1
    coefficients in place of each parameter of ``LearnedDiffusion``. It starts like that one,
    constant in time; :meth:`from_diffusion` starts elsewhere.

    Args:
        num_variables, rank: number K of variables and the rank of D(s), as for
            ``LearnedDiffusion``.
        learn_beta: whether the clock is learned too.
        degree: the degree of the polynomials, at least 0 (constant).
        cells: number of cells, as for :class:`TimeVaryingDiffusion`.
        learn_ends, learn_stationary: whether ends and Σ_∞ are learned too, as for
            ``LearnedDiffusion``.
        options: options of :class:`LinearDiffusion`.
    """

    lower: nn.Parameter
    B: nn.Parameter

    def __init__(
        self,
        num_variables: int = 2,
        rank: int | None = None,
        learn_beta: bool = False,
        *,
        degree: int = 3,
        cells: int = 256,
        learn_ends: float | Sequence[float] = 0.0,
        learn_stationary: bool = False,
        **options: Any,
    ) -> None:
        check_count("degree", degree, "the degree of polynomials of time", 0)
        start = LearnedDiffusion(num_variables, rank, learn_beta, **options)
        options["beta"] = start.beta
        super().__init__(Polynomials(start, degree, cells), **options)
        learn_more(self, learn_ends, learn_stationary)

    @classmethod
    def from_diffusion(
        cls,
        start: LinearDiffusion,
        rank: int | None = None,
        learn_beta: bool = False,
        *,
        degree: int = 3,
        cells: int = 256,
        **options: Any,
    ) -> TimeVaryingLearnedDiffusion:
        """The learned diffusion that starts as one of constant Q and D.

        Args:
            start, rank, learn_beta, options: as for ``LearnedDiffusion.from_diffusion``.
            degree, cells: as for the class.
        """
        names = ("learn_ends", "learn_stationary")
        learned = {name: options.pop(name) for name in names if name in options}
        constant = LearnedDiffusion.from_diffusion(start, rank, learn_beta, **options)
        settings = options_of(constant) | learned
        if "cut_time" in settings:
            del settings["max_log_snr"]
        K, rank = constant.B.shape
        varying = cls(K, rank, degree=degree, cells=cells, **settings)
        with torch.no_grad():
            varying.lower[0].copy_(constant.lower)
            varying.B[0].copy_(constant.B)
        return varying


def _num_variables(name: str, function: MatrixFunction, s: Tensor) -> int:
    matrix = function(s)
    shape = tuple(matrix.shape) if isinstance(matrix, Tensor) else describe(matrix)
    if not isinstance(matrix, Tensor) or matrix.dim() != 3 or shape[1] != shape[2] or not shape[1]:
        raise ValueError(
            f"{name}(s) has shape {shape} for times of shape (1,), expected (1, K, K); write "
            "functions of time with s[..., None, None]"
        )
    return int(shape[1])
