"""Every file of a run, damaged in every way, and every setting, of every type: what comes of it is
an error in words, or the same numbers, and never others."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import typing
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from inference import trust
from inference.commands.cli import MISTAKES, command_line
from inference.folders.config import CODE, MACHINE, STATE
from inference.folders.loading import load_trained
from inference.folders.metrics import FILES as RECORD
from inference.folders.records import read_sealed
from inference.folders.runs import Run, RunError
from inference.settings.kinds import is_of
from inference.settings.options import GROUPS, Decided, Training
from inference.train import train
from pyro_mdm.pretrained import TENSORS, load_state
from tests.brief import SHORT, be_brief
from tests.programs.running import (
    TINY,
    Stopped,
    assert_same_run,
    rewrite,
    stop_after,
    stopped_after,
    without,
)

pytestmark = [pytest.mark.usefixtures("few_pictures"), pytest.mark.without_noise]

BEST = TINY + "\n\nclass Best(Tiny):\n    keeps_best = True  # history.jsonl chooses its weights\n"


@pytest.fixture(scope="module")
def runs(made_once: Callable[..., Path]) -> Path:
    """The run ``whole``; ``stopped`` after its first checkpoint, at step 2 of 4; and ``other``."""

    def make(folder: Path) -> None:
        (folder / "mine.py").write_text(BEST)
        options = SHORT | {"model": f"{folder / 'mine.py'}:Best", "guide": "learned"}
        options |= {"figures": False, "batch_size": 16, "log_every": 1}
        with pytest.MonkeyPatch.context() as patch:
            be_brief(patch)
            train(run=folder / "whole", **options)
            for name, seed in {"stopped": 0, "other": 1}.items():
                with stopped_after(3):
                    train(run=folder / name, seed=seed, **options)

    return made_once("runs-to-damage", make)


@pytest.fixture
def stopped(runs: Path, tmp_path: Path) -> Path:
    """A copy of the stopped run, to be damaged."""
    shutil.copytree(runs / "stopped", tmp_path / "run")
    return tmp_path / "run"


def said(action: Callable[[], object]) -> str | None:
    """What an action is refused with, in words; None: it is done. Warnings are as they may be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            action()
        except MISTAKES as error:
            return str(error)
    return None


def weights(run: Path) -> dict[str, Tensor]:
    return load_trained(run)[1].model.state_dict()


def assert_same_weights(run: Path, other: Path) -> None:
    """Read from two files, not computed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one, two = weights(run), weights(other)
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


# -- every file ------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    """The last bit of a character in the middle, a digit where there is one near."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    digits = [i for i in range(middle, len(data)) if data[i : i + 1].isdigit()]
    data[digits[0] if digits else middle] ^= 1
    path.write_bytes(bytes(data))


def link(path: Path, other: Path) -> None:
    path.unlink()
    path.symlink_to(other)


DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "cut": lambda path, other: os.truncate(path, path.stat().st_size // 2),
    "flipped": lambda path, other: flip(path),
    "emptied": lambda path, other: os.truncate(path, 0),
    "removed": lambda path, other: path.unlink(),
    "replaced": lambda path, other: path.write_bytes(other.read_bytes()),
    "linked": link,
}
FILES = ("config.yaml", "environment.json", "data.json", "sessions.jsonl", *RECORD)
FILES += ("checkpoints/step-00000002.safetensors", "model.safetensors")
UNREAD = ("environment.json", "sessions.jsonl", "model.safetensors")
"""What training on does not go by."""


