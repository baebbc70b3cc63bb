"""The training of a run from its checkpoint, or from its start, to its end."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from inference import trust
from inference.folders.checkpoints import Checkpoint, explain_full_disk
from inference.folders.fingerprints import differences, fingerprint_of
from inference.folders.records import sealed, write_json
from inference.folders.runs import Run, RunError
from inference.folders.sessions import begin_session, keep_sources
from inference.machine.environment import Threads
from inference.machine.processes import Signals, Stopped, catch_signals
from inference.measuring.bounds import RunBound
from inference.settings import names
from inference.settings.options import Decided
from inference.settings.plan import Programs
from inference.training import recipe
from inference.training.trainee import RunProgress, Step, Trainee
from pyro_mdm.budgets import ANY_STEPS, Outcome, Pace, Reason
from pyro_mdm.diffusions.base import SimulationError, UnreachableError
from pyro_mdm.diffusions.kernels import KernelPrecisionError
from pyro_mdm.support.progress import Progress as Bar, progress_bar, show_estimate
from pyro_mdm.training import FALL

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch.utils.tensorboard import SummaryWriter

LATE = 0.75
"""The fraction of all steps after which a bound may stop falling without a note."""


def fit(
    fabric: Fabric,
    run: Run,
    settings: Decided,
    programs: Programs,
    checkpoint: Checkpoint | None = None,
) -> RunBound:
    """Train a run from its checkpoint, or of a resumed run without one from its start, to its end;
    None: it is new."""
    trainee = Trainee(fabric, programs, settings)
    lead, prints = fabric.is_global_zero, fingerprint_of(programs.problem)
    check_alike(fabric, run, (checkpoint.step if checkpoint else 0, prints))
    if lead:
        run.check_data(prints, programs.problem.facts)
    progress = trainee.load(run, checkpoint) if checkpoint and checkpoint.step else RunProgress()
    writer = _open_books(fabric, run, trainee, progress, checkpoint) if lead else None
    session = Session(run, trainee, writer, progress)
    if settings.steps == 0:
        session.close_range()
        session.save(unmeasured=True)
    if (
        settings.steps == 0
        or progress.unmeasured
        or (programs.problem.keeps_best and progress.step == 0)
    ):
        session.measure()
    with ExitStack() as stack:
        if writer is not None:
            stack.callback(_flush, writer)
        caught = stack.enter_context(catch_signals())
        over, done = session.is_over(), progress.step
        if checkpoint is not None:
            session.go_on(over=over)
        total = None if settings.steps == ANY_STEPS else settings.steps
        bar = progress_bar(total, "training", "steps", initial=done, leave=True, shown=lead)
        stack.enter_context(bar)
        while session.done < settings.steps and not over:
            over = session.step(caught, bar)
        if over:
            session.close_range()
            session.save(unmeasured=False)
        if caught.number:  # in the last measurement; everything is saved
            raise _stopped(run, session.done, caught.number)
    bound = session.end()
    if lead:
        outcome = session.outcome()
        print(f"training: {outcome}")
        if note := _on_validation(run, outcome):
            print(note)
        picture, board = run.folder / "samples.png", run.folder / "tensorboard"
        shown = f"; {picture}" if picture.exists() else ""
        print(f"tensorboard --logdir {board}{shown}")
        print(bound)
    return bound


class Session:
    """The training of a run: its steps, and what is logged, measured and saved.

    Attributes:
        done: the number of steps taken.
    """

    def __init__(
        self, run: Run, trainee: Trainee, writer: SummaryWriter | None, progress: RunProgress
    ) -> None:
        from inference.training import report  # loads matplotlib

        self.run, self.trainee, self.writer, self.done = run, trainee, writer, progress.step
        self.settings, self.fabric, self.report = trainee.settings, trainee.fabric, report
        self.window = recipe.LossWindow(*progress.window)
        self._budget = self.trainee.trainer.budget.start()
        self._pace = Pace(self._budget, self.done, self.settings.steps)

    @property
    def seconds(self) -> float:
        """The seconds of training, with those before a resume."""
        return self._budget.spent

    def step(self, caught: Signals, bar: Bar) -> bool:
        """Take a step, and log, measure and save what is due; returns whether training is over."""
        settings = self.settings
        with _explained(self.done, self.run):
            taken = self.trainee.step(self.done, caught.number)
        self.done += 1
        self.window.add(taken.bits)
        bar.update()
        if (whole := self._pace.whole(self.done)) is not None:
            show_estimate(bar, whole)
        last = self.done == settings.steps or self.trainee.trainer.is_out_of_time
        if self.done % settings.log_every == 0 or last:
            bar.set_postfix_str(self.log(taken))
        # saved first, so that a process that ends while it measures loses nothing
        due = self.done % settings.measure_every == 0 or last
        if self.done % settings.checkpoint_every == 0 or last or taken.stop:
            if last:
                self.close_range()
            self.save(unmeasured=due)
        if taken.stop:
            bar.close()
            raise _stopped(self.run, self.done, taken.stop)
        if due:
            self.measure()
        return due and self.is_over()

    def log(self, taken: Step) -> str:
        """Write the objective since the last time, and return it in words."""
        mean, error = self.window.mean_and_error
        self.window = recipe.LossWindow()
        if self.writer is not None:
            row = {"learning_rate": taken.rate, "gradient_norm": taken.norm}
            row |= {"seconds": self.seconds}
            self.report.objective(self.run, self.writer, mean, error, row, self.done)
        with_error = f" ± {error:.3f}" if math.isfinite(error) else ""  # of one step it has none
        return f"{mean:.3f}{with_error} bits/dim"

    def measure(self) -> None:
        """Measure the bound."""
        trainee, several = self.trainee, self.fabric.world_size > 1
        averaged, model = trainee.averaged, trainee.programs.model
        self.report.at_step(self.run, self.writer, averaged, model, self.done, distributed=several)
        if trainee.programs.problem.keeps_best:
            lead = self.fabric.is_global_zero
            if self.fabric.broadcast(lead and _best_step(self.run) == self.done):
                trainee.keep()

    def is_over(self) -> bool:
        """Whether the run ends before its last step."""
        return self.trainee.trainer.is_out_of_time or self.out_of_patience()

    def outcome(self) -> Outcome:
        """Why training ended, and the step whose averaged weights are kept."""
        reason: Reason = "no gain"
        if self.done == self.settings.steps:
            reason = "all steps"
        elif self.trainee.trainer.is_out_of_time:
            reason = "budget"
        taken = self.done, self.seconds, reason
        bounds = _validation_bounds(self.run) if self.trainee.best else {}
        if not bounds:
            return Outcome(*taken)
        best = min(bounds, key=lambda step: bounds[step])
        return Outcome(*taken, best, bounds[best], "bits/dim")

    def out_of_patience(self) -> bool:
        """Whether the bound has not fallen for --patience measurements."""
        most = self.settings.patience
        if most is None:
            return False
        lead = self.fabric.is_global_zero
        over: bool = self.fabric.broadcast(lead and _since_last_fall(self.run)[1] >= most)
        return over

    def go_on(self, *, over: bool) -> None:
        """Prepare for the steps after a resume, of a run that may have been lengthened.

        Raises:
            RunError: it was, and ``over``: its patience or its time is out.
        """
        changes = self.run.lengthened
        if over and changes and changes[-1][0] == self.done:
            name = "seconds" if self.trainee.trainer.is_out_of_time else "patience"
            raise RunError(
                f"{self.run.folder} was stopped at step {self.done:,} by --{name} "
                f"{getattr(self.settings, name)}, which would stop it there again; start a new run "
                f"with more {name}: python -m inference.train --config "
                f"{self.run.folder / 'config.yaml'} --{name} N"
            )
        if self.fabric.is_global_zero:
            self.run.keep_length()
            if self.done:  # a kill may have left the model of an earlier checkpoint
                trainee = self.trainee
                self.run.save_model(trainee.averaged.model, self.done, trainee.digest)
            if self.writer is not None and changes and changes[-1][0] == self.done:
                programs = self.trainee.programs
                self.report.at_more_steps(self.run, self.writer, programs, self.done)
            if self.trainee.filling is not None and changes and self.done <= changes[-1][0]:
                self.trainee.filling.values = None  # of a part of the training as it was before
        if self.done < self.settings.steps and not over:
            recipe.open_range(self.trainee.programs.model, self.trainee.averaged.model)

    def close_range(self) -> None:
        """Declare the range of log SNR that was trained on."""
        recipe.close_range(self.trainee.programs.model, self.trainee.averaged.model)

    def save(self, *, unmeasured: bool) -> None:
        """Write a checkpoint."""
        if self.fabric.is_global_zero:
            window = astuple(self.window)
            self.trainee.save(self.run, RunProgress(self.done, self.seconds, window, unmeasured))

    def end(self) -> RunBound:
        """Measure the test bound and draw the last pictures."""

        def keep(bound: RunBound) -> None:
            spent = {"steps": self.done, "seconds": self.seconds}
            write_json(self.run.folder / "results.json", sealed(bound.as_json() | spent))

        if self.trainee.best:
            self.trainee.use_best()
            self.close_range()
            self.save(unmeasured=False)
        several, averaged = self.fabric.world_size > 1, self.trainee.averaged
        return self.report.at_end(
            self.run, self.writer, averaged, self.done, keep, distributed=several
        )


# -- start and errors ------------------------------------------------------------------------------


@contextmanager
def opened(fabric: Fabric, make: Callable[[], Run]) -> Iterator[Run]:
    """The run that the first process makes or resumes; the others open it for reading.

    One that is interrupted says how to go on.
    """
    run = make() if fabric.is_global_zero else None
    folder = fabric.broadcast(str(run.folder) if run is not None else "")
    run = run if run is not None else Run.open(Path(folder))
    try:
        with run, explain_full_disk(run.folder / "tensorboard", 0):
            yield run
    except (KeyboardInterrupt, Stopped):
        if run.is_writable:
            print(f"go on with python -m inference.train --resume {run.folder}", flush=True)
        raise


def check_alike(fabric: Fabric, run: Run, mine: tuple[int, dict[str, Any]]) -> None:
    """Raise unless all processes begin at the step and with the data of the first one."""
    theirs = fabric.broadcast(mine)
    if mine[0] != theirs[0] or differences(theirs[1], mine[1]):
        raise RunError(
            f"process {fabric.global_rank} on {platform.node()} would begin {run.folder} at step "
            f"{mine[0]} with data {mine[1]}, the first process at step {theirs[0]} with data "
            f"{theirs[1]}; all must see the same files"
        )


def _open_books(
    fabric: Fabric, run: Run, trainee: Trainee, progress: RunProgress, checkpoint: Checkpoint | None
) -> SummaryWriter:
    """Write the start to the run folder and TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    from inference.training import report

    settings, world = trainee.settings, fabric.world_size
    trust.remember(names.own_names(run.config))
    keep_sources(run.folder, names.source_files(run.config))
    if checkpoint is not None:
        run.metrics.rewind(checkpoint.state["record"] if progress.step else None)
    begin_session(run.folder, progress.step, processes=world, device=str(fabric.device))
    shared = f", {world} processes" if world > 1 else ""
    where = f"{settings.model} under {settings.guide}"
    threads = Threads(torch.get_num_threads())
    steps = "" if settings.steps == ANY_STEPS else f" of {settings.steps}"
    limit = "" if settings.seconds is None else f", at most {settings.seconds:g} s"
    at = f"step {progress.step}{steps}{limit}{shared}, {threads}"
    print(f"{run.folder}: {where}, {at}", flush=True)
    folder = str(run.folder / "tensorboard")
    again = progress.step + 1 if progress.step else 0
    writer = SummaryWriter(folder, purge_step=None if checkpoint is None else again)
    if progress.step == 0:
        report.at_start(run, writer, trainee.averaged)
    return writer


