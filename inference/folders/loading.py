"""The programs of trained runs, with averaged weights."""

from __future__ import annotations

import warnings
from pathlib import Path

from inference import trust
from inference.folders.checkpoints import Checkpoint, load_module
from inference.folders.fingerprints import FACTS, differences, fingerprint_of
from inference.folders.runs import Run, RunError
from inference.settings.options import Training
from inference.settings.plan import Programs, build
from models import DataError, Problem
from pyro_mdm import DiffusionModel


def load_weights(model: DiffusionModel, checkpoint: Checkpoint, part: str, run: Run) -> None:
    """Load the tensors ``part`` of a run's checkpoint."""
    where = f"the checkpoint of step {checkpoint.step} in {run.folder}"
    load_module(model, checkpoint.part(part), where)


def load_trained(folder: Path) -> tuple[Run, Programs, Checkpoint]:
    """A run's programs with the averaged weights of its newest whole checkpoint, in eval mode.

    Args:
        folder: the run folder, or the name of a trained model of this checkout.

    Raises:
        RunError, CheckpointError, ArchitectureError: there is no such run, it has no usable
            checkpoint, the checkpoint is of another architecture, or the settings or the data are
            not those of the checkpoint.
        UntrustedCodeError: its settings name code that is not trusted, see :mod:`inference.trust`.
    """
    run = Run.open(folder)
    # code that is not trusted is refused first, also where there are no weights
    checkpoint = run.averaged() if run.has_weights else None
    facts = None if checkpoint is None else run.go_by(checkpoint)
    try:
        with trust.named_by(folder):
            programs = build(Training.from_config(run.config), fitted=False, facts=facts)
    except DataError as error:
        raise DataError(f"{error}\n{_where(run)}") from error
    checkpoint = run.averaged() if checkpoint is None else checkpoint
    _check_data(run, programs.problem)  # which also says why weights are of another size
    load_weights(programs.model, checkpoint, "ema", run)
    programs.model.eval()
    return run, programs, checkpoint


def _where(run: Run) -> str:
    where = f"{run.folder / 'config.yaml'} says where the run's data are"
    return f"{where} (data: …); change it there if they have moved"


def _check_data(run: Run, problem: Problem) -> None:
    """Compare the data set with that of the training: if it is another, a model that needs nothing
    of it goes on without its parts, with a warning, and others are a RunError."""
    started = run.started_data()
    assert started is not None  # of the checkpoint
    if problem.absent is not None:
        reason = f"{problem.absent}\n{_where(run)}"
    elif differing := differences(started, fingerprint_of(problem)):
        reason = run.other_data(differing)
        if FACTS not in started:
            raise RunError(reason)
    else:
        return
    warnings.warn(
        f"{reason}. The run still serves rows of other tables, by the levels and scales that it "
        "keeps; its own training and test rows cannot be used",
        stacklevel=3,
    )
    problem.withhold(f"{reason}. Rows of another table are measured by inference.evaluate --data")
