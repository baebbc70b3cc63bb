"""Images in a folder for each class: labels by the names of the folders, from data to samples."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image

from inference.drawing.pictures import contexts, picture
from inference.evaluate import evaluate
from inference.folders.checkpoints import RunError
from inference.folders.loading import load_trained
from inference.restore import contexts_of_images
from inference.sample import sample
from inference.train import train
from models import DataError, Images
from tests.brief import SHORT
from tests.mistakes import refused
from tests.programs.running import run_program

pytestmark = pytest.mark.usefixtures("few_pictures")

GREYS = {"dog": 200, "10": 30, "Cat": 90}
"""The classes, not in the order of their names, and what tells their images apart."""
NAMES = ["10", "Cat", "dog"]


def write_classes(folder: Path, numbers: dict[str, int]) -> None:
    for name, number in numbers.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(number):
            Image.new("L", (8, 8), GREYS.get(name, 150) + i % 9).save(folder / name / f"{i:02}.png")


def check_labels(problem: Images) -> None:
    """Every image has the label of its folder."""
    greys = torch.tensor([GREYS[name] for name in NAMES])
    for name in ("train", "validation", "test"):
        part = problem.part(name)
        if len(part) == 0:
            continue
        assert part.context is not None
        off = part.data[:, 0, 0, 0].long() - greys[part.context]
        assert bool(((off >= 0) & (off < 9)).all())


# -- data ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("holdout", [True, False])
@pytest.mark.parametrize("parts", [[], ["train"], ["train", "test"], ["train", "val", "test"]])
def test_labels_are_the_names_of_folders(holdout: bool, parts: list[str], tmp_path: Path) -> None:
    for part in parts or ["."]:
        few = part in ("test", "val")  # and not of every class
        numbers = {"dog": 2, "Cat": 3} if few else {"dog": 14, "10": 11, "Cat": 12}
        write_classes(tmp_path / part, numbers)
    problem = Images(data=tmp_path, holdout=holdout)
    assert problem.class_names is None and problem.part("train").context is None
    problem.condition_on("labels", 0.1)
    assert problem.class_names == NAMES
    check_labels(problem)
    assert len(problem.part("test").data) == (5 if "test" in parts else 4)
    assert "test data of 3 classes: 10 " in problem.split_in_words


def test_folders_that_are_no_classes_are_named(tmp_path: Path) -> None:
    def conditioned(folder: Path) -> None:
        Images(data=folder, holdout=True).condition_on("labels")

    def of(name: str, **numbers: int) -> Path:
        write_classes(tmp_path / name, numbers)
        return tmp_path / name

    astray, nested = of("astray", Cat=20, dog=9), of("nested", Cat=20, dog=9)
    Image.new("L", (8, 8)).save(astray / "one.png")
    (nested / "dog" / "deep").mkdir()
    Image.new("L", (8, 8)).save(nested / "dog" / "deep" / "one.png")
    parted = of("parted/train", Cat=20, dog=9).parent
    shutil.copytree(astray, parted / "test")
    unseen = of("unseen/train", Cat=20, dog=9).parent
    write_classes(unseen / "test", {"fox": 3})
    array = tmp_path / "images.npz"
    import numpy as np

    np.savez(array, train=np.zeros((30, 8, 8), np.uint8))
    refused(
        DataError,
        (lambda: conditioned(astray), r"one.png lies in no folder of a class; move it .*NAME"),
        (lambda: conditioned(nested), r"one.png lies 2 folders deep in .*nested, .*nested/dog"),
        (lambda: conditioned(parted), r"test/one.png lies in no folder .*parted/test/NAME"),
        (lambda: conditioned(unseen), r"no training images of the class fox.* add images of it"),
        (lambda: conditioned(of("single", Cat=20)), "a single class, Cat, expected two classes"),
        (lambda: conditioned(array), r"images.npz is no folder of images; give one with a folder"),
    )
    with pytest.raises(ValueError, match=r"'sizes', expected one of labels for images"):
        Images(data=astray).condition_on("sizes")


# -- a run -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose data lie beside it; tests only read both."""
    from tests.brief import be_brief

    folder = tmp_path_factory.mktemp("classes")
    write_classes(folder / "data", {"dog": 44, "10": 41, "Cat": 22})
    options: dict[str, Any] = SHORT | {"steps": 2, "batch_size": 8, "network": "small"}
    options |= {"optimizer": "adam", "test_size": None, "figures": False, "guide": "vpsde"}
    with pytest.MonkeyPatch.context() as patch:
        be_brief(patch)
        data = folder / "data"
        train(
            **options | {"model": "images", "data": data, "condition": "labels"}, run=folder / "r"
        )
    return folder / "r"


