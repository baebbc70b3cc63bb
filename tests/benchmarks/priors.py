"""A trained model as the prior of a Pyro program whose posterior is known, by SVI and by NUTS.

    python -m tests.benchmarks.priors [--steps 3000] [--samples 200] [--seed 0]

x ~ a model trained on draws of a law, y ~ N(x, σ²): the law is Gaussian with correlated dimensions,
in 2 and in 10 dimensions, or a mixture of two Gaussians in 2, whose posterior has two modes. All of
``MDM(model)`` is as it is by default. A table has, by inference: the errors of posterior means in
units of the exact standard deviation, their mean and the largest; the standard deviations found
over exact ones (those of the best independent dimensions for ``AutoNormal``); both with the Monte
Carlo error of one of them; and the CPU seconds. Before it: what a gradient costs, and what other
draws would change in a value.
"""

from __future__ import annotations

import argparse
import math
import time

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.ops.stats import effective_sample_size
from torch import Tensor

from pyro_mdm import MDM, MDM_ELBO, VPSDE, Denoiser, DiffusionGuide, DiffusionModel
from pyro_mdm.networks import MLP

NOISE = 0.5


class Mixture:
    """Gaussians N(m_k, C) of these weights; the law of x, and that of x given y = x + noise."""

    def __init__(self, means: Tensor, covariance: Tensor, log_weights: Tensor) -> None:
        self.means, self.covariance, self.log_weights = means, covariance, log_weights

    def sample(self, n: int) -> Tensor:
        k = torch.multinomial(self.log_weights.exp(), n, replacement=True)
        root = torch.linalg.cholesky(self.covariance)
        return self.means[k] + torch.randn(n, len(root)) @ root.T

    def given(self, y: Tensor) -> Mixture:
        both = self.covariance + NOISE**2 * torch.eye(len(y))
        gain = self.covariance @ torch.linalg.inv(both)
        evidence = dist.MultivariateNormal(self.means, both).log_prob(y) + self.log_weights
        means = self.means + (y - self.means) @ gain.T
        return Mixture(means, self.covariance - gain @ self.covariance, evidence.log_softmax(0))

    def moments(self) -> tuple[Tensor, Tensor]:
        w = self.log_weights.exp()
        mean = w @ self.means
        between = w @ (self.means - mean).square()
        return mean, (self.covariance.diagonal() + between).sqrt()


def gaussian(d: int, correlation: float) -> Mixture:
    covariance = (1 - correlation) * torch.eye(d) + correlation
    return Mixture(torch.zeros(1, d), covariance, torch.zeros(1))


PROBLEMS = {
    "Gaussian, 2": (gaussian(2, 0.8), torch.tensor([1.0, 0.5])),
    "Gaussian, 10": (gaussian(10, 0.5), torch.linspace(-1.0, 1.5, 10)),
    "mixture, 2": (
        Mixture(
            torch.tensor([[1.0, 0.5], [-1.0, -0.5]]),
            0.16 * torch.eye(2),
            torch.tensor([0.6, 0.4]).log(),
        ),
        torch.tensor([0.0, 0.1]),
    ),
}


