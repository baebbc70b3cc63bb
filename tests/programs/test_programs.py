"""The programs, run as people run them, on a problem that takes a second."""

from __future__ import annotations

import json
import math
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from inference import trust
from inference.drawing.sampling import draw
from inference.evaluate import evaluate
from inference.folders.checkpoints import (
    ArchitectureError,
    CheckpointError,
    RunError,
    latest_checkpoint,
)
from inference.folders.loading import load_trained
from inference.folders.runs import Run
from inference.measuring.bounds import measure
from inference.sample import sample
from inference.settings.diffusion import build_diffusion
from inference.settings.names import NameNotFoundError
from inference.settings.options import Guide, Optimization, Training
from inference.settings.plan import build
from inference.train import decide, train, with_recipe
from inference.training import recipe, report
from pyro_mdm import DiffusionGuide, DiffusionModel, elbo_terms, training
from pyro_mdm.networks import MLP
from pyro_mdm.support.measured import Measured
from pyro_mdm.training import trainer
from tests.brief import be_brief
from tests.mistakes import refused
from tests.programs.running import (
    ROOT,
    TINY,
    Stopped,
    assert_resumes,
    assert_same_run,
    last_line,
    rewrite,
    run_program,
    stopped_after,
)

pytestmark = pytest.mark.usefixtures("few_pictures")  # ``trained`` has them

IS_RUN = 'if __name__ == "__main__"'
PROGRAMS = [p for p in sorted((ROOT / "inference").rglob("*.py")) if IS_RUN in p.read_text()]
LAST_LINE = re.compile(
    r"bits/dim -?\d+\.\d{3} ± \d+\.\d{3} "
    r"\(reconstruction -?\d+\.\d{3}, prior KL -?\d+\.\d{3}, diffusion -?\d+\.\d{3}\)"
)


FEW: dict[str, Any] = {"draws": 2, "num_samples": 4, "sampler_steps": 4, "accelerator": "cpu"}
FEW |= {"log_every": 2, "measure_every": 3, "checkpoint_every": 2}


