"""What is said of columns in words: kinds by name, and messages on them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["comma_separated", "in_python", "joined", "kinds_said", "said_of"]


def kinds_said(columns: str | None, names: Sequence[str] = ()) -> dict[str, str]:
    """Kinds of columns by name, of ``"age=continuous,zip=drop"``, quoted as in a CSV file.

    Args:
        names: those of the table, which may have = in them, and spaces before and after them that
            are not said; a name that is said exactly goes before.
    """
    names_of = {name.strip(): name for name in names} | {name: name for name in names}
    kinds = {}
    for text in comma_separated(columns or "", "columns"):
        ends = [i for i, sign in enumerate(text) if sign == "=" and text[:i].strip()]
        if text.strip() and not ends:
            raise ValueError(
                f"--columns has {text.strip()!r}, expected name=kind, with commas between; e.g. "
                "age=continuous,zip=drop"
            )
        if ends:
            exact = [i for i in ends if {text[:i], text[:i].strip()} & set(names_of)]
            end = exact[-1] if exact else ends[0]  # before a sign of an order, such as <=50K<>50K
            name, kind = text[:end], text[end + 1 :].strip()
            kinds[names_of.get(name) or names_of.get(name.strip(), name.strip())] = kind
    return kinds


def said_of(kinds: Mapping[str, str]) -> str:
    """``columns`` that say kinds of columns by name."""
    return joined([f"{name}={kind}" for name, kind in kinds.items()])


def joined(words: Sequence[str]) -> str:
    """Words with commas between, as :func:`comma_separated` reads them."""
    text = io.StringIO()
    spaces = any(word.partition("=")[0] != word.partition("=")[0].strip() for word in words)
    options: dict[str, Any] = {"quoting": csv.QUOTE_ALL} if spaces else {}
    csv.writer(text, **options).writerow(words)
    return text.getvalue().removesuffix("\r\n")


def comma_separated(text: str, option: str) -> list[str]:
    """The words between commas of an option, quoted as in a CSV file.

    Raises:
        ValueError: a line break stands outside of quotes.
    """
    try:
        return next(csv.reader([text], skipinitialspace=True), [])
    except csv.Error as error:
        raise ValueError(
            f"--{option} is {text!r}, which has a line break outside of quotes; expected words "
            'with commas between, quoted as in a CSV file: "a name=kind",other=kind'
        ) from error


def in_python(message: str) -> str:
    """A message with arguments in place of options of a program."""
    message = re.sub(r"--columns (\S+=[^\s;,]+)", r'columns="\1"', message)
    return re.sub(r"--(\w+)", r"\1", message)
