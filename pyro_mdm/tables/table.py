"""A table with missing entries as one object: density, completions, samples and conditionals."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_mdm.budgets import Budget, Outcome
from pyro_mdm.conditioning.maps import RandomMaps
from pyro_mdm.evaluation.drawing import draw_batches
from pyro_mdm.guide import DiffusionGuide
from pyro_mdm.model import DiffusionModel
from pyro_mdm.pretrained import TENSORS, PretrainedError, save_folder, trained_folder
from pyro_mdm.samplers import ExponentialIntegrator
from pyro_mdm.scores.denoiser import DenoiserScore
from pyro_mdm.support.checks import Count, DataError, checked_arguments
from pyro_mdm.support.files import JsonObject
from pyro_mdm.support.saved import damage_of
from pyro_mdm.tables import completion
from pyro_mdm.tables.agreement import Agreement, agreement
from pyro_mdm.tables.calibration import DRAWS, TableCalibration, table_calibration
from pyro_mdm.tables.columns import Center, Column
from pyro_mdm.tables.columns.kinds import Kinds
from pyro_mdm.tables.columns.lazy import pd
from pyro_mdm.tables.completion import DRAW_STEPS, DrawOptions
from pyro_mdm.tables.conditional import Conditional
from pyro_mdm.tables.density import ERROR, RowBounds
from pyro_mdm.tables.frames import Frame, as_frame, filled, in_pieces, typed, with_levels
from pyro_mdm.tables.rows import TableRows, UnknownPolicy
from pyro_mdm.tables.training import WINDOW, Schedule, Trained, train_rows

if TYPE_CHECKING:
    from sklearn.utils import Tags

__all__ = ["NotFittedError", "Table"]

NOTE, RUN_NOTE = "pyro_mdm.table", "inference.run"
"""The notes that a table and a training run keep beside a model."""

T = TypeVar("T", bound="Table")


class NotFittedError(RuntimeError):
    """The use of a Table that is not fitted yet."""


class Table:
    """A joint distribution of the columns of a table, of any kinds, learned from incomplete rows.

    An estimator in the manner of scikit-learn: the settings are those of :meth:`get_params`,
    ``fit`` trains, and :meth:`transform` completes a table, in a ``Pipeline`` too. Rows are a
    DataFrame with the columns of the training table, in any order and with others beside them,
    which stay as they are; or an array, whose columns are called x0, x1, …. Missing entries are NaN
    or None; whether one is missing may depend on the other entries of the row. A column that does
    not exist for some rows is recognized, and absence is one of its values.

    The diffusion is :class:`~pyro_mdm.VPSDE`, which is not learned, as a denoiser of rows hardly
    gains by it. A tenth of the rows is validation data and chooses the weights, if there are at
    least eight of them; with ``holdout=False`` it is held out all the same.

    Args:
        columns: the kinds of columns that replace those inferred, as text,
            ``"age=integer,zip=drop"``, or a dict of kinds by name; None: all are inferred.
        seed: the seed of training, and of all draws.
        steps: the number of training steps; None: 800, at a learning rate of 0.002 that falls to
            zero, and fewer if the bound on validation data has not fallen in three measurements,
            100 steps apart. With ``seconds``: as many as fit, and fewer in the same way.
        num: the number of draws of each row for :meth:`transform`.
        center: the centre of the draws of a number in :meth:`transform`: mean or median.
        progress: whether to print the kinds of columns, and to show progress; None: progress alone,
            of what takes more than five seconds.
        unknown: the treatment of values of other rows that a column cannot have, such as new
            categories: "missing" makes them missing entries, with a warning, and "refuse" is a
            DataError.
        learning_rate: the highest learning rate; None: 0.002, or 0.005 where ``steps`` are given.
        batch_size: the number of rows of a step; None: 512, or all.
        holdout: whether a tenth of the rows chooses the weights.
        device: the device of the model; None: cuda where there is one.
        seconds: the most seconds of ``fit``, whose training ends earlier if the bound on validation
            data has stopped falling, or the loss where there are none; None: no limit.

    Raises:
        DataError, ValueError: ``fit``: a table or settings that no model can have.
        FloatingPointError: ``fit``: a loss that is not finite.
        NotFittedError: a method that needs a trained model, before ``fit``.

    Example:
        >>> import numpy as np, pandas as pd
        >>> rng = np.random.default_rng(0)
        >>> frame = pd.DataFrame({"age": rng.normal(size=99), "work": rng.choice(["a", "b"], 99)})
        >>> table = Table(steps=2).fit(frame)
        >>> table.impute(frame.assign(work=None).head(2), num=3).shape
        (6, 2)
        >>> table.sample(2, given={"work": "b"})["work"].tolist()
        ['b', 'b']
    """

    _programs: Trained
    _names_in: list[str]

    @checked_arguments
    def __init__(
        self,
        *,
        columns: Kinds = None,
        seed: int = 0,
        steps: int | None = None,
        num: int = 20,
        center: Center = "mean",
        progress: bool | None = None,
        unknown: UnknownPolicy = "missing",
        learning_rate: float | None = None,
        batch_size: int | None = None,
        holdout: bool = True,
        device: torch.device | str | None = None,
        seconds: float | None = None,
    ) -> None:
        self.columns, self.seed, self.steps = columns, seed, steps
        self.num, self.center, self.progress, self.unknown = num, center, progress, unknown
        self.learning_rate, self.batch_size = learning_rate, batch_size
        self.holdout, self.device, self.seconds = holdout, device, seconds

    def not_fitted(self) -> RuntimeError:
        """The error of methods that need a trained model before there is one."""
        return NotFittedError(
            "this Table is not fitted yet; call fit, or use Table.from_pretrained(folder)"
        )

    @checked_arguments
    def fit(self: T, X: Frame, y: object = None) -> T:
        """Train on rows; returns the object.

        Args:
            X: rows, a DataFrame or an array.
            y: not used.
        """
        self.fit_frame(as_frame(X))
        return self

    def fit_frame(self, frame: pd.DataFrame) -> None:
        """Train on a DataFrame whose labels are text; :meth:`fit` calls it."""
        schedule = Schedule.of_steps(self.steps, self.learning_rate, self.seconds)
        budget = Budget(self.seconds).start()
        rows = TableRows(frame, columns=self.columns, holdout=self.holdout)
        if self.progress:
            print(rows.columns_in_words)
            if words := rows.gaps.in_words:
                print(words)
        rows.warn_of_doubts()
        rows.gaps.warn()
        programs = train_rows(
            rows,
            schedule,
            batch_size=self.batch_size,
            seed=self.seed,
            device=self.device or ("cuda" if torch.cuda.is_available() else "cpu"),
            progress=self.progress,
            budget=budget,
        )
        self._take(programs, [*frame.columns])
        self.model.sampler = ExponentialIntegrator(DRAW_STEPS)
        compared = agreement(self.rows, self.model, seed=self.seed, seconds=budget.left())
        if compared is not None:
            if self.progress:
                print(compared)
            compared.warn("the model")

    def _take(self, programs: Trained, names: list[str]) -> None:
        """Become fitted, with rows, model and guide, and the names of all columns."""
        self._programs, self._names_in = programs, names

    # -- folders -----------------------------------------------------------------------------------

    @checked_arguments
    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the model, the columns and the codes of the training rows into a folder.

        :meth:`from_pretrained` reads it, and :meth:`~pyro_mdm.DiffusionModel.from_pretrained` opens
        the model alone.

        Args:
            folder: the path of the folder, which is made if there is none.

        Raises:
            PretrainedError: columns whose levels JSON cannot hold.
            OSError: the files cannot be written; earlier ones are unchanged.
        """
        rows, facts = self.rows, self.rows.facts
        if facts is None:
            raise PretrainedError(
                "columns have levels that JSON cannot hold, expected numbers, text, dates or truth "
                "values; fit to such columns, or pickle the table"
            )
        settings = {name: getattr(self, name) for name in Table.setting_names() if name != "device"}
        content = {"facts": dict(facts), "names": self._names_in, "settings": settings}
        save_folder(self.model, folder, {NOTE: content}, {"rows": rows.train})

    @classmethod
    @checked_arguments
    def from_pretrained(cls: type[T], folder: str | os.PathLike[str]) -> T:
        """The table that :meth:`save_pretrained` wrote, on the CPU.

        The folder of a training run of a table opens too, and a trained model by its name,
        ``"wine"``, but without :meth:`agreement`, which needs the training rows. No code of the
        folder is run.

        Args:
            folder: the path of the folder, or the name of a trained model.

        Raises:
            PretrainedError: no such folder, or one that is damaged or of something else.
        """
        rows, model, content = _read_folder(folder)
        table = cls(**content["settings"])
        table._take(Trained(rows, model, DiffusionGuide(model.diffusion)), content["names"])
        table.model.sampler = ExponentialIntegrator(DRAW_STEPS)
        return table

    # -- what was fitted ---------------------------------------------------------------------------

    @property
    def _fitted(self) -> Trained:
        if not hasattr(self, "_programs"):
            raise self.not_fitted()
        return self._programs

    @property
    def rows(self) -> TableRows:
        """The training rows, with their columns."""
        return self._fitted.rows

    @property
    def model(self) -> DiffusionModel:
        """The model of rows in model space, as for :func:`pyro_mdm.condition`.

        All draws are by its ``sampler``, which may be set; it is the exponential one with 16 steps.
        """
        return self._fitted.model

    @property
    def outcome(self) -> Outcome | None:
        """How the training ended, and what it kept; None: of a folder."""
        return self._fitted.outcome

    @property
    def columns_in_words(self) -> str:
        """The kind of each column, a line each."""
        return self.rows.columns_in_words

    @property
    def names(self) -> list[str]:
        """The names of the modelled columns."""
        return self.rows.names

    def column(self, name: str) -> Column:
        """The modelled column with a name; DataError if there is none."""
        return self.rows.column(name)

    # -- density -----------------------------------------------------------------------------------

    @checked_arguments
    def log_prob(
        self,
        X: Frame,
        *,
        draws: int | None = None,
        error: float = ERROR,
        batch_size: int = 1024,
        seed: int | None = None,
    ) -> pd.DataFrame:
        """A lower bound on log p of the entries of each row; missing entries are integrated out.

        It is a density in columns of numbers, in their own units, and a probability in the others
        and of integers, rounded numbers and atoms. A row without any entry has 0.

        Args:
            X: rows, a DataFrame or an array.
            draws: the number of network evaluations of a row; None: as many as the error takes.
            error: the required standard error, nats. The number of draws of a row, at most 8,192,
                is predicted by a pilot, and the result is of other draws.
            batch_size: the number of rows evaluated together.
            seed: the seed of the noise; None: the object's.

        Returns:
            Columns log_prob and standard_error, in nats, with the index of X. The error is that of
            the noise, 1.96 of which hold 95%; the distance of log p from its bound is not known.
        """
        seed = self.seed if seed is None else seed
        return self.bounds(batch_size).measured(as_frame(X), draws, seed=seed, error=error)

    def bounds(self, batch_size: int = 1024, only: str | None = None) -> RowBounds:
        """Bounds as of :meth:`log_prob`; ``only`` is the one column measured, given the others."""
        return RowBounds(*self._fitted[:3], self.unknown, batch_size, only)

    # -- draws -------------------------------------------------------------------------------------

    @checked_arguments
    def impute(
        self,
        X: Frame,
        num: Count = 20,
        *,
        proper: bool = False,
        batch_size: int = 1024,
        seed: int | None = None,
    ) -> pd.DataFrame:
        """Draws of the missing entries given the others of their row; the others stay as they are.

        Args:
            X: rows, a DataFrame or an array.
            num: the number of draws of each row.
            proper: whether each draw is under parameters of its own, as
                :func:`~pyro_mdm.tables.pooled` needs them for standard errors: the Gaussian
                distribution that the network begins with is that of a bootstrap sample of the
                training rows, and what was learned beside it is kept.
            batch_size: the number of rows simulated together.
            seed: the seed of the noise; None: the object's. Draws depend on it, on ``batch_size``,
                and on the rows of their piece of 4,096.

        Returns:
            ``num`` completed tables, one after another, in the types of X. The index has the number
            of the draw and then that of X: ``draws.loc[0]`` is the first table.

        Raises:
            ValueError: ``proper`` without training rows, as of a trained model by its name.
        """
        frame, rows, model = _to_fill(X, self.rows.columns), self.rows, self.model
        seed = self.seed if seed is None else seed
        by_draw: list[list[pd.DataFrame]] = [[] for _ in range(num)]
        models = completion.bootstrapped(rows, model, num, seed=seed) if proper else model
        how = DrawOptions(None, batch_size, seed, self.unknown, progress=bool(self.progress))
        for k, piece in enumerate(in_pieces(frame)):
            drawn = completion.draws(rows, models, piece, num, how, piece=k)
            for pieces, new in zip(by_draw, drawn, strict=True):
                pieces.append(filled(piece, new))
        wholes = [pd.concat(pieces) for pieces in by_draw]
        whole = pd.concat(wholes, keys=range(num), names=["draw", *frame.index.names])
        return whole.set_axis(X.columns, axis=1) if isinstance(X, pd.DataFrame) else whole

    def transform(self, X: Frame) -> Frame:
        """A completed table, with the centre of ``num`` draws where an entry was missing.

        That of numbers is the mean or median, by ``center``, or an atom that most draws are; that
        of ordinal levels is the median, that of categories the most frequent.

        Args:
            X: rows, a DataFrame or an array.

        Returns:
            A DataFrame, or an array for an array.
        """
        how, wholes = DrawOptions(seed=self.seed, unknown=self.unknown), []
        for k, rows in enumerate(in_pieces(_to_fill(X, self.rows.columns))):
            drawn = completion.draws(self.rows, self.model, rows, self.num, how, piece=k)
            wholes.append(filled(rows, completion.middle(self.rows.columns, drawn, self.center)))
        whole = pd.concat(wholes)
        if isinstance(X, pd.DataFrame):
            return whole.set_axis(X.columns, axis=1)
        return whole.to_numpy(np.asarray(X).dtype)

    @checked_arguments
    def sample(
        self,
        n: int,
        given: Mapping[str, object] | None = None,
        *,
        batch_size: int = 1024,
        seed: int | None = None,
    ) -> pd.DataFrame:
        """Samples of rows, (n, columns), in the types of the training table.

        Args:
            n: the number of rows.
            given: values of columns by name, which all rows have; the others are drawn given them.
            batch_size: the number of rows simulated together.
            seed: the seed of the draws; None: the object's.
        """
        rows, model, seed = self.rows, self.model, self.seed if seed is None else seed
        if given:
            drawn = completion.draws_given(rows, model, n, given, batch_size=batch_size, seed=seed)
        else:
            batches = draw_batches(model, n, batch_size=batch_size, seed=seed)
            drawn = rows.to_table(torch.cat([batch for _, batch in batches]))
        return typed(drawn, rows.columns)

    @checked_arguments
    def conditional(
        self, X: Frame, column: object, *, num: int = 200, batch_size: int = 1024
    ) -> Conditional:
        """The distribution of one column in each row, given the entries of the other columns.

        Entries of the column itself are ignored, and may be left out of X; missing entries of
        others are integrated out.

        Args:
            X: rows, a DataFrame or an array.
            column: the name of the column, a string or what the frame calls it.
            num: the number of draws of each row, for results that are computed by draws.
            batch_size: the number of rows simulated together.
        """
        name = self.column(str(column)).name
        return Conditional(self, as_frame(X).assign(**{name: None}), name, num, batch_size)

    @checked_arguments
    def calibration(
        self, X: Frame, *, draws: int = DRAWS, seed: int | None = None
    ) -> TableCalibration:
        """The calibration of predictions on held-out rows.

        A random half of the entries of each row is hidden and drawn given the others, and then the
        other half given the first. Printed, it is the fraction of entries in their 90% intervals;
        ``figure()`` draws it by column.

        Args:
            X: rows that were not trained on, a DataFrame or an array.
            draws: the number of draws of each entry, at least 2.
            seed: the seed of the choice of hidden entries and of the draws; None: the object's.
        """
        codes = self.rows.codes(as_frame(X), self.unknown)
        seed = self.seed if seed is None else seed
        return table_calibration(self.rows, self.model, codes, draws=draws, seed=seed)

    def agreement(self, *, seed: int | None = None) -> Agreement:
        """The agreement of samples with the training rows, whose missing entries are drawn.

        Printed, it is the columns and pairs that differ most, with the noise of as many rows, and
        the fraction of samples that break a rule of the rows; ``figure()`` draws it.

        Args:
            seed: the seed of the draws; None: the object's.

        Raises:
            ValueError: training rows that are not kept.
        """
        if not len(self.rows.train):
            raise ValueError(
                "the rows that were fitted to are not kept beside the model of a training run, "
                "which from_run(folder) of inference.Table opens with them"
            )
        compared = agreement(self.rows, self.model, seed=self.seed if seed is None else seed)
        assert compared is not None  # without a limit of time
        return compared

    # -- the conventions of scikit-learn, whose classes are slow to load ---------------------------

    @classmethod
    def setting_names(cls) -> list[str]:
        """The names of the settings."""
        parameters = inspect.signature(cls.__init__).parameters.values()
        return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]

    def get_params(self, deep: bool = True) -> dict[str, object]:
        """All settings by name, as they were given."""
        return {name: getattr(self, name) for name in self.setting_names()}

    def set_params(self: T, **params: object) -> T:
        """The object, with settings changed by name, for the next ``fit``."""
        for name, value in params.items():
            if name not in self.setting_names():
                raise ValueError(
                    f"there is no setting {name!r}, expected one of "
                    f"{', '.join(self.setting_names())}"
                )
            setattr(self, name, value)
        return self

    def fit_transform(self, X: Frame, y: object = None) -> Frame:
        """``fit(X).transform(X)``."""
        return self.fit(X, y).transform(X)

    def __sklearn_tags__(self) -> Tags:
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        inputs = InputTags(allow_nan=True, categorical=True, string=True)
        target, transformer = TargetTags(required=False), TransformerTags(preserves_dtype=[])
        return Tags(None, target, transformer, input_tags=inputs)

    def __repr__(self) -> str:
        usual = type(self)().get_params()
        settings = [
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if name not in usual or value != usual[name]
        ]
        return f"{type(self).__name__}({', '.join(settings)})"

    def get_feature_names_out(self, input_features: object = None) -> NDArray[np.object_]:
        """The names of the columns that ``transform`` returns, those of the training table."""
        return np.asarray(self.feature_names_in_, dtype=object)

    @property
    def feature_names_in_(self) -> NDArray[np.object_]:
        """The names of the columns of the training table, those that are left out too."""
        _ = self._fitted  # or an error
        return np.asarray(self._names_in, dtype=object)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_programs")


