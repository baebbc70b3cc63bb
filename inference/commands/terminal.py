"""Standard output and error as terminals can show them."""

from __future__ import annotations

import re
from typing import Any, TextIO

from pyro_mdm.support.text import shown

__all__ = ["Terminal"]

MOVES = re.compile(r"(\n|\x1b\[A)*")
"""The text by which tqdm moves to the line of a bar."""


class Terminal:
    """A text stream that writes every text to another one as :func:`shown` returns it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text; a bar of progress begins with a return."""
        if not MOVES.fullmatch(text):
            begin = "\r" if text.startswith("\r") else ""
            text = begin + shown(text.removeprefix("\r"), self._stream.encoding)
        self._stream.write(text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
