"""Derivatives under torch's inference mode, which keeps no graph."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

__all__ = ["outside_inference_mode"]

Inputs = ParamSpec("Inputs")
R = TypeVar("R")


def outside_inference_mode(function: Callable[Inputs, R]) -> Callable[Inputs, R]:
    """The function, which leaves torch's inference mode for ``no_grad``, as it takes derivatives.

    Positional arguments that are tensors are copied then, as no graph can hold tensors that were
    made in inference mode.

    Args:
        function: a function that takes derivatives of its own.

    Returns:
        The wrapped function.
    """

    @functools.wraps(function)
    def outside(*args: Inputs.args, **options: Inputs.kwargs) -> R:
        if not torch.is_inference_mode_enabled():
            return function(*args, **options)
        with torch.inference_mode(False), torch.no_grad():
            copies = [v.clone() if isinstance(v, Tensor) else v for v in args]
            return function(*copies, **options)  # type: ignore[arg-type]

    return outside
