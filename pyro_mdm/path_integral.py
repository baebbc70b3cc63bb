r"""The bound that needs nothing but simulated paths of the noising diffusion dy = f ds + G dB.

Girsanov's theorem and integration by parts give, with ℓ = log π, g² = G Gᵀ and r = s_θ - ∇ℓ,

    log p_θ(y_ε) ≥ log π(y_ε) - ∫_ε^T E[ ½ ‖r‖²_{g²} + ∇ℓ · g² r + ∇·(g² r) - c ] ds          (1)

    c = ∇·F + F · ∇ℓ,    F = f - ½ (g² ∇ℓ + ∇·g²)

at states y_s of the path from y_ε. It is the implicit (ISM) bound E[ log π(y_T) + ∫ -½ ‖s_θ‖² -
∇·(g² s_θ - f) - ½ ∇·∇·g² ds ] with log π(y_T) written as log π(y_ε) plus an integral (Itô), so that
no path need reach T. F is the velocity of probability at π: c = ∇·(F π)/π vanishes if π is
stationary. A model at rest (r = 0) then has exactly log π(y_ε): what is estimated is what it gains.

The divergence is

- ISM: ∇·(g² r) = (∇·g²)·r + tr(Gᵀ J G), J the Jacobian of r; the trace exactly, or by Hutchinson's
  probes ξᵀ Gᵀ J G ξ, which see the range of G alone;
- local denoising score matching: over an Euler-Maruyama increment y_s = y_r + f δ + √δ G ξ, by
  Stein's identity, E tr(Gᵀ J G)(y_s) = E ⟨Gᵀ r(y_s), ξ⟩ / √δ; exactly for the simulated state if
  noise does not depend on it, else to first order in δ, one step. ξ is used with both signs: a
  central difference, of finite variance for any δ, that needs no derivative of the network.

Sources: Singhal, Goldstein & Ranganath, ICLR 2023, Theorem 1 and appendices (ISM, DSM); the same
authors, "What's the score? Automated Denoising Score Matching for Nonlinear Diffusions", ICML 2024
(local increments; they linearize the drift within one); Hutchinson 1990.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pyro_mdm import draws
from pyro_mdm.diffusions import full_precision
from pyro_mdm.simulation import Simulation, advance, noise_root

if TYPE_CHECKING:
    from pyro_mdm.nonlinear import NonlinearDiffusion

__all__ = ["PathIntegral", "divergence", "path_integral"]

ScoreFunction = Callable[[Tensor, Tensor], Tensor]

EXACT = 8
"""The most derivatives for which a divergence is exact by default."""


def _rows(y: Tensor) -> Tensor:
    """(n, K, *event_shape) -> (n, d, K)."""
    return y.reshape(*y.shape[:2], -1).mT


def _transposed(G: Tensor, r: Tensor) -> Tensor:
    """Gᵀ r, (n, d, K)."""
    return (G.mT @ r.unsqueeze(-1)).squeeze(-1)


def _applied(G: Tensor, xi: Tensor) -> Tensor:
    """G ξ, (n, d, K)."""
    return (G @ xi.unsqueeze(-1)).squeeze(-1)


def _point(y: Tensor) -> Tensor:
    """A node for y of its own: derivatives with respect to it do not see y's other uses."""
    return y.view_as(y) if y.requires_grad else y.detach().requires_grad_()


class _Trace(NamedTuple):
    value: Tensor  # (n,)
    variance: Tensor  # (n,) of the value, by its probes; 0 if exact, NaN for a single probe


