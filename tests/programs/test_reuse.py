"""A trained denoiser under another diffusion: the same network, the same bound up to its ends."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inference.drawing.sampling import draw
from inference.folders.checkpoints import Checkpoint, RunError
from inference.folders.runs import Run
from inference.measuring.bounds import RunBound, measure
from inference.measuring.reuse import ReusedRun, against_own, open_run, reuse
from inference.settings.plan import Programs
from inference.train import train
from pyro_mdm import CLD
from tests.mistakes import refused
from tests.programs.running import run_program

pytestmark = pytest.mark.usefixtures("few_pictures")


OWN = """
from pyro_mdm import LinearDiffusion


class Damped(LinearDiffusion):
    def __init__(self, **options):
        super().__init__([[0.0, -2.0], [2.0, 0.0]], [[0.3, 0.0], [0.0, 1.5]], **options)


def own_ends():
    return Damped(max_log_snr=12.0)


class TooFast(LinearDiffusion):
    def __init__(self, **options):
        super().__init__([[0.0, -1e30], [1e30, 0.0]], [[0.0, 0.0], [0.0, 1e30]], **options)
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("own") / "own.py"
    path.write_text(OWN)
    return str(path)


FEW: dict[str, Any] = {"steps": 6, "batch_size": 64, "draws": 1, "num_samples": 1}
FEW |= {"sampler_steps": 2, "measure_every": 6, "accelerator": "cpu", "figures": False}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny: str) -> Path:
    """A denoiser trained under a learned diffusion of two variables, log SNR 9 to -10."""
    folder = tmp_path_factory.mktemp("runs") / "learned"
    train(tiny, run=folder, **FEW)
    return folder


@pytest.fixture(scope="module")
def noise_run(tmp_path_factory: pytest.TempPathFactory, tiny: str) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "noise"
    train(tiny, run=folder, guide="cld", score="noise", **FEW)
    return folder


def bound(programs: Programs, draws: int = 4) -> RunBound:
    return measure(programs, programs.problem.test, draws=draws, seed=3)


@pytest.mark.parametrize("guide", ["vpsde", "alda", "{own}:Damped"])
def test_with_the_same_ends_and_noise_the_diffusion_term_is_the_same_to_rounding(
    run: Path, own: str, guide: str
) -> None:
    result = reuse(run, guide.format(own=own), min_log_snr=-10.0)
    assert not torch.equal(result.programs.model.diffusion.Q, result.original.model.diffusion.Q)
    data = result.original.problem.test
    before, after, difference, *_ = against_own(result, data, draws=4, seed=3)
    assert after.diffusion == pytest.approx(before.diffusion, rel=1e-5)
    assert after.log_snr_edges == pytest.approx(before.log_snr_edges)
    assert abs(difference.diffusion[0]) < 1e-5 * before.diffusion[0]
    prior = after.prior_kl[0] - before.prior_kl[0]
    assert difference.prior_kl[0] == pytest.approx(prior, abs=1e-9)
    whole = after.bits_per_dim[0] - before.bits_per_dim[0]
    assert difference.bits_per_dim[0] == pytest.approx(whole, abs=1e-5)


def test_a_shorter_path_has_the_rest_of_the_diffusion_term_in_its_prior_kl(run: Path) -> None:
    result = reuse(run, "cld", min_log_snr=-2.0)
    own, _, difference, *_ = against_own(result, result.original.problem.test, draws=64, seed=3)
    cells = zip(own.log_snr_edges[1:], own.diffusion_by_log_snr, strict=True)
    lost = sum(value for high, value in cells if high < -2 + 1e-6)
    assert -difference.diffusion[0] == pytest.approx(lost, rel=0.1)
    assert difference.prior_kl[0] > 0.9 * lost  # and the mismatch of the prior on top


def test_the_prior_kl_is_that_of_the_other_diffusion(run: Path) -> None:
    programs = reuse(run, "alda", min_log_snr=-1.0).programs
    with torch.no_grad():
        end, K = programs.model.diffusion.terminal, programs.model.diffusion.num_variables
    x = programs.problem.test.double()  # KL(N(a x, Σ) ‖ N(0, I)) of each datum
    kl = 0.5 * (
        2 * (end.covariance.diagonal().sum() - end.covariance.logdet() - K)
        + end.mean.square().sum() * x.square().sum(1)
    )
    bits = float(kl.mean()) / (2 * math.log(2))
    assert bound(programs).prior_kl[0] == pytest.approx(bits, rel=1e-5)


def test_a_clock_that_ends_below_the_trained_range_is_scaled_and_others_are_kept(run: Path) -> None:
    scaled = reuse(run, "cld")
    diffusion = scaled.programs.model.diffusion
    assert float(diffusion.log_snr(1.0)) == pytest.approx(-10.0)
    assert float(diffusion.log_snr(diffusion.start_time)) == pytest.approx(9.0)
    untouched = float(CLD().terminal_log_snr)
    assert untouched < -10
    assert f"its clock, which ends at {untouched:.6g}, is scaled by" in scaled.notes[-1]
    kept = reuse(run, "alda")
    end = float(kept.programs.model.diffusion.terminal_log_snr)
    assert -10 < end < 0
    assert "its own clock" in kept.notes[-1] and f"{end:.6g}" in kept.notes[-1]
    assert "trained on log SNR [-10, 9]" in kept.notes[0]
    # a shorter path spends less on it, and pays by the prior
    long, short = bound(kept.original), bound(kept.programs)
    assert short.prior_kl[0] > long.prior_kl[0]
    assert short.log_snr_edges[0] == pytest.approx(end)


