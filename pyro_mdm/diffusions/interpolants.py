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
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from pyro_mdm.diffusions import kernels
from pyro_mdm.diffusions.base import Times, UnreachableError, check_clock, check_horizon
from pyro_mdm.diffusions.clocks import Clock, GeometricBeta, LinearBeta
from pyro_mdm.diffusions.linear import Matrices
from pyro_mdm.diffusions.linear_sde import LinearSDE, check_scales
from pyro_mdm.diffusions.propagator import Halves, Propagator, Root
from pyro_mdm.support.checks import describe
from pyro_mdm.support.settings import described

__all__ = ["VE", "Cosine", "Interpolant", "InterpolantClock", "RectifiedFlow", "SubVP"]

Schedule = Callable[[Tensor], Tensor]
"""Times s (…) in float64 -> α or σ, like s."""

MOMENTS = 4097
"""Times at which given functions are checked."""
HALVINGS = 60
"""Of an interval in which a time is searched for: to rounding."""


class InterpolantClock(Clock):
    """The clock b(s) = σ²/α² of an interpolant, and the signal that is left.

    Args:
        horizon: the end of the times at which α and σ are given; α may be 0 there, and b infinite.
    """

    def __init__(self, horizon: float = 1.0) -> None:
        super().__init__()
        self.horizon = horizon

    @abstractmethod
    def drift(self, s: Tensor) -> Tensor:
        """A = α'/α at times s, like s."""

    @abstractmethod
    def signal(self, tau: Tensor) -> Tensor:
        """α at clock times τ, like τ."""

    def check(self) -> None:
        """Raise ValueError unless α falls from 1 and σ rises from 0."""

    @property
    def remedy(self) -> str:
        """How log SNR could end lower, for messages."""
        return "give α and σ with a smaller ratio at T"


class Interpolant(LinearSDE):
    r"""The diffusion of one variable with y_s = α(s) x + σ(s) ε, for given α and σ.

    It runs until log SNR log α²/σ² is ``min_log_snr``, since at the end α may be 0, and begins
    where it is ``max_log_snr``, since σ(0) = 0.

    Args:
        alpha, sigma: functions of times s (…) in float64 that return α and σ, like s, and are
            differentiable in s. α(0) = 1 and does not rise; σ(0) = 0 and does not fall. Or an
            :class:`InterpolantClock` alone, with the inverse of σ²/α² in closed form.
        horizon: the end of the times at which they are given.
        prior_variance: as for :class:`LinearSDE`; σ(T)² by default.
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

    beta: InterpolantClock

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
            clock = Given(alpha, sigma, horizon)  # type: ignore[arg-type]
        super().__init__(
            _Signal(),
            beta=clock,
            horizon=clock.horizon,
            prior_variance=prior_variance,
            max_log_snr=max_log_snr,
            min_log_snr=min_log_snr,
        )

    def end_of(self, low: float | None) -> float:
        """T, the time at which log SNR is ``low``, or the end of the given times."""
        end, name = self.beta.horizon, type(self).__name__
        with torch.no_grad():
            last = -self.beta.integral(self.as_tensor(end)).log().item()
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
                    f"{end:g}, expected one that reaches it; raise min_log_snr, or "
                    f"{self.beta.remedy}"
                )
            return self.beta.inverse(self.as_tensor(math.exp(-low))).clamp_max(end).item()

    def _set_ends(self, high: float, low: float | None) -> None:
        end = self.end_of(low)
        super()._set_ends(high, low)
        self.horizon = end

    def restore(self, saved: dict[str, Any]) -> None:
        super().restore(saved)
        self.horizon = saved["horizon"]  # with its last digit, wherever it was computed

    # -- closed forms ------------------------------------------------------------------------------

    def clock_scale(self) -> Tensor:
        return self.as_tensor(1.0)

    def drift_matrix(self, s: Times) -> Tensor:
        return self.beta.drift(self.checked_time("s", s))[..., None, None]

    def factorization(self, tau: Tensor) -> tuple[Tensor, Tensor, kernels.Factor]:
        a = self.beta.signal(tau)
        root = a * tau.sqrt()
        factor = kernels.Factor(
            root[..., None, None],
            1 / root[..., None, None],
            -tau.log(),
            1 / a[..., None],
            2 * a.log() + tau.log(),
            torch.ones_like(tau),
        )
        return a[..., None], (a.square() * tau)[..., None, None], factor

    def end_clocks(self) -> Tensor:
        return torch.exp(-self._given_ends())

    def _terminal_clock(self) -> Tensor:
        low = self._ends.low
        return self.clock(self.horizon) if low is None else self.end_clocks()[1]

    def time_at_log_snr(self, value: Times) -> Tensor:
        value = self.as_tensor(value)
        self.check_log_snr(value)
        return self.time_at_clock(torch.exp(-value))

    def time_at_log_volume(self, value: Times) -> Tensor:
        value = self.as_tensor(value)
        self.check_log_volume(value)
        return self.time_at_clock(torch.exp(value))


class VE(Interpolant):
    """The variance-exploding SDE: α = 1, σ(s)² = σ_min² ((σ_max/σ_min)^{2s} - 1).

    Args:
        sigma_min: σ grows geometrically from about here, with the time 0 for the data themselves.
        sigma_max: σ(T), up to σ_min². It is to cover the data: the prior does not know where they
            are. By default 50, or what ``min_log_snr`` needs.
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
        super().__init__(
            Exploding(*check_scales(sigma_min, sigma_max)),
            prior_variance=prior_variance,
            max_log_snr=max_log_snr,
            min_log_snr=min_log_snr,
        )


