"""inference.posterior for many units, by a hierarchical program around a learned likelihood."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from inference.folders.runs import RunError
from inference.posterior import posterior
from inference.posteriors import hierarchy
from inference.posteriors.hierarchy import HierarchyReport, hierarchy_named, read_units
from pyro_mdm import AutoMDM
from pyro_mdm.posteriors import AmortizedLikelihood, LikelihoodMembers
from tests.mistakes import refused

PROGRAM = """
import pyro
import pyro.distributions as dist

def unit():
    level = pyro.sample("level", dist.Normal(0.0, 2.0))
    with pyro.plate("trials", 3):
        pyro.sample("x", dist.Normal(level, 1.0))

def population(likelihood, data):
    x = data["x"]
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("units", len(x)):
        level = pyro.sample("level", dist.Normal(mean, 0.5))
        pyro.sample("x", likelihood.given(level, plates={"trials": x.shape[1]}), obs=x)

number = 3
"""


def test_units_are_read_from_each_kind_of_file(tmp_path: Path) -> None:
    """Units of different lengths are filled up, and stand in the order of the file."""
    table = "unit,x,y\nb,1,5\nb,,6\na,2,7\nb,3,8\n"
    (tmp_path / "a.csv").write_text(table)
    lists = {"x": [[1, None, 3], [2]], "y": [[5, 6, 8], [7]]}
    (tmp_path / "a.json").write_text(json.dumps(lists))
    nan = math.nan
    expected = {
        "x": torch.tensor([[1, nan, 3], [2, nan, nan]]),
        "y": torch.tensor([[5.0, 6, 8], [7, nan, nan]]),
    }
    for ending in ("csv", "json"):
        torch.testing.assert_close(
            read_units(tmp_path / f"a.{ending}", ("x", "y")), expected, equal_nan=True
        )
    (tmp_path / "b.json").write_text('{"x": [1, 2]}')
    assert read_units(tmp_path / "b.json", ("x",))["x"].tolist() == [1.0, 2.0]


def test_files_without_units_are_refused(tmp_path: Path) -> None:
    def file(name: str, content: str) -> Any:
        (tmp_path / name).write_text(content)
        return lambda: read_units(tmp_path / name, ("x", "y"))

    refused(
        RunError,
        (lambda: read_units(None, ("x",)), "--hierarchy has no --data"),
        (file("a.csv", "x,y\n1,2\n"), "has no 'unit', expected unit, x, y.* it has x, y"),
        (file("a.json", '{"x": [[1]]}'), "has no 'y'"),
        (file("b.json", '{"x": [[1]], "y": [[1], [2]]}'), "'x' of 1, 'y' of 2 units"),
        (file("c.json", '{"x": [["one"]], "y": [[1]]}'), "'x' are no numbers of units"),
        (file("d.json", '{"x": 3, "y": [[1]]}'), "'x' are no numbers of units"),
        (file("e.json", '{"x": [], "y": []}'), "'x' are no numbers of units"),
    )


def test_a_hierarchy_is_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(PROGRAM)
    assert hierarchy_named("mine.py:population").__name__ == "population"
    with pytest.raises(TypeError, match=r"--hierarchy mine\.py:number is 3, expected a Pyro"):
        hierarchy_named("mine.py:number")


class Brief(AutoMDM):
    """A guide that is trained for a moment: its weights are right all the same."""

    def fit(self, *args: Any, **options: Any) -> AutoMDM:
        return super().fit(*args, start_updates=100, **options)


@pytest.fixture(autouse=True)
def brief_guides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hierarchy, "AutoMDM", Brief)
    monkeypatch.setattr(hierarchy, "UPDATES", (0, 3))


class Exact(AmortizedLikelihood):
    """A likelihood of the unit above, whose density is exact, plus a constant for each unit."""

    shift = 0.0

    def log_prob(self, data: Any, theta: Any, **options: Any) -> Tensor:
        x, level = data["x"].double(), theta["level"].double().unsqueeze(-1)
        log_p = dist.Normal(level, 1.0).log_prob(x.nan_to_num()).where(~x.isnan(), 0.0)
        return log_p.sum(-1) + self.shift


def test_the_evidence_and_the_posterior_are_exact_for_exact_likelihoods() -> None:
    """Of a hierarchical Gaussian program, with a number that is missing. Likelihoods that are wrong
    by a constant are wrong in the evidence, and the error of learning says so."""
    scope: dict[str, Any] = {}
    exec(PROGRAM, scope)
    few = {"simulations": 60, "steps": 1, "form": "gaussian", "vectorized": True}
    members = LikelihoodMembers.fit(scope["unit"], ["level"], ["x"], members=2, **few)
    for sign, member in zip((-1, 1), members, strict=True):
        member.__class__, member.shift = Exact, 0.1 * sign  # type: ignore[assignment]
    x = torch.tensor([[1.0, 2.0, math.nan], [0.5, -0.5, 1.5]])
    with pyro.get_param_store().scope():
        pyro.set_rng_seed(0)
        report = HierarchyReport(members, scope["population"], {"x": x}, 4000, 0)
    is_there = ~x.reshape(-1).isnan()
    unit = torch.eye(2).repeat_interleave(3, 0)[is_there].double()
    covariance = torch.eye(5).double() + 0.25 * unit @ unit.mT + torch.ones(5, 5).double()
    values = x.reshape(-1)[is_there].double()
    exact = dist.MultivariateNormal(torch.zeros(5).double(), covariance).log_prob(values)
    found = report.log_evidence
    assert abs(found.mean - float(exact)) < 5 * found.monte_carlo + 1e-3
    assert found.learning > 0.4 and not report.doubts  # ±0.2 of two units each
    mean = torch.linalg.solve(covariance, values).sum()
    spread = (1 - torch.linalg.inv(covariance).sum()).sqrt()
    drawn = report.drawn["mean"].double()
    assert abs(float(drawn.mean() - mean)) < 6 * float(spread) / math.sqrt(4000 / 4)
    assert float(drawn.std() / spread) == pytest.approx(1.0, abs=0.15)
    assert report.observed["x"].shape == (2, 3) and report.prior["level"].shape == (200, 2)
    assert report.replicated["x"].shape == (200, 2, 3)


@pytest.mark.slow
def test_the_program_answers_for_many_units(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(PROGRAM)
    Path("units.csv").write_text("unit,x\nb,1\nb,2\na,0.5\na,-0.5\na,1.5\n")
    few: dict[str, Any] = {"simulations": 200, "steps": 20, "members": 2, "vectorized": True}
    few |= {
        "num_samples": 100,
        "out": Path("a.png"),
        "save": Path("kept"),
        "data": Path("units.csv"),
    }
    names: dict[str, Any] = {"latent": ["level"], "observed": ["x"]}
    members = posterior("mine.py:unit", hierarchy="mine.py:population", **names, **few)
    assert isinstance(members, LikelihoodMembers) and len(members) == 2
    said = capsys.readouterr().out
    for line in (
        r"kept: open it by LikelihoodMembers\.from_pretrained\('kept', program\)",
        r"parameter +mean +sd +5% +95%\nmean( +-?[\d.]+){4}\nlevel\[0\].*\nlevel\[1\]",
        r"2 units: log evidence -[\d.]+ ± .* \(Monte Carlo\) ± .* \(learning\)(, .*)?, nats",
        r"\nparameters of units unlike all that were simulated: [\d.]+% of draws\n",
    ):
        assert re.search(line, said), line
    with Path("a-draws.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 100 and list(rows[0]) == ["mean", "level[0]", "level[1]"]
    assert Path("a-predictive.png").exists()
    with pytest.raises(RunError, match="exists"):
        posterior("mine.py:unit", hierarchy="mine.py:population", **names, **few)