def test_ends_can_be_set_also_of_a_guide_that_sets_its_own(run: Path, own: str) -> None:
    options = {"max_log_snr": 7.0, "min_log_snr": -3.0}
    for guide in ("cld", f"{own}:own_ends", f"run:{run}"):
        diffusion = reuse(run, guide, **options).programs.model.diffusion
        ends = diffusion.log_snr(torch.stack([diffusion.start_time, torch.tensor(1.0)]))
        assert ends.tolist() == pytest.approx([7.0, -3.0])


def test_the_diffusion_of_another_run(run: Path, noise_run: Path) -> None:
    result = reuse(run, f"run:{run}")
    mine, trained = result.programs.model.diffusion, result.original.model.diffusion
    assert torch.equal(mine.Q, trained.Q) and torch.equal(mine.D, trained.D)
    assert bound(result.programs).bits_per_dim == pytest.approx(bound(result.original).bits_per_dim)
    assert isinstance(reuse(run, f"run:{noise_run}").programs.model.diffusion, CLD)
    start = reuse(run, "learned")
    assert not torch.equal(start.programs.model.diffusion.Q, trained.Q)
    assert any("before any training" in note for note in start.notes)


def test_an_unfinished_run_is_held_to_the_range_of_its_own_diffusion(
    run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "unfinished")
    unfinished = Run.open(tmp_path / "unfinished")
    checkpoint = unfinished.latest()
    tensors = dict(checkpoint.tensors)
    for end, sign in (("min", -1), ("max", 1)):
        name = f"ema/score_function.trained_{end}"
        tensors[name] = torch.full_like(tensors[name], sign * math.inf)
    unfinished.save(Checkpoint(checkpoint.step + 1, tensors, checkpoint.state))
    score = reuse(unfinished.folder, "cld").programs.model.score_function
    assert (float(score.trained_min), float(score.trained_max)) == pytest.approx((-10.0, 9.0))


@pytest.mark.parametrize(
    ("guide", "options", "message"),
    [
        ("cld", {"min_log_snr": -12.0}, r"-12, but .*\[-10, 9\]; set --min_log_snr -10 or more"),
        ("cld", {"min_log_snr": 9.5}, r"min_log_snr 9.5 must be below max_log_snr 9"),
        ("{own}:own_ends", {}, r"start at log SNR 12, .*set --max_log_snr 9 or less"),
        ("{own}:TooFast", {}, r"TooFast: the drift moves by .*scale Q, D or the clock down"),
    ],
)
def test_what_cannot_be_reused_is_explained(
    run: Path, own: str, guide: str, options: dict[str, float], message: str
) -> None:
    with pytest.raises((RunError, ValueError), match=message):
        reuse(run, guide.format(own=own, run=run), **options)


def test_a_network_that_saw_the_raw_state_is_not_reused(noise_run: Path) -> None:
    with pytest.raises(RunError, match=r"--score noise: its network saw the raw state .* CLD"):
        reuse(noise_run, "alda")


def test_either_a_run_or_reuse(run: Path) -> None:
    refused(
        RunError,
        (lambda: open_run(ReusedRun(run=run, reuse=run, guide="cld")), r"both .* and --reuse"),
        (
            lambda: open_run(ReusedRun(run=run, guide="cld", min_log_snr=-9.0)),
            "--guide, --min_log_snr",
        ),
    )


def test_evaluate_prints_both_bounds_and_their_paired_difference(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_program("evaluate", "--reuse", run, "--guide", "cld", "--draws", 4, "--seed", 3)
    lines = capsys.readouterr().out.splitlines()
    result = reuse(run, "cld")
    data = result.original.problem.test
    before, after, difference, *_ = against_own(result, data, draws=4, seed=3)
    assert lines[-1] == str(after)
    table = {line.split()[0]: line for line in lines if " ± " in line}
    for term in after.terms:
        pairs = (before.terms[term], after.terms[term], getattr(difference, term))
        cells = [f"{round(value, 5) + 0.0:.5f} ± {error:.5f}" for value, error in pairs]
        assert [*map(str.strip, table[term].removeprefix(term).split("  ")[1:])][-1] == cells[-1]
        assert all(cell in table[term] for cell in cells)
    run_program("evaluate", run, "--draws", 4, "--seed", 3)  # and the plain form as before
    assert capsys.readouterr().out.splitlines()[-1] == str(bound(result.original))
    with pytest.raises(SystemExit, match="error: neither a run nor --reuse"):
        run_program("evaluate", "--draws", 4)
    with pytest.raises(SystemExit, match="2"):
        run_program("evaluate", "--dras", 4, "--reuse", run)


def test_sample_writes_beside_the_run_and_names_the_guide(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    words = ("--reuse", copy, "--guide", "alda", "--steps", 2, "--num_samples", 3)
    run_program("sample", *words)
    assert capsys.readouterr().out.splitlines()[-1] == str(
        copy / "samples-alda-exponential-2-0.png"
    )
    assert (copy / "samples-alda-exponential-2-0.png").is_file()
    with pytest.raises(SystemExit, match="exists; give another --out, or --overwrite"):
        run_program("sample", *words)
    out = tmp_path / "x.npy"
    run_program("sample", *words, "--out", out)
    model = reuse(copy, "alda").programs.model
    assert np.array_equal(np.load(out), draw(model, 3, steps=2).numpy())