@pytest.mark.parametrize(("name", "damage"), [*itertools.product(FILES, DAMAGES), (".lock", "cut")])
def test_a_damaged_file_is_an_error_or_the_same_run(
    runs: Path, stopped: Path, name: str, damage: str
) -> None:
    other = stopped.parent / "other"  # which a link must not lead into
    shutil.copytree(runs / "other", other)
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    DAMAGES[damage](stopped / name, other / name)
    if said(lambda: load_trained(stopped)) is None:
        assert_same_weights(stopped, runs / "stopped")
    with pytest.MonkeyPatch.context() as patch:
        if name in UNREAD:  # below, with all of them damaged, it goes on to its end
            stop_after(3, patch)
        try:
            words = said(lambda: train(resume=stopped))
        except Stopped:
            assert name in UNREAD
        else:
            assert words is not None or name not in UNREAD
            if words is None:
                assert_same_run(stopped, runs / "whole")
            else:
                assert str(stopped) in words or name in words
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize("damage", ["removed", "replaced"])
def test_training_on_goes_by_the_checkpoint(runs: Path, stopped: Path, damage: str) -> None:
    """To the end of the run, without what does not say how it goes on, and with that of another."""
    for name in UNREAD:
        DAMAGES[damage](stopped / name, runs / "other" / name)
    train(resume=stopped)
    assert_same_run(stopped, runs / "whole")


@pytest.mark.parametrize("name", RECORD)
@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "removed", "replaced"])
def test_a_damaged_record_is_named(runs: Path, stopped: Path, name: str, damage: str) -> None:
    """By history.jsonl weights are chosen, and metrics.csv lost rows."""
    state = Run.open(stopped).latest().state
    os.truncate(stopped / name, state["record"][name]["bytes"])  # nothing came after it
    DAMAGES[damage](stopped / name, runs / "other" / name)
    with pytest.raises(RunError, match=rf"{name} is damaged: its first .* Put the file back"):
        train(resume=stopped)


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "results.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_without_its_checkpoints_is_an_error_or_the_same(
    runs: Path, tmp_path: Path, name: str, damage: str
) -> None:
    """As are the trained models of the repository."""
    run = tmp_path / "run"
    shutil.copytree(runs / "whole", run)
    shutil.rmtree(run / "checkpoints")
    assert_same_weights(run, runs / "whole")
    other = runs / "other" / name.replace("results.json", "data.json")
    DAMAGES[damage](run / name, other)
    if (words := said(lambda: load_trained(run))) is None:
        assert_same_weights(run, runs / "whole")
    else:
        assert str(run) in words or name in words


