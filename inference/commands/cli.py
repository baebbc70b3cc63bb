"""Command lines from signatures, with readable errors.

A program is a function: its parameters are the options, their annotations the types, and its
docstring is the help. Many options are fields of dataclasses, by group. Every program also has
``--config FILE.yaml``, for options from a file (those on the command line win), ``--print_config``
and ``--help``, and ``--trust``, which a file cannot set: see :mod:`inference.trust`.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import inspect
import json
import math
import os
import re
import signal
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter

from inference import trust
from inference.commands.terminal import Terminal, in_options
from inference.folders.checkpoints import FULL, ArchitectureError, CheckpointError
from inference.folders.config import VERSION, load_yaml
from inference.folders.runs import RunError
from inference.machine.processes import Stopped, raised_signals
from inference.settings.kinds import INTEGER, SEVERAL, in_words, kinds_of
from inference.settings.names import ASKED, NAMED, NameNotFoundError, kinds_named
from models import DataError
from pyro_mdm.diffusions.base import SimulationError
from pyro_mdm.diffusions.kernels import KernelPrecisionError
from pyro_mdm.support.files import regular
from pyro_mdm.support.text import shown

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
    trust.UntrustedCodeError,
)


class OptionError(Exception):
    """A word on the command line is no option, or not a value of its option."""


def command_line(
    function: Callable[..., Any],
    arguments: Sequence[str] | None = None,
    *,
    unnamed: str | None = None,
    groups: Mapping[str, type] | None = None,
    listed: Sequence[str] = (),
) -> None:
    """Run ``function`` with the command line's arguments, typed and explained by its signature.

    A mistake (an unknown name, a folder in the way, a damaged checkpoint, a disk that may not be
    written to) ends the program with its message alone; ``--debug`` as the first argument shows the
    traceback. The exit status is 2 for a wrong option or value, 1 for errors of the program, and
    128 + the number of a signal that ended it.

    Args:
        function: the program; its parameters, or the fields of ``groups``, are the options.
        arguments: the words; by default those of the process.
        unnamed: the option whose name may be left out.
        groups: dataclasses by name. Their docstrings begin with a title for the help. An option
            is called ``--steps``, or ``--optimization.steps`` with the name of its group; likewise
            in files.
        listed: options that name several things, with commas between.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = words[:1] == ["--debug"]
    # of strings jsonargparse runs the module's `if TYPE_CHECKING:`, and loads what is meant to wait
    function.__annotations__ = typing.get_type_hints(function)
    out, err = Terminal(sys.stdout), Terminal(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), raised_signals():
        try:
            _run(function, words[1:] if debug else words, unnamed, groups or {}, listed)
        except (OptionError, OSError, *MISTAKES) as error:
            if debug:
                raise
            if isinstance(error, BrokenPipeError):
                _close_output()
                raise SystemExit(1) from None
            if not isinstance(error, OptionError):
                message = shown(f"error: {in_options(_in_words(error))}", err.encoding)
                raise SystemExit(message) from error
            print(f"error: {error}\n--help lists the options", file=sys.stderr)
            raise SystemExit(2) from error
        except (KeyboardInterrupt, Stopped) as error:
            if debug:
                raise
            stopped = error if isinstance(error, Stopped) else Stopped(signal.SIGINT)
            print(stopped, file=sys.stderr)
            raise stopped from None


def _run(
    function: Callable[..., Any],
    words: list[str],
    unnamed: str | None,
    groups: Mapping[str, type],
    listed: Sequence[str],
) -> None:
    """Run a program with the arguments in these words, see :func:`command_line`."""
    parser = _parser(function, unnamed, groups)
    said = _assign(words, parser, unnamed)
    trusts, said = _trusts(said)
    options = parser.parse_args(said)
    named = {word.removeprefix("--").partition("=")[0] for word in said}
    if options.get("overwrite") and "overwrite" not in named:
        raise OptionError(
            "overwrite is true in a file of --config, which may be somebody else's; expected "
            "--overwrite true on the command line"
        )
    _look_of_our_own()
    values = {name: _lowered(options[name]) for name in parser.hints}
    for name, value in values.items():
        _check_numbers(name, value)
    with trust.command(_code(values, named, listed), trusts=trusts):
        function(**values)
    sys.stdout.flush()  # a pipe that is closed, or a disk that is full, is told now


def _check_numbers(name: str, value: object) -> None:
    """Raise OptionError for a number that is infinite, or a whole one beyond 64 bits."""
    for one in value if isinstance(value, list | tuple) else [value]:
        if isinstance(one, float) and not math.isfinite(one):
            raise OptionError(f"--{name} is {one}, expected finite numbers; give a smaller one")
        if isinstance(one, int) and not -(2**63) <= one < 2**64:
            raise OptionError(
                f"--{name} is {str(one)[:12]}…, a number of {len(str(one))} characters, expected "
                "whole numbers of 64 bits; give a smaller one"
            )


def _look_of_our_own() -> None:
    """Draw by matplotlib's own settings where the current folder has some, which may be anybody's.

    Where they are from otherwise they are the user's.
    """
    if not Path("matplotlibrc").exists():
        return
    with contextlib.suppress(ImportError):
        import matplotlib

        matplotlib.rcdefaults()
        matplotlib.use("agg")


