"""Training in trouble and in company: killed, stopped, out of numbers, in several processes."""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch import Tensor

from inference.drawing import sampling
from inference.folders.checkpoints import RunError, latest_checkpoint
from inference.folders.loading import load_trained
from inference.folders.runs import Run
from inference.machine.processes import Stopped, catch_signals
from inference.measuring.bounds import RunBound
from inference.train import check_alike, train
from inference.training import report
from inference.training.batches import Batches
from models import DataError
from pyro_mdm import CLD, Denoiser, DiffusionGuide, DiffusionModel
from pyro_mdm.evaluation.comparison import log_likelihood
from pyro_mdm.networks import MLP, UNet
from pyro_mdm.training import indices
from tests.brief import be_brief_here
from tests.processes import ROOT, Program, finish, signalled, together
from tests.programs.running import TINY, assert_resumes, assert_same_run, stopped_after

pytestmark = pytest.mark.usefixtures("brief")
CPU = torch.device("cpu")


@pytest.fixture
def options(tiny: str) -> dict[str, Any]:
    return short(tiny)


def short(model: str) -> dict[str, Any]:
    return {
        "model": model,
        "guide": "cld",
        "draws": 2,
        "num_samples": 4,
        "sampler_steps": 4,
        "log_every": 1,
        "measure_every": 4,
        "checkpoint_every": 2,
        "accelerator": "cpu",
        "figures": False,
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny: str) -> tuple[Path, RunBound]:
    """A run of the short options, and its bound; tests only read it."""
    run = tmp_path_factory.mktemp("short") / "run"
    return run, train(**short(tiny), run=run)


