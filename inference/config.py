"""config.yaml: every setting of a run, also of one that an older version began."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from inference.checkpoints import RunError
from inference.options import Training
from pyro_mdm.pretrained import names_instead

YOUNGER = (
    *("learned_from", "figures", "data", "test_size", "columns", "image_size", "network", "flip"),
    *("decay", "compile", "channels_last", "step_size", "points", "objective"),
    *("stationary_variance", "logit_margin", "decoder_in_loss", "times", "maps"),
    *("likelihood", "time_varying", "learn_ends", "learn_stationary", "condition"),
    *("context_dropout", "split_seed", "threads", "patience"),
)
"""Settings that older run folders lack, which were trained with their defaults."""

LATER: dict[str, Any] = {f.name: f.default for f in fields(Training) if f.name in YOUNGER}
LATER |= {"optimizer": "adam"}
"""The values that inference.train used before it had these settings."""

REMOVED: dict[str, Any] = {"members": 1, "augment": 0.0, "weight_decay": 0.0}
REMOVED |= dict.fromkeys(("solver", "probes", "probe_law", "backpropagation"))
"""Former options of inference.train, with the values at which they had no effect."""

RENAMED = {"decoder": "likelihood"}
"""Former names of options of inference.train, with those of today."""


class Settings(dict[str, Any]):
    """The settings of a run; a missing one is a RunError that explains it."""

    def __missing__(self, name: str) -> Any:
        raise RunError(
            f"config.yaml lacks the setting {name!r}; another version of inference.train wrote it. "
            "Add the setting, or use the version in environment.json"
        )


def without_removed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their names of today, without the options of :data:`REMOVED`.

    Raises:
        RunError: one of these had an effect.
    """
    for name, nothing in REMOVED.items():
        if (value := config.get(name, nothing)) != nothing:
            raise RunError(
                f"{name} is {value}, an option that was removed: {_instead(name)}. Leave it out "
                "for a new run; a run that was trained with it opens in the version that its "
                "environment.json says"
            )
    kept = {name: config[name] for name in config if name not in REMOVED | RENAMED}
    renamed = {RENAMED[name]: config[name] for name in RENAMED if config.get(name) is not None}
    return kept | renamed


def _instead(name: str) -> str:
    if name in ("members", "augment", "weight_decay"):
        return (
            "it did not pay, as docs/measured/recipes.md has it, and the programs "
            "of tests/benchmarks/ladder can still train so"
        )
    return "a guide's own Simulation says how it is simulated, see docs/guide/simulated.md"


OWN_TABLE = "table.json"
"""The ``data`` of a run that was given a table in Python, which is in this file of its folder."""


def _with_kinds(config: dict[str, Any]) -> dict[str, Any]:
    """Settings that say what every column of a table is: those of older runs left to the table
    which are continuous, ordinal and categorical, and there were no other kinds."""
    said = config.get("columns") or ""
    if config.get("model") != "tabular" or said.startswith("*="):
        return config
    return config | {"columns": ",".join(filter(None, ["*=plain", said]))}


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings in a run folder (RunError: it is no run folder, or they cannot be read)."""
    path = folder / "config.yaml"
    if not path.is_file():
        near = sorted(str(p.parent) for p in folder.parent.glob("*/config.yaml"))
        known = f"; runs beside it: {', '.join(near[:10])}" if near else ""
        known += names_instead(folder)
        raise RunError(f"{folder} is not a run folder: it has no config.yaml{known}")
    try:
        config = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as error:
        raise RunError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(config, dict):
        raise RunError(f"{path} holds {type(config).__name__}, expected settings as name: value")
    try:
        config = _with_kinds(LATER | without_removed(config))
    except RunError as error:
        raise RunError(f"{path}: {error}") from None
    own = config.get("data") == OWN_TABLE
    return config | {"data": str(folder.resolve() / OWN_TABLE)} if own else config
