"""The trained models that the repository ships: opened by name, and as good as they are said to be.

Nothing is trained here.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image

from inference import evaluate, impute, restore, sample, trust
from inference.compare import open_runs
from inference.folders.checkpoints import RunError
from inference.folders.loading import load_trained
from inference.folders.output import default_out
from inference.folders.runs import Run
from inference.measuring.bounds import measure
from inference.settings.names import own_names
from inference.train import train
from models.tabular import read_table
from pyro_mdm import DiffusionGuide, DiffusionModel, bound, condition, pretrained
from pyro_mdm.conditioning import class_posterior
from pyro_mdm.pretrained import (
    TRAINED,
    PretrainedError,
    trained_folder,
    trained_models,
)

FILES = {"config.yaml", "model.safetensors", "results.json"}
BYTES = 3_000_000
NAMES = ("digits", "wine")
PAGE = (TRAINED / "README.md").read_text(encoding="utf-8")


def contents() -> dict[str, tuple[int, int]]:
    """Size and time of everything in the folder of trained models."""
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in TRAINED.rglob("*")}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, an empty one, of somebody who trusts nothing yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(trust.FOLDER, str(tmp_path / "trusted"))
    return tmp_path


# -- what is there ---------------------------------------------------------------------------------


def test_these_are_all() -> None:
    assert trained_models() == list(NAMES)
    assert sum(path.stat().st_size for path in TRAINED.rglob("*")) <= BYTES


@pytest.mark.parametrize("name", NAMES)
def test_a_trained_model_is_tensors_and_settings_and_names_no_code(name: str, here: Path) -> None:
    assert {path.name for path in (TRAINED / name).iterdir()} == FILES
    with trust.command([], trusts=False):
        run = load_trained(Path(name))[0]
    assert own_names(run.config) == [] and run.folder == TRAINED / name
    assert not (here / "trusted").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_bound_is_the_one_that_was_measured(name: str, request: pytest.FixtureRequest) -> None:
    """With the same data and noise, so that rounding is all that differs: a small part of what
    other noise would change. With other noise, by --seed-offset, within what that changes."""
    part = 0.02 if request.config.getoption("seed_offset") == 0 else 5 * 2**0.5
    run, programs, checkpoint = load_trained(Path(name))
    told = json.loads((TRAINED / name / "results.json").read_bytes())
    draws, seed = run.config["draws"], run.config["seed"]
    bound = measure(programs, programs.problem.part("test"), draws=draws, seed=seed)
    difference = bound.bits_per_dim[0] - told["bits_per_dim"]["value"]
    assert abs(difference) < part * told["monte_carlo_error"]
    assert bound.num_data == told["num_data"] and checkpoint.step == told["steps"]


@pytest.mark.parametrize("name", NAMES)
def test_the_page_says_what_was_measured(name: str) -> None:
    told = json.loads((TRAINED / name / "results.json").read_bytes())
    value, error = told["bits_per_dim"]["value"], told["bits_per_dim"]["standard_error"]
    (row,) = (line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |"))
    assert f"{value:.3f} ± {error:.3f}" in row and f"{told['steps']:,} steps" in row


# -- in Python -------------------------------------------------------------------------------------


def test_digits_are_drawn_and_measured_without_a_label(here: Path) -> None:
    """In any folder, as the README's table has it: the network learned an unknown label."""
    model = DiffusionModel.from_pretrained("digits")
    guide = DiffusionGuide(model.diffusion)
    torch.manual_seed(0)
    x = model(batch_size=64).detach()
    assert x.shape == (64, 1, 8, 8) and torch.isfinite(x).all()
    found = bound(model, guide, x)
    assert torch.equal(found.per_datum, bound(condition(model, context=-1), guide, x).per_datum)
    assert 1.2 < found.bits_per_dim.mean < 2.3 and list(here.iterdir()) == []


@pytest.mark.slow
def test_samples_of_each_class_are_told_apart() -> None:
    """Most of them, by the label under which their bound is best: chance is a tenth."""
    model = DiffusionModel.from_pretrained("digits")
    labels = torch.arange(10).repeat(2)
    torch.manual_seed(0)
    x = condition(model, context=labels)(batch_size=20).detach()
    assert x.shape == (20, 1, 8, 8) and torch.isfinite(x).all()
    levels = (x + 1) * 8
    assert torch.allclose(levels, levels.round(), atol=1e-5) and 0 <= levels.min() < 1
    classes = class_posterior(model, DiffusionGuide(model.diffusion), x, draws=8)
    assert float((classes.log_probs.argmax(1) == labels).double().mean()) > 0.6


