"""The moment pass of the discrete denoiser against the definition; run by hand.

    python tests/benchmarks/discrete_moments.py [--batch 128] [--levels 256] [--device cpu]

Prints, for a batch of 28×28 images, the time of a forward pass alone (what sampling needs), of a
forward and backward pass, and of the same written in plain PyTorch with a level axis throughout,
with the memory each keeps for the backward pass; the same of a pass block by block, for uneven
levels; and what is computed once of a prior for even ones. Then the time of the exact divergences
that ``baseline_kl`` looks up. Medians and quartiles over repetitions.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_mdm.levels import discrete
from pyro_mdm.levels.even_levels import EvenLevels


def timed(run: Callable[[], object], repeat: int, device: torch.device) -> str:
    times = []
    for _ in range(repeat + 2):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1e3 * (time.perf_counter() - start))
    low, middle, high = statistics.quantiles(times[2:], n=4)
    return f"{middle:8.1f} ms   (quartiles {low:.1f} to {high:.1f}, fastest {min(times[2:]):.1f})"


def kept(run: Callable[[], object]) -> float:
    """Megabytes that ``run`` saves for its backward pass, beyond what it is given."""
    sizes: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        sizes[t.data_ptr()] = t.numel() * t.element_size()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        run()
    return sum(sizes.values()) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--levels", type=int, default=256)
    parser.add_argument("--dims", type=int, default=28 * 28)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    B, d, n = options.batch, options.dims, options.levels
    levels = discrete.level_values(n).to(device)
    log_prior = (3 * torch.randn(d, n, dtype=torch.float64, device=device)).log_softmax(-1)
    index = torch.multinomial(log_prior.exp(), B, replacement=True).mT
    log_snr = torch.linspace(-8, 13, B, dtype=torch.float64, device=device)[:, None]
    z = (levels[index] + torch.exp(-log_snr / 2) * torch.randn_like(levels[index])).float()
    c, alpha, beta = discrete.noise_odds(log_prior, levels, z, log_snr)[2:5]
    prior, values = log_prior.float(), levels.float()
    tilts = alpha.clone().requires_grad_(), beta.expand_as(z).clone().requires_grad_()

    serves = EvenLevels.serves(log_prior, levels)
    even = EvenLevels(log_prior, levels) if serves else None

    def library(a: Tensor, b: Tensor) -> Tensor:
        return discrete.posterior_mean(discrete.LogOdds(prior, values, c, a, b), even).sum()

    def blocks(a: Tensor, b: Tensor) -> Tensor:
        return discrete.posterior_mean(discrete.LogOdds(prior, values, c, a, b)).sum()

    def plain(a: Tensor, b: Tensor) -> Tensor:
        delta = values - c.unsqueeze(-1)
        odds = prior + (a.unsqueeze(-1) + b.unsqueeze(-1) * delta) * delta
        return (odds.softmax(-1) * delta).sum()

    print(
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {device}, "
        f"{options.threads} threads; {B} data of {d} dimensions, {n} levels, float32"
    )
    beta = beta.expand_as(z)
    if serves:
        text = timed(lambda: EvenLevels(log_prior, levels), 3, device)
        print("once for a prior                  ", text)
    for name, mean in (("moment pass", library), ("by blocks", blocks), ("plain PyTorch", plain)):
        with torch.no_grad():
            print(
                f"{name:14} forward            ",
                timed(lambda m=mean: m(alpha, beta), options.repeat, device),
            )
        print(
            f"{name:14} forward + backward ",
            timed(lambda m=mean: torch.autograd.grad(m(*tilts), tilts), options.repeat, device),
            f"  keeps {kept(lambda m=mean: m(*tilts)):.0f} MB",
        )
    for lam in (-5.0, 5.0, 13.0):
        text = timed(lambda v=lam: discrete.mixture_kl(log_prior, levels, v), 3, device)
        print(f"baseline_kl, its table at λ = {lam:3.0f}     ", text)


if __name__ == "__main__":
    main()
