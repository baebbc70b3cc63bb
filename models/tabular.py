"""Tables from a CSV or parquet file or from scikit-learn, with columns of several kinds."""

from __future__ import annotations

import csv
import functools
import io
import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from models.checks import check_shape
from models.files import DataError
from models.problem import Assembly, Problem
from pyro_mdm import MixedDenoiser, randomness
from pyro_mdm.likelihoods.dequantization import Dequantized
from pyro_mdm.networks import MLP
from pyro_mdm.scores.base import Score
from pyro_mdm.support.splits import Rows
from pyro_mdm.tables.columns import (
    Categorical,
    Column,
    chained_completions,
    column_facts,
    column_of_facts,
    decode,
    encode,
    fit_columns,
    to_model_space,
)
from pyro_mdm.tables.columns.base import as_written
from pyro_mdm.tables.columns.fitting import Unknown, known_alone, unknown_in
from pyro_mdm.tables.columns.gaps import Pattern, never_together, patterns, skip_rules
from pyro_mdm.tables.columns.kept import table_bytes, table_of
from pyro_mdm.tables.columns.kinds import (
    DROP,
    KINDS,
    FindKind,
    class_of,
    doubts_of,
    is_name,
    kind_names,
    kinds_of,
    left_out,
    parse_spec,
)
from pyro_mdm.tables.columns.skipped import ABSENT, HIDDEN, Rule, Skipped, SkippedNumbers
from pyro_mdm.tables.columns.spec import OTHERS, PLAIN

if TYPE_CHECKING:
    from pandas import DataFrame

