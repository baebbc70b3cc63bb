"""What follows from parameters or buffers alone, computed once for as long as these stay as they
are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["Recalled", "Remembering", "kept", "of_tensor", "shared", "shared_ends", "writes"]

R = TypeVar("R", bound="Remembering")
T = TypeVar("T")

_of_tensors: Any = WeakTensorKeyDictionary()
"""By tensor, for as long as it lives: its writes, and what was computed from it, by name."""


class _Shared(threading.local):
    """What a thread has computed within :func:`shared_ends`; None outside."""

    values: dict[tuple[int, Any], Any] | None = None


_shared = _Shared()


@contextmanager
def shared_ends() -> Iterator[None]:
    """A block in which the kernels at learned ends are computed once, gradients included.

    Use it around one loss and its gradients; what it keeps ends with the block.
    """
    outer, _shared.values = _shared.values, {}
    try:
        yield
    finally:
        _shared.values = outer


def shared(owner: object, name: Hashable, compute: Callable[[], T]) -> T:
    """``compute()``, evaluated once within :func:`shared_ends`.

    Args:
        owner, name: what identifies the value; the name is hashable.
    """
    if (values := _shared.values) is None:
        return compute()
    if (id(owner), name) not in values:
        values[id(owner), name] = owner, compute()  # held, so that no other comes to its place
    value: T = values[id(owner), name][1]
    return value


def kept(owner: object, name: str, compute: Callable[[], T]) -> T:
    """``compute()``, by :meth:`Remembering.kept` where the owner remembers."""
    return owner.kept(name, compute) if isinstance(owner, Remembering) else compute()


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
    if written != (now := writes((tensor,))):
        values = {}
        _of_tensors[tensor] = now, values
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
        last, now = self._last, (key, writes(tensors))  # one look, as another thread may write
        if last is None or last[0] != now:
            with torch.inference_mode(False), torch.no_grad():
                # the tensors are held, so that no others come to their places
                last = self._last = now, tensors, compute(*tensors)
        value: T = last[2]
        return value


class Remembering(nn.Module):
    """A module that keeps what it has computed from its parameters, by name, until one changes."""

    _seen: tuple[object, list[Tensor]] | None = None
    """The writes to the parameters, and copies of them, that all kept values are of."""

    def __init__(self) -> None:
        super().__init__()
        self._cache: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """The state without cached values, so that a copy computes from its own matrices."""
        return self.__dict__ | {"_cache": {}, "_seen": None}

    def is_learned(self) -> bool:
        """Whether any parameter is learned."""
        return any(p.requires_grad for p in self.parameters())

    def kept(self, name: str, compute: Callable[[], T]) -> T:
        """A quantity that depends on the parameters alone, kept until a parameter changes.

        A value that carries a gradient is kept within :func:`shared_ends` only. Where parameters
        were written to, they count as changed, without a look; where not, they are compared, as
        their ``data`` may have been, but once within a block.
        """
        if torch.is_grad_enabled() and self.is_learned():
            return shared(self, name, compute)
        self._look()
        cache = self._cache  # which another thread may replace
        if name not in cache:
            with torch.inference_mode(False), torch.no_grad():
                cache[name] = compute()
        value: T = cache[name]
        return value

    def _look(self) -> None:
        """Forget all values if a parameter has changed."""
        parameters = list(self.parameters())
        state, seen = writes(parameters), self._seen
        looked_at = ("unchanged", state)
        written = seen is None or seen[0] != state
        if seen is not None and not written:  # their data may have been
            written = not shared(
                self, looked_at, lambda: all(map(torch.equal, seen[1], parameters))
            )
        if not written:
            return
        self._cache = {}
        self._seen = state, [p.detach().clone() for p in parameters]
        if _shared.values is not None:
            _shared.values[id(self), looked_at] = self, True

    def forget(self) -> None:
        """Forget all values, which anything beside the parameters has changed."""
        self._cache = {}
        self._seen = None  # copies that may be on another device

    def _apply(self: R, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> R:
        self.forget()
        super()._apply(fn, recurse)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.forget()
        super()._load_from_state_dict(*args, **kwargs)
