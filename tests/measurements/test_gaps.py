"""Bounds from both sides on data that a model draws with their paths."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_mdm import (
    CLD,
    VPSDE,
    Denoiser,
    DiffusionGuide,
    DiffusionModel,
    bound,
    condition,
)
from pyro_mdm.conditioning import Labels
from pyro_mdm.diffusions.clocks import log_snr_times
from pyro_mdm.diffusions.matrices import apply_matrix, outer
from pyro_mdm.diffusions.posterior import posterior
from pyro_mdm.measurements import (
    Mask,
    Matrix,
    bound_gap,
    condition_on_measurements,
    twisted_smc_gap,
)
from pyro_mdm.measurements.looseness import simulated_measurement
from pyro_mdm.measurements.twisted import Kept, Retained, weighted_particles
from pyro_mdm.networks import MLP
from tests.chains import affine, chain_problem
from tests.mistakes import refused
from tests.problems import (
    ENDS,
    D,
    correlated as gaussian,
    fixed,
    given_measurement,
    program,
)

TIMES = 5
DIFFUSIONS = {"vpsde": lambda: VPSDE(**ENDS), "cld": lambda: CLD(**ENDS)}


class Normal(NamedTuple):
    """A Gaussian distribution of paths from T to ε and the datum, flat."""

    mean: Tensor
    covariance: Tensor

    def kl(self, other: Normal) -> float:
        """KL(self | other), nats."""
        one, two = (torch.distributions.MultivariateNormal(*n) for n in (self, other))
        return float(torch.distributions.kl_divergence(one, two))


def extended(law: Normal, A: Tensor, b: Tensor, covariance: Tensor, size: int) -> Normal:
    """The distribution with one more block ``A last + b + noise``, of the last ``size`` numbers."""
    n = len(law.mean)
    matrix = torch.cat([torch.eye(n, dtype=torch.float64), torch.zeros(len(A), n).double()])
    matrix[n:, n - size :] = A
    mean = matrix @ law.mean
    mean[n:] += b
    whole = matrix @ law.covariance @ matrix.mT
    whole[n:, n:] += covariance
    return Normal(mean, whole)


@torch.no_grad()
def chains(model: Any) -> tuple[Normal, Normal]:
    """The distribution of path and datum by the model's chain, and by noising of its data."""
    diffusion, K = model.diffusion, model.diffusion.num_variables
    times, size = log_snr_times(diffusion, TIMES), model.diffusion.num_variables * D
    eye = torch.eye(D, dtype=torch.float64)
    steps = posterior(diffusion, times[1:], times[:-1])
    generative = Normal(torch.zeros(size).double(), torch.kron(diffusion.prior_covariance, eye))
    for i in range(TIMES - 2, -1, -1):
        step = steps.at(i)

        def moved(y: Tensor, step: Any = step, s: Tensor = times[i + 1]) -> Tensor:
            y = y.reshape(-1, K, D)
            x = model.score_function.denoise(diffusion, y, s)
            return (apply_matrix(step.gain, y) + outer(step.mean_coefficient, x)).flatten(1)

        noise = torch.kron(step.covariance, eye)
        generative = extended(generative, *affine(moved, size), noise, size)

    def law(y: Tensor) -> Any:
        return model.likelihood(diffusion, model.score_function, y.reshape(-1, K, D), 1)

    noise = law(torch.zeros(1, size).double()).variance[0].diag()
    generative = extended(generative, *affine(lambda y: law(y).mean, size), noise, size)
    noising = Normal(generative.mean[-D:], generative.covariance[-D:, -D:])
    start = diffusion.marginal(times[0])
    A = torch.kron(start.mean.reshape(K, 1), eye)
    zero = torch.zeros(size).double()
    noising = extended(noising, A, zero, torch.kron(start.covariance, eye), D)
    for i in range(TIMES - 1):
        step = diffusion.transition(times[i + 1], times[i])
        A, noise = (torch.kron(m, eye) for m in (step.matrix, step.covariance))
        noising = extended(noising, A, zero, noise, size)
    blocks = [torch.arange(D + size * i, D + size * (i + 1)) for i in reversed(range(TIMES))]
    order = torch.cat([*blocks, torch.arange(D)])
    return generative, Normal(noising.mean[order], noising.covariance[order][:, order])


