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
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from torch.utils.tensorboard import SummaryWriter

from inference import evaluate, loading, names, recipe, report, sample
from inference.batches import Batches
from inference.checkpoints import (
    Checkpoint,
    explain_full_disk,
    load_optimizer,
    optimizer_tensors,
)
from inference.cli import check_positive, command_line
from inference.effects import check_effects, start_note
from inference.processes import (
    LossScale,
    Precision,
    Stopped,
    autocast_dtype,
    catch_signals,
    loss_scale,
    start,
)
from inference.runs import Run, RunError, create_default, fingerprint
from models import ImageProblem, Images
from models.base import FileImages
from pyro_mdm import MDM_ELBO, DiffusionGuide, randomness
from pyro_mdm.diffusions.base import UnreachableError
from pyro_mdm.diffusions.kernels import KernelPrecisionError
from pyro_mdm.diffusions.simulation import SimulationError
from pyro_mdm.support.progress import progress_bar

__all__ = ["train"]

GROUPS = {
    "data": "model protocol data image_size logit_margin holdout flip",
    "guide": "guide num_variables rank learn_beta learned_from stationary_variance max_log_snr "
    "min_log_snr",
    "nonlinear guide, in place of what its own Simulation says": "step_size points "
    "solver objective probes probe_law backpropagation",
    "score": "score network likelihood decoder decoder_in_loss times",
    "optimization": "steps batch_size micro_batches learning_rate diffusion_learning_rate "
    "weight_decay warmup decay clip ema_decay seed",
    "evaluation": "log_every measure_every draws test_size num_samples sampler sampler_steps "
    "figures",
    "machine": "accelerator precision compile channels_last",
    "run folder": "run resume overwrite checkpoint_every",
}
"""The options of :func:`train` as --help shows them."""

FEWEST = 8
"""Data of a part, below which its bound has no error bar."""