def divergence(field: Tensor, y: Tensor, G: Tensor | None, simulation: Simulation) -> _Trace:
    r"""tr(Gᵀ J G) for the Jacobian J of a field (n, K, *event_shape) at y, or tr J for G = None.

    Args:
        field: computed from y, which requires gradients.
        G: (n, d or 1, K, K), held fixed.
    """
    n, K = y.shape[:2]
    d = y[0, 0].numel()
    rows = _rows(field)
    if not field.requires_grad:
        return _Trace(y.new_zeros(n), y.new_zeros(n))
    # The graph is needed if anything else carries gradients; the caller detaches if not.
    along = rows if G is None else _transposed(G, rows)
    used = list(range(K))
    if G is not None:
        used = G.detach().abs().amax((0, 1, 2)).nonzero().squeeze(1).tolist()
    probes = simulation.probes
    if probes is None:
        probes = "exact" if d * len(used) <= EXACT else 1
    if probes == "exact":
        total = y.new_zeros(n)
        for j in range(d):
            for k in used:
                grad = _gradient(along[:, j, k].sum(), y)[:, j]
                total = total + (grad[:, k] if G is None else (grad * _column(G, j, k)).sum(-1))
        return _Trace(total, y.new_zeros(n))
    estimates = []
    for _ in range(probes):
        xi = _probe((n, d, K), simulation.probe_law, y)
        grad = _gradient((along * xi).sum(), y)
        estimates.append((grad * (xi if G is None else _applied(G, xi))).flatten(1).sum(1))
    values = torch.stack(estimates)
    variance = values.detach().var(0) / probes if probes > 1 else values[0].detach() * math.nan
    return _Trace(values.mean(0), variance)


def _column(G: Tensor, j: int, k: int) -> Tensor:
    return G[:, j if G.shape[1] > 1 else 0, :, k]


def _gradient(value: Tensor, y: Tensor) -> Tensor:
    (grad,) = torch.autograd.grad(value, y, create_graph=True, allow_unused=True)
    return _rows(torch.zeros_like(y) if grad is None else grad)


def _probe(shape: tuple[int, ...], law: str, like: Tensor) -> Tensor:
    if law == "gaussian":
        return draws.normal(shape, like.dtype, like.device)
    return 2.0 * (draws.uniform(shape, like.dtype, like.device) < 0.5).to(like.dtype) - 1.0


class PathIntegral(NamedTuple):
    """One estimate of the integral in (1) for each datum; P points on each path."""

    value: Tensor  # (n,), nats
    level: Tensor  # (P, n) the noise levels where the integrand was evaluated
    density: Tensor  # (P, n) the integrand per unit of noise level, nats
    probe_variance: Tensor  # (n,) of the value, by Hutchinson's probes; 0 if exact, NaN for one
    end: Tensor | None  # (n, K, *event_shape) the state at T, if asked for


def path_integral(
    diffusion: NonlinearDiffusion,
    score: ScoreFunction,
    y: Tensor,
    simulation: Simulation,
    *,
    fraction: Tensor | None = None,
    brownian: Any = None,
    noise: Tensor | None = None,
    to_end: bool = False,
) -> PathIntegral:
    """The integral of (1) from one path per datum, which starts at y (n, K, *event_shape) at ε.

    The way from ε to T (``progress``) is cut into P equal strata, ``points`` of the simulation; the
    path is looked at once in each, at the same part of it.

    Args:
        score: ``score(y, s) -> like y`` for times (n,).
        fraction: (n,) in [0, 1): which part; by default of low discrepancy. Times are held fixed in
            gradients.
        brownian, noise: of the path, over [0, 1], (n·d, K), and of the increments of local DSM,
            (n·P, d, K); by default drawn.
        to_end: go on to T.
    """
    n, P, steps = len(y), simulation.points, simulation.steps() // simulation.points
    with torch.no_grad():
        start, end = diffusion.start_time, diffusion._tensor(diffusion.horizon)
        u = draws.low_discrepancy(n, y.device) if fraction is None else fraction
        strata = torch.arange(P, dtype=torch.float64, device=y.device)[:, None]
        s = diffusion.time_at_progress((strata + u) / P)  # (P, n)
        knots = torch.cat([start.expand(1, n), s])
        local = simulation.objective == "local_dsm"
        r = s - simulation.increment * knots.diff(dim=0) / steps if local else s
        knots = torch.cat([knots[:1], r, *([end.expand(1, n)] if to_end else [])])
        weight = 1 / diffusion.progress_rate(s)
        level, level_rate = diffusion.noise_level(s), diffusion.noise_level_rate(s)
    inside = torch.is_grad_enabled()
    states = advance(diffusion, y, knots, steps, simulation, brownian)
    points, times = states[:P].flatten(0, 1), s.flatten()
    if local:
        value, variance = _local(diffusion, score, points, r.flatten(), times, simulation, noise)
    else:
        value, variance = _implicit(diffusion, score, points, times, simulation)
    if not inside:
        value = value.detach()
    value, weight = value.reshape(P, n), weight.to(value.dtype)
    variance = (weight**2 * variance.reshape(P, n)).sum(0) / P**2
    density = value.detach() / level_rate.to(value.dtype)
    return PathIntegral(
        (weight * value).mean(0), level, density, variance, states[-1] if to_end else None
    )


