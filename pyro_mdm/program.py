"""Parts that guide and model share as Pyro programs: parameters, the plate of the batch, a path."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from weakref import WeakSet

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.runtime import _PYRO_STACK, get_plates
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor, nn

from pyro_mdm.diffusions.base import Diffusion
from pyro_mdm.paths.base import PathLaw
from pyro_mdm.paths.divergence import shared_diffusion
from pyro_mdm.support.checks import check_count
from pyro_mdm.support.settings import Restorable

__all__ = ["OnePath", "Registered", "batch_plate", "grid_times", "one_thread", "restored_times"]

PREFIX = "pyro_mdm_"
"""Beginning of the names of parameters in Pyro's store."""
_names = itertools.count()
_programs: WeakSet[Registered] = WeakSet()
"""Programs with parameters in the store."""
_in_use = threading.RLock()
"""Held by the thread whose programs use Pyro's handlers, and never waited for."""


class Registered(Restorable, nn.Module):
    """A module whose parameters join Pyro's store when, and only when, ``SVI`` collects them.

    ``pyro.module`` would put them there at every call, and silently takes those stored under the
    same name: of weights in ``channels_last``, or of a copy of a model, ``SVI`` would then train
    other tensors than the module's. Here that is an error, and a copy has its own name. The
    entries of a program in the store go when it is gone and another one registers.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pyro_name = f"{PREFIX}{next(_names)}"

    def __getstate__(self) -> dict[str, Any]:
        for parameter in self.parameters():
            vars(parameter).pop("unconstrained", None)  # Pyro's weak reference is never pickled
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._pyro_name = f"{PREFIX}{next(_names)}"
        stored = dict(pyro.get_param_store().named_parameters())
        for parameter in self.parameters():
            if stored.get(getattr(parameter, "pyro_mdm_name", "")) is not parameter:
                vars(parameter).pop("pyro_mdm_name", None)  # that of the one it is a copy of

    @contextmanager
    def running(self) -> Iterator[None]:
        """A context in which the program runs, in one thread and with its parameters registered."""
        with one_thread():
            self._register()
            yield

    def _register(self) -> None:
        """Register every parameter under one name, however many programs share it."""
        collecting = any(isinstance(m, TraceMessenger) and m.param_only for m in _PYRO_STACK)
        if not collecting:
            return
        _programs.add(self)
        store = pyro.get_param_store()
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            full = _full_name(parameter, f"{self._pyro_name}$$${name}")
            if full not in store:
                _forget()
            pyro.param(full, parameter)
            if store[full] is not parameter:
                raise RuntimeError(
                    f"Pyro's parameter store holds another tensor as {full!r}; SVI would train "
                    "that one and not the module. Call pyro.clear_param_store(), and keep "
                    "parameters contiguous (no channels_last) on this path"
                )


def _full_name(parameter: Tensor, name: str) -> str:
    """The name of a parameter by the first program that registered it, so shared ones step once."""
    full_name = getattr(parameter, "pyro_mdm_name", None)
    if full_name is None:
        parameter.pyro_mdm_name = full_name = name  # type: ignore[attr-defined]
    return str(full_name)


def _forget() -> None:
    """Take the entries of programs that are gone out of the store."""
    parameters = (p for program in _programs for p in program.parameters())
    kept = {getattr(parameter, "pyro_mdm_name", None) for parameter in parameters}
    store = pyro.get_param_store()
    for name in [n for n in store if n.startswith(PREFIX) and n not in kept]:
        del store[name]


@contextmanager
def one_thread() -> Iterator[None]:
    """A context that one thread at a time is in.

    Raises:
        RuntimeError: another thread is in it.
    """
    if not _in_use.acquire(blocking=False):
        raise RuntimeError(
            "another thread is running a program at the same time, and Pyro has one stack of "
            "handlers for all threads, so that each would write into the other's traces; train in "
            "processes, or hold a lock of your own around each step"
        )
    try:
        yield
    finally:
        _in_use.release()


def batch_plate(
    name: str, batch_shape: Sequence[int], batch_size: int | None, num_data: int | None
) -> AbstractContextManager[Any]:
    """The plate of the batch, at dim -1: the one around the program's call, or its own.

    Args:
        name: name of the plate, where the program makes it.
        batch_shape: batch shape of the data, whose last size is the batch's; () without data.
        batch_size: size of the batch, where it is requested.
        num_data: size of the data set of which the batch is a subsample; scales the plate.

    Raises:
        ValueError: sizes that disagree, or no size at all.
    """
    if batch_size is not None:
        check_count("batch_size", batch_size, "the number of data to generate")
    if num_data is not None:
        check_count("num_data", num_data, "the number of data of which the batch is a part")
    plates = {frame.dim: frame for frame in get_plates() if frame.vectorized}
    outer = plates.get(-1)
    sizes = batch_shape[-1:] or [n for n in (batch_size, outer and outer.size) if n is not None][:1]
    if not sizes:
        raise ValueError("neither x nor batch_size is given; pass model(batch_size=64)")
    (n,) = sizes
    if batch_size is not None and batch_size != n:
        raise ValueError(f"batch_size is {batch_size}, but x has {n} data; leave batch_size out")
    for dim, size in enumerate(reversed(batch_shape[:-1]), start=2):
        if -dim not in plates or size not in (1, plates[-dim].size):
            where = f"{plates[-dim].name!r} has size {plates[-dim].size}" if -dim in plates else ""
            raise ValueError(
                f"x has the batch shape {tuple(batch_shape)}, but the plate at dim {-dim} "
                f"{where or 'is missing'}; each dimension before the last one needs a plate of its "
                f"size around the program, pyro.plate(name, {size}, dim={-dim})"
            )
    if outer is None:
        return _own_plate(name, n, num_data)
    if outer.size != n:
        raise ValueError(
            f"x has {n} data, but the program is inside plate {outer.name!r}, which has size "
            f"{outer.size} at dim -1, the batch's. If it is the plate of the batch, pass its "
            f"subsample: with pyro.plate({outer.name!r}, ...) as i: model(x[i]). If it is not, "
            "give it dim=-2"
        )
    if num_data is not None:
        raise ValueError(
            f"num_data is {num_data}, but plate {outer.name!r} around the program scales the loss "
            f"already, to {outer.full_size or outer.size} data; leave num_data out"
        )
    return nullcontext()


def _own_plate(name: str, n: int, num_data: int | None) -> pyro.plate:
    if num_data is None:
        return pyro.plate(name, n, dim=-1)
    if num_data < n:
        raise ValueError(f"num_data is {num_data}, expected at least the batch's {n} data")
    return pyro.plate(name, num_data, subsample=torch.arange(n), dim=-1)


class OnePath(Messenger):
    """A check that a path given to the model was made for it, for any objective.

    Objectives replay the model against the guide. Here the distributions of both are compared
    before the score receives a path of another shape or of another diffusion. Pyro's stack of
    handlers has the trace that is replayed, and no public name.

    Raises:
        ValueError: guide and model have different diffusions, or their paths different shapes.
    """

    def _pyro_post_sample(self, msg: Mapping[str, Any]) -> None:
        for outer in _PYRO_STACK:
            if isinstance(outer, ReplayMessenger) and outer.trace and msg["name"] in outer.trace:
                guide_law = outer.trace.nodes[msg["name"]]["fn"]
                if isinstance(guide_law, PathLaw):
                    shared_diffusion(guide_law, msg["fn"])
        event_shape = msg["fn"].event_shape
        given = msg["value"].shape
        if given[len(given) - len(event_shape) :] != event_shape:
            raise ValueError(
                f"the path {msg['name']!r} has shape {tuple(given)}, expected (*batch, N, K, "
                f"*event_shape) with {tuple(event_shape)} after the batch; give guide and model "
                "the same times and data of one shape"
            )


def grid_times(diffusion: Diffusion, times: int | Tensor) -> Tensor:
    """The times of a grid: those given, or a number of them, equally spaced in log SNR."""
    return diffusion.log_snr_grid(times) if isinstance(times, int) else times


def restored_times(saved: int | list[float] | None) -> int | Tensor | None:
    """The times of a program, from the settings that a state dict holds."""
    return torch.tensor(saved, dtype=torch.float64) if isinstance(saved, list) else saved
