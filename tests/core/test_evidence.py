"""What weights estimate: evidences, their errors, and where there is none."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import torch
from scipy.stats import binom, t
from torch import Tensor

from pyro_mdm.evaluation.importance import weighted
from pyro_mdm.evaluation.weights import (
    ImportanceWeights,
    evidence,
    of_repeats,
    pareto_k,
    spread_of,
)
from pyro_mdm.support.measured import Z95, Measured

Law = Callable[[torch.Generator, int, int], Tensor]
"""Log-weights (S, n) whose exponentials have the mean 1."""


def normal(generator: torch.Generator, S: int, n: int) -> Tensor:
    return torch.randn(S, n, dtype=torch.float64, generator=generator)


def uniform(generator: torch.Generator, S: int, n: int) -> Tensor:
    return 1 - torch.rand(S, n, dtype=torch.float64, generator=generator)  # without 0


def gaussian(variance: float, d: int) -> Law:
    """A standard normal distribution in d dimensions by a Gaussian of another variance."""

    def law(g: torch.Generator, S: int, n: int) -> Tensor:
        square = sum(normal(g, S, n).square() for _ in range(d))
        return d / 2 * math.log(variance) + (1 - variance) / 2 * square

    return law


def gamma(g: torch.Generator, S: int, n: int) -> Tensor:
    """Unequal weights with a light tail."""
    torch.manual_seed(int(torch.randint(2**31, (), generator=g)))
    return torch.distributions.Gamma(torch.tensor(0.3).double(), 0.3).sample((S, n)).log()


LIGHT: dict[str, Law] = {
    "equal": lambda g, S, n: torch.zeros(S, n, dtype=torch.float64),
    "lognormal 1": lambda g, S, n: normal(g, S, n) - 0.5,
    "gaussian 0.8, d 20": gaussian(0.8, 20),
    "pareto 0.4": lambda g, S, n: ((uniform(g, S, n) ** -0.4 - 1) * 1.5).log(),
    "gamma 0.3": gamma,
    "zeros 0.05": lambda g, S, n: torch.where(uniform(g, S, n) < 0.05, -math.log(0.05), -math.inf),
}
"""Light tails; of others weights alone know too little."""
LAWS = LIGHT | {"gaussian 2, d 3": gaussian(2.0, 3)}


def covered(law: Law, S: int, seed: int, runs: int = 200) -> tuple[int, int]:
    """Of runs of S weights, how many errors hold the truth, and how many there are."""
    value, error, _ = evidence(law(torch.Generator().manual_seed(seed), S, runs))
    right = value.abs() <= Z95 * error + 1e-9  # rounding, of equal weights
    return int(right.sum()), int(error.isfinite().sum())


# -- coverage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIGHT)
def test_errors_hold_the_truth(name: str) -> None:
    """Nine in ten of 200 runs each of 200 and 1,000 weights, of those that have an error.

    Of errors that are right nine times in ten so few are in one case of a million, by the exact
    binomial tail.
    """
    seed = int(torch.randint(2**31, ()))
    few, many = (covered(LIGHT[name], S, seed + S) for S in (200, 1_000))
    right, given = few[0] + many[0], few[1] + many[1]
    assert float(binom.cdf(right, given, 0.9)) > 1e-6, f"{right} of {given}"
    assert many[1] > 0.8 * 200  # 93% or more, and of 200 rarely fewer than 85%


@pytest.mark.parametrize("name", ["lognormal 1", "gaussian 2, d 3"])
def test_errors_of_light_tails_are_at_most_half_again_too_large(name: str) -> None:
    """Of 400 runs, which tell the spread to 7%, beside the median error."""
    generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
    value, error, _ = evidence(LAWS[name](generator, 256, 400))
    assert 0.7 < float(error.nanmedian() / value.std()) < 1.5


# -- errors and tails by hand ----------------------------------------------------------------------


def columns(*weights: list[float]) -> Tensor:
    return torch.tensor(weights, dtype=torch.float64).T.log()


def test_an_error_by_hand() -> None:
    """Forty weights, one of them 2 and the others 1, by Student's t with 80 / (κ - 1) degrees."""
    found = evidence(columns([2.0] + [1.0] * 39, [3.0] * 40))
    mean = 41 / 40
    squares = (2 - mean) ** 2 + 39 * (1 - mean) ** 2
    spread = math.sqrt(squares / 39 / 40) / mean
    kurtosis = 40 * ((2 - mean) ** 4 + 39 * (1 - mean) ** 4) / squares**2
    widened = float(t.ppf(0.975, 80 / (kurtosis - 1))) / 1.959964
    assert found.value.tolist() == pytest.approx([math.log(mean), math.log(3)])
    assert found.error.tolist() == pytest.approx([spread * widened, 0], abs=1e-12)
    assert widened > 2, "one weight is almost all of the spread"
    assert found.pareto_k.isnan().all(), "of equal weights, but for one, there is no tail"


