"""A table as one object, and the programs that are doors to it."""

from __future__ import annotations

import copy
import math
import pickle
import re
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from inference import Table
from inference.drawing.pieces import read_pieces
from inference.evaluate import evaluate
from inference.folders.checkpoints import RunError
from inference.folders.loading import load_trained
from inference.impute import impute
from inference.sample import sample
from inference.train import train
from models import DataError
from models.kept import table_bytes, table_of
from pyro_mdm import tables
from pyro_mdm.tables.columns import encode
from tests.brief import SHORT
from tests.mistakes import refused
from tests.tables.test_columns import typed
from tests.tables.test_tabular import people

BRIEF: dict[str, Any] = {k: v for k, v in SHORT.items() if k != "model"}
BRIEF |= {"steps": 1, "test_size": 8, "guide": "vpsde", "min_log_snr": -9.0}
UNTRAINED = BRIEF | {"learning_rate": 1e-12, "ema_decay": 0.0}
"""A network as it starts: the exact denoiser of a Gaussian law, and of histograms."""


def related(n: int = 100) -> pd.DataFrame:
    """Columns of numbers that have much to do with each other, with entries missing."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=n)
    table = pd.DataFrame({"a": a, "b": np.exp(a + 0.5 * rng.normal(size=n)), "c": rng.gamma(2, n)})
    table["c"] += 50 * a
    return table.mask(rng.random(table.shape) < 0.1)


@pytest.fixture(scope="module")
def gaussian(brief: None) -> Table:
    """Of a Gaussian law in model space, whose denoiser is exact."""
    return Table(columns={"*": "continuous"}, **UNTRAINED).fit(related())


@pytest.fixture(scope="module")
def mixed(brief: None, tmp_path_factory: pytest.TempPathFactory) -> Table:
    folder = tmp_path_factory.mktemp("runs") / "people"
    return Table(folder=folder, seed=3, num=4, **UNTRAINED).fit(people())


def law_of(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the covariance of a Gaussian law in model space."""
    score = load_score(table)
    return score.data_mean.double().numpy(), score.network.covariance.double().numpy()


def load_score(table: Table) -> Any:
    return load_trained(table.run_folder)[1].model.score_function