@pytest.mark.slow
def test_the_rest_of_an_image_is_drawn_given_its_upper_half() -> None:
    """The network is told maps, so that one network has every conditional."""
    model = DiffusionModel.from_pretrained("digits")
    problem = load_trained(Path("digits"))[1].problem
    part = problem.part("test")[:16]
    truth = problem.to_model_space(part.data)
    seen = torch.zeros(1, 8, 8, dtype=torch.bool)
    seen[:, :4] = True
    torch.manual_seed(0)
    drawn = condition(model, seen, truth, context=part.context)(batch_size=16).detach()
    assert torch.equal(drawn[:, seen], truth[:, seen])
    other = truth.roll(1, 0)  # the lower half of another image
    near, far = ((drawn - x)[:, ~seen].square().mean() for x in (truth, other))
    assert float(near) < 0.7 * float(far)


def test_a_folder_of_that_name_goes_first(here: Path) -> None:
    assert trained_folder("digits") == TRAINED / "digits"
    shutil.copytree(TRAINED / "wine", here / "digits")
    assert trained_folder("digits") == Path("digits")
    assert load_trained(Path("digits"))[1].model.event_shape == (16,)
    assert DiffusionModel.from_pretrained("digits").event_shape == (16,)
    assert trained_folder("runs/digits") == Path("runs/digits")


# -- by the programs -------------------------------------------------------------------------------


@pytest.mark.slow
def test_programs_read_it_by_name_and_write_where_they_are_run(here: Path) -> None:
    before = contents()
    sample.sample(Path("digits"), num_samples=10, steps=5)
    with Image.open(here / "digits-samples-exponential-5-0.png") as image:
        assert image.width > 5 * image.height  # a column for each class
    fast: dict[str, Any] = {"num_images": 2, "steps": 4}
    restore.restore(Path("digits"), **fast)
    restore.restore(TRAINED / "digits", task="inpaint", **fast)
    sample.sample(reuse=Path("digits"), guide="vpsde", num_samples=2, steps=2)
    evaluate.evaluate(Path("wine"), draws=1)
    assert [entry.name for entry in open_runs([Path("digits"), Path("wine")])] == [*NAMES]
    made = {path.name for path in here.iterdir()}
    assert made == {
        "digits-samples-exponential-5-0.png",
        "digits-samples-vpsde-exponential-2-0.png",
        "digits-restored-deblur-0.png",
        "digits-restored-inpaint-0.png",
    }
    assert contents() == before


@pytest.mark.slow
def test_a_table_is_completed(here: Path) -> None:
    table = read_table("wine").head(6)
    table.loc[0, "alcohol"] = None
    table.loc[3, "target"] = None
    table.to_csv("incomplete.csv", index=False)
    before = contents()
    impute.impute(Path("wine"), "incomplete.csv", Path("full.csv"), num=3, steps=8)
    full = pd.read_csv("full.csv")
    assert not full.isna().any().any() and contents() == before
    assert full["target"][3] in {"class_0", "class_1", "class_2"}


def test_outputs_of_a_run_stay_in_its_folder(here: Path) -> None:
    assert default_out(Path("runs/a"), "b.png") == Path("runs/a/b.png")
    for name in ("digits", TRAINED / "digits", os.path.relpath(TRAINED / "digits", here)):
        assert default_out(Path(name), "b.png") == Path("digits-b.png")


def test_a_run_without_its_checkpoints_is_read_and_not_resumed(here: Path) -> None:
    shutil.copytree(TRAINED / "wine", here / "mine")
    run, programs, checkpoint = load_trained(Path("mine"))
    model = DiffusionModel.from_pretrained("mine")
    assert checkpoint.step == run.config["steps"]
    state = programs.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(RunError, match=r"mine has a trained model without its checkpoints"):
        Run.resume(Path("mine"))
    assert {path.name for path in (here / "mine").iterdir()} == FILES
    with pytest.raises(RunError, match=r"trained/wine has a trained model without"):
        train(resume=Path("wine"))
    shutil.copy(TRAINED / "digits" / "results.json", here / "mine" / "results.json")
    with pytest.raises(RunError, match=r"weights of step 1500 and .*results\.json is of step 4000"):
        load_trained(Path("mine"))


# -- mistakes --------------------------------------------------------------------------------------

OPENERS: list[Callable[[str], object]] = [
    DiffusionModel.from_pretrained,
    lambda name: load_trained(Path(name)),
]


@pytest.mark.parametrize("opens", OPENERS)
def test_an_unknown_name_lists_those_that_there_are(
    opens: Callable[[str], object], here: Path
) -> None:
    with pytest.raises((PretrainedError, RunError), match=r"by name: digits, wine$"):
        opens("digitz")
    with pytest.raises((PretrainedError, RunError)) as raised:
        opens("runs/digitz")
    assert "by name" not in str(raised.value)


@pytest.mark.parametrize("opens", OPENERS)
def test_a_library_that_pip_copied_has_none_and_says_so(
    opens: Callable[[str], object], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "TRAINED", here / "site-packages" / "models" / "trained")
    with pytest.raises((PretrainedError, RunError), match=r"get the repository, and in it: pip"):
        opens("digits")
