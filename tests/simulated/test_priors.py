"""Priors: densities, scores, samples and entropies of laws that are known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    Categorical as Choice,
    Distribution,
    Independent,
    Laplace,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    StudentT,
)

from pyro_mdm.diffusions.base import Prior
from pyro_mdm.diffusions.linear import GaussianPrior
from pyro_mdm.simulated.priors import DistributionPrior, QuadraturePrior
from tests.gradients import assert_gradients
from tests.problems import generator, normal

pytestmark = pytest.mark.quick

SE = 5.5  # standard errors allowed: 4e-8 of false alarms per number compared
COVARIANCE = torch.tensor([[1.5, 0.4, 0.0], [0.4, 0.8, -0.3], [0.0, -0.3, 0.6]]).double()


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def logistic(y: Tensor) -> Tensor:
    """Of normalizer 1 and entropy 2."""
    return y + 2 * nn.functional.softplus(-y)


def student(y: Tensor) -> Tensor:
    return 2 * (1 + y**2 / 3).log()


QUARTIC = math.log(2 * math.gamma(1.25)) + 0.25 * math.log(4)

# energy, its log normalizer, entropy, distribution function
LAWS = {
    "normal": (
        lambda y: y**2 / 2,
        0.5 * math.log(2 * math.pi),
        0.5 * math.log(2 * math.pi * math.e),
        Normal(number(0.0), number(1.0)).cdf,
    ),
    "narrow, off centre": (
        lambda y: (y - 3) ** 2 / 2e-4 + 7,
        0.5 * math.log(2 * math.pi * 1e-4) - 7,
        0.5 * math.log(2 * math.pi * math.e * 1e-4),
        Normal(number(3.0), number(0.01)).cdf,
    ),
    "laplace": (torch.abs, math.log(2), 1 + math.log(2), Laplace(number(0.0), number(1.0)).cdf),
    "logistic": (logistic, 0.0, 2.0, torch.sigmoid),
    "quartic": (
        lambda y: y**4 / 4,
        QUARTIC,
        QUARTIC + 0.25,
        lambda y: 0.5 + 0.5 * y.sign() * torch.special.gammainc(number(0.25), y**4 / 4),
    ),
    "student": (
        student,
        math.lgamma(1.5) + 0.5 * math.log(3 * math.pi) - math.lgamma(2.0),
        StudentT(number(3.0)).entropy().item(),
        lambda y: (
            0.5 + ((y / 3**0.5) / (1 + y**2 / 3) + (y / 3**0.5).atan()) / math.pi  # 3 degrees
        ),
    ),
    "cauchy": (
        lambda y: (1 + y**2).log(),
        math.log(math.pi),
        math.log(4 * math.pi),
        lambda y: 0.5 + y.atan() / math.pi,
    ),
    "gumbel": (
        lambda y: y + (-y).exp(),
        0.0,
        1 + 0.5772156649015329,
        lambda y: (-(-y).exp()).exp(),
    ),
}
every_law = pytest.mark.parametrize("name", LAWS)


# -- every prior -----------------------------------------------------------------------------------


def independent(one: Distribution) -> DistributionPrior:
    return DistributionPrior(Independent(one, 1))


def mixture() -> DistributionPrior:
    """Its entropy, and a mean of float64, are not known to PyTorch."""
    each = MultivariateNormal(normal(0, 2, 3), torch.stack([COVARIANCE, 0.5 * COVARIANCE]))
    return DistributionPrior(MixtureSameFamily(Choice(torch.tensor([0.3, 0.7])), each))


PRIORS = {
    "gaussian": lambda: GaussianPrior(COVARIANCE),
    "student": lambda: independent(StudentT(torch.tensor([3.0, 5.0]).double())),
    "multivariate": lambda: DistributionPrior(MultivariateNormal(normal(1, 3), COVARIANCE)),
    "mixture": mixture,
    "float32": lambda: independent(Normal(torch.zeros(2), torch.tensor([1.0, 2.0]))),
    "quadrature": lambda: QuadraturePrior([LAWS[k][0] for k in ("logistic", "student", "quartic")]),
}
every_prior = pytest.mark.parametrize("make", PRIORS.values(), ids=PRIORS)


@every_prior
@pytest.mark.parametrize("event_shape", [(), (4,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_independent_dimensions(make, event_shape, dtype):
    prior: Prior = make()
    K = prior.num_variables
    y = prior.sample((5, K, *event_shape), generator(0))
    assert y.shape == (5, K, *event_shape) and y.dtype == torch.float64
    y = y.to(dtype)
    log_prob, score = prior.log_prob(y), prior.score(y)
    assert log_prob.shape == (5,) and score.shape == y.shape
    assert log_prob.dtype == score.dtype == dtype
    columns = y.reshape(5, K, -1).unbind(-1)
    apart = torch.stack([prior.log_prob(column) for column in columns]).sum(0)
    close = {"rtol": 1e-5, "atol": 1e-5}  # some of a prior's tables are float32
    torch.testing.assert_close(log_prob, apart, **close)
    scores = torch.stack([prior.score(column) for column in columns], -1)
    torch.testing.assert_close(score, scores.reshape(y.shape), **close)
    torch.testing.assert_close(prior.entropy(4), 4 * prior.entropy())


@every_prior
def test_the_score_is_the_gradient_of_the_density(make):
    prior: Prior = make()
    y = prior.sample((6, prior.num_variables, 2), generator(1)).requires_grad_()
    (gradient,) = torch.autograd.grad(prior.log_prob(y).sum(), y)
    score = prior.score(y)
    torch.testing.assert_close(score, gradient)
    assert score.requires_grad
    h = 1e-3 if make is PRIORS["float32"] else 1e-5
    direction = normal(2, *y.shape)
    with torch.no_grad():
        assert not prior.score(y).requires_grad
        up, down = (prior.log_prob(y + sign * h * direction) for sign in (1, -1))
        slope = (score * direction).flatten(1).sum(1)
    tolerance = 1e-2 if make is PRIORS["float32"] else 1e-6
    torch.testing.assert_close((up - down) / (2 * h), slope, rtol=tolerance, atol=tolerance)
    # and its own derivative, which the bound needs
    (curved,) = torch.autograd.grad((score * direction).sum(), y)
    with torch.no_grad():
        up, down = (prior.score(y + sign * h * direction) for sign in (1, -1))
    torch.testing.assert_close((up - down) / (2 * h), curved, rtol=tolerance, atol=tolerance)


@every_prior
def test_entropy_is_minus_the_mean_log_density(make):
    prior: Prior = make()
    values = prior.log_prob(prior.sample((20000, prior.num_variables), generator(3)))
    error = values.std() / len(values) ** 0.5
    slack = 0.01 if make is mixture else 0.0  # Monte Carlo itself, of 65536 samples
    assert (values.mean() + prior.entropy()).abs() < SE * error + slack


@every_prior
def test_samples_repeat_and_leave_the_global_generator_alone(make):
    prior: Prior = make()
    shape = (4, prior.num_variables, 2)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = make().sample(shape, generator(5))
    prior.entropy()
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(prior.sample(shape, generator(5)), first)
    g = generator(5)
    prior.sample(shape, g)
    assert not torch.equal(prior.sample(shape, g), first)
    torch.manual_seed(1)
    unseeded = prior.sample(shape)
    assert not torch.equal(prior.sample(shape), unseeded)
    torch.manual_seed(1)
    assert torch.equal(prior.sample(shape), unseeded)


@every_prior
def test_wrong_shapes_are_named(make):
    prior: Prior = make()
    K = prior.num_variables
    for call in (prior.log_prob, prior.score):
        with pytest.raises(ValueError, match=rf"shape \(4, {K + 1}\), expected .* K = {K}"):
            call(torch.zeros(4, K + 1).double())
        with pytest.raises(ValueError, match=r"shape \(3,\), expected \(batch, K"):
            call(torch.zeros(3).double())


# -- Gaussian --------------------------------------------------------------------------------------


def test_gaussian_samples():
    """Of the generator's numbers in this order: samplers begin with them."""
    y = GaussianPrior(COVARIANCE).sample((20, 3, 2), generator(1))
    noise = torch.randn(20, 3, 2, generator=generator(1), dtype=torch.float64)
    torch.testing.assert_close(y, torch.linalg.cholesky(COVARIANCE) @ noise)


