"""The programs as tests run them: on small problems, whole, or stopped on the way."""

from __future__ import annotations

import dataclasses
import json
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from inference.folders.checkpoints import Checkpoint, latest_checkpoint, save_checkpoint
from inference.folders.metrics import Metrics

ROOT = Path(__file__).parents[2]

# a file of a user's own; the fixture ``tiny`` has written it
TINY = """
import torch
from models.base import ImageProblem, Problem
from pyro_mdm.networks import MLP


class Tiny(Problem):
    name = "tiny"
    event_shape = (2,)
    max_log_snr = 9.0
    steps = 6
    batch_size = 16
    hidden = 8
    size, shift = 200, 0.5

    def load(self):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.size, 2, generator=generator) * torch.tensor([1.0, 0.3])
        return x + self.shift

    def network(self, inputs, outputs):
        return MLP(inputs, hidden=self.hidden, depth=1, out_features=outputs)


class Wide(Tiny):
    hidden = 12


class Moved(Tiny):
    shift = 0.6


class Squares(ImageProblem):
    name = "squares"
    event_shape = (1, 4, 4)
    num_levels = 37  # not multiples of a power of two: half precision would move them
    form = "logits"
    max_log_snr = 7.0
    steps = 6
    batch_size = 16
    networks = {
        "tiny": {"base": 8, "multipliers": (1, 2), "dropout": 0.1},
        "plain": {"base": 8, "multipliers": (1, 2)},
    }

    def load(self):
        generator = torch.Generator().manual_seed(0)
        return torch.randint(37, (200, 1, 4, 4), generator=generator, dtype=torch.uint8)
"""


class Stopped(BaseException):
    """Training ended where a test wants it to end."""


def run_program(name: str, *arguments: object) -> None:
    """Run a program's ``__main__`` in this process."""
    words = [f"{name}.py", *map(str, arguments)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        runpy.run_path(str(ROOT / "inference" / f"{name}.py"), run_name="__main__")


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Of what was printed."""
    return capsys.readouterr().out.rstrip("\n").splitlines()[-1]


def stop_after(step: int, patch: pytest.MonkeyPatch) -> None:
    """End training once the objective of ``step`` is logged and before its checkpoint."""
    log: Callable[..., None] = Metrics.log

    def stopping(self: Metrics, at: int, part: str, values: Any) -> None:
        log(self, at, part, values)
        if at == step and part == "objective":
            raise Stopped

    patch.setattr(Metrics, "log", stopping)


@contextmanager
def stopped_after(step: int) -> Iterator[None]:
    """Training in this block ends as :func:`stop_after` says."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        stop_after(step, patch)
        yield


def assert_resumes(step: int, folder: Path, **options: Any) -> Any:
    """A run that is stopped after a step and resumed is the one that was not, bit for bit.

    Returns the bound of the latter, which stays in the folder ``whole``.
    """
    from inference.train import train  # which not every test waits for

    bound = train(**options, run=folder / "whole")
    with stopped_after(step):
        train(**options, run=folder / "stopped")
    assert 0 < latest_checkpoint(folder / "stopped" / "checkpoints").step < step
    train(resume=folder / "stopped")
    assert_same_run(folder / "whole", folder / "stopped")
    return bound


def rewrite(run: Path, **changes: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change ``tensors`` or ``state`` of a run's newest checkpoint, with the right checksums."""
    checkpoint = latest_checkpoint(run / "checkpoints")
    new = {name: change(getattr(checkpoint, name)) for name, change in changes.items()}
    save_checkpoint(run / "checkpoints", dataclasses.replace(checkpoint, **new))


def checkpoint(step: int) -> Checkpoint:
    """A small checkpoint, another for each step."""
    generator = torch.Generator().manual_seed(step)
    tensors = {
        "model/w": torch.randn(9, 7, generator=generator),
        "model/Q": torch.randn(2, 2, generator=generator, dtype=torch.float64),
        "optimizer/w/step": torch.tensor(float(step)),
    }
    return Checkpoint(step, tensors, {"sum": 0.1 + step, "note": "λ" * 50, "config": {"lr": 1e-3}})


def without(*names: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A state without some of its entries."""
    return lambda state: {name: value for name, value in state.items() if name not in names}


def assert_same_run(one: Path, other: Path) -> None:
    """The same weights, losses, results and samples, bit for bit."""
    first, second = (latest_checkpoint(p / "checkpoints") for p in (one, other))
    assert first.step == second.step and first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[name]), name
    tables = [pd.read_csv(p / "metrics.csv").drop(columns="seconds") for p in (one, other)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    results = [json.loads((p / "results.json").read_text()) for p in (one, other)]
    for result in results:
        del result["seconds"], result["sha256"]
    assert results[0] == results[1]
    assert (one / "samples.png").read_bytes() == (other / "samples.png").read_bytes()
