"""A device that every machine has: tensors of the CPU that only each other's operations accept.

    with Elsewhere() as device:
        model.to("cuda")  # and from here on every operation is checked

Within, ``"cuda"`` is a name for a part of the CPU's memory. A tensor is there if its storage was
moved there, made there, or computed from one that is. As on a GPU, an operation of tensors in both
places raises, except that single numbers of the CPU join arithmetic. Values, gradients and random
bits are those of the CPU, so whatever runs on a machine without a GPU runs here too. It does not
see what another process or a compiled program does.
"""

from __future__ import annotations

import contextlib
import traceback
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_mdm.support import checks

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
GROUPED = torch._C._group_tensors_by_device_and_dtype
ROOT = Path(__file__).resolve().parents[1]
NUMBERS = ("aten::where", "aten::index_put", "aten::index_put_", "aten::fill_")
"""Operations beside arithmetic that take single numbers of the CPU."""
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
"""Operations whose second argument may be on the CPU."""
FROM_PYTHON = (torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, Tensor.new_tensor)
"""Functions that make tensors of what is none."""
TO_PYTHON = (Tensor.numpy, Tensor.__array__)
"""Methods that no tensor of a GPU has."""
GETTERS: dict[Any, Any] = {
    Tensor.device.__get__: lambda there: CUDA if there else CPU,  # type: ignore[attr-defined]
    Tensor.is_cuda.__get__: lambda there: there,  # type: ignore[attr-defined]
    Tensor.is_cpu.__get__: lambda there: not there,  # type: ignore[attr-defined]
    Tensor.get_device: lambda there: 0 if there else -1,
}
PLACES: dict[int, tuple[StorageWeakRef, str]] = {}
"""The places of storages, also of those that are kept from one :class:`Elsewhere` to the next."""
PLAIN = (int, float, str, torch.dtype, torch.device, torch.layout, type(None))
"""Kinds of leaves that hold no tensor."""
FREE = "free"
"""The place of zeros that autograd makes for tensors of any device."""


class DeviceError(RuntimeError):
    """An operation of tensors on two devices."""


def tensors(tree: Any) -> list[Tensor]:
    """The tensors of a tree, which of arguments is mostly a tuple of leaves."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, PLAIN):
        return []
    if type(tree) in (tuple, list):
        return [leaf for branch in tree for leaf in tensors(branch)]
    if type(tree) is dict:
        return tensors(list(tree.values()))
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def line() -> str:
    """The innermost line of this repository that is running."""
    for frame, number in traceback.walk_stack(None):
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and path != Path(__file__) and ".venv" not in path.parts:
            return f"{path.relative_to(ROOT)}:{number}"
    return "backward"


class Elsewhere:
    """The device.

    Attributes:
        sent: shapes of tensors that were sent to it from the CPU, for which a GPU waits, and the
            lines that sent them; single numbers are left out.
    """

    def __init__(self) -> None:
        self.sent: list[tuple[tuple[int, ...], str]] = []
        self.making = False  # whether a factory makes tensors elsewhere
        self._places = PLACES
        self._within = contextlib.ExitStack()

    def __enter__(self) -> Elsewhere:
        fork, event = torch.random.fork_rng, mock.MagicMock()
        event.query.return_value = True
        for where, name, new in (
            (torch, "Generator", _Generator),
            (torch.random, "fork_rng", lambda devices=None, **options: fork([], **options)),
            (torch.cuda, "Event", lambda: event),
            (torch.cuda, "current_stream", mock.MagicMock()),
            (torch._C, "_group_tensors_by_device_and_dtype", lambda *lists: self.grouped(*lists)),
        ):
            self._within.enter_context(mock.patch.object(where, name, new))
        self._within.enter_context(_Kernels(self))
        self._within.enter_context(_Calls(self))
        return self

    def __exit__(self, *error: Any) -> None:
        checks._unread.answers.clear()  # of work that was given up
        self._within.__exit__(*error)

    def place(self, x: Tensor) -> str:
        """``"cpu"``, ``"cuda"`` or :data:`FREE`."""
        with torch._C.DisableTorchFunction():
            storage, place = self._places.get(_storage(x)._cdata, (None, "cpu"))
        return "cpu" if storage is None or storage.expired() else place

    def has(self, x: Tensor) -> bool:
        """Whether a tensor is elsewhere."""
        return self.place(x) == "cuda"

    def put(self, x: Tensor, place: str) -> None:
        """Note the place of a tensor."""
        with torch._C.DisableTorchFunction():
            storage = _storage(x)
            self._places[storage._cdata] = StorageWeakRef(storage), place
        if len(self._places) > 100_000:
            for key in [k for k, v in self._places.items() if v[0].expired()]:
                del self._places[key]

    def send(self, x: Tensor) -> None:
        """Note that a tensor is sent."""
        if x.dim():
            self.sent.append((tuple(x.shape), line()))

    def parsed(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The device, and what else, that the arguments of ``to`` ask for."""
        device, *others = torch._C._nn._parse_to(*args, **kwargs)
        for other in tensors((args, kwargs)):
            device = CUDA if self.has(other) else CPU
        return device, *others

    def grouped(self, *lists: Any) -> dict[Any, Any]:
        """Tensors by device, as optimizers take them."""
        found = GROUPED(*lists)
        places = {key: self.has(tensors(group)[0]) for key, group in found.items()}
        return {(CUDA if places[key] else key[0], key[1]): found[key] for key in found}

    def to(self, x: Tensor, there: bool) -> Tensor:
        """A tensor in the place that is asked for, with its gradient."""
        if there == self.has(x):
            return x
        if there:
            self.send(x)
        moved: Tensor = _Moved.apply(x, self, there)  # type: ignore[no-untyped-call]
        return moved