def given(options: dict[str, Any]) -> list[str]:
    """Options as words of a command line."""
    return [f"--{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in options.items()]


def objective(run: Path) -> pd.DataFrame:
    """The sequence of losses, one row for each step."""
    table = pd.read_csv(run / "metrics.csv")
    columns = ["step", "bits_per_dim", "gradient_norm", "learning_rate"]
    return table[table.part == "objective"][columns].reset_index(drop=True)


def assert_close(one: Path, other: Path, rtol: float) -> None:
    """The same losses, weights and results, but for rounding."""
    pd.testing.assert_frame_equal(objective(one), objective(other), rtol=rtol)
    first, second = (latest_checkpoint(p / "checkpoints") for p in (one, other))
    assert first.step == second.step and first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        if tensor.is_floating_point():
            atol = rtol * max(1e-3, tensor.abs().max().item())
            torch.testing.assert_close(tensor, second.tensors[name], rtol=rtol, atol=atol, msg=name)
    results = [json.loads((p / "results.json").read_text()) for p in (one, other)]
    values = [r["bits_per_dim"]["value"] for r in results]
    assert values[0] == pytest.approx(values[1], rel=rtol)


# -- in pieces and in several processes ------------------------------------------------------------


@pytest.mark.slow
def test_micro_batches_change_nothing_but_rounding(tmp_path: Path, options: dict[str, Any]) -> None:
    options |= {"score": "noise", "guide": "learned"}
    train(**options, run=tmp_path / "whole")
    train(**options, micro_batches=4, run=tmp_path / "pieces")
    assert_close(tmp_path / "whole", tmp_path / "pieces", 2e-3)
    first, second = (objective(tmp_path / run) for run in ("whole", "pieces"))
    pd.testing.assert_frame_equal(first[:2], second[:2], rtol=1e-5)  # before rounding grows


@pytest.mark.slow
@pytest.mark.other_processes
def test_two_processes_go_on_where_one_stopped_and_give_its_numbers(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    """Of the program with most to share: a learned diffusion whose log SNR at T moves."""
    options |= {"score": "noise", "guide": "learned", "micro_batches": 2}
    train(**options, run=tmp_path / "one")
    with stopped_after(3):
        train(**options, run=tmp_path / "two")
    assert latest_checkpoint(tmp_path / "two" / "checkpoints").step == 2
    out = together(2, "inference.train", "--resume", tmp_path / "two")
    assert "step 2 of 6, 2 processes" in out and out.count("bits/dim") == 1  # one of them speaks
    assert_close(tmp_path / "one", tmp_path / "two", 2e-3)
    first, second = (objective(tmp_path / run) for run in ("one", "two"))
    pd.testing.assert_frame_equal(first[:4], second[:4], rtol=1e-4)
    sessions = (tmp_path / "two" / "sessions.jsonl").read_text().splitlines()
    assert [json.loads(line)["processes"] for line in sessions] == [1, 2]
    # the same evaluation, shared: the last lines agree to the last digit shown
    words = [tmp_path / "two", "--draws=4", "--batch_size=4", "--accelerator=cpu"]
    shared = together(2, "inference.evaluate", *words).splitlines()
    alone = finish(Program("inference.evaluate", *words)).splitlines()
    assert shared == alone


SHARED = """
import sys
import torch
from pyro_mdm import CLD, VPSDE, DiffusionGuide, DiffusionModel, DiscreteDenoiser, NoisePrediction
from pyro_mdm.evaluation import compare
from pyro_mdm.networks import MLP

torch.distributed.init_process_group("gloo")
torch.manual_seed(0)
levels = torch.linspace(-1, 1, 5)
x = levels[torch.randint(5, (45, 3))]
cld, vpsde = CLD(max_log_snr=6.0), VPSDE(max_log_snr=5.0)
scores = DiscreteDenoiser.fit(MLP(3, 8, 1, 15), x, 5), NoisePrediction(MLP(3, 8, 1))
models = [DiffusionModel(d, s, event_shape=(3,)) for d, s in zip((cld, vpsde), scores)]
pairs = {str(i): (m, DiffusionGuide(m.diffusion)) for i, m in enumerate(models)}
for options in ({"draws": 3}, {"draws": 16, "half_width": 0.4}):
    options |= {"batch_size": 8}
    seen = []
    for score in scores:
        score.network.register_forward_hook(lambda m, a, out: seen.append(len(out)))
    alone = compare(pairs, x, **options)
    calls_alone, number = sum(seen), len(seen)
    shared = compare(pairs, x, **options, distributed=True)
    calls = sum(seen[number:])
    assert 0.3 * calls_alone < calls < 0.7 * calls_alone, (calls, calls_alone)
    assert alone.network_calls == shared.network_calls and alone.reached == shared.reached
    for name, a in alone.estimates.items():
        b = shared.estimates[name]
        assert a.network_calls == b.network_calls
        for field in ("per_datum", "per_datum_error", "density", "density_error"):
            torch.testing.assert_close(
                getattr(a, field), getattr(b, field), rtol=1e-9, atol=1e-9, equal_nan=True
            )
        assert abs(a.mean - b.mean) < 1e-10 and abs(a.standard_error - b.standard_error) < 1e-10
    a, b = alone.differences[0], shared.differences[0]
    assert abs(a.bits_per_dim[0] - b.bits_per_dim[0]) < 1e-10 and a.resolved == b.resolved
print("same")
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_a_shared_evaluation_is_that_of_one_process_at_half_the_calls(tmp_path: Path) -> None:
    (tmp_path / "shared.py").write_text(SHARED)
    assert together(2, str(tmp_path / "shared.py")).count("same") == 2
    with pytest.raises(RuntimeError, match="distributed=True, but this process belongs to no"):
        log_likelihood(*pair_of_programs(), torch.zeros(8, 2), distributed=True)


def pair_of_programs() -> tuple[DiffusionModel, DiffusionGuide]:
    diffusion = CLD(max_log_snr=6.0)
    model = DiffusionModel(diffusion, Denoiser(MLP(2, 8, 1)), event_shape=(2,))
    return model, DiffusionGuide(diffusion)


# -- what a batch holds ----------------------------------------------------------------------------


def test_batches_are_those_of_the_step_whatever_was_asked_before() -> None:
    data = torch.arange(40, dtype=torch.uint8).reshape(40, 1, 1, 1)
    batches = Batches(data, 8, 3, CPU)
    for step in (0, 1, 2, 7, 3, 4):
        (found,) = batches(step)
        assert torch.equal(found, data[indices(step, 8, 40, 3)])
    halves = [Batches(data, 8, 3, CPU, pieces=(range(r, r + 1), 2)) for r in range(2)]
    parts = [half(5)[0] for half in halves]
    assert torch.equal(torch.stack(parts, 1).flatten(0, 1), data[indices(5, 8, 40, 3)])


def test_flips_mirror_half_of_the_images_and_pieces_agree_on_which() -> None:
    data = torch.arange(3, dtype=torch.uint8).expand(400, 1, 2, 3).contiguous()
    batches = Batches(data, 400, 3, CPU, flip=True)
    (found,) = batches(0)
    mirrored = (found == data.flip(-1)).flatten(1).all(1)
    assert bool(((found == data).flatten(1).all(1) | mirrored).all())
    assert 160 < int(mirrored.sum()) < 240  # 200 ± 10
    assert torch.equal(batches(0)[0], found)
    assert not torch.equal(batches(1)[0], found)
    piece = Batches(data, 400, 3, CPU, pieces=(range(1, 2), 4), flip=True)
    assert torch.equal(piece(0)[0], found[1::4])


# -- precision, compilation, memory format ---------------------------------------------------------


@pytest.fixture(scope="module")
def plain_bits(tmp_path_factory: pytest.TempPathFactory, tiny: str) -> float:
    """Bits/dim of images in full precision."""
    options = short(tiny.replace(":Tiny", ":Squares"))
    return train(**options, run=tmp_path_factory.mktemp("plain") / "run").bits_per_dim[0]


@pytest.mark.slow
def test_mixed_precision_is_the_network_s_alone_and_resumes(
    tmp_path: Path, tiny: str, options: dict[str, Any], plain_bits: float
) -> None:
    """Levels stay levels: a discrete likelihood would refuse rounded data."""
    options |= {"model": tiny.replace(":Tiny", ":Squares"), "precision": "bf16-mixed"}
    whole = assert_resumes(3, tmp_path, **options)
    assert math.isfinite(whole.bits_per_dim[0])
    state = latest_checkpoint(tmp_path / "whole" / "checkpoints").state
    assert not state["loss_scale"]
    assert whole.bits_per_dim[0] != plain_bits
    assert whole.bits_per_dim[0] == pytest.approx(plain_bits, abs=0.02)


@pytest.mark.slow
def test_double_precision_is_of_all_and_resumes(
    tmp_path: Path, tiny: str, options: dict[str, Any], plain_bits: float
) -> None:
    squares = tiny.replace(":Tiny", ":Squares")
    options |= {"model": squares, "precision": "64-true"}
    whole = assert_resumes(3, tmp_path, **options)
    weights = latest_checkpoint(tmp_path / "whole" / "checkpoints").part("ema")
    assert {t.dtype for t in weights.values() if t.is_floating_point()} == {torch.float64}
    assert whole.bits_per_dim[0] == pytest.approx(plain_bits, abs=0.4)  # other random numbers
    _, programs, _ = load_trained(tmp_path / "whole")
    assert programs.problem.to_model_space(programs.problem.test[:2]).dtype == torch.float64
    assert sampling.draw(programs.model, 2, steps=2).dtype == torch.float64


def test_a_log_snr_beyond_single_precision_takes_double(tmp_path: Path, tiny: str) -> None:
    settings = short(tiny) | {"guide": "inference.guides.published:alda_at_time", "score": "noise"}
    settings |= {"times": "vpsde"}
    with pytest.raises(ValueError, match=r"max_log_snr is 48.*torch.float32"):
        train(**settings, run=tmp_path / "single")
    bound = train(**settings, precision="64-true", run=tmp_path / "double")
    assert math.isfinite(bound.bits_per_dim[0])


@pytest.mark.slow
def test_a_loss_scale_that_is_too_large_falls_and_costs_steps_not_the_run(
    tmp_path: Path, tiny: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    options |= {"model": tiny.replace(":Tiny", ":Squares"), "precision": "16-mixed"}
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device: scaler(device, init_scale=2.0**40))
    train(**options, run=tmp_path / "run")
    checkpoint = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert checkpoint.state["loss_scale"]["scale"] < 2.0**40
    assert checkpoint.state["averages"] < 6  # some steps were skipped
    assert all(bool(t.isfinite().all()) for t in checkpoint.part("model").values())
    # the scale is part of what a run resumes
    with stopped_after(5):
        train(**options, run=tmp_path / "stopped")
    train(resume=tmp_path / "stopped")
    assert_same_run(tmp_path / "run", tmp_path / "stopped")
    again = latest_checkpoint(tmp_path / "stopped" / "checkpoints")
    assert again.state["loss_scale"] == checkpoint.state["loss_scale"]
    assert again.state["averages"] == checkpoint.state["averages"]


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_numbers_under_the_same_names(
    tmp_path: Path, options: dict[str, Any], whole: tuple[Path, RunBound]
) -> None:
    train(**options, compile="aot_eager", run=tmp_path / "compiled")
    assert_close(whole[0], tmp_path / "compiled", 1e-3)


@pytest.mark.slow
def test_channels_last_reach_the_network_and_are_gone_from_checkpoints(
    tmp_path: Path, tiny: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    options |= {"model": tiny.replace(":Tiny", ":Squares"), "network": "plain"}
    train(**options, run=tmp_path / "plain")
    seen, forward = [], UNet.forward

    def spy(network: UNet, *arguments: Tensor) -> Tensor:
        weight = network.down[0].first.weight
        seen.append(weight.is_contiguous(memory_format=torch.channels_last))
        return forward(network, *arguments)

    monkeypatch.setattr(UNet, "forward", spy)
    train(**options, channels_last=True, run=tmp_path / "last")
    assert seen and all(seen)
    first, second = (objective(tmp_path / run)[:3] for run in ("plain", "last"))
    pd.testing.assert_frame_equal(first, second, rtol=1e-3)  # before rounding grows
    assert all(t.is_contiguous() for t in load_trained(tmp_path / "last")[2].tensors.values())


def test_the_average_is_measured_beside_the_weights_as_they_are(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    train(**options | {"learning_rate": 0.05}, run=tmp_path / "run")
    table = pd.read_csv(tmp_path / "run" / "metrics.csv").set_index(["part", "step"])
    average = table.loc["validation"].bits_per_dim
    current = table.loc["validation_unaveraged"].bits_per_dim
    assert average.index.tolist() == current.index.tolist() == [4, 6]
    assert (average != current).all()


def test_a_constant_rate_after_warm_up(tmp_path: Path, options: dict[str, Any]) -> None:
    options |= {"steps": 20, "checkpoint_every": 20, "measure_every": 20}
    train(**options, decay="constant", warmup=2, learning_rate=1e-3, run=tmp_path / "run")
    rates = objective(tmp_path / "run").learning_rate.tolist()
    assert rates == pytest.approx([5e-4] + [1e-3] * 19)


# -- killed, stopped -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_options(tiny: str) -> dict[str, Any]:
    """Some seconds of steps, with a checkpoint after every third."""
    few = {"draws": 1, "num_samples": 1, "sampler_steps": 1}
    often = {"steps": 72, "measure_every": 100, "checkpoint_every": 3}
    return short(tiny) | {"guide": "learned"} | few | often


@pytest.fixture(scope="module")
def uninterrupted(made_once: Callable[..., Path], long_options: dict[str, Any]) -> Path:
    folder = made_once("uninterrupted", lambda folder: train(**long_options, run=folder / "run"))
    return folder / "run"


@pytest.mark.slow
@pytest.mark.other_processes
def test_killed_again_and_again_the_losses_are_those_of_an_uninterrupted_run(
    tmp_path: Path, long_options: dict[str, Any], uninterrupted: Path
) -> None:
    """SIGKILL at random moments of writing, of a checkpoint or of a row."""
    run, moments = tmp_path / "run", random.Random(0)
    words = given(long_options | {"run": run})
    for _ in range(3):
        killed = signalled(signal.SIGKILL, moments.randint(30, 50), str(run), be_brief_here)
        process = Program("inference.train", *words, before=killed)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (run / "results.json").exists()
        words = ["--resume", str(run)]
    finish(Program("inference.train", *words, before=be_brief_here))
    assert_same_run(uninterrupted, run)
    assert len((run / "sessions.jsonl").read_text().splitlines()) == 4
    assert not list(run.rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.other_processes
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_and_exits(
    tmp_path: Path, long_options: dict[str, Any], uninterrupted: Path, number: int
) -> None:
    run = tmp_path / "run"
    options = long_options | {"run": run, "checkpoint_every": 200}
    asked = signalled(number, 8, "metrics.csv", be_brief_here)
    process = Program("inference.train", *given(options), before=asked)
    out, err = process.communicate()
    assert process.returncode == 128 + number, err
    step = int(re.findall(r"stopped by a signal at step (\d+) and saved", out)[0])
    assert 1 <= step < 72 and latest_checkpoint(run / "checkpoints").step == step
    assert objective(run).step.tolist() == list(range(1, step + 1))  # nothing is lost
    if number == signal.SIGTERM:
        finish(Program("inference.train", "--resume", run, before=be_brief_here))
        pd.testing.assert_frame_equal(objective(run), objective(uninterrupted), check_exact=True)


@pytest.mark.slow
def test_all_processes_stop_together(tmp_path: Path, long_options: dict[str, Any]) -> None:
    run = tmp_path / "run"
    options = long_options | {"run": run, "checkpoint_every": 200, "steps": 4000}
    words = ["--standalone", "--nproc_per_node=2", "--start-method=fork", "--run-path", "--"]
    words += [str(ROOT / "inference" / "train.py"), *given(options)]
    launcher = Program("torch.distributed.run", *words, before=os.setsid)
    try:
        while not (run / "metrics.csv").exists() or len(objective(run)) < 5:
            assert launcher.poll() is None, launcher.communicate()[1]
            time.sleep(0.01)
        launcher.send_signal(signal.SIGTERM)  # which it tells its processes
        out, _ = launcher.communicate()
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
    step = int(re.findall(r"stopped by a signal at step (\d+) and saved", out)[0])
    assert latest_checkpoint(run / "checkpoints").step == step


def test_a_signal_in_the_last_measurement_stops_before_the_evaluation(
    tmp_path: Path, options: dict[str, Any], whole: tuple[Path, RunBound]
) -> None:
    """And what was not measured is measured when the run goes on, once."""
    uninterrupted, bound = whole
    measure = report.at_step

    def interrupted(*arguments: Any, **more: Any) -> None:
        if arguments[4] == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        measure(*arguments, **more)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped) as stopped:
        patch.setattr(report, "at_step", interrupted)
        train(**options, run=tmp_path / "run")
    assert stopped.value.code == 143 and not (tmp_path / "run" / "results.json").exists()
    assert train(resume=tmp_path / "run") == bound
    assert_same_run(uninterrupted, tmp_path / "run")


def test_signals_are_caught_within_the_block_and_nowhere_else() -> None:
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    with catch_signals() as caught:
        assert caught.number == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert caught.number == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert {n: signal.getsignal(n) for n in before} == before
    assert Stopped(signal.SIGTERM).code == 143


# -- refused ---------------------------------------------------------------------------------------


def test_processes_without_their_launcher_are_refused(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"WORLD_SIZE is 2, but .* not started by torchrun"):
        train(**options)


def test_a_data_set_of_one_s_own_may_have_any_attribute_and_its_file_is_kept(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(TINY.replace('name = "tiny"', 'name, root = "tiny", "elsewhere"'))
    train(**options | {"model": f"{path}:Tiny", "steps": 2}, run=tmp_path / "run")
    assert load_trained(tmp_path / "run")[1].problem.root == "elsewhere"
    assert (tmp_path / "run" / "sources" / "mine.py").read_text() == path.read_text()


def test_a_full_disk_under_tensorboard_is_explained_too(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        with open("/dev/full", "w") as file:
            file.write("event")

    monkeypatch.setattr(report, "objective", full)
    with pytest.raises(RunError, match=r"tensorboard could not be written: No space left"):
        train(**options, run=tmp_path / "run")
    Run.resume(tmp_path / "run").close()  # the lock is free again


@pytest.mark.slow
def test_moved_data_are_looked_for_where_the_run_says(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    np.savez(tmp_path / "mine.npz", images=np.zeros((100, 8, 8), np.uint8))
    options |= {"model": "images", "data": tmp_path / "mine.npz", "score": "noise", "steps": 1}
    train(**options | {"batch_size": 4}, run=tmp_path / "run")
    (tmp_path / "mine.npz").rename(tmp_path / "moved.npz")
    with pytest.raises(DataError, match=r"(?s)mine\.npz.*config\.yaml says where"):
        load_trained(tmp_path / "run")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    config["data"] = str(tmp_path / "moved.npz")
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    train(resume=tmp_path / "run")


def test_processes_that_would_begin_apart_are_refused(tmp_path: Path) -> None:
    """On several machines one may see an older checkpoint, or other data."""

    class Second:
        global_rank = 1

        def broadcast(self, mine: Any) -> Any:
            return 40, {"train": "a"}

    fabric: Any = Second()
    with Run.create(tmp_path / "run", {}) as run:
        check_alike(fabric, run, (40, {"train": "a"}))
        for mine in ((20, {"train": "a"}), (40, {"train": "b"})):
            with pytest.raises(RunError, match=r"process 1 .* at step .* the same files"):
                check_alike(fabric, run, mine)
