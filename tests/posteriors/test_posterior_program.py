"""inference.posterior for an observation of one's own, and the pictures of posteriors."""

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
from inference.posterior import posterior, read_observation
from inference.posteriors.report import PosteriorReport
from inference.simulators import Simulator
from inference.simulators.linear_gaussian import LINEAR_GAUSSIAN, NOISE, A
from inference.simulators.two_moons import TWO_MOONS
from pyro_mdm.plots.posteriors import posterior_columns, posterior_figure, predictive_figure
from pyro_mdm.posteriors import AmortizedPosterior, simulate
from tests.mistakes import refused
from tests.posteriors.test_posterior_guide import in_plates

IN_PLATES = Simulator(in_plates, ("b", "a"), ("x",))

# -- an observation from a file --------------------------------------------------------------------


def test_an_observation_is_read_from_each_kind_of_file(tmp_path: Path) -> None:
    """With a number that is missing, and the truth of one parameter."""
    rows = [[1.0, 2.0, 3.0, 4.0], [5.0, math.nan, 7.0, 8.5]]
    named = {"x": rows, "b": 2.5}
    no_nan = [[None if math.isnan(v) else v for v in row] for row in rows]
    (tmp_path / "a.json").write_text(json.dumps(named | {"x": no_nan}))
    flat = [v for row in no_nan for v in row]
    lines = [f"{'' if v is None else v},{2.5 if i == 0 else ''}" for i, v in enumerate(flat)]
    (tmp_path / "a.csv").write_text("\n".join(["x, b", *lines]))
    for ending in ("json", "csv"):
        values = read_observation(tmp_path / f"a.{ending}", IN_PLATES)
        assert set(values) == {"x", "b"} and float(values["b"]) == 2.5
        torch.testing.assert_close(values["x"], torch.tensor(rows), equal_nan=True)


def test_files_that_are_no_observation_are_refused(tmp_path: Path) -> None:
    def told(name: str, content: str | bytes) -> Any:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return lambda: read_observation(path, IN_PLATES)

    refused(
        RunError,
        (told("a.txt", "1"), r"^--data is .*a\.txt, expected a \.json or a \.csv file"),
        (told("a.json", "{"), r"a\.json is damaged \(.*expected values by site"),
        (told("b.csv", b"x\n\xff"), r"b\.csv is damaged"),
        (told("c.json", "[1]"), r"holds \[1\], expected values by site"),
        (told("d.json", '{"y": 1}'), r"has no 'x', expected the sites of the data, x; it has y"),
        (told("e.csv", ""), "e.csv is empty, expected"),
        (told("f.json", '{"x": [1, 2]}'), r"'x' has 2 values, expected 8, of shape .*2, 4"),
        (told("g.csv", "x\n" + "1\n" * 9), "'x' has 9 values, expected 8"),
        (told("h.json", '{"x": ["one"]}'), "'x' has a value that is no number"),
        (lambda: read_observation(tmp_path / "no.json", IN_PLATES), "cannot be read: No such file"),
    )


