r"""The bound from simulated paths of the noising diffusion dy = f ds + G dB.

Girsanov's theorem and integration by parts give, with ℓ = log π, g² = G Gᵀ and r = s_θ - ∇ℓ,

    log p_θ(y_ε) ≥ log π(y_ε) - ∫_ε^T E[ ½ ‖r‖²_{g²} + ∇ℓ · g² r + ∇·(g² r) - c ] ds          (1)

    c = ∇·F + F · ∇ℓ,    F = f - ½ (g² ∇ℓ + ∇·g²)

at states y_s of the path from y_ε. It is the implicit (ISM) bound

    E[ log π(y_T) + ∫ -½ ‖s_θ‖²_{g²} - ∇·(g² s_θ - f) - ½ ∇·∇·g² ds ]

with log π(y_T) written as log π(y_ε) plus an integral (Itô), so that no path need reach T. F is the
probability velocity at π: ``c = ∇·(F π)/π`` vanishes if π is stationary. Then a score with r = 0
has exactly log π(y_ε), and minus the integral is the gain of a trained one over it.

The divergence is

- ISM: ``∇·(g² r) = (∇·g²)·r + tr(Gᵀ J G)``, with J the Jacobian of r; the trace exactly, or by
  Hutchinson's probes ``ξᵀ Gᵀ J G ξ``, which see the range of G alone;
- local denoising score matching: over an Euler-Maruyama increment ``y_s = y_r + f δ + √δ G ξ``, by
  Stein's identity, ``E tr(Gᵀ J G)(y_s) = E ⟨Gᵀ r(y_s), ξ⟩ / √δ``; exactly for the simulated state
  if noise does not depend on it, else to first order in δ. ξ is used with both signs: a central
  difference, of finite variance for any δ, without a derivative of the network.

Sources: Singhal, Goldstein & Ranganath, ICLR 2023, Theorem 1 and appendices (ISM, DSM); the same
authors, "What's the score? Automated Denoising Score Matching for Nonlinear Diffusions", ICML 2024
(local increments; they linearize the drift within one); Hutchinson 1990.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

import pyro_mdm.randomness as randomness
from pyro_mdm.diffusions.base import full_precision, separate_node
from pyro_mdm.diffusions.matrices import apply_to_rows, as_rows, noise_root
from pyro_mdm.paths.flow import Trace, divergence
from pyro_mdm.simulated.integration import advance
from pyro_mdm.simulated.simulation import Simulation

if TYPE_CHECKING:
    from pyro_mdm.simulated.nonlinear import NonlinearDiffusion

__all__ = ["PathIntegral", "path_integral"]

ScoreFunction = Callable[[Tensor, Tensor], Tensor]


class PathIntegral(NamedTuple):
    """One estimate of the integral in (1) of the module for each of n data, from P points of a
    path."""

    value: Tensor  # (n,), nats
    level: Tensor  # (P, n) log SNRs at which the integrand was evaluated
    density: Tensor  # (P, n) the integrand per unit of log SNR, nats
    probe_variance: Tensor  # (n,) of the value, by Hutchinson's probes; 0: exact, NaN: one probe
    end: Tensor | None  # (n, K, *event_shape) the state at T, with ``to_end``


def path_integral(
    diffusion: NonlinearDiffusion,
    score: ScoreFunction,
    y: Tensor,
    simulation: Simulation,
    *,
    fraction: Tensor | None = None,
    brownian: object = None,
    noise: Tensor | None = None,
    to_end: bool = False,
) -> PathIntegral:
    """An estimate of the integral in (1) of the module, from one path of each datum.

    ``progress`` from ε to T is cut into P equal strata, the ``points`` of the simulation. The
    integrand is evaluated once in each, at the same fraction of the stratum.

    Args:
        diffusion: the noising diffusion.
        score: the function ``score(y, s)`` that returns a tensor like y, for times (n,).
        y: states at ε, (n, K, *event_shape).
        simulation: settings of the simulation of paths and of the estimate of the integral.
        fraction: the place of the points in their strata, (n,) in [0, 1); None: of low discrepancy.
            Times are held fixed in gradients.
        brownian: the Brownian motion of the paths over [0, 1], of shape (n·d, K); None: a new one.
        noise: increments of local DSM, (n·P, d, K); None: new ones.
        to_end: whether to simulate on to T, for ``end``.

    Returns:
        A :class:`PathIntegral`, in nats.

    Raises:
        SimulationError: a path exploded.
        ValueError: a score of another shape than y.
    """
    n, P, steps = len(y), simulation.points, simulation.steps() // simulation.points
    # times are no part of the estimand: any with right weights have its expectation
    with torch.no_grad():
        start, end = diffusion.start_time, diffusion.as_tensor(diffusion.horizon)
        u = randomness.low_discrepancy(n, y.device) if fraction is None else fraction
        strata = torch.arange(P, dtype=torch.float64, device=y.device)[:, None]
        s = diffusion.time_at_progress((strata + u) / P)  # (P, n)
        knots = torch.cat([start.expand(1, n), s])
        local = simulation.objective == "local_dsm"
        r = s - simulation.increment * knots.diff(dim=0) / steps if local else s
        knots = torch.cat([knots[:1], r, *([end.expand(1, n)] if to_end else [])])
        weight = 1 / diffusion.progress_rate(s)
        level, level_rate = diffusion.log_snr(s), diffusion.log_snr_rate(s)
    inside = torch.is_grad_enabled()
    states = advance(diffusion, y, knots, steps, simulation, brownian)
    points, times = states[:P].flatten(0, 1), s.flatten()
    if local:
        value, variance = _local(diffusion, score, points, r.flatten(), times, simulation, noise)
    else:
        value, variance = _implicit(diffusion, score, points, times, simulation)
    if not inside:
        value = value.detach()
    value, weight = value.reshape(P, n), weight.to(value)
    variance = (weight**2 * variance.reshape(P, n)).sum(0) / P**2
    density = value.detach() / level_rate.to(value)
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
        point = separate_node(y)
        residual = _residual(diffusion, score, point, s)
        trace = divergence(residual, point, G, simulation.probes, law=simulation.probe_law)
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
        xi = randomness.normal((n, d, K), before.dtype, before.device) if noise is None else noise
        centre = before + delta * diffusion.drift(before, r).to(before.dtype)
        kick = (root * apply_to_rows(G, xi)).mT.reshape(before.shape)
        both, times = torch.cat([centre + kick, centre - kick]), torch.cat([s, s])
        residual = _residual(diffusion, score, both, times)
        plus, minus = apply_to_rows(torch.cat([G, G]).mT, as_rows(residual)).split(n)
        trace = 0.5 * ((plus - minus) * xi).flatten(1).sum(1) / root.flatten()
        here = noise_root(diffusion, both, times) if depends else torch.cat([G, G])
        products = _products(diffusion, both, residual, here)
        products = products + _spurious(diffusion, both, times, residual)
        current = _current(diffusion, both, times, simulation)
        c, variance = (t.expand(2 * n).reshape(2, n).mean(0) for t in current)
        return products.reshape(2, n).mean(0) + trace - c, variance / 2


def _residual(diffusion: NonlinearDiffusion, score: ScoreFunction, y: Tensor, s: Tensor) -> Tensor:
    theta = score(y, s)
    if theta.shape != y.shape:
        raise ValueError(f"the score has shape {tuple(theta.shape)}, expected y's {tuple(y.shape)}")
    return theta.to(y.dtype) - diffusion.prior.score(y)


def _products(diffusion: NonlinearDiffusion, y: Tensor, residual: Tensor, G: Tensor) -> Tensor:
    """½ ‖r‖²_{g²} + ∇ℓ · g² r, (n,)."""
    white = apply_to_rows(G.mT, as_rows(residual))
    rest = apply_to_rows(G.mT, as_rows(diffusion.prior.score(y)))
    return ((0.5 * white + rest) * white).flatten(1).sum(1)


def _spurious(diffusion: NonlinearDiffusion, y: Tensor, s: Tensor, residual: Tensor) -> Tensor:
    """(∇·g²) · r, (n,)."""
    return (diffusion.noise_divergence(y, s) * residual).flatten(1).sum(1)


def _current(diffusion: NonlinearDiffusion, y: Tensor, s: Tensor, simulation: Simulation) -> Trace:
    """c = ∇·F + F·∇ℓ, (n,); 0-dim zeros if π is declared stationary."""
    if diffusion.stationary_prior:
        return Trace(y.new_zeros(()), y.new_zeros(()))
    with torch.enable_grad():
        point = separate_node(y)
        F = diffusion.prior_current(point, s)
        of_current = divergence(F, point, None, simulation.probes, law=simulation.probe_law)
        along = (F * diffusion.prior.score(point)).flatten(1).sum(1)
        return Trace(of_current.value + along, of_current.variance)
