"""Simulations to learn from, and training with the weights that validation finds best."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

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

__all__ = ["VALIDATED", "TrainingOptions", "to_learn_from", "train"]

WARM_UP = 100
"""Steps in which the learning rate rises."""
VALIDATED = 1000
"""Simulations, at most a tenth, that the loss is validated on."""


class TrainingOptions(NamedTuple):
    """Options of training."""

    steps: int
    batch_size: int  # simulations of a step
    learning_rate: float  # of Adam, the highest
    progress: bool = False  # whether to show a progress bar


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
    """Simulations in a random order, and a random state of its own, in which all is learned.

    Args:
        program: the simulator, without arguments.
        draws: simulations, (n, *shape) by site, or where they are (:func:`read_draws`); None: new
            ones.
        simulations: the number of new simulations.
        options: options of the training.
        names: the sites of parameters and data.
        seed: the seed of that state.
        leave_out: whether simulations with NaN or infinite numbers are left out.
        how: options of :func:`simulate`.

    Raises:
        ValueError: numbers that are too small; what :func:`simulate` and :func:`shuffled` refuse.
    """
    check_count("simulations", simulations, "the number of draws that are learned from", 2)
    check_count("steps", options.steps, "the number of training steps")
    check_count("batch_size", options.batch_size, "the number of simulations of a step")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if draws is None:
            how["progress"] = options.progress
            draws = simulate(program, simulations, leave_out=leave_out, **how)
        elif not isinstance(draws, Mapping):
            draws = read_draws(draws, names)
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
) -> float:
    """The mean loss on held-out simulations, nats, of the weights that a module is left with.

    These are moving averages, see :class:`~pyro_mdm.training.Trainer`. Of those looked at, at the
    start too, they are the ones whose loss on a tenth of the simulations, the last ones, is least.
    So what few simulations do not tell is not learned.

    Args:
        module: module that is trained. It is in evaluation mode in the end.
        loss: function that is called with the indices of simulations, (b,) int64, and returns their
            mean loss.
        n: the number of simulations.
        options: options of Adam, whose learning rate has a cosine schedule that ends at 0.
        largest_gradient: the norm at which gradients are clipped.

    Raises:
        FloatingPointError: the loss is no number.
    """
    held_out = min(VALIDATED, n // 10)
    rows = torch.arange(n - held_out, n)

    def of_batch() -> Tensor:
        return loss(torch.randint(n - held_out, (options.batch_size,)))

    def of_validation() -> Tensor:
        torch.manual_seed(0)
        return torch.stack([loss(rows) for _ in range(4)]).mean()

    trainer = Trainer(
        module,
        steps=options.steps,
        learning_rate=options.learning_rate,
        warmup=WARM_UP,
        clip=largest_gradient,
        progress=options.progress,
    )
    return trainer.fit(of_batch, of_validation if held_out else None)