class SubVP(Interpolant):
    """The sub-VP SDE: α = e^{-b/2}, σ = 1 - e^{-b}, with b the integral of β.

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
        super().__init__(SubVariance(beta, horizon), **options)


class RectifiedFlow(Interpolant):
    """The straight interpolant α = 1 - s, σ = s, cut at both ends.

    Args:
        min_log_snr: λ(T);  options: ``prior_variance`` and ``max_log_snr`` of :class:`Interpolant`.

    Source: Liu, Gong & Liu, "Flow Straight and Fast", ICLR 2023; Lipman et al., "Flow Matching for
    Generative Modeling", ICLR 2023.
    """

    def __init__(self, *, min_log_snr: float = -10.0, **options: Any) -> None:
        super().__init__(Straight(), min_log_snr=min_log_snr, **options)


class Cosine(Interpolant):
    """The interpolant α = cos(π s / 2), σ = sin(π s / 2), cut at both ends.

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
        ends = {"min_log_snr": min_log_snr, **options}
        super().__init__(Turning(), prior_variance=prior_variance, **ends)


# -- clocks ----------------------------------------------------------------------------------------


class Exploding(InterpolantClock):
    """α = 1."""

    def __init__(self, sigma_min: float, sigma_max: float) -> None:
        super().__init__()
        self.variance = GeometricBeta(sigma_min**2, sigma_max**2)

    def rate(self, s: Tensor) -> Tensor:
        return self.variance.rate(s)

    def integral(self, s: Tensor) -> Tensor:
        return self.variance.integral(s)

    def inverse(self, tau: Tensor) -> Tensor:
        return self.variance.inverse(tau)

    def drift(self, s: Tensor) -> Tensor:
        return torch.zeros_like(s)

    def signal(self, tau: Tensor) -> Tensor:
        return torch.ones_like(tau)

    @property
    def remedy(self) -> str:
        return "raise sigma_max"


