"""Ends of log SNR, and a law at rest, that are learned: within their ranges, by right gradients."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from pyro_mdm import (
    CLD,
    MDM_ELBO,
    VPSDE,
    Denoiser,
    DiffusionGuide,
    DiffusionModel,
    DiscreteDenoiser,
    EncodedDiffusion,
    LearnedDiffusion,
    TimeVaryingLearnedDiffusion,
    elbo_terms,
    randomness,
)
from pyro_mdm.by_dimension.per_dimension import PerDimensionDiffusion
from pyro_mdm.diffusions import ends
from pyro_mdm.diffusions.base import Marginal
from pyro_mdm.diffusions.ends import clocks_of_targets, marginal_at, root, targets, with_gradient
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.diffusions.presets import is_learned
from pyro_mdm.levels import NetworkPosterior
from pyro_mdm.networks import MLP
from pyro_mdm.seeing import ContextClocks, ContextDiffusion, DiscreteContext
from pyro_mdm.simulated.learned_drift import Simulated
from pyro_mdm.varying.interpolant_clocks import GivenSchedule
from tests.known_bound import Wrong, exact_bound, numerical_gradient
from tests.problems import fixed

FAMILIES: dict[str, type[LinearDiffusion]] = {
    "constant": LearnedDiffusion,
    "time_varying": TimeVaryingLearnedDiffusion,
}
MEAN, VARIANCE = 0.3, 0.49


def both_ends(diffusion: LinearDiffusion) -> Marginal:
    """The kernels at ε and T, (2, …)."""
    solved = diffusion.solved()
    return Marginal(*map(torch.stack, zip(solved.start, solved.terminal, strict=True)))


def moved(kind: str, K: int = 2, **options: Any) -> Any:
    """One that is some way into its training."""
    options = {"max_log_snr": 3.0, "min_log_snr": -2.0, "learn_ends": (1.0, 2.0)} | options
    if kind == "time_varying":
        options |= {"cells": 32, "degree": 1}
    diffusion = FAMILIES[kind](K, **options)
    with torch.no_grad():
        for i, parameter in enumerate(diffusion.parameters()):
            parameter.add_(0.2 * fixed(i, *parameter.shape))
    return diffusion


# -- ranges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAMILIES)
def test_ends_start_as_given_and_cannot_leave_their_ranges(kind: str) -> None:
    diffusion = FAMILIES[kind](2, max_log_snr=9.0, min_log_snr=-10.0, learn_ends=(1.0, 2.0))
    held = FAMILIES[kind](2, max_log_snr=9.0, min_log_snr=-10.0)
    torch.testing.assert_close(diffusion.start.covariance, held.start.covariance, rtol=1e-9, atol=0)
    for position, high, low in ((1e3, 10.0, -8.0), (-1e3, 8.0, -12.0)):
        with torch.no_grad():
            diffusion.moved_ends.fill_(position)
        assert (diffusion.max_log_snr, diffusion.min_log_snr) == (high, low)
        assert diffusion.start.log_snr.item() == pytest.approx(high, abs=1e-9)
        assert diffusion.terminal.log_snr.item() == pytest.approx(low, abs=1e-9)
        assert diffusion.terminal_log_snr.item() == low
        assert diffusion.log_snr(diffusion.start_time).item() == pytest.approx(high, abs=1e-9)


def test_an_end_that_is_set_starts_there() -> None:
    diffusion = moved("constant")
    low = diffusion.min_log_snr
    diffusion.max_log_snr = 5.0
    assert diffusion.max_log_snr == 5.0 and diffusion.min_log_snr == low
    with torch.no_grad():
        diffusion.moved_ends.fill_(1e3)
    assert diffusion.max_log_snr == 6.0 and diffusion.min_log_snr == low + 2.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LearnedDiffusion(2, learn_ends=2.0), r"λ\(T\) is left to the clock.*min_log_snr"),
        (lambda: LearnedDiffusion(2, learn_ends=(1.0, 2.0, 3.0)), r"learn_ends is \(1.*for λ\(T\)"),
        (lambda: LearnedDiffusion(2, learn_ends=-1.0), r"learn_ends is -1\.0, expected numbers"),
        (lambda: LearnedDiffusion(2, learn_ends=math.nan), r"learn_ends is nan"),
        (lambda: moved("constant", learn_ends=2.5), r"down to 0\.5 and λ\(T\) up to 0\.5, exp"),
        (lambda: LearnedDiffusion(2, cut_time=0.1, learn_ends=(1.0, 0.0)), r"cut at the time 0\.1"),
        (lambda: setattr(moved("constant"), "min_log_snr", None), r"min_log_snr is None, but λ"),
        (lambda: setattr(moved("constant"), "max_log_snr", -1.0), r"expected ranges that do not"),
        (lambda: LearnedDiffusion(1, learn_stationary=True), r"K = 1 .* nothing of Σ_∞"),
        (
            lambda: PerDimensionDiffusion([moved("constant")] * 2, [0, 1]),
            r"one of 2 blocks has lea",
        ),
        (lambda: Simulated(moved("constant")), r"has learn_ends, but simulated paths keep"),
    ],
)
def test_mistakes_are_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# -- gradients of the bound ------------------------------------------------------------------------


class Exact:
    """Draws replaced by nodes of quadrature: all of a batch of (u, signs of the noise), in turn.

    Expectations over noise are exact for squares of what is linear in it.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, K: int, nodes: int) -> None:
        signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * K)
        self.signs = signs.reshape(-1, K).repeat(nodes, 1)
        u = (torch.arange(nodes, dtype=torch.float64) + 0.5) / nodes
        self.u = u.repeat_interleave(2**K)
        monkeypatch.setattr(randomness, "low_discrepancy", lambda n, device: self.u)
        monkeypatch.setattr(randomness, "normal", self.normal)
        monkeypatch.setattr(randomness, "subset", AllOfThem)

    def normal(self, shape: Sequence[int], dtype: torch.dtype, device: Any) -> Tensor:
        signs = self.signs.repeat(shape[0] // len(self.signs), 1)
        return signs[:, : math.prod(shape[1:])].reshape(shape)


class AllOfThem:
    """In place of a random part of the batch."""

    def __init__(self, n: int, part: int, device: Any, copies: int = 1) -> None:
        self.n = n

    def __enter__(self) -> tuple[Tensor, float]:
        return torch.arange(self.n), 1.0

    def __exit__(self, *error: object) -> None:
        pass


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize("stationary", [False, True], ids=["given", "learned"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_the_gradient_of_the_whole_bound_is_that_of_the_closed_form(
    kind: str, stationary: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both ends, the law at rest and the matrices, of Gaussian data, a denoiser that is wrong by
    a known amount and the exact decoder."""
    diffusion = moved(kind, learn_stationary=stationary)
    nodes = Exact(monkeypatch, 2, 500)
    score = Denoiser(Wrong(0.4), data_mean=MEAN, data_variance=VARIANCE)
    model = DiffusionModel(diffusion, score, event_shape=(1,))
    x = torch.full((len(nodes.u), 1), 0.9, dtype=torch.float64)
    elbo = elbo_terms(model, DiffusionGuide(diffusion), x).elbo.mean()
    parameters = list(diffusion.parameters())
    found = torch.autograd.grad(elbo, parameters)
    with torch.no_grad():
        expected = numerical_gradient(lambda: exact_bound(diffusion, x[:1], 0.4).mean(), parameters)
        assert elbo.item() == pytest.approx(exact_bound(diffusion, x[:1], 0.4).item(), abs=1e-5)
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-5, atol=1e-6)
    (ends,) = (f for p, f in zip(parameters, found, strict=True) if p is diffusion.moved_ends)
    assert bool((ends.abs() > 1e-3).all())


class Tilt(nn.Module):
    """Of a discrete denoiser of one dimension: a tilt that is wrong."""

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        return torch.cat([0.3 * torch.tanh(z), 0.1 * torch.cos(log_snr[:, None] / 3).to(z)], 1)


@pytest.mark.parametrize("likelihood", ["baseline", "network"])
def test_a_discrete_decoder_gives_a_gradient_at_its_end(
    likelihood: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the bound by quadrature over noise and levels of it, by finite differences."""
    diffusion = LearnedDiffusion(1, max_log_snr=2.0, min_log_snr=-3.0, learn_ends=1.0)
    steps, points = 200, 100
    u = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    quantiles = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    noise = math.sqrt(2) * torch.erfinv(2 * quantiles - 1)

    def normal(shape: Sequence[int], dtype: torch.dtype, device: Any) -> Tensor:
        return noise.repeat(shape[0] // points).reshape(shape)

    monkeypatch.setattr(randomness, "normal", normal)
    grid = u.repeat_interleave(points)
    monkeypatch.setattr(randomness, "low_discrepancy", lambda n, device: grid)
    monkeypatch.setattr(randomness, "subset", AllOfThem)
    levels = torch.linspace(-1, 1, 3, dtype=torch.float64)
    score = DiscreteDenoiser.fit(
        Tilt(), levels[torch.tensor([0, 1, 1, 2, 2, 2])][:, None], 3, form="tilt"
    )
    options = {"likelihood": NetworkPosterior()} if likelihood == "network" else {}
    model = DiffusionModel(diffusion, score, event_shape=(1,), **options)
    x = levels[2].expand(len(grid), 1)

    def bound() -> Tensor:
        return elbo_terms(model, DiffusionGuide(diffusion), x).elbo.mean()

    (found,) = torch.autograd.grad(bound(), [diffusion.moved_ends])
    (expected,) = numerical_gradient(bound, [diffusion.moved_ends], step=1e-3)
    assert bool((expected.abs() > 1e-3).all())
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-4)
    if likelihood == "baseline":  # without the boundary term it is far off
        terms = elbo_terms(model, DiffusionGuide(diffusion), x)
        (alone,) = torch.autograd.grad(terms.reconstruction.mean(), [diffusion.moved_ends])
        assert abs(float(alone[0] - expected[0])) > 0.02


# -- the law at rest -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_law_at_rest_starts_as_given_and_keeps_the_variance_of_x(kind: str) -> None:
    given = [[2.0, 0.4], [0.4, 0.8]]
    diffusion: Any = FAMILIES[kind](2, stationary_variance=given, learn_stationary=True)
    expected = torch.tensor(given, dtype=torch.float64)
    torch.testing.assert_close(diffusion.stationary_covariance, expected, rtol=1e-15, atol=0)
    held: Any = FAMILIES[kind](2, stationary_variance=given)
    torch.testing.assert_close(diffusion.terminal.covariance, held.terminal.covariance)
    with torch.no_grad():
        diffusion.stationary_lower.add_(3.0)
        diffusion.stationary_log_diagonal.sub_(2.0)
    Sigma = diffusion.stationary_covariance
    assert Sigma[0, 0].item() == pytest.approx(2.0, rel=1e-15)
    assert float(torch.linalg.eigvalsh(Sigma.detach()).min()) > 0
    assert torch.equal(diffusion.prior.covariance, Sigma)
    t = diffusion.transition(0.9, 0.2)
    torch.testing.assert_close(t.matrix @ Sigma @ t.matrix.mT + t.covariance, Sigma)


# -- kept and copied -------------------------------------------------------------------------------


def numbers(diffusion: LinearDiffusion) -> list[Tensor]:
    with torch.no_grad():
        found = [diffusion.start_time, diffusion.terminal_log_snr, diffusion.start.covariance]
        return [*found, diffusion.stationary_covariance, diffusion.log_snr(0.5)]


@pytest.mark.parametrize("kind", FAMILIES)
def test_it_comes_back_from_a_folder_a_state_dict_and_a_copy(kind: str, tmp_path: Any) -> None:
    diffusion = moved(kind, learn_stationary=True, learn_beta=True)
    model = DiffusionModel(diffusion, Denoiser(MLP(2)), event_shape=(2,))
    model.save_pretrained(tmp_path)
    opened = DiffusionModel.from_pretrained(tmp_path).diffusion
    options = {"cells": 32, "degree": 1} if kind == "time_varying" else {}
    options |= {"learn_ends": (1.0, 2.0), "learn_stationary": True, "learn_beta": True}
    loaded: Any = FAMILIES[kind](2, max_log_snr=3.0, min_log_snr=-2.0, **options)
    loaded.load_state_dict(diffusion.state_dict())
    for other in (opened, loaded, copy.deepcopy(diffusion)):
        assert all(map(torch.equal, numbers(other), numbers(diffusion)))
    with torch.no_grad():
        loaded.moved_ends.add_(0.1)
    assert loaded.max_log_snr != diffusion.max_log_snr


@pytest.mark.parametrize("kind", FAMILIES)
def test_it_begins_as_another_diffusion(kind: str) -> None:
    start = CLD(mass=0.5, max_log_snr=9.0, min_log_snr=-10.0)
    found = FAMILIES[kind].from_diffusion(start, learn_ends=1.0, learn_stationary=True)
    torch.testing.assert_close(found.start.covariance, start.start.covariance, rtol=1e-6, atol=0)
    assert any(found.given_ends.reach) and found.prior_part.is_learned
    assert not any(start.given_ends.reach) and not VPSDE().prior_part.is_learned


@pytest.mark.parametrize(
    "K, rank, options",
    [
        (1, None, {}),
        (2, None, {}),
        (2, 1, {"learn_ends": 0.5}),
        (3, None, {"learn_stationary": True}),
        (3, 1, {"learn_ends": 0.5, "learn_stationary": True}),
        (4, 2, {}),
        (2, None, {"min_log_snr": None}),
        (3, 2, {"min_log_snr": None, "learn_beta": True, "learn_ends": (0.5, 0.0)}),
    ],
)
def test_ends_of_one_factorization_have_the_derivatives_of_two(
    K: int, rank: int | None, options: dict[str, Any]
) -> None:
    """Of all that a kernel is made of, in all that is learned."""
    ends = {"max_log_snr": 9.0, "min_log_snr": -6.0}
    diffusion = LearnedDiffusion(K, rank, **(ends | options))
    generator = torch.Generator().manual_seed(K)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)

    with torch.no_grad():
        for parameter in diffusion.parameters():
            parameter.add_(0.02 * normal(parameter))
    parameters, levels = list(diffusion.parameters()), torch.stack(targets(diffusion))
    roots, solved = root(diffusion, levels), diffusion.solved()
    again = with_gradient(solved, roots, levels)
    both = torch.stack([again[0], solved.clock(solved.horizon)])
    got, expected = (
        (clocks_of_targets(solved), *both_ends(solved)),
        (again, *marginal_at(solved, both)),
    )
    largest, nothing = 0.0, 0 * parameters_to_vector(parameters).sum()  # λ may be a constant
    for one, two in zip(got, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)
        weights = normal(two)
        options = {"retain_graph": True, "materialize_grads": True}
        of_each = (
            torch.autograd.grad((t * weights).sum() + nothing, parameters, **options)
            for t in (one, two)
        )
        slopes = [torch.cat([g.flatten() for g in gradients]) for gradients in of_each]
        size = max(1.0, slopes[1].abs().max().item())
        torch.testing.assert_close(*slopes, rtol=0, atol=1e-9 * size)
        largest = max(largest, slopes[1].abs().max().item())
    assert largest > 0.1


def end_of_constant_matrices() -> tuple[Tensor, Tensor]:
    diffusion = moved("constant")
    return diffusion.start_time, diffusion.lower


def end_of_varying_matrices() -> tuple[Tensor, Tensor]:
    diffusion = moved("time_varying")
    return diffusion.start_time, diffusion.moved_ends


def time_of_dimensions() -> tuple[Tensor, Tensor]:
    value = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    return PerDimensionDiffusion([CLD()], torch.arange(1)).log_volume.inverse(value), value


def time_of_a_schedule() -> tuple[Tensor, Tensor]:
    tau = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    return GivenSchedule(torch.cos, torch.sin, 1.0).inverse(tau), tau


ROOTS = [end_of_constant_matrices, end_of_varying_matrices, time_of_dimensions, time_of_a_schedule]
"""Each makes a time, and a tensor that it depends on."""


@pytest.mark.parametrize("make", ROOTS)
def test_a_second_derivative_of_a_root_is_an_error(
    make: Callable[[], tuple[Tensor, Tensor]],
) -> None:
    """By what the root depends on; by all else the gradient has derivatives."""
    root, source = make()
    factor = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad((factor * root).sum(), source, create_graph=True)
    (by_factor,) = torch.autograd.grad(slope.sum(), factor, retain_graph=True)
    assert by_factor.item() == pytest.approx(slope.sum().item() / 3) and by_factor.item()
    with pytest.raises(RuntimeError, match="times at given log SNRs have first derivatives only"):
        torch.autograd.grad(slope.sum(), source)


def bases(seed: int, **options: Any) -> LearnedDiffusion:
    return LearnedDiffusion(2, max_log_snr=9.0, seed=seed, **options)


WHOLES: dict[str, Callable[[], nn.Module]] = {
    "λ(T) given": lambda: bases(0, min_log_snr=-10.0, learn_ends=0.5),
    "the clock's own": lambda: bases(0, learn_beta=True),
    "in time": lambda: moved("time_varying"),
    "encoded": lambda: EncodedDiffusion(bases(0, min_log_snr=-10.0), MLP(1, 8, 1)),
    "per dimension": lambda: PerDimensionDiffusion(
        [bases(1, min_log_snr=-10.0), bases(2, min_log_snr=-10.0)], torch.tensor([0, 1, 0])
    ),
    "context": lambda: ContextDiffusion(
        bases(0, min_log_snr=-10.0),
        DiscreteContext(nn.Linear(3, 2), 2),
        ContextClocks(2, 2),
        torch.tensor([1, 0, 1]),
    ),
}


def steps(whole: nn.Module, number: int) -> list[Tensor]:
    """Steps of training, none of them large, and where they lead."""
    learned = [m for m in whole.modules() if is_learned(m)]
    parameters = [p for m in learned for p in m.parameters()]
    for _ in range(number):
        views = [m.solved() for m in learned]
        loss = sum(m.start.log_det + m.terminal.log_det + m.start_time for m in views)
        assert isinstance(loss, Tensor)
        slopes = torch.autograd.grad(loss, parameters, allow_unused=True)
        with torch.no_grad():
            for p, slope in zip(parameters, slopes, strict=True):
                if slope is not None:
                    p.sub_(3e-3 * slope / (1 + slope.abs()))
    return [p.detach().clone() for p in whole.parameters()]


@pytest.mark.parametrize("name", WHOLES)
def test_saved_between_steps_it_goes_on_bit_for_bit(name: str) -> None:
    """All digits of an end follow from what is saved."""
    torch.manual_seed(0)
    whole = WHOLES[name]()
    steps(whole, 3)
    again = WHOLES[name]()
    again.load_state_dict(copy.deepcopy(whole.state_dict()))
    for one, two in zip(steps(whole, 5), steps(again, 5), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("kind", FAMILIES)
def test_one_that_is_solved_has_the_gradients_of_values_that_are_computed_anew(kind: str) -> None:
    """Whoever asks first, with gradients or without."""
    diffusion, gradients, s = moved(kind), [], torch.tensor([0.3, 0.6], dtype=torch.float64)
    early = diffusion.solved()
    with torch.no_grad():
        early.log_snr(s), early.transition(s[1], s[0]), early.time_at_log_snr(0.0)
    for one in (diffusion, diffusion.solved(), early):
        value = one.start.log_det + one.terminal.log_det + one.start_time + one.log_snr(s).sum()
        value = value + one.transition(s[1], s[0]).log_det + one.log_volume(s).sum()
        gradients.append(torch.autograd.grad(value, list(diffusion.parameters())))
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_parameters_that_are_no_numbers_are_named(value: float) -> None:
    diffusion = moved("constant")
    with torch.no_grad():
        next(p for p in diffusion.parameters() if p.requires_grad).fill_(value)
    with pytest.raises(FloatingPointError, match=r"NaN or infinite.* lower the learning rate"):
        diffusion.start_time  # noqa: B018


LOSSES: dict[str, Callable[[DiffusionModel, DiffusionGuide, Tensor], object]] = {
    "MDM_ELBO": lambda model, guide, x: MDM_ELBO().loss_and_grads(model, guide, x),
    "Trace_ELBO": lambda model, guide, x: Trace_ELBO().loss_and_grads(model, guide, x),
    "elbo_terms": lambda model, guide, x: elbo_terms(model, guide, x).elbo.sum().backward(),
    "log_prob": lambda model, guide, x: model.log_prob(x).sum().backward(),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_a_loss_finds_the_ends_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guide and model have them together, whichever objective asks, and each loss anew."""
    diffusion, searches = moved("constant"), []

    def counted(linear: LinearDiffusion, *args: Any, **options: Any) -> Tensor:
        searches.append(linear)
        return root(linear, *args, **options)

    monkeypatch.setattr(ends, "root", counted)
    score = Denoiser(MLP(2), data_mean=MEAN, data_variance=VARIANCE)
    model = DiffusionModel(diffusion, score, event_shape=(2,))
    searches.clear()
    for number in (1, 2):
        LOSSES[kind](model, DiffusionGuide(diffusion), fixed(4, 8, 2).float())
        assert len([linear for linear in searches if linear.has_graph]) == number
