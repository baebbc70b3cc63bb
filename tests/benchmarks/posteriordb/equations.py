"""Ordinary differential equations, by Runge-Kutta steps of fixed lengths."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from tests.benchmarks.posteriordb.base import Data, Flat, Posterior, Program

__all__ = ["POSTERIORS", "solved"]

Slope = Callable[[float, Tensor], Tensor]
"""The derivative of a state, at a time."""
STEPS = {"year": 8, "dose": 5}
"""Steps between two observations: errors are below a fortieth of the noise in reference draws."""


def solved(slope: Slope, first: Tensor, start: float, times: Tensor, steps: int) -> Tensor:
    """States (*batch, N, d) at times (N,), from the first (*batch, d), by fourth-order steps.

    Args:
        slope: derivative of the state.
        first: state at the start.
        start: time of the first state.
        times: times of the states that are returned, increasing.
        steps: number of steps between two times.
    """
    y, states = first, []
    now = start
    for until in times.tolist():
        h = (until - now) / steps
        for k in range(steps):
            t = now + k * h
            a = slope(t, y)
            b = slope(t + h / 2, y + h / 2 * a)
            c = slope(t + h / 2, y + h / 2 * b)
            d = slope(t + h, y + h * c)
            y = y + h / 6 * (a + 2 * b + 2 * c + d)
        states.append(y)
        now = until
    return torch.stack(states, -2)


def lynx_and_hare(data: Data) -> Program:
    """Lotka and Volterra's equations of the logarithms of both populations."""
    ys = torch.cat([data["y_init"][None], data["y"]])
    middle, spread = torch.tensor([1.0, 0.05, 1.0, 0.05]), torch.tensor([0.5, 0.05, 0.5, 0.05])

    def run() -> None:
        theta = pyro.sample("theta", Flat(dist.LogNormal(middle.log(), 0.5).to_event(1)))
        prior = dist.Normal(middle, spread)
        above = 1 - prior.cdf(torch.zeros(4))  # the prior is a normal one above 0
        pyro.factor("theta_prior", (prior.log_prob(theta) - above.log()).sum(-1))
        z_init = pyro.sample(
            "z_init", dist.LogNormal(torch.full((2,), 10.0).log(), 1.0).to_event(1)
        )
        sigma = pyro.sample("sigma", dist.LogNormal(-torch.ones(2), 1.0).to_event(1))
        alpha, beta, gamma, delta = theta.unbind(-1)

        def slope(t: float, z: Tensor) -> Tensor:
            hare, lynx = z.exp().unbind(-1)
            return torch.stack([alpha - beta * lynx, delta * hare - gamma], -1)

        first = z_init.log()
        later = solved(slope, first, 0.0, data["ts"], STEPS["year"])
        log_z = torch.cat([first.unsqueeze(-2), later], -2)
        law = dist.LogNormal(log_z, sigma.unsqueeze(-2))
        pyro.sample("y", law.to_event(2), obs=ys)

    return run


def compartment(data: Data) -> Program:
    """A dose that a compartment absorbs, and eliminates by Michaelis and Menten's equation."""
    dose, volume = float(data["D"]), float(data["V"])
    times, seen = data["times"], data["C_hat"]

    def run() -> None:
        names = ("k_a", "K_m", "V_m", "sigma")
        k_a, K_m, V_m, sigma = (pyro.sample(name, dist.HalfCauchy(1.0)) for name in names)

        def slope(t: float, c: Tensor) -> Tensor:
            absorbed = (-k_a * t).exp() * k_a * dose / volume
            return (absorbed - V_m / volume * c[..., 0] / (K_m + c[..., 0])).unsqueeze(-1)

        none = torch.zeros_like(k_a).unsqueeze(-1)
        c = solved(slope, none, float(data["t0"]), times, STEPS["dose"])[..., 0]
        # the log of a concentration that a step takes below 0 is not a number
        law = dist.LogNormal(c.clamp_min(1e-6).log(), sigma.unsqueeze(-1))
        pyro.sample("C_hat", law.to_event(1), obs=seen)

    return run


POSTERIORS = {
    "hudson_lynx_hare-lotka_volterra": Posterior(lynx_and_hare),
    "one_comp_mm_elim_abs-one_comp_mm_elim_abs": Posterior(compartment),
}
