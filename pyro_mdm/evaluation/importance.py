r"""Importance-weighted likelihoods over whole paths on a grid.

On a grid ε = s_1 < … < s_N = T the generative path is a Markov chain with an exact density, and so
is the noising path. With S noising paths for each datum

    log p_grid(x) ≥ E log (1/S) Σ_j w_j,    w_j = p(x | y_ε) p_θ(path_j) / q(path_j | x),

with equality as S grows (Burda, Grosse & Salakhutdinov 2016). For S = 1 it is the grid's own bound,
which tends to that of the SDE as N grows. The chain is a model of its own: its numbers are ordered
among each other, but not relative to those of the SDE.

The effective sample size (Σ w)² / Σ w² is the number of weights that count. The tail and the
largest of the weights say how far they can be trusted (:mod:`pyro_mdm.evaluation.weights`). Of 64
weights with a tail index of 0.9, four data of five are flagged by the tail alone, as of 1,024
(tests/benchmarks/tails.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_mdm import randomness
from pyro_mdm.evaluation.estimates import Weighted
from pyro_mdm.evaluation.weights import evidence
from pyro_mdm.guide import DiffusionGuide
from pyro_mdm.model import DiffusionModel
from pyro_mdm.paths.chain import GenerativeChain
from pyro_mdm.paths.likelihood import chain_of, path_weight
from pyro_mdm.support.doors import Count, checked_arguments
from pyro_mdm.support.measured import Measured
from pyro_mdm.support.modules import evaluating
from pyro_mdm.support.progress import progress_bar

__all__ = ["draw_weights", "importance_weighted", "path_weights", "weighted"]

NUMBERS = 2**22
"""The largest number of entries of states that are weighed together, which bounds the memory."""


@checked_arguments
def importance_weighted(
    model: DiffusionModel,
    guide: DiffusionGuide,
    x: Tensor,
    *,
    samples: Count = 64,
    times: int | Tensor | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Weighted:
    """Estimate log p(x) of the chain on a grid by importance weights over its paths.

    Args:
        model: generative program over a diffusion in closed form.
        guide: noising program over the same diffusion.
        x: data in model space, (n, *event_shape).
        samples: number S of paths for each datum. Each takes as many network calls as the grid has
            steps; the default of 64 is affordable, but too few to rule out a heavy tail.
        times: grid: a number N of times, or the times from ε to T, (N,); by default those of a
            model that is a chain, else 65.
        seed: seed of the noise.
        progress: whether to show a progress bar.

    Returns:
        :class:`~pyro_mdm.evaluation.Weighted`, in nats per datum.

    Raises:
        ValueError: a diffusion without closed-form kernels, numbers below 1.
        KernelPrecisionError: a grid whose steps float64 does not resolve.
    """
    model.check_data(x)
    model = model.without_context()
    chain = chain_of(model, times)
    weights = path_weights(model, guide, chain, x, samples, seed, progress)
    calls = samples * (len(chain.times) - 1 + model.likelihood.network_calls)
    return weighted("importance", weights, model.num_dims, calls)


def path_weights(
    model: DiffusionModel,
    guide: DiffusionGuide,
    chain: GenerativeChain,
    x: Tensor,
    samples: int,
    seed: int,
    progress: bool,
) -> Tensor:
    """Log-weights of noising paths, (samples, n) in float64.

    Args:
        model: generative program, whose context is a fixed one or none.
        guide: noising program over the same diffusion.
        chain: the model as a chain.
        x: data, (n, *event_shape).
        samples, seed, progress: as for :func:`importance_weighted`.
    """

    def log_weight(rows: Tensor) -> Tensor:
        chosen, model_of_rows = x[rows], model.for_rows(rows)
        chain_of_rows = chain if model_of_rows is model else chain_of(model_of_rows, chain.times)
        return path_weight(
            model_of_rows, chain_of_rows, guide.law(chosen.double(), chain.times), chosen
        )

    size = len(chain.times) * model.diffusion.num_variables * math.prod(model.event_shape)
    with evaluating(model):
        return draw_weights(log_weight, x, samples, size, seed, progress)


def draw_weights(
    log_weight: Callable[[Tensor], Tensor],
    x: Tensor,
    samples: int,
    size: int,
    seed: int,
    progress: bool,
) -> Tensor:
    """Log-weights of data, (samples, n) in float64, in bounded memory.

    Args:
        log_weight: function of indices of data, (m,), that draws once for each, (m,) nats.
        x: data, (n, *event_shape).
        samples: number of draws of each datum.
        size: number of entries in the states of one draw of one datum.
        seed: seed of the draws.
        progress: whether to show a progress bar.
    """
    n = len(x)
    weights = torch.zeros(samples * n, dtype=torch.float64)  # all draws of a pass, then the next
    batches = torch.arange(samples * n).split(max(1, NUMBERS // size))
    with progress_bar(samples * n, "weighing", "draws", shown=progress) as bar:
        for k, batch in enumerate(batches):
            with randomness.piece(0, 1, seed * len(batches) + k):
                weights[batch] = log_weight(batch.to(x.device) % n).cpu()
            bar.update(len(batch))
    return weights.reshape(samples, n)


def weighted(method: str, log_weights: Tensor, num_dims: int, network_calls: int) -> Weighted:
    """The estimate from log-weights.

    Args:
        method: name of the method.
        log_weights: log-weights, (S, n), nats.
        num_dims: number d of dimensions of a datum.
        network_calls: number of network calls of one datum.
    """
    value, error, k = evidence(log_weights)
    over_data = Measured.from_values(value)
    of_mean = math.sqrt(float(error.square().sum())) / len(value)
    errors = filter(math.isfinite, (over_data.standard_error, of_mean))
    return Weighted(
        method=method,
        mean=over_data.mean,
        standard_error=max(errors, default=math.nan),  # the spread over data has the noise in it
        monte_carlo_error=of_mean,
        bound=Measured.from_values(log_weights.mean(0)),
        num_dims=num_dims,
        network_calls=network_calls,
        per_datum=value,
        per_datum_error=error,
        effective_samples=(2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp(),
        pareto_k=k,
        num_weights=len(log_weights),
    )
