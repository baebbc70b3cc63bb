"""inference.posterior: what it says of a simulator, and of an observation of one's own."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
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
from inference.simulators.two_moons import TWO_MOONS, log_likelihood
from pyro_mdm.posteriors import AmortizedPosterior, log_prior, simulate
from tests.mistakes import refused


def plated() -> None:
    """A parameter, and data in plates."""
    b = pyro.sample("b", dist.Uniform(2.0, 3.0))
    with pyro.plate("groups", 2, dim=-2), pyro.plate("times", 4, dim=-1):
        pyro.sample("x", dist.Normal(b, 1.0))


IN_PLATES = Simulator(plated, ("b",), ("x",))

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


# -- scores beside others --------------------------------------------------------------------------


def test_two_moons_has_the_density_that_it_draws_from() -> None:
    """By a grid of x around where it lies: the density sums to 1, with the mean of the draws."""
    theta = torch.tensor([0.3, -0.6], dtype=torch.float64)
    n, width = 700, 0.5
    centre = torch.tensor([-0.3 / math.sqrt(2) + 0.3, -0.9 / math.sqrt(2)], dtype=torch.float64)
    axis = (torch.arange(n, dtype=torch.float64) + 0.5) / n * width - width / 2
    grid = torch.cartesian_prod(axis, axis) + centre
    density = log_likelihood(theta, grid).exp() * (width / n) ** 2
    assert float(density.sum()) == pytest.approx(1, abs=0.01)
    conditioned = pyro.condition(TWO_MOONS.program, {"theta": theta.float()})
    drawn = torch.stack([conditioned() for _ in range(300)]).double()
    torch.testing.assert_close(density @ grid, drawn.mean(0), atol=0.012, rtol=0)
    draws = simulate(TWO_MOONS.program, 3, seed=1)
    x = draws["x"][:1]
    square = torch.cartesian_prod(*[(torch.arange(250) + 0.5) / 125 - 1] * 2)
    own = log_likelihood(square.double(), x.double()).logsumexp(0) - 2 * math.log(250)
    cells: Any = TWO_MOONS.log_posterior
    found = cells({"theta": draws["theta"][:1], "x": x}, 250)
    single = log_likelihood(draws["theta"][0].double(), x[0].double()) - math.log(4) - own
    assert float(found[0]) == pytest.approx(float(single), abs=1e-5)


@pytest.mark.slow
def test_the_program_scores_ranks_and_draws(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "posterior.png"
    few: dict[str, Any] = {"simulations": 200, "steps": 3, "scored": 8, "calibration": 20}
    posterior("linear_gaussian", out=out, **few)
    said = capsys.readouterr().out
    for line in (
        r"linear_gaussian: 200 simulations, 3 steps",
        r"log density of the truth, nats +-?\d+\.\d+ ± ",
        r"of the exact posterior +-?\d",
        r"exact − ours, paired: the divergence +-?\d",
        r"ranks of the truth among 99 draws, 20 simulations: .*theta \d.*",
    ):
        assert re.search(line, said), line
    assert out.stat().st_size > 1000

    def number(line: str) -> float:
        found = re.search(rf"{re.escape(line)} +(-?\d+\.\d+) ± ", said)
        assert found, line
        return float(found[1])

    ours, prior = number("log density of the truth, nats"), number("\nof the prior")
    gaussian = number("\nof a Gaussian, its mean linear in the data")
    truth = simulate(LINEAR_GAUSSIAN.program, 8, seed=1, vectorized=True)
    expected = dist.Normal(0.0, 1.0).log_prob(truth["theta"]).sum(1).mean()
    assert prior == pytest.approx(float(expected), abs=0.01)
    exact = number("of the exact posterior")  # which is Gaussian, where ours starts
    assert abs(gaussian - exact) < 0.5 and abs(gaussian - ours) < 0.5
    assert number("ours − the prior's, paired") == pytest.approx(ours - prior, abs=0.02)
    assert number("ours − the Gaussian's, paired") == pytest.approx(ours - gaussian, abs=0.02)
    own = tmp_path / "mine.py"
    own.write_text(
        "import pyro, torch\nimport pyro.distributions as dist\n"
        "def program():\n    a = pyro.sample('a', dist.Uniform(0.0, 1.0))\n"
        "    pyro.sample('b', dist.Poisson(9 * a))\nnumber = 3\n"
    )
    few["save"] = tmp_path / "saved"
    few |= {"latent": ["a"], "observed": ["b"]}
    found = posterior(f"{own}:program", out=tmp_path / "b.png", **few)
    said = capsys.readouterr().out
    assert f"from_pretrained('{tmp_path}/saved', program), which needs the program of {own}" in said
    with pytest.raises(TypeError, match=r"program is None, expected the simulator .* sites a, b"):
        AmortizedPosterior.from_pretrained(tmp_path / "saved")
    drawn = found.sample({"b": torch.tensor(4.0)}, 5)["a"]
    assert drawn.shape == (5,) and bool(((drawn > 0) & (drawn < 1)).all())
    for place, said in {"saved": "saved exists; give another --save", "mine.py": "a file"}.items():
        with pytest.raises(RunError, match=said):
            posterior(out=tmp_path / "c.png", save=tmp_path / place)
    with pytest.raises(ValueError, match=r"name their sites, e.g. --latent \[theta\]"):
        posterior(f"{own}:program", out=tmp_path / "c.png")
    with pytest.raises(TypeError, match="expected a Pyro program without arguments"):
        posterior(f"{own}:number", out=tmp_path / "c.png")


@pytest.mark.parametrize(
    ("less", "better"), [((1.0, 3.0), "the prior is"), ((1.0, 0.5), "the prior and a Gaussian are")]
)
def test_a_score_below_what_is_easily_had_is_a_warning(
    less: tuple[float, float], better: str
) -> None:
    """Ours is so many nats less than the prior's, and the Gaussian so many less than that."""
    truth = simulate(LINEAR_GAUSSIAN.program, 8, seed=1, vectorized=True)
    prior = log_prior(LINEAR_GAUSSIAN.program, LINEAR_GAUSSIAN.latent, truth)
    r = (-2 * (prior - less[1]) - math.log(2 * math.pi)).sqrt()[:, None]  # of that density
    found: Any = SimpleNamespace(
        gaussian="is there", data=lambda truth: None, coordinates=lambda truth, x: (r, 0.0)
    )
    report = PosteriorReport(found, LINEAR_GAUSSIAN, 0)
    said = report.scores(prior - less[0], truth)
    assert f"warning: {better} better, so that ranks below say little; give more" in said
    assert "warning" not in report.scores(prior + 9, truth)
