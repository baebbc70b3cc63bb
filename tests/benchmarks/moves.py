"""How often a walk through the code moves from one file of the repository into another.

    python -m tests.benchmarks.moves
    python -m tests.benchmarks.moves --arrows 20 --functions

A *move* is a call of Python code of the repository by code of another file of it, properties and
comprehensions included, and whatever of torch, Pyro or Python lies between the two. Walks are taken
a second time, when what is kept for good is there. Printed are moves, files, and the arrows between
files, or functions of them, that have most of them.
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
Arrows = collections.Counter[tuple[str, str]]


def moves(walk: Callable[[], object], *, functions: bool = False) -> Arrows:
    """The number of moves of a walk between each two files, or functions of two files."""
    arrows = Arrows()

    def place(frame: FrameType) -> str:
        file = frame.f_code.co_filename.removeprefix(f"{ROOT}/")
        return f"{file} {frame.f_code.co_qualname}" if functions else file

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


def guide_to_kernel() -> object:
    return Plan.of(Training(guide="learned")).build().model.diffusion.marginal(0.5)


def walks() -> dict[str, Callable[[], object]]:
    problem, model, guide = Plan.of(Training(guide="cld")).build()
    loss, x = MDM_ELBO()(model, guide), problem.to_model_space(problem.train[:16])
    seen = torch.ones(1, 8, 8, dtype=torch.bool)
    given = condition_on_measurements(model, Mask(seen), x[0].flatten(), 0.1, data=x)
    return {
        "--guide learned to kernel": guide_to_kernel,
        "data to loss": lambda: loss(x),
        "a sample given a measurement": torch.no_grad()(lambda: given(batch_size=1)),
        "a program to AutoMDM and a draw": lambda: AutoMDM(program)(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arrows", type=int, default=5, help="how many arrows are shown")
    parser.add_argument("--functions", action="store_true", help="arrows between functions")
    options = parser.parse_args()
    for name, walk in walks().items():
        walk()
        files = {file for arrow in moves(walk) for file in arrow}
        arrows = moves(walk, functions=options.functions)
        print(f"{name}: {sum(arrows.values())} moves in {len(files)} files")
        for (start, end), n in arrows.most_common(options.arrows):
            print(f"  {n:5d}  {start} > {end}")


if __name__ == "__main__":
    main()
