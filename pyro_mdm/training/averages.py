"""Averages of weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pyro_mdm.support.checks import Count, check_number, checked_arguments

__all__ = ["MovingAverage", "assign"]


class MovingAverage:
    r"""An exponential moving average of the weights of a module.

    Update n, from 0, moves an average m to m + (1 - d_n) (w - m), where w is the current weight and
    d_n = min(decay, (1 + n) / (forgetting + n)) grows to the decay. So the average forgets where it
    began.

    Args:
        weights: the module, or the tensors that training changes in place.
        decay: final decay, in [0, 1).
        forgetting: number in d_n, at least 1; the larger, the sooner the start is forgotten.
        copy: copy of the module for the averages, whose buffers follow the module's and whose
            weights begin with those of the first update. None: the averages are tensors of this
            object, which begin with the current weights.

    Attributes:
        weights, averages: the weights that are averaged, and the averages in the same order.
        number: number of updates so far.

    Raises:
        ValueError: a decay out of range.

    Example:
        >>> network = torch.nn.Linear(2, 1)
        >>> average = MovingAverage(network, decay=0.99)
        >>> before = network.bias.detach().clone()
        >>> _ = network.bias.data.add_(1.0)  # as a step of training would
        >>> average.update()
        >>> with average.applied():
        ...     bool((before < network.bias) & (network.bias < before + 1))
        True
    """

    @checked_arguments
    def __init__(
        self,
        weights: nn.Module | Iterable[Tensor],
        decay: float = 0.999,
        *,
        forgetting: Count = 20,
        copy: nn.Module | None = None,
    ) -> None:
        expected = "a decay in [0, 1), such as 0.999"
        if not 0 <= check_number("decay", decay, expected) < 1:
            raise ValueError(f"decay is {decay}, expected {expected}")
        self.decay, self.forgetting, self.number = decay, forgetting, 0
        self._starts_late = copy is not None
        self._buffers: list[tuple[Tensor, Tensor]] = []
        if isinstance(weights, nn.Module) and copy is not None:
            self._buffers = [*zip(copy.buffers(), weights.buffers(), strict=True)]
        self.weights = [*(weights.parameters() if isinstance(weights, nn.Module) else weights)]
        values = [w.clone() for w in self.weights] if copy is None else [*copy.parameters()]
        self.averages = [value.detach() for value in values]

    @checked_arguments
    def decay_at(self, number: int) -> float:
        """The decay d_n of update n, from 0."""
        return min(self.decay, (1 + number) / (self.forgetting + number))

    @torch.no_grad()
    def update(self) -> None:
        """Update the averages by the current weights."""
        weights = [weight.detach() for weight in self.weights]
        if self._starts_late and self.number == 0:
            assign(self.averages, weights)
        elif weights:
            move = get_ema_multi_avg_fn(self.decay_at(self.number))
            both = list(zip(self.averages, weights, strict=True))
            for device in {weight.device for weight in weights}:  # a diffusion's are on the host
                there = [pair for pair in both if pair[1].device == device]
                move([average for average, _ in there], [w for _, w in there], self.number)
        for following, buffer in self._buffers:
            following.copy_(buffer)
        self.number += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """A context in which the averages stand in place of the weights."""
        values = [weight.detach().clone() for weight in self.weights]
        assign(self.weights, self.averages)
        try:
            yield
        finally:
            assign(self.weights, values)


@torch.no_grad()
def assign(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Set tensors in place."""
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