def train(
    model: str = "digits",
    guide: str = "learned",
    score: str = "default",
    likelihood: str | None = None,
    protocol: Literal["discrete", "dequantized"] | None = None,
    data: Path | None = None,
    image_size: int | None = None,
    network: str | None = None,
    logit_margin: float | None = None,
    decoder: Literal["tweedie", "joint_tweedie"] | None = None,
    decoder_in_loss: bool = True,
    times: Literal["log_volume", "vpsde"] | None = None,
    holdout: bool = True,
    flip: bool = False,
    num_variables: int | None = None,
    rank: int | None = None,
    learn_beta: bool = False,
    learned_from: str | None = None,
    stationary_variance: loading.StationaryVariance | None = None,
    max_log_snr: float | None = None,
    min_log_snr: float | None = None,
    step_size: float | None = None,
    points: int | None = None,
    solver: Literal["euler", "srk"] | None = None,
    objective: Literal["ism", "local_dsm"] | None = None,
    probes: Literal["exact"] | int | None = None,
    probe_law: Literal["rademacher", "gaussian"] | None = None,
    backpropagation: Literal["direct", "adjoint"] | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    micro_batches: int = 1,
    learning_rate: float | None = None,
    diffusion_learning_rate: float = 1e-2,
    weight_decay: float = 0.0,
    warmup: int = 100,
    decay: Literal["cosine", "constant"] = "cosine",
    clip: float = 1.0,
    ema_decay: float = 0.995,
    seed: int = 0,
    log_every: int = 50,
    measure_every: int = 250,
    checkpoint_every: int = 250,
    draws: int = 32,
    test_size: int | None = None,
    num_samples: int = 64,
    sampler: str | None = None,
    sampler_steps: int = 256,
    figures: bool = True,
    accelerator: str = "auto",
    precision: Precision = "32-true",
    compile: str | None = None,
    channels_last: bool = False,
    run: Path | None = None,
    resume: Path | None = None,
    overwrite: bool = False,
) -> evaluate.Bound:
    """Fit a model and its guide, and report the test bound.

    Args:
        model: data set: toy, digits, mnist5k, mnist, fashion_mnist, cifar10, imagenet32_old,
            imagenet32_new, images, module:Name or file.py:Name.
        guide: noising diffusion: vpsde, cld, malda, alda, learned, module:Name or file.py:Name.
        score: parameterization of the score: discrete, denoiser, noise, score, residual,
            module:Name or file.py:Name; "default" for the data set's own, or residual for a guide
            without a closed form.
        likelihood: p(x | y_ε): gaussian, tweedie, joint_tweedie, discretized_gaussian,
            network_posterior, module:Name or file.py:Name; by default the data set's own.
        protocol: images only: a likelihood over the levels, or dequantized as in the paper.
        data: where data sets that are read from files are, "data" by default; for --model images
            your folder of images or .npz file.
        image_size: of --model images: cut to squares and resized to this side.
        network: of images: small, paper, … see the data set's file; by default its first.
        logit_margin: of dequantized images, x = logit(α + (1 - 2α) w): α, 1e-6 by default; the
            paper's is 0.05.
        decoder: of dequantized images: tweedie, of x by the denoised state (by default), or
            joint_tweedie, the paper's, of x and v_0 less the log density of v_0.
        decoder_in_loss: false for the paper's training loss, without the decoder's term: the
            training objective is then no bound on data. Measurements always are.
        times: law of the times of training, of scores of the raw state: uniform in log_volume (by
            default), or vpsde, the importance times of the paper.
        holdout: keep a part of the training data for validation; settings are chosen there.
        flip: mirror training images left to right at random.
        num_variables: K of a learned guide, 2 by default.
        rank: rank of a learned D, K by default.
        learn_beta: learn the clock of a learned guide too.
        learned_from: guide with a closed form, as for --guide, whose Q, D and clock a learned guide
            starts from; by default D = ½ on the last ``rank`` variables of a chain.
        stationary_variance: Σ_∞ of a learned guide, the covariance of the noise it ends in: a
            number, K variances or K rows of a covariance, x first; by default 1 for all.
        max_log_snr: log SNR where the decoder takes over; by default the data set's.
        min_log_snr: log SNR at time T, to which the guide's clock is scaled; by default -10 for a
            learned guide, one of your own too, with a denoiser; else the clock is as it is.
        step_size: of simulated paths, as a part of the way from data to noise. This and the next
            six are for a nonlinear guide and override its own Simulation, which explains them.
        points: how often the bound is estimated along each path.
        solver: of simulated paths: srk, or euler.
        objective: how the divergence of the score is estimated: ism, or local_dsm, which needs no
            derivative of the network.
        probes: of Hutchinson's estimator, a number, or exact.
        probe_law: of the probes.
        backpropagation: through every step of a path, or by its adjoint, to save memory.
        steps: training steps; by default the data set's.
        batch_size: data per step, of all processes together; by default the data set's, or all
            training data if they are fewer.
        micro_batches: pieces that each process computes its part of a batch in, to save memory.
        learning_rate: of the network, at its highest; by default the data set's.
        diffusion_learning_rate: of the diffusion, at its highest; 0 leaves it as it starts, without
            gradients.
        weight_decay: of the network, decoupled. The diffusion has none.
        warmup: steps of linear warm-up, at most a tenth of all.
        decay: after it: a cosine that falls to zero, or a constant rate.
        clip: largest norm of the gradient of the loss in nats per dimension.
        ema_decay: of the averaged weights, which are the ones evaluated and sampled; 0 for no
            averaging.
        seed: of everything random.
        log_every: steps between entries of the training objective.
        measure_every: steps between measurements of the bound (averaged weights).
        checkpoint_every: steps between checkpoints.
        draws: network evaluations per test datum at the end.
        test_size: the most test data at the end, spread evenly over the test part; by default all.
            inference.evaluate and compare take all.
        num_samples: data generated at the end.
        sampler: that generates them: splitting, euler, ancestral, module:Name or file.py:Name; by
            default splitting, or euler for a nonlinear guide.
        sampler_steps: its steps, each one network call.
        figures: draw figures for TensorBoard, some seconds each; without them it has numbers and
            samples.
        accelerator: cpu, cuda, … or auto, as lightning.fabric names them.
        precision: of the network; data, noise and bound stay float32 and kernels float64.
        compile: backend of torch.compile for the network, such as inductor.
        channels_last: lay the network's weights out with channels last; faster on recent GPUs.
        run: run folder; by default a new one, runs/<model>-<guide>-<seed>-<k>.
        resume: continue the run in this folder, with its own settings.
        overwrite: replace a run that is in the way in ``run``. One that ended before its first
            checkpoint is always replaced.
    """
    settings = dict(locals())
    if resume is not None:
        _check_alone(settings)
        config = Run.open(resume).config
        fabric = start(config["accelerator"], config["precision"])
        with _open(fabric, lambda: Run.resume(resume)) as continued:
            programs = loading.build(config, fitted=not continued.has_checkpoint)
            _check(config, programs, fabric.world_size)
            return _fit(fabric, continued, programs, resumed=True)

    if overwrite and run is None:
        raise RunError("--overwrite replaces a run in the folder --run, which is not given")
    for name in ("run", "resume", "overwrite"):
        del settings[name]
    for name in names.NAMED:
        settings[name] = settings[name] and names.absolute_name(settings[name])
    settings["data"] = None if data is None else str(data)
    programs = loading.build(settings)  # mistakes show before a folder is made
    check_effects(settings, programs)
    own_end = loading.give_learned_end(programs.model.diffusion, programs.model.score_function)
    if own_end is not None:
        settings["min_log_snr"] = own_end  # in config.yaml: older runs keep the ends they have
    if stationary_variance is not None:  # also a tensor, which YAML cannot hold
        exact = torch.as_tensor(stationary_variance, dtype=torch.float64)
        settings["stationary_variance"] = exact.tolist()
    if isinstance(programs.problem, FileImages | Images):
        settings["data"] = str(programs.problem.root.resolve())  # found again from any folder
    for name in ("steps", "batch_size", "learning_rate"):
        if settings[name] is None:
            settings[name] = getattr(programs.problem, name)
    number = len(programs.problem.train)
    if batch_size is None:
        settings["batch_size"] = min(settings["batch_size"], number)
    elif batch_size > number:
        raise ValueError(
            f"--batch_size is {batch_size}, expected at most the {number} training data of {model}"
        )
    fabric = start(accelerator, precision)
    _check(settings, programs, fabric.world_size)

    def create() -> Run:
        if run is None:
            return create_default(model, guide, seed, settings)
        return Run.create(run, settings, overwrite=overwrite)

    if fabric.is_global_zero and (note := start_note(settings, programs)):
        print(note)
    with _open(fabric, create) as created:
        return _fit(fabric, created, programs, resumed=False)


