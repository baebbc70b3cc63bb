"""Scores of a method's draws of a target, in a process of one thread.

    python -m tests.benchmarks.densities.scores TARGET METHOD SEED SECONDS FILE

fits the method and writes its scores by name to the file, as JSON. Those that a method or a target
doesn't have are left out: weights are those of guides, modes those of targets with modes.

    elbo, elbo_se         the mean log weight, nats, and its standard error
    log_z                 log of the mean weight
    log_z_error           the same less the truth, or less that of the reference
    ess                   effective draws of all, by the weights
    k_hat, largest        tail index of the weights, and the largest, in units of their mean
    energy                squared energy distance to reference draws, in units of the reference's
                          standard deviations, of draws resampled by their weights
    energy_raw            the same of draws as they are
    floor                 the same of reference draws
    mode_distance         total variation distance of the modes' probabilities, by weights
    modes                 of all modes, those with at least a tenth of their probability
    fit_seconds, draw_seconds, updates
                          processor time of the fit and of the draws with their weights; updates
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

import pyro
import torch
from torch import Tensor

from pyro_mdm.evaluation.weights import pareto_k
from tests.benchmarks.densities.base import Draws, Fitted, Modes, Target

__all__ = ["Reference", "energy", "scores_of"]

DRAWS = 10_000
TOGETHER = 2_000
"""Draws of a part, within which distances of a method's own are taken."""
OTHER = 1_000_000
"""Is added to the seed of a fit for its draws, and twice for reference draws."""


class Reference:
    """Draws (n, dim) of the target, log Z where known, and its standard error.

    One half is what others are compared with, the other is what the floor is taken of.
    """

    def __init__(self, x: Tensor, log_z: float | None, log_z_se: float = 0.0) -> None:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        self.x, self.other = x[order].double().chunk(2)
        self.log_z, self.log_z_se = log_z, log_z_se

    def energy(self, x: Tensor) -> float:
        """The squared energy distance to x (m, dim), in units of standard deviations."""
        scale = self.x.std(0)
        return energy(x.double() / scale, self.x / scale)


def energy(x: Tensor, y: Tensor) -> float:
    """The squared energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| of two sets of draws in random
    order, (m, d) and (n, d), without bias: 0 on average for two of one law."""
    between = torch.cat([torch.cdist(part, y).mean(1) for part in x.split(TOGETHER)]).mean()
    return float(2 * between - within(x) - within(y))


def within(x: Tensor) -> Tensor:
    """The mean distance of two different rows of a part."""
    parts = x.split(TOGETHER)
    return torch.stack([torch.pdist(part).mean() for part in parts if len(part) > 1]).mean()


def resampled(drawn: Draws, seed: int) -> Tensor:
    """As many draws, by their weights, in random order."""
    if drawn.log_weights is None:
        return drawn.x
    generator = torch.Generator().manual_seed(seed)
    weights = drawn.log_weights.softmax(0)
    return drawn.x[torch.multinomial(weights, len(weights), True, generator=generator)]


def of_weights(log_weights: Tensor) -> dict[str, float]:
    """Scores of log weights (n,)."""
    n = len(log_weights)
    total = log_weights.logsumexp(0)
    return {
        "elbo": float(log_weights.mean()),
        "elbo_se": float(log_weights.std()) / math.sqrt(n),
        "log_z": float(total) - math.log(n),
        "ess": float((2 * total - (2 * log_weights).logsumexp(0)).exp()) / n,
        "k_hat": float(pareto_k(log_weights[:, None])[0]),
        "largest": float((log_weights.max() - total).exp()) * n,
    }


def of_modes(modes: Modes, x: Tensor) -> dict[str, float]:
    """Scores of where draws (n, dim) are."""
    truth = modes.probabilities.double()
    share = torch.bincount(modes.of(x), minlength=len(truth)).double() / len(x)
    return {
        "mode_distance": float((share - truth).abs().sum()) / 2,
        "modes": float((share >= truth / 10).double().mean()),
    }


def scores_of(
    target: Target, fitted: Fitted, reference: Reference, seed: int, n: int = DRAWS
) -> dict[str, float]:
    """All scores by name."""
    began = time.process_time()
    drawn = fitted.draw(n, seed)
    scores = {"draw_seconds": time.process_time() - began}
    scores |= {"fit_seconds": fitted.seconds, "updates": fitted.updates}
    if drawn.log_weights is not None:
        scores |= of_weights(drawn.log_weights)
    if "log_z" in scores and reference.log_z is not None:
        scores["log_z_error"] = scores["log_z"] - reference.log_z
        scores["reference_se"] = reference.log_z_se
    x = resampled(drawn, seed)
    # draws of chains are in their order
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    scores["energy"] = reference.energy(x[order])
    scores["energy_raw"] = reference.energy(drawn.x[order])
    scores["floor"] = reference.energy(reference.other)
    if target.modes is not None:
        scores |= of_modes(target.modes, x)
    return scores


def reference_of(target: Target, seed: int) -> Reference:
    """Exact draws, or those of the long runs."""
    if target.exact is not None and target.log_z is not None:
        return Reference(target.exact(2 * DRAWS, seed), target.log_z)
    from tests.benchmarks.densities.references import reference

    kept = reference(target.name)
    return Reference(kept.x, kept.log_z, kept.log_z_se)


def main() -> None:
    from tests.benchmarks.densities import targets
    from tests.benchmarks.densities.methods import METHODS

    name, method, seed, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    pyro.enable_validation(False)
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # the first one loads modules
    target = targets.target(name)
    reference = reference_of(target, seed + 2 * OTHER)
    fitted = METHODS[method](target, seconds, seed)
    scores = scores_of(target, fitted, reference, seed + OTHER)
    Path(sys.argv[5]).write_text(json.dumps(scores))


if __name__ == "__main__":
    main()
