"""The interface of noising diffusions, with and without a closed form."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from enum import Enum
from functools import cached_property
from typing import Any, ClassVar, Generic, NamedTuple, NoReturn, Protocol, TypeVar, cast, overload

import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_mdm.diffusions.clocks import Clock, LogSNR, TimeChange, Times
from pyro_mdm.support.checks import check_instance, check_number, check_shape
from pyro_mdm.support.modules import replace
from pyro_mdm.support.settings import (
    Recorded,
    arguments_of,
    packed_settings,
    plain_settings,
    record,
    reported_settings,
    restore_settings,
)

__all__ = [
    "ScoreAndDenoiser",
    "Cap",
    "DataPaths",
    "Diffusion",
    "Drawn",
    "FromParameters",
    "Level",
    "Marginal",
    "Matrix",
    "Noised",
    "Prior",
    "SimulationError",
    "Times",
    "Transition",
    "UnreachableError",
    "UnsupportedDiffusionError",
    "apply_vector",
    "check_clock",
    "check_horizon",
    "coordinates",
    "for_data",
    "for_samples",
    "from_coordinates",
    "full_precision",
    "given",
    "kept",
    "separate_node",
    "report_variables",
    "typical",
    "place",
    "remade",
    "require",
    "same_time",
    "with_event_dims",
]

D = TypeVar("D", bound="Diffusion")
T = TypeVar("T")
Matrix = Sequence[Sequence[float]] | Tensor
"""A matrix as a tensor, or as rows of numbers."""


class UnreachableError(ValueError):
    """A log SNR that the clock cannot be scaled to, or a variable that noise never reaches.

    For given matrices it is a mistake in the input; for learned ones, training has led there.
    """


class SimulationError(ArithmeticError):
    """A simulated path whose values overflow or are not finite."""


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


def require(diffusion: Diffusion, *caps: Cap, who: str, fix: str) -> None:
    """A check that the diffusion has these capabilities; else UnsupportedDiffusionError.

    Args:
        who: what needs them, as the subject of the error's sentence;  fix: what to do instead.
    """
    check_instance("diffusion", diffusion, Diffusion, "e.g. CLD()")
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


def with_event_dims(value: Tensor, like: Tensor) -> Tensor:
    """A value per datum (*batch) as (*batch, 1, …, 1); a map (*batch, *event_shape) as it is."""
    value = value.to(like.device)
    return value.reshape(*value.shape, *[1] * (like.dim() - value.dim()))


def full_precision(like: Tensor) -> torch.autocast:
    """A context without autocast on the device of ``like``, for algebra outside the network."""
    return torch.autocast("cpu" if like.is_meta else like.device.type, enabled=False)


def separate_node(y: Tensor) -> Tensor:
    """y as another node of the graph: derivatives with respect to it ignore y's other uses."""
    return y.view_as(y) if y.requires_grad else y.detach().requires_grad_()


def apply_vector(vector: Tensor, y: Tensor) -> Tensor:
    """The inner product of ``vector`` (*batch, K) with the variables of y: (*batch, *event_shape).

    One (K,) vector serves a y with a single batch dimension, (batch, K, *event_shape); so do
    vectors per data dimension, (batch or 1, *event_shape, K).
    """
    if not (isinstance(vector, Tensor) and vector.is_floating_point()):
        check_shape("vector", vector, ())
    if not (isinstance(y, Tensor) and y.is_floating_point()):
        check_shape("y", y, ())
    by_dimension = vector.dim() == y.dim() > 2
    lead = 1 if by_dimension else max(vector.dim() - 1, 1)
    if not lead < y.dim() or y.shape[lead] != vector.shape[-1]:
        report_variables(y, vector, lead)
    if by_dimension:
        for n, m in zip(vector.shape[:-1], (len(y), *y.shape[2:]), strict=True):
            if n not in (1, m):
                report_variables(y, vector, lead)
        return (vector.to(y).movedim(-1, 1) * y).sum(1)
    if vector.dim() > 1 and vector.shape[:-1] != y.shape[:lead]:
        report_variables(y, vector, lead)
    flat = y.reshape(*y.shape[: lead + 1], math.prod(y.shape[lead + 1 :]))
    # autocast leaves float64 as it is
    with full_precision(y) if y.dtype != torch.float64 else nullcontext():
        return (vector.to(y).unsqueeze(-2) @ flat).reshape(*y.shape[:lead], *y.shape[lead + 1 :])


def report_variables(y: Tensor, factor: Tensor, batch_dim: int) -> NoReturn:
    """Raises ValueError: states do not have the variables that a factor is of."""
    raise ValueError(
        f"y has shape {tuple(y.shape)}, expected (*batch, {factor.shape[-1]}, *event_shape) with "
        f"{batch_dim} batch dimensions, for a factor of shape {tuple(factor.shape)}"
    )


