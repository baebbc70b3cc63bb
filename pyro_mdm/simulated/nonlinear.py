r"""Noising diffusions without a closed form, given by a drift and a dispersion.

    dy = f(y, s) ds + G(y, s) dB_s        from ε to T

The distribution of y_ε given x is exact and Gaussian, so that decoders serve as for linear
diffusions. Later states are simulated (:mod:`pyro_mdm.simulated.integration`).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from abc import ABC
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import pyro_mdm.randomness as randomness
from pyro_mdm.diffusions.base import (
    DataPaths,
    Diffusion,
    Marginal,
    Prior,
    ScoreAndDenoiser,
    Times,
    check_clock,
    check_horizon,
    full_precision,
    separate_node,
)
from pyro_mdm.diffusions.clocks import Clock, ConstantBeta, times_within
from pyro_mdm.diffusions.linear import GaussianPrior
from pyro_mdm.diffusions.matrices import (
    apply_noise,
    check_dispersion,
    covariance_matrix,
    noise_root,
)
from pyro_mdm.paths.flow import Probes, divergence
from pyro_mdm.simulated.integration import advance
from pyro_mdm.simulated.simulation import Simulation
from pyro_mdm.support.checks import check_count, check_instance, check_number, check_real
from pyro_mdm.support.files import JsonObject
from pyro_mdm.support.settings import described

__all__ = ["NonlinearDiffusion", "matrix_divergence"]

D = TypeVar("D", bound="NonlinearDiffusion")
CHECKED_DERIVATIVES, PROBES = 64, 64
"""The largest K·d at which a prior that is declared stationary is checked by an exact divergence,
and the number of Hutchinson's probes beyond it."""
MISMATCH = 1e-4
"""The largest ∇·F + F·∇log π, relative to its two terms, that counts as 0."""


class _SimulatedPaths(DataPaths):
    diffusion: NonlinearDiffusion

    def velocity(self, y: Tensor, s: Tensor, noise: float, ask: ScoreAndDenoiser) -> Tensor:
        diffusion, at = self.diffusion, s.expand(len(y))
        G = noise_root(diffusion, y, at)
        pull = apply_noise(G, ask.score(y, at)) + diffusion.noise_divergence(y, at).double()
        return diffusion.drift(y, at).double() - (1 + noise) / 2 * pull


