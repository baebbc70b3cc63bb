"""Modules that keep their precision, copies that share parameters, and evaluation mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["Exact", "ExactBuffers", "evaluating", "in_eval_mode", "of_part", "replace"]

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
        owner = attrgetter(self.owner)

        def write(whole: object, value: object) -> None:
            setattr(owner(whole), name, value)

        # the getter of operator is no call of Python: members are read in every step
        setattr(whole, name, property(attrgetter(f"{self.owner}.{name}"), write))


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
    training = [
        submodule
        for program in programs
        if isinstance(program, nn.Module)
        for submodule in program.modules()
        if submodule.training
    ]
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
