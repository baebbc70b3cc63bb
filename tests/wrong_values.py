"""Wrong values of arguments by what a right one is, and what an answer to them may be."""

from __future__ import annotations

import dis
import inspect
import math
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
OF_DISTRIBUTIONS = torch.distributions.Distribution._validate_sample.__code__.co_filename
"""The door of torch's distributions, whose words of a value outside the support are good."""
OURS = tuple(str(ROOT / name) for name in ("pyro_mdm", "inference", "models"))
WORDED = re.compile("[Ee]xpected|; |use |pass |give|needs|Try |not broadcastable")


class Wrong(NamedTuple):
    """A wrong value in the place of a right one."""

    name: str
    value: object
    refused: bool = True  # else an answer is right too, if it is finite and no larger


class Anything:
    """An object of no use."""


def wrong_values(right: object, annotation: str) -> list[Wrong]:
    """Wrong values in the place of ``right``, where an annotation does not allow them."""
    free = bool(re.search(r"\bAny\b|\bobject\b", annotation)) and "Callable" not in annotation
    others = [
        Wrong("None", None, not (free or "None" in annotation)),
        Wrong("an object", Anything(), not free),
    ]
    return [*others, *_of_kind(right, annotation, free)]


def _of_kind(right: object, annotation: str, free: bool) -> Iterator[Wrong]:
    words = not (free or re.search(r"\bstr\b|Names|Literal|Grid|Columns", annotation))
    numbers = not (free or re.search(r"float|int|Number|Times|Levels|Matrix|bool", annotation))
    if isinstance(right, bool):
        return
    if isinstance(right, int | float):
        yield from _of_number(right, annotation)
    elif isinstance(right, str):
        yield Wrong("3", 3, not free)
        yield Wrong("no such name", "no such name", "Path" not in annotation)
    elif isinstance(right, Tensor):
        yield Wrong("a string", "x", words)
        yield from _of_tensor(right)
    elif isinstance(right, Mapping):
        yield Wrong("a string", "x", words)
        yield Wrong("3", 3, numbers)
        yield Wrong("empty", {}, False)
        yield Wrong("other names", {f"other {key}": value for key, value in right.items()}, False)
        for key, value in list(right.items())[:1]:
            for wrong in wrong_values(value, "Mapping"):
                yield Wrong(f"{key}: {wrong.name}", {**right, key: wrong.value}, wrong.refused)
    elif isinstance(right, list | tuple):
        yield Wrong("a string", "x", words)
        yield Wrong("3", 3, numbers)
        yield Wrong("empty", [], False)
        if right:
            for wrong in wrong_values(right[0], "Sequence"):
                if wrong.name == "True" and annotation == "Sequence":
                    continue  # in a list of lists
                values = (wrong.value, *right[1:])
                yield Wrong(f"first {wrong.name}", values, wrong.refused)
            yield Wrong("one more", (*right, right[0]), False)
    elif isinstance(right, pd.DataFrame):
        yield Wrong("a string", "x", words)
        yield Wrong("3", 3)
        yield Wrong("no rows", right.iloc[:0], False)
        yield Wrong("no columns", right.iloc[:, :0], False)
        yield Wrong("other columns", right.rename(columns=lambda name: f"other {name}"), False)
    elif isinstance(right, pd.Series | np.ndarray):
        yield Wrong("a string", "x", words)
        yield Wrong("3", 3, False)
        yield Wrong("no rows", right[:0], False)
    else:
        yield Wrong("a string", "x", words)
        yield Wrong("3", 3, numbers)
        if not callable(right) or isinstance(right, nn.Module):
            yield Wrong("a class", type(right))


def _of_number(right: int | float, annotation: str) -> Iterator[Wrong]:
    yield Wrong("True", True)
    yield Wrong("a string", "x", not re.search(r"\bstr\b|Grid|Literal", annotation))
    yield Wrong("NaN", math.nan)
    yield Wrong("-1", -1, False)
    yield Wrong("0", 0, False)
    tensors = bool(re.search("Tensor|Number|Times|Matrix|float", annotation))
    yield Wrong("two numbers", torch.tensor([1.0, 2.0]), not tensors)
    yield Wrong("complex", 1j)
    if isinstance(right, int):
        yield Wrong("2.5", 2.5, "float" not in annotation)
    else:
        yield Wrong("inf", math.inf, False)


def _of_tensor(right: Tensor) -> Iterator[Wrong]:
    if right.is_floating_point():
        yield Wrong("NaN", torch.full_like(right, math.nan), False)
        yield Wrong("infinite", torch.full_like(right, math.inf), False)
    yield Wrong("integers", right.long(), False)
    yield Wrong("bool", right.bool(), False)
    yield Wrong("complex", right.to(torch.complex64))
    yield Wrong("strings", ["a", "b"])
    if right.dim():
        yield Wrong("empty", right[:0], False)
        yield Wrong("wider", torch.cat([right, right[..., :1]], -1), right.dim() > 1)
        yield Wrong("one row", right[0], False)
    yield Wrong("one more dimension", right.unsqueeze(0), False)
    yield Wrong("columns", right.unsqueeze(-1), False)


