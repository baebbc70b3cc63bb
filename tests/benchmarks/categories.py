"""The gap of one-hot categories to a known distribution; run by hand.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.categories

Rows of three categorical columns, of 8, 8 and 4 categories, from a law without any order: all 256
probabilities are known. A MixedDenoiser is trained on 20,000 rows. The bound on 4,000 others, in
nats by row, is on average at most their log probability; columns that are independent have what a
network that says nothing has.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from pyro_mdm import MDM_ELBO, VPSDE, DiffusionGuide, DiffusionModel, MixedDenoiser, OneHot, bound

SIZES = (8, 8, 4)


def trained(x: Tensor, steps: int) -> tuple[DiffusionModel, DiffusionGuide]:
    torch.manual_seed(0)
    levels = [OneHot(n) for n in SIZES]
    score = MixedDenoiser.from_gaussian(x, levels, hidden=128, depth=3)
    network = score.network
    model = DiffusionModel(VPSDE(max_log_snr=9.0, min_log_snr=-9.0), score)
    guide = DiffusionGuide(model.diffusion)
    loss, optimizer = MDM_ELBO()(model, guide), torch.optim.Adam(network.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        (loss(x[torch.randint(len(x), (512,))]) / 512).backward()
        optimizer.step()
        schedule.step()
    return model.eval(), guide


def in_model_space(codes: Tensor) -> Tensor:
    columns = zip(codes.T, SIZES, strict=True)
    return torch.cat([torch.nn.functional.one_hot(own, n).float() for own, n in columns], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    law = (2 * torch.randn(256, generator=generator)).softmax(0)
    grid = torch.cartesian_prod(*[torch.arange(n) for n in SIZES])
    chosen = torch.multinomial(law, 24_000, True, generator=generator)
    train, test = grid[chosen].split([20_000, 4_000])
    known = law.log()[chosen[20_000:]].mean()
    counted = (torch.bincount(chosen[:20_000], minlength=256) + 0.5) / (20_000 + 128)
    of_counts = counted.log()[chosen[20_000:]].mean()
    print(f"truth {known:.4f}, frequencies of the training rows {of_counts:.4f}")
    model, guide = trained(in_model_space(train), options.steps)
    x = in_model_space(test)
    elbo = bound(model, guide, x, draws=16)
    independent = model.score_function.baseline_log_prob(x).mean()
    value, error = elbo.elbo.mean, elbo.monte_carlo_error
    print(f"bound {value:.4f} ± {error:.4f}, {known - value:.4f} below the truth")
    print(f"independent columns {independent:.4f}")


if __name__ == "__main__":
    main()
