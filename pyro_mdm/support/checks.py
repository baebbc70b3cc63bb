"""Checks of arguments of users, made once, before they are used.

Every message has the value, the expectation and the fix. Objects of another kind raise TypeError,
wrong values ValueError, and mistakes in tables and files of data :class:`DataError`. An annotation
is the one text of what kind an argument is: :func:`checked_arguments` holds every argument of a
call to its annotation. Shapes, ranges and entries are checked by the other functions.
"""

from __future__ import annotations

import builtins
import functools
import inspect
import itertools
import math
import os
import re
import sys
import threading
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import repeat
from numbers import Integral
from typing import Annotated, Any, Literal, NoReturn, SupportsFloat, TypeVar, cast

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from typing_extensions import is_typeddict

__all__ = [
    "Count",
    "Several",
    "checked_arguments",
    "DataError",
    "check_count",
    "check_counts",
    "check_data",
    "check_finite",
    "check_instance",
    "check_mask",
    "check_network",
    "check_number",
    "check_real",
    "check_resolution",
    "check_seed",
    "check_shape",
    "check_values",
    "check_weights",
    "describe",
    "floating_dtypes",
    "not_a_tensor",
    "real_tensor",
    "settle",
    "tensor_device",
]

F = TypeVar("F", bound=Callable[..., object])
Count = Annotated[int, 1]
"""A whole number from 1 on."""
Several = Annotated[int, 2]
"""A whole number from 2 on."""


class DataError(RuntimeError):
    """Data, or files of them, that are missing, damaged, or other than expected."""


# -- kinds of objects ------------------------------------------------------------------------------
def check_instance(name: str, value: object, kind: type | tuple[type, ...], fix: str) -> None:
    """Raises TypeError unless ``value`` is an object of ``kind``; ``fix`` ends the message."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if isinstance(value, kinds) and (type in kinds or not isinstance(value, type)):
        return
    expected = " or ".join(k.__name__ for k in kinds)
    if isinstance(value, type) and (isinstance(value, kinds) or issubclass(value, kinds)):
        raise _class_for_object(name, value, fix)
    raise TypeError(f"{name} is {describe(value)}, expected a {expected}; {fix}")


def _class_for_object(name: str, cls: type, fix: str) -> TypeError:
    is_class = f"{name} is the class {cls.__name__}"
    return TypeError(f"{is_class}, expected an object of it: {cls.__name__}(…); {fix}")


def check_network(name: str, network: object, *others: type) -> None:
    """Raises TypeError for an object that cannot be called as a network, or is one of ``others``.

    A score is no network, nor are data; both are often passed in its place.
    """
    call = f"{name} is called as {name}(inputs, log_snr)"
    if isinstance(network, type):
        raise _class_for_object(name, network, call)
    if not callable(network) or isinstance(network, others):
        raise TypeError(
            f"{name} is {describe(network)}, expected a torch.nn.Module, such as MLP or UNet of "
            f"pyro_mdm.networks; {call}, and comes before data"
        )
    number = 3 if getattr(network, "context_size", 0) else 2
    if not _takes(network, number):
        third = ", and with the context as a third" if number == 3 else ""
        raise TypeError(
            f"{name} is {describe(network)}, which does not take {NUMBERS[number]} arguments; "
            f"{call}{third}"
            ": write a module whose forward takes them"
        )


NUMBERS = {2: "two", 3: "three"}


def _takes(network: Callable[..., object], number: int) -> bool:
    """Whether a callable can be called with this number of arguments, by its signature."""
    call = network.forward if isinstance(network, nn.Module) else network
    try:
        signature = inspect.signature(call)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*[None] * number)
    except TypeError:
        return False
    return True


def describe(value: object) -> str:
    """A short name of a value for messages."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Tensor):
        return f"a Tensor of shape {tuple(value.shape)}"
    if isinstance(value, nn.Module):
        return f"{type(value).__name__}(…)"
    text = repr(value)
    short = len(text) <= 60 and not text.startswith("<")
    kind = type(value).__name__
    return text if short else f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"


# -- numbers ---------------------------------------------------------------------------------------
def check_count(name: str, value: object, expected: str, least: int = 1) -> None:
    """Raises unless ``value`` is a whole number ≥ ``least``; 2.0 and True are not."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        whole = isinstance(value, float) and value.is_integer()
        fix = f"; write {value:.0f}" if whole else ""
        raise TypeError(f"{name} is {describe(value)}, expected a whole number, {expected}{fix}")
    if value < least:
        raise ValueError(f"{name} is {value}, expected at least {least}; it is {expected}")


def check_counts(values: Mapping[str, object], expected: str, least: int = 1) -> None:
    """:func:`check_count` of each value, by its name."""
    for name, value in values.items():
        check_count(name, value, expected, least)


def check_seed(name: str, seed: object) -> None:
    """Raises unless ``seed`` is a whole number from 0 that torch's generators take."""
    check_count(name, seed, "the seed of random numbers", least=0)
    if int(cast(int, seed)) >= 2**63:
        raise ValueError(f"{name} is {seed}, expected less than 2⁶³; it is the seed of draws")


