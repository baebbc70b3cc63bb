"""Columns of tables: fitted to rows, they take tables to model space and back.

:func:`fit_columns` makes a :class:`Column` of each column of a pandas table, by its kind, which its
values say or you do; :func:`encode`, :func:`to_model_space` and :func:`decode` use them.
"""

from pyro_mdm.tables.columns.base import Center, Column
from pyro_mdm.tables.columns.facts import column_facts, column_of_facts
from pyro_mdm.tables.columns.fitting import decode, encode, fit_columns, to_model_space
from pyro_mdm.tables.columns.kinds import kind_of
from pyro_mdm.tables.columns.levels import Boolean, Categorical, Ordinal
from pyro_mdm.tables.columns.numbers import Continuous, Dates, Mixed, Rounded

__all__ = [
    "Boolean",
    "Categorical",
    "Center",
    "Column",
    "Continuous",
    "Dates",
    "Mixed",
    "Ordinal",
    "Rounded",
    "column_facts",
    "column_of_facts",
    "decode",
    "encode",
    "fit_columns",
    "kind_of",
    "to_model_space",
]
