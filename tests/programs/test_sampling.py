"""Drawing many samples: the same whatever is drawn at a time, in one process or several."""

from __future__ import annotations

import io
import math
import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from inference import evaluate, sample
from inference.drawing import sampling
from inference.drawing.sampling import draw
from inference.drawing.trajectory import animation, trajectory
from inference.folders.loading import load_trained
from inference.measuring import bounds
from inference.settings.plan import Programs
from inference.train import train
from inference.training import report
from models import Digits, Toy
from pyro_mdm import (
    CLD,
    VPSDE,
    DiffusionGuide,
    DiffusionModel,
    NoisePrediction,
    randomness,
)
from pyro_mdm.evaluation import drawing, importance_weighted
from pyro_mdm.networks import MLP
from pyro_mdm.samplers import (
    EulerMaruyama,
    ExponentialIntegrator,
    StochasticExponentialIntegrator,
    default_sampler,
)
from pyro_mdm.simulated.priors import DistributionPrior
from pyro_mdm.support.measured import Measured
from pyro_mdm.support.progress import LogProgress, Progress
from tests.known_bound import denoiser, programs
from tests.processes import Program, together
from tests.programs.running import run_program

SEEDED = (
    *("exponential", "stochastic", "ancestral", "splitting", "euler"),
    *("stochastic_heun", "probability_flow", "torchsde"),
)


@pytest.fixture(scope="module")
def digits() -> DiffusionModel:
    """Of levels, whose decoder draws too."""
    torch.manual_seed(0)
    return Digits().build(CLD(max_log_snr=9.0)).eval()


@pytest.fixture(scope="module")
def points() -> DiffusionModel:
    torch.manual_seed(0)
    return Toy().build(CLD(max_log_snr=9.0)).eval()


@pytest.mark.parametrize("sampler", [*SEEDED][::2])
def test_the_size_of_a_batch_changes_no_sample(sampler: str, points: DiffusionModel) -> None:
    """Nor how many there are, nor which process draws them."""
    options: dict[str, Any] = {"sampler": sampler, "steps": 3, "seed": 5}
    whole = sampling.draw(points, 50, batch_size=50, **options)
    # matrices of other sizes are multiplied in another order
    near: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
    for n, size in ((30, 7), (20, 20), (33, 32)):  # and 16 below
        some = sampling.draw(points, n, batch_size=size, **options)
        torch.testing.assert_close(some, whole[:n], **near)
    first, second = (
        dict(sampling.draw_batches(points, 50, batch_size=16, share=(r, 2), **options))
        for r in (0, 1)
    )
    assert set(first) == {0, 32} and set(second) == {16, 48}
    for start, x in (first | second).items():
        torch.testing.assert_close(x, whole[start : start + len(x)], **near)
    other = sampling.draw(points, 50, **options | {"seed": 6})
    assert float((other - whole).abs().min()) > 0
    assert len(whole.unique(dim=0)) == 50


def test_decoders_of_levels_draw_the_same_too(digits: DiffusionModel) -> None:
    options: dict[str, Any] = {"sampler": "stochastic", "steps": 2, "seed": 1}
    whole, parts = (sampling.draw(digits, 20, batch_size=b, **options) for b in (20, 3))
    assert float((whole != parts).float().mean()) < 0.01  # where rounding decides a level


def test_priors_of_ones_own_are_streams_too() -> None:
    law = torch.distributions.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    torch.manual_seed(0)
    prior = DistributionPrior(law)
    drawn = []
    for sizes in ([40], [7, 33]):
        first, parts = 0, []
        for n in sizes:
            with randomness.stream(3, first):
                parts.append(randomness.for_data(prior.sample, (n, 2, 3), torch.device("cpu")))
            first += n
        drawn.append(torch.cat(parts))
    assert torch.equal(*drawn) and drawn[0].shape == (40, 2, 3)
    assert len(drawn[0].flatten(1).unique(dim=0)) == 40


def test_chains_are_streams_too(points: DiffusionModel) -> None:
    chain = DiffusionModel(points.diffusion, points.score_function, times=5).eval()
    whole, parts = (sampling.draw(chain, 20, batch_size=b, seed=3) for b in (20, 7))
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-4)


def test_sampling_leaves_the_callers_random_state(points: DiffusionModel) -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    usual = points.sampler
    sampling.draw(points, 3, steps=2)
    assert torch.equal(before, torch.random.get_rng_state()) and points.sampler is usual


