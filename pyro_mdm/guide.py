"""The guide: the noising diffusion started at the data, and what both programs share."""

from __future__ import annotations

import dataclasses
import itertools
import math
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

from pyro_mdm.diffusions.base import Cap, Diffusion, given as given_contexts, require
from pyro_mdm.diffusions.clocks import log_snr_times
from pyro_mdm.paths.base import NoisingLaw, PathLaw, noising_law, shared_diffusion
from pyro_mdm.support.checks import check_count, check_instance
from pyro_mdm.support.files import JsonObject
from pyro_mdm.support.settings import Restorable, described

__all__ = [
    "DiffusionGuide",
    "OnePath",
    "Registered",
    "batch_plate",
    "check_diffusion",
    "check_times",
    "grid_times",
    "one_thread",
    "restored_times",
]

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

    def __getstate__(self) -> dict[str, object]:
        for parameter in self.parameters():
            vars(parameter).pop("unconstrained", None)  # Pyro's weak reference is never pickled
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        self._pyro_name = f"{PREFIX}{next(_names)}"
        stored = dict(pyro.get_param_store().named_parameters())
        for parameter in self.parameters():
            if stored.get(getattr(parameter, "pyro_mdm_name", "")) is not parameter:
                vars(parameter).pop("pyro_mdm_name", None)  # that of the one it is a copy of

    def register(self) -> None:
        """Register every parameter under one name, however many programs share it."""
        _programs.add(self)
        store = pyro.get_param_store()
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            # shared parameters have the name of the first program, so that they step once
            full = getattr(parameter, "pyro_mdm_name", f"{self._pyro_name}$$${name}")
            vars(parameter)["pyro_mdm_name"] = full
            if full not in store:
                _forget()
            pyro.param(full, parameter)
            if store[full] is not parameter:
                raise RuntimeError(
                    f"Pyro's parameter store holds another tensor as {full!r}; SVI would train "
                    "that one and not the module. Call pyro.clear_param_store(), and keep "
                    "parameters contiguous (no channels_last) on this path"
                )


def _forget() -> None:
    """Take the entries of programs that are gone out of the store."""
    parameters = (p for program in _programs for p in program.parameters())
    kept = {getattr(parameter, "pyro_mdm_name", None) for parameter in parameters}
    store = pyro.get_param_store()
    for name in [n for n in store if n.startswith(PREFIX) and n not in kept]:
        del store[name]


