"""Models in folders: ``model.safetensors`` has their state, and in its header their parts.

The parts are a tree of objects by class and constructor arguments (:class:`Recorded`)::

    {"class": "diffusions.presets.CLD", "arguments": {}}    a class of this library, by its module
    {"your_class": "MyNet", "arguments": null}              one of the user's; null: not known
    {"your_function": "friction"}                           likewise
    {"tensor": "score_function.data_mean"}                  in model.safetensors
    {"number": "inf"}                                       a number that JSON lacks
    {"same": "model.score.network"}                         an object that is there already

and numbers, strings, null and lists as they are. Tensors are those of the state dict, settings
included, which take precedence; other tensors that constructors were given are under
``arguments.``. Only classes of this library are called by name; the caller passes in everything
else. A posterior or a table adds notes, and tensors under ``beside:``.
"""

from __future__ import annotations

import inspect
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_mdm.diffusions.base import Diffusion
from pyro_mdm.support.files import ROOT, JsonObject
from pyro_mdm.support.saved import (
    PretrainedError,
    Saved,
    damage_of,
    peek,
    read_saved,
    write_saved,
)
from pyro_mdm.support.settings import Recorded, arguments_of, is_plain

__all__ = ["CHECKPOINT", "TENSORS", "TRAINED", "OpenedModel", "PretrainedError", "load_state"]
__all__ += ["names_instead", "open_folder", "save_folder", "trained_folder", "trained_models"]

TENSORS = "model.safetensors"
"""Name of the file in a model's folder."""
KIND, CHECKPOINT = "a model", "a checkpoint"
"""Kinds of saved files."""
ARGUMENTS, BESIDE = "arguments.", "beside:"
"""Beginnings of the names of tensors that are not of the state dict."""
SPARE, TIMES = 2**26, 8
"""The number of tensor entries that constructors may make, and that number per saved entry."""
CALLS, FEW = 100, 200
"""The number of operations of constructors per saved tensor, and of tensors that are not saved."""
WORK = 4
"""The number of entries that constructors may compute per entry that they may make."""

TRAINED = ROOT / "models" / "trained"
"""The folder of trained models."""

Model = TypeVar("Model", bound=nn.Module)


class OpenedModel(NamedTuple, Generic[Model]):
    """The content of a model's folder."""

    model: Model
    notes: JsonObject
    beside: dict[str, Tensor]


PACKAGE = __name__.partition(".")[0] + "."


def _is_library(cls: type) -> bool:
    return cls.__module__.startswith(PACKAGE)


def _class_at(address: str) -> type | None:
    """The class of this library at an address, a module and a name; None for nothing that may be
    built. A file thus loads the modules of its own classes alone."""
    module, _, name = address.rpartition(".")
    if not re.fullmatch(r"[a-z]\w*(\.[a-z]\w*)*", module):
        return None
    try:
        cls: object = getattr(import_module(PACKAGE + module), name, None)
    except ModuleNotFoundError:
        return None
    if not isinstance(cls, type) or not issubclass(cls, Recorded | Diffusion):
        return None
    return cls if _is_library(cls) and not inspect.isabstract(cls) else None


# -- names of trained models -----------------------------------------------------------------------


def trained_models() -> list[str]:
    """Names of the trained models in :data:`TRAINED`; none where the library alone is installed."""
    return sorted(path.parent.name for path in TRAINED.glob(f"*/{TENSORS}"))


