"""The trainer: steps, validation in between, and checkpoints."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyro_mdm.budgets import ANY_STEPS, Budget, Outcome, Pace, Reason, steps_within
from pyro_mdm.elbo import MDM_ELBO
from pyro_mdm.scores.base import Score
from pyro_mdm.support.checks import (
    Count,
    check_count,
    check_instance,
    check_number,
    check_real,
    checked_arguments,
    describe,
    settle,
)
from pyro_mdm.support.files import check_place
from pyro_mdm.support.modules import evaluating
from pyro_mdm.support.progress import Progress, progress_bar, say, show_estimate
from pyro_mdm.support.saved import read_saved, write_saved
from pyro_mdm.training.averages import MovingAverage, assign
from pyro_mdm.training.schedules import WARMUP, Decay, Patience, schedule

__all__ = ["Trainer"]

Precision = Literal["32-true", "bf16-mixed"]
KIND = "the state of a training"  # of a checkpoint's file, in words
NUMBERS = ("step_number", "skipped", "best", "best_step")  # of a checkpoint, by attributes
LOOKS = 40  # the default number of looks at validation data
EVERY = 200  # the number of steps between looks where only seconds limit the steps


class Trainer:
    r"""The training of a module: an optimizer with its schedule, averages and checkpoints.

    Iterate over a trainer for the indices of its steps: it counts them, stops when its time is
    over, and leaves the module in evaluation mode with its averaged weights, or with the best of
    them, where some were validated (:meth:`look`). After a ``break`` call :meth:`end`. :meth:`fit`
    is that loop. No step waits for the device. :class:`pyro.infer.SVI` is the other way to train.

    Args:
        module: the module that is trained, such as ``MDM_ELBO()(model, guide)``, or its weights.
        steps: number of steps; None: as many as fit into ``seconds``.
        learning_rate: highest learning rate of Adam.
        optimizer: another optimizer of torch, whose groups have highest rates of their own. Weights
            that it does not have are not trained.
        warmup: number of steps in which rates rise; None: 100, a tenth of all steps at most.
        decay: name of the decay of rates, "cosine" or "constant", see :func:`schedule`.
        clip: largest norm of a gradient, to which larger ones are clipped; None: no clipping.
        average: decay of the :class:`MovingAverage`, or the average itself; None: no average.
        skip: whether a step whose gradient is not finite is left out; this waits for the device.
        patience: number of validations in turn without a better value, after which training stops;
            None: no such stop.
        least_gain: least fall of the value that counts for patience.
        window: number of steps whose mean loss is a value for patience, in place of a validation;
            it is better if it is lower by its standard error too. None: only validations count.
        cool_down: part of the steps taken when patience has run out that follow before training
            stops, in which rates fall to 0; 0: it stops at once.
        seconds: time after which training stops, at the end of a step, in seconds, with that
            before a checkpoint; None: no limit. Rates fall with the larger share of steps or
            seconds.
        precision: precision of the networks of scores in training, "32-true" or "bf16-mixed";
            None: as they are.
        compile: name of a backend of ``torch.compile``, for the whole loss where
            :meth:`MDM_ELBO.compile` allows that, and for the networks of scores; None: none.
        checkpoint: path of a file that is written at each :meth:`look` and at the end. Where it
            exists, training goes on from it, with its random numbers. None: no file.
        progress: whether progress is shown, with the outcome at the end, or the name of the work
            beside the bar.

    Attributes:
        step_number: number of steps taken.
        skipped: number of steps that were left out.
        last_loss: loss of the last step, ().
        best: least value of a validation; infinite before the first.
        best_step: number of steps before that validation; None before the first.
        unit: unit of the values of validations, in words.
        quiet: seconds before progress is shown.
        budget: the :class:`~pyro_mdm.budgets.Budget` of seconds.

    Raises:
        ValueError: numbers out of range; an unknown decay or precision; a module without weights to
            train; a checkpoint that is damaged, or of another module.

    Example:
        >>> from pyro_mdm import CLD, MDM_ELBO, Denoiser, DiffusionGuide, DiffusionModel
        >>> from pyro_mdm.networks import MLP
        >>> x = torch.randn(200, 2)
        >>> model = DiffusionModel(CLD(), Denoiser(MLP(2)), event_shape=(2,))
        >>> loss = MDM_ELBO()(model, DiffusionGuide(model.diffusion))
        >>> trainer = Trainer(loss, steps=5)
        >>> for step in trainer:
        ...     norm = trainer.step(loss(x[torch.randint(len(x), (32,))]) / 32)
        >>> trainer.step_number
        5
        >>> _ = Trainer(loss, steps=5).fit(lambda: loss(x) / 200)
    """

    @checked_arguments
    def __init__(
        self,
        module: nn.Module | Iterable[Tensor],
        *,
        steps: int | None,
        learning_rate: float = 1e-3,
        optimizer: torch.optim.Optimizer | None = None,
        warmup: int | None = None,
        decay: Decay = "cosine",
        clip: float | None = None,
        average: float | MovingAverage | None = 0.999,
        skip: bool = False,
        patience: int | None = None,
        least_gain: float = 0.0,
        window: int | None = None,
        cool_down: float = 0.0,
        seconds: float | None = None,
        precision: Precision | None = None,
        compile: str | None = None,
        checkpoint: Path | str | None = None,
        progress: bool | str = False,
    ) -> None:
        self.budget = Budget(seconds)
        if steps is None and seconds is None:
            raise ValueError("steps is None, expected the number of training steps, or seconds")
        steps = steps_within(steps, seconds, ANY_STEPS, least=0)
        warmup = min(WARMUP, steps // 10) if warmup is None else warmup
        check_count("warmup", warmup, "the number of steps in which rates rise", least=0)
        check_number("learning_rate", learning_rate, "a positive rate of Adam", positive=True)
        if clip is not None:
            check_number("clip", clip, "a positive number, or None", positive=True)
        self._patience = Patience(patience, least_gain, window, cool_down)
        self.weights = _trained(module, optimizer)
        self.steps, self.warmup, self.decay, self.clip, self.skip = steps, warmup, decay, clip, skip
        self.optimizer = optimizer or torch.optim.Adam(self.weights, lr=learning_rate)
        groups = self.optimizer.param_groups
        self.rates = [group.setdefault("initial_lr", group["lr"]) for group in groups]
        if average is not None and not isinstance(average, MovingAverage):
            average = MovingAverage(self.weights, average)
        self.average = average
        # what is validated and kept: the weights, or averages that stand in for them
        self._kept = self.weights if self.average is None else self.average.weights
        self._averages = self.weights if self.average is None else self.average.averages
        self.step_number, self.skipped, self.best = 0, 0, math.inf
        self.best_step: int | None = None
        self.unit, self.quiet, self.last_loss = "nats", 0.0, torch.tensor(math.nan)
        self.progress = progress
        self._work = progress if isinstance(progress, str) else "training"
        self._best: list[Tensor] = []  # averaged weights and buffers
        self._late = (-1, False)  # a step, and whether time was over after it
        self._looked = 0.0  # the share of time at the last look
        self._reason: Reason | None = None
        self._ended = False
        self._bar: Progress | None = None
        self._random: list[Tensor] = []  # states that the next loop begins with
        self._module = module if isinstance(module, nn.Module) else None
        self._dtypes = self._set_up(precision, compile)  # of scores, before this training
        self._file = None if checkpoint is None else Path(checkpoint)
        if self._file is not None:
            check_place(self._file)
            if self._file.exists():
                state = read_saved(self._file, KIND).tensors["state"]
                content = io.BytesIO(state.numpy().tobytes())
                self.load_state_dict(torch.load(content, "cpu", weights_only=True))

    def _set_up(
        self, precision: Precision | None, compile: str | None
    ) -> list[tuple[Score, torch.dtype | None]]:
        """Set the precision of scores and compile; returns the dtypes that scores had."""
        if self._module is None and (precision is not None or compile is not None):
            raise ValueError(
                "precision and compile are of the networks of a module, and weights alone are "
                "given; give the module, such as MDM_ELBO()(model, guide)"
            )
        modules = [] if self._module is None else self._module.modules()
        scores = [module for module in modules if isinstance(module, Score)]
        dtypes = [] if precision is None else [(score, score.autocast_dtype) for score in scores]
        for score, _ in dtypes:
            score.autocast_dtype = torch.bfloat16 if precision == "bf16-mixed" else None
        if compile is not None:
            for score in scores:
                score.network.compile(backend=compile)
            if isinstance(objective := getattr(self._module, "elbo", None), MDM_ELBO):
                objective.compile(compile)
        return dtypes

    # -- steps -------------------------------------------------------------------------------------

    @checked_arguments
    def step(self, loss: Tensor | Iterable[Tensor]) -> Tensor:
        """Take a step on a loss, (); returns the norm of its gradient before clipping, ().

        Args:
            loss: the loss, or an iterator of the terms of its sum, for a batch whose graph is
                larger than the memory.
        """
        self.begin()
        terms = []
        for term in [loss] if isinstance(loss, Tensor) else loss:
            is_number = isinstance(term, Tensor) and not term.dim() and term.is_floating_point()
            if not (is_number and term.requires_grad):
                raise ValueError(
                    f"loss is {describe(term)}, expected one number, (), that depends on the "
                    "weights; take its mean, and compute it where gradients are kept"
                )
            term.backward(inputs=self.weights)
            terms.append(term.detach())
        self.last_loss = torch.stack(terms).sum() if len(terms) > 1 else terms[0]
        self._patience.add(self.last_loss)
        norm = self.clip_gradients()
        if self.skip and not bool(norm.isfinite()):
            self.skipped += 1
            self.optimizer.zero_grad(set_to_none=True)
        self.advance()
        return norm

    def begin(self) -> None:
        """Set learning rates and clear gradients, as :meth:`step` does before its loss."""
        factor = schedule(self.step_number, self.steps, self.warmup, self.decay, self.share_of_time)
        if self._patience.cooling is not None:
            first, number = self._patience.cooling
            factor *= schedule(self.step_number - first, number)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.zero_grad(set_to_none=True)

    def clip_gradients(self) -> Tensor:
        """Clip the gradients; returns their norm before, ()."""
        if self.clip is not None:
            return nn.utils.clip_grad_norm_(self.weights, self.clip)
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        norms = [gradient.norm().to(gradients[0].device) for gradient in gradients]
        return torch.stack(norms).norm() if norms else torch.zeros(())

    def advance(self) -> None:
        """Update weights by the gradients as they are, and the average."""
        self.optimizer.step()
        self.step_number += 1
        if self.average is not None:
            self.average.update()

    # -- the loop ----------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[int]:
        if self._ended and self.step_number < self.steps:
            raise RuntimeError(
                f"the training ended after {self.step_number} of {self.steps} steps; another "
                "trainer with the checkpoint of this one goes on"
            )
        if self._random:
            torch.set_rng_state(self._random[0])
        # a machine of other devices goes on with other numbers
        for device, state in zip(self._devices, self._random[1:], strict=False):
            torch.cuda.set_rng_state(state, device)
        self._random = []
        self.budget.start()
        if self._module is not None:
            self._module.train()
        total = None if self.steps == ANY_STEPS else self.steps
        done, shown = self.step_number, bool(self.progress)
        pace = Pace(self.budget, done, self.steps)
        bar = progress_bar(total, self._work, "steps", initial=done, delay=self.quiet, shown=shown)
        with bar as self._bar:
            while not self.is_over:
                before = self.step_number
                yield before
                if self.step_number == before:
                    raise RuntimeError(
                        f"step {before} of the loop took no step, expected one; call "
                        "trainer.step(loss) in it"
                    )
                self._bar.update(self.step_number - before)
                if shown and (whole := pace.whole(self.step_number)) is not None:
                    show_estimate(self._bar, whole)
        self.end()

    @property
    def share_of_time(self) -> float:
        """The share of the seconds that has passed, in [0, 1]; 0 without a limit."""
        return self.budget.share

    @property
    def is_out_of_time(self) -> bool:
        """Whether the seconds were over after the last step; the clock is read once a step."""
        if self.budget.seconds is None or self.step_number == 0:
            return False
        if self._late[0] != self.step_number:
            self._late = self.step_number, self.share_of_time >= 1
        return self._late[1]

    @property
    def is_over(self) -> bool:
        """Whether no step is left to take."""
        if self._reason is None:
            if self.step_number >= self.steps:
                self._reason = "all steps"
            elif self.is_out_of_time:
                self._reason = "budget"
            elif self._patience.is_over(self.step_number):
                self._reason = "no gain"
        return self._reason is not None

    @checked_arguments
    def is_due(self, every: Count, looks: int = LOOKS) -> bool:
        """Whether a look at validation data is due after a step, and at the end.

        Args:
            every: number of steps between looks.
            looks: number of parts of the seconds, after which one is due too.
        """
        share = self.share_of_time
        due = self.step_number % every == 0 or share - self._looked >= 1 / looks or self.is_over
        if due:
            self._looked = share
        return due

    @checked_arguments
    def fit(
        self,
        loss: Callable[[], Tensor],
        validate: Callable[[], Tensor | float] | None = None,
        *,
        looks: Count = LOOKS,
        unit: str = "nats",
    ) -> float:
        """Take all steps, with validation in between.

        Args:
            loss: function that returns the loss of a new batch, ().
            validate: function that returns a loss of validation data, (). It is called with
                averaged weights in evaluation mode, without gradients, and its draws change no
                random number of the training. None: patience counts mean losses between looks.
            looks: number of validations, and of parts of the seconds after which there is one too.
                Where only seconds limit the steps, there is one every 200 steps.
            unit: unit of the loss, in words.

        Returns:
            The least loss of validation data, which the weights have in the end. Without validation
            data the loss of the last step, NaN if no step was left to take.

        Raises:
            FloatingPointError: the loss is no number, or that of validation data never was one.
        """
        self.unit = unit
        every = EVERY if self.steps == ANY_STEPS else max(1, self.steps // looks)
        last = math.nan
        if validate is None:
            self._patience.watch_losses(max(2, every))
        elif self.step_number == 0:
            self._validate(validate)
        for step in self:
            self.step(loss())
            if not self.is_due(every, looks):
                continue
            last = float(self.last_loss)
            settle()
            if not math.isfinite(last):
                raise FloatingPointError(
                    f"the loss is {last} after {step + 1} steps, expected a number; lower "
                    "learning_rate"
                )
            if validate is None:
                self._save()
            else:
                self._validate(validate)
            if self._bar is not None:
                self._bar.set_postfix_str(f"{last if validate is None else self.best:.2f} {unit}")
        if validate is not None and not self._best:
            raise FloatingPointError(
                f"the loss of validation data was never a number in {self.step_number} steps; "
                "lower learning_rate, or look at what validate returns"
            )
        return last if validate is None else self.best

    def _validate(self, validate: Callable[[], Tensor | float]) -> None:
        with self.averaged(), evaluating(self._module), torch.random.fork_rng(self._devices):
            value = float(validate())
        self.look(value)

    @property
    def _devices(self) -> list[torch.device]:
        """Devices whose random numbers a loss may draw, beside the CPU."""
        return sorted({w.device for w in self.weights if w.device.type == "cuda"}, key=str)

    def averaged(self) -> AbstractContextManager[None]:
        """A context with averaged weights."""
        return nullcontext() if self.average is None else self.average.applied()

    def look(self, value: Tensor | float) -> bool:
        """Keep the current averaged weights if their value is the least so far.

        Args:
            value: value of the averaged weights, (); the lower the better.

        Returns:
            Whether it is the least.
        """
        check_real("value", value)
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"value is {describe(value)}, expected one number; take the mean")
        value = float(value)
        better = value < self.best
        self._patience.look(value, self.step_number)
        if better:
            self.best, self.best_step = value, self.step_number
            self._best = [t.detach().clone() for t in (*self._averages, *self._buffers)]
        self._save()
        self._looked = self.share_of_time
        return better

    @property
    def _buffers(self) -> list[Tensor]:
        return [] if self._module is None else [*self._module.buffers()]

    def end(self) -> None:
        """Leave the module with its best weights, or the averaged ones, in evaluation mode."""
        if self._ended:
            return
        self._save()
        self.budget.stop()
        self._ended = True
        if self.progress and self.budget.spent >= self.quiet:
            say(f"{self._work}: {self.outcome}")
        buffers = self._buffers
        assign([*self._kept, *buffers], self._best or [*self._averages, *buffers])
        for score, dtype in self._dtypes:
            score.autocast_dtype = dtype
        if self._module is not None:
            self._module.eval()

    @property
    def outcome(self) -> Outcome:
        """Why training ended, and what it kept."""
        best = None if self.best_step is None else self.best
        reason = self._reason or "stopped"
        return Outcome(self.step_number, self.budget.spent, reason, self.best_step, best, self.unit)

    # -- checkpoints -------------------------------------------------------------------------------

    def _save(self) -> None:
        if self._file is not None and self.step_number:
            torch.save(self.state_dict(), content := io.BytesIO())
            state = torch.frombuffer(content.getbuffer(), dtype=torch.uint8)
            write_saved(self._file, KIND, {}, {"state": state})

    def state_dict(self) -> dict[str, object]:
        """A copy of the state of training: weights, averages, optimizer and random numbers."""
        average, patience = self.average, self._patience
        return {
            **{name: getattr(self, name) for name in NUMBERS},
            **{name: getattr(patience, name) for name in patience.NUMBERS},
            "losses": [t.clone() for t in patience.losses],
            "tensors": [t.detach().clone() for t in (*self.weights, *self._buffers)],
            "averages": [] if average is None else [t.clone() for t in average.averages],
            "averaged": 0 if average is None else average.number,
            "best_tensors": [t.clone() for t in self._best],
            "seconds": self.budget.spent,
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "kind": type(self.optimizer).__name__,
            "random": [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self._devices)],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of training.

        Args:
            state: result of :meth:`state_dict`.

        Raises:
            ValueError: a state of another module, optimizer or average.
        """
        if "step_number" not in state:
            there = ", ".join(map(str, state)) or "nothing"
            expected = "expected the state of a trainer; name another file"
            raise ValueError(f"the checkpoint has {there}, {expected}")
        average, patience = self.average, self._patience
        tensors, averages = [*self.weights, *self._buffers], average.averages if average else []
        saved_shapes, shapes = ([tuple(t.shape) for t in ts] for ts in (state["tensors"], tensors))
        for what, saved, wanted in (
            ("tensors of shapes", str(saved_shapes), str(shapes)),
            ("an optimizer of", state["kind"], type(self.optimizer).__name__),
            ("a number of averages of", str(len(state["averages"])), str(len(averages))),
        ):
            if saved != wanted:
                raise ValueError(
                    f"the checkpoint is of {what} {saved}, expected {wanted}; build module and "
                    "trainer as they were, name another checkpoint, or delete it"
                )
        assign([*tensors, *averages], [*state["tensors"], *state["averages"]])
        for owner, names in ((self, NUMBERS), (patience, patience.NUMBERS)):
            for name in names:
                setattr(owner, name, state[name])
        if average is not None:
            average.number = state["averaged"]
        patience.losses = [loss.to(self.weights[0].device) for loss in state["losses"]]
        self._best, self._random = state["best_tensors"], state["random"]
        self.budget = Budget(self.budget.seconds, spent=state["seconds"])
        self._looked = self.budget.share
        self.optimizer.load_state_dict(state["optimizer"])


def _trained(
    module: nn.Module | Iterable[Tensor], optimizer: torch.optim.Optimizer | None
) -> list[Tensor]:
    """The weights that an optimizer, or Adam, trains."""
    check_instance("module", module, (nn.Module, Iterable), "nn.Linear(2, 2), or weights")
    parameters = [*(module.parameters() if isinstance(module, nn.Module) else module)]
    if optimizer is not None:
        parameters = [weight for group in optimizer.param_groups for weight in group["params"]]
    for weight in parameters:
        check_instance("a weight", weight, Tensor, "model.parameters()")
    if weights := [weight for weight in parameters if weight.requires_grad]:
        return weights
    raise ValueError(
        "the module has no weights that require a gradient, expected one at least; "
        "requires_grad_(True) sets them free"
    )
