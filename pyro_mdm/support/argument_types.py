"""Types of the arguments of public functions, which are those that their annotations say.

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
from itertools import repeat
from numbers import Integral
from typing import Annotated, Any, Literal, NoReturn, SupportsFloat, TypeVar, cast

import torch
from torch import Tensor, nn

from pyro_mdm.support.checks import check_count, check_seed, describe, not_a_tensor

__all__ = ["Count", "Several", "checked_arguments"]

F = TypeVar("F", bound=Callable[..., object])
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
    def checked(*args: object, **kwargs: object) -> object:
        hints = _hints(function)
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            parameter = signature.parameters[name]
            if parameter.kind is parameter.VAR_KEYWORD:
                _check_options(function, value, hints.get(name))
            elif value is parameter.default or name not in hints:
                continue
            elif parameter.kind is not parameter.VAR_POSITIONAL:
                _check(function, name, value, hints[name])
        return function(*args, **kwargs)

    return cast(F, checked)


@functools.cache
def _hints(function: Callable[..., object]) -> dict[str, object]:
    """The annotations of a function by parameter."""
    names = function.__globals__
    return {
        name: eval(text, names, _NotLoaded(names)) if isinstance(text, str) else text
        for name, text in function.__annotations__.items()
        if name != "return"
    }


class _NotLoaded(dict[str, object]):
    """Names that a module imports for types alone: those of pandas if it is loaded, else any."""

    def __init__(self, loaded: Mapping[str, object]) -> None:
        super().__init__()
        self._loaded = loaded

    def __missing__(self, name: str) -> object:
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


def _check_options(
    function: Callable[..., object], options: Mapping[str, object], hint: object
) -> None:
    """Check options by name whose annotation is ``Unpack`` of a TypedDict."""
    kinds = typing.get_args(hint)
    if not kinds or not typing.is_typeddict(kinds[0]):
        return
    hints = typing.get_type_hints(kinds[0], include_extras=True)
    for name, value in options.items():
        if name not in hints:
            called = function.__qualname__
            raise TypeError(f"{name} is no option of {called}, which has {', '.join(hints)}")
        _check(function, name, value, hints[name])


def _check(function: Callable[..., object], name: str, value: object, hint: object) -> None:
    if name == "seed" and isinstance(value, Integral):
        check_seed(name, value)
    elif not fits(value, hint):
        _report(function, name, value, hint)
    elif name.endswith("shape") and isinstance(value, Sequence):
        check_count(name, min(value, default=1), "a size of a tensor")


def _report(function: Callable[..., object], name: str, value: object, hint: object) -> NoReturn:
    what = f"{name} is {describe(value)}"
    if hint is Tensor and not isinstance(value, Tensor):
        raise TypeError(f"{name} is {not_a_tensor(name, value)}")
    for place, entry, kind in _entries(value, hint):
        if not fits(entry, kind):
            what, hint, value = f"{name}[{place!r}] is {describe(entry)}", kind, entry
            break
    if fits(value, int) and (least := _least(hint)) is not None:
        raise ValueError(f"{what}, expected at least {least}; {_described(function, name)}")
    expected = in_words(hint)
    whole = isinstance(value, float) and value.is_integer() and WORDS[int] in expected
    write = f"; write {value:.0f}" if whole else ""
    if isinstance(value, type) and hint in value.__mro__:
        write = f", an object of it: {value.__name__}(…)"
    is_nan = isinstance(value, float) and math.isnan(value)
    kind_of_error = ValueError if is_nan or isinstance(value, str) else TypeError
    raise kind_of_error(f"{what}, expected {expected}{write}; {_described(function, name)}")


def _least(hint: object) -> int | None:
    """The least whole number of an annotation by a :data:`Count`, or one of these or None."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = typing.get_args(hint) if union else (hint,)
    return next((k.__metadata__[0] for k in kinds if typing.get_origin(k) is Annotated), None)


def _entries(value: object, hint: object) -> Iterator[tuple[object, object, object]]:
    """The entries of a dict or a sequence of the right kind, with their places and annotations."""
    origin, kinds = typing.get_origin(hint), typing.get_args(hint)
    if not isinstance(origin, type) or not isinstance(value, origin) or isinstance(value, str):
        return
    if isinstance(value, Mapping):
        yield from ((place, one, kinds[1]) for place, one in value.items())
    elif isinstance(value, Sequence):
        yield from ((place, one, kinds[0]) for place, one in enumerate(value))


def _described(function: Callable[..., object], name: str) -> str:
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
        return True in map(fits, [value] * len(kinds), kinds)
    if origin is Annotated:
        return fits(value, int) and cast(int, value) >= kinds[1]
    if hint in (None, type(None)):
        return value is None
    if origin is Literal:
        return (type(value), value) in zip(map(type, kinds), kinds, strict=True)
    if hint is bool:
        return type(value).__name__ in ("bool", "bool_")
    if hint is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if hint is float and isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex()
    if hint is float:
        if not isinstance(value, SupportsFloat) or isinstance(value, bool | str):
            return False
        return not math.isnan(float(value))
    if hint is Tensor:
        return isinstance(value, Tensor) and not value.is_complex()
    if origin is type:
        return isinstance(value, type)
    if origin is Callable or hint is nn.Module:  # functions are networks
        return callable(value) and not (hint is nn.Module and isinstance(value, type))
    kind: object = origin or hint
    if not isinstance(kind, type):
        return True
    if getattr(kind, "_is_protocol", False):
        names = {*vars(kind), *getattr(kind, "__annotations__", ())}
        public = [name for name in names if not name.startswith("_")]
        return not isinstance(value, type) and all(hasattr(value, name) for name in public)
    if not isinstance(value, kind) or (isinstance(value, str) and kind is not str):
        return False
    if issubclass(kind, Mapping) and kinds:
        return all(map(fits, cast(Mapping[object, object], value).values(), repeat(kinds[1])))
    if issubclass(kind, tuple) and kinds and kinds[-1] is not ...:
        several = cast(tuple[object, ...], value)
        return len(several) == len(kinds) and all(map(fits, several, kinds))
    if kind is not Iterable and issubclass(kind, Sequence) and kinds:
        return all(map(fits, cast(Sequence[object], value), repeat(kinds[0])))
    return True


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
    if origin is Callable:
        return "a function"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"a dict of {_plural(kinds[1])} by name"
    if isinstance(origin, type) and issubclass(origin, tuple | Sequence):
        return f"a sequence of {_plural(kinds[0])}"
    return f"a {getattr(origin or hint, '__name__', hint)}"


def _plural(hint: object) -> str:
    noun, link, rest = in_words(hint).partition(" of ")
    return " or ".join(f"{re.sub('^an? ', '', one)}s" for one in noun.split(" or ")) + link + rest
