"""``pyro_mdm.tables.Table`` by itself: it trains, answers, and is saved, without the programs."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import inference
from pyro_mdm import DiffusionModel
from pyro_mdm.pretrained import PretrainedError
from pyro_mdm.samplers import ExponentialIntegrator
from pyro_mdm.support.checks import DataError
from pyro_mdm.tables import Table, training
from pyro_mdm.tables.table import NotFittedError
from tests.mistakes import refused
from tests.saved_files import rewrite


def patients(n: int = 120) -> pd.DataFrame:
    """Columns of four kinds that have to do with each other, a tenth of which is missing."""
    rng = np.random.default_rng(0)
    age = rng.normal(50, 10, n).round(1)
    table = pd.DataFrame(
        {
            "age": age,
            "dose": np.exp(age / 20 + 0.3 * rng.normal(size=n)),
            "ward": rng.choice(["north", "east", "south"], n),
            "smokes": rng.random(n) < 0.3,
        }
    )
    return table.mask(rng.random(table.shape) < 0.1)


@pytest.fixture(scope="module")
def fitted(brief: None) -> Table:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of so few steps
        return Table(steps=3, seed=1, num=3).fit(patients())


def weights(table: Table) -> torch.Tensor:
    return torch.cat([value.double().flatten() for value in table.model.state_dict().values()])


# -- what it answers -------------------------------------------------------------------------------


def test_it_has_densities_laws_and_samples(fitted: Table) -> None:
    rows = patients().head(6)
    rows.loc[2] = None
    measured = fitted.log_prob(rows, draws=16)
    assert measured.loc[2].tolist() == [0.0, 0.0]
    assert (measured.drop(2)["standard_error"] > 0).all()
    np.testing.assert_allclose(fitted.conditional(rows, "ward").probabilities(16).sum(axis=1), 1.0)
    new = fitted.sample(5, given={"ward": "east"})
    assert new["ward"].tolist() == ["east"] * 5 and list(new) == fitted.names
    words = fitted.columns_in_words
    assert 'columns="NAME=KIND,…"' in words and "--" not in words and "  age " in words
    pd.testing.assert_frame_equal(fitted.sample(4), fitted.sample(6).head(4))
    other = pickle.loads(pickle.dumps(fitted))
    other.model.sampler = ExponentialIntegrator(1)
    assert not other.sample(3).equals(fitted.sample(3))
    assert not other.impute(patients(), 1).equals(fitted.impute(patients(), 1))


# -- how it is trained -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"steps": 3}, {"steps": 2, "holdout": False}, {}])
def test_it_is_the_training_of_the_programs(
    options: dict[str, Any], brief: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit: order, noise, rates, completions of gaps, averages, the best and the end."""
    usual = (12, 0.05, 1, 2, None)  # it ends where patience does
    monkeypatch.setattr(training.Schedule.__new__, "__defaults__", usual)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = Table(seed=2, **options).fit(patients())
        theirs = inference.Table(seed=2, accelerator="cpu", test_size=8, **options).fit(patients())
        other = Table(seed=3, **options).fit(patients())
    assert torch.equal(weights(ours), weights(theirs))
    assert not torch.equal(weights(ours), weights(other))


