"""The programs with a diffusion that is known by its drift and dispersion alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from inference.drawing.sampling import default_sampler, draw, make_sampler, samplers_for
from inference.evaluate import evaluate
from inference.folders.checkpoints import RunError, latest_checkpoint
from inference.folders.loading import load_trained
from inference.folders.runs import Run
from inference.inspect import inspect
from inference.measuring.bounds import StepBias
from inference.sample import sample
from inference.settings.diffusion import build_diffusion
from inference.settings.names import SAMPLERS
from inference.settings.options import DataOptions, Guide, SimulatedGuide
from inference.settings.problems import build_problem
from inference.train import train
from inference.training import report
from pyro_mdm import (
    CLD,
    MDM_ELBO,
    VPSDE,
    DiffusionGuide,
    NonlinearDiffusion,
    RawScore,
    ResidualScore,
    Simulated,
    Simulation,
    randomness,
)
from pyro_mdm.diffusions.base import SimulationError
from pyro_mdm.levels.likelihoods import DiscretizedGaussian
from pyro_mdm.likelihoods.base import Gaussian, Tweedie
from pyro_mdm.plots import figures
from pyro_mdm.training import trainer
from tests.brief import be_brief
from tests.programs.running import (
    assert_same_run,
    last_line,
    run_program,
    stopped_after,
)

pytestmark = pytest.mark.usefixtures("few_pictures")

MINE = """
import torch
from pyro_mdm import CLD, LearnedDrift, NonlinearDiffusion, Simulated, Simulation
from pyro_mdm import HamiltonianDiffusion
from pyro_mdm.networks import MLP
from pyro_mdm.simulated import QuadraturePrior

COARSE = Simulation(step_size=0.25)


class Pull(NonlinearDiffusion):
    "Over-damped motion in a potential that is quadratic near 0 and linear far from it."
    stationary_prior = True

    def __init__(self, max_log_snr=1.0):
        prior = QuadraturePrior([lambda y: (1 + y**2).sqrt()])
        super().__init__(1, horizon=3.0, max_log_snr=max_log_snr, prior=prior, simulation=COARSE)

    def drift(self, y, s):
        return -y / (1 + y**2).sqrt()

    def dispersion(self, y, s):
        return 2**0.5 * torch.eye(1, dtype=torch.float64)


def learned(max_log_snr, event_shape):
    network = MLP(2 * event_shape[0], 8, 1)
    return LearnedDrift(CLD(max_log_snr=max_log_snr), network, simulation=COARSE)


ready = Simulated(CLD(max_log_snr=6.0), COARSE)


def friction(y):
    v = y[:, 1]
    return torch.diag_embed(torch.stack([torch.zeros_like(v), 1 + 1 / (1 + v**2)], -1))


def potential(x):
    return x**2 / 2


def kinetic(v):
    return (1 + v**2).sqrt()


def relativistic(max_log_snr):
    return HamiltonianDiffusion(
        H=[potential, kinetic],
        Q=[[0.0, -1.0], [1.0, 0.0]],
        D=friction,
        max_log_snr=max_log_snr,
        simulation=COARSE,
    )


class Growing(NonlinearDiffusion):
    def __init__(self, rate=0.1):
        super().__init__(1, max_log_snr=6.0, simulation=COARSE)
        self.rate_root = torch.nn.Parameter(torch.tensor(rate**0.5))

    def drift(self, y, s):
        return self.rate_root**2 * y

    def dispersion(self, y, s):
        return torch.eye(1, dtype=torch.float64)


def explosive():
    return Growing(1e9)


class Half(NonlinearDiffusion):
    def __init__(self):
        super().__init__(1)

    def drift(self, y, s):
        return -y
