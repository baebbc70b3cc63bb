"""The programs of the tasks against the references of the public benchmark.

    python -m tests.benchmarks.arena.checks

For each task it prints

    data        the least of the p-values, times their number, of the observations' entries among
                10,000 simulated at their true parameters
    position    the largest |z| of the mean of ∂ log p(θ, x) over reference draws θ, which is 0 in
                expectation
    scale       the largest |z| of the mean of 1 + θ ∂ log p(θ, x) over these, likewise
    expected    the size that the largest |z| of as many normal numbers has in one case of 20

where θ is unconstrained, and p(θ, x) is of the program. Two moons, whose program has no density of
its data, has in their place the |z| of the mean and of the variance of the radius that its noise
has at reference draws, of observations whose crescents are inside of the square.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Normal, biject_to

from inference.simulators import Simulator
from inference.simulators.two_moons import OFFSET, RADIUS, WIDTH, shift
from pyro_mdm.posteriors import simulate
from tests.benchmarks.arena.references import ENVIRONMENT, OBSERVATIONS, read
from tests.benchmarks.arena.tasks import TASKS, by_site, distractors, flat, sites_of


def data_p_values(task: Simulator, truth: Tensor, x: Tensor, n: int, seed: int) -> Tensor:
    """Two-sided p-values (m,) of the entries of x among n data simulated at a θ (d,)."""
    program = poutine.condition(task.program, by_site(task, task.latent, truth))
    draws = simulate(program, n, seed=seed, vectorized=True)
    simulated = flat(draws, task.observed)
    below = ((simulated < x).sum(0) + 0.5 * (simulated == x).sum(0) + 0.5) / (n + 1)
    return 2 * torch.minimum(below, 1 - below)


def log_joint(
    task: Simulator, u: dict[str, Tensor], data: dict[str, Tensor], supports: dict[str, object]
) -> Tensor:
    """The sum of log p(θ, x), with the volume of the map, over unconstrained θ by site (n, …)."""
    total = torch.zeros(())
    values = dict(data)
    for name, own in u.items():
        to = biject_to(supports[name])
        values[name] = to(own)
        total = total + to.log_abs_det_jacobian(own, values[name]).sum()
    n = len(next(iter(u.values())))
    program = poutine.condition(task.program, {k: v.unsqueeze(1) for k, v in values.items()})
    with pyro.plate("draws", n, dim=-2):
        trace = poutine.trace(program).get_trace()
    return total + trace.log_prob_sum()


def identities(task: Simulator, draws: Tensor, data: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """|z| of the two identities for each parameter (d,), of reference draws (n, d)."""
    supports = {name: sites_of(task)[name]["fn"].support for name in task.latent}
    u = {
        name: biject_to(supports[name]).inv(value).requires_grad_()
        for name, value in by_site(task, task.latent, draws).items()
    }
    data = {name: value.unsqueeze(0) for name, value in data.items()}
    torch.autograd.backward(log_joint(task, u, data, supports))
    slope = flat({name: value.grad for name, value in u.items()}, task.latent)
    place = flat({name: value.detach() for name, value in u.items()}, task.latent)
    return z_of(slope), z_of(1 + (place - place.mean(0)) * slope)


def z_of(values: Tensor) -> Tensor:
    """|z| of the mean of independent rows (n, d), which is expected to be 0."""
    values = values.double()
    return (values.mean(0) / values.std(0) * math.sqrt(len(values))).abs()


def radius(theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """|z| of the mean and of the variance of two moons' radius."""
    p = x - shift(theta)
    w = (torch.hypot(p[:, 0] - OFFSET, p[:, 1]) - RADIUS) / WIDTH
    return z_of(w[:, None]), z_of(w[:, None].square() - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT)
    options = parser.parse_args()
    print("task,data,position,scale,expected")
    for name in options.tasks:
        task, p, position, scale = TASKS[name], [], [], []
        for k in OBSERVATIONS:
            x, truth, draws = (
                read(name, k, file, options.environment)
                for file in ("observation", "true_parameters", "reference_posterior_samples")
            )
            p.append(data_p_values(task, truth[0], x[0], 10_000, k))
            if name == "two_moons":
                if bool((draws.abs() > 0.999).any()):
                    continue
                first, second = radius(draws, x)
            else:
                data = by_site(task, task.observed, x[0])
                if name == "bernoulli_glm":  # whose data are computed from the raw ones
                    raw = read("bernoulli_glm_raw", k, "observation", options.environment)
                    data = {"spikes": raw[0]}
                elif name == "slcp_distractors":
                    data = distractors().apart(x[0])
                first, second = identities(task, draws, data)
            position.append(first)
            scale.append(second)
        least = min(1.0, float(torch.cat(p).min()) * torch.cat(p).numel())
        largest = [float(torch.cat(z).max()) for z in (position, scale)]
        count = torch.cat(position).numel()
        expected = float(Normal(0.0, 1.0).icdf(torch.tensor(1 - 0.025 / count)))
        print(name, f"{least:.2g}", *(f"{z:.2f}" for z in (*largest, expected)), sep=",")


if __name__ == "__main__":
    main()
