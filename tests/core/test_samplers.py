"""What samplers draw, how they ask for the score, and their grids; test_sampler_orders.py has the
errors of their laws."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_mdm import ALDA, CLD, LearnedDiffusion
from pyro_mdm.diffusions.base import apply_vector
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.diffusions.matrices import apply_matrix
from pyro_mdm.samplers.base import Sampler
from pyro_mdm.samplers.exponential import ExponentialIntegrator, StochasticExponentialIntegrator
from pyro_mdm.samplers.probability_flow import ProbabilityFlow
from pyro_mdm.samplers.stochastic import Ancestral, EulerMaruyama, Splitting, StochasticHeun
from pyro_mdm.simulated.reference import TorchSDE
from tests.gradients import assert_gradients
from tests.mistakes import refused
from tests.problems import ExactScore, GaussianMixture, generator, learned, mixture

CALLS: dict[str, tuple[Callable[[], Sampler], int]] = {
    "splitting of order 2": (lambda: Splitting(16, order=2), 2),
    "stochastic Heun": (lambda: StochasticHeun(16), 2),
    "probability flow": (lambda: ProbabilityFlow(16), 2),
    "torchsde, srk": (lambda: TorchSDE(16, "srk"), 2),
    "Euler-Maruyama": (lambda: EulerMaruyama(16), 1),
    "splitting": (lambda: Splitting(16), 1),
    "ancestral": (lambda: Ancestral(16), 1),
    "torchsde, euler": (lambda: TorchSDE(16, "euler"), 1),
    "exponential": (lambda: ExponentialIntegrator(16, order=3), 1),
    "stochastic exponential": (lambda: StochasticExponentialIntegrator(16), 1),
}
"""Score calls of a step, by sampler."""


def scalar(mean: float = 0.7, variance: float = 0.5) -> GaussianMixture:
    m, v = (torch.tensor([x], dtype=torch.float64) for x in (mean, variance))
    return GaussianMixture([1.0], m[None], v[None, None])


class TabulatedScore:
    """The exact score of scalar Gaussian data, its matrices made in one batch for given times."""

    dtype = torch.float64

    def __init__(self, diffusion: LinearDiffusion, s: Tensor) -> None:
        data = scalar()
        mu, variance = data.mean, data.covariance[0, 0]
        with torch.no_grad():
            m = diffusion.marginal(s)
        S = m.covariance + variance * m.mean[:, :, None] * m.mean[:, None, :]
        self.precision = torch.linalg.inv(S)
        self.centre = mu * m.mean
        v = torch.exp(-m.log_snr)
        self.readout = variance / (variance + v)[:, None] * m.readout
        self.shift = mu * v / (variance + v)
        self.index = {t: i for i, t in enumerate(s.tolist())}

    def __call__(self, y: Tensor, s: Tensor) -> Tensor:
        i = self.index[s[0].item()]
        return -self.precision[i] @ (y - self.centre[i, :, None])

    def denoise(self, y: Tensor, s: Tensor) -> Tensor:
        i = self.index[s[0].item()]
        return self.readout[i] @ y + self.shift[i]


class Recorder:
    """A score that writes down how it is called."""

    dtype = torch.float32

    def __init__(self, whole: bool = False) -> None:
        self.calls: list[tuple[torch.Size, torch.dtype, Tensor]] = []
        self.whole = whole

    def denoise(self, y: Tensor, s: Tensor) -> Tensor:
        return self._record(y, s) if self.whole else self._record(y, s)[:, 0] / 2

    def _record(self, y: Tensor, s: Tensor) -> Tensor:
        self.calls.append((y.shape, y.dtype, s))
        return y

    def __call__(self, y: Tensor, s: Tensor) -> Tensor:
        return -self._record(y, s)


@pytest.mark.parametrize("name", CALLS)
def test_the_score_is_called_as_promised_and_the_generator_decides(name):
    make, calls = CALLS[name]
    sampler, diffusion, event_shape = (
        make(),
        learned(2, 2, 33),
        ((), (3,), (1, 4, 4))[len(name) % 3],
    )
    score, shape = Recorder(), (5, 2, *event_shape)
    y = sampler(diffusion, score, shape, generator(1))
    assert y.shape == shape and y.dtype == torch.float32 and not y.requires_grad
    assert len(score.calls) == calls * sampler.steps == sampler.calls
    times = torch.stack([s for _, _, s in score.calls])
    assert times.shape == (len(score.calls), 5)
    assert times.dtype == torch.float64
    assert {(shape, dtype) for shape, dtype, _ in score.calls} == {(y.shape, torch.float32)}
    assert bool((times == times[:, :1]).all())
    assert bool((times[1:] <= times[:-1]).all())
    assert times[0, 0] <= diffusion.horizon
    assert times[-1, 0] >= diffusion.start_time
    same, other = (sampler(diffusion, score, shape, generator(seed)) for seed in (1, 2))
    assert torch.equal(same, y) and not torch.equal(other, y)
    score.dtype = torch.float64  # what the score asks for
    double = sampler(diffusion, score, shape, generator(1))
    assert double.dtype == torch.float64
    torch.testing.assert_close(y.double(), double, rtol=1e-3, atol=1e-3)
    single = sampler(diffusion, score, shape, generator(1), dtype=torch.float32)
    assert torch.equal(single, y)


def test_ancestral_finds_the_denoiser_of_any_score():
    """The projection of the score on g² is x̂ itself where the score is exact."""
    diffusion, data = ALDA(), mixture()
    exact = ExactScore(data, diffusion)
    sampler, shape = Ancestral(20), (6, 3, 2)
    with_denoiser = sampler(diffusion, exact, shape, generator(1), dtype=torch.float64)
    alone = sampler(diffusion, lambda y, s: exact(y, s), shape, generator(1), dtype=torch.float64)
    torch.testing.assert_close(alone, with_denoiser, rtol=1e-6, atol=1e-6)


MISTAKES = [
    (lambda: EulerMaruyama(5)(CLD(), lambda y, s: y[:, :1], (4, 2, 3)), r"score has shape \(4, 1"),
    (lambda: Ancestral(5)(CLD(), Recorder(whole=True), (4, 2, 3)), r"denoiser has shape \(4, 2"),
]


def test_wrong_shapes_are_named() -> None:
    refused(ValueError, *MISTAKES)


SMOOTH = [ExponentialIntegrator(4, 1), ExponentialIntegrator(4), ExponentialIntegrator(4, 3)]
SMOOTH += [StochasticExponentialIntegrator(4, 0.5), Ancestral(4)]


@pytest.mark.parametrize("sampler", SMOOTH, ids=repr)
def test_states_have_derivatives_by_the_diffusion(sampler) -> None:
    """Through all steps, by finite differences at the same noise and times."""
    diffusion = LearnedDiffusion(2, cut_time=0.05)
    with torch.no_grad():  # where D has equal eigenvalues the root of the noise may turn
        diffusion.B.add_(torch.tensor([[0.2, 0.1], [0.3, -0.2]]))
    problem = mixture()

    class Denoise:
        dtype = torch.float64

        def __call__(self, y: Tensor, s: Tensor) -> Tensor:
            m = diffusion.marginal(s[0])
            precision = torch.linalg.inv(m.covariance)
            a = m.mean.reshape(1, -1, 1)
            return -apply_matrix(precision, y - a * self.denoise(y, s).unsqueeze(1))

        def denoise(self, y: Tensor, s: Tensor) -> Tensor:
            m = diffusion.marginal(s[0])
            return problem.x_hat(apply_vector(m.readout, y), m.log_snr)

    times = torch.tensor([1.0, 0.7, 0.4, 0.2, 0.05], dtype=torch.float64)
    sampler = type(sampler)(**sampler.arguments() | {"grid": times.tolist()})

    def loss(differentiable: bool = True) -> Tensor:
        rng = torch.Generator().manual_seed(0)
        y = sampler(diffusion, Denoise(), (6, 2, 2), rng, differentiable=differentiable)
        return y.square().sum()

    assert not loss(False).requires_grad
    assert_gradients(loss, diffusion.parameters(), rel=1e-4, abs=1e-5)
