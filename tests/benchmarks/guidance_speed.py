"""The cost of guidance relative to plain sampling: processor time of the same steps.

    python -m tests.benchmarks.guidance_speed digits --summary docs/measured/data

Plain and guided samples are drawn in turn, several times, and medians are compared. What is
measured once for a model, before the first image, is counted apart.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from inference.drawing.observations import TASKS
from inference.folders.loading import load_trained
from inference.restore import contexts_of_images
from models import ImageProblem
from pyro_mdm.measurements import condition_on_measurements
from pyro_mdm.measurements.covariance import reference
from pyro_mdm.samplers import StochasticExponentialIntegrator
from tests.benchmarks.documented import write

OWN: dict[str, Any] = {"covariance_from": -float("inf")}


def seconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


@torch.no_grad()
def measured(options: argparse.Namespace) -> tuple[pd.DataFrame, float]:
    """A row for each task, and the seconds of what is measured once."""
    programs = load_trained(Path(options.run))[1]
    problem = programs.problem
    assert isinstance(problem, ImageProblem)
    n = options.images
    model = programs.given(contexts_of_images(problem, n, None)[0]).model
    model.sampler = StochasticExponentialIntegrator(options.steps)
    train, test = (problem.to_model_space(problem.part(part).data) for part in ("train", "test"))
    once = seconds(lambda: reference(model, train))
    rows = []
    for task, make in TASKS.items():
        operator = make(problem.event_shape)
        obs = operator(test[:n].double())
        drawn: dict[str, Any] = {"plain": model}
        three = OWN | {"max_iterations": 3}
        for name, more in (("default", {}), ("own_1", OWN), ("own_3", three)):
            made = condition_on_measurements(model, operator, obs, 0.05**2, data=train, **more)
            made.sampler = model.sampler
            drawn[name] = made
        times: dict[str, list[float]] = {name: [] for name in drawn}
        for _ in range(options.repeats):
            for name, one in drawn.items():
                times[name].append(seconds(lambda one=one: one(batch_size=n)))  # type: ignore[misc]
        middle = {name: statistics.median(values) for name, values in times.items()}
        ratios = [b / a for a, b in zip(times["plain"], times["default"], strict=True)]
        rows.append(
            {
                "task": task,
                "plain": 1e3 * middle["plain"] / (n * options.steps),
                "default": middle["default"] / middle["plain"],
                "default_least": min(ratios),
                "default_most": max(ratios),
                **{name: middle[name] / middle["plain"] for name in ("own_1", "own_3")},
            }
        )
    return pd.DataFrame(rows), once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run of images, or the name of a trained model")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--summary", type=Path, help="folder of the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table, once = measured(options)
    print(table.to_string(index=False), f"\nonce {once:.2f} s")
    if options.summary:
        notes = [
            f"{options.images} images at a time, {options.steps} steps; plain is the milliseconds "
            "of the processor for an image and a step without a measurement; default is times "
            "that, of medians, and the least and largest of single repeats; own_1 and own_3 are by "
            "the network's covariance at every level, in one direction and in three, each of which "
            f"takes a call more; what is measured once for the model took {once:.2f} seconds"
        ]
        command = (
            f"python -m tests.benchmarks.guidance_speed {options.run} --summary {options.summary}"
        )
        write(options.summary / "measurements-speed.csv", table, [command], "none", notes=notes)


if __name__ == "__main__":
    main()
