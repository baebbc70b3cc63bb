"""The training of a multivariate diffusion model and its diffusion.

    python -m inference.train --model digits --guide learned
    python -m inference.train --model digits --guide cld --steps 2000 --seed 1 --run runs/cld
    python -m inference.train --resume runs/cld
    python -m inference.train --resume runs/cld --steps 4000

It ends with the test bound, ``bits/dim 1.234 ± 0.005 (reconstruction …, prior KL …, diffusion …)``,
and a picture of samples in the run folder (see :mod:`inference.folders.runs`). Every random number
is a function of the seed and the step, so a run that is killed and resumed ends with the same
weights, bit for bit on the same kind of machine.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from inference import trust
from inference.commands.cli import command_line
from inference.commands.decisions import decide, with_canonical_names, with_recipe
from inference.commands.mistakes import check_effects, check_patience, check_training, start_note
from inference.folders.checkpoints import Checkpoint, write_atomically
from inference.folders.config import OWN_TABLE, Settings, read_settings
from inference.folders.runs import Run, RunError, create_default
from inference.machine.environment import Threads, check_threads, choose_threads, keep_threads
from inference.machine.processes import start
from inference.measuring.bounds import RunBound
from inference.settings.imported import check_score
from inference.settings.kinds import checked_options
from inference.settings.options import GROUPS, Decided, Options
from inference.settings.plan import Programs, build
from inference.settings.problems import check_split
from inference.training.session import check_alike, fit, opened
from models import DataError, Tabular
from pyro_mdm.paths.base import warn_of_prior
from pyro_mdm.pretrained import trained_folder
from pyro_mdm.support.progress import is_hidden

__all__ = ["check_alike", "decide", "train", "with_recipe"]

LOOKED_AT = 512
"""Training data by which it is seen whether the prior covers them."""


@checked_options(Options)
def train(
    model: str = "digits", guide: str = "learned", score: str = "default", **options: Any
) -> RunBound:
    """Fit a model and its guide, and report the test bound.

    Args:
        model, guide, score: names, as in :class:`~inference.settings.options.Options`.
        options: other options by name; ``run`` or ``resume`` is the folder, and ``data`` may be a
            DataFrame, which the run keeps.
    """
    given = Options(model=model, guide=guide, score=score, **options)
    if given.resume is not None:
        return _resume(given, given.resume)
    check_threads(given.threads)
    threads = choose_threads(given.threads)
    if given.overwrite and given.run is None:
        raise RunError("--overwrite replaces a run in the folder --run, which is not given")
    asked = with_recipe(with_canonical_names(given.training))
    programs = build(asked)  # errors come before a folder is made
    check_split(given.split_seed, programs.problem)
    check_effects(asked, programs)
    settings = decide(asked, programs)
    fabric = start(settings.accelerator, settings.precision)
    check_training(settings, programs, fabric.world_size)
    check_patience(settings, programs)
    if fabric.is_global_zero:
        _say(settings, programs, threads)

    def create() -> Run:
        config, kept = asdict(settings), getattr(programs.problem, "kept", None)
        if given.run is None:
            run = create_default(given.model, given.guide, given.seed, config)
        else:
            run = Run.create(given.run, config, overwrite=given.overwrite)
        if kept is not None:
            write_atomically(run.folder / OWN_TABLE, kept)
        return run

    with opened(fabric, create) as run:
        return fit(fabric, run, settings, programs)


def _say(settings: Decided, programs: Programs, threads: Threads) -> None:
    """Print a summary of a run before it begins."""
    if note := start_note(settings, programs):
        print(note)
    if isinstance(programs.problem, Tabular):
        if is_hidden():
            programs.problem.warn_of_doubts()
        else:
            print(programs.problem.columns_in_words)
            if words := programs.problem.gaps.in_words:
                print(words)
        programs.problem.gaps.warn()
    print(programs.problem.split_in_words, flush=True)
    with torch.random.fork_rng(devices=[]):  # levels may be dequantized
        some = programs.problem.to_model_space(programs.problem.train[:LOOKED_AT])
    warn_of_prior(programs.model.diffusion, some)
    if check := check_score(programs.problem, programs.model):
        print(check)
    if threads.why:
        print(f"{threads}; give --threads N for another number")


def _resume(given: Options, folder: Path) -> RunBound:
    """Go on with a run by its own settings, or to another number of steps."""
    allowed = ("resume", "threads", "steps")
    if others := [f"--{name}" for name in given.given if name not in allowed]:
        raise RunError(
            f"--resume continues {folder} with its own settings, --steps apart; leave out "
            f"{', '.join(others)}, or start a new run"
        )
    settings = Decided.from_config(Settings(read_settings(trained_folder(folder))))
    for number in (given.threads, settings.threads):
        check_threads(number)
    keep_threads(settings.threads, given.threads, folder)
    fabric = start(settings.accelerator, settings.precision)
    with trust.named_by(folder), opened(fabric, lambda: Run.resume(folder)) as run:
        checkpoint = run.latest() if run.has_checkpoint else Checkpoint(0, {})
        facts = run.go_by(checkpoint) if checkpoint.step else None
        if given.steps is not None:
            run.lengthen(given.steps, checkpoint.step)
        settings = Decided.from_config(run.config)
        programs = build(settings, fitted=not checkpoint.step, facts=facts)
        if programs.problem.absent is not None:
            raise DataError(programs.problem.absent)
        check_training(settings, programs, fabric.world_size)
        return fit(fabric, run, settings, programs, checkpoint)


if __name__ == "__main__":
    command_line(train, groups=GROUPS)
