"""config.yaml: the version that began a run, and every setting of it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from inference.folders.checkpoints import RunError
from inference.settings.options import Machine, Training
from pyro_mdm import __version__
from pyro_mdm.pretrained import names_instead
from pyro_mdm.support.files import check_content, read_file


class Settings(dict[str, Any]):
    """The settings of a run; a missing one is a RunError that explains it."""

    def __missing__(self, name: str) -> Any:
        raise RunError(
            f"config.yaml lacks the setting {name!r}, expected all that training wrote; put it back"
        )


PENDING = ".config.yaml.new"
"""The settings of a run that begins; while they have this name, files of an earlier one go."""

VERSION = "version"
"""The version of pyro_mdm, beside the settings."""

OWN_TABLE = "table.json"
"""The ``data`` of a run that was given a table in Python, which is in this file of its folder."""


def load_yaml(text: bytes | str) -> Any:
    """What a text of YAML says, read by libyaml where it is, which takes a tenth of the time.

    Raises:
        yaml.YAMLError: no YAML, or what :func:`~pyro_mdm.support.files.json_of` refuses of JSON.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    try:
        content = loader.get_single_data()
        check_content(content)
        return content
    except (ValueError, RecursionError, OverflowError) as error:
        raise yaml.YAMLError(str(error)) from error
    finally:
        loader.dispose()


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings in a run folder.

    Raises:
        RunError: it is no run folder, another version wrote it, or the settings cannot be read.
    """
    path = folder / (PENDING if (folder / PENDING).exists() else "config.yaml")
    if not path.is_file():
        near = sorted(str(p.parent) for p in folder.parent.glob("*/config.yaml"))
        hint = f"; runs beside it: {', '.join(near[:10])}" if near else ""
        hint += names_instead(folder)
        raise RunError(f"{folder} is not a run folder: it has no config.yaml{hint}")
    try:
        config = load_yaml(read_file(path))
    except yaml.YAMLError as error:
        raise RunError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(config, dict):
        raise RunError(f"{path} holds {type(config).__name__}, expected settings as name: value")
    version = config.pop(VERSION, None)
    if _series(version) != _series(__version__):
        other = "a version before 0.2" if version is None else f"version {version}"
        raise RunError(
            f"{path} is of {other} of pyro_mdm, expected {__version__}; open it with {other}, or "
            f"train anew by its settings: python -m inference.train --config {path}"
        )
    kept_here = config.get("data") == OWN_TABLE
    return config | {"data": str(folder.resolve() / OWN_TABLE)} if kept_here else config


def _series(version: object) -> list[str]:
    """The numbers of a version whose runs open: the first two before 1.0, and the first after."""
    numbers = str(version).split(".")
    return numbers[: 1 + (numbers[0] == "0")]


STATE: dict[str, Any] = {
    **{"step": int, "weights": str, "seconds": float, "window": list[float], "unmeasured": bool},
    **{"averages": int, "loss_scale": dict[str, float]},
    **{"config": dict[str, object], "data": dict[str, dict[str, object]]},
    **{"record": dict[str, dict[str, int | str]], "lengthened": list[list[int]]},
}
"""What a checkpoint of a run has beside its tensors, with types."""

MACHINE = tuple(field.name for field in fields(Machine))
CODE = ("model", "guide", "learned_from", "score", "likelihood", "sampler", "columns")
"""Settings that may name a file of code."""


def check_settings(where: Path, config: Mapping[str, Any], trained: Mapping[str, Any]) -> None:
    """Compare a run's settings with those that its weights were trained with.

    Args:
        where: the file of the settings, for messages.
        trained: the settings in the checkpoint, which a checksum covers.

    Raises:
        RunError: a setting differs. The machine, and the folder of a file of code, may differ with
            a warning, and the place of the data without one: their content is compared.
    """
    moved: list[str] = []
    others: list[str] = []
    for name in (field.name for field in fields(Training) if field.name != "data"):
        before, now = trained.get(name), config[name]
        if _same(before, now):
            continue
        words = f"{name}: {before!r} in the checkpoint, {now!r} in {where.name}"
        code = name in CODE and ":" in str(now) and _file(before) == _file(now)
        (moved if code or name in MACHINE else others).append(words)
    if others:
        lines = "\n  ".join(others)
        raise RunError(
            f"{where} is not what the weights were trained with; these settings differ:\n  {lines}"
            f"\nSet them back. Weights of other settings come from a new run: python -m "
            f"inference.train --config {where}"
        )
    if moved:
        warnings.warn(
            f"{where} differs from the checkpoint: {'; '.join(moved)}. The results may "
            "differ from those of the settings of the checkpoint",
            stacklevel=2,
        )


def _file(name: object) -> str:
    """``file.py:Name`` without the folder of the file, alone or as kinds of columns."""
    folders = r'=[^=,"]*/([^/=,"]+\.py:)'
    return re.sub(folders, r"=\1", str(name)) if "=" in str(name) else str(name).rpartition("/")[2]


def _same(one: object, other: object) -> bool:
    """Whether two settings are the same: true is not 1, and 1 is 1.0."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other and isinstance(one, bool) == isinstance(other, bool)
