"""Seeds: one for each use of randomness."""

from __future__ import annotations

import hashlib


def seed_from(seed: int, *labels: object) -> int:
    """A seed for one use of randomness, told apart from all others by its labels."""
    text = repr((seed, *labels)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
