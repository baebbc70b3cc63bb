"""Likelihoods by the probability-flow ODE of a trained model.

The ODE gives a density of y_ε (:mod:`pyro_mdm.paths.flow`). With S draws of y_ε from the noising
process it gives for the data

    log p(x) ≥ E log (1/S) Σ_j w_j,    w_j = p_ode(y_j) p(x | y_j) / q(y_j | x),

a bound by one draw, which tends to log p(x) under the ODE and the decoder as S grows. An estimated
divergence (Hutchinson probes) is unbiased for log w and not for w: then it is the bound alone.
"""

from __future__ import annotations

import math

from torch import Tensor

from pyro_mdm.evaluation.estimates import Weighted
from pyro_mdm.evaluation.importance import draw_weights, weighted
from pyro_mdm.guide import DiffusionGuide
from pyro_mdm.model import DiffusionModel
from pyro_mdm.paths.flow import Solver
from pyro_mdm.paths.likelihood import flow_weight
from pyro_mdm.support.doors import Count, checked_arguments
from pyro_mdm.support.modules import evaluating

__all__ = ["probability_flow"]


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
        law = guide.law(chosen.double())
        weight, taken = flow_weight(model.for_rows(rows), law, chosen, solver)
        calls = max(calls, taken)
        return weight

    size = 8 * math.prod(model.event_shape) * model.diffusion.num_variables
    with evaluating(model):
        weights = draw_weights(log_weight, x, samples, size, seed, progress)
    calls += model.likelihood.network_calls
    return weighted("flow", weights, model.num_dims, samples * calls)
