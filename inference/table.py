"""A table with missing entries as one object, over a run of ``inference.train --model tabular``::

    from inference import Table

    table = Table(folder="runs/people").fit(frame)
    table.impute(new, num=20)

It is :class:`pyro_mdm.tables.Table` with a run folder, so that the programs open it too, and it
opens theirs: :meth:`Table.from_run`.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from inference import trust
from inference.commands.cli import check_positive
from inference.drawing.sampling import make_sampler
from inference.folders.loading import load_trained
from inference.folders.runs import Run, RunError
from inference.machine.processes import start
from inference.settings.names import kinds_text
from inference.train import train
from models import Tabular
from pyro_mdm import tables
from pyro_mdm.support.progress import without_progress
from pyro_mdm.tables.columns import Center
from pyro_mdm.tables.columns.kinds import Kinds
from pyro_mdm.tables.completion import DRAW_STEPS
from pyro_mdm.tables.rows import UnknownPolicy
from pyro_mdm.tables.training import Schedule, Trained

if TYPE_CHECKING:
    import pandas as pd

DRAWS = 8
"""Network evaluations of each row that is not trained on at the end of a fit: their error is small
beside that of few rows."""


class Table(tables.Table):
    """:class:`pyro_mdm.tables.Table` over a run folder.

    ``fit`` is that of ``inference.train --model tabular --guide vpsde``; what
    ``inference.evaluate`` calls test are the validation rows, or with ``holdout=False`` a tenth.

    Args:
        columns, seed, steps, num, center, progress, unknown: arguments of
            :class:`pyro_mdm.tables.Table`.
        folder: the run folder, new or empty, which keeps the rows, the settings, checkpoints and
            measurements: ``inference.train --resume`` goes on with it if it is interrupted. None:
            a temporary one, for as long as the object lives.
        settings: other options of ``inference.train`` by name.

    Raises:
        DataError, RunError, ValueError: ``fit``: what ``inference.train`` refuses.
        RunError: before ``fit``, whatever needs a trained run.
    """

    _run: Run

    def __init__(
        self,
        *,
        columns: Kinds = None,
        folder: Path | str | None = None,
        seed: int = 0,
        steps: int | None = None,
        num: int = 20,
        center: Center = "mean",
        progress: bool | None = None,
        unknown: UnknownPolicy = "missing",
        **settings: Any,
    ) -> None:
        options: dict[str, Any] = {"columns": columns, "seed": seed, "steps": steps, "num": num}
        super().__init__(**options, center=center, progress=progress, unknown=unknown)
        self.folder, self.settings = folder, settings

    def not_fitted(self) -> RuntimeError:
        """The error of whatever needs a trained run before there is one."""
        return RunError("this Table is not fitted yet; call fit, or use Table.from_run(folder)")

    def fit_frame(self, frame: pd.DataFrame) -> None:
        """Train a run of the rows; ``fit`` calls it."""
        parent = None if self.folder is not None else tempfile.mkdtemp(prefix="table-")
        folder = Path(self.folder or Path(str(parent)) / "run")
        options: dict[str, Any] = {"figures": False, "guide": "vpsde", "draws": DRAWS}
        options |= self._schedule | self.settings
        columns = self.columns
        columns = kinds_text(columns) if isinstance(columns, Mapping) else columns
        options |= {"columns": columns, "seed": self.seed}
        threads = torch.get_num_threads()
        try:
            with torch.random.fork_rng(), nullcontext() if self.progress else _silence():
                train(model="tabular", data=frame, run=folder, **options)
            self._open(folder, options.get("accelerator", "auto"))
        except BaseException:
            if parent is not None:
                shutil.rmtree(parent, ignore_errors=True)
            raise
        finally:
            torch.set_num_threads(threads)
        self._names_in = [*frame.columns]
        if (end := self.__dict__.pop("_end", None)) is not None:
            end()
        if parent is not None:
            self._end = weakref.finalize(self, shutil.rmtree, parent, ignore_errors=True)

    @property
    def _schedule(self) -> dict[str, Any]:
        """The steps, and where training ends before them if none were asked for."""
        if self.steps is not None:
            return {"steps": self.steps}
        usual = Schedule()
        schedule: dict[str, Any] = {"learning_rate": usual.learning_rate}
        if self.settings.get("seconds") is None:
            schedule["steps"] = usual.steps
        if "measure_every" not in self.settings and self.settings.get("holdout", True):
            schedule |= {"measure_every": usual.every, "patience": usual.patience}
        return schedule

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
        table = cls()
        config = table._open(Path(folder), accelerator).config
        return table.set_params(**{name: config[name] for name in ("columns", "seed", "steps")})

    def _open(self, folder: Path, accelerator: str) -> Run:
        """Become fitted as a run is, which is returned."""
        run, (problem, model, guide), _ = load_trained(folder)
        config = run.config
        if not isinstance(problem, Tabular):
            raise RunError(f"{folder} is of --model {config['model']}, expected one of tabular")
        if config["maps"] in ("levels", "independent"):
            raise RunError(
                f"{folder} was trained at --maps {config['maps']}, where no entry is ever "
                "observed, expected mixed or subsets; train it at such maps"
            )
        fabric = start(accelerator)
        if fabric.world_size > 1:
            raise ValueError("a Table is for one process; start it without torchrun")
        self._run = run
        self._take(Trained(problem, model.to(fabric.device), guide), problem.names)
        if config["sampler"] == "exponential":
            self.use_sampler("exponential", DRAW_STEPS)
        return run

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

    @property
    def problem(self) -> Tabular:
        """The table that was fitted to, with its columns."""
        problem = self.rows
        assert isinstance(problem, Tabular)
        return problem

    @property
    def run_folder(self) -> Path:
        """The folder of the run."""
        _ = self._fitted  # or an error
        return self._run.folder

    def use_sampler(self, name: str | None = None, steps: int | None = None) -> None:
        """Draw by another sampler than the run's, or by as many steps.

        Args:
            name: name of the sampler, as for ``inference.sample --sampler``; None: the run's, by
                default exponential, of which a Table takes 16 steps until this is called.
            steps: the number of steps; None: the sampler's own.
        """
        check_positive(steps=steps)
        model, usual = self.model, self._run.config["sampler"]
        with nullcontext() if name else trust.named_by(self.run_folder):
            model.sampler = make_sampler(
                name or usual or "exponential", steps, model.diffusion, model.score_function
            )

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """All settings by name, as they were given."""
        return super().get_params(deep) | self.settings

    def set_params(self, **params: Any) -> Table:
        """Change settings by name, for the next ``fit``; returns the object."""
        names = self.setting_names()
        super().set_params(**{name: value for name, value in params.items() if name in names})
        self.settings = self.settings | {n: v for n, v in params.items() if n not in names}
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_end"}


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), without_progress():
        yield
