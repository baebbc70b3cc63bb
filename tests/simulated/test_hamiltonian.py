"""Hamiltonian diffusions: linear where the energy is quadratic, at rest in exp(-H) always.

That the prior is stationary is seen twice: by derivatives, ∇·(F π) = 0, and by paths that start in
it and must end in it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from pyro_mdm.diffusions.clocks import ConstantBeta
from pyro_mdm.diffusions.linear import GaussianPrior, LinearDiffusion
from pyro_mdm.diffusions.matrices import check_dispersion, semidefinite_cholesky
from pyro_mdm.simulated import Simulation
from pyro_mdm.simulated.hamiltonian import HamiltonianDiffusion
from pyro_mdm.simulated.nonlinear import NonlinearDiffusion
from pyro_mdm.simulated.path_integral import path_integral
from pyro_mdm.simulated.priors import DistributionPrior, QuadraturePrior
from tests.diffusions import DIFFUSIONS
from tests.gradients import assert_gradients
from tests.mistakes import refused
from tests.problems import generator, normal

SE = 5.5  # standard errors allowed: 4e-8 of false alarms per number compared

TURN = [[0.0, -1.0], [1.0, 0.0]]
COVARIANCE = torch.tensor([[1.2, 0.5, 0.0], [0.5, 0.9, -0.2], [0.0, -0.2, 0.7]]).double()


# -- the problems ----------------------------------------------------------------------------------


def square(v: Tensor) -> Tensor:
    return v**2 / 2


def relativistic(v: Tensor) -> Tensor:
    return (1 + v**2).sqrt()


def quartic(v: Tensor) -> Tensor:
    return v**2 / 4 + v**4 / 8


def blocks(rows: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def friction(y: Tensor) -> Tensor:
    """On v alone: 1 + v² / (1 + v²)."""
    v = y[:, 1]
    zero = torch.zeros_like(v)
    return blocks([[zero, zero], [zero, 1 + v**2 / (1 + v**2)]])


def friction_root(y: Tensor) -> Tensor:
    return friction(y).sqrt()


def full_friction(y: Tensor) -> Tensor:
    """D = B(y) Bᵀ of full rank, no entry of it zero, each variable in each entry."""
    K = y.shape[1]
    S = torch.stack([(y.roll(k, 1) + 0.3 * k * y).sin() for k in range(K)], 1)  # (n, K, K, *event)
    B = 0.4 * S.movedim((1, 2), (-2, -1)) + torch.eye(K).to(y)
    return B @ B.mT


def thin_friction(y: Tensor) -> Tensor:
    """Of rank 1, along a direction that turns."""
    b = torch.stack([y[:, 1].cos(), 1 + 0.5 * y[:, 0].sin()], -1)
    return b[..., :, None] * b[..., None, :]


def turning(y: Tensor) -> Tensor:
    """A skew Q that sees every variable."""
    K = y.shape[1]
    W = torch.zeros(len(y), *y.shape[2:], K, K).to(y)
    total = y.sum(1)
    for i in range(K):
        for j in range(i):
            W[..., i, j] = 1 + 0.5 * (total + i * y[:, 0] - y[:, j]).sin()
    return W - W.mT


def multivariate(K: int) -> DistributionPrior:
    return DistributionPrior(MultivariateNormal(normal(3, K) / 4, COVARIANCE[:K, :K]))


def joint(prior: DistributionPrior) -> Callable[[Tensor], Tensor]:
    """-log π of each data dimension, without its constant."""
    law = prior.distribution
    precision = torch.linalg.inv(law.covariance_matrix)

    def energy(y: Tensor) -> Tensor:
        centred = y.movedim(1, -1) - law.mean
        return 0.5 * ((centred @ precision) * centred).sum(-1)

    return energy


make = HamiltonianDiffusion


def coupled(K: int, Q, D, **options) -> HamiltonianDiffusion:
    prior = multivariate(K)
    return HamiltonianDiffusion(joint(prior), Q, D, prior=prior, **options)


PROBLEMS: dict[str, Callable[..., HamiltonianDiffusion]] = {
    "quartic_1": lambda **o: make([quartic], [[0.0]], [[1.0]], **o),
    "relativistic": lambda **o: make([square, relativistic], TURN, [[0.0, 0.0], [0.0, 1.5]], **o),
    "state_noise_1": lambda **o: make([quartic], [[0.0]], full_friction, **o),
    "friction": lambda **o: make([square, relativistic], TURN, friction, **o),
    "friction_root": lambda **o: make(
        [square, relativistic], TURN, friction, root=friction_root, **o
    ),
    "thin_friction": lambda **o: make([square, quartic], TURN, thin_friction, **o),
    "turning_2": lambda **o: make([relativistic, quartic], turning, [[0.5, 0.2], [0.2, 1.0]], **o),
    "turning_3": lambda **o: make(
        [quartic, square, relativistic], turning, torch.diag(torch.tensor([0.0, 0.3, 1.0])), **o
    ),
    "all_2": lambda **o: make([square, relativistic], turning, full_friction, **o),
    "all_3": lambda **o: make([quartic, square, relativistic], turning, full_friction, **o),
    "joint_2": lambda **o: coupled(2, TURN, friction, **o),
    "joint_3": lambda **o: coupled(3, turning, full_friction, **o),
}
every_problem = pytest.mark.parametrize("name", PROBLEMS)
CORRECTED = [name for name in PROBLEMS if name not in ("quartic_1", "relativistic")]


# -- linear diffusions -----------------------------------------------------------------------------

linear_ones = ["vpsde", "cld", "alda", "random_1", "random_2", "random_3", "random_4_rank_2"]


@pytest.mark.parametrize("name", linear_ones)
def test_quadratic_energies_make_the_linear_diffusion(name):
    linear: LinearDiffusion = dict(DIFFUSIONS)[name]()
    K = linear.num_variables
    precision = torch.linalg.inv(linear.stationary_covariance)

    def energy(y: Tensor) -> Tensor:
        return 0.5 * (y.movedim(1, -1) @ precision * y.movedim(1, -1)).sum(-1)

    diffusion = HamiltonianDiffusion(
        energy, linear.Q, linear.D, prior=linear.prior, beta=linear.beta, horizon=linear.horizon
    )
    diffusion.check((2,))
    for s in (torch.tensor([0.1, 0.3, 0.5, 0.8, 1.0]).double(), 0.4):
        for y in (normal(0, 5, K), normal(0, 5, K, 2, 3)):
            drift = linear.drift(y, torch.as_tensor(s, dtype=torch.float64).expand(5))
            torch.testing.assert_close(diffusion.drift(y, s), drift, rtol=1e-12, atol=1e-12)
            G = diffusion.dispersion(y, s)
            torch.testing.assert_close(G, linear.dispersion(y, s))
            assert not diffusion.noise_divergence(y, s).any()


# -- shapes and dtypes -----------------------------------------------------------------------------


@every_problem
@pytest.mark.parametrize("event_shape", [(), (3,), (2, 2)])
def test_data_dimensions_are_alone(name, event_shape):
    """Whole data, and each data dimension by itself, give the same drift and dispersion."""
    diffusion = PROBLEMS[name]()
    K = diffusion.num_variables
    y = diffusion.prior.sample((4, K, *event_shape), generator(0))
    s = torch.tensor([0.0, 0.2, 0.5, 1.0]).double()
    whole = {
        "drift": diffusion.drift(y, s).reshape(4, K, -1),
        "divergence": diffusion.noise_divergence(y, s).reshape(4, K, -1),
    }
    G = check_dispersion(diffusion, diffusion.dispersion(y, s), y)
    for j, column in enumerate(y.reshape(4, K, -1).unbind(-1)):
        torch.testing.assert_close(whole["drift"][..., j], diffusion.drift(column, s))
        torch.testing.assert_close(
            whole["divergence"][..., j], diffusion.noise_divergence(column, s)
        )
        alone = check_dispersion(diffusion, diffusion.dispersion(column, s), column)
        torch.testing.assert_close(G[:, j if G.shape[1] > 1 else 0], alone[:, 0])
    for i in range(4):  # one time for all, as a number or 0-dim
        here = y[i : i + 1]
        torch.testing.assert_close(diffusion.drift(here, s[i])[0], diffusion.drift(y, s)[i])
        G_i = check_dispersion(diffusion, diffusion.dispersion(here, float(s[i])), here)
        torch.testing.assert_close(G_i[0], G[i])


@every_problem
def test_the_state_keeps_its_precision(name):
    diffusion = PROBLEMS[name]()
    y = normal(0, 4, diffusion.num_variables, 2)
    f = diffusion.drift(y.float(), 0.5)
    assert f.dtype == torch.float32 and not f.requires_grad
    torch.testing.assert_close(f.double(), diffusion.drift(y, 0.5), rtol=1e-5, atol=1e-5)
    assert diffusion.noise_divergence(y.float(), 0.5).dtype == torch.float32
    assert diffusion.drift(y.requires_grad_(), 0.5).requires_grad
    with torch.no_grad():
        assert not diffusion.drift(y, 0.5).requires_grad


# -- the dispersion --------------------------------------------------------------------------------


@every_problem
def test_the_dispersion_is_a_root_of_the_noise(name):
    diffusion = PROBLEMS[name](beta=ConstantBeta(3.0))
    K = diffusion.num_variables
    y = normal(0, 6, K, 2)
    G = check_dispersion(diffusion, diffusion.dispersion(y, 0.5), y)
    assert diffusion.noise_depends_on_state == callable(diffusion.D.function)
    D = diffusion.D(y.double())
    torch.testing.assert_close(G @ G.mT, (6 * D).expand_as(G), rtol=1e-10, atol=1e-10)


@every_problem
def test_noise_divergence_is_that_of_the_root(name):
    """∇·(2βD), and ∇·(G Gᵀ) as any other nonlinear diffusion computes it."""
    diffusion = PROBLEMS[name]()
    y, s = normal(0, 4, diffusion.num_variables, 2), torch.rand(4).double()
    expected = NonlinearDiffusion.noise_divergence(diffusion, y, s)
    torch.testing.assert_close(diffusion.noise_divergence(y, s), expected)
    assert bool(expected.any()) == diffusion.noise_depends_on_state


def test_correction_by_hand():
    """D = diag(0, 1 + v²/(1 + v²)): Γ = (0, 2v / (1 + v²)²). Q = q(x, v) turn: (-∂_v q, ∂_x q)."""
    y = normal(0, 5, 2, 3)
    x, v = y.unbind(1)
    diffusion = PROBLEMS["friction"](beta=ConstantBeta(2.0))
    slope = v / (1 + v**2).sqrt()
    D = 1 + v**2 / (1 + v**2)
    gamma = 2 * v / (1 + v**2) ** 2
    expected = torch.stack([2 * slope, 2 * (-x - D * slope + gamma)], 1)
    torch.testing.assert_close(diffusion.drift(y, 0.5), expected)
    torch.testing.assert_close(
        diffusion.noise_divergence(y, 0.5), torch.stack([torch.zeros_like(v), 4 * gamma], 1)
    )

    def Q(y: Tensor) -> Tensor:
        q = y[:, 0].sin() * (1 + y[:, 1] ** 2)
        return blocks([[torch.zeros_like(q), -q], [q, torch.zeros_like(q)]])

    turned = HamiltonianDiffusion(
        [square, square], Q, torch.zeros(2, 2) + torch.eye(2), beta=ConstantBeta(2.0)
    )
    q = x.sin() * (1 + v**2)
    expected = torch.stack([q * v - x - 2 * x.sin() * v, -q * x - v + x.cos() * (1 + v**2)], 1)
    torch.testing.assert_close(turned.drift(y, 0.5), 2 * expected)


def transformed() -> HamiltonianDiffusion:
    """y = sinh z of an Ornstein-Uhlenbeck z, dz = -½ β z ds + √β dB: its noise is √β cosh z."""
    return HamiltonianDiffusion(
        [lambda y: y.asinh() ** 2 / 2 + 0.5 * (1 + y**2).log()],
        [[0.0]],
        lambda y: 0.5 * (1 + y.movedim(1, -1).unsqueeze(-1) ** 2),
        beta=ConstantBeta(8.0),
    )


@pytest.mark.parametrize("objective", ["ism", "local_dsm"])
def test_the_bound_of_a_change_of_variables(objective):
    """With the exact score it is E log p on average: noise that sees the state is accounted for.

    Less KL(p_T ‖ π) = 4e-5; steps of the clock are 0.04.
    """
    diffusion, n, mean, variance = transformed(), 10000, 0.5, 0.3

    def moments(s: Tensor) -> tuple[Tensor, Tensor]:
        left = (-8 * s).exp()
        return mean * left.sqrt(), 1 + (variance - 1) * left

    def score(y: Tensor, s: Tensor) -> Tensor:
        m, v = moments(s.reshape(-1, 1, 1))
        return -(y.asinh() - m) / (v * (1 + y**2).sqrt()) - y / (1 + y**2)

    z = mean + variance**0.5 * normal(1, n, 1, 1)
    y = z.sinh()
    log_prob = -0.5 * (z - mean) ** 2 / variance - 0.5 * math.log(2 * math.pi * variance)
    log_prob = (log_prob - z.cosh().log()).flatten()
    torch.manual_seed(2)
    with torch.no_grad():
        integral = path_integral(diffusion, score, y, Simulation(0.005, objective=objective)).value
    gap = diffusion.prior.log_prob(y) - integral - log_prob
    assert gap.mean().abs() < SE * gap.std() / n**0.5
    assert integral.mean() < -0.3  # what the model gains, which wrong signs or halves would change


ROOTS = {
    "full": lambda t: torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double() * t,
    "diagonal": lambda t: torch.diag_embed(torch.stack([t, 3 * t], -1)),
    "silent": lambda t: torch.diag_embed(torch.stack([0 * t, t**2, 0 * t, 2 * t], -1)),
    "thin": lambda t: t * torch.ones(3, 3).double(),
    "thin, turning": lambda t: (
        torch.stack([t.cos(), t.sin()])[:, None] * torch.stack([t.cos(), t.sin()])
    ),
    "equal eigenvalues": lambda t: t * torch.eye(3).double(),
    "tiny": lambda t: 1e-9 * t * torch.eye(2).double(),
    "nothing": lambda t: 0 * t * torch.eye(2).double(),
}


@pytest.mark.parametrize("name", ROOTS)
def test_roots_are_differentiable(name):
    """Where torch's Cholesky has no factor, and eigenvectors no derivative, too."""
    t = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    D = ROOTS[name](t)
    L = semidefinite_cholesky(D)
    torch.testing.assert_close(L @ L.mT, D, rtol=1e-12, atol=1e-15)
    assert torch.equal(L, L.tril())
    assert torch.autograd.gradcheck(lambda t: semidefinite_cholesky(ROOTS[name](t)), t)
    assert torch.autograd.gradgradcheck(lambda t: semidefinite_cholesky(ROOTS[name](t)), t)


