"""What follows from parameters alone, computed once for as long as these stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["Remembering", "shared", "shared_ends"]

R = TypeVar("R", bound="Remembering")
T = TypeVar("T")

_shared: dict[tuple[int, Any], Any] | None = None
_training = False
"""Whether the block is one of a step, whose parameters are new."""


@contextmanager
def shared_ends() -> Iterator[None]:
    """A block in which the laws at learned ends are computed once, gradients included.

    Use it around one loss and its gradients; what it keeps ends with the block.
    """
    global _shared, _training
    outer = _shared, _training
    _shared, _training = {}, torch.is_grad_enabled()
    try:
        yield
    finally:
        _shared, _training = outer


def shared(owner: object, name: Hashable, compute: Callable[[], T]) -> T:
    """``compute()``, evaluated once within :func:`shared_ends`.

    Args:
        owner, name: what identifies the value; the name is hashable.
    """
    if _shared is None:
        return compute()
    if (id(owner), name) not in _shared:
        _shared[id(owner), name] = compute()
    value: T = _shared[id(owner), name]
    return value


class Remembering(nn.Module):
    """A module that keeps what it has computed from its parameters, by name, until one changes."""

    def __init__(self) -> None:
        super().__init__()
        self._cache: dict[str, tuple[list[Tensor], Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """The state without cached values, so that a copy computes from its own matrices."""
        return self.__dict__ | {"_cache": {}}

    def is_learned(self) -> bool:
        """Whether any parameter is learned."""
        return any(p.requires_grad for p in self.parameters())

    def kept(self, name: str, compute: Callable[[], T]) -> T:
        """A quantity that depends on the parameters alone, kept until a parameter changes.

        A value that carries a gradient is kept within :func:`shared_ends` only. So is any other of
        a step, whose parameters were changed by the one before.
        """
        learned = self.is_learned()
        if torch.is_grad_enabled() and learned:
            return shared(self, name, compute)
        if learned and _shared is not None and _training:
            with torch.no_grad():
                return shared(self, (name, "as a number"), compute)
        parameters, entry = list(self.parameters()), self._cache.get(name)
        if entry is not None and all(map(torch.equal, entry[0], parameters)):
            value: T = entry[1]
            return value
        with torch.no_grad():
            value = compute()
        self._cache[name] = ([p.detach().clone() for p in parameters], value)
        return value

    def forget(self) -> None:
        """Forget all values, which anything beside the parameters has changed."""
        self._cache.clear()

    def _apply(self: R, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> R:
        self.forget()
        super()._apply(fn, recurse)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.forget()
        super()._load_from_state_dict(*args, **kwargs)
