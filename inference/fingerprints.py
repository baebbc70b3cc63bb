"""Fingerprints of data, by which a run knows the data set that it was started on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from inference.checkpoints import raw_bytes
from models import Problem
from models.data import PARTS

CLASSES = "classes"
"""The names of classes beside the fingerprints, where they have any."""
FACTS = "facts"
"""What a run keeps of its data beside the fingerprints of their parts, see
:attr:`models.base.DataSet.facts`."""


def fingerprint(parts: Mapping[str, Tensor]) -> dict[str, Any]:
    """Shape, dtype and SHA-256 of the bytes of each part of a data set; copies none of them."""
    prints = {}
    for name, tensor in parts.items():
        digest = hashlib.sha256()
        for piece in raw_bytes(tensor):
            digest.update(piece)
        prints[name] = {
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "sha256": digest.hexdigest(),
        }
    return prints


def fingerprint_of(problem: Problem) -> dict[str, Any]:
    """The fingerprint of all parts of a data set, and of their contexts, with the names of their
    classes, if any."""
    data = {part: problem.part(part) for part in PARTS}
    tensors = {part: p.data for part, p in data.items()}
    given = {f"{part}_context": p.context for part, p in data.items() if p.context is not None}
    names = problem.class_names
    named = {} if names is None else {CLASSES: {"names": list(names)}}
    return fingerprint(tensors | given) | named


def differences(started: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """The parts of data of which two fingerprints differ, in words."""
    names = [*(name for name in started if name != FACTS), *(n for n in now if n not in started)]
    return [
        _other_classes(started.get(name), now.get(name))
        if name == CLASSES
        else f"{name}: {_in_words(started.get(name))} when it was started, "
        f"{_in_words(now.get(name))} now"
        for name in names
        if started.get(name) != now.get(name)
    ]


def _other_classes(started: object, now: object) -> str:
    """The classes that are new or absent, in words."""
    before, after = (
        list(part.get("names", ())) if isinstance(part, dict) else [] for part in (started, now)
    )
    said = {
        "absent": [name for name in before if name not in after],
        "new": [name for name in after if name not in before],
    }
    words = [f"{what} now: {', '.join(map(str, names))}" for what, names in said.items() if names]
    return f"{CLASSES}, {'; '.join(words) or 'in another order'}"


def _in_words(part: object) -> str:
    """A part of a data set, in a message."""
    if not isinstance(part, dict) or "sha256" not in part:
        return "absent" if part is None else str(part)[:60]
    rest = " ".join(f"{value}" for name, value in part.items() if name != "sha256")
    return f"SHA-256 {str(part['sha256'])[:12]}… {rest}".rstrip()
