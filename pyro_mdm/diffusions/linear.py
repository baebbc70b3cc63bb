r"""Linear diffusions under one clock, with closed-form kernels.

A linear diffusion consists of its :class:`Matrices` Q and D, and its
:class:`~pyro_mdm.diffusions.ends.Ends`, where log SNR starts and stops.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mdm.diffusions import kernels
from pyro_mdm.diffusions.ahead import Foreseeing
from pyro_mdm.diffusions.base import (
    Marginal,
    Matrix,
    Times,
    Transition,
    UnreachableError,
    check_clock,
    check_horizon,
    same_time,
)
from pyro_mdm.diffusions.clocks import Clock, LinearBeta
from pyro_mdm.diffusions.end_laws import EndLaws
from pyro_mdm.diffusions.ends import Ends
from pyro_mdm.diffusions.inversion import Inversion
from pyro_mdm.diffusions.matrices import (
    MAX_AMPLIFICATION,
    Matrices,
    SkewAndSemidefinite,
    covariance_matrix,
)
from pyro_mdm.diffusions.memory import shared, writes
from pyro_mdm.diffusions.propagator import Propagator, decay, volume_rate
from pyro_mdm.support.late_checks import check_values
from pyro_mdm.support.modules import of_part
from pyro_mdm.support.settings import described

__all__ = ["Frozen", "LinearDiffusion"]


class Frozen(NamedTuple):
    """Matrices (K, K) of a linear diffusion at one time."""

    Q: Tensor
    D: Tensor
    unit_drift: Tensor  # A_0 = -(Q + D) Σ_∞^{-1}


def _report_zero() -> None:
    raise ValueError(
        "the distribution of y_s given x at s = 0, where y holds x itself: Σ is singular and log "
        "SNR infinite; use s > 0, e.g. the start_time ε"
    )


def _report_precision(diffusion: LinearDiffusion, growth: Tensor, tau: Tensor, what: str) -> None:
    diffusion.check_controllable()  # a more specific error than one of precision
    worst = int(growth.flatten().argmax())
    s = diffusion.inverse_clock(tau.detach())
    raise kernels.KernelPrecisionError(
        f"{type(diffusion).__name__}: float64 cannot hold {what} at s = "
        f"{s.expand(growth.shape).flatten()[worst].item():.3g} (rounding grows by "
        f"{growth.max().item():.1e}, expected at most {MAX_AMPLIFICATION:.0e}); lower "
        "max_log_snr, take longer steps, or bring the time scales of its matrices together"
    )


class LinearDiffusion(Foreseeing):
    r"""A linear diffusion ``dy = -(Q + D) Σ_∞^{-1} y β ds + sqrt(2 D β) dB``.

    Args:
        Q: (K, K), skew-symmetric. Moves mass between variables without changing N(0, Σ_∞).
        D: (K, K), symmetric positive semi-definite. Adds noise and forgets the data.
        beta: the clock β(s), :class:`~pyro_mdm.diffusions.clocks.LinearBeta` 0.1 → 20 by default.
        horizon: T.
        stationary_variance: Σ_∞ as a number (times the identity), K variances, or a (K, K) matrix.
        initial_variance: Σ_v, the variance of the auxiliary variables at s = 0: a number or K-1.
        max_log_snr: λ at the start time ε, where the generative process hands over to the decoder.
            The same λ makes diffusions comparable; the same ε does not.
        min_log_snr: if given, the clock is multiplied by the number that makes λ(T) equal it.
        cut_time: ε as a time, as in the paper, instead of by ``max_log_snr``. Then ``max_log_snr``
            is whatever λ(ε) is, also while the diffusion is learned. Not with ``min_log_snr``.

    Raises:
        ValueError: a matrix of the wrong shape, Q not skew, D not symmetric or not positive
            semi-definite, Σ_∞ not positive definite, ends that make no sense.
        UnreachableError: (A, G) not controllable, or a log SNR that float64 does not reach; for a
            learned diffusion, at any later use too.

    Example:
        >>> diffusion = LinearDiffusion(Q=[[0.0, -1.0], [1.0, 0.0]], D=[[0.0, 0.0], [0.0, 2.0]])
        >>> diffusion.marginal(0.5).covariance.shape
        torch.Size([2, 2])
    """

    ends_kind: type[EndLaws] = EndLaws
    inversion_kind: type[Inversion] = Inversion
    matrices: Matrices
    stationary_covariance: Tensor
    """Σ_∞ (K, K), of the stationary distribution, where there is one by construction."""

    def __init__(
        self,
        Q: Matrix | Matrices,
        D: Matrix | None = None,
        *,
        beta: Clock | None = None,
        horizon: float = 1.0,
        stationary_variance: float | Sequence[float] | Matrix = 1.0,
        initial_variance: float | Sequence[float] = 0.01,
        max_log_snr: float = 13.0,
        min_log_snr: float | None = None,
        cut_time: float | None = None,
    ) -> None:
        super().__init__()
        self.horizon = check_horizon(horizon)
        ends = Ends(max_log_snr, min_log_snr, cut_time).checked(self.horizon)
        self.end_laws, self.inversion = self.ends_kind(self, ends), self.inversion_kind(self)
        self.matrices = Q if isinstance(Q, Matrices) else SkewAndSemidefinite(Q, D)  # type: ignore[arg-type]
        self.matrices.linear = self
        K = self.num_variables = self.matrices.register()
        self.beta = beta if beta is not None else LinearBeta(horizon=horizon)
        check_clock(self.beta)
        self.register_reference(stationary_variance)
        initial = torch.zeros(K, K, dtype=torch.float64)
        initial[1:, 1:] = covariance_matrix("initial_variance", initial_variance, K - 1)
        self.register_buffer("initial_covariance", initial)
        with torch.no_grad():
            self.matrices.check()
        self.check_controllable()
        with torch.no_grad():
            self.end_laws.clocks()  # an end out of reach is an error now, not at its first use

    def register_reference(self, variance: float | Sequence[float] | Matrix) -> None:
        """Register the covariance of the prior, as it is given; K is known."""
        value = covariance_matrix("stationary_variance", variance, self.num_variables)
        self.register_buffer("stationary_covariance", value)

    def check_controllable(self) -> None:
        """Raises UnreachableError unless noise reaches all variables."""
        with torch.no_grad():
            rates = self.matrices.rates(self.matrices.check_times)
            basis, _ = kernels.noise_basis(*rates, tolerance=1e-10)
        if (reached := basis.shape[1]) < self.num_variables:
            raise self._uncontrollable(reached)

    def _uncontrollable(self, reached: int) -> UnreachableError:
        return UnreachableError(
            f"{type(self).__name__}: noise reaches {reached} of {self.num_variables} variables "
            f"with {self.shown()}: (A, G) is not controllable and the process does not "
            "converge to its stationary distribution; couple the variables through Q or widen the "
            f"range of D{self.matrices.remedy}"
        )

    def shown(self) -> str:
        """Q and D in numbers, for messages."""
        middle, when = self.horizon / 2, self.matrices.when
        return ", ".join(
            f"{name}{when} = {[[float(f'{v:.4g}') for v in row] for row in matrix.tolist()]}"
            for name, matrix in (("Q", self.Q_at(middle)), ("D", self.D_at(middle)))
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name in ("matrices", "end_laws", "inversion"):
            owner = copy.copy(getattr(self, name))
            owner.linear = self
            setattr(self, name, owner)

    # -- matrices ----------------------------------------------------------------------------------

    @property
    def Q(self) -> Tensor:
        """Q, (K, K) float64, skew-symmetric. Raises TypeError where it varies in time."""
        return self.matrices.constant("Q")

    @property
    def D(self) -> Tensor:
        """D, (K, K) float64, positive semi-definite. Raises TypeError where it varies in time."""
        return self.matrices.constant("D")

    def Q_at(self, s: Times) -> Tensor:
        """Q(s), (*s.shape, K, K), skew-symmetric."""
        s = self.checked_time("s", s)
        return self.matrices.at("Q", s).expand(*s.shape, -1, -1)

    def D_at(self, s: Times) -> Tensor:
        """D(s), (*s.shape, K, K), positive semi-definite."""
        s = self.checked_time("s", s)
        return self.matrices.at("D", s).expand(*s.shape, -1, -1)

    @property
    def prior_covariance(self) -> Tensor:
        """Σ_π (K, K) of the prior N(0, Σ_π): the stationary covariance."""
        return self.stationary_covariance

    def at_rest(self) -> bool:
        return True  # by construction

    @property
    def unit_drift(self) -> Tensor:
        """A, (K, K), per unit of clock time: -(Q + D) Σ_∞^{-1}. TypeError where it varies."""
        return self.matrices.drift()

    @property
    def unit_noise(self) -> Tensor:
        """g², (K, K), per unit of clock time: 2 D. TypeError where it varies in time."""
        return self.matrices.noise()

    def frozen(self) -> Frozen:
        s = self.time_at_clock(self.clock(self.horizon) / 2)
        return Frozen(self.Q_at(s), self.D_at(s), self.matrices.drift(s))

    @property
    def propagator(self) -> Propagator:
        return self.kept("propagator", self.matrices.propagator)

    def settings(self) -> dict[str, Any]:
        settings = {"horizon": self.horizon, "beta": described(self.beta)}
        settings |= self.end_laws.given.settings() | self.matrices.settings()
        return settings | (
            {"learn_ends": list(self.end_laws.given.reach)} if self.learns_ends else {}
        )

    def options(self) -> dict[str, Any]:
        """Keyword arguments for another diffusion with the same clock, covariances and ends."""
        cut = {} if self.cut_time is None else {"cut_time": self.cut_time}
        return cut | {
            "beta": self.beta,
            "horizon": self.horizon,
            "stationary_variance": self.stationary_covariance.detach(),
            "initial_variance": self.initial_covariance[1:, 1:],
            "max_log_snr": self.max_log_snr,
            "min_log_snr": self.min_log_snr,
        }

    def restore(self, saved: dict[str, Any]) -> None:
        self.forget()
        high, low, cut = saved["max_log_snr"], saved["min_log_snr"], saved["cut_time"]
        self.end_laws.given = Ends(high, low, cut, self.end_laws.given.reach)

    # -- the clock ---------------------------------------------------------------------------------

    def clock(self, s: Times) -> Tensor:
        """The clock time b(s) = ∫_0^s β, like s, on which kernels depend."""
        return self.clock_scale() * self.beta.integral(self.checked_time("s", s))

    def inverse_clock(self, tau: Tensor) -> Tensor:
        return self.beta.inverse(tau / self.clock_scale())

    def time_at_clock(self, tau: Tensor) -> Tensor:
        s = self.inverse_clock(tau)
        return s - (s.detach() - self.horizon).clamp_min(0)  # not past T, by rounding

    def rate(self, s: Times) -> Tensor:
        return self.clock_scale() * self.beta.rate(self.checked_time("s", s))

    def drift_matrix(self, s: Times) -> Tensor:
        return self.rate(s)[..., None, None] * self.matrices.drift(s)

    def noise_covariance(self, s: Times) -> Tensor:
        return self.rate(s)[..., None, None] * self.matrices.noise(s)

    def clock_noise(self, s: Times) -> Tensor:
        return self.matrices.noise(s)

    def dispersion_matrix(self, s: Times) -> Tensor:
        return self.rate(s).sqrt()[..., None, None] * self.matrices.root(s)

    # -- kernels -----------------------------------------------------------------------------------

    def transition(self, s: Times, r: Times = 0.0) -> Transition:
        r"""The distribution of y_s given y_r: N(M(s, r) y_r, P(s, r)).

        Args:
            s, r: times in [0, T] with s > r, broadcast together to shape (…).

        Returns:
            :class:`Transition` with matrices (…, K, K) in float64.

        Raises:
            ValueError: a time outside [0, T] or s ≤ r.
            KernelPrecisionError: float64 cannot hold the factors of P.
        """
        later, earlier = torch.broadcast_tensors(
            self.checked_time("s", s), self.checked_time("r", r)
        )
        if bool((wrong := later <= earlier).any()):
            raise ValueError(
                f"transition from r = {earlier[wrong][0].item():.6g} to s = "
                f"{later[wrong][0].item():.6g}, expected s > r; noising runs forward"
            )
        tau = self.clock(later) - self.clock(earlier)
        start, move = self.clock(earlier), self.propagator
        M, P = move.moments(start, tau)
        F, _, log_det, growth = move.root(start, tau)
        self.check_precision(growth, tau, "the transition covariance")
        return Transition(M, P, kernels.lower_triangular(F), log_det)

    def noise_last_root(self, s: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        """M, a root F of P(s, r) = F Fᵀ, its inverse, and m, the number of columns of noise.

        The last m columns of F span the range of G, whatever the others add to the state: with y_s
        = M y_r + F η, the last m entries of η are what is new in it given the rest of y_s.
        """
        end, start = self.clock(s), self.clock(r)
        tau, move = end - start, self.propagator
        M, _ = move.moments(start, tau)
        F, inverse, _, growth = move.noise_last_root(start, tau)
        self.check_precision(growth, tau, "the transition covariance")
        return M, F, inverse, move.new

    def marginal(self, s: Times) -> Marginal:
        r"""The distribution of y_s given x, v_0 marginalized: N(a(s) x, Σ(s)) per data dimension.

        Args:
            s: times in (0, T], any shape (…).

        Returns:
            :class:`Marginal` in float64, differentiable in Q, D and the clock.

        Raises:
            ValueError: a time outside (0, T].
            KernelPrecisionError: float64 cannot hold log SNR(s).
        """
        if isinstance(s, Tensor):
            if (law := self.law_ahead(s)) is not None:
                return law
            if (one := same_time(s)) is not None:
                return Marginal(*(t.expand(*s.shape, *t.shape) for t in self.marginal(one)))
            # a loss asks for it, and so does the score in it
            name = "marginal", writes((s,)), torch.is_grad_enabled()
            law, _ = shared(self, name, lambda: (self.clock_marginal(self.positive_clock(s)), s))
            return law
        return self.clock_marginal(self.positive_clock(s))

    def positive_clock(self, s: Times) -> Tensor:
        s = self.checked_time("s", s)
        check_values((s.detach() > 0).all(), _report_zero)
        return self.clock_scale() * self.beta.integral(s)

    def clock_marginal(self, tau: Tensor) -> Marginal:
        a, Sigma, factor = self.factorization(tau)
        self.check_precision(factor.amplification, tau, "the marginal covariance")
        L = kernels.lower_triangular(factor.root)
        return Marginal(a, Sigma, L, factor.readout, factor.log_snr, factor.log_det)

    def log_snr(self, s: Times) -> Tensor:
        """λ(s) = log aᵀ Σ^{-1} a, like s; decreasing. Raises as :meth:`marginal` does."""
        tau = self.positive_clock(s)
        _, _, factor = self.factorization(tau)
        self.check_precision(factor.amplification, tau, "the log signal-to-noise ratio")
        return factor.log_snr

    def factorization(self, tau: Tensor) -> tuple[Tensor, Tensor, kernels.Factor]:
        move, initial = self.propagator, self.initial_covariance
        return move.factorization(tau, initial, self.units(), self.end_laws.latest(move))

    def units(self) -> Tensor:
        """Standard deviations of the variables, (K,), in which what is left of them is compared."""
        return self.stationary_covariance.diagonal().sqrt()

    # -- the two ends, and inversion ---------------------------------------------------------------

    max_log_snr: float = of_part("end_laws")
    min_log_snr: float | None = of_part("end_laws")
    cut_time: float | None = of_part("end_laws")
    learns_ends: bool = of_part("end_laws")
    start_log_snr: Tensor = of_part("end_laws")
    terminal_log_snr: Tensor = of_part("end_laws")
    start_time: Tensor = of_part("end_laws")
    start: Marginal = of_part("end_laws")
    terminal: Marginal = of_part("end_laws")
    log_volume_ends: Tensor = of_part("end_laws")
    clock_scale: Callable[[], Tensor] = of_part("end_laws")
    time_at_log_snr = of_part("inversion")
    time_at_log_volume = of_part("inversion")

    def log_snr_rate(self, s: Times) -> Tensor:
        """-dλ/ds = SNR · kᵀ g² k > 0, like s, with k the readout of :meth:`marginal`."""
        s = self.checked_time("s", s)
        _, _, factor = self.factorization(self.clock(s))
        return self.rate(s) * decay(factor, self.matrices.noise(s))

    # -- log volume --------------------------------------------------------------------------------

    def log_volume(self, s: Times) -> Tensor:
        """The log volume κ(s) = log det Σ(s) - 2 ∫_0^s tr A of Σ pulled back to time 0, like s.

        It increases, κ' = tr(Σ^{-1} g²) > 0, even where log SNR pauses. Per unit of κ the
        divergence of a score of the raw state is a weighted mean of squares, whatever Q and D. For
        K = 1 it is -λ. Raises as :meth:`marginal` does.
        """
        tau = self.positive_clock(s)
        _, _, factor = self.factorization(tau)
        self.check_precision(factor.amplification, tau, "the log volume")
        return factor.log_det - 2 * self.propagator.trace(None, tau)

    def log_volume_rate(self, s: Times) -> Tensor:
        tau = self.positive_clock(s)
        _, _, factor = self.factorization(tau)
        return self.rate(s) * volume_rate(factor, self.matrices.noise(s))

    # -- the door ----------------------------------------------------------------------------------

    def check_precision(self, growth: Tensor, tau: Tensor, what: str) -> None:
        if growth.numel():
            held = (growth <= MAX_AMPLIFICATION).all()
            check_values(held, partial(_report_precision, self, growth, tau, what))

    def extra_repr(self) -> str:
        text = f"num_variables={self.num_variables}, max_log_snr={self.max_log_snr:g}"
        return text if self.min_log_snr is None else f"{text}, min_log_snr={self.min_log_snr:g}"