def _storage(x: Tensor) -> Any:
    """The storage of a tensor, below the wrappers of ``torch.func``."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x.untyped_storage()


class _Moved(torch.autograd.Function):
    """A copy in the other place, whose gradient comes back."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, device: Elsewhere, there: bool) -> Tensor:
        moved = x.clone()
        device.put(moved, "cuda" if there else "cpu")
        return moved

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, ctx.device, ctx.there = inputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Moved.apply(gradients[0], ctx.device, not ctx.there), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _Moved.apply(tangents[0], ctx.device, ctx.there)


class OfGenerators(type(torch.Generator)):  # type: ignore[misc]
    """The kind of a class whose instances are all generators: annotations that are first read
    while it is torch's keep it."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, type(torch.default_generator))


class _Generator(type(torch.default_generator), metaclass=OfGenerators):  # type: ignore[misc]
    """A generator that says that it is where it was asked for."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        made: _Generator = super().__new__(cls)
        made.there = torch.device(device).type == "cuda"
        return made

    def __init__(self, device: Any = "cpu") -> None:
        pass

    @property
    def device(self) -> torch.device:
        return CUDA if self.there else CPU


class _Calls(TorchFunctionMode):
    """Calls of torch from Python: what says where a tensor is, or is to be."""

    def __init__(self, device: Elsewhere) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self, func: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        device, kwargs = self.device, dict(kwargs or {})
        if func in GETTERS:
            return GETTERS[func](device.has(args[0]))
        if func in TO_PYTHON and device.has(args[0]):
            raise TypeError(f"a tensor on cuda has no {func.__name__}; call .cpu() first")
        if func.__name__ == "_parse_to":  # of Module.to
            return device.parsed(*args, **kwargs)
        if func in (Tensor.to, Tensor.cuda, Tensor.cpu):
            return self.moved(func, *args, **kwargs)
        asked = kwargs.get("device")
        if func in (torch.as_tensor, torch.asarray) and isinstance(args[0], Tensor):
            kwargs.pop("device", None)
            out = func(*args, **kwargs)
            return out if asked is None else device.to(out, torch.device(asked).type == "cuda")
        there = any(map(device.has, tensors((args, kwargs))))
        if asked is not None:
            there = torch.device(asked).type == "cuda"
            kwargs["device"] = CPU if there else asked
        generator = kwargs.get("generator")
        if isinstance(generator, torch.Generator) and (generator.device.type == "cuda") != there:
            raise DeviceError(f"{func.__name__} has a generator of {generator.device}")
        before, device.making = device.making, there
        try:
            out = func(*args, **kwargs)
        finally:
            device.making = before
        if asked is not None or func in FROM_PYTHON:
            for x in tensors(out):
                device.put(x, "cuda" if there else "cpu")
                if func in FROM_PYTHON and there:
                    device.send(x)
        return out

    def moved(self, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``x.to(…)``, ``x.cuda()`` or ``x.cpu()``."""
        if func is not Tensor.to:
            return self.device.to(x, func is Tensor.cuda)
        copy = kwargs.pop("copy", False)
        asked, dtype, _, layout = self.device.parsed(*args, **kwargs)
        there = self.device.has(x) if asked is None else asked.type == "cuda"
        before = x
        x = x.to(dtype=dtype or x.dtype, **({} if layout is None else {"memory_format": layout}))
        moved = self.device.to(x, there)
        return moved.clone() if copy and moved is before else moved


class _Kernels(TorchDispatchMode):
    """Operations: where their tensors are, and those that they return."""

    def __init__(self, device: Elsewhere) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(
        self, func: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        device, kwargs, name = self.device, kwargs or {}, func._schema.name
        taken = tensors((args, kwargs))
        places = [device.place(x) for x in taken]
        here = [x for x, place in zip(taken, places, strict=True) if place == "cpu"]
        there = "cuda" in places
        free = args[1] if name in INDEXING else args[1:] if name == "aten::copy_" else ()
        for x in [x for x in here if there and any(x is y for y in free)]:
            device.send(x)
            here = [y for y in here if y is not x]
        if name == "aten::copy_":
            return func(*args, **kwargs)
        arithmetic = name != "aten::equal" and (torch.Tag.pointwise in func.tags or name in NUMBERS)
        if there and here and not (arithmetic and all(x.dim() == 0 for x in here)):
            raise DeviceError(
                f"{name}, called at {line()}, has tensors on "
                + " and ".join(f"{p} {tuple(x.shape)}" for p, x in zip(places, taken, strict=True))
            )
        out = func(*args, **kwargs)
        place = "cuda" if there else "cpu"
        if not here and not there:
            backward = torch._C._current_graph_task_id() != -1
            place = FREE if taken or backward else "cuda" if device.making else "cpu"
        for x in tensors(out):
            if not any(x is y for y in taken):
                device.put(x, place)
        return out
