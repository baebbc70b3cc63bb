"""Command lines from signatures, with errors for people.

A program is a function: its parameters are the options, their annotations say what the words after
them are read as, and its docstring is the help. Every program also has ``--config FILE.yaml``, for
options from a file (those on the command line win), ``--print_config`` and ``--help``.
"""

from __future__ import annotations

import difflib
import inspect
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

import yaml

from inference.checkpoints import ArchitectureError, CheckpointError
from inference.loading import NameNotFoundError
from inference.runs import RunError
from models import DataError
from pyro_mdm.diffusions.kernels import KernelPrecisionError
from pyro_mdm.diffusions.simulation import SimulationError

__all__ = ["OptionError", "check_positive", "command_line", "read_value"]

MISTAKES = (
    ArchitectureError,
    CheckpointError,
    DataError,
    FloatingPointError,
    KernelPrecisionError,
    NameNotFoundError,
    NotImplementedError,
    RunError,
    SimulationError,
    TypeError,
    ValueError,
)

COMMON: dict[str, tuple[Any, str]] = {
    "config": (Path, "read options from this YAML file, name: value; those given here win."),
    "print_config": (bool, "print all options as such a file, and exit."),
    "help": (bool, "print this, and exit."),
}
"""What every program has: annotation and help."""

WIDTH, COLUMN = 100, 26
"""Of the help, and where its texts begin."""


class OptionError(Exception):
    """A word that is no option, or no value of the option that it is given to."""


