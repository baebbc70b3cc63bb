"""Fingerprints of data, by which a run knows the data set that it was started on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import Problem
from models.data import PARTS

CLASSES = "classes"
"""The names of classes beside the fingerprints, where they have any."""
FACTS = "facts"
"""What a run keeps of its data beside the fingerprints of their parts, see
:attr:`models.base.DataSet.facts`."""

SUMS = ("sum", "size")
"""What parts of computed numbers have beside their SHA-256, see :func:`fingerprint`."""
PLACES = 64
"""Units in the last place of a typical number by which computed numbers may be off."""
PIECE = 1 << 20
"""Numbers that are summed at once."""


def fingerprint(parts: Mapping[str, Tensor], *, exact: bool = False) -> dict[str, Any]:
    """Shape, dtype and SHA-256 of the bytes of each part of a data set; copies no contiguous one.

    Numbers that are drawn or computed differ between processors in their last places, and so their
    bytes. Unless they are ``exact``, float32 and float64 have sums too, which hardly do.
    """
    prints: dict[str, Any] = {}
    for name, tensor in parts.items():
        plain = tensor.detach().cpu().resolve_conj().resolve_neg()
        plain = plain.view(torch.int16) if plain.dtype == torch.bfloat16 else plain
        digest = hashlib.sha256(np.ascontiguousarray(plain.numpy()).reshape(-1).data)
        prints[name] = {
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "sha256": digest.hexdigest(),
        }
        if tensor.dtype in (torch.float32, torch.float64) and not exact:
            prints[name] |= _sums(tensor)
    return prints


def fingerprint_of(problem: Problem) -> dict[str, Any]:
    """The fingerprint of all parts of a data set, and of their contexts, with the names of their
    classes, if any."""
    data = {name: problem.part(name) for name in PARTS}
    tensors = {name: p.data for name, p in data.items()}
    given = {f"{name}_context": p.context for name, p in data.items() if p.context is not None}
    names = problem.class_names
    named = {} if names is None else {CLASSES: {"names": list(names)}}
    return fingerprint(tensors | given, exact=problem.exact) | named


def _sums(tensor: Tensor) -> dict[str, float]:
    """Σ w_i x_i, with weights of either sign, ½ to 1, that differ from place to place, and
    (Σ x_i²)^{1/2}; nothing where a number is not finite."""
    total, squares, start = 0.0, 0.0, 0
    for piece in tensor.detach().flatten().split(PIECE):
        x, place = piece.cpu().double(), torch.arange(start, start + len(piece))
        # Knuth's multiplicative hash, so that neighbours have unlike weights
        u = (place * 0x9E3779B1 % 2**32).double() / 2**31 - 1
        total += float(((u + u.sign()) / 2 * x).sum())
        squares += float(x.square().sum())
        start += len(piece)
    sums = dict(zip(SUMS, (total, math.sqrt(squares)), strict=True))
    return sums if math.isfinite(squares) else {}


def differences(started: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """The parts of data of which two fingerprints differ, in words; by more than rounding, where
    both have sums."""
    names = [*(name for name in started if name != FACTS), *(n for n in now if n not in started)]
    return [
        _other_classes(started.get(name), now.get(name))
        if name == CLASSES
        else f"{name}: {_in_words(started.get(name))} when it was started, "
        f"{_in_words(now.get(name))} now"
        for name in names
        if not _alike(started.get(name), now.get(name))
    ]


def _alike(started: object, now: object) -> bool:
    """Errors of single numbers do not add up in the sum with weights: it moves as one number of
    the size of all would, while a number that is changed moves it by that change."""
    if not (isinstance(started, dict) and isinstance(now, dict) and "sha256" in now):
        return started == now
    if any(started.get(name) != now.get(name) for name in ("shape", "dtype")):
        return False
    if started.get("sha256") == now.get("sha256") or "sum" not in now:
        return started.get("sha256") == now.get("sha256")
    unit = torch.finfo(getattr(torch, now["dtype"])).eps
    tolerance = PLACES * unit * (now["size"] + abs(now["sum"]))
    return all(
        isinstance(then := started.get(name), float) and abs(then - now[name]) <= tolerance
        for name in SUMS
    )


def _other_classes(started: object, now: object) -> str:
    """The classes that are new or absent, in words."""
    before, after = (
        list(classes.get("names", ())) if isinstance(classes, dict) else []
        for classes in (started, now)
    )
    said = {
        "absent": [name for name in before if name not in after],
        "new": [name for name in after if name not in before],
    }
    words = [f"{what} now: {', '.join(map(str, names))}" for what, names in said.items() if names]
    return f"{CLASSES}, {'; '.join(words) or 'in another order'}"


def _in_words(entry: object) -> str:
    """A part of a data set, in a message."""
    if not isinstance(entry, dict) or "sha256" not in entry:
        return "absent" if entry is None else str(entry)[:60]
    rest = " ".join(f"{v}" for name, v in entry.items() if name not in ("sha256", *SUMS))
    return f"SHA-256 {str(entry['sha256'])[:12]}… {rest}".rstrip()