class SubVariance(InterpolantClock):
    """α = e^{-b/2} and σ/α = 2 sinh(b/2)."""

    def __init__(self, beta: Clock, horizon: float) -> None:
        super().__init__(horizon)
        self.beta = beta

    def rate(self, s: Tensor) -> Tensor:
        return 2 * torch.sinh(self.beta.integral(s)) * self.beta.rate(s)

    def integral(self, s: Tensor) -> Tensor:
        return 4 * torch.sinh(self.beta.integral(s) / 2).square()

    def inverse(self, tau: Tensor) -> Tensor:
        return self.beta.inverse(2 * torch.asinh(tau.sqrt() / 2))

    def drift(self, s: Tensor) -> Tensor:
        return -self.beta.rate(s) / 2

    def signal(self, tau: Tensor) -> Tensor:
        half = tau.sqrt() / 2
        return 1 / (half + (1 + half.square()).sqrt())

    def settings(self) -> dict[str, Any]:
        return {"beta": described(self.beta), "horizon": self.horizon}

    @property
    def remedy(self) -> str:
        return "give a faster clock, e.g. beta=LinearBeta(0.1, 30.0)"


class Straight(InterpolantClock):
    """α = 1 - s, σ = s."""

    def rate(self, s: Tensor) -> Tensor:
        return 2 * s / (1 - s) ** 3

    def integral(self, s: Tensor) -> Tensor:
        return (s / (1 - s)).square()

    def inverse(self, tau: Tensor) -> Tensor:
        return 1 / (1 + 1 / tau.sqrt())

    def drift(self, s: Tensor) -> Tensor:
        return -1 / (1 - s)

    def signal(self, tau: Tensor) -> Tensor:
        return 1 / (1 + tau.sqrt())


class Turning(InterpolantClock):
    """α = cos(π s / 2), σ = sin(π s / 2)."""

    def rate(self, s: Tensor) -> Tensor:
        ratio = self._ratio(s)
        return math.pi * ratio * (1 + ratio.square())

    def integral(self, s: Tensor) -> Tensor:
        return self._ratio(s).square()

    def inverse(self, tau: Tensor) -> Tensor:
        return torch.atan(tau.sqrt()) * (2 / math.pi)

    def drift(self, s: Tensor) -> Tensor:
        return -math.pi / 2 * self._ratio(s)

    def signal(self, tau: Tensor) -> Tensor:
        return 1 / (1 + tau).sqrt()

    def _ratio(self, s: Tensor) -> Tensor:
        """σ/α, by the cosine's sine near T: π s / 2 itself is rounded there."""
        angle = math.pi / 2
        late = torch.sin(angle * s) / torch.sin(angle * (1 - s))
        return torch.where(s < 0.5, torch.tan(angle * s.clamp_max(0.5)), late)


