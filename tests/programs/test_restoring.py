"""Images restored by a run, test images and one's own; how well their intervals are calibrated."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from inference import restore
from inference.drawing import restoring
from inference.drawing.observations import Observation, chosen_measurement, read
from inference.drawing.restoration import Restoration, interval_ends
from inference.folders.loading import load_trained
from inference.folders.runs import RunError
from inference.restore import TASKS, Restored, coverage, psnr, restored
from inference.train import train
from models import Digits, Toy
from pyro_mdm import CLD
from pyro_mdm.measurements import FunctionOperator, Mask, covariance
from pyro_mdm.plots.restorations import restoration_figure
from pyro_mdm.support.measured import student_factor
from tests.brief import SHORT, be_brief
from tests.mistakes import refused
from tests.programs.running import run_program

PIXEL = torch.zeros(3, 1, 1, dtype=torch.uint8)
"""In place of a picture."""
pytestmark = pytest.mark.usefixtures("few_pictures")

OPERATORS = """
import torch
from pyro_mdm.measurements import Blur, FunctionOperator, LinearOperator, Mask


class Rows(LinearOperator):
    def __init__(self, event_shape):
        super().__init__(event_shape, (*event_shape[:-1], 1))

    def forward(self, x):
        return x.mean(-1, keepdim=True)


def rows(event_shape):
    return Rows(event_shape)


eight = Rows((1, 8, 8))
seen = torch.zeros(1, 8, 8, dtype=torch.bool)
seen[:, :5] = True
upper = Mask(seen)


def sums(event_shape):
    return FunctionOperator(lambda x: x.flatten(1)[:, ::16], event_shape)


def squares(event_shape):
    return FunctionOperator(lambda x: x.square(), event_shape)


class Shifted(Rows):
    def forward(self, x):
        return super().forward(x) + 1.0


def colours(event_shape):
    return Rows((3, 8, 8))