# -- the law at rest -------------------------------------------------------------------------------


@every_problem
@pytest.mark.parametrize("event_shape", [(), (2,)])
def test_the_prior_is_stationary(name, event_shape):
    PROBLEMS[name]().check(event_shape)


@pytest.mark.parametrize("name", CORRECTED)
def test_without_its_correction_it_is_not(name, monkeypatch):
    """The thing the check is for. Half of Γ is as wrong as none."""
    correction = HamiltonianDiffusion._correction
    for part in (0.0, 0.5, -1.0):
        wrong = lambda self, state, part=part: part * correction(self, state)  # noqa: E731
        monkeypatch.setattr(HamiltonianDiffusion, "_correction", wrong)
        with pytest.raises(ValueError, match=r"HamiltonianDiffusion declares .* not the stat.*law"):
            PROBLEMS[name]().check((2,))


@pytest.mark.parametrize(
    ("energies", "prior"),
    [
        ([square, relativistic], GaussianPrior(torch.eye(2).double())),
        ([square, square], GaussianPrior(torch.tensor([[1.0, 0.3], [0.3, 1.0]]).double())),
        ([square, square], QuadraturePrior([quartic, square])),
        (lambda y: square(y).sum(1), multivariate(2)),
    ],
)
def test_another_law_is_refused(energies, prior):
    diffusion = HamiltonianDiffusion(energies, TURN, friction, prior=prior)
    with pytest.raises(ValueError, match="its prior is not the stationary law"):
        diffusion.check((2,))