def _implicit(
    diffusion: NonlinearDiffusion,
    score: ScoreFunction,
    y: Tensor,
    s: Tensor,
    simulation: Simulation,
) -> tuple[Tensor, Tensor]:
    with torch.enable_grad(), full_precision(y):
        G = noise_root(diffusion, y, s)
        point = _point(y)
        residual = _residual(diffusion, score, point, s)
        trace = divergence(residual, point, G, simulation)
        value = _products(diffusion, point, residual, G) + trace.value
        value = value + _spurious(diffusion, y, s, residual)
        current = _current(diffusion, y, s, simulation)
        return value - current.value, trace.variance + current.variance


def _local(
    diffusion: NonlinearDiffusion,
    score: ScoreFunction,
    before: Tensor,
    r: Tensor,
    s: Tensor,
    simulation: Simulation,
    noise: Tensor | None,
) -> tuple[Tensor, Tensor]:
    with full_precision(before):
        n, K = before.shape[:2]
        d = before[0, 0].numel()
        delta = (s - r).to(before.dtype).reshape(-1, *(1,) * (before.dim() - 1))
        root = delta.sqrt().reshape(-1, 1, 1)
        # noise that does not depend on the state is taken at the end of the step, where g² r is
        depends = diffusion.noise_depends_on_state
        G = noise_root(diffusion, before, r if depends else s)
        xi = draws.normal((n, d, K), before.dtype, before.device) if noise is None else noise
        centre = before + delta * diffusion.drift(before, r).to(before.dtype)
        kick = (root * _applied(G, xi)).mT.reshape(before.shape)
        both, times = torch.cat([centre + kick, centre - kick]), torch.cat([s, s])
        residual = _residual(diffusion, score, both, times)
        plus, minus = _transposed(torch.cat([G, G]), _rows(residual)).split(n)
        trace = 0.5 * ((plus - minus) * xi).flatten(1).sum(1) / root.flatten()
        here = noise_root(diffusion, both, times) if depends else torch.cat([G, G])
        products = _products(diffusion, both, residual, here)
        products = products + _spurious(diffusion, both, times, residual)
        current = _current(diffusion, both, times, simulation)
        c, variance = (t.expand(2 * n).reshape(2, n).mean(0) for t in current)
        return products.reshape(2, n).mean(0) + trace - c, variance / 2


def _residual(diffusion: NonlinearDiffusion, score: ScoreFunction, y: Tensor, s: Tensor) -> Tensor:
    found = score(y, s)
    if found.shape != y.shape:
        raise ValueError(f"the score has shape {tuple(found.shape)}, expected y's {tuple(y.shape)}")
    return found.to(y.dtype) - diffusion.prior.score(y)


def _products(diffusion: NonlinearDiffusion, y: Tensor, residual: Tensor, G: Tensor) -> Tensor:
    """½ ‖r‖²_{g²} + ∇ℓ · g² r, (n,)."""
    white = _transposed(G, _rows(residual))
    rest = _transposed(G, _rows(diffusion.prior.score(y)))
    return ((0.5 * white + rest) * white).flatten(1).sum(1)


def _spurious(diffusion: NonlinearDiffusion, y: Tensor, s: Tensor, residual: Tensor) -> Tensor:
    """(∇·g²) · r, (n,)."""
    if not diffusion.noise_depends_on_state:
        return residual.new_zeros(len(y))
    return (diffusion.noise_divergence(y, s) * residual).flatten(1).sum(1)


def _current(diffusion: NonlinearDiffusion, y: Tensor, s: Tensor, simulation: Simulation) -> _Trace:
    """c = ∇·F + F·∇ℓ, (n,); numbers 0 if π is stationary."""
    with torch.enable_grad():
        point = _point(y)
        F = diffusion.prior_current(point, s)
        if F is None:
            return _Trace(y.new_zeros(()), y.new_zeros(()))
        found = divergence(F, point, None, simulation)
        along = (F * diffusion.prior.score(point)).flatten(1).sum(1)
        return _Trace(found.value + along, found.variance)
