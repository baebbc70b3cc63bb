"""Saved files that say something else than what was saved, under the right checksum."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open

from pyro_mdm.support.saved import read_saved, write_saved


def kind_of(path: Path) -> str:
    with safe_open(path, "pt") as file:
        return str(json.loads(file.metadata()["pyro_mdm"])["kind"])


def rewrite(path: Path, change: Callable[[Any, Any], object]) -> None:
    """Change the content and the tensors of a file in place, by a function of both."""
    kind = kind_of(path)
    content, tensors = read_saved(path, kind)
    change(content, tensors)
    write_saved(path, kind, content, tensors)