# -- gradients -------------------------------------------------------------------------------------


class Kinetic(nn.Module):
    """sqrt(1 + exp(a) v²), in float32 as modules are made."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.2))

    def forward(self, v: Tensor) -> Tensor:
        return (1 + self.a.exp() * v**2).sqrt()


class Perceptron(nn.Module):
    """A network of one variable, confined."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, v: Tensor) -> Tensor:
        return v**2 / 2 + self.net(v.unsqueeze(-1)).squeeze(-1)


class Friction(nn.Module):
    """B(y) Bᵀ for B = [[0, 0], [c sin x, exp(c) + v² / (1 + v²)]]."""

    def __init__(self, whole: bool = True) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.tensor(0.1))
        self.whole = whole

    def forward(self, y: Tensor) -> Tensor:
        x, v = y.unbind(1)
        zero = torch.zeros_like(x)
        B = blocks([[zero, zero], [self.c * x.sin(), self.c.exp() + v**2 / (1 + v**2)]])
        return B @ B.mT if self.whole else B


class Turn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.4))

    def forward(self, y: Tensor) -> Tensor:
        q = 1 + self.w * (y[:, 0] * y[:, 1]).tanh()
        return blocks([[torch.zeros_like(q), -q], [q, torch.zeros_like(q)]])