@pytest.mark.slow
def test_training_ends_where_nothing_is_learned(
    brief: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the measurements of patience, and with what it began with, if all else is worse."""
    taken: list[int] = []
    step = training.Trainer.step

    def counted(self: training.Trainer, loss: torch.Tensor) -> torch.Tensor:
        taken.append(self.step_number)
        return step(self, loss)

    monkeypatch.setattr(training.Trainer, "step", counted)
    monkeypatch.setattr(training.Schedule.__new__, "__defaults__", (20, 1.0, 2, 2, None))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = Table().fit(patients())
    assert taken == [0, 1, 2, 3]
    untrained = training.new_model(table.rows).state_dict()
    trained = table.model.state_dict()
    assert all(torch.equal(untrained[n], trained[n]) for n in untrained if "network" in n)


def test_a_loss_that_is_no_number_is_said(brief: None, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = training.TableRows(patients(), holdout=False)
    loss = training.MDM_ELBO.differentiable_loss

    def infinite(*arguments: Any) -> torch.Tensor:
        return loss(*arguments) * torch.inf

    monkeypatch.setattr(training.MDM_ELBO, "differentiable_loss", infinite)
    with pytest.raises(FloatingPointError, match="after 1 steps, expected a number; lower"):
        training.train_rows(rows, training.Schedule(1))


# -- folders ---------------------------------------------------------------------------------------


def test_it_is_saved_and_opened(fitted: Table, tmp_path: Path) -> None:
    rows = patients().head(7)
    fitted.save_pretrained(tmp_path / "table")
    opened = Table.from_pretrained(tmp_path / "table")
    assert opened.get_params() == fitted.get_params() and opened.names == fitted.names
    assert opened.feature_names_in_.tolist() == fitted.feature_names_in_.tolist()
    for other in (opened, pickle.loads(pickle.dumps(fitted))):
        pd.testing.assert_frame_equal(other.impute(rows, 2), fitted.impute(rows, 2))
        pd.testing.assert_frame_equal(other.log_prob(rows, draws=8), fitted.log_prob(rows, draws=8))
        assert torch.equal(other.rows.train.nan_to_num(9), fitted.rows.train.nan_to_num(9))
    model = DiffusionModel.from_pretrained(tmp_path / "table")
    assert model.event_shape == fitted.model.event_shape


@pytest.mark.slow
def test_a_run_opens_without_the_programs(tmp_path: Path) -> None:
    table, run = Table.from_pretrained("wine"), inference.Table.from_run("wine")
    rows = run.sample(4)
    rows.iloc[0, 2:5] = None
    pd.testing.assert_frame_equal(table.impute(rows, 2), run.impute(rows, 2))
    pd.testing.assert_frame_equal(table.log_prob(rows, draws=8), run.log_prob(rows, draws=8))
    with pytest.raises(ValueError, match="which from_run"):
        table.agreement()
    run.save_pretrained(tmp_path)
    again = Table.from_pretrained(tmp_path)
    pd.testing.assert_frame_equal(again.impute(rows, 2), run.impute(rows, 2))
    assert str(again.agreement()) == str(run.agreement())


def test_damaged_folders_are_refused(fitted: Table, tmp_path: Path) -> None:
    fitted.save_pretrained(tmp_path / "a")
    rewrite(tmp_path / "a" / "model.safetensors", lambda content, _: content["notes"].clear())
    fitted.model.save_pretrained(tmp_path / "model")
    (tmp_path / "file").write_text("")
    refused(
        PretrainedError,
        (lambda: Table.from_pretrained(tmp_path / "a"), "a model that is of no table"),
        (lambda: Table.from_pretrained(tmp_path / "model"), "a model that is of no table"),
        (lambda: Table.from_pretrained("digits"), "a model that is of no table"),
        (lambda: Table.from_pretrained(tmp_path / "nothing"), "is missing"),
        (lambda: fitted.save_pretrained(tmp_path / "file"), "is a file, expected a folder"),
    )


# -- conventions -----------------------------------------------------------------------------------


def test_mistakes_are_told() -> None:
    table = patients()
    refused(
        (NotFittedError, DataError, ValueError, TypeError),
        (lambda: Table().impute(table), "not fitted yet; call fit, or use Table.from_pretrained"),
        (lambda: Table().set_params(speed=3), "there is no setting 'speed', expected one of col"),
        (lambda: Table(speed=3), "speed"),  # type: ignore[call-arg]
        (lambda: Table(steps=0).fit(table), "steps is 0, expected at least 1"),
        (lambda: Table(batch_size=500).fit(table), "batch_size is 500, expected at most"),
        (lambda: Table(learning_rate=-1.0).fit(table), "learning_rate is -1.0"),
        (lambda: Table(columns={"height": "drop"}).fit(table), "columns names 'height'"),
        (lambda: Table(columns="ward=integer").fit(table), "'ward'"),
    )
