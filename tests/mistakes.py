"""Mistakes as tables: calls, and a fragment of what each is answered with; and malice."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Kinds = type[BaseException] | tuple[type[BaseException], ...]


def refused(kind: Kinds, *table: tuple[Callable[[], object], str]) -> None:
    """Each call raises this kind of error, whose message matches its regular expression."""
    for call, fragment in table:
        try:
            call()
        except kind as error:
            assert re.search(fragment, str(error)), f"expected {fragment!r}, found: {error}"
        else:
            pytest.fail(f"nothing was refused; expected {kind}: {fragment}")


class Bomb:
    """Unpickling this makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)
