"""What people see of a run, from a run: every page, the same after a resume, at little cost."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from inference.folders.loading import load_trained
from inference.folders.metrics import Metrics
from inference.folders.runs import Run
from inference.train import train
from inference.training import report
from pyro_mdm.plots.figures import new_figure
from tests.brief import be_brief
from tests.programs.running import Stopped

PROBLEM = """
import torch
from models.base import ImageProblem


class Convolution(torch.nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.layer = torch.nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x, log_snr):
        return 0.1 * self.layer(x)


class Images(ImageProblem):
    name = "images"
    event_shape = (1, 4, 4)
    num_levels = 4
    form = "logits"
    max_log_snr = 9.0

    def load(self):
        # a dark half and, for a third of the images, a bright one that is noisy
        generator = torch.Generator().manual_seed(0)
        images = torch.zeros(240, 1, 4, 4, dtype=torch.uint8)
        noisy = torch.randint(0, 4, (80, 1, 4, 2), generator=generator)
        images[::3, :, :, 2:] = noisy.to(torch.uint8)
        return images

    def network(self, inputs, outputs):
        return Convolution(inputs, outputs)
"""

OPTIONS: dict[str, Any] = {
    "draws": 2,
    "batch_size": 16,
    "num_samples": 4,
    "sampler_steps": 4,
    "log_every": 2,
    "measure_every": 2,
    "checkpoint_every": 4,
    "accelerator": "cpu",
}


@pytest.fixture(scope="module", autouse=True)
def few_samples() -> Iterator[None]:
    """In all figures, those of the run that several tests look at too."""
    with pytest.MonkeyPatch.context() as patch:
        be_brief(patch, figures=True)
        yield


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("problem") / "problems.py"
    path.write_text(PROBLEM)
    return str(path)


@pytest.fixture(scope="module")
def trained(made_once: Callable[..., Path], problems: str) -> Path:
    """A finished run of a learned diffusion on images; tests only read it."""

    def make(folder: Path) -> None:
        train(f"{problems}:Images", "learned", steps=8, run=folder / "run", **OPTIONS)

    return made_once("reported", make) / "run"


def read(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0}).Reload()


def steps(events: EventAccumulator, tag: str) -> list[int]:
    return [image.step for image in events.Images(tag)]


@pytest.mark.slow
def test_every_page_of_a_learned_diffusion(trained: Path) -> None:
    events = read(trained)
    images = set(events.Tags()["images"])
    assert images >= {"test/best_and_worst", "samples/by_sampler", "noising/noising"}
    # measured at 2, 4, 6, 8; drawn at the start, the 1st and 2nd measurement, not the 3rd, the end
    for tag in ("noising/curves", "noising/eigenvalues", "noising/clock"):
        assert steps(events, tag) == [0, 2, 4, 8]
    for tag in ("Overview/bound", "Overview/terms", "training/diffusion_term_by_log_snr"):
        assert steps(events, tag) == [2, 4, 8]
    by_log_snr = "diffusion_term_by_log_snr_of"
    for part in ("train", "validation"):
        assert steps(events, f"training/{by_log_snr}_{part}") == [2, 4, 8]
        assert [e.step for e in events.Scalars(f"bound/bits_per_dim/{part}")] == [2, 4, 6, 8]
    assert steps(events, f"test/{by_log_snr}_test") == [8]
    low, high = (
        events.Scalars(f"uncertainty/{end}/objective/bits_per_dim") for end in ("low", "high")
    )
    assert [e.step for e in low] == [e.step for e in high] == [2, 4, 6, 8]


def groups(events: EventAccumulator) -> list[str]:
    """Groups of the Time Series page, in order: capitals come first, the first two are open."""
    tags = events.Tags()
    return sorted({tag.partition("/")[0] for tag in tags["scalars"] + tags["images"]})


def test_what_a_designer_wants_opens_first_and_plumbing_comes_last(trained: Path) -> None:
    events = read(trained)
    found = groups(events)
    assert found[:2] == ["Overview", "bound"] and found[-1] == "uncertainty"
    scalars, images = events.Tags()["scalars"], events.Tags()["images"]
    assert sorted(tag for tag in images if tag.startswith("Overview/")) == [
        "Overview/bound",
        "Overview/samples",
        "Overview/terms",
    ]
    plumbing = [tag for tag in scalars if "standard_error" in tag or "/low/" in tag]
    assert plumbing and all(tag.startswith("uncertainty/") for tag in plumbing)
    assert len([tag for tag in scalars if tag.startswith("bound/")]) <= 12  # on one page


def test_all_terms_of_the_bound_are_curves(trained: Path) -> None:
    """Also the prior KL, which prints as 0.000 here: that it does is what is to be seen."""
    events = read(trained)
    terms = ("bits_per_dim", "reconstruction", "prior_kl", "diffusion")
    tags = {f"bound/{term}/{data}" for term in terms for data in ("train", "validation")}
    test = {f"bound/{term}/test" for term in terms}
    assert tags | test <= {*events.Tags()["scalars"]}
    for tag in tags | test:  # of 16 pixels each
        _, term, data = tag.split("/")
        nats = events.Scalars(f"nats/{'elbo' if term == terms[0] else term}/{data}")[-1].value
        sign = -1 if term in terms[:2] else 1
        bits = events.Scalars(tag)[-1].value
        assert nats == pytest.approx(sign * 16 * math.log(2) * bits, rel=1e-6, abs=1e-12)
    (layout,) = events.Tensors("custom_scalars__config__")
    shown = layout.tensor_proto.string_val[0].decode(errors="replace")
    assert all(tag in shown for tag in tags if tag.startswith("bound/"))


@pytest.mark.slow
def test_a_fixed_diffusion_is_drawn_once_and_points_have_no_images(
    tiny: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(tiny, "cld", steps=4, run=run, **OPTIONS)
    events = read(run)
    for tag in ("noising/curves", "noising/eigenvalues", "noising/clock"):
        assert steps(events, tag) == [0]
    assert "samples/by_sampler" in events.Tags()["images"]
    assert "test/best_and_worst" not in events.Tags()["images"]
    assert not any(tag.startswith("noising/") for tag in events.Tags()["scalars"])  # constant
    (text,) = events.Tensors("settings/text_summary")
    shown = text.tensor_proto.string_val[0].decode()
    assert "| guide | cld |" in shown and "| Q at the start | [[0.0, -1.0], [1.0, 0.0]] |" in shown


def test_the_history_holds_what_was_measured(trained: Path) -> None:
    history = Run.open(trained).metrics.history()
    count = Counter(record["part"] for record in history)
    assert count == {"diffusion": 5, "train": 4, "validation": 4, "test": 1}
    _, programs, _ = load_trained(trained)
    last = [record for record in history if record["part"] == "diffusion"][-1]
    assert last["step"] == 8
    assert torch.equal(torch.tensor(last["Q"], dtype=torch.float64), programs.model.diffusion.Q)
    results = json.loads((trained / "results.json").read_text())
    test = history[-1]
    assert test["terms"]["bits_per_dim"] == [*results["bits_per_dim"].values()]
    assert test["diffusion_by_log_snr"] == results["diffusion_by_log_snr"]


@pytest.mark.slow
def test_figures_after_a_resume_hold_what_came_before_it(
    tmp_path: Path, problems: str, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    log = Metrics.log

    def stopping(self: Metrics, step: int, part: str, values: Any) -> None:
        log(self, step, part, values)
        if (step, part) == (6, "validation"):  # two steps past the checkpoint
            raise Stopped

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Metrics, "log", stopping)
        patch.setattr(report, "draw_training", lambda *arguments: None)
        train(f"{problems}:Images", "learned", steps=8, run=run, **OPTIONS)
    with open(run / "history.jsonl", "a") as file:
        file.write('{"step": 6, "part": "diff')  # killed in the middle of a line
    train(resume=run)
    assert Run.open(run).metrics.history() == Run.open(trained).metrics.history()
    # the pictures that the two runs end with are the same, pixel for pixel
    resumed, whole = read(run), read(trained)
    for tag in whole.Tags()["images"]:
        one, other = (events.Images(tag)[-1].encoded_image_string for events in (resumed, whole))
        assert one == other, tag


def test_the_table_of_runs_has_the_settings_as_they_came_out(trained: Path) -> None:
    run, programs, _ = load_trained(trained)
    settings = report.settings(run, programs)
    assert list(settings)[:5] == ["model", "guide", "score", "num_variables", "seed"]
    assert settings["model"] == "problems.py:Images" and settings["guide"] == "learned"
    assert settings["score"] == "discrete" and settings["num_variables"] == "2"
    assert settings["rank of D"] == "2" and settings["min_log_snr"] == -10.0
    tags = read(trained).Tags()["scalars"]
    assert set(report.METRICS) <= set(tags)  # or the column would be empty
    shown = report.columns(settings)
    assert len(shown) + len(report.METRICS) <= 6  # as many as 1,600 pixels hold
    assert list(shown) == ["model", "guide", "score", "others"]
    assert shown["guide"] == "learned, K = 2"
    assert "seed 0, steps 8" in str(shown["others"]) and "False" not in str(shown["others"])
    run.config["split_seed"] = 0  # is a seed, and not that there is none
    assert report.settings(run, programs)["split_seed"] == "0"


@pytest.mark.slow
def test_the_best_and_the_worst_images_are_told_apart(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = {}

    def keep(images: Any, bits: Any, errors: Any) -> Any:
        drawn.update(images=images, bits=bits, errors=errors)
        return new_figure(1, 1)

    monkeypatch.setattr(report, "ranked_images_figure", keep)
    run, programs, _ = load_trained(trained)
    with SummaryWriter(str(tmp_path)) as writer:
        report.draw_end(run, writer, programs, 0)
    bits, errors = drawn["bits"], drawn["errors"]
    noisy = drawn["images"].flatten(1).amax(1) > 0
    assert len(bits) == 16 and bool((errors > 0).all())
    assert 4 <= int(noisy.sum()) <= 12
    assert float(bits[noisy].min()) > float(bits[~noisy].max())  # dark ones are easy
    mean = json.loads((trained / "results.json").read_text())["bits_per_dim"]["value"]
    assert bits.min() < mean < bits.max()

    # of a large test part some are looked at, from all of it
    looked_at = []
    measure = report._bits
    monkeypatch.setattr(
        report, "_bits", lambda p, data, **o: looked_at.append(data) or measure(p, data, **o)
    )
    monkeypatch.setattr(report, "RANKED_OF", 8)
    with SummaryWriter(str(tmp_path)) as writer:
        report.draw_end(run, writer, programs, 0)
    assert torch.equal(looked_at[0].data, programs.problem.test[1::3])
    assert len(drawn["bits"]) == 8
