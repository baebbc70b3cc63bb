"""One process or several, on any accelerator, by lightning.fabric.

    torchrun --nproc_per_node 2 -m inference.train --model cifar10
    torchrun --nproc_per_node 2 -m inference.evaluate runs/cifar10-learned-0-0

The same command without ``torchrun`` is one process. (torchrun has an option ``--run`` too; write
``torchrun --nproc_per_node 2 -m -- inference.train --run …`` for ours.) Mixed precision is for the
network alone: data, noise, kernels and the bound keep theirs.
"""

from __future__ import annotations

import inspect
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

import torch
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.precision import MixedPrecision

T = TypeVar("T")

Precision = Literal["32-true", "bf16-mixed", "16-mixed", "64-true"]
SinglePrecision = Literal["32-true", "bf16-mixed", "16-mixed"]
"""Precisions of a network whose weights are float32."""

DTYPES: dict[str, torch.dtype | None] = {
    "32-true": None,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
    "64-true": None,
}
"""The precision to which the network alone is cast, for :class:`pyro_mdm.scores.Score`."""

SMALLEST_SCALE = 1e-4  # of a float16 loss; below it no gradient fits

TIMEOUT = timedelta(hours=2)
"""The time that processes wait for each other, as the first draws samples and figures alone."""


def start(accelerator: str = "auto", precision: str = "32-true") -> Fabric:
    """The processes that ``torchrun`` started, connected, or this one alone."""
    from lightning_fabric import Fabric  # takes as long as torch to import
    from lightning_fabric.accelerators import ACCELERATOR_REGISTRY
    from lightning_fabric.strategies import DDPStrategy

    if precision not in DTYPES:
        raise ValueError(
            f"--precision is {precision!r}, expected one of {', '.join(DTYPES)}; kernels are "
            "always float64"
        )
    accelerators = {"auto", "gpu", *ACCELERATOR_REGISTRY.available_accelerators()}
    if accelerator not in accelerators:
        raise ValueError(
            f"--accelerator is {accelerator!r}, expected one of {', '.join(sorted(accelerators))}"
        )
    accelerator = _device_type(accelerator)
    world = _size("WORLD_SIZE", 1)
    if world > 1 and "LOCAL_RANK" not in os.environ:
        raise ValueError(
            f"WORLD_SIZE is {world}, but this process was not started by torchrun; use torchrun "
            "--nproc_per_node N -m inference.train, or unset WORLD_SIZE"
        )
    local = _size("LOCAL_WORLD_SIZE", world)
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


def _size(name: str, usual: int) -> int:
    """A number of processes that torchrun puts into the environment, which also has their ranks."""
    size, rank = (os.environ.get(one, "") for one in (name, name.replace("WORLD_SIZE", "RANK")))
    number = int(size or usual) if re.fullmatch(r"\d{0,6}", size) else 0
    if number < 1 or (usual > 1 and usual % number):
        expected = f"a divisor of WORLD_SIZE, {usual}" if usual > 1 else "a positive number"
        raise ValueError(
            f"{name} is {size!r}, expected {expected}; start several processes by torchrun, or "
            f"unset {name}"
        )
    if rank and not (re.fullmatch(r"\d{1,6}", rank) and int(rank) < number):
        ranked = name.replace("WORLD_SIZE", "RANK")
        raise ValueError(
            f"{ranked} is {rank!r}, expected a number from 0 to {number - 1}, below {name}; start "
            f"several processes by torchrun, or unset {ranked}"
        )
    return number


def _constant_buffers() -> dict[str, Any]:
    """DDP's option not to send buffers at every step, by its name in this torch."""
    options = inspect.signature(DistributedDataParallel).parameters
    new = "forward_sync_buffers" in options
    return {"forward_sync_buffers" if new else "broadcast_buffers": False}


def _device_type(accelerator: str) -> str:
    """The device that "auto" stands for, which must have float64 for kernels."""
    if accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return "cuda" if accelerator == "gpu" else accelerator


def _loss_scaling(accelerator: str) -> MixedPrecision:
    """Fabric's loss scaling without its autocast, which would cast data and bound too."""
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
    """The scale of a float16 loss."""

    scaler: Any

    @property
    def state(self) -> dict[str, Any]:
        """The state that a checkpoint keeps."""
        return {} if self.scaler is None else dict(self.scaler.state_dict())

    def load(self, state: dict[str, Any]) -> None:
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state)

    @property
    def value(self) -> float:
        """The factor, which falls where a step was left out because gradients overflowed."""
        return 1.0 if self.scaler is None else float(self.scaler.get_scale())

    @property
    def may_fall(self) -> bool:
        """Whether the scale can be the cause of gradients that overflow."""
        return self.scaler is not None and self.value > SMALLEST_SCALE


def loss_scale(fabric: Fabric) -> LossScale:
    """The scale of the loss; there is none without mixed float16."""
    from lightning_fabric.plugins.precision import MixedPrecision

    precision = fabric.strategy.precision
    return LossScale(precision.scaler if isinstance(precision, MixedPrecision) else None)


ENDING = [getattr(signal, n) for n in ("SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, n)]
"""The signals beside Ctrl-C that ask a program to end; HUP is that of a terminal that is closed."""


class Stopped(SystemExit):
    """The program was stopped by a signal; the exit status is 128 + signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.args[0] - 128).name}"


@dataclass
class Signals:
    """The signal that asked this process to stop, 0 if none has."""

    number: int = 0


@contextmanager
def catch_signals() -> Iterator[Signals]:
    """Record Ctrl-C and :data:`ENDING` instead of interrupting; a second Ctrl-C does so at once.

    Signals are caught in the main thread alone, and those that are ignored, as by nohup, stay so.
    """
    caught = Signals()

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and caught.number:
            raise KeyboardInterrupt
        caught.number = number

    with _handled([signal.SIGINT, *ENDING], note):
        yield caught


@contextmanager
def raised_signals() -> Iterator[None]:
    """Raise :data:`ENDING` as :class:`Stopped`, so that what is unfinished is removed.

    A second one ends the process at once.
    """

    def end(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)
        raise Stopped(number)

    with _handled(ENDING, end):
        yield


@contextmanager
def _handled(
    numbers: list[int], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Signals by this handler, in the main thread; those that are ignored stay so."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in numbers}
    heard = [n for n in before if n == signal.SIGINT or before[n] is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])
