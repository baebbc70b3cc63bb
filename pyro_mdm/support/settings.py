"""Objects that record their constructor's arguments, and state dicts that include settings.

A state dict holds parameters and buffers. Other numbers, such as ``max_log_snr``, decide a bound as
much. So a :class:`Restorable` module puts them beside its tensors, under ``_extra_state``, as JSON
in a tensor of bytes: a state dict still holds tensors alone, for ``torch.load(weights_only=True)``
and safetensors too. Loading restores the settings that can be set and refuses others that differ.
"""

from __future__ import annotations

import inspect
import json
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pyro_mdm.support.files import json_of

__all__ = ["EXTRA_STATE", "Recorded", "Restorable", "SettingsError", "described", "is_plain"]

R = TypeVar("R", bound="Recorded")

EXTRA_STATE = "_extra_state"
"""The end of names of settings in a state dict; PyTorch's name."""


class SettingsError(ValueError):
    """A state dict of a module with other settings."""


class Recorded:
    """An object that records the arguments of its constructor, defaults too; so do subclasses."""

    _given: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls: type[R], *args: Any, **kwargs: Any) -> R:
        self = super().__new__(cls)
        named = {name: _without_graph(value) for name, value in kwargs.items()}
        self.__dict__["_given"] = tuple(map(_without_graph, args)), named
        return self

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the constructor for an object like this one.

        Later changes are in :meth:`settings`, parameters or buffers.
        """
        args, kwargs = self._given
        signature = inspect.signature(type(self).__init__)
        given = signature.bind(self, *args, **kwargs).arguments
        arguments: dict[str, Any] = {}
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

    def settings(self) -> dict[str, Any]:
        """Settings, beside parameters and buffers, on which a bound depends, by name.

        By default the constructor's arguments that are numbers, strings or None, with the current
        values of the attributes of these names, without those that became buffers.
        """
        buffers = vars(self).get("_buffers", {})
        now = {name: vars(self).get(name, v) for name, v in self.arguments().items()}
        return {name: v for name, v in now.items() if is_plain(v) and name not in buffers}


def _without_graph(value: object) -> object:
    return value.detach() if isinstance(value, Tensor) else value


class Restorable(Recorded):
    """A module whose settings are in its state dict; a base class to put before ``nn.Module``."""

    def restore(self, saved: dict[str, Any]) -> None:
        """Set those of :meth:`settings` that can be set after construction; by default none.

        Settings that it takes out of ``saved`` are not compared.

        Args:
            saved: settings of the state dict, by name.
        """

    def get_extra_state(self) -> Tensor:
        """The class's name and the settings, as JSON in bytes (n,), uint8."""
        return _packed({"class": type(self).__name__} | self.settings())

    def set_extra_state(self, state: Tensor) -> None:
        """Set the settings from a state dict.

        Args:
            state: result of :meth:`get_extra_state`, (n,) uint8.

        Raises:
            SettingsError: settings of another class, or a difference in one that cannot be set.
        """
        saved, name = _unpacked(state), type(self).__name__
        if saved.get("class") != name:
            raise SettingsError(
                f"the state dict is of the class {saved.get('class')}, this is a {name}; build the "
                "object that was saved"
            )
        del saved["class"]
        try:
            self.restore(saved)
        except (KeyError, TypeError, ValueError) as error:
            raise SettingsError(
                f"the settings of the {name} in the state dict cannot be taken over ({error!r}); "
                "another version of pyro_mdm saved them"
            ) from error
        current = _unpacked(_packed(self.settings()))
        differing = [
            f"{key} is {saved.get(key, 'absent')} in the state dict and "
            f"{current.get(key, 'absent')} here"
            for key in current | saved
            if key not in current or key not in saved or current[key] != saved[key]
        ]
        if differing:
            raise SettingsError(f"{'; '.join(differing)}: build the {name} as it was saved")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        try:
            super()._load_from_state_dict(state_dict, prefix, *rest)  # type: ignore[misc]
        except SettingsError as error:
            error_msgs = rest[-1]
            error_msgs.append(f"{prefix.removesuffix('.') or type(self).__name__}: {error}")


def is_plain(value: object) -> bool:
    """Whether a value is a number, a string or None."""
    return value is None or isinstance(value, bool | int | float | str)


def described(value: object) -> Any:
    """A setting in JSON's types: an object by its class and settings, a function by its name.

    Two functions of the same name have the same description, whatever they compute.
    """
    if isinstance(value, Recorded):
        settings = {key: described(v) for key, v in value.settings().items()}
        return {"class": type(value).__name__} | settings
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: described(v) for key, v in value.items()}
    if isinstance(value, list | tuple | nn.ModuleList):
        return [described(v) for v in value]
    return value if is_plain(value) else getattr(value, "__name__", type(value).__name__)


def _packed(content: dict[str, Any]) -> Tensor:
    return torch.tensor(list(json.dumps(content).encode()), dtype=torch.uint8)


def _unpacked(state: Tensor) -> dict[str, Any]:
    try:
        return dict(json_of(bytes(state.cpu().tolist())))
    except (AttributeError, TypeError, ValueError) as error:
        raise SettingsError(
            f"the settings in the state dict cannot be read ({error}), expected JSON in a tensor "
            "of bytes; save it again"
        ) from error
