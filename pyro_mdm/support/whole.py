"""Functions of tensors that ``torch.compile`` takes whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import torch

__all__ = ["WholeFunction"]


class WholeFunction:
    """A function that is compiled whole, once for each shape of data.

    torch counts how often the code of a function was compiled in the whole process, and raises an
    error after eight times. So each shape has a copy of the code.

    Args:
        function: function of tensors, without a closure.
        backend: backend of ``torch.compile``.
        options: further arguments of ``torch.compile``.
    """

    def __init__(
        self, function: Callable[..., Any], backend: str, options: Mapping[str, object]
    ) -> None:
        self._function: Any = function
        static = {"backend": backend, "fullgraph": True, "dynamic": False}
        self._options: dict[str, Any] = {**static, **options}
        self._by_shape: dict[torch.Size, Callable[..., Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """The state without what was compiled, which a copy compiles again."""
        return self.__dict__ | {"_by_shape": {}}

    def at(self, shape: torch.Size) -> Callable[..., Any]:
        """The function for data of a shape."""
        if shape not in self._by_shape:
            f = self._function
            copied = FunctionType(f.__code__.replace(), f.__globals__, f.__name__, f.__defaults__)
            self._by_shape[shape] = torch.compile(copied, **self._options)
        return self._by_shape[shape]