def _to_fill(X: Frame, columns: Sequence[Column]) -> pd.DataFrame:
    """X as a DataFrame, whose pandas categories have all levels that draws may have."""
    frame = as_frame(X)
    incomplete = [c for c in columns if c.name in frame and frame[c.name].hasnans]
    return frame.astype(with_levels(frame.dtypes, incomplete))


def _read_folder(folder: str | os.PathLike[str]) -> tuple[TableRows, DiffusionModel, JsonObject]:
    """The rows, the model, and the note of a folder of a table or of a run."""
    model, notes, beside = DiffusionModel.opened(folder, {})
    folder = trained_folder(folder)
    with damage_of(folder / TENSORS):
        content = notes[NOTE] if NOTE in notes else _of_run(notes, folder)
        empty = torch.empty(0, len(content["facts"]["columns"]), dtype=torch.float64)
        train = beside.get("rows", empty)
    try:
        rows = TableRows.from_facts(content["facts"], train)
    except DataError as error:
        raise PretrainedError(f"{folder} has columns that cannot be opened: {error}") from error
    score = model.score_function
    if not isinstance(score, DenoiserScore) or model.event_shape != rows.event_shape:
        raise PretrainedError(f"{folder} is damaged: its model is of no such columns")
    score.training_maps = RandomMaps(window=WINDOW)  # which a model does not keep
    return rows, model, {"names": rows.names, **content}


def _of_run(notes: JsonObject, folder: Path) -> JsonObject:
    """The columns of a training run, whose rows are elsewhere."""
    run = notes.get(RUN_NOTE, {})
    facts = run.get("data", {}).get("facts")
    if not facts or "columns" not in facts:
        raise PretrainedError(
            f"{folder} has a model that is of no table, expected what Table.save_pretrained "
            "writes, or a training run of a table"
        )
    if (maps := run["config"].get("maps")) in ("levels", "independent"):
        raise PretrainedError(
            f"{folder} was trained with maps={maps!r}, where no entry is ever observed, expected "
            "mixed or subsets; train it at such maps"
        )
    return {"facts": facts, "settings": {"seed": run["config"]["seed"]}}
