"""Hierarchies, Gaussian processes and a mixture."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from tests.benchmarks.posteriordb.base import Data, Posterior, Program, Sites
from tests.benchmarks.posteriordb.series import ordered

__all__ = ["POSTERIORS"]


def eight_schools(data: Data) -> Program:
    y, sigma = data["y"], data["sigma"]

    def run() -> None:
        trans = pyro.sample("theta_trans", dist.Normal(torch.zeros(len(y)), 1.0).to_event(1))
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        theta = trans * tau.unsqueeze(-1) + mu.unsqueeze(-1)
        pyro.sample("y", dist.Normal(theta, sigma).to_event(1), obs=y)

    return run


def untransformed(draws: Sites, data: Data) -> Sites:
    """The non-centred effects of schools, from the effects."""
    sites = dict(draws)
    theta, mu, tau = sites.pop("theta"), sites["mu"], sites["tau"]
    sites["theta_trans"] = (theta - mu[:, None]) / tau[:, None]
    return sites


def kernel(x: Tensor, rho: Tensor, alpha: Tensor, added: Tensor | float) -> Tensor:
    """A squared-exponential covariance with a number added to its diagonal, (*batch, N, N)."""
    apart = (x.unsqueeze(-1) - x) / rho[..., None, None]
    diagonal = torch.eye(len(x)) * torch.as_tensor(added)[..., None, None]
    return alpha[..., None, None].square() * (-apart.square() / 2).exp() + diagonal


def hyperparameters() -> tuple[Tensor, Tensor]:
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
    return rho, alpha


def gp_regression(data: Data) -> Program:
    x, y = data["x"], data["y"]

    def run() -> None:
        rho, alpha = hyperparameters()
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        covariance = kernel(x, rho, alpha, sigma)
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(y)), covariance), obs=y)

    return run


def gp_counts(data: Data) -> Program:
    x, counts = data["x"], data["k"]

    def run() -> None:
        rho, alpha = hyperparameters()
        trans = pyro.sample("f_tilde", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))
        root = torch.linalg.cholesky(kernel(x, rho, alpha, 1e-10))
        rate = (root @ trans.unsqueeze(-1)).squeeze(-1).exp()
        pyro.sample("k", dist.Poisson(rate).to_event(1), obs=counts)

    return run


def whitened(draws: Sites, data: Data) -> Sites:
    """The white values of a process, from its own."""
    sites = dict(draws)
    f = sites.pop("f").unsqueeze(-1)
    root = torch.linalg.cholesky(kernel(data["x"], sites["rho"], sites["alpha"], 1e-10))
    sites["f_tilde"] = torch.linalg.solve_triangular(root, f, upper=False).squeeze(-1)
    return sites


def mixture(data: Data) -> Program:
    y = data["y"].unsqueeze(-1)

    def run() -> None:
        mu = ordered("mu", dist.Normal(torch.zeros(2), 2.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(torch.full((2,), 2.0)).to_event(1))
        theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
        share = torch.stack([theta, 1 - theta], -1).unsqueeze(-2)
        log_prob = dist.Normal(mu.unsqueeze(-2), sigma.unsqueeze(-2)).log_prob(y)
        pyro.factor("y", (share.log() + log_prob).logsumexp(-1).sum(-1))

    return run


POSTERIORS = {
    "eight_schools-eight_schools_noncentered": Posterior(eight_schools, untransformed),
    "gp_pois_regr-gp_regr": Posterior(gp_regression),
    "gp_pois_regr-gp_pois_regr": Posterior(gp_counts, whitened),
    "low_dim_gauss_mix-low_dim_gauss_mix": Posterior(mixture),
}