def _close_output() -> None:
    """Write no more to a pipe whose reader has seen enough, also where Python ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _in_words(error: BaseException) -> str:
    """The message of an error; one of the system begins with its file."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    place = f"{error.filename}: " if error.filename is not None else ""
    advice = {
        **dict.fromkeys(
            (errno.EACCES, errno.EPERM, errno.EROFS),
            "give another place, or allow this program to read and write there",
        ),
        errno.ENAMETOOLONG: "give a shorter name",
        **dict.fromkeys(FULL, "free some space, or give another place"),
    }.get(error.errno or 0, "")
    return f"{place}{error.strerror}" + (f"; {advice}" if advice else "")


def _trusts(words: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether --trust is among the words ``--option=value``, and the other words."""
    said = [word.removeprefix("--trust=") for word in words if word.startswith("--trust=")]
    if wrong := [value for value in said if value not in ("true", "false")]:
        raise OptionError(f"--trust is {wrong[0]!r}, expected true or false")
    return said[-1:] == ["true"], [word for word in words if not word.startswith("--trust=")]


def _code(options: Mapping[str, Any], named: set[str], listed: Sequence[str]) -> list[str]:
    """The names of code in the words of the command line, without those of --config files."""
    names: list[str] = []
    for name in (*NAMED, *ASKED):
        if name in named and (value := options[name]):
            names += [one.strip() for one in value.split(",")] if name in listed else [value]
    if "columns" in named and isinstance(options["columns"], str):
        names += kinds_named(options["columns"])
    return names


def check_positive(**options: float | None) -> None:
    """Raise ValueError unless all given ``options`` are positive."""
    for name, value in options.items():
        if value is not None and not value > 0:
            raise ValueError(f"--{name} is {value}, expected a positive number")


def check_options_positive(options: object, *names: str) -> None:
    """Raise ValueError unless all given fields of ``options`` with these names are positive."""
    check_positive(**{name: getattr(options, name) for name in names})


class _Parser(ArgumentParser):
    """A parser with readable errors, for the options of ``hints``."""

    hints: dict[str, Any]
    option_groups: dict[str, dict[str, Any]]

    def ungrouped(self, name: str) -> str:
        """An option without its group: ``steps`` for ``optimization.steps``."""
        group, _, alone = name.rpartition(".")
        return alone if alone in self.option_groups.get(group, {}) else name

    def astray(self, name: str, dashes: str = "") -> str:
        """A suggestion for ``optimization.stpes`` or ``machine.steps``, for messages."""
        group, _, alone = name.rpartition(".")
        if group in self.option_groups:
            groups = [g for g, options in self.option_groups.items() if alone in options]
            return f"; {alone} is in {groups[0]}" if groups else _nearest(alone, self.hints, dashes)
        return _nearest(name, [*self.hints, *self.option_groups, "config"], dashes)

    def parse_string(self, content: str, *arguments: object, **options: object) -> Any:
        """The options of a file, some of which may be in their group."""
        with contextlib.suppress(yaml.YAMLError):
            content_of = load_yaml(content)
            if self.option_groups and isinstance(content_of, dict):
                content_of.pop(VERSION, None)  # of a run's config.yaml
                content = yaml.safe_dump(self._flat(content_of))
        return super().parse_string(content, *arguments, **options)

    def _flat(self, options_of: Mapping[str, Any]) -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for name, value in options_of.items():
            empty = value is None and name in self.option_groups and name not in self.hints
            options = {} if empty else value if isinstance(value, dict) else {"": value}
            for key, v in options.items():
                full = f"{name}.{key}".removesuffix(".")
                option = self.ungrouped(full)
                if option not in self.hints:
                    raise OptionError(f"no option is called {full}{self.astray(full)}")
                if option in flat:
                    raise OptionError(f"{option} is given twice, alone and in its group")
                flat[option] = v
        return flat

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Read jsonargparse's message, as it says in words alone which option is wrong and why."""
        option = re.search(r"(?:[Kk]ey [\"']|required: |Option ')(\w+)", message)
        name = option[1] if option else ""
        hint = self.hints.get(name, Path)
        if values := re.findall(r"(?:Got|Given) value: (.*)", message):
            near = _nearest(values[-1], kinds_of(hint))
            text = f"--{name} is {values[-1]!r}, expected {in_words(hint)}{near}"
        elif "required" in message:
            text = f"{name} is missing, expected {in_words(hint)}"
        elif re.search(r"is not (accepted|expected)", message):
            text = f"no option is called {name}{_nearest(name, self.hints)}"
        else:
            text = " ".join(message.split()).replace('"<unicode string>", ', "")
            text = text.replace("Unexpected config:", "expected options as name: value, found")
        raise OptionError(text) from ex


class _Config(ActionConfigFile):
    """The action of --config, whose errors name the file."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        cfg: argparse.Namespace,
        values: str | Sequence[object] | None,
        option_string: str | None = None,
    ) -> None:
        try:
            if isinstance(values, str | Path) and Path(values).exists():
                regular(Path(values))
            super().__call__(parser, cfg, values, option_string)
        except (OptionError, RunError, TypeError, OSError) as error:
            reason = str(error).removeprefix('Parser key "config": ')
            raise OptionError(f"--config {values}: {reason}") from error


class _Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """A help formatter that keeps the paragraphs of a docstring."""


def _parser(
    function: Callable[..., Any], unnamed: str | None, groups: Mapping[str, type]
) -> _Parser:
    doc = inspect.getdoc(function) or ""
    hints = {name: typing.get_type_hints(group) for name, group in groups.items()}
    parser = _Parser(
        description=doc.partition("Args:\n")[0].strip(),
        epilog="--trust runs code that a run folder or a file of --config names, and remembers\n"
        "that very file; read it first.\n"
        "--debug as the first word shows where an error was raised.",
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    parser.option_groups = hints
    parser.hints = {name: hint for of_group in hints.values() for name, hint in of_group.items()}
    if not groups:
        annotations = typing.get_type_hints(function)
        parser.hints = {name: annotations[name] for name in inspect.signature(function).parameters}
    several = " …" if unnamed is not None and parser.hints[unnamed] == SEVERAL else ""
    stem = Path(inspect.getfile(inspect.unwrap(function))).stem
    program = f"{stem} {(unnamed or '').upper()}{several}".rstrip()
    parser.usage = f"python -m inference.{program} [--option VALUE …]"
    parser.add_argument("--config", action=_Config, help="YAML of options; those given here win.")
    if not groups:
        parser.add_function_arguments(function, as_group=False)
    for group in groups.values():
        title = (inspect.getdoc(group) or "").partition("\n")[0].rstrip(".")
        parser.add_argument_group(title).add_class_arguments(group, as_group=False)
    return parser


def _assign(words: Sequence[str], parser: _Parser, unnamed: str | None) -> list[str]:
    """The words as ``--option=value``, files of options first.

    So values may begin with a minus, integers may be written as 1e3, flags need no value, and words
    of ``unnamed`` may stand anywhere.
    """
    hints = parser.hints
    options = {**hints, "config": Path, "trust": bool}
    left, given, alone = list(words), [], []
    while left:
        word = left.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        name = parser.ungrouped(name)
        if not word.startswith("-"):
            alone.append(word)
            continue
        if word == "-h" or name in ("help", "print_config"):
            given.append(word)
            continue
        if name not in options or not word.startswith("--"):
            raise OptionError(f"there is no option {word}{parser.astray(name, '--')}")
        hint, follows = options[name], bool(left) and not left[0].startswith("--")
        if hint is bool and unnamed is not None:
            follows = follows and left[0].lower() in kinds_of(bool)
        if not (equals or follows or hint is bool):
            raise OptionError(f"{word} has no value, expected {in_words(hint)}")
        if not equals:
            value = left.pop(0) if follows else "true"
        if INTEGER in kinds_of(hint) and (power := re.fullmatch(r"(\d+)e(\d\d?)", value)):
            value = power[1] + "0" * int(power[2])
        given.append(f"--{name}={_literal(value, hint, word)}")
    if alone:
        several = unnamed is not None and hints[unnamed] == SEVERAL
        twice = any(word.startswith(f"--{unnamed}=") for word in given)
        if unnamed is None or twice or (len(alone) > 1 and not several):
            wrong = f"{alone[-1]!r} belongs to no option"
            raise OptionError(f"{wrong}; options are given as --name value")
        kind = Path if several else hints[unnamed]
        alone = [_literal(word, kind, f"--{unnamed}") for word in alone]
        given.append(f"--{unnamed}={json.dumps(alone) if several else alone[0]}")
    return sorted(given, key=lambda word: not word.startswith("--config="))


LIFTED = {ord("#"): 0x10F023, **{0xDC00 + byte: 0x10F000 + byte for byte in range(0x80, 0x100)}}
"""Private characters for those with which YAML reads a word as a comment, or does not read it: the
bytes of a path that is not UTF-8."""


def _literal(value: str, hint: object, word: str) -> str:
    """The value of a path or a name, so that YAML has nothing to read in it; others unchanged."""
    kinds = kinds_of(hint)
    if not {"a path", "a name"} & set(kinds) or value.startswith("["):
        return value
    if "a path" in kinds:
        if not value:
            raise OptionError(f"{word} is empty, expected {in_words(hint)}")
        value = value if Path(value).is_absolute() else f"./{value}"  # null is a folder too
    return value.translate(LIFTED)


def _lowered(value: object) -> Any:
    """A value of an option with the characters that :func:`_literal` was given."""
    if isinstance(value, list):
        return [_lowered(one) for one in value]
    if isinstance(value, str | Path):
        return type(value)(str(value).translate({lifted: code for code, lifted in LIFTED.items()}))
    return value


def _nearest(word: str, names: Iterable[str], dashes: str = "") -> str:
    close = difflib.get_close_matches(word.lstrip("-").replace("-", "_"), list(names), n=1)
    return f"; did you mean {dashes}{close[0]}?" if close else ""