def test_the_error_of_strata_is_that_of_their_sum() -> None:
    """Of three weights and of five, by their variances about their own means."""
    strata = [torch.tensor([1.0, 2.0, 4.0]).double(), torch.tensor([9.0, 8, 7, 9, 6]).double()]
    variances = [3 * 7 / 3, 5 * 6.8 / 4]
    assert [3 * float(strata[0].var()), 5 * float(strata[1].var())] == pytest.approx(variances)
    off = torch.cat([w - w.mean() for w in strata])
    kurtosis = 8 * float(off.pow(4).sum() / off.square().sum() ** 2)
    degrees = min(16 / (kurtosis - 1), 6)
    widened = float(t.ppf(0.975, degrees)) / 1.959964
    assert float(spread_of(strata)) == pytest.approx(math.sqrt(sum(variances)) / 8 * widened)


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ([1.0], "a single weight"),
        ([1.0, 3.0], "the largest of 2 weights is 75% of their sum, expected at most 60%"),
        ([1.0] * 29 + [4.6], "the largest of 30 weights is 14% of their sum, expected at most 13%"),
        ([0.0] * 30, "all of 30 weights are 0"),
        ([1.0, math.nan] * 15, "some of 30 weights are NaN or infinite"),
        ([1.0, math.inf] * 15, "some of 30 weights are NaN or infinite"),
        ([math.exp(i) for i in range(40)], r"a tail of k̂ \d\.\d\d, expected at most 0\.38"),
    ],
    ids=["one", "two", "large", "zeros", "nan", "infinite", "steep"],
)
def test_where_too_little_counts_there_is_no_error(weights: list[float], reason: str) -> None:
    """And what is printed says so, with the reason and a fix."""
    alone = ImportanceWeights(columns(weights)[:, 0])
    assert math.isnan(alone.log_evidence.standard_error)
    said = repr(alone)
    assert re.search(f"too few for an error of log evidence .*: .*{reason}", said), said
    assert "±" not in said and "take more draws, or a better guide" in said
    with pytest.warns(UserWarning, match=f"{reason}.*not to be trusted.*; mend it") as warned:
        alone.warn("mend it")
    assert warned[0].filename == __file__
    beside = evidence(columns(weights, [1.0] * len(weights)))
    assert beside.error[0].isnan() and not beside.error[1] > 1e-12


def test_the_largest_weight_may_be_a_tenth_of_the_sum() -> None:
    """Beyond an equal part, 1/30: 4.4 is 13.2% of its sum, 4.6 in the test before 13.7%."""
    assert evidence(columns([1.0] * 29 + [4.4])).error.isfinite()


