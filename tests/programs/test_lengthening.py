"""A run goes on to more steps than it had: ``--resume RUN --steps N``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from inference.folders import runs
from inference.folders.checkpoints import latest_checkpoint
from inference.folders.loading import load_trained
from inference.folders.runs import Run, RunError
from inference.train import train
from inference.training import report
from inference.training.trainee import Trainee
from pyro_mdm.conditioning import completions
from pyro_mdm.training import schedule
from tests.brief import SHORT, be_brief
from tests.conditioning.test_missing_at_random import people
from tests.programs.running import Stopped, assert_same_run, stopped_after

pytestmark = [pytest.mark.usefixtures("few_pictures"), pytest.mark.without_noise]

OPTIONS: dict[str, Any] = SHORT | {"guide": "learned", "learn_ends": 2.0, "log_every": 1}


@pytest.fixture(scope="module")
def ended(made_once: Callable[..., Path]) -> Path:
    """A run of four steps, which tests only read, and the same lengthened to eight."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            be_brief(patch)
            train(run=folder / "run", **OPTIONS)
            shutil.copytree(folder / "run", folder / "longer")
            train(resume=folder / "longer", steps=8)

    return made_once("runs-to-lengthen", make)


@pytest.fixture
def run(ended: Path, tmp_path: Path) -> Path:
    """A copy of the run of four steps."""
    shutil.copytree(ended / "run", tmp_path / "run")
    return tmp_path / "run"


def steps_said(run: Path) -> list[int]:
    """The number of steps by config.yaml, and by the newest checkpoint."""
    opened, config = Run.open(run), yaml.safe_load((run / "config.yaml").read_text())
    return [config["steps"], opened.latest().state["config"]["steps"]]


