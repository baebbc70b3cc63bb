"""The matrices of linear diffusions: Q and D, or A and G, given or learned, and their prior."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_mdm.diffusions.base import Matrix, Times, kept
from pyro_mdm.diffusions.clocks import times_within
from pyro_mdm.diffusions.ends import (
    EndSettings,
    LinearProcess,
    clock_at,
    clocks_of_targets,
    root,
    unscaled_end,
)
from pyro_mdm.diffusions.kernels import ConstantPropagator, Propagator
from pyro_mdm.diffusions.matrices import (
    check_semidefinite,
    check_skew,
    covariance_matrix,
    hides_noise,
    semidefinite_cholesky,
    square_matrix,
    symmetric_root,
)
from pyro_mdm.support.checks import real_tensor

__all__ = [
    "REMEDY",
    "Constant",
    "DriftAndDispersion",
    "Frozen",
    "GivenPrior",
    "Learned",
    "Matrices",
    "PriorPart",
    "SkewAndSemidefinite",
    "StationaryPrior",
]

FARTHEST = 25.0
"""The logarithm of the latest clock time of drifts that forget nothing, by the fastest rate."""
SMALLEST = 1e-3
"""The least entry of a learned diagonal D, as in the paper's released code."""
REMEDY = (
    ". If training brought them here, lower the learning rate of the diffusion, or give D a higher "
    "rank"
)
"""What errors of learned matrices advise."""


# -- the prior -------------------------------------------------------------------------------------


CHECKED = 15
"""Times at which it is checked whether a prior is at rest."""


class Frozen(NamedTuple):
    """Matrices (K, K) of a linear diffusion at one time."""

    Q: Tensor
    D: Tensor
    unit_drift: Tensor  # A_0 = -(Q + D) Σ_∞^{-1}


class PriorPart(ABC):
    """The prior N(0, Σ_π) of a linear diffusion, and what follows from where it comes from.

    Attributes:
        linear: the linear diffusion, which holds the tensors.
        is_learned: whether the covariance is a parameter.
        sets_units: whether what is left of the variables is compared in units of its standard
            deviations; else variables have one unit.
    """

    linear: LinearProcess
    is_learned = False
    sets_units = False

    @abstractmethod
    def register(self, variance: float | Sequence[float] | Matrix | None) -> None:
        """Register the covariance as it is given; K is known."""

    @property
    @abstractmethod
    def covariance(self) -> Tensor:
        """Σ_π (K, K)."""

    def learn(self) -> None:
        """Make the covariance a parameter."""
        raise NotImplementedError

    @property
    def stationary(self) -> Tensor:
        """Σ_∞ (K, K). Raises AttributeError where none is known by construction."""
        raise AttributeError(f"{type(self.linear).__name__} has no stationary_covariance")

    @abstractmethod
    def at_rest(self) -> bool:
        """Whether the prior is stationary."""

    @abstractmethod
    def frozen(self, s: Tensor) -> Frozen:
        """Q, D and A at a time."""

    @abstractmethod
    def shown(self) -> dict[str, Tensor]:
        """The matrices that messages show, by name."""

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the prior for another diffusion."""

    @abstractmethod
    def advice(self) -> str:
        """Advice where noise reaches fewer than K variables, which ends the error's message."""


