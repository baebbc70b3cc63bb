"""Columns of tables: fitted to rows, they map tables to model space and back.

:func:`fit_columns` makes a :class:`Column` of each column of a pandas table, by its kind, which is
inferred from its values or given; :func:`encode`, :func:`to_model_space` and :func:`decode` use
them.
"""

from pyro_mdm.tables.columns.base import Center, Column, ColumnSpec
from pyro_mdm.tables.columns.dates import Dates
from pyro_mdm.tables.columns.facts import column_facts, column_of_facts
from pyro_mdm.tables.columns.fitting import decode, encode, fit_columns, to_model_space
from pyro_mdm.tables.columns.kinds import KINDS, kind_of, register_kind
from pyro_mdm.tables.columns.levels import Boolean, Categorical, Ordinal
from pyro_mdm.tables.columns.numbers import (
    Bounded,
    Continuous,
    Integer,
    Mixed,
    Nonnegative,
    Rounded,
)

__all__ = [
    "KINDS",
    "Boolean",
    "Bounded",
    "Categorical",
    "Center",
    "Column",
    "ColumnSpec",
    "Continuous",
    "Dates",
    "Integer",
    "Mixed",
    "Nonnegative",
    "Ordinal",
    "Rounded",
    "column_facts",
    "column_of_facts",
    "decode",
    "encode",
    "fit_columns",
    "kind_of",
    "register_kind",
    "to_model_space",
]
