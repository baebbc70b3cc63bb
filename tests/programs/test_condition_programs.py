"""Runs of data given labels or other contexts, from training to samples by class."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from matplotlib.axes import Axes
from torch import Tensor

from inference import evaluate, sample
from inference.compare import compare
from inference.drawing import pictures, sampling
from inference.folders.checkpoints import RunError
from inference.folders.loading import load_trained
from inference.measuring import bounds
from inference.measuring.bounds import measure, without_contexts
from inference.settings.options import Training
from inference.settings.plan import build
from inference.train import train
from inference.training import report
from models import Problem, Toy
from models.base import Part
from pyro_mdm import DiffusionModel, condition
from pyro_mdm.conditioning import Labels, Vectors
from pyro_mdm.networks import MLP
from tests.brief import SHORT

pytestmark = pytest.mark.usefixtures("few_pictures")

LABELLED: dict[str, Any] = SHORT | {"condition": "labels", "guide": "cld"}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of points given their Gaussian; tests only read it."""
    from tests.brief import be_brief

    folder = tmp_path_factory.mktemp("runs") / "labelled"
    with pytest.MonkeyPatch.context() as patch:
        be_brief(patch)
        train(run=folder, **LABELLED)
    return folder


COVARIATES = """
import torch
from torch import nn
from models import Problem


class Told(nn.Module):
    def __init__(self, inputs, outputs, context_size):
        super().__init__()
        self.context_size = context_size
        self.layers = nn.Linear(inputs + context_size, outputs)

    def forward(self, inputs, log_snr, context):
        return self.layers(torch.cat([inputs, context], 1))


class Regression(Problem):
    name, event_shape, max_log_snr = "regression", (2,), 7.0
    contexts = ("temperature", "bad", "short", "gap")

    def load(self):
        return torch.linspace(-1, 1, 200).reshape(100, 2)

    def load_context(self, name):
        t = torch.arange(100.0)
        if name == "temperature":
            return torch.stack([t, -t], 1)
        if name == "gap":
            return torch.arange(100) % 3 * 2
        return torch.zeros(100 if name == "bad" else 50)[:, None] if name == "short" else t.long()

    def network(self, inputs, outputs):
        return Told(inputs, outputs, self.context.size)
"""


@pytest.fixture
def regression(tmp_path: Path) -> str:
    path = tmp_path / "regression.py"
    path.write_text(COVARIATES)
    return f"{path}:Regression"


# -- data ------------------------------------------------------------------------------------------


def test_labels_go_with_their_data() -> None:
    problem = Toy(holdout=True)
    assert problem.part("train").context is None and problem.contexts_in_turn(3) is None
    problem.condition_on("labels", 0.3)
    assert isinstance(problem.context, Labels)
    assert (problem.context.num_classes, problem.context.dropout) == (8, 0.3)
    means = problem.density.component_distribution.mean
    for name in ("train", "validation", "test"):
        part = problem.part(name)
        assert torch.equal(part.data, getattr(problem, name)) and part.context is not None
        assert float((part.data - means[part.context]).norm(dim=1).max()) < 0.6
        some = part[torch.tensor([4, 2])]
        assert torch.equal(some.data, part.data[[4, 2]]) and len(some) == 2
        assert some.context is not None and torch.equal(some.context, part.context[[4, 2]])
    turns = problem.contexts_in_turn(10)
    assert turns is not None and turns.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1]


def test_contexts_that_are_no_labels_are_vectors(regression: str, tmp_path: Path) -> None:
    programs = build(
        Training.from_config(
            _settings(tmp_path, model=regression, condition="temperature", guide="vpsde")
        )
    )
    context: Any = programs.model.context
    assert isinstance(context, Vectors) and context.size == 3
    assert programs.model.score_function.network.context_size == 3
    test = programs.problem.part("test")
    assert measure(programs, test, draws=1).num_data == 10
    turns = programs.problem.contexts_in_turn(12)
    assert turns is not None and torch.equal(turns[10:], test.context[:2])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("colour", "--condition is 'colour', expected one of temperature.* for regression"),
        ("bad", r"training data have the bad \[\d.*expected all of 0, 1, 2"),
        ("short", "50 short of 100 data, expected one for each, in the order of load"),
        ("gap", r"training data have the gap \[0, 2, 4\], expected all of 0, 1, 2"),
    ],
)
def test_contexts_that_are_wrong_are_named(
    name: str, text: str, regression: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=text):
        build(Training.from_config(_settings(tmp_path, model=regression, condition=name)))


