r"""Linear diffusions under one clock, with closed-form kernels.

    dy = A y β ds + G sqrt(β) dB,    M' = A M,    Σ' = A Σ + Σ Aᵀ + G Gᵀ

in clock time. With A = -(Q + D) Σ_∞^{-1} and G Gᵀ = 2 D there is a stationary distribution,
N(0, Σ_∞). Others have none: noise is added and nothing is forgotten. Their kernels, readout and log
SNR are computed in the same way. Their prior is whatever is near the distribution of y_T; by
default it is that of data that are 0.

A linear diffusion consists of its :class:`Matrices`, and its
:class:`~pyro_mdm.diffusions.ends.EndSettings`, where log SNR starts and stops.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from pyro_mdm.diffusions import kernels
from pyro_mdm.diffusions.base import (
    Diffusion,
    FromParameters,
    Marginal,
    Matrix,
    Prior,
    Times,
    Transition,
    check_clock,
    check_horizon,
    same_time,
)
from pyro_mdm.diffusions.clocks import (
    Clock,
    ConstantBeta,
    LinearBeta,
    TimeChange,
    as_times,
    times_within,
)
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.diffusions.ends import (
    CLOCK_END,
    LOG_SNR,
    LOG_VOLUME,
    EndSettings,
    check_controllable,
    check_precision,
    clocks_of_targets,
    end_of_clock,
    factorization,
    find_ends,
    marginal_at,
    positive_clock,
    targets,
)
from pyro_mdm.diffusions.kernels import Propagator, decay, volume_rate
from pyro_mdm.diffusions.linear_matrices import (
    DriftAndDispersion,
    Frozen,
    Matrices,
    SkewAndSemidefinite,
)
from pyro_mdm.diffusions.matrices import apply_to_dimensions, covariance_matrix
from pyro_mdm.support.checks import check_count, checked_arguments
from pyro_mdm.support.settings import described

__all__ = [
    "GaussianPrior",
    "LinearDiffusion",
    "LinearSDE",
    "LogVolume",
    "at_rest",
    "clock_noise",
    "frozen",
    "linear_of",
    "mean_volume_rate",
    "options_of",
]


L = TypeVar("L", bound="LinearDiffusion")
T = TypeVar("T")
_REQUIRES_GRAD = attrgetter("requires_grad")


class GaussianPrior(Prior):
    """A Gaussian prior N(0, Σ_π) per data dimension.

    Args:
        covariance: Σ_π (K, K) float64, positive definite, or one for each data dimension, (1,
            *event_shape, K, K) with sizes of 1 where they share.

    Raises:
        ValueError: a covariance that is not square.

    Example:
        >>> GaussianPrior(torch.eye(2)).log_prob(torch.zeros(1, 2))
        tensor([-1.8379])
    """

    @checked_arguments
    def __init__(self, covariance: Tensor) -> None:
        if covariance.dim() < 2 or covariance.shape[-2] != covariance.shape[-1]:
            raise ValueError(f"covariance has shape {tuple(covariance.shape)}, expected (K, K)")
        self.covariance = covariance
        self.num_variables = covariance.shape[-1]

    def settings(self) -> dict[str, Any]:
        return {"covariance": self.covariance.tolist()}

    def log_prob(self, y: Tensor) -> Tensor:
        d = self._check(y)
        log_det = torch.logdet(self.covariance).mean()
        constant = d * (log_det + self.num_variables * math.log(2 * math.pi))
        return 0.5 * ((y * self.score(y)).flatten(1).sum(1) - constant.to(y))

    def score(self, y: Tensor) -> Tensor:
        """-Σ_π^{-1} y."""
        self._check(y)
        precision: Tensor = torch.linalg.inv_ex(self.covariance).inverse.to(y)
        with torch.autocast(y.device.type, enabled=False):
            if precision.dim() > 2:
                return -apply_to_dimensions(precision, y, y.dim() - 2)
            pull: Tensor = y @ precision if y.dim() == 2 else precision @ y.flatten(2)
            return -pull.reshape(y.shape)

    @checked_arguments
    def sample(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        check_count("len(shape)", len(shape), "the number of dimensions of states", 2)
        root: Tensor = torch.linalg.cholesky_ex(self.covariance).L
        device = root.device if generator is None else generator.device
        noise = torch.randn(*shape, generator=generator, dtype=torch.float64, device=device)
        if root.dim() > 2:
            return apply_to_dimensions(root.to(noise), noise, noise.dim() - 2)
        return (root.to(noise) @ noise.reshape(*shape[:2], math.prod(shape[2:]))).reshape(
            noise.shape
        )

    def entropy(self, num_dims: int = 1) -> Tensor:
        K = self.num_variables
        log_det = torch.logdet(self.covariance).mean()
        return 0.5 * num_dims * (log_det + K * math.log(2 * math.pi * math.e))


class _Held(NamedTuple):
    """A view of a diffusion at its parameters, and copies of these."""

    parameters: list[Tensor]
    view: object  # the diffusion, of its own kind


class LinearDiffusion(Kernels):
    r"""A linear diffusion ``dy = -(Q + D) Σ_∞^{-1} y β ds + sqrt(2 D β) dB``.

    Args:
        Q: (K, K), skew-symmetric. Moves mass between variables without changing N(0, Σ_∞).
        D: (K, K), symmetric positive semi-definite. Adds noise and forgets the data.
        beta: the clock β(s), :class:`~pyro_mdm.diffusions.clocks.LinearBeta` 0.1 → 20 by default.
            To change it later, set ``diffusion.beta`` to another one.
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

    matrices: Matrices
    given_ends: EndSettings
    """λ at both ends as it is given."""
    values: dict[str, Any]
    _held: _Held | None

    def __init__(
        self,
        Q: Matrix | Matrices,
        D: Matrix | None = None,
        *,
        beta: Clock | None = None,
        horizon: float = 1.0,
        stationary_variance: float | Sequence[float] | Matrix | None = 1.0,
        initial_variance: float | Sequence[float] = 0.01,
        max_log_snr: float = 13.0,
        min_log_snr: float | None = None,
        cut_time: float | None = None,
    ) -> None:
        super().__init__()
        self.values, self._held = {}, None
        self.horizon = check_horizon(horizon)
        self.given_ends = EndSettings(max_log_snr, min_log_snr, cut_time).checked(self.horizon)
        self.matrices = Q if isinstance(Q, Matrices) else SkewAndSemidefinite(Q, D)  # type: ignore[arg-type]
        self.prior_part = self.matrices.prior_kind()
        self.matrices.linear = self.prior_part.linear = self
        K = self.num_variables = self.matrices.register()
        self.beta = beta if beta is not None else LinearBeta(horizon=horizon)
        check_clock(self.beta)
        self.prior_part.register(stationary_variance)
        initial = torch.zeros(K, K, dtype=torch.float64, device="cpu")
        initial[1:, 1:] = covariance_matrix("initial_variance", initial_variance, K - 1)
        self.register_buffer("initial_covariance", initial)
        with torch.no_grad():
            self.matrices.check()
        check_controllable(self)
        with torch.no_grad():
            clocks_of_targets(self)  # an end out of reach is an error now, not at its first use

    # -- at its parameters -------------------------------------------------------------------------

    def solved(self: L) -> L:
        """A view for one loss where gradients are on; else one that is held until a parameter
        changes, or until what is set forgets it; itself without parameters."""
        if self.made_from is not None:
            return self
        parameters = list(self.parameters())
        if not parameters:
            return self
        has_graph = torch.is_grad_enabled() and any(map(_REQUIRES_GRAD, parameters))
        held = None if has_graph else self._held  # which another thread may replace
        same = held is not None and len(held.parameters) == len(parameters)
        if held is not None and same and all(map(torch.equal, held.parameters, parameters)):
            return cast(L, held.view)
        if not self.values and next(self.beta.parameters(), None) is None:
            with torch.inference_mode(False):  # of a fixed clock, at all parameters
                self.values[CLOCK_END] = end_of_clock(self)
        view = object.__new__(type(self))
        state = vars(view)
        state.update(vars(self), values=dict(self.values), _held=None)
        state.update(has_graph=has_graph, made_from=self)
        for name in ("matrices", "prior_part", "paths"):
            state[name] = copy.copy(state[name])
            setattr(state[name], "diffusion" if name == "paths" else "linear", view)
        if not has_graph:
            self._held = _Held([*map(torch.clone, parameters)], view)
        return view

    def _forget(self) -> None:
        """Forget what was computed, as something beside the parameters has changed."""
        self.values.clear()
        self._held = None
        for name in set(vars(self)):
            if isinstance(getattr(type(self), name, None), FromParameters):
                del vars(self)[name]

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)  # type: ignore[arg-type]
        # a clock, a horizon, ends or a parameter of which there are values; no mode of training
        counts = isinstance(value, float | int | Tensor | nn.Module | EndSettings)
        if counts and not isinstance(value, bool) and "_held" in vars(self):
            self._forget()

    def __getstate__(self) -> dict[str, Any]:
        """The state without values, so that a copy computes from its own parameters."""
        state = dict(vars(self), values={}, _held=None, has_graph=False, made_from=None)
        for name in vars(self):
            if isinstance(getattr(type(self), name, None), FromParameters):
                del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name in ("matrices", "prior_part"):
            owner = copy.copy(getattr(self, name))
            owner.linear = self
            setattr(self, name, owner)

    # -- matrices ----------------------------------------------------------------------------------

    Q = FromParameters[Tensor](attrgetter("matrices.Q"))
    """Q, (K, K) float64, skew-symmetric. Raises TypeError where it varies in time."""
    D = FromParameters[Tensor](attrgetter("matrices.D"))
    """D, (K, K) float64, positive semi-definite. Raises TypeError where it varies in time."""

    @property
    def stationary_covariance(self) -> Tensor:
        """Σ_∞ (K, K), of the stationary distribution, where there is one by construction."""
        return self.prior_part.stationary

    prior_covariance = FromParameters[Tensor](attrgetter("prior_part.covariance"))
    propagator = FromParameters[Propagator](attrgetter("matrices.propagator"))

    def settings(self) -> dict[str, Any]:
        settings = {"horizon": self.horizon, "beta": described(self.beta)}
        settings |= self.given_ends.settings() | self.matrices.settings()
        if any(self.given_ends.reach):
            settings["learn_ends"] = list(self.given_ends.reach)
        return settings

    def _restore(self, saved: dict[str, Any]) -> None:
        high, low, cut = saved["max_log_snr"], saved["min_log_snr"], saved["cut_time"]
        self.given_ends = EndSettings(high, low, cut, self.given_ends.reach)
        self.matrices.restore(saved)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._forget()
        super()._load_from_state_dict(*args, **kwargs)

    # -- the clock ---------------------------------------------------------------------------------

    def clock(self, s: Times) -> Tensor:
        """The clock time b(s) = ∫_0^s β, like s, on which kernels depend."""
        return self._clock_scale * self.beta.integral(times_within(self.horizon, "s", s))

    def time_at_clock(self, tau: Tensor) -> Tensor:
        s = self.beta.inverse(tau / self._clock_scale)
        return s - (s.detach() - self.horizon).clamp_min(0)  # not past T, by rounding

    @FromParameters
    def _clock_scale(self) -> Tensor:
        """The number that β is multiplied by, 0-dim."""
        return self.matrices.scale()

    def rate(self, s: Times) -> Tensor:
        return self._clock_scale * self.beta.rate(times_within(self.horizon, "s", s))

    def drift_matrix(self, s: Times) -> Tensor:
        return self.matrices.drift_by_time(times_within(self.horizon, "s", s))

    def noise_covariance(self, s: Times) -> Tensor:
        return self.rate(s)[..., None, None] * self.matrices.noise(s)

    def dispersion(self, y: Tensor | None, s: Times) -> Tensor:
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
            times_within(self.horizon, "s", s), times_within(self.horizon, "r", r)
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
        check_precision(self, growth, tau, "the transition covariance")
        return Transition(M, P, kernels.lower_triangular(F), log_det)

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
        if (one := same_time(s)) is not None and isinstance(s, Tensor):
            return Marginal(*(t.expand(*s.shape, *t.shape) for t in self.marginal(one)))
        return marginal_at(self, positive_clock(self, s))

    def log_snr(self, s: Times) -> Tensor:
        """λ(s) = log aᵀ Σ^{-1} a, like s; decreasing. Raises as :meth:`marginal` does."""
        tau = positive_clock(self, s)
        _, _, factor = factorization(self, tau, "the log signal-to-noise ratio")
        return factor.log_snr

    # -- the two ends, and inversion ---------------------------------------------------------------

    ends = FromParameters(find_ends)
    """Clock times of ε and T, and the distributions there."""
    start = FromParameters[Marginal](attrgetter("ends.start"))
    terminal = FromParameters[Marginal](attrgetter("ends.terminal"))

    @FromParameters
    def start_time(self) -> Tensor:
        """ε, 0-dim."""
        return self.time_at_clock(self.ends.clocks[0])

    def _set_ends(self, high: float, low: float | None) -> None:
        """Set both ends by λ; learned ones start anew there."""
        ends = EndSettings(high, low, reach=self.given_ends.reach).checked(self.horizon)
        self.matrices.set_ends(ends)
        self.given_ends = ends
        if any(self.given_ends.reach):
            with torch.no_grad():
                self.get_parameter("moved_ends").zero_()

    @property
    def max_log_snr(self) -> float:
        if self.given_ends.cut_time is None and not self.given_ends.reach[0]:
            return self.given_ends.high
        with torch.no_grad():
            cut = self.given_ends.cut_time is not None
            return float(self.start.log_snr if cut else targets(self)[0])

    @max_log_snr.setter
    def max_log_snr(self, value: float) -> None:
        self._set_ends(value, self.min_log_snr)

    @property
    def min_log_snr(self) -> float | None:
        if self.given_ends.low is None or not self.given_ends.reach[1]:
            return self.given_ends.low
        with torch.no_grad():
            return float(targets(self)[1])

    @min_log_snr.setter
    def min_log_snr(self, value: float | None) -> None:
        self._set_ends(self.max_log_snr, value)

    @property
    def cut_time(self) -> float | None:
        """ε, if it was given as a time; None once an end is set by its log SNR."""
        return self.given_ends.cut_time

    start_log_snr = FromParameters[Tensor](attrgetter("start.log_snr"))
    """λ(ε), 0-dim."""
    terminal_log_snr = FromParameters[Tensor](attrgetter("terminal.log_snr"))
    """λ(T), 0-dim: the information about the data that is left at the prior.

    A constant where ``min_log_snr`` is given and not learned.
    """

    def time_at_log_snr(self, value: Times) -> Tensor:
        """The time s with λ(s) = value, like value; differentiable in the diffusion and in value.

        Raises:
            ValueError: a value below λ(T), which this diffusion never reaches.
            UnreachableError: a value too high for float64.
        """
        wanted, low = as_times(value), self.terminal_log_snr.detach()
        if not bool((wanted >= low - 1e-9 * (1 + low.abs())).all()):
            raise ValueError(
                f"log SNR {wanted.min().item():.6g} is never reached: it ends at λ(T) = "
                f"{low.item():.6g}; use a larger value, a faster clock or a longer horizon"
            )
        return self.time_at_clock(self.solved().matrices.clock_at(wanted, LOG_SNR))

    def log_snr_rate(self, s: Times) -> Tensor:
        """-dλ/ds = SNR · kᵀ g² k > 0, like s, with k the readout of :meth:`marginal`."""
        s = times_within(self.horizon, "s", s)
        _, _, factor = factorization(self, self.clock(s))
        return self.rate(s) * decay(factor, self.matrices.noise(s))

    @property
    def log_volume(self) -> LogVolume:
        return LogVolume(self)

    @FromParameters
    def prior(self) -> GaussianPrior:
        """π = N(0, Σ_π) per data dimension."""
        return GaussianPrior(self.prior_covariance)

    def extra_repr(self) -> str:
        text = f"num_variables={self.num_variables}, max_log_snr={self.max_log_snr:g}"
        return text if self.min_log_snr is None else f"{text}, min_log_snr={self.min_log_snr:g}"


