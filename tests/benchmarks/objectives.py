r"""Other objectives of the paper beside the library's: their variance for equal work; run by hand.

    python -m tests.benchmarks.objectives --runs runs/auxiliary --tables docs/measured/data

All estimate the diffusion term, ½ ∫ E ‖s_θ - ∇ log q(y_s | x)‖²_{g²} ds, once a constant that is
known is taken off, at times of low discrepancy over the batch:

- *log volume*: the library's, the hybrid objective at times uniform in κ = log det Σ - 2 ∫ tr A.
- *VPSDE's times*: the hybrid objective at the paper's importance times.
- *even times*: the hybrid objective at times uniform in s.
- *not hybrid*: conditional on v_0 too, with y_s ~ N(M (x, v_0), P) and the target of that law. It
  is more by ½ ∫ tr(g² P^{-1}) - tr(g² Σ^{-1}) ds, by which both laws' log volumes differ. Its times
  are uniform in its own, log det P - 2 ∫ tr A. For K = 1 it is the library's.
- *implicit*: ½ ‖s_θ‖²_{g²} + ∇·(g² s_θ), less by ½ ∫ tr(g² Σ^{-1}) ds = ½ (κ(T) - κ(ε)) a
  dimension, with one Hutchinson probe, of s_θ + Σ^{-1} y, whose rest is known.
- *implicit, plain*: the same with a probe of all of s_θ.

The scores are the exact one of a Gaussian mixture, of which one added weight is the parameter, and
noise predictions of digits after 400 steps. *Work* is the variance of a gradient times the
processor time of the loss with its gradient, less is better, as a multiple of the library's.

Source of the objectives: Singhal, Goldstein & Ranganath, ICLR 2023, Theorem 1; Hyvärinen,
"Estimation of Non-Normalized Statistical Models by Score Matching", 2005.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from inference.experiment import TABLES, train_all
from inference.folders.loading import load_trained
from pyro_mdm import (
    CLD,
    VPSDE,
    LearnedDiffusion,
    LinearDiffusion,
    NoisePrediction,
    randomness,
)
from pyro_mdm.diffusions.closed import volume_growth
from pyro_mdm.diffusions.kernels import inverse_tril
from pyro_mdm.diffusions.matrices import apply_matrix, outer
from pyro_mdm.paths.base import BoundScore
from pyro_mdm.paths.flow import Probes, divergence, with_divergence
from pyro_mdm.scores.base import Score
from tests.benchmarks.frame import Options, Row, Study, main, quartiles
from tests.problems import ExactNoise, GaussianMixture

__all__ = ["OBJECTIVES", "Times", "half_square", "implicit", "not_hybrid"]

BATCH, GROUPS = 128, 8
Objective = Callable[[Score, LinearDiffusion, Tensor], Tensor]
"""Draws of the diffusion term of each datum, (n,) nats, of x (n, *event_shape)."""


class Times(NamedTuple):
    """Times with a density that is even in an increasing function, linear between its knots."""

    knots: Tensor  # (N,) from ε to T
    values: Tensor  # (N,) of the function there

    @classmethod
    @torch.no_grad()
    def of(cls, diffusion: LinearDiffusion, function: Callable[[Tensor], Tensor]) -> Times:
        s = diffusion.way.time_at(torch.linspace(0, 1, 2001, dtype=torch.float64))
        return cls(s, function(s))

    def drawn(self, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Times (n,) of low discrepancy, and one over their density."""
        low, high = self.values[0], self.values[-1]
        at = low + (high - low) * randomness.low_discrepancy(n, device)
        i = (torch.searchsorted(self.values, at) - 1).clamp(0, len(self.knots) - 2)
        slope = (self.values[i + 1] - self.values[i]) / (self.knots[i + 1] - self.knots[i])
        return self.knots[i] + (at - self.values[i]) / slope, (high - low) / slope


@cache
def even_times(diffusion: LinearDiffusion) -> Times:
    """Times uniform in s; kept for a diffusion, which is not to change."""
    return Times.of(diffusion, lambda s: s)


@cache
def times_given_start(diffusion: LinearDiffusion) -> tuple[Times, Tensor]:
    """Times uniform in log volume given x and v_0, and by how much more it rises than given x."""
    times = Times.of(diffusion, lambda s: volume_given_start(diffusion, s))
    ends = times.values[[0, -1]] - diffusion.log_volume.ends.detach()
    return times, ends.diff()


def volume_given_start(diffusion: LinearDiffusion, s: Tensor) -> Tensor:
    """log det P - 2 ∫ tr A, like s: the log volume given x and v_0."""
    return diffusion.transition(s).log_det - 2 * volume_growth(diffusion, s, torch.zeros_like(s))


