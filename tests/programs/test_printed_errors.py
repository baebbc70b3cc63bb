"""The ± that evaluate and compare print is the spread of what they print, over data and noise."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from inference.measuring.bounds import in_bits
from pyro_mdm import ALDA, VPSDE
from pyro_mdm.evaluation.comparison import compare, log_likelihood
from pyro_mdm.evaluation.estimates import Estimate
from tests.benchmarks.likelihoods import lognormal
from tests.known_bound import DIMS, MEAN, VARIANCE, denoiser, programs
from tests.problems import normal

REPEATS = 30
UNIT = DIMS * math.log(2)


def fresh(seed: int, n: int) -> Tensor:
    """Data of another draw, of another spread each: some are harder than others."""
    scale = (0.5 * normal(7 * seed + 1, n, 1)).exp()
    return MEAN + math.sqrt(VARIANCE) * scale * normal(7 * seed, n, DIMS)


def spread(one: Callable[[int], list[tuple[float, float]]]) -> list[float]:
    """The errors that are printed, in root mean square, over the spreads of the values.

    An eighth of them is their own error.
    """
    found = torch.tensor([one(seed) for seed in range(REPEATS)], dtype=torch.float64)
    value, error = found.unbind(-1)
    return (error.square().mean(0).sqrt() / value.std(0)).tolist()


# data, options of the evaluation, and the part of the data that it draws
CASES = {
    "all": (200, {"draws": 2}, (1.0, 1.0)),
    "some": (1200, {"half_width": 0.12, "draws": 50}, (0.2, 0.9)),
    "few": (3000, {"half_width": 0.3, "draws": 50}, (0.02, 0.2)),
}


@pytest.mark.parametrize(
    ("case", "control_variate"),
    # alone nothing is predicted, and "some" is drawn as "few" is
    [*((case, True) for case in CASES), ("few", False)],
)
def test_error_of_a_bound(case: str, control_variate: bool) -> None:
    """With a log-determinant that varies with the datum too, as that of dequantized data does.

    Counting predictions as data was wrong by 40 at times.
    """
    n, options, (least, most) = CASES[case]
    pair = programs(VPSDE(max_log_snr=3.0), denoiser(0.6))
    parts = []

    def one(seed: int) -> list[tuple[float, float]]:
        x = fresh(seed, n)
        found: Estimate = log_likelihood(
            *pair, x, seed=seed, control_variate=control_variate, bins=6, **options
        )
        parts.append(float(found.per_datum_error.isfinite().double().mean()))
        return [in_bits(found, torch.zeros(n), None), in_bits(found, x.square().sum(1), 256)]

    plain, dequantized = spread(one)
    assert not control_variate or least <= sum(parts) / REPEATS <= most
    assert 0.55 < plain < 2.3
    assert 0.55 < dequantized < 2.3


@pytest.mark.parametrize("case", ["all", "few"])
def test_error_of_the_difference_of_a_reused_denoiser(case: str) -> None:
    """One denoiser under two diffusions whose ends differ, on the same data at the same noise."""
    n, options, _ = CASES[case]
    score = denoiser(0.6)
    pairs = {
        "new": programs(ALDA(max_log_snr=3.0), score),
        "own": programs(VPSDE(max_log_snr=3.0, min_log_snr=-2.0), score),
    }

    def one(seed: int) -> list[tuple[float, float]]:
        found = compare(pairs, fresh(seed, n), seed=seed, bins=6, **options)
        return [found.differences[0].bits_per_dim]

    assert 0.55 < spread(one)[0] < 3.5  # few draws where the ends differ: careful, never too small


@pytest.mark.slow
def test_stopping_leaves_no_bias_where_tails_are_heavy() -> None:
    """Lognormal integrands, σ = 1.5: a rule that looks at its own draws is 3% low (σ = 2: 5%)."""
    found = [lognormal(1.5, seed) for seed in range(80)]
    off, error = torch.tensor([f[:2] for f in found], dtype=torch.float64).mT
    assert abs(float(off.mean())) < 5 * float(off.std()) / math.sqrt(len(off))
    assert float(off.std()) / math.sqrt(len(off)) < 0.0085  # so that 3% would show
    covered = float((off.abs() < 1.96 * error).double().mean())
    assert covered > 0.95 - 5 * math.sqrt(0.05 * 0.95 / len(off))
