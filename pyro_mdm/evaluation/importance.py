r"""Importance-weighted likelihoods over whole paths on a grid.

On a grid ε = s_1 < … < s_N = T the generative path is a Markov chain with an exact density, and so
is the noising path. With S noising paths for each datum

    log p_grid(x) ≥ E log (1/S) Σ_j w_j,    w_j = p(x | y_ε) p_θ(path_j) / q(path_j | x),

with equality as S grows (Burda, Grosse & Salakhutdinov 2016). For S = 1 it is the grid's own bound,
which tends to that of the SDE as N grows. The chain is a model of its own: its numbers are ordered
among each other, but not relative to those of the SDE.

Two diagnostics of the weights are the effective sample size, (Σ w)² / Σ w², and the tail index k̂
of the largest weights (Vehtari et al., "Pareto Smoothed Importance Sampling", 2024). The latter
should be below a limit that falls with S: 0.7 for many weights, 0.45 for 64. With few weights k̂
detects less of a tail, and a lighter tail does harm. For a tail index of 0.9, k̂ is above the limit
for four data of five, at 64 weights as at 1,024 (tests/benchmarks/tails.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from pyro.ops.stats import fit_generalized_pareto
from torch import Tensor

from pyro_mdm import randomness
from pyro_mdm.evaluation.estimates import Weighted, population_error
from pyro_mdm.guide import DiffusionGuide
from pyro_mdm.model import DiffusionModel
from pyro_mdm.paths.likelihood import chain_of, log_mean_weight, path_weight
from pyro_mdm.support.checks import check_count
from pyro_mdm.support.measured import Measured
from pyro_mdm.support.modules import evaluating
from pyro_mdm.support.progress import progress_bar

__all__ = ["draw_weights", "importance_weighted", "pareto_k", "weighted"]

NUMBERS = 2**22
"""The most numbers in states that are weighed together, which bounds the memory."""
FEWEST_FOR_TAIL = 25
"""Weights of a datum from which a tail index is estimated."""


def importance_weighted(
    model: DiffusionModel,
    guide: DiffusionGuide,
    x: Tensor,
    *,
    samples: int = 64,
    times: int | Tensor | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Weighted:
    """Estimate log p(x) of the chain on a grid by importance weights over its paths.

    Args:
        model, guide: over one diffusion in closed form.
        x: data in model space, (n, *event_shape).
        samples: S, paths for each datum. Each takes as many network calls as the grid has steps;
            the default of 64 is affordable, but too few to rule out a heavy tail.
        times: grid, a number N or (N,) from ε to T; 65 by default.
        seed: seed of the noise.
        progress: show a progress bar.

    Raises:
        ValueError: a diffusion without closed-form kernels, numbers below 1.
        KernelPrecisionError: a grid whose steps float64 does not resolve.
    """
    check_count("samples", samples, "the number of paths for each datum")
    model.check_given(x)
    chain = chain_of(model, times)

    def log_weight(rows: Tensor) -> Tensor:
        chosen, known = x[rows], model.for_rows(rows)
        of_rows = chain if known is model else chain_of(known, chain.times)
        return path_weight(known, of_rows, guide.law(chosen.double(), chain.times), chosen)

    grid = chain.times
    size = len(grid) * model.diffusion.num_variables * math.prod(model.event_shape)
    with evaluating(model):
        weights = draw_weights(log_weight, x, samples, size, seed, progress)
    calls = samples * (len(grid) - 1 + model.likelihood.network_calls)
    return weighted("importance", weights, model.num_dims, calls)


def draw_weights(
    log_weight: Callable[[Tensor], Tensor],
    x: Tensor,
    samples: int,
    size: int,
    seed: int,
    progress: bool,
) -> Tensor:
    """Log-weights (samples, n) float64 of data x (n, *event_shape), in bounded memory.

    Args:
        log_weight: a function that draws once for each of the data at indices (m,) -> (m,) nats.
        size: how many numbers a draw of one datum takes.
    """
    n = len(x)
    weights = torch.zeros(samples * n, dtype=torch.float64)  # all draws of a pass, then the next
    parts = torch.arange(samples * n).split(max(1, NUMBERS // size))
    with progress_bar(samples * n, "weighing", "draws", shown=progress) as bar:
        for k, part in enumerate(parts):
            with randomness.piece(0, 1, seed * len(parts) + k):
                weights[part] = log_weight(part.to(x.device) % n).cpu()
            bar.update(len(part))
    return weights.reshape(samples, n)


def pareto_k(log_weights: Tensor) -> Tensor:
    """The tail index k̂ of the weights of each datum, (n,), from log-weights (S, n).

    It is fitted to the largest min(S / 5, 3 √S); NaN for fewer than 25 weights or equal ones,
    infinite where the largest exceeds the others beyond float64's digits.
    """
    S, n = log_weights.shape
    k_hat = torch.full((n,), math.nan, dtype=torch.float64)
    if S < FEWEST_FOR_TAIL:
        return k_hat
    tail = math.ceil(min(0.2 * S, 3 * math.sqrt(S)))
    largest = (log_weights - log_weights.amax(0)).exp().sort(0).values[-tail - 1 :]
    for i in range(n):
        excess = largest[1:, i] - largest[0, i]
        if float(largest[0, i]) == 0:
            k_hat[i] = math.inf
        elif bool((excess > 0).all()):
            k_hat[i] = fit_generalized_pareto(excess)[0]
    return k_hat


def weighted(method: str, log_weights: Tensor, num_dims: int, network_calls: int) -> Weighted:
    """The estimate from log-weights (S, n), nats."""
    value, error = log_mean_weight(log_weights)
    over_data = Measured.of(value)
    of_mean = math.sqrt(float(error.square().sum())) / len(value)
    if len(log_weights) > 1 and len(value) > 1:  # else noise is in the spread, or alone
        over_data = Measured(over_data.mean, population_error(value, error.square(), of_mean))
    return Weighted(
        method=method,
        mean=over_data.mean,
        standard_error=over_data.standard_error,
        monte_carlo_error=of_mean,
        bound=Measured.of(log_weights.mean(0)),
        num_dims=num_dims,
        network_calls=network_calls,
        per_datum=value,
        per_datum_error=error,
        effective_samples=(2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp(),
        pareto_k=pareto_k(log_weights),
        num_weights=len(log_weights),
    )
