"""The interface of noising diffusions, with and without a closed form."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pyro_mdm.diffusions.clocks import Clock
from pyro_mdm.diffusions.priors import Prior
from pyro_mdm.diffusions.sde import ForwardSDE, ReverseSDE
from pyro_mdm.support.checks import check_instance, check_number, check_real
from pyro_mdm.support.doors import checked_arguments
from pyro_mdm.support.late_checks import check_values
from pyro_mdm.support.modules import Exact
from pyro_mdm.support.settings import Restorable

__all__ = [
    "Asked",
    "Cap",
    "Diffusion",
    "Drawn",
    "Level",
    "Marginal",
    "Matrix",
    "Noised",
    "Times",
    "Transition",
    "UnreachableError",
    "UnsupportedDiffusionError",
    "check_clock",
    "check_horizon",
    "place",
    "require",
    "same_time",
]

Times = float | Tensor
"""One time, or a tensor of them."""
Matrix = Sequence[Sequence[float]] | Tensor
"""A matrix as a tensor, or as rows of numbers."""


class UnreachableError(ValueError):
    """A log SNR that the clock cannot be scaled to, or a variable that noise never reaches.

    For given matrices it is a mistake in the input; for learned ones, training has led there.
    """


class UnsupportedDiffusionError(TypeError, ValueError):
    """A request that this kind of diffusion does not support; see :func:`require`."""


class Cap(Enum):
    """A capability that some diffusions have and others lack; see :func:`require`."""

    KERNELS = "closed-form kernels"
    SIMULATED = "paths that are simulated"
    ONE_LEVEL = "one log SNR for all data dimensions"
    READOUT = "a readout z that says all that the state says of the data"
    OWN_DRIFT = "a drift that does not see the data"
    NO_CONTEXT = "one distribution of paths for all data"
    DATA_STATES = "states that hold the data themselves"
    PLAIN_NOISE = "noise that does not depend on the state"


class Marginal(NamedTuple):
    """The distribution y_s | x ~ N(a x, Σ), per data dimension, and its readout z = kᵀ y."""

    mean: Tensor  # a (…, K)
    covariance: Tensor  # Σ (…, K, K)
    scale_tril: Tensor  # L (…, K, K), lower triangular, L Lᵀ = Σ
    readout: Tensor  # k (…, K): z = kᵀ y = aᵀ Σ^{-1} y / SNR = x + SNR^{-1/2} ε
    log_snr: Tensor  # λ = log aᵀ Σ^{-1} a, (…)
    log_det: Tensor  # log det Σ, (…)

    def at(self, i: int) -> Marginal:
        """The kernel at the i-th of N times; one per dimension keeps a batch dimension of 1."""
        return Marginal(*(t[place(self.log_det, i)] for t in self))


class Transition(NamedTuple):
    """The distribution y_s | y_r ~ N(M y_r, P), per data dimension."""

    matrix: Tensor  # M (…, K, K)
    covariance: Tensor  # P (…, K, K)
    scale_tril: Tensor  # (…, K, K), lower triangular
    log_det: Tensor  # log det P, (…)

    def at(self, i: int) -> Transition:
        """The kernel to the i-th of N times; one per dimension keeps a batch dimension of 1."""
        return Transition(*(t[place(self.log_det, i)] for t in self))


class Noised(NamedTuple):
    """Noised states, and the regression target of the score there.

    The diffusion term is ½ ∫ E share ‖s_θ(state) - target‖²_{g²} ds.
    """

    state: Tensor  # y (n, K, *event_shape)
    target: Tensor  # like it, in float64: ∇ log q(y_s | x) unless the drift sees x
    share: Tensor | None = None  # (n,); None: 1


REASONS = {
    Cap.KERNELS: "its distribution past the start time has no closed form",
    Cap.SIMULATED: "its paths are known in closed form",
    Cap.ONE_LEVEL: "its data dimensions have log SNRs of their own",
    Cap.READOUT: "the mean of its v_0 depends on the data",
    Cap.OWN_DRIFT: "its paths are driven by the data",
    Cap.NO_CONTEXT: "its paths are led by a context of each datum",
    Cap.DATA_STATES: "its states hold a transform of the data",
    Cap.PLAIN_NOISE: "its noise depends on the state",
}
"""The reason why a diffusion lacks a capability."""


@checked_arguments
def require(diffusion: Diffusion, *caps: Cap, who: str, fix: str) -> None:
    """A check that the diffusion has these capabilities; else UnsupportedDiffusionError.

    Args:
        who: what needs them, as the subject of the error's sentence;  fix: what to do instead.
    """
    for cap in caps:
        if cap not in diffusion.caps:
            raise UnsupportedDiffusionError(
                f"{who} needs {cap.value}, which {type(diffusion).__name__} does not have: "
                f"{REASONS[cap]}; {fix}"
            )


class Level(NamedTuple):
    """Log SNR and its rate, at the fraction u of the way from ε to T."""

    log_snr: Tensor  # λ (n,), or by data dimension (n, *event_shape), with sizes of 1 if shared
    rate: Tensor  # -dλ/du > 0, likewise


class Drawn(NamedTuple):
    """The diffusion of n data, with a context drawn for each where their noising depends on one."""

    diffusion: Any  # a Diffusion of these n data, in their order
    context: Tensor | None  # c (n, size); None: the noising has none
    kl: Tensor  # KL(q(c | x) ‖ p(c)), (n,) nats; 0 without a context
    log_q: Tensor | None  # log q(c | x), (n,), of a draw that has no derivative itself


def same_time(s: Times) -> Tensor | None:
    """The time, 0-dim, that ``s`` repeats by ``expand`` for every datum; None for other times."""
    if isinstance(s, Tensor) and s.numel() > 1 and not any(s.stride()):
        return s[(0,) * s.dim()]
    return None


def place(of_law: Tensor, i: int) -> int | slice:
    """The index of the i-th of N kernels: a number, or a slice of one for kernels per dimension."""
    return i if of_law.dim() == 1 else slice(i, i + 1)


class Asked(Protocol):
    """The score and denoiser that :meth:`Diffusion.velocity` calls, in float64."""

    def score(self, y: Tensor, s: Tensor) -> Tensor:
        """s_θ(y, s), like y (n, K, *event_shape), at one time s."""

    def denoise(self, y: Tensor, s: Tensor, noise: float = 1.0) -> Tensor:
        """x̂ (n, *event_shape), for the backward process with noise η g²."""


class Diffusion(Restorable, Exact, ABC):
    """A noising diffusion ``dy = f(y, s) ds + G(y, s) dB_s`` of K variables per data dimension.

    It starts at ε, where y_ε given x is Gaussian per data dimension, and runs to the horizon T,
    where the generative process takes its prior. Between them its distribution has a closed form
    (:class:`~pyro_mdm.diffusions.Kernels`) or is simulated
    (:class:`~pyro_mdm.NonlinearDiffusion`); :attr:`closed_form` says which.

    ``log_snr(s)`` falls from :attr:`max_log_snr` at ε to :attr:`terminal_log_snr` at T. Networks
    are given it in place of the time, and times are drawn by it. Without a closed form it is the
    true log SNR at ε only, and nominal later.

    Floating-point parameters and buffers stay in float64 when the module is cast to another
    precision; moving it to another device moves them.
    """

    num_variables: int
    horizon: float
    closed_form: bool = False
    """Whether ``marginal`` and ``transition`` are known; if not, paths are simulated."""
    maps: bool = False
    """Whether data dimensions have kernels and log SNRs of their own, as dimensions of these after
    those of the batch, which then are there always (1 for one time)."""
    noise_depends_on_state: bool = False
    """Whether G(y, s) depends on y: then each data dimension's block on its own K variables."""

    learns_ends: bool = False
    """Whether λ(ε) or λ(T) is learned; ask it of :attr:`reference`."""
    learns_stationary: bool = False
    """Whether the stationary covariance is learned; ask it of :attr:`reference`."""
    context: Any = None
    """The latent :class:`~pyro_mdm.seeing.Context` of a datum; None if none, or if given."""
    transform: Any = None
    """The coordinates of the data that states hold; None for the data themselves."""
    rows: int | None = None
    """The number of data whose contexts are given; None: it serves any number."""
    starts_at_data: bool = False
    """Whether v_0's mean depends on the data, so that the readout z alone no longer says all."""
    drifts_by_data: bool = False
    """Whether the drift of noising paths depends on the data, and not only where they start."""

    @property
    def caps(self) -> frozenset[Cap]:
        """The capabilities of the diffusion; :func:`require` refuses what it lacks."""
        has = {
            Cap.KERNELS: self.closed_form,
            Cap.SIMULATED: not self.closed_form,
            Cap.ONE_LEVEL: not self.maps,
            Cap.READOUT: not self.starts_at_data,
            Cap.OWN_DRIFT: not self.drifts_by_data,
            Cap.NO_CONTEXT: self.origin.context is None,
            Cap.DATA_STATES: self.transform is None,
            Cap.PLAIN_NOISE: not self.noise_depends_on_state,
        }
        return frozenset(cap for cap, there in has.items() if there)

    @abstractmethod
    def drift(self, y: Tensor, s: Times) -> Tensor:
        """f(y, s), like y (*batch, K, *event_shape), for s (*batch) or one time for all."""

    @abstractmethod
    def dispersion(self, y: Tensor, s: Times) -> Tensor:
        """G(y, s), with G Gᵀ = g², a K×K block for each data dimension, in float64 or y's dtype.

        (*batch, K, K), or (K, K) for one time, where it is the same for all states and data
        dimensions; (*batch, *event_shape, K, K) if :attr:`noise_depends_on_state`.
        """

    @abstractmethod
    def simulate(self, y: Tensor, times: Tensor, simulation: Any = None) -> Tensor:
        """Paths from y (n, K, *event_shape) at times[0], seen at ``times``.

        Args:
            times: (N,) increasing, in [ε, T].
            simulation: settings where there is no closed form; the diffusion's own by default.

        Returns:
            (n, N, K, *event_shape), y itself first.

        Raises:
            SimulationError: a path exploded.
        """

    @property
    @abstractmethod
    def prior(self) -> Prior:
        """π, the distribution that the generative process starts from at T."""

    @property
    @abstractmethod
    def max_log_snr(self) -> float:
        """λ at the start time ε."""

    @property
    def start_log_snr(self) -> Tensor:
        """:attr:`max_log_snr` as a tensor, 0-dim, with its gradient where it is learned."""
        return self.as_tensor(self.max_log_snr)

    @property
    @abstractmethod
    def terminal_log_snr(self) -> Tensor:
        """λ at T, 0-dim."""

    @property
    @abstractmethod
    def start_time(self) -> Tensor:
        """ε, 0-dim."""

    @property
    @abstractmethod
    def start(self) -> Marginal:
        """The distribution of y_ε given x."""

    @abstractmethod
    def log_snr(self, s: Times) -> Tensor:
        """λ(s), like s; decreasing."""

    @abstractmethod
    def log_snr_rate(self, s: Times) -> Tensor:
        """-dλ/ds, like s; positive."""

    @abstractmethod
    def time_at_log_snr(self, value: Times) -> Tensor:
        """The time s with λ(s) = value, like value."""

    @abstractmethod
    def clock(self, s: Times) -> Tensor:
        """The clock time b(s), like s, with b(0) = 0."""

    @abstractmethod
    def rate(self, s: Times) -> Tensor:
        """The clock's rate db/ds, like s."""

    @abstractmethod
    def inverse_clock(self, tau: Tensor) -> Tensor:
        """The inverse of :meth:`clock`, like τ; rounding may put it past T."""

    # -- the way from ε to T -----------------------------------------------------------------------

    def time_on_the_way(self, u: Tensor) -> Tensor:
        """The time at the fraction u of the way from ε to T, like u.

        The diffusion term and the flow of states are integrated over the way: log SNR, or log
        volume where there is a closed form.
        """
        start, end = self.start_log_snr, self.terminal_log_snr
        return self.time_at_log_snr(start + u.clamp(0, 1) * (end - start))

    def speed_on_the_way(self, s: Tensor) -> Tensor:
        """ds/du of :meth:`time_on_the_way`, like s."""
        return (self.start_log_snr - self.terminal_log_snr) / self.log_snr_rate(s)

    def pace(self, s: Tensor) -> Tensor:
        """An increasing function of time in which flows are smooth, like s: -λ, or in closed
        form the logarithm of the clock."""
        return -self.log_snr(s)

    def pace_rate(self, s: Tensor) -> Tensor:
        """The derivative of :meth:`pace` in s, like s."""
        return self.log_snr_rate(s)

    def time_at_pace(self, pace: Tensor) -> Tensor:
        """The inverse of :meth:`pace`, like it; rounding may put it outside [ε, T]."""
        return self.time_at_log_snr(-pace)

    @abstractmethod
    def velocity(self, y: Tensor, s: Tensor, noise: float, ask: Asked) -> Tensor:
        """The velocity f - (1 + η)/2 (g² s_θ + ∇·g²) of the backward process with noise η g².

        It is dy/ds, like y.

        Args:
            y: states (n, K, *event_shape) in float64;  s: one time, 0-dim.
            noise: η, from 0 (the probability flow) to 1 (the generative SDE).
            ask: the score and x̂.
        """

    # -- diffusions that depend on the data --------------------------------------------------------

    def for_data(self, x: Tensor) -> Drawn:
        """The diffusion of data x (n, *event_shape), with a context drawn for each."""
        return Drawn(self, None, x.new_zeros(len(x)), None)

    def for_samples(self, n: int) -> Drawn:
        """The diffusion of n data to be generated, with contexts drawn from their prior."""
        return Drawn(self, None, torch.zeros(n), None)

    @property
    def origin(self) -> Diffusion:
        """The diffusion before contexts were given, which guide and model share; or this one."""
        return self

    def given(self, context: Tensor) -> Diffusion:
        """The diffusion given these contexts (*batch, size); this one if it depends on none."""
        raise NotImplementedError(f"{type(self).__name__} depends on no context")

    def typical(self, x: Tensor) -> Diffusion:
        """The diffusion of data x (n, *event_shape) at a typical context of each, for pictures."""
        return self

    def displacement(self, x: Tensor, s: Times, event_dim: int | None = None) -> Tensor | None:
        """The displacement E[y_s | x] - a(s) x, like a state; None where it is 0 for all data.

        Args:
            x: data (*batch, *event_shape), in coordinates.
            s: times (n,) for a batch of n, or one time for all.
            event_dim: number of dimensions of a datum, all of x's but the first by default.
        """
        return None

    def without_displacement(self, y: Tensor, event_dim: int) -> Tensor:
        """y_ε (*batch, K, *event_shape) less the :meth:`displacement`, as far as y_ε determines it.

        The readout of :attr:`start` then gives x. In float64 where anything is subtracted.

        Args:
            event_dim: number of dimensions of a datum.
        """
        return y

    def score_tells(self, noise: float) -> bool:
        """Whether the score determines the backward process with noise η g², as it does unless
        the drift sees the data."""
        return True

    def read_start(self, y: Tensor, event_dim: int) -> tuple[Tensor, Tensor]:
        """The readout z = kᵀ y_ε (*batch, *event_shape), of the data, and λ(ε), in float64.

        Args:
            y: the state at ε, (*batch, K, *event_shape).
        """
        y, k = self.without_displacement(y, event_dim), self.start.readout
        at = -1 - event_dim  # of the variables; k is in float64, and with it the product
        z = (k.reshape(-1, *[1] * event_dim) * y).sum(at)
        return self.from_coordinates(z), self.start_log_snr

    def views(self, x: Tensor) -> dict[str, Tensor]:
        """Tensors for pictures of what the diffusion makes of data x (n, *event_shape), by name,
        (columns, n, *event_shape) with a column per stage. Empty where nothing depends on data."""
        return {}

    def planned(self, plan: Callable[[Any, Tensor], Any], times: Tensor) -> Any:
        """The plan ``plan(self, times)`` of a sampler, per data dimension where dimensions differ.

        Args:
            plan: a function of a diffusion and times (N + 1, …). It returns the times, or a named
                tuple of tensors (N, …) whose field ``s`` holds the common times.
        """
        return plan(self, times)

    def laws_ahead(self, times: Tensor) -> AbstractContextManager[None]:
        """A block in which kernels at entries of ``times`` (N,) are ready, computed all at once.

        So no step of a sampler waits for one. It may do nothing.
        """
        return nullcontext()

    def coordinates(self, x: Tensor) -> Tensor:
        """Data (…, *event_shape) as the state holds them: x itself, or its frequencies."""
        return x

    def from_coordinates(self, x: Tensor) -> Tensor:
        """The data with these coordinates."""
        return x

    @property
    def reference(self) -> Diffusion:
        """The diffusion whose time is the common one: this, or the first of several blocks."""
        return self

    @property
    def for_grids(self) -> Diffusion:
        """The diffusion that grids of times are made of: this, unless times differ between data."""
        return self

    def check(self, event_shape: Sequence[int]) -> None:
        """A check of what the diffusion declares, on states of this event shape.

        Raises:
            ValueError: it is not as declared.
        """

    def log_snr_grid(self, num_times: int) -> Tensor:
        """Increasing times (num_times,) from ε to T, equally spaced in log SNR."""
        if num_times < 2:
            raise ValueError(f"num_times is {num_times}, expected at least 2: both ends")
        low = self.terminal_log_snr
        fraction = torch.linspace(0, 1, num_times, dtype=torch.float64, device=low.device)
        s = self.time_at_log_snr(self.max_log_snr + (low - self.max_log_snr) * fraction[:-1])
        return torch.cat([s, self.as_tensor(self.horizon).reshape(1)])

    def noise_divergence(self, y: Tensor, s: Times) -> Tensor:
        """∇·g², like y; 0 where noise does not depend on the state."""
        return torch.zeros_like(y)

    def forward_sde(self, event_shape: Sequence[int] = ()) -> ForwardSDE:
        """This diffusion as a torchsde object over states (batch·d, K)."""
        return ForwardSDE(self, event_shape)

    def reverse_sde(
        self, score: Callable[[Tensor, Tensor], Tensor], event_shape: Sequence[int]
    ) -> ReverseSDE:
        """The generative SDE in t = T - s as a torchsde object."""
        return ReverseSDE(self, score, event_shape)

    def as_tensor(self, value: Times) -> Tensor:
        """A number or tensor in float64, on the device of the diffusion."""
        check_real("a time, log SNR or log volume", value)
        return torch.as_tensor(value, dtype=torch.float64, device=self._device())

    def _device(self) -> torch.device:
        tensors = itertools.chain(self.buffers(), self.parameters())
        return next((t.device for t in tensors), torch.device("cpu"))

    def checked_time(self, name: str, value: Times) -> Tensor:
        """Times in float64. Raises ValueError outside [0, T]."""
        s = self.as_tensor(value)
        if s.numel():
            with torch.no_grad():
                inside = s.clamp(0, self.horizon) == s
            check_values(inside.all(), partial(self._report_time, name, s, inside))
        return s

    def _report_time(self, name: str, s: Tensor, inside: Tensor) -> None:
        bad = s.detach()[~inside][0].item()
        raise ValueError(
            f"{name} = {bad:.6g} is outside [0, T] = [0, {self.horizon:g}]; time runs from the "
            "data at 0 to the noise at T"
        )


def check_horizon(horizon: object) -> float:
    """T, a positive finite number."""
    return check_number("horizon", horizon, "a positive end time T, e.g. 1.0", positive=True)


def check_clock(beta: object) -> None:
    """Raises TypeError unless β is a clock."""
    check_instance("beta", beta, Clock, "e.g. ConstantBeta(4.0) or LinearBeta(0.1, 20.0)")