def _fit(fabric: Fabric, run: Run, programs: loading.Programs, *, resumed: bool) -> evaluate.Bound:
    settings, lead, world = run.config, fabric.is_global_zero, fabric.world_size
    seed, steps, batch_size = (settings[name] for name in ("seed", "steps", "batch_size"))

    # the programs, the objective, its optimizer, and the averaged weights that are evaluated
    problem, model, guide = programs
    model.to(fabric.device)
    network: Any = model.score_function.network
    if settings["channels_last"]:
        network.to(memory_format=torch.channels_last)
    trainee = Trainee.of(programs, settings, loss_scale(fabric))
    averaged = trainee.averaged
    model.score_function.autocast_dtype = autocast_dtype(settings["precision"])
    if settings["compile"] is not None:
        network.compile(backend=settings["compile"])

    # where to begin: all processes at the same step, with the same data
    first, spent, window = 0, 0.0, [0.0, 0.0, 0.0]  # window: number, sum, sum of squares of bits
    unmeasured = False
    if run.has_checkpoint:
        checkpoint = run.latest()
        trainee.load(checkpoint, run)
        first, spent, window = (checkpoint.state[k] for k in ("step", "seconds", "window"))
        unmeasured = checkpoint.state.get("unmeasured", False)
    parts = {name: getattr(problem, name) for name in ("train", "validation", "test")}
    _check_alike(fabric, run, (first, fingerprint(parts)))
    if lead:
        run.check_data(fingerprint(parts))
        run.keep_sources(names.source_files(settings))
        if resumed:
            run.rewind(first, measured=not unmeasured)
        run.begin_session(first, processes=world, device=str(fabric.device))

    # a batch is in equal pieces, micro-batches of each process; their noise is the batch's
    micro_batches, num_dims = settings["micro_batches"], math.prod(problem.event_shape)
    count = world * micro_batches
    mine = range(fabric.global_rank * micro_batches, (fabric.global_rank + 1) * micro_batches)
    pieces, flip = (mine, count), settings["flip"]
    batches = Batches(problem.train, batch_size, seed, fabric.device, pieces=pieces, flip=flip)
    elbo = MDM_ELBO(decoder=settings["decoder_in_loss"])
    loss_of, stepper = fabric.setup(elbo(model, guide), trainee.optimizer)
    began = time.monotonic() - spent

    writer = None
    if lead:
        shared = f", {world} processes" if world > 1 else ""
        where = f"{settings['model']} under {settings['guide']}, step {first} of {steps}{shared}"
        print(f"{run.folder}: {where}", flush=True)
        folder = str(run.folder / "tensorboard")
        writer = SummaryWriter(folder, purge_step=first + 1 if resumed else None)
        if first == 0:
            report.at_start(run, writer, averaged)
    measure = functools.partial(report.at_step, run, writer, averaged, model, distributed=world > 1)
    if unmeasured:
        measure(first)
    with ExitStack() as stack:
        stack.callback(batches.close)
        if writer is not None:
            stack.callback(_flush, writer)
        caught = stack.enter_context(catch_signals())
        bar = progress_bar(steps, "training", "steps", initial=first, leave=True, shown=lead)
        stack.enter_context(bar)
        for step in range(first, steps):
            # data, noise and learning rates are functions of the seed and the step alone
            for group, rate in zip(trainee.optimizer.param_groups, trainee.rates, strict=True):
                factor = recipe.schedule(step, steps, settings["warmup"], settings["decay"])
                group["lr"] = rate * factor
            noise_seed = loading.seed_from(seed, "noise", step, 0)

            # gradients of the negative bound in nats per dimension
            trainee.optimizer.zero_grad(set_to_none=True)
            nats = torch.zeros((), device=fabric.device)
            for r, part in zip(mine, batches(step), strict=True):
                torch.manual_seed(loading.seed_from(seed, "dropout", step, r))
                last = r == mine[-1]
                with _naming(step, run), fabric.no_backward_sync(loss_of, enabled=not last):
                    with randomness.piece(r, count, noise_seed):
                        x, log_det = problem.transform(part)
                        loss = loss_of(x) / (batch_size * num_dims)
                    fabric.backward(loss * world)  # processes are averaged, and their sum is meant
                nats += loss.detach() - log_det.sum() / (batch_size * num_dims)
            clip = {"max_norm": settings["clip"], "error_if_nonfinite": False}
            norm = float(torch.as_tensor(fabric.clip_gradients(loss_of, stepper, **clip)))
            total, stop = _sum(fabric, nats, caught.number)
            bits = total / math.log(2) + math.log2(problem.dequantized_levels or 1)
            scale = trainee.scale.value
            overflow = not math.isfinite(norm) and trainee.scale.may_fall
            if not (math.isfinite(bits) and (math.isfinite(norm) or overflow)):
                what = f"the loss is {bits} bits/dim and the norm of its gradient {norm}"
                rates = "lower --learning_rate or --diffusion_learning_rate"
                raise FloatingPointError(f"step {step}: {what}. {_advice(step, run, rates)}")
            stepper.step()
            if trainee.scale.value >= scale:  # else it was too large and the step was left out
                trainee.ema.update_parameters(model)

            # what people and later steps need to know
            done = step + 1
            bar.update()
            window = [window[0] + 1, window[1] + bits, window[2] + bits**2]
            if done % settings["log_every"] == 0 or done == steps:
                mean, error = recipe.mean_and_error(*window)
                window = [0.0, 0.0, 0.0]
                bar.set_postfix_str(f"{mean:.3f} ± {error:.3f} bits/dim")
                if writer is not None:
                    row = {"learning_rate": trainee.optimizer.param_groups[0]["lr"]}
                    row |= {"gradient_norm": norm, "seconds": time.monotonic() - began}
                    report.objective(run, writer, mean, error, row, done)
            # saved first, so that a process that ends while it measures has lost nothing
            due = done % settings["measure_every"] == 0 or done == steps
            if done % settings["checkpoint_every"] == 0 or done == steps or stop:
                if done == steps:
                    recipe.close_range(model, averaged.model)
                if lead:
                    state = {"step": done, "seconds": time.monotonic() - began, "window": window}
                    state |= {"unmeasured": due, "config": dict(settings)}
                    run.save(trainee.checkpoint(done, state))
                    run.save_model(averaged.model)
            if stop:
                bar.close()
                _say_stopped(run, done)
                raise Stopped(stop)
            if due:
                measure(done)
        if caught.number:  # in the last measurement; everything is saved
            _say_stopped(run, steps)
            raise Stopped(caught.number)

    def save(bound: evaluate.Bound) -> None:
        spent = {"steps": steps, "seconds": time.monotonic() - began}
        run.write_json("results.json", bound.as_json() | spent)

    bound = report.at_end(run, writer, averaged, save, distributed=world > 1)
    if lead:
        seconds = time.monotonic() - began
        print(f"{seconds:.0f} s; tensorboard --logdir {folder}; {run.folder / 'samples.png'}")
        print(bound)
    return bound


