"""Trials of a racing diffusion, a choice and its time: our likelihood beside sbi's mixed one.

    python -m tests.benchmarks.arena.peers
    data/arena/bin/python -m tests.benchmarks.arena.trials

Two Wald first-passage times race, and the earlier is the response, so that p(choice, time | θ) is
known. Both methods learn from the same simulations of one trial. Scored are the error of a trial,
E log p − log p̂ at new parameters, and posteriors of 8 units of 40 trials, by KL(exact ‖ learned)
and by the shift of means in exact standard deviations, at 500 exact draws each. Seconds are those
of the processor, on one thread.
"""

from __future__ import annotations

import argparse
import functools
import math
import warnings
from collections.abc import Callable
from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from tests.benchmarks.runs import processor_seconds

Draws = dict[str, Tensor]
Density = Callable[[Draws, Tensor, Tensor], Tensor]
"""log p(choice, time | θ) of n pairs, (n,)."""

LATENT = ("first", "second", "bound")
LAWS = {
    "first": dist.LogNormal(0.5, 0.5),
    "second": dist.LogNormal(0.5, 0.5),
    "bound": dist.LogNormal(0.2, 0.3),
}
UNITS, TRIALS, DRAWS = 8, 40, 500


def passage(drift: Tensor, bound: Tensor) -> Tensor:
    """Random first-passage times (Michael, Schucany & Haas, The American Statistician 1976)."""
    mean, square = bound / drift, torch.randn_like(drift).square()
    half = mean * square / (2 * bound.square())
    early = (mean * (1 + half - (2 * half + half.square()).sqrt())).clamp_min(1e-6)
    return torch.where(torch.rand_like(mean) * (mean + early) <= mean, early, mean.square() / early)


def race(theta: Draws, n: int) -> tuple[Tensor, Tensor]:
    """Times and choices of n trials of each θ, (m, n)."""
    first, second, bound = (theta[name].reshape(-1, 1).expand(-1, n) for name in LATENT)
    times = passage(first, bound), passage(second, bound)
    return torch.minimum(*times), (times[1] < times[0]).float()


def log_density(time: Tensor, drift: Tensor, bound: Tensor) -> Tensor:
    apart = (bound - drift * time).square() / (2 * time)
    return bound.log() - 1.5 * time.log() - 0.5 * math.log(2 * math.pi) - apart


def log_later(time: Tensor, drift: Tensor, bound: Tensor) -> Tensor:
    """The log probability of a first passage after a time."""
    above = torch.special.log_ndtr((bound - drift * time) / time.sqrt())
    below = 2 * drift * bound + torch.special.log_ndtr(-(bound + drift * time) / time.sqrt())
    return above + torch.log1p(-(below - above).exp().clamp_max(1 - 1e-12))


def exact(theta: Draws, time: Tensor, choice: Tensor) -> Tensor:
    first, second, bound = (theta[name].double() for name in LATENT)
    winner, loser = torch.where(choice > 0.5, second, first), first + second
    time = time.double()
    return log_density(time, winner, bound) + log_later(time, loser - winner, bound)


def program() -> None:
    theta = {name: pyro.sample(name, law) for name, law in LAWS.items()}
    time, choice = race(theta, 1)
    pyro.deterministic("time", time[0, 0])
    pyro.deterministic("choice", choice[0, 0])


def prior(n: int) -> Draws:
    return {name: law.sample((n,)) for name, law in LAWS.items()}


def ours(theta: Draws, time: Tensor, choice: Tensor) -> Density:
    from pyro_mdm.posteriors import AmortizedLikelihood

    draws = theta | {"time": time[:, 0], "choice": choice[:, 0]}
    learned = AmortizedLikelihood.fit(program, LATENT, ["time", "choice"], draws=draws)
    return lambda theta, t, c: learned.log_prob({"time": t, "choice": c}, theta)


def of_sbi(theta: Draws, time: Tensor, choice: Tensor) -> Density:
    from sbi.inference import MNLE
    from sbi.utils import MultipleIndependent

    def flat(theta: Draws) -> Tensor:
        return torch.stack([theta[name] for name in LATENT], 1)

    laws = MultipleIndependent([law.expand([1]) for law in LAWS.values()])
    inference = MNLE(prior=laws, show_progress_bars=False)
    learned = inference.append_simulations(flat(theta), torch.cat([time, choice], 1)).train()
    return lambda theta, t, c: learned.log_prob(torch.stack([t, c], 1)[None], flat(theta))[0]


class Units:
    """Units with exact draws of their posteriors, by weights of draws of the prior."""

    METHODS: ClassVar = {"ours": ours, "mnle": of_sbi}

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.theta = prior(20_000)
        self.time, self.choice = race(self.theta, 1)
        self.units = [self.unit() for _ in range(UNITS)]

    def unit(self) -> tuple[Tensor, Tensor, Draws, Tensor]:
        (time,), (choice,) = race(prior(1), TRIALS)
        theta = prior(100_000)
        rows = {name: value.unsqueeze(1) for name, value in theta.items()}
        log_p = exact(rows, time, choice).sum(1)
        chosen = torch.multinomial(log_p.softmax(0), DRAWS, replacement=True)
        return time, choice, {name: value[chosen] for name, value in theta.items()}, log_p[chosen]

    @torch.no_grad()
    def scores(self, density: Density) -> dict[str, float]:
        args = self.theta, self.time[:, 0], self.choice[:, 0]
        error = exact(*args) - density(*args)
        divergences, shifts, began = [], [], processor_seconds()
        for time, choice, theta, log_p in self.units:
            rows = {name: value.repeat_interleave(TRIALS) for name, value in theta.items()}
            learned = density(rows, time.repeat(DRAWS), choice.repeat(DRAWS)).reshape(DRAWS, -1)
            gain = learned.double().sum(1) - log_p
            divergences.append(gain.logsumexp(0) - math.log(DRAWS) - gain.mean())
            values = torch.stack([theta[name].log().double() for name in LATENT])
            moved = values @ gain.softmax(0) - values.mean(1)
            shifts.append((moved.abs() / values.std(1)).mean())
        return {
            "error": float(error.mean()),
            "error_se": float(error.std()) / math.sqrt(len(error)),
            "kl": float(torch.stack(divergences).mean()),
            "shift": float(torch.stack(shifts).mean()),
            "seconds": processor_seconds() - began,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    units = Units(options.seed + 1)
    for name, method in Units.METHODS.items():
        torch.manual_seed(options.seed)
        theta = prior(options.simulations)
        simulations = functools.partial(method, theta, *race(theta, 1))
        began = processor_seconds()
        density = simulations()
        print(name, {"fit": processor_seconds() - began} | units.scores(density), flush=True)


if __name__ == "__main__":
    main()
