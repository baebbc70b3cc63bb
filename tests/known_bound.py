"""Gaussian data, of which the bound of a denoiser that is wrong by a known amount is known.

Data are x ~ N(μ, σ²) per dimension, so that the exact score, the exact decoder and the bound itself
are closed form for every linear diffusion:

    ELBO(x) = log p(x) - E_{q(y_T|x)} log q(y_T) / π(y_T).

A score that is wrong by a known amount lowers the bound by a known amount.
"""

from __future__ import annotations

import math

import torch
from numpy.polynomial.hermite_e import hermegauss
from numpy.polynomial.legendre import leggauss
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from scipy.stats import t as student
from torch import Tensor, nn

from pyro_mdm import MDM_ELBO, Denoiser, DiffusionGuide, DiffusionModel
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.diffusions.matrices import apply_matrix, outer
from pyro_mdm.paths.base import prior_kl

MEAN, VARIANCE, DIMS = 0.3, 0.49, 3
OBJECTIVES = {"mdm": MDM_ELBO, "mean_field": TraceMeanField_ELBO, "trace": Trace_ELBO}


class Wrong(nn.Module):
    """F such that x̂ is off by ``size`` · e^{-λ/2} · sqrt(σ²/(σ²+v)): zero is the exact denoiser."""

    def __init__(self, size: float = 0.0) -> None:
        super().__init__()
        self.size = nn.Parameter(torch.tensor(size, dtype=torch.float64))

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        return torch.ones_like(z) * self.size.to(z.dtype)


def denoiser(size: float = 0.0) -> Denoiser:
    return Denoiser(Wrong(size), data_mean=MEAN, data_variance=VARIANCE)


def penalty(x: Tensor, size: float, low: Tensor, high: Tensor) -> Tensor:
    """What an error of x̂ by δ adds to the diffusion term, like x: ∫ e^λ (½ δ² - δ E[x - x̂_0]) dλ.

    With δ = size σ (v/(σ²+v))^{1/2}, v = e^{-λ}, and E[x - x̂_0 | x] = v/(σ²+v) (x - μ).
    """
    ends = torch.stack([low, high])
    v = (-ends).exp()
    square = 0.5 * size**2 * torch.log1p(VARIANCE / v)
    cross = 2 * size / math.sqrt(VARIANCE) * (v / (VARIANCE + v)).sqrt()
    return square[1] - square[0] + (cross[1] - cross[0]) * (x.double() - MEAN)


def exact_bound(diffusion: LinearDiffusion, x: Tensor, size: float = 0.0) -> Tensor:
    """The bound of each datum in closed form, differentiable in the diffusion."""
    a, Sigma, prior = (
        diffusion.terminal.mean,
        diffusion.terminal.covariance,
        diffusion.prior_covariance,
    )
    log_p = torch.distributions.Normal(MEAN, math.sqrt(VARIANCE)).log_prob(x)
    total = Sigma + VARIANCE * torch.outer(a, a)  # Cov of y_T
    mean = a * (x.double().unsqueeze(-1) - MEAN)

    def expected(covariance: Tensor, offset: Tensor) -> Tensor:
        """E log N(y_T; …) up to the constant that both densities share."""
        inverse = torch.linalg.inv(covariance)
        square = torch.einsum("...i,ij,...j->...", offset, inverse, offset)
        return -0.5 * (square + (inverse @ Sigma).trace() + torch.logdet(covariance))

    mismatch = expected(total, mean) - expected(prior, a * x.double().unsqueeze(-1))
    low = diffusion.terminal_log_snr
    return (log_p - mismatch - penalty(x, size, low, diffusion.start_log_snr)).sum(-1)