def learned() -> HamiltonianDiffusion:
    torch.manual_seed(0)
    return HamiltonianDiffusion([Perceptron(), Kinetic()], Turn(), Friction())


def values(diffusion: HamiltonianDiffusion, y: Tensor, s: Tensor) -> dict[str, Tensor]:
    shape = y.shape
    return {
        "drift": (diffusion.drift(y, s) * normal(8, *shape)).sum(),
        "dispersion": (diffusion.dispersion(y, s) * normal(9, 2, 2)).sum(),
        "divergence": (diffusion.noise_divergence(y, s) * normal(7, *shape)).sum(),
    }


def test_second_derivatives_of_the_drift():
    diffusion = learned()
    y = normal(0, 2, 2).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda y: diffusion.drift(y, 0.5), y)


@pytest.mark.parametrize("inputs_require_gradients", [False, True])
@pytest.mark.parametrize("name", ["drift", "dispersion", "divergence"])
def test_gradients_in_the_state_and_in_what_is_learned(name, inputs_require_gradients):
    diffusion = learned()
    y, s = normal(0, 3, 2, 2).requires_grad_(inputs_require_gradients), torch.rand(3).double()
    names = ["D.function.c"]
    if name == "drift":
        names += ["H.1.a", "H.0.net.0.weight", "Q.function.w"]
    parameters = [diffusion.get_parameter(parameter) for parameter in names]
    assert all(p.dtype == torch.float64 for p in parameters)
    parameters += [y] if inputs_require_gradients else []
    assert_gradients(lambda: values(diffusion, y, s)[name], parameters, rel=1e-6)