@pytest.fixture
def options(tiny: str) -> dict[str, Any]:
    return {"model": tiny, "guide": "cld", **FEW}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny: str) -> Path:
    """A finished run of the learned diffusion; tests only read it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    drawn = report.draw_training

    def at_the_end(
        *arguments: Any,
    ) -> None:  # tests/programs/test_report.py has the figures on the way
        if arguments[-1] == 6:
            drawn(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        be_brief(patch, figures=True)
        patch.setattr(report, "draw_training", at_the_end)
        train(tiny, run=folder, **FEW)
    return folder


def fit(**options: Any) -> None:
    """Train to the last checkpoint, with no measurement on the way or at the end."""

    def stop(*arguments: Any, **more: Any) -> None:
        raise Stopped

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(report, "at_step", lambda *arguments, **more: None)
        patch.setattr(report, "at_end", stop)
        train(**options)


# -- the command lines -----------------------------------------------------------------------------


def test_every_program_is_run_in_a_test() -> None:
    text = "".join(path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py"))
    assert {p.stem for p in PROGRAMS} >= {"train", "evaluate", "sample", "compare", "inspect"}
    for program in PROGRAMS:
        called = rf'run_program\(\s*"{program.stem}"|"inference\.{program.stem}"'
        assert re.search(called, text), f"no test runs {program}"


@pytest.mark.slow
def test_the_programs_that_need_no_run(tmp_path: Path, tiny: str) -> None:
    out = tmp_path / "inspect.png"
    run_program("inspect", "--guide", "cld", "--model", tiny, "--out", out)
    assert out.is_file()
    with pytest.raises(SystemExit, match="nowhere"):
        run_program("compare", tmp_path / "nowhere", "--out", tmp_path / "comparison")
    with pytest.raises(SystemExit, match="nowhere"):
        run_program("impute", tmp_path / "nowhere", "--data", "wine", "--out", tmp_path / "x.csv")
    with pytest.raises(SystemExit, match="nowhere"):
        run_program("restore", tmp_path / "nowhere")
    few = ("--simulations", 20, "--steps", 1, "--scored", 2, "--calibration", 20)
    run_program("posterior", "linear_gaussian", *few, "--out", tmp_path / "p.png")
    assert (tmp_path / "p.png").is_file()
    with pytest.raises(SystemExit, match="0"):
        run_program("experiment", "--help")


@pytest.mark.slow
@pytest.mark.quick
def test_the_main_job_and_what_reads_it(
    tmp_path: Path, tiny: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_program(
        "train",
        *("--model", tiny, "--guide", "cld", "--steps", 4, "--batch_size", 8, "--seed", 3),
        *("--draws", 2, "--sampler_steps", 4, "--num_samples", 9, "--accelerator", "cpu"),
    )
    line = last_line(capsys)
    assert LAST_LINE.fullmatch(line)
    run = tmp_path / "runs" / "tiny-cld-3-0"
    run_program("evaluate", run, "--draws", 2, "--seed", 3)
    assert last_line(capsys) == line  # the same weights, data and noise
    for sampler in ("splitting", "euler", "ancestral"):
        out = tmp_path / f"{sampler}.png"
        run_program(
            "sample", run, "--num_samples", 5, "--sampler", sampler, "--steps", 4, "--out", out
        )
        with Image.open(out) as image:
            assert image.width == image.height > 100


def test_the_command_line_is_typed_explained_and_read_from_yaml(
    tmp_path: Path, tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        run_program("train", "--print_config")
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"] == "digits" and config["guide"] == "learned"
    config |= {"model": tiny, "guide": "vpsde", "steps": 2, "sampler_steps": 2, "draws": 1}
    config |= {"run": str(tmp_path / "run"), "accelerator": "cpu", "num_samples": 1}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    run_program("train", "--config", tmp_path / "config.yaml", "--steps", 3, "--model", tiny)
    first = last_line(capsys)
    saved = Run.open(tmp_path / "run").config
    assert saved["guide"] == "vpsde" and saved["steps"] == 3
    # a run's own config.yaml starts the same run again
    again = ("--config", tmp_path / "run" / "config.yaml", "--run", tmp_path / "again")
    run_program("train", *again)
    assert last_line(capsys) == first


# -- the run folder --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_folder_has_everything(trained: Path) -> None:
    found = {p.name for p in trained.iterdir()}
    assert found - {"changes.patch"} == {  # which is there if the checkout has changes
        *("config.yaml", "environment.json", "metrics.csv", "results.json", "samples.png"),
        *("checkpoints", "history.jsonl", "tensorboard", "sessions.jsonl", "data.json", ".lock"),
        *("sources", "model.safetensors"),
    }
    results = json.loads((trained / "results.json").read_text())
    parts = [results[k]["value"] for k in ("reconstruction", "prior_kl", "diffusion")]
    assert results["bits_per_dim"]["value"] == pytest.approx(sum(parts))
    table = pd.read_csv(trained / "metrics.csv")
    steps = {part: rows.step.tolist() for part, rows in table.groupby("part")}
    measured = {part: [3, 6] for part in ("train", "validation", "validation_unaveraged")}
    assert steps == {"objective": [2, 4, 6], "test": [6], **measured}
    test = table[table.part == "test"].iloc[0]
    assert test.bits_per_dim == results["bits_per_dim"]["value"]
    assert test.bits_per_dim_standard_error == results["bits_per_dim"]["standard_error"]
    assert latest_checkpoint(trained / "checkpoints").step == 6


def test_the_bound_is_saved_before_pictures_are_made(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("no pictures")

    monkeypatch.setattr(report.tensorboard, "write_samples", fail)
    monkeypatch.setattr(report, "at_step", lambda *arguments, **options: None)
    options |= {"steps": 2, "run": tmp_path / "run"}
    with pytest.raises(RuntimeError, match="no pictures"):
        train(**options)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert math.isfinite(results["bits_per_dim"]["value"]) and results["steps"] == 2
    assert not (tmp_path / "run" / "samples.png").exists()


def test_a_run_folder_opens_without_the_programs(trained: Path) -> None:
    """With the averaged weights: the same bound, from the library alone."""
    model, programs = DiffusionModel.from_pretrained(trained), load_trained(trained)[1]
    bounds = []
    for each in (model, programs.model):
        torch.manual_seed(0)
        x = programs.problem.to_model_space(programs.problem.test[:4])
        bounds.append(elbo_terms(each, DiffusionGuide(each.diffusion), x).elbo)
    assert torch.equal(*bounds)
    assert float(model.score_function.trained_min) == pytest.approx(-10.0)


def test_a_guide_without_a_name_trains_and_is_said_not_to_open(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    (tmp_path / "nameless.py").write_text(
        """from pyro_mdm import HamiltonianDiffusion, Simulation

