"""What it costs to code categories as numbers on a line; run by hand.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.categories

Rows of three categorical columns, of 8, 8 and 4 categories, from a law without any order: all 256
probabilities are known. A MixedDenoiser is trained on 20,000 rows with the codes in the order of
frequency, as tables have them, and in random orders. The bound, in nats by row, is at most minus
the entropy; columns that are independent have what a network that says nothing has.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from pyro_mdm import MDM_ELBO, VPSDE, DiffusionGuide, DiffusionModel, MixedDenoiser, bound
from pyro_mdm.networks import MLP

SIZES = (8, 8, 4)


def trained(codes: Tensor, steps: int, seed: int) -> tuple[DiffusionModel, DiffusionGuide]:
    torch.manual_seed(seed)
    x = in_model_space(codes)
    network = MLP(3, 128, 3, MixedDenoiser.num_outputs(SIZES))
    model = DiffusionModel(
        VPSDE(max_log_snr=9.0, min_log_snr=-9.0), MixedDenoiser.fit(network, x, SIZES)
    )
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
    return 2 * codes / (torch.tensor(SIZES) - 1) - 1


def recoded(codes: Tensor, orders: list[Tensor]) -> Tensor:
    """Category k becomes the place of k in the order of its column."""
    places = [order.argsort() for order in orders]
    return torch.stack([place[c] for place, c in zip(places, codes.T, strict=True)], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--orders", type=int, default=4)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    law = (2 * torch.randn(256, generator=generator)).softmax(0)
    grid = torch.cartesian_prod(*[torch.arange(n) for n in SIZES])
    chosen = torch.multinomial(law, 24_000, True, generator=generator)
    train, test = grid[chosen].split([20_000, 4_000])
    known = law.log()[(test * torch.tensor([32, 4, 1])).sum(1)].mean()
    print(f"log probability {known:.4f}")
    by_frequency = [
        torch.bincount(c, minlength=n).argsort(descending=True)
        for c, n in zip(train.T, SIZES, strict=True)
    ]
    ways = {"frequency": by_frequency}
    for k in range(options.orders):
        ways[f"random {k}"] = [torch.randperm(n, generator=generator) for n in SIZES]
    for name, orders in ways.items():
        model, guide = trained(recoded(train, orders), options.steps, 0)
        x = in_model_space(recoded(test, orders))
        found = bound(model, guide, x, draws=16)
        independent = model.score_function.baseline_log_prob(x).mean()
        value, error = found.elbo.mean, found.monte_carlo_error
        told = f"{name}: bound {value:.4f} ± {error:.4f}, {known - value:.4f} below"
        print(f"{told}; independent columns {independent:.4f}", flush=True)


if __name__ == "__main__":
    main()
