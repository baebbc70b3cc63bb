r"""Linear diffusions whose Q(s) and D(s) vary in time, without commuting: given, or learned."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_mdm.diffusions import kernels
from pyro_mdm.diffusions.base import Times, UnreachableError
from pyro_mdm.diffusions.learned import LearnedFamily
from pyro_mdm.diffusions.linear import LinearDiffusion, Matrices
from pyro_mdm.diffusions.magnus import MAX_CELLS, REACH, MagnusPropagator, MovedCells
from pyro_mdm.diffusions.matrices import check_semidefinite, check_skew
from pyro_mdm.diffusions.presets import LearnedDiffusion
from pyro_mdm.support.checks import check_count, describe
from pyro_mdm.support.settings import described

__all__ = ["MatrixFunction", "TimeVaryingDiffusion", "TimeVaryingLearnedDiffusion"]

MatrixFunction = Callable[[Tensor], Tensor]
"""Times s (…) in float64 -> matrices (…, K, K) in float64."""

COARSE = 32
"""Cells by which the clock's end is found approximately."""
EARLY = 1 / 2
"""The part of [0, T] in which cells become short towards 0."""


class _Near(NamedTuple):
    """Cells for a scale of the clock, and how they change with its logarithm."""

    scale: Tensor
    move: MagnusPropagator
    rates: MovedCells

    def at(self, scale: Tensor) -> MovedCells:
        """Those for a scale that is the same but for its gradient, or rounding."""
        more = scale / self.scale - 1
        return MovedCells(
            *(t + rate * more for t, rate in zip(self.move.moved, self.rates, strict=True))
        )


