r"""Interpolants: diffusions of one variable given by their marginals, y_s = α(s) x + σ(s) ε.

With the clock time τ = b(s) = σ²/α² = e^{-λ} the state in units of its signal, y/α, is a Brownian
motion that starts at the data, whatever α and σ are. So for times r < s

    M(s, r) = α_s / α_r,    P(s, r) = α_s² (b_s - b_r),    A = α'/α,    g² = α² b' = -σ² λ',

with no difference of variances. Dividing y by α changes neither z nor λ nor any term of the bound,
but for the prior, which is divided by α(T)². With denoisers every interpolant is therefore
:class:`~pyro_mdm.VPSDE` with other ends and another prior.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_mdm.diffusions import kernels
from pyro_mdm.diffusions.base import Times, UnreachableError, check_clock, check_horizon
from pyro_mdm.diffusions.clocks import Clock, LinearBeta, as_times, times_within
from pyro_mdm.diffusions.ends import LOG_SNR, EndSettings, clocks_of_targets
from pyro_mdm.diffusions.kernels import HalfSteps, Propagator, Root
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.diffusions.linear_matrices import GivenPrior, Matrices
from pyro_mdm.diffusions.presets import check_scales
from pyro_mdm.varying.interpolant_clocks import (
    Exploding,
    GivenSchedule,
    InterpolantClock,
    Schedule,
    Straight,
    SubVariance,
    Turning,
)

__all__ = ["VE", "Cosine", "Interpolant", "RectifiedFlow", "SubVP"]


class Interpolant(LinearDiffusion):
    r"""The diffusion of one variable with y_s = α(s) x + σ(s) ε, for given α and σ.

    It runs until log SNR log α²/σ² is ``min_log_snr``, since at the end α may be 0, and begins
    where it is ``max_log_snr``, since σ(0) = 0.

    Args:
        alpha, sigma: functions of times s (…) in float64 that return α and σ, like s, and are
            differentiable in s. α(0) = 1 and does not rise; σ(0) = 0 and does not fall. Or an
            :class:`InterpolantClock` alone, with the inverse of σ²/α² in closed form.
        horizon: the end of the times at which they are given.
        prior_variance: as for :class:`~pyro_mdm.LinearSDE`; σ(T)² by default.
        max_log_snr: λ(ε);  min_log_snr: λ(T), which cuts T; None: ``horizon`` is T.

    Raises:
        TypeError: α or σ that is no function, or does not return float64 tensors.
        ValueError: α or σ that is not monotone, does not start at 1 or 0, is not finite or learned;
            log SNR that does not reach ``min_log_snr``. With the time at which it fails.

    Example:
        >>> flow = Interpolant(lambda s: 1 - s, lambda s: s, min_log_snr=-10.0)
        >>> flow.marginal(0.25).mean, flow.marginal(0.25).covariance
        (tensor([0.7500], dtype=torch.float64), tensor([[0.0625]], dtype=torch.float64))

    Source: Albergo, Boffi & Vanden-Eijnden, "Stochastic Interpolants", 2023; Kingma et al.,
    "Variational Diffusion Models", NeurIPS 2021, for what does not depend on α and σ.
    """

    def __init__(
        self,
        alpha: Schedule | InterpolantClock,
        sigma: Schedule | None = None,
        *,
        horizon: float = 1.0,
        prior_variance: float | None = None,
        max_log_snr: float = 13.0,
        min_log_snr: float | None = None,
    ) -> None:
        clock = alpha
        if not isinstance(clock, InterpolantClock):
            clock = GivenSchedule(alpha, sigma, horizon)  # type: ignore[arg-type]
        ends = {"max_log_snr": max_log_snr, "min_log_snr": min_log_snr}
        super().__init__(**_arguments(clock, prior_variance, **ends))


def _arguments(
    clock: InterpolantClock, prior_variance: float | None = None, **ends: Any
) -> dict[str, Any]:
    """The arguments of a linear diffusion that is an interpolant."""
    given = {"Q": Signal(clock), "beta": clock, "horizon": clock.horizon}
    return given | {"stationary_variance": prior_variance} | ends


class VE(LinearDiffusion):
    """The variance-exploding SDE, ``α = 1``, ``σ(s)² = σ_min² ((σ_max/σ_min)^{2s} - 1)``.

    Args:
        sigma_min: σ grows geometrically from about here, with the time 0 for the data themselves.
        sigma_max: the end of σ, σ(T)² = σ_max² - σ_min². It is to cover the data: the prior does
            not know where they are. By default 50, or what ``min_log_snr`` needs.
        prior_variance, max_log_snr, min_log_snr: as for :class:`Interpolant`.

    Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential
    Equations", ICLR 2021, eq. 9 and 31.
    """

    def __init__(
        self,
        sigma_min: float = 0.01,
        sigma_max: float | None = None,
        *,
        prior_variance: float | None = None,
        max_log_snr: float = 13.0,
        min_log_snr: float | None = None,
    ) -> None:
        if sigma_max is None:
            sigma_max = 50.0
            if isinstance(min_log_snr, int | float):
                sigma_max = math.sqrt(math.exp(-min_log_snr) + sigma_min**2)
        clock = Exploding(*check_scales(sigma_min, sigma_max))
        ends = {"max_log_snr": max_log_snr, "min_log_snr": min_log_snr}
        super().__init__(**_arguments(clock, prior_variance, **ends))


class SubVP(LinearDiffusion):
    """The sub-VP SDE, ``α = e^{-b/2}``, ``σ = 1 - e^{-b}``, where b is the integral of β.

    Args:
        beta: β(s), :class:`~pyro_mdm.diffusions.LinearBeta` 0.1 → 20 by default.
        horizon: the end of its times.
        options: ``prior_variance``, ``max_log_snr`` and ``min_log_snr`` of :class:`Interpolant`.

    Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential
    Equations", ICLR 2021, eq. 29.
    """

    def __init__(self, beta: Clock | None = None, horizon: float = 1.0, **options: Any) -> None:
        horizon = check_horizon(horizon)
        beta = LinearBeta(horizon=horizon) if beta is None else beta
        check_clock(beta)
        super().__init__(**_arguments(SubVariance(beta, horizon), **options))


class RectifiedFlow(LinearDiffusion):
    """The straight interpolant, ``α = 1 - s``, ``σ = s``, cut at both ends.

    Args:
        min_log_snr: λ(T);  options: ``prior_variance`` and ``max_log_snr`` of :class:`Interpolant`.

    Source: Liu, Gong & Liu, "Flow Straight and Fast", ICLR 2023; Lipman et al., "Flow Matching for
    Generative Modeling", ICLR 2023.
    """

    def __init__(self, *, min_log_snr: float = -10.0, **options: Any) -> None:
        super().__init__(**_arguments(Straight(), min_log_snr=min_log_snr, **options))


class Cosine(LinearDiffusion):
    """The cosine interpolant, ``α = cos(π s / 2)``, ``σ = sin(π s / 2)``, cut at both ends.

    It preserves a variance of 1, that of the prior, and is the cosine schedule without its offset,
    which the cut replaces.

    Args:
        min_log_snr: λ(T);  prior_variance: Σ_π.
        options: ``max_log_snr`` of :class:`Interpolant`.

    Source: Nichol & Dhariwal, "Improved Denoising Diffusion Probabilistic Models", ICML 2021, eq.
    17.
    """

    def __init__(
        self, *, prior_variance: float | None = 1.0, min_log_snr: float = -10.0, **options: Any
    ) -> None:
        options["min_log_snr"] = min_log_snr
        super().__init__(**_arguments(Turning(), prior_variance, **options))


# -- kernels ---------------------------------------------------------------------------------------


class Signal(Matrices):
    """A and g² of an interpolant, whose ends are cut where λ is the target; clock time is e^{-λ}.

    Args:
        clock: b(s) and α, the clock of the diffusion.
    """

    prior_kind = GivenPrior

    def __init__(self, clock: InterpolantClock) -> None:
        self._clock = clock

    def register(self) -> int:
        return 1

    def check(self) -> None:
        self._clock.check()
        self.linear.horizon = self._end_of(self.linear.given_ends.low)

    @property
    def check_times(self) -> float:
        return self.linear.horizon / 2

    @property
    def when(self) -> str:
        return f"({self.linear.horizon / 2:g})"

    def drift(self, s: Times | None = None) -> Tensor:
        s = self._times("A", s)
        return _matrix(self._clock.drift(s) / self._clock.rate(s))

    def drift_by_time(self, s: Tensor) -> Tensor:
        return _matrix(self._clock.drift(s))

    def noise(self, s: Times | None = None) -> Tensor:
        return self.root(s).square()

    def root(self, s: Times | None = None) -> Tensor:
        s = self._times("G", s)
        return _matrix(self._clock.signal(self._clock.integral(s)))

    def _times(self, name: str, s: Times | None) -> Tensor:
        """Times in float64; raises TypeError for those of a constant matrix of this name."""
        if s is None:
            raise self.no_constant(name)
        return times_within(self.linear.horizon, "s", s)

    @property
    def propagator(self) -> Propagator:
        # its own prior follows from it
        return InterpolantPropagator(self._clock, lambda: self.precision()[0, 0])

    # -- the clock and the ends --------------------------------------------------------------------

    def clocks(self, targets: Tensor) -> Tensor:
        return torch.exp(-targets)

    def scale(self) -> Tensor:
        return as_times(1.0)

    def end_clock(self) -> Tensor:
        if self.linear.given_ends.low is not None:
            return clocks_of_targets(self.linear)[1]
        return self.linear.clock(self.linear.horizon)

    def search_range(self, move: Propagator) -> tuple[float, float]:
        return math.log(1e-300), self.end_clock().log().item()

    def clock_at(self, value: Tensor, name: str) -> Tensor:
        return torch.exp(-value if name == LOG_SNR else value)

    def set_ends(self, ends: EndSettings) -> None:
        """Cut T where log SNR is the lower end."""
        end = self._end_of(ends.low)
        with torch.no_grad():
            drift = self._clock.drift(as_times(end))
        if not bool(drift.isfinite()):
            raise UnreachableError(
                f"{type(self.linear).__name__}: min_log_snr is {ends.low:g}, which is reached at "
                f"s = {end:g}, where α rounds to 0, expected an earlier end; raise min_log_snr, "
                "e.g. to -10.0"
            )
        self.linear.horizon = end

    def restore(self, saved: dict[str, Any]) -> None:
        self.linear.horizon = saved["horizon"]  # with its last digit, wherever it was computed

    def _end_of(self, low: float | None) -> float:
        """T, the time at which log SNR is ``low``, or the end of the given times."""
        clock, name = self._clock, type(self.linear).__name__
        end = clock.horizon
        with torch.no_grad():
            last = -clock.integral(as_times(end)).log().item()
            if low is None and math.isfinite(last):
                return end
            if low is None:
                raise UnreachableError(
                    f"{name}: α is 0 at s = {end:g}, where log SNR is -∞, expected a prior that is "
                    "a little informed; give min_log_snr, e.g. -10.0, at which T is cut"
                )
            if abs(last - low) < 1e-9:
                return end
            if last > low:
                raise UnreachableError(
                    f"{name}: min_log_snr is {low:g}, but log SNR ends at {last:.6g} at s = "
                    f"{end:g}, expected one that reaches it; raise min_log_snr, or {clock.remedy}"
                )
            return clock.inverse(as_times(math.exp(-low))).clamp_max(end).item()


class InterpolantPropagator(Propagator):
    """The propagator of an interpolant, whose y/α is a Brownian motion in clock time.

    Args:
        clock: b(s) and α.
        precision: 1/Σ_π, 0-dim.
    """

    new = 1

    def __init__(self, clock: InterpolantClock, precision: Callable[[], Tensor]) -> None:
        self._clock, self._precision = clock, precision

    def drift(self, tau: Tensor) -> Tensor:
        s = self._clock.inverse(tau)
        return _matrix(self._clock.drift(s) / self._clock.rate(s))

    def noise(self, tau: Tensor) -> Tensor:
        return _matrix(self._clock.signal(tau).square())

    def dispersion(self, tau: Tensor) -> Tensor:
        return _matrix(self._clock.signal(tau))

    speed = 0.0
    """In units of the signal nothing moves."""

    def factorized(
        self, tau: Tensor, initial: Tensor, units: Tensor | None = None
    ) -> tuple[Tensor, Tensor, kernels.Factor]:
        a = self._clock.signal(tau)
        root = a * tau.sqrt()
        factor = kernels.Factor(
            _matrix(root),
            _matrix(1 / root),
            -tau.log(),
            1 / a[..., None],
            2 * a.log() + tau.log(),
            torch.ones_like(tau),
        )
        return a[..., None], _matrix(a.square() * tau), factor

    def travelled(self, tau: Tensor) -> Tensor:
        return torch.zeros_like(tau)

    def effort(self, tau: Tensor) -> Tensor:
        return -2 * self.trace(None, tau.detach())

    def trace(self, start: Tensor | None, duration: Tensor) -> Tensor:
        earlier, later = self._signals(start, duration)
        return (later / earlier).log()

    def _signals(self, start: Tensor | None, duration: Tensor) -> tuple[Tensor, Tensor]:
        """α at both ends."""
        if start is None:
            later = self._clock.signal(duration)
            return torch.ones_like(later), later
        return self._clock.signal(start), self._clock.signal(start + duration)

    def moments(self, start: Tensor | None, duration: Tensor) -> tuple[Tensor, Tensor]:
        earlier, later = self._signals(start, duration)
        return _matrix(later / earlier), _matrix(later.square() * duration)

    def pulled_back(self, start: Tensor | None, duration: Tensor) -> tuple[Tensor, Tensor]:
        earlier, later = self._signals(start, duration)
        return _matrix(earlier / later), _matrix(earlier.square() * duration)

    def root(self, start: Tensor | None, duration: Tensor) -> Root:
        _, later = self._signals(start, duration)
        return _root(later * duration.sqrt())

    def pulled_back_root(self, start: Tensor | None, duration: Tensor) -> Root:
        earlier, _ = self._signals(start, duration)
        return _root(earlier * duration.sqrt())

    def halves(self, start: Tensor, duration: Tensor) -> HalfSteps:
        """Both halves, by quadrature of E = ∫ α² Σ_π^{-1} dτ from a time to the half's end.

        In units of the signal B is -α² Σ_π^{-1}: M = e^{-E}, and noise adds ∫ e^{-2 E} dτ. Nodes
        are in log τ, over which grids are about even.
        """
        half = duration / 2
        begins = torch.stack([start + half, start])  # the later half first
        nodes, weights = (t.to(half) for t in kernels.gauss_legendre(16))
        length = torch.log1p(half / begins)  # from a half's end, which is its earliest time

        def pulled(run: Tensor) -> Tensor:
            """E over log τ from ``begins`` to ``run`` later, like run."""
            first = begins.reshape(*begins.shape, *[1] * (run.dim() - begins.dim() + 1))
            tau = first * (run[..., None] * nodes).exp()
            pull = self._clock.signal(tau).square() * tau * weights
            return pull.sum(-1) * run * self._precision()

        run = length[..., None] * nodes
        whole, tau = pulled(length), begins[..., None] * run.exp()
        gained = ((-2 * pulled(run)).exp() * tau * weights).sum(-1) * length
        earlier, later = self._signals(begins, half)
        M = _matrix(earlier / later * (-whole).exp())
        root = _matrix(earlier * gained.sqrt())
        return HalfSteps(M[0], root[0], M[1], root[1], torch.ones_like(half))


def _matrix(value: Tensor) -> Tensor:
    return value[..., None, None]


def _root(value: Tensor) -> Root:
    return Root(_matrix(value), _matrix(1 / value), 2 * value.log(), torch.ones_like(value))
