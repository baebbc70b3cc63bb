"""The run folder: nothing is lost, nothing is overwritten, nothing damaged is believed."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from torch import nn

from inference import checkpoints as ck
from inference.runs import Run, RunError, default_folder


def checkpoint(step: int) -> ck.Checkpoint:
    generator = torch.Generator().manual_seed(step)
    tensors = {
        "model/w": torch.randn(3, 4, generator=generator),
        "model/Q": torch.randn(2, 2, generator=generator, dtype=torch.float64),
        "optimizer/w/step": torch.tensor(float(step)),
    }
    return ck.Checkpoint(step, tensors, {"sum": 0.1 + step, "config": {"lr": 1e-3}})


def newest(folder: Path, suffix: str) -> Path:
    return sorted(folder.glob(f"step-*{suffix}"))[-1]


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    saved = checkpoint(7)
    loaded = ck.load_checkpoint(ck.save_checkpoint(tmp_path, saved))
    assert loaded.step == 7 and loaded.state == saved.state
    assert loaded.tensors.keys() == saved.tensors.keys()
    for name, tensor in saved.tensors.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert torch.equal(loaded.tensors[name], tensor)
    assert loaded.part("model").keys() == {"w", "Q"}


def test_tensors_that_share_storage_are_saved(tmp_path: Path) -> None:
    base = torch.arange(6.0)
    tensors = {"a": base[:3], "b": base[:3], "c": base.reshape(2, 3).T, "d": base[:1].expand(4)}
    loaded = ck.load_checkpoint(ck.save_checkpoint(tmp_path, ck.Checkpoint(1, tensors)))
    assert all(torch.equal(loaded.tensors[k], tensors[k]) for k in tensors)


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 9, 10):
        ck.save_checkpoint(tmp_path, checkpoint(step))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"step-{s:08d}.{e}" for s in (9, 10) for e in ("json", "safetensors")
    ]
    assert ck.latest_checkpoint(tmp_path).step == 10


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
@pytest.mark.parametrize("damage", [_truncate, _flip, _empty])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    tmp_path: Path, damage: Callable[[Path], None], suffix: str
) -> None:
    for step in (1, 2):
        ck.save_checkpoint(tmp_path, checkpoint(step))
    damage(newest(tmp_path, suffix))
    with pytest.warns(UserWarning, match=r"step-00000002.*damaged.*going back"):
        loaded = ck.latest_checkpoint(tmp_path)
    assert loaded.step == 1
    assert torch.equal(loaded.tensors["model/w"], checkpoint(1).tensors["model/w"])


def test_every_single_flipped_bit_of_the_description_is_noticed(tmp_path: Path) -> None:
    description = ck.save_checkpoint(tmp_path, checkpoint(3))
    data = description.read_bytes()
    values = json.loads(data)
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 4
        description.write_bytes(bytes(flipped))
        try:
            ck.load_checkpoint(description)
        except ck.CheckpointError:
            continue
        # only white space may change without changing what is read
        assert json.loads(bytes(flipped)) == values


def test_missing_tensors_and_no_checkpoint_at_all(tmp_path: Path) -> None:
    with pytest.raises(ck.CheckpointError, match="no checkpoint was written"):
        ck.latest_checkpoint(tmp_path)
    ck.save_checkpoint(tmp_path, checkpoint(1))
    _remove(newest(tmp_path, ".safetensors"))
    with (
        pytest.warns(UserWarning, match="missing"),
        pytest.raises(ck.CheckpointError, match=r"no usable checkpoint.*is missing"),
    ):
        ck.latest_checkpoint(tmp_path)


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_killed_while_writing_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    ck.save_checkpoint(tmp_path, checkpoint(1))
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if str(target).endswith(suffix):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        ck.save_checkpoint(tmp_path, checkpoint(2))
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ck.latest_checkpoint(tmp_path).step == 1
    assert not list(tmp_path.glob("*.tmp"))


class Bomb:
    """Unpickling this makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def test_a_malicious_pickle_is_never_loaded(tmp_path: Path) -> None:
    mark = tmp_path / "owned"
    bomb = pickle.dumps(Bomb(mark))
    pickle.loads(bomb)
    assert mark.is_dir()  # it does work
    mark.rmdir()

    folder = tmp_path / "checkpoints"
    description = ck.save_checkpoint(folder, checkpoint(1))
    tensors = description.with_suffix(".safetensors")
    outer = json.loads(description.read_text())
    # with a right checksum too: the attacker can write both files
    body = outer["checkpoint"] | {"tensors_sha256": ck.hashlib.sha256(bomb).hexdigest()}
    description.write_text(json.dumps({"checkpoint": body, "sha256": ck._digest(body)}))
    tensors.write_bytes(bomb)
    torch.save(Bomb(mark), folder / "step-00000002.pt")
    with pytest.raises(ck.CheckpointError, match="damaged"):
        ck.load_checkpoint(description)
    description.write_bytes(bomb)
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ck.CheckpointError):
        ck.latest_checkpoint(folder)
    assert not mark.exists()


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