def test_zeros_and_weights_that_repeat_are_no_tail() -> None:
    """A tail is that of the weights that are possible, and above where it starts."""
    weights = torch.randn(500, 1, dtype=torch.float64)
    with_zeros = torch.cat([weights, torch.full((9_000, 1), -math.inf).double()])
    torch.testing.assert_close(pareto_k(with_zeros), pareto_k(weights))
    assert pareto_k(columns([0.0] * 950 + [1.0] * 50)).isnan()
    rounded = 1e-5 * torch.distributions.StudentT(torch.tensor(1.0)).sample((500, 1)).clamp(-5, 5)
    assert pareto_k(rounded.double()).isnan(), "equal weights but for rounding"
    assert pareto_k(columns([1.0] * 996 + [2.0, 3.0, 9.0, 99.0])).isnan(), "too few are above"
    assert pareto_k(columns([1.0] * 960 + [2.0**i for i in range(1, 41)])) > 1


def test_weights_that_hardly_differ_have_an_error_whatever_their_tail() -> None:
    """A heavy tail whose largest weight is 1.9 or 2.1 times the mean."""
    quantiles = torch.linspace(0, 1, 2_001, dtype=torch.float64)[:-1]
    excess = (1 - quantiles) ** -1.2 - 1  # of index 1.2
    for largest, has_error in ((1.9, True), (2.1, False)):
        w = 1 + excess * (largest - 1) / excess.max()
        w[-1] = largest * w[:-1].sum() / (len(w) - largest)  # in units of the mean
        found = evidence(w.log()[:, None])
        assert found.pareto_k > 0.7 and found.error.isfinite() == has_error
        if has_error:
            assert found.error < 0.02


def test_tails_are_those_of_known_laws() -> None:
    torch.manual_seed(2)
    shape = torch.tensor([4.0, 1.0]).repeat(50).double()
    weights = torch.distributions.Pareto(torch.ones(100).double(), shape).sample((4000,))
    k = pareto_k(weights.log()).reshape(50, 2)
    error = k.std(0) / math.sqrt(50)
    assert bool((error < 0.03).all())
    # with a bias of 0.02 for 1/4, as the tail begins where the law is not all tail yet
    assert bool(((k.mean(0) - torch.tensor([0.25, 1.0])).abs() < 5 * error + 0.03).all())
    steep = torch.linspace(0, 40_000, 50, dtype=torch.float64)[:, None]
    assert pareto_k(steep).item() == math.inf
    assert pareto_k(torch.zeros(50, 1, dtype=torch.float64)).isnan().all()
    normal = torch.randn(50, 2000, dtype=torch.float64)
    off = evidence(0.3 * normal).value.exp() - math.exp(0.045)
    assert abs(float(off.mean())) < 6 * float(off.std()) / math.sqrt(2000)


@pytest.mark.parametrize(("S", "tail"), [(64, 13), (400, 60)])
def test_the_tail_is_the_largest_fifth_or_three_roots(S: int, tail: int) -> None:
    """The tail index changes with the largest weight outside of the tail, and with no smaller."""
    weights = torch.distributions.Exponential(torch.ones(S).double()).sample().sort(0, True).values
    found = pareto_k(weights.log()[:, None])
    for rank, matters in ((tail - 1, True), (tail, True), (tail + 1, False)):
        changed = weights.clone()
        changed[rank] = (weights[rank] + weights[rank + 1]) / 2  # keeps their order
        moved = float(pareto_k(changed.log()[:, None]) - found)
        assert (abs(moved) > 1e-5) == matters


@pytest.mark.parametrize(("S", "limit"), [(64, 0.4463), (256, 0.5848), (4096, 0.7)])
def test_a_heavy_tail_is_seen_by_few_weights_too(S: int, limit: float) -> None:
    """Of weights whose tail index is 0.9, four data of five at least; at 0.7, half of those of 64
    were. Of many weights with a light tail, none."""
    torch.manual_seed(6)
    n = 400 if S < 1000 else 100
    heavy, light = (
        weighted("x", ((torch.rand(S, n).double() ** -k - 1) / k).log(), 1, 1) for k in (0.9, 0.2)
    )
    assert heavy.pareto_limit == pytest.approx(limit, abs=1e-4)
    seen = float((heavy.pareto_k > limit).double().mean())
    assert seen > 0.8 - 5.5 * 0.4 / math.sqrt(n)
    assert f"k̂ above {limit:.2f} for {seen:.0%}" in heavy.weights_in_words
    if S > 64:
        assert float((light.pareto_k > limit).double().mean()) < 0.15
    few = weighted("x", heavy.pareto_k.expand(20, -1), 1, 1)
    assert few.weights_in_words.endswith("effective samples, too few to see their tail")


