"""Linear diffusions of constant Q and D under one clock: all of them in closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mdm.diffusions import kernels
from pyro_mdm.diffusions.base import (
    Diffusion,
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
from pyro_mdm.diffusions.closed import OneBlock
from pyro_mdm.diffusions.inversion import LOG_VOLUME, FoundEnds, Inversion, decay, volume_rate
from pyro_mdm.diffusions.matrices import (
    MAX_AMPLIFICATION,
    check_semidefinite,
    check_skew,
    covariance_matrix,
    square_matrix,
    symmetric_root,
)
from pyro_mdm.diffusions.priors import GaussianPrior
from pyro_mdm.diffusions.propagator import ConstantPropagator, Propagator
from pyro_mdm.support.checks import check_number
from pyro_mdm.support.settings import described

__all__ = ["LinearDiffusion", "Matrices", "shared", "shared_ends"]


class Matrices(NamedTuple):
    """What a linear diffusion is made of at one time."""

    Q: Tensor  # (K, K)
    D: Tensor  # (K, K)
    unit_drift: Tensor  # A_0 = -(Q + D) Σ_∞^{-1}, (K, K)


FEW = 16  # times, for which it costs less to compute too much than to choose

_shared: dict[tuple[int, Any], Any] | None = None


@contextmanager
def shared_ends() -> Iterator[None]:
    """Within it, what the ends of a learned diffusion need is computed once, gradients included.

    For the time of one loss and its parameters; nothing is kept after it.
    """
    global _shared
    outer, _shared = _shared, {}
    try:
        yield
    finally:
        _shared = outer


def shared(owner: object, name: Any, compute: Callable[[], Any]) -> Any:
    """``compute()``, once within :func:`shared_ends`.

    Args:
        owner, name: of what is computed; the name is hashable.
    """
    if _shared is None:
        return compute()
    if (id(owner), name) not in _shared:
        _shared[id(owner), name] = compute()
    return _shared[id(owner), name]


class LinearDiffusion(OneBlock):
    r"""``dy = -(Q + D) Σ_∞^{-1} y β ds + sqrt(2 D β) dB``.

    Args:
        Q: (K, K), skew-symmetric. Moves mass between variables without changing N(0, Σ_∞).
        D: (K, K), symmetric positive semi-definite. Adds noise and forgets.
        beta: the clock β(s), :class:`~pyro_mdm.diffusions.clocks.LinearBeta` 0.1 → 20 by default.
        horizon: T.
        stationary_variance: Σ_∞ as a number (times the identity), K variances, or a (K, K) matrix.
        initial_variance: Σ_v, the variance of the auxiliary variables at s = 0: a number or K-1.
        max_log_snr: λ at the start time ε, where the generative process hands over to the decoder.
            The same λ makes diffusions comparable; the same ε does not.
        min_log_snr: if given, the clock is multiplied by the number that makes log SNR(T) equal it.
        cut_time: ε as a time, as the paper has it, instead of by ``max_log_snr``, which then is
            whatever λ(ε) is, also while the diffusion is learned. Not with ``min_log_snr``.

    Raises:
        ValueError: a matrix of the wrong shape, Q not skew, D not symmetric or not positive
            semi-definite, Σ_∞ not positive definite, ends that make no sense.
        UnreachableError: (A, G) not controllable, or a log SNR that float64 does not reach. Of a
            learned diffusion, at any later use too.

    Example:
        >>> diffusion = LinearDiffusion(Q=[[0.0, -1.0], [1.0, 0.0]], D=[[0.0, 0.0], [0.0, 2.0]])
        >>> diffusion.marginal(0.5).covariance.shape
        torch.Size([2, 2])
    """

    _Q: Tensor
    _D: Tensor

    def __init__(
        self,
        Q: Matrix,
        D: Matrix,
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
        K = self.num_variables = self._take_matrices(Q, D)
        self._cache: dict[str, tuple[list[Tensor], Any]] = {}
        self._guess: Tensor | None = None
        self._last: tuple[list[Tensor], Tensor] | None = None
        self._min_log_snr: float | None = None
        self.max_log_snr = max_log_snr
        self._cut_time = _cut_time(cut_time, self.horizon, min_log_snr)
        self.beta = beta if beta is not None else LinearBeta(horizon=horizon)
        check_clock(self.beta)
        stationary = covariance_matrix("stationary_variance", stationary_variance, K)
        initial = torch.zeros(K, K, dtype=torch.float64)
        initial[1:, 1:] = covariance_matrix("initial_variance", initial_variance, K - 1)
        self.register_buffer("stationary_covariance", stationary)
        self.register_buffer("initial_covariance", initial)
        self._check_family()
        if min_log_snr is not None:
            self.min_log_snr = min_log_snr
        with torch.no_grad():
            self.end_clocks()  # an end that is out of reach is a mistake now, not when it is used

    def _take_matrices(self, Q: Any, D: Any) -> int:
        """Keep what the diffusion was given; returns K."""
        Q, D = square_matrix("Q", Q), square_matrix("D", D)
        if Q.shape != D.shape:
            raise ValueError(f"Q is {tuple(Q.shape)} and D is {tuple(D.shape)}, expected one shape")
        self._register_matrices(Q, D)
        return len(Q)

    def _register_matrices(self, Q: Tensor, D: Tensor) -> None:
        self.register_buffer("_Q", Q)
        self.register_buffer("_D", D)

    def _check_family(self) -> None:
        check_skew("Q", self.Q.detach(), 1e-12)
        check_semidefinite("D", self.D.detach(), 1e-12)
        self._check_controllable()

    def _check_controllable(self) -> None:
        with torch.no_grad():
            reached = self._reached()
        if reached < self.num_variables:
            raise UnreachableError(
                f"{type(self).__name__}: noise reaches {reached} of {self.num_variables} variables "
                f"with {self._matrices()}: (A, G) is not controllable and the process does not "
                "converge to its stationary law; couple the variables through Q or widen the range "
                f"of D{self._remedy()}"
            )

    def _reached(self) -> int:
        """How many variables noise reaches."""
        return kernels.noise_basis(self.unit_drift, self.D, tolerance=1e-10)[0].shape[1]

    def _matrices(self) -> str:
        """Q and D in numbers, for messages."""
        return ", ".join(
            f"{name} = {[[float(f'{v:.4g}') for v in row] for row in matrix.tolist()]}"
            for name, matrix in (("Q", self.Q.detach()), ("D", self.D.detach()))
        )

    def _remedy(self) -> str:
        """What else to do about matrices like these, for messages."""
        return ""

    # -- matrices ----------------------------------------------------------------------------------

    @property
    def Q(self) -> Tensor:
        """(K, K) float64, skew-symmetric."""
        return self._Q

    @property
    def D(self) -> Tensor:
        """(K, K) float64, positive semi-definite."""
        return self._D

    def Q_at(self, s: Times) -> Tensor:
        """Q at times s, (*s.shape, K, K); of a constant one, that."""
        return self.Q.expand(*self.checked_time("s", s).shape, *self.Q.shape)

    def D_at(self, s: Times) -> Tensor:
        """D at times s, (*s.shape, K, K); of a constant one, that."""
        return self.D.expand(*self.checked_time("s", s).shape, *self.D.shape)

    @property
    def prior_covariance(self) -> Tensor:
        """Σ_π of the generative model's prior N(0, Σ_π): the stationary covariance."""
        return self.stationary_covariance

    @property
    def prior(self) -> GaussianPrior:
        """N(0, Σ_π)."""
        return GaussianPrior(self.prior_covariance)

    @property
    def unit_drift(self) -> Tensor:
        """A_0 = -(Q + D) Σ_∞^{-1}, the drift matrix per unit of clock time b."""
        return -torch.linalg.solve(self.stationary_covariance, self.Q + self.D, left=False)

    @property
    def unit_noise(self) -> Tensor:
        """g²_0 = 2 D, the noise covariance per unit of clock time b."""
        return 2 * self.D

    def frozen(self) -> Matrices:
        """Q, D and A_0 when half of the clock has run, which of constant ones is always."""
        return Matrices(self.Q, self.D, self.unit_drift)

    @property
    def propagator(self) -> Propagator:
        """How states move between clock times: what all kernels are made of.

        It is kept where nothing carries a gradient, even within :func:`shared_ends`: what shares a
        graph adds up its gradients in another order.
        """
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters()):
            return ConstantPropagator(self)
        kept: Propagator = self._cached("propagator", lambda: ConstantPropagator(self))
        return kept

    def noise_basis(self) -> tuple[Tensor, Tensor]:
        """A basis that shows what noise reaches, as ``kernels.noise_basis`` finds it."""
        return self._cached("basis", lambda: kernels.noise_basis(self.unit_drift, self.D))

    def hides_noise(self) -> bool:
        """Whether there is noise in some direction that rounding of D hides."""
        return False

    def _cached(self, name: str, compute: Callable[[], Any]) -> Any:
        """A quantity of the diffusion alone, kept until a parameter changes its value.

        What carries a gradient is kept within :func:`shared_ends` only.
        """
        parameters = list(self.parameters())
        if torch.is_grad_enabled() and any(p.requires_grad for p in parameters):
            return shared(self, name, compute)
        kept = self._cache.get(name)
        if kept is not None and all(map(torch.equal, kept[0], parameters)):
            return kept[1]
        with torch.no_grad():
            value = compute()
        self._cache[name] = ([p.detach().clone() for p in parameters], value)
        return value

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Diffusion:
        self._cache.clear()
        moved = super()._apply(fn, recurse)
        if self._guess is not None:
            self._guess = self._guess.to(self._device())
        if self._last is not None:
            parameters, clocks = self._last
            self._last = [p.to(self._device()) for p in parameters], clocks.to(self._device())
        return moved

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._cache.clear()
        super()._load_from_state_dict(*args, **kwargs)

    def settings(self) -> dict[str, Any]:
        return {
            "horizon": self.horizon,
            "beta": described(self.beta),
            "max_log_snr": self._max_log_snr,
            "min_log_snr": self._min_log_snr,
            "cut_time": self._cut_time,
        }

    def remembered(self) -> dict[str, Any]:
        """Where the search for the ends begins, on which their last digits depend."""
        return {"guess": None if (guess := self._root_guess()) is None else guess.tolist()}

    def restore(self, saved: dict[str, Any]) -> None:
        """The ends, and where the search for them begins."""
        self._cache.clear()
        self._max_log_snr, self._min_log_snr = saved["max_log_snr"], saved["min_log_snr"]
        self._cut_time = saved["cut_time"]
        self._guess = None if saved["guess"] is None else self.as_tensor(saved["guess"])
        self._last = None

    # -- the clock ---------------------------------------------------------------------------------

    def _clock_scale(self) -> Tensor:
        def scale() -> Tensor:
            end = self.beta.integral(self.as_tensor(self.horizon))
            if self.min_log_snr is None:
                return torch.ones_like(end)
            return self.end_clocks()[1] / end

        return self._cached("clock_scale", scale)

    def clock(self, s: Times) -> Tensor:
        """b(s) = ∫_0^s β, like s: the time that kernels depend on."""
        return self._clock_scale() * self.beta.integral(self.checked_time("s", s))

    def inverse_clock(self, tau: Tensor) -> Tensor:
        """The inverse of :meth:`clock` as β gives it, which rounding may put past T; like τ."""
        return self.beta.inverse(tau / self._clock_scale())

    def time_at_clock(self, tau: Tensor) -> Tensor:
        """The time s in [0, T] with b(s) = τ, like τ; differentiable in the clock and in τ."""
        s = self.inverse_clock(tau)
        return s - (s.detach() - self.horizon).clamp_min(0)  # rounding past T; gradients stay

    def rate(self, s: Times) -> Tensor:
        """β(s), like s."""
        return self._clock_scale() * self.beta.rate(self.checked_time("s", s))

    def drift_matrix(self, s: Times) -> Tensor:
        """A(s), (*s.shape, K, K)."""
        return self.rate(s)[..., None, None] * self.unit_drift

    def noise_covariance(self, s: Times) -> Tensor:
        """g²(s) = G Gᵀ = 2 D(s), (*s.shape, K, K)."""
        return self.rate(s)[..., None, None] * self.clock_noise(s)

    def clock_noise(self, s: Times) -> Tensor:
        """g² per unit of clock time at times s: 2 D, (K, K) if constant, else (*s.shape, K, K)."""
        return self.unit_noise

    @property
    def unit_dispersion(self) -> Tensor:
        """G_0 (K, K) with G_0 G_0ᵀ = 2 D: its symmetric square root, or, where D is learned, a
        triangular one, which is differentiable whatever its rank."""

        def root() -> Tensor:
            if self.D.requires_grad:
                return kernels.semidefinite_cholesky(self.unit_noise)
            return symmetric_root(self.unit_noise)

        found: Tensor = self._cached("unit_dispersion", root)
        return found

    def dispersion_matrix(self, s: Times) -> Tensor:
        """G(s), (*s.shape, K, K), with G Gᵀ = g²(s)."""
        return self.rate(s).sqrt()[..., None, None] * self.unit_dispersion

    def each(self, law: Callable[..., Any], *times: Tensor) -> Any:
        return law(self, *times)

    def divergence(self, s: Times, r: Times, dimensions: int = 1) -> Tensor:
        """``dimensions · ∫_r^s tr A``: by how much log volumes of states grow, (…)."""
        return dimensions * self.unit_drift.diagonal().sum() * (self.clock(s) - self.clock(r))

    # -- kernels -----------------------------------------------------------------------------------

    def transition(self, s: Times, r: Times = 0.0) -> Transition:
        r"""The law of y_s given y_r: N(M(s, r) y_r, P(s, r)).

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
        """M, a root F of P(s, r) = F Fᵀ, its inverse, and m, the columns noise enters by.

        G's range is spanned by the last m columns of F, whatever the others add to the state: with
        y_s = M y_r + F η, the last m entries of η are what is new in it given the rest of y_s.
        """
        end, start = self.clock(s), self.clock(r)
        tau, move = end - start, self.propagator
        M, _ = move.moments(start, tau)
        F, inverse, _, growth = move.root(start, tau, noise_last=True)
        self.check_precision(growth, tau, "the transition covariance")
        return M, F, inverse, move.new

    def marginal(self, s: Times) -> Marginal:
        r"""The law of y_s given x, with v_0 marginalized: N(a(s) x, Σ(s)) per data dimension.

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
        return self._marginal(self._positive_clock(s))

    # -- one variable, for which no factorization is needed ----------------------------------------

    def many_marginals(self, s: Tensor) -> Marginal:
        """:meth:`marginal` of very many times: of one variable by two exponentials."""
        if self.num_variables > 1 or not isinstance(self.propagator, ConstantPropagator):
            return self.marginal(s)
        S = self.stationary_covariance[0, 0]
        done = 2 * self.D[0, 0] / S * self._positive_clock(s)
        a, variance = (-done / 2).exp(), -S * torch.expm1(-done)
        return Marginal(
            a[..., None],
            variance[..., None, None],
            variance.sqrt()[..., None, None],
            1 / a[..., None],
            -(S * torch.expm1(done)).log(),
            variance.log(),
        )

    def many_log_snr_rates(self, s: Tensor) -> Tensor:
        """:meth:`log_snr_rate` of very many times: of one variable by one exponential."""
        if self.num_variables > 1 or not isinstance(self.propagator, ConstantPropagator):
            return self.log_snr_rate(s)
        by_clock = 2 * self.D[0, 0] / self.stationary_covariance[0, 0]
        return self.rate(s) * -by_clock / torch.expm1(-by_clock * self._positive_clock(s))

    def times_at_log_snr(self, value: Tensor) -> Tensor:
        """:meth:`time_at_log_snr` of very many values: of one variable by one logarithm."""
        if self.num_variables > 1 or not isinstance(self.propagator, ConstantPropagator):
            return self.time_at_log_snr(value)
        S = self.stationary_covariance[0, 0]
        tau = S / (2 * self.D[0, 0]) * torch.log1p((-value).exp() / S)
        return self.time_at_clock(tau)

    def _positive_clock(self, s: Times) -> Tensor:
        s = self.checked_time("s", s)
        if not bool((s > 0).all()):
            raise ValueError(
                "the law of y_s given x at s = 0, where y holds x itself: Σ is singular and log "
                "SNR infinite; use s > 0, e.g. the start_time ε"
            )
        return self.clock(s)

    def _marginal(self, tau: Tensor) -> Marginal:
        a, Sigma, factor = self.factorization(tau)
        self.check_precision(factor.amplification, tau, "the marginal covariance")
        L = kernels.lower_triangular(factor.root)
        return Marginal(a, Sigma, L, factor.readout, factor.log_snr, factor.log_det)

    def log_snr(self, s: Times) -> Tensor:
        """λ(s) = log aᵀ Σ^{-1} a, like s; decreasing. Raises as :meth:`marginal` does."""
        tau = self._positive_clock(s)
        _, _, factor = self.factorization(tau)
        self.check_precision(factor.amplification, tau, "the log signal-to-noise ratio")
        return factor.log_snr

    def factorization(self, tau: Tensor) -> tuple[Tensor, Tensor, kernels.Factor]:
        """a, Σ and its factorization at clock times τ, each time by the route that keeps digits."""
        return self.factorization_by(self.propagator, tau)

    def factorization_by(
        self, move: Propagator, tau: Tensor
    ) -> tuple[Tensor, Tensor, kernels.Factor]:
        """The same, as another propagator than the diffusion's own would have it.

        Rounding grows by the factorization; by how far the drift travels, as what the last digits
        of A say of slow modes is lost to fast ones; and by how small what is left of x is beside
        what is left of the other variables, each in units of its law at rest.
        """
        travelled = move.travelled(tau)
        M, a, Sigma, factor = self._factorized(move, tau, travelled)
        with torch.no_grad():
            unit = self.stationary_covariance.diagonal().sqrt()
            left = (M * unit / unit[:, None]).square().sum(-2)
            left = (left.mean(-1) / left[..., 0].clamp_min(1e-300)).sqrt()
            growth = travelled.clamp_min(1.0) * left.clamp_min(1.0)
        return a, Sigma, factor._replace(amplification=factor.amplification * growth)

    def _factorized(
        self, move: Propagator, tau: Tensor, travelled: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, kernels.Factor]:
        """M, a, Σ and its factor by the route that keeps digits, early that by way of time 0."""
        near = travelled < 20.0  # beyond, M^{-1} has lost every digit there is
        Sigma0, shape = self.initial_covariance, tau.shape
        back = None
        if tau.numel() > 0 and bool(near.all()):
            (M, P), back = move.both_moments(tau)
        elif isinstance(move, ConstantPropagator) and tau.numel() <= FEW and bool(near.any()):
            (M, P), back = move.both_moments(tau, torch.where(near, tau, tau[near].detach().min()))
        else:
            M, P = move.moments(None, tau)
        a, Sigma = M[..., 0], P + M @ Sigma0 @ M.mT
        if back is not None:
            direct, pulled = kernels.both_factors(Sigma, M, *back, Sigma0)
            pulled = pulled._replace(log_det=pulled.log_det + 2 * move.trace(None, tau))
            better = near & (pulled.amplification < direct.amplification)
            if bool(better.all()):
                return M, a, Sigma, pulled
            fields = []
            for d, p in zip(direct, pulled, strict=True):
                here = better.reshape(shape + (1,) * (d.dim() - len(shape)))
                fields.append(torch.where(here, p, d))
            return M, a, Sigma, kernels.Factor(*fields)
        direct = kernels.direct_factor(Sigma, a)
        if not bool(near.any()):
            return M, a, Sigma, direct
        index = near.flatten().nonzero()[:, 0]
        near_tau = tau.flatten()[index]
        pulled = kernels.pulled_back_factor(
            M.reshape(-1, *M.shape[-2:])[index], *move.pulled_back_at(near_tau, tau, index), Sigma0
        )
        log_det = pulled.log_det + 2 * move.trace(None, near_tau)
        pulled = pulled._replace(log_det=log_det)
        better = pulled.amplification < direct.amplification.flatten()[index]
        index = index[better]
        fields = []
        for d, p in zip(direct, pulled, strict=True):
            flat = d.reshape(-1, *d.shape[len(shape) :])
            fields.append(flat.index_put((index,), p[better]).reshape(d.shape))
        return M, a, Sigma, kernels.Factor(*fields)

    # -- the two ends, and inversion ---------------------------------------------------------------

    @property
    def terminal_log_snr(self) -> Tensor:
        """λ(T), 0-dim: what is left of the data when the prior takes over.

        A constant where ``min_log_snr`` is given and not learned.
        """
        if self._min_log_snr is not None:
            return self._given_ends()[1]
        return self.terminal.log_snr

    @property
    def max_log_snr(self) -> float:
        """λ at the start time ε; it follows the diffusion if that is cut at a time."""
        with torch.no_grad():
            return float(self.start_log_snr)

    @max_log_snr.setter
    def max_log_snr(self, value: float) -> None:
        self._set_ends(value, self.min_log_snr)

    @property
    def start_log_snr(self) -> Tensor:
        return self._given_ends()[0] if self._cut_time is None else self.start.log_snr

    @property
    def min_log_snr(self) -> float | None:
        """λ(T) that the clock is scaled to, or None for the clock as it is."""
        with torch.no_grad():
            return None if self._min_log_snr is None else float(self._given_ends()[1])

    @min_log_snr.setter
    def min_log_snr(self, value: float | None) -> None:
        self._set_ends(self.max_log_snr, value)

    def _given_ends(self) -> Tensor:
        """λ(ε) and, if the clock is scaled to it, λ(T): (1,) or (2,)."""
        ends = (
            [self._max_log_snr]
            if self._min_log_snr is None
            else [self._max_log_snr, self._min_log_snr]
        )
        return self.as_tensor(torch.tensor(ends, dtype=torch.float64))

    def _set_ends(self, high: float, low: float | None) -> None:
        high = check_number("max_log_snr", high, "a finite log SNR, e.g. 13")
        if low is not None:
            low = check_number("min_log_snr", low, "a finite log SNR, e.g. -10")
        if low is not None and not low < high:
            raise ValueError(
                f"min_log_snr {low} must be below max_log_snr {high}: log SNR falls from the data "
                "to the noise; raise max_log_snr or lower min_log_snr"
            )
        self._cache.clear()
        self._guess, self._last = self._root_guess(), None
        self._max_log_snr, self._min_log_snr = high, low
        self._cut_time = None

    @property
    def cut_time(self) -> float | None:
        """ε, if it was given as a time. Setting an end by its log SNR ends that."""
        return self._cut_time

    @property
    def start_time(self) -> Tensor:
        """ε, 0-dim: the time at which log SNR equals ``max_log_snr``, or ``cut_time``."""
        return self._cached("start_time", lambda: self.inverse_clock(self._start_clock()))

    @property
    def start(self) -> Marginal:
        """The marginal at ε."""
        return self._both_ends()[0]

    @property
    def terminal(self) -> Marginal:
        """The marginal at T."""
        return self._both_ends()[1]

    def _both_ends(self) -> tuple[Marginal, Marginal]:
        def compute() -> tuple[Marginal, Marginal]:
            start, terminal = zip(*(field.unbind() for field in self._ends()), strict=True)
            return Marginal(*start), Marginal(*terminal)

        found: tuple[Marginal, Marginal] = self._cached("both ends", compute)
        return found

    def _ends(self) -> Marginal:
        """The marginals at ε and T, (2, …)."""

        def compute() -> Marginal:
            clocks = torch.stack([self._start_clock(), self._terminal_clock()])
            found = self._found_ends()
            if found is None:
                return self._marginal(clocks)
            self.check_precision(found.factor.amplification, clocks, "the marginal covariance")
            return found.marginal(clocks)

        return self._cached("ends", compute)

    def _found_ends(self) -> FoundEnds | None:
        """The laws at ε and T, if λ is given at one or both and gradients pass through these."""
        if self._cut_time is not None or not torch.is_grad_enabled():
            return None

        def compute() -> FoundEnds | None:
            move = self.propagator
            targets = self._given_ends()
            if not isinstance(move, ConstantPropagator) or not self._inversion.is_learned(targets):
                return None
            guess, number = self._root_guess(), move.detached()
            for enough in (3e-4, 1e-6):
                search = partial(self._inversion.root, targets, guess, move=number, enough=enough)
                with torch.no_grad():
                    times = guess = self._cached(f"roots to {enough}", search)
                    if self._min_log_snr is None:
                        times = torch.cat([times, self._terminal_clock().reshape(1)])
                a, Sigma, factor = self.factorization_by(move, times)
                A, noise = move.drift(times).detach(), move.noise(times).detach()
                found = FoundEnds(times, targets, a, Sigma, factor, A, noise)
                if found.close():
                    break
            if self._guess is not None:
                now = [p.detach().clone() for p in self.parameters()]
                self._last = now, found.clocks.detach()
            return found

        found: FoundEnds | None = self._cached("found ends", compute)
        return found

    def _root_guess(self) -> Tensor | None:
        """Where the search for the ends begins; it advances to those found, once parameters move.

        One set of parameters is always searched from one place, so that its digits do not change.
        """
        if self._last is not None and not all(map(torch.equal, self._last[0], self.parameters())):
            self._guess, self._last = self._last[1], None
        return self._guess

    def _start_clock(self) -> Tensor:
        """The clock time of ε, 0-dim."""
        if self._cut_time is not None:
            return self.clock(self._cut_time)
        start, end = self.end_clocks()[0], self._terminal_clock()
        if not start.item() < end.item():
            low = self.factorization(end)[2].log_snr.item()
            self._check_controllable()
            raise UnreachableError(
                f"max_log_snr is {self.max_log_snr:g}, but log SNR ends at {low:.6g} with "
                f"{self._matrices()}: nothing is left between the start time and T; use a faster "
                f"clock, or set min_log_snr{self._remedy()}"
            )
        return start

    def _terminal_clock(self) -> Tensor:
        """The clock time of T, 0-dim."""
        found: Tensor = self._cached("terminal clock", lambda: self.clock(self.horizon))
        return found

    def end_clocks(self) -> Tensor:
        """Clock times of ``max_log_snr`` and, if given, ``min_log_snr``: (1,) or (2,)."""

        def compute() -> Tensor:
            found = self._found_ends()
            if found is not None:
                return found.clocks
            targets = self._given_ends()
            with torch.no_grad():
                roots = self._roots(targets)
            return self._inversion.with_gradient(roots, targets)

        return self._cached("end_clocks", compute)

    def _roots(self, targets: Tensor) -> Tensor:
        """The clock times of ``targets``, λ at the ends, as numbers."""
        found: Tensor = self._cached(
            "roots", lambda: self._inversion.root(targets, self._root_guess())
        )
        return found

    def log_snr_rate(self, s: Times) -> Tensor:
        """-dλ/ds = SNR · kᵀ g² k > 0, like s, with k the readout of :meth:`marginal`."""
        s = self.checked_time("s", s)
        _, _, factor = self.factorization(self.clock(s))
        return self.rate(s) * decay(factor, self.clock_noise(s))

    def time_at_log_snr(self, value: Times) -> Tensor:
        """The time s with λ(s) = value, like value; differentiable in the diffusion and in value.

        Raises:
            ValueError: a value below λ(T), which this diffusion never reaches.
            UnreachableError: one so high that float64 does not.
        """
        value = self.as_tensor(value)
        with torch.no_grad():
            low = self.terminal_log_snr
        if not bool((value >= low - 1e-9 * (1 + low.abs())).all()):
            raise ValueError(
                f"log SNR {value.min().item():.6g} is never reached: it ends at λ(T) = "
                f"{low.item():.6g}; use a larger value, a faster clock or a longer horizon"
            )
        tau = self._inversion.with_gradient(self._inversion.root(value), value)
        return self.time_at_clock(tau)

    # -- log volume --------------------------------------------------------------------------------

    def log_volume(self, s: Times) -> Tensor:
        """κ(s) = log det Σ(s) - 2 ∫_0^s tr A, like s: the log volume of Σ pulled back to time 0.

        It increases, κ' = tr(Σ^{-1} g²) > 0, where log SNR may pause: per unit of κ the divergence
        of a score of the raw state is a weighted mean of squares, whatever Q and D. For K = 1 it
        is -λ. Raises as :meth:`marginal` does.
        """
        tau = self._positive_clock(s)
        _, _, factor = self.factorization(tau)
        self.check_precision(factor.amplification, tau, "the log volume")
        return self._log_volume(factor.log_det, tau)

    def log_volume_rate(self, s: Times) -> Tensor:
        """κ'(s) = tr(Σ^{-1} g²) > 0, like s."""
        tau = self._positive_clock(s)
        _, _, factor = self.factorization(tau)
        return self.rate(s) * volume_rate(factor, self.clock_noise(s))

    @property
    def log_volume_ends(self) -> Tensor:
        """κ(ε) and κ(T), (2,)."""

        def compute() -> Tensor:
            tau = torch.stack([self._start_clock(), self._terminal_clock()])
            return self._log_volume(self._ends().log_det, tau)

        found: Tensor = self._cached("log_volume_ends", compute)
        return found

    def time_at_log_volume(self, value: Times) -> Tensor:
        """The time s in [ε, T] with κ(s) = value, like value; differentiable in both.

        Raises:
            ValueError: a value outside [κ(ε), κ(T)].
        """
        value = self.as_tensor(value)
        with torch.no_grad():
            low, high = self.log_volume_ends.tolist()
        room = 1e-9 * (1 + abs(low) + abs(high))
        outside = ~((value >= low - room) & (value <= high + room))
        if bool(outside.any()):
            raise ValueError(
                f"log volume {value.detach()[outside][0].item():.6g} is not between that of ε, "
                f"{low:.6g}, and of T, {high:.6g}; see log_volume_ends"
            )
        tau = self._inversion.with_gradient(
            self._inversion.root(value, of=LOG_VOLUME), value, LOG_VOLUME
        )
        return self.time_at_clock(tau)

    def _log_volume(self, log_det: Tensor, tau: Tensor) -> Tensor:
        return log_det - 2 * self.propagator.trace(None, tau)

    @property
    def _inversion(self) -> Inversion:
        return Inversion(self)

    def _last_clock(self) -> float:
        """The log of the latest clock time at which λ is looked for."""
        return 3.5 - self.propagator.decay.log().item()

    # -- the door ----------------------------------------------------------------------------------

    def _device(self) -> torch.device:
        return self.initial_covariance.device

    def check_precision(self, growth: Tensor, tau: Tensor, what: str) -> None:
        """Raises KernelPrecisionError where rounding grows by more than float64 has digits for."""
        if growth.numel() and not bool((growth <= MAX_AMPLIFICATION).all()):
            self._check_controllable()  # a better reason than precision
            worst = int(growth.flatten().argmax())
            s = self.inverse_clock(tau.detach())
            raise kernels.KernelPrecisionError(
                f"{type(self).__name__}: float64 cannot hold {what} at s = "
                f"{s.expand(growth.shape).flatten()[worst].item():.3g} (rounding grows by "
                f"{growth.max().item():.1e}, expected at most {MAX_AMPLIFICATION:.0e}); lower "
                "max_log_snr, take longer steps, or bring the time scales of Q and D together"
            )

    def extra_repr(self) -> str:
        text = f"num_variables={self.num_variables}, max_log_snr={self.max_log_snr:g}"
        return text if self.min_log_snr is None else f"{text}, min_log_snr={self.min_log_snr:g}"


def _cut_time(value: float | None, horizon: float, min_log_snr: float | None) -> float | None:
    if value is None:
        return None
    if not 0 < check_number("cut_time", value, "a time in (0, T)") < horizon:
        raise ValueError(f"cut_time is {value}, expected a time between 0 and T = {horizon:g}")
    if min_log_snr is not None:
        raise ValueError(
            f"cut_time is {value} and min_log_snr {min_log_snr}, to which the clock is scaled and "
            "with it what that time means; give max_log_snr instead of cut_time"
        )
    return float(value)