def command_line(
    function: Callable[..., Any],
    arguments: Sequence[str] | None = None,
    *,
    unnamed: str | None = None,
    groups: Mapping[str, str] | None = None,
) -> None:
    """Run ``function`` on the command line's arguments, typed and explained by its signature.

    A mistake (an unknown name, a folder in the way, a damaged checkpoint) ends the program with its
    message alone; ``--debug`` as the first argument shows where it was raised. The exit status is 2
    for a word that is no option or no value of one, and 1 for what the program itself refuses.

    Args:
        function: its parameters are the options.
        arguments: words; by default those of the process.
        unnamed: the option whose name may be left out.
        groups: titles of the help and the names of the options below each, with spaces between
            them; what is in none comes first.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = words[:1] == ["--debug"]
    try:
        options = _read(function, words[1:] if debug else words, unnamed)
        shown = {name: options.pop(name) for name in ("help", "print_config")}
        if shown["help"]:
            print(_help(function, unnamed, groups or {}))
        elif shown["print_config"]:
            print(yaml.safe_dump(_plain(options), sort_keys=False), end="")
        if any(shown.values()):
            raise SystemExit(0)
        _check_complete(function, options)
        function(**options)
    except OptionError as error:
        if debug:
            raise
        print(f"error: {error}\n--help lists the options", file=sys.stderr)
        raise SystemExit(2) from error
    except MISTAKES as error:
        if debug:
            raise
        raise SystemExit(f"error: {error}") from error


# -- from words to arguments -----------------------------------------------------------------------


def _read(
    function: Callable[..., Any], words: Sequence[str], unnamed: str | None
) -> dict[str, Any]:
    """The arguments of ``function`` as far as they are known, ``help`` and ``print_config``."""
    hints = _hints(function)
    known = hints | {name: hint for name, (hint, _) in COMMON.items()}
    given: dict[str, Any] = {}
    files: list[Path] = []
    rest: list[str] = []
    for name, word in _pairs(words, known, alone=unnamed is not None):
        if name is None:
            rest.append(word)
        elif name == "config":
            files.append(Path(word))
        else:
            given[name] = read_value(name, known[name], word)
    if rest:
        several = unnamed is not None and _is_sequence(hints[unnamed])
        if unnamed is None or (len(rest) > 1 and not several):
            raise OptionError(_surplus(rest[-1], hints))
        if unnamed in given:
            raise OptionError(f"{rest[0]} and --{unnamed} {given[unnamed]}: give one of them")
        given[unnamed] = read_value(unnamed, hints[unnamed], rest if several else rest[0])
    settings: dict[str, Any] = {"help": False, "print_config": False}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is not parameter.empty:
            settings[name] = parameter.default
    for file in files:
        settings |= _read_config(file, hints)
    return settings | given


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """What each parameter is annotated with."""
    hints = typing.get_type_hints(function)
    return {name: hints[name] for name in inspect.signature(function).parameters}


def _pairs(
    words: Sequence[str], known: Mapping[str, Any], *, alone: bool
) -> Iterator[tuple[str | None, str]]:
    """(option, value) from ``--option value``, ``--option=value`` and ``--flag``; (None, word).

    ``alone``: there may be words without an option, also after a flag.
    """
    left = ["--help" if word == "-h" else word for word in words]
    while left:
        word = left.pop(0)
        if not word.startswith("-"):
            yield None, word
            continue
        name, equals, value = word.removeprefix("--").partition("=")
        if name not in known or not word.startswith("--"):
            raise OptionError(f"there is no option {word}{_nearest(name, known, '--')}")
        if not equals:
            flag = known[name] is bool
            follows = bool(left) and not left[0].startswith("--")
            if flag and alone:
                follows = follows and left[0].lower() in ("true", "false")
            if not (follows or flag):
                raise OptionError(f"{word} has no value, expected {_expected(known[name])}")
            value = left.pop(0) if follows else "true"
        yield name, value


def _read_config(file: Path, hints: Mapping[str, Any]) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_bytes())
    except OSError as error:
        raise OptionError(f"--config {file} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        mark, problem = (getattr(error, name, None) for name in ("problem_mark", "problem"))
        line = "" if mark is None else f" in line {mark.line + 1}"
        raise OptionError(f"--config {file} is no YAML{line}: {problem or error}") from error
    if not isinstance(content, dict):
        raise OptionError(f"--config {file} holds {content!r}, expected options as name: value")
    values = {}
    for name, value in content.items():
        if name not in hints:
            raise OptionError(f"--config {file}: no option is called {name}{_nearest(name, hints)}")
        try:
            values[name] = read_value(name, hints[name], value)
        except OptionError as error:
            raise OptionError(f"--config {file}: {error}") from error
    return values


def _check_complete(function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    for name, hint in _hints(function).items():
        if name not in options:
            expected = "one path or more" if _is_sequence(hint) else _expected(hint)
            raise OptionError(f"{name} is missing, expected {expected}")


def _surplus(word: str, hints: Mapping[str, Any]) -> str:
    """What is wrong with a word that belongs to no option."""
    if word.partition("=")[0] in hints:
        return f"{word!r} belongs to no option; did you mean --{word}?"
    return f"{word!r} belongs to no option; options are given as --name value"


def _nearest(word: object, known: Mapping[str, Any] | Sequence[str], dashes: str = "") -> str:
    close = difflib.get_close_matches(str(word).lstrip("-").replace("-", "_"), list(known), n=1)
    return f"; did you mean {dashes}{close[0]}?" if close else ""


# -- values ----------------------------------------------------------------------------------------


def read_value(name: str, hint: Any, value: Any) -> Any:
    """A word of the command line, or a value from YAML, as what an option is annotated with.

    Raises:
        OptionError: it is nothing of the kind; says what is, and the choice that is nearest.
    """
    try:
        return _convert(hint, value)
    except (ValueError, yaml.YAMLError) as error:
        choices = [str(c) for part in _parts(hint) for c in _choices(part)]
        raise OptionError(
            f"--{name} is {value!r}, expected {_expected(hint)}{_nearest(value, choices)}"
        ) from error


def _convert(hint: Any, value: Any) -> Any:
    """``value`` as ``hint``; ValueError if it is none."""
    if len(parts := _parts(hint)) > 1:
        return _convert_to_first(parts, value)
    if hint is type(None):
        return _check(value in (None, "null", "None"), None)
    if choices := _choices(hint):
        return _check(value in choices, value)
    if _is_sequence(hint):
        values = yaml.safe_load(value) if isinstance(value, str) else value
        (of,) = typing.get_args(hint)
        return [_convert(of, v) for v in _check(isinstance(values, list), values)]
    return CONVERTERS[hint](value)


def _convert_to_first(hints: Sequence[Any], value: Any) -> Any:
    for hint in sorted(hints, key=lambda hint: hint in (str, Path)):  # which any word is
        try:
            return _convert(hint, value)
        except ValueError:
            continue
    raise ValueError


def _check(holds: bool, value: Any) -> Any:
    if not holds:
        raise ValueError
    return value


def _integer(value: Any) -> int:
    """Also of 1e3, or of 1000.0 from YAML."""
    number = _number(value)
    try:
        return int(str(value))
    except ValueError:
        return int(_check(number.is_integer(), number))


def _number(value: Any) -> float:
    return float(_check(isinstance(value, int | float | str) and value is not True, value))


def _truth(value: Any) -> bool:
    return bool(_check((text := str(value).lower()) in ("true", "false"), text == "true"))


def _text(value: Any) -> str:
    return str(_check(isinstance(value, str | int | float | Path), value))


CONVERTERS: dict[Any, Callable[[Any], Any]] = {
    int: _integer,
    float: _number,
    bool: _truth,
    str: _text,
    Path: lambda value: Path(_text(value)),
}
NAMES: dict[Any, tuple[str, str]] = {
    int: ("an integer", "INTEGER"),
    float: ("a number", "NUMBER"),
    bool: ("true or false", "{true,false}"),
    str: ("a name", "NAME"),
    Path: ("a path", "PATH"),
}
"""In a sentence, and in the help."""


def _parts(hint: Any) -> tuple[Any, ...]:
    """The members of a union; of anything else itself."""
    is_union = typing.get_origin(hint) in (Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _choices(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) is Literal else ()


def _is_sequence(hint: Any) -> bool:
    return typing.get_origin(hint) in (list, Sequence)


def _expected(hint: Any) -> str:
    """What an option takes, in words."""
    names: list[str] = []
    for part in _parts(hint):
        names += [str(choice) for choice in _choices(part)]
        if _is_sequence(part):
            names.append(_shape(part))
        elif part in NAMES:
            names.append(NAMES[part][0])
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _metavar(hint: Any) -> str:
    parts = [part for part in _parts(hint) if part is not type(None)]
    choices = [str(choice) for part in parts for choice in _choices(part)]
    rest = [_shape(p) if _is_sequence(p) else NAMES[p][1] for p in parts if not _choices(p)]
    return "|".join([*([f"{{{','.join(choices)}}}"] if choices else []), *rest])


def _shape(hint: Any) -> str:
    """Of a list, as [NUMBER, …]."""
    (of,) = typing.get_args(hint)
    return f"[{_shape(of) if _is_sequence(of) else NAMES[of][1]}, …]"


def _plain(value: Any) -> Any:
    """As YAML has it."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def check_positive(**options: float | None) -> None:
    """Whether those of ``options`` that are given are positive.

    Raises:
        ValueError: one is not.
    """
    for name, value in options.items():
        if value is not None and not value > 0:
            raise ValueError(f"--{name} is {value}, expected a positive number")


