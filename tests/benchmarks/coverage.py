"""Bias of a bound drawn to a half-width, and coverage of its interval; run by hand.

    python -m tests.benchmarks.coverage --repeats 2000
    python -m tests.benchmarks.coverage --runs runs/digits/noise-cld-0 runs/digits/discrete-vpsde-0

Without runs the integrand is lognormal, exp(σ ε - σ²/2) times a constant, whose diffusion term is
known, and the half-width 10% of it. Of a trained run the truth is the mean of all repeats, with
its own error.
"""

from __future__ import annotations

import argparse
import functools
import math
from pathlib import Path

import torch
from tqdm.auto import tqdm

from inference.folders.loading import load_trained
from inference.measuring.bounds import baseline
from pyro_mdm import VPSDE, DiffusionGuide, DiffusionModel
from pyro_mdm.evaluation.comparison import compare
from pyro_mdm.likelihoods.base import Gaussian, Likelihood
from pyro_mdm.scores.base import Score
from pyro_mdm.support.measured import Z95

__all__ = ["Lognormal", "coverage", "lognormal"]

TERM = 4.0  # nats


class Lognormal(Score):
    """Not a score at all: an integrand exp(σ ε - σ²/2) TERM / width for every datum and level."""

    def __init__(self, sigma: float) -> None:
        super().__init__(lambda inputs, log_snr: inputs)
        self.sigma = sigma

    def score_at(self, diffusion, y, at):  # type: ignore[no-untyped-def]
        return torch.zeros_like(y)

    def denoise_at(self, diffusion, y, at, noise=1.0):  # type: ignore[no-untyped-def]
        return y[..., 0, :]

    def default_likelihood(self) -> Likelihood:
        return Gaussian(0.0, 1e-12)  # whose noise does not count

    def integrand(self, diffusion, x, level, noise=None):  # type: ignore[no-untyped-def]
        width = diffusion.max_log_snr - diffusion.terminal_log_snr
        epsilon = noise.double().flatten(1)[:, 0]
        return (TERM / width * (self.sigma * epsilon - self.sigma**2 / 2).exp()).to(x.dtype)


@functools.cache
def programs(sigma: float) -> tuple[DiffusionModel, DiffusionGuide]:
    """Once, so that what is known of the diffusion is found once."""
    diffusion = VPSDE(max_log_snr=9.0)
    model = DiffusionModel(diffusion, Lognormal(sigma), event_shape=(1,))
    return model, DiffusionGuide(diffusion)


def lognormal(sigma: float, seed: int, half_width: float = 0.1) -> tuple[float, float, int, bool]:
    """Relative error of one estimate, its relative standard error, calls, and ``reached``."""
    x = torch.zeros(64, 1, dtype=torch.float64)
    found = compare(
        {"": programs(sigma)},
        x,
        draws=10**6,
        half_width=half_width * TERM / math.log(2),
        batch_size=10**6,
        seed=seed,
        bins=4,
    )
    estimate = found.estimates[""]
    error = estimate.monte_carlo_error / TERM
    return estimate.diffusion[0] / TERM - 1, error, found.network_calls, found.reached


def summary(found: list[tuple[float, float, int, bool]], known: bool) -> str:
    off, error = (torch.tensor(t, dtype=torch.float64) for t in list(zip(*found, strict=True))[:2])
    calls = sum(f[2] for f in found) / len(found)
    reached = sum(f[3] for f in found) / len(found)
    spread = float(off.std()) / math.sqrt(len(off))
    truth = 0.0 if known else float(off.mean())
    covered = float(((off - truth).abs() < Z95 * error).double().mean())
    bias = f"bias {100 * float(off.mean()):+.3f}% ± {100 * spread:.3f}%, " if known else ""
    return (
        f"{bias}coverage {100 * covered:.1f}% ± "
        f"{100 * math.sqrt(covered * (1 - covered) / len(off)):.1f}%, {calls:,.0f} calls, "
        f"reached {100 * reached:.0f}%"
    )


def coverage(run: Path, repeats: int, half_width: float, images: int) -> str:
    """Of the bound of a run on some test images, in bits/dim."""
    _, programs, _ = load_trained(run)
    problem, model, guide = programs
    x, _ = problem.transform(problem.test[:images], torch.Generator().manual_seed(0))
    unit = x[0].numel() * math.log(2)
    found = []
    base = baseline([programs])
    with torch.no_grad():
        for seed in tqdm(range(repeats), desc=run.name, leave=False):
            one = compare(
                {"": (model, guide)},
                x,
                draws=10**4,
                half_width=half_width,
                seed=seed,
                baseline=base,
            )
            e = one.estimates[""]
            error = e.monte_carlo_error / unit
            found.append((e.bits_per_dim, error, one.network_calls, one.reached))
    return summary(found, known=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=Path, nargs="*", default=[])
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--half_width", type=float, default=0.02, help="of runs, bits/dim")
    parser.add_argument("--images", type=int, default=64, help="test images of runs")
    parser.add_argument("--sigma", type=float, nargs="*", default=[0.5, 1.0, 1.5, 2.0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.runs:
        for run in options.runs:
            found = coverage(run, options.repeats, options.half_width, options.images)
            print(f"{run.name}: {found}", flush=True)
        return
    for sigma in options.sigma:
        games: list[tuple[float, float, int, bool]] = [
            lognormal(sigma, seed) for seed in tqdm(range(options.repeats), leave=False)
        ]
        print(f"lognormal, σ = {sigma:g}: {summary(games, known=True)}", flush=True)


if __name__ == "__main__":
    main()
