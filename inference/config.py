"""config.yaml: every setting of a run, also of one that an older version began."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from inference.checkpoints import RunError
from pyro_mdm.pretrained import names_instead

LATER: dict[str, Any] = {
    "learned_from": None,
    "figures": True,
    "data": None,
    "test_size": None,
    "columns": None,
    "image_size": None,
    "network": None,
    "flip": False,
    "decay": "cosine",
    "compile": None,
    "channels_last": False,
    "step_size": None,
    "points": None,
    "solver": None,
    "objective": None,
    "probes": None,
    "probe_law": None,
    "backpropagation": None,
    "stationary_variance": None,
    "logit_margin": None,
    "decoder": None,
    "decoder_in_loss": True,
    "times": None,
    "maps": None,
    "likelihood": None,
    "time_varying": False,
    "learn_ends": None,
    "learn_stationary": False,
    "condition": None,
    "context_dropout": None,
    "optimizer": "adam",
    "split_seed": None,
    "threads": None,
    "patience": None,
}
"""Settings younger than some run folders: what inference.train did before it had them."""

REMOVED: dict[str, Any] = {"members": 1, "augment": 0.0}
"""Options that inference.train had and that did not pay: the values at which they did nothing."""


class Settings(dict[str, Any]):
    """The settings of a run; one that is missing is a mistake with an explanation."""

    def __missing__(self, name: str) -> Any:
        raise RunError(
            f"config.yaml lacks the setting {name!r}; another version of inference.train wrote it. "
            "Add the setting, or use the version in environment.json"
        )


def without_removed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without the options of :data:`REMOVED` (RunError: one of them did something)."""
    for name, nothing in REMOVED.items():
        if (value := config.get(name, nothing)) != nothing:
            raise RunError(
                f"{name} is {value}, an option that was removed since it did not pay, as "
                "docs/measured/recipes.md has it. Leave it out for a new run; a "
                "run that was trained with it opens in the version that its environment.json says. "
                "The ladder can still train so: see tests/benchmarks/ladder/few_data.py"
            )
    return {name: value for name, value in config.items() if name not in REMOVED}


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings in a run folder (RunError: it is none, or they cannot be read)."""
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
        return LATER | without_removed(config)
    except RunError as error:
        raise RunError(f"{path}: {error}") from None
