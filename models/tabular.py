"""Tables from a CSV or parquet file or from scikit-learn, with columns of several kinds."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, get_args

import numpy as np
import torch
from torch import Tensor, nn

from models.checks import check_shape
from models.columns import (
    OTHERS,
    Column,
    Kind,
    categories,
    decode,
    encode,
    fit_columns,
    to_model_space,
)
from models.files import DataError
from models.kept import table_bytes, table_of
from models.problem import Assembly, Problem
from pyro_mdm import MixedDenoiser
from pyro_mdm.likelihoods.dequantization import Dequantized
from pyro_mdm.networks import MLP
from pyro_mdm.scores.base import Score

if TYPE_CHECKING:
    from pandas import DataFrame

FEWEST = 20
HIDDEN, DEPTH = 128, 3


def _with_classes(name: str) -> Callable[[], DataFrame]:
    """A table of scikit-learn's whose target is a category by its name."""

    def read() -> DataFrame:
        from sklearn import datasets

        data = getattr(datasets, f"load_{name}")(as_frame=True)
        table: DataFrame = data.frame
        return table.assign(target=[str(data.target_names[k]) for k in table["target"]])

    return read


def _diabetes() -> DataFrame:
    from sklearn.datasets import load_diabetes

    table: DataFrame = load_diabetes(as_frame=True, scaled=False).frame
    return table


SHIPPED: dict[str, Callable[[], DataFrame]] = {
    "breast_cancer": _with_classes("breast_cancer"),
    "diabetes": _diabetes,
    "iris": _with_classes("iris"),
    "wine": _with_classes("wine"),
}
"""Tables of scikit-learn by name, with their targets."""


class Tabular(Problem):
    """Rows of a table, with an MLP that is told maps of log SNR.

    Columns of numbers are made normal by their quantiles and have a Gaussian denoiser; ordinal and
    categorical ones have a logit for each level.

    ``data`` is a CSV or parquet file, whose first row has the names, or the name of one of
    :data:`SHIPPED`, or a DataFrame. An empty entry is missing. What columns are taken for says
    :func:`~models.columns.kind_of`. A tenth
    of the rows, drawn by ``split_seed``, is test, and scales and categories are those of the
    training rows; a row with a level that no other row has is trained on. Those of :data:`SHIPPED`
    whose target is a category, all but diabetes, are split evenly over it. Bits per dimension are
    bits per column: of the density of a number in its own units, and of the probability of an atom,
    of a rounded number and of a level.

    Args:
        data: the file, a name, or a DataFrame, which is in ``kept`` then, as
            :func:`~models.kept.table_bytes`.
        columns: kinds of columns where they are to be others, ``"age=continuous,zip=drop"``, of
            :data:`~models.columns.Kind`. That of ``*`` is of all columns that are not named, and
            may be plain too: continuous, ordinal or categorical, whatever numbers repeat.
        holdout: see :class:`Problem`.

    Raises:
        DataError: no such file, or one that is no table; fewer than 20 rows; an unknown column or
            kind; a column without a value, with a single one, with too many levels, or with a
            different level in every row; without ``split_seed``, a category that only test rows
            have.
        ValueError: no ``data``, or ``columns`` of another form.
    """

    name = "tabular"
    scores: tuple[str, ...] = ("mixed",)
    max_log_snr: float = 9.0
    default_maps: ClassVar = "mixed"
    steps = 2000
    batch_size = 256
    learning_rate = 1e-3

    def __init__(
        self,
        *,
        data: Path | str | DataFrame | None = None,
        columns: str | None = None,
        holdout: bool = False,
    ) -> None:
        if data is None:
            raise ValueError(
                "--model tabular needs --data: a CSV or parquet file whose first row has the names "
                f"of its columns, or one of {', '.join(SHIPPED)}"
            )
        self.kept: bytes | None = None
        if not isinstance(data, Path | str):
            data, self.kept = "the table", table_bytes(_named(data, "the table"))
        self.source, self._kinds = data, _kinds(columns)
        self.columns: list[Column] = []
        super().__init__(holdout=holdout)

    @property
    def all_kinds(self) -> str:
        """``columns`` that say the kind of every column, and so need no table to infer it from."""
        text = io.StringIO()
        kinds = [f"{column.name}={column.kind}" for column in self.columns]
        csv.writer(text, lineterminator="").writerow([f"{OTHERS}=drop", *kinds])
        return text.getvalue()

    @property
    def columns_in_words(self) -> str:
        """What each column was taken for, a line each, and how to say otherwise."""
        width = max(len(column.name) for column in self.columns)
        lines = [f"  {c.name:<{width}}  {c.told}" for c in self.columns]
        kinds = ", ".join(get_args(Kind))
        return "\n".join(
            [
                "columns of the table (say otherwise by --columns NAME=KIND,…, of",
                f"{kinds}):",
                *lines,
            ]
        )

    @property
    def absolute_source(self) -> str:
        """The file with its absolute path, or the name."""
        source = str(self.source)
        return source if source in SHIPPED else str(Path(source).expanduser().resolve())

    def split(self, holdout: bool) -> tuple[Tensor, Tensor, Tensor]:
        table = read_table(self.source) if self.kept is None else table_of(self.kept)
        if len(table) < FEWEST:
            raise DataError(f"{self.source} has {len(table)} rows, expected at least {FEWEST}")
        levels = categories(table, self._kinds)
        target = levels.get("target") if str(self.source) in SHIPPED else None
        rows = self.divide(len(table), holdout, target, list(levels.values()))
        train = np.zeros(len(table), dtype=np.bool_)
        train[rows.train.numpy()] = True
        self.columns = fit_columns(table, train, self._kinds)
        if len(rows.test) == 0:
            name = max(levels, key=lambda name: int(levels[name].max()))
            raise DataError(
                f"{self.source}: no row is left to test on, as each of those drawn has a level "
                f"that no other row has; column {name!r} has {int(levels[name].max()) + 1} levels "
                f"in {len(table)} rows. Leave it out: --columns {name}=drop"
            )
        codes = encode(self.columns, table)
        return codes[rows.train], codes[rows.validation], codes[rows.test]

    def check(self, data: Tensor, what: str) -> None:
        """Check the shape; entries may be missing, and columns check the others."""
        check_shape(data, self.event_shape, what)

    def network(self, inputs: int, outputs: int) -> nn.Module:
        return MLP(inputs, hidden=HIDDEN, depth=DEPTH, out_features=outputs)

    def transform(self, data: Tensor, generator: torch.Generator | None = None) -> Dequantized:
        return to_model_space(self.columns, data, generator)

    def fit_x(self) -> Tensor:
        """All training rows: in some of them a column may have no value."""
        return self.to_model_space(self.train, torch.Generator().manual_seed(0))

    def own_score(self, kind: type[Score], assembly: Assembly) -> Score | None:
        if kind is not MixedDenoiser:
            return None
        levels = [column.levels for column in self.columns]
        return kind.from_gaussian(self.fit_x(), levels, hidden=HIDDEN, depth=DEPTH)

    def encode(self, table: DataFrame, generator: torch.Generator | None = None) -> Tensor:
        """Another table in model space, (n, d), NaN where missing (DataError: unknown values)."""
        return self.to_model_space(encode(self.columns, table), generator)

    def to_table(self, x: Tensor) -> DataFrame:
        """Data x (n, d) in model space as a table in its own units and categories."""
        return decode(self.columns, x)