def half_square(diffusion: LinearDiffusion, error: Tensor, s: Tensor) -> Tensor:
    """½ ‖error‖²_{g²}, (n,), of a state (n, K, *event_shape)."""
    pull = apply_matrix(diffusion.noise_covariance(s), error)
    return 0.5 * (error * pull).flatten(1).sum(1)


def log_volume(score: Score, diffusion: LinearDiffusion, x: Tensor) -> Tensor:
    return score.diffusion_term(diffusion, x)[0]


def by_vpsde(score: Score, diffusion: LinearDiffusion, x: Tensor) -> Tensor:
    score.times = "vpsde"
    try:
        return score.diffusion_term(diffusion, x)[0]
    finally:
        score.times = "log_volume"


def by_even_times(score: Score, diffusion: LinearDiffusion, x: Tensor) -> Tensor:
    s, weight = even_times(diffusion).drawn(len(x), x.device)
    law = diffusion.marginal(s)
    noise = randomness.normal((len(x), diffusion.num_variables, *x.shape[1:]), x.dtype, x.device)
    y = outer(law.mean, x) + apply_matrix(law.scale_tril, noise)
    target = -apply_matrix(inverse_tril(law.scale_tril).mT, noise.double())
    return weight * half_square(diffusion, score.score(diffusion, y, s).double() - target, s)


def not_hybrid(score: Score, diffusion: LinearDiffusion, x: Tensor) -> Tensor:
    """The objective conditional on v_0, less its constant."""
    times, more = times_given_start(diffusion)
    s, weight = times.drawn(len(x), x.device)
    step, shape = diffusion.transition(s), (len(x), diffusion.num_variables, *x.shape[1:])
    start = torch.zeros_like(diffusion.initial_covariance)
    start[1:, 1:] = torch.linalg.cholesky(diffusion.initial_covariance[1:, 1:])
    begin = apply_matrix(start, randomness.normal(shape, x.dtype, x.device))
    begin = torch.cat([x.unsqueeze(1), begin[:, 1:]], 1)
    noise = randomness.normal(shape, torch.float64, x.device)
    y = apply_matrix(step.matrix, begin.double()) + apply_matrix(step.scale_tril, noise)
    target = -apply_matrix(inverse_tril(step.scale_tril).mT, noise)
    theta = score.score(diffusion, y.to(x.dtype), s).double()
    return weight * half_square(diffusion, theta - target, s) - 0.5 * x[0].numel() * more


def implicit(
    score: Score,
    diffusion: LinearDiffusion,
    x: Tensor,
    probes: Probes = 1,
    plain: bool = False,
) -> Tensor:
    """The implicit objective at closed-form draws, less its constant."""
    s = diffusion.way.time_at(randomness.low_discrepancy(len(x), x.device))
    law = diffusion.marginal(s)
    noise = randomness.normal((len(x), diffusion.num_variables, *x.shape[1:]), x.dtype, x.device)
    with torch.enable_grad():
        y = (outer(law.mean, x) + apply_matrix(law.scale_tril, noise)).detach().requires_grad_()
        if plain:
            theta, G = score.score(diffusion, y, s), diffusion.dispersion(None, s).unsqueeze(1)
            spread = divergence(theta.double(), y, G, probes).value
        else:
            theta, spread = with_divergence(BoundScore(diffusion, score), y, s, probes)
    volume = diffusion.log_volume.ends.diff()
    value = half_square(diffusion, theta.double(), s) + spread
    return diffusion.way.speed(s) * value + 0.5 * x[0].numel() * volume


def implicit_plain(score: Score, diffusion: LinearDiffusion, x: Tensor) -> Tensor:
    return implicit(score, diffusion, x, plain=True)


OBJECTIVES: dict[str, Objective] = {
    "log volume": log_volume,
    "VPSDE's times": by_vpsde,
    "even times": by_even_times,
    "not hybrid": not_hybrid,
    "implicit": implicit,
    "implicit, plain": implicit_plain,
}


# -- variances -------------------------------------------------------------------------------------


class Spread(NamedTuple):
    """Variances of a batch's mean and of its gradient by group of batches, and time in ms."""

    loss: Tensor  # (GROUPS,) nats² per datum
    gradient: Tensor  # (GROUPS,) summed over parameters
    milliseconds: float