def log_density(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> float:
    """Of a Gaussian law at the entries of x that are there."""
    there = ~np.isnan(x)
    if not there.any():
        return 0.0
    law = torch.distributions.MultivariateNormal(
        torch.from_numpy(mean[there]), torch.from_numpy(covariance[there][:, there])
    )
    return float(law.log_prob(torch.from_numpy(x[there])))


# -- the numbers are right -------------------------------------------------------------------------


@pytest.mark.slow
def test_log_p_is_that_of_the_law(gaussian: Table) -> None:
    rows = related().head(12).set_index(pd.Index(list("abcdefghijkl")))
    rows.loc["b", ["a", "c"]] = np.nan
    rows.loc["e"] = np.nan
    problem = gaussian.problem
    x, log_det = problem.transform(encode(problem.columns, rows))
    mean, covariance = law_of(gaussian)
    x, log_det = x.double().numpy(), log_det.double().numpy()
    exact = np.array([log_density(own, mean, covariance) for own in x])
    measured = gaussian.log_prob(rows, draws=128)
    assert measured.index.equals(rows.index)
    agrees(measured, exact + log_det)
    assert measured.loc["e"].tolist() == [0.0, 0.0]
    found = gaussian.log_prob(rows)
    assert not gaussian.log_prob(rows, seed=1).drop("e").isin(found).any(axis=None)
    pd.testing.assert_frame_equal(found, gaussian.log_prob(rows))

    law = gaussian.conditional(rows, "b").log_prob(rows["b"])
    without = problem.transform(encode(problem.columns, rows.assign(b=np.nan)))
    others = without.x.double().numpy()
    exact -= np.array([log_density(own, mean, covariance) for own in others])
    agrees(law, exact + log_det - without.log_det.double().numpy())
    assert law[rows["b"].isna()].to_numpy().tolist() == [[0.0, 0.0]] * int(rows["b"].isna().sum())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gaussian", "mixed"])
def test_the_error_of_a_row_covers_its_bound(name: str, request: pytest.FixtureRequest) -> None:
    """However few draws there are, and whatever noise columns have of their own.

    400 shares of 93 to 97% have a standard deviation of 1.2%, what the rows of a repeat share adds
    2% / √10, and the truth is known to a fifth of the errors at 8 draws: false alarm 1e-6 at 7%.
    """
    table: Table = request.getfixturevalue(name)
    rows = (related() if name == "gaussian" else people()).head(40)
    copies = table.log_prob(pd.concat([rows] * 6), draws=32, seed=100)["log_prob"].to_numpy()
    known = copies.reshape(6, 40).mean(0)
    for draws in (1, 2, 8):
        measured = [table.log_prob(rows, draws=draws, seed=seed) for seed in range(10)]
        off = np.stack([one["log_prob"] - known for one in measured])
        error = np.stack([one["standard_error"] for one in measured])
        assert (abs(off) <= 1.96 * error).mean() > 0.93 - 0.07
        assert 0.6 < (off**2).mean() / (error**2).mean() < 1.5


def agrees(measured: pd.DataFrame, exact: np.ndarray) -> None:
    """To some standard errors, for each row and on average."""
    off, error = measured["log_prob"] - exact, measured["standard_error"]
    assert error.max() < 1.5
    assert (off.abs() <= 7 * error).all()
    assert abs(off.sum()) < 5.5 * math.sqrt((error**2).sum())


def test_a_conditional_is_that_of_the_law(gaussian: Table) -> None:
    """Its quantiles are those of the Gaussian law given what is there, in the column's units."""
    rows = related().head(4)
    rows.loc[2, "c"] = np.nan  # integrated out
    table = copy.copy(gaussian)
    table.use_sampler("exponential", 16)
    law = table.conditional(rows.assign(b=[9.0, np.nan, 1.0, 0.1]), "b", num=1000)
    problem = gaussian.problem
    x = problem.transform(encode(problem.columns, rows.assign(b=np.nan))).x.double().numpy()
    mean, covariance = law_of(gaussian)
    ends = law.interval(0.8)
    for i, own in enumerate(x):
        o = np.flatnonzero(~np.isnan(own))
        gain = covariance[1, o] @ np.linalg.inv(covariance[np.ix_(o, o)])
        center = mean[1] + gain @ (own[o] - mean[o])
        spread = math.sqrt(covariance[1, 1] - gain @ covariance[o, 1])
        for found, share in ((law.quantile(0.5), 0.5), (ends["low"], 0.1), (ends["high"], 0.9)):
            at = problem.columns[1].scaled(torch.tensor([float(found[i])]).double())[0]
            below = torch.special.ndtr((at - center) / spread)
            assert float(below) == pytest.approx(share, abs=0.11)  # of 1,000 draws
    assert law.mean().between(ends["low"], ends["high"]).all()
    assert law.quantile([0.2, 0.7]).columns.tolist() == [0.2, 0.7]
    assert (law.sample().shape, law.sample().index.tolist()) == ((4, 1000), [0, 1, 2, 3])


# -- completions and samples -----------------------------------------------------------------------


def test_what_was_there_stays(mixed: Table) -> None:
    rows = people().head(20).assign(note="mine").set_index(pd.Index(range(5, 25), name="row"))
    rows = rows[["note", *people().columns[::-1]]]
    draws = mixed.impute(rows, num=3)
    assert draws.index.names == ["draw", "row"] and len(draws) == 60
    pd.testing.assert_series_equal(draws.dtypes, rows.dtypes)
    assert set(draws["city"]) == {"Rome", "Oslo", "Bern"}
    there = rows.notna()
    for k in range(3):
        own = draws.loc[k]
        assert not own.isna().any(axis=None) and own.index.equals(rows.index)
        pd.testing.assert_frame_equal(own.where(there), rows)
    income = draws["income"].unstack("draw")[rows["income"].isna()]
    assert (income.nunique(axis=1) == 3).all()
    pd.testing.assert_frame_equal(draws, mixed.impute(rows, num=3))
    assert not draws.equals(mixed.impute(rows, num=3, seed=9))

    whole, four = mixed.transform(rows), mixed.impute(rows, num=4)
    gone = rows["income"].isna()
    mean = four["income"].groupby(level="row").mean()
    np.testing.assert_allclose(whole["income"][gone], mean[gone])
    pd.testing.assert_frame_equal(whole.where(there), rows)


def test_samples_have_what_is_given(mixed: Table) -> None:
    given = {"age": 50.5, "city": "Oslo"}
    rows = mixed.sample(6, given=given)
    assert (rows["age"] == 50.5).all() and (rows["city"] == "Oslo").all()
    assert rows["income"].nunique() > 2 and not rows.isna().any(axis=None)
    free = mixed.sample(6)
    assert free.columns.tolist() == mixed.names and free["age"].nunique() > 2
    pd.testing.assert_frame_equal(free, mixed.sample(6))


@pytest.mark.slow
def test_labels_are_what_the_caller_has(brief: None) -> None:
    frame = related().set_axis([0, 1, "c"], axis=1)
    table = Table(num=2, columns={"*": "continuous"}, **UNTRAINED).fit(frame)
    rows = frame.head(3)
    assert table.names == ["0", "1", "c"] and len(table.log_prob(rows)) == 3
    assert table.impute(rows, 2).columns.tolist() == table.transform(rows).columns.tolist()
    assert table.transform(rows).columns.tolist() == [0, 1, "c"]
    assert table.conditional(rows, 1, num=2).sample().shape == (3, 2)  # type: ignore[arg-type]
    own = table.sample(2)
    table.use_sampler("exponential", 1)
    assert not own.equals(table.sample(2))
    pd.testing.assert_frame_equal(own, table.fit(frame).sample(2))  # with its own sampler again


def test_a_sampler_that_is_refused_leaves_the_table_as_it_was(mixed: Table) -> None:
    before = mixed.sample(3)
    refused(
        (ValueError, LookupError),
        (lambda: mixed.use_sampler(None, -3), "--steps is -3, expected a positive number"),
        (lambda: mixed.use_sampler("euler", 0), "--steps is 0, expected a positive number"),
        (lambda: mixed.use_sampler("nowhere"), "unknown sampler 'nowhere'"),
    )
    pd.testing.assert_frame_equal(mixed.sample(3), before)
    pd.testing.assert_frame_equal(pickle.loads(pickle.dumps(mixed)).sample(3), before)


def test_types_do_not_depend_on_the_piece(mixed: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_mdm.tables.frames.PIECE", 4)
    rows = people().head(12).astype({"age": "float32", "city": "category", "grade": "float32"})
    rows["city"] = rows["city"].cat.remove_categories("Bern")
    rows.loc[:3, ["age", "grade"]] = np.nan
    rows.loc[4:7, "city"] = "Rome"
    rows.loc[8:, "city"] = None
    for whole in (mixed.impute(rows, 3), mixed.transform(rows)):
        own = whole.dtypes.drop("city")
        pd.testing.assert_series_equal(own, rows.dtypes.drop("city"))
        assert set(whole["city"].cat.categories) == {"Rome", "Oslo", "Bern"}


def dated(n: int = 80) -> pd.DataFrame:
    """Dates as text, as objects and in a zone, an order of words, lists and intervals."""
    days = pd.Series(pd.date_range("2020-01-01", periods=n)).mask(np.arange(n) % 9 == 0)
    spoken = np.array(["low", "middle", "high"])[np.arange(n) % 3]
    table = pd.DataFrame({"text": days.dt.strftime("%Y-%m-%d"), "zone": days})
    table["zone"] = days.dt.tz_localize("Europe/Rome")
    table["day"] = pd.Series([None if day is pd.NaT else day.date() for day in days], dtype=object)
    table["size"] = pd.Categorical(spoken, ["low", "middle", "high"], ordered=True)
    table["lists"], table["cut"] = [[1]] * n, pd.cut(np.arange(n), 3)
    return table


def test_laws_of_dates_are_dates_and_those_of_words_are_refused(brief: None) -> None:
    refused(DataError, (lambda: table_bytes(dated()[["cut"]]), r"by \.astype\(str\), or leave it"))
    frame = dated().astype({"cut": str})
    table = Table(columns="lists=drop", **UNTRAINED).fit(frame)
    rows = frame.head(3)
    for name in ("text", "zone", "day"):
        law = table.conditional(rows, name, num=9)
        ends, middle = law.interval(0.5), law.mean()
        assert ends["low"].map(type).equals(rows[name].bfill().map(type))
        assert (ends["low"] <= ends["high"]).all() and ends["low"].nunique() > 1
        assert middle.between(law.quantile(0), law.quantile(1)).all()
    refused(
        ValueError,
        (lambda: table.conditional(rows, "size").mean(), "'size' is ordinal, expected one of num"),
    )
    problem = table.problem
    columns = problem.as_columns(problem.to_model_space(problem.codes(frame)))
    for name in ("text", "zone", "day"):
        assert columns[name].dtype == "datetime64[us]"
        assert columns[name].dt.strftime("%Y-%m-%d").equals(frame["text"])
    pd.testing.assert_frame_equal(table_of(table_bytes(frame[["day"]])), frame[["day"]])


# -- runs and programs -----------------------------------------------------------------------------


def test_a_run_keeps_its_table(mixed: Table, tmp_path: Path) -> None:
    rows = people().head(5)
    mixed.save(tmp_path / "copy")
    moved = shutil.move(tmp_path / "copy", tmp_path / "moved")
    opened = Table.from_run(moved)
    assert opened.get_params()["seed"] == 3 and opened.names == mixed.names
    for other in (opened, copy.deepcopy(mixed), pickle.loads(pickle.dumps(mixed))):
        pd.testing.assert_frame_equal(other.impute(rows, 2), mixed.impute(rows, 2))
    (Path(moved) / "results.json").unlink()
    train(resume=moved)  # to the end, where it is already
    assert (Path(moved) / "results.json").exists()


def test_a_temporary_run_goes_with_its_table(brief: None, gaussian: Table) -> None:
    table = clone(gaussian).fit(related())
    folder = table.run_folder
    whole = table.transform(related().head(3)).notna().all(axis=None)
    assert folder.is_dir() and whole
    again = pickle.loads(pickle.dumps(table))
    del table
    assert not folder.exists()
    with pytest.raises(RunError, match=r"the run folder .* is gone; fit with folder="):
        again.save(folder)


def test_kept_tables_have_every_type_again() -> None:
    table = typed().reset_index(drop=True)
    table["day"] = pd.to_datetime(["2020-01-01", None, "2021-05-05"])
    table["zone"] = table["day"].dt.tz_localize("Europe/Rome")
    table["span"] = pd.to_timedelta([1, None, 3], unit="s")
    table["any"] = pd.Series([1, "1", None], dtype=object)
    table["far"] = [0.1 + 0.2, math.inf, 1e-300]
    for own in (table, people()):
        pd.testing.assert_frame_equal(table_of(table_bytes(own)), own, check_exact=True)
    wrong = pd.DataFrame({"w": [pd.Period("2020"), None]})
    refused(DataError, (lambda: table_bytes(wrong), "'w' holds Period.*expected numbers, text or"))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_file_is_completed_in_pieces(
    mixed: Table, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the draws of the object, whatever is in one piece alone."""
    for module in ("pyro_mdm.tables.frames", "inference.impute"):
        monkeypatch.setattr(f"{module}.PIECE", 8)
    rows = people().head(20).convert_dtypes() if suffix == "parquet" else people().head(20)
    rows.loc[:7, "age"] = 20.5  # nothing is missing there, and everything in the next piece
    rows.loc[8:15, "grade"] = None
    source, out = tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}"
    read = pd.read_csv if suffix == "csv" else pd.read_parquet
    _ = rows.to_csv(source, index=False) if suffix == "csv" else rows.to_parquet(source)
    impute(mixed.run_folder, str(source), out, num=2, seed=3, accelerator="cpu")
    own = read(source)
    draws = mixed.impute(own, 2)
    written = read(tmp_path / f"out-draws.{suffix}")
    if suffix == "parquet":
        assert groups(tmp_path / "out-draws.parquet") == [8, 8, 4] * 2  # a piece is held at a time
    assert written["draw"].tolist() == [0] * 20 + [1] * 20
    expected = draws.reset_index(drop=True).assign(draw=np.repeat([0, 1], 20))
    pd.testing.assert_frame_equal(
        written.reset_index(drop=True), expected, check_dtype=suffix == "parquet"
    )
    full = read(out)
    assert full.index.equals(own.index) and not full.isna().any(axis=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [f"in.{suffix}", f"out-draws.{suffix}", f"out.{suffix}"]
    )


def groups(path: Path) -> list[int]:
    """The numbers of rows in the row groups of a parquet file."""
    from pyarrow import parquet

    own = parquet.read_metadata(path)
    return [own.row_group(k).num_rows for k in range(own.num_row_groups)]


def test_a_row_group_is_not_held_to_read_a_piece_of_it(tmp_path: Path) -> None:
    rows = pd.DataFrame(np.random.default_rng(0).random((100_000, 4)), columns=[*"abcd"])
    path, before = tmp_path / "long.parquet", pa.total_allocated_bytes()
    rows.to_parquet(path, use_dictionary=False, compression="none", data_page_size=4096)
    assert groups(path) == [100_000]
    for _ in read_pieces(str(path), 100):
        assert pa.total_allocated_bytes() - before < path.stat().st_size / 2
        break


def test_columns_that_stay_have_their_types_in_parquet(
    mixed: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the first piece has no value of them."""
    for module in ("pyro_mdm.tables.frames", "inference.impute"):
        monkeypatch.setattr(f"{module}.PIECE", 4)
    born = pd.Series([None] * 5 + [date(2020, 1, 2)] * 3, dtype=object)
    people().head(8).assign(born=born).to_parquet(tmp_path / "in.parquet")
    impute(mixed.run_folder, str(tmp_path / "in.parquet"), tmp_path / "out.parquet", num=1)
    assert pd.read_parquet(tmp_path / "out.parquet")["born"].tolist() == born.tolist()


def test_a_value_that_cannot_be_leaves_no_file(mixed: Table, tmp_path: Path) -> None:
    (tmp_path / "two.csv").write_text("age,age\n1.5,\n")
    (tmp_path / "none.csv").write_text("age,income,grade,city,member\n")
    (tmp_path / "wide.csv").write_text("age,income,grade,city,member\n1.5,,1,Rome,True,9\n")
    people().head(3).assign(age=["x", "y", None]).to_csv(tmp_path / "words.csv", index=False)
    run, out = mixed.run_folder, tmp_path / "out.csv"
    refused(
        DataError,
        (lambda: impute(run, str(tmp_path / "wide.csv"), out), r"row 0 has 6 cells.* at most 5"),
        (lambda: impute(run, str(tmp_path / "two.csv"), out), "has two columns 'age', expected"),
        (lambda: evaluate(run, data=str(tmp_path / "none.csv")), "has no row, expected one at"),
        (
            lambda: impute(run, str(tmp_path / "words.csv"), out, unknown="refuse"),
            "'age' holds 'x', expected a numb",
        ),
    )
    assert {path.name for path in tmp_path.iterdir()} == {
        *("none.csv", "two.csv", "wide.csv", "words.csv")
    }


def test_programs_are_doors_to_the_object(
    mixed: Table,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, rows = mixed.run_folder, people().head(9)
    rows["city"] = rows["city"].fillna("Rome")
    rows.to_csv(tmp_path / "new.csv", index=False)
    for module in ("pyro_mdm.tables.frames", "inference.measuring.evaluated"):
        monkeypatch.setattr(f"{module}.PIECE", 4)
    evaluate(run, data=str(tmp_path / "new.csv"), draws=8, seed=3, out=tmp_path / "rows.csv")
    assert "log p of the entries of a row: at least" in capsys.readouterr().out
    written = pd.read_csv(tmp_path / "rows.csv", index_col="row")
    own = mixed.log_prob(pd.read_csv(tmp_path / "new.csv"), draws=8)
    pd.testing.assert_frame_equal(written, own, check_names=False)
    bern = tmp_path / "bern.csv"
    sample(run, num_samples=5, given="age=30.5, city=Bern", out=bern, seed=3)
    given = mixed.sample(5, {"age": 30.5, "city": "Bern"})
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "bern.csv"), given, check_dtype=False)
    refused(
        (ValueError, DataError, RunError),
        (lambda: evaluate(run, data="new.csv", half_width=0.1), "leave out --half_width"),
        (lambda: evaluate(data="new.csv"), "of rows for a run, which is missing"),
        (lambda: sample(run, given="age=3"), "give a class or a vector, or --out rows.csv"),
        (lambda: sample(run, given="age", out=tmp_path / "a.csv"), "has 'age', expected name=val"),
        (lambda: sample(run, given="x=1", out=tmp_path / "a.csv"), "there is no column 'x', exp"),
    )


# -- conventions of scikit-learn -------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:the loss still:UserWarning")
@pytest.mark.parametrize(("kind", "options"), [(Table, UNTRAINED), (tables.Table, {"steps": 1})])
def test_it_is_a_transformer_of_scikit_learn(
    kind: Any, options: dict[str, Any], brief: None
) -> None:
    table = related().to_numpy()
    labels = np.nan_to_num(table[:, 0]) > 0
    estimator = kind(num=2, **options)
    assert clone(estimator).get_params() == estimator.get_params()
    said = [word.partition("=")[0] for word in re.findall(r"\w+=", repr(estimator))]
    assert said == sorted(["num", *options], key=[*estimator.get_params()].index)
    assert estimator.set_params(seed=2) is estimator and estimator.get_params()["seed"] == 2
    if kind is Table:
        assert estimator.set_params(warmup=0).get_params()["warmup"] == 0
    pipeline = make_pipeline(estimator, StandardScaler(), LogisticRegression())
    pipeline.set_params(table__columns={"x0": "continuous"})
    assert pipeline.fit(table, labels).score(table, labels) > 0.8
    assert estimator.get_feature_names_out().tolist() == ["x0", "x1", "x2"]
    whole = estimator.transform(table)
    assert isinstance(whole, np.ndarray) and not np.isnan(whole).any()
    np.testing.assert_array_equal(whole[~np.isnan(table)], table[~np.isnan(table)])


def test_mistakes_are_told(mixed: Table, tmp_path: Path) -> None:
    rows = people().head(3)
    law = mixed.conditional(rows, "age")
    refused(
        (RunError, DataError, ValueError),
        (lambda: Table().impute(rows), "is not fitted yet; call fit, or use Table.from_run"),
        (lambda: Table().fit(np.zeros(3)), r"shape \(3,\), expected \(rows, columns\)"),
        (lambda: Table.from_run("digits"), "is of --model digits, expected one of tabular"),
        (lambda: mixed.conditional(rows, "height"), "there is no column 'height', expected one of"),
        (lambda: mixed.sample(2, {"height": 1}), "there is no column 'height'"),
        (lambda: mixed.sample(2, {"city": "Paris"}), "'city' holds 'Paris', which the training"),
        (lambda: mixed.impute(rows.drop(columns="age")), "the table has no column 'age'"),
        (lambda: mixed.conditional(rows, "city").mean(), "'city' is categorical, expected one of"),
        (
            lambda: Table(maps="independent", **UNTRAINED).fit(related()),
            "at --maps independent, where no entry",
        ),
        (law.probabilities, "'age' is rounded, expected one with levels"),
        (lambda: law.interval(1.5), "level is 1.5, expected a probability between 0 and 1"),
        (lambda: mixed.save(tmp_path), "exists; give another name"),
    )
