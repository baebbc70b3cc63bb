"""Pictures show the right pixels in the right places, under the right numbers."""

from __future__ import annotations

import pytest
import torch

from pyro_mdm import MALDA, VPSDE
from pyro_mdm.plots import pictures


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (2, 3, 8, 8), (30, 2), (30, 1)])
def test_noised_data_has_a_row_for_each_variable(shape: tuple[int, ...]) -> None:
    diffusion = MALDA()
    figure = pictures.noising_figure(diffusion, torch.rand(shape) * 2 - 1, columns=4)
    assert len(figure.axes) == 3 * 4
    assert figure.axes[0].get_title().endswith("λ = 13.0")
    assert [figure.axes[4 * i].get_ylabel().split()[0] for i in range(3)] == ["x", "v1", "v2"]
    with pytest.raises(ValueError, match=r"shape \(3, 4, 5\)"):
        pictures.noising_figure(diffusion, torch.rand(3, 4, 5))


def test_the_first_column_shows_the_data_itself() -> None:
    x = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    figure = pictures.noising_figure(VPSDE(max_log_snr=13.0), x)
    reach = float(figure.axes[0].get_ylabel().split("±")[1].rstrip(")"))
    shown = torch.as_tensor(figure.axes[0].images[0].get_array())
    assert torch.allclose((shown * 2 - 1) * reach, x[0, 0].double(), atol=0.03 * reach)


def test_images_keep_their_place_and_value_in_the_grid() -> None:
    images = torch.zeros(5, 1, 2, 2)
    images[4, 0, 1, 0] = 1.0
    grid = pictures.image_grid(images, columns=3, side=60)
    factor = 60 // 6
    cell = 2 * factor + 2
    assert grid.shape == (3, 2 * cell + 2, 3 * cell + 2) and grid.dtype == torch.uint8
    bright = (grid[0] == 255).nonzero()
    assert len(bright) == factor**2
    assert bright[0].tolist() == [
        2 + cell + factor,
        2 + cell,
    ]  # second row, second column, pixel (1, 0)
    # a gap that is a tenth of an image separates images as small as digits
    assert pictures.image_grid(torch.ones(4, 1, 8, 8)).shape == (3, 512 + 3 * 25, 512 + 3 * 25)
    with pytest.raises(ValueError, match=r"\(5, 2, 2, 2\)"):
        pictures.image_grid(images.expand(5, 2, 2, 2))


def test_the_best_and_the_worst_images_stand_under_their_own_bits() -> None:
    bits = torch.tensor([3.0, 1.0, 4.0, 2.0, 5.0])
    images = (bits * 10).to(torch.uint8).reshape(5, 1, 1, 1).expand(5, 1, 2, 2)  # told by value
    figure = pictures.ranked_images_figure(images, bits, bits / 10)
    shown = [axes for axes in figure.axes if axes.images]
    titles = [axes.get_title() for axes in shown]
    assert titles[:2] == ["1.00 ± 0.10", "2.00 ± 0.20"]  # best, from the best
    assert titles[2:] == ["5.00 ± 0.50", "4.00 ± 0.40", "3.00 ± 0.30"]  # worst, from the worst
    for axes, title in zip(shown, titles, strict=True):
        assert int(axes.images[0].get_array()[0, 0, 0]) == round(10 * float(title.split()[0]))
    assert [axes.get_ylabel() for axes in shown if axes.get_ylabel()] == ["best", "worst"]
    with pytest.raises(ValueError, match=r"\(1, 1, 2, 2\), expected .* n ≥ 2"):
        pictures.ranked_images_figure(images[:1], bits[:1], bits[:1])
    with pytest.raises(ValueError, match=r"\(4,\) errors, expected \(5,\)"):
        pictures.ranked_images_figure(images, bits, bits[:4])


def test_pictures_stand_under_their_titles() -> None:
    by_title = {f"{i}": torch.full((3, 4, 4), i, dtype=torch.uint8) for i in range(3)}
    figure = pictures.pictures_figure(by_title, 2)
    shown = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in shown] == ["0", "1", "2"]
    assert [int(axes.images[0].get_array().max()) for axes in shown] == [0, 1, 2]
    assert len(figure.axes) == 4 and not figure.axes[3].axison
    with pytest.raises(ValueError, match="0 pictures in 2 columns"):
        pictures.pictures_figure({}, 2)
