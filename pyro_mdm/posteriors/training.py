"""Simulations to learn from, and training with the weights that validation finds best."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyro_mdm.posteriors.reading import Draws, Program, shuffled, simulate
from pyro_mdm.support.checks import check_count
from pyro_mdm.support.modules import evaluating
from pyro_mdm.support.progress import progress_bar

__all__ = ["VALIDATED", "TrainingOptions", "to_learn_from", "train"]

VALIDATED, LOOKS = 1000, 40
"""Simulations, at most a tenth, that the loss is validated on, and how often that is done."""

WARM_UP = 100
"""Steps in which the learning rate rises."""

DECAY = 0.999
"""Of the moving average of weights, in the end."""


class TrainingOptions(NamedTuple):
    """Options of training."""

    steps: int
    batch_size: int  # simulations of a step
    learning_rate: float  # of Adam, the highest
    progress: bool = False  # whether to show a progress bar


@contextmanager
def to_learn_from(
    program: Program,
    draws: Draws | None,
    simulations: int,
    options: TrainingOptions,
    *,
    vectorized: bool,
    seed: int,
) -> Iterator[Draws]:
    """Simulations in a random order, and a random state of its own, in which all is learned.

    Args:
        program: the simulator, without arguments.
        draws: simulations, (n, *shape) by site; None: new ones.
        simulations: the number of new simulations.
        options: options of the training.
        vectorized: see :func:`simulate`.
        seed: the seed of that state.

    Raises:
        ValueError: numbers that are too small; what :func:`simulate` and :func:`shuffled` refuse.
    """
    check_count("simulations", simulations, "the number of draws that are learned from", 2)
    check_count("steps", options.steps, "the number of training steps")
    check_count("batch_size", options.batch_size, "the number of simulations of a step")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if draws is None:
            draws = simulate(program, simulations, vectorized=vectorized, progress=options.progress)
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

    These are moving averages. Of those looked at, at the start too, they are the ones whose loss on
    a tenth of the simulations, the last ones, is least. So what few simulations do not tell is not
    learned.

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
    steps, batch_size, learning_rate, progress = options
    held_out = min(VALIDATED, n // 10)
    rows = torch.arange(n - held_out, n)
    weights = [p for p in module.parameters() if p.requires_grad]
    average = [p.detach().clone() for p in weights]
    best = [p.clone() for p in average]
    state = [b.clone() for b in module.buffers()]

    def validated() -> float:
        current = [p.detach().clone() for p in weights]
        _set(weights, average)
        with torch.no_grad(), evaluating(module), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            value = float(torch.stack([loss(rows) for _ in range(4)]).mean())
        _set(weights, current)
        return value

    module.train()
    least = validated() if held_out else math.inf
    optimizer = torch.optim.Adam(weights, lr=learning_rate)
    every = max(1, steps // LOOKS)
    with progress_bar(steps, "training", "steps", shown=progress) as bar:
        for step in range(steps):
            warm = min(1.0, (step + 1) / WARM_UP)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.zero_grad()
            value = loss(torch.randint(n - held_out, (batch_size,)))
            value.backward()
            nn.utils.clip_grad_norm_(weights, largest_gradient)
            optimizer.step()
            kept = min(DECAY, (step + 1) / (step + 20))
            for mean, now in zip(average, weights, strict=True):
                mean.lerp_(now.detach(), 1 - kept)
            if (step + 1) % every == 0 or step == steps - 1:
                if not math.isfinite(float(value.detach())):
                    raise FloatingPointError(
                        f"the loss is {float(value.detach())} after {step + 1} steps, expected a "
                        "number; lower learning_rate"
                    )
                reached = validated() if held_out else -math.inf
                if reached < least or not held_out:
                    least, best = reached, [p.clone() for p in average]
                    state = [b.clone() for b in module.buffers()]
                bar.set_postfix_str(
                    f"{least:.2f} nats" if held_out else f"{float(value.detach()):.2f} nats"
                )
            bar.update()
    _set([*weights, *module.buffers()], [*best, *state])
    module.eval()
    return least


@torch.no_grad()
def _set(weights: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for weight, value in zip(weights, values, strict=True):
        weight.copy_(value)
