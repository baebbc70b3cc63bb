"""The run folder: nothing is lost, nothing is overwritten, nothing damaged is believed."""

from __future__ import annotations

import functools
import gc
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
import yaml
from torch import Tensor, nn

from inference.commands.cli import command_line
from inference.folders import checkpoints as ck, fingerprints, runs
from inference.folders.checkpoints import RunError
from inference.folders.fingerprints import differences, fingerprint, fingerprint_of
from inference.folders.loading import load_trained
from inference.folders.metrics import COLUMNS
from inference.folders.records import write_json
from inference.folders.runs import Run, create_default, default_folder
from inference.folders.sessions import begin_session, keep_sources, sessions
from inference.machine import environment
from inference.settings.options import GROUPS
from inference.train import train
from pyro_mdm import __version__
from tests.brief import SHORT, be_brief
from tests.programs.running import checkpoint
from tests.rounding import RoundingNoise

PACKAGES = functools.cache(environment._packages)


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is installed is looked up once, and git is asked where a test is of what it says."""
    monkeypatch.setattr(environment, "_packages", PACKAGES)
    if "repository" not in request.fixturenames:
        monkeypatch.setattr(environment, "_git", lambda *arguments: None)


def newest(folder: Path) -> Path:
    return sorted(folder.glob("step-*"))[-1]


DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool)
DTYPES += (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def test_every_kind_of_tensor_is_saved_as_safetensors_itself_would(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(7, 5, generator=generator)
    tensors = {f"{i}/{dtype}": values.to(dtype) for i, dtype in enumerate(DTYPES)}
    tensors |= {"β": torch.tensor(1.5), "none": torch.zeros(0, 3)}
    tensors |= {"shared": values[:3], "too": values[:3], "expanded": values[:1].expand(4, 5)}
    tensors["parameter"] = nn.Parameter(values.T[1:])
    file = ck.save_checkpoint(tmp_path, ck.Checkpoint(1, tensors))
    plain = {name: t.detach().clone().contiguous() for name, t in tensors.items()}
    library = safetensors.torch.load(safetensors.torch.save(plain))
    for found in (ck.latest_checkpoint(tmp_path).tensors, safetensors.torch.load_file(file)):
        assert found.keys() == tensors.keys()
        for name, tensor in library.items():
            assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_a_fingerprint_is_of_the_bytes_of_the_tensor_however_it_lies() -> None:
    values = torch.randn(6, 5, 4)
    conjugate = torch.complex(values, values).conj()
    tensors = [values, values[2:4], values.bool(), values[0, 0, 0], values[:0], values.mT]
    tensors += [values[:, 1:3], values[0, 0, :1].expand(3), values[..., ::2], conjugate.imag]
    for tensor in (*tensors, conjugate):
        plain = tensor.resolve_conj().resolve_neg().numpy().tobytes()
        found = fingerprints.fingerprint({"x": tensor}, exact=True)["x"]["sha256"]
        assert found == hashlib.sha256(plain).hexdigest()


def test_a_loaded_checkpoint_does_not_depend_on_its_file(tmp_path: Path) -> None:
    file = ck.save_checkpoint(tmp_path, checkpoint(1))
    loaded = ck.latest_checkpoint(tmp_path)
    file.write_bytes(b"\xff" * file.stat().st_size)  # in place
    file.write_bytes(b"")
    assert torch.equal(loaded.tensors["model/w"], checkpoint(1).tensors["model/w"])


def test_the_checkpoint_just_written_stays_though_later_ones_are_damaged(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        ck.save_checkpoint(tmp_path, checkpoint(step))
    file = newest(tmp_path)
    file.write_bytes(file.read_bytes()[:-5])
    ck.save_checkpoint(tmp_path, checkpoint(5), keep=1)  # resumed at 4, ended early
    with pytest.warns(UserWarning, match=r"step-00000006.*damaged.*going back"):
        assert ck.latest_checkpoint(tmp_path).step == 5
    ck.save_checkpoint(tmp_path, checkpoint(6), keep=1)
    assert len(list(tmp_path.iterdir())) == 1 and ck.latest_checkpoint(tmp_path).step == 6


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 99_999_999, 100_000_000):  # ordered as numbers
        ck.save_checkpoint(tmp_path, checkpoint(step))
    steps = (100_000_000, 99_999_999)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step-{s}.safetensors" for s in steps]
    loaded, saved = ck.latest_checkpoint(tmp_path), checkpoint(100_000_000)
    assert loaded.step == saved.step and loaded.state == saved.state
    assert loaded.part("model").keys() == {"w", "Q"}


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    with pytest.raises(ck.CheckpointError, match="no checkpoint was written"):
        ck.latest_checkpoint(tmp_path)
    ck.save_checkpoint(tmp_path, checkpoint(1))
    os.truncate(newest(tmp_path), 9)
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(ck.CheckpointError, match=r"no usable checkpoint.*is damaged"),
    ):
        ck.latest_checkpoint(tmp_path)


def test_another_architecture_is_named_tensor_by_tensor_and_nothing_is_loaded() -> None:
    small, large = nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 2))
    wide = nn.Linear(3, 5)
    before = wide.weight.clone()
    with pytest.raises(ck.ArchitectureError, match=r"weight: \(2, 3\) in .*, \(5, 3\) in this"):
        ck.load_module(wide, small.state_dict(), "runs/x")
    assert torch.equal(wide.weight, before)
    with pytest.raises(ck.ArchitectureError, match=r"(?s)weight: not in this model.*runs/x|runs/x"):
        ck.load_module(large, small.state_dict(), "runs/x")
    ck.load_module(wide, nn.Linear(3, 5).state_dict(), "runs/x")
    assert not torch.equal(wide.weight, before)


# -- the folder ------------------------------------------------------------------------------------


def test_every_run_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    first = default_folder("digits", "a/b/file.py:My_Guide", 3, tmp_path)
    assert first.name == "digits-my_guide-3-0"
    Run.create(first, {})
    assert default_folder("digits", "c.py:My_Guide", 3, tmp_path).name == "digits-my_guide-3-1"
    run = create_default("digits", "c.py:My_Guide", 3, {"seed": 3}, tmp_path)
    assert run.folder.name == "digits-my_guide-3-1" and Run.open(run.folder).config["seed"] == 3
    run = create_default("toy", "cld", 0, {}, tmp_path / "new" / "root")
    assert run.folder == tmp_path / "new" / "root" / "toy-cld-0-0"


def test_an_existing_run_is_refused_unless_asked(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = Run.create(folder, {"seed": 1})
    run.metrics.log(3, "train", {"bits_per_dim": 2.0})
    run.save(checkpoint(3))
    (folder / "notes.txt").write_text("mine")
    run.metrics.record(3, "train", {})
    begin_session(run.folder, 0)
    run.check_data({"train": {"sha256": "a"}})
    write_json(run.folder / "results.json", {})
    for name in ("samples.png", "changes.patch", "model.safetensors", "table.json"):
        (folder / name).write_text("old")
    (folder / "tensorboard").symlink_to(tmp_path)  # is unlinked, not emptied
    keep_sources(run.folder, [Path(__file__)])
    run.close()
    with pytest.raises(RunError, match=r"already holds a run; continue it with --resume"):
        Run.create(folder, {"seed": 2})
    assert run.latest().step == 3 and len(pd.read_csv(folder / "metrics.csv")) == 1
    assert set(runs.CONTENT) <= {p.name for p in folder.iterdir()}
    with Run.create(folder, {"seed": 2}, overwrite=True):
        assert Run.open(folder).config == {"seed": 2}
    assert (folder / "notes.txt").read_text() == "mine"  # not a run's file
    assert {p.name for p in folder.iterdir()} == {
        *("config.yaml", "environment.json", "metrics.csv", "history.jsonl", "notes.txt", ".lock")
    }


def test_a_run_that_ended_before_its_first_checkpoint_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with Run.create(folder, {"seed": 1}) as run:
        run.metrics.log(3, "train", {"bits_per_dim": 2.0})
        with pytest.raises(RunError, match="is being written by this process"):
            Run.create(folder, {"seed": 2})
    with Run.create(folder, {"seed": 2}) as run:
        assert Run.open(folder).config["seed"] == 2
        assert len(pd.read_csv(folder / "metrics.csv")) == 0
        write_json(run.folder / "results.json", {})
    with pytest.raises(RunError, match="already holds a run"):  # whose checkpoints were removed
        Run.create(folder, {"seed": 3})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").write_text("seed: 5")  # as one writes it for --config
    with pytest.raises(RunError, match="already holds a run"):
        Run.create(tmp_path / "mine", {"seed": 3})
    assert (tmp_path / "mine" / "config.yaml").read_text() == "seed: 5"


def test_the_rows_are_on_the_disk_before_the_checkpoint_that_they_go_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.create(tmp_path / "run", {})
    run.metrics.log(1, "train", {})
    run.metrics.record(1, "train", {})
    flushed: list[int] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        flushed.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    description = run.save(checkpoint(1))
    files = [run.folder / name for name in ("metrics.csv", "history.jsonl")]
    files += [description]
    order = [flushed.index(path.stat().st_ino) for path in files]
    assert order == sorted(order)
    assert flushed.count(description.parent.stat().st_ino) == 1  # its name, too


def test_a_folder_that_is_no_run_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"not a run folder and holds thesis\.tex"):
        Run.create(tmp_path, {}, overwrite=True)
    with pytest.raises(RunError, match="is a file"):
        Run.create(tmp_path / "thesis.tex", {}, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_opening_what_is_not_a_run_names_the_runs_beside_it(tmp_path: Path) -> None:
    Run.create(tmp_path / "cld", {})
    with pytest.raises(RunError, match=r"no config\.yaml; runs beside it: .*cld"):
        Run.open(tmp_path / "clt")
    (tmp_path / "cld" / "config.yaml").write_text("a: [1")
    with pytest.raises(RunError, match="cannot be read as YAML"):
        Run.open(tmp_path / "cld")


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ("version: 0.2.0\n", None),
        ("version: 0.2.7\n", None),
        ("version: 0.3.0\n", "version 0.3.0"),
        ("version: 1.0.0\n", "version 1.0.0"),
        ("version: 0.2\n", None),
        ("version: [0, 2]\n", r"version \[0, 2\]"),
        ("", "a version before 0.2"),
    ],
)
def test_a_run_of_another_version_is_refused_with_the_version_that_opens_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, refused: str | None
) -> None:
    """But for one that fixes bugs alone; its settings still begin a new run."""
    monkeypatch.setattr("inference.folders.config.__version__", "0.2.4")
    Run.create(tmp_path / "run", {}).close()
    path = tmp_path / "run" / "config.yaml"
    path.write_text(f"{said}seed: 3\n")
    for opened in (Run.open, Run.resume):
        if refused is None:
            with opened(tmp_path / "run") as run:
                assert run.config == {"seed": 3}
        else:
            with pytest.raises(RunError, match=rf"{refused} of pyro_mdm.*open it with {refused}"):
                opened(tmp_path / "run")
    words = [f"--config={path}", "--print_config"]
    with pytest.raises(SystemExit, match="0"):
        command_line(train, words, groups=GROUPS)


@pytest.mark.parametrize("name", ["members", "decoder", "solver"])
def test_an_option_that_is_no_more_is_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "old.yaml").write_text(f"{name}: 1\n")
    with pytest.raises(SystemExit, match="2"):
        command_line(train, [f"--config={tmp_path / 'old.yaml'}"], groups=GROUPS)
    assert f"no option is called {name}" in capsys.readouterr().err


def test_the_folder_explains_itself(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {"model": "toy", "steps": 5, "ema": 0.9, "rank": None})
    written = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert written == {"version": __version__} | run.config
    environment = json.loads((run.folder / "environment.json").read_text())
    packages = environment["packages"]
    assert packages["torch"] == torch.__version__ and packages["numpy"] == np.__version__
    assert {"pyro-ppl", "filelock", "pytest"} <= packages.keys()
    assert list(packages) == sorted(packages, key=str.lower)
    machine = environment["machine"]
    assert machine["cores"] == os.cpu_count() and machine["threads"] == torch.get_num_threads()
    assert machine["cpu"] and machine["host"] and machine["memory_bytes"] > 1 << 28
    assert len(machine["accelerators"]) == torch.cuda.device_count()
    write_json(
        run.folder / "results.json", {"mean": 1.5, "bad": float("nan"), "list": [float("inf")]}
    )
    results = json.loads((run.folder / "results.json").read_text())
    assert results == {"mean": 1.5, "bad": None, "list": [None]}
    write_json(
        run.folder / "results.json", {"file": "caf\udce9.py"}
    )  # a file name that is no UTF-8
    assert json.loads((run.folder / "results.json").read_bytes()) == {"file": "caf\udce9.py"}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkout that the code is taken to be run from, with one commit."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "code.py").write_text("a = 1\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    monkeypatch.setattr(environment, "ROOT", folder)
    return folder


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "color.ui=always")
    command = ["git", *who, *arguments]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_changes_of_the_code_are_kept(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def described(name: str) -> dict[str, Any]:
        Run.create(tmp_path / name, {}).close()
        found: dict[str, Any] = json.loads((tmp_path / name / "environment.json").read_text())
        return found

    clean = described("clean")
    assert clean["git_commit"] == git(repository, "rev-parse", "HEAD")
    assert clean["git_changes"] == [] and clean["git_changes_patch"] is None
    assert not (tmp_path / "clean" / "changes.patch").exists()

    (repository / "code.py").write_text("a = 2\n")
    git(repository, "config", "color.ui", "always")
    changed = described("changed")
    assert changed["git_changes"] == [" M code.py"]
    assert changed["git_changes_patch"] == "changes.patch"
    git(repository, "checkout", "-q", "code.py")
    git(repository, "apply", str(tmp_path / "changed" / "changes.patch"))
    assert (repository / "code.py").read_text() == "a = 2\n"

    monkeypatch.setattr("inference.folders.sessions.CHANGES_LIMIT", 99)
    large = described("large")
    assert "bytes, more than the 99 that are kept" in large["git_changes_patch"]
    assert not (tmp_path / "large" / "changes.patch").exists()

    monkeypatch.setattr(environment, "ROOT", tmp_path)  # no checkout
    bare = described("bare")
    assert bare["git_commit"] is bare["git_changes"] is bare["git_changes_patch"] is None


def test_every_start_and_resumption_is_recorded(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Run.create(tmp_path / "run", {}) as run:
        assert sessions(run.folder) == []
        begin_session(run.folder, 0, device="cpu")
    with Run.resume(run.folder) as run:
        begin_session(run.folder, 20, device="cuda:0", loss=float("nan"))
    first, second = sessions(run.folder)
    assert (first["step"], first["device"]) == (0, "cpu")
    assert (second["step"], second["device"], second["loss"]) == (20, "cuda:0", None)
    assert first["torch"] == torch.__version__ and first["pid"] == os.getpid()
    assert first["command"] == sys.argv and first["host"]
    assert first["git_commit"] == git(repository, "rev-parse", "HEAD")
    assert pd.Timestamp(first["started"]).tzinfo is not None

    git(repository, "commit", "-q", "--allow-empty", "-m", "second")
    with pytest.warns(UserWarning, match=rf"git commit {first['git_commit']}, now .*bit for bit"):
        begin_session(run.folder, 40)
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    with pytest.warns(UserWarning, match=r"with PyTorch .*, now 9\.9\.9 and with git commit"):
        begin_session(run.folder, 60)
    monkeypatch.setattr(environment, "ROOT", tmp_path)  # unknown is not different
    with pytest.warns(UserWarning, match=r"now 9\.9\.9; its results may not"):
        begin_session(run.folder, 80)
    (run.folder / "environment.json").write_text("{")
    begin_session(run.folder, 100)
    assert [s["step"] for s in sessions(run.folder)] == [0, 20, 40, 60, 80, 100]


# -- the data set ----------------------------------------------------------------------------------


def test_fingerprints_are_of_the_bytes(tmp_path: Path) -> None:
    data = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)
    data.numpy().tofile(tmp_path / "data")
    mapped = torch.from_file(str(tmp_path / "data"), size=24, dtype=torch.uint8).reshape(2, 3, 4)
    expected = {
        "shape": [2, 3, 4],
        "dtype": "uint8",
        "sha256": hashlib.sha256(bytes(range(24))).hexdigest(),
    }
    for same in (data, mapped, data.mT.contiguous().mT, nn.Parameter(data, requires_grad=False)):
        assert fingerprint({"train": same}) == {"train": expected}
    labels = torch.tensor([1.0, 2.0])
    assert fingerprint({"a": labels})["a"]["sha256"] != fingerprint({"a": -labels})["a"]["sha256"]
    halves = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    assert fingerprint({"a": halves})["a"]["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"train": torch.ones(4), "test": torch.zeros(2)}, r"train: SHA-256 {a}… .* SHA-256 {b}…"),
        ({"train": torch.zeros(2, 2), "test": torch.zeros(2)}, r"train: .* \[4\] .* \[2, 2\]"),
        ({"train": torch.zeros(4)}, r"test: SHA-256 .* when it was started, absent now"),
        (
            {"train": torch.zeros(4), "test": torch.zeros(2), "more": torch.zeros(1)},
            r"more: absent when it was started, SHA-256 ",
        ),
    ],
)
def test_a_run_goes_on_with_the_data_it_was_started_on_alone(
    tmp_path: Path, now: dict[str, Tensor], message: str
) -> None:
    then = fingerprint({"train": torch.zeros(4), "test": torch.zeros(2)})
    with Run.create(tmp_path / "run", {}) as run:
        Run.open(run.folder).check_data(then)
        assert not (run.folder / "data.json").exists()  # readers write nothing
        run.check_data(then)
        run.check_data(then)
    resumed = Run.open(run.folder)
    resumed.check_data(dict(reversed(then.items())))
    hashes = {"a": then["train"]["sha256"][:12], "b": fingerprint(now)["train"]["sha256"][:12]}
    for key, value in hashes.items():
        message = message.replace(f"{{{key}}}", value)
    with pytest.raises(RunError, match=r"(?s)" + message + ".*Restore the data"):
        resumed.check_data(fingerprint(now))
    assert json.loads((run.folder / "data.json").read_text()) == then
    (run.folder / "data.json").write_text("[3")
    with pytest.raises(RunError, match=r"data\.json is damaged"):
        Run.open(run.folder).check_data(then)


@pytest.mark.slow
@pytest.mark.without_noise
def test_drawn_data_are_those_of_the_run_where_rounding_is_another_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a warning; but no number may be another one."""
    be_brief(monkeypatch)
    train(run=tmp_path / "run", figures=False, **SHORT | {"steps": 1})
    run = Run.open(tmp_path / "run")
    started = run.started_data()
    assert started is not None
    with RoundingNoise():
        problem = load_trained(run.folder)[1].problem
        now = fingerprint_of(problem)
        assert now["train"]["sha256"] != started["train"]["sha256"]
        run.check_data(now)
    for change in (1e-2, -1e-2):
        problem.train[17, 1] += change
        (said,) = differences(started, fingerprint_of(problem)) or [""]
        assert said.startswith("train: SHA-256 ") == (change > 0)
    problem.train = problem.train.roll(1, 0)
    assert differences(started, fingerprint_of(problem))