def _validation_bounds(run: Run) -> dict[int, float]:
    """The finite bounds on validation data, bits/dim, by step."""
    bounds = {
        record["step"]: record["terms"]["bits_per_dim"][0]
        for record in run.metrics.history()
        if record["part"] == "validation"
    }
    return {step: value for step, value in bounds.items() if value is not None}


def _since_last_fall(run: Run) -> tuple[int, int]:
    """The last fall of the bound on validation data, see :func:`recipe.last_fall`."""
    finite = _validation_bounds(run)
    return recipe.last_fall(finite) if finite else (0, 0)


def _best_step(run: Run) -> int | None:
    """The step of the best bound on validation data; None: there is none."""
    finite = _validation_bounds(run)
    return min(finite, key=lambda step: finite[step]) if finite else None


def _on_validation(run: Run, outcome: Outcome) -> str | None:
    """Advice on a run whose bound had stopped falling long before its end."""
    if outcome.best_step is not None:
        return None
    step, after = _since_last_fall(run)
    fell = f"the validation bound last fell by {FALL} bits/dim at step {step:,}"
    if outcome.reason == "no gain":
        return fell
    if outcome.reason == "budget" or after < 2 or step > LATE * outcome.steps:
        return None
    return f"{fell} of {outcome.steps:,}; fewer --steps, or --patience 2, take less time"


