"""One process or several, on any accelerator: what programs need of lightning.fabric.

    torchrun --nproc_per_node 2 -m inference.train --model cifar10
    torchrun --nproc_per_node 2 -m inference.evaluate runs/cifar10-learned-0-0

The same command without ``torchrun`` is one process. (torchrun takes ``--run`` for an option of its
own, but not after ``--``: ``torchrun --nproc_per_node 2 -m -- inference.train --run …``.) Mixed
precision is the network's alone: data, noise, kernels and the bound stay as they are, so that
levels are exact and nothing cancels.
"""

from __future__ import annotations

import inspect
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.precision import MixedPrecision

T = TypeVar("T")

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]

DTYPES: dict[str, torch.dtype | None] = {
    "32-true": None,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
}
SMALLEST_SCALE = 1e-4  # of a float16 loss; below it no gradient fits

TIMEOUT = timedelta(hours=2)
"""The time that processes wait for each other: the first draws samples and figures alone."""


def start(accelerator: str = "auto", precision: str = "32-true") -> Fabric:
    """The processes that ``torchrun`` started, joined, or this one alone."""
    from lightning_fabric import Fabric  # takes as long as torch to import
    from lightning_fabric.accelerators import ACCELERATOR_REGISTRY
    from lightning_fabric.strategies import DDPStrategy

    if precision not in DTYPES:
        raise ValueError(
            f"--precision is {precision!r}, expected one of {', '.join(DTYPES)}; kernels are "
            "always float64"
        )
    known = {"auto", "gpu", *ACCELERATOR_REGISTRY.available_accelerators()}
    if accelerator not in known:
        raise ValueError(
            f"--accelerator is {accelerator!r}, expected one of {', '.join(sorted(known))}"
        )
    accelerator = _device_type(accelerator)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and "LOCAL_RANK" not in os.environ:
        raise ValueError(
            f"WORLD_SIZE is {world}, but this process was not started by torchrun; use torchrun "
            "--nproc_per_node N -m inference.train, or unset WORLD_SIZE"
        )
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    strategy: Any = "auto" if world == 1 else DDPStrategy(timeout=TIMEOUT, **_constant_buffers())
    plugins: Any = None
    if precision == "16-mixed":
        plugins = _loss_scaling(accelerator)
    try:
        fabric = Fabric(
            accelerator=accelerator,
            devices=local,
            num_nodes=world // local,
            strategy=strategy,
            plugins=plugins,
        )
    except RuntimeError as error:
        raise ValueError(f"--accelerator {accelerator} with {local} processes: {error}") from error
    fabric.launch()
    return fabric


def autocast_dtype(precision: str) -> torch.dtype | None:
    """The precision that the network computes in, for :class:`pyro_mdm.scores.Score`."""
    return DTYPES[precision]


def _constant_buffers() -> dict[str, Any]:
    """DDP's option not to send buffers at every step, by the name that this torch has for it."""
    options = inspect.signature(DistributedDataParallel).parameters
    new = "forward_sync_buffers" in options
    return {"forward_sync_buffers" if new else "broadcast_buffers": False}


def _device_type(accelerator: str) -> str:
    """The device that "auto" stands for: kernels are float64, which not every one has."""
    if accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return "cuda" if accelerator == "gpu" else accelerator


def _loss_scaling(accelerator: str) -> MixedPrecision:
    """Fabric's loss scaling without its autocast, which would cover data and bound too."""
    from lightning_fabric.plugins.precision import MixedPrecision

    class LossScaling(MixedPrecision):
        def forward_context(self) -> AbstractContextManager[None]:
            return nullcontext()

        def convert_input(self, data: T) -> T:
            return data

        def convert_output(self, data: T) -> T:
            return data

    return LossScaling("16-mixed", accelerator)


@dataclass(frozen=True)
class LossScale:
    """The scale of a float16 loss, as far as training must know it."""

    scaler: Any

    @property
    def state(self) -> dict[str, Any]:
        """Numbers of it that a checkpoint keeps."""
        return {} if self.scaler is None else dict(self.scaler.state_dict())

    def load(self, state: dict[str, Any]) -> None:
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state)

    @property
    def value(self) -> float:
        """The factor; it falls where a step was left out because gradients overflowed."""
        return 1.0 if self.scaler is None else float(self.scaler.get_scale())

    @property
    def may_fall(self) -> bool:
        """Whether gradients that overflow can be the scale's fault."""
        return self.scaler is not None and self.value > SMALLEST_SCALE


def loss_scale(fabric: Fabric) -> LossScale:
    """The scale of the loss under ``fabric``; without mixed float16 there is none."""
    from lightning_fabric.plugins.precision import MixedPrecision

    precision = fabric.strategy.precision
    return LossScale(precision.scaler if isinstance(precision, MixedPrecision) else None)


class Stopped(SystemExit):
    """Training was asked to stop, saved its state and ends; the exit status is 128 + signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


@dataclass
class Signals:
    """The signal that asked this process to stop, 0 if none has."""

    number: int = 0


@contextmanager
def catch_signals() -> Iterator[Signals]:
    """A note of SIGTERM and Ctrl-C in place of an interrupt; a second Ctrl-C interrupts at once.

    Outside of the main thread signals are not caught.
    """
    caught = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and caught.number:
            raise KeyboardInterrupt
        caught.number = number

    before = {n: signal.signal(n, note) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
