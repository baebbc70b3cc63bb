"""How often a walk through the code moves from one file of the repository into another.

    python -m tests.benchmarks.moves --arrows 20

A *move* is a call of the repository's Python code by that of another file of it, properties and
comprehensions included, whatever code of others lies between the two. Walks are counted the second
time, when what is kept for good is there.
"""

from __future__ import annotations

import argparse
import collections
import sys
from collections.abc import Callable
from types import FrameType

import torch

from inference.settings.options import Training
from inference.settings.plan import Plan
from pyro_mdm import MDM_ELBO
from pyro_mdm.automatic import AutoMDM
from pyro_mdm.measurements import Mask, condition_on_measurements
from tests.benchmarks.operations import ROOT, program

PARTS = tuple(f"{ROOT / part}/" for part in ("pyro_mdm", "models", "inference"))
Walk = Callable[[], object]
Place = tuple[str, str]
"""A file, and a function in it."""


def moves(walk: Walk) -> collections.Counter[tuple[Place, Place]]:
    """The number of moves of a walk between each two places."""
    arrows: collections.Counter[tuple[Place, Place]] = collections.Counter()

    def place(frame: FrameType) -> Place:
        return frame.f_code.co_filename.removeprefix(f"{ROOT}/"), frame.f_code.co_qualname

    def step(frame: FrameType, event: str, _: object) -> None:
        if event != "call" or not frame.f_code.co_filename.startswith(PARTS):
            return
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(PARTS):
            caller = caller.f_back
        if caller is not None and caller.f_code.co_filename != frame.f_code.co_filename:
            arrows[place(caller), place(frame)] += 1

    sys.setprofile(step)
    try:
        walk()
    finally:
        sys.setprofile(None)
    return arrows


def walks() -> dict[str, Walk]:
    problem, model, guide = Plan.from_settings(Training(guide="cld")).build()
    loss, x = MDM_ELBO()(model, guide), problem.to_model_space(problem.train[:16])
    seen = torch.ones(1, 8, 8, dtype=torch.bool)
    given = condition_on_measurements(model, Mask(seen), x[0].flatten(), 0.1, data=x)
    learned = Training(guide="learned")
    return {
        "--guide learned to a kernel": lambda: (
            Plan.from_settings(learned).build()[1].diffusion.marginal(0.5)
        ),
        "data to a loss": lambda: loss(x),
        "a sample given a measurement": torch.no_grad()(lambda: given(batch_size=1)),
        "a program to AutoMDM and a draw": lambda: AutoMDM(program)(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arrows", type=int, default=5, help="how many arrows are shown")
    number = parser.parse_args().arrows
    for name, walk in walks().items():
        walk()
        counts = moves(walk)
        files = {file for arrow in counts for file, _ in arrow}
        print(f"{name}: {counts.total()} moves in {len(files)} files")
        for (start, end), n in counts.most_common(number):
            print(f"  {n:5d}  {' '.join(start)} > {' '.join(end)}")