class LinearSDE(LinearDiffusion):
    r"""A linear diffusion ``dy = A y β ds + G sqrt(β) dB`` of any A and G.

    Args:
        A: (K, K), the drift per unit of clock time.
        G: (K, m), the dispersion per square root of clock time; G Gᵀ = g².
        beta: the clock β(s), constant 1 by default, so that A and G are those of time itself.
        horizon: T.
        prior_variance: Σ_π of the prior N(0, Σ_π) as a number (times the identity), K variances or
            a (K, K) matrix; None: Σ(T), the covariance of y_T given x, wherever the ends are.
        initial_variance, max_log_snr, min_log_snr, cut_time: as for
            :class:`~pyro_mdm.LinearDiffusion`; the clock is scaled to ``min_log_snr``.

    Raises:
        TypeError: on use, of Q and D, which only a diffusion that is given by them has.
        ValueError: a matrix of the wrong shape or not finite, a prior that is not positive
            definite, ends that make no sense.
        UnreachableError: noise that does not reach all variables, or a log SNR that is not reached.

    Example:
        >>> falling = LinearSDE([[0.0, 1.0], [0.0, 0.0]], [[0.0], [1.0]], horizon=10.0)
        >>> falling.transition(2.0).covariance
        tensor([[2.6667, 2.0000],
                [2.0000, 2.0000]], dtype=torch.float64)

    Source: Särkkä & Solin, "Applied Stochastic Differential Equations", 2019, chapter 6.
    """

    def __init__(
        self,
        A: Matrix | Matrices,
        G: Matrix | None = None,
        *,
        beta: Clock | None = None,
        horizon: float = 1.0,
        prior_variance: float | Sequence[float] | Matrix | None = None,
        initial_variance: float | Sequence[float] = 0.01,
        max_log_snr: float = 13.0,
        min_log_snr: float | None = None,
        cut_time: float | None = None,
    ) -> None:
        super().__init__(
            A if isinstance(A, Matrices) else DriftAndDispersion(A, G),  # type: ignore[arg-type]
            beta=ConstantBeta(1.0) if beta is None else beta,
            horizon=horizon,
            stationary_variance=prior_variance,
            initial_variance=initial_variance,
            max_log_snr=max_log_snr,
            min_log_snr=min_log_snr,
            cut_time=cut_time,
        )