def entropy(law: Normal) -> float:
    return float(torch.distributions.MultivariateNormal(*law).entropy())


def data_law(law: Normal) -> Normal:
    return Normal(law.mean[-D:], law.covariance[-D:, -D:])


def five_errors(measured: Any, value: float) -> bool:
    mean, error = measured
    return bool(abs(mean - value) < 5 * error)


# -- the bound and its weights ---------------------------------------------------------------------


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_both_sides_are_those_in_closed_form(name: str) -> None:
    model = program(gaussian(), DIFFUSIONS[name](), times=TIMES)
    p, q = chains(model)
    evidence = -entropy(data_law(p))
    guide = DiffusionGuide(model.diffusion, times=TIMES)
    lower, upper, gap, n = bound_gap(model, guide, simulated=2_000)
    assert n == 2_000
    assert five_errors(lower, evidence - q.kl(p))
    assert five_errors(upper, evidence + p.kl(q))
    assert five_errors(gap, p.kl(q) + q.kl(p))
    assert gap.standard_error < 0.1 * gap.mean
    x = model(batch_size=2_000).detach()
    elbo = bound(model, guide, x).elbo
    assert five_errors(elbo, evidence - q.kl(p)), "the lower side is the chain's bound"


def test_more_weights_close_the_gap_around_the_evidence() -> None:
    model = program(gaussian(), VPSDE(**ENDS))
    p, q = chains(model)
    evidence, whole = -entropy(data_law(p)), p.kl(q) + q.kl(p)
    guide = DiffusionGuide(model.diffusion)
    for samples in (8, 64):
        lower, upper, gap, _ = bound_gap(
            model, guide, simulated=300, samples=samples, times=TIMES, seed=1
        )
        assert lower.mean - 5 * lower.standard_error < evidence
        assert upper.mean + 5 * upper.standard_error > evidence
        assert upper.mean + 5 * upper.standard_error < evidence + p.kl(q)
        assert 0 < gap.mean + 5 * gap.standard_error < whole
        whole = 0.75 * gap.mean


def test_contexts_are_those_of_the_data() -> None:
    score = Denoiser(MLP(5, out_features=2), torch.zeros(2), torch.ones(2))
    model = DiffusionModel(VPSDE(), score, event_shape=(2,), context=Labels(3))
    guide = DiffusionGuide(model.diffusion)
    given = condition(model, context=torch.tensor([0, 1, 2, 1]))
    assert bound_gap(given, guide, simulated=4, times=5).data_sets == 4
    refused(ValueError, (lambda: bound_gap(given, guide, simulated=5, times=5), r"of \(4,\) data"))


# -- particles -------------------------------------------------------------------------------------

H = fixed(1, 2, D)
NOISE = torch.tensor([1.0, 1.5], dtype=torch.float64)
STEPS = 8
OBS = torch.zeros(2, dtype=torch.float64)
KINDS: dict[str, Any] = {"gaussian": NOISE, "law": lambda u: dist.Normal(u, NOISE.sqrt())}


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_inverse_evidence_with_the_exact_draw_is_unbiased(kind: str) -> None:
    """With few particles that are resampled at every step."""
    torch.manual_seed(0)
    model = program(gaussian(), VPSDE(**ENDS))
    chain = chain_problem(model, STEPS)
    given = condition_on_measurements(model, H, OBS, KINDS[kind], covariance_from=math.inf)
    ratios = []
    for _ in range(40):
        again, retained = simulated_measurement(given, STEPS)
        score: Any = again.score_function
        known = given_measurement(chain, H, score.obs.double(), NOISE)[1]
        found = weighted_particles(
            again, 3, steps=STEPS, repeats=16, threshold=1.0, retained=retained
        )
        ratios.append((known - found.log_weights.logsumexp(1) + math.log(3)).exp().mean())
    ratio = torch.stack(ratios)
    error = float(ratio.std()) / math.sqrt(len(ratio))
    assert abs(float(ratio.mean()) - 1) < 5 * error < 0.5


