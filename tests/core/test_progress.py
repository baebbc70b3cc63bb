"""What long work shows: a bar on a terminal, lines in a log."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

import pytest
from tqdm.auto import tqdm

from pyro_mdm import CLD
from pyro_mdm.evaluation.comparison import log_likelihood
from pyro_mdm.support.progress import LogProgress, Progress, progress_bar
from tests.known_bound import data, denoiser, programs


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    """The clock of all progress, which writes where the test can read it."""
    clock = Clock()
    monkeypatch.setattr("pyro_mdm.support.progress.monotonic", clock)
    return clock


@pytest.fixture
def lines(monkeypatch, clock) -> Callable[..., list[str]]:
    """The lines of work whose every unit takes so long."""

    def of_work(total: int, seconds: float, **options) -> list[str]:
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        with LogProgress(total, "training", "steps", **options) as bar:
            for step in range(options.get("initial", 0), total):
                clock.now += seconds
                bar.set_postfix_str(f"loss {step + 1}")
                bar.update()
        return sys.stderr.getvalue().splitlines()

    return of_work


def test_a_log_has_a_line_after_ten_seconds_then_every_thirty_and_the_end(lines) -> None:
    assert lines(90, 1.0) == [
        "training: 10 of 90 steps in 00:10, 01:20 to go, loss 10",
        "training: 40 of 90 steps in 00:40, 00:50 to go, loss 40",
        "training: 70 of 90 steps in 01:10, 00:20 to go, loss 70",
        "training: 90 of 90 steps in 01:30, loss 90",
    ]
    assert len(lines(100_000, 1.0)) < 100_000 / 30 + 2


def test_work_that_was_begun_before_is_timed_by_what_is_done_now(lines) -> None:
    first, *_ = lines(1000, 1.0, initial=900)
    assert first == "training: 910 of 1,000 steps in 00:10, 01:30 to go, loss 910"


def test_short_work_says_nothing_unless_its_end_is_wanted(lines) -> None:
    assert lines(9, 1.0) == []
    assert lines(9, 1.0, leave=True) == ["training: 9 of 9 steps in 00:09, loss 9"]


def test_work_that_ends_early_says_where(monkeypatch, clock) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    bar = LogProgress(100, "evaluating", "calls", leave=True)
    bar.update(0)
    bar.update(25)
    clock.now += 3
    bar.close()
    bar.close()
    assert sys.stderr.getvalue() == "evaluating: 25 of 100 calls in 00:03\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_and_everything_else_lines(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress_bar(10, "training", "steps") as bar:
        assert isinstance(bar, tqdm)
        bar.update()
    assert "\r" in sys.stderr.getvalue() and "10" in sys.stderr.getvalue()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar(10, "training", "steps", leave=True) as bar:
        assert isinstance(bar, LogProgress)
        bar.update(10)
    assert sys.stderr.getvalue() == "training: 10 of 10 steps in 00:00\n"


@pytest.mark.parametrize("file", [Terminal, io.StringIO])
def test_nothing_is_shown_where_nobody_asks(monkeypatch, file) -> None:
    monkeypatch.setattr(sys, "stderr", file())
    with progress_bar(10, "training", "steps", leave=True, shown=False) as bar:
        bar.set_postfix_str("loss 1")
        bar.update(10)
    assert sys.stderr.getvalue() == ""


def test_an_evaluation_shows_each_of_its_parts(monkeypatch) -> None:
    asked = []

    def recorded(total: int, what: str, units: str, *, shown: bool, **options) -> Progress:
        asked.append((what, units, total, shown))
        return progress_bar(total, what, units, shown=False)

    monkeypatch.setattr("pyro_mdm.evaluation.closed_form.progress_bar", recorded)
    log_likelihood(*programs(CLD(max_log_snr=3.0), denoiser(0.5)), data(20), draws=1, progress=True)
    assert asked[0] == ("baseline", "dimensions", 3, True)
    assert asked[1] == ("reconstruction", "data", 20, True)
    assert asked[-1] == ("evaluating", "calls", 40, True)  # a datum is drawn twice
