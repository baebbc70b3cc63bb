"""The programs of trained runs, with averaged weights."""

from __future__ import annotations

from pathlib import Path

from inference import trust
from inference.checkpoints import ArchitectureError, Checkpoint, load_module
from inference.config import LATER
from inference.options import Training
from inference.plan import Programs, build
from inference.runs import Run
from models import DataError
from pyro_mdm import DiffusionModel


def load_weights(model: DiffusionModel, checkpoint: Checkpoint, part: str, run: Run) -> None:
    """Load the tensors ``part`` of a run's checkpoint.

    An ArchitectureError also names the settings that have changed since; of a table without such
    it says that an earlier version trained it.
    """
    where = f"the checkpoint of step {checkpoint.step} in {run.folder}"
    try:
        load_module(model, checkpoint.part(part), where)
    except ArchitectureError as error:
        tabular = run.config["model"] == "tabular"
        then = LATER | checkpoint.state["config"]
        changed = [
            f"{key}: {then.get(key)!r} in the checkpoint, {value!r} in config.yaml"
            for key, value in run.config.items()
            if then.get(key) != value and not (tabular and key == "data")  # the folder's own file
        ]
        if not changed and tabular and run.config["network"] is None:
            raise ArchitectureError(
                f"{where} was trained by an earlier version of tables, which had another network; "
                "train it again, in a new folder, by the settings in its config.yaml"
            ) from error
        if not changed:
            raise
        lines = "\n  ".join(changed)
        raise ArchitectureError(f"{error}\nSettings that differ:\n  {lines}") from error


def load_trained(folder: Path) -> tuple[Run, Programs, Checkpoint]:
    """A run's programs with the averaged weights of its newest whole checkpoint, in eval mode.

    Args:
        folder: the run folder, or the name of a trained model of this checkout.

    Raises:
        RunError, CheckpointError, ArchitectureError: there is no such run, it has no usable
            checkpoint, or the checkpoint is of another architecture.
        UntrustedCodeError: its settings name code that is not trusted, see :mod:`inference.trust`.
    """
    run = Run.open(folder)
    try:
        with trust.named_by(folder):
            programs = build(Training.of(run.config), fitted=False)
    except DataError as error:
        where = f"{run.folder / 'config.yaml'} says where the run's data are"
        raise DataError(
            f"{error}\n{where} (data: …); change it there if they have moved"
        ) from error
    checkpoint = run.averaged()
    load_weights(programs.model, checkpoint, "ema", run)
    programs.model.eval()
    return run, programs, checkpoint
