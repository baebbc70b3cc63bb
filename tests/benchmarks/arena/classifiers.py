"""The classifiers of C2ST: those of all folds are trained together.

The benchmark has scikit-learn's ``MLPClassifier`` with its defaults (Lueckmann et al., AISTATS
2021): ReLU, Glorot's uniform start, Adam, batches of 200 rows, a penalty of the squared weights,
and training until more than ten epochs in a row have not lowered the training loss by 1e-4.
:func:`accuracies` is the same algorithm with the same random numbers, so only the rounding differs,
and needs a third of the processor time or less (arena/checks.py ``--classifiers`` measures both).
All folds take a step together, in single precision throughout, and a step makes few new arrays.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Numbers = NDArray[np.float32]
Indices = NDArray[np.int64]
Fold = tuple[Indices, Indices]
"""The rows that a classifier is trained with, and those that it is scored by."""
BATCH, RATE, FIRST, SECOND, EPSILON = 200, 1e-3, 0.9, 0.999, 1e-8
"""Rows of a step, and Adam's rate, decays and ε."""
PENALTY = 1e-4
"""The weight of half the sum of squared weights, which is divided by the rows of the batch."""
TOLERANCE, PATIENCE, EPOCHS = 1e-4, 10, 10_000
"""The decrease of the loss that counts, the epochs without one, and the most epochs."""