def test_the_program_answers_for_an_observation(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data, out = tmp_path / "mine.json", tmp_path / "mine.png"
    data.write_text('{"x": [1.0, null, 0.5, 2.0], "theta": [0.5, 0.0, 1.0]}')
    few: dict[str, Any] = {"simulations": 250, "steps": 2, "scored": 30, "calibration": 20}
    few |= {"near": 100, "num_samples": 300, "data": data, "out": out}
    posterior("linear_gaussian", **few)
    said = capsys.readouterr().out
    for line in (
        r"central intervals contain the truth: 50% ones( \d+%){3} \(± 11%\), 90% ones( \d+%){3} ",
        r"parameter +mean +sd +5% +95% +truth\ntheta\[0\]( +-?[\d.]+){4} +0\.5\ntheta\[1\]",
        r"prior predictive p-value of the observation: [01]\.?\d* \(small",
        r"\nthe evidence log p\(x\) is not known: numbers of the observation are missing\n",
        r"near the observation, the nearest 5%: ranks .* 5 simulations",
        r"mine-draws\.csv\n.*mine\.png\n.*mine-predictive\.png",
    ):
        assert re.search(line, said), line
    with (tmp_path / "mine-draws.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 300 and list(rows[0]) == ["theta[0]", "theta[1]", "theta[2]"]
    mean = re.search(r"theta\[0\] +(-?[\d.]+)", said)
    assert mean and sum(float(r["theta[0]"]) for r in rows) / 300 == pytest.approx(
        float(mean[1]), abs=2e-3
    )
    with pytest.raises(ValueError, match="--near is 7, expected 0, or at least 100"):
        posterior("linear_gaussian", **few | {"near": 7})
    with pytest.raises(RunError, match=r"mine\.png exists"):
        posterior("linear_gaussian", **few)
    out.unlink()
    with pytest.raises(RunError, match=r"mine-predictive\.png exists"):
        posterior("linear_gaussian", **few)


def sampled_without_a_density() -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("x", NoDensity(a, 1.0))


def narrow() -> None:
    """A law that a Gaussian one is far from."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal((8 * a).sin(), 0.003))


class NoDensity(dist.Normal):
    def log_prob(self, value: Tensor) -> Tensor:
        raise NotImplementedError("it is not known")


@pytest.mark.slow
def test_the_evidence_of_an_observation_is_printed_where_it_is_known() -> None:
    """By the weights of a posterior that has learned little but its Gaussian law, which is exact
    for the linear Gaussian simulator; other programs have none."""
    fit: dict[str, Any] = {"steps": 1, "vectorized": True, "seed": 0}
    program, latent, observed = LINEAR_GAUSSIAN[:3]
    learned = AmortizedPosterior.fit(program, latent, observed, simulations=1500, **fit)
    x = torch.tensor([1.0, -0.5, 0.5, 2.0])
    said = PosteriorReport(learned, LINEAR_GAUSSIAN, 0).evidence({"x": x})
    number = r"the evidence log p\(x\): (-[\d.]+) ± ([\d.]+) nats, by 1,000 weights that count as "
    printed = re.fullmatch(rf"{number}[\d,]+ draws", said)
    assert printed, said
    law = dist.MultivariateNormal(torch.zeros(4), A @ A.mT + NOISE**2 * torch.eye(4))
    assert float(printed[2]) < 0.1
    assert abs(float(printed[1]) - float(law.log_prob(x))) < 4 * float(printed[2]) + 1e-3
    for simulator, told in (
        (
            Simulator(narrow, ("a",), ("x",)),
            r"NOT to be trusted, .* k̂ .*: give more --simul.* --steps",
        ),
        (TWO_MOONS, "'x' is computed, and has no density"),
        (
            Simulator(sampled_without_a_density, ("a",), ("x",)),
            r"has no density \(it is not known\)",
        ),
    ):
        names = simulator[:3]
        draws = simulate(simulator.program, 60, vectorized=True, seed=0)
        other = AmortizedPosterior.fit(*names, draws=draws, steps=1)
        one = {name: value[0] for name, value in draws.items()}
        said = PosteriorReport(other, simulator, 0).evidence(one)
        assert re.search(f"^the evidence .*{told}$", said)


# -- pictures --------------------------------------------------------------------------------------

DRAWN = {"a": torch.linspace(4.0, 5.0, 101), "b": torch.stack([torch.linspace(0, 1, 101)] * 3, 1)}
PRIOR = {"a": torch.linspace(0.0, 9.0, 50), "b": torch.randn(50, 3)}


def test_columns_have_the_names_of_sites() -> None:
    value = torch.arange(12.0).reshape(2, 3, 2)
    columns = posterior_columns({"a": value[:, 0, 0], "w": value})
    assert list(columns) == ["a"] + [f"w[{i}, {j}]" for i in range(3) for j in range(2)]
    assert torch.equal(columns["w[2, 1]"], value[:, 2, 1])


def test_parameters_are_drawn_in_pairs_with_the_truth() -> None:
    """On axes of the posterior, with room around it; and the truth far away is on them too."""
    truth = {"a": torch.tensor(8.0), "b": torch.tensor([0.25, 0.5, 0.75])}
    figure = posterior_figure(DRAWN, PRIOR, truth, most=3)
    grid = [axes for axes in figure.axes if axes.axison]
    assert len(grid) == 6 and grid[3].get_xlabel() == "a" and grid[1].get_ylabel() == "b[0]"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "prior", "posterior", "truth",
    ]  # fmt: skip
    assert figure.legends[0].get_title().get_text() == "the first 3 of 4 parameters"
    low, high = grid[1].get_xlim()
    assert 3.0 < low < 4.0 and 8.0 < high < 8.4
    low, high = posterior_figure(DRAWN).axes[0].get_xlim()
    assert 3.9 < low < 4.0 and 5.0 < high < 5.1
    points = [line for line in grid[1].lines if line.get_linestyle() == "None"]
    assert [len(line.get_xdata()) for line in points] == [50, 101]
    assert points[1].get_ydata()[1] == pytest.approx(0.01)
    lines = [line for line in grid[1].lines if line.get_linestyle() != "None"]
    assert lines[0].get_xdata()[0] == 8.0 and lines[1].get_ydata()[0] == 0.25
    refused(ValueError, (lambda: posterior_figure(DRAWN, most=0), "most is 0, expected from 1"))


def test_predictions_stand_beside_what_is_observed() -> None:
    """Bands are quantiles at each place; a number that is missing has no point."""
    replicated = {"x": torch.linspace(0, 1, 101)[:, None] * torch.tensor([1.0, 2.0]),
                  "y": torch.linspace(5, 6, 101)}  # fmt: skip
    observed: dict[str, Tensor] = {"x": torch.tensor([0.5, math.nan]), "y": torch.tensor(5.5)}
    figure = predictive_figure(replicated, observed)
    x, y = figure.axes[:2]
    assert (x.get_ylabel(), y.get_ylabel()) == ("x", "y")
    for patch, (low, high) in zip(x.patches, ((0.05, 0.95), (0.25, 0.75)), strict=True):
        band = patch.get_data()
        assert band.values == pytest.approx([high, 2 * high])
        assert band.baseline == pytest.approx([low, 2 * low])
    (points,) = x.lines
    assert points.get_ydata()[0] == 0.5 and math.isnan(points.get_ydata()[1])
    prior = {name: 9 * value for name, value in replicated.items()}
    beneath, *others = predictive_figure(replicated, observed, prior).axes[0].patches
    assert len(others) == 2 and beneath.get_data().values == pytest.approx([8.55, 17.1])
