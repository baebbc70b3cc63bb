"""Fitted columns as JSON, so that a trained run holds the levels and scales of its model.

A column is ``{"class": name, "attributes": {…}}``, with the name of a class of the library, or of a
class of your own, ``file.py:Name``. Attributes are numbers, text, true, false, null and lists of
these as they are, and ``{kind: content}`` of other kinds::

    {"number": "inf"}                     a number that JSON lacks
    {"tensor": [0.5, 1.0]}                float64, (n,)
    {"tuple": [0, 100]}
    {"column": {"class": …}}              a column within a column
    {"record": ["DateForm", [dtype, pattern, step]]}
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_mdm.support.checks import DataError
from pyro_mdm.support.files import JsonObject
from pyro_mdm.tables.columns.base import Column
from pyro_mdm.tables.columns.dates import DateForm
from pyro_mdm.tables.columns.kinds import BUILT_IN, KINDS, FindKind, class_of
from pyro_mdm.tables.columns.skipped import Condition, Rule, Skipped

__all__ = ["column_facts", "column_of_facts"]

RECORDS: dict[str, Callable[..., object]] = {
    record.__name__: record for record in (Condition, DateForm, Rule)
}
"""The named tuples among attributes."""


def column_facts(column: Column) -> dict[str, object]:
    """A column as JSON.

    Raises:
        TypeError: attributes, such as levels, of another type than numbers, text, tensors and
            columns.
    """
    attributes = {name: _encoded(value) for name, value in vars(column).items()}
    name = type(column).__name__
    ours = _classes().get(name) is type(column)
    return {"class": name if ours else column.kind, "attributes": attributes}


def column_of_facts(facts: JsonObject, find_kind: FindKind | None = None) -> Column:
    """The column of :func:`column_facts`, of a class of your own by ``find_kind``.

    Raises:
        ValueError: damaged facts, or an unknown class.
    """
    try:
        name, attributes = str(facts["class"]), dict(facts["attributes"])
        cls = _classes().get(name) or class_of(name, find_kind)
    except (KeyError, TypeError, ValueError, DataError) as error:  # find_kind may refuse a file
        raise ValueError(f"no column that a run keeps: {error}") from error
    try:
        column = object.__new__(cls)
        for name, value in attributes.items():
            if callable(getattr(cls, name, None)):
                raise ValueError(f"{name} is a method of {cls.__name__}")
            setattr(column, name, _decoded(value, find_kind))
        at = torch.zeros(1, column.width) if column.width > 1 else torch.zeros(1)
        _ = column.name, column.in_words, column.spec, column.values(column.unscaled(at).numpy())
        return column  # with all attributes that its methods need
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise ValueError(f"no column that a run keeps: {error!r}") from error


def _classes() -> dict[str, type[Column]]:
    """Classes of columns that a run names without a file."""
    classes: tuple[type[Column], ...] = (*KINDS.values(), *BUILT_IN, Skipped)
    return {cls.__name__: cls for cls in classes}


def _encoded(value: object) -> object:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"number": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_encoded(item) for item in value]
    if isinstance(value, Tensor) and value.dtype == torch.float64:
        return {"tensor": _encoded(value.tolist())}
    if isinstance(value, Column):
        return {"column": column_facts(value)}
    if isinstance(value, tuple):
        items, name = _encoded([*value]), type(value).__name__
        return {"record": [name, items]} if name in RECORDS else {"tuple": items}
    raise TypeError(f"{value!r} is a {type(value).__name__}, expected numbers or text")


def _decoded(value: object, find_kind: FindKind | None = None) -> Any:
    if isinstance(value, list):
        return [_decoded(item, find_kind) for item in value]
    match value:
        case {"number": str(text)}:
            return float(text)
        case {"tensor": list(numbers)}:
            return torch.tensor(_decoded(numbers), dtype=torch.float64)
        case {"column": dict(facts)}:
            return column_of_facts(facts, find_kind)
        case {"record": [str(name), list(fields)]} if name in RECORDS:
            return RECORDS[name](*_decoded(fields, find_kind))
        case {"tuple": list(values)}:
            return tuple(_decoded(values, find_kind))
        case dict():
            raise ValueError(f"no value that a run keeps: {str(value)[:60]}")
    return value
