"""The kinds of value that annotations of options and records allow: checks, and words for them."""

from __future__ import annotations

import difflib
import functools
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])

SEVERAL, INTEGER = Sequence[Path], "an integer"
WORDS: dict[Any, list[str]] = {
    SEVERAL: ["one path or more"],
    Path: ["a path"],
    bool: ["true", "false"],
    float: ["a number"],
    int: [INTEGER],
    str: ["a name"],
    type(None): [],
}


def kinds_of(hint: object) -> list[str]:
    """The kinds of value of an annotation, in words; null is not named."""
    arguments = typing.get_args(hint)
    if hint in WORDS:
        return WORDS[hint]
    if typing.get_origin(hint) is Literal:
        return [str(argument) for argument in arguments]
    if typing.get_origin(hint) in (list, Sequence):
        return [f"[{in_words(arguments[0])}, …]"]
    if typing.get_origin(hint) is dict:
        return ["names with values"]
    return [kind for argument in arguments for kind in kinds_of(argument)]


def in_words(hint: object) -> str:
    """What an annotation expects, in words."""
    *others, last = kinds_of(hint)
    return " or ".join([", ".join(others), last]) if others else last


def check_types(what: str, values: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Raise TypeError for a value from a file that is not of its annotation, by name."""
    for name, hint in hints.items():
        if name in values and not is_of(values[name], hint):
            raise TypeError(
                f"{what}: {name} is {repr(values[name])[:60]}, expected {in_words(hint)}"
            )


def checked_options(options: type) -> Callable[[F], F]:
    """A decorator of programs that hold their options to annotations, also where Python calls them.

    A path may be a string.

    Args:
        options: the dataclass of all options of the program.

    Raises:
        TypeError: by the program, an option that it does not have, or one of another kind.
    """

    def checked(program: F) -> F:
        signature = inspect.signature(program)

        @functools.wraps(program)
        def door(*args: Any, **kwargs: Any) -> Any:
            hints = typing.get_type_hints(options)
            bound = signature.bind_partial(*args, **kwargs).arguments
            given = {k: v for k, v in bound.items() if k != "options"} | bound.get("options", {})
            for name, value in given.items():
                if name not in hints:
                    near = difflib.get_close_matches(name, hints, n=1)
                    hint = f"did you mean {near[0]}?" if near else "--help lists them"
                    called = program.__name__
                    raise TypeError(f"{name} is no option of {called}, expected one; {hint}")
                if type(value).__name__ == "DataFrame" and name == "data":
                    continue
                given[name] = _checked(name, value, hints[name])
            return program(**given)

        return cast(F, door)

    return checked


def _checked(name: str, value: object, hint: object) -> object:
    """The value of an option, a path for the string of one (TypeError: another kind)."""
    value = value.tolist() if isinstance(value, Tensor) else value
    if not is_of(value, hint):
        raise TypeError(
            f"--{name} is {'null' if value is None else repr(value)[:60]}, expected "
            f"{in_words(hint)}; leave it out for its default"
        )
    return Path(value) if isinstance(value, str) and not is_of_text(hint) else value


def is_of_text(hint: object) -> bool:
    """Whether an annotation allows a string that is no path."""
    kinds = typing.get_args(hint)
    return hint is str or typing.get_origin(hint) is Literal or any(map(is_of_text, kinds))


def is_of(value: object, hint: object) -> bool:
    """Whether a value from a file is of an annotation: as JSON and YAML have it, true is no
    number, and a whole number is one."""
    kinds = typing.get_args(hint)
    if hint is object:
        return True
    if typing.get_origin(hint) is Literal:
        return any(type(value) is type(kind) and value == kind for kind in kinds)
    if typing.get_origin(hint) in (list, Sequence):
        return isinstance(value, list | tuple) and all(is_of(v, kinds[0]) for v in value)
    if typing.get_origin(hint) is dict:
        return isinstance(value, dict) and all(is_of(v, kinds[1]) for v in value.values())
    if kinds:
        return any(is_of(value, kind) for kind in kinds)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    if hint is float:
        return isinstance(value, int | float) and value == value
    return isinstance(value, str | Path if hint is Path else cast(type, hint))