def check_shape(name: str, value: object, event_shape: Sequence[int], fix: str = "") -> None:
    """Raises unless ``value`` is a Tensor of floating-point numbers, (*batch, *event_shape).

    It looks at no entry, and so is a check for each step.
    """
    shape = tuple(event_shape)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else describe(value)
        raise TypeError(f"{name} is {got}, expected a floating-point Tensor; pass {name}.float()")
    if value.shape[value.dim() - len(shape) :] != shape or value.dim() < len(shape):
        expected = ", ".join(["*batch", *map(str, shape)])
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected ({expected}){fix}")


def check_mask(name: str, mask: Tensor) -> None:
    """Raises TypeError unless ``mask`` is of bool."""
    if mask.dtype != torch.bool:
        what = f"{describe(mask)} of {mask.dtype}"
        raise TypeError(f"{name} is {what}, expected a Tensor of bool; write {name}.bool()")


def check_number(name: str, value: object, expected: str, *, positive: bool = False) -> float:
    """A real number as a float, checked to be finite, and above 0 if ``positive``."""
    try:
        number = float(value) if isinstance(value, SupportsFloat) else math.nan
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number) or (positive and not number > 0):
        raise ValueError(f"{name} is {describe(value)}, expected {expected}")
    return number


def check_real(name: str, value: object) -> None:
    """Raises TypeError unless ``value`` is a number or a Tensor of real numbers.

    It looks at no entry, and so is a check for each step.
    """
    right = isinstance(value, SupportsFloat) and not isinstance(value, bool)
    if not right or (isinstance(value, Tensor) and value.is_complex()):
        raise TypeError(f"{name} is {describe(value)}, expected a number or a Tensor of them")


def real_tensor(name: str, value: object, expected: str) -> Tensor:
    """Real numbers of any shape, in float64, without gradient."""
    if isinstance(value, bool):
        raise TypeError(f"{name} is {value}, expected {expected}; give real numbers")
    try:
        given = hasattr(value, "dtype")  # else Python's floats, which are float64
        numbers = torch.as_tensor(value, dtype=None if given else torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name} is {describe(value)}, expected {expected}; give numbers, in rows of one length"
        ) from error
    if numbers.is_complex() or numbers.dtype == torch.bool:
        raise TypeError(f"{name} is {numbers.dtype}, expected {expected}; give real numbers")
    if numbers.requires_grad:
        raise ValueError(
            f"{name} requires gradients, but a given tensor is not learned: use LearnedDiffusion, "
            f"or pass {name}.detach()"
        )
    return numbers.to(torch.float64)


# -- data ------------------------------------------------------------------------------------------
def check_data(
    name: str,
    x: object,
    device: torch.device | None = None,
    *,
    missing: bool = False,
    values: bool = True,
) -> None:
    """Raises unless ``x`` is data in model space: a tensor of finite float32 or float64 numbers.

    Args:
        name: name of the data, for the message.
        x: data in model space.
        device: device that x must be on; None: any.
        missing: whether NaN is allowed, for a missing entry.
        values: whether entries are checked too.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is {not_a_tensor(name, x)}")
    if not x.is_floating_point():
        raise ValueError(
            f"{name} is {x.dtype}, expected floating-point data in model space; e.g. pixels "
            f"0 … 255 as {name}.float() / 127.5 - 1"
        )
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{name} is {x.dtype}, expected float32 or float64: its digits are too few for the "
            f"bound; pass {name}.float(), and for mixed precision set the score's autocast_dtype"
        )
    if not x.numel():
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}, expected at least one datum; look at the loader "
            "or the selection that made it"
        )
    if device is not None and x.device != device:
        raise ValueError(
            f"{name} is on {x.device} and the programs are on {device}, expected one device; pass "
            f"{name}.to({str(device)!r}), or move the model: model.to({str(x.device)!r})"
        )
    if values:
        report = partial(_report_data, name, x, missing)
        if missing:
            check_values(~x.isinf().any(), report)
        else:
            check_finite(report, x)


def _report_data(name: str, x: Tensor, missing: bool) -> None:
    """Raises ValueError for entries that are not finite."""
    wrong = x.isinf() if missing else ~x.isfinite()
    if bool(wrong.any()):
        number, kind, or_nan, hint = int(wrong.sum()), "NaN or infinite", "", ""
        if missing:
            kind, or_nan = "infinite", ", or NaN for missing entries"
        if not missing and bool(x.isnan().any()):
            hint = "; if NaN stands for missing entries, make the denoiser with maps=True"
        raise ValueError(
            f"{name} has {number} entries that are {kind}, expected finite data"
            f"{or_nan}; check the transform that made it{hint}"
        )


def not_a_tensor(name: str, x: object) -> str:
    """The kind of an object in the place of a Tensor, with the fix."""
    expected = "expected a torch tensor"
    if isinstance(x, (list, tuple)) and x and isinstance(x[0], Tensor):
        kind = type(x).__name__
        return f"a {kind} of tensors, {expected}; if it is a loader's batch, pass {name}[0]"
    if type(x).__module__ == "numpy":
        return (
            f"a NumPy array of {getattr(x, 'dtype', '')}, {expected}; pass "
            f"torch.as_tensor({name}, dtype=torch.float32)"
        )
    return f"{describe(x)}, {expected}; pass torch.as_tensor({name}, dtype=torch.float32)"


def check_resolution(max_log_snr: float, dtype: torch.dtype, mean_square: float = 1.0) -> None:
    """Raises ValueError where ``z = x + e^{-λ/2} ε`` equals x up to the rounding of ``dtype``."""
    if not mean_square > 0:
        return
    limit = -2 * math.log(torch.finfo(dtype).eps) - math.log(mean_square)
    if max_log_snr > limit:
        raise ValueError(
            f"max_log_snr is {max_log_snr:g}, expected at most {limit:.0f}: beyond it the noise "
            f"that a denoiser is to remove is below the rounding of {dtype}; lower it (13 resolves "
            "8-bit pixels), or scale the data"
        )


# -- modules ---------------------------------------------------------------------------------------
def floating_dtypes(module: object) -> set[torch.dtype]:
    """The dtypes of a module's parameters; none for a plain function."""
    if not isinstance(module, nn.Module):
        return set()
    return {p.dtype for p in module.parameters() if p.is_floating_point()}


