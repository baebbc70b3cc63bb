"""The cost of an imported network, and whether times between those of its table help.

    python -m tests.benchmarks.imported_cost --summary docs/measured/data

The first table has the processor's time of a call of ``UNet2DModel``, alone and as a denoiser, in
turns. The second trains it on digits by the loss of a ``DDPMScheduler``, whose times are whole, and
reads it at the nearest of these and at times between them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import pandas as pd
import torch
from torch import Tensor, nn

from models.digits import Digits
from pyro_mdm import VPSDE, DiffusionGuide, DiffusionModel, bound
from pyro_mdm.imported import from_diffusers
from pyro_mdm.levels import DiscretizedGaussian
from tests.benchmarks.documented import mean_and_error, write
from tests.benchmarks.imported import loss_of, network_of, train

COMMAND = "python -m tests.benchmarks.imported_cost --summary docs/measured/data"
CALLS = 40
"""Calls of each kind, in turns, in three rounds."""
SIZES = {
    "8×8, one image": (8, (32, 64), 1),
    "8×8, 64 images": (8, (32, 64), 64),
    "32×32, 16 images": (32, (32, 64), 16),
    "32×32, wider, 16 images": (32, (64, 128), 16),
}
"""Pixels on a side, channels, and the number of images."""


def seconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


@torch.no_grad()
def cost(size: int, channels: tuple[int, int], batch: int) -> tuple[float, float]:
    """The median milliseconds of the network alone, and the median ratio of the denoiser to it."""
    blocks: dict[str, Any] = {
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
    }
    network: nn.Module = diffusers.UNet2DModel(
        sample_size=size,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=channels,
        norm_num_groups=8,
        **blocks,
    ).eval()
    x, lam = torch.randn(batch, 1, size, size), torch.linspace(-8, 8, batch)
    denoiser = from_diffusers(network, diffusers.DDPMScheduler(), torch.randn(20, 1, size, size))
    number = denoiser.schedule.at(lam.double()).time.long()
    rounds, alone = [], []
    for _ in range(3):
        denoiser.x_hat(x, lam)
        pairs = [
            (seconds(lambda: network(x, number)), seconds(lambda: denoiser.x_hat(x, lam)))
            for _ in range(CALLS)
        ]
        medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
        alone.append(1000 * medians[0])
        rounds.append(medians[1] / medians[0])
    return statistics.median(alone), statistics.median(rounds)


def bits(denoiser: nn.Module, problem: Digits, x: Tensor) -> float:
    diffusion = VPSDE(max_log_snr=6.0, min_log_snr=-10.0)
    likelihood = DiscretizedGaussian(problem.num_levels)
    model = DiffusionModel(
        diffusion, denoiser, event_shape=problem.event_shape, likelihood=likelihood
    )
    torch.manual_seed(0)  # the same noise
    return bound(model, DiffusionGuide(diffusion), x, draws=16).bits_per_dim.mean


def between(seed: int, steps: int) -> dict[str, float]:
    """Bits per dimension at the nearest of whole times, and at times between them."""
    torch.manual_seed(seed)
    problem, scheduler = Digits(), diffusers.DDPMScheduler()
    train_x, test_x = (problem.to_model_space(data) for data in (problem.train, problem.test))
    network = train(network_of(diffusers), partial(loss_of, scheduler), train_x, steps)
    return {
        name: bits(from_diffusers(network, scheduler, train_x, interpolated=real), problem, test_x)
        for name, real in (("nearest", False), ("between", True))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--summary", type=Path, default=Path("runs"), help="folder of the tables")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.summary.mkdir(parents=True, exist_ok=True)
    costs = []
    for name, size in SIZES.items():
        alone, ratio = cost(*size)
        costs.append({"call": name, "network_ms": alone, "ratio": ratio})
        print(f"{name}: {alone:.2f} ms, ratio {ratio:.3f}", flush=True)
    note = "processor time of one thread; medians of three rounds of 40 calls in turns"
    file = options.summary / "imported-cost.csv"
    write(file, pd.DataFrame(costs), [COMMAND], "0", notes=[note])
    rows = pd.DataFrame([between(seed, options.steps) for seed in range(options.seeds)])
    print(rows)
    less = rows["between"] - rows["nearest"]
    cells: dict[str, Any] = {"times": "all"}
    for name, values in (*rows.items(), ("between_less_nearest", less)):
        cells[str(name)], cells[f"{name}_se"] = mean_and_error(values)
    note = "errors are over seeds; both readings of a network have the same noise"
    file, seeds = options.summary / "imported-times.csv", f"0 to {options.seeds - 1}"
    write(file, pd.DataFrame([cells]), [COMMAND], seeds, "bits/dim", [note], digits=4)


if __name__ == "__main__":
    main()