def test_a_run_that_was_being_replaced_begins_by_resume(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while files of the earlier run go."""
    run = tmp_path / "run"
    shutil.copytree(runs / "other", run)
    settings = yaml.safe_load((runs / "whole" / "config.yaml").read_text())

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        Run.create(run, settings, overwrite=True)
    words = said(lambda: load_trained(run))
    assert words is not None and f"begin this one by --resume {run}" in words
    train(resume=run)
    assert_same_run(run, runs / "whole")


def test_the_model_of_an_earlier_checkpoint_is_refused_and_written_again(
    runs: Path, tmp_path: Path
) -> None:
    """As a kill leaves it between the last checkpoint and the model; later they are one."""
    run, whole = tmp_path / "run", runs / "whole"
    shutil.copytree(whole, run)
    shutil.copy(runs / "stopped" / TENSORS, run / TENSORS)
    (run / "results.json").unlink()
    assert "has not the weights of" in str(said(lambda: load_state(run)))
    train(resume=run)
    state, notes = load_state(run)
    expected, notes_then = load_state(whole)
    assert notes == notes_then and all(torch.equal(state[name], expected[name]) for name in state)
    shutil.copy(runs / "stopped" / TENSORS, run / TENSORS)
    shutil.rmtree(run / "checkpoints")
    words = said(lambda: load_trained(run))
    assert words is not None and "weights of step 2" in words and "is of step 4" in words


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_results_are_an_error_or_the_same(runs: Path, tmp_path: Path, damage: str) -> None:
    """Of which tables over runs are made."""
    path, other = tmp_path / "results.json", tmp_path / "other.json"
    shutil.copy(runs / "whole" / path.name, path)
    results = read_sealed(path)
    assert results["steps"] == 4 and "sha256" not in results
    other.write_text(path.read_text().replace('"steps": 4', '"steps": 5'))
    DAMAGES[damage](path, other)
    words = said(lambda: read_sealed(path)) if path.exists() else "is not there"
    assert words is not None and ("results.json is damaged" in words or not path.exists())
    path.unlink(missing_ok=True)
    path.write_text(json.dumps(results))
    with pytest.raises(RunError, match="its checksum does not match"):
        read_sealed(path)


def test_a_run_that_shares_its_files_with_a_copy_leaves_the_copy_as_it_was(
    runs: Path, stopped: Path
) -> None:
    """As ``cp -al`` makes it, to try two ways from one checkpoint."""
    copy = stopped.parent / "copy"
    shutil.copytree(stopped, copy, copy_function=os.link)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    train(resume=stopped)
    assert_same_run(stopped, runs / "whole")
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_run_that_ended_before_its_first_checkpoint_begins_with_nothing(
    runs: Path, tmp_path: Path
) -> None:
    config = yaml.safe_load((runs / "whole" / "config.yaml").read_text())
    del config["version"]
    options = config | {"checkpoint_every": 4}
    with stopped_after(3):
        train(run=tmp_path / "young", **options)
    first = [(r["step"], r["part"]) for r in Run.open(tmp_path / "young").metrics.history()]
    assert (0, "diffusion") in first and not Run.open(tmp_path / "young").has_checkpoint
    train(resume=tmp_path / "young")
    again = [(r["step"], r["part"]) for r in Run.open(tmp_path / "young").metrics.history()]
    whole = [(r["step"], r["part"]) for r in Run.open(runs / "whole").metrics.history()]
    assert again == whole and len(set(again)) == len(again)


# -- every setting ---------------------------------------------------------------------------------

VALUES: list[Any] = ["text", 7, 0.5, True, False, None, [1, 2], ["a"], {"a": 1}]
FIELDS = [field.name for field in dataclasses.fields(Training) if field.name != "data"]


def one_more(value: object) -> object:
    """A setting with one digit or letter changed; of the same type where it has one."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return type(value)(value * 2 or 1)
    return f"{value}x"


@pytest.mark.parametrize("name", FIELDS)
def test_a_setting_that_is_not_that_of_the_weights_is_named(stopped: Path, name: str) -> None:
    """In the programs that read a run, and in training on."""
    path = stopped / "config.yaml"
    config = yaml.safe_load(path.read_text())
    latest = Run.open(stopped).latest()
    for value in [*VALUES, one_more(config[name])]:
        if value == config[name] and type(value) is type(config[name]):
            continue
        path.write_text(yaml.safe_dump(config | {name: value}))
        programs: list[Any] = [lambda run: Run.open(run).go_by(latest)]
        if value == one_more(config[name]):  # which opens the run in the same way
            programs.append(load_trained)
        for program in programs:
            words = said(lambda program=program: program(stopped))  # type: ignore[misc]
            if name in MACHINE:  # another machine is another machine, but of the right type
                assert words is None or name in words, value
            else:
                assert words is not None and f"{name}: " in words, value


@pytest.mark.parametrize("name", ["learning_rate", "split_seed"])
def test_training_goes_on_by_the_settings_of_its_weights(stopped: Path, name: str) -> None:
    path = stopped / "config.yaml"
    config = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(config | {name: one_more(config[name])}))
    before = (stopped / "metrics.csv").read_bytes()
    with pytest.raises(RunError, match=rf"(?s)not what the weights .*  {name}: .*Set them back"):
        train(resume=stopped)
    assert (stopped / "metrics.csv").read_bytes() == before


