"""A trained model as the prior of a Pyro program whose posterior is known, by SVI and by NUTS.

    python -m tests.benchmarks.priors [--steps 3000] [--samples 200] [--out docs/measured/data]

x ~ a model trained on draws of a law, y ~ N(x, σ²): the law is Gaussian with correlated dimensions,
in 2 and in 10 dimensions, or a mixture of two Gaussians in 2, whose posterior has two modes. All of
``MDM(model)`` is as it is by default. Beside it is a neural spline flow of zuko, trained on the
same draws for as many steps.

``posteriors-priors.csv`` has, by inference: the errors of posterior means in units of the exact
standard deviation, their mean and the largest; the standard deviations found over exact ones (those
of the best independent dimensions for ``AutoNormal``); the Monte Carlo errors of one of them; CPU
seconds; and of NUTS the effective number of draws, of the dimension with the fewest, and by second.
``posteriors-values.csv`` has the cost of a gradient, and what other draws change in a value;
``posteriors-mixture.csv`` the weight of the mixture's first mode.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
import zuko
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.ops.stats import effective_sample_size
from torch import Tensor

from pyro_mdm import MDM, MDM_ELBO, VPSDE, Denoiser, DiffusionGuide, DiffusionModel
from pyro_mdm.networks import MLP

torch.distributions.Distribution.set_default_validate_args(
    pyro.distributions.is_validation_enabled()
)
"""zuko turns the checks of all distributions off."""
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
    "Gaussian, 2 dimensions": (gaussian(2, 0.8), torch.tensor([1.0, 0.5])),
    "Gaussian, 10 dimensions": (gaussian(10, 0.5), torch.linspace(-1.0, 1.5, 10)),
    "mixture of two": (
        Mixture(
            torch.tensor([[1.0, 0.5], [-1.0, -0.5]]),
            0.16 * torch.eye(2),
            torch.tensor([0.6, 0.4]).log(),
        ),
        torch.tensor([0.0, 0.1]),
    ),
}


def minimized(
    module: torch.nn.Module, loss: Callable[[Tensor], Tensor], x: Tensor, steps: int, rate: float
) -> None:
    """Trains a module by a loss of batches of 512 data, and freezes it."""
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(x[torch.randint(len(x), (512,))]).backward()
        optimizer.step()
        schedule.step()
    module.eval().requires_grad_(False)


def trained(x: Tensor, steps: int) -> DiffusionModel:
    diffusion = VPSDE(max_log_snr=9.0)
    model = DiffusionModel(diffusion, Denoiser.fit(MLP(x.shape[1]), x))
    minimized(model, MDM_ELBO()(model, DiffusionGuide(diffusion)), x, steps, 2e-3)
    return model


class SplineFlow(dist.TorchDistribution):
    """A neural spline flow as a distribution of Pyro."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = dist.constraints.real_vector

    def __init__(self, x: Tensor, steps: int) -> None:
        super().__init__(event_shape=x.shape[1:], validate_args=False)
        self.centre, self.scale = x.mean(0), x.std(0)
        self.flow = zuko.flows.NSF(x.shape[1], transforms=3, hidden_features=(64, 64))
        minimized(self.flow, lambda batch: -self.log_prob(batch).mean(), x, steps, 1e-3)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            return self.centre + self.scale * self.flow().sample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        unit = (value - self.centre) / self.scale
        log_prob: Tensor = self.flow().log_prob(unit)
        return log_prob - self.scale.log().sum()


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


def by_svi(program: Any, autoguide: Any, steps: int = 500) -> Tensor:
    pyro.clear_param_store()
    guide = autoguide(program)
    optimizer = pyro.optim.ClippedAdam({"lr": 0.06, "lrd": 0.02 ** (1 / steps)})
    svi = SVI(program, guide, optimizer, Trace_ELBO(num_particles=4, vectorize_particles=True))
    for _ in range(steps):
        svi.step()
    with pyro.plate("draws", 20_000), torch.no_grad():
        draws: Tensor = guide()["x"]
        return draws