class StationaryPrior(PriorPart):
    """The stationary distribution N(0, Σ_∞), at rest by construction, given or learned."""

    sets_units = True

    def register(self, variance: float | Sequence[float] | Matrix | None) -> None:
        value = covariance_matrix("stationary_variance", variance, self.linear.num_variables)
        self.linear.register_buffer("given_stationary", value)

    def learn(self) -> None:
        """Make Σ_∞ = L Lᵀ a parameter, but for L_00.

        Raises:
            ValueError: K = 1, where nothing of Σ_∞ is free.
        """
        linear, K = self.linear, self.linear.num_variables
        if K == 1:
            raise ValueError(
                "learn_stationary is True, but with K = 1 variable nothing of Σ_∞ is learned: the "
                "variance of x is held fixed; leave it out, or raise num_variables"
            )
        L = torch.linalg.cholesky(self.covariance)
        linear.register_buffer("given_stationary", None)
        self.is_learned = True
        linear.register_buffer("stationary_scale", L[0, 0].clone())
        below = L[tuple(torch.tril_indices(K, K, offset=-1))]
        for name, value in (("log_diagonal", L.diagonal()[1:].log()), ("lower", below)):
            linear.register_parameter(f"stationary_{name}", nn.Parameter(value))

    @property
    def covariance(self) -> Tensor:
        if not self.is_learned:
            return self.linear.get_buffer("given_stationary")
        linear, K = self.linear, self.linear.num_variables
        scale = linear.get_buffer("stationary_scale")[None]
        L = torch.diag(torch.cat([scale, linear.get_parameter("stationary_log_diagonal").exp()]))
        below = tuple(torch.tril_indices(K, K, offset=-1))
        L = L.index_put(below, linear.get_parameter("stationary_lower"))
        return L @ L.mT

    stationary = covariance

    def at_rest(self) -> bool:
        return True

    def frozen(self, s: Tensor) -> Frozen:
        matrices = self.linear.matrices
        return Frozen(matrices.at("Q", s), matrices.at("D", s), matrices.drift(s))

    def shown(self) -> dict[str, Tensor]:
        middle, matrices = self.linear.horizon / 2, self.linear.matrices
        return {"Q": matrices.at("Q", middle), "D": matrices.at("D", middle)}

    def options(self) -> dict[str, Any]:
        return {"stationary_variance": self.linear.prior_covariance.detach()}

    def advice(self) -> str:
        return (
            " and the process does not converge to its stationary distribution; couple the "
            f"variables through Q or widen the range of D{self.linear.matrices.remedy}"
        )


class GivenPrior(PriorPart):
    """A prior of any covariance; by default Σ(T), that of y_T given x, wherever the ends are."""

    def register(self, variance: float | Sequence[float] | Matrix | None) -> None:
        given = None
        if variance is not None:
            given = covariance_matrix("prior_variance", variance, self.linear.num_variables)
        self.linear.register_buffer("given_prior", given)
        self._is_given = given is not None

    @property
    def covariance(self) -> Tensor:
        if self._is_given:
            return self.linear.get_buffer("given_prior")
        return self.linear.terminal.covariance

    def at_rest(self) -> bool:
        return kept(self.linear, "at rest", partial(_comes_to_rest, self.linear))

    def frozen(self, s: Tensor) -> Frozen:
        """Half of g² as D, and as Q what A Σ_π turns; Q and D if the prior is stationary."""
        A = self.linear.matrices.drift(s)
        moved = A @ self.covariance
        return Frozen((moved.mT - moved) / 2, self.linear.matrices.noise(s) / 2, A)

    def shown(self) -> dict[str, Tensor]:
        s = times_within(self.linear.horizon, "s", self.linear.horizon / 2)
        return {"A": self.linear.matrices.drift(s), "g²": self.linear.matrices.noise(s)}

    def options(self) -> dict[str, Any]:
        """No options for one of Q and D. Raises TypeError."""
        raise self.linear.matrices.without("Q and D")

    def advice(self) -> str:
        return (
            ", and the covariance of y_s is singular; couple the variables through A, or give G "
            "more columns"
        )


@torch.no_grad()
def _comes_to_rest(linear: LinearProcess) -> bool:
    """Whether A Σ_π + Σ_π Aᵀ + g² = 0 at times between 0 and T."""
    s = torch.linspace(0, linear.horizon, CHECKED + 2, dtype=torch.float64, device="cpu")[1:-1]
    noise = linear.matrices.noise(s)
    moved = linear.matrices.drift(s) @ linear.prior_covariance
    return bool(((moved + moved.mT + noise).abs() <= 1e-9 * noise.abs().max()).all())


# -- matrices --------------------------------------------------------------------------------------


