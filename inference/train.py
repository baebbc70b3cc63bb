"""Fit a multivariate diffusion model and its diffusion.

    python -m inference.train --model digits --guide learned
    python -m inference.train --model digits --guide cld --steps 2000 --seed 1 --run runs/cld
    python -m inference.train --resume runs/cld

Ends with the test bound, ``bits/dim 1.234 ± 0.005 (reconstruction …, prior KL …, diffusion …)``,
and a picture of samples in the run folder (see :mod:`inference.runs`). Every number drawn is a
function of the seed and the step, so that a run killed at any moment and resumed ends with the same
weights, on one kind of machine bit for bit.
"""

from __future__ import annotations

import functools
import inspect
import math
import platform
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, astuple, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from inference import loading, names, recipe, sample, trust
from inference.batches import Batches
from inference.bounds import Bound
from inference.checkpoints import (
    ArchitectureError,
    Checkpoint,
    explain_full_disk,
    load_optimizer,
    optimizer_tensors,
)
from inference.cli import check_positive, command_line
from inference.effects import check_effects, check_patience, start_note
from inference.environment import Threads, choose_threads, keep_threads
from inference.fingerprints import fingerprint
from inference.loading import Programs
from inference.optimizers import hidden_weights
from inference.options import GROUPS, Decided, Options, Training
from inference.processes import (
    LossScale,
    Stopped,
    autocast_dtype,
    catch_signals,
    loss_scale,
    start,
)
from inference.runs import Run, RunError, create_default
from models import ImageProblem, Images, Problem, Tabular
from models.base import FileImages
from pyro_mdm import MDM_ELBO, DiffusionGuide, randomness
from pyro_mdm.diffusions.base import UnreachableError
from pyro_mdm.diffusions.kernels import KernelPrecisionError
from pyro_mdm.diffusions.simulation import SimulationError
from pyro_mdm.support.progress import progress_bar

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["Trainee", "check_alike", "decide", "train", "with_recipe"]

FEWEST = 8
"""Data of a part, below which its bound has no error bar."""
LATE = 0.75
"""The part of all steps after which a bound that stops falling is no news."""


def train(
    model: str = "digits", guide: str = "learned", score: str = "default", **options: Any
) -> Bound:
    """Fit a model and its guide, and report the test bound.

    Args:
        model, guide, score: names, as all others in :class:`~inference.options.Options`.
        options: the others, by name; ``run`` and ``resume`` are the folder.
    """
    given = Options(model=model, guide=guide, score=score, **options)
    if given.resume is not None:
        return _resume(given, given.resume)
    check_positive(threads=given.threads)
    threads = choose_threads(given.threads)
    if given.overwrite and given.run is None:
        raise RunError("--overwrite replaces a run in the folder --run, which is not given")
    asked = loading.with_split(with_recipe(_with_absolute_names(given.training)))
    programs = loading.build(asdict(asked))  # mistakes show before a folder is made
    loading.check_split(given.split_seed, programs.problem)
    check_effects(asked, programs)
    settings = decide(asked, programs)
    fabric = start(settings.accelerator, settings.precision)
    _check(settings, programs, fabric.world_size)
    check_patience(settings, programs)
    if fabric.is_global_zero and (note := start_note(settings, programs)):
        print(note)
    if fabric.is_global_zero:
        print(programs.problem.split_in_words, flush=True)
    if fabric.is_global_zero and threads.why:
        print(f"{threads}; give --threads N for another number")

    def create() -> Run:
        if given.run is None:
            return create_default(given.model, given.guide, given.seed, asdict(settings))
        return Run.create(given.run, asdict(settings), overwrite=given.overwrite)

    with _open(fabric, create) as run:
        return _fit(fabric, run, programs, resumed=False)