class NonlinearDiffusion(Diffusion, ABC):
    """Any Itô diffusion. Subclasses define :meth:`drift` and :meth:`dispersion`, with the rate β.

    States come in the precision of the data while training, and in float64 from :meth:`check` and
    samplers. A network in the drift must cast its inputs, as :class:`LearnedDrift` does.

    At ε = 0 the state is ``y = (x + e^{-λ/2} ε_0, v_0)`` with λ = ``max_log_snr`` and
    ``v_0 ~ N(0, Σ_v)``. Later the log SNR is nominal: logarithmic in clock time, from
    ``max_log_snr`` to ``min_log_snr``. It decides how often times are drawn, and networks are given
    it for the time. The bound is valid whatever it is.

    Args:
        num_variables: the number K of variables, the data among them.
        beta: the clock β, which drifts read as ``self.rate(s)``; None: :class:`ConstantBeta` (1).
        horizon: the time T at which noising ends.
        initial_variance: the variance Σ_v of the auxiliary variables at s = 0, a number or K - 1.
        max_log_snr: the log SNR λ at the start, where the decoder takes over.
        min_log_snr: the nominal log SNR at T.
        prior: the prior π; None: N(0, I). For a prior that depends on parameters of the diffusion,
            override the property ``prior``, so that a copy of the diffusion has its own.
        simulation: settings of the simulation of paths; None: the default ones.

    Attributes:
        stationary_prior: whether π is stationary at every s. If it is declared so, this is checked,
            and the term c of (1) in :mod:`pyro_mdm.simulated.path_integral` is left out. The bound
            is valid without the declaration too.

    Raises:
        ValueError: K < 1, a horizon or variances that are not positive, log SNRs in the wrong
            order, a prior of another K. On first use: a drift or dispersion of another shape than
            declared, a prior declared stationary that is not.

    Example:
        >>> from pyro_mdm.simulated import QuadraturePrior
        >>> class Cubic(NonlinearDiffusion):
        ...     "Over-damped motion in the potential y⁴/4, stationary at π ∝ exp(-y⁴/4)."
        ...     stationary_prior = True
        ...     def __init__(self):
        ...         super().__init__(1, horizon=3.0, prior=QuadraturePrior([lambda y: y**4 / 4]))
        ...     def drift(self, y, s):
        ...         return -(y**3)
        ...     def dispersion(self, y, s):
        ...         return 2**0.5 * torch.eye(1, dtype=torch.float64)
        >>> y = torch.randn(4, 1, 2)  # 4 data of 2 dimensions, one variable
        >>> Cubic().simulate(y, torch.tensor([0.0, 1.0, 3.0])).shape  # at three times
        torch.Size([4, 3, 1, 2])
    """

    _kind_of_paths = _SimulatedPaths
    stationary_prior: bool = False
    initial_covariance: Tensor
    simulation: Simulation
    """Settings of the simulation of paths."""

    def __init__(
        self,
        num_variables: int,
        *,
        beta: Clock | None = None,
        horizon: float = 1.0,
        initial_variance: float | Sequence[float] = 0.01,
        max_log_snr: float = 13.0,
        min_log_snr: float = -10.0,
        prior: Prior | None = None,
        simulation: Simulation | None = None,
    ) -> None:
        super().__init__()
        K = num_variables
        check_count("num_variables", K, "the number K of variables, the data among them")
        max_log_snr = check_number("max_log_snr", max_log_snr, "a finite log SNR, e.g. 13")
        min_log_snr = check_number("min_log_snr", min_log_snr, "a finite log SNR, e.g. -10")
        if not min_log_snr < max_log_snr:
            raise ValueError(f"min_log_snr {min_log_snr} must be below max_log_snr {max_log_snr}")
        if prior is not None:
            check_instance("prior", prior, Prior, "see pyro_mdm.simulated.priors")
        if prior is not None and prior.num_variables != K:
            raise ValueError(f"the prior is of K = {prior.num_variables} variables, expected {K}")
        self.num_variables, self.horizon = K, check_horizon(horizon)
        self._max_log_snr, self._min_log_snr = max_log_snr, min_log_snr
        self.beta = beta if beta is not None else ConstantBeta(1.0)
        check_clock(self.beta)
        self._prior = prior
        self.simulation = simulation if simulation is not None else Simulation()
        fix = "e.g. Simulation(step_size=0.02)"
        check_instance("simulation", self.simulation, Simulation, fix)
        initial = torch.zeros(K, K, dtype=torch.float64)
        initial[1:, 1:] = covariance_matrix("initial_variance", initial_variance, K - 1)
        initial[0, 0] = math.exp(-max_log_snr)
        self.register_buffer("initial_covariance", initial)
        self._checked: set[torch.Size] = set()

    # -- on the device of its states, as its drift and dispersion are functions of these -----------

    def _apply(self: D, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> D:
        nn.Module._apply(self, lambda t: t.to(fn(t).device), recurse)
        return self

    def _device(self) -> torch.device:
        tensors = itertools.chain(self.buffers(), self.parameters())
        return next((t.device for t in tensors), torch.device("cpu"))

    def as_tensor(self, value: Times) -> Tensor:
        """A number or tensor in float64, on the device of the diffusion."""
        check_real("a time, log SNR or log volume", value)
        return torch.as_tensor(value, dtype=torch.float64, device=self._device())

    def checked_time(self, name: str, value: Times) -> Tensor:
        """Times in float64. Raises ValueError outside [0, T], unless they are on a device."""
        if isinstance(value, Tensor) and value.device.type != "cpu":
            return self.as_tensor(value)  # of paths that are simulated there
        return times_within(self.horizon, name, value).to(self._device())

    # -- ends and levels ---------------------------------------------------------------------------

    @property
    def prior(self) -> Prior:
        """The prior π, from which the generative process starts; N(0, I) by default."""
        if self._prior is None:
            return GaussianPrior(torch.eye(self.num_variables).to(self.initial_covariance))
        return self._prior

    @property
    def max_log_snr(self) -> float:
        return self._max_log_snr

    @property
    def start_log_snr(self) -> Tensor:
        return self.as_tensor(self.max_log_snr)

    @property
    def terminal_log_snr(self) -> Tensor:
        return self.as_tensor(self._min_log_snr)

    @property
    def start_time(self) -> Tensor:
        """ε = 0."""
        return self.as_tensor(0.0)

    @property
    def start(self) -> Marginal:
        """The distribution of y_ε given x, ``N((x, 0), diag(e^{-λ}, Σ_v))``."""
        a = torch.zeros(self.num_variables).to(self.initial_covariance)
        a[0] = 1.0
        Sigma = self.initial_covariance
        log_snr = self.as_tensor(self.max_log_snr)
        return Marginal(a, Sigma, torch.linalg.cholesky(Sigma), a, log_snr, torch.logdet(Sigma))

    def clock(self, s: Times) -> Tensor:
        return self.beta.integral(self.checked_time("s", s))

    def rate(self, s: Times) -> Tensor:
        return self.beta.rate(self.checked_time("s", s))

    def log_snr(self, s: Times) -> Tensor:
        """The nominal λ(s), like s: linear in the logarithm of ``b(s) - b(ε) + e^{-λ(ε) / 2}``."""
        return self.max_log_snr - self._width * (self._done(s) / self._unit).log1p()

    def log_snr_rate(self, s: Times) -> Tensor:
        return self._width * self.rate(s) / (self._unit + self._done(s))

    def time_at_log_snr(self, value: Times) -> Tensor:
        fraction = (self.max_log_snr - self.as_tensor(value)) / self._width
        tau = self._ends()[0] + self._unit * fraction.expm1()
        return torch.maximum(self.time_at_clock(tau).clamp(max=self.horizon), self.start_time)

    def progress(self, s: Times) -> Tensor:
        """The progress of s from ε to T, in [0, 1]: the mean of those by clock and by log SNR.

        Even steps of it are short both early, where the noise is small, and late.
        """
        done, whole = self._done(s), self._ends()[1]
        by_level = (done / self._unit).log1p() / (whole / self._unit).log1p()
        return (done / whole + by_level) / 2

    def progress_rate(self, s: Times) -> Tensor:
        """The derivative of :meth:`progress` by s, like s."""
        done, whole = self._done(s), self._ends()[1]
        by_level = 1 / ((self._unit + done) * (whole / self._unit).log1p())
        return self.rate(s) * (1 / whole + by_level) / 2

    @torch.no_grad()
    def time_at_progress(self, progress: Times) -> Tensor:
        """The inverse of :meth:`progress`: the times, like ``progress``."""
        wanted = self.as_tensor(progress)
        start, whole = self._ends()
        whole = whole / self._unit
        end = whole.log1p()
        x = end.expand(wanted.shape)  # log1p(done / unit): Newton's method from above is monotone
        for _ in range(60):  # a limit: convergence is quadratic, and ends the loop
            error = (x.expm1() / whole + x / end) / 2 - wanted
            step = error / ((x.exp() / whole + 1 / end) / 2)
            x = (x - step).clamp_min(0.0)
            if not bool((step.abs() > 1e-12 * end).any()):
                break
        tau = start + self._unit * x.expm1()
        return torch.maximum(self.time_at_clock(tau).clamp(max=self.horizon), self.start_time)

    def _done(self, s: Times) -> Tensor:
        return (self.clock(s) - self._ends()[0]).clamp_min(0.0)

    def _ends(self) -> tuple[Tensor, Tensor]:
        """The clock at ε, and its increase from there to T."""
        start = self.clock(self.start_time)
        return start, self.clock(self.horizon) - start

    def time_at_clock(self, tau: Tensor) -> Tensor:
        return self.beta.inverse(tau)

    @property
    def _unit(self) -> float:
        return math.exp(-self.max_log_snr / 2)

    @property
    def _width(self) -> Tensor:
        """The change of log SNR per unit of log1p(clock / unit)."""
        whole = self._ends()[1]
        return (self.max_log_snr - self._min_log_snr) / (whole / self._unit).log1p()

    def simulate(self, y: Tensor, times: Tensor, simulation: Simulation | None = None) -> Tensor:
        """Paths by torchsde, with steps of at most ``step_size`` in :meth:`progress`.

        Args:
            y: states at times[0], (n, K, *event_shape).
            times: increasing times, (N,).
            simulation: settings; None: the diffusion's.

        Returns:
            States, (n, N, K, *event_shape), y itself first.

        Raises:
            SimulationError: a path exploded.
        """
        if len(times) == 1:
            return y.unsqueeze(1)
        simulation = self.simulation if simulation is None else simulation
        gap = float(self.progress(times).diff().max())
        steps = max(1, math.ceil(gap / simulation.step_size - 1e-9))
        later = advance(self, y, times, steps, simulation)
        return torch.cat([y.unsqueeze(0), later]).transpose(0, 1)

    # -- what the bound needs ----------------------------------------------------------------------

    def noise_divergence(self, y: Tensor, s: Times) -> Tensor:
        """``∇·g²``, like y: ``Σ_j ∂_j g²_ij`` within each data dimension.

        By automatic differentiation unless overridden.

        Args:
            y: states, (batch, K, *event_shape).
            s: times, (batch,), or one time.
        """
        if not self.noise_depends_on_state:
            return torch.zeros_like(y)
        with torch.enable_grad():
            point = separate_node(y)
            G = noise_root(self, point, self.as_tensor(s))
            divergences = matrix_divergence(G @ G.mT, point)
        return self.released(divergences, y)

    def released(self, value: Tensor, y: Tensor) -> Tensor:
        """The value, without its graph where no gradient will be taken through it."""
        learned = y.requires_grad or any(p.requires_grad for p in self.parameters())
        return value if torch.is_grad_enabled() and learned else value.detach()

    def prior_current(self, y: Tensor, s: Tensor) -> Tensor:
        """The probability velocity at π, ``F = f - ½ (g² ∇log π + ∇·g²)``, like y."""
        G = noise_root(self, y, s)
        pulled = apply_noise(G, self.prior.score(y)) + self.noise_divergence(y, s)
        return self.drift(y, s).to(y.dtype) - 0.5 * pulled

    def check(self, event_shape: Sequence[int]) -> None:
        """Check the declared properties on a few states of the prior, once for each shape.

        Args:
            event_shape: the shape of a datum.

        Raises:
            ValueError: see :class:`NonlinearDiffusion`.
        """
        event_shape = torch.Size(event_shape)
        if event_shape in self._checked:
            return
        name, K = type(self).__name__, self.num_variables
        device = self._device()
        generator = torch.Generator(device).manual_seed(0)
        n = 16
        with torch.no_grad(), full_precision(self.initial_covariance):
            y = self.prior.sample((n, K, *event_shape), generator)
            unit = torch.rand(n, generator=generator, dtype=torch.float64, device=device)
            s = self.start_time + (self.horizon - self.start_time) * unit
            try:
                f, raw = self.drift(y, s), self.dispersion(y, s)
            except RuntimeError as error:
                raise ValueError(
                    f"{name} cannot be asked at float64 states {tuple(y.shape)}: {error}. Cast "
                    "what a network in its drift is given, as LearnedDrift does"
                ) from error
            if f.shape != y.shape:
                raise ValueError(
                    f"the drift of {name} has shape {tuple(f.shape)}, expected y's {tuple(y.shape)}"
                )
            G = check_dispersion(self, raw, y)
            for what, value in (("drift", f), ("dispersion", G)):
                if not bool(value.isfinite().all()):
                    raise ValueError(
                        f"the {what} of {name} is not finite at states drawn from its prior; "
                        f"e.g. {value[~value.isfinite()][0].item()}"
                    )
            self._check_structure(y, s)
        if self.stationary_prior:
            self._check_prior(y, s)
        self._checked.add(event_shape)

    def _check_structure(self, y: Tensor, s: Tensor) -> None:
        """Raise ValueError unless noise depends on the state, or not, as declared."""
        s = s[:1].expand(len(y))
        here = check_dispersion(self, self.dispersion(y, s), y)
        if not self.noise_depends_on_state:
            there = check_dispersion(self, self.dispersion(y.roll(1, 0), s), y)
            if not torch.allclose(here, there):
                raise ValueError(
                    f"the dispersion of {type(self).__name__} changes with the state, but "
                    "noise_depends_on_state is False; set it to True and return a block for each "
                    "data dimension, (*batch, *event_shape, K, K)"
                )
        elif y[0, 0].numel() > 1:
            other = y.flatten(2).clone()
            other[:, :, 0] = other[:, :, 0].roll(1, 0)
            there = check_dispersion(self, self.dispersion(other.reshape(y.shape), s), y)
            if not torch.allclose(here[:, 1:], there[:, 1:]):
                raise ValueError(
                    f"the dispersion of {type(self).__name__} for one data dimension changes with "
                    "another, expected K×K blocks that depend on their own dimension's variables"
                )

    def _check_prior(self, y: Tensor, s: Tensor) -> None:
        exact = y[0].numel() <= CHECKED_DERIVATIVES
        probes: Probes = "exact" if exact else PROBES
        with torch.enable_grad():
            point = y.detach().requires_grad_()
            F = self.prior_current(point, s)
            with randomness.piece(0, 1, 0):
                trace = divergence(F, point, None, probes)
            along = (F * self.prior.score(point)).flatten(1).sum(1)
            first, second = trace.value.detach(), along.detach()
        scale = float(first.square().mean().sqrt() + second.square().mean().sqrt())
        # 7 standard errors of the probes, which chance does not reach
        allowed = MISMATCH * scale + 1e-8 + 7 * trace.variance.detach().sqrt()
        if not bool(((first + second).abs() <= allowed).all()):
            worst = int((first + second).abs().argmax())
            raise ValueError(
                f"{type(self).__name__} declares stationary_prior, but its prior is not the "
                f"stationary law: ∇·(F π)/π is {float((first + second)[worst]):.3g} at "
                f"s = {float(s[worst]):.3g}, expected 0 (its parts are of the size {scale:.3g}). "
                "Give the stationary law as prior, correct the drift (state-dependent Q and D need "
                "Γ, see HamiltonianDiffusion), or set stationary_prior = False: the bound then "
                "counts the mismatch"
            )

    def settings(self) -> dict[str, object]:
        """The settings, with a subclass's arguments that are numbers, strings or None."""
        in_buffers = ("num_variables", "initial_variance")
        settings = {name: v for name, v in super().settings().items() if name not in in_buffers}
        return settings | {
            "horizon": self.horizon,
            "beta": described(getattr(self, "beta", None)),
            "max_log_snr": self._max_log_snr,
            "min_log_snr": self._min_log_snr,
            "prior": described(self._prior),
            "simulation": dataclasses.asdict(self.simulation),
            "stationary_prior": self.stationary_prior,
        }

    def _restore(self, saved: JsonObject) -> None:
        self._max_log_snr, self._min_log_snr = saved["max_log_snr"], saved["min_log_snr"]
        self.simulation = Simulation(**saved["simulation"])

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._checked.clear()
        super()._load_from_state_dict(*args, **kwargs)

    def extra_repr(self) -> str:
        return f"num_variables={self.num_variables}, max_log_snr={self.max_log_snr:g}"


def matrix_divergence(matrix: Tensor, y: Tensor) -> Tensor:
    """``Σ_j ∂_j m_ij``, like y.

    The block of a data dimension must depend on that dimension's variables alone.

    Args:
        matrix: blocks m, (n, d, K, K), computed from y.
        y: states with a graph, (n, K, *event_shape).
    """
    n, K = y.shape[:2]
    rows = []
    for i in range(K):
        total = torch.zeros(n, matrix.shape[1], dtype=y.dtype, device=y.device)
        for j in range(K):
            entry = matrix[:, :, i, j]
            if not entry.requires_grad:
                continue
            (grad,) = torch.autograd.grad(
                entry.sum(), y, create_graph=True, retain_graph=True, allow_unused=True
            )
            if grad is not None:
                total = total + grad[:, j].reshape(n, -1)
        rows.append(total)
    return torch.stack(rows, 1).reshape(y.shape)
