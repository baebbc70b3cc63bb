"""Simulations for training, and training that keeps the weights with the lowest validation loss."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_mdm.budgets import Budget, Outcome, steps_within
from pyro_mdm.posteriors.reading import Draws, Program
from pyro_mdm.posteriors.simulation import (
    shuffled,
    simulate,
    warn_of_failures,
    without_gaps,
)
from pyro_mdm.posteriors.stored import read_draws
from pyro_mdm.support.checks import check_count
from pyro_mdm.training import Trainer

__all__ = ["VALIDATED", "TrainingOptions", "to_learn_from", "train", "usual_steps"]

WARM_UP = 100
"""The number of steps in which the learning rate rises."""
VALIDATED = 1000
"""The most simulations of the validation data, which are a tenth of all or fewer."""
PATIENCE, COOL_DOWN = 10, 0.2
"""Of patient options: the looks without a gain after which rates fall, a quarter of all, and the
part of the steps so far in which they do."""


def usual_steps(steps: int, n: int) -> int:
    """The usual number of training steps for n simulations, by that for 10,000.

    Above 10,000 simulations it is proportional to n, so that each is seen as often; below to √n.

    Example:
        >>> [usual_steps(8_000, n) for n in (1_000, 10_000, 100_000)]
        [2530, 8000, 80000]
    """
    ratio = n / 10_000
    return max(1, round(steps * max(ratio, math.sqrt(ratio))))


class TrainingOptions(NamedTuple):
    """The options of training."""

    steps: int  # the most steps; with ``by_size`` those for 10,000 simulations
    batch_size: int  # the number of simulations of a step
    learning_rate: float  # the highest learning rate of Adam
    progress: bool = False  # whether to show a progress bar
    budget: Budget | None = None  # the time of all trainings; None: no limit
    by_size: bool = False  # whether steps grow with the number of simulations
    patient: bool = False  # whether training ends when nothing is gained any more
    form: str | None = None  # of distributions of real numbers; None: that of the lowest loss

    @classmethod
    def within(
        cls,
        steps: int | None,
        usual: int,
        batch_size: int,
        learning_rate: float,
        progress: bool,
        seconds: float | None,
    ) -> TrainingOptions:
        """Options with the given number of steps, or as many as fit into the seconds, or else the
        usual number, which :meth:`for_simulations` makes that for their number.

        Raises:
            TypeError, ValueError: numbers of steps or seconds out of range.
        """
        by_size = steps is None and seconds is None
        steps, budget = steps_within(steps, seconds, usual), Budget(seconds)
        patient = seconds is not None
        return cls(steps, batch_size, learning_rate, progress, budget, by_size, patient)

    def for_simulations(self, n: int) -> TrainingOptions:
        """The options with the usual number of steps for n simulations, if that is asked for."""
        return self._replace(steps=usual_steps(self.steps, n)) if self.by_size else self


@contextmanager
def to_learn_from(
    program: Program,
    draws: Draws | str | os.PathLike[str] | None,
    simulations: int,
    options: TrainingOptions,
    *,
    names: Sequence[str],
    seed: int,
    leave_out: bool = False,
    **how: Any,
) -> Iterator[Draws]:
    """A context with simulations in random order, and its own random state for training.

    Arguments and errors are those of :meth:`AmortizedPosterior.fit`; ``names`` are those of the
    sites of parameters and data, and ``how`` has further options of :func:`simulate`.
    """
    check_count("simulations", simulations, "the number of draws that are learned from", 2)
    check_count("batch_size", options.batch_size, "the number of simulations of a step")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if draws is None:
            how["progress"] = options.progress
            draws = simulate(program, simulations, leave_out=leave_out, **how)
        elif not isinstance(draws, Mapping):
            draws = read_draws(draws, names)
        if absent := [name for name in names if name not in draws]:
            raise ValueError(
                f"there are no draws of {absent}, expected some of each of {list(draws)}"
            )
        if leave_out:
            draws, reasons = without_gaps(draws, names)
            warn_of_failures(reasons, len(reasons) + max(map(len, draws.values())))
        yield shuffled(draws)


def train(
    module: nn.Module,
    loss: Callable[[Tensor], Tensor],
    n: int,
    options: TrainingOptions,
    *,
    largest_gradient: float,
) -> Outcome:
    """Train a module, and keep the weights with the lowest loss on validation data.

    The validation data are the last tenth of the simulations, at most 1,000. Weights are moving
    averages (:class:`~pyro_mdm.training.Trainer`). The initial weights are compared too, so that
    nothing is learned from too few simulations that does not hold for others. With patient options,
    training ends when nothing is gained any more: in ten looks at the validation data, or in the
    mean losses between them where there are none.

    The loss takes the indices of some of n simulations, (b,) int64, and returns their mean loss,
    nats. Gradients are clipped at the largest norm. The module is in evaluation mode afterwards.

    Raises:
        FloatingPointError: a loss that is not finite.
    """
    held_out = min(VALIDATED, n // 10)
    rows = torch.arange(n - held_out, n)

    def of_batch() -> Tensor:
        return loss(torch.randint(n - held_out, (options.batch_size,)))

    def of_validation() -> Tensor:
        torch.manual_seed(0)  # weights are compared by the same noise
        return torch.stack([loss(rows) for _ in range(4)]).mean()

    budget = options.budget or Budget()
    seconds = budget.next()
    trainer = Trainer(
        module,
        steps=options.steps,
        learning_rate=options.learning_rate,
        warmup=WARM_UP,
        clip=largest_gradient,
        patience=PATIENCE if options.patient else None,
        cool_down=COOL_DOWN,
        seconds=seconds,
        progress=budget.turn if options.progress else False,
    )
    trainer.fit(of_batch, of_validation if held_out else None)
    return trainer.outcome
