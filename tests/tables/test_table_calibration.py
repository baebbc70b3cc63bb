"""Calibration of models of tables, and the pictures that programs and a training make of tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from inference import Table
from inference.evaluate import evaluate
from inference.sample import sample
from inference.train import train
from models import Tabular
from models.tabular import read_table
from pyro_mdm import VPSDE, DiffusionModel
from pyro_mdm.conditioning import RandomMaps
from pyro_mdm.tables.agreement import Agreement
from pyro_mdm.tables.calibration import TableCalibration, table_calibration
from tests.brief import SHORT, be_brief
from tests.mistakes import refused


def frame(n: int = 300) -> pd.DataFrame:
    """Numbers with a Gaussian law, integers and categories of it, and missing entries."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=n)
    table = pd.DataFrame(
        {"a": a, "b": 0.8 * a + 0.6 * rng.normal(size=n), "c": a + rng.normal(size=n)}
    )
    table["years"] = (50 + 10 * table["c"]).round()
    table["size"] = np.where(a + rng.normal(size=n) > 0, "large", "small")
    return table.mask(rng.random(table.shape) < 0.05)


def untrained(tmp_path: Path, kinds: str) -> tuple[Tabular, DiffusionModel]:
    """A model that starts as the exact one of Gaussian columns."""
    frame().to_csv(tmp_path / "table.csv", index=False)
    problem = Tabular(data=tmp_path / "table.csv", columns=kinds)
    model = problem.build(VPSDE(max_log_snr=9.0, min_log_snr=-9.0), maps=True)
    model.score_function.training_maps = RandomMaps()
    return problem, model


@pytest.mark.slow
def test_an_exact_model_is_calibrated_and_a_wrong_one_is_not(tmp_path: Path) -> None:
    problem, model = untrained(tmp_path, "*=continuous,size=categorical")
    rows = problem.train[:50]
    right = table_calibration(problem, model, rows, draws=19)
    assert [*right.pit] == ["a", "b", "c", "years"] and [*right.classes] == ["size"]
    assert right.smallest > 1e-7
    assert ("ranks are uniform" in str(right)) == (right.smallest > 0.05)
    for j, name in enumerate(right.pit):
        assert [*np.isnan(right.pit[name])] == rows[:, j].isnan().tolist()
    (choosing, own), known = right.classes["size"]
    assert choosing.shape == (50, 2) and np.allclose(own.sum(1), 1)
    assert [*np.isnan(known)] == rows[:, -1].isnan().tolist()
    wide = rows.clone()
    wide[:, :3] *= 3
    wrong = table_calibration(problem, model, wide, draws=19)
    assert wrong.smallest < 1e-3 and "NOT uniform" in str(wrong)


def test_what_calibration_says_is_counted() -> None:
    u = np.array([0.01, 0.04, 0.5, 0.9, np.nan])
    p = np.array([[[0.9, 0.1]] * 5, [[0.6, 0.4]] * 5])
    truth = np.array([0, 0, 0, 1, np.nan])
    said = str(TableCalibration({"x": u}, {"y": (p, truth)}))
    assert "contain 50.0% ±" in said and "of 4 numbers" in said
    assert "of 4 categories 75.0% are the most probable one, and 60.0% are predicted" in said


def test_columns_of_a_picture_are_those_of_the_table(tmp_path: Path) -> None:
    problem, _ = untrained(tmp_path, "a=drop")
    columns = problem.as_columns(problem.to_model_space(problem.codes(frame(40))))
    assert [*columns] == ["b", "c", "years", "size"]
    np.testing.assert_allclose(columns["years"], frame(40)["years"])
    assert columns["size"].isna().equals(frame(40)["size"].isna())


def test_a_table_is_calibrated_by_its_rows() -> None:
    table = Table.from_run("wine", accelerator="cpu")
    rows = read_table("wine").head(12)
    rows.loc[:3, "alcohol"] = np.nan
    measured = table.calibration(rows, draws=4)
    assert [*measured.pit, *measured.classes] == table.names
    assert int(np.isnan(measured.pit["alcohol"]).sum()) == 4
    assert np.array_equal(measured.pit["ash"], table.calibration(rows, draws=4).pit["ash"])


def size(file: Path) -> tuple[int, int]:
    with Image.open(file) as picture:
        return picture.size


@pytest.mark.slow
def test_programs_draw_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frame(90).to_csv(tmp_path / "table.csv", index=False)
    run = tmp_path / "run"
    short: dict[str, Any] = {**SHORT, "model": "tabular", "data": tmp_path / "table.csv"}
    short |= {"steps": 2, "measure_every": 2, "holdout": True, "min_log_snr": -9.0}
    with monkeypatch.context() as patch:
        be_brief(patch, figures=True)
        patch.setattr(Agreement, "differs", [])  # of a run of two steps
        train(**short, guide="vpsde", run=run)
    tags = EventAccumulator(str(run / "tensorboard")).Reload().Tags()["images"]
    drawn = {"Overview/samples", "training/calibration", "samples/pairs", "test/calibration"}
    assert drawn <= {*tags} and "samples/by_sampler" not in tags
    capsys.readouterr()

    options: dict[str, Any] = {"accelerator": "cpu", "steps": 2, "num_samples": 12}
    for name in ("alone.png", "pairs.png"):
        sample(run, out=tmp_path / name, pairs=name == "pairs.png", **options)
    alone, pairs = (size(tmp_path / name) for name in ("alone.png", "pairs.png"))
    assert min(*alone, *pairs) > 300 and alone != pairs
    with pytest.raises(ValueError, match=r"--pairs is for a \.png of a run of --model tabular"):
        sample(run, out=tmp_path / "rows.csv", pairs=True, **options)

    capsys.readouterr()
    evaluate(run, draws=1, accelerator="cpu", calibration=tmp_path / "calibration.png")
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("90% intervals contain") for line in lines)
    assert lines[-1].startswith("bits/dim") and (tmp_path / "calibration.png").exists()


def test_mistakes_of_calibration_are_told(tmp_path: Path) -> None:
    problem, model = untrained(tmp_path, "")
    empty, run = torch.full_like(problem.test, torch.nan), Path("digits")

    def at(maps: RandomMaps | None) -> TableCalibration:
        model.score_function.training_maps = maps
        return table_calibration(problem, model, problem.test)

    refused(
        ValueError,
        (lambda: table_calibration(problem, model, empty), "the rows have no entry"),
        (lambda: at(None), "never trained at maps with entries observed"),
        (lambda: at(RandomMaps(levels=0, subsets=0, independent=1)), "never trained at maps with"),
        (lambda: evaluate(run, calibration=tmp_path / "c.png"), "is for runs of --model tabular"),
    )