class Prior(Recorded, ABC):
    """A prior π(y) = Π_j π_1(y_j) over data dimensions j, with π_1 a distribution of K variables.

    Raises:
        ValueError: a y that is not (batch, K, *event_shape).
    """

    num_variables: int

    @abstractmethod
    def log_prob(self, y: Tensor) -> Tensor:
        """log π(y), (batch,), nats, for y (batch, K, *event_shape)."""

    @abstractmethod
    def sample(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """y of ``shape`` (batch, K, *event_shape), float64, on the generator's device."""

    @abstractmethod
    def entropy(self, num_dims: int = 1) -> Tensor:
        """The entropy -E log π(y) of ``num_dims`` data dimensions, 0-dim, nats."""

    def score(self, y: Tensor) -> Tensor:
        """∇ log π(y), like y (batch, K, *event_shape); differentiable in y."""
        self._check(y)
        with torch.enable_grad():
            point = separate_node(y)
            (gradient,) = torch.autograd.grad(self.log_prob(point).sum(), point, create_graph=True)
        return gradient if torch.is_grad_enabled() else gradient.detach()

    def _check(self, y: Tensor) -> int:
        """The number of data dimensions."""
        check_shape("y", y, ())
        if y.dim() < 2 or y.shape[1] != self.num_variables:
            raise ValueError(
                f"y has shape {tuple(y.shape)}, expected (batch, K, *event_shape) with "
                f"K = {self.num_variables}"
            )
        return math.prod(y.shape[2:])


# -- what follows from parameters ------------------------------------------------------------------


class FromParameters(Generic[T]):
    """A member of a diffusion that follows from its parameters.

    It is a plain attribute, once it was asked for, of the diffusion at its parameters,
    :meth:`Diffusion.solved`, which a diffusion without parameters is itself.

    Args:
        compute: the value of a diffusion.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self.compute, self.__doc__ = compute, compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, diffusion: None, owner: type) -> FromParameters[T]: ...
    @overload
    def __get__(self, diffusion: Diffusion, owner: type) -> T: ...
    def __get__(self, diffusion: Diffusion | None, owner: type) -> T | FromParameters[T]:
        if diffusion is None:
            return self
        solved = diffusion.solved()
        values = vars(solved)
        if self.name not in values:
            # with its graph or without it, whoever asks first
            with torch.inference_mode(False), torch.set_grad_enabled(solved.has_graph):
                values[self.name] = self.compute(solved)
        value: T = values[self.name]
        return value


class Keeps(Protocol):
    """A diffusion, as ``kept`` asks it."""

    has_graph: bool

    @property
    def values(self) -> dict[str, Any] | None: ...
    def solved(self) -> Keeps: ...


def kept(diffusion: Keeps, name: str, compute: Callable[[], T]) -> T:
    """``compute()``, once for a diffusion at its parameters that keeps values."""
    solved = diffusion.solved()
    if solved.values is None:
        return compute()
    if name not in solved.values:
        with torch.inference_mode(False), torch.set_grad_enabled(solved.has_graph):
            solved.values[name] = compute()
    value: T = solved.values[name]
    return value


class ScoreAndDenoiser(Protocol):
    """The score and denoiser that :meth:`DataPaths.velocity` calls, in float64."""

    def score(self, y: Tensor, s: Tensor) -> Tensor:
        """s_θ(y, s), like y (n, K, *event_shape), at one time s."""

    def denoise(self, y: Tensor, s: Tensor, noise: float = 1.0) -> Tensor:
        """x̂ (n, *event_shape), for the backward process with noise η g²."""


class Diffusion(nn.Module, ABC):
    """A noising diffusion ``dy = f(y, s) ds + G(y, s) dB_s`` of K variables per data dimension.

    It starts at ε, where y_ε given x is Gaussian per data dimension, and runs to the horizon T,
    where the generative process takes its prior. Between them its distribution has a closed form
    (:class:`~pyro_mdm.diffusions.Kernels`) or is simulated
    (:class:`~pyro_mdm.NonlinearDiffusion`).

    ``log_snr(s)`` falls from :attr:`max_log_snr` at ε to :attr:`terminal_log_snr` at T. Networks
    are given it in place of the time, and times are drawn by it. Without a closed form it is the
    true log SNR at ε only, and nominal later.

    Its parameters and buffers stay on the host, in float64, when the module is moved to a device or
    cast: they are K×K matrices, and only what they give for each datum is sent to states. Networks
    that act on data (``_networks``) move.
    """

    _networks: ClassVar[tuple[str, ...]] = ()
    """Names of the modules that act on data, which move with the model and keep their precision."""

    _kind_of_paths: ClassVar[type[DataPaths]]
    _usual_caps: ClassVar[frozenset[Cap]] = frozenset({Cap.SIMULATED, Cap.NO_CONTEXT})
    has_graph: bool
    """Whether its values have gradients in parameters, of one that is :meth:`solved`."""
    made_from: Diffusion | None
    """The diffusion of which this is a view, at its parameters or given contexts; None: itself."""
    values: dict[str, Any] | None
    """What was computed once by :func:`~pyro_mdm.diffusions.base.kept`; None: nothing is kept."""
    paths: DataPaths
    """How its paths depend on data, and how they are reversed."""
    num_variables: int
    horizon: float
    maps: bool = False
    """Whether data dimensions have kernels and log SNRs of their own, as dimensions of these after
    those of the batch, which then are there always (1 for one time)."""
    noise_depends_on_state: bool = False
    """Whether G(y, s) depends on y: then each data dimension's block on its own K variables."""

    context: Any = None
    """The latent :class:`~pyro_mdm.seeing.Context` of a datum; None if none, or if given."""
    transform: Any = None
    """The coordinates of the data that states hold; None for the data themselves."""

    # -- a module on the host, whose settings are in its state dict --------------------------------

    def __new__(cls: type[D], *args: Any, **kwargs: Any) -> D:
        self = super().__new__(cls)
        record(self, args, kwargs)
        self.paths, self.values = cls._kind_of_paths(self), None
        self.has_graph, self.made_from = False, None
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.paths = type(self.paths)(self)  # of a copy, its own

    def solved(self: D) -> D:
        """The diffusion at its parameters as they are now, for one loss.

        All that follows from them is computed once, with its graph if gradients are on. It is the
        diffusion itself where nothing is computed from parameters.
        """
        return self

    def settings(self) -> dict[str, Any]:
        """Settings, beside parameters and buffers, on which a bound depends, by name."""
        return plain_settings(self, arguments_of(self))

    def _restore(self, saved: dict[str, Any]) -> None:
        """Set those of :meth:`settings` that can be set after construction; by default none.

        Settings that it takes out of ``saved`` are not compared.

        Args:
            saved: settings of the state dict, by name.
        """

    def get_extra_state(self) -> Tensor:
        """The class's name and the settings, as JSON in bytes (n,), uint8."""
        return packed_settings(self)

    def set_extra_state(self, state: Tensor) -> None:
        """Set the settings from a state dict.

        Raises:
            SettingsError: settings of another class, or a difference in one that cannot be set.
        """
        restore_settings(self, state, self._restore)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        with reported_settings(self, prefix, rest[-1]):
            super()._load_from_state_dict(state_dict, prefix, *rest)

    def _apply(self: D, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> D:
        for name in self._networks:
            if (network := self._modules.get(name)) is not None:
                network._apply(lambda t: t.to(fn(t).device), recurse)
        return self

    @cached_property
    def caps(self) -> frozenset[Cap]:
        """The capabilities of the diffusion; :func:`require` refuses what it lacks."""
        caps = set(self._usual_caps)
        caps |= set() if self.maps else {Cap.ONE_LEVEL}
        caps |= set() if self._kind_of_paths.starts_at_data else {Cap.READOUT}
        caps |= set() if self._kind_of_paths.drifts_by_data else {Cap.OWN_DRIFT}
        caps |= {Cap.DATA_STATES} if self.transform is None else set()
        caps |= set() if self.noise_depends_on_state else {Cap.PLAIN_NOISE}
        return frozenset(caps)

    @abstractmethod
    def drift(self, y: Tensor, s: Times) -> Tensor:
        """f(y, s), like y (*batch, K, *event_shape), for s (*batch) or one time for all."""

    @abstractmethod
    def dispersion(self, y: Tensor, s: Times) -> Tensor:
        """G(y, s), with G Gᵀ = g², a K×K block for each data dimension, in float64 or y's dtype.

        (*batch, K, K), or (K, K) for one time, where it is the same for all states and data
        dimensions; (*batch, *event_shape, K, K) if :attr:`noise_depends_on_state`.
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
    @abstractmethod
    def start_log_snr(self) -> Tensor:
        """:attr:`max_log_snr` as a tensor, 0-dim, with its gradient where it is learned."""

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
    def time_at_clock(self, tau: Tensor) -> Tensor:
        """The time s in [0, T] with b(s) = τ, like τ; differentiable in the clock and in τ."""

    @property
    def way(self) -> TimeChange:
        """The time change over which the diffusion term of a raw score and the flow of states are
        integrated: log SNR, or log volume in closed form."""
        return LogSNR(self)

    @property
    def reference(self) -> Diffusion:
        """The diffusion whose time is the common one: this, or the first of several blocks."""
        return self

    def check(self, event_shape: Sequence[int]) -> None:
        """A check of what the diffusion declares, on states of this event shape.

        Raises:
            ValueError: it is not as declared.
        """


class DataPaths(ABC):
    """How the paths of a diffusion depend on data, and how they are reversed.

    These start at the data x alone, and their drift does not see them.

    Args:
        diffusion: the diffusion.
    """

    starts_at_data: ClassVar[bool] = False
    """Whether v_0's mean depends on the data, so that the readout z alone no longer says all."""
    drifts_by_data: ClassVar[bool] = False
    """Whether the drift of noising paths depends on the data, and not only where they start."""

    def __init__(self, diffusion: Diffusion) -> None:
        self.diffusion = diffusion

    @abstractmethod
    def velocity(self, y: Tensor, s: Tensor, noise: float, ask: ScoreAndDenoiser) -> Tensor:
        """The velocity f - (1 + η)/2 (g² s_θ + ∇·g²) of the backward process with noise η g².

        It is dy/ds, like y.

        Args:
            y: states (n, K, *event_shape) in float64;  s: one time, 0-dim.
            noise: η, from 0 (the probability flow) to 1 (the generative SDE).
            ask: the score and x̂.
        """

    def displacement(self, x: Tensor, s: Times, event_dim: int | None = None) -> Tensor | None:
        """The displacement E[y_s | x] - a(s) x, like a state; None where it is 0 for all data.

        The prior KL asks only paths that :attr:`starts_at_data`.

        Args:
            x: data (*batch, *event_shape), in coordinates.
            s: times (n,) for a batch of n, or one time for all.
            event_dim: number of dimensions of a datum, all of x's but the first by default.
        """
        return None

    def without_displacement(self, y: Tensor, event_dim: int) -> Tensor:
        """y_ε (*batch, K, *event_shape) less the :meth:`displacement`, as far as y_ε determines it.

        The readout of ``start`` then gives x. In float64 where anything is subtracted.

        Args:
            event_dim: number of dimensions of a datum.
        """
        return y

    def score_tells(self, noise: float) -> bool:
        """Whether the score determines the backward process with noise η g², as it does unless
        the drift sees the data."""
        return True


def coordinates(diffusion: Diffusion, x: Tensor) -> Tensor:
    """Data (…, *event_shape) as the states of the diffusion hold them: x, or its frequencies."""
    return x if diffusion.transform is None else diffusion.transform(x)


def from_coordinates(diffusion: Diffusion, x: Tensor) -> Tensor:
    """The data with these coordinates, like them."""
    return x if diffusion.transform is None else diffusion.transform.inverse(x)


class OfContexts(Protocol):
    """A diffusion whose noising depends on a context of each datum."""

    context: Any

    def given(self, context: Tensor) -> Diffusion:
        """The diffusion given these contexts (*batch, size)."""


def given(diffusion: Diffusion, context: Tensor) -> Diffusion:
    """The diffusion given contexts (*batch, size), of the data of that batch."""
    return cast(OfContexts, diffusion).given(context)


def for_data(diffusion: Diffusion, x: Tensor) -> Drawn:
    """The diffusion of data x (n, *event_shape), with a context drawn for each."""
    if (latent := diffusion.context) is None:
        return Drawn(diffusion, None, x.new_zeros(len(x)), None)
    law = latent.posterior(x)
    c = latent.drawn(law)
    kl = kl_divergence(law, latent.prior().expand(law.batch_shape)).to(x.dtype)
    log_q = None if latent.reparameterized else law.log_prob(c).to(x.dtype)
    return Drawn(given(diffusion, c), c, kl, log_q)


def for_samples(diffusion: Diffusion, n: int) -> Drawn:
    """The diffusion of n data to be generated, with contexts drawn from their prior."""
    if (latent := diffusion.context) is None:
        return Drawn(diffusion, None, torch.zeros(n), None)
    c = latent.draw(n)
    return Drawn(given(diffusion, c), c, torch.zeros(n), None)


def typical(diffusion: D, x: Tensor) -> D:
    """The diffusion of data x (n, *event_shape) at a typical context of each, for pictures."""
    if (latent := diffusion.context) is None:
        return diffusion
    return cast(D, given(diffusion, latent.typical(x)))


def remade(diffusion: D, **parts: Any) -> D:
    """A view of a diffusion with some parts replaced, which shares all else.

    Args:
        parts: values by name, as for :func:`~pyro_mdm.support.modules.replace`.
    """
    view = replace(diffusion, **parts)
    made_from = diffusion.made_from or diffusion
    vars(view).update(paths=type(diffusion.paths)(view), made_from=made_from)
    return view


def check_horizon(horizon: object) -> float:
    """T, a positive finite number."""
    return check_number("horizon", horizon, "a positive end time T, e.g. 1.0", positive=True)


def check_clock(beta: object) -> None:
    """Raises TypeError unless β is a clock."""
    check_instance("beta", beta, Clock, "e.g. ConstantBeta(4.0) or LinearBeta(0.1, 20.0)")
