"""Settings of simulated paths, errors of those that explode, and divergences of fields."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

import pyro_mdm.randomness as randomness
from pyro_mdm.diffusions.base import Diffusion
from pyro_mdm.diffusions.matrices import apply_to_rows, as_rows
from pyro_mdm.support.checks import check_count, check_number
from pyro_mdm.support.settings import Recorded

__all__ = [
    "AT_ONCE",
    "LIMIT",
    "Simulation",
    "SimulationError",
    "Trace",
    "divergence",
    "jacobian",
    "own_node",
]

LIMIT = 1e6
"""A state beyond this has exploded."""


class SimulationError(ArithmeticError):
    """A simulated path whose values overflow or are not finite."""


@dataclass(frozen=True)
class Simulation(Recorded):
    """Settings for simulating paths and estimating the bound on them.

    Args:
        step_size: the average step, as a fraction of the way from ε to T
            (:meth:`~pyro_mdm.NonlinearDiffusion.progress`); within a stratum steps are
            even in s. Its bias is of first order in the step for ``euler`` and of second for
            ``srk``; measure it with :func:`pyro_mdm.simulated.evaluation.step_size_bias`.
        points: number of evaluations of the integrand along a path, at drawn times. More pay off
            where the network is cheap beside the steps.
        method: of torchsde: ``srk`` (two drift evaluations per step; for noise that does not depend
            on the state, and the default there) or ``euler`` (the default otherwise).
        backpropagation: ``direct`` through every step, or torchsde's ``adjoint``. The adjoint
            stores the states alone, and its gradients are of another discretization: they differ by
            several percent at ordinary steps, and by more where noise depends on the state.
        objective: ``ism`` or ``local_dsm``, see :mod:`pyro_mdm.simulated.path_integral`.
        increment: of ``local_dsm``, as a fraction of a step. Where noise depends on the state, its
            bias is of first order in this.
        probes: number of Hutchinson probes, or ``exact``; by default exact for up to 8 derivatives
            and otherwise 1.
        probe_law: ``rademacher`` (±1) or ``gaussian``.

    Raises:
        ValueError: a step size that is not positive, an unknown name, fewer than 1 probe.
    """

    step_size: float = 0.02
    points: int = 4
    method: Literal["euler", "srk"] | None = None
    backpropagation: Literal["direct", "adjoint"] = "direct"
    objective: Literal["ism", "local_dsm"] = "ism"
    increment: float = 0.05
    probes: int | Literal["exact"] | None = None
    probe_law: Literal["rademacher", "gaussian"] = "rademacher"

    def __post_init__(self) -> None:
        expected = "a positive part of the way from ε to T, e.g. 0.02"
        check_number("step_size", self.step_size, expected, positive=True)
        expected = "a part of a step, in (0, 1)"
        if not 0 < check_number("increment", self.increment, expected) < 1:
            raise ValueError(f"increment is {self.increment}, expected {expected}")
        check_count("points", self.points, "the number of evaluations along a path")
        choices = {
            "method": (None, "euler", "srk"),
            "backpropagation": ("direct", "adjoint"),
            "objective": ("ism", "local_dsm"),
            "probe_law": ("rademacher", "gaussian"),
        }
        for name, values in choices.items():
            if getattr(self, name) not in values:
                text = ", ".join(map(str, values))
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {text}")
        if self.probes not in (None, "exact") and not (
            type(self.probes) is int and self.probes >= 1
        ):
            raise ValueError(f"probes is {self.probes!r}, expected 'exact' or a number ≥ 1")

    def steps(self) -> int:
        """The number of steps of a path, a multiple of its points."""
        return self.points * max(1, math.ceil(1 / (self.points * self.step_size) - 1e-9))

    def solver(self, diffusion: Diffusion) -> str:
        """The torchsde method for a diffusion.

        Raises:
            ValueError: ``srk`` for noise that depends on the state.
        """
        if not diffusion.noise_depends_on_state:
            return self.method or "srk"
        if self.method == "srk":
            raise ValueError(
                f"method is 'srk', but the noise of {type(diffusion).__name__} depends on the "
                "state; use method='euler'"
            )
        return "euler"


# -- divergences -----------------------------------------------------------------------------------

EXACT = 8
"""The most derivatives for which a divergence is exact by default."""


AT_ONCE = 2**16
"""The most numbers in a batch of derivatives, of all data together."""


def own_node(y: Tensor) -> Tensor:
    """A graph node of its own for y: derivatives with respect to it ignore y's other uses."""
    return y.view_as(y) if y.requires_grad else y.detach().requires_grad_()


class Trace(NamedTuple):
    """An estimate of a divergence for each of n data."""

    value: Tensor  # (n,)
    variance: Tensor  # (n,) of the value, by its probes; 0 if exact, NaN for a single probe


