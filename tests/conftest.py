"""What every test starts from: fixed seeds, no Pyro parameters of another test, one thread."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import inference  # noqa: F401  # first: it sets how threads wait, before torch is loaded

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: also for processes that tests start

import pyro
import pytest
import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    parser.addoption(
        "--seed-offset",
        type=int,
        default=0,
        help="add this to every seed: a statistical test must pass whatever it is",
    )
    if not pluginmanager.hasplugin("xdist"):  # -p no:xdist: pyproject's options do nothing
        for name in ("--numprocesses", "--dist"):
            parser.addoption(name, help="has no effect without pytest-xdist")


def pytest_configure(config: pytest.Config) -> None:
    """Shift the seeds of torch before any test or module of tests draws a number."""
    offset: int = config.getoption("seed_offset")
    if offset == 0:
        return
    manual_seed = torch.manual_seed

    class Generator(torch.Generator):
        def manual_seed(self, seed: int) -> torch.Generator:
            return super().manual_seed(seed + offset)

    torch.manual_seed = lambda seed: manual_seed(seed + offset)
    torch.Generator = Generator


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, with an offset, what compares this process with others: it is this one's alone."""
    if config.getoption("seed_offset"):
        for item in items:
            if item.get_closest_marker("other_processes"):
                item.add_marker(pytest.mark.skip("the seeds of other processes are not shifted"))


@pytest.fixture(autouse=True)
def _fresh_start() -> None:
    pyro.set_rng_seed(0)
    pyro.clear_param_store()


@pytest.fixture
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes most of the time of a short run is left out: figures, and most of sampling.

    The picture of samples shows their bytes instead, so that it still tells samples apart.
    """
    from inference import environment, report

    for name in ("draw_training", "draw_end"):
        monkeypatch.setattr(report, name, lambda *arguments: None)
    monkeypatch.setattr(report, "POINTS", 8)
    monkeypatch.setattr(report, "SAMPLES", 2)
    monkeypatch.setattr(report.sample, "picture", _picture)
    monkeypatch.setattr(report.sample, "draw", _quickly(report.sample.draw))
    monkeypatch.setattr(environment, "_packages", _once(environment._packages))


def _quickly(draw: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def few_steps(*arguments: Any, steps: int = 256, **options: Any) -> torch.Tensor:
        return draw(*arguments, steps=min(steps, 8), **options)

    return few_steps


def _picture(problem: object, x: torch.Tensor, **options: object) -> torch.Tensor:
    return x.flatten(1).contiguous().view(torch.uint8).expand(3, -1, -1)


@functools.cache
def _once(function: Callable[[], object]) -> Callable[[], object]:
    found = function()
    return lambda: found
