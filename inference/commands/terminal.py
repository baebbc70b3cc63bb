"""Standard output and error as terminals can show them."""

from __future__ import annotations

import re
from typing import Any, TextIO

from pyro_mdm.support.text import shown

__all__ = ["Terminal", "in_options"]

MOVES = re.compile(r"(\n|\x1b\[A)*")
"""The text by which tqdm moves to the line of a bar."""
OPTIONS = {
    'columns="': '--columns "',
    'unknown="refuse"': "--unknown refuse",
    "context=Labels(10, dropout=0.1)": "--context_dropout 0.1",
    "score.training_maps = RandomMaps()": "--maps mixed",
    "the learning rate of the diffusion, ": "--diffusion_learning_rate, ",
}
"""The options of programs by the words of Python in the library's messages."""


def in_options(text: str) -> str:
    """A message of the library with options in the place of arguments of Python."""
    for argument, option in OPTIONS.items():
        text = text.replace(argument, option)
    return text


class Terminal:
    """A text stream that writes every text to another one, with options, as :func:`shown` returns
    it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text; a bar of progress begins with a return."""
        if not MOVES.fullmatch(text):
            begin = "\r" if text.startswith("\r") else ""
            text = begin + shown(in_options(text.removeprefix("\r")), self._stream.encoding)
        self._stream.write(text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