def _settings(folder: Path, **options: Any) -> dict[str, Any]:
    """Settings of a run that does not begin."""
    from dataclasses import asdict

    from inference.settings.options import Training

    return asdict(Training(holdout=False, **options))


# -- training --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_knows_what_its_data_are_given(labelled: Path) -> None:
    run, programs, checkpoint = load_trained(labelled)
    assert run.config["condition"] == "labels" and run.config["context_dropout"] is None
    context: Any = programs.model.context
    assert (context.num_classes, context.dropout, checkpoint.step) == (8, 0.1, 4)
    again = DiffusionModel.from_pretrained(labelled)
    x = torch.randn(3, 2)
    y, s = torch.stack([x, x], 1), torch.tensor([0.2, 0.5, 0.9])
    first, second = (condition(m, context=torch.tensor([1, 0, 7])) for m in (programs.model, again))
    assert torch.equal(first.score(y, s), second.score(y, s))
    prints = yaml.safe_load((labelled / "data.json").read_text())
    assert {"train", "train_context", "test_context"} <= prints.keys()


def test_every_datum_is_trained_with_its_own_label(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    own = DiffusionModel.forward

    def forward(self: Any, x: Any = None, given: Any = None, **options: Any) -> Tensor:
        seen.append((x, given))
        return own(self, x, given, **options)

    monkeypatch.setattr(DiffusionModel, "forward", forward)
    train(run=tmp_path / "run", **LABELLED | {"steps": 1, "micro_batches": 2})
    problem = Toy(holdout=True)
    means = problem.density.component_distribution.mean
    assert [len(x) for x, _ in seen] == [16, 16]
    assert all(float((x - means[c]).norm(dim=1).max()) < 0.6 for x, c in seen)


def test_a_run_goes_on_to_the_same_weights(
    labelled: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from inference.training import report

    def killed(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(report, "at_step", killed)  # at step 2, which is saved first
        with pytest.raises(KeyboardInterrupt):
            train(run=tmp_path / "run", **LABELLED)
    train(resume=tmp_path / "run")
    first, second = (load_trained(f)[1].model.state_dict() for f in (labelled, tmp_path / "run"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_options_that_need_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--context_dropout is 0.2, but the data have no context"):
        train(run=tmp_path / "run", **SHORT | {"context_dropout": 0.2})
    with pytest.raises(ValueError, match="expected no context for tiny"):
        Tiny().condition_on("labels")


class Tiny(Problem):
    name, event_shape, max_log_snr = "tiny", (2,), 7.0

    def load(self) -> Tensor:
        return torch.zeros(20, 2)

    def network(self, inputs: int, outputs: int) -> MLP:
        return MLP(inputs, out_features=outputs)


# -- what it is for --------------------------------------------------------------------------------


def test_evaluate_says_what_the_bound_is_of(
    labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"draws": 2, "test_size": 40, "accelerator": "cpu"}
    evaluate.evaluate(labelled, classify=True, **options)
    said = capsys.readouterr().out.splitlines()
    programs = load_trained(labelled)[1]
    data = bounds.some(programs.problem.part("test"), 40)
    nothing = without_contexts(programs, data)
    assert nothing is not None and isinstance(data, Part)
    expected = measure(programs, data, draws=2)
    untold = measure(programs, nothing, draws=2)
    assert said[-2:] == ["of x given its label:", str(expected)] and str(untold) != str(expected)
    assert f"of x alone, without its label: {untold}" in said
    counts = r"640 network calls: accuracy \d\.\d+ ± \d\.\d+, log loss \d+\.\d+ ± .* nats"
    assert any(re.search(counts, line) for line in said)
    assert any(line.startswith("of the mixture of classes: bits/dim ") for line in said)


@pytest.mark.slow
def test_evaluate_writes_what_it_knows_of_each_datum(
    labelled: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out, options = tmp_path / "rows.csv", {"draws": 8, "test_size": 40, "accelerator": "cpu"}
    evaluate.evaluate(labelled, classify=True, out=out, **options)
    said = capsys.readouterr().out
    assert f"the bound of each datum: {out}" in said
    rows = pd.read_csv(out)
    probabilities = [f"probability_{c}" for c in range(8)]
    measured = ["bits_per_dim", "bits_per_dim_standard_error"]
    assert [*rows.columns] == ["row", "label", *measured, *probabilities] and len(rows) == 40

    problem = load_trained(labelled)[1].problem
    problem_labels = problem.load_context("labels")
    assert [*rows["row"]] == bounds.some(problem.numbers("test"), 40).tolist()
    assert [*rows["label"]] == problem_labels[rows["row"].tolist()].tolist()
    printed = float(re.search(r"bits/dim (-?[\d.]+) ± [^\n]*\n$", said)[1])
    assert rows["bits_per_dim"].mean() == pytest.approx(printed, abs=6e-4)
    np.testing.assert_allclose(rows[probabilities].sum(axis=1), 1, rtol=1e-6)
    right = (rows[probabilities].to_numpy().argmax(1) == rows["label"]).mean()
    assert f"accuracy {right:.3f} " in said

    again, more = tmp_path / "again.csv", {**options, "seed": 1}
    evaluate.evaluate(labelled, out=again, **more)
    other = pd.read_csv(again)
    assert [*other.columns] == ["row", "label", *measured]
    apart = (rows["bits_per_dim"] - other["bits_per_dim"]) / np.hypot(
        rows[measured[1]], other[measured[1]]
    )
    assert 0.4 < float((apart**2).mean()) < 3.0  # 1 ± 0.22, but for tails of so few draws
    reused = {"reuse": labelled, "guide": "vpsde", "min_log_snr": -4.0}
    evaluate.evaluate(out=again, overwrite=True, **reused, **options)
    printed = float(re.search(r"bits/dim (-?[\d.]+) ± [^\n]*\n$", capsys.readouterr().out)[1])
    assert pd.read_csv(again)["bits_per_dim"].mean() == pytest.approx(printed, abs=6e-4)

    few = {"half_width": 5.0, "test_size": 1000}  # so wide that some data are never drawn
    evaluate.evaluate(labelled, out=again, overwrite=True, **options | few)
    empty = pd.read_csv(again)[measured].isna()
    assert 0 < empty["bits_per_dim"].sum() < 1000  # not the baseline's prediction
    assert bool(empty[measured[1]][empty["bits_per_dim"]].all())

    with pytest.raises(RunError, match=r"again\.csv exists; give another --out, or --overwrite"):
        evaluate.evaluate(labelled, out=again)
    with pytest.raises(RunError, match=r"expected a name that ends in \.csv"):
        evaluate.evaluate(labelled, out=tmp_path / "rows.json")
    with pytest.raises(ValueError, match="--out is for bounds, and --method is flow"):
        evaluate.evaluate(labelled, out=tmp_path / "c.csv", method="flow")
    with pytest.raises(
        ValueError, match="--overwrite is for --out and --calibration, which are not given"
    ):
        evaluate.evaluate(labelled, overwrite=True)


def test_evaluate_classifies_runs_of_labels_alone(
    regression: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = SHORT | {"model": regression, "condition": "temperature", "guide": "vpsde"}
    train(run=tmp_path / "run", **options | {"context_dropout": 0.0, "steps": 1, "batch_size": 8})
    capsys.readouterr()
    evaluate.evaluate(tmp_path / "run", draws=1, accelerator="cpu")
    said = capsys.readouterr().out
    assert "of x given its context:" in said and "of x alone" not in said
    with pytest.raises(ValueError, match="--classify needs the bounds of data given each class"):
        evaluate.evaluate(tmp_path / "run", classify=True, accelerator="cpu")
    out = tmp_path / "x.npy"
    for given in ([0.0, 0.0], None):
        sample.sample(tmp_path / "run", 5, steps=2, out=out, given=given, overwrite=True)
        assert np.load(out).shape == (5, 2)


def test_samples_are_given_each_class_in_turn_or_what_is_asked(
    labelled: Path, tmp_path: Path
) -> None:
    model = load_trained(labelled)[1].model
    options: dict[str, Any] = {"steps": 2, "overwrite": True, "accelerator": "cpu"}

    def drawn(context: Any, **more: Any) -> Tensor:
        return sampling.draw(model, 10, steps=2, context=torch.as_tensor(context), **more)

    def written(**more: Any) -> Tensor:
        out = tmp_path / "x.npy"
        sample.sample(labelled, 10, out=out, batch_size=4, **options, **more)
        return torch.from_numpy(np.load(out))

    torch.testing.assert_close(written(), drawn(torch.arange(10) % 8))
    torch.testing.assert_close(written(given=3), drawn([3] * 10))
    torch.testing.assert_close(written(given=[3, 5]), drawn([3, 5] * 5))
    guided = drawn([3] * 10, guidance=4.0)
    torch.testing.assert_close(written(given=3, guidance=4.0), guided)
    assert not torch.allclose(guided, drawn([3] * 10))
    for given, text in ((9, "the label 9, expected one of 0 to 7"), (0.5, "expected labels")):
        with pytest.raises((ValueError, TypeError), match=text):
            sample.sample(labelled, 2, out=tmp_path / "y.npy", given=given, **options)


PICTURE = pictures.picture
"""As it is without ``few_pictures``."""


@pytest.mark.slow
def test_pictures_of_points_are_coloured_by_label(
    labelled: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn: list[tuple[Tensor, list[Any]]] = []
    own = Axes.scatter

    def noted(self: Any, x: Any, y: Any, **options: Any) -> Any:
        if len(x):
            drawn.append((torch.tensor(np.stack([x, y], 1)), options["c"]))
        return own(self, x, y, **options)

    monkeypatch.setattr(Axes, "scatter", noted)
    problem = load_trained(labelled)[1].problem
    x, given = torch.randn(9, 2), torch.arange(9) % 8
    given[4] = -1
    assert PICTURE(problem, x, context=given).shape[0] == 3
    (tested, crosses), (samples, dots) = drawn
    test = problem.part("test")[:500]
    assert torch.equal(samples, x) and torch.equal(tested, test.data)
    assert test.context is not None and dots[4] == "black"
    colours = {k: dots[k] for k in (0, 1, 2, 3, 5, 6, 7)}
    assert len({*map(str, colours.values())}) == 7 and dots[8] == dots[0]
    seen = {*map(str, (colours.get(k, crosses[i]) for i, k in enumerate(test.context.tolist())))}
    assert all(crosses[i] == colours[k] for i, k in enumerate(test.context.tolist()) if k != 4)
    assert len(seen) == 8
    drawn.clear()
    assert PICTURE(problem, x).shape[0] == 3 and not drawn  # of no labels

    told: list[Tensor] = []

    def picture(problem: Problem, x: Tensor, *, context: Tensor, **options: Any) -> Tensor:
        assert len(context) == len(x)
        told.append(context)
        return torch.zeros(3, 2, 2, dtype=torch.uint8)

    monkeypatch.setattr(pictures, "picture", picture)
    monkeypatch.setattr(report, "pictures", pictures)  # as it is without few_pictures
    train(run=tmp_path / "run", **LABELLED)
    assert len(told) >= 3 and torch.equal(told[-1], torch.arange(8))  # samples.png
    sample.sample(labelled, 4, steps=2, given=[3, 5], out=tmp_path / "s.png", accelerator="cpu")
    assert told[-1].tolist() == [3, 5, 3, 5]


def test_runs_that_are_given_different_things_are_compared_with_a_word(
    labelled: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    train(run=plain, **SHORT | {"guide": "cld"})
    with pytest.raises(ValueError, match="the model of the run has no context"):
        sample.sample(plain, 2, given=3, accelerator="cpu")
    capsys.readouterr()
    found = compare([labelled, plain], draws=2, half_width=None, num_data=40, out=tmp_path / "c")
    assert "labelled: bounds on data given the context of --condition" in capsys.readouterr().out
    programs = load_trained(labelled)[1]
    data = bounds.some(programs.problem.part("test"), 40)
    bound = measure(programs, data, draws=2)
    unit = 2 * np.log(2)
    assert found.estimates["labelled"].mean / -unit == pytest.approx(bound.bits_per_dim[0], abs=0.2)


def test_another_diffusion_knows_the_context_too(
    labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate.evaluate(
        reuse=labelled, guide="vpsde", draws=2, test_size=20, min_log_snr=-4.0, accelerator="cpu"
    )
    assert "of x given its label:" in capsys.readouterr().out
    with pytest.raises(RunError):
        evaluate.evaluate(labelled, guide="vpsde")
    options: dict[str, Any] = {"test_size": 8, "rtol": 1e-1, "accelerator": "cpu"}
    evaluate.evaluate(labelled, method="flow", **options)
    assert "8 test data, each given its label" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--classify is by bounds, and --method is flow"):
        evaluate.evaluate(labelled, method="flow", classify=True)
