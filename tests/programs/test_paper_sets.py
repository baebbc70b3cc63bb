"""The paper's protocol on made-up files of CIFAR-10 and ImageNet32, byte by byte as published."""

from __future__ import annotations

import functools
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from inference.folders.runs import Run
from inference.measuring import experiment_tables
from tests.brief import be_brief_here
from tests.processes import ROOT, Program, finish, signalled, together
from tests.programs.test_datasets import small_cifar10, small_new

SETS = {"cifar10": small_cifar10, "imagenet32": small_new}
FEW: dict[str, Any] = {
    "steps": 4,
    "batch_size": 8,
    "checkpoint_every": 2,
    "measure_every": 4,
    "draws": 1,
    "num_samples": 2,
    "sampler_steps": 2,
    "figures": False,
    "accelerator": "cpu",
}


def made_up(images: str, root: Path) -> None:
    """In a process of its own: files of few images at ``root``, their checksums, and a network of
    few channels."""
    from models import image_problem

    be_brief_here()
    patch = pytest.MonkeyPatch()
    made = root if not root.exists() else Path(tempfile.mkdtemp()) / "again"  # of the same bytes
    SETS[images](made, patch, 9)
    image_problem.PUBLISHED.update(base=8, multipliers=(1, 2), blocks=1, attention=())


@pytest.mark.other_processes
@pytest.mark.parametrize("images", SETS)
def test_a_run_by_the_recipe_is_killed_resumed_finished_and_evaluated(
    images: str, tmp_path: Path
) -> None:
    prepare = functools.partial(made_up, images, tmp_path / "data")
    settings = FEW | {"config": ROOT / "models" / f"{images}_paper.yaml", "data": tmp_path / "data"}
    words = [f"--{name}={value}" for name, value in settings.items()]

    def whole(*more: object) -> str:
        return finish(Program("inference.train", *words, *more, before=prepare))

    last = whole(f"--run={tmp_path / 'whole'}").splitlines()[-1]
    assert last.startswith("bits/dim")
    killed = signalled(signal.SIGKILL, 2, "checkpoints", prepare)
    program = Program("inference.train", *words, f"--run={tmp_path / 'run'}", before=killed)
    program.communicate()
    assert program.returncode == -signal.SIGKILL
    again = ("--resume", tmp_path / "run")
    assert finish(Program("inference.train", *again, before=prepare)).splitlines()[-1] == last
    evaluate = ("inference.evaluate", tmp_path / "run", "--draws", 1, "--accelerator", "cpu")
    assert "bits/dim" in finish(Program(*evaluate, before=prepare))
    if images != "cifar10":
        return
    # two processes, each with two micro-batches, of mixed precision
    options = ("--precision=bf16-mixed", "--micro_batches=2", f"--run={tmp_path / 'two'}")
    said = together(2, "inference.train", *words, *options, before=prepare).splitlines()[-1]
    values = [float(line.split()[1]) for line in (last, said)]
    assert values[1] == pytest.approx(values[0], rel=0.05)


def table_made_up(root: Path) -> None:
    """In a process of its own: the table of CIFAR-10, of two diffusions that are trained here."""
    made_up("cifar10", root)
    patch = pytest.MonkeyPatch()
    few = {name: value for name, value in FEW.items() if name != "steps"}
    patch.setitem(experiment_tables.SIZES, "cifar10", few)
    guides = {name: experiment_tables.PAPER_GUIDES[name] for name in ("vpsde", "learned2")}
    patch.setattr(experiment_tables, "PAPER_GUIDES", guides)
    patch.setattr(experiment_tables, "FIXED", ("vpsde",))

    popen: Any = subprocess.Popen

    def started(words: list[str], **options: Any) -> Any:
        return Here(words) if "inference.train" in words else popen(words, **options)

    patch.setattr(subprocess, "Popen", started)


class Here:
    """A training run in this process, in place of one of its own."""

    returncode = 0

    def __init__(self, words: list[str]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", words[2:])
            sys.modules.pop(words[2], None)
            runpy.run_module(words[2], run_name="__main__")

    def wait(self) -> None: ...


@pytest.mark.other_processes
def test_the_table_of_a_data_set_by_one_command(tmp_path: Path) -> None:
    words = ("--model=cifar10", "--steps=4", "--seeds=1", "--draws=4", "--half_width=9")
    folders = (f"--root={tmp_path}", f"--data={tmp_path / 'data'}")
    prepare = functools.partial(table_made_up, tmp_path / "data")
    said = finish(Program("inference.experiment", "paper", *words, *folders, before=prepare))
    assert "| learned2 | vpsde |" in said
    folder = tmp_path / "paper-cifar10"
    assert {path.name for path in folder.glob("*.*")} >= {
        "learned.csv",
        "learned.md",
        "summary.csv",
    }
    assert Run.open(folder / "noise-learned2-0").config["model"] == "cifar10"