def trained_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder of a trained model, from its path or its name.

    An existing folder takes precedence over a trained model of that name.
    """
    path = Path(folder)
    named = path.name in trained_models() and len(path.parts) == 1 and not path.exists()
    return TRAINED / path if named else path


def names_instead(folder: Path) -> str:
    """The names of trained models, for messages on a missing folder; "" for no possible name."""
    if len(folder.parts) != 1 or folder.exists():
        return ""
    if names := trained_models():
        return f"; trained models by name: {', '.join(names)}"
    return (
        "; trained models by name come with the repository, and pip installed the library without "
        "them: get the repository, and in it: pip install -e ."
    )


# -- saving ----------------------------------------------------------------------------------------


def save_folder(
    model: nn.Module,
    folder: str | os.PathLike[str],
    notes: Mapping[str, object] | None = None,
    beside: Mapping[str, Tensor] | None = None,
    source: Mapping[str, str] | None = None,
) -> None:
    """Write a model into a folder; see :meth:`~pyro_mdm.model.DiffusionModel.save_pretrained`.

    Notes are what JSON can hold, for :func:`open_folder`, as are tensors beside. ``source`` is the
    name of a folder of checkpoints in this one, "folder", and what the newest of them has as
    "weights" of its state. If it has others when the model is opened, that is an error.
    """
    writer, folder = _Writer(model), Path(folder)
    content = {"model": writer.encode(model, "model"), "notes": dict(notes or {})}
    if source is not None:
        content["source"] = dict(source)
    if folder.exists() and not folder.is_dir():
        raise PretrainedError(f"{folder} is a file, expected a folder for the model")
    further = {BESIDE + name: tensor for name, tensor in (beside or {}).items()}
    write_saved(folder / TENSORS, KIND, content, writer.tensors | further)


class _Writer:
    """A writer of a model as a JSON tree, and of the tensors that it names."""

    def __init__(self, model: nn.Module) -> None:
        state = model.state_dict(keep_vars=True)
        self.tensors: dict[str, Tensor] = dict(state)
        self._names = {id(tensor): name for name, tensor in state.items()}
        self._places: dict[int, tuple[str, object]] = {}  # the object too: its id stays its own
        self._yours: dict[str, object] = {}

    def encode(self, value: object, place: str) -> object:
        if isinstance(value, np.ndarray | np.generic):
            value = torch.as_tensor(value) if value.ndim else value.item()
        if isinstance(value, torch.device):
            value = str(value)
        if isinstance(value, float) and not math.isfinite(value):
            return {"number": str(value)}
        if is_plain(value):
            return value
        if isinstance(value, Tensor):
            return {"tensor": self._tensor(value, place)}
        if isinstance(value, list | tuple | nn.ModuleList):
            return [self.encode(v, f"{place}.{i}") for i, v in enumerate(value)]
        if id(value) in self._places:
            return {"same": self._places[id(value)][0]}
        self._places[id(value)] = place, value
        return self._object(value, place)

    def _tensor(self, value: Tensor, place: str) -> str:
        if id(value) not in self._names:
            name = ARGUMENTS + place
            self.tensors[name], self._names[id(value)] = value, name
        return self._names[id(value)]

    def _object(self, value: object, place: str) -> dict[str, object]:
        cls = type(value)
        if isinstance(value, Recorded | Diffusion):
            named = "class" if _is_library(cls) else "your_class"
            address = f"{cls.__module__.removeprefix(PACKAGE)}.{cls.__name__}"
            name = address if _is_library(cls) else self._your_name(cls, place)
            return {named: name, "arguments": self._arguments(value, place)}
        if callable(value) and not isinstance(value, nn.Module):
            return {"your_function": self._your_name(value, place)}
        return {"your_class": self._your_name(cls, place), "arguments": None}

    def _your_name(self, what: object, place: str) -> str:
        name: str = getattr(what, "__name__", type(what).__name__)
        if name == "<lambda>":
            raise PretrainedError(
                f"{place} is a lambda, which has no name to find it by; write it as def name(…), "
                "and from_pretrained takes it as classes={'name': name}"
            )
        if self._yours.setdefault(name, what) is not what:
            raise PretrainedError(
                f"{place} is called {name}, as is another class or function of the model; rename "
                "one, so that from_pretrained can tell them apart"
            )
        return name

    def _arguments(self, value: Recorded | Diffusion, place: str) -> dict[str, object]:
        buffers = vars(value).get("_buffers", {})
        arguments = arguments_of(value) if isinstance(value, Diffusion) else value.arguments()
        encoded = {}
        for name, argument in arguments.items():
            if name.startswith("*"):
                raise PretrainedError(
                    f"{place} is a {type(value).__name__}, whose constructor takes {name}; give it "
                    "arguments with names"
                )
            buffer = buffers.get(name)
            if isinstance(argument, Tensor) and buffer is not None:
                argument = buffer if buffer.shape == argument.shape else argument
            encoded[name] = self.encode(argument, f"{place}.{name}")
        return encoded


# -- loading ---------------------------------------------------------------------------------------


def open_folder(
    cls: type[Model], folder: str | os.PathLike[str], classes: Mapping[str, object]
) -> OpenedModel[Model]:
    """The model of a folder, or of a trained model's name, with the notes and tensors beside it.

    See :meth:`~pyro_mdm.model.DiffusionModel.from_pretrained`. Raises PretrainedError for no such
    folder, one that is damaged, a model of another class, or one of an earlier step than the newest
    checkpoint beside it.
    """
    saved, file = _read(Path(folder))
    tensors = saved.tensors
    requested = {} if _is_library(cls) else {cls.__name__: cls}
    reader = _Reader(file, tensors, {**requested, **classes})
    most = SPARE + TIMES * sum(tensor.numel() for tensor in tensors.values())
    # constructors draw weights that are replaced
    calls = CALLS * (FEW + len(saved.tensors))
    with torch.random.fork_rng(devices=[]), _AtMost(most, calls), damage_of(file):
        model = reader.decode(saved.content["model"], "model")
    if not isinstance(model, cls):
        raise PretrainedError(
            f"{file} describes an object of the class {type(model).__name__}, expected "
            f"{cls.__name__}; open it with that class"
        )
    state = _state(tensors)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in state and tensor.dtype != state[name].dtype:
            tensor.data = tensor.data.to(state[name].dtype)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise PretrainedError(
            f"the tensors of {file} do not fit what its header and classes describe: {error}"
        ) from error
    beside = {n.removeprefix(BESIDE): t for n, t in tensors.items() if n.startswith(BESIDE)}
    return OpenedModel(model.eval(), saved.content["notes"], beside)


def load_state(folder: str | os.PathLike[str]) -> tuple[dict[str, Tensor], JsonObject]:
    """The state dict of the model in a folder, and the notes beside it.

    No object of the model's parts is built.

    Raises:
        PretrainedError: as for :func:`open_folder`.
    """
    saved, _ = _read(Path(folder))
    return _state(saved.tensors), saved.content["notes"]


def _state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the state dict."""
    return {name: t for name, t in tensors.items() if not name.startswith((ARGUMENTS, BESIDE))}


