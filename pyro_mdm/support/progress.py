"""Progress of long work: a bar on a terminal, and lines at intervals in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

from tqdm.asyncio import tqdm_asyncio
from tqdm.auto import tqdm

__all__ = [
    "LogProgress",
    "Progress",
    "is_hidden",
    "progress_bar",
    "say",
    "show_estimate",
    "without_progress",
]

FIRST_LINE, NEXT_LINE = 10.0, 30.0
"""The time to the first line of a log, and the least time between two lines, in seconds."""


_hidden: ContextVar[bool] = ContextVar("hidden", default=False)


@contextmanager
def without_progress() -> Iterator[None]:
    """Show no count, whoever asks for one."""
    token = _hidden.set(True)
    try:
        yield
    finally:
        _hidden.reset(token)


def is_hidden() -> bool:
    """Whether this is within :func:`without_progress`."""
    return _hidden.get()


class Progress(Protocol):
    """A count of work done, shown until it is closed, explicitly or at the end of ``with``."""

    def update(self, n: int = 1) -> object:
        """Count ``n`` more."""

    def set_postfix_str(self, s: str) -> None:
        """Show a text beside the count from now on."""

    def close(self) -> None:
        """End the count."""

    def __enter__(self) -> Progress: ...

    def __exit__(self, *error: object) -> None: ...


def say(text: str) -> None:
    """Write a line on standard error, above any bar, unless progress is hidden."""
    if not is_hidden():
        tqdm.write(text, file=sys.stderr)


def show_estimate(bar: Progress, seconds: float) -> None:
    """Show about how long the work of a count takes in all, once: beside a bar, or as the first
    line of a log, if the work takes so long that there are others."""
    words = f"about {tqdm.format_interval(seconds)} in all"
    if not isinstance(bar, LogProgress):
        bar.set_postfix_str(words)
    elif seconds >= FIRST_LINE:
        bar.write(words)


def progress_bar(
    total: int | None,
    what: str,
    units: str,
    *,
    initial: int = 0,
    leave: bool = False,
    delay: float = 0.0,
    shown: bool = True,
) -> Progress:
    """A count on standard error of how many of ``total`` units (None: unknown) of work are done.

    A terminal shows it after ``delay`` seconds; ``leave`` keeps its last state, and the time of
    short work in a log.
    """
    shown = shown and not is_hidden()
    in_notebook = tqdm is not tqdm_asyncio
    if shown and not in_notebook and not sys.stderr.isatty():
        return LogProgress(total, what, units, initial, leave)
    return tqdm(
        total=total,
        desc=what,
        unit=f" {units}",
        initial=initial,
        leave=leave,
        delay=delay,
        disable=not shown,
    )


@dataclass
class LogProgress:
    """A line on standard error after ``FIRST_LINE`` seconds, then at most every ``NEXT_LINE``, and
    at the end if there was one before or if ``leave``."""

    total: int | None
    what: str
    units: str
    initial: int = 0
    leave: bool = False

    def __post_init__(self) -> None:
        self.done, self._file, self._began = self.initial, sys.stderr, monotonic()
        self._due, self._postfix = self._began + FIRST_LINE, ""

    def update(self, n: int = 1) -> None:
        self.done += n
        if (now := monotonic()) < self._due or self.done == self.initial:
            return
        to_go = ""
        if self.total is not None:
            if self.done >= self.total:
                return
            left = (now - self._began) * (self.total - self.done) / (self.done - self.initial)
            to_go = f", {tqdm.format_interval(left)} to go"
        self._write_count(to_go)
        self._due, self.leave = now + NEXT_LINE, True

    def write(self, text: str) -> None:
        """Write a line about the work now."""
        print(f"{self.what}: {text}", file=self._file, flush=True)

    def set_postfix_str(self, s: str) -> None:
        """Add a text to every line from now on."""
        self._postfix = s

    def close(self) -> None:
        """Write the last line, once."""
        if self.leave:
            self._write_count()
        self.leave = False

    def __enter__(self) -> LogProgress:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _write_count(self, to_go: str = "") -> None:
        of_all = "" if self.total is None else f" of {self.total:,}"
        time = tqdm.format_interval(monotonic() - self._began)
        postfix = f", {self._postfix}" if self._postfix else ""
        self.write(f"{self.done:,}{of_all} {self.units} in {time}{to_go}{postfix}")