def _kinds(columns: str | None) -> dict[str, str]:
    """Kinds of columns by name, of ``"age=continuous,zip=drop"``, quoted as in a CSV file."""
    kinds = {}
    for part in next(csv.reader([columns or ""], skipinitialspace=True), []):
        name, equals, kind = part.strip().rpartition("=")
        if part.strip() and not (equals and name):
            raise ValueError(
                f"--columns has {part.strip()!r}, expected name=kind, with commas between; e.g. "
                "age=continuous,zip=drop"
            )
        if equals:
            kinds[name.strip()] = kind.strip()
    return kinds


def read_table(source: Path | str) -> DataFrame:
    """The table of a .csv or .parquet file, or of a name (DataError: it cannot be read)."""
    try:
        import pandas as pd
    except ImportError as error:
        raise DataError(
            f"{source} is read by pandas, which is not installed; pip install pandas"
        ) from error
    if str(source) in SHIPPED:
        return SHIPPED[str(source)]()
    path = Path(source).expanduser()
    readers: dict[str, Callable[[Path], DataFrame]] = {
        ".csv": pd.read_csv,
        ".parquet": pd.read_parquet,
        ".json": lambda file: table_of(file.read_bytes()),
    }
    if path.suffix not in readers or not path.is_file():
        known = "is not there" if path.suffix in readers else "is no table that can be read"
        raise DataError(
            f"--data {path} {known}; expected a .csv or .parquet file, or one of "
            f"{', '.join(SHIPPED)}"
        )
    try:
        table = readers[path.suffix](path)
    except (ValueError, OSError, ImportError, pd.errors.ParserError) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error
    return _named(table, path)


def _named(table: DataFrame, where: object) -> DataFrame:
    """A table whose columns have names that differ (DataError: two have one name)."""
    table = table.set_axis(table.columns.map(str), axis=1)
    if table.columns.has_duplicates:
        twice = table.columns[table.columns.duplicated()][0]
        raise DataError(
            f"{where} has two columns {twice!r}, expected names that differ; rename one"
        )
    return table