# -- one writer ------------------------------------------------------------------------------------


def test_a_folder_has_one_writer_in_one_process_too(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = Run.create(folder, {"seed": 1})
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    refused = r"is being written by this process since 20.*stop it, or give another --run"
    for attempt in (
        lambda: Run.create(folder, {}, overwrite=True),
        lambda: Run.create(folder, {}),
        lambda: Run.resume(folder),
    ):
        with pytest.raises(RunError, match=refused):
            attempt()
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert Run.open(folder).config["seed"] == 1  # readers need no lock
    run.close()
    run.close()
    with Run.resume(folder), pytest.raises(RunError, match=refused):
        Run.resume(folder)
    with pytest.raises(RuntimeError, match="stop"), Run.resume(folder):
        raise RuntimeError("stop")
    run = Run.resume(folder)
    del run  # never closed
    gc.collect()
    Run.create(folder, {})


def test_a_run_that_cannot_be_opened_is_not_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"no config\.yaml"):
        Run.resume(tmp_path / "empty")
    assert not list((tmp_path / "empty").iterdir())
    folder = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(environment, "describe", lambda: 1 / 0)
        Run.create(folder, {})
    Run.create(folder, {}, overwrite=True).close()
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(runs, "remove_leftovers", lambda folder: 1 / 0)
        Run.resume(folder)
    Run.resume(folder)


