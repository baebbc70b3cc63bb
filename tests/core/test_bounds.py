"""``bound``: known values by every route, errors that are the spread, no traces left behind."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn

from pyro_mdm import (
    CLD,
    VPSDE,
    Denoiser,
    DiffusionGuide,
    DiffusionModel,
    DiscreteDenoiser,
    ELBOTerms,
    NoisePrediction,
    RawScore,
    bound,
)
from pyro_mdm.evaluation.comparison import log_likelihood
from pyro_mdm.evaluation.estimates import Noise
from pyro_mdm.levels import DiscretizedGaussian, NetworkPosterior
from pyro_mdm.likelihoods import Gaussian, JointTweedie, Tweedie
from pyro_mdm.networks import MLP
from pyro_mdm.support.measured import Measured
from tests.known_bound import (
    DIMS,
    MEAN,
    VARIANCE,
    Wrong,
    bound_by_quadrature,
    data,
    denoiser,
    exact_bound,
    programs,
)
from tests.problems import fixed, normal

UNIT = DIMS * math.log(2)
NAMES = ["reconstruction", "prior_kl", "diffusion", "elbo"]


def cut_cld() -> CLD:
    return CLD(max_log_snr=2.0, min_log_snr=-4.0)


@pytest.mark.quick
def test_many_data_are_log_likelihood() -> None:
    pair, x = programs(cut_cld(), denoiser(0.5)), data(40)
    found = bound(*pair, x, draws=3, seed=5, batch_size=16)
    same = log_likelihood(*pair, x, draws=3, seed=5, batch_size=16)
    assert found.elbo == (same.mean, same.standard_error)
    assert found.diffusion == same.diffusion and found.num_data == 40
    assert found.bits_per_dim[0] == pytest.approx(same.bits_per_dim)
    assert torch.equal(found.per_datum, same.per_datum)


@pytest.mark.quick
@pytest.mark.parametrize("n", [1, 3])
def test_few_data_have_the_known_bound(n: int) -> None:
    diffusion, x = cut_cld(), data(n)
    found = bound(*programs(diffusion, denoiser(0.5)), x, draws=400)
    with torch.no_grad():
        truth = exact_bound(diffusion, x, 0.5)
    error = found.per_datum_error
    assert bool((error < 0.7).all())  # a term of the wrong size would be off by more than 5
    assert bool(((found.per_datum - truth).abs() < 5 * error).all())
    assert abs(found.elbo.mean - float(truth.mean())) < 5 * found.monte_carlo_error
    if n == 1:
        assert found.elbo.standard_error == found.monte_carlo_error
    else:
        spread = float(truth.std()) / math.sqrt(n)
        spread = math.hypot(spread, found.monte_carlo_error)
        assert 0.4 * spread < found.elbo.standard_error < 2.5 * spread  # of three, with their noise


# -- the error of each datum -----------------------------------------------------------------------

LEVELS = torch.linspace(-1.0, 1.0, 5, dtype=torch.float64)
ROWS = torch.cartesian_prod(LEVELS, LEVELS)  # all data of two levels
COPIES, REPEATS = 20, 4
SCORES: dict[str, Callable[[Tensor], Any]] = {
    "denoiser": lambda x: Denoiser.fit(network(2), x),
    "discrete": lambda x: DiscreteDenoiser.fit(network(10), x, LEVELS),
    "noise": lambda x: NoisePrediction(network(2)),
    "score": lambda x: RawScore(network(2)),
}
DECODERS: dict[str, Callable[[], Any]] = {
    "default": lambda: None,
    "gaussian": lambda: Gaussian(0.0, 0.5),
    "flat": Gaussian,
    "tweedie": Tweedie,
    "joint": JointTweedie,
    "discretized": lambda: DiscretizedGaussian(LEVELS),
    "network": NetworkPosterior,
}
BOUNDS = [
    *((score, decoder) for score in SCORES for decoder in ("gaussian", "tweedie", "joint")),
    *(("denoiser", decoder) for decoder in ("default", "flat", "discretized")),
    *(("discrete", decoder) for decoder in ("default", "network")),
]


def network(outputs: int) -> nn.Module:
    net = MLP(2, hidden=8, depth=1, out_features=outputs)
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            parameter.copy_(0.4 * fixed(i, *parameter.shape))
    return net.double()


@functools.cache
def of_levels(score: str, decoder: str) -> tuple[Any, Any, Tensor]:
    """Programs of data of few levels, and the bound of each of ROWS."""
    diffusion = VPSDE(max_log_snr=4.0, min_log_snr=-4.0)
    model = DiffusionModel(diffusion, SCORES[score](ROWS), DECODERS[decoder](), event_shape=(2,))
    return model, DiffusionGuide(diffusion), bound_by_quadrature(model.eval(), ROWS)


@pytest.mark.parametrize(
    ("score", "decoder", "draws"),
    [(*which, draws) for i, which in enumerate(BOUNDS) for draws in ((1,), (4,), (1, 4))[i % 3]],
)
def test_the_error_of_a_datum_covers_its_bound(score: str, decoder: str, draws: int) -> None:
    """Within 1.96 errors lie 93 to 97% of data, however few draws there are.

    Shares of 2,000 have a standard deviation of 0.6%, and what all data of a repeat share, which is
    the error's own error, adds 2% / √4 at the most: false alarm below 1e-6 at 5.7%.
    """
    model, guide, truth = of_levels(score, decoder)
    x, truth = ROWS.repeat(COPIES, 1), truth.repeat(COPIES)
    found = [bound(model, guide, x, draws=draws, seed=seed) for seed in range(REPEATS)]
    off = torch.stack([one.per_datum - truth for one in found])
    error = torch.stack([one.per_datum_error for one in found])
    covered = float((off.abs() < 1.96 * error).double().mean())
    assert 0.93 - 0.057 < covered < 0.995
    assert float(off.square().mean() / error.square().mean()) == pytest.approx(1.0, abs=0.35)


LAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda normal: normal,
    "skewed": lambda normal: 1 - normal.square(),
    "uneven": lambda normal: normal * torch.linspace(-2, 2, normal.shape[-1]).double().exp(),
}


@pytest.mark.parametrize(("law", "n"), [("normal", 1), *itertools.product(LAWS, (8, 200))])
@pytest.mark.parametrize("draws", [2, 4, 32])
def test_noise_of_few_draws_is_known_by_students_law(law: str, n: int, draws: int) -> None:
    """For simulated paths, chains, and less than 8 data, of which nothing else is known. Of 1,200
    shares 0.91 to 0.98: false alarm below 1e-6 at 4.5%."""
    many = LAWS[law](normal(draws, 1200 // n, draws, n))
    error = torch.stack([Noise.from_draws(one).error for one in many])
    covered = float((many.mean(1).abs() < 1.96 * error).double().mean())
    assert 0.91 - 0.045 < covered < 0.995


def test_terms_add_up_in_both_units() -> None:
    found = bound(*programs(cut_cld(), denoiser(0.5)), data(20))
    terms = dict(found.items())
    assert list(terms) == NAMES
    total = terms["reconstruction"][0] - terms["prior_kl"][0] - terms["diffusion"][0]
    assert terms["elbo"].mean == pytest.approx(total)
    bits = found.in_bits()
    assert bits["elbo"] == found.bits_per_dim
    assert sum(bits[name].mean for name in NAMES[:3]) == pytest.approx(bits["elbo"].mean)
    for name, (mean, error) in bits.items():
        assert abs(mean) == pytest.approx(abs(terms[name].mean) / UNIT)
        assert error == pytest.approx(terms[name].standard_error / UNIT)


@pytest.mark.parametrize("n", [5, 20])
def test_nothing_is_left_behind(n: int) -> None:
    """No gradients, no other random numbers, no other mode; and a seed makes the same number."""
    seen: list[tuple[int, bool, bool]] = []

    class Watched(Wrong):
        def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
            seen.append((len(z), self.training, torch.is_grad_enabled()))
            return super().forward(z, log_snr)

    model, guide = programs(cut_cld(), Denoiser(Watched(0.5), MEAN, VARIANCE))
    state = torch.get_rng_state()
    first = bound(model, guide, data(n), draws=2, batch_size=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert seen and all(rows <= 4 and not grad and not on for rows, on, grad in seen)
    assert model.training and not first.per_datum.requires_grad
    assert all(p.grad is None for p in model.parameters())
    torch.manual_seed(17)
    assert bound(model, guide, data(n), draws=2, batch_size=4).elbo == first.elbo
    assert bound(model, guide, data(n), draws=2, batch_size=4, seed=1).elbo != first.elbo


def test_programs_of_ones_own() -> None:
    """A model with an observation more: its term is in the reconstruction."""
    model, guide = programs(VPSDE(max_log_snr=3.0), denoiser())

    def both(x: Tensor) -> None:
        model(x)
        with pyro.plate("labels", len(x)):
            pyro.sample("y", pyro.distributions.Normal(0.0, 1.0), obs=x.new_zeros(len(x)))

    x = data(11)
    found = bound(both, guide, x, draws=50, batch_size=4)
    alone = bound(model, guide, x)
    extra = found.reconstruction.mean - alone.reconstruction.mean
    assert extra == pytest.approx(
        -0.5 * math.log(2 * math.pi), abs=0.4
    )  # of 40 seeds the deviation is 0.07

    def copied(program: Any) -> Any:
        def run(x: Tensor) -> None:
            with pyro.plate("copies", 2, dim=-2):
                program(x)

        return run

    with pytest.raises(ValueError, match=r"terms .* \(2, 4\) .* expected one for each datum"):
        bound(copied(model), copied(guide), x, batch_size=4)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Measured(1.73456, 0.0193), "1.735 ± 0.019"),
        (Measured(-76.97, 8.4), "-77.0 ± 8.4"),
        (Measured(1234.5, 120.0), "1234 ± 120"),
        (Measured(0.0, 0.0), "0.0000 ± 0.0000"),
        (Measured(-1e-5, 1e-5), "0.0000 ± 0.0000"),
        (Measured(2.0, math.nan), "2.0000"),
    ],
)
def test_a_measured_number_prints_to_the_digits_of_its_error(value: Measured, text: str) -> None:
    assert str(value) == text


def test_one_value_has_no_error() -> None:
    assert math.isnan(Measured.from_values(torch.ones(1)).standard_error)
    values = torch.tensor([1.0, 2.0, 4.0])
    assert isinstance(ELBOTerms(*[values] * 4), ELBOTerms) and "± " in str(ELBOTerms(*[values] * 4))