def divergence(
    field: Tensor,
    y: Tensor,
    G: Tensor | None,
    simulation: Simulation,
    *,
    create_graph: bool = True,
) -> Trace:
    r"""The trace tr(Gᵀ J G) of a field's Jacobian J at y; tr J for G = None.

    Args:
        field: (n, K, *event_shape), computed from y, which requires gradients.
        G: (n, d or 1, K, K), held fixed.
        simulation: the number of probes, or ``exact``, and their distribution.
        create_graph: whether the divergence has derivatives itself.
    """
    n, K = y.shape[:2]
    d = y[0, 0].numel()
    rows = as_rows(field)
    if not field.requires_grad:
        return Trace(y.new_zeros(n), y.new_zeros(n))
    # The graph is needed if anything else carries gradients; the caller detaches if not.
    along = rows if G is None else apply_to_rows(G.mT, rows)
    used = list(range(K))
    if G is not None:
        used = G.detach().abs().amax((0, 1, 2)).nonzero().squeeze(1).tolist()
    probes = simulation.probes
    if probes is None:
        probes = "exact" if d * len(used) <= EXACT else 1
    if probes == "exact" and G is None and d * K > EXACT:
        return Trace(_batched(rows, y, create_graph), y.new_zeros(n))
    if probes == "exact":
        total = y.new_zeros(n)
        for j in range(d):
            for k in used:
                grad = _gradient(along[:, j, k].sum(), y, create_graph)[:, j]
                total = total + (grad[:, k] if G is None else (grad * _column(G, j, k)).sum(-1))
        return Trace(total, y.new_zeros(n))
    estimates = []
    for _ in range(probes):
        xi = _probe((n, d, K), simulation.probe_law, y)
        grad = _gradient((along * xi).sum(), y, create_graph)
        moved = xi if G is None else apply_to_rows(G.to(xi.dtype), xi)
        estimates.append((grad * moved).flatten(1).sum(1))
    values = torch.stack(estimates)
    variance = values.detach().var(0) / probes if probes > 1 else values[0].detach() * math.nan
    return Trace(values.mean(0), variance)


def _batched(rows: Tensor, y: Tensor, create_graph: bool) -> Tensor:
    """tr J, (n,), of a field (n, d, K) at y, by batches of derivatives."""
    total = rows.new_zeros(len(rows))
    for chunk, grad in _derivatives(rows, y, create_graph):
        total = total + grad[torch.arange(len(chunk)), :, chunk].sum(0)
    return total


def jacobian(field: Tensor, y: Tensor, *, create_graph: bool = True) -> Tensor:
    """The Jacobian of each datum, (n, K·d, K·d), by batches of derivatives.

    Args:
        field: values (n, K, *event_shape), computed from y, which requires gradients.
        y: states, (n, K, *event_shape).
        create_graph: whether the Jacobian has derivatives itself.
    """
    batches = [grad for _, grad in _derivatives(as_rows(field), y, create_graph)]
    return torch.cat(batches).movedim(0, 1)


def _derivatives(rows: Tensor, y: Tensor, create_graph: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices (m,) of the numbers of a field (n, d, K), and their derivatives, (m, n, d·K).

    Where a batch fails, its derivatives are taken one by one, and an error in these is raised. A
    batch that exhausts the memory fails at once.
    """
    n, d, K = rows.shape
    unit = torch.eye(d * K, dtype=rows.dtype, device=rows.device)
    options: dict[str, Any] = {"create_graph": create_graph, "retain_graph": True}
    for chunk in torch.arange(d * K, device=rows.device).split(max(1, AT_ONCE // (n * d * K))):
        if not rows.requires_grad:  # it does not depend on y
            yield chunk, rows.new_zeros(len(chunk), n, d * K)
            continue
        along = unit[chunk].reshape(-1, 1, d, K).expand(-1, n, d, K)
        try:
            (grad,) = torch.autograd.grad(rows, y, along, is_grads_batched=True, **options)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # a network whose derivative takes no batch
            grad = torch.stack([torch.autograd.grad(rows, y, one, **options)[0] for one in along])
        yield chunk, grad.flatten(3).mT.reshape(len(chunk), n, d * K)  # (…, K, d) -> (…, d, K)


def _column(G: Tensor, j: int, k: int) -> Tensor:
    return G[:, j if G.shape[1] > 1 else 0, :, k]


def _gradient(value: Tensor, y: Tensor, create_graph: bool) -> Tensor:
    (grad,) = torch.autograd.grad(
        value, y, create_graph=create_graph, retain_graph=True, allow_unused=True
    )
    return as_rows(torch.zeros_like(y) if grad is None else grad)


def _probe(shape: tuple[int, ...], law: str, like: Tensor) -> Tensor:
    if law == "gaussian":
        return randomness.normal(shape, like.dtype, like.device)
    return 2.0 * (randomness.uniform(shape, like.dtype, like.device) < 0.5).to(like.dtype) - 1.0
