"""Tables as JSON with every value and type of a pandas table, without pandas' pickles.

``{"rows": n, "columns": [{"name": …, "dtype": …, "values": […]}, …]}``, null where an entry is
missing. Numbers have all their digits. A column of pandas categories has them and their codes;
times are counted in the unit of their dtype since 1970, in UTC. Dates that are objects are ISO text
of dtype "date". The index is not kept.
"""

from __future__ import annotations

import datetime
import json

import numpy as np

from pyro_mdm.support.checks import DataError
from pyro_mdm.support.files import JsonObject, json_of
from pyro_mdm.tables.columns.lazy import pd

__all__ = ["table_bytes", "table_of"]

SCALARS = (bool, int, float, str)
"""The types of values that JSON holds."""


def table_bytes(table: pd.DataFrame) -> bytes:
    """A table as JSON.

    Raises:
        DataError: a column with values other than numbers, text and times.
    """
    columns = [{"name": str(name), **_column(str(name), values)} for name, values in table.items()]
    return json.dumps({"rows": len(table), "columns": columns}).encode()


def table_of(content: bytes) -> pd.DataFrame:
    """The table of :func:`table_bytes`, with rows 0, 1, ….

    Raises:
        ValueError: other bytes.
    """
    try:
        kept = json_of(content)
        columns = [(column["name"], _values(column)) for column in kept["columns"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"no table that a run keeps: {error!r}") from error
    table = pd.DataFrame(dict(enumerate(column for _, column in columns)), range(kept["rows"]))
    return table.set_axis([name for name, _ in columns], axis=1)


def _column(name: str, values: pd.Series) -> dict[str, object]:
    kind = values.dtype
    if isinstance(kind, pd.CategoricalDtype):
        codes = [None if code < 0 else int(code) for code in values.cat.codes]
        levels = _column(name, pd.Series(kind.categories))
        return {"dtype": "category", "ordered": bool(kind.ordered), "of": levels, "values": codes}
    if pd.api.types.is_datetime64_any_dtype(kind) or pd.api.types.is_timedelta64_dtype(kind):
        return {"dtype": str(kind), "values": values.astype("int64").tolist()}
    missing = values.isna().to_numpy()
    if pd.api.types.infer_dtype(values) == "date" and pd.api.types.is_object_dtype(kind):
        days = [None if day is None else day.isoformat() for day in values.where(~missing, None)]
        return {"dtype": "date", "values": days}
    items: list[object] = []
    for value, gone in zip(values.astype(object), missing, strict=True):
        value = value.item() if isinstance(value, np.generic) else value
        if not gone and type(value) not in SCALARS:
            raise DataError(
                f"column {name!r} holds {value!r}, a {type(value).__name__}, expected numbers, "
                "text or times; convert it, as by .astype(str), or leave it out: "
                f'columns="{name}=drop"'
            )
        items.append(None if gone else value)
    return {"dtype": str(kind), "values": items}


def _values(column: JsonObject) -> pd.Series:
    if column["dtype"] == "category":
        dtype = pd.CategoricalDtype(_values(column["of"]), column["ordered"])
        codes = [-1 if code is None else code for code in column["values"]]
        return pd.Series(pd.Categorical.from_codes(codes, dtype=dtype))
    if column["dtype"].startswith(("datetime64", "timedelta64")):
        return pd.Series(column["values"], dtype="int64").astype(column["dtype"])
    if column["dtype"] == "date":
        days = [day and datetime.date.fromisoformat(day) for day in column["values"]]
        return pd.Series(days, dtype=object)
    return pd.Series(column["values"], dtype=column["dtype"])
