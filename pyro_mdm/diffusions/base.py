"""What every noising diffusion answers, whether it has a closed form or not."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_mdm.diffusions.clocks import Clock
from pyro_mdm.diffusions.priors import Prior
from pyro_mdm.diffusions.sde import ForwardSDE, ReverseSDE
from pyro_mdm.support.checks import check_instance, check_number
from pyro_mdm.support.settings import Restorable

__all__ = [
    "Diffusion",
    "Marginal",
    "Matrix",
    "Noised",
    "Times",
    "Transition",
    "UnreachableError",
    "check_clock",
    "check_horizon",
    "place",
    "same_time",
]

Times = float | Tensor
Matrix = Sequence[Sequence[float]] | Tensor


class UnreachableError(ValueError):
    """A log SNR that a diffusion's clock cannot be scaled to, or variables its noise never reaches.

    Of given matrices it is a mistake; of learned ones, where their training has led.
    """


class Marginal(NamedTuple):
    """y_s | x ~ N(a x, Σ), per data dimension, and how the state is read: z = kᵀ y."""

    mean: Tensor  # a (…, K)
    covariance: Tensor  # Σ (…, K, K)
    scale_tril: Tensor  # L (…, K, K), lower triangular, L Lᵀ = Σ
    readout: Tensor  # k (…, K): z = kᵀ y = aᵀ Σ^{-1} y / SNR = x + SNR^{-1/2} ε
    log_snr: Tensor  # λ = log aᵀ Σ^{-1} a, (…)
    log_det: Tensor  # log det Σ, (…)

    def at(self, i: int) -> Marginal:
        """That at the i-th of (N,) times; of one law for each data dimension, as a batch of 1."""
        return Marginal(*(t[place(self.log_det, i)] for t in self))


class Transition(NamedTuple):
    """y_s | y_r ~ N(M y_r, P), per data dimension."""

    matrix: Tensor  # M (…, K, K)
    covariance: Tensor  # P (…, K, K)
    scale_tril: Tensor  # (…, K, K), lower triangular
    log_det: Tensor  # log det P, (…)

    def at(self, i: int) -> Transition:
        """That to the i-th of (N,) times; of one law for each data dimension, as a batch of 1."""
        return Transition(*(t[place(self.log_det, i)] for t in self))


class Noised(NamedTuple):
    """States on their way from data, and what a score is to say there.

    The diffusion term is ½ ∫ E share ‖s_θ(state) - target‖²_{g²} ds.
    """

    state: Tensor  # y (n, K, *event_shape)
    target: Tensor  # like it, in float64: ∇ log q(y_s | x) unless the drift sees x
    share: Tensor | None = None  # (n,); None: 1


def same_time(s: Times) -> Tensor | None:
    """The one time, 0-dim, that ``s`` repeats for every datum, if it was made by ``expand``."""
    if isinstance(s, Tensor) and s.numel() > 1 and not any(s.stride()):
        return s[(0,) * s.dim()]
    return None


def place(of_law: Tensor, i: int) -> int | slice:
    """Where the i-th of N laws is, of each of which there is one number, or one by dimension."""
    return i if of_law.dim() == 1 else slice(i, i + 1)


class Diffusion(Restorable, nn.Module, ABC):
    """A noising diffusion ``dy = f(y, s) ds + G(y, s) dB_s`` of K variables per data dimension.

    It starts at ε, where y_ε given x is Gaussian per data dimension, and runs to the horizon T,
    where the generative process takes its prior. What lies between has a closed form or is
    simulated (:attr:`closed_form`): the first for a :class:`LinearDiffusion`, the second for a
    :class:`~pyro_mdm.diffusions.NonlinearDiffusion`.

    Log SNR counts the way from ε to T: ``log_snr(s)`` falls from :attr:`max_log_snr` to
    :attr:`terminal_log_snr`. It is what networks are told of the time, and what times are drawn by.
    At ε it is what it says; later, of a diffusion without a closed form, it is nominal.

    Floating-point parameters and buffers stay in float64 when the module is cast to another
    precision; moving it to another device moves them.
    """

    num_variables: int
    horizon: float
    closed_form: bool = False
    """Whether :meth:`marginal` and :meth:`transition` are known; if not, paths are simulated."""
    maps: bool = False
    """Whether data dimensions have kernels and log SNRs of their own, as dimensions of these after
    those of the batch, which then are there always (1 for one time)."""
    noise_depends_on_state: bool = False
    """Whether G(y, s) depends on y: then each data dimension's block on its own K variables."""

    rows: int | None = None
    """Of how many data it is, where contexts of theirs are given; None: of any."""
    starts_at_data: bool = False
    """Whether v_0's mean depends on the data, so that the readout z alone no longer says all."""
    drifts_by_data: bool = False
    """Whether the drift of noising paths depends on the data, and not only where they start."""

    @abstractmethod
    def drift(self, y: Tensor, s: Times) -> Tensor:
        """f(y, s), like y (*batch, K, *event_shape), for s (*batch) or one time for all."""

    @abstractmethod
    def dispersion(self, y: Tensor, s: Times) -> Tensor:
        """G(y, s), with G Gᵀ = g², one K×K block for each data dimension, in float64 or y's dtype.

        (*batch, K, K), or (K, K) for one time: shared by all data dimensions, not depending on y;
        or (*batch, *event_shape, K, K) if :attr:`noise_depends_on_state`.
        """

    @abstractmethod
    def simulate(self, y: Tensor, times: Tensor, simulation: Any = None) -> Tensor:
        """Paths from y (n, K, *event_shape) at times[0], seen at ``times``.

        Args:
            times: (N,) increasing, in [ε, T].
            simulation: how, where there is no closed form; the diffusion's own by default.

        Returns:
            (n, N, K, *event_shape), y itself first.

        Raises:
            SimulationError: a path exploded.
        """

    @property
    @abstractmethod
    def prior(self) -> Prior:
        """π, the law that the generative process starts from at T."""

    @property
    @abstractmethod
    def max_log_snr(self) -> float:
        """λ at the start time ε."""

    @property
    def start_log_snr(self) -> Tensor:
        """:attr:`max_log_snr` as a tensor, 0-dim: with its gradient where it is learned."""
        return self.as_tensor(self.max_log_snr)

    @property
    @abstractmethod
    def terminal_log_snr(self) -> Tensor:
        """λ at T, 0-dim."""

    @property
    def learns_ends(self) -> bool:
        """Whether λ(ε) or λ(T) is a parameter of its own; ask :attr:`reference`."""
        return False

    @property
    def learns_stationary(self) -> bool:
        """Whether the covariance of the law at rest is learned, likewise."""
        return False

    @property
    @abstractmethod
    def start_time(self) -> Tensor:
        """ε, 0-dim."""

    @property
    @abstractmethod
    def start(self) -> Marginal:
        """The law of y_ε given x."""

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
        """b(s), like s: how much the diffusion has done by then, from b(0) = 0."""

    def marginal(self, s: Times) -> Marginal:
        """The law of y_s given x per data dimension, for s (…), if it has a closed form.

        Raises:
            NotImplementedError: it has none.
        """
        raise NotImplementedError(self._no_closed_form())

    def transition(self, s: Times, r: Times = 0.0) -> Transition:
        """The law of y_s given y_r per data dimension, s > r (…), if it has a closed form.

        Raises:
            NotImplementedError: it has none.
        """
        raise NotImplementedError(self._no_closed_form())

    @property
    def context(self) -> Any:
        """The latent context of a datum that its noising depends on, a
        :class:`~pyro_mdm.diffusions.Context`; None: there is none, or it is given."""
        return None

    @property
    def origin(self) -> Diffusion:
        """The diffusion that guide and model share: itself, unless contexts are given."""
        return self

    def given(self, context: Tensor) -> Diffusion:
        """The diffusion of data with these contexts (*batch, size), where it depends on them."""
        raise NotImplementedError(f"{type(self).__name__} depends on no context")

    def displacement(self, x: Tensor, s: Times, event_dim: int | None = None) -> Tensor | None:
        """By what data move the mean of y_s given x beside a(s) x, like a state; None: by nothing.

        Args:
            x: data (*batch, *event_shape), in coordinates.
            s: times (n,) for a batch of n, or one time for all.
            event_dim: number of dimensions of a datum, all of x's but the first by default.
        """
        return None

    def without_displacement(self, y: Tensor, event_dim: int) -> Tensor:
        """y_ε (*batch, K, *event_shape) less what :meth:`displacement` added, as far as y_ε says.

        The readout of :attr:`start` gives x with this, in float64 where anything is taken away.

        Args:
            event_dim: number of dimensions of a datum.
        """
        return y

    def driven(self, x: Tensor, s: Tensor, noise: Tensor) -> Noised:
        """States y_s of data, and the score to be learned there, where the drift sees the data.

        Args:
            x: data (n, *event_shape);  s: times (n,).
            noise: standard normal (n, K, *event_shape).
        """
        raise NotImplementedError(f"the drift of {type(self).__name__} does not depend on the data")

    def views(self, x: Tensor) -> dict[str, Tensor]:
        """What the diffusion makes of data x (n, *event_shape), to look at: by name, tensors
        (columns, n, *event_shape) of as many stages. Empty where nothing depends on the data."""
        return {}

    def each(self, law: Callable[..., Any], *times: Tensor) -> Any:
        """``law(self, *times)``; where data dimensions have blocks of their own, that of each.

        Args:
            law: of a diffusion and so many times, all of one shape, to tensors that begin with that
                shape, or named tuples of them.
        """
        return law(self, *times)

    @property
    def transform(self) -> Any:
        """Coordinates of the data that states hold; None for the data themselves."""
        return None

    def coordinates(self, x: Tensor) -> Tensor:
        """The data (…, *event_shape) as the state holds them: x itself, or its frequencies."""
        return x

    def from_coordinates(self, x: Tensor) -> Tensor:
        """Their inverse."""
        return x

    @property
    def reference(self) -> Diffusion:
        """What the common time is of: this, or the first of several blocks."""
        return self

    def _no_closed_form(self) -> str:
        return (
            f"the law of {type(self).__name__} past its start time has no closed form; simulate "
            "it, DiffusionGuide(diffusion).law(x, times).sample()"
        )

    def check(self, event_shape: Sequence[int]) -> None:
        """What the diffusion declares, tried on states of this event shape, where it can be wrong.

        Raises:
            ValueError: it is not as declared.
        """

    def log_snr_grid(self, num_times: int) -> Tensor:
        """(num_times,) increasing times from ε to T, equally spaced in log SNR."""
        if num_times < 2:
            raise ValueError(f"num_times is {num_times}, expected at least 2: both ends")
        low = self.terminal_log_snr
        fraction = torch.linspace(0, 1, num_times, dtype=torch.float64, device=low.device)
        s = self.time_at_log_snr(self.max_log_snr + (low - self.max_log_snr) * fraction[:-1])
        return torch.cat([s, self.as_tensor(self.horizon).reshape(1)])

    def noise_divergence(self, y: Tensor, s: Times) -> Tensor:
        """∇·g², like y: 0 where noise does not depend on the state."""
        return torch.zeros_like(y)

    def forward_sde(self, event_shape: Sequence[int] = ()) -> ForwardSDE:
        """This diffusion as a torchsde object over states (batch·d, K)."""
        return ForwardSDE(self, event_shape)

    def reverse_sde(
        self, score: Callable[[Tensor, Tensor], Tensor], event_shape: Sequence[int]
    ) -> ReverseSDE:
        """The generative SDE in t = T - s as a torchsde object."""
        return ReverseSDE(self, score, event_shape)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Diffusion:
        return super()._apply(lambda t: t.to(fn(t).device), recurse)  # never the dtype

    def as_tensor(self, value: Times) -> Tensor:
        """A number or tensor in float64 on the device of the diffusion."""
        return torch.as_tensor(value, dtype=torch.float64, device=self._device())

    def _device(self) -> torch.device:
        tensors = itertools.chain(self.buffers(), self.parameters())
        return next((t.device for t in tensors), torch.device("cpu"))

    def checked_time(self, name: str, value: Times) -> Tensor:
        """Times in float64; raises ValueError outside [0, T]."""
        s = self.as_tensor(value)
        if s.numel() and not bool(((s >= 0) & (s <= self.horizon)).all()):
            bad = s.detach().flatten()[~((s >= 0) & (s <= self.horizon)).flatten()][0].item()
            raise ValueError(
                f"{name} = {bad:.6g} is outside [0, T] = [0, {self.horizon:g}]; time runs from the "
                "data at 0 to the noise at T"
            )
        return s


def check_horizon(horizon: Any) -> float:
    """T, a positive finite number."""
    return check_number("horizon", horizon, "a positive end time T, e.g. 1.0", positive=True)


def check_clock(beta: Any) -> None:
    """Raises TypeError unless β is a clock."""
    check_instance("beta", beta, Clock, "e.g. ConstantBeta(4.0) or LinearBeta(0.1, 20.0)")