def test_gaussian_scores_are_exact_under_autocast():
    prior, y = GaussianPrior(COVARIANCE), normal(0, 5, 3, 4).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = prior.score(y)
    assert torch.equal(found, prior.score(y))


def test_gaussian_is_differentiable_in_its_covariance():
    S = COVARIANCE.clone().requires_grad_()
    y = normal(0, 5, 3)
    assert torch.autograd.gradcheck(lambda S: GaussianPrior(S).log_prob(y), S)
    assert torch.autograd.gradcheck(lambda S: GaussianPrior(S).entropy(), S)


def test_gaussian_covariance_is_square():
    with pytest.raises(ValueError, match=r"covariance has shape \(3,\), expected \(K, K\)"):
        GaussianPrior(torch.ones(3))


# -- distributions ---------------------------------------------------------------------------------


def test_distribution_is_the_gaussian_where_it_is_one():
    a = DistributionPrior(MultivariateNormal(torch.zeros(3).double(), COVARIANCE))
    b = GaussianPrior(COVARIANCE)
    y = normal(0, 5, 3, 4)
    torch.testing.assert_close(a.log_prob(y), b.log_prob(y))
    torch.testing.assert_close(a.score(y), b.score(y))
    torch.testing.assert_close(a.entropy(2), b.entropy(2))


