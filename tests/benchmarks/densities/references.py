"""Draws and log Z of targets, of which nothing is known in closed form, by long runs.

    python -m tests.benchmarks.densities.references

Each is several runs of sequential Monte Carlo along a tempered path from N(0, I), whose steps are
as long as keeps half of the effective particles, and whose moves are Hamiltonian with the
particles' own covariance. The file of a target keeps the runs' estimates of log Z apart; its draws
are of all runs, as many of each mode as its probability says, where modes can be told.
"""

from __future__ import annotations

import argparse
import io
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from inference.checkpoints import write_atomically
from tests.benchmarks.densities.base import Target
from tests.benchmarks.densities.targets import NAMES, target

__all__ = ["FOLDER", "Reference", "annealed", "of_runs", "reference"]

FOLDER = Path("data/densities")
KEPT = 4_000


class Reference(NamedTuple):
    """What methods are held to.

    Attributes:
        x: nearly independent draws (n, dim).
        log_z: the log integral.
        log_z_se: its standard error; 0 where it is exact.
        log_z_runs: the estimates of the runs; empty where it is exact.
    """

    x: Tensor
    log_z: float
    log_z_se: float
    log_z_runs: tuple[float, ...]


def reference(name: str, folder: Path = FOLDER) -> Reference:
    """The reference of a target (SystemExit: its file has not been made)."""
    own = target(name)
    if own.exact is not None and own.log_z is not None:
        return Reference(own.exact(KEPT, 1_000_000), own.log_z, 0.0, ())
    file = folder / f"{name}.npz"
    if not file.exists():
        raise SystemExit(
            f"{file} is missing, expected the reference of {name}; make it by "
            f"python -m tests.benchmarks.densities.references --folder {folder}"
        )
    with np.load(file) as kept:
        x, runs = torch.from_numpy(kept["x"]), kept["log_z_runs"]
    return Reference(x, *mean_of(runs), tuple(runs.tolist()))


def mean_of(log_z: np.ndarray) -> tuple[float, float]:
    """The log of the mean of Z over runs, and its standard error."""
    shares = np.exp(log_z - log_z.max())
    error = shares.std(ddof=1) / shares.mean() / math.sqrt(len(shares))
    return float(log_z.max() + np.log(shares.mean())), float(error)


def of_runs(own: Target, particles: int, runs: int, moves: int) -> tuple[Tensor, Tensor]:
    """Draws of a target, and log Z (runs,)."""
    each = [annealed(own, particles, moves, seed) for seed in range(runs)]
    x = torch.cat([x for x, _ in each])
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(runs))]
    if own.modes is not None:
        mode = own.modes.of(x)
        counts = (KEPT * own.modes.probabilities).round().int().tolist()
        x = torch.cat([x[mode == k][:count] for k, count in enumerate(counts)])
        x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(runs))]
    return x[:KEPT], torch.tensor([log_z for _, log_z in each])


def annealed(own: Target, particles: int, moves: int, seed: int) -> tuple[Tensor, float]:
    """Particles (n, dim) of equal weights, and log Z.

    Args:
        own: the target.
        particles: how many.
        moves: of each particle at each temperature; twenty times as many at the last.
        seed: of the start, of resampling and of the moves.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(particles, own.dim, generator=generator)
    power, log_z, step = 0.0, 0.0, 0.5
    while power < 1:
        gain = finite(own.log_density(x)) - standard(x)
        up = next_step(gain, 1 - power)
        power = power + up if up < 1 - power else 1.0
        log_weights = up * gain
        log_z += float(log_weights.logsumexp(0)) - math.log(particles)
        x = x[systematic(log_weights.softmax(0), generator)]
        for _ in range(moves if power < 1 else 20 * moves):
            x, accepted = moved(own, power, x, step, generator)
            step *= math.exp(0.3 * (accepted - 0.8))
    return x, log_z


def standard(x: Tensor) -> Tensor:
    """The log density of N(0, I)."""
    return -x.square().sum(1) / 2 - x.shape[1] * math.log(2 * math.pi) / 2


def finite(log_density: Tensor) -> Tensor:
    return log_density.nan_to_num(-math.inf, posinf=-math.inf)


def next_step(gain: Tensor, most: float) -> float:
    """The power that leaves half of the particles effective, at most what is left."""

    def enough(up: float) -> bool:
        return 1 / float((up * gain).softmax(0).square().sum()) >= len(gain) / 2

    if enough(most):
        return most
    low, high = 0.0, most
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if enough(middle) else (low, middle)
    return low


def systematic(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Which particles are drawn, of weights that sum to one."""
    n = len(weights)
    at = (torch.arange(n) + torch.rand(1, generator=generator)).double() / n
    return torch.searchsorted(weights.double().cumsum(0), at).clamp(max=n - 1)


def moved(
    own: Target, power: float, x: Tensor, step: float, generator: torch.Generator
) -> tuple[Tensor, float]:
    """A Hamiltonian move of eight steps of each particle, and the mean acceptance."""
    factor = torch.linalg.cholesky(x.T.double().cov() + 1e-8 * torch.eye(x.shape[1])).float()

    def of(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        value = power * own.log_density(x) + (1 - power) * standard(x)
        (slope,) = torch.autograd.grad(value.sum(), x)
        return finite(value.detach()), slope.nan_to_num(0.0, 0.0, 0.0) @ factor

    size = step * (0.5 + torch.rand(len(x), 1, generator=generator))
    v = torch.randn(x.shape, generator=generator)
    value, slope = of(x)
    before = value - v.square().sum(1) / 2
    new = x
    for _ in range(8):
        v = v + size / 2 * slope
        new = new + size * v @ factor.T
        value, slope = of(new)
        v = v + size / 2 * slope
    ratio = finite(value - v.square().sum(1) / 2 - before).exp().clamp(max=1)
    accept = torch.rand(len(x), generator=generator) < ratio
    return torch.where(accept[:, None], new, x), float(ratio.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--particles", type=int, default=4_096, help="of each run")
    parser.add_argument("--runs", type=int, default=4, help="two at least")
    parser.add_argument("--moves", type=int, default=3, help="at each temperature")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.targets:
        own = target(name)
        if own.exact is None or own.log_z is None:
            x, log_z = of_runs(own, options.particles, options.runs, options.moves)
            file = io.BytesIO()
            np.savez(file, x=x.numpy(), log_z_runs=log_z.double().numpy())
            write_atomically(options.folder / f"{name}.npz", file.getvalue())
        made = reference(name, options.folder)
        print(f"{name}: log Z {made.log_z:.3f}, standard error {made.log_z_se:.3f}", flush=True)


if __name__ == "__main__":
    main()