def _resume(given: Options, folder: Path) -> Bound:
    """Go on with a run, which has its own settings."""
    own = ("resume", "threads")
    if others := [f"--{name}" for name in given.given if name not in own]:
        raise RunError(
            f"--resume continues {folder} with its own settings; leave out {', '.join(others)}, or "
            "start a new run"
        )
    config = Run.open(folder).config
    settings = Decided.of(config)
    for number in (given.threads, settings.threads):
        check_positive(threads=number)
    keep_threads(settings.threads, given.threads, folder)
    fabric = start(settings.accelerator, settings.precision)
    with trust.named_by(folder), _open(fabric, lambda: Run.resume(folder)) as run:
        programs = loading.build(config, fitted=not run.has_checkpoint)
        _check(settings, programs, fabric.world_size)
        return _fit(fabric, run, programs, resumed=True)


def _with_absolute_names(settings: Training) -> Training:
    """Names of files, found from any folder."""
    found = {option: getattr(settings, option) for option in names.NAMED}
    found = {option: names.absolute_name(name) for option, name in found.items() if name}
    return replace(settings, **found)


def with_recipe(settings: Training) -> Training:
    """The network that the data set is trained with if none is asked for.

    A subclass that has networks or a form of its own does not inherit a recipe.
    """
    found = names.find("model", settings.model)
    if settings.network is not None or not inspect.isclass(found):
        return settings
    for cls in found.__mro__:
        own = vars(cls)
        if "recipe" in own:
            return replace(settings, network=own["recipe"])
        if "networks" in own or "form" in own or "network" in own:
            break
    return settings


