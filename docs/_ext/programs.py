"""Pages of programs: what a program is for, and each of its options, from its own parser.

    ```{program-options} train
    ```

runs ``python -m inference.train`` as far as it reads its command line, and describes the options
that it knows there.
"""

from __future__ import annotations

import argparse
import inspect
import re
import runpy
import sys
import typing
import warnings
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import jsonargparse
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from inference.settings.kinds import kinds_of

__all__ = ["Option", "described", "markdown", "parser_of", "setup"]

NOT_LISTED = ("help", "print_config")
"""Options that every program has and nobody looks up."""
ROLE = re.compile(r":\w+:`~?([^`]+)`")


class Option(typing.NamedTuple):
    """What is said of an option."""

    group: str
    name: str
    value: str
    default: str
    help: str


class _Read(BaseException):
    """Raised where a program reads its command line."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


@cache
def parser_of(program: str) -> argparse.ArgumentParser:
    """The parser of ``python -m inference.<program>``, which goes no further.

    Raises:
        ValueError: if there is no such program, or it reads no command line.
    """

    def stop(parser: argparse.ArgumentParser, *words: object, **options: object) -> None:
        raise _Read(parser)

    module = f"inference.{program}"
    if find_spec(module) is None:
        raise ValueError(f"{program!r} is no program: there is no inference/{program}.py")
    with (
        mock.patch.object(jsonargparse.ArgumentParser, "parse_args", stop),
        mock.patch.object(argparse.ArgumentParser, "parse_args", stop),
        mock.patch.object(sys, "argv", [program]),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", RuntimeWarning)  # others may have imported the program
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except _Read as read:
            return read.parser
    raise ValueError(f"inference/{program}.py reads no command line")


def _value(hint: Any) -> str:
    """What is written after an option, in words."""
    kinds = " | ".join(kinds_of(hint)) or getattr(hint, "__name__", str(hint))
    return re.sub(r"\ban? ", "", kinds.replace("one path or more", "path …"))


def _options(parser: argparse.ArgumentParser) -> Iterator[Option]:
    hints = getattr(parser, "hints", {})
    for group in parser._action_groups:
        for action in group._group_actions:
            if action.dest in NOT_LISTED or not action.option_strings:
                continue
            if action.choices:
                value = " | ".join(map(str, action.choices))
            else:
                value = _value(hints.get(action.dest, action.type or str))
            if action.dest == "config":
                value = "path"
            default = action.default
            said = default not in (None, argparse.SUPPRESS)
            default = str(default).lower() if isinstance(default, bool) else str(default)
            title = (group.title or "").removeprefix("options")
            yield Option(
                title[:1].upper() + title[1:],
                action.option_strings[0],
                value,
                default if said else "",
                " ".join((action.help or "").split()),
            )


def described(program: str) -> list[Option]:
    """Every option of a program, in the order of its groups."""
    return list(_options(parser_of(program)))


def _plain(text: str) -> str:
    """A docstring's line in Markdown: signs stand for themselves, the library's names are links."""

    def name(match: re.Match[str]) -> str:
        target = match[1]
        is_ours = target.startswith("pyro_mdm.")
        return f"{{py:obj}}`~{target}`" if is_ours else f"`{target.rpartition('.')[2]}`"

    parts = re.split(r"(``[^`]+``|:\w+:`[^`]+`)", text)
    for i, part in enumerate(parts):
        if part.startswith("``"):
            parts[i] = part[1:-1]
        elif part.startswith(":") and part.endswith("`"):
            parts[i] = ROLE.sub(name, part)
        else:
            words = re.split(r"((?<![\w-])--\w+)", part)  # of which every second is an option
            words[::2] = [re.sub(r"([\\`*_{}\[\]<>#$|~^])", r"\\\1", word) for word in words[::2]]
            words[1::2] = [f"`{word}`" for word in words[1::2]]
            parts[i] = "".join(words)
    return "".join(parts)


def _about(program: str) -> list[str]:
    """The docstring of a program's module: sentences, and blocks of commands or files."""
    spec = find_spec(f"inference.{program}")
    assert spec is not None and spec.origin is not None
    source = compile(Path(spec.origin).read_text(encoding="utf-8"), program, "exec")
    doc = inspect.cleandoc(source.co_consts[0] if source.co_consts else "")
    lines: list[str] = []
    for paragraph in doc.split("\n\n"):
        first = paragraph.lstrip("\n").split("\n")[0]
        if first.startswith("    ") or first.startswith("python -m"):
            language = "bash" if "python -m" in first else "text"
            lines += [f"```{language}", *inspect.cleandoc(paragraph).split("\n"), "```", ""]
        else:
            lines += [_plain(" ".join(paragraph.split())), ""]
    return lines


def markdown(program: str) -> list[str]:
    """The lines of a program's page, below its title."""
    parser = parser_of(program)
    usage = parser.usage or f"python -m inference.{program} [--option VALUE …]"
    lines = [*_about(program), "```text", usage, "```", "", f":::{{program}} {program}", ":::", ""]
    group = None
    for option in described(program):
        if option.group != group:
            group = option.group
            lines += [f":::{{rubric}} {group}", ":::", ""] if group else []
        default = f" By default `{option.default}`." if option.default else ""
        text = _plain(option.help)
        text = text[:1].upper() + text[1:] if re.match("[a-z]+ ", text) else text
        text += "" if not text or text.endswith((".", "…")) else "."
        lines += [f":::{{option}} {option.name} <{option.value}>", f"{text}{default}", ":::", ""]
    lines += [_plain(" ".join((parser.epilog or "").split()))]
    return lines


class ProgramOptions(SphinxDirective):
    """What a program is for, and its options."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The page below its title, read as Markdown."""
        program = self.arguments[0]
        try:
            lines = markdown(program)
        except ValueError as error:
            raise self.error(str(error)) from error
        self.env.note_dependency(f"../inference/{program}.py")
        holder = nodes.container()
        holder.document = self.state.document
        source = f"inference/{program}.py"
        self.state.nested_parse(StringList(lines, source), self.content_offset, holder)
        return holder.children


def setup(app: Sphinx) -> dict[str, bool]:
    """The directive is called ``program-options``."""
    app.add_directive("program-options", ProgramOptions)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