class Matrices(ABC):
    """Q and D of a linear diffusion: constant or varying in time, given or learned.

    The diffusion itself holds the parameters and buffers of the matrices, so that its state dict
    has their names.

    Attributes:
        linear: the linear diffusion that the matrices are part of.
        prior_kind: the kind of the diffusion's prior.
        remedy: advice for error messages where the matrices are at fault.
        searched: the number of ends that are searched for along one curve; None: all that are
            given. It is 1 where the curve depends on the scale of the clock, which is found first.
    """

    linear: LinearProcess
    prior_kind: type[PriorPart]
    remedy = ""
    searched: int | None = None

    @abstractmethod
    def register(self) -> int:
        """Register the matrices' tensors with the diffusion, whose horizon is known; return K."""

    @abstractmethod
    def check(self) -> None:
        """Raise ValueError unless Q is skew and D positive semi-definite."""

    def restore(self, saved: dict[str, Any]) -> None:  # noqa: B027
        """Take over settings of a state dict that are not those of the ends."""

    @property
    def check_times(self) -> Times:
        """Times at which a check sees how the matrices vary."""
        return 0.0

    @property
    def when(self) -> str:
        """The time at which messages show the matrices, in brackets; empty for constant ones."""
        return ""

    @property
    def Q(self) -> Tensor:
        """Q, (K, K). Raises TypeError where it varies or is not given, as does :attr:`D`."""
        raise self.without("Q")

    @property
    def D(self) -> Tensor:
        """D, (K, K)."""
        raise self.without("D")

    def at(self, name: str, s: Times) -> Tensor:
        """Q or D, by its name, at times s, (*s.shape, K, K), or (K, K) where it is constant."""
        raise self.without(name)

    @abstractmethod
    def drift(self, s: Times | None = None) -> Tensor:
        """A per unit of clock time at times s, of the shape of :meth:`at`; None: constant A.

        Raises TypeError for None where it varies in time, as do :meth:`noise` and :meth:`root`.
        """

    @abstractmethod
    def noise(self, s: Times | None = None) -> Tensor:
        """g² per unit of clock time, likewise."""

    def rates(self, s: Times | None = None) -> tuple[Tensor, Tensor]:
        """:meth:`drift` and :meth:`noise`."""
        return self.drift(s), self.noise(s)

    @abstractmethod
    def root(self, s: Times | None = None) -> Tensor:
        """G per unit of clock time, G Gᵀ = g², likewise."""

    def without(self, name: str) -> TypeError:
        """The error for Q or D of a diffusion that is not given by them."""
        return TypeError(
            f"{type(self.linear).__name__} is given by its drift and dispersion and has no {name}, "
            "expected a diffusion that is given by these; use drift_matrix(s) and "
            "noise_covariance(s), or such a diffusion, e.g. VPSDE() or CLD()"
        )

    def no_constant(
        self, name: str, fix: str = "drift_matrix(s) and noise_covariance(s)"
    ) -> TypeError:
        """The error for a constant matrix of one that varies in time; ``fix`` is used instead."""
        kind = type(self.linear).__name__
        return TypeError(f"{kind} has no constant {name}: it varies in time; use {fix}")

    @property
    @abstractmethod
    def propagator(self) -> Propagator:
        """The propagator of the diffusion."""

    @abstractmethod
    def search_range(self, move: Propagator) -> tuple[float, float]:
        """The logarithms of the fastest rate, before whose time λ falls at least like -log τ, and
        of the latest clock time at which λ is searched for."""

    def precision(self) -> Tensor:
        """Σ_π^{-1} of the prior, (K, K), which may follow from the propagator."""
        precision: Tensor = torch.linalg.inv_ex(self.linear.prior_covariance).inverse
        return precision

    # -- the clock and the ends --------------------------------------------------------------------

    def clocks(self, targets: Tensor) -> Tensor:
        """Clock times at which λ is the targets, (1,) or (2,), as numbers.

        Raises:
            UnreachableError: one that is not reached.
            FloatingPointError: parameters or targets that are not finite.
        """
        return root(self.linear, targets)

    def scale(self) -> Tensor:
        """The number that β is multiplied by, 0-dim."""
        end = unscaled_end(self.linear)
        if self.linear.given_ends.low is None:
            return torch.ones_like(end)
        return clocks_of_targets(self.linear)[1] / end

    def clock_at(self, value: Tensor, name: str) -> Tensor:
        """The clock time at which λ or κ, by its name, has a value; differentiable."""
        return clock_at(self.linear, value, name)

    def end_clock(self) -> Tensor:
        """The clock time of T, 0-dim."""
        return self.linear.clock(self.linear.horizon)

    def set_ends(self, ends: EndSettings) -> None:  # noqa: B027
        """Take over ends, or refuse them."""

    def drift_by_time(self, s: Tensor) -> Tensor:
        """A(s) of the diffusion, by its own time, (*s.shape, K, K)."""
        return self.linear.rate(s)[..., None, None] * self.drift(s)

    def settings(self) -> dict[str, Any]:
        """Settings of the matrices beside parameters and buffers, for a state dict."""
        return {}