def _read(folder: Path) -> tuple[Saved, Path]:
    """What was saved in a folder, and the path of its file."""
    folder, given = trained_folder(folder), folder
    path = folder / TENSORS
    if not path.exists():
        raise PretrainedError(
            f"{path} is missing; {folder} was not written by save_pretrained or a training run"
            f"{names_instead(given)}"
        )
    saved = read_saved(path, KIND)
    with damage_of(path):
        if source := saved.content.get("source"):
            _check_newest(path, folder / source["folder"], source["weights"])
    return saved, path


def _check_newest(path: Path, checkpoints: Path, weights: str) -> None:
    """Compare the weights of a model with those of the newest checkpoint that is whole."""
    files = sorted(checkpoints.glob("*.safetensors"), key=lambda p: (len(p.name), p.name))
    for file in reversed(files):
        try:
            if peek(file)["state"].get("weights") == weights:
                return
            read_saved(file, CHECKPOINT)
        except PretrainedError:
            continue  # a damaged one does not count
        raise PretrainedError(
            f"{path} has not the weights of {file}, the newest checkpoint beside it, as a kill may "
            "leave it; go on with the run, which writes the model again"
        )


class _AtMost(TorchDispatchMode):
    """Makes no tensors of more than ``most`` entries in all, by no more than ``calls`` operations.

    A configuration may name any sizes and numbers of layers, and constructors take the memory and
    the time before their tensors are compared with those of the file.
    """

    def __init__(self, most: int, calls: int) -> None:
        super().__init__()
        self.most = self.left = most
        self.calls = self.calls_left = calls
        self.work_left = WORK * most

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        options = dict(kwargs or {})
        if "pin_memory" in options:  # it makes a tensor, of no memory on the meta device
            of_seed = {"generator": None} if "generator" in options else {}
            planned = cast(Tensor, func(*args, **options | of_seed | {"device": "meta"}))
            self.left -= planned.numel()
            if self.left < 0:
                raise PretrainedError(
                    f"a tensor of shape {tuple(planned.shape)} is far larger than what {TENSORS} "
                    f"holds; all in all at most {self.most:,} entries are made for it"
                )
        made = func(*args, **options)
        self.calls_left -= 1
        self.work_left -= made.numel() if isinstance(made, Tensor) else 0
        if min(self.calls_left, self.work_left) < 0:
            raise PretrainedError(
                f"it takes more than {self.calls - self.calls_left - 1:,} operations to build it, "
                f"far more than for what {TENSORS} holds"
            )
        return made