def test_the_default_takes_25_calls(points: DiffusionModel) -> None:
    assert repr(points.sampler) == repr(ExponentialIntegrator(25))
    assert [sampling.default_steps(name) for name in ("exponential", "euler", "own.py:mine")] == [
        *(25, 256, 256)
    ]
    assert type(default_sampler(VPSDE())) is ExponentialIntegrator
    assert sampling.default_sampler(points) == "exponential"
    raw = DiffusionModel(VPSDE(), NoisePrediction(MLP(2, out_features=2)), event_shape=(2,))
    assert repr(raw.sampler) == repr(StochasticExponentialIntegrator(50))
    assert (
        sampling.default_sampler(raw) == "stochastic" and sampling.default_steps("stochastic") == 50
    )
    calls = []
    hook = points.score_function.network.register_forward_hook(lambda *a: calls.append(1))
    sampling.draw(points, 3)
    hook.remove()
    assert len(calls) <= 26  # one may be the decoder's


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny: str) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    few: dict[str, Any] = {"draws": 1, "num_samples": 1, "sampler_steps": 3, "steps": 2}
    few |= {"guide": "cld", "checkpoint_every": 1, "accelerator": "cpu", "figures": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw_end", lambda *arguments: None)
        train(tiny, run=folder, **few)
    return folder


@pytest.mark.slow
@pytest.mark.other_processes
def test_two_processes_write_the_file_of_one(run: Path, tmp_path: Path) -> None:
    words = ("inference.sample", run, "--num_samples", 50, "--steps", 3, "--accelerator", "cpu")
    one, two = tmp_path / "one.npy", tmp_path / "two.npy"
    run_program("sample", *words[1:], "--batch_size", 50, "--out", one)
    said = together(2, *words, "--batch_size", 8, "--out", two)
    assert said == f"{two}\n"
    x, y = np.load(one), np.load(two)
    assert x.shape == (50, 2) and x.dtype == np.float32
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.npy", "two.npy"]


def test_a_grid_is_that_of_the_sampler(run: Path, tmp_path: Path) -> None:
    for grid in ("quadratic", "karras"):
        words = ("--sampler", "euler", "--steps", 5, "--grid", grid)
        run_program("sample", run, *words, "--out", tmp_path / f"{grid}.npy", "--num_samples", 4)
    _, programs, _ = load_trained(run)
    programs.model.sampler = EulerMaruyama(5, "karras")
    own = sampling.draw(programs.model, 4, sampler="euler", steps=5, grid="karras").numpy()
    np.testing.assert_array_equal(np.load(tmp_path / "karras.npy"), own)
    assert np.abs(np.load(tmp_path / "quadratic.npy") - own).max() > 1e-3


def test_a_file_that_is_not_finished_is_not_left(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any, **options: Any) -> Any:
        raise ValueError("exploded")

    monkeypatch.setattr(drawing, "draw_batches", fails)
    with pytest.raises(ValueError, match="exploded"):
        sample.sample(run, out=tmp_path / "a.npy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.other_processes
def test_nothing_is_left_by_a_process_that_is_ended(run: Path, tmp_path: Path) -> None:
    words = (run, "--num_samples", 10**6, "--sampler", "euler", "--accelerator", "cpu")
    program = Program("inference.sample", *words, "--out", tmp_path / "a.npy")
    while not any(tmp_path.iterdir()):
        assert program.poll() is None, program.communicate()[1]
        time.sleep(0.01)
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
    program.send_signal(signal.SIGTERM)
    program.communicate()
    assert program.returncode == 143 and list(tmp_path.iterdir()) == []


def test_all_variables_are_shown_on_their_way(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "way.gif"
    run_program("sample", run, "--num_samples", 20, "--steps", 6, "--out", out)
    with Image.open(out) as image:
        assert image.n_frames == 7 and image.size == (640, 350)


@pytest.mark.parametrize("sampler", [ExponentialIntegrator(4), EulerMaruyama(4)], ids=repr)
def test_a_trajectory_is_that_of_the_samples(sampler: Any, digits: DiffusionModel) -> None:
    found = trajectory(digits, 3, sampler, seed=2)
    times = torch.stack([s for s, _ in found])
    torch.testing.assert_close(times, sampler.times(digits.diffusion).cpu())
    assert {tuple(y.shape) for _, y in found} == {(3, 2, 1, 8, 8)}
    assert len(found) == 5 and float(found[0][1].std()) > 0.4
    torch.manual_seed(0)
    law = digits.path_law().expand((3,))
    with randomness.stream(randomness.seed_from(2, "states")):
        law.sampler = sampler
        y = law.sample()[:, 0]
    torch.testing.assert_close(found[-1][1].float(), y)
    with Image.open(io.BytesIO(animation(Digits(), digits, found))) as image:
        assert image.n_frames == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--num_samples 5000 --out {tmp}/a.png", "at most 4096 in a .png; a .npy file holds any"),
        ("--num_samples 1025 --out {tmp}/a.gif", "at most 1024 in a .gif"),
        ("--out {tmp}/a.gif --sampler {tmp}/own.py:mine", "mine does not show its states"),
        ("--grid even --out {tmp}/a.npy", "grid is 'even', expected one of information, log_snr"),
        ("--grid progress --out {tmp}/a.npy", "needs paths that are simulated"),
        ("--grid karras --out {tmp}/a.npy --sampler {tmp}/own.py:mine", "takes none; leave it out"),
    ],
)
def test_mistakes(words: str, message: str, run: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import torch\ndef mine(diffusion, score, shape, generator=None):\n"
        "    return torch.zeros(shape)\n"
    )
    with pytest.raises(SystemExit) as caught:
        run_program("sample", run, *words.format(tmp=tmp_path).split())
    assert message in str(caught.value)


def test_likelihoods_by_several_methods(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ("--test_size", 8, "--samples", 3, "--times", 5, "--rtol", 1e-2, "--draws", 2)
    run_program("evaluate", run, "--method", "all", *few)
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.endswith("8 test data")
    number = r"bits/dim -?\d+\.\d{3} ± \d+\.\d{3} "
    assert re.fullmatch(rf"elbo: {number}\(reconstruction .*\)", lines[0])
    weighed = r"\(\d\.\d effective samples, too few to see their tail"
    weighed += r"(, and too little counts for an error of log p for \d+%: take more)?; "
    weighed += r"\d+\.\d{3} bits/dim below one weight; \d+ network calls"
    assert re.match(rf"importance: {number}{weighed}", lines[1]) and "12 network calls" in lines[1]
    assert re.match(rf"flow: {number}{weighed}", lines[2])
    run_program("evaluate", run, "--method", "flow", "--test_size", 8, "--probes", 1, "--rtol", 0.1)
    (_, line) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"flow: {number}\(\d+ network calls for each datum\)", line)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--method ode", "--method is 'ode', expected elbo, importance, flow or all"),
        ("--method flow --half_width 0.1", "--half_width is for --method elbo, not flow"),
        ("--samples 3", "--samples is for --method importance and flow, not elbo; leave it out"),
        ("--rtol 0.1", "--rtol is for --method flow, not elbo; leave it out"),
        ("--times 5 --method flow", "--times is for --method importance, not flow; leave it out"),
        ("--method importance --samples 0", "--samples is 0, expected a positive number"),
        ("--test_size 3", "--test_size is 3, expected at least 8"),
        ("--method flow --samples 2 --probes 1", "weights need the exact divergence; use probes=0"),
        ("--method flow --rtol 1e-20", "finer than float64 can hold"),
    ],
)
def test_mistakes_with_methods(
    words: str, message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run_program("evaluate", run, *words.split())
    assert message in f"{caught.value} {capsys.readouterr().err}"


def test_weights_of_dequantized_data_count_levels_and_volume() -> None:
    """By one weight each: the mean over data and its error are those of the bits of each datum."""
    torch.manual_seed(0)
    problem = Digits(protocol="dequantized")
    model = problem.build(VPSDE(max_log_snr=9.0)).eval()
    programs = Programs(problem, model, DiffusionGuide(model.diffusion))
    data, options = problem.test[:12], {"samples": 1, "times": 5, "seed": 3}
    said = evaluate.weights(programs, data, "importance", **options)
    x, log_det = bounds.in_model_space(programs, data, 3)
    found = importance_weighted(model, programs.guide, x, **options)
    bits = -(found.per_datum + log_det.double()) / (64 * math.log(2)) + math.log2(17)
    assert said.startswith(f"bits/dim {bits.mean():.3f} ± {Measured.from_values(bits)[1]:.3f} (")


@pytest.mark.parametrize("progress", [True, False])
def test_samples_are_counted_by_steps_over_all_batches(monkeypatch, progress: bool) -> None:
    made = []

    def recorded(total: int, what: str, units: str, **options) -> Progress:
        made.append(LogProgress(total, what, units))
        assert options["shown"] == progress
        return made[-1]

    monkeypatch.setattr("inference.drawing.sampling.progress_bar", recorded)
    model, _ = programs(CLD(max_log_snr=3.0), denoiser(0.5))
    draw(model, 10, steps=6, batch_size=4, progress=progress)
    assert [(bar.what, bar.units, bar.total, bar.done) for bar in made] == [
        ("sampling", "steps", 18, 18)
    ]
