"""Pictures of tables show every column with its name and its own values, observed beside drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import Rectangle, StepPatch

from pyro_mdm.plots.tables import calibration_figure, marginals_figure, pairs_figure

RNG = np.random.default_rng(0)


def table(n: int = 100) -> dict[str, Any]:
    """Columns of all kinds."""
    spent = np.where(np.arange(n) % 4 < 3, 0.0, np.linspace(1, 2, n))
    return {
        "height in cm": np.linspace(150, 190, n),
        "spent": spent,
        "children": np.arange(n) % 3,
        "town": [None if i % 10 == 0 else "ab"[i % 2] for i in range(n)],
        "member": np.arange(n) % 5 == 0,
        "joined": np.datetime64("2020-01-01") + np.arange(n),
    }


def panels(figure: Any) -> dict[str, Any]:
    return {axes.get_xlabel(): axes for axes in figure.axes if axes.get_xlabel()}


def bars(axes: Any) -> list[tuple[float, float]]:
    """Centres and heights of bars, those of the observed table first."""
    rectangles = [p for p in axes.patches if isinstance(p, Rectangle)]
    return [(p.get_x() + p.get_width() / 2, p.get_height()) for p in rectangles]


def test_each_column_has_a_panel_in_its_own_units() -> None:
    observed = table()
    drawn = {**table(60), "children": np.full(60, 1)}
    shown = panels(marginals_figure(observed, drawn))
    assert list(shown) == list(observed)
    stairs = [p for p in shown["height in cm"].patches if isinstance(p, StepPatch)]
    assert len(stairs) == 2
    assert [float(p.get_data().values.sum()) for p in stairs] == pytest.approx([1, 1])
    assert stairs[0].get_data().edges[[0, -1]] == pytest.approx([150, 190])
    assert bars(shown["children"]) == [
        pytest.approx(bar)
        for bar in [(-0.2, 0.34), (0.8, 0.33), (1.8, 0.33), (0.2, 0), (1.2, 1), (2.2, 0)]
    ]
    assert [label.get_text() for label in shown["town"].get_xticklabels()] == ["b", "a"]
    assert [height for _, height in bars(shown["town"])][:2] == pytest.approx([50 / 90, 40 / 90])
    assert shown["town"].get_title(loc="right") == "10% missing"
    assert {text.get_text() for text in shown["member"].get_xticklabels()} == {"True", "False"}
    shown["joined"].figure.canvas.draw()
    assert "2020" in shown["joined"].xaxis.get_major_formatter().get_offset() or any(
        "2020" in text.get_text() for text in shown["joined"].get_xticklabels()
    )


def test_a_number_that_repeats_is_a_spike_with_its_share() -> None:
    observed = table()
    drawn = {"spent": np.linspace(-0.5, 2, 150)}  # a model that does not know of the zeros
    axes = panels(marginals_figure({"spent": observed["spent"]}, drawn))["spent"]
    assert [height for _, height in bars(axes)] == pytest.approx([0.75, 0.0])
    own, other = (p.get_data() for p in axes.patches if isinstance(p, StepPatch))
    assert own.values.sum() == pytest.approx(0.25) and other.values.sum() == pytest.approx(1)
    assert [text.get_text() for text in axes.texts] == ["75% | 0%"]


def test_categories_stand_in_their_order_and_the_rarest_are_one() -> None:
    grades = pd.Categorical(
        ["low", "high", "high", "mid"] * 5, ["low", "mid", "high"], ordered=True
    )
    axes = panels(marginals_figure(pd.DataFrame({"grade": grades})))["grade"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["low", "mid", "high"]
    many = [f"a town called {i // 3}" for i in range(60)]
    axes = panels(marginals_figure({"town": many}))["town"]
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert len(labels) == 10 and labels[0] == "a tow…led 0" and labels[-1] == "11 others"
    assert bars(axes)[-1][1] == pytest.approx(33 / 60)


def test_every_whole_number_is_in_a_bin() -> None:
    axes = panels(marginals_figure({"age": np.append(np.arange(100), [100] * 20)}))["age"]
    (stairs,) = (p.get_data() for p in axes.patches if isinstance(p, StepPatch))
    tall = [height for _, height in bars(axes)]
    assert stairs.values.sum() + sum(tall) == pytest.approx(1) and stairs.edges[-1] > 100
    day = np.full(30, np.datetime64("2020-01-01"))
    axes = panels(marginals_figure({"day": day}))["day"]
    (stairs,) = (p.get_data() for p in axes.patches if isinstance(p, StepPatch))
    assert stairs.values.sum() + sum(height for _, height in bars(axes)) == pytest.approx(1)


def test_thirty_columns_and_more_are_a_grid() -> None:
    wide = {f"column {i}": RNG.normal(size=50) for i in range(50)}
    figure = marginals_figure(wide)
    assert list(panels(figure)) == list(wide)[:48]
    assert "first 48 of 50" in figure.legends[0].get_title().get_text()


def test_pairs_have_rows_below_the_diagonal_and_dependence_above() -> None:
    x = RNG.normal(size=300)
    observed = {"x": x, "minus": -np.exp(x), "sign": np.where(x > 0, "up", "down")}
    drawn = {"x": x, "minus": RNG.permutation(x), "sign": RNG.permutation(observed["sign"])}
    figure = pairs_figure(observed, drawn)
    grid = np.array(figure.axes).reshape(3, 3)
    assert [axes.get_xlabel() for axes in grid[-1]] == list(observed)
    assert [axes.get_ylabel() for axes in grid[:, 0]] == list(observed)
    for i, j in ((1, 0), (2, 0), (2, 1)):
        (points,) = grid[i, j].collections
        assert (
            len(points.get_offsets()) == 600
            and len(np.unique(points.get_facecolors(), axis=0)) == 2
        )
    values = [[float(t.get_text().replace("−", "-")) for t in grid[0, j].texts] for j in (1, 2)]
    assert values[0][0] == -1 and abs(values[0][1]) < 0.2
    assert 0.8 < values[1][0] < 0.9 and 0 <= values[1][1] < 0.2  # √3/2 of ranks and their half


def test_pairs_of_a_wide_table_are_those_that_depend_most() -> None:
    wide = {f"c{i}": RNG.normal(size=100) for i in range(6)}
    wide["c4"] = wide["c1"] + 0.01 * wide["c4"]
    figure = pairs_figure(wide, most=2)
    assert [axes.get_xlabel() for axes in figure.axes[-2:]] == ["c1", "c4"]
    assert "of 6 columns the 2 most dependent" in figure.legends[0].get_title().get_text()


def inside(figure: Any, name: str) -> float:
    """The part of the curve of a column that is in its band."""
    (axes,) = [a for a in figure.axes if a.get_title().startswith(f"{name}\n")]
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    level, share = axes.lines[1].get_data()
    low = [corners[np.isclose(corners[:, 0], c), 1].min() for c in level]
    high = [corners[np.isclose(corners[:, 0], c), 1].max() for c in level]
    return float(np.mean((np.array(low) <= share + 1e-9) & (share <= np.array(high) + 1e-9)))


def test_calibrated_predictions_are_in_their_band_and_others_are_not() -> None:
    u = (np.arange(200) + 0.5) / 200
    pit = {"exact": RNG.permutation(u), "narrow": np.where(u < 0.5, u / 2, 1 - (1 - u) / 2)}
    pit["exact"][:20] = np.nan
    probability = np.repeat([0.1, 0.5, 0.9], 40)
    true = np.concatenate([np.arange(40) >= 40 * p for p in (0.1, 0.5, 0.9)]).astype(float)
    classes = {"category": (np.stack([probability, 1 - probability], 1), true)}
    figure = calibration_figure(pit, classes)
    assert inside(figure, "exact") > 0.95 and inside(figure, "narrow") < 0.3
    titles = [axes.get_title() for axes in figure.axes if axes.axison]
    assert [title.splitlines()[0] for title in titles] == ["all numbers", *pit, "category"]
    assert titles[-1].endswith("77% right, 77% predicted")
    points = figure.axes[3].containers[0].lines[0].get_data()
    assert np.allclose(*points, atol=0.05)
    assert {text.get_text() for text in figure.axes[1].texts} == {"n = 180"}


def test_the_band_is_as_wide_as_chance() -> None:
    u = RNG.permutation((np.arange(200) + 0.5) / 200)
    figure = calibration_figure({"one": u, "the same": u})
    for axes in figure.axes[:2]:  # 400 entries in 200 rows tell no more than 200 do
        (band,) = axes.collections
        corners = band.get_paths()[0].vertices
        ends = corners[np.isclose(corners[:, 0], 0.5), 1]
        half = 1.96 * np.sqrt(0.25 / 200)
        assert [ends.min(), ends.max()] == pytest.approx([0.5 - half, 0.5 + half], abs=0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: marginals_figure({}), "no column"),
        (lambda: marginals_figure({"a": [1, 2], "b": [1]}), r"\[1, 2\] rows"),
        (lambda: marginals_figure({"a": [1]}, {"b": [1]}), "drawn has no column 'a'"),
        (lambda: marginals_figure({"a": [None, None]}), "'a' of observed has no value"),
        (lambda: pairs_figure({"a": [1, 2]}), "one column, 'a'"),
        (lambda: pairs_figure({"a": [1, 2], "b": [1, 2]}, most=13), "most is 13"),
        (lambda: calibration_figure({}), "no column was predicted"),
        (lambda: calibration_figure({"a": [1.5]}), r"expected \(n,\) numbers in \[0, 1\]"),
        (lambda: calibration_figure({"a": [np.nan]}), "holds no number"),
        (lambda: calibration_figure({"a": [0.5], "b": [0.5, 0.1]}), "1 of 'a', 2 of 'b'"),
        (lambda: calibration_figure({}, {"a": ([[1.0]], [0, 0])}), r"\(1, 1\) and \(2,\)"),
        (lambda: calibration_figure({}, {"a": ([[1.0]], [np.nan])}), "'a' was predicted"),
    ],
)
def test_mistakes_are_told(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
