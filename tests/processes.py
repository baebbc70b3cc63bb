"""Programs in processes of their own, forked from one that has loaded what they import.

``python -m inference.train`` takes seconds to load torch and what comes with it. A server that each
process of tests starts once has them, and every :class:`Program` is a fork of it. What a program
does before torch is loaded is not seen here: tests of that start a Python of their own.
"""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
FORK = multiprocessing.get_context("forkserver")
LOADED = [
    *("inference.train", "inference.compare", "inference.inspect"),
    # what they load where they need it
    *(
        "inference.training.report",
        "lightning_fabric",
        "sklearn.datasets",
        "torch.utils.tensorboard",
    ),
]
FORK.set_forkserver_preload(LOADED)


def _nothing() -> None:
    """What a process does before its program."""


class Program:
    """A program that runs, with the methods of :class:`subprocess.Popen` that tests use.

    Args:
        module: what ``python -m`` would run, or the path of a script.
        words: its arguments.
        folder: where it runs.
        environment: more of it than this process has.
        before: what the process does first; a function of a module.
    """

    def __init__(
        self,
        module: str,
        *words: object,
        folder: Path = ROOT,
        environment: Mapping[str, str] | None = None,
        before: Callable[[], object] = _nothing,
    ) -> None:
        said = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, said)
        self._files = [Path(said) / name for name in ("out", "err")]
        variables = {**os.environ, **(environment or {})}
        _serve()
        self._process = FORK.Process(
            target=_run,
            args=(module, [str(word) for word in words], folder, variables, self._files, before),
        )
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, minus the number of a signal, or None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def terminate(self) -> None:
        self._process.terminate()

    def wait(self) -> None:
        self._process.join()

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """What it wrote to both outputs, once it has ended."""
        self._process.join(timeout)
        if self.returncode is None:
            self.kill()
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        out, err = (file.read_text() for file in self._files)
        return out, err


def signalled(
    number: int, count: int, words: str, *before: Callable[[], object]
) -> Callable[[], object]:
    """What a program does first so that it gets a signal at a moment of its work, not of a clock.

    Args:
        number: of the signal.
        count: how often it opens a file for writing, or moves one, until it gets the signal.
        words: which the paths of these files contain.
        before: what it does before that.
    """
    return functools.partial(_signalled, number, count, words, before)


def _signalled(number: int, count: int, words: str, before: Sequence[Callable[[], object]]) -> None:
    for do in before:
        do()
    left = count

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        writes = event == "os.rename" or (event == "open" and arguments[2] & _WRITING)
        if writes and words in os.fsdecode(arguments[0] if event == "open" else arguments[1]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), number)

    sys.addaudithook(heard)


_WRITING = os.O_WRONLY | os.O_RDWR


def finish(*programs: Program) -> str:
    """What programs wrote, after all of them ended well."""
    said = [program.communicate() for program in programs]
    for program, (_, err) in zip(programs, said, strict=True):
        assert program.returncode == 0, err
    return "".join(out for out, _ in said)


def together(
    number: int, module: str, *words: object, before: Callable[[], object] = _nothing
) -> str:
    """What a program in several processes wrote, which ``torchrun`` would start."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "WORLD_SIZE": str(number),
        "LOCAL_WORLD_SIZE": str(number),
    }
    ranks = [{"RANK": str(i), "LOCAL_RANK": str(i)} for i in range(number)]
    programs = [Program(module, *words, environment=shared | r, before=before) for r in ranks]
    return finish(*programs)


@functools.cache
def _serve() -> None:
    """Start the server in the folder where it finds what it is to load."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        multiprocessing.forkserver.ensure_running()


def _run(
    module: str,
    words: list[str],
    folder: Path,
    environment: dict[str, str],
    files: list[Path],
    before: Callable[[], object],
) -> None:
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as where Python starts
    sys.argv = [module, *words]
    before()
    try:
        if Path(module).is_file():
            runpy.run_path(module, run_name="__main__")
        else:
            sys.modules.pop(module, None)
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # as Python does where it ends, and a fork does not