def test_another_machine_is_said_and_the_place_of_code_too(runs: Path, stopped: Path) -> None:
    path = stopped / "config.yaml"
    config = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(config | {"threads": 2}))
    with pytest.warns(UserWarning, match=r"threads: 1 in the checkpoint, 2 in config\.yaml"):
        load_trained(stopped)
    moved = stopped.parent / "mine.py"
    moved.write_text(BEST)
    assert "model" in CODE and load_trained(runs / "whole")
    path.write_text(yaml.safe_dump(config | {"model": f"{moved}:Best"}))
    with pytest.warns(UserWarning, match=r"model: '.*mine\.py:Best' in the checkpoint"):
        Run.open(stopped).go_by(Run.open(stopped).latest())


def wrong_values(name: str) -> Iterator[Any]:
    """Values that a field of no run can have."""
    config = {f.name: f.default for f in dataclasses.fields(Decided)}
    needed = {"steps": 4, "batch_size": 8, "learning_rate": 0.1, "measure_every": 2}
    config |= needed | {"sampler_steps": 4}
    for value in VALUES:
        try:
            Decided.from_config(config | {name: value})
        except TypeError as error:
            assert f"config.yaml: {name} is " in str(error) and "expected " in str(error)
            yield value


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Training)])
def test_a_setting_of_another_type_is_refused_before_it_is_used(name: str) -> None:
    """Also in a run that has no weights to compare it with."""
    wrong = list(wrong_values(name))
    assert {"a": 1} in wrong and ["a"] in wrong and len(wrong) >= 4


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Training)])
def test_an_option_of_another_type_is_refused_in_a_file_of_options(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({name: {"a": 1}}))
    with pytest.raises(SystemExit, match="2"):
        command_line(train, [f"--config={file}"], groups=GROUPS)
    assert name in capsys.readouterr().err
    hint = typing.get_type_hints(Training)[name]
    if not is_of(None, hint):  # what a file leaves empty is null
        with pytest.raises(TypeError, match=f"--{name} is null, expected .*; leave it out"):
            train(**SHORT | {name: None})


@pytest.mark.parametrize("name", STATE)
def test_a_checkpoint_whose_description_has_other_types_is_refused(
    stopped: Path, name: str
) -> None:
    """With the right checksum, as a person could write it."""
    state = Run.open(stopped).latest().state
    for value in ("text", [1, "a"], {"a": "b"}, None):
        if isinstance(value, str) and STATE[name] is str:
            continue
        wrong = state | {name: value}
        rewrite(stopped, state=lambda _, wrong=wrong: wrong)  # type: ignore[misc]
        words = said(lambda: train(resume=stopped))
        assert words is not None, value
        assert name in words or "damaged" in words or "not the one" in words, words


@pytest.mark.parametrize("content", ["[]", "3", '{"train": 3}', '{"train": {}}', "null", "{"])
def test_what_says_of_the_data_is_the_checkpoint(runs: Path, stopped: Path, content: str) -> None:
    (stopped / "data.json").write_text(content)
    assert_same_weights(stopped, runs / "stopped")


def test_weights_without_settings_are_refused(stopped: Path) -> None:
    rewrite(stopped, state=without("config"))
    for program in (load_trained, lambda folder: train(resume=folder)):
        words = said(lambda program=program: program(stopped))  # type: ignore[misc]
        assert words is not None and "no settings beside them" in words


def test_another_data_set_is_refused_by_every_program(stopped: Path) -> None:
    """A set of one's own may need anything of its data: its levels, its scales."""
    config = yaml.safe_load((stopped / "config.yaml").read_text())
    mine = Path(config["model"].partition(":")[0])
    moved = stopped.parent / mine.name
    moved.write_text(mine.read_text().replace("size, shift = 200, 0.5", "size, shift = 220, 0.5"))
    (stopped / "config.yaml").write_text(yaml.safe_dump(config | {"model": f"{moved}:Best"}))
    with trust.trusting():
        for program in (load_trained, lambda run: train(resume=run)):
            words = said(lambda program=program: program(stopped))  # type: ignore[misc]
            assert words is not None and "the data set is not the one that" in words
