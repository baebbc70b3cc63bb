"""Linear systems of measurements, by each of their solvers: all are held to linear algebra."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_mdm import Denoiser
from pyro_mdm.measurements import (
    Blur,
    Downsample,
    FunctionOperator,
    LinearOperator,
    Mask,
    Matrix,
    MeasuredDenoiser,
    denoiser,
    inverses,
)
from pyro_mdm.measurements.covariance import DataCovariance
from pyro_mdm.measurements.inverses import Factored, structured
from pyro_mdm.measurements.solve import iterated
from tests.problems import GaussianMixture, Silent, fixed, given_measurement, normal

IMAGE = (2, 2, 4)
D = math.prod(IMAGE)
MEAN = fixed(1, D)

OPERATORS: dict[str, Callable[[], LinearOperator]] = {
    "matrix": lambda: Matrix(fixed(2, 5, D), IMAGE),
    "more observations than dimensions": lambda: Matrix(fixed(2, D + 9, D) / 3, IMAGE),
    "mask": lambda: Mask(fixed(2, *IMAGE) > 0),
    "blur": lambda: Blur(IMAGE, 0.8),
    "downsample": lambda: Downsample(IMAGE, 2),
    "function": lambda: FunctionOperator(lambda x: x[..., :3].cumsum(-1), IMAGE),
}
STRUCTURED = ("mask", "blur", "downsample")


def covariances() -> dict[str, DataCovariance]:
    whole = fixed(3, D, D)
    values, vectors = torch.linalg.eigh(whole @ whole.mT / D)
    rest = torch.tensor(0.2, dtype=torch.float64)
    return {
        "full": DataCovariance(torch.tensor(0.0).double(), values + 0.01, vectors),
        "low rank": DataCovariance(rest, values[-5:] + rest, vectors[:, -5:].contiguous()),
        "diagonal": DataCovariance(0.1 + fixed(4, *IMAGE).square()),
        "one variance": DataCovariance(rest),
    }


class Gaussian(Denoiser):
    """E[x | z] of Gaussian images, for maps of log SNR too."""

    def __init__(self, covariance: Tensor) -> None:
        variance = covariance.diagonal().reshape(IMAGE)
        super().__init__(Silent(D), MEAN.reshape(IMAGE), variance, maps=True)
        self.covariance = covariance

    def x_hat(self, z: Tensor, log_snr: Any) -> Tensor:
        lam = torch.as_tensor(log_snr, dtype=torch.float64)
        lam = lam.reshape(*lam.shape, *[1] * (z.dim() - lam.dim())).expand(z.shape).flatten(-3)
        noised = self.covariance + torch.diag_embed(torch.exp(-lam))
        gain = torch.linalg.solve(noised, self.covariance.expand_as(noised), left=False)
        return (MEAN + (gain @ (z.flatten(-3) - MEAN).unsqueeze(-1)).squeeze(-1)).reshape(z.shape)


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("this system has a structure")


def by(route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets one solver alone serve."""
    if route != "factored":
        monkeypatch.setattr(inverses, "LARGEST", 0)
    if route == "iterated":
        monkeypatch.setattr(MeasuredDenoiser, "_inverse", lambda *_: None)
        monkeypatch.setattr(denoiser, "TOLERANCE", 1e-12)
    else:
        monkeypatch.setattr(denoiser, "iterated", refuse)


def law(
    sigma: Tensor, H: Tensor, noise: Tensor, obs: Tensor, z: Tensor, v: Tensor
) -> tuple[Tensor, Tensor]:
    """The mean and the covariance of x given z and obs."""
    both = torch.cat([torch.eye(D, dtype=torch.float64), H])
    noises = torch.cat([v.expand(D), noise.expand(len(H))])
    known, _ = given_measurement(
        GaussianMixture([1.0], MEAN[None], sigma[None]), both, torch.cat([z, obs]), noises
    )
    return known.mean, known.covariance