def _flush(writer: SummaryWriter) -> None:
    """Flush; an error here must not hide one that is being raised."""
    with suppress(OSError):
        writer.flush()


def _stopped(run: Run, step: int, number: int) -> Stopped:
    if run.is_writable:
        print(f"stopped by a signal at step {step} and saved", flush=True)
    return Stopped(number)


@contextmanager
def _explained(step: int, run: Run) -> Iterator[None]:
    """Add to errors the step at which training ended, possible causes, and what is saved."""
    try:
        yield
    except FloatingPointError as error:
        rates = "lower --learning_rate or --diffusion_learning_rate"
        raise FloatingPointError(f"step {step}: {error}. {_advice(step, run, rates)}") from error
    except (SimulationError, UnreachableError, KernelPrecisionError) as error:
        reason = str(error).partition("\nTrace Shapes:")[0]  # of Pyro
        rates = "if training led the diffusion here, lower --diffusion_learning_rate"
        raise type(error)(f"step {step}: {reason}. {_advice(step, run, rates)}") from error


def _advice(step: int, run: Run, rates: str) -> str:
    """Advice after training that ended at ``step``: nothing was trained before the first."""
    if step == 0:
        return (
            "Nothing has been trained yet, so that no learning rate is at fault: look at the data, "
            "the guide and the network as they start"
        )
    good = "the last checkpoint is good" if run.has_checkpoint else "no checkpoint was written yet"
    return f"{rates[0].upper()}{rates[1:]}; {good}"
