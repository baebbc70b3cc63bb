"""Modules that keep their precision, copies of them, evaluation mode, compiled functions, and
what is computed once for a tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from operator import attrgetter
from types import FunctionType
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = [
    "CompiledFunction",
    "Exact",
    "ExactBuffers",
    "cached_on",
    "evaluating",
    "in_eval_mode",
    "of_part",
    "replace",
    "writes",
]

F = TypeVar("F", bound=Callable[..., object])
T = TypeVar("T")
E = TypeVar("E", bound="Exact")
M = TypeVar("M", bound="ExactBuffers")
N = TypeVar("N", bound=nn.Module)


class Exact(nn.Module):
    """A module that keeps its dtypes when it is cast; moving it to another device moves it."""

    def _apply(self: E, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> E:
        super()._apply(lambda t: t.to(fn(t).device), recurse)
        return self


class ExactBuffers(nn.Module):
    """A module whose buffers keep their dtypes when it is cast."""

    def _apply(self: M, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> M:
        exact = {name: b for name, b in self._buffers.items() if b is not None}
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            moved = self._buffers[name]
            if moved is not None and not buffer.is_meta:
                self._buffers[name] = buffer.to(moved.device)
        return self


def replace(module: N, **parts: Any) -> N:
    """A copy of a module with these parts replaced; it shares all else, parameters included.

    Args:
        module: the module.
        parts: values by name: modules and buffers replace those of the module; other attributes are
            set.
    """
    copy = object.__new__(type(module))
    copy.__dict__.update(module.__dict__)
    for kind in ("_modules", "_buffers", "_parameters"):
        copy.__dict__[kind] = dict(module.__dict__[kind])
    modules, buffers = copy.__dict__["_modules"], copy.__dict__["_buffers"]
    for name, value in parts.items():
        if isinstance(value, nn.Module):
            modules[name] = value
        elif name in buffers:
            buffers[name] = value
        else:
            modules.pop(name, None)
            copy.__dict__[name] = value
    return copy


class _OfPart:
    def __init__(self, owner: str) -> None:
        self.owner = owner

    def __set_name__(self, whole: type, name: str) -> None:
        owner, read = self.owner, attrgetter(f"{self.owner}.{name}")

        def write(whole: object, value: object) -> None:
            setattr(getattr(whole, owner), name, value)

        setattr(whole, name, property(read, write))


def of_part(owner: str) -> Any:
    """A member of a class that is the member of that name of one of its parts, to read and to set.

    For example ``prior = of_part("base")``.

    Args:
        owner: name of the attribute that holds the part.
    """
    return _OfPart(owner)


@contextmanager
def in_eval_mode(*programs: object) -> Iterator[None]:
    """A context with ``programs`` that are modules in evaluation mode; their mode is restored."""
    modules = [program for program in programs if isinstance(program, nn.Module)]
    training = [m for module in modules for m in module.modules() if m.training]
    for submodule in training:
        submodule.training = False
    try:
        yield
    finally:
        for submodule in training:
            submodule.training = True


@contextmanager
def evaluating(*programs: object) -> Iterator[None]:
    """A context like :func:`in_eval_mode`, and without gradients."""
    with in_eval_mode(*programs), torch.no_grad():
        yield


class CompiledFunction(Generic[F]):
    """A function that is compiled whole, once for each shape of data.

    torch counts how often the code of a function was compiled in the whole process, and raises an
    error after eight times. So each shape has a copy of the code.

    Args:
        function: function of tensors, without a closure.
        backend: backend of ``torch.compile``.
        options: further arguments of ``torch.compile``.
    """

    def __init__(self, function: F, backend: str, options: Mapping[str, Any]) -> None:
        self._function, self._backend, self._options = function, backend, options
        self._by_shape: dict[torch.Size, F] = {}

    def __getstate__(self) -> dict[str, object]:
        """The state without what was compiled, which a copy compiles again."""
        return self.__dict__ | {"_by_shape": {}}

    def at(self, shape: torch.Size) -> F:
        """The function for data of a shape."""
        if shape not in self._by_shape:
            f = cast(FunctionType, self._function)
            copied = FunctionType(f.__code__.replace(), f.__globals__, f.__name__, f.__defaults__)
            compiled = torch.compile(
                copied, backend=self._backend, fullgraph=True, dynamic=False, **self._options
            )
            self._by_shape[shape] = cast(F, compiled)
        return self._by_shape[shape]


_cache = WeakTensorKeyDictionary()
"""By tensor, for as long as it lives: its writes, and what was computed from it, by name."""


def writes(tensors: Iterable[Tensor]) -> tuple[tuple[int, int], ...]:
    """Which tensors these are and how often each was written to, but for writes to its ``data``.

    It is known without waiting for a device.
    """
    return tuple((id(t), 0 if t.is_inference() else t._version) for t in tensors)


def cached_on(tensor: Tensor, name: str, compute: Callable[[Tensor], T]) -> T:
    """``compute(tensor)``, by its name, computed again where the tensor was written to.

    It is for buffers, whose numbers Python needs: a device is asked for these once.
    """
    if torch.compiler.is_compiling() or tensor.is_inference():
        return compute(tensor)
    written, values = _cache.get(tensor, (None, {}))
    if written != (now := writes((tensor,))):
        values = {}
        _cache[tensor] = now, values
    if name not in values:
        with torch.inference_mode(False), torch.no_grad():
            values[name] = compute(tensor)
    value: T = values[name]
    return value
