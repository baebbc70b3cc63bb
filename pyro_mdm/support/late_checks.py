"""Checks of values of tensors, which no step waits for."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

__all__ = [
    "check_all_finite",
    "check_finite",
    "check_later",
    "check_values",
    "checked_together",
    "finite",
    "settle",
]

Report = Callable[[], object]
"""A function that raises the error of a failed check, or returns where it finds no mistake."""


class Event(Protocol):
    """A signal that the answer of a device has come, such as an event of CUDA."""

    def query(self) -> bool:
        """Whether it has come."""

    def synchronize(self) -> None:
        """Wait for it."""


class _Unread(threading.local):
    """The answers that a thread waits for from a GPU, each with the function that reports a no."""

    def __init__(self) -> None:
        self.answers: list[tuple[Event, Tensor, Report]] = []


_unread = _Unread()


class _Collected(threading.local):
    """The checks of a thread within :func:`checked_together`; None outside."""

    checks: list[tuple[Tensor, Report]] | None = None


_collected = _Collected()


@contextmanager
def checked_together() -> Iterator[None]:
    """A block whose checks of values are one, at its end, in place of a few operations for each.

    The first that fails is reported, also where another error came of it within the block.
    """
    if _collected.checks is not None:
        yield
        return
    checks = _collected.checks = []
    try:
        yield
    except Exception:
        _collected.checks = None
        _report_each(checks)  # wrong values may be what led here
        raise
    finally:
        _collected.checks = None
    sizes = [value for value, _ in checks if value.dtype != torch.bool]
    right = [value for value, _ in checks if value.dtype == torch.bool]
    with torch.no_grad():
        if sizes:
            right.append(torch.stack(torch._foreach_norm(sizes, math.inf)).amax() < math.inf)
        if right:
            check_values(torch.stack(right).all(), partial(_report_each, checks))


def _report_each(checks: list[tuple[Tensor, Report]]) -> None:
    for value, report in checks:
        if not bool(value if value.dtype == torch.bool else finite(value)):
            report()


def _collects(value: Tensor) -> bool:
    """Whether a check joins those of a block, which are of one device and outlive vmap and grad."""
    checks = _collected.checks
    if checks is None or torch._C._functorch.is_functorch_wrapped_tensor(value):
        return False
    return not checks or checks[0][0].device == value.device


def check_values(right: Tensor, report: Report) -> None:
    """A check of values that no step waits for: calls ``report`` unless ``right`` is true.

    On the CPU this is at once, or at the end of :func:`checked_together`. From a GPU the answer is
    read when it has come, by a later check or by :func:`settle`, so that the error is as clear and
    a little late.

    Args:
        right: whether the values are as expected, bool, ().
        report: function that looks at the values and raises the error.
    """
    if torch.compiler.is_compiling():
        return
    if _collects(right):
        _collected.checks.append((right, report))  # type: ignore[union-attr]
        return
    if right.device.type == "cuda":
        answer, event = right.to("cpu", non_blocking=True), torch.cuda.Event()
        event.record(torch.cuda.current_stream(right.device))
        check_later(event, answer, report)
        return
    try:
        torch._assert_async(right)
    except RuntimeError:
        pass  # a no, or the refusal of torch.func for any tensor under vmap
    else:
        return
    if not bool(right):
        report()


def check_all_finite(value: Tensor, report: Report) -> None:
    """:func:`check_values` of whether all entries are finite."""
    if torch.compiler.is_compiling():
        return
    if _collects(value) and value.numel() and value.is_floating_point():
        _collected.checks.append((value, report))  # type: ignore[union-attr]
        return
    check_values(finite(value), report)


def check_finite(name: str, value: Tensor) -> None:
    """Raises ValueError with the first entry that is NaN or infinite, as :func:`check_values`."""
    check_all_finite(value, partial(_report_finite, name, value))


def _report_finite(name: str, value: Tensor) -> None:
    bad = ~value.isfinite()
    if bool(bad.any()):
        where = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"{name} of shape {tuple(value.shape)} holds {value[where].item()} at {where} "
            f"({int(bad.sum())} of {value.numel()} values), expected finite numbers; look for the "
            "data or the sampler's step before"
        )


def check_later(event: Event, answer: Tensor, report: Report) -> None:
    """A check whose answer is still on its way; those that have come are read, the oldest first.

    Args:
        event: event after which the answer may be read.
        answer: whether the values are as expected, bool, (), on the CPU.
        report: function that looks at the values and raises the error.
    """
    _unread.answers.append((event, answer, report))
    while _unread.answers and _unread.answers[0][0].query():
        _read_first()


def settle() -> None:
    """Wait for the answers to all checks of this thread.

    It is called where Python reads a number of the GPU anyway.
    """
    while _unread.answers:
        _unread.answers[0][0].synchronize()
        _read_first()


def _read_first() -> None:
    _, answer, report = _unread.answers.pop(0)
    if bool(answer):
        return
    try:
        report()
    except BaseException:
        _unread.answers.clear()  # the rest may follow from it, and belong to work that is given up
        raise


def finite(value: Tensor) -> Tensor:
    """Whether all entries are finite, bool, 0-dim: the largest size is."""
    if not value.numel() or not (value.is_floating_point() or value.is_complex()):
        return torch.ones((), dtype=torch.bool, device=value.device)
    with torch.no_grad():
        return torch.linalg.vector_norm(value, math.inf) < math.inf