def test_what_is_learned_moves_the_prior_and_stays_stationary():
    diffusion = learned()
    diffusion.check((2,))
    with torch.no_grad():
        for p in diffusion.parameters():
            p += 0.3 * normal(4, p.numel()).reshape(p.shape)
    diffusion._checked.clear()
    diffusion.check((2,))
    y = normal(0, 3, 2, 2)
    names, parameters = zip(*diffusion.H.named_parameters(), strict=True)
    gradients = torch.autograd.grad(diffusion.prior.log_prob(y).sum(), parameters)
    sizes = {n: g.abs().max().item() for n, g in zip(names, gradients, strict=True)}
    # the last bias is a constant of the energy, and so of no consequence
    assert sizes.pop("0.net.2.bias") < 1e-9
    assert min(sizes.values()) > 1e-3


def test_a_copy_is_on_its_own_and_a_cast_keeps_float64():
    diffusion = learned()
    y = normal(0, 3, 2, 2)
    copied = copy.deepcopy(diffusion).float()
    for name in ("drift", "dispersion"):
        assert torch.equal(getattr(copied, name)(y, 0.5), getattr(diffusion, name)(y, 0.5))
    assert torch.equal(copied.prior.log_prob(y), diffusion.prior.log_prob(y))
    with torch.no_grad():
        copied.get_parameter("H.1.a").add_(1.0)
    assert not torch.equal(copied.prior.log_prob(y), diffusion.prior.log_prob(y))


