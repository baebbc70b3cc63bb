"""Images restored by a run, and how well their intervals are calibrated."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from inference import restore
from inference.drawing import restoring
from inference.drawing.restoration import Restoration
from inference.folders.loading import load_trained
from inference.folders.runs import RunError
from inference.restore import TASKS, Restored, coverage, psnr, restored
from inference.train import train
from models import Digits, Toy
from pyro_mdm import CLD
from pyro_mdm.measurements import Mask, covariance
from pyro_mdm.support.measured import student_factor
from tests.brief import SHORT, be_brief
from tests.programs.running import run_program

PIXEL = torch.zeros(3, 1, 1, dtype=torch.uint8)
"""In place of a picture."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("restoring") / "run"
    options: dict[str, Any] = SHORT | {"model": "digits", "guide": "cld", "steps": 2}
    with pytest.MonkeyPatch.context() as patch:
        be_brief(patch)
        train(run=folder, figures=False, **options)
    return folder


@pytest.mark.slow
def test_every_task_of_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ("--num_images", 2, "--steps", 2, "--accelerator", "cpu")
    for task in TASKS:
        out = tmp_path / f"{task}.png"
        run_program("restore", run, "--task", task, *few, "--out", out)
        said = capsys.readouterr().out.splitlines()
        number = r"-?\d+(\.\d+)? ± \d+(\.\d+)?"  # of two images, with a wide error
        assert re.fullmatch(
            rf"{task} of 2 test images, 19 samples of each: PSNR {number} dB of the posterior "
            rf"mean, {number} of a sample; 90% intervals contain {number}% of the pixels; "
            r"samples .*",
            said[-2],
        )
        assert said[-1] == str(out)
        with Image.open(out) as image:
            assert image.size[0] > 2.5 * image.size[1]  # six columns, two rows


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that are told labels, some of them and always."""
    folder = tmp_path_factory.mktemp("labelled")
    options: dict[str, Any] = SHORT | {"model": "digits", "guide": "vpsde", "steps": 1}
    for name, dropout in (("some", None), ("always", 0.0)):
        with pytest.MonkeyPatch.context() as patch:
            be_brief(patch)
            labels = {"condition": "labels", "context_dropout": dropout, "figures": False}
            train(run=folder / name, **options | labels)
    return folder


@pytest.mark.slow
def test_a_labelled_run_is_told_what_is_given_alone(
    labelled: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By default nothing, and never the true labels without a word."""
    seen: list[Tensor] = []
    learned: list[Tensor] = []
    own = restoring.restored

    def looked_at(model: Any, *arguments: Any, **more: Any) -> Any:
        seen.append(model.score_function.network_context)
        learned.append(more["data"])
        return own(model, *arguments, **more)

    monkeypatch.setattr(restoring, "restored", looked_at)
    monkeypatch.setattr(restoring, "picture", lambda *arguments: PIXEL)

    def said_of(run: str, given: Any = None) -> str:
        few: dict[str, Any] = {"num_images": 3, "steps": 1}
        out = tmp_path / "x.png"
        restore.restore(labelled / run, out=out, overwrite=True, given=given, **few)
        return capsys.readouterr().out

    capsys.readouterr()
    assert "the network is not given the labels of the images; --given is for them" in said_of(
        "some"
    )
    told = "the network is given the labels 3, 5, 3; those of the images are 0, 0, 0"
    problem = Digits()
    problem.condition_on("labels")
    three = problem.part("test")[:3].context
    assert three is not None
    told = told.replace("0, 0, 0", ", ".join(map(str, three.tolist())))
    assert told in said_of("some", [3, 5])
    assert told.replace("3, 5, 3", "4, 4, 4") in said_of("always", 4)
    none, first, second = seen  # one number for each class
    assert none.shape == (3, 10) and not bool(none.any())
    assert first.argmax(1).tolist() == [3, 5, 3] and second.argmax(1).tolist() == [4, 4, 4]
    part = load_trained(labelled / "always")[1].problem.part("train")
    assert part.context is not None
    of_4 = part.data[part.context == 4]
    assert [len(x) for x in learned] == [len(part.data)] * 2 + [len(of_4)]
    assert torch.equal(learned[2], problem.to_model_space(of_4))
    with pytest.raises(ValueError, match=r"always needs a context; expected .* such as --given 3"):
        said_of("always")
    with pytest.raises(ValueError, match="the label 12, expected one of 0 to 9"):
        said_of("some", 12)