def tensor_device(module: nn.Module) -> torch.device | None:
    """The device of a module's tensors, beside those that stay on the host; None if it has none."""
    device = None
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        device = tensor.device
        if device.type != "cpu":
            break
    return device


def check_weights(network: object) -> None:
    """Raises ValueError if a parameter of a network is NaN or infinite."""
    if not isinstance(network, nn.Module):
        return
    for name, parameter in network.named_parameters():
        if bool(parameter.isfinite().all()):
            continue
        bad = parameter[~parameter.isfinite()]
        raise ValueError(
            f"{name} of {type(network).__name__} holds {bad[0].item()} ({bad.numel()} of "
            f"{parameter.numel()} weights), expected finite weights; load the last good ones, and "
            "lower the learning rate or clip gradients if training led here"
        )


# -- annotations -----------------------------------------------------------------------------------
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
    if not kinds or not is_typeddict(kinds[0]):
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


# -- values of tensors, which no step waits for ----------------------------------------------------
# On the host they are checked at once. The answer of a device is read when it has come, by a later
# check or by `settle`, where Python reads a number of the device anyway: as clear, a little late.
Report = Callable[[], object]
"""A function that raises the error of a failed check, or returns where it finds no mistake."""


class _Unread(threading.local):
    """The answers that a thread has not read: when one comes, itself, and what reports a no."""

    def __init__(self) -> None:
        self.answers: list[tuple[torch.cuda.Event, Tensor, Report]] = []


_unread = _Unread()


def check_values(right: Tensor, report: Report) -> None:
    """A check of values, of which a compiler and functions of ``torch.func`` make none.

    Args:
        right: whether the values are as expected, bool, ().
        report: function that looks at the values and raises the error.
    """
    if torch.compiler.is_compiling() or is_functorch_wrapped_tensor(right):
        return
    if right.device.type == "cpu":
        if not right:
            report()
    elif not right.is_meta:
        _later(right, report)


def _later(right: Tensor, report: Report) -> None:
    answer, event = right.to("cpu", non_blocking=True), torch.cuda.Event()
    event.record(torch.cuda.current_stream(right.device))
    _unread.answers.append((event, answer, report))
    while _unread.answers and _unread.answers[0][0].query():
        _read_first()


def settle() -> None:
    """Read the answers to all checks of this thread."""
    while _unread.answers:
        _read_first()


def _read_first() -> None:
    event, answer, report = _unread.answers.pop(0)
    event.synchronize()
    if not answer:
        _unread.answers.clear()  # the rest may follow from it
        report()


def check_finite(name: str | Report, value: Tensor) -> None:
    """Raises ValueError with the first entry that is NaN or infinite, as :func:`check_values`.

    Args:
        name: name of the value, or a function that looks for the mistake and raises the error.
        value: the value.
    """
    if torch.compiler.is_compiling() or not value.numel():
        return
    if value.is_floating_point() or value.is_complex():
        numbers = value.detach() if value.requires_grad else value
        right = torch.linalg.vector_norm(numbers, math.inf) < math.inf  # the largest size
        if right.device.type != "cpu" or is_functorch_wrapped_tensor(right) or not right:
            report = partial(_report_finite, name, value) if isinstance(name, str) else name
            check_values(right, report)


def _report_finite(name: str, value: Tensor) -> None:
    bad = ~value.isfinite()
    if bool(bad.any()):
        where = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"{name} of shape {tuple(value.shape)} holds {value[where].item()} at {where} "
            f"({int(bad.sum())} of {value.numel()} values), expected finite numbers; look for the "
            "data or the sampler's step before"
        )
