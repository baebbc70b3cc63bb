"""Text on a terminal and in figures, whatever it contains.

Messages name files, columns and settings, which may be somebody else's: an escape sequence among
them could clear the screen, hide the message, or change the title of the window. And a terminal
may lack characters that we write.
"""

from __future__ import annotations

import re
from typing import Any, TextIO

__all__ = ["Terminal", "plain", "shown"]

WORDS = {
    **{"±": "+/-", "×": "x", "≥": ">=", "≤": "<=", "…": "...", "–": "-", "−": "-", "→": "->"},
    **{"ε": "eps", "λ": "lambda", "Σ": "Sigma", "μ": "mu", "β": "beta", "π": "pi", "∞": "inf"},
}
"""The replacements of characters of messages that a terminal's encoding lacks."""

CONTROLS = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters, without tabs and line breaks, and those that change directions of writing."""
MOVES = re.compile(r"(\n|\x1b\[A)*")
"""The text by which tqdm moves to the line of a bar."""


def shown(text: str, encoding: str | None = "utf-8") -> str:
    r"""The text with control characters as ``\x1b``, and words for those not in ``encoding``."""
    text = CONTROLS.sub(lambda match: _escaped(match[0]), text)
    encoding = encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        plain = "".join(WORDS.get(c, c) if _lacks(encoding, c) else c for c in text)
        return plain.encode(encoding, "backslashreplace").decode(encoding)
    return text


def plain(name: str) -> str:
    """A name for a label of a figure, in which nothing is mathematics or moves the writing."""
    return shown(name).replace("$", r"\$")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _lacks(encoding: str, character: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return True
    return False


class Terminal:
    """A text stream that writes every text as :func:`shown` returns it.

    Args:
        stream: stream, such as ``sys.stdout``, for the texts and all other methods.
    """

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