# -- what is refused -------------------------------------------------------------------------------

OF_RANK_1 = [[0.0, 0.0], [0.0, 1.0]]


def test_wrong_arguments_are_named():
    two, swap = [square, square], [[0.0, 1.0], [1.0, 0.0]]
    refused(
        ValueError,
        (lambda: make(two, swap, OF_RANK_1), r"Q is not skew.*reaches 2"),
        (lambda: make(two, [[0.0]], OF_RANK_1), r"Q has shape \(1, 1\), expected \(2, 2\)"),
        (lambda: make([square] * 3, torch.zeros(3, 3), OF_RANK_1), r"D has shape \(2, 2\), expec"),
        (lambda: make(two, TURN, math.nan * torch.eye(2)), r"D has entries that are not finite"),
        (
            lambda: make(square, TURN, OF_RANK_1),
            r"H is one function of all variables.* give prior=",
        ),
        (lambda: make(3.0, TURN, OF_RANK_1), r"H is 3\.0, expected K functions"),
        (lambda: make([square, 2.0], TURN, OF_RANK_1), r"2\.0 is among the energies H, expected f"),
        (lambda: make([], TURN, OF_RANK_1), r"num_variables is 0"),
        (lambda: make(two, TURN, nn.Parameter(torch.eye(2))), r"D requires gradients.* a module"),
        (lambda: make(two, TURN, OF_RANK_1, prior=multivariate(3)), r"of K = 3 variables"),
        (lambda: make(two, TURN, OF_RANK_1, root=friction_root), r"given for a constant"),
        (lambda: make(two, TURN, friction, root=OF_RANK_1), r"root is .*, expected a fu"),
    )


def constant(matrix) -> Callable[[Tensor], Tensor]:
    M = torch.tensor(matrix).double()
    return lambda y: M.expand(len(y), *y.shape[2:], *M.shape)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"H": [square, lambda v: v.sum()]}, r"variable 1 returned shape \(\)"),
        ({"H": lambda y: y.sum((1, 2))}, r"H returned shape \(16,\) .* \(16, 2, 3\), expected \(1"),
        ({"Q": lambda y: torch.zeros(2, 2)}, r"Q returned shape \(2, 2\) .* \(16, 3, 2, 2\)"),
        ({"D": lambda y: y.square()}, r"D returned shape \(16, 2, 3\) .*expected \(16, 3, 2, 2\)"),
        ({"D": friction, "root": lambda y: friction(y)[:, 0]}, r"root returned shape \(16, 2, 2\)"),
        ({"Q": constant([[0.0, 1.0], [1.0, 0.0]])}, r"Q is not skew-symmetric"),
        ({"D": constant([[1.0, 0.1], [0.0, 1.0]])}, r"D is not symmetric"),
        ({"D": constant([[1.0, 0.0], [0.0, -1.0]])}, r"D is not positive semi-definite"),
        ({"D": constant([[1.0, 0.0], [0.0, math.nan]])}, r"D has entries .* not finite .*: nan"),
        ({"Q": constant([[0.0, math.inf], [0.0, 0.0]])}, r"Q has entries .* not finite .*: inf"),
        ({"D": friction, "root": friction}, r"root is not a root of D: .* reaches"),
        ({"D": friction, "root": lambda y: 2**0.5 * friction_root(y)}, r"root is not a root of D"),
    ],
)
def test_wrong_functions_are_named_on_first_use(change, message):
    given = {"H": [square, square], "Q": TURN, "D": OF_RANK_1} | change
    if not isinstance(given["H"], list):
        given["prior"] = GaussianPrior(torch.eye(2).double())
    with pytest.raises(ValueError, match=message):
        HamiltonianDiffusion(**given).check((3,))
