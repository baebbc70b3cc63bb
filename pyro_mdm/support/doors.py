"""The door of public functions: arguments are of the kinds that their annotations say.

:func:`checked_arguments` holds every argument of a call to its annotation, once, before the
function runs. So an annotation is the one text of what an argument is, and what is wrong ends in a
sentence with the value, the expectation and, from the docstring, what the argument is. Shapes,
ranges and entries are checked by the functions of :mod:`pyro_mdm.support.checks`.
"""

from __future__ import annotations

import builtins
import functools
import inspect
import math
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Annotated, Any, Literal, SupportsFloat, TypeVar, cast

import torch
from torch import Tensor, nn

from pyro_mdm.support.checks import check_counts, check_seed, describe, not_a_tensor

__all__ = ["Count", "Several", "checked_arguments"]

F = TypeVar("F", bound=Callable[..., Any])
Count = Annotated[int, 1]
"""A whole number from 1 on."""
Several = Annotated[int, 2]
"""A whole number from 2 on."""


def checked_arguments(function: F) -> F:
    """A function that refuses arguments of other kinds than their annotations.

    Args:
        function: the function, or the ``__init__`` of a class; with its annotations.

    Raises:
        TypeError: by the function, an argument of another kind.
        ValueError: by the function, NaN for a number, a number below that of a :data:`Count`, or
            a string, such as another word than one of a ``Literal``.

    Example:
        >>> @checked_arguments
        ... def half(number: float) -> float:
        ...     return number / 2
        >>> half(3)
        1.5
        >>> half("3")
        Traceback (most recent call last):
        ValueError: number is '3', expected a number; see half
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def door(*args: Any, **kwargs: Any) -> Any:
        hints = _hints(function)
        given = signature.bind(*args, **kwargs).arguments
        for name, value in given.items():
            parameter = signature.parameters[name]
            if name in hints and value is not parameter.default:
                several = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
                if not several:
                    _check(function, name, value, hints[name])
        return function(*args, **kwargs)

    return cast(F, door)


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function by parameter."""
    names = function.__globals__
    return {
        name: eval(text, names, _NotLoaded(names)) if isinstance(text, str) else text
        for name, text in function.__annotations__.items()
        if name != "return"
    }


class _NotLoaded(dict[str, Any]):
    """Names that a module imports for types alone: those of pandas if it is loaded, else any."""

    def __init__(self, loaded: Mapping[str, Any]) -> None:
        super().__init__()
        self._loaded = loaded

    def __missing__(self, name: str) -> Any:
        if name in self._loaded or hasattr(builtins, name):
            raise KeyError(name)
        pandas = sys.modules.get("pandas")
        if name == "pd" and pandas:
            return pandas
        return pandas.DataFrame if name == "DataFrame" and pandas else _NotSeen


class _NotSeen:
    """A class of which nothing is seen here, with or without arguments in brackets."""

    def __class_getitem__(cls, _: object) -> type[_NotSeen]:
        return cls


def _check(function: Callable[..., Any], name: str, value: object, hint: object) -> None:
    if name == "seed" and isinstance(value, Integral):
        check_seed(name, value)
        return
    if fits(value, hint):
        if name.endswith("shape") and isinstance(value, Sequence):
            check_counts({name: min(value, default=1)}, "a size of a tensor")
        return
    what = f"{name} is {describe(value)}"
    if hint is Tensor and not isinstance(value, Tensor):
        raise TypeError(f"{name} is {not_a_tensor(name, value)}")
    for place, one, kind in _entries(value, hint):
        if not fits(one, kind):
            what, hint, value = f"{name}[{place!r}] is {describe(one)}", kind, one
            break
    if fits(value, int) and (least := _least(hint)) is not None:
        raise ValueError(f"{what}, expected at least {least}; {_described(function, name)}")
    expected = in_words(hint)
    whole = isinstance(value, float) and value.is_integer() and WORDS[int] in expected
    write = f"; write {value:.0f}" if whole else ""
    if isinstance(value, type) and hint in value.__mro__:
        write = f", an object of it: {value.__name__}(…)"
    is_number = isinstance(value, float) and math.isnan(value)
    kind_of_error = ValueError if is_number or isinstance(value, str) else TypeError
    raise kind_of_error(f"{what}, expected {expected}{write}; {_described(function, name)}")


