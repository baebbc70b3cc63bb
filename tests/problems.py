"""Diffusions of the core, and data whose laws are known, for every test file."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_mdm.diffusions.base import apply_vector
from pyro_mdm.diffusions.clocks import ConstantBeta, LinearBeta, as_times, log_snr_times
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.diffusions.matrices import apply_matrix
from pyro_mdm.diffusions.presets import ALDA, CLD, MALDA, VPSDE, LearnedDiffusion, MomentumVE
from pyro_mdm.model import DiffusionModel
from pyro_mdm.networks import MAP_UNIT
from pyro_mdm.scores.base import rotated
from pyro_mdm.scores.denoiser import Denoiser

Factory = Callable[[], LinearDiffusion]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def fixed(seed: int, *shape: int) -> Tensor:
    """Like :func:`normal`, but the same under --seed-offset: the diffusions are no draws."""
    unshifted = type(torch.default_generator)().manual_seed(seed)
    return torch.randn(shape, generator=unshifted, dtype=torch.float64)


# -- diffusions ------------------------------------------------------------------------------------


def learned(K: int, rank: int, seed: int, **options: object) -> LearnedDiffusion:
    """A learned diffusion some way into its training: random W and B, B nearly blind to x."""
    diffusion = LearnedDiffusion(K, rank, **options)
    B = fixed(seed + 1, K, rank)
    if K > 1:
        B[0] *= 0.1
    with torch.no_grad():
        diffusion.lower.copy_(fixed(seed, *diffusion.lower.shape))
        diffusion.B.copy_(B * 1.5 / B.norm())
    return diffusion


def random_linear(K: int, seed: int, rank: int | None = None, **options: object) -> LinearDiffusion:
    """Random (Q, D) with a full matrix Σ_∞ and a D of exactly the given rank."""
    W, B, S = fixed(seed, K, K), fixed(seed + 1, K, rank or K), fixed(seed + 2, K, K)
    B = (64 * B).round() / 128  # so few digits that B Bᵀ, and with it the rank of D, is exact
    D = B @ B.mT + (0.1 * torch.eye(K, dtype=torch.float64) if rank is None else 0)
    Sigma = S @ S.mT / K + 0.5 * torch.eye(K, dtype=torch.float64)
    return LinearDiffusion(W - W.mT, D, stationary_variance=(Sigma + Sigma.mT) / 2, **options)


def chain(K: int, **options: object) -> LinearDiffusion:
    """x - v_1 - … - v_{K-1} with noise on the last variable only: a diffusion of order K."""
    Q = torch.zeros(K, K, dtype=torch.float64)
    i = torch.arange(1, K)
    Q[i, i - 1], Q[i - 1, i] = 1.0, -1.0
    D = torch.zeros(K, K, dtype=torch.float64)
    D[-1, -1] = 2.0
    return LinearDiffusion(Q, D, **options)


def learned_clock() -> LinearDiffusion:
    diffusion = LearnedDiffusion.from_diffusion(CLD(), learn_beta=True)
    with torch.no_grad():
        raw = diffusion.beta.get_parameter("raw")
        raw.add_(0.5 * fixed(7, len(raw)))
    return diffusion


def learned_ends() -> LearnedDiffusion:
    """Learned with its ends and its law at rest, away from where they start."""
    ends: dict[str, object] = {"max_log_snr": 10.0, "min_log_snr": -8.0, "learn_ends": (1.0, 2.0)}
    diffusion = learned(2, 2, 33, learn_stationary=True, **ends)
    with torch.no_grad():
        diffusion.moved_ends.copy_(torch.tensor([0.4, -0.7]))
        diffusion.stationary_lower.add_(0.4)
        diffusion.stationary_log_diagonal.sub_(0.3)
    return diffusion


DIFFUSIONS: list[tuple[str, Factory]] = [
    ("vpsde", VPSDE),
    ("cld", CLD),
    ("malda", lambda: MALDA(beta=LinearBeta(0.1, 10.0))),
    ("alda", ALDA),
    (
        "cld_dockhorn",
        lambda: CLD(mass=0.25, friction=1.0, beta=ConstantBeta(4.0), initial_variance=0.01),
    ),
    ("learned_1", lambda: learned(1, 1, 10)),
    ("learned_2", lambda: learned(2, 2, 33)),
    ("learned_3", lambda: learned(3, 3, 60)),
    ("learned_3_rank_1", lambda: learned(3, 1, 54)),
    ("learned_4_rank_2", lambda: learned(4, 2, 6)),
    ("learned_from_cld", lambda: LearnedDiffusion.from_diffusion(CLD(), rank=1)),
    ("learned_from_alda", lambda: LearnedDiffusion.from_diffusion(ALDA(), rank=1)),
    ("learned_clock", learned_clock),
    ("learned_3_diagonal", lambda: LearnedDiffusion(3, diagonal=True, seed=4)),
    ("learned_2_cut_in_time", lambda: LearnedDiffusion(2, diagonal=True, seed=5, cut_time=0.02)),
    ("learned_2_fixed_ends", lambda: learned(2, 1, 108, min_log_snr=-9.0)),
    (
        "learned_2_target_noise",
        lambda: learned(2, 2, 33, stationary_variance=[[1.0, 0.4], [0.4, 0.8]]),
    ),
    ("learned_2_moving_ends", learned_ends),
    ("cld_fixed_ends", lambda: CLD(min_log_snr=-9.0, max_log_snr=10.0)),
    ("random_1", lambda: random_linear(1, 100)),
    ("random_2", lambda: random_linear(2, 200)),
    ("random_3", lambda: random_linear(3, 114)),
    ("random_4", lambda: random_linear(4, 400)),
    ("random_4_rank_2", lambda: random_linear(4, 6, rank=2)),
    ("momentum_ve", MomentumVE),
]
"""Those of the core; :mod:`tests.diffusions` has all of them."""


# -- data ------------------------------------------------------------------------------------------


class GaussianMixture:
    """Data from a Gaussian mixture: every marginal, denoiser and score is closed form, in float64.

    Args:
        weights: (n,).
        means: (n, d).
        covariances: (n, d, d).

    One component is Gaussian data.
    """

    def __init__(
        self, weights: Sequence[float] | Tensor, means: Tensor, covariances: Tensor
    ) -> None:
        w = torch.as_tensor(weights, dtype=torch.float64)
        self.log_weights = (w / w.sum()).log()
        self.means, self.covariances = means.double(), covariances.double()
        self.values, self.vectors = torch.linalg.eigh(self.covariances)  # (n, d), (n, d, d)
        self.event_shape = torch.Size(means.shape[1:])

    def sample(self, num: int, seed: int = 0) -> Tensor:
        """(num, d)."""
        g = generator(seed)
        i = torch.multinomial(self.log_weights.exp(), num, replacement=True, generator=g)
        noise = torch.randn(num, *self.event_shape, generator=g, dtype=torch.float64)
        white = self.values[i].sqrt() * noise
        return self.means[i] + torch.einsum("bij,bj->bi", self.vectors[i], white)

    @property
    def mean(self) -> Tensor:
        """(d,)."""
        return self.log_weights.exp() @ self.means

    @property
    def covariance(self) -> Tensor:
        """(d, d)."""
        w = self.log_weights.exp()
        m = self.means - self.mean
        within = (w[:, None, None] * self.covariances).sum(0)
        return within + torch.einsum("n,ni,nj->ij", w, m, m)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), (*batch), for x (*batch, d)."""
        log_joint, _, _ = self._smoothed(x, torch.zeros((), dtype=torch.float64))
        return log_joint.logsumexp(-1)

    def x_hat(self, z: Tensor, log_snr: Tensor) -> Tensor:
        """E[x | z], like z (*batch, d), for z = x + e^{-λ/2} ε."""
        v = torch.exp(-torch.as_tensor(log_snr, dtype=torch.float64))
        log_joint, rotated, total = self._smoothed(z, v)
        shrunk = self.values / total * rotated  # (*batch, n, d)
        each = self.means + torch.einsum("nij,...nj->...ni", self.vectors, shrunk)
        return (log_joint.softmax(-1).unsqueeze(-1) * each).sum(-2)

    def _smoothed(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log w_n N(z; μ_n, C_n + v I) (*batch, n), z - μ_n along C_n's axes, the variances."""
        rotated = torch.einsum("nij,...ni->...nj", self.vectors, z.unsqueeze(-2) - self.means)
        total = self.values + v[..., None, None]
        log_density = -0.5 * (rotated.square() / total + (2 * math.pi * total).log()).sum(-1)
        return self.log_weights + log_density, rotated, total

    def _state(self, diffusion: Any, y: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """log w_n q_n(y_s) (*batch, n) and S_n^{-1} (y - a μ_n) (*batch, n, K, d).

        S = Σ + C ⊗ a aᵀ, one K×K matrix along each axis of C; it makes no use of z.
        """
        with torch.no_grad():
            a, Sigma = direction(diffusion, s), diffusion.marginal(s).covariance
        K = diffusion.num_variables
        mean = a[..., None, :, None] * self.means[:, None, :]
        rotated = torch.einsum("nij,...nki->...njk", self.vectors, y.unsqueeze(-3) - mean)
        outer = a[..., :, None] * a[..., None, :]
        S = (
            Sigma[..., None, None, :, :]
            + self.values[..., None, None] * outer[..., None, None, :, :]
        )
        scale = S.diagonal(dim1=-2, dim2=-1).sqrt()
        L = torch.linalg.cholesky(S / scale.unsqueeze(-1) / scale.unsqueeze(-2))
        scaled = rotated / scale
        if L.dim() == 4:  # of one time: states are columns
            columns = scaled.reshape(-1, *L.shape[:-1]).movedim(0, -1)
            solved = torch.cholesky_solve(columns, L).movedim(-1, 0).reshape(scaled.shape)
        else:
            L = L.expand(*scaled.shape[:-1], K, K)
            solved = torch.cholesky_solve(scaled.unsqueeze(-1), L)[..., 0]
        log_det = 2 * (L.diagonal(dim1=-2, dim2=-1).log() + scale.log()).sum(-1)
        quadratic = (scaled * solved).sum(-1)
        log_density = -0.5 * (quadratic + log_det + K * math.log(2 * math.pi)).sum(-1)
        force = torch.einsum("nij,...njk->...nki", self.vectors, solved / scale)
        return self.log_weights + log_density, force

    def state_log_prob(self, diffusion: LinearDiffusion, y: Tensor, s: Tensor) -> Tensor:
        """log q(y_s), (*batch), for y (*batch, K, d) and s (*batch) or one time for all."""
        return self._state(diffusion, y, torch.as_tensor(s, dtype=torch.float64))[0].logsumexp(-1)

    def score(self, diffusion: LinearDiffusion, y: Tensor, s: Tensor) -> Tensor:
        """∇ log q(y_s), like y; it makes no use of the sufficiency of z."""
        log_joint, force = self._state(diffusion, y, torch.as_tensor(s, dtype=torch.float64))
        return -(log_joint.softmax(-1)[..., None, None] * force).sum(-3)

    def state_x_hat(self, diffusion: Any, y: Tensor, s: Tensor) -> Tensor:
        """E[x | y_s], (*batch, d), for y (*batch, K, d), from all of the state."""
        log_joint, force = self._state(diffusion, y, torch.as_tensor(s, dtype=torch.float64))
        a = direction(diffusion, s)[..., None, :, None]
        each = self.means + torch.einsum("nij,...nj->...ni", self.covariances, (a * force).sum(-2))
        return (log_joint.softmax(-1).unsqueeze(-1) * each).sum(-2)

    def noised(self, diffusion: LinearDiffusion, s: float, num: int, seed: int = 0) -> Tensor:
        """Draws of y_s, (num, K, d)."""
        x = self.sample(num, seed)
        with torch.no_grad():
            marginal = diffusion.marginal(s)
        noise = normal(seed + 1, num, diffusion.num_variables, *self.event_shape)
        return marginal.mean[:, None] * x[:, None] + marginal.scale_tril @ noise


class LinearEncoder(nn.Module):
    """Every auxiliary mean is a multiple of its data dimension, the same for all."""

    def __init__(self, auxiliary: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.linspace(1.5, -1.0, auxiliary, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (self.slope[:, None] * x.unsqueeze(1)).flatten(1)


def direction(diffusion: Any, s: Tensor | float) -> Tensor:
    """What x is multiplied by in the mean of y_s, (*s.shape, K): of a :class:`LinearEncoder`
    too."""
    a: Tensor = diffusion.marginal(s).mean
    if not diffusion.paths.starts_at_data:
        return a
    return a + diffusion.push(s) @ diffusion.encoder.slope


@torch.no_grad()
def times_at(diffusion: Any, log_snr: Tensor) -> Tensor:
    """Of log SNRs; of many by a table, to 1e-6 or so."""
    different, which = log_snr.unique(return_inverse=True)
    if len(different) < 1000:
        return diffusion.time_at_log_snr(different)[which]
    s = log_snr_times(diffusion, 4001)
    at = np.interp(-log_snr.numpy(), -diffusion.log_snr(s).numpy(), s.log().numpy())
    return torch.from_numpy(at).exp()


class ExactNoise(nn.Module):
    """-Lᵀ ∇ log q(y_s), the ε that a :class:`~pyro_mdm.NoisePrediction` would learn."""

    def __init__(self, problem: GaussianMixture, diffusion: Any) -> None:
        super().__init__()
        self.known = [problem, diffusion]  # no part of the network
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, inputs: Tensor, log_snr: Tensor) -> Tensor:
        problem, diffusion = self.known
        s = _one_time(times_at(diffusion, log_snr))
        score = problem.score(diffusion, inputs.unflatten(1, (-1, *problem.event_shape)), s)
        return self.weight - apply_matrix(diffusion.marginal(s).scale_tril.mT, score).flatten(1)


class ExactState(nn.Module):
    """E[x | y] and E[m | y] under a :class:`LinearEncoder`, in what the network of a
    :class:`~pyro_mdm.StateDenoiser` over ``Denoiser(network, mean, variance)`` is told."""

    def __init__(self, problem: GaussianMixture, diffusion: Any) -> None:
        super().__init__()
        self.known = [problem, diffusion]
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, inputs: Tensor, log_snr: Tensor) -> Tensor:
        problem, diffusion = self.known
        (d,), s2 = problem.event_shape, problem.covariance.diagonal()
        s, v = _one_time(times_at(diffusion, log_snr)), (-log_snr).exp()[:, None]
        marginal, total = diffusion.marginal(s), s2 + v
        z, rest = problem.mean + inputs[:, :d] * total.sqrt(), inputs[:, d:].unflatten(1, (-1, d))
        white = torch.cat([(z / v.sqrt()).unsqueeze(1), rest], 1)
        x = problem.state_x_hat(
            diffusion, apply_matrix(marginal.scale_tril, rotated(marginal, white)), s
        )
        m = diffusion.encoder.slope[:, None] * x.unsqueeze(1)
        z = z - apply_vector(marginal.readout, diffusion.push(s) @ m)
        base = problem.mean + s2 / total * (z - problem.mean)
        return self.weight + torch.cat([(x - base) / (s2 * v / total).sqrt(), m.flatten(1)], 1)


class Silent(nn.Module):
    """A network of no opinion: denoisers are then those of their baseline.

    Args:
        shape: of the output for each datum; that of the input by default.
    """

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, inputs: Tensor, log_snr: Tensor, *context: Tensor) -> Tensor:
        return self.weight + inputs.new_zeros(len(inputs), *(self.shape or inputs.shape[1:]))


class ExactDenoiser(Denoiser):
    """E[x | z] of a Gaussian mixture for any map of log SNR.

    With W = diag(1/√(1+v)), z is to be looked at as W z ~ N(W μ, W C W + diag(v/(1+v))), in which
    v = 0 (observed) and v = ∞ (left out) are numbers like others.
    """

    def __init__(self, problem: GaussianMixture) -> None:
        d = len(problem.mean)
        variance = problem.covariance.diagonal()
        super().__init__(Silent(d), problem.mean, variance, maps=True)
        self.problem = problem

    def x_hat(self, z: Tensor, log_snr: Any) -> Tensor:
        _, lam = self._values("z", z, log_snr)
        lam = lam.reshape(*lam.shape, *[1] * (z.dim() - lam.dim())).expand(z.shape)
        p, w = self.problem, torch.sigmoid(lam).sqrt().unsqueeze(-2)  # (*batch, 1, d)
        rest = w * (z.unsqueeze(-2) - p.means)  # (*batch, n, d)
        noise = torch.diag_embed(torch.sigmoid(-lam)).unsqueeze(-3)
        S = w.unsqueeze(-1) * p.covariances * w.unsqueeze(-2) + noise
        L = torch.linalg.cholesky(S)
        white = torch.linalg.solve_triangular(L, rest.unsqueeze(-1), upper=False)
        log_weights = p.log_weights - 0.5 * white.square().sum((-2, -1))
        log_weights = log_weights - L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        solved = torch.linalg.solve_triangular(L.mT, white, upper=True)
        each = p.means + (p.covariances @ (w.unsqueeze(-1) * solved)).squeeze(-1)
        return (log_weights.softmax(-1).unsqueeze(-1) * each).sum(-2)


class ExactScore:
    """The exact score of noised data as samplers take it: ``score(y, s)``, with ``denoise(y, s)``.

    The score is computed from the density of y_s, the denoiser through z: they meet in tests only.
    """

    dtype = torch.float64

    def __init__(self, problem: GaussianMixture, diffusion: LinearDiffusion) -> None:
        self.problem, self.diffusion = problem, diffusion

    def __call__(self, y: Tensor, s: Tensor) -> Tensor:
        return self.problem.score(self.diffusion, y, _one_time(s))

    def denoise(self, y: Tensor, s: Tensor) -> Tensor:
        with torch.no_grad():
            marginal = self.diffusion.marginal(_one_time(s))
        return self.problem.x_hat(apply_vector(marginal.readout, y), marginal.log_snr)


def _one_time(s: Tensor) -> Tensor:
    """One time for all where they are equal, as in samplers: kernels are made once."""
    return s.flatten()[0] if s.dim() == 1 and bool((s == s[:1]).all()) and s.numel() else s


def gaussian() -> GaussianMixture:
    """Two correlated dimensions, off centre."""
    covariance = torch.tensor([[[0.5, 0.3], [0.3, 0.8]]], dtype=torch.float64)
    return GaussianMixture([1.0], torch.tensor([[0.7, -0.4]]), covariance)


def mixture() -> GaussianMixture:
    """Three components in two dimensions, one of them thin."""
    means = torch.tensor([[-1.0, 0.5], [0.8, 0.9], [0.2, -1.2]])
    covariances = torch.tensor(
        [[[0.05, 0.0], [0.0, 0.02]], [[0.2, 0.1], [0.1, 0.1]], [[0.01, 0.0], [0.0, 0.3]]]
    )
    return GaussianMixture([0.5, 0.3, 0.2], means, covariances)


def given_measurement(
    problem: GaussianMixture, H: Tensor, obs: Tensor, noise_variance: Tensor
) -> tuple[GaussianMixture, Tensor]:
    """p(x | obs) and log p(obs), nats, for obs = H x + noise: H (m, d), obs and variances (m,)."""
    C, rest = problem.covariances, obs - problem.means @ H.mT
    S = H @ C @ H.mT + noise_variance.expand(len(H)).diag()
    gain = torch.linalg.solve(S, H @ C).mT
    means = problem.means + (gain @ rest.unsqueeze(-1)).squeeze(-1)
    covariances = C - gain @ H @ C
    square = (rest * torch.linalg.solve(S, rest.unsqueeze(-1)).squeeze(-1)).sum(-1)
    log_det = torch.linalg.slogdet(2 * math.pi * S).logabsdet
    log_joint = problem.log_weights - 0.5 * (square + log_det)
    law = GaussianMixture(log_joint.softmax(-1), means, (covariances + covariances.mT) / 2)
    return law, log_joint.logsumexp(0)


def correlated() -> GaussianMixture:
    """Four dimensions that depend strongly on each other, off centre."""
    A = fixed(3, 4, 4)
    covariance = A @ A.mT / 4 + 0.1 * torch.eye(4, dtype=torch.float64)
    return GaussianMixture([1.0], torch.tensor([[0.7, -0.4, 0.0, 1.0]]), covariance[None])


def bimodal() -> GaussianMixture:
    """Two components, which every dimension alone leaves in doubt."""
    means = torch.tensor([[0.8, 0.6, -0.7, 0.9], [-0.8, -0.6, 0.7, -0.5]])
    A = 0.4 * fixed(8, 2, 4, 4)
    covariances = A @ A.mT / 4 + 0.15 * torch.eye(4, dtype=torch.float64)
    return GaussianMixture([0.6, 0.4], means, covariances)


def part(problem: GaussianMixture, dims: Tensor) -> GaussianMixture:
    """The law of these dimensions, a mask or indices."""
    return GaussianMixture(
        problem.log_weights.exp(), problem.means[:, dims], problem.covariances[:, dims][:, :, dims]
    )


def given_dimensions(problem: GaussianMixture, observed: Tensor, x: Tensor, asked: Tensor) -> Any:
    """p(x_u | x_o), a mixture, for masks (d,) and one x (d,)."""
    C, known = problem.covariances, x[observed] - problem.means[:, observed]
    gain = torch.linalg.solve(C[:, observed][:, :, observed], C[:, observed][:, :, asked]).mT
    means = problem.means[:, asked] + (gain @ known.unsqueeze(-1)).squeeze(-1)
    covariances = C[:, asked][:, :, asked] - gain @ C[:, observed][:, :, asked]
    of_o = [part_of(problem, k, observed).log_prob(x[observed]) for k in range(len(C))]
    weights = (problem.log_weights + torch.stack(of_o)).softmax(-1)
    return GaussianMixture(weights, means, (covariances + covariances.mT) / 2)


def part_of(problem: GaussianMixture, k: int, dims: Tensor) -> GaussianMixture:
    one = GaussianMixture([1.0], problem.means[k : k + 1], problem.covariances[k : k + 1])
    return part(one, dims)


def conditional_log_prob(
    problem: GaussianMixture, x: Tensor, observed: Tensor, left_out: Tensor
) -> Tensor:
    """log p(x_u | x_o), (n,), for x (n, d) and masks (d,) or (n, d)."""
    both = torch.stack([observed.expand_as(x), ~left_out.expand_as(x)], 1)
    found = torch.zeros(len(x), dtype=torch.float64)
    for pair in both.unique(dim=0):
        rows = (both == pair).flatten(1).all(1)
        o, ou = pair
        found[rows] = part(problem, ou).log_prob(x[rows][:, ou])
        if o.any():
            found[rows] -= part(problem, o).log_prob(x[rows][:, o])
    return found


def law_of_dimensions(diffusion: Any, s: float, d: int) -> tuple[Tensor, Tensor]:
    """What x is multiplied by, (d, K), and the covariance (d, K, K) of y_s given x, at one time."""
    K, at = diffusion.num_variables, as_times(s)
    S = diffusion.marginal(at).covariance
    return direction(diffusion, at).expand(1, d, K)[0], S.expand(1, d, K, K)[0]


def law_of_states(problem: GaussianMixture, diffusion: Any, s: float) -> GaussianMixture:
    """The law of y_s, flattened to K·d numbers, at one time; of blocks per dimension too."""
    d, K = len(problem.mean), diffusion.num_variables
    a, S = law_of_dimensions(diffusion, s, d)
    outer = torch.einsum("ik,jl,nij->nkilj", a, a, problem.covariances)
    outer = outer + torch.einsum("ij,ikl->kilj", torch.eye(d, dtype=torch.float64), S)
    means = torch.einsum("ik,ni->nki", a, problem.means).flatten(1)
    return GaussianMixture(problem.log_weights.exp(), means, outer.reshape(-1, K * d, K * d))


class Levels:
    """Data of few levels that depend on each other: a table of joint probabilities, in which every
    conditional law is a sum.

    Args:
        levels: (n,).
        table: (n, …, n), one axis for each of d dimensions.
    """

    def __init__(self, levels: Tensor, table: Tensor) -> None:
        self.levels, self.table = levels, table / table.sum()
        d, n = table.dim(), len(levels)
        index = torch.cartesian_prod(*[torch.arange(n)] * d)
        self.index, self.values = index, levels[index]  # (n^d, d)
        self.log_weights = self.table.flatten().log()
        self.event_shape = torch.Size((d,))

    def sample(self, num: int, seed: int = 0) -> Tensor:
        """(num, d)."""
        rows = torch.multinomial(self.table.flatten(), num, True, generator=generator(seed))
        return self.values[rows]

    def rows(self, x: Tensor) -> Tensor:
        """Which of all data each of x (n, d) is, (n,)."""
        return (x.unsqueeze(1) == self.values).all(-1).double().argmax(-1)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), (n,)."""
        return self.log_weights[self.rows(x)]

    def conditional_log_prob(self, x: Tensor, observed: Tensor, left_out: Tensor) -> Tensor:
        """log p(x_u | x_o), (n,), for masks (d,)."""

        def of_part(dims: Tensor) -> Tensor:
            same = (x[:, None, dims] == self.values[:, dims]).all(-1)
            return torch.where(same, self.log_weights, -math.inf).logsumexp(1)

        return of_part(~left_out) - of_part(observed)

    @property
    def log_prior(self) -> Tensor:
        """Of each dimension alone, (d, n)."""
        d = self.event_shape[0]
        others = [tuple(i for i in range(d) if i != j) for j in range(d)]
        return torch.stack([self.table.sum(axes) for axes in others]).log()

    def of_level(self, log_joint: Tensor) -> Tensor:
        """log Σ of joint terms (*batch, n^d, d) by the level of each dimension, (*batch, d, n)."""
        member = self.index.mT.unsqueeze(-1) == torch.arange(len(self.levels))  # (d, n^d, n)
        most = log_joint.amax(-2, keepdim=True)
        sums = torch.einsum("...id,din->...dn", (log_joint - most).exp(), member.double())
        return sums.log() + most.movedim(-1, -2)


class ExactLevels(nn.Module):
    """The network of a :class:`~pyro_mdm.DiscreteDenoiser` of these data with ``"logits"`` and
    ``maps=True``: what all other dimensions say of each."""

    def __init__(self, problem: Levels) -> None:
        super().__init__()
        self.problem = problem
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, inputs: Tensor, log_snr: Tensor) -> Tensor:
        problem = self.problem
        prior = problem.log_prior.exp()
        mean = prior @ problem.levels
        s2 = (prior * (problem.levels - mean[:, None]).square()).sum(-1)
        s2 = s2.clamp_min(0.5 * float(s2.mean()))
        (d,) = problem.event_shape
        precision = (MAP_UNIT * inputs[:, d : 2 * d]).exp()  # a context may follow
        z = mean + inputs[:, :d] * (s2 + 1 / precision).sqrt()
        each = -0.5 * precision.unsqueeze(1) * (z.unsqueeze(1) - problem.values).square()
        others = problem.log_weights[:, None] + each.sum(-1, keepdim=True) - each
        out = problem.of_level(others) - problem.log_prior
        return self.weight + out.movedim(-1, -2).flatten(1)


# -- what is known of each datum -------------------------------------------------------------------

D = 4  # dimensions of ``correlated`` and ``bimodal``
ENDS: dict[str, Any] = {"max_log_snr": 9.0, "min_log_snr": -9.0}


def masks(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    """Random observed and left out; at least one dimension is generated. They are no draws: the
    same under --seed-offset."""
    kind = torch.bucketize(fixed(seed, *shape, D), torch.tensor([-0.43, 0.43]).double())
    kind.scatter_(-1, fixed(seed + 1, *shape, D).argmax(-1, keepdim=True), 2)
    return kind == 0, kind == 1


def program(problem: GaussianMixture, diffusion: Any, **options: Any) -> DiffusionModel:
    """The model whose denoiser is exact, for any mask."""
    return DiffusionModel(diffusion, ExactDenoiser(problem), **options)