@pytest.mark.slow
def test_each_label_is_measured_once_by_its_own_images(
    labelled: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in "abc":
        Image.new("L", (8, 8)).save(tmp_path / f"{name}.png")
    measured: list[int] = []
    made = covariance.DataCovariance.fit

    def counted(x: Tensor) -> Any:
        measured.append(len(x))
        return made(x)

    monkeypatch.setattr(covariance.DataCovariance, "fit", counted)
    monkeypatch.setattr(Restoration, "page", lambda self: PIXEL)
    files = [tmp_path / f"{name}.png" for name in "abc"]
    options: dict[str, Any] = {"task": "denoise", "noise": 0.1, "steps": 1, "accelerator": "cpu"}
    part = load_trained(labelled / "some")[1].problem.part("train")
    assert part.context is not None
    numbers = part.context.bincount().tolist()
    for given, expected in (([3, 5], [numbers[3], numbers[5]]), (None, [len(part.data)])):
        measured.clear()
        out = tmp_path / f"out-{given is None}"
        restore.restore(labelled / "some", data=files, given=given, out=out, **options)
        assert measured == expected and len(list(out.iterdir())) == 6


@pytest.mark.slow
def test_samples_meet_their_own_measurements() -> None:
    """Each image its own, however many are drawn together; seen pixels come back to the noise."""
    torch.manual_seed(0)
    problem = Digits()
    model = problem.build(CLD(max_log_snr=9.0)).eval()
    truth = problem.to_model_space(problem.test[[0, 30]])
    operator = TASKS["inpaint"](problem.event_shape)
    options: dict[str, Any] = {"sampler": "stochastic", "steps": 4, "seed": 1}
    found = restored(model, truth, operator, 0.05, 3, **options)
    assert found.samples.shape == (3, 2, 1, 8, 8) and found.obs.shape == (2, 32)
    seen: Any = operator.seen
    off = (found.samples - truth)[..., seen].abs().mean()
    assert float(off) < 0.1 < 0.3 < float((found.samples - truth)[..., ~seen].abs().mean())
    again = restored(model, truth, operator, 0.05, 3, batch_size=3, **options)
    assert torch.equal(again.obs, found.obs)
    assert float((again.samples != found.samples).float().mean()) < 0.02


@pytest.mark.parametrize("levels", [None, 3])
def test_intervals_of_the_right_law_hold_the_truth_as_often_as_they_say(levels: int | None) -> None:
    """Also for pixels of few levels, where samples often equal the truth; seen pixels are out."""
    torch.manual_seed(0)
    mask = Mask(torch.arange(100).reshape(1, 10, 10) < 60)

    def drawn(*shape: int, scale: float = 1.0) -> Tensor:
        x = scale * torch.randn(*shape, 1, 10, 10)
        return x if levels is None else x.clamp(-1, 1).mul(levels // 2).round()

    truth = drawn(400)
    for S, probability in ((19, 0.9), (39, 0.9), (25, 1 - 2 / 26)):
        said, found = coverage(Restored(truth, truth, drawn(S, 400), mask))
        assert said == pytest.approx(probability)
        assert abs(found.mean - said) < 5.5 * found.standard_error < 0.025
    _, narrow = coverage(Restored(truth, truth, drawn(19, 400, scale=0.6), mask))
    assert narrow.mean < 0.9 - 9 * narrow.standard_error
    samples = drawn(19, 400)
    samples[:, :, mask.seen] = 9.0  # wrong, and not asked about
    _, found = coverage(Restored(truth, truth, samples, mask))
    assert abs(found.mean - 0.9) < 5.5 * found.standard_error


def test_the_signal_to_noise_ratio() -> None:
    x = torch.zeros(2, 1, 4, 4)
    found = psnr(x + torch.tensor([0.2, 0.02]).reshape(2, 1, 1, 1), x)
    assert found.mean == pytest.approx(30) and found.standard_error == pytest.approx(
        10 * student_factor(1)
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--num_samples 18", "--num_samples is 18, expected at least 19"),
        ("--num_images 181", "--num_images is 181, expected at most the 180 test images"),
        ("--noise 0", "--noise is 0.0, expected a positive number"),
        ("--out {tmp}/a.npy", "expected a name that ends in .png"),
        ("--out {tmp}/there.png", "there.png exists; give another --out, or --overwrite"),
    ],
)
def test_mistakes(
    words: str, message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there.png").touch()
    with pytest.raises(SystemExit) as caught:
        run_program("restore", run, *words.format(tmp=tmp_path).split())
    assert message in f"{caught.value} {capsys.readouterr().err}"


@pytest.mark.parametrize("problem", [Toy, lambda: Digits(protocol="dequantized")])
def test_runs_of_other_data_are_refused(
    problem: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = SimpleNamespace(problem=problem())
    monkeypatch.setattr(restore, "load_trained", lambda run: (None, programs, None))
    with pytest.raises(RunError, match="no images with pixels from -1 to 1"):
        restore.restore(tmp_path)