@dataclass
class Trainee:
    """What training changes, which is what a checkpoint holds."""

    programs: loading.Programs
    averaged: loading.Programs
    ema: AveragedModel
    names: list[str]  # of the parameters, in the optimizer's order
    optimizer: torch.optim.Optimizer
    rates: list[float]  # the highest learning rate of each group
    scale: LossScale

    @classmethod
    def of(
        cls, programs: loading.Programs, settings: Mapping[str, Any], scale: LossScale
    ) -> Trainee:
        """The programs with a new optimizer and averages that start where they are."""
        problem, model, _ = programs
        if settings["diffusion_learning_rate"] == 0:
            model.diffusion.requires_grad_(False)
        names, optimizer = recipe.adam(model, settings)
        ema = AveragedModel(model, multi_avg_fn=recipe.averaging(settings["ema_decay"]))
        averaged: Any = ema.module
        rates = [group["lr"] for group in optimizer.param_groups]
        others = loading.Programs(problem, averaged, DiffusionGuide(averaged.diffusion))
        return cls(programs, others, ema, names, optimizer, rates, scale)

    def checkpoint(self, step: int, state: dict[str, Any]) -> Checkpoint:
        """Everything as it is now, and ``state``."""
        named = {
            "model": self.programs.model.state_dict(),
            "ema": self.averaged.model.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer, self.names),
        }
        tensors = {f"{part}/{name}": t for part, ts in named.items() for name, t in ts.items()}
        averages = {"averages": int(self.ema.n_averaged), "loss_scale": self.scale.state}
        return Checkpoint(step, tensors, state | averages)

    def load(self, checkpoint: Checkpoint, run: Run) -> None:
        """Go back to a checkpoint."""
        loading.load_weights(self.programs.model, checkpoint, "model", run)
        loading.load_weights(self.averaged.model, checkpoint, "ema", run)
        load_optimizer(self.optimizer, checkpoint.part("optimizer"), self.names)
        self.ema.n_averaged.fill_(checkpoint.state.get("averages", checkpoint.step))
        self.scale.load(checkpoint.state.get("loss_scale", {}))


