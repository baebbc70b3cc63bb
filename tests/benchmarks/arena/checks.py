"""The programs of the tasks and the classifiers of C2ST against those of the public benchmark.

    python -m tests.benchmarks.arena.checks
    python -m tests.benchmarks.arena.checks --classifiers --draws 2000

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

With ``--classifiers`` it prints C2ST by :func:`~tests.benchmarks.arena.classifiers.accuracies` and
by scikit-learn, with the processor time of each, of reference draws and others with some noise, and
the mean difference of all with its standard error.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import pyro
import torch
from pyro import poutine
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from torch import Tensor
from torch.distributions import Normal, biject_to

from inference.simulators import Simulator
from inference.simulators.two_moons import OFFSET, RADIUS, WIDTH, shift
from pyro_mdm.posteriors import simulate
from tests.benchmarks.arena.references import ENVIRONMENT, OBSERVATIONS, read
from tests.benchmarks.arena.scores import FOLDS, Numbers, c2st, mean_and_error
from tests.benchmarks.arena.tasks import TASKS, by_site, distractors, flat, sites_of
from tests.benchmarks.runs import processor_seconds


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


def by_scikit_learn(reference: Numbers, draws: Numbers, seed: int = 1) -> float:
    """C2ST as ``sbibm.metrics.c2st`` has it."""
    center, scale = reference.mean(0), reference.std(0, ddof=1)
    x = (np.concatenate([reference, draws]) - center) / scale
    y = np.repeat([0, 1], [len(reference), len(draws)])
    units = (10 * x.shape[1],) * 2
    network = MLPClassifier(units, max_iter=10_000, random_state=seed)
    folds = KFold(FOLDS, shuffle=True, random_state=seed)
    return float(cross_val_score(network, x, y, cv=folds, scoring="accuracy").mean())


def compare_classifiers(names: list[str], n: int, environment: Path) -> None:
    """Print C2ST of both classifiers for the first observations of tasks."""
    print("task,observation,noise,ours,scikit-learn,seconds,seconds of scikit-learn")
    apart = []
    random = np.random.default_rng(0)
    for name in names:
        for k, noise in enumerate((0.2, 0.5, 1.0), 1):
            reference = read(name, k, "reference_posterior_samples", environment).numpy()
            one, other = reference[:n], reference[-n:]
            spread = noise * reference.std(0) * random.standard_normal(other.shape)
            pair = one, (other + spread).astype(np.float32)
            began = processor_seconds()
            ours = c2st(*pair)
            middle = processor_seconds()
            theirs = by_scikit_learn(*pair)
            seconds = middle - began, processor_seconds() - middle
            apart.append(ours - theirs)
            scores = (f"{ours:.4f}", f"{theirs:.4f}", *(f"{s:.1f}" for s in seconds))
            print(name, k, noise, *scores, sep=",", flush=True)
    mean, error = mean_and_error(np.array(apart))
    print(f"ours − scikit-learn: {mean:+.5f} ± {error:.5f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT)
    parser.add_argument("--classifiers", action="store_true", help="compare these, not the tasks")
    parser.add_argument("--draws", type=int, default=5_000, help="for classifiers, of each")
    options = parser.parse_args()
    if options.classifiers:
        compare_classifiers(options.tasks, options.draws, options.environment)
        return
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