@contextmanager
def one_thread(program: Registered | None = None) -> Iterator[None]:
    """A context that one thread at a time is in, and in which a program runs: its parameters are
    registered where SVI collects them.

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
        if program is not None:
            for messenger in _PYRO_STACK:
                if isinstance(messenger, TraceMessenger) and messenger.param_only:
                    program.register()
        yield
    finally:
        _in_use.release()


def batch_plate(
    name: str, batch_shape: Sequence[int], batch_size: int | None, num_data: int | None
) -> AbstractContextManager[object]:
    """The plate of the batch, at dim -1: the one around the program's call, or its own.

    The last size of the data's batch shape is the batch's, unless it is () as there are no data.

    Raises:
        ValueError: sizes that disagree, or no size at all.
    """
    if batch_size is not None:
        check_count("batch_size", batch_size, "the number of data to generate")
    if num_data is not None:
        check_count("num_data", num_data, "the number of data of which the batch is a part")
    plates = {}
    for frame in get_plates():
        if frame.vectorized:
            plates[frame.dim] = frame
    outer = plates.get(-1)
    n = batch_size if outer is None or batch_size is not None else outer.size
    n = batch_shape[-1] if batch_shape else n
    if n is None:
        raise ValueError("neither x nor batch_size is given; pass model(batch_size=64)")
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
    if outer is None and num_data is not None:
        if num_data < n:
            raise ValueError(f"num_data is {num_data}, expected at least the batch's {n} data")
        return pyro.plate(name, num_data, subsample=torch.arange(n), dim=-1)
    if outer is None:
        return pyro.plate(name, n, dim=-1)
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


class OnePath(Messenger):
    """A check that a path given to the model was made for it, for any objective.

    Objectives replay the model against the guide. Here the distributions of both are compared
    before the score receives a path of another shape or of another diffusion. Pyro's stack of
    handlers has the trace that is replayed, and no public name.

    Attributes:
        diffusion: the diffusion of the path: the guide's, at its parameters, which the model's
            distribution then has too, so that both have the same values of it.

    Raises:
        ValueError: guide and model have different diffusions, or their paths different shapes.
    """

    diffusion: Any  # a Diffusion, once the path was drawn

    def _pyro_post_sample(self, msg: Mapping[str, Any]) -> None:
        for outer in _PYRO_STACK:
            if isinstance(outer, ReplayMessenger) and outer.trace and msg["name"] in outer.trace:
                noising = outer.trace.nodes[msg["name"]]["fn"]
                if isinstance(noising, PathLaw):
                    msg["fn"].diffusion = shared_diffusion(noising, msg["fn"])
        self.diffusion = msg["fn"].diffusion
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
    return log_snr_times(diffusion, times) if isinstance(times, int) else times


def restored_times(saved: int | list[float] | None) -> int | Tensor | None:
    """The times of a program, from the settings that a state dict holds."""
    return torch.tensor(saved, dtype=torch.float64) if isinstance(saved, list) else saved


def check_diffusion(diffusion: Diffusion) -> None:
    """Raises TypeError for an object that is no diffusion."""
    if hasattr(diffusion, "score_function"):
        raise TypeError(
            "diffusion is a DiffusionModel, expected the diffusion that it reverses; pass "
            "model.diffusion"
        )
    fix = "make one, e.g. CLD(max_log_snr=9.0)"
    check_instance("diffusion", diffusion, Diffusion, fix)


def check_times(times: object) -> None:
    """Raises TypeError or ValueError unless ``times`` is None, a number from 2 on, or the times."""
    if times is None or isinstance(times, (Tensor, list, tuple)):
        return
    expected = "that of the times on a grid from ε to T, both among them (or None, or the times)"
    check_count("times", times, expected, 2)


class DiffusionGuide(Registered):
    """The noising program ``path ~ q(path | x)``, in a plate of the batch like the model's.

    The path's distribution is in closed form (:class:`~pyro_mdm.paths.NoisingPath`) where the
    diffusion has one, as linear ones do, and simulated otherwise
    (:class:`~pyro_mdm.SimulatedPath`).

    Args:
        diffusion: the noising diffusion, the same object as the model's.
        times: times of the path, as the model's: a number N of times or the times from ε to T,
            (N,), for a grid; None for the state at ε alone.
        simulation: settings for simulating a nonlinear diffusion, a :class:`~pyro_mdm.Simulation`;
            None: the diffusion's.
        plate: name of the plate over the batch, the same as the model's.
        event_dim: number of dimensions of a datum, for data with sizes of outer plates before the
            batch's; by default all of x's but the first.

    Raises:
        TypeError: an object that is no diffusion, e.g. a model or a class.
        ValueError: a simulation for a diffusion in closed form. On call: no data, or data that
            :class:`DiffusionModel` refuses too.

    Site: ``"path"``, (*batch, N, K, *event_shape); before it ``"context"`` ~ q(c | x), (*batch,
    size), where the diffusion depends on one.

    Example:
        >>> from pyro_mdm import CLD
        >>> guide = DiffusionGuide(CLD())
        >>> guide(torch.randn(8, 2)).shape  # 8 data, one time, K = 2 variables, 2 dimensions
        torch.Size([8, 1, 2, 2])
    """

    def __init__(
        self,
        diffusion: Diffusion,
        times: int | Tensor | None = None,
        *,
        simulation: object = None,
        plate: str = "data",
        event_dim: int | None = None,
    ) -> None:
        super().__init__()
        check_instance("plate", plate, str, "it is the name of the plate over the batch")
        if event_dim is not None:
            check_count("event_dim", event_dim, "the number of dimensions of a datum", least=0)
        check_diffusion(diffusion)
        check_times(times)
        if simulation is not None:
            fix = "leave it out, or simulate with Simulated(diffusion)"
            require(diffusion, Cap.SIMULATED, who="simulation", fix=fix)
            kind, fix = type(diffusion.simulation), "e.g. Simulation(step_size=0.02)"
            check_instance("simulation", simulation, kind, fix)
        self.diffusion = diffusion
        self.times = times
        self.simulation: Any = simulation
        self.plate = plate
        self.event_dim = event_dim

    def settings(self) -> dict[str, object]:
        simulation = None if self.simulation is None else dataclasses.asdict(self.simulation)
        return {"times": described(self.times), "simulation": simulation}

    def restore(self, saved: JsonObject) -> None:
        self.times, simulation = restored_times(saved["times"]), saved["simulation"]
        kind = None if simulation is None else type(self.diffusion.simulation)
        self.simulation = None if kind is None else kind(**simulation)

    def forward(
        self,
        x: Tensor | None = None,
        given: object = None,
        *,
        batch_size: int | None = None,
        num_data: int | None = None,
    ) -> Tensor:
        """A noising path of data, for the same arguments as the model's.

        Args:
            x: data, (batch, *event_shape). An entry that is NaN is missing and noised as 0; the
                model leaves it out or raises.
            given: contexts of the model, which do not affect the noise.
            batch_size: size of the batch, for a check against the data's.
            num_data: size of the data set of which x is a subsample; scales the loss.

        Returns:
            The path, (*batch, N, K, *event_shape).

        Raises:
            ValueError: no data, data that the diffusion cannot noise, or sizes that disagree.
        """
        if x is None:
            raise ValueError(f"the guide noises data and was given none (batch_size={batch_size})")
        times = None if self.times is None else grid_times(self.diffusion, self.times)
        if isinstance(x, Tensor) and x.is_floating_point():
            # a missing entry becomes 0: the model does not look at its noise
            x = x.nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf)
        noising = self.law(x, times)
        with one_thread(self), batch_plate(self.plate, noising.batch_shape, batch_size, num_data):
            if (latent := self.diffusion.context) is not None:
                context = pyro.sample("context", latent.posterior(noising.x, noising.x_dim))
                conditional = given_contexts(noising.diffusion, context)
                noising = noising_law(conditional, x, times, event_dim=self.event_dim)
            return pyro.sample("path", noising)

    def law(
        self, x: Tensor, times: Tensor | None = None, context: Tensor | None = None
    ) -> NoisingLaw:
        """The distribution of the path of data x (batch, *event_shape), seen at times (N,) or at ε
        alone, given latent contexts (batch, size) where the diffusion depends on one.

        It is that of :meth:`~pyro_mdm.Diffusion.solved`, of the parameters as they are now."""
        diffusion = self.diffusion.solved()
        if context is not None:
            diffusion = given_contexts(diffusion, context)
        options = {} if self.simulation is None else {"simulation": self.simulation}
        return noising_law(diffusion, x, times, event_dim=self.event_dim, **options)
