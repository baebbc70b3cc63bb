"""What a run writes for people: the right numbers under the right names, and figures with axes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from pyro_mdm import ALDA, CLD, MALDA, VPSDE, LearnedDiffusion
from pyro_mdm import tensorboard as tb


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0}).Reload()


def last(events: EventAccumulator, tag: str) -> float:
    return events.Scalars(tag)[-1].value


def test_the_bound_is_written_with_its_terms_and_errors(tmp_path: Path) -> None:
    terms = {
        "bits_per_dim": (1.5, 0.1),
        "reconstruction": (0.2, 0.01),
        "prior_kl": (0.3, math.nan),
        "diffusion": (1.0, 0.05),
    }
    with SummaryWriter(str(tmp_path)) as writer:
        tb.write_layout(writer)
        tb.write_bound(writer, "validation", terms, 7)
        with pytest.raises(ValueError, match=r"unknown terms \['loss'\]"):
            tb.write_bound(writer, "train", {"loss": (1.0, 0.1)}, 7)
    events = read(tmp_path)
    for term, (value, error) in terms.items():
        assert last(events, f"{term}/validation") == pytest.approx(value)
        if math.isnan(error):
            assert f"standard_error/{term}/validation" not in events.Tags()["scalars"]
            continue
        assert last(events, f"standard_error/{term}/validation") == pytest.approx(error)
        assert last(events, f"interval/{term}/validation/low") == pytest.approx(value - error)
        assert last(events, f"interval/{term}/validation/high") == pytest.approx(value + error)
    assert events.Scalars("bits_per_dim/validation")[0].step == 7
    assert "custom_scalars__config__" in events.Tags()["tensors"]


@pytest.mark.parametrize("build", [VPSDE, CLD, MALDA, ALDA, lambda: LearnedDiffusion(4, rank=2)])
def test_the_diffusion_is_written_entry_by_entry(tmp_path: Path, build: Any) -> None:
    diffusion = build()
    K, Q, D = diffusion.num_variables, diffusion.Q.detach(), diffusion.D.detach()
    with SummaryWriter(str(tmp_path)) as writer:
        tb.write_diffusion(writer, diffusion, 1)
        tb.write_noising(writer, diffusion, torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8), 1)
    events = read(tmp_path)
    for i in range(K):
        for j in range(i, K):
            assert last(events, f"D/entry_{i}{j}") == pytest.approx(D[i, j].item(), abs=1e-6)
            if i < j:
                assert last(events, f"Q/entry_{i}{j}") == pytest.approx(Q[i, j].item(), abs=1e-6)
    # the trace of D, and of QᵀQ = Σ ω²: eigenvalues of these very matrices
    trace = sum(last(events, f"D_eigenvalues/{i}") for i in range(K))
    square = sum(last(events, f"Q_eigenvalues/frequency_{i}") ** 2 for i in range(K))
    assert trace == pytest.approx(D.trace().item(), abs=1e-5)
    assert square == pytest.approx(Q.square().sum().item(), abs=1e-5)
    assert {"curves", "noising"} <= set(events.Tags()["images"])


def labels(figure: Figure) -> list[tuple[str, str]]:
    return [(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes]


def test_the_curves_are_those_of_the_diffusion() -> None:
    diffusion = CLD()
    figure = tb.curves_figure(diffusion, points=50)
    mean, covariance, log_snr = figure.axes
    assert all(x.startswith("noising time s") and y for x, y in labels(figure))
    assert len(mean.lines) == 2 and len(covariance.lines) == 3
    s = torch.as_tensor(mean.lines[1].get_xdata())
    assert s[0] == diffusion.start_time and s[-1] == diffusion.horizon
    exact = diffusion.marginal(s)
    assert torch.equal(torch.as_tensor(mean.lines[1].get_ydata()), exact.mean[:, 1])
    assert torch.equal(torch.as_tensor(covariance.lines[1].get_ydata()), exact.covariance[:, 0, 1])
    assert torch.equal(torch.as_tensor(log_snr.lines[0].get_ydata()), exact.log_snr)


def test_the_diffusion_term_is_a_density_over_log_snr() -> None:
    edges = torch.tensor([-4.0, -2.0, 2.0, 13.0])
    figure = tb.diffusion_term_figure(edges, [0.5, 0.4, 0.1], [0.05, math.nan, 0.01])
    (axes,) = figure.axes
    assert "log SNR" in axes.get_xlabel() and "bits/dim per unit" in axes.get_ylabel()
    stairs: Any = axes.patches[0]
    heights, drawn, _ = stairs.get_data()
    assert torch.as_tensor(heights).tolist() == pytest.approx([0.25, 0.1, 0.1 / 11])
    assert (heights * (drawn[1:] - drawn[:-1])).sum() == pytest.approx(1.0)
    assert "1.000 bits/dim" in axes.get_title()
    with pytest.raises(ValueError, match=r"4 edges, \(2,\) means"):
        tb.diffusion_term_figure(edges, [0.5, 0.4], [0.1, 0.1, 0.1])


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (2, 3, 8, 8), (30, 2), (30, 1)])
def test_noised_data_has_a_row_for_each_variable(shape: tuple[int, ...]) -> None:
    diffusion = MALDA()
    figure = tb.noising_figure(diffusion, torch.rand(shape) * 2 - 1, columns=4)
    assert len(figure.axes) == 3 * 4
    assert figure.axes[0].get_title().endswith("λ = 13.0")
    assert [figure.axes[4 * i].get_ylabel().split()[0] for i in range(3)] == ["x", "v1", "v2"]
    with pytest.raises(ValueError, match=r"shape \(3, 4, 5\)"):
        tb.noising_figure(diffusion, torch.rand(3, 4, 5))


def test_the_first_column_shows_the_data_itself() -> None:
    x = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    figure = tb.noising_figure(VPSDE(max_log_snr=13.0), x)
    reach = float(figure.axes[0].get_ylabel().split("±")[1].rstrip(")"))
    shown = torch.as_tensor(figure.axes[0].images[0].get_array())
    assert torch.allclose((shown * 2 - 1) * reach, x[0, 0].double(), atol=0.03 * reach)


def test_images_keep_their_place_and_value_in_the_grid() -> None:
    images = torch.zeros(5, 1, 2, 2)
    images[4, 0, 1, 0] = 1.0
    grid = tb.image_grid(images, columns=3, side=60)
    factor = 60 // 6
    cell = 2 * factor + 2
    assert grid.shape == (3, 2 * cell + 2, 3 * cell + 2) and grid.dtype == torch.uint8
    bright = (grid[0] == 255).nonzero()
    assert len(bright) == factor**2
    assert bright[0].tolist() == [
        2 + cell + factor,
        2 + cell,
    ]  # second row, second column, pixel (1, 0)
    with pytest.raises(ValueError, match=r"\(5, 2, 2, 2\)"):
        tb.image_grid(images.expand(5, 2, 2, 2))
