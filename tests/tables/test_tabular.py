"""Tables: kinds of columns, their scales and codes, and the programs on them."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from inference.evaluate import evaluate
from inference.folders.checkpoints import RunError
from inference.folders.loading import load_trained
from inference.impute import impute
from inference.settings.options import DataOptions
from inference.settings.problems import build_problem
from inference.train import train
from models import DataError, Tabular
from models.tabular import SHIPPED, read_table
from pyro_mdm import VPSDE, DiffusionGuide, MixedDenoiser, elbo_terms
from pyro_mdm.tables import agreement
from pyro_mdm.tables.columns import Categorical, Column, fit_columns
from pyro_mdm.tables.columns.gaps import dependent_gaps
from tests.brief import SHORT, be_brief
from tests.mistakes import refused


def people(n: int = 120) -> pd.DataFrame:
    """Every kind of column, with entries missing, and something in common between them."""
    rng = np.random.default_rng(0)
    age = rng.uniform(18, 80, n).round(1)
    table = pd.DataFrame(
        {
            "age": age,
            "income": np.exp(rng.normal(size=n) + age / 40),
            "grade": (age // 25).astype(int),
            "city": rng.choice(["Rome", "Oslo", "Bern"], n, p=[0.6, 0.3, 0.1]),
            "member": rng.random(n) < age / 100,
        }
    )
    return table.astype({"grade": object, "member": object}).mask(rng.random(table.shape) < 0.15)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    people().to_csv(tmp_path / "people.csv", index=False)
    return tmp_path / "people.csv"


def test_kinds_are_found_or_said(file: Path) -> None:
    assert {c.name: (c.kind, c.levels) for c in Tabular(data=file).columns} == {
        "age": ("rounded", None),
        "income": ("nonnegative", None),
        "grade": ("ordinal", 4),
        "city": ("categorical", 3),
        "member": ("boolean", 2),
    }
    said = Tabular(data=file, columns="age=drop, grade=categorical").columns
    assert [(c.name, c.kind) for c in said][:2] == [
        ("income", "nonnegative"),
        ("grade", "categorical"),
    ]
    assert isinstance(said[2], Categorical) and said[2].values(np.arange(3))[0] == "Rome"


def test_the_bound_is_of_the_table_in_its_own_units() -> None:
    """Another unit changes it by the logarithm of the unit for each value that is there."""
    found, there = [], []
    for unit in (1.0, 1000.0):
        table = people().assign(income=lambda t, unit=unit: unit * t["income"])
        columns = fit_columns(table, np.arange(120) % 10 > 0, {"age": "nonnegative"})
        problem = object.__new__(Tabular)
        problem.columns = columns
        codes = torch.from_numpy(np.stack([c.codes(table[c.name]) for c in columns], 1))
        x, log_det = problem.transform(codes)
        there.append(~codes[:, 1].isnan())
        found.append((x, log_det))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-4, equal_nan=True)
    expected = there[0].float() * math.log(1000)
    torch.testing.assert_close(found[0][1] - found[1][1], expected, rtol=1e-4, atol=1e-4)


def test_shipped_tables_have_programs() -> None:
    sizes = {"breast_cancer": (569, 31), "diabetes": (442, 11), "iris": (150, 5), "wine": (178, 14)}
    assert set(sizes) == set(SHIPPED)
    for name, size in sizes.items():
        assert read_table(name).shape == size
    problem = Tabular(data="iris", holdout=True)
    assert [c.kind for c in problem.columns] == [*["rounded"] * 4, "categorical"]
    assert [len(problem.train), len(problem.validation), len(problem.test)] == [120, 15, 15]
    model = problem.build(VPSDE(max_log_snr=9.0, min_log_snr=-9.0))
    assert isinstance(model.score_function, MixedDenoiser)
    x = problem.to_model_space(problem.test).repeat(100, 1)  # of one draw each it is noise
    terms = elbo_terms(model, DiffusionGuide(model.diffusion), x)
    baseline = model.score_function.baseline_log_prob(x).mean()
    gain = float(terms.elbo.mean().detach()) - float(baseline)
    assert gain > 0.5  # it starts from the Gaussian law of all columns together


@pytest.mark.slow
def test_programs_on_a_table(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    be_brief(monkeypatch, figures=True)
    monkeypatch.setattr(agreement.Agreement, "differs", [])  # of a run of four steps
    run = tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    short = SHORT | {"model": "tabular", "data": Path("people.csv"), "measure_every": 4}
    short |= {"test_size": 12}
    first = train(**short, guide="vpsde", min_log_snr=-9.0, holdout=False, run=run)
    monkeypatch.chdir("/")  # the run knows where its table is
    settings = load_trained(run)[0].config
    assert settings["maps"] == "mixed" and settings["data"] == str(file)
    evaluate(run, draws=1, accelerator="cpu", out=tmp_path / "bounds.csv")
    told = capsys.readouterr().out
    assert "gaps of the table:" in told and "age: empty in" in told
    tested = load_trained(run)[1].problem.test  # in the order and with the numbers of the file
    rows = pd.read_csv(file).iloc[pd.read_csv(tmp_path / "bounds.csv")["row"]]
    assert [*rows["age"].isna()] == tested[:, 0].isnan().tolist() and len(rows) == 12
    np.testing.assert_allclose(rows["age"], tested[:, 0])
    bits, nats = (float(re.search(rf"{t} (-?[\d.]+)", told)[1]) for t in ("\nbits/dim", "at least"))
    assert nats == pytest.approx(-5 * math.log(2) * bits, abs=0.01)
    assert math.isfinite(first.bits_per_dim[0])

    options: dict[str, Any] = {"data": str(tmp_path / "full.csv"), "accelerator": "cpu"}
    pd.read_csv(file).dropna().to_csv(tmp_path / "full.csv", index=False)
    with pytest.raises(ValueError, match="has no missing entry, expected one at least"):
        impute(run, out=tmp_path / "again.csv", **options)
    with pytest.raises(RunError, match=r"full\.csv exists; give another --out, or --overwrite"):
        impute(run, out=tmp_path / "full.csv", **options)


def table_with(**columns: Any) -> Any:
    return lambda table: table.assign(**columns)


N = 120
MISTAKES: dict[str, tuple[Any, str, str]] = {
    "unknown column": (None, "weight=drop", "'weight', and the table has no such .* one of age"),
    "unknown kind": (None, "age=float", "age=float.: expected a kind of continuous, nonnegative"),
    "no kind": (None, "age", "columns has 'age', expected name=kind"),
    "no value": (table_with(e=[math.nan] * N), "e=integer", "'e' has no value .* columns=.e=drop"),
    "constant": (table_with(c=["a"] * N), "c=categorical", "'c' has one value in all .*, 'a'"),
    "words": (None, "city=continuous", "'city' holds '.*', expected a number; correct it"),
    "words in no order": (
        None,
        "city=ordinal",
        "'city' holds .*; or say its order, such as columns=",
    ),
    "another order": (None, "city=Oslo<Rome", "'city' holds Bern, which its order leaves out, exp"),
    "an order twice": (None, "city=Oslo<Oslo", "city=Oslo<Oslo.: expected levels that differ, the"),
    "an order of words": (None, "grade=0<1<two", "'grade' holds numbers, and its order has 'two'"),
    "backwards": (None, "age=90..10", "age=90..10.: expected a range of numbers, the least first"),
    "no range": (None, "age=a..b", "age=a..b.: expected a range of numbers, the least first"),
    "a range of levels": (None, "city=categorical 0..9", "expected a kind of .*; or a range"),
    "a range of words": (
        None,
        "city=0..9",
        "city=0..9. is a range of numbers, .* 'city' is categor",
    ),
    "out of range": (None, "age=20..99", "'age' holds 1.*, expected numbers in the range 20..99 t"),
    "no truth": (None, "city=boolean", "'city' holds '.*', expected true or false; correct it"),
    "no dates": (None, "city=date", "'city' holds '.*', expected a date such as 2024-12-31"),
    "infinite": (table_with(age=[math.inf] + [1.5, 2.5] * 59 + [3.5]), "", "'age' holds an infin"),
    "few rows": (lambda table: table.head(12), "", "has 12 rows, expected at least 20"),
    "nothing left": (lambda table: table[["age"]], "age=drop", "no column of the table is left"),
    "nothing told": (
        lambda table: table.assign(c=1)[["c"]],
        "",
        "no column .* differs between rows; 'c': its only value in the training rows is 1",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told(name: str, tmp_path: Path) -> None:
    change, columns, message = MISTAKES[name]
    table = people() if change is None else change(people())
    table.to_csv(tmp_path / "own.csv", index=False)
    with pytest.raises((DataError, ValueError), match=message):
        Tabular(data=tmp_path / "own.csv", columns=columns)


def test_mistakes_of_files_and_programs(file: Path, tmp_path: Path) -> None:
    refused(
        (DataError, ValueError),
        (lambda: Tabular(data=None), "--model tabular needs --data"),
        (lambda: Tabular(data="vine"), "vine is no table that can be read; expected a .csv or"),
        (lambda: Tabular(data=tmp_path / "no.csv"), "no.csv is not there"),
    )
    for text, message in (
        ('a,b\n"1,2\n3', r"own\.csv cannot be read as a table"),
        ("", r"own\.csv is empty, expected a table whose first row has the names"),
        ("a,b\n", r"own\.csv has 0 rows, expected at least 20"),
        ("a,b,a\n1,2,3\n", r"own\.csv has two columns 'a', expected names that differ; rename"),
        ("a;b\n1;2\n", r"own\.csv has one column, 'a;b', expected commas .* has ';' there"),
        ("a\tb\n1\t2\n", r"has one column, 'a\\tb', expected commas"),
    ):
        (tmp_path / "own.csv").write_text(text)
        with pytest.raises(DataError, match=message):
            Tabular(data=tmp_path / "own.csv")
    problem, table = Tabular(data=file), people()
    twice = table.set_axis(["age", "age", "grade", "city", "member"], axis=1)
    options = DataOptions(model="digits", columns="a=drop", holdout=False)
    refused(
        (DataError, ValueError),
        (lambda: build_problem(options), "--columns a=drop is for tables; --model digits has no"),
        (
            lambda: problem.codes(table[["grade", "city", "member"]]),
            "no column 'age', 'income'",
        ),
        (lambda: problem.codes(twice), "the table has two columns 'age', expected names that"),
        (lambda: problem.codes(table.assign(grade=9), "refuse"), "'grade' holds 9, which the tr"),
        (
            lambda: problem.codes(table, "drop"),
            "unknown is 'drop', expected one of",
        ),
    )


# -- gaps that are not chance ----------------------------------------------------------------------


def survey(n: int = 400) -> pd.DataFrame:
    """A row of every kind of column for each person, complete."""
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "age": rng.uniform(18, 80, n),
            "works": (rng.random(n) < 0.5).astype(object),
            "city": rng.choice(["Rome", "Oslo", "Bern"], n),
            "joined": pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 999, n), "D"),
            "grade": pd.Categorical(rng.choice(["low", "high"], n), ["low", "high"], ordered=True),
            "hours": rng.normal(size=n),
        }
    )


REASONS: dict[str, Any] = {
    "age": lambda table: table["age"] > 60,
    "middle of age": lambda table: (table["age"] - 49).abs() > 15,
    "works": lambda table: table["works"].eq(False),
    "city": lambda table: table["city"] == "Oslo",
    "joined": lambda table: table["joined"] < "2021-01-01",
    "grade": lambda table: table["grade"] == "low",
}


def fitted(table: pd.DataFrame) -> list[Column]:
    return fit_columns(table, np.ones(len(table), dtype=bool))


@pytest.mark.parametrize("reason", REASONS)
def test_gaps_that_depend_on_another_column_are_told(reason: str) -> None:
    table = survey()
    gone = REASONS[reason](table).to_numpy()
    rng = np.random.default_rng(1)
    table.loc[gone & (rng.random(len(table)) < 0.9), "hours"] = math.nan
    table.loc[rng.random(len(table)) < 0.1, [name for name in REASONS if name in table]] = None
    assert dependent_gaps(fitted(table), table) == {"hours": reason.removeprefix("middle of ")}


@pytest.mark.parametrize("share", [0.005, 0.1, 0.5, 0.9])
def test_gaps_by_chance_are_not_told(share: float) -> None:
    """Also where whole blocks of a row are missing together; the bound is proved, 1e-6 a table."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        table = survey()
        table = table.mask(rng.random(table.shape) < share)
        table.loc[rng.random(len(table)) < share, ["age", "city"]] = None
        assert dependent_gaps(fitted(table), table) == {}