@torch.no_grad()
def test_the_gap_of_particles_is_around_the_evidence_and_closes() -> None:
    torch.manual_seed(1)
    steps, noise = 6, NOISE / 10  # of which few particles know little
    model = program(gaussian(), VPSDE(**ENDS))
    covariance, seen = chain_problem(model, steps).covariance, Mask(torch.arange(D) % 2 == 1)
    found = []
    for operator, R, P in ((Matrix(H), noise, 2), (Matrix(H), noise, 256), (seen, 0 * noise, 16)):
        A = operator.matrix()
        known = -entropy(Normal(OBS, A @ covariance @ A.mT + R.diag()))
        given = condition_on_measurements(model, operator, OBS, R, covariance_from=math.inf)
        lower, upper, gap, n = twisted_smc_gap(given, P, steps=steps, simulated=40)
        assert n == 40
        assert lower.mean - 5 * lower.standard_error < known
        assert upper.mean + 5 * upper.standard_error > known
        found.append(gap)
    assert found[0].mean > 5 * found[0].standard_error
    assert found[1].mean < found[0].mean


def test_an_exact_draw_stays_among_resampled_particles() -> None:
    """Ancestors are systematic, the draw has itself for one, and any weight keeps it."""
    torch.manual_seed(0)
    R, P = 4_000, 5
    kept = Kept(Retained(torch.zeros(1), torch.zeros(())), R, P)
    place, first = kept.place.clone(), kept.first
    assert torch.equal(kept.rows, (first + place).flatten())
    counts = torch.bincount(place.flatten(), minlength=P)
    assert bool(((counts - R / P).abs() < 5 * math.sqrt(R * 0.16)).all())
    w = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05]).double().expand(R, P)
    u = kept.offset(w, torch.rand(R, 1).double())
    taken = kept._next + u  # uniform on the draw's own interval
    share, end = w.gather(1, place), w.cumsum(1).gather(1, place)
    where = 1 - (end - taken / P) / share
    assert float(where.min()) >= -1e-9 and float(where.max()) <= 1 + 1e-9
    assert abs(float(where.mean()) - 0.5) < 5 / math.sqrt(12 * R)
    drawn = torch.searchsorted(w.cumsum(1), (torch.arange(P) + u) / P).clamp_max(P - 1)
    assert torch.equal(kept.resampled(drawn, torch.ones(R, 1).bool()), drawn)
    assert torch.equal(drawn.gather(1, kept.place), place)
    nothing = torch.zeros(R, P).double()
    nothing[torch.arange(R), (kept.place.flatten() + 1) % P] = 1.0
    place = kept.place.clone()
    u = kept.offset(nothing, torch.rand(R, 1).double())
    drawn = kept.resampled(torch.zeros(R, P).long(), torch.ones(R, 1).bool())
    assert torch.equal(drawn.gather(1, kept.place), place)
    place = kept.place.clone()
    kept.offset(w, torch.rand(R, 1).double())
    kept.resampled(drawn, torch.zeros(R, 1).bool())
    assert torch.equal(kept.place, place), "as no repeat is resampled"


def test_mistakes_are_named() -> None:
    model = program(gaussian(), VPSDE(**ENDS))
    guide = DiffusionGuide(model.diffusion)
    given = condition_on_measurements(model, H, OBS, NOISE)
    refused(
        (TypeError, ValueError),
        (lambda: bound_gap(guide, model), "model is DiffusionGuide.* expected a DiffusionModel"),
        (lambda: twisted_smc_gap(model), "expected a MeasuredDenoiser"),
        (lambda: twisted_smc_gap(given, steps=0), "steps is 0, expected at least 1"),
    )
