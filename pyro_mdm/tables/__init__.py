"""Tables: a joint distribution of columns of several kinds, with their denoisers and decoders."""

from pyro_mdm.tables.columns import (
    Boolean,
    Bounded,
    Categorical,
    Column,
    ColumnSpec,
    Continuous,
    Dates,
    Integer,
    Mixed,
    Nonnegative,
    Ordinal,
    Rounded,
    fit_columns,
    register_kind,
)
from pyro_mdm.tables.conditional import Conditional
from pyro_mdm.tables.denoiser import MixedDenoiser
from pyro_mdm.tables.likelihood import MixedLikelihood
from pyro_mdm.tables.network import LevelLogits, MapMLP
from pyro_mdm.tables.one_hot import OneHot, OneHotDenoiser, OneHotLikelihood
from pyro_mdm.tables.pooling import pooled
from pyro_mdm.tables.rows import TableRows
from pyro_mdm.tables.table import NotFittedError, Table

__all__ = [
    "Boolean",
    "Bounded",
    "Categorical",
    "Column",
    "ColumnSpec",
    "Conditional",
    "Continuous",
    "Dates",
    "Integer",
    "LevelLogits",
    "MapMLP",
    "Mixed",
    "MixedDenoiser",
    "MixedLikelihood",
    "Nonnegative",
    "NotFittedError",
    "OneHot",
    "OneHotDenoiser",
    "OneHotLikelihood",
    "Ordinal",
    "Rounded",
    "Table",
    "TableRows",
    "fit_columns",
    "pooled",
    "register_kind",
]
