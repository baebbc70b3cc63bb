"""Trouble, made: processes killed at every point, full disks, two writers, and malicious files."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import pickle
import platform
import re
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from inference.folders import checkpoints as ck, runs
from inference.folders.checkpoints import RunError, StorageError
from inference.folders.records import write_json
from inference.folders.runs import Run, create_default
from inference.folders.sessions import begin_session, sessions
from inference.machine import environment
from tests.mistakes import Bomb
from tests.programs.running import checkpoint

resource = pytest.importorskip("resource", reason="processes are forked, as Unix does")
ROOT = Path(__file__).parents[2]


def assert_same(one: ck.Checkpoint, other: ck.Checkpoint) -> None:
    assert one.step == other.step and one.state == other.state
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        assert tensor.dtype == other.tensors[name].dtype
        assert torch.equal(tensor, other.tensors[name])


def latest_without_a_warning(folder: Path) -> ck.Checkpoint:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return ck.latest_checkpoint(folder)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# -- processes -------------------------------------------------------------------------------------


def start(work: Callable[[], object]) -> int:
    """Do ``work`` in another process; its number."""
    with warnings.catch_warnings():
        # Python 3.12 warns of a fork while threads run; this child takes no lock of theirs
        warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def end(pid: int) -> int:
    """Wait for a process: its exit code, or less than zero the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextlib.contextmanager
def running(work: Callable[[], object]) -> Iterator[int]:
    """A process that has done ``work`` and lives until it is killed, at the latest here."""
    reader, writer = os.pipe()

    def work_and_wait() -> None:
        kept = work()
        os.write(writer, b"1")
        while kept is not None:
            signal.pause()

    pid = start(work_and_wait)
    os.close(writer)
    try:
        assert os.read(reader, 1) == b"1"
        yield pid
    finally:
        os.close(reader)
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


# Killed at any point of a save: see test_saved.py.
# Killed and stopped in training: see test_training.py.


# -- damaged ---------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, bytes]:
    """A folder of two checkpoints, and what the tensors' file of the newer holds."""
    ck.save_checkpoint(tmp_path, checkpoint(1))
    file = ck.save_checkpoint(tmp_path, checkpoint(2))
    return file, file.read_bytes()


def assert_passed_over(file: Path) -> None:
    with pytest.warns(UserWarning, match=r"step-00000002\.safetensors is damaged.*going back"):
        assert_same(ck.latest_checkpoint(file.parent), checkpoint(1))


