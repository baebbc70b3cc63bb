"""Simulations for training, and training that keeps the weights with the lowest validation loss."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import TypedDict

from pyro_mdm.budgets import Budget, Outcome, steps_within
from pyro_mdm.posteriors.dependence import seeded
from pyro_mdm.posteriors.reading import Draws, Program
from pyro_mdm.posteriors.simulation import shuffled, simulate, warn_of_failures, without_gaps
from pyro_mdm.posteriors.stored import read_draws
from pyro_mdm.support.checks import check_count
from pyro_mdm.training import Trainer

__all__ = [
    "VALIDATED",
    "LearningOptions",
    "TrainingOptions",
    "to_learn_from",
    "train",
    "usual_steps",
]

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

    steps: int  # the most steps
    batch_size: int  # the number of simulations of a step
    learning_rate: float  # the highest learning rate of Adam
    progress: bool = False  # whether to show a progress bar
    budget: Budget | None = None  # the time of all trainings; None: no limit
    patient: bool = False  # whether training ends when nothing is gained any more
    form: str | None = None  # of distributions of real numbers; None: that of the lowest loss


class LearningOptions(TypedDict, total=False):
    """Options of what is learned from simulations, by nine tenths of them.

    The last tenth, at most 1,000, is validation data: of the moving averages of the weights, those
    with the lowest loss on it are kept.

    - ``draws``: simulations, (n, *shape) by site, or the path of a folder that :func:`simulate`
      wrote; None: new simulations.
    - ``simulations``: the number of new simulations, 10,000 by default.
    - ``steps``: the most steps of Adam; None: as many as fit into ``seconds``, or else the usual
      number for 10,000 simulations, in proportion to their number above, and to its square root
      below.
    - ``batch_size``: the number of simulations of a step.
    - ``learning_rate``: the highest learning rate of Adam, with a cosine schedule that ends at 0.
    - ``seconds``: the most seconds of training, without those of simulations. Training then ends
      earlier if nothing is gained any more. None: no limit.
    - ``vectorized``, ``workers``, ``folder``, ``leave_out``: as for :func:`simulate`.
    - ``seed``: the seed of simulations, weights and noise, 0 by default.
    - ``progress``: whether to show a progress bar.
    """

    draws: Draws | str | os.PathLike[str] | None
    simulations: int
    steps: int | None
    batch_size: int
    learning_rate: float
    seconds: float | None
    vectorized: bool
    workers: int | None
    folder: str | os.PathLike[str] | None
    leave_out: bool
    seed: int
    progress: bool


@contextmanager
def to_learn_from(
    program: Program, names: Sequence[str], options: LearningOptions, usual: TrainingOptions
) -> Iterator[tuple[Draws, TrainingOptions]]:
    """A context with simulations of the named sites in random order, the options of training, where
    there are none the usual ones for 10,000 simulations, and a random state of its own.
    """
    simulations, progress = options.get("simulations", 10_000), options.get("progress", False)
    leave_out = options.get("leave_out", False)
    given, seconds = options.get("steps"), options.get("seconds")
    training = TrainingOptions(
        steps_within(given, seconds, usual.steps),
        options.get("batch_size", usual.batch_size),
        options.get("learning_rate", usual.learning_rate),
        progress,
        Budget(seconds),
        patient=seconds is not None,
    )
    check_count("simulations", simulations, "the number of draws that are learned from", 2)
    check_count("batch_size", training.batch_size, "the number of simulations of a step")
    with seeded(options.get("seed", 0)):
        draws = options.get("draws")
        if draws is None:
            draws = simulate(
                program,
                simulations,
                vectorized=options.get("vectorized", False),
                workers=options.get("workers"),
                folder=options.get("folder"),
                leave_out=leave_out,
                progress=progress,
            )
        elif not isinstance(draws, Mapping):
            draws = read_draws(draws, names)
        if absent := [name for name in names if name not in draws]:
            raise ValueError(
                f"there are no draws of {absent}, expected some of each of {list(draws)}"
            )
        if leave_out:
            draws, reasons = without_gaps(draws, names)
            warn_of_failures(reasons, len(reasons) + max(map(len, draws.values())), stacklevel=6)
        if given is None and seconds is None:
            training = training._replace(steps=usual_steps(usual.steps, len(draws[names[0]])))
        yield shuffled(draws), training


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