def _least(hint: object) -> int | None:
    """The least whole number of an annotation by a :data:`Count`, or one of these or None."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = typing.get_args(hint) if union else (hint,)
    return next((k.__metadata__[0] for k in kinds if typing.get_origin(k) is Annotated), None)


def _entries(value: object, hint: object) -> Iterator[tuple[object, object, Any]]:
    """The entries of a dict or a sequence of the right kind, with their places and annotations."""
    origin, kinds = typing.get_origin(hint), typing.get_args(hint)
    if not isinstance(origin, type) or not isinstance(value, origin) or isinstance(value, str):
        return
    if isinstance(value, Mapping):
        yield from ((place, one, kinds[1]) for place, one in value.items())
    elif isinstance(value, Sequence):
        yield from ((place, one, kinds[0]) for place, one in enumerate(value))


def _described(function: Callable[..., Any], name: str) -> str:
    """What a parameter is, by the docstring of its function."""
    called = function.__qualname__.removesuffix(".__init__")
    owner = function.__globals__.get(called.partition(".")[0])
    for text in (function.__doc__, getattr(owner, "__doc__", None)):
        if match := re.search(rf"^ +(?:\w+, )*{name}(?:, \w+)*: ([^;.]*?)[;.]", text or "", re.M):
            words = re.sub(r":\w+:|[`~]", "", match[1])
            return f"it is {' '.join(words.split())}"
    return f"see {called}"


def fits(value: object, hint: object) -> bool:
    """Whether a value is of an annotation, as far as it can be seen without a computation."""
    origin, kinds = typing.get_origin(hint), typing.get_args(hint)
    if hint in (Any, object, _NotSeen) or isinstance(hint, TypeVar | str):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, kind) for kind in kinds)
    if origin is Annotated:
        return fits(value, int) and cast(int, value) >= kinds[1]
    if hint in (None, type(None)):
        return value is None
    if origin is Literal:
        return any(type(value) is type(kind) and value == kind for kind in kinds)
    if hint in SCALARS:
        return SCALARS[hint](value)
    if origin is type:
        return isinstance(value, type)
    if origin is Callable or origin is typing.get_origin(Callable[..., Any]):
        return callable(value)
    return _fits_class(value, origin or hint, kinds)


def _fits_class(value: object, kind: object, kinds: tuple[Any, ...]) -> bool:
    if not isinstance(kind, type):
        return True
    if getattr(kind, "_is_protocol", False):
        return not isinstance(value, type) and all(hasattr(value, name) for name in _members(kind))
    if issubclass(kind, nn.Module) and kind is nn.Module:
        return callable(value) and not isinstance(value, type)  # functions are networks
    if not isinstance(value, kind) or (isinstance(value, str) and kind is not str):
        return False
    if issubclass(kind, Mapping) and kinds:
        return all(fits(one, kinds[1]) for one in cast(Mapping[Any, Any], value).values())
    if issubclass(kind, tuple) and kinds and kinds[-1] is not ...:
        several = cast(tuple[Any, ...], value)
        return len(several) == len(kinds) and all(map(fits, several, kinds))
    if kind is not Iterable and issubclass(kind, Sequence) and kinds:
        return all(fits(one, kinds[0]) for one in cast(Sequence[Any], value))
    return True


def _members(protocol: type) -> list[str]:
    names = {*vars(protocol), *getattr(protocol, "__annotations__", ())}
    return [name for name in names if not name.startswith("_")]


def _is_number(value: object) -> bool:
    if isinstance(value, bool | str) or not isinstance(value, SupportsFloat):
        return False
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex()
    return float(value) == float(value)


SCALARS: dict[Any, Callable[[object], bool]] = {
    bool: lambda value: type(value).__name__ in ("bool", "bool_"),
    int: lambda value: isinstance(value, Integral) and not isinstance(value, bool),
    float: _is_number,
    str: lambda value: isinstance(value, str),
    Tensor: lambda value: isinstance(value, Tensor) and not value.is_complex(),
}
WORDS: dict[object, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a string",
    Tensor: "a Tensor of real numbers",
    nn.Module: "a torch.nn.Module",
    os.PathLike: "a path",
    torch.dtype: "a torch.dtype",
}


def in_words(hint: object) -> str:
    """What an annotation expects, in words."""
    origin, kinds = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(in_words(kind) for kind in kinds)
    if hint in (None, type(None)):
        return "None"
    if origin is Annotated:
        return in_words(kinds[0])
    if origin is Literal:
        return "one of " + ", ".join(map(str, kinds))
    if (origin or hint) in WORDS:
        return WORDS[origin or hint]
    if origin is typing.get_origin(Callable[..., Any]):
        return "a function"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"a dict of {_plural(kinds[1])} by name"
    if isinstance(origin, type) and issubclass(origin, tuple | Sequence):
        return f"a sequence of {_plural(kinds[0])}"
    return f"a {getattr(origin or hint, '__name__', hint)}"


def _plural(hint: object) -> str:
    noun, link, rest = in_words(hint).partition(" of ")
    return " or ".join(f"{re.sub('^an? ', '', one)}s" for one in noun.split(" or ")) + link + rest