def test_tensors_cut_short_or_too_long_are_passed_over(two: tuple[Path, bytes]) -> None:
    file, data = two
    header = 8 + int.from_bytes(data[:8], "little")
    lengths = {0, 1, 7, 8, 9, header - 1, header, header + 1, len(data) // 2, len(data) - 1}
    for length in sorted(lengths):
        file.write_bytes(data[:length])
        assert_passed_over(file)
    for longer in (data + b"\0", data + data, b" " + data):
        file.write_bytes(longer)
        assert_passed_over(file)
    file.write_bytes(data)
    assert_same(latest_without_a_warning(file.parent), checkpoint(2))


def test_any_flipped_bit_of_the_tensors_is_noticed(two: tuple[Path, bytes]) -> None:
    file, data = two
    header = 8 + int.from_bytes(data[:8], "little")
    for position in (*range(8), *range(8, header, 7), *range(header, len(data), 11)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        file.write_bytes(bytes(flipped))
        assert_passed_over(file)
    for begin in (0, header, len(data) - 64):  # a sector that was never written
        file.write_bytes(data[:begin] + bytes(64) + data[begin + 64 :])
        assert_passed_over(file)


@pytest.mark.parametrize("name", ["metrics.csv", "history.jsonl", "sessions.jsonl"])
def test_a_line_torn_anywhere_costs_that_line_alone(tmp_path: Path, name: str) -> None:
    def write(run: Run, step: int) -> None:
        run.metrics.log(step, "train", {"bits_per_dim": 1 / step})
        run.metrics.record(step, "train", {"λ": 1 / step, "text": "μ"})
        begin_session(run.folder, step, note="ν")

    def steps(run: Run) -> tuple[list[int], list[int], list[int]]:
        table = pd.read_csv(run.folder / "metrics.csv")
        assert table.bits_per_dim.tolist() == [1 / step for step in table.step]
        return (
            table.step.tolist(),
            [r["step"] for r in run.metrics.history()],
            [s["step"] for s in sessions(run.folder)],
        )

    with pytest.MonkeyPatch.context() as patch, Run.create(tmp_path / "run", {}) as run:
        patch.setattr(environment, "_git", lambda *arguments: None)
        file = run.folder / name
        for step in (10, 20):
            write(run, step)
        written = run.metrics.written()
        size, whole = file.stat().st_size, content(run.folder)
        write(run, 30)
        data = file.read_bytes()
        torn = set(range(size, len(data) - 1, (len(data) - size) // 20))
        torn |= {i for i in range(size, len(data)) if data[i] & 0xC0 == 0x80}  # within a "λ"
        for length in sorted(torn):
            for path, held in whole.items():
                (run.folder / path).write_bytes(held)
            file.write_bytes(data[:length])
            run.metrics.rewind(written)
            assert steps(run) == ([10, 20], [10, 20], [10, 20])
            write(run, 30)
            assert steps(run) == ([10, 20, 30], [10, 20, 30], [10, 20, 30])


# -- full disks ------------------------------------------------------------------------------------


def limited(size: int, work: Callable[[], object]) -> None:
    """In another process, do ``work`` while files cannot grow beyond ``size`` bytes."""

    def fail() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails with EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        try:
            work()
        except StorageError as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            assert re.search(
                r"/\S+ could not be written: File too large \([\d,]+ bytes needed, [\d,]+ free\)\. "
                "What was written before, earlier checkpoints too, is whole; free some space",
                str(error),
            )
            assert isinstance(error, RunError)  # which the command lines explain
        else:
            raise AssertionError(f"{size} bytes were enough")

    assert end(start(fail)) == 0


def test_a_full_disk_leaves_the_earlier_checkpoints_whole(tmp_path: Path) -> None:
    new = checkpoint(3)
    whole = ck.save_checkpoint(tmp_path / "trial", new).stat().st_size
    folder = tmp_path / "checkpoints"
    for step in (1, 2):
        ck.save_checkpoint(folder, checkpoint(step))
    before = content(folder)
    for size in (0, 1, 8, whole // 2, whole - 1):
        limited(size, lambda: ck.save_checkpoint(folder, new))
        assert content(folder) == before  # no temporary file either
        assert_same(latest_without_a_warning(folder), checkpoint(2))
    ck.save_checkpoint(folder, new)  # when there is space again
    assert_same(latest_without_a_warning(folder), new)


def test_what_is_appended_on_a_full_disk_is_there_or_not(tmp_path: Path) -> None:
    with Run.create(tmp_path / "run", {}) as run:
        for step in (10, 20):
            run.metrics.log(step, "train", {"bits_per_dim": 0.5})
            run.metrics.record(step, "train", {"λ": "μ" * 99})
            begin_session(run.folder, step)
        run.save(checkpoint(20))
        before, written = content(run.folder), run.metrics.written()
        appends: dict[str, Callable[[], object]] = {
            "metrics.csv": lambda: run.metrics.log(30, "train", {"bits_per_dim": 0.25}),
            "history.jsonl": lambda: run.metrics.record(30, "train", {"λ": "μ" * 99}),
            "sessions.jsonl": lambda: begin_session(run.folder, 30),
        }
        for name, append in appends.items():
            for room in (0, 1, 15):
                limited(len(before[name]) + room, append)
                assert content(run.folder) == before
        limited(9, lambda: write_json(run.folder / "results.json", {"bits_per_dim": 1.25}))
        assert content(run.folder) == before
    with Run.resume(run.folder) as run:
        run.metrics.rewind(written)
        assert_same(run.latest(), checkpoint(20))
        assert pd.read_csv(run.folder / "metrics.csv").step.tolist() == [10, 20]


def test_errors_that_are_no_full_disk_stay_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError):
        ck.write_atomically(tmp_path / "nowhere" / "file", b"")
    for number, kind in {
        errno.EIO: OSError,
        errno.EACCES: PermissionError,
        errno.ENOSPC: StorageError,
        errno.EDQUOT: StorageError,
    }.items():

        def fail(*arguments: object, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch, pytest.raises(kind) as caught:
            patch.setattr(os, "fsync", fail)
            ck.write_atomically(tmp_path / "file", b"data")
        assert isinstance(caught.value, StorageError) == (kind is StorageError)
        assert not list(tmp_path.iterdir())


# -- two processes on one folder -------------------------------------------------------------------


def test_a_second_process_is_told_who_writes_and_a_killed_one_is_no_obstacle(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"

    def write() -> Run:
        run = Run.create(folder, {"seed": 7})
        run.save(checkpoint(1))
        return run

    with running(write) as pid:
        before = content(folder)
        refused = rf"is being written by process {pid} on {re.escape(platform.node())} since 20"
        for attempt in (
            lambda: Run.resume(folder),
            lambda: Run.create(folder, {}),
            lambda: Run.create(folder, {}, overwrite=True),
        ):
            with pytest.raises(RunError, match=refused + r".*; wait until it ends or stop it"):
                attempt()
        assert content(folder) == before
        reader = Run.open(folder)  # evaluate, sample and compare need not wait
        assert reader.config["seed"] == 7
        assert_same(reader.latest(), checkpoint(1))

        os.kill(pid, signal.SIGKILL)
        assert end(pid) == -signal.SIGKILL
        assert (folder / ".lock").exists() and (folder / ".writer.json").exists()
        with Run.resume(folder) as run:
            assert json.loads((folder / ".writer.json").read_text())["pid"] == os.getpid()
            assert_same(run.latest(), checkpoint(1))
        assert not (folder / ".writer.json").exists()

    with (
        running(lambda: Run.resume(folder)) as pid,
        pytest.raises(RunError, match=f"process {pid}"),
    ):
        Run.resume(folder)
    Run.create(folder, {}, overwrite=True)


def test_a_fork_of_the_writer_neither_keeps_the_folder_nor_gives_it_away(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {})
    assert end(start(run.close)) == 0
    with pytest.raises(RunError, match="is being written by this process"):
        Run.resume(run.folder)
    with running(lambda: run):  # as a data loader's worker that outlives it
        run.close()
        Run.resume(run.folder).close()


def race(number: int, meet_at: str, work: Callable[[int], None]) -> None:
    """Do ``work(i)`` in ``number`` processes; all must end well.

    They wait for each other when the function ``meet_at`` of :mod:`inference.folders.runs` has
    first told them what it saw.
    """
    barrier = multiprocessing.get_context("fork").Barrier(number)
    look = getattr(runs, meet_at)

    def work_together(i: int) -> None:
        waited = False

        def look_and_wait(*arguments: Any) -> Any:
            nonlocal waited
            seen = look(*arguments)
            if not waited:
                waited = True
                barrier.wait(60)
            return seen

        setattr(runs, meet_at, look_and_wait)
        work(i)

    pids = [start(lambda i=i: work_together(i)) for i in range(number)]
    assert [end(pid) for pid in pids] == [0] * number


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders are made as fast as can be."""
    monkeypatch.setattr(environment, "describe", dict)
    monkeypatch.setattr(environment, "_git", lambda *arguments: None)


@pytest.mark.usefixtures("quick")
def test_processes_that_ask_for_a_folder_together_get_one_each(tmp_path: Path) -> None:
    number, each = 6, 3

    def create(i: int) -> None:
        for j in range(each):
            create_default("toy", "cld", 0, {"who": [i, j]}, tmp_path / "runs").close()

    race(number, "default_folder", create)
    folders = sorted((tmp_path / "runs").iterdir(), key=lambda p: int(p.name.rpartition("-")[2]))
    assert [p.name for p in folders] == [f"toy-cld-0-{k}" for k in range(number * each)]
    owners = sorted(Run.open(folder).config["who"] for folder in folders)
    assert owners == [[i, j] for i in range(number) for j in range(each)]


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_of_processes_that_want_one_folder_one_gets_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    number = 6

    def create(i: int) -> None:
        try:
            run = Run.create(folder, {"who": i})
        except RunError as error:
            assert re.search("is being written by|already holds a run", str(error))
            (tmp_path / f"{i}.lost").touch()
        else:
            (tmp_path / f"{i}.won").touch()
            # a run that ended before its first checkpoint may be replaced: not while others come
            for _ in range(3000):
                if len([*tmp_path.glob("*.lost"), *tmp_path.glob("*.won")]) == number:
                    break
                time.sleep(0.01)
            run.close()

    race(number, "_check_ours", create)
    (won,) = tmp_path.glob("*.won")
    assert Run.open(folder).config["who"] == int(won.stem)


# -- malicious files -------------------------------------------------------------------------------


@pytest.mark.slow
def test_no_reader_of_a_run_folder_runs_what_it_reads(tmp_path: Path) -> None:
    mark = tmp_path / "owned"
    torch.save(Bomb(mark), tmp_path / "bomb.pt")
    bombs = [pickle.dumps(Bomb(mark)), (tmp_path / "bomb.pt").read_bytes()]
    bombs += [f"!!python/object/apply:os.mkdir ['{mark}']".encode()]
    loads: list[Callable[[], object]] = [
        lambda: pickle.loads(bombs[0]),
        lambda: torch.load(tmp_path / "bomb.pt", weights_only=False),
        lambda: yaml.unsafe_load(bombs[2]),
    ]
    for load in loads:
        load()
        assert mark.is_dir()  # they do work
        mark.rmdir()

    for i, bomb in enumerate(bombs):
        with Run.create(tmp_path / str(i), {"seed": 0}) as run:
            for step in (1, 2):
                run.save(checkpoint(step))
        folder = run.folder
        names = "environment.json data.json sessions.jsonl metrics.csv history.jsonl results.json"
        for name in (*names.split(), "changes.patch", ".lock", ".writer.json"):
            (folder / name).write_bytes(bomb)
        for name in (
            "a.pt",
            "a.pkl",
            "step-00000003.pt",
            "step-00000003.pkl",
        ):
            (folder / "checkpoints" / name).write_bytes(bomb)
        (folder / "checkpoints" / "step-00000002.safetensors").write_bytes(bomb)
        with Run.resume(folder) as run:
            with pytest.raises(RunError, match="is being written by this process"):
                Run.resume(folder)
            with pytest.warns(UserWarning, match="damaged"):
                assert run.latest().step == 1
            with pytest.raises(RunError, match=r"data\.json is damaged"):
                run.check_data({})
            begin_session(run.folder, 1)
            run.metrics.rewind(None)
            assert run.metrics.history() == [] and len(sessions(run.folder)) == 1
        for path in (folder / "checkpoints").iterdir():
            path.write_bytes(bomb)
        with pytest.warns(UserWarning, match="damaged"), pytest.raises(ck.CheckpointError):
            Run.open(folder).latest()
        (folder / ".writer.json").write_bytes(bomb)
        (folder / "config.yaml").write_bytes(bomb)
        for read in (Run.open, Run.resume):
            with pytest.raises(RunError, match=r"config\.yaml cannot be read as YAML"):
                read(folder)
    assert not mark.exists()


UNPICKLES = [
    r"^\s*(?:import|from) (?:pickle|_pickle|cPickle|dill|cloudpickle|shelve|marshal)\b",
    r"^\s*from joblib\b(?! import Parallel, delayed$)",  # between processes of one run alone
    r"\bjoblib\.(?!(?:cpu_count|parallel_config)\b)\w+",
    r"\bfrom (?:torch|numpy) import .*\bload\b",
    r"(?<!safetensors\.)\btorch\.load\b(?!\([^()]*\bweights_only=True\))",
    r"\b(?:np|numpy)\.load\b(?!\()",
    r"\b(?:np|numpy)\.load\([^()]*(?:\ballow_pickle=(?!False)|\*)",
    r"\b(?:np|numpy)\.load\([^(),=]+,[^(),=]+,[^(),=]+\)",
    r"\byaml\.(?:load|load_all|full_load|unsafe_load)\b",
    r"\.read_pickle\b",
]
"""What in a module's source may run code that a file holds."""


def unpickles(source: str) -> list[str]:
    return [m[0] for p in UNPICKLES for m in re.finditer(p, source, re.MULTILINE)]


def test_the_code_unpickles_nothing() -> None:
    rooms = ("pyro_mdm", "models", "inference")
    files = [path for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]
    assert len(files) > 20
    for file in files:
        assert unpickles(file.read_text()) == [], file


@pytest.mark.parametrize(
    "source",
    [
        *("import pickle", "import joblib.numpy_pickle", "from pickle import loads"),
        *("from torch import load", "torch.load('a')", "torch.load('a', weights_only=False)"),
        *("torch.load('a', weights_only=flag)", "read = torch.load", "np.load('a', None, True)"),
        *("np.load('a', allow_pickle=True)", "np.load('a', **options)", "yaml.load(text, Loader)"),
        *("from numpy import load as read", "pd.read_pickle('a')"),
    ],
)
def test_what_unpickles_is_found(source: str) -> None:
    assert unpickles(source)
    safe = "torch.load('a', weights_only=True)\nnp.load('a')\nnp.load('a', allow_pickle=False)\n"
    assert unpickles(safe + "yaml.safe_load(a)\njson.load(a)\n") == []