def decide(settings: Training, programs: Programs) -> Decided:
    """What was left to the data set and the guide, as it came out, so that it stays so."""
    problem, decided = programs.problem, asdict(settings)
    own_end = loading.give_learned_end(programs.model.diffusion, programs.model.score_function)
    if own_end is not None:
        decided["min_log_snr"] = own_end  # in config.yaml: older runs keep the ends they have
    if settings.stationary_variance is not None:  # also a tensor, which YAML cannot hold
        exact = torch.as_tensor(settings.stationary_variance, dtype=torch.float64)
        decided["stationary_variance"] = exact.tolist()
    if isinstance(settings.learn_ends, list | tuple):
        decided["learn_ends"] = [float(reach) for reach in settings.learn_ends]
    if settings.data is not None:
        decided["data"] = str(settings.data)
    if isinstance(problem, FileImages | Images):
        decided["data"] = str(problem.root.resolve())  # found again from any folder
    if isinstance(problem, Tabular) and settings.data is not None:
        decided["data"] = problem.absolute_source
    decided["maps"] = settings.maps or problem.default_maps
    decided["split_seed"] = None  # of official parts
    if problem.rows is not None:
        decided["split_seed"] = loading.split_word(problem.rows.seed)
    for name in ("steps", "batch_size", "learning_rate"):
        if getattr(settings, name) is None:
            decided[name] = getattr(problem, name)
    decided["threads"] = settings.threads or torch.get_num_threads()
    if settings.measure_every is None:
        decided["measure_every"] = max(250, decided["steps"] // 10)
    if settings.times is None and programs.model.diffusion.closed_form and decided["maps"] is None:
        decided["times"] = programs.model.score_function.times = problem.times
    if settings.optimizer is None:
        decided["optimizer"] = "adam"
        if _by_recipe(problem, settings) and hidden_weights(programs.model):
            decided["optimizer"] = problem.optimizer
    chosen = settings.sampler or sample.default_sampler(programs.model)
    decided["sampler"] = chosen
    if settings.sampler_steps is None:
        decided["sampler_steps"] = sample.default_steps(chosen)
    number = len(problem.train)
    if settings.batch_size is None:
        decided["batch_size"] = min(decided["batch_size"], number)
    elif settings.batch_size > number:
        raise ValueError(
            f"--batch_size is {settings.batch_size}, expected at most the {number} training data "
            f"of {names.short_name(settings.model)}"
        )
    return Decided(**decided)


def _by_recipe(problem: Problem, settings: Training) -> TypeGuard[ImageProblem]:
    """Whether the network is the one that a data set of images is trained with."""
    return (
        isinstance(problem, ImageProblem)
        and problem.recipe is not None
        and settings.network == problem.recipe
    )


# -- the loop --------------------------------------------------------------------------------------


def _fit(fabric: Fabric, run: Run, programs: Programs, *, resumed: bool) -> Bound:
    """Train a run from where it is to its end."""
    from inference import report  # loads matplotlib

    settings, lead, several = Decided.of(run.config), fabric.is_global_zero, fabric.world_size > 1
    steps = settings.steps
    trainee = Trainee(fabric, programs, settings)
    progress = trainee.load(run) if run.has_checkpoint else Progress()
    _check_data(fabric, run, programs, progress)
    writer = _open_books(fabric, run, trainee, progress, resumed) if lead else None
    averaged, began = trainee.averaged, time.monotonic() - progress.seconds
    measure = functools.partial(
        report.at_step, run, writer, averaged, programs.model, distributed=several
    )

    def save(step: int, *, unmeasured: bool) -> None:
        if lead:
            seconds = time.monotonic() - began
            trainee.save(run, Progress(step, seconds, astuple(window), unmeasured))

    def out_of_patience() -> bool:
        most = settings.patience
        return most is not None and fabric.broadcast(lead and _since_last_fall(run)[1] >= most)

    window = recipe.Window(*progress.window)
    if progress.unmeasured:
        measure(progress.step)
    with ExitStack() as stack:
        stack.callback(trainee.close)
        if writer is not None:
            stack.callback(_flush, writer)
        caught = stack.enter_context(catch_signals())
        done, over = progress.step, out_of_patience()
        bar = progress_bar(steps, "training", "steps", initial=done, leave=True, shown=lead)
        stack.enter_context(bar)
        while done < steps and not over:
            done += 1
            with _explained(done - 1, run):
                taken = trainee.step(done - 1, caught.number)
            window.add(taken.bits)
            bar.update()
            last = done == steps
            if done % settings.log_every == 0 or last:
                mean, error = window.mean_and_error
                window = recipe.Window()
                bar.set_postfix_str(f"{mean:.3f} ± {error:.3f} bits/dim")
                if writer is not None:
                    row = {"learning_rate": taken.rate, "gradient_norm": taken.norm}
                    row |= {"seconds": time.monotonic() - began}
                    report.objective(run, writer, mean, error, row, done)
            # saved first, so that a process that ends while it measures has lost nothing
            due = done % settings.measure_every == 0 or last
            if done % settings.checkpoint_every == 0 or last or taken.stop:
                if last:
                    recipe.close_range(programs.model, averaged.model)
                save(done, unmeasured=due)
            if taken.stop:
                bar.close()
                raise _stopped(run, done, taken.stop)
            if due:
                measure(done)
                over = out_of_patience()
        if over:
            recipe.close_range(programs.model, averaged.model)
            save(done, unmeasured=False)
        if caught.number:  # in the last measurement; everything is saved
            raise _stopped(run, done, caught.number)

    def keep(bound: Bound) -> None:
        spent = {"steps": done, "seconds": time.monotonic() - began}
        run.write_json("results.json", bound.as_json() | spent)

    bound = report.at_end(run, writer, averaged, done, keep, distributed=several)
    if lead:
        if note := _on_validation(run, done):
            print(note)
        seconds, board = time.monotonic() - began, run.folder / "tensorboard"
        print(f"{seconds:.0f} s; tensorboard --logdir {board}; {run.folder / 'samples.png'}")
        print(bound)
    return bound


class Progress(NamedTuple):
    """How far a run is, as a checkpoint has it beside its tensors."""

    step: int = 0
    seconds: float = 0.0
    window: Sequence[float] = ()  # the losses not yet written, as recipe.Window has them
    unmeasured: bool = False  # whether the bound is due at this step


class Step(NamedTuple):
    """What a step of training was like."""

    bits: float  # the objective, bits/dim
    norm: float  # of its gradient, nats/dim
    rate: float  # learning rate of the network
    stop: int  # the signal that any process was stopped by, or 0


class Trainee:
    """What training changes, which is what a checkpoint holds, and a step of it.

    Data, noise and learning rates of a step are functions of the seed and the step alone. A batch
    is in equal pieces, micro-batches of each process, whose noise is the whole batch's. Which data
    are a member's depends on the pieces.

    Attributes:
        averaged: the programs with averaged weights, which are evaluated.
    """

    def __init__(self, fabric: Fabric, programs: Programs, settings: Decided) -> None:
        self.fabric, self.programs, self.settings = fabric, programs, settings
        problem, model, guide = programs
        model.to(fabric.device)
        network: Any = model.score_function.network
        if settings.channels_last:
            network.to(memory_format=torch.channels_last)
        if settings.diffusion_learning_rate == 0:
            model.diffusion.requires_grad_(False)
        self.names, self.optimizer = recipe.optimizer(model, settings)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]  # at their highest
        self.ema = AveragedModel(model, multi_avg_fn=recipe.averaging(settings.ema_decay))
        averaged: Any = self.ema.module
        self.averaged = Programs(problem, averaged, DiffusionGuide(averaged.diffusion))
        self.scale: LossScale = loss_scale(fabric)
        model.score_function.autocast_dtype = autocast_dtype(settings.precision)
        if settings.compile is not None:
            network.compile(backend=settings.compile)
        self.density = model.score_function.time_density
        if self.density is not None:
            self.density.automatic = False  # pieces of a batch are drawn by one density

        own, rank = settings.micro_batches, fabric.global_rank
        self.count, self.mine = fabric.world_size * own, range(rank * own, (rank + 1) * own)
        self.batches = Batches(
            problem.train,
            settings.batch_size,
            settings.seed,
            fabric.device,
            pieces=(self.mine, self.count),
            flip=settings.flip,
        )
        context = problem.part("train").context
        self.contexts = (
            None
            if context is None
            else Batches(
                context,
                settings.batch_size,
                settings.seed,
                fabric.device,
                pieces=(self.mine, self.count),
            )
        )
        objective = MDM_ELBO(decoder=settings.decoder_in_loss)
        self.loss_of, self.stepper = fabric.setup(objective(model, guide), self.optimizer)

    def step(self, step: int, signal_number: int = 0) -> Step:
        """Take a step; all processes do.

        Args:
            step: its number, from 0.
            signal_number: that this process was stopped by, or 0.

        Raises:
            FloatingPointError: the loss or its gradient is not finite.
            SimulationError, UnreachableError, KernelPrecisionError: the diffusion was trained into
                what has no bound.
        """
        settings, scale = self.settings, self.scale.value
        factor = recipe.schedule(step, settings.steps, settings.warmup, settings.decay)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        nats = self._gradients(step)
        if self.density is not None:
            # processes and float16 scale the loss, and a run may go on with others
            self.density.update(self._sum_of_processes, self.fabric.world_size * scale)
        clipped = self.fabric.clip_gradients(
            self.loss_of, self.stepper, max_norm=settings.clip, error_if_nonfinite=False
        )
        norm = float(torch.as_tensor(clipped))
        total, stop = _sum(self.fabric, nats, signal_number)
        levels = self.programs.problem.dequantized_levels
        bits = total / math.log(2) + math.log2(levels or 1)
        overflow = not math.isfinite(norm) and self.scale.may_fall
        if not (math.isfinite(bits) and (math.isfinite(norm) or overflow)):
            raise FloatingPointError(
                f"the loss is {bits} bits/dim and the norm of its gradient {norm}"
            )
        self.stepper.step()
        if self.scale.value >= scale:  # else it was too large and the step was left out
            self.ema.update_parameters(self.programs.model)
        return Step(bits, norm, self.optimizer.param_groups[0]["lr"], stop)

    def _gradients(self, step: int) -> Tensor:
        """Gradients of the negative bound in nats/dim, and this process's part of it."""
        seed, problem = self.settings.seed, self.programs.problem
        numbers = self.settings.batch_size * math.prod(problem.event_shape)
        noise_seed = loading.seed_from(seed, "noise", step, 0)
        self.optimizer.zero_grad(set_to_none=True)
        nats = torch.zeros((), device=self.fabric.device)
        given = [None] * len(self.mine) if self.contexts is None else self.contexts(step)
        for r, part, context in zip(self.mine, self.batches(step), given, strict=True):
            torch.manual_seed(loading.seed_from(seed, "dropout", step, r))
            waiting = r != self.mine[-1]
            with self.fabric.no_backward_sync(self.loss_of, enabled=waiting):
                with randomness.piece(r, self.count, noise_seed):
                    x, log_det = problem.transform(part)
                    loss = self.loss_of(x, *([] if context is None else [context])) / numbers
                # processes are averaged, and their sum is meant
                self.fabric.backward(loss * self.fabric.world_size)
            nats += loss.detach() - log_det.sum() / numbers
        return nats

    def _sum_of_processes(self, values: Tensor) -> Tensor:
        total: Any = self.fabric.all_reduce(values, reduce_op="sum")
        return total

    def close(self) -> None:
        """Stop gathering data."""
        for batches in (self.batches, self.contexts):
            if batches is not None:
                batches.close()

    def save(self, run: Run, progress: Progress) -> None:
        """Write a checkpoint, and the averaged model."""
        named = {
            "model": self.programs.model.state_dict(),
            "ema": self.averaged.model.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer, self.names),
        }
        tensors = {f"{part}/{name}": t for part, ts in named.items() for name, t in ts.items()}
        averages = {"averages": int(self.ema.n_averaged), "loss_scale": self.scale.state}
        state = progress._asdict() | {"config": dict(run.config)} | averages
        run.save(Checkpoint(progress.step, tensors, state))
        run.save_model(self.averaged.model)

    def load(self, run: Run) -> Progress:
        """Go back to the newest checkpoint."""
        checkpoint = run.latest()
        before = checkpoint.state.get("config", {}).get("optimizer", "adam")
        if before != self.settings.optimizer:
            raise ArchitectureError(
                f"{run.folder} was trained by {before}, and its config.yaml says "
                f"{self.settings.optimizer}; set optimizer back, or start a new run"
            )
        loading.load_weights(self.programs.model, checkpoint, "model", run)
        loading.load_weights(self.averaged.model, checkpoint, "ema", run)
        load_optimizer(self.optimizer, checkpoint.part("optimizer"), self.names)
        self.ema.n_averaged.fill_(checkpoint.state.get("averages", checkpoint.step))
        self.scale.load(checkpoint.state.get("loss_scale", {}))
        saved = checkpoint.state
        return Progress(**{name: saved[name] for name in Progress._fields if name in saved})