class LogVolume(TimeChange):
    """The log volume κ(s) = log det Σ(s) - 2 ∫_0^s tr A of Σ pulled back to time 0.

    It increases, κ' = tr(Σ^{-1} g²) > 0, even where log SNR pauses. Per unit of κ the divergence of
    a score of the raw state is a weighted mean of squares, whatever Q and D. For K = 1 it is -λ.
    """

    def __init__(self, linear: LinearDiffusion) -> None:
        self.linear = linear

    def __call__(self, s: Times) -> Tensor:
        """κ(s), like s, in (0, T]. Raises as :meth:`LinearDiffusion.marginal` does."""
        linear = self.linear
        tau = positive_clock(linear, s)
        _, _, factor = factorization(linear, tau, "the log volume")
        return factor.log_det - 2 * linear.propagator.trace(None, tau)

    def rate(self, s: Times) -> Tensor:
        linear = self.linear
        _, _, factor = factorization(linear, positive_clock(linear, s))
        return linear.rate(s) * volume_rate(factor, linear.matrices.noise(s))

    def inverse(self, value: Tensor) -> Tensor:
        """The time s in [ε, T] with κ(s) = value, like value; differentiable in both.

        Raises:
            ValueError: a value outside [κ(ε), κ(T)].
        """
        wanted = as_times(value)
        low, high = self.ends.detach()
        room = 1e-9 * (1 + low.abs() + high.abs())
        if bool((outside := ~((wanted >= low - room) & (wanted <= high + room))).any()):
            raise ValueError(
                f"log volume {wanted.detach()[outside][0].item():.6g} is not between that of ε, "
                f"{low.item():.6g}, and of T, {high.item():.6g}; see log_volume.ends"
            )
        return self.linear.time_at_clock(self.linear.solved().matrices.clock_at(wanted, LOG_VOLUME))

    @property
    def ends(self) -> Tensor:
        linear = self.linear.solved()
        log_det = torch.stack([linear.start.log_det, linear.terminal.log_det])
        return log_det - 2 * linear.propagator.trace(None, linear.ends.clocks)

    def rate_by_clock(self, s: Tensor, whitener: Tensor, g2: Tensor) -> Tensor:
        return mean_volume_rate(s, whitener, g2)


