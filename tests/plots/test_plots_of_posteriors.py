"""Pictures of posteriors: parameters in pairs, and predictions beside the data."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pyro_mdm.plots.posteriors import posterior_columns, posterior_figure, predictive_figure
from tests.mistakes import refused

DRAWN = {"a": torch.linspace(4.0, 5.0, 101), "b": torch.stack([torch.linspace(0, 1, 101)] * 3, 1)}
PRIOR = {"a": torch.linspace(0.0, 9.0, 50), "b": torch.randn(50, 3)}


def test_columns_have_the_names_of_sites() -> None:
    value = torch.arange(12.0).reshape(2, 3, 2)
    columns = posterior_columns({"a": value[:, 0, 0], "w": value})
    assert list(columns) == ["a"] + [f"w[{i}, {j}]" for i in range(3) for j in range(2)]
    assert torch.equal(columns["w[2, 1]"], value[:, 2, 1])


def test_parameters_are_drawn_in_pairs_with_the_truth() -> None:
    """On axes of the posterior, with room around it; and the truth far away is on them too."""
    truth = {"a": torch.tensor(8.0), "b": torch.tensor([0.25, 0.5, 0.75])}
    figure = posterior_figure(DRAWN, PRIOR, truth, most=3)
    grid = [axes for axes in figure.axes if axes.axison]
    assert len(grid) == 6 and grid[3].get_xlabel() == "a" and grid[1].get_ylabel() == "b[0]"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "prior", "posterior", "truth",
    ]  # fmt: skip
    assert figure.legends[0].get_title().get_text() == "the first 3 of 4 parameters"
    low, high = grid[1].get_xlim()
    assert 3.0 < low < 4.0 and 8.0 < high < 8.4
    low, high = posterior_figure(DRAWN).axes[0].get_xlim()
    assert 3.9 < low < 4.0 and 5.0 < high < 5.1
    points = [line for line in grid[1].lines if line.get_linestyle() == "None"]
    assert [len(line.get_xdata()) for line in points] == [50, 101]
    assert points[1].get_ydata()[1] == pytest.approx(0.01)
    lines = [line for line in grid[1].lines if line.get_linestyle() != "None"]
    assert lines[0].get_xdata()[0] == 8.0 and lines[1].get_ydata()[0] == 0.25
    refused(ValueError, (lambda: posterior_figure(DRAWN, most=0), "most is 0, expected from 1"))


def test_predictions_stand_beside_what_is_observed() -> None:
    """Bands are quantiles at each place; a number that is missing has no point."""
    replicated = {"x": torch.linspace(0, 1, 101)[:, None] * torch.tensor([1.0, 2.0]),
                  "y": torch.linspace(5, 6, 101)}  # fmt: skip
    observed: dict[str, Tensor] = {"x": torch.tensor([0.5, math.nan]), "y": torch.tensor(5.5)}
    figure = predictive_figure(replicated, observed)
    x, y = figure.axes[:2]
    assert (x.get_ylabel(), y.get_ylabel()) == ("x", "y")
    for patch, (low, high) in zip(x.patches, ((0.05, 0.95), (0.25, 0.75)), strict=True):
        band = patch.get_data()
        assert band.values == pytest.approx([high, 2 * high])
        assert band.baseline == pytest.approx([low, 2 * low])
    (points,) = x.lines
    assert points.get_ydata()[0] == 0.5 and math.isnan(points.get_ydata()[1])
    prior = {name: 9 * value for name, value in replicated.items()}
    beneath, *others = predictive_figure(replicated, observed, prior).axes[0].patches
    assert len(others) == 2 and beneath.get_data().values == pytest.approx([8.55, 17.1])