@pytest.mark.parametrize("writer", [b"", b"[]", b"\xff\xfe", b'{"pid": 3}', b"{" * 99, None])
def test_whatever_the_note_on_the_writer_says_the_refusal_is_explained(
    tmp_path: Path, writer: bytes | None
) -> None:
    run = Run.create(tmp_path / "run", {})
    note = run.folder / runs.WRITER
    note.unlink() if writer is None else note.write_bytes(writer)
    with pytest.raises(RunError, match="is being written by another process; wait"):
        Run.resume(run.folder)


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    with Run.create(tmp_path / "run", {}) as run:
        run.save(checkpoint(1))
    folder = run.folder
    left = [folder / f".{name}.tmp" for name in ("metrics.csv", "samples.png", runs.WRITER)]
    left += [folder / "checkpoints" / ".step-00000002.safetensors.tmp"]
    mine = [folder / name for name in (".notes.tmp", ".metrics.csv.swp", "a.tmp", "step-1.json")]
    mine += [folder / "checkpoints" / name for name in (".step-2.tmp", "best.safetensors")]
    mine += [folder / "checkpoints" / name for name in ("step-best.safetensors", ".step-a.tmp")]
    for path in (*left, *mine):
        path.write_text("x")
    with Run.resume(folder):
        pass
    assert all(path.exists() for path in mine) and not any(path.exists() for path in left)
    for path in left:
        path.write_text("x")
    Run.open(folder)  # a reader removes nothing
    assert all(path.exists() for path in left)
    run.save(checkpoint(2))
    assert run.latest().step == 2 and all(path.exists() for path in (*left[:3], *mine))
    assert not left[3].exists()