def mean_volume_rate(s: Tensor, whitener: Tensor, g2: Tensor) -> Tensor:
    """dκ/dτ = tr(Σ^{-1} g²), like s (n,), averaged over data dimensions where they differ."""
    rate = ((whitener @ g2) * whitener).sum((-2, -1))
    return rate.flatten(1).mean(1) if rate.dim() > s.dim() else rate


def linear_of(diffusion: Diffusion) -> LinearDiffusion:
    """The linear diffusion whose time is that of a diffusion: itself, its base or first block."""
    return cast(LinearDiffusion, diffusion.reference)


def clock_noise(diffusion: Diffusion, s: Tensor) -> Tensor:
    """g² per unit of clock time, (*s.shape, K, K), or (K, K) where it is constant.

    Where data dimensions differ, it is (*s.shape, *event_shape, K, K), by the reference's clock.
    """
    if not diffusion.maps:
        return linear_of(diffusion).matrices.noise(s)
    s = s.reshape(1) if s.dim() == 0 else s
    g2, rate = cast(Kernels, diffusion).noise_covariance(s), diffusion.reference.rate(s)
    return g2 / rate.reshape(*rate.shape, *[1] * (g2.dim() - rate.dim()))


def at_rest(diffusion: Diffusion) -> bool:
    """Whether the prior is stationary: A Σ_π + Σ_π Aᵀ + g² = 0, between 0 and T."""
    for block in getattr(diffusion, "blocks", [diffusion.reference]):
        if not block.prior_part.at_rest():
            return False
    return True


def frozen(diffusion: Diffusion) -> Frozen:
    """Q, D and A of a diffusion's reference per unit of clock time, halfway through the clock."""
    linear = linear_of(diffusion)
    middle = linear.time_at_clock(linear.clock(linear.horizon) / 2)
    return linear.prior_part.frozen(middle)


def options_of(linear: LinearDiffusion) -> dict[str, Any]:
    """Keyword arguments for another diffusion with the same clock, covariances and ends."""
    cut = {} if linear.cut_time is None else {"cut_time": linear.cut_time}
    return cut | {
        "beta": linear.beta,
        "horizon": linear.horizon,
        **linear.prior_part.options(),
        "initial_variance": linear.initial_covariance[1:, 1:],
        "max_log_snr": linear.max_log_snr,
        "min_log_snr": linear.min_log_snr,
    }
