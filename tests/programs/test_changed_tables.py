"""A table that has changed since a run was trained on it: the model keeps its levels and scales,
what has changed is said, and no row is test that was trained on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from inference.compare import compare
from inference.evaluate import evaluate
from inference.folders.checkpoints import RunError
from inference.folders.loading import load_trained
from inference.impute import impute
from inference.sample import sample
from inference.table import Table
from inference.train import train
from models import DataError, Tabular
from pyro_mdm.tables.columns import (
    KINDS as KINDS_OF_COLUMNS,
    Bounded,
    Column,
    column_facts,
    column_of_facts,
)
from tests.brief import SHORT, be_brief
from tests.mistakes import refused

pytestmark = pytest.mark.usefixtures("few_pictures")

KINDS = {
    **{"continuous": "continuous", "above": "nonnegative", "atoms": "mixed", "cents": "rounded"},
    **{"whole": "integer", "flag": "boolean", "size": "small<middle<large", "stars": "ordinal"},
    **{"of": "categorical", "yes": "categorical", "day": "date", "time": "date"},
    **{"score": "mixed 0..10", "grade": "integer 1..6"},
}


def table(seed: int = 0, rows: int = 100) -> pd.DataFrame:
    """A column of every kind, with gaps."""
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=rows)
    days = (np.datetime64("2024-01-01") + rng.integers(0, 300, rows)).astype(str)
    frame = pd.DataFrame(
        {
            "continuous": normal,
            "above": rng.exponential(size=rows),
            "atoms": np.where(rng.random(rows) < 0.4, 0.0, normal + 3),
            "cents": rng.normal(size=rows).round(2),
            "whole": rng.poisson(40, rows),
            "flag": rng.random(rows) < 0.5,
            "size": rng.choice(["small", "middle", "large"], rows),
            "stars": rng.integers(1, 5, rows),
            "of": rng.choice(["a", "b", "c", "d"], rows, p=[0.4, 0.3, 0.2, 0.1]),
            "yes": rng.choice(["no", "yes"], rows),
            "day": days,
            "time": [f"{day} {k % 24:02}:30" for k, day in enumerate(days)],
            "score": rng.uniform(0, 10, rows).round(4).clip(0.5, 10),
            "grade": rng.integers(1, 7, rows),
        }
    )
    return frame.mask(rng.random(frame.shape) < 0.05)


COLUMNS = ",".join(f"{name}={kind}" for name, kind in KINDS.items())


@pytest.fixture(scope="module")
def made(made_once: Callable[..., Path]) -> Path:
    """``people.csv``, and the run ``run`` of it."""

    def make(folder: Path) -> None:
        table().to_csv(folder / "people.csv", index=False)
        with pytest.MonkeyPatch.context() as patch:
            be_brief(patch)
            options = SHORT | {"model": "tabular", "guide": "vpsde", "columns": COLUMNS}
            options |= {"figures": False, "data": folder / "people.csv"}
            train(run=folder / "run", **options | {"batch_size": 16, "sampler_steps": 2})

    return made_once("a-run-of-a-table", make)


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of the run, whose table is ``people.csv`` beside it."""
    shutil.copytree(made / "run", tmp_path / "run")
    shutil.copy(made / "people.csv", tmp_path)
    config = (tmp_path / "run" / "config.yaml").read_text()
    changed = config.replace(str(made / "people.csv"), str(tmp_path / "people.csv"))
    (tmp_path / "run" / "config.yaml").write_text(changed)
    assert config != changed
    return tmp_path / "run"


def appended(frame: pd.DataFrame) -> pd.DataFrame:
    """With rows that turn the order of the categories by their frequency around."""
    more = table(1, 80).assign(of="d", yes="yes", continuous=100.0)
    return pd.concat([frame, more])


CHANGES: dict[str, Callable[[pd.DataFrame], pd.DataFrame | str | None]] = {
    "rows appended": appended,
    "rows removed": lambda frame: frame.iloc[5:],
    "rows in another order": lambda frame: frame.iloc[::-1],
    "another level": lambda frame: frame.assign(of=frame["of"].replace("a", "e")),
    "other units": lambda frame: frame.assign(whole=frame["whole"] * 1000, cents=frame.cents * 7),
    "another type": lambda frame: frame.assign(continuous="x", flag=3, day=1.5, size=2, stars="*"),
    "one number": lambda frame: frame.assign(
        above=frame["above"].where(frame.index != 3, np.nextafter(frame["above"], np.inf))
    ),
    "infinite": lambda frame: frame.assign(above=np.inf),
    "without a column": lambda frame: frame.drop(columns="of"),
    "few rows": lambda frame: frame.head(3),
    "no rows": lambda frame: frame.head(0),
    "another file": lambda frame: "no table, but text",
    "emptied": lambda frame: "",
    "gone": lambda frame: None,
}
SAID = (
    r"not the one that|expected at least 20|cannot be read|is empty|not there|no column|infinite"
    r"|none of its values"
)


def change(path: Path, name: str) -> None:
    new = CHANGES[name](pd.read_csv(path))
    path.unlink()
    if isinstance(new, pd.DataFrame):
        new.to_csv(path, index=False)
    elif new is not None:
        path.write_text(new)


def numbers(opened: Table) -> dict[str, Any]:
    """What a run says of rows of another table."""
    rows = table(2, 6)
    return {
        "log p": opened.log_prob(rows, draws=2),
        "draws": opened.impute(rows, num=2),
        "samples": opened.sample(4),
    }