class Constant(Matrices):
    """Matrices that are the same at all times."""

    def hides_noise(self) -> bool:
        """Whether rounding of g² hides noise in some direction."""
        return False

    def root(self, s: Times | None = None) -> Tensor:
        """The symmetric root, or of a learned g² a triangular one, differentiable at any rank."""

        def root() -> Tensor:
            noise = self.noise()
            if noise.requires_grad:
                return semidefinite_cholesky(noise)
            return symmetric_root(noise)

        return kept(self.linear, "unit_dispersion", root)

    @property
    def propagator(self) -> Propagator:
        return ConstantPropagator(
            *self.rates(),
            precision=self.precision,
            root=self.root,
            hides_noise=self.hides_noise,
        )

    def search_range(self, move: Propagator) -> tuple[float, float]:
        drift = move.drift(unscaled_end(self.linear)).detach()
        slowest = -float(torch.linalg.eigvals(drift).real.max())
        return math.log(max(move.speed, 1e-300)), 3.5 - math.log(max(slowest, 1e-12))


class SkewAndSemidefinite(Constant):
    """Given Q and D that are the same at all times.

    Args:
        Q, D: (K, K).
    """

    prior_kind = StationaryPrior

    def __init__(self, Q: Matrix, D: Matrix) -> None:
        self._given = Q, D = square_matrix("Q", Q), square_matrix("D", D)
        if Q.shape != D.shape:
            raise ValueError(f"Q is {tuple(Q.shape)} and D is {tuple(D.shape)}, expected one shape")

    def register(self) -> int:
        for name, matrix in zip(("_Q", "_D"), self._given, strict=True):
            self.linear.register_buffer(name, matrix)
        return len(self._given[0])

    def check(self) -> None:
        check_skew("Q", self.linear.Q.detach(), 1e-12)
        check_semidefinite("D", self.linear.D.detach(), 1e-12)

    @property
    def Q(self) -> Tensor:
        return self.linear.get_buffer("_Q")

    @property
    def D(self) -> Tensor:
        return self.linear.get_buffer("_D")

    def at(self, name: str, s: Times) -> Tensor:
        matrix: Tensor = getattr(self.linear, name)  # as a subclass may have it
        return matrix

    def rates(self, s: Times | None = None) -> tuple[Tensor, Tensor]:
        Q, D, Sigma = self.linear.Q, self.linear.D, self.linear.prior_covariance
        return -torch.linalg.solve_ex(Sigma, Q + D, left=False).result, 2 * D

    def drift(self, s: Times | None = None) -> Tensor:
        return self.rates()[0]

    def noise(self, s: Times | None = None) -> Tensor:
        noise: Tensor = 2 * self.linear.D
        return noise


class DriftAndDispersion(Constant):
    """Given A and G that are the same at all times.

    Args:
        A: (K, K);  G: (K, m).
    """

    prior_kind = GivenPrior

    def __init__(self, A: Matrix, G: Matrix) -> None:
        A, G = square_matrix("A", A), real_tensor("G", G, "a matrix (K, m)").cpu().clone()
        self._given = A, G
        if G.dim() != 2 or len(G) != len(A) or not G.numel():
            raise ValueError(
                f"A is {tuple(A.shape)} and G is {tuple(G.shape)}, expected (K, K) and (K, m) with "
                "m ≥ 1: a column for each source of noise"
            )
        if not bool(G.isfinite().all()):
            raise ValueError(
                f"G has entries that are not finite: {G.tolist()}, expected finite numbers"
            )

    def register(self) -> int:
        for name, matrix in zip(("_A", "_G"), self._given, strict=True):
            self.linear.register_buffer(name, matrix)
        return len(self._given[0])

    def check(self) -> None:
        """Nothing to check: any A and G will do."""

    def drift(self, s: Times | None = None) -> Tensor:
        return self.linear.get_buffer("_A")

    def noise(self, s: Times | None = None) -> Tensor:
        G = self.linear.get_buffer("_G")
        noise = G @ G.mT
        return (noise + noise.mT) / 2

    def root(self, s: Times | None = None) -> Tensor:
        """G itself, with columns of zeros if it has fewer than K; a square root if it has more."""
        G = self.linear.get_buffer("_G")
        K, m = G.shape
        return super().root(s) if m > K else nn.functional.pad(G, (0, K - m))

    def hides_noise(self) -> bool:
        """Whether rounding of G Gᵀ may hide noise."""
        return hides_noise(torch.linalg.svdvals(self.linear.get_buffer("_G")))

    def search_range(self, move: Propagator) -> tuple[float, float]:
        noise: Tensor = torch.linalg.matrix_norm(self.noise(), ord=2)
        fast = math.log(max(move.speed, noise.item()))
        growth = torch.linalg.eigvals(self.drift()).real.max().item()
        if growth < -1e-10:
            return fast, 3.5 - math.log(-growth)
        # λ of a growing mode comes to rest, and exp(A τ) soon is too large for its digits
        return fast, min(FARTHEST - fast, math.log(20 / max(growth, 1e-10)))