# -- around it -------------------------------------------------------------------------------------


def _check_data(fabric: Fabric, run: Run, programs: Programs, progress: Progress) -> None:
    """Whether all processes begin at one step, with the data that the run was started on."""
    parts = ("train", "validation", "test")
    data = {part: programs.problem.part(part) for part in parts}
    tensors = {part: found.data for part, found in data.items()}
    given = {f"{part}_context": p.context for part, p in data.items() if p.context is not None}
    prints = fingerprint(tensors | given)
    check_alike(fabric, run, (progress.step, prints))
    if fabric.is_global_zero:
        run.check_data(prints)


def _open_books(
    fabric: Fabric, run: Run, trainee: Trainee, progress: Progress, resumed: bool
) -> SummaryWriter:
    """What the run folder and TensorBoard say of the start."""
    from torch.utils.tensorboard import SummaryWriter

    from inference import report

    settings, world = trainee.settings, fabric.world_size
    trust.remember(names.own_names(run.config))
    run.keep_sources(names.source_files(run.config))
    if resumed:
        run.rewind(progress.step, measured=not progress.unmeasured)
    run.begin_session(progress.step, processes=world, device=str(fabric.device))
    shared = f", {world} processes" if world > 1 else ""
    where = f"{settings.model} under {settings.guide}"
    threads = Threads(torch.get_num_threads())
    at = f"step {progress.step} of {settings.steps}{shared}, {threads}"
    print(f"{run.folder}: {where}, {at}", flush=True)
    folder = str(run.folder / "tensorboard")
    writer = SummaryWriter(folder, purge_step=progress.step + 1 if resumed else None)
    if progress.step == 0:
        report.at_start(run, writer, trainee.averaged)
    return writer


