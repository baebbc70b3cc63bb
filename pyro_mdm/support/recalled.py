"""What follows from tensors, computed once for as long as these stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["Recalled", "of_tensor", "writes"]

T = TypeVar("T")

_of_tensors: Any = WeakTensorKeyDictionary()
"""By tensor, for as long as it lives: its writes, and what was computed from it, by name."""


def writes(tensors: Iterable[Tensor]) -> tuple[tuple[int, int], ...]:
    """Which tensors these are and how often each was written to, but for writes to its ``data``.

    It is known without waiting for a device.
    """
    return tuple((id(t), 0 if t.is_inference() else t._version) for t in tensors)


def of_tensor(tensor: Tensor, name: str, compute: Callable[[Tensor], T]) -> T:
    """``compute(tensor)``, by its name, computed again where the tensor was written to.

    It is for buffers, whose numbers Python needs: a device is asked for these once.
    """
    if torch.compiler.is_compiling() or tensor.is_inference():
        return compute(tensor)
    written, values = _of_tensors.get(tensor, (None, {}))
    if written != tensor._version:
        values = {}
        _of_tensors[tensor] = tensor._version, values
    if name not in values:
        with torch.inference_mode(False), torch.no_grad():
            values[name] = compute(tensor)
    value: T = values[name]
    return value


class Recalled:
    """What follows from some tensors, computed again where one is another or was written to.

    Values with gradients are computed anew, and a copy begins with none.
    """

    _last: tuple[object, tuple[Tensor, ...], Any] | None = None

    def __reduce__(self) -> tuple[type[Recalled], tuple[()]]:
        return Recalled, ()

    def __call__(self, compute: Callable[..., T], *tensors: Tensor, key: Hashable = None) -> T:
        """``compute(*tensors)``; it may depend on ``key`` too."""
        learned = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        if learned or torch.compiler.is_compiling() or any(t.is_inference() for t in tensors):
            return compute(*tensors)
        if self._last is None or self._last[0] != (key, writes(tensors)):
            with torch.inference_mode(False), torch.no_grad():
                # the tensors are held, so that no others come to their places
                self._last = (key, writes(tensors)), tensors, compute(*tensors)
        value: T = self._last[2]
        return value
