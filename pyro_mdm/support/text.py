"""Text on a terminal and in figures, whatever it contains.

Messages name files, columns and settings, which may be somebody else's: an escape sequence among
them could clear the screen, hide the message, or change the title of the window. And a terminal
may lack characters that we write.
"""

from __future__ import annotations

import codecs
import re

__all__ = ["plain", "shown"]

WORDS = {
    **{"±": "+/-", "×": "x", "≥": ">=", "≤": "<=", "…": "...", "–": "-", "−": "-", "→": "->"},
    **{"ε": "eps", "λ": "lambda", "Σ": "Sigma", "μ": "mu", "β": "beta", "π": "pi", "∞": "inf"},
}
"""The replacements of characters of messages that a terminal's encoding lacks."""

CONTROLS = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters, without tabs and line breaks, and those that change directions of writing."""


def _in_words(error: UnicodeError) -> tuple[str, int]:
    """A handler of errors of encoding: words, or escapes, for characters that cannot be written."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    words = "".join(WORDS.get(character, character) for character in lacking)
    return words.encode("ascii", "backslashreplace").decode(), error.end


codecs.register_error("pyro_mdm.words", _in_words)


def shown(text: str, encoding: str | None = "utf-8") -> str:
    r"""The text with control characters as ``\x1b``, and words for those not in ``encoding``."""
    text = CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
    encoding = encoding or "utf-8"
    return text.encode(encoding, "pyro_mdm.words").decode(encoding)


def plain(name: str) -> str:
    """A name for a label of a figure, in which nothing is mathematics or moves the writing."""
    return shown(name).replace("$", r"\$")