class TimeVaryingDiffusion(LinearDiffusion):
    r"""``dy = -(Q(s) + D(s)) Σ_∞^{-1} y β(s) ds + sqrt(2 D(s) β(s)) dB``.

    N(0, Σ_∞) is at rest whatever Q(s) and D(s) are, which need not commute at different times.
    Everything that a :class:`LinearDiffusion` has is there, by Magnus steps of the fourth order
    over a grid of cells (:mod:`~pyro_mdm.diffusions.magnus`) instead of closed forms of constant
    matrices; of constant ones it is the same to rounding. With 256 cells and matrices that change
    by about their own size, moments have errors below 1e-7 for K up to 5; log SNR of a chain of 8
    has 4e-7.

    Args:
        Q: times s (…) in float64, within [0, T] -> (…, K, K) in float64, skew-symmetric. A
            function, or an ``nn.Module``; what is learned must be a module's parameter.
        D: likewise, symmetric positive semi-definite.
        cells: number of cells. The error of moments falls with its fourth power, as far as Q and D
            are smooth in s. Cells are even in s but short near 0, where x's noise begins like a
            high power of s, and a clock's kinks are bounds of cells.
        options: those of :class:`LinearDiffusion`. With ``min_log_snr`` the clock is scaled while
            Q(s) and D(s) keep their places on [0, T].

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
        check_count("cells", cells, "the number of Magnus cells between 0 and T")
        self._num_cells = cells
        super().__init__(Q, D, **options)  # type: ignore[arg-type]

    def _take_matrices(self, Q: Any, D: Any) -> int:
        for name, given in (("Q", Q), ("D", D)):
            if not callable(given):
                raise TypeError(
                    f"{name} is {describe(given)}, expected a function of times s (…) that returns "
                    f"(…, K, K); use LinearDiffusion for constant matrices"
                )
        self.Q_function, self.D_function = Q, D
        s = self._sampled_times()
        with torch.no_grad():
            K = _num_variables("Q", Q, s[:1])
        self.num_variables = K
        for name, given in (("Q", Q), ("D", D)):
            for shaped in (s, s[:6].reshape(2, 3), s[0]):
                found = self._checked(name, given, shaped)
            outside = found.requires_grad and not isinstance(given, nn.Module)
            if outside:
                raise ValueError(
                    f"{name} is {describe(given)} and returns a tensor that requires a gradient, "
                    "expected one of constants, or an nn.Module that holds what is learned; write "
                    "it as a module with parameters"
                )
        return K

    def _sampled_times(self) -> Tensor:
        return torch.linspace(0.0, self.horizon, 65, dtype=torch.float64)

    def _checked(self, name: str, function: MatrixFunction, s: Tensor) -> Tensor:
        """What a function returns for times s (…), its shape and dtype checked."""
        found = function(s)
        K = self.num_variables
        if not isinstance(found, Tensor) or found.dtype != torch.float64:
            got = found.dtype if isinstance(found, Tensor) else describe(found)
            raise TypeError(
                f"{name}(s) is {got}, expected a tensor of torch.float64, like s; make its "
                "constants torch.float64 and compute in the dtype of s"
            )
        if found.shape != (*s.shape, K, K):
            raise ValueError(
                f"{name}(s) has shape {tuple(found.shape)} for times of shape {tuple(s.shape)}, "
                f"expected {(*s.shape, K, K)}; write functions of time with s[..., None, None]"
            )
        finite = found.detach().isfinite().flatten(-2).all(-1)
        if not bool(finite.all()):
            worst = s.detach().flatten()[~finite.flatten()][0].item()
            raise ValueError(
                f"{name}(s) is not finite at s = {worst:.6g}, expected finite numbers on all of "
                f"[0, T] = [0, {self.horizon:g}]"
            )
        return found

    def _check_family(self) -> None:
        with torch.no_grad():
            self._check_values(self._sampled_times().to(self._device()))
        self._check_controllable()

    def _check_values(self, s: Tensor) -> None:
        """Whether Q is skew and D positive semi-definite at times s (n,)."""
        for name, at, check in (("Q", self.Q_at, check_skew), ("D", self.D_at, check_semidefinite)):
            found = at(s)
            try:
                check(f"{name}(s)", found, 1e-12)
            except ValueError:
                for moment, one in zip(s.tolist(), found, strict=True):
                    check(f"{name}(s) at s = {moment:.6g}", one, 1e-12)
                raise

    def _reached(self) -> int:
        s = self._sampled_times().to(self._device())
        D = self.D_at(s)
        A = -(self.Q_at(s) + D) @ torch.linalg.inv(self.stationary_covariance)
        return kernels.noise_basis(A, D, tolerance=1e-10)[0].shape[1]

    def _matrices(self) -> str:
        middle = self.horizon / 2
        found = (("Q", self.Q_at(middle).detach()), ("D", self.D_at(middle).detach()))
        return ", ".join(
            f"{name}({middle:g}) = {[[float(f'{v:.4g}') for v in row] for row in matrix.tolist()]}"
            for name, matrix in found
        )

    # -- matrices ----------------------------------------------------------------------------------

    @property
    def Q(self) -> Tensor:
        """None: it varies.

        Raises:
            TypeError: always; see :meth:`Q_at`.
        """
        raise TypeError(self._varies("Q", "Q_at(s)"))

    @property
    def D(self) -> Tensor:
        """None: it varies.

        Raises:
            TypeError: always; see :meth:`D_at`.
        """
        raise TypeError(self._varies("D", "D_at(s)"))

    @property
    def unit_drift(self) -> Tensor:
        """None: it varies.

        Raises:
            TypeError: always; see :meth:`drift_matrix`.
        """
        raise TypeError(self._varies("drift matrix", "drift_matrix(s)"))

    @property
    def unit_noise(self) -> Tensor:
        """None: it varies.

        Raises:
            TypeError: always; see :meth:`clock_noise`.
        """
        raise TypeError(self._varies("noise covariance", "clock_noise(s)"))

    @property
    def unit_dispersion(self) -> Tensor:
        """None: it varies.

        Raises:
            TypeError: always; see :meth:`dispersion_matrix`.
        """
        raise TypeError(self._varies("dispersion", "dispersion_matrix(s)"))

    def _varies(self, what: str, instead: str) -> str:
        return f"{type(self).__name__} has no constant {what}: it varies in time; use {instead}"

    def Q_at(self, s: Times) -> Tensor:
        """Q(s), (*s.shape, K, K), skew-symmetric."""
        return self._evaluate("Q", self.checked_time("s", s))

    def D_at(self, s: Times) -> Tensor:
        """D(s), (*s.shape, K, K), positive semi-definite."""
        return self._evaluate("D", self.checked_time("s", s))

    def _evaluate(self, name: str, s: Tensor) -> Tensor:
        """Q or D at times s (…) in float64."""
        return self._checked(name, getattr(self, f"{name}_function"), s)

    def _dispersion_at(self, s: Tensor) -> Tensor:
        """A root of 2 D(s), (*s.shape, K, K), differentiable."""
        return kernels.semidefinite_cholesky(2 * self.D_at(s))

    def drift_matrix(self, s: Times) -> Tensor:
        s = self.checked_time("s", s)
        A = -torch.linalg.solve(self.stationary_covariance, self.Q_at(s) + self.D_at(s), left=False)
        return self.rate(s)[..., None, None] * A

    def clock_noise(self, s: Times) -> Tensor:
        return 2 * self.D_at(s)

    def dispersion_matrix(self, s: Times) -> Tensor:
        s = self.checked_time("s", s)
        return self.rate(s).sqrt()[..., None, None] * self._dispersion_at(s)

    def frozen(self) -> Matrices:
        s = self.time_at_clock(self.clock(self.horizon) / 2)
        Q, D = self.Q_at(s), self.D_at(s)
        return Matrices(Q, D, -(Q + D) @ torch.linalg.inv(self.stationary_covariance))

    def divergence(self, s: Times, r: Times, dimensions: int = 1) -> Tensor:
        start = self.clock(r)
        return dimensions * self.propagator.trace(start, self.clock(s) - start)

    def noise_basis(self) -> tuple[Tensor, Tensor]:
        return self._magnus.basis

    def __getstate__(self) -> dict[str, Any]:
        """Without what is kept: a copy's grid must ask the copy for its matrices."""
        return self.__dict__ | {"_cache": {}}

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"cells": self._num_cells} | self._described()

    def _described(self) -> dict[str, Any]:
        """What the matrices are made of, that is no parameter or buffer."""
        return {"Q": described(self.Q_function), "D": described(self.D_function)}

    # -- the grid ----------------------------------------------------------------------------------

    @property
    def propagator(self) -> MagnusPropagator:
        return self._magnus

    @property
    def _magnus(self) -> MagnusPropagator:
        def build() -> MagnusPropagator:
            scale = self._clock_scale()
            found = self.propagator_at(scale)
            if scale.requires_grad and self.min_log_snr is not None:
                found = found.with_moved(self._near(scale.detach()).at(scale))
            if not torch.is_grad_enabled():
                self._check_values(self._time(found.bounds))
            return found

        kept: MagnusPropagator = self._cached("propagator", build)
        return kept

    def propagator_at(self, scale: Tensor) -> MagnusPropagator:
        """With the clock multiplied by ``scale``, 0-dim."""
        return self._grid(scale).slowed(scale)

    def _grid(self, scale: Tensor) -> MagnusPropagator:
        """With β as it is, on cells short enough for a clock of ``scale`` times that."""
        with torch.no_grad():
            s, uncut = self._bounds(scale)
        kept: MagnusPropagator = (
            self._cached("uncut grid", lambda: self._unscaled(s)) if uncut else self._unscaled(s)
        )
        return kept

    def _unscaled(self, s: Tensor) -> MagnusPropagator:
        def time(tau: Tensor) -> Tensor:
            s = self.beta.inverse(tau)
            return s - (s.detach() - self.horizon).clamp_min(0) - s.detach().clamp_max(0)

        return MagnusPropagator(
            lambda tau: self._evaluate("Q", time(tau)),
            lambda tau: self._evaluate("D", time(tau)),
            self.stationary_covariance,
            self.beta.integral(s),
            lambda tau: self._dispersion_at(time(tau)),
        )

    def _time(self, tau: Tensor) -> Tensor:
        return self.time_at_clock(tau).clamp(0.0, self.horizon)

    def _bounds(self, scale: Tensor) -> tuple[Tensor, bool]:
        """Times of the cells' bounds, (n + 1,), and whether all cells are as long as usual."""
        s, tau, norm = self._cached("bounds", self._uncut_bounds)
        parts = norm * scale / REACH
        total = parts.sum().item()
        if not total < MAX_CELLS:
            raise kernels.KernelPrecisionError(
                f"the drift moves by ‖A‖τ = {REACH * total:.3g} over the whole clock, expected at "
                f"most {REACH * MAX_CELLS:.0f} with Q and D that vary; scale Q, D or the clock down"
            )
        parts = parts.ceil().clamp_min(1).long()
        if int(parts.max()) == 1:
            return s, True
        first = torch.repeat_interleave(torch.arange(len(parts), device=s.device), parts)
        place = torch.arange(len(first), device=s.device) - (parts.cumsum(0) - parts)[first]
        inner = torch.lerp(tau[first], tau[first + 1], (place / parts[first]).to(tau))
        cut = self.beta.inverse(inner).clamp(0, self.horizon)
        cut = torch.where(place == 0, s[first], cut)
        return torch.cat([cut, s[-1:]]), False

    def _uncut_bounds(self) -> tuple[Tensor, Tensor, Tensor]:
        """Times of the bounds, the integral of β there, and ‖A‖ times its length in each cell."""
        x = torch.linspace(0, 1, self._num_cells + 1, dtype=torch.float64, device=self._device())
        s = self.horizon * x**4 * (1 + EARLY**3) / (x**3 + EARLY**3)
        kinks = self.beta.kinks().to(s)
        s = torch.cat([s, kinks[(kinks > 0) & (kinks < self.horizon)]]).unique()
        s[-1] = self.horizon
        tau = self.beta.integral(s)
        A = self._evaluate("Q", s) + self._evaluate("D", s)
        A = A @ torch.linalg.inv(self.stationary_covariance)
        norm = torch.linalg.matrix_norm(A)
        return s, tau, torch.maximum(norm[1:], norm[:-1]) * tau.diff()

    # -- the ends ----------------------------------------------------------------------------------

    def _last_clock(self) -> float:
        return self.clock(self.horizon).log().item() + 1e-6  # later times are taken for T

    def _clock_scale(self) -> Tensor:
        def scale() -> Tensor:
            end = self.beta.integral(self.as_tensor(self.horizon))
            return torch.ones_like(end) if self.min_log_snr is None else self._end_clock() / end

        found: Tensor = self._cached("clock_scale", scale)
        return found

    def end_clocks(self) -> Tensor:
        def compute() -> Tensor:
            end = self.clock(self.horizon).reshape(1)
            with torch.no_grad():
                low = self.factorization(end)[2].log_snr.item()
            if self._cut_time is None and not self.max_log_snr > low:
                self._check_controllable()
                raise UnreachableError(
                    f"max_log_snr is {self.max_log_snr:g}, but log SNR ends at {low:.6g} with "
                    f"{self._matrices()}: nothing is left between the start time and T; use a "
                    f"faster clock, or set min_log_snr{self._remedy()}"
                )
            target = self._given_ends()[:1]
            guess = None if self._guess is None else self._guess[:1]
            with torch.no_grad():
                root = self._cached("roots", lambda: self._inversion.root(target, guess))
            start = self._inversion.with_gradient(root, target)
            return start if self.min_log_snr is None else torch.cat([start, end])

        found: Tensor = self._cached("end_clocks", compute)
        return found

    def _end_clock(self) -> Tensor:
        """The clock time of T at which log SNR is ``min_log_snr``, 0-dim."""

        def compute() -> Tensor:
            with torch.no_grad():
                root = self._cached("end root", self._find_end)
            learned = any(p.requires_grad for p in self.parameters())
            return self._end_gradient(root) if learned and torch.is_grad_enabled() else root

        found: Tensor = self._cached("end_clock", compute)
        return found

    def _end_gradient(self, root: Tensor) -> Tensor:
        """The end of the clock, given as a number: one Newton step carries its gradient."""
        end = self.beta.integral(self.as_tensor(self.horizon))
        near = self._near((root / end).detach())
        leaves = MovedCells(*(t.detach().requires_grad_() for t in near.move.moved))
        found = self._terminal_of(near.move.with_moved(leaves))
        slopes = torch.autograd.grad(found, leaves, allow_unused=True)
        slope, moved = torch.zeros_like(end), found.detach()
        for by, cells, rate in zip(slopes, near.move.moved, near.rates, strict=True):
            if by is not None:
                slope = slope + (by * rate).sum()
                moved = moved + (by * (cells - cells.detach())).sum()
        if not bool(slope.isfinite()) or slope.item() == 0:
            raise self._end_unreachable(root.item(), found.item())
        more = (self._given_ends()[1] - moved) / slope
        return near.scale * (1 + more) * end

    def _near(self, scale: Tensor) -> _Near:
        """Cells for a scale of the clock, from which those for ones beside it are found."""

        def compute() -> _Near:
            move = self._grid(scale).slowed(scale)
            return _Near(scale, move, move.moved_rates())

        found: _Near = self._cached("near", compute)
        return found

    def _terminal_at(self, end: Tensor) -> Tensor:
        """λ(T) with a clock that ends at ``end``, 0-dim."""
        scale = end / self.beta.integral(self.as_tensor(self.horizon))
        return self._terminal_of(self.propagator_at(scale))

    def _terminal_of(self, move: MagnusPropagator) -> Tensor:
        """λ(T), 0-dim, of cells alone."""
        M, P = move.whole()
        factor = kernels.direct_factor(P + M @ self.initial_covariance @ M.mT, M[..., 0])
        if factor.amplification.item() > 1e3 and move.travelled(move.bounds[-1]).item() < 20.0:
            W, pulled = move.whole_pulled_back()  # near the data still
            near = kernels.pulled_back_factor(M, W, pulled, self.initial_covariance)
            factor = near if near.amplification < factor.amplification else factor
        return factor.log_snr

    def _find_end(self) -> Tensor:
        """By secants in log τ, kept within a bracket once there is one."""
        target = float(self.min_log_snr or 0.0)
        end = self.beta.integral(self.as_tensor(self.horizon))
        if self._guess is not None and len(self._guess) == 2:
            end = self._guess[1]
        x, per_error = self._about_end(end.log().item(), target)
        low, high, last, error = -math.inf, math.inf, None, math.nan
        for _ in range(80):
            try:
                error = self._terminal_at(self.as_tensor(x).exp()).item() - target
            except kernels.KernelPrecisionError:
                error = -math.inf if math.isfinite(low) else math.nan
            if not math.isfinite(error):
                break
            low, high = (max(low, x), high) if error > 0 else (low, min(high, x))
            if last is not None and last[0] != x and last[1] != error:
                per_error = -(x - last[0]) / (error - last[1])
            step = min(max(per_error * error, -1.5), 1.5)
            if abs(error) < 1e-11 or abs(step) < 1e-15:
                return self.as_tensor(x).exp()
            if abs(error) < 1e-7 and last is not None and abs(x - last[0]) < 1e-3:
                return self.as_tensor(x + step).exp()  # a secant as short as this misses nothing
            last, moved = (x, error), x + step
            if not low < moved < high:
                moved = (
                    (low + high) / 2 if math.isfinite(low + high) else x + math.copysign(1, error)
                )
            if moved == x:
                return self.as_tensor(x).exp()
            x = moved
        raise self._end_unreachable(math.exp(min(x, 700.0)), error + target)

    def _about_end(self, x: float, target: float) -> tuple[float, float]:
        """About where λ(T) is ``target``: the log of the clock's end, and -1 / dλ(T) by it.

        By few cells at many clocks around the log end ``x``.
        """
        s = self._cached("bounds", self._uncut_bounds)[0]
        grid = self._unscaled(s[torch.linspace(0, len(s) - 1, COARSE + 1).long()])
        per_error = 0.1
        for width in (1.2, 0.1):
            ends = torch.linspace(x - width, x + width, 13, dtype=torch.float64)
            M, P = grid.whole_slowed(ends.to(s).exp() / grid.bounds[-1])
            factor = kernels.direct_factor(P + M @ self.initial_covariance @ M.mT, M[..., 0])
            found = factor.log_snr.tolist()
            above = sum(value > target for value in found)
            i = min(max(above, 2), len(found) - 2)
            values, places = found[i - 2 : i + 2], ends[i - 2 : i + 2].tolist()
            reached = 0 < above < len(found)
            if not (reached and values[0] > values[1] > values[2] > values[3]):
                break
            x, lower = (_through(values, places, target - d) for d in (0.0, 1e-3))
            per_error = (lower - x) / 1e-3
        return x, per_error

    def _end_unreachable(self, end: float, found: float) -> UnreachableError:
        self._check_controllable()
        return UnreachableError(
            f"{type(self).__name__}: min_log_snr {self.min_log_snr:g} is out of reach of float64, "
            f"whatever the clock: with {self._matrices()} log SNR is {found:.4g} where the clock "
            f"ends at {end:.4g}; ask for a higher log SNR, or bring the time scales of Q and D "
            f"together{self._remedy()}"
        )


