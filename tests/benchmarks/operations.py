"""How many operations a step takes beside its network, and how often it waits for the host.

    python -m tests.benchmarks.operations
    python -m tests.benchmarks.operations --who "loss, CLD"

Operations are those that torch dispatches, forward and backward, in the second step or later. Those
of the network are counted by calling it again for the inputs that it had. A *wait* is an operation
after which a GPU has to be asked before Python can go on: a number that Python reads, a comparison
of tensors, a shape that depends on values, the check of a factorization. It is counted on the CPU;
copies of numbers from Python to a device are not seen here. A *call* of a sampler is the difference
between runs of 30 and of 20 steps, without what is done once for a grid.

``--who`` prints the lines that wait, and those that the most operations come from.
"""

from __future__ import annotations

import argparse
import collections
import csv
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_mdm import (
    CLD,
    MDM,
    MDM_ELBO,
    VPSDE,
    Denoiser,
    DiffusionGuide,
    DiffusionModel,
    LearnedDiffusion,
    NoisePrediction,
    bound,
    condition,
)
from pyro_mdm.automatic import AutoMDM
from pyro_mdm.evaluation import log_likelihood
from pyro_mdm.measurements import condition_on_measurements
from pyro_mdm.networks import MLP, UNet
from pyro_mdm.samplers import ExponentialIntegrator

WAITS = {
    "aten::_local_scalar_dense": "number",
    "aten::equal": "equal",
    "aten::nonzero": "nonzero",
    "aten::masked_select": "nonzero",
    "aten::_unique2": "nonzero",
    "aten::unique_dim": "nonzero",
    "aten::_linalg_check_errors": "factorization",
    "aten::linalg_eig": "factorization",
    "aten::linalg_eigvals": "factorization",
    "aten::_linalg_eigvals": "factorization",
    "aten::_linalg_eigh": "factorization",
    "aten::_linalg_svd": "factorization",
}
"""The kinds of waits, by operation."""
KINDS = tuple(dict.fromkeys(WAITS.values()))
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Counts:
    """Operations of a step, and its waits by kind."""

    operations: int = 0
    network: int = 0
    waits: collections.Counter[str] = field(default_factory=collections.Counter)
    waiting: collections.Counter[str] = field(default_factory=collections.Counter)
    """Lines that wait."""
    working: collections.Counter[str] = field(default_factory=collections.Counter)
    """Lines that operations come from."""

    @property
    def beside(self) -> int:
        """Operations beside those of the network."""
        return self.operations - self.network

    def a_call(self, shorter: Counts, steps: int) -> Counts:
        """What one step takes that this run has more of than a shorter one."""

        def less(many: collections.Counter[str], few: collections.Counter[str]) -> Any:
            return collections.Counter(
                {name: -(-(n - few[name]) // steps) for name, n in many.items() if n > few[name]}
            )

        return Counts(
            -(-(self.operations - shorter.operations) // steps),
            (self.network - shorter.network) // steps,
            less(self.waits, shorter.waits),
            less(self.waiting, shorter.waiting),
            less(self.working, shorter.working),
        )


class _Operations(TorchDispatchMode):
    """Counts what torch dispatches."""

    def __init__(self, counts: Counts, lines: bool) -> None:
        super().__init__()
        self.counts, self.lines = counts, lines

    def __torch_dispatch__(
        self, func: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name
        kind = WAITS.get(name)
        if name in ("aten::index", "aten::index_put", "aten::index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        ):
            kind = "nonzero"
        self.counts.operations += 1
        if kind is not None:
            self.counts.waits[kind] += 1
        if self.lines:
            line = _line()
            self.counts.working[line] += 1
            if kind is not None:
                self.counts.waiting[f"{kind:14s} {line}"] += 1
        return func(*args, **kwargs or {})


class _Reads(TorchFunctionMode):
    """Counts lists of numbers, which are no operation on the CPU."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(
        self, func: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in (Tensor.tolist, Tensor.numpy):
            self.counts.waits["number"] += 1
            self.counts.waiting[f"{'number':14s} {_line()}"] += 1
        return func(*args, **kwargs or {})


def _line() -> str:
    """The innermost lines of this repository that are running."""
    frames = [
        f"{Path(frame.filename).relative_to(ROOT)}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_stack()[:-2]
        if frame.filename.startswith(f"{ROOT}/") and frame.filename != __file__
        and "/.venv/" not in frame.filename
    ]
    return " < ".join(frames[::-1][:3]) or "backward"


@contextmanager
def _recorded(network: nn.Module) -> Iterator[list[tuple[Any, ...]]]:
    """Calls of a network: whether they had gradients, and their arguments."""
    calls: list[tuple[Any, ...]] = []

    def hook(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        inputs = [a.detach().requires_grad_(a.requires_grad) for a in args]
        calls.append((out.requires_grad, *inputs))

    handle = network.register_forward_hook(hook)
    try:
        yield calls
    finally:
        handle.remove()


def counted(step: Callable[[], object], network: nn.Module, *, lines: bool = False) -> Counts:
    """Counts of a step and of the network's calls in it.

    Args:
        step: a function that takes a step, with its backward pass where it has one.
        lines: whether to count lines too, which takes longer.
    """
    counts, alone = Counts(), Counts()
    with _recorded(network) as calls, _Reads(counts), _Operations(counts, lines):
        step()
    for with_gradients, *args in calls:
        with torch.set_grad_enabled(with_gradients), _Operations(alone, False):
            out = network(*args)
        if with_gradients:
            with _Operations(alone, False):
                out.backward(out)
    counts.network = alone.operations
    return counts


# -- steps -----------------------------------------------------------------------------------------

Step = Callable[[], object]


def moved(*modules: nn.Module) -> None:
    """Moves all parameters, as an optimizer does between steps."""
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter.add_(1e-4)


def unet(channels: int = 1) -> UNet:
    """The network of digits."""
    return UNet(channels, 1, lean=True)


def loss_step(diffusion: Any, score: Any, side: int = 8) -> tuple[Step, nn.Module]:
    """A loss and its gradients for 64 images."""
    model = DiffusionModel(diffusion, score, event_shape=(1, side, side))
    loss, x = MDM_ELBO()(model, DiffusionGuide(diffusion)), torch.rand(64, 1, side, side) * 2 - 1

    def step() -> None:
        moved(model)
        loss(x).backward()

    return step, score.network
