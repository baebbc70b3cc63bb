"""Objects that record their constructor's arguments, and state dicts that include settings.

A state dict holds parameters and buffers. Other numbers, such as ``max_log_snr``, decide a bound as
much. So a :class:`Restorable` module puts them beside its tensors, under ``_extra_state``, as JSON
in a tensor of bytes: a state dict still holds tensors alone, for ``torch.load(weights_only=True)``
and safetensors too. Loading restores the settings that can be set and refuses others that differ.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from pyro_mdm.support.files import JsonObject, json_of

__all__ = [
    "EXTRA_STATE",
    "Recorded",
    "Restorable",
    "SettingsError",
    "arguments_of",
    "described",
    "is_plain",
    "packed_settings",
    "plain_settings",
    "record",
    "reported_settings",
    "restore_settings",
]

R = TypeVar("R", bound="Recorded")

EXTRA_STATE = "_extra_state"
"""The end of names of settings in a state dict; PyTorch's name."""


class SettingsError(ValueError):
    """A state dict of a module with other settings."""


class Recorded:
    """An object that records the arguments of its constructor, defaults too; so do subclasses."""

    _given: tuple[tuple[object, ...], dict[str, object]]

    def __new__(cls: type[R], *args: object, **kwargs: object) -> R:
        self = super().__new__(cls)
        record(self, args, kwargs)
        return self

    def arguments(self) -> dict[str, object]:
        """Keyword arguments of the constructor for an object like this one.

        Later changes are in :meth:`settings`, parameters or buffers.
        """
        return arguments_of(self)

    def settings(self) -> dict[str, object]:
        """Settings, beside parameters and buffers, on which a bound depends, by name.

        By default the constructor's arguments that are numbers, strings or None, with the current
        values of the attributes of these names, without those that became buffers.
        """
        return plain_settings(self, self.arguments())


class HasSettings(Protocol):
    """An object that says its settings."""

    def settings(self) -> dict[str, object]: ...


def record(made: object, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
    """Record the arguments of the constructor of an object that is being made."""
    given: list[object] = [*args, *kwargs.values()]
    for i, value in enumerate(given):
        if isinstance(value, Tensor):
            given[i] = value.detach()
    named = dict(zip(kwargs, given[len(args) :], strict=True))
    vars(made)["_given"] = tuple(given[: len(args)]), named


def arguments_of(made: object) -> dict[str, object]:
    """The recorded arguments, as :meth:`Recorded.arguments`."""
    args, kwargs = vars(made)["_given"]
    signature = inspect.signature(type(made).__init__)
    given = signature.bind(made, *args, **kwargs).arguments
    arguments: dict[str, object] = {}
    for name, parameter in list(signature.parameters.items())[1:]:
        value = given.get(name, parameter.default)
        if name not in given and not is_plain(value):
            continue  # a default that is a function or the like need not be recorded
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments |= value
        elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            arguments[f"*{name}"] = value
        else:
            arguments[name] = value
    return arguments


def plain_settings(made: object, arguments: dict[str, object]) -> dict[str, object]:
    """The arguments that are plain, with current values, as :meth:`Recorded.settings`."""
    buffers = vars(made).get("_buffers", {})
    now = {name: vars(made).get(name, v) for name, v in arguments.items()}
    return {name: v for name, v in now.items() if is_plain(v) and name not in buffers}


class Restorable(Recorded):
    """A module whose settings are in its state dict; a base class to put before ``nn.Module``."""

    def restore(self, saved: JsonObject) -> None:
        """Set those of :meth:`settings` that can be set after construction; by default none.

        Settings that it takes out of ``saved`` are not compared.
        """

    def get_extra_state(self) -> Tensor:
        """The class's name and the settings, as JSON in bytes (n,), uint8."""
        return packed_settings(self)

    def set_extra_state(self, state: Tensor) -> None:
        """Set the settings of :meth:`get_extra_state`.

        Raises SettingsError for another class, or a difference in what cannot be set.
        """
        restore_settings(self, state, self.restore)

    def _load_from_state_dict(self, state_dict: dict[str, object], prefix: str, *rest: Any) -> None:
        with reported_settings(self, prefix, rest[-1]):
            super()._load_from_state_dict(state_dict, prefix, *rest)  # type: ignore[misc]


def packed_settings(module: HasSettings) -> Tensor:
    """The class's name and the settings of a module, as JSON in bytes (n,), uint8."""
    return _packed({"class": type(module).__name__} | module.settings())


def restore_settings(
    module: HasSettings, state: Tensor, restore: Callable[[JsonObject], None]
) -> None:
    """Set the settings of a module by ``restore``; see :meth:`Restorable.set_extra_state`."""
    saved, name = _unpacked(state), type(module).__name__
    if saved.get("class") != name:
        raise SettingsError(
            f"the state dict is of the class {saved.get('class')}, this is a {name}; build the "
            "object that was saved"
        )
    del saved["class"]
    try:
        restore(saved)
    except (KeyError, TypeError, ValueError) as error:
        raise SettingsError(
            f"the settings of the {name} in the state dict cannot be taken over ({error!r}); "
            "another version of pyro_mdm saved them"
        ) from error
    current = _unpacked(_packed(module.settings()))
    differing = [
        f"{key} is {saved.get(key, 'absent')} in the state dict and "
        f"{current.get(key, 'absent')} here"
        for key in current | saved
        if key not in current or key not in saved or current[key] != saved[key]
    ]
    if differing:
        raise SettingsError(f"{'; '.join(differing)}: build the {name} as it was saved")


@contextmanager
def reported_settings(module: object, prefix: str, errors: list[str]) -> Iterator[None]:
    """A block in which settings that differ join the errors of a state dict."""
    try:
        yield
    except SettingsError as error:
        errors.append(f"{prefix.removesuffix('.') or type(module).__name__}: {error}")


def is_plain(value: object) -> bool:
    """Whether a value is a number, a string or None."""
    return value is None or isinstance(value, bool | int | float | str)


def described(value: object) -> Any:
    """A setting in JSON's types: an object by its class and settings, a function by its name.

    Two functions of the same name have the same description, whatever they compute.
    """
    if hasattr(value, "settings") and "_given" in vars(value):
        settings = {key: described(v) for key, v in value.settings().items()}
        return {"class": type(value).__name__} | settings
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: described(v) for key, v in value.items()}
    if isinstance(value, list | tuple | nn.ModuleList):
        return [described(v) for v in value]
    return value if is_plain(value) else getattr(value, "__name__", type(value).__name__)


def _packed(content: dict[str, object]) -> Tensor:
    return torch.tensor(list(json.dumps(content).encode()), dtype=torch.uint8)


def _unpacked(state: Tensor) -> JsonObject:
    try:
        return dict(json_of(bytes(state.cpu().tolist())))
    except (AttributeError, TypeError, ValueError) as error:
        raise SettingsError(
            f"the settings in the state dict cannot be read ({error}), expected JSON in a tensor "
            "of bytes; save it again"
        ) from error