def test_a_folder_that_a_killed_start_left_is_used(tmp_path: Path) -> None:
    for name in (".lock", ".writer.json", "..writer.json.tmp", ".config.yaml.tmp"):
        (tmp_path / name).write_text("x")
    Run.create(tmp_path, {"seed": 2})
    assert Run.open(tmp_path).config["seed"] == 2


# -- tables ----------------------------------------------------------------------------------------


def test_metrics_and_the_history_rewind_to_a_checkpoint(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {})
    assert run.metrics.history() == []
    written: list[Any] = []
    for step in (10, 20, 30):
        run.metrics.log(
            step, "train", {"bits_per_dim": 1 / step, "bits_per_dim_standard_error": 0.01}
        )
        run.metrics.record(step, "train", {"terms": {"λ": [1 / step, float("nan")]}})
        written.append(run.metrics.written())
    table = pd.read_csv(run.folder / "metrics.csv")
    assert table.step.tolist() == [10, 20, 30]
    assert table.bits_per_dim.tolist() == [1 / 10, 1 / 20, 1 / 30]  # every digit
    assert table.diffusion.isna().all()
    assert run.metrics.history()[0] == {"step": 10, "part": "train", "terms": {"λ": [1 / 10, None]}}
    run.metrics.rewind(written[1])
    assert pd.read_csv(run.folder / "metrics.csv").step.tolist() == [10, 20]
    assert [r["step"] for r in run.metrics.history()] == [10, 20]
    with pytest.raises(ValueError, match="unknown columns"):
        run.metrics.log(1, "train", {"loss": 1.0})
    with pytest.raises(RunError, match=r"metrics\.csv is damaged"):
        run.metrics.rewind({})
    run.metrics.rewind(None)
    table = pd.read_csv(run.folder / "metrics.csv")
    assert tuple(table.columns) == COLUMNS and len(table) == 0
    assert run.metrics.history() == []


