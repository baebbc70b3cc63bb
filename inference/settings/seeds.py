"""Seeds for independent uses of randomness."""

from __future__ import annotations

import hashlib


def seed_from(seed: int, *labels: object) -> int:
    """A seed for the use of randomness that has these labels."""
    text = repr((seed, *labels)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