# -- answers ---------------------------------------------------------------------------------------


def complaint(call: Callable[[], object], wrong: Wrong, right: object) -> str:
    """What is wrong with how a call answers; empty: nothing.

    Args:
        call: the call with the wrong value.
        wrong: that value.
        right: the answer to the right one.
    """
    try:
        answer = call()
    except Exception as error:
        return _complaint_of_error(error)
    if wrong.refused:
        return f"answered by a {type(answer).__name__}"
    before, after = list(_tensors(right)), list(_tensors(answer))
    if any(bool(t.isnan().any()) for t in after) and not any(t.isnan().any() for t in before):
        return "answered by NaN"
    if isinstance(wrong.value, Tensor) and wrong.name in ("columns", "one row"):
        sizes = [sum(t.numel() for t in tensors) for tensors in (before, after)]
        if sizes[0] < sizes[1]:
            return f"answered by {[tuple(t.shape) for t in after]}"
    return ""


def _complaint_of_error(error: Exception) -> str:
    told = f"{type(error).__name__}: {error}"[:150]
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not _is_raised(trace):
        where = trace.tb_frame.f_code if trace else None
        return f"raw {told}" + (
            f" ({Path(where.co_filename).name}:{trace.tb_lineno})" if where else ""
        )
    if isinstance(error, AttributeError | KeyError | IndexError) and not isinstance(
        error, ValueError | TypeError
    ):
        return f"of a wrong kind: {told}"
    return "" if WORDED.search(str(error)) else f"without what is expected: {told}"


def _is_raised(trace: TracebackType) -> bool:
    """Whether an error comes from a ``raise`` of ours, and not from what was tried with a value."""
    code = trace.tb_frame.f_code
    if not code.co_filename.startswith((*OURS, OF_DISTRIBUTIONS)):
        return False
    at = {one.offset: one.opname for one in dis.get_instructions(code)}
    return at.get(trace.tb_lasti, "") in ("RAISE_VARARGS", "RERAISE")


def _tensors(answer: object) -> Iterator[Tensor]:
    if isinstance(answer, Tensor):
        yield answer
    elif isinstance(answer, float):
        yield torch.tensor(answer)
    elif isinstance(answer, Mapping):
        for value in answer.values():
            yield from _tensors(value)
    elif isinstance(answer, list | tuple):
        for value in answer:
            yield from _tensors(value)


class Case(NamedTuple):
    """A call with one wrong value."""

    name: str
    wrong: Wrong
    call: Callable[[], object]


def cases(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Iterator[Case]:
    """The calls of a function with each of its arguments wrong in each way.

    Args:
        function: the function, or a class.
        arguments: right values by parameter; those of ``*args`` as a tuple named args.
    """
    for name in arguments:
        parameter = _parameter(function, name)
        annotation = _option(function, name) if parameter is None else str(parameter.annotation)
        if parameter is not None and parameter.default is None:
            annotation += " | None"
        if parameter is not None and parameter.kind is parameter.VAR_POSITIONAL:
            continue  # of a program of the user's
        for wrong in wrong_values(arguments[name], annotation):
            changed = {**arguments, name: wrong.value}
            yield Case(f"{name} = {wrong.name}", wrong, lambda c=changed: called(function, c))


def _option(function: Callable[..., Any], name: str) -> str:
    """The annotation of an option of ``**options``, which are ``Unpack`` of a TypedDict."""
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD and typing.get_args(parameter.annotation):
            return str(typing.get_args(parameter.annotation)[0].__annotations__.get(name, ""))
    return ""


def _parameter(function: Callable[..., Any], name: str) -> inspect.Parameter | None:
    """A parameter of a function, or of what a class hands ``**options`` on to."""
    makers = [cls.__init__ for cls in function.__mro__] if inspect.isclass(function) else []
    for maker in (function, *makers):
        parameters = inspect.signature(maker).parameters
        if name in parameters:
            return parameters[name]
    return None


def called(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """The answer of a function to arguments by name; those of ``*args`` are a tuple."""
    left, positional = dict(arguments), []
    parameters = inspect.signature(function).parameters.values()
    for parameter in parameters:
        if parameter.name not in left or parameter.kind is parameter.KEYWORD_ONLY:
            break
        value = left.pop(parameter.name)
        several = parameter.kind is parameter.VAR_POSITIONAL
        positional += list(value) if several else [value]
    return function(*positional, **left)