class TimeVaryingLearnedDiffusion(LearnedFamily, TimeVaryingDiffusion):
    r"""A :class:`~pyro_mdm.LearnedDiffusion` whose W and B are learned polynomials of time.

    Q(s) = W(s) - W(s)ᵀ and D(s) = B(s) B(s)ᵀ, every entry of the strictly lower triangular W and of
    B (K, rank) a sum of Chebyshev polynomials T_0, …, T_degree of 2 s / T - 1, so that there are
    degree + 1 numbers in place of each one of ``LearnedDiffusion``. It starts at what that starts
    at, constant in time.

    Args:
        num_variables, rank: K and the rank of D(s), as for ``LearnedDiffusion``.
        learn_beta: whether the clock is learned too.
        degree: of the polynomials, at least 0, which is constant.
        cells: as for :class:`TimeVaryingDiffusion`.
        learn_ends, learn_stationary: whether ends and Σ_∞ are learned too, as for
            ``LearnedDiffusion``.
        options: those of :class:`LinearDiffusion`.

    See :meth:`from_diffusion` to start elsewhere.
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
        options |= {"learn_ends": learn_ends, "learn_stationary": learn_stationary}
        super().__init__((start, degree), None, cells=cells, **options)

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
        """The one that begins as a diffusion of constant Q and D.

        Args:
            start, rank, learn_beta, options: as for ``LearnedDiffusion.from_diffusion``.
            degree, cells: as above.
        """
        names = ("learn_ends", "learn_stationary")
        learned = {name: options.pop(name) for name in names if name in options}
        constant = LearnedDiffusion.from_diffusion(start, rank, learn_beta, **options)
        ends: dict[str, Any] = {"max_log_snr": constant.max_log_snr}
        if constant.cut_time is not None:
            ends = {"cut_time": constant.cut_time}
        found = cls(
            constant.num_variables,
            constant.B.shape[1],
            degree=degree,
            cells=cells,
            beta=constant.beta,
            horizon=constant.horizon,
            stationary_variance=constant.stationary_covariance,
            initial_variance=constant.initial_covariance[1:, 1:],
            min_log_snr=constant.min_log_snr,
            **ends,
            **learned,
        )
        with torch.no_grad():
            found.lower[0].copy_(constant.lower)
            found.B[0].copy_(constant.B)
        return found

    def _take_matrices(self, Q: Any, D: Any) -> int:
        start, self._degree = Q
        K = int(start.num_variables)
        self._row, self._column = torch.tril_indices(K, K, offset=-1).unbind()
        for name in ("lower", "B"):
            constant = start.get_parameter(name).detach()
            more = constant.new_zeros(self._degree, *constant.shape)
            self.register_parameter(name, nn.Parameter(torch.cat([constant[None], more])))
        return K

    def _polynomials(self, s: Tensor) -> Tensor:
        """T_0, …, T_degree, (*s.shape, degree + 1)."""
        x = 2 * s / self.horizon - 1
        found = [torch.ones_like(x), x]
        while len(found) <= self._degree:
            found.append(2 * x * found[-1] - found[-2])
        return torch.stack(found[: self._degree + 1], -1)

    def _entries(self, parameter: Tensor, s: Tensor) -> Tensor:
        summed = self._polynomials(s) @ parameter.flatten(1)
        return summed.unflatten(-1, parameter.shape[1:])

    def _evaluate(self, name: str, s: Tensor) -> Tensor:
        if name == "D":
            B = self._entries(self.B, s)
            return B @ B.mT
        K = self.num_variables
        if K == 1:
            return s.new_zeros(*s.shape, 1, 1)
        W = s.new_zeros(*s.shape, K, K)
        W[..., self._row, self._column] = self._entries(self.lower, s)
        return W - W.mT

    def _check_values(self, s: Tensor) -> None:
        """Q(s) is skew and D(s) positive semi-definite by construction."""

    def _dispersion_at(self, s: Tensor) -> Tensor:
        B = self._entries(self.B, s)
        return math.sqrt(2) * nn.functional.pad(B, (0, self.num_variables - B.shape[-1]))

    def _described(self) -> dict[str, Any]:
        return {"degree": self._degree}


def _through(x: list[float], y: list[float], at: float) -> float:
    """The polynomial through points, by Lagrange."""
    factors = [math.prod((at - b) / (a - b) for b in x if b != a) for a in x]
    return sum(f * value for f, value in zip(factors, y, strict=True))


def _num_variables(name: str, function: MatrixFunction, s: Tensor) -> int:
    found = function(s)
    shape = tuple(found.shape) if isinstance(found, Tensor) else describe(found)
    if not isinstance(found, Tensor) or found.dim() != 3 or shape[1] != shape[2] or not shape[1]:
        raise ValueError(
            f"{name}(s) has shape {shape} for times of shape (1,), expected (1, K, K); write "
            "functions of time with s[..., None, None]"
        )
    return int(shape[1])
