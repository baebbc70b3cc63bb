"""Short runs without what takes most of their time: figures, most of sampling, waiting for disks.

The picture of samples shows their bytes instead, so that it still tells samples apart.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

STEPS = 2
"""Of a sampler, at most."""

SHORT: dict[str, Any] = {
    "model": "toy",
    "steps": 4,
    "checkpoint_every": 2,
    "measure_every": 4,
    "batch_size": 32,
    "warmup": 1,
    "draws": 1,
    "test_size": 32,
    "num_samples": 8,
    "sampler_steps": 4,
    "accelerator": "cpu",
}
"""Options of a run of four steps."""


def be_brief(patch: pytest.MonkeyPatch, *, figures: bool = False) -> None:
    """Until the patch is undone; with ``figures`` they are drawn, of few samples."""
    from inference import sample, table
    from inference.drawing import sampling
    from inference.machine import environment
    from inference.training import report
    from pyro_mdm.plots import figures as drawing
    from pyro_mdm.samplers import base as samplers
    from pyro_mdm.tables import density, table as library

    for name in () if figures else ("draw_training", "draw_end"):
        patch.setattr(report, name, lambda *arguments: None)
    if not figures:
        patch.setattr(report, "compare_with_rows", _draw_alone)
    patch.setattr(report, "COMPARED", 8)
    patch.setattr(report, "POINTS", 8)
    patch.setattr(report, "SAMPLES", 2)
    patch.setattr(report, "SAMPLER_CALLS", (2, 3))
    patch.setattr(drawing, "Figure", _without_layout)
    patch.setattr(samplers, "KNOTS", 32)
    for name, number in (("PILOT", 8), ("LEAST", 16), ("MOST", 64)):
        patch.setattr(density, name, number)
    for module in (table, sample, library):
        patch.setattr(module, "DRAW_STEPS", STEPS)
    # of reports alone: programs draw what they are asked for
    patch.setattr(report, "pictures", _Except(report.pictures, picture=_picture))
    patch.setattr(report, "sampling", _Except(report.sampling, draw=_quickly(sampling.draw)))
    patch.setattr(environment, "_packages", _once(environment._packages))
    patch.setattr(environment, "_git", _once_of_each(environment._git))
    patch.setattr(os, "fsync", lambda descriptor: None)


class _Except:
    """A module, but for some of its names."""

    def __init__(self, module: Any, **others: Any) -> None:
        self.__dict__.update(others, _module=module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _draw_alone(run: Any, writer: Any, programs: Any, step: int) -> None:
    """The samples of a table as their bytes, without a comparison."""
    from inference.training import report

    report.draw_samples(run, writer, programs, step)


def be_brief_here() -> None:
    """For good, in a process of its own."""
    be_brief(pytest.MonkeyPatch())


def _quickly(draw: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def few_steps(*arguments: Any, steps: int = 256, **options: Any) -> torch.Tensor:
        return draw(*arguments, steps=min(steps, STEPS), **options)

    return few_steps


def _without_layout(size: tuple[float, float], **options: object) -> Figure:
    """Constrained layout is most of what a figure takes."""
    return Figure(size, dpi=50)


def _picture(problem: object, x: torch.Tensor, **options: object) -> torch.Tensor:
    return x.flatten(1).contiguous().view(torch.uint8).expand(3, -1, -1)


@functools.cache
def _once(function: Callable[[], object]) -> Callable[[], object]:
    found = function()
    return lambda: found


@functools.cache
def _once_of_each(function: Callable[..., object]) -> Callable[..., object]:
    return functools.cache(function)