number = 3
"""


def made(folder: Path, **options: Any) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        be_brief(patch)
        train(run=folder, figures=False, **SHORT | {"guide": "cld", "steps": 2} | options)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny: str) -> dict[str, Path]:
    """A run of digits, 1×8×8, which are in the middle, and one of squares, 1×4×4, all alike."""
    folder = tmp_path_factory.mktemp("restoring")
    of = {"digits": "digits", "squares": tiny.replace(":Tiny", ":Squares")}
    return {name: made(folder / name, model=model) for name, model in of.items()}


@pytest.fixture(autouse=True)
def plain(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages hold nothing, but in tests that ask for ``drawn``."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(Restoration, "page", lambda self: PIXEL)


@pytest.fixture
def drawn() -> None:
    """Pages are those of restorations."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of measured images and masks, which tests only copy."""
    tmp_path = tmp_path_factory.mktemp("files")
    (tmp_path / "mine.py").write_text(OPERATORS)
    generator = torch.Generator().manual_seed(0)

    def save(name: str, *shape: int) -> None:
        pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / name)

    (tmp_path / "some").mkdir()
    digit = (load_digits().images[4] * 255 / 16).round().astype(np.uint8)
    Image.fromarray(digit).save(tmp_path / "photo.png")
    for name in ("some/photo.png", "some/second.png"):
        save(name, 8, 8)
    for name, shape in {
        "coarse.png": (4, 4),
        "rows.png": (8, 1),
        "large.png": (6, 9),
        "tall.png": (12, 8),
    }.items():
        save(name, *shape)
    save("small.png", 3, 4)
    save("colour.png", 8, 8, 3)
    with Image.open(tmp_path / "photo.png") as photo:
        photo.convert("RGB").save(tmp_path / "grey.png")
    half = np.zeros((8, 8), np.uint8)
    for name, value in {"black.png": half, "white.png": half + 255}.items():
        Image.fromarray(value).save(tmp_path / name)
    half[:3] = 255
    Image.fromarray(half).save(tmp_path / "mask.png")
    Image.fromarray(half // 2 * 2).save(tmp_path / "shades.png")
    Image.fromarray(half).convert("RGB").save(tmp_path / "mask3.png")
    np.save(tmp_path / "sums.npy", np.array([0.5, -1.5, 0.0, 0.25]))
    np.save(tmp_path / "photo8.npy", np.zeros((8, 8)))
    np.save(tmp_path / "nan.npy", np.full((1, 8, 8), np.nan))
    np.save(tmp_path / "whole.npy", np.zeros((1, 8, 8), np.uint8))
    (tmp_path / "torn.png").write_bytes((tmp_path / "photo.png").read_bytes()[:40])
    (tmp_path / "torn.npy").write_bytes(b"no array")
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.fixture
def here(files: Path, tmp_path: Path) -> Path:
    return shutil.copytree(files, tmp_path / "here")


FAST: dict[str, Any] = {"steps": 2, "accelerator": "cpu", "noise": 0.05}


def pixels(file: Path) -> Tensor:
    with Image.open(file) as image:
        return 2 * torch.from_numpy(np.asarray(image).copy()).double() / 255 - 1


def arrays(file: Path) -> dict[str, Tensor]:
    with np.load(file) as content:
        return {name: torch.from_numpy(content[name]) for name in content.files}


# -- what is measured ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "how", "shape"),
    [
        ("photo.png", ("deblur", None, None), (1, 8, 8)),
        ("coarse.png", ("superresolve", None, None), (1, 4, 4)),
        ("grey.png", ("denoise", None, None), (1, 8, 8)),
        ("rows.png", (None, None, "mine.py:Rows"), (1, 8, 1)),
        ("rows.png", (None, None, "mine.py:rows"), (1, 8, 1)),
        ("rows.png", (None, None, "mine.py:eight"), (1, 8, 1)),
        ("photo8.npy", (None, None, "pyro_mdm.measurements:Blur"), (1, 8, 8)),
        ("sums.npy", (None, None, "mine.py:sums"), (4,)),
    ],
)
def test_a_file_is_the_measurement_itself(
    data: str, how: Any, shape: tuple[int, ...], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here)
    found = read(Path(data), chosen_measurement(*how), (1, 8, 8)).obs
    known = torch.from_numpy(np.load(data)) if data.endswith(".npy") else pixels(here / data)
    known = known[..., 0] if known.dim() == 3 else known  # grey, saved as a colour
    assert found.shape == shape
    torch.testing.assert_close(found.double().reshape(known.shape), known)


def test_what_is_written_of_a_restored_image(runs: dict[str, Path], here: Path) -> None:
    """Nothing is added to what was measured, and no truth is told."""
    photo, out = here / "photo.png", here / "out"
    restore.restore(runs["digits"], data=photo, task="deblur", out=out, **FAST)
    assert sorted(path.name for path in out.iterdir()) == ["photo.npz", "photo.png"]
    found = arrays(out / "photo.npz")
    torch.testing.assert_close(found["measured"][0], pixels(photo))
    assert found["draws"].shape == (19, 1, 8, 8) and found["way"].shape == (3, 1, 8, 8)
    assert bool((found["way_log_snr"].diff() > 0).all())
    torch.testing.assert_close(found["mean"], found["draws"].mean(0))
    assert torch.equal(found["lower"], found["draws"].amin(0))
    assert torch.equal(found["upper"], found["draws"].amax(0))


