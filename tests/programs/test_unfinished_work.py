"""What ends a program before its work is done: every program × signals, full disks, closed places.

It says so in a sentence and leaves nothing half-written; and where nothing can be written it says
so before it computes.
"""

from __future__ import annotations

import _thread
import builtins
import errno
import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from inference.commands.cli import command_line
from inference.experiment import train_all
from inference.machine.processes import ENDING, catch_signals, raised_signals
from inference.measuring.experiment_tables import Cell
from pyro_mdm.support import files
from pyro_mdm.support.files import check_place
from pyro_mdm.tables.completion import draws
from tests.programs.running import run_program

PROGRAMS = {
    "train": "train --model toy --accelerator cpu --run {out}/{name}",
    "evaluate": "evaluate digits --out {out}/{name}.csv",
    "calibration": "evaluate wine --calibration {out}/{name}.png",
    "sample": "sample digits --out {out}/{name}.png",
    "numbers": "sample digits --out {out}/{name}.npy",
    "restore": "restore digits --out {out}/{name}.png",
    "restore pictures": "restore digits --data {given}/a.png --task denoise --noise 0.1 "
    "--out {out}/{name}",
    "impute": "impute wine --data {given}/a.csv --out {out}/{name}.csv",
    "posterior": "posterior two_moons --out {out}/{name}.png",
    "compare": "compare digits --out {out}/{name}",
    "inspect": "inspect --model toy --guide cld --out {out}/{name}.png",
}
SIGNALS = [signal.SIGINT, *ENDING]
FAILURES = {
    "read-only": (errno.EROFS, "give another place"),
    "full": (errno.ENOSPC, "free some space"),
}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("given")
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(folder / "a.png")
    from models.tabular import SHIPPED

    table = SHIPPED["wine"]().head(30)
    table.mask(np.arange(30)[:, None] % 3 == np.arange(table.shape[1])).to_csv(
        folder / "a.csv", index=False
    )
    return folder


@pytest.fixture(autouse=True)
def usual_signals() -> Iterator[None]:
    """As where a terminal starts a program, however these tests were started."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def run(program: str, out: Path, given: Path, name: str = "new") -> object:
    """The exit status of a program, or its message."""
    with pytest.raises(SystemExit) as caught:
        run_program(*shlex.split(PROGRAMS[program].format(out=out, given=given, name=name)))
    return caught.value.code


def at_first_file(patch: pytest.MonkeyPatch, happens: Callable[[object], None]) -> None:
    """Something happens when a program opens the first file that it writes."""

    def opened(file: Any, mode: str = "r", *options: Any, **more: Any) -> Any:
        if set(mode) & set("wax"):
            happens(file)
        return builtins.open(file, mode, *options, **more)

    patch.setattr(files, "open", opened, raising=False)


def left(out: Path) -> list[str]:
    """Files, without the lock of a run that did not begin, which means nothing by itself."""
    return [path.name for path in out.rglob("*") if path.is_file() and path.name != ".lock"]


def nothing_is_computed(patch: pytest.MonkeyPatch) -> None:
    def called(self: torch.nn.Module, *arguments: object, **options: object) -> None:
        pytest.fail("a network is called")

    patch.setattr(torch.nn.Module, "__call__", called)


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("program", PROGRAMS)
def test_where_nothing_can_be_written_nothing_is_computed(
    program: str, failure: str, tmp_path: Path, given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, advice = FAILURES[failure]

    def fails(file: object) -> None:
        raise OSError(number, os.strerror(number), str(file))

    at_first_file(monkeypatch, fails)
    nothing_is_computed(monkeypatch)
    message = str(run(program, tmp_path, given))
    assert message.startswith("error: ") and os.strerror(number) in message
    assert str(tmp_path) in message and "Errno" not in message
    assert advice in message or "free)" in message  # with the number of bytes
    assert left(tmp_path) == []


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_name_that_is_too_long_is_told_at_once(
    program: str, tmp_path: Path, given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing_is_computed(monkeypatch)
    message = str(run(program, tmp_path, given, "n" * 300))
    assert os.strerror(errno.ENAMETOOLONG) in message and "give a shorter name" in message
    assert left(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_signal_ends_a_program_without_a_trace(
    program: str,
    number: signal.Signals,
    tmp_path: Path,
    given: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    at_first_file(monkeypatch, lambda file: signal.raise_signal(number))
    assert run(program, tmp_path, given) == 128 + number
    said = capsys.readouterr()
    assert said.err.endswith(f"stopped by {number.name}\n") and "Traceback" not in said.err
    assert left(tmp_path) == []
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_half_a_completed_table_is_not_left(
    number: signal.Signals, tmp_path: Path, given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(*arguments: Any, **options: Any) -> Any:
        if options["piece"] == 1:
            assert any(tmp_path.iterdir())  # the rows before
            signal.raise_signal(number)
        return draws(*arguments, **options)

    monkeypatch.setattr("pyro_mdm.tables.completion.draws", ended)
    monkeypatch.setattr("pyro_mdm.tables.frames.PIECE", 8)
    words = ["wine", "--data", given / "a.csv", "--out", tmp_path / "f.csv"]
    with pytest.raises(SystemExit) as caught:
        run_program("impute", *words, "--num", 1, "--steps", 1, "--accelerator", "cpu")
    assert caught.value.code == 128 + number and list(tmp_path.iterdir()) == []


def test_signals_that_are_ignored_stay_so() -> None:
    """As nohup has it; what else asks a program to end is raised once, then ends it."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for block in (catch_signals, raised_signals):
        with block():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            signal.raise_signal(signal.SIGHUP)
    with pytest.raises(SystemExit, match="stopped by SIGTERM"), raised_signals():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("number", SIGNALS, ids=lambda n: n.name)
