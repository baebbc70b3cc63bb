"""Images restored from measurements by trained networks: ours beside others' samplers.

    python -m tests.benchmarks.inverse_problems.peers
    python -m tests.benchmarks.measured_images digits --out runs/measured-images.csv
    python -m tests.benchmarks.measured_images digits --out runs/measured-images.csv \
        --summary docs/measured/data

The first makes the environment of the others, the second adds to its file what it has not yet, and
the third writes the table of the documentation. All methods are given the network's E[x | z], which
is not told an image's label. Measurements are those of inference.restore, and random projections,
one for every four pixels. A row is that of an image; scores are described in
inverse_problems/images.py, steps, calls and seconds in tests/benchmarks/measurements.py. What the
decoder of a discrete denoiser asks, a call for each draw, is not counted.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from inference.drawing.observations import TASKS
from inference.folders.loading import load_trained
from pyro_mdm.measurements import LinearOperator, Mask, Matrix
from pyro_mdm.randomness import seed_from
from tests.benchmarks import runs
from tests.benchmarks.environments import python_of
from tests.benchmarks.inverse_problems import summary
from tests.benchmarks.inverse_problems.images import Images
from tests.benchmarks.inverse_problems.methods import COMPARED_BY_IMAGES, METHODS, OF_PEERS
from tests.benchmarks.inverse_problems.peers import ENVIRONMENT
from tests.problems import fixed

__all__ = ["IMAGE_TASKS"]

TASK = ("run", "task", "seed")
CELL = ("method", "budget", "draws")
KEY = (*TASK, *CELL, "image")
SCORES = (
    *("psnr", "psnr_sample", "crps", "inside", "distance"),
    *("steps", "calls", "seconds", "images"),
)


def projections(shape: tuple[int, ...]) -> LinearOperator:
    """Random combinations of all pixels, one for every four."""
    d = math.prod(shape)
    return Matrix(fixed(1, d // 4, d) / math.sqrt(d), shape)


IMAGE_TASKS: dict[str, Callable[[tuple[int, ...]], LinearOperator]] = {
    **{name: TASKS[name] for name in ("deblur", "superresolve", "inpaint")},
    "projections": projections,
}


def images_of(job: runs.Row, options: argparse.Namespace, folder: Path) -> Images:
    """The measured images of a run, whose model is saved in the folder."""
    programs = load_trained(Path(job["run"]))[1]
    problem = programs.problem
    programs.model.save_pretrained(folder / "model")
    truth = problem.to_model_space(problem.part("test")[: options.images].data)
    operator = IMAGE_TASKS[job["task"]](tuple(truth.shape[1:]))
    obs = operator(truth.double()).flatten(1)
    generator = torch.Generator().manual_seed(seed_from(job["seed"], "measurements"))
    obs = obs + options.noise * torch.randn(obs.shape, generator=generator, dtype=torch.float64)
    seen = operator.seen if isinstance(operator, Mask) else torch.zeros(truth.shape[1:]).bool()
    return Images(
        str((folder / "model").absolute()),
        truth.float().numpy(),
        obs.numpy(),
        operator.matrix().double().numpy(),
        ~seen.flatten().numpy(),
        options.noise,
    )


def do(job: runs.Row, rows: runs.Rows, options: argparse.Namespace) -> None:
    """Add the rows of a task that are not there, of methods of one environment."""
    python = python_of(options.environment) if job["of_peers"] else sys.executable
    with runs.folder() as name:
        folder = Path(name)
        images_of(job, options, folder).save(folder)
        (folder / "cells.json").write_text(json.dumps({"cells": job["cells"]}))
        module = "tests.benchmarks.inverse_problems.methods"
        runs.run_process(python, module, [name], options.limit)
        task = {name: job[name] for name in TASK}
        for row in json.loads((folder / "rows.json").read_text()):
            rows.add(task | row | {"images": options.images})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", help="folders, or names of trained models")
    parser.add_argument("--tasks", nargs="+", default=list(IMAGE_TASKS), choices=IMAGE_TASKS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument(
        "--methods",
        nargs="+",
        default=COMPARED_BY_IMAGES,
        choices=list(METHODS),
        metavar="METHOD",
    )
    parser.add_argument(
        "--budgets", nargs="+", default=["200 calls"], help="as for tests.benchmarks.measurements"
    )
    parser.add_argument("--images", type=int, default=24, help="test images, from the first on")
    parser.add_argument("--draws", type=int, default=19, help="of each image")
    parser.add_argument("--noise", type=float, default=0.05, help="standard deviation")
    parser.add_argument("--workers", type=int, default=1, help="processes at a time")
    parser.add_argument("--limit", type=float, default=7200.0, help="seconds of a task")
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT, help="of the others")
    parser.add_argument("--out", type=Path, default=Path("runs/measured-images.csv"))
    parser.add_argument("--summary", type=Path, help="folder of the tables made of --out")
    options = parser.parse_args()
    if options.summary:
        summary.of_images(options.out, options.summary)
        return
    rows, jobs = runs.Rows(options.out, KEY, SCORES), []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for run in options.runs:
            for task in options.tasks:
                own = dict(zip(TASK, (run, task, seed), strict=True))
                cells = [
                    dict(zip(CELL, (method, budget, options.draws), strict=True))
                    for method in options.methods
                    for budget in options.budgets
                ]
                todo = [cell for cell in cells if not rows.has(own | cell | {"image": 0})]
                for peers in (False, True):
                    some = [cell for cell in todo if (cell["method"] in OF_PEERS) == peers]
                    if some:
                        jobs.append(own | {"of_peers": peers, "cells": some})
    failed = runs.do_all(jobs, lambda job: do(job, rows, options), options.workers)
    sys.exit(f"{len(failed)} restorations failed" if failed else 0)


if __name__ == "__main__":
    main()