@pytest.mark.parametrize("how", ["--mask mask.png", "--mask mask3.png", "--operator mine.py:upper"])
def test_white_of_a_mask_is_seen(
    how: str,
    drawn: None,
    runs: dict[str, Path],
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(here)
    words = f"--data photo.png {how} --noise 0.02 --sampler stochastic --steps 6 --out out"
    run_program("restore", runs["digits"], *words.split())
    said = capsys.readouterr().out.splitlines()
    number = r"\d+(\.\d+)?(e-\d+)?"
    assert re.fullmatch(
        rf"photo: 19 draws of 1×8×8 pixels; obs - H x of a draw is {number}, {number} times the "
        rf"noise \(.* have 1 ± 0\.1\d\); half-width of the 90% intervals, on average: {number} "
        rf"where it is not seen \(at most {number}\), {number} where it is seen \(at most "
        rf"{number}\)",
        said[-2],
    )
    assert said[-1] == str(Path("out/photo.png"))
    found, photo = arrays(here / "out/photo.npz"), pixels(here / "photo.png")
    rows = 5 if "upper" in how else 3
    assert bool(found["seen"][:, :rows].all()) and not bool(found["seen"][:, rows:].any())
    torch.testing.assert_close(found["measured"], photo[:rows].flatten())
    off = (found["draws"][:, 0] - photo).abs().mean(0)
    assert float(off[:rows].mean()) < 0.1 < 0.2 < float(off[rows:].mean())


@pytest.mark.slow
def test_an_image_is_restored_alike_alone_and_among_others(
    runs: dict[str, Path], here: Path
) -> None:
    for name, data in {
        "alone": here / "photo.png",
        "folder": here / "some",
        "both": [here / "some/second.png", here / "photo.png"],
    }.items():
        restore.restore(runs["digits"], data=data, task="denoise", out=here / name, **FAST)
    both = [arrays(here / name / "second.npz") for name in ("folder", "both")]
    assert torch.equal(both[0]["draws"], both[1]["draws"])
    alone, again = (arrays(here / name / "photo.npz") for name in ("alone", "both"))
    assert torch.equal(alone["draws"], again["draws"])
    other = arrays(here / "folder/photo.npz")
    assert not torch.equal(alone["measured"], other["measured"])
    assert sorted(p.name for p in (here / "folder").iterdir()) == [
        *("photo.npz", "photo.png", "second.npz", "second.png")
    ]


@pytest.mark.parametrize(
    ("data", "task", "windows", "shape"),
    [
        ("large.png", "deblur", 8, (1, 6, 9)),
        ("coarse.png", "superresolve", 9, (1, 8, 8)),
        ("coarse.png", "denoise", None, (1, 4, 4)),
    ],
)
def test_larger_images_are_restored_by_windows(
    data: str,
    task: Any,
    windows: int | None,
    shape: tuple[int, ...],
    runs: dict[str, Path],
    here: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    restore.restore(runs["squares"], data=here / data, task=task, out=here / "out", **FAST)
    said = capsys.readouterr().out
    assert (f"pixels, by {windows} overlapping windows" in said) == (windows is not None)
    found = arrays(here / "out" / f"{Path(data).stem}.npz")
    assert found["draws"].shape == (19, *shape) and found["way"].shape == (3, *shape)


def test_test_images_are_measured_by_ones_own_operator_too(
    runs: dict[str, Path], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"num_images": 2, "out": here / "x.png", "steps": 1}
    for how in ({"operator": f"{here}/mine.py:Rows"}, {"mask": here / "mask.png"}):
        capsys.readouterr()
        restore.restore(runs["digits"], overwrite=True, accelerator="cpu", **how, **options)  # type: ignore[arg-type]
        name = "mask" if "mask" in how else "Rows"
        assert f"{name} of 2 test images, 19 samples of each: PSNR" in capsys.readouterr().out


# -- test images ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_task_of_a_run(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--num_images", 2, "--steps", 2, "--accelerator", "cpu")
    for task in TASKS:
        out = tmp_path / f"{task}.png"
        run_program("restore", runs["digits"], "--task", task, *few, "--out", out)
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
    options: dict[str, Any] = {"model": "digits", "guide": "vpsde", "steps": 1}
    for name, dropout in (("some", None), ("always", 0.0)):
        made(folder / name, **options, condition="labels", context_dropout=dropout)
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


# -- what is said ----------------------------------------------------------------------------------


def test_what_is_said_without_the_truth(drawn: None) -> None:
    """Residuals beside the noise, and widths where an image is seen and where not."""
    torch.manual_seed(0)
    shape, seen = (1, 20, 20), torch.arange(400).reshape(1, 20, 20) < 100
    whole = FunctionOperator(lambda x: x, shape)
    obs = torch.randn(shape).double()
    noise = 0.1 * torch.randn(39, *shape)
    one = Restoration(Observation("x", obs, whole), 0.1, obs.float() + noise, noise[:0], obs, 1)
    assert re.search(r", (0\.99|1\.00|1\.01) times the noise .* have 1 ± 0\.04", one.summary())
    some = FunctionOperator(lambda x: x.flatten(1)[:, :4], shape)
    numbers = one._replace(observation=Observation("x", obs.flatten()[:4], some)).page()
    assert numbers.axes[0].get_title() == "measured: 4 numbers"
    assert one.page().axes[0].get_title() == "measured"
    lower, upper = interval_ends(torch.arange(39.0).flip(0)[:, None])  # the second of each side
    assert (lower.item(), upper.item()) == (1.0, 37.0)
    wide = torch.where(seen, 0.2, 0.5) * torch.linspace(-1, 1, 19).reshape(-1, 1, 1, 1)
    mask = Mask(seen)
    exact = Restoration(Observation("x", wide[9, seen], mask), 0.0, wide, wide[:0], obs, 4)
    assert exact.summary().endswith(
        "by 4 overlapping windows; obs - H x of a draw is 0.122; half-width of the 90% intervals, "
        "on average: 0.5 where it is not seen (at most 0.5), 0.2 where it is seen (at most 0.2)"
    )


def test_a_page_has_all_of_it() -> None:
    draws = torch.rand(7, 3, 5, 10)
    page = restoration_figure(
        *(draws[0], torch.rand(5, 10) > 0.5, draws, draws[1], draws[:4], [1.0, 2.0, 3.0, 4.0]),
        title="x",
    )
    titles = [axes.get_title() for axes in page.axes]
    assert titles[:2] == ["measured (blue: not seen)", "mean of 7 draws"]
    assert titles[2] == "half-width of the 90% interval" and "λ = 4.0" in titles
    assert sum(title.startswith("draw ") for title in titles) == 6
    labels = [axes.get_ylabel() for axes in page.axes]
    assert "pixels range from -1 to 1" in labels
    numbers = restoration_figure(draws[0, 0, 0], None, draws[:, :1], draws[1, :1], draws[:0], [])
    assert numbers.axes[0].get_title() == "measured: 10 numbers"
    assert not any("λ" in axes.get_title() for axes in numbers.axes)
    with pytest.raises(ValueError, match="expected \\(S, C, H, W\\) with C = 1 or 3"):
        restoration_figure(draws[0], None, draws[:, :2], draws[1], draws, [])


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--num_samples 18", "--num_samples is 18, expected at least 19"),
        ("--num_images 181", "--num_images is 181, expected at most the 180 test images"),
        ("--noise 0", "--noise is 0.0, expected a positive number"),
        ("--out a.npy", "expected a name that ends in .png"),
        ("--out mask.png", "mask.png exists; give another --out, or --overwrite"),
        ("photo.png --task deblur", "--noise is not given, expected the standard deviation"),
        ("photo.png --task deblur --noise -1", "--noise is -1.0, expected 0, for none, or a pos"),
        ("photo.png --noise 1", "none of them is given, expected one of --task, --mask and --oper"),
        (
            "photo.png --task deblur --mask mask.png --noise 1",
            "--task deblur and --mask mask.png are given, expected one of --task, --mask and",
        ),
        ("photo.png --task deblur --noise 1 --num_images 3", "--num_images is 3, which is for tes"),
        ("away.png --task deblur --noise 1", "--data away.png is not there, expected a file"),
        ("mine.py --task deblur --noise 1", "--data is mine.py, expected a file that ends in .npy"),
        ("empty --task deblur --noise 1", "--data empty has no pictures, expected files that end"),
        ("torn.png --task deblur --noise 1", "torn.png is no image that can be read"),
        ("torn.npy --task deblur --noise 1", "torn.npy cannot be read as an array of numbers"),
        ("whole.npy --task deblur --noise 1", "whole.npy has numbers of type uint8, expected flo"),
        ("nan.npy --task deblur --noise 1", "nan.npy has 64 numbers that are not finite"),
        ("[photo.png,some] --task deblur --noise 1", "photo.png and some/photo.png, whose rest"),
        ("colour.png --task deblur --noise 1", "colour.png is in colour, expected a grey picture"),
        ("small.png --task deblur --noise 1", "small.png: size is 3×4 pixels, expected .* 8×8"),
        ("tall.png --task deblur --noise 1", "tall.png: .* due to their place .* scale to 8×8"),
        ("large.png --mask mask.png --noise 1", "has shape 1×6×9, expected 1×8×8, as --mask mask"),
        ("photo.png --mask black.png --noise 1", "black.png is black, so that nothing is seen"),
        ("photo.png --mask white.png --noise 1", "white, so that nothing is hidden.*--task deno"),
        ("photo.png --mask shades.png --noise 1", "shades.png has 24 pixels of other colours, exp"),
        ("photo.png --mask away.png --noise 1", "--mask away.png is not there"),
        ("photo.png --mask photo8.npy --noise 1", "--mask is photo8.npy, expected a file that en"),
        ("photo.png --operator deblur --noise 1", "unknown operator 'deblur': name your own as mo"),
        ("photo.png --operator mine.py:none --noise 1", "mine.py has no 'none'; it defines Rows"),
        ("photo.png --operator mine.py:number --noise 1", "is 3, expected a LinearOperator: a sub"),
        ("photo.png --operator mine.py:eight --noise 1", "shape 1×8×8, expected 1×8×1, as --ope"),
        ("photo.png --operator mine.py:squares --noise 1", "differs from H x .*a linear H"),
        ("rows.png --operator mine.py:Shifted --noise 1", "photo|rows.png: H.x - 2 x'. differs"),
        ("rows.png --operator mine.py:colours --noise 1", "rows.png is grey, expected 3 channels"),
        ("sums.npy --task deblur --noise 1", "sums.npy has shape 4, expected 1×8×8, as --task d"),
        ("photo.png --task deblur --noise 1 --out some", "some exists; give another --out, or --"),
        ("photo.png --task deblur --noise 1 --out photo.png", "photo.png, which is a file, expect"),
        ("photo.png --task deblur --noise 1 --given 3", "--given is 3.*run has no context"),
    ],
)
def test_mistakes(
    words: str,
    message: str,
    runs: dict[str, Path],
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(here)
    before = sorted(here.rglob("*"))
    with pytest.raises(SystemExit) as caught:
        data = () if words.startswith("--") else ("--data",)
        run_program("restore", runs["digits"], *data, *words.split(), "--accelerator", "cpu")
    said = f"{caught.value} {capsys.readouterr().err}"
    assert re.search(message, said), said
    made = [p for p in here.rglob("*") if p not in before and "__pycache__" not in p.parts]
    assert not made and not list(runs["digits"].glob("restored-*"))


def test_a_colour_network_needs_three_channels(here: Path) -> None:
    """Grey of colours is a measurement of its own."""
    how = chosen_measurement("denoise", None, None)
    refused(
        ValueError,
        (
            lambda: read(here / "photo.png", how, (3, 8, 8)),
            "photo.png is grey, expected 3 channels, .* give by --operator how colours became grey",
        ),
    )
    assert read(here / "colour.png", how, (3, 8, 8)).obs.shape == (3, 8, 8)
    brightness = how._replace(
        operator=lambda shape: FunctionOperator(lambda x: x.mean(1, keepdim=True), shape)
    )
    assert read(here / "photo.png", brightness, (3, 8, 8)).operator.event_shape == (3, 8, 8)


def test_a_run_without_a_denoiser_is_refused(here: Path, tmp_path: Path) -> None:
    made(tmp_path / "raw", model="digits", steps=1, score="noise")
    refused(
        TypeError,
        (
            lambda: restore.restore(
                tmp_path / "raw", data=here / "photo.png", task="deblur", **FAST
            ),
            "expected a DenoiserScore",
        ),
    )


@pytest.mark.parametrize("problem", [Toy, lambda: Digits(protocol="dequantized")])
def test_runs_of_other_data_are_refused(
    problem: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = SimpleNamespace(problem=problem())
    monkeypatch.setattr(restore, "load_trained", lambda run: (None, programs, None))
    with pytest.raises(RunError, match="no images with pixels from -1 to 1"):
        restore.restore(tmp_path)