@torch.no_grad()
def bound_by_quadrature(model: DiffusionModel, x: Tensor) -> Tensor:
    """The bound of each datum (n, d), by quadrature over level and noise: for few variables."""
    diffusion, score = model.diffusion, model.score_function
    shape = (diffusion.num_variables, *x.shape[1:])
    nodes, weights = map(torch.from_numpy, hermegauss(8))
    noise = torch.cartesian_prod(*[nodes] * math.prod(shape)).reshape(-1, *shape)
    weight = torch.cartesian_prod(*[weights / weights.sum()] * math.prod(shape)).flatten(1).prod(1)
    steps, of_step = map(torch.from_numpy, leggauss(16))
    low, width = diffusion.terminal_log_snr, diffusion.max_log_snr - diffusion.terminal_log_snr
    every, noise = x.repeat_interleave(len(noise), 0), noise.repeat(len(x), 1, 1)
    total = -prior_kl(diffusion, x.double(), x.dim() - 1)
    for step, share in zip((steps + 1) / 2, of_step / 2, strict=True):
        level = (low + width * step).expand(len(every))
        term = score.integrand(diffusion, every, level, noise)
        total -= width * share * (term.reshape(len(x), -1) @ weight)
    marginal = diffusion.start
    y = outer(marginal.mean, every) + apply_matrix(marginal.scale_tril, noise)
    decoded: Tensor = model.likelihood(diffusion, score, y).log_prob(every)
    return total + decoded.reshape(len(x), -1) @ weight


def data(n: int, dims: int = DIMS) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(n, dims, generator=generator, dtype=torch.float64)
    return MEAN + math.sqrt(VARIANCE) * noise


def programs(
    diffusion: LinearDiffusion, score: nn.Module, dims: int = DIMS, **options: object
) -> tuple:
    model = DiffusionModel(diffusion, score, event_shape=(dims,), **options)
    return model, DiffusionGuide(diffusion, times=model.times)


def check_mean(values: Tensor, truth: Tensor | float, largest_error: float) -> None:
    """The mean of independent values is the truth, at a standard error that means something.

    By Student's t, as few values know their own spread badly: one false alarm in two million.
    """
    error = float(values.std() / math.sqrt(len(values)))
    assert error <= largest_error, f"standard error {error:.2e} is too large to test anything"
    difference = abs(float(values.mean() - truth))
    assert difference <= student.isf(2.5e-7, len(values) - 1) * error + 1e-9, (
        f"off by {difference:.2e}, {difference / error:.1f} s.e."
    )


def numerical_gradient(value, parameters: list[nn.Parameter], step: float = 1e-5) -> list[Tensor]:
    gradients = []
    with torch.no_grad():
        for p in parameters:
            g = torch.zeros_like(p)
            for i in range(p.numel()):
                kept = p.view(-1)[i].item()
                ends = []
                for change in (step, -step):
                    p.view(-1)[i] = kept + change
                    ends.append(float(value()))
                p.view(-1)[i] = kept
                g.view(-1)[i] = (ends[0] - ends[1]) / (2 * step)
            gradients.append(g)
    return gradients


class ExactGaussian(nn.Module):
    """The exact score of N(μ, σ²) data under one diffusion, as raw score or as noise."""

    def __init__(self, diffusion: LinearDiffusion, noise: bool, mu: float, s2: float) -> None:
        super().__init__()
        self.diffusion, self.noise, self.mu, self.s2 = diffusion, noise, mu, s2

    def forward(self, inputs: Tensor, log_snr: Tensor) -> Tensor:
        K = self.diffusion.num_variables
        y = inputs.unflatten(1, (K, -1))
        marginal = self.diffusion.marginal(self.diffusion.time_at_log_snr(log_snr))
        score = gaussian_score(marginal.mean, marginal.covariance, y, self.mu, self.s2)
        if self.noise:
            score = -apply_matrix(marginal.scale_tril.mT, score)
        return score.flatten(1, 2)


def gaussian_score(a: Tensor, Sigma: Tensor, y: Tensor, mu: float, s2: float) -> Tensor:
    total = Sigma + s2 * a[..., :, None] * a[..., None, :]
    mean = mu * a.reshape(*a.shape, *[1] * (y.dim() - a.dim()))
    return -apply_matrix(torch.linalg.inv(total), y - mean)