def test_what_weights_estimate_by_hand() -> None:
    """Of forty weights of a datum one is 2 and the others 1; of two more all are 2, and 8."""
    uneven, two = [2.0] + [1.0] * 39, math.log(2)
    found = weighted("x", columns(uneven, [2.0] * 40, [8.0] * 40), 5, 7)
    first, noise = math.log(41 / 40), float(evidence(columns(uneven)).error)
    assert found.per_datum.tolist() == pytest.approx([first, two, 3 * two])
    assert found.mean == pytest.approx((first + 4 * two) / 3)
    assert found.per_datum_error.tolist() == pytest.approx([noise, 0, 0], abs=1e-12)
    assert found.effective_samples.tolist() == pytest.approx([41**2 / 43, 40, 40])
    assert found.bound.mean == pytest.approx((two / 40 + 4 * two) / 3)
    assert found.monte_carlo_error == pytest.approx(noise / 3)
    assert found.standard_error == Measured.from_values(found.per_datum).standard_error
    assert (found.num_dims, found.network_calls, found.method) == (5, 7, "x")
    alike = weighted("x", columns(uneven, [41 / 40] * 40), 5, 7)
    assert alike.standard_error == pytest.approx(noise / 2)  # data of one value: noise is left
    one = weighted("x", columns(uneven), 5, 7)
    assert one.standard_error == pytest.approx(noise)


def test_a_bound_by_weights_has_an_error_where_log_p_has_none() -> None:
    """The bound's error is the spread over data; that of log p is unknown, and said to be."""
    heavy = columns([1.0] * 29 + [9.0], [1.0] * 30, [2.0] * 30)
    found = weighted("x", heavy, 5, 7)
    assert found.per_datum_error.isnan().tolist() == [True, False, False]
    assert math.isnan(found.monte_carlo_error)
    assert found.standard_error == Measured.from_values(found.per_datum).standard_error
    assert "too little counts for an error of log p for 33%: take more" in repr(found)
    for alone in (weighted("x", heavy[:, :1], 5, 7), weighted("x", heavy[:1, :1], 5, 7)):
        assert math.isnan(alone.standard_error) and "±" not in repr(alone)


# -- repeats, and guides from other starts ---------------------------------------------------------


def test_repeats_of_which_one_is_0_have_no_error() -> None:
    even, some = torch.tensor([[1.0, 1.1, 0.9], [1.0, 2.0, 0.0]]).double().log()
    value, error = of_repeats(even)
    variance = float(even.var())  # Cox's error is the larger one here
    cox = math.sqrt(variance / 3 + variance**2 / 4) * 4.302653 / 1.959964
    assert (value, error) == pytest.approx((0, cox), rel=1e-5)
    for log_means in (some, even[:1], torch.full((3,), -math.inf).double()):
        assert math.isnan(of_repeats(log_means).standard_error)


def test_guides_that_found_other_modes_do_not_agree() -> None:
    """Nor do weights agree that have no error. Of two guides of one law 95% do."""

    def weights(seed: int, mass: float, sigma: float) -> ImportanceWeights:
        generator = torch.Generator().manual_seed(seed)
        normal = torch.randn(2_000, dtype=torch.float64, generator=generator)
        return ImportanceWeights(math.log(mass) + sigma * normal - sigma**2 / 2)

    whole = weights(0, 1.0, 0.5)
    assert whole.agrees_with(weights(1, 1.0, 0.3)) and weights(1, 1.0, 0.3).agrees_with(whole)
    assert not whole.agrees_with(weights(2, 0.6, 0.3))
    assert not whole.agrees_with(weights(3, 1.0, 4.0))
