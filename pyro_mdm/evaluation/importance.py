r"""Likelihoods by importance weights: of paths on a grid, or of the start of the probability flow.

*Paths.* On a grid ε = s_1 < … < s_N = T the generative path is a Markov chain with an exact
density, and so is the noising path. With S noising paths for each datum

    log p_grid(x) ≥ E log (1/S) Σ_j w_j,    w_j = p(x | y_ε) p_θ(path_j) / q(path_j | x),

with equality as S grows (Burda, Grosse & Salakhutdinov 2016). For S = 1 it is the grid's own bound,
which tends to that of the SDE as N grows.

*Flow.* The probability-flow ODE gives a density of y_ε (:mod:`pyro_mdm.paths.flow`). With draws of
y_ε from the noising process the weights are ``w_j = p_ode(y_j) p(x | y_j) / q(y_j | x)``. An
estimated divergence (Hutchinson probes) is unbiased for log w and not for w: then it is the bound
by one draw alone. :mod:`pyro_mdm.evaluation.weights` says how far weights can be trusted.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

import pyro_mdm.randomness as randomness
from pyro_mdm.evaluation.estimates import Weighted
from pyro_mdm.evaluation.weights import effective_samples, evidence
from pyro_mdm.guide import DiffusionGuide
from pyro_mdm.model import DiffusionModel
from pyro_mdm.paths.chain import GenerativeChain
from pyro_mdm.paths.flow import Solver
from pyro_mdm.paths.likelihood import chain_of, flow_weight, path_weight
from pyro_mdm.support.checks import Count, checked_arguments
from pyro_mdm.support.measured import Measured
from pyro_mdm.support.modules import evaluating
from pyro_mdm.support.progress import progress_bar

__all__ = ["importance_weighted", "path_weights", "probability_flow", "weighted"]

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


@checked_arguments
def probability_flow(
    model: DiffusionModel,
    guide: DiffusionGuide,
    x: Tensor,
    *,
    samples: Count = 1,
    solver: Solver | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Weighted:
    """Estimate log p(x) of the probability-flow ODE and the decoder.

    Args:
        model: generative program over a diffusion, linear or not.
        guide: noising program over the same diffusion.
        x: data in model space, (n, *event_shape).
        samples: number S of draws of y_ε for each datum.
        solver: solver of the ODE; by default an adaptive one with exact divergences.
        seed: seed of the noise and the probes.
        progress: whether to show a progress bar.

    Returns:
        :class:`~pyro_mdm.evaluation.Weighted`, in nats per datum.

    Raises:
        ValueError: several samples with an estimated divergence, numbers below 1.
    """
    solver = Solver() if solver is None else solver
    model.check_data(x)
    model = model.without_context()
    if samples > 1 and solver.probes:
        raise ValueError(
            f"samples is {samples} and probes {solver.probes}: weights need the exact divergence; "
            "use probes=0, or samples=1 for the bound"
        )
    calls = 0

    def log_weight(rows: Tensor) -> Tensor:
        nonlocal calls
        chosen = x[rows]
        noising = guide.law(chosen.double())
        weight, taken = flow_weight(model.for_rows(rows), noising, chosen, solver)
        calls = max(calls, taken)
        return weight

    size = 8 * math.prod(model.event_shape) * model.diffusion.num_variables
    with evaluating(model):
        weights = _draw_weights(log_weight, x, samples, size, seed, progress)
    calls += model.likelihood.network_calls
    return weighted("flow", weights, model.num_dims, samples * calls)


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

    The model has a fixed context or none, and ``chain`` is the model as a chain.
    """

    def log_weight(rows: Tensor) -> Tensor:
        chosen, model_of_rows = x[rows], model.for_rows(rows)
        chain_of_rows = chain if model_of_rows is model else chain_of(model_of_rows, chain.times)
        return path_weight(
            model_of_rows, chain_of_rows, guide.law(chosen.double(), chain.times), chosen
        )

    size = len(chain.times) * model.diffusion.num_variables * math.prod(model.event_shape)
    with evaluating(model):
        return _draw_weights(log_weight, x, samples, size, seed, progress)


def _draw_weights(
    log_weight: Callable[[Tensor], Tensor],
    x: Tensor,
    samples: int,
    size: int,
    seed: int,
    progress: bool,
) -> Tensor:
    """Log-weights of data x, (samples, n) in float64, in bounded memory.

    ``log_weight`` draws once for each datum of some indices (m,); ``size`` is the number of entries
    in the states of such a draw.
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
    """The estimate from log-weights (S, n), nats, of data of ``num_dims`` dimensions."""
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
        effective_samples=effective_samples(log_weights),
        pareto_k=k,
        num_weights=len(log_weights),
    )
