r"""Noising diffusions with a chosen stationary distribution, from an energy and two matrix fields.

    dy = β(s) ( -(Q + D) ∇H + Γ ) ds + sqrt(2 D β(s)) dB,    Γ_i = Σ_j ∂_j (Q_ij + D_ij)

has the stationary distribution π ∝ exp(-H) for every skew-symmetric Q(y) and positive semi-definite
D(y), and every diffusion that is stationary at π has this form (Ma, Chen & Fox, "A Complete Recipe
for Stochastic Gradient MCMC", NeurIPS 2015, equations 2-3 and Theorems 1-2). With a quadratic H
and constant Q and D it is a :class:`~pyro_mdm.diffusions.LinearDiffusion`.

Γ corrects for a Q or D that depends on the state. The probability velocity at π is
F = β (-Q ∇H + ∇·Q), so that F π = β ∇·(Q π), whose divergence vanishes as Q is skew-symmetric.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyro_mdm.diffusions.base import Matrix, Prior, Times, separate_node, with_event_dims
from pyro_mdm.diffusions.clocks import Clock, LinearBeta
from pyro_mdm.diffusions.matrices import (
    apply_to_rows,
    as_rows,
    check_semidefinite,
    check_skew,
    semidefinite_cholesky,
    square_matrix,
    symmetric_root,
)
from pyro_mdm.simulated.nonlinear import NonlinearDiffusion, matrix_divergence
from pyro_mdm.simulated.priors import QuadraturePrior
from pyro_mdm.simulated.simulation import Simulation
from pyro_mdm.support.settings import arguments_of, described

__all__ = ["HamiltonianDiffusion"]

Function = Callable[[Tensor], Tensor]


SKEW = 1e-9
"""The largest relative violation of a declared property by a function of the state."""


class HamiltonianDiffusion(NonlinearDiffusion):
    r"""A diffusion with the stationary distribution π ∝ exp(-H), which is its prior.

        dy = β (-(Q + D) ∇H + Γ) ds + sqrt(2 D β) dB

    Everything is computed in float64; modules are cast to it. Parameters that are learned must be
    those of modules. Functions take states of any batch size and event shape. Their value at a data
    dimension may depend on that dimension's variables alone.

    Args:
        H: the energy: K functions of one variable each, applied elementwise, whose prior is
            :class:`~pyro_mdm.simulated.QuadraturePrior`; or one function of the state
            (batch, K, *event_shape) that returns (batch, *event_shape), with a ``prior``.
        Q: the skew-symmetric matrix, (K, K), which moves mass between variables; or a function of
            the state that returns (batch, *event_shape, K, K).
        D: the symmetric positive semi-definite matrix, which adds noise and damps; or a function
            like Q. Noise must reach all variables, directly or through Q and the energy; this is
            not checked.
        root: the function of the state with ``root rootᵀ = D``, of D's shape, where D is a
            function; None: the Cholesky factor, in which a pivot that is zero up to rounding makes
            a column of zeros. It is differentiable where D keeps its rank; give a root if D does
            not. A constant D has its symmetric root.
        prior: the distribution with log π = -H + const; needed for a joint H, otherwise a faster
            replacement of the quadrature.
        beta: the clock β(s); None: :class:`~pyro_mdm.diffusions.clocks.LinearBeta` 0.1 → 20.
        horizon: the time T at which noising ends.
        initial_variance: the variance Σ_v of the auxiliary variables at s = 0, a number or K - 1.
        max_log_snr: the log SNR λ at the start, where the decoder takes over.
        min_log_snr: the nominal log SNR at T.
        simulation: settings of the simulation of paths.

    Raises:
        ValueError: no prior for a joint H, matrices of another shape than (K, K), Q not
            skew-symmetric, D not symmetric or not positive semi-definite, a root for a constant D.
            On use: a function that returns another shape. On first use (:meth:`check`): functions
            that are not skew-symmetric or positive semi-definite, a root whose square is not D, a
            prior that is not exp(-H) up to a factor.

    Example:
        Motion with a relativistic kinetic energy, so that speeds are below 1, and a friction that
        fades with speed:

        >>> def friction(y):
        ...     v = y[:, 1]
        ...     return torch.diag_embed(torch.stack([torch.zeros_like(v), 1 + 1 / (1 + v**2)], -1))
        >>> diffusion = HamiltonianDiffusion(
        ...     H=[lambda x: x**2 / 2, lambda v: (1 + v**2).sqrt()],
        ...     Q=[[0.0, -1.0], [1.0, 0.0]],
        ...     D=friction,
        ... )
        >>> y = diffusion.prior.sample((5, 2, 3))  # 5 data of 3 dimensions
        >>> diffusion.check((3,))  # the prior is stationary
        >>> diffusion.drift(y, 0.5).shape, diffusion.dispersion(y, 0.5).shape
        (torch.Size([5, 2, 3]), torch.Size([5, 3, 2, 2]))
    """

    stationary_prior = True
    _unit_dispersion: Tensor

    def __init__(
        self,
        H: Sequence[Function] | nn.ModuleList | Function,
        Q: Matrix | Function,
        D: Matrix | Function,
        *,
        root: Function | None = None,
        prior: Prior | None = None,
        beta: Clock | None = None,
        horizon: float = 1.0,
        initial_variance: float | Sequence[float] = 0.01,
        max_log_snr: float = 13.0,
        min_log_snr: float = -10.0,
        simulation: Simulation | None = None,
    ) -> None:
        separate = isinstance(H, (Sequence, nn.ModuleList))
        if isinstance(H, (Sequence, nn.ModuleList)):
            energies: list[Function] = list(H)
            K = len(H)
        elif not callable(H):
            raise ValueError(
                f"H is {H!r}, expected K functions of one variable each or one of the state"
            )
        elif prior is not None:
            energies, K = [H], prior.num_variables
        else:
            raise ValueError(
                "H is one function of all variables, so that its law cannot be sampled by "
                "quadrature: give prior= with log density -H + const, e.g. DistributionPrior; or, "
                "if the variables are independent, give H as a sequence of K functions"
            )
        super().__init__(
            K,
            beta=beta if beta is not None else LinearBeta(horizon=horizon),
            horizon=horizon,
            initial_variance=initial_variance,
            max_log_snr=max_log_snr,
            min_log_snr=min_log_snr,
            prior=prior,
            simulation=simulation,
        )
        self.separate = separate
        self.H = nn.ModuleList(map(_module, energies))
        self.Q, self.D = _Field("Q", Q, K), _Field("D", D, K)
        if root is not None and self.D.function is None:
            raise ValueError("root is given for a constant D, expected None: its root is known")
        if root is not None and not callable(root):
            raise ValueError(f"root is {root!r}, expected a function of the state, like D")
        self.root = None if root is None else _Field("root", root, K)
        self.noise_depends_on_state = self.D.function is not None
        for field, check in ((self.Q, check_skew), (self.D, check_semidefinite)):
            if field.function is None:
                check(field.name, field.constant, 1e-12)
        if self.D.function is None:
            self.register_buffer("_unit_dispersion", symmetric_root(2 * self.D.constant))

    def settings(self) -> dict[str, object]:
        arguments = arguments_of(self)
        functions = {name: described(arguments.get(name)) for name in ("H", "Q", "D", "root")}
        constant = {f.name for f in (self.Q, self.D) if f.function is None}
        return super().settings() | {n: v for n, v in functions.items() if n not in constant}

    @property
    def prior(self) -> Prior:
        if self._prior is not None:
            return self._prior
        return QuadraturePrior(list(self.H), self._device())

    def energy(self, y: Tensor) -> Tensor:
        """H of each data dimension, (batch, *event_shape) in float64.

        Args:
            y: states, (batch, K, *event_shape).

        Raises:
            ValueError: y or the energy's value has another shape.
        """
        K = self.num_variables
        if y.dim() < 2 or y.shape[1] != K:
            raise ValueError(
                f"y has shape {tuple(y.shape)}, expected (batch, K, *event_shape) with the K = {K} "
                f"variables of {type(self).__name__}"
            )
        y = y.double()
        if not self.separate:
            return _shaped("H", self.H[0](y), y, (len(y), *y.shape[2:]))
        terms = [
            _shaped(f"H[{k}]", h(y[:, k]), y[:, k], (len(y), *y.shape[2:]))
            for k, h in enumerate(self.H)
        ]
        return torch.stack(terms).sum(0)

    def drift(self, y: Tensor, s: Times) -> Tensor:
        """β (-(Q + D) ∇H + Γ), like y.

        Args:
            y: states, (batch, K, *event_shape).
            s: times, (batch,), or one time.
        """
        with torch.enable_grad():
            state = separate_node(y).double()
            (gradient,) = torch.autograd.grad(self.energy(state).sum(), state, create_graph=True)
            force = apply_to_rows(self.Q(state) + self.D(state), as_rows(gradient))
            force = force.mT.reshape(y.shape)
            f = with_event_dims(self.rate(s), y) * (self._correction(state) - force)
        return self.released(f.to(y.dtype), y)

    def _correction(self, state: Tensor) -> Tensor:
        """Γ, like the state."""
        fields = [field for field in (self.Q, self.D) if field.function is not None]
        if not fields:
            return torch.zeros_like(state)
        blocks = [field(state) for field in fields]
        return matrix_divergence(sum(blocks[1:], blocks[0]), state)

    def dispersion(self, y: Tensor, s: Times) -> Tensor:
        """``√β`` times a root of 2 D, in float64.

        Args:
            y: states, (batch, K, *event_shape).
            s: times, (batch,), or one time.

        Returns:
            (K, K), or (batch, K, K) for times (batch,), if D is constant; else (batch,
            *event_shape, K, K).
        """
        half_rate = self.rate(s).sqrt()
        if not self.noise_depends_on_state:
            return half_rate[..., None, None] * self._unit_dispersion
        state = y.double()
        unit = semidefinite_cholesky(self.D(state)) if self.root is None else self.root(state)
        K = self.num_variables
        half_rate = half_rate.reshape(-1, 1, 1, 1) if half_rate.dim() else half_rate
        return (half_rate * math.sqrt(2) * unit).reshape(len(y), *y.shape[2:], K, K)

    def noise_divergence(self, y: Tensor, s: Times) -> Tensor:
        """∇·g² = 2 β ∇·D, like y; from D itself, as roots are not smooth where D loses rank."""
        if not self.noise_depends_on_state:
            return torch.zeros_like(y)
        with torch.enable_grad():
            state = separate_node(y).double()
            rate = with_event_dims(self.rate(s), y)
            divergences = (2 * rate * matrix_divergence(self.D(state), state)).to(y.dtype)
        return self.released(divergences, y)

    def check(self, event_shape: Sequence[int]) -> None:
        if torch.Size(event_shape) not in self._checked:
            generator = torch.Generator(self._device()).manual_seed(0)
            with torch.no_grad():
                y = self.prior.sample((16, self.num_variables, *event_shape), generator).double()
                for field, check in ((self.Q, check_skew), (self.D, check_semidefinite)):
                    if field.function is not None:
                        _check_finite(field.name, matrix := field(y))
                        check(field.name, matrix, SKEW)
                if self.root is not None:
                    _check_root(self.root(y), self.D(y))
        super().check(event_shape)


class _Function(nn.Module):
    """A plain function as a module."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, y: Tensor) -> Tensor:
        return self.function(y)

    def extra_repr(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))