class Learned(SkewAndSemidefinite):
    """Q = W - Wᵀ and D = B Bᵀ, or diag(softplus(d) + 0.001), all of them parameters.

    Args:
        Q, D: the start, (K, K); D is diagonal, its first entries 0 beyond its rank.
        rank: number of columns of B.
        diagonal: whether D is diagonal.
        seed: seed of a random start instead; None: none.
    """

    remedy = REMEDY

    def __init__(
        self, Q: Tensor, D: Tensor, rank: int, diagonal: bool = False, seed: int | None = None
    ) -> None:
        super().__init__(Q, D)
        K = len(Q)
        self.rank, self.diagonal, self._seed = rank, diagonal, seed
        self._below = tuple(torch.tril_indices(K, K, offset=-1, device="cpu"))

    def register(self) -> int:
        (Q, D), K = self._given, len(self._given[0])
        B = torch.diag(D.diagonal().sqrt())[:, K - self.rank :].clone()
        d = _inverse_softplus(D.diagonal() - SMALLEST) if self.diagonal else D.diagonal()
        if self._seed is not None:
            generator = torch.Generator().manual_seed(self._seed)

            def uniform(*shape: int) -> Tensor:
                unit = torch.rand(shape, dtype=torch.float64, generator=generator, device="cpu")
                return (2 * unit.to(Q) - 1) / math.sqrt(K)

            W = uniform(K, K)
            Q, B, d = W - W.mT, uniform(*B.shape), uniform(K)
        self.linear.register_parameter("lower", nn.Parameter(Q[self._below]))
        name, value = ("d", d) if self.diagonal else ("B", B)
        self.linear.register_parameter(name, nn.Parameter(value))
        return K

    def begin_at(self, start: LinearProcess) -> None:
        """Take over Q and D of a diffusion.

        Raises:
            ValueError: D is not diagonal, or its rank is higher.
        """
        Q, D, name = start.Q, start.D.detach(), type(start).__name__
        if self.diagonal:
            values = D.diagonal()
            if bool((D - torch.diag(values)).any()) or not bool((values > SMALLEST).all()):
                raise ValueError(
                    f"D of {name} is {D.tolist()}, expected a diagonal one with entries above "
                    f"{SMALLEST}; leave diagonal out"
                )
            value = _inverse_softplus(values - SMALLEST)
        else:
            values, vectors = torch.linalg.eigh(D)
            smallest = 1e-12 * values.max()
            if (needed := int((values > smallest).sum())) > self.rank:
                raise ValueError(
                    f"rank is {self.rank}, but D of {name} has rank {needed}; expected rank ≥ "
                    f"{needed}"
                )
            value = (vectors * values.maximum(smallest).sqrt()).flip(-1)[:, : self.rank]
        with torch.no_grad():
            self.linear.get_parameter("lower").copy_(Q[self._below])
            self.linear.get_parameter("d" if self.diagonal else "B").copy_(value)

    @property
    def Q(self) -> Tensor:
        lower, K = self.linear.get_parameter("lower"), self.linear.num_variables
        W = lower.new_zeros(K, K).index_put(self._below, lower)
        return W - W.mT

    @property
    def D(self) -> Tensor:
        if self.diagonal:
            return torch.diag(nn.functional.softplus(self.linear.get_parameter("d")) + SMALLEST)
        B = self.linear.get_parameter("B")
        return B @ B.mT

    def root(self, s: Times | None = None) -> Tensor:
        """√2 B padded with columns of zeros, differentiable where a symmetric root of D is not;
        or for a diagonal D the symmetric root."""
        if self.diagonal:
            return torch.diag((2 * self.linear.D.diagonal()).sqrt())
        empty = self.linear.num_variables - self.rank
        return math.sqrt(2) * nn.functional.pad(self.linear.get_parameter("B"), (0, empty))

    def hides_noise(self) -> bool:
        """Whether rounding of D may hide noise: D = B Bᵀ has half of B's digits."""
        if self.diagonal:
            return False
        return hides_noise(torch.linalg.svdvals(self.linear.get_parameter("B").detach()))


def _inverse_softplus(value: Tensor) -> Tensor:
    return value + torch.log(-torch.expm1(-value))
