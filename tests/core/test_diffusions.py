"""Linear diffusions: laws they obey, errors they raise, gradients they carry, values they keep."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils import vector_to_parameters

from pyro_mdm.diffusions.base import UnreachableError
from pyro_mdm.diffusions.clocks import ConstantBeta, LearnedBeta, LinearBeta, log_snr_times
from pyro_mdm.diffusions.kernels import KernelPrecisionError
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.diffusions.linear_matrices import GivenPrior
from pyro_mdm.diffusions.presets import ALDA, CLD, HOLD, MALDA, VPSDE, LearnedDiffusion
from tests.diffusions import DIFFUSIONS, truncation
from tests.mistakes import refused
from tests.problems import ExactScore, fixed, mixture, normal

every_diffusion = pytest.mark.parametrize(
    "make", [make for _, make in DIFFUSIONS], ids=[name for name, _ in DIFFUSIONS]
)
PRESETS = [VPSDE, CLD, MALDA, ALDA]
TRAINED = [(name, make) for name, make in DIFFUSIONS if "learned" in name]
every_trained_diffusion = pytest.mark.parametrize(
    "make", [make for _, make in TRAINED], ids=[name for name, _ in TRAINED]
)


def times(diffusion: LinearDiffusion, num: int = 12) -> Tensor:
    return diffusion.horizon * torch.logspace(-3, 0, num, dtype=torch.float64)


# -- laws ------------------------------------------------------------------------------------------


@pytest.mark.quick
@every_diffusion
@torch.no_grad()
def test_transitions_compose_and_keep_the_stationary_law(make):
    diffusion = make()
    r, q, s = torch.tensor([[0.0, 1e-3, 0.3], [0.1, 2e-3, 0.5], [0.9, 0.2, 1.0]]).double()
    first, second, whole = (diffusion.transition(*p) for p in ((q, r), (s, q), (s, r)))
    M = second.matrix
    torch.testing.assert_close(whole.matrix, M @ first.matrix, rtol=1e-11, atol=1e-11)
    P = second.covariance + M @ first.covariance @ M.mT
    torch.testing.assert_close(whole.covariance, P, rtol=1e-10, atol=1e-13)
    if isinstance(diffusion.prior_part, GivenPrior):  # has no such law
        return
    t, Sigma = diffusion.transition(times(diffusion)), diffusion.stationary_covariance
    kept = t.matrix @ Sigma @ t.matrix.mT + t.covariance
    near = 1e-10 + truncation(diffusion)
    torch.testing.assert_close(kept, Sigma.expand_as(kept), rtol=near, atol=near)
    assert torch.equal(diffusion.prior_covariance, Sigma)


@every_diffusion
@torch.no_grad()
def test_marginals_are_transitions_from_the_start_and_have_their_factors(make):
    diffusion = make()
    s = times(diffusion)
    m, t, late = diffusion.marginal(s), diffusion.transition(s), diffusion.transition(1.0, s[:-1])
    Sigma = t.covariance + t.matrix @ diffusion.initial_covariance @ t.matrix.mT
    torch.testing.assert_close(m.covariance, Sigma)
    torch.testing.assert_close(m.mean, t.matrix[..., 0])
    for law in (m, late):
        L = law.scale_tril
        assert not L.triu(1).any()
        assert bool((L.diagonal(dim1=-2, dim2=-1) > 0).all())
        torch.testing.assert_close(L @ L.mT, law.covariance, rtol=1e-10, atol=1e-13)
        diagonal = 2 * L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        torch.testing.assert_close(diagonal, law.log_det, rtol=1e-7, atol=1e-6)


@pytest.mark.quick
@every_diffusion
def test_moments_satisfy_their_differential_equations(make):
    """a' = A a, Σ' = A Σ + Σ Aᵀ + g² and λ' = -SNR kᵀ g² k, by finite differences."""
    diffusion = make()
    s, h = 0.35, 1e-4
    with torch.no_grad():
        # fourth-order central differences
        m = [diffusion.marginal(s + i * h) for i in (-2, -1, 1, 2)]
        here = diffusion.marginal(s)
        A, g2 = diffusion.drift_matrix(s), diffusion.noise_covariance(s)
        G = diffusion.dispersion(None, torch.tensor(s, dtype=torch.float64))
        rate = diffusion.log_snr_rate(s)

    def slope(field: str) -> Tensor:
        f = [getattr(x, field) for x in m]
        return (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * h)

    torch.testing.assert_close(slope("mean"), A @ here.mean, rtol=1e-7, atol=1e-7)
    Sigma = here.covariance
    torch.testing.assert_close(
        slope("covariance"), A @ Sigma + Sigma @ A.mT + g2, rtol=1e-7, atol=1e-7
    )
    torch.testing.assert_close(slope("log_snr"), -rate, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(G @ G.mT, g2, rtol=1e-10, atol=1e-12)
    y = normal(0, 5, diffusion.num_variables, 2, 3)
    expected = torch.einsum("ij,bjcd->bicd", A, y)
    torch.testing.assert_close(diffusion.drift(y, torch.full((5,), s).double()), expected)
    torch.testing.assert_close(diffusion.drift(y, s), expected)


@every_diffusion
def test_readout_finds_x(make):
    """kᵀ a = 1 and Var kᵀ y = 1 / SNR: z = x + SNR^{-1/2} ε."""
    diffusion = make()
    with torch.no_grad():
        m = diffusion.marginal(log_snr_times(diffusion, 20))
    k = m.readout
    one = (k * m.mean).sum(-1)
    torch.testing.assert_close(one, torch.ones_like(one), rtol=1e-9, atol=1e-9)
    variance = torch.einsum("si,sij,sj->s", k, m.covariance, k)
    torch.testing.assert_close(variance * m.log_snr.exp(), one, rtol=1e-8, atol=1e-8)


@every_diffusion
def test_log_snr_decreases_between_its_ends(make):
    diffusion = make()
    with torch.no_grad():
        s = torch.linspace(diffusion.start_time.item(), diffusion.horizon, 400).double()
        lam = diffusion.log_snr(s)
        ends = diffusion.max_log_snr, diffusion.terminal_log_snr.item()
    assert bool((lam[1:] <= lam[:-1] + 1e-10).all())
    assert lam[[0, -1]].tolist() == pytest.approx(ends, abs=1e-6)
    if diffusion.min_log_snr is not None:
        assert ends[1] == pytest.approx(diffusion.min_log_snr, abs=1e-9)


@every_diffusion
def test_time_at_log_snr_inverts_log_snr(make):
    diffusion = make()
    with torch.no_grad():
        low = diffusion.terminal_log_snr.item()
        value = torch.linspace(low, 13.0, 98, dtype=torch.float64)
        value = torch.cat([value, torch.tensor([30.0, 60.0])]).reshape(10, 10)
        s = diffusion.time_at_log_snr(value)
        assert s.shape == value.shape
        torch.testing.assert_close(diffusion.log_snr(s), value, rtol=0, atol=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_time_at_log_snr_crosses_plateaus(seed):
    """K = 3, rank 1: noise can be blind to what is left of x for a while."""
    diffusion = LearnedDiffusion(3, 1, max_log_snr=30.0)
    with torch.no_grad():
        diffusion.lower.copy_(3 * normal(seed, 3))
        diffusion.B.copy_(normal(seed + 20, 3, 1))
        s = log_snr_times(diffusion, 300)
        low = diffusion.terminal_log_snr.item()
        value = torch.linspace(30.0, low, 300, dtype=torch.float64)
        torch.testing.assert_close(diffusion.log_snr(s), value, rtol=0, atol=1e-8)
    assert bool((s[1:] > s[:-1]).all())


@pytest.mark.quick
@every_diffusion
def test_z_is_sufficient(make):
    """∇ log q(y_s) of a mixture, from the density of y_s, is -Σ^{-1}(y - a E[x | z])."""
    diffusion, problem = make(), mixture()
    score = ExactScore(problem, diffusion)
    for s in (diffusion.start_time.item(), 0.15, 0.5, 1.0):
        y = problem.noised(diffusion, s, 64)
        with torch.no_grad():
            m = diffusion.marginal(s)
            g2 = diffusion.noise_covariance(s)
        t = torch.full((64,), s, dtype=torch.float64)
        x_hat, direct = score.denoise(y, t), score(y, t)
        through_z = -torch.linalg.solve(m.covariance, y - m.mean[:, None] * x_hat[:, None])
        white = m.scale_tril.mT @ (direct - through_z)
        assert white.abs().max() < 1e-8
        # and back: the projection of any score on g² is the denoiser
        inverse = torch.linalg.inv(m.covariance)
        weight = inverse @ m.mean @ g2
        total = weight @ inverse @ m.mean
        projected = torch.einsum("i,bid->bd", weight, direct + inverse @ y) / total
        scale = 1 + (m.log_snr / 2).exp().reciprocal()
        assert ((projected - x_hat) / scale).abs().max() < 1e-6


# -- shapes and dtypes -----------------------------------------------------------------------------


@every_diffusion
def test_shapes_follow_the_times(make):
    diffusion = make()
    K = diffusion.num_variables
    for shape in ((), (3,), (2, 3), (0,)):
        s = torch.full(shape, 0.4, dtype=torch.float64)
        m, t = diffusion.marginal(s), diffusion.transition(s, 0.1)
        vector, matrix = (*shape, K), (*shape, K, K)
        assert [f.shape for f in m] == [vector, matrix, matrix, vector, shape, shape]
        assert [f.shape for f in t] == [matrix, matrix, matrix, shape]
        assert diffusion.drift_matrix(s).shape == diffusion.noise_covariance(s).shape == matrix
        assert diffusion.log_snr(s).shape == diffusion.clock(s).shape == shape
        assert all(f.dtype == torch.float64 for f in (*m, *t))
    assert diffusion.marginal(0.4).mean.shape == (K,)


def tensors(module: torch.nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


@every_diffusion
def test_casting_never_costs_digits(make):
    diffusion = make()
    before = {k: v.clone() for k, v in tensors(diffusion)}
    start, covariance = diffusion.start_time, diffusion.marginal(0.3).covariance
    for cast in (lambda d: d.float(), lambda d: d.to(torch.float32), lambda d: d.half()):
        diffusion = cast(diffusion)
        assert isinstance(diffusion, LinearDiffusion)
        for name, value in tensors(diffusion):
            assert value.dtype == torch.float64
            assert torch.equal(value, before[name])
    assert torch.equal(diffusion.start_time, start)
    assert torch.equal(diffusion.marginal(0.3).covariance, covariance)
    assert diffusion.marginal(torch.tensor(0.25)).mean.dtype == torch.float64


# -- the door --------------------------------------------------------------------------------------


def test_times_and_families_that_cannot_be_are_refused():
    """What newcomers do wrong with a diffusion is in test_mistakes.py."""
    d = CLD()
    refused(
        ValueError,
        (lambda: d.marginal(torch.tensor([0.5, -1.0])), r"s = -1 is outside"),
        (lambda: d.marginal(float("nan")), r"s = nan is outside"),
        (lambda: d.log_snr(0.0), r"at s = 0, .* use s > 0"),
        (lambda: d.transition(0.1, 0.2), r"from r = 0\.2 to s = 0\.1, expected s > r"),
        (lambda: d.transition(0.5, -0.2), r"r = -0\.2 is outside"),
        (lambda: d.time_at_log_snr(-30.0), r"log SNR -30 is never reached: it ends at .* = -14"),
        (lambda: d.time_at_log_snr(500.0), r"CLD: log SNR 500 is out of reach .* from 242\.\d"),
        (lambda: CLD(stationary_variance=[[1.0, 0.2], [0.0, 1.0]]), r"finite symmetric matrix"),
        (lambda: LearnedDiffusion.from_diffusion(MALDA(), rank=1), r"D of MALDA has rank 2"),
        (lambda: LearnedDiffusion(2, rank=1, diagonal=True), r"a diagonal D has .* leave rank out"),
        (lambda: LearnedDiffusion.from_diffusion(CLD(), diagonal=True), r"leave diagonal out"),
        (lambda: CLD(cut_time=0.1, min_log_snr=-9.0), r"give max_log_snr instead of cut_time"),
    )


def test_a_covariance_may_have_been_rounded() -> None:
    """A product's two triangles may differ in their last place, as on some processors they do."""
    covariance = torch.tensor([[1.0, 0.4], [0.4, 0.2]], dtype=torch.float64)
    rounded = covariance.clone()
    rounded[0, 1] *= 1 + 2**-52
    assert not torch.equal(rounded, rounded.mT)
    one, other = (CLD(stationary_variance=value) for value in (covariance, rounded))
    torch.testing.assert_close(one.prior_covariance, other.prior_covariance, rtol=1e-15, atol=0)
    assert torch.equal(other.prior_covariance, other.prior_covariance.mT)


@pytest.mark.parametrize("preset", PRESETS)
def test_ends_out_of_reach_are_refused_by_what_is_reachable(preset):
    with pytest.raises(UnreachableError, match=r"min_log_snr -80 is out of reach") as caught:
        preset(min_log_snr=-80.0)
    reach = re.search(r"followed from ([\d.]+) down to -([\d.]+); ask for", str(caught.value))
    high, low = min(float(reach[1]), 240.0), -float(reach[2])  # beyond 240, kernels may not hold
    for wanted in (low + 0.1, -20.0):  # what it names is reachable, to the digits
        within = preset(min_log_snr=wanted)
        assert within.terminal.log_snr.item() == pytest.approx(wanted, abs=1e-6)
        assert within.log_snr(1.0).item() == pytest.approx(wanted, abs=1e-6)
    assert preset(max_log_snr=high - 0.1, min_log_snr=-5.0).start.log_snr.item() == pytest.approx(
        high - 0.1, abs=1e-6
    )
    with pytest.raises(UnreachableError, match=r"max_log_snr 3000 is out of reach"):
        preset(max_log_snr=3000.0)
    with pytest.raises(UnreachableError, match=rf"{preset.__name__}: min_log_snr -80 is out of"):
        diffusion = preset()
        diffusion.min_log_snr = -80.0
        _ = diffusion.start_time
    for name in ("min_log_snr", "max_log_snr"):
        for value in (float("nan"), float("inf"), float("-inf")):
            with pytest.raises(ValueError, match=rf"{name} is -?(nan|inf), expected a finite log"):
                preset(**{name: value})


def test_ends_that_are_set_later_are_as_if_given():
    for make in (CLD, lambda **options: LearnedDiffusion(3, 2, **options)):
        given, later = make(min_log_snr=-9.0, max_log_snr=11.0), make()
        _ = later.start_time
        later.max_log_snr, later.min_log_snr = 11, -9
        assert torch.equal(later.start_time, given.start_time)
        assert torch.equal(later.terminal.log_snr, given.terminal.log_snr)
        later.min_log_snr = None
        assert torch.equal(later.terminal.log_snr, make().terminal.log_snr)


@pytest.mark.parametrize("options", [{}, {"min_log_snr": -10.0}])
@pytest.mark.parametrize(
    "use",
    [
        lambda d: d.start_time,
        lambda d: d.terminal,
        lambda d: d.marginal(0.5),
        lambda d: d.log_snr(0.5),
        lambda d: d.time_at_log_snr(1.0),
        lambda d: d.log_volume(0.5),
        lambda d: d.log_volume.ends,
    ],
)
def test_learning_into_an_uncontrollable_diffusion_is_refused_by_its_matrices(use, options):
    diffusion = LearnedDiffusion.from_diffusion(CLD(), rank=1, **options)
    use(diffusion)
    with torch.no_grad():
        diffusion.lower.zero_()
    message = (
        r"LearnedDiffusion: noise reaches 1 of 2 variables with Q = \[\[0\.0, 0\.0\], \[0\.0, 0\.0"
        r"\]\], D = \[\[0\.0, 0\.0\], \[0\.0, 2\.0\]\]: .*couple the variables through Q or widen "
        r"the range of D\. If training .* lower the learning rate of the diffusion"
    )
    with pytest.raises(UnreachableError, match=message):
        use(diffusion)
    with pytest.raises((KernelPrecisionError, UnreachableError), match="noise reaches 1 of 2"):
        diffusion.transition(0.5)


def test_learning_into_an_end_out_of_reach_is_refused_by_what_is_reachable():
    """With a coupling of 1e-7 the slow mode needs more of the clock than float64 can follow."""
    diffusion = LearnedDiffusion(2, rank=1, min_log_snr=-10.0)
    with torch.no_grad():
        diffusion.lower.fill_(1e-7)
    message = (
        r"min_log_snr -10 is out of reach .* Q = \[\[0\.0, -1e-07\], .* down to .* If training"
    )
    refused(
        UnreachableError,
        (lambda: diffusion.start_time, message),
        (lambda: diffusion.terminal, message),
        (lambda: diffusion.clock(1), message),
    )
    free = LearnedDiffusion(2, rank=1)
    with torch.no_grad():
        free.lower.fill_(1e-7)
    message = r"max_log_snr is 13, but log SNR ends at 29\.\d+ with Q = .*, or set min_log_snr"
    with pytest.raises(UnreachableError, match=message):
        _ = free.start_time


# -- presets and the learned family ----------------------------------------------------------------


def test_presets_are_those_of_the_literature():
    def entries(d: LinearDiffusion) -> tuple[list, list, list]:
        return d.Q.tolist(), d.D.tolist(), d.stationary_covariance.diagonal().tolist()

    assert entries(VPSDE()) == ([[0]], [[0.5]], [1])
    assert entries(CLD(mass=4.0)) == ([[0, -1], [1, 0]], [[0, 0], [0, 4]], [1, 4])
    assert entries(CLD(mass=0.25, friction=1.0))[1:] == ([[0, 0], [0, 1]], [1, 0.25])
    Q = [[0, -1, -1], [1, 0, -1], [1, 1, 0]]
    assert entries(MALDA()) == (Q, [[0, 0, 0], [0, 2, 0], [0, 0, 2]], [1, 1, 1])
    Q = [[0, -0.5, 0], [0.5, 0, -3], [0, 3, 0]]
    alda = ALDA(gamma=3.0, lipschitz=2.0, psi=4.0)
    assert entries(alda) == (Q, [[0, 0, 0], [0, 0, 0], [0, 0, 2]], [1, 1, 1])
    assert torch.linalg.matrix_rank(MALDA().D) == 2
    # VPSDE in closed form: a = e^{-b/2}, Σ = 1 - e^{-b}, λ = -log(e^b - 1)
    s = torch.tensor([1e-4, 0.3, 1.0], dtype=torch.float64)
    b = 0.1 * s + 9.95 * s**2
    m = VPSDE().marginal(s)
    torch.testing.assert_close(m.mean[:, 0], torch.exp(-b / 2))
    torch.testing.assert_close(m.covariance[:, 0, 0], -torch.expm1(-b))
    torch.testing.assert_close(m.log_snr, -torch.log(torch.expm1(b)))
    torch.testing.assert_close(m.readout[:, 0], torch.exp(b / 2))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("options", [{}, {"mass": 0.25, "beta": ConstantBeta(4.0)}])
def test_a_learned_diffusion_starts_at_a_preset(preset, options):
    if preset is VPSDE:
        options = {k: v for k, v in options.items() if k != "mass"}
    given = preset(**options)
    rank = int(torch.linalg.matrix_rank(given.D))
    s = times(given)
    of_full_rank = LearnedDiffusion.from_diffusion(given, learn_beta=True)
    for learned_one, error, at, near in (
        (LearnedDiffusion.from_diffusion(given, rank=rank), 1e-15, s, 1e-9),
        # before ε the little noise where the preset has none is more than what comes by Q
        (of_full_rank, 2.1e-12, s[s > given.start_time.item()], 1e-7),
    ):
        assert torch.equal(learned_one.Q, given.Q)
        torch.testing.assert_close(learned_one.D, given.D, rtol=1e-15, atol=error)
        for a, b in zip(learned_one.marginal(at), given.marginal(at), strict=True):
            torch.testing.assert_close(a, b, rtol=near, atol=near)
        torch.testing.assert_close(learned_one.start_time, given.start_time, rtol=near, atol=0)


def test_a_diagonal_learned_diffusion_is_that_and_starts_where_its_seed_says():
    K = 3
    one, same, other = (LearnedDiffusion(K, diagonal=True, seed=seed) for seed in (0, 0, 1))
    assert {name for name, _ in one.named_parameters()} == {"lower", "d"}
    assert torch.equal(one.Q, same.Q) and torch.equal(one.D, same.D)
    assert not torch.equal(one.Q, other.Q) and not torch.equal(one.D, other.D)
    for diffusion in (one, other):
        softplus = torch.nn.functional.softplus(diffusion.d)
        torch.testing.assert_close(diffusion.D, torch.diag(softplus + 1e-3))
        torch.testing.assert_close(diffusion.matrices.root().square(), 2 * diffusion.D)
        assert torch.equal(diffusion.Q, -diffusion.Q.mT)
        assert bool((diffusion.d.abs() < K**-0.5).all())
    # W - Wᵀ has the variance 2/(3 K) and d 1/(3 K), of uniform numbers within ±1/√K
    n = 20
    many = [LearnedDiffusion(n, diagonal=True, seed=seed) for seed in range(10)]
    for name, variance in (("lower", 2 / (3 * n)), ("d", 1 / (3 * n))):
        values = torch.stack([d.get_parameter(name).detach() for d in many]).flatten()
        assert values.mean().abs() < 5 * math.sqrt(variance / len(values))
        assert abs(values.var() / variance - 1) < 5 * math.sqrt(2 / len(values))
    # without a seed, at the same chain as B Bᵀ; and where another diffusion is
    chain, start = LearnedDiffusion(K, diagonal=True), LearnedDiffusion(K)
    torch.testing.assert_close(chain.Q, start.Q)
    torch.testing.assert_close(chain.D, start.D)
    copied = LearnedDiffusion.from_diffusion(one, diagonal=True)
    torch.testing.assert_close(copied.D, one.D)
    assert LearnedDiffusion(K, rank=1, seed=0).B.shape == (K, 1)


def test_a_cut_in_time_stays_where_it_is_while_log_snr_moves():
    diffusion = LearnedDiffusion(2, diagonal=True, seed=0, cut_time=1e-3)
    before = diffusion.max_log_snr
    assert diffusion.start_time.item() == pytest.approx(1e-3, rel=1e-12)
    assert before == pytest.approx(diffusion.log_snr(1e-3).item(), rel=1e-12)
    with torch.no_grad():
        diffusion.d.add_(1.0)
    assert diffusion.start_time.item() == pytest.approx(1e-3, rel=1e-12)
    assert diffusion.max_log_snr == pytest.approx(diffusion.log_snr(1e-3).item(), rel=1e-12)
    assert diffusion.max_log_snr < before - 0.5
    diffusion.max_log_snr = 5.0
    assert diffusion.cut_time is None and diffusion.start.log_snr.item() == pytest.approx(5.0)


# -- clocks ----------------------------------------------------------------------------------------

CLOCKS = [
    LinearBeta(0.1, 20.0),
    LinearBeta(3.0, 0.5),
    LinearBeta(1.0, 1.0),
    ConstantBeta(4.0),
    LearnedBeta(LinearBeta(0.1, 20.0)),
    LearnedBeta(ConstantBeta(2.0), knots=5),
]


@pytest.mark.parametrize("clock", CLOCKS, ids=[f"{type(c).__name__}" for c in CLOCKS])
def test_clocks_are_consistent(clock):
    clock = copy.deepcopy(clock)
    if isinstance(clock, LearnedBeta):
        with torch.no_grad():
            clock.raw.add_(normal(1, len(clock.raw)))
    s = torch.linspace(0, 1, 41, dtype=torch.float64, requires_grad=True)
    b = clock.integral(s)
    assert b[0] == 0
    assert bool((clock.rate(s) > 0).all())
    torch.testing.assert_close(clock.inverse(b), s, rtol=1e-12, atol=1e-13)
    (rate,) = torch.autograd.grad(b.sum(), s)
    torch.testing.assert_close(rate, clock.rate(s))


@pytest.mark.parametrize("preset", PRESETS)
def test_another_clock_visits_the_same_states(preset):
    """At equal log SNR everything is equal, whatever the clock."""
    one, other = preset(), preset(beta=LearnedBeta(ConstantBeta(10.05), knots=4))
    value = torch.linspace(-4.0, 13.0, 20).double()
    with torch.no_grad():
        a, b = (d.marginal(d.time_at_log_snr(value)) for d in (one, other))
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)


# -- gradients -------------------------------------------------------------------------------------


TIMES = torch.tensor([0.3, 0.6, 1.0], dtype=torch.float64)


def outputs(diffusion: LinearDiffusion) -> dict[str, Tensor]:
    """Everything that a diffusion is asked for."""
    step, marginal = diffusion.transition(TIMES, 0.1), diffusion.marginal(TIMES)
    return {
        "transition_matrix": step.matrix,
        "transition_covariance": step.covariance,
        "transition_scale_tril": step.scale_tril,
        "transition_log_det": step.log_det,
        "mean": marginal.mean,
        "covariance": marginal.covariance,
        "scale_tril": marginal.scale_tril,
        "readout": marginal.readout,
        "log_snr": diffusion.log_snr(TIMES),
        "log_det": marginal.log_det,
        "log_snr_rate": diffusion.log_snr_rate(TIMES),
        "drift_matrix": diffusion.drift_matrix(TIMES),
        "noise_covariance": diffusion.noise_covariance(TIMES),
        "time_at_log_snr": diffusion.time_at_log_snr(torch.tensor([5.0, 0.0, -2.0]).double()),
        "terminal_log_snr": diffusion.terminal_log_snr,
        "start_time": diffusion.start_time,
        "start_mean": diffusion.start.mean,
        "start_covariance": diffusion.start.covariance,
        "start_log_det": diffusion.start.log_det,
        "terminal_covariance": diffusion.terminal.covariance,
    }


@pytest.mark.quick
@every_trained_diffusion
def test_gradients_against_finite_differences(make):
    """Reverse mode against central differences of order 4, along a direction at random.

    Every output is weighed randomly, so that no entry can hide behind another.
    """
    diffusion, step = make(), 1e-4
    parameters = [p for p in diffusion.parameters() if p.requires_grad]
    values = outputs(diffusion)
    weights = {
        name: normal(99, *value.shape) if value.dim() else torch.ones((), dtype=torch.float64)
        for name, value in values.items()
    }
    gradients = {  # none of a constant, such as a fixed end
        name: torch.autograd.grad(
            (weights[name] * value).sum(),
            parameters,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        if value.requires_grad
        else [torch.zeros_like(p) for p in parameters]
        for name, value in values.items()
    }
    directions = [normal(7 * i, *p.shape) for i, p in enumerate(parameters)]
    moved = []
    for k in (-2, -1, 1, 2):
        with torch.no_grad():
            for p, v in zip(parameters, directions, strict=True):
                p.add_(k * step * v)
            moved.append(outputs(diffusion))
            for p, v in zip(parameters, directions, strict=True):
                p.sub_(k * step * v)
    for name, weight in weights.items():
        a, b, c, d = ((weight * each[name]).sum().item() for each in moved)
        difference = (a - 8 * b + 8 * c - d) / (12 * step)
        pairs = list(zip(gradients[name], directions, strict=True))
        along = sum((g * v).sum().item() for g, v in pairs)
        scale = sum((g.norm() * v.norm()).item() for g, v in pairs)
        assert abs(along - difference) < 1e-5 * scale + 1e-9, name


def test_gradients_to_times_and_log_snrs():
    diffusion = ALDA()
    s = torch.tensor([0.2, 0.7], dtype=torch.float64, requires_grad=True)
    for f in (
        diffusion.log_snr,
        lambda s: diffusion.marginal(s).covariance,
        lambda s: diffusion.transition(s, 0.1).log_det,
    ):
        assert torch.autograd.gradcheck(f, (s,), eps=1e-6, rtol=1e-5, atol=1e-7)
    value = torch.tensor([9.0, 1.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(diffusion.time_at_log_snr(value).sum(), value)
    with torch.no_grad():
        rate = diffusion.log_snr_rate(diffusion.time_at_log_snr(value))
    torch.testing.assert_close(slope, -1 / rate)


# -- what is kept ----------------------------------------------------------------------------------


WRITES: dict[str, Callable[[LinearDiffusion, dict[str, Tensor]], object]] = {
    "in place": lambda d, new: [p.copy_(new[name]) for name, p in d.named_parameters()],
    # as optimizers of Pyro do, which no counter sees
    "to data": lambda d, new: [p.data.copy_(new[name]) for name, p in d.named_parameters()],
    "load": lambda d, new: d.load_state_dict(d.state_dict() | new),
    "vector": lambda d, new: vector_to_parameters(
        torch.cat([v.flatten() for v in new.values()]), d.parameters()
    ),
}


@pytest.mark.parametrize("how", WRITES)
@pytest.mark.parametrize("options", [{}, {"min_log_snr": -9.0}])
def test_nothing_cached_is_ever_stale(how, options):
    def kept(d: LinearDiffusion) -> list[Tensor]:
        with torch.no_grad():
            value = torch.linspace(-2.0, 13.0, 5, dtype=torch.float64)
            times = d.start_time, d.clock(0.4), d.time_at_log_snr(value)
            return [*d.start, *d.terminal, *times, d.terminal_log_snr, d.transition(0.5).log_det]

    diffusion, fresh = (
        LearnedDiffusion.from_diffusion(MALDA(), learn_beta=True, **options) for _ in range(2)
    )
    before = kept(diffusion)
    new = {n: p.detach() + 0.1 * fixed(5, *p.shape) for n, p in diffusion.named_parameters()}
    with torch.no_grad():
        WRITES[how](diffusion, new)
        WRITES["in place"](fresh, new)
    after = kept(diffusion)
    for a, b in zip(after, kept(fresh), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert any(not torch.allclose(a, old) for a, old in zip(after, before, strict=True))


SET: dict[str, Callable[[LinearDiffusion], Any]] = {
    "beta": lambda d: LearnedBeta(LinearBeta(0.2, 9.0)),
    "horizon": lambda d: 0.9,
    "initial_covariance": lambda d: 0.5 * d.initial_covariance,
    "max_log_snr": lambda d: 5,
}


@pytest.mark.parametrize("make", [VPSDE, CLD, MALDA])
@pytest.mark.parametrize("name", SET)
def test_what_is_set_of_a_fixed_diffusion_counts(make, name):
    """After its values were asked for as before."""
    asked, fresh = make(max_log_snr=8.0), make(max_log_snr=8.0)
    before = asked.start_time, asked.terminal_log_snr
    for diffusion in (asked, fresh):
        setattr(diffusion, name, SET[name](diffusion))
    after = asked.start_time, asked.terminal_log_snr
    assert after == (fresh.start_time, fresh.terminal_log_snr)
    if name in ("beta", "max_log_snr"):
        assert not torch.allclose(after[0], before[0])


@pytest.mark.parametrize("K", range(1, 9))
def test_a_critically_damped_chain_of_any_order(K):
    """All eigenvalues are -1, so exp(A τ) is e^-τ times a polynomial, and P is I - M Mᵀ."""
    diffusion = HOLD(K, beta=ConstantBeta(1.0), horizon=12.0)
    A = diffusion.matrices.drift()
    known = [math.comb(K, k) for k in range(K + 1)]
    np.testing.assert_allclose(np.poly(A.numpy()), known, rtol=1e-8)
    assert torch.equal(diffusion.D.diagonal()[:-1], torch.zeros(K - 1, dtype=torch.float64))
    s, N, M = 6.0, A + torch.eye(K), torch.zeros(K, K, dtype=torch.float64)
    power = torch.eye(K, dtype=torch.float64)
    for k in range(K):
        M = M + power * s**k / math.factorial(k)
        power = power @ N
    M = math.exp(-s) * M
    found = diffusion.transition(s)
    torch.testing.assert_close(found.matrix, M, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.covariance, torch.eye(K) - M @ M.mT, rtol=1e-9, atol=1e-12)
    if K == 2:
        assert torch.equal(diffusion.Q, CLD().Q) and torch.equal(diffusion.D, CLD().D)


def test_times_on_both_sides_of_the_two_routes_are_those_of_each_alone():
    """Few or many at once, with their gradients: what is computed in vain leaves no trace."""
    law = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.999], [0.0, 0.999, 1.0]]  # late, the direct route is worse
    diffusion = LearnedDiffusion(
        3, max_log_snr=9.0, beta=LinearBeta(1.0, 1.0), stationary_variance=law, seed=0
    )
    s = torch.linspace(0.02, 1.0, 12, dtype=torch.float64)
    s = s * 40 / diffusion.propagator.travelled(diffusion.clock(torch.ones(1, dtype=s.dtype)))
    travelled = diffusion.propagator.travelled(diffusion.clock(s))
    assert int((travelled < 20).sum()) == 6  # where the routes part, whatever the seed draws

    def found(times: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        laws = [torch.cat(f) for f in zip(*map(diffusion.marginal, times), strict=True)]
        laws = [law[:12] for law in laws]
        loss = sum(law.sum() for law in laws)
        return laws, list(torch.autograd.grad(loss, list(diffusion.parameters())))

    alone, slopes = found(list(s.split(1)))
    for times in ([s], [s.repeat(3)]):
        laws, others = found(times)
        for one, other in zip(laws + others, alone + slopes, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
            assert one.isfinite().all()


def test_a_route_that_fails_and_is_not_taken_has_no_gradient():
    """So early Σ itself is singular to float64, and only its pull-back to time 0 is factored."""
    diffusion = LearnedDiffusion(3, 1)
    for s in ([1e-7], [1e-7, 0.5]):
        found = diffusion.marginal(torch.tensor(s, dtype=torch.float64))
        assert bool(found.log_snr.isfinite().all())
        for slope in torch.autograd.grad(found.log_snr.sum(), list(diffusion.parameters())):
            assert bool(slope.isfinite().all())
