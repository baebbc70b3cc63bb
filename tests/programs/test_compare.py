"""Runs compared: the tables are the library's numbers, and the files hold the tables."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from inference import trust
from inference.compare import FILES, compare, short_names
from inference.folders.checkpoints import Checkpoint, RunError
from inference.folders.fingerprints import fingerprint_of
from inference.folders.loading import load_trained
from inference.folders.runs import Run
from inference.measuring.bounds import measure
from inference.measuring.compare_figure import comparison_figure
from inference.measuring.compare_tables import PRINTED, turned
from inference.settings.names import own_names
from inference.settings.options import Training
from inference.settings.plan import build
from pyro_mdm import evaluation
from pyro_mdm.support.measured import ALL_TERMS, Z95
from tests.mistakes import refused
from tests.programs.running import TINY, run_program

pytestmark = pytest.mark.usefixtures("few_pictures")

TERMS = ("reconstruction", "prior_kl", "diffusion")


@pytest.fixture(autouse=True)
def plain(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture of a comparison holds nothing, but in tests that ask for ``drawn``."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("inference.compare.comparison_figure", lambda *a, **b: Figure())


@pytest.fixture
def drawn() -> None:
    """The picture is that of the comparison."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("problem") / "tiny.py"
    path.write_text(TINY.replace("size, shift = 200", "size, shift = 300"))
    return f"{path}:Tiny"


def make_run(folder: Path, *, step: int = 3, weights: int = 0, **settings: Any) -> Path:
    """A run as ``inference.train`` leaves it, with random weights instead of trained ones."""
    run = Run.create(folder, asdict(Training(**settings)))
    programs = build(Training.from_config(run.config))
    run.check_data(fingerprint_of(programs.problem))
    trust.remember(own_names(run.config))
    torch.manual_seed(weights)
    with torch.no_grad():
        for p in programs.model.score_function.parameters():
            p.add_(0.05 * torch.randn_like(p))
    tensors = {f"ema/{name}": t for name, t in programs.model.state_dict().items()}
    run.save(Checkpoint(step, tensors, {"config": dict(run.config)}))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny: str) -> dict[str, Path]:
    """Runs of the same data: two denoisers, a wider one and two noise predictions; read only."""
    root = tmp_path_factory.mktemp("runs")
    wide = tiny.replace("Tiny", "Wide")
    return {
        "cld": make_run(root / "cld", model=tiny, guide="cld"),
        "learned": make_run(root / "learned", model=tiny, guide="learned", weights=1, step=5),
        "wide": make_run(root / "wide", model=wide, guide="vpsde", min_log_snr=-10.0),
        "noise": make_run(root / "noise", model=tiny, guide="cld", score="noise"),
        "noise2": make_run(root / "noise2", model=tiny, guide="learned", score="noise", rank=1),
    }