# -- help ------------------------------------------------------------------------------------------


def _help(function: Callable[..., Any], unnamed: str | None, groups: Mapping[str, str]) -> str:
    """Usage, what the program does, and every option below the title of its group."""
    summary, texts = _explained(inspect.getdoc(function) or "")
    program = Path(inspect.getfile(function)).stem
    hints, parameters = _hints(function), inspect.signature(function).parameters
    grouped = {name for names in groups.values() for name in names.split()}
    entries = {}
    for name, hint in hints.items():
        default = parameters[name].default
        text = texts.get(name, "")
        if default is not None and default is not parameters[name].empty:
            text += f" [{str(default).lower() if hint is bool else default}]"
        entries[name] = _entry(name, hint, text)
    sections = {"options": [name for name in hints if name not in grouped]}
    sections |= {title: names.split() for title, names in groups.items()}
    words = "" if unnamed is None else f" {unnamed.upper()}"
    words += " …" if unnamed is not None and _is_sequence(hints[unnamed]) else ""
    parts = [f"usage: python -m inference.{program}{words} [--option VALUE …]", summary]
    parts += ["\n".join([f"{t}:", *(entries[n] for n in ns)]) for t, ns in sections.items() if ns]
    common = [_entry(name, hint, text) for name, (hint, text) in COMMON.items()]
    parts.append("\n".join(["of every program:", *common]))
    return "\n\n".join([*parts, "--debug as the first word shows where an error was raised."])


def _entry(name: str, hint: Any, text: str) -> str:
    """An option with what it takes, and beside it what it is."""
    head = f"  --{name}" if name in ("help", "print_config") else f"  --{name} {_metavar(hint)}"
    body = textwrap.indent("\n".join(textwrap.wrap(text, WIDTH - COLUMN)), " " * COLUMN)
    return head + body[len(head) :] if len(head) < COLUMN - 1 else f"{head}\n{body}".rstrip()


def _explained(docstring: str) -> tuple[str, dict[str, str]]:
    """What comes before "Args:" of a docstring, and what that says of each argument."""
    summary, _, rest = docstring.partition("Args:\n")
    arguments, _, _ = rest.partition("\n\n")
    texts: dict[str, str] = {}
    names: list[str] = []
    for line in textwrap.dedent(arguments).splitlines():
        if match := re.match(r"(\w+(?:, \w+)*): (.*)", line):
            names, text = match[1].split(", "), match[2]
            texts |= dict.fromkeys(names, text)
        else:
            texts |= {name: f"{texts[name]} {line.strip()}" for name in names}
    return summary.strip(), texts
