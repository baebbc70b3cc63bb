"""The state of training, and a step of it."""

from __future__ import annotations

import copy
import math
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from inference.folders.checkpoints import Checkpoint, load_optimizer, optimizer_tensors
from inference.folders.loading import load_weights
from inference.folders.runs import Run
from inference.machine.processes import DTYPES, LossScale, loss_scale
from inference.settings.options import Decided
from inference.settings.plan import Programs
from inference.training import recipe
from inference.training.batches import Batches
from pyro_mdm import MDM_ELBO, DiffusionGuide, randomness
from pyro_mdm.budgets import ANY_STEPS, Budget
from pyro_mdm.conditioning.completions import Filling
from pyro_mdm.randomness import seed_from
from pyro_mdm.support.saved import digest_of_tensors
from pyro_mdm.training import MovingAverage, Trainer

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class RunProgress(NamedTuple):
    """The progress of a run, as in a checkpoint beside its tensors."""

    step: int = 0
    seconds: float = 0.0
    window: Sequence[float] = ()  # the losses not yet written, as recipe.LossWindow has them
    unmeasured: bool = False  # whether the bound is due at this step


class Step(NamedTuple):
    """The outcome of a training step."""

    bits: float  # the objective, bits/dim
    norm: float  # of its gradient, nats/dim
    rate: float  # learning rate of the network
    stop: int  # the signal that stopped any process, or 0


class Trainee:
    """The state of training, which a checkpoint holds, and its steps.

    Data, noise and learning rates of a step are functions of the seed and the step alone. A batch
    is in equal pieces, the micro-batches of each process, which share the noise of the batch.

    Attributes:
        averaged: the programs with averaged weights, for evaluation.
        best: the averaged weights that had the best bound on validation data; empty until
            :meth:`keep`.
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
        self.names, self.optimizer = recipe.optimizer(
            model, settings, scaled=settings.precision == "16-mixed"
        )
        averaged = copy.deepcopy(model)
        self.averaged = Programs(problem, averaged, DiffusionGuide(averaged.diffusion))
        self.best: dict[str, Tensor] = {}
        self.digest = ""  # of the averaged weights in the last checkpoint
        self.scale: LossScale = loss_scale(fabric)
        model.score_function.autocast_dtype = DTYPES[settings.precision]
        if settings.compile is not None:
            network.compile(backend=settings.compile)
        self.density = model.score_function.time_density
        if self.density is not None:
            self.density.automatic = False  # pieces of a batch are drawn by one density

        number, rank = settings.micro_batches, fabric.global_rank
        self.count = fabric.world_size * number
        self.mine = range(rank * number, (rank + 1) * number)
        self.filling: Filling | None = None
        if settings.gaps == "fill":
            steps = problem.steps if settings.steps == ANY_STEPS else settings.steps
            size, seed = settings.batch_size, settings.seed
            self.filling = Filling(problem, steps=steps, batch_size=size, seed=seed)
        self.batches = self._gathered(problem.train, flip=settings.flip)
        context = problem.part("train").context
        self.contexts = None if context is None else self._gathered(context)
        objective = MDM_ELBO(decoder=settings.decoder_in_loss)
        if settings.compile is not None:
            objective.compile(settings.compile)
        loss = objective(model, guide).to(
            fabric.device
        )  # but for diffusions, which stay on the host
        self.loss_of, self.stepper = fabric.setup(loss, self.optimizer, move_to_device=False)
        self.average = MovingAverage(model, settings.ema_decay, forgetting=10, copy=averaged)
        self.trainer = _FabricTrainer(self)

    def _gathered(self, data: Tensor, *, flip: bool = False) -> Batches:
        size, seed, pieces = self.settings.batch_size, self.settings.seed, (self.mine, self.count)
        order = None if self.filling is None else self.filling.rows
        device = self.fabric.device
        return Batches(data, size, seed, device, pieces=pieces, flip=flip, order=order)

    def step(self, step: int, signal_number: int = 0) -> Step:
        """Take step number ``step``, from 0, in all processes.

        Args:
            signal_number: the signal that stopped this process, or 0.

        Raises:
            FloatingPointError: the loss or its gradient is not finite.
            SimulationError, UnreachableError, KernelPrecisionError: the diffusion has no bound any
                more.
        """
        scale = self.scale.value
        self.trainer.step_number = step
        self.trainer.begin()
        if self.filling is not None:
            self._fill(self.filling, step)
        nats = self._gradients(step)
        if self.density is not None:
            # processes and float16 scale the loss, and a resumed run may have others
            self.density.update(self._sum_of_processes, self.fabric.world_size * scale)
        norm = float(self.trainer.clip_gradients())
        total, stop = _sum(self.fabric, nats, signal_number)
        levels = self.programs.problem.dequantized_levels
        bits = total / math.log(2) + math.log2(levels or 1)
        overflow = not math.isfinite(norm) and self.scale.may_fall
        if not (math.isfinite(bits) and (math.isfinite(norm) or overflow)):
            raise FloatingPointError(
                f"the loss is {bits} bits/dim and the norm of its gradient {norm}"
            )
        self.trainer.advance()
        return Step(bits, norm, self.optimizer.param_groups[0]["lr"], stop)

    def _gradients(self, step: int) -> Tensor:
        """Gradients of the negative bound in nats/dim, and this process's part of it."""
        seed, problem = self.settings.seed, self.programs.problem
        numbers = self.settings.batch_size * self.programs.model.num_dims
        noise_seed = seed_from(seed, "noise", step, 0)
        nats = torch.zeros((), device=self.fabric.device)
        given = [None] * len(self.mine) if self.contexts is None else self.contexts(step)
        for r, data, context in zip(self.mine, self.batches(step), given, strict=True):
            torch.manual_seed(seed_from(seed, "dropout", step, r))
            waiting = r != self.mine[-1]
            with self.fabric.no_backward_sync(self.loss_of, enabled=waiting):
                with randomness.piece(r, self.count, noise_seed):
                    x, log_det = problem.transform(data)
                    if self.filling is not None:
                        x = self.filling.fill(x, step, slice(r, None, self.count))
                    loss = self.loss_of(x, *([] if context is None else [context])) / numbers
                # gradients are averaged over processes, and their sum is needed
                self.fabric.backward(loss * self.fabric.world_size)
            nats += loss.detach() - log_det.sum() / numbers
        return nats

    def _fill(self, filling: Filling, step: int) -> None:
        """Complete training data that are incomplete, in the first process for all."""
        if self.fabric.is_global_zero:
            filling.begin(step, self.averaged.model if step else self.programs.model)
        if self.fabric.world_size > 1:
            values = cast(Tensor, self.fabric.broadcast(filling.values))
            filling.values = values.to(self.fabric.device)

    def _sum_of_processes(self, values: Tensor) -> Tensor:
        return cast(Tensor, self.fabric.all_reduce(values, reduce_op="sum"))

    def keep(self) -> None:
        """Keep the averaged weights as the best so far."""
        self.best = {name: t.clone() for name, t in self.averaged.model.state_dict().items()}

    def use_best(self) -> None:
        """Put the best weights in place of the averaged ones, if any were kept."""
        if self.best:
            self.averaged.model.load_state_dict(self.best)

    def save(self, run: Run, progress: RunProgress) -> None:
        """Write a checkpoint, and the averaged model."""
        named = {
            "best": self.best,
            "model": self.programs.model.state_dict(),
            "ema": self.averaged.model.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer, self.names),
        }
        if self.filling is not None and self.filling.values is not None:
            named["filled"] = {"x": self.filling.values}
        tensors = {f"{group}/{name}": t for group, ts in named.items() for name, t in ts.items()}
        averages = {"averages": self.average.number, "loss_scale": self.scale.state}
        self.digest = digest_of_tensors(named["ema"])
        averages |= {"weights": self.digest}
        state = progress._asdict() | run.described() | {"record": run.metrics.written()}
        run.save(Checkpoint(progress.step, tensors, state | averages))
        run.save_model(self.averaged.model, progress.step, self.digest)

    def load(self, run: Run, checkpoint: Checkpoint) -> RunProgress:
        """Restore a checkpoint of the run."""
        load_weights(self.programs.model, checkpoint, "model", run)
        load_weights(self.averaged.model, checkpoint, "ema", run)
        self.best = checkpoint.part("best")
        if self.filling is not None:
            self.filling.values = checkpoint.part("filled")["x"].to(self.fabric.device)
        load_optimizer(self.optimizer, checkpoint.part("optimizer"), self.names)
        self.average.number = checkpoint.state["averages"]
        self.scale.load(checkpoint.state["loss_scale"])
        self.digest = str(checkpoint.state["weights"])
        progress = RunProgress(**{name: checkpoint.state[name] for name in RunProgress._fields})
        self.trainer.step_number = progress.step
        self.trainer.budget = Budget(self.settings.seconds, spent=progress.seconds)
        return progress


