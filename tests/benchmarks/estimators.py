"""Network calls per image that a bound to ± 0.01 bits/dim takes, by estimator; run by hand.

    python -m tests.benchmarks.estimators runs/mnist5k-learned-0-0

The network is that of a run with a denoiser, put under each diffusion with log SNR from -10 to the
run's largest. For every estimator of the diffusion term it prints the network calls per image after
which the 95% interval of the mean over 500 images, as far as noise goes, is ± 0.01 bits/dim:
n (1.96 s / 0.01)² / 500, s being the standard deviation of one image's bits/dim after n calls. It
is found from the variance of single draws where every draw stands by itself (1-3), and from
repetitions of the whole estimate for the others:

    1  one uniform time per image
    2  a time with density ∝ β(s) / (1 - e^{-b(s)}), right for VPSDE (the paper's choice)
    3  a uniform log SNR
    4  uniform log SNRs of low discrepancy
    5  as 4, as a likelihood ratio to the histogram model, with coefficients by log SNR
    6  as 5, with an adaptive density, stopped when ± 0.01 is reached

with the calls that 6 made and the coverage of its intervals over the repetitions. The integrand
over log SNR does not see the diffusion (tests/core/test_scores.py: draw by draw), so 3-6 are the
same for all.
"""

from __future__ import annotations

import argparse
import math
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from inference.folders.loading import load_trained
from pyro_mdm import ALDA, CLD, MALDA, VPSDE, DiffusionGuide, DiffusionModel, LinearDiffusion
from pyro_mdm.evaluation.comparison import compare

IMAGES, HALF_WIDTH, Z = 500, 0.01, 1.959964
MIN_LOG_SNR = -10.0


def needed(variance: float) -> float:
    """Calls per image over IMAGES images; ``variance`` of one image's bits/dim after one call."""
    return variance * (Z / HALF_WIDTH) ** 2 / IMAGES


def by_time(
    model: DiffusionModel, x: Tensor, density: Callable[[Tensor], Tensor], calls: int
) -> float:
    """Variance of one draw with a time of the given density (constant between 20,000 knots)."""
    diffusion, unit = model.diffusion, x[0].numel() * math.log(2)
    start = float(diffusion.start_time)
    knots = torch.logspace(math.log10(start), 0, 20_001, dtype=torch.float64) * diffusion.horizon
    knots[0], knots[-1] = start, diffusion.horizon
    width, p = knots.diff(), density((knots[1:] + knots[:-1]) / 2)
    p = p / (p * width).sum()
    values = []
    for part in torch.randint(len(x), (calls,)).split(250):
        i = torch.multinomial(p * width, len(part), replacement=True)
        s = knots[i] + width[i] * torch.rand(len(part), dtype=torch.float64)
        log_snr = diffusion.log_snr(s)
        log_snr = log_snr.clamp(float(diffusion.terminal_log_snr), diffusion.max_log_snr)
        h = model.score_function.integrand(diffusion, x[part], log_snr)
        values.append(h.double() * diffusion.log_snr_rate(s) / p[i] / unit)
    return float(torch.cat(values).var())


def by_log_snr(model: DiffusionModel, x: Tensor, calls: int) -> float:
    low, high = float(model.diffusion.terminal_log_snr), model.diffusion.max_log_snr
    values = []
    for part in torch.randint(len(x), (calls,)).split(250):
        log_snr = low + (high - low) * torch.rand(len(part), dtype=torch.float64)
        values.append(model.score_function.integrand(model.diffusion, x[part], log_snr).double())
    return float(((high - low) * torch.cat(values) / (x[0].numel() * math.log(2))).var())


def repeated(
    model: DiffusionModel, x: Tensor, repeats: int, **options: object
) -> tuple[float, ...]:
    """Calls per image needed, calls per image made, and coverage over the repetitions."""
    guide, unit = DiffusionGuide(model.diffusion), x[0].numel() * math.log(2)
    found = [
        compare({"": (model, guide)}, x, seed=seed, **options)  # type: ignore[arg-type]
        for seed in range(repeats)
    ]
    bits = torch.tensor([f.estimates[""].bits_per_dim for f in found], dtype=torch.float64)
    errors = torch.tensor([f.estimates[""].monte_carlo_error / unit for f in found])
    made = sum(f.network_calls for f in found) / repeats / len(x)
    covered = ((bits - bits.mean()).abs() < Z * errors).double().mean()
    return needed(float(bits.var()) * made * len(x)), made, float(covered)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path)
    parser.add_argument("--calls", type=int, default=20_000, help="single draws for each of 1-3")
    parser.add_argument("--repeats", type=int, default=40, help="estimates for 4-6")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    _, programs, _ = load_trained(options.run)
    problem, trained, _ = programs
    x = problem.to_model_space(problem.test)
    ends = {"max_log_snr": trained.diffusion.max_log_snr, "min_log_snr": MIN_LOG_SNR}
    diffusions: dict[str, LinearDiffusion] = {
        "vpsde": VPSDE(**ends),
        "cld": CLD(**ends),
        "malda": MALDA(**ends),
        "alda": ALDA(**ends),
        "learned": trained.diffusion,
    }
    print(
        f"{problem.name}, {len(x)} test images, log SNR {MIN_LOG_SNR:g} to {ends['max_log_snr']:g}"
    )
    print(f"{platform.machine()}, torch {torch.__version__}; calls per image for ± {HALF_WIDTH}:")
    # the same calls per image as a half-width over IMAGES images has
    wanted = HALF_WIDTH * math.sqrt(IMAGES / len(x))
    with torch.no_grad():
        for name, diffusion in diffusions.items():
            model = DiffusionModel(
                diffusion, trained.score_function, trained.likelihood, trained.event_shape
            ).eval()

            def published(s: Tensor, diffusion: LinearDiffusion = diffusion) -> Tensor:
                return diffusion.rate(s) / -torch.expm1(-diffusion.clock(s))

            uniform = needed(by_time(model, x, torch.ones_like, options.calls))
            vpsde = needed(by_time(model, x, published, options.calls))
            print(f"{name:8s} 1: {uniform:9.1f}   2: {vpsde:9.1f}", flush=True)
        print(f"any      3: {needed(by_log_snr(trained, x, options.calls)):9.2f}", flush=True)
        repeats = options.repeats
        plain = repeated(trained, x, repeats, draws=1, control_variate=False, adapt=False)
        print(f"         4: {plain[0]:9.2f}", flush=True)
        print(
            f"         5: {repeated(trained, x, repeats, draws=1, adapt=False)[0]:9.2f}", flush=True
        )
        need, made, covered = repeated(trained, x, repeats, half_width=wanted, draws=200)
        print(
            f"         6: {need:9.2f}   made {made:.2f}, covered {100 * covered:.0f}%", flush=True
        )


if __name__ == "__main__":
    main()