def _since_last_fall(run: Run) -> tuple[int, int]:
    """When the bound on validation data last fell, as :func:`recipe.last_fall` says it."""
    bounds = {
        record["step"]: record["terms"]["bits_per_dim"][0]
        for record in run.history()
        if record["part"] == "validation"
    }
    finite = {step: value for step, value in bounds.items() if value is not None}
    return recipe.last_fall(finite) if finite else (0, 0)


def _on_validation(run: Run, done: int) -> str | None:
    """What to say of a run that ended at step ``done`` if it had learned all it would before."""
    step, after = _since_last_fall(run)
    steps = run.config["steps"]
    fell = f"the validation bound last fell by {recipe.FALL} bits/dim at step {step:,}"
    if done < steps:
        return f"stopped at step {done:,} of {steps:,}, as --patience says: {fell}"
    if after < 2 or step > LATE * steps:
        return None
    return f"{fell} of {steps:,}; fewer --steps, or --patience 2, take less time"


def _flush(writer: SummaryWriter) -> None:
    """Also while an error is on its way, which another one must not hide."""
    with suppress(OSError):
        writer.flush()


def _stopped(run: Run, step: int, number: int) -> Stopped:
    if run.is_writable:
        resume = f"python -m inference.train --resume {run.folder}"
        print(f"stopped by a signal at step {step} and saved; go on with {resume}", flush=True)
    return Stopped(number)


