"""Thin tests are found: what a comparison has to spare, and how many deviations that is."""

from __future__ import annotations

import pytest
import torch

from tests.thin import deviations, spared


@pytest.mark.parametrize(
    ("explained", "margins"),
    [
        ("0.25 < (5 * 0.3)", [1.25]),
        ("1.5 == 1.0 ± 0.75", [0.25, 1.25]),
        ("0.5 == 1.0 ± 7.5e-01", [1.25, 0.25]),
        ("(2.5 >= 1 and 'a' != 'b')", [1.5]),
        ("0.25 < 0.5 < inf", [0.25, float("inf")]),
        ("tensor(0.5, dtype=torch.float64) > -0.5\n +  where 0.5 = f()", [1.0]),
        ("0.1 < ((4 * 0.5) / (4 ** 0.5))", [0.9]),
        ("abs((1.0 - 3.5)) < 3", [0.5]),
        ("1.0 == 1.0", []),
        ("<function f> < [", []),
    ],
)
def test_what_a_comparison_spares(explained: str, margins: list[float]) -> None:
    assert spared(explained) == pytest.approx(margins)


def test_a_mean_of_normal_numbers_has_the_deviations_of_its_tolerance() -> None:
    """The least of a line counts, and what is no chance does not."""
    seeds, error = range(400), 0.1
    x = error * torch.randn(400, generator=torch.Generator().manual_seed(0))
    records = [("a", 1, f"{float(x[seed])} == 0.0 ± {3 * error}", seed) for seed in seeds]
    records += [("a", 2, f"{v} < 1.0", seed) for seed in seeds for v in (0.0, 0.9 + 0.01 * x[seed])]
    records += [("b", 3, "1.0 < 3.0", seed) for seed in seeds]
    found = {place: number for number, place in deviations(records)}
    assert set(found) == {("a", 1, 0), ("a", 1, 1), ("a", 2, 0)}
    assert found["a", 1, 0] == pytest.approx(3, abs=0.7)  # 5 of its standard errors
    assert found["a", 2, 0] == pytest.approx(100, abs=25)