"""


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("mine") / "mine.py"
    path.write_text(MINE)
    return str(path)


FEW: dict[str, Any] = {"draws": 2, "num_samples": 4, "sampler_steps": 8, "accelerator": "cpu"}


@pytest.fixture
def options(mine: str, tiny: str) -> dict[str, Any]:
    every = {"log_every": 1, "measure_every": 4, "checkpoint_every": 2, "figures": False}
    return FEW | every | {"model": tiny, "guide": f"{mine}:Pull", "steps": 4}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, mine: str, tiny: str) -> dict[str, Path]:
    """A linear run and one of a learned drift, which has figures; tests only read them."""
    root = tmp_path_factory.mktemp("runs")
    common = FEW | {"steps": 2, "measure_every": 2, "checkpoint_every": 2}
    with pytest.MonkeyPatch.context() as patch:
        be_brief(patch, figures=True)
        train(tiny, "cld", run=root / "linear", figures=False, **common)
        train(tiny, f"{mine}:learned", run=root / "learned", log_every=2, **common)
    return {"linear": root / "linear", "learned": root / "learned"}


# -- train, stop, resume, evaluate, sample ---------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("guide", ["learned", "relativistic"])
def test_any_guide_trains_and_resumes_to_the_same_numbers_bit_for_bit(
    tmp_path: Path,
    mine: str,
    options: dict[str, Any],
    guide: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options |= {"guide": f"{mine}:{guide}"}
    if guide == "learned":
        options |= {"micro_batches": 2, "objective": "local_dsm"}
    train(**options, run=tmp_path / "whole")
    line = last_line(capsys)
    with stopped_after(3):
        train(**options, run=tmp_path / "stopped")
    assert latest_checkpoint(tmp_path / "stopped" / "checkpoints").step == 2
    train(resume=tmp_path / "stopped")
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    table = pd.read_csv(tmp_path / "whole" / "metrics.csv")
    assert bool(np.isfinite(table[table.part == "objective"].bits_per_dim).all())

    capsys.readouterr()
    run_program("evaluate", tmp_path / "whole", "--draws", 2, "--accelerator", "cpu")
    text = capsys.readouterr().out
    assert text.rstrip().splitlines()[-1] == line  # the same weights, data and noise
    assert "step of the simulation: 0.25; half of it gives " in text
    sample(tmp_path / "whole", num_samples=3, steps=8, accelerator="cpu")
    assert (tmp_path / "whole" / "samples-euler-8-0.png").is_file()


def test_settings_of_the_simulation_are_the_diffusion_s_own_unless_given(mine: str) -> None:
    given: dict[str, Any] = {"step_size": 0.5, "points": 3, "objective": "local_dsm"}
    guide = Guide(guide=f"{mine}:ready", max_log_snr=6.0)
    own, other = build_diffusion(guide), build_diffusion(guide, simulation=SimulatedGuide(**given))
    assert isinstance(own, Simulated) and own.simulation == Simulation(step_size=0.25)
    assert isinstance(other, Simulated) and other.simulation == Simulation(**given)


# -- the pages of TensorBoard ----------------------------------------------------------------------


@pytest.mark.slow
def test_tensorboard_shows_paths_in_place_of_closed_forms(runs: dict[str, Path]) -> None:
    events = EventAccumulator(
        str(runs["learned"] / "tensorboard"), size_guidance={"images": 0}
    ).Reload()
    tags = events.Tags()
    images = set(tags["images"])
    assert images >= {"noising/paths", "samples/by_sampler"}
    assert not {"noising/curves", "noising/noising", "noising/eigenvalues"} & images
    assert [image.step for image in events.Images("noising/paths")] == [0, 2]
    assert not any(tag.startswith(("noising/Q", "noising/D")) for tag in tags["scalars"])
    for end in ("data", "prior"):
        sizes = [event.value for event in events.Scalars(f"noising/learned_drift/rms_at_{end}")]
        assert sizes[0] == 0.0 and sizes[-1] > 0.0  # it begins as the linear diffusion
    assert set(report.METRICS) <= set(tags["scalars"])
    run, programs, _ = load_trained(runs["learned"])
    linear = report.settings(*load_trained(runs["linear"])[:2])
    settings = report.settings(run, programs)
    assert list(settings) == list(linear)  # one table, the same columns
    assert settings["score"] == "residual" and settings["rank of D"] == "–"
    history = [r for r in Run.open(runs["learned"]).metrics.history() if r["part"] == "diffusion"]
    assert [r["step"] for r in history] == [0, 2]
    assert {"times", "clock", "start_time"} <= history[0].keys() and "Q" not in history[0]


def test_paths_begin_at_the_data_and_keep_the_caller_s_random_state(mine: str) -> None:
    diffusion = build_diffusion(Guide(guide=f"{mine}:relativistic", max_log_snr=9.0))
    x = torch.tensor([[1.0, 0.1], [-1.0, 0.2], [0.5, 0.0]])
    state = torch.get_rng_state()
    figure = figures.paths_figure(diffusion, x, points=9, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    position, velocity, plane = figure.axes
    assert [axes.get_ylabel() for axes in figure.axes] == ["x", "v1", "x_1"]
    assert "dimension 0" in position.get_title()  # the one that varies most
    for i in range(3):
        line = position.lines[i]
        assert line.get_xdata()[-1] == diffusion.horizon and len(line.get_xdata()) == 9
        assert line.get_ydata()[0] == pytest.approx(float(x[i, 0]), abs=5 * np.exp(-4.5))
        assert plane.lines[i].get_ydata()[0] == pytest.approx(float(x[i, 1]), abs=0.06)
        assert plane.lines[i].get_xdata()[-1] == line.get_ydata()[-1]
        assert not np.array_equal(velocity.lines[i].get_ydata(), line.get_ydata())
    quantiles = [line.get_ydata()[0] for line in position.lines[3:6]]
    assert quantiles == pytest.approx([-1.645, 0.0, 1.645], abs=0.1)  # N(0, 1) for H = x²/2
    images = figures.paths_figure(diffusion, torch.rand(4, 1, 3, 3), points=3)
    assert [axes.get_ylabel() for axes in images.axes] == ["x", "v1"]
    with pytest.raises(ValueError, match="n ≥ 2"):
        figures.paths_figure(diffusion, x[:1])


def test_samples_that_are_not_finite_spoil_a_picture_and_no_run(
    tmp_path: Path,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(*arguments: Any, **options: Any) -> Tensor:
        raise ValueError("y holds inf")

    monkeypatch.setattr(report.sampling, "draw", broken)
    bound = train(**options, run=tmp_path / "run")
    assert np.isfinite(bound.bits_per_dim[0])
    assert "no samples in 8 steps: y holds inf" in capsys.readouterr().out
    assert not (tmp_path / "run" / "samples.png").exists()
    with pytest.raises(ValueError, match="y holds inf"):
        train(**options | {"guide": "cld"}, run=tmp_path / "linear")


# -- compared --------------------------------------------------------------------------------------


def test_a_linear_and_a_nonlinear_run_are_compared(
    tmp_path: Path, runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "comparison"
    given = ("--draws", 4, "--half_width", "null", "--out", out, "--accelerator", "cpu")
    run_program("compare", runs["linear"], runs["learned"], *given)
    text = capsys.readouterr().out
    assert "simulated: learned" in text and "NOT reached" not in text
    assert "the log SNR at T" not in text  # nominal for one of the two
    bounds = pd.read_csv(out / "bounds.csv").set_index("run")
    assert bounds.simulated.to_dict() == {"linear": False, "learned": True}
    assert bounds.score.to_dict() == {"linear": "denoiser", "learned": "residual"}
    difference = pd.read_csv(out / "differences.csv").iloc[0]
    values = [bounds.loc[name].bits_per_dim for name in (difference["first"], difference["second"])]
    assert difference.difference_bits_per_dim == pytest.approx(values[0] - values[1], abs=1e-6)
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("guide", "more", "message"),
    [
        ("relativistic", {"points": 0}, r"--points 0: .*points is 0"),
        ("explosive", {}, r"a path of Growing exploded: .* Try a smaller step_size"),
        ("Half", {}, r"abstract class Half with.* abstract method .?dispersion"),
    ],
)
def test_what_cannot_work_is_refused_before_a_folder_is_made(
    tmp_path: Path, mine: str, options: dict[str, Any], guide: str, more: Any, message: str
) -> None:
    options |= {"guide": f"{mine}:{guide}", "run": tmp_path / "run"} | more
    with pytest.raises((ValueError, TypeError, SimulationError), match=message):
        train(**options)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_path_that_explodes_names_its_step_and_leaves_a_good_checkpoint(
    tmp_path: Path, mine: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    options |= {"guide": f"{mine}:Growing", "steps": 6, "measure_every": 6, "clip": 1e9}
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "schedule", lambda step, *others: 1e5 if step == 2 else 1.0)
        with pytest.raises(
            SystemExit, match=r"error: step 3: a path of Growing exploded: .*lower "
        ):
            words = [f"--{k}={str(v).lower() if v is False else v}" for k, v in options.items()]
            run_program("train", *words, f"--run={run}")
    assert latest_checkpoint(run / "checkpoints").step == 2
    train(resume=run)
    scalars = EventAccumulator(str(run / "tensorboard")).Reload().Tags()["scalars"]
    assert "noising/parameters/rate_root" in scalars


def test_programs_of_closed_forms_say_so(
    tiny: str, tmp_path: Path, mine: str, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for guide in (f"{mine}:learned", f"run:{runs['learned']}"):
        with pytest.raises(ValueError, match=r"LearnedDrift, .*closed form.*paths_figure"):
            inspect(guide, tiny)
        with pytest.raises(RunError, match=r"LearnedDrift \(K = 2\), .*is simulated.*train"):
            evaluate(reuse=runs["linear"], guide=guide)
    with pytest.raises(
        RunError, match=r"under LearnedDrift .*score serves this diffusion alone.*--guide cld"
    ):
        sample(reuse=runs["learned"], guide="cld")
    with pytest.raises(
        TypeError, match=r"--sampler ancestral: .* which LearnedDrift does not have.*euler"
    ):
        sample(runs["learned"], sampler="ancestral")
    assert not list(tmp_path.iterdir())


# -- scores and decoders of a data set -------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["discrete", "dequantized"])
def test_images_have_a_score_and_a_decoder_for_any_diffusion(
    tiny: str, mine: str, protocol: str
) -> None:
    model = tiny.replace(":Tiny", ":Squares")
    problem = build_problem(DataOptions(model=model, protocol=protocol, holdout=False))
    decoder = DiscretizedGaussian if protocol == "discrete" else Gaussian
    x = problem.to_model_space(problem.train[:8], torch.Generator().manual_seed(0))
    diffusion = build_diffusion(
        Guide(guide=f"{mine}:relativistic", max_log_snr=problem.max_log_snr)
    )
    names = {"default": ResidualScore, "score": RawScore}
    for name, kind in [*names.items()][: 2 if protocol == "discrete" else 1]:
        model = problem.build(diffusion, score=name)
        assert isinstance(model.score_function, kind) and isinstance(model.likelihood, decoder)
        with randomness.piece(0, 1, 0):
            loss = MDM_ELBO()(model, DiffusionGuide(diffusion))(x)
        loss.backward()
        assert bool(loss.isfinite())
        assert bool(model.score_function.network.outlet[-1].weight.grad.any())
    if protocol == "dequantized":  # a linear diffusion keeps the paper's
        assert isinstance(problem.build(VPSDE(max_log_snr=6.0)).likelihood, Tweedie)


def test_samplers_by_diffusion(mine: str, runs: dict[str, Path]) -> None:
    nonlinear = build_diffusion(Guide(guide=f"{mine}:Pull", max_log_snr=6.0))
    assert isinstance(nonlinear, NonlinearDiffusion)
    assert samplers_for(nonlinear, ("ancestral", "euler", "stochastic_heun")) == [
        "euler",
        "stochastic_heun",
    ]
    assert samplers_for(CLD()) == [*SAMPLERS]
    model = load_trained(runs["learned"])[1].model
    assert default_sampler(model) == "euler"
    assert type(make_sampler("euler", 3, nonlinear)).__name__ == "EulerMaruyama"
    x = draw(model, 3, steps=8, seed=1)
    assert x.shape == (3, 2) and torch.equal(x, draw(model, 3, steps=8, sampler="euler", seed=1))


@pytest.mark.parametrize(
    ("change", "error", "warned"),
    [(0.3, 0.02, True), (-0.3, 0.02, True), (0.3, 0.1, False), (0.05, 0.001, False)],
)
def test_a_step_that_is_too_long_is_warned_of(change: float, error: float, warned: bool) -> None:
    text = str(StepBias(0.25, change, error))
    assert text.startswith(f"step of the simulation: 0.25; half of it gives {change:+.4f} ± ")
    assert ("warning: the step makes the bound wrong" in text) == warned