@contextmanager
def _explained(step: int, run: Run) -> Iterator[None]:
    """Says at which step training ended, what may be at fault, and what is left."""
    try:
        yield
    except FloatingPointError as error:
        rates = "lower --learning_rate or --diffusion_learning_rate"
        raise FloatingPointError(f"step {step}: {error}. {_advice(step, run, rates)}") from error
    except (SimulationError, UnreachableError, KernelPrecisionError) as error:
        reason = str(error).partition("\nTrace Shapes:")[0]  # of Pyro
        rates = "if the diffusion was trained into this, lower --diffusion_learning_rate"
        raise type(error)(f"step {step}: {reason}. {_advice(step, run, rates)}") from error


def _advice(step: int, run: Run, rates: str) -> str:
    """What to do about training that ended at ``step``: nothing was trained before the first."""
    if step == 0:
        return (
            "Nothing has been trained yet, so that no learning rate is at fault: look at the data, "
            "the guide and the network as they start"
        )
    good = "the last checkpoint is good" if run.has_checkpoint else "no checkpoint was written yet"
    return f"{rates[0].upper()}{rates[1:]}; {good}"


def check_alike(fabric: Fabric, run: Run, mine: Any) -> None:
    """Whether all processes begin at the step and with the data that the first one has."""
    theirs = fabric.broadcast(mine)
    if mine != theirs:
        raise RunError(
            f"process {fabric.global_rank} on {platform.node()} would begin {run.folder} at step "
            f"{mine[0]} with data {mine[1]}, the first process at step {theirs[0]} with data "
            f"{theirs[1]}; all must see the same files"
        )