class _FabricTrainer(Trainer):
    """The steps of a trainee, in all processes and with its scale of the loss."""

    def __init__(self, trainee: Trainee) -> None:
        settings = trainee.settings
        super().__init__(
            trainee.programs.model.parameters(),
            steps=settings.steps,
            optimizer=trainee.optimizer,
            warmup=min(settings.warmup, settings.steps // 10),
            decay=settings.decay,
            clip=settings.clip,
            average=trainee.average,
            seconds=settings.seconds,
        )
        self._fabric, self._loss, self._scale = trainee.fabric, trainee.loss_of, trainee.scale
        self._stepper = trainee.stepper

    @property
    def share_of_time(self) -> float:
        """The share by the clock of the first process, since rates must be the same in all."""
        return float(self._fabric.broadcast(super().share_of_time))

    def clip_gradients(self) -> Tensor:
        clipped = self._fabric.clip_gradients(
            self._loss, self._stepper, max_norm=self.clip, error_if_nonfinite=False
        )
        return torch.as_tensor(clipped)

    def advance(self) -> None:
        before = self._scale.value
        self._stepper.step()
        self.step_number += 1
        if self.average is not None and self._scale.value >= before:
            self.average.update()  # else gradients overflowed, and the step was left out


def _sum(fabric: Fabric, nats: Tensor, signal_number: int) -> tuple[float, int]:
    """The loss over all processes, and the signal that stopped any of them, or 0."""
    # both in one reduction, as each waits for all processes
    both = torch.stack([nats.double(), nats.new_tensor(signal_number, dtype=torch.float64)])
    total, signals = cast(Tensor, fabric.all_reduce(both, reduce_op="sum")).tolist()
    return total, (signal_number or int(signal.SIGTERM)) if signals else 0
