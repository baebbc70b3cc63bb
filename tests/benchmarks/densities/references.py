"""Draws and log Z of targets whose posteriors have no closed form, by long runs.

    python -m tests.benchmarks.densities.references

A pilot is sequential Monte Carlo from the origin along a tempered path, whose steps are as long as
keeps half of the particles effective, with Hamiltonian moves that know the particles' covariance. A
Student law is fitted to each of its modes, and fitted again to weighted draws of that. Runs are
importance weights of many draws of the second; what they find does not hang on the pilot, if no
mode is missing. The file of a target keeps their estimates of log Z apart, and that of the pilot.
Its draws are resampled from all runs, as many of each mode as its probability says, where modes can
be told.
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

from inference.folders.checkpoints import write_atomically
from tests.benchmarks.densities.base import Density, Target
from tests.benchmarks.densities.targets import NAMES, target

__all__ = ["FOLDER", "Reference", "Students", "annealed", "of_runs", "reference"]

FOLDER = Path("data/densities")
KEPT = 4_000
FREEDOM = 30
ROWS = 256
"""Of which a density is computed at a time, in the processor's cache."""


class Reference(NamedTuple):
    """What methods are held to.

    Attributes:
        x: nearly independent draws (n, dim).
        log_z: the log integral.
        log_z_se: its standard error; 0 where it is exact.
    """

    x: Tensor
    log_z: float
    log_z_se: float


def reference(name: str, folder: Path = FOLDER) -> Reference:
    """The reference of a target (SystemExit: its file has not been made)."""
    own = target(name)
    if own.exact is not None and own.log_z is not None:
        return Reference(own.exact(KEPT, 1_000_000), own.log_z, 0.0)
    file = folder / f"{name}.npz"
    if not file.exists():
        raise SystemExit(
            f"{file} is missing, expected the reference of {name}; make it by "
            f"python -m tests.benchmarks.densities.references --folder {folder}"
        )
    with np.load(file) as kept:
        return Reference(torch.from_numpy(kept["x"]), *mean_of(kept["log_z_runs"]))


def mean_of(log_z: np.ndarray) -> tuple[float, float]:
    """The log of the mean of Z over runs, and its standard error."""
    shares = np.exp(log_z - log_z.max())
    error = shares.std(ddof=1) / shares.mean() / math.sqrt(len(shares))
    return float(log_z.max() + np.log(shares.mean())), float(error)