def test_training_takes_note_of_every_signal(number: signal.Signals) -> None:
    with catch_signals() as caught:
        signal.raise_signal(number)
        assert caught.number == number


def test_an_interrupted_run_says_how_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from inference import train

    monkeypatch.setattr(train, "fit", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    words = ["--model=toy", "--accelerator=cpu", f"--run={tmp_path}/run"]
    with pytest.raises(SystemExit, match="stopped by SIGTERM"):
        command_line(train.train, words, groups=train.GROUPS)
    resume = f"go on with python -m inference.train --resume {tmp_path}/run\n"
    assert capsys.readouterr().out.endswith(resume)


def test_an_experiment_that_is_interrupted_ends_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Training:
        returncode = 143

        def __init__(self, words: list[str], **options: object) -> None:
            self.ended = threading.Event()

        def wait(self) -> None:
            _thread.interrupt_main()
            assert self.ended.wait(60)

        def terminate(self) -> None:
            self.ended.set()

    monkeypatch.setattr(subprocess, "Popen", Training)
    with pytest.raises(KeyboardInterrupt):
        train_all([Cell("cld", "denoiser", 0, {"model": "toy", "guide": "cld"})], tmp_path, 1)


def test_a_pipe_that_is_closed_is_no_error() -> None:
    def says() -> None:
        """Say much."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    with pytest.raises(SystemExit) as caught:
        command_line(says, [])
    assert caught.value.code == 1


def test_a_place_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    check_place(tmp_path / "a" / "b" / "c.csv")
    (tmp_path / "there.csv").write_text("1")
    check_place(tmp_path / "there.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["there.csv"]
    assert (tmp_path / "there.csv").read_text() == "1"
    with pytest.raises(OSError, match="too long"):
        check_place(tmp_path / ("n" * 300) / "c.csv")


def test_settings_of_figures_are_not_those_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib

    def look() -> None:
        """See them."""
        seen.append(dict(matplotlib.rcParams))

    seen: list[dict[str, Any]] = []
    monkeypatch.chdir(tmp_path)
    with matplotlib.rc_context({"font.size": 3.0, "text.usetex": True}):
        command_line(look, [])
        Path("matplotlibrc").write_text("text.usetex: True\nbackend: module://evil\n")
        command_line(look, [])
    assert (seen[0]["font.size"], seen[0]["text.usetex"]) == (3.0, True)  # the user's own
    assert (seen[1]["font.size"], seen[1]["text.usetex"]) == (10.0, False)


def test_as_many_threads_as_cannot_start_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were a segmentation fault."""
    monkeypatch.setattr(torch, "set_num_threads", lambda number: pytest.fail("they are started"))
    for number in (100_000, 0, -1):
        with pytest.raises(SystemExit, match=f"--threads is {number}, expected a positive"):
            run_program("train", "--model", "toy", f"--threads={number}", "--run", tmp_path / "a")
    assert not (tmp_path / "a").exists()