@pytest.mark.slow
def test_the_steps_that_were_lacking_are_taken(
    run: Path, ended: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the rates of a run of eight steps, with the batches of its steps 4 to 7; what was written
    before stays."""
    taken: list[tuple[int, float]] = []
    one: Any = Trainee.step

    def step(self: Trainee, at: int, *arguments: int) -> Any:
        made = one(self, at, *arguments)
        taken.append((at, made.rate))
        return made

    monkeypatch.setattr(Trainee, "step", step)
    config = yaml.safe_load((run / "config.yaml").read_text())
    record = Run.open(run).latest().state["record"]
    before = {name: (run / name).read_bytes()[: own["bytes"]] for name, own in record.items()}
    bound = train(resume=run, steps=8)
    assert [at for at, _ in taken] == [4, 5, 6, 7]
    rate = Run.open(run).config["learning_rate"]
    assert [r for _, r in taken] == [rate * schedule(at, 8, 1) for at in range(4, 8)]
    new = yaml.safe_load((run / "config.yaml").read_text())
    assert new == config | {"steps": 8} and list(new) == list(config)
    assert steps_said(run) == [8, 8]
    assert all((run / name).read_bytes().startswith(text) for name, text in before.items())
    after = (run / "metrics.csv").read_text().splitlines()
    logged = [row.split(",")[0] for row in after if ",objective," in row]
    assert logged == [str(at) for at in range(1, 9)]
    measured = [r["step"] for r in Run.open(run).metrics.history() if r["part"] == "validation"]
    assert measured == [4, 8]
    results = json.loads((run / "results.json").read_text())
    assert results["steps"] == 8 and results["bits_per_dim"]["value"] == bound.bits_per_dim[0]
    assert [r["step"] for r in Run.open(run).metrics.history() if r["part"] == "test"] == [8]
    assert_same_run(run, ended / "longer")
    _, programs, checkpoint = load_trained(run)
    assert checkpoint.step == 8 and checkpoint.state["lengthened"] == [[4, 4]]
    score: Any = programs.model.score_function
    assert torch.isfinite(torch.stack([score.trained_min, score.trained_max])).all()
    shutil.rmtree(run / "checkpoints")
    assert load_trained(run)[2].state["config"]["steps"] == 8
    first, second = (load_trained(r)[1].model.parameters() for r in (run, ended / "run"))
    assert not all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.slow
def test_the_batches_are_those_of_a_run_of_so_many_steps(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, so that no data are passed over, though the weights are others."""
    seen: list[torch.Tensor] = []
    own: Any = Trainee.step

    def step(self: Trainee, at: int, *arguments: int) -> Any:
        seen.extend(self.batches(at))
        return own(self, at, *arguments)

    monkeypatch.setattr(Trainee, "step", step)
    train(resume=run, steps=8)
    train(run=tmp_path / "whole", **OPTIONS | {"steps": 8})
    assert len(seen) == 12 and all(map(torch.equal, seen[:4], seen[8:]))
    with pytest.raises(AssertionError):
        assert_same_run(run, tmp_path / "whole")


@pytest.mark.slow
def test_what_is_filled_is_of_the_rows_that_are_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which are others by the number of steps; a run that is killed meanwhile is the same."""
    monkeypatch.setattr(completions, "DRAWS", 4)
    monkeypatch.setattr(completions, "MOST", 64)
    own, filled = completions.Filling.fill, []

    def fill(self: Any, x: torch.Tensor, step: int, piece: slice) -> torch.Tensor:
        completed = own(self, x, step, piece)
        there = self.values[self._places(step)[piece]]
        assert torch.equal(there[~x.isnan()], x[~x.isnan()])
        filled.append(step)
        return completed

    monkeypatch.setattr(completions.Filling, "fill", fill)
    options: dict[str, Any] = SHORT | {"model": "tabular", "data": people(), "guide": "vpsde"}
    options |= {"test_size": None, "log_every": 1, "measure_every": 13}
    train(**options, run=tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "killed")
    train(resume=tmp_path / "run", steps=13)
    assert filled == list(range(13))
    with stopped_after(5):
        train(resume=tmp_path / "killed", steps=13)
    train(resume=tmp_path / "killed")
    assert_same_run(tmp_path / "run", tmp_path / "killed")
    assert Run.open(tmp_path / "run").config["data"] == str(tmp_path / "run" / "table.json")


@pytest.mark.parametrize("at", [5, 7])
def test_a_lengthened_run_that_is_stopped_resumes_bit_for_bit(
    at: int, run: Path, ended: Path
) -> None:
    """Before its first new checkpoint, and after it."""
    with stopped_after(at):
        train(resume=run, steps=8)
    assert not (run / "results.json").exists() and steps_said(run) == [8, 8]
    assert load_trained(run)[2].step == (4 if at == 5 else 6)
    train(resume=run)
    assert_same_run(run, ended / "longer")


@pytest.mark.parametrize("name", ["restate", "write_atomically", "unlink"])
def test_killed_while_it_is_lengthened_it_opens_and_resumes(
    name: str, run: Path, ended: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and between the files that say the number of steps."""
    write = runs.write_atomically

    def killed(*arguments: Any, **options: Any) -> None:
        if name != "write_atomically" or arguments[0].name == "config.yaml":
            raise Stopped
        write(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(*((Path, "unlink") if name == "unlink" else (runs, name)), killed)
        train(resume=run, steps=8)
    lengthened = name == "write_atomically"
    assert steps_said(run) == [4, 8 if lengthened else 4]
    opened, _, checkpoint = load_trained(run)
    assert checkpoint.step == 4 and opened.config["steps"] == (8 if lengthened else 4)
    train(resume=run, steps=None if lengthened else 8)
    assert steps_said(run) == [8, 8]
    assert_same_run(run, ended / "longer")


def test_lengthened_twice_and_killed_both_times_it_has_the_last_number(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = runs.write_atomically

    def killed(path: Path, data: bytes) -> None:
        if path.name == "config.yaml":
            raise Stopped
        write(path, data)

    for steps in (6, 5):
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            patch.setattr(runs, "write_atomically", killed)
            train(resume=run, steps=steps)
    assert steps_said(run) == [4, 5]
    train(resume=run)
    assert steps_said(run) == [5, 5] and latest_checkpoint(run / "checkpoints").step == 5
    assert Run.open(run).latest().state["lengthened"] == [[4, 4], [4, 6]]


def test_if_the_newest_checkpoint_is_damaged_the_one_before_it_goes_on(run: Path) -> None:
    with stopped_after(5):
        train(resume=run, steps=8)
    path = run / "checkpoints" / "step-00000004.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="going back to the checkpoint before it"):
        train(resume=run)
    assert json.loads((run / "results.json").read_text())["steps"] == 8


@pytest.mark.slow
def test_an_unfinished_run_and_one_without_a_checkpoint_are_lengthened(tmp_path: Path) -> None:
    """And may end earlier than they were to."""
    for steps, at, name in ((6, 3, "older"), (3, 3, "shorter"), (5, 1, "young")):
        with stopped_after(at):
            train(run=tmp_path / name, **OPTIONS)
        train(resume=tmp_path / name, steps=steps)
        assert steps_said(tmp_path / name) == [steps, steps]
        assert json.loads((tmp_path / name / "results.json").read_text())["steps"] == steps
    train(run=tmp_path / "whole", **OPTIONS | {"steps": 5})
    assert_same_run(tmp_path / "young", tmp_path / "whole")  # which had taken no step


def test_what_cannot_be_lengthened_says_why(run: Path, ended: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for steps in (4, 1, -2):
        with pytest.raises(RunError, match=rf"--steps is {steps}, .* has taken 4 of 4; expected"):
            train(resume=run, steps=steps)
    after = {path: path.read_bytes() for path in before}
    assert after == before


def test_more_steps_do_not_bring_patience_back(tmp_path: Path) -> None:
    options = OPTIONS | {"steps": 12, "learning_rate": 1e-12, "diffusion_learning_rate": 0.0}
    options |= {"patience": 2, "learn_ends": None, "measure_every": 2}
    train(run=tmp_path / "run", **options)
    with pytest.raises(RunError, match=r"was stopped at step 6 by --patience 2, which would stop"):
        train(resume=tmp_path / "run", steps=20)
    assert steps_said(tmp_path / "run") == [12, 12]
    assert train(resume=tmp_path / "run").num_data == 32


def test_results_of_the_new_end_are_drawn(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the earlier one are gone as soon as it goes on."""
    drawn = (run / "samples.png").read_bytes()

    def stop(*arguments: Any, **options: Any) -> Any:
        raise Stopped

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(report, "at_end", stop)
        train(resume=run, steps=6)
    assert not (run / "samples.png").exists() and not (run / "results.json").exists()
    train(resume=run)
    assert (run / "samples.png").read_bytes() != drawn
    events = EventAccumulator(str(run / "tensorboard")).Reload().Tensors("settings/text_summary")
    tables = [event.tensor_proto.string_val[0].decode() for event in events]
    assert [event.step for event in events] == [0, 4]
    assert "| steps | 4 |" in tables[0] and "| steps | 6 |" in tables[1]


def test_a_mean_of_one_step_has_no_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(run=tmp_path / "run", **OPTIONS | {"steps": 2})
    said = capfd.readouterr().err
    assert "bits/dim" in said and "nan" not in said