class Given(InterpolantClock):
    """Functions α and σ that are given; times are searched for."""

    def __init__(self, alpha: Schedule, sigma: Schedule, horizon: float) -> None:
        super().__init__(check_horizon(horizon))
        for name, given in (("alpha", alpha), ("sigma", sigma)):
            if not callable(given):
                raise TypeError(
                    f"{name} is {describe(given)}, expected a function of times s (…) in float64, "
                    "e.g. lambda s: 1 - s"
                )
        self.alpha, self.sigma = alpha, sigma

    def check(self) -> None:
        s = torch.linspace(0.0, self.horizon, MOMENTS, dtype=torch.float64)
        with torch.enable_grad():
            for shaped in (s[:6].reshape(2, 3), s[1]):
                self._both(shaped)
        alpha, sigma = self._both(s)
        for name, value in (("α", alpha), ("σ", sigma)):
            if not bool((finite := value.isfinite()).all()):
                raise ValueError(
                    f"{name}(s) is not finite at s = {s[~finite][0].item():.6g}, expected finite "
                    f"numbers on all of [0, {self.horizon:g}]"
                )
        for name, value, start in (("α", alpha, 1.0), ("σ", sigma, 0.0)):
            if not abs(value[0].item() - start) < 1e-12:
                raise ValueError(
                    f"{name} is {value[0].item():.6g} at s = 0, expected {start:g}, where y holds "
                    f"x itself; {'divide α and σ by α(0)' if start else 'subtract σ(0)'}"
                )
        for name, steps, fault in (("α", -alpha.diff(), "rises"), ("σ", sigma.diff(), "falls")):
            if bool((wrong := steps < -1e-14).any()):
                at = s[:-1][wrong][0].item()
                raise ValueError(
                    f"{name} {fault} at s = {at:.6g}, expected a function that is monotone on [0, "
                    f"{self.horizon:g}]: α from 1 down, σ from 0 up; end at this time (horizon), "
                    "or give another function"
                )
        ratio = sigma / alpha
        still = ~(ratio.diff() > 0) | ~(alpha[:-1] > 0)
        if bool(still.any()):
            raise ValueError(
                f"log SNR does not fall at s = {s[:-1][still][0].item():.6g}, where α is "
                f"{alpha[:-1][still][0].item():.4g} and σ {sigma[:-1][still][0].item():.4g}, "
                "expected σ/α that rises up to the end; end at this time (horizon), or let α fall "
                "or σ rise everywhere"
            )

    def _both(self, s: Tensor) -> tuple[Tensor, Tensor]:
        return self._value("α", self.alpha, s), self._value("σ", self.sigma, s)

    def _value(self, name: str, function: Schedule, s: Tensor) -> Tensor:
        value = function(s)
        if not isinstance(value, Tensor) or value.dtype != torch.float64:
            got = value.dtype if isinstance(value, Tensor) else describe(value)
            raise TypeError(
                f"{name}(s) is {got}, expected a tensor of torch.float64, like s; compute in the "
                "dtype of s, and write a constant as torch.ones_like(s)"
            )
        if value.shape != s.shape:
            raise ValueError(
                f"{name}(s) has shape {tuple(value.shape)} for times of shape {tuple(s.shape)}, "
                "expected the same: it is applied elementwise"
            )
        if value.requires_grad and not s.requires_grad:
            raise ValueError(
                f"{name}(s) requires a gradient, expected a function of constants: interpolants "
                "are not learned; use LearnedDiffusion, or detach what it is made of"
            )
        return value

    def _slopes(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """α, σ, α' and σ' at times s, like s."""
        graph = torch.is_grad_enabled() and s.requires_grad
        with torch.enable_grad():
            at = s if graph else s.detach().requires_grad_()
            both = [value + 0 * at for value in self._both(at)]  # of constants, the slope is 0
            slopes = [
                torch.autograd.grad(value.sum(), at, create_graph=graph, retain_graph=True)[0]
                for value in both
            ]
        alpha, sigma = both if graph else (value.detach() for value in both)
        return alpha, sigma, slopes[0], slopes[1]

    def integral(self, s: Tensor) -> Tensor:
        alpha, sigma = self._both(s)
        return (sigma / alpha).square()

    def rate(self, s: Tensor) -> Tensor:
        alpha, sigma, by_alpha, by_sigma = self._slopes(s)
        return 2 * sigma * (by_sigma - sigma / alpha * by_alpha) / alpha.square()

    def drift(self, s: Tensor) -> Tensor:
        alpha, _, by_alpha, _ = self._slopes(s)
        return by_alpha / alpha

    def inverse(self, tau: Tensor) -> Tensor:
        """The time with σ/α = √τ, by halving, and the gradient by one Newton step."""
        ratio = tau.detach().sqrt()
        with torch.no_grad():
            low, high = torch.zeros_like(ratio), torch.full_like(ratio, self.horizon)
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                alpha, sigma = self._both(middle)
                late = sigma > ratio * alpha
                low, high = torch.where(late, low, middle), torch.where(late, middle, high)
            s = (low + high) / 2
            alpha, sigma, by_alpha, by_sigma = self._slopes(s)
            slope = by_sigma - ratio * by_alpha
            step = torch.where(slope > 0, (sigma - ratio * alpha) / slope, 0.0)
            s = (s - step).clamp(low, high)
        if not (torch.is_grad_enabled() and tau.requires_grad):
            return s
        return s + (tau - tau.detach()) / self.rate(s)

    def signal(self, tau: Tensor) -> Tensor:
        return self._value("α", self.alpha, self.inverse(tau))

    def settings(self) -> dict[str, Any]:
        functions = {"alpha": described(self.alpha), "sigma": described(self.sigma)}
        return functions | {"horizon": self.horizon}


# -- kernels ---------------------------------------------------------------------------------------


class _Signal(Matrices):
    """A and g² of an interpolant."""

    of: Interpolant

    def register(self) -> int:
        return 1

    def check(self) -> None:
        self.of.beta.check()
        self.of.horizon = self.of.end_of(self.of.min_log_snr)

    @property
    def moments(self) -> float:
        return self.of.horizon / 2

    @property
    def when(self) -> str:
        return f"({self.of.horizon / 2:g})"

    def constant(self, name: str) -> NoReturn:
        raise TypeError(
            f"{type(self.of).__name__} has no constant {name}: it varies in time; use "
            "drift_matrix(s) and noise_covariance(s)"
        )

    def at(self, name: str, s: Times) -> Tensor:
        s = self.of.checked_time("s", s)
        clock = self.of.beta
        value = clock.signal(clock.integral(s))
        value = clock.drift(s) / clock.rate(s) if name == "A" else value.square()
        return value[..., None, None]

    def root(self, s: Times | None = None) -> Tensor:
        if s is None:
            return self.constant("G")
        clock = self.of.beta
        return clock.signal(clock.integral(self.of.checked_time("s", s)))[..., None, None]

    def propagator(self) -> Propagator:
        return InterpolantPropagator(self.of.beta, self.of.prior_covariance[0, 0].reciprocal)

    def last_clock(self) -> float:
        return self.of.clock(self.of.horizon).log().item()

    def end_clock(self, guess: Tensor | None) -> Tensor:
        return self.of.end_clocks()[1]


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

    @property
    def speed(self) -> Tensor:
        """0: in units of the signal nothing moves."""
        return torch.zeros((), dtype=torch.float64)

    @property
    def decay(self) -> Tensor:
        return torch.full((), 1e-12, dtype=torch.float64)

    def travelled(self, tau: Tensor) -> Tensor:
        return torch.zeros_like(tau)

    def effort(self, tau: Tensor) -> Tensor:
        return -2 * self.trace(None, tau.detach())

    def trace(self, start: Tensor | None, duration: Tensor, copies: int = 1) -> Tensor:
        earlier, later = self._signals(start, duration)
        return copies * (later / earlier).log()

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

    def pulled_back_at(self, near: Tensor, tau: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        return self.pulled_back(None, near)

    def root(self, start: Tensor | None, duration: Tensor, *, noise_last: bool = False) -> Root:
        _, later = self._signals(start, duration)
        return _root(later * duration.sqrt())

    def pulled_back_root(self, start: Tensor | None, duration: Tensor) -> Root:
        earlier, _ = self._signals(start, duration)
        return _root(earlier * duration.sqrt())

    def halves(self, start: Tensor, duration: Tensor) -> Halves:
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
            each = self._clock.signal(tau).square() * tau * weights
            return each.sum(-1) * run * self._precision()

        run = length[..., None] * nodes
        whole, tau = pulled(length), begins[..., None] * run.exp()
        gained = ((-2 * pulled(run)).exp() * tau * weights).sum(-1) * length
        earlier, later = self._signals(begins, half)
        M = _matrix(earlier / later * (-whole).exp())
        root = _matrix(earlier * gained.sqrt())
        return Halves(M[0], root[0], M[1], root[1], torch.ones_like(half))


def _matrix(value: Tensor) -> Tensor:
    return value[..., None, None]


def _root(value: Tensor) -> Root:
    return Root(_matrix(value), _matrix(1 / value), 2 * value.log(), torch.ones_like(value))