def by_nuts(program: Any, samples: int) -> Tensor:
    mcmc = MCMC(NUTS(program), num_samples=samples, warmup_steps=samples // 2, disable_progbar=True)
    mcmc.run()
    draws: Tensor = mcmc.get_samples()["x"]
    return draws


def cpu_seconds(run: Callable[[], Any]) -> tuple[Any, float]:
    """The result, and the CPU time that it took."""
    before = time.process_time()
    return run(), time.process_time() - before


COLUMNS = (
    *("law", "method", "mean_error", "mean_error_se", "largest_error"),
    *("deviation_least", "deviation_most", "deviation_error", "seconds", "effective", "rate"),
)


def row(
    title: str, method: str, draws: Tensor, law: Mixture, seconds: float, effective: float | None
) -> list[str]:
    mean, deviation = law.moments()
    if method == "AutoNormal":  # of independent dimensions the best, by KL(q ‖ p), is narrower
        deviation = torch.linalg.inv(law.covariance).diagonal().rsqrt()
    off = ((draws.mean(0) - mean) / deviation).abs()
    ratio, error = draws.std(0) / deviation, 1 / math.sqrt(effective or len(draws))
    numbers = (off.mean(), error, off.max(), ratio.min(), ratio.max(), error / 2**0.5)
    formatted = [f"{float(n):.3f}" for n in numbers] + [f"{seconds:.1f}"]
    if effective is None:
        return [title, method, *formatted, "", ""]
    return [title, method, *formatted, f"{effective:.0f}", f"{effective / seconds:.2f}"]


def share_of_first(draws: Tensor, law: Mixture) -> float:
    """The weight of the mixture's first mode among draws."""
    near = (draws.unsqueeze(1) - law.means).square().sum(-1).argmin(1)
    return float((near == 0).float().mean())


def gradient_cost(prior: Any, x: Tensor, number: int = 10) -> float:
    """The CPU time of a gradient for one value, in milliseconds."""
    one = x.clone().requires_grad_()

    def gradients() -> None:
        for _ in range(number):
            torch.autograd.grad(prior.log_prob(one), one)

    gradients()
    return 1e3 * cpu_seconds(gradients)[1] / number


def replace_rows(path: Path, rows: list[list[str]]) -> None:
    """Writes a table below the comments that its file has."""
    notes = [line for line in path.read_text().splitlines(True) if line.startswith("#")]
    with path.open("w", newline="") as file:
        file.writelines(notes)
        csv.writer(file, lineterminator="\n").writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder of the tables; by default they are shown")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table, shares = [list(COLUMNS)], [["share", "found", "exact"]]
    values: dict[str, list[float]] = defaultdict(list)
    for title, (law, y) in PROBLEMS.items():
        pyro.set_rng_seed(options.seed)
        x, posterior = law.sample(20_000), law.given(y)
        model = trained(x, options.steps)
        prior, spline = MDM(model), SplineFlow(x, options.steps)
        over_seeds = torch.stack([MDM(model, seed=s).log_prob(x[:32]) for s in range(8)])
        values["value"].append(float(over_seeds.std(0).mean()))
        values["gradient"].append(gradient_cost(prior, x[0]))
        values["gradient of a spline flow"].append(gradient_cost(spline, x[0]))

        def program(prior: Any = prior, y: Tensor = y) -> None:
            latent = pyro.sample("x", prior)
            pyro.sample("y", dist.Normal(latent, NOISE).to_event(1), obs=y)

        def on_spline(prior: Any = spline, program: Any = program) -> None:
            program(prior)

        if len(law.means) == 1:
            mode, deviation = at_mode(prior, y)
            mean, exact = posterior.moments()
            off, ratio = ((mode - mean) / exact).abs(), deviation / exact
            numbers = (off.mean(), "", off.max(), ratio.min(), ratio.max())
            shown = [n if isinstance(n, str) else f"{float(n):.3f}" for n in numbers]
            table.append([title, "mode and curvature", *shown, "", "", "", ""])
            for autoguide in (AutoNormal, AutoMultivariateNormal):
                draws, seconds = cpu_seconds(lambda g=autoguide, p=program: by_svi(p, g))
                table.append(row(title, autoguide.__name__, draws, posterior, seconds, None))
                print(*table[-1], sep=", ", flush=True)
        for method, one in (("NUTS", program), ("NUTS on a spline flow", on_spline)):
            draws, seconds = cpu_seconds(lambda p=one: by_nuts(p, options.samples))
            size = effective_sample_size(draws.unsqueeze(0)).clamp_max(len(draws)).min()
            table.append(row(title, method, draws, posterior, seconds, float(size)))
            print(*table[-1], sep=", ", flush=True)
            if len(law.means) > 1:
                found, exact_share = (
                    share_of_first(draws, posterior),
                    posterior.log_weights[0].exp(),
                )
                name = "first mode" + method.removeprefix("NUTS")
                shares.append([name, f"{found:.2f}", f"{float(exact_share):.2f}"])
    ranges = [[name, f"{min(v):.4g}", f"{max(v):.4g}"] for name, v in values.items()]
    for name, rows in {
        "posteriors-priors": table,
        "posteriors-values": [["quantity", "least", "most"], *ranges],
        "posteriors-mixture": shares,
    }.items():
        print(name, *map(",".join, rows), sep="\n", flush=True)
        if options.out is not None:
            replace_rows(options.out / f"{name}.csv", rows)


if __name__ == "__main__":
    main()