def trained(law: Mixture, steps: int) -> DiffusionModel:
    x = law.sample(20_000)
    diffusion = VPSDE(max_log_snr=9.0)
    model = DiffusionModel(diffusion, Denoiser.fit(MLP(x.shape[1]), x))
    loss = MDM_ELBO()(model, DiffusionGuide(diffusion))
    optimizer = torch.optim.Adam(loss.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(x[torch.randint(len(x), (512,))]).backward()
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


def at_mode(prior: MDM, y: Tensor) -> tuple[Tensor, Tensor]:
    """The mode of a posterior and standard deviations by its curvature, without Monte Carlo: the
    moments, where it is Gaussian."""

    def energy(x: Tensor) -> Tensor:
        return -(prior.log_prob(x) + dist.Normal(x, NOISE).log_prob(y).sum())

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = energy(x)
        value.backward()
        return value

    x = y.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([x], max_iter=15, line_search_fn="strong_wolfe")
    optimizer.step(closure)
    rows = []
    for unit in torch.eye(len(y)):
        ends = [(x.detach() + h * unit).requires_grad_() for h in (0.05, -0.05)]
        up, down = (torch.autograd.grad(energy(end), end)[0] for end in ends)
        rows.append((up - down) / 0.1)
    curvature = torch.stack(rows)
    return x.detach(), torch.linalg.inv((curvature + curvature.T) / 2).diagonal().sqrt()


def by_svi(program, autoguide, steps: int = 500) -> Tensor:
    pyro.clear_param_store()
    guide = autoguide(program)
    optimizer = pyro.optim.ClippedAdam({"lr": 0.06, "lrd": 0.02 ** (1 / steps)})
    svi = SVI(program, guide, optimizer, Trace_ELBO(num_particles=4, vectorize_particles=True))
    for _ in range(steps):
        svi.step()
    with pyro.plate("draws", 20_000), torch.no_grad():
        return guide()["x"]


def by_nuts(program, samples: int) -> Tensor:
    mcmc = MCMC(NUTS(program), num_samples=samples, warmup_steps=samples // 2, disable_progbar=True)
    mcmc.run()
    return mcmc.get_samples()["x"]


def row(name: str, found: Tensor, law: Mixture, seconds: float, size: float) -> str:
    mean, deviation = law.moments()
    if name == "AutoNormal":  # of independent dimensions the best, by KL(q ‖ p), is narrower
        deviation = torch.linalg.inv(law.covariance).diagonal().rsqrt()
    off = ((found.mean(0) - mean) / deviation).abs()
    ratio, error = found.std(0) / deviation, 1 / math.sqrt(size)
    share = ""
    if len(law.means) > 1:
        near = (found.unsqueeze(1) - law.means).square().sum(-1).argmin(1)
        share = f"  weight of the first mode {float((near == 0).float().mean()):.2f}"
        share += f" ({float(law.log_weights[0].exp()):.2f} exact)"
    means = f"mean off by {float(off.mean()):.3f}, at most {float(off.max()):.3f} (± {error:.3f})"
    least, most = float(ratio.min()), float(ratio.max())
    deviations = f"deviation {least:.3f} to {most:.3f} (± {error / 2**0.5:.3f})"
    return f"  {name:<24}{means}   {deviations}   {seconds:4.0f} s{share}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for title, (law, y) in PROBLEMS.items():
        pyro.set_rng_seed(options.seed)
        model = trained(law, options.steps)
        x = law.sample(32)
        values = torch.stack([MDM(model, seed=s).log_prob(x) for s in range(8)]).detach()
        prior, one = MDM(model), x[0].clone().requires_grad_()
        before = time.process_time()
        for _ in range(5):
            torch.autograd.grad(prior.log_prob(one), one)
        cost = (time.process_time() - before) / 5
        print(
            f"{title}: standard deviation of a value over seeds {float(values.std(0).mean()):.4f} "
            f"nats; a gradient {1e3 * cost:.0f} ms",
            flush=True,
        )

        def program(prior: MDM = prior, y: Tensor = y) -> None:
            latent = pyro.sample("x", prior)
            pyro.sample("y", dist.Normal(latent, NOISE).to_event(1), obs=y)

        posterior = law.given(y)
        if len(law.means) == 1:
            mode, deviation = at_mode(prior, y)
            mean, exact = posterior.moments()
            off, ratio = ((mode - mean) / exact).abs(), deviation / exact
            print(
                f"  mode and curvature: mean off by {float(off.mean()):.3f}, at most "
                f"{float(off.max()):.3f}   deviation {float(ratio.min()):.3f} to "
                f"{float(ratio.max()):.3f}",
                flush=True,
            )
        gaussians = [AutoNormal, AutoMultivariateNormal] if len(law.means) == 1 else []
        for autoguide in gaussians:
            before = time.process_time()
            found = by_svi(program, autoguide)
            seconds = time.process_time() - before
            print(row(autoguide.__name__, found, posterior, seconds, len(found)), flush=True)
        before = time.process_time()
        found = by_nuts(program, options.samples)
        size = float(effective_sample_size(found.unsqueeze(0)).clamp_max(len(found)).min())
        seconds = time.process_time() - before
        print(row("NUTS", found, posterior, seconds, size), flush=True)


if __name__ == "__main__":
    main()