TURN, EYE = [[0.0, -1.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]
ENERGIES = [lambda x: x**2 / 2, lambda v: v**2 / 2]
guide = HamiltonianDiffusion(ENERGIES, TURN, EYE, simulation=Simulation(0.25, 2), max_log_snr=9.0)
"""
    )
    options |= {"guide": f"{tmp_path / 'nameless.py'}:guide", "steps": 1, "run": tmp_path / "run"}
    options["sampler_steps"] = 64
    with pytest.warns(UserWarning, match=r"run is not for .*: model.diffusion.H.0 is a lambda"):
        train(**options)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert (tmp_path / "run" / "results.json").exists()


def test_settings_of_a_checkpoint_are_taken_over_or_refused(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    fit(**options, run=run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"max_log_snr": 5.0}))
    rewrite(run, state=lambda s: s | {"config": s["config"] | {"max_log_snr": 5.0}})
    assert load_trained(run)[1].model.diffusion.max_log_snr == 9.0

    def longer(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        key = "ema/diffusion._extra_state"
        text = bytes(tensors[key].tolist()).replace(b'"horizon": 1.0', b'"horizon": 2.0')
        return tensors | {key: torch.tensor(list(text), dtype=torch.uint8)}

    rewrite(run, tensors=longer)
    with pytest.raises(ArchitectureError, match=r"(?s)settings .* horizon is 2.0"):
        load_trained(run)


def test_every_parameter_of_network_and_diffusion_has_moved(trained: Path) -> None:
    run, programs, checkpoint = load_trained(trained)
    start = build(Training.from_config(run.config)).model
    end = checkpoint.part("model")
    for name, parameter in start.named_parameters():
        assert not torch.equal(parameter, end[name]), name
    averaged = dict(programs.model.named_parameters())
    assert any(not torch.equal(averaged[name], end[name]) for name in averaged)
    assert any(name.startswith("diffusion.") for name in averaged)


# -- stopped and resumed ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [{"guide": "learned"}, {"guide": "malda"}, {"model": "Squares", "optimizer": "muon"}],
    ids=["learned", "malda", "muon"],
)
def test_a_stopped_run_resumes_to_the_same_numbers_bit_for_bit(
    tmp_path: Path, tiny: str, options: dict[str, Any], given: dict[str, Any]
) -> None:
    options |= {"batch_size": 100, "micro_batches": 2} | given  # epochs end within batches
    options |= {"steps": 4, "log_every": 3, "measure_every": 4}
    options["model"] = options["model"].replace("Squares", tiny.replace(":Tiny", ":Squares"))
    # one step past the checkpoint of step 2, in the middle of a window
    assert_resumes(3, tmp_path, **options)


@pytest.mark.slow
def test_resume_takes_no_other_settings_and_no_checkpoint_means_from_the_start(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    with stopped_after(2):
        train(**options, run=tmp_path / "young")
    with pytest.raises(CheckpointError, match="no checkpoint was written"):
        evaluate(tmp_path / "young")
    # training starts again: what it wrote before is what it writes now
    young = train(resume=tmp_path / "young")
    assert young == train(**options, run=tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "young")


def test_a_checkpoint_of_another_architecture_is_explained(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    run, mine = tmp_path / "run", tmp_path / "mine.py"
    mine.write_text(TINY)
    fit(**options | {"model": f"{mine}:Tiny"}, run=run)
    mine.write_text(TINY.replace("hidden = 8", "hidden = 12"))
    for attempt in (lambda: evaluate(run), lambda: train(resume=run)):
        with trust.trusting(), pytest.raises(ArchitectureError) as caught:
            attempt()
        text = str(caught.value)
        assert re.search(r"weight: \(8, .*\) in the checkpoint, \(12, .*\) in this model", text)
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["seed"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with trust.trusting(), pytest.raises(RunError, match="lacks the setting 'seed'"):
        evaluate(run)


# -- nothing is overwritten ------------------------------------------------------------------------


@pytest.mark.slow
def test_nothing_is_overwritten_unless_asked(
    tmp_path: Path, trained: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(RunError, match="already holds a run"):
        train(**options, run=trained)
    out = tmp_path / "samples.png"
    out.write_text("mine")
    with pytest.raises(RunError, match=r"exists; give another --out"):
        sample(trained, out=out)
    assert out.read_text() == "mine"
    sample(trained, num_samples=2, steps=2, out=out, overwrite=True)
    assert out.read_bytes().startswith(b"\x89PNG")


def test_samples_are_a_function_of_the_seed(tmp_path: Path, trained: Path) -> None:
    _, programs, _ = load_trained(trained)
    state = torch.get_rng_state()
    x = draw(programs.model, 6, steps=2, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert x.shape == (6, 2) and bool(x.isfinite().all())
    assert torch.equal(x, draw(programs.model, 6, steps=2, seed=1))
    assert not torch.equal(x, draw(programs.model, 6, steps=2, seed=2))
    sample(trained, num_samples=6, steps=2, seed=1, out=tmp_path / "x.npy")
    assert np.array_equal(np.load(tmp_path / "x.npy"), x.numpy())


@pytest.mark.quick
def test_the_bound_adds_up(trained: Path) -> None:
    _, programs, _ = load_trained(trained)
    bound = measure(programs, programs.problem.test, draws=64)
    parts = (bound.reconstruction, bound.prior_kl, bound.diffusion)
    assert bound.bits_per_dim[0] == pytest.approx(sum(value for value, _ in parts))
    # six steps from a Gaussian fit of Gaussian data: its entropy in bits/dim, to a few errors
    sigma = torch.tensor([1.0, 0.3])
    entropy = (0.5 * torch.log2(2 * torch.pi * torch.e * sigma**2)).mean().item()
    assert bound.bits_per_dim[0] == pytest.approx(entropy, abs=4 * bound.bits_per_dim[1] + 0.1)
    # the raw integrand by interval is another, noisier estimate of the same term
    total = sum(bound.diffusion_by_log_snr)
    error = sum(e**2 for e in bound.diffusion_by_log_snr_error) ** 0.5
    assert total == pytest.approx(bound.diffusion[0], abs=5.5 * (error + bound.diffusion[1]))


# -- names -----------------------------------------------------------------------------------------


def test_a_guide_of_ones_own_from_a_module_and_from_a_file(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    name = "inference.guides.damped_chain:DampedChain"
    assert build_diffusion(Guide(guide=name, max_log_snr=9.0)).max_log_snr == 9.0
    (tmp_path / "mine.py").write_text(
        "from pyro_mdm import CLD, LinearDiffusion\n"
        "class Mine(LinearDiffusion):\n"
        "    def __init__(self, max_log_snr=1.0):\n"
        "        Q, D = [[0.0, -2.0], [2.0, 0.0]], [[0.0, 0.0], [0.0, 3.0]]\n"
        "        super().__init__(Q, D, max_log_snr=max_log_snr)\n"
        "ready = CLD(max_log_snr=5.0)\n"
        "def made(): return CLD(max_log_snr=6.0)\n"
        "def wrong(): return 3\n"
        "def needy(mass): return CLD()\n"
        "class Unrelated: pass\n"
    )

    def built(name: str) -> Any:
        return build_diffusion(Guide(guide=f"{tmp_path}/mine.py:{name}", max_log_snr=9.0))

    mine = built("Mine")
    assert mine.Q[1, 0] == 2.0 and mine.max_log_snr == 9.0
    assert built("ready").max_log_snr == 5.0 and built("made").max_log_snr == 6.0
    refused(
        (TypeError, NameNotFoundError),
        (lambda: built("wrong"), "wrong returns 3, expected a Diffusion"),
        (lambda: built("Unrelated"), "Unrelated is the class Unrelated, expected a Diffusion"),
        (lambda: built("needy"), "needy cannot be called with"),
        (lambda: built("Nine"), r"has no 'Nine'; it defines .*Mine"),
    )

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        train(**options | {"guide": "mine.py:Mine", "steps": 2}, run=tmp_path / "run")
    assert load_trained(tmp_path / "run")[1].model.diffusion.D[1, 1] == 3.0  # from any folder


@pytest.mark.slow
def test_a_part_of_the_test_data_is_measured_if_asked(
    tmp_path: Path, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(**options, run=tmp_path / "whole")
    some = train(**options, test_size=10, run=tmp_path / "some")
    assert (whole.num_data, some.num_data) == (20, 10)
    _, programs, _ = load_trained(tmp_path / "some")
    data, seed = programs.problem.test[1::2], Run.open(tmp_path / "some").config["seed"]
    expected = measure(programs, data, draws=options["draws"], seed=seed)
    assert some.bits_per_dim == expected.bits_per_dim  # of every other one, with the run's noise
    more = train(**options, test_size=50, run=tmp_path / "more")
    assert more.bits_per_dim == whole.bits_per_dim
    evaluate(tmp_path / "some", draws=2, accelerator="cpu")
    assert "20 test data" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_names_its_step(tmp_path: Path, options: dict[str, Any]) -> None:
    run = tmp_path / "run"
    options |= {"learning_rate": 1e30, "warmup": 1, "checkpoint_every": 1, "log_every": 1}
    with (
        warnings.catch_warnings(),
        pytest.raises(FloatingPointError, match=r"step (\d+): the loss is (nan|inf)") as caught,
    ):
        warnings.simplefilter("ignore", UserWarning)  # Pyro's, of the same NaN
        train(**options, run=run)
    step = int(re.findall(r"step (\d+)", str(caught.value))[0])
    assert 0 < step == latest_checkpoint(run / "checkpoints").step


def test_what_fails_at_the_first_step_blames_no_learning_rate_and_no_checkpoint(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    options |= {"checkpoint_every": 6, "measure_every": 6, "steps": 6}

    schedule, usual = trainer.schedule, MLP.forward

    def failing(step: int) -> str:
        def rate(at: int, *rest: Any) -> float:
            return 1e30 if at == step - 1 else schedule(at, *rest)

        with monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Pyro's, of the same NaN
            patch.setattr(trainer, "schedule", rate)
            if step == 0:
                patch.setattr(MLP, "forward", lambda *inputs: usual(*inputs) * math.nan)
            with pytest.raises(FloatingPointError, match=f"step {step}: the loss is") as caught:
                train(**options, run=run)
        return str(caught.value)

    first = failing(0)
    assert "no learning rate is at fault: look at the data" in first and "checkpoint" not in first
    second = failing(1)  # in the same folder: nothing of the first is worth keeping
    assert second.endswith("--diffusion_learning_rate; no checkpoint was written yet")
    options["checkpoint_every"] = 1
    assert failing(2).endswith("--diffusion_learning_rate; the last checkpoint is good")
    with pytest.raises(RunError, match="already holds a run"):
        train(**options, run=run)


def test_a_batch_of_ones_own_data_is_no_larger_than_they_are(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    (tmp_path / "few.py").write_text(TINY + "\n\nTiny.batch_size = 1000\n")
    options |= {"model": f"{tmp_path / 'few.py'}:Tiny", "steps": 1}
    fit(**options, run=tmp_path / "run")
    assert (
        Run.open(tmp_path / "run").config["batch_size"] == 160
    )  # of 200, without test, validation


def test_a_start_that_nobody_asked_for_is_noted(
    tmp_path: Path, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text("from pyro_mdm import CLD\nearly = CLD(max_log_snr=5.0)\n")
    guides = {f"{tmp_path / 'mine.py'}:early": True, "cld": False}
    guides["inference.guides.published:vpsde_at_time"] = False  # at 9.2, which is at its time
    for i, (guide, noted) in enumerate(guides.items()):
        fit(**options | {"guide": guide, "steps": 1}, run=tmp_path / str(i))
        note = "early starts at log SNR 5, where .*Tiny would have 9; a guide with a keyword max_"
        assert bool(re.search(note, capsys.readouterr().out)) == noted


HALF = """
from pyro_mdm import LinearDiffusion


def half(**options):
    return LinearDiffusion([[0.0, -1.0], [1.0, 0.0]], [[0.5, 0.0], [0.0, 0.5]], **options)
"""


def objectives(run: Path) -> pd.DataFrame:
    rows = pd.read_csv(run / "metrics.csv")
    return rows[rows.part == "objective"][["bits_per_dim", "gradient_norm"]]


@pytest.mark.slow
@pytest.mark.parametrize(("score", "end"), [("noise", {}), ("denoiser", {"min_log_snr": -10.0})])
def test_a_frozen_diffusion_is_a_fixed_one(
    tmp_path: Path, options: dict[str, Any], score: str, end: dict[str, float]
) -> None:
    (tmp_path / "half.py").write_text(HALF)
    options |= {"score": score, "steps": 4, "log_every": 1, "clip": 0.5, "guide": "learned"}
    frozen = {"diffusion_learning_rate": 0.0, "run": tmp_path / "frozen"}
    bound = train(**options | frozen)
    own = {"guide": f"{tmp_path / 'half.py'}:half", "run": tmp_path / "fixed", **end}
    fixed = train(**options | own)
    # the loss and the gradient that is clipped, of which the diffusion has no part
    found, expected = objectives(tmp_path / "frozen"), objectives(tmp_path / "fixed")
    assert len(found) == 4
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(bound.bits_per_dim, fixed.bits_per_dim, rtol=1e-4)
    for part in ("model", "ema"):
        tensors = latest_checkpoint(tmp_path / "frozen" / "checkpoints").part(part)
        assert torch.equal(tensors["diffusion.lower"], torch.ones(1, dtype=torch.float64))
        B = 0.5**0.5 * torch.eye(2, dtype=torch.float64)
        torch.testing.assert_close(tensors["diffusion.B"], B, rtol=1e-15, atol=0)
    if score == "noise":  # trained, it has another gradient at the first step and moves
        train(**options, run=tmp_path / "trained")
        moved = objectives(tmp_path / "trained")
        assert moved.bits_per_dim.iloc[0] == pytest.approx(expected.bits_per_dim.iloc[0], rel=1e-5)
        assert moved.gradient_norm.iloc[0] > 1.001 * expected.gradient_norm.iloc[0]
        _, programs, _ = load_trained(tmp_path / "trained")
        assert (programs.model.diffusion.Q[1, 0] - 1).abs() > 1e-4


@pytest.mark.parametrize(
    ("name", "score", "end"), [("malda", "denoiser", -10.0), ("alda", "noise", None)]
)
def test_a_learned_guide_can_start_from_another(
    tmp_path: Path, options: dict[str, Any], name: str, score: str, end: float | None
) -> None:
    options |= {"score": score, "steps": 1, "log_every": 1, "measure_every": 1}
    learned = {"guide": "learned", "learned_from": name, "run": tmp_path / "learned"}
    fit(**options | learned)
    fit(**options | {"guide": name, "min_log_snr": end, "run": tmp_path / "fixed"})
    found, expected = objectives(tmp_path / "learned"), objectives(tmp_path / "fixed")
    assert found.bits_per_dim.iloc[0] == pytest.approx(expected.bits_per_dim.iloc[0], rel=1e-5)
    run, programs, _ = load_trained(tmp_path / "learned")
    fixed, diffusion = load_trained(tmp_path / "fixed")[1].model.diffusion, programs.model.diffusion
    assert diffusion.num_variables == fixed.num_variables and run.config["learned_from"] == name
    torch.testing.assert_close(diffusion.D, fixed.D, rtol=0, atol=0.1)
    assert diffusion.max_log_snr == fixed.max_log_snr


@pytest.mark.slow
def test_a_learned_guide_of_ones_own_ends_where_learned_does(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    (tmp_path / "mine.py").write_text(
        "from pyro_mdm import CLD, LearnedDiffusion\n"
        "class Mine(LearnedDiffusion):\n"
        "    def __init__(self, **options): super().__init__(2, **options)\n"
        "def cut(max_log_snr): return LearnedDiffusion(2, max_log_snr=max_log_snr)\n"
        "def own(): return LearnedDiffusion(2, min_log_snr=-7.0)\n"
        "def fixed(max_log_snr): return CLD(max_log_snr=max_log_snr)\n"
        "ready = LearnedDiffusion(2, max_log_snr=9.0)\n"
    )

    def end(guide: str, **others: Any) -> float:
        name = guide if guide == "learned" else f"{tmp_path}/mine.py:{guide}"
        asked = with_recipe(Training(**options | {"guide": name} | others))
        decided = decide(asked, build(asked))
        diffusion = build(decided).model.diffusion  # as from config.yaml alone
        assert decided.min_log_snr == (
            others.get("min_log_snr") if guide in ("learned", "own") else diffusion.min_log_snr
        )
        return diffusion.terminal_log_snr.item()

    own_clock = build_diffusion(Guide(guide="learned", max_log_snr=9.0)).terminal_log_snr.item()
    assert end("learned") == end("Mine") == end("cut") == end("ready") == -10.0
    assert end("own") == -7.0  # says so itself
    assert end("Mine", score="noise") == pytest.approx(own_clock)
    for guide in ("cut", "fixed", "own"):  # also where a guide does not take it
        assert end(guide, min_log_snr=-8.0) == -8.0
    # the same diffusion in the same run, whatever it is called
    bounds = [
        train(**options | {"guide": name}, run=tmp_path / f"same-{i}").bits_per_dim
        for i, name in enumerate(("learned", f"{tmp_path}/mine.py:cut"))
    ]
    assert bounds[0] == bounds[1]


LOSING = """
import torch
from pyro_mdm import LearnedDiffusion


class Losing(LearnedDiffusion):
    def __init__(self, **options):
        super().__init__(2, rank=1, **options)

    @property
    def Q(self):  # as if training had led to 0
        moved = (self.lower.detach() - 1).abs() > 0.02
        return super().Q * torch.where(moved, 0.0, 1.0)
"""


def test_a_diffusion_that_loses_its_coupling_names_its_step_and_its_matrices(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    (tmp_path / "mine.py").write_text(LOSING)
    options |= {"guide": f"{tmp_path}/mine.py:Losing", "score": "noise", "warmup": 1}
    options |= {"measure_every": 6, "checkpoint_every": 1, "diffusion_learning_rate": 0.015}
    message = (
        r"error: step (\d): Losing: noise reaches 1 of 2 variables with Q = .*, D = .*rank"
        r"\. If training led the diffusion here, lower --diffusion_learning_rate; the last "
        r"checkpoint is good"
    )
    with pytest.raises(SystemExit, match=message):
        words = [f"--{k}={v}" for k, v in options.items()]
        run_program("train", *words, f"--run={tmp_path / 'run'}")
    assert latest_checkpoint(tmp_path / "run" / "checkpoints").step > 0


# -- the recipe ------------------------------------------------------------------------------------


def test_every_epoch_holds_every_datum_once_whatever_the_batch_size() -> None:
    indices = torch.cat([training.indices(step, 7, 20, seed=3) for step in range(20)])
    assert len(indices) == 140
    epochs = indices.reshape(7, 20)
    assert torch.equal(epochs.sort(1).values, torch.arange(20).expand(7, 20))
    assert len({tuple(e.tolist()) for e in epochs}) == 7  # another order each time
    assert not torch.equal(training.indices(0, 20, 20, 3), training.indices(0, 20, 20, 4))


@pytest.mark.slow
def test_the_diffusion_has_its_own_rate(trained: Path) -> None:
    _, programs, _ = load_trained(trained)
    settings = Optimization(learning_rate=1e-3, diffusion_learning_rate=0.02)
    names, optimizer = recipe.optimizer(programs.model, settings)
    network, diffusion = optimizer.param_groups
    assert (network["lr"], diffusion["lr"]) == (1e-3, 0.02)
    assert network["weight_decay"] == diffusion["weight_decay"] == 0.0
    own = {id(p) for p in programs.model.diffusion.parameters()}
    assert {id(p) for p in diffusion["params"]} == own
    parameters = dict(programs.model.named_parameters())
    flat = [p for group in optimizer.param_groups for p in group["params"]]
    assert [id(parameters[n]) for n in names] == [id(p) for p in flat]
    assert len(flat) == len(parameters)


def test_mean_and_error_from_sums() -> None:
    values, window = torch.tensor([1.0, 2.0, 4.0, 9.0], dtype=torch.float64), recipe.LossWindow()
    for value in values.tolist():
        window.add(value)
    assert window.mean_and_error == pytest.approx(Measured.from_values(values))