class Students(NamedTuple):
    """A mixture of Student laws of 30 degrees of freedom, of equal weights.

    Attributes:
        means: (number, dim).
        factors: (number, dim, dim), lower triangular, of the scale matrices.
    """

    means: Tensor
    factors: Tensor

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, dim)."""
        own = torch.randint(len(self.means), (n,), generator=generator)
        z = torch.randn(n, self.means.shape[1], generator=generator)
        z *= (FREEDOM / torch.randn(n, FREEDOM, generator=generator).square().sum(1)).sqrt()[
            :, None
        ]
        return self.means[own] + torch.einsum("nij, nj -> ni", self.factors[own], z)

    def log_density(self, x: Tensor) -> Tensor:
        """(n, dim) -> (n,)."""
        number, dim = self.means.shape
        inverses = torch.linalg.inv(self.factors)
        constants = self.factors.diagonal(0, 1, 2).log().sum(1)
        constants += dim / 2 * math.log(FREEDOM * math.pi) + math.log(number)
        constants += math.lgamma(FREEDOM / 2) - math.lgamma((FREEDOM + dim) / 2)
        z = torch.stack([(x - m) @ i.T for m, i in zip(self.means, inverses, strict=True)])
        kernels = -(FREEDOM + dim) / 2 * (z.square().sum(2) / FREEDOM).log1p()
        return (kernels - constants[:, None]).logsumexp(0)


def fitted(x: Tensor, own: Target) -> Students:
    """Students of the means and of a tenth more than the covariances of each mode."""
    mode = torch.zeros(len(x)) if own.modes is None else own.modes.of(x)
    parts = [x[mode == k].double() for k in mode.unique()]
    factors = torch.stack([torch.linalg.cholesky(1.1 * part.T.cov()) for part in parts])
    return Students(torch.stack([part.mean(0) for part in parts]).float(), factors.float())


def of_runs(own: Target, particles: int, runs: int, draws: int) -> dict[str, Tensor]:
    """What a file keeps: draws x, log Z of the pilot and of the runs (runs,), and the part of the
    runs' draws that is effective."""
    origin = Students(torch.zeros(1, own.dim), torch.eye(own.dim)[None])
    x, first = annealed(own, origin, particles, moves=3, seed=0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        x, log_weights = weighted(own, fitted(x, own), draws // 4, generator)
        x = x[systematic(log_weights.softmax(0), generator)]
    start = fitted(x, own)
    each = [weighted(own, start, draws, generator) for _ in range(runs)]
    x, log_weights = (torch.cat(parts) for parts in zip(*each, strict=True))
    if own.modes is not None:  # each by its probability
        mode = own.modes.of(x)
        for k, probability in enumerate(own.modes.probabilities):
            log_weights[mode == k] += probability.log() - log_weights[mode == k].logsumexp(0)
    weights = log_weights.softmax(0)
    kept = torch.multinomial(weights, KEPT, replacement=False, generator=generator)
    log_z = torch.stack([of.logsumexp(0) for _, of in each]).double() - math.log(draws)
    effective = 1 / weights.double().square().sum() / len(weights)
    log_z_first = torch.tensor(first)
    return {"x": x[kept], "log_z_runs": log_z, "log_z_first": log_z_first, "effective": effective}


def weighted(
    own: Target, start: Students, n: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draws of the start (n, dim), and their log weights (n,)."""
    x = start.draw(n, generator)
    with torch.no_grad():
        of = [finite(own.log_density(part)) - start.log_density(part) for part in x.split(ROWS)]
    return x, torch.cat(of)


def annealed(
    own: Target, start: Students, particles: int, moves: int, seed: int
) -> tuple[Tensor, float]:
    """Particles (n, dim) of equal weights, and log Z.

    Args:
        own: the target.
        start: what the path starts from.
        particles: how many.
        moves: of each particle at each temperature; five times as many at the last.
        seed: of the start, of resampling and of the moves.
    """
    generator = torch.Generator().manual_seed(seed)
    x = start.draw(particles, generator)
    power, log_z, step = 0.0, 0.0, 0.5
    while power < 1:
        gain = finite(own.log_density(x)) - start.log_density(x)
        up = next_step(gain, 1 - power)
        power = power + up if up < 1 - power else 1.0
        log_weights = up * gain
        log_z += float(log_weights.logsumexp(0)) - math.log(particles)
        x = x[systematic(log_weights.softmax(0), generator)]

        def density(x: Tensor, power: float = power) -> Tensor:
            return power * own.log_density(x) + (1 - power) * start.log_density(x)

        for _ in range(moves if power < 1 else 5 * moves):
            x, accepted = moved(density, x, step, generator)
            step *= math.exp(0.3 * (accepted - 0.8))
    return x, log_z


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
    density: Density, x: Tensor, step: float, generator: torch.Generator
) -> tuple[Tensor, float]:
    """A Hamiltonian move of eight steps of each particle, and the mean acceptance."""
    factor = torch.linalg.cholesky(x.T.double().cov() + 1e-8 * torch.eye(x.shape[1])).float()

    def of(x: Tensor) -> tuple[Tensor, Tensor]:
        values, slopes = [], []
        for part in x.split(ROWS):
            rows = part.detach().requires_grad_()
            value = density(rows)
            slopes += torch.autograd.grad(value.sum(), rows)
            values.append(finite(value.detach()))
        return torch.cat(values), torch.cat(slopes).nan_to_num(0.0, 0.0, 0.0) @ factor

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
    parser.add_argument("--particles", type=int, default=8_192, help="of the pilot")
    parser.add_argument("--runs", type=int, default=4, help="two at least")
    parser.add_argument("--draws", type=int, default=200_000, help="of each run")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.targets:
        own = target(name)
        if own.exact is None or own.log_z is None:
            made = of_runs(own, options.particles, options.runs, options.draws)
            print(name, *(made[key].tolist() for key in made if key != "x"))
            file = io.BytesIO()
            np.savez(file, **{key: value.numpy() for key, value in made.items()})
            write_atomically(options.folder / f"{name}.npz", file.getvalue())
        held = reference(name, options.folder)
        print(f"{name}: log Z {held.log_z:.3f}, standard error {held.log_z_se:.3f}", flush=True)


if __name__ == "__main__":
    main()
