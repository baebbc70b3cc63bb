"""The cost of an evaluation's baseline before the first network call; run by hand.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.baseline [--images 250 1000 4000 7000] [--repeat 5]

Its tables are of noise levels and pixels, made once; an image then costs a look into them. Printed
are CPU seconds for 28×28 images of 256 levels, medians and quartiles.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from pyro_mdm import VPSDE, DiffusionModel, DiscreteDenoiser
from pyro_mdm.evaluation.closed_form import DIMS_AT_ONCE
from pyro_mdm.networks import UNet
from pyro_mdm.randomness import low_discrepancy

BINS = 20  # of log_likelihood


def seconds(model: DiffusionModel, x: torch.Tensor) -> float:
    """CPU time of the baseline's integrals over all cells of noise level."""
    ends = model.diffusion.terminal_log_snr.item(), model.diffusion.max_log_snr
    edges = torch.linspace(*ends, BINS + 1, dtype=torch.float64)
    dims = x[0].numel()
    began = time.process_time()
    for first in range(0, dims, DIMS_AT_ONCE):
        part = slice(first, min(first + DIMS_AT_ONCE, dims))
        model.score_function.baseline_integrals(x, edges, part)  # type: ignore[operator]
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, nargs="+", default=[250, 1000, 4000, 7000])
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    grey = low_discrepancy(max(options.images), torch.device("cpu")).view(-1, 1, 1, 1)
    noise = 40 * torch.randn(len(grey), 1, 28, 28)
    images = ((255 * grey + noise).clamp(0, 255).round() / 127.5 - 1).float()
    score = DiscreteDenoiser.fit(UNet(1, out_channels=2), images, levels=256)
    diffusion = VPSDE(max_log_snr=13.0)
    model = DiffusionModel(diffusion, score)
    seconds(model, images[:64])
    for n in options.images:
        first, middle, last = statistics.quantiles(
            [seconds(model, images[:n]) for _ in range(options.repeat)], n=4
        )
        print(f"{n:6} images: {middle:.2f} s ({first:.2f} to {last:.2f})")


if __name__ == "__main__":
    main()
