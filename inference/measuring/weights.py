"""Likelihoods by weights of paths, or by the flow, in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from inference.measuring.bounds import in_bits, in_model_space, of_data
from inference.settings.plan import Programs
from models.base import Part
from models.kinds import kind_of
from pyro_mdm.evaluation.comparison import log_likelihood
from pyro_mdm.paths.flow import Solver

Method = Literal["elbo", "importance", "flow", "all"]

EXACT = 16
"""The largest state, K·d, with an exact divergence of the flow by default."""

RTOL = 1e-4
"""The default tolerance of the flow's solver."""


@dataclass(frozen=True, kw_only=True)
class Weighing:
    """The options of likelihoods by weights; None is the method's default."""

    samples: int | None = None
    times: int | None = None
    probes: int | None = None
    rtol: float | None = None
    seed: int = 0

    def solver(self, programs: Programs) -> Solver:
        """The solver of the flow's equation, with exact divergences of small states."""
        model, rtol = programs.model, RTOL if self.rtol is None else self.rtol
        states = model.diffusion.num_variables * math.prod(model.event_shape)
        probes = self.probes if self.probes is not None else 0 if states <= EXACT else 1
        return Solver(rtol=rtol, atol=rtol, probes=probes)


def print_weighted(programs: Programs, data: Part, method: Method, weighing: Weighing) -> None:
    """Print the likelihood by importance weights, by the flow, or by both where there are both."""
    unserved = kind_of(programs.model.diffusion).unserved if method == "all" else {}
    samples, seed = weighing.samples, weighing.seed
    if "importance" in unserved:
        print(f"importance: none, as it needs {unserved['importance']}")
    elif method in ("importance", "all"):
        number, times = samples or 64, weighing.times
        said = weights(programs, data, "importance", samples=number, seed=seed, times=times)
        print(f"importance: {said}", flush=True)
    if "flow" in unserved:
        print(f"flow: none, as it needs {unserved['flow']}")
    elif method in ("flow", "all"):
        solver = weighing.solver(programs)
        single = samples is None or (method == "all" and solver.probes > 0)
        number = 1 if single or samples is None else samples
        said = weights(programs, data, "flow", samples=number, seed=seed, solver=solver)
        print(f"flow: {said}", flush=True)


def weights(
    programs: Programs,
    data: Tensor | Part,
    method: Literal["importance", "flow"],
    *,
    samples: int,
    seed: int,
    **options: int | Solver | None,
) -> str:
    """The likelihood of stored ``data`` by weights, in bits/dim, in words.

    Args:
        samples: weights per datum.
        seed: the seed of the noise.
        options: options of :func:`~pyro_mdm.evaluation.importance_weighted` or
            :func:`~pyro_mdm.evaluation.probability_flow`.
    """
    problem, model, guide = of_data(programs, data)
    x, log_det = in_model_space(programs, data, seed)
    given = {"samples": samples, "seed": seed} | options
    weighted = log_likelihood(model, guide, x, method=method, progress=True, **given)
    value, error = in_bits(weighted, log_det, problem.dequantized_levels)
    single = weighted.bound.mean - weighted.mean  # nats, of one weight less all
    gain = -single / (weighted.num_dims * math.log(2))
    words = f"{weighted.weights_in_words}; {gain:.3f} bits/dim below one weight; "
    note = words if samples > 1 else ""
    calls = f"{weighted.network_calls} network calls for each datum"
    with_error = f" ± {error:.3f}" if math.isfinite(error) else ""
    return f"bits/dim {value:.3f}{with_error} ({note}{calls})"
