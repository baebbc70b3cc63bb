"""Gradients against central differences."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor

from tests.problems import fixed


def slope(value: Callable[[], Tensor], parameter: Tensor, along: Tensor, h: float = 1e-5) -> float:
    """How fast a value changes as a parameter moves along a direction of its shape."""
    ends = []
    for step in (h, -2 * h):
        with torch.no_grad():
            parameter.add_(step * along)
        ends.append(float(value().detach()))  # with gradients: without them a value may be another
    with torch.no_grad():
        parameter.add_(h * along)
    return (ends[0] - ends[1]) / (2 * h)


def assert_gradients(
    value: Callable[[], Tensor],
    parameters: Iterable[Tensor],
    *,
    h: float = 1e-5,
    rel: float = 1e-5,
    abs: float = 1e-6,
    least: float = 1e-3,
) -> None:
    """Reverse mode, along a direction at random in each parameter; ``least`` of one is to be seen.

    The value is a function of the parameters alone: it draws the same numbers whenever it is asked.
    """
    parameters = list(parameters)
    gradients = torch.autograd.grad(value(), parameters)
    for i, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        along = fixed(20 + i, *parameter.shape).to(parameter)
        expected = slope(value, parameter, along, h)
        assert max(expected, -expected) > least, f"nothing depends on parameter {i}"
        assert float((gradient * along).sum()) == pytest.approx(expected, rel=rel, abs=abs), i