def opened(run: Path) -> Table:
    table = Table.from_run(run, accelerator="cpu")
    table.use_sampler("exponential", 2)
    return table


@pytest.fixture(scope="module")
def before(made: Path) -> dict[str, Any]:
    """Of the run whose table is as it was."""
    with pytest.MonkeyPatch.context() as patch:
        be_brief(patch)
        return numbers(opened(made / "run"))


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_table_is_said_and_changes_no_number(
    before: dict[str, Any], run: Path, name: str
) -> None:
    change(run.parent / "people.csv", name)
    with pytest.warns(UserWarning, match=SAID):
        changed = opened(run)
    for what, frame in numbers(changed).items():
        # float32 sums of some 100 nats, whose error is of their differences
        pd.testing.assert_frame_equal(frame, before[what], rtol=1e-3, atol=1e-3)
    with pytest.raises(DataError, match=SAID):
        _ = changed.problem.test
    with pytest.raises((RunError, DataError), match=SAID):
        train(resume=run)


def test_programs_say_what_has_changed(run: Path, tmp_path: Path) -> None:
    """Those that need rows of the run's own table end; others go on by what the run keeps."""
    said = r"(?s)not the one that .* train: SHA-256 .* when it was started, SHA-256"
    change(run.parent / "people.csv", "rows appended")
    table(2, 6).to_csv(tmp_path / "new.csv", index=False)
    with pytest.warns(UserWarning, match=said):
        impute(run, str(tmp_path / "new.csv"), tmp_path / "full.csv", num=1, steps=2)
    with pytest.warns(UserWarning, match=said):
        evaluate(run, data=str(tmp_path / "new.csv"), draws=2, accelerator="cpu")
    with pytest.warns(UserWarning, match=said):
        sample(run, num_samples=2, steps=2, out=tmp_path / "samples.csv")
    for program in (evaluate, lambda run: compare([run], out=tmp_path / "c", draws=1)):
        with pytest.warns(UserWarning, match=said), pytest.raises(DataError, match=said):
            program(run)


def test_unchanged_data_are_as_they_were_wherever_they_are(made: Path, run: Path) -> None:
    first, second = (load_trained(folder)[1].problem for folder in (made / "run", run))
    for part in ("train", "validation", "test"):
        torch.testing.assert_close(
            getattr(first, part), getattr(second, part), rtol=0, atol=0, equal_nan=True
        )


# -- columns as JSON -------------------------------------------------------------------------------


def problem(frame: pd.DataFrame, columns: str | None = COLUMNS) -> Tabular:
    return Tabular(data=frame, columns=columns, holdout=True)


def test_columns_of_every_kind_come_back_from_json(made: Path) -> None:
    numbers = np.linspace(0, 1, 40)
    columns = [*problem(table()).columns, Bounded("continuous", numbers, numbers, (0.0, 1.0))]
    assert {type(column) for column in columns} == {*KINDS_OF_COLUMNS.values(), Bounded}
    frame = table(3).assign(of="zebra", flag="perhaps")
    for column in columns:
        facts = json.loads(json.dumps(column_facts(column)))
        again = column_of_facts(facts)
        assert column_facts(again) == column_facts(column)
        assert (again.in_words, again.spec) == (column.in_words, column.spec)
        np.testing.assert_array_equal(
            again.unknown(frame[column.name]), column.unknown(frame[column.name])
        )
        assert_same_values(again, column)


def assert_same_values(one: Column, other: Column) -> None:
    x = torch.randn(50, one.width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    codes = [column.unscaled(x if one.width > 1 else x[:, 0]) for column in (one, other)]
    values = [column.values(code.numpy()) for column, code in zip((one, other), codes, strict=True)]
    pd.testing.assert_series_equal(pd.Series(values[0]), pd.Series(values[1]))


@pytest.mark.parametrize(
    "values",
    [
        pd.Categorical(["low", "high", "low", None] * 10, ["low", "high"], ordered=True),
        pd.date_range("2024-01-01", periods=40, tz="Europe/Berlin"),
        pd.date_range("2024-01-01", periods=40, freq="7h"),
        [True, "a", 1, 2.5] * 10,
    ],
    ids=["order", "zone", "hours", "mixed"],
)
def test_types_of_pandas_come_back(values: Any) -> None:
    frame = pd.DataFrame({"x": np.arange(40) % 7 / 7, "y": values})
    (column,) = [c for c in problem(frame, None).columns if c.name == "y"]
    again = column_of_facts(json.loads(json.dumps(column_facts(column))))
    assert_same_values(again, column)


def test_what_is_no_column_is_refused() -> None:
    facts = column_facts(problem(table()).columns[0])

    def of(**changes: Any) -> Callable[[], Column]:
        return lambda: column_of_facts(facts | changes)

    wrong = {"name": "a", "_w": {"tensor": ["x"]}}
    refused(
        ValueError,
        (of(**{"class": "system"}), "no column that a run keeps"),
        (of(attributes=[]), "no column that a run keeps"),
        (of(attributes={"codes": 3}), "codes is a method of Continuous"),
        (of(attributes={}), "no column"),
        (of(attributes=wrong), "too many dimensions|no column"),
        (of(attributes={"name": {"pickle": "gASV"}}), "no value that a run keeps"),
    )
    with pytest.raises(DataError, match="what the run keeps of its table is damaged"):
        Tabular.split_by(0, {"columns": [facts | {"class": "x"}]}, data="wine")
