"""Kernels at the times of a sampler's grid, computed all at once before its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import forward_ad

from pyro_mdm.diffusions.base import Marginal
from pyro_mdm.diffusions.closed import OneBlock
from pyro_mdm.diffusions.memory import Remembering, writes

__all__ = ["Foreseeing", "Places"]


class Places:
    """Times for which something was computed ahead, recognized by their place in memory.

    Args:
        times: (N,), of which tensors that hold a single one are views.
    """

    def __init__(self, times: Tensor) -> None:
        self._times = times  # held, so that no other time comes to its place
        self._written, self._has_grad = writes((times,)), torch.is_grad_enabled()
        self._indices = {s.data_ptr(): i for i, s in enumerate(times.unbind())}

    def index(self, s: Tensor) -> int | None:
        """The index of the time that s (…) is, or is by ``expand``; None for other times."""
        moves = s.requires_grad or is_functorch_wrapped_tensor(s)
        if moves or forward_ad.unpack_dual(s).tangent is not None:
            return None  # it has derivatives in s
        if torch.is_grad_enabled() != self._has_grad or writes((self._times,)) != self._written:
            return None
        if any(s.stride()) and s.numel() != 1:
            return None
        return self._indices.get(s.data_ptr()) if s.numel() and s.dtype == torch.float64 else None


class LawsAhead:
    """Kernels at times of which one is asked for after the other, computed all at once.

    Args:
        times: (N,), of which tensors that hold a single one are views.
        laws: function that computes the kernels at these, (N, …).
    """

    def __init__(self, times: Tensor, laws: Callable[[], Marginal]) -> None:
        self._places, self._compute = Places(times), laws
        self._laws: Marginal | None = None
        self._for_batches: dict[torch.Size, list[Marginal]] = {}

    def at(self, s: Tensor) -> Marginal | None:
        """The kernel at one time, repeated for times s (…) that are one by ``expand``; None for
        other times."""
        i = self._places.index(s)
        if i is None:
            return None
        if self._laws is None:
            self._laws = self._compute()
        if s.shape not in self._for_batches:
            fields = (
                t.reshape(len(t), *[1] * s.dim(), *t.shape[1:])
                .expand(-1, *s.shape, *[-1] * (t.dim() - 1))
                .unbind()
                for t in self._laws
            )
            self._for_batches[s.shape] = [Marginal(*law) for law in zip(*fields, strict=True)]
        return self._for_batches[s.shape][i]


class Foreseeing(Remembering, OneBlock):
    """A diffusion in closed form that can compute its kernels ahead."""

    _ahead: LawsAhead | None = None

    def __getstate__(self) -> dict[str, Any]:
        """The state without kernels ahead, which are of places that a copy does not have."""
        return super().__getstate__() | {"_ahead": None}

    @contextmanager
    def laws_ahead(self, times: Tensor) -> Iterator[None]:
        """A block in which kernels at entries of ``times`` (N,) are ready."""

        def compute() -> Marginal:
            ahead, self._ahead = self._ahead, None  # a single time would be looked for in itself
            try:
                return self.marginal(times)
            finally:
                self._ahead = ahead

        outer, self._ahead = self._ahead, LawsAhead(times, compute)
        try:
            yield
        finally:
            self._ahead = outer

    def law_ahead(self, s: Tensor) -> Marginal | None:
        """The kernel at times s (…) if it is ready."""
        return None if self._ahead is None else self._ahead.at(s)