class _Reader:
    """A builder of the objects in a tree, from classes of the library and those passed in."""

    def __init__(
        self, file: Path, tensors: Mapping[str, Tensor], yours: Mapping[str, object]
    ) -> None:
        self.file, self.tensors, self.yours = file, tensors, yours
        self._built: dict[str, object] = {}
        self._used: set[int] = set()

    def decode(self, content: object, place: str) -> object:
        if is_plain(content):
            return content
        if isinstance(content, list):
            return [self.decode(v, f"{place}.{i}") for i, v in enumerate(content)]
        match content:
            case {"number": str(text)} if text in ("inf", "-inf", "nan"):
                return float(text)
            case {"tensor": str(name)} if name in self.tensors:
                return self.tensors[name]
            case {"same": str(other)} if other in self._built:
                return self._built[other]
            case {"your_function": str(name)}:
                built = self._yours(name, place)
            case {"class": str(name), "arguments": dict(arguments)}:
                built = self._build(self._library(name, place), arguments, place)
            case {"your_class": str(name), "arguments": dict() | None as arguments}:
                built = self._yours(name, place)
                if not callable(built) or isinstance(built, nn.Module):
                    built = self._once(built, place)
                elif arguments is None:
                    built = self._make(built, name, place)
                else:
                    built = self._build(built, arguments, place)
            case _:
                raise PretrainedError(
                    f"{self.file} is damaged: {place} is {str(content)[:100]}, expected an object "
                    "or a value as save_pretrained writes them"
                )
        self._built[place] = built
        return built

    def _library(self, address: str, place: str) -> Any:
        name = address.rpartition(".")[2]
        built = _class_at(address) or self.yours.get(name)
        if built is None:
            raise PretrainedError(
                f"{self.file} names the class {address} at {place}, which this version of pyro_mdm "
                "does not have; install the version that saved the model, or pass a class or "
                f"function for those arguments, classes={{{name!r}: …}}"
            )
        return built

    def _yours(self, name: str, place: str) -> object:
        if name not in self.yours:
            raise PretrainedError(
                f"{self.file} names {name} at {place}, which is not of pyro_mdm, and classes has "
                f"{', '.join(self.yours) or 'nothing'}; pass classes={{{name!r}: {name}}}"
            )
        return self.yours[name]

    def _build(
        self, given: Callable[..., object], arguments: dict[str, object], place: str
    ) -> object:
        """The result of ``given`` with recorded arguments."""
        decoded = {name: self.decode(v, f"{place}.{name}") for name, v in arguments.items()}
        try:
            return given(**decoded)
        except Exception as error:  # arguments of any kind meet constructors of any kind
            reason = str(error).partition("\nException raised from")[0]  # torch's own stack
            raise PretrainedError(
                f"{self.file}: {place} cannot be built of the arguments "
                f"{', '.join(decoded) or '(none)'}: {reason}"
            ) from error

    def _make(self, given: Callable[..., object], name: str, place: str) -> object:
        """The result of ``given`` without arguments."""
        try:
            return given()
        except TypeError as error:
            raise PretrainedError(
                f"{name} at {place} cannot be built without arguments ({error}), and those it had "
                f"are not known; pass a function that makes one, classes={{{name!r}: lambda: "
                f"{name}(…)}}, or the object itself"
            ) from error

    def _once(self, given: object, place: str) -> object:
        """The object ``given``, at the one place that it may have."""
        if id(given) in self._used:
            raise PretrainedError(
                f"the {type(given).__name__} in classes is used already when {place} needs one; "
                "pass the class, or a function that makes one"
            )
        self._used.add(id(given))
        return given