def _flush(writer: SummaryWriter) -> None:
    """Also while an error is on its way, which another one must not hide."""
    with suppress(OSError):
        writer.flush()


def _say_stopped(run: Run, step: int) -> None:
    if run.is_writable:
        resume = f"python -m inference.train --resume {run.folder}"
        print(f"stopped by a signal at step {step} and saved; go on with {resume}", flush=True)


@contextmanager
def _naming(step: int, run: Run) -> Iterator[None]:
    """Says at which step a diffusion was trained into what has no bound, and what is left."""
    try:
        yield
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


def _check_alike(fabric: Fabric, run: Run, mine: Any) -> None:
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


def _check_alone(given: Mapping[str, Any]) -> None:
    """``--resume`` has its settings from the run."""
    defaults = inspect.signature(train).parameters
    changed = [k for k, v in given.items() if v != defaults[k].default and k != "resume"]
    if changed:
        raise RunError(
            f"--resume continues {given['resume']} with its own settings; leave out "
            f"{', '.join(f'--{name}' for name in changed)}, or start a new run"
        )


def _check(settings: Mapping[str, Any], programs: loading.Programs, processes: int) -> None:
    problem, diffusion = programs.problem, programs.model.diffusion
    names = "steps batch_size micro_batches learning_rate log_every measure_every checkpoint_every"
    names += " draws num_samples sampler_steps clip"
    check_positive(**{name: settings[name] for name in names.split()})
    for name in ("warmup", "weight_decay"):
        if not settings[name] >= 0:
            raise ValueError(f"--{name} is {settings[name]}, expected 0 or more")
    if not settings["diffusion_learning_rate"] >= 0:
        raise ValueError(
            f"--diffusion_learning_rate is {settings['diffusion_learning_rate']}, expected a "
            "positive number, or 0 for a diffusion that is left as it starts"
        )
    if not 0 <= settings["ema_decay"] < 1:
        raise ValueError(
            f"--ema_decay is {settings['ema_decay']}, expected a number from 0, no averaging, to "
            "1, excluded; 0.995 averages over some 200 steps"
        )
    pieces = processes * settings["micro_batches"]
    if settings["batch_size"] % pieces:
        raise ValueError(
            f"--batch_size {settings['batch_size']} is shared by {processes} processes with "
            f"{settings['micro_batches']} micro-batches each; expected a multiple of {pieces}"
        )
    for name in ("train", "validation", "test"):
        n = len(getattr(problem, name))
        if n < FEWEST and (n or name != "validation"):
            raise ValueError(
                f"{settings['model']} has {n} {name} data, expected at least {FEWEST} to measure a "
                "bound on; give more"
            )
    size = settings["test_size"]
    if size is not None and size < FEWEST:
        raise ValueError(
            f"--test_size is {size}, expected at least {FEWEST} data to measure a bound on; leave "
            "it out for all"
        )
    backend = settings["compile"]
    if backend is not None and backend not in torch.compiler.list_backends(None):
        usual = ", ".join(torch.compiler.list_backends())
        raise ValueError(f"--compile is {backend!r}, expected one of {usual}")
    if not diffusion.closed_form:
        if not settings["decoder_in_loss"]:
            raise ValueError(
                f"--decoder_in_loss false needs the law of y_ε given x in closed form, and "
                f"{settings['guide']} is simulated; leave it out"
            )
        twice = diffusion.simulation.objective == "ism"
        if backend not in (None, "eager") and twice:
            raise ValueError(
                f"--compile {backend} makes a network that is differentiated once, and --objective "
                "ism does so twice; use --objective local_dsm, or leave out --compile"
            )
    sample.make_sampler(settings["sampler"], settings["sampler_steps"], diffusion)
    if settings["flip"] and not isinstance(problem, ImageProblem):
        raise ValueError(f"--flip mirrors images; --model {settings['model']} has none")


if __name__ == "__main__":
    command_line(train, groups=GROUPS)