def spread(
    objective: Objective,
    score: Score,
    diffusion: LinearDiffusion,
    data: Callable[[], Tensor],
    batches: int,
) -> Spread:
    parameters = [p for p in score.parameters() if p.requires_grad]
    losses, gradients, times = [], [], []
    for _ in range(GROUPS):
        values, total, square = [], [torch.zeros_like(p) for p in parameters], 0.0
        for _ in range(batches):
            x = data()
            began = time.process_time()
            loss = objective(score, diffusion, x).mean()
            found = torch.autograd.grad(loss, parameters)
            times.append(time.process_time() - began)
            values.append(float(loss.detach()))
            torch._foreach_add_(total, list(found))
            square += float(sum(g.double().square().sum() for g in found))
        mean = float(sum((t.double() / batches).square().sum() for t in total))
        losses.append(float(torch.tensor(values, dtype=torch.float64).var()))
        gradients.append((square - batches * mean) / (batches - 1))
    return Spread(
        torch.tensor(losses), torch.tensor(gradients), 1e3 * float(torch.tensor(times).median())
    )


def rows(
    kind: str,
    name: str,
    score: Score,
    diffusion: LinearDiffusion,
    data: Callable[[], Tensor],
    batches: int,
) -> list[dict[str, Any]]:
    """A row for each objective, beside the library's."""
    torch.manual_seed(0)
    unit = data()[0].numel() * math.log(2)
    found = []
    spreads = {
        label: spread(objective, score, diffusion, data, batches)
        for label, objective in OBJECTIVES.items()
        if label != "not hybrid" or diffusion.num_variables > 1
    }
    ours = spreads["log volume"]
    for label, one in spreads.items():
        row: dict[str, Any] = {"score": kind, "diffusion": name, "objective": label}
        row["loss_deviation"] = float(one.loss.mean().sqrt()) / unit
        row["milliseconds"] = one.milliseconds
        # each group's beside the mean of the library's, so that quartiles show one group's error
        ratio = pd.Series((one.gradient / ours.gradient.mean()).tolist())
        row |= quartiles("gradient_variance", ratio)
        row |= quartiles("work", ratio * (one.milliseconds / ours.milliseconds))
        found.append(row)
        print(row, flush=True)
    return found


def exact(batches: int) -> list[dict[str, Any]]:
    """Rows of the exact score of a mixture in the plane, with one added weight."""
    means = torch.tensor([[-0.8, -0.3], [0.7, 0.5]])
    problem = GaussianMixture([0.4, 0.6], means, torch.diag_embed(torch.full((2, 2), 0.05)))
    seeds = iter(range(10**9))
    found = []
    for name, diffusion in diffusions().items():
        score = NoisePrediction(ExactNoise(problem, diffusion))
        data = lambda: problem.sample(BATCH, next(seeds))  # noqa: E731
        found += rows("exact", name, score, diffusion, data, batches)
    return found


def diffusions() -> dict[str, LinearDiffusion]:
    """Those that are compared, at the ends of the trained runs."""
    ends = {"max_log_snr": 9.0}
    learned = LearnedDiffusion(2, min_log_snr=-10.0, seed=0, **ends)
    return {"vpsde": VPSDE(**ends), "cld": CLD(**ends), "learned2": learned.requires_grad_(False)}


def trained(folder: Path, batches: int) -> list[dict[str, Any]]:
    """Rows of noise predictions of digits, by the first seed of each run."""
    found = []
    chosen = [
        cell
        for cell in TABLES["digits"].cells()
        if cell.score == "noise" and cell.guide in diffusions() and cell.seed == 0
    ]
    train_all(chosen, folder, 1)
    for cell in chosen:
        _, (problem, model, _), _ = load_trained(folder / cell.name)
        x = problem.to_model_space(problem.train)
        model.diffusion.requires_grad_(False)
        data = lambda x=x: x[torch.randint(len(x), (BATCH,))]  # noqa: E731
        score, diffusion = model.score_function, model.diffusion
        found += rows("trained on digits", cell.guide, score, diffusion, data, batches)
    return found


def variances(job: Row, options: Options) -> list[Row]:
    """Rows of all objectives of one kind of score."""
    batches = 2 if options.small else options.batches
    if job["score"] == "exact":
        return exact(batches)
    return trained(options.runs, batches)


STUDIES = {
    "objectives-variance": Study(
        variances,
        [{"score": "exact"}, {"score": "trained on digits"}],
        notes=[
            f"batches of {BATCH}, {GROUPS} groups",
            "Deviations of a batch's mean in bits/dim; time of a processor, with the gradient",
            "Variance and work are multiples of the library's; brackets are quartiles over groups",
        ],
    )
}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=Path, default=Path("runs/auxiliary"), help="their folder")
    parser.add_argument("--batches", type=int, default=20, help="in each of 8 groups")


if __name__ == "__main__":
    main("objectives", __doc__, STUDIES, arguments)