CASES = [
    (route, operator, covariance, noise)
    for route in ("factored", "structured", "iterated")
    for operator in OPERATORS
    for covariance in covariances()
    for noise in ("one", "each", "exact")
    if noise == "one" or covariance == "full" or route == "structured"
    # exact observations that depend on each other are refused, and blurred ones nearly do
    if not (noise == "exact" and operator.startswith(("more", "blur")))
    if not (
        route == "structured"
        and (
            operator not in STRUCTURED
            or (operator == "blur" and covariance in ("diagonal", "one variance"))
            or (noise == "exact" and covariance == "full")  # s h + R is 0
            or (operator != "mask" and noise == "each" and covariance in ("full", "low rank"))
        )
    )
]


@pytest.mark.parametrize(("route", "name", "kind", "noise"), CASES)
def test_every_solver_gives_the_posterior_of_gaussian_data(
    route: str, name: str, kind: str, noise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mean, its covariance ``V ∂x̂/∂z``, and the fit of obs, at low, middle and high noise."""
    by(route, monkeypatch)
    operator, covariance = OPERATORS[name](), covariances()[kind]
    H, m = operator.matrix(), math.prod(operator.obs_shape)
    R = {"one": torch.tensor(0.05), "each": torch.logspace(-3, 1, m), "exact": torch.tensor(0.0)}
    variance, sigma = R[noise].double(), covariance.matrix(IMAGE)
    obs = normal(5, m)
    shaped = variance.reshape(operator.obs_shape) if variance.dim() else variance
    score = MeasuredDenoiser(
        Gaussian(sigma),
        operator,
        obs.reshape(operator.obs_shape),
        shaped,
        data_covariance=covariance,
        covariance_from=math.inf,
    )
    for log_snr in (-6.0, 0.0, 5.0):
        z, v = normal(6, 1, *IMAGE), torch.tensor(math.exp(-log_snr)).double()
        found = score.x_hat(z, log_snr)[0].flatten()
        mean, left = law(sigma, H, variance, obs, z.flatten(), v)
        spread = (sigma.diagonal() / (1 + sigma.diagonal() / v)).sqrt()
        assert float(((found - mean) / spread).abs().max()) < 1e-6
        at = z.expand(D, *IMAGE).clone().requires_grad_()  # a row for each entry of x̂
        entries = score.x_hat(at, log_snr).flatten(1).diagonal()
        (J,) = torch.autograd.grad(entries.sum(), at)
        off = v * J.flatten(1) - left
        assert float((off / spread / spread[:, None]).abs().max()) < 1e-6
        C = sigma - sigma @ torch.linalg.solve(sigma + v * torch.eye(D), sigma)
        rest = obs - operator(score.denoiser.x_hat(z, log_snr)).flatten()
        S = H @ C @ H.mT + variance.expand(m).diag()
        fit = -0.5 * rest @ torch.linalg.solve(S, rest)
        torch.testing.assert_close(score.given_obs(z, log_snr).fit[0], fit, rtol=1e-6, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("kind", covariances())
@pytest.mark.parametrize("name", OPERATORS)
def test_data_have_levels_of_their_own(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All together as one by one, whichever the solver, with the denoiser's covariance and without;
    and levels that differ between dimensions."""
    covariance, operator = covariances()[kind], OPERATORS[name]()
    z, lam = normal(7, 3, *IMAGE), torch.tensor([-6.0, 1.0, 6.0]).double()
    maps = fixed(8, 3, *IMAGE)
    found = []
    for route in ("factored", "structured", "iterated"):
        with monkeypatch.context() as patch:
            by(route, patch)
            patch.setattr(denoiser, "iterated", iterated)
            for level in (math.inf, 0.5, -math.inf):
                score = MeasuredDenoiser(
                    Gaussian(covariance.matrix(IMAGE)),
                    operator,
                    normal(5, *operator.obs_shape),
                    0.05,
                    data_covariance=covariance,
                    covariance_from=level,
                )
                apart = torch.cat([score.x_hat(z[i : i + 1], float(lam[i])) for i in range(3)])
                found += [score.x_hat(z, lam), apart]
                if level == 0.5:
                    assert score.iterations is not None
            found_maps = score.x_hat(z, maps)
            if route == "factored":
                known_maps = found_maps
            torch.testing.assert_close(found_maps, known_maps, rtol=1e-5, atol=1e-5)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-5)


