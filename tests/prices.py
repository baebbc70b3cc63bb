"""What tests take of the processor, said at their end: a plugin that conftest.py loads.

What the last run measured is kept in pytest's cache. With ``--at-most 0.15`` tests are left out
that took more seconds than that, such as in a second run under other rounding.

Seconds of the clock depend on what else runs; these are the processor's, of the test with its
fixtures and of the processes that it started and that have ended, but for those of
``tests.processes``, which are another's children.
"""

from __future__ import annotations

import resource
import time
from collections import defaultdict
from collections.abc import Iterator

import pytest

SHOWN = 12
KEPT = "prices"
"""What they are called in pytest's cache."""
_prices: dict[str, float] = {}


def _spent() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--at-most",
        type=float,
        metavar="SECONDS",
        help="leave out tests that took more of the processor when they last ran",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    most: float | None = config.getoption("at_most")
    cache = getattr(config, "cache", None)  # none with -p no:cacheprovider
    if most is not None and cache is not None:
        prices: dict[str, float] = cache.get(KEPT, {})
        dear = [item for item in items if prices.get(item.nodeid, 0.0) > most]
        config.hook.pytest_deselected(items=dear)
        items[:] = [item for item in items if prices.get(item.nodeid, 0.0) <= most]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    item.stash[_BEGAN] = _spent()
    yield


_BEGAN = pytest.StashKey[float]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    if call.when == "teardown":  # so that a process that tests for another one sends it along
        item.user_properties.append(("processor_seconds", _spent() - item.stash[_BEGAN]))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "teardown":
        _prices[report.nodeid] = sum(
            v for k, v in report.user_properties if k == "processor_seconds"
        )


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Keep the prices of a run that no rounding noise made dearer."""
    config = session.config
    noisy, works = config.getoption("rounding_noise"), hasattr(config, "workerinput")
    cache = getattr(config, "cache", None)
    if cache is not None and not noisy and not works:
        cache.set(KEPT, cache.get(KEPT, {}) | _prices)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """All of it, the dearest files and the dearest tests."""
    total = sum(_prices.values())
    if total < 60:
        return
    files: dict[str, float] = defaultdict(float)
    for test, price in _prices.items():
        files[test.split("::")[0]] += price
    terminalreporter.section(f"{total / 60:.1f} minutes of the processor")
    for table in (files, _prices):
        for name, price in sorted(table.items(), key=lambda row: -row[1])[:SHOWN]:
            terminalreporter.line(f"{price:7.1f} s  {name}")
