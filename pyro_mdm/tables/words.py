"""Texts on columns: kinds by name, and messages."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence

__all__ = ["Kinds", "comma_separated", "parse_kinds"]

Kinds = str | Mapping[str, str] | None
"""Kinds of columns, as text or by name; None: all are inferred."""


def parse_kinds(columns: Kinds, names: Sequence[str] = ()) -> dict[str, str]:
    """Kinds of columns by name, from a text such as ``"age=continuous,zip=drop"``, quoted as in a
    CSV file; ValueError for another text.

    The names of the table may have = in them, or spaces around them that the text leaves out; an
    exact name goes first.
    """
    if isinstance(columns, Mapping):
        return {str(name): kind.strip() for name, kind in columns.items()}
    names_of = {name.strip(): name for name in names} | {name: name for name in names}
    kinds = {}
    for text in comma_separated(columns or "", "columns"):
        ends = [i for i, sign in enumerate(text) if sign == "=" and text[:i].strip()]
        if text.strip() and not ends:
            raise ValueError(
                f"columns has {text.strip()!r}, expected name=kind, with commas between; e.g. "
                "age=continuous,zip=drop"
            )
        if ends:
            exact = [i for i in ends if {text[:i], text[:i].strip()} & set(names_of)]
            end = exact[-1] if exact else ends[0]  # before a sign of an order, such as <=50K<>50K
            name, kind = text[:end], text[end + 1 :].strip()
            kinds[names_of.get(name) or names_of.get(name.strip(), name.strip())] = kind
    return kinds


def comma_separated(text: str, name: str) -> list[str]:
    """The words between commas, quoted as in a CSV file; ``name`` is the argument or option that
    the text is of, for the ValueError of a line break outside of quotes."""
    try:
        return next(csv.reader([text], skipinitialspace=True), [])
    except csv.Error as error:
        raise ValueError(
            f"{name} is {text!r}, which has a line break outside of quotes; expected words "
            'with commas between, quoted as in a CSV file: "a name=kind",other=kind'
        ) from error