class Networks:
    """Classifiers of two hidden layers and one logit, which have the same weights at the start.

    Args:
        number: the number of networks, b.
        inputs: the entries of a row, d. Hidden layers have 10 d units.
        random: the source of the weights.
    """

    def __init__(self, number: int, inputs: int, random: np.random.RandomState) -> None:
        sizes = (inputs, 10 * inputs, 10 * inputs, 1)
        self.shapes: list[tuple[int, int]] = []
        weights, penalties = [], []
        for fan_in, fan_out in itertools.pairwise(sizes):
            bound = np.sqrt(6.0 / (fan_in + fan_out))
            for rows, penalty in ((fan_in, PENALTY), (1, 0.0)):
                self.shapes.append((rows, fan_out))
                weights.append(random.uniform(-bound, bound, rows * fan_out))
                penalties.append(np.full(rows * fan_out, penalty))
        self.penalty = np.concatenate(penalties).astype(np.float32)
        self.values = np.tile(np.concatenate(weights).astype(np.float32), (number, 1))
        self.first, self.second = np.zeros_like(self.values), np.zeros_like(self.values)
        self.steps = 0
        self._make_room()

    def _make_room(self) -> None:
        self.slopes, self.spare = np.empty_like(self.values), np.empty_like(self.values)
        self.layers, self.gradients = self._parts(self.values), self._parts(self.slopes)

    def _parts(self, flat: Numbers) -> list[Numbers]:
        """Views of the weights (b, inputs, units) and offsets (b, 1, units) of each layer."""
        ends = np.cumsum([rows * columns for rows, columns in self.shapes])
        parts = zip(np.split(flat, ends[:-1], 1), self.shapes, strict=True)
        return [part.reshape(len(flat), *shape) for part, shape in parts]

    def keep(self, chosen: NDArray[np.bool_]) -> None:
        """Go on with the chosen networks (b,) alone."""
        for name in ("values", "first", "second"):
            setattr(self, name, getattr(self, name)[chosen])
        self._make_room()

    def forward(self, x: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        """The hidden layers (b, n, 10 d) and probabilities (b, n, 1) of class 1."""
        hidden = []
        for weights, offsets in (self.layers[:2], self.layers[2:4]):
            x = np.matmul(x, weights)
            x += offsets
            x *= x > 0  # np.maximum branches, and is slower
            hidden.append(x)
        weights, offsets = self.layers[4:]
        return hidden[0], hidden[1], expit(np.matmul(x, weights) + offsets)

    def step(self, x: Numbers, y: Numbers) -> Numbers:
        """A step of Adam, and the losses before it, (b,).

        Args:
            x: rows for each network, (b, n, d).
            y: their classes, 0 or 1, (b, n, 1).
        """
        n = x.shape[1]
        first, second, p = self.forward(x)
        decay = np.multiply(self.values, self.penalty / n, out=self.spare)
        losses = 0.5 * np.einsum("bp,bp->b", decay, self.values) + cross_entropy(p, y)
        back = p - y
        for k, (inputs, outputs) in enumerate([(second, None), (first, second), (x, first)]):
            to_weights, to_offsets = self.gradients[4 - 2 * k : 6 - 2 * k]
            if outputs is not None:
                back = np.matmul(back, self.layers[6 - 2 * k].swapaxes(1, 2))
                back *= outputs > 0
            np.matmul(inputs.swapaxes(1, 2), back, out=to_weights)
            back.sum(1, keepdims=True, out=to_offsets)
        self.slopes *= 1 / n
        self.slopes += decay
        self._update()
        return losses

    def _update(self) -> None:
        slopes, spare = self.slopes, self.spare
        self.steps += 1
        self.first *= FIRST
        self.first += np.multiply(slopes, 1 - FIRST, out=spare)
        self.second *= SECOND
        slopes *= slopes
        self.second += np.multiply(slopes, 1 - SECOND, out=spare)
        np.sqrt(self.second, out=spare)
        spare += EPSILON
        np.divide(self.first, spare, out=spare)
        spare *= RATE * (1 - SECOND**self.steps) ** 0.5 / (1 - FIRST**self.steps)
        self.values -= spare


def cross_entropy(p: Numbers, y: Numbers) -> Numbers:
    """The mean of -log of the probability of the class, (b,), of (b, n, 1) each."""
    least = np.finfo(p.dtype).eps  # as scikit-learn bounds it
    return -np.log(np.clip(1 - np.abs(p - y), least, 1 - least)).mean((1, 2))


def accuracies(x: Numbers, y: Numbers, folds: Sequence[Fold], seed: int) -> Numbers:
    """The accuracies of the classifiers of folds, (folds,).

    Args:
        x: rows (n, d).
        y: their classes, 0 or 1, (n,).
        folds: parts of the rows, as many rows in each fold.
        seed: the seed of the weights and the order of rows, which classifiers share.
    """
    random = np.random.RandomState(seed)
    networks = Networks(len(folds), x.shape[1], random)
    classes = y.astype(np.float32)[:, None]
    rows = np.stack([trained for trained, _ in folds])
    n = rows.shape[1]
    order, going = np.arange(n), np.arange(len(folds))
    least, idle = np.full(len(folds), np.inf), np.zeros(len(folds), int)
    scores = np.empty(len(folds))
    for epoch in range(EPOCHS):
        shuffled = np.arange(n)
        random.shuffle(shuffled)
        order = order[shuffled]  # scikit-learn's shuffles follow one another
        chosen = rows[going][:, order]
        x_epoch, y_epoch = x[chosen], classes[chosen]
        losses = np.zeros(len(going))
        for start in range(0, n, BATCH):
            batch = slice(start, min(start + BATCH, n))
            share = (batch.stop - batch.start) / n
            losses += share * networks.step(x_epoch[:, batch], y_epoch[:, batch])
        idle = np.where(losses > least - TOLERANCE, idle + 1, 0)
        least = np.minimum(least, losses)
        ended = (idle > PATIENCE) | (epoch == EPOCHS - 1)
        if not ended.any():
            continue
        for k in np.flatnonzero(ended):
            held = folds[going[k]][1]
            said = networks.forward(x[held])[2][k, :, 0] > 0.5
            scores[going[k]] = np.mean(said == (y[held] > 0))
        networks.keep(~ended)
        going, idle, least = going[~ended], idle[~ended], least[~ended]
        if not len(going):
            break
    return scores
