"""A table with missing entries as one object: its density, completions, samples and conditionals::

    from inference import Table

    table = Table.fit(frame, folder="runs/people")
    table.log_prob(new)  # nats by row, with standard errors
    table.impute(new, num=20)  # draws of what is missing
    table.sample(100, given={"age": 50})
    table.conditional(new, "income").interval(0.9)

It is a run of ``inference.train --model tabular``, so that the programs open it too, and it opens
theirs: :meth:`Table.from_run`.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import math
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference import trust
from inference.commands.cli import check_positive
from inference.drawing.completion import (
    DRAW_STEPS,
    column_of,
    draws,
    draws_given,
    filled,
    in_pieces,
    with_levels,
)
from inference.drawing.sampling import draw, make_sampler
from inference.folders.loading import load_trained
from inference.folders.runs import Run, RunError
from inference.machine.processes import start
from inference.measuring.agreement import Agreement, agreement
from inference.measuring.calibration import DRAWS as CALIBRATION_DRAWS
from inference.measuring.calibration import TableCalibration, table_calibration
from inference.settings.plan import Programs
from inference.train import train
from models import DataError, Tabular
from models.tabular import OfUnknown, check_names, said_of
from pyro_mdm import DiffusionModel, bound, condition
from pyro_mdm.evaluation.estimates import Noise
from pyro_mdm.randomness import seed_from
from pyro_mdm.support.checks import check_number
from pyro_mdm.support.progress import without_progress
from pyro_mdm.tables.columns import Center, Column
from pyro_mdm.tables.columns.dates import days_of

if TYPE_CHECKING:
    import pandas as pd

Frame: TypeAlias = Any  # a pandas DataFrame, or an array

PILOT, LEAST, MOST = 32, 128, 8192
"""Network evaluations of a row that foretell how many an error takes, and the least and the most of
these, powers of two."""
ERROR = 0.25
"""The standard error of a bound by default, nats."""
BATCHES = 8
"""Independent estimates of probabilities, of which their error is."""
DRAWS = 8
"""Network evaluations of each row that is not trained on at the end of a fit: their error is small
beside that of few rows."""
STEPS, EVERY, PATIENCE = 800, 100, 3
"""Training steps of a fit, how many are between measurements of the bound on validation data, and
after how many of these without a fall training ends."""
RATE = 2e-3
"""The learning rate of so many steps: 400 at half of it leave log scores of three tables higher."""
FRESH = 8
"""Draws from the intervals of integers, rounded numbers and atoms, over which a bound is a mean."""


class _Fit:
    """``fit`` of an estimator, ``Table(steps=500).fit(frame)``; called on the class it makes one
    with the settings that it is given, ``Table.fit(frame, steps=500)``."""

    def __get__(self, table: Table | None, owner: type[Table]) -> Callable[..., Table]:
        if table is not None:
            return partial(_trained, table)
        return lambda X, y=None, **settings: _trained(owner(**settings), X, y)


class Table:
    """A joint law of the columns of a table, whatever their kinds, learned from incomplete rows.

    An estimator in the manner of scikit-learn: the settings are those of :meth:`get_params`,
    ``fit`` trains, and :meth:`transform` completes a table, in a ``Pipeline`` too. Rows are a
    DataFrame with the columns that it was fitted to, in any order and with others beside them,
    which stay as they are; or an array, whose columns are called x0, x1, …. What is missing is NaN
    or None. It may depend on what is there in the row, in any pattern. A column that does not exist
    for some rows is found, and absence is one of its values: :meth:`columns_in_words` says so.

    ``fit`` is that of ``inference.train --model tabular --guide vpsde``, a diffusion that is not
    learned, as a denoiser of rows hardly gains by it. A tenth of the rows is for validation and
    chooses the weights; no others are held out, and what ``inference.evaluate`` calls test are
    these. With ``holdout=False`` none chooses, and a tenth is test. ``Table.fit(frame,
    **settings)`` is short for ``Table(**settings).fit(frame)``.

    Args:
        columns: kinds of columns that are to be others than those found, as for ``--columns``:
            ``"age=integer,zip=drop"``, or a dict of kinds by name.
        folder: the run folder, new or empty, which keeps the rows, the settings, checkpoints and
            measurements: ``inference.train --resume`` goes on with it if it is interrupted. None:
            a temporary one, for as long as the object lives.
        seed: seed of training, and of all draws.
        steps: number of training steps; None: 800, at a learning rate of 0.002 that falls to zero,
            and fewer if the bound on validation data has not fallen in three measurements, 100
            steps apart.
        num: number of draws of each row for :meth:`transform`.
        center: centre of these draws that a missing number becomes: mean or median.
        progress: whether to print what ``inference.train`` prints, such as the kinds of columns,
            and to show progress.
        unknown: treatment of values of other rows that a column cannot have, such as new
            categories: "missing" takes them for missing entries, with a warning, and "refuse" is a
            DataError.
        settings: other options of ``inference.train`` by name.

    Raises:
        DataError, RunError, ValueError: ``fit``: what ``inference.train`` refuses.
        RunError: before ``fit``, whatever needs a trained run.

    Example:
        >>> import numpy as np, pandas as pd
        >>> rng = np.random.default_rng(0)
        >>> frame = pd.DataFrame({"age": rng.normal(size=99), "of": rng.choice(["a", "b"], 99)})
        >>> table = Table.fit(frame, steps=2, test_size=8)
        >>> table.impute(frame.assign(of=None).head(2), num=3).shape
        (6, 2)
    """

    fit = _Fit()
    _run: Run
    _programs: Programs
    _names_in: list[str]
    _sampler: tuple[str | None, int | None] = (None, None)

    def __init__(
        self,
        *,
        columns: str | Mapping[str, str] | None = None,
        folder: Path | str | None = None,
        seed: int = 0,
        steps: int | None = None,
        num: int = 20,
        center: Center = "mean",
        progress: bool = False,
        unknown: OfUnknown = "missing",
        **settings: Any,
    ) -> None:
        self.columns, self.folder, self.seed, self.steps = columns, folder, seed, steps
        self.num, self.center, self.progress, self.unknown = num, center, progress, unknown
        self.settings = settings

    @classmethod
    def from_run(cls, folder: Path | str, *, accelerator: str = "auto") -> Table:
        """A run that has been trained, or a trained model of this checkout by its name: wine.

        Args:
            folder: folder of a run of ``--model tabular``.
            accelerator: kind of device: cpu, cuda, … or auto.

        Raises:
            RunError, CheckpointError, DataError, UntrustedCodeError: as for the programs; a run of
                other data than a table, or one whose maps never observe an entry.
        """
        run, programs, _ = load_trained(Path(folder))
        config = run.config
        if not isinstance(programs.problem, Tabular):
            raise RunError(f"{folder} is of --model {config['model']}, expected one of tabular")
        if config["maps"] in ("levels", "independent"):
            raise RunError(
                f"{folder} was trained at --maps {config['maps']}, where no entry is ever "
                "observed, expected mixed or subsets; train it at such maps"
            )
        table = cls(columns=config["columns"], seed=config["seed"], steps=config["steps"])
        fabric = start(accelerator)
        if fabric.world_size > 1:
            raise ValueError("a Table is for one process; start it without torchrun")
        programs.model.to(fabric.device)
        table._run, table._programs = run, programs
        table._names_in = table.names
        if config["sampler"] == "exponential":
            table.use_sampler("exponential", DRAW_STEPS)
        return table

    def take(self, other: Table, names: Sequence[str], parent: str | None) -> None:
        """Become fitted as another table is, to columns of these ``names``; the folder ``parent``
        is removed with the object."""
        self._run, self._programs, self._names_in = other._run, other._programs, list(names)
        self._sampler = other._sampler
        if (end := vars(self).pop("_end", None)) is not None:
            end()
        if parent is not None:
            self._end = weakref.finalize(self, shutil.rmtree, parent, ignore_errors=True)

    def save(self, folder: Path | str) -> None:
        """Copy the run to a new folder, which ``from_run`` and the programs open.

        Raises:
            RunError: there is something at ``folder``, or the run's own folder is gone.
        """
        folder, run_folder = Path(folder), self.run_folder
        if folder.exists():
            raise RunError(f"{folder} exists; give another name")
        if not run_folder.is_dir():
            raise RunError(
                f"the run folder {run_folder} is gone; fit with folder=…, which keeps it"
            )
        shutil.copytree(run_folder, folder)

    # -- what was fitted ---------------------------------------------------------------------------

    @property
    def _fitted(self) -> Programs:
        if not hasattr(self, "_programs"):
            raise RunError("this Table is not fitted yet; call fit, or use Table.from_run(folder)")
        return self._programs

    @property
    def problem(self) -> Tabular:
        """The table that was fitted to, with its columns."""
        problem = self._fitted.problem
        assert isinstance(problem, Tabular)
        return problem

    @property
    def model(self) -> DiffusionModel:
        """The model of rows in model space, as for :func:`pyro_mdm.condition`."""
        return self._fitted.model

    @property
    def run_folder(self) -> Path:
        """The folder of the run."""
        _ = self._fitted  # or an error
        return self._run.folder

    @property
    def columns_in_words(self) -> str:
        """What each column was taken for, a line each."""
        return self.problem.columns_in_words

    @property
    def names(self) -> list[str]:
        """The names of the columns that are modelled."""
        return [column.name for column in self.problem.columns]

    def column(self, name: str) -> Column:
        """The column of a name (DataError: none that is modelled)."""
        return column_of(self.problem, name)

    def use_sampler(self, name: str | None = None, steps: int | None = None) -> None:
        """Draw by another sampler than the run's, or by as many steps.

        Args:
            name: name of the sampler, as for ``inference.sample --sampler``; None: the run's, by
                default exponential, of which a Table takes 16 steps until this is called.
            steps: the number of steps; None: the sampler's own.
        """
        check_positive(steps=steps)
        model, usual = self._fitted.model, self._run.config["sampler"]
        with nullcontext() if name else trust.named_by(self.run_folder):
            model.sampler = make_sampler(
                name or usual or "exponential", steps, model.diffusion, model.score_function
            )
        self._sampler = name, steps  # which pickles have, and a mistake has not changed

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
        batch_size: int,
        seed: int | None = None,
        piece: int = 0,
        only: str | None = None,
        error: float = ERROR,
    ) -> pd.DataFrame:
        """The bound of :meth:`log_prob` for rows, given the entries of ``given`` if there are any,
        which has the same rows; ``piece`` is the number of the first of them among pieces of a
        larger table, and ``only`` the one column whose entries are measured, given others."""
        import pandas as pd

        base_seed, pieces = self.seed if seed is None else seed, []
        given_chunks = in_pieces(given) if given is not None else itertools.repeat(None)
        for k, (chunk, given_chunk) in enumerate(
            zip(in_pieces(rows), given_chunks, strict=False), piece
        ):
            if len(chunk):
                seed_of = seed_from(base_seed, "bound", k)
                options = batch_size, seed_of, only
                if draws is not None:
                    pieces.append(self._bound(chunk, given_chunk, draws, *options))
                else:
                    pieces.append(self._bound_to(error, chunk, given_chunk, *options))
        values = torch.cat(pieces, 1).T.numpy() if pieces else np.empty((0, 2))
        return pd.DataFrame(values, rows.index, columns=["log_prob", "standard_error"])

    def _bound_to(
        self,
        error: float,
        rows: pd.DataFrame,
        given: pd.DataFrame | None,
        batch_size: int,
        seed: int,
        only: str | None,
    ) -> Tensor:
        """:meth:`_bound` by as many draws as a standard error takes, which a pilot foretells."""
        check_number("error", error, "a standard error in nats, e.g. 0.25")
        if not error > 0:
            raise ValueError(f"error is {error}, expected a standard error above 0, e.g. 0.25")
        pilot = self._bound(rows, given, PILOT, batch_size, seed_from(seed, "pilot"), only)
        ratio = (pilot[1] / error).nan_to_num(math.inf).square()
        doublings = (PILOT * ratio).clamp(LEAST, MOST).log2().ceil().int()
        values = torch.zeros_like(pilot)
        for number in doublings.unique().tolist():
            chosen = (doublings == number).numpy()
            given_chosen = None if given is None else given[chosen]
            values[:, chosen] = self._bound(
                rows[chosen], given_chosen, 2**number, batch_size, seed_from(seed, number), only
            )
        return values

    def _bound(
        self,
        rows: pd.DataFrame,
        given: pd.DataFrame | None,
        draws: int,
        batch_size: int,
        seed: int,
        only: str | None,
    ) -> Tensor:
        """The bound on log p of rows, given others if there are any, and its error, (2, n)."""
        problem, model, guide = self._fitted
        assert isinstance(problem, Tabular)
        others = [] if only is None else [name for name in self.names if name != only]
        fresh = min(FRESH, draws)
        generator = torch.Generator().manual_seed(seed)
        device = model.diffusion.start_time.device

        def in_model_space(
            frame: pd.DataFrame, hidden: Sequence[str] = ()
        ) -> tuple[Tensor, Tensor]:
            codes = problem.codes(frame, self.unknown, hidden)
            if only is not None and frame is rows:
                codes = problem.with_absences(codes, only)
            codes = codes.repeat(fresh, 1)
            x, log_det = problem.transform(codes, generator)
            return x.to(device), log_det

        x, log_det = in_model_space(rows, others)
        counts = ~x[: len(rows)].isnan().all(1).cpu()
        if given is not None:
            there = counts.numpy()
            if not there.all():  # a row of which nothing is asked has log p 0
                values = torch.zeros(2, len(rows), dtype=torch.float64)
                if there.any():
                    asked, given_there = rows[there], given[there]
                    options = draws, batch_size, seed, only
                    values[:, there] = self._bound(asked, given_there, *options)
                return values
            given_x = in_model_space(given, [] if only is None else [only])[0]
            observed = ~given_x.isnan()
            model = condition(model, observed, left_out=x.isnan() & ~observed)
            x = torch.where(observed, given_x, torch.where(x.isnan(), 0, x))
        measured = bound(
            model, guide, x, draws=-(-draws // fresh), batch_size=batch_size, seed=seed
        )
        log_probs = (measured.per_datum.cpu() + log_det.double()).unflatten(0, (fresh, -1))
        error = Noise.of(log_probs, counts).error if fresh > 1 else measured.per_datum_error.cpu()
        return torch.stack([log_probs.mean(0), error])

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
            unknown, hidden: options of :meth:`models.tabular.Tabular.codes`; None: the object's.
        """
        draw_seed = self.seed if seed is None else seed
        options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
        options |= {"unknown": unknown or self.unknown, "hidden": hidden}
        model = self._fitted.model
        return draws(
            self.problem, model, rows, num, piece=piece, only=only, seed=draw_seed, **options
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
        incomplete = [c for c in self.problem.columns if c.name in frame and frame[c.name].hasnans]
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
                for column in self.problem.columns
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
        problem, model = self.problem, self._fitted.model
        draw_seed = self.seed if seed is None else seed
        if given:
            return draws_given(problem, model, n, given, batch_size=batch_size, seed=draw_seed)
        name, steps = self._sampler
        options: dict[str, Any] = {"sampler": name, "steps": steps, "seed": draw_seed}
        return problem.to_table(draw(model, n, batch_size=batch_size, **options))

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
        problem, model, _ = self._fitted
        assert isinstance(problem, Tabular)
        codes = problem.codes(as_frame(X), self.unknown)
        chosen = self.seed if seed is None else seed
        return table_calibration(problem, model, codes, draws=draws, seed=chosen)

    def agreement(self, *, seed: int | None = None) -> Agreement:
        """The agreement of new rows with those that were fitted to, what these lack drawn.

        ``print`` tells which columns and pairs of them differ most, beside the noise of as many
        rows, and how many new rows break a rule that no row breaks; ``figure()`` draws it.

        Args:
            seed: seed of the draws; None: the object's.
        """
        chosen = self.seed if seed is None else seed
        return agreement(self.problem, self._fitted.model, seed=chosen)

    # -- the conventions of scikit-learn -----------------------------------------------------------

    @classmethod
    def _own_names(cls) -> list[str]:
        parameters = inspect.signature(cls.__init__).parameters.values()
        return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """All settings by name, as they were given."""
        return {name: getattr(self, name) for name in self._own_names()} | self.settings

    def set_params(self, **params: Any) -> Table:
        """Change settings by name, for the next ``fit``; returns the object."""
        for name, value in params.items():
            if name in self._own_names():
                setattr(self, name, value)
            else:
                self.settings = {**self.settings, name: value}
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

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_end"}

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


class Conditional:
    """The law of one column in each of n rows, given what is there in the other columns.

    :meth:`Table.conditional` makes it. What needs draws makes them at the first call and keeps
    them. Everything has the index of the rows.

    Attributes:
        table: the joint law.
        rows: the rows, without the column's own entries.
        name: name of the column.
    """

    def __init__(
        self, table: Table, rows: pd.DataFrame, name: str, num: int, batch_size: int
    ) -> None:
        self.table, self.rows, self.name = table, rows, name
        self._num, self._batch_size = num, batch_size
        self._draws: pd.DataFrame | None = None

    def sample(self) -> pd.DataFrame:
        """The draws, (n, num)."""
        import pandas as pd

        if self._draws is None:
            pieces: list[pd.DataFrame] = []
            options: dict[str, Any] = {"batch_size": self._batch_size, "only": self.name}
            options["hidden"] = [self.name]
            for k, rows in enumerate(in_pieces(self.rows)):
                drawn = self.table.draws(rows, self._num, piece=k, **options)
                values = [one[self.name].to_numpy() for one in drawn]
                pieces.append(pd.DataFrame(dict(enumerate(values))))
            self._draws = pd.concat(pieces).set_axis(self.rows.index)
        return self._draws

    def mean(self) -> pd.Series[Any]:
        """The mean of the draws, (n,), of a column of numbers or dates."""
        import pandas as pd

        means = self._values(self._numbers().mean(axis=1).to_numpy())
        return pd.Series(means, self.rows.index, name=self.name)

    def quantile(self, q: float | Sequence[float]) -> pd.Series[Any] | pd.DataFrame:
        """Quantiles of the draws, (n,) for one q in [0, 1], or (n, len(q)), of a column of numbers
        or dates.

        The k-th of S draws in their order is the quantile of k/(S + 1), with a line between.
        """
        import pandas as pd

        values = np.quantile(self._numbers(), q, axis=1, method="weibull")
        if np.ndim(q) == 0:
            return pd.Series(self._values(values), self.rows.index, name=self.name)
        by_quantile = dict(enumerate(map(self._values, values)))
        whole = pd.DataFrame(by_quantile, self.rows.index)
        return whole.set_axis(list(cast("Sequence[float]", q)), axis=1)

    def interval(self, level: float = 0.9) -> pd.DataFrame:
        """The ends low and high of the central interval of so much probability, by the draws."""
        if not 0 < level < 1:
            raise ValueError(f"level is {level}, expected a probability between 0 and 1, e.g. 0.9")
        ends = self.quantile([(1 - level) / 2, (1 + level) / 2])
        return ends.set_axis(["low", "high"], axis=1)

    def probabilities(
        self,
        draws: int | None = None,
        *,
        error: float = 0.01,
        return_errors: bool = False,
    ) -> pd.DataFrame | tuple[pd.DataFrame, pd.DataFrame]:
        """The probability of each level, (n, levels), of a column that has levels; of one that may
        be absent None is a level.

        They are those of the bounds on log P(level | what is there), at the same noise, normalized:
        without the coarseness of draws, and exact where the network is.

        Args:
            draws: number of network evaluations of a row and level; None: as many as the error
                takes.
            error: the standard error of a probability that is asked for. Where a row has a larger
                one, its draws are doubled, up to 8,192.
            return_errors: whether to return the standard errors too, in a table like the first.
        """
        import pandas as pd

        column = self.table.column(self.name)
        if column.levels is None:
            raise ValueError(
                f"column {self.name!r} is {column.kind}, expected one with levels; its law has "
                "mean(), quantile(q), interval() and log_prob(values)"
            )
        levels = column.values(np.arange(column.levels))
        first = LEAST if draws is None else max(draws, BATCHES)
        last = MOST if draws is None else first
        sums = np.zeros((BATCHES, len(self.rows), len(levels)))
        done, poor, spent = 0, np.ones(len(self.rows), dtype=bool), np.zeros(len(self.rows))
        p = errors = sums[0]
        while poor.any() and done < last:
            number = first if done == 0 else done
            sums[:, poor] += number * self._bounds(levels, poor, number // BATCHES, done)
            done, spent[poor] = done + number, done + number
            p, errors = _shares(sums / spent[:, None])
            poor = errors.max(1) > error
        tables = [pd.DataFrame(v, self.rows.index, columns=list(levels)) for v in (p, errors)]
        return (tables[0], tables[1]) if return_errors else tables[0]

    def _bounds(
        self, levels: Sequence[Any], rows: NDArray[np.bool_], draws: int, done: int
    ) -> NDArray[np.float64]:
        """Independent bounds on log P of each level, at the same noise, (:data:`BATCHES`, rows,
        levels)."""
        import pandas as pd

        several = pd.concat([self.rows[rows]] * BATCHES)
        seed = seed_from(self.table.seed, "probabilities", done)
        of_levels = [
            self._measured(several, [level] * len(several), draws, seed=seed)["log_prob"]
            for level in levels
        ]
        return np.stack(of_levels, 1).reshape(BATCHES, -1, len(levels))

    def log_prob(
        self, values: Sequence[Any], draws: int | None = None, *, error: float = ERROR
    ) -> pd.DataFrame:
        """A lower bound on log p of a value in each row, given what is there, in nats.

        Args:
            values: n values of the column, in the order of the rows; a missing one has 0, or, of a
                column that may be absent, the bound on the log probability that it is.
            draws, error: options of :meth:`Table.log_prob`.

        Returns:
            Columns log_prob and standard_error, as :meth:`Table.log_prob`.
        """
        return self._measured(self.rows, values, draws, error=error)

    def _measured(
        self, rows: pd.DataFrame, values: Sequence[Any], draws: int | None, **options: Any
    ) -> pd.DataFrame:
        asked = rows.assign(**dict.fromkeys(self.table.names, None))
        asked[self.name] = np.asarray(values, dtype=object)
        options["only"] = self.name
        return self.table.measured(asked, rows, draws, self._batch_size, **options)

    def _numbers(self) -> pd.DataFrame:
        """The draws as numbers, which of dates are days."""
        column = self.table.column(self.name)
        levels = () if column.levels is None else column.values(np.arange(column.levels))
        if any(isinstance(level, str) for level in levels) or column.kind == "categorical":
            raise ValueError(
                f"column {self.name!r} is {column.kind}, expected one of numbers; its law has "
                "probabilities() and sample()"
            )
        return self.sample().apply(days_of) if self._dates else self.sample().astype(np.float64)

    def _values(self, numbers: NDArray[np.float64]) -> Any:
        """Values of the column of :meth:`_numbers`, (n,)."""
        return self.table.column(self.name).values(numbers) if self._dates else numbers

    @property
    def _dates(self) -> bool:
        return self.table.column(self.name).kind == "date"

    def __repr__(self) -> str:
        return f"Conditional of {self.name!r} in {len(self.rows)} rows"


def _shares(bounds: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probabilities of independent bounds on their logarithms, (batches, n, levels), and their
    standard errors by the jackknife, both (n, levels)."""
    log_p = torch.from_numpy(bounds)
    count = len(log_p)
    without = ((log_p.sum(0) - log_p) / (count - 1)).softmax(-1)
    spread = (without - without.mean(0)).square().sum(0)
    return log_p.mean(0).softmax(-1).numpy(), (spread * (count - 1) / count).sqrt().numpy()


# -- training --------------------------------------------------------------------------------------


def _trained(table: Table, X: Frame, y: object = None) -> Table:
    frame = as_frame(X)
    parent = None if table.folder is not None else tempfile.mkdtemp(prefix="table-")
    folder = Path(table.folder or Path(str(parent)) / "run")
    options: dict[str, Any] = {"figures": False, "guide": "vpsde", "draws": DRAWS}
    options |= _schedule(table) | table.settings
    options |= {"columns": _in_words(table.columns), "seed": table.seed}
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng(), nullcontext() if table.progress else _silence():
            train(model="tabular", data=frame, run=folder, **options)
        fitted = Table.from_run(folder, accelerator=options.get("accelerator", "auto"))
    except BaseException as error:
        if parent is not None:
            shutil.rmtree(parent, ignore_errors=True)
        if isinstance(error, DataError):
            raise DataError(_in_python(str(error))) from error
        raise
    finally:
        torch.set_num_threads(threads)
    table.take(fitted, list(frame.columns), parent)
    return table


def _schedule(table: Table) -> dict[str, Any]:
    """The steps, and where training ends before them if none were asked for."""
    if table.steps is not None:
        return {"steps": table.steps}
    schedule: dict[str, Any] = {"steps": STEPS, "learning_rate": RATE}
    if "measure_every" not in table.settings and table.settings.get("holdout", True):
        schedule |= {"measure_every": EVERY, "patience": PATIENCE}
    return schedule


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), without_progress():
        yield


def _in_python(message: str) -> str:
    """A message with arguments in place of options of a program."""
    message = re.sub(r"--columns (\S+=[^\s;,]+)", r'columns="\1"', message)
    return re.sub(r"--(\w+)", r"\1", message)


def _in_words(columns: str | Mapping[str, str] | None) -> str | None:
    """Kinds as ``--columns`` has them."""
    if columns is None or isinstance(columns, str):
        return columns
    return said_of({str(name): kind for name, kind in columns.items()})


# -- tables ----------------------------------------------------------------------------------------


def as_frame(X: Frame) -> pd.DataFrame:
    """X as a DataFrame whose labels are text; the columns of an array are x0, x1, …"""
    import pandas as pd

    if isinstance(X, pd.DataFrame):
        frame = X.set_axis([str(name) for name in X.columns], axis=1)
        check_names([*frame.columns], "the table")
        return frame
    values: NDArray[Any] = np.asarray(X)
    if values.ndim != 2:
        raise ValueError(
            f"X has shape {values.shape}, expected (rows, columns); pass a DataFrame, or an array "
            "of two axes"
        )
    names = [f"x{j}" for j in range(values.shape[1])]
    return pd.DataFrame(values, columns=names).infer_objects()