def _module(function: Function) -> nn.Module:
    if not callable(function):
        raise ValueError(f"{function!r} is among the energies H, expected functions")
    return function.double() if isinstance(function, nn.Module) else _Function(function)


class _Field(nn.Module):
    """A K×K matrix, constant (1, 1, K, K) or a function of the state, (batch, d, K, K)."""

    constant: Tensor

    def __init__(self, name: str, value: Matrix | Function, num_variables: int) -> None:
        super().__init__()
        self.name, self.num_variables = name, num_variables
        self.function = None
        if isinstance(value, Tensor) and value.requires_grad:
            raise ValueError(
                f"{name} requires gradients, but a constant matrix is not learned: give a module "
                "that returns (batch, *event_shape, K, K)"
            )
        if callable(value) and not isinstance(value, Tensor):
            self.function = _module(value)
            return
        matrix = square_matrix(name, value)
        K = num_variables
        if matrix.shape != (K, K):
            raise ValueError(
                f"{name} has shape {tuple(matrix.shape)}, expected ({K}, {K}): H and the prior are "
                f"of K = {K} variables"
            )
        self.register_buffer("constant", matrix)

    def forward(self, state: Tensor) -> Tensor:
        if self.function is None:
            return self.constant[None, None]
        K = self.num_variables
        shape = (len(state), *state.shape[2:], K, K)
        return _shaped(self.name, self.function(state), state, shape).reshape(len(state), -1, K, K)


def _shaped(name: str, value: Tensor, argument: Tensor, shape: tuple[int, ...]) -> Tensor:
    if value.shape != shape:
        raise ValueError(
            f"{name} returned shape {tuple(value.shape)} for an argument of shape "
            f"{tuple(argument.shape)}, expected {shape}"
        )
    return value.double()


def _check_finite(name: str, matrix: Tensor) -> None:
    if not bool(matrix.isfinite().all()):
        bad = matrix[~matrix.isfinite()][0].item()
        raise ValueError(f"{name} has entries that are not finite at states of the prior: {bad}")


def _check_root(root: Tensor, D: Tensor) -> None:
    off = (root @ root.mT - D).abs().max().item()
    if off > SKEW * max(1.0, D.abs().max().item()):
        raise ValueError(
            f"root is not a root of D: |root rootᵀ - D| reaches {off:.3g}, expected 0 (the factors "
            "2 and β are put in here)"
        )