@pytest.mark.slow
def test_a_run_keeps_the_names_of_its_classes(trained: Path, tmp_path: Path) -> None:
    kept = json.loads((trained / "data.json").read_text())
    assert kept["classes"] == {"names": NAMES}
    _, programs, _ = load_trained(trained)
    problem = programs.problem
    assert problem.class_names == NAMES and programs.model.context.num_classes == 3
    given: list[Any] = [None, "dog", ["dog", "Cat"], 10, [10.0, "Cat"]]
    found = [contexts(problem, 4, one).tolist() for one in given]
    assert found == [[0, 1, 2, 0], [2] * 4, [2, 1, 2, 1], [0] * 4, [0, 1, 0, 1]]
    for wrong in ("fox", 1, ["dog", "2"]):
        with pytest.raises(ValueError, match=r"expected the name of a class: 10, Cat, dog"):
            contexts(problem, 4, wrong)
    _, said = contexts_of_images(problem, 2, "dog", torch.tensor([1, 0]))
    assert said == "the network is given the labels dog, dog; those of the images are Cat, 10"
    evaluate(trained, draws=2, out=tmp_path / "rows.csv", classify=True)
    rows = pd.read_csv(tmp_path / "rows.csv", dtype={"label": str})
    assert set(rows["label"]) <= set(NAMES)
    assert list(rows.columns[-3:]) == [f"probability_{name}" for name in NAMES]


@pytest.mark.parametrize("given", ["dog", "[dog, Cat]", "10"])
def test_samples_of_a_class_are_asked_for_by_name(
    given: str, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.npy"
    options = ("--steps", 2, "--num_samples", 3, "--out", out)
    run_program("sample", trained, "--given", given, *options)
    sample(trained, 3, steps=2, out=tmp_path / "y.npy", given=given.strip("[]").split(", "))
    assert out.read_bytes() == (tmp_path / "y.npy").read_bytes()


def test_the_picture_has_a_named_column_for_each_class(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = load_trained(trained)[1].problem
    x = torch.zeros(6, 1, 8, 8)
    named, plain = (picture(problem, x, columns=k, context=None) for k in (3, 2))
    monkeypatch.setattr(problem, "class_names", ["m" * 500, "字", "c"])
    other = picture(problem, x, columns=3)
    assert named.shape == other.shape and not torch.equal(named, other)
    assert torch.equal(named[:, 14:], other[:, 14:])
    monkeypatch.setattr(problem, "class_names", None)
    assert torch.equal(named[:, 14:], picture(problem, x, columns=3))
    assert torch.equal(plain, picture(problem, x, columns=2))


def test_classes_that_changed_are_said(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    data = trained.parent / "data"

    def attempts(change: Any) -> list[str]:
        moved = tmp_path / "data"
        shutil.rmtree(moved, ignore_errors=True)
        shutil.copytree(data, moved)
        change(moved)
        config = (trained / "config.yaml").read_text()
        (tmp_path / "run" / "config.yaml").write_text(config.replace(str(data), str(moved)))
        said = []
        for attempt in (load_trained, lambda run: train(resume=run)):
            with pytest.raises(RunError, match="Restore the data, or start a new run") as raised:
                attempt(tmp_path / "run")
            said.append(str(raised.value))
        return said

    for change, words in {
        "rename": "classes, absent now: dog; new now: fox",
        "more": "classes, new now: fox",
        "fewer": "classes, absent now: Cat",
    }.items():
        by_name = {
            "rename": lambda moved: (moved / "dog").rename(moved / "fox"),
            "more": lambda moved: write_classes(moved, {"fox": 4}),
            "fewer": lambda moved: shutil.rmtree(moved / "Cat"),
        }
        said = attempts(by_name[change])
        assert all(f"{words}\n" in text for text in said)
        assert all(("train: SHA" in text) == (change != "rename") for text in said)
