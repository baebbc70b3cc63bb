"""Scores of draws from a posterior, in a process of its own.

    python -m tests.benchmarks.arena.scores FOLDER

reads the problem in the folder and a method's answer to it, and writes ``scores.json``, one score
by name for each observation.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests.benchmarks.arena.classifiers import accuracies
from tests.benchmarks.arena.methods import Answer, Problem

Numbers = NDArray[np.float32]
FOLDS = 5
LEVEL = 0.9
"""Of the intervals whose coverage is measured."""


def c2st(reference: Numbers, draws: Numbers, folds: int = FOLDS, seed: int = 1) -> float:
    """The accuracy of a classifier that tells draws (n, d) from as many of the reference.

    It is ½ if both have one distribution. As ``sbibm.metrics.c2st`` of Lueckmann et al. (AISTATS
    2021) has it, the classifier is a network of two hidden layers of 10 d units, and numbers are
    standardized by the reference. Each fold is a fifth of the draws, which the others train for.

    Args:
        folds: how many of the five folds are scored.
        seed: of the folds and the classifier.
    """
    from sklearn.model_selection import KFold

    center, scale = reference.mean(0), reference.std(0, ddof=1)
    x = ((np.concatenate([reference, draws]) - center) / scale).astype(np.float32)
    y = np.repeat([0, 1], [len(reference), len(draws)])
    split = list(KFold(FOLDS, shuffle=True, random_state=seed).split(x))
    return float(accuracies(x, y, split[:folds], seed).mean())


def covered(draws: Numbers, truth: Numbers) -> Numbers:
    """Whether central intervals have the true parameters in them, (n, d), 0 or 1.

    Args:
        draws: (n, m, d). An interval has the right coverage if the number of ranks that there can
            be, m + 1, is a multiple of 20.
        truth: (n, d).
    """
    from pyro_mdm.posteriors import ranks

    by_draw = torch.from_numpy(draws).transpose(0, 1)
    rank = ranks(by_draw, torch.from_numpy(truth)).numpy()
    places = draws.shape[1] + 1
    out = round(places * (1 - LEVEL) / 2)
    return ((rank >= out) & (rank < places - out)).astype(np.float32)


def mean_and_error(values: Numbers) -> tuple[float, float]:
    """The mean of independent values, and its standard error."""
    values = values.astype(np.float64)
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)


def scores_of(problem: Problem, answer: Answer) -> list[dict[str, Any]]:
    """Scores for each observation; those of new simulations and of time are the same for all."""
    same: dict[str, Any] = dict(answer.seconds)
    if answer.of_new is not None:
        by_simulation = covered(answer.of_new, problem.new_theta).mean(1)
        same["coverage"], same["coverage_se"] = mean_and_error(by_simulation)
    each = []
    for k, reference in enumerate(problem.references):
        own = dict(same)
        own["c2st"] = c2st(reference[: problem.draws], answer.draws[k], problem.folds)
        if answer.log_prob is not None:
            own["log_prob"], own["log_prob_se"] = mean_and_error(answer.log_prob[k])
        each.append(own)
    return each


def main() -> None:
    folder = Path(sys.argv[1])
    scores = scores_of(Problem.load(folder), Answer.load(folder))
    (folder / "scores.json").write_text(json.dumps(scores))


if __name__ == "__main__":
    main()