def read(out: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    bounds, differences, by_log_snr = (pd.read_csv(out / name) for name in FILES[:3])
    return bounds.set_index("run"), differences, by_log_snr


# -- the numbers -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_files_hold_the_numbers_of_the_library(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("cld", "learned", "wide", "noise")
    folders = [runs[name] for name in names]
    calls = compare(folders, half_width=None, draws=3, seed=2, out=tmp_path / "out").network_calls
    loaded = {name: load_trained(runs[name])[1] for name in names}
    x = loaded["cld"].problem.to_model_space(loaded["cld"].problem.test)
    programs = {name: (p.model, p.guide) for name, p in loaded.items()}
    expected = evaluation.compare(programs, x, draws=3, seed=2)
    assert calls == expected.network_calls
    bounds, differences, by_log_snr = read(tmp_path / "out")
    unit = 2 * math.log(2)
    assert list(bounds.bits_per_dim) == sorted(bounds.bits_per_dim)
    assert set(bounds.index) == set(names)
    for name in names:
        row, e = bounds.loc[name], expected.estimates[name]
        assert row.bits_per_dim == pytest.approx(-e.mean / unit, abs=1e-12)
        assert row.standard_error_bits_per_dim == pytest.approx(e.bits_per_dim_error, rel=1e-6)
        width = row.monte_carlo_half_width_95_bits_per_dim
        assert width == pytest.approx(Z95 * e.monte_carlo_error / unit, rel=1e-9)
        assert row.reconstruction_bits_per_dim == pytest.approx(-e.reconstruction[0] / unit)
        assert row.prior_kl_bits_per_dim == pytest.approx(e.prior_kl[0] / unit)
        assert row.diffusion_bits_per_dim == pytest.approx(e.diffusion[0] / unit)
        cells = by_log_snr[by_log_snr.run == name]
        density = cells.diffusion_bits_per_dim_per_log_snr
        assert list(density) == pytest.approx((e.density / unit).tolist())
        # terms add up, and so do the cells of the diffusion term
        assert sum(row[f"{t}_bits_per_dim"] for t in TERMS) == pytest.approx(row.bits_per_dim)
        whole = cells.diffusion_bits_per_dim.sum()
        assert whole == pytest.approx(row.diffusion_bits_per_dim, rel=1e-9)
        ends = cells.log_snr_low.iloc[0], cells.log_snr_high.iloc[-1]
        assert ends == pytest.approx((row.log_snr_min, row.log_snr_max), abs=1e-6)
    assert list(bounds.loc[list(names)].training_steps) == [3, 5, 3, 3]
    assert list(bounds.loc[list(names)].score) == ["denoiser"] * 3 + ["noise"]
    assert list(bounds.loc[list(names)].num_variables) == [2, 2, 1, 2]

    assert len(differences) == 6
    for row, d in zip(differences.itertuples(), expected.differences, strict=True):
        assert (row.first, row.second) == (d.first, d.second)
        found = row.difference_bits_per_dim, row.standard_error_bits_per_dim
        assert found == pytest.approx(d.bits_per_dim)
        assert (row.low_95_bits_per_dim, row.high_95_bits_per_dim) == pytest.approx(d.interval)
        width = row.monte_carlo_half_width_95_bits_per_dim
        assert width == pytest.approx(Z95 * d.monte_carlo_error)
        assert row.resolved == d.resolved and row.p_value == pytest.approx(d.p_value)
        first, second = bounds.loc[row.first], bounds.loc[row.second]
        assert found[0] == pytest.approx(first.bits_per_dim - second.bits_per_dim, abs=1e-9)
        for term in (f"{t}_bits_per_dim" for t in TERMS):
            assert getattr(row, term) == pytest.approx(first[term] - second[term], abs=1e-9)
    assert differences.resolved.any()

    text = capsys.readouterr().out
    assert text.startswith("30 test data of tiny, seed 2\n")
    for name in names:
        value = f"{bounds.loc[name].bits_per_dim:.4f} ± "
        assert any(line.startswith(name) and value in line for line in text.splitlines())
    lines = {frozenset(line.split()[:3:2]): line for line in text.splitlines() if " − " in line}
    assert len(lines) == 6
    for d in expected.differences:
        line = lines[frozenset((d.first, d.second))]
        assert line.endswith("yes" if d.resolved else "no")
        assert f" {abs(d.bits_per_dim[0]):.4f}" in line.replace("+", "")  # worse − better
        better = min((d.first, d.second), key=lambda name: bounds.loc[name].bits_per_dim)
        assert f"− {better} " in line
    assert f"network calls: {calls:,} in all" in text
    assert max(map(len, text.splitlines()[:-1])) <= 120  # the last names the folder


def test_a_copy_of_a_run_differs_by_exactly_nothing(runs: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(runs["noise"], copy)
    found = compare([runs["noise"], copy, runs["cld"]], None, draws=2, out=tmp_path / "out")
    same = found.differences[0]
    assert (same.first, same.second) == ("noise", "copy")
    assert same.bits_per_dim == (0.0, 0.0) and same.monte_carlo_error == 0.0
    assert not same.resolved
    _, differences, _ = read(tmp_path / "out")
    assert differences.difference_bits_per_dim[0] == 0.0 and not differences.resolved[0]
    assert differences.difference_bits_per_dim[1] != 0.0


def test_a_pair_turned_round_has_the_other_sign() -> None:
    row = {"first": "a", "second": "b", "p_value": 0.04, "resolved": True}
    row |= {"difference_bits_per_dim": 0.3, "standard_error_bits_per_dim": 0.1}
    row |= {"low_95_bits_per_dim": 0.1, "high_95_bits_per_dim": 0.5}
    row |= {"monte_carlo_half_width_95_bits_per_dim": 0.05}
    for term, value in zip(ALL_TERMS, (0.0, -0.1, 0.4, 0.2), strict=True):
        row |= {f"{term}_bits_per_dim": value, f"{term}_standard_error_bits_per_dim": 0.01}
    other = turned(row)
    assert (other["first"], other["second"]) == ("b", "a")
    assert other["difference_bits_per_dim"] == -0.3
    assert (other["low_95_bits_per_dim"], other["high_95_bits_per_dim"]) == (-0.5, -0.1)
    assert [other[f"{t}_bits_per_dim"] for t in TERMS] == [0.0, 0.1, -0.4]
    assert other["context_bits_per_dim"] == -0.2
    assert math.copysign(1, other["reconstruction_bits_per_dim"]) == 1
    kept = [key for key in row if "error" in key or "half_width" in key or key == "p_value"]
    assert all(other[key] == row[key] for key in kept) and other["resolved"] is True
    assert turned(other) == row


@pytest.mark.slow
@pytest.mark.parametrize("score", ["denoiser", "noise"])
def test_dequantized_images_have_the_bits_of_evaluate(tmp_path: Path, score: str) -> None:
    """Their log-determinant counts with each bound and with no difference."""
    options = {"model": "digits", "protocol": "dequantized", "score": score}
    folders = [make_run(tmp_path / guide, **options, guide=guide) for guide in ("cld", "vpsde")]
    found = compare(folders, half_width=None, draws=2, seed=1, out=tmp_path / "out")
    bounds, differences, _ = read(tmp_path / "out")
    loaded = load_trained(folders[0])[1]
    bound = measure(loaded, loaded.problem.test, draws=2, seed=5)
    row = bounds.loc["cld"]
    noise = math.hypot(bound.monte_carlo_error, row.monte_carlo_half_width_95_bits_per_dim / Z95)
    # the seed draws the dequantization too, which the Monte Carlo error of a bound leaves out
    assert abs(row.bits_per_dim - bound.bits_per_dim[0]) < 5 * noise + 0.05
    assert row.bits_per_dim == pytest.approx(_by_hand(found, loaded.problem, "cld", 1), rel=1e-6)
    assert math.isnan(row.reconstruction_standard_error_bits_per_dim)
    assert row.standard_error_bits_per_dim == pytest.approx(bound.bits_per_dim[1], rel=0.7)
    assert sum(row[f"{t}_bits_per_dim"] for t in TERMS) == pytest.approx(row.bits_per_dim)
    assert differences.difference_bits_per_dim[0] == pytest.approx(
        row.bits_per_dim - bounds.loc["vpsde"].bits_per_dim, abs=1e-6
    )


def _by_hand(found: evaluation.Comparison, problem: Any, name: str, seed: int) -> float:
    """The bits/dim of dequantized images: -(log p(x) + log|dx/dw|)/(d ln 2) + log₂ levels."""
    _, log_det = problem.transform(problem.test, torch.Generator().manual_seed(seed))
    log_p = found.estimates[name].mean + float(log_det.double().mean())
    return -log_p / (64 * math.log(2)) + math.log2(17)


# -- the stopping rule and the baseline ------------------------------------------------------------


def test_a_half_width_is_reached_with_fewer_calls_or_reported_as_not(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [runs["cld"], runs["learned"]]
    found = compare(folders, half_width=0.2, draws=500, out=tmp_path / "reached")
    assert found.reached and found.network_calls < 2 * 30 * 500
    tables = read(tmp_path / "reached")[:2]
    assert max(t.monte_carlo_half_width_95_bits_per_dim.max() for t in tables) <= 0.2
    assert "± 0.2 is reached" in capsys.readouterr().out
    found = compare(folders, half_width=1e-6, draws=2, out=tmp_path / "not")
    assert not found.reached
    text = capsys.readouterr().out
    assert "± 1e-06 is NOT reached with --draws 2" in text
    tables = read(tmp_path / "not")[:2]
    width = max(t.monte_carlo_half_width_95_bits_per_dim.max() for t in tables)
    assert f"the widest is ± {width:.4f}" in text


def test_noise_predictions_alone_get_a_baseline(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    usual = evaluation.compare

    def spy(*arguments: Any, **options: Any) -> evaluation.Comparison:
        given.append(options["baseline"])
        return usual(*arguments, **options)

    monkeypatch.setattr(evaluation, "compare", spy)
    compare([runs["noise"], runs["noise2"]], None, draws=2, out=tmp_path / "noise")
    compare([runs["noise"], runs["cld"]], None, draws=2, out=tmp_path / "both")
    train_x = load_trained(runs["noise"])[1].problem.train
    assert torch.allclose(given[0].data_mean.float(), train_x.mean(0), atol=1e-4)
    assert given[1] is None  # the denoiser among them is the baseline


# -- what cannot be compared -----------------------------------------------------------------------


def test_runs_of_different_data_are_refused(
    runs: dict[str, Path], tiny: str, tmp_path: Path
) -> None:
    moved = make_run(tmp_path / "moved", model=tiny.replace("Tiny", "Moved"), guide="cld")
    with pytest.raises(RunError, match=r"moved and cld do not have the same test data"):
        compare([runs["cld"], runs["learned"], moved], out=tmp_path / "out")
    toy = make_run(tmp_path / "toy", model="toy", guide="cld")
    with pytest.raises(RunError, match=r"toy: model toy, 1000 test data of 2\n"):
        compare([runs["cld"], toy], out=tmp_path / "out")
    levels = [
        make_run(tmp_path / p, model="digits", guide="cld", protocol=p)
        for p in ("discrete", "dequantized")
    ]
    with pytest.raises(RunError, match=r"model digits, --protocol dequantized .*1e-06, 180"):
        compare(levels, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_validation_part_and_its_absence(
    runs: dict[str, Path], tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare([runs["cld"]], None, draws=2, part="validation", out=tmp_path / "out")
    assert capsys.readouterr().out.startswith("30 validation data of tiny")
    without = make_run(tmp_path / "without", model=tiny, guide="cld", holdout=False)
    with pytest.raises(RunError, match=r"without: no validation data.*--part test"):
        compare([runs["cld"], without], part="validation", out=tmp_path / "none")
    compare([runs["cld"], without], None, draws=2, out=tmp_path / "test")  # the same test data


def test_folders_that_are_no_runs_and_runs_given_twice(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    cld, out = runs["cld"], tmp_path / "out"
    nowhere = r"nowhere is not a run folder: .*runs beside it: .*cld"
    refused(
        RunError,
        (lambda: compare([cld, cld.parent / "nowhere"], out=out), nowhere),
        (lambda: compare([cld, cld], out=out), "is given twice"),
        (lambda: compare([cld, cld / ".." / "cld"], out=out), "is given twice"),
        (lambda: compare([], out=out), "no runs to compare"),
    )
    assert not (tmp_path / "out").exists()


def test_names_are_as_short_as_tells_them_apart() -> None:
    folders = [Path(p) for p in ("a/x/run", "b/x/run", "a/y/run", "other")]
    assert short_names(folders) == ["a/x/run", "b/x/run", "y/run", "other"]


# -- files -----------------------------------------------------------------------------------------


def test_a_comparison_is_not_overwritten_unless_asked(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    compare([runs["cld"]], None, draws=2, out=out)
    assert {p.name for p in out.iterdir()} == {*FILES, "notes.txt"}
    before = (out / "bounds.csv").read_bytes()
    with pytest.raises(RunError, match=r"already holds bounds\.csv.*--overwrite true"):
        compare([runs["learned"]], None, draws=2, out=out)
    assert (out / "bounds.csv").read_bytes() == before
    compare([runs["learned"]], None, draws=2, out=out, overwrite=True)
    assert list(read(out)[0].index) == ["learned"]
    assert (out / "notes.txt").read_text() == "mine"
    with pytest.raises(RunError, match="is a file"):
        compare([runs["cld"]], out=out / "notes.txt")


def test_one_run_alone_has_its_bound_and_no_difference(
    runs: dict[str, Path], drawn: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = compare([runs["cld"]], None, draws=2, out=tmp_path / "out")
    assert list(found.estimates) == ["cld"] and found.differences == ()
    bounds, differences, _ = read(tmp_path / "out")
    assert len(bounds) == 1 and len(differences) == 0
    assert "difference_bits_per_dim" in differences.columns
    text = capsys.readouterr().out
    assert "resolved" not in text and "warning" not in text
    with Image.open(tmp_path / "out" / "comparison.png") as image:
        assert image.size[0] > 1000


def test_different_ends_of_log_snr_are_warned_of(
    runs: dict[str, Path], tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare([runs["learned"], runs["wide"]], None, draws=2, out=tmp_path / "same")
    assert "warning" not in capsys.readouterr().out  # both from -10 to 9
    compare([runs["cld"], runs["learned"]], None, draws=2, out=tmp_path / "min")
    text = capsys.readouterr().out
    assert "same --min_log_snr" in text and "same --max_log_snr" not in text
    high = make_run(tmp_path / "high", model=tiny, guide="learned", max_log_snr=10.0)
    compare([runs["learned"], high], None, draws=2, out=tmp_path / "max")
    text = capsys.readouterr().out
    assert "9 to 10" in text and "same --max_log_snr" in text and "same --min_log_snr" not in text


@pytest.mark.slow
def test_many_runs_fit_the_terminal_and_the_figure(
    runs: dict[str, Path], drawn: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders, number = [], 21
    for i in range(number):
        folders.append(tmp_path / f"run-{i}")
        shutil.copytree(runs["noise" if i % 3 else "learned"], folders[-1])
    compare(folders, None, draws=1, out=tmp_path / "out")
    text = capsys.readouterr().out
    bounds, differences, _ = read(tmp_path / "out")
    pairs = number * (number - 1) // 2
    assert len(bounds) == number and len(differences) == pairs
    printed = [line for line in text.splitlines() if line.endswith(("yes", "no"))]
    assert pairs > PRINTED and len(printed) == min(PRINTED, number - 1)
    assert f"of {pairs} differences" in text
    assert all(f"− {bounds.index[0]} " in line for line in printed)
    with Image.open(tmp_path / "out" / "comparison.png") as image:
        assert image.size[0] > 1000


def test_the_figure_shows_the_numbers_it_is_given() -> None:
    def around(value: float, name: str = "difference_bits_per_dim") -> dict[str, Any]:
        ends = {"low_95_bits_per_dim": value - 0.2, "high_95_bits_per_dim": value + 0.3}
        return {name: value, **ends, "monte_carlo_half_width_95_bits_per_dim": 0.1}

    def bound(name: str, value: float) -> dict[str, Any]:
        return {"run": name, "simulated": False, **around(value, "bits_per_dim")}

    def difference(first: str, second: str, value: float, resolved: bool) -> dict[str, Any]:
        return {"first": first, "second": second, "resolved": resolved, **around(value)}

    def cell(name: str, low: float, density: float) -> dict[str, Any]:
        return {
            "run": name,
            "log_snr_low": low,
            "log_snr_high": low + 2,
            "diffusion_bits_per_dim": 2 * density,
            "diffusion_bits_per_dim_per_log_snr": density,
            "monte_carlo_error_bits_per_dim_per_log_snr": 0.01,
        }

    figure = comparison_figure(
        [bound("best", 1.0), bound("next", 1.5), bound("last", 2.5)],
        [
            difference("next", "best", 0.5, resolved=False),
            difference("best", "last", -1.5, resolved=True),  # the other way round
            difference("next", "last", -1.0, resolved=True),
        ],
        [cell(n, x, y) for n, y in (("best", 0.1), ("next", 0.2), ("last", 0.3)) for x in (0, 2)],
    )
    left, right, density, cumulative = figure.axes
    assert [p.get_xdata()[0] for p in left.lines] == [1.0, 1.5, 2.5]
    assert [t.get_text() for t in left.get_yticklabels()] == ["best", "next", "last"]
    points = [p for p in right.lines if p.get_marker() == "o"]
    assert [(p.get_xdata()[0], p.get_ydata()[0]) for p in points] == [(0.5, 1), (1.5, 2)]
    hollow = [p.get_markerfacecolor() == "white" for p in points]
    assert hollow == [True, False]
    thin = [c.get_segments()[0][:, 0].tolist() for c in right.collections[::2]]
    assert thin == [pytest.approx([0.3, 0.8]), pytest.approx([1.2, 1.7])]
    assert [list(p.get_ydata()) for p in density.lines[:3]] == [[0.1] * 2, [0.2] * 2, [0.3] * 2]
    assert cumulative.lines[-1].get_ydata().tolist() == pytest.approx([0.0, 0.4, 0.8])


# -- the command line ------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_line_takes_any_number_of_runs(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (runs["cld"], runs["learned"], "--half_width", "null", "--draws", 2)
    run_program("compare", *words, "--out", tmp_path / "a")
    first = capsys.readouterr().out
    run_program(
        "compare", "--out", tmp_path / "b", "--half_width", "null", "--draws", 2, *words[:2]
    )
    assert capsys.readouterr().out.replace("/b:", "/a:") == first
    for name in FILES[:3]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with pytest.raises(SystemExit, match=r"error: .*already holds bounds\.csv"):
        run_program("compare", *words, "--out", tmp_path / "a")
    run_program("compare", *words, "--out", tmp_path / "a", "--overwrite", "true")
