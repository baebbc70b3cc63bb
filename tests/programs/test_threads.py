"""How threads wait for each other, and how many there are.

The programs set the first before torch is loaded, unless it is set, and the second by the load.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import joblib
import psutil
import pytest
import torch

from inference import OPENMP_WAITING
from inference.folders.runs import Run
from inference.machine import environment
from inference.train import train
from tests.brief import SHORT

ROOT = Path(__file__).parents[2]


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python with these arguments, from an environment that says nothing of waiting but this."""
    inherited = {name: value for name, value in os.environ.items() if name not in OPENMP_WAITING}
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=inherited | environment,
        text=True,
        capture_output=True,
        check=True,
    )


def set_by(module: str, **environment: str) -> list[str]:
    """NAME=value of all that is set after an import, and torch if that was loaded."""
    script = (
        f"import os, sys; import {module}\n"
        f"for name in {OPENMP_WAITING}:\n"
        "    if name in os.environ: print(f'{name}={os.environ[name]}')\n"
        "if 'torch' in sys.modules: print('torch')"
    )
    return run("-c", script, **environment).stdout.split()


def test_the_programs_set_it_before_torch_is_loaded() -> None:
    assert set_by("inference") == ["GOMP_SPINCOUNT=10000"]


@pytest.mark.parametrize("name", OPENMP_WAITING)
def test_what_the_user_sets_stays_alone(name: str) -> None:
    assert set_by("inference", **{name: "1"}) == [f"{name}=1"]


@pytest.mark.slow
def test_the_library_sets_nothing() -> None:
    assert set_by("pyro_mdm.elbo") == ["torch"]


@pytest.mark.skipif("OpenMP" not in torch.__config__.parallel_info(), reason="no OpenMP")
def test_the_runtime_of_a_program_has_it() -> None:
    """Of what every program begins with, as tests/house/test_packaging.py sees of one."""
    script = "import inference, torch; torch.ones(9).sum()"
    shown = run("-c", script, OMP_DISPLAY_ENV="VERBOSE").stderr
    if "GOMP_SPINCOUNT" not in shown:
        pytest.skip("not GCC's OpenMP")
    assert set(re.findall(r"GOMP_SPINCOUNT\s*=\s*'(\d+)'", shown)) == {"10000"}


def look_at(patch: pytest.MonkeyPatch, busy: list[float]) -> list[int]:
    """A machine whose cores are busy so much of the time, of 4 more that aren't ours; the calls
    that set a number of threads."""
    set_to: list[int] = []

    def look(interval: float, percpu: bool) -> list[float]:
        assert interval == environment.LOOK and percpu
        return [100 * part for part in [*busy, 1.0, 1.0, 1.0, 1.0]]

    patch.delenv("OMP_NUM_THREADS", raising=False)
    patch.setattr(psutil, "cpu_percent", look)
    patch.setattr(os, "cpu_count", lambda: len(busy))
    patch.setattr(os, "sched_getaffinity", lambda pid: set(range(len(busy))), raising=False)
    patch.setattr(torch, "get_num_threads", lambda: [len(busy), *set_to][-1])
    patch.setattr(torch, "set_num_threads", set_to.append)
    return set_to


@pytest.mark.parametrize(
    ("busy", "expected"),
    [
        ([0.0, 0.0], 2),
        ([0.1, 0.2], 2),
        ([1.0, 0.0], 1),
        ([0.5, 0.5], 1),
        ([1.0, 1.0], 1),
        ([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0], 5),
    ],
)
def test_there_are_as_many_threads_as_cores_that_other_work_leaves(
    busy: list[float], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_to = look_at(monkeypatch, busy)
    found = environment.choose_threads()
    assert found.number == torch.get_num_threads() == expected
    assert set_to == ([] if expected == len(busy) else [expected])
    few = f" of {len(busy)}, as other work has {sum(busy):.1f} of {len(busy)} cores"
    assert found.why == (few if set_to else "")
    assert str(found).startswith("1 thread of" if expected == 1 else f"{expected} threads")


def test_threads_that_are_given_are_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to = look_at(monkeypatch, [1.0, 1.0, 1.0])
    assert environment.choose_threads(2) == (2, "") and set_to == [2]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert environment.choose_threads() == (2, "") and set_to == [2]


def test_where_activity_is_not_known_there_are_as_many_as_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_to = look_at(monkeypatch, [0.0] * 4)
    monkeypatch.setattr(psutil, "cpu_percent", lambda *_, **__: Path("/nowhere").read_text())
    assert environment.choose_threads() == (4, "") and set_to == []


@pytest.mark.parametrize("expected", [1, 2, 3, 4])
def test_a_limit_on_processor_time_is_one_on_threads(
    expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_at(monkeypatch, [0.0] * 4)
    monkeypatch.setattr(joblib, "cpu_count", lambda: expected)
    cores = "1 core" if expected == 1 else f"{expected} cores"
    why = "" if expected == 4 else f" of 4, as this process may use {cores}"
    assert environment.choose_threads() == (expected, why)


def test_the_processor_is_looked_at_as_it_is() -> None:
    cores, busy = environment.busy_cores()
    assert 1 <= cores <= (os.cpu_count() or 1) and 0 <= busy <= cores


@pytest.mark.slow
def test_a_run_says_its_threads_and_keeps_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    few_pictures: None,
) -> None:
    set_to = look_at(monkeypatch, [1.0, 1.0, 0.0])
    train(**SHORT | {"steps": 2}, run=tmp_path / "run")
    said = capsys.readouterr().out
    assert "1 thread of 3, as other work has 2.0 of 3 cores; give --threads N for another " in said
    assert ": toy under learned, step 0 of 2, 1 thread\n" in said
    assert Run.open(tmp_path / "run").config["threads"] == 1
    set_to.clear()
    torch.set_num_threads(3)
    train(resume=tmp_path / "run")
    assert set_to == [3, 1] and "step 2 of 2, 1 thread\n" in capsys.readouterr().out
    with pytest.warns(
        UserWarning, match="was trained with 1 thread and goes on with 2, so that it may round"
    ):
        train(resume=tmp_path / "run", threads=2)
    assert "step 2 of 2, 2 threads\n" in capsys.readouterr().out
    for more in ({"run": tmp_path / "none", **SHORT}, {"resume": tmp_path / "run"}):
        with pytest.raises(ValueError, match="--threads is 0, expected a positive number"):
            train(**more, threads=0)
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("threads: 1", "threads: 0"))
    with pytest.raises(ValueError, match="--threads is 0, expected a positive number"):
        train(resume=tmp_path / "run")


def test_a_resumed_run_has_its_threads_as_far_as_there_are_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_to = look_at(monkeypatch, [0.0] * 4)
    environment.keep_threads(3, None, tmp_path)
    environment.keep_threads(None, None, tmp_path)
    assert set_to == [3]
    with pytest.warns(
        UserWarning, match="was trained with 64 threads and goes on with 4, so that it may"
    ):
        environment.keep_threads(64, None, tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")  # and so has torch
    set_to.clear()
    with pytest.warns(UserWarning, match="was trained with 2 threads and goes on with 4"):
        environment.keep_threads(2, None, tmp_path)
    assert set_to == []
    with pytest.warns(UserWarning, match="was trained with 2 threads and goes on with 3"):
        environment.keep_threads(2, 3, tmp_path)