def _sum(fabric: Fabric, nats: Tensor, signal_number: int) -> tuple[float, int]:
    """The loss of all processes, and the signal that any of them was stopped by, or 0."""
    both = torch.stack([nats.double(), nats.new_tensor(signal_number, dtype=torch.float64)])
    summed: Any = fabric.all_reduce(both, reduce_op="sum")
    total, signals = summed.tolist()
    return total, (signal_number or int(signal.SIGTERM)) if signals else 0


@contextmanager
def _open(fabric: Fabric, make: Callable[[], Run]) -> Iterator[Run]:
    """The run that the first process makes or resumes, on the others to read.

    Raises:
        StorageError: the disk is full.
    """
    run = make() if fabric.is_global_zero else None
    folder = fabric.broadcast(str(run.folder) if run is not None else "")
    run = run if run is not None else Run.open(Path(folder))
    with run, explain_full_disk(run.folder / "tensorboard", 0):
        yield run


def _check(settings: Decided, programs: Programs, processes: int) -> None:
    problem, diffusion = programs.problem, programs.model.diffusion
    positive = "steps batch_size micro_batches learning_rate log_every measure_every clip "
    positive += "checkpoint_every draws num_samples sampler_steps threads patience"
    check_positive(**{name: getattr(settings, name) for name in positive.split()})
    for name in ("warmup", "weight_decay"):
        if not getattr(settings, name) >= 0:
            raise ValueError(f"--{name} is {getattr(settings, name)}, expected 0 or more")
    if not settings.diffusion_learning_rate >= 0:
        raise ValueError(
            f"--diffusion_learning_rate is {settings.diffusion_learning_rate}, expected a "
            "positive number, or 0 for a diffusion that is left as it starts"
        )
    if not 0 <= settings.ema_decay < 1:
        raise ValueError(
            f"--ema_decay is {settings.ema_decay}, expected a number from 0, no averaging, to "
            "1, excluded; 0.995 averages over some 200 steps"
        )
    pieces = processes * settings.micro_batches
    if settings.batch_size % pieces:
        raise ValueError(
            f"--batch_size {settings.batch_size} is shared by {processes} processes with "
            f"{settings.micro_batches} micro-batches each; expected a multiple of {pieces}"
        )
    for name in ("train", "validation", "test"):
        n = len(getattr(problem, name))
        if n < FEWEST and (n or name != "validation"):
            raise ValueError(
                f"{settings.model} has {n} {name} data, expected at least {FEWEST} to measure a "
                "bound on; give more"
            )
    size = settings.test_size
    if size is not None and size < FEWEST:
        raise ValueError(
            f"--test_size is {size}, expected at least {FEWEST} data to measure a bound on; leave "
            "it out for all"
        )
    backend = settings.compile
    if backend is not None and backend not in torch.compiler.list_backends(None):
        usual = ", ".join(torch.compiler.list_backends())
        raise ValueError(f"--compile is {backend!r}, expected one of {usual}")
    if not diffusion.closed_form:
        if not settings.decoder_in_loss:
            raise ValueError(
                f"--decoder_in_loss false needs the law of y_ε given x in closed form, and "
                f"{settings.guide} is simulated; leave it out"
            )
        twice = diffusion.simulation.objective == "ism"
        if backend not in (None, "eager") and twice:
            raise ValueError(
                f"--compile {backend} makes a network that is differentiated once, and --objective "
                "ism does so twice; use --objective local_dsm, or leave out --compile"
            )
    if settings.sampler is not None:
        score = programs.model.score_function
        sample.make_sampler(settings.sampler, settings.sampler_steps, diffusion, score)
    if settings.flip and not isinstance(problem, ImageProblem):
        raise ValueError(f"--flip mirrors images; --model {settings.model} has none")


if __name__ == "__main__":
    command_line(train, groups=GROUPS)