FEWEST = 20
SHOWN = 12
"""The most patterns of gaps that are printed."""
OfUnknown = Literal["missing", "refuse"]
"""What is done with values that a column cannot have."""
TABLES = 4
"""Completed tables that the Gaussian law of the denoiser is fitted to."""
WIDTH, DEPTH = 128, 3
NETWORK: dict[str, Any] = {
    "hidden": 64,
    "depth": 2,
    "frequencies": (0.25, 0.5, 1.0, 2.0),
    "members": 4,
    "dropout": 0.1,
}
"""The network of a table; that of plain columns is the one of older runs."""
WINDOW = (-3.0, 3.0)
"""The log SNRs between which most training maps are."""


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

    Columns of numbers and dates are made normal by their quantiles and have a Gaussian denoiser;
    boolean, ordinal and categorical ones have a logit for each level. Three categories or more are
    one-hot.

    ``data`` is a CSV or parquet file, whose first row has the names, or the name of one of
    :data:`SHIPPED`, or a DataFrame. An empty entry is missing. What columns are taken for says
    :func:`~pyro_mdm.tables.columns.kind_of`, and which are left out
    :func:`~pyro_mdm.tables.columns.kinds.left_out`. A tenth of the rows, drawn by ``split_seed``,
    is test, and scales and categories are those of the training rows. A category that these do not
    have, or that is not one of their 100 most frequent, counts as missing. Those of
    :data:`SHIPPED` whose target is a category, all but diabetes, are split evenly over it. Bits per
    dimension are bits per column: of the density of a number in its own units, and of the
    probability of an atom, of a rounded number, of a day and of a level.

    Args:
        data: the file, a name, or a DataFrame, which is in ``kept`` then, as
            :func:`~pyro_mdm.tables.columns.kept.table_bytes`, where columns that are said to be
            dropped are empty.
            Of a DataFrame with ``holdout`` no rows are test data: those who have one hold out their
            own, and what is measured as test are its validation rows. Without ``holdout`` a tenth
            is test, as of a file.
        columns: what columns are where they are to be others: a kind of
            :data:`~pyro_mdm.tables.columns.KINDS`, an order, or a range, as in
            ``"age=continuous,zip=drop,size=small<middle<large,score=0..100"``. The kind of ``*`` is
            that of all columns that are not named, and may be plain too: continuous, ordinal or
            categorical, whatever numbers repeat, and categories on a line.
        holdout: see :class:`Problem`.
        find_kind: function that returns the class of a kind of columns of your own, which
            ``columns`` name as ``file.py:Name``.

    Attributes:
        columns: the columns of the model.
        left_out: why others that nothing was said of are not among them, by name.
        doubts: what is doubtful of columns and their kinds, by name, in words.

    Raises:
        DataError: no such file, or one that is no table; fewer than 20 rows; an unknown column or
            kind; a kind, an order or a range that the values of a column do not have; infinite
            numbers; no column that a model could learn of.
        ValueError: no ``data``, or ``columns`` of another form.
    """

    name = "tabular"
    scores: tuple[str, ...] = ("mixed",)
    max_log_snr: float = 9.0
    default_maps: ClassVar = "mixed"
    refusing: str = 'unknown="refuse"'
    """What makes values that a column cannot have an error, in the words of who asks."""
    exact: ClassVar = True  # codes are numbers as they are read, and levels
    KEEPS: ClassVar = True
    """:attr:`keeps_best`, unless columns are plain."""
    steps = 1500
    batch_size = 512
    learning_rate = 5e-3

    def __init__(
        self,
        *,
        data: Path | str | DataFrame | None = None,
        columns: str | None = None,
        holdout: bool = False,
        find_kind: FindKind | None = None,
    ) -> None:
        if data is None:
            raise ValueError(
                "--model tabular needs --data: a CSV or parquet file whose first row has the names "
                f"of its columns, or one of {', '.join(SHIPPED)}"
            )
        self.kept: bytes | None = None
        self._find_kind = find_kind
        if not isinstance(data, Path | str):
            table = _named(data, "the table")
            kinds = _kinds(columns, [*table.columns])
            others = kinds.get(OTHERS)
            dropped = [name for name in table if kinds.get(name, others) == DROP]
            empty = table.assign(**dict.fromkeys(dropped))  # whatever objects are in them
            data, self.kept = "the table", table_bytes(empty)
        self.source, self._said, self._kinds = data, columns or "", _kinds(columns)
        self.columns: list[Column] = []
        if not self._plain:
            self.keeps_best, self.window = self.KEEPS, WINDOW
        self.left_out: dict[str, str] = {}
        self.doubts: dict[str, list[str]] = {}
        self._rows_with_gaps: tuple[DataFrame, list[str], dict[str, Rule | None]] | None = None
        super().__init__(holdout=holdout)

    @property
    def _plain(self) -> bool:
        """Whether columns, network and training are those of older runs."""
        return self._kinds.get(OTHERS) == PLAIN

    @property
    def all_kinds(self) -> str:
        """``columns`` that say what every column is, and so need no table to infer it from; as they
        were given where the others are plain."""
        if self._plain:
            return self._said
        return said_of({OTHERS: DROP, **{c.name: self._spec_of(c) for c in self.columns}})

    def _spec_of(self, column: Column) -> str:
        name = column.name
        mar = name in self._kinds and parse_spec(name, self._kinds[name]).empty == "mar"
        return f"{column.spec} mar" if mar else column.spec

    @property
    def columns_in_words(self) -> str:
        """What each column was taken for, a line each, doubts, and how to say otherwise."""
        rows = {c.name: c.in_words for c in self.columns}
        rows |= {name: f"left out: {reason}" for name, reason in self.left_out.items()}
        width = max(map(len, rows))
        lines = []
        for name, words in rows.items():
            lines.append(f"  {name:<{width}}  {words}")
            lines += [f"  {'':<{width}}  warning: {doubt}" for doubt in self.doubts.get(name, [])]
        kinds = ", ".join(kind_names())
        return "\n".join(
            [
                "columns of the table (say otherwise by --columns NAME=KIND,…, of",
                f"{kinds};",
                'by an order, "NAME=low<middle<high"; or by a range, NAME=0..100):',
                *lines,
            ]
        )

    @property
    def is_incomplete(self) -> bool:
        return bool((self.train.isnan() | (self.train == HIDDEN)).any())

    @functools.cached_property
    def patterns(self) -> list[Pattern]:
        """The gaps of the columns of a new run, computed when they are asked for: how predictable
        they are takes seconds."""
        return [] if self._rows_with_gaps is None else patterns(*self._rows_with_gaps)

    @property
    def gaps_in_words(self) -> str:
        """Where columns are empty, a line each; none: they are not."""
        if not self.patterns:
            return ""
        lines = [f"  {pattern.in_words}" for pattern in self.patterns]
        more = [f"  and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        return "\n".join(["gaps of the table:", *lines[:SHOWN], *more])

    def warn_of_gaps(self) -> None:
        """Warn of what no row has, so that a model extrapolates it."""
        if self._rows_with_gaps is None:
            return
        rows, names, absent = self._rows_with_gaps
        there = rows[names].notna().all(axis=1)
        unseen = {} if there.all() else skip_rules(rows, names, np.ones(len(rows), dtype=np.bool_))
        without = [
            f"no row has {name!r} {rule.in_words}: what it is there is extrapolated, and no data "
            f"can say whether rightly; say {name}=absent if it does not exist there"
            for name, rule in unseen.items()
            if name not in absent
        ]
        without += [
            f"no row has both {one!r} and {other!r}: how they depend on each other, given the "
            "rest, is not in the data"
            for one, other in never_together(rows, names)
            if {one, other}.isdisjoint(absent)
        ]
        if without:
            more = f"; and {len(without) - SHOWN} more" if len(without) > SHOWN else ""
            warnings.warn("; ".join(without[:SHOWN]) + more, stacklevel=2)

    @property
    def split_in_words(self) -> str:
        words = super().split_in_words
        same = self._of_frame and len(self.validation)
        return f"{words}; test data are the validation data" if same else words

    @property
    def _of_frame(self) -> bool:
        """Whether the table was a DataFrame, which a run keeps as a JSON file."""
        return self.kept is not None or str(self.source).endswith(".json")

    @property
    def absolute_source(self) -> str:
        """The file with its absolute path, or the name."""
        source = str(self.source)
        return source if source in SHIPPED else str(Path(source).expanduser().resolve())

    def split(self, holdout: bool) -> tuple[Tensor, Tensor, Tensor]:
        if self.facts is not None:
            self._take(self.facts)
        try:
            codes, rows = self._codes_and_rows(holdout)
        except DataError as error:
            if self.facts is None:
                raise
            self.absent = str(error)
            return self._stand_ins()
        return codes[rows.train], codes[rows.validation], codes[rows.test]

    def _codes_and_rows(self, holdout: bool) -> tuple[Tensor, Rows]:
        """The codes of all rows (n, d), and which are in which part."""
        table = read_table(self.source) if self.kept is None else table_of(self.kept)
        table = as_written(table)
        if len(table) < FEWEST:
            raise DataError(f"{self.source} has {len(table)} rows, expected at least {FEWEST}")
        self._kinds, is_new = _kinds(self._said, [*table.columns]), self.facts is None
        rows = self.divide(len(table), holdout, self._strata(table))
        if self._of_frame and holdout:
            others = torch.cat([rows.train, rows.test]).sort().values
            rows = self.rows = rows._replace(train=others, test=rows.validation)
        train = np.zeros(len(table), dtype=np.bool_)
        train[rows.train.numpy()] = True
        if self.facts is None:
            self.columns = fit_columns(table, train, self._kinds, self._find_kind)
            self.event_shape = (sum(column.width for column in self.columns),)
            self.facts = self._facts
        self.left_out = left_out(table, train, self._kinds)
        unknown = unknown_in(self.columns, table)
        self._doubt(table, unknown)
        rest = known_alone(table, unknown)
        codes = encode(self.columns, rest)
        if is_new and not self._plain:
            rules = {c.name: c.rule for c in self.columns if isinstance(c, Skipped)}
            names = [column.name for column in self.columns]
            self._rows_with_gaps = rest, names, dict(rules)
        if (empty := codes[rows.train].isnan().all(0)).any():
            name = self.columns[int(empty.nonzero()[0])].name
            raise DataError(
                f"column {name!r} of {self.source} has none of its values in the training rows"
            )
        return codes, rows

    @property
    def _facts(self) -> dict[str, Any] | None:
        """The columns as JSON; None where there are levels that it cannot hold."""
        facts = []
        for column in self.columns:
            try:
                facts.append(column_facts(column))
            except TypeError as error:
                if is_name(column.kind):
                    raise DataError(
                        f"a run cannot keep column {column.name!r} of {column.kind}: {error}; its "
                        "attributes must be numbers, text, tensors, lists, tuples or other columns"
                    ) from error
                return None
        return {"columns": facts}

    def _take(self, facts: Mapping[str, Any]) -> None:
        """Take the columns of facts (DataError: they are none)."""
        try:
            self.columns = [column_of_facts(one, self._class_of) for one in facts["columns"]]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"what the run keeps of its table is damaged: {error}") from error
        self.event_shape = (sum(column.width for column in self.columns),)

    def _class_of(self, name: str) -> type[Column]:
        """A class of your own that facts name, of the file that the settings name by now."""
        kinds = [parse_spec(column, text).kind or "" for column, text in self._kinds.items()]
        moved = {kind.rpartition("/")[2]: kind for kind in kinds if is_name(kind)}
        return class_of(moved.get(name.rpartition("/")[2], name), self._find_kind)

    def _stand_ins(self) -> tuple[Tensor, Tensor, Tensor]:
        """Drawn rows in place of those that cannot be read, for a model that is built of them and
        then has its own weights."""
        x = torch.randn(
            3, 2 * FEWEST, *self.event_shape, generator=torch.Generator().manual_seed(0)
        )
        pieces = zip(self.columns, x.split([c.width for c in self.columns], -1), strict=True)
        train, validation, test = torch.stack(
            [c.unscaled(piece if c.width > 1 else piece.squeeze(-1)) for c, piece in pieces], -1
        )
        return train, validation if self.holdout else validation[:0], test

    def _strata(self, table: DataFrame) -> Tensor | None:
        """The classes of a shipped table, (n,)."""
        import pandas as pd

        if str(self.source) not in SHIPPED:
            return None
        kind = KINDS.get(kinds_of(table, self._kinds)["target"])
        if kind is None or kind.most_levels is None:
            return None
        return torch.from_numpy(pd.factorize(table["target"])[0]).long()

    def _doubt(self, table: DataFrame, unknown: Mapping[str, Unknown]) -> None:
        """Set :attr:`doubts`: of inferred kinds, and of categories that count as missing."""
        inferred = {c.name: c.kind for c in self.columns} | dict.fromkeys(
            self.left_out, "categorical"
        )
        for name, kind in inferred.items():
            doubts = []
            if name not in self._kinds and self._kinds.get(OTHERS, PLAIN) == PLAIN:
                doubts += doubts_of(name, table[name], kind)
            if name in unknown:
                what = unknown[name]
                doubts.append(
                    f"{what.values} {what.are} no category of the training rows, or {what.are} "
                    f"not one of the {Categorical.most_levels} most frequent; missing in "
                    f"{what.rows}"
                )
            if doubts:
                self.doubts[name] = doubts

    def check(self, data: Tensor, what: str) -> None:
        """Check the shape; entries may be missing, and columns check the others."""
        check_shape(data, (len(self.columns),), what)

    def network(self, inputs: int, outputs: int) -> nn.Module:
        return MLP(inputs, hidden=WIDTH, depth=DEPTH, out_features=outputs)

    def transform(self, data: Tensor, generator: torch.Generator | None = None) -> Dequantized:
        x, log_det = to_model_space(self.columns, data, generator)
        return Dequantized(x.to(self.dtype), log_det)

    def training_x(self, data: Tensor, generator: torch.Generator | None = None) -> Dequantized:
        """Rows as :meth:`transform` has them, with numbers from N(0, 1) where there are none.

        What is independent of all else changes no law of the rest: a pseudo-prior, as in Carlin &
        Chib, "Bayesian model choice via Markov chain Monte Carlo methods", 1995.
        """
        x, log_det = self.transform(data, generator)
        starts = [0, *itertools.accumulate(column.width for column in self.columns)]
        for j, column in enumerate(self.columns):
            if isinstance(column, SkippedNumbers):
                at = starts[j] + 1
                if generator is None:
                    noise = randomness.normal((len(x),), x.dtype, x.device)
                else:
                    noise = torch.randn(len(x), generator=generator).to(x)
                x[:, at] = torch.where((data[:, j] == ABSENT).to(x.device), noise, x[:, at])
        return Dequantized(x, log_det)

    @functools.cached_property
    def _completions(self) -> Tensor | None:
        return None if self._plain else chained_completions(self.columns, self.train, num=TABLES)

    @property
    def completed(self) -> Tensor | None:
        return None if self._completions is None else self._completions[0]

    def fit_x(self) -> Tensor:
        """All training rows, of which some may lack a column; or :data:`TABLES` times these,
        completed, where gaps depend on other columns."""
        completions = None if self.rough else self._completions
        rows = self.train if completions is None else completions.flatten(0, 1)
        return self.training_x(rows, torch.Generator().manual_seed(0)).x

    def own_score(self, kind: type[Score], assembly: Assembly) -> Score | None:
        if kind is not MixedDenoiser:
            return None
        levels = [levels for column in self.columns for levels in column.denoiser_levels]
        if self._plain:
            return kind.from_gaussian(self.fit_x(), levels, hidden=WIDTH, depth=DEPTH, logits=False)
        return kind.from_gaussian(self.fit_x(), levels, **NETWORK)

    def codes(
        self, table: DataFrame, unknown: OfUnknown = "missing", hidden: Sequence[str] = ()
    ) -> Tensor:
        """The stored data (n, d) of another table, float64, NaN where missing.

        Args:
            table: a table with all columns of the model, whose order is free, and any others.
            hidden: columns of which nothing is known; empty entries of others may be absent.
            unknown: what to do with values that a column of the model cannot have, such as new
                categories and numbers out of its range: "missing" takes them for missing entries,
                with a warning, and "refuse" is a DataError.

        Raises:
            DataError: absent columns, infinite numbers, and unknown values if they are refused.
        """
        if unknown not in get_args(OfUnknown):
            raise ValueError(
                f"unknown is {unknown!r}, expected one of {', '.join(get_args(OfUnknown))}"
            )
        check_names([*table.columns], "the table")
        table = as_written(table)
        if unknown == "missing":
            masks = unknown_in(self.columns, table)
            for name, what in masks.items():
                warnings.warn(
                    f"column {name!r} holds {what.values} in {what.rows}, expected of it "
                    f"{self._in_words(name)}; there the entry counts as missing, and "
                    f"{self.refusing} makes this an error",
                    stacklevel=2,
                )
            table = known_alone(table, masks)
        codes = encode(self.columns, table)
        codes[:, [column.name in hidden for column in self.columns]] = math.nan
        return codes

    def with_absences(self, codes: Tensor, name: str) -> Tensor:
        """Codes (n, d) in which a column is absent where nothing is known of it, if it may be."""
        for j, column in enumerate(self.columns):
            if column.name == name and isinstance(column, Skipped):
                empty = codes[:, j].isnan() | (codes[:, j] == HIDDEN)
                codes[:, j] = codes[:, j].masked_fill(empty, column.absent)
        return codes

    def encode(
        self,
        table: DataFrame,
        generator: torch.Generator | None = None,
        unknown: OfUnknown = "missing",
    ) -> Tensor:
        """Another table in model space, (n, d), NaN where missing; see :meth:`codes`."""
        return self.to_model_space(self.codes(table, unknown), generator)

    def _in_words(self, name: str) -> str:
        return next(column.in_words for column in self.columns if column.name == name)

    def to_table(self, x: Tensor) -> DataFrame:
        """Data x (n, *event_shape) in model space as a table in its own units and categories."""
        return decode(self.columns, x)


def _kinds(columns: str | None, names: Sequence[str] = ()) -> dict[str, str]:
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
        ".csv": _read_csv,
        ".parquet": _read_parquet,
        ".json": lambda file: table_of(file.read_bytes()),
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
    return _named(table, path)


def _named(table: DataFrame, where: object) -> DataFrame:
    """A table whose columns have names that differ (DataError: two have one name)."""
    table = table.set_axis(table.columns.map(str), axis=1)
    check_names([*table.columns], str(where))
    return table


def check_names(names: Sequence[str], what: str) -> None:
    """Raise DataError where two columns of a table, which ``what`` is in words, have one name."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(
                f"{what} has two columns {name!r}, expected names that differ; rename one"
            )
        seen.add(name)


def _read_csv(path: Path) -> DataFrame:
    import pandas as pd

    with path.open(encoding="utf-8-sig", newline="") as file:
        names = next((row for row in csv.reader(file) if row), None)
    if names is None:
        raise DataError(f"{path} is empty, expected a table whose first row has the names")
    check_names([name for name in names if name], str(path))  # pandas would call the second a.1
    separator = next((mark for mark in ";\t|" if mark in names[0]), None)
    if len(names) == 1 and separator is not None:
        raise DataError(
            f"{path} has one column, {names[0]!r}, expected commas between columns, and it has "
            f"{separator!r} there; write it with commas"
        )
    return pd.read_csv(path)


def _read_parquet(path: Path) -> DataFrame:
    import pandas as pd

    return pd.read_parquet(path)
