"""Figures show the right numbers, with their errors, on axes that say what they are."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from pyro_mdm import ALDA, CLD, MALDA, VPSDE, LearnedDiffusion, LinearDiffusion
from pyro_mdm.plots import figures

TERMS = ("bits_per_dim", "reconstruction", "prior_kl", "diffusion")


def bound(step: int, whole: float, prior: float, reconstruction: float) -> dict[str, Any]:
    """A record of a bound over two intervals of log SNR, as it comes back from JSON."""
    values = (whole, reconstruction, prior, whole - prior - reconstruction)
    return {
        "step": step,
        "terms": {term: [value, 0.1 * step] for term, value in zip(TERMS, values, strict=True)},
        "log_snr_edges": [-2.0, 0.0, 4.0],
        "diffusion_by_log_snr": [0.01 * step, None],
        "diffusion_by_log_snr_error": [0.002 * step, None],
    }


def snapshots(*diffusions: LinearDiffusion) -> list[dict[str, Any]]:
    """Records of the diffusion at steps 0, 10, 20, …, through JSON."""
    records = [{"step": 10 * i, **figures.snapshot(d)} for i, d in enumerate(diffusions)]
    return json.loads(json.dumps(records))


def labels(figure: Figure) -> list[tuple[str, str]]:
    return [(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes]


def test_the_curves_are_those_of_the_diffusion() -> None:
    diffusion = CLD()
    figure = figures.curves_figure(diffusion, points=50)
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
    figure = figures.diffusion_term_figure(edges, [0.5, 0.4, 0.1], [0.05, math.nan, 0.01])
    (axes,) = figure.axes
    assert "log SNR" in axes.get_xlabel() and "bits/dim per unit" in axes.get_ylabel()
    stairs: Any = axes.patches[0]
    heights, drawn, _ = stairs.get_data()
    assert torch.as_tensor(heights).tolist() == pytest.approx([0.25, 0.1, 0.1 / 11])
    assert (heights * (drawn[1:] - drawn[:-1])).sum() == pytest.approx(1.0)
    assert "1.000 ± 0.051" in axes.get_title()
    with pytest.raises(ValueError, match=r"4 edges, \(2,\) means"):
        figures.diffusion_term_figure(edges, [0.5, 0.4], [0.1, 0.1, 0.1])


# -- over training ---------------------------------------------------------------------------------


def areas(axes: Any) -> list[np.ndarray]:
    """Corners, (n, 2), of the filled areas of ``axes``."""
    filled = [c for c in axes.collections if isinstance(c, PolyCollection)]
    return [path.vertices for c in filled for path in c.get_paths()]


def test_the_bound_of_each_part_has_its_band() -> None:
    records = [bound(1, 2.0, 0.25, 0.5), bound(3, 1.5, 0.25, 0.5)]
    parts = {"train": records[:1], "validation": records, "test": [bound(3, 1.6, 0.3, 0.6)]}
    (axes,) = figures.bound_figure(parts, "digits under cld").axes
    (band,) = areas(axes)  # single measurements have bars
    ends = [sorted(band[band[:, 0] == step][:, 1]) for step in (1, 3)]
    assert [e for low, *_, high in ends for e in (low, high)] == pytest.approx([1.9, 2.1, 1.2, 1.8])
    names = axes.get_legend_handles_labels()[1]
    assert set(names) == {"train 2.000 ± 0.100", "validation 1.500 ± 0.300", "test 1.600 ± 0.300"}
    low, high = axes.get_ylim()  # just beyond the ends of bands and bars
    assert 1.1 < low < 1.2 and 2.1 < high < 2.2
    assert axes.get_ylabel().startswith("bits/dim") and axes.get_title() == "digits under cld"
    for figure in (figures.bound_figure, figures.terms_figure):
        with pytest.raises(ValueError, match=r"records of \['train'\]"):
            figure({"train": []})


def test_every_term_of_the_bound_has_a_panel() -> None:
    records = [bound(1, 2.0, 0.25, 0.5), bound(3, 1.5, 0.25, 0.5)]
    parts = {"train": records[:1], "validation": records, "test": [bound(3, 1.6, 0.3, 0.6)]}
    figure = figures.terms_figure(parts)
    for axes, values, words in zip(
        figure.axes,
        ([1.25, 0.75], [0.5, 0.5], [0.25, 0.25]),
        (
            "diffusion: along the path, 0.750 ± 0.300",
            "reconstruction: at the start, 0.500 ± 0.300",
            "prior KL: left in the noise, 0.250 ± 0.300",
        ),
        strict=True,
    ):
        assert axes.lines[0].get_ydata().tolist() == pytest.approx(values)
        assert axes.get_title(loc="left") == words and len(areas(axes)) == 1
    assert figure.get_supylabel() == "bits/dim (validation)"


def test_an_unknown_error_has_no_band_and_a_flat_curve_an_axis() -> None:
    records = [bound(1, 1.5, 0.0, -30.0), bound(2, 1.25, 0.0, -29.75)]
    for record in records:
        record["terms"]["bits_per_dim"][1] = record["terms"]["prior_kl"][1] = None
    (axes,) = figures.bound_figure({"train": records}).axes
    assert np.ptp(areas(axes)[0][:, 1]) == 0.25
    assert axes.lines[0].get_ydata().tolist() == [1.5, 1.25]
    assert axes.get_legend_handles_labels()[1] == ["train 1.250"]
    *_, prior_kl = figures.terms_figure({"train": records}).axes
    assert prior_kl.get_ylim() == pytest.approx((-0.005, 0.005))


def test_the_heat_map_holds_densities_of_every_step_and_their_errors() -> None:
    records = [bound(step, 2.0, 0.1, 0.1) for step in (10, 20, 50)]
    figure = figures.diffusion_term_history_figure(records)
    for axes, factor in zip(figure.axes[:2], (0.01, 0.002), strict=True):
        columns = axes.collections
        assert [column.get_array()[0, 0] for column in columns] == pytest.approx(
            [factor * step / 2 for step in (10, 20, 50)]  # bits/dim over 2 units of log SNR
        )
        assert all(np.ma.getmaskarray(column.get_array())[1, 0] for column in columns)
        corners = [column.get_coordinates()[0, :, 0].tolist() for column in columns]
        assert corners == [[5.0, 15.0], [15.0, 35.0], [35.0, 65.0]]
        assert columns[0].get_coordinates()[:, 0, 1].tolist() == [-2.0, 0.0, 4.0]
        assert columns[0].norm is columns[2].norm
    many = [bound(step, 2.0, 0.1, 0.1) for step in range(1, 1001)]
    drawn = figures.diffusion_term_history_figure(many).axes[0].collections
    assert len(drawn) == 100
    assert drawn[-1].get_array()[0, 0] == pytest.approx(5.0)  # the last is among them
    with pytest.raises(ValueError, match="no record"):
        figures.diffusion_term_history_figure([])


@pytest.mark.parametrize("build", [VPSDE, CLD, MALDA, ALDA, lambda: LearnedDiffusion(4)])
def test_a_snapshot_holds_the_diffusion_and_passes_through_json(build: Any) -> None:
    diffusion = build()
    (record,) = snapshots(diffusion)
    Q, D, times, clock, rate = (
        torch.tensor(record[name], dtype=torch.float64)
        for name in ("Q", "D", "times", "clock", "rate")
    )
    assert torch.equal(Q, diffusion.Q) and torch.equal(D, diffusion.D)
    assert times[-1] == diffusion.horizon
    assert torch.equal(clock, diffusion.clock(times).detach())
    assert torch.equal(rate, diffusion.rate(times).detach())
    # e^μ multiplies the modes of the noised mean: its determinant and trace are those of M(T, 0)
    mu = torch.view_as_complex(torch.tensor(record["eigenvalues"], dtype=torch.float64))
    M = diffusion.transition(diffusion.horizon).matrix.detach()
    assert mu.sum().real.item() == pytest.approx(torch.logdet(M).item(), rel=1e-6)
    assert mu.exp().sum().real.item() == pytest.approx(M.trace().item(), rel=1e-6, abs=1e-9)


def marks(axes: Any, label: str) -> np.ndarray:
    (line,) = (line for line in axes.lines if line.get_label().startswith(label))
    return np.stack([line.get_xdata(), line.get_ydata()], 1)


def test_the_eigenvalues_of_an_oscillator_cross_the_line_of_critical_damping() -> None:
    # A_0 = [[0, ω], [-ω, -2]] has μ² + 2 μ + ω² = 0: critical at ω = 1
    def oscillator(omega: float) -> LinearDiffusion:
        return LinearDiffusion([[0.0, -omega], [omega, 0.0]], [[0.0, 0.0], [0.0, 2.0]])

    under, over = oscillator(math.sqrt(2.0)), oscillator(math.sqrt(0.75))
    critical = CLD()
    records = snapshots(under, critical, over)
    figure = figures.eigenvalues_figure(records, figures.preset_eigenvalues(under))
    plane, close = figure.axes[:2]
    b = under.clock(1.0).item()
    drawn = np.asarray(plane.collections[0].get_offsets()).reshape(3, 2, 2) / b
    assert sorted(drawn[0].tolist()) == [pytest.approx([-1.0, -1.0]), pytest.approx([-1.0, 1.0])]
    assert drawn[1] == pytest.approx(np.array([[-1.0, 0.0]] * 2), abs=1e-6)
    assert sorted(drawn[2].tolist()) == [pytest.approx([-1.5, 0.0]), pytest.approx([-0.5, 0.0])]
    assert plane.collections[0].get_array().tolist() == [0, 0, 10, 10, 20, 20]
    assert marks(plane, "critical damping")[:, 1].tolist() == [0.0, 0.0]
    assert sorted((marks(plane, "step 20") / b)[:, 0]) == pytest.approx([-1.5, -0.5])
    at_same_end = CLD(min_log_snr=under.terminal_log_snr.item()).clock(1.0).item()
    assert marks(plane, "CLD") == pytest.approx(np.array([[-at_same_end, 0.0]] * 2), abs=1e-5)
    assert plane.get_xlabel().startswith("Re μ") and plane.get_ylabel().startswith("Im μ")
    low, high = close.get_ylim()
    assert low < 0.0 and high > b > plane.get_ylim()[0]
