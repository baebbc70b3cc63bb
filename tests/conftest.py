"""What every test starts from: fixed seeds, no Pyro parameters of another test, one thread."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path

import inference  # noqa: F401  # first: it sets how threads wait, before torch is loaded

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: also for processes that tests start

import pyro
import pytest
import torch
from filelock import FileLock

from inference import trust
from tests.programs.running import TINY
from tests.rounding import RoundingNoise

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

pytest_plugins = ["tests.prices"]


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    parser.addoption(
        "--seed-offset",
        type=int,
        default=0,
        help="add this to every seed: a statistical test must pass whatever it is",
    )
    parser.addoption(
        "--rounding-noise",
        action="store_true",
        help="move results by up to a unit in the last place: no test may hang on how it rounds",
    )
    if not pluginmanager.hasplugin("xdist"):  # -p no:xdist: pyproject's options do nothing
        for name in ("--numprocesses", "--dist"):
            parser.addoption(name, help="has no effect without pytest-xdist")


def pytest_configure(config: pytest.Config) -> None:
    """Leave out slow tests where none are named, and shift the seeds before anything is drawn."""
    named = config.args_source is pytest.Config.ArgsSource.ARGS
    if not config.option.markexpr and not named:
        config.option.markexpr = "not slow"
    offset: int = config.getoption("seed_offset")
    if offset == 0:
        return
    import_module("pyro_mdm.support.splits")  # by a seed of its own, which is not shifted
    manual_seed = torch.manual_seed

    from tests.elsewhere import OfGenerators

    class Generator(torch.Generator, metaclass=OfGenerators):
        def manual_seed(self, seed: int) -> torch.Generator:
            return super().manual_seed(seed + offset)

    torch.manual_seed = lambda seed: manual_seed(seed + offset)
    torch.Generator = Generator


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what compares this process with others where seeds or rounding are this one's."""
    if config.getoption("seed_offset") or config.getoption("rounding_noise"):
        for item in items:
            if item.get_closest_marker("other_processes"):
                item.add_marker(pytest.mark.skip("the seeds and rounding are this process's"))


def pytest_collection_finish() -> None:
    """Modules and tests stay to the end: no collection of garbage is to walk through them."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)  # garbage is collected less often


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test and its fixtures on a processor that rounds otherwise, where that is asked for."""
    noisy = item.config.getoption("rounding_noise") and not item.get_closest_marker("without_noise")
    with RoundingNoise() if noisy else nullcontext():
        yield


@pytest.fixture(autouse=True)
def _fresh_start() -> None:
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    pyro.enable_validation(True)  # a test, or a package that it loads, may have turned it off
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # a program may have chosen others


@pytest.fixture(scope="session", autouse=True)
def _trusted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What code is trusted is this session's, in all of its processes, and not the user's."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(trust.FOLDER, str(root / "trusted"))
        yield


@pytest.fixture(scope="session")
def made_once(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, Callable[[Path], object]], Path]:
    """A folder that one process of the session makes and all of them read, by its name.

    The others wait. If the one that makes it is lost, so is its lock, and the next begins anew.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def folder_of(name: str, make: Callable[[Path], object]) -> Path:
        folder, made = root / name, root / f"{name}.made"
        with FileLock(root / f"{name}.lock"):
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                made.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def tiny(made_once: Callable[..., Path]) -> str:
    """The problem of most tests of programs, as a person names one of a file of their own."""
    folder = made_once("tiny", lambda folder: (folder / "tiny.py").write_text(TINY))
    return f"{folder / 'tiny.py'}:Tiny"


@pytest.fixture(scope="module")
def brief() -> Iterator[None]:
    """As ``few_pictures``, for what several tests of a file look at."""
    from tests.brief import be_brief

    with pytest.MonkeyPatch.context() as patch:
        be_brief(patch)
        yield


@pytest.fixture
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes most of the time of a short run is left out."""
    from tests.brief import be_brief

    be_brief(monkeypatch)