def test_the_optimizer_goes_on_as_if_nothing_had_happened() -> None:
    def build() -> tuple[nn.Sequential, torch.optim.Optimizer]:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1).double())
        groups = [
            {"params": list(module[1].parameters()), "lr": 0.1},  # not the module's own order
            {"params": list(module[0].parameters()), "lr": 0.2},
        ]
        return module, torch.optim.Adam(groups)

    names = ["1.weight", "1.bias", "0.weight", "0.bias"]

    def steps(module: nn.Sequential, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            module[1](module[0](torch.ones(2, 3)).double()).square().sum().backward()
            optimizer.step()

    module, optimizer = build()
    steps(module, optimizer, 3)
    tensors = ck.optimizer_tensors(optimizer, names)
    assert "1.weight/exp_avg" in tensors and len(tensors) == 12
    weights = {k: v.clone() for k, v in module.state_dict().items()}
    tensors = {k: v.clone() for k, v in tensors.items()}
    steps(module, optimizer, 2)
    other, resumed = build()
    other.load_state_dict(weights)
    ck.load_optimizer(resumed, tensors, names)
    steps(other, resumed, 2)
    for name, value in module.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    with pytest.raises(ck.ArchitectureError, match=r"'1\.weight'"):
        ck.load_optimizer(resumed, tensors, ["a", "b", "c", "d"])


# -- the folder ------------------------------------------------------------------------------------


def test_every_run_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    first = default_folder("digits", "a/b/file.py:My_Guide", 3, tmp_path)
    assert first.name == "digits-my_guide-3-0"
    Run.create(first, {})
    assert default_folder("digits", "c.py:My_Guide", 3, tmp_path).name == "digits-my_guide-3-1"


def test_an_existing_run_is_refused_unless_asked(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = Run.create(folder, {"seed": 1})
    run.log(3, "train", {"bits_per_dim": 2.0})
    run.save(checkpoint(3))
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"already holds a run; continue it with --resume"):
        Run.create(folder, {"seed": 2})
    assert run.latest().step == 3 and len(pd.read_csv(folder / "metrics.csv")) == 1
    Run.create(folder, {"seed": 2}, overwrite=True)
    assert Run.open(folder).config == {"seed": 2}
    assert not list(folder.glob("checkpoints/*"))
    assert (folder / "notes.txt").read_text() == "mine"  # not a run's file


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


def test_the_folder_explains_itself(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {"model": "toy", "steps": 5, "ema": 0.9, "rank": None})
    assert yaml.safe_load((run.folder / "config.yaml").read_text()) == run.config
    environment = json.loads((run.folder / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    run.write_json("results.json", {"mean": 1.5, "bad": float("nan"), "list": [float("inf")]})
    results = json.loads((run.folder / "results.json").read_text())
    assert results == {"mean": 1.5, "bad": None, "list": [None]}


def test_metrics_are_a_table_and_rewind_to_a_checkpoint(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {})
    for step in (10, 20, 30):
        run.log(step, "train", {"bits_per_dim": 1 / step, "bits_per_dim_standard_error": 0.01})
    table = pd.read_csv(run.folder / "metrics.csv")
    assert table.step.tolist() == [10, 20, 30]
    assert table.bits_per_dim.tolist() == [1 / 10, 1 / 20, 1 / 30]  # every digit
    assert table.diffusion.isna().all()
    with open(run.folder / "metrics.csv", "a") as file:
        file.write("40,train,0.02")  # killed in the middle of a row
    run.rewind(20)
    assert pd.read_csv(run.folder / "metrics.csv").step.tolist() == [10, 20]
    with pytest.raises(ValueError, match="unknown columns"):
        run.log(1, "train", {"loss": 1.0})


def test_the_history_keeps_every_digit_and_rewinds_to_a_checkpoint(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {})
    for step in (10, 20, 30):
        run.record(step, "train", {"terms": {"λ": [1 / step, float("nan")]}})
    run.record(20, "test", {})
    assert [r["step"] for r in run.history()] == [10, 20, 30, 20]
    first = {"step": 10, "part": "train", "terms": {"λ": [1 / 10, None]}}
    assert run.history()[0] == first
    with open(run.folder / "history.jsonl", "a") as file:
        file.write('{"step": 40, "part": "train", "ter')  # killed in the middle of a line
    assert [r["step"] for r in run.history()] == [10, 20, 30, 20]
    run.rewind(20)
    assert [r["step"] for r in run.history()] == [10, 20]
    assert run.history()[0] == first
    run.record(25, "train", {})  # what follows a torn line is whole again
    assert [r["step"] for r in run.history()] == [10, 20, 25]
    Run.create(run.folder, {}, overwrite=True)
    assert run.history() == []


@pytest.mark.parametrize("line", ["[1, 2]", "3", '{"step": 5}', "\x00\x00", ""])
def test_a_damaged_line_of_the_history_is_left_out(tmp_path: Path, line: str) -> None:
    run = Run.create(tmp_path / "run", {})
    run.record(1, "train", {})
    with open(run.folder / "history.jsonl", "a") as file:
        file.write(line + "\n")
    run.record(2, "train", {})
    assert [r["step"] for r in run.history()] == [1, 2]


def test_a_run_without_a_history_has_an_empty_one_and_rewinds(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {})
    assert run.history() == []
    run.rewind(5)
    run.record(6, "train", {})
    assert [r["step"] for r in run.history()] == [6]