def test_exact_observations_of_small_and_of_no_variance() -> None:
    """Each in units of its own: the small one counts, and what does not vary says nothing."""
    sigma = torch.tensor([1.0, 1e-18, 0.0], dtype=torch.float64).diag()
    one = torch.eye(3, dtype=torch.float64)
    made = Factored.compute(sigma, one, torch.zeros(3, dtype=torch.float64), (3,))
    expected = torch.tensor([1.0, 1e18, 0.0], dtype=torch.float64).diag()
    torch.testing.assert_close(made.inverse, expected, rtol=1e-12, atol=0)
    assert not made.values.any()


@pytest.mark.parametrize(
    ("rest", "noise", "serves"),
    [(0.0, 2e-9, True), (0.0, 5e-10, False), (2e-9, 0.0, False), (8e-9, 0.0, True)],
)
def test_woodburys_identity_serves_above_rounding(rest: float, noise: float, serves: bool) -> None:
    """H Hᵀ is 1/4, and the largest variance of H x 1: s h + R has to be above 1e-9."""
    values = torch.tensor([0.01, 4.0], dtype=torch.float64)
    vectors = torch.eye(D, dtype=torch.float64)[:, :2].contiguous()
    low_rank = DataCovariance(torch.tensor(rest, dtype=torch.float64), values, vectors)
    made = structured(low_rank, Downsample(IMAGE, 2), torch.tensor(noise, dtype=torch.float64))
    assert (made is not None) is serves


def measured(operator: LinearOperator, noise: float, rows: int) -> MeasuredDenoiser:
    covariance = covariances()["full"]
    score = Gaussian(covariance.matrix(IMAGE))
    options: dict[str, Any] = {"data_covariance": covariance, "covariance_from": math.inf}
    obs = normal(5, rows, *operator.obs_shape)
    return MeasuredDenoiser(score, operator, obs, noise, **options)


@torch.no_grad()
def test_factors_follow_what_they_are_made_of() -> None:
    """Noise that is written to, and a copy for other rows."""
    operator, z = Mask(fixed(2, *IMAGE) > 0), normal(7, 3, *IMAGE)
    score, other = measured(operator, 0.1, 3), measured(operator, 2.0, 3)
    first = score.x_hat(z, 0.0)
    torch.testing.assert_close(score.for_rows(torch.tensor([2])).x_hat(z[2:], 0.0), first[2:])
    score.noise.fill_(2.0)
    again = score.x_hat(z, 0.0)
    torch.testing.assert_close(again, other.x_hat(z, 0.0))
    assert float((again - first).abs().max()) > 0.1


def test_an_operator_of_a_network_follows_its_weights() -> None:
    """Frozen, changed while it is frozen, and learned from then on, for which nothing is kept."""
    weights = nn.Linear(4, 3, bias=False).double().requires_grad_(False)
    score, z = measured(FunctionOperator(weights, IMAGE), 0.3, 1), normal(7, 1, *IMAGE)
    first = score.x_hat(z, 0.0)
    weights.weight.mul_(2.0)
    again, new = score.x_hat(z, 0.0), measured(FunctionOperator(weights, IMAGE), 0.3, 1)
    assert float((again - first).abs().max()) > 0.01
    torch.testing.assert_close(again, new.x_hat(z, 0.0))
    weights.requires_grad_(True)
    slopes = [
        torch.autograd.grad(one.x_hat(z, 0.0).sum(), weights.weight)[0] for one in (score, new, new)
    ]
    assert float(slopes[0].abs().max()) > 1e-3
    for slope in slopes[1:]:
        torch.testing.assert_close(slope, slopes[0])