def test_distribution_samples_carry_gradients():
    scale = torch.tensor([0.5, 3.0]).double().requires_grad_()
    prior = independent(Normal(torch.zeros(2).double(), scale))
    y = prior.sample((3, 2), generator(0))
    (gradient,) = torch.autograd.grad(y.sum(), scale)
    torch.testing.assert_close(gradient, (y / scale).sum(0).detach())


def test_distributions_of_another_shape_are_refused():
    for distribution in (Normal(0.0, 1.0), Independent(Normal(torch.zeros(2, 3), 1.0), 1)):
        with pytest.raises(ValueError, match=r"expected \(\) and \(K,\).*Independent"):
            DistributionPrior(distribution)


# -- quadrature ------------------------------------------------------------------------------------


@every_law
def test_normalizer_and_entropy(name):
    H, log_Z, entropy, _ = LAWS[name]
    prior = QuadraturePrior([H, H])
    y = torch.linspace(-2, 4, 30).double().reshape(5, 2, 3)
    expected = -H(y).flatten(1).sum(1) - 6 * log_Z
    torch.testing.assert_close(prior.log_prob(y), expected, rtol=1e-9, atol=1e-9)
    assert float(prior.entropy(3)) == pytest.approx(6 * entropy, rel=1e-9)


@every_law
def test_samples_are_quantiles(name):
    """Of uniform numbers, far more closely than a sample could tell; each variable by its own."""
    H, _, _, cdf = LAWS[name]
    g = generator(0)
    first, second = (torch.rand(10000, 3, generator=g, dtype=torch.float64) for _ in range(2))
    y = QuadraturePrior([LAWS["logistic"][0], H]).sample((10000, 2, 3), generator(0))
    torch.testing.assert_close(torch.sigmoid(y[:, 0]), first, rtol=0, atol=1e-4)
    torch.testing.assert_close(cdf(y[:, 1]), second, rtol=0, atol=1e-4)


class Stiff(nn.Module):
    """exp(a) y²/2 + b y⁴, a float64 module."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor(0.2, dtype=torch.float64))

    def forward(self, y: Tensor) -> Tensor:
        return self.a.exp() * y**2 / 2 + self.b * y**4


def test_everything_is_differentiable_in_the_energy():
    H = Stiff()
    prior = QuadraturePrior([lambda y: y**2 / 2, H])
    y = normal(0, 4, 2, 3)
    weights = normal(1, 4, 2, 3)

    def values() -> dict[str, Tensor]:
        return {
            "log_prob": prior.log_prob(y).sum(),
            "score": (prior.score(y) * weights).sum(),
            "entropy": prior.entropy(3),
            "sample": (prior.sample((4, 2, 3), generator(7)) * weights).sum(),
        }

    for name in values():
        assert_gradients(lambda name=name: values()[name], [H.a, H.b])


@pytest.mark.parametrize(
    ("energy", "message"),
    [
        (lambda y: -(y**2), r"energy of variable 1 hardly grows up to \|y\| = 1e\+18"),
        (lambda y: y, r"hardly grows.*add a confining term"),
        (lambda y: 0 * y, r"hardly grows"),
        (lambda y: 0.5 * (1 + y**2).log(), r"hardly grows"),  # ∫ exp(-H) diverges, barely
        (lambda y: y - y.clamp_min(0).log(), r"variable 1 is inf at .*, expected a finite"),
        (lambda y: y**2 + torch.where(y > 1, math.inf, 0.0), r"variable 1 is inf at 1"),
        (torch.sqrt, r"variable 1 is nan at .*, expected a finite"),
        (lambda y: math.nan * y, r"is nan at"),
        (lambda y: y**2 + 9 * (1e5 * y).cos(), r"varies too quickly: its normalizer changes by"),
        (lambda y: (y**2).sum(), r"variable 1 returned shape \(\) .*, expected the same"),
    ],
)
def test_energies_of_no_law_are_refused(energy, message):
    prior = QuadraturePrior([lambda y: y**2 / 2, energy])
    for call in (
        lambda: prior.log_prob(torch.ones(1, 2).double()),
        lambda: prior.sample((3, 2), generator(0)),
        prior.entropy,
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_energies_may_overflow_where_there_is_no_mass():
    prior = QuadraturePrior([torch.cosh])
    log_Z = -prior.log_prob(torch.zeros(1, 1).double()) - 1
    bessel = 0.42102443824070834  # K_0(1): ∫ exp(-cosh) = 2 K_0(1)
    assert log_Z.item() == pytest.approx(math.log(2 * bessel), rel=1e-12)
