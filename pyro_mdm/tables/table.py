"""A table with missing entries as one object: density, completions, samples and conditionals."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_mdm.drawing import draw_batches
from pyro_mdm.guide import DiffusionGuide
from pyro_mdm.model import DiffusionModel
from pyro_mdm.samplers import ExponentialIntegrator
from pyro_mdm.support.checks import DataError
from pyro_mdm.tables.agreement import Agreement, agreement
from pyro_mdm.tables.calibration import DRAWS as CALIBRATION_DRAWS
from pyro_mdm.tables.calibration import TableCalibration, table_calibration
from pyro_mdm.tables.columns import Center, Column
from pyro_mdm.tables.completion import DRAW_STEPS, draws, draws_given
from pyro_mdm.tables.conditional import Conditional
from pyro_mdm.tables.density import ERROR, RowBounds
from pyro_mdm.tables.folders import read_table_folder, write_table_folder
from pyro_mdm.tables.frames import Frame, as_frame, filled, in_pieces, with_levels
from pyro_mdm.tables.rows import OfUnknown, TableRows
from pyro_mdm.tables.training import Schedule, Trained, train_rows
from pyro_mdm.tables.words import in_python, said_of

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["NotFittedError", "Table"]

T = TypeVar("T", bound="Table")


class NotFittedError(RuntimeError):
    """A Table that is not fitted yet."""


class _Fit:
    """``fit`` of an estimator, ``Table(steps=500).fit(frame)``; called on the class it makes one
    with the settings that it is given, ``Table.fit(frame, steps=500)``."""

    def __get__(self, table: T | None, owner: type[T]) -> Callable[..., T]:
        if table is not None:
            return partial(_fitted_to, table)
        return lambda X, y=None, **settings: _fitted_to(owner(**settings), X, y)


def _fitted_to(table: T, X: Frame, y: object = None) -> T:
    frame = as_frame(X)
    try:
        table.fit_frame(frame)
    except DataError as error:
        raise DataError(in_python(str(error))) from error
    return table


class Table:
    """A joint law of the columns of a table, whatever their kinds, learned from incomplete rows.

    An estimator in the manner of scikit-learn: the settings are those of :meth:`get_params`,
    ``fit`` trains, and :meth:`transform` completes a table, in a ``Pipeline`` too. Rows are a
    DataFrame with the columns that it was fitted to, in any order and with others beside them,
    which stay as they are; or an array, whose columns are called x0, x1, …. What is missing is NaN
    or None. It may depend on what is there in the row, in any pattern. A column that does not exist
    for some rows is found, and absence is one of its values: :meth:`columns_in_words` says so.

    The diffusion is :class:`~pyro_mdm.VPSDE`, which is not learned, as a denoiser of rows hardly
    gains by it. A tenth of the rows is for validation and chooses the weights, if these are eight
    at least; no others are held out. With ``holdout=False`` none chooses, and a tenth is not looked
    at. ``Table.fit(frame, **settings)`` is short for ``Table(**settings).fit(frame)``.

    Args:
        columns: kinds of columns that are to be others than those found, in words:
            ``"age=integer,zip=drop"``, or a dict of kinds by name.
        seed: seed of training, and of all draws.
        steps: number of training steps; None: 800, at a learning rate of 0.002 that falls to zero,
            and fewer if the bound on validation data has not fallen in three measurements, 100
            steps apart.
        num: number of draws of each row for :meth:`transform`.
        center: centre of these draws that a missing number becomes: mean or median.
        progress: whether to print the kinds of columns, and to show progress.
        unknown: treatment of values of other rows that a column cannot have, such as new
            categories: "missing" takes them for missing entries, with a warning, and "refuse" is a
            DataError.
        learning_rate: the highest learning rate; None: 0.002, or 0.005 where ``steps`` are given.
        batch_size: number of rows of a step; None: 512, or all.
        holdout: whether a tenth of the rows chooses the weights.
        device: device of the model; None: cuda where there is one.

    Raises:
        DataError, ValueError: ``fit``: a table or settings that no model can be of.
        FloatingPointError: ``fit``: the training diverges.
        NotFittedError: before ``fit``, whatever needs a trained model.

    Example:
        >>> import numpy as np, pandas as pd
        >>> rng = np.random.default_rng(0)
        >>> frame = pd.DataFrame({"age": rng.normal(size=99), "of": rng.choice(["a", "b"], 99)})
        >>> table = Table.fit(frame, steps=2)
        >>> table.impute(frame.assign(of=None).head(2), num=3).shape
        (6, 2)
        >>> table.sample(2, given={"of": "b"})["of"].tolist()
        ['b', 'b']
    """

    fit = _Fit()
    _programs: Trained
    _names_in: list[str]

    def __init__(
        self,
        *,
        columns: str | Mapping[str, str] | None = None,
        seed: int = 0,
        steps: int | None = None,
        num: int = 20,
        center: Center = "mean",
        progress: bool = False,
        unknown: OfUnknown = "missing",
        learning_rate: float | None = None,
        batch_size: int | None = None,
        holdout: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        self.columns, self.seed, self.steps = columns, seed, steps
        self.num, self.center, self.progress, self.unknown = num, center, progress, unknown
        self.learning_rate, self.batch_size = learning_rate, batch_size
        self.holdout, self.device = holdout, device

    def not_fitted(self) -> RuntimeError:
        """The error of whatever needs a trained model before there is one."""
        return NotFittedError(
            "this Table is not fitted yet; call fit, or use Table.from_pretrained(folder)"
        )

    def fit_frame(self, frame: pd.DataFrame) -> None:
        """Learn from a DataFrame whose labels are text; ``fit`` calls it."""
        schedule = Schedule.of(self.steps, self.learning_rate)
        rows = TableRows(frame, columns=self.columns_said, holdout=self.holdout)
        if self.progress:
            print(in_python(rows.columns_in_words))
            if words := rows.gaps_in_words:
                print(words)
        rows.warn_of_gaps()
        usual = "cuda" if torch.cuda.is_available() else "cpu"
        options: dict[str, Any] = {"batch_size": self.batch_size, "seed": self.seed}
        options |= {"device": self.device or usual, "progress": self.progress}
        self._take(train_rows(rows, schedule, **options), [*frame.columns])
        self.model.sampler = ExponentialIntegrator(DRAW_STEPS)
        compared = self.agreement()
        if self.progress:
            print(compared)
        compared.warn("the model")

    def _take(self, programs: Trained, names: Sequence[str]) -> None:
        """Become fitted: rows, model and guide, and the names of all columns."""
        self._programs, self._names_in = programs, list(names)

    @property
    def columns_said(self) -> str | None:
        """The kinds that ``columns`` say, in words."""
        if self.columns is None or isinstance(self.columns, str):
            return self.columns
        return said_of({str(name): kind for name, kind in self.columns.items()})

    # -- folders -----------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the model and the columns, which :meth:`from_pretrained` reads, and the codes of
        the training rows.

        :meth:`~pyro_mdm.DiffusionModel.from_pretrained` opens the model alone.

        Raises:
            PretrainedError: columns whose levels JSON cannot hold.
            OSError: the files cannot be written; earlier ones are unchanged.
        """
        rows, model, _ = self._fitted
        # of a subclass too, and of pickles of earlier versions
        names = [name for name in Table._setting_names() if hasattr(self, name)]
        settings = {name: getattr(self, name) for name in names}
        write_table_folder(folder, rows, model, self._names_in, settings)

    @classmethod
    def from_pretrained(cls: type[T], folder: str | os.PathLike[str]) -> T:
        """The table that :meth:`save_pretrained` wrote, on the CPU.

        The folder of a training run of a table opens too, and a trained model by its name,
        ``"wine"``, but for :meth:`agreement`, which asks for the training rows. No code is run from
        the folder.

        Raises:
            PretrainedError: no such folder, or one that is damaged or of something else.
        """
        saved = read_table_folder(folder)
        table = cls(**saved.settings)
        guide = DiffusionGuide(saved.model.diffusion)
        table._take(Trained(saved.rows, saved.model, guide), saved.names)
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
        """The rows that were fitted to, with their columns."""
        return self._fitted[0]  # by its place: older pickles have another name for it

    @property
    def model(self) -> DiffusionModel:
        """The model of rows in model space, as for :func:`pyro_mdm.condition`. All draws are by its
        ``sampler``, which may be set: the exponential one, of 16 steps."""
        return self._fitted[1]

    @property
    def columns_in_words(self) -> str:
        """What each column was taken for, a line each."""
        return in_python(self.rows.columns_in_words)

    @property
    def names(self) -> list[str]:
        """The names of the columns that are modelled."""
        return self.rows.names

    def column(self, name: str) -> Column:
        """The column of a name (DataError: none that is modelled)."""
        return self.rows.column(name)

    # -- density -----------------------------------------------------------------------------------

    def log_prob(
        self,
        X: Frame,
        *,
        draws: int | None = None,
        error: float = ERROR,
        batch_size: int = 1024,
        seed: int | None = None,
    ) -> pd.DataFrame:
        """A lower bound on log p of each row, of what is there: missing entries are integrated out.

        It is a density in columns of numbers, in their own units, and a probability in the others
        and of integers, rounded numbers and atoms. A row without any entry has 0.

        Args:
            draws: number of network evaluations of a row; None: as many as the error takes.
            error: the standard error that is asked for, nats. A pilot says how many draws a row
                needs, 8,192 at most, and the result is of others.
            batch_size: number of rows evaluated together.
            seed: seed of the noise; None: the object's.

        Returns:
            Columns log_prob and standard_error, in nats, with the index of X. The error is that of
            the noise, 1.96 of which hold 95%; how far log p is above its bound is not known.
        """
        return self.measured(as_frame(X), None, draws, batch_size, seed, error=error)

    def measured(
        self,
        rows: pd.DataFrame,
        given: pd.DataFrame | None,
        draws: int | None,
        batch_size: int = 1024,
        seed: int | None = None,
        piece: int = 0,
        only: str | None = None,
        error: float = ERROR,
    ) -> pd.DataFrame:
        """The bound of :meth:`log_prob` for rows, given the entries of ``given`` if there are any,
        which has the same rows; ``piece`` is the number of the first of them among pieces of a
        larger table, and ``only`` the one column whose entries are measured, given others."""
        table, model, guide = self._fitted
        bounds = RowBounds(table, model, guide, self.unknown, batch_size, only)
        noise = self.seed if seed is None else seed
        return bounds.measured(rows, given, draws, seed=noise, piece=piece, error=error)

    # -- draws -------------------------------------------------------------------------------------

    def draws(
        self,
        rows: pd.DataFrame,
        num: int,
        *,
        piece: int = 0,
        only: str | None = None,
        batch_size: int = 1024,
        seed: int | None = None,
        unknown: OfUnknown | None = None,
        hidden: Sequence[str] = (),
        progress: bool = False,
    ) -> list[pd.DataFrame]:
        """Completed rows, a table for each draw, of the columns that are modelled and rows 0, 1, ….

        Args:
            rows: incomplete rows, so few that memory holds them ``num`` times.
            piece: number of these rows among the pieces of a larger table, for their seed.
            only: name of the one column that is drawn, if the others are integrated out and stay
                empty.
            unknown, hidden: options of :meth:`TableRows.codes`; None: the object's.
        """
        draw_seed = self.seed if seed is None else seed
        options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
        options |= {"unknown": unknown or self.unknown, "hidden": hidden}
        return draws(
            self.rows, self.model, rows, num, piece=piece, only=only, seed=draw_seed, **options
        )

    def impute(
        self, X: Frame, num: int = 20, *, batch_size: int = 1024, seed: int | None = None
    ) -> pd.DataFrame:
        """Draws of the missing entries given the others of their row; the others stay as they are.

        Args:
            num: number of draws of each row.
            batch_size: number of rows simulated together.
            seed: seed of the noise; None: the object's. Draws depend on it, on ``batch_size``, and
                on the rows of their piece of 4,096.

        Returns:
            ``num`` completed tables, one after another, in the types of X. The index has the number
            of the draw and then that of X: ``draws.loc[0]`` is the first table, and
            ``draws.groupby(level=1)`` has the draws of a row.
        """
        import pandas as pd

        frame = self._to_fill(X)
        by_draw: list[list[pd.DataFrame]] = [[] for _ in range(num)]
        for k, rows in enumerate(in_pieces(frame)):
            options: dict[str, Any] = {"piece": k, "batch_size": batch_size, "seed": seed}
            options["progress"] = self.progress
            for pieces, new in zip(by_draw, self.draws(rows, num, **options), strict=True):
                pieces.append(filled(rows, new))
        wholes = [pd.concat(pieces) for pieces in by_draw]
        names = ["draw", *frame.index.names]
        whole = pd.concat(wholes, keys=range(num), names=names)
        return whole.set_axis(X.columns, axis=1) if isinstance(X, pd.DataFrame) else whole

    def transform(self, X: Frame) -> Frame:
        """A completed table, with the centre of ``num`` draws where an entry was missing.

        Numbers are their mean or median, as ``center`` says, and the most frequent atom if most
        draws are one; ordinal levels are the median, categories the most frequent. An array comes
        back as an array.
        """
        import pandas as pd

        wholes = []
        for k, rows in enumerate(in_pieces(self._to_fill(X))):
            wholes.append(filled(rows, self.middle(self.draws(rows, self.num, piece=k))))
        whole = pd.concat(wholes)
        if isinstance(X, pd.DataFrame):
            return whole.set_axis(X.columns, axis=1)
        return whole.to_numpy(np.asarray(X).dtype)

    def _to_fill(self, X: Frame) -> pd.DataFrame:
        """X as a DataFrame, whose pandas categories have all levels that draws may have."""
        frame = as_frame(X)
        incomplete = [c for c in self.rows.columns if c.name in frame and frame[c.name].hasnans]
        types = dict(frame.dtypes)
        wider = with_levels(types, incomplete)
        return frame.astype(
            {name: dtype for name, dtype in wider.items() if dtype is not types[name]}
        )

    def middle(self, draws: list[pd.DataFrame], center: Center | None = None) -> pd.DataFrame:
        """The centre of :meth:`draws`, of each entry."""
        import pandas as pd

        return pd.DataFrame(
            {
                column.name: column.center(
                    np.stack([frame[column.name] for frame in draws]), center or self.center
                )
                for column in self.rows.columns
            }
        )

    def sample(
        self,
        n: int,
        given: Mapping[str, Any] | None = None,
        *,
        batch_size: int = 1024,
        seed: int | None = None,
    ) -> pd.DataFrame:
        """Draws of n rows, (n, columns).

        Args:
            given: values of columns by name, which all rows have; the others are drawn given them.
        """
        rows, model = self.rows, self.model
        options: dict[str, Any] = {"batch_size": batch_size}
        options["seed"] = self.seed if seed is None else seed
        if given:
            return draws_given(rows, model, n, given, **options)
        x = torch.cat([batch for _, batch in draw_batches(model, n, **options)])
        return rows.to_table(x)

    def conditional(
        self, X: Frame, column: str, *, num: int = 200, batch_size: int = 1024
    ) -> Conditional:
        """The law of one column in each row, given what is there in the other columns.

        The column's own entries are ignored, and may be absent; what else is missing is integrated
        out.

        Args:
            column: name of the column.
            num: number of draws of each row, for results that are computed by draws.
            batch_size: number of rows simulated together.
        """
        column = str(column)
        self.column(column)  # or an error
        rows = as_frame(X).assign(**{column: None})
        return Conditional(self, rows, column, num, batch_size)

    def calibration(
        self, X: Frame, *, draws: int = CALIBRATION_DRAWS, seed: int | None = None
    ) -> TableCalibration:
        """The calibration of predictions on rows that were not trained on.

        Each entry is hidden once, with about half of its row, and drawn given the others. ``print``
        tells how many are in their 90% intervals, ``figure()`` draws it by column.

        Args:
            draws: number of draws of each entry, at least 2.
            seed: seed of the choice of hidden entries and of the draws; None: the object's.
        """
        codes = self.rows.codes(as_frame(X), self.unknown)
        chosen = self.seed if seed is None else seed
        return table_calibration(self.rows, self.model, codes, draws=draws, seed=chosen)

    def agreement(self, *, seed: int | None = None) -> Agreement:
        """The agreement of new rows with those that were fitted to, what these lack drawn.

        ``print`` tells which columns and pairs of them differ most, beside the noise of as many
        rows, and how many new rows break a rule that no row breaks; ``figure()`` draws it.

        Args:
            seed: seed of the draws; None: the object's.
        """
        if not len(self.rows.train):
            raise ValueError(
                "the rows that were fitted to are not kept beside the model of a training run, "
                "which from_run(folder) of inference.Table opens with them"
            )
        chosen = self.seed if seed is None else seed
        return agreement(self.rows, self.model, seed=chosen)

    # -- the conventions of scikit-learn -----------------------------------------------------------

    @classmethod
    def _setting_names(cls) -> list[str]:
        parameters = inspect.signature(cls.__init__).parameters.values()
        return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """All settings by name, as they were given."""
        return {name: getattr(self, name) for name in self._setting_names()}

    def set_params(self: T, **params: Any) -> T:
        """Change settings by name, for the next ``fit``; returns the object."""
        for name, value in params.items():
            if name not in self._setting_names():
                raise ValueError(
                    f"there is no setting {name!r}, expected one of "
                    f"{', '.join(self._setting_names())}"
                )
            setattr(self, name, value)
        return self

    def fit_transform(self, X: Frame, y: object = None) -> Frame:
        """``fit(X).transform(X)``."""
        return self.fit(X, y).transform(X)

    def get_feature_names_out(self, input_features: object = None) -> NDArray[Any]:
        """The names of the columns that ``transform`` returns: those of the table fitted to."""
        return np.asarray(self.feature_names_in_, dtype=object)

    @property
    def feature_names_in_(self) -> NDArray[Any]:
        """The names of the columns that were fitted to, those that are left out too."""
        _ = self._fitted  # or an error
        return np.asarray(self._names_in, dtype=object)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_programs")

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        inputs = InputTags(allow_nan=True, categorical=True, string=True)
        transformer = TransformerTags(preserves_dtype=[])
        return Tags(
            estimator_type=None,
            target_tags=TargetTags(required=False),
            transformer_tags=transformer,
            input_tags=inputs,
        )

    def __repr__(self) -> str:
        default = {
            p.name: p.default for p in inspect.signature(type(self).__init__).parameters.values()
        }
        said = [
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if name not in default or value != default[name]
        ]
        return f"{type(self).__name__}({', '.join(said)})"
