"""How data without official parts are split: at random, evenly over classes, and as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from inference.compare import compare
from inference.folders.checkpoints import RunError
from inference.folders.loading import load_trained
from inference.folders.runs import Run
from inference.settings.options import DataOptions
from inference.settings.problems import build_problem
from inference.train import train
from models import Digits, Images, Mnist5k, Problem, Tabular, Toy
from pyro_mdm.networks import MLP
from pyro_mdm.support.splits import split_rows
from tests.brief import SHORT

pytestmark = pytest.mark.usefixtures("few_pictures")

PERIODIC = """
import torch
from models import Problem
from pyro_mdm.networks import MLP


class Periodic(Problem):
    name, event_shape, max_log_snr = "periodic", (2,), 7.0
    contexts = ("labels",)

    def load(self):
        return torch.arange(800.0).reshape(400, 2).sin()

    def load_context(self, name):
        return torch.arange(400) % 5

    def network(self, inputs, outputs):
        return MLP(inputs, hidden=8, depth=1, out_features=outputs)


made = Periodic(holdout=True)
"""


class Periodic(Problem):
    """The class of a datum is its number modulo 5, so that every 10th is of one class."""

    name, event_shape, max_log_snr = "periodic", (1,), 7.0
    contexts = ("labels",)

    def load(self) -> Tensor:
        return torch.arange(1000.0)[:, None]

    def load_context(self, name: str) -> Tensor:
        return torch.arange(1000) % 5

    def network(self, inputs: int, outputs: int) -> nn.Module:
        return MLP(inputs, out_features=outputs)


def classes(problem: Problem, part: str) -> list[int]:
    """How many data of each class a part has."""
    context = problem.part(part).context
    assert context is not None
    return context.bincount().tolist()


def test_data_in_a_periodic_order_are_split_evenly_by_class() -> None:
    problem = Periodic(holdout=True)
    problem.condition_on("labels")
    assert classes(problem, "test") == classes(problem, "validation") == [20] * 5
    assert classes(problem, "train") == [160] * 5
    for part in ("train", "validation", "test"):
        data, numbers = problem.part(part), problem.numbers(part)
        assert torch.equal(data.data[:, 0], numbers.float())  # contexts are of the same data
        assert torch.equal(data.context, numbers % 5)
    by_index = Periodic.split_by(None)
    by_index.condition_on("labels")
    assert classes(by_index, "test") == [100]


@pytest.mark.parametrize("n", [1, 9, 37, 1797])
@pytest.mark.parametrize("seed", [None, 0, 5])
def test_parts_are_a_tenth_whatever_the_seed(n: int, seed: int | None) -> None:
    strata = torch.randint(7, (n,))
    for own in (None, strata):
        whole, held = (split_rows(n, holdout, seed, own) for holdout in (False, True))
        assert torch.equal(whole.test, held.test) and not len(whole.validation)
        assert (len(held.test), len(held.validation)) == (-(-n // 10), len(range(8, n, 10)))
        for rows in (whole, held):
            everything = torch.cat([rows.train, rows.validation, rows.test])
            assert torch.equal(everything.sort().values, torch.arange(n))
            assert all(bool((part.diff() > 0).all()) for part in rows[:3])
        if own is not None and seed is not None:
            for k in range(7):
                share = int((strata == k).sum()) / 10
                for part in (held.test, held.validation):
                    assert abs(int((strata[part] == k).sum()) - share) < 1


def test_a_seed_is_a_split() -> None:
    strata = torch.arange(500) % 3
    rows = {seed: split_rows(500, True, seed, strata) for seed in (0, 1, 2)}
    for seed, own in rows.items():
        assert torch.equal(own.test, split_rows(500, True, seed, strata).test)
        others = [r for s, r in rows.items() if s != seed]
        assert not any(torch.equal(own.test, other.test) for other in others)
    small = torch.where(torch.arange(500) < 4, 9, strata)  # a class of four data
    for own in (None, strata, small):
        tests = torch.cat([split_rows(500, True, s, own).test for s in range(200)])
        often = tests.bincount(minlength=500)  # 20 ± 4.2 each, five standard errors
        assert int(often.min()) > 0 and int(often.max()) < 42
    for seed in (-1, 2**63):
        with pytest.raises(ValueError, match=f"split_seed is {seed}, expected a whole number from"):
            split_rows(10, True, seed)


# -- rare categories -------------------------------------------------------------------------------


def test_a_class_of_one_datum_is_trained_on() -> None:
    """Whatever the seed; of two data one is trained on at least."""
    single, pair = 17, (40, 41)
    labels = torch.zeros(60, dtype=torch.long)
    labels[single], labels[list(pair)] = 1, 2
    rare = 0
    for seed in range(40):
        rows = split_rows(60, True, seed, labels, [labels])
        assert single in rows.train.tolist() and {*pair} & {*rows.train.tolist()}
        rare += rows.rare
        assert len(rows.test) + len(rows.validation) + rows.rare == 12
    assert rare > 0
    unknown = torch.where(labels == 1, -1, labels)  # is no class
    assert any(single in split_rows(60, True, s, unknown, [unknown]).test for s in range(40))


def test_rows_of_a_table_are_split_whatever_levels_they_have(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": np.arange(60.0) + 0.5, "city": ["Rome", "Oslo"] * 30})
    table.loc[::7, "city"] = [f"town {row}" for row in range(0, 60, 7)]
    table.to_csv(tmp_path / "own.csv", index=False)
    for seed in (None, 0, 1, 2):
        problem = Tabular.split_by(seed, data=tmp_path / "own.csv", holdout=True)
        expected = split_rows(60, True, seed)
        assert problem.rows is not None and torch.equal(problem.rows.test, expected.test)
        seen = {*table["city"][expected.train.numpy()]}
        new = [city not in seen for city in table["city"][expected.test.numpy()]]
        assert problem.test[:, 1].isnan().tolist() == new
        every = {*table["city"]} - seen
        assert ("warning: " in problem.columns_in_words) == bool(every)


@pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer"])
def test_tables_with_classes_are_split_evenly_over_them(name: str) -> None:
    whole, held = Tabular.split_by(None, data=name), Tabular.split_by(3, data=name, holdout=True)
    target = torch.cat([whole.train[:, -1], whole.test[:, -1]]).long().bincount()
    for part in (held.test, held.validation):
        assert float((part[:, -1].long().bincount() - target / 10).abs().max()) < 1
    assert "evenly over classes" in held.split_in_words
    plain = Tabular(data=name, columns="target=drop")
    assert plain.rows is not None and not plain.rows.stratified


# -- data sets -------------------------------------------------------------------------------------


def test_published_splits_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = Digits(holdout=True)
    assert torch.equal(digits.test, digits.load()[::10])
    assert torch.equal(digits.validation, digits.load()[8::10])
    digits.condition_on("labels")
    counts = classes(digits, "test")
    assert counts == [11, 16, 19, 27, 31, 22, 14, 15, 15, 10]
    assert digits.split_in_words == (
        "1,438 training, 179 validation, 180 test data; every 10th is test; test data of classes "
        f"0, 1, …: {', '.join(map(str, counts))}"
    )
    words = " ".join(str(Digits.__doc__).split())  # where the data set is described
    assert "11, 16, 19, 27, 31, 22, 14, 15, 15 and 10" in words
    validation = ", ".join(map(str, classes(digits, "validation")[:-1]))
    assert f"validation {validation} and {classes(digits, 'validation')[-1]}" in words
    assert Toy.split_seed is None and Mnist5k.split_seed is None
    other = Digits.split_by(1, holdout=True)
    other.condition_on("labels")
    assert len(other.test) == 180 and max(classes(other, "test")) <= 19 > 16
    assert min(classes(other, "test")) >= 17 and min(classes(other, "validation")) >= 17


def test_images_of_one_folder_are_split_alike(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(60, 8, 8), dtype=np.uint8)
    for i, image in enumerate(pixels):
        folder = tmp_path / "own" / "abc"[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        image[0, 0] = i % 3
        Image.fromarray(image).save(folder / f"{i:02}.png")
    problem = Images(data=tmp_path / "own", holdout=True)
    for part in (problem.test, problem.validation):
        assert part[:, 0, 0, 0].bincount().tolist() == [2, 2, 2]
    assert "evenly over folders" in problem.split_in_words
    (tmp_path / "flat").mkdir()
    for path in (tmp_path / "own").rglob("*.png"):
        (tmp_path / "flat" / path.name).write_bytes(path.read_bytes())
    flat = Images(data=tmp_path / "flat", holdout=True)
    assert flat.rows is not None and not flat.rows.stratified
    assert "evenly" not in flat.split_in_words
    (tmp_path / "own").rename(tmp_path / "train")
    (tmp_path / "parts" / "test").mkdir(parents=True)
    (tmp_path / "train").rename(tmp_path / "parts" / "train")
    Image.fromarray(pixels[0]).save(tmp_path / "parts" / "test" / "one.png")
    whole = Images(data=tmp_path / "parts")
    assert whole.rows is None and len(whole.train) == 60  # all of it is official
    assert whole.split_in_words == "60 training, 1 test data, in official parts"
    held = Images.split_by(3, data=tmp_path / "parts", holdout=True)
    assert (len(held.train), len(held.validation), len(held.test)) == (54, 6, 1)
    assert held.numbers("test").tolist() == [0] and held.rows is not None
    assert held.validation[:, 0, 0, 0].bincount().tolist() == [2, 2, 2]
    rows = torch.cat([held.numbers("train"), held.numbers("validation")]).sort().values
    assert torch.equal(rows, torch.arange(60))
    for seed, same in ((3, True), (4, False)):
        again = Images.split_by(seed, data=tmp_path / "parts", holdout=True)
        assert torch.equal(again.validation, held.validation) == same


class Own(Periodic):
    """Contexts that are split by hand, beside data that are not."""

    def split_context(self, name: str, holdout: bool) -> tuple[Tensor, Tensor, Tensor]:
        labels = self.load_context(name)
        return labels[:800], labels[800:900], labels[900:]


class Numbered(Periodic):
    """Whole numbers that are no classes, and labels of another number than the data."""

    contexts: ClassVar = ("number", "short")

    def load_context(self, name: str) -> Tensor:
        return torch.arange(1000 if name == "number" else 10)


def test_contexts_that_do_not_go_with_the_split() -> None:
    with pytest.raises(TypeError, match="return all contexts from load_context in the order"):
        Own(holdout=True).condition_on("labels")
    Own.split_by(None, holdout=True).condition_on("labels")  # as it was
    numbered = Numbered(holdout=True)
    assert len(numbered.test) == 100 and numbered.rows is not None and not numbered.rows.stratified
    with pytest.raises(ValueError, match="10 short of 1000 data, expected one for each"):
        numbered.condition_on("short")


# -- runs ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "mine.py"
    path.write_text(PERIODIC)
    return path


def short(mine: Path, **options: Any) -> dict[str, Any]:
    return SHORT | {"model": f"{mine}:Periodic", "guide": "vpsde", "figures": False} | options


def test_runs_keep_their_split(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(run=tmp_path / "new", **short(mine))
    assert Run.open(tmp_path / "new").config["split_seed"] == 0
    said = capsys.readouterr().out
    assert "320 training, 40 validation, 40 test data; split at random by --split_seed 0" in said
    train(run=tmp_path / "other", **short(mine, split_seed=7))
    assert Run.open(tmp_path / "other").config["split_seed"] == 7
    parts = [load_trained(tmp_path / name)[1].problem for name in ("new", "other")]
    assert not torch.equal(parts[0].test, parts[1].test)
    with pytest.raises(RunError, match="one --model, --protocol and --split_seed"):
        compare([tmp_path / "new", tmp_path / "other"], draws=2, out=tmp_path / "c")


def test_splits_that_cannot_be_asked_for(mine: Path, tmp_path: Path) -> None:
    official = mine.with_name("official.py")
    official.write_text(
        PERIODIC + "class Official(Periodic):\n    contexts = ()\n"
        "    def split(self, holdout):\n        x = self.load()\n"
        "        return x[:300], x[300:350], x[350:]\n"
    )
    with pytest.raises(ValueError, match="--split_seed is 0, and periodic has official parts"):
        train(run=tmp_path / "run", **short(mine, model=f"{official}:Official", split_seed=0))
    train(run=tmp_path / "run", **short(mine, model=f"{official}:Official"))
    assert Run.open(tmp_path / "run").config["split_seed"] is None
    made = f"{mine}:made"
    assert build_problem(DataOptions(model=made, split_seed=0, holdout=False)).rows.seed == 0  # type: ignore[union-attr]
    assert build_problem(DataOptions(model=made, holdout=False)).rows.seed == 0  # type: ignore[union-attr]
    for seed, word in (("index", "index"), (3, "3")):
        said = f"split by --split_seed 0 when it was made, and {word} is asked for"
        with pytest.raises(ValueError, match=said):
            build_problem(DataOptions(model=made, split_seed=seed, holdout=False))
