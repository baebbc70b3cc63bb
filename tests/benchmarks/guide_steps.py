"""The cost of a training step under each diffusion of the table ``linear``; run by hand.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.guide_steps discrete
    OMP_NUM_THREADS=1 python -m tests.benchmarks.guide_steps discrete mnist5k

Processor time of a loss and its gradients for a batch of 64, medians of 7 in turns. The network is
the same for other images of the size.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from inference.measuring.experiment_tables import TABLES
from inference.settings.options import Training
from inference.settings.plan import build
from pyro_mdm import MDM_ELBO


def step_of(options: dict[str, Any]) -> Callable[[], float]:
    """A function that takes a step and returns its processor time in seconds."""
    problem, model, guide = build(Training(**options))
    loss = MDM_ELBO()(model, guide)
    part = problem.part("train")[:64]
    x = problem.to_model_space(part.data)
    given = [] if part.context is None else [part.context]

    def step() -> float:
        began = time.process_time()
        loss(x, *given).backward()
        return time.process_time() - began

    return step


def compare(steps: dict[str, Callable[[], float]], turns: int = 7) -> None:
    """Print medians in turns, and in units of the first."""
    for step in steps.values():
        step()
    times = [{name: step() for name, step in steps.items()} for _ in range(turns)]
    medians = {name: statistics.median(turn[name] for turn in times) for name in steps}
    first = next(iter(medians.values()))
    for name, median in medians.items():
        print(f"{name:18} {1000 * median:6.0f} ms  {median / first:.3f}")


def main(score: str, model: str = "fashion_mnist") -> None:
    table = TABLES["linear"]
    guides = table.guides_of(score).items()
    asked = {"score": score, "model": model}
    compare({name: step_of(table.options | opts | asked) for name, opts in guides})


if __name__ == "__main__":
    main(*sys.argv[1:])
