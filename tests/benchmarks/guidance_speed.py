"""The cost of guidance relative to plain sampling: processor time of the same steps.

    python -m tests.benchmarks.guidance_speed --run digits --tables docs/measured/data

Plain and guided samples of 64 images are drawn in turns, and medians are compared. What is measured
once for a model, before the first image, is not counted.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from inference.drawing.observations import TASKS
from inference.folders.loading import load_trained
from inference.restore import contexts_of_images
from models import ImageProblem
from pyro_mdm.measurements import condition_on_measurements
from pyro_mdm.samplers import StochasticExponentialIntegrator
from tests.benchmarks.frame import Options, Row, Study, in_turns, main

OWN: dict[str, Any] = {"covariance_from": -float("inf")}
GUIDED: dict[str, dict[str, Any]] = {
    "default": {},
    "own_1": OWN,
    "own_3": OWN | {"max_iterations": 3},
}
STEPS, TURNS = 20, 7


@torch.no_grad()
def measured(job: Row, options: Options) -> Row:
    """Milliseconds of plain sampling for an image and a step, and ratios to it."""
    programs = load_trained(Path(options.run))[1]
    problem, n = programs.problem, 2 if options.small else 64
    assert isinstance(problem, ImageProblem)
    model = programs.given(contexts_of_images(problem, n, None)[0]).model
    model.sampler = StochasticExponentialIntegrator(STEPS)
    train, test = (problem.to_model_space(problem.part(part).data) for part in ("train", "test"))
    operator = TASKS[job["task"]](problem.event_shape)
    drawn: dict[str, Any] = {"plain": model}
    for name, more in GUIDED.items():
        obs = operator(test[:n].double())
        drawn[name] = condition_on_measurements(model, operator, obs, 0.05**2, data=train, **more)
        drawn[name].sampler = model.sampler
    works = {name: lambda one=one: one(batch_size=n) for name, one in drawn.items()}
    times = in_turns(works, TURNS)
    middle, ratios = times.median(), times.default / times.plain
    row = {"plain": middle.plain / (n * STEPS), "default": middle.default / middle.plain}
    row |= {"default_least": ratios.min(), "default_most": ratios.max()}
    return row | {name: middle[name] / middle.plain for name in ("own_1", "own_3")}


NOTE = (
    "64 images at a time, 20 steps; plain is the milliseconds of the processor for an image and a "
    "step without a measurement; default is times that, of medians, and the least and largest of "
    "single repeats; own_1 and own_3 are by the network's covariance at every level, in one "
    "direction and in three, each of which takes a call more"
)
STUDIES = {"measurements-speed": Study(measured, [{"task": task} for task in TASKS], notes=[NOTE])}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", default="digits", help="a run of images, or a trained model")


if __name__ == "__main__":
    main("guidance_speed", __doc__, STUDIES, arguments)