def test_code_of_one_s_own_is_kept_and_changes_are_noticed(tmp_path: Path) -> None:
    run, mine = Run.create(tmp_path / "run", {}), tmp_path / "mine.py"
    mine.write_text("a = 1\n")
    keep_sources(run.folder, [mine])
    keep_sources(run.folder, [mine])
    mine.write_text("a = 2\n")
    with pytest.warns(UserWarning, match=r"mine\.py is not what .*run was started with"):
        keep_sources(run.folder, [mine])
    assert (run.folder / "sources" / "mine.py").read_text() == "a = 1\n"


@pytest.mark.parametrize(
    "line",
    [b"[1, 2]", b"3", b'{"step": 5}', b'{"step": "a", "part": "train"}', b"\0\0", b"", b"\xff\xce"],
)
def test_a_damaged_line_of_the_history_is_left_out(tmp_path: Path, line: bytes) -> None:
    run = Run.create(tmp_path / "run", {})
    run.metrics.record(1, "train", {"text": "λ\u2028μ"})  # a line separator within a line
    for end in (b"\n", b""):
        with open(run.folder / "history.jsonl", "ab") as file:
            file.write(line + end)
        run.metrics.record(2, "train", {})
    assert [r["step"] for r in run.metrics.history()] == [1, 2, 2]
    assert run.metrics.history()[0]["text"] == "λ\u2028μ"
