"""Tables from a CSV or parquet file or from scikit-learn, with columns of several kinds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from models.checks import check_shape
from models.csv_files import read_csv, text_columns
from models.kept import table_bytes, table_of
from models.problem import Assembly, Problem
from pyro_mdm import MixedDenoiser
from pyro_mdm.networks import MLP
from pyro_mdm.scores.base import Score
from pyro_mdm.support.checks import DataError
from pyro_mdm.support.files import read_file, regular
from pyro_mdm.tables.columns import Categorical
from pyro_mdm.tables.columns.base import OTHERS
from pyro_mdm.tables.columns.kinds import KINDS, FindKind, Kinds, kinds_of, parse_spec
from pyro_mdm.tables.frames import named
from pyro_mdm.tables.rows import FEWEST, TableRows, without_dropped
from pyro_mdm.tables.training import BATCH_SIZE, GIVEN_RATE, MAX_LOG_SNR, WINDOW, new_denoiser

if TYPE_CHECKING:
    from pandas import DataFrame


def _with_classes(name: str) -> Callable[[], DataFrame]:
    """The function that loads a table of scikit-learn, whose target is a category by its name."""

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


class Tabular(TableRows, Problem):
    """Rows of a table, with an MLP that is given maps of log SNR.

    ``data`` is a CSV or parquet file, whose first row has the names, or the name of one of
    :data:`SHIPPED`, or a DataFrame; :class:`~pyro_mdm.tables.TableRows` explains the treatment of
    columns. An empty entry is missing. A tenth of the rows, drawn by
    ``split_seed``, is test. Those of :data:`SHIPPED` whose target is a category, all but diabetes,
    are split evenly over it. Bits per dimension are bits per column: of the density of a number in
    its own units, and of the probability of an atom, of a rounded number, of a day and of a level.

    Args:
        data: the file, a name, or a DataFrame. ``kept`` has a DataFrame as
            :func:`~models.kept.table_bytes`, with dropped columns empty. With
            ``holdout`` no rows of a DataFrame are test data, as its owner can hold out others, and
            its validation rows are measured as test. Without ``holdout`` a tenth is test, as of a
            file.
        columns, find_kind: arguments of :class:`~pyro_mdm.tables.TableRows`.
        holdout: whether to keep a validation part, see :class:`Problem`.

    Raises:
        DataError: no such file, or one that is no table; errors of
            :class:`~pyro_mdm.tables.TableRows`.
        ValueError: no ``data``, or ``columns`` of another form.
    """

    name = "tabular"
    scores: tuple[str, ...] = ("mixed",)
    default_maps: ClassVar = "mixed"
    max_log_snr, window = MAX_LOG_SNR, WINDOW
    steps, batch_size, learning_rate, keeps_best = 1500, BATCH_SIZE, GIVEN_RATE, True
    exact: ClassVar = True  # codes are numbers as they are read, and levels

    def __init__(
        self,
        *,
        data: Path | str | DataFrame | None = None,
        columns: Kinds = None,
        holdout: bool = False,
        find_kind: FindKind | None = None,
    ) -> None:
        if data is None:
            raise ValueError(
                "--model tabular needs --data: a CSV or parquet file whose first row has the names "
                f"of its columns, or one of {', '.join(SHIPPED)}"
            )
        self.kept: bytes | None = None
        if not isinstance(data, Path | str):
            data, self.kept = "the table", table_bytes(without_dropped(data, columns))
        self.begin(data, columns, find_kind)
        Problem.__init__(self, holdout=holdout)

    @property
    def split_in_words(self) -> str:
        words = super().split_in_words
        same = self.is_from_frame and len(self.validation)
        return f"{words}; test data are the validation data" if same else words

    @property
    def is_from_frame(self) -> bool:
        """Whether the table was a DataFrame, which a run keeps as a JSON file."""
        return self.kept is not None or str(self.source).endswith(".json")

    @property
    def absolute_source(self) -> str:
        """The file with its absolute path, or the name."""
        source = str(self.source)
        return source if source in SHIPPED else str(Path(source).expanduser().resolve())

    def split(self, holdout: bool) -> tuple[Tensor, Tensor, Tensor]:
        facts = self.facts
        if facts is not None:
            self.take_columns(facts)
        try:
            texts = _Categories(self._kinds) if facts is None else text_columns(self.columns)
            table = read_table(self.source, texts) if self.kept is None else table_of(self.kept)
            return self.divided(table, holdout=holdout)
        except DataError as error:
            if facts is None:
                raise
            self.absent = str(error)
            return self._stand_ins()

    def _stand_ins(self) -> tuple[Tensor, Tensor, Tensor]:
        """Random rows that replace those that cannot be read, for a model that is built from them
        before its weights are loaded."""
        x = torch.randn(
            3, 2 * FEWEST, *self.event_shape, generator=torch.Generator().manual_seed(0)
        )
        pieces = zip(self.columns, x.split([c.width for c in self.columns], -1), strict=True)
        train, validation, test = torch.stack(
            [c.unscaled(piece if c.width > 1 else piece.squeeze(-1)) for c, piece in pieces], -1
        )
        return train, validation if self.holdout else validation[:0], test

    def strata_of(self, table: DataFrame) -> Tensor | None:
        """The classes of a shipped table, (n,)."""
        import pandas as pd

        if str(self.source) not in SHIPPED:
            return None
        kind = KINDS.get(kinds_of(table, self._kinds)["target"])
        if kind is None or kind.most_levels is None:
            return None
        return torch.from_numpy(pd.factorize(table["target"])[0]).long()

    def check(self, data: Tensor, what: str) -> None:
        """Check the shape; entries may be missing, and columns check the others."""
        check_shape(data, (len(self.columns),), what)

    def network(self, inputs: int, outputs: int) -> nn.Module:
        return MLP(inputs, hidden=128, depth=3, out_features=outputs)

    def own_score(self, kind: type[Score], assembly: Assembly) -> Score | None:
        return new_denoiser(self) if kind is MixedDenoiser else None


class _Categories(Container[str]):
    """The names of columns that are said to be of categories."""

    def __init__(self, kinds: Mapping[str, str]) -> None:
        self._kinds: dict[str, str | None] = {}
        for name, text in kinds.items():
            with contextlib.suppress(DataError):  # a name with a sign, which the table will know
                self._kinds[name] = parse_spec(name, text).kind

    def __contains__(self, name: object) -> bool:
        kind = self._kinds.get(str(name), self._kinds.get(OTHERS))
        return kind == Categorical.kind


def read_table(source: Path | str, as_text: Container[str] = ()) -> DataFrame:
    """The table of a .csv or .parquet file, or of a name.

    Args:
        source: the file or the name.
        as_text: the names of columns whose cells are text in a .csv file, also where all are
            numbers; see :mod:`models.csv_files`.

    Raises:
        DataError: a file that cannot be read, or an unknown name.
    """
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
        ".csv": lambda file: read_csv(file, as_text),
        ".parquet": _read_parquet,
        ".json": lambda file: table_of(read_file(file)),
    }
    if path.suffix not in readers or not path.is_file():
        problem = "is not there" if path.suffix in readers else "is no table that can be read"
        raise DataError(
            f"--data {path} {problem}; expected a .csv or .parquet file, or one of "
            f"{', '.join(SHIPPED)}"
        )
    try:
        table = readers[path.suffix](path)
    except (ValueError, OSError, ImportError, pd.errors.ParserError) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error
    return named(table, path)


def _read_parquet(path: Path) -> DataFrame:
    import pandas as pd

    return pd.read_parquet(regular(path))
