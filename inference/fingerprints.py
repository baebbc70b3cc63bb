"""Fingerprints of data, by which a run knows the data set that it was started on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from inference.checkpoints import raw_bytes


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


def differences(started: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """The parts of data of which two fingerprints differ, in words."""
    names = [*started, *(name for name in now if name not in started)]
    return [
        f"{name}: {_in_words(started.get(name))} when it was started, "
        f"{_in_words(now.get(name))} now"
        for name in names
        if started.get(name) != now.get(name)
    ]


def _in_words(part: object) -> str:
    """A part of a data set, in a message."""
    if not isinstance(part, dict) or "sha256" not in part:
        return "absent" if part is None else str(part)
    rest = " ".join(f"{value}" for name, value in part.items() if name != "sha256")
    return f"SHA-256 {str(part['sha256'])[:12]}… {rest}".rstrip()
